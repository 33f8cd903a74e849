"""What all networks of the package share."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence

import torch
from torch import nn

from .._validation import check_positive_int, check_probability


class Normalize(nn.Module):
    """Subtract a mean and divide by a standard deviation, channel by channel.

    Kept as a layer *inside* the network, so that attacks and perturbation budgets stay in the
    units of the data: with images in [0, 1], ``eps=8 / 255`` means the same whether or not the
    network normalises.

    Parameters
    ----------
    mean, std : float, sequence of float or Tensor
        One value for all channels or one value per channel. The channel axis is axis 1 of the
        input, so for data of shape (n, n_features) these are per-feature values. ``std`` must be
        positive.

    Raises
    ------
    ValueError
        If a value is not finite, a ``std`` is not positive, the lengths differ, or (in
        ``forward``) the number of values is not the number of channels.

    Examples
    --------
    >>> import torch
    >>> from robustsk.models import Normalize
    >>> layer = Normalize(mean=(0.5, 0.0), std=(0.5, 2.0))
    >>> layer(torch.ones(1, 2, 1, 1)).flatten()
    tensor([1.0000, 0.5000])
    """

    def __init__(
        self,
        mean: float | Sequence[float] | torch.Tensor,
        std: float | Sequence[float] | torch.Tensor,
    ) -> None:
        super().__init__()
        # Checked on the CPU, since values cannot be read back under ``torch.device("meta")``.
        mean = torch.as_tensor(mean, dtype=torch.float64, device="cpu").reshape(-1)
        std = torch.as_tensor(std, dtype=torch.float64, device="cpu").reshape(-1)
        if not (torch.isfinite(mean).all() and torch.isfinite(std).all() and (std > 0).all()):
            raise ValueError(
                f"mean must be finite and std finite and positive; got mean={mean.tolist()} and "
                f"std={std.tolist()}. A constant channel can be given std=1."
            )
        if len(mean) != len(std) and 1 not in (len(mean), len(std)):
            raise ValueError(
                f"mean has {len(mean)} values and std has {len(std)}: give one value per channel "
                "in both, or a single number."
            )
        mean, std = torch.broadcast_tensors(mean, std)
        # From lists, so that the buffers are made on the default device, as parameters are.
        dtype = torch.get_default_dtype()
        self.register_buffer("mean", torch.tensor(mean.tolist(), dtype=dtype))
        self.register_buffer("std", torch.tensor(std.tolist(), dtype=dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``(x - mean) / std`` for x of shape (n, channels, ...)."""
        if len(self.mean) not in (1, x.shape[1]):
            raise ValueError(
                f"mean and std have {len(self.mean)} values but the input of shape "
                f"{tuple(x.shape)} has {x.shape[1]} channels (axis 1): give one value per channel "
                "or a single number."
            )
        shape = (-1,) + (1,) * (x.ndim - 2)
        return (x - self.mean.view(shape)) / self.std.view(shape)

    def extra_repr(self) -> str:
        """Describe the layer in its printed form."""
        if self.mean.is_meta:
            return f"n_values={len(self.mean)}"
        return f"mean={self.mean.tolist()}, std={self.std.tolist()}"


