"""Unlabelled samples in a training: who labels them, and what batches are made of."""

from __future__ import annotations

import math
import numbers

import numpy as np
import torch
from torch.utils.data import Sampler, Subset

from .._containers import is_dataset
from .._validation import check_labels
from ..training._data import Samples
from .standard import standard_version


class SelfTraining:
    """A defence that takes -1 for the mark of unlabelled samples, and finds labels for them.

    It has a parameter `unlabeled_weight`.
    """

    #: Whether there may be unlabelled samples; otherwise -1 is a label like any other.
    _takes_unlabelled = True

    def _prepare(self, X, y, sample_weight, **options):
        if not self._takes_unlabelled:
            return super()._prepare(X, y, sample_weight, **options)
        weight = self.unlabeled_weight
        if weight is not None and not (isinstance(weight, numbers.Real) and 0 <= weight < np.inf):
            raise ValueError(
                f"unlabeled_weight must be a finite number of at least 0 or None, got {weight!r}."
            )
        if y is not None:
            y = _with_marks_of_one_kind(check_labels(y))
        return super()._prepare(X, y, sample_weight, **options)

    def _learn_classes(self, y, classes):
        if not self._takes_unlabelled:
            return super()._learn_classes(y, classes)
        known = self.classes if classes is None else classes
        labelled = np.asarray(y)[~_marked(y)]
        if known is not None or len(np.unique(labelled)) < 2:
            labelled = y
        return super()._learn_classes(labelled, classes)

    def _encode(self, y):
        if not self._takes_unlabelled:
            return super()._encode(y)
        unlabelled = _marked(y) & ~_marked(self.classes_inferred_).any()
        encoded = np.full(len(y), -1)
        encoded[~unlabelled] = super()._encode(np.asarray(y)[~unlabelled])
        return encoded

    def _weights(self, X, y, sample_weight):
        weight = super()._weights(X, y, sample_weight)
        if self.class_weight is not None and (y < 0).any():
            # "balanced" takes them for one class more, which matters to no other
            mean = 1.0 if sample_weight is None else np.asarray(sample_weight)[y < 0]
            weight[y < 0] = mean
        return weight

    def _train(self, samples, fresh):
        if not self._takes_unlabelled:
            return super()._train(samples, fresh)
        unlabelled = samples.y < 0
        if unlabelled.any():
            samples = self._label(samples, unlabelled, fresh)
        self.transduction_ = self.classes_inferred_[samples.y]
        if unlabelled.any() and self.unlabeled_weight == 0:
            if unlabelled.all():
                raise ValueError(
                    "All samples are unlabelled (-1) and unlabeled_weight=0: there is nothing to "
                    "learn from."
                )
            samples = _take(samples, np.flatnonzero(~unlabelled))
        elif unlabelled.any() and not unlabelled.all():
            samples = self._balanced(samples, unlabelled)
        return super()._train(samples, fresh)

    def _label(self, samples, unlabelled, fresh):
        """Return the samples with labels for all."""
        rows = np.flatnonzero(unlabelled)
        labeller = self
        if fresh and unlabelled.all():
            raise ValueError(
                f"All {len(samples)} samples are unlabelled (-1): there is nobody to learn from."
            )
        if fresh:
            labelled = _take(samples, np.flatnonzero(~unlabelled))
            labeller = self._labeller(len(samples) / len(labelled)).fit(
                labelled.X, self.classes_inferred_[labelled.y], labelled.weight
            )
            if labeller.interrupted_ is not None:  # half trained, it would label the rest
                raise KeyboardInterrupt
        y = samples.y.copy()
        batches = labeller.forward_iter(_take(samples, rows), device="cpu")
        y[rows] = np.concatenate([b.double().argmax(1).numpy() for b in batches])
        return Samples(samples.X, y, samples.weight)

    def _labeller(self, ratio):
        """Return what labels: the network and its training, without the robustness."""
        # validation would take labelled samples away, and "balanced" goes by all labels
        return standard_version(
            self,
            class_weight=None,
            train_split=None,
            max_epochs=math.ceil(ratio * self.max_epochs),
            classes=self.classes_inferred_,
            input_shape=self.input_shape_,
        )

    def _balanced(self, samples, unlabelled):
        """Return the samples with weights that make half batches count as they should."""
        weight = np.ones(len(samples)) if samples.weight is None else samples.weight.copy()
        size = [weight[~unlabelled].sum(), weight[unlabelled].sum()]
        share = np.array([0.5, 0.5])
        if self.unlabeled_weight is not None:
            share = np.array([size[0], self.unlabeled_weight * size[1]])
            share /= share.sum()
        for kind, part in enumerate((~unlabelled, unlabelled)):
            weight[part] *= 2 * share[kind] * part.sum() / size[kind]
        balanced = Samples(samples.X, samples.y, weight)
        balanced.unlabelled = unlabelled
        return balanced

    def get_iterator(self, dataset, training=False):
        """Return the batches of a Dataset, half of each unlabelled; called by skorch."""
        unlabelled = _unlabelled(dataset) if training and self._in_fit else None
        given = self.get_params_for("iterator_train").keys()
        if (
            unlabelled is None
            or unlabelled.all()
            or not unlabelled.any()
            or {"shuffle", "sampler", "batch_sampler"} & given
        ):
            return super().get_iterator(dataset, training=training)
        size = self.get_params_for("iterator_train").get("batch_size", self.batch_size)
        vars(self)["iterator_train__sampler"] = HalfAndHalf(
            unlabelled, len(dataset) if size == -1 else size
        )
        try:
            return super().get_iterator(dataset, training=training)
        finally:
            del vars(self)["iterator_train__sampler"]


