"""Penalties and mixed samples in adversarial training, against their formulas."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.datasets import make_blobs
from torch import nn

from robustsk import PGD, FriendlyPGD, PGDATClassifier, RegularizedATClassifier, StandardClassifier
from robustsk.datasets import load_digits_images
from robustsk.training import AWP, Cutout


class Normed(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))


@pytest.fixture
def data():
    return make_blobs(48, 4, centers=3, cluster_std=0.6, center_box=(-2, 2), random_state=3)


def make(cls=RegularizedATClassifier, **params):
    defaults = {
        "module": "mlp", "module__hidden_sizes": (8,), "max_epochs": 3, "batch_size": 16,
        "lr": 0.05, "adversary__eps": 0.2, "adversary__n_steps": 2, "random_state": 0,
        "device": "cpu",
    }  # fmt: skip
    return cls(**{**defaults, **params})


def ready(**params):
    clf = RegularizedATClassifier(
        lambda: Normed().double(), input_shape=(4,), classes=[0, 1, 2], random_state=0,
        device="cpu", **params,
    ).initialize()  # fmt: skip
    clf.module_.eval()
    return clf


def ce(z, y):
    z = z.detach().numpy()
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return -np.log((e / e.sum(axis=1, keepdims=True))[np.arange(len(y)), y])


def batch(n=9):
    torch.manual_seed(1)
    return torch.randn(n, 4).double(), torch.arange(n) % 3


def test_penalties_leave_out_biases_and_normalisations():
    x, y = batch()
    clf = ready(l1=0.3, l2=0.7)
    weights = [clf.module_[i].weight.detach().numpy() for i in (0, 3)]
    penalty = sum(0.3 * np.abs(w).sum() + 0.35 * (w**2).sum() for w in weights)
    with torch.no_grad():
        for p in clf.module_.parameters():
            if p.ndim == 1:
                p.add_(3.0)  # changes the logits, but not the penalty
    expected = ce(clf.module_(x), y.numpy()) + penalty
    assert_allclose(clf.training_loss(x, x, y).detach(), expected, rtol=1e-9)
    gradient = torch.autograd.grad(clf.training_loss(x, x, y).mean(), clf.module_[3].bias)[0]
    clf.set_params(l1=0.0, l2=0.0)
    plain = torch.autograd.grad(clf.training_loss(x, x, y).mean(), clf.module_[3].bias)[0]
    assert_allclose(gradient, plain, rtol=1e-9)


def test_square_penalty_is_the_weight_decay_of_gradient_descent(data):
    """Of the weights; biases are compared without decay."""
    common = {"optimizer": torch.optim.SGD, "lr": 0.1}
    penalised = make(l2=0.3, **common).fit(*data)
    groups = [("*weight", {"weight_decay": 0.3})]
    decayed = make(PGDATClassifier, optimizer__param_groups=groups, **common).fit(*data)
    for p, q in zip(penalised.module_.parameters(), decayed.module_.parameters(), strict=True):
        assert_allclose(p.detach(), q.detach(), rtol=1e-6, atol=1e-9)


def test_mixed_loss_and_attack():
    x, y = batch()
    clf = ready(mixup=0.4, adversary=PGD(eps=0.5, n_steps=1, random_start="none", clip=None))
    clf._rng = np.random.RandomState(5)
    torch.manual_seed(7)
    x_adv, other, share = clf.craft(x, y)
    assert share == np.random.RandomState(5).beta(0.4, 0.4)
    torch.manual_seed(7)
    order = torch.randperm(len(x))
    assert torch.equal(other, y[order])
    # one step of gradient ascent on the mixed loss, by hand
    z = (share * x + (1 - share) * x[order]).requires_grad_(True)
    loss = nn.functional.cross_entropy
    total = share * loss(clf.module_(z), y, reduction="sum")
    total = total + (1 - share) * loss(clf.module_(z), y[order], reduction="sum")
    (gradient,) = torch.autograd.grad(total, z)
    assert_allclose(x_adv, z.detach() + 0.5 * gradient.sign(), atol=1e-12)
    logits = clf.module_(x_adv)
    expected = share * ce(logits, y.numpy()) + (1 - share) * ce(logits, other.numpy())
    assert_allclose(clf.training_loss(x, (x_adv, other, share), y).detach(), expected, rtol=1e-9)


def test_share_follows_the_beta_distribution():
    x, y = batch(3)
    clf = ready(mixup=1.4, adversary__n_steps=1)
    clf._rng = np.random.RandomState(0)
    shares = [clf.craft(x, y)[2] for _ in range(400)]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.05)
    assert np.var(shares) == pytest.approx(1 / (4 * (2 * 1.4 + 1)), rel=0.2)


def test_without_anything_it_is_adversarial_training(data):
    assert_array_equal(
        make().fit(*data).predict_proba(data[0]),
        make(PGDATClassifier).fit(*data).predict_proba(data[0]),
    )


@pytest.mark.dealt
@pytest.mark.parametrize("adversary", [PGD(n_restarts=2), PGD(norm=2), FriendlyPGD()])
def test_goes_with_everything_else(data, adversary):
    clf = make(
        l1=1e-5, l2=1e-4, mixup=1.0, adversary=adversary, weight_perturbation=AWP(gamma=0.01),
        max_epochs=8,
    )  # fmt: skip
    clf.fit(*data, sample_weight=np.linspace(0.5, 1, 48))
    assert clf.score(*data) > 0.8
    again = make(**{k: v for k, v in clf.get_params(deep=False).items() if k != "callbacks"})
    again.fit(*data, sample_weight=np.linspace(0.5, 1, 48))
    assert_array_equal(again.predict_proba(data[0]), clf.predict_proba(data[0]))


@pytest.mark.parametrize("params", [{"l1": -1}, {"l2": float("nan")}, {"mixup": "a"}])
def test_bad_parameters(params, data):
    with pytest.raises(ValueError, match=next(iter(params))):
        make(**params).fit(*data)


def test_adversary_with_an_objective_of_its_own(data):
    adversary = PGD(objective="cw", n_steps=2)
    with pytest.raises(ValueError, match="mixed labels"):
        make(mixup=1.0, adversary=adversary).fit(*data)
    make(l2=1e-4, adversary=adversary).fit(*data)


@pytest.mark.slow
def test_more_robust_than_natural_training():
    X, y = load_digits_images(return_X_y=True)
    X, y, X_test, y_test = X[:600], y[:600], X[600:800], y[600:800]
    common = {
        "max_epochs": 12, "module__hidden_sizes": (64,), "adversary__eps": 0.1,
        "adversary__n_steps": 5,
    }  # fmt: skip
    attack = PGD(eps=0.1, random_state=0)
    plain = make(StandardClassifier, **{**common, "lr": 0.005}).fit(X, y)
    for params in ({"l1": 1e-5, "l2": 5e-4}, {"mixup": 1.4, "augmentation": Cutout(2)}):
        clf = make(**{**common, "lr": 0.005, **params}).fit(X, y)
        robust = clf.score_adversarial(X_test, y_test, attack)
        assert robust > plain.score_adversarial(X_test, y_test, attack) + 0.1
