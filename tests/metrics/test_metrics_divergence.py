"""Divergence of latents, and local slopes."""

import itertools

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier
from torch import nn

from robustsk import BIM, PGD, StandardClassifier
from robustsk.attacks import NoGradientError
from robustsk.metrics import latent_divergence, local_lipschitz, relative_divergence
from robustsk.models import forward_with_features

X, Y = load_iris(return_X_y=True)
BOX = (0.0, 8.0)


def circle(degrees):
    angle = np.deg2rad(degrees)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


# --- relative divergence ---------------------------------------------------------------------

# two classes on the circle, worked out by hand from the definition
CLEAN, ADV, LABELS = circle([0, 30, 90, 120]), circle([10, 60, 80, 45]), [0, 0, 1, 1]


def test_worked_example():
    both = relative_divergence(CLEAN, ADV, LABELS)
    assert both.within == pytest.approx(0.202882, abs=1e-6)
    assert both.between == pytest.approx(0.769555, abs=1e-6)
    assert both.ratio == pytest.approx(0.263635, abs=1e-6)
    adv = relative_divergence(CLEAN, ADV, LABELS, members="adv")
    assert adv.within == pytest.approx(0.271789, abs=1e-6)
    assert adv.between == pytest.approx(0.539110, abs=1e-6)
    assert adv.ratio == pytest.approx(0.504144, abs=1e-6)


def by_loops(clean, adv, y, members, include_counterpart):
    def distance(u, v):
        return 1 - u @ v / np.linalg.norm(u) / np.linalg.norm(v)

    within, between = [], []
    for i in range(len(y)):
        own, other = [], []
        for j in range(len(y)):
            for kind, latents in (("clean", clean), ("adv", adv)):
                if members not in (kind, "both") or (j == i and kind == "clean"):
                    continue
                if j == i and not include_counterpart:
                    continue
                (own if y[j] == y[i] else other).append(distance(clean[i], latents[j]))
        within += [np.mean(own)] if own else []
        between += [np.mean(other)] if other else []
    return np.mean(within), np.mean(between)


@pytest.mark.parametrize("include_counterpart", [False, True])
@pytest.mark.parametrize("members", ["both", "adv", "clean"])
def test_by_loops(members, include_counterpart):
    rng = np.random.default_rng(0)
    # one class has a single sample: its anchor has nothing to compare with
    y = np.array(["a"] * 5 + ["b"] * 4 + ["c"])
    clean, adv = rng.normal(size=(2, 10, 6))
    result = relative_divergence(
        clean, adv, y, members=members, include_counterpart=include_counterpart
    )
    within, between = by_loops(clean, adv, y, members, include_counterpart)
    assert result.within == pytest.approx(within)
    assert result.between == pytest.approx(between)
    assert result.ratio == pytest.approx(within / between)


def test_within_batches():
    rng = np.random.default_rng(1)
    clean, adv = rng.normal(size=(2, 10, 3))
    y = np.arange(10) % 2
    result = relative_divergence(clean, adv, y, batch_size=4)
    parts = [by_loops(*(a[rows] for a in (clean, adv, y)), "both", False) for rows in
             (slice(0, 4), slice(4, 8))]  # fmt: skip
    assert result.within == pytest.approx(np.mean([p[0] for p in parts]))
    # the last two samples are one of each class, with nothing of their own class
    cosines = [clean[i] @ v / np.linalg.norm(clean[i]) / np.linalg.norm(v)
               for i, j in ((8, 9), (9, 8)) for v in (clean[j], adv[j])]  # fmt: skip
    between = (4 * parts[0][1] + 4 * parts[1][1] + 2 * (1 - np.mean(cosines))) / 10
    assert result.between == pytest.approx(between)
    whole = relative_divergence(clean, adv, y, batch_size=100)
    assert whole == relative_divergence(clean, adv, y)


