"""AWP against its formula, and that it leaves behind what it should."""

import pickle

import numpy as np
import pytest
import torch
from defense_paths import DEFENSES, NETWORK, TRAINING, epochs, one_of_each
from numpy.testing import assert_allclose
from sklearn.base import clone
from sklearn.datasets import make_blobs
from torch import nn

from robustsk import PGD, PGDATClassifier, TRADESClassifier
from robustsk.models import HypersphereHead
from robustsk.training import AWP
from robustsk.training._data import Crafted
from robustsk.training.weight_perturbation import _unit

SMALL = {"module": "mlp", "module__hidden_sizes": (8,)}


class Net(nn.Module):
    def __init__(self, dropout=0.0):
        super().__init__()
        self.inner = nn.Linear(4, 6)
        self.norm = nn.BatchNorm1d(6)
        self.dropout = nn.Dropout(dropout)
        self.outer = nn.Linear(6, 3)

    def forward(self, x):
        return self.outer(self.dropout(torch.tanh(self.norm(self.inner(x)))))


@pytest.fixture
def data():
    return make_blobs(48, 4, centers=3, cluster_std=0.6, center_box=(-2, 2), random_state=3)


def make(cls=PGDATClassifier, **params):
    defaults = {
        "module": lambda: Net().double(), "adversary__eps": 0.2, "adversary__n_steps": 2,
        "max_epochs": 3, "batch_size": 16, "lr": 0.05, "random_state": 0, "device": "cpu",
    }  # fmt: skip
    return cls(**{**defaults, **params})


def ready(cls=PGDATClassifier, **params):
    """Return an initialised defence and one crafted batch."""
    clf = make(cls, input_shape=(4,), classes=[0, 1, 2], **params).initialize()
    clf.history_.new_epoch()
    clf.weight_perturbation_ = clf.weight_perturbation
    torch.manual_seed(0)
    x, y = torch.randn(10, 4).double(), torch.arange(10) % 3
    clf._set_training(True)
    return clf, Crafted(x, x + 0.1 * torch.randn(10, 4).double(), y, None)


def weights_of(clf):
    return {k: p.detach().clone() for k, p in clf.module_.named_parameters()}


def buffers_of(clf):
    return {k: b.clone() for k, b in clf.module_.named_buffers()}


def loss_of(clf, crafted):
    before = buffers_of(clf)
    with torch.no_grad():
        loss = clf.get_loss(clf.infer(crafted), crafted.y, X=crafted, training=True)
        for key, buffer in clf.module_.named_buffers():
            buffer.copy_(before[key])
    return float(loss)


def proba(clf, X):
    return clf.predict_proba(X)


# --- the perturbation ----------------------------------------------------------------


@pytest.mark.parametrize("gamma", [1e-3, 0.01, 0.5])
def test_is_the_gradient_scaled_to_each_tensor(gamma):
    clf, crafted = ready(weight_perturbation=AWP(gamma=gamma))
    w, buffers = weights_of(clf), buffers_of(clf)
    # the formula, by plain autograd on cross-entropy
    loss = nn.functional.cross_entropy(clf.module_(crafted.adversarial), crafted.y)
    names = ["inner.weight", "outer.weight"]
    gradients = torch.autograd.grad(loss, [dict(clf.module_.named_parameters())[n] for n in names])
    clf.module_.load_state_dict({**clf.module_.state_dict(), **buffers})
    with clf.weight_perturbation_.applied(clf, crafted) as batch:
        assert batch is crafted
        v = {k: p - w[k] for k, p in weights_of(clf).items()}
    for name, g in zip(names, gradients, strict=True):
        assert_allclose(v[name], gamma * w[name].norm() * g / g.norm(), atol=1e-15)
        assert float(v[name].norm()) == pytest.approx(gamma * float(w[name].norm()), rel=1e-9)
    for name in set(v) - set(names):
        assert not v[name].any(), name  # biases, scale and shift


@pytest.mark.parametrize("cls", DEFENSES)
def test_training_loss_is_larger_there(cls, data):
    """Of the whole loss of the defence, in the course of a real training."""
    rises = []

    class Rise(AWP):
        def _ascend(self, net, crafted, *args):
            state, rng = net._rng.get_state(), torch.random.get_rng_state()
            below = loss_of(net, crafted)
            super()._ascend(net, crafted, *args)
            rises.append(loss_of(net, crafted) - below)
            net._rng.set_state(state)
            torch.random.set_rng_state(rng)

    make(cls, weight_perturbation=Rise(gamma=1e-3), **epochs(cls, 1), **SMALL).fit(*data)
    assert rises
    assert min(rises) > 0


def test_several_steps_stay_in_reach_and_get_higher():
    clf, crafted = ready()
    w = weights_of(clf)
    reached = []
    for awp in (AWP(gamma=0.5), AWP(gamma=0.5, n_steps=10)):
        with awp.applied(clf, crafted):
            reached.append(loss_of(clf, crafted))
            for key, p in weights_of(clf).items():
                assert float((p - w[key]).norm()) <= 0.5 * float(w[key].norm()) * (1 + 1e-9)
    assert reached[1] > reached[0] > loss_of(clf, crafted)


