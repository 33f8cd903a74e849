"""Validation at the door: what a number, a label or a range must be."""

from __future__ import annotations

import numbers
import operator
import warnings

import numpy as np
import torch
from sklearn.utils.validation import column_or_1d

from ._containers import chunks


def check_count(value, name, least=1):
    """Validate a number of things."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}.")
    return int(value)


def check_choice(value, name, allowed):
    """Raise unless a value is one of those allowed."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {tuple(allowed)}, got {value!r}.")


def learn_bounds(X, is_image):
    """Return the smallest and largest valid value seen in `X`.

    Parameters
    ----------
    X : ndarray or Rows of shape (n_samples, ...)
    is_image : bool
        Whether rows are flattened images. For images one range holds for all
        pixels: a pixel that happens to be constant may still be attacked.

    Returns
    -------
    tuple of (ndarray, ndarray)
        Of shape () for images, of the shape of one sample for tables.
    """
    axis = None if is_image or X.ndim > 2 else 0
    lows, highs = [], []
    for rows in chunks(X):
        part = X[rows]
        lows.append(part.min(axis=axis))
        highs.append(part.max(axis=axis))
    return np.asarray(np.min(lows, axis=0), float), np.asarray(np.max(highs, axis=0), float)


def check_range(X, lower, upper):
    """Raise if `X` lies outside of an explicit box by more than rounding."""
    if lower is None:
        return
    slack = 1e-6 * np.maximum(upper - lower, 1e-30)
    parts = (X[rows] for rows in chunks(X))
    if any(np.any(lower - slack > part) or np.any(upper + slack < part) for part in parts):
        low, high = learn_bounds(X, True)
        raise ValueError(
            f"X lies in [{low:g}, {high:g}], outside of clip=[{np.min(lower):g}, "
            f"{np.max(upper):g}]. Give clip in the units of the data (and eps as well), or "
            "rescale the data, e.g. X / 255."
        )


def warn_about_units(X, eps, stacklevel=4):
    """Warn where bytes meet a radius that is meant for [0, 1]."""
    if getattr(X, "dtype", None) in (np.uint8, torch.uint8) and 0 < np.max(eps) < 1:
        warnings.warn(
            f"X holds bytes (0 to 255) and eps={np.max(eps):g} is less than one of their steps: "
            "rescale the data to [0, 1] (X / 255), or give eps in units of 0 to 255.",
            UserWarning,
            stacklevel=stacklevel,
        )


def encode_labels(labels, classes, what):
    """Turn labels into class indices.

    Parameters
    ----------
    labels : array-like or scalar
    classes : ndarray or None
        Labels in the order of the logits; None where classes are 0, 1, 2, ...
    what : str
        Name of the argument, for messages.

    Returns
    -------
    ndarray of int64, of the shape of `labels`
    """
    labels = np.asarray(labels)
    if labels.ndim:
        labels = column_or_1d(labels)
    if classes is None:
        if not np.issubdtype(labels.dtype, np.integer) and not np.array_equal(
            labels, labels.astype(np.int64) if labels.dtype.kind in "fb" else None
        ):
            raise ValueError(
                f"{what} holds labels of type {labels.dtype}, but a torch module knows its "
                "classes only as 0, 1, 2, ...: pass class indices."
            )
        return labels.astype(np.int64)
    order = np.argsort(classes)
    try:
        position = np.searchsorted(classes, labels, sorter=order).clip(0, len(classes) - 1)
        index = order[position]
        known = classes[index] == labels
    except TypeError:  # strings against numbers do not compare
        known = np.zeros(labels.shape, dtype=bool)
        index = known
    if not np.all(known):
        unknown = np.unique(np.atleast_1d(labels)[~np.atleast_1d(known)])[:5].tolist()
        raise ValueError(
            f"{what} contains labels that the model has not been trained on: {unknown}. "
            f"It knows {np.asarray(classes)[:10].tolist()}."
        )
    return np.asarray(index, dtype=np.int64)


def check_sample_shape(shape, fitted, owner):
    """Raise if samples are not of the shape that `owner` was fitted on."""
    if tuple(shape) != tuple(fitted):
        raise ValueError(
            f"X has samples of shape {tuple(shape)}, but {type(owner).__name__} was fitted on "
            f"samples of shape {tuple(fitted)}."
        )


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


RANDOM_STARTS = ("none", "uniform", "gaussian")


def check_length(value, name):
    """Validate a step size or standard deviation."""
    if not isinstance(value, numbers.Real) or not np.isfinite(value) or value < 0:
        raise ValueError(f"{name} must be a finite number of at least 0, got {value!r}.")
    return float(value)


def check_start(value):
    """Validate the kind of random start."""
    check_choice(value, "random_start", RANDOM_STARTS)
    return value


def check_positive(value, name):
    """Validate a number that must be finite and larger than 0."""
    if not isinstance(value, numbers.Real) or not np.isfinite(value) or value <= 0:
        raise ValueError(f"{name} must be a finite number larger than 0, got {value!r}.")
    return float(value)


def check_share(value, name, most):
    """Validate a number from 0 to `most`."""
    if not isinstance(value, numbers.Real) or not 0 <= value <= most:
        raise ValueError(f"{name} must be a number from 0 to {most}, got {value!r}.")


def check_positive_int(value: int, name: str) -> int:
    """Return value as an int, or say what is wrong with it."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, got {value!r}.") from None
    if number < 1:
        raise ValueError(f"{name} must be at least 1, got {number}.")
    return number


def check_probability(value: float, name: str) -> float:
    """Return value as a float in [0, 1), or say what is wrong with it."""
    if not 0.0 <= value < 1.0:
        raise ValueError(f"{name} is a probability in [0, 1), got {value!r}.")
    return float(value)
