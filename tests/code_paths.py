"""Chooses, of the tests that are given many classes or variants, those of the default run.

The slow run has every class in every test. The default run has the simplest class in every test,
and of what the other classes take part in a share, by two rules that name no class: those that have
the same code as another are left out where a test says so (`each_code_path`), and all others are
dealt out among the tests (`deal`). So are the variants of a test that is marked `dealt`.
"""

import inspect
from collections import defaultdict
from math import ceil
from pathlib import Path
from zlib import crc32

import pytest

#: Of the tests of a file in which a class takes part, the default run has one in so many.
_ONE_IN = 20
#: Of the variants of a test that is marked so, the default run has one in so many.
_ONE_VARIANT_IN = 4
#: Tests of so few classes are about these classes, and not about all there are.
_FEW = 5
#: The folder of tests of names, parameters and documentation, which are cheap.
_TESTS_OF_THE_WHOLE = Path(__file__).parent


def deal(items):
    """Mark as slow what is repeated, but for a share that is always the same.

    It is about tests that are given more than a few classes as `cls`, and about those marked
    `dealt`. Every class has at least one of its tests left in each file, the simplest class of a
    test has that test, and every test marked `dealt` has at least one of its variants left.

    Parameters
    ----------
    items : list of pytest.Item
        As collected, before anything is deselected.
    """
    tests, hands = defaultdict(list), defaultdict(list)
    for item in items:
        cls = getattr(item, "callspec", None) and item.callspec.params.get("cls")
        if isinstance(cls, type) and item.path.parent != _TESTS_OF_THE_WHOLE:
            tests[_name(item)].append((item, cls))
    for test in tests.values():
        classes = {cls for _, cls in test}
        simplest = min(classes, key=_simplicity)
        for item, cls in test:
            is_one_of_many = len(classes) > _FEW and cls is not simplest
            if is_one_of_many and not item.get_closest_marker("slow"):
                hands[item.path, cls].append(item)
    for hand in hands.values():
        _leave_one_in(_ONE_IN, hand)
    variants = defaultdict(list)
    for item in items:
        if item.get_closest_marker("dealt") and not item.get_closest_marker("slow"):
            variants[_name(item)].append(item)
    for hand in variants.values():
        _leave_one_in(_ONE_VARIANT_IN, hand)


def _name(item):
    return item.nodeid.partition("[")[0]


def _leave_one_in(n, items):
    """Mark the others as slow: as if by chance, and the same in each process."""
    items = sorted(items, key=lambda item: crc32(item.nodeid.encode()))
    for item in items[ceil(len(items) / n) :]:
        item.add_marker(pytest.mark.slow)


def each_code_path(classes, *names):
    """Return a decorator that gives a test all classes, marked slow but for one of each code path.

    Classes belong to the same path if they have each of the named methods from the same class,
    and the same value of each of the named attributes that are no methods. The simplest class,
    with the least code of its own, stands for a path.

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
    own = [member.__code__ for member in vars(cls).values() if inspect.isfunction(member)]
    return sum(len(code.co_code) for code in own), cls.__name__
