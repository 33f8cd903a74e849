"""The ascent of Wasserstein risk minimisation in closed forms."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn

from robustsk.training import WRMAdversary


class Quadratic(nn.Module):
    """``h / 2 * x ** 2`` as the first of two logits."""

    def __init__(self, h):
        super().__init__()
        self.h = h

    def forward(self, x):
        return torch.cat([self.h / 2 * x**2, 0 * x], 1)


def first(logits, y):
    return logits[:, 0]


@pytest.mark.parametrize("n_steps", [1, 4, 15])
def test_linear_loss_is_solved_by_the_first_step(n_steps):
    a = torch.tensor([1.0, -2.0, 0.5]).double()
    model = nn.Linear(3, 2).double()
    with torch.no_grad():
        model.weight[0] = a
    x = torch.rand(5, 3).double()
    attack = WRMAdversary(gamma=0.4, n_steps=n_steps, objective=first, clip=None)
    assert_allclose(attack.perturb(model, x), x + a / 0.8)


@pytest.mark.parametrize("q", [0.5, 0.9])
def test_quadratic_loss(q):
    """The error shrinks by ``1 - (1 - q) / sqrt(t + 2)`` in step t."""
    h = 2.0
    x = torch.tensor([[0.7], [-1.0]]).double()
    attack = WRMAdversary(gamma=0.5 * h / q, objective=first, clip=None)
    best = x / (1 - q)
    ratio = np.prod([1 - (1 - q) / np.sqrt(t + 2) for t in range(15)])
    if q == 0.5:
        assert ratio == pytest.approx(0.0412469, abs=1e-6)
    error = best - attack.perturb(Quadratic(h), x)
    assert_allclose(error / (best - x * (1 + q)), ratio)


def test_stays_in_the_range():
    model = nn.Linear(3, 2).double()
    x = torch.rand(5, 3).double()
    z = WRMAdversary(gamma=0.001, clip=(0, 1)).perturb(model, x, torch.zeros(5).long())
    assert z.min() >= 0
    assert z.max() <= 1


def test_evaluation_is_in_the_ball():
    model = nn.Linear(3, 2)
    X = np.random.default_rng(0).random((5, 3), dtype=np.float32)
    attack = WRMAdversary(model, gamma=0.001, eps=0.1, random_state=0).fit(X)
    assert np.abs(attack.generate(X) - X).max() <= 0.1


@pytest.mark.parametrize("gamma", [0, -1.0, np.inf, "a"])
def test_bad_gamma(gamma):
    with pytest.raises(ValueError, match="gamma"):
        WRMAdversary(gamma=gamma).perturb(nn.Linear(3, 2), torch.rand(2, 3))
