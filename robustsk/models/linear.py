"""Classifier layers other than ``nn.Linear``."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from robustsk.models.base import check_positive_int

__all__ = ["CosineLinear"]


class CosineLinear(nn.Module):
    """Normalised classifier: the logits are scaled cosines.

    Logit j is ``scale * cos(w_j, z)``, with w_j row j of the weight and z the representation.
    There is no bias. Neither the length of z nor that of w_j matters, so an attack can gain
    nothing by making the representation longer.

    Parameters
    ----------
    in_features : int
        Length of the representation.
    n_classes : int
        Number of classes.
    scale : float, default=5.0
        Positive factor of the cosines, the inverse temperature of the softmax that follows.

    Attributes
    ----------
    weight : nn.Parameter of shape (n_classes, in_features)
        One direction per class, initialised like that of ``nn.Linear``. It is kept as it is and
        normalised in ``forward`` only.
    in_features, out_features : int
        As in ``nn.Linear``.
    scale : float
        As given.

    Raises
    ------
    ValueError
        If ``scale`` is not a positive finite number or a size is not positive.

    Notes
    -----
    Lengths are floored at 1e-12, so a zero representation gets zero logits.

    References
    ----------
    .. [1] Hou, MSc thesis, University of Alberta, 2022, Section 3.4.1 (NCE).
    .. [2] T. Pang, X. Yang, Y. Dong, K. Xu, J. Zhu and H. Su, "Boosting adversarial training with
       hypersphere embedding", NeurIPS 2020, "The AT framework with HE" (with zero margin).

    Examples
    --------
    >>> import torch
    >>> from robustsk.models import CosineLinear
    >>> layer = CosineLinear(4, 3, scale=5.0)
    >>> z = torch.ones(2, 4)
    >>> torch.allclose(layer(z), layer(10 * z))
    True
    """

    def __init__(self, in_features: int, n_classes: int, scale: float = 5.0) -> None:
        super().__init__()
        self.in_features = check_positive_int(in_features, "in_features")
        self.out_features = check_positive_int(n_classes, "n_classes")
        self.scale = float(scale)
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"scale must be a positive finite number, got {scale!r}.")
        self.weight = nn.Parameter(torch.empty(self.out_features, self.in_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights, uniform as in ``nn.Linear``."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Return the logits of z: shape (n, in_features) to shape (n, n_classes)."""
        z = F.normalize(z, dim=-1, eps=1e-12)
        weight = F.normalize(self.weight, dim=1, eps=1e-12)
        return self.scale * F.linear(z, weight)

    def extra_repr(self) -> str:
        """Describe the layer in its printed form."""
        return (
            f"in_features={self.in_features}, n_classes={self.out_features}, scale={self.scale:g}"
        )
