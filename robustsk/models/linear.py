"""Classifier layers other than ``nn.Linear``."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from .._validation import check_positive_int


class CosineLinear(nn.Module):
    """Normalised classifier: the logits are scaled cosines.

    Logit j is ``scale * cos(w_j, z)``, with w_j row j of the weight and z the representation.
    There is no bias. Neither the length of z nor that of w_j matters, so an attack can gain
    nothing by making the representation longer. Either normalisation can be left out.

    Parameters
    ----------
    in_features : int
        Length of the representation.
    n_classes : int
        Number of classes.
    scale : float, default=5.0
        Positive factor of the cosines, the inverse temperature of the softmax that follows.
    feature_norm : bool, default=True
        Whether z is divided by its length.
    weight_norm : bool, default=True
        Whether w_j is divided by its length.

    Attributes
    ----------
    weight : nn.Parameter of shape (n_classes, in_features)
        One direction per class, initialised like that of ``nn.Linear``. It is kept as it is and
        normalised in ``forward`` only.
    in_features, out_features : int
        As in ``nn.Linear``.
    scale, feature_norm, weight_norm : float, bool and bool
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

    def __init__(
        self,
        in_features: int,
        n_classes: int,
        scale: float = 5.0,
        feature_norm: bool = True,
        weight_norm: bool = True,
    ) -> None:
        super().__init__()
        self.in_features = check_positive_int(in_features, "in_features")
        self.out_features = check_positive_int(n_classes, "n_classes")
        self.scale = _check_scale(scale)
        self.feature_norm = bool(feature_norm)
        self.weight_norm = bool(weight_norm)
        self.weight = nn.Parameter(torch.empty(self.out_features, self.in_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights, uniform as in ``nn.Linear``."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Return the logits of z: shape (n, in_features) to shape (n, n_classes)."""
        weight = self.weight
        if self.feature_norm:
            z = F.normalize(z, dim=-1, eps=1e-12)
        if self.weight_norm:
            weight = F.normalize(weight, dim=1, eps=1e-12)
        return self.scale * F.linear(z, weight)

    def extra_repr(self) -> str:
        """Describe the layer in its printed form."""
        text = (
            f"in_features={self.in_features}, n_classes={self.out_features}, scale={self.scale:g}"
        )
        for name in ("feature_norm", "weight_norm"):
            if not getattr(self, name):
                text += f", {name}=False"
        return text


def max_mahalanobis_centers(n_classes: int, n_features: int, scale: float = 10.0) -> torch.Tensor:
    """Return points on a sphere that are as far apart as can be.

    With up to ``n_features + 1`` classes they are the corners of a regular simplex: any two have
    the inner product ``-scale**2 / (n_classes - 1)``, and their sum is zero. For more classes the
    largest inner product of any two is minimised numerically.

    Parameters
    ----------
    n_classes : int
        Number of points, at least 2.
    n_features : int
        Number of coordinates.
    scale : float, default=10.0
        Their distance from the origin.

    Returns
    -------
    Tensor of float64, of shape (n_classes, n_features)
        The same for the same arguments.

    Raises
    ------
    ValueError
        If ``scale`` is not a positive finite number or a size is not positive.

    References
    ----------
    .. [1] T. Pang, K. Xu, Y. Dong, C. Du, N. Chen and J. Zhu, "Rethinking softmax cross-entropy
       loss for adversarial robustness", ICLR 2020, Section 3.2.
    .. [2] T. Pang, C. Du and J. Zhu, "Max-Mahalanobis linear discriminant analysis networks",
       ICML 2018, Algorithm 1.

    Examples
    --------
    >>> from robustsk.models import max_mahalanobis_centers
    >>> max_mahalanobis_centers(3, 2, scale=2.0)
    tensor([[ 2.0000,  0.0000],
            [-1.0000,  1.7321],
            [-1.0000, -1.7321]], dtype=torch.float64)
    """
    n_classes = check_positive_int(n_classes, "n_classes")
    n_features = check_positive_int(n_features, "n_features")
    scale = _check_scale(scale)
    if n_classes < 2:
        raise ValueError(f"n_classes must be at least 2, got {n_classes}.")
    if n_classes > n_features + 1:
        return scale * _spread(n_classes, n_features)
    centers = torch.zeros(n_classes, n_features, dtype=torch.float64)
    centers[0, 0] = 1.0
    for k in range(1, n_classes):
        for j in range(min(k, n_features)):
            inner = centers[k] @ centers[j]
            centers[k, j] = -(1 / (n_classes - 1) + inner) / centers[j, j]
        if k < n_classes - 1:
            centers[k, k] = (1 - centers[k] @ centers[k]).clamp_min(0).sqrt()
    return scale * centers


def _spread(n_classes, n_features):
    """Minimise the largest inner product of any two of some unit vectors."""
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(n_classes, n_features, dtype=torch.float64, generator=generator)
    itself = torch.eye(n_classes, dtype=torch.bool)
    with torch.enable_grad():
        points.requires_grad_(True)
        optimizer = torch.optim.Adam([points], lr=0.1)
        # the maximum, smoothed less and less, since its own gradient only moves two points
        for sharpness in (1.0, 10.0, 100.0, 1000.0):
            for _ in range(300):
                unit = F.normalize(points, dim=1)
                inner = (unit @ unit.T).masked_fill(itself, -torch.inf)
                optimizer.zero_grad()
                (torch.logsumexp(sharpness * inner.flatten(), 0) / sharpness).backward()
                optimizer.step()
            optimizer.param_groups[0]["lr"] /= 4
    return F.normalize(points.detach(), dim=1)


class MaxMahalanobisLinear(nn.Module):
    """Classifier with fixed centers: the logits are negative squared distances.

    A linear map, which is learned, takes the representation to ``z``; logit j is
    ``-||z - mu_j||**2`` with the centers ``mu`` of :func:`max_mahalanobis_centers`, which are not.

    Parameters
    ----------
    in_features : int
        Length of the representation.
    n_classes : int
        Number of classes, at least 2.
    n_features : int, default=None
        Length of ``z``. None means ``in_features``, or ``n_classes - 1`` if that is more, which
        is what the regular arrangement of the centers takes.
    scale : float, default=10.0
        Distance of the centers from the origin.

    Attributes
    ----------
    weight, bias : nn.Parameter of shape (n_features, in_features) and (n_features,)
        The linear map, initialised like ``nn.Linear``.
    centers : Tensor of shape (n_classes, n_features)
        One center per class; a buffer.
    in_features, n_features, out_features : int
        Sizes; the last is the number of classes.

    Raises
    ------
    ValueError
        If ``scale`` is not a positive finite number or a size is not positive.

    References
    ----------
    .. [1] T. Pang, K. Xu, Y. Dong, C. Du, N. Chen and J. Zhu, "Rethinking softmax cross-entropy
       loss for adversarial robustness", ICLR 2020, Section 3.

    Examples
    --------
    >>> import torch
    >>> from robustsk.models import MaxMahalanobisLinear
    >>> layer = MaxMahalanobisLinear(4, 3, scale=2.0)
    >>> logits = layer(torch.ones(5, 4))
    >>> logits.shape, bool((logits <= 0).all())
    (torch.Size([5, 3]), True)
    """

    def __init__(
        self,
        in_features: int,
        n_classes: int,
        n_features: int | None = None,
        scale: float = 10.0,
    ) -> None:
        super().__init__()
        self.in_features = check_positive_int(in_features, "in_features")
        self.out_features = check_positive_int(n_classes, "n_classes")
        if n_features is None:
            n_features = max(self.in_features, self.out_features - 1)
        self.n_features = check_positive_int(n_features, "n_features")
        self.scale = _check_scale(scale)
        centers = max_mahalanobis_centers(self.out_features, self.n_features, self.scale)
        self.register_buffer("centers", centers.to(torch.get_default_dtype()))
        self.weight = nn.Parameter(torch.empty(self.n_features, self.in_features))
        self.bias = nn.Parameter(torch.empty(self.n_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights, uniform as in ``nn.Linear``."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        bound = 1 / math.sqrt(self.in_features)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Return the logits of z: shape (n, in_features) to shape (n, n_classes)."""
        return negative_distances(F.linear(z, self.weight, self.bias), self.centers)

    def extra_repr(self) -> str:
        """Describe the layer in its printed form."""
        return (
            f"in_features={self.in_features}, n_classes={self.out_features}, "
            f"n_features={self.n_features}, scale={self.scale:g}"
        )


def negative_distances(z: torch.Tensor, centers: torch.Tensor) -> torch.Tensor:
    """Return ``-||z_i - mu_j||**2``, shape (n, n_classes)."""
    # not by way of inner products, whose rounding is as large as a small distance
    return -(z.unsqueeze(-2) - centers.to(z)).square().sum(-1)


def _check_scale(scale):
    value = float(scale)
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"scale must be a positive finite number, got {scale!r}.")
    return value
