"""Any container in, the same container out; and what does not fit into memory in parts."""

from __future__ import annotations

import copy
import gc
import mmap
import os
import sys
import tempfile
import warnings
from collections.abc import Mapping

import numpy as np
import torch
from scipy.sparse import issparse
from sklearn.utils import check_array
from torch.utils.data import DataLoader, Dataset, IterableDataset

FLOATS = [np.float64, np.float32]
#: Bytes that are read at a time from where samples are lazy.
_CHUNK = 2**25
#: Results up to this size are kept in memory wherever the samples are.
_SMALL = 2**26


def is_dataset(X):
    """Tell a torch Dataset from everything that is an array already."""
    helper = sys.modules.get("skorch.helper")
    return isinstance(X, Dataset) or (helper is not None and isinstance(X, helper.SliceDataset))


#: How messages about several inputs end.
_SEVERAL = (
    "and networks with several inputs are not supported: there must be one input array, which the "
    "module may take apart."
)


def sample_of(item):
    """Return the features of one item of a Dataset, with or without its label."""
    if isinstance(item, Mapping):
        raise TypeError(
            f"The items of the Dataset are dicts ({sorted(map(str, item))}): each must be a pair "
            "(features, label), or the features alone, as one array."
        )
    if not isinstance(item, (tuple, list)):
        return item
    inputs = item[0] if item else None
    if len(item) > 2 and np.asarray(item[1]).size > 1:  # which is no label
        inputs = item[:-1]
    if isinstance(inputs, (tuple, list, Mapping)):
        raise TypeError(f"The items of the Dataset have {len(inputs)} inputs, {_SEVERAL}")
    if len(item) not in (1, 2):
        raise ValueError(
            f"The items of the Dataset have {len(item)} values: each must be a pair (features, "
            "label), or the features alone, as one array; weights are given as sample_weight."
        )
    return item[0]


def read_sample(dataset, index):
    """Return the features of one item of a Dataset as an array."""
    return np.asarray(_from_torch(sample_of(dataset[int(index)])))


def check_not_empty(dataset):
    """Raise if a torch Dataset has no samples, or none that can be asked for."""
    if isinstance(dataset, IterableDataset):
        raise TypeError(
            "An IterableDataset has neither a length nor items to ask for by number, which is how "
            "samples are read here: collect its items, list(dataset) and torch.stack, into a "
            "TensorDataset, or write a Dataset with __len__ and __getitem__."
        )
    if len(dataset) == 0:
        raise ValueError("The Dataset is empty: 0 sample(s) while a minimum of 1 is required.")


def dataset_features(dataset):
    """Stack the features of a torch Dataset into one array."""
    check_not_empty(dataset)
    return np.stack([read_sample(dataset, i) for i in range(len(dataset))])


def dataset_labels(dataset):
    """Return the labels of a torch Dataset, read item by item if need be."""
    check_not_empty(dataset)
    first = dataset[0]
    sample_of(first)  # raises if items are of another kind
    for name in ("targets", "labels", "y"):
        labels = getattr(dataset, name, None)
        if labels is not None and len(labels) == len(dataset):
            return np.asarray(labels)
    tensors = getattr(dataset, "tensors", None)
    if tensors is not None and len(tensors) > 1:
        return np.asarray(tensors[1])
    if not isinstance(first, (tuple, list)) or len(first) < 2:
        raise ValueError("The Dataset yields no labels: pass them as y.")
    return np.asarray([np.asarray(dataset[i][1]).item() for i in range(len(dataset))])


def to_array(X):
    """Bring a torch tensor or Dataset into the form that scikit-learn validates."""
    if isinstance(X, torch.Tensor):
        return _from_torch(X).numpy()
    if is_dataset(X):
        return dataset_features(X)
    check_one_input(X)
    return X


def check_one_input(X, y=None):
    """Raise if X is a DataLoader, or arrays that hold different features of the same samples.

    Parameters
    ----------
    X : object
    y : array-like of shape (n_samples,), optional
        Labels, which tell how many samples there are. Without them only the shapes can tell.
    """
    if isinstance(X, DataLoader):
        raise TypeError("X is a DataLoader, and batches are made here: pass loader.dataset.")
    if isinstance(X, Mapping) and not issparse(X):  # a DOK matrix is a dict as well
        raise TypeError(f"X is a dict of inputs ({sorted(map(str, X))}), {_SEVERAL}")
    if not isinstance(X, (tuple, list)):
        return
    n_samples = len(y) if hasattr(y, "__len__") else None
    if len(X) in (0, n_samples):
        return
    shapes = [getattr(part, "shape", ()) for part in X]
    lengths = {shape[0] if len(shape) > 1 else None for shape in shapes}
    if (
        len(lengths) == 1
        and None not in lengths
        and (lengths == {n_samples} or (n_samples is None and len(set(shapes)) > 1))
    ):
        raise TypeError(
            f"X is a {type(X).__name__} of {len(X)} arrays, of shapes "
            f"{', '.join(str(tuple(shape)) for shape in shapes)}, {_SEVERAL}"
        )


def _from_torch(X):
    """Return a tensor as NumPy knows them, and anything else as it is."""
    if not isinstance(X, torch.Tensor):
        return X
    X = X.detach().cpu()
    if X.layout != torch.strided:
        X = X.to_dense()
    is_exotic = X.is_floating_point() and X.dtype not in (
        torch.float16, torch.float32, torch.float64,
    )  # fmt: skip
    return X.float() if is_exotic else X


def to_dense(X):
    """Return a sparse matrix as an array, if there is memory for it, and anything else as it is."""
    if not issparse(X):
        return X
    size = _n_bytes(X.shape, X.dtype)
    if size > _memory() / 2:
        raise ValueError(
            f"X is sparse and would take {size / 2**30:.1f} GiB as the dense array that a network "
            "is trained on: keep fewer features (SelectKBest, max_features=), or reduce them "
            "(TruncatedSVD)."
        )
    return X.toarray()


def _memory():
    """Return the bytes of memory of this machine, infinity where it does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return np.inf


def to_native(values):
    """Return an array in a dtype that torch has: not in the other byte order, not longer."""
    if values.dtype.kind == "f" and values.dtype.itemsize > 8:
        return values.astype(np.float64)
    if not values.dtype.isnative:
        return values.astype(values.dtype.newbyteorder("="))
    return values


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
        return np.stack([read_sample(self._source, i) for i in rows])

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
    if _is_polars(X):
        return type(X)(values, schema=X.columns)
    return values


def _is_polars(X):
    return type(X).__module__.partition(".")[0] == "polars"


def stack(first, second):
    """Concatenate two equal containers along the samples."""
    if hasattr(first, "iloc"):
        import pandas as pd

        return pd.concat([first, second], ignore_index=True)
    if _is_polars(first):
        import polars as pl

        how = "vertical_relaxed" if isinstance(first, pl.DataFrame) else "vertical"
        return pl.concat([first, second], how=how)
    if isinstance(first, torch.Tensor):
        return torch.cat([first, second.to(first)])
    return np.concatenate([np.asarray(to_array(first)), np.asarray(second)])
