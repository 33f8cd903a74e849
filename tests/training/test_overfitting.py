"""The watch for catastrophic overfitting."""

import pickle
import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.datasets import make_blobs
from skorch.callbacks import Callback
from skorch.dataset import ValidSplit

from robustsk import PGD, FastATClassifier, PGDATClassifier
from robustsk.training import CatastrophicOverfittingStop

torch.set_num_threads(1)


@pytest.fixture
def data():
    return make_blobs(60, 4, centers=3, cluster_std=0.4, center_box=(-2, 2), random_state=3)


def weights(net):
    return torch.cat([p.detach().flatten() for p in net.module_.parameters()]).numpy().copy()


def make(*callbacks, **params):
    settings = {
        "module": "mlp",
        "module__hidden_sizes": (8,),
        "adversary": PGD(eps=0.1, n_steps=2),
        "lr": 0.05,
        "max_epochs": 6,
        "batch_size": 16,
        "random_state": 0,
        "callbacks": list(callbacks),
    }
    return PGDATClassifier(**{**settings, **params})


class Collapse(Callback):
    """Turn the network round in one batch, as if robustness had collapsed."""

    def __init__(self, epoch, batch=4):
        self.epoch = epoch
        self.batch = batch
        self.before = {}

    def on_batch_end(self, net, training=False, **kwargs):
        if training and (len(net.history), len(net.history[-1]["batches"])) == (
            self.epoch,
            self.batch,
        ):
            with torch.no_grad():
                for p in list(net.module_.parameters())[-2:]:
                    p.neg_()

    def on_epoch_end(self, net, **kwargs):
        self.before[len(net.history)] = weights(net)


def test_a_drop_stops_the_training_and_restores_the_weights(data):
    collapse = Collapse(epoch=5)
    watch = CatastrophicOverfittingStop(threshold=0.3)
    with pytest.warns(UserWarning, match=r"stopped in epoch 5.*fell from .* to .*overfitting"):
        clf = make(collapse, watch).fit(*data)
    seen = clf.history[:, "watched_robust_acc"]
    assert len(seen) == 5
    assert seen[4] < max(seen[:4]) - 0.3
    best = 4 - int(np.argmax(seen[3::-1]))  # the last of the best
    assert_array_equal(weights(clf), collapse.before[best])
    assert clf.history[-1]["catastrophic_overfitting"] is True
    assert "catastrophic_overfitting" not in clf.history[-2]
    fitted = clf.callbacks_[-2][1]
    assert fitted.fired_
    assert fitted.best_ == max(seen)
    assert clf.score(*data) > 0.8
    assert not clf.module_.training


def test_a_drop_within_the_threshold_does_not(data):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clf = make(Collapse(epoch=5), CatastrophicOverfittingStop(threshold=1.0)).fit(*data)
    assert len(clf.history) == 6
    seen = clf.history[:, "watched_robust_acc"]
    assert seen[4] < seen[3] - 0.3
    assert not clf.callbacks_[-2][1].fired_


def test_training_does_not_depend_on_being_watched(data):
    assert_array_equal(
        weights(make(CatastrophicOverfittingStop(threshold=1.0, every=1)).fit(*data)),
        weights(make().fit(*data)),
    )


def test_looks_between_batches(data):
    watch = CatastrophicOverfittingStop(threshold=0.3, every=2)
    with pytest.warns(UserWarning, match="epoch 5"):
        clf = make(Collapse(5, batch=1), watch).fit(*data)
    assert len(clf.history) == 5
    assert len(clf.history[-1]["batches"]) < 4
    assert clf.score(*data) > 0.8


@pytest.mark.parametrize("n_samples", [1, 7, 60, 500])
def test_the_accuracy_is_that_of_the_samples(data, n_samples):
    X, y = data
    watch = CatastrophicOverfittingStop(PGD(eps=0, n_steps=1), n_samples=n_samples, threshold=1.0)
    clf = make(watch, max_epochs=2, lr=0.01).fit(X, y)
    rows = np.linspace(0, 59, min(60, n_samples)).astype(int)
    assert clf.history[-1]["watched_robust_acc"] == clf.score(X[rows], y[rows])


def test_weighted_accuracy(data):
    X, y = data
    weight = np.linspace(0.1, 5, len(y))
    watch = CatastrophicOverfittingStop(PGD(eps=0, n_steps=1), threshold=1.0, name="seen")
    clf = make(watch, max_epochs=1, lr=0.01).fit(X, y, weight)
    right = clf.predict(X) == y
    assert 0 < right.mean() < 1
    assert_allclose(clf.history[-1]["seen"], weight[right].sum() / weight.sum())


def test_default_attack_has_ten_steps_and_the_threat_model(data, monkeypatch):
    used = []
    original = PGD._attack_batch

    def spy(self, batch):
        used.append((self.n_steps, self.eps, self.norm, batch.keep))
        return original(self, batch)

    monkeypatch.setattr(PGD, "_attack_batch", spy)
    make(
        CatastrophicOverfittingStop(), max_epochs=1, adversary=PGD(norm=2, eps=0.7, n_steps=1)
    ).fit(*data)
    assert (10, 0.7, 2, "first") in used
    assert (1, 0.7, 2, "last") in used


def test_held_out_data_are_not_looked_at(data):
    clf = make(CatastrophicOverfittingStop(threshold=1.0), train_split=ValidSplit(3)).fit(*data)
    assert np.isfinite(clf.history[:, "valid_loss"]).all()
    assert len(clf.history[:, "watched_robust_acc"]) == 6


def test_goes_on_and_pickles(data):
    watch = CatastrophicOverfittingStop(threshold=1.0)
    clf = make(watch, max_epochs=2).fit(*data)
    other = pickle.loads(pickle.dumps(clf))
    assert_array_equal(weights(other.partial_fit(*data)), weights(clf.partial_fit(*data)))
    assert watch.get_params() == clone(watch).get_params()


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ({"threshold": 0}, ValueError, "threshold must be in"),
        ({"threshold": 1.5}, ValueError, "threshold must be in"),
        ({"n_samples": 0}, ValueError, "n_samples must be an integer"),
        ({"every": 0}, ValueError, "every must be an integer"),
        ({"attack": "pgd"}, TypeError, "must be an attack"),
    ],
)
def test_bad_parameters(data, params, error, message):
    with pytest.raises(error, match=message):
        make(CatastrophicOverfittingStop(**params)).fit(*data)


def test_fast_training_is_watched(data):
    clf = FastATClassifier(
        "mlp",
        max_epochs=2,
        adversary__eps=0.1,
        callbacks__watch__threshold=0.9,
        random_state=0,
    ).fit(*data)
    assert dict(clf.callbacks_)["watch"].threshold == 0.9
    assert len(clf.history[:, "watched_robust_acc"]) == 2
    plain = FastATClassifier("mlp", watch=False, max_epochs=2, adversary__eps=0.1, random_state=0)
    assert "watch" not in dict(plain.fit(*data).callbacks_)
    assert_array_equal(weights(plain), weights(clf))
