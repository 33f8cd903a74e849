"""Heads for contrastive training: used by the loss, not by predictions."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from .._validation import check_positive_int
from .base import fully_connected

_HIDDEN = {"linear": (), "mlp": (200,)}


class ProjectionHead(nn.Module):
    """A linear map, or an MLP with ReLU, without bias.

    Parameters
    ----------
    in_features : int
        Length of a representation.
    out_features : int, default=128
        Length of its projection.
    hidden_sizes : sequence of int, default=()
        Widths of the hidden layers.
    bias : bool, default=False
        Whether layers have a bias.

    References
    ----------
    Bui, Le, Zhao, Montague, Camtepe and Phung (2021), "Understanding and
    achieving efficient robustness with adversarial supervised contrastive
    learning", arXiv:2101.10027, Appendix C.1: a linear map to 128 features, or
    200 hidden and 128 features.

    Examples
    --------
    >>> import torch
    >>> from robustsk.models import ProjectionHead
    >>> ProjectionHead(64, hidden_sizes=(200,))(torch.zeros(5, 64)).shape
    torch.Size([5, 128])
    """

    def __init__(self, in_features, out_features=128, hidden_sizes=(), bias=False):
        super().__init__()
        hidden, width = fully_connected(
            check_positive_int(in_features, "in_features"), hidden_sizes
        )
        last = nn.Linear(width, check_positive_int(out_features, "out_features"))
        self.layers = nn.Sequential(*hidden, last)
        if not bias:
            for layer in self.layers:
                if isinstance(layer, nn.Linear):
                    layer.bias = None

    def forward(self, z: Tensor) -> Tensor:
        """Return the projections of representations z of shape (n, in_features)."""
        return self.layers(z)


def make_projection(spec: Any, in_features: int, **params: Any) -> nn.Module | None:
    """Turn what a user passes as a projection into a module.

    Parameters
    ----------
    spec : {None, "linear", "mlp"} or callable
        None is no projection; "linear" and "mlp" are those of
        :class:`ProjectionHead` without and with a hidden layer of 200 units; a
        class or function is called with the number of features.
    in_features : int
        Length of a representation.
    **params
        Options of the projection, e.g. ``out_features=64``.

    Returns
    -------
    torch.nn.Module or None

    Raises
    ------
    ValueError, TypeError
        If there is no such projection.

    Examples
    --------
    >>> from torch import nn
    >>> from robustsk.models import make_projection
    >>> make_projection("linear", 64, out_features=32).layers
    Sequential(
      (0): Linear(in_features=64, out_features=32, bias=False)
    )
    >>> make_projection(nn.Flatten, 1)
    Flatten(start_dim=1, end_dim=-1)
    """
    if spec is None:
        return None
    if isinstance(spec, str):
        if spec not in _HIDDEN:
            raise ValueError(
                f"projection must be None, one of {sorted(_HIDDEN)}, or a class or function that "
                f"takes the number of features, got {spec!r}."
            )
        return ProjectionHead(in_features, **{"hidden_sizes": _HIDDEN[spec], **params})
    made = spec(in_features, **params) if _makes(spec) else None
    if not isinstance(made, nn.Module):
        raise TypeError(
            "projection must be None, a name, or a class or function that takes the number of "
            f"features and returns a torch.nn.Module, got {spec!r}."
        )
    return made


def _makes(spec):
    return callable(spec) and (inspect.isclass(spec) or not isinstance(spec, nn.Module))
