"""The attacks of Carlini and Wagner against closed forms and brute force."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

from robustsk.attacks import CarliniWagner, as_victim

DUAL = {2.0: 2, np.inf: 1}
#: How far from the optimum the results may be, in the median and at worst.
CLOSE = {2.0: (1.01, 1.05), np.inf: (1.03, 1.15)}


@pytest.fixture
def linear():
    """A linear model of four classes in eight features, and samples with its predictions."""
    rng = np.random.default_rng(0)
    net = nn.Linear(8, 4).double().requires_grad_(False)
    net.weight.copy_(torch.tensor(rng.normal(size=(4, 8))))
    net.bias.copy_(torch.tensor(rng.normal(size=4)))
    X = rng.uniform(size=(40, 8))
    return net, X, net(torch.tensor(X)).argmax(1).numpy()


@pytest.fixture(scope="module")
def plane():
    """A ReLU network that separates a disc from its surroundings."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(2, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(),
                            nn.Linear(24, 2)).double()  # fmt: skip
        X = 4 * torch.rand(600, 2, dtype=torch.float64) - 2
        y = (X.norm(dim=1) < 1.2).long()
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        for _ in range(200):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(X), y).backward()
            optimizer.step()
    return net.requires_grad_(False), X[:15].numpy()


def logits(net, X):
    return net(torch.as_tensor(X)).numpy()


def differences(net, X, y):
    """Return how far each class is behind, and the gradients of that, true class left out."""
    z, W = logits(net, X), net.weight.numpy()
    rows = np.arange(len(X))
    others = np.array([[k for k in range(len(W)) if k != label] for label in y])
    return z[rows, y][:, None] - z[rows[:, None], others], W[others] - W[y][:, None]


def in_box(lacking, gradient, x, norm):
    """Distance to one linear border inside of [0, 1], by bisection on how far to go."""

    def step(t):
        direction = gradient if norm == 2 else np.sign(gradient)
        return np.clip(t * direction, -x, 1 - x)

    low, high = 0.0, 1e6
    if step(high) @ gradient < lacking:
        return np.inf
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if step(middle) @ gradient < lacking else (low, middle)
    return np.linalg.norm(step(high), ord=norm)


in_both = pytest.mark.parametrize("norm", [2.0, np.inf])
in_one = pytest.mark.parametrize("norm", [2.0, pytest.param(np.inf, marks=pytest.mark.slow)])


