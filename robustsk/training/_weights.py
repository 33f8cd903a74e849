"""Weights to come back to."""

from __future__ import annotations

import torch

from .._interrupts import uninterrupted


def copy_of_state(module, device=None):
    """Return a copy of the state of a module, for ``module.load_state_dict``.

    Parameters
    ----------
    module : torch.nn.Module
    device : str or torch.device, optional
        Where to keep it. None means where the module is.

    Returns
    -------
    dict of str to torch.Tensor
    """
    state = module.state_dict()
    return {k: v.detach().to(device or v.device, copy=True) for k, v in state.items()}


@torch.no_grad()
def put(tensors, values):
    """Give tensors other values, in place."""
    with uninterrupted():
        for tensor, value in zip(tensors, values, strict=True):
            tensor.copy_(value)


def put_state(module, state):
    """Give a module a state from :func:`copy_of_state`."""
    with uninterrupted():
        module.load_state_dict(state)
