"""Bring rows of a table to where relations between its columns hold."""

from __future__ import annotations

import numpy as np

from .expressions import Column, Constant

#: Halvings of the way back to the clean row, and of what is between the best of them and the next.
_N_HALVINGS, _N_BISECTIONS = 20, 20
#: How far beyond its border what is strict is projected, as a share of its terms or scale.
_MARGIN = 1e-9
#: What counts as no movement, in units of each column.
_STILL = 1e-4
#: The share of the tolerance that a repair may use; the rest is for who rounds the result.
_SHARE = 0.5


def linear_form(comparison):
    """Return what a comparison says of the sum of its columns and a number, or None.

    Returns
    -------
    tuple of (dict of name to float, float) or None
        Weights in the order in which the columns are written, and the number: the left side less
        the right one. None if it is not linear.
    """
    if comparison.is_label or comparison.symbol == "!=":
        return None
    form = _linear(comparison, "-")
    if form is None:
        return None
    weights = {name: weight for name, weight in form[0].items() if weight}
    return (weights, form[1]) if weights and np.all(np.isfinite([*weights.values()])) else None


def _linear(node, symbol=None):
    symbol = symbol or node.symbol
    if isinstance(node, Column):
        return {node.name: 1.0}, 0.0
    if isinstance(node, Constant):
        return {}, node.value
    if symbol not in ("+", "-", "neg", "*", "/"):
        return None
    forms = [_linear(part) for part in node.parts]
    if None in forms:
        return None
    if symbol == "neg":
        return _times(forms[0], -1.0)
    (left, right) = forms
    if symbol in ("+", "-"):
        right = _times(right, 1.0 if symbol == "+" else -1.0)
        names = dict.fromkeys([*left[0], *right[0]])
        weights = {name: left[0].get(name, 0.0) + right[0].get(name, 0.0) for name in names}
        return weights, left[1] + right[1]
    if symbol == "*" and not left[0]:
        left, right = right, left
    if right[0] or (symbol == "/" and right[1] == 0):
        return None
    return _times(left, right[1] if symbol == "*" else 1 / right[1])


def _times(form, factor):
    return {name: factor * weight for name, weight in form[0].items()}, factor * form[1]


class Plane:
    """A linear relation: ``weights @ z[columns] + offset`` is at most 0, or equal to it.

    Parameters
    ----------
    relation : int
        Of which relation it is a part.
    comparison : Relation
    weights : dict of name to float
    offset : float
    index : dict of name to int
    """

    def __init__(self, relation, comparison, weights, offset, index):
        symbol = comparison.symbol
        sign = -1.0 if symbol in (">", ">=") else 1.0
        self.relation, self._comparison = relation, comparison
        self._offset = sign * offset
        self._columns = np.array([index[name] for name in weights])
        self._weights = sign * np.array([*weights.values()])
        self._is_equality, self._is_strict = symbol == "==", symbol in "<>"

    def project(self, z, can_move, integer, units, tolerance):
        """Return the nearest points of the plane or on its right side.

        Integers go first, one after the other and in whole steps, and what they leave is for the
        other columns.

        Parameters
        ----------
        z : ndarray of shape (n_samples, n_features)
            Rows in which a column is missing are left as they are.
        can_move : ndarray of bool of shape (n_samples, n_features)
        integer : ndarray of bool of shape (n_features,)
        units : ndarray of shape (n_features,)
            In which lengths are measured.
        tolerance : float

        Returns
        -------
        ndarray of shape (n_samples, n_features)
        """
        # in the order of the relation, not of the table, which must not matter
        first = np.argsort(~integer[self._columns], kind="stable")
        columns, weights = self._columns[first], self._weights[first]
        n_integers = int(integer[columns].sum())
        points, can_move = z[:, columns], can_move[:, columns]
        rest = np.sum(points * weights, axis=1) + self._offset
        terms = np.sum(np.abs(points * weights), axis=1) + abs(self._offset)
        slack = tolerance * terms
        beyond = _MARGIN * np.maximum(terms, self._comparison.scale) if self._is_strict else 0
        lengths = can_move * (weights * units[columns]) ** 2
        remaining = np.cumsum(lengths[:, ::-1], axis=1)[:, ::-1]
        for k, (j, weight) in enumerate(zip(columns, weights, strict=True)):
            is_integer = k < n_integers
            is_off = np.abs(rest) if self._is_equality else rest
            is_off = is_off >= 0 if self._is_strict else is_off > (slack if is_integer else 0)
            which = can_move[:, k] & is_off
            length = remaining[:, min(k, n_integers)]  # the last ones share what is left
            share = np.divide(rest + beyond, length, out=np.zeros_like(rest), where=which)
            moved = points[:, k] - share * weight * units[j] ** 2
            if is_integer:
                if self._is_equality:
                    moved = np.rint(moved)
                else:
                    moved = np.floor(moved) if weight > 0 else np.ceil(moved)
                moved = np.where(which, moved, points[:, k])
                rest = rest - weight * (points[:, k] - moved)
            points[:, k] = moved
        projected = z.copy()
        projected[:, columns] = points
        return projected


