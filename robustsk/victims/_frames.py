"""Columns of tables of pandas and polars, and of arrays, as numbers and back."""

from __future__ import annotations

import copy
import sys

import numpy as np

#: What stands for a number that is missing: so large that no step away from it is one.
MISSING = 1e100
#: What is as large as that is missing.
_LEAST_MISSING = 1e99
#: Integers beyond it are not all floating-point numbers.
_LARGEST_INTEGER = 2**53


def is_missing(values):
    """Return where a number stands for one that is missing."""
    return values >= _LEAST_MISSING


class NumberColumn:
    """A column of numbers.

    Parameters
    ----------
    dtype : dtype
        As the table has it; of NumPy, pandas or polars.
    is_integer : bool
    is_single : bool
        Whether its numbers are in single precision.
    has_missing : bool
    """

    is_coded = is_opaque = is_ordered = False

    def __init__(self, dtype, is_integer, is_single, has_missing):
        self.dtype, self.is_integer, self.is_single = dtype, is_integer, is_single
        self.has_missing = has_missing

    def numbers(self, values):
        """Return values as they come, floating or missing, as they are counted here."""
        numbers = np.asarray(values, dtype=np.float64)
        return np.where(np.isnan(numbers), MISSING, numbers)

    def joined(self, other):
        """Return the column that holds the values of another one as well."""
        joined = copy.copy(other)
        joined.has_missing = self.has_missing or other.has_missing
        return joined


class LabelColumn:
    """A column of labels, which are numbered.

    Parameters
    ----------
    labels : list
        All values but that which is missing, in their order.
    dtype : dtype
        As the table has it.
    missing : object or None
        What is missing looks like this in the table; has the last number.
    has_missing : bool
    is_ordered : bool, default=False
    is_opaque : bool, default=False
        Whether they are no labels but something that nobody can change sensibly.
    """

    is_coded, is_integer, is_single = True, False, False

    def __init__(
        self, labels, dtype, missing=None, has_missing=False, is_ordered=False, is_opaque=False
    ):
        self.labels, self.dtype = list(labels), dtype
        self.missing, self.has_missing = missing, has_missing
        self.is_ordered, self.is_opaque = is_ordered, is_opaque

    @property
    def n_values(self):
        """How many numbers there are, that of what is missing included."""
        return len(self.labels) + self.has_missing

    def numbers(self, values, is_missing):
        """Return the numbers of labels."""
        place = {label: number for number, label in enumerate(self.labels)}
        found = np.full(len(values), float(len(self.labels)))
        for row in np.flatnonzero(~is_missing):
            found[row] = place[values[row]]
        return found

    def joined(self, other):
        """Return the column that holds the values of another one as well, which come last."""
        joined = copy.copy(other)
        known = set(self.labels)
        joined.labels = self.labels + [label for label in other.labels if label not in known]
        joined.has_missing = self.has_missing or other.has_missing
        return joined

    def admits(self, number):
        """Return whether the dtype of the table has room for the label of a number."""
        categories = getattr(self.dtype, "categories", None)
        if categories is None or number >= len(self.labels):
            return True
        return self.labels[number] in list(categories)


def is_polars(X):
    module = sys.modules.get("polars")
    return module is not None and isinstance(X, module.DataFrame)


def maker_of(X):
    if is_polars(X):
        return PolarsTables
    return PandasTables if hasattr(X, "iloc") and hasattr(X, "columns") else Arrays


def _sorted(labels):
    try:
        return sorted(labels)
    except TypeError:
        return sorted(labels, key=lambda label: (type(label).__name__, repr(label)))


def _labels_of(values, missing, name):
    try:
        return _sorted({v for v, is_lost in zip(values, missing, strict=True) if not is_lost})
    except TypeError as error:
        raise ValueError(
            f"column {name!r} holds values that are no labels, such as "
            f"{type(next(v for v in values if v.__hash__ is None)).__name__}: leave it out."
        ) from error


def _are_large(numbers):
    """Return whether there are integers that floating-point numbers cannot tell apart."""
    sizes = np.abs(np.asarray(numbers, dtype=np.float64))
    return bool(len(sizes)) and sizes.max() > _LARGEST_INTEGER


def _of_objects(name, values, missing, dtype):
    """Return a column of objects: of numbers, of labels, or of what nobody can change."""
    known = [value for value, is_lost in zip(values, missing, strict=True) if not is_lost]
    lost = len(known) < len(values)
    numeric = (int, float, np.integer, np.floating)
    if known and all(isinstance(v, numeric) and not isinstance(v, bool) for v in known):
        is_integer = all(isinstance(v, (int, np.integer)) for v in known)
        return NumberColumn(dtype, is_integer, False, lost)
    token = next((v for v, is_lost in zip(values, missing, strict=True) if is_lost), None)
    are_labels = all(isinstance(v, (str, bool, np.bool_, *numeric)) for v in known)
    labels = _labels_of(values, missing, name)
    return LabelColumn(labels, dtype, token, lost, is_opaque=not are_labels)


