"""Weight averages against their definitions, and what holds them when."""

import pickle

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.datasets import make_blobs
from skorch.callbacks import Callback
from skorch.dataset import ValidSplit
from torch import nn

from robustsk import PGD, PGDATClassifier
from robustsk.training import AdversarialScoring, LearningRateSchedule, WeightAveraging


class Normed(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))


class Watch(Callback):
    """Note the weights after each step and at the end of each epoch."""

    def __init__(self, steps, epochs=None, interrupt_at=None):
        self.steps = steps
        self.epochs = epochs
        self.interrupt_at = interrupt_at

    def on_batch_end(self, net, training=False, **kwargs):
        if training:
            self.steps.append(weights(net))
            if len(self.steps) == self.interrupt_at:
                raise KeyboardInterrupt

    def on_epoch_end(self, net, **kwargs):
        if self.epochs is not None:
            self.epochs.append(weights(net))


def weights(net):
    return torch.cat([p.detach().flatten() for p in net.module_.parameters()]).numpy().copy()


@pytest.fixture
def data():
    X, y = make_blobs(48, 4, centers=3, cluster_std=0.6, center_box=(-2, 2), random_state=3)
    return X.astype(np.float32), y


def make(*callbacks, **params):
    defaults = {
        "module": Normed, "max_epochs": 4, "batch_size": 16, "lr": 0.05, "random_state": 0,
        "adversary__eps": 0.1, "adversary__n_steps": 1, "device": "cpu",
        "callbacks": list(callbacks),
    }  # fmt: skip
    return PGDATClassifier(**{**defaults, **params})


def raw_path(data, **params):
    steps = []
    clf = make(Watch(steps), **params).fit(*data)
    return np.array(steps), clf


def test_exponential_average(data):
    raw, _ = raw_path(data)
    steps, epochs = [], []
    clf = make(WeightAveraging(decay=0.4), Watch(steps, epochs)).fit(*data)
    assert_array_equal(steps, raw)  # training itself is what it was
    average = raw[0].astype(float)
    expected = [average]
    for d, w in enumerate(raw[1:], start=1):
        decay = min(0.4, (1 + d) / (10 + d))
        average = decay * average + (1 - decay) * w
        expected.append(average)
    assert_allclose(weights(clf), average, rtol=1e-5, atol=1e-6)
    assert_allclose(epochs, np.array(expected)[2::3], rtol=1e-5, atol=1e-6)


def test_after_one_step_it_is_the_weights(data):
    raw, _ = raw_path(data, max_epochs=1, batch_size=-1)
    clf = make(WeightAveraging(), max_epochs=1, batch_size=-1).fit(*data)
    assert_array_equal(weights(clf), raw[0])


@pytest.mark.dealt
@pytest.mark.parametrize(("start", "first"), [(None, 3), (0.5, 2), (0.0, 0), (1.0, 4)])
def test_stochastic_weight_averaging(data, start, first):
    raw, _ = raw_path(data)
    clf = make(WeightAveraging("swa", start=start)).fit(*data)
    ends = raw[2::3]
    expected = ends[first:].mean(axis=0) if first < 4 else ends[-1]
    assert_allclose(weights(clf), expected, rtol=1e-5, atol=1e-6)


def test_exponential_average_that_begins_late(data):
    raw, _ = raw_path(data)
    epochs = []
    make(WeightAveraging(decay=0.5, start=0.5), Watch([], epochs)).fit(*data)
    assert_array_equal(epochs[:2], raw[[2, 5]])
    decay = 2 / 11
    expected = decay * raw[6] + (1 - decay) * raw[7]
    expected = 0.25 * expected + 0.75 * raw[8]
    assert_allclose(epochs[2], expected, rtol=1e-5, atol=1e-6)


def test_statistics_are_copied_not_shared(data):
    """Those of the raw weights at the end, and none of them move afterwards."""
    _, plain = raw_path(data)
    clf = make(WeightAveraging(decay=0.9)).fit(*data)
    for (name, buffer), other in zip(
        clf.module_.named_buffers(), plain.module_.buffers(), strict=True
    ):
        assert torch.equal(buffer, other), name
    before = clf.predict_proba(data[0])
    again = pickle.loads(pickle.dumps(clf)).partial_fit(*data)
    assert_array_equal(clf.predict_proba(data[0]), before)
    assert not np.allclose(again.predict_proba(data[0]), before)


def test_statistics_are_recomputed_for_the_average(data):
    raw, _ = raw_path(data, adversary__eps=0.0, batch_size=48)
    steps = []
    clf = make(
        WeightAveraging(decay=0.9, batch_norm="recompute"), Watch(steps),
        adversary__eps=0.0, batch_size=48,
    ).fit(*data)  # fmt: skip
    assert_allclose(steps, raw, rtol=1e-5, atol=1e-6)
    linear, norm = clf.module_[0], clf.module_[1]
    with torch.no_grad():
        hidden = linear(torch.from_numpy(data[0]))
    assert_allclose(norm.running_mean, hidden.mean(0), rtol=1e-5, atol=1e-6)
    assert_allclose(norm.running_var, hidden.var(0), rtol=1e-5, atol=1e-6)
    assert norm.momentum == 0.1


