"""What the columns of a table may become."""

from __future__ import annotations

import copy
import difflib
import numbers
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from .._containers import to_array
from ._columns import Columns, TableRows, is_missing

if TYPE_CHECKING:
    from typing_extensions import Self

KINDS = ("real", "integer", "ordinal", "categorical", "frozen")
_SCALES = ("range", "std", "iqr")
#: Ends of a range that are no numbers: what the row holds itself.
OWN = "x"


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
        What must hold between columns, such as ``c.n_open <= c.n_total`` with ``c = space.columns``.
    tolerance : float, default=1e-6
        Relative slack of relations.

    Attributes
    ----------
    columns_ : Columns
        What is known about the columns of the table.
    kinds_ : dict
        Kind of each column.
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
            As the parameter: a unit of a number that is not named costs 1.
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
        return cls(**{"scale": "range", "costs": _Every(switch), "max_changes": None, **settings})

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
        names = np.asarray(Columns(to_array(X)).names, dtype=object)
        kinds, categories = {}, {}
        for _, step, where in found.transformers_:
            read = names[np.asarray(_places(where, names))] if len(where) else []
            if isinstance(step, str):
                kinds.update(dict.fromkeys(read, "frozen") if step == "drop" else {})
                continue
            inside = [s for _, s in step.steps] if isinstance(step, Pipeline) else [step]
            known = next((s.categories_ for s in inside if hasattr(s, "categories_")), None)
            if known is not None:
                for name, values in zip(read, known, strict=True):
                    kinds[name] = "categorical"
                    categories[name] = [v for v in values if v is not None and v == v]
        settings = {**settings}
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
        X = to_array(X)
        self.columns_ = Columns(X)
        names = self.columns_.names
        self.n_features_in_ = len(names)
        if self.columns_.has_names and all(isinstance(name, str) for name in names):
            self.feature_names_in_ = np.asarray(names, dtype=object)
        values = self.columns_.encode(X).reshape(len(X), -1)
        if not len(values):
            raise ValueError("X has no rows: 0 sample(s) while a minimum of 1 is required.")
        self._learn_kinds(values)
        self._learn_groups(values)
        self._learn_numbers(values)
        self._learn_categories(values)
        self._learn_relations(values)
        return self

    def _of(self, value, what, default=None):
        """Return one value for each column of what is given by name, in order, or for all."""
        names = self.columns_.names
        if value is None:
            return [default] * len(names)
        if isinstance(value, _Every):
            return [value.value] * len(names)
        if hasattr(value, "iloc") and hasattr(value, "index"):
            value = dict(zip(value.index, np.asarray(value), strict=True))
        if isinstance(value, Mapping):
            self._check_names(value, what)
            return [value.get(name, default) for name in names]
        if isinstance(value, (str, numbers.Real)):
            return [value] * len(names)
        value = list(np.asarray(value).reshape(-1))
        if len(value) != len(names):
            raise ValueError(f"space.{what} has {len(value)} values for {len(names)} columns.")
        return value

    def _check_names(self, given, what):
        names = self.columns_.names
        unknown = [name for name in given if name not in names]
        if unknown:
            written = [str(name) for name in names]
            close = difflib.get_close_matches(str(unknown[0]), written, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(
                f"space.{what} names columns that X does not have: {unknown[:10]}.{hint} X has "
                f"{names[:20]}."
            )

    def _place(self, name, what):
        self._check_names([name], what)
        return self.columns_.names.index(name)

    def _flags(self, value, what):
        """Return where columns are named, shape (n_features,)."""
        flags = np.zeros(self.n_features_in_, dtype=bool)
        given = np.asarray(value, dtype=object if isinstance(value, (list, tuple)) else None)
        if given.size and given.dtype == bool:
            return np.array(self._of(value, what), dtype=bool)
        if given.size and all(isinstance(v, (bool, np.bool_)) for v in given.reshape(-1)):
            return np.array(self._of(list(value), what), dtype=bool)
        for name in [value] if isinstance(value, str) else list(value):
            flags[self._place(name, what)] = True
        return flags

    def _learn_kinds(self, values):
        found, strange = [], []
        for number, (kind, column) in enumerate(
            zip(self._of(self._kinds_given(), "kinds", "auto"), self.columns_.columns, strict=True)
        ):
            name = self.columns_.names[number]
            if kind == "auto":
                kind = _kind_of(column)
                if column.is_coded and column.is_opaque:
                    strange.append(name)
            if kind not in KINDS:
                raise ValueError(f"space.kinds of {name!r} must be one of {KINDS}, got {kind!r}.")
            if kind in ("real", "integer") and column.is_coded:
                raise ValueError(
                    f"column {name!r} was declared {kind} and holds {column.labels[:3]}: convert "
                    "it to numbers first."
                )
            if kind == "real" and column.is_integer:
                raise ValueError(
                    f"column {name!r} was declared real and has an integer dtype, in which "
                    f"fractions have no room: X[{name!r}] = X[{name!r}].astype(float), or declare "
                    "it integer."
                )
            found.append(kind)
        if strange:
            warnings.warn(
                f"What {strange[:10]} hold is neither number nor category: these columns are left "
                "as they are. Leave them out, or declare their kinds.",
                UserWarning,
                stacklevel=4,
            )
        self._kind = np.array(found, dtype=object)
        self.kinds_ = dict(zip(self.columns_.names, found, strict=True))
        self._check_integers(values)

    def _kinds_given(self):
        return self.kinds if isinstance(self.kinds, (str, Mapping)) else list(self.kinds)

    def _check_integers(self, values):
        for number in np.flatnonzero(self._kind == "integer"):
            column = values[:, number]
            wrong = np.flatnonzero((column != np.rint(column)) & ~is_missing(column))
            if len(wrong):
                raise ValueError(
                    f"column {self.columns_.names[number]!r} was declared integer and holds "
                    f"{column[wrong[0]]:g} in row {wrong[0]}."
                )

    def _learn_groups(self, values):
        self._groups = []
        for given in self.groups:
            has_flag = isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], bool)
            columns, may_be_empty = given if has_flag else (given, False)
            places = np.array([self._place(name, "groups") for name in columns])
            self._groups.append((places, may_be_empty))
        taken = np.concatenate([g for g, _ in self._groups]) if self._groups else np.zeros(0, int)
        if len(np.unique(taken)) < len(taken):
            raise ValueError("space.groups has columns that are in two groups.")
        self._in_group = np.zeros(self.n_features_in_, dtype=bool)
        self._in_group[taken.astype(int)] = True
        self._check_groups(values)

    def _check_groups(self, values):
        for places, may_be_empty in self._groups:
            block = values[:, places]
            count = block.sum(axis=1)
            wrong = ~np.isin(block, (0, 1)).all(axis=1) | (count > 1)
            wrong |= (count == 0) & (not may_be_empty)
            if wrong.any():
                row = np.flatnonzero(wrong)[0]
                named = [self.columns_.names[place] for place in places]
                raise ValueError(f"one-hot group {named} of row {row} sums to {count[row]:g}.")

    def _learn_numbers(self, values):
        names = self.columns_.names
        self._is_number = np.isin(self._kind, ("real", "integer")) & ~self._in_group
        self._immutable = self._flags(self.immutable, "immutable")
        self._direction = np.array(self._of(self.monotone, "monotone", 0), dtype=float)
        if not np.isin(self._direction, (-1, 0, 1)).all():
            raise ValueError(f"space.monotone must hold 1 and -1, got {self.monotone!r}.")
        held = np.where(is_missing(values), np.nan, values)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # columns in which all is missing
            low, high = np.nanmin(held, axis=0), np.nanmax(held, axis=0)
            spread = {
                "range": lambda: high - low,
                "std": lambda: np.nanstd(held, axis=0),
                "iqr": lambda: np.subtract(*np.nanquantile(held, [0.75, 0.25], axis=0)),
            }
            if isinstance(self.scale, str):
                if self.scale not in _SCALES:
                    raise ValueError(
                        f"space.scale must be None, one of {_SCALES}, or numbers; got "
                        f"{self.scale!r}."
                    )
                unit = spread[self.scale]()
            else:
                unit = np.array(self._of(self.scale, "scale", 1.0), dtype=float)
        self._unit = np.where(self._kind == "ordinal", 1.0, np.nan_to_num(unit))
        step = np.array(self._of(self.step, "step", 0.0), dtype=float)
        # an integer moves in integers
        self._step = np.where((self._kind == "integer") & (step == 0), 1.0, step)
        if np.any(self._step < 0):
            raise ValueError(f"space.step must not be negative, got {self.step!r}.")
        self._learn_bounds(low, high, names)

    def _learn_bounds(self, low, high, names):
        d = self.n_features_in_
        self._low, self._high = np.full(d, -np.inf), np.full(d, np.inf)
        self._own = np.zeros((2, d), dtype=bool)
        self._column_bounds = []
        given = self.bounds
        if isinstance(given, (tuple, list)) and len(given) == 2:
            given = _Every(tuple(given))
        automatic = "auto" if isinstance(given, Mapping) else None
        for number, bound in enumerate(self._of(given, "bounds", automatic)):
            if not self._is_number[number]:
                continue
            column = self.columns_.columns[number]
            limits = _limits_of(column)
            bound = (None, None) if bound is None else bound
            if isinstance(bound, str):
                if bound != "auto":
                    raise ValueError(f"space.bounds of {names[number]!r} is {bound!r}.")
                bound = (low[number], high[number])
            for side, end in enumerate(bound):
                if end is None or (isinstance(end, numbers.Real) and np.isnan(end)):
                    end = (-np.inf, np.inf)[side]
                if isinstance(end, str) and end == OWN:
                    self._own[side, number] = True
                elif not isinstance(end, numbers.Real):
                    self._column_bounds.append((side, number, self._place(end, "bounds")))
                elif side == 0:
                    self._low[number] = max(float(end), limits[0])
                else:
                    self._high[number] = min(float(end), limits[1])
            if self._low[number] > self._high[number]:
                raise ValueError(
                    f"space.bounds for {names[number]!r}: low {self._low[number]:g} > high "
                    f"{self._high[number]:g}."
                )

    def _learn_categories(self, values):
        """Learn what categories there are, and what a change costs."""
        names, columns = self.columns_.names, self.columns_.columns
        given = self._of({} if isinstance(self.categories, str) else self.categories, "categories")
        costs = self._of(self.costs, "costs")
        self._values = [None] * len(names)
        self._switch = [None] * len(names)
        self._down, self._up = np.ones(len(names)), np.ones(len(names))
        for number in range(len(names)):
            if self._kind[number] in ("categorical", "ordinal") and not self._in_group[number]:
                seen = np.unique(values[:, number][~is_missing(values[:, number])])
                known = self._allowed(number, given[number], seen)
                self._values[number] = known
                self._switch[number] = self._cost_table(number, costs[number], known)
            elif self._is_number[number] and costs[number] is not None:
                pair = np.broadcast_to(np.asarray(costs[number], dtype=float), (2,))
                if np.any(pair < 0):
                    raise ValueError(f"space.costs of {names[number]!r} are negative: {pair}.")
                self._down[number], self._up[number] = pair
        self._group_cost = []
        for places, _ in self._groups:
            said = [costs[place] for place in places if costs[place] is not None]
            self._group_cost.append(float(np.max(said)) if said else 0.0)
        del columns

    def _allowed(self, number, given, seen):
        """Return the numbers of the categories of a column, in their order."""
        column, name = self.columns_.columns[number], self.columns_.names[number]
        if given is not None:
            if column.is_coded:
                # a category that the table has never held is one more label
                for label in given:
                    if label not in column.labels:
                        column.labels.append(label)
                vars(column).pop("_held", None)
                known = np.array([column.labels.index(label) for label in given], dtype=float)
            else:
                known = np.array(list(given), dtype=float)
        elif column.is_coded:
            categories = getattr(column.dtype, "categories", None)
            is_all = categories is not None or column.labels == [False, True]
            known = np.arange(len(column.labels), dtype=float)
            if not is_all:
                known = known[np.isin(known, seen)]
        else:
            known = seen
        if self.missing not in ("frozen", "allowed"):
            raise ValueError(f"space.missing must be 'frozen' or 'allowed', got {self.missing!r}.")
        if self.missing == "allowed" and column.is_coded and column.has_missing:
            known = np.append(known, float(len(column.labels)))
        if len(np.unique(known)) < len(known):
            raise ValueError(f"space.categories of {name!r} has a category twice.")
        return known

    def _cost_table(self, number, given, known):
        """Return the cost of each change between the categories of a column, None if free."""
        name, count = self.columns_.names[number], len(known)
        ranks = np.abs(np.subtract.outer(np.arange(count), np.arange(count))).astype(float)
        is_ordinal = self._kind[number] == "ordinal"
        if given is None:
            return ranks if is_ordinal else None
        if hasattr(given, "loc"):
            labels = self._labels(number, known)
            lost = [v for v in labels if v not in given.index or v not in given.columns]
            if lost:
                raise ValueError(f"space.costs of {name!r} has no row or column for {lost[:10]}.")
            table = given.loc[labels, labels].to_numpy(dtype=float)
        elif np.ndim(given) == 2:
            table = np.asarray(given, dtype=float)
        else:
            down, up = np.broadcast_to(np.asarray(given, dtype=float), (2,))
            by_rank = np.where(np.tri(count, k=-1, dtype=bool), down, up)
            # from each row to each column: above the diagonal the number of the category grows
            table = by_rank * (ranks if is_ordinal else ranks > 0)
        if table.shape != (count, count):
            raise ValueError(
                f"space.costs of {name!r} has shape {table.shape} for {count} categories."
            )
        table = np.where(np.eye(count, dtype=bool), 0.0, table)
        if np.isnan(table).any() or np.any(table < 0):
            raise ValueError(f"space.costs of {name!r} must not be negative or NaN.")
        return table

    def _labels(self, number, known):
        column = self.columns_.columns[number]
        if not column.is_coded:
            return [float(value) for value in known]
        labels = [*column.labels, column.missing]
        return [labels[int(code)] for code in known]

    def _learn_relations(self, values):
        self.relations_ = None
        if not self.relations and not self._column_bounds:
            return
        from .relations import Relations, column_bound

        relations = list(self.relations)
        names = self.columns_.names
        for side, number, other in self._column_bounds:
            relations.append(column_bound(names[number], names[other], side))
        self.relations_ = Relations(relations, names, self.columns_.number_of, self.tolerance)
        self.relations_.fit(np.where(is_missing(values), np.nan, values))

    # --- rows ------------------------------------------------------------------------

    def __sklearn_is_fitted__(self):
        return "columns_" in vars(self)

    @property
    def columns(self):
        """The columns, to write relations with: ``c = space.columns; c.n_open <= c.n_total``."""
        from .relations import ColumnNames

        return ColumnNames()

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
        space = copy.copy(self)
        space.__dict__.pop("_tensors", None)
        space.columns_ = self.columns_.joined(X)
        values = space.columns_.encode(X)
        flat = values.reshape(len(values), -1)
        space._check_integers(flat)
        space._check_groups(flat)
        return TableRows(values, space)

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


