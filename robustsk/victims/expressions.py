"""What relations between the columns of a table are written with: columns, numbers, operators.

``n_open <= n_total`` is a tree of them. What is done with it is in :mod:`.relations`.
"""

from __future__ import annotations

import functools
import numbers
import operator
from collections.abc import Hashable, Iterable
from typing import Any

import numpy as np

from .._validation import did_you_mean

#: How tightly each operation binds; an operand that binds less is put into parentheses.
_BINDING = {"+": 1, "-": 1, "*": 2, "/": 2, "%": 2, "neg": 3, "**": 4}
COMPARISONS = ("<=", "<", ">=", ">", "==", "!=")
_MIRRORED = {"<=": ">=", "<": ">", ">=": "<=", ">": "<"}
_OPPOSITE = {"<=": ">", ">": "<=", "<": ">=", ">=": "<", "==": "!=", "!=": "==", "&": "|", "|": "&"}


class Node:
    """A node of the tree: an operation, and what it is done to."""

    def __init__(self, symbol, *parts):
        self.symbol, self.parts = symbol, parts

    def equals(self, other: object) -> bool:
        """Return whether another expression or relation is written in the same way."""
        return type(self) is type(other) and repr(self) == repr(other)

    def __hash__(self):
        raise TypeError(
            f"{self} cannot be a key, nor in a set: what is compared with == becomes a relation. "
            "Use the name of the column, or the text, str(...)."
        )

    def columns(self):
        """Return the names of the columns in the order in which they are written."""
        return list(dict.fromkeys(name for part in self.parts for name in part.columns()))


class Expression(Node):
    """A number for each row of a table, made of columns and numbers by operators.

    There are ``+ - * / // % **``, `abs`, :func:`log`, :func:`exp`, :func:`floor`,
    :func:`safe_div`, :func:`where` and :func:`count`, and of the functions of numpy
    those that mean the same. Comparing it makes a :class:`Relation`.
    """

    # numpy's own numbers, and its functions, leave it to __array_ufunc__
    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        known = _UFUNCS.get(ufunc.__name__)
        if known is None or method != "__call__" or options:
            raise TypeError(
                f"np.{ufunc.__name__} is not among what relations are made of. There are: "
                f"{', '.join(_UFUNCS)}."
            )
        return known(*(_wrap(value, allow_label=True) for value in inputs))

    def __add__(self, other: Any) -> Expression:
        return Expression("+", self, _wrap(other))

    def __radd__(self, other: Any) -> Expression:
        return Expression("+", _wrap(other), self)

    def __sub__(self, other: Any) -> Expression:
        return Expression("-", self, _wrap(other))

    def __rsub__(self, other: Any) -> Expression:
        return Expression("-", _wrap(other), self)

    def __mul__(self, other: Any) -> Expression:
        return Expression("*", self, _wrap(other))

    def __rmul__(self, other: Any) -> Expression:
        return Expression("*", _wrap(other), self)

    def __truediv__(self, other: Any) -> Expression:
        return Expression("/", self, _wrap(other))

    def __rtruediv__(self, other: Any) -> Expression:
        return Expression("/", _wrap(other), self)

    def __floordiv__(self, other: Any) -> Expression:
        return floor(self / other)

    def __rfloordiv__(self, other: Any) -> Expression:
        return floor(other / self)

    def __mod__(self, other: Any) -> Expression:
        return Expression("%", self, _wrap(other))

    def __rmod__(self, other: Any) -> Expression:
        return Expression("%", _wrap(other), self)

    def __pow__(self, other: Any) -> Expression:
        return Expression("**", self, _wrap(other))

    def __rpow__(self, other: Any) -> Expression:
        return Expression("**", _wrap(other), self)

    def __neg__(self) -> Expression:
        return Expression("neg", self)

    def __pos__(self) -> Expression:
        return self

    def __abs__(self) -> Expression:
        return Expression("abs", self)

    def __floor__(self) -> Expression:
        return floor(self)

    def __le__(self, other: object) -> Relation:
        return _compare("<=", self, other)

    def __lt__(self, other: object) -> Relation:
        return _compare("<", self, other)

    def __ge__(self, other: object) -> Relation:
        return _compare(">=", self, other)

    def __gt__(self, other: object) -> Relation:
        return _compare(">", self, other)

    def __eq__(self, other: object) -> Relation:  # type: ignore[override]
        return _compare("==", self, other)

    def __ne__(self, other: object) -> Relation:  # type: ignore[override]
        return _compare("!=", self, other)

    __hash__ = Node.__hash__

    def isin(self, values: Iterable[object]) -> Relation:
        """Return the relation that holds where this is one of `values`."""
        either = [self == value for value in values]
        if not either:
            raise ValueError(f"{self} cannot be one of no values: isin needs at least one.")
        return functools.reduce(operator.or_, either)

    def __bool__(self):
        raise TypeError(
            f"{self} is true or false for each row, not as a whole: compare it, and join "
            "comparisons by & and | in place of `and` and `or`."
        )

    def _no_relation(self, other):
        raise TypeError(
            f"& and | join relations, and {self} is none: put each comparison into parentheses, "
            "as in (a > 0) | (b > 0), since & and | bind more tightly than comparisons do."
        )

    __and__ = __rand__ = __or__ = __ror__ = _no_relation

    def __repr__(self):
        if self.symbol == "neg":
            return f"-{_shown(self.parts[0], 3)}"
        if self.symbol in _BINDING:
            tight, (left, right) = _BINDING[self.symbol], self.parts
            to_the_right = self.symbol == "**"  # a ** b ** c is a ** (b ** c)
            left = _shown(left, tight + to_the_right)
            return f"{left} {self.symbol} {_shown(right, tight + (not to_the_right))}"
        parts = [str(part) for part in self.parts]
        if self.symbol == "safe_div":
            parts[-1] = f"fill={parts[-1]}"
        return f"{self.symbol}({', '.join(parts)})"


