"""Transport costs against their formulas."""

import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from robustsk.losses import smoothed_cost, transport_cost, transport_cost_gradient, truncated_cost

NORMS = [1, 2, math.inf]
COSTS = torch.linspace(0, 3, 301, dtype=torch.float64)


@pytest.fixture
def delta():
    return torch.from_numpy(np.random.default_rng(0).normal(size=(5, 2, 3)))


def test_costs_by_hand(delta):
    flat = delta.numpy().reshape(5, 6)
    assert_allclose(transport_cost(delta, 1), np.abs(flat).sum(1))
    assert_allclose(transport_cost(delta, 2), 0.5 * (flat**2).sum(1))
    assert_allclose(transport_cost(delta, math.inf), np.abs(flat).max(1))


@pytest.mark.parametrize("norm", NORMS)
def test_gradient_is_that_of_the_cost(delta, norm):
    leaf = delta.clone().requires_grad_(True)
    (expected,) = torch.autograd.grad(transport_cost(leaf, norm).sum(), leaf)
    assert_allclose(transport_cost_gradient(delta, norm), expected)


def test_the_first_of_several_largest_counts():
    delta = torch.tensor([[1.0, -2.0, 2.0], [0.0, 0.0, 0.0], [-3.0, 3.0, -3.0]])
    expected = [[0, -1, 0], [0, 0, 0], [-1, 0, 0]]
    assert_allclose(transport_cost_gradient(delta, math.inf), expected)


def test_smoothed_cost():
    eps = 1.25
    assert_allclose(smoothed_cost(COSTS, eps, tau=1), COSTS)
    inside = COSTS.lt(eps)
    at_the_border = smoothed_cost(torch.tensor([eps - 1e-9, eps, eps + 1e-9]).double(), eps, 0.1)
    assert_allclose(at_the_border, eps, atol=1e-7)
    last = None
    for tau in (0.01, 0.1, 0.5, 1.0, 2.0):
        value = smoothed_cost(COSTS, eps, tau)
        assert_allclose(value[inside], COSTS[inside])
        slope = np.diff(value[~inside]) / np.diff(COSTS[~inside])
        assert_allclose(slope, 1 / tau)
        assert bool((value >= COSTS - 1e-12).all()) == (tau <= 1)
        assert last is None or (value <= last + 1e-12).all()  # not increasing in tau
        last = value
    far = smoothed_cost(COSTS[COSTS.gt(eps + 0.005)], eps, 1e-9)
    assert far.min() > 1e6


def test_truncated_cost():
    value = truncated_cost(COSTS, 1.0)
    assert_allclose(value[COSTS <= 1.0], COSTS[COSTS <= 1.0])
    assert torch.isinf(value[COSTS > 1.0]).all()


def test_bad_parameters(delta):
    for function in (transport_cost, transport_cost_gradient):
        with pytest.raises(ValueError, match="norm"):
            function(delta, 3)
    with pytest.raises(ValueError, match="tau"):
        smoothed_cost(COSTS, 1.0, 0.0)