class Repair:
    """The repair of some rows.

    Parameters
    ----------
    relations : Relations
    x : ndarray of shape (n_samples, n_features)
        Rows in which the relations hold.
    settle : callable
        Returns rows brought back to where they may be.
    integer : ndarray of bool of shape (n_features,)
    free : ndarray of bool of shape (n_samples, n_features)
    units : ndarray of shape (n_features,)
        In which lengths are measured.
    """

    def __init__(self, relations, x, settle, integer, free, units):
        self._relations, self._x, self._settle = relations, x, settle
        self._integer, self._free, self._units = integer, free, units

    def sweep(self, z, n_sweeps):
        """Compute what is defined by an equality, and project onto what is linear."""
        planes, tolerance = self._relations.planes, self._relations.tolerance
        can_move = self._free & ~self._relations.is_categorical
        best = previous = self._settle(self._assigned(z))
        fails = self._may_be_projected(best)
        is_open = fails.copy()
        # what each projection has taken away, which is given back before the next of its kind
        taken = np.zeros((len(planes) + 1, *z.shape))
        for _ in range(n_sweeps if planes else 0):
            if not is_open.any():
                break
            for k, plane in enumerate(planes):
                start = z + taken[k]
                z = plane.project(start, can_move, self._integer, self._units, tolerance)
                taken[k] = np.where(self._integer, 0, start - z)
            start = z + taken[-1]
            z = self._settle(start)
            taken[-1] = np.where(self._integer, 0, start - z)
            candidate = self._settle(self._assigned(z)) if self._relations.assignments else z
            still_fails = self._may_be_projected(candidate)
            is_better = is_open & (fails | ~still_fails)
            best = np.where(is_better[:, None], candidate, best)
            fails = np.where(is_better, still_fails, fails)
            # the first point in which all holds need not be the nearest one
            moves = (np.abs(candidate - previous) > _STILL * self._units).any(1)
            is_open &= still_fails | moves
            previous = candidate
        return best

    def pull_back(self, z):
        """Move the columns of relations that fail towards the clean row, as little as possible."""
        relations, x = self._relations, self._x
        failing = ~relations.satisfied(z, _SHARE)
        self._goes_back = relations.connected(failing)
        result = self._settle(np.where(self._goes_back, x, z))
        lost = ~relations.holds(result)
        result[lost] = x[lost]

        share, codes_stay = np.zeros(len(z)), np.ones(len(z), bool)
        todo = self._halve(z, result, failing.any(1), share, codes_stay, 1)
        moved = (z != x) & relations.is_categorical & self._goes_back
        todo &= moved.any(1)
        codes_stay[todo] = False
        self._halve(z, result, todo, share, codes_stay, 0)

        low, high = share.copy(), 2 * share
        between = (low > 0) & (low < 1)
        for _ in range(_N_BISECTIONS if between.any() else 0):
            middle = (low + high) / 2
            candidate, is_good = self._candidate(z, middle, codes_stay)
            result[between & is_good] = candidate[between & is_good]
            low, high = np.where(is_good, middle, low), np.where(is_good, high, middle)
        return result

    def _halve(self, z, result, todo, share, codes_stay, first):
        """Try smaller and smaller shares of the way to `z`, and return what none is good for."""
        for k in range(first, _N_HALVINGS + 1):
            if not todo.any():
                break
            candidate, is_good = self._candidate(z, np.full(len(z), 0.5**k), codes_stay)
            is_good &= todo
            result[is_good], share[is_good] = candidate[is_good], 0.5**k
            todo = todo & ~is_good
        return todo

    def _candidate(self, z, share, codes_stay):
        """Return rows on the way from the clean ones to `z`, and which of them are valid."""
        x, is_categorical = self._x, self._relations.is_categorical
        way = share[:, None] * (z - x)
        # bit for bit, which z - x + x need not be
        between = np.where(way == 0, x, np.where(share[:, None] == 1, z, x + way))
        codes = np.where(codes_stay[:, None], z, x)
        between = np.where(is_categorical, codes, between)
        point = np.where(self._goes_back, self._assigned(between), z)
        point = self._settle(point)
        return point, self._relations.satisfied(point, _SHARE).all(1)

    def _may_be_projected(self, z):
        """Return the rows in which a relation fails that is linear."""
        linear = [plane.relation for plane in self._relations.planes]
        return ~self._relations.satisfied(z, _SHARE)[:, linear].all(1)

    def _assigned(self, z):
        """Return rows in which columns that an equality defines are computed."""
        z, applies = z.copy(), self._relations.applies(z)
        for relation, column, expression in self._relations.assignments:
            value = self._relations.value(expression, z)
            if self._integer[column]:
                value = np.rint(value)
            which = applies[:, relation] & self._free[:, column] & np.isfinite(value)
            z[which, column] = value[which]
        return z
