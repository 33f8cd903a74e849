"""Adversarial points to start from, and the way from them to the border."""

from __future__ import annotations

import math

import numpy as np
import torch

from ..._tensors import column
from ..noise import Stream

#: Points asked about on each ray that leaves a sample, at these shares of its length.
ON_BOUNDED_RAY = tuple(k / 8 for k in range(1, 9))
#: Where there is no box, a ray ends at 256 times the size of the sample.
_ON_OPEN_RAY = tuple(4.0**k for k in range(-7, 1))
_OPEN_RAY = 256.0
#: Rays that are tried for every sample, questions permitting; the nearest hit wins.
_FIRST_RAYS = 4
#: Share of the questions that the search for a starting point may use, and that may go into
#: finding a nearer one.
_SHARE_OF_START, _SHARE_OF_FIRST = 0.25, 0.1
#: Rays to try before giving up, even if that takes all questions.
_FEWEST_RAYS = 6
#: Nearest of the starting points of the user that are tried.
_NEAREST = 5

STARTS_DOC = """
    starts : array-like of shape (n_starts, ...), default=None
        Samples to start from, such as the training data, in the units of `X`.
        For each sample the nearest ones that the model classifies as is wanted
        are tried. Where there are none, or with None, the attack looks for a
        start in random noise of growing strength; many a model, and forests
        above all, gives one class to all noise. The labels of `starts` are
        asked for once per batch, which `n_queries` does not count.
"""


def ready(closest, queries, needed=1):
    """Return the samples with a starting point that may and should ask on."""
    rows = closest.open
    return rows[(closest.distance[rows] < torch.inf) & (queries.left[rows] >= needed)]


