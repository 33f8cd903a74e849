"""DeepFool against closed forms and a loop in numpy."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

from robustsk.attacks import DeepFool, as_victim

NORMS = [np.inf, 2.0]
DUAL = {np.inf: 1, 2.0: 2}


def network(*sizes, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
    steps = [step for layer in layers for step in (layer, nn.Tanh())][:-1]
    return nn.Sequential(*steps).double()


def samples(n, d, seed=1):
    return torch.rand(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def attack(net, x, y=None, keep="worst", **settings):
    deepfool = DeepFool(**{"clip": None, "random_state": 0, **settings})
    return deepfool.perturb(net, x, y, keep=keep, return_info=True)


def boundary_distances(net, x, norm):
    """Return the distance of each sample to each boundary of a linear model, shape (n, K)."""
    W, logits = net[0].weight.detach().numpy(), net(x).detach().numpy()
    y = logits.argmax(1)
    n, n_classes = logits.shape
    result = np.full((n, n_classes), np.inf)
    for i in range(n):
        for k in range(n_classes):
            if k != y[i]:
                length = np.linalg.norm(W[k] - W[y[i]], ord=DUAL[norm])
                result[i, k] = (logits[i, y[i]] - logits[i, k]) / length
    return result


@pytest.mark.parametrize("norm", NORMS)
def test_one_step_for_two_classes(norm):
    net, x = network(6, 2), samples(20, 6)
    exact = boundary_distances(net, x, norm).min(1)
    victim = as_victim(net)
    x_adv, info = attack(victim, x, norm=norm, overshoot=0.02)
    assert_allclose(info["distance"], 1.02 * exact, rtol=1e-10)
    assert (net(x_adv).argmax(1) != net(x).argmax(1)).all()
    # one gradient for the step, one where the loop finds that it has arrived
    assert victim.calls.backward == 2 * 20
    w = net[0].weight[1] - net[0].weight[0]
    direction = (w if norm == 2 else w.sign()).detach()
    sign = torch.where(net(x).argmax(1) == 0, 1.0, -1.0)[:, None]
    size = 1.02 * torch.tensor(exact)[:, None] / torch.linalg.vector_norm(direction, ord=norm)
    assert_allclose(x_adv - x, sign * size * direction, rtol=1e-10)


@pytest.mark.parametrize("n_candidates", [None, 10])
@pytest.mark.parametrize("norm", NORMS)
def test_nearest_of_several_boundaries(norm, n_candidates):
    net, x = network(6, 5), samples(30, 6)
    exact = boundary_distances(net, x, norm).min(1)
    x_adv, info = attack(net, x, norm=norm, n_candidates=n_candidates)
    assert_allclose(info["distance"], 1.02 * exact, rtol=1e-10)
    assert (net(x_adv).argmax(1) != net(x).argmax(1)).all()


@pytest.mark.parametrize("norm", NORMS)
def test_candidates_are_those_of_each_sample(norm):
    net, x = network(6, 5, seed=3), 2 * samples(60, 6) - 1
    exact = boundary_distances(net, x, norm)
    second = net(x).detach().argsort(1, descending=True)[:, 1].numpy()
    towards = exact[np.arange(60), second]
    assert len(set(second)) > 2
    assert (towards > exact.min(1) * 1.03).sum() > 3
    given = {"norm": norm, "n_candidates": 1, "n_binary_steps": 0}
    _, info = attack(net, x, **given)
    assert_allclose(info["distance"], 1.02 * towards, rtol=1e-10)
    shuffled = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    _, again = attack(net, x[shuffled], **given)
    assert_allclose(again["distance"], info["distance"][shuffled], rtol=1e-10)


def reference(weights, x, norm, overshoot, n_steps):
    """DeepFool for one sample and a network with one hidden layer of tanh, in numpy."""
    (V, a), (W, b) = weights

    def logits_and_jacobian(z):
        hidden = np.tanh(V @ z + a)
        return W @ hidden + b, W @ ((1 - hidden**2)[:, None] * V)

    total = np.zeros_like(x)
    label = logits_and_jacobian(x)[0].argmax()
    for _ in range(n_steps):
        f, J = logits_and_jacobian(x + (1 + overshoot) * total)
        if f.argmax() != label:
            break
        best = np.inf
        for k in range(len(f)):
            if k == label:
                continue
            w, gap = J[k] - J[label], abs(f[k] - f[label])
            if norm == 2:
                length, step = gap / np.linalg.norm(w), gap * w / (w @ w)
            else:
                length, step = gap / np.abs(w).sum(), gap / np.abs(w).sum() * np.sign(w)
            if length < best:
                best, nearest = length, step
        total += nearest
    return x + (1 + overshoot) * total


@pytest.mark.parametrize("overshoot", [0.02, 0.3])
@pytest.mark.parametrize("norm", NORMS)
def test_loop_over_samples_in_numpy(norm, overshoot):
    net, x = network(4, 12, 4, seed=2), samples(25, 4)
    with torch.no_grad():
        for layer in (net[0], net[2]):
            layer.weight *= 2
    weights = [
        (layer.weight.detach().numpy(), layer.bias.detach().numpy()) for layer in (net[0], net[2])
    ]
    victim = as_victim(net)
    given = {"norm": norm, "overshoot": overshoot, "n_steps": 20}
    x_adv, info = attack(victim, x, n_binary_steps=0, **given)
    expected = np.stack([reference(weights, row, norm, overshoot, 20) for row in x.numpy()])
    found = info["distance"].isfinite().numpy()
    assert found.sum() >= 20
    assert_allclose(x_adv[found], expected[found], rtol=1e-7, atol=1e-9)
    assert_array_equal(x_adv[~found], x[~found])
    if overshoot < 0.1:
        assert victim.calls.backward > 2 * 3 * 25  # curved: more than one step
    # on the way back the boundary is met where the straight line to the sample crosses it
    before = victim.calls.forward
    x_near, near = attack(victim, x, **given)
    assert (near["distance"] <= info["distance"]).all()
    assert (near["distance"] < 0.98 * info["distance"])[found].any()
    assert victim.calls.forward > before
    border = x + (x_near - x) / (1 + overshoot)
    for share, is_fooled in ((0.998, False), (1.002, True)):
        z = x + share * (border - x)
        moved = (near["distance"] < 0.999 * info["distance"]) & torch.from_numpy(found)
        assert ((net(z).argmax(1) != net(x).argmax(1))[moved] == is_fooled).all()


@pytest.mark.parametrize("norm", NORMS)
def test_box_and_frozen_features(norm, images):
    x, y = torch.tensor(images.X[:30]), torch.tensor(images.y[:30])
    mask = np.ones((1, 8, 8), dtype=bool)
    mask[:, 0] = False
    x_adv, info = attack(images.net, x, y, norm=norm, clip=(0, 1), mask=mask)
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert_array_equal(x_adv[:, :, 0], x[:, :, 0])
    assert (images.net(x_adv).argmax(1) != y).all()
    right = info["distance"] > 0
    assert right.sum() > 20
    # half of the pixels are at the edge of the box, and there is still a way
    assert ((x[right] == 0) | (x[right] == 1)).double().mean() > 0.4


@pytest.mark.parametrize("norm", NORMS)
def test_features_at_the_edge_of_the_box_do_not_count(norm):
    net = network(3, 2)
    with torch.no_grad():
        net[0].weight[:] = torch.tensor([[0.0, 0.0, 0.0], [2.0, -1.0, 0.5]]).double()
        net[0].bias[:] = torch.tensor([0.0, -2.3], dtype=torch.float64)
    x = torch.tensor([[1.0, 0.5, 0.4]], dtype=torch.float64)
    # the first feature cannot grow: 0.6 are missing, of slopes -1 and 0.5
    x_adv, info = attack(net, x, norm=norm, clip=(0, 1))
    if norm == 2:
        assert_allclose(info["distance"], [1.02 * 0.6 / np.sqrt(1.25)], rtol=1e-10)
        assert_allclose(x_adv[0] - x[0], 1.02 * 0.6 / 1.25 * np.array([0, -1, 0.5]), rtol=1e-10)
    else:
        assert_allclose(info["distance"], [1.02 * 0.4], rtol=1e-10)
        assert_allclose(x_adv[0] - x[0], 1.02 * 0.4 * np.array([0, -1, 1]), rtol=1e-10)


@pytest.mark.parametrize("norm", NORMS)
def test_radius_per_feature(norm):
    net, x = network(5, 2, seed=1), samples(20, 5)
    weight = np.array([1.0, 0.25, 0.0, 0.5, 0.1])
    w = (net[0].weight[1] - net[0].weight[0]).detach().numpy() * weight
    f = np.diff(net(x).detach().numpy(), axis=1)[:, 0]
    exact = 1.02 * np.abs(f) / np.linalg.norm(w, ord=DUAL[norm])
    eps = 4 * np.median(exact)
    x_adv, info = attack(net, x, norm=norm, eps=eps * weight)
    within = exact <= eps
    assert within.sum() > 10
    assert_allclose(info["distance"][within], exact[within], rtol=1e-9)
    assert info["distance"][~within].isinf().all()
    assert_array_equal(x_adv[:, 2], x[:, 2])


@pytest.mark.parametrize("norm", NORMS)
def test_target(norm):
    net, x = network(6, 4, seed=2), samples(30, 6)
    y = net(x).argmax(1)
    target = (y + 1 + torch.arange(30) % 3) % 4
    x_adv, info = attack(net, x, y, norm=norm, target=target.numpy())
    found = info["distance"].isfinite()
    assert found.double().mean() > 0.9
    assert (net(x_adv).argmax(1) == target)[found].all()
    exact = boundary_distances(net, x, norm)[np.arange(30), target]
    assert (info["distance"].numpy() >= exact).all()
    assert_allclose(np.median(info["distance"].numpy() / exact), 1.02, rtol=1e-6)


def test_a_sample_that_has_arrived_costs_nothing_more():
    net, x = network(4, 12, 3, seed=2), samples(25, 4)
    everyone, one = as_victim(net), as_victim(net)
    attack(everyone, x)
    for row in x:
        attack(one, row[None])
    # dropped in groups, so that a few are looked at again
    assert everyone.calls.backward < 1.5 * one.calls.backward


@pytest.mark.parametrize("slope", [0.0, float("nan")])
@pytest.mark.parametrize("norm", NORMS)
def test_no_gradient(norm, slope):
    class Flat(nn.Module):
        def forward(self, x):
            return torch.stack([1 + 0 * x[:, 0], slope * x[:, 0].abs()], dim=1)

    x, y = samples(5, 3), torch.zeros(5, dtype=torch.int64)
    victim = as_victim(Flat())
    x_adv, info = attack(victim, x, y, norm=norm)
    assert_array_equal(x_adv, x)
    if slope == 0:
        assert info["distance"].isinf().all()
        assert victim.calls.backward == 5


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"norm": 1}, "norm=1 is not supported; use one of inf, 2"),
        ({"n_steps": 0}, "n_steps must be an integer"),
        ({"n_candidates": 0}, "n_candidates must be an integer"),
        ({"overshoot": -0.1}, "overshoot must be a finite number of at least 0, got -0.1"),
    ],
)
def test_bad_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        attack(network(3, 3), samples(4, 3), **parameters)