def test_invariances():
    rng = np.random.default_rng(2)
    clean, adv = rng.normal(size=(2, 12, 5))
    y = np.arange(12) % 3
    first = relative_divergence(clean, adv, y)
    scale = rng.random((12, 1)) + 0.1
    scaled = relative_divergence(clean * scale, 7 * adv, y)
    assert scaled.ratio == pytest.approx(first.ratio)
    order = rng.permutation(12)
    moved = relative_divergence(clean[order], adv[order], y[order])
    assert moved.ratio == pytest.approx(first.ratio)
    images = relative_divergence(clean.reshape(12, 1, 5, 1), adv.reshape(12, 1, 5, 1), y)
    assert images == first


def test_limit_cases():
    y = [0, 0, 1, 1]
    points = circle([0, 0, 90, 90])
    assert relative_divergence(points, points, y).ratio == 0.0
    # all in one place: nothing to relate to
    axis = circle([0] * 4)
    assert np.isnan(relative_divergence(axis, axis, y).ratio)
    one = relative_divergence(points, points, [0, 0, 0, 0])
    assert np.isnan(one.between)
    assert np.isnan(one.ratio)
    # a latent of zero has no direction, and is as far from everything as what is orthogonal
    dead = relative_divergence(np.zeros((4, 2)), points, y)
    assert (dead.within, dead.between, dead.ratio) == (1.0, 1.0, 1.0)


def test_divergence_bad_input():
    with pytest.raises(ValueError, match="members must be one of"):
        relative_divergence(CLEAN, ADV, LABELS, members="all")
    with pytest.raises(ValueError, match="needs latents_adv"):
        relative_divergence(CLEAN, None, LABELS)
    with pytest.raises(ValueError, match="must have one shape"):
        relative_divergence(CLEAN, ADV[:3], LABELS)
    with pytest.raises(ValueError, match="inconsistent numbers"):
        relative_divergence(CLEAN, ADV, LABELS[1:])
    with pytest.raises(ValueError, match="batch_size"):
        relative_divergence(CLEAN, ADV, LABELS, batch_size=0)


# --- of a model ------------------------------------------------------------------------------


def mlp_of(*sizes):
    return MLPClassifier(sizes, max_iter=500, solver="lbfgs", alpha=0.1, random_state=0)


@pytest.fixture(scope="module")
def mlp():
    return mlp_of(7, 5).fit(X, Y)


def hidden(mlp, values, depth):
    for W, b in list(zip(mlp.coefs_, mlp.intercepts_, strict=True))[:depth]:
        values = np.maximum(values @ W + b, 0)
    return values


ATTACK = BIM(eps=0.3, clip=BOX)


def test_hidden_layer_of_an_mlp(mlp):
    X_adv = BIM(mlp, eps=0.3, clip=BOX).generate(X, Y)
    for layer, depth in ((None, 2), ("3", 2), ("1", 1)):
        result = latent_divergence(mlp, X, Y, ATTACK, layer=layer)
        by_hand = relative_divergence(hidden(mlp, X, depth), hidden(mlp, X_adv, depth), Y)
        assert result.ratio == pytest.approx(by_hand.ratio, rel=1e-9)
    clean = latent_divergence(mlp, X, Y, ATTACK, members="clean", include_counterpart=True)
    z = hidden(mlp, X, 2)
    assert clean.ratio == pytest.approx(relative_divergence(z, None, Y, members="clean").ratio)
    batches = latent_divergence(mlp, X, Y, ATTACK, batch_size=50)
    assert batches != latent_divergence(mlp, X, Y, ATTACK)


def test_no_attack_no_divergence_from_the_clean(mlp):
    result = latent_divergence(mlp, X, Y, BIM(eps=0.0, clip=BOX), members="adv")
    z = hidden(mlp, X, 2)
    assert result.ratio == pytest.approx(relative_divergence(z, None, Y, members="clean").ratio)


