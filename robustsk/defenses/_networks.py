"""Networks before there are data, or before they have their shapes."""

from __future__ import annotations

import copy
import inspect

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ..victims.replica import kept_results


def copy_of(module):
    """Return a copy of a network that a user has given.

    What old-style weight normalisation and pruning have computed from parameters is not copied but
    will be computed from those of the copy.
    """
    try:
        copied = copy.deepcopy(module, kept_results(module))
    except Exception as error:
        raise TypeError(
            f"{type(module).__name__} cannot be copied ({error}), and each fit trains a network "
            "of its own: pass a function that builds it, module=lambda: ..., or its class."
        ) from error
    for parameter in copied.parameters():
        if not parameter.is_leaf:  # those of a copied script are results of copying
            parameter.detach_().requires_grad_()
    return copied


def needs_no_facts(spec, params):
    """Return whether a class or function makes a network from `params` alone."""
    if isinstance(spec, str) or not callable(spec):
        return False
    try:
        inspect.signature(spec).bind(**params)
    except (TypeError, ValueError):  # something is missing, or it has no signature
        return False
    return True


def materialised(module, input_shape):
    """Return a network whose lazy layers have seen a sample and know their shapes."""
    if any(is_lazy(t) for t in (*module.parameters(), *module.buffers())):
        was_training = module.training
        with torch.no_grad():
            module.eval()(torch.zeros(2, *input_shape))
        module.train(was_training)
    return module


def is_lookup_error(error):
    """Tell the error of an embedding that is given floats."""
    return isinstance(error, RuntimeError) and "'indices'" in str(error)


def uncompiled(parts):
    """Return those of some objects, by their names, that `torch.compile` has wrapped, bare."""
    return {
        name: part._orig_mod
        for name, part in parts.items()
        if isinstance(part, nn.Module) and hasattr(part, "_orig_mod")
    }
