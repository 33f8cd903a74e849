"""Randomness, modules, weights, interruptions and failures, for every defence."""

import random
import warnings
from contextlib import nullcontext, suppress

import numpy as np
import pytest
import torch
from defense_paths import DATA, NETWORK, PARAMETERS, SAVING, TRAINING, one_of_each
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from skorch import NeuralNet
from skorch.callbacks import Callback
from skorch.dataset import ValidSplit
from skorch.hf import AccelerateMixin
from torch import nn
from torch.utils.data import TensorDataset

from robustsk import PGD, FriendlyPGD
from robustsk.training._data import Crafted


def weights(clf):
    return {k: v.clone() for k, v in clf.module_.state_dict().items()}


def same_weights(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def close_weights(first, second, **tolerance):
    return first.keys() == second.keys() and all(
        torch.allclose(first[k], second[k], **tolerance) for k in first
    )


def network(n_in=4, n_classes=3, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(n_in, 8), nn.ReLU(), nn.Linear(8, n_classes))


class Hook(Callback):
    """Call a function at one of skorch's hooks."""

    def __init__(self, when, function):
        self.when = when
        self.function = function

    def on_epoch_begin(self, net, **kwargs):
        if self.when == "epoch_begin":
            self.function(net, **kwargs)

    def on_batch_begin(self, net, training=False, **kwargs):
        if self.when == "batch_begin" and training:
            self.function(net, **kwargs)

    def on_grad_computed(self, net, **kwargs):
        if self.when == "grad_computed":
            self.function(net, **kwargs)


# --- randomness ----------------------------------------------------------------------


def test_same_seed_same_weights(cls, make, data):
    clf = make(cls).fit(*data)
    first = weights(clf)
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002
    assert same_weights(weights(clf.fit(*data)), first)
    assert not same_weights(weights(make(cls, random_state=1).fit(*data)), first)


@one_of_each(*TRAINING)
def test_seed_alone_decides(cls, make, data):
    first = weights(make(cls).fit(*data))
    torch.rand(7)
    assert same_weights(weights(make(cls).fit(*data)), first)
    unseeded = [weights(make(cls, random_state=None).fit(*data)) for _ in range(2)]
    assert not same_weights(*unseeded)


@one_of_each(*TRAINING)
def test_random_state_instance(cls, make, data):
    fits = [weights(make(cls, random_state=np.random.RandomState(5)).fit(*data)) for _ in range(2)]
    assert same_weights(*fits)
    shared = make(cls, random_state=np.random.RandomState(5))
    assert same_weights(weights(shared.fit(*data)), fits[0])
    assert not same_weights(weights(shared.fit(*data)), fits[0])


ACTIONS = {
    "fit": lambda clf, X, y: clf.fit(X, y),
    "partial_fit": lambda clf, X, y: clf.partial_fit(X, y),
    "predict": lambda clf, X, y: clf.predict(X),
    "score_adversarial": lambda clf, X, y: clf.score_adversarial(X, y),
    "set_params": lambda clf, X, y: clf.set_params(module__hidden_sizes=(5,)),
}


def states_of_generators():
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    return [torch.get_rng_state().tolist(), keys.tolist(), kind, rest, random.getstate()]


def test_training_leaves_global_generators_alone(cls, make, data):
    before = states_of_generators()
    make(cls).fit(*data)
    assert states_of_generators() == before


@one_of_each(*TRAINING, *NETWORK)
@pytest.mark.parametrize("action", ACTIONS)
def test_global_generators_are_left_alone(cls, make, data, action):
    clf = make(cls).fit(*data)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    before = states_of_generators()
    ACTIONS[action](clf, *data)
    assert states_of_generators() == before


@one_of_each(*PARAMETERS, *NETWORK)
def test_new_module_after_set_params_follows_the_seed(cls, make, data):
    found = []
    for seed in (1, 2):
        clf = make(cls).fit(*data)
        torch.manual_seed(seed)
        found.append(weights(clf.set_params(module__hidden_sizes=(5,))))
    assert same_weights(*found)


@one_of_each(*TRAINING, *DATA)
def test_partial_fit_goes_on_in_the_same_way(cls, make, data):
    runs = []
    for _ in range(2):
        clf = make(cls).fit(*data).partial_fit(*data)
        runs.append(weights(clf))
    assert same_weights(*runs)


# --- modules -------------------------------------------------------------------------


@one_of_each(*TRAINING, *NETWORK)
def test_instance_is_never_trained_in_place(cls, make, data):
    module = network()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    clf = make(cls, module=module)
    first = weights(clf.fit(*data))
    assert clf.module is module
    assert same_weights(module.state_dict(), before)
    assert not set(map(id, module.parameters())) & set(map(id, clf.module_.parameters()))
    # training starts from the weights of the instance, whatever happened before
    assert same_weights(weights(clf.fit(*data)), first)
    assert same_weights(module.state_dict(), before)
    copied = clone(clf)
    assert same_weights(copied.module.state_dict(), before)
    assert same_weights(weights(copied.fit(*data)), first)


class Told(nn.Module):
    """Is told the number of classes under torchvision's name for it."""

    def __init__(self, num_classes, n_hidden=6):
        super().__init__()
        self.body = nn.Linear(4, n_hidden)
        self.fc = nn.Linear(n_hidden, num_classes)

    def forward(self, x):
        return self.fc(torch.relu(self.body(x)))


def torchvision_like(*, weights=None, progress=True, num_classes=1000):
    return Told(num_classes)


class OneLogit(nn.Module):
    def __init__(self, flat=False):
        super().__init__()
        self.body = nn.Linear(4, 6)
        self.fc = nn.Linear(6, 1)
        self.flat = flat

    def forward(self, x):
        z = self.fc(torch.relu(self.body(x)))
        return z[:, 0] if self.flat else z


class Double(Told):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.double()


class Normed(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.body = nn.Linear(4, 8)
        self.norm = nn.BatchNorm1d(8)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x):
        return self.fc(torch.relu(self.norm(self.body(x))))


@one_of_each(*NETWORK)
def test_class_is_told_the_number_of_classes(cls, learner, data):
    for module in (Told, torchvision_like):
        clf = learner(cls, module=module).fit(*data)
        assert clf.predict_proba(data[0]).shape == (len(data[0]), 3)
        assert clf.score(*data) > 0.8
    clf = learner(cls, module=Told, module__n_hidden=5).fit(*data)
    assert torch.Size([5, 4]) in {p.shape for p in clf.module_.parameters()}


@one_of_each(*DATA, *NETWORK)
def test_module_in_float64(cls, learner, data32):
    clf = learner(cls, module=Double).fit(*data32)
    assert {p.dtype for p in clf.module_.parameters()} == {torch.float64}
    assert clf.score(*data32) > 0.7
    assert 0 <= clf.score_adversarial(*data32) <= 1


@one_of_each(*NETWORK)
@pytest.mark.parametrize("flat", [False, True])
def test_one_logit_for_two_classes(cls, learner, binary, flat):
    X, y = binary[0], np.array(["no", "yes"])[binary[1]]
    clf = learner(cls, module=OneLogit, module__flat=flat).fit(X, y)
    assert clf.predict_proba(X).shape == (len(X), 2)
    assert clf.decision_function(X).shape == (len(X),)
    assert clf.score(X, y) > 0.75
    assert clf.score_adversarial(X, y, PGD(eps=0, n_steps=1)) == clf.score(X, y)
    assert clf.score_adversarial(X, y, PGD(eps=3.0, n_steps=3)) < clf.score(X, y)


@one_of_each(*NETWORK)
@pytest.mark.parametrize("n_outputs", [1, 2, 7])
def test_wrong_number_of_outputs(cls, make, data, n_outputs):
    shown = r"\(16, (1|2|7)\)"
    with pytest.raises(ValueError, match=rf"{shown}.*3 classes.*n_classes"):
        make(cls, module=network(n_classes=n_outputs)).fit(*data)


@one_of_each(*NETWORK)
def test_wrong_shape_of_outputs(cls, make, images):
    class Maps(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 3)

        def forward(self, x):
            return self.fc(x)

    X, y = images
    with pytest.raises(ValueError, match=r"\(16, 1, 8, 3\)"):
        make(cls, module=Maps).fit(X, y)


@one_of_each(*NETWORK)
def test_module_that_returns_more_than_logits(cls, learner, data):
    class Talkative(Told):
        def forward(self, x):
            return super().forward(x), x

    clf = learner(cls, module=Talkative).fit(*data)
    assert clf.score(*data) > 0.8


@one_of_each(*NETWORK)
def test_bad_module(cls, make, data):
    with pytest.raises(ValueError, match=r"no network is named 'mpl'.*Did you mean 'mlp'"):
        make(cls, module="mpl").fit(*data)
    with pytest.raises(TypeError, match="network must be"):
        make(cls, module=3.5).fit(*data)


def test_training_leaves_modes_and_flags_in_order(cls, make, data):
    seen = []

    def watch(net, **kwargs):
        seen.append(
            (
                all(p.requires_grad for p in net.module_.parameters()),
                all(m.training for m in net.module_.modules()),
                any(
                    p.grad is not None and p.grad.abs().max() > 0 for p in net.module_.parameters()
                ),
            )
        )

    clf = make(cls, callbacks=[Hook("grad_computed", watch)]).fit(*data)
    assert len(seen) == 6 * clf._steps_per_batch
    assert set(seen) == {(True, True, True)}
    assert all(p.requires_grad for p in clf.module_.parameters())
    assert not any(m.training for m in clf.module_.modules())


@one_of_each(*TRAINING, *NETWORK)
def test_frozen_layers_stay_frozen(cls, make, data):
    module = network()
    module[0].requires_grad_(False)
    clf = make(cls, module=[module, network(seed=1)] if _takes_lists(cls) else module).fit(*data)
    for name, value in clf.module_.named_parameters():
        if name.endswith("0.weight") and value.shape == (8, 4) and not value.requires_grad:
            assert torch.equal(value, module[0].weight)
            break
    else:
        pytest.fail("no layer has stayed frozen")


def _takes_lists(cls):
    return "n_members" in cls._signature_names()


def test_attack_sees_evaluation_mode(cls, make, data):
    modes = []

    class Spy(FriendlyPGD):
        def _attack_batch(self, batch):
            modes.append(any(m.training for m in batch.victim.module.modules()))
            modes.append(any(p.requires_grad for p in batch.victim.module.parameters()))
            return super()._attack_batch(batch)

    make(cls, adversary=Spy(eps=0.1, n_steps=1)).fit(*data)
    assert not any(modes)


@one_of_each(*TRAINING, *NETWORK, "craft", "training_loss")
def test_batch_normalisation(cls, make, data):
    X, y = data[0][:33], data[1][:33]  # the last of three batches holds one sample
    clf = make(cls, module=Normed).fit(X, y)
    means = [v for k, v in clf.module_.state_dict().items() if k.endswith("running_mean")]
    assert means
    assert all(m.abs().max() > 0 for m in means)
    assert clf.predict(X[:1]).shape == (1,)
    before = weights(clf)
    clf.score_adversarial(X, y)
    assert same_weights(weights(clf), before)
    whole = make(cls, module=Normed, batch_size=-1).fit(X, y)
    assert np.isfinite(whole.predict_proba(X)).all()


@one_of_each(*TRAINING, *NETWORK, "craft", "training_loss")
def test_optimizer_with_a_closure(cls, learner, data):
    """LBFGS evaluates the loss several times per step; the attack runs once."""
    calls = []

    class Counting(cls):
        def craft(self, x, y):
            calls.append(len(x))
            return super().craft(x, y)

    clf = learner(
        Counting, optimizer=torch.optim.LBFGS, optimizer__max_iter=10, lr=0.5, batch_size=-1,
        max_epochs=3,
    ).fit(*data)  # fmt: skip
    assert calls == [len(data[0])] * 3
    assert clf.score(*data) > 0.6


@one_of_each(*TRAINING, *DATA)
def test_batches(cls, make, data):
    X, y = data
    batches = []

    class Watching(cls):
        def craft(self, x, y):
            batches.append(x.numpy().copy())
            return super().craft(x, y)

    make(Watching, max_epochs=1, batch_size=20).fit(X, y)
    assert [len(b) for b in batches] == [20, 20, 8]
    together = np.concatenate(batches)
    assert_array_equal(np.sort(together, axis=0), np.sort(X, axis=0))
    assert not np.array_equal(together, X)
    batches.clear()
    make(Watching, max_epochs=1, batch_size=20, iterator_train__shuffle=False).fit(X, y)
    assert_array_equal(np.concatenate(batches), X)


# --- the step, from outside ----------------------------------------------------------


def test_step_of_skorch_minimises_the_loss_of_the_defence(cls, make, data):
    """What accelerate relies on: its mixin replaces `train_step_single`."""
    X, y = data
    clf = make(cls, input_shape=(4,), classes=[0, 1, 2]).initialize()
    x = torch.as_tensor(X, dtype=torch.float32)
    labels = torch.as_tensor(y)
    weight = torch.linspace(0.5, 2, len(x))
    clf.module_.train()
    adversarial = clf.craft(x, labels)
    for w in (None, weight):
        clf._batch_weight = w  # as in training: losses may couple samples
        losses = clf.training_loss(x, adversarial, labels).detach()
        clf._batch_weight = None
        assert losses.shape == (len(x),)
        expected = losses.mean() if w is None else (w * losses).sum() / w.sum()
        clf.module_.zero_grad()
        step = NeuralNet.train_step_single(clf, (Crafted(x, adversarial, labels, w), labels))
        assert_allclose(step["loss"].item(), expected.item(), rtol=1e-5)
        assert any(p.grad is not None and p.grad.abs().max() > 0 for p in clf.module_.parameters())


class OneProcess:
    """What an `accelerate.Accelerator` does where there is nothing to accelerate."""

    def __init__(self, device_placement):
        self.device_placement = device_placement
        self.is_main_process = True
        self.backwards = 0

    def prepare(self, obj):
        return obj

    def unwrap_model(self, module, **kwargs):
        return module

    def gather_for_metrics(self, output):
        return output

    def accumulate(self, module):
        return nullcontext()

    def autocast(self):
        return nullcontext()

    def wait_for_everyone(self):
        pass

    def backward(self, loss):
        self.backwards += 1
        loss.backward()


@one_of_each(*TRAINING, *NETWORK)
@pytest.mark.parametrize("device_placement", [False, True])
def test_under_the_mixin_for_accelerate(cls, make, data, device_placement):
    class Accelerated(AccelerateMixin, cls):
        pass

    device = None if device_placement else "cpu"
    accelerator = OneProcess(device_placement)
    clf = make(Accelerated, accelerator=accelerator, device=device).fit(*data)
    assert accelerator.backwards == 6 * clf._steps_per_batch
    assert clf.predict(data[0]).shape == data[1].shape
    plain = make(cls).fit(*data)
    assert same_weights(weights(clf), weights(plain))
    assert 0 <= clf.score_adversarial(*data) <= 1


# --- weights -------------------------------------------------------------------------


def test_weight_zero_is_absence(cls, make, data):
    X, y = data
    weight = (np.arange(len(X)) % 3 > 0).astype(float)
    keep = weight > 0
    for size in (-1, 16):
        weighted = make(cls, batch_size=size).fit(X, y, sample_weight=weight)
        removed = make(cls, batch_size=size).fit(X[keep], y[keep])
        assert close_weights(weights(weighted), weights(removed), rtol=1e-6, atol=1e-8)
        assert_allclose(weighted.predict_proba(X), removed.predict_proba(X), rtol=1e-6)


def test_weights_scale_and_count(cls, make, data):
    X, y = data
    plain = weights(make(cls, max_epochs=1).fit(X, y))
    uniform = weights(make(cls, max_epochs=1).fit(X, y, sample_weight=np.full(len(X), 3.0)))
    assert close_weights(plain, uniform, rtol=1e-5, atol=1e-7)
    skewed = weights(make(cls, max_epochs=1).fit(X, y, sample_weight=1.0 + 9 * (y == 0)))
    assert not close_weights(plain, skewed, rtol=1e-3)


@one_of_each(*DATA)
def test_class_weight(cls, make, data):
    X, y = data[0], np.array(["ant", "bee", "cat"])[data[1]]
    by_class = make(cls, class_weight={"ant": 5.0, "cat": 0.5}).fit(X, y)
    by_sample = make(cls).fit(
        X, y, sample_weight=np.select([y == "ant", y == "cat"], [5.0, 0.5], 1.0)
    )
    assert same_weights(weights(by_class), weights(by_sample))
    with pytest.raises(ValueError, match="dog"):
        make(cls, class_weight={"dog": 1.0}).fit(X, y)


@one_of_each(*DATA)
def test_balanced_class_weight(cls, make, data):
    X, y = data
    keep = np.flatnonzero((y != 0) | (np.cumsum(y == 0) <= 4))
    X, y = X[keep], y[keep]
    balanced = make(cls, class_weight="balanced").fit(X, y)
    by_hand = make(cls).fit(X, y, sample_weight=len(y) / (3 * np.bincount(y)[y]))
    assert close_weights(weights(balanced), weights(by_hand), rtol=1e-6, atol=1e-8)


@one_of_each(*DATA)
def test_bad_weights(cls, make, data):
    X, y = data
    with pytest.raises(ValueError, match=r"(?i)sample weights .*zero"):
        make(cls).fit(X, y, sample_weight=np.zeros(len(X)))
    with pytest.raises(ValueError, match=r"(?i)negative"):
        make(cls).fit(X, y, sample_weight=-np.ones(len(X)))
    with pytest.raises(ValueError, match="sample_weight"):
        make(cls).fit(X, y, sample_weight=np.ones(3))


@one_of_each(*DATA)
def test_weights_with_a_dataset(cls, make, data32):
    X, y = data32
    dataset = TensorDataset(torch.from_numpy(X), torch.from_numpy(y))
    weight = np.linspace(0.1, 2, len(X))
    first = make(cls, max_epochs=1, batch_size=-1, adversary__clip=(-9, 9)).fit(
        dataset, sample_weight=weight
    )
    second = make(cls, max_epochs=1, batch_size=-1, adversary__clip=(-9, 9)).fit(
        X, y, sample_weight=weight
    )
    assert close_weights(weights(first), weights(second), rtol=1e-4, atol=1e-6)


def test_a_batch_of_a_dataset_with_no_weight_at_all(cls, make, data32):
    X, y = data32
    dataset = TensorDataset(torch.from_numpy(X), torch.from_numpy(y))
    weight = np.zeros(len(X))
    weight[:3] = 1
    clf = make(cls, batch_size=4).fit(dataset, sample_weight=weight)
    assert np.isfinite(clf.predict_proba(X)).all()


# --- going on ------------------------------------------------------------------------


@one_of_each(*TRAINING, *DATA)
def test_warm_start(cls, make, data):
    clf = make(cls, warm_start=True, lr=1e-4).fit(*data)
    first = weights(clf)
    clf.fit(*data)
    assert len(clf.history_) == 4
    second = weights(clf)
    assert not same_weights(first, second)
    # small steps from where it was
    assert all((first[k] - second[k]).abs().max() < 0.01 for k in first)
    cold = make(cls, lr=1e-4).fit(*data).fit(*data)
    assert len(cold.history_) == 2
    assert same_weights(weights(cold), first)


@one_of_each(*TRAINING, *DATA)
def test_partial_fit(cls, make, data):
    X, y = data[0], np.array(["ant", "bee", "cat"])[data[1]]
    few = y != "cat"
    clf = make(cls).partial_fit(X[few], y[few], classes=["cat", "ant", "bee"])
    assert clf.classes_.tolist() == ["ant", "bee", "cat"]
    clf.partial_fit(X[~few], y[~few])
    assert len(clf.history_) == 4
    assert clf.predict_proba(X).shape == (len(X), 3)
    # the valid range has grown
    assert_allclose(clf.clip_bounds_[0], X.min(axis=0))
    assert_allclose(clf.clip_bounds_[1], X.max(axis=0))
    with pytest.raises(ValueError, match="dog"):
        clf.partial_fit(X, np.where(few, y, "dog"))
    with pytest.raises(ValueError, match=r"3 features.*expecting 4"):
        clf.partial_fit(X[:, :3], y)
    clf.partial_fit(X[:1], y[:1])
    fresh = make(cls).partial_fit(X[few], y[few])
    with pytest.raises(ValueError, match="cat"):
        fresh.partial_fit(X, y)


@one_of_each(*TRAINING, *DATA)
def test_partial_fit_from_scratch_is_fit(cls, make, data):
    assert same_weights(weights(make(cls).partial_fit(*data)), weights(make(cls).fit(*data)))


@one_of_each(*TRAINING)
def test_interrupt_leaves_a_usable_model(cls, make, data):
    def interrupt(net, **kwargs):
        if len(net.history_) == 2:
            raise KeyboardInterrupt

    for when in ("epoch_begin", "batch_begin"):
        clf = make(cls, max_epochs=5, callbacks=[Hook(when, interrupt)]).fit(*data)
        assert len(clf.history_) == 2
        assert np.isfinite(clf.predict_proba(data[0])).all()
        assert clf.classes_.tolist() == [0, 1, 2]
        assert not any(m.training for m in clf.module_.modules())
        assert all(p.requires_grad for p in clf.module_.parameters())
        assert 0 <= clf.score_adversarial(*data) <= 1
        clf.set_params(callbacks=None, max_epochs=1).fit(*data)
        assert len(clf.history_) == 1


@one_of_each(*TRAINING)
def test_an_error_in_training_leaves_no_trace_of_it(cls, make, data):
    def fail(net, **kwargs):
        if len(net.history_) == 2:
            raise RuntimeError("full disk")

    y = np.array(["ant", "bee", "cat"])[data[1]]
    clf = make(cls, callbacks=[Hook("epoch_begin", fail)])
    with pytest.raises(RuntimeError, match="full disk"):
        clf.fit(data[0], y)
    assert set(clf.predict(data[0])) <= {"ant", "bee", "cat"}
    assert not any(m.training for m in clf.module_.modules())


# --- divergence ----------------------------------------------------------------------


@one_of_each(*TRAINING, *NETWORK, *SAVING)
def test_nan_in_the_weights_stops_the_fit(cls, make, data):
    good = {}

    def poison(net, **kwargs):
        epoch, batch = len(net.history_), len(net.history_[-1]["batches"])
        if (epoch, batch) == (3, 1):
            good.update(weights(net))
        if (epoch, batch) == (3, 2):
            with torch.no_grad():
                for p in net.module_.parameters():
                    p.fill_(torch.nan)

    clf = make(cls, max_epochs=5, callbacks=[Hook("batch_begin", poison)])
    with pytest.raises(FloatingPointError, match=r"nan in epoch 3, batch 2.*lr") as caught:
        clf.fit(*data)
    assert "GradientNormClipping" in str(caught.value)
    assert same_weights(weights(clf), good)
    assert np.isfinite(clf.predict_proba(data[0])).all()
    assert clf.predict(data[0]).shape == data[1].shape
    assert 0 <= clf.score_adversarial(*data) <= 1
    assert not any(m.training for m in clf.module_.modules())
    clf.set_params(callbacks=None, max_epochs=1).partial_fit(*data)
    assert np.isfinite(clf.predict_proba(data[0])).all()


@one_of_each(*TRAINING)
def test_divergence_falls_back_on_what_a_callback_has_loaded(cls, make, data):
    module = network(seed=7)

    class Load(Callback):
        def on_train_begin(self, net, **kwargs):
            with torch.no_grad():
                for p in net.module_.parameters():
                    p.fill_(0.25)

    def poison(net, **kwargs):
        with torch.no_grad():
            for p in net.module_.parameters():
                p.fill_(torch.nan)

    clf = make(cls, module=module, callbacks=[Load(), Hook("batch_begin", poison)])
    with pytest.raises(FloatingPointError, match="epoch 1, batch 1"):
        clf.fit(*data)
    assert all((p == 0.25).all() for p in clf.module_.parameters())


@one_of_each(*TRAINING)
@pytest.mark.parametrize("batch_size", [16, -1])
def test_absurd_learning_rate_leaves_finite_predictions(cls, make, data32, batch_size):
    """With one batch per epoch the weights go bad between the loss and the next epoch."""
    clf = make(cls, lr=1e30, max_epochs=4, batch_size=batch_size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with suppress(FloatingPointError):
            clf.fit(*data32)
        assert np.isfinite(clf.predict_proba(data32[0])).all()


@one_of_each(*TRAINING, *DATA)
def test_non_finite_data_in_a_dataset(cls, make, data32):
    X, y = data32
    X = X.copy()
    X[5] = np.inf
    dataset = TensorDataset(torch.from_numpy(X), torch.from_numpy(y))
    clf = make(cls)
    with pytest.raises(
        (FloatingPointError, ValueError), match=r"training loss is (nan|inf)|infinity|NaN"
    ):
        clf.fit(dataset)


# --- precision -----------------------------------------------------------------------


@one_of_each(*DATA, *NETWORK)
def test_tables_in_float64_are_computed_in_float64(cls, make, data, data32):
    for (X, y), dtype in ((data, torch.float64), (data32, torch.float32)):
        clf = make(cls).fit(X, y)
        assert {p.dtype for p in clf.module_.parameters()} == {dtype}
    clf = make(cls, train_split=ValidSplit(3)).fit(*data)
    assert np.isfinite(clf.history_[:, "valid_loss"]).all()
