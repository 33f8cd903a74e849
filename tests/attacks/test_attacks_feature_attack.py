"""The feature attack: its features, its guides, its steps, and what it leaves alone."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn
from torch.nn import functional as F

from robustsk.attacks import FeatureAttack, as_victim
from robustsk.attacks.gradient.feature_attack import forward_with_directions

pytestmark = pytest.mark.usefixtures("seeded")


def directions_by_hand(net, x):
    return F.normalize(net[:-1](x).flatten(1))


def directions(model, x):
    with as_victim(model).frozen() as seen, torch.no_grad():
        return forward_with_directions(seen, x)


def test_features_are_what_enters_the_last_layer(table, images):
    for net, X in ((table.net, table.X[:6]), (images.net, images.X[:6])):
        x = torch.tensor(X)
        logits, found = directions(net, x)
        with torch.no_grad():
            assert_allclose(found, directions_by_hand(net, x), rtol=1e-5, atol=1e-7)
            assert_allclose(logits, net(x), rtol=1e-5, atol=1e-5)


def test_products_of_an_ensemble_are_mean_cosines(table):
    other = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    x = torch.tensor(table.X[:5])
    found = directions([table.net, other], x)[1]
    with torch.no_grad():
        parts = [directions_by_hand(net, x) for net in (table.net, other)]
    assert_allclose(found @ found.T, sum(p @ p.T for p in parts) / 2, atol=1e-12)


def test_without_a_linear_layer_logits_are_the_features():
    net = nn.Sequential(nn.Conv2d(1, 3, 4), nn.Flatten())
    x = torch.rand(5, 1, 4, 4)
    logits, found = directions(net, x)
    assert_allclose(found, F.normalize(logits), atol=1e-6)


def test_one_step_towards_the_most_similar_sample_of_another_class(table):
    x, y = torch.tensor(table.X[:25]), torch.tensor(table.y[:25])
    attack = FeatureAttack(n_steps=1, step_size=0.1, random_start="none", eps=0.3, clip=None)
    found = attack.perturb(table.net, x, y)
    own = directions_by_hand(table.net, x).detach()
    for i in range(25):
        cosines = [float(own[i] @ own[j]) if y[j] != y[i] else -2 for j in range(25)]
        z = x[i : i + 1].clone().requires_grad_(True)
        (directions_by_hand(table.net, z) @ own[int(np.argmax(cosines))]).sum().backward()
        assert_allclose(found[i], x[i] + 0.1 * z.grad[0].sign(), atol=1e-12)


def test_features_of_the_guide_are_reached_where_nothing_is_in_the_way(table):
    x, y = torch.tensor(table.X[:20]), torch.tensor(table.y[:20])
    guide = table.X[[int(np.flatnonzero(table.y != table.y[0])[0])]]
    attack = FeatureAttack(
        guides=guide, n_steps=300, eps=100.0, step_size=0.01, random_start="none", clip=None
    )
    with torch.no_grad():
        label = table.net(torch.tensor(guide)).argmax(1)
        aim = directions_by_hand(table.net, torch.tensor(guide))
        rows = y != label
        z = attack.perturb(table.net, x[rows], y[rows], seed=0)
        assert rows.sum() > 5
        assert (directions_by_hand(table.net, x[rows]) @ aim.T).min() < 0.5
        assert (directions_by_hand(table.net, z) @ aim.T).min() > 0.97
        assert_array_equal(table.net(z).argmax(1), label.expand(len(z)))


def test_given_guides_make_samples_independent(table):
    X, y = table.X[:12], table.y[:12]
    attack = FeatureAttack(
        table.net, guides=table.X[50:], eps=0.4, n_steps=5, n_guides=2, clip=None, random_state=0
    )
    whole = attack.generate(X, y)
    assert_allclose(attack._with(batch_size=1).generate(X, y), whole, atol=1e-9)


def test_more_guides_never_fool_less(table):
    X, y = table.X[:60], table.y[:60]
    kept = np.zeros(60, dtype=bool)
    for n_guides in (1, 3, 10):
        attack = FeatureAttack(
            table.net, eps=0.4, n_steps=5, n_guides=n_guides, clip=None, random_state=0
        )
        with torch.no_grad():
            fooled = table.net(torch.tensor(attack.generate(X, y))).argmax(1).numpy() != y
        assert np.all(fooled >= kept)
        kept = fooled
    with torch.no_grad():
        clean = table.net(torch.tensor(X)).argmax(1).numpy() != y
    assert kept.mean() > clean.mean() + 0.2


def test_who_has_no_guide_stays_and_is_counted(table):
    X, y = table.X[:4], np.zeros(4, dtype=int)
    attack = FeatureAttack(table.net, eps=0.4, clip=None)
    with pytest.warns(UserWarning, match="no guide of another class for 4 of 4 samples"):
        assert_array_equal(attack.generate(X, y), X)


class Unused(nn.Module):
    """Has a linear layer that it does not call."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x):
        return x @ self.layer.weight.T


def test_layers_that_are_not_called(table):
    X = table.X[:4].astype(np.float32)
    with pytest.raises(RuntimeError, match="did not call its last linear layer"):
        FeatureAttack(Unused(), clip=None).generate(X, table.y[:4])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"target": 1}, "FeatureAttack cannot aim at a label"),
        ({"compile": True}, "leave compile=False"),
        ({"n_guides": 0}, "n_guides must be an integer of at least 1, got 0"),
        ({"guides": np.zeros((3, 4))}, r"guides has shape \(3, 4\).*\(6,\)"),
        ({"guides": np.full((3, 6), np.nan)}, "guides contains NaN or infinity"),
        ({"step_size": -1.0}, "step_size must be a finite number of at least 0"),
        ({"random_start": "far"}, "random_start must be one of"),
    ],
)
def test_bad_parameters(parameters, message, table):
    with pytest.raises(ValueError, match=message):
        FeatureAttack(table.net, clip=None, **parameters).generate(table.X[:9], table.y[:9])
