"""Weights of samples by the margin of their probability."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .classification import margin
from .gairat import mean_one


def probability_margin(logits: Tensor, y: Tensor) -> Tensor:
    r"""Probability of the true class less that of the best wrong one, per sample.

    Parameters
    ----------
    logits : Tensor of shape (n_samples, n_classes)
        Logits of at least two classes.
    y : Tensor of shape (n_samples,), dtype int64
        True classes.

    Returns
    -------
    Tensor of shape (n_samples,)
        In [-1, 1]; negative if and only if the sample is misclassified.

    See Also
    --------
    margin : That of the logits, of the opposite sign.

    Notes
    -----
    .. math:: p_y - \max_{k \ne y} p_k, \qquad p = \mathrm{softmax}(z)

    References
    ----------
    .. [1] Wang, Q., Liu, F., Han, B., Liu, T., Gong, C., Niu, G., Zhou, M. and Sugiyama, M. (2021).
       Probabilistic margins for instance reweighting in adversarial training. NeurIPS.

    Examples
    --------
    >>> import torch
    >>> from robustsk.losses import probability_margin
    >>> logits = torch.tensor([[0.5, 0.25, 0.25]]).log()
    >>> probability_margin(logits, torch.tensor([0]))
    tensor([0.2500])
    """
    return -margin(logits.softmax(dim=1), y)


def margin_weights(
    margins: Tensor, gamma: float = 10.0, b: float = -0.5, *, sample_weight: Tensor | None = None
) -> Tensor:
    r"""Weights that fall with the margin, of mean 1.

    Parameters
    ----------
    margins : Tensor of shape (n_samples,)
        Margins of probabilities, in [-1, 1].
    gamma : float, default=10.0
        Slope. Zero gives equal weights.
    b : float, default=-0.5
        Margin at which the weight (before normalisation) is one half.
    sample_weight : Tensor of shape (n_samples,), default=None
        Weights of the samples in the mean, so that a sample of weight 2 counts as two.

    Returns
    -------
    Tensor of shape (n_samples,)
        Detached; the larger, the smaller the margin.

    Notes
    -----
    Proportional to :math:`\sigma(-\gamma (m - b))`, computed in log space.

    References
    ----------
    .. [1] Wang, Q., Liu, F., Han, B., Liu, T., Gong, C., Niu, G., Zhou, M. and Sugiyama, M. (2021).
       Probabilistic margins for instance reweighting in adversarial training. NeurIPS.

    Examples
    --------
    >>> import torch
    >>> from robustsk.losses import margin_weights
    >>> margin_weights(torch.tensor([-0.9, 0.9]), gamma=1.0, b=0.0)  # 0.7109 to 0.2891
    tensor([1.4219, 0.5781])
    """
    with torch.no_grad():
        return mean_one(logsigmoid(-gamma * (margins - b)), sample_weight)
