"""Accuracy under attack, with its uncertainty."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.utils.validation import _check_sample_weight, check_consistent_length, column_or_1d
from torch import nn

from .._containers import (
    Batches,
    check_one_input,
    check_rows,
    chunks,
    copy_of,
    dataset_labels,
    is_dataset,
)
from .._validation import check_choice, check_classifies, check_labels
from ..attacks import BaseAttack
from ..attacks.base import check_attack
from ..victims._checks import no_answer
from ..victims._columns import TableRows, restore
from ..victims._outputs import predicted_class
from ..victims._own_predict import own_predict_of
from ..victims.victim import Victim
from ._craft import prepared
from ._intervals import RobustAccuracy, clopper_pearson_interval
from ._scoring import Judge, chosen_samples


@dataclass
class AdversarialOutcome:
    """What an attack did to every sample.

    Attributes
    ----------
    y_true, y_pred, y_pred_adv : ndarray of shape (n_samples,)
        True labels, predictions without and under attack. Under attack a network
        may return NaN; then the prediction is a label that is nobody's (the
        smallest integer, NaN or None), so that the sample is not robust.
    attacked : ndarray of bool of shape (n_samples,)
        Which samples were attacked: unless something else was asked for, those
        that are classified correctly without an attack.
    X_adv : ndarray of shape (n_samples, ...)
        The samples that were judged; in a temporary file if they are many and
        the data are not in memory.
    info : dict of str to ndarray of shape (n_samples, ...)
        What the attack reports about each sample, such as ``"n_queries"``;
        zero where it was not attacked.
    n_forward, n_backward : int
        How many samples went through the model during the attack, and how
        many gradients were taken.
    """

    y_true: np.ndarray
    y_pred: np.ndarray
    y_pred_adv: np.ndarray
    attacked: np.ndarray
    X_adv: np.ndarray
    info: dict[str, np.ndarray] = field(default_factory=dict)
    n_forward: int = 0
    n_backward: int = 0

    @property
    def correct(self) -> np.ndarray:
        """Where the prediction is right without an attack."""
        return self.y_pred == self.y_true

    @property
    def robust(self) -> np.ndarray:
        """Where the prediction is right with and without the attack."""
        return self.correct & (self.y_pred_adv == self.y_true)

    @property
    def boundary(self) -> np.ndarray:
        """Where the prediction is right without the attack, and not with it."""
        return self.correct & ~self.robust


def adversarial_outcome(
    estimator: Any,
    X: Any,
    y: ArrayLike | None,
    attack: BaseAttack,
    *,
    attack_classes: ArrayLike | None = None,
    keep: str = "first",
) -> AdversarialOutcome:
    """Attack an estimator and record what happens to every sample.

    Parameters
    ----------
    estimator : fitted estimator or torch.nn.Module
        What is attacked; see :func:`robustsk.victims.as_victim`. The last word
        is that of its own `predict`.
    X : array-like of shape (n_samples, ...) or torch Dataset
        A memory-mapped array or a Dataset is read in parts.
    y : array-like of shape (n_samples,)
        True labels.
    attack : attack
        Its own `estimator` plays no part. With ``clip="auto"`` the valid range
        is what `attack` has learned if it is fitted, what `estimator` learned
        in training if it is one of ours, and that of `X` failing both.
    attack_classes : array-like or label, default=None
        As in :func:`score_adversarial`.
    keep : {"first", "worst"}, default="first"
        "first" attacks what is classified correctly, and no work is spent on a
        sample once it is misclassified: enough to count samples. "worst"
        attacks what is misclassified as well, and to the end, for whatever is
        computed from the scores of the estimator on `X_adv`; an example that
        is misclassified is never given up for one that is not.

    Returns
    -------
    AdversarialOutcome

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from robustsk import PGD
    >>> from robustsk.metrics import adversarial_outcome
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = LogisticRegression(max_iter=1000).fit(X, y)
    >>> outcome = adversarial_outcome(clf, X, y, PGD(eps=0.5, random_state=0))
    >>> bool(outcome.robust.mean() < outcome.correct.mean())
    True
    """
    check_choice(keep, "keep", ("first", "worst"))
    run, y_true = prepare(estimator, X, y, attack)
    chosen = chosen_samples(attack_classes, y_true, run.victim.classes)
    return play(run, estimator, X, y_true, keep_samples=True, chosen=chosen, keep=keep)


def prepare(estimator, X, y, attack, known=None):
    """Return the run of an attack on labelled samples, and the labels.

    Parameters
    ----------
    estimator, X, y, attack
        As in :func:`adversarial_outcome`.
    known : ndarray of bool of shape (n_samples,), optional
        Samples whose class the estimator has been trained on; the others must not be attacked.

    Returns
    -------
    run : Prepared
    y_true : ndarray of shape (n_samples,)
    """
    check_attack(attack)
    check_classifies(estimator)
    if is_dataset(X) and y is None:
        y = dataset_labels(X)
    check_one_input(X, y)
    y_true = column_or_1d(check_labels(y))
    values = attack._resolved()._in_order(X, estimator)._table_rows(X)
    is_table = values is not None
    values = values if is_table else check_rows(X)
    check_consistent_length(values, y_true)
    if not is_table and values.shape[1] != getattr(estimator, "n_features_in_", values.shape[1]):
        estimator.predict(values[:1])  # which says so in its own words
    index = y_true if known is None else np.where(known, y_true, estimator.classes_[0])
    return prepared(attack, estimator, values, index, X, in_parts=True), y_true


def play(run, estimator, X, y_true, keep_samples=False, *, chosen=None, keep="first", y_pred=None):
    """Carry out a prepared run on an estimator.

    Parameters
    ----------
    run : Prepared
        On the samples of `X`, their true labels being the classes to move away from.
    estimator : fitted estimator, torch.nn.Module or Victim
        Whose `predict` has the last word.
    X : object
        What the user passed; asked for names of columns.
    y_true : ndarray of shape (n_samples,)
    keep_samples : bool, default=False
        Whether the outcome holds X_adv and info.
    chosen : ndarray of bool of shape (n_samples,), optional
        Samples that may be attacked; None means all.
    keep : {"first", "worst"}, default="first"
        See :func:`adversarial_outcome`.
    y_pred : ndarray of shape (n_samples,), optional
        What is predicted without an attack, where that is known.

    Returns
    -------
    AdversarialOutcome
    """
    attack, victim, batches, values = run.attack, run.victim, run.batches, run.X
    if y_pred is None:
        with run.seeded():
            y_pred = predicted_index(estimator, victim, values, X, batches)
    attacked = y_pred == y_true if keep == "first" else np.ones(len(y_true), dtype=bool)
    if chosen is not None:
        attacked &= chosen
    todo = np.flatnonzero(attacked)
    X_adv = copy_of(values) if keep_samples else None
    y_pred_adv, info, n_forward, n_backward = y_pred.copy(), {}, 0, 0
    run = run.take(todo)
    # the worst case over several attacks is theirs to keep
    whole = attack.whole_runs or not attack.per_sample
    parts = [slice(0, len(todo))] if whole else chunks(run.X, batches.first)
    for part in parts if len(todo) else []:
        rows, before = todo[part], replace(victim.calls)
        found, reported = attack.run(run if whole else run.take(part, run.X[part]), keep=keep)
        n_forward += victim.calls.forward - before.forward
        n_backward += victim.calls.backward - before.backward
        if run.space is not None:
            found = TableRows(found, run.space)
        with run.seeded():
            labels = predicted_index(estimator, victim, found, X, batches, True)
        # one that is nobody's may not fit among the others
        y_pred_adv = y_pred_adv.astype(np.promote_types(y_pred_adv.dtype, labels.dtype), copy=False)
        y_pred_adv[rows] = labels
        if keep_samples:
            X_adv[rows] = found
            for name, values_of in reported.items():
                if name not in info:
                    shape = (len(values), *values_of.shape[1:])
                    info[name] = np.zeros(shape, dtype=values_of.dtype)
                info[name][rows] = values_of
    batches.warn()
    if keep_samples and run.space is not None:
        X_adv = restore(X_adv, X, run.space)
    return AdversarialOutcome(
        y_true, y_pred, y_pred_adv, attacked, X_adv, info, n_forward, n_backward
    )


def predicted_index(estimator, victim, values, X, batches=None, attacked=False):
    """Predict the labels of `values` as a user of `X` would.

    Parameters
    ----------
    estimator : fitted estimator, torch.nn.Module, Victim, or list or dict of such
    victim : Victim
        What is attacked where that is attacked. It is compared with the predictions.
    values : ndarray or Rows of shape (n_samples, ...)
    X : object
        What the user passed; asked for names of columns.
    batches : Batches, optional
    attacked : bool, default=False
        Whether these are adversarial examples. Then a model may answer some of them with NaN; they
        get a label that is nobody's.

    Returns
    -------
    ndarray of shape (n_samples,)
    """
    own = None
    if not isinstance(estimator, (nn.Module, Victim)):
        own = own_predict_of(estimator)
    if own is None:
        return _predicted_by_victim(victim, values, batches, attacked)
    columns, found, lost = getattr(X, "columns", None), [], []
    nobody = np.zeros(1, dtype=int) if victim.classes is None else victim.classes[:1]

    def ask(rows):
        if attacked:
            labels, has_none = _answers(own, values[rows], columns, nobody)
        else:
            labels, has_none = own(values[rows], columns), np.zeros(0, dtype=bool)
        found.append(labels)
        lost.append(has_none)

    parts = chunks(values)
    asked = Batches(parts[0].stop)
    asked.run(ask, len(values))
    if batches is not None and asked.size < min(asked.first, batches.size):
        batches.size = asked.size
    labels = np.concatenate(found)
    victim.compare(values, labels, columns, attacked)
    return _without_answer(labels, np.flatnonzero(np.concatenate(lost)))


def _answers(own, values, columns, nobody):
    """Return labels, and where there is none because the model answers NaN."""
    try:
        return own(values, columns), np.zeros(len(values), dtype=bool)
    except FloatingPointError:
        if len(values) == 1:
            return nobody, np.ones(1, dtype=bool)
        halves = np.array_split(values, 2)
        answers = [_answers(own, half, columns, nobody) for half in halves]
        return tuple(np.concatenate(several) for several in zip(*answers, strict=True))


def _predicted_by_victim(victim, values, batches, attacked):
    """Predict labels by the largest logit of the victim."""
    found = []

    def look(rows):
        x = torch.from_numpy(np.array(values[rows]))
        logits = seen.itself(x.to(victim.device, victim.dtype))
        found.append(predicted_class(logits).cpu().numpy())

    with victim.frozen() as seen, torch.no_grad():
        (Batches(256) if batches is None else batches).run(look, len(values))
    index = np.concatenate(found)
    lost = np.flatnonzero(index < 0)
    if len(lost) and not attacked:
        raise no_answer(victim.name, len(lost), len(index))
    labels = index if victim.classes is None else victim.classes[index]
    victim.compare(values, attacked=attacked)
    return _without_answer(labels, lost)


def _without_answer(labels, rows):
    """Return labels with those in some rows made equal to no class."""
    if not len(rows):
        return labels
    if labels.dtype.kind in "iub":
        labels = labels.astype(np.int64)
        labels[rows] = np.iinfo(np.int64).min
    elif labels.dtype.kind == "f":
        labels = labels.copy()
        labels[rows] = np.nan
    else:
        labels = labels.astype(object)
        labels[rows] = None
    return labels


def score_adversarial(
    estimator: Any,
    X: Any,
    y: ArrayLike | None,
    attack: BaseAttack,
    *,
    sample_weight: ArrayLike | None = None,
    scoring: str | Callable | None = None,
    attack_classes: ArrayLike | None = None,
) -> float:
    """Accuracy under attack, or another score.

    Parameters
    ----------
    estimator : fitted estimator or torch.nn.Module
        What is attacked: a robustsk or skorch estimator, a torch module, or a
        scikit-learn classifier or pipeline through which gradients can flow.
    X : array-like of shape (n_samples, ...) or torch Dataset
        Test data, in the units in which the `eps` of the attack is given. A
        memory-mapped array or a Dataset may be larger than memory.
    y : array-like of shape (n_samples,)
        True labels.
    attack : attack
        See :func:`adversarial_outcome` for the valid range it uses.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the samples. They are passed on to `scoring`.
    scoring : str or callable, default=None
        Name of a score that scikit-learn knows, such as "balanced_accuracy",
        "recall" or "average_precision", or ``scorer(estimator, X, y)``, such
        as :func:`sklearn.metrics.make_scorer` makes. None means accuracy.
    attack_classes : array-like or label, default=None
        Only samples of these classes are attacked, such as the frauds; the
        others are judged as they are. None means all classes.

    Returns
    -------
    float
        Share of samples that are classified correctly and stay so under the
        attack, in [0, 1]; with `scoring` what that returns, where greater is
        better.

    Raises
    ------
    NoGradientError
        If the attack needs gradients and the estimator has none.
    ValueError
        If `X` is empty or not finite, lies outside of the valid range, or `y`
        contains labels that the estimator has not been trained on;
        `attack_classes` that neither the estimator nor `y` knows.

    Notes
    -----
    With `scoring` the estimator itself answers, on the adversarial examples. A
    score of labels ("recall", "f1") needs no more than the accuracy: what is
    misclassified is not attacked, and what becomes so is left alone, as any
    wrong label is as good as another to the attack. In a score that asks for
    more (`predict_proba`, `decision_function`: "roc_auc", "neg_log_loss") it
    matters how wrong an answer is. Then misclassified samples are attacked as
    well, and the attack goes on after its success. Not every attack can: one
    that looks for the closest example, `AutoAttack` and those that only ask
    stop at the border and do less to such a score than is possible, which a
    warning says.

    Whether a score asks for more is seen when it is computed without an attack
    first. The example of a sample for which a network has no answer counts as
    one of another class.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from robustsk import PGD, score_adversarial
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = LogisticRegression(max_iter=1000).fit(X, y)
    >>> score_adversarial(clf, X, y, PGD(eps=0.0, random_state=0)) == clf.score(X, y)
    True
    >>> attack = PGD(eps=0.5, random_state=0)
    >>> hit = score_adversarial(
    ...     clf, X, y, attack, scoring="balanced_accuracy", attack_classes=[1]
    ... )
    >>> hit > score_adversarial(clf, X, y, attack, scoring="balanced_accuracy")
    True
    """
    if scoring is not None:
        return scored(estimator, X, y, attack, scoring, attack_classes, sample_weight)
    run, y_true = prepare(estimator, X, y, attack)
    chosen = chosen_samples(attack_classes, y_true, run.victim.classes)
    return _share(play(run, estimator, X, y_true, chosen=chosen).robust, sample_weight)


def scored(estimator, X, y, attack, scoring, attack_classes, sample_weight, known=None):
    """Return a score under attack; parameters as in :func:`score_adversarial` and `prepare`."""
    run, y_true = prepare(estimator, X, y, attack, known)
    chosen = chosen_samples(attack_classes, y_true, run.victim.classes)
    if known is not None:
        chosen = known if chosen is None else known & chosen
    if scoring is None:
        return _share(play(run, estimator, X, y_true, chosen=chosen).robust, sample_weight)
    judge = Judge(scoring, estimator, run.victim, X)
    with run.seeded():
        y_pred = predicted_index(estimator, run.victim, run.X, X, run.batches)
        clean = run.X if isinstance(run.X, np.ndarray) else copy_of(run.X)
        judge.look(clean, y_pred, y_true, sample_weight)
    judge.warn_about(run.attack)
    how = {"chosen": chosen, "keep": judge.keep, "y_pred": y_pred}
    outcome = play(run, estimator, X, y_true, keep_samples=True, **how)
    with run.seeded():
        return judge(outcome.X_adv, outcome.y_pred_adv, y_true, sample_weight)


def boundary_error(
    estimator: Any,
    X: Any,
    y: ArrayLike | None,
    attack: BaseAttack,
    sample_weight: ArrayLike | None = None,
) -> float:
    """Share of samples that are classified correctly, and not so under an attack.

    It is what robustness adds to the error, ``R_rob = R_nat + R_bdy``: the robust error is that of
    :func:`score_adversarial`, the natural one that of ``score``. Defences trade one term for the
    other.

    Parameters
    ----------
    estimator, X, y, attack
        As in :func:`score_adversarial`.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the samples.

    Returns
    -------
    float
        In [0, 1]. As an attack may miss adversarial examples, it is a lower bound.

    See Also
    --------
    attack_success_rate : The same relative to the samples that are classified correctly.

    References
    ----------
    Zhang, Yu, Jiao, Xing, El Ghaoui and Jordan (2019), "Theoretically principled trade-off between
    robustness and accuracy", Eq. 1.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from robustsk import PGD, boundary_error, score_adversarial
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = LogisticRegression(max_iter=1000).fit(X, y)
    >>> attack = PGD(eps=0.5, random_state=0)
    >>> natural, boundary = 1 - clf.score(X, y), boundary_error(clf, X, y, attack)
    >>> round(natural + boundary + score_adversarial(clf, X, y, attack), 12)
    1.0
    """
    run, y_true = prepare(estimator, X, y, attack)
    return _share(play(run, estimator, X, y_true).boundary, sample_weight)


def _share(hits, sample_weight):
    """Return the share of samples, or of their weight, for which something holds."""
    if sample_weight is None:
        return float(hits.mean())
    weight = _check_sample_weight(sample_weight, hits[:, None], dtype=np.float64)
    return float(np.average(hits, weights=weight))


def robust_accuracy(
    estimator: Any,
    X: Any,
    y: ArrayLike | None,
    attack: BaseAttack,
    *,
    confidence: float = 0.95,
) -> RobustAccuracy:
    """Accuracy under attack with a Clopper-Pearson interval.

    Parameters
    ----------
    estimator, X, y, attack
        As in :func:`score_adversarial`.
    confidence : float, default=0.95
        Probability that the interval contains the accuracy on the population
        from which the test samples were drawn independently.

    Returns
    -------
    RobustAccuracy

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from robustsk import PGD, robust_accuracy
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = LogisticRegression(max_iter=1000).fit(X, y)
    >>> result = robust_accuracy(clf, X, y, PGD(eps=0.3, random_state=0))
    >>> result.low <= result.accuracy <= result.high
    True
    """
    run, y_true = prepare(estimator, X, y, attack)
    robust = play(run, estimator, X, y_true).robust
    low, high = clopper_pearson_interval(int(robust.sum()), len(robust), confidence)
    return RobustAccuracy(float(robust.mean()), low, high, confidence, len(robust))


def attack_success_rate(
    estimator: Any,
    X: Any,
    y: ArrayLike | None,
    attack: BaseAttack,
    *,
    over: str = "correct",
) -> float:
    """Share of samples on which an attack succeeds.

    Parameters
    ----------
    estimator, X, y, attack
        As in :func:`score_adversarial`. A targeted attack too succeeds where
        the prediction becomes wrong, whatever it becomes.
    over : {"correct", "all"}, default="correct"
        Relative to the samples that are classified correctly without an
        attack, or to all, where clean errors count as successes.

    Returns
    -------
    float
        In [0, 1]; NaN where no sample is classified correctly.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from robustsk import PGD, attack_success_rate
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = LogisticRegression(max_iter=1000).fit(X, y)
    >>> attack_success_rate(clf, X, y, PGD(eps=0.0, random_state=0))
    0.0
    """
    if over not in ("correct", "all"):
        raise ValueError(f"over must be 'correct' or 'all', got {over!r}.")
    run, y_true = prepare(estimator, X, y, attack)
    outcome = play(run, estimator, X, y_true)
    broken = ~outcome.robust
    if over == "all":
        return float(broken.mean())
    if not outcome.correct.any():
        warnings.warn(
            "No sample is classified correctly without an attack: the success rate over correct "
            "samples is not defined.",
            RuntimeWarning,
            stacklevel=2,
        )
        return float("nan")
    return float(broken[outcome.correct].mean())
