"""Multilayer perceptron."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from .base import BaseNetwork, fully_connected


class MLP(BaseNetwork):
    """Multilayer perceptron with ReLU activations; flattens any input.

    Parameters
    ----------
    input_shape : tuple of int, default=(1, 28, 28)
        Shape of one sample, without the batch axis, for example ``(n_features,)``.
    n_classes : int, default=10
        Number of classes.
    hidden_sizes : sequence of int, default=(100, 100)
        Widths of the hidden layers. With ``()`` the network is multinomial logistic regression.
    mean, std : float or sequence of float, default=None
        Normalisation inside the network, see :class:`Normalize`: per feature for ``(n_features,)``
        and per channel for images.

    Examples
    --------
    >>> import torch
    >>> from robustsk.models import MLP
    >>> network = MLP((64,), 10, hidden_sizes=(32,))
    >>> network(torch.zeros(5, 64)).shape
    torch.Size([5, 10])
    >>> network.num_features
    32
    """

    def __init__(
        self,
        input_shape: Sequence[int] = (1, 28, 28),
        n_classes: int = 10,
        *,
        hidden_sizes: Sequence[int] = (100, 100),
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
    ) -> None:
        super().__init__(input_shape, n_classes, mean=mean, std=std)
        layers, self.num_features = fully_connected(math.prod(self.shape), hidden_sizes)
        self.features = nn.Sequential(nn.Flatten(), *layers)
        self.classifier = nn.Linear(self.num_features, self.n_classes)
