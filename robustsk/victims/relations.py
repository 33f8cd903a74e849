"""Relations between the columns of a table: whether they hold, by how much not, and their repair.

They are written as in :mod:`.expressions`. numpy and torch compute them in the same way, and with
torch there is a gradient. The idea of an expression tree for the constraints of a table, and what a
relation, `&` and `|` are violated by, are those of Simonetto et al. (2022), "A unified framework
for adversarial attack and defense in constrained feature space".
"""

from __future__ import annotations

import graphlib
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._validation import check_length
from ._repair import Plane, Repair, linear_form
from .expressions import (
    COMPARISONS,
    Column,
    Constant,
    Expression,
    Relation,
    hint,
    is_number,
)
from .expressions import Columns as Columns
from .expressions import count as count
from .expressions import exp as exp
from .expressions import floor as floor
from .expressions import log as log
from .expressions import safe_div as safe_div
from .expressions import where as where

#: The least scale of a relation.
_LEAST_SCALE = 1e-12


class Relations:
    """Relations that are bound to the columns of a table in which categories are codes.

    Parameters
    ----------
    relations : Relation or iterable of Relation
    names : sequence of length n_features
        Of the columns.
    code_of : callable
        ``code_of(name, label)`` returns the number that stands for a label in the table, and for a
        column of numbers the number itself. It is asked about what a bare column is compared with,
        and raises a ValueError where there is no such category.
    tolerance : float, default=1e-6
        By how much ``<=``, ``>=`` and ``==`` may fail, as a share of the sum of the absolute values
        of the terms on both sides. ``<``, ``>``, ``!=`` and comparisons with labels are exact.
    categories : mapping of name to sequence, optional
        The labels of the categorical columns, in the order of their codes. Such a column may be
        compared with a label or with a column of the same categories. To compute with it, its
        labels must be the numbers that they are encoded as.

    Attributes
    ----------
    columns : ndarray of int
        Which columns take part, in ascending order.
    scales_ : list of ndarray
        For each relation what its comparisons are divided by: the median, over the rows of `fit`,
        of the sum of the absolute values of the terms on both sides (where it is 0, the mean; and 1
        where that is 0 as well).
    n_failing_ : ndarray of int of shape (n_relations,)
        In how many rows of `fit` each relation fails.

    Raises
    ------
    TypeError
        If one of `relations` is something else.
    ValueError
        If a relation names a column or a category that is not there, computes with categories, or
        if equalities define columns in a circle.

    Notes
    -----
    A relation is not applied to a row in which one of its columns is missing (NaN): it holds there
    and its violation is 0. Where it cannot be computed, since it divides by zero, say, or takes the
    logarithm of what is not positive, it fails, and its violation is 1.

    Examples
    --------
    >>> import numpy as np
    >>> from robustsk.victims.relations import Column, Relations
    >>> X = np.array([[1.0, 3.0], [2.0, 2.0], [5.0, 1.0]])
    >>> relation = Column("n_open") <= Column("n_total")
    >>> bound = Relations([relation], ["n_open", "n_total"], lambda name, value: value).fit(X)
    >>> bound.holds(X)
    array([ True,  True, False])
    >>> bound.violation(X)
    array([[0.],
           [0.],
           [1.]])
    """

    def __init__(
        self,
        relations: Relation | Iterable[Relation],
        names: Sequence[Hashable],
        code_of: Callable[[Any, Any], float],
        tolerance: float = 1e-6,
        *,
        categories: Mapping[Any, Sequence[Any]] | None = None,
    ):
        self.relations = _as_tuple(relations)
        self.names, self.tolerance = list(names), check_length(tolerance, "tolerance")
        self._index = {name: j for j, name in enumerate(self.names)}
        binder = _Binder(self.names, code_of, categories or {})
        self._bound = [binder.bind(relation) for relation in self.relations]
        self._columns = [[self._index[n] for n in r.columns()] for r in self.relations]
        self.columns = np.unique([j for some in self._columns for j in some]).astype(int)
        self.is_categorical = np.array([n in binder.categorical for n in self.names], bool)
        self._units = np.ones(len(self.names))

        conjuncts = [(k, c) for k, r in enumerate(self._bound) for c in _conjuncts(r)]
        self.assignments = self._assignments(conjuncts)
        self.planes = []
        for k, comparison in conjuncts:
            form = linear_form(comparison)
            if form is not None:
                self.planes.append(Plane(k, comparison, *form, self._index))

    def fit(self, X: np.ndarray) -> Relations:
        """Learn the scales of the relations from rows of shape (n_samples, n_features)."""
        rows = self._rows(X)
        self.scales_ = []
        for relation, columns in zip(self._bound, self._columns, strict=True):
            comparisons = list(_comparisons(relation))
            applies = ~rows.is_missing(columns)
            with np.errstate(all="ignore"):
                for comparison in comparisons:
                    comparison.scale = _typical(rows.terms(comparison), applies)
            self.scales_.append(np.array([comparison.scale for comparison in comparisons]))
        self.n_failing_ = np.sum(~self.satisfied(X), axis=0)
        self._units = np.array([_spread(column) for column in rows.Z_given.T])
        return self

    def violation(self, Z: Any) -> Any:
        """Return by how much each relation fails, in units of its scale.

        Parameters
        ----------
        Z : ndarray or Tensor of shape (n_samples, n_features)

        Returns
        -------
        ndarray or Tensor of shape (n_samples, n_relations)
            At least 0, which means that the relation holds: ``a - b`` for ``a <= b``, and for
            ``a < b`` at least the smallest number there is; ``|a - b|`` less the tolerance for
            ``a == b``; the sum for `&` and the smaller one for `|`. What there are no degrees of,
            such as labels, has a violation of 0 or 1 and no gradient.
        """
        rows = self._rows(Z)
        with np.errstate(all="ignore"):
            found = [
                rows.xp.where(rows.is_missing(columns), rows.number(0), rows.violation(relation))
                for relation, columns in zip(self._bound, self._columns, strict=True)
            ]
        return rows.xp.stack(found, 1) if found else rows.Z[:, :0]

    def satisfied(self, Z: Any, share: float = 1.0) -> Any:
        """Return which relations hold, up to a share of the tolerance.

        Parameters
        ----------
        Z : ndarray or Tensor of shape (n_samples, n_features)
        share : float, default=1.0

        Returns
        -------
        ndarray or Tensor of bool of shape (n_samples, n_relations)
        """
        rows = _Rows(Z, self._index, share * self.tolerance)
        with np.errstate(all="ignore"):
            found = [
                rows.is_missing(columns) | rows.holds(relation)
                for relation, columns in zip(self._bound, self._columns, strict=True)
            ]
        return rows.xp.stack(found, 1) if found else rows.missing[:, :0]

    def holds(self, Z: np.ndarray) -> np.ndarray:
        """Return in which rows all relations hold, up to the tolerance, of shape (n_samples,)."""
        return self.satisfied(Z).all(1)

    def repair(
        self,
        Z: np.ndarray,
        X: np.ndarray,
        project: Callable[[np.ndarray], np.ndarray],
        integer: np.ndarray,
        free: np.ndarray,
        n_sweeps: int = 50,
    ) -> np.ndarray:
        """Return rows near to `Z` in which all relations hold.

        A column that stands alone on the left of ``==`` is computed; what is linear is projected
        onto with the algorithm of Dykstra; and where that is not enough, the columns of relations
        that fail, and of those connected with them, go back towards `X`, as little as necessary. A
        category keeps its value if it is enough to pull the numbers back, and else has that of `X`.

        Parameters
        ----------
        Z : ndarray of shape (n_samples, n_features)
            Where `project` has nothing to do.
        X : ndarray of shape (n_samples, n_features)
            Rows in which the relations hold, and where `project` has nothing to do.
        project : callable
            Returns all rows, of shape (n_samples, n_features), brought back to where they may be:
            into the ball and the box and onto the grid. To do it twice is to do it once.
        integer : ndarray of bool of shape (n_features,)
            Which columns are integers.
        free : ndarray of bool of shape (n_features,) or (n_samples, n_features)
            Which values may change.
        n_sweeps : int, default=50
            Number of times that all linear relations are projected onto.

        Returns
        -------
        ndarray of shape (n_samples, n_features)
            Rows of `Z` in which the relations hold are unchanged. An equality whose left side may
            not change, and that is not linear, puts its other columns back.

        References
        ----------
        Boyle and Dykstra (1986), "A method for finding projections onto the intersection of convex
        sets in Hilbert spaces".
        """
        Z = np.array(Z, dtype=np.float64)
        failing = np.flatnonzero(~self.holds(Z))
        if len(failing) == 0:
            return Z

        def settle(z):
            whole = Z.copy()
            whole[failing] = z
            return project(whole)[failing]

        free = np.broadcast_to(free, Z.shape)[failing]
        x = np.asarray(X, dtype=np.float64)[failing]
        work = Repair(self, x, settle, np.asarray(integer, bool), free, self._units)
        Z[failing] = work.pull_back(work.sweep(Z[failing], n_sweeps))
        return Z

    def applies(self, Z: np.ndarray) -> np.ndarray:
        """Return where no column of a relation is missing, of shape (n_samples, n_relations)."""
        rows = self._rows(Z)
        missing = [rows.is_missing(columns) for columns in self._columns]
        return ~(np.stack(missing, 1) if missing else rows.missing[:, :0])

    def value(self, expression: Expression, Z: np.ndarray) -> np.ndarray:
        """Return what a part of a bound relation is in each row, of shape (n_samples,)."""
        with np.errstate(all="ignore"):
            return np.broadcast_to(self._rows(Z).value(expression), len(Z))

    def connected(self, failing: np.ndarray) -> np.ndarray:
        """Return the columns that have to do with relations, from row to row.

        Parameters
        ----------
        failing : ndarray of bool of shape (n_samples, n_relations)

        Returns
        -------
        ndarray of bool of shape (n_samples, n_features)
            The columns of these relations, of all relations that share columns with them, ...
        """
        takes_part = np.zeros((len(self._columns), len(self.names)), bool)
        for k, columns in enumerate(self._columns):
            takes_part[k, columns] = True
        for _ in self._columns:  # the longest chain there may be
            failing = failing | (failing @ takes_part) @ takes_part.T
        return failing @ takes_part

    def _rows(self, Z):
        return _Rows(Z, self._index, self.tolerance)

    def _assignments(self, conjuncts):
        """Return (relation, column, expression) of what defines a column, in order."""
        defined = {}
        for k, comparison in conjuncts:
            left, right = comparison.parts if comparison.symbol == "==" else (None, None)
            if isinstance(left, Column):  # of two definitions the first one is followed
                defined.setdefault(left.name, (k, self._index[left.name], right))
        needs = {
            name: [n for n in right.columns() if n in defined and n != name]
            for name, (_, _, right) in defined.items()
        }
        try:
            order = list(graphlib.TopologicalSorter(needs).static_order())
        except graphlib.CycleError as error:
            circle = dict.fromkeys(error.args[1])
            shown = ", ".join(f"'{self.relations[defined[name][0]]}'" for name in circle)
            raise ValueError(
                f"The relations {shown} define {', '.join(map(str, circle))} by each other. A "
                "column that is alone on the left of == is computed from the right side; to have "
                "one of these relations checked only, write it as a - b == 0."
            ) from None
        return [defined[name] for name in order]