class TestDistance:
    @in_one
    def test_linear(self, norm, linear):
        net, X, y = linear
        lacking, gradients = differences(net, X, y)
        exact = (lacking / np.linalg.norm(gradients, ord=DUAL[norm], axis=2)).min(1)
        attack = CarliniWagner(net, norm=norm, clip=None, n_binary_steps=6)
        X_adv, info = attack.generate(X, y, return_info=True)
        assert np.all(logits(net, X_adv).argmax(1) != y)
        found = np.linalg.norm(X_adv - X, ord=norm, axis=1)
        assert_allclose(found, info["distance"], rtol=1e-9)
        assert np.all(found >= exact * (1 - 1e-9))
        # which of several borders is found depends on where the path starts
        assert np.median(found / exact) < CLOSE[norm][0]
        assert np.quantile(found / exact, 0.9) < CLOSE[norm][1]

    @in_one
    def test_linear_in_a_box(self, norm, linear):
        net, X, y = linear
        X = np.clip(X, 0.3, 0.7) - 0.3  # many at the lower edge
        X /= X.max()
        y = logits(net, X).argmax(1)
        lacking, gradients = differences(net, X, y)
        exact = np.array([
            min(in_box(lacking[i, k], gradients[i, k], X[i], norm) for k in range(3))
            for i in range(len(X))
        ])  # fmt: skip
        attack = CarliniWagner(net, norm=norm, clip=(0, 1), n_binary_steps=6)
        X_adv, info = attack.generate(X, y, return_info=True)
        assert X_adv.min() >= 0
        assert X_adv.max() <= 1
        reachable = np.isfinite(exact)
        assert reachable.sum() > 20
        ratio = info["distance"][reachable] / exact[reachable]
        assert np.all(ratio >= 1 - 1e-9)
        assert np.median(ratio) < CLOSE[norm][0]
        assert np.quantile(ratio, 0.85) < CLOSE[norm][1]
        assert np.all(np.isinf(info["distance"][~reachable]))

    @in_one
    def test_targeted(self, norm, linear):
        net, X, y = linear
        target = (y + 1) % 4
        # the target has to beat all others: the farthest border bounds it from below
        W, z = net.weight.numpy(), logits(net, X)
        bound = [
            max(
                (z[i, k] - z[i, target[i]]) / np.linalg.norm(W[k] - W[target[i]], ord=DUAL[norm])
                for k in range(4)
                if k != target[i]
            )
            for i in range(len(X))
        ]
        attack = CarliniWagner(net, norm=norm, clip=None, target=target, n_binary_steps=6)
        X_adv, info = attack.generate(X, y, return_info=True)
        assert_array_equal(logits(net, X_adv).argmax(1), target)
        assert np.all(info["distance"] >= np.array(bound) * (1 - 1e-9))
        assert np.median(info["distance"] / bound) < 1.2

    @pytest.mark.slow
    @in_one
    def test_network_against_a_grid(self, norm, plane):
        net, X = plane
        y = logits(net, X).argmax(1)
        steps = np.linspace(-2, 2, 201)
        offsets = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
        size = np.linalg.norm(offsets, ord=norm, axis=1)
        order = np.argsort(size, kind="stable")
        offsets, size = offsets[order], size[order]
        exact = np.array([
            size[np.argmax(logits(net, x + offsets).argmax(1) != label)]
            for x, label in zip(X, y, strict=True)
        ])  # fmt: skip
        attack = CarliniWagner(net, norm=norm, clip=None, n_binary_steps=6)
        _, info = attack.generate(X, y, return_info=True)
        ratio = info["distance"] / exact
        assert np.all(info["distance"] >= exact - 0.025 * (2 if norm == 2 else 1))
        assert np.median(ratio) < 1.03
        assert np.quantile(ratio, 0.8) < 1.25

    @in_one
    def test_radius_per_feature(self, norm, linear):
        net, X, y = linear
        eps = np.array([1.0, 0.1, 0.0, 3.0, 1.0, 0.5, 0.0, 1.0])
        lacking, gradients = differences(net, X, y)
        exact = (lacking / np.linalg.norm(gradients * eps, ord=DUAL[norm], axis=2)).min(1)
        attack = CarliniWagner(net, norm=norm, clip=None, eps=100 * eps, n_binary_steps=6)
        X_adv, info = attack.generate(X, y, return_info=True)
        assert_array_equal(X_adv[:, eps == 0], X[:, eps == 0])
        # `distance` is in the units of the largest radius
        assert np.median(info["distance"] / (3 * exact)) < CLOSE[norm][0]

    @in_one
    @pytest.mark.parametrize("unit", [1e-3, pytest.param(1e4, marks=pytest.mark.slow)])
    def test_units_of_the_data_do_not_matter(self, norm, unit, linear):
        net, X, y = linear
        scaled = nn.Linear(8, 4).double().requires_grad_(False)
        scaled.weight.copy_(net.weight / unit)
        scaled.bias.copy_(net.bias)
        settings = {"norm": norm, "n_steps": 60, "n_binary_steps": 4}
        for clip in ((0, 1), None):
            wide = None if clip is None else (0, unit)
            one = CarliniWagner(net, clip=clip, **settings).generate(X, y)
            other = CarliniWagner(scaled, clip=wide, **settings).generate(unit * X, y)
            assert_allclose(other / unit, one, atol=1e-3)


@in_one
def test_change_of_variable(norm, linear):
    net, X, _ = linear
    y = logits(net, X).argmax(1)
    exact, found = (
        CarliniWagner(net, norm=norm, clip=(0, 1), **parameters).generate(X, y, return_info=True)[
            1
        ]["distance"]
        for parameters in ({}, {"variable": "tanh", "n_steps": 150, "n_binary_steps": 4})
    )
    reachable = np.isfinite(exact)
    ratio = found[reachable] / exact[reachable]
    assert np.median(ratio) < 1.02
    assert np.mean(ratio < 1.1) > 0.8


def test_confidence_is_the_margin_asked_for(linear):
    net, X, y = linear
    lacking, gradients = differences(net, X, y)
    distances = []
    for confidence in (0.0, 0.5, 2.0):
        attack = CarliniWagner(net, clip=None, confidence=confidence, n_steps=60)
        X_adv, info = attack.generate(X, y, return_info=True)
        z = logits(net, X_adv)
        own = z[np.arange(len(y)), y].copy()
        z[np.arange(len(y)), y] = -np.inf
        assert np.all(z.max(1) - own >= confidence - 1e-9)
        exact = ((lacking + confidence) / np.linalg.norm(gradients, axis=2)).min(1)
        assert np.median(info["distance"] / exact) < 1.01
        distances.append(info["distance"])
    assert np.all(distances[0] < distances[1])
    assert np.all(distances[1] < distances[2])


