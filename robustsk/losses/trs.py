"""The two penalties of transferability reduced smooth ensembles (TRS)."""

from __future__ import annotations

import torch
from torch import Tensor

from .gal import pair_cosines


def gradient_similarity(gradients: Tensor) -> Tensor:
    r"""Mean absolute cosine between the input gradients of the members of an ensemble.

    Parameters
    ----------
    gradients : Tensor of shape (n_members, n_samples, ...)
        Gradients of each member's loss with respect to the input.

    Returns
    -------
    Tensor of shape (n_samples,)
        Mean over the pairs of members, in [0, 1]: 0 if all gradients are orthogonal. Zero for a
        single member.

    Raises
    ------
    ValueError
        If `gradients` has less than three axes.

    See Also
    --------
    gradient_alignment : Also rewards gradients that point in opposite directions.

    Notes
    -----
    .. math:: \frac{2}{N(N-1)} \sum_{i < j}
              \left|\cos\left(\nabla_x L_i(x), \nabla_x L_j(x)\right)\right|

    References
    ----------
    .. [1] Yang, Z., Li, L., Xu, X., Zuo, S., Chen, Q., Zhou, P., Rubinstein, B. I. P., Zhang, C.
       and Li, B. (2021). TRS: Transferability reduced ensemble via promoting gradient diversity
       and model smoothness. NeurIPS. The similarity loss of the training.

    Examples
    --------
    >>> import torch
    >>> from robustsk.losses import gradient_similarity
    >>> gradient_similarity(torch.tensor([[[3.0, 0.0]], [[-1.0, 0.0]]]))
    tensor([1.])
    """
    cosines = pair_cosines(gradients)
    return cosines.abs().sum(0) / max(1, len(cosines))


def gradient_magnitude(gradients: Tensor) -> Tensor:
    r"""Twice the mean length of the input gradients of the members of an ensemble.

    Parameters
    ----------
    gradients : Tensor of shape (n_members, n_samples, ...)
        Gradients of each member's loss with respect to the input, taken at the point near each
        sample where they are longest.

    Returns
    -------
    Tensor of shape (n_samples,)
        At least 0.

    See Also
    --------
    gradient_similarity : The other penalty.

    Notes
    -----
    .. math:: \frac{2}{N} \sum_{i} \left\|\nabla_x L_i(\hat x)\right\|_2
              = \frac{2}{N(N-1)} \sum_{i < j} \left(\left\|\nabla_x L_i(\hat x)\right\|_2
              + \left\|\nabla_x L_j(\hat x)\right\|_2\right)

    The right-hand side, for two and more members, is the mean over the pairs, as in
    :func:`gradient_similarity`.

    References
    ----------
    .. [1] Yang, Z., Li, L., Xu, X., Zuo, S., Chen, Q., Zhou, P., Rubinstein, B. I. P., Zhang, C.
       and Li, B. (2021). TRS: Transferability reduced ensemble via promoting gradient diversity
       and model smoothness. NeurIPS. The smoothness loss of the training.

    Examples
    --------
    >>> import torch
    >>> from robustsk.losses import gradient_magnitude
    >>> gradient_magnitude(torch.tensor([[[3.0, 4.0]], [[1.0, 0.0]]]))  # 5 + 1
    tensor([6.])
    """
    return 2 * torch.linalg.vector_norm(gradients.flatten(2), dim=-1).mean(0)