def test_rounds_craft_against_the_perturbed_weights(monkeypatch):
    clf, crafted = ready()
    origin = weights_of(clf)["inner.weight"]
    seen = []

    def craft(x, y):
        seen.append(float((clf.module_.inner.weight.detach() - origin).norm() / origin.norm()))
        return x + len(seen)

    monkeypatch.setattr(clf, "craft", craft, raising=False)
    with AWP(gamma=0.02, n_rounds=3).applied(clf, crafted) as batch:
        assert_allclose(batch.adversarial, crafted.x + 2)
        assert batch.x is crafted.x
        moved = (clf.module_.inner.weight.detach() - origin).norm() / origin.norm()
        assert float(moved) <= 0.02 * (1 + 1e-9)
    assert len(seen) == 2
    assert seen[0] == pytest.approx(0.02)
    assert torch.equal(clf.module_.inner.weight, origin)


def test_zero_gradient_moves_nothing():
    clf, crafted = ready()
    with torch.no_grad():
        clf.module_.outer.weight.zero_()  # no gradient for the layer below, no norm for this one
    before = weights_of(clf)
    with AWP(gamma=0.1).applied(clf, crafted):
        for key, p in weights_of(clf).items():
            assert torch.equal(p, before[key]), key


def test_gradient_too_small_to_square_gives_the_same_direction():
    """In float32 the squares of the entries below are zero, and so was the norm."""
    g = torch.tensor([[3e-25, -4e-25], [0.0, 0.0]])
    assert_allclose(_unit(g), [[0.6, -0.8], [0.0, 0.0]], rtol=1e-6)
    assert_allclose(_unit(torch.zeros(2, 2)), 0)


def test_ascent_leaves_nothing_behind():
    clf, crafted = ready()
    crafted.adversarial.requires_grad_(True)
    buffers = buffers_of(clf)
    with AWP(gamma=0.1, n_steps=3).applied(clf, crafted):
        for key, buffer in buffers_of(clf).items():
            assert torch.equal(buffer, buffers[key]), key
        assert all(p.grad is None for p in clf.module_.parameters())
        assert crafted.adversarial.grad is None
        assert crafted.x.grad is None


def test_frozen_weights_are_left_alone():
    clf, crafted = ready()
    clf.module_.inner.requires_grad_(False)
    before = clf.module_.inner.weight.clone()
    with AWP(gamma=0.1).applied(clf, crafted):
        assert torch.equal(clf.module_.inner.weight, before)


# --- afterwards ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_are_restored_to_the_last_bit(dtype):
    clf, crafted = ready()
    clf.module_.to(dtype)
    crafted = Crafted(crafted.x.to(dtype), crafted.adversarial.to(dtype), crafted.y, None)
    before = weights_of(clf)
    with AWP(gamma=0.37, n_steps=2).applied(clf, crafted):
        pass
    for key, p in weights_of(clf).items():
        assert torch.equal(p, before[key])
    with pytest.raises(KeyboardInterrupt), AWP(gamma=0.37).applied(clf, crafted):
        raise KeyboardInterrupt
    for key, p in weights_of(clf).items():
        assert torch.equal(p, before[key])


def test_step_is_taken_with_the_gradient_at_the_perturbed_weights():
    """``w_new = step(w + v) - v``, with weight decay and momentum at ``w + v``."""
    clf, crafted = ready(
        weight_perturbation=AWP(gamma=0.1), optimizer=torch.optim.SGD, lr=0.1,
        optimizer__weight_decay=0.3,
    )  # fmt: skip
    w = weights_of(clf)
    with clf.weight_perturbation_.applied(clf, crafted):
        moved = weights_of(clf)
        loss = nn.functional.cross_entropy(clf.module_(crafted.adversarial), crafted.y)
        g = dict(zip(w, torch.autograd.grad(loss, list(clf.module_.parameters())), strict=True))
    clf._take_step(crafted)
    for key, p in weights_of(clf).items():
        v = moved[key] - w[key]
        assert_allclose(p, moved[key] - 0.1 * (g[key] + 0.3 * moved[key]) - v, atol=1e-12)


def test_diverged_training_ends_on_the_last_good_weights(data):
    X, y = data
    clf = make(max_epochs=2, weight_perturbation=AWP(gamma=0.1)).fit(X, y)
    good = weights_of(clf)
    X = X.copy()
    clf.set_params(lr=1e200)
    with pytest.raises(FloatingPointError):
        clf.partial_fit(X, y)
    for key, p in weights_of(clf).items():
        assert torch.equal(p, good[key]), key


def test_interrupt_in_a_step_restores_the_weights(data):
    class Interrupts(AWP):
        def _ascend(self, net, *args):
            super()._ascend(net, *args)
            seen.append(weights_of(net))
            raise KeyboardInterrupt

    seen = []
    clf = make(weight_perturbation=Interrupts(gamma=0.2)).fit(*data)
    start = make(max_epochs=0).fit(*data)
    for key, p in weights_of(clf).items():
        assert torch.equal(p, weights_of(start)[key])
    assert not torch.equal(seen[0]["inner.weight"], weights_of(clf)["inner.weight"])


