"""From what the user passes to `fit` to samples, classes, weights and ranges."""

from __future__ import annotations

import numpy as np
from sklearn.utils import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    _check_sample_weight,
    check_consistent_length,
    column_or_1d,
    validate_data,
)
from torch.utils.data import Subset

from .._containers import (
    Rows,
    check_not_empty,
    check_one_input,
    dataset_labels,
    is_dataset,
    read_sample,
    to_array,
    to_dense,
)
from .._validation import (
    check_labels,
    check_sample_shape,
    encode_labels,
    learn_bounds,
    warn_about_radius,
    warn_about_units,
)
from ..attacks.threat import check_norm
from ..training._data import Samples
from ..victims._columns import Columns, needs_table
from ..victims.engine import Engine


class SparseInput:
    """Says that sparse data are taken, which stands before scikit-learn's classes."""

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


class Preparation(SparseInput):
    """What a defence does with the data before it trains on them."""

    def _prepare(self, X, y, sample_weight, *, reset, classes=None):
        """Validate, learn shapes, classes and valid range; return `Samples`."""
        first_time = reset or not hasattr(self, "_sample_shape")
        if is_dataset(X):
            check_not_empty(X)
            y = column_or_1d(check_labels(dataset_labels(X) if y is None else y))
            check_consistent_length(X, y)
            shape = read_sample(X, 0).shape
            if first_time:
                self.n_features_in_ = shape[0] if shape else 1
        else:
            original = X
            check_one_input(X, y)
            if hasattr(X, "columns") and needs_table(X):
                Columns(X).check_numbers()
            X, y = validate_data(
                self,
                to_dense(to_array(X)),
                None if y is None else check_labels(y),
                dtype="numeric",
                allow_nd=True,
                reset=first_time,
            )
            shape = X.shape[1:]
        check_classification_targets(y)
        if first_time:
            self._learn_classes(y, classes)
            self._learn_shape(shape)
            self._float64 = not is_dataset(X) and X.dtype == np.float64 and not self._is_image
        elif classes is not None and not np.array_equal(np.unique(classes), self.classes_inferred_):
            raise ValueError(
                f"classes={np.unique(classes).tolist()} are not those of the first call, "
                f"{self.classes_inferred_.tolist()}."
            )
        else:
            check_sample_shape(shape, self._sample_shape, self)
        encoded = self._encode(y)
        weight = self._weights(X, encoded, sample_weight)
        kept = None
        if weight is not None and not weight.all():
            # a sample of weight zero must not take up a place in a batch either
            kept = np.flatnonzero(weight)
            X = Subset(X, kept.tolist()) if is_dataset(X) else X[kept]
            encoded, weight = encoded[kept], weight[kept]
        previous = None if reset else getattr(self, "adversary_", None)
        self.adversary_ = adversary = self._adversary()
        space = adversary._resolved().space
        if space is not None:  # the order of the columns is that of the batches
            space = space.in_order(X if is_dataset(X) else original)
            self.adversary_ = adversary = adversary._with(space=space)
        if previous is not None and hasattr(adversary, "resume"):
            adversary.resume(previous)
        self.weight_perturbation_ = self._nested("weight_perturbation")
        self.augmentation_ = self._nested("augmentation")
        Engine(self.precision)  # raises if there is no such precision
        if adversary.precision is None:
            adversary.precision = self.precision
        self._learn_range(X, first_time)
        self._warn_about_scale(X if is_dataset(X) else original, shape, first_time)
        samples = Samples(X, encoded, weight)
        samples.rows = kept
        return samples

    def _warn_about_scale(self, original, shape, first_time):
        """Say so where the radius of the adversary is in other units than the data."""
        adversary = self.adversary_._resolved()
        norm = check_norm(adversary.norm, adversary.supported_norms)
        if warn_about_units(original, adversary._stated_eps(norm, shape), stacklevel=5):
            return
        eps = adversary._effective_eps(norm, shape)
        if first_time and not adversary.minimal:  # whose radius is only where the search ends
            warn_about_radius(eps, norm, *adversary._box(self.clip_bounds_), shape, stacklevel=5)

    def _learn_classes(self, y, classes):
        known = self.classes if classes is None else classes
        found = np.unique(y) if known is None else np.unique(np.asarray(known))
        if len(found) < 2:
            where = "the data contain" if known is None else "`classes` names"
            count = "1 class" if len(found) else "0 classes"
            raise ValueError(
                f"{type(self).__name__} needs at least 2 classes, and {where} {count}: "
                f"{found.tolist()}."
            )
        self.classes_inferred_ = found

    def _encode(self, y):
        """Turn labels into class indices."""
        return encode_labels(y, self.classes_inferred_, "y")

    def _learn_shape(self, shape):
        self._sample_shape = tuple(shape)
        if self.input_shape is None:
            wanted = self._sample_shape
        else:
            wanted = tuple(int(s) for s in np.atleast_1d(self.input_shape))
            if np.prod(wanted) != np.prod(shape):
                raise ValueError(
                    f"input_shape={wanted} has {np.prod(wanted)} entries and a sample of X has "
                    f"{int(np.prod(shape))} (shape {tuple(shape)}): they must be as many."
                )
        self.input_shape_ = wanted
        self._shape_checked = False

    @property
    def _is_image(self):
        return len(getattr(self, "input_shape_", ())) > 1

    @property
    def _has_one_range(self):
        """Return whether all values of a sample are in one unit, as pixels are.

        For samples with two axes, series or grey images, the values themselves tell.
        """
        is_either = len(getattr(self, "_sample_shape", ())) == 2 == len(self.input_shape_)
        return self._is_image and not is_either

    def _weights(self, X, y, sample_weight):
        if sample_weight is None and self.class_weight is None:
            return None
        like = X if not is_dataset(X) else np.empty((len(X), 1))
        weight = _check_sample_weight(
            sample_weight, like, dtype=np.float64, ensure_non_negative=True
        )
        if self.class_weight is not None:
            present, position = np.unique(y, return_inverse=True)
            spec = self.class_weight
            if isinstance(spec, dict):
                index = encode_labels(list(spec), self.classes_inferred_, "class_weight")
                given = dict(zip(index.tolist(), spec.values(), strict=True))
                spec = {k: given.get(k, 1.0) for k in present.tolist()}
            if isinstance(spec, str) and spec == "balanced":
                # as in scikit-learn, where newer versions count weights and older ones samples
                of_classes = np.bincount(position, weights=weight)
                counted = of_classes > 0
                of_classes[~counted] = np.inf
                by_class = weight.sum() / (counted.sum() * of_classes)
            else:
                by_class = compute_class_weight(spec, classes=present, y=y)
            weight = weight * by_class[position]
        if not weight.any():
            raise ValueError("All sample weights are zero: there is nothing to learn from.")
        return weight

    def _learn_range(self, X, first_time):
        """Smallest and largest value, for adversaries with ``clip="auto"``."""
        if not isinstance(self.adversary_._resolved().clip, str):
            if first_time:
                self.clip_bounds_ = None
            return
        bounds = learn_bounds(Rows(X) if is_dataset(X) else X, self._has_one_range)
        if not first_time and self.clip_bounds_ is not None:
            low, high = self.clip_bounds_
            bounds = np.minimum(low, bounds[0]), np.maximum(high, bounds[1])
        self.clip_bounds_ = tuple(np.asarray(b, dtype=float) for b in bounds)
