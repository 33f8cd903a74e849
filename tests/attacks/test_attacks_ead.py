"""The elastic-net attack against closed forms."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from torch import nn

from robustsk.attacks import EAD, CarliniWagner


@pytest.fixture
def linear():
    """A linear model of three classes in ten features, and samples with its predictions."""
    rng = np.random.default_rng(1)
    net = nn.Linear(10, 3).double().requires_grad_(False)
    net.weight.copy_(torch.tensor(rng.normal(size=(3, 10))))
    net.bias.copy_(-net.weight.sum(1) / 2)
    X = rng.uniform(size=(30, 10))
    return net, X, net(torch.tensor(X)).argmax(1).numpy()


def logits(net, X):
    return net(torch.as_tensor(X)).numpy()


def differences(net, X, y):
    """Return how far each class is behind, and the gradients of that, true class left out."""
    z, W = logits(net, X), net.weight.numpy()
    rows = np.arange(len(X))
    others = np.array([[k for k in range(len(W)) if k != label] for label in y])
    return z[rows, y][:, None] - z[rows[:, None], others], W[others] - W[y][:, None]


def greedy(lacking, gradient, x):
    """Smallest 1-norm inside of [0, 1]: fill up one feature after the other, the steepest first."""
    room = np.where(gradient > 0, 1 - x, x)
    total = 0.0
    for i in np.argsort(-np.abs(gradient)):
        gain = room[i] * abs(gradient[i])
        if gain >= lacking:
            return total + lacking / abs(gradient[i])
        lacking, total = lacking - gain, total + room[i]
    return np.inf


@pytest.mark.dealt
@pytest.mark.parametrize("clip", [None, (0, 1)])
def test_distance_on_a_linear_model(clip, linear):
    net, X, y = linear
    lacking, gradients = differences(net, X, y)
    if clip is None:
        exact = (lacking / np.abs(gradients).max(2)).min(1)
    else:
        exact = np.array([
            min(greedy(lacking[i, k], gradients[i, k], X[i]) for k in range(2))
            for i in range(len(X))
        ])  # fmt: skip
    X_adv, info = EAD(net, clip=clip).generate(X, y, return_info=True)
    assert np.all(logits(net, X_adv).argmax(1) != y)
    ratio = info["distance"] / exact
    assert np.all(ratio >= 1 - 1e-9)
    assert np.median(ratio) < 1.08
    assert np.quantile(ratio, 0.9) < 1.3


def test_fewer_features_change_the_larger_beta(linear):
    net, X, y = linear
    changed, lengths = [], []
    for beta in (0.0, 1.0, 10.0):
        attack = EAD(net, clip=(0, 1), beta=beta, n_steps=40, n_binary_steps=4)
        X_adv, info = attack.generate(X, y, return_info=True)
        assert np.all(np.isfinite(info["distance"]))
        changed.append(np.mean(X_adv != X))
        lengths.append(np.median(np.linalg.norm(X_adv - X, axis=1)))
    assert changed[0] == 1
    assert changed[0] > changed[1] > changed[2]
    assert changed[2] < 0.4
    # and without the 1-norm the 2-norm is as small as it gets
    _, info = CarliniWagner(net, clip=(0, 1)).generate(X, y, return_info=True)
    assert lengths[0] < 1.1 * np.median(info["distance"])
    assert lengths[0] < lengths[1] < lengths[2]


@pytest.mark.slow
def test_sparser_than_carlini_and_wagner(images):
    X, y = images.X[:12], images.y[:12]
    settings = {"clip": (0, 1), "n_steps": 100}
    sparse, info = EAD(images.net, **settings).generate(X, y, return_info=True)
    dense = CarliniWagner(images.net, **settings).generate(X, y)
    assert np.all(np.isfinite(info["distance"]))
    hit = info["distance"] > 0
    difference = [np.abs(Z - X).reshape(12, -1)[hit] for Z in (sparse, dense)]
    assert np.median((difference[0] > 1e-4).sum(1)) < 0.5 * np.median((difference[1] > 1e-4).sum(1))
    assert np.all(difference[0].sum(1) < 1.05 * difference[1].sum(1))
    assert np.median(difference[0].sum(1) / difference[1].sum(1)) < 0.8


def test_rules(linear):
    net, X, y = linear
    settings = {"clip": (0, 1), "n_steps": 60, "n_binary_steps": 5}
    by_l1 = EAD(net, beta=0.5, **settings).generate(X, y) - X
    by_net = EAD(net, beta=0.5, rule="en", **settings).generate(X, y) - X
    size = [np.abs(delta).sum(1) for delta in (by_l1, by_net)]
    assert np.all(size[0] <= size[1] + 1e-9)
    lacking, gradients = differences(net, X, y)
    nearest = (lacking / np.abs(gradients).max(2)).min(1)
    lam = 0.5 * nearest
    elastic = [(d**2).sum(1) + lam * np.abs(d).sum(1) for d in (by_l1, by_net)]
    assert np.all(elastic[1] <= elastic[0] + 1e-9)
    assert np.any(elastic[1] < elastic[0] - 1e-6)
    # within a radius both obey it
    X_adv, info = EAD(net, rule="en", eps=0.3, **settings).generate(X, y, return_info=True)
    assert np.all(np.abs(X_adv - X).sum(1) <= 0.3)
    assert 0 < np.isinf(info["distance"]).sum() < 30


def test_confidence_and_target(linear):
    net, X, y = linear
    target = (y + 1) % 3
    settings = {"confidence": 0.7, "target": target, "n_binary_steps": 5}
    X_adv = EAD(net, clip=None, **settings).generate(X, y)
    z = logits(net, X_adv)
    reached = z[np.arange(30), target].copy()
    z[np.arange(30), target] = -np.inf
    assert np.all(reached - z.max(1) >= 0.7 - 1e-9)


@pytest.mark.slow
def test_radius_per_feature(linear):
    net, X, y = linear
    eps = np.array([1.0, 0.1, 0.0, 3.0, 1.0, 0.5, 0.0, 1.0, 2.0, 1.0])
    lacking, gradients = differences(net, X, y)
    exact = 3 * (lacking / np.abs(gradients * eps).max(2)).min(1)
    X_adv, info = EAD(net, clip=None, eps=100 * eps).generate(X, y, return_info=True)
    assert_array_equal(X_adv[:, eps == 0], X[:, eps == 0])
    # `distance` is in the units of the largest radius
    assert np.all(info["distance"] >= exact * (1 - 1e-9))
    assert np.median(info["distance"] / exact) < 1.1


@pytest.mark.dealt
@pytest.mark.parametrize("unit", [1e-3, 1e4])
def test_units_of_the_data_do_not_matter(unit, linear):
    net, X, y = linear
    scaled = nn.Linear(10, 3).double().requires_grad_(False)
    scaled.weight.copy_(net.weight / unit)
    scaled.bias.copy_(net.bias)
    one = EAD(net, clip=(0, 1), n_steps=60, n_binary_steps=4).generate(X, y)
    other = EAD(scaled, clip=(0, unit), n_steps=60, n_binary_steps=4).generate(unit * X, y)
    assert np.abs(other / unit - one).max() < 1e-3


@pytest.mark.slow
def test_one_round_and_given_weights(linear):
    net, X, y = linear
    _, info = EAD(net, clip=None, n_binary_steps=5).generate(X, y, return_info=True)
    best = info["distance"]
    for settings in (
        {"n_binary_steps": 1, "initial_const": 10.0},
        {"initial_const": 1e-3, "n_steps": 50},
        {"n_steps": 25, "n_binary_steps": 4},
        {"abort_early": False, "n_steps": 50},
    ):
        _, info = EAD(net, clip=None, **settings).generate(X, y, return_info=True)
        ratio = info["distance"] / best
        assert np.all(np.isfinite(ratio)), settings
        assert 0.9 < np.median(ratio) < 4, settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": -1.0}, "beta must be a finite number of at least 0, got -1"),
        ({"rule": "l2"}, r"rule must be one of \('l1', 'en'\), got 'l2'"),
        ({"n_steps": 0}, "n_steps must be an integer of at least 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be a finite number larger than 0, got 0"),
        ({"initial_const": 0}, "initial_const must be a finite number larger than 0, got 0"),
        ({"norm": 2}, "norm=2 is not supported; use one of 1"),
    ],
)
def test_bad_settings(settings, message, linear):
    net, X, y = linear
    with pytest.raises(ValueError, match=message):
        EAD(net, clip=None, **settings).generate(X, y)
