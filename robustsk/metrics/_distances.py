"""How far it is to the closest adversarial example."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial.distance import cdist
from sklearn.utils import check_array, gen_batches

from .. import attacks
from .._containers import to_array
from .._shared import public_classes
from ..attacks import BaseAttack
from ..attacks.base import check_attack
from ..attacks.threat import check_eps, check_norm
from ._craft import check_samples, prepared
from ._scores import predicted_index

_NORMS = (np.inf, 2.0, 1.0, 0.0)


def perturbation_norm(X_adv: Any, X: Any, norm: float | str = np.inf) -> np.ndarray:
    """Size of the perturbation of each sample.

    Parameters
    ----------
    X_adv, X : array-like of shape (n_samples, ...)
        Perturbed and clean samples.
    norm : {inf, 2, 1, 0, "linf", "l2", "l1", "l0"}, default=inf
        Largest change of a feature, Euclidean length, sum of the changes, or
        number of features that change.

    Returns
    -------
    ndarray of shape (n_samples,)
        In the units of the data, in float64.

    Raises
    ------
    ValueError
        If the shapes differ or `norm` is unknown.

    Examples
    --------
    >>> from robustsk.metrics import perturbation_norm
    >>> perturbation_norm([[3.0, 0.0, 4.0]], [[0.0, 0.0, 0.0]], norm=2)
    array([5.])
    """
    order = check_norm(norm, _NORMS)
    X_adv, X = (check_array(to_array(a), dtype=np.float64, allow_nd=True) for a in (X_adv, X))
    if X_adv.shape != X.shape:
        raise ValueError(f"X_adv has shape {X_adv.shape} and X has shape {X.shape}.")
    return np.linalg.norm((X_adv - X).reshape(len(X), -1), ord=order, axis=1)


@dataclass(frozen=True, eq=False)
class PerturbationSize:
    """How large the smallest perturbations are that an attack finds.

    Attributes
    ----------
    mean : float
        Mean over the samples on which the attack succeeds; NaN if it never
        does.
    median : float
        Median over all samples that count, a failure counting as infinite.
    success_rate : float
        Share of the samples that count on which the attack succeeds.
    distance : ndarray of shape (n_samples,)
        Of every sample: 0 for a clean error, infinite where the attack fails.
    n_samples : int
        Number of samples that count.
    """

    mean: float
    median: float
    success_rate: float
    distance: np.ndarray
    n_samples: int

    def __str__(self):
        return (
            f"mean {self.mean:.4g}, median {self.median:.4g} "
            f"({self.success_rate:.1%} of {self.n_samples} found)"
        )


def mean_perturbation(
    estimator: Any,
    X: Any,
    y: ArrayLike | None,
    attack: BaseAttack,
    *,
    over: str = "correct",
    relative: bool = False,
) -> PerturbationSize:
    """Mean and median size of the smallest perturbations that fool a model.

    Parameters
    ----------
    estimator : fitted estimator or torch.nn.Module
        What is attacked; see :func:`score_adversarial`.
    X : array-like of shape (n_samples, ...) or torch Dataset
    y : array-like of shape (n_samples,)
        True labels. May be None where `X` is a Dataset that yields them.
    attack : attack
        One that looks for the closest adversarial example (its `minimal` is
        true). Where its `eps` is finite, it fails beyond.
    over : {"correct", "all"}, default="correct"
        Whether clean errors are left out, or count as successes of size 0.
    relative : bool, default=False
        Whether to divide the size of each perturbation by that of the sample,
        in the same norm.

    Returns
    -------
    PerturbationSize

    Raises
    ------
    NoGradientError
        If the attack needs gradients and the estimator has none.
    ValueError
        If the attack does not look for the closest adversarial example, if
        `over` is unknown, or if `y` contains labels that the estimator has not
        been trained on.

    See Also
    --------
    half_accuracy_eps : Works with every attack.

    Notes
    -----
    The attack finds some adversarial example, not the closest one: all sizes
    are upper bounds. With a per-feature `eps` sizes are in units of the largest
    one.

    References
    ----------
    Moosavi-Dezfooli, Fawzi and Frossard (2016), "DeepFool: a simple and
    accurate method to fool deep neural networks", CVPR, Sec. 2: the mean of
    the relative sizes.

    Examples
    --------
    The distance to the border of a linear model is its margin divided by the
    length of its weights:

    >>> import numpy as np
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from robustsk.attacks import FAB
    >>> from robustsk.metrics import mean_perturbation
    >>> X, y = load_iris(return_X_y=True)
    >>> X, y = X[y > 0], y[y > 0]
    >>> clf = LogisticRegression().fit(X, y)
    >>> found = mean_perturbation(clf, X, y, FAB(norm=2, clip=None, random_state=0))
    >>> distance = np.abs(clf.decision_function(X)) / np.linalg.norm(clf.coef_)
    >>> exact = distance[clf.predict(X) == y].mean()
    >>> bool(exact <= found.mean <= 1.01 * exact)
    True
    """
    if over not in ("correct", "all"):
        raise ValueError(f"over must be 'correct' or 'all', got {over!r}.")
    check_attack(attack)
    values, y_true = check_samples(X, y)
    correct, distance = _closest(estimator, values, y_true, attack, X)
    if relative:
        size = perturbation_norm(values, np.zeros_like(values), attack._resolved().norm)
        # 0 / 0 is no perturbation at all
        ratio = distance / np.where(size > 0, size, 1.0)
        distance = np.where((size == 0) & (distance > 0), np.inf, ratio)
    counted = distance[correct] if over == "correct" else distance
    found = counted[np.isfinite(counted)]
    if len(counted) == 0:
        warnings.warn(
            "No sample is classified correctly without an attack: there is no perturbation to "
            "measure.",
            RuntimeWarning,
            stacklevel=2,
        )
    return PerturbationSize(
        mean=float(found.mean()) if len(found) else float("nan"),
        median=_median(counted),
        success_rate=len(found) / len(counted) if len(counted) else float("nan"),
        distance=distance,
        n_samples=len(counted),
    )


def _median(values):
    if len(values) == 0:
        return float("nan")
    # not numpy's, which makes NaN of two infinities
    low, high = np.sort(values)[[(len(values) - 1) // 2, len(values) // 2]]
    return float(low if low == high else (low + high) / 2)


def _closest(estimator, values, y_true, attack, X):
    """Return where the prediction is right, and the distance to the closest example found."""
    attack = attack._resolved()
    if not attack.minimal:
        raise ValueError(
            f"{type(attack).__name__} uses all of its eps: sizes of perturbations mean something "
            f"with an attack that looks for the closest example ({_minimal_attacks()}). To learn "
            "from this attack at which eps the accuracy is lost, use half_accuracy_eps."
        )
    run = prepared(attack, estimator, values, y_true, X)
    correct = predicted_index(estimator, run.victim, values, X) == y_true
    distance = np.zeros(len(values))
    if correct.any():
        X_adv, info = run.attack.run(run.take(correct))
        if "distance" in info:
            distance[correct] = info["distance"]
        else:
            found = predicted_index(estimator, run.victim, X_adv, X, attacked=True)
            fooled = found != y_true[correct]
            moved = perturbation_norm(X_adv, values[correct], attack.norm)
            distance[correct] = np.where(fooled, moved, np.inf)
        run.batches.warn()
    return correct, distance


def _minimal_attacks():
    found = public_classes(attacks, BaseAttack)
    return ", ".join(cls.__name__ for cls in found if cls.minimal is True)


def half_accuracy_eps(
    estimator: Any,
    X: Any,
    y: ArrayLike | None,
    attack: BaseAttack,
    *,
    share: float = 0.5,
    max_eps: float | None = None,
    rtol: float = 0.01,
) -> float:
    """Smallest perturbation size at which an attack halves the accuracy.

    Parameters
    ----------
    estimator : fitted estimator or torch.nn.Module
        What is attacked; see :func:`score_adversarial`.
    X : array-like of shape (n_samples, ...) or torch Dataset
    y : array-like of shape (n_samples,)
        True labels. May be None where `X` is a Dataset that yields them.
    attack : attack
        Its `eps` is where the search begins, and is replaced; where it is an
        array, the array is rescaled so that the value is its largest entry. A
        `step_size` that was given explicitly does **not** scale with `eps`, so
        better leave it at None. An attack that looks for the closest
        adversarial example runs once, up to its own `eps`, and the answer is
        an order statistic of the distances.
    share : float, default=0.5
        Share of the clean accuracy that may be left, in [0, 1).
    max_eps : float, default=None
        Where to give up. None means the size of the valid range: no
        perturbation is larger. Without a valid range, a million times the
        `eps` of the attack.
    rtol : float, default=0.01
        Relative precision. The result is never too small for the attack: at
        the size returned the accuracy is as low as it should be.

    Returns
    -------
    float
        Infinite if the accuracy is still higher at `max_eps`, a sign of an
        attack that does not work; NaN, with a warning, if no sample is
        classified correctly without an attack.

    Raises
    ------
    NoGradientError
        If the attack needs gradients and the estimator has none.
    ValueError
        If `share`, `max_eps` or `rtol` is out of range, or `y` contains labels
        that the estimator has not been trained on.

    See Also
    --------
    robustsk.inspection.RobustnessCurveDisplay : The whole curve.
    mean_perturbation : With attacks that look for the closest example.

    Notes
    -----
    Bisection. What fools the model within a small ball lies within all larger
    ones, so a sample that has been broken is not attacked at larger sizes
    again.

    Examples
    --------
    The margin of a linear model divided by the 1-norm of its weights is the
    size that breaks a sample:

    >>> import numpy as np
    >>> from sklearn.linear_model import LogisticRegression
    >>> from robustsk import BIM
    >>> from robustsk.metrics import half_accuracy_eps
    >>> X, y = np.array([[-3.0], [-1.0], [1.0], [3.0]]), [0, 0, 1, 1]
    >>> clf = LogisticRegression(C=1000).fit(X, y)
    >>> bool(1.0 <= half_accuracy_eps(clf, X, y, BIM(eps=0.1)) <= 1.02)
    True
    """
    if not 0 <= share < 1:
        raise ValueError(f"share must be at least 0 and less than 1, got {share!r}.")
    if not 0 < rtol < 1:
        raise ValueError(f"rtol must be between 0 and 1, got {rtol!r}.")
    if max_eps is not None and not max_eps > 0:
        raise ValueError(f"max_eps must be positive, got {max_eps!r}.")
    check_attack(attack)
    values, y_true = check_samples(X, y)
    minimal = attack._resolved().minimal
    if minimal:
        correct, distance = _closest(estimator, values, y_true, attack, X)
    else:
        run = prepared(attack, estimator, values, y_true, X, is_meant=False)
        correct = predicted_index(estimator, run.victim, values, X) == y_true
    if not correct.any():
        warnings.warn(
            "No sample is classified correctly without an attack: there is no accuracy to lose.",
            RuntimeWarning,
            stacklevel=2,
        )
        return float("nan")
    allowed = math.floor(share * correct.sum() + 1e-9)
    if minimal:
        found = np.sort(distance[correct])[correct.sum() - allowed - 1]
        return float("inf") if max_eps is not None and found > max_eps else float(found)
    return _bisect(estimator, run, y_true, X, correct, allowed, max_eps, rtol)


def _bisect(estimator, run, y_true, X, correct, allowed, max_eps, rtol):
    sample_shape = run.X.shape[1:]
    own = run.attack._stated_eps(run.norm, sample_shape)
    largest = float(np.max(own))
    if np.ndim(own) and largest == 0:
        raise ValueError("The eps of the attack is zero for all features: nothing to rescale.")
    shape = own / largest if np.ndim(own) else 1.0
    broken_at = np.where(correct, np.inf, 0.0)

    def n_robust(size):
        left = np.flatnonzero(broken_at > size)
        if len(left) > allowed:
            part = run.take(left).resized(size * shape)
            X_adv, _ = part.attack.run(part, keep="first")
            found = predicted_index(estimator, run.victim, X_adv, X, attacked=True)
            broken_at[left[found != y_true[left]]] = size
        return np.count_nonzero(broken_at > size)

    start = largest or check_eps(None, run.norm, sample_shape)
    if max_eps is None:
        max_eps = _widest(run, shape) or 1e6 * start
    low, high = 0.0, min(start, max_eps)
    while n_robust(high) > allowed:
        if high >= max_eps:
            return float("inf")
        low, high = high, min(2 * high, max_eps)
    # the floor ends the search where samples lie on the border
    while high - low > rtol * max(high, 1e-6 * start):
        middle = (low + high) / 2
        if n_robust(middle) > allowed:
            low = middle
        else:
            high = middle
    run.batches.warn()
    return float(high)


def _widest(run, shape):
    """Return the size of the ball that holds the whole valid range, or None without a range."""
    if run.lower is None:
        return None
    sample_shape = run.X.shape[1:]
    width = np.broadcast_to(run.upper - run.lower, sample_shape)
    free = np.broadcast_to(shape, sample_shape) > 0
    unit = (width / np.where(free, shape, 1.0))[free]
    return float(np.linalg.norm(unit, ord=run.norm)) or None


def r_separation(X: Any, y: ArrayLike, *, norm: float | str = np.inf) -> float:
    """Half the smallest distance between samples of different classes.

    Data that are separated by more than an adversary's `eps` admit a
    classifier that is both accurate and robust.

    Parameters
    ----------
    X : array-like of shape (n_samples, ...) or torch Dataset
    y : array-like of shape (n_samples,)
        Labels. May be None where `X` is a Dataset that yields them.
    norm : {inf, 2, 1, 0, "linf", "l2", "l1", "l0"}, default=inf

    Returns
    -------
    float
        The r for which the data are r-separated, in the units of the data.

    Raises
    ------
    ValueError
        If there is only one class.

    Notes
    -----
    All pairs are compared: the time grows with the square of the number of
    samples.

    References
    ----------
    Yang, Rashtchian, Zhang, Salakhutdinov and Chaudhuri (2020), "A closer look
    at accuracy vs. robustness", NeurIPS, Sec. 2 and 3.

    Examples
    --------
    >>> from robustsk.metrics import r_separation
    >>> r_separation([[0.0, 0.0], [0.5, 1.0], [9.0, 9.0]], [0, 1, 0])
    0.5
    """
    order = check_norm(norm, _NORMS)
    values, y = check_samples(X, y)
    flat = values.reshape(len(values), -1).astype(np.float64)
    labels = np.unique(y)
    if len(labels) < 2:
        raise ValueError(f"There is one class only, {labels[0]!r}: nothing to be separated.")
    metric = {np.inf: "chebyshev", 2.0: "euclidean", 1.0: "cityblock", 0.0: "hamming"}[order]
    scale = flat.shape[1] if order == 0 else 1.0
    closest = np.inf
    for label in labels[:-1]:
        here, rest = flat[y == label], flat[y > label]
        rows = max(1, 2**24 // len(rest))
        for part in gen_batches(len(here), rows):
            closest = min(closest, scale * cdist(here[part], rest, metric).min())
    return float(closest / 2)
