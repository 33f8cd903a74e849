"""Any container in, the same container out; and what does not fit into memory in parts."""

from __future__ import annotations

import copy
import gc
import mmap
import os
import tempfile
import warnings

import numpy as np
import torch
from sklearn.utils import check_array
from torch.utils.data import Dataset

FLOATS = [np.float64, np.float32]
#: Bytes that are read at a time from where samples are lazy.
_CHUNK = 2**25
#: Results up to this size are kept in memory wherever the samples are.
_SMALL = 2**26


def is_dataset(X):
    """Tell a torch Dataset from everything that is an array already."""
    return isinstance(X, Dataset)


def sample_of(item):
    """Return the features of one item of a Dataset, with or without its label."""
    return item[0] if isinstance(item, (tuple, list)) else item


def check_not_empty(dataset):
    """Raise if a torch Dataset has no samples."""
    if len(dataset) == 0:
        raise ValueError("The Dataset is empty: 0 sample(s) while a minimum of 1 is required.")


def dataset_features(dataset):
    """Stack the features of a torch Dataset into one array."""
    check_not_empty(dataset)
    return np.stack([np.asarray(sample_of(dataset[i])) for i in range(len(dataset))])


def dataset_labels(dataset):
    """Return the labels of a torch Dataset, read item by item if need be."""
    for name in ("targets", "labels", "y"):
        labels = getattr(dataset, name, None)
        if labels is not None and len(labels) == len(dataset):
            return np.asarray(labels)
    tensors = getattr(dataset, "tensors", None)
    if tensors is not None and len(tensors) > 1:
        return np.asarray(tensors[1])
    first = dataset[0]
    if not isinstance(first, (tuple, list)) or len(first) < 2:
        raise ValueError("The Dataset yields no labels: pass them as y.")
    return np.asarray([np.asarray(dataset[i][1]).item() for i in range(len(dataset))])


def to_array(X):
    """Bring a torch tensor or Dataset into the form that scikit-learn validates."""
    if isinstance(X, torch.Tensor):
        return X.detach().cpu().numpy()
    if is_dataset(X):
        return dataset_features(X)
    return X


class Rows:
    """Samples on disk or in a Dataset, read and validated when they are asked for.

    Parameters
    ----------
    source : ndarray or torch Dataset
        An array is meant to be memory-mapped.

    Attributes
    ----------
    shape : tuple of int
    dtype : numpy dtype
        What the samples are converted to: float64 unless they are float32.
    """

    def __init__(self, source):
        if is_dataset(source):
            check_not_empty(source)
        self._source = source
        self._index = None
        first = check_array(self._read(slice(0, 1)), dtype=FLOATS, allow_nd=True)
        self.dtype = first.dtype
        self.shape = (len(source), *first.shape[1:])

    @property
    def ndim(self):
        """Number of dimensions."""
        return len(self.shape)

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, rows):
        """Return the samples in a slice or an index array, as finite floats in an ndarray."""
        if self._index is not None:
            rows = self._index[rows]
        return check_array(self._read(rows), dtype=self.dtype, allow_nd=True)

    def _read(self, rows):
        if not is_dataset(self._source):
            return self._source[rows]
        if isinstance(rows, slice):
            rows = range(*rows.indices(len(self._source)))
        return np.stack([np.asarray(sample_of(self._source[int(i)])) for i in rows])

    def take(self, rows):
        """Return some of the samples, unread."""
        other = copy.copy(self)
        other._index = (np.arange(len(self)) if self._index is None else self._index)[rows]
        other.shape = (len(other._index), *self.shape[1:])
        return other


def is_mapped(X):
    """Tell an array that lies in a file, or a view of one, from one in memory."""
    while isinstance(X, np.ndarray):
        X = X.base
    return isinstance(X, mmap.mmap)


def check_floats(X):
    """Return samples as an ndarray of finite floats."""
    return check_array(to_array(X), dtype=FLOATS, allow_nd=True)


def check_rows(X):
    """Return samples as `check_floats` does, or as `Rows` if they are on disk or a Dataset."""
    return Rows(X) if is_dataset(X) or is_mapped(X) else check_floats(X)


def take(X, rows):
    """Return some of the samples of an ndarray, or of `Rows` without reading them."""
    return X.take(rows) if isinstance(X, Rows) else X[rows]


