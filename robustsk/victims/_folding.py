"""Batch normalisations that become part of the layer before them."""

from __future__ import annotations

from collections import Counter

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ._outputs import first_output
from .replica import tensors_in

FOLDABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def is_untouched(module):
    """Return whether nobody listens to the module or computes its parameters."""
    return (
        not any(hooks_of(module))
        and "forward" not in vars(module)
        and "weight" in module._parameters
    )


def hooks_of(module):
    """Return the dicts of those who listen to a module."""
    return (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )


def norms_of(module):
    """Return the batch normalisations that do the same to every sample."""
    return {
        id(m.running_mean): m
        for m in module.modules()
        if type(m) in _NORMS and m.running_mean is not None and not m.training and is_untouched(m)
    }


def find_pairs(module, norms, x):
    """Return layers whose output goes to one of `norms` and nowhere else, and the logits.

    The network is watched while it works on `x`, whatever its code looks like.

    Parameters
    ----------
    module : torch.nn.Module
        In evaluation mode.
    norms : dict
        What :func:`norms_of` returns.
    x : torch.Tensor of shape (n, ...)

    Returns
    -------
    pairs : list of (torch.nn.Module, torch.nn.Module)
    logits : torch.Tensor of shape (n, n_classes)
    """
    layers = {id(m.weight): m for m in module.modules() if type(m) in FOLDABLE}
    watch = _Watch(layers, norms)
    with torch.no_grad(), watch:
        logits = first_output(module(x))
    pairs = [
        (layer, norm)
        for layer, norm, output in watch.pairs
        if watch.uses[id(output)] == 1
        and watch.calls[id(layer)] == watch.calls[id(norm)] == 1
        and is_untouched(layer)
    ]
    return pairs, logits


class _Watch(TorchFunctionMode):
    """Takes note of what happens to the outputs of some layers."""

    def __init__(self, layers, norms):
        super().__init__()
        self.layers, self.norms = layers, norms
        self.outputs, self.pairs = {}, []
        self.uses, self.calls = Counter(), Counter()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        given = [*args, *kwargs.values()]
        if isinstance(result, (torch.Tensor, tuple, list)):
            for value in tensors_in(given):
                if id(value) in self.outputs:
                    self.uses[id(value)] += 1
        if getattr(func, "__name__", "") == "batch_norm" and len(given) > 1:
            norm = self.norms.get(id(given[1]))
            if norm is not None:
                self.calls[id(norm)] += 1
                layer, output = self.outputs.get(id(given[0]), (None, None))
                if layer is not None:
                    self.pairs.append((layer, norm, output))
        elif isinstance(result, torch.Tensor) and len(given) > 1:
            layer = self.layers.get(id(given[1]))
            if layer is not None:
                self.calls[id(layer)] += 1
                # holding on to the output keeps its id from being given to another tensor
                self.outputs[id(result)] = layer, result
        return result


def folded(layer, norm):
    """Return weight and bias of one layer that does what the two do."""
    scale = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -norm.running_mean if layer.bias is None else layer.bias - norm.running_mean
    bias = shift * scale
    if norm.bias is not None:
        bias = bias + norm.bias
    weight = layer.weight * scale.reshape(-1, *[1] * (layer.weight.ndim - 1))
    return weight.to(layer.weight.dtype), bias.to(layer.weight.dtype)
