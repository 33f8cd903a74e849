"""Scores of scikit-learn, computed from what an estimator answers to adversarial examples."""

from __future__ import annotations

import warnings
from numbers import Number

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import check_scoring
from sklearn.utils.metaestimators import available_if
from torch import nn

from .._containers import Batches, chunks, like
from ..attacks.black_box.base import BaseBlackBoxAttack
from ..victims._columns import TableRows
from ..victims._own_predict import own_predict_of
from ..victims.nets import is_net, precision_of
from ..victims.victim import Victim


def check_scorer(scoring):
    """Return the scorer that a user means.

    Parameters
    ----------
    scoring : str or callable

    Returns
    -------
    callable
        ``scorer(estimator, X, y)``.
    """
    if not (isinstance(scoring, str) or callable(scoring)):
        raise TypeError(
            "scoring must be the name of one score, such as 'recall', or a callable "
            f"scorer(estimator, X, y), got {scoring!r}. Ask for several scores one by one; in a "
            "search, make an adversarial scorer of each."
        )
    return check_scoring(None, scoring=scoring)


def name_of(scoring):
    """Return how a score is called in messages and tables."""
    return scoring if isinstance(scoring, str) else getattr(scoring, "__name__", repr(scoring))


def chosen_samples(attack_classes, y_true, classes):
    """Return which samples may be attacked.

    Parameters
    ----------
    attack_classes : array-like or label, or None
    y_true : ndarray of shape (n_samples,)
    classes : ndarray or None
        Those that the estimator knows.

    Returns
    -------
    ndarray of bool of shape (n_samples,) or None
        None where all may be.
    """
    if attack_classes is None:
        return None
    if hasattr(attack_classes, "tolist"):  # of which numbers come out as those of Python
        attack_classes = attack_classes.tolist()
    is_one = isinstance(attack_classes, str) or not hasattr(attack_classes, "__iter__")
    wanted = [attack_classes] if is_one else list(attack_classes)
    if not wanted:
        raise ValueError("attack_classes is empty: nothing would be attacked. None means all.")
    labels = y_true.tolist()
    known = list(dict.fromkeys([*([] if classes is None else classes.tolist()), *labels]))
    strange = [label for label in wanted if label not in known]
    if strange:
        raise ValueError(
            f"attack_classes contains labels that neither the model nor y knows: {strange[:5]}. "
            f"Known are {known[:10]}."
        )
    chosen = np.array([label in wanted for label in labels], dtype=bool)
    if not chosen.any():
        warnings.warn(
            f"y has no sample of attack_classes={wanted}: nothing is attacked.",
            UserWarning,
            stacklevel=3,
        )
    return chosen


def stops_early(attack):
    """Return whether an attack leaves a sample alone once it is misclassified, whatever `keep`.

    Parameters
    ----------
    attack : BaseAttack
        One that says all about itself; see `BaseAttack._resolved`.
    """
    return attack.minimal or attack.whole_runs or isinstance(attack, BaseBlackBoxAttack)


class Judge:
    """Computes a score of an estimator on samples to which it has given its labels already.

    Parameters
    ----------
    scoring : str or callable
    estimator : fitted estimator, torch.nn.Module or Victim
        Who answers.
    victim : Victim
        What is attacked where that is attacked.
    X : object
        What the user passed; a scorer gets samples in a frame if that is one.

    Attributes
    ----------
    name : str
        Of the score, for messages and tables.
    keep : {"first", "worst"}
        How far an attack has to go; known after the first look.
    """

    def __init__(self, scoring, estimator, victim, X):
        self.scorer, self.name = check_scorer(scoring), name_of(scoring)
        self.estimator, self.victim = estimator, victim
        self._X = X
        self.keep = "first"

    def look(self, values, labels, y_true, sample_weight=None):
        """Return the score without an attack, and learn what it asks for; as in a call."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they come again under the attack
            return self(values, labels, y_true, sample_weight)

    def __call__(self, values, labels, y_true, sample_weight=None, rows=None):
        """Return the score.

        Parameters
        ----------
        values : ndarray, TableRows or table of shape (n_samples, ...)
        labels, y_true : ndarray of shape (n_samples,)
            What the estimator predicts, and what is right.
        sample_weight : array-like of shape (n_samples,), optional
        rows : ndarray of bool of shape (n_samples,), optional
            Samples that count; None means all.

        Returns
        -------
        float
        """
        samples = self._as_given(values)
        labels = _with_answers(labels, y_true, self.victim.classes)
        known = {} if sample_weight is None else {"sample_weight": np.asarray(sample_weight)}
        if rows is not None:
            samples = samples[rows] if hasattr(samples, "iloc") else samples[np.flatnonzero(rows)]
            labels, y_true = labels[rows], y_true[rows]
            known = {name: weight[rows] for name, weight in known.items()}
        answers = _Answers(self.estimator, self.victim, samples, labels)
        try:
            score = self.scorer(answers, samples, y_true, **known)
        except AttributeError as error:  # which speaks of a stranger
            own = type(self.estimator).__name__
            raise AttributeError(str(error).replace(_Answers.__name__, own)) from error
        if answers.asked_ - {"predict"}:
            self.keep = "worst"
        if not isinstance(score, Number):
            raise TypeError(f"scoring must return one number, and {self.name} returned {score!r}.")
        return float(score)

    def _as_given(self, values):
        """Return samples as the user's estimator takes them."""
        if isinstance(values, TableRows):
            return values.table
        is_array = isinstance(values, np.ndarray)
        return like(values, self._X) if is_array and hasattr(self._X, "columns") else values

    def warn_about(self, attack):
        """Warn of an attack that does less to this score than is possible."""
        if self.keep == "worst" and stops_early(attack):
            warnings.warn(
                f"{type(attack).__name__} stops where the prediction changes, and {self.name} "
                "depends on how far beyond that the scores are: it can fall further than this. PGD "
                "goes on, and so does TransferAttack on a model without gradients.",
                UserWarning,
                stacklevel=4,
            )