@pytest.mark.slow
@in_both
def test_settings_and_their_effect(norm, images):
    X, y = images.X[:4], images.y[:4]

    def median(**settings):
        attack = CarliniWagner(images.net, norm=norm, clip=(0, 1), **settings)
        _, info = attack.generate(X, y, return_info=True)
        return np.median(info["distance"])

    best = median(n_steps=40)
    assert np.isfinite(best)
    assert best <= 1.02 * median(n_steps=25, n_binary_steps=4) < 1.5 * best
    assert median(n_binary_steps=1, n_steps=50) >= 0.99 * best
    assert median(initial_const=1e-3, n_steps=40) < 1.1 * best
    assert median(learning_rate=0.1, n_steps=40) < 1.1 * best
    assert median(abort_early=False, n_steps=40) < 1.05 * best


@in_one
def test_another_class_where_the_best_one_is_out_of_reach(norm):
    # class 1 is the most likely wrong one everywhere but for x_1 close to 1, and never wins
    net = nn.Linear(2, 3).double().requires_grad_(False)
    net.weight.copy_(torch.tensor([[0.0, 0.0], [1.0, -1.5], [0.0, 4.0]]))
    net.bias.copy_(torch.tensor([3.0, 1.5, 0.0]))
    X = np.array([[0.5, 0.05], [0.2, 0.1]])
    y = np.zeros(2, int)
    assert_array_equal(logits(net, X).argsort(1)[:, ::-1][:, :2], [[0, 1]] * 2)
    X_adv, info = CarliniWagner(net, norm=norm, clip=(0, 1)).generate(X, y, return_info=True)
    assert_array_equal(logits(net, X_adv).argmax(1), 2)
    assert_allclose(info["distance"], 0.75 - X[:, 1], rtol=0.02)


def test_stopping_early_saves_work(images):
    X, y = torch.tensor(images.X[:5]), torch.tensor(images.y[:5])

    def gradients(keep="last", **settings):
        victim = as_victim(images.net)
        CarliniWagner(clip=(0, 1), n_steps=25, n_binary_steps=4, **settings).perturb(
            victim, X, y, keep=keep
        )
        return victim.calls.backward

    with torch.no_grad():
        n = int((images.net(X).argmax(1) == y).sum())  # the others need no attack
    assert gradients(abort_early=False) == n * (1 + 4 * 25)
    # once all features are below tau and the sample is adversarial there is nothing to fall
    assert gradients(norm=np.inf) < 0.9 * gradients(norm=np.inf, abort_early=False)
    assert gradients("first", eps=5.0) < 0.2 * gradients(eps=5.0)


def test_rounds_do_not_depend_on_the_other_samples(images):
    X, y = images.X[:4].astype(np.float64), images.y[:4]
    net = images.net.double()
    attack = CarliniWagner(net, clip=(0, 1), n_steps=15, n_binary_steps=4)
    together = attack.generate(X, y)
    alone = np.concatenate([attack.generate(X[i : i + 1], y[i : i + 1]) for i in range(4)])
    assert_allclose(together, alone, atol=1e-9)


def test_samples_without_a_gradient_come_back(linear):
    class Constant(nn.Module):
        def forward(self, x):
            return (0 * x.sum(1))[:, None] + torch.tensor([3.0, 0.0], dtype=x.dtype)

    _, X, _ = linear
    for norm in (2, np.inf):
        attack = CarliniWagner(Constant(), norm=norm, clip=None, n_steps=5, n_binary_steps=2)
        X_adv, info = attack.generate(X, np.zeros(40, int), return_info=True)
        assert_array_equal(X_adv, X)
        assert np.all(np.isinf(info["distance"]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"confidence": -1.0}, "confidence must be a finite number of at least 0, got -1"),
        ({"n_steps": 0}, "n_steps must be an integer of at least 1, got 0"),
        ({"n_binary_steps": 1.5}, "n_binary_steps must be an integer of at least 1"),
        ({"learning_rate": 0.0}, "learning_rate must be a finite number larger than 0, got 0"),
        ({"initial_const": -2}, "initial_const must be a finite number larger than 0, got -2"),
        ({"norm": 1}, "norm=1 is not supported; use one of 2, inf"),
        ({"variable": "sigmoid"}, "variable must be 'projection' or 'tanh', got 'sigmoid'"),
    ],
)
def test_bad_settings(settings, message, linear):
    net, X, y = linear
    with pytest.raises(ValueError, match=message):
        CarliniWagner(net, clip=None, **settings).generate(X, y)
