"""What makes a model unfit to be attacked, and how to say so."""

from __future__ import annotations

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted
from torch import nn
from torch.nn.parameter import is_lazy

#: Attacks to be named in messages, by what they ask for. They live on a floor above this one; a
#: test compares the names with the attacks.
ASK_FOR_SCORES = "SquareAttack"
ASK_FOR_LABELS = "HopSkipJump"


class NoGradientError(TypeError):
    """Raised when a white-box attack meets a model without gradients."""


def check_victim_fitted(model):
    """Raise a helpful NotFittedError unless `model` is fitted."""
    if isinstance(model, nn.Module) or _is_interface(model):
        return
    try:
        check_is_fitted(model)
    except NotFittedError as error:
        raise NotFittedError(
            f"The attacked {type(model).__name__} is not fitted. Fit it first. If it was fitted, "
            "it has been cloned since (by a Pipeline, GridSearchCV or cross-validation, which "
            "clone the steps they are given): wrap it, as in "
            "PGD(sklearn.frozen.FrozenEstimator(clf)), and it stays fitted."
        ) from error
    except TypeError as error:
        name = type(model).__name__
        if hasattr(model, "predict"):
            raise NoGradientError(
                f"{name} has `predict` and no classes_: give it classes_, all labels that it "
                "predicts, or attack as_victim(model, classes=[...]) in its place."
            ) from error
        raise NoGradientError(
            f"{name} is neither a torch module nor an estimator, nor has it `predict` and "
            "classes_, which black-box attacks need."
        ) from error


def check_has_weights(module):
    """Raise if layers of a network wait for data to learn their shapes from."""
    if any(map(is_lazy, (*module.parameters(), *module.buffers()))):
        raise ValueError(
            f"{type(module).__name__} has lazy layers that have not seen any data, and no weights "
            "that could be attacked: train it, or call it once on a batch."
        )


def _is_interface(model):
    """Return whether a model need not be an estimator: it answers and knows its classes."""
    return (
        not isinstance(model, BaseEstimator)
        and hasattr(model, "predict")
        and hasattr(model, "classes_")
    )


def several_labels(name):
    """Return the error that says that a model predicts several labels for a sample."""
    return ValueError(
        f"{name} is a multilabel or multi-output model: it predicts several labels for each "
        "sample, and an attack needs one. Attack the outputs one by one, e.g. its estimators_."
    )


def check_one_label(model):
    """Raise if a model predicts several labels for a sample."""
    classes = getattr(model, "classes_", None)
    if isinstance(classes, (list, tuple)):  # an array for each label
        is_several = any(np.ndim(some) for some in classes)
    else:
        is_several = np.ndim(classes) > 1
    kind = getattr(getattr(model, "_label_binarizer", None), "y_type_", "")
    if is_several or getattr(model, "multilabel_", False) is True or kind.startswith("multilabel"):
        raise several_labels(type(model).__name__)


def no_answer(name, n_lost, n_samples):
    """Return the error that says that a model returns what is not a number."""
    return FloatingPointError(
        f"{name} returns logits that are not finite for {n_lost} of {n_samples} samples, so that "
        "no class follows from them. Has its training diverged, or does it divide by zero?"
    )


def no_gradient(attack, name):
    """Return the error that says that a model has no gradients, and what to do."""
    return NoGradientError(
        f"{attack or 'This attack'} follows gradients and {name} has none: use a black-box attack "
        f"({ASK_FOR_SCORES} asks for scores, {ASK_FOR_LABELS} for labels, and there are others), "
        "attack a surrogate (TransferAttack), see through a transformer (BPDA), or teach robustsk "
        "its gradients with robustsk.attacks.register_converter."
    )
