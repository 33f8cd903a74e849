"""What a fitted defence answers, clean and under attack."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import accuracy_score
from sklearn.utils.validation import check_array, validate_data
from skorch.utils import to_numpy
from torch import nn

from .._containers import check_not_empty, dataset_labels, is_dataset, to_array, to_dense
from .._validation import check_sample_shape
from ..attacks import PGD, BaseAttack
from ..metrics import score_adversarial
from ..models import get_classifier
from ..training._data import Samples
from ..victims import Victim
from ..victims._checks import no_answer
from ..victims.engine import get_members
from ..victims.nets import Read
from ._criteria import gives_probabilities


class Prediction:
    """Predictions of a defence, and what attacks see of it."""

    def _outputs(self, X):
        """Return the logits of `X` in float64, shape (n_samples, n_classes)."""
        return np.concatenate([batch.double().numpy() for batch in self._batches_out(X)])

    def _batches_out(self, X):
        """Return what the network makes of `X`, batch by batch."""
        self.check_is_fitted()
        X = self._wrapped(X)
        if not is_dataset(X):
            X = to_dense(to_array(X))
            X = (
                validate_data(self, X, dtype="numeric", allow_nd=True, reset=False)
                if hasattr(self, "n_features_in_")
                else check_array(X, allow_nd=True)
            )
            check_sample_shape(X.shape[1:], getattr(self, "_sample_shape", X.shape[1:]), self)
        check_not_empty(X)
        batches = list(self.forward_iter(X, device="cpu"))
        n_lost = sum(int(batch.isnan().any(dim=1).sum()) for batch in batches)
        if n_lost:
            raise no_answer(type(self).__name__, n_lost, sum(map(len, batches)))
        return batches

    @property
    def _has_own_nonlinearity(self):
        return not (isinstance(self.predict_nonlinearity, str))

    def _shifted(self, X):
        """Return logarithms of the probabilities of `X`, but for a constant for each sample."""
        z = self._outputs(X)
        if gives_probabilities(self.criterion_, z):
            with np.errstate(divide="ignore"):
                return np.log(z)
        return z - z.max(axis=1, keepdims=True)

    def predict(self, X: Any) -> np.ndarray:
        """Return the predicted labels.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...) or torch Dataset

        Returns
        -------
        ndarray of shape (n_samples,)
            Numbers of the columns of `predict_proba`, if neither `fit` nor `classes` has told
            the labels.
        """
        known = hasattr(self, "classes_inferred_") or self.classes is not None
        scores = self.predict_proba(X) if self._has_own_nonlinearity else self._outputs(X)
        predicted = scores.argmax(axis=1)
        return self.classes_[predicted] if known else predicted

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probability of each class.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...) or torch Dataset

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            In the order of `classes_`.
        """
        if self._has_own_nonlinearity:
            apply = self._get_predict_nonlinearity()
            return np.concatenate([to_numpy(apply(batch)) for batch in self._batches_out(X)])
        p = np.exp(self._shifted(X))
        return p / p.sum(axis=1, keepdims=True)

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Return the logarithm of the probability of each class.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...) or torch Dataset

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            In the order of `classes_`.
        """
        if self._has_own_nonlinearity:
            with np.errstate(divide="ignore"):
                return np.log(self.predict_proba(X))
        z = self._shifted(X)
        return z - np.log(np.exp(z).sum(axis=1, keepdims=True))

    def score(
        self, X: Any, y: ArrayLike | None = None, sample_weight: ArrayLike | None = None
    ) -> float:
        """Return the accuracy.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...) or torch Dataset
        y : array-like of shape (n_samples,)
            True labels. May be omitted where `X` is a Dataset that yields them.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the samples.

        Returns
        -------
        float
        """
        if y is None and is_dataset(X):
            y = dataset_labels(X)
        return accuracy_score(y, self.predict(X), sample_weight=sample_weight)

    def decision_function(self, X: Any) -> np.ndarray:
        """Return the logits.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...) or torch Dataset

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            With two classes, the difference of the two logits, shape
            (n_samples,); positive means ``classes_[1]``.
        """
        z = self._outputs(X)
        return z[:, 1] - z[:, 0] if z.shape[1] == 2 else z

    def score_adversarial(
        self,
        X: Any,
        y: ArrayLike | None = None,
        attack: BaseAttack | None = None,
        sample_weight: ArrayLike | None = None,
        *,
        scoring: str | Callable | None = None,
        attack_classes: ArrayLike | None = None,
    ) -> float:
        """Return the accuracy under attack, or another score.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...) or torch Dataset
        y : array-like of shape (n_samples,)
            True labels. May be omitted where `X` is a Dataset that yields them.
        attack : attack, default=None
            None means PGD with 20 steps and two runs, in the norm, radius
            and valid range of the adversary of this estimator.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the samples.
        scoring : str or callable, default=None
            What is computed under the attack, such as "recall" or
            "average_precision"; see :func:`robustsk.metrics.score_adversarial`.
            None means accuracy.
        attack_classes : array-like or label, default=None
            Only samples of these classes are attacked; None means all.

        Returns
        -------
        float
            Share of samples that are classified correctly and stay so under
            the attack, in [0, 1]; with `scoring` what that returns.
        """
        attack = self.default_attack() if attack is None else attack
        return score_adversarial(
            self,
            X,
            y,
            attack,
            sample_weight=sample_weight,
            scoring=scoring,
            attack_classes=attack_classes,
        )

    def default_attack(self) -> PGD:
        """Return the attack that :meth:`score_adversarial` uses by default."""
        adversary = self._adversary()._resolved()
        return PGD(
            norm=adversary.norm,
            eps=adversary.eps,
            clip=adversary.clip,
            mask=adversary.mask,
            n_steps=20,
            n_restarts=2,
            random_state=self.random_state,
        )

    @property
    def classes_(self):
        """Labels in the order of the columns of `predict_proba`."""
        if not hasattr(self, "classes_inferred_"):
            if self.classes is not None:
                return np.unique(np.asarray(self.classes))
            raise AttributeError(
                f"This {type(self).__name__} has seen no labels yet, so it cannot say which its "
                "outputs stand for: call fit, or give it classes=[...]."
            )
        # callbacks that score during training see encoded labels on either side
        return np.arange(len(self.classes_inferred_)) if self._in_fit else self.classes_inferred_

    def __robustsk_victim__(self):
        """Return what attacks work on: raw rows in, logits out."""
        self.check_is_fitted()
        if self.dataset is not Samples:
            raise ValueError(
                f"{type(self).__name__} sees the data through dataset={self.dataset!r}, which may "
                "change them, so that what predicts cannot be attacked: pass the Dataset itself as "
                "X, or let a transformer in a Pipeline or the module do what it does."
            )
        module = self.module_
        if callable(self.predict_nonlinearity):
            module = Read(module, self.predict_nonlinearity)
        return self._victim(module, self.classes_)

    def _victim(self, module, classes):
        return Victim(
            RawInput(module, getattr(self, "input_shape_", None)),
            classes=classes,
            bounds=getattr(self, "clip_bounds_", None),
            is_image=self._has_one_range,
            name=type(self).__name__,
        )


class RawInput(nn.Module):
    """The network seen from the user's side: rows in the shape they come in."""

    def __init__(self, module, input_shape):
        super().__init__()
        self.module = module
        self.input_shape = input_shape

    def get_classifier(self):
        """Return the last layer of the network."""
        return get_classifier(self.module)[1]

    def get_members(self):
        """Return the members of an ensemble, seen from the same side."""
        return [RawInput(member, self.input_shape) for member in get_members(self.module)]

    def forward(self, x):
        """Return the logits."""
        if self.input_shape is not None:
            x = x.reshape(len(x), *self.input_shape)
        return self.module(x)
