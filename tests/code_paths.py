"""Chooses classes so that every line of code runs, and not every class runs every line."""

import inspect
from zlib import crc32

import pytest

#: What repeats a test with a variant of something is in the default run of one test in so many.
_ONE_IN = 4


def each_code_path(classes, *names):
    """Return a decorator that gives a test all classes, marked slow but for a few.

    Classes belong to the same path if they have each of the named methods from the same class,
    and the same value of each of the named attributes that are no methods. One class stands for a
    path. The simplest of all is in the default run of every test; the others are dealt out, by
    their names and that of the test, so that each of them is in a share of the tests. The slow run
    has every class in every test.

    Parameters
    ----------
    classes : iterable of type
    *names : str
        Methods that what is tested may depend on, and attributes.

    Returns
    -------
    callable
        For a test that takes `cls`, given all classes in their order.
    """
    classes = list(classes)
    chosen = code_paths(classes, *names)

    def decorate(test):
        params = [
            pytest.param(
                cls,
                id=cls.__name__,
                marks=() if speaks(cls, chosen, test.__name__) else pytest.mark.slow,
            )
            for cls in classes
        ]
        return pytest.mark.parametrize("cls", params)(test)

    return decorate


def speaks(cls, chosen, test):
    """Return whether a class stands for one of the chosen code paths in the default run."""
    return cls in chosen and (cls is chosen[0] or is_dealt(cls.__name__, test))


def is_dealt(variant, test):
    """Return whether a variant falls to a test: always the same, as if by chance."""
    return crc32(f"{variant} {test}".encode()) % _ONE_IN == 0


def code_paths(classes, *names):
    """Return the simplest class of each code path, the simplest of all first."""
    paths = {}
    for cls in classes:
        paths.setdefault(tuple(_source(cls, name) for name in names), []).append(cls)
    return sorted((min(path, key=_simplicity) for path in paths.values()), key=_simplicity)


def _source(cls, name):
    for base in cls.__mro__:
        if name in vars(base):
            value = vars(base)[name]
            is_code = callable(value) or hasattr(value, "__get__")
            return f"{base.__module__}.{base.__qualname__}" if is_code else repr(value)
    return None


def _simplicity(cls):
    return len(inspect.signature(cls).parameters), cls.__name__
