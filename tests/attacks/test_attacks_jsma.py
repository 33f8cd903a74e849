"""The saliency map attack against brute force."""

import itertools

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

from robustsk.attacks import JSMA
from robustsk.attacks.minimal.jsma import best_pair


@pytest.fixture
def linear():
    """A linear model of four classes in nine features, and samples with its predictions."""
    rng = np.random.default_rng(3)
    net = nn.Linear(9, 4).double().requires_grad_(False)
    net.weight.copy_(torch.tensor(rng.normal(size=(4, 9))))
    net.bias.copy_(torch.tensor(rng.normal(size=4)))
    X = rng.uniform(0.1, 0.9, size=(30, 9))
    return net, X, net(torch.tensor(X)).argmax(1).numpy()


def logits(net, X):
    return net(torch.as_tensor(X)).numpy()


def reference(net, x, goal, stop, pairs, limit):
    """Jump to the edges of [0, 1], one pair (or feature) at a time; plain loops."""
    W = net.weight.numpy()
    x, changed = x.copy(), set()
    for _ in range(20):
        z = logits(net, x[None])[0]
        if stop(z):
            return x
        target = goal(z)
        rival = np.argmax(np.where(np.arange(4) == target, -np.inf, z))
        rise, fall = W[target], W[target] - W.sum(0)
        moves = [(i, edge - x[i]) for i in range(9) if i not in changed for edge in (0.0, 1.0)]
        groups = [[m] for m in moves]
        best = None
        for n in (2, 1) if pairs else (1,):
            groups = [g for g in itertools.combinations(moves, n) if len({i for i, _ in g}) == n]
            groups = [g for g in groups if len(changed) + n <= limit]
            scored = []
            for g in groups:
                a, b = (sum(grad[i] * s for i, s in g) for grad in (rise, fall))
                if a > 0 and b > 0:
                    scored.append((a * b, g))
            if scored:
                best = max(scored)[1]
                break
        if best is None:
            scored = [((W[target] - W[rival])[i] * s, [(i, s)]) for i, s in moves]
            scored = [pair for pair in scored if pair[0] > 0 and len(changed) < limit]
            if not scored:
                return None
            best = max(scored)[1]
        for i, s in best:
            x[i] += s
            changed.add(i)
    return None


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("limit", [3, 9])
def test_same_as_plain_loops(limit, pairs, targeted, linear):
    net, X, y = linear
    target = (y + 2) % 4
    attack = JSMA(net, clip=(0, 1), eps=limit, pairs=pairs, target=target if targeted else None)
    X_adv, info = attack.generate(X, y, return_info=True)
    solved = 0
    for i, x in enumerate(X):
        if targeted:
            stop, goal = (lambda z, i=i: z.argmax() == target[i]), (lambda z, i=i: target[i])
        else:
            stop = lambda z, i=i: z.argmax() != y[i]  # noqa: E731
            goal = lambda z, i=i: np.argmax(np.where(np.arange(4) == y[i], -np.inf, z))  # noqa: E731
        expected = reference(net, x, goal, stop, pairs, limit)
        if expected is None:
            assert_array_equal(X_adv[i], x)
            assert np.isinf(info["distance"][i])
        else:
            solved += 1
            assert_allclose(X_adv[i], expected, atol=1e-12)
            assert info["distance"][i] == (expected != x).sum() <= limit
    assert solved >= 6


def test_largest_weights_are_picked():
    W = torch.tensor([[0.2, -1.5, 0.7, 0.05, -0.4, 1.0]], dtype=torch.float64)
    net = nn.Linear(6, 2).double().requires_grad_(False)
    net.weight.copy_(torch.cat([-W, W]))
    net.bias.copy_(torch.tensor([3.0, -3.0]))
    X = np.zeros((1, 6))
    # each step of 0.5 adds |w| to the difference of the logits, which is 6 at first
    expected = np.array([[0.0, -0.5, 0.0, 0.0, 0.0, 0.0]])
    for pairs, order in ((False, [[1], [5], [2], [4]]), (True, [[1, 5], [2, 4]])):
        for n in (1, 2):
            lacking = 2 * 0.5 * sum(abs(W[0, i].item()) for group in order[:n] for i in group)
            net.bias.copy_(torch.tensor([lacking / 2 - 0.01, -lacking / 2 + 0.01]))
            expected = np.zeros((1, 6))
            for i in itertools.chain(*order[:n]):
                expected[0, i] = 0.5 * np.sign(W[0, i].item())
            attack = JSMA(net, clip=(-0.5, 0.5), pairs=pairs)
            assert_array_equal(attack.generate(X), expected)


def test_theta_moves_by_steps_and_only_counts_features(linear):
    net, X, y = linear
    for clip in (None, (0, 1)):
        attack = JSMA(net, clip=clip, theta=0.05, eps=4)
        X_adv, info = attack.generate(X, y, return_info=True)
        moved = X_adv - X
        hit = np.isfinite(info["distance"])
        assert hit.mean() > 0.6
        assert_array_equal((moved != 0).sum(1)[hit], info["distance"][hit])
        assert info["distance"][hit].max() <= 4
        steps = moved / 0.05
        at_edge = np.isin(X_adv, (0, 1)) if clip else np.zeros_like(moved, bool)
        assert np.all(at_edge | (np.abs(steps - np.round(steps)) < 1e-9))
        assert np.abs(steps).max() > 1.5  # the same feature again
    assert np.all(np.isfinite(JSMA(net, clip=None, theta=0.5).generate(X, y)))


