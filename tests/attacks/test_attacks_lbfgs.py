"""The L-BFGS attack against closed forms and another solver."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from scipy.optimize import minimize
from torch import nn

from robustsk.attacks import LBFGS, as_victim
from robustsk.attacks.minimal import lbfgs


@pytest.fixture
def linear():
    """A linear model of two classes in six features, and samples with its predictions."""
    rng = np.random.default_rng(2)
    net = nn.Linear(6, 2).double().requires_grad_(False)
    net.weight.copy_(torch.tensor(3 * rng.normal(size=(2, 6))))
    net.bias.copy_(-net.weight.sum(1) / 2)
    X = rng.uniform(size=(15, 6))
    return net, X, net(torch.tensor(X)).argmax(1).numpy()


def logits(net, X):
    return net(torch.as_tensor(X)).numpy()


@pytest.mark.parametrize("targeted", [False, True])
def test_two_classes_without_a_box(targeted, linear):
    net, X, y = linear
    z, W = logits(net, X), net.weight.numpy()
    exact = np.abs(z[:, 1] - z[:, 0]) / np.linalg.norm(W[1] - W[0])
    attack = LBFGS(net, clip=None, target=1 - y if targeted else None)
    X_adv, info = attack.generate(X, y, return_info=True)
    assert_array_equal(logits(net, X_adv).argmax(1), 1 - y)
    ratio = info["distance"] / exact
    assert np.all(ratio >= 1 - 1e-9)
    assert np.all(ratio < 1.02)


def test_two_classes_in_a_box_against_slsqp(linear):
    net, X, _ = linear
    X = np.clip(1.6 * X - 0.3, 0, 1)  # many at an edge
    y = logits(net, X).argmax(1)
    W, b = net.weight.numpy(), net.bias.numpy()
    exact = []
    for x, label in zip(X, y, strict=True):
        g, c = W[1 - label] - W[label], b[1 - label] - b[label]
        found = minimize(
            lambda z, x=x: (z - x) @ (z - x),
            x,
            jac=lambda z, x=x: 2 * (z - x),
            method="SLSQP",
            bounds=[(0, 1)] * 6,
            constraints={
                "type": "ineq",
                "fun": lambda z, g=g, c=c: g @ z + c,
                "jac": lambda z, g=g: g,
            },
        )
        exact.append(np.sqrt(found.fun))
    X_adv, info = LBFGS(net, clip=(0, 1)).generate(X, y, return_info=True)
    assert X_adv.min() >= 0
    assert X_adv.max() <= 1
    assert np.any((X_adv == 0) | (X_adv == 1))
    ratio = info["distance"] / exact
    assert np.all(ratio > 1 - 1e-6)
    assert np.median(ratio) < 1.02
    assert np.max(ratio) < 1.1


def test_several_classes(images, table):
    X, y = table.X[:25], table.y[:25]
    W, b = table.linear[-1].coef_ / table.linear[0].scale_, table.linear.decision_function(X)
    rows = np.arange(25)
    right = b.argmax(1) == y
    exact = np.array([
        min(
            (b[i, y[i]] - b[i, k]) / np.linalg.norm(W[k] - W[y[i]]) for k in range(3) if k != y[i]
        )
        for i in rows
    ])  # fmt: skip
    _, info = LBFGS(table.linear, clip=None).generate(X, y, return_info=True)
    ratio = info["distance"][right] / exact[right]
    assert np.all(ratio > 1 - 1e-6)
    assert np.median(ratio) < 1.05
    assert np.max(ratio) < 1.3
    X, y = images.X[:5], images.y[:5]
    X_adv = LBFGS(images.net, clip=(0, 1), target=(y + 3) % 10, n_steps=20).generate(X, y)
    reached = logits(images.net.requires_grad_(False), X_adv).argmax(1)
    assert np.mean(reached == (y + 3) % 10) >= 0.8


def test_no_step_is_taken_for_what_is_wrong_already(linear):
    net, X, y = linear
    victim = as_victim(net)
    x = torch.tensor(X)
    x_adv = LBFGS(clip=(0, 1)).perturb(victim, x, torch.tensor(1 - y))
    assert torch.equal(x_adv, x)
    assert victim.calls.backward == 0
    assert victim.calls.forward == 15


def test_work_is_limited(linear):
    net, X, y = linear
    x, label = torch.tensor(X), torch.tensor(y)
    calls = {}
    for keep in ("last", "first"):
        victim = as_victim(net)
        attack = LBFGS(clip=(0, 1), eps=10.0, n_steps=4, n_binary_steps=3)
        attack.perturb(victim, x, label, keep=keep)
        calls[keep] = victim.calls.backward
    # one gradient to begin with, at most twice as many as steps per round (and a line search)
    assert calls["last"] <= 15 * (1 + 3 * (2 * 4 + 20))
    assert calls["first"] < 0.7 * calls["last"]


@pytest.mark.dealt
@pytest.mark.parametrize("keep", ["last", "first"])
def test_samples_find_together_what_each_finds_alone(keep, linear, monkeypatch):
    net, X, y = linear
    x, label = torch.tensor(X), torch.tensor(y)
    attack = LBFGS(clip=(0, 1), eps=0.6, n_binary_steps=3)
    alone, together = as_victim(net), as_victim(net)
    each = [attack.perturb(alone, x[[k]], label[[k]], keep=keep) for k in range(len(x))]
    found = attack.perturb(together, x, label, keep=keep)
    np.testing.assert_allclose(found, torch.cat(each), rtol=0, atol=1e-9)
    assert together.calls.backward == alone.calls.backward
    # as many samples at a time as there are threads for
    monkeypatch.setattr(lbfgs, "_TOGETHER", 4)
    in_parts = attack.perturb(as_victim(net), x, label, keep=keep)
    np.testing.assert_allclose(in_parts, found, rtol=0, atol=1e-9)


def test_a_model_is_asked_about_all_samples_at_once(linear):
    net, X, y = linear
    sizes = []
    net.register_forward_hook(lambda module, args, out: sizes.append(len(out)))
    LBFGS(net, clip=(0, 1), n_steps=5, n_binary_steps=2).generate(X, y)
    # the first answers of a round are those of all samples; alone there would be 15 times as many
    assert np.mean(sizes) > 5
    assert len(sizes) < 2 * (2 * 5 + 20) + 20


def test_one_round_and_given_weights(linear):
    net, X, y = linear
    best = LBFGS(net, clip=None).generate(X, y, return_info=True)[1]["distance"]
    for settings in (
        {"n_binary_steps": 1},
        {"initial_const": 1e-2, "n_binary_steps": 6},
        {"initial_const": 1e4, "n_steps": 20},
    ):
        _, info = LBFGS(net, clip=None, **settings).generate(X, y, return_info=True)
        assert np.median(info["distance"] / best) < 1.05, settings


def test_frozen_features_and_radius_per_feature(linear):
    net, X, y = linear
    eps = np.array([1.0, 0.0, 0.3, 2.0, 0.0, 1.0])
    z, W = logits(net, X), net.weight.numpy()
    exact = 2 * np.abs(z[:, 1] - z[:, 0]) / np.linalg.norm((W[1] - W[0]) * eps)
    attack = LBFGS(net, clip=None, eps=1e3 * eps)
    X_adv, info = attack.generate(X, y, return_info=True)
    assert_array_equal(X_adv[:, eps == 0], X[:, eps == 0])
    assert np.all(info["distance"] / exact > 1 - 1e-9)
    assert np.all(info["distance"] / exact < 1.02)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_steps": 0}, "n_steps must be an integer of at least 1, got 0"),
        ({"n_binary_steps": 0}, "n_binary_steps must be an integer of at least 1, got 0"),
        ({"initial_const": 0.0}, "initial_const must be a finite number larger than 0, got 0"),
        ({"norm": "linf"}, "norm='linf' is not supported; use one of 2"),
    ],
)
def test_bad_settings(settings, message, linear):
    net, X, y = linear
    with pytest.raises(ValueError, match=message):
        LBFGS(net, clip=None, **settings).generate(X, y)
