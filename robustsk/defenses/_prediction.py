"""What a fitted defence answers, clean and under attack."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils.validation import (
    check_array,
    validate_data,
)
from torch import nn

from .._containers import check_not_empty, is_dataset, to_array
from .._validation import (
    check_sample_shape,
)
from ..attacks import PGD, BaseAttack
from ..metrics import score_adversarial
from ..models import get_classifier
from ..victims import Victim
from ..victims.engine import get_members


class Prediction:
    """Predictions of a defence, and what attacks see of it."""

    def _outputs(self, X):
        """Return the logits of `X` in float64, shape (n_samples, n_classes)."""
        self.check_is_fitted()
        if not is_dataset(X):
            X = (
                validate_data(self, to_array(X), dtype="numeric", allow_nd=True, reset=False)
                if hasattr(self, "n_features_in_")
                else check_array(to_array(X), allow_nd=True)
            )
            check_sample_shape(X.shape[1:], getattr(self, "_sample_shape", X.shape[1:]), self)
        check_not_empty(X)
        return np.concatenate([b.double().numpy() for b in self.forward_iter(X, device="cpu")])

    def predict(self, X: Any) -> np.ndarray:
        """Return the predicted labels.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...) or torch Dataset

        Returns
        -------
        ndarray of shape (n_samples,)
        """
        predicted = self._outputs(X).argmax(axis=1)
        return self.classes_[predicted]

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
        z = self._outputs(X)
        p = np.exp(z - z.max(axis=1, keepdims=True))
        return p / p.sum(axis=1, keepdims=True)

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
    ) -> float:
        """Return the accuracy under attack.

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

        Returns
        -------
        float
            Share of samples that are classified correctly and stay so under
            the attack, in [0, 1].
        """
        attack = self.default_attack() if attack is None else attack
        return score_adversarial(self, X, y, attack, sample_weight=sample_weight)

    def default_attack(self) -> PGD:
        """Return the attack that :meth:`score_adversarial` uses by default."""
        adversary = self._adversary()
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
            raise AttributeError(f"This {type(self).__name__} has seen no labels yet.")
        # callbacks that score during training see encoded labels on either side
        return np.arange(len(self.classes_inferred_)) if self._in_fit else self.classes_inferred_

    def __robustsk_victim__(self):
        """Return what attacks work on: raw rows in, logits out."""
        self.check_is_fitted()
        return self._victim(self.module_, self.classes_)

    def _victim(self, module, classes):
        return Victim(
            RawInput(module, getattr(self, "input_shape_", None)),
            classes=classes,
            bounds=getattr(self, "clip_bounds_", None),
            is_image=self._is_image,
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
