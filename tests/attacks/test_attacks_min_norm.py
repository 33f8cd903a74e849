"""The quadratic programs of multi-objective attacks, against independent solutions."""

from itertools import combinations, permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from robustsk.attacks.multi_objective._simplex import (
    active_set,
    conflict_averse,
    frank_wolfe,
    kkt_gap,
    projected_gradient,
    simplex_projection,
    softmax_descent,
    task_penalty,
    two_tasks,
)

EXACT = [projected_gradient, active_set]
SOLVERS = [*EXACT, frank_wolfe]


def random_gradients(kind, n, m, seed=0):
    """Return gradients of shape (n, m, d), of one of several degrees of difficulty."""
    rng = np.random.default_rng(seed)
    g = rng.normal(size=(n, m, 6))
    if kind == "aligned":
        g += 1.0
    elif kind == "lengths":
        g *= 10 ** rng.uniform(-2, 2, (n, m, 1))
    elif kind == "ill-conditioned":
        g *= 10.0 ** -np.arange(6)
    elif kind == "zero in the hull":
        g = g[:, :, :2]
    elif kind == "nearly equal":
        g = rng.normal(size=(n, 1, 6)) + 1e-3 * g
    return torch.as_tensor(g)


KINDS = ["plain", "aligned", "lengths", "ill-conditioned", "zero in the hull", "nearly equal"]


def gram_of(g):
    return g @ g.mT


def value_of(Q, w):
    return torch.einsum("ni,nij,nj->n", w.double(), Q.double(), w.double())


def smallest_value(Q):
    """Return the least w'Qw over the simplex, from the stationary point of each support."""
    Q = Q.numpy()
    m = len(Q)
    best = np.inf
    for size in range(1, m + 1):
        for support in map(list, combinations(range(m), size)):
            system = np.ones((size + 1, size + 1))
            system[:size, :size] = Q[np.ix_(support, support)]
            system[size, size] = 0
            w = np.linalg.lstsq(system, np.eye(size + 1)[size], rcond=None)[0][:size]
            if (w >= 0).all() and abs(w.sum() - 1) < 1e-9:
                best = min(best, w @ Q[np.ix_(support, support)] @ w)
    return best


def projected_by_bisection(v):
    low, high = v.min() - 1, v.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(v - middle, 0).sum() > 1 else (low, middle)
    return np.maximum(v - low, 0)


def in_simplex(w, atol):
    assert (w >= 0).all()
    torch.testing.assert_close(w.sum(1), torch.ones_like(w[:, 0]), rtol=0, atol=atol)


# --- projection ----------------------------------------------------------------------


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=9))
@settings(max_examples=60, deadline=None)
def test_projection_is_that_of_bisection(v):
    w = simplex_projection(torch.tensor([v], dtype=torch.float64))
    in_simplex(w, 1e-12)
    np.testing.assert_allclose(w[0], projected_by_bisection(np.array(v)), rtol=0, atol=1e-9)


def test_projection_keeps_the_simplex_and_ignores_a_constant():
    w = torch.tensor([[0.125, 0.5, 0.0, 0.375], [0.0, 0.0, 1.0, 0.0]])
    assert torch.equal(simplex_projection(w), w)
    assert torch.equal(simplex_projection(w + 1024), w)
    in_simplex(simplex_projection(1e6 * torch.randn(50, 7, generator=generator())), 1e-6)


def generator():
    return torch.Generator().manual_seed(0)


def test_projection_of_a_single_task_is_one():
    assert torch.equal(simplex_projection(torch.tensor([[0.3], [-7.1]])), torch.ones(2, 1))


# --- penalty -------------------------------------------------------------------------


