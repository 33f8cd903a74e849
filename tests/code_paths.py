"""Chooses, of the tests that are given many classes, those of the default run.

The slow run has every class in every test. The default run has the simplest class in every test,
and of what the other classes take part in a share, by two rules that name no class: those that have
the same code as another are left out where a test says so (`each_code_path`), and all others are
dealt out among the tests (`deal`).
"""

import inspect
from collections import defaultdict
from math import ceil
from zlib import crc32

import pytest

from robustsk._discovery import all_attacks, all_defenses

#: Of the tests of a file in which a class takes part, the default run has one in so many.
ONE_IN = 10


def deal(items):
    """Mark as slow what most classes take part in, but for a share that is always the same.

    It is about tests that are given more than `ONE_IN` public classes as `cls`. Of each file every
    class has at least one of its tests left, and the simplest class of a test has that test.

    Parameters
    ----------
    items : list of pytest.Item
        As collected, before anything is deselected.
    """
    classes, hands = defaultdict(set), defaultdict(list)
    public = {*all_attacks(), *all_defenses()}
    drawn = [(item, *_test_and_class(item)) for item in items]
    drawn = [(item, test, cls) for item, test, cls in drawn if cls in public]
    for _, test, cls in drawn:
        classes[test].add(cls)
    simplest = {test: min(found, key=_simplicity) for test, found in classes.items()}
    for item, test, cls in drawn:
        is_one_of_many = len(classes[test]) > ONE_IN and cls is not simplest[test]
        if is_one_of_many and not item.get_closest_marker("slow"):
            hands[item.path, cls].append(item)
    for hand in hands.values():
        # as if by chance, and the same in each process
        hand.sort(key=lambda item: crc32(item.nodeid.encode()))
        for item in hand[ceil(len(hand) / ONE_IN) :]:
            item.add_marker(pytest.mark.slow)


def _test_and_class(item):
    params = getattr(getattr(item, "callspec", None), "params", {})
    cls = params.get("cls")
    return item.nodeid.partition("[")[0], cls if isinstance(cls, type) else None


def each_code_path(classes, *names):
    """Return a decorator that gives a test all classes, marked slow but for one of each code path.

    Classes belong to the same path if they have each of the named methods from the same class,
    and the same value of each of the named attributes that are no methods. The simplest class
    stands for a path.

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
    paths = {}
    for cls in classes:
        paths.setdefault(tuple(_source(cls, name) for name in names), []).append(cls)
    chosen = {min(path, key=_simplicity) for path in paths.values()}
    params = [
        pytest.param(cls, id=cls.__name__, marks=() if cls in chosen else pytest.mark.slow)
        for cls in classes
    ]
    return pytest.mark.parametrize("cls", params)


def _source(cls, name):
    for base in cls.__mro__:
        if name in vars(base):
            value = vars(base)[name]
            is_code = callable(value) or hasattr(value, "__get__")
            return f"{base.__module__}.{base.__qualname__}" if is_code else repr(value)
    return None


def _simplicity(cls):
    return len(inspect.signature(cls).parameters), cls.__name__