class HalfAndHalf(Sampler):
    """Draw batches of which one half is labelled and the other is not.

    Parameters
    ----------
    unlabelled : ndarray of bool of shape (n_samples,)
        With both kinds in it.
    batch_size : int
    """

    def __init__(self, unlabelled, batch_size):
        self.kinds = [torch.from_numpy(np.flatnonzero(m)) for m in (~unlabelled, unlabelled)]
        self.batch_size = batch_size
        self.n_draws = len(unlabelled)
        if 1 < batch_size < self.n_draws and self.n_draws % batch_size == 1:
            self.n_draws -= 1  # batch normalisation cannot be trained on a single sample

    def __len__(self):
        return self.n_draws

    def __iter__(self):
        labelled, unlabelled = (_endless(rows) for rows in self.kinds)
        for start in range(0, self.n_draws, self.batch_size):
            size = min(self.batch_size, self.n_draws - start)
            for i in range(size):
                yield next(unlabelled if i >= size - size // 2 else labelled)


def _endless(rows):
    while True:
        yield from rows[torch.randperm(len(rows))].tolist()


def _unlabelled(dataset):
    """Return which samples of a Dataset had no label, or None where all had one."""
    if isinstance(dataset, Subset):
        found = _unlabelled(dataset.dataset)
        return None if found is None else found[np.asarray(dataset.indices)]
    return getattr(dataset, "unlabelled", None)


def _take(samples, rows):
    X = Subset(samples.X, rows.tolist()) if is_dataset(samples.X) else samples.X[rows]
    weight = None if samples.weight is None else samples.weight[rows]
    return Samples(X, samples.y[rows], weight)


def _marked(y):
    """Return where a label is the mark of unlabelled samples."""
    y = np.asarray(y)
    if y.dtype.kind in "US":
        return y == "-1"
    if y.dtype == object:
        return np.array([isinstance(v, str) and v == "-1" for v in y], dtype=bool)
    return y == -1 if y.dtype.kind in "if" else np.zeros(len(y), dtype=bool)


def _with_marks_of_one_kind(y):
    """Turn the number -1 among strings into a string, lest they do not compare."""
    values = np.asarray(y)
    if values.dtype != object or values.ndim != 1:
        return y
    mark = np.array([isinstance(v, numbers.Number) and v == -1 for v in values], dtype=bool)
    if not mark.any() or not any(isinstance(v, str) for v in values):
        return y
    values = values.copy()
    values[mark] = "-1"
    return values
