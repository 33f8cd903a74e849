import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats
from scipy.optimize import brentq

from robustsk.attacks.noise import SampleNoise
from robustsk.attacks.threat import (
    DEFAULT_EPS,
    L1_FRACTION,
    Ball,
    check_eps,
    check_norm,
    project_l1,
    settle,
)

NORMS = (np.inf, 2.0, 1.0)
each_norm = pytest.mark.parametrize("norm", NORMS, ids=["inf", "2", "1"])
quick = settings(deadline=None, derandomize=True, max_examples=40)


def sizes(delta, norm):
    return np.linalg.norm(np.asarray(delta).reshape(len(delta), -1), ord=norm, axis=1)


# --- spelling and validation ----------------------------------------------------------


@pytest.mark.parametrize(
    ("spelling", "value"),
    [
        (np.inf, np.inf),
        (float("inf"), np.inf),
        ("inf", np.inf),
        ("linf", np.inf),
        ("Linf", np.inf),
        ("l_inf", np.inf),
        (2, 2.0),
        (2.0, 2.0),
        (np.int64(2), 2.0),
        ("2", 2.0),
        (" l2 ", 2.0),
        (1, 1.0),
        ("L1", 1.0),
        ("1", 1.0),
    ],
)
def test_check_norm_reads_every_spelling(spelling, value):
    found = check_norm(spelling)
    assert type(found) is float
    assert found == value


@pytest.mark.parametrize("norm", [3, 0, -1, np.nan, True, None, "l3", "", [2], 1.5])
def test_check_norm_refuses_the_rest(norm):
    with pytest.raises(ValueError, match=r"is not supported; use one of inf, 2, 1\."):
        check_norm(norm)


def test_check_norm_knows_what_the_caller_supports():
    assert check_norm(2, (2.0,)) == 2.0
    with pytest.raises(ValueError, match=r"norm='linf' is not supported; use one of 2\."):
        check_norm("linf", (2.0,))


def test_check_eps_defaults():
    assert check_eps(None, np.inf, (3,)) == 8 / 255
    assert check_eps(None, 2.0, (3,)) == 0.5
    assert check_eps(None, 1.0, (3,)) == 12.0
    assert set(DEFAULT_EPS) == {*NORMS, 0.0}


def test_check_eps_numbers_and_arrays():
    for eps in (1, 1.0, np.float32(1), np.array(1)):
        assert check_eps(eps, 2.0, (3,)) == 1.0
        assert type(check_eps(eps, 2.0, (3,))) is float
    assert check_eps(0, 2.0, (3,)) == 0.0
    assert_array_equal(check_eps([1, 0, 2], 2.0, (3,)), [1, 0, 2])
    per_channel = check_eps(np.ones((2, 1, 1)), 2.0, (2, 4, 4))
    assert per_channel.shape == (2, 4, 4)


@pytest.mark.parametrize(
    ("eps", "error", "words"),
    [
        (-1, ValueError, "finite and not negative, got -1"),
        (np.nan, ValueError, "finite and not negative, got nan"),
        (np.inf, ValueError, "finite"),
        ([0.1, -0.1, 0.1], ValueError, "not negative"),
        ([0.1, 0.1], ValueError, re.escape("shape (2,), but one sample has shape (3,)")),
        (np.ones((5, 3)), ValueError, re.escape("shape (5, 3)")),
        ("x", TypeError, "eps must be a number or an array of numbers, got 'x'"),
        ([[1], [1, 2]], TypeError, "eps must be a number"),
    ],
)
def test_check_eps_refuses(eps, error, words):
    with pytest.raises(error, match=words):
        check_eps(eps, 2.0, (3,))


# --- projections ----------------------------------------------------------------------


def l1_by_root_finding(v, radius):
    """Soft threshold whose result has the norm asked for, found by bisection."""
    if np.abs(v).sum() <= radius:
        return v
    shrink = lambda t: np.maximum(np.abs(v) - t, 0)  # noqa: E731
    t = brentq(lambda t: shrink(t).sum() - radius, 0, np.abs(v).max(), xtol=1e-15)
    return np.sign(v) * shrink(t)


rows = hnp.arrays(
    np.float64,
    st.tuples(st.integers(1, 4), st.integers(1, 7)),
    elements=st.floats(-10, 10, allow_subnormal=False),
)
radii = st.floats(1e-3, 20)


