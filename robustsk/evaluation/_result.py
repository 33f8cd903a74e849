"""What a report says, for people and for machines."""

from __future__ import annotations

import html
import textwrap
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from tabulate import tabulate

from ..metrics._intervals import RobustAccuracy
from ._red_flags import RedFlag
from ._sections import Section

CLEAN, WORST = "clean", "worst case"
_WIDTH, _LONGEST = 100, 24


@dataclass(frozen=True, eq=False)
class ReportRow(RobustAccuracy):
    """What a report says about one attack.

    Attributes
    ----------
    accuracy, low, high : float
        In [0, 1].
    confidence : float
    n_samples : int
    per_class : dict of str to RobustAccuracy
        The same for the samples of each class.
    n_forward, n_backward : int
        How many samples went through the model, and how many gradients were
        taken.
    seconds : float
    robust : ndarray of bool of shape (n_samples,)
        Which samples are classified correctly and stay so.
    score : float or None
        What `scoring` returns, where that is given.
    per_group : dict of str to RobustAccuracy
        The accuracy on the samples of each group, where there are `groups`.
    score_per_group : dict of str to float
        What `scoring` returns for each group; NaN where it is not defined.
    """

    per_class: dict[str, RobustAccuracy]
    n_forward: int
    n_backward: int
    seconds: float
    robust: np.ndarray = field(repr=False)
    score: float | None = None
    per_group: dict[str, RobustAccuracy] = field(default_factory=dict)
    score_per_group: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False, repr=False)