def test_networks_of_this_package():
    clf = StandardClassifier(max_epochs=10, random_state=0, device="cpu").fit(X, Y)
    X_adv = BIM(clf, eps=0.3, clip=BOX).generate(X, Y)
    result = latent_divergence(clf, X, Y, ATTACK)
    with torch.no_grad():
        clf.module_.eval()
        latents = [forward_with_features(clf.module_, torch.tensor(v))[1] for v in (X, X_adv)]
    by_hand = relative_divergence(*[z.numpy() for z in latents], Y)
    assert result.ratio == pytest.approx(by_hand.ratio, rel=1e-6)
    pipeline = make_pipeline(StandardScaler(), mlp_of(20)).fit(X, Y)
    z = hidden(pipeline[-1], pipeline[0].transform(X), 1)
    result = latent_divergence(pipeline, X, Y, BIM(eps=0.0), members="clean")
    assert result.ratio == pytest.approx(relative_divergence(z, None, Y, members="clean").ratio)


def test_images_and_named_layers():
    torch.manual_seed(0)
    net = nn.Sequential()
    net.add_module("body", nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten()))
    net.add_module("head", nn.Linear(72, 3))
    images = np.random.default_rng(0).random((10, 1, 8, 8), dtype=np.float32)
    y = np.arange(10) % 3
    net.train()
    by_default = latent_divergence(net, images, y, BIM(eps=0.05, clip=(0, 1)))
    assert latent_divergence(net, images, y, BIM(eps=0.05, clip=(0, 1)), layer="body") == by_default
    conv = latent_divergence(net, images, y, BIM(eps=0.05, clip=(0, 1)), layer="body.0")
    assert conv != by_default
    assert net.training
    assert not net.head._forward_pre_hooks
    assert not net.body._forward_hooks
    with pytest.raises(ValueError, match=r"no layer 'tail'.*'body\.0'"):
        latent_divergence(net, images, y, BIM(), layer="tail")


def test_model_bad_input(mlp):
    with pytest.raises(NoGradientError, match="latent_divergence"):
        latent_divergence(DecisionTreeClassifier().fit(X, Y), X, Y, ATTACK)
    with pytest.raises(ValueError, match="members must be one of"):
        latent_divergence(mlp, X, Y, ATTACK, members="none")
    with pytest.raises(TypeError, match="attack must be"):
        latent_divergence(mlp, X, Y, PGD)
    with pytest.raises(ValueError, match="not been trained on"):
        latent_divergence(mlp, X, Y + 1, ATTACK)


# --- slopes ----------------------------------------------------------------------------------


def linear(n_features, n_classes, seed, dtype=torch.float64):
    torch.manual_seed(seed)
    return nn.Linear(n_features, n_classes).to(dtype)


@pytest.mark.parametrize("seed", range(5))
def test_slope_of_a_linear_map(seed):
    """The largest ||W d||_1 over the corners of the cube, found by trying all of them."""
    model = linear(6, 4, seed)
    W = model.weight.detach().numpy()
    exact = max(np.abs(W @ corner).sum() for corner in itertools.product((-1, 1), repeat=6))
    points = np.random.default_rng(seed).normal(size=(8, 6))
    slopes = local_lipschitz(model, points, eps=0.1, clip=None, n_restarts=4)
    assert slopes.shape == (8,)
    assert (slopes <= exact * (1 + 1e-9)).all()
    assert slopes.max() >= 0.99 * exact
    assert slopes.mean() >= 0.95 * exact


def test_slope_in_the_euclidean_norm():
    model = linear(5, 2, 0)
    W = model.weight.detach().numpy()
    # ||W d||_1 is the largest s^T W d over signs s
    exact = max(np.linalg.norm(np.array(s) @ W) for s in itertools.product((-1, 1), repeat=2))
    slopes = local_lipschitz(model, np.zeros((4, 5)), eps=0.5, norm=2, clip=None, n_restarts=3)
    assert (slopes <= exact * (1 + 1e-9)).all()
    assert slopes.max() == pytest.approx(exact, rel=1e-2)


def test_slope_in_the_1_norm():
    model = linear(5, 3, 1)
    W = model.weight.detach().numpy()
    exact = np.abs(W).sum(axis=0).max()
    slopes = local_lipschitz(model, np.zeros((4, 5)), eps=0.5, norm=1, clip=None, n_steps=50)
    assert (slopes <= exact * (1 + 1e-9)).all()
    assert slopes.max() >= 0.9 * exact


