"""What the columns of a table may become."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, clone
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import Pipeline
from sklearn.utils._indexing import _get_column_indices
from sklearn.utils.validation import check_is_fitted

from .._containers import to_array
from ._columns import Columns, TableRows, check_not_sparse
from ._frames import is_missing
from ._limits import Every, Limits, check_max_changes, declared
from .expressions import Columns as ColumnNames

if TYPE_CHECKING:
    from typing_extensions import Self


#: What `fit` looks at.
_LEARNED_FROM = (
    "kinds", "categories", "groups", "immutable", "monotone", "bounds", "step", "scale", "costs",
    "missing", "relations", "tolerance",
)  # fmt: skip


class FeatureSpace(BaseEstimator):
    """What each column of a table may become under attack.

    Give it to an attack or a score as `space`: numbers then stay on their grid and in their range,
    categories change to categories, relations between columns hold, and what may not change is
    handed back as it was. It says *which* tables are possible; `norm` and `eps` of the attack say
    how far from the clean row they may lie.

    A row ``z`` may be reached from ``x`` if it keeps to kinds, bounds, grids, `immutable`,
    `monotone` and `relations`, if at most `max_changes` categories differ, and if
    ``norm(u) <= eps`` for the costs of all moves: ``u_j = cost * abs(z_j - x_j) / scale`` of
    numbers, with ranks in the place of numbers for ordinal columns, and the cost of the change for
    a category, which is zero unless `costs` says otherwise.

    Parameters
    ----------
    kinds : "auto", str or dict, default="auto"
        Kind of each column: "real", "integer", "ordinal", "categorical" or "frozen". For columns
        that a dict does not name, and with "auto", floats are real, integers integer, booleans,
        strings and categories categorical, ordered categories ordinal, and anything else is frozen.
    categories : "auto" or dict, default="auto"
        What a categorical or ordinal column may become, in order where that counts. "auto" are the
        categories of its dtype, or the values seen in `fit`.
    groups : list, default=()
        Lists of columns that are one category in one-hot code; ``(columns, True)`` where a row may
        have no 1 in them, as after ``OneHotEncoder(drop="first")``.
    immutable : list or array of bool, default=()
        Columns that stay as they are.
    monotone : dict, default=None
        1 for columns that may only grow, -1 for those that may only shrink.
    bounds : "auto", None, (low, high) or dict of such, default="auto"
        Range of numbers. "auto" is what was seen in `fit`. Either end is a number, None, "x" for
        the value of the row itself, or the name of a column. A row that is out of range is not
        pushed further out.
    step : float or dict, default=None
        Distance of the values that a number may take, counted from that of the row: 0.01 for cents.
        That of integers is 1.
    scale : {None, "range", "std", "iqr"}, array-like, Series or dict, default=None
        What one unit of `eps` is: None means the units of the data.
    costs : dict, default=None
        What a unit costs: a number, or a pair (down, up); for categories a number for any change,
        or a square table of them. Infinity forbids it.
    max_changes : int or None, default=0
        How many categories of a row may change at once. None means no limit.
    missing : {"frozen", "allowed"}, default="frozen"
        Whether "missing" is one more value of the categories of columns where something is.
        Numbers that are missing stay so in any case.
    relations : list, default=()
        What must hold between columns: ``c.n_open <= c.n_total`` with ``c = space.columns``.
    tolerance : float, default=1e-6
        Relative slack of relations.

    Attributes
    ----------
    columns_ : Columns
        What is known about the columns of the table.
    kinds_ : dict
        Kind of each column.
    limits_ : Limits
        What has been learned, as arrays.
    n_features_in_ : int
    feature_names_in_ : ndarray of str
        Only where columns have names.

    See Also
    --------
    GreedySearch : An attack that changes numbers and categories.

    Notes
    -----
    The constraint language follows Simonetto et al. (2024), "TabularBench: benchmarking adversarial
    robustness for tabular deep learning in real-world use-cases"; move costs and budgets are those
    of Kireev, Kulynych and Troncoso (2023), "Adversarial robustness for tabular data through cost
    and utility awareness".

    Examples
    --------
    >>> import pandas as pd
    >>> from robustsk import FeatureSpace
    >>> X = pd.DataFrame({"age": [31, 54, 42], "home": ["own", "rent", "own"]})
    >>> space = FeatureSpace(immutable=["age"], max_changes=1).fit(X)
    >>> space.kinds_
    {'age': 'integer', 'home': 'categorical'}
    """

    def __init__(
        self,
        *,
        kinds: Any = "auto",
        categories: Any = "auto",
        groups: Any = (),
        immutable: Any = (),
        monotone: Any = None,
        bounds: Any = "auto",
        step: Any = None,
        scale: Any = None,
        costs: Any = None,
        max_changes: int | None = 0,
        missing: str = "frozen",
        relations: Any = (),
        tolerance: float = 1e-6,
    ):
        self.kinds = kinds
        self.categories = categories
        self.groups = groups
        self.immutable = immutable
        self.monotone = monotone
        self.bounds = bounds
        self.step = step
        self.scale = scale
        self.costs = costs
        self.max_changes = max_changes
        self.missing = missing
        self.relations = relations
        self.tolerance = tolerance

    # --- presets ---------------------------------------------------------------------

    @classmethod
    def gower(cls, X: Any, **settings: Any) -> Self:
        """Return a space in which distances in the 1-norm are Gower's, fitted on `X`.

        That is the mean over the columns of differences relative to the range, and of 1 for each
        category that differs (Gower, 1971, "A general coefficient of similarity").

        Parameters
        ----------
        X : DataFrame or array-like of shape (n_samples, n_features)
        **settings
            Other parameters.
        """
        names = Columns(to_array(X)).names
        share = dict.fromkeys(names, 1 / len(names))
        defaults = {"scale": "range", "costs": share, "max_changes": None}
        return cls(**{**defaults, **settings}).fit(X)

    @classmethod
    def budget(cls, costs: Mapping, **settings: Any) -> Self:
        """Return a space in which `eps` is what the adversary can spend, in the 1-norm.

        Parameters
        ----------
        costs : dict
            As the parameter: a unit of a number that is not named costs 1. `eps` of the attack, in
            its 1-norm, is one budget for all rows, or one for each in shape (n_samples, 1).
        **settings
            Other parameters.
        """
        return cls(**{"costs": costs, "max_changes": None, **settings})

    @classmethod
    def tabularbench(cls, norm: float = 2, **settings: Any) -> Self:
        """Return a space with the distance of TabularBench.

        Numbers are divided by their range, and a category that changes moves two entries of a
        one-hot code: it costs the square root of 2, or 1 and 2 in the inf and 1-norm. With its
        ``eps=0.5`` no category can therefore change.

        Parameters
        ----------
        norm : {2, inf, 1}, default=2
        **settings
            Other parameters.
        """
        switch = {2: np.sqrt(2), np.inf: 1.0, 1: 2.0}[norm]
        return cls(**{"scale": "range", "costs": Every(switch), "max_changes": None, **settings})

    @classmethod
    def from_pipeline(cls, pipeline: Any, X: Any, **settings: Any) -> Self:
        """Return a space fitted on `X` with what a fitted ColumnTransformer says of the columns.

        What its encoders read is categorical, with the categories that they know; what it drops is
        frozen.

        Parameters
        ----------
        pipeline : fitted Pipeline or ColumnTransformer
        X : DataFrame
        **settings
            Other parameters, which come before what is found.
        """
        steps = [s for _, s in pipeline.steps] if isinstance(pipeline, Pipeline) else [pipeline]
        found = next((s for s in steps if isinstance(s, ColumnTransformer)), None)
        if found is None:
            raise TypeError(
                f"{type(pipeline).__name__} has no ColumnTransformer that says what the columns "
                "are: pass kinds and categories."
            )
        check_is_fitted(found)
        X = to_array(X)
        names = np.asarray(Columns(X).given, dtype=object)
        kinds, categories = {}, {}
        for _, step, where in found.transformers_:
            read = names[_get_column_indices(X, where)]
            if isinstance(step, str):
                kinds.update(dict.fromkeys(read, "frozen") if step == "drop" else {})
                continue
            inside = [s for _, s in step.steps] if isinstance(step, Pipeline) else [step]
            known = next((s.categories_ for s in inside if hasattr(s, "categories_")), None)
            if known is not None:
                for name, values in zip(read, known, strict=True):
                    kinds[name] = "categorical"
                    categories[name] = [v for v in values if v is not None and v == v]
        settings["kinds"] = {**kinds, **_as_dict(settings.get("kinds"))}
        settings["categories"] = {**categories, **_as_dict(settings.get("categories"))}
        return cls(**settings).fit(X)

    # --- learning --------------------------------------------------------------------

    def fit(self, X: Any, y: Any = None) -> Self:
        """Learn kinds, categories, ranges and scales.

        Parameters
        ----------
        X : DataFrame of pandas or polars, or array-like of shape (n_samples, ...)
            Training data. What is missing may be missing.
        y : ignored

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If a parameter names columns that are not there, or contradicts the data.
        """
        return self._fit(X)

    def in_order(self, X: Any) -> Self:
        """Return such a space, fitted on `X`, whose rows are in the order of the columns of `X`.

        As a network takes them, which knows no names.

        Parameters
        ----------
        X : table
        """
        return clone(self)._fit(X, in_order=True)

    def with_settings(self, max_changes: int | None) -> Self:
        """Return this fitted space with another number of categories that may change.

        Parameters
        ----------
        max_changes : int or None
        """
        return copy.copy(self).set_params(max_changes=max_changes)

    def _fit(self, X, in_order=False):
        X = to_array(X)
        check_not_sparse(X)
        self.__dict__.pop("_tensors", None)
        columns = self.columns_ = Columns(X, declared(self.categories), in_order)
        self.n_features_in_ = len(columns.names)
        if columns.has_names and all(isinstance(name, str) for name in columns.names):
            self.feature_names_in_ = np.asarray(columns.given, dtype=object)
        check_max_changes(self.max_changes)
        _check_rows(X)
        values = columns.encode(X).reshape(len(X), -1)
        self.limits_ = Limits(self, columns, values)
        self._fitted_with = {name: getattr(self, name) for name in _LEARNED_FROM}
        kinds = dict(zip(columns.names, self.limits_.kind, strict=True))
        self.kinds_ = {name: kinds[name] for name in columns.given}
        return self

    # --- rows ------------------------------------------------------------------------

    def __sklearn_is_fitted__(self):
        return "columns_" in vars(self)

    @property
    def columns(self) -> ColumnNames:
        """The columns, to write relations with: ``c = space.columns; c.n_open <= c.n_total``."""
        return ColumnNames(self.columns_.given if self.__sklearn_is_fitted__() else None)

    def encode(self, X: Any) -> TableRows:
        """Return a table as numbers, which is what attacks work on.

        Parameters
        ----------
        X : table like that which was given to `fit`

        Returns
        -------
        TableRows of shape (n_samples, ...)
            An array of float64: categories are numbered, a number that is missing is 1e100.
        """
        if isinstance(X, TableRows):
            return X
        if not self.__sklearn_is_fitted__():
            raise NotFittedError("This FeatureSpace is not fitted yet: call fit(X_train) first.")
        X = to_array(X)
        check_not_sparse(X)
        _check_rows(X)
        changed = [n for n, v in self._fitted_with.items() if not _same(v, getattr(self, n))]
        if changed:
            raise NotFittedError(
                f"{', '.join(changed)} of this FeatureSpace has changed since it was fitted: call "
                "fit(X_train) again."
            )
        space = copy.copy(self)
        space.columns_ = self.columns_.joined(X)
        values = space.columns_.encode(X)
        self.limits_.check(values.reshape(len(values), -1), space.columns_)
        return TableRows(values, space)

    def __getstate__(self):
        # what attacks keep is about this space alone, and copies are changed
        return {k: v for k, v in super().__getstate__().items() if k != "_tensors"}

    def unknown(self, values: np.ndarray) -> np.ndarray:
        """Return where rows hold a category that was not there in `fit`.

        Parameters
        ----------
        values : ndarray of shape (n_samples, n_columns)
            Rows as numbers.

        Returns
        -------
        ndarray of bool of shape (n_samples, n_columns)
        """
        found = np.zeros(values.shape, dtype=bool)
        for number, known in enumerate(self.limits_.values):
            if known is not None:
                column = self.columns_.columns[number]
                is_lost = is_missing(values[:, number])
                if column.is_coded and column.has_missing:
                    is_lost |= values[:, number] == column.n_values - 1
                found[:, number] = ~np.isin(values[:, number], known) & ~is_lost
        return found

    def decode(self, values: ArrayLike) -> Any:
        """Return numbers as the table that they stand for.

        Parameters
        ----------
        values : TableRows, or array-like of shape (n_samples, ...)

        Returns
        -------
        X : table of the kind that was encoded
        """
        columns = values.space.columns_ if isinstance(values, TableRows) else self.columns_
        return columns.frame(np.asarray(values))


def _same(first, second):
    return first is second or repr(first) == repr(second)


def _check_rows(X):
    if len(X) == 0:
        raise ValueError("X has no rows: 0 sample(s) while a minimum of 1 is required.")


def _as_dict(given):
    return given if isinstance(given, Mapping) else {}
