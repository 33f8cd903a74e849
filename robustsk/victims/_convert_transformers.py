"""Transformers of numbers, rebuilt in torch."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from scipy.sparse import issparse
from sklearn.decomposition import PCA, FastICA, IncrementalPCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.feature_selection import RFE, SelectorMixin
from sklearn.impute import MissingIndicator, SimpleImputer
from sklearn.impute._base import _BaseImputer
from sklearn.preprocessing import (
    Binarizer,
    KBinsDiscretizer,
    MaxAbsScaler,
    MinMaxScaler,
    Normalizer,
    PolynomialFeatures,
    PowerTransformer,
    RobustScaler,
    StandardScaler,
)
from torch import nn

from .._tensors import clamp_through
from .converters import Chain, LacksGradient, to_module, to_step

#: A transformer that is known by its attributes is tried on so many rows.
_N_TRIED = 8


def double(values):
    """Return a copy of an array as a tensor in float64."""
    values = values.toarray() if issparse(values) else values
    return torch.as_tensor(np.array(values, dtype=np.float64))


class Affine(nn.Module):
    """x @ weight + bias, or element-wise where `weight` is a vector."""

    def __init__(self, weight=None, bias=None):
        super().__init__()
        for name, value in (("weight", weight), ("bias", bias)):
            self.register_buffer(name, None if value is None else double(value))

    def forward(self, x):
        if self.weight is not None:
            x = x @ self.weight if self.weight.ndim == 2 else x * self.weight
        return x if self.bias is None else x + self.bias


class Select(nn.Module):
    """Some of the columns, in an order."""

    def __init__(self, places):
        super().__init__()
        self.register_buffer("places", torch.as_tensor(np.asarray(places, dtype=np.int64)))

    def forward(self, x):
        return x[:, self.places]


# --- scalers --------------------------------------------------------------------------


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
        return Affine(scale)
    return Affine(scale, -step.mean_ * (1.0 if scale is None else scale))


@to_module.register
def _(step: MinMaxScaler):
    scaled = Affine(step.scale_, step.min_)
    return nn.Sequential(scaled, _Clamp(*step.feature_range)) if step.clip else scaled


@to_module.register
def _(step: MaxAbsScaler):
    scaled = Affine(1.0 / step.scale_)
    # the option is a late addition to scikit-learn
    return nn.Sequential(scaled, _Clamp(-1.0, 1.0)) if getattr(step, "clip", False) else scaled


@to_module.register
def _(step: RobustScaler):
    scale = 1.0 / step.scale_ if step.with_scaling else None
    if not step.with_centering:
        return Affine(scale)
    return Affine(scale, -step.center_ * (1.0 if scale is None else scale))


@to_module.register
def _(step: Normalizer):
    return _RowNormalise(step.norm)


# --- projections and selections -------------------------------------------------------


@to_module.register(IncrementalPCA)
@to_module.register(PCA)
def _principal(step):
    components = step.components_.T
    if step.whiten:
        spread = np.sqrt(step.explained_variance_)
        components = components / np.maximum(spread, np.finfo(spread.dtype).eps)
    return Affine(components, -step.mean_ @ components)


@to_module.register
def _(step: FastICA):
    components = step.components_.T
    return Affine(components, -step.mean_ @ components if step.whiten else None)


@to_step.register
def _(step: LinearDiscriminantAnalysis):
    if step.solver == "lsqr":
        raise LacksGradient(type(step).__name__)
    scalings = step.scalings_[:, : step._max_components]
    return Affine(scalings, -step.xbar_ @ scalings if step.solver == "svd" else None)


@to_step.register(RFE)
@to_module.register(SelectorMixin)
def _selected(step):
    return Select(step.get_support(indices=True))


def by_attributes(step):
    """Rebuild a transformer of another type by what it has, if that is what it does."""
    module = None
    if hasattr(step, "transform") and hasattr(step, "get_support"):
        module = Select(step.get_support(indices=True))
    elif hasattr(step, "transform") and hasattr(step, "components_"):
        components, mean = step.components_.T, getattr(step, "mean_", None)
        module = Affine(components, None if mean is None else -mean @ double(components).numpy())
    if module is None or not does_same(module, step):
        raise LacksGradient(type(step).__name__)
    return module


def does_same(module, step):
    """Return whether a module returns what a transformer does, tried on a few rows."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(_N_TRIED, step.n_features_in_))
    X = np.vstack([X, np.abs(X)])  # not every function takes what is negative
    try:
        expected = transformed(step, X)
        with torch.no_grad():
            found = module(torch.as_tensor(X))
    except Exception:  # whatever a transformer or function of the user's makes of such rows
        return False
    return (
        isinstance(found, torch.Tensor)
        and found.shape == expected.shape
        and np.allclose(found, expected, rtol=1e-9, atol=1e-9, equal_nan=True)
    )


