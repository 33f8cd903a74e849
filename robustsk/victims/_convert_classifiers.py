"""Classifiers, rebuilt in torch: their logits, and the scores that others make use of."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import torch
from scipy.sparse import issparse
from sklearn.base import is_classifier
from sklearn.calibration import CalibratedClassifierCV
from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis
from sklearn.ensemble import StackingClassifier, VotingClassifier
from sklearn.feature_selection import RFE
from sklearn.linear_model import SGDClassifier
from sklearn.linear_model._base import LinearClassifierMixin
from sklearn.multiclass import OneVsOneClassifier, OneVsRestClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import NearestCentroid
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline
from sklearn.svm import SVC, NuSVC
from torch import nn
from torch.nn.functional import logsigmoid

from ._convert_columns import as_numbers
from ._convert_pieces import interpolate
from ._convert_transformers import Affine, Select, double
from ._outputs import two_logits
from .converters import (
    Chain,
    LacksGradient,
    is_flat,
    of_table,
    opens_tables,
    real_steps,
    rebuild,
    table,
    to_module,
    to_step,
    unwrapped,
)

#: Probabilities are no smaller before their logarithm is taken.
_SMALLEST_PROBABILITY = 1e-12
#: The logarithm of the probability of what is impossible.
_IMPOSSIBLE = -700.0
#: How steeply the votes that have a gradient stand in for those that have none.
_STEEPNESS = 10.0
#: What decides a tie of votes.
_LEAD = 1e-6

for _cls in (CalibratedClassifierCV, OneVsOneClassifier, OneVsRestClassifier, RFE):
    opens_tables(_cls)


def log_of(probability):
    """Return the logarithm of probabilities, some of which may be zero."""
    return probability.clamp_min(_SMALLEST_PROBABILITY).log()


# --- classifiers by themselves --------------------------------------------------------


@to_module.register(LinearClassifierMixin)
def _linear(model):
    coef = model.coef_.toarray() if issparse(model.coef_) else np.atleast_2d(model.coef_)
    return Affine(coef.T, model.intercept_)


_ACTIVATIONS = {"identity": nn.Identity, "logistic": nn.Sigmoid, "tanh": nn.Tanh, "relu": nn.ReLU}


@to_module.register
def _(model: MLPClassifier):
    if not hasattr(model, "_label_binarizer") or model._label_binarizer.y_type_.startswith(
        "multilabel"
    ):
        raise LacksGradient("multilabel MLPClassifier")
    layers = []
    for weight, bias in zip(model.coefs_, model.intercepts_, strict=True):
        layers += [Affine(weight, bias), _ACTIVATIONS[model.activation]()]
    return nn.Sequential(*layers[:-1])


class _Distances(nn.Module):
    """Minus the distances from centres, plus a constant for each."""

    def __init__(self, centres, constants, scale=None, is_manhattan=False):
        super().__init__()
        self.is_manhattan = is_manhattan
        self.register_buffer("centres", double(centres))
        self.register_buffer("constants", double(constants))
        self.register_buffer("scale", double(np.ones(centres.shape[1]) if scale is None else scale))

    def forward(self, x):
        scores = []
        for centre in self.centres:
            away = (x - centre) / self.scale
            scores.append(-(away.abs() if self.is_manhattan else away.square()).sum(1))
        return torch.stack(scores, 1) + self.constants


@to_module.register
def _(model: NearestCentroid):
    priors, n_classes = model.class_prior_, len(model.classes_)
    if not np.isclose(priors, 1 / n_classes).all():
        return _discriminant(model)
    # without priors `predict` goes by the distances as they are
    is_manhattan = model.metric == "manhattan"
    return _Distances(model.centroids_, np.zeros(n_classes), is_manhattan=is_manhattan)


def _discriminant(model):
    if model.metric != "euclidean":  # the distances are squared, whichever they are
        raise LacksGradient(f"{type(model).__name__} of unlike priors and {model.metric} metric")
    spread = model.within_class_std_dev_
    scale = np.where(spread != 0, spread, 1.0)
    return _Distances(model.centroids_, 2.0 * np.log(model.class_prior_), scale)


class _Gaussians(nn.Module):
    """Logarithms of the densities of Gaussians, plus a constant for each."""

    def __init__(self, means, whiten, constants):
        super().__init__()
        self.register_buffer("means", double(means))
        self.register_buffer("constants", double(constants))
        for number, matrix in enumerate(whiten):
            self.register_buffer(f"whiten{number}", double(matrix))

    def forward(self, x):
        scores = []
        for number, mean in enumerate(self.means):
            whiten = getattr(self, f"whiten{number}")
            away = (x - mean) * whiten if whiten.ndim == 1 else (x - mean) @ whiten
            scores.append(-0.5 * away.square().sum(1))
        return torch.stack(scores, 1) + self.constants


@to_module.register
def _(model: GaussianNB):
    constants = np.log(model.class_prior_) - 0.5 * np.log(2 * np.pi * model.var_).sum(1)
    return _Gaussians(model.theta_, model.var_**-0.5, constants)


@to_module.register
def _(model: QuadraticDiscriminantAnalysis):
    pairs = list(zip(model.rotations_, model.scalings_, strict=True))
    constants = np.log(model.priors_) - 0.5 * np.array([np.log(s).sum() for _, s in pairs])
    return _Gaussians(model.means_, [r * s**-0.5 for r, s in pairs], constants)


# --- kernel machines ------------------------------------------------------------------


class _Duels(nn.Module):
    """One score per class, of one against one: whole votes, and less than a third of certainty.

    The votes are counted as they are, and have the gradient of smooth ones.

    Parameters
    ----------
    n_classes : int
        Pairs are (0, 1), (0, 2), ..., (1, 2), ...
    takes_first : bool
        Whether the first of several classes with the most votes wins, however sure they are.
    """

    def __init__(self, n_classes, takes_first):
        super().__init__()
        self.takes_first = takes_first
        pairs = np.array(list(combinations(range(n_classes), 2)))
        self.register_buffer("first", double(np.eye(n_classes)[pairs[:, 0]]))
        self.register_buffer("second", double(np.eye(n_classes)[pairs[:, 1]]))

    def forward(self, margin, certainty):
        """Return the scores; `margin` is positive where the first of a pair wins."""
        hard = (margin.detach() >= 0).to(margin.dtype)
        soft = torch.sigmoid(_STEEPNESS * margin)
        both = soft + (hard - soft).detach(), hard
        votes = [vote @ self.first + (1 - vote) @ self.second for vote in both]
        total = certainty @ (self.first - self.second)
        scores = votes[0] + total / (3 * (total.abs() + 1))
        if not self.takes_first:
            return scores
        count = votes[1].round()
        best = (count == count.amax(1, keepdim=True)).to(torch.uint8).argmax(1, keepdim=True)
        lead = (scores.amax(1, keepdim=True) - scores.gather(1, best)).detach()
        lead = torch.where(lead > 0, lead + _LEAD, 0.0)
        return scores.scatter_add(1, best, lead)


class _KernelMachine(nn.Module):
    """Sums of kernels at the support vectors, one for each pair of classes."""

    def __init__(self, model, takes_first):
        super().__init__()
        if model.kernel not in ("linear", "poly", "rbf", "sigmoid"):
            raise LacksGradient(f"{type(model).__name__} of its kernel")
        self.kernel, self.degree = model.kernel, model.degree
        self.gamma, self.coef0 = float(model._gamma), float(model.coef0)
        vectors, n_classes = double(model.support_vectors_), len(model.classes_)
        # distances are the same from anywhere, and exact close to zero
        centre = vectors.mean(0) if self.kernel == "rbf" else torch.zeros_like(vectors[0])
        self.register_buffer("centre", centre)
        self.register_buffer("vectors", vectors - centre)
        self.register_buffer("intercept", double(model.intercept_))
        self.register_buffer("weight", double(_pair_weights(model)))
        self.duels = _Duels(n_classes, takes_first) if n_classes > 2 else None

    def forward(self, x):
        x = x - self.centre
        product = x @ self.vectors.T
        if self.kernel == "rbf":
            squares = x.square().sum(1, keepdim=True) + self.vectors.square().sum(1)
            product = torch.exp(-self.gamma * (squares - 2 * product))
        elif self.kernel != "linear":
            product = self.gamma * product + self.coef0
            product = product.tanh() if self.kernel == "sigmoid" else product**self.degree
        margin = product @ self.weight.T + self.intercept
        return margin if self.duels is None else self.duels(margin, margin)


def _pair_weights(model):
    """Return the weight of each support vector in each pair of classes."""
    dual = double(model.dual_coef_).numpy()
    if len(model.classes_) == 2:
        return dual
    ends = np.cumsum(model.n_support_)
    own = [slice(end - count, end) for end, count in zip(ends, model.n_support_, strict=True)]
    pairs = list(combinations(range(len(own)), 2))
    weights = np.zeros((len(pairs), dual.shape[1]))
    for row, (i, j) in zip(weights, pairs, strict=True):
        row[own[i]] = dual[j - 1, own[i]]
        row[own[j]] = dual[i, own[j]]
    return weights


@to_module.register(NuSVC)
@to_module.register(SVC)
def _kernel_machine(model):
    return _KernelMachine(model, takes_first=not model.break_ties)


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


def _chained(estimator, last_of):
    """Return the steps of a pipeline, and what is made of the last one."""
    *steps, last = real_steps(estimator)
    modules, seen = [], table()
    for step in steps:
        with of_table(seen):
            modules.append(rebuild(step, is_step=True))
        seen = None
    with of_table(seen):
        return Chain(*modules, last_of(last))


def decision(estimator):
    """Return the module that computes `decision_function`, shape (n, 1) for two classes."""
    estimator = unwrapped(estimator)
    if isinstance(estimator, Pipeline):
        return _chained(estimator, decision)
    if isinstance(estimator, (SVC, NuSVC)) and len(estimator.classes_) > 2:
        if estimator.decision_function_shape == "ovo":
            raise LacksGradient(f"{type(estimator).__name__} of pairs inside another classifier")
        return _seen(lambda: _KernelMachine(estimator, takes_first=False))
    if isinstance(estimator, NearestCentroid):
        return _Head(_seen(lambda: _discriminant(estimator)), _difference)
    if isinstance(estimator, OneVsOneClassifier) and len(estimator.classes_) == 2:
        return _OneVsOne(estimator, is_relative=False)
    return _Head(rebuild(estimator), _difference)


def _seen(build):
    """Return a module of numbers behind what makes numbers of the table."""
    return build() if table() is None else Chain(as_numbers(table()), build())


def _difference(logits):
    return logits[:, 1:] - logits[:, :1] if logits.shape[1] == 2 else logits


def log_probabilities(estimator):
    """Return the module that computes the logarithm of `predict_proba`, shape (n, n_classes)."""
    estimator = unwrapped(estimator)
    if isinstance(estimator, Pipeline):
        return _chained(estimator, log_probabilities)
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
        parts.append(nn.Identity() if table() is None else as_numbers(table()))
    with of_table(None):
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
    with of_table(None):
        chain = Chain(Select(chosen), rebuild(model.estimator_))
    return chain if table() is None else Chain(as_numbers(table()), chain)


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
        self.duels = _Duels(len(model.classes_), takes_first=False)

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
