"""What a report says of a table besides: which columns break rows, and what was left alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..attacks.threat import check_eps, check_mask
from ..victims._columns import TableRows
from ..victims._frames import is_missing

#: How many sets of columns, and columns, are listed.
_MOST_SETS, _MOST_COLUMNS = 10, 40
#: How many names of what was left alone a note gives.
_MOST_NAMES = 10


@dataclass(frozen=True)
class Section:
    """A table of a report.

    Attributes
    ----------
    name : str
        Its key in ``report.to_dict()["sections"]``.
    title : str
    header : tuple of str
    rows : list of tuple of str
        As long as the header; the first cell names the row.
    data : list of dict
        The same for machines.
    """

    name: str
    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    data: list[dict[str, Any]] = field(default_factory=list)


def table_sections(problem, examples):
    """Return the sections about the columns of a table.

    Parameters
    ----------
    problem : Problem
        With a space.
    examples : list of TableRows
        What each attack has made of the samples.

    Returns
    -------
    list of Section
    """
    return [_columns_that_break(problem, examples), _columns_in_reach(problem)]


def _features(space):
    """Return the places of the columns that change together, and what they are called."""
    limits, names = space.limits_, space.columns_.names
    together = [list(places) for places, _ in limits.groups]
    alone = [[j] for j in range(len(names)) if not limits.in_group[j]]
    found = sorted(alone + together)
    return found, [" / ".join(str(names[j]) for j in places) for places in found]


def _columns_that_break(problem, examples):
    """Return the smallest sets of columns that were found to break rows."""
    features, names = _features(problem.space)
    smallest = _smallest(problem, examples, features)
    sets = Counter(tuple(np.flatnonzero(row)) for row in smallest)
    total = len(smallest)
    rows, data = [], []
    for places, count in sorted(sets.items(), key=lambda item: (-item[1], len(item[0]), item[0])):
        named = [names[place] for place in places]
        rows.append((", ".join(named), f"{count}", f"{count / total:.0%}"))
        data.append({"columns": named, "n_rows": count, "share": count / total})
    if len(rows) > _MOST_SETS:
        rest = sum(item["n_rows"] for item in data[_MOST_SETS:])
        rows[_MOST_SETS:] = [("other sets of columns", f"{rest}", f"{rest / total:.0%}")]
    title = f"Columns that break rows: the fewest changes found for each row that breaks ({total})"
    return Section("columns_that_break", title, ("columns", "rows", "share"), rows, data)


def _smallest(problem, examples, features):
    """Return which features of each broken row change in the smallest example that is left of it.

    Changes are taken back one by one where the model does without them.

    Returns
    -------
    ndarray of bool of shape (n_broken, n_features)
    """
    clean = np.asarray(problem.values).reshape(len(problem.values), -1)
    best = {}
    for found in examples:
        flat = np.asarray(found).reshape(len(found), -1)
        moved = np.stack([(flat[:, f] != clean[:, f]).any(axis=1) for f in features], axis=1)
        rows = np.flatnonzero(problem.correct & moved.any(axis=1))
        if len(rows) == 0:
            continue
        broken = problem.predict(TableRows(flat[rows], problem.space), True) != problem.y[rows]
        for row in rows[broken]:
            count = int(moved[row].sum())
            if row not in best or count < best[row][0]:
                best[row] = count, flat[row]
    rows = np.array(sorted(best), dtype=int)
    if len(rows) == 0:
        return np.zeros((0, len(features)), dtype=bool)
    z, x = np.stack([best[row][1] for row in rows]), clean[rows]
    relations = problem.space.limits_.relations
    for places in features:
        trial = z.copy()
        trial[:, places] = x[:, places]
        asked = (trial != z).any(axis=1)
        if relations is not None:
            asked &= relations.holds(np.where(is_missing(trial), np.nan, trial))
        asked = np.flatnonzero(asked)
        if len(asked):
            answers = problem.predict(TableRows(trial[asked], problem.space), True)
            done_without = asked[answers != problem.y[rows[asked]]]
            z[done_without] = trial[done_without]
    return np.stack([(z[:, f] != x[:, f]).any(axis=1) for f in features], axis=1)


def _columns_in_reach(problem):
    """Return how far each column may move, and why some may not."""
    space, limits = problem.space, problem.space.limits_
    eps = _radius(problem)
    frozen = frozen_columns(problem)
    rows, data = [], []
    for name in space.columns_.given:
        j = space.columns_.names.index(name)
        item = {"column": name, "kind": str(limits.kind[j]), "frozen": frozen.get(name)}
        reach = share = ""
        if name in frozen:
            reach = f"frozen: {frozen[name]}"
        elif limits.is_number[j] and problem.norm != 0:
            down, up = _reach(limits, j, eps[j])
            reach = f"±{up:.4g}" if down == up else f"-{down:.4g} +{up:.4g}"
            item.update(down=float(down), up=float(up))
            if limits.span[j] > 0:
                item["share_of_range"] = float(max(down, up) / limits.span[j])
                share = f"{item['share_of_range']:.1%}"
        elif limits.is_number[j]:
            reach = "any value in range"
        elif limits.values[j] is not None:
            item["n_categories"] = len(limits.values[j])
            reach = f"any of {len(limits.values[j])}"
        else:
            reach = "one-hot group"
        rows.append((str(name), item["kind"], reach, share))
        data.append(item)
    if len(rows) > _MOST_COLUMNS:
        rest = len(rows) - _MOST_COLUMNS
        rows[_MOST_COLUMNS:] = [(f"and {rest} more", "", "", "")]
    changes = space.max_changes
    limit = (
        ""
        if changes == 0
        else f"; categories at once: {'any number' if changes is None else f'at most {changes}'}"
    )
    title = f"How far columns may move{limit}"
    header = ("column", "kind", "reach", "of its range")
    return Section("columns_in_reach", title, header, rows, data)


def _radius(problem):
    """Return the radius of each column, in units of the space."""
    shape = problem.space.limits_.kind.shape
    eps = check_eps(problem.eps, problem.norm, shape)
    return problem.space.columns_.inward(np.broadcast_to(eps, shape))


def _reach(limits, j, eps):
    """Return how far a number may move down and up: on its grid, and no further than its range."""
    with np.errstate(divide="ignore"):
        reach = eps * limits.unit[j] / np.array([limits.down[j], limits.up[j]])
    reach = np.minimum(reach, limits.span[j])
    step = limits.step[j]
    if step:
        reach = np.floor(reach / step + 1e-9) * step
    return np.where(limits.direction[j] * np.array([-1, 1]) < 0, 0.0, reach)


def frozen_columns(problem):
    """Return why columns may not change, a dict of their names."""
    space, limits = problem.space, problem.space.limits_
    eps, free = _radius(problem), np.ones(limits.kind.shape, dtype=bool)
    if problem.mask is not None:
        free = space.columns_.inward(check_mask(problem.mask, free.shape))
    found = {}
    for j, name in enumerate(space.columns_.names):
        column = space.columns_.columns[j]
        if limits.is_immutable[j]:
            found[name] = "immutable"
        elif not free[j]:
            found[name] = "mask"
        elif eps[j] == 0:
            found[name] = "eps is 0"
        elif column.is_coded and column.is_opaque:
            found[name] = "neither number nor category"
        elif limits.kind[j] == "frozen":
            found[name] = "declared frozen"
        elif not limits.is_number[j] and space.max_changes == 0:
            found[name] = "max_changes is 0"
        elif limits.is_number[j] and limits.unit[j] == 0:
            found[name] = "constant"
        elif limits.is_number[j] and problem.norm != 0 and not _reach(limits, j, eps[j]).any():
            found[name] = "eps is less than a step"
    return found


def table_notes(problem):
    """Return what one should know when reading a report about a table, a list of str."""
    frozen = frozen_columns(problem)
    hidden = [str(name) for name, why in frozen.items() if why == "max_changes is 0"]
    notes = []
    if hidden:
        named = ", ".join(hidden[:_MOST_NAMES]) + (", ..." if len(hidden) > _MOST_NAMES else "")
        one = len(hidden) == 1
        notes.append(
            f"{len(hidden)} categorical column{'' if one else 's'} {'was' if one else 'were'} "
            f"frozen: {named}. What an adversary gains by changing a category is not in these "
            "numbers: pass space=FeatureSpace(max_changes=1)."
        )
    unknown = problem.space.unknown(np.asarray(problem.values).reshape(len(problem.values), -1))
    if unknown.any() and problem.space.max_changes != 0:
        notes.append(
            f"{int(unknown.any(axis=1).sum())} rows hold categories that were not there when the "
            "space was fitted; they stay as they are."
        )
    return notes
