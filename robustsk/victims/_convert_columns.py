"""What looks at the columns of a table: by groups of them, and by the codes of their values."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import FeatureUnion, Pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, TargetEncoder
from sklearn.utils import _safe_indexing
from torch import nn

from ._checks import NoGradientError
from ._columns import columns_read, reading
from ._convert_transformers import Select, double, transformed
from .converters import (
    Chain,
    LacksGradient,
    is_flat,
    real_steps,
    rebuild,
    to_module,
)

#: A table that has been made column by column is compared with the transformer on so many rows.
_N_TRIED = 64
#: And holds no more numbers than this.
_MOST_NUMBERS = 2**25


# --- groups of columns ----------------------------------------------------------------


class _Branches(nn.Module):
    """Modules side by side, each with a weight; without a gradient if all are."""

    def __init__(self, branches, weights):
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.weights = weights
        self.is_flat = all(map(is_flat, branches))

    def forward(self, x):
        parts = [
            branch(x) if weight is None else branch(x) * weight
            for branch, weight in zip(self.branches, self.weights, strict=True)
        ]
        return torch.cat(parts, 1) if parts else x[:, :0]


@to_module.register
def _(step: ColumnTransformer):
    seen, weights = columns_read(), (step.transformer_weights or {}).get
    branches, used = [], []
    for name, transformer, wanted in step.transformers_:
        places = step._transformer_to_input_indices[name]
        if _is(transformer, "drop") or not len(places):
            continue
        if seen is not None:
            wrote = getattr(step, "feature_names_in_", None) if seen.has_names else None
            wrote = seen.given if wrote is None else wrote
            places = [seen.names.index(wrote[place]) for place in places]
        part = None if seen is None else _Part(seen, places, np.isscalar(wanted))
        branches.append(Chain(Select(places), _branch(transformer, part)))
        used.append(weights(name))
    return _Branches(branches, used)


@to_module.register
def _(step: FeatureUnion):
    weights = (step.transformer_weights or {}).get
    branches, used = [], []
    for name, transformer in step.transformer_list:
        if not _is(transformer, "drop"):
            branches.append(_branch(transformer, columns_read()))
            used.append(weights(name))
    return _Branches(branches, used)


def _is(transformer, word):
    return isinstance(transformer, str) and transformer == word


def _branch(transformer, seen):
    if _is(transformer, "passthrough"):
        return nn.Identity() if seen is None else as_numbers(seen)
    with reading(seen):
        return rebuild(transformer, is_step=True)


class _Part:
    """Some of the columns of a table, as a transformer of a group of them sees it.

    Parameters
    ----------
    columns : Columns
    places : list of int
        Of the columns in the table.
    is_single : bool
        Whether the transformer is given one column, not a table of one.
    """

    def __init__(self, columns, places, is_single):
        self._whole, self._places, self._is_single = columns, list(places), is_single
        self.names = self.given = [columns.names[place] for place in self._places]
        self.has_names = columns.has_names
        self._shown = [columns.given.index(name) for name in self.names]
        self.coded = np.asarray(columns.coded)[self._places]
        self.fills = np.asarray(columns.fills)[self._places]

    def n_values(self, column):
        """Return how many codes a column has."""
        return self._whole.n_values(self._places[column])

    def frame(self, values):
        """Return the columns with their own types."""
        whole = np.zeros((len(values), len(self._whole.names)))
        whole[:, self._places] = values
        wanted = self._shown[0] if self._is_single else self._shown
        return _safe_indexing(self._whole.frame(whole), wanted, axis=1)


class _Plain:
    """A table of numbers that stand for themselves."""

    def __init__(self, n_columns):
        self.names = self.given = list(range(n_columns))
        self.coded = np.zeros(n_columns, dtype=bool)
        self.fills = np.full(n_columns, np.nan)

    def frame(self, values):
        """Return the numbers."""
        return values


# --- from codes to numbers ------------------------------------------------------------


class _Numbers(nn.Module):
    """Numbers in the place of codes, NaN in that of what is missing, the columns in their order."""

    def __init__(self, coded, fills, values, order):
        super().__init__()
        self.is_flat = bool(coded.all())
        sizes = [len(own) for own in values]
        starts = np.cumsum([0, *sizes[:-1]]).astype(np.int64)
        self.register_buffer("fills", double(fills))
        self.register_buffer("values", double(np.concatenate(values)))
        for name, value in (
            ("coded", coded),
            ("starts", starts),
            ("sizes", np.array(sizes)),
            ("order", np.array(order, dtype=np.int64)),
        ):
            self.register_buffer(name, torch.as_tensor(value))

    def forward(self, x):
        codes = _codes(x, self.sizes)
        x = torch.where(x == self.fills, torch.nan, x)
        return torch.where(self.coded, self.values[self.starts + codes], x)[:, self.order]


def _codes(x, sizes):
    return x.detach().nan_to_num().round().long().clamp_min(0).clamp_max(sizes - 1)


def as_numbers(columns):
    """Return the module that turns a table into what an estimator of numbers makes of it.

    Raises
    ------
    NoGradientError
        If there are columns that are no numbers.
    """
    values = []
    for column, is_coded in enumerate(columns.coded):
        if not is_coded:
            values.append(np.zeros(1))
            continue
        codes = np.zeros((columns.n_values(column), len(columns.coded)))
        codes[:, column] = np.arange(len(codes))
        shown = _table_of(columns.frame(codes))
        shown = _safe_indexing(shown, columns.given.index(columns.names[column]), axis=1)
        try:
            values.append(_as_floats(shown))
        except (TypeError, ValueError) as error:
            name = columns.names[column]
            raise LacksGradient(f"what is made of strings in column {name!r}") from error
    order = [columns.names.index(name) for name in columns.given]
    return _Numbers(np.asarray(columns.coded), np.asarray(columns.fills), values, order)


def _table_of(shown):
    return shown if len(getattr(shown, "shape", (0,))) == 2 else np.asarray(shown)[:, None]


def _as_floats(shown):
    held = np.asarray(shown, dtype=object)
    missing = np.array([value is None or value != value or _is_na(value) for value in held])
    return np.where(missing, np.nan, np.where(missing, 0, held).astype(np.float64))


def _is_na(value):
    return type(value).__name__ == "NAType"


def from_table(estimator, build, can_be_tabulated):
    """Return the module of an estimator that sees a table.

    Where all that it sees are codes it is a table itself: what it makes of each value is looked up.

    Parameters
    ----------
    estimator : fitted estimator
    build : callable
        Rebuilds it for numbers.
    can_be_tabulated : bool
        Whether what it transforms is wanted.
    """
    seen = columns_read()
    if can_be_tabulated and seen.coded.all():
        return tabulated(estimator, seen)
    try:
        with reading(None):
            return Chain(as_numbers(seen), build(estimator).double())
    except NoGradientError:
        if not can_be_tabulated:
            raise
        return tabulated(estimator, seen)


# --- tables of what a transformer makes of each value ---------------------------------


class _Tabulated(nn.Module):
    """The sum of what each column contributes, looked up.

    Parameters
    ----------
    base : ndarray of shape (n_outputs,)
    gains : list of ndarray of shape (n_values, n_outputs)
        What a value of the column adds to `base`.
    values : list of (ndarray of shape (n_values - 1,) or None)
        The numbers that the rows stand for; the last row is that of any other number. None means
        that they stand for codes.
    fills : ndarray of shape (d,)
        Stand for NaN.
    """

    is_flat = True

    def __init__(self, base, gains, values, fills):
        super().__init__()
        self.register_buffer("base", double(base))
        self.register_buffer("fills", double(fills))
        self.is_coded = [own is None for own in values]
        self.sizes = [len(own) for own in gains]
        for column, (gain, own) in enumerate(zip(gains, values, strict=True)):
            self.register_buffer(f"gain{column}", double(gain))
            if own is not None:
                self.register_buffer(f"values{column}", double(own))

    def forward(self, x):
        x = x.detach()
        total = self.base.expand(len(x), -1)
        for column, is_coded in enumerate(self.is_coded):
            value, gain = x[:, column], getattr(self, f"gain{column}")
            if is_coded:
                row = _codes(value, self.sizes[column])
            else:
                row = self._row_of(value, getattr(self, f"values{column}"), self.fills[column])
            total = total + gain[row]
        return total

    @staticmethod
    def _row_of(value, known, fill):
        is_missing = value.isnan() | (value == fill)
        found = value[:, None] == known
        found = torch.where(is_missing[:, None], known.isnan(), found)
        # the last row, where it is none of them
        found = torch.cat([found, ~found.any(1, keepdim=True)], 1)
        return found.to(torch.uint8).argmax(1)


def tabulated(estimator, columns):
    """Return a transformer as the table of what it makes of the values of each column.

    Raises
    ------
    NoGradientError
        If an output depends on several columns at once, or there are too many values.
    """
    lacks = LacksGradient(type(estimator).__name__)
    known = _known_values(estimator, columns)
    if known is None:
        raise lacks
    shown = [_sites(own, columns, column) for column, own in enumerate(known)]
    try:
        base_row, base = _first_that_works(estimator, columns, shown)
        gains, works = [], []
        for column, sites in enumerate(shown):
            if sum(map(len, shown)) * len(base) > _MOST_NUMBERS:
                raise lacks
            rows = np.tile(base_row, (len(sites), 1))
            rows[:, column] = sites
            found, worked = _outcomes(estimator, columns, rows, len(base))
            # a value that it raises at adds nothing: `predict` will raise as well
            gains.append(np.where(worked[:, None], found - base, 0.0))
            works.append(sites[worked])
        module = _Tabulated(base, gains, known, np.asarray(columns.fills)).double()
        rng = np.random.default_rng(0)
        rows = np.column_stack([rng.choice(own, _N_TRIED) for own in works])
        expected = _transform(estimator, columns, rows)
        found = module(torch.as_tensor(rows)).numpy()
    except NoGradientError:
        raise
    except Exception as error:  # whatever a transformer of the user's makes of such rows
        raise lacks from error
    if not np.allclose(found, expected, rtol=1e-9, atol=1e-9, equal_nan=True):
        raise lacks
    return module


def _transform(estimator, columns, rows):
    return transformed(estimator, columns.frame(np.asarray(rows, dtype=np.float64)))


def _known_values(estimator, columns):
    """Return the numbers that a transformer tells apart in each column, None for codes.

    None is returned instead of the list if that is unknown.
    """
    steps = real_steps(estimator) if isinstance(estimator, Pipeline) else [estimator]
    held = next((s.categories_ for s in reversed(steps) if hasattr(s, "categories_")), None)
    if columns.coded.all():
        return [None] * len(columns.coded)
    if held is None or len(held) != len(columns.coded):
        return None
    try:
        return [
            None if is_coded else _as_floats(held[columns.given.index(name)])
            for is_coded, name in zip(columns.coded, columns.names, strict=True)
        ]
    except (TypeError, ValueError):  # strings where there are none in the table
        return None


def _sites(known, columns, column):
    """Return the values at which a transformer is asked, one for each row of its table."""
    if known is None:
        return np.arange(columns.n_values(column), dtype=np.float64)
    other = np.nanmax(np.r_[known, 0.0]) + 1
    fill = columns.fills[column]
    return np.r_[np.where(np.isnan(known), fill, known), other]


def _first_that_works(estimator, columns, shown):
    """Return a row, and what is made of it, preferably numbers throughout."""
    works, error = None, None
    for number in range(max(map(len, shown))):
        row = np.array([sites[min(number, len(sites) - 1)] for sites in shown])
        try:
            found = _transform(estimator, columns, row[None])[0]
        except Exception as raised:  # a value that was not there in training
            error = raised
            continue
        if not np.isnan(found).any():
            return row, found
        works = (row, found) if works is None else works
    if works is None:
        raise error
    return works


def _outcomes(estimator, columns, rows, n_outputs):
    """Return what it makes of rows, NaN where it raises, and where it does not raise."""
    try:
        return _transform(estimator, columns, rows), np.full(len(rows), True)
    except Exception:  # one of them was not there in training
        found, works = np.full((len(rows), n_outputs), np.nan), np.full(len(rows), False)
    for number, row in enumerate(rows):
        try:
            found[number] = _transform(estimator, columns, row[None])[0]
            works[number] = True
        except Exception:  # this is one of them
            continue
    return found, works


@to_module.register(OneHotEncoder)
@to_module.register(OrdinalEncoder)
@to_module.register(TargetEncoder)
def _encoded(step):
    return tabulated(step, _Plain(step.n_features_in_))
