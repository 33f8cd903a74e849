"""Residual networks for small images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from .._validation import check_positive_int, check_probability
from .base import BaseNetwork, check_image_shape


def _conv(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Conv2d:
    # No bias: a batch normalisation follows, directly or in the next block.
    return nn.Conv2d(
        in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False
    )


class _PadShortcut(nn.Module):
    """Shortcut without parameters: subsample the image and append zero channels."""

    def __init__(self, extra_channels: int, stride: int) -> None:
        super().__init__()
        self.extra_channels = extra_channels
        self.stride = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        before = self.extra_channels // 2
        padding = (0, 0, 0, 0, before, self.extra_channels - before)
        return F.pad(x[:, :, :: self.stride, :: self.stride], padding)


class _BasicBlock(nn.Module):
    """Residual block of two 3x3 convolutions, with the activations after or before them."""

    expansion = 1

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int,
        *,
        preactivation: bool,
        shortcut: str,
        dropout: float,
    ) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.preactivation = preactivation
        self.convs = nn.ModuleList(self._convolutions(in_channels, width, stride))
        self.norms = nn.ModuleList(
            nn.BatchNorm2d(conv.in_channels if preactivation else conv.out_channels)
            for conv in self.convs
        )
        self.dropout = nn.Dropout(dropout)
        self.shortcut: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            if shortcut == "A":
                self.shortcut = _PadShortcut(out_channels - in_channels, stride)
            else:
                self.shortcut = _conv(in_channels, out_channels, 1, stride)
                if not preactivation:
                    self.shortcut = nn.Sequential(self.shortcut, nn.BatchNorm2d(out_channels))

    def _convolutions(self, in_channels: int, width: int, stride: int) -> list[nn.Conv2d]:
        return [_conv(in_channels, width, 3, stride), _conv(width, width, 3)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.preactivation:
            return self._forward_preactivation(x)
        out = x
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            if i > 0:
                out = self.dropout(F.relu(out))
            out = norm(conv(out))
        return F.relu(out + (x if self.shortcut is None else self.shortcut(x)))

    def _forward_preactivation(self, x: torch.Tensor) -> torch.Tensor:
        out = F.relu(self.norms[0](x))
        # A projection sees the activated input, an identity the raw one, as in the original.
        skip = x if self.shortcut is None else self.shortcut(out)
        out = self.convs[0](out)
        for conv, norm in zip(self.convs[1:], self.norms[1:], strict=True):
            out = conv(self.dropout(F.relu(norm(out))))
        return out + skip


class _Bottleneck(_BasicBlock):
    """Residual block of 1x1, 3x3 and 1x1 convolutions; the last has four times the width."""

    expansion = 4

    def _convolutions(self, in_channels: int, width: int, stride: int) -> list[nn.Conv2d]:
        return [
            _conv(in_channels, width, 1),
            _conv(width, width, 3, stride),
            _conv(width, width * self.expansion, 1),
        ]


_BLOCKS = {"basic": _BasicBlock, "bottleneck": _Bottleneck}


class ResNet(BaseNetwork):
    """Residual network for small images.

    A 3x3 convolution without pooling, stages of residual blocks (every stage but the first
    halves the image), global average pooling and the classifier. Because of the pooling, images
    of any size from 8x8 up are accepted, also of another size than ``input_shape``.

    Parameters
    ----------
    input_shape : tuple of int, default=(3, 32, 32)
        (c, h, w), or (h, w) for images with one channel.
    n_classes : int, default=10
        Number of classes.
    block : {"basic", "bottleneck"}, default="basic"
        Kind of residual block.
    layers : sequence of int, default=(2, 2, 2, 2)
        Number of blocks of each stage.
    widths : sequence of int, default=(64, 128, 256, 512)
        Number of channels of each stage (of the 3x3 convolutions, for "bottleneck").
    stem_width : int, default=None
        Number of channels of the first convolution; None means ``widths[0]``.
    preactivation : bool, default=False
        Place batch normalisation and ReLU before the convolutions of a block instead of after
        them, and once more before the pooling [2]_.
    shortcut : {"A", "B"}, default="B"
        Shortcut where the shape changes: "A" has no parameters (subsampling and zero channels),
        "B" is a 1x1 convolution. The names are those of [1]_.
    dropout : float, default=0.0
        Dropout rate between the convolutions of a block.
    mean, std : float or sequence of float, default=None
        Normalisation inside the network, see :class:`Normalize`.

    Raises
    ------
    ValueError
        If ``input_shape`` is not an image or a parameter is out of its range.

    See Also
    --------
    resnet18, resnet20, resnet34, resnet50 : Published configurations.

    Notes
    -----
    Convolutions are initialised by He's normal rule over the fan-out.

    References
    ----------
    .. [1] K. He, X. Zhang, S. Ren and J. Sun, "Deep residual learning for image recognition",
       CVPR 2016, Sections 3.3, 4.1 (shortcut options) and 4.2 (CIFAR-10).
    .. [2] K. He, X. Zhang, S. Ren and J. Sun, "Identity mappings in deep residual networks",
       ECCV 2016, Section 4.

    Examples
    --------
    >>> import torch
    >>> from robustsk.models import ResNet
    >>> network = ResNet((3, 32, 32), 5, layers=(1, 1), widths=(8, 16))
    >>> network(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 5])
    """

    any_image_size = True

    def __init__(
        self,
        input_shape: Sequence[int] = (3, 32, 32),
        n_classes: int = 10,
        *,
        block: str = "basic",
        layers: Sequence[int] = (2, 2, 2, 2),
        widths: Sequence[int] = (64, 128, 256, 512),
        stem_width: int | None = None,
        preactivation: bool = False,
        shortcut: str = "B",
        dropout: float = 0.0,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
    ) -> None:
        super().__init__(input_shape, n_classes, mean=mean, std=std)
        check_image_shape(self.shape, self)
        if block not in _BLOCKS:
            raise ValueError(f'block must be "basic" or "bottleneck", got {block!r}.')
        if shortcut not in ("A", "B"):
            raise ValueError(f'shortcut must be "A" or "B", got {shortcut!r}.')
        dropout = check_probability(dropout, "dropout")
        layers = [check_positive_int(n, "every entry of layers") for n in layers]
        widths = [check_positive_int(n, "every entry of widths") for n in widths]
        if len(layers) != len(widths) or not layers:
            raise ValueError(
                "layers and widths need one entry per stage: got "
                f"{len(layers)} and {len(widths)} entries."
            )
        channels = widths[0] if stem_width is None else check_positive_int(stem_width, "stem_width")
        body: list[nn.Module] = [_conv(self.shape[0], channels, 3)]
        if not preactivation:
            body += [nn.BatchNorm2d(channels), nn.ReLU()]
        for stage, (n_blocks, width) in enumerate(zip(layers, widths, strict=True)):
            blocks = []
            for i in range(n_blocks):
                stride = 2 if stage > 0 and i == 0 else 1
                blocks.append(
                    _BLOCKS[block](
                        channels,
                        width,
                        stride,
                        preactivation=preactivation,
                        shortcut=shortcut,
                        dropout=dropout,
                    )
                )
                channels = width * _BLOCKS[block].expansion
            body.append(nn.Sequential(*blocks))
        if preactivation:
            body += [nn.BatchNorm2d(channels), nn.ReLU()]
        self.features = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.num_features = channels
        self.classifier = nn.Linear(channels, self.n_classes)
        for module in self.features.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class PreActResNet(ResNet):
    """Residual network with pre-activation blocks.

    As :class:`ResNet`, but batch normalisation and ReLU come before the convolutions of a block
    and once more before the pooling.

    Parameters
    ----------
    input_shape : tuple of int, default=(3, 32, 32)
        (c, h, w), or (h, w) for images with one channel.
    n_classes : int, default=10
        Number of classes.
    block : {"basic", "bottleneck"}, default="basic"
        Kind of residual block.
    layers : sequence of int, default=(2, 2, 2, 2)
        Number of blocks of each stage.
    widths : sequence of int, default=(64, 128, 256, 512)
        Number of channels of each stage (of the 3x3 convolutions, for "bottleneck").
    mean, std : float or sequence of float, default=None
        Normalisation inside the network, see :class:`Normalize`.

    See Also
    --------
    preact_resnet18 : The usual configuration.

    References
    ----------
    .. [1] K. He, X. Zhang, S. Ren and J. Sun, "Identity mappings in deep residual networks",
       ECCV 2016, Section 4.
    .. [2] L. Rice, E. Wong and J. Z. Kolter, "Overfitting in adversarially robust deep learning",
       ICML 2020, Section 3 (the network of the experiments).

    Examples
    --------
    >>> import torch
    >>> from robustsk.models import PreActResNet
    >>> network = PreActResNet((3, 32, 32), 5, layers=(1, 1), widths=(8, 16))
    >>> network(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 5])
    """

    def __init__(
        self,
        input_shape: Sequence[int] = (3, 32, 32),
        n_classes: int = 10,
        *,
        block: str = "basic",
        layers: Sequence[int] = (2, 2, 2, 2),
        widths: Sequence[int] = (64, 128, 256, 512),
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
    ) -> None:
        super().__init__(
            input_shape,
            n_classes,
            block=block,
            layers=layers,
            widths=widths,
            preactivation=True,
            mean=mean,
            std=std,
        )


class WideResNet(ResNet):
    """Wide residual network: pre-activation blocks, three stages, ``widen_factor`` times wider.

    Parameters
    ----------
    input_shape : tuple of int, default=(3, 32, 32)
        (c, h, w), or (h, w) for images with one channel.
    n_classes : int, default=10
        Number of classes.
    depth : int, default=28
        Number of convolutions, 6 n + 4 for n blocks per stage (10, 16, 22, 28, 34, 40, ...): two
        in each block, the first one and three projections.
    widen_factor : int, default=10
        The stages have 16, 32 and 64 channels times this factor.
    dropout : float, default=0.0
        Dropout rate between the two convolutions of a block.
    mean, std : float or sequence of float, default=None
        Normalisation inside the network, see :class:`Normalize`.

    Raises
    ------
    ValueError
        If ``depth`` is not of the form 6 n + 4.

    See Also
    --------
    wide_resnet_28_10, wide_resnet_34_10 : The usual configurations.

    References
    ----------
    .. [1] S. Zagoruyko and N. Komodakis, "Wide residual networks", BMVC 2016, Section 2, Table 1.

    Examples
    --------
    >>> import torch
    >>> from robustsk.models import WideResNet
    >>> network = WideResNet((3, 32, 32), 10, depth=10, widen_factor=1)
    >>> network(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        input_shape: Sequence[int] = (3, 32, 32),
        n_classes: int = 10,
        *,
        depth: int = 28,
        widen_factor: int = 10,
        dropout: float = 0.0,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
    ) -> None:
        depth = check_positive_int(depth, "depth")
        widen_factor = check_positive_int(widen_factor, "widen_factor")
        n_blocks, rest = divmod(depth - 4, 6)
        if rest or n_blocks < 1:
            raise ValueError(
                f"depth must be 6 n + 4 for a whole number n >= 1 (10, 16, 22, 28, 34, ...), got "
                f"{depth}."
            )
        super().__init__(
            input_shape,
            n_classes,
            layers=(n_blocks,) * 3,
            widths=tuple(base * widen_factor for base in (16, 32, 64)),
            stem_width=16,
            preactivation=True,
            dropout=dropout,
            mean=mean,
            std=std,
        )