class Column(Expression):
    """A column of a table, to be compared with others.

    Parameters
    ----------
    name : hashable
        What the table calls it.

    Examples
    --------
    >>> from robustsk.victims.relations import Column
    >>> Column("n_open") <= Column("n_total")
    n_open <= n_total
    >>> (Column("purpose") != "car") | (Column("amount") / 12 < 3000)
    (purpose != 'car') | (amount / 12 < 3000)
    """

    def __init__(self, name: Hashable):
        if isinstance(name, Node):
            raise TypeError(f"A column is made of a name, got {name!r}.")
        super().__init__("column")
        self.name = name

    def columns(self):
        """Return the name."""
        return [self.name]

    def __repr__(self):
        is_plain = isinstance(self.name, str) and self.name.isidentifier()
        return str(self.name) if is_plain else f"Column({self.name!r})"


class Constant(Expression):
    """A number, or the label of a category."""

    def __init__(self, value):
        super().__init__("constant")
        self.value = value

    def __repr__(self):
        return repr(self.value)


class Relation(Node):
    """What holds for a row of a table or does not: a comparison, or several joined by & and |.

    ``~`` turns it into its contrary.
    """

    __array_ufunc__ = None

    def __and__(self, other: Relation) -> Relation:
        return Relation("&", self, _relation(other, "&"))

    def __or__(self, other: Relation) -> Relation:
        return Relation("|", self, _relation(other, "|"))

    def __rand__(self, other):
        return _relation(other, "&")

    def __ror__(self, other):
        return _relation(other, "|")

    def __invert__(self) -> Relation:
        joined = self.symbol in "&|"
        return Relation(_OPPOSITE[self.symbol], *(~p if joined else p for p in self.parts))

    def __eq__(self, other: object) -> bool:
        return self.equals(other)

    __hash__ = Node.__hash__

    def __bool__(self):
        raise TypeError(
            f"{self} holds or not for each row, not as a whole. Write (a <= b) & (b <= c) in place "
            "of a <= b <= c and of `and`, | in place of `or`, and ~ in place of `not`."
        )

    def __repr__(self):
        left, right = self.parts
        if self.symbol not in "&|":
            return f"{left} {self.symbol} {right}"
        # a chain of the same sign needs no parentheses
        left = left if left.symbol == self.symbol else f"({left})"
        return f"{left} {self.symbol} ({right})"


class Columns:
    """The columns of a table by attribute, ``c.age``, or by item, ``c["age in years"]``.

    Parameters
    ----------
    names : list, optional
        The names there are. By default there is any, and :class:`Relations` looks them up later.

    Examples
    --------
    >>> from robustsk.victims.relations import Columns
    >>> c = Columns()
    >>> c.total == c["fixed costs"] + c.other
    total == Column('fixed costs') + other
    """

    def __init__(self, names: Iterable[Hashable] | None = None):
        self._names = None if names is None else list(names)

    def __getitem__(self, name: Hashable) -> Column:
        if self._names is not None and name not in self._names:
            raise KeyError(f"there is no column {name!r}.{hint(name, self._names)}")
        return Column(name)

    def __getattr__(self, name: str) -> Column:
        if name.startswith("_"):  # what copy, pickle and notebooks ask for
            raise AttributeError(f"{name!r} is private; for a column of this name: c[{name!r}].")
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(error.args[0]) from None

    def __dir__(self):
        return [name for name in self._names or () if isinstance(name, str)]


