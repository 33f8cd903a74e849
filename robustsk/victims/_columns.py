"""Tables as numbers, and numbers as tables: what a model is asked about is a table like the user's.

The values of a column with labels (strings, categories, booleans, dates, ...) are numbered; numbers
stay what they are; what is missing is one number more. :class:`Columns` knows both ways, and
:class:`TableRows` are samples that know their columns.
"""

from __future__ import annotations

import contextvars
from contextlib import contextmanager

import numpy as np
import torch
from scipy.sparse import issparse

from .._containers import to_array
from ._frames import MISSING, maker_of


class Columns:
    """What the columns of a table hold, and how that is written as numbers.

    Rows are written in the order of the names, whatever the order of the columns is, so that a
    table with its columns in another order is attacked alike.

    Parameters
    ----------
    X : DataFrame of pandas or polars, or array-like of shape (n_samples, ...)
    labels : dict, optional
        Labels of columns by name; there may be more in X.
    in_order : bool, default=False
        Whether rows are written in the order of the table instead.

    Attributes
    ----------
    names : list
        Of the columns, sorted; their numbers where they have no names.
    given : list
        The same in the order of the table.
    columns : list of NumberColumn or LabelColumn
    coded : ndarray of bool of shape (n_columns,)
        Where there are labels.
    fills : ndarray of shape (n_columns,)
        What stands for a number that is missing, NaN where none is.
    """

    def __init__(self, X, labels=None, in_order=False):
        self._maker = maker = maker_of(X)
        self.given = maker.given(X)
        self.names = self.given if in_order else maker.sorted(self.given)
        self.columns = maker.columns(X, self.names)
        for name, known in (labels or {}).items():
            if name in self.names:
                column = self.columns[self.names.index(name)]
                if column.is_coded:
                    column.labels += [label for label in known if label not in column.labels]

    @property
    def coded(self):
        """Where there are labels, shape (n_columns,)."""
        return np.array([column.is_coded for column in self.columns], dtype=bool)

    @property
    def fills(self):
        """What stands for a number that is missing, NaN where none is, shape (n_columns,)."""
        return np.array(
            [MISSING if c.has_missing and not c.is_coded else np.nan for c in self.columns]
        )

    @property
    def has_names(self):
        """Whether the columns have names."""
        return self._maker.has_names

    def n_values(self, number):
        """Return how many labels a column has, with what is missing."""
        return self.columns[number].n_values

    def joined(self, X):
        """Return the columns of `X`, with the numbers that labels have here.

        Parameters
        ----------
        X : like what was given to the constructor

        Raises
        ------
        ValueError
            If there are other columns.
        """
        other = Columns(X, in_order=self.names == self.given)
        if self.has_names and other.has_names and self.names != other.names:
            unknown = [name for name in other.names if name not in self.names]
            lost = [name for name in self.names if name not in other.names]
            raise ValueError(
                f"The space was fitted on other columns: it does not know {unknown[:10]}, and X "
                f"lacks {lost[:10]}."
            )
        if len(other.columns) != len(self.columns):
            raise ValueError(
                f"X has {len(other.columns)} columns, but the space was fitted on "
                f"{len(self.columns)}."
            )
        if self.has_names != other.has_names:
            raise ValueError(
                "The space was fitted on a table with names and X is an array, or the other way "
                "round: pass both as one or the other."
            )
        for number, (mine, theirs) in enumerate(zip(self.columns, other.columns, strict=True)):
            if mine.is_coded != theirs.is_coded:
                raise ValueError(
                    f"Column {other.names[number]!r} holds "
                    f"{'labels' if theirs.is_coded else 'numbers'} in X, and "
                    f"{'labels' if mine.is_coded else 'numbers'} where the space was fitted."
                )
            other.columns[number] = mine.joined(theirs)
        return other

    def inward(self, values):
        """Return one value for each column of the table in the order of `names`."""
        values = np.asarray(values)
        if not self.has_names or values.ndim == 0:
            return values
        return values[..., [self.given.index(name) for name in self.names]]

    def encode(self, X):
        """Return a table as numbers, shape (n_samples, ...) in float64."""
        values = self._maker.encode(self, X)
        flat = values.reshape(len(values), -1)
        beyond = ~np.isfinite(flat) | (np.abs(flat) >= MISSING / 10) & (flat != MISSING)
        if beyond.any():
            names = [self.names[number] for number in np.flatnonzero(beyond.any(axis=0))]
            raise ValueError(
                f"Columns {names[:10]} hold infinity or numbers beyond 1e99: there is no room for "
                "what lies next to them."
            )
        return values

    def frame(self, values):
        """Return numbers as a table of the kind that was given.

        Parameters
        ----------
        values : ndarray of shape (n_samples, ...)
            Integers and labels are rounded to what they are closest to.
        """
        return self._maker.frame(self, np.asarray(values))

    def check_numbers(self):
        """Raise if there is something that a network does not take."""
        columns = list(zip(self.names, self.columns, strict=True))
        labels = [name for name, column in columns if column.is_coded]
        if labels:
            raise TypeError(
                f"A network takes numbers, and {labels[:10]} hold labels: put an encoder before "
                "it, make_pipeline(ColumnTransformer([...]), net)."
            )
        lost = [name for name, column in columns if column.has_missing]
        if lost:
            raise ValueError(
                f"A network takes no missing values, and {lost[:10]} have some: put a "
                "SimpleImputer before it, make_pipeline(SimpleImputer(), net)."
            )

    def restore(self, values, X):
        """Return numbers as the table `X` with what has changed, all else being as it was.

        Parameters
        ----------
        values : ndarray of shape (n_samples, ...)
        X : table that these are changed rows of
        """
        return self._maker.restore(self, values, X)

    def number_of(self, name, label):
        """Return the number of a label of a column."""
        column = self.columns[self.names.index(name)]
        if not column.is_coded:
            return float(label)
        if label not in column.labels:
            raise ValueError(
                f"column {name!r} has no category {label!r}; it has {column.labels[:10]}."
            )
        return float(column.labels.index(label))


