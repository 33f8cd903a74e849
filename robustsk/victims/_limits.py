"""What a feature space says about the columns of one kind of table, as arrays."""

from __future__ import annotations

import numbers
import warnings
from collections.abc import Mapping

import numpy as np

from .._validation import check_known
from ._frames import is_missing
from .expressions import Column, Relation
from .relations import Relations

KINDS = ("real", "integer", "ordinal", "categorical", "frozen")
_SCALES = ("range", "std", "iqr")
#: Ends of a range that are no numbers: what the row holds itself.
OWN = "x"


def check_max_changes(value):
    """Raise unless a value says how many categories may change."""
    is_count = isinstance(value, numbers.Integral) and not isinstance(value, bool) and value >= 0
    if value is not None and not is_count:
        raise ValueError(
            f"space.max_changes must be a number of categories, or None for any, got {value!r}."
        )


def declared(categories):
    """Return the categories of columns that are given by name."""
    return categories if isinstance(categories, Mapping) else {}


class Every:
    """One value for all columns."""

    def __init__(self, value):
        self.value = value

    def __repr__(self):
        return f"every column: {self.value!r}"


class Limits:
    """What each column may become.

    Parameters
    ----------
    space : FeatureSpace
        Whose parameters are read.
    columns : Columns
    values : ndarray of shape (n_samples, n_columns)
        Training data as numbers.

    Attributes
    ----------
    kind : ndarray of str of shape (n_columns,)
    is_number, is_immutable : ndarray of bool of shape (n_columns,)
        Where numbers move in a range, and what stays as it is by declaration.
    direction : ndarray of shape (n_columns,)
        1 for columns that may only grow, -1 for those that may only shrink.
    low, high : ndarray of shape (n_columns,)
        Range of numbers.
    own : ndarray of bool of shape (2, n_columns)
        Where the value of the row itself is an end of the range.
    step, unit : ndarray of shape (n_columns,)
        Distance of the values of a number, 0 where there is no grid; what a unit of `eps` is.
    down, up : ndarray of shape (n_columns,)
        What a unit costs.
    values, switch : list
        Categories of each column as numbers, and what the change of one to another costs; None for
        numbers, and where changes cost nothing.
    groups : list of (places, may_be_empty)
        Columns that are one category in one-hot code.
    group_costs : list of float
        What their change costs.
    relations : Relations or None
    said : list of str
        The relations in words.
    """

    def __init__(self, space, columns, values):
        self._space, self._columns = space, columns
        self._learn_kinds(values)
        self._learn_groups()
        self._learn_numbers(values)
        self._learn_categories(values)
        self._learn_relations(values)
        self.check(values, columns)
        del self._space, self._columns

    def _of(self, value, what, default=None):
        """Return one value for each column of what is given by name, in order, or for all."""
        names = self._columns.names
        if value is None:
            return [default] * len(names)
        if isinstance(value, Every):
            return [value.value] * len(names)
        if hasattr(value, "iloc") and hasattr(value, "index"):
            value = dict(zip(value.index, np.asarray(value), strict=True))
        if isinstance(value, Mapping):
            self._check_names(value, what)
            return [value.get(name, default) for name in names]
        if isinstance(value, (str, numbers.Real)):
            return [value] * len(names)
        value = np.asarray(value).reshape(-1)
        if len(value) != len(names):
            raise ValueError(f"space.{what} has {len(value)} values for {len(names)} columns.")
        return list(self._columns.inward(value))

    def _check_names(self, given, what):
        check_known(given, self._columns.names, f"space.{what}")

    def _place(self, name, what):
        self._check_names([name], what)
        return self._columns.names.index(name)

    def _flags(self, value, what):
        """Return where columns are named, shape (n_features,)."""
        flags = np.zeros(len(self._columns.names), dtype=bool)
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
            zip(self._of(self._space.kinds, "kinds", "auto"), self._columns.columns, strict=True)
        ):
            name = self._columns.names[number]
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
                f"What {strange[:10]} hold is neither number nor category (dates, identifiers "
                "beyond 2**53, ...): these columns are left as they are.",
                UserWarning,
                stacklevel=4,
            )
        self.kind = np.array(found, dtype=object)

    @property
    def span(self):
        """Range of each number, 0 for categories, shape (n_columns,)."""
        return np.where(self.is_number, self.high - self.low, 0.0)

    def check(self, values, columns):
        """Raise if rows are no rows of the space."""
        for number in np.flatnonzero(self.kind == "integer"):
            column = values[:, number]
            wrong = np.flatnonzero((column != np.rint(column)) & ~is_missing(column))
            if len(wrong):
                raise ValueError(
                    f"column {columns.names[number]!r} was declared integer and holds "
                    f"{column[wrong[0]]:g} in row {wrong[0]}."
                )
        for places, may_be_empty in self.groups:
            block = values[:, places]
            count = block.sum(axis=1)
            wrong = ~np.isin(block, (0, 1)).all(axis=1) | (count > 1)
            wrong |= (count == 0) & (not may_be_empty)
            if wrong.any():
                row = np.flatnonzero(wrong)[0]
                named = [columns.names[place] for place in places]
                raise ValueError(f"one-hot group {named} of row {row} sums to {count[row]:g}.")

    def _learn_groups(self):
        self.groups = []
        for given in self._space.groups:
            has_flag = isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], bool)
            columns, may_be_empty = given if has_flag else (given, False)
            places = np.array([self._place(name, "groups") for name in columns])
            self.groups.append((places, may_be_empty))
        taken = np.concatenate([g for g, _ in self.groups]) if self.groups else np.zeros(0, int)
        if len(np.unique(taken)) < len(taken):
            raise ValueError("space.groups has columns that are in two groups.")
        self.in_group = np.zeros(len(self._columns.names), dtype=bool)
        self.in_group[taken.astype(int)] = True

    def _learn_numbers(self, values):
        names = self._columns.names
        self.is_number = np.isin(self.kind, ("real", "integer")) & ~self.in_group
        self.is_immutable = self._flags(self._space.immutable, "immutable")
        self.direction = np.array(self._of(self._space.monotone, "monotone", 0), dtype=float)
        if not np.isin(self.direction, (-1, 0, 1)).all():
            raise ValueError(f"space.monotone must hold 1 and -1, got {self._space.monotone!r}.")
        held = np.where(is_missing(values), np.nan, values)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # columns in which all is missing
            low, high = np.nanmin(held, axis=0), np.nanmax(held, axis=0)
            spread = {
                "range": lambda: high - low,
                "std": lambda: np.nanstd(held, axis=0),
                "iqr": lambda: np.subtract(*np.nanquantile(held, [0.75, 0.25], axis=0)),
            }
            if isinstance(self._space.scale, str):
                if self._space.scale not in _SCALES:
                    raise ValueError(
                        f"space.scale must be None, one of {_SCALES}, or numbers; got "
                        f"{self._space.scale!r}."
                    )
                # 0 where all is missing
                unit = np.nan_to_num(spread[self._space.scale]())
            else:
                unit = np.array(self._of(self._space.scale, "scale", 1.0), dtype=float)
        self.unit = np.where(self.kind == "ordinal", 1.0, unit)
        step = np.array(self._of(self._space.step, "step", 0.0), dtype=float)
        # an integer moves in integers
        self.step = np.where((self.kind == "integer") & (step == 0), 1.0, step)
        if not np.all(step >= 0):
            raise ValueError(f"space.step must not be negative, got {self._space.step!r}.")
        wrong = (self.kind == "integer") & (self.step != np.rint(self.step))
        if wrong.any():
            name = names[np.flatnonzero(wrong)[0]]
            raise ValueError(f"space.step of {name!r}, a column of integers, must be whole.")
        if not np.all(self.unit >= 0):
            raise ValueError(f"space.scale must not be negative or NaN, got {self._space.scale!r}.")
        self._learn_bounds(low, high, names)

    def _learn_bounds(self, low, high, names):
        d = len(self._columns.names)
        self.low, self.high = np.full(d, -np.inf), np.full(d, np.inf)
        self.own = np.zeros((2, d), dtype=bool)
        self._column_bounds = []
        given = self._space.bounds
        if isinstance(given, (tuple, list)) and len(given) == 2:
            given = Every(tuple(given))
        automatic = "auto" if isinstance(given, Mapping) else None
        for number, bound in enumerate(self._of(given, "bounds", automatic)):
            if not self.is_number[number]:
                continue
            column = self._columns.columns[number]
            limits = limits_of(column)
            bound = (None, None) if bound is None else bound
            if isinstance(bound, str):
                if bound != "auto":
                    raise ValueError(f"space.bounds of {names[number]!r} is {bound!r}.")
                bound = (low[number], high[number])
            if not isinstance(bound, (tuple, list)) or len(bound) != 2:
                raise ValueError(
                    f"space.bounds of {names[number]!r} must be a pair (low, high), got {bound!r}."
                )
            for side, end in enumerate(bound):
                if end is None or (isinstance(end, numbers.Real) and np.isnan(end)):
                    end = (-np.inf, np.inf)[side]
                if isinstance(end, str) and end == OWN:
                    self.own[side, number] = True
                elif not isinstance(end, numbers.Real):
                    self._column_bounds.append((side, number, self._place(end, "bounds")))
                elif side == 0:
                    self.low[number] = max(float(end), limits[0])
                else:
                    self.high[number] = min(float(end), limits[1])
            if self.low[number] > self.high[number]:
                raise ValueError(
                    f"space.bounds for {names[number]!r}: low {self.low[number]:g} > high "
                    f"{self.high[number]:g}."
                )

    def _learn_categories(self, values):
        """Learn what categories there are, and what a change costs."""
        names = self._columns.names
        given = self._of(declared(self._space.categories), "categories")
        costs = self._of(self._space.costs, "costs")
        if self._space.missing not in ("frozen", "allowed"):
            raise ValueError(
                f"space.missing must be 'frozen' or 'allowed', got {self._space.missing!r}."
            )
        self.values = [None] * len(names)
        self.switch = [None] * len(names)
        self.down, self.up = np.ones(len(names)), np.ones(len(names))
        for number in range(len(names)):
            if self.kind[number] == "categorical" and self.direction[number]:
                raise ValueError(
                    f"space.monotone of {names[number]!r}: its categories have no order. Declare "
                    "it ordinal, with its categories in order."
                )
            if self.kind[number] in ("categorical", "ordinal") and not self.in_group[number]:
                seen = np.unique(values[:, number][~is_missing(values[:, number])])
                known = self.values[number] = self._allowed(number, given[number], seen)
                self.switch[number] = self._cost_table(number, costs[number], known)
            elif self.is_number[number] and costs[number] is not None:
                pair = np.broadcast_to(np.asarray(costs[number], dtype=float), (2,))
                if np.any(pair < 0):
                    raise ValueError(f"space.costs of {names[number]!r} are negative: {pair}.")
                self.down[number], self.up[number] = pair
        self.group_costs = []
        for places, _ in self.groups:
            said = [costs[place] for place in places if costs[place] is not None]
            self.group_costs.append(float(np.max(said)) if said else 0.0)

    def _allowed(self, number, given, seen):
        """Return the numbers of the categories of a column, in their order."""
        column, name = self._columns.columns[number], self._columns.names[number]
        if given is not None:
            if column.is_coded:
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
        if len(np.unique(known)) < len(known):
            raise ValueError(f"space.categories of {name!r} has a category twice.")
        return known

    def _cost_table(self, number, given, known):
        """Return the cost of each change between the categories of a column, None if free."""
        name, count = self._columns.names[number], len(known)
        ranks = np.abs(np.subtract.outer(np.arange(count), np.arange(count))).astype(float)
        is_ordinal = self.kind[number] == "ordinal"
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
            weights = ranks if is_ordinal else ranks > 0
            table = np.where(weights > 0, by_rank, 0.0) * np.where(weights > 0, weights, 1.0)
        if table.shape != (count, count):
            raise ValueError(
                f"space.costs of {name!r} has shape {table.shape} for {count} categories."
            )
        table = np.where(np.eye(count, dtype=bool), 0.0, table)
        if np.isnan(table).any() or np.any(table < 0):
            raise ValueError(f"space.costs of {name!r} must not be negative or NaN.")
        return table

    def _labels(self, number, known):
        column = self._columns.columns[number]
        if not column.is_coded:
            return [float(value) for value in known]
        return [column.labels[int(code)] for code in known]

    def _learn_relations(self, values):
        relations = (
            [self._space.relations]
            if isinstance(self._space.relations, Relation)
            else [*self._space.relations]
        )
        names, columns = self._columns.names, self._columns.columns
        for side, number, other in self._column_bounds:
            ends = Column(names[other]), Column(names[number])
            relations.append(ends[side] <= ends[1 - side])
        self.relations, self.said = None, [str(relation) for relation in relations]
        if not relations:
            return
        self.relations = Relations(
            relations,
            names,
            self._columns.number_of,
            self._space.tolerance,
            categories={
                name: column.labels
                for name, column in zip(names, columns, strict=True)
                if column.is_coded
            },
        ).fit(np.where(is_missing(values), np.nan, values))
        failing = [
            f"{relation} (in {count:,} rows)"
            for relation, count in zip(relations, self.relations.n_failing_, strict=True)
            if count
        ]
        if failing:
            warnings.warn(
                f"Of {len(values):,} training rows some contradict the relations: "
                f"{', '.join(failing)}. Such rows are not changed.",
                UserWarning,
                stacklevel=5,
            )


def _kind_of(column):
    if not column.is_coded:
        return "integer" if column.is_integer else "real"
    if column.is_opaque:
        return "frozen"
    return "ordinal" if column.is_ordered else "categorical"


def limits_of(column):
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