class _Rows:
    """Rows of a table, in numpy or torch, and what expressions are in them.

    Parameters
    ----------
    Z : ndarray or Tensor of shape (n_samples, n_features)
    index : dict of name to int
    tolerance : float
    """

    def __init__(self, Z, index, tolerance):
        self.xp = torch if isinstance(Z, Tensor) else np
        self.Z_given = Z if self.xp is torch else np.asarray(Z, dtype=np.float64)
        self.missing = self.xp.isnan(self.Z_given)
        self._index, self._tolerance = index, tolerance
        # NaN would spoil the gradient of other relations
        self.Z = self.xp.where(self.missing, self.number(0.0), self.Z_given)

    def number(self, value):
        """Return a number in the kind of the rows."""
        return self.Z_given.new_tensor(value) if self.xp is torch else np.float64(value)

    def is_missing(self, columns):
        """Return in which rows one of the columns is missing, of shape (n_samples,)."""
        return self.missing[:, columns].any(1)

    def value(self, node):
        """Return what an expression is, of shape (n_samples,), or () if it has no columns."""
        if isinstance(node, Column):
            return self.Z[:, self._index[node.name]]
        if isinstance(node, Constant):
            return self.number(node.value)
        if node.symbol == "count":
            one, zero = self.number(1), self.number(0)
            return sum(self.xp.where(self.holds(part), one, zero) for part in node.parts)
        if node.symbol == "where":
            condition, *both = node.parts
            return self.xp.where(self.holds(condition), *map(self.value, both))
        return _OPERATIONS[node.symbol](self, *map(self.value, node.parts))

    def terms(self, node):
        """Return the sum of the absolute values of what is added up in an expression.

        It is what rounding errors are a share of, and the same wherever a term is written.
        """
        if node.symbol in ("+", "-", "neg", *COMPARISONS):
            return sum(map(self.terms, node.parts))
        if node.symbol == "*":
            return self.terms(node.parts[0]) * self.terms(node.parts[1])
        return self.xp.abs(self.value(node))

    def holds(self, node):
        """Return where a relation holds, up to the tolerance, of shape (n_samples,)."""
        if node.symbol in "&|":
            left, right = map(self.holds, node.parts)
            return left & right if node.symbol == "&" else left | right
        low, high = self._sides(node)
        if node.symbol == "!=":  # which would be true of what cannot be computed
            return (low < high) | (low > high)
        if node.symbol in "<>":
            return low < high
        if node.is_label:
            return low == high
        slack = self._tolerance * self.terms(node)
        excess = low - high
        if node.symbol == "==":
            return (low == high) | (self.xp.abs(excess) <= slack) & self.xp.isfinite(slack)
        return (low <= high) | (excess <= slack) & self.xp.isfinite(slack)

    def violation(self, node):
        """Return by how much a relation fails, of shape (n_samples,)."""
        where, zero, one = self.xp.where, self.number(0), self.number(1)
        if node.symbol in "&|":
            left, right = map(self.violation, node.parts)
            return left + right if node.symbol == "&" else self.xp.minimum(left, right)
        if node.symbol == "!=" or node.is_label:
            return where(self.holds(node), zero, one)
        low, high = self._sides(node)
        excess = low - high
        if node.symbol == "==":
            excess = self.xp.abs(excess) - self._tolerance * self.terms(node)
        is_known = self.xp.isfinite(excess)
        failing = where(excess > 0, excess, zero) / node.scale
        if node.symbol in "<>":
            least = self.number(self.xp.finfo(self.Z.dtype).tiny)
            failing = where(low < high, zero, self.xp.maximum(failing, least))
        return where(is_known, failing, where(self.holds(node), zero, one))

    def _sides(self, node):
        """Return both sides of a comparison, the one that is to be smaller first."""
        left, right = map(self.value, node.parts)
        return (right, left) if node.symbol in (">", ">=") else (left, right)


