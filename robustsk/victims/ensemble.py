"""Several models, attacked as the mean of their probabilities."""

from __future__ import annotations

from functools import reduce

import numpy as np
import torch
from torch import nn

from ..losses import ensemble_logits
from ._outputs import two_logits
from .victim import Victim


def join_victims(victims):
    """Return the ensemble that averages the probabilities of several victims.

    Parameters
    ----------
    victims : list of Victim
        All know the same classes, in any order.

    Returns
    -------
    Victim
        With the classes of the first that names its own, in their order; the
        victim itself where there is one.
    """
    if len(victims) == 1:
        return victims[0]
    classes = next((v.classes for v in victims if v.classes is not None), None)
    orders = []
    for victim in victims:
        own = victim.classes
        if classes is None:
            orders.append(None)
            continue
        if own is None:
            own = np.arange(len(classes))
        if len(own) != len(classes) or not np.isin(classes, own).all():
            raise ValueError(
                f"The members of an ensemble must know the same classes: one knows "
                f"{classes[:10].tolist()}, {victim.name} knows {own[:10].tolist()}."
            )
        orders.append([own.tolist().index(label) for label in classes.tolist()])
    joined = Victim(
        MeanEnsemble(
            [Member(v.module, v.dtype, order) for v, order in zip(victims, orders, strict=True)]
        ),
        classes=classes,
        dtype=reduce(torch.promote_types, [victim.dtype for victim in victims]),
        bounds=join_bounds([v.bounds for v in victims]),
        is_image=any(victim.is_image for victim in victims),
        name="mean of " + ", ".join(victim.name for victim in victims),
        differentiable=all(victim.differentiable for victim in victims),
    )
    joined.parts = list(victims)
    return joined


def join_bounds(bounds):
    """Return the range that holds several, of which some may be None; None if all are."""
    known = [pair for pair in bounds if pair is not None]
    if not known:
        return None
    lows, highs = zip(*known, strict=True)
    return np.asarray(reduce(np.minimum, lows)), np.asarray(reduce(np.maximum, highs))


class Combination(nn.Module):
    """Networks that are asked together.

    Parameters
    ----------
    members : list of torch.nn.Module
        Each returns logits of shape (n, n_classes).
    """

    def __init__(self, members):
        super().__init__()
        self.members = nn.ModuleList(members)

    def member_logits(self, x):
        """Return the logits of each member, a list of tensors of shape (n, n_classes)."""
        return [two_logits(member(x), len(x)) for member in self.members]


class MeanEnsemble(Combination):
    """Members whose probabilities are averaged.

    Returns the logarithm of the mean probability, computed from logits
    without ever leaving the logarithm.

    Parameters
    ----------
    members : list of torch.nn.Module
        Each returns logits of shape (n, n_classes).
    """

    def forward(self, x):
        """Return log-probabilities of shape (n, n_classes)."""
        return ensemble_logits(self.member_logits(x))

    def get_members(self):
        """Return the networks whose probabilities are averaged."""
        return list(self.members)


class Member(nn.Module):
    """A model in a precision of its own, its logits in the order of the ensemble."""

    def __init__(self, module, dtype, order):
        super().__init__()
        self.module = module
        self.dtype = dtype
        self.order = order

    def forward(self, x):
        """Return the logits."""
        logits = two_logits(self.module(x.to(self.dtype)), len(x))
        return (logits if self.order is None else logits[:, self.order]).to(x.dtype)