class _Every:
    """One value for all columns."""

    def __init__(self, value):
        self.value = value

    def __repr__(self):
        return f"every column: {self.value!r}"


def _as_dict(given):
    return given if isinstance(given, Mapping) else {}


def _places(where, names):
    """Return the places of the columns that a ColumnTransformer has been given."""
    if isinstance(where, slice):
        return np.arange(len(names))[where]
    where = np.asarray(where)
    if where.dtype == bool:
        return np.flatnonzero(where)
    if where.dtype.kind in "iu":
        return where
    return np.array([list(names).index(name) for name in np.atleast_1d(where)], dtype=int)


def _kind_of(column):
    if not column.is_coded:
        return "integer" if column.is_integer else "real"
    if column.is_opaque:
        return "frozen"
    return "ordinal" if column.is_ordered else "categorical"


def _limits_of(column):
    """Return the smallest and the largest number that the dtype of a column has room for."""
    if not column.is_integer:
        return -np.inf, np.inf
    dtype = getattr(column.dtype, "numpy_dtype", column.dtype)
    try:
        info = np.iinfo(dtype)
    except (TypeError, ValueError):
        try:
            info = np.iinfo(str(dtype).lower())
        except (TypeError, ValueError):
            return -np.inf, np.inf
    return float(info.min), float(info.max)
