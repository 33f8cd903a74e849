"""What the suites of promises share: the attacks, settings that make them cheap, marks.

What a class can break by itself is looked at in every class and each of its norms; where base
classes decide, those that have a code path of their own are enough (`per_code_path`). The default
run has a share of that, which `code_paths.py` deals out.
"""

import inspect

import numpy as np
import pytest
from code_paths import each_code_path

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


def has(cls, name):
    return name in inspect.signature(cls).parameters


def ids(classes):
    return [pytest.param(cls, id=cls.__name__) for cls in classes]


def per_code_path(*names, classes=ATTACKS):
    """Return a decorator that gives a test attacks by the code paths of the named methods."""
    return each_code_path(classes, *names)


every_norm = pytest.mark.parametrize(
    ("cls", "norm"),
    [
        pytest.param(cls, norm, id=f"{cls.__name__}-{norm:g}")
        for cls in ATTACKS
        for norm in cls.supported_norms
    ],
)
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
