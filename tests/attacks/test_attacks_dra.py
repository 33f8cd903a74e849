"""DRA against closed forms on linear models, and the strength of attacks made equal."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

from robustsk import PGD, score_adversarial
from robustsk.attacks import DRA, EOT, UniversalPerturbation
from robustsk.metrics import match_attack_strength


def linear(weight, dtype=torch.float64):
    """Return a module with the score ``weight @ x`` for the second of two classes."""
    weight = torch.as_tensor(weight, dtype=dtype)
    net = nn.Linear(len(weight), 1).to(dtype)
    with torch.no_grad():
        net.weight.copy_(weight[None])
        net.bias.zero_()
    return net


@pytest.fixture
def weight():
    return np.random.RandomState(0).laplace(size=12)


@pytest.fixture
def X():
    return 0.1 * np.random.RandomState(1).randn(5, 12)


@pytest.mark.parametrize("n_steps", [1, 5])
def test_all_features_of_a_linear_model(weight, X, n_steps):
    # away from the second class the gradient is a negative multiple of the weights
    y, eps = np.ones(5, int), 0.7
    attack = DRA(linear(weight), eps=eps, proportion=1.0, n_steps=n_steps, clip=None)
    expected = X - eps * weight / np.abs(weight).sum()
    assert_allclose(attack.generate(X, y), expected, atol=1e-12)


@pytest.mark.parametrize("normalize", ["before", "after"])
@pytest.mark.parametrize("mask_mode", ["per_step", "first"])
def test_most_significant_features_of_a_linear_model(weight, X, normalize, mask_mode):
    eps, k = 0.7, 4
    attack = DRA(
        linear(weight), eps=eps, proportion=k / 12, normalize=normalize, mask_mode=mask_mode,
        clip=None,
    )  # fmt: skip
    top = np.argsort(-np.abs(weight))[:k]
    masked = np.zeros(12)
    masked[top] = weight[top]
    length = np.abs(weight if normalize == "before" else masked).sum()
    assert_allclose(attack.generate(X, np.ones(5, int)), X - eps * masked / length, atol=1e-12)


def test_gain_over_a_sign_attack_with_the_same_mean_change(weight, X):
    eps, y = 0.05, np.ones(5, int)
    dra = DRA(linear(weight), eps=eps, eps_unit="mean", proportion=1.0, clip=None).generate(X, y)
    sign = PGD(linear(weight), eps=eps, random_start="none", clip=None).generate(X, y)
    ratio = 12 * (weight**2).sum() / np.abs(weight).sum() ** 2
    assert ratio > 1
    assert_allclose(((X - dra) @ weight), ratio * ((X - sign) @ weight), rtol=1e-9)
    flat = np.where(weight > 0, 1.0, -1.0)
    dra = DRA(linear(flat), eps=eps, eps_unit="mean", proportion=1.0, clip=None).generate(X, y)
    sign = PGD(linear(flat), eps=eps, random_start="none", clip=None).generate(X, y)
    assert_allclose(dra, sign, atol=1e-12)


def test_gain_grows_with_the_proportion(weight, X):
    gains = []
    for proportion in np.linspace(0, 1, 13):
        attack = DRA(linear(weight), eps=0.5, proportion=proportion, clip=None)
        gains.append(((X - attack.generate(X, np.ones(5, int))) @ weight).mean())
    assert gains[0] == 0
    assert np.all(np.diff(gains) > 0)
    few = DRA(linear(weight), eps=0.5, proportion=1 / 12, normalize="after", clip=None)
    # the whole budget on one feature is the best that an l1 ball allows on a linear model
    assert_allclose((X - few.generate(X, np.ones(5, int))) @ weight, 0.5 * np.abs(weight).max())
    assert 0.5 * np.abs(weight).max() > gains[-1]


@pytest.mark.parametrize("parameters", [{"proportion": 0.0}, {"eps": 0.0}])
def test_nothing_to_change(images, parameters):
    attack = DRA(images.net, **{"eps": 3.0, "clip": (0, 1), **parameters})
    assert_array_equal(attack.generate(images.X[:8], images.y[:8]), images.X[:8])


@pytest.mark.parametrize("eps_unit", ["total", "mean"])
@pytest.mark.parametrize("clip", [None, (0, 1)])
def test_budget(images, clip, eps_unit):
    eps = 3.0 if eps_unit == "total" else 3.0 / 64
    for options in ({}, {"step_size": eps}, {"step_size": eps, "projection": "scale"}):
        attack = DRA(images.net, eps=eps, eps_unit=eps_unit, clip=clip, **options)
        moved = attack.generate(images.X[:20], images.y[:20]) - images.X[:20]
        total = np.abs(moved).reshape(20, -1).sum(axis=1)
        assert np.all(total <= 3.0)
        assert total.max() > 0.5
    by_sum = DRA(images.net, eps=3.0, step_size=0.3, clip=clip)
    by_mean = DRA(images.net, eps=3.0 / 64, step_size=0.3 / 64, eps_unit="mean", clip=clip)
    assert_allclose(by_sum.generate(images.X[:20]), by_mean.generate(images.X[:20]), atol=1e-6)


def test_mean_of_the_source_by_default(images):
    by_default = DRA(images.net, eps_unit="mean", clip=(0, 1)).generate(images.X[:9])
    expected = DRA(images.net, eps=64 / 255, clip=(0, 1)).generate(images.X[:9])
    assert_allclose(by_default, expected, atol=1e-7)
    within = EOT(images.net, attack=DRA(eps_unit="mean"), n_draws=1, clip=(0, 1))
    assert_allclose(within.generate(images.X[:9]), expected, atol=1e-7)


def test_features_of_the_first_step_are_the_only_ones(images):
    X = images.X[:30]
    count = {}
    for mode in ("first", "per_step"):
        attack = DRA(images.net, eps=20.0, proportion=0.2, n_steps=8, mask_mode=mode, clip=None)
        count[mode] = (attack.perturb(images.net, torch.tensor(X)).numpy() != X).reshape(30, -1)
    assert np.all(count["first"].sum(axis=1) <= round(0.2 * 64))
    assert np.any(count["per_step"].sum(axis=1) > round(0.2 * 64))


def test_no_gradient_no_step():
    class Flat(nn.Module):
        def forward(self, x):
            return torch.stack([x.sum(1), x.sum(1)], dim=1)

    for dtype in (np.float32, np.float64):
        X = np.random.RandomState(0).rand(4, 6).astype(dtype)
        for normalize in ("before", "after"):
            attack = DRA(Flat(), eps=1.0, normalize=normalize, clip=None)
            assert_array_equal(attack.generate(X, np.zeros(4, int)), X)


def test_tiny_gradients_are_followed(weight, X):
    # a gradient of 1e-280 has a direction like any other
    net = linear(1e-280 * weight)
    moved = X - DRA(net, eps=1.0, proportion=1.0, clip=None).generate(X, np.ones(5, int))
    assert_allclose(moved, np.tile(weight / np.abs(weight).sum(), (5, 1)), rtol=1e-6)


def test_projections_differ_in_what_they_spare(images):
    common = {"eps": 2.0, "step_size": 2.0, "clip": None}
    X, y = torch.tensor(images.X[:10]), torch.tensor(images.y[:10])
    nearest = DRA(projection="l1", **common).perturb(images.net, X, y) - X
    scaled = DRA(projection="scale", **common).perturb(images.net, X, y) - X
    for moved in (nearest, scaled):
        assert torch.all(moved.abs().flatten(1).sum(1) <= 2 + 1e-4)
    # the nearest point of an l1 ball has zeros, a shorter vector has none of its own
    assert (nearest != 0).sum() < (scaled != 0).sum()


def test_divergence_needs_a_start_off_the_sample(images):
    X, y = images.X[:20], images.y[:20]
    common = {"eps": 4.0, "objective": "kl", "clip": (0, 1), "random_state": 0}
    moved = np.abs(DRA(images.net, **common).generate(X, y) - X).reshape(20, -1).sum(axis=1)
    assert np.all(moved > 0.5)
    other = DRA(images.net, **{**common, "random_state": 1}).generate(X, y)
    assert not np.array_equal(other, DRA(images.net, **common).generate(X, y))


def test_frozen_features_take_no_share(weight, X):
    mask = np.arange(12) >= 6
    attack = DRA(linear(weight), eps=0.6, proportion=1.0, mask=mask, clip=None)
    rest = np.where(mask, weight, 0)
    expected = X - 0.6 * rest / np.abs(rest).sum()
    assert_allclose(attack.generate(X, np.ones(5, int)), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"proportion": 1.5}, r"proportion must be a number in \[0, 1\], got 1.5"),
        ({"proportion": "all"}, "proportion must be a number"),
        ({"eps_unit": "sum"}, "eps_unit must be one of"),
        ({"normalize": None}, "normalize must be one of"),
        ({"mask_mode": "last"}, "mask_mode must be one of"),
        ({"projection": None}, "projection must be one of"),
        ({"random_start": "some"}, "random_start must be one of"),
        ({"step_size": -1}, "step_size must be"),
        ({"norm": 2}, "norm=2 is not supported; use one of 1"),
    ],
)
def test_bad_parameters(images, parameters, message):
    with pytest.raises(ValueError, match=message):
        DRA(images.net, clip=(0, 1), **parameters).generate(images.X[:2])


# --- equal strength ------------------------------------------------------------------


def test_strength_of_a_linear_model_is_matched_exactly(weight):
    # the accuracy under a sign attack falls where |w x| <= eps |w|_1, and under one in the
    # 2-norm where |w x| <= eps |w|_2
    X = np.random.RandomState(2).randn(400, 12)
    y = (X @ weight > 0).astype(int)
    a = PGD(norm=np.inf, random_start="none", clip=None)
    b = PGD(norm=2, random_start="none", clip=None, n_steps=5)
    match = match_attack_strength(linear(weight), X, y, a, b, eps_a=0.2)
    reach = 0.2 * np.abs(weight).sum()
    assert match.reference == pytest.approx((np.abs(X @ weight) > reach).mean())
    assert match.accuracy == match.reference
    exact = reach / np.linalg.norm(weight)
    assert match.eps == pytest.approx(exact, rel=0.02)
    assert b.eps is None


def test_strength_of_the_same_attack(images):
    attack = PGD(n_steps=3, random_state=0, clip=(0, 1))
    match = match_attack_strength(images.net, images.X[:60], images.y[:60], attack, attack, 0.1)
    assert match.accuracy == match.reference
    same = PGD(eps=match.eps, n_steps=3, random_state=0, clip=(0, 1))
    assert score_adversarial(images.net, images.X[:60], images.y[:60], same) == match.reference


def test_strength_out_of_reach(images):
    X, y = images.X[:40], images.y[:40]
    strong, none = PGD(eps=1.0, clip=(0, 1), random_state=0), PGD(eps=0.0, clip=(0, 1))
    weak = DRA(proportion=0.0, clip=(0, 1))
    with pytest.raises(ValueError, match=r"attack_b leaves an accuracy of .* equally strong"):
        match_attack_strength(images.net, X, y, strong, weak, n_doublings=3)
    with pytest.raises(ValueError, match=r"attack_a leaves .* larger eps"):
        match_attack_strength(images.net, X, y, none, strong)
    with pytest.raises(ValueError, match="eps_start must be a positive number"):
        match_attack_strength(images.net, X, y, strong, strong, eps_start=0.0)
    with pytest.raises(TypeError, match="attack_b must be an attack"):
        match_attack_strength(images.net, X, y, strong, UniversalPerturbation)
