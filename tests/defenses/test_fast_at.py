"""Fast adversarial training: what one step makes, and what the variants minimise."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn
from torch.nn import functional as F

from robustsk import FGSM, PGD, FastATClassifier, StandardClassifier
from robustsk.datasets import load_digits_images
from robustsk.defenses.fast_at import _misalignment

N, D, C = 40, 12, 3
EPS = 0.1


def linear():
    return nn.Linear(D, C).double()


def curved():
    return nn.Sequential(nn.Linear(D, 7), nn.Tanh(), nn.Linear(7, C)).double()


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    return torch.as_tensor(rng.uniform(size=(N, D))), torch.as_tensor(np.arange(N) % C)


def ready(variant="rs", module=curved, clip=None, **params):
    clf = FastATClassifier(
        module, variant=variant, input_shape=(D,), classes=list(range(C)), random_state=0,
        device="cpu", adversary=PGD(eps=EPS, clip=clip), **params,
    ).initialize()  # fmt: skip
    clf.module_.train()
    return clf


def sign_of_gradient(clf, x, y):
    x = x.clone().requires_grad_(True)
    return torch.autograd.grad(F.cross_entropy(clf.module_(x), y), x)[0].sign()


# --- where the examples lie ----------------------------------------------------------


@pytest.mark.parametrize("variant", ["rs", "gradalign", "zerograd"])
@pytest.mark.parametrize("clip", [None, (0, 1)])
def test_projected_variants_stay_in_the_ball(batch, variant, clip):
    x, y = batch
    x_adv = ready(variant, clip=clip).craft(x, y)
    for z in x_adv if isinstance(x_adv, tuple) else (x_adv,):
        assert (z - x).abs().max() <= EPS * (1 + 1e-12)
        assert (z - x).abs().max() > 0.9 * EPS
        if clip:
            assert z.min() >= 0
            assert z.max() <= 1


def test_n_fgsm_leaves_the_ball_but_not_the_box(batch):
    x, y = batch
    x_adv = ready("n-fgsm", clip=(0, 1)).craft(x, y)
    moved = (x_adv - x).abs()
    assert moved.max() > 2 * EPS
    assert moved.max() <= 3 * EPS * (1 + 1e-12)  # noise of two radii and a step of one
    assert (moved > EPS).double().mean() > 0.3
    assert x_adv.min() == 0
    assert x_adv.max() == 1


def test_n_fgsm_is_noise_and_one_step(batch):
    x, y = batch
    clf = ready("n-fgsm", linear)
    # the gradient of a linear model with one confident class has the same sign everywhere
    with torch.no_grad():
        clf.module_.bias += torch.tensor([50.0, 0.0, 0.0])
    y = torch.ones_like(y)
    noise = (clf.craft(x, y) - EPS * sign_of_gradient(clf, x, y) - x) / EPS
    assert noise.abs().max() <= 2
    assert abs(noise.mean()) < 0.2
    assert noise.abs().mean() == pytest.approx(1, abs=0.1)  # uniform in [-2, 2]
    larger = ready("n-fgsm", noise=4.0, alpha=0.0).craft(x, y) - x
    assert larger.abs().mean() == pytest.approx(2 * EPS, rel=0.1)


def test_without_noise_it_is_fgsm(batch):
    x, y = batch
    for variant in ("rs", "n-fgsm"):
        clf = ready(variant, noise=0.0, alpha=1.0, clip=(0, 1))
        expected = FGSM(eps=EPS, clip=(0, 1)).perturb(clf.module_, x, y)
        assert torch.equal(clf.craft(x, y), expected)


def test_a_step_across_the_ball_ends_in_a_corner(batch):
    """Whatever the noise, if the step is as long as the ball is wide."""
    x, y = batch
    clf = ready("rs", linear, alpha=2.0)
    with torch.no_grad():
        clf.module_.bias += torch.tensor([50.0, 0.0, 0.0])
    y = torch.ones_like(y)
    assert_allclose(clf.craft(x, y), x + EPS * sign_of_gradient(clf, x, y), rtol=1e-12)
    # a shorter one does not
    assert not np.allclose(
        ready("rs", linear, alpha=1.25).craft(x, y), x + EPS * sign_of_gradient(clf, x, y)
    )


def test_zerograd_leaves_small_gradients_out(batch):
    x, y = batch
    clf = ready("zerograd", noise=0.0, quantile=0.5)
    z = x.clone().requires_grad_(True)
    gradient = torch.autograd.grad(F.cross_entropy(clf.module_(z), y, reduction="sum"), z)[0]
    moved = clf.craft(x, y) - x
    order = gradient.abs().argsort(1)
    smallest, others = order[:, : D // 2], order[:, D // 2 :]
    assert (moved.gather(1, smallest) == 0).all()
    assert_allclose(moved.gather(1, others), EPS * gradient.gather(1, others).sign(), rtol=1e-9)
    full = ready("zerograd", noise=0.0, quantile=0.0).craft(x, y)
    assert_allclose(full, x + EPS * gradient.sign(), rtol=1e-9)


def test_norm_2(batch):
    x, y = batch
    for variant in ("rs", "gradalign"):
        clf = ready(variant)
        clf.adversary_.norm = 2
        x_adv = clf.craft(x, y)
        x_adv = x_adv[0] if variant == "gradalign" else x_adv
        assert_allclose((x_adv - x).norm(dim=1).max(), EPS, rtol=1e-9)


# --- what is minimised ---------------------------------------------------------------


@pytest.mark.parametrize("variant", ["rs", "n-fgsm", "zerograd"])
def test_loss_is_cross_entropy(batch, variant):
    x, y = batch
    clf = ready(variant)
    x_adv = clf.craft(x, y)
    expected = F.cross_entropy(clf.module_(x_adv), y, reduction="none")
    assert torch.equal(clf.training_loss(x, x_adv, y), expected)


def aligned_loss(module, x, x_adv, x_near, y, lam):
    """Return the loss of GradAlign, one sample at a time."""
    losses = []
    for a, b, c, label in zip(x, x_adv, x_near, y, strict=True):
        gradients = []
        for point in (a, c):
            point = point[None].clone().requires_grad_(True)
            value = F.cross_entropy(module(point), label[None])
            gradients.append(torch.autograd.grad(value, point, create_graph=True)[0][0])
        cos = F.cosine_similarity(*gradients, dim=0)
        losses.append(F.cross_entropy(module(b[None]), label[None]) + lam * (1 - cos))
    return torch.stack(losses)


def test_gradalign_loss_and_its_gradient(batch):
    x, y = batch
    clf = ready("gradalign", lam=0.7)
    x_adv, x_near = clf.craft(x, y)
    assert_allclose(x_adv, x + EPS * sign_of_gradient(clf, x, y), rtol=1e-12)
    found = clf.training_loss(x, (x_adv, x_near), y)
    expected = aligned_loss(clf.module_, x, x_adv, x_near, y, 0.7)
    assert_allclose(found.detach(), expected.detach(), rtol=1e-9)
    parameters = list(clf.module_.parameters())
    for p, q in zip(
        torch.autograd.grad(found.sum(), parameters),
        torch.autograd.grad(expected.sum(), parameters),
        strict=True,
    ):
        assert_allclose(p, q, rtol=1e-7, atol=1e-12)


def test_gradalign_without_weight_is_fgsm_training(batch):
    x, y = batch
    clf = ready("gradalign", lam=0.0)
    x_adv, x_near = clf.craft(x, y)
    expected = F.cross_entropy(clf.module_(x_adv), y, reduction="none")
    assert torch.equal(clf.training_loss(x, (x_adv, x_near), y), expected)


def test_gradients_of_a_linear_model_are_aligned(batch):
    """With two classes they all lie on one line."""
    x, y = batch
    clf = FastATClassifier(
        lambda: nn.Linear(D, 2).double(), variant="gradalign", lam=5.0, input_shape=(D,),
        classes=[0, 1], random_state=0, device="cpu", adversary=PGD(eps=EPS, clip=None),
    ).initialize()  # fmt: skip
    crafted, y = clf.craft(x, y % 2), y % 2
    expected = F.cross_entropy(clf.module_(crafted[0]), y, reduction="none")
    assert_allclose(clf.training_loss(x, crafted, y).detach(), expected.detach(), rtol=1e-9)


def test_misalignment():
    first = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [1e-18, 0.0]])
    second = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-2.0, -2.0], [1.0, 0.0], [3e-18, 0.0]])
    first.requires_grad_(True)
    value = _misalignment(first, second)
    assert_allclose(value.detach(), [0, 1, 2, 0, 0], atol=1e-6)
    value.sum().backward()
    assert torch.isfinite(first.grad).all()


# --- training ------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["rs", "n-fgsm", "gradalign", "zerograd"])
def test_more_robust_than_natural_training(variant):
    X, y = load_digits_images(return_X_y=True)
    settings = {"module": "mlp", "max_epochs": 10, "adversary__eps": 0.1, "random_state": 0}
    clf = FastATClassifier(variant=variant, **settings).fit(X[:600], y[:600])
    natural = StandardClassifier(**settings).fit(X[:600], y[:600])
    test = X[1000:1200], y[1000:1200]
    assert clf.score_adversarial(*test) > natural.score_adversarial(*test) + 0.1
    assert clf.score(*test) > 0.75


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"variant": "fgsm"}, r"variant must be one of .*'rs'.*got 'fgsm'"),
        ({"variant": "n-fgsm", "adversary__norm": 2}, r"'n-fgsm' .*inf norm.*norm=2.*'rs'"),
        ({"variant": "zerograd", "adversary__norm": 1}, r"inf norm.*norm=1"),
        ({"alpha": -1}, "alpha must be"),
        ({"noise": np.nan}, "noise must be"),
        ({"lam": -1}, "lam must be"),
        ({"quantile": 1.0}, r"quantile must be in \[0, 1\)"),
    ],
)
def test_bad_parameters(params, message):
    X, y = np.random.default_rng(0).uniform(size=(20, 3)), np.arange(20) % 2
    with pytest.raises(ValueError, match=message):
        FastATClassifier("mlp", max_epochs=1, **params).fit(X, y)
