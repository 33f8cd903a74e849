"""Greedy local search."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional as F

from ..._validation import check_count
from ..noise import Stream
from ..queries import Queries
from ._search import MARGIN, Search, parts, rounding, with_best_categories
from .base import BaseBlackBoxAttack
from .square import image_shape

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._parameters import AttackParameters

#: Jumps in the norms 2 and 1, in radii: the first, and the one after which to start over.
LONGEST, SHORTEST = 0.5, 0.05


class LocalSearch(BaseBlackBoxAttack):
    """Greedy local search over single features or pixels, without gradients.

    Each round tries jumps of random features, one at a time; ranks them by how
    much each raises the margin of the model; asks about the best ones together;
    and keeps what is better. On images the next round looks around the pixels
    that have been kept, on tables among all features.

    In the inf norm a feature jumps to the edge of the ball. In the norms 2 and
    1 it jumps by half a radius, the others giving way where the ball ends; the
    jumps of a sample are halved after a round without success, and start over
    when they are very short.

    Parameters
    ----------
    %(first_parameter)s
    n_steps : int, default=150
        Largest number of rounds.
    n_candidates : int, default=32
        Features (of images: pixels, with all their channels) tried per round.
        Each costs a question, and trying the best together one more;
        `max_queries` is 5000 by default.
    n_kept : int, default=5
        Largest number of features that change per round.
    reach : int, default=5
        How many pixels a neighbour may be away, by row and by column. Without
        effect on tables.
    %(shared_parameters)s

    %(shared_attributes)s

    See Also
    --------
    SquareAttack : Random windows instead of single features.
    ZOO : Derivatives by single features.

    Notes
    -----
    The papers rank by the probability of the true class; the margin ranks like
    it, does not saturate, and serves targeted attacks as well. A jump that the
    ball or the box undoes is turned round instead of being asked.

    References
    ----------
    Narodytska and Kasiviswanathan (2017), "Simple black-box adversarial attacks
    on deep neural networks", Algorithm LocSearchAdv.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.ensemble import RandomForestClassifier
    >>> from robustsk.attacks import LocalSearch
    >>> X, y = load_iris(return_X_y=True)
    >>> forest = RandomForestClassifier(10, random_state=0).fit(X, y)
    >>> attack = LocalSearch(forest, eps=0.5, max_queries=100, random_state=0).fit(X)
    >>> bool(forest.score(attack.generate(X, y), y) < forest.score(X, y) - 0.2)
    True
    """

    def __init__(
        self,
        estimator: Any = None,
        *,
        max_queries: int = 5000,
        n_steps: int = 150,
        n_candidates: int = 32,
        n_kept: int = 5,
        reach: int = 5,
        **common: Unpack[AttackParameters],
    ):
        super().__init__(estimator, max_queries=max_queries, **common)
        self.n_steps = n_steps
        self.n_candidates = n_candidates
        self.n_kept = n_kept
        self.reach = reach

    def _resolve_objective(self, objective):
        return MARGIN

    def _attack_batch(self, batch):
        for name in ("n_steps", "n_candidates", "n_kept", "reach"):
            check_count(getattr(self, name), name)
        queries = Queries(batch, self.max_queries)
        batch = with_best_categories(batch, queries)
        result = torch.empty_like(batch.x)
        for rows in parts(batch.x, self.n_candidates):
            search = Search(batch, queries, rows)
            search.ask(search.batch.x)
            search.drop()
            self._rounds(search)
            search.finish()
            result[rows] = search.found
        return result

    def _rounds(self, search):
        ball, shape = search.batch.ball, image_shape(search.batch.x.shape[1:])
        movable = torch.ones(shape).to(ball.x)
        if ball.weight is not None:
            movable = ball.moves.reshape(shape).to(ball.x)
        movable = movable.amax(0).flatten()
        n_candidates = min(self.n_candidates, int(movable.sum())) if ball.radius else 0
        # from anywhere in the ball, two radii lead to its edge
        length = torch.full_like(search.value, 2.0 if ball.norm == np.inf else LONGEST)
        near = torch.zeros(len(search), *shape[1:]).to(ball.x)
        for step in range(self.n_steps):
            n = min(n_candidates, search.left - 1)
            if n < 1 or len(search) == 0:
                break
            noise, z, before = search.batch.noise, search.best.clone(), search.value
            # features near those kept come first, frozen ones last
            order = (noise.uniform(Stream.START + 2 * step, shape[1:]) + near).flatten(1) * movable
            tried = order.topk(n, dim=1).indices
            signs = noise.uniform(Stream.START + 2 * step + 1, (shape[0], n))
            lengths = torch.where(signs < 0.5, -length[:, None, None], length[:, None, None])
            points = []
            for i in range(n):
                one = slice(i, i + 1)
                point = jump(search.batch.ball, z, tried[:, one], lengths[:, :, one], shape)
                stays = (point == z).flatten(1).all(1)
                if stays.any():
                    lengths[stays, :, one] *= -1
                    point = jump(search.batch.ball, z, tried[:, one], lengths[:, :, one], shape)
                points.append(point)
            value = search.ask(torch.stack(points, 1))
            state = search.drop(z, before, value, tried, lengths, length, near)
            z, before, value, tried, lengths, length, near = state
            if len(search) == 0:
                break
            value, best = value.topk(min(self.n_kept, n), dim=1)
            kept = (value > (before + rounding(before))[:, None]).to(z)
            tried = tried.gather(1, best)
            lengths = lengths.gather(2, best[:, None].expand(-1, shape[0], -1)) * kept[:, None]
            search.ask(jump(search.batch.ball, z, tried, lengths, shape))
            near = torch.zeros_like(near).flatten(1).scatter(1, tried, kept).reshape(near.shape)
            if z.ndim > 2:
                near = F.max_pool2d(near[:, None], 2 * self.reach + 1, 1, self.reach)[:, 0]
            if ball.norm != np.inf:
                shorter = torch.where(length > SHORTEST, length / 2, LONGEST)
                length = torch.where(kept.any(1), length, shorter)
            length, near = search.drop(length, near)


def jump(ball, z, pixels, lengths, shape):
    """Move some pixels and project.

    Parameters
    ----------
    ball : Ball
    z : torch.Tensor of shape (m, ...)
    pixels : torch.Tensor of int64 of shape (m, t)
        Distinct within a sample.
    lengths : torch.Tensor of shape (m, channels, t)
        In radii.
    shape : tuple of int
        Channels, height and width.
    """
    moved = torch.zeros(len(z), shape[0], shape[1] * shape[2]).to(z)
    moved.scatter_(2, pixels[:, None].expand(-1, shape[0], -1), lengths * ball.radius)
    return ball.project(z + ball.to_data(moved.reshape(z.shape)))
