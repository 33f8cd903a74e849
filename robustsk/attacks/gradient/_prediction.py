"""Whether the gradient predicts what happens a small step away."""

from __future__ import annotations

import torch

from ..._tensors import flat, length
from ...losses import margin

#: Length of the steps, as a share of the radius, and at most of the way across the valid range.
_STEP, _STEP_IN_RANGE = 1 / 4, 1 / 16
#: What the margin changes by, as a multiple of what the gradient predicts, on models that can be
#: attacked along it; on networks of many kinds it is between 0.7 and 1.6 for all but a few samples.
_LEAST, _MOST = 0.2, 5.0
#: Share of the samples for which it may be otherwise; of few samples, how many.
SHARE, COUNT = 0.25, 2


def mispredicted(victim, x, y, ball):
    """Compare the change of the margin between two points with what the gradient predicts.

    The points lie on both sides of each sample along the steepest direction, a part of the radius
    away. Rounding, decoys, ripples and saturation make a gradient that predicts nothing.

    Parameters
    ----------
    victim : Victim
        In attack mode.
    x : torch.Tensor of shape (n, ...)
    y : torch.Tensor of int64 of shape (n,)
    ball : Ball
        Around `x`.

    Returns
    -------
    gradient : torch.Tensor of shape (n, ...)
        Of the margin at `x`.
    wrong, told : torch.Tensor of bool of shape (n,)
        Where the prediction is off by more than a small factor, and where more than rounding is
        predicted or found.
    """
    with torch.enable_grad():
        z = x.detach().requires_grad_(True)
        value = margin(victim(z), y)
        (gradient,) = torch.autograd.grad(value.sum(), z)
    victim.calls.backward += len(x)
    size = _STEP * ball.radius
    if ball.low is not None:
        across = length(flat(ball.to_unit(ball.high - ball.low)), ball.norm)
        size = min(size, _STEP_IN_RANGE * float(across.max()))
    with torch.no_grad():
        ahead, behind = (ball.clamp(ball.push(x, sign * gradient, size)) for sign in (1, -1))
        predicted = flat(gradient * (ahead - behind)).double().sum(1)
        logits = torch.stack([victim(point) for point in (ahead, behind)])
    rounding = 64 * torch.finfo(logits.dtype).eps * logits.abs().amax((0, 2))
    found = margin(logits[0].double(), y) - margin(logits[1].double(), y)
    told = ~((predicted.abs() <= rounding) & (found.abs() <= rounding))
    ratio = found / torch.where(predicted == 0, torch.finfo(torch.float64).tiny, predicted)
    return gradient, told & ~((ratio >= _LEAST) & (ratio <= _MOST)), told