class BaseNetwork(nn.Module):
    """Base class of the networks: a feature extractor followed by one linear classifier.

    A subclass calls ``super().__init__`` and then assigns ``self.features`` (a module that maps
    a batch of shape ``(n, *self.shape)`` to ``(n, num_features)``), ``self.num_features`` and
    ``self.classifier``.

    Parameters
    ----------
    input_shape : tuple of int
        Shape of one sample, without the batch axis. A pair (h, w) is read as an image with one
        channel.
    n_classes : int, default=10
        Number of classes, that is of logits.
    mean, std : float or sequence of float, default=None
        When either is given, the input is normalised inside the network by :class:`Normalize`
        (a missing ``mean`` counts as 0, a missing ``std`` as 1).

    Attributes
    ----------
    input_shape : tuple of int
        As given.
    shape : tuple of int
        ``input_shape`` with the channel axis, (1, h, w) for a pair (h, w).
    n_classes : int
        Number of logits.
    num_features : int
        Length of the penultimate representation.
    classifier : nn.Linear
        The last layer.

    Raises
    ------
    TypeError
        If ``input_shape`` is not a sequence of whole numbers or ``n_classes`` is not a whole
        number.
    ValueError
        If one of them is not positive, or ``mean`` and ``std`` do not fit the input.

    See Also
    --------
    robustsk.models.make_module : Build a network for given data.

    Notes
    -----
    The method names are those of timm, so code written for its models reads the same.
    ``forward`` accepts samples in the given shape and, for use inside scikit-learn pipelines,
    the same samples flattened to (n, n_values).

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from robustsk.models import BaseNetwork
    >>> class Softmax(BaseNetwork):
    ...     def __init__(self, input_shape=(8, 8), n_classes=10, *, mean=None, std=None):
    ...         super().__init__(input_shape, n_classes, mean=mean, std=std)
    ...         self.features = nn.Flatten()
    ...         self.num_features = 64
    ...         self.classifier = nn.Linear(self.num_features, n_classes)
    >>> network = Softmax(mean=0.5)
    >>> network(torch.zeros(3, 8, 8)).shape
    torch.Size([3, 10])
    """

    # Networks that end in global pooling accept other image sizes than the one they were built
    # with.
    any_image_size = False

    features: nn.Module
    classifier: nn.Module
    num_features: int

    def __init__(
        self,
        input_shape: Sequence[int],
        n_classes: int = 10,
        *,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.input_shape = check_input_shape(input_shape)
        self.shape = (1, *self.input_shape) if len(self.input_shape) == 2 else self.input_shape
        self.n_classes = check_positive_int(n_classes, "n_classes")
        if mean is None and std is None:
            self.normalize: nn.Module = nn.Identity()
        else:
            normalize = Normalize(0.0 if mean is None else mean, 1.0 if std is None else std)
            n_values = len(normalize.mean)
            if n_values not in (1, self.shape[0]):
                raise ValueError(
                    f"mean and std have {n_values} values but input_shape={self.input_shape} has "
                    f"{self.shape[0]} channels: give one value per channel or a single number."
                )
            self.normalize = normalize

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits, shape (n, n_classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the penultimate representation, shape (n, num_features)."""
        return self.features(self.normalize(self._check_input(x)))

    def forward_head(self, z: torch.Tensor) -> torch.Tensor:
        """Return the logits of penultimate representations z of shape (n, num_features)."""
        return self.classifier(z)

    def get_classifier(self) -> nn.Module:
        """Return the last layer."""
        return self.classifier

    def reset_classifier(self, n_classes: int) -> None:
        """Replace the last layer by a fresh ``nn.Linear`` with ``n_classes`` outputs.

        Parameters
        ----------
        n_classes : int
            Number of classes of the new task.
        """
        self.n_classes = check_positive_int(n_classes, "n_classes")
        self.classifier = nn.Linear(self.num_features, self.n_classes).to(next(self.parameters()))

    def _check_input(self, x: torch.Tensor) -> torch.Tensor:
        given = tuple(x.shape[1:])
        if given == self.shape:
            return x
        if given in (self.input_shape, (math.prod(self.shape),)):
            return x.reshape(len(x), *self.shape)
        if self.any_image_size and x.ndim == 4 and x.shape[1] == self.shape[0]:
            return x
        raise ValueError(
            f"{type(self).__name__} was built for samples of shape {self.input_shape} and got a "
            f"batch of shape {tuple(x.shape)}: the first axis is the batch and the rest must be "
            f"{self.input_shape}, or flat with {math.prod(self.shape)} values. Images are "
            "channels-first, (c, h, w)."
        )


def check_input_shape(input_shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of one sample as a tuple of positive ints."""
    try:
        sides = tuple(operator.index(side) for side in input_shape)
    except TypeError:
        raise TypeError(
            "input_shape must be a tuple of whole numbers such as (64,) or (1, 28, 28), got "
            f"{input_shape!r}."
        ) from None
    if not sides or min(sides) < 1:
        raise ValueError(
            "input_shape is the shape of one sample, without the batch axis, for example (64,) "
            f"or (1, 28, 28), with positive entries; got {input_shape!r}."
        )
    return sides


def check_image_shape(shape: tuple[int, ...], network: nn.Module) -> None:
    """Raise unless shape is (c, h, w)."""
    if len(shape) != 3:
        raise ValueError(
            f"{type(network).__name__} works on images: input_shape must be (h, w) or (c, h, w), "
            f"got {shape}. Use MLP for other data."
        )


def fully_connected(
    n_inputs: int, sizes: Sequence[int], dropout: float | None = None
) -> tuple[list[nn.Module], int]:
    """Return Linear + ReLU layers, with dropout after the first if asked, and their width."""
    if not isinstance(sizes, Iterable):
        raise TypeError(f"hidden_sizes must be a sequence such as (100, 100), got {sizes!r}.")
    layers: list[nn.Module] = []
    for i, size in enumerate(sizes):
        size = check_positive_int(size, "every entry of hidden_sizes")
        layers += [nn.Linear(n_inputs, size), nn.ReLU()]
        # Present even at rate 0, so that the names in the state dict do not depend on the rate.
        if i == 0 and dropout is not None:
            layers.append(nn.Dropout(check_probability(dropout, "dropout")))
        n_inputs = size
    return layers, n_inputs
