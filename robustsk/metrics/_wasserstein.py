"""Distances between distributions, and the worst loss within such a distance."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict, overload

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.exceptions import ConvergenceWarning

from .._containers import check_floats
from .._validation import encode_labels
from ..attacks.gradient.wrm import WRMAdversary
from ..attacks.objectives import resolve_objective
from ..losses.wasserstein import transport_plan
from ..victims.resolve import as_victim
from ._craft import check_samples

if TYPE_CHECKING:
    from typing_extensions import Required, Unpack


class WassersteinDual(NamedTuple):
    """Worst mean value within a budget of transport.

    Attributes
    ----------
    value : float
        The worst mean.
    lam : float
        The price at the margin: by how much the worst mean rises for more budget.
    """

    value: float
    lam: float


def wasserstein_dual(values: ArrayLike, costs: ArrayLike, budget: float) -> WassersteinDual:
    """Return the worst mean loss if samples may be moved at a limited mean cost.

    Each of `n` samples may be spread over `m` candidates. It is the value of both the linear
    program ``max_w sum_ij w_ij * values_ij / n`` over ``w_ij >= 0`` with ``sum_j w_ij = 1`` and
    ``sum_ij w_ij * costs_ij / n <= budget``, and of its dual::

        min_{lam >= 0}  lam * budget + mean_i max_j (values_ij - lam * costs_ij)

    The budget goes where it is worth most, sample by sample; `lam` is what it is worth in the end.

    Parameters
    ----------
    values : array-like of shape (n_samples, n_candidates)
        Loss of each sample at each of its candidates.
    costs : array-like of shape (n_samples, n_candidates)
        What it costs to move there, at least 0; inf where a sample cannot go. Usually one candidate
        is the sample itself, at cost 0.
    budget : float
        Largest mean cost.

    Returns
    -------
    WassersteinDual

    Raises
    ------
    ValueError
        If the budget does not suffice for the cheapest candidates.

    References
    ----------
    Blanchet and Murthy (2019), "Quantifying distributional model risk via optimal transport",
    Theorem 1; Bui, Le, Tran, Zhao and Phung (2022), "A unified Wasserstein distributional
    robustness framework for adversarial training", Eqs. 1 and 3.

    Examples
    --------
    Two samples whose losses rise with slopes 1 and 3 up to a distance of 1: half of the budget that
    would be needed to move both is spent on the second one.

    >>> from robustsk.metrics import wasserstein_dual
    >>> wasserstein_dual([[0, 1], [0, 3]], [[0, 1], [0, 1]], budget=0.25)
    WassersteinDual(value=0.75, lam=3.0)
    """
    values, costs = np.asarray(values, dtype=float), np.asarray(costs, dtype=float)
    if values.ndim != 2 or values.shape != costs.shape or not values.size:
        raise ValueError(
            "values and costs must have the same shape (n_samples, n_candidates), got "
            f"{values.shape} and {costs.shape}."
        )
    if not np.isfinite(values).all() or np.isnan(costs).any() or (costs < 0).any():
        raise ValueError("values must be finite, and costs at least 0.")
    if not budget >= 0:
        raise ValueError(f"budget must be at least 0, got {budget!r}.")
    total, left, pieces = 0.0, len(values) * float(budget), []
    for value, cost in zip(values, costs, strict=True):
        best, spent, rises = _envelope(value[np.isfinite(cost)], cost[np.isfinite(cost)])
        total, left = total + best, left - spent
        pieces += rises
    if left < -1e-12 * max(1.0, len(values) * budget):
        raise ValueError(
            f"budget={budget!r} does not suffice: the cheapest candidates cost "
            f"{budget - left / len(values):.6g} on average. Let samples stay where they are, at "
            "cost 0, or give more."
        )
    lam = 0.0
    for slope, width in sorted(pieces, reverse=True):
        if width > left:
            total, lam = total + slope * max(left, 0.0), slope
            break
        total, left = total + slope * width, left - width
    return WassersteinDual(float(total / len(values)), float(lam))


def _envelope(value, cost):
    """Return value and cost at the cheapest point, and slopes and widths of what rises from it."""
    if not len(cost):
        raise ValueError("Each sample needs a candidate with finite cost.")
    order = np.lexsort((-value, cost))
    hull = []
    for c, v in zip(cost[order], value[order], strict=True):
        if hull and v <= hull[-1][1]:
            continue
        # least concave majorant: slopes fall
        while len(hull) > 1 and _slope(hull[-2], (c, v)) >= _slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append((c, v))
    rises = [(_slope(a, b), b[0] - a[0]) for a, b in itertools.pairwise(hull)]
    return hull[0][1], hull[0][0], rises


def _slope(a, b):
    return (b[1] - a[1]) / (b[0] - a[0])


def sinkhorn_distance(
    X: ArrayLike,
    Y: ArrayLike,
    *,
    p: float = 1,
    reg: float = 0.01,
    max_iter: int = 1000,
    tol: float = 1e-6,
) -> float:
    """Return the Wasserstein distance between two samples, regularised by entropy.

    It is ``(sum_ij T_ij * ||x_i - y_j||_2 ** p) ** (1 / p)`` for the plan `T` of least cost and
    most entropy. The plan is not the cheapest one, so that the distance is a little larger than
    that of Wasserstein and tends to it as `reg` goes to 0; of a sample to itself it is not quite 0.

    Parameters
    ----------
    X : array-like of shape (n_samples_X, ...)
    Y : array-like of shape (n_samples_Y, ...)
        Samples of the same shape; all of a set weigh the same.
    p : float, default=1
        Order of the distance, at least 1.
    reg : float, default=0.01
        Weight of the entropy, as a share of the largest cost. The smaller, the more iterations.
    max_iter : int, default=1000
        Largest number of Sinkhorn's iterations.
    tol : float, default=1e-6
        They end when the potentials change by less on average, as a share of the largest cost.

    Returns
    -------
    float

    References
    ----------
    Cuturi (2013), "Sinkhorn distances: lightspeed computation of optimal transport".

    Examples
    --------
    >>> from robustsk.metrics import sinkhorn_distance
    >>> round(sinkhorn_distance([[0.0], [1.0]], [[3.0], [4.0]]), 3)
    3.0
    """
    first, second = (check_floats(Z).astype(np.float64) for Z in (X, Y))
    if first.shape[1:] != second.shape[1:]:
        raise ValueError(
            f"The samples have different shapes, {first.shape[1:]} and {second.shape[1:]}."
        )
    for name, value, least in (("p", p, 1), ("reg", reg, 0)):
        if not value >= least or (name == "reg" and value == 0):
            what = "at least 1" if name == "p" else "greater than 0"
            raise ValueError(f"{name} must be {what}, got {value!r}.")
    first, second = (torch.from_numpy(Z.reshape(len(Z), -1)) for Z in (first, second))
    cost = torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist") ** p
    scale = float(cost.max())
    if scale == 0:
        return 0.0
    rows, columns = (torch.full((n,), 1 / n, dtype=cost.dtype) for n in cost.shape)
    plan = transport_plan(cost / scale, reg, max_iter, tol, rows, columns)
    missing = float((plan.sum(1) - rows).abs().sum())
    if missing > 0.01:
        warnings.warn(
            f"{max_iter} iterations did not suffice: {missing:.1%} of the mass is misplaced. Use "
            "a larger reg or max_iter.",
            ConvergenceWarning,
            stacklevel=2,
        )
    return float((plan * cost).sum()) ** (1 / p)


class _Options(TypedDict, total=False):
    """What :func:`wrm_certificate` takes, for its overloads."""

    gamma: Required[float]
    n_steps: int
    objective: Any
    clip: Any


@overload
def wrm_certificate(
    estimator: Any, X: Any, y: ArrayLike | None = None, *, rho: float, **options: Unpack[_Options]
) -> float: ...


@overload
def wrm_certificate(
    estimator: Any,
    X: Any,
    y: ArrayLike | None = None,
    *,
    rho: Sequence[Any] | np.ndarray,
    **options: Unpack[_Options],
) -> np.ndarray: ...


def wrm_certificate(
    estimator: Any,
    X: Any,
    y: ArrayLike | None = None,
    *,
    rho: float | ArrayLike,
    gamma: float,
    n_steps: int = 15,
    objective: Any = "ce",
    clip: Any = "auto",
) -> float | np.ndarray:
    """Bound the worst mean loss over the distributions near that of the data.

    It is ``gamma * rho + mean max_{x'} (loss(x') - gamma * ||x' - x||_2 ** 2)``, which no
    distribution exceeds whose squared 2-Wasserstein distance from the samples is at most `rho`
    (with `clip`, of those in the valid range).

    Parameters
    ----------
    estimator : fitted estimator or torch.nn.Module
    X : array-like of shape (n_samples, ...) or torch Dataset
    y : array-like of shape (n_samples,)
        True labels. May be None where `X` is a Dataset that yields them.
    rho : float or array-like
        Mean squared distance by which samples may be moved.
    gamma : float
        Price of moving. Any value gives a bound, and which is the lowest depends on `rho`; that of
        a :class:`robustsk.defenses.WRMClassifier` is a good one to begin with.
    n_steps : int, default=15
        Steps of :class:`robustsk.training.WRMAdversary`, which looks for the maximum.
    objective : str or callable, default="ce"
        The loss, as in an attack.
    clip : "auto", None or (low, high), default="auto"
        Valid range, as in an attack.

    Returns
    -------
    float or ndarray of the shape of `rho`

    Notes
    -----
    It is a certificate where the maximum is found for certain: for a loss that is smooth with a
    second derivative below ``2 * gamma``. Otherwise it is an estimate from below.

    References
    ----------
    Sinha, Namkoong and Duchi (2018), "Certifying some distributional robustness with principled
    adversarial training", Eq. 12.

    Examples
    --------
    >>> from robustsk import WRMClassifier
    >>> from robustsk.datasets import load_digits_images
    >>> from robustsk.metrics import wrm_certificate
    >>> X, y = load_digits_images(return_X_y=True)
    >>> clf = WRMClassifier(gamma=0.5, max_epochs=1, random_state=0).fit(X[:500], y[:500])
    >>> low, high = wrm_certificate(clf, X[:100], y[:100], rho=[0, 0.5], gamma=clf.gamma)
    >>> round(float(high - low), 3)  # gamma * rho
    0.25
    """
    values, y_true = check_samples(X, y)
    victim = as_victim(estimator)
    index = torch.from_numpy(encode_labels(y_true, victim.classes, "y")).to(victim.device)
    attack = WRMAdversary(gamma=gamma, n_steps=n_steps, objective=objective, clip=clip)
    loss = resolve_objective(objective)
    total = 0.0
    for start in range(0, len(values), 256):
        rows = slice(start, start + 256)
        x = torch.from_numpy(np.ascontiguousarray(values[rows])).to(victim.device, victim.dtype)
        z = attack.perturb(victim, x, index[rows], bounds=victim.bounds, seed=start)
        with victim.frozen() as seen, torch.no_grad():
            clean = seen(x)
            stay = loss(clean, index[rows], None, clean)
            move = loss(seen(z), index[rows], None, clean)
            move = move - gamma * (z - x).flatten(1).square().sum(1)
        total += float(torch.maximum(stay, move).double().sum())
    bound = gamma * np.asarray(rho, dtype=float) + total / len(values)
    return float(bound) if np.ndim(bound) == 0 else bound
