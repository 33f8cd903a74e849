"""Criteria of torch as losses of single samples, on logits and class indices."""

from __future__ import annotations

import copy

import torch
from torch import nn

from ..victims._outputs import is_probability


def for_samples(criterion, dtype):
    """Return a criterion that can tell single losses, in the precision of the network.

    Parameters
    ----------
    criterion : callable
        One of torch's may average; an instance is copied. What is derived from one of torch's
        gives one value per sample from now on.
    dtype : torch.dtype or None
    """
    if not isinstance(criterion, nn.Module):
        return criterion
    criterion = copy.deepcopy(criterion)
    if isinstance(criterion, nn.modules.loss._Loss) and not can_be_split(type(criterion)):
        criterion.reduction = "none"
    tensors = (*criterion.parameters(), *criterion.buffers())
    if dtype is None or all(t.dtype == dtype for t in tensors if t.is_floating_point()):
        return criterion
    return criterion.to(dtype)


def can_be_split(kind):
    """Return whether a class of criteria is torch's own, of which a copy gives single losses."""
    return issubclass(kind, nn.modules.loss._Loss) and kind.__module__ == nn.modules.loss.__name__


def losses_of(criterion, logits, y):
    """Return the value of a criterion on each sample.

    Parameters
    ----------
    criterion : callable
    logits : torch.Tensor of shape (n, n_classes)
    y : torch.Tensor of shape (n,) or (n, n_classes)
        Class indices, or probabilities of the classes.

    Returns
    -------
    torch.Tensor of shape (n,)
    """
    inner = _inner(criterion)
    if can_be_split(type(inner)) and inner.reduction != "none":
        criterion = copy.copy(inner)  # not changed in place: another thread may be at it
        criterion.reduction = "none"
    return value_of(criterion, logits, y)


def value_of(criterion, logits, y):
    """Return the value of a criterion as it is; parameters as in :func:`losses_of`.

    Returns
    -------
    torch.Tensor
        One number where the criterion averages or sums up, else of shape (n,).
    """
    kind = _inner(criterion)
    if isinstance(kind, nn.BCELoss):
        raise ValueError(
            "BCELoss is on probabilities, and attacks need logits: let the module return logits, "
            "without a sigmoid in the end, and leave criterion at its default, CrossEntropyLoss, "
            "for which a single output is the logit of the second class."
        )
    if isinstance(kind, nn.BCEWithLogitsLoss):
        if logits.shape[1] != 2:
            raise ValueError(
                f"BCEWithLogitsLoss is for two classes, and there are {logits.shape[1]}: leave "
                "criterion at its default, CrossEntropyLoss."
            )
        target = y[:, 1] if y.ndim == 2 else y
        return criterion(logits[:, 1] - logits[:, 0], target.to(logits.dtype))
    if gives_probabilities(criterion, logits):
        # as skorch does, whose modules end in a softmax
        logits = torch.log(logits + torch.finfo(logits.dtype).eps)
    return criterion(logits, y)


def gives_probabilities(criterion, outputs):
    """Return whether outputs are probabilities where NLLLoss wants their logarithms."""
    if not isinstance(_inner(criterion), nn.NLLLoss):
        return False
    return is_probability(torch.as_tensor(outputs).detach())


def share_counted(criterion, y, weight=None):
    """Return what torch's weighted mean divides by, relative to the number of samples, or None.

    Parameters
    ----------
    criterion : callable
    y : torch.Tensor of shape (n,)
    weight : torch.Tensor of shape (n,), optional
        Weights of the samples.

    Returns
    -------
    torch.Tensor without axes, or None
        None means 1.
    """
    criterion = _inner(criterion)
    if not isinstance(criterion, (nn.CrossEntropyLoss, nn.NLLLoss)) or y.ndim != 1:
        return None
    if criterion.weight is None and criterion.ignore_index < 0:
        return None
    counted = (y != criterion.ignore_index).to(torch.get_default_dtype())
    if criterion.weight is not None:
        counted = criterion.weight[y] * counted
    if weight is not None and len(weight) == len(y):
        share = (weight * counted).sum() / weight.sum()
    else:
        share = counted.mean()
    return torch.where(share > 0, share, 1)


def _inner(criterion):
    return getattr(criterion, "_orig_mod", criterion)