class _Frames:
    """What tables of pandas and polars have in common."""

    has_names = True

    @classmethod
    def given(cls, X):
        given = list(X.columns)
        if len(set(given)) < len(given):
            twice = sorted({str(name) for name in given if given.count(name) > 1})
            raise ValueError(f"X has several columns of one name: {twice[:10]}.")
        return given

    @staticmethod
    def sorted(names):
        return sorted(names, key=str)

    @classmethod
    def columns(cls, X, names):
        return [cls.column(name, X[name]) for name in names]

    @classmethod
    def encode(cls, columns, X):
        values = np.empty((len(X), len(columns.columns)))
        for number, (name, column) in enumerate(zip(columns.names, columns.columns, strict=True)):
            if column.is_coded:
                held = X[name].to_list()
                values[:, number] = column.numbers(held, cls.missing(X[name]))
            else:
                values[:, number] = column.numbers(cls.floats(X[name]))
        return values

    @classmethod
    def restore(cls, columns, values, X):
        before, after = columns.encode(X), columns.frame(values)
        again = columns.encode(after)
        changed = {
            name: before[:, number] != again[:, number] for number, name in enumerate(columns.names)
        }
        return cls.with_changes(X, after, {n: rows for n, rows in changed.items() if rows.any()})


class PandasTables(_Frames):
    """Tables of pandas."""

    @staticmethod
    def missing(series):
        return series.isna().to_numpy(dtype=bool)

    @staticmethod
    def floats(series):
        return series.to_numpy(dtype=np.float64, na_value=np.nan)

    @classmethod
    def column(cls, name, series):
        import pandas as pd

        types, dtype, missing = pd.api.types, series.dtype, cls.missing(series)
        lost = bool(missing.any())
        token = series[missing].iloc[0] if lost else None
        if isinstance(dtype, pd.CategoricalDtype):
            return LabelColumn(list(dtype.categories), dtype, None, lost, bool(dtype.ordered))
        if types.is_bool_dtype(dtype):
            return LabelColumn([False, True], dtype, token, lost)
        is_integer = types.is_integer_dtype(dtype)
        if is_integer and _are_large(series.dropna()):
            return LabelColumn(_sorted(set(series.dropna())), dtype, token, lost, is_opaque=True)
        if is_integer or types.is_float_dtype(dtype):
            is_single = not is_integer and getattr(dtype, "itemsize", 8) < 8
            return NumberColumn(dtype, is_integer, is_single, lost)
        values = series.tolist()
        if types.is_object_dtype(dtype):
            return _of_objects(name, values, missing, dtype)
        labels = _labels_of(values, missing, name)
        is_text = types.is_string_dtype(dtype)
        return LabelColumn(labels, dtype, token, lost, is_opaque=not is_text)

    @classmethod
    def frame(cls, columns, values):
        import pandas as pd

        decoded = {
            name: cls.decoded(column, values[:, number])
            for number, (name, column) in enumerate(
                zip(columns.names, columns.columns, strict=True)
            )
        }
        frame = pd.DataFrame({name: decoded[name] for name in columns.given}, copy=False)
        frame.columns = columns.given
        return frame

    @staticmethod
    def decoded(column, values):
        import pandas as pd

        if column.is_coded:
            held = vars(column).get("_held")
            if held is None:
                # what the dtype has no room for is never asked about
                known = [
                    label if column.admits(number) else None
                    for number, label in enumerate(column.labels)
                ]
                known += [column.missing] if column.has_missing else []
                held = column._held = pd.Series(known, dtype=column.dtype).array
            return held.take(np.rint(values).clip(0, len(held) - 1).astype(np.int64))
        lost = is_missing(values)
        is_numpy = isinstance(column.dtype, np.dtype)
        if not column.is_integer:
            values = np.where(lost, np.nan, values)
            return values.astype(column.dtype) if is_numpy else pd.array(values, column.dtype)
        whole = np.where(lost, 0, np.rint(values)).astype(np.int64)
        if is_numpy:
            return whole.astype(column.dtype)
        whole = pd.array(whole, dtype=column.dtype)
        whole[lost] = pd.NA
        return whole

    @staticmethod
    def with_changes(X, after, changed):
        result = X.copy()
        for name, rows in changed.items():
            series = result[name].copy()
            series.iloc[np.flatnonzero(rows)] = after[name].array[rows]
            result[name] = series
        return result


