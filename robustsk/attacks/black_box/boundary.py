"""The boundary attack."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import torch

from ..._tensors import column
from ..._validation import check_count
from ..minimal._starts import approach, ask, ask_draws, directions, ready, sample_length
from ..noise import Stream
from ._decision import BaseDecisionAttack

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._parameters import DecisionParametersButNorm

#: Every so many rounds the steps around the sample are judged by themselves.
_SPHERE_EVERY = 5
_RATE = 0.3
#: Steps around that are shorter never leave a piece of a forest's decision.
_SHORTEST_AROUND = 0.05
_CONVERGED = 1e-5


class BoundaryAttack(BaseDecisionAttack):
    """Boundary attack: a random walk along the border that comes closer and closer.

    From an adversarial point, each round draws random steps on the sphere
    around the sample, follows each by a step towards the sample, and goes to
    the closest point that is still adversarial. Both lengths adapt, for every
    sample on its own: that of the step around so that half of these steps stay
    adversarial, that of the step towards the sample so that a quarter of the
    whole moves do. The walk ends where the steps towards the sample have
    shrunk to nothing. By default `max_queries` is 3000.

    Parameters
    ----------
    %(first_parameter)s
    n_draws : int, default=5
        Steps that are tried at a time, the shortest around the sample a
        sixteenth as long as the longest. With 1, as in the paper, a question
        can build on the answer to the one before; more make fewer and larger
        batches of questions, which most models answer faster.
    norm : {2, "l2"}, default=2
        Norm in which the perturbation is measured.
    %(shared_parameters)s

    %(shared_attributes)s

    See Also
    --------
    HopSkipJump : Estimates a gradient from labels; mostly closer for as many questions.
    BrendelBethge : Walk along the border with gradients.

    References
    ----------
    Brendel, Rauber and Bethge (2018), "Decision-based adversarial attacks:
    reliable attacks against black-box machine learning models", Algorithm 1
    and Section 2.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.ensemble import RandomForestClassifier
    >>> from robustsk.attacks import BoundaryAttack
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = RandomForestClassifier(10, random_state=0).fit(X, y)
    >>> attack = BoundaryAttack(clf, eps=1.5, max_queries=200, random_state=0).fit(X)
    >>> X_adv, info = attack.generate(X[::5], y[::5], return_info=True)
    >>> bool(clf.score(X_adv, y[::5]) < clf.score(X[::5], y[::5]))
    True
    >>> int(info["n_queries"].max())
    200
    """

    supported_norms = (2.0,)

    def __init__(
        self,
        estimator: Any = None,
        *,
        n_draws: int = 5,
        norm: float | str = 2,
        max_queries: int = 3000,
        **common: Unpack[DecisionParametersButNorm],
    ):
        super().__init__(estimator, norm=norm, max_queries=max_queries, **common)
        self.n_draws = n_draws

    def _come_closer(self, closest, queries):
        n_draws = check_count(self.n_draws, "n_draws")
        batch = closest.batch
        around = torch.full_like(closest.distance, 0.1)
        towards = torch.full_like(closest.distance, 0.1)
        for number in itertools.count():
            rows = ready(closest, queries)
            rows = rows[towards[rows] > _CONVERGED]
            if len(rows) == 0:
                break
            ball = batch.ball.select(rows)
            unit = ball.to_unit(closest.z[rows] - ball.x)
            drawn = directions(batch.noise.select(rows), Stream.START + number, n_draws)
            if ball.weight is not None:
                drawn = torch.where(ball.weight > 0, drawn, 0.0)
            moved = _walk_around(unit, drawn, around[rows])
            judged_alone = number % _SPHERE_EVERY == 0
            if not judged_alone:
                moved = moved * column(1 - towards[rows], unit)
            points = ball.clamp(ball.x + ball.to_data(moved))
            # the last round may be a smaller one
            allowed = torch.arange(n_draws, device=rows.device)[:, None] < queries.left[rows]
            if judged_alone:
                rate = ask(queries, rows, points, allowed).sum(0) / allowed.sum(0)
                grown = around[rows] * torch.exp(_SPHERE_EVERY * _RATE * (rate - 0.5))
                around[rows] = grown.clamp(_SHORTEST_AROUND, 1.0)
            else:
                fooled = ask_draws(closest, queries, rows, points, allowed)
                rate = fooled.sum(0) / allowed.sum(0)
                grown = towards[rows] * torch.exp(_RATE * (rate - 0.25))
                towards[rows] = grown.clamp_max(0.5)
        approach(closest, queries, ready(closest, queries), _CONVERGED)


def _walk_around(unit, drawn, size):
    """Move on the sphere around the origin.

    Parameters
    ----------
    unit : torch.Tensor of shape (n, ...)
        Points on the sphere.
    drawn : torch.Tensor of shape (n_draws, n, ...)
        Random directions.
    size : torch.Tensor of shape (n,)
        Length of the steps as a share of the radius; those of the draws are
        from a quarter of it to four times as long.
    """
    n_axes = unit.ndim - 1
    distance = sample_length(unit, unit.ndim)
    axis = unit / distance
    drawn = drawn - axis * (drawn * axis).sum(tuple(range(-n_axes, 0)), keepdim=True)
    steps = torch.logspace(-2, 2, len(drawn), base=2, dtype=unit.dtype, device=unit.device)
    if len(drawn) == 1:
        steps = torch.ones_like(steps)
    steps = steps.reshape(-1, *([1] * unit.ndim)) * column(size, unit) * distance
    moved = unit + steps * drawn / sample_length(drawn, unit.ndim)
    return moved * distance / sample_length(moved, unit.ndim)
