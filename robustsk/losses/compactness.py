"""Distances between representations: of a sample and its attack, and within a batch."""

from __future__ import annotations

import math
import numbers

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

_REDUCTIONS = ("mean", "sum")
_PAIRS = ("clean", "clean_adv", "all")


def local_compactness(z: Tensor, z_adv: Tensor, p: float = 1, reduction: str = "mean") -> Tensor:
    r"""Distance between the representations of a sample and of its adversarial example.

    Parameters
    ----------
    z : Tensor of shape (n_samples, n_features)
        Representations of the clean samples.
    z_adv : Tensor of shape (n_samples, n_features)
        Representations of the attacked samples.
    p : float, default=1
        Order of the norm, at least 1; ``math.inf`` for the largest difference.
    reduction : {"mean", "sum"}, default="mean"
        "sum" is the norm itself; "mean" divides it by ``n_features ** (1 / p)``, so that its size
        does not depend on the number of features.

    Returns
    -------
    Tensor of shape (n_samples,)
        Not negative. The gradient flows to both arguments.

    Raises
    ------
    ValueError
        If the shapes differ, or `p` or `reduction` is not valid.

    See Also
    --------
    global_compactness : Compares all samples of a batch.

    Notes
    -----
    .. math:: \lVert f(x) - f(x') \rVert_p

    The article leaves `p` open; its authors' code takes the mean of the absolute differences, the
    defaults here.

    References
    ----------
    .. [1] Bui, A., Le, T., Zhao, H., Montague, P., deVel, O., Abraham, T. and Phung, D. (2020).
       Improving adversarial robustness by enforcing local and global compactness. ECCV. Eq. 1.

    Examples
    --------
    >>> import torch
    >>> from robustsk.losses import local_compactness
    >>> z, z_adv = torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, -4.0]])
    >>> local_compactness(z, z_adv), local_compactness(z, z_adv, p=2, reduction="sum")
    (tensor([3.5000]), tensor([5.]))
    """
    _check_same_shape(z, z_adv)
    scale = _scale(z, p, reduction)
    # Eq. 1
    return scale * torch.linalg.vector_norm(z - z_adv, p, dim=1)