@quick
@given(rows, radii)
def test_project_l1_agrees_with_root_finding(delta, radius):
    found = project_l1(torch.tensor(delta), radius).numpy()
    assert_allclose(found, [l1_by_root_finding(v, radius) for v in delta], atol=1e-9)


def test_project_l1_by_hand():
    delta = torch.tensor([[3.0, 1.0, 0.0], [2.0, -2.0, 0.0], [0.2, -0.3, 0.1], [0.0, 0.0, 0.0]])
    expected = [[1, 0, 0], [0.5, -0.5, 0], [0.2, -0.3, 0.1], [0, 0, 0]]
    assert_allclose(project_l1(delta, 1.0), expected)
    assert_array_equal(project_l1(delta, 0.0), np.zeros((4, 3)))


@each_norm
@quick
@given(rows, radii, st.integers(0, 10**6))
def test_projection_is_the_nearest_point(norm, z, radius, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=z.shape)
    projected = Ball(torch.tensor(x), norm, radius).project(torch.tensor(z)).numpy()
    assert np.all(sizes(projected - x, norm) <= radius * (1 + 1e-12) + 1e-12)
    inside = sizes(z - x, norm) <= radius
    assert_allclose(projected[inside], z[inside], atol=1e-12)
    for _ in range(20):
        other = rng.normal(size=z.shape) * rng.choice([0.01, 1.0, 10.0])
        other *= np.minimum(1, radius / np.maximum(sizes(other, norm), 1e-300))[:, None]
        assert np.all(sizes(z - projected, 2) <= sizes(z - x - other, 2) + 1e-9)


@each_norm
@quick
@given(rows, radii, st.integers(0, 10**6))
def test_projection_is_idempotent_and_respects_the_box(norm, z, radius, seed):
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, size=z.shape)
    low, high = torch.tensor(-1.0), torch.tensor(1.0)
    ball = Ball(torch.tensor(x), norm, radius, low, high)
    once = ball.project(torch.tensor(z))
    assert once.min() >= -1
    assert once.max() <= 1
    assert np.all(sizes(once.numpy() - x, norm) <= radius * (1 + 1e-12) + 1e-12)
    assert_allclose(ball.project(once), once, atol=1e-12)


def test_projection_by_hand():
    x = torch.tensor([[1.0, 1.0]])
    z = torch.tensor([[4.0, 5.0]])
    assert_allclose(Ball(x, 2.0, 1.0).project(z), [[1.6, 1.8]], rtol=1e-6)
    assert_allclose(Ball(x, np.inf, 1.0).project(z), [[2.0, 2.0]])
    assert_allclose(Ball(x, 1.0, 1.0).project(z), [[1.0, 2.0]])


@each_norm
def test_sample_outside_of_the_box_is_not_pushed_further_out(norm):
    x = torch.tensor([[1.5, -0.5, 0.5]])
    ball = Ball(x, norm, 1.0, torch.tensor(0.0), torch.tensor(1.0))
    up = ball.project(x + torch.tensor([[0.2, -0.2, 0.2]]))
    assert_allclose(up, [[1.5, -0.5, 0.7]])
    back = ball.project(x + torch.tensor([[-0.2, 0.2, -0.2]]))
    assert_allclose(back, [[1.3, -0.3, 0.3]])


@each_norm
def test_ellipsoid(norm):
    rng = np.random.default_rng(0)
    eps = np.array([0.5, 0.0, 2.0, 1.0])
    x, z = rng.normal(size=(2, 50, 4)) * [[[1.0]], [[4.0]]]
    projected = Ball(torch.tensor(x), norm, torch.tensor(eps)).project(torch.tensor(z)).numpy()
    assert_array_equal(projected[:, 1], x[:, 1])
    unit = (projected - x)[:, eps > 0] / eps[eps > 0]
    assert np.all(sizes(unit, norm) <= 1 + 1e-12)
    assert sizes(unit, norm).max() > 0.999


@each_norm
def test_select_restricts_everything(norm):
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.uniform(size=(6, 2, 2, 2)))
    z = torch.tensor(rng.normal(size=(6, 2, 2, 2)))
    low, high = torch.zeros(2, 2, 2), torch.ones(2, 2, 2)
    eps = torch.tensor(rng.uniform(0.1, 1, size=(2, 2, 2)))
    for radius in (0.3, eps):
        ball = Ball(x, norm, radius, low, high)
        for index in (torch.tensor([4, 1]), torch.tensor([False, True] * 3)):
            assert_array_equal(ball.select(index).project(z[index]), ball.project(z)[index])


