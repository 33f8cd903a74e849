"""Classifiers of classifiers, rebuilt in torch, and the scores that they make use of."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.base import is_classifier
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import StackingClassifier, VotingClassifier
from sklearn.feature_selection import RFE
from sklearn.linear_model import SGDClassifier
from sklearn.multiclass import OneVsOneClassifier, OneVsRestClassifier
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import Pipeline
from sklearn.svm import SVC, NuSVC
from torch import nn
from torch.nn.functional import logsigmoid

from ._columns import columns_read, reading
from ._convert_classifiers import Duels, KernelMachine, discriminant
from ._convert_columns import as_numbers
from ._convert_pieces import interpolate
from ._convert_transformers import Select, double
from ._outputs import two_logits
from .converters import (
    Chain,
    LacksGradient,
    chained,
    is_flat,
    opens_tables,
    real_steps,
    rebuild,
    to_module,
    to_step,
    unwrapped,
)

#: Probabilities are no smaller before their logarithm is taken.
_SMALLEST_PROBABILITY = 1e-12
#: The logarithm of the probability of what is impossible.
_IMPOSSIBLE = -700.0

for _cls in (CalibratedClassifierCV, OneVsOneClassifier, OneVsRestClassifier, RFE):
    opens_tables(_cls)


def log_of(probability):
    """Return the logarithm of probabilities, some of which may be zero."""
    return probability.clamp_min(_SMALLEST_PROBABILITY).log()


# --- scores that others make use of ---------------------------------------------------


class _Head(nn.Module):
    """What is made of the logits of a classifier.

    Parameters
    ----------
    logits : torch.nn.Module
    function : callable
        Of logits of shape (n, n_classes).
    """

    def __init__(self, logits, function):
        super().__init__()
        self.logits, self.function = logits, function
        self.is_flat = is_flat(logits)

    def forward(self, x):
        return self.function(two_logits(self.logits(x), len(x)))


def decision(estimator):
    """Return the module that computes `decision_function`, shape (n, 1) for two classes."""
    estimator = unwrapped(estimator)
    if isinstance(estimator, Pipeline):
        return chained(estimator, decision)
    if isinstance(estimator, (SVC, NuSVC)) and len(estimator.classes_) > 2:
        if estimator.decision_function_shape == "ovo":
            raise LacksGradient(f"{type(estimator).__name__} of pairs inside another classifier")
        return _seen(lambda: KernelMachine(estimator, takes_first=False))
    if isinstance(estimator, NearestCentroid):
        return _Head(_seen(lambda: discriminant(estimator)), _difference)
    if isinstance(estimator, OneVsOneClassifier) and len(estimator.classes_) == 2:
        return _OneVsOne(estimator, is_relative=False)
    return _Head(rebuild(estimator), _difference)


def _seen(build):
    """Return a module of numbers behind what makes numbers of the table."""
    return build() if columns_read() is None else Chain(as_numbers(columns_read()), build())


def _difference(logits):
    return logits[:, 1:] - logits[:, :1] if logits.shape[1] == 2 else logits


def log_probabilities(estimator):
    """Return the module that computes the logarithm of `predict_proba`, shape (n, n_classes)."""
    estimator = unwrapped(estimator)
    if isinstance(estimator, Pipeline):
        return chained(estimator, log_probabilities)
    if isinstance(estimator, (SVC, NuSVC)):
        raise LacksGradient(f"predict_proba of {type(estimator).__name__}")
    if isinstance(estimator, OneVsRestClassifier):
        return _OneVsRestProbabilities([log_probabilities(e) for e in estimator.estimators_])
    if isinstance(estimator, NearestCentroid):
        return _Head(decision(estimator), _log_softmax)
    if isinstance(estimator, SGDClassifier):
        of_huber = estimator.loss == "modified_huber"
        return _Head(rebuild(estimator), _of_huber if of_huber else _of_each)
    return _Head(rebuild(estimator), _log_softmax)


def has_own_probabilities(estimator):
    """Return whether `predict_proba` is not the softmax of the logits."""
    estimator = unwrapped(estimator)
    if isinstance(estimator, Pipeline):
        return has_own_probabilities(real_steps(estimator)[-1])
    return isinstance(estimator, (NearestCentroid, NuSVC, OneVsRestClassifier, SGDClassifier, SVC))


def _log_softmax(logits):
    return logits.log_softmax(1)


def _of_each(logits):
    """Return the probability of each class against the rest, normalised."""
    return (logits if logits.shape[1] == 2 else logsigmoid(logits)).log_softmax(1)


def _of_huber(logits):
    share = _difference(logits)
    share = (share.clamp(-1, 1) + 1) / 2
    if share.shape[1] == 1:
        return log_of(torch.cat([1 - share, share], 1))
    return log_of(_normalised(share))


def _normalised(share):
    """Return shares that sum to one, all the same where all are zero."""
    total = share.sum(1, keepdim=True)
    is_none = total == 0
    return torch.where(is_none, 1 / share.shape[1], share / torch.where(is_none, 1.0, total))


# --- classifiers of classifiers -------------------------------------------------------


class _Together(nn.Module):
    """Modules that see the same."""

    def __init__(self, members):
        super().__init__()
        self.members = nn.ModuleList(members)
        self.is_flat = all(map(is_flat, members))

    def answers(self, x):
        return [member(x) for member in self.members]


class _LogMean(_Together):
    """The logarithm of the weighted mean of probabilities of which the logarithms are known."""

    def __init__(self, members, weights=None):
        weights = np.ones(len(members)) if weights is None else np.asarray(weights, dtype=float)
        kept = np.flatnonzero(weights)
        super().__init__([members[number] for number in kept])
        self.register_buffer("log_weights", double(np.log(weights[kept] / weights.sum())))

    def forward(self, x):
        return torch.logsumexp(torch.stack(self.answers(x), 2) + self.log_weights, 2)


@to_module.register
def _(model: VotingClassifier):
    if model.voting != "soft":
        raise LacksGradient(f"{type(model).__name__} of labels")
    return _LogMean([log_probabilities(e) for e in model.estimators_], model._weights_not_none)


@to_step.register(StackingClassifier)
@to_step.register(VotingClassifier)
def _in_the_middle(step):
    raise LacksGradient(f"transform of {type(step).__name__}")


@to_module.register
def _(model: StackingClassifier):
    parts = []
    for estimator, method in zip(model.estimators_, model.stack_method_, strict=True):
        if method == "decision_function":
            parts.append(decision(estimator))
        elif method == "predict_proba":
            proba = Chain(log_probabilities(estimator), _Exp())
            # the first of two says nothing new
            parts.append(Chain(proba, Select([1])) if len(model.classes_) == 2 else proba)
        else:
            raise LacksGradient(f"{method} of {type(unwrapped(estimator)).__name__}")
    if model.passthrough:
        parts.append(nn.Identity() if columns_read() is None else as_numbers(columns_read()))
    with reading(None):
        return Chain(_Beside(parts), rebuild(model.final_estimator_))


class _Exp(nn.Module):
    def forward(self, x):
        return x.exp()


class _Beside(_Together):
    def forward(self, x):
        return torch.cat(self.answers(x), 1)


@to_module.register
def _(model: RFE):
    chosen = model.get_support(indices=True)
    with reading(None):
        chain = Chain(Select(chosen), rebuild(model.estimator_))
    return chain if columns_read() is None else Chain(as_numbers(columns_read()), chain)


class _OneVsRest(_Together):
    """One score for each class, or one for the second of two."""

    def forward(self, x):
        return torch.cat(self.answers(x), 1)


class _OneVsRestProbabilities(_Together):
    """The logarithms of the normalised probabilities of each class against the rest."""

    def forward(self, x):
        answers = self.answers(x)
        if len(answers) == 1:
            return answers[0]
        return torch.cat([answer[:, 1:] for answer in answers], 1).log_softmax(1)


class _OneVsOne(_Together):
    """One classifier for each pair of classes, of which the second is asked for.

    Parameters
    ----------
    model : OneVsOneClassifier
    is_relative : bool, default=True
        Whether the single score of two classes is relative to the threshold of `predict`.
    """

    def __init__(self, model, is_relative=True):
        if model.pairwise_indices_ is not None:
            raise LacksGradient(f"{type(model).__name__} of kernels")
        super().__init__([_score_of_second(member) for member in model.estimators_])
        self.threshold = 0.0 if hasattr(model.estimators_[0], "decision_function") else 0.5
        self.shift = self.threshold if is_relative else 0.0
        self.duels = Duels(len(model.classes_), takes_first=False)

    def forward(self, x):
        scores = torch.cat(self.answers(x), 1)
        scores = self.duels(self.threshold - scores, -scores)
        return scores[:, 1:] - self.shift if scores.shape[1] == 2 else scores


def _score_of_second(member):
    """Return the module of what a member of one against one is asked for."""
    if not is_classifier(member):
        raise LacksGradient(type(member).__name__)
    if hasattr(member, "decision_function"):
        return decision(member)
    return Chain(log_probabilities(member), Select([1]), _Exp())


@to_module.register
def _(model: OneVsOneClassifier):
    return _OneVsOne(model)


@to_module.register
def _(model: OneVsRestClassifier):
    members = []
    for member in model.estimators_:
        if not is_classifier(member):  # regressors, and what has seen one class only
            raise LacksGradient(type(member).__name__)
        if hasattr(member, "decision_function"):
            members.append(decision(member))
        else:  # the odds say the same, and do not saturate
            members.append(_Head(log_probabilities(member), _difference))
    return _OneVsRest(members)


# --- calibration ----------------------------------------------------------------------


class _Sigmoids(nn.Module):
    """Logarithms of the probabilities of Platt."""

    def __init__(self, calibrators):
        super().__init__()
        self.register_buffer("slope", double([c.a_ for c in calibrators]))
        self.register_buffer("offset", double([c.b_ for c in calibrators]))

    def forward(self, scores):
        odds = -(self.slope * scores + self.offset)
        return logsigmoid(odds), logsigmoid(-odds)


class _Isotonic(nn.Module):
    """Logarithms of probabilities that go up in straight lines."""

    def __init__(self, calibrators):
        super().__init__()
        for number, one in enumerate(calibrators):
            self.register_buffer(f"knots{number}", double(one.X_thresholds_)[None])
            self.register_buffer(f"values{number}", double(one.y_thresholds_)[None])

    def forward(self, scores):
        share = torch.cat(
            [
                interpolate(scores[:, [k]], getattr(self, f"knots{k}"), getattr(self, f"values{k}"))
                for k in range(scores.shape[1])
            ],
            1,
        )
        return share, 1 - share


class _Calibrated(nn.Module):
    """Scores of a classifier, and what the calibrators make of them."""

    def __init__(self, calibrated, scores):
        super().__init__()
        self.scores = scores
        self.is_flat = is_flat(scores)
        self.n_classes, self.method = len(calibrated.classes), calibrated.method
        kind = _Sigmoids if self.method == "sigmoid" else _Isotonic
        self.calibrators = kind(calibrated.calibrators)
        # a part of the data may have held some of the classes only
        own = np.searchsorted(calibrated.classes, calibrated.estimator.classes_)
        own = own[: len(calibrated.calibrators)]
        self.register_buffer("own", torch.as_tensor(own.astype(np.int64)))

    def forward(self, x):
        scores = self.scores(x)
        yes, no = self.calibrators(scores[:, : len(self.own)])
        is_log = self.method == "sigmoid"
        if self.n_classes == 2:
            both = torch.cat([no, yes], 1)
            return both if is_log else log_of(both)
        empty = _IMPOSSIBLE if is_log else 0.0
        full = yes.new_full((len(x), self.n_classes), empty).index_copy(1, self.own, yes)
        return full.log_softmax(1) if is_log else log_of(_normalised(full))


class _Tempered(nn.Module):
    def __init__(self, calibrated, scores, is_log):
        super().__init__()
        self.scores, self.is_log = scores, is_log
        self.is_flat = is_flat(scores)
        self.beta = float(calibrated.calibrators[0].beta_)

    def forward(self, x):
        scores = self.scores(x)
        if self.is_log:  # the small number, and the way to the first of two, are scikit-learn's
            share = scores.exp()
            share = torch.cat([1 - share[:, 1:], share[:, 1:]], 1) if share.shape[1] == 2 else share
            scores = torch.log(share + _SMALLEST_PROBABILITY)
        elif scores.shape[1] == 1:
            scores = torch.cat([-scores, scores], 1)
        return (self.beta * scores).log_softmax(1)


@to_module.register
def _(model: CalibratedClassifierCV):
    return _LogMean([_calibrated(one) for one in model.calibrated_classifiers_])


def _calibrated(one):
    inner = unwrapped(one.estimator)
    is_log = not hasattr(inner, "decision_function")
    scores = log_probabilities(inner) if is_log else decision(inner)
    if one.method == "temperature":
        return _Tempered(one, scores, is_log)
    if is_log:
        wanted = [1] if len(inner.classes_) == 2 else list(range(len(inner.classes_)))
        scores = Chain(scores, _Exp(), Select(wanted))
    return _Calibrated(one, scores)
