"""From anything that can be attacked to a victim.

:func:`as_victim` answers once, for every attack: it turns a torch module, a
skorch net, one of our estimators or a fitted scikit-learn object into a
:class:`Victim`, a map from raw data to logits. For attacks that follow
gradients, scikit-learn objects are rebuilt in torch, in float64, by
converters; third parties add their own with :func:`register_converter`. For
black-box attacks they are asked for scores or labels as they are.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.ensemble import VotingClassifier
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection._search import BaseSearchCV
from sklearn.pipeline import Pipeline
from torch import nn

from .._validation import check_classifies
from ._checks import check_has_weights, check_one_label, check_victim_fitted, no_gradient
from ._columns import columns_read, reading
from ._convert_meta import has_own_probabilities, log_probabilities
from ._outputs import two_logits
from ._own_predict import own_predict_of
from .converters import convert, convert_steps, real_steps
from .engine import get_members
from .ensemble import join_victims
from .nets import is_net, net_victim
from .queried import has_threshold, queried_victim, read_threshold
from .victim import Victim


def as_victim(
    model: Any,
    *,
    attack: str | None = None,
    access: str = "gradients",
    classes: ArrayLike | None = None,
    columns: Any = None,
) -> Victim:
    """Return the :class:`Victim` that `model` is.

    Parameters
    ----------
    model : object
        A torch module, a skorch net, a robustsk estimator, a fitted
        scikit-learn classifier with a converter, a pipeline or a search over
        such, or a `FrozenEstimator` around any of them. A list or dict of such
        is attacked as an ensemble, the mean of their probabilities.
    attack : str, optional
        Name of the attack, for the error message.
    access : {"gradients", "straight-through", "scores", "labels"}, default="gradients"
        What the attack needs: a differentiable model; the same, but with
        transformers in a pipeline that have no gradient left to the attack;
        `decision_function` or `predict_proba`; or nothing but `predict`. Torch
        modules give all. For the last two a model need not be an estimator:
        `classes_` and these methods are enough.
    classes : array-like of shape (n_classes,), optional
        Labels in the order of the logits, for a torch module, which knows its
        classes only as 0, 1, 2, ..., or all labels that a model with `predict`
        and without `classes_` may answer. The victim takes the place of the
        model wherever one is attacked.
    columns : Columns, optional
        Those of the table that the model is asked about, of which the victim takes the rows as
        numbers; see :meth:`.FeatureSpace.encode`.

    Returns
    -------
    Victim

    Raises
    ------
    sklearn.exceptions.NotFittedError
        If `model` is not fitted.
    NoGradientError
        If no gradient can flow through `model`.
    TypeError
        If `model` says of itself that it is no classifier.

    Examples
    --------
    >>> import torch
    >>> from robustsk import PGD, as_victim
    >>> _ = torch.manual_seed(0)
    >>> animals = as_victim(torch.nn.Linear(4, 2), classes=["cat", "dog"])
    >>> attack = PGD(animals, eps=0.1, clip=(0, 1), random_state=0)
    >>> attack.generate(torch.rand(2, 4), ["dog", "cat"]).shape
    torch.Size([2, 4])
    """
    if classes is not None and isinstance(model, nn.Module):
        check_has_weights(model)
        return Victim(model, classes=classes)
    if classes is not None:
        return _told(model, classes, attack)
    check_classifies(model)
    if columns is None:
        victim = _victim(model, attack, access)
    else:
        with reading(columns):
            victim = _victim(model, attack, access)
    if not isinstance(model, (Victim, nn.Module, list, tuple, dict)):
        # what is asked for labels is asked for those of `predict`
        victim.own_predict = None if _is_asked_for_labels(victim) else own_predict_of(model)
    return victim


def _told(model, classes, attack):
    """Return the victim that a model is which answers and does not know its classes."""
    if not hasattr(model, "predict") or hasattr(model, "classes_"):
        raise TypeError(
            "classes are for torch modules, and for models that have `predict` and do not know "
            f"them; {type(model).__name__} knows its own, or none."
        )
    model = copy.copy(model)
    model.classes_ = np.asarray(classes)
    has_scores = hasattr(model, "decision_function") or hasattr(model, "predict_proba")
    return as_victim(model, attack=attack, access="scores" if has_scores else "labels")


def _victim(model, attack, access):
    if isinstance(model, Victim):
        if access not in ("scores", "labels") and not model.differentiable:
            raise no_gradient(attack, model.name)
        return model
    if columns_read() is not None and (isinstance(model, nn.Module) or is_net(model)):
        columns_read().check_numbers()
    if isinstance(model, nn.Module):
        check_has_weights(model)
        return Victim(model)
    if isinstance(model, (list, tuple, dict)):
        models = list(model.values() if isinstance(model, dict) else model)
        return join_victims(members_as_victims(models, attack, access))
    if isinstance(model, type):
        raise TypeError(f"Give a fitted instance of {model.__name__}, not the class.")
    if isinstance(model, FrozenEstimator):
        return as_victim(model.estimator, attack=attack, access=access)
    check_victim_fitted(model)
    check_one_label(model)
    if isinstance(model, BaseSearchCV):
        if not hasattr(model, "best_estimator_"):
            raise NotFittedError(
                f"This {type(model).__name__} has not kept its best estimator: set refit to True "
                "or to the name of a metric."
            )
        return as_victim(model.best_estimator_, attack=attack, access=access)
    asks = access in ("scores", "labels")
    if hasattr(model, "__robustsk_victim__") and not (asks and _predicts_otherwise(model)):
        return model.__robustsk_victim__()
    if is_net(model):
        return net_victim(model, attack, access)
    if asks:
        return queried_victim(model, attack, access)
    if has_threshold(model):
        return _threshold_victim(model, attack, access)
    if isinstance(model, Pipeline):
        return _pipeline_victim(model, attack, access)
    if isinstance(model, VotingClassifier) and model.voting == "soft" and model.weights is None:
        victims = [_voting_victim(member, attack, access) for member in model.estimators_]
        for victim in victims:  # they have been told the classes as numbers
            victim.classes, victim.own_predict = model.classes_, None
        return join_victims(victims)
    module = convert(model, attack)
    return Victim(
        module,
        classes=getattr(model, "classes_", None),
        dtype=torch.float64,
        name=type(model).__name__,
    )


def members_as_victims(models, attack, access):
    """Return the victims whose probabilities are to be averaged; see :func:`as_victim`."""
    if not models:
        raise ValueError("The list of models to attack is empty: at least one is needed.")
    # labels have no mean
    access = "scores" if access == "labels" and len(models) > 1 else access
    return [as_victim(model, attack=attack, access=access) for model in models]


def _voting_victim(member, attack, access):
    """Return a victim the softmax of whose logits is what a member predicts."""
    if not has_own_probabilities(member):
        return as_victim(member, attack=attack, access=access)
    return Victim(
        convert(member, attack, build=log_probabilities),
        classes=member.classes_,
        dtype=torch.float64,
        name=type(member).__name__,
    )


def _is_asked_for_labels(victim):
    return not victim.differentiable and getattr(victim.module, "gives_labels", False)


def _predicts_otherwise(model):
    """Return whether an estimator with a victim of its own has been given another `predict`."""
    home = getattr(getattr(type(model), "predict", None), "__module__", "")
    return hasattr(model, "classes_") and home.partition(".")[0] not in ("", "robustsk")


def _threshold_victim(model, attack, access):
    inner, threshold, sign, _ = read_threshold(model)
    victim = as_victim(inner, attack=attack, access=access)
    return Victim(
        _Shifted(victim.module, sign * threshold),
        classes=model.classes_,
        dtype=victim.dtype,
        bounds=victim.bounds,
        is_image=victim.is_image,
        name=type(model).__name__,
    )


class _Shifted(nn.Module):
    """Two logits, of which the second one has to be larger by a threshold."""

    def __init__(self, module, threshold):
        super().__init__()
        self.module = module
        self.threshold = threshold

    def forward(self, x):
        """Return the logits."""
        logits = two_logits(self.module(x), len(x))
        return logits - logits.new_tensor([0.0, self.threshold])


class _Chain(nn.Module):
    """Preprocessing in float64, then a victim in its own precision."""

    def __init__(self, steps, victim):
        super().__init__()
        self.steps = nn.Sequential(*steps)
        self.last = victim.module
        self.dtype = victim.dtype

    def get_members(self):
        """Return the members of the victim, each with the same preprocessing."""
        members = get_members(self.last)
        return [self] if members == [self.last] else [self._before(member) for member in members]

    def _before(self, member):
        chain = copy.copy(self)
        chain._modules = {**self._modules, "last": member}
        return chain

    def forward(self, x):
        return self.last(self.steps(x).to(self.dtype))


def _pipeline_victim(pipeline, attack, access):
    *steps, last = real_steps(pipeline)
    modules = convert_steps(steps, attack, access)
    with reading(None if steps else columns_read()):
        victim = as_victim(last, attack=attack, access=access)
    chain = _Chain(modules, victim).to(victim.device)
    joined = Victim(chain, classes=victim.classes, dtype=torch.float64, name="Pipeline")
    joined.followed = victim.followed
    return joined