def test_who_watches_sees_the_average(data):
    """Validation as well, so that all records are those of the model that predicts."""
    attack = PGD(eps=0.2, n_steps=3, random_state=0)
    clf = make(
        WeightAveraging(decay=0.9), AdversarialScoring(attack),
        train_split=ValidSplit(4, stratified=True),
    ).fit(*data)  # fmt: skip
    _, valid = ValidSplit(4, stratified=True)(*_pair(data))
    X, y = (
        np.array(part)
        for part in zip(*[(valid[i][0], valid[i][1]) for i in range(12)], strict=True)
    )
    assert clf.history_[-1, "valid_acc"] == pytest.approx(clf.score(X, y))
    assert clf.history_[-1, "valid_robust_acc"] == pytest.approx(
        clf.score_adversarial(X, y, attack)
    )
    p = clf.predict_proba(X)[np.arange(12), y]
    assert clf.history_[-1, "valid_loss"] == pytest.approx(-np.log(p).mean(), rel=1e-5)


def _pair(data):
    from skorch.dataset import Dataset

    return Dataset(*data), data[1]


@pytest.mark.parametrize("reload", [False, True])
def test_training_goes_on_from_the_raw_weights(data, reload):
    raw, _ = raw_path(data, max_epochs=8)
    steps = []
    clf = make(WeightAveraging(decay=0.9), Watch(steps)).fit(*data)
    if reload:
        clf = pickle.loads(pickle.dumps(clf))
        watch = next(cb for _, cb in clf.callbacks_ if isinstance(cb, Watch))
        steps = watch.steps
    whole = make(WeightAveraging(decay=0.9), max_epochs=8).fit(*data)
    clf.partial_fit(*data)
    # batches are drawn anew in each call, hence only the first step can be compared in place
    assert len(steps) == 24
    assert_array_equal(steps[:12], raw[:12])
    from_average = np.linalg.norm(steps[12] - weights(whole))
    assert np.linalg.norm(steps[12] - raw[11]) < from_average
    assert np.abs(steps[12] - raw[11]).max() <= 0.05 * 1.01  # one step of Adam


def test_warm_start_and_a_fresh_fit(data):
    clf = make(WeightAveraging(decay=0.9), warm_start=True).fit(*data)
    first = weights(clf)
    clf.fit(*data)
    assert len(clf.history_) == 8
    (callback,) = (cb for _, cb in clf.callbacks_ if isinstance(cb, WeightAveraging))
    assert callback.n_averaged_ == 24
    clf.set_params(warm_start=False).fit(*data)
    assert_array_equal(weights(clf), first)


def test_weights_that_somebody_else_has_set_are_respected(data):
    steps = []
    clf = make(WeightAveraging(decay=0.9), Watch(steps)).fit(*data)
    with torch.no_grad():
        for p in clf.module_.parameters():
            p.fill_(0.25)
    clf.partial_fit(*data)
    assert np.abs(steps[12] - 0.25).max() <= 0.05 * 1.5


@pytest.mark.parametrize("at", [2, 7])
def test_interrupt_leaves_the_average(data, at):
    raw, _ = raw_path(data)
    clf = make(WeightAveraging(decay=0.9), Watch([], interrupt_at=at)).fit(*data)
    average = raw[0].astype(float)
    for d in range(1, at):
        decay = min(0.9, (1 + d) / (10 + d))
        average = decay * average + (1 - decay) * raw[d]
    assert_allclose(weights(clf), average, rtol=1e-5, atol=1e-6)
    assert np.isfinite(clf.predict_proba(data[0])).all()
    steps = []
    clf.callbacks_[-2:-1] = [("watch", Watch(steps))]
    clf.partial_fit(*data)
    assert np.abs(steps[0] - raw[at - 1]).max() <= 0.05 * 1.5


def test_diverged_training_can_be_taken_up_again(data):
    class Poison(Callback):
        def on_batch_end(self, net, training=False, **kwargs):
            if training and len(net.history) == 2:
                with torch.no_grad():
                    next(net.module_.parameters()).fill_(torch.nan)

    clf = make(WeightAveraging(decay=0.9), ("poison", Poison()))
    # the poison is in the average of the next batch
    with pytest.raises(FloatingPointError):
        clf.fit(*data)
    assert np.isfinite(clf.predict_proba(data[0])).all()
    clf.callbacks_ = [c for c in clf.callbacks_ if c[0] != "poison"]
    assert np.isfinite(clf.partial_fit(*data).predict_proba(data[0])).all()


def test_with_a_schedule_clone_and_parameters(data):
    clf = make(
        ("average", WeightAveraging()), LearningRateSchedule("cyclic"),
        callbacks__average__decay=0.5,
    )  # fmt: skip
    clf = clone(clf).fit(*data)
    assert dict(clf.callbacks_)["average"].decay == 0.5
    assert clone(WeightAveraging("swa", start=0.2)).get_params() == {
        "kind": "swa", "decay": 0.995, "start": 0.2, "batch_norm": "copy"
    }  # fmt: skip
    fitted = dict(clf.callbacks_)["average"]
    assert clone(fitted).get_params() == fitted.get_params()


@pytest.mark.parametrize(
    ("params", "match"),
    [({"kind": "mean"}, "kind"), ({"decay": 1.0}, "decay"), ({"start": 50}, "start"),
     ({"batch_norm": "share"}, "batch_norm")],
)  # fmt: skip
def test_bad_parameters(params, match, data):
    with pytest.raises(ValueError, match=match):
        make(WeightAveraging(**params)).fit(*data)