# What cannot be computed is NaN. It is put aside before the operation, since a gradient that is NaN
# would remain so behind `where`.


def _divided(rows, a, b, fill):
    is_zero = b == 0
    return rows.xp.where(is_zero, fill, a / rows.xp.where(is_zero, rows.number(1), b))


def _remainder(rows, a, b):
    is_zero = b == 0
    modulus = rows.xp.where(is_zero, rows.number(1), b)
    return rows.xp.where(is_zero, rows.number(np.nan), rows.xp.remainder(a, modulus))


def _power(rows, a, b):
    is_unknown = ((a < 0) & (b != rows.xp.floor(b))) | ((a == 0) & (b < 0))
    base = rows.xp.where(is_unknown, rows.number(1), a)
    return rows.xp.where(is_unknown, rows.number(np.nan), base**b)


def _logarithm(rows, a):
    is_positive = a > 0
    inner = rows.xp.where(is_positive, a, rows.number(1))
    return rows.xp.where(is_positive, rows.xp.log(inner), rows.number(np.nan))


_OPERATIONS = {
    "+": lambda rows, a, b: a + b,
    "-": lambda rows, a, b: a - b,
    "*": lambda rows, a, b: a * b,
    "/": lambda rows, a, b: _divided(rows, a, b, rows.number(np.nan)),
    "%": _remainder,
    "**": _power,
    "neg": lambda rows, a: -a,
    "abs": lambda rows, a: rows.xp.abs(a),
    "exp": lambda rows, a: rows.xp.exp(a),
    "floor": lambda rows, a: rows.xp.floor(a),
    "log": _logarithm,
    "safe_div": _divided,
    "minimum": lambda rows, a, b: rows.xp.minimum(a, b),
    "maximum": lambda rows, a, b: rows.xp.maximum(a, b),
}


