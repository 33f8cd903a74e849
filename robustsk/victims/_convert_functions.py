"""`FunctionTransformer`: functions of numpy and scipy that torch knows, and those it can run."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from scipy import special
from sklearn.preprocessing import FunctionTransformer
from torch import nn

from ._convert_transformers import does_same
from .converters import LacksGradient, to_module


def _cbrt(x):
    # the slope at zero is infinite
    size = torch.where(x == 0, 1.0, x.abs())
    return torch.where(x == 0, 0.0 * x, size.pow(1 / 3) * x.sign())


def _clip(x, a_min=None, a_max=None, *, min=None, max=None):
    low, high = (min if a_min is None else a_min), (max if a_max is None else a_max)
    if low is not None:
        low = torch.as_tensor(low, dtype=x.dtype, device=x.device)
        x = torch.where(x < low, low, x)
    if high is not None:
        high = torch.as_tensor(high, dtype=x.dtype, device=x.device)
        x = torch.where(x > high, high, x)
    return x


_IN_TORCH = {
    np.log: torch.log,
    np.log1p: torch.log1p,
    np.log2: torch.log2,
    np.log10: torch.log10,
    np.exp: torch.exp,
    np.exp2: torch.exp2,
    np.expm1: torch.expm1,
    np.sqrt: torch.sqrt,
    np.cbrt: _cbrt,
    np.abs: torch.abs,
    np.fabs: torch.abs,
    np.square: torch.square,
    np.reciprocal: torch.reciprocal,
    np.negative: torch.neg,
    np.sin: torch.sin,
    np.cos: torch.cos,
    np.tan: torch.tan,
    np.sinh: torch.sinh,
    np.cosh: torch.cosh,
    np.tanh: torch.tanh,
    np.arcsin: torch.asin,
    np.arccos: torch.acos,
    np.arctan: torch.atan,
    np.arcsinh: torch.asinh,
    np.arccosh: torch.acosh,
    np.arctanh: torch.atanh,
    np.clip: _clip,
    np.nan_to_num: torch.nan_to_num,
    special.expit: torch.special.expit,
    special.logit: torch.special.logit,
    special.ndtri: torch.special.ndtri,
    special.erf: torch.special.erf,
}


class _Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@to_module.register
def _(step: FunctionTransformer):
    if step.func is None:
        return nn.Identity()
    function = _IN_TORCH.get(step.func, step.func)
    module = _Function(partial(function, **step.kw_args) if step.kw_args else function)
    if (
        not hasattr(step, "n_features_in_")
        or not _has_gradient(module, step)
        or not does_same(module, step)
    ):
        raise LacksGradient(f"{type(step).__name__}({_name(step.func)})")
    return module


def _has_gradient(module, step):
    """Return whether a function takes a tensor, and returns one that has a gradient."""
    x = torch.full((2, step.n_features_in_), 0.5, dtype=torch.float64, requires_grad=True)
    try:
        with torch.enable_grad():
            return bool(module(x).requires_grad)
    except Exception:  # whatever a function of the user's makes of a tensor
        return False


def _name(function):
    return getattr(function, "__name__", type(function).__name__)
