"""Validation at the door: what a number, a label or a range must be."""

from __future__ import annotations

import difflib
import numbers
import operator
import warnings
from collections.abc import Mapping

import numpy as np
import torch
from sklearn.utils.validation import column_or_1d

from ._containers import chunks


def check_count(value, name, least=1):
    """Validate a number of things."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}.")
    return int(value)


#: The batch size "auto": for tables of up to so many features, and for all else.
_ROWS_AT_A_TIME, _WIDE_TABLE, _SAMPLES_AT_A_TIME = 4096, 256, 256


def check_batch_size(value, X, is_image):
    """Return how many of the samples `X`, whose rows may be flattened images, go at a time."""
    if value != "auto":
        return check_count(value, "batch_size")
    is_table = X.ndim == 2 and X.shape[1] <= _WIDE_TABLE and not is_image
    return _ROWS_AT_A_TIME if is_table else _SAMPLES_AT_A_TIME


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
        Of shape () for images, of the shape of one sample for tables, and for
        series (n_samples, length, n_channels) with one range for each channel.
    """
    axis = None if is_image or X.ndim not in (2, 3) else 0
    lows, highs = [], []
    for rows in chunks(X):
        part = X[rows]
        lows.append(part.min(axis=axis))
        highs.append(part.max(axis=axis))
    low, high = np.asarray(np.min(lows, axis=0), float), np.asarray(np.max(highs, axis=0), float)
    if low.ndim != 2:
        return low, high
    return _of_channels(low, high)


#: Images without an axis for channels: smallest side, largest quotient of the sides, and the least
#: share of the range of all pixels that the columns or rows have on average.
_SIDE, _ELONGATION, _COMMON = 8, 4, 0.5


def _of_channels(low, high):
    """Return the range of each channel of a series, or that of all pixels of a grey image.

    Parameters
    ----------
    low, high : ndarray of shape (d1, d2)
        Of each value. What the axes are is told by what the values have in common: those of one
        channel are in one unit, which channels need not be.
    """
    of_last, of_first = (
        (low.min(axis, keepdims=True), high.max(axis, keepdims=True)) for axis in (0, 1)
    )
    width = max(float(high.max() - low.min()), 1e-300)
    last, first = (float(np.mean(most - least)) / width for least, most in (of_last, of_first))
    d1, d2 = low.shape
    is_one = 1 in (d1, d2)
    is_square = min(d1, d2) >= _SIDE and max(d1, d2) <= _ELONGATION * min(d1, d2)
    if is_one or (is_square and min(last, first) >= _COMMON):
        return np.asarray(low.min()), np.asarray(high.max())
    # channels come last but where those of the first axis differ clearly more
    return of_first if first < 0.8 * last else of_last


def names_of(*things):
    """Return the names of the columns, of the first table or fitted estimator that has any."""
    for thing in things:
        for attribute in ("columns", "feature_names_in_"):
            names = getattr(thing, attribute, None)
            if names is not None:
                return list(names)
    return None


def in_order(values, names, what):
    """Return values that have names in the order of the columns; others as they are.

    Parameters
    ----------
    values : object
        A Series, a table with one row, or anything else.
    names : list or None
        Names of the columns, None where they are not known.
    what : str
        Name of the argument, for messages.
    """
    if what == "mask" and isinstance(values, str):
        values = [values]
    if what == "mask" and _are_names(values):
        values = dict.fromkeys(values, True)
    is_dict = isinstance(values, Mapping)
    if is_dict:
        labels, numbers = list(values), list(values.values())
    elif hasattr(values, "columns"):
        if len(values) != 1:
            raise ValueError(
                f"{what} is a table with {len(values)} rows: give one value per column, in one "
                "row or in a Series."
            )
        labels, numbers = list(values.columns), np.asarray(values)[0]
    elif hasattr(values, "iloc"):
        labels, numbers = list(values.index), np.asarray(values)
    else:
        return values
    if not is_dict and labels == list(range(len(labels))):
        return numbers
    if names is None:
        raise ValueError(
            f"{what} has values for {labels[:10]}, and the columns of X have no names: pass X as a "
            f"DataFrame, or {what} as an array in the order of the columns."
        )
    check_known(labels, names, what)
    by_name = dict(zip(labels, numbers, strict=True))
    missing = [name for name in names if name not in by_name]
    # what a dict does not name stays as it is; a range has no such value
    is_partial = is_dict and what != "clip"
    if (missing and not is_partial) or len(labels) > len(names):
        raise ValueError(
            f"{what} must have one value for each column of X: {missing[:10]} have no value."
        )
    return np.array([by_name.get(name, False if what == "mask" else 0) for name in names])


