"""Training data as skorch and torch want them."""

from __future__ import annotations

import numpy as np
import skorch.dataset
import torch
from torch.utils.data import default_collate

from .._containers import is_dataset, sample_of, to_native


class Samples(skorch.dataset.Dataset):
    """Features, encoded labels and weights, fetched a whole batch at a time.

    Parameters
    ----------
    X : ndarray or torch Dataset
        Memory-mapped arrays stay on disk.
    y : ndarray of int64 or None
    weight : ndarray of float32 or None

    Attributes
    ----------
    rows : ndarray of int or None
        Which of the samples of the user these are, None for all.
    """

    rows = None

    def __init__(self, X, y=None, weight=None):
        self.X = X
        self.y = y
        self.weight = weight

    def __len__(self):
        return len(self.X)

    @property
    def shape(self):
        """What callbacks ask the data of a training for."""
        return (len(self), *np.shape(sample_of(self.X[0])))

    def __getitem__(self, index):
        if is_dataset(self.X):
            x = sample_of(self.X[int(index)])
        else:
            x = torch.from_numpy(to_native(np.array(self.X[index])))
        # a placeholder instead of None, which a DataLoader cannot collate
        y = 0 if self.y is None else self.y[index]
        return (x if self.weight is None else (x, self.weight[index])), y

    def __getitems__(self, indices):
        if is_dataset(self.X):
            return [self[i] for i in indices]
        indices = np.asarray(indices)
        x = torch.from_numpy(np.ascontiguousarray(to_native(self.X[indices])))
        y = torch.zeros(len(x)) if self.y is None else torch.from_numpy(self.y[indices])
        if self.weight is None:
            return _Batch((x, y))
        return _Batch(((x, torch.from_numpy(self.weight[indices])), y))


class _Batch(tuple):
    """A batch that needs no collating any more."""


def collate(items):
    """Collate single items, and let whole batches through."""
    return items if isinstance(items, _Batch) else default_collate(items)


class Crafted:
    """A training batch with its adversarial counterpart.

    Attributes
    ----------
    x : torch.Tensor
    adversarial : torch.Tensor or list of torch.Tensor
    y : torch.Tensor
    weight : torch.Tensor or None
    losses : torch.Tensor or None
        What the defence has made of it last.
    was_received : bool
        Whether it has come to the defence, past what a subclass has in front of it.
    """

    losses = None
    was_received = False

    def __init__(self, x, adversarial, y, weight):
        self.x, self.adversarial, self.y, self.weight = x, adversarial, y, weight

    def __len__(self):
        return len(self.x)
