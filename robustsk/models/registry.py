"""Networks by name, and networks that fit given data."""

from __future__ import annotations

import copy
import difflib
import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from .._validation import check_positive_int
from .base import check_input_shape
from .cnn import ConvNet2, SmallCNN, cce_cifar10, cce_cifar100, cce_mnist
from .mlp import MLP
from .resnet import (
    preact_resnet18,
    resnet18,
    resnet20,
    resnet34,
    resnet50,
    wide_resnet_28_10,
    wide_resnet_34_10,
)

#: Constructors of the networks by name, each called as ``f(input_shape, n_classes, **params)``.
MODELS: dict[str, Callable[..., nn.Module]] = {
    "mlp": MLP,
    "small_cnn": SmallCNN,
    "conv_net2": ConvNet2,
    "cce_mnist": cce_mnist,
    "cce_cifar10": cce_cifar10,
    "cce_cifar100": cce_cifar100,
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "preact_resnet18": preact_resnet18,
    "wide_resnet_28_10": wide_resnet_28_10,
    "wide_resnet_34_10": wide_resnet_34_10,
    "resnet20": resnet20,
}

#: Least height and width that two poolings leave something of.
_LEAST_WIDTH = 4

_CLASS_COUNT_NAMES = ("n_classes", "num_classes", "n_outputs", "out_features", "output_dim")
_FEATURE_COUNT_NAMES = ("n_features", "in_features", "n_features_in", "input_dim", "num_features")
_CHANNEL_COUNT_NAMES = ("in_channels", "n_channels", "in_chans")


def list_models() -> list[str]:
    """Return the names that :func:`get_model` knows, in alphabetical order.

    Returns
    -------
    names : list of str
        The names.

    Examples
    --------
    >>> from robustsk.models import list_models
    >>> "small_cnn" in list_models()
    True
    """
    return sorted(MODELS)


def get_model(name: str) -> Callable[..., nn.Module]:
    """Return the constructor of a network by its name.

    Parameters
    ----------
    name : str
        One of :func:`list_models`.

    Returns
    -------
    constructor : callable
        Called as ``constructor(input_shape, n_classes, **params)``.

    Raises
    ------
    ValueError
        If no network has this name.

    Examples
    --------
    >>> from robustsk.models import get_model
    >>> get_model("mlp")((64,), 10).num_features
    100
    """
    if name in MODELS:
        return MODELS[name]
    close = difflib.get_close_matches(str(name).lower(), MODELS, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(
        f"no network is named {name!r}.{hint} The names are: {', '.join(list_models())}."
    )


def make_module(
    spec: str | nn.Module | Callable[..., nn.Module] | None = None,
    *,
    input_shape: Sequence[int],
    n_classes: int,
    params: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Build a network that fits the data.

    Parameters
    ----------
    spec : None, str, nn.Module or callable, default=None
        What to build:

        - None: :class:`SmallCNN` for images, that is for an ``input_shape`` (h, w) or (c, h, w),
          and :class:`MLP` for everything else, such as tables and series of a few channels,
          (time, channels).
        - str: the network of this name, see :func:`list_models`.
        - a module: a deep copy of it, so that the given one is never trained. With ``params``, a
          new module of its class instead, with new weights.
        - a class or function: it is called, see Notes.
    input_shape : tuple of int
        Shape of one sample, without the batch axis. Images are channels-first.
    n_classes : int
        Number of classes.
    params : mapping, default=None
        Keyword arguments for the constructor. They win over what is filled in.

    Returns
    -------
    module : nn.Module
        The network.

    Raises
    ------
    ValueError
        If the name is not known, or, for a network of this package, if ``input_shape`` looks
        like a channels-last image.
    TypeError
        If ``spec`` is none of the above, or a callable returns something else than a module.

    Notes
    -----
    A class or function is called with ``params`` and with the facts about the data that its
    signature asks for by these names and that ``params`` does not give:

    - ``input_shape``: the shape;
    - ``n_classes``, ``num_classes``, ``n_outputs``, ``out_features``, ``output_dim``: the number
      of classes;
    - ``n_features``, ``in_features``, ``n_features_in``, ``input_dim``, ``num_features``: the
      number of values of one sample (the product of the shape);
    - ``in_channels``, ``n_channels``, ``in_chans``: the number of channels, for a shape
      (c, h, w).

    A parameter with one of these names but another meaning must be given in ``params``. A
    function that takes the number of classes only through ``**kwargs`` needs it in ``params``
    too. Arguments fixed by ``functools.partial`` are kept.

    Examples
    --------
    >>> from torch import nn
    >>> from robustsk.models import make_module
    >>> type(make_module(None, input_shape=(8, 8), n_classes=10)).__name__
    'SmallCNN'
    >>> make_module(nn.Linear, input_shape=(64,), n_classes=10, params={"bias": False})
    Linear(in_features=64, out_features=10, bias=False)
    """
    input_shape = check_input_shape(input_shape)
    n_classes = check_positive_int(n_classes, "n_classes")
    params = dict(params or {})
    if spec is None or isinstance(spec, str):
        _check_channels_first(input_shape)
        default = SmallCNN if _is_image(input_shape) else MLP
        spec = default if spec is None else get_model(spec)
    elif isinstance(spec, nn.Module):
        if not params:
            return copy.deepcopy(spec)
        spec = type(spec)
    elif not callable(spec):
        raise TypeError(
            "the network must be None, a name, a torch.nn.Module, or a class or function that "
            f"returns one; got {spec!r}."
        )
    module = spec(**_facts_asked_for(spec, input_shape, n_classes, params), **params)
    if not isinstance(module, nn.Module):
        raise TypeError(f"{spec!r} must return a torch.nn.Module, but returned {module!r}.")
    return module


def _is_image(input_shape: tuple[int, ...]) -> bool:
    """Tell images from tables, and from series of a few channels, (time, channels)."""
    if len(input_shape) == 2:
        return min(input_shape) >= _LEAST_WIDTH
    return len(input_shape) == 3


def _facts_asked_for(
    constructor: Callable[..., Any],
    input_shape: tuple[int, ...],
    n_classes: int,
    params: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the facts about the data that the signature names and nobody has given yet."""
    facts: dict[str, Any] = {"input_shape": input_shape}
    facts.update(dict.fromkeys(_CLASS_COUNT_NAMES, n_classes))
    facts.update(dict.fromkeys(_FEATURE_COUNT_NAMES, math.prod(input_shape)))
    if len(input_shape) == 3:
        facts.update(dict.fromkeys(_CHANNEL_COUNT_NAMES, input_shape[0]))
    try:
        parameters = inspect.signature(constructor).parameters.values()
    except ValueError:  # some callables written in C have no signature
        return {}
    given = set(params)
    if isinstance(constructor, functools.partial):
        given |= set(constructor.keywords)
    by_keyword = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {
        parameter.name: facts[parameter.name]
        for parameter in parameters
        if parameter.kind in by_keyword and parameter.name in facts and parameter.name not in given
    }


def _check_channels_first(input_shape: tuple[int, ...]) -> None:
    """Raise if a sample looks like a channels-last image."""
    if len(input_shape) == 3 and input_shape[-1] in (1, 3) and input_shape[0] not in (1, 3):
        height, width, channels = input_shape
        raise ValueError(
            f"input_shape={input_shape} looks like a channels-last image. PyTorch wants the "
            f"channels first, ({channels}, {height}, {width}): transpose the data with "
            "X.transpose(0, 3, 1, 2) (NumPy) or X.permute(0, 3, 1, 2) (PyTorch). If the shape is "
            "meant as it is, build the network yourself and pass it."
        )
