"""DynamicPGD: the criterion of convergence, and when it stops a sample."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn
from torch.nn import functional as F

from robustsk import PGD, DynamicPGD
from robustsk.attacks.gradient.dynamic import first_order_condition
from robustsk.attacks.threat import Ball

DUAL = {np.inf: 1, 2.0: 2, 1.0: np.inf}


@pytest.fixture
def points(seeded):
    """Return samples, points in the ball around them, and gradients."""
    x = torch.randn(200, 6, dtype=torch.float64)
    return x, torch.randn_like(x), torch.randn_like(x)


@pytest.mark.parametrize("norm", DUAL)
def test_value(points, norm):
    x, step, gradient = points
    ball = Ball(x, norm, 0.4)
    z = ball.project(x + step)
    moved, g = (z - x).numpy(), gradient.numpy()
    expected = 0.4 * np.linalg.norm(g, ord=DUAL[norm], axis=1) - (moved * g).sum(1)
    found = first_order_condition(ball, z, gradient)
    assert_allclose(found, expected, atol=1e-12)
    assert (found >= 0).all()
    assert (found > 1e-3).double().mean() > 0.9  # hardly any of these is optimal


@pytest.mark.parametrize("norm", DUAL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_in_the_steepest_point_only(points, norm, dtype):
    x, _, gradient = (v.to(dtype) for v in points)
    ball = Ball(x, norm, 0.4)
    if norm == np.inf:
        best = 0.4 * gradient.sign()
    elif norm == 2:
        best = 0.4 * gradient / gradient.norm(dim=1, keepdim=True)
    else:
        top = gradient.abs().argmax(1, keepdim=True)
        best = torch.zeros_like(x).scatter(1, top, 0.4 * gradient.gather(1, top).sign())
    tolerance = 0 if norm == np.inf else 1e-5
    assert first_order_condition(ball, x + best, gradient).max() <= tolerance
    # where the gradient is zero, the point does not matter
    nowhere = torch.zeros_like(gradient)
    assert (first_order_condition(ball, x + 0.1 * best, nowhere) == 0).all()
    if norm == np.inf:
        off = best.clone()
        off[:, 2] *= 0.9
        slack = first_order_condition(ball, x + off, gradient)
        assert_allclose(slack, 0.04 * gradient[:, 2].abs(), rtol=1e-3, atol=1e-5)


def test_radius_per_feature(points):
    x, step, gradient = points
    eps = torch.tensor([0.1, 0.0, 0.4, 0.2, 0.0, 1.0], dtype=torch.float64)
    ball = Ball(x, np.inf, eps)
    z = ball.project(x + step)
    expected = (eps * gradient.abs()).sum(1) - ((z - x) * gradient).sum(1)
    assert_allclose(first_order_condition(ball, z, gradient), expected, atol=1e-12)


# --- when it stops -------------------------------------------------------------------


@pytest.fixture
def problem(seeded):
    net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)).double()
    return net, torch.randn(40, 6, dtype=torch.float64), torch.arange(40) % 3


@pytest.mark.parametrize("keep", ["last", "worst", "first"])
def test_without_criterion_it_is_pgd(problem, keep):
    net, x, y = problem
    common = {"eps": 0.3, "n_steps": 6}
    attack = DynamicPGD(criterion=-np.inf, **common)
    found, info = attack.perturb(net, x, y, seed=3, keep=keep, return_info=True)
    expected = PGD(**common).perturb(net, x, y, seed=3, keep=keep)
    if keep == "last":
        assert torch.equal(found, expected)
        assert (info["n_steps_taken"] == 6).all()
    wrong = [net(z).argmax(1) != y for z in (found, expected)]
    assert torch.equal(*wrong)


def test_a_lax_criterion_leaves_the_start(problem):
    net, x, y = problem
    attack = DynamicPGD(criterion=np.inf, eps=0.3)
    start, info = attack.perturb(net, x, y, seed=3, return_info=True)
    assert (info["n_steps_taken"] == 0).all()
    assert torch.equal(start, PGD(eps=0.3, step_size=0.0).perturb(net, x, y, seed=3))


def test_samples_stop_where_the_criterion_says(problem):
    """Every sample, followed alone, step by step."""
    net, x, y = problem
    attack = DynamicPGD(criterion=0.05, eps=0.3, n_steps=8, step_size=0.06)
    found, info = attack.perturb(net, x, y, seed=3, return_info=True)
    z = PGD(eps=0.3, step_size=0.0).perturb(net, x, y, seed=3)
    taken = []
    for i in range(len(x)):
        point = z[i : i + 1]
        for step in range(9):
            leaf = point.clone().requires_grad_(True)
            gradient = torch.autograd.grad(F.cross_entropy(net(leaf), y[i : i + 1]), leaf)[0]
            c = 0.3 * gradient.abs().sum() - ((point - x[i]) * gradient).sum()
            if c <= 0.05 or step == 8:
                break
            point = point + 0.06 * gradient.sign()
            point = torch.minimum(torch.maximum(point, x[i] - 0.3), x[i] + 0.3)
        taken.append(step)
        assert_allclose(found[i], point[0], atol=1e-12)
    assert info["n_steps_taken"].tolist() == taken
    assert len(set(taken)) > 3
    stopped = info["n_steps_taken"] < 8
    assert (info["fosc"][stopped] <= 0.05).all()


def test_arrived_samples_stop(problem):
    """A linear model is done in the corner, which is where the gradient points throughout."""
    _, x, y = problem
    net = nn.Linear(6, 2).double()
    attack = DynamicPGD(eps=0.3, step_size=0.3, random_start="none", n_steps=10)
    _, info = attack.perturb(net, x, y % 2, return_info=True)
    assert (info["n_steps_taken"] == 1).all()
    assert (info["fosc"] == 0).all()


@pytest.mark.parametrize("least", [1, 3])
def test_steps_before_the_criterion(problem, least):
    net, x, y = problem
    params = {"criterion": 0.2, "eps": 0.3, "n_steps": 8, "step_size": 0.06}
    found, info = DynamicPGD(min_steps=least, **params).perturb(net, x, y, seed=3, return_info=True)
    assert info["n_steps_taken"].min() == least
    # then it goes on as one that starts from there
    plain = PGD(eps=0.3, n_steps=least, step_size=0.06)
    stopped = info["n_steps_taken"] == least
    assert_allclose(found[stopped], plain.perturb(net, x, y, seed=3)[stopped], atol=1e-12)
    assert (
        DynamicPGD(**params).perturb(net, x, y, seed=3, return_info=True)[1]["n_steps_taken"] == 0
    ).any()


def test_smaller_criterion_longer_way(problem):
    net, x, y = problem
    steps, losses = [], []
    for criterion in (0.5, 0.2, 0.05, 0.0):
        z, info = DynamicPGD(criterion=criterion, eps=0.3).perturb(
            net, x, y, seed=3, return_info=True
        )
        steps.append(info["n_steps_taken"].double().mean().item())
        losses.append(F.cross_entropy(net(z), y).item())
    assert steps == sorted(steps)
    assert steps[0] < steps[-1]
    assert losses == sorted(losses)


def test_what_has_fooled_the_model_is_kept(table):
    """Also by a sample that stops later, on the right side again."""
    X, y = table.X[:80], table.y[:80]
    clean_errors = table.net(torch.as_tensor(X)).argmax(1).numpy() != y
    for criterion in (np.inf, 0.3, 0.0):
        attack = DynamicPGD(table.net, criterion=criterion, eps=0.4, clip=None, random_state=0)
        X_adv = attack.generate(X, y)
        errors = table.net(torch.as_tensor(X_adv)).argmax(1).numpy() != y
        assert errors[clean_errors].all()


@pytest.mark.parametrize("criterion", [np.nan, None, "low"])
def test_bad_criterion(table, criterion):
    with pytest.raises(ValueError, match="criterion must be a number"):
        DynamicPGD(table.net, criterion=criterion, clip=None).generate(table.X[:5])