class _Binder:
    """Puts codes in the place of labels, and gives each comparison a scale.

    Parameters
    ----------
    names : list
    code_of : callable
    categories : mapping of name to sequence

    Attributes
    ----------
    categorical : set
        The columns that are known to hold codes.
    """

    def __init__(self, names, code_of, categories):
        self._names, self._code_of = names, code_of
        self._labels = {name: list(labels) for name, labels in categories.items()}
        self.categorical = set(self._labels)

    def bind(self, relation):
        """Return a relation to be computed."""
        if not relation.columns():
            raise ValueError(f"relation '{relation}' has no columns.")
        for name in relation.columns():
            if name not in self._names:
                raise ValueError(
                    f"relation '{relation}' names a column that the table does not have: "
                    f"{name!r}.{hint(name, self._names)}"
                )
        try:
            return self._bind(relation)
        except ValueError as error:
            raise ValueError(f"relation '{relation}': {error}") from error

    def _bind(self, node):
        if node.symbol in COMPARISONS:
            return self._compare(node)
        if isinstance(node, Column):
            self._check_computable(node.name)
            return node
        if isinstance(node, Constant):
            if not is_number(node.value):
                raise ValueError(f"{node} is not a number, and can only be compared with a column.")
            return Constant(float(node.value))
        return type(node)(node.symbol, *map(self._bind, node.parts))

    def _compare(self, node):
        left, right = node.parts
        is_label = False
        if isinstance(left, Column) and isinstance(right, Constant):
            is_label = left.name in self._labels or not is_number(right.value)
            if is_label:
                self.categorical.add(left.name)
            right = Constant(float(self._code_of(left.name, right.value)))
        elif self._have_same_labels(left, right):
            is_label = True
        else:
            left, right = map(self._bind, node.parts)
        bound = Relation(node.symbol, left, right)
        bound.scale, bound.is_label = 1.0, is_label and node.symbol in ("==", "!=")
        return bound

    def _have_same_labels(self, left, right):
        if not (isinstance(left, Column) and isinstance(right, Column)):
            return False
        labels = self._labels.get(left.name)
        return labels is not None and labels == self._labels.get(right.name)

    def _check_computable(self, name):
        labels = self._labels.get(name, ())
        if not all(is_number(label) and label == code for code, label in enumerate(labels)):
            raise ValueError(
                f"{name!r} is categorical, and there is no computing with its categories "
                f"({', '.join(map(repr, labels))}): compare it with them, or declare it a column "
                "of numbers."
            )


