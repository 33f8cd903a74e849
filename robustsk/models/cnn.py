"""Small convolutional networks of the adversarial robustness literature."""

from __future__ import annotations

import operator
from collections.abc import Sequence

from torch import nn

from .._validation import check_positive_int
from .base import BaseNetwork, check_image_shape, fully_connected


class _PlainCNN(BaseNetwork):
    """Blocks of convolutions, each closed by max-pooling, then fully connected layers."""

    def _build(
        self,
        blocks: Sequence[Sequence[int]],
        kernel_size: int,
        padding: int | str,
        hidden_sizes: Sequence[int],
        dropout: float | None,
    ) -> None:
        check_image_shape(self.shape, self)
        channels, *sides = self.shape
        padding = _resolve_padding(padding, sides, kernel_size)
        layers: list[nn.Module] = []
        for widths in blocks:
            for width in widths:
                layers += [nn.Conv2d(channels, width, kernel_size, padding=padding), nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2))
            change = len(widths) * (2 * padding - kernel_size + 1)
            sides = [(side + change) // 2 for side in sides]
            if min(sides) < 1:
                raise ValueError(
                    f"an image of {self.shape[1]} x {self.shape[2]} pixels (input_shape="
                    f"{self.input_shape}, read as channels-first) is too small for "
                    f"{type(self).__name__} with padding={padding} and {len(blocks)} poolings: "
                    "use larger images, another network such as MLP or, where it can be set, "
                    "a larger padding."
                )
        dense, self.num_features = fully_connected(
            channels * sides[0] * sides[1], hidden_sizes, dropout
        )
        self.features = nn.Sequential(*layers, nn.Flatten(), *dense)
        self.classifier = nn.Linear(self.num_features, self.n_classes)


def _resolve_padding(padding: int | str, sides: Sequence[int], kernel_size: int) -> int:
    """Return padding as an int; "auto" keeps the published network where the image allows it."""
    if isinstance(padding, str) and padding == "auto":
        return 0 if min(sides) >= 16 else kernel_size // 2
    try:
        number = operator.index(padding)
    except TypeError:
        number = -1
    if number < 0:
        raise ValueError(f'padding must be "auto" or a whole number >= 0, got {padding!r}.')
    return number


class SmallCNN(_PlainCNN):
    """The network of the TRADES paper for MNIST: four convolutions, three dense layers.

    Convolutions 3x3 with 32, 32, pool, 64, 64, pool; dense layers with 200, 200 and
    ``n_classes`` units; ReLU throughout. 312,202 parameters on MNIST.

    Parameters
    ----------
    input_shape : tuple of int, default=(1, 28, 28)
        (c, h, w), or (h, w) for images with one channel.
    n_classes : int, default=10
        Number of classes.
    padding : "auto" or int, default="auto"
        Padding of the convolutions. The paper uses none; "auto" does the same when both sides
        have at least 16 pixels and uses 1 for smaller images, such as the 8x8 digits of
        scikit-learn.
    dropout : float, default=0.0
        Dropout rate after the first dense layer. The authors' code trains with 0.5; off by
        default, so that the network is deterministic in training mode too.
    mean, std : float or sequence of float, default=None
        Normalisation inside the network, see :class:`Normalize`.

    Raises
    ------
    ValueError
        If ``input_shape`` is not an image or the image is too small for the two poolings.

    References
    ----------
    .. [1] H. Zhang, Y. Yu, J. Jiao, E. P. Xing, L. El Ghaoui and M. I. Jordan, "Theoretically
       principled trade-off between robustness and accuracy", ICML 2019, Section 5 (MNIST setup).
    .. [2] N. Carlini and D. Wagner, "Towards evaluating the robustness of neural networks",
       IEEE Symposium on Security and Privacy 2017, Table I (the same layers).

    Examples
    --------
    >>> import torch
    >>> from robustsk.models import SmallCNN
    >>> network = SmallCNN((8, 8))
    >>> network(torch.zeros(2, 8, 8)).shape
    torch.Size([2, 10])
    >>> sum(p.numel() for p in SmallCNN((1, 28, 28)).parameters())
    312202
    """

    def __init__(
        self,
        input_shape: Sequence[int] = (1, 28, 28),
        n_classes: int = 10,
        *,
        padding: int | str = "auto",
        dropout: float = 0.0,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
    ) -> None:
        super().__init__(input_shape, n_classes, mean=mean, std=std)
        self._build(((32, 32), (64, 64)), 3, padding, (200, 200), dropout)


class ConvNet2(_PlainCNN):
    """The small "two convolutions, two dense layers" network.

    Convolution 5x5 with 10 channels, pool, convolution 5x5 with 20 channels, pool; dense layers
    with 50 and ``n_classes`` units; ReLU throughout. 21,840 parameters on MNIST.

    Parameters
    ----------
    input_shape : tuple of int, default=(1, 28, 28)
        (c, h, w), or (h, w) for images with one channel.
    n_classes : int, default=10
        Number of classes.
    padding : "auto" or int, default="auto"
        Padding of the convolutions. "auto" is 0 when both sides have at least 16 pixels and 2
        (which keeps the size of the image) otherwise.
    mean, std : float or sequence of float, default=None
        Normalisation inside the network, see :class:`Normalize`.

    Raises
    ------
    ValueError
        If ``input_shape`` is not an image or the image is too small for the two poolings.

    Examples
    --------
    >>> import torch
    >>> from robustsk.models import ConvNet2
    >>> ConvNet2((1, 8, 8))(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        input_shape: Sequence[int] = (1, 28, 28),
        n_classes: int = 10,
        *,
        padding: int | str = "auto",
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
    ) -> None:
        super().__init__(input_shape, n_classes, mean=mean, std=std)
        self._build(((10,), (20,)), 5, padding, (50,), None)


class CCENet(_PlainCNN):
    """The networks of the crossing collaborative ensemble (CCE) paper.

    Blocks of size-preserving 3x3 convolutions with ReLU, each block closed by max-pooling, then
    dense layers with ReLU and dropout after the first of them.

    Parameters
    ----------
    input_shape : tuple of int, default=(1, 28, 28)
        (c, h, w), or (h, w) for images with one channel.
    n_classes : int, default=10
        Number of classes.
    blocks : sequence of (int, int), default=((2, 32), (2, 64))
        Number of convolutions and number of channels of each block. Every block halves the image.
    hidden_sizes : sequence of int, default=(200, 200)
        Widths of the dense layers before the classifier.
    dropout : float, default=0.5
        Dropout rate after the first dense layer.
    mean, std : float or sequence of float, default=None
        Normalisation inside the network, see :class:`Normalize`.

    Raises
    ------
    ValueError
        If ``input_shape`` is not an image or the image is too small for the poolings.

    See Also
    --------
    cce_mnist, cce_cifar10, cce_cifar100 : The three published configurations.

    References
    ----------
    .. [1] A. T. Bui, T. Le, H. Zhao, P. Montague, O. deVel, T. Abraham and D. Phung, "Improving
       ensemble robustness by collaboratively promoting and demoting adversarial robustness",
       AAAI 2021, Table 8.

    Examples
    --------
    >>> import torch
    >>> from robustsk.models import CCENet
    >>> network = CCENet((3, 16, 16), 5, blocks=((1, 8), (1, 16)), hidden_sizes=(32,))
    >>> network(torch.zeros(2, 3, 16, 16)).shape
    torch.Size([2, 5])
    """

    def __init__(
        self,
        input_shape: Sequence[int] = (1, 28, 28),
        n_classes: int = 10,
        *,
        blocks: Sequence[tuple[int, int]] = ((2, 32), (2, 64)),
        hidden_sizes: Sequence[int] = (200, 200),
        dropout: float = 0.5,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
    ) -> None:
        super().__init__(input_shape, n_classes, mean=mean, std=std)
        widths = [
            (check_positive_int(width, "a number of channels"),)
            * check_positive_int(depth, "a number of convolutions")
            for depth, width in blocks
        ]
        self._build(widths, 3, 1, hidden_sizes, dropout)


def cce_mnist(
    input_shape: Sequence[int] = (1, 28, 28),
    n_classes: int = 10,
    *,
    dropout: float = 0.5,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
) -> CCENet:
    """Return the CCE network for MNIST: 2x32, 2x64 convolutions, dense 200, 200.

    Parameters
    ----------
    input_shape : tuple of int, default=(1, 28, 28)
        (c, h, w), or (h, w) for images with one channel.
    n_classes : int, default=10
        Number of classes.
    dropout : float, default=0.5
        Dropout rate after the first dense layer.
    mean, std : float or sequence of float, default=None
        Normalisation inside the network, see :class:`Normalize`.

    Returns
    -------
    network : CCENet
        The network, with random weights.

    References
    ----------
    .. [1] A. T. Bui, T. Le, H. Zhao, P. Montague, O. deVel, T. Abraham and D. Phung, "Improving
       ensemble robustness by collaboratively promoting and demoting adversarial robustness",
       AAAI 2021, Table 8.

    Examples
    --------
    >>> from robustsk.models import cce_mnist
    >>> cce_mnist().num_features
    200
    """
    return CCENet(
        input_shape,
        n_classes,
        blocks=((2, 32), (2, 64)),
        hidden_sizes=(200, 200),
        dropout=dropout,
        mean=mean,
        std=std,
    )


def cce_cifar10(
    input_shape: Sequence[int] = (3, 32, 32),
    n_classes: int = 10,
    *,
    dropout: float = 0.5,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
) -> CCENet:
    """Return the CCE network for CIFAR-10: 2x64, 2x128 convolutions, dense 256, 256.

    Parameters
    ----------
    input_shape : tuple of int, default=(3, 32, 32)
        (c, h, w), or (h, w) for images with one channel.
    n_classes : int, default=10
        Number of classes.
    dropout : float, default=0.5
        Dropout rate after the first dense layer.
    mean, std : float or sequence of float, default=None
        Normalisation inside the network, see :class:`Normalize`.

    Returns
    -------
    network : CCENet
        The network, with random weights.

    References
    ----------
    .. [1] A. T. Bui, T. Le, H. Zhao, P. Montague, O. deVel, T. Abraham and D. Phung, "Improving
       ensemble robustness by collaboratively promoting and demoting adversarial robustness",
       AAAI 2021, Table 8.

    Examples
    --------
    >>> from robustsk.models import cce_cifar10
    >>> cce_cifar10().num_features
    256
    """
    return CCENet(
        input_shape,
        n_classes,
        blocks=((2, 64), (2, 128)),
        hidden_sizes=(256, 256),
        dropout=dropout,
        mean=mean,
        std=std,
    )


def cce_cifar100(
    input_shape: Sequence[int] = (3, 32, 32),
    n_classes: int = 100,
    *,
    dropout: float = 0.5,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
) -> CCENet:
    """Return the CCE network for CIFAR-100: 3x64, 3x128 convolutions, dense 3x256.

    Parameters
    ----------
    input_shape : tuple of int, default=(3, 32, 32)
        (c, h, w), or (h, w) for images with one channel.
    n_classes : int, default=100
        Number of classes.
    dropout : float, default=0.5
        Dropout rate after the first dense layer.
    mean, std : float or sequence of float, default=None
        Normalisation inside the network, see :class:`Normalize`.

    Returns
    -------
    network : CCENet
        The network, with random weights.

    References
    ----------
    .. [1] A. T. Bui, T. Le, H. Zhao, P. Montague, O. deVel, T. Abraham and D. Phung, "Improving
       ensemble robustness by collaboratively promoting and demoting adversarial robustness",
       AAAI 2021, Table 8.

    Examples
    --------
    >>> from robustsk.models import cce_cifar100
    >>> cce_cifar100().num_features
    256
    """
    return CCENet(
        input_shape,
        n_classes,
        blocks=((3, 64), (3, 128)),
        hidden_sizes=(256, 256, 256),
        dropout=dropout,
        mean=mean,
        std=std,
    )
