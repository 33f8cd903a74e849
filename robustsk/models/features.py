"""Reach the classifier layer, and what enters it, in any module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .linear import CosineLinear, MaxMahalanobisLinear


def get_classifier(module: nn.Module) -> tuple[str, nn.Module]:
    """Find the classifier layer of a module.

    Parameters
    ----------
    module : nn.Module
        Any network. If it has a method ``get_classifier`` (all networks of this package and of
        timm do), its answer is taken; otherwise the classifier is the last ``nn.Linear``,
        :class:`CosineLinear` or :class:`MaxMahalanobisLinear` in the order of registration.

    Returns
    -------
    name : str
        Qualified name of the layer, as in ``module.named_modules()``; "" if the module is itself
        the layer.
    layer : nn.Module
        The layer.

    Raises
    ------
    ValueError
        If there is no such layer.

    Examples
    --------
    >>> from torch import nn
    >>> from robustsk.models import get_classifier
    >>> get_classifier(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)))
    ('2', Linear(in_features=8, out_features=3, bias=True))
    """
    if callable(getattr(module, "get_classifier", None)):
        layer = module.get_classifier()
        for name, child in module.named_modules():
            if child is layer:
                return name, layer
        raise ValueError(
            f"{type(module).__name__}.get_classifier() returned {layer!r}, which is not one of "
            "the module's own layers. Networks with several classifiers are not supported: wrap "
            "the network in a module whose get_classifier() returns one layer."
        )
    found = None
    for name, child in module.named_modules():
        if isinstance(child, (nn.Linear, CosineLinear, MaxMahalanobisLinear)):
            found = name, child
    if found is None:
        raise ValueError(
            f"{type(module).__name__} has no nn.Linear layer to take as its classifier. End the "
            "network with nn.Linear, or give it a method get_classifier() that returns its last "
            "layer."
        )
    return found


def replace_classifier(module: nn.Module, factory: Callable[[int, int], nn.Module]) -> nn.Module:
    """Put another layer in the place of the classifier layer.

    Parameters
    ----------
    module : nn.Module
        Any network with a classifier layer, see :func:`get_classifier`. It is changed in place.
    factory : callable
        Called as ``factory(in_features, out_features)`` with the sizes of the present layer;
        returns the new one, for example ``CosineLinear``. The new layer is moved to the device
        and dtype of the present one.

    Returns
    -------
    module : nn.Module
        The module to use from here on: the given one, or the new layer if the given module was
        itself the classifier layer.

    Raises
    ------
    ValueError
        If there is no classifier layer or its sizes are not known.
    TypeError
        If ``factory`` does not return a module.

    Examples
    --------
    >>> from torch import nn
    >>> from robustsk.models import CosineLinear, replace_classifier
    >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> replace_classifier(network, CosineLinear)[-1]
    CosineLinear(in_features=8, n_classes=3, scale=5)
    """
    name, old = get_classifier(module)
    in_features = getattr(old, "in_features", None)
    out_features = getattr(old, "out_features", None)
    # A lazy layer has in_features=0 until it has seen data.
    if not in_features or not out_features:
        raise ValueError(
            f"the sizes of the classifier layer {name!r} ({old!r}) are not known: it needs "
            "positive in_features and out_features. Send one batch through a lazy layer first; "
            "give a network without a head a number of classes."
        )
    new = factory(in_features, out_features)
    if not isinstance(new, nn.Module):
        raise TypeError(f"factory must return an nn.Module, got {new!r}.")
    reference = next(old.parameters(), None)
    if reference is not None:
        new = new.to(reference)
    new.train(old.training)
    if module is old:
        return new
    # Every registration of the layer, since a module may hold the same layer under two names.
    for parent in list(module.modules()):
        for key, child in list(parent._modules.items()):
            if child is old:
                setattr(parent, key, new)
    return module


def get_layer(module: nn.Module, name: str) -> nn.Module:
    """Find a layer of a module by its name.

    Parameters
    ----------
    module : nn.Module
        Any network.
    name : str
        As in ``module.named_modules()``. Of a network inside a wrapper, the name that it has in
        the network is enough.

    Returns
    -------
    layer : nn.Module
        The layer.

    Raises
    ------
    ValueError
        If there is no layer of this name; the message lists those that there are.

    Examples
    --------
    >>> from torch import nn
    >>> from robustsk.models import get_layer
    >>> get_layer(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), "1")
    ReLU()
    """
    known = dict(module.named_modules())
    fitting = [key for key in known if key == name or key.endswith(f".{name}")]
    if not name or not fitting:
        raise ValueError(
            f"There is no layer {name!r} in {type(module).__name__}: use a name from "
            f"module.named_modules(), here one of {[key for key in known if key]}."
        )
    return known[min(fitting, key=len)]


def forward_with_features(
    module: nn.Module, x: Any, layer: str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run a module and also return a representation inside of it.

    Parameters
    ----------
    module : nn.Module
        Any network.
    x : Tensor
        Input batch of shape (n, ...).
    layer : str, default=None
        Name of the layer whose output is wanted, as in ``module.named_modules()``. None means
        what enters the classifier layer, see :func:`get_classifier`.

    Returns
    -------
    logits : Tensor of shape (n, n_classes)
        What ``module(x)`` returns.
    features : Tensor of shape (n, n_features)
        The representation, flattened to two axes. Part of the same graph as the logits, so losses
        on it can be differentiated.

    Raises
    ------
    ValueError
        If there is no classifier layer, or none of this name.
    RuntimeError
        If the forward pass did not call it.

    Examples
    --------
    >>> import torch
    >>> from robustsk.models import MLP, forward_with_features
    >>> logits, features = forward_with_features(MLP((4,), 3), torch.zeros(5, 4))
    >>> logits.shape, features.shape
    (torch.Size([5, 3]), torch.Size([5, 100]))
    """
    caught: list[Any] = []
    if layer is None:
        name, inner = get_classifier(module)

        def catch(_: nn.Module, args: tuple, kwargs: dict) -> None:
            caught.append(args[0] if args else next(iter(kwargs.values())))

        handle = inner.register_forward_pre_hook(catch, with_kwargs=True)
    else:
        name = layer
        handle = get_layer(module, layer).register_forward_hook(
            lambda _, args, output: caught.append(output)
        )
    try:
        logits = module(x)
    finally:
        handle.remove()
    if not caught and layer is None:
        raise RuntimeError(
            f"the forward pass of {type(module).__name__} did not call its classifier layer "
            f"{name!r}, so its features cannot be read. Give the network a method "
            "get_classifier() that returns the layer its forward calls last."
        )
    if not caught or not isinstance(caught[-1], torch.Tensor):
        raise RuntimeError(
            f"the forward pass of {type(module).__name__} did not pass a tensor through the layer "
            f"{name!r}: name one that it calls and that returns a tensor."
        )
    features = caught[-1]
    return logits, features.flatten(1) if features.ndim > 2 else features