# --- directions -----------------------------------------------------------------------


def direction_of(norm, gradient, eps=100.0, size=0.25):
    x = torch.zeros_like(gradient)
    return Ball(x, norm, eps).ascend(x, gradient, size).numpy() / size


@each_norm
@pytest.mark.parametrize("shape", [(5, 7), (5, 3, 4, 4)])
def test_step_has_unit_length(norm, shape):
    gradient = torch.tensor(np.random.default_rng(0).normal(size=shape) * 1e-6)
    assert_allclose(sizes(direction_of(norm, gradient), norm), 1.0, rtol=1e-9)


@each_norm
def test_step_along_no_gradient_stays(norm):
    assert_array_equal(direction_of(norm, torch.zeros(3, 8)), np.zeros((3, 8)))


@each_norm
def test_no_direction_of_unit_length_is_steeper(norm):
    rng = np.random.default_rng(0)
    gradient = rng.normal(size=(4, 9))  # so few features that the l1 step moves a single one
    found = direction_of(norm, torch.tensor(gradient))
    gain = (found * gradient).sum(1)
    dual = {np.inf: 1, 2.0: 2, 1.0: np.inf}[norm]
    assert_allclose(gain, sizes(gradient, dual), rtol=1e-9)
    for _ in range(500):
        other = rng.normal(size=gradient.shape) ** rng.choice([1, 3, 9])
        other /= sizes(other, norm)[:, None]
        assert np.all((other * gradient).sum(1) <= gain + 1e-12)


@each_norm
def test_no_direction_in_the_ellipsoid_is_steeper(norm):
    rng = np.random.default_rng(0)
    gradient = rng.normal(size=(4, 5))
    eps = np.array([1.0, 0.1, 0.5, 0.0, 0.2])
    found = direction_of(norm, torch.tensor(gradient), torch.tensor(eps) * 100)
    gain = (found * gradient).sum(1)
    assert_array_equal(found[:, 3], 0)
    for _ in range(500):
        other = rng.normal(size=gradient.shape)
        other = other / sizes(other, norm)[:, None] * eps
        assert np.all((other * gradient).sum(1) <= gain + 1e-12)


def test_l1_step_moves_a_share_of_the_features():
    gradient = torch.tensor(np.random.default_rng(0).normal(size=(3, 100)))
    found = direction_of(1.0, gradient)
    assert_array_equal((found != 0).sum(1), round(100 * L1_FRACTION))
    for moved, g in zip(found, gradient.numpy(), strict=True):
        assert np.abs(g[moved != 0]).min() >= np.abs(g[moved == 0]).max()
        assert_array_equal(np.sign(moved[moved != 0]), np.sign(g[moved != 0]))


def test_l1_step_goes_on_where_there_is_no_room():
    """The steepest features share a step; what one has no room for goes to the next."""
    x = torch.full((1, 300), 0.5, dtype=torch.float64)
    x[0, 0], x[0, 1] = 0.9, 0.0
    slope = torch.linspace(3, 1, 300, dtype=torch.float64)
    ball = Ball(x, 1.0, 9.0, torch.tensor(0.0), torch.tensor(1.0))
    moved = (ball.push(x, slope[None], 2.0) - x)[0]
    # three features of 300 share it: 2 / 3 each, of which the box leaves less
    assert_allclose(moved[:6], [0.1, 2 / 3, 0.5, 0.5, 2 - 0.1 - 2 / 3 - 1.0, 0])
    assert_allclose(moved.sum(), 2.0)
    # the part that is not to be had at all is given up
    assert_allclose((ball.push(x, slope[None], 100.0) - x).sum(), 0.1 + 1.0 + 28 * 0.5)
    # what has no slope does not move
    slope[2:] = 0
    assert_allclose((ball.push(x, slope[None], 2.0) - x)[0, :4], [0.1, 2 / 3, 0, 0])
    # without a box the steepest share it equally
    free = Ball(x, 1.0, 9.0).push(x, -torch.linspace(3, 1, 300).double()[None], 2.0) - x
    assert_allclose(free[0, :4], [-2 / 3, -2 / 3, -2 / 3, 0])


