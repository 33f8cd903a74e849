"""Adversarial examples as training data, for any classifier."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, clone

from ..base import BaseAttack
from ..gradient.pgd import PGD

if TYPE_CHECKING:
    from typing_extensions import Self


class AdversarialAugmentation(BaseEstimator):
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

    def __init__(self, attack: BaseAttack | None = None, labels: str = "predicted"):
        self.attack = attack
        self.labels = labels

    def fit(self, X: Any, y: ArrayLike) -> Self:
        """Do nothing but check that the attack can be fitted.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
        y : array-like of shape (n_samples,)

        Returns
        -------
        self
        """
        self.fit_resample(X, y)
        return self

    def fit_resample(self, X: Any, y: ArrayLike) -> tuple[Any, Any]:
        """Return the data followed by one adversarial copy of every row.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
        y : array-like of shape (n_samples,)

        Returns
        -------
        X_resampled : ndarray or DataFrame of shape (2 * n_samples, ...)
        y_resampled : ndarray or Series of shape (2 * n_samples,)
        """
        self.attack_ = PGD() if self.attack is None else clone(self.attack)
        return self.attack_.fit_resample(X, y, labels=self.labels)
