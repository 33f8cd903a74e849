"""The regulariser of adaptive diversity promoting (ADP)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from .cce import ensemble_logits
from .classification import entropy, per_sample_ce


def log_det_diversity(
    member_logits: Sequence[Tensor] | Tensor, y: Tensor, *, det_offset: float = 1e-6
) -> Tensor:
    r"""How differently the members of an ensemble rank the wrong classes, per sample.

    Parameters
    ----------
    member_logits : sequence of Tensor, or Tensor of shape (n_members, n_samples, n_classes)
        Finite logits of each member, (n_samples, n_classes) each if a sequence; at least two
        classes.
    y : Tensor of shape (n_samples,), dtype int64
        True classes.
    det_offset : float, default=1e-6
        What is added to the diagonal, so that the logarithm is finite for members that agree.

    Returns
    -------
    Tensor of shape (n_samples,)
        At most ``n_members * log(1 + det_offset)``, which orthogonal predictions reach. Identical
        members give ``log(n_members + det_offset) + (n_members - 1) * log(det_offset)``.

    See Also
    --------
    adp_regularizer : The regulariser it is part of.

    Notes
    -----
    .. math:: \log\det(\tilde M^\top \tilde M + \delta I)

    where column :math:`n` of :math:`\tilde M` is the prediction of member :math:`n` without its
    entry for the true class, of unit Euclidean length. It is evaluated on the logits, in double
    precision: with the probability of the true class close to one, what is left of the prediction
    would be lost in rounding, and a determinant of :math:`10^{-6}` would be for members that
    agree. With two classes there is one wrong class to predict, and the value is constant; with
    more members than wrong classes they cannot all be orthogonal.

    References
    ----------
    .. [1] Pang, T., Xu, K., Du, C., Chen, N. and Zhu, J. (2019). Improving adversarial robustness
       via promoting ensemble diversity. ICML. Eq. 2.

    Examples
    --------
    >>> import torch
    >>> from robustsk.losses import log_det_diversity
    >>> p = torch.tensor([[[0.6, 0.3, 0.1]], [[0.6, 0.1, 0.3]]])
    >>> log_det_diversity(p.log(), torch.tensor([0]))  # log(1 - 0.6 ** 2)
    tensor([-0.4463])
    """
    logits = _stacked(member_logits)
    wrong = one_hot(y, logits.shape[-1]) == 0
    z = logits.double().masked_fill(~wrong, -torch.inf)
    directions = (z - 0.5 * (2 * z).logsumexp(dim=-1, keepdim=True)).exp().transpose(0, 1)
    gram = directions @ directions.mT
    gram = gram + det_offset * torch.eye(len(logits), dtype=gram.dtype, device=gram.device)
    return torch.linalg.slogdet(gram)[1].to(logits.dtype)


def adp_regularizer(
    member_logits: Sequence[Tensor] | Tensor,
    y: Tensor,
    *,
    alpha: float = 2.0,
    beta: float = 0.5,
    det_offset: float = 1e-6,
) -> Tensor:
    r"""Diversity that ADP promotes: entropy of the ensemble and spread of the members, per sample.

    Parameters
    ----------
    member_logits : sequence of Tensor, or Tensor of shape (n_members, n_samples, n_classes)
        Finite logits of each member, (n_samples, n_classes) each if a sequence.
    y : Tensor of shape (n_samples,), dtype int64
        True classes.
    alpha : float, default=2.0
        Weight of the entropy of the mean prediction.
    beta : float, default=0.5
        Weight of the diversity of the predictions of the wrong classes.
    det_offset : float, default=1e-6
        See :func:`log_det_diversity`.

    Returns
    -------
    Tensor of shape (n_samples,)
        To be maximised.

    See Also
    --------
    adp_loss : The loss of an ensemble, less this.

    Notes
    -----
    .. math:: \alpha\, H\Big(\frac{1}{N} \sum_{n=1}^{N} p^n\Big)
              + \beta\, \log\det(\tilde M^\top \tilde M + \delta I)

    References
    ----------
    .. [1] Pang, T., Xu, K., Du, C., Chen, N. and Zhu, J. (2019). Improving adversarial robustness
       via promoting ensemble diversity. ICML. Eq. 3. The diversity there is a determinant; its
       logarithm is what the article trains with.

    Examples
    --------
    >>> import torch
    >>> from robustsk.losses import adp_regularizer
    >>> adp_regularizer(torch.zeros(1, 1, 3), torch.tensor([0]))  # 2 log 3
    tensor([2.1972])
    """
    logits = _stacked(member_logits)
    spread = log_det_diversity(logits, y, det_offset=det_offset)
    return alpha * entropy(ensemble_logits(logits)) + beta * spread


def adp_loss(
    member_logits: Sequence[Tensor] | Tensor,
    y: Tensor,
    *,
    alpha: float = 2.0,
    beta: float = 0.5,
    det_offset: float = 1e-6,
    classification_loss: Callable | None = None,
) -> Tensor:
    r"""ADP loss of an ensemble on one batch, per sample.

    Parameters
    ----------
    member_logits : sequence of Tensor, or Tensor of shape (n_members, n_samples, n_classes)
        Finite logits of each member, (n_samples, n_classes) each if a sequence.
    y : Tensor of shape (n_samples,), dtype int64
        True classes.
    alpha, beta, det_offset : float
        See :func:`adp_regularizer`.
    classification_loss : callable, default=None
        ``f(logits, y)`` returning one value per sample. None means cross-entropy.

    Returns
    -------
    Tensor of shape (n_samples,)
        Loss per sample; it can be negative.

    Notes
    -----
    .. math:: \sum_{n=1}^{N} \mathrm{CE}(p^n, y) - \mathrm{ADP}_{\alpha, \beta}(p^1, \dots, p^N, y)

    References
    ----------
    .. [1] Pang, T., Xu, K., Du, C., Chen, N. and Zhu, J. (2019). Improving adversarial robustness
       via promoting ensemble diversity. ICML. Eq. 4.

    Examples
    --------
    >>> import torch
    >>> from robustsk.losses import adp_loss
    >>> adp_loss(torch.zeros(1, 1, 3), torch.tensor([0]))  # log 3 - 2 log 3
    tensor([-1.0986])
    """
    logits = _stacked(member_logits)
    ce = per_sample_ce if classification_loss is None else classification_loss
    members = sum(ce(z, y) for z in logits)
    return members - adp_regularizer(logits, y, alpha=alpha, beta=beta, det_offset=det_offset)


def _stacked(member_logits):
    if isinstance(member_logits, Tensor):
        return member_logits
    return torch.stack(list(member_logits))
