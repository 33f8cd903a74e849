"""Fitted scikit-learn objects, rebuilt in torch in float64.

This is the door: who is asked for a module, and who sees the table. The modules are in those called
`_convert_...`, which register themselves here: transformers of numbers, those made of pieces,
functions, columns and tables, classifiers, and what is made of other classifiers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, singledispatch
from typing import Any

from sklearn.base import is_classifier
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import StackingClassifier, VotingClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import FixedThresholdClassifier, TunedThresholdClassifierCV
from sklearn.model_selection._search import BaseSearchCV
from sklearn.pipeline import FeatureUnion, Pipeline
from torch import nn

from ._checks import NoGradientError, check_victim_fitted, no_gradient
from ._columns import columns_read, reading
from .ensemble import Member
from .nets import is_net, net_victim
from .queried import Transformed
from .victim import STRAIGHT_THROUGH


class LacksGradient(NoGradientError):
    """Raised with the name of the part that has no gradient, of which a sentence is made later."""


def real_steps(pipeline):
    """Return the steps of a pipeline that do something when it predicts."""
    steps = [step for _, step in pipeline.steps if step is not None and step != "passthrough"]
    # samplers are for training only
    return [s for s in steps if hasattr(s, "transform") or not hasattr(s, "fit_resample")]


@singledispatch
def to_module(estimator):
    """Rebuild a fitted scikit-learn object as a torch module (see `register_converter`)."""
    return by_attributes(estimator)


@singledispatch
def to_step(estimator):
    """Rebuild what `transform` does; another thing than `predict` for what has both."""
    return to_module(estimator)


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


def convert(estimator, attack, columns=None, is_step=False, build=None):
    """Return a fitted scikit-learn object as a torch module, or say why that is impossible.

    Parameters
    ----------
    estimator : fitted estimator
    attack : str or None
        Name of the attack, for the error message.
    columns : Columns, optional
        Of the table that it sees: the module does with ``x`` what the estimator does with
        ``columns.frame(x)``. None means those that are read.
    is_step : bool, default=False
        Whether its `transform` is wanted, in case it has a `predict` as well.
    build : callable, optional
        Returns the module where it is not that of the logits or of `transform`.

    Raises
    ------
    NoGradientError
        If no gradient can flow through it.
    """
    try:
        with reading(columns_read() if columns is None else columns):
            module = rebuild(estimator, is_step) if build is None else build(estimator)
        if is_flat(module):
            raise LacksGradient(type(estimator).__name__)
    except NoGradientError as error:
        is_named = isinstance(error, LacksGradient)
        raise no_gradient(attack, str(error) if is_named else type(estimator).__name__) from error
    parameter = next(module.parameters(), None)  # networks inside live where they live
    return module if parameter is None else module.to(parameter.device)


def convert_steps(steps, attack, access):
    """Convert transformers that follow each other, of which the first one sees the table.

    A step without a gradient is run as it is where the attack can do without.
    """
    modules, seen = [], columns_read()
    for step in steps:
        with reading(seen):
            try:
                modules.append(convert(step, attack, is_step=True))
            except NoGradientError:
                if access != STRAIGHT_THROUGH:
                    raise
                modules.append(Transformed(step))
        seen = None
    return modules


# --- for the other converters ---------------------------------------------------------

#: What passes the table on to those inside.
_OPENS_TABLES = [ColumnTransformer, FeatureUnion, Pipeline, StackingClassifier, VotingClassifier]


def opens_tables(cls):
    """Note that what is of a class hands the table on to estimators inside of it."""
    _OPENS_TABLES.append(cls)


def unwrapped(estimator):
    """Return the fitted estimator inside of what only looks after one."""
    while True:
        if isinstance(estimator, FrozenEstimator):
            estimator = estimator.estimator
        elif isinstance(estimator, BaseSearchCV) and hasattr(estimator, "best_estimator_"):
            estimator = estimator.best_estimator_
        else:
            return estimator


def rebuild(estimator, is_step=False):
    """Return the module of a part, which may have no gradient; see `is_flat`.

    Raises
    ------
    NoGradientError
        If there is none. It is not a sentence yet.
    """
    estimator = unwrapped(estimator)
    check_victim_fitted(estimator)
    if isinstance(estimator, (FixedThresholdClassifier, TunedThresholdClassifierCV)):
        raise LacksGradient(type(estimator).__name__)  # only known at the door
    if hasattr(estimator, "__robustsk_victim__") or is_net(estimator):
        return _net(estimator)
    build = to_step if is_step else to_module
    if isinstance(estimator, tuple(_OPENS_TABLES)):
        return build(estimator)  # of parts that are in float64, and networks that are not
    if columns_read() is None:
        return build(estimator).double()
    return from_table(estimator, build, transforms(estimator, is_step))


def _net(estimator):
    own = getattr(estimator, "__robustsk_victim__", None)
    victim = net_victim(estimator, None, "gradients") if own is None else own()
    return Member(victim.module, victim.dtype, None)


def transforms(estimator, is_step):
    """Return whether a part is there for what it transforms."""
    return hasattr(estimator, "transform") and (is_step or not is_classifier(estimator))


def is_flat(module):
    """Return whether all that a module returns is piecewise constant in its input."""
    return getattr(module, "is_flat", False)


class Chain(nn.Sequential):
    """One module after the other; without a gradient if one has none."""

    def __init__(self, *modules):
        super().__init__(*modules)
        self.is_flat = any(map(is_flat, modules))


@to_module.register
def _(pipeline: Pipeline):
    return _chain(pipeline, is_step=False)


@to_step.register
def _(pipeline: Pipeline):
    return _chain(pipeline, is_step=True)


def _chain(pipeline, is_step):
    seen, can_be_tabulated = columns_read(), transforms(pipeline, is_step)
    if seen is not None and can_be_tabulated and seen.coded.all():
        return tabulated(pipeline, seen)
    try:
        return chained(pipeline, partial(rebuild, is_step=is_step))
    except NoGradientError:
        if seen is None or not can_be_tabulated:
            raise
        return tabulated(pipeline, seen)


def chained(pipeline, build):
    """Return the module of a pipeline, of which `build` makes that of the last step."""
    steps, seen, modules = real_steps(pipeline), columns_read(), []
    for step in steps[:-1]:
        with reading(seen):
            modules.append(rebuild(step, is_step=True))
        seen = None
    if steps:
        with reading(seen):
            modules.append(build(steps[-1]))
    elif seen is not None:  # the table is taken for numbers
        modules.append(as_numbers(seen))
    return Chain(*modules)


# they register what they convert, and need the door for what is inside
from ._convert_columns import as_numbers, from_table, tabulated  # noqa: E402
from ._convert_transformers import by_attributes  # noqa: E402

from . import _convert_functions, _convert_meta, _convert_pieces  # noqa: E402, F401  # isort: skip
