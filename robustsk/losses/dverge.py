"""The loss of DVERGE, and the distance that its examples minimise."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from .classification import per_sample_ce


def feature_distance(features: Tensor, target: Tensor) -> Tensor:
    r"""Squared distance between two representations of each sample.

    Parameters
    ----------
    features, target : Tensor of shape (n_samples, n_features)
        Representations at one layer of one network.

    Returns
    -------
    Tensor of shape (n_samples,)
        What the distillation of non-robust features minimises over the input that belongs to
        `features`, Eq. 1 of [1]_.

    References
    ----------
    .. [1] Yang, H., Zhang, J., Dong, H., Inkawhich, N., Gardner, A., Touchet, A., Wilkes, W.,
       Berry, H. and Li, H. (2020). DVERGE: Diversifying vulnerabilities for enhanced robust
       generation of ensembles. NeurIPS.

    Examples
    --------
    >>> import torch
    >>> from robustsk.losses import feature_distance
    >>> feature_distance(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 5.0]]))
    tensor([9.])
    """
    return (features - target).square().sum(1)


def dverge_loss(
    logits: Sequence[Sequence[Tensor]],
    y: Tensor,
    classification_loss: Callable | None = None,
) -> Tensor:
    r"""Sum of the losses of all members on what the others take for something else.

    Parameters
    ----------
    logits : sequence of sequences of Tensor of shape (n_samples, n_classes)
        ``logits[i]`` are the logits of member `i` on the examples distilled from each of the
        *other* members.
    y : Tensor of shape (n_samples,), dtype int64
        True classes of the source images, from which the examples are no farther than a radius.
    classification_loss : callable, default=None
        ``f(logits, y)`` returning one value per sample. None means cross-entropy.

    Returns
    -------
    Tensor of shape (n_samples,)
        Loss per sample, summed over the members.

    Raises
    ------
    ValueError
        If there are no logits: an ensemble of one member has no others to learn from.

    Notes
    -----
    .. math:: \sum_{i} \sum_{j \ne i} \mathrm{CE}\left(f_i(x'_j), y_s\right)

    where :math:`x'_j` lies close to the source image :math:`x_s`, while member :math:`j` sees the
    features of another image in it.

    References
    ----------
    .. [1] Yang, H., Zhang, J., Dong, H., Inkawhich, N., Gardner, A., Touchet, A., Wilkes, W.,
       Berry, H. and Li, H. (2020). DVERGE: Diversifying vulnerabilities for enhanced robust
       generation of ensembles. NeurIPS. Algorithm 1.

    Examples
    --------
    >>> import torch
    >>> from robustsk.losses import dverge_loss
    >>> uniform = torch.zeros(1, 2)
    >>> dverge_loss([[uniform], [uniform]], torch.tensor([0]))  # 2 log 2
    tensor([1.3863])
    """
    terms = [z for others in logits for z in others]
    if not terms:
        raise ValueError(
            "logits must hold the logits of at least one member on the examples of another; an "
            "ensemble of one member has none."
        )
    ce = per_sample_ce if classification_loss is None else classification_loss
    return sum(ce(z, y) for z in terms)