@pytest.mark.parametrize("m", [2, 3, 5])
def test_penalty_is_the_squared_distance_from_weights_on_what_is_left(m):
    rng = np.random.default_rng(m)
    for s in range(1, m):
        achieved = np.zeros(m, dtype=bool)
        achieved[rng.permutation(m)[:s]] = True
        w = rng.dirichlet(np.ones(m))
        closest = np.zeros(m)
        closest[~achieved] = projected_by_bisection(w[~achieved])
        by_formula = (w[achieved] ** 2).sum() + (1 - w[~achieved].sum()) ** 2 / (m - s)
        R = task_penalty(torch.as_tensor(achieved)[None])[0].numpy()
        np.testing.assert_allclose(w @ R @ w, ((w - closest) ** 2).sum(), rtol=1e-10)
        np.testing.assert_allclose(w @ R @ w, by_formula, rtol=1e-12)


def test_penalty_of_two_achieved_in_four():
    w = torch.full((1, 4), 0.25, dtype=torch.float64)
    R = task_penalty(torch.tensor([[True, False, True, False]]))
    assert value_of(R, w).item() == 0.25


def test_penalty_with_none_and_with_all_achieved():
    assert not task_penalty(torch.zeros(2, 3, dtype=bool)).any()
    assert torch.equal(task_penalty(torch.ones(2, 3, dtype=bool))[1], torch.eye(3).double())


def test_penalty_vanishes_only_without_weight_on_achieved_tasks():
    R = task_penalty(torch.tensor([[True, False, False]]))
    assert value_of(R, torch.tensor([[0.0, 0.3, 0.7]])) == 0
    assert value_of(R, torch.tensor([[1e-3, 0.3, 0.699]])) > 0
    R = task_penalty(torch.tensor([[True, False]]))
    assert value_of(R, torch.tensor([[0.25, 0.75]])).item() == 2 * 0.25**2


