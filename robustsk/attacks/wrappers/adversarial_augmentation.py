"""Adversarial examples as training data, for any classifier."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, clone
from sklearn.utils import InputTags, Tags
from sklearn.utils.multiclass import check_classification_targets

from ..._containers import stack
from ..._validation import check_choice, check_labels
from ..base import BaseAttack
from ..gradient.pgd import PGD

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass
class _InputTags(InputTags):
    # what imbalanced-learn asks for beyond scikit-learn; it need not be there
    dataframe: bool = True


@dataclass
class _SamplerTags:
    sample_indices: bool = False


@dataclass
class _Tags(Tags):
    sampler_tags: _SamplerTags = field(default_factory=_SamplerTags)


class AdversarialAugmentation(OneToOneFeatureMixin, BaseEstimator):
    """Append adversarial copies of the training data, at fit time only.

    A sampler for imbalanced-learn's `Pipeline`: that pipeline accepts a step
    that resamples or one that transforms, not one that does both as an attack
    does.

    Parameters
    ----------
    attack : attack, default=None
        What makes the copies. Without a model of its own it attacks a
        logistic regression fitted on the data at hand. None means `PGD()`.
    labels : {"predicted", "true"}, default="predicted"
        What the attack moves away from. With "true" the perturbation itself
        tells the class, which a flexible model learns instead of the task.
    random_state : int, RandomState or None, default=None
        Source of the randomness of the attack. None leaves it to `attack`.

    Attributes
    ----------
    attack_ : attack
        The fitted attack.
    sampling_strategy_ : dict
        The number of copies of each class.
    n_features_in_ : int
        Number of features seen in `fit`.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features seen in `fit`, if they are all strings.

    See Also
    --------
    robustsk.attacks.PGD.fit_resample : The same without a pipeline.

    Notes
    -----
    Attacking a model that has seen the validation folds leaks their labels
    into the augmentation. The default surrogate is fitted on the training
    fold only.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from robustsk import PGD, AdversarialAugmentation
    >>> X, y = load_iris(return_X_y=True)
    >>> sampler = AdversarialAugmentation(PGD(eps=0.3, random_state=0))
    >>> X_more, y_more = sampler.fit_resample(X, y)
    >>> X_more.shape, y_more.shape
    ((300, 4), (300,))
    """

    # imbalanced-learn's meta-estimators set no strategy where a sampler knows its own
    _sampling_type = "bypass"

    def __init__(
        self,
        attack: BaseAttack | None = None,
        labels: str = "predicted",
        random_state: int | np.random.RandomState | None = None,
    ):
        self.attack = attack
        self.labels = labels
        self.random_state = random_state

    def fit(self, X: Any, y: ArrayLike) -> Self:
        """Fit the attack, without making copies.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
        y : array-like of shape (n_samples,)

        Returns
        -------
        self
        """
        self._fit(X, y)
        return self

    def fit_resample(self, X: Any, y: ArrayLike) -> tuple[Any, Any]:
        """Return the data followed by one adversarial copy of every row.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
        y : array-like of shape (n_samples,)
            May be one-hot encoded.

        Returns
        -------
        X_resampled : container of the kind of `X`, of shape (2 * n_samples, ...)
        y_resampled : container of the kind of `y`, of shape (2 * n_samples,)
        """
        labels = self._fit(X, y)
        X_adv = self.attack_.generate(_filled(X), labels if self.labels == "true" else None)
        return _twice(X, X_adv), _twice(y, y)

    def _fit(self, X, y):
        """Fit the attack and return one label for each sample."""
        check_choice(self.labels, "labels", ("predicted", "true"))
        labels = _one_label_each(y)
        attack = PGD() if self.attack is None else clone(self.attack)
        if self.random_state is not None:
            attack.set_params(random_state=self.random_state)
        self.attack_ = attack.fit(_filled(X), labels)
        self.sampling_strategy_ = dict(zip(*np.unique(labels, return_counts=True), strict=True))
        for name in ("n_features_in_", "feature_names_in_"):
            if hasattr(attack, name):
                setattr(self, name, getattr(attack, name))
            else:
                vars(self).pop(name, None)
        return labels

    def __sklearn_tags__(self):
        known = super().__sklearn_tags__()
        known.target_tags.required = True
        known.input_tags = _InputTags(**_values(known.input_tags))
        return _Tags(**_values(known))


def _values(tags):
    return {f.name: getattr(tags, f.name) for f in fields(tags)}


def _has_sparse_columns(X):
    return any(hasattr(t, "fill_value") for t in np.atleast_1d(getattr(X, "dtypes", ())))


def _filled(X):
    """Return a DataFrame with sparse columns as one without, and anything else as it is."""
    return X.sparse.to_dense() if _has_sparse_columns(X) else X


def _one_label_each(y):
    """Return labels in one dimension, also where they come as a column or one-hot encoded."""
    if y is None:
        raise ValueError(
            "AdversarialAugmentation requires y to be passed, but the target y is None."
        )
    values = np.asarray(y)
    if values.ndim == 2 and values.shape[1] == 1:
        y = values.ravel()
    elif values.ndim == 2 and np.isin(values, (0, 1)).all() and (values.sum(axis=1) == 1).all():
        y = values.argmax(axis=1)
    check_classification_targets(check_labels(y))
    return y


def _twice(first, second):
    """Return two containers in one of the kind of the first."""
    both = stack(first, second)
    if isinstance(first, list):
        return both.tolist()
    return both.astype(first.dtypes) if _has_sparse_columns(first) else both