def test_one_feature_is_enough_without_a_box(linear):
    net, X, y = linear
    X_adv, info = JSMA(net, clip=None, eps=1).generate(X, y, return_info=True)
    assert np.all(info["distance"] == 1)
    assert np.all(logits(net, X_adv).argmax(1) != y)


def test_a_single_logit(linear):
    # class 0 has the logit 0, which no feature can raise
    _, X, _ = linear
    net = nn.Linear(9, 1).double().requires_grad_(False)
    net.weight.copy_(torch.tensor(np.random.default_rng(0).normal(size=(1, 9))))
    net.bias.copy_(-0.5 * net.weight.sum())
    y = (net(torch.tensor(X)).numpy()[:, 0] > 0).astype(int)
    X_adv, info = JSMA(net, clip=(0, 1)).generate(X, y, return_info=True)
    assert_array_equal(net(torch.tensor(X_adv)).numpy()[:, 0] > 0, y == 0)
    assert info["distance"].max() <= 6


def test_frozen_and_wrong_samples_are_left_alone(linear):
    net, X, y = linear
    mask = np.array([1, 0, 1, 1, 0, 1, 1, 1, 1], bool)
    labels = y.copy()
    labels[::3] = (y[::3] + 1) % 4
    X_adv, info = JSMA(net, clip=(0, 1), mask=mask).generate(X, labels, return_info=True)
    assert_array_equal(X_adv[:, ~mask], X[:, ~mask])
    assert_array_equal(X_adv[::3], X[::3])
    assert np.all(info["distance"][::3] == 0)
    assert np.isfinite(info["distance"]).mean() > 0.8


def test_images(images):
    X, y = images.X[:40], images.y[:40]
    X_adv, info = JSMA(images.net, clip=(0, 1)).generate(X, y, return_info=True)
    with torch.no_grad():
        predicted = images.net(torch.tensor(X_adv)).argmax(1).numpy()
    assert np.all(predicted != y)
    assert np.median(info["distance"]) <= 6
    _, single = JSMA(images.net, clip=(0, 1), pairs=False).generate(X, y, return_info=True)
    assert np.median(single["distance"]) <= 8


# --- the choice of pairs -----------------------------------------------------------------


def brute_force(a, b, allowed, new, left):
    """Return the largest product over all pairs of moves of two features."""
    a = np.where(allowed, a, np.nan)
    rise, fall = a[:, None] + a, b[:, None] + b
    d = len(a) // 2
    feature = np.arange(2 * d) % d
    fits = (feature[:, None] != feature) & (new[:, None] * 1 + new <= left)
    with np.errstate(invalid="ignore"):
        fits &= (rise > 0) & (fall > 0)
    return np.max(np.where(fits, rise * fall, -np.inf))


@pytest.mark.dealt
@pytest.mark.parametrize("kind", ["independent", "opposed", "alike"])
@pytest.mark.parametrize("d", [2, 16, 300])
def test_best_pair(d, kind):
    rng = np.random.default_rng(d)
    n = 60
    rise = rng.normal(size=(n, d))
    noise = rng.normal(size=(n, d))
    fall = {"independent": noise, "opposed": 0.3 * noise - rise, "alike": 0.3 * noise + rise}[kind]
    a, b = np.concatenate([rise, -rise], 1), np.concatenate([fall, -fall], 1)
    allowed = rng.uniform(size=a.shape) < 0.9
    new = np.tile(rng.uniform(size=(n, d)) < 0.8, 2)
    left = rng.integers(0, 4, size=n)
    allowed &= ~new | (left > 0)[:, None]
    given = [torch.tensor(v) for v in (a, b, allowed, new, left)]
    pair, exists = best_pair(*given)
    ratios = []
    for i in range(n):
        best = brute_force(a[i], b[i], allowed[i], new[i], left[i])
        assert bool(exists[i]) == np.isfinite(best)
        if np.isfinite(best):
            p, q = pair[i].tolist()
            assert p % d != q % d
            assert allowed[i, p]
            assert allowed[i, q]
            assert new[i, p] * 1 + new[i, q] <= left[i]
            ratios.append((a[i, p] + a[i, q]) * (b[i, p] + b[i, q]) / best)
    ratios = np.array(ratios)
    if d <= 16:
        assert_allclose(ratios, 1)
    else:
        assert np.mean(ratios > 0.999) > 0.9
        assert np.min(ratios) > 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"theta": 0.0}, "theta must be a finite number larger than 0, got 0"),
        ({"theta": -1}, "theta must be a finite number larger than 0, got -1"),
        ({"n_steps": 0}, "n_steps must be an integer of at least 1, got 0"),
        ({"norm": 1}, "norm=1 is not supported; use one of 0"),
    ],
)
def test_bad_settings(settings, message, linear):
    net, X, y = linear
    with pytest.raises(ValueError, match=message):
        JSMA(net, clip=None, **settings).generate(X, y)
