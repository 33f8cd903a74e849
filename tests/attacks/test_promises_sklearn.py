"""Every attack is a transformer of scikit-learn."""

import inspect
import pickle
import re
from functools import cache

import pytest
from numpy.testing import assert_array_equal
from promises import (
    ATTACKS,
    CHEAPEST,
    every_attack,
    every_norm,
    make,
    scaled,
)
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.utils.estimator_checks import estimator_checks_generator, parametrize_with_checks


def test_there_are_attacks():
    assert len(ATTACKS) >= 4


@every_norm
def test_pickle_and_clone(cls, norm, table):
    assert_pickle_and_clone_do_the_same(cls, norm, table)


@pytest.mark.slow
@every_norm
def test_pickle_and_clone_for_images(cls, norm, images):
    assert_pickle_and_clone_do_the_same(cls, norm, images)


def assert_pickle_and_clone_do_the_same(cls, norm, problem):
    attack = make(cls, problem.model, norm=norm, eps=scaled(norm, 0.3), random_state=0).fit(
        problem.X
    )
    expected = attack.transform(problem.X[:4])
    assert_array_equal(pickle.loads(pickle.dumps(attack)).transform(problem.X[:4]), expected)
    twin = clone(make(cls, norm=norm, eps=scaled(norm, 0.3), random_state=0))
    same = make(cls, norm=norm, eps=scaled(norm, 0.3), random_state=0)
    assert repr(twin.get_params()) == repr(same.get_params())
    module = clone(
        make(cls, problem.net, norm=norm, eps=scaled(norm, 0.3), random_state=0, clip=None)
    )
    assert module.estimator is not problem.net
    assert_array_equal(
        module.generate(problem.X[:4]),
        make(
            cls, problem.net, norm=norm, eps=scaled(norm, 0.3), random_state=0, clip=None
        ).generate(problem.X[:4]),
    )


@every_attack
def test_get_and_set_params(cls):
    attack = cls()
    parameters = attack.get_params(deep=False)
    assert set(parameters) == set(inspect.signature(cls).parameters)
    assert "common" not in parameters
    for name in ("norm", "eps", "clip", "target", "mask", "batch_size", "random_state", "device"):
        assert name in parameters
    assert attack.set_params(eps=0.25, norm=2) is attack
    assert attack.get_params()["eps"] == 0.25
    assert "eps=0.25" in repr(attack)
    with pytest.raises(ValueError, match="Invalid parameter 'epsilon'"):
        attack.set_params(epsilon=1)
    with pytest.raises(TypeError, match="epsilon"):
        make(cls, epsilon=1)
    with pytest.raises(TypeError):
        make(cls, None, 0.3)
    nested = make(cls, LogisticRegression()).set_params(estimator__C=3.0)
    assert nested.estimator.C == 3.0


@every_attack
def test_every_parameter_is_documented(cls):
    for name in inspect.signature(cls).parameters:
        assert re.search(rf"^\s*{name} : ", cls.__doc__, re.MULTILINE), name
    assert "%(" not in cls.__doc__


IN_OTHER_NORMS = [
    make(cls, norm=norm) for cls in ATTACKS for norm in cls.supported_norms if norm != cls().norm
]


@cache
def checks_of(cls):
    """Return the checks, each with its estimator, by their names."""
    found = {}
    for attack, check in estimator_checks_generator(make(cls, settings=CHEAPEST)):
        found["-".join([check.func.__name__, *check.keywords])] = attack, check
    return found


@pytest.mark.parametrize("label", checks_of(ATTACKS[0]))
@every_attack
def test_scikit_learn_checks(cls, label):
    attack, check = checks_of(cls)[label]
    check(attack)


@pytest.mark.slow
@parametrize_with_checks(IN_OTHER_NORMS)
def test_scikit_learn_checks_in_other_norms(estimator, check):
    check(estimator)


@every_attack
def test_scikit_learn_checks_are_many(cls):
    assert len(checks_of(cls)) >= 45
    assert checks_of(cls).keys() == checks_of(ATTACKS[0]).keys()
