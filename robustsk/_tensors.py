"""Small things that are done to tensors everywhere."""

from __future__ import annotations

import numpy as np
import torch


def positive(values):
    """Make norms fit to divide by."""
    return values.clamp_min(torch.finfo(values.dtype).tiny)


def length(steps, norm):
    """Return the norm over the last axis; `torch.linalg` is slow at some of them on the CPU."""
    if norm == np.inf:
        return steps.abs().amax(-1)
    if norm == 1:
        return steps.abs().sum(-1)
    return torch.linalg.vector_norm(steps, ord=norm, dim=-1)


def flat(x):
    """Return a batch as vectors, shape (n, d)."""
    return x.reshape(len(x), -1)


def column(values, like):
    """Bring one value per sample into the shape that multiplies a batch `like`."""
    return values.reshape(-1, *([1] * (like.ndim - 1)))


def clamp_through(x: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Clamp so that the gradient passes at the bounds themselves.

    What `torch.clamp` does there depends on the version of torch. An attack that
    gets no gradient at black pixels never finds out what they are good for.

    Parameters
    ----------
    x : torch.Tensor
    low, high : float

    Returns
    -------
    torch.Tensor of the shape of `x`

    Examples
    --------
    >>> import torch
    >>> from robustsk._tensors import clamp_through
    >>> x = torch.tensor([-1.0, 0.0, 1.0, 2.0], requires_grad=True)
    >>> torch.autograd.grad(clamp_through(x, 0, 1).sum(), x)[0]
    tensor([0., 1., 1., 0.])
    """
    x = torch.where(x < low, low, x)
    return torch.where(x > high, high, x)
