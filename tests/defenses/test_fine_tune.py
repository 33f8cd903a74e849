"""Standard training, then clean and adversarial examples 1:1."""

import pickle

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.datasets import make_blobs
from skorch.callbacks import Callback
from skorch.dataset import ValidSplit
from torch import nn

from robustsk import (
    DRA,
    PGD,
    AdversarialFineTuneClassifier,
    StandardClassifier,
)
from robustsk.datasets import load_digits_images
from robustsk.training import AWP, LearningRateSchedule, RobustEarlyStopping, WeightAveraging


@pytest.fixture
def data():
    return make_blobs(48, 4, centers=3, cluster_std=0.6, center_box=(-2, 2), random_state=3)


def network():
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def make(**params):
    defaults = {
        "module": network, "standard_epochs": 3, "max_epochs": 6, "batch_size": 16, "lr": 0.02,
        "standard_lr": 0.05, "adversary__eps": 0.2, "random_state": 0, "device": "cpu",
    }  # fmt: skip
    return AdversarialFineTuneClassifier(**{**defaults, **params})


def state(clf):
    return {k: v.clone() for k, v in clf.module_.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[k], b[k]) for k in a)


class Attacks(DRA):
    """Count the batches and note radii."""

    seen: list = []

    def perturb(self, model, x, *args, **kwargs):
        self.seen.append((float(self.eps), len(x)))
        return super().perturb(model, x, *args, **kwargs)


@pytest.fixture
def counting():
    Attacks.seen.clear()
    return Attacks(eps=0.2, eps_unit="mean")


class Begin(Callback):
    """Note the weights with which fine-tuning begins."""

    def __init__(self, seen):
        self.seen = seen

    def on_train_begin(self, net, **kwargs):
        self.seen.append(state(net))


# --- schedule ------------------------------------------------------------------------


def test_radius_of_the_source():
    """2 in the first, 0.5 in the 50th of 60 epochs, and none in the last ten."""
    clf = AdversarialFineTuneClassifier(max_epochs=60, eps_start=2.0, eps_end=0.5)
    radii = [clf.eps_at(e) for e in range(60)]
    assert radii[0] == 2
    assert radii[49] == 0.5
    assert radii[50:] == [0] * 10
    assert_allclose(np.diff(radii[:50]), -1.5 / 49)


def test_radius_follows_the_adversary():
    clf = AdversarialFineTuneClassifier(max_epochs=4, decay_epochs=3, adversary__eps=0.8)
    assert_allclose([clf.eps_at(e) for e in range(4)], [0.8, 0.5, 0.2, 0])
    assert clf.set_params(decay_epochs=1).eps_at(0) == 0.8
    assert clf.set_params(decay_epochs=0).eps_at(0) == 0
    assert AdversarialFineTuneClassifier().eps_at(0) == 2 / 255
    assert AdversarialFineTuneClassifier(adversary=DRA(eps_unit="mean")).eps_at(0) == 1 / 255


@pytest.mark.parametrize("update", ["alternate", "joint"])
def test_as_many_adversarial_as_clean_samples_and_none_at_the_end(counting, data, update):
    clf = make(adversary=counting, eps_start=0.3, eps_end=0.1, decay_epochs=4, update=update)
    clf.set_params(max_epochs=6).fit(*data)
    assert_allclose(clf.history_[:, "eps"], [0.3, 0.3 - 0.2 / 3, 0.1 + 0.2 / 3, 0.1, 0, 0])
    radii, sizes = np.transpose(Attacks.seen)
    assert_allclose(radii, np.repeat(clf.history_[:4, "eps"], 3))
    assert sizes.sum() == 4 * 48
    assert clf.adversary_.eps == 0.2
    assert len(clf.standard_history_) == 3
    clf.partial_fit(*data)
    assert len(Attacks.seen) == 12  # all that follows is clean


def test_default_radius_of_pgd(data):
    clf = make(adversary=PGD(n_steps=2), max_epochs=1, adversary__eps=None)
    assert clf.fit(*data).history_[0, "eps"] == pytest.approx(8 / 255)


# --- where it begins -----------------------------------------------------------------


def test_begins_bit_exactly_where_standard_training_ended(data):
    seen = []
    clf = make(callbacks=[Begin(seen)]).fit(*data)
    assert same(clf.standard_state_, seen[0])
    assert not same(clf.standard_state_, state(clf))
    assert all(p.requires_grad for p in clf.module_.parameters())
    none = make(max_epochs=0).fit(*data)
    assert same(none.standard_state_, state(none))
    assert same(none.standard_state_, clf.standard_state_)
    assert clf.optimizer_.param_groups[0]["lr"] == 0.02