def transformed(step, X):
    """Return what a transformer makes of rows, as an array in float64."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # it may have been fitted with names
        result = step.transform(X)
    result = result.toarray() if issparse(result) else result
    if not hasattr(result, "to_numpy"):
        return np.asarray(result, dtype=np.float64)
    return np.asarray(result.to_numpy(), dtype=np.float64)  # frames


# --- missing values -------------------------------------------------------------------


def keep_missing(function, x):
    """Return a function of each number, and NaN with a gradient of zero where NaN is."""
    is_missing = x.isnan()
    return torch.where(is_missing, torch.nan, function(torch.where(is_missing, 1.0, x)))


class _Imputed(nn.Module):
    """What is missing replaced by one value per column, and perhaps marked."""

    def __init__(self, step):
        super().__init__()
        statistics = np.asarray(step.statistics_, dtype=np.float64)
        kept = np.full(len(statistics), True)
        if not step.keep_empty_features:
            kept = ~np.isnan(statistics)
        self.missing = float(step.missing_values)
        indicated = step.indicator_.features_ if step.add_indicator else []
        self.register_buffer("statistics", torch.as_tensor(statistics[kept]))
        for name, places in (("kept", np.flatnonzero(kept)), ("indicated", indicated)):
            self.register_buffer(name, torch.as_tensor(np.asarray(places, dtype=np.int64)))

    def forward(self, x):
        is_missing = x.isnan() if np.isnan(self.missing) else x == self.missing
        filled = torch.where(is_missing[:, self.kept], self.statistics, x[:, self.kept])
        return torch.cat([filled, is_missing[:, self.indicated].to(x.dtype)], 1)


@to_module.register
def _(step: SimpleImputer):
    try:
        return _Imputed(step)
    except (TypeError, ValueError) as error:  # strings
        raise LacksGradient(type(step).__name__) from error


class _Marked(nn.Module):
    is_flat = True

    def __init__(self, missing, places):
        super().__init__()
        self.missing = missing
        self.select = Select(places)

    def forward(self, x):
        x = self.select(x)
        return (x.isnan() if np.isnan(self.missing) else x == self.missing).to(x.dtype)


@to_module.register
def _(step: MissingIndicator):
    try:
        return _Marked(float(step.missing_values), step.features_)
    except (TypeError, ValueError) as error:
        raise LacksGradient(type(step).__name__) from error


class _OtherImputer(nn.Module):
    """Nothing, where nothing is missing; what is, is asked of the estimator, without a gradient."""

    def __init__(self, step):
        super().__init__()
        self.estimator = step
        self.missing = float(step.missing_values)
        # columns that are empty in training are left out, and marks come last
        row = np.linspace(0.25, 0.75, step.n_features_in_)[None]
        places = [np.flatnonzero(row[0] == value) for value in transformed(step, row)[0]]
        places = [int(found[0]) if len(found) else -1 for found in places]
        self.register_buffer("places", torch.tensor(places, dtype=torch.int64))

    def forward(self, x):
        is_missing = x.isnan() if np.isnan(self.missing) else x == self.missing
        is_own = (self.places >= 0) & ~is_missing[:, self.places.clamp_min(0)]
        values = torch.zeros((), dtype=x.dtype, device=x.device)
        if is_missing.any():
            found = transformed(self.estimator, x.detach().cpu().numpy())
            values = torch.as_tensor(found).to(x)
        return torch.where(is_own, x[:, self.places.clamp_min(0)], values)


@to_module.register
def _(step: _BaseImputer):  # from neighbours, or from the other columns
    return _OtherImputer(step)


# --- powers --------------------------------------------------------------------------


class _Products(nn.Module):
    """Products of columns, multiplied one by one: a power of zero has no gradient otherwise."""

    def __init__(self, powers):
        super().__init__()
        n_outputs, n_columns = powers.shape
        degree = int(powers.sum(1).max(initial=0))
        factors = np.full((degree, n_outputs), n_columns, dtype=np.int64)  # a column of ones
        for output, row in enumerate(powers):
            own = np.repeat(np.arange(n_columns), row)
            factors[: len(own), output] = own
        self.register_buffer("factors", torch.as_tensor(factors))

    def forward(self, x):
        x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
        product = x.new_ones(len(x), self.factors.shape[1])
        for columns in self.factors:
            product = product * x[:, columns]
        return product


@to_module.register
def _(step: PolynomialFeatures):
    return _Products(step.powers_)


class _Power(nn.Module):
    """The powers of Yeo and Johnson, or of Box and Cox."""

    def __init__(self, method, lambdas):
        super().__init__()
        self.is_signed = method == "yeo-johnson"
        self.register_buffer("lambdas", double(lambdas))

    def forward(self, x):
        return keep_missing(self._of, x)

    def _of(self, x):
        if not self.is_signed:
            return _power_of_log(x.log(), self.lambdas)
        # each branch sees only what it is for: the gradient of the other would be NaN
        is_negative = x < 0
        positive = torch.where(is_negative, 0.0, x)
        negative = torch.where(is_negative, x, 0.0)
        return torch.where(
            is_negative,
            -_power_of_log(torch.log1p(-negative), 2 - self.lambdas),
            _power_of_log(torch.log1p(positive), self.lambdas),
        )


def _power_of_log(log, power):
    """Return ``(exp(log) ** power - 1) / power``."""
    is_zero = power.abs() < torch.finfo(power.dtype).eps
    power = torch.where(is_zero, 1.0, power)
    return torch.where(is_zero, log, torch.expm1(power * log) / power)


@to_module.register
def _(step: PowerTransformer):
    power = _Power(step.method, step.lambdas_)
    return nn.Sequential(power, to_module(step._scaler)) if step.standardize else power


# --- steps without a gradient ---------------------------------------------------------


class Steps(nn.Module):
    """A function of each column that goes up in steps; `BPDA` sees through it."""

    is_flat = True


class _Threshold(Steps):
    def __init__(self, threshold):
        super().__init__()
        self.threshold = threshold

    def forward(self, x):
        return (x > self.threshold).to(x.dtype)


class _Bins(Steps):
    """The number of inner edges that a value has reached."""

    def __init__(self, edges):
        super().__init__()
        inner = [np.asarray(own[1:-1], dtype=np.float64) for own in edges]
        width = max(map(len, inner))
        padded = [np.r_[own, np.full(width - len(own), np.inf)] for own in inner]
        self.register_buffer("edges", double(np.stack(padded)))

    def forward(self, x):
        places = torch.searchsorted(self.edges, x.detach().T.contiguous(), right=True)
        return places.T.to(x.dtype)


class _OneHot(nn.Module):
    is_flat = True

    def __init__(self, sizes):
        super().__init__()
        columns = np.repeat(np.arange(len(sizes)), sizes)
        values = np.concatenate([np.arange(size) for size in sizes])
        self.select = Select(columns)
        self.register_buffer("values", double(values))

    def forward(self, x):
        return (self.select(x) == self.values).to(x.dtype)


@to_module.register
def _(step: Binarizer):
    return _Threshold(step.threshold)


@to_module.register
def _(step: KBinsDiscretizer):
    bins = _Bins(step.bin_edges_)
    return bins if step.encode == "ordinal" else Chain(bins, _OneHot(step.n_bins_))
