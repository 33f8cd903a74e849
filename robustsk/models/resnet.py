"""Residual networks as they were published, by their names."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from ._residual import PreActResNet, ResNet, WideResNet

_PARAMETERS = {
    "input_shape": """
input_shape : tuple of int, default=(3, 32, 32)
    (c, h, w), or (h, w) for images with one channel.""",
    "n_classes": """
n_classes : int, default=10
    Number of classes.""",
    "dropout": """
dropout : float, default=0.0
    Dropout rate between the two convolutions of a block.""",
    "mean": """
mean, std : float or sequence of float, default=None
    Normalisation inside the network, see :class:`Normalize`.""",
}
_RETURNS = """

Returns
-------
network : {}
    The network, with random weights."""


def _documented(function):
    """Write into a docstring what the functions here take and return, which is said once."""
    signature = inspect.signature(function)
    taken = [text for name, text in _PARAMETERS.items() if name in signature.parameters]
    text = "Parameters\n----------" + "".join(taken) + _RETURNS.format(signature.return_annotation)
    doc = inspect.cleandoc(function.__doc__)
    function.__doc__ = doc.replace("%(parameters_and_returns)s", text)
    return function


@_documented
def resnet18(
    input_shape: Sequence[int] = (3, 32, 32),
    n_classes: int = 10,
    *,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
) -> ResNet:
    """Return ResNet-18 for small images.

    The layers of [1]_ with the 3x3 first convolution usual for CIFAR; 11,173,962 parameters
    with 10 classes and 3 channels.

    %(parameters_and_returns)s

    References
    ----------
    .. [1] K. He, X. Zhang, S. Ren and J. Sun, "Deep residual learning for image recognition",
       CVPR 2016, Table 1.

    Examples
    --------
    >>> from robustsk.models import resnet18
    >>> import torch
    >>> with torch.device("meta"):  # the layers without their weights
    ...     network = resnet18()
    >>> sum(p.numel() for p in network.parameters())
    11173962
    """
    return ResNet(input_shape, n_classes, layers=(2, 2, 2, 2), mean=mean, std=std)


@_documented
def resnet34(
    input_shape: Sequence[int] = (3, 32, 32),
    n_classes: int = 10,
    *,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
) -> ResNet:
    """Return ResNet-34 for small images.

    The layers of [1]_ with the 3x3 first convolution usual for CIFAR; 21,282,122 parameters
    with 10 classes and 3 channels.

    %(parameters_and_returns)s

    References
    ----------
    .. [1] K. He, X. Zhang, S. Ren and J. Sun, "Deep residual learning for image recognition",
       CVPR 2016, Table 1.

    Examples
    --------
    >>> from robustsk.models import resnet34
    >>> import torch
    >>> with torch.device("meta"):  # the layers without their weights
    ...     network = resnet34()
    >>> sum(p.numel() for p in network.parameters())
    21282122
    """
    return ResNet(input_shape, n_classes, layers=(3, 4, 6, 3), mean=mean, std=std)


@_documented
def resnet50(
    input_shape: Sequence[int] = (3, 32, 32),
    n_classes: int = 10,
    *,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
) -> ResNet:
    """Return ResNet-50 for small images.

    The layers of [1]_ with the 3x3 first convolution usual for CIFAR; 23,520,842 parameters
    with 10 classes and 3 channels.

    %(parameters_and_returns)s

    References
    ----------
    .. [1] K. He, X. Zhang, S. Ren and J. Sun, "Deep residual learning for image recognition",
       CVPR 2016, Table 1.

    Examples
    --------
    >>> from robustsk.models import resnet50
    >>> import torch
    >>> with torch.device("meta"):  # the layers without their weights
    ...     network = resnet50()
    >>> sum(p.numel() for p in network.parameters())
    23520842
    """
    return ResNet(
        input_shape, n_classes, block="bottleneck", layers=(3, 4, 6, 3), mean=mean, std=std
    )


@_documented
def resnet20(
    input_shape: Sequence[int] = (3, 32, 32),
    n_classes: int = 10,
    *,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
) -> ResNet:
    """Return ResNet-20, the small residual network for CIFAR.

    Three stages of three basic blocks with 16, 32 and 64 channels. As in [1]_ the shortcuts have
    no parameters (option A); 269,722 parameters with 10 classes and 3 channels.

    %(parameters_and_returns)s

    References
    ----------
    .. [1] K. He, X. Zhang, S. Ren and J. Sun, "Deep residual learning for image recognition",
       CVPR 2016, Section 4.2.

    Examples
    --------
    >>> from robustsk.models import resnet20
    >>> import torch
    >>> with torch.device("meta"):  # the layers without their weights
    ...     network = resnet20()
    >>> sum(p.numel() for p in network.parameters())
    269722
    """
    return ResNet(
        input_shape,
        n_classes,
        layers=(3, 3, 3),
        widths=(16, 32, 64),
        shortcut="A",
        mean=mean,
        std=std,
    )


@_documented
def preact_resnet18(
    input_shape: Sequence[int] = (3, 32, 32),
    n_classes: int = 10,
    *,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
) -> PreActResNet:
    """Return the pre-activation ResNet-18 for small images.

    With batch normalisation before the pooling, as in the experiments of [1]_; 11,172,170
    parameters with 10 classes and 3 channels (11,171,146 without that normalisation).

    %(parameters_and_returns)s

    References
    ----------
    .. [1] L. Rice, E. Wong and J. Z. Kolter, "Overfitting in adversarially robust deep learning",
       ICML 2020, Section 3.

    Examples
    --------
    >>> from robustsk.models import preact_resnet18
    >>> import torch
    >>> with torch.device("meta"):  # the layers without their weights
    ...     network = preact_resnet18()
    >>> sum(p.numel() for p in network.parameters())
    11172170
    """
    return PreActResNet(input_shape, n_classes, mean=mean, std=std)


@_documented
def wide_resnet_28_10(
    input_shape: Sequence[int] = (3, 32, 32),
    n_classes: int = 10,
    *,
    dropout: float = 0.0,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
) -> WideResNet:
    """Return WRN-28-10, the wide residual network of depth 28 and factor 10.

    36,479,194 parameters with 10 classes and 3 channels.

    %(parameters_and_returns)s

    References
    ----------
    .. [1] S. Zagoruyko and N. Komodakis, "Wide residual networks", BMVC 2016, Section 2.

    Examples
    --------
    >>> from robustsk.models import wide_resnet_28_10
    >>> import torch
    >>> with torch.device("meta"):  # the layers without their weights
    ...     network = wide_resnet_28_10()
    >>> sum(p.numel() for p in network.parameters())
    36479194
    """
    return WideResNet(
        input_shape, n_classes, depth=28, widen_factor=10, dropout=dropout, mean=mean, std=std
    )


@_documented
def wide_resnet_34_10(
    input_shape: Sequence[int] = (3, 32, 32),
    n_classes: int = 10,
    *,
    dropout: float = 0.0,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
) -> WideResNet:
    """Return WRN-34-10, the wide residual network of depth 34 and factor 10.

    46,160,474 parameters with 10 classes and 3 channels.

    %(parameters_and_returns)s

    References
    ----------
    .. [1] S. Zagoruyko and N. Komodakis, "Wide residual networks", BMVC 2016, Section 2.

    Examples
    --------
    >>> from robustsk.models import wide_resnet_34_10
    >>> import torch
    >>> with torch.device("meta"):  # the layers without their weights
    ...     network = wide_resnet_34_10()
    >>> sum(p.numel() for p in network.parameters())
    46160474
    """
    return WideResNet(
        input_shape, n_classes, depth=34, widen_factor=10, dropout=dropout, mean=mean, std=std
    )