def test_standard_phase_is_standard_training(data):
    clf = make(max_epochs=0, standard_epochs=25, class_weight="balanced").fit(*data)
    assert clf.score(*data) > 0.9
    losses = clf.standard_history_[:, "train_loss"]
    assert losses[-1] < losses[0] / 2
    twin = StandardClassifier(
        network, max_epochs=25, lr=0.05, batch_size=16, random_state=0, device="cpu"
    ).fit(*data)  # fmt: skip
    assert losses[-1] == pytest.approx(twin.history_[-1, "train_loss"], rel=0.5)


def test_a_network_that_has_been_trained_already(data):
    first = StandardClassifier(
        network, max_epochs=20, lr=0.05, random_state=0, device="cpu"
    ).fit(*data)  # fmt: skip
    clf = make(module=first.module_, standard_epochs=0, max_epochs=0).fit(*data)
    assert same(state(clf), state(first))
    assert clf.standard_history_ is None
    tuned = make(module=first.module_, standard_epochs=0).fit(*data)
    assert same(tuned.standard_state_, state(first))
    assert not same(state(tuned), state(first))


@pytest.mark.parametrize("labels", [np.array(["a", "b", "c"]), np.array([7, -1, 3])])
def test_labels_of_any_kind_and_weights(data, labels):
    X, y = data
    clf = make(standard_epochs=10, max_epochs=3, class_weight="balanced")
    clf.fit(X, labels[y], sample_weight=np.arange(48) % 3)
    assert set(clf.classes_) == set(labels)
    assert clf.score(X, labels[y]) > 0.8


# --- updates -------------------------------------------------------------------------


def test_without_radius_the_joint_update_is_clean_training_on_twice_the_loss(data):
    """By hand, from the standard weights, with plain gradient descent on the whole set."""
    common = {"optimizer": torch.optim.SGD, "batch_size": -1, "lr": 0.1, "standard_lr": 0.5}
    clf = make(
        update="joint", eps_start=0.0, eps_end=0.0, max_epochs=5, decay_epochs=5, **common
    ).fit(*data)  # fmt: skip
    net = network()
    net.load_state_dict(clf.standard_state_)
    x, y = torch.tensor(data[0]), torch.tensor(data[1])
    for epoch in range(5):
        loss = 2 * nn.functional.cross_entropy(net(x), y)
        assert clf.history_[epoch, "train_loss"] == pytest.approx(float(loss.detach()), rel=1e-9)
        net.zero_grad()
        loss.backward()
        with torch.no_grad():
            for p in net.parameters():
                p -= 0.1 * p.grad
    for p, q in zip(net.parameters(), clf.module_.parameters(), strict=True):
        assert_allclose(p.detach(), q.detach(), atol=1e-10)


@pytest.mark.parametrize("update", ["alternate", "joint"])
def test_one_batch_by_hand(data, update):
    common = {"optimizer": torch.optim.SGD, "batch_size": -1, "lr": 0.1, "standard_lr": 0.5}
    attack = DRA(eps=0.3, eps_unit="mean", n_steps=1, proportion=1, clip=None)
    clf = make(update=update, max_epochs=1, lam=0.7, adversary=attack,
               adversary__eps=0.3, iterator_train__shuffle=False, **common).fit(*data)  # fmt: skip
    net = network()
    net.load_state_dict(clf.standard_state_)
    x, y = torch.tensor(data[0]), torch.tensor(data[1])

    def descend(loss):
        net.zero_grad()
        loss.backward()
        with torch.no_grad():
            for p in net.parameters():
                p -= 0.1 * p.grad
        return float(loss.detach())

    def attacked():
        z = x.clone().requires_grad_(True)
        g = torch.autograd.grad(nn.functional.cross_entropy(net(z), y, reduction="sum"), z)[0]
        return x + 0.3 * 4 * g / g.abs().sum(1, keepdim=True)

    ce = nn.functional.cross_entropy
    if update == "joint":
        total = descend(0.7 * ce(net(x), y) + ce(net(attacked()), y))
    else:
        total = descend(0.7 * ce(net(x), y))
        total += descend(ce(net(attacked()), y))
    assert clf.history_[0, "train_loss"] == pytest.approx(total, rel=1e-9)
    for p, q in zip(net.parameters(), clf.module_.parameters(), strict=True):
        assert_allclose(p.detach(), q.detach(), atol=1e-10)


def test_clean_epochs_are_clean_training(data):
    clf = make(decay_epochs=0, lam=0.0, max_epochs=20).fit(*data)
    assert clf.history_[-1, "train_loss"] < clf.history_[0, "train_loss"]


# --- constraint ----------------------------------------------------------------------


