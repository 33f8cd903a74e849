"""Adversarial training of ensembles: as one, as a sum of members, member by member."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

from robustsk import PGD, EnsembleADP, EnsembleAT, EnsembleCCE, MixedATClassifier
from robustsk.losses import adp_loss


def network(width=6, n_classes=3):
    layers = nn.Linear(4, width), nn.Tanh(), nn.Linear(width, n_classes)
    return nn.Sequential(*layers).double()


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    y = np.arange(36) % 3
    return rng.normal(size=(36, 4)) + 2 * np.eye(3, 4)[y], y


def make(cls=EnsembleAT, **params):
    settings = {
        "max_epochs": 2, "batch_size": 12, "random_state": 0, "device": "cpu",
        "adversary": PGD(eps=0.2, n_steps=3, random_start="none", clip=None), "module": network,
    }  # fmt: skip
    return cls(**{**settings, **params})


def batch(data):
    return torch.as_tensor(data[0]), torch.as_tensor(data[1])


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def gradients(clf, loss):
    """Gradient with respect to the parameters of each member."""
    members = [list(m.parameters()) for m in clf.members_]
    flat = torch.autograd.grad(loss.sum(), [p for m in members for p in m], allow_unused=True)
    found, start = [], 0
    for m in members:
        found.append(flat[start : start + len(m)])
        start += len(m)
    return found


def weights(clf):
    return [p.detach().clone() for p in clf.module_.parameters()]


# --- the loss ------------------------------------------------------------------------


@pytest.mark.parametrize("clean_weight", [1.0, 0.25])
def test_losses_by_hand(data, clean_weight):
    x, y = batch(data)
    for loss in ("mean", "member_sum"):
        clf = make(loss=loss, clean_weight=clean_weight, n_members=3).fit(*data)
        x_adv = clf.craft(x, y)
        found = clf.training_loss(x, x_adv, y).detach()
        expected = 0
        for weight, source in ((clean_weight, x), (1, x_adv)):
            with torch.no_grad():
                p = np.array([softmax(m(source).numpy()) for m in clf.members_])
            own = p[:, np.arange(36), data[1]]
            if loss == "mean":
                expected = expected - weight * np.log(own.mean(axis=0))
            else:
                expected = expected - weight * np.log(own).sum(axis=0)
        assert found.shape == (36,)
        assert_allclose(found, expected, rtol=1e-10)


def test_gradient_of_the_sum_is_that_of_each_member(data):
    clf = make(n_members=3).fit(*data)
    x, y = batch(data)
    x_adv = clf.craft(x, y)
    together = gradients(clf, clf.training_loss(x, x_adv, y))
    for member, found in zip(clf.members_, together, strict=True):
        ce = nn.functional.cross_entropy
        alone = ce(member(x), y, reduction="sum") + ce(member(x_adv), y, reduction="sum")
        for g, expected in zip(found, torch.autograd.grad(alone, member.parameters()), strict=True):
            assert_allclose(g, expected, rtol=1e-10, atol=1e-14)


def test_gradient_of_the_mean_is_shared_out_by_responsibility(data):
    """Member n takes the share p_n(y) / sum of p_m(y) of the gradient of its own loss."""
    clf = make(loss="mean", clean_weight=0.0, n_members=2, max_epochs=5, lr=0.05).fit(*data)
    x, y = batch(data)
    found = gradients(clf, clf.training_loss(x, x, y))
    own = torch.stack([m(x).softmax(1)[torch.arange(36), y] for m in clf.members_]).detach()
    for member, share, grads in zip(clf.members_, own / own.sum(0), found, strict=True):
        loss = (share * nn.functional.cross_entropy(member(x), y, reduction="none")).sum()
        for g, expected in zip(grads, torch.autograd.grad(loss, member.parameters()), strict=True):
            assert_allclose(g, expected, rtol=1e-9, atol=1e-13)


def test_without_clean_weight_clean_samples_are_not_looked_at(data):
    seen = []

    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, x):
            if self.training:
                seen.append(len(x))
            return self.net(x)

    make(module=Watched, clean_weight=0, max_epochs=1).fit(*data)
    assert seen == [12] * (3 * 2)  # steps, members
    seen.clear()
    make(module=Watched, max_epochs=1).fit(*data)
    assert seen == [12] * (3 * 2 * 2)


# --- what is attacked ----------------------------------------------------------------


def test_the_ensemble_is_attacked_as_one(data):
    clf = make(n_members=3).fit(*data)
    x, y = batch(data)
    x_adv = clf.craft(x, y)
    assert torch.equal(x_adv, clf.adversary_.perturb(clf.module_, x, y))
    leaf = x.clone().requires_grad_()
    p = sum(m(leaf).softmax(1) for m in clf.members_) / 3
    (gradient,) = torch.autograd.grad(-p[torch.arange(36), y].log().sum(), leaf)
    step = make(adversary__n_steps=1, adversary__step_size=0.2, n_members=3)
    step.fit(*data)
    step.module_.load_state_dict(clf.module_.state_dict())
    assert_allclose(step.craft(x, y), x + 0.2 * gradient.sign(), atol=1e-12)


def test_members_alone_see_examples_of_their_own(data):
    clf = make(attack="members", n_members=3).fit(*data)
    x, y = batch(data)
    crafted = clf.craft(x, y)
    for member, x_adv in zip(clf.members_, crafted, strict=True):
        assert torch.equal(x_adv, clf.adversary_.perturb(member, x, y))
    found = gradients(clf, clf.training_loss(x, crafted, y))
    for member, x_adv, grads in zip(clf.members_, crafted, found, strict=True):
        ce = nn.functional.cross_entropy
        loss = ce(member(x), y, reduction="sum") + ce(member(x_adv), y, reduction="sum")
        for g, expected in zip(grads, torch.autograd.grad(loss, member.parameters()), strict=True):
            assert_allclose(g, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("n_members", [1, 3])
def test_crossing_ensemble_without_weights_trains_members_alone(data, n_members):
    modules = [network() for _ in range(n_members)]
    settings = {"module": modules, "n_members": n_members, "max_epochs": 3}
    settings["adversary"] = PGD(eps=0.2, n_steps=2)  # random starts are drawn alike
    alone = make(attack="members", **settings).fit(*data)
    crossing = make(EnsembleCCE, mode="base", **settings).fit(*data)
    for w, v in zip(weights(alone), weights(crossing), strict=True):
        assert_allclose(w, v, rtol=1e-8, atol=1e-10)


def test_a_member_alone_is_trained_as_a_network_alone(data):
    modules = [network(5), network(7)]
    settings = {"iterator_train__shuffle": False, "max_epochs": 3}
    ensemble = make(module=modules, attack="members", **settings).fit(*data)
    crossing = make(EnsembleCCE, module=modules, mode="base", **settings).fit(*data)
    for i, module in enumerate(modules):
        alone = make(MixedATClassifier, module=module, **settings).fit(*data)
        for member in (ensemble.members_[i], crossing.members_[i]):
            for w, v in zip(member.parameters(), alone.module_.parameters(), strict=True):
                assert_allclose(w.detach(), v.detach(), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("loss", ["mean", "member_sum"])
@pytest.mark.parametrize("cls", [EnsembleAT, EnsembleCCE])
def test_one_member_is_one_network(data, cls, loss):
    module = network()
    own = {"loss": loss} if cls is EnsembleAT else {}
    adversary = PGD(eps=0.2, n_steps=2)
    settings = {"adversary": adversary, "max_epochs": 3}
    one = make(cls, module=[module], n_members=1, **own, **settings).fit(*data)
    alone = make(MixedATClassifier, module=module, **settings).fit(*data)
    for w, v in zip(weights(one), weights(alone), strict=True):
        assert_allclose(w, v, rtol=1e-8, atol=1e-10)
    assert_allclose(one.predict_proba(data[0]), alone.predict_proba(data[0]), rtol=1e-8)


@pytest.mark.dealt
@pytest.mark.parametrize(
    "params",
    [{}, {"loss": "mean"}, {"attack": "members"}, {"clean_weight": 0.0}],
    ids=["sum", "mean", "members", "adversarial"],
)
def test_every_kind_learns(data, params):
    clf = make(max_epochs=15, lr=0.05, **params).fit(*data)
    assert clf.score(*data) > 0.8
    assert all(member.score(*data) > 0.6 for member in clf.estimators_)


def test_mixed_architectures_train_together(data):
    clf = make(module=["mlp", network(5), network(8)], max_epochs=15, lr=0.05).fit(*data)
    assert clf.score(*data) > 0.8


def test_bad_parameters(data):
    for params, message in [
        ({"attack": "all"}, r"attack must be one of \('ensemble', 'members'\), got 'all'"),
        ({"loss": "sum"}, r"loss must be one of \('member_sum', 'mean'\), got 'sum'"),
        ({"clean_weight": -1}, "clean_weight must be a finite number of at least 0"),
        ({"attack": "members", "loss": "mean"}, "no mean prediction: use loss='member_sum'"),
    ]:
        with pytest.raises(ValueError, match=message):
            make(**params).fit(*data)


# --- ADP -----------------------------------------------------------------------------


def test_adp_is_the_loss_on_clean_and_attacked_samples(data):
    clf = make(EnsembleADP, alpha=1.5, beta=0.25, n_members=3).fit(*data)
    x, y = batch(data)
    x_adv = clf.craft(x, y)
    assert torch.equal(x_adv, clf.adversary_.perturb(clf.module_, x, y))
    expected = 0
    for source in (x, x_adv):
        logits = torch.stack([m(source) for m in clf.members_])
        expected = expected + adp_loss(logits, y, alpha=1.5, beta=0.25).detach()
    assert_allclose(clf.training_loss(x, x_adv, y).detach(), expected, rtol=1e-12)


def test_adp_without_weights_is_the_sum_of_the_losses(data):
    modules = [network(), network()]
    plain = make(module=modules).fit(*data)
    adp = make(EnsembleADP, module=modules, alpha=0, beta=0).fit(*data)
    for w, v in zip(weights(plain), weights(adp), strict=True):
        assert_allclose(w, v, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_adp_makes_members_disagree_about_the_wrong_classes(data):
    def agreement(**params):
        clf = make(EnsembleADP, max_epochs=20, lr=0.02, **params).fit(*data)
        assert clf.score(*data) > 0.8
        wrong = np.ones((36, 3), bool)
        wrong[np.arange(36), data[1]] = False
        p = [e.predict_proba(data[0])[wrong].reshape(36, 2) for e in clf.estimators_]
        p = [q / np.linalg.norm(q, axis=1, keepdims=True) for q in p]
        return (p[0] * p[1]).sum(axis=1).mean(), clf.prediction_entropy(data[0]).mean()

    close, sure = agreement(alpha=0.0, beta=0.0)
    apart, _ = agreement(alpha=0.0, beta=0.5)
    _, unsure = agreement(alpha=2.0, beta=0.0)
    assert apart < close - 0.2
    assert unsure > 1.5 * sure


def test_adp_bad_parameters(data):
    for name in ("alpha", "beta"):
        with pytest.raises(ValueError, match=f"{name} must be a finite number of at least 0"):
            make(EnsembleADP, **{name: -0.1}).fit(*data)


def test_bad_network_count_is_told(data):
    with pytest.raises(ValueError, match="n_members must be an integer of at least 1"):
        make(n_members=0).fit(*data)
    assert_array_equal(make(n_members=np.int64(3)).fit(*data).classes_, [0, 1, 2])
