"""One table with all that is known about the robustness of a model."""

from __future__ import annotations

import html
import textwrap
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypedDict, overload

import numpy as np
from numpy.typing import ArrayLike
from tabulate import tabulate
from tqdm import tqdm

from .. import attacks as known
from ..attacks import BaseAttack
from ..metrics._scores import RobustAccuracy, adversarial_outcome, clopper_pearson_interval
from ..victims.victim import ACCESS
from ._problem import Problem
from ._red_flags import Probe, RedFlag, raise_flags

if TYPE_CHECKING:
    from typing_extensions import Unpack

CLEAN, WORST = "clean", "worst case"
_WIDTH = 100


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
    """

    per_class: dict[str, RobustAccuracy]
    n_forward: int
    n_backward: int
    seconds: float
    robust: np.ndarray = field(repr=False)


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
    """

    rows: dict[str, ReportRow]
    red_flags: list[RedFlag]
    notes: list[str]
    estimator_name: str
    norm: float
    eps: float | np.ndarray
    n_samples: int
    confidence: float

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

    # --- for machines ----------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers as nested dictionaries that json can write."""
        rows = {}
        for name, row in self.rows.items():
            rows[name] = {
                **{key: getattr(row, key) for key in _COLUMNS},
                "per_class": {
                    label: {
                        key: getattr(a, key) for key in ("accuracy", "low", "high", "n_samples")
                    }
                    for label, a in row.per_class.items()
                },
            }
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
            "rows": rows,
            "red_flags": flags,
            "notes": list(self.notes),
        }

    def to_frame(self, per_class: bool = False) -> Any:
        """Return a pandas DataFrame with one row for each attack.

        Parameters
        ----------
        per_class : bool, default=False
            Whether the columns are the accuracies of the classes, instead of
            accuracy, interval, cost and time.
        """
        import pandas as pd

        if per_class:
            cells = {
                name: {label: a.accuracy for label, a in row.per_class.items()}
                for name, row in self.rows.items()
            }
        else:
            cells = {n: {k: getattr(row, k) for k in _COLUMNS} for n, row in self.rows.items()}
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
        """Return two tables of strings, each with a header and a name in front of each row."""
        overall = [["", "accuracy", f"{100 * self.confidence:g}% interval", "forward", "backward"]]
        overall[0].append("seconds")
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
        per_class = [["", "samples", *self.rows, "its interval"]]
        for label, last in self.rows[WORST].per_class.items():
            per_class.append(
                [
                    label,
                    str(last.n_samples),
                    *(f"{row.per_class[label].accuracy:.3f}" for row in self.rows.values()),
                    f"{last.low:.3f} to {last.high:.3f}",
                ]
            )
        return overall, per_class

    def __str__(self):
        overall, per_class = self._tables()
        parts = [self._title, "", _aligned(overall), "", "Accuracy per class", ""]
        parts += [_aligned(per_class), ""]
        for note in self.notes:
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
        overall, per_class = self._tables()
        parts = ["<div>", f"<p><b>{html.escape(self._title)}</b></p>", *_html_table(overall)]
        parts += ["<details><summary>Accuracy per class</summary>", *_html_table(per_class)]
        parts += ["</details>", *(f"<p>{html.escape(note)}</p>" for note in self.notes)]
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


class _Options(TypedDict, total=False):
    """What :func:`robustness_report` takes, for its overloads."""

    eps: Any
    norm: Any
    clip: Any
    attacks: Mapping[str, BaseAttack] | None
    autoattack: str | None
    red_flags: bool
    n_flag_samples: int
    confidence: float
    random_state: Any
    verbose: int


@overload
def robustness_report(
    estimator: Any,
    X: Any,
    y: ArrayLike | None,
    *,
    output_dict: Literal[False] = False,
    **options: Unpack[_Options],
) -> RobustnessReport: ...


@overload
def robustness_report(
    estimator: Any,
    X: Any,
    y: ArrayLike | None,
    *,
    output_dict: Literal[True],
    **options: Unpack[_Options],
) -> dict[str, Any]: ...


