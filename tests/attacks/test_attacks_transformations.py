"""Differentiable transformations of images."""

import math
import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone

from robustsk import PGD
from robustsk.attacks import (
    EOT,
    Transformation,
    deterministic_transformations,
    stochastic_transformations,
)
from robustsk.datasets import load_digits_images
from robustsk.metrics import joint_success_rates

KINDS = ["identity", "hflip", "vflip", "crop", "gamma", "brightness", "rotation"]


def images(*shape, seed=0, dtype=torch.float64, low=0.0, high=1.0):
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(shape, generator=generator, dtype=dtype)


def uniform(n, seed=1):
    return torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- the seven -----------------------------------------------------------------------


def test_order():
    for seven in (deterministic_transformations(), stochastic_transformations(0)):
        assert list(seven) == KINDS
        assert [t.kind for t in seven.values()] == KINDS
    assert not any(t.stochastic for t in deterministic_transformations().values())
    assert all(t.stochastic for t in stochastic_transformations().values())


def test_deterministic_strengths_by_hand():
    x = images(2, 3, 5, 7)
    seven = deterministic_transformations()
    np.testing.assert_array_equal(seven["identity"](x), x)
    np.testing.assert_array_equal(seven["hflip"](x), x.numpy()[..., ::-1])
    np.testing.assert_array_equal(seven["vflip"](x), x.numpy()[:, :, ::-1])
    np.testing.assert_allclose(seven["gamma"](x), x.numpy() ** 1.3, rtol=1e-12)
    np.testing.assert_allclose(seven["brightness"](x), np.minimum(x.numpy() * 1.3, 1.0), rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_deterministic_calls_agree(kind):
    x = images(3, 1, 6, 6)
    t = Transformation(kind)
    assert torch.equal(t(x), t(x))
    assert torch.equal(t(x), t(x, uniform(3)))  # nothing to choose


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stochastic", [False, True])
def test_range_shape_dtype(kind, stochastic):
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.float64):
        x = images(4, 2, 5, 8, dtype=dtype)
        x[0, 0, 0, 0], x[0, 0, 0, 1] = 0.0, 1.0
        moved = Transformation(kind, stochastic=stochastic)(x)
        assert moved.shape == x.shape
        assert moved.dtype == dtype
        assert moved.min() >= 0
        assert moved.max() <= 1 + 1e-6


@pytest.mark.parametrize("kind", ["hflip", "vflip"])
def test_flip_twice(kind):
    x = images(4, 2, 5, 6)
    assert torch.equal(Transformation(kind)(Transformation(kind)(x)), x)
    t, u = Transformation(kind, stochastic=True), uniform(4)
    assert torch.equal(t(t(x, u), u), x)


def test_a_rotation_undoes_another():
    # a linear image is reproduced exactly by bilinear sampling, away from the border
    rows, columns = torch.meshgrid(*(torch.linspace(0, 1, 21).double(),) * 2, indexing="ij")
    x = (0.3 * rows + 0.5 * columns)[None, None]
    back = Transformation("rotation", strength=-10.0)(Transformation("rotation")(x))
    inner = (..., slice(5, -5), slice(5, -5))
    np.testing.assert_allclose(back[inner], x[inner], atol=1e-12)
    assert (Transformation("rotation")(x)[inner] - x[inner]).abs().max() > 0.02


def test_quarter_turn():
    x = images(2, 3, 6, 6)
    turned = Transformation("rotation", strength=90.0)(x)
    np.testing.assert_allclose(turned, np.rot90(x, axes=(2, 3)), atol=1e-12)


# --- against torchvision -------------------------------------------------------------


@pytest.fixture(scope="module")
def functional():
    return pytest.importorskip("torchvision.transforms.v2.functional")


def test_gamma_and_brightness_as_in_torchvision(functional):
    x = images(3, 3, 6, 5, dtype=torch.float32)
    np.testing.assert_allclose(
        Transformation("gamma")(x), functional.adjust_gamma(x, 1.3), atol=1e-6
    )
    np.testing.assert_allclose(
        Transformation("brightness")(x), functional.adjust_brightness(x, 1.3), atol=1e-6
    )


