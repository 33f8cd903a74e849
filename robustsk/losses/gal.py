"""The gradient alignment loss (GAL) of an ensemble."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize


def gradient_alignment(gradients: Tensor) -> Tensor:
    r"""How much the input gradients of the members of an ensemble point the same way.

    Parameters
    ----------
    gradients : Tensor of shape (n_members, n_samples, ...)
        Gradients of each member's loss with respect to the input. To train with it, take them
        with ``create_graph=True``.

    Returns
    -------
    Tensor of shape (n_samples,)
        Between ``log(n_pairs) - 1`` and ``log(n_pairs) + 1``, which identical members reach;
        ``log(n_pairs)`` if all gradients are orthogonal. Zero for a single member.

    Raises
    ------
    ValueError
        If `gradients` has less than three axes.

    See Also
    --------
    gradient_similarity : The mean absolute cosine.

    Notes
    -----
    .. math:: \log \sum_{i < j} \exp \cos\left(\nabla_x L_i(x), \nabla_x L_j(x)\right)

    The length of a gradient does not matter unless it is below the precision of its dtype (1.2e-7
    in float32), as on samples that are fitted very well. The cosine then goes to 0 with it: a
    derivative of the direction would be made of rounding errors.

    References
    ----------
    .. [1] Kariyappa, S. and Qureshi, M. K. (2019). Improving adversarial robustness of ensembles
       with diversity training. arXiv:1901.09981.

    Examples
    --------
    >>> import torch
    >>> from robustsk.losses import gradient_alignment
    >>> same, across = [[1.0, 0.0]], [[0.0, 3.0]]
    >>> gradient_alignment(torch.tensor([same, same]))  # log(1 pair) + 1
    tensor([1.])
    >>> gradient_alignment(torch.tensor([same, across]))
    tensor([0.])
    """
    cosines = pair_cosines(gradients)
    if len(cosines) == 0:
        return cosines.sum(0)
    return cosines.logsumexp(0)


def pair_cosines(gradients: Tensor) -> Tensor:
    """Return the cosine of the gradients of each pair of members, shape (n_pairs, n_samples)."""
    if gradients.ndim < 3:
        raise ValueError(
            "gradients must have shape (n_members, n_samples, ...), got "
            f"{tuple(gradients.shape)}: stack one batch of input gradients per member."
        )
    # the second derivatives of what is shorter would be rounding errors, blown up
    unit = normalize(gradients.flatten(2), dim=-1, eps=torch.finfo(gradients.dtype).eps)
    first, second = torch.triu_indices(len(unit), len(unit), 1, device=unit.device)
    return (unit[first] * unit[second]).sum(-1)
