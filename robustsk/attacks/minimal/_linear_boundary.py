"""Decision boundaries, taken for the planes that they look like from where one stands."""

from __future__ import annotations

import math

import numpy as np
import torch

from ..._tensors import flat, length, positive

#: Share of the features, the steepest ones, that a step in the 1-norm tries to do with at first.
_FEW = 1 / 8


def dual_norm(w, norm):
    """Return how fast a step of length one in `norm` can climb `w`, shape (n,)."""
    return length(w, {np.inf: 1.0, 2.0: 2.0, 1.0: np.inf}[norm])


def nearest_boundary(batch, z, candidates):
    """Linearise boundaries of the victim at `z` and return the nearest one.

    Parameters
    ----------
    batch : AttackBatch
    z : torch.Tensor of shape (n, ...)
    candidates : torch.Tensor of int64 of shape (n, k)
        Classes whose boundaries with ``batch.y`` are looked at. A targeted
        attack looks only at the one between the target and its strongest
        rival, which is the label at first.

    Returns
    -------
    logits : torch.Tensor of shape (n, n_classes)
    height : torch.Tensor of shape (n,)
        How far `z` is beyond the boundary, in logits; negative before it.
    w : torch.Tensor of shape (n, d)
        Gradient of the height in the units in which the ball is round.
    """
    with torch.enable_grad():
        z = z.detach().requires_grad_(True)
        logits = batch.ask(z)
        if not logits.requires_grad:
            raise ValueError(
                f"No gradient reaches the input of {batch.victim.name}: is something detached or "
                "computed outside of torch on the way?"
            )
        if batch.target is None:
            heights = logits.gather(1, candidates) - logits.gather(1, batch.y[:, None])
        else:
            target = batch.target[:, None]
            rival = logits.detach().scatter(1, target, -torch.inf).argmax(1, keepdim=True)
            heights = logits.gather(1, target) - logits.gather(1, rival)
        nearest = None
        for k in range(heights.shape[1]):
            batch.victim.calls.backward += len(z)
            (gradient,) = torch.autograd.grad(
                heights[:, k].sum(), z, retain_graph=k + 1 < heights.shape[1]
            )
            gradient = torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)
            w = flat(batch.ball.to_data(gradient))
            height = heights[:, k].detach().to(w)
            height = torch.nan_to_num(height, nan=0.0, posinf=0.0, neginf=0.0)
            if heights.shape[1] == 1:
                return logits.detach(), height, w
            # |f_k| / ||w_k|| in the dual norm, the distance of a plane
            distance = height.abs() / positive(dual_norm(w, batch.ball.norm))
            if k == 0:
                nearest, result_height, result_w = distance, height, w
                continue
            closer = (distance < nearest).nonzero()[:, 0]
            nearest[closer] = distance[closer]
            result_height[closer] = height[closer]
            result_w[closer] = w[closer]
    return logits.detach(), result_height, result_w