def chunks(X, multiple=1):
    """Cut samples into slices that fit into memory: one only if they are in memory anyway.

    Parameters
    ----------
    X : ndarray or Rows
    multiple : int, default=1
        What the length of all slices but the last is to be a multiple of.

    Returns
    -------
    list of slice
    """
    size = max(len(X), 1)
    if isinstance(X, Rows) or is_mapped(X):
        size = multiple * max(1, _CHUNK // (multiple * _n_bytes(X.shape[1:], X.dtype) + 1))
    return [slice(i, min(i + size, len(X))) for i in range(0, len(X), size)]


def empty_like(X):
    """Return an uninitialised array of the shape and dtype of samples.

    It lies in a file if it is large and the samples are not in memory either.
    The file has no name, or loses it, and goes away with the last reference.
    The array is no `np.memmap`, which joblib would have other processes open
    by its name, but an ordinary one that is sent by value.
    """
    n_bytes = _n_bytes(X.shape, X.dtype)
    if n_bytes <= _SMALL or not (isinstance(X, Rows) or is_mapped(X)):
        return np.empty(X.shape, dtype=X.dtype)
    with tempfile.TemporaryFile() as file:
        if hasattr(os, "posix_fallocate"):
            # a full disk is an error here and a crash when a page is written
            os.posix_fallocate(file.fileno(), 0, n_bytes)
        else:
            file.truncate(n_bytes)
        return np.ndarray(X.shape, dtype=X.dtype, buffer=mmap.mmap(file.fileno(), n_bytes))


def copy_of(X):
    """Return a copy of samples, where `empty_like` puts it."""
    result = empty_like(X)
    for rows in chunks(X):
        result[rows] = X[rows]
    return result


def _n_bytes(shape, dtype):
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize


class Batches:
    """A batch size that is halved when memory runs out.

    Parameters
    ----------
    size : int
    """

    def __init__(self, size):
        self.first = self.size = size
        self._told = size

    def over(self, n_samples):
        """Yield a context for one slice of rows after the other.

        Entered it gives the rows. Where memory does not suffice it ends without an error, and the
        next one is about the first half of the same rows.

        Parameters
        ----------
        n_samples : int
        """
        start = 0
        while start < n_samples:
            attempt = _Attempt(slice(start, min(start + self.size, n_samples)))
            yield attempt
            if not attempt.has_failed:
                start = attempt.rows.stop
                continue
            # only here has the traceback let go of what the try had allocated
            self.size = (attempt.rows.stop - start) // 2
            gc.collect()
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()

    def run(self, work, n_samples):
        """Call ``work(rows)`` for one slice of rows after the other.

        Parameters
        ----------
        work : callable
            Called again for the first half of the rows where memory did not suffice.
        n_samples : int
        """
        for attempt in self.over(n_samples):
            with attempt as rows:
                work(rows)

    def warn(self, stacklevel=4):
        """Tell once what has been learned; whoever has made these batches does so in the end."""
        if self.size < self._told:
            self._told = self.size
            warnings.warn(
                f"Memory ran out with {self.first} samples at a time and sufficed for {self.size}. "
                f"Set batch_size={self.size} to save the attempts that fail.",
                UserWarning,
                stacklevel=stacklevel,
            )


class _Attempt:
    """Work on some rows, which may fail for lack of memory if it can be done in smaller parts."""

    def __init__(self, rows):
        self.rows = rows
        self.has_failed = False

    def __enter__(self):
        return self.rows

    def __exit__(self, kind, error, traceback):
        n_rows = self.rows.stop - self.rows.start
        self.has_failed = n_rows > 1 and error is not None and is_out_of_memory(error)
        return self.has_failed


def is_out_of_memory(error):
    """Tell whether a device or the CPU had no memory left, from errors of any other kind."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    message = str(error).lower()
    phrases = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, RuntimeError) and any(phrase in message for phrase in phrases)


def like(values, X):
    """Give the array `values` the container of `X`."""
    if isinstance(X, torch.Tensor):
        return torch.from_numpy(values).to(X.device)
    if hasattr(X, "iloc") and hasattr(X, "columns"):
        return type(X)(values, index=X.index, columns=X.columns)
    return values


def stack(first, second):
    """Concatenate two equal containers along the samples."""
    if hasattr(first, "iloc"):
        import pandas as pd

        return pd.concat([first, second], ignore_index=True)
    if isinstance(first, torch.Tensor):
        return torch.cat([first, second.to(first)])
    return np.concatenate([np.asarray(to_array(first)), np.asarray(second)])
