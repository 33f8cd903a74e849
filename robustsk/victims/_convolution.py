"""The gradient of a convolution at an input of few channels."""

from __future__ import annotations

import torch
from torch.nn import functional as F

#: Input channels up to which a convolution has a faster gradient on the CPU.
_FEW_CHANNELS = 4


def has_few_channels(layer):
    """Return whether a convolution has the kind of input for which there is a short cut."""
    return (
        layer.in_channels <= _FEW_CHANNELS
        and layer.groups == 1
        and layer.dilation == (1, 1)
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
        and layer.weight.device.type == "cpu"
    )


class FewChannels:
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
