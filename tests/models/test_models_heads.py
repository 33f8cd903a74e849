"""Hypersphere embedding: what the network returns and what the loss sees."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn
from torch.nn import functional as F

from robustsk import PGD, EnsembleCCE, HypersphereHead, PGDATClassifier, TRADESClassifier
from robustsk.defenses import BaseDefense
from robustsk.models import MLP, CosineLinear, Head, get_classifier

RNG = np.random.default_rng(0)
Z, W = RNG.normal(size=(6, 5)), RNG.normal(size=(4, 5))
Y = np.array([0, 1, 2, 3, 0, 1])


def network(seed=0):
    torch.manual_seed(seed)
    return MLP((3,), 4, hidden_sizes=(5,)).double()


def log_softmax(a):
    a = a - a.max(1, keepdims=True)
    return a - np.log(np.exp(a).sum(1, keepdims=True))


def attached(**params):
    layer = HypersphereHead(**params).attach(nn.Sequential(nn.Linear(5, 4)).double())[0]
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(W))
    return layer


# --- the layer -----------------------------------------------------------------------


@pytest.mark.parametrize("feature_norm", [True, False])
@pytest.mark.parametrize("weight_norm", [True, False])
def test_the_four_switches(feature_norm, weight_norm):
    layer = attached(s=7.0, feature_norm=feature_norm, weight_norm=weight_norm)
    z = Z / np.linalg.norm(Z, axis=1, keepdims=True) if feature_norm else Z
    w = W / np.linalg.norm(W, axis=1, keepdims=True) if weight_norm else W
    assert_allclose(layer(torch.from_numpy(Z)).detach(), 7 * z @ w.T, rtol=1e-12)
    assert [n for n, _ in layer.named_parameters()] == ["weight"]  # no bias


def test_lengths_do_not_matter():
    layer = attached(s=3.0)
    before = layer(torch.from_numpy(Z))
    assert before.abs().max() <= 3
    with torch.no_grad():
        layer.weight.mul_(torch.tensor([[0.1], [2.0], [30.0], [4.0]]))
    assert_allclose(layer(torch.from_numpy(5 * Z)).detach(), before.detach(), rtol=1e-12)


def test_gradient_is_orthogonal_to_the_representation():
    layer, z = attached(s=3.0), torch.from_numpy(Z).requires_grad_()
    F.cross_entropy(layer(z), torch.from_numpy(Y)).backward()
    assert z.grad.abs().max() > 1e-3
    assert_allclose((z.grad * z).sum(1).detach(), 0, atol=1e-12)


# --- the loss ------------------------------------------------------------------------


def test_margin():
    s, m = 6.0, 0.25
    cos = RNG.uniform(-1, 1, (6, 4))
    expected = s * cos
    expected[np.arange(6), Y] -= s * m
    seen = HypersphereHead(s=s, m=m).penalise(torch.from_numpy(s * cos), torch.from_numpy(Y))
    assert_allclose(seen, expected, rtol=1e-12)


def test_no_margin_and_unit_scale_is_cross_entropy_on_cosines():
    head = HypersphereHead(s=1.0, m=0.0)
    z = Z / np.linalg.norm(Z, axis=1, keepdims=True)
    w = W / np.linalg.norm(W, axis=1, keepdims=True)
    expected = -log_softmax(z @ w.T)[np.arange(6), Y]
    logits = head.penalise(attached(s=1.0, m=0.0)(torch.from_numpy(Z)), torch.from_numpy(Y))
    found = F.cross_entropy(logits, torch.from_numpy(Y), reduction="none")
    assert_allclose(found.detach(), expected, rtol=1e-12)


class Losses(TRADESClassifier):
    """Keep what training computed."""

    def training_loss(self, x, x_adv, y):
        loss = super().training_loss(x, x_adv, y)
        self.module_.eval()
        with torch.no_grad():
            kept = self.module_(x).numpy(), self.module_(x_adv).numpy(), y.numpy()
        self.module_.train()
        type(self).seen = (*kept, loss.detach().numpy())
        return loss


def test_trades_has_the_margin_in_the_natural_term_only():
    X = RNG.normal(size=(8, 3))
    y = np.arange(8) % 4
    clf = Losses(
        network(), head=HypersphereHead(s=5.0, m=0.3), beta=2.0, batch_size=-1, max_epochs=1,
        adversary=PGD(eps=0.2, random_start="gaussian"), random_state=0, device="cpu",
    ).fit(X, y)  # fmt: skip
    clean, adv, labels, loss = clf.seen
    shifted = clean.copy()
    shifted[np.arange(8), labels] -= 5.0 * 0.3
    log_p, log_q = log_softmax(clean), log_softmax(adv)
    expected = -log_softmax(shifted)[np.arange(8), labels]
    expected += 2.0 * (np.exp(log_p) * (log_p - log_q)).sum(1)
    assert_allclose(loss, expected, rtol=1e-9)


def test_margin_is_not_there_in_evaluation():
    X, y = RNG.normal(size=(20, 3)), np.arange(20) % 4
    both = []
    for m in (0.0, 0.9):
        # a learning rate of zero leaves the weights
        clf = PGDATClassifier(
            network(), head=HypersphereHead(s=5.0, m=m), lr=0.0, max_epochs=1, random_state=0
        ).fit(X, y)
        both.append(clf)
    assert_allclose(both[0].decision_function(X), both[1].decision_function(X))
    losses = [clf.history[0, "train_loss"] for clf in both]
    assert losses[1] > losses[0] + 1
    assert np.abs(both[1].decision_function(X)).max() <= 5


# --- on a network --------------------------------------------------------------------


def test_attach_keeps_the_weights_of_a_cosine_layer():
    module = HypersphereHead(s=3.0).attach(network())
    weight = get_classifier(module)[1].weight.detach().clone()
    again = HypersphereHead(s=9.0, feature_norm=False).attach(module)
    layer = get_classifier(again)[1]
    assert layer.scale == 9
    assert not layer.feature_norm
    assert torch.equal(layer.weight, weight)


def test_every_member_of_an_ensemble_gets_one():
    X, y = RNG.normal(size=(20, 3)), np.arange(20) % 4
    clf = EnsembleCCE(head=HypersphereHead(s=4.0), max_epochs=1, random_state=0).fit(X, y)
    assert [get_classifier(m)[1].scale for m in clf.members_] == [4.0, 4.0]


def test_parameters_can_be_searched():
    clf = PGDATClassifier(head=HypersphereHead(), head__s=4.0)
    assert clf.get_params()["head__m"] == 0.2
    clf.set_params(head__m=0.1)
    X, y = RNG.normal(size=(20, 3)), np.arange(20) % 4
    clf.set_params(max_epochs=1, random_state=0).fit(X, y)
    assert isinstance(get_classifier(clf.module_)[1], CosineLinear)
    assert (clf.head_.s, clf.head_.m) == (4.0, 0.1)
    clf.set_params(head=None)
    assert "head__s" not in clf.get_params()


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"head": HypersphereHead(m=-1.0)}, "m must be a finite number"),
        ({"head": HypersphereHead(s=0.0)}, "scale must be a positive"),
        ({"head__s": 2.0}, "head is None and has no parameters"),
    ],
)
def test_bad_heads(params, message):
    with pytest.raises(ValueError, match=message):
        PGDATClassifier(**params).fit(RNG.normal(size=(20, 3)), np.arange(20) % 4)


def test_a_head_must_say_how_it_is_attached():
    with pytest.raises(NotImplementedError, match="must define attach"):
        Head().attach(network())
    assert issubclass(PGDATClassifier, BaseDefense)


@pytest.mark.parametrize(
    "params",
    [
        {"head": "cosine"},
        {"head": HypersphereHead},
        {"weight_perturbation": 0.01},
        {"weight_perturbation": PGD},
        {"augmentation": "flip"},
    ],
)
def test_what_is_no_such_object(params):
    (name,) = params
    with pytest.raises(TypeError, match=f"{name} must be an? .* or None, got"):
        PGDATClassifier(**params).fit(RNG.normal(size=(20, 3)), np.arange(20) % 4)