# --- softmax descent -----------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_softmax_descent_on_the_listing_of_bui_et_al_2023(dtype):
    g = torch.tensor(
        [
            [0.1, 0.1, 0.1, 0.1, 0.2],
            [0.01, 0.1, 0.1, 0.1, 2000],
            [0.001, 0.002, 0.002, 0.002, 2000],
        ],
        dtype=dtype,
    )
    Q = g.unsqueeze(2) * g.unsqueeze(1)
    # the listing prints what it had before the last of its 20 updates
    w, _ = softmax_descent(Q, torch.full((3, 5), 0.2, dtype=dtype), n_steps=19, lr=1.0)
    rest = 0.18623024
    expected = [[0.20344244] * 4 + [rest], [0.9999982] + [5.58e-7] * 3 + [0.0]]
    np.testing.assert_allclose(w[:2], expected, rtol=0, atol=1e-6)
    first = 0.28042 if dtype == torch.float32 else 0.28118
    np.testing.assert_allclose(w[2], [first] + [(1 - first) / 3] * 3 + [0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("solver", EXACT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exact_solvers_return_the_vertex_that_softmax_descent_misses(solver, dtype):
    g = torch.tensor([[0.001, 0.002, 0.002, 0.002, 2000]], dtype=dtype)
    w = solver(g.unsqueeze(2) * g.unsqueeze(1))
    assert w.dtype == dtype
    assert w.tolist() == [[1.0, 0.0, 0.0, 0.0, 0.0]]


def test_softmax_descent_is_that_of_autograd():
    Q = gram_of(random_gradients("plain", 7, 4))
    alpha = torch.randn(7, 4, generator=generator(), dtype=torch.float64)
    balance = torch.rand(7, 4, generator=generator(), dtype=torch.float64)
    w, moved = softmax_descent(Q, alpha, n_steps=5, lr=0.1, entropy=balance)
    by_hand = alpha.clone().requires_grad_(True)
    for _ in range(5):
        p = torch.softmax(by_hand, 1)
        loss = value_of(Q, p).sum() + (balance * p * p.log()).sum()
        (gradient,) = torch.autograd.grad(loss, by_hand)
        by_hand = (by_hand - 0.1 * gradient).detach().requires_grad_(True)
    torch.testing.assert_close(moved, by_hand.detach())
    torch.testing.assert_close(w, torch.softmax(by_hand, 1).detach())


def test_softmax_descent_ignores_a_constant_and_spares_its_input():
    Q = gram_of(random_gradients("plain", 7, 3))
    alpha = torch.randn(7, 3, generator=generator(), dtype=torch.float64)
    before = alpha.clone()
    w, _ = softmax_descent(Q, alpha, 10, 0.05)
    assert torch.equal(alpha, before)
    torch.testing.assert_close(softmax_descent(Q, alpha + 3, 10, 0.05)[0], w)
    in_simplex(w, 1e-12)


def test_softmax_descent_comes_close_in_many_steps():
    Q = gram_of(random_gradients("aligned", 30, 3))
    zero = torch.zeros(30, 3, dtype=torch.float64)
    gaps = [kkt_gap(Q, softmax_descent(Q, zero, k, 0.05)[0]).max() for k in (0, 30, 3000)]
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 1e-2


# --- exact solvers -------------------------------------------------------------------


@pytest.mark.dealt
@pytest.mark.parametrize("solver", EXACT)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("m", [2, 3, 5])
def test_exact_solvers_find_the_minimum_of_all_supports(solver, kind, m):
    Q = gram_of(random_gradients(kind, 12, m))
    w = solver(Q)
    in_simplex(w, 1e-12)
    shortest = Q.diagonal(dim1=1, dim2=2).amin(1)
    least = torch.tensor([smallest_value(q) for q in Q])
    assert ((value_of(Q, w) - least).abs() <= 2e-8 * shortest).all()
    assert (kkt_gap(Q, w) < 3e-8).all()


@pytest.mark.parametrize("solver", EXACT)
@pytest.mark.parametrize("m", [2, 4, 9])
@pytest.mark.parametrize("lam", [0.0, 1.0, 100.0, 1e9])
def test_exact_solvers_with_the_penalty(solver, m, lam):
    achieved = torch.rand(30, m, generator=generator()) < 0.5
    Q = gram_of(random_gradients("lengths", 30, m)) + lam * task_penalty(achieved)
    w = solver(Q)
    in_simplex(w, 1e-12)
    assert (kkt_gap(Q, w) < 3e-8).all()


@pytest.mark.parametrize("solver", EXACT)
def test_exact_solvers_against_sequential_programming(solver):
    Q = gram_of(random_gradients("aligned", 5, 8))
    w = solver(Q)
    for q, found in zip(Q.numpy(), w.numpy(), strict=True):
        result = minimize(
            lambda p, q=q: p @ q @ p,
            np.full(8, 1 / 8),
            jac=lambda p, q=q: 2 * q @ p,
            bounds=[(0, 1)] * 8,
            constraints={"type": "eq", "fun": lambda p: p.sum() - 1},
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
        np.testing.assert_allclose(found @ q @ found, result.fun, rtol=1e-6)
        np.testing.assert_allclose(found, result.x, atol=1e-4)


@pytest.mark.parametrize("m", [2, 3, 5, 8])
def test_frank_wolfe_comes_close(m):
    Q = gram_of(random_gradients("aligned", 50, m))
    w = frank_wolfe(Q)
    in_simplex(w, 1e-12)
    gap = kkt_gap(Q, w)
    assert gap.max() < 0.05
    assert gap.median() < 1e-3
    # the value is off by no more than twice the gap
    shortest = Q.diagonal(dim1=1, dim2=2).amin(1)
    assert (value_of(Q, w) - value_of(Q, active_set(Q)) <= 2 * gap * shortest + 1e-12).all()


@pytest.mark.parametrize("solver", [*SOLVERS, two_tasks])
def test_two_tasks_by_all_solvers(solver):
    orthogonal = torch.diag(torch.tensor([1.0, 4.0]).double())
    threefold = torch.tensor([[1.0, 3.0], [3.0, 9.0]]).double()
    Q = torch.stack([orthogonal, threefold, threefold.flip(0, 1)])
    w = solver(Q)
    np.testing.assert_allclose(w, [[0.8, 0.2], [1, 0], [0, 1]], rtol=0, atol=1e-8)
    np.testing.assert_allclose(value_of(Q, w), [0.8, 1, 1], rtol=1e-8)
    # orthogonal gradients count inversely to their squared lengths
    Q = torch.diag_embed(torch.tensor([[1.0, 2.0], [5.0, 3.0], [1e-6, 1e6]]).double())
    expected = 1 / Q.diagonal(dim1=1, dim2=2)
    expected /= expected.sum(1, keepdim=True)
    np.testing.assert_allclose(solver(Q), expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("solver", [*SOLVERS, two_tasks])
def test_two_tasks_the_first_achieved(solver):
    Q = torch.diag(torch.tensor([1.0, 4.0]).double())[None]
    R = task_penalty(torch.tensor([[True, False]]))
    for lam, first in [(0.0, 0.8), (2.5, 0.4), (1e12, 0.0)]:
        np.testing.assert_allclose(solver(Q + lam * R)[0, 0], first, rtol=0, atol=1e-8)
    # with a random inner product
    Q = gram_of(random_gradients("plain", 20, 2))
    q11, q12, q22 = Q[:, 0, 0], Q[:, 0, 1], Q[:, 1, 1]
    expected = ((q22 - q12) / (q11 + q22 - 2 * q12 + 2 * 0.7)).clamp(0, 1)
    np.testing.assert_allclose(solver(Q + 0.7 * R)[:, 0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("solver", EXACT)
def test_no_task_loses_along_the_point_of_least_norm(solver):
    g = random_gradients("lengths", 60, 4)
    Q = gram_of(g)
    point = torch.einsum("ni,nid->nd", solver(Q), g)
    squared = (point**2).sum(1, keepdim=True)
    gains = torch.einsum("nid,nd->ni", g, point)
    shortest = Q.diagonal(dim1=1, dim2=2).amin(1, keepdim=True)
    assert (gains >= squared - 3e-8 * shortest).all()
    assert (squared <= shortest * (1 + 1e-8)).all()


@pytest.mark.parametrize("solver", EXACT)
def test_point_of_least_norm_is_zero_where_zero_is_in_the_hull(solver):
    angles = torch.tensor([0.1, 2.0, 4.0], dtype=torch.float64)
    g = torch.stack([angles.cos(), angles.sin()], 1) * torch.tensor([[1.0], [5.0], [0.3]])
    Q = gram_of(g[None])
    assert value_of(Q, solver(Q)).item() < 1e-8


@pytest.mark.parametrize("solver", [*EXACT, two_tasks])
@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e6])
def test_scale_does_not_matter(solver, scale):
    Q = gram_of(random_gradients("plain", 20, 2 if solver is two_tasks else 4))
    np.testing.assert_allclose(solver(scale * Q), solver(Q), rtol=0, atol=1e-7)


@pytest.mark.parametrize("solver", EXACT)
def test_order_of_tasks_does_not_matter(solver):
    Q = gram_of(random_gradients("plain", 10, 3))
    w = solver(Q)
    for order in map(list, permutations(range(3))):
        np.testing.assert_allclose(solver(Q[:, order][:, :, order]), w[:, order], atol=1e-6)


@pytest.mark.dealt
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_never_mix(solver, kind):
    Q = gram_of(random_gradients(kind, 41, 4))
    w = solver(Q)
    for rows in ([3], [40], list(range(5, 30)), [7, 2]):
        assert torch.equal(solver(Q[rows]), w[rows])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("m", [2, 3, 4, 7])
def test_rows_never_mix_in_softmax_descent(dtype, m):
    Q = gram_of(random_gradients("plain", 77, m)).to(dtype)
    alpha = torch.randn(77, m, generator=generator(), dtype=dtype)
    balance = torch.rand(77, m, generator=generator(), dtype=dtype)
    for entropy in (None, balance):
        whole = softmax_descent(Q, alpha, 10, 0.05, entropy)
        for rows in ([3], [76], list(range(5, 60)), [7, 2]):
            part = None if entropy is None else entropy[rows]
            alone = softmax_descent(Q[rows], alpha[rows], 10, 0.05, part)
            for a, b in zip(alone, whole, strict=True):
                assert torch.equal(a, b[rows])


@pytest.mark.parametrize("solver", SOLVERS)
def test_degenerate_gradients(solver):
    rng = random_gradients("plain", 2, 4)
    same = rng[:, :1].expand(-1, 4, -1)
    none = torch.zeros(2, 4, 6, dtype=torch.float64)
    Q = gram_of(torch.cat([same, none]))
    w = solver(Q)
    in_simplex(w, 1e-12)
    assert (kkt_gap(Q, w) < 1e-8).all()
    # a task without a gradient gets all of the weight
    g = rng.clone()
    g[:, 2] = 0
    np.testing.assert_allclose(solver(gram_of(g)), [[0, 0, 1, 0]] * 2, atol=1e-3)


def test_gap_is_zero_at_the_minimum_only():
    Q = torch.diag(torch.tensor([1.0, 4.0]))[None]
    np.testing.assert_allclose(kkt_gap(Q, torch.tensor([[0.8, 0.2]])), 0, atol=1e-6)
    # w'Qw = 1.25 and the smaller component of Qw is .5, the shorter squared length 1
    np.testing.assert_allclose(kkt_gap(Q, torch.tensor([[0.5, 0.5]])), 0.75)
    np.testing.assert_allclose(kkt_gap(100 * Q, torch.tensor([[0.5, 0.5]])), 0.75)


# --- conflict-averse -----------------------------------------------------------------


@pytest.mark.dealt
@pytest.mark.parametrize("kind", ["plain", "aligned", "nearly equal"])
@pytest.mark.parametrize("alpha", [0.1, 0.5])
def test_conflict_averse_against_sequential_programming(kind, alpha):
    m = 4
    Q = gram_of(random_gradients(kind, 6, m))
    w, ratio = conflict_averse(Q, alpha, 50)
    in_simplex(w, 1e-12)
    for q, found, c_over in zip(Q.numpy(), w.numpy(), ratio.numpy(), strict=True):
        mean, c = q.mean(1), alpha * np.sqrt(q.mean())

        def objective(p, q=q, mean=mean, c=c):
            return p @ mean + c * np.sqrt(p @ q @ p + 1e-8 * q.diagonal().max())

        starts = [np.full(m, 1 / m), *(0.9 * np.eye(m) + 0.1 / m)]
        best = min(
            minimize(
                objective,
                start,
                bounds=[(0, 1)] * m,
                constraints={"type": "eq", "fun": lambda p: p.sum() - 1},
                method="SLSQP",
                options={"ftol": 1e-14, "maxiter": 500},
            ).fun
            for start in starts
        )
        assert objective(found) <= best + 1e-6 * q.mean()
        length = np.sqrt(found @ q @ found + 1e-8 * q.diagonal().max())
        np.testing.assert_allclose(c_over, c / length, rtol=1e-10)


@pytest.mark.dealt
@pytest.mark.parametrize("m", [3, 5])
@pytest.mark.parametrize("kind", ["plain", "opposed"])
def test_conflict_averse_converges_whatever_the_lengths(m, kind):
    """Optimal: along no task is the slope smaller than on the average of the weights."""
    g = torch.randn(20, m, 30, generator=torch.Generator().manual_seed(0)).double()
    if kind == "opposed":
        g[:, 1] = 1e-3 * g[:, 1] - g[:, 0]
    for low, high in [(0, 0), (-1, 0), (-2, 1), (-3, 1)]:
        lengths = torch.logspace(low, high, m).double()
        g = g / g.norm(dim=2, keepdim=True) * lengths[:, None]
        Q = gram_of(g)
        w, ratio = conflict_averse(Q, 0.5, 50)
        in_simplex(w, 1e-12)
        slope = Q.mean(2) + ratio * (Q @ w.unsqueeze(2)).squeeze(2)
        gap = (w * slope).sum(1) - slope.amin(1)
        assert (gap <= 2e-6 * Q.mean((1, 2))).all()
        if low == high:
            continue
        # the same from the first step on: it is not a matter of how many there are
        other, _ = conflict_averse(Q, 0.5, 1)
        length = ((w - other).unsqueeze(1) @ Q @ (w - other).unsqueeze(2)).flatten()
        assert (length <= 1e-5 * Q.mean((1, 2))).all()
