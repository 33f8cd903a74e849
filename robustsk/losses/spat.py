"""The losses of Self-Paced Adversarial Training (SPAT)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from .classification import kl_terms

_FORMS = ("literal", "shifted")


def self_paced_gates(
    cos: Tensor, y: Tensor, beta: float = 0.2, *, detach: bool = False, clamp: bool = False
) -> Tensor:
    r"""Self-paced weights of the class scores.

    Parameters
    ----------
    cos : Tensor of shape (n_samples, n_classes)
        Cosines between the features of each sample and the class prototypes.
    y : Tensor of shape (n_samples,), dtype int64
        True classes.
    beta : float, default=0.2
        Smoothing added to every gate.
    detach : bool, default=False
        Whether the gates are constants for the gradient.
    clamp : bool, default=False
        Whether negative gates are raised to zero.

    Returns
    -------
    Tensor of shape (n_samples, n_classes)
        Gates: in ``[beta, 2 + beta]`` for the true class and ``[beta - 1, 1 + beta]`` for the
        others, if not clamped.

    See Also
    --------
    self_paced_loss : Cross-entropy on the gated scores.

    Notes
    -----
    For the true class :math:`i` and the false classes :math:`j \ne i`,

    .. math:: g_i = 1 - \cos_i + \beta, \qquad g_j = \cos_j + \beta.

    A false gate is negative where :math:`\cos_j < -\beta`; with ``clamp=True`` it is zero there
    and passes no gradient.

    References
    ----------
    .. [1] Hou, P. (2022). Adversarial Training for Improving the Robustness of Deep Neural
       Networks. MSc thesis, University of Alberta. Section 3.4, Eqs. 3.10-3.11.

    Examples
    --------
    >>> import torch
    >>> from robustsk.losses import self_paced_gates
    >>> cos = torch.tensor([[0.6, 0.3, -0.5]])
    >>> self_paced_gates(cos, torch.tensor([0]))
    tensor([[ 0.6000,  0.5000, -0.3000]])
    """
    if detach:
        cos = cos.detach()
    gates = torch.where(_is_true_class(cos, y), 1 - cos, cos) + beta
    return gates.clamp(min=0) if clamp else gates


def self_paced_loss(
    cos: Tensor,
    y: Tensor,
    *,
    logits: Tensor | None = None,
    scale: float = 5.0,
    beta: float = 0.2,
    detach_gates: bool = False,
    clamp_gates: bool = False,
    form: str = "literal",
    classification_loss: Callable | None = None,
) -> Tensor:
    r"""Self-paced accuracy loss of SPAT: cross-entropy on gated class scores.

    Parameters
    ----------
    cos : Tensor of shape (n_samples, n_classes)
        Cosines between the features of each (clean) sample and the class prototypes.
    y : Tensor of shape (n_samples,), dtype int64
        True classes.
    logits : Tensor of shape (n_samples, n_classes), default=None
        Unnormalised scores :math:`w_j^\top z` to gate instead of ``scale * cos`` (the SP-CE
        variant, Table 3.8 of [1]_). The gates still come from `cos`; `scale` is then unused.
        Only with ``form="literal"``.
    scale : float, default=5.0
        Scale :math:`s` of the cosine scores.
    beta : float, default=0.2
        Smoothing of the gates.
    detach_gates : bool, default=False
        Whether the gates are constants for the gradient.
    clamp_gates : bool, default=False
        Whether negative gates are raised to zero.
    form : {"literal", "shifted"}, default="literal"
        Scores that are gated, see Notes.
    classification_loss : callable, default=None
        ``f(logits, y)`` returning one value per sample. None means cross-entropy.

    Returns
    -------
    Tensor of shape (n_samples,)
        Loss per sample.

    Raises
    ------
    ValueError
        If `form` is unknown, or if `logits` are given with ``form="shifted"``.

    See Also
    --------
    self_paced_gates : The gates.
    spat_loss : Sum of this loss and the consistency term.

    Notes
    -----
    With the gates :math:`g` of :func:`self_paced_gates`, the loss is the cross-entropy of the
    logits :math:`u`, where for the true class :math:`i` and the false classes :math:`j`

    .. math::

       \text{literal:} \quad & u_i = g_i\, s \cos_i, & u_j &= g_j\, s \cos_j, \\
       \text{shifted:} \quad & u_i = g_i\, s\,(\cos_i - 1 + \beta) = s(\beta^2 - (1-\cos_i)^2),
       & u_j &= g_j\, s\,(\cos_j + \beta) = s(\cos_j + \beta)^2 .

    The closed forms on the right hold for gates that are not clamped. In both forms
    `detach_gates` and `clamp_gates` act on the factor :math:`g` alone; the score it multiplies is
    always differentiated.

    The literal true-class logit is largest at :math:`\cos_i = (1 + \beta) / 2`, and the loss is
    bounded below by :math:`\log(1 + (C-1) \exp(-s[(1+\beta)^2 + \beta^2] / 4))`. Beyond that
    cosine the gradient of the literal form pushes it *down*, unless the gates are detached. The
    true-class logit of the shifted form increases on the whole of [-1, 1].

    All gates equal to one would give the normalised cross-entropy. Gates need the label:
    prediction and attacks use ``scale * cos``.

    The shifted form has no counterpart for unnormalised scores, whose shift would depend on the
    norms.

    References
    ----------
    .. [1] Hou, P. (2022). Adversarial Training for Improving the Robustness of Deep Neural
       Networks. MSc thesis, University of Alberta. Section 3.4, Eqs. 3.10-3.11.

    Examples
    --------
    At a perfect sample the loss is :math:`\log(1 + 9 e^{-1})`, not zero:

    >>> import torch
    >>> from robustsk.losses import self_paced_loss
    >>> self_paced_loss(torch.eye(10)[:1], torch.tensor([0]))
    tensor([1.4612])
    """
    if form not in _FORMS:
        raise ValueError(f"form must be one of {_FORMS}, got {form!r}.")
    if form == "shifted" and logits is not None:
        raise ValueError('form="shifted" gates cosines and cannot be combined with logits.')
    if logits is None:
        scores = scale * (_shift(cos, y, beta) if form == "shifted" else cos)
    else:
        scores = logits
    gates = self_paced_gates(cos, y, beta, detach=detach_gates, clamp=clamp_gates)
    if classification_loss is None:
        return cross_entropy(gates * scores, y, reduction="none")
    return classification_loss(gates * scores, y)


def inconsistency(logits: Tensor, logits_adv: Tensor) -> Tensor:
    r"""Sum of the squared divergence terms between clean and attacked outputs, per sample.

    Parameters
    ----------
    logits : Tensor of shape (n_samples, n_classes)
        Logits of the clean samples.
    logits_adv : Tensor of shape (n_samples, n_classes)
        Logits of the attacked samples.

    Returns
    -------
    Tensor of shape (n_samples,)
        Non-negative value, zero if and only if both softmax outputs agree. The gradient flows to
        both arguments.

    See Also
    --------
    kl_terms : The terms that are squared.
    self_paced_consistency : This term plus a share of the divergence.

    Notes
    -----
    .. math:: L_{inc} = \sum_j k_j^2, \qquad
              k_j = f_j(x) \log\frac{f_j(x)}{f_j(x')}

    The square includes the factor :math:`f_j(x)`. By the Cauchy-Schwarz inequality
    :math:`L_{inc} \ge \mathrm{KL}^2 / C`. The value is not symmetric in its arguments.

    References
    ----------
    .. [1] Hou, P. (2022). Adversarial Training for Improving the Robustness of Deep Neural
       Networks. MSc thesis, University of Alberta. Section 3.4, Eq. 3.14.

    Examples
    --------
    >>> import torch
    >>> from robustsk.losses import inconsistency
    >>> clean = torch.tensor([[0.5, 0.5]]).log()
    >>> attacked = torch.tensor([[0.25, 0.75]]).log()
    >>> inconsistency(clean, attacked)
    tensor([0.1612])
    """
    # Eq. 3.14
    return kl_terms(logits, logits_adv).square().sum(dim=1)


def self_paced_consistency(logits: Tensor, logits_adv: Tensor, alpha: float = 0.2) -> Tensor:
    r"""Self-paced robustness loss of SPAT, per sample.

    Parameters
    ----------
    logits : Tensor of shape (n_samples, n_classes)
        Logits of the clean samples, ``scale * cos`` in SPAT (no gates).
    logits_adv : Tensor of shape (n_samples, n_classes)
        Logits of the attacked samples.
    alpha : float, default=0.2
        Weight of the divergence.

    Returns
    -------
    Tensor of shape (n_samples,)
        Loss per sample. The gradient flows to both arguments; an attack that ascends it holds the
        clean logits constant by detaching them.

    See Also
    --------
    inconsistency : The value for ``alpha=0``.
    kl_divergence : The term weighted by `alpha`.

    Notes
    -----
    .. math:: \alpha\,\mathrm{KL}(f(x)\,\|\,f(x')) + L_{inc} = \sum_j k_j (k_j + \alpha)

    with the terms :math:`k_j` of :func:`kl_terms`. Both parts have zero gradient at
    :math:`x' = x`, so the attack must start from a perturbed point.

    References
    ----------
    .. [1] Hou, P. (2022). Adversarial Training for Improving the Robustness of Deep Neural
       Networks. MSc thesis, University of Alberta. Section 3.4, Eqs. 3.12-3.15.

    Examples
    --------
    >>> import torch
    >>> from robustsk.losses import self_paced_consistency
    >>> clean = torch.tensor([[0.5, 0.5]]).log()
    >>> attacked = torch.tensor([[0.25, 0.75]]).log()
    >>> self_paced_consistency(clean, attacked)  # 0.2 * 0.1438 + 0.1612
    tensor([0.1900])
    """
    terms = kl_terms(logits, logits_adv)
    # Eq. 3.15: alpha times Eq. 3.13, plus Eq. 3.14
    return (terms * (terms + alpha)).sum(dim=1)


def spat_loss(
    cos: Tensor,
    cos_adv: Tensor,
    y: Tensor,
    *,
    logits: Tensor | None = None,
    logits_adv: Tensor | None = None,
    scale: float = 5.0,
    alpha: float = 0.2,
    beta: float = 0.2,
    lam: float = 6.0,
    detach_gates: bool = False,
    clamp_gates: bool = False,
    form: str = "literal",
) -> Tensor:
    r"""Training loss of Self-Paced Adversarial Training, per sample.

    Parameters
    ----------
    cos : Tensor of shape (n_samples, n_classes)
        Cosines between the features of the clean samples and the class prototypes.
    cos_adv : Tensor of shape (n_samples, n_classes)
        Cosines of the attacked samples. Not used when `logits_adv` is given.
    y : Tensor of shape (n_samples,), dtype int64
        True classes.
    logits, logits_adv : Tensor of shape (n_samples, n_classes), default=None
        Unnormalised scores of the clean and the attacked samples (the SP-CE variant), used in
        place of ``scale * cos`` and ``scale * cos_adv``. Give both or neither.
    scale : float, default=5.0
        Scale :math:`s` of the cosine scores.
    alpha : float, default=0.2
        Weight of the divergence within the consistency term.
    beta : float, default=0.2
        Smoothing of the gates.
    lam : float, default=6.0
        Weight :math:`\lambda` of the consistency term.
    detach_gates : bool, default=False
        Whether the gates are constants for the gradient.
    clamp_gates : bool, default=False
        Whether negative gates are raised to zero.
    form : {"literal", "shifted"}, default="literal"
        Scores that are gated, see :func:`self_paced_loss`.

    Returns
    -------
    Tensor of shape (n_samples,)
        Loss per sample. The gradient flows through the clean and the attacked branch alike.

    Raises
    ------
    ValueError
        If only one of `logits` and `logits_adv` is given, if `form` is unknown, or if `logits` are
        given with ``form="shifted"``.

    See Also
    --------
    self_paced_loss : The accuracy term.
    self_paced_consistency : The robustness term, and the objective of the inner attack.

    Notes
    -----
    .. math:: L_{SPAT} = L_{acc}^{sp}(x, y) + \lambda\,L_{rob}^{sp}(x, x')

    The softmax outputs in the robustness term are those of the scores without gates.

    References
    ----------
    .. [1] Hou, P. (2022). Adversarial Training for Improving the Robustness of Deep Neural
       Networks. MSc thesis, University of Alberta. Section 3.4, Eq. 3.9.

    Examples
    --------
    Without a perturbation only the accuracy term is left:

    >>> import torch
    >>> from robustsk.losses import spat_loss
    >>> cos = torch.eye(10)[:1]
    >>> spat_loss(cos, cos, torch.tensor([0]))
    tensor([1.4612])
    """
    if (logits is None) != (logits_adv is None):
        raise ValueError("logits and logits_adv must be given together.")
    accuracy = self_paced_loss(
        cos,
        y,
        logits=logits,
        scale=scale,
        beta=beta,
        detach_gates=detach_gates,
        clamp_gates=clamp_gates,
        form=form,
    )
    if logits is None:
        logits, logits_adv = scale * cos, scale * cos_adv
    # Eq. 3.9
    return accuracy + lam * self_paced_consistency(logits, logits_adv, alpha)


def _is_true_class(cos, y):
    return one_hot(y, cos.shape[1]).bool()


def _shift(cos, y, beta):
    return torch.where(_is_true_class(cos, y), cos - 1, cos) + beta
