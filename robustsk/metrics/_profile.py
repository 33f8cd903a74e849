"""How far an adversary really moves samples, and how much robustness is lost on new data."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.utils.validation import check_is_fitted

from .._containers import check_floats
from .._validation import encode_labels
from ..attacks import BaseAttack
from ..attacks.base import check_attack
from ..attacks.threat import check_eps, check_norm
from ..victims.resolve import as_victim
from ._craft import check_samples
from ._scores import adversarial_outcome


class PerturbationProfile(NamedTuple):
    """Sizes of perturbations, feature by feature.

    Attributes
    ----------
    mean_abs : float
        Mean of ``|delta|`` over features and samples.
    mean_max : float
        Mean over the samples of the largest ``|delta|`` of their features.
    within : dict of float to float
        For each share `s` of `eps`, the share of features with
        ``|delta| <= s * eps``.
    """

    mean_abs: float
    mean_max: float
    within: dict


def perturbation_profile(
    X: Any, X_adv: Any, eps: float, *, shares: tuple[float, ...] = (0.9, 1.0, 1.1)
) -> PerturbationProfile:
    """Say how much of a radius perturbations use, and whether they leave it.

    Parameters
    ----------
    X, X_adv : array-like of shape (n_samples, ...)
        Clean and perturbed samples.
    eps : float
        Radius, in the units of the data.
    shares : tuple of float, default=(0.9, 1.0, 1.1)
        Multiples of the radius below which features are counted.

    Returns
    -------
    PerturbationProfile

    See Also
    --------
    adversary_profile : Of the adversary of a training.
    perturbation_norm : The size of each perturbation in a norm.

    References
    ----------
    Bui, Le, Tran, Zhao and Phung (2022), "A unified Wasserstein distributional
    robustness framework for adversarial training", Table 5.

    Examples
    --------
    >>> from robustsk.metrics import perturbation_profile
    >>> perturbation_profile([[0.0, 0.0]], [[0.1, -0.05]], eps=0.1).within
    {0.9: 0.5, 1.0: 1.0, 1.1: 1.0}
    """
    clean, attacked = check_floats(X), check_floats(X_adv)
    if clean.shape != attacked.shape:
        raise ValueError(
            f"X and X_adv must have the same shape, got {clean.shape} and {attacked.shape}."
        )
    eps = float(check_eps(eps, np.inf, clean.shape[1:]))
    size = np.abs(attacked.astype(np.float64) - clean).reshape(len(clean), -1)
    slack = 1e-6 * eps  # rounding of the samples is not a step out of the ball
    return PerturbationProfile(
        float(size.mean()),
        float(size.max(axis=1).mean()),
        {float(s): float((size <= s * eps + slack).mean()) for s in shares},
    )


def adversary_profile(
    estimator: Any,
    X: Any,
    y: ArrayLike | None = None,
    *,
    shares: tuple[float, ...] = (0.9, 1.0, 1.1),
) -> PerturbationProfile:
    """Say how far the adversary that a defence was trained with moves samples.

    Unlike in an evaluation, what it finds is not brought back into the ball: an
    adversary with a soft ball, such as :class:`robustsk.training.UDRAdversary`,
    trains with a larger budget than its `eps` says, and part of what it gains
    may be due to that.

    Parameters
    ----------
    estimator : fitted defence
    X : array-like of shape (n_samples, ...) or torch Dataset
    y : array-like of shape (n_samples,)
        True labels. May be None where `X` is a Dataset that yields them.
    shares : tuple of float, default=(0.9, 1.0, 1.1)
        As in :func:`perturbation_profile`.

    Returns
    -------
    PerturbationProfile
        Nothing is counted as within the radius where the adversary has another
        norm than the max-norm.

    Examples
    --------
    >>> from robustsk import PGDATClassifier
    >>> from robustsk.datasets import load_digits_images
    >>> from robustsk.metrics import adversary_profile
    >>> X, y = load_digits_images(return_X_y=True)
    >>> clf = PGDATClassifier(adversary__eps=0.1, max_epochs=2, random_state=0)
    >>> profile = adversary_profile(clf.fit(X[:500], y[:500]), X[:100], y[:100])
    >>> profile.within[1.0]
    1.0
    """
    check_is_fitted(estimator, "adversary_")
    values, y_true = check_samples(X, y)
    victim = as_victim(estimator)
    adversary = estimator.adversary_._resolved()
    norm = check_norm(adversary.norm, adversary.supported_norms)
    index = torch.from_numpy(encode_labels(y_true, victim.classes, "y")).to(victim.device)
    parts = []
    for start in range(0, len(values), 256):
        rows = slice(start, start + 256)
        x = torch.from_numpy(np.ascontiguousarray(values[rows])).to(victim.device, victim.dtype)
        objective = estimator.attack_objective()
        z = adversary.perturb(victim, x, index[rows], objective, bounds=victim.bounds, seed=start)
        parts.append(z.cpu().numpy())
    eps = adversary._effective_eps(norm, values.shape[1:])
    # in other norms the radius does not bound single features
    shares = shares if norm == np.inf else ()
    return perturbation_profile(values, np.concatenate(parts), float(np.max(eps)), shares=shares)


class GeneralizationGap(NamedTuple):
    """Accuracy lost on new data.

    Attributes
    ----------
    clean : float
        Accuracy on the training data minus that on test data.
    robust : float
        The same under attack: the robust gap.
    """

    clean: float
    robust: float


def generalization_gap(
    estimator: Any,
    X_train: Any,
    y_train: ArrayLike,
    X_test: Any,
    y_test: ArrayLike,
    attack: BaseAttack,
) -> GeneralizationGap:
    """Compare accuracies on training and test data, without and under attack.

    A robust gap that is much larger than the clean one is robust overfitting.

    Parameters
    ----------
    estimator : fitted estimator or torch.nn.Module
    X_train : array-like of shape (n_train, ...)
    y_train : array-like of shape (n_train,)
    X_test : array-like of shape (n_test, ...)
    y_test : array-like of shape (n_test,)
    attack : attack

    Returns
    -------
    GeneralizationGap

    See Also
    --------
    robustsk.training.RobustEarlyStopping : The cure.

    References
    ----------
    Rice, Wong and Kolter (2020), "Overfitting in adversarially robust deep
    learning".

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.linear_model import LogisticRegression
    >>> from robustsk import PGD
    >>> from robustsk.metrics import generalization_gap
    >>> X, y = load_digits(return_X_y=True)
    >>> X = X / 16
    >>> clf = LogisticRegression(max_iter=500).fit(X[:300], y[:300])
    >>> attack = PGD(eps=0.05, clip=(0, 1), random_state=0)
    >>> gap = generalization_gap(clf, X[:300], y[:300], X[300:600], y[300:600], attack)
    >>> bool(0 < gap.clean < gap.robust)
    True
    """
    check_attack(attack)
    train, test = (
        adversarial_outcome(estimator, X, y, attack)
        for X, y in ((X_train, y_train), (X_test, y_test))
    )
    return GeneralizationGap(
        float(train.correct.mean() - test.correct.mean()),
        float(train.robust.mean() - test.robust.mean()),
    )
