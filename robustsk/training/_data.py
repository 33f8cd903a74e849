"""Training data as skorch and torch want them."""

from __future__ import annotations

import numpy as np
import skorch.dataset
import torch
from torch.utils.data import Subset, default_collate

from .._containers import is_dataset, sample_of, to_native

#: Share of the free memory of a device that samples may take up.
_SHARE = 0.25


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


class _Resident(Samples):
    """Samples in the memory of a device, whose batches are there as well."""

    def __init__(self, samples, device, dtype):
        x = torch.from_numpy(np.ascontiguousarray(to_native(np.asarray(samples.X))))
        # bytes take up a quarter of the room, and are cast in each batch
        self.X = x.to(device, x.dtype if x.dtype == torch.uint8 else dtype)
        self.y = None if samples.y is None else torch.from_numpy(samples.y).to(device)
        self.weight = samples.weight
        if self.weight is not None:
            self.weight = torch.from_numpy(np.asarray(self.weight)).to(device)

    def __getitems__(self, indices):
        # the host need not wait: what it copies from pages of its own is taken at once
        rows = torch.as_tensor(indices).to(self.X.device, non_blocking=True)
        x = self.X[rows]
        y = torch.zeros(len(x), device=x.device) if self.y is None else self.y[rows]
        return _Batch((x if self.weight is None else (x, self.weight[rows]), y))


def resident(dataset, device, dtype, known, is_new=True):
    """Return samples as they are in the memory of a device, if they are an array that fits there.

    Parameters
    ----------
    dataset : torch Dataset
    device : torch.device
        A GPU.
    dtype : torch.dtype or None
        What a batch is cast to.
    known : dict
        What is there already; what is put there is added.
    is_new : bool, default=True
        Whether anything may be put there. What is asked for once only is not worth it.

    Returns
    -------
    torch Dataset
        `dataset` itself if it is anything but `Samples` of an array in memory, or takes more than
        a quarter of the memory that is free.
    """
    if isinstance(dataset, Subset):
        whole = resident(dataset.dataset, device, dtype, known, is_new)
        return dataset if whole is dataset.dataset else Subset(whole, dataset.indices)
    if type(dataset) is not Samples or not isinstance(dataset.X, np.ndarray):
        return dataset
    if isinstance(dataset.X, np.memmap) or dtype is None:
        return dataset
    if id(dataset) not in known:
        if not is_new:
            return dataset
        size = dataset.X.size * (1 if dataset.X.dtype == np.uint8 else dtype.itemsize)
        if size > _SHARE * torch.cuda.mem_get_info(device)[0]:
            return dataset
        # with the samples themselves, whose id would be another's otherwise
        known[id(dataset)] = _Resident(dataset, device, dtype), dataset
    return known[id(dataset)][0]


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