class RobustnessReport:
    """The result of :func:`robustness_report`; printing it shows the tables.

    Attributes
    ----------
    rows : dict of str to ReportRow
        ``"clean"``, one for each attack, and ``"worst case"``; also by
        ``report["PGD-20"]``.
    red_flags : list of RedFlag
        Empty where they were not asked for.
    notes : list of str
        What one should know when reading the tables.
    estimator_name : str
    norm : float
    eps : float or ndarray
    n_samples : int
    confidence : float
    scoring : str or None
        Name of the score beside the accuracy.
    groups : str or None
        What the groups are called.
    sections : list of Section
        Further tables; for a table of mixed columns, which of them break rows, and how far each
        may move.
    """

    rows: dict[str, ReportRow]
    red_flags: list[RedFlag]
    notes: list[str]
    estimator_name: str
    norm: float
    eps: float | np.ndarray
    n_samples: int
    confidence: float
    scoring: str | None = None
    groups: str | None = None
    sections: list[Section] = field(default_factory=list)

    def __getitem__(self, name):
        return self.rows[name]

    @property
    def fired(self) -> list[RedFlag]:
        """The red flags that have fired."""
        return [flag for flag in self.red_flags if flag.fired]

    @property
    def boundary_error(self) -> float:
        """What the worst case adds to the error on clean samples; see :func:`boundary_error`."""
        return self.rows["clean"].accuracy - self.rows["worst case"].accuracy

    @property
    def worst_group(self) -> str | None:
        """The group of the lowest score in the worst case, or accuracy; None without groups."""
        values = self._by_group(WORST)
        defined = [name for name, value in values.items() if not np.isnan(value)]
        return min(defined, key=values.__getitem__, default=None)

    def _by_group(self, name):
        """Return by what groups are compared: the scores, or without `scoring` the accuracies."""
        row = self.rows[name]
        return row.score_per_group or {n: a.accuracy for n, a in row.per_group.items()}

    # --- for machines ----------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers as nested dictionaries that json can write."""
        rows, asked = {}, {}
        for name, row in self.rows.items():
            rows[name] = {
                **{key: getattr(row, key) for key in self._columns},
                "per_class": _plain(row.per_class),
            }
            if self.groups is not None:
                rows[name]["per_group"] = _plain(row.per_group)
                for group, score in row.score_per_group.items():
                    # json knows no NaN
                    rows[name]["per_group"][group]["score"] = None if np.isnan(score) else score
        if self.scoring is not None:
            asked["scoring"] = self.scoring
        if self.groups is not None:
            asked |= {"groups": self.groups, "worst_group": self.worst_group}
        if self.sections:
            asked["sections"] = {section.name: section.data for section in self.sections}
        flags = {}
        for flag in self.red_flags:
            flags[flag.name] = asdict(flag)
            del flags[flag.name]["name"]
        return {
            "estimator": self.estimator_name,
            "norm": _norm_name(self.norm),
            "eps": self.eps.tolist() if isinstance(self.eps, np.ndarray) else self.eps,
            "n_samples": self.n_samples,
            "confidence": self.confidence,
            **asked,
            "rows": rows,
            "red_flags": flags,
            "notes": list(self.notes),
        }

    @property
    def _columns(self):
        return _COLUMNS if self.scoring is None else (*_COLUMNS, "score")

    def to_frame(self, per_class: bool = False, *, per_group: bool = False) -> Any:
        """Return a pandas DataFrame with one row for each attack.

        Parameters
        ----------
        per_class : bool, default=False
            Whether the columns are the accuracies of the classes, instead of
            accuracy, interval, cost and time.
        per_group : bool, default=False
            Whether they are the scores of the groups; without `scoring` their
            accuracies.
        """
        import pandas as pd

        if per_group:
            cells = {name: self._by_group(name) for name in self.rows}
        elif per_class:
            cells = {
                name: {label: a.accuracy for label, a in row.per_class.items()}
                for name, row in self.rows.items()
            }
        else:
            cells = {n: {k: getattr(row, k) for k in self._columns} for n, row in self.rows.items()}
        # column by column, so that counts stay integers
        columns = list(next(iter(cells.values())))
        return pd.DataFrame({c: [cells[n][c] for n in cells] for c in columns}, index=list(cells))

    # --- for people ------------------------------------------------------------------

    @property
    def _title(self):
        return (
            f"Robustness of {self.estimator_name}: {_norm_name(self.norm)} norm, "
            f"eps={_size(self.eps)}, {self.n_samples} samples"
        )

    def _tables(self):
        """Return titles and tables of strings, each with a header and a name before each row."""
        overall = [["", "accuracy", f"{100 * self.confidence:g}% interval", "forward", "backward"]]
        overall[0].append("seconds")
        if self.scoring is not None:
            overall[0].insert(3, _header(self.scoring))
        for name, row in self.rows.items():
            overall.append(
                [
                    name,
                    f"{row.accuracy:.3f}",
                    f"{row.low:.3f} to {row.high:.3f}",
                    f"{row.n_forward:,}",
                    f"{row.n_backward:,}",
                    f"{row.seconds:.2f}",
                ]
            )
            if self.scoring is not None:
                overall[-1].insert(3, f"{row.score:.3f}")
        yield None, overall
        yield "Accuracy per class", self._accuracies({n: r.per_class for n, r in self.rows.items()})
        if self.groups is not None:
            yield from self._tables_of_groups()
        for section in self.sections:
            if section.rows:
                yield section.title, [section.header, *section.rows]

    def _tables_of_groups(self):
        parts = {name: row.per_group for name, row in self.rows.items()}
        what = "group" if self.groups == "groups" else f"group ({self.groups})"
        yield f"Accuracy per {what}", self._accuracies(parts)
        if self.scoring is not None:
            scores = [["", "samples", *self.rows]]
            for group, last in self.rows[WORST].per_group.items():
                cells = (f"{row.score_per_group[group]:.3f}" for row in self.rows.values())
                scores.append([group, str(last.n_samples), *cells])
            yield f"{self.scoring} per {what}", scores

    def _accuracies(self, parts):
        """Return the table of the accuracies on parts of the samples, by row and by part."""
        table = [["", "samples", *self.rows, "its interval"]]
        for label, last in parts[WORST].items():
            table.append(
                [
                    label,
                    str(last.n_samples),
                    *(f"{row[label].accuracy:.3f}" for row in parts.values()),
                    f"{last.low:.3f} to {last.high:.3f}",
                ]
            )
        return table

    @property
    def _verdict(self):
        """What is said of the groups, as a list of sentences."""
        worst = self.worst_group
        if worst is None:
            return []
        what = self.scoring or "accuracy"
        return [f"Worst group: {worst}, {what} {self._by_group(WORST)[worst]:.3f}."]

    def __str__(self):
        parts = [self._title, ""]
        for title, table in self._tables():
            parts += [] if title is None else [title, ""]
            parts += [_aligned(table), ""]
        for note in self._verdict + self.notes:
            parts += textwrap.wrap(note, _WIDTH)
        if self.red_flags:
            parts += ["", self._flag_title]
            for flag in sorted(self.red_flags, key=lambda f: _ORDER.index(f.fired)):
                text = f"{flag.name}: {flag.evidence}" + (f" {flag.advice}" if flag.fired else "")
                parts += textwrap.wrap(
                    text,
                    _WIDTH,
                    initial_indent=f"  {_STATUS[flag.fired]:<13}",
                    subsequent_indent=" " * 15,
                )
        return "\n".join(parts)

    __repr__ = __str__

    @property
    def _flag_title(self):
        return f"Red flags: {len(self.fired)} of {len(self.red_flags)} checks fired"

    def to_html(self) -> str:
        """Return the report as a piece of HTML, as notebooks show it."""
        parts = ["<div>", f"<p><b>{html.escape(self._title)}</b></p>"]
        for title, table in self._tables():
            if title is None:
                parts += _html_table(table)
                continue
            parts += [f"<details><summary>{html.escape(title)}</summary>", *_html_table(table)]
            parts.append("</details>")
        parts += (f"<p>{html.escape(note)}</p>" for note in self._verdict + self.notes)
        if self.red_flags:
            parts += [f"<p><b>{html.escape(self._flag_title)}</b></p>", "<table>"]
            for flag in sorted(self.red_flags, key=lambda f: _ORDER.index(f.fired)):
                text = html.escape(flag.evidence)
                if flag.fired:
                    text += f"<br><b>{html.escape(flag.advice)}</b>"
                status = _STATUS[flag.fired]
                style = ' style="text-align:left"'
                parts.append(
                    f"<tr><td{style}>{f'<b>{status}</b>' if flag.fired else status}</td>"
                    f"<td{style}>{html.escape(flag.name)}</td><td{style}>{text}</td></tr>"
                )
            parts.append("</table>")
        return "\n".join([*parts, "</div>"])

    _repr_html_ = to_html


