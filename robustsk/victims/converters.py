"""Fitted scikit-learn objects, rebuilt in torch in float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import singledispatch
from typing import Any

import numpy as np
import torch
from scipy.sparse import issparse
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, RidgeClassifier, SGDClassifier
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
from torch import nn

from .._tensors import clamp_through
from ._checks import NoGradientError, check_victim_fitted, no_gradient
from .queried import Transformed
from .victim import STRAIGHT_THROUGH


def real_steps(pipeline):
    """Return the steps of a pipeline that do something when it predicts."""
    steps = [step for _, step in pipeline.steps if step is not None and step != "passthrough"]
    # samplers are for training only
    return [s for s in steps if hasattr(s, "transform") or not hasattr(s, "fit_resample")]


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


def convert(estimator, attack):
    """Return a fitted scikit-learn object as a torch module, or say why that is impossible."""
    if isinstance(estimator, FrozenEstimator):
        return convert(estimator.estimator, attack)
    check_victim_fitted(estimator)
    try:
        return to_module(estimator).double()
    except NoGradientError as error:
        raise no_gradient(attack, type(estimator).__name__) from error


def convert_step(step, attack, access):
    """Convert a transformer, or run it as it is where the attack can do without its gradient."""
    try:
        return convert(step, attack)
    except NoGradientError:
        if access != STRAIGHT_THROUGH:
            raise
        return Transformed(step)


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
    return nn.Sequential(*[convert(step, None) for step in real_steps(pipeline)])


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
