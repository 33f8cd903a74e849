"""What the attacks have in common that estimate the gradient from scores."""

from __future__ import annotations

import math
import numbers
import warnings
from abc import abstractmethod

import numpy as np
import torch

from ..._validation import check_count, check_length
from ..queries import Queries
from ._search import MARGIN, Search, parts, rounding, with_best_categories
from .base import BaseBlackBoxAttack

BETA_1, BETA_2 = 0.9, 0.999
#: Share of the samples without a slope from which on the attack says that it does nothing.
_STUCK = 0.9


class BaseEstimatedGradientAttack(BaseBlackBoxAttack):
    """Base class of the attacks that ascend a gradient estimated from scores.

    Each round asks about pairs of points on both sides of the iterate and about
    the iterate after the step. All of them are projected onto the ball, so that
    any may turn out to be an adversarial example; the first one that does ends
    the search, and without one the best point is returned.

    Subclasses define `_directions` and `_step`. ``info["n_slopes"]`` is the number of rounds whose
    questions changed the score.
    """

    #: Parameter that says how far from the iterate questions are asked, in radii.
    _reach = "sigma"
    #: Length of a step in radii, where `step_size` is None.
    _default_step = 0.25
    #: Whether a direction moves all features or one.
    _dense = True

    def _resolve_objective(self, objective):
        return MARGIN

    def run(self, prepared, keep="worst"):
        """Attack validated arrays; see :meth:`BaseAttack.run`.

        Parameters
        ----------
        prepared, keep
            As there.
        """
        found, info = super().run(prepared, keep)
        if "n_slopes" in info:
            # the first question is about the sample itself
            asked = info["n_queries"] > 2
            stuck = asked & (info["n_slopes"] == 0)
            if stuck.sum() >= max(1, _STUCK * asked.sum()):
                warnings.warn(
                    f"{type(self).__name__} has found no slope for {stuck.sum()} of {asked.sum()} "
                    "samples: no question changed the score, as with the scores of trees, which "
                    "change in steps. Attacks that need no slope (SquareAttack, HopSkipJump) may "
                    f"find much more; so may a larger {self._reach}.",
                    UserWarning,
                    stacklevel=3,
                )
        return found, info

    def _attack_batch(self, batch):
        n_draws = check_count(self.n_draws, "n_draws")
        reach = getattr(self, self._reach)
        if not isinstance(reach, numbers.Real) or not np.isfinite(reach) or reach <= 0:
            raise ValueError(f"{self._reach} must be a share of eps above 0, got {reach!r}.")
        step_size = self._default_step * batch.ball.radius
        if self.step_size is not None:
            step_size = check_length(self.step_size, "step_size")
        queries = Queries(batch, self.max_queries)
        batch = with_best_categories(batch, queries)
        batch.info["n_slopes"] = torch.zeros_like(queries.count)
        result = torch.empty_like(batch.x)
        for rows in parts(batch.x, 2 * n_draws):
            search = Search(batch, queries, rows)
            self._climb(search, n_draws, reach, step_size, batch.info["n_slopes"])
            search.finish()
            result[rows] = search.found
        return result

    def _climb(self, search, n_draws, reach, step_size, n_slopes):
        search.ask(search.batch.x)
        search.drop()
        z, state, step = search.batch.x, [], 0
        movable = count_movable(search.batch.ball)
        if search.batch.ball.radius == 0 or movable == 0:
            return
        while len(search) and search.left >= 2:
            n = min(n_draws, search.left // 2)
            directions = self._directions(search.batch, step, n)
            n_moving = movable if self._dense else directions.shape[1]
            length = reach * entry_size(search.batch.ball, movable if self._dense else 1)
            gradient = estimate_gradient(search, z, directions, length)
            n_slopes[search.rows] += gradient.flatten(1).any(1)
            z, gradient, *state = search.drop(z, gradient, *state)
            if not len(search) or not search.left:
                break
            ball = search.batch.ball
            scale = step_size / ball.radius * entry_size(ball, n_moving)
            z, state = self._step(ball, z, gradient, state, step_size, scale)
            search.ask(z)
            z, *state = search.drop(z, *state)
            step += 1

    @abstractmethod
    def _directions(self, batch, step, n):
        """Return where to ask, in the units in which the ball is round.

        Returns
        -------
        torch.Tensor of shape (m, n, ...)
            Entries of a size of about 1.
        """

    @abstractmethod
    def _step(self, ball, z, gradient, state, size, scale):
        """Return the next iterate and the state.

        Parameters
        ----------
        ball : Ball
        z, gradient : torch.Tensor of shape (m, ...)
            The gradient in the units in which the ball is round.
        state : list of torch.Tensor of shape (m, ...)
            Empty at first.
        size : float
            Length of the step in the norm of the ball.
        scale : float
            Size of its entries, were they all equal.
        """


def count_movable(ball):
    """Return the number of features that are not frozen."""
    return math.prod(ball.x.shape[1:]) if ball.moves is None else int(ball.moves.sum())


def entry_size(ball, n_features):
    """Return the entries of a perturbation at the edge of the ball, if `n_features` share it."""
    return ball.radius / {np.inf: 1.0, 2.0: n_features**0.5, 1.0: n_features}[ball.norm]


def estimate_gradient(search, z, directions, length):
    """Estimate the gradient of the margin from pairs of points on both sides of `z`.

    Where the ball or the box cuts a step short, the pair counts by what is left
    of it.

    Parameters
    ----------
    search : Search
    z : torch.Tensor of shape (m, ...)
    directions : torch.Tensor of shape (m, n, ...)
    length : float
        Factor of the directions.

    Returns
    -------
    torch.Tensor of shape (m, ...)
        Mean of the slope along each direction times the direction, in the
        units in which the ball is round.
    """
    ball, n = search.batch.ball, directions.shape[1]
    meant = [ball.to_data(length * directions[:, i]) for i in range(n)]
    steps = [ball.seen(step) for step in meant]
    pairs = [torch.stack([ball.project(z + s), ball.project(z - s)], 1) for s in steps]
    pairs = torch.stack(pairs, 1)
    value = search.ask(pairs.flatten(1, 2)).unflatten(1, (n, 2))
    slope = torch.nan_to_num(value[:, :, 0] - value[:, :, 1], nan=0.0, posinf=0.0, neginf=0.0)
    # Adam would make a full step of what is nothing but rounding
    slope = slope.masked_fill(slope.abs() <= rounding(value[:, :, 0]), 0.0)
    # the projection may move other features as well, which says nothing about them
    apart = (pairs[:, :, 0] - pairs[:, :, 1]).masked_fill(directions == 0, 0.0)
    if ball.is_table:
        # what has been moved further than was meant, to be seen at all, counts by its length
        share = torch.stack(meant, 1) / torch.stack(steps, 1)
        apart = apart * share.square().nan_to_num(nan=1.0)
    gradient = torch.einsum("mn,mn...->m...", slope, apart) / (n * (2 * length) ** 2)
    return ball.to_unit(gradient)


def adam(gradient, state, touched=None):
    """Return the direction of Adam and its new state.

    Parameters
    ----------
    gradient : torch.Tensor of shape (m, ...)
    state : list of torch.Tensor of shape (m, ...)
        Mean, mean of the squares and number of updates, or empty.
    touched : torch.Tensor of bool of shape (m, ...), optional
        Features that have been estimated; the others do not move. None means all.

    References
    ----------
    Kingma and Ba (2015), "Adam: a method for stochastic optimization",
    Algorithm 1.
    """
    if not state:
        state = [torch.zeros_like(gradient) for _ in range(3)]
    touched = torch.ones_like(gradient) if touched is None else touched.to(gradient)
    mean, square, count = state
    mean = mean + touched * (1 - BETA_1) * (gradient - mean)
    square = square + touched * (1 - BETA_2) * (gradient * gradient - square)
    count = count + touched
    steps = count.clamp_min(1)
    size = (square / (1 - BETA_2**steps)).sqrt().clamp_min(torch.finfo(gradient.dtype).tiny)
    return touched * mean / (1 - BETA_1**steps) / size, [mean, square, count]