class Curve(nn.Module):
    """Two logits that differ by tanh of one feature."""

    def forward(self, x):
        return torch.stack([torch.tanh(4 * x[:, 0]), 0.0 * x[:, 0]], dim=1)


@pytest.mark.parametrize("output", ["logits", "proba"])
def test_slope_of_a_curve_on_a_grid(output):
    points = np.array([[-0.6], [-0.3], [0.0], [0.2], [1.0]])
    eps = 0.25
    found = local_lipschitz(
        Curve(), points, eps=eps, clip=None, output=output, n_steps=40, n_restarts=3
    )

    def value(x):
        z = np.stack([np.tanh(4 * x), 0 * x], axis=-1)
        return z if output == "logits" else np.exp(z) / np.exp(z).sum(-1, keepdims=True)

    grid = np.linspace(-eps, eps, 20001)
    grid = grid[np.abs(grid) > 1e-6]
    for x, slope in zip(points[:, 0], found, strict=True):
        exact = (np.abs(value(x + grid) - value(np.array(x))).sum(-1) / np.abs(grid)).max()
        assert slope <= exact * (1 + 1e-6)
        assert slope >= 0.98 * exact


def test_slope_respects_the_valid_range():
    """A ramp that begins beyond the range is never seen."""

    class Ramp(nn.Module):
        def forward(self, x):
            z = 100 * torch.relu(x[:, 0] - 1.0)
            return torch.stack([z, 0.1 * x[:, 0]], dim=1)

    points = np.array([[0.9], [0.5]])
    settings = {"eps": 0.3, "n_restarts": 3}
    inside = local_lipschitz(Ramp(), points, clip=(0, 1), **settings)
    assert inside == pytest.approx([0.1, 0.1], rel=1e-5)
    outside = local_lipschitz(Ramp(), points, clip=None, **settings)
    assert outside[0] > 10
    assert outside[1] == pytest.approx(0.1, rel=1e-5)
    # the range of the data where nothing else is known
    assert local_lipschitz(Ramp(), points, **settings) == pytest.approx([0.1, 0.1], rel=1e-5)


def test_slope_of_nothing_is_zero():
    class Flat(nn.Module):
        def forward(self, x):
            return torch.stack([2.0 + 0.0 * x[:, 0], 0.0 * x[:, 0]], dim=1)

    assert local_lipschitz(Flat(), X[:3], eps=0.1).tolist() == [0.0, 0.0, 0.0]


def test_slopes_do_not_depend_on_the_batch():
    clf = LogisticRegression(max_iter=1000).fit(X, Y)
    whole = local_lipschitz(clf, X, eps=0.1, clip=BOX)
    parts = local_lipschitz(clf, X, eps=0.1, clip=BOX, batch_size=7)
    np.testing.assert_allclose(whole, parts, rtol=1e-9)
    assert local_lipschitz(clf, X, eps=0.1, clip=BOX, random_state=1).tolist() != whole.tolist()
    more = local_lipschitz(clf, X, eps=0.1, clip=BOX, n_restarts=3)
    assert (more >= whole - 1e-12).all()
    # a steeper model is steeper
    steep = LogisticRegression(C=100, max_iter=5000).fit(X, Y)
    assert local_lipschitz(steep, X, eps=0.1, clip=BOX).mean() > whole.mean()


def test_slopes_bad_input():
    clf = LogisticRegression(max_iter=1000).fit(X, Y)
    with pytest.raises(ValueError, match="output must be"):
        local_lipschitz(clf, X, eps=0.1, output="labels")
    with pytest.raises(ValueError, match="eps must be positive"):
        local_lipschitz(clf, X, eps=0.0)
    with pytest.raises(ValueError, match="n_steps"):
        local_lipschitz(clf, X, eps=0.1, n_steps=0)
    with pytest.raises(ValueError, match="norm=3"):
        local_lipschitz(clf, X, eps=0.1, norm=3)
    with pytest.raises(NoGradientError, match="local_lipschitz"):
        local_lipschitz(DecisionTreeClassifier().fit(X, Y), X, eps=0.1)