def _with_answers(labels, y_true, classes):
    """Give what has no answer a class that is not its own: scorers know no other labels."""
    lost = ~np.isin(labels, classes)
    if not lost.any():
        return labels
    other = np.where(y_true == classes[0], classes[-1], classes[0])
    return np.where(lost, other, labels).astype(classes.dtype)


def _has(name):
    return available_if(lambda answers: hasattr(answers._model, name))


class _Answers(ClassifierMixin, BaseEstimator):
    """An estimator as a scorer sees it.

    What it has predicted is not asked again, and what the scorer asks for is noted.

    Parameters
    ----------
    estimator : fitted estimator, torch.nn.Module or Victim
    victim : Victim
    samples : ndarray or frame of shape (n_samples, ...)
    labels : ndarray of shape (n_samples,)
        Predicted for `samples`.
    """

    def __init__(self, estimator, victim, samples, labels):
        self.estimator = estimator
        self.victim = victim
        self.samples = samples
        self.labels = labels
        self.classes_ = victim.classes
        self.asked_ = set()
        is_bare = isinstance(estimator, (nn.Module, Victim)) or not hasattr(estimator, "predict")
        self._model = _Bare(victim) if is_bare else estimator

    def __getattr__(self, name):
        """Return what a scorer of the user's own may want to know of the estimator."""
        if name.startswith("__") or "estimator" not in vars(self):
            raise AttributeError(name)
        return getattr(self.estimator, name)

    def predict(self, X):
        """Return labels."""
        self.asked_.add("predict")
        return self.labels if X is self.samples else self._answer("predict", X)

    @_has("predict_proba")
    def predict_proba(self, X):
        """Return probabilities."""
        return self._answer("predict_proba", X)

    @_has("predict_log_proba")
    def predict_log_proba(self, X):
        """Return logarithms of probabilities."""
        return self._answer("predict_log_proba", X)

    @_has("decision_function")
    def decision_function(self, X):
        """Return scores."""
        return self._answer("decision_function", X)

    def _answer(self, method, X):
        self.asked_.add(method)
        model, ask = self._model, getattr(self._model, method)
        if hasattr(X, "columns") and not hasattr(model, "feature_names_in_"):
            X = np.asarray(X)
        if is_net(model):  # whose layers refuse what is of another precision
            X = np.asarray(X, dtype=precision_of(model))
            ask = own_predict_of(model) if method == "predict" else ask
        found = []

        def answer(rows):
            found.append(np.asarray(ask(X.iloc[rows] if hasattr(X, "iloc") else X[rows])))

        # as little at a time as for the labels
        parts = chunks(X) if isinstance(X, np.ndarray) else [slice(0, max(len(X), 1))]
        Batches(parts[0].stop).run(answer, len(X))
        return np.concatenate(found)


class _Bare:
    """A network without methods of scikit-learn, with those that scorers ask for."""

    def __init__(self, victim):
        self._victim = victim

    def predict(self, X):
        return self._victim.classes[self.predict_proba(X).argmax(axis=1)]

    def predict_proba(self, X):
        return torch.softmax(self._victim.logits(X).double(), dim=1).numpy()
