"""FAB against closed forms, linear programs and brute force."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import linprog, minimize
from torch import nn

from robustsk.attacks import FAB, DeepFool, as_victim
from robustsk.attacks.minimal._linear_boundary import step_to_plane
from robustsk.attacks.targeting import wrong_classes

NORMS = [np.inf, 2.0, 1.0]
DUAL = {np.inf: 1, 2.0: 2, 1.0: np.inf}


def linear(d, n_classes, seed=0, dtype=torch.float64):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Linear(d, n_classes).to(dtype)


def samples(n, d, seed=1, dtype=torch.float64):
    return torch.rand(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def shortest(A, b, low, high, norm):
    """Return the length of the shortest v with ``A @ v >= b`` in a box, or inf."""
    d = A.shape[1]
    if norm == 2:
        # minimise the squared norm; with one row the multiplier is found by bisection
        if len(A) == 1:
            return _shortest_2(A[0], b[0], low, high)
        found = minimize(
            lambda v: (v @ v, 2 * v),
            np.clip(np.linalg.lstsq(A, b, rcond=None)[0], low, high),
            jac=True,
            bounds=list(zip(low, high, strict=True)),
            constraints={"type": "ineq", "fun": lambda v: A @ v - b, "jac": lambda v: A},
            method="SLSQP",
            options={"maxiter": 500, "ftol": 1e-14},
        )
        return np.sqrt(found.fun) if found.success else np.inf
    size = 1 if norm == np.inf else d
    spread = np.ones((d, 1)) if norm == np.inf else np.eye(d)
    found = linprog(
        np.r_[np.zeros(d), np.ones(size)],
        A_ub=np.block(
            [[np.eye(d), -spread], [-np.eye(d), -spread], [-A, np.zeros((len(A), size))]]
        ),
        b_ub=np.r_[np.zeros(2 * d), -b],
        bounds=[*zip(low, high, strict=True), *[(0, None)] * size],
    )
    return found.fun if found.status == 0 else np.inf


def _shortest_2(a, b, low, high):
    if b <= 0:
        return 0.0
    least, most = 0.0, 1e12
    if a @ np.clip(most * a, low, high) < b:
        return np.inf
    for _ in range(200):
        middle = (least + most) / 2
        if a @ np.clip(middle * a, low, high) < b:
            least = middle
        else:
            most = middle
    return np.linalg.norm(np.clip(most * a, low, high))


def distances(net, x, y, norm, low=None, high=None, weight=None, target=None):
    """Return the exact distance of each sample to another class of a linear model."""
    W, c = net.weight.detach().numpy().astype(float), net.bias.detach().numpy().astype(float)
    d = W.shape[1]
    weight = np.ones(d) if weight is None else weight
    result = []
    for i, (row, label) in enumerate(zip(x.numpy().astype(float), y.numpy(), strict=True)):
        scale = np.where(weight > 0, weight, 1.0)
        lo = np.full(d, -np.inf) if low is None else (low - row) / scale
        hi = np.full(d, np.inf) if high is None else (high - row) / scale
        lo, hi = np.where(weight > 0, lo, 0.0), np.where(weight > 0, hi, 0.0)
        lo, hi = np.maximum(lo, -1e4), np.minimum(hi, 1e4)
        logits = W @ row + c
        if target is None:
            found = [
                shortest(
                    ((W[k] - W[label]) * weight)[None],
                    (logits[label] - logits[k])[None],
                    lo,
                    hi,
                    norm,
                )
                for k in range(len(W))
                if k != label
            ]
            result.append(min(found))
        else:
            others = [k for k in range(len(W)) if k != target[i]]
            result.append(
                shortest(
                    (W[target[i]] - W[others]) * weight, logits[others] - logits[target[i]],
                    lo, hi, norm,
                )
            )  # fmt: skip
    return np.array(result)


def attack(net, x, y=None, keep="worst", **settings):
    fab = FAB(**{"clip": None, "random_state": 0, **settings})
    return fab.perturb(net, x, y, keep=keep, return_info=True)


# --- the projection ------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    d=st.integers(1, 9),
    norm=st.sampled_from(NORMS),
    boxed=st.booleans(),
    reach=st.sampled_from([0.1, 1.0, 3.0]),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    scale=st.sampled_from([1.0, 1e-25, 1e20]),
)
def test_step_is_the_shortest_to_the_plane_in_the_box(seed, d, norm, boxed, reach, dtype, scale):
    rng = np.random.RandomState(seed)
    n = 3
    w = rng.normal(size=(n, d)) * (rng.uniform(size=(n, d)) > 0.2)
    low, high = np.zeros((n, d)), rng.uniform(0.2, 1, size=(n, d))
    points = rng.choice([0.0, 0.3, 0.9, 1.0], size=(2, n, d)) * high
    height = reach * rng.normal(size=(2, n)) * np.abs(w).sum(1) / 2
    if not boxed:
        low, high = np.full((n, d), -np.inf), np.full((n, d), np.inf)
    given_ = [torch.tensor(v, dtype=dtype) for v in (points, w * scale, height * scale, low, high)]
    step = step_to_plane(*given_, norm).double().numpy()
    tolerance = {torch.float64: 1e-9, torch.float32: 2e-5}[dtype]
    assert step.shape == (2, n, d)
    assert np.all(points + step >= low - tolerance)
    assert np.all(points + step <= high + tolerance)
    for j in range(2):
        for i in range(n):
            sign = -np.sign(height[j, i])
            room = (low[i] - points[j, i], high[i] - points[j, i])
            room = [np.clip(r, -1e4, 1e4) for r in room]
            best = shortest(sign * w[i][None], np.abs(height[j, i])[None], *room, norm)
            left = height[j, i] + step[j, i] @ w[i]
            if np.isfinite(best):
                assert abs(left) <= tolerance * (1 + abs(height[j, i])) * 10
                assert_allclose(
                    np.linalg.norm(step[j, i], ord=norm), best, rtol=1e-4, atol=20 * tolerance
                )
            else:
                corner = np.maximum(sign * w[i] * room[0], sign * w[i] * room[1]).sum()
                assert_allclose(sign * (step[j, i] @ w[i]), corner, rtol=1e-4, atol=20 * tolerance)


@pytest.mark.parametrize("norm", NORMS)
def test_step_where_nothing_can_move(norm):
    w = torch.tensor([[1.0, 2.0], [0.0, 0.0], [1.0, 1.0]])
    points, height = torch.zeros(1, 3, 2), torch.tensor([[-1.0, -1.0, 0.0]])
    low = high = torch.zeros(3, 2)
    assert_array_equal(step_to_plane(points, w, height, low, high, norm), points)
    far = torch.full((3, 2), torch.inf)
    step = step_to_plane(points, w, height, -far, far, norm)
    assert_array_equal(step[0, 1:], points[0, 1:])
    assert step.isfinite().all()


@pytest.mark.parametrize("norm", NORMS)
def test_step_solves_each_plane_alone(norm):
    # a slow row must not change the rounding of a fast one
    rng = torch.Generator().manual_seed(0)
    w = torch.randn(40, 300, generator=rng)
    points = torch.rand(1, 40, 300, generator=rng)
    height = 30 * torch.randn(1, 40, generator=rng)
    low, high = torch.zeros(40, 300), torch.ones(40, 300)
    together = step_to_plane(points, w, height, low, high, norm)
    for i in (0, 17):
        part = slice(i, i + 1)
        alone = step_to_plane(
            points[:, part], w[part], height[:, part], low[part], high[part], norm
        )
        assert_allclose(alone, together[:, part], rtol=1e-6, atol=1e-7)


def test_wrong_classes_come_in_the_order_of_their_logits():
    logits = torch.tensor([[1.0, 3.0, 2.0, 0.0], [5.0, -1.0, 4.0, 9.0]])
    assert wrong_classes(logits, torch.tensor([2, 3])).tolist() == [[1, 0, 3], [0, 2, 1]]


# --- linear models -------------------------------------------------------------------


@pytest.mark.parametrize("n_targets", [None, "all"])
@pytest.mark.parametrize("n_classes", [2, 5])
@pytest.mark.parametrize("norm", NORMS)
def test_linear_model_without_a_box(norm, n_classes, n_targets):
    net, x = linear(8, n_classes), samples(40, 8)
    logits = net(x).detach()
    y = logits.argmax(1)
    x_adv, info = attack(net, x, norm=norm, n_targets=n_targets)
    assert (net(x_adv).argmax(1) != y).all()
    W = net.weight.detach()
    exact = torch.stack(
        [
            torch.where(
                y == k,
                torch.inf,
                (logits.gather(1, y[:, None])[:, 0] - logits[:, k])
                / torch.linalg.vector_norm(W[k] - W[y], ord=DUAL[norm], dim=1).clamp_min(1e-30),
            )
            for k in range(n_classes)
        ]
    ).amin(0)
    assert (info["distance"] >= exact * (1 - 1e-9)).all()
    assert_allclose(info["distance"], exact, rtol=6e-3)
    moved = torch.linalg.vector_norm(x_adv - x, ord=norm, dim=1)
    assert_allclose(moved, info["distance"], rtol=1e-9)


@pytest.mark.dealt
@pytest.mark.parametrize("n_targets", [None, "all"])
@pytest.mark.parametrize("norm", NORMS)
def test_linear_model_in_a_box(norm, n_targets):
    net, x = linear(7, 3, seed=3), samples(25, 7)
    x[::2] = x[::2].round()  # at the edge of the box there is room on one side only
    y = net(x).argmax(1)
    exact = distances(net, x, y, norm, np.zeros(7), np.ones(7))
    free = distances(net, x, y, norm)
    x_adv, info = attack(net, x, norm=norm, clip=(0, 1), n_targets=n_targets)
    found = np.isfinite(exact)
    assert found.sum() > 15
    assert (exact[found] > 1.05 * free[found]).mean() > 0.3
    assert_array_equal(info["distance"].isfinite(), found)
    assert (info["distance"].numpy()[found] >= exact[found] * (1 - 1e-6)).all()
    assert_allclose(info["distance"][found], exact[found], rtol=6e-3)
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert_array_equal(x_adv[~found], x[~found])


@pytest.mark.dealt
@pytest.mark.parametrize("norm", NORMS)
def test_radius_per_feature_and_frozen_features(norm):
    net, x = linear(6, 3, seed=1), samples(20, 6)
    weight = np.array([1.0, 0.25, 0.0, 0.5, 0.0, 0.1])
    y = net(x).argmax(1)
    exact = distances(net, x, y, norm, np.zeros(6), np.ones(6), weight)
    x_adv, info = attack(net, x, norm=norm, clip=(0, 1), eps=4 * weight)
    found = exact <= 3.9
    assert found.sum() > 10
    assert_allclose(info["distance"][found], exact[found], rtol=6e-3)
    assert info["distance"][exact > 4.1].isinf().all()
    assert_array_equal(x_adv[:, weight == 0], x[:, weight == 0])


@pytest.mark.dealt
@pytest.mark.parametrize("norm", NORMS)
def test_target(norm):
    net, x = linear(6, 4, seed=2), samples(30, 6)
    y = net(x).argmax(1)
    target = (y + 1 + torch.arange(30) % 3) % 4
    exact = distances(net, x, y, norm, target=target.numpy())
    x_adv, info = attack(net, x, y, norm=norm, target=target.numpy())
    assert (net(x_adv).argmax(1) == target).all()
    assert (info["distance"].numpy() >= exact * (1 - 1e-6)).all()
    # a third class in between makes a corner, around which planes lead with detours
    assert np.median(info["distance"].numpy() / exact) < 1.01
    assert (info["distance"].numpy() / exact).max() < 1.6


@pytest.mark.dealt
@pytest.mark.parametrize("boxed", [True, False])
@pytest.mark.parametrize("norm", NORMS)
def test_two_classes_make_one_boundary(norm, boxed):
    with torch.random.fork_rng():
        torch.manual_seed(5)
        net = nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 2)).double()
    x = samples(30, 5)
    clip = (0, 1) if boxed else None
    one, _ = attack(net, x, norm=norm, clip=clip)
    y = net(x).argmax(1)
    for others in ({"n_targets": 1}, {"n_targets": "all"}, {"target": (1 - y).numpy()}):
        two, _ = attack(net, x, y, norm=norm, clip=clip, **others)
        assert_allclose(two, one, atol=1e-9)


def test_linear_models_take_few_steps():
    net, x = linear(8, 2), samples(10, 8)
    victim = as_victim(net)
    attack(victim, x)
    assert victim.calls.backward <= 10 * 10


# --- networks ------------------------------------------------------------------------


def plane_net(seed):
    """Return a small ReLU network on the plane, trained on three rings of blobs."""
    rng = np.random.RandomState(seed)
    angle = rng.uniform(0, 2 * np.pi, 300)
    X = np.c_[np.cos(angle), np.sin(angle)] * rng.uniform(0.1, 1, 300)[:, None]
    y = ((angle // 0.8).astype(int) + (np.hypot(*X.T) > 0.55)) % 3
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Linear(2, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 3)
        ).double()
        optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
        for _ in range(150):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(torch.tensor(X)), torch.tensor(y)).backward()
            optimizer.step()
    return net.eval(), torch.tensor(X[:40])


@pytest.mark.dealt
@pytest.mark.parametrize("n_targets", [None, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("norm", NORMS)
def test_network_on_the_plane_against_brute_force(norm, n_targets):
    net, x = plane_net(0)
    grid = np.linspace(-1.5, 1.5, 601)
    points = torch.tensor(np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2))
    with torch.no_grad():
        label, y = net(points).argmax(1), net(x).argmax(1)
    gap = torch.cdist(x, points, p=float(norm))
    exact = gap.masked_fill(label[None] == y[:, None], torch.inf).amin(1)
    x_adv, info = attack(net, x, norm=norm, clip=(-1.5, 1.5), n_targets=n_targets)
    assert (net(x_adv).argmax(1) != y).all()
    # the next point of the grid is at most a cell (0.005) further than the border
    cell = 0.005 * (2 if norm == 1 else 1)
    assert (info["distance"] >= exact - cell).all()
    close = info["distance"] <= 1.05 * exact + 0.005
    assert close.double().mean() >= 0.8
    assert (info["distance"] / exact).median() < 1.02


@pytest.mark.dealt
@pytest.mark.parametrize("norm", [np.inf, 2.0])
def test_closer_than_deepfool(norm, images):
    x, y = torch.tensor(images.X[:40]), torch.tensor(images.y[:40])
    _, fab = attack(images.net, x, y, norm=norm, clip=(0, 1), n_steps=40)
    quick = DeepFool(norm=norm, clip=(0, 1))
    _, deepfool = quick.perturb(images.net, x, y, keep="worst", return_info=True)
    assert fab["distance"].isfinite().all()
    right = fab["distance"] > 0
    better = fab["distance"][right] <= deepfool["distance"][right] * (1 + 1e-4)
    assert better.double().mean() > 0.95


@pytest.mark.dealt
@pytest.mark.parametrize("norm", NORMS)
def test_restarts_only_help_and_depend_on_the_seed(norm):
    net, x = plane_net(1)
    once = attack(net, x, norm=norm, n_steps=8)[1]["distance"]
    again = attack(net, x, norm=norm, n_steps=8, n_restarts=4)[1]["distance"]
    assert (again <= once).all()
    assert (again < once - 1e-6).any()
    other = attack(net, x, norm=norm, n_steps=8, n_restarts=4, random_state=1)[1]["distance"]
    assert not torch.equal(other, again)


@pytest.mark.parametrize("n_restarts", [1, 3])
def test_restart_begins_within_half_of_what_is_known(n_restarts, monkeypatch):
    net, x = plane_net(1)
    starts = []
    run = FAB._run

    def watch(self, batch, closest, rows, candidates, u):
        known = closest.distance[rows].clamp_max(batch.ball.radius)
        starts.append(torch.linalg.vector_norm(u, ord=np.inf, dim=1) / known)
        return run(self, batch, closest, rows, candidates, u)

    monkeypatch.setattr(FAB, "_run", watch)
    attack(net, x, n_steps=3, n_restarts=n_restarts, eps=0.3)
    assert len(starts) == n_restarts
    assert (starts[0] == 0).all()
    for start in starts[1:]:
        assert (start <= 0.5 + 1e-9).all()
        assert start.max() > 0.3


# --- cost and limits -----------------------------------------------------------------


def test_evaluation_stops_at_the_first_success_within_the_ball():
    net, x = plane_net(0)
    y = net(x).argmax(1)
    _, info = attack(net, x, y, keep="worst", n_targets=2)
    eps = float(info["distance"].median()) * 1.01
    victim = as_victim(net)
    x_adv, first = attack(victim, x, y, keep="first", eps=eps, n_targets=2)
    within = info["distance"] <= eps
    hit = net(x_adv).argmax(1) != y
    assert_array_equal(hit[within], True)
    assert (torch.linalg.vector_norm(x_adv - x, ord=np.inf, dim=1) <= eps * (1 + 1e-12)).all()
    assert_array_equal(first["distance"].isfinite(), hit)
    everything = as_victim(net)
    attack(everything, x, y, keep="worst", n_targets=2)
    assert victim.calls.backward < 0.75 * everything.calls.backward
    everyone = as_victim(net)
    attack(everyone, x, y, keep="first", n_targets=2, n_restarts=50)
    assert everyone.calls.backward < 0.2 * everything.calls.backward


@pytest.mark.parametrize(("n_targets", "passes"), [(None, 4), (1, 1), (2, 2), ("all", 4), (99, 4)])
def test_backward_passes(n_targets, passes):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 5)).double()
    victim = as_victim(net)
    # nothing is found before the last quarter, where more is looked at
    attack(victim, samples(7, 4), n_targets=n_targets, n_steps=1, eta=0.01)
    assert victim.calls.backward == 7 * passes


class Dead(nn.Module):
    """A network whose gradient is `slope` times that of its first feature."""

    def __init__(self, slope):
        super().__init__()
        self.slope = slope

    def forward(self, x):
        return torch.stack([1 + 0 * x[:, 0], self.slope * x[:, 0] ** 2], dim=1)


@pytest.mark.parametrize("slope", [0.0, float("nan")])
@pytest.mark.parametrize("norm", NORMS)
def test_no_gradient(norm, slope):
    x, y = samples(5, 3), torch.zeros(5, dtype=torch.int64)
    net = Dead(slope)
    x_adv, info = attack(net, x, y, norm=norm, n_restarts=2, clip=(0, 1))
    if slope == 0:
        assert_array_equal(x_adv, x)
        assert info["distance"].isinf().all()
    assert x_adv.isfinite().all()


@pytest.mark.dealt
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm", NORMS)
def test_one_sample_and_images(norm, dtype, images):
    net = images.net.to(dtype)
    x, y = torch.tensor(images.X[:3]).to(dtype), torch.tensor(images.y[:3])
    together, _ = attack(net, x, y, norm=norm, n_steps=10, clip=(0, 1), n_targets=2)
    assert together.shape == x.shape
    assert together.dtype == dtype
    assert (net(together).argmax(1) != y).all()
    alone, _ = attack(net, x[:1], y[:1], norm=norm, n_steps=10, clip=(0, 1), n_targets=2)
    assert_allclose(alone, together[:1], atol=1e-3 if dtype == torch.float32 else 1e-9)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n_steps": 0}, "n_steps must be an integer"),
        ({"n_restarts": 0}, "n_restarts must be an integer"),
        ({"n_targets": 0}, "n_targets must be an integer"),
        ({"n_targets": "some"}, "n_targets must be"),
        ({"alpha_max": 1.5}, "alpha_max must be a number from 0 to 1, got 1.5"),
        ({"alpha_max": "much"}, "alpha_max must be a number"),
        ({"eta": -1}, "eta must be a number from 0 to 2, got -1"),
        ({"beta": float("nan")}, "beta must be a number"),
    ],
)
def test_bad_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        attack(linear(3, 3), samples(4, 3), **parameters)


def test_module_cut_off_from_its_input():
    class Cut(nn.Module):
        def forward(self, x):
            return x.detach()

    with pytest.raises(ValueError, match="No gradient reaches the input of Cut"):
        attack(Cut(), samples(4, 3))
