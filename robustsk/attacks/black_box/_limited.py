"""What the forms of NES have in common that start at a point of the class to be reached."""

from __future__ import annotations

import itertools
import numbers
from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..._tensors import column
from ..._validation import check_count, check_positive
from ..minimal._starts import approach, directions, ready, sample_length, shrink
from ..noise import Stream
from ._decision import BaseDecisionAttack
from ._estimation import count_movable

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._parameters import DecisionParameters

_ELEMENTS_AT_A_TIME = 2**23
#: Steps that are tried in a round, each half as long as the one before.
_TRIALS = 4
#: Share of itself by which the radius shrinks: at first, at most and at least; and what becomes of
#: it after a round that has come closer, and after one that has not.
_DECAY, _MOST_DECAY, _LEAST_DECAY = 0.1, 0.5, 1e-5
_MORE, _LESS = 1.5, 0.5
#: How far within the ball of the user to end, so that rounding leaves the point inside.
_MARGIN = 1e-4
_FINEST = 1e-5


class BaseLimitedNES(BaseDecisionAttack):
    """Base class of the forms of NES for models that tell little.

    From a point of the class to be reached each round estimates the gradient of a score, tries
    steps along it, and shrinks the radius within which the iterate has to lie, as long as that
    class stays among the `top_k` visible ones. Without a target any class but the true one is to
    be reached. Subclasses define `_score`.
    """

    supported_norms = (np.inf, 2.0)

    _shared_parameters_doc = """
    n_draws : int, default=10
        Directions per round, each of which costs two values of the score. They
        are fewer where a round would cost more than a tenth of `max_queries`.
    sigma : float, default=0.3
        How far from the iterate to ask, as a share of its distance from the
        sample: about the length of ``sigma * u`` in the norm of the ball.
    step_share : float, default=0.25
        Length of the longest step that is tried, as a share of that distance.
    momentum : float, default=0.5
        Share of the former estimates in the running mean that is followed; 0
        means the last estimate alone.
""" + BaseDecisionAttack._shared_parameters_doc.lstrip("\n")

    def __init__(
        self,
        estimator: Any = None,
        *,
        n_draws: int = 10,
        sigma: float = 0.3,
        step_share: float = 0.25,
        momentum: float = 0.5,
        max_queries: int = 10_000,
        **common: Unpack[DecisionParameters],
    ):
        super().__init__(estimator, max_queries=max_queries, **common)
        self.n_draws = n_draws
        self.sigma = sigma
        self.step_share = step_share
        self.momentum = momentum

    @abstractmethod
    def _score(self, logits, is_goal, top):
        """Return how much of the classes to be reached shows, shape (n,).

        Parameters
        ----------
        logits : torch.Tensor of shape (n, n_classes)
        is_goal : torch.Tensor of bool of shape (n, top_k)
            Which of the visible classes are to be reached, the most likely one first.
        top : torch.Tensor of int64 of shape (n, top_k)
            The visible classes.
        """

    def _points(self, pairs, ball, entry, noise, number):
        """Return where to ask for the scores of points, shape (n_answers, 2, n_draws, n, ...).

        Parameters
        ----------
        pairs : torch.Tensor of shape (2, n_draws, n, ...)
            The points.
        ball : Ball
        entry : torch.Tensor of shape (n, 1, ...)
            Entries of a point as far from the sample as the iterate, were they all equal; in the
            units in which the ball is round.
        noise : SampleNoise
        number : int
            Of the round.
        """
        return pairs[None]

    def _n_answers(self):
        """Return how many questions a value of the score costs."""
        return 1

    def _come_closer(self, closest, queries):
        n_draws = check_count(self.n_draws, "n_draws")
        check_positive(self.sigma, "sigma")
        check_positive(self.step_share, "step_share")
        if not isinstance(self.momentum, numbers.Real) or not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be at least 0 and below 1, got {self.momentum!r}.")
        price = 2 * self._n_answers()
        n_draws = min(n_draws, max(1, self.max_queries // (10 * price)))
        size = max(1, _ELEMENTS_AT_A_TIME // (n_draws * price * closest.z[0].numel()))
        z, radius = closest.z.clone(), closest.distance.clone()
        decay, velocity = torch.full_like(radius, _DECAY), torch.zeros_like(z)
        for number in itertools.count():
            rows = ready(closest, queries, n_draws * price + _TRIALS)
            if len(rows) == 0:
                break
            for some in rows.split(size):
                gradient = self._estimate(queries, some, z[some], radius[some], number, n_draws)
                velocity[some] = self.momentum * velocity[some] + (1 - self.momentum) * gradient
            # into the ball of the user, and from there on closer than what is known
            limit = (1 - _MARGIN) * closest.batch.ball.radius
            level = torch.where(
                closest.solved,
                (1 - decay) * closest.distance,
                ((1 - decay) * radius).clamp_min(limit),
            )[rows]
            before, solved = closest.distance[rows], closest.solved[rows]
            z[rows], done = self._step(closest, queries, rows, z[rows], velocity[rows], level)
            radius[rows] = torch.where(done, level, radius[rows])
            # with several visible classes, one may be in sight and yet not reached
            good = torch.where(solved, closest.distance[rows] < before, done)
            decay[rows] *= torch.where(good, _MORE, _LESS)
            decay = decay.clamp(_LEAST_DECAY, _MOST_DECAY)
        # what is left would not pay for another round
        approach(closest, queries, ready(closest, queries), _FINEST)

    def _estimate(self, queries, rows, z, radius, number, n_draws):
        """Return the estimated gradient of the score, in the units in which the ball is round."""
        ball, noise = queries.batch.ball.select(rows), queries.batch.noise.select(rows)
        drawn = directions(noise, Stream.START + 2 * number, n_draws)
        if ball.weight is not None:
            drawn = torch.where(ball.weight > 0, drawn, 0.0)
        entry = column(radius, z)
        if ball.norm == 2:
            entry = entry / max(1, count_movable(ball)) ** 0.5
        step = ball.to_data(self.sigma * entry * drawn)
        pairs = torch.stack([ball.clamp(z + step), ball.clamp(z - step)])
        points = self._points(pairs, ball, entry, noise, number)
        which = rows.expand(points.shape[:4])
        value = self._value(queries, points.flatten(0, 3), which.flatten())[0]
        value = value.to(z).reshape(which.shape).mean(0)
        slope = torch.nan_to_num(value[0] - value[1], nan=0.0, posinf=0.0, neginf=0.0)
        # where the box has cut a step short, the pair counts by what is left of it
        apart = ball.to_unit(pairs[0] - pairs[1]) / (2 * self.sigma * entry)
        slope = slope.reshape(*slope.shape, *([1] * (z.ndim - 1)))
        return torch.nan_to_num((slope * apart).mean(0), nan=0.0, posinf=0.0, neginf=0.0)

    def _value(self, queries, points, rows):
        """Ask about points; return their scores, and where a class to be reached is visible."""
        batch = queries.batch
        logits = queries(points, rows)
        logits = logits.masked_fill(logits.isnan(), -torch.inf)
        top = logits.topk(min(check_count(self.top_k, "top_k"), logits.shape[1])).indices
        y = batch.y[rows]
        is_goal = top != y[:, None] if batch.target is None else top == batch.target[rows][:, None]
        return self._score(logits, is_goal, top), is_goal.any(1), logits

    def _step(self, closest, queries, rows, z, velocity, level):
        """Try steps within the radii `level`, the longest first.

        Returns
        -------
        z : torch.Tensor of shape (m, ...)
            After the first step that leaves a class to be reached visible; as given without one.
        done : torch.Tensor of bool of shape (m,)
            Where there is one.
        """
        batch = closest.batch
        if batch.ball.norm == np.inf:
            direction = velocity.sign()
        else:
            direction = velocity / sample_length(velocity, z.ndim)
        size = self.step_share * level
        moved, done = z.clone(), torch.zeros(len(rows), dtype=torch.bool, device=z.device)
        for _ in range(_TRIALS):
            todo = (~done).nonzero()[:, 0]
            if len(todo) == 0:
                break
            ball = batch.ball.select(rows[todo])
            trial = z[todo] + ball.to_data(column(size[todo], z) * direction[todo])
            trial = shrink(ball, ball.clamp(trial), level[todo])
            _, visible, logits = self._value(queries, trial, rows[todo])
            fooled = batch.select(rows[todo]).fooled(logits)
            closest.update(trial, fooled, rows[todo])
            moved[todo] = torch.where(column(visible | fooled, z), trial, moved[todo])
            done[todo] = visible | fooled
            size = size / 2
        return moved, done
