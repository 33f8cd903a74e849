"""The TRADES loss."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn.functional import cross_entropy, softplus

from .classification import kl_divergence

#: What bounds the error from above, all calibrated, convex and falling.
_SURROGATES: dict[str, Callable[[Tensor], Tensor]] = {
    "logistic": lambda a: softplus(-a),
    "hinge": lambda a: (1 - a).clamp_min(0),
    "exponential": lambda a: (-a).exp(),
}


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
    binary_trades_loss : The form for two classes.

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


def binary_trades_loss(
    f: Tensor, f_adv: Tensor, y: Tensor, beta: float = 6.0, phi: str = "logistic"
) -> Tensor:
    r"""TRADES loss of two classes: a surrogate of the error, and one of the change of sign.

    Parameters
    ----------
    f : Tensor of shape (n_samples,)
        Output for the clean samples, of which the sign is the prediction: one logit, or the
        difference of two.
    f_adv : Tensor of shape (n_samples,)
        Output for the attacked samples, which make the second term large. As :math:`\varphi`
        falls, these are those for which ``f * f_adv`` is smallest.
    y : Tensor of shape (n_samples,)
        True classes, -1 and 1.
    beta : float, default=6.0
        :math:`1 / \lambda`, which is inside of the second term. Zero leaves a constant of it,
        :math:`\varphi(0)`.
    phi : {"logistic", "hinge", "exponential"}, default="logistic"
        The surrogate: :math:`\log(1 + e^{-a})`, :math:`\max(1 - a, 0)` or :math:`e^{-a}`.

    Returns
    -------
    Tensor of shape (n_samples,)
        Loss per sample. The gradient flows through clean and attacked outputs alike.

    Raises
    ------
    ValueError
        If `phi` is none of these, or a class is neither -1 nor 1.

    See Also
    --------
    trades_loss : The form for any number of classes.

    Notes
    -----
    .. math:: \varphi(f(x) y) + \varphi\!\left(\frac{f(x) f(x')}{\lambda}\right)

    With the logistic surrogate the first term is the cross-entropy of the logits (0, f). It is an
    upper bound of the error in units of :math:`\log 2`, the others are one as they are.

    References
    ----------
    .. [1] Zhang, H., Yu, Y., Jiao, J., Xing, E. P., El Ghaoui, L. and Jordan, M. I. (2019).
       Theoretically principled trade-off between robustness and accuracy. ICML. Eq. 3.

    Examples
    --------
    >>> import torch
    >>> from robustsk.losses import binary_trades_loss
    >>> f, f_adv, y = torch.tensor([2.0]), torch.tensor([-0.25]), torch.tensor([1])
    >>> binary_trades_loss(f, f_adv, y, beta=1.0, phi="hinge")  # 0 + 1.5
    tensor([1.5000])
    """
    if phi not in _SURROGATES:
        raise ValueError(f"phi must be one of {tuple(_SURROGATES)}, got {phi!r}.")
    if (y.abs() != 1).any():
        raise ValueError(f"y must hold -1 and 1, got {sorted(set(y.tolist()))[:5]}.")
    surrogate = _SURROGATES[phi]
    return surrogate(f * y) + surrogate(beta * f * f_adv)