def step_to_plane(points, w, height, low, high, norm):
    """Return the shortest steps within a box that take points to a plane.

    With ``s`` the direction in which the height of a point vanishes, feature i
    moves by ``min(lam, room_i)`` along ``s_i`` for the inf norm and by
    ``min(lam * |w_i|, room_i)`` for the 2-norm. The number `lam` is found by
    Newton's method: what a point climbs is concave and piecewise linear in it,
    so that the steps never overshoot and end at the solution, on images after
    a handful of passes, where sorting the breakpoints costs several times as
    much. For the 1-norm the features with the largest ``|w_i|`` move as far as
    they can, one after the other.

    Parameters
    ----------
    points : torch.Tensor of shape (m, n, d)
        Points in the box, m for each of n planes.
    w : torch.Tensor of shape (n, d)
        Normal vectors.
    height : torch.Tensor of shape (m, n)
        Heights of the points above the planes.
    low, high : torch.Tensor of shape (n, d)
        The box; may be infinite.
    norm : {inf, 2.0, 1.0}
        Norm in which the steps are short.

    Returns
    -------
    torch.Tensor of shape (m, n, d)
        Where the plane does not meet the box, these lead to the corner that
        comes closest to it.

    References
    ----------
    Croce and Hein (2020), "Minimally distorted adversarial examples with a
    fast adaptive boundary attack" (the problem, there solved by sorting).
    """
    # squares of what is divided by the largest one do not underflow
    scale = positive(w.abs().amax(1))
    slope = w.abs() / scale[:, None]
    sign = -height.sign()[..., None] * w.sign()
    # as far as it goes in the box; choosing between two differences by masks is slow on the CPU
    far = torch.finfo(w.dtype).max / 4
    room = torch.clamp(points + far * sign, low, high).sub_(points).mul_(sign)
    climb = height.abs() / scale
    if norm == 1:
        move = _steepest_first(slope, room, climb)
        return move.mul_(sign)
    gain = slope * slope if norm == 2 else slope
    lam = torch.zeros_like(climb)
    move, values = torch.zeros_like(room), torch.empty_like(room)
    rounding = 4 * torch.finfo(w.dtype).eps
    for _ in range(w.shape[1] + 1):
        # zeros and ones in floating point: a mask would have to be converted
        rate = torch.lt(move, room, out=values).mul_(gain).sum(-1)
        missing = climb - torch.mul(slope, move, out=values).sum(-1)
        ahead = torch.where(rate > 0, lam + missing.clamp_min(0.0) / positive(rate), lam)
        done = ahead - lam <= rounding * ahead
        if done.all():
            break
        lam = torch.where(done, lam, ahead)
        most = lam[..., None]
        if norm == 2:
            most = torch.mul(most, slope, out=values)
        torch.minimum(most, room, out=move)
    return move.mul_(sign)


def _steepest_first(slope, room, climb):
    """Move features, the steepest first, as far as they can and as is needed.

    Parameters
    ----------
    slope : torch.Tensor of shape (n, d)
    room : torch.Tensor of shape (m, n, d)
    climb : torch.Tensor of shape (m, n)

    Returns
    -------
    torch.Tensor of shape (m, n, d)
    """
    # a few features are found in a fraction of the time that sorting all of them takes
    move, reached = _move_steepest(slope, room, climb, math.ceil(_FEW * slope.shape[1]))
    rest = (~reached).any(0).nonzero()[:, 0]
    if len(rest):
        part = slope[rest], room[:, rest], climb[:, rest]
        move[:, rest] = _move_steepest(*part, slope.shape[1])[0]
    return move


def _move_steepest(slope, room, climb, count):
    """Move the `count` steepest features only; return also where that is enough."""
    slope, order = slope.topk(count, dim=1)
    order = order.expand(len(room), -1, -1)
    limit = room.gather(-1, order)
    total = (slope * limit).cumsum(-1)
    left = climb[..., None] - total.roll(1, -1)
    left[..., 0] = climb
    move = torch.minimum((left / positive(slope)).clamp_min(0.0), limit)
    return torch.zeros_like(room).scatter_(-1, order, move), total[..., -1] >= climb


def unit_box(ball):
    """Return the box around the samples in the units in which the ball is round.

    Returns
    -------
    low, high : torch.Tensor of shape (n, d)
        Infinite without a box; zero for features that are frozen.
    """
    vectors = flat(ball.x)
    if ball.low is None:
        low, high = torch.full_like(vectors, -torch.inf), torch.full_like(vectors, torch.inf)
        if ball.weight is not None:
            frozen = ~ball.moves.reshape(1, -1)
            low, high = low.masked_fill(frozen, 0.0), high.masked_fill(frozen, 0.0)
        return low, high
    return flat(ball.to_unit(ball.low - ball.x)), flat(ball.to_unit(ball.high - ball.x))


def from_unit(ball, u):
    """Return the point at `u`, shape (n, d), within the box."""
    return ball.clamp(ball.x + ball.to_data(u.reshape(ball.x.shape)))
