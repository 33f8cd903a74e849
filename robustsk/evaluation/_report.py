"""One table with all that is known about the robustness of a model."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Literal, TypedDict, overload

import numpy as np
from numpy.typing import ArrayLike
from sklearn.exceptions import UndefinedMetricWarning
from tqdm import tqdm

from .. import attacks as known
from ..attacks import BaseAttack
from ..metrics._intervals import RobustAccuracy, clopper_pearson_interval
from ..metrics._scores import adversarial_outcome
from ..metrics._scoring import Judge, stops_early
from ..victims.space import FeatureSpace
from ..victims.victim import ACCESS
from ._problem import Problem
from ._red_flags import Probe, lead, raise_flags
from ._result import CLEAN, WORST, ReportRow, RobustnessReport
from ._sections import table_notes, table_sections

if TYPE_CHECKING:
    from typing_extensions import Unpack

_BATCH = 256


class _Options(TypedDict, total=False):
    """What :func:`robustness_report` takes, for its overloads."""

    eps: Any
    norm: Any
    clip: Any
    space: FeatureSpace | None
    mask: ArrayLike | None
    attacks: Mapping[str, BaseAttack] | None
    scoring: str | Callable | None
    attack_classes: ArrayLike | None
    groups: ArrayLike | None
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
    space: FeatureSpace | None = None,
    mask: ArrayLike | None = None,
    attacks: Mapping[str, BaseAttack] | None = None,
    scoring: str | Callable | None = None,
    attack_classes: ArrayLike | None = None,
    groups: ArrayLike | None = None,
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
    space : FeatureSpace, default=None
        What the columns of a table may become, the same for all attacks; an unfitted one is fitted
        on `X`. The report then also tells which columns break rows, and how far each may move.
    mask : array-like of bool or list of names, default=None
        Which features may change.
    attacks : dict of str to attack, default=None
        The rows of the table. An attack without `eps`, `norm` or
        `random_state` is given those of the report. None means, for a model
        with gradients, FGSM, PGD with 20 and with 100 steps, Carlini-Wagner
        (EAD in the 1-norm), MIM with 20 steps, FAB against the three most
        likely classes, Square with 1000 queries and AutoAttack; for
        any other model Square, HopSkipJump with 1000 queries and transfer
        from a surrogate. For tables GreedySearch comes first, then CAPGD where there
        are gradients, Square, and HopSkipJump where there are none. Attacks that do
        not know the norm are left out.
    scoring : str or callable, default=None
        A score to be shown beside the accuracy, such as "balanced_accuracy" or
        "average_precision"; see :func:`robustsk.metrics.score_adversarial`.
    attack_classes : array-like or label, default=None
        Only samples of these classes are attacked; the others are judged as
        they are. None means all. The red flags are about all samples.
    groups : array-like of shape (n_samples,) or str, default=None
        The group of each sample, or the column of a frame `X` that tells it,
        such as a region or a sex. The report then tells the accuracy, or the
        score, on each group, and which is the worst.
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
    worst case can be lower than every row. With a `scoring` that asks for more
    than labels all samples are attacked, and to the end.

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
        space=space,
        mask=mask,
    )
    judge = _Judge(problem, confidence, scoring, groups)
    cost = len(problem.y), 0, problem.seconds
    rows = {CLEAN: judge(problem.correct, *cost, problem.values, problem.y_pred)}
    chosen = _default_attacks(problem, autoattack) if attacks is None else dict(attacks)
    taken = {CLEAN, WORST} & set(chosen)
    if taken or not chosen:
        raise ValueError(
            f"No attack may be called {taken.pop()!r}."
            if taken
            else f"No default attack knows norm={problem.norm:g}: pass `attacks`."
        )
    chosen = {name: problem.complete(attack) for name, attack in chosen.items()}
    worst_case, warned, examples = _WorstCase(problem, judge), {}, []
    for name, attack in tqdm(chosen.items(), unit="attack", disable=not verbose):
        start = time.perf_counter()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            outcome = adversarial_outcome(
                estimator,
                problem.X,
                problem.y,
                attack,
                attack_classes=attack_classes,
                keep=judge.keep,
            )
        cost = outcome.n_forward, outcome.n_backward, time.perf_counter() - start
        rows[name] = judge(outcome.robust, *cost, outcome.X_adv, outcome.y_pred_adv)
        values = problem.encode(outcome.X_adv)
        worst_case.add(outcome, values)
        if problem.space is not None:
            examples.append(values)
        _note(name, caught, warned)
    worst = np.logical_and.reduce([row.robust for row in rows.values()])
    costs = "n_forward", "n_backward", "seconds"
    cost = [sum(getattr(row, name) for row in rows.values()) for name in costs]
    rows[WORST] = judge(worst, *cost, worst_case.values, worst_case.labels)

    is_usual = attacks is None and attack_classes is None
    known = {n: r.robust for n, r in rows.items()} if is_usual else {}
    probe = Probe(problem, n_flag_samples, known)
    report = RobustnessReport(
        rows,
        raise_flags(probe) if red_flags else [],
        _notes(problem, chosen, probe, judge, attack_classes)
        + [f"{', '.join(names)}: {message}" for message, names in warned.items()],
        problem.name,
        problem.norm,
        problem.eps,
        len(problem.y),
        confidence,
        judge.scoring,
        judge.groups,
        [] if problem.space is None else table_sections(problem, examples),
    )
    return report.to_dict() if output_dict else report


class _Judge:
    """Makes rows.

    Parameters
    ----------
    problem : Problem
    confidence : float
    scoring, groups
        As in :func:`robustness_report`.

    Attributes
    ----------
    scoring, groups : str or None
        What they are called.
    undefined : dict of str to list of str
        Groups for which the score is not defined, by what was said about it.
    """

    def __init__(self, problem, confidence, scoring, groups):
        self.problem, self.confidence = problem, confidence
        self.members = {str(label): problem.y == label for label in np.unique(problem.y)}
        self.groups, self.group_members = _members(groups, problem.X, len(problem.y))
        self.scorer = None
        if scoring is not None:
            self.scorer = Judge(scoring, problem.estimator, problem.asked, problem.X)
        self.undefined = {}

    @property
    def scoring(self):
        return None if self.scorer is None else self.scorer.name

    @property
    def keep(self):
        """How far attacks have to go."""
        return "first" if self.scorer is None else self.scorer.keep

    def __call__(self, robust, n_forward, n_backward, seconds, values, labels):
        def accuracy(robust):
            low, high = clopper_pearson_interval(int(robust.sum()), len(robust), self.confidence)
            return float(robust.mean()), low, high, self.confidence, len(robust)

        per_class, per_group = (
            {name: RobustAccuracy(*accuracy(robust[rows])) for name, rows in members.items()}
            for members in (self.members, self.group_members)
        )
        score, score_per_group = None, {}
        if self.scorer is not None:
            with self.problem.seeded() if self.problem.asked.draws else nullcontext():
                score = self.scorer(values, labels, self.problem.y)
                score_per_group = {
                    name: self._of_group(name, values, labels) for name in self.group_members
                }
        cost = n_forward, n_backward, seconds
        return ReportRow(
            *accuracy(robust), per_class, *cost, robust, score, per_group, score_per_group
        )

    def _of_group(self, name, values, labels):
        """Return the score of a group, NaN where a group has too little in it for one."""
        rows = self.group_members[name]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", UndefinedMetricWarning)
            warnings.filterwarnings("error", "No positive")
            try:
                return self.scorer(values, labels, self.problem.y, rows=rows)
            except (ValueError, UserWarning) as error:
                groups = self.undefined.setdefault(str(error).partition("\n")[0], [])
                groups += [] if name in groups else [name]
                return float("nan")


def _members(groups, X, n_samples):
    """Return what the groups are called, and which samples belong to each, by its name."""
    if groups is None:
        return None, {}
    if np.ndim(groups) == 0:
        columns = getattr(X, "columns", None)
        if columns is None or groups not in list(columns):
            known = "X has no names" if columns is None else f"X has {list(columns)[:20]}"
            raise ValueError(
                f"groups={groups!r} is no column of X ({known}): pass the name of one, or an array "
                "with the group of each sample."
            )
        name, groups = groups, X[groups]
    else:
        name = getattr(groups, "name", None)
    values = np.asarray(groups)
    if values.shape != (n_samples,):
        raise ValueError(
            f"groups must have one value for each of the {n_samples} samples, got an array of "
            f"shape {values.shape}."
        )
    names = np.array([str(value) for value in values.tolist()])
    try:
        order = dict.fromkeys(str(value) for value in np.unique(values).tolist())
    except TypeError:  # what is missing does not compare
        order = np.unique(names).tolist()
    return str(name or "groups"), {name: names == name for name in order}


class _WorstCase:
    """Of each sample the example that does most, for a score; nothing without one.

    Attributes
    ----------
    values : ndarray of shape (n_samples, ...)
    labels : ndarray of shape (n_samples,)
    """

    def __init__(self, problem, judge):
        self.problem, self.judge = problem, judge
        self.values, self.labels, self._margin = problem.values, problem.y_pred, None
        if judge.scorer is not None:
            self.values = self.values.copy()
        if judge.keep == "worst":
            self._margin = self._margins(self.values)

    def add(self, outcome, values):
        """Take what an attack has made worse."""
        if self.judge.scorer is None:
            return
        if self._margin is None:
            worse = (self.labels == outcome.y_true) & (outcome.y_pred_adv != outcome.y_true)
        else:
            margin = self._margins(values)
            worse = margin < self._margin
            self._margin = np.where(worse, margin, self._margin)
        self.values[worse] = values[worse]
        self.labels = np.where(worse, outcome.y_pred_adv, self.labels)

    def _margins(self, values):
        """Return the lead of the true class over the others, shape (n_samples,)."""
        problem = self.problem
        with problem.seeded():
            parts = [values[start : start + _BATCH] for start in range(0, len(values), _BATCH)]
            logits = np.concatenate([problem.asked.logits(part).double() for part in parts])
        margin = lead(logits, problem.index)
        return np.where(np.isnan(margin), -np.inf, margin)


def _default_attacks(problem, autoattack):
    if problem.space is not None:
        candidates = {
            "GreedySearch": known.GreedySearch(),
            "CAPGD": known.CAPGD(),
            "Square": known.SquareAttack(max_queries=300),
        }
        if problem.access != "gradients":
            candidates["HopSkipJump"] = known.HopSkipJump(max_queries=300)
    elif problem.access == "gradients":
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


def _notes(problem, attacks, probe, judge, attack_classes):
    ran, taken = "that are classified correctly without one", ""
    if judge.keep == "worst":
        ran = f"and went on after its success, since {judge.scoring} is not computed from labels"
        taken = f", and {judge.scoring} is that of the examples with the smallest margins"
    notes = [
        f"Each attack ran on all samples {ran}; the worst case counts a sample as robust if it "
        f"withstood all attacks{taken}."
    ]
    if attack_classes is not None:
        notes.append(
            f"Only samples of attack_classes={attack_classes} were attacked: the others are judged "
            "as they are."
        )
    short = [
        name for name, attack in attacks.items() if judge.keep == "worst" and stops_early(attack)
    ]
    if short:
        notes.append(
            f"To {judge.scoring} less is done than is possible by attacks that stop where the "
            f"prediction changes: {', '.join(short)}."
        )
    for reason, groups in judge.undefined.items():
        notes.append(f"{judge.scoring} is not defined for {', '.join(groups)}: {reason}")
    if problem.no_gradient:
        notes.append(
            f"Attacks that follow gradients are not among the default ones: {problem.no_gradient}."
        )
    if problem.space is not None:
        notes += table_notes(problem)
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
