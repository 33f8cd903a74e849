"""The TRADES loss."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy

from .classification import kl_divergence


def trades_loss(logits: Tensor, logits_adv: Tensor, y: Tensor, beta: float = 6.0) -> Tensor:
    r"""TRADES loss: clean cross-entropy plus a divergence between clean and attacked outputs.

    Parameters
    ----------
    logits : Tensor of shape (n_samples, n_classes)
        Logits of the clean samples.
    logits_adv : Tensor of shape (n_samples, n_classes)
        Logits of the attacked samples.
    y : Tensor of shape (n_samples,), dtype int64
        True classes.
    beta : float, default=6.0
        Weight of the divergence (``1 / lambda`` of [1]_). Zero gives the clean cross-entropy.

    Returns
    -------
    Tensor of shape (n_samples,)
        Loss per sample. The gradient flows through clean and attacked logits alike.

    See Also
    --------
    kl_divergence : The regulariser, and the objective of the inner attack.

    Notes
    -----
    .. math:: \mathrm{CE}(z(x), y) + \beta\,\mathrm{KL}(p(x)\,\|\,p(x')),
              \qquad p = \mathrm{softmax}(z)

    The article writes a generic multi-class calibrated loss for the second term; the divergence is
    the form its authors train with.

    References
    ----------
    .. [1] Zhang, H., Yu, Y., Jiao, J., Xing, E. P., El Ghaoui, L. and Jordan, M. I. (2019).
       Theoretically principled trade-off between robustness and accuracy. ICML. Algorithm 1.

    Examples
    --------
    >>> import torch
    >>> from robustsk.losses import trades_loss
    >>> clean = torch.tensor([[0.5, 0.5]]).log()
    >>> attacked = torch.tensor([[0.25, 0.75]]).log()
    >>> trades_loss(clean, attacked, torch.tensor([0]), beta=1.0)  # log 2 + 0.1438
    tensor([0.8370])
    """
    # what Algorithm 1 descends
    return cross_entropy(logits, y, reduction="none") + beta * kl_divergence(logits, logits_adv)