def test_dual_weight_follows_its_rule(data):
    clf = make(constraint="dual", rho=2.0, slack=0.01, lam=0.5, standard_epochs=10).fit(*data)
    net = network()
    net.load_state_dict(clf.standard_state_)
    x, y = torch.tensor(data[0]), torch.tensor(data[1])
    with torch.no_grad():
        margin = float(nn.functional.cross_entropy(net(x), y))
    assert clf.standard_loss_ == pytest.approx(margin, rel=1e-6)
    lam = 0.5
    for loss, recorded in zip(clf.history_[:, "clean_loss"], clf.history_[:, "lam"], strict=True):
        assert recorded == pytest.approx(lam)
        lam = max(0.0, lam + 2.0 * (loss - margin - 0.01))
    assert clf.lam_ == pytest.approx(lam)
    final = clf.history_[-1, "clean_loss"]
    p = clf.predict_proba(data[0])[np.arange(48), data[1]]
    assert final == pytest.approx(-np.log(p).mean(), rel=1e-6)
    assert make(constraint=None).fit(*data).standard_loss_ is None


@pytest.mark.slow
def test_constraint_keeps_the_clean_loss(data):
    """A strong adversary costs clean accuracy; the constraint buys it back."""
    common = {
        "standard_epochs": 40, "max_epochs": 30, "decay_epochs": 30, "eps_start": 1.5,
        "eps_end": 1.5, "lam": 0.0, "update": "joint",
    }  # fmt: skip
    free = make(rho=0.0, constraint="dual", **common).fit(*data)
    bound = make(rho=5.0, slack=0.02, constraint="dual", **common).fit(*data)
    excess = [clf.history_[-1, "clean_loss"] - clf.standard_loss_ for clf in (free, bound)]
    assert excess[1] < excess[0] / 2
    assert bound.lam_ > 0


# --- composition ---------------------------------------------------------------------


def test_goes_with_everything_else(data):
    clf = make(
        callbacks=[
            LearningRateSchedule("piecewise", milestones=(2 / 3,)), WeightAveraging(decay=0.9),
            RobustEarlyStopping(),
        ],
        standard_callbacks=[LearningRateSchedule("cyclic")], weight_perturbation=AWP(gamma=0.01),
        train_split=ValidSplit(4, stratified=True), standard_epochs=15,
    ).fit(*data)  # fmt: skip
    assert_allclose(clf.history_[:, "lr"], [0.02] * 4 + [0.002] * 2)
    assert clf.standard_history_[-1, "lr"] < 0.05
    assert clf.score(*data) > 0.8
    again = pickle.loads(pickle.dumps(clf))
    assert same(again.standard_state_, clf.standard_state_)
    assert_array_equal(again.predict_proba(data[0]), clf.predict_proba(data[0]))
    assert np.isfinite(again.partial_fit(*data).predict_proba(data[0])).all()


def test_interrupts(data):
    class Stop(Callback):
        def on_batch_end(self, net, training=False, **kwargs):
            if training and len(net.history) == 2:
                raise KeyboardInterrupt

    class StopBetween(Callback):
        def on_epoch_end(self, net, **kwargs):
            raise KeyboardInterrupt

    clf = make(standard_callbacks=[Stop()]).fit(*data)
    assert len(clf.history_) == 0
    assert same(clf.standard_state_, state(clf))
    assert clf.predict(data[0]).shape == (48,)
    clf = make(standard_callbacks=[StopBetween()]).fit(*data)
    assert len(clf.standard_history_) == 1
    assert len(clf.history_) == 6  # that was early stopping
    clf = make(callbacks=[Stop()]).fit(*data)
    assert len(clf.history_) == 2
    assert clf.adversary_.eps == 0.2


def test_default_attack(data):
    clf = make()
    assert clf.default_attack().get_params()["norm"] == "linf"
    assert clf.default_attack().eps == 0.2
    total = make(adversary=DRA(eps=3.0), adversary__eps=3.0).default_attack()
    assert (total.norm, total.eps) == (1, 3.0)
    assert 0 <= clf.fit(*data).score_adversarial(*data) <= clf.score(*data)


@pytest.mark.parametrize(
    "params",
    [
        {"update": "both"}, {"constraint": "primal"}, {"standard_epochs": -1},
        {"decay_epochs": 1.5}, {"lam": -1}, {"rho": float("inf")}, {"slack": None},
    ],
)  # fmt: skip
def test_bad_parameters(params, data):
    with pytest.raises(ValueError, match=next(iter(params))):
        make(**params).fit(*data)


@pytest.mark.slow
def test_more_robust_than_standard_training():
    X, y = load_digits_images(return_X_y=True)
    X, y, X_test, y_test = X[:600], y[:600], X[600:800], y[600:800]
    common = {"module": "mlp", "random_state": 0, "device": "cpu"}
    plain = StandardClassifier(max_epochs=16, **common).fit(X, y)
    tuned = AdversarialFineTuneClassifier(
        standard_epochs=8, max_epochs=8, adversary__eps=0.15, **common
    ).fit(X, y)
    attack = PGD(eps=0.1, random_state=0)
    scores = [clf.score_adversarial(X_test, y_test, attack) for clf in (plain, tuned)]
    assert scores[1] > scores[0] + 0.1
    assert tuned.score(X_test, y_test) > plain.score(X_test, y_test) - 0.03
