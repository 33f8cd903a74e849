"""Wasserstein duality against linear programs, and transport against assignments."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.optimize import linear_sum_assignment, linprog
from scipy.spatial.distance import cdist
from scipy.stats import wasserstein_distance
from sklearn.exceptions import ConvergenceWarning
from torch import nn

from robustsk.losses import smoothed_cost
from robustsk.metrics import sinkhorn_distance, wasserstein_dual, wrm_certificate

SLOPES = np.array([1.0, 3.0])


def primal(values, costs, budget):
    """Return the value of the linear program over weights of candidates."""
    values, costs = np.asarray(values, float), np.asarray(costs, float)
    n, m = values.shape
    finite = np.isfinite(costs)
    result = linprog(
        -values.ravel() / n,
        A_ub=np.where(finite, costs, 0).reshape(1, -1) / n,
        b_ub=[budget],
        A_eq=np.kron(np.eye(n), np.ones(m)),
        b_eq=np.ones(n),
        bounds=[(0, None if ok else 0) for ok in finite.ravel()],
    )
    return -result.fun


def dual(values, costs, budget, lam):
    costs = np.where(np.isfinite(costs), costs, np.inf)
    inner = np.where(np.isinf(costs), -np.inf, values - lam * np.nan_to_num(costs, posinf=0))
    return lam * budget + inner.max(1).mean()


def candidates(*sizes, slopes=SLOPES):
    sizes = np.array(sizes, float)
    return np.outer(slopes, sizes), np.tile(sizes, (len(slopes), 1))


@pytest.mark.parametrize(
    ("budget", "value", "least", "most"),
    [(0.25, 0.75, 3, 3), (0.5, 1.5, 1, 3), (0.75, 1.75, 1, 1), (1.0, 2.0, 0, 1)],
)
def test_two_samples_with_slopes(budget, value, least, most):
    values, costs = candidates(0, 0.5, 1)
    worst = wasserstein_dual(values, costs, budget)
    assert worst.value == pytest.approx(value)
    assert least <= worst.lam <= most
    assert primal(values, costs, budget) == pytest.approx(value)
    assert dual(values, costs, budget, worst.lam) == pytest.approx(value)


@pytest.mark.parametrize("seed", range(8))
def test_primal_and_dual_agree(seed):
    rng = np.random.default_rng(seed)
    values, costs = rng.normal(size=(5, 7)), rng.uniform(0, 2, (5, 7))
    costs[:, 0] = 0
    costs[rng.random((5, 7)) < 0.2] = np.inf
    costs[:, 0] = 0
    for budget in (0.0, 0.05, 0.3, 1.0, 5.0):
        value, lam = wasserstein_dual(values, costs, budget)
        assert value == pytest.approx(primal(values, costs, budget))
        assert dual(values, costs, budget, lam) == pytest.approx(value)
        for other in (0.5 * lam, lam + 0.3):
            assert dual(values, costs, budget, other) >= value - 1e-9


def test_infinite_cost_outside_is_adversarial_training():
    """With the budget of the radius itself, every sample takes the worst point of its ball."""
    rng = np.random.default_rng(0)
    values, costs = rng.normal(size=(6, 9)), rng.uniform(0, 1.0, (6, 9))
    costs[:, 0], costs[:, -3:] = 0, np.inf
    worst = wasserstein_dual(values, costs, 1.0)
    assert worst.value == pytest.approx(values[:, :-3].max(1).mean())


@pytest.mark.parametrize(("outside", "value"), [(2, 5.0), (5, 2.5), (10, 2.0), (50, 2.0)])
def test_cost_that_is_truncated_later(outside, value):
    """Losses ``min(a * d, 10)``, cost `d` up to 1 and `outside` beyond."""
    sizes = np.array([0, 1.0, 10.0])
    values = np.minimum(np.outer(SLOPES, sizes), 10)
    costs = np.tile([0, 1, outside], (2, 1))
    assert wasserstein_dual(values, costs, 1.0).value == pytest.approx(value)
    assert primal(values, costs, 1.0) == pytest.approx(value)


@pytest.mark.parametrize(("tau", "value"), [(0.1, 2.0), (0.5, 2.25), (1, 3.0), (2, 6.0)])
def test_smoothed_cost(tau, value):
    sizes = np.array([0, 1.0, 1e7])
    values = np.outer(SLOPES, sizes)
    costs = np.tile(smoothed_cost(torch.tensor(sizes), 1.0, tau).numpy(), (2, 1))
    worst = wasserstein_dual(values, costs, 1.0)
    assert worst.value == pytest.approx(value, rel=1e-5)
    if tau > 1 / 3:
        assert worst.lam == pytest.approx(3 * tau, rel=1e-5)


def test_quadratic_cost_and_its_derivative():
    """Loss `a @ x`, cost half the squared distance, ``||a|| = 2``."""
    t = np.linspace(0, 4, 40001)
    values, costs, budget = 2 * t[None], t[None] ** 2 / 2, 0.3
    value, lam = wasserstein_dual(values, costs, budget)
    assert value == pytest.approx(1.54919, abs=1e-5)
    assert lam == pytest.approx(2.58199, abs=1e-3)
    for at in (1.0, 2.0, 4.0):
        slope = dual(values, costs, budget, at + 1e-3) - dual(values, costs, budget, at - 1e-3)
        best = t[np.argmax(values - at * costs)]
        assert slope / 2e-3 == pytest.approx(budget - best**2 / 2, abs=1e-3)


def test_what_cannot_be():
    with pytest.raises(ValueError, match="budget"):
        wasserstein_dual([[1.0], [2.0]], [[1.0], [0.5]], 0.5)
    assert wasserstein_dual([[1.0], [2.0]], [[1.0], [0.5]], 0.75) == (1.5, 0.0)
    with pytest.raises(ValueError, match="same shape"):
        wasserstein_dual([[1.0]], [[1.0, 2.0]], 1)
    with pytest.raises(ValueError, match="costs"):
        wasserstein_dual([[1.0]], [[-1.0]], 1)
    with pytest.raises(ValueError, match="finite cost"):
        wasserstein_dual([[1.0]], [[np.inf]], 1)


# --- Sinkhorn ------------------------------------------------------------------------


@pytest.mark.parametrize("p", [1, 2])
def test_sinkhorn_tends_to_the_assignment(p):
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(20, 3)), rng.normal(1, 2, (20, 3))
    cost = cdist(X, Y) ** p
    exact = cost[linear_sum_assignment(cost)].mean() ** (1 / p)
    errors = [
        sinkhorn_distance(X, Y, p=p, reg=reg, max_iter=5000) - exact for reg in (0.1, 0.03, 0.005)
    ]
    assert errors[0] > errors[1] > errors[2] > -1e-3 * exact
    assert errors[2] < 0.01 * exact


def test_sinkhorn_of_sets_of_different_size():
    rng = np.random.default_rng(1)
    X, Y = rng.normal(size=(15, 1)), rng.normal(2, 1, (24, 1))
    exact = wasserstein_distance(X[:, 0], Y[:, 0])
    assert sinkhorn_distance(X, Y, reg=0.003, max_iter=5000) == pytest.approx(exact, rel=0.01)
    assert sinkhorn_distance(Y, X, reg=0.003, max_iter=5000) == pytest.approx(exact, rel=0.01)


def test_sinkhorn_of_images_and_of_the_same():
    X = np.random.default_rng(0).random((6, 1, 4, 4))
    shifted = sinkhorn_distance(X, X + 0.5)
    assert shifted == pytest.approx(0.5 * 4, rel=1e-3)
    assert sinkhorn_distance(X, X) < 0.01
    assert sinkhorn_distance(X[:1], X[:1]) == 0


def test_sinkhorn_says_what_is_wrong():
    X = np.random.default_rng(0).random((30, 2))
    with pytest.raises(ValueError, match="different shapes"):
        sinkhorn_distance(X, X[:, :1])
    for params in ({"p": 0.5}, {"reg": 0}):
        with pytest.raises(ValueError, match=next(iter(params))):
            sinkhorn_distance(X, X, **params)
    with pytest.warns(ConvergenceWarning, match="max_iter"):
        sinkhorn_distance(X, X**3, reg=1e-3, max_iter=1)


# --- certificate ---------------------------------------------------------------------


def test_certificate_of_a_linear_loss():
    """``gamma * rho + ||a|| ** 2 / (4 * gamma)``, at best ``||a|| * sqrt(rho)``."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2, bias=False).double()
    a = model.weight[0].detach().numpy()
    X, rho = np.random.default_rng(0).normal(size=(7, 3)), 0.3
    common = {"rho": rho, "objective": lambda logits, y: logits[:, 0], "clip": None}
    bounds = []
    best = np.linalg.norm(a) / (2 * np.sqrt(rho))
    for gamma in (0.5 * best, best, 2 * best):
        bound = wrm_certificate(model, X, np.zeros(7, int), gamma=gamma, **common)
        expected = (X @ a).mean() + gamma * rho + a @ a / (4 * gamma)
        assert bound == pytest.approx(expected)
        bounds.append(bound)
    assert min(bounds) == bounds[1] == pytest.approx((X @ a).mean() + np.linalg.norm(a) * rho**0.5)


def test_certificate_holds_for_moved_samples():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(20, 2)), np.arange(20) % 2
    rhos = np.array([0.0, 0.1, 0.4])
    bounds = wrm_certificate(model, X, y, rho=rhos, gamma=2.0, clip=None)
    assert_allclose(np.diff(bounds), 2.0 * np.diff(rhos))
    loss = nn.CrossEntropyLoss()
    for rho, bound in zip(rhos, bounds, strict=True):
        for _ in range(20):
            delta = rng.normal(size=X.shape)
            delta *= np.sqrt(rho / (delta**2).sum(1).mean())
            with torch.no_grad():
                moved = loss(model(torch.tensor(X + delta)), torch.tensor(y))
            assert float(moved) <= bound + 1e-9
