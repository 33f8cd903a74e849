"""The pairing term of adversarial logit pairing."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import huber_loss, l1_loss, mse_loss

_PAIRINGS = {"l2": mse_loss, "l1": l1_loss, "huber": huber_loss}


def logit_pairing(logits: Tensor, logits_adv: Tensor, pairing: str = "l2") -> Tensor:
    r"""Distance between clean and attacked logits, per sample.

    Parameters
    ----------
    logits : Tensor of shape (n_samples, n_classes)
        Logits, or cosines, of the clean samples.
    logits_adv : Tensor of shape (n_samples, n_classes)
        Those of the attacked samples.
    pairing : {"l2", "l1", "huber"}, default="l2"
        Mean over the classes of the squared difference, of its absolute value, or of the Huber
        function of it (half the square up to 1, linear beyond).

    Returns
    -------
    Tensor of shape (n_samples,)
        Zero if and only if the logits are the same. The gradient flows to both arguments.

    Raises
    ------
    ValueError
        If `pairing` is unknown.

    See Also
    --------
    kl_divergence : A distance of probabilities, which does not change if all logits do alike.

    References
    ----------
    .. [1] Kannan, H., Kurakin, A. and Goodfellow, I. (2018). Adversarial logit pairing.
       arXiv:1803.06373. Sec. 4.1.
    .. [2] Hou, P. (2022). Adversarial Training for Improving the Robustness of Deep Neural
       Networks. MSc thesis, University of Alberta. Eq. 2.13 (the three distances).

    Examples
    --------
    >>> import torch
    >>> from robustsk.losses import logit_pairing
    >>> clean, attacked = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 0.5]])
    >>> [logit_pairing(clean, attacked, p).item() for p in ("l2", "l1", "huber")]
    [4.625, 1.75, 1.3125]
    """
    if pairing not in _PAIRINGS:
        raise ValueError(f"pairing must be one of {tuple(_PAIRINGS)}, got {pairing!r}.")
    return _PAIRINGS[pairing](logits_adv, logits, reduction="none").mean(dim=1)
