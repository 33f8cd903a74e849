"""What can be attacked.

:func:`as_victim` answers once, for every attack: it turns a torch module, a
skorch net, one of our estimators or a fitted scikit-learn object into a
:class:`Victim`, a map from raw data to logits. For attacks that follow
gradients, scikit-learn objects are rebuilt in torch, in float64, by
converters; third parties add their own with :func:`register_converter`. For
black-box attacks they are asked for scores or labels as they are.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial, reduce, singledispatch
from typing import Any

import numpy as np
import torch
from scipy.sparse import issparse
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import VotingClassifier
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, RidgeClassifier, SGDClassifier
from sklearn.model_selection._search import BaseSearchCV
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MaxAbsScaler,
    MinMaxScaler,
    Normalizer,
    RobustScaler,
    StandardScaler,
)
from sklearn.svm import LinearSVC
from sklearn.utils.validation import check_is_fitted
from torch import nn

from ..losses import ensemble_logits
from ._engine import View, first_output
from .threat import clamp_through

_BATCH_NORM = (nn.modules.batchnorm._BatchNorm,)


#: What an attack may see of its victim, from most to least.
ACCESS = ("gradients", "scores", "labels")
#: Gradients as well, save for transformers that have none and are only run.
STRAIGHT_THROUGH = "straight-through"
_SMALLEST_PROBABILITY = 1e-12


class NoGradientError(TypeError):
    """Raised when a white-box attack meets a model without gradients."""


@dataclass
class Calls:
    """How many samples a victim has been asked about.

    Attributes
    ----------
    forward, backward : int
        Samples that went through the model, and gradients taken at samples.
    """

    forward: int = 0
    backward: int = 0


class Victim:
    """A model seen by an attack: a differentiable map from data to logits.

    Parameters
    ----------
    module : torch.nn.Module
        Maps a batch of raw data to logits of shape (n, n_classes). A single
        logit, shape (n,) or (n, 1), is read as that of the second of two
        classes; of several outputs the first one counts.
    classes : array-like of shape (n_classes,), optional
        Labels in the order of the logits. None means 0, 1, 2, ...
    dtype : torch.dtype, optional
        What the data are cast to. None means that of the first parameter.
    bounds : tuple of (ndarray, ndarray), optional
        Smallest and largest valid value, known from the training data.
    is_image : bool, default=False
        Whether a flat row is an image in disguise.
    name : str, optional
        What error messages call the model.
    differentiable : bool, default=True
        Whether gradients flow through `module`.

    Attributes
    ----------
    calls : Calls
        What the attacks have cost so far; shared by the copies of a victim.
    """

    def __init__(
        self,
        module,
        *,
        classes=None,
        dtype=None,
        bounds=None,
        is_image=False,
        name=None,
        differentiable=True,
    ):
        self.module = module
        self.classes = None if classes is None else np.asarray(classes)
        self.dtype = _dtype_of(module) if dtype is None else dtype
        self.bounds = bounds
        self.is_image = is_image
        self.name = name or type(module).__name__
        self.differentiable = differentiable
        self.calls = Calls()
        self._frozen = False
        self._view = None
        self._inspected = False

    @property
    def device(self):
        """Where the model lives."""
        tensor = next(_tensors(self.module), None)
        return torch.device("cpu") if tensor is None else tensor.device

    def __call__(self, x, part=None):
        """Return the logits of the batch `x`, shape (n, n_classes); of a part of the model."""
        self.calls.forward += len(x)
        if self._view is not None:
            output = self._view(x, part)
        else:
            output = (self.module if part is None else part)(x)
        logits = two_logits(output)
        if logits.ndim != 2 or len(logits) != len(x):
            raise ValueError(
                f"{self.name} must return logits of shape (n_samples, n_classes) and returned "
                f"{tuple(logits.shape)} for {len(x)} samples."
            )
        return logits

    def members(self):
        """Return the models whose probabilities this one averages, itself where it is one model.

        Returns
        -------
        list of callable
            Each maps data to logits of shape (n, n_classes), in the order of `classes`.
        """
        parts = get_members(self.module)
        if len(parts) == 1:
            return [self]
        return [partial(self, part=part) for part in parts]

    def learn_classes(self, X):
        """Return `classes`, counting the logits of one sample where they are unknown."""
        if self.classes is None and len(X):
            self.classes = np.arange(self.logits(X[:1]).shape[1])
        return self.classes

    def logits(self, X):
        """Return the logits of an array in full precision, as a tensor on the CPU."""
        with self.frozen(), self.precise(), torch.no_grad():
            x = torch.from_numpy(np.array(X)).to(self.device, self.dtype)
            return self(x).cpu()

    def warn_about_probabilities(self, X):
        """Warn where the module returns probabilities instead of logits.

        A softmax before the loss that is attacked saturates: its gradients
        vanish on confident predictions, and the model looks robust.
        """
        if self._inspected or not self.differentiable or len(X) < 2:
            return
        self._inspected = True
        logits = self.logits(X[:8])
        if is_probability(logits):
            warnings.warn(
                f"{self.name} returns probabilities (each row sums to 1) where logits are needed: "
                "gradients through the softmax vanish and the attack is weakened. Remove the "
                "softmax from the module, or return its logarithm.",
                UserWarning,
                stacklevel=5,
            )

    def to(self, device):
        """Return this victim on `device`; the user's model is never moved."""
        if device is None or torch.device(device) == self.device:
            return self
        other = copy.copy(self)
        other.module = copy.deepcopy(self.module).to(device)
        other._view = None
        return other

    def precise(self):
        """Answer in the precision of the parameters for a while; a context."""
        return self._view.set_aside(rough_only=True) if self.is_rough else nullcontext()

    def untouched(self):
        """Ask the module itself for a while, not a view of it; a context."""
        return nullcontext() if self._view is None else self._view.set_aside()

    @property
    def is_rough(self):
        """Whether answers are in a lower precision than that of the parameters at present."""
        return self._view is not None and self._view.is_rough

    @contextmanager
    def frozen(self, bn_mode="eval", engine=None):
        """Attack mode: evaluation behaviour, no parameter gradients, all restored.

        Parameters
        ----------
        bn_mode : {"eval", "train"}, default="eval"
            With "train", batch normalisation uses the statistics of the batch
            while its running averages stay as they are.
        engine : Engine, optional
            How the network is run; None means as it is.
        """
        if self._frozen:
            yield self
            return
        modules = list(self.module.modules())
        modes = [m.training for m in modules]
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        statistics = []
        self._frozen = True
        try:
            for p in parameters:
                p.requires_grad_(False)
            for m in modules:
                m.training = False
                if bn_mode == "train" and isinstance(m, _BATCH_NORM):
                    m.training = True
                    statistics.append((m, {k: b.clone() for k, b in m.named_buffers()}))
            if engine is not None:
                if self._view is None or self._view.engine != engine:
                    self._view = View(self.module, engine)
                self._view.open()
            yield self
        finally:
            if self._view is not None:
                self._view.close()
            self._frozen = False
            for p in parameters:
                p.requires_grad_(True)
            for m, mode in zip(modules, modes, strict=True):
                m.training = mode
            for m, buffers in statistics:
                for key, value in buffers.items():
                    getattr(m, key).copy_(value)


