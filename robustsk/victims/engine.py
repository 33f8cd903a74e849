"""The frozen view: a network made fast for attacks, without changing what it computes.

An attack needs logits and their gradient with respect to the input, of a
network that stays as it is. So batch normalisations become part of the layers
before them, images are laid out as the kernels like them, the gradient at the
input takes a short cut, and on request the arithmetic is that of a lower
precision or compiled. The user's module is changed in place for the duration of
the view and put back exactly: its parameters are set aside, never written to.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from .._containers import is_out_of_memory

_FOLDABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
PRECISIONS = (None, "bf16")
#: Largest share of the largest logit by which folding may change one; rounding is far below, a
#: network that cannot be folded after all far above.
_TOLERANCE = 1e-3
#: Input channels up to which a convolution has a faster gradient on the CPU.
_FEW_CHANNELS = 4
#: Input channels from which on a convolution is faster if channels come last.
_WIDE = 8
#: Samples on which changes are tried.
_N_TRIED = 2


@dataclass(frozen=True)
class Engine:
    """How the network of a frozen view is run.

    Parameters
    ----------
    precision : {None, "bf16"}, default=None
        Precision of convolutions and matrix products; None means that of the
        parameters.
    compile : bool or str, default=False
        Whether to use `torch.compile`; a string is its mode.
    fold, channels_last, input_gradient : bool, default=True
        What may be done to make it fast.
    """

    precision: str | None = None
    compile: bool | str = False
    fold: bool = True
    channels_last: bool = True
    input_gradient: bool = True

    def __post_init__(self):
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {PRECISIONS}, got {self.precision!r}.")
        if not isinstance(self.compile, (bool, str)):
            raise ValueError(
                f"compile must be True, False or a mode of torch.compile, got {self.compile!r}."
            )


class View:
    """A module that is run fast while the view is open.

    Parameters
    ----------
    module : torch.nn.Module
        In evaluation mode while the view is open, its parameters frozen.
    engine : Engine
    """

    def __init__(self, module, engine):
        self.module = module
        self.engine = engine
        self._run = module
        # what only asks a fitted classifier has nothing to compile
        if engine.compile and next(module.parameters(), None) is not None:
            mode = {} if engine.compile is True else {"mode": engine.compile}
            self._run = torch.compile(module, **mode)
        self._is_open = self._is_planned = False
        self._is_low = engine.precision is not None
        self._pairs, self._channels_last = [], False
        self._undo = []

    @property
    def is_rough(self):
        """Whether the module is run in a lower precision at present."""
        return self._is_open and self._is_low

    def __call__(self, x, part=None):
        """Return what the module returns for `x`, or a part of it that takes the same input."""
        if not self._is_open:
            return (self.module if part is None else part)(x)
        if not self._is_planned:
            self._plan(x)
            self._is_planned = True
            if self._is_low:
                self.close()
                self.open()
        if self._channels_last and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        run = self._run if part is None else part
        if not self.is_rough:
            return run(x)
        with torch.autocast(x.device.type, torch.bfloat16):
            return first_output(run(x)).to(x.dtype)

    # --- what can be done ------------------------------------------------------------

    def _plan(self, x):
        """Find out by trial what can be done to this network, and do it."""
        lay_out = self.engine.channels_last and _is_wide(self.module)
        norms = _norms(self.module) if self.engine.fold else {}
        # what is compiled cannot be watched, and has done what it can
        is_compiled = any("_orig_mod" in m._modules for m in self.module.modules())
        if (norms or lay_out) and not is_compiled:
            x = x.detach()[:_N_TRIED]
            wanted, expected = _find_pairs(self.module, norms, x)
            for pairs, channels_last in [(wanted, lay_out), (wanted, False), ([], lay_out)]:
                if not pairs and not channels_last:
                    continue
                self._undo = self._change(pairs, channels_last, None)
                if self._agrees(x, expected, channels_last):
                    self._pairs, self._channels_last = pairs, channels_last
                    return
                _restore(self._undo)
        self._undo = self._change([], False, None)

    def _agrees(self, x, expected, channels_last):
        """Return whether the network, as it has been changed, computes the same."""
        layout = torch.channels_last if channels_last and x.ndim == 4 else None
        try:
            with torch.no_grad():
                found = first_output(
                    self.module(x if layout is None else x.to(memory_format=layout))
                )
        except RuntimeError as error:  # e.g. a view that wants another layout
            if is_out_of_memory(error):
                raise
            return False
        return bool(
            found.shape == expected.shape
            and (found - expected).abs().max() <= _TOLERANCE * expected.abs().max()
        )

    # --- doing and undoing it --------------------------------------------------------

    def open(self):
        """Change the module; what is folded is computed from its present parameters."""
        self._is_open = True
        if self._is_planned:
            low = torch.bfloat16 if self._is_low else None
            self._undo = self._change(self._pairs, self._channels_last, low)

    def close(self):
        """Put the module back as it was."""
        _restore(self._undo)
        self._undo, self._is_open = [], False

    @contextmanager
    def set_aside(self, rough_only=False):
        """Have the module as it was for a while, or only its precision."""
        was_open, was_low = self._is_open, self._is_low
        self.close()
        try:
            if rough_only and was_open:
                self._is_low = False
                self.open()
            yield
        finally:
            self.close()
            self._is_low = was_low
            if was_open:
                self.open()

    def _change(self, pairs, channels_last, low):
        """Change the module; return how to undo it."""
        undo = []
        with torch.no_grad():
            changed = {layer: _folded(layer, norm) for layer, norm in pairs}
            if low is not None:
                # autocast would cast what is frozen anew in each call
                for layer in self._layers(_FOLDABLE):
                    weight, bias = changed.get(layer, (layer.weight, layer.bias))
                    if weight.dtype == torch.float32:
                        bias = None if bias is None else bias.to(low)
                        changed[layer] = weight.to(low), bias
            if channels_last:
                for layer in self._layers((nn.Conv2d,)):
                    weight, bias = changed.get(layer, (layer.weight, layer.bias))
                    changed[layer] = weight.to(memory_format=torch.channels_last), bias
        for layer, values in changed.items():
            for name, value in zip(("weight", "bias"), values, strict=True):
                undo.append((layer._parameters, name, layer._parameters[name]))
                layer._parameters[name] = value
        replaced = [(norm, _identity) for _, norm in pairs]
        if self.engine.input_gradient and low is None:
            replaced += [
                (layer, _FewChannels(layer))
                for layer in self._layers((nn.Conv2d,))
                if _has_few(layer)
            ]
        for module, forward in replaced:
            undo.append((vars(module), "forward", None))
            vars(module)["forward"] = forward
        return undo

    def _layers(self, kinds):
        return [m for m in self.module.modules() if type(m) in kinds and _is_untouched(m)]


def lay_out(module, x):
    """Have channels come last in a network for good, if that makes it faster.

    Parameters
    ----------
    module : torch.nn.Module
        In evaluation mode.
    x : torch.Tensor of shape (n, ...)

    Returns
    -------
    bool
        Whether it has been done. The network computes the same, and returns
        the fastest if `x` has its channels last as well.
    """
    view = View(module, Engine(fold=False))
    view._plan(x)
    view.close()
    if view._channels_last:
        module.to(memory_format=torch.channels_last)
    return view._channels_last


def _is_wide(module):
    return any(type(m) is nn.Conv2d and m.in_channels >= _WIDE for m in module.modules())


def _restore(undo):
    for place, name, value in reversed(undo):
        if name == "forward":
            place.pop(name, None)
        else:
            place[name] = value


def first_output(output):
    """Return the logits of a network that may return more."""
    return output[0] if isinstance(output, (tuple, list)) else output


def _is_untouched(module):
    """Return whether nobody listens to the module or computes its parameters."""
    listening = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return not any(listening) and "forward" not in vars(module) and "weight" in module._parameters


def _identity(x):
    return x


# --- folding -------------------------------------------------------------------------


def _norms(module):
    """Return the batch normalisations that do the same to every sample."""
    return {
        id(m.running_mean): m
        for m in module.modules()
        if type(m) in _NORMS and m.running_mean is not None and not m.training and _is_untouched(m)
    }


def _find_pairs(module, norms, x):
    """Return layers whose output goes to one of `norms` and nowhere else, and the logits.

    The network is watched while it works on `x`, whatever its code looks like.
    """
    layers = {id(m.weight): m for m in module.modules() if type(m) in _FOLDABLE}
    watch = _Watch(layers, norms)
    with torch.no_grad(), watch:
        logits = first_output(module(x))
    pairs = [
        (layer, norm)
        for layer, norm, output in watch.pairs
        if watch.uses[id(output)] == 1
        and watch.calls[id(layer)] == watch.calls[id(norm)] == 1
        and _is_untouched(layer)
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
            for value in _tensors_in(given):
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


def _tensors_in(values):
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors_in(value)


def _folded(layer, norm):
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


# --- the gradient at the input -------------------------------------------------------


def _has_few(layer):
    """Return whether a convolution has the kind of input for which there is a short cut."""
    return (
        layer.in_channels <= _FEW_CHANNELS
        and layer.groups == 1
        and layer.dilation == (1, 1)
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
        and layer.weight.device.type == "cpu"
    )


class _FewChannels:
    """The forward pass of a convolution of which only the input gradient is wanted."""

    def __init__(self, layer):
        self.layer = layer

    def __call__(self, x):
        layer = self.layer
        weight, bias = layer.weight, layer.bias
        wanted = x.requires_grad and torch.is_grad_enabled()
        if x.ndim != 4 or not wanted or torch.is_autocast_enabled("cpu"):
            return F.conv2d(x, weight, bias, layer.stride, layer.padding)
        return _FewChannelsConvolution.apply(x, weight, bias, layer.stride, layer.padding)


class _FewChannelsConvolution(torch.autograd.Function):
    """A convolution whose input gradient is a matrix product and a few shifted sums.

    Libraries are slow at transposed convolutions with one or three output
    channels, which is what the gradient at an image is: on small networks it
    costs more than all the rest.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, stride, padding):
        ctx.save_for_backward(weight)
        ctx.geometry = x.shape[2:], stride, padding
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx, gradient):
        (weight,) = ctx.saved_tensors
        return input_gradient(gradient, weight, *ctx.geometry), None, None, None, None


