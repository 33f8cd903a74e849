"""Weights of samples by how long they withstand an attack."""

from __future__ import annotations

import math
import numbers

from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

_WEIGHTINGS = ("tanh", "sigmoid", "discrete")


def geometry_weights(
    kappa: Tensor,
    n_steps: int,
    lam: float = -1.0,
    weighting: str = "tanh",
    *,
    normalize: bool = True,
    sample_weight: Tensor | None = None,
) -> Tensor:
    r"""Weights of geometry-aware training: large for samples that an attack fools soon.

    Parameters
    ----------
    kappa : Tensor of shape (n_samples,)
        Iterates of the attack that were classified correctly, from 0 to `n_steps`.
    n_steps : int
        Number of steps of the attack.
    lam : float, default=-1.0
        Where the weight falls: it is one half (before normalisation) at
        ``kappa = n_steps * (1 + lam / 5) / 2``. Plus infinity gives equal weights; minus infinity,
        the limit of the normalised ones. Without effect on "discrete".
    weighting : {"tanh", "sigmoid", "discrete"}, default="tanh"
        See Notes.
    normalize : bool, default=True
        Whether the mean of the weights is brought to 1.
    sample_weight : Tensor of shape (n_samples,), default=None
        Weights of the samples in that mean, so that a sample of weight 2 counts as two.

    Returns
    -------
    Tensor of shape (n_samples,), dtype float64
        Not negative, and not increasing in `kappa`.

    Raises
    ------
    ValueError
        If `weighting` is unknown, or `lam` or `n_steps` is not valid.

    Notes
    -----
    With :math:`u = \lambda + 5 (1 - 2 \kappa / K)`, the weight before normalisation is

    .. math:: \tfrac12 (1 + \tanh u) = \sigma(2u), \qquad \sigma(u), \qquad
              \frac{K + 1 - \kappa}{K + 1}

    for "tanh" (Eq. 6 of [1]_), "sigmoid" and "discrete" (the authors' code). All is computed in log
    space: ``(1 + tanh(u)) / 2`` in float32 has no correct digit at ``lam=-4`` and ``kappa=K=10``,
    and is zero at ``lam=-5``.

    References
    ----------
    .. [1] Zhang, J., Zhu, J., Niu, G., Han, B., Sugiyama, M. and Kankanhalli, M. (2021).
       Geometry-aware instance-reweighted adversarial training. ICLR. Eq. 6, Algorithm 2.

    Examples
    --------
    >>> import torch
    >>> from robustsk.losses import geometry_weights
    >>> kappa = torch.tensor([0, 5, 10])
    >>> geometry_weights(kappa, 10, lam=0.0, normalize=False).numpy().round(4).tolist()
    [1.0, 0.5, 0.0]
    >>> round(geometry_weights(kappa, 10, lam=0.0).mean().item(), 12)
    1.0
    """
    if weighting not in _WEIGHTINGS:
        raise ValueError(f"weighting must be one of {_WEIGHTINGS}, got {weighting!r}.")
    if not isinstance(lam, numbers.Real) or math.isnan(lam):
        raise ValueError(f"lam must be a number, got {lam!r}.")
    if n_steps < 1:
        raise ValueError(f"n_steps must be at least 1, got {n_steps!r}.")
    kappa = kappa.double()
    if weighting == "discrete":
        log_weight = ((n_steps + 1 - kappa) / (n_steps + 1)).log()
        return mean_one(log_weight, sample_weight) if normalize else log_weight.exp()
    slope = 2.0 if weighting == "tanh" else 1.0
    geometry = slope * 5 * (1 - 2 * kappa / n_steps)
    # Eq. 6, for (1 + tanh(u)) / 2 is sigmoid(2 * u)
    argument = geometry + slope * lam
    if not normalize:
        return argument.sigmoid()
    # log(sigmoid) as it is, or less `slope * lam`, which normalisation takes out anyway and in
    # which the geometry would be lost where it is large
    log_weight = logsigmoid(argument) if lam > 0 else geometry - softplus(argument)
    return mean_one(log_weight, sample_weight)


def mean_one(log_weight: Tensor, sample_weight: Tensor | None = None) -> Tensor:
    """Return weights whose mean over the batch is 1.

    Parameters
    ----------
    log_weight : Tensor of shape (n_samples,)
        Their logarithms, up to a constant.
    sample_weight : Tensor of shape (n_samples,), default=None
        Weights of the samples in the mean.

    Returns
    -------
    Tensor of shape (n_samples,)
    """
    weight = (log_weight - log_weight.max()).exp()
    if sample_weight is None:
        return weight / weight.mean()
    sample_weight = sample_weight.to(weight)
    # as Algorithm 2 normalises, with samples that count as several
    return weight * (sample_weight.sum() / (sample_weight * weight).sum())
