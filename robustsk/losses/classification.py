"""Divergences, entropy and logit differences shared by many attacks and defences."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax

# The constant of Croce and Hein (2020): it only decides the value when the top logits are tied.
_DLR_EPS = 1e-12


def kl_terms(logits_p: Tensor, logits_q: Tensor) -> Tensor:
    r"""Per-class terms of the Kullback-Leibler divergence between two softmax outputs.

    Parameters
    ----------
    logits_p : Tensor of shape (n_samples, n_classes)
        Finite logits of the reference distribution :math:`p`.
    logits_q : Tensor of shape (n_samples, n_classes)
        Finite logits of the compared distribution :math:`q`.

    Returns
    -------
    Tensor of shape (n_samples, n_classes)
        The terms :math:`k_j`, of either sign. The gradient flows to both arguments.

    See Also
    --------
    kl_divergence : The sum of the terms.
    inconsistency : The sum of their squares.

    Notes
    -----
    .. math:: k_j = p_j \log\frac{p_j}{q_j}, \qquad p = \mathrm{softmax}(z^p),
              \quad q = \mathrm{softmax}(z^q)

    References
    ----------
    .. [1] Hou, P. (2022). Adversarial Training for Improving the Robustness of Deep Neural
       Networks. MSc thesis, University of Alberta. Eq. 3.12.

    Examples
    --------
    >>> import torch
    >>> from robustsk.losses import kl_terms
    >>> p = torch.tensor([[0.5, 0.5]]).log()
    >>> q = torch.tensor([[0.25, 0.75]]).log()
    >>> kl_terms(p, q)
    tensor([[ 0.3466, -0.2027]])
    """
    log_p = log_softmax(logits_p, dim=1)
    return log_p.exp() * (log_p - log_softmax(logits_q, dim=1))


def kl_divergence(logits_p: Tensor, logits_q: Tensor) -> Tensor:
    r"""Kullback-Leibler divergence between two softmax outputs, per sample.

    Parameters
    ----------
    logits_p : Tensor of shape (n_samples, n_classes)
        Finite logits of the reference distribution :math:`p`.
    logits_q : Tensor of shape (n_samples, n_classes)
        Finite logits of the compared distribution :math:`q`.

    Returns
    -------
    Tensor of shape (n_samples,)
        :math:`\mathrm{KL}(p\,\|\,q) \ge 0` up to rounding, in nats. The gradient flows to both
        arguments; detach one of them to hold it constant.

    See Also
    --------
    kl_terms : The summands.
    trades_loss : Cross-entropy regularised by this divergence.

    Notes
    -----
    .. math:: \mathrm{KL}(p\,\|\,q) = \sum_j p_j \log\frac{p_j}{q_j}

    The value and both gradients are zero where the two distributions agree, so an attack that
    ascends this divergence must not start at the clean point.

    References
    ----------
    .. [1] Kullback, S. and Leibler, R. A. (1951). On information and sufficiency. The Annals of
       Mathematical Statistics, 22(1), 79-86.

    Examples
    --------
    >>> import torch
    >>> from robustsk.losses import kl_divergence
    >>> p = torch.tensor([[0.5, 0.5]]).log()
    >>> q = torch.tensor([[0.25, 0.75]]).log()
    >>> kl_divergence(p, q)
    tensor([0.1438])
    """
    return kl_terms(logits_p, logits_q).sum(dim=1)


def entropy(logits: Tensor) -> Tensor:
    r"""Shannon entropy of the softmax output, per sample.

    Parameters
    ----------
    logits : Tensor of shape (n_samples, n_classes)
        Finite logits.

    Returns
    -------
    Tensor of shape (n_samples,)
        Entropy in nats, between 0 and :math:`\log C` for :math:`C` classes.

    Notes
    -----
    .. math:: H(p) = -\sum_j p_j \log p_j, \qquad p = \mathrm{softmax}(z)

    References
    ----------
    .. [1] Shannon, C. E. (1948). A mathematical theory of communication. Bell System Technical
       Journal, 27(3), 379-423.

    Examples
    --------
    >>> import torch
    >>> from robustsk.losses import entropy
    >>> entropy(torch.zeros(1, 4))  # log 4
    tensor([1.3863])
    """
    log_p = log_softmax(logits, dim=1)
    return -(log_p.exp() * log_p).sum(dim=1)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    r"""Margin by which the best wrong class beats the true class, per sample.

    Parameters
    ----------
    logits : Tensor of shape (n_samples, n_classes)
        Logits of at least two classes.
    y : Tensor of shape (n_samples,), dtype int64
        True classes.

    Returns
    -------
    Tensor of shape (n_samples,)
        Positive if and only if the sample is misclassified (ties aside).

    Raises
    ------
    ValueError
        If there are fewer than two classes.

    Notes
    -----
    .. math:: \max_{k \ne y} z_k - z_y

    This is the untargeted form of the objective :math:`f_6` of [1]_, without its truncation.

    References
    ----------
    .. [1] Carlini, N. and Wagner, D. (2017). Towards evaluating the robustness of neural
       networks. IEEE Symposium on Security and Privacy. Section V-A.

    Examples
    --------
    >>> import torch
    >>> from robustsk.losses import margin
    >>> logits = torch.tensor([[3.0, 1.0, 2.5], [3.0, 1.0, 2.5]])
    >>> margin(logits, torch.tensor([0, 1]))
    tensor([-0.5000,  2.0000])
    """
    _check_n_classes(logits, 2, "margin")
    return _best_other(logits, y) - _pick(logits, y)


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    r"""Untargeted Difference of Logits Ratio, per sample.

    Parameters
    ----------
    logits : Tensor of shape (n_samples, n_classes)
        Logits of at least three classes.
    y : Tensor of shape (n_samples,), dtype int64
        True classes.

    Returns
    -------
    Tensor of shape (n_samples,)
        The loss an attack ascends: in [-1, 0] for correctly classified samples, positive and
        unbounded for misclassified ones.

    Raises
    ------
    ValueError
        If there are fewer than three classes.

    See Also
    --------
    margin : The numerator, defined from two classes on.
    dlr_targeted : Targeted version.

    Notes
    -----
    With :math:`\pi` sorting the logits in decreasing order,

    .. math:: \mathrm{DLR} = -\frac{z_y - \max_{i \ne y} z_i}
              {z_{\pi_1} - z_{\pi_3} + 10^{-12}}

    Adding a constant to the logits of a sample, or multiplying them by a positive one, does not
    change the value (up to the tiny constant), so it does not saturate for overconfident models.

    References
    ----------
    .. [1] Croce, F. and Hein, M. (2020). Reliable evaluation of adversarial robustness with an
       ensemble of diverse parameter-free attacks. ICML. Section 4.

    Examples
    --------
    >>> import torch
    >>> from robustsk.losses import dlr
    >>> dlr(torch.tensor([[4.0, 3.0, 0.0]]), torch.tensor([0]))
    tensor([-0.2500])
    """
    _check_n_classes(logits, 3, "dlr")
    top = logits.topk(3, dim=1).values
    return margin(logits, y) / (top[:, 0] - top[:, 2] + _DLR_EPS)


def dlr_targeted(logits: Tensor, y: Tensor, y_target: Tensor) -> Tensor:
    r"""Targeted Difference of Logits Ratio, per sample.

    Parameters
    ----------
    logits : Tensor of shape (n_samples, n_classes)
        Logits of at least four classes.
    y : Tensor of shape (n_samples,), dtype int64
        True classes.
    y_target : Tensor of shape (n_samples,), dtype int64
        Classes the attack aims at.

    Returns
    -------
    Tensor of shape (n_samples,)
        The loss an attack ascends; positive if and only if the target class beats the true class.

    Raises
    ------
    ValueError
        If there are fewer than four classes.

    See Also
    --------
    dlr : Untargeted version.

    Notes
    -----
    With :math:`\pi` sorting the logits in decreasing order,

    .. math:: \mathrm{DLR}_t = -\frac{z_y - z_t}
              {z_{\pi_1} - (z_{\pi_3} + z_{\pi_4}) / 2 + 10^{-12}}

    References
    ----------
    .. [1] Croce, F. and Hein, M. (2020). Reliable evaluation of adversarial robustness with an
       ensemble of diverse parameter-free attacks. ICML. Section 4.

    Examples
    --------
    >>> import torch
    >>> from robustsk.losses import dlr_targeted
    >>> logits = torch.tensor([[4.0, 3.0, 1.0, -1.0]])
    >>> dlr_targeted(logits, torch.tensor([0]), torch.tensor([2]))
    tensor([-0.7500])
    """
    _check_n_classes(logits, 4, "dlr_targeted")
    top = logits.topk(4, dim=1).values
    scale = top[:, 0] - (top[:, 2] + top[:, 3]) / 2
    return (_pick(logits, y_target) - _pick(logits, y)) / (scale + _DLR_EPS)


def _check_n_classes(logits, minimum, name):
    if logits.shape[1] < minimum:
        raise ValueError(
            f"{name} needs at least {minimum} classes, got logits of shape {tuple(logits.shape)}."
        )


def _pick(logits, y):
    return logits.gather(1, y[:, None]).squeeze(1)


def _best_other(logits, y):
    return logits.scatter(1, y[:, None], -torch.inf).max(dim=1).values


def per_sample_ce(logits, y):
    """Return the cross-entropy of each sample: what `classification_loss=None` means."""
    return cross_entropy(logits, y, reduction="none")