def test_l1_step_leaves_features_that_have_nowhere_to_go():
    x = torch.tensor([[1.0, 0.5, 0.0]])
    gradient = torch.tensor([[9.0, 1.0, -5.0]])
    ball = Ball(x, 1.0, 1.0, torch.tensor(0.0), torch.tensor(1.0))
    assert_allclose(ball.ascend(x, gradient, 0.25), [[1.0, 0.75, 0.0]])


# --- random starts --------------------------------------------------------------------

N, D = 4000, 5
SAMPLES = torch.tensor(np.random.default_rng(0).normal(size=(N, D)))


def start(norm, radius=2.0, kind="uniform", eps=None, x=SAMPLES, std=0.1, **box):
    ball = Ball(x, norm, radius if eps is None else eps, **box)
    return ball.random_start(kind, SampleNoise(x, 0), 0, std)


@each_norm
def test_random_start_stays_inside(norm):
    moved = (start(norm) - SAMPLES).numpy()
    assert sizes(moved, norm).max() <= 2 + 1e-12
    assert sizes(moved, norm).max() > 1.9
    x = SAMPLES.clamp(0, 1)
    boxed = start(norm, x=x, lower=torch.tensor(0.0), upper=torch.tensor(1.0))
    assert boxed.min() >= 0
    assert boxed.max() <= 1
    assert sizes((boxed - x).numpy(), norm).max() <= 2 + 1e-12


def test_random_start_is_uniform_in_the_cube():
    unit = (start(np.inf) - SAMPLES).numpy() / 2
    assert_allclose(unit.mean(0), 0, atol=0.04)
    assert_allclose((unit**2).mean(0), 1 / 3, atol=0.02)
    assert_allclose(np.corrcoef(unit.T), np.eye(D), atol=0.06)
    assert stats.kstest(unit.ravel(), stats.uniform(-1, 2).cdf).pvalue > 0.01


def test_random_start_is_uniform_in_the_sphere():
    unit = (start(2.0) - SAMPLES).numpy() / 2
    assert stats.kstest(sizes(unit, 2) ** D, "uniform").pvalue > 0.01
    assert_allclose(unit.mean(0), 0, atol=0.03)
    assert_allclose(unit.T @ unit / N, np.eye(D) / (D + 2), atol=0.012)


def test_random_start_is_uniform_in_the_cross_polytope():
    unit = (start(1.0) - SAMPLES).numpy() / 2
    length = sizes(unit, 1)
    assert stats.kstest(length, stats.beta(D, 1).cdf).pvalue > 0.01
    assert_allclose(unit.mean(0), 0, atol=0.015)
    # on the surface every share is Beta(1, D - 1)
    share = np.abs(unit) / length[:, None]
    for feature in range(D):
        assert stats.kstest(share[:, feature], stats.beta(1, D - 1).cdf).pvalue > 0.001


@each_norm
def test_random_start_of_an_ellipsoid(norm):
    eps = torch.tensor([2.0, 0.0, 1.0, 0.1, 0.5])
    moved = (start(norm, eps=eps) - SAMPLES).numpy()
    assert_array_equal(moved[:, 1], 0)
    kept = [0, 2, 3, 4]
    assert sizes(moved[:, kept] / eps.numpy()[kept], norm).max() <= 1 + 1e-12


@each_norm
def test_gaussian_start(norm):
    moved = (start(norm, radius=50.0, kind="gaussian") - SAMPLES).numpy()
    assert stats.kstest(moved.ravel() / 0.1, "norm").pvalue > 0.01
    frozen = start(norm, kind="gaussian", eps=torch.tensor([1.0, 0, 1, 1, 1]))
    assert_array_equal(frozen[:, 1], SAMPLES[:, 1])
    small = start(norm, radius=0.01, kind="gaussian")
    assert sizes((small - SAMPLES).numpy(), norm).max() <= 0.01 * (1 + 1e-9)


@each_norm
def test_no_random_start_is_a_copy(norm):
    z = start(norm, kind="none")
    assert torch.equal(z, SAMPLES)
    assert z.data_ptr() != SAMPLES.data_ptr()


@each_norm
def test_restarts_differ(norm):
    ball, noise = Ball(SAMPLES, norm, 1.0), SampleNoise(SAMPLES, 0)
    starts = [(ball.random_start("uniform", noise, s, 0) - SAMPLES).numpy() for s in range(3)]
    for i, j in [(0, 1), (0, 2), (1, 2)]:
        assert abs(np.corrcoef(starts[i].ravel(), starts[j].ravel())[0, 1]) < 0.03


# --- settling -------------------------------------------------------------------------