def _are_names(values):
    return (
        isinstance(values, (list, tuple))
        and len(values) > 0
        and all(isinstance(value, str) for value in values)
    )


def check_known(labels, names, what):
    """Raise if some of `labels` are not among the names of the columns."""
    unknown = [label for label in labels if label not in names]
    if unknown:
        raise ValueError(
            f"{what} names columns that X does not have: {unknown[:10]}."
            f"{did_you_mean(unknown[0], names)} X has {list(names)[:20]}."
        )


def did_you_mean(name, names):
    """Return a question for whoever has mistyped a name, empty if none is like it."""
    close = difflib.get_close_matches(str(name), [str(n) for n in names], n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


#: What scikit-learn calls estimators that do not answer with classes.
_OTHER_KINDS = {
    "regressor": "a regressor",
    "clusterer": "a clusterer",
    "outlier_detector": "an outlier detector",
    "density_estimator": "a density estimator",
    "transformer": "a transformer",
}


def check_classifies(estimator):
    """Raise if an estimator says of itself that it does not predict classes."""
    tags = getattr(estimator, "__sklearn_tags__", None)
    if isinstance(estimator, type) or not callable(tags) or hasattr(estimator, "classes_"):
        return
    kind = _OTHER_KINDS.get(tags().estimator_type)
    if kind is not None:
        example = ""
        if kind == "a regressor":
            example = ", e.g. one fitted on the quantiles of y, pandas.qcut(y, 5, labels=False)"
        raise TypeError(
            f"{type(estimator).__name__} is {kind}, and robustness here is that of classes, which "
            f"an attack changes or does not: pass a classifier{example}."
        )


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
    """Warn where bytes meet a radius that is meant for [0, 1]; return whether they do."""
    if getattr(X, "dtype", None) not in (np.uint8, torch.uint8) or not 0 < np.max(eps) < 1:
        return False
    warnings.warn(
        f"X holds bytes (0 to 255) and eps={np.max(eps):g} is less than one of their steps: "
        "rescale the data to [0, 1] (X / 255), or give eps in units of 0 to 255.",
        UserWarning,
        stacklevel=stacklevel,
    )
    return True


#: Shares of the valid range outside of which a radius is in other units than the data.
_LEAST_SHARE, _LARGEST_SHARE = 1 / 500, 1 / 2


def warn_about_radius(eps, norm, lower, upper, sample_shape, stacklevel=4):
    """Warn where a radius is next to nothing, or next to everything, in the range of the data.

    Parameters
    ----------
    eps : float or ndarray
        Zero for features that are frozen.
    norm : float
        In the 0-norm, where `eps` is a number of features, there is nothing to say.
    lower, upper : array-like or None
        Valid range, None where there is none.
    sample_shape : tuple of int
    stacklevel : int, default=4
    """
    if lower is None or norm == 0:
        return
    low, high, eps = (np.broadcast_to(v, sample_shape) for v in (lower, upper, eps))
    free = (eps > 0) & (high > low)
    if not free.any():
        return
    low, high, eps = low[free], high[free], eps[free]
    # no feature moves by more than its radius, whatever the norm
    shares = eps / (high - low)
    share = float(np.median(shares))
    if share < _LEAST_SHARE:
        what = f"changes most features by no more than 1/{1 / share:.0f} of their range"
    else:
        # how much of the way from one corner of the range to the other is in reach
        share = share if norm == np.inf else float(1 / np.linalg.norm(1 / shares, ord=norm))
        if share <= _LARGEST_SHARE:
            return
        what = f"reaches {min(share, 1):.0%} of the way from one end of the range to the other"
    of_norm = "" if norm == np.inf else f" (norm {norm:g})"
    warnings.warn(
        f"eps={eps.max():.3g}{of_norm} {what}, which is [{low.min():.3g}, {high.max():.3g}] in "
        "all. eps is in the units of the data: give another one, or rescale the data to what it "
        "is meant for.",
        UserWarning,
        stacklevel=stacklevel,
    )


def warn_about_other_data(X, lower, upper, stacklevel=4):
    """Warn where samples are far out of the range that was learned from others.

    Parameters
    ----------
    X : ndarray or Rows of shape (n_samples, ...)
    lower, upper : array-like or None
        Smallest and largest value of each feature, None where they are not known.
    stacklevel : int, default=4
    """
    if lower is None or len(X) == 0:
        return
    few = X[np.unique(np.linspace(0, len(X) - 1, 100).astype(int))]
    # outliers are beyond the range; most samples, by more than its width, are not
    width = np.where(np.greater(upper, lower), np.subtract(upper, lower), np.inf)
    far = (few > upper + width) | (few < lower - width)
    if np.mean(far.reshape(len(few), -1).any(1)) > 0.5:
        warnings.warn(
            f"X lies in [{few.min():.3g}, {few.max():.3g}], and what clip='auto' has learned is "
            f"[{np.min(lower):.3g}, {np.max(upper):.3g}]: are these the units of the training "
            "data? Scale both alike, or give clip=(low, high).",
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
                "classes only as 0, 1, 2, ...: pass class indices, or name them: "
                "as_victim(module, classes=[...])."
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
        is_count = np.array_equal(classes, np.arange(len(classes)))
        hint = ""
        if is_count and isinstance(unknown[0], str):
            hint = (
                " A torch module, which knows its classes only as numbers, is told their names by "
                "as_victim(module, classes=[...]), to be attacked in its place."
            )
        raise ValueError(
            f"{what} contains labels that the model has not been trained on: {unknown}. "
            f"It knows {np.asarray(classes)[:10].tolist()}.{hint}"
        )
    return np.asarray(index, dtype=np.int64)


#: What whoever passes a single sample must know.
FIRST_AXIS = "The first axis of X counts samples: for one sample pass X[None]"


def check_sample_shape(shape, fitted, owner):
    """Raise if samples are not of the shape that `owner` was fitted on."""
    if tuple(shape) != tuple(fitted):
        hint = ""
        if tuple(shape) == tuple(fitted)[1:]:
            hint = f" {FIRST_AXIS}."
        raise ValueError(
            f"X has samples of shape {tuple(shape)}, but {type(owner).__name__} was fitted on "
            f"samples of shape {tuple(fitted)}.{hint}"
        )


def check_labels(y):
    """Return `y` as a 1-D array, with a word of help for one-hot and for several labels."""
    if y is None:
        raise ValueError(
            "y is None: pass the true labels, one for each sample; only a Dataset that yields them "
            "needs none."
        )
    if isinstance(y, torch.Tensor):
        y = y.detach().cpu().numpy()
    shape = getattr(y, "shape", None)
    if shape is None:
        try:
            shape = np.asarray(y).shape
        except ValueError as error:  # lists of different lengths
            raise ValueError(f"y must be one-dimensional and holds sequences. {_ONE}") from error
    if len(shape) == 0:
        raise ValueError(
            f"y is a single label, {y!r}, and not one for each sample. {FIRST_AXIS} and [y]."
        )
    if len(shape) > 2 or (len(shape) == 2 and shape[1] > 1):
        hint = "If it is one-hot encoded, pass y.argmax(axis=1)." if _is_one_hot(y) else _ONE
        raise ValueError(f"y must be one-dimensional and has shape {shape}. {hint}")
    return y


_ONE = "Multilabel and multi-output targets are not supported: there is one label for each sample."


def _is_one_hot(y):
    y = np.asarray(y)
    if y.ndim != 2:
        return False
    return y.dtype.kind in "biuf" and np.isin(y, (0, 1)).all() and (y.sum(axis=1) == 1).all()


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