def directions(noise, stream, n_draws):
    """Return normal numbers, shape (n_draws, n, ...).

    Both halves of each Box-Muller pair are used: drawing the directions is a
    good part of the cost of an attack on a fast model.
    """
    shape = (-(-n_draws // 2), *noise.shape[1:])
    radius = torch.sqrt(-2.0 * torch.log(noise.uniform(2 * stream, shape)))
    angle = 2.0 * math.pi * noise.uniform(2 * stream + 1, shape)
    drawn = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)
    return drawn[:, :n_draws].movedim(1, 0)


def sample_length(draws, ndim):
    """Return the euclidean length of samples, in the shape that divides them."""
    axes = tuple(range(draws.ndim - ndim + 1, draws.ndim))
    return torch.linalg.vector_norm(draws, dim=axes, keepdim=True).clamp_min(
        torch.finfo(draws.dtype).tiny
    )


def shrink(ball, z, level):
    """Move points towards the samples until they are at a distance of `level`.

    Along the straight line, or in the inf norm by projection onto the cube.

    Parameters
    ----------
    ball : Ball
    z : torch.Tensor of shape (n, ...)
    level : torch.Tensor of shape (n,)
    """
    unit = ball.to_unit(z - ball.x)
    if ball.norm == np.inf:
        limit = column(level, unit)
        unit = torch.maximum(torch.minimum(unit, limit), -limit)
    else:
        distance = ball.distance(z).clamp_min(torch.finfo(z.dtype).tiny)
        unit = unit * column((level / distance).clamp_max(1.0), unit)
    return ball.clamp(ball.x + ball.to_data(unit))


def approach(closest, queries, rows, tolerance):
    """Bisect for the border between each sample and its closest adversarial example.

    Parameters
    ----------
    closest : Closest
    queries : Queries
    rows : torch.Tensor of shape (m,)
        Samples with an adversarial example.
    tolerance : float
        The border is found up to this share of the distance.
    """
    far = closest.z[rows]
    high = closest.distance[rows]
    low = torch.zeros_like(high)
    todo = torch.arange(len(rows), device=rows.device)
    while True:
        wanted = (high - low)[todo] > tolerance * high[todo]
        wanted &= queries.left[rows[todo]] > 0
        if closest.batch.keep == "first":
            wanted &= ~closest.solved[rows[todo]]
        todo = todo[wanted]
        if len(todo) == 0:
            return
        middle = (low[todo] + high[todo]) / 2
        # in floating point there may be nothing between the two
        trial = shrink(closest.batch.ball.select(rows[todo]), far[todo], middle)
        fooled = queries.fooled(trial, rows[todo])
        closest.update(trial, fooled, rows[todo])
        high[todo] = torch.where(fooled, middle, high[todo])
        low[todo] = torch.where(fooled, low[todo], middle)


def find_starts(closest, queries, starts=None, restart=0):
    """Tell `closest` about an adversarial point for every sample that has one to be found.

    Parameters
    ----------
    closest : Closest
    queries : Queries
    starts : array-like of shape (n_starts, ...), optional
    restart : int, default=0
        Another number, other noise.
    """
    if starts is not None:
        _from_samples(closest, queries, starts)
    on_ray = len(ON_BOUNDED_RAY)
    n_first = min(_FIRST_RAYS, int(_SHARE_OF_FIRST * queries.limit / on_ray))
    tried = closest.distance < torch.inf if starts is not None else torch.zeros_like(closest.solved)
    for number in range(max(_FEWEST_RAYS, int(_SHARE_OF_START * queries.limit / on_ray))):
        rows = closest.open
        wanted = ~tried[rows] if number < n_first else closest.distance[rows] == torch.inf
        rows = rows[wanted & (queries.left[rows] > 0)]
        if len(rows) == 0:
            return
        part = closest.batch.select(rows)
        end, bounded = _end_of_ray(part, number, restart)
        ask_on_ray(closest, queries, rows, end, ON_BOUNDED_RAY if bounded else _ON_OPEN_RAY)


def _end_of_ray(batch, number, restart):
    """Return where a random ray ends, and whether there is a box; every second one is mirrored."""
    ball, stream, mirrored = batch.ball, Stream.RAY * (1 + restart) + number // 2, number % 2
    low, high = ball.low, ball.high
    if low is not None and bool(torch.isfinite(high - low).all()):
        drawn = batch.noise.uniform(stream)
        kind = number // 2 % 3
        if kind == 1:  # a random corner
            drawn = (drawn > 0.5).to(drawn)
        elif kind == 2:  # all at one end of their range
            drawn = torch.zeros_like(drawn)
        return low + (1 - drawn if mirrored else drawn) * (high - low), True
    unit = ball.to_unit(ball.x).flatten(1)
    size = torch.sqrt((unit**2).mean(1))
    size = torch.where(size > 0, size, torch.ones_like(size))
    drawn = batch.noise.normal(stream) * (-1 if mirrored else 1)
    return ball.x + ball.to_data(_OPEN_RAY * column(size, drawn) * drawn), False


def ask_on_ray(closest, queries, rows, end, shares):
    """Ask about points between samples and the ends of rays, the nearest hit counts."""
    ball = closest.batch.ball.select(rows)
    shares = torch.tensor(shares, dtype=end.dtype, device=end.device)
    points = ball.x + shares.reshape(-1, *([1] * end.ndim)) * (end - ball.x)
    points = ball.clamp(points)
    # where few questions are left, the strongest noise is the most likely to be adversarial
    rank = torch.arange(len(shares), 0, -1, device=rows.device)
    allowed = rank[:, None] <= queries.left[rows]
    ask_draws(closest, queries, rows, points, allowed)


def ask_draws(closest, queries, rows, points, allowed=None):
    """Ask about several points for each sample and keep the closest adversarial one.

    Parameters
    ----------
    closest : Closest
    queries : Queries
    rows : torch.Tensor of shape (m,)
    points : torch.Tensor of shape (n_draws, m, ...)
    allowed : torch.Tensor of bool of shape (n_draws, m), optional
        What may be asked; None means all.

    Returns
    -------
    torch.Tensor of bool of shape (n_draws, m)
        What is adversarial.
    """
    fooled = ask(queries, rows, points, allowed)
    ball = closest.batch.ball.select(rows)
    distance = torch.stack([ball.distance(z) for z in points])
    distance = distance.masked_fill(~fooled, torch.inf)
    best = distance.argmin(0)
    here = torch.arange(len(rows), device=rows.device)
    closest.update(points[best, here], fooled[best, here], rows)
    return fooled


def ask(queries, rows, points, allowed=None):
    """Return which of several points for each sample are adversarial, shape (n_draws, m)."""
    repeated = rows.expand(len(points), -1)
    if allowed is None:
        return queries.fooled(points.flatten(0, 1), repeated.flatten()).reshape(repeated.shape)
    fooled = torch.zeros_like(allowed)
    if allowed.any():
        fooled[allowed] = queries.fooled(points[allowed], repeated[allowed])
    return fooled


def _from_samples(closest, queries, starts):
    """Try the nearest of the samples given that the victim classifies as is wanted."""
    batch, ball = closest.batch, closest.batch.ball
    starts = batch.like(starts, "starts")
    with torch.no_grad():
        predicted = torch.cat([batch.victim(part) for part in starts.split(4096)]).argmax(1)
    origin = ball.to_unit(batch.x).flatten(1)
    distance = torch.cdist(
        origin,
        ball.to_unit(starts).flatten(1),
        p=ball.norm,
        compute_mode="donot_use_mm_for_euclid_dist",
    )
    if batch.target is None:
        wrong = predicted == batch.y[:, None]
    else:
        wrong = predicted != batch.target[:, None]
    nearest = distance.masked_fill(wrong, torch.inf).topk(min(_NEAREST, len(starts)), largest=False)
    for rank in range(nearest.indices.shape[1]):
        rows = closest.open
        rows = rows[(nearest.values[rows, rank] < torch.inf) & (queries.left[rows] > 0)]
        if len(rows):
            end = starts[nearest.indices[rows, rank]]
            ask_on_ray(closest, queries, rows, end, ON_BOUNDED_RAY)
