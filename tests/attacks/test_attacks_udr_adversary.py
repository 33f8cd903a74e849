"""The soft ball and its dual variable against their formulas."""

import pickle

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from torch import nn

from robustsk import PGD
from robustsk.attacks.threat import project_l1
from robustsk.training import UDRAdversary, soft_project

KAPPAS = [0.0, 0.3, 0.72, 1.0]


def linear(weights):
    """Return a network whose first logit is ``weights @ x``."""
    model = nn.Linear(len(weights), 2, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([weights, [0.0] * len(weights)]))
    return model


def first(logits, y):
    return logits[:, 0]


@pytest.fixture
def delta():
    return torch.from_numpy(np.random.default_rng(0).normal(scale=1.5, size=(40, 6)))


@pytest.fixture
def problem():
    """A small network with curvature, samples and labels."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3)).double()
    return model, torch.rand(8, 6).double(), torch.arange(8) % 3


# --- the projection ------------------------------------------------------------------


@pytest.mark.parametrize("kappa", KAPPAS)
def test_projection_of_the_max_norm(delta, kappa):
    d = delta.numpy()
    expected = d - kappa * (d - np.sign(d)) * (np.abs(d) > 1)
    out = soft_project(delta, 1.0, kappa).numpy()
    assert_allclose(out, expected, atol=1e-15)
    inside = np.abs(d) <= 1
    assert inside.any()
    assert_allclose(out[inside], d[inside], atol=1e-15)
    over = (np.abs(d) - 1).clip(0)
    assert_allclose((np.abs(out) - 1).clip(0), (1 - kappa) * over, atol=1e-15)
    assert_allclose(soft_project(-delta, 1.0, kappa), -out)  # odd


@pytest.mark.parametrize("norm", [np.inf, 2, 1])
def test_ends_are_nothing_and_the_projection(delta, norm):
    assert_array_equal(soft_project(delta, 1.0, 0.0, norm), delta)
    hard = soft_project(delta, 1.0, 1.0, norm)
    if norm == np.inf:
        expected = delta.clamp(-1, 1)
    elif norm == 2:
        expected = delta * (1 / delta.norm(dim=1, keepdim=True)).clamp_max(1)
    else:
        expected = project_l1(delta, 1.0)
    assert_allclose(hard, expected, atol=1e-15)
    assert_allclose(soft_project(hard, 1.0, 1.0, norm), hard, atol=1e-15)
    half = soft_project(delta, 1.0, 0.5, norm)
    assert (soft_project(half, 1.0, 0.5, norm) - half).abs().max() > 0.1


@pytest.mark.parametrize("norm", [np.inf, 2, 1])
@pytest.mark.parametrize(("k1", "k2"), [(0.3, 0.72), (0.5, 0.5), (1.0, 0.2)])
def test_two_make_one(delta, norm, k1, k2):
    twice = soft_project(soft_project(delta, 1.0, k1, norm), 1.0, k2, norm)
    assert_allclose(twice, soft_project(delta, 1.0, 1 - (1 - k1) * (1 - k2), norm), atol=1e-12)


@pytest.mark.parametrize("kappa", KAPPAS)
def test_projection_does_not_expand(delta, kappa):
    out = soft_project(delta, 1.0, kappa)
    assert (out.diff(dim=0).abs() <= delta.diff(dim=0).abs() + 1e-12).all()
    steps = torch.linspace(-3, 3, 6001, dtype=torch.float64)[:, None]
    assert soft_project(steps, 1.0, kappa).diff(dim=0).abs().max() <= 1.001e-3  # continuous


@pytest.mark.parametrize(("kappa", "limit"), [(0.72, 0.034423), (0.5, 10 / 255)])
def test_overshoot_at_the_fixed_point(kappa, limit):
    """Push and pull from the border: ``o * (1 - (1 - kappa) ** n)``."""
    eps, step = 8 / 255, 2 / 255
    d = torch.full((1, 1), eps, dtype=torch.float64)
    o = step * (1 - kappa) / kappa
    for n in range(1, 40):
        d = soft_project(d + step, eps, kappa)
        assert float(d) - eps == pytest.approx(o * (1 - (1 - kappa) ** n))
    assert float(d) == pytest.approx(limit, abs=1e-6)


def test_bad_kappa(delta):
    with pytest.raises(ValueError, match="kappa"):
        soft_project(delta, 1.0, 1.5)


# --- the adversary -------------------------------------------------------------------


@pytest.mark.parametrize("norm", [np.inf, 2, 1])
@pytest.mark.parametrize("start", ["none", "uniform", "gaussian"])
def test_hard_ball_is_pgd_to_the_last_bit(problem, norm, start):
    model, x, y = problem
    common = {"norm": norm, "eps": 0.2, "n_steps": 4, "random_start": start, "clip": (0, 1)}
    expected = PGD(**common).perturb(model, x, y, seed=3)
    assert_array_equal(UDRAdversary(**common).perturb(model, x, y, seed=3), expected)
    for more in ({"lambda_init": 50.0}, {"tau": 0.01, "lambda_init": 1.0, "step_size": 0.125}):
        hard = UDRAdversary(**common, **more)
        reference = PGD(**common, step_size=more.get("step_size"))
        assert_array_equal(
            hard.perturb(model, x, y, seed=3), reference.perturb(model, x, y, seed=3)
        )


def test_with_no_price_it_goes_as_far_as_its_steps():
    model, x = linear([1.0, 2.0, -3.0]), torch.zeros(4, 3).double()
    free = UDRAdversary(
        eps=0.1, step_size=0.05, n_steps=7, lambda_init=0, objective=first, random_start="uniform"
    )
    start = PGD(eps=0.1, step_size=0.0, n_steps=1, objective=first)
    d0 = start.perturb(model, x, seed=5)
    d = free.perturb(model, x, seed=5)
    assert d0.abs().max() > 0.05
    assert_allclose(d, d0 + 7 * 0.05 * torch.tensor([1.0, 1.0, -1.0]))


def test_each_step_is_push_and_pull():
    model, x = linear([1.0, -1.0]), torch.zeros(1, 2).double()
    attack = UDRAdversary(
        eps=0.1, step_size=0.04, n_steps=5, tau=0.08, lambda_init=0.6, objective=first,
        random_start="none",
    )  # fmt: skip
    d = np.zeros(1)
    for _ in range(5):
        d = d + 0.04
        d = np.where(d > 0.1, 0.1 + (1 - 0.6 * 0.04 / 0.08) * (d - 0.1), d)
    assert_allclose(attack.perturb(model, x)[0], [d[0], -d[0]])


def test_valid_range_and_frozen_features(problem):
    model, x, y = problem
    mask = np.array([True, True, False, True, True, True])
    for each in (True, False):
        attack = UDRAdversary(
            eps=0.2, lambda_init=0.1, clip=(0.0, 1.0), mask=mask, clip_each_step=each
        )
        z = attack.perturb(model, x, y, seed=0)
        assert z.min() >= 0
        assert z.max() <= 1
        assert_array_equal(z[:, 2], x[:, 2])
        assert (z - x).abs().max() > 0.3  # it does leave the ball


@pytest.mark.parametrize("change", ["lambda_init", "tau"])
def test_the_dearer_the_nearer(change):
    model, x = linear([1.0, 0.5, -2.0]), torch.zeros(6, 3).double()
    sizes = []
    for value in (0.02, 0.05, 0.1, 0.2, 0.4):
        price = {"lambda_init": 5 * value, "tau": 0.1}
        if change == "tau":
            price = {"lambda_init": 0.5, "tau": 0.02 / value}
        attack = UDRAdversary(eps=0.1, step_size=0.02, n_steps=20, **price)
        z = attack.perturb(model, x, torch.zeros(6).long(), seed=1)
        sizes.append(float(z.abs().max()))
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1] + 0.01 >= 0.11


def test_evaluation_keeps_to_the_ball(problem):
    model, x, y = problem
    model = model.float()
    X = x.float().numpy()
    soft = UDRAdversary(model, eps=0.2, lambda_init=0.0, clip=(0, 1), random_state=0)
    hard = PGD(model, eps=0.2, clip=(0, 1), random_state=0)
    assert_array_equal(soft.fit(X).generate(X, y.numpy()), hard.fit(X).generate(X, y.numpy()))


def test_literal_quadratic_pull():
    """Eq. 29: the perturbation shrinks by ``1 - step * lam`` inside, ``/ tau`` outside."""
    model, x = linear([1.0, -1.0]), torch.zeros(1, 2).double()
    step, lam, tau, eps = 0.3, 0.5, 0.6, 0.4
    attack = UDRAdversary(
        soft_ball="literal", eps=eps, step_size=step, lambda_init=lam, tau=tau, n_steps=1,
        objective=first, random_start="none",
    )  # fmt: skip
    expected = step * (1 - step * lam)
    assert_allclose(attack.perturb(model, x)[0], [expected, -expected])
    u = expected + step
    assert u > eps
    expected = u * (1 - step * lam / tau)
    assert_allclose(attack.set_params(n_steps=2).perturb(model, x)[0], [expected, -expected])


@pytest.mark.parametrize(("norm", "count"), [(np.inf, 1), (1, 6)])
def test_literal_pull_in_other_costs(problem, norm, count):
    model, x, y = problem
    plain = {"eps": 0.2, "step_size": 0.1, "n_steps": 1}
    free = UDRAdversary(soft_ball="literal", cost_norm=norm, lambda_init=0, **plain)
    pulled = clone(free).set_params(lambda_init=0.1)
    moved = (free.perturb(model, x, y, seed=0) - pulled.perturb(model, x, y, seed=0)).abs()
    assert_array_equal((moved > 1e-12).sum(1), count)
    inside = moved[(moved > 1e-12) & ((free.perturb(model, x, y, seed=0) - x).abs() < 0.2)]
    assert_allclose(inside, 0.1 * 0.1)


# --- the dual variable ---------------------------------------------------------------


def moved_by(*sizes):
    x = torch.zeros(len(sizes), 4, dtype=torch.float64)
    return x, torch.tensor(sizes, dtype=torch.float64)[:, None] * torch.tensor([1.0, -1, 1, 0])


@pytest.mark.parametrize("size", [0.05, 0.1333333, 0.2])
def test_it_moves_by_the_slack(size):
    """Mean of |d| over the features is 3/4 of the size here."""
    attack = UDRAdversary(eps=0.1, lambda_init=1.5, lambda_lr=0.7, lambda_period=1)
    attack.observe(*moved_by(size, size))
    assert attack.lam_ == pytest.approx(1.5 - 0.7 * (0.1 - 0.75 * size))


@pytest.mark.parametrize(
    ("distance", "expected"), [("mean_abs", 0.75), ("rms", 0.75**0.5), ("linf", 1.0)]
)
def test_distances(distance, expected):
    attack = UDRAdversary(eps=0.1, lambda_init=1.5, lambda_lr=1, lambda_period=1, distance=distance)
    attack.observe(*moved_by(0.1, 0.3))
    assert attack.lam_ == pytest.approx(1.5 - (0.1 - 0.2 * expected))


def test_distance_in_other_norms():
    attack = UDRAdversary(norm=2, eps=0.1, lambda_init=1.5, lambda_lr=1, lambda_period=1)
    attack.observe(*moved_by(0.1, 0.3))
    assert attack.lam_ == pytest.approx(1.5 - (0.1 - 0.2 * 3**0.5))


def test_smoothed_distance():
    attack = UDRAdversary(
        eps=0.1, lambda_init=1.5, lambda_lr=1, lambda_period=1, distance="linf", tau=0.25,
        smooth_distance=True,
    )  # fmt: skip
    attack.observe(*moved_by(0.05, 0.3))
    assert attack.lam_ == pytest.approx(1.5 - (0.1 - (0.05 + 0.1 + 0.2 / 0.25) / 2))


def test_frozen_features_do_not_count():
    attack = UDRAdversary(
        eps=0.1, lambda_init=1, lambda_lr=1, lambda_period=1, mask=[True, True, True, False]
    )
    attack.observe(*moved_by(0.08))
    assert attack.lam_ == pytest.approx(1 - 0.02)


def test_weights_of_samples_are_copies():
    a, b = (UDRAdversary(eps=0.1, lambda_lr=1, lambda_period=1) for _ in range(2))
    a.observe(*moved_by(0.1, 0.3, 0.3))
    b.observe(*moved_by(0.1, 0.3), torch.tensor([1.0, 2.0]).double())
    assert a.lam_ == pytest.approx(b.lam_)


def test_it_never_gets_negative():
    attack = UDRAdversary(eps=0.1, lambda_init=0.01, lambda_lr=10, lambda_period=1)
    attack.observe(*moved_by(0.0))
    assert attack.lam_ == 0


def test_a_period_is_one_update_with_the_mean():
    attack = UDRAdversary(eps=0.1, lambda_init=1.0, lambda_lr=0.5, lambda_period=3)
    sizes = [0.02, 0.3, 0.08]
    for size in sizes[:2]:
        attack.observe(*moved_by(size))
        assert attack.lam_ == 1.0
    attack.observe(*moved_by(sizes[2]))
    assert attack.lam_ == pytest.approx(1 - 0.5 * (0.1 - 0.75 * np.mean(sizes)))


def test_record():
    attack = UDRAdversary(eps=0.1, lambda_init=0.5)
    assert attack.record() == {}
    attack.observe(*moved_by(0.1, 0.3))
    attack.observe(*moved_by(0.8))
    record = attack.record()
    assert record["lam"] == 0.5
    assert record["kappa"] == 0.25  # lam * step / tau, with tau of two steps
    assert record["delta_mean"] == pytest.approx(0.75 * (0.1 + 0.3 + 0.8) / 3)
    assert record["delta_max"] == pytest.approx((0.1 + 0.3 + 0.8) / 3)
    assert attack.record() == {}


def test_state_is_carried_and_cloned_away():
    attack = UDRAdversary(eps=0.1, lambda_lr=1, lambda_period=2)
    for _ in range(3):
        attack.observe(*moved_by(0.3))
    assert attack.lam_ > 2
    again = pickle.loads(pickle.dumps(attack))
    other = clone(attack)
    assert other.lam_ is None
    other.resume(attack)
    other.resume(PGD())  # which knows nothing of it
    for a in (attack, again, other):
        a.observe(*moved_by(0.5))
    assert attack.lam_ == again.lam_ == other.lam_
    assert attack.lam_ == pytest.approx(2 + (0.225 - 0.1) + (0.3 - 0.1))


@pytest.mark.parametrize(
    "params",
    [
        {"soft_ball": "soft"}, {"distance": "l7"}, {"tau": 0}, {"tau_ratio": -1.0},
        {"lambda_init": -1}, {"lambda_lr": "fast"}, {"lambda_period": 0}, {"n_steps": 0},
        {"cost_norm": 3, "soft_ball": "literal"},
    ],
)  # fmt: skip
def test_bad_parameters(problem, params):
    model, x, y = problem
    name = next(iter(params)) if "cost_norm" not in params else "norm"
    with pytest.raises(ValueError, match=name):
        UDRAdversary(eps=0.1, **params).perturb(model, x, y)