# --- with every defence --------------------------------------------------------------


@one_of_each(*TRAINING, *NETWORK)
def test_without_perturbation_it_is_the_base_method(cls, data):
    base = make(cls, weight_perturbation=None, **epochs(cls, 2), **SMALL).fit(*data)
    same = make(cls, weight_perturbation=AWP(gamma=0), **epochs(cls, 2), **SMALL).fit(*data)
    np.testing.assert_array_equal(proba(same, data[0]), proba(base, data[0]))
    later = AWP(gamma=0.1, warmup=1)
    later = make(cls, weight_perturbation=later, **epochs(cls, 2), **SMALL).fit(*data)
    assert later.history_[0, "train_loss"] == base.history_[0, "train_loss"]
    assert later.history_[1, "train_loss"] != base.history_[1, "train_loss"]


@one_of_each(*TRAINING)
def test_a_warm_up_that_never_ends_is_the_base_method(cls, data):
    base = make(cls, weight_perturbation=None, **SMALL).fit(*data)
    same = make(cls, weight_perturbation=AWP(gamma=0.1, warmup=3), **SMALL).fit(*data)
    np.testing.assert_array_equal(proba(same, data[0]), proba(base, data[0]))


@pytest.mark.dealt
@one_of_each(*TRAINING, *NETWORK)
def test_goes_with_every_defence(cls, data):
    params = {"weight_perturbation": AWP(gamma=0.02), **epochs(cls, 5), **SMALL}
    assert make(cls, **params).fit(*data).score(*data) > 0.6


@pytest.mark.dealt
@one_of_each(*TRAINING)
@pytest.mark.parametrize(
    ("precision", "n_rounds"), [pytest.param(None, 1, marks=pytest.mark.slow), ("bf16", 2)]
)
def test_is_deterministic(cls, precision, n_rounds, data):
    awp = AWP(gamma=0.02, n_rounds=n_rounds)
    params = {"precision": precision, "weight_perturbation": awp, **epochs(cls, 5), **SMALL}
    clf = make(cls, **params).fit(*data)
    assert clf.score(*data) > 0.6
    again = make(cls, **params).fit(*data)
    np.testing.assert_array_equal(proba(again, data[0]), proba(clf, data[0]))


def test_goes_with_a_head_and_weights_of_samples(data):
    head = HypersphereHead()
    clf = make(TRADESClassifier, head=head, weight_perturbation=AWP(), max_epochs=10)
    clf.fit(*data, sample_weight=np.linspace(0.5, 1, len(data[0])))
    assert clf.score(*data) > 0.8


def test_goes_with_an_optimizer_that_asks_again(data):
    clf = make(optimizer=torch.optim.LBFGS, lr=0.1, weight_perturbation=AWP(), max_epochs=2)
    assert np.isfinite(proba(clf.fit(*data), data[0])).all()


def test_dropout_is_deterministic(data):
    a, b = (
        make(module=lambda: Net(0.3).double(), weight_perturbation=AWP()).fit(*data)
        for _ in range(2)
    )
    np.testing.assert_array_equal(proba(a, data[0]), proba(b, data[0]))


def test_parameters_reach_it_through_the_estimator(data):
    clf = make(weight_perturbation=AWP(), weight_perturbation__gamma=0.0, module="mlp")
    base = make(module="mlp").fit(*data)
    np.testing.assert_array_equal(proba(clone(clf).fit(*data), data[0]), proba(base, data[0]))
    other = clone(clf).set_params(weight_perturbation__gamma=0.05).fit(*data)
    assert other.weight_perturbation_.gamma == 0.05
    np.testing.assert_array_equal(
        proba(pickle.loads(pickle.dumps(other)), data[0]), proba(other, data[0])
    )


@pytest.mark.parametrize(
    "params", [{"gamma": -0.1}, {"gamma": "a"}, {"n_steps": 0}, {"n_rounds": 1.5}, {"warmup": -1}]
)
def test_bad_parameters(params, data):
    with pytest.raises(ValueError, match=next(iter(params))):
        make(weight_perturbation=AWP(**params)).fit(*data)


@pytest.mark.slow
def test_flatter_minimum(data):
    """Weights move less in loss where training was against the worst weights."""
    rises = []
    for awp in (None, AWP(gamma=0.1)):
        clf = make(
            adversary=PGD(eps=0.4, n_steps=3), weight_perturbation=awp, max_epochs=40,
            module="mlp", module__hidden_sizes=(16,),
        ).fit(*data)  # fmt: skip
        x, y = torch.tensor(data[0]), torch.tensor(data[1])
        crafted = Crafted(x, x, y, None)
        below = loss_of(clf, crafted)
        with AWP(gamma=0.1, n_steps=5).applied(clf, crafted):
            rises.append(loss_of(clf, crafted) - below)
    assert rises[1] < rises[0]