@pytest.mark.parametrize("shape", [(8, 8), (9, 9), (6, 11), (12, 5)])
@pytest.mark.parametrize("angle", [10.0, -7.5, 33.0])
def test_rotation_as_in_torchvision(functional, shape, angle):
    x = images(2, 3, *shape, dtype=torch.float32)
    expected = functional.rotate(x, angle, interpolation=functional.InterpolationMode.BILINEAR)
    np.testing.assert_allclose(Transformation("rotation", strength=angle)(x), expected, atol=2e-5)


@pytest.mark.parametrize(
    ("shape", "scale"), [((10, 10), 0.6), ((20, 10), 0.6), ((8, 8), 0.5), ((15, 5), 0.6)]
)
def test_crop_as_in_torchvision(functional, shape, scale):
    # where the crop consists of whole pixels the two are the same
    x = images(2, 3, *shape, dtype=torch.float32)
    kept = [round(scale * side) for side in shape]
    expected = functional.resize(functional.center_crop(x, kept), list(shape), antialias=True)
    np.testing.assert_allclose(Transformation("crop", strength=scale)(x), expected, atol=2e-5)


def test_whole_crop_is_the_image():
    x = images(2, 3, 7, 4)
    np.testing.assert_allclose(Transformation("crop", strength=1.0)(x), x, atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (2, 1)])
@pytest.mark.parametrize("kind", KINDS)
def test_tiny_images(kind, shape):
    x = images(2, 1, *shape)
    assert torch.isfinite(Transformation(kind)(x)).all()


# --- what is random ------------------------------------------------------------------


def strengths(kind, u, strength=None):
    """Find out by which strengths samples were transformed, from what happened to them."""
    n = len(u)
    t = Transformation(kind, stochastic=True, strength=strength)
    if kind == "gamma":
        return np.log(t(torch.full((n, 1, 1, 1), 0.5).double(), u).numpy().ravel()) / math.log(0.5)
    if kind == "brightness":
        return t(torch.full((n, 1, 1, 1), 0.5).double(), u).numpy().ravel() / 0.5
    # the position of each pixel as its value, in units of half the side
    at = (torch.arange(101).double() - 50.0) / 50.5
    x = torch.stack(torch.meshgrid(at, at, indexing="ij"))[None].repeat(n, 1, 1, 1)
    seen = t(x, u)[:, :, 50, 60].numpy()  # 10 pixels to the right of the centre
    if kind == "crop":
        return seen[:, 1] * 50.5 / 10
    return np.degrees(np.arctan2(seen[:, 0], seen[:, 1]))


@pytest.mark.parametrize(
    ("kind", "strength", "low", "high"),
    [
        ("crop", None, 1.0, 0.6),
        ("crop", 0.8, 1.0, 0.8),
        ("gamma", None, 0.7, 1.3),
        ("gamma", 1.8, 0.2, 1.8),
        ("brightness", None, 1.0, 1.3),
        ("brightness", 0.5, 1.0, 0.5),
        ("rotation", None, -10.0, 10.0),
        ("rotation", 30.0, -30.0, 30.0),
    ],
)
def test_ranges_of_the_draws(kind, strength, low, high):
    u = torch.tensor([0.0, 0.25, 0.5, 1.0 - 1e-12, 0.7]).double()
    expected = low + (high - low) * u.numpy()
    np.testing.assert_allclose(strengths(kind, u, strength), expected, atol=1e-9)


@pytest.mark.parametrize("kind", ["hflip", "vflip"])
def test_half_of_the_flips(kind):
    x = images(1, 1, 4, 4).repeat(4, 1, 1, 1)
    moved = Transformation(kind, stochastic=True)(x, torch.tensor([0.0, 0.49, 0.5, 0.99]))
    flipped = Transformation(kind)(x)
    assert torch.equal(moved[:2], x[:2])
    assert torch.equal(moved[2:], flipped[2:])