_COLUMNS = ("accuracy", "low", "high", "n_forward", "n_backward", "seconds")
_ORDER = (True, False, None)
_STATUS = {True: "FIRED", False: "silent", None: "not checked"}


def _plain(accuracies):
    """Return accuracies by name as dictionaries."""
    keys = ("accuracy", "low", "high", "n_samples")
    return {name: {key: getattr(a, key) for key in keys} for name, a in accuracies.items()}


def _header(scoring):
    """Return the name of a score, unless it is as long as that of a partial function."""
    return scoring if len(scoring) <= _LONGEST else "score"


def _norm_name(norm):
    return f"l{norm:g}"


def _size(eps):
    if isinstance(eps, np.ndarray):
        return f"{eps.min():.4g} to {eps.max():.4g}"
    return f"{eps:.4g}"


def _aligned(table):
    align = ("left", *["right"] * (len(table[0]) - 1))
    # to tabulate, the header is a row like any other, lest it make columns wider; and cells are
    # strings already, in which no number is to be looked for
    return tabulate(table, tablefmt="plain", colalign=align, disable_numparse=True)


def _html_table(table):
    yield "<table>"
    for i, row in enumerate(table):
        tag = "td" if i else "th"
        cells = [f"<th>{html.escape(row[0])}</th>"]
        cells += [f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row[1:]]
        yield f"<tr>{''.join(cells)}</tr>"
    yield "</table>"
