"""Fixed centers: where they lie, the layer that measures distances to them, and the head."""

import itertools

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn

from robustsk import MMCHead, PGDATClassifier, TRADESClassifier
from robustsk.models import MLP, MaxMahalanobisLinear, get_classifier, max_mahalanobis_centers


@pytest.mark.parametrize(
    ("n_classes", "n_features"), [(2, 1), (3, 2), (5, 4), (10, 9), (10, 64), (4, 30)]
)
@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_regular_centers(n_classes, n_features, scale):
    centers = max_mahalanobis_centers(n_classes, n_features, scale).numpy()
    assert centers.shape == (n_classes, n_features)
    gram = scale**2 * (n_classes * np.eye(n_classes) - 1) / (n_classes - 1)
    assert_allclose(centers @ centers.T, gram, atol=1e-9 * scale**2)
    assert_allclose(centers.sum(0), 0, atol=1e-9 * scale)


def test_known_centers():
    assert_allclose(
        max_mahalanobis_centers(3, 2, 1.0), [(1, 0), (-0.5, 0.8660254), (-0.5, -0.8660254)]
    )
    assert_allclose(max_mahalanobis_centers(2, 1, 1.0), [[1], [-1]])
    centers = max_mahalanobis_centers(10, 64)
    for i, j in itertools.combinations(range(10), 2):
        assert ((centers[i] - centers[j]) ** 2).sum().item() == pytest.approx(222.2222, abs=1e-4)


@pytest.mark.dealt
@pytest.mark.parametrize(
    ("n_classes", "n_features", "best"),
    [
        (3, 1, 1.0),  # two of the three must coincide
        (4, 2, 0.0),  # a square
        (5, 2, np.cos(2 * np.pi / 5)),
        (6, 3, 0.0),  # an octahedron
        (12, 3, 1 / np.sqrt(5)),  # an icosahedron
    ],
)
def test_more_classes_than_dimensions_hold(n_classes, n_features, best):
    centers = max_mahalanobis_centers(n_classes, n_features, 2.0)
    assert_allclose(centers.norm(dim=1), 2)
    inner = (centers @ centers.T).numpy() / 4
    assert inner[~np.eye(n_classes, dtype=bool)].max() == pytest.approx(best, abs=0.01)


@pytest.mark.slow
def test_finding_centers_is_deterministic_and_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    with torch.no_grad():
        first, second = max_mahalanobis_centers(5, 2), max_mahalanobis_centers(5, 2)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ((1, 3), ValueError, "n_classes must be at least 2"),
        ((3, 0), ValueError, "n_features must be at least 1"),
        ((3, 2.5), TypeError, "n_features must be a whole number"),
        ((3, 2, 0.0), ValueError, "scale must be a positive"),
        ((3, 2, np.inf), ValueError, "scale must be a positive"),
    ],
)
def test_bad_arguments(args, error, message):
    with pytest.raises(error, match=message):
        max_mahalanobis_centers(*args)


def test_layer():
    torch.manual_seed(0)
    layer = MaxMahalanobisLinear(6, 3, n_features=4, scale=2.0).double()
    x = torch.randn(5, 6, dtype=torch.float64)
    z = x.numpy() @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
    mu = max_mahalanobis_centers(3, 4, 2.0).numpy()
    expected = -((z[:, None] - mu[None]) ** 2).sum(2)
    assert_allclose(layer(x).detach(), expected, rtol=1e-5)
    # the length of z is common to all classes
    assert_allclose(
        torch.softmax(layer(x), 1).detach(),
        torch.softmax(torch.as_tensor(2 * z @ mu.T), 1),
        rtol=1e-4,
    )
    assert "n_features=4" in repr(layer)
    assert {name for name, _ in layer.named_parameters()} == {"weight", "bias"}


def test_layer_at_the_centers():
    layer = MaxMahalanobisLinear(9, 10)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(9))
        layer.bias.zero_()
    logits = layer(layer.centers)
    assert_allclose(logits.diag().detach(), 0, atol=1e-9)
    assert torch.equal(logits.argmax(1), torch.arange(10))


def test_default_dimension():
    assert MaxMahalanobisLinear(64, 10).n_features == 64
    assert MaxMahalanobisLinear(4, 10).n_features == 9


# --- the head ------------------------------------------------------------------------


def test_attach():
    network = MMCHead(scale=3.0, n_features=5).attach(MLP((4,), 3, hidden_sizes=(7,)))
    layer = get_classifier(network)[1]
    assert isinstance(layer, MaxMahalanobisLinear)
    assert (layer.in_features, layer.n_features, layer.out_features) == (7, 5, 3)
    again = MMCHead(scale=6.0, n_features=5).attach(network)
    new = get_classifier(again)[1]
    assert new.scale == 6
    assert torch.equal(new.weight, layer.weight)
    plain = MMCHead().attach(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)))
    assert isinstance(plain[-1], MaxMahalanobisLinear)
    assert get_classifier(plain)[0] == "2"


@pytest.mark.parametrize("flat", [False, True])
def test_one_number_for_two_classes(flat):
    network = nn.Sequential(nn.Linear(4, 1), *([nn.Flatten(0)] if flat else [])).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    z = network(x).reshape(5)
    logits = MMCHead(scale=2.0).attach(network)(x)
    assert_allclose(logits.detach(), torch.stack([-((z + 2) ** 2), -((z - 2) ** 2)], 1).detach())
    assert torch.equal(logits.argmax(1), (z > 0).long())  # as without the head


@pytest.mark.parametrize("cls", [PGDATClassifier, TRADESClassifier])
def test_under_other_defenses(cls):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 4)), np.arange(60) % 3
    X += 3 * np.eye(3, 4)[y]
    clf = cls(
        "mlp", head=MMCHead(scale=4.0), adversary__eps=0.1, max_epochs=15, random_state=0
    ).fit(X, y)
    assert clf.score(X, y) > 0.8
    assert (clf.decision_function(X) <= 0).all()
    clf.set_params(head__scale=2.0).fit(X, y)
    assert get_classifier(clf.module_)[1].scale == 2