@pytest.mark.parametrize("kind", KINDS)
def test_deterministic_is_the_end_of_the_range(kind):
    x = images(2, 2, 6, 6)
    nearly = Transformation(kind, stochastic=True)(x, torch.full((2,), 1.0 - 1e-12).double())
    np.testing.assert_allclose(nearly, Transformation(kind)(x), atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_does_not_depend_on_its_batch(kind):
    x, u = images(5, 2, 6, 7, dtype=torch.float32), uniform(5)
    t = Transformation(kind, stochastic=True)
    together = t(x, u)
    for i in range(5):
        assert torch.equal(t(x[i : i + 1], u[i : i + 1]), together[i : i + 1])
    order = torch.tensor([3, 1, 4, 0, 2])
    assert torch.equal(t(x[order], u[order]), together[order])


def test_the_global_generator_draws_one_number_per_sample():
    x = images(6, 1, 4, 4)
    t = Transformation("gamma", stochastic=True)
    torch.manual_seed(3)
    moved = t(x)
    torch.manual_seed(3)
    assert torch.equal(t(x, torch.rand(6, dtype=torch.float64)), moved)
    assert not torch.equal(t(x), moved)
    state = torch.get_rng_state()
    Transformation("gamma")(x)
    t(x, uniform(6))
    t.transform(x.numpy())
    assert torch.equal(torch.get_rng_state(), state)


# --- gradients -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stochastic", [False, True])
def test_gradcheck(kind, stochastic):
    # no value is clamped: 1.3 * 0.7 < 1
    x = images(2, 1, 4, 5, low=0.1, high=0.7).requires_grad_(True)
    t, u = Transformation(kind, stochastic=stochastic), uniform(2)
    assert torch.autograd.gradcheck(lambda x: t(x, u), (x,))


def test_gradient_of_a_power_at_zero():
    x = torch.zeros(2, 1, 1, 1, dtype=torch.float64, requires_grad=True)
    t = Transformation("gamma", stochastic=True)
    (gradient,) = torch.autograd.grad(t(x, torch.tensor([0.0, 0.9])).sum(), x)
    assert gradient.ravel().tolist() == [math.inf, 0.0]  # powers 0.7 and 1.24


def test_gradient_at_the_ends_of_the_range():
    x = torch.tensor([0.0, 1.0, 0.2], dtype=torch.float64)
    x = x.view(3, 1, 1, 1).requires_grad_(True)
    for kind, expected in [
        ("gamma", [0.0, 1.3, 1.3 * 0.2**0.3]),
        ("brightness", [1.3, 0.0, 1.3]),
    ]:
        (gradient,) = torch.autograd.grad(Transformation(kind)(x).sum(), x)
        np.testing.assert_allclose(gradient.ravel(), expected, rtol=1e-12)
    t = Transformation("brightness", stochastic=True)
    (gradient,) = torch.autograd.grad(t(x, torch.zeros(3)).sum(), x)
    assert gradient.ravel().tolist() == [1.0, 1.0, 1.0]


def test_values_outside_of_the_range_are_clamped():
    x = torch.tensor([-0.1, 1.2]).view(2, 1, 1, 1)
    for kind in ("gamma", "brightness"):
        for t in (Transformation(kind), Transformation(kind, stochastic=True)):
            assert t(x, torch.tensor([0.1, 0.1])).ravel().tolist() == [0.0, 1.0]


# --- arrays --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_transform(kind):
    X = images(4, 2, 5, 5, dtype=torch.float32).numpy()
    before = X.copy()
    t = Transformation(kind, stochastic=True, random_state=3)
    moved = t.transform(X)
    assert moved.dtype == np.float32
    np.testing.assert_array_equal(moved, t.transform(X))
    np.testing.assert_array_equal(X, before)
    assert not np.shares_memory(X, moved)
    u = torch.from_numpy(np.random.RandomState(3).uniform(size=4))
    np.testing.assert_array_equal(moved, t(torch.from_numpy(X), u))
    np.testing.assert_array_equal(
        Transformation(kind).transform(X), Transformation(kind)(torch.from_numpy(X))
    )
    as_tensor = t.transform(torch.from_numpy(X))
    assert isinstance(as_tensor, torch.Tensor)
    np.testing.assert_array_equal(as_tensor, moved)


def test_seeds():
    X = images(30, 1, 4, 4).numpy()
    one, other = stochastic_transformations(0), stochastic_transformations(0)
    for kind in KINDS:
        np.testing.assert_array_equal(one[kind].transform(X), other[kind].transform(X))
    assert len({t.random_state for t in one.values()}) == 7
    assert not np.array_equal(
        one["gamma"].transform(X), stochastic_transformations(1)["gamma"].transform(X)
    )
    unseeded = stochastic_transformations()["gamma"]
    assert not np.array_equal(unseeded.transform(X), unseeded.transform(X))


def test_in_joint_success_rates_and_eot():
    X, y = load_digits_images(return_X_y=True)
    X, y = X[:40], y[:40]
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    rates = joint_success_rates(
        {"net": model}, X, y, PGD(eps=0.1, n_steps=2, random_state=0),
        transforms=stochastic_transformations(0),
    )  # fmt: skip
    assert rates.names == tuple(KINDS)
    attack = EOT(
        model,
        attack=PGD(eps=0.1, n_steps=2),
        transformation=Transformation("rotation", stochastic=True),
        n_draws=2,
        clip=(0, 1),
        random_state=0,
    )
    assert np.abs(attack.generate(X, y) - X).max() <= 0.1 + 1e-6


# --- parameters and errors -----------------------------------------------------------


def test_parameters():
    t = Transformation("crop", stochastic=True, strength=0.7, random_state=1)
    assert repr(t) == ("Transformation(kind='crop', random_state=1, stochastic=True, strength=0.7)")
    assert clone(t).get_params() == t.get_params() == pickle.loads(pickle.dumps(t)).get_params()


@pytest.mark.parametrize("shape", [(4, 5, 6), (4, 36), (2, 1, 3, 4, 5), (2, 3, 0, 4)])
def test_images_of_another_shape(shape):
    with pytest.raises(ValueError, match=r"\(n_samples, n_channels, height, width\)"):
        Transformation("identity")(torch.zeros(shape))
    if 0 not in shape:
        with pytest.raises(ValueError, match=r"\(n_samples, n_channels, height, width\)"):
            Transformation("identity").transform(np.zeros(shape))


def test_what_is_no_floating_tensor():
    with pytest.raises(TypeError, match="transform"):
        Transformation("gamma")(np.zeros((1, 1, 2, 2)))
    with pytest.raises(TypeError, match="uint8"):
        Transformation("gamma")(torch.zeros(1, 1, 2, 2, dtype=torch.uint8))


@pytest.mark.parametrize("u", [torch.zeros(2), torch.zeros(3, 1), 0.5])
def test_wrong_u(u):
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        Transformation("gamma", stochastic=True)(torch.zeros(3, 1, 2, 2), u)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"kind": "shear"}, "kind must be one of"),
        ({"kind": "hflip", "strength": 1.0}, "has no strength"),
        ({"kind": "crop", "strength": 0.0}, r"in \(0, 1\]"),
        ({"kind": "crop", "strength": 1.1}, r"in \(0, 1\]"),
        ({"kind": "gamma", "strength": -1.0}, "positive"),
        ({"kind": "gamma", "strength": 2.0, "stochastic": True}, "below 2"),
        ({"kind": "brightness", "strength": "much"}, "positive"),
        ({"kind": "rotation", "strength": math.nan}, "finite"),
    ],
)
def test_wrong_parameters(params, message):
    t = Transformation(**params)
    with pytest.raises(ValueError, match=message):
        t(torch.zeros(1, 1, 2, 2))
    with pytest.raises(ValueError, match=message):
        t.transform(np.zeros((1, 1, 2, 2)))
