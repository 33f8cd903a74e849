"""Models without gradients, asked for scores or labels as they are."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.sparse import issparse
from sklearn.model_selection import FixedThresholdClassifier, TunedThresholdClassifierCV
from sklearn.utils.multiclass import _ovr_decision_function
from torch import nn

from ._checks import ASK_FOR_LABELS, several_labels
from ._columns import columns_read
from .victim import Victim

_SMALLEST_PROBABILITY = 1e-12
#: What decides a tie of votes, and of a score with a threshold.
_LEAD, _LEAST_LEAD = 1e-6, 1e-9


def queried_victim(model, attack, access):
    """Return the victim that a fitted classifier is to an attack that asks questions only."""
    if not hasattr(model, "classes_"):
        raise TypeError(
            f"{attack or 'This attack'} attacks classifiers, and {type(model).__name__} has no "
            "classes_."
        )
    kind = _Labels if access == "labels" else _Thresholded if has_threshold(model) else _Scores
    victim = Victim(
        kind(model, attack),
        classes=model.classes_,
        dtype=torch.float64,
        name=type(model).__name__,
        differentiable=False,
    )
    victim.followed = "What is attacked are its scores, which `predict` does not go by."
    return victim


class _Asked(nn.Module):
    """A fitted classifier that answers questions, one row at a time or many."""

    #: Whether it answers what `predict` says.
    gives_labels = False
    #: Precision in which it is asked, None for that of the victim.
    dtype = None

    def __init__(self, estimator, attack):
        super().__init__()
        self.estimator = estimator
        self.columns = getattr(estimator, "feature_names_in_", None)
        self.table = columns_read()

    def rows(self, x):
        """Return a batch of tensors as the estimator wants it."""
        values = x.detach().cpu().numpy()
        if self.table is not None and self.table.has_names:
            return self.table.frame(values)
        if self.table is not None:
            values = self.table.frame(values)
        if self.dtype is not None and self.table is None:
            values = values.astype(self.dtype, copy=False)
        if self.columns is not None and values.ndim == 2:
            import pandas as pd

            values = pd.DataFrame(values, columns=self.columns)
        return values


class _Scores(_Asked):
    """Scores whose softmax is the predicted probability, wherever there is one."""

    def __init__(self, estimator, attack):
        super().__init__(estimator, attack)
        # one against one, in the order of the pairs
        shape = getattr(estimator, "decision_function_shape", None)
        self.is_vote = shape is not None and len(estimator.classes_) > 2
        self.is_pairwise = self.is_vote and shape == "ovo"
        self.breaks_ties = getattr(estimator, "break_ties", False)
        self.method = next(
            (name for name in ("decision_function", "predict_proba") if hasattr(estimator, name)),
            None,
        )
        if self.method is None:
            raise TypeError(
                f"{attack or 'This attack'} needs scores, and {type(estimator).__name__} has "
                "neither predict_proba nor a decision_function: use an attack that needs labels "
                f"only ({ASK_FOR_LABELS})."
            )

    def forward(self, x):
        """Return the scores, shape (n, n_classes), or those of the second of two, shape (n,)."""
        ask = getattr(self.estimator, self.method)
        scores = np.asarray(ask(self.rows(x)), dtype=np.float64)
        if self.method == "predict_proba":
            scores = np.log(np.maximum(scores, _SMALLEST_PROBABILITY))
        elif self.is_pairwise:
            scores = _ovr_decision_function(scores < 0, -scores, len(self.estimator.classes_))
        if self.is_vote and not self.breaks_ties:
            scores = _first_of_ties(scores)
        return torch.from_numpy(scores).to(x.device)


def _first_of_ties(scores):
    """Give the most votes to the class that `predict` of a kernel machine names.

    Scores are whole votes, and less than a third for how sure they are, by which `predict` does
    not go: of several classes with the most votes it takes the first.
    """
    votes = np.round(scores)
    first = (votes == votes.max(axis=1, keepdims=True)).argmax(axis=1)[:, None]
    highest = scores.max(axis=1, keepdims=True)
    raised = np.take_along_axis(scores, first, axis=1)
    raised = np.where(raised < highest, highest + _LEAD, raised)
    np.put_along_axis(scores, first, raised, axis=1)
    return scores


class _Thresholded(_Asked):
    """Scores of a classifier with a threshold of its own, relative to that."""

    def __init__(self, estimator, attack):
        super().__init__(estimator, attack)
        self.inner, self.threshold, self.sign, self.method = read_threshold(estimator)

    def forward(self, x):
        """Return the logits of the two classes, shape (n, 2)."""
        scores = np.asarray(getattr(self.inner, self.method)(self.rows(x)), dtype=np.float64)
        if self.method == "predict_proba":
            scores = np.log(np.maximum(scores, _SMALLEST_PROBABILITY))
            scores = scores[:, 1] - scores[:, 0]
        return torch.from_numpy(scores - self.sign * self.threshold).to(x.device)


def has_threshold(model):
    """Return whether a classifier compares the score of another one with a threshold."""
    return isinstance(model, (FixedThresholdClassifier, TunedThresholdClassifierCV))


def read_threshold(model):
    """Return how a fitted classifier with a threshold of its own predicts.

    Returns
    -------
    estimator : fitted classifier
        Whose scores are compared.
    threshold : float
        Of the logit of the positive class.
    sign : {1, -1}
        Negative where that is the first class.
    method : {"predict_proba", "decision_function"}
    """
    estimator = getattr(model, "estimator_", model.estimator)
    if isinstance(model, TunedThresholdClassifierCV):
        threshold, positive = model.best_threshold_, model._curve_scorer._get_pos_label()
    else:
        threshold, positive = model.threshold, model.pos_label
    wanted = model._get_response_method()
    wanted = [wanted] if isinstance(wanted, str) else wanted
    method = next(name for name in wanted if hasattr(estimator, name))
    if method == "predict_proba":
        p = 0.5 if isinstance(threshold, str) else threshold
        p = min(max(p, _SMALLEST_PROBABILITY), 1 - _SMALLEST_PROBABILITY)
        threshold = math.log(p / (1 - p))
    elif isinstance(threshold, str):
        threshold = 0.0
    sign = -1 if positive is not None and positive == model.classes_[0] else 1
    # a score that equals the threshold is one of the positive class
    return estimator, float(threshold) - _LEAST_LEAD, sign, method


class _Labels(_Asked):
    """The predicted label as scores of 1 and 0."""

    gives_labels = True

    def __init__(self, estimator, attack):
        super().__init__(estimator, attack)
        self.classes = np.asarray(estimator.classes_)
        self.order = np.argsort(self.classes)

    def forward(self, x):
        """Return 1 for the predicted label and 0 for the others, shape (n, n_classes)."""
        predicted = np.asarray(self.estimator.predict(self.rows(x)))
        if predicted.ndim == 2 and predicted.shape[1] > 1:
            raise several_labels(type(self.estimator).__name__)
        predicted = predicted.reshape(len(x))
        place = np.searchsorted(self.classes, predicted, sorter=self.order)
        column = self.order[np.minimum(place, len(self.order) - 1)]
        strange = np.unique(predicted[self.classes[column] != predicted])
        if len(strange):
            raise ValueError(
                f"{type(self.estimator).__name__} predicts {strange[:10].tolist()}, and its "
                f"classes are {self.classes[:10].tolist()}: they must be all that it may predict."
            )
        return torch.from_numpy(np.eye(len(self.classes))[column]).to(x.device)


class Transformed(_Asked):
    """A fitted transformer without gradients, run as it is.

    Parameters
    ----------
    estimator : fitted transformer
    """

    def __init__(self, estimator):
        super().__init__(estimator, None)

    def forward(self, x):
        """Return the transformed batch."""
        result = self.estimator.transform(self.rows(x))
        result = result.toarray() if issparse(result) else np.asarray(result)
        return torch.from_numpy(result.astype(np.float64)).to(x.device)