class TableRows(np.ndarray):
    """Rows of a table as numbers, in float64, which know the table they are of.

    Attributes
    ----------
    space : FeatureSpace
        Fitted: its `columns_` are those of the table.
    """

    def __new__(cls, values, space):
        """Make rows of an array."""
        rows = np.ascontiguousarray(values, dtype=np.float64).view(cls)
        rows.space = space
        return rows

    def __array_finalize__(self, other):
        """Rows of rows are of the same table."""
        self.space = getattr(other, "space", None)

    def __reduce__(self):
        return TableRows, (np.asarray(self), self.space)

    @property
    def table(self):
        """The rows as the table that the model is asked about."""
        return self.space.columns_.frame(np.asarray(self))


#: The columns of the table that is being attacked, for whoever makes a victim of a model.
_READ = contextvars.ContextVar("columns", default=None)


@contextmanager
def reading(columns):
    """Have models in this block made victims that take rows of a table as numbers."""
    token = _READ.set(columns)
    try:
        yield
    finally:
        _READ.reset(token)


def columns_read():
    """Return the columns of the table that is being attacked, None where it is an array."""
    return _READ.get()


def check_not_sparse(X):
    """Raise for sparse matrices, of which nobody knows whether what is zero may grow."""
    if issparse(X):
        raise TypeError(
            "X is sparse, and a FeatureSpace is about columns one by one: pass X.toarray(), or "
            "attack without a space."
        )


def columns_of(X):
    """Return the columns of what are rows of a table, None for arrays."""
    return X.space.columns_ if isinstance(X, TableRows) else None


def needs_table(X):
    """Tell a table with labels or missing values from numbers that are attacked as they are."""
    maker = maker_of(X)
    if maker.has_names:
        columns = (maker.column(name, X[name]) for name in maker.given(X))
        return any(column.is_coded or column.has_missing for column in columns)
    if not isinstance(X, np.ndarray) or X.ndim != 2:
        return False
    # of objects scikit-learn makes numbers, if it can
    return X.dtype.kind in "US" or (X.dtype == object and any(isinstance(v, str) for v in X.flat))


def restore(values, X, space):
    """Return attacked rows as the table `X` that they were; a tensor where that is one."""
    found = space.columns_.restore(np.asarray(values), to_array(X))
    return torch.from_numpy(found).to(X.device) if isinstance(X, torch.Tensor) else found