class PolarsTables(_Frames):
    """Tables of polars."""

    @staticmethod
    def missing(series):
        lost = series.is_null()
        if series.dtype.is_float():
            lost = lost | series.is_nan().fill_null(True)
        return lost.to_numpy()

    @staticmethod
    def floats(series):
        return series.cast(float).fill_null(float("nan")).to_numpy()

    @classmethod
    def column(cls, name, series):
        import polars as pl

        dtype, missing = series.dtype, cls.missing(series)
        lost = bool(missing.any())
        if dtype.is_integer() and _are_large(series.drop_nulls().to_numpy()):
            known = series.drop_nulls().unique().sort().to_list()
            return LabelColumn(known, dtype, None, lost, is_opaque=True)
        if dtype.is_integer() or dtype.is_float():
            column = NumberColumn(dtype, dtype.is_integer(), dtype == pl.Float32, lost)
            column.is_null = bool(series.is_null().any())
            return column
        if dtype == pl.Boolean:
            return LabelColumn([False, True], dtype, None, lost)
        if isinstance(dtype, pl.Enum):
            return LabelColumn(dtype.categories.to_list(), dtype, None, lost)
        labels = _labels_of(series.to_list(), missing, name)
        is_text = isinstance(dtype, (pl.Categorical, pl.String)) or dtype == pl.String
        return LabelColumn(labels, dtype, None, lost, is_opaque=not is_text)

    @classmethod
    def frame(cls, columns, values):
        import polars as pl

        series = [
            cls.decoded(column, values[:, number]).alias(columns.names[number])
            for number, column in enumerate(columns.columns)
        ]
        return pl.DataFrame(series)[columns.given]

    @staticmethod
    def decoded(column, values):
        import polars as pl

        if column.is_coded:
            known = [*column.labels, None] if column.has_missing else column.labels
            held = pl.Series(known, dtype=column.dtype)
            return held.gather(np.rint(values).clip(0, len(held) - 1).astype(np.int64))
        lost = is_missing(values)
        if column.is_integer:
            values = np.where(lost, 0, np.rint(values)).astype(np.int64)
            series = pl.Series(values).cast(column.dtype)
            return series.zip_with(pl.Series(~lost), pl.Series([None], dtype=column.dtype))
        series = pl.Series(np.where(lost, np.nan, values)).cast(column.dtype)
        return series.fill_nan(None) if getattr(column, "is_null", False) else series

    @staticmethod
    def with_changes(X, after, changed):
        import polars as pl

        return X.with_columns(
            [after[n].zip_with(pl.Series(rows), X[n]).alias(n) for n, rows in changed.items()]
        )


class Arrays:
    """Arrays: of numbers, of any shape; of objects, with two axes."""

    has_names = False

    @staticmethod
    def given(X):
        return list(range(int(np.prod(np.shape(X)[1:]))))

    @staticmethod
    def sorted(names):
        return names

    @classmethod
    def columns(cls, X, names):
        X = np.asarray(X)
        if X.dtype.kind in "biuf":
            lost = X.dtype.kind == "f" and bool(np.isnan(X).any())
            is_single = X.dtype.kind == "f" and X.dtype.itemsize < 8
            column = NumberColumn(X.dtype, X.dtype.kind != "f", is_single, lost)
            return [column] * int(np.prod(X.shape[1:]))
        return [cls.column(number, X[:, number]) for number in range(X.shape[1])]

    @staticmethod
    def lost(values):
        # None, and what is not equal to itself
        return np.array([v is None or v != v for v in values], dtype=bool)

    @classmethod
    def column(cls, name, values):
        return _of_objects(name, values, cls.lost(values), values.dtype)

    @classmethod
    def encode(cls, columns, X):
        X = np.asarray(X)
        if X.dtype.kind in "biuf":
            values = X.astype(np.float64)
            return np.where(np.isnan(values), MISSING, values)
        found = np.empty(X.shape)
        for number, column in enumerate(columns.columns):
            values, missing = X[:, number], cls.lost(X[:, number])
            if column.is_coded:
                found[:, number] = column.numbers(values, missing)
            else:
                found[:, number] = column.numbers(
                    [np.nan if m else v for v, m in zip(values, missing, strict=True)]
                )
        return found

    @classmethod
    def frame(cls, columns, values):
        first = columns.columns[0]
        if first.dtype.kind in "biuf":  # one dtype for all
            values = np.where(is_missing(values), np.nan, values)
            return (np.rint(values) if first.is_integer else values).astype(first.dtype)
        table = np.empty(values.shape, dtype=object)
        for number, column in enumerate(columns.columns):
            table[:, number] = cls.decoded(column, values[:, number])
        return table.astype(columns.columns[0].dtype)

    @staticmethod
    def decoded(column, values):
        if column.is_coded:
            known = np.empty(column.n_values, dtype=object)
            known[:] = [*column.labels, column.missing] if column.has_missing else column.labels
            return known[np.rint(values).clip(0, len(known) - 1).astype(np.int64)]
        lost = is_missing(values)
        if column.is_integer:
            found = np.where(lost, 0, np.rint(values)).astype(np.int64).astype(object)
        else:
            found = values.astype(object)
        found[lost] = np.nan
        return found

    @classmethod
    def restore(cls, columns, values, X):
        before = np.asarray(X)
        after = columns.frame(values)
        if before.dtype.kind in "biuf":
            return after.astype(before.dtype)
        is_same = columns.encode(before) == columns.encode(after)
        return np.where(is_same, before, after)