def input_gradient(gradient, weight, size, stride, padding):
    """Return the gradient of a 2-D convolution with respect to its input.

    Parameters
    ----------
    gradient : torch.Tensor of shape (n, c_out, h_out, w_out)
        With respect to the output.
    weight : torch.Tensor of shape (c_out, c_in, k_h, k_w)
    size : tuple of int
        Height and width of the input.
    stride, padding : tuple of int

    Returns
    -------
    torch.Tensor of shape (n, c_in, height, width)
    """
    n, c_out, h_out, w_out = gradient.shape
    _, c_in, k_h, k_w = weight.shape
    taps = weight.reshape(c_out, -1).t() @ gradient.flatten(2)
    taps = taps.reshape(n, c_in, k_h, k_w, h_out, w_out)
    span = [(out - 1) * step + 1 for out, step in zip((h_out, w_out), stride, strict=True)]
    room = [
        max(reach + k - 1, side + pad)
        for reach, k, side, pad in zip(span, (k_h, k_w), size, padding, strict=True)
    ]
    # first along the height, then along the width: k_h + k_w sums instead of k_h * k_w
    rows = gradient.new_zeros(n, c_in, k_w, room[0], w_out)
    for i in range(k_h):
        rows[..., i : i + span[0] : stride[0], :] += taps[:, :, i]
    result = gradient.new_zeros(n, c_in, *room)
    for j in range(k_w):
        result[..., j : j + span[1] : stride[1]] += rows[:, :, j]
    return result[..., padding[0] : padding[0] + size[0], padding[1] : padding[1] + size[1]]
