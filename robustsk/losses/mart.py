"""The MART loss: boosted cross-entropy and a divergence that counts errors more."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from .classification import kl_divergence, per_sample_ce


def boosted_cross_entropy(
    logits: Tensor, y: Tensor, *, classification_loss: Callable | None = None
) -> Tensor:
    r"""Cross-entropy plus a penalty on the probability of the best wrong class, per sample.

    Parameters
    ----------
    logits : Tensor of shape (n_samples, n_classes)
        Logits of at least two classes.
    y : Tensor of shape (n_samples,), dtype int64
        True classes.
    classification_loss : callable, default=None
        ``f(logits, y)`` returning one value per sample, in the place of the first term. None
        means cross-entropy.

    Returns
    -------
    Tensor of shape (n_samples,)
        Loss per sample. With two classes it is twice the cross-entropy.

    See Also
    --------
    mart_loss : The loss it is part of.

    Notes
    -----
    .. math:: -\log p_y - \log\left(1 - \max_{k \ne y} p_k\right)

    The second logarithm is that of the sum of all the other probabilities, taken in log space: it
    is exact and finite where ``1 - p`` would round to zero.

    References
    ----------
    .. [1] Wang, Y., Zou, D., Yi, J., Bailey, J., Ma, X. and Gu, Q. (2020). Improving adversarial
       robustness requires revisiting misclassified examples. ICLR. Eq. 8.

    Examples
    --------
    >>> import torch
    >>> from robustsk.losses import boosted_cross_entropy
    >>> logits = torch.tensor([[0.5, 0.25, 0.25]]).log()
    >>> boosted_cross_entropy(logits, torch.tensor([0]))  # -log 0.5 - log 0.75
    tensor([0.9808])
    """
    if logits.shape[1] < 2:
        raise ValueError(
            "boosted_cross_entropy needs at least 2 classes, got logits of shape "
            f"{tuple(logits.shape)}."
        )
    ce = per_sample_ce if classification_loss is None else classification_loss
    log_p = log_softmax(logits, dim=1)
    best_wrong = log_p.detach().scatter(1, y[:, None], -torch.inf).argmax(dim=1, keepdim=True)
    # Eq. 8: -log p_y - log(1 - max_{k != y} p_k), where 1 - p_k is the sum of all the others
    return ce(logits, y) - log_p.scatter(1, best_wrong, -torch.inf).logsumexp(dim=1)


def mart_loss(
    logits: Tensor,
    logits_adv: Tensor,
    y: Tensor,
    beta: float = 6.0,
    *,
    boosted_on: str = "adversarial",
    kl_direction: str = "clean_adv",
    classification_loss: Callable | None = None,
) -> Tensor:
    r"""MART loss: it asks for consistency most where the clean sample is hardly recognised.

    Parameters
    ----------
    logits : Tensor of shape (n_samples, n_classes)
        Logits of the clean samples.
    logits_adv : Tensor of shape (n_samples, n_classes)
        Logits of the attacked samples.
    y : Tensor of shape (n_samples,), dtype int64
        True classes.
    beta : float, default=6.0
        Weight of the divergence (:math:`\lambda` of [1]_). Zero leaves the boosted cross-entropy.
    boosted_on : {"adversarial", "clean"}, default="adversarial"
        Samples on which the boosted cross-entropy is taken. The source has the attacked ones, [2]_
        (Eq. 7) the clean ones.
    kl_direction : {"clean_adv", "adv_clean"}, default="clean_adv"
        The divergence below, or :math:`\mathrm{KL}(p(x')\,\|\,p(x))` as [2]_ (Eq. 7) writes.
    classification_loss : callable, default=None
        ``f(logits, y)`` returning one value per sample, in the place of the cross-entropy. None
        means cross-entropy.

    Returns
    -------
    Tensor of shape (n_samples,)
        Loss per sample. The gradient flows through all of it, the weight of the divergence
        included, as in the authors' code.

    See Also
    --------
    boosted_cross_entropy : The first term.
    trades_loss : Cross-entropy on clean samples, and the same weight for all divergences.

    Notes
    -----
    .. math:: \mathrm{BCE}(z(x'), y) + \beta\,\mathrm{KL}(p(x)\,\|\,p(x'))\,(1 - p_y(x)),
              \qquad p = \mathrm{softmax}(z)

    References
    ----------
    .. [1] Wang, Y., Zou, D., Yi, J., Bailey, J., Ma, X. and Gu, Q. (2020). Improving adversarial
       robustness requires revisiting misclassified examples. ICLR. Eq. 11.
    .. [2] Bui, T. A., Le, T., Tran, Q. H., Zhao, H. and Phung, D. (2022). A unified Wasserstein
       distributional robustness framework for adversarial training. ICLR.

    Examples
    --------
    >>> import torch
    >>> from robustsk.losses import mart_loss
    >>> clean = torch.tensor([[0.5, 0.5]]).log()
    >>> attacked = torch.tensor([[0.25, 0.75]]).log()
    >>> mart_loss(clean, attacked, torch.tensor([0]), beta=1.0)  # 2 log 4 + 0.1438 / 2
    tensor([2.8445])
    """
    if boosted_on not in ("adversarial", "clean"):
        raise ValueError(f"boosted_on must be 'adversarial' or 'clean', got {boosted_on!r}.")
    if kl_direction not in ("clean_adv", "adv_clean"):
        raise ValueError(f"kl_direction must be 'clean_adv' or 'adv_clean', got {kl_direction!r}.")
    samples = logits_adv if boosted_on == "adversarial" else logits
    boosted = boosted_cross_entropy(samples, y, classification_loss=classification_loss)
    log_p = log_softmax(logits, dim=1).gather(1, y[:, None]).squeeze(1)
    pair = (logits, logits_adv) if kl_direction == "clean_adv" else (logits_adv, logits)
    # 1 - p, without cancellation where p is close to one
    # Eq. 11 of [1], or Eq. 7 of [2] with the boosted cross-entropy of the clean samples
    return boosted + beta * kl_divergence(*pair) * -torch.expm1(log_p)
