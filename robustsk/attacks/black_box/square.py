"""The Square attack."""

from __future__ import annotations

import functools
import math
import numbers
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..._validation import check_count
from ..noise import Stream
from ..queries import Queries
from ._search import MARGIN, Search, with_best_categories
from .base import BaseBlackBoxAttack

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._parameters import AttackParameters

#: The share of the pixels in a window halves after each of these steps.
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_SCHEDULE_LENGTH = 10_000
#: Questions from which on the schedule stays as it is published.
_AS_PUBLISHED = 5000
#: Times a perturbation is stretched to the radius and cut to the box.
N_STRETCHES = 2
TINY = 1e-30
#: Steps for which random numbers are drawn at a time.
_BLOCK = 64
#: Random numbers per step beside one per channel: two places and an orientation.
N_PLACED = 5


class SquareAttack(BaseBlackBoxAttack):
    """Square attack: random search with square windows at the edge of the ball.

    Starts from stripes (norm inf) or bumps (norm 2 and 1) that use up the whole
    radius. Each question is about a change in a random window, which shrinks as
    the attack goes on; the change is kept if the margin of the model does not
    fall. In the inf norm a window is set to one corner of the ball per channel;
    in the others, what is left of the radius and the mass of a second window
    (of tables in the 2-norm: a part of it) are moved into it.

    Images of shape (channels, height, width) are attacked by squares, tables
    by runs of neighbouring features. Frozen features take no place in a window.

    Parameters
    ----------
    %(first_parameter)s
    p_init : float, default=0.8
        Share of the pixels in the first windows. It is halved after 10, 50,
        200, 500, 1000, 2000, 4000, 6000 and 8000 steps.
    n_restarts : int, default=1
        Number of runs from other starts; they share `max_queries` (5000 by
        default) in equal parts.
    rescale_schedule : bool, default=None
        Whether the steps at which the windows shrink, made for 10,000
        questions, are rescaled to the questions of one run. None means in the
        inf norm, where these are fewer than 5000. The published attack never
        does, and finds less there with few questions; in the other norms it is
        rescaling that finds less.
    %(shared_parameters)s

    %(shared_attributes)s

    See Also
    --------
    NES : Estimates the gradient from scores.
    LocalSearch : Changes single features.

    Notes
    -----
    Every sample has windows of its own, so its result does not depend on the
    batch it is in. A window that would change nothing, as half of those of a
    single grey pixel, is turned to the other corner instead of being asked; and
    what the box cuts off a perturbation in the norms 2 and 1, as on a black
    background, is made up for by stretching the rest.

    References
    ----------
    Andriushchenko, Croce, Flammarion and Hein (2020), "Square attack: a
    query-efficient black-box adversarial attack via random search", Algorithms
    1 to 3. Norm 1: Croce and Hein (2021), "Mind the box: l1-APGD for sparse
    adversarial attacks on image classifiers".

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.ensemble import RandomForestClassifier
    >>> from robustsk.attacks import SquareAttack
    >>> X, y = load_iris(return_X_y=True)
    >>> forest = RandomForestClassifier(10, random_state=0).fit(X, y)
    >>> attack = SquareAttack(forest, eps=0.5, max_queries=100, random_state=0).fit(X)
    >>> X_adv, info = attack.generate(X, y, return_info=True)
    >>> bool(forest.score(X_adv, y) < forest.score(X, y) - 0.2)
    True
    >>> int(info["n_queries"].max())
    100
    """

    def __init__(
        self,
        estimator: Any = None,
        *,
        max_queries: int = 5000,
        p_init: float = 0.8,
        n_restarts: int = 1,
        rescale_schedule: bool | None = None,
        **common: Unpack[AttackParameters],
    ):
        super().__init__(estimator, max_queries=max_queries, **common)
        self.p_init = p_init
        self.n_restarts = n_restarts
        self.rescale_schedule = rescale_schedule

    def _resolve_objective(self, objective):
        return MARGIN

    def _attack_batch(self, batch):
        n_restarts = check_count(self.n_restarts, "n_restarts")
        if not isinstance(self.p_init, numbers.Real) or not 0 < self.p_init <= 1:
            raise ValueError(f"p_init must be a share between 0 and 1, got {self.p_init!r}.")
        queries = Queries(batch, self.max_queries)
        batch = with_best_categories(batch, queries)
        todo = torch.arange(len(batch.x), device=batch.x.device)
        search = Search(batch, queries, todo, limit=1)
        search.ask(batch.x)
        search.drop()
        search.finish()
        result, value = search.found, search.found_value
        if batch.ball.radius == 0:
            return result
        for restart in range(n_restarts):
            todo = (value != torch.inf).nonzero()[:, 0]
            if len(todo) == 0:
                break
            share = (queries.limit - 1) * (restart + 1) // n_restarts + 1
            share -= int(queries.count[todo[0]])
            search = Search(batch, queries, todo, share)
            self._run(search, Stream.RESTART * restart)
            better = search.found_value > value[todo]
            result[todo[better]] = search.found[better]
            value[todo[better]] = search.found_value[better]
        return result

    def _pace(self, n_steps, norm):
        """Return for how many steps of the schedule each of `n_steps` counts."""
        is_rescaled = self.rescale_schedule
        if is_rescaled is None:
            # the sample and the start are asked about as well
            is_rescaled = norm == np.inf and n_steps + 2 < _AS_PUBLISHED
        return _SCHEDULE_LENGTH / n_steps if is_rescaled and n_steps else 1

    def _run(self, search, stream):
        """Start anew, and go on until all are fooled or no questions are left."""
        ball = search.batch.ball
        windows = Windows(ball.x.shape[1:], ball.moves, ball.x.device)
        if windows.height == 0 or search.left < 1:
            return
        at_corners = ball.norm == np.inf
        start = corner_start if at_corners else mass_start
        n_steps = search.left - 1
        pace = self._pace(n_steps, ball.norm)
        search.ask(start(search.batch, windows, Stream.START + stream))
        search.drop()
        drawn = None
        for step in range(n_steps):
            if len(search) == 0:
                break
            if step % _BLOCK == 0:
                shape = (_BLOCK, N_PLACED + windows.shape[0])
                drawn = search.batch.noise.uniform(Stream.STEP + stream + step // _BLOCK, shape)
            when = (step + 1) * pace
            # Algorithm 1: the size of the window by schedule, a proposal, and a question
            share = self.p_init / 2 ** sum(when > halving for halving in HALVINGS)
            state = search.batch, windows, search.best, share, drawn[:, step % _BLOCK]
            if at_corners:
                search.ask_change(*corner_proposal(*state))
            else:
                search.ask(mass_proposal(*state))
            (drawn,) = search.drop(drawn)
        search.finish()


def image_shape(shape):
    """Return channels, height and width of samples seen as images; a table is one row."""
    return (shape[0] if len(shape) > 1 else 1, math.prod(shape[1:-1]), shape[-1])


class Windows:
    """Where windows may lie on samples of one shape.

    Parameters
    ----------
    shape : tuple of int
        Shape of one sample.
    moves : torch.Tensor of bool of shape `shape` or None
        Where features are not frozen.
    device : torch.device or None
        Where the images are.

    Attributes
    ----------
    shape : tuple of int
        Channels, height and width.
    rows, columns : torch.Tensor
        Those in which anything may change.
    height, width : int
        Number of `rows` and of `columns`.
    """

    def __init__(self, shape, moves=None, device=None):
        self.shape = image_shape(shape)
        if moves is None:
            moves = torch.ones(self.shape, dtype=torch.bool, device=device)
        moves = moves.reshape(self.shape).any(0)
        self.rows, self.columns = (moves.any(axis).nonzero()[:, 0] for axis in (1, 0))
        self.height, self.width = len(self.rows), len(self.columns)
        # places in a flattened sample
        self._line = self.rows * self.shape[2]
        self._channel = torch.arange(self.shape[0], device=device) * math.prod(self.shape[1:])

    def images(self, z):
        """Return `z` as images of shape (n, channels, height, width)."""
        return z.reshape(len(z), *self.shape)

    def sides(self, share, odd=False):
        """Return height and width of a window that holds `share` of the pixels.

        Parameters
        ----------
        share : float
        odd : bool, default=False
            Whether both must be odd and at least 3, where there is room.
        """
        area = share * self.height * self.width
        height = min(math.sqrt(area), self.height)
        width = min(area / height, self.width)
        height = min(area / width, self.height)
        return self._side(height, self.height, odd), self._side(width, self.width, odd)

    @staticmethod
    def _side(length, room, odd):
        length = max(1, round(length))
        if odd:
            length = max(3, length + 1 - length % 2)
        return min(length, room - (odd and room % 2 == 0 and room > 1))

    def index(self, where, sides):
        """Return where one window in each image lies.

        Parameters
        ----------
        where : torch.Tensor of shape (n, 2)
            Uniform random numbers that place it.
        sides : tuple of int
            Height and width.

        Returns
        -------
        torch.Tensor of int64 of shape (n, channels * height * width)
            Places in the flattened samples, for `torch.gather` and its kin: on
            the CPU they take a fraction of the time of indexing by several
            tensors or by a mask.
        """
        line, column = (
            lines[self._first(where, sides, axis) + torch.arange(sides[axis], device=where.device)]
            for axis, lines in enumerate((self._line, self.columns))
        )
        pixel = (line[:, :, None] + column[:, None, :]).flatten(1)
        return (pixel[:, None, :] + self._channel[:, None]).flatten(1)

    def _first(self, where, sides, axis):
        n_free = (self.height, self.width)[axis] - sides[axis] + 1
        return (where[:, axis] * n_free).long().clamp_max(n_free - 1)[:, None]


def _signs(uniform):
    return torch.where(uniform < 0.5, -1.0, 1.0).to(uniform.dtype)


# --- norm inf: windows at a corner of the ball ---------------------------------------


def corner_start(batch, windows, stream):
    """Return vertical stripes, one pixel wide, of one sign per channel."""
    channels, _, width = windows.shape
    up = batch.noise.uniform(stream, (channels, 1, width)) < 0.5
    lower, upper = (windows.images(edge) for edge in (batch.ball.lower, batch.ball.upper))
    return torch.where(up, upper, lower).reshape(batch.x.shape)


def corner_proposal(batch, windows, z, share, drawn):
    """Set a square to one corner of the ball per channel; return where, and to what."""
    index = windows.index(drawn[:, :2], windows.sides(share))
    # Algorithm 2
    up = (drawn[:, N_PLACED:] < 0.5)[:, :, None]
    old, low, high = (
        v.flatten(1).gather(1, index).view(len(v), windows.shape[0], -1)
        for v in (z, batch.ball.lower, batch.ball.upper)
    )
    same = (torch.where(up, high, low) == old).flatten(1).all(1)[:, None, None]
    return index, torch.where(up != same, high, low).flatten(1)


# --- norms 2 and 1: mass that moves between windows ----------------------------------


def bump(height, width, norm):
    """Return a hill of concentric squares about the middle, steeper in the 1-norm."""
    power = 2 if norm == 2 else 4
    away = [(torch.arange(side) - side // 2).abs() for side in (height, width)]
    ring = torch.maximum(away[0][:, None], away[1])
    steps = 1.0 / torch.arange(1, max(height, width) // 2 + 2, dtype=torch.float64) ** power
    return steps.flip(0).cumsum(0).flip(0)[ring]


@functools.lru_cache(maxsize=64)
def hills(height, width, norm):
    """Return two opposite bumps, side by side and above each other, (2, height, width)."""
    if height * width == 1:
        return torch.ones(2, 1, 1, dtype=torch.float64)
    half = width // 2
    beside = torch.cat([bump(height, half, norm), -bump(height, width - half, norm)], 1)
    half = height // 2
    above = torch.cat([bump(half, width, norm), -bump(height - half, width, norm)], 0)
    return torch.stack([beside if width > 1 else above, above if height > 1 else beside])


def _mass(values, norm):
    """Return the sum of the powers over height and width; all masses add up to radius ** norm."""
    return (values.abs() if norm == 1 else values * values).sum((-2, -1))


def _radius(ball):
    # a little less than all, so that rounding does not lead out of the ball
    return ball.radius * (1 - 1e-6)


def _to_points(batch, unit):
    """Return the points with perturbations `unit` stretched to the radius, in the box."""
    ball = batch.ball
    # the box may cut off much of a perturbation, e.g. on a black background: stretch what is left
    for to_come in reversed(range(1 if ball.low is None else N_STRETCHES)):
        size = _mass(unit, ball.norm).sum(1).pow(1 / ball.norm)
        unit = unit * (_radius(ball) / size.clamp_min(TINY))[:, None, None, None]
        z = ball.clamp(ball.x + ball.to_data(unit.reshape(ball.x.shape)))
        if to_come:
            unit = ball.to_unit(z - ball.x).reshape(unit.shape)
    return z


def mass_start(batch, windows, stream):
    """Return five by five bumps of random signs."""
    ball, noise = batch.ball, batch.noise
    n_tiles = [min(5, windows.height), min(5, windows.width)]
    edges = [
        [round(i * room / n) for i in range(n + 1)]
        for room, n in zip((windows.height, windows.width), n_tiles, strict=True)
    ]
    pattern = torch.cat(
        [
            torch.cat(
                [
                    hills(bottom - top, right - left, ball.norm)[0]
                    for left, right in zip(edges[1], edges[1][1:], strict=False)
                ],
                1,
            )
            for top, bottom in zip(edges[0], edges[0][1:], strict=False)
        ],
        0,
    )
    tile = [
        torch.tensor([sum(line >= edge for edge in edges[axis][1:]) for line in range(room)])
        for axis, room in enumerate((windows.height, windows.width))
    ]
    signs = _signs(noise.uniform(stream, (windows.shape[0], *n_tiles)))
    signs = signs[:, :, tile[0]][..., tile[1]]
    unit = torch.zeros(len(batch.x), *windows.shape).to(batch.x)
    whole = windows.index(signs.new_zeros(len(signs), 2), pattern.shape)
    unit.view(len(unit), -1).scatter_(1, whole, (signs * pattern.to(unit)).flatten(1))
    return _to_points(batch, unit)


def mass_proposal(batch, windows, z, share, drawn):
    """Move the mass of two windows, and what is left of the radius, into a bump in the first."""
    ball, channels = batch.ball, windows.shape[0]
    norm = ball.norm
    on_image = windows.shape[1] > 1
    # on a table a window of one feature is of use, on an image three pixels are the least
    sides = windows.sides(share, odd=on_image)
    both = windows.index(drawn[:, :4].reshape(-1, 2), sides)
    index, other = both.view(len(z), 2, -1).unbind(1)
    flat = ball.to_unit(z - ball.x).flatten(1).contiguous()
    unit = windows.images(flat)
    before = _mass(unit, norm)
    taken = flat.gather(1, index).view(-1, channels, *sides)
    hill = hills(*sides, norm).to(unit)[(drawn[:, 4] < 0.5).long()][:, None]
    hill = _normalised(hill * _signs(drawn[:, N_PLACED:])[:, :, None, None], norm)
    # Algorithm 3: a new hill upon what is in the window, scaled to all the mass there is
    shape = hill + _normalised(taken, norm)
    if on_image or norm == 1:
        flat.scatter_(1, other, 0.0)
    else:
        # all or nothing would be too coarse for the few features of a table
        flat.scatter_(1, other, flat.gather(1, other) * drawn[:, 4, None])
    flat.scatter_(1, index, 0.0)
    after = _mass(unit, norm)
    # what cancels out but for rounding, e.g. in a window of one feature, leaves its mass to others
    cancelled = (_mass(shape, norm) <= 1e-6)[..., None, None]
    alone = (after.sum(1) == 0)[:, None, None, None]
    shape = torch.where(cancelled, hill * alone, shape)
    unused = (_radius(ball) ** norm - before.sum(1, keepdim=True)).clamp_min(0) / channels
    available = ((before - after).clamp_min(0) + unused).pow(1 / norm)
    flat.scatter_(1, index, (_normalised(shape, norm) * available[:, :, None, None]).flatten(1))
    return _to_points(batch, unit)


def _normalised(values, norm):
    size = _mass(values, norm).pow(1 / norm).clamp_min(TINY)
    return values / size[:, :, None, None]
