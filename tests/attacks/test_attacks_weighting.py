"""Weightings of multi-objective attacks, against formulas worked out independently."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone

from robustsk.attacks.multi_objective._simplex import kkt_gap, task_penalty
from robustsk.attacks.multi_objective.weighting import (
    MGDA,
    CAGrad,
    HyperVolume,
    MinMax,
    PCGrad,
    TaskOriented,
    UniformWeighting,
    resolve_weighting,
)

NAMES = {
    "uniform": UniformWeighting,
    "moo": MGDA,
    "tamoo": TaskOriented,
    "minmax": MinMax,
    "hvm": HyperVolume,
    "pcgrad": PCGrad,
    "cagrad": CAGrad,
}
IN_SIMPLEX = ["uniform", "moo", "tamoo", "minmax", "hvm"]
EXACT = ["projected", "active-set"]


class Draws:
    """Uniform numbers of a fixed seed, remembered, the same for a row whatever the batch."""

    def __init__(self, n, seed=0):
        self.generator = np.random.default_rng(seed)
        self.n = n
        self.rows = slice(None)
        self.drawn = []

    def __call__(self, k):
        self.drawn.append(torch.as_tensor(self.generator.random((self.n, k))))
        return self.drawn[-1][self.rows]


def tasks(n=9, m=4, seed=0, dtype=torch.float64):
    """Return gradients, values, inner products and achieved goals of some tasks."""
    rng = np.random.default_rng(seed)
    g = torch.as_tensor(rng.normal(size=(n, m, 6))).to(dtype)
    values = torch.as_tensor(rng.uniform(0.1, 4, (n, m))).to(dtype)
    return g, values, g @ g.mT, torch.as_tensor(rng.random((n, m)) < 0.5)


def weigh(weighting, values, gram, achieved, draw=None, times=1):
    """Return the weights after some calls on the same tasks."""
    state = weighting.start(*values.shape, values)
    for _ in range(times):
        weights, state = weighting.weigh(state, values, gram, achieved, draw)
        assert weights.shape == values.shape
        assert weights.dtype == values.dtype
        assert not weights.requires_grad
        assert all(len(part) == len(values) for part in state.values())
    return weights


# --- all of them ---------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_names_and_instances(name):
    weighting = resolve_weighting(name)
    assert type(weighting) is NAMES[name]
    assert resolve_weighting(weighting) is weighting
    assert clone(weighting).get_params() == weighting.get_params()
    assert repr(weighting) == f"{NAMES[name].__name__}()"


@pytest.mark.parametrize("wrong", ["mgda", None, 3, TaskOriented])
def test_anything_else_is_an_error(wrong):
    with pytest.raises((TypeError, ValueError), match=r"tamoo.*TaskOriented"):
        resolve_weighting(wrong)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_single_task_has_weight_one(name, dtype):
    _, values, gram, achieved = tasks(m=1, dtype=dtype)
    weights = weigh(resolve_weighting(name), values, gram, achieved, Draws(9), times=4)
    assert torch.equal(weights, torch.ones_like(values))


@pytest.mark.parametrize("solver", [*EXACT, "frank-wolfe", "closed"])
def test_a_single_task_has_weight_one_with_exact_solvers(solver):
    _, values, gram, achieved = tasks(m=1)
    assert (weigh(TaskOriented(solver=solver), values, gram, achieved) == 1).all()


@pytest.mark.parametrize("name", NAMES)
def test_rows_never_mix(name):
    _, values, gram, achieved = tasks(n=40)
    weighting = resolve_weighting(name)
    whole = weigh(weighting, values, gram, achieved, Draws(40), times=3)
    for rows in ([0], [39], list(range(3, 30)), [5, 2]):
        draw = Draws(40)
        draw.rows = rows
        alone = weigh(weighting, values[rows], gram[rows], achieved[rows], draw, times=3)
        torch.testing.assert_close(alone, whole[rows], rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_the_state_may_be_selected(name):
    _, values, gram, achieved = tasks()
    weighting = resolve_weighting(name)
    state = weighting.start(*values.shape, values)
    _, state = weighting.weigh(state, values, gram, achieved, Draws(9, seed=1))
    whole, _ = weighting.weigh(state, values, gram, achieved, Draws(9))
    rows = torch.tensor([7, 1, 2])
    state = {key: part[rows] for key, part in state.items()}
    draw = Draws(9)
    draw.rows = rows
    part, _ = weighting.weigh(state, values[rows], gram[rows], achieved[rows], draw)
    torch.testing.assert_close(part, whole[rows], rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "pcgrad"])
def test_order_of_tasks_does_not_matter(name):
    _, values, gram, achieved = tasks()
    weighting = resolve_weighting(name)
    weights = weigh(weighting, values, gram, achieved, times=3)
    order = [2, 0, 3, 1]
    permuted = weigh(
        weighting, values[:, order], gram[:, order][:, :, order], achieved[:, order], times=3
    )
    torch.testing.assert_close(permuted, weights[:, order])


@pytest.mark.parametrize("name", NAMES)
def test_nothing_that_is_given_changes(name):
    _, values, gram, achieved = tasks()
    before = values.clone(), gram.clone(), achieved.clone()
    weigh(resolve_weighting(name), values, gram, achieved, Draws(9), times=2)
    assert all(map(torch.equal, (values, gram, achieved), before))


@given(
    seed=st.integers(0, 10**6),
    m=st.integers(1, 6),
    scale=st.sampled_from([1e-6, 1e-3, 1.0, 1e3, 1e6]),
    name=st.sampled_from(IN_SIMPLEX),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=80, deadline=None)
def test_weights_stay_in_the_simplex(seed, m, scale, name, dtype):
    _, values, gram, achieved = tasks(n=5, m=m, seed=seed, dtype=dtype)
    weighting = resolve_weighting(name)
    weights = weigh(weighting, scale * values, scale * gram, achieved, times=3)
    assert (weights >= 0).all()
    total = weights.sum(1)
    tol = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=tol)


@given(
    seed=st.integers(0, 10**6),
    m=st.integers(2, 6),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
    lam=st.sampled_from([0.0, 1.0, 1e3]),
    solver=st.sampled_from([*EXACT, "frank-wolfe"]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=60, deadline=None)
def test_exact_weights_stay_in_the_simplex(seed, m, scale, lam, solver, dtype):
    _, values, gram, achieved = tasks(n=5, m=m, seed=seed, dtype=dtype)
    weights = weigh(TaskOriented(lam, solver=solver), values, scale * gram, achieved)
    assert (weights >= 0).all()
    tol = 1e-6 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(weights.sum(1), torch.ones(5, dtype=dtype), rtol=0, atol=tol)


# --- MGDA and TA-MOO -----------------------------------------------------------------


@pytest.mark.parametrize("solver", ["softmax", *EXACT, "frank-wolfe"])
def test_task_oriented_without_penalty_is_mgda(solver):
    _, values, gram, achieved = tasks()
    plain = weigh(MGDA(solver=solver), values, gram, achieved, times=3)
    oriented = weigh(TaskOriented(lam=0.0, solver=solver), values, gram, achieved, times=3)
    assert torch.equal(plain, oriented)


@pytest.mark.parametrize("hyper", [{"n_steps": 0}, {"lr": 0.0}])
@pytest.mark.parametrize("m", [2, 3, 7])
def test_without_steps_weights_are_equal(hyper, m):
    _, values, gram, achieved = tasks(m=m, dtype=torch.float32)
    weights = weigh(TaskOriented(**hyper), values, gram, achieved, times=3)
    assert torch.equal(weights, weigh(UniformWeighting(), values, gram, achieved))


def omega(w, achieved):
    """Return the penalty by Eq. 6 of Bui et al. (2023)."""
    left = (~achieved).sum(1)
    first = (w * w * achieved).sum(1)
    second = (1 - (w * ~achieved).sum(1)) ** 2
    return first + torch.where(left > 0, second / left.clamp_min(1), 0.0)


@pytest.mark.parametrize("entropy_reg", [0.0, 20.0])
def test_softmax_solver_follows_algorithm_1(entropy_reg):
    g, values, gram, achieved = tasks()
    achieved[0], achieved[1] = True, False
    weighting = TaskOriented(lam=3.0, lr=0.01, n_steps=4, entropy_reg=entropy_reg, uniform_reg=2.0)
    weights = weigh(weighting, values, gram, achieved, times=2)
    alpha = torch.zeros_like(values, requires_grad=True)
    some_left = (~achieved).any(1, keepdim=True)
    for _ in range(8):
        w = torch.softmax(alpha, 1)
        point = (w.unsqueeze(2) * g).sum(1)
        entropy = -(w * w.log() * ~achieved * some_left).sum(1)
        loss = (point**2).sum(1) + 3.0 * omega(w, achieved) - entropy_reg * entropy
        loss = loss + 2.0 * ((w - 0.25) ** 2).sum(1)
        (gradient,) = torch.autograd.grad(loss.sum(), alpha)
        alpha = (alpha - 0.01 * gradient).detach().requires_grad_(True)
    torch.testing.assert_close(weights, torch.softmax(alpha, 1).detach())


@pytest.mark.parametrize("solver", EXACT)
def test_as_lam_grows_only_what_is_not_achieved_counts(solver):
    _, values, gram, achieved = tasks(n=40)
    achieved[:, 0] = False  # at least one is left
    weights = weigh(TaskOriented(lam=1e12, solver=solver), values, gram, achieved)
    for row in range(40):
        left = ~achieved[row]
        part = gram[row][left][:, left][None]
        alone = weigh(MGDA(solver=solver), values[row, left][None], part, achieved[row, left][None])
        torch.testing.assert_close(weights[row, left], alone[0], rtol=0, atol=1e-5)
        assert weights[row, ~left].sum() < 1e-9


@pytest.mark.parametrize("solver", EXACT)
def test_penalty_never_grows_with_lam(solver):
    _, values, gram, achieved = tasks(n=40)
    last = torch.full((40,), torch.inf, dtype=torch.float64)
    for lam in (0.0, 0.1, 1.0, 10.0, 100.0, 1e4):
        weights = weigh(TaskOriented(lam=lam, solver=solver), values, gram, achieved)
        present = omega(weights, achieved)
        assert (present <= last + 1e-8).all()
        last = present


@pytest.mark.parametrize("solver", EXACT)
def test_with_all_achieved_lam_makes_weights_equal(solver):
    _, values, gram, achieved = tasks()
    achieved[:] = True
    weights = weigh(TaskOriented(lam=1e9, solver=solver), values, gram, achieved)
    torch.testing.assert_close(weights, torch.full_like(weights, 0.25), rtol=0, atol=1e-6)
    achieved[:] = False
    weights = weigh(TaskOriented(lam=1e9, solver=solver), values, gram, achieved)
    torch.testing.assert_close(weights, weigh(MGDA(solver=solver), values, gram, achieved))


@pytest.mark.parametrize("solver", EXACT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exact_weights_meet_the_optimality_conditions(solver, dtype):
    _, values, gram, achieved = tasks(n=40, dtype=dtype)
    weighting = TaskOriented(lam=2.0, uniform_reg=0.5, solver=solver)
    weights = weigh(weighting, values, gram, achieved)
    Q = gram.double() + 2.0 * task_penalty(achieved) + 0.5 * torch.eye(4)
    assert kkt_gap(Q, weights).max() < (3e-8 if dtype == torch.float64 else 3e-6)


def test_softmax_weights_approach_the_exact_ones():
    _, values, gram, achieved = tasks(n=20)
    exact = weigh(TaskOriented(lam=2.0, solver="active-set"), values, gram, achieved)
    weighting = TaskOriented(lam=2.0, lr=0.05)
    far, near = (
        (weigh(weighting, values, gram, achieved, times=times) - exact).abs().max()
        for times in (1, 300)
    )
    assert near < 0.02 < far


def test_closed_form_is_that_of_the_exact_solvers():
    _, values, gram, achieved = tasks(n=40, m=2)
    closed = weigh(TaskOriented(lam=0.7, solver="closed"), values, gram, achieved)
    for solver in (*EXACT, "frank-wolfe"):
        weights = weigh(TaskOriented(lam=0.7, solver=solver), values, gram, achieved)
        torch.testing.assert_close(weights, closed, rtol=0, atol=1e-6)


def test_initial_weights():
    _, values, gram, achieved = tasks()
    initial = [0.15, 0.17, 0.15, 0.53]
    weights = weigh(TaskOriented(initial=initial, n_steps=0), values, gram, achieved)
    np.testing.assert_allclose(weights, [initial] * 9)
    weights = weigh(MGDA(initial=np.array(initial)), values, gram, achieved)
    assert not np.allclose(weights, [initial] * 9)


def test_entropy_is_raised_where_something_is_left_and_only_there():
    _, values, gram, achieved = tasks(n=20)
    achieved[:5], achieved[5:, 0] = True, False
    plain, balanced = (
        weigh(TaskOriented(lam=1.0, lr=0.02, entropy_reg=mu), values, gram, achieved, times=5)
        for mu in (0.0, 20.0)
    )
    assert torch.equal(plain[:5], balanced[:5])

    def entropy(w):
        return -(w * w.log() * ~achieved).sum(1)[5:]

    assert (entropy(balanced) > entropy(plain)).all()


def test_uniform_reg_draws_weights_together():
    _, values, gram, achieved = tasks(n=20)
    spread = [
        weigh(MGDA(solver="active-set", uniform_reg=mu), values, gram, achieved).var(1)
        for mu in (0.0, 1.0, 1e9)
    ]
    assert (spread[1] < spread[0]).all()
    assert spread[2].max() < 1e-12


@pytest.mark.parametrize(
    ("weighting", "message"),
    [
        (TaskOriented(solver="newton"), "solver must be one of.*softmax"),
        (TaskOriented(solver="closed"), "two tasks and there are 4"),
        (TaskOriented(n_steps=-1), "n_steps must be an integer of at least 0"),
        (TaskOriented(n_steps=2.5), "n_steps must be an integer of at least 0"),
        (TaskOriented(lr=-0.1), "lr must be a finite number"),
        (TaskOriented(lam=float("nan")), "lam must be a finite number"),
        (MGDA(uniform_reg=-1), "uniform_reg must be a finite number"),
        (TaskOriented(entropy_reg=20, solver="projected"), "needs solver='softmax'"),
        (TaskOriented(initial=[0.5, 0.5]), "each of the 4 tasks.*0.5, 0.5"),
        (TaskOriented(initial=0.5), "each of the 4 tasks"),
        (TaskOriented(initial=[1, 1, 1, 0]), "positive numbers"),
        (MGDA(initial=[1, 1, 1, 1], solver="projected"), "Leave initial out"),
        (MinMax(gamma=-1), "gamma must be a finite number"),
        (MinMax(gamma=100.0), "less than 2"),
        (HyperVolume(c=1.0), "c must be at least 0 and less than 1"),
        (HyperVolume(c=-0.1), "c must be at least 0 and less than 1"),
        (CAGrad(alpha=-1), "alpha must be a finite number"),
        (CAGrad(n_steps=0), "n_steps must be an integer of at least 1"),
    ],
)
def test_wrong_hyperparameters(weighting, message):
    with pytest.raises(ValueError, match=message):
        weighting.start(3, 4, torch.zeros(1))


# --- the others ----------------------------------------------------------------------


def test_minmax_reaches_its_fixed_point():
    values = torch.tensor([[2.0, 1.0, 3.0, 2.5]]).double()
    weights = weigh(MinMax(gamma=3.0), values, None, values > 2, times=1000)
    np.testing.assert_allclose(weights, [[0.277778, 0.611111, 0, 0.111111]], atol=1e-6)


def test_minmax_in_its_limits():
    values = torch.tensor([[2.0, 1.0, 3.0, 2.5]]).double()
    worst = weigh(MinMax(gamma=0.0, lr=0.1), values, None, values > 2, times=100)
    assert worst.tolist() == [[0, 1, 0, 0]]
    equal = weigh(MinMax(gamma=1e6, lr=1e-6), values, None, values > 2, times=100)
    np.testing.assert_allclose(equal, 0.25, atol=1e-5)


def test_minmax_weighs_first_and_moves_then():
    _, values, gram, achieved = tasks()
    np.testing.assert_array_equal(weigh(MinMax(), values, gram, achieved), 0.25)
    # from equal weights a small step takes each value's excess over the mean
    moved = weigh(MinMax(lr=0.01), values, gram, achieved, times=2)
    expected = 0.25 - 0.01 * (values - values.mean(1, keepdim=True))
    torch.testing.assert_close(moved, expected)


@pytest.mark.parametrize("c", [0.0, 0.5, 0.9])
def test_hypervolume_is_the_gradient_of_the_logarithms(c):
    _, values, _, achieved = tasks()
    f = values.clone().requires_grad_(True)
    nadir = c * values.min(1, keepdim=True).values
    (gradient,) = torch.autograd.grad((f - nadir).log().sum(), f)
    weights = weigh(HyperVolume(c=c), values, None, achieved)
    torch.testing.assert_close(weights, gradient / gradient.sum(1, keepdim=True))


def test_hypervolume_gives_its_weight_to_what_is_not_positive():
    values = torch.tensor([[-3.0, 1.0, 2.0], [0.0, -1.0, 1.0], [0.0, 0.0, 0.0]])
    weights = weigh(HyperVolume(), values, None, values > 1)
    np.testing.assert_allclose(weights, [[1, 0, 0], [0.5, 0.5, 0], [1 / 3] * 3], atol=1e-5)


@pytest.mark.parametrize("n_features", [2, 6])
def test_pcgrad_against_vectors(n_features):
    g, values, _, achieved = tasks(n=30, m=5)
    # in the plane what is left of a gradient may end up opposite to itself
    g = g[:, :, :n_features]
    draw = Draws(30)
    weights = weigh(PCGrad(), values, g @ g.mT, achieved, draw)
    (drawn,) = draw.drawn
    for row in range(30):
        order = drawn[row].reshape(5, 5).argsort(1)
        projected = g[row].numpy().copy()
        for i in range(5):
            for j in order[i].tolist():
                original = g[row, j].numpy()
                dot = projected[i] @ original
                if j != i and dot < 0:
                    projected[i] -= dot / (original @ original) * original
        np.testing.assert_allclose(weights[row] @ g[row], projected.mean(0), atol=1e-12)


def test_pcgrad_without_conflict_is_the_mean_gradient():
    g, values, _, achieved = tasks()
    g = g.abs()
    weights = weigh(PCGrad(), values, g @ g.mT, achieved, Draws(9))
    np.testing.assert_array_equal(weights, 0.25)


def test_pcgrad_makes_two_conflicting_gradients_orthogonal():
    g, values, _, achieved = tasks(m=2)
    g[:, 1] = -g[:, 0] + 0.3 * g[:, 1]
    gram = g @ g.mT
    assert (gram[:, 0, 1] < 0).all()
    found = (weigh(PCGrad(), values, gram, achieved, Draws(9)).unsqueeze(2) * g).sum(1)
    first, second = g.unbind(1)
    dot = gram[:, :1, 1]
    a = first - dot / gram[:, 1:, 1] * second
    b = second - dot / gram[:, :1, 0] * first
    np.testing.assert_allclose((a * second).sum(1), 0, atol=1e-12)
    np.testing.assert_allclose((b * first).sum(1), 0, atol=1e-12)
    torch.testing.assert_close(found, (a + b) / 2)


def test_pcgrad_draws_anew_each_time():
    _, values, gram, achieved = tasks(n=30, m=5)
    draw = Draws(30)
    first = weigh(PCGrad(), values, gram, achieved, draw)
    assert not torch.equal(first, weigh(PCGrad(), values, gram, achieved, draw))


def test_pcgrad_with_a_gradient_of_zero():
    g, values, _, achieved = tasks()
    g[:, 1] = 0
    assert weigh(PCGrad(), values, g @ g.mT, achieved, Draws(9)).isfinite().all()


def test_cagrad_at_zero_is_the_mean_gradient():
    _, values, gram, achieved = tasks()
    np.testing.assert_array_equal(weigh(CAGrad(alpha=0.0), values, gram, achieved), 0.25)


@pytest.mark.parametrize("alpha", [0.2, 0.5])
def test_cagrad_is_best_for_the_worst_task_near_the_mean(alpha):
    g, values, gram, achieved = tasks(n=10)
    weights = weigh(CAGrad(alpha=alpha), values, gram, achieved)
    direction = (weights.unsqueeze(2) * g).sum(1) * (1 + alpha**2)
    mean = g.mean(1)
    radius = alpha * mean.norm(dim=1)
    distance = (direction - mean).norm(dim=1)
    torch.testing.assert_close(distance, radius, rtol=1e-3, atol=0)

    def worst(d):
        return (g * d.unsqueeze(1)).sum(2).amin(1)

    # no other direction of the sphere does better
    generator = torch.Generator().manual_seed(0)
    for scale in (0.01, 0.1, 1.0, 10.0):
        for _ in range(100):
            move = direction - mean
            noise = torch.randn(move.shape, generator=generator).double()
            other = move + scale * move.norm(dim=1, keepdim=True) * noise
            other = mean + other * (radius / other.norm(dim=1)).unsqueeze(1)
            assert (worst(other) <= worst(direction) + 1e-4 * radius).all()


def test_cagrad_with_equal_or_no_gradients():
    g, values, _, achieved = tasks()
    same = g[:, :1].expand(-1, 4, -1)
    weights = weigh(CAGrad(), values, same @ same.mT, achieved)
    # along the common gradient, (1 + alpha) / (1 + alpha^2) times
    np.testing.assert_allclose(weights.sum(1), 1.5 / 1.25, rtol=1e-6)
    assert weigh(CAGrad(), values, torch.zeros(9, 4, 4).double(), achieved).isfinite().all()
