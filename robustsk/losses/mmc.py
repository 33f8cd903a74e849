"""The Max-Mahalanobis center loss."""

from __future__ import annotations

from torch import Tensor


def mmc_loss(logits: Tensor, y: Tensor) -> Tensor:
    r"""Max-Mahalanobis center loss: half the squared distance to the center of the class.

    Parameters
    ----------
    logits : Tensor of shape (n_samples, n_classes)
        Negative squared distances to the centers of the classes, at most 0, as
        :class:`robustsk.models.MaxMahalanobisLinear` returns them.
    y : Tensor of shape (n_samples,), dtype int64
        True classes.

    Returns
    -------
    Tensor of shape (n_samples,)
        Loss per sample, at least 0.

    Notes
    -----
    .. math:: \tfrac12 \lVert z(x) - \mu_y \rVert_2^2

    The other centers take no part: unlike cross-entropy, the loss asks for a place and not for a
    margin. The authors' code leaves the factor out.

    References
    ----------
    .. [1] Pang, T., Xu, K., Dong, Y., Du, C., Chen, N. and Zhu, J. (2020). Rethinking softmax
       cross-entropy loss for adversarial robustness. ICLR. Eq. 8.

    Examples
    --------
    >>> import torch
    >>> from robustsk.losses import mmc_loss
    >>> mmc_loss(torch.tensor([[-3.0, -1.0]]), torch.tensor([0]))
    tensor([1.5000])
    """
    return -0.5 * logits.gather(1, y[:, None]).squeeze(1)
