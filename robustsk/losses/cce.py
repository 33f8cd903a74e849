"""The loss of the Crossing Collaborative Ensemble (CCE), and the ensemble output."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from .classification import entropy, per_sample_ce

_INDICATORS = ("soft", "hard")


def cce_member_loss(
    logits_clean: Tensor,
    logits_own: Tensor,
    logits_cross: Sequence[Tensor],
    y: Tensor,
    *,
    lambda_pm: float = 1.0,
    lambda_dm: float = 1.0,
    indicator: str = "soft",
    detach_indicator: bool = True,
    double_softmax: bool = False,
    own_weight: float = 1.0,
    classification_loss: Callable | None = None,
) -> Tensor:
    r"""CCE loss of one ensemble member, per sample.

    Parameters
    ----------
    logits_clean : Tensor of shape (n_samples, n_classes)
        Logits of the member on the clean batch.
    logits_own : Tensor of shape (n_samples, n_classes)
        Logits of the member on the batch that attacks this member.
    logits_cross : sequence of Tensor of shape (n_samples, n_classes)
        Logits of the member on the batches that attack each of the *other* members. May be empty
        (an ensemble of one); the cross term is then dropped.
    y : Tensor of shape (n_samples,), dtype int64
        True classes.
    lambda_pm : float, default=1.0
        Weight of promoting: cross-entropy on the cross examples the member gets right.
    lambda_dm : float, default=1.0
        Weight of demoting: entropy on the cross examples the member gets wrong.
    indicator : {"soft", "hard"}, default="soft"
        How being right is measured: the probability of the true class, or one where the member
        predicts the true class and zero elsewhere.
    detach_indicator : bool, default=True
        Whether the soft indicator is a constant for the gradient. The hard one always is.
    double_softmax : bool, default=False
        Whether promoting and demoting are fed the probabilities as if they were logits, as in the
        authors' code (with `detach_indicator` off). Both are then bounded: neither loss nor
        entropy comes closer to zero than ``log(e + n_classes - 1) - 1``.
    own_weight : float, default=1.0
        Weight of the cross-entropy on the batch that attacks this member.
    classification_loss : callable, default=None
        ``f(logits, y)`` returning one value per sample. None means cross-entropy.

    Returns
    -------
    Tensor of shape (n_samples,)
        Loss per sample; it can be negative.

    Raises
    ------
    ValueError
        If `indicator` is unknown.

    See Also
    --------
    cce_loss : The sum over members.

    Notes
    -----
    For member :math:`n` of :math:`N`, with :math:`x_a^i` the example that attacks member
    :math:`i`, :math:`s_{n,i}` the indicator and :math:`w` = `own_weight`,

    .. math:: L^n = \mathrm{CE}(p^n(x), y) + w\, \mathrm{CE}(p^n(x_a^n), y)
              + \frac{1}{N-1} \sum_{i \ne n} \left[
              \lambda_{pm}\, s_{n,i}\, \mathrm{CE}(p^n(x_a^i), y)
              - \lambda_{dm}\, (1 - s_{n,i})\, H(p^n(x_a^i)) \right].

    The weights (1, 1) are the robust mode of [1]_, (0, 5) its detection mode, whose apparent
    robustness rests on gradient masking, and (0, 0) trains the members independently.

    References
    ----------
    .. [1] Bui, A. T., Le, T., Zhao, H., Montague, P., deVel, O., Abraham, T. and Phung, D. (2021).
       Improving ensemble robustness by collaboratively promoting and demoting adversarial
       robustness. AAAI. Eq. 5.

    Examples
    --------
    >>> import torch
    >>> from robustsk.losses import cce_member_loss
    >>> perfect = torch.tensor([[100.0, 0.0, 0.0, 0.0]])
    >>> cross = torch.tensor([[0.7, 0.1, 0.1, 0.1]]).log()
    >>> loss = cce_member_loss(perfect, perfect, [cross], torch.tensor([0]))
    >>> round(loss.item(), 5)  # 0.7 * 0.356675 - 0.3 * 0.940448
    -0.03246
    """
    if indicator not in _INDICATORS:
        raise ValueError(f"indicator must be one of {_INDICATORS}, got {indicator!r}.")
    ce = per_sample_ce if classification_loss is None else classification_loss
    loss = ce(logits_clean, y) + own_weight * ce(logits_own, y)
    for cross in logits_cross:
        secure = _indicator(cross, y, indicator, detach_indicator)
        if double_softmax:
            p = cross.softmax(dim=1)
            uncertainty, cross = -(p * log_softmax(p, dim=1)).sum(dim=1), p
        else:
            uncertainty = entropy(cross)
        promote = lambda_pm * secure * ce(cross, y)
        demote = lambda_dm * (1 - secure) * uncertainty
        loss = loss + (promote - demote) / len(logits_cross)
    return loss


def cce_loss(
    logits: Sequence[Sequence[Tensor]] | Tensor,
    y: Tensor,
    *,
    lambda_pm: float = 1.0,
    lambda_dm: float = 1.0,
    indicator: str = "soft",
    detach_indicator: bool = True,
    double_softmax: bool = False,
    own_weight: float = 1.0,
    classification_loss: Callable | None = None,
) -> Tensor:
    r"""Total CCE loss of an ensemble, per sample.

    Parameters
    ----------
    logits : nested sequence, or Tensor of shape (n_members, n_members + 1, n_samples, n_classes)
        ``logits[n][s]`` are the logits, shape (n_samples, n_classes), of member ``n`` on source
        ``s``: the clean batch for ``s = 0``, and for ``s = 1 + i`` the batch that attacks member
        ``i``.
    y : Tensor of shape (n_samples,), dtype int64
        True classes.
    lambda_pm : float, default=1.0
        Weight of promoting, see :func:`cce_member_loss`.
    lambda_dm : float, default=1.0
        Weight of demoting, see :func:`cce_member_loss`.
    indicator : {"soft", "hard"}, default="soft"
        How being right is measured, see :func:`cce_member_loss`.
    detach_indicator : bool, default=True
        Whether the soft indicator is a constant for the gradient.
    double_softmax : bool, default=False
        Whether probabilities are taken for logits, see :func:`cce_member_loss`.
    own_weight : float, default=1.0
        Weight of the cross-entropy on each member's own batch.
    classification_loss : callable, default=None
        ``f(logits, y)`` returning one value per sample. None means cross-entropy.

    Returns
    -------
    Tensor of shape (n_samples,)
        Loss per sample, summed over the members.

    Raises
    ------
    ValueError
        If there is no member, if a member does not come with ``n_members + 1`` sources, or if
        `indicator` is unknown.

    Notes
    -----
    .. math:: L = \sum_{n=1}^{N} L^n

    The loss of a member depends on the logits of that member alone, so for members without
    shared parameters one optimiser over the whole ensemble equals one per member.

    References
    ----------
    .. [1] Bui, A. T., Le, T., Zhao, H., Montague, P., deVel, O., Abraham, T. and Phung, D. (2021).
       Improving ensemble robustness by collaboratively promoting and demoting adversarial
       robustness. AAAI. Eq. 5.

    Examples
    --------
    Two members with uniform outputs over two classes. Every cross-entropy and entropy is log 2;
    for each member the two on the cross examples cancel, which leaves the two others:

    >>> import torch
    >>> from robustsk.losses import cce_loss
    >>> cce_loss(torch.zeros(2, 3, 1, 2), torch.tensor([0]))  # 4 log 2
    tensor([2.7726])
    """
    n_members = len(logits)
    if n_members == 0 or any(len(sources) != n_members + 1 for sources in logits):
        raise ValueError(
            "logits must hold, for each of the n_members members, n_members + 1 sources; got "
            f"{[len(sources) for sources in logits]} sources."
        )
    return sum(
        cce_member_loss(
            sources[0],
            sources[1 + n],
            [sources[1 + i] for i in range(n_members) if i != n],
            y,
            lambda_pm=lambda_pm,
            lambda_dm=lambda_dm,
            indicator=indicator,
            detach_indicator=detach_indicator,
            double_softmax=double_softmax,
            own_weight=own_weight,
            classification_loss=classification_loss,
        )
        for n, sources in enumerate(logits)
    )


def ensemble_logits(member_logits: Tensor | Sequence[Tensor]) -> Tensor:
    r"""Log of the mean softmax output of the members of an ensemble.

    Parameters
    ----------
    member_logits : Tensor of shape (n_members, n_samples, n_classes), or sequence of Tensor
        Finite logits of each member, (n_samples, n_classes) each if a sequence.

    Returns
    -------
    Tensor of shape (n_samples, n_classes)
        Log-probabilities of the ensemble. They serve as its logits: their softmax is the mean of
        the members' probabilities.

    Notes
    -----
    .. math:: \log\Big(\frac{1}{N} \sum_{n=1}^{N} \mathrm{softmax}(z^n)_k\Big)
              = \mathrm{logsumexp}_n\,(\log\mathrm{softmax}(z^n)_k) - \log N

    Evaluated on the right-hand side, so that probabilities too small to be represented still give
    finite logits and gradients.

    References
    ----------
    .. [1] Bui, A. T., Le, T., Zhao, H., Montague, P., deVel, O., Abraham, T. and Phung, D. (2021).
       Improving ensemble robustness by collaboratively promoting and demoting adversarial
       robustness. AAAI.

    Examples
    --------
    >>> import torch
    >>> from robustsk.losses import ensemble_logits
    >>> members = torch.tensor([[[0.5, 0.5]], [[0.1, 0.9]]]).log()
    >>> ensemble_logits(members).exp()
    tensor([[0.3000, 0.7000]])
    """
    if not isinstance(member_logits, torch.Tensor):
        member_logits = torch.stack(list(member_logits))
    log_probabilities = log_softmax(member_logits, dim=-1)
    return log_probabilities.logsumexp(dim=0) - math.log(len(member_logits))


def _indicator(logits, y, kind, detach):
    if kind == "hard":
        return (logits.argmax(dim=1) == y).to(logits.dtype)
    # Through cross_entropy rather than softmax, so that it shares the stable log.
    secure = (-per_sample_ce(logits, y)).exp()
    return secure.detach() if detach else secure
