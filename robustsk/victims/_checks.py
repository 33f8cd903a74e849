"""What makes a model unfit to be attacked, and how to say so."""

from __future__ import annotations

from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted
from torch import nn

#: Attacks to be named in messages, by what they ask for. They live on a floor above this one; a
#: test compares the names with the attacks.
ASK_FOR_SCORES = "SquareAttack"
ASK_FOR_LABELS = "HopSkipJump"


class NoGradientError(TypeError):
    """Raised when a white-box attack meets a model without gradients."""


def check_victim_fitted(model):
    """Raise a helpful NotFittedError unless `model` is fitted."""
    if isinstance(model, nn.Module):
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
        raise NoGradientError(
            f"{type(model).__name__} is neither a torch module nor an estimator."
        ) from error


def no_gradient(attack, name):
    """Return the error that says that a model has no gradients, and what to do."""
    return NoGradientError(
        f"{attack or 'This attack'} follows gradients and {name} has none: use a black-box attack "
        f"({ASK_FOR_SCORES} asks for scores, {ASK_FOR_LABELS} for labels, and there are others), "
        "attack a surrogate (TransferAttack), see through a transformer (BPDA), or teach robustsk "
        "its gradients with robustsk.attacks.register_converter."
    )
