"""Any container in, the same container out."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.data import Dataset


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


def check_sample_shape(shape, fitted, owner):
    """Raise if samples are not of the shape that `owner` was fitted on."""
    if tuple(shape) != tuple(fitted):
        raise ValueError(
            f"X has samples of shape {tuple(shape)}, but {type(owner).__name__} was fitted on "
            f"samples of shape {tuple(fitted)}."
        )


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


def like(values, X):
    """Give the array `values` the container of `X`."""
    if isinstance(X, torch.Tensor):
        return torch.from_numpy(values).to(X.device)
    if hasattr(X, "iloc") and hasattr(X, "columns"):
        return type(X)(values, index=X.index, columns=X.columns)
    return values


def check_labels(y):
    """Return `y` as a 1-D array, with a word of help for one-hot labels."""
    if isinstance(y, torch.Tensor):
        y = y.detach().cpu().numpy()
    shape = getattr(y, "shape", None)
    if shape is None:
        shape = np.asarray(y).shape
    if len(shape) == 2 and shape[1] > 1:
        raise ValueError(
            f"y must be one-dimensional and has shape {shape}. If it is one-hot encoded, "
            "pass y.argmax(axis=1)."
        )
    return y
