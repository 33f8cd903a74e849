"""The attack of Brendel and Bethge."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from ..._validation import check_count
from ..base import BaseAttack
from ..queries import Queries
from ._linear_boundary import dual_norm, from_unit, step_to_plane, unit_box
from ._starts import ON_BOUNDED_RAY, STARTS_DOC, approach, ask_on_ray, find_starts, ready
from .base import BaseMinimalAttack, Closest

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._parameters import AttackParameters

_QUERIES_OF_START = 400
_TOLERANCE = 1e-4
#: How far beyond the border a step aims, as a share of the distance.
_OVERSHOOT = 1e-3
_BISECTIONS = 12
_NEWTON_STEPS = 40
#: Steps without a gain after which a sample is done.
_PATIENCE = 15


class BrendelBethge(BaseMinimalAttack):
    r"""Attack of Brendel and Bethge: along the border, by its gradient, to the closest point.

    The gradient-based variant of :class:`BoundaryAttack`: it starts from an
    adversarial point that is found with labels only, but follows the border
    with the gradient of the margin of the logits, which it needs. From the
    iterate :math:`\tilde x` each step solves

    .. math::
        \min_\delta \|\tilde x + \delta - x\|_p \quad \text{s.t.} \quad
        \text{low} \le \tilde x + \delta \le \text{high}, \quad
        b^\top \delta = c, \quad \|\delta\|_2 \le r,

    with `b` the gradient of the margin and `c` what is missing to a point just
    beyond the border. For given multipliers every feature has a closed form:
    a shift along `b`, shrunk towards the sample, cut at the box. The one of the
    plane is found by Newton's method, the one of the trust region by
    bisection. The radius `r` adapts, for every sample on its own: it grows
    where the margin is what the plane predicts and shrinks where it is not.

    Parameters
    ----------
    %(first_parameter)s
    n_steps : int, default=100
        Largest number of steps; a sample that gains no more is done earlier.
    n_restarts : int, default=1
        Number of runs, each from another random start; the closest result
        counts.
    trust_radius : float, default=0.5
        First `r`, as a share of the euclidean distance from the sample.
    %(shared_parameters)s

    %(shared_attributes)s

    See Also
    --------
    FAB : Starts at the sample and steps to and fro over the border.
    BoundaryAttack : The variant that needs labels only.

    References
    ----------
    Brendel, Rauber, Kümmerer, Ustyuzhaninov and Bethge (2019), "Accurate,
    reliable and fast robustness evaluation", equation 2 and Section 3. There
    `r` follows a schedule; here it adapts. The ray from the sample along the
    gradient, on which a start is looked for besides random ones, is not in the
    paper either: the walk ends at a local minimum, and starts that are close
    end at better ones.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from robustsk.attacks import BrendelBethge
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = LogisticRegression(max_iter=1000).fit(X, y)
    >>> attack = BrendelBethge(clf, norm=2, random_state=0).fit(X)
    >>> X_adv, info = attack.generate(X, y, return_info=True)
    >>> clf.score(X_adv, y)
    0.0
    """

    supported_norms = (np.inf, 2.0, 1.0)
    _shared_parameters_doc = STARTS_DOC.lstrip("\n") + BaseAttack._shared_parameters_doc.lstrip(
        "\n"
    )

    def __init__(
        self,
        estimator: Any = None,
        *,
        n_steps: int = 100,
        n_restarts: int = 1,
        trust_radius: float = 0.5,
        starts: ArrayLike | None = None,
        **common: Unpack[AttackParameters],
    ):
        super().__init__(estimator, **common)
        self.n_steps = n_steps
        self.n_restarts = n_restarts
        self.trust_radius = trust_radius
        self.starts = starts

    def _search(self, batch, closest):
        n_steps = check_count(self.n_steps, "n_steps")
        radius = self.trust_radius
        if not isinstance(radius, (int, float, np.number)) or not 0 < radius < np.inf:
            raise ValueError(f"trust_radius must be a positive number, got {radius!r}.")
        for restart in range(check_count(self.n_restarts, "n_restarts")):
            rows = closest.open
            if len(rows) == 0:
                break
            part = batch.select(rows)
            found = Closest(part)
            queries = Queries(part, _QUERIES_OF_START)
            if restart == 0:
                _start_uphill(found, queries)
            find_starts(found, queries, None if restart else self.starts, restart)
            if len(ready(found, queries)):
                approach(found, queries, ready(found, queries), _TOLERANCE)
                _follow_border(found, n_steps, float(radius))
                approach(found, queries, ready(found, queries), _TOLERANCE)
            closest.update(found.z, found.distance < torch.inf, rows)


def _start_uphill(closest, queries):
    """Look for a start along the gradient of the margin at the samples."""
    batch, rows = closest.batch, closest.open
    _, margin, gradient = batch.value_and_gradient(batch.x)
    slope = batch.ball.to_data(gradient).flatten(1)
    square = (slope**2).sum(1)
    # an eighth of it would lead just beyond the border if the model were linear
    reach = torch.where(square > 0, 8 * (1 + _OVERSHOOT) * -margin / square, 0.0)
    end = from_unit(batch.ball, reach[:, None] * slope)
    ask_on_ray(closest, queries, rows, end, ON_BOUNDED_RAY)


def _follow_border(closest, n_steps, share):
    """Walk from ``closest.z`` along the border and tell `closest` about every point on it.

    Parameters
    ----------
    closest : Closest
    n_steps : int
    share : float
        First trust radius, as a share of the distance.
    """
    rows = closest.open
    rows = rows[closest.distance[rows] < torch.inf]
    batch = closest.batch.select(rows)
    ball = batch.ball
    low, high = unit_box(ball)
    trial = ball.to_unit(closest.z[rows] - ball.x).flatten(1)
    # what is known at the iterate: position, margin and its gradient
    iterate, margin, normal = trial, None, None
    radius = share * torch.linalg.vector_norm(trial, dim=1)
    aim = torch.zeros_like(radius)
    waiting = torch.zeros_like(rows)
    for step in range(n_steps):
        if len(rows) == 0:
            break
        z = from_unit(ball, trial)
        logits, value, gradient = batch.value_and_gradient(z)
        slope = ball.to_data(gradient).flatten(1)
        before = closest.distance[rows]
        better = closest.update(z, batch.fooled(logits), rows)
        gained = better & (closest.distance[rows] < (1 - _TOLERANCE) * before)
        if step == 0:
            iterate, margin, normal = trial, value, slope
        else:
            length = torch.linalg.vector_norm(trial - iterate, dim=1)
            range_ = torch.linalg.vector_norm(normal, dim=1) * length
            error = (value - aim).abs() / range_.clamp_min(torch.finfo(value.dtype).tiny)
            error = torch.where(range_ > 0, error, torch.inf)
            # bounded by what the step itself was: a short step says nothing of a long one
            radius = torch.where(error < 0.1, torch.maximum(radius, 2 * length), radius)
            radius = torch.where(error > 0.3, length / 2, radius)
            accepted = (error <= 0.7) | better
            iterate = torch.where(accepted[:, None], trial, iterate)
            margin = torch.where(accepted, value, margin)
            normal = torch.where(accepted[:, None], slope, normal)
        waiting = torch.where(gained, 0, waiting + 1)
        going = (waiting < _PATIENCE) & (radius > 1e-6 * closest.distance[rows])
        if batch.keep == "first":
            going &= ~closest.solved[rows]
        if not going.all():
            batch, ball, rows, waiting = (
                batch.select(going), ball.select(going), rows[going], waiting[going],
            )  # fmt: skip
            low, high, radius = low[going], high[going], radius[going]
            iterate, margin, normal = iterate[going], margin[going], normal[going]
        size = torch.linalg.vector_norm(iterate, ord=ball.norm, dim=1)
        aim = _OVERSHOOT * size * dual_norm(normal, ball.norm)
        trial = closer_on_plane(iterate, normal, aim - margin, radius, low, high, ball.norm)


def closer_on_plane(v, b, c, radius, low, high, norm):
    """Return points on planes that are close to the origin, and not far from where they start.

    Solves ``min ||w||`` subject to ``b @ (w - v) = c``, to the box and to
    ``||w - v||_2 <= radius``, for each row. Where that cannot be met, the step
    to the plane is cut at the radius.

    Parameters
    ----------
    v, b : torch.Tensor of shape (n, d)
        Points in the box, and normal vectors.
    c, radius : torch.Tensor of shape (n,)
    low, high : torch.Tensor of shape (n, d)
        Box around the origin, may be infinite.
    norm : {inf, 2.0, 1.0}

    Returns
    -------
    torch.Tensor of shape (n, d)
    """
    goal = (b * v).sum(1) + c
    tiny = torch.finfo(v.dtype).tiny
    reach = v.abs().amax(1) + 2 * c.abs() / b.abs().sum(1).clamp_min(tiny)
    scale = torch.linalg.vector_norm(b, dim=1) * torch.linalg.vector_norm(v, dim=1) + c.abs()
    slack = 1e-9 if v.dtype == torch.float64 else 1e-5

    def feasible(w, missing):
        length = torch.linalg.vector_norm(w - v, dim=1)
        met = (missing.abs() <= slack * scale) & (length <= radius * (1 + 1e-6))
        # the radius is a guess, nothing is gained by spending it to the last bit
        return met, met & (length >= 0.9 * radius)

    def solve(pull, shift):
        """Return the point for a pull towards the origin between 0 and 1."""
        pull = pull[:, None]
        if norm == 2:
            parts = (1 - pull) * v, None, low, high
        elif norm == np.inf:
            edge = (1 - pull) * reach[:, None]
            parts = v, None, torch.maximum(low, -edge), torch.minimum(high, edge)
        else:
            parts = v, reach[:, None] * pull / (1 - pull), low, high
        return _shift_to_plane(*parts, b, goal, shift)

    least, most = torch.zeros_like(c), torch.ones_like(c)
    best, start, _ = solve(least, torch.zeros_like(c))
    # without the radius: from the sample itself to the plane
    w = step_to_plane(torch.zeros_like(v)[None], b, -goal[None], low, high, norm)[0]
    met, _ = feasible(w, goal - (b * w).sum(1))
    best = torch.where(met[:, None], w, best)
    done = met
    shift = start
    for _ in range(_BISECTIONS):
        if done.all():
            break
        middle = (least + most) / 2
        w, shift, missing = solve(middle, shift)
        met, enough = feasible(w, missing)
        best = torch.where((met & ~done)[:, None], w, best)
        least = torch.where(met, middle, least)
        most = torch.where(met, most, middle)
        done = done | enough
    step = best - v
    length = torch.linalg.vector_norm(step, dim=1).clamp_min(tiny)
    return torch.clamp(v + step * (radius / length).clamp_max(1.0)[:, None], low, high)


def _shift_to_plane(v, threshold, low, high, b, goal, shift):
    """Shift points along `b`, shrink and cut them, so that they come to lie on a plane.

    Finds the number `shift` for which ``b @ w = goal`` with
    ``w = clip(soft(v + shift * b, threshold), low, high)``. The left side is
    monotone and piecewise linear in `shift`; Newton's method ends at the
    solution, with bisection or doubling where it leads out of the bracket.

    Returns
    -------
    w : torch.Tensor of shape (n, d)
    shift, missing : torch.Tensor of shape (n,)
        `missing` is not zero where the plane is out of reach.
    """
    square, tiny = b**2, torch.finfo(b.dtype).tiny
    unit = (goal.abs() / square.sum(1).clamp_min(tiny)).clamp_min(tiny)
    below, above = torch.full_like(goal, -torch.inf), torch.full_like(goal, torch.inf)
    exact = 64 * torch.finfo(b.dtype).eps
    most = torch.where(b > 0, b * high, torch.where(b < 0, b * low, 0.0)).sum(1)
    least = torch.where(b > 0, b * low, torch.where(b < 0, b * high, 0.0)).sum(1)
    out_of_reach = (goal > most) | (goal < least)
    for _ in range(_NEWTON_STEPS):
        moved = v + shift[:, None] * b
        free = torch.ones_like(moved, dtype=torch.bool)
        if threshold is not None:
            free = moved.abs() > threshold
            moved = moved.sign() * (moved.abs() - threshold).clamp_min(0)
        w = torch.clamp(moved, low, high)
        free = free & (w == moved)
        terms = b * w
        missing = goal - terms.sum(1)
        done = missing.abs() <= exact * (terms.abs().sum(1) + goal.abs())
        if (done | out_of_reach).all():
            break
        below = torch.where(missing > 0, torch.maximum(below, shift), below)
        above = torch.where(missing < 0, torch.minimum(above, shift), above)
        rate = (square * free).sum(1)
        ahead = torch.where(rate > 0, shift + missing / rate.clamp_min(tiny), torch.nan)
        further = shift + missing.sign() * torch.maximum(unit, shift.abs())
        bracketed = torch.isfinite(below) & torch.isfinite(above)
        otherwise = torch.where(bracketed, (below + above) / 2, further)
        inside = (ahead > below) & (ahead < above)
        shift = torch.where(done, shift, torch.where(inside, ahead, otherwise))
    return w, shift, missing
