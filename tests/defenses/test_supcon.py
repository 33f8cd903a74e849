"""Supervised contrastive learning: the views, the loss, and the probe."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn
from torch.nn import functional as F

from robustsk import PGD, SupervisedContrastiveClassifier
from robustsk.datasets import load_digits_images
from robustsk.losses import supervised_contrastive

C, D = 3, 4


def network():
    return nn.Sequential(nn.Linear(D, 6), nn.Tanh(), nn.Linear(6, C)).double()


def small(**params):
    return SupervisedContrastiveClassifier(
        **{
            "module": network, "adversary": PGD(eps=0.3, clip=None), "max_epochs": 2,
            "batch_size": 16, "random_state": 0, "device": "cpu", **params,
        }
    )  # fmt: skip


def ready(**params):
    clf = small(input_shape=(D,), classes=list(range(C)), **params).initialize()
    clf.module_.train()
    return clf


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    return torch.as_tensor(rng.normal(size=(7, D))), torch.arange(7) % C


@pytest.fixture
def data():
    rng = np.random.default_rng(1)
    y = np.arange(40) % C
    return rng.normal(size=(40, D)) + 2 * np.eye(C, D)[y], y


def test_views_are_two_points_of_the_ball(batch):
    x, y = batch
    first, second = ready().craft(x, y)
    for view in (first, second):
        assert 0.2 < (view - x).abs().max() <= 0.3
        assert (view != x).all()
    assert (first != second).all()
    ball = ready(adversary=PGD(norm=2, eps=0.5, clip=(-0.1, 0.1))).craft(x.clamp(-0.1, 0.1), y)[0]
    assert ball.abs().max() <= 0.1


def test_views_of_an_augmentation(data):
    seen = []

    def shift(x):
        seen.append(x)
        return x + torch.rand(len(x), 1, dtype=x.dtype)

    class Watching(SupervisedContrastiveClassifier):
        def training_loss(self, x, x_adv, y):
            first, second = (view - x for view in x_adv)
            assert_allclose(first, first[:, :1].expand(-1, D))
            assert (first != second).all()
            return super().training_loss(x, x_adv, y)

    X, y = data
    clf = Watching(
        network, augmentation=shift, batch_size=-1, max_epochs=1, random_state=0, device="cpu"
    ).fit(X, y)
    assert len(seen) == 2
    for x in seen:
        assert_array_equal(np.sort(x, axis=0), np.sort(X, axis=0))
    assert clf.augmentation_ is shift


@pytest.mark.parametrize("projection", [None, "linear"])
def test_loss(batch, projection):
    x, y = batch
    clf = ready(temperature=0.3, similarity="l1", projection=projection)
    views = clf.craft(x, y)
    first, _, last = clf.module_
    z = [torch.tanh(first(v)) for v in views]
    ce = [F.cross_entropy(last(v.detach()), y, reduction="none") for v in z]
    if projection:
        (w,) = clf.projection_.parameters()
        z = [v @ w.T for v in z]
    scl = supervised_contrastive(*z, y, temperature=0.3, similarity="l1")
    found = clf.training_loss(x, views, y)
    assert_allclose(found.detach(), (scl + (ce[0] + ce[1]) / 2).detach())
    # the encoder learns from the one, the last layer from the other
    encoder, probe = list(first.parameters()), list(last.parameters())
    gradients = torch.autograd.grad(found.sum(), [*encoder, *probe])
    expected = [
        *torch.autograd.grad(scl.sum(), encoder),
        *torch.autograd.grad((ce[0] + ce[1]).sum() / 2, probe),
    ]
    for a, b in zip(gradients, expected, strict=True):
        assert_allclose(a, b, atol=1e-12)


def test_last_fit_of_the_probe(data):
    X, y = data
    weight = 1.0 + (y == 0)
    without = small().fit(X, y, weight)
    clf = small(probe_steps=500, probe_l2=0.01).fit(X, y, weight)
    for a, b in zip(without.module_[0].parameters(), clf.module_[0].parameters(), strict=True):
        assert torch.equal(a, b)
    last = clf.module_[2]
    # at a minimum of the regularised loss
    z = torch.tanh(clf.module_[0](torch.as_tensor(X))).detach()
    share = torch.as_tensor(weight / weight.sum())

    def value(w, b):
        loss = F.cross_entropy(z @ w.T + b, torch.as_tensor(y), reduction="none")
        return (share * loss).sum() + 0.005 * (w**2).sum()

    here = value(last.weight, last.bias)
    for g in torch.autograd.grad(here, [last.weight, last.bias]):
        assert g.abs().max() < 1e-6
    assert here < value(*without.module_[2].parameters())
    assert clf.score(X, y) >= without.score(X, y) - 0.05
    assert all(p.requires_grad for p in clf.module_.parameters())
    assert not clf.module_.training


def test_frozen_probe_is_left_alone(data):
    module = network()
    module[2].requires_grad_(False)
    clf = small(module=module, probe_steps=50).fit(*data)
    assert torch.equal(clf.module_[2].weight, module[2].weight)


@pytest.mark.parametrize(
    ("params", "match"),
    [
        ({"probe_steps": -1}, "probe_steps must be"),
        ({"probe_l2": -1}, "probe_l2 must be"),
        ({"temperature": -1}, "temperature must be"),
        ({"similarity": "dot"}, "similarity must be one of"),
        ({"projection": "conv"}, "projection must be None"),
    ],
)
def test_bad_parameters(data, params, match):
    with pytest.raises(ValueError, match=match):
        small(**params).fit(*data)


@pytest.mark.slow
def test_it_learns_digits():
    X, y = load_digits_images(return_X_y=True)
    for steps in (0, 100):
        clf = SupervisedContrastiveClassifier(
            "mlp", probe_steps=steps, max_epochs=8, adversary__eps=0.1, random_state=0
        ).fit(X[:700], y[:700])
        assert clf.score(X[700:900], y[700:900]) > 0.9