def global_compactness(
    z: Tensor,
    y: Tensor,
    z_adv: Tensor | None = None,
    alpha: float = 0.99,
    p: float = 1,
    reduction: str = "mean",
    pairs: str = "clean",
    *,
    sample_weight: Tensor | None = None,
) -> Tensor:
    r"""Distances within classes, less a small share of those between classes.

    Parameters
    ----------
    z : Tensor of shape (n_samples, n_features)
        Representations of the clean samples of a batch.
    y : Tensor of shape (n_samples,)
        Classes.
    z_adv : Tensor of shape (n_samples, n_features), default=None
        Representations of the attacked samples; not needed with ``pairs="clean"``.
    alpha : float, default=0.99
        Pairs of one class have weight 1 and others ``(alpha - 1) / alpha``; in (0, 1].
    p, reduction
        As in :func:`local_compactness`.
    pairs : {"clean", "clean_adv", "all"}, default="clean"
        Clean samples with clean ones, clean with attacked ones, or all pairs of the union of both.
    sample_weight : Tensor of shape (n_samples,), default=None
        Weights of the samples as partners of others; the mean below must be weighted as well. A
        sample of weight 2 does what two would do.

    Returns
    -------
    Tensor of shape (n_samples,)
        Its mean over the batch is the term of the source. It may be negative, and has no lower
        bound: with ``alpha < 1`` it falls as the representations of different classes grow apart.

    Raises
    ------
    ValueError
        If shapes do not agree or a parameter is not valid.

    See Also
    --------
    local_compactness : Compares a sample with its attack only.

    Notes
    -----
    .. math:: \frac{1}{n^2} \sum_{i,j} w_{ij} \lVert z_i - z_j \rVert_p, \qquad
              w_{ij} = 1 \text{ if } y_i = y_j, \text{ else } \frac{\alpha - 1}{\alpha}

    Pairs of a sample with itself are among them. The article says ``pairs="clean"``, the authors'
    code compares clean with attacked samples.

    References
    ----------
    .. [1] Bui, A., Le, T., Zhao, H., Montague, P., deVel, O., Abraham, T. and Phung, D. (2020).
       Improving adversarial robustness by enforcing local and global compactness. ECCV. Eqs. 2
       and 3.

    Examples
    --------
    >>> import torch
    >>> from robustsk.losses import global_compactness
    >>> z, y = torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([0, 0, 1])
    >>> global_compactness(z, y, alpha=0.5)  # (0 + 1 - 5) / 3, ...
    tensor([-1.3333, -1.0000, -3.0000])
    """
    if pairs not in _PAIRS:
        raise ValueError(f"pairs must be one of {_PAIRS}, got {pairs!r}.")
    _check_pairs(y, len(z), alpha)
    if pairs != "clean":
        if z_adv is None:
            raise ValueError(f"pairs={pairs!r} needs z_adv, the representations under attack.")
        _check_same_shape(z, z_adv)
    scale = _scale(z, p, reduction)
    rows, columns = {
        "clean": lambda: (z, z),
        "clean_adv": lambda: (z, z_adv),
        "all": lambda: (torch.cat([z, z_adv]),) * 2,
    }[pairs]()
    n = len(z)
    # not by matrix products, whose rounding would keep a sample apart from its copy
    distance = torch.cdist(
        rows, columns, p=float(p), compute_mode="donot_use_mm_for_euclid_dist"
    ).reshape(len(rows) // n, n, len(columns) // n, n)
    # Eq. 3
    return _over_partners(distance.mean((0, 2)), y, alpha, sample_weight, scale)


def global_smoothness(
    logits: Tensor,
    logits_adv: Tensor,
    y: Tensor,
    alpha: float = 0.99,
    *,
    sample_weight: Tensor | None = None,
) -> Tensor:
    r"""Divergences of predictions within classes, less a small share of those between classes.

    Parameters
    ----------
    logits : Tensor of shape (n_samples, n_classes)
        Logits of the clean samples of a batch.
    logits_adv : Tensor of shape (n_samples, n_classes)
        Logits of the attacked samples.
    y : Tensor of shape (n_samples,)
        Classes.
    alpha, sample_weight
        As in :func:`global_compactness`.

    Returns
    -------
    Tensor of shape (n_samples,)
        Its mean over the batch is the term of the source. It may be negative. The gradient flows
        to both arguments; the source has it with clean logits that are constants.

    Raises
    ------
    ValueError
        If shapes do not agree or `alpha` is not valid.

    See Also
    --------
    global_compactness : The same for representations.
    kl_divergence : Compares a sample with its attack only.

    Notes
    -----
    .. math:: \frac{1}{n^2} \sum_{i,j} w_{ij}\, \mathrm{KL}(p(x_i)\,\|\,p(x_j'))

    with the weights of :func:`global_compactness`. It is a term of the authors' code alone, a
    cross-entropy there, whose gradient with respect to the attacked logits is that of the
    divergence.

    References
    ----------
    .. [1] Bui, A., Le, T., Zhao, H., Montague, P., deVel, O., Abraham, T. and Phung, D. (2020).
       Improving adversarial robustness by enforcing local and global compactness. ECCV. Eq. 2 for
       the weights.

    Examples
    --------
    >>> import torch
    >>> from robustsk.losses import global_smoothness
    >>> p = torch.tensor([[0.5, 0.5], [0.25, 0.75]])
    >>> global_smoothness(p.log(), p.log(), torch.tensor([0, 0]))  # 0.1438 / 2, 0.1308 / 2
    tensor([0.0719, 0.0654])
    """
    if logits.shape != logits_adv.shape or logits.ndim != 2:
        raise ValueError(
            "logits and logits_adv must have one shape (n_samples, n_classes), got "
            f"{tuple(logits.shape)} and {tuple(logits_adv.shape)}."
        )
    _check_pairs(y, len(logits), alpha)
    log_p = log_softmax(logits, dim=1)
    own = (log_p.exp() * log_p).sum(1, keepdim=True)
    divergence = own - log_p.exp() @ log_softmax(logits_adv, dim=1).T
    return _over_partners(divergence, y, alpha, sample_weight)


def _over_partners(values, y, alpha, sample_weight, scale=1.0):
    """Return the weighted means of what each sample (row) has with all others, shape (n,)."""
    same = (y[:, None] == y).to(values)
    # Eq. 2
    weight = same + (1 - same) * ((alpha - 1) / alpha)
    mass = values.new_ones(len(values)) if sample_weight is None else sample_weight.to(values)
    return scale * (values * weight) @ (mass / mass.sum())


def _check_pairs(y, n_samples, alpha):
    if not isinstance(alpha, numbers.Real) or not 0 < alpha <= 1:
        raise ValueError(f"alpha must be a number in (0, 1], got {alpha!r}.")
    if y.shape != (n_samples,):
        raise ValueError(f"y must have shape ({n_samples},), got {tuple(y.shape)}.")


def _scale(z, p, reduction):
    if reduction not in _REDUCTIONS:
        raise ValueError(f"reduction must be one of {_REDUCTIONS}, got {reduction!r}.")
    if not isinstance(p, numbers.Real) or not p >= 1:
        raise ValueError(f"p must be a number of at least 1, or infinity, got {p!r}.")
    if z.ndim != 2:
        raise ValueError(
            f"Representations must have shape (n_samples, n_features), got {tuple(z.shape)}: "
            "flatten(1) them first."
        )
    return 1.0 if reduction == "sum" or p == math.inf else z.shape[1] ** (-1 / p)


def _check_same_shape(z, z_adv):
    if z.shape != z_adv.shape:
        raise ValueError(
            f"z and z_adv must have one shape, got {tuple(z.shape)} and {tuple(z_adv.shape)}."
        )
