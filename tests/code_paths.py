"""Chooses classes so that every line of code runs, and not every class runs every line."""

import inspect

import pytest


def one_per_code_path(classes, *names):
    """Return all classes as parameters of a test, marked slow but for one of each code path.

    Classes belong to the same path if they have each of the named methods from the same class,
    and the same value of each of the named attributes that are no methods. A class that defines
    one of them by itself is thus tested at once, and one that inherits all of them in the slow
    run.

    Parameters
    ----------
    classes : iterable of type
    *names : str
        Methods that what is tested may depend on, and attributes.

    Returns
    -------
    list of ParameterSet
        In the order of `classes`.
    """
    classes, paths = list(classes), {}
    for cls in classes:
        paths.setdefault(code_path(cls, *names), []).append(cls)
    chosen = {min(path, key=_simplicity) for path in paths.values()}
    return [
        pytest.param(cls, id=cls.__name__, marks=() if cls in chosen else pytest.mark.slow)
        for cls in classes
    ]


def code_path(cls, *names):
    """Return where a class has the named methods from, and the values of named attributes."""
    return tuple(_source(cls, name) for name in names)


def _source(cls, name):
    for base in cls.__mro__:
        if name in vars(base):
            value = vars(base)[name]
            is_code = callable(value) or hasattr(value, "__get__")
            return f"{base.__module__}.{base.__qualname__}" if is_code else repr(value)
    return None


def _simplicity(cls):
    return len(inspect.signature(cls).parameters), cls.__name__