def robustness_report(
    estimator: Any,
    X: Any,
    y: ArrayLike | None,
    *,
    eps: Any = None,
    norm: Any = None,
    clip: Any = "auto",
    attacks: Mapping[str, BaseAttack] | None = None,
    autoattack: str | None = "fast",
    red_flags: bool = True,
    n_flag_samples: int = 200,
    confidence: float = 0.95,
    output_dict: bool = False,
    random_state: Any = 0,
    verbose: int = 0,
) -> RobustnessReport | dict[str, Any]:
    """Attack a model in all the usual ways and tabulate what is left of it.

    Parameters
    ----------
    estimator : fitted estimator or torch.nn.Module
        What is attacked; see :func:`robustsk.victims.as_victim`.
    X : array-like of shape (n_samples, ...) or torch Dataset
        Test data, in the units of `eps`.
    y : array-like of shape (n_samples,)
        True labels. May be None where `X` is a Dataset that yields them.
    eps : float or array-like, default=None
        Largest perturbation. None means that of the `attacks`; failing that,
        the one a robustsk estimator was trained with; failing that, 8/255,
        0.5 and 12 for the inf, 2- and 1-norm.
    norm : {inf, 2, 1, "linf", "l2", "l1"}, default=None
        None means that of the `attacks`, of the training, or inf, in this
        order.
    clip : "auto", None or (low, high), default="auto"
        Valid range of the data, the same for all attacks. "auto" is what a
        robustsk estimator learned in training, or the range of `X`.
    attacks : dict of str to attack, default=None
        The rows of the table. An attack without `eps`, `norm` or
        `random_state` is given those of the report. None means, for a model
        with gradients, FGSM, PGD with 20 and with 100 steps, Carlini-Wagner
        (EAD in the 1-norm), MIM with 20 steps, FAB against the three most
        likely classes, Square with 1000 queries and AutoAttack; for
        any other model Square, HopSkipJump with 1000 queries and transfer
        from a surrogate. Attacks that do not know the norm are left out.
    autoattack : {"fast", "standard", "plus", "rand"} or None, default="fast"
        Version of AutoAttack among the default attacks, if any. "fast" costs
        about as much as the other rows together, "standard" several times
        that.
    red_flags : bool, default=True
        Whether to look for signs that the attacks fail for reasons other than
        robustness; see :func:`robustsk.evaluation.red_flags`.
    n_flag_samples : int, default=200
        Number of samples on which they are looked for.
    confidence : float, default=0.95
        Coverage of the Clopper-Pearson intervals.
    output_dict : bool, default=False
        Return ``report.to_dict()`` instead of the report.
    random_state : int, RandomState or None, default=0
        Seed of all attacks that have none.
    verbose : int, default=0
        Whether to show a progress bar over the attacks.

    Returns
    -------
    RobustnessReport or dict
        The report prints as text and shows as HTML in notebooks; it has
        ``to_dict()``, ``to_frame()`` and ``to_html()``.

    See Also
    --------
    robustsk.metrics.robust_accuracy : One row of the table.
    red_flags : The checks alone.
    robustsk.inspection.RobustnessCurveDisplay : Accuracy against `eps`.

    Notes
    -----
    Every attack runs on all samples that are classified correctly without one,
    so each row stands for itself, and its cost is that of the attack alone. A
    sample counts as robust in the worst case if it withstands all of them: the
    worst case can be lower than every row.

    The accuracy under attack is an upper bound of the robust accuracy. The
    interval covers the choice of the test samples, not attacks nobody has
    tried.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from robustsk import FGSM, PGD
    >>> from robustsk.evaluation import robustness_report
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = LogisticRegression(max_iter=1000).fit(X, y)
    >>> attacks = {"FGSM": FGSM(), "PGD-10": PGD()}
    >>> report = robustness_report(clf, X, y, eps=0.3, attacks=attacks, red_flags=False)
    >>> list(report.rows)
    ['clean', 'FGSM', 'PGD-10', 'worst case']
    >>> report["worst case"].accuracy <= report["PGD-10"].accuracy < report["clean"].accuracy
    True
    """
    clopper_pearson_interval(0, 1, confidence)  # complains before the work, not after it
    if attacks is not None and not isinstance(attacks, Mapping):
        raise TypeError(f"attacks must be a dict of names and attacks, got {attacks!r}.")
    problem = Problem(
        estimator,
        X,
        y,
        norm=norm,
        eps=eps,
        clip=clip,
        random_state=random_state,
        attacks=[] if attacks is None else attacks.values(),
    )
    judge = _Judge(problem, confidence)
    rows = {CLEAN: judge(problem.correct, len(problem.y), 0, problem.seconds)}
    chosen = _default_attacks(problem, autoattack) if attacks is None else dict(attacks)
    taken = {CLEAN, WORST} & set(chosen)
    if taken or not chosen:
        raise ValueError(
            f"No attack may be called {taken.pop()!r}."
            if taken
            else f"No default attack knows norm={problem.norm:g}: pass `attacks`."
        )
    chosen = {name: problem.complete(attack) for name, attack in chosen.items()}
    warned = {}
    for name, attack in tqdm(chosen.items(), unit="attack", disable=not verbose):
        start = time.perf_counter()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            outcome = adversarial_outcome(estimator, problem.X, problem.y, attack)
        seconds = time.perf_counter() - start
        rows[name] = judge(outcome.robust, outcome.n_forward, outcome.n_backward, seconds)
        _note(name, caught, warned)
    worst = np.logical_and.reduce([row.robust for row in rows.values()])
    totals = [sum(getattr(r, k) for r in rows.values()) for k in ("n_forward", "n_backward")]
    rows[WORST] = judge(worst, *totals, sum(r.seconds for r in rows.values()))

    known = {} if attacks is not None else {n: r.robust for n, r in rows.items()}
    probe = Probe(problem, n_flag_samples, known)
    report = RobustnessReport(
        rows,
        raise_flags(probe) if red_flags else [],
        _notes(problem, chosen, probe)
        + [f"{', '.join(names)}: {message}" for message, names in warned.items()],
        problem.name,
        problem.norm,
        problem.eps,
        len(problem.y),
        confidence,
    )
    return report.to_dict() if output_dict else report


