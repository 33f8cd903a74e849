"""The randomness of every attack: by its seed alone, whatever ran before or beside it."""
# ruff: noqa: NPY002 (the global generator is what some of these tests are about)

import random

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from promises import (
    WITH_START,
    every_attack,
    every_norm,
    make,
    per_code_path,
    randomised,
    scaled,
    with_start,
)


@pytest.fixture
def global_state():
    """Put the global generators back after a test that moves them."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    yield
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])
    random.setstate(states[2])


@every_norm
def test_fixed_seed_gives_the_same_bits_whatever_ran_before(cls, norm, problem, global_state):
    X, y = problem.X[:10], problem.y[:10]

    def attack():
        return make(
            cls,
            problem.net,
            norm=norm,
            eps=scaled(norm, 0.3),
            clip=None,
            random_state=7,
            **randomised(cls),
        )

    first = attack()
    one = first.generate(X, y)
    assert_array_equal(first.generate(X, y), one)
    torch.manual_seed(123)
    np.random.seed(123)
    random.seed(123)
    attack().generate(problem.X[10:30], problem.y[10:30])
    assert_array_equal(attack().generate(X, y), one)


@every_attack
def test_global_generators_are_not_moved(cls, images, global_state):
    torch.manual_seed(1)
    np.random.seed(2)
    random.seed(3)
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    target = "random" if cls.targetable else None
    attack = make(
        cls, images.net, eps=0.3, clip=(0, 1), random_state=0, target=target, **randomised(cls)
    )
    attack.fit(images.X[:20], images.y[:20]).generate(images.X[:10])
    attack.perturb(images.net.train(), torch.tensor(images.X[:10]))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert_array_equal(np.random.get_state()[1], states[1][1])
    assert np.random.get_state()[2:] == states[1][2:]
    assert random.getstate() == states[2]


@pytest.mark.parametrize("start", ["uniform", "gaussian"])
@with_start
def test_seeds_differ_where_the_start_is_random(cls, start, table):
    def run(start, seed):
        # a step far too short to reach the border hides nothing of the start
        attack = make(
            cls,
            table.net,
            eps=0.3,
            clip=None,
            random_start=start,
            random_state=seed,
            step_size=1e-3,
        )
        return attack.generate(table.X[:10])

    assert not np.array_equal(run(start, 0), run(start, 1))
    assert_array_equal(run("none", 0), run("none", 1))


@per_code_path("generate", "run", "_draw_seed", "_resolved", classes=WITH_START)
def test_random_state_instance_and_none(cls, table):
    def attack(state):
        return make(
            cls,
            table.net,
            eps=0.3,
            clip=None,
            random_start="uniform",
            random_state=state,
            step_size=1e-3,
        )

    X = table.X[:5]
    one = attack(np.random.RandomState(0))
    two = attack(np.random.RandomState(0))
    first, second = one.generate(X), one.generate(X)
    assert not np.array_equal(first, second)
    assert_array_equal(two.generate(X), first)
    assert not np.array_equal(attack(None).generate(X), attack(None).generate(X))


def assert_batch_size_and_order_change_nothing(cls, norm, target, problem):
    X, y = problem.X[:5].astype(np.float64), problem.y[:5]
    model = problem.net.double()  # in float32 rounding may turn the sign of a tiny gradient

    def run(X, y, batch_size):
        attack = make(
            cls,
            model,
            norm=norm,
            eps=scaled(norm, 0.3),
            clip=None,
            target=target,
            random_state=3,
            batch_size=batch_size,
            **randomised(cls),
        )
        return attack.generate(X, y)

    whole = run(X, y, 256)
    order = np.random.RandomState(0).permutation(len(X))
    if cls.couples_batch:
        assert_allclose(run(X[order], y[order], 256), whole[order], atol=1e-9)
        return
    assert_allclose(run(X, y, 1), whole, atol=1e-9)
    assert_allclose(run(X[order], y[order], 3), whole[order], atol=1e-9)


@every_norm
def test_batch_size_and_order_change_nothing(cls, norm, problem):
    assert_batch_size_and_order_change_nothing(cls, norm, None, problem)


@every_norm
def test_batch_size_and_order_change_nothing_about_targets(cls, norm, table):
    if not cls.targetable:
        pytest.skip("chooses the target itself")
    assert_batch_size_and_order_change_nothing(cls, norm, "random", table)


@pytest.mark.slow
@every_norm
def test_batch_size_and_order_change_nothing_about_targets_of_images(cls, norm, images):
    if not cls.targetable:
        pytest.skip("chooses the target itself")
    assert_batch_size_and_order_change_nothing(cls, norm, "random", images)
