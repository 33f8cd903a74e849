"""What the suites of promises share: the attacks, settings that make them cheap, marks.

What a class can break by itself is looked at in every class. What base classes decide is looked at
in the simplest class and some of those that have a code path of their own (`per_code_path`), and in
all others by the slow run. Every class is looked at in its own norm. That other norms are respected
is decided by what all attacks share, and they are dealt out among the tests (`every_norm`).
"""

import inspect

import numpy as np
import pytest
from code_paths import each_code_path, is_dealt

from robustsk._discovery import all_attacks
from robustsk.attacks import PGD

ATTACKS = all_attacks()
#: Radii at which an attack visibly works on the data of these tests.
STRONG = {np.inf: 0.6, 2.0: 1.5, 1.0: 4.5, 0.0: 5}
#: Settings that make an attack cheap, for whatever has them: most promises need no strength.
CHEAP = {"max_queries": 40, "n_steps": 4, "n_binary_steps": 2, "n_draws": 2}
#: Settings for what has nothing to do with what an attack finds.
CHEAPEST = {"max_queries": 10, "n_steps": 2, "n_binary_steps": 1, "n_draws": 1}
#: Settings with which every attack reaches what it is out for.
ABLE = {"max_queries": 150, "n_steps": 12, "n_binary_steps": 3, "n_draws": 2}
#: What a class may have another way to do than the base class, between the call of a method that
#: takes arrays and what it does to a batch.
DOORS = (
    "fit", "generate", "run", "perturb", "access", "targetable", "_check_X", "_victim",
    "_known_bounds", "_resolved", "_with", "_n_at_a_time",
)  # fmt: skip


def has(cls, name):
    return name in inspect.signature(cls).parameters


def ids(classes):
    return [pytest.param(cls, id=cls.__name__) for cls in classes]


def per_code_path(*names, classes=ATTACKS):
    """Return a decorator that gives a test attacks by the code paths of the named methods."""
    return each_code_path(classes, *names)


def norms_on(data_of_default_run):
    """Return a decorator: `every_norm` on the table and on images, one of which is slow."""

    def decorate(test):
        params = [
            pytest.param(
                data,
                cls,
                norm,
                id=f"{data}-{cls.__name__}-{norm:g}",
                marks=() if data == data_of_default_run and now else pytest.mark.slow,
            )
            for data in ("table", "images")
            for cls, norm, now in _norms(test)
        ]
        return pytest.mark.parametrize(("problem", "cls", "norm"), params, indirect=["problem"])(
            test
        )

    return decorate


def every_norm(test):
    """Give a test each class in each norm; others than its own are in the default run at times."""
    return _in_norms(test, _norms(test))


def default_norm(test):
    """Give a test each class in each norm; the default run has only that of each class."""
    return _in_norms(test, [(cls, norm, _is_own(cls, norm)) for cls, norm, _ in _norms(test)])


def _in_norms(test, norms):
    params = [
        pytest.param(
            cls, norm, id=f"{cls.__name__}-{norm:g}", marks=() if now else pytest.mark.slow
        )
        for cls, norm, now in norms
    ]
    return pytest.mark.parametrize(("cls", "norm"), params)(test)


def _norms(test):
    """Return classes with their norms, and whether they are for the default run of a test."""
    return [
        (
            cls,
            norm,
            _is_own(cls, norm) or is_dealt(f"{cls.__name__} {norm:g}", test.__name__),
        )
        for cls in ATTACKS
        for norm in cls.supported_norms
    ]


def _is_own(cls, norm):
    return norm == float(cls().norm)


every_attack = pytest.mark.parametrize("cls", ids(ATTACKS))
WHITE_BOX = [cls for cls in ATTACKS if cls().access not in ("scores", "labels")]
white_box = pytest.mark.parametrize("cls", ids(WHITE_BOX))
#: Those that only ask questions; what is made of several attacks may do more where it can.
ASKING = [cls for cls in ATTACKS if cls not in WHITE_BOX and not cls.whole_runs]
black_box = pytest.mark.parametrize("cls", ids(ASKING))
minimal = pytest.mark.parametrize("cls", ids(cls for cls in ATTACKS if cls().minimal))
WITH_OBJECTIVE = [cls for cls in ATTACKS if has(cls, "objective")]
with_objective = pytest.mark.parametrize("cls", ids(WITH_OBJECTIVE))
WITH_START = [cls for cls in ATTACKS if has(cls, "random_start")]
with_start = pytest.mark.parametrize("cls", ids(WITH_START))


def make(cls, *args, settings=CHEAP, **kwargs):
    """Return an attack that is cheaper than its defaults."""
    parameters = inspect.signature(cls).parameters
    for name, value in settings.items():
        if name in parameters and name not in kwargs:
            default = parameters[name].default
            kwargs[name] = value if default is None else min(default, value)
    # what is made of others is as cheap as they are
    if "attack" in parameters:
        kwargs.setdefault("attack", PGD(n_steps=min(settings["n_steps"], 10)))
    if "attacks" in parameters:
        member = PGD(n_steps=2 * settings["n_steps"])
        kwargs = {"version": "custom", "attacks": [member], **kwargs}
    return cls(*args, **kwargs)


def able(cls, *args, **kwargs):
    """Return an attack that is cheaper than its defaults, and does what it is out for."""
    return make(cls, *args, settings=ABLE, **kwargs)


def scaled(norm, eps):
    """Return a radius of a like effect; in the 0-norm it is a number of features."""
    return 4 if norm == 0 else eps


def randomised(cls):
    """Return the parameters that turn on the randomness of an attack that has any."""
    return {"random_start": "uniform"} if has(cls, "random_start") else {}
