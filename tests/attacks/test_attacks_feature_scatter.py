"""Feature scattering: the transport between two batches, and its ascent."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.optimize import linear_sum_assignment
from sklearn.utils import get_tags
from torch import nn

from robustsk import PGD, FeatureScatter
from robustsk.attacks.gradient.feature_scatter import cosine_cost
from robustsk.losses.wasserstein import transport_plan


@pytest.fixture
def costs():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 9, 5))
    unit_a, unit_b = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (a, b))
    return torch.as_tensor(a), torch.as_tensor(b), np.maximum(0, 1 - unit_a @ unit_b.T)


def test_cost(costs):
    a, b, expected = costs
    assert_allclose(cosine_cost(a, b), expected, atol=1e-12)
    assert_allclose(cosine_cost(3 * a, 0.1 * b), expected, atol=1e-12)


@pytest.mark.dealt
@pytest.mark.parametrize("reg", [0.01, 0.1, 1.0])
def test_plan_has_uniform_marginals_and_solves_the_problem(costs, reg):
    cost = torch.as_tensor(costs[2])
    plan = transport_plan(cost, reg, n_iter=5000, tol=1e-13)
    assert_allclose(plan.sum(0), 1 / 9, rtol=1e-9)
    assert_allclose(plan.sum(1), 1 / 9, rtol=1e-3)  # slow for little entropy
    # of the form diag(u) K diag(v), which only the solution is
    scaled = torch.log(plan) + cost / reg
    scaled = scaled - scaled.mean(0) - scaled.mean(1, keepdim=True) + scaled.mean()
    assert_allclose(scaled, 0, atol=1e-8)


def test_distance_without_entropy_is_that_of_the_best_assignment(costs):
    rows, columns = linear_sum_assignment(costs[2])
    expected = costs[2][rows, columns].mean()
    cost = torch.as_tensor(costs[2])
    plan = transport_plan(cost, 2e-3, n_iter=5000, tol=1e-12)
    assert (plan * cost).sum() == pytest.approx(expected, rel=1e-3)


def test_a_batch_is_at_no_distance_from_itself():
    a = torch.eye(6, dtype=torch.float64) + 0.1
    cost = cosine_cost(a, a)
    plan = transport_plan(cost, 0.01)
    assert_allclose(plan, np.eye(6) / 6, atol=1e-9)
    assert (plan * cost).sum() < 1e-9


def test_order_does_not_matter(costs):
    a, b, _ = costs
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    found = []
    for other in (b, b[order]):
        cost = cosine_cost(a, other)
        found.append((transport_plan(cost, 0.05, 5000, 1e-12) * cost).sum().item())
    assert found[0] == pytest.approx(found[1], rel=1e-9)


def test_iterations_end(costs):
    """By default as soon as the potentials hardly change, and in any case."""
    cost = torch.as_tensor(costs[2])
    once = transport_plan(cost, 0.5, n_iter=1)
    assert torch.equal(transport_plan(cost, 0.5, tol=1e9), once)
    assert_allclose(once.sum(0), 1 / 9)
    twice = transport_plan(cost, 0.5, n_iter=2, tol=0.0)
    assert not torch.equal(once, twice)
    # one iteration by the textbook, without logarithms
    kernel = np.exp(-costs[2] / 0.5)
    u = 1 / 9 / kernel.sum(1)
    v = 1 / 9 / (kernel.T @ u)
    assert_allclose(once, u[:, None] * kernel * v)


def test_small_entropy_does_not_underflow():
    cost = torch.rand(8, 8, generator=torch.Generator().manual_seed(0)) * 2
    plan = transport_plan(cost, 1e-4)
    assert torch.isfinite(plan).all()
    assert plan.sum() == pytest.approx(1, rel=1e-4)


def test_masses_stand_for_copies(costs):
    a, b, _ = (torch.as_tensor(v) for v in costs)
    copies = torch.tensor([1, 2, 1, 3, 1, 1, 2, 1, 1])
    cost = cosine_cost(a, b)
    weighted = transport_plan(cost, 0.1, 30, 0.01, copies)
    rows = torch.arange(9).repeat_interleave(copies)
    repeated = transport_plan(cost[rows][:, rows], 0.1, 30, 0.01)
    merged = torch.zeros(9, 13, dtype=torch.float64).index_add(0, rows, repeated)
    merged = torch.zeros(9, 9, dtype=torch.float64).index_add(1, rows, merged)
    assert_allclose(merged, weighted, rtol=1e-9)


# --- the attack ----------------------------------------------------------------------


@pytest.fixture
def problem(seeded):
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    return net, torch.randn(10, 6, dtype=torch.float64), torch.arange(10) % 4


def distance(net, x, z, reg=0.01):
    cost = cosine_cost(net(x), net(z))
    return (transport_plan(cost, reg) * cost).sum()


@pytest.mark.parametrize("n_steps", [1, 4])
def test_distance_rises(problem, n_steps):
    net, x, y = problem
    start = FeatureScatter(eps=0.3, step_size=0.0).perturb(net, x, y, seed=3)
    end = FeatureScatter(eps=0.3, n_steps=n_steps).perturb(net, x, y, seed=3)
    assert distance(net, x, end) > 1.5 * distance(net, x, start)
    assert (end - x).abs().max() <= 0.3 + 1e-12
    assert (end - start).abs().max() > 0.3  # a step of eps, cut off by the ball


def test_labels_do_not_matter(problem):
    net, x, y = problem
    attack = FeatureScatter(eps=0.3, n_steps=2)
    assert torch.equal(
        attack.perturb(net, x, y, seed=3), attack.perturb(net, x, (y + 1) % 4, seed=3)
    )


def test_company_matters(problem):
    net, x, y = problem
    attack = FeatureScatter(norm=2, eps=0.3)
    whole = attack.perturb(net, x, y, seed=3)
    part = attack.perturb(net, x[:3], y[:3], seed=3)
    assert not np.allclose(whole[:3], part)
    assert FeatureScatter.couples_batch
    assert get_tags(FeatureScatter()).non_deterministic
    assert not get_tags(PGD()).non_deterministic


@pytest.mark.dealt
@pytest.mark.parametrize("detach", [False, True])
def test_gradient(problem, detach):
    """Through the iterations, against differences of the distance; or with a fixed plan."""
    net, x, y = problem
    attack = FeatureScatter(norm=2, eps=1.0, step_size=1e-3, detach_plan=detach, reg=0.2, tol=1e-12)
    start = FeatureScatter(norm=2, eps=1.0, step_size=0.0).perturb(net, x, y, seed=3)
    moved = attack.perturb(net, x, y, seed=3) - start
    plan = transport_plan(cosine_cost(net(x), net(start)).detach(), 0.2, tol=1e-12)

    def value(z):
        cost = cosine_cost(net(x), net(z))
        return ((plan if detach else transport_plan(cost, 0.2, tol=1e-12)) * cost).sum()

    numeric = torch.zeros_like(x)
    with torch.no_grad():
        for i, j in np.ndindex(*x.shape):
            step = torch.zeros_like(x)
            step[i, j] = 1e-6
            numeric[i, j] = (value(start + step) - value(start - step)) / 2e-6
    expected = 1e-3 * numeric / numeric.norm(dim=1, keepdim=True)
    assert_allclose(moved, expected, atol=1e-8)


def test_contributions_are_reported(problem):
    net, x, y = problem
    _, info = FeatureScatter(eps=0.3, step_size=0.0).perturb(net, x, y, seed=3, return_info=True)
    start = FeatureScatter(eps=0.3, step_size=0.0).perturb(net, x, y, seed=3)
    assert info["transport"].shape == (10,)
    assert info["transport"].sum() == pytest.approx(distance(net, x, start).item(), rel=1e-9)


def test_what_has_fooled_the_model_is_kept(table):
    """In evaluation, where labels matter again."""
    X, y = table.X[:60], table.y[:60]
    attack = FeatureScatter(table.net, eps=0.6, n_steps=5, clip=None, random_state=0)
    clean_errors = table.net(torch.as_tensor(X)).argmax(1).numpy() != y
    X_adv = attack.generate(X, y)
    errors = table.net(torch.as_tensor(X_adv)).argmax(1).numpy() != y
    assert errors[clean_errors].all()
    assert errors.mean() > clean_errors.mean() + 0.1


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"reg": 0.0}, "reg must be greater than 0"),
        ({"reg": -1.0}, "reg must be"),
        ({"n_steps": 0}, "n_steps must be"),
        ({"n_sinkhorn": 0}, "n_sinkhorn must be"),
        ({"tol": -1.0}, "tol must be"),
        ({"random_start": "normal"}, "random_start must be"),
        ({"target": 1}, "FeatureScatter uses no labels"),
    ],
)
def test_bad_parameters(table, params, message):
    with pytest.raises(ValueError, match=message):
        FeatureScatter(table.net, clip=None, **params).generate(table.X[:5])