def _as_tuple(relations):
    """Return relations as a tuple of nothing else."""
    found = (relations,) if isinstance(relations, (Relation, Expression)) else tuple(relations)
    for k, relation in enumerate(found):
        if isinstance(relation, Expression):
            raise TypeError(f"relations[{k}] is {relation}, a number: compare it with something.")
        if not isinstance(relation, Relation):
            raise TypeError(
                f"relations[{k}] is {relation!r}, and must be a relation between columns, as in "
                "Column('n_open') <= Column('n_total')."
            )
    return found


def _conjuncts(relation):
    """Return the comparisons that must all hold, where a relation is made of these alone."""
    if relation.symbol == "&":
        return [c for part in relation.parts for c in _conjuncts(part)]
    return [relation] if relation.symbol in COMPARISONS else []


def _comparisons(node):
    """Return all comparisons inside of a relation."""
    inner = [c for part in node.parts for c in _comparisons(part)]
    return [node, *inner] if node.symbol in COMPARISONS else inner


def _typical(terms, applies):
    """Return what the terms of a comparison add up to in most rows."""
    terms = np.broadcast_to(terms, len(applies))[applies]
    terms = terms[np.isfinite(terms)]
    if not terms.any():
        return 1.0
    return float(max(np.median(terms) or terms.mean(), _LEAST_SCALE))


def _spread(column):
    """Return the standard deviation of what is not missing, or 1 where there is none."""
    column = column[~np.isnan(column)]
    return (column.std() if len(column) else 0.0) or 1.0
