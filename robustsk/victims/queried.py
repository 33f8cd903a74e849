"""Models without gradients, asked for scores or labels as they are."""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import issparse
from torch import nn

from ._checks import ASK_FOR_LABELS
from .victim import Victim

_SMALLEST_PROBABILITY = 1e-12


def queried_victim(model, attack, access):
    """Return the victim that a fitted classifier is to an attack that asks questions only."""
    if not hasattr(model, "classes_"):
        raise TypeError(
            f"{attack or 'This attack'} attacks classifiers, and {type(model).__name__} has no "
            "classes_."
        )
    module = (_Labels if access == "labels" else _Scores)(model, attack)
    return Victim(
        module,
        classes=model.classes_,
        dtype=torch.float64,
        name=type(model).__name__,
        differentiable=False,
    )


class _Asked(nn.Module):
    """A fitted classifier that answers questions, one row at a time or many."""

    def __init__(self, estimator, attack):
        super().__init__()
        self.estimator = estimator
        self.columns = getattr(estimator, "feature_names_in_", None)

    def rows(self, x):
        """Return a batch of tensors as the estimator wants it."""
        values = x.detach().cpu().numpy()
        if self.columns is not None and values.ndim == 2:
            import pandas as pd

            values = pd.DataFrame(values, columns=self.columns)
        return values


class _Scores(_Asked):
    """Scores whose softmax is the predicted probability, wherever there is one."""

    def __init__(self, estimator, attack):
        super().__init__(estimator, attack)
        n_classes = len(estimator.classes_)
        pairwise = getattr(estimator, "decision_function_shape", "ovr") == "ovo" and n_classes > 2
        self.method = next(
            (
                name
                for name in ("decision_function", "predict_proba")
                if hasattr(estimator, name) and not (pairwise and name == "decision_function")
            ),
            None,
        )
        if self.method is None:
            raise TypeError(
                f"{attack or 'This attack'} needs scores, and {type(estimator).__name__} has "
                "neither predict_proba nor a decision_function with one column per class: use an "
                f"attack that needs labels only ({ASK_FOR_LABELS})."
            )

    def forward(self, x):
        """Return the scores, shape (n, n_classes), or those of the second of two, shape (n,)."""
        ask = getattr(self.estimator, self.method)
        scores = np.asarray(ask(self.rows(x)), dtype=np.float64)
        if self.method == "predict_proba":
            scores = np.log(np.maximum(scores, _SMALLEST_PROBABILITY))
        return torch.from_numpy(scores).to(x.device)


class _Labels(_Asked):
    """The predicted label as scores of 1 and 0."""

    def __init__(self, estimator, attack):
        super().__init__(estimator, attack)
        self.classes = np.asarray(estimator.classes_)
        self.order = np.argsort(self.classes)

    def forward(self, x):
        """Return 1 for the predicted label and 0 for the others, shape (n, n_classes)."""
        predicted = np.asarray(self.estimator.predict(self.rows(x)))
        column = self.order[np.searchsorted(self.classes, predicted, sorter=self.order)]
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