class _Judge:
    """Makes rows."""

    def __init__(self, problem, confidence):
        self.confidence = confidence
        self.members = {str(label): problem.y == label for label in np.unique(problem.y)}

    def __call__(self, robust, n_forward, n_backward, seconds):
        def accuracy(robust):
            low, high = clopper_pearson_interval(int(robust.sum()), len(robust), self.confidence)
            return float(robust.mean()), low, high, self.confidence, len(robust)

        per_class = {
            label: RobustAccuracy(*accuracy(robust[rows])) for label, rows in self.members.items()
        }
        return ReportRow(*accuracy(robust), per_class, n_forward, n_backward, seconds, robust)


def _default_attacks(problem, autoattack):
    if problem.access == "gradients":
        candidates = {
            "FGSM": known.FGSM(),
            "PGD-20": known.PGD(n_steps=20),
            "PGD-100": known.PGD(n_steps=100),
            "C&W": known.CarliniWagner(n_steps=100, n_binary_steps=5),
            "EAD": known.EAD(n_steps=100, n_binary_steps=5),  # its place in the 1-norm
            "MIM": known.MIM(n_steps=20),
            "FAB": known.FAB(n_targets=3),
            "Square": known.SquareAttack(max_queries=1000),
        }
        if autoattack is not None:
            name = "AutoAttack" if autoattack == "standard" else f"AutoAttack-{autoattack}"
            candidates[name] = known.AutoAttack(version=autoattack)
    else:
        candidates = {
            "Square": known.SquareAttack(max_queries=1000),
            "HopSkipJump": known.HopSkipJump(max_queries=1000),
        }
        if problem.surrogate is not None:
            inner = known.PGD(n_steps=20)
            candidates["Transfer"] = known.TransferAttack(attack=inner, surrogate=problem.surrogate)
    see = ACCESS[ACCESS.index(problem.access) :]
    return {
        name: attack
        for name, attack in candidates.items()
        if problem.norm in attack.supported_norms and attack.access in see
    }


def _notes(problem, attacks, probe):
    notes = [
        "Each attack ran on all samples that are classified correctly without one; the worst case "
        "counts a sample as robust if it withstood all attacks."
    ]
    if problem.no_gradient:
        notes.append(
            f"Attacks that follow gradients are not among the default ones: {problem.no_gradient}."
        )
    for name, attack in attacks.items():
        if attack.remark is not None:
            notes.append(f"{name} is {attack.remark}.")
    if probe.randomness[0]:
        notes.append(
            f"The model answers at random. {probe.randomness[1]} Every row was judged by answers "
            "of its own, so rows differ by luck as well, and the worst case counts all bad luck."
        )
    return notes


def _note(name, caught, warned):
    """Remember what an attack has warned of; pass on what is no business of the report."""
    for warning in caught:
        if issubclass(warning.category, UserWarning):
            names = warned.setdefault(str(warning.message), [])
            names += [] if name in names else [name]
        else:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )


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
