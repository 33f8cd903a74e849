"""A network compiled as a function of its weights and its input."""

from __future__ import annotations

import types

import torch
from torch.func import functional_call

from ._outputs import first_output

#: Share of the batch that something has been made for that a smaller one must have to be filled up.
LEAST = 0.5


class Compiled:
    """The compiled form of a replica: one, whatever is in the weights and however it is asked.

    What is compiled holds for one kind of input and of weights; another training mode, another
    size of the batch, or a question without gradients would be compiled anew, and soon given up.
    So weights are arguments, gradients are always taken, and a batch is filled up to the size that
    there is; a much smaller one is run as it is.

    Parameters
    ----------
    module : torch.nn.Module
        A replica: always in evaluation mode.
    **options
        Of `torch.compile`.
    """

    def __init__(self, module, **options):
        self._module = module
        self._weights = None
        self._sizes = {}

        def run(weights, x):
            return first_output(functional_call(module, weights, (x,)))

        # compiled forms are counted by code, of which each network needs one of its own
        code = run.__code__.replace()
        own = types.FunctionType(code, run.__globals__, run.__name__, None, run.__closure__)
        self._run = torch.compile(own, dynamic=False, **options)

    def forget_weights(self):
        """Look for the weights anew, because other tensors may have taken their places."""
        self._weights = None

    def __call__(self, x):
        """Return the logits, or whatever else the module returns first."""
        if self._weights is None:
            self._weights = _tensors_of(self._module)
        kind = x.shape[1:], x.dtype, x.device
        size = self._sizes.get(kind, 0)
        if len(x) < LEAST * size:
            return first_output(self._module(x))
        if torch.is_grad_enabled() and x.requires_grad:
            return self._filled(x, kind)
        with torch.enable_grad():
            return self._filled(x.detach().requires_grad_(), kind).detach()

    def _filled(self, x, kind):
        n = len(x)
        size = self._sizes[kind] = max(n, self._sizes.get(kind, 0))
        if n < size:
            x = torch.cat([x, x[: size - n]])
        return self._run(self._weights, x)[:n]


def _tensors_of(module):
    """Return parameters and buffers by the names under which `functional_call` finds them."""
    return {
        f"{prefix}.{name}" if prefix else name: tensor
        for prefix, part in module.named_modules()
        for name, tensor in (*part._parameters.items(), *part._buffers.items())
        if tensor is not None
    }
