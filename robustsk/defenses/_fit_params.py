"""What `fit` is given besides the data: who takes it, and how it gets there."""

from __future__ import annotations

import inspect
from contextlib import contextmanager
from functools import partial


def taken_by(function, params):
    """Return those of some parameters that a function takes by their names.

    Parameters
    ----------
    function : callable
    params : dict

    Returns
    -------
    dict
    """
    if not params:
        return {}
    own = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in own):
        return dict(params)
    names = {p.name for p in own if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return {name: value for name, value in params.items() if name in names}


@contextmanager
def passed_on(module, params):
    """Have a module called with more keyword arguments in a block, whoever calls it.

    Parameters
    ----------
    module : torch.nn.Module
    params : dict
    """
    if not params:
        yield
        return
    # a hook, which replicas of the module have as well: what is attacked is what is trained
    handle = module.register_forward_pre_hook(partial(_add, params), with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _add(params, module, args, kwargs):
    return args, {**params, **kwargs}
