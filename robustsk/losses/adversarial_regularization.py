"""How far a prediction under attack is from the clean one, in several ways."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy

from .classification import kl_divergence

_DIRECTIONS = ("nat_to_adv", "adv_to_nat", "symmetric", "tv")


def prediction_distance(
    logits: Tensor, logits_adv: Tensor, kl_direction: str = "nat_to_adv"
) -> Tensor:
    r"""Distance between clean and attacked softmax outputs, per sample.

    Parameters
    ----------
    logits : Tensor of shape (n_samples, n_classes)
        Logits of the clean samples.
    logits_adv : Tensor of shape (n_samples, n_classes)
        Logits of the attacked samples.
    kl_direction : {"nat_to_adv", "adv_to_nat", "symmetric", "tv"}, default="nat_to_adv"
        :math:`\mathrm{KL}(p\,\|\,p')` from the clean :math:`p` to the attacked :math:`p'`, the
        opposite, the sum of both, or the total variation
        :math:`\frac12 \sum_j |p_j - p'_j|`, which is at most 1.

    Returns
    -------
    Tensor of shape (n_samples,)
        Zero if and only if the outputs are the same.

    Raises
    ------
    ValueError
        If `kl_direction` is unknown.

    See Also
    --------
    kl_divergence : The divergence.
    adversarial_regularization_loss : The loss it is part of.

    References
    ----------
    .. [1] Zhang, J. (2019). Enhancing Adversarial Robustness of Deep Neural Networks. MEng thesis,
       MIT. Secs. 4.1.3 and 6.3.

    Examples
    --------
    >>> import torch
    >>> from robustsk.losses import prediction_distance
    >>> clean = torch.tensor([[0.5, 0.5]]).log()
    >>> attacked = torch.tensor([[0.25, 0.75]]).log()
    >>> prediction_distance(clean, attacked, "tv")
    tensor([0.2500])
    """
    if kl_direction not in _DIRECTIONS:
        raise ValueError(f"kl_direction must be one of {_DIRECTIONS}, got {kl_direction!r}.")
    if kl_direction == "tv":
        return (logits.softmax(dim=1) - logits_adv.softmax(dim=1)).abs().sum(dim=1) / 2
    if kl_direction == "nat_to_adv":
        return kl_divergence(logits, logits_adv)
    if kl_direction == "adv_to_nat":
        return kl_divergence(logits_adv, logits)
    return kl_divergence(logits, logits_adv) + kl_divergence(logits_adv, logits)


def adversarial_regularization_loss(
    logits: Tensor,
    logits_adv: Tensor,
    y: Tensor,
    lam: float = 5.0,
    kl_direction: str = "nat_to_adv",
) -> Tensor:
    r"""Cross-entropy under attack plus the distance from the clean prediction, per sample.

    Parameters
    ----------
    logits : Tensor of shape (n_samples, n_classes)
        Logits of the clean samples. Their labels play no part.
    logits_adv : Tensor of shape (n_samples, n_classes)
        Logits of the attacked samples.
    y : Tensor of shape (n_samples,), dtype int64
        True classes.
    lam : float, default=5.0
        Weight of the distance. Zero leaves the adversarial cross-entropy.
    kl_direction : {"nat_to_adv", "adv_to_nat", "symmetric", "tv"}, default="nat_to_adv"
        See :func:`prediction_distance`.

    Returns
    -------
    Tensor of shape (n_samples,)
        Loss per sample. The gradient flows through clean and attacked logits alike.

    See Also
    --------
    trades_loss : The same with the cross-entropy of the clean samples.

    Notes
    -----
    .. math:: \mathrm{CE}(z(x'), y) + \lambda\,\mathrm{KL}(p(x)\,\|\,p(x')),
              \qquad p = \mathrm{softmax}(z)

    With a clean prediction :math:`p` that is held constant this is, up to the constant
    :math:`-\lambda H(p)`, a cross-entropy with soft labels,
    :math:`(1 + \lambda)\,\mathrm{CE}(z(x'), t)` with
    :math:`t = (e_y + \lambda p) / (1 + \lambda)`.

    References
    ----------
    .. [1] Zhang, J. (2019). Enhancing Adversarial Robustness of Deep Neural Networks. MEng thesis,
       MIT. Sec. 4.1.3, Algorithm 3.

    Examples
    --------
    >>> import torch
    >>> from robustsk.losses import adversarial_regularization_loss
    >>> clean = torch.tensor([[0.5, 0.5]]).log()
    >>> attacked = torch.tensor([[0.25, 0.75]]).log()
    >>> adversarial_regularization_loss(clean, attacked, torch.tensor([0]), lam=1.0)
    tensor([1.5301])
    """
    loss = cross_entropy(logits_adv, y, reduction="none")
    return loss + lam * prediction_distance(logits, logits_adv, kl_direction)
