"""What estimators predict themselves."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

import numpy as np
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection._search import BaseSearchCV

from ._checks import no_answer, several_labels
from ._columns import TableRows
from .nets import is_net, precision_of, predicts_like


def own_predict_of(model):
    """Return a function of an array and the names of its features that gives labels, or None.

    It raises FloatingPointError where a network returns NaN, which no class follows from.

    Parameters
    ----------
    model : object
        None is returned for what has no `predict`, such as a torch module.
    """
    if isinstance(model, FrozenEstimator):
        return own_predict_of(model.estimator)
    if isinstance(model, BaseSearchCV):
        return own_predict_of(model.best_estimator_)
    if is_net(model):
        return partial(_of_net, model)
    return partial(_of_estimator, model) if hasattr(model, "predict") else None


def _of_estimator(estimator, X, columns=None):
    if isinstance(X, TableRows):
        if X.space.columns_.has_names:
            return _one_label(np.asarray(estimator.predict(X.table)), estimator)
        X = X.table
        columns = getattr(estimator, "feature_names_in_", None)
    if columns is not None and X.ndim == 2 and hasattr(estimator, "feature_names_in_"):
        with suppress(ImportError):  # other frames come without pandas
            import pandas as pd

            X = pd.DataFrame(X, columns=list(columns))
    return _one_label(np.asarray(estimator.predict(X)), estimator)


def _of_net(net, X, columns=None):
    if isinstance(X, TableRows):
        X = np.asarray(X)
    dtype = precision_of(net)
    if dtype is not None:
        X = X.astype(dtype, copy=False)
    kind = predicts_like(net)
    if kind is None:
        return _one_label(np.asarray(net.predict(X)), net)
    scores = np.asarray(net.predict_proba(X))
    lost = np.isnan(scores.reshape(len(scores), -1)).any(axis=1)
    if lost.any():
        raise no_answer(type(net).__name__, lost.sum(), len(lost))
    if kind == "NeuralNetBinaryClassifier":
        return (scores[:, 1] > net.threshold).astype(np.int64)
    return scores.argmax(axis=1)


def _one_label(labels, estimator):
    if labels.ndim == 2 and labels.shape[1] == 1:
        return labels[:, 0]
    if labels.ndim != 1:
        raise several_labels(type(estimator).__name__)
    return labels
