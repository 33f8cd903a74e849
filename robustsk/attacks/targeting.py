"""Which class an attack runs towards, and what counts as reaching it."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch

from .._validation import check_count, encode_labels
from .batch import AttackBatch
from .noise import Stream

#: Targets that depend on the clean prediction.
BY_PREDICTION = ("least_likely", "random")


def choose_target(target, logits, y, noise):
    """Return the class that "least_likely" or "random" means for each sample, shape (n,)."""
    if target == "least_likely":
        return logits.scatter(1, y[:, None], np.inf).argmin(1)
    n_others = logits.shape[1] - 1
    drawn = (noise.scalar(Stream.TARGET) * n_others).long().clamp_max(n_others - 1)
    return drawn + (drawn >= y)


def encode_target(target, classes, n_samples):
    """Return the class to reach for each sample, shape (n_samples,), or None.

    That is None also where it depends on the clean prediction.
    """
    if target is None or (isinstance(target, str) and target in BY_PREDICTION):
        return None
    if np.ndim(target) > 1:
        raise ValueError(
            f"target has the shape {np.shape(target)}: give one label, or an array with one for "
            "each sample."
        )
    if np.ndim(target) == 1 and len(target) != n_samples:
        raise ValueError(
            f"target has {len(target)} labels and X {n_samples} (inconsistent numbers of samples): "
            "give one label for all samples, or one for each."
        )
    return np.broadcast_to(encode_labels(target, classes, "target"), (n_samples,)).copy()


def check_target(target, index, own):
    """Raise where a sample is to become what it is.

    Parameters
    ----------
    target : label or array-like of labels or None
        As the user has given it.
    index, own : ndarray of int64 of shape (n_samples,) or None
        The classes to reach and to move away from.
    """
    if index is None or own is None:
        return
    same = index == own
    # one class for all may well be the class of some of them
    if same.any() and (np.ndim(target) == 1 or same.all()):
        raise ValueError(
            f"target equals the label of {int(same.sum())} of {len(own)} samples (first: row "
            f"{int(np.argmax(same))}): a targeted attack needs a class to reach that is "
            "another one."
        )


def wrong_classes(logits, y, n_targets=None):
    """Return the most likely wrong classes, shape (n, n_targets).

    Parameters
    ----------
    logits : torch.Tensor of shape (n, n_classes)
        Of the clean samples; classes with equal logits come in their own order.
    y : torch.Tensor of shape (n,)
    n_targets : int, "all" or None, default=None
        None means all of them, as "all" does.
    """
    n_others = logits.shape[1] - 1
    if n_targets is None or (isinstance(n_targets, str) and n_targets == "all"):
        n_targets = n_others
    n_targets = check_count(n_targets, "n_targets")
    if n_targets > n_others:
        raise ValueError(
            f"n_targets={n_targets}, but a model with {logits.shape[1]} classes has {n_others} "
            f"wrong ones: give at most {n_others}."
        )
    others = logits.scatter(1, y[:, None], -torch.inf)
    return others.argsort(dim=1, descending=True, stable=True)[:, :n_targets]


@dataclass
class _Aimed(AttackBatch):
    """A batch whose target is a means only: every wrong class is a success."""

    def fooled(self, logits):
        return logits.argmax(1) != self.y


def aim(batch, target):
    """Return the batch with a target of which any other wrong class is as good."""
    values = {f.name: getattr(batch, f.name) for f in fields(batch)}
    return _Aimed(**{**values, "target": target, "info": {}})