def get_members(module):
    """Return the networks whose probabilities a module averages.

    Parameters
    ----------
    module : torch.nn.Module
        One that averages others says so by a method `get_members`.

    Returns
    -------
    list of torch.nn.Module
        Each takes the input of `module` and returns logits; `module` itself
        where it averages nothing.
    """
    own = getattr(module, "get_members", None)
    return [module] if own is None else list(own())


def two_logits(output):
    """Bring the output of a classifier into the shape (n, n_classes)."""
    output = first_output(output)
    if output.ndim == 1:
        output = output[:, None]
    if output.ndim == 2 and output.shape[1] == 1:
        output = torch.cat([torch.zeros_like(output), output], dim=1)
    return output


def is_probability(output):
    """Return whether rows of two or more are probability distributions."""
    return bool(
        output.shape[1] > 1
        and (output >= 0).all()
        and torch.allclose(output.sum(1), torch.ones(()).to(output), atol=1e-5)
    )


def _tensors(module):
    yield from module.parameters()
    yield from module.buffers()


def _dtype_of(module):
    return next((t.dtype for t in _tensors(module) if t.is_floating_point()), torch.float32)


# --- from anything to a victim -------------------------------------------------------


def as_victim(model: Any, *, attack: str | None = None, access: str = "gradients") -> Victim:
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
        modules give all.

    Returns
    -------
    Victim

    Raises
    ------
    sklearn.exceptions.NotFittedError
        If `model` is not fitted.
    NoGradientError
        If no gradient can flow through `model`.
    """
    if isinstance(model, Victim):
        if access not in ("scores", "labels") and not model.differentiable:
            raise _no_gradient(attack, model.name)
        return model
    if isinstance(model, nn.Module):
        return Victim(model)
    if isinstance(model, (list, tuple, dict)):
        models = list(model.values() if isinstance(model, dict) else model)
        return join_victims(members_as_victims(models, attack, access))
    if isinstance(model, type):
        raise TypeError(f"Give a fitted instance of {model.__name__}, not the class.")
    if isinstance(model, FrozenEstimator):
        return as_victim(model.estimator, attack=attack, access=access)
    check_victim_fitted(model)
    if isinstance(model, BaseSearchCV):
        if not hasattr(model, "best_estimator_"):
            raise NotFittedError(
                f"This {type(model).__name__} has not kept its best estimator: set refit to True "
                "or to the name of a metric."
            )
        return as_victim(model.best_estimator_, attack=attack, access=access)
    if hasattr(model, "__robustsk_victim__"):
        return model.__robustsk_victim__()
    if hasattr(model, "module_") and hasattr(model, "criterion_"):
        return _skorch_victim(model)
    if access in ("scores", "labels"):
        return _queried_victim(model, attack, access)
    if isinstance(model, Pipeline):
        return _pipeline_victim(model, attack, access)
    if isinstance(model, VotingClassifier) and model.voting == "soft" and model.weights is None:
        victims = members_as_victims(model.estimators_, attack, access)
        for victim in victims:  # they have been told the classes as numbers
            victim.classes = model.classes_
        return join_victims(victims)
    module = _convert(model, attack)
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


def join_victims(victims):
    """Return the ensemble that averages the probabilities of several victims.

    Parameters
    ----------
    victims : list of Victim
        All know the same classes, in any order.

    Returns
    -------
    Victim
        With the classes of the first that names its own, in their order; the
        victim itself where there is one.
    """
    if len(victims) == 1:
        return victims[0]
    classes = next((v.classes for v in victims if v.classes is not None), None)
    orders = []
    for victim in victims:
        own = victim.classes
        if classes is None:
            orders.append(None)
            continue
        if own is None:
            own = np.arange(len(classes))
        if len(own) != len(classes) or not np.isin(classes, own).all():
            raise ValueError(
                f"The members of an ensemble must know the same classes: one knows "
                f"{classes[:10].tolist()}, {victim.name} knows {own[:10].tolist()}."
            )
        orders.append([own.tolist().index(label) for label in classes.tolist()])
    return Victim(
        _MeanProbability(victims, orders),
        classes=classes,
        dtype=reduce(torch.promote_types, [victim.dtype for victim in victims]),
        bounds=join_bounds([v.bounds for v in victims]),
        is_image=any(victim.is_image for victim in victims),
        name="mean of " + ", ".join(victim.name for victim in victims),
        differentiable=all(victim.differentiable for victim in victims),
    )


def join_bounds(bounds):
    """Return the range that holds several, of which some may be None; None if all are."""
    known = [pair for pair in bounds if pair is not None]
    if not known:
        return None
    lows, highs = zip(*known, strict=True)
    return np.asarray(reduce(np.minimum, lows)), np.asarray(reduce(np.maximum, highs))


class _MeanProbability(nn.Module):
    """Members of any precision, their columns in one order, their probabilities averaged."""

    def __init__(self, victims, orders):
        super().__init__()
        self.members = nn.ModuleList(
            [_Member(v.module, v.dtype, order) for v, order in zip(victims, orders, strict=True)]
        )

    def get_members(self):
        """Return the members."""
        return list(self.members)

    def forward(self, x):
        return ensemble_logits([member(x) for member in self.members])


class _Member(nn.Module):
    """A model in a precision of its own, its logits in the order of the ensemble."""

    def __init__(self, module, dtype, order):
        super().__init__()
        self.module = module
        self.dtype = dtype
        self.order = order

    def forward(self, x):
        logits = two_logits(self.module(x.to(self.dtype)))
        return (logits if self.order is None else logits[:, self.order]).to(x.dtype)


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


def _skorch_victim(net):
    criterion = type(net.criterion_).__name__
    module = net.module_
    if criterion == "NLLLoss":  # skorch takes the logarithm of what the module returns
        module = _LogProbabilities(module)
    return Victim(module, classes=getattr(net, "classes_", None), name=type(net).__name__)


class _LogProbabilities(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        p = first_output(self.module(x))
        return torch.log(p + torch.finfo(p.dtype).eps)


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


# --- black boxes ---------------------------------------------------------------------


def _queried_victim(model, attack, access):
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

    def forward(self, x):
        values = x.detach().cpu().numpy()
        if self.columns is not None and values.ndim == 2:
            import pandas as pd

            values = pd.DataFrame(values, columns=self.columns)
        return torch.from_numpy(self.answer(values)).to(x.device)


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
                f"attack that needs labels only ({_names('labels')})."
            )

    def answer(self, values):
        scores = np.asarray(getattr(self.estimator, self.method)(values), dtype=np.float64)
        if self.method == "predict_proba":
            scores = np.log(np.maximum(scores, _SMALLEST_PROBABILITY))
        return scores


class _Labels(_Asked):
    """The predicted label as scores of 1 and 0."""

    def __init__(self, estimator, attack):
        super().__init__(estimator, attack)
        self.classes = np.asarray(estimator.classes_)
        self.order = np.argsort(self.classes)

    def answer(self, values):
        predicted = np.asarray(self.estimator.predict(values))
        column = self.order[np.searchsorted(self.classes, predicted, sorter=self.order)]
        return np.eye(len(self.classes))[column]


class Transformed(_Asked):
    """A fitted transformer without gradients, run as it is.

    Parameters
    ----------
    estimator : fitted transformer
    """

    def __init__(self, estimator):
        super().__init__(estimator, None)

    def answer(self, values):
        """Return the transformed array."""
        result = self.estimator.transform(values)
        result = result.toarray() if issparse(result) else np.asarray(result)
        return result.astype(np.float64)


def _real_steps(pipeline):
    return [step for _, step in pipeline.steps if step is not None and step != "passthrough"]


def _pipeline_victim(pipeline, attack, access):
    *steps, last = _real_steps(pipeline)
    victim = as_victim(last, attack=attack, access=access)
    modules = [_convert_step(step, attack, access) for step in steps]
    chain = _Chain(modules, victim).to(victim.device)
    return Victim(chain, classes=victim.classes, dtype=torch.float64, name="Pipeline")


# --- converters ----------------------------------------------------------------------


@singledispatch
def to_module(estimator):
    """Rebuild a fitted scikit-learn object as a torch module (see `register_converter`)."""
    raise NoGradientError(type(estimator).__name__)


def register_converter(cls: type, function: Callable[[Any], nn.Module] | None = None) -> Callable:
    """Teach white-box attacks to differentiate through a type of their own.

    Parameters
    ----------
    cls : type
        The scikit-learn compatible class.
    function : callable, optional
        ``function(fitted_estimator)`` returning a torch module in float64 that
        does what `transform` does, or returns logits in the order of
        `classes_` (a single logit is that of the second class). Without it
        the call is a decorator.

    Examples
    --------
    >>> import numpy as np, torch
    >>> from sklearn.base import BaseEstimator, TransformerMixin
    >>> from robustsk.attacks import register_converter
    >>> class Cube(TransformerMixin, BaseEstimator):
    ...     def fit(self, X, y=None):
    ...         self.n_features_in_ = X.shape[1]
    ...         return self
    ...     def transform(self, X):
    ...         return X**3
    >>> class TorchCube(torch.nn.Module):
    ...     def forward(self, x):
    ...         return x**3
    >>> _ = register_converter(Cube, lambda fitted: TorchCube())
    """
    return to_module.register(cls) if function is None else to_module.register(cls, function)


def _convert(estimator, attack):
    if isinstance(estimator, FrozenEstimator):
        return _convert(estimator.estimator, attack)
    check_victim_fitted(estimator)
    try:
        return to_module(estimator).double()
    except NoGradientError as error:
        raise _no_gradient(attack, type(estimator).__name__) from error


def _convert_step(step, attack, access):
    try:
        return _convert(step, attack)
    except NoGradientError:
        if access != STRAIGHT_THROUGH:
            raise
        return Transformed(step)


def _no_gradient(attack, name):
    return NoGradientError(
        f"{attack or 'This attack'} follows gradients and {name} has none: use a black-box attack "
        f"({_names('scores', 'labels')}), attack a surrogate (TransferAttack), see "
        "through a transformer (BPDA), or teach robustsk its gradients with "
        "robustsk.attacks.register_converter."
    )


def _names(*access):
    """Name the attacks that need no more than `access`."""
    from .._discovery import all_attacks

    return ", ".join(cls.__name__ for cls in all_attacks() if cls.access in access)


class _Affine(nn.Module):
    """x @ weight + bias, or element-wise where `weight` is a vector."""

    def __init__(self, weight=None, bias=None):
        super().__init__()
        for name, value in (("weight", weight), ("bias", bias)):
            value = None if value is None else torch.as_tensor(np.array(value, dtype=np.float64))
            self.register_buffer(name, value)

    def forward(self, x):
        if self.weight is not None:
            x = x @ self.weight if self.weight.ndim == 2 else x * self.weight
        return x if self.bias is None else x + self.bias


class _Clamp(nn.Module):
    def __init__(self, low, high):
        super().__init__()
        self.low, self.high = low, high

    def forward(self, x):
        # the largest value seen in `fit` is scaled to the bound but for rounding
        slack = 1e-12 * (self.high - self.low)
        return clamp_through(x, self.low - slack, self.high + slack)


class _RowNormalise(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.order = {"l1": 1, "l2": 2, "max": np.inf}[norm]

    def forward(self, x):
        length = torch.linalg.vector_norm(x, ord=self.order, dim=1, keepdim=True)
        # scikit-learn leaves rows alone that are next to nothing
        tiny = length < 10 * torch.finfo(x.dtype).eps
        return x / torch.where(tiny, torch.ones_like(length), length)


@to_module.register
def _(step: StandardScaler):
    scale = None if step.scale_ is None else 1.0 / step.scale_
    if step.mean_ is None or not step.with_mean:
        return _Affine(scale)
    return _Affine(scale, -step.mean_ * (1.0 if scale is None else scale))


@to_module.register
def _(step: MinMaxScaler):
    scaled = _Affine(step.scale_, step.min_)
    return nn.Sequential(scaled, _Clamp(*step.feature_range)) if step.clip else scaled


@to_module.register
def _(step: MaxAbsScaler):
    scaled = _Affine(1.0 / step.scale_)
    # the option is a late addition to scikit-learn
    return nn.Sequential(scaled, _Clamp(-1.0, 1.0)) if getattr(step, "clip", False) else scaled


@to_module.register
def _(step: RobustScaler):
    scale = 1.0 / step.scale_ if step.with_scaling else None
    if not step.with_centering:
        return _Affine(scale)
    return _Affine(scale, -step.center_ * (1.0 if scale is None else scale))


@to_module.register
def _(step: Normalizer):
    return _RowNormalise(step.norm)


@to_module.register
def _(step: PCA):
    components = step.components_.T
    if step.whiten:
        spread = np.sqrt(step.explained_variance_)
        components = components / np.maximum(spread, np.finfo(spread.dtype).eps)
    return _Affine(components, -step.mean_ @ components)


@to_module.register
def _(pipeline: Pipeline):
    return nn.Sequential(*[_convert(step, None) for step in _real_steps(pipeline)])


@to_module.register
def _(step: FunctionTransformer):
    if step.func is not None:
        raise NoGradientError(type(step).__name__)
    return nn.Identity()


@to_module.register(LogisticRegression)
@to_module.register(LinearSVC)
@to_module.register(SGDClassifier)
@to_module.register(RidgeClassifier)
@to_module.register(LinearDiscriminantAnalysis)
def _linear(model):
    coef = model.coef_.toarray() if issparse(model.coef_) else np.atleast_2d(model.coef_)
    return _Affine(coef.T, model.intercept_)


_ACTIVATIONS = {"identity": nn.Identity, "logistic": nn.Sigmoid, "tanh": nn.Tanh, "relu": nn.ReLU}


@to_module.register
def _(model: MLPClassifier):
    if not hasattr(model, "_label_binarizer") or model._label_binarizer.y_type_.startswith(
        "multilabel"
    ):
        raise NoGradientError("multilabel MLPClassifier")
    layers = []
    for weight, bias in zip(model.coefs_, model.intercepts_, strict=True):
        layers += [_Affine(weight, bias), _ACTIVATIONS[model.activation]()]
    return nn.Sequential(*layers[:-1])