@st.composite
def perturbed(draw):
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    shape = draw(st.tuples(st.integers(1, 3), st.integers(1, 8)))
    width = np.dtype(dtype).itemsize * 8
    scale = draw(st.sampled_from([1.0, 10.0, 1024.0]))
    elements = st.floats(-scale, scale, width=width, allow_subnormal=False)
    x = draw(hnp.arrays(dtype, shape, elements=elements))
    z = draw(hnp.arrays(dtype, shape, elements=elements))
    norm = draw(st.sampled_from(NORMS))
    eps = draw(st.one_of(st.sampled_from([8 / 255, 0.1, 0.3, 0.0]), st.floats(1e-3, 2e3)))
    return x, z, norm, eps


def assert_settled(settled, x, norm, eps):
    assert settled.dtype == x.dtype
    for moved in (settled - x, settled.astype(np.float64) - x.astype(np.float64)):
        assert np.all(sizes(moved, norm).astype(np.float64) <= eps)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(perturbed())
def test_settle_keeps_the_ball_to_the_last_bit(case):
    x, z, norm, eps = case
    settled = settle(torch.tensor(z), torch.tensor(x), norm, eps).numpy()
    assert_settled(settled, x, norm, eps)
    # towards z, never past it and never away from it
    moved, wanted = settled.astype(float) - x, z.astype(float) - x
    assert np.all(moved * wanted >= 0)
    assert np.all(np.abs(moved) <= np.abs(wanted))


@settings(deadline=None, derandomize=True, max_examples=100)
@given(perturbed(), st.integers(-50, 50), st.integers(1, 10_000))
def test_settle_keeps_the_box_to_the_last_bit(case, low, width):
    x, z, norm, eps = case
    low, high = low / 10, (low + width) / 10
    x = np.clip(x, low, high).astype(x.dtype)
    # rounding may have carried a clean sample out of the box
    inside = (x.astype(float) >= low) & (x.astype(float) <= high)
    x = np.where(inside, x, x.dtype.type((low + high) / 2))
    settled = settle(torch.tensor(z), torch.tensor(x), norm, eps, low, high).numpy()
    assert_settled(settled, x, norm, eps)
    assert np.all(settled.astype(float) >= low)
    assert np.all(settled.astype(float) <= high)


def test_settle_box_by_hand():
    # 0.1 - (-0.7) rounds up in float64, and back again to more than 0.1
    rng = np.random.default_rng(0)
    x = rng.uniform(-3, 0.1, size=(1, 2000))
    settled = settle(torch.full((1, 2000), 9.0).double(), torch.tensor(x), np.inf, 20.0, -4.0, 0.1)
    assert settled.max() <= 0.1
    assert settled.min() > 0.1 - 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@each_norm
def test_settle_loses_no_more_than_rounding(norm, dtype):
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.normal(size=(20, 6)), dtype=dtype)
    z = x + torch.tensor(rng.normal(size=(20, 6)), dtype=dtype)
    eps = 0.5
    settled = settle(z, x, norm, eps)
    reached = sizes((settled - x).numpy(), norm)
    wanted = np.minimum(sizes((z - x).numpy(), norm), eps)
    assert_allclose(reached, wanted, rtol=40 * torch.finfo(dtype).eps)
    near = x + 0.01 * (z - x)
    assert_allclose(settle(near, x, norm, eps), near, rtol=0, atol=4 * torch.finfo(dtype).eps)


@each_norm
def test_settle_per_feature(norm):
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.normal(size=(30, 4)), dtype=torch.float32)
    z = x + torch.tensor(rng.normal(size=(30, 4)), dtype=torch.float32)
    eps = np.array([0.1, 0.0, 0.3, 8 / 255])
    settled = settle(z, x, norm, eps).numpy()
    assert_array_equal(settled[:, 1], x[:, 1])
    moved = np.abs(settled.astype(float) - x.numpy().astype(float))
    assert np.all(moved <= eps)
    assert np.all(np.abs(settled - x.numpy()).astype(float) <= eps)


def test_settle_takes_a_float64_perturbation_of_float32_data():
    x = torch.tensor([[0.5, 0.25]])
    z = x.double() + torch.tensor([[0.1, -0.1]], dtype=torch.float64)
    settled = settle(z, x, np.inf, 0.1)
    assert settled.dtype == torch.float32
    assert np.abs(settled.numpy().astype(float) - x.numpy()).max() <= 0.1