def safe_div(a: Any, b: Any, fill: Any = 0) -> Expression:
    """Return ``a / b``, and `fill` where `b` is 0.

    Parameters
    ----------
    a, b : Column, Expression or number
    fill : Column, Expression or number, default=0

    Returns
    -------
    Expression
        To be compared with something, which makes a relation of a :class:`FeatureSpace`.

    Examples
    --------
    >>> from robustsk import FeatureSpace, safe_div
    >>> c = FeatureSpace().columns
    >>> c.ratio == safe_div(c.a, c.b)
    ratio == safe_div(a, b, fill=0)
    """
    return Expression("safe_div", _wrap(a), _wrap(b), _wrap(fill))


def where(condition: Relation, a: Any, b: Any) -> Expression:
    """Return `a` where the condition holds and `b` elsewhere; no gradient comes of the condition.

    Examples
    --------
    >>> from robustsk.victims.relations import Columns, where
    >>> c = Columns()
    >>> c.fee <= where(c.age < 18, 5, 0.1 * c.amount)
    fee <= where(age < 18, 5, 0.1 * amount)
    """
    return Expression("where", _relation(condition, "where"), _wrap(a), _wrap(b))


def count(*relations: Relation) -> Expression:
    """Return how many of the relations hold, which has no gradient.

    Parameters
    ----------
    *relations : Relation

    Returns
    -------
    Expression
        To be compared with a number, which makes a relation of a :class:`FeatureSpace`.

    Examples
    --------
    >>> from robustsk import FeatureSpace, count
    >>> c = FeatureSpace().columns
    >>> count(c.a > 0, c.b > 0) <= 1
    count(a > 0, b > 0) <= 1
    """
    if not relations:
        raise ValueError("count needs at least one relation to count.")
    return Expression("count", *(_relation(r, "count") for r in relations))


def log(a: Any) -> Expression:
    """Return the natural logarithm, which is undefined where `a` is not positive."""
    return Expression("log", _wrap(a))


def exp(a: Any) -> Expression:
    """Return the exponential."""
    return Expression("exp", _wrap(a))


def floor(a: Any) -> Expression:
    """Return the largest integer that is not above `a`."""
    return Expression("floor", _wrap(a))


_UFUNCS = {
    "add": operator.add, "subtract": operator.sub, "multiply": operator.mul,
    "divide": operator.truediv, "floor_divide": operator.floordiv, "remainder": operator.mod,
    "power": operator.pow, "negative": operator.neg, "less_equal": operator.le,
    "less": operator.lt, "greater_equal": operator.ge, "greater": operator.gt,
    "equal": operator.eq, "not_equal": operator.ne, "absolute": abs, "log": log, "exp": exp,
    "floor": floor, "sqrt": lambda a: a**0.5, "square": lambda a: a**2,
    "minimum": lambda a, b: Expression("minimum", a, b),
    "maximum": lambda a, b: Expression("maximum", a, b),
}  # fmt: skip


def is_number(value):
    """Tell a number from the label of a category."""
    return isinstance(value, numbers.Real)


def _compare(symbol, left, right):
    """Return a comparison, with what is constant on the right."""
    right = _wrap(right, allow_label=True)
    if isinstance(left, Constant) and not isinstance(right, Constant):
        return Relation(_MIRRORED.get(symbol, symbol), right, left)
    return Relation(symbol, left, right)


def _wrap(value, allow_label=False):
    """Return an operand as a node."""
    if isinstance(value, Expression):
        return value
    if isinstance(value, Relation):
        raise TypeError(
            f"{value} is a relation, and has no value to compute or compare with: count(...) makes "
            "a number of it. For a <= b <= c write (a <= b) & (b <= c)."
        )
    if np.ndim(value) or isinstance(value, (list, tuple, set, dict)):
        raise TypeError(
            f"Relations are made of columns and single values, got {type(value).__name__}. "
            "For one of several values there is isin."
        )
    if hasattr(value, "item"):  # of numpy or torch
        value = value.item()
    if is_number(value):
        if np.isnan(value):
            raise ValueError("Nothing compares with NaN: rows with missing values are left out.")
    elif not allow_label:
        raise TypeError(f"{value!r} is not a number, and can only be compared with a column.")
    return Constant(value)


def _relation(value, what):
    """Return `value` if it is a relation."""
    if isinstance(value, Relation):
        return value
    raise TypeError(
        f"{what} takes relations, got {value!r}. Put each comparison into parentheses, as in "
        "(a > 0) | (b > 0)."
    )


def _shown(node, tight):
    """Return an operand as it is written beside an operator that binds so tightly."""
    binds = _BINDING.get(node.symbol, 9)
    if isinstance(node, Constant) and is_number(node.value) and node.value < 0:
        binds = _BINDING["neg"]
    return f"({node})" if binds < tight else str(node)


def hint(name, names):
    """Return what may be meant by a name that is not there, and the names that are."""
    shown = ", ".join(map(str, names[:20])) + (", ..." if len(names) > 20 else "")
    return f"{did_you_mean(name, names)} The columns are: {shown}."
