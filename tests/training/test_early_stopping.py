"""The weights of the most robust epoch are what a training leaves."""

import pickle

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from sklearn.base import clone
from sklearn.datasets import make_blobs
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import Callback
from skorch.dataset import ValidSplit
from torch.utils.data import TensorDataset

from robustsk import PGD, PGDATClassifier
from robustsk.training import RobustEarlyStopping, WeightAveraging

ATTACK = PGD(eps=0.5, n_steps=3, random_state=0)
SPLIT = ValidSplit(3, stratified=True)


class Watch(Callback):
    """Note the weights at the end of each epoch, and interrupt if asked."""

    def __init__(self, epochs, interrupt_in=None):
        self.epochs = epochs
        self.interrupt_in = interrupt_in

    def on_batch_begin(self, net, training=False, **kwargs):
        if training and len(net.history) == self.interrupt_in:
            raise KeyboardInterrupt

    def on_epoch_end(self, net, **kwargs):
        self.epochs.append(weights(net))


def weights(net):
    return torch.cat([p.detach().flatten() for p in net.module_.parameters()]).numpy().copy()


@pytest.fixture(params=["ints", "strings"])
def data(request):
    X, y = make_blobs(
        60, n_features=4, centers=3, cluster_std=1.2, center_box=(-2, 2), random_state=3
    )
    return X, (y if request.param == "ints" else np.array(["ant", "bee", "cat"])[y])


def make(*callbacks, **params):
    defaults = {
        "module": "mlp", "module__hidden_sizes": (8,), "max_epochs": 8, "batch_size": 16,
        "lr": 0.2, "adversary": PGD(eps=0.5, n_steps=2), "random_state": 0, "device": "cpu",
        "train_split": SPLIT, "callbacks": list(callbacks),
    }  # fmt: skip
    return PGDATClassifier(**{**defaults, **params})


def held_out(data):
    from skorch.dataset import Dataset

    X, y = data
    encoded = np.unique(y, return_inverse=True)[1]
    rows = SPLIT(Dataset(X, encoded), encoded)[1].indices
    return X[rows], y[rows]


def test_best_weights_are_in_place(data):
    epochs = []
    stop = RobustEarlyStopping(ATTACK)
    clf = make(Watch(epochs), stop).fit(*data)
    values = np.array(clf.history_[:, "valid_robust_acc"])
    assert len(values) == 8
    assert len(set(values)) > 2
    assert values.argmax() < 7  # otherwise this test says nothing
    assert stop.best_epoch_ == values.argmax() + 1
    assert stop.best_score_ == values.max()
    assert_array_equal(weights(clf), epochs[values.argmax()])
    assert clf.score_adversarial(*held_out(data), ATTACK) == pytest.approx(values.max())
    marked = clf.history_[:, "valid_robust_acc_best"]
    assert max(i for i, best in enumerate(marked) if best) == values.argmax()


def test_default_attack_is_that_of_the_adversary(data):
    stop = RobustEarlyStopping()
    clf = make(stop, adversary__norm=2, adversary__eps=0.7).fit(*data)
    attack = PGD(norm=2, eps=0.7, n_steps=10, random_state=0)
    assert clf.score_adversarial(*held_out(data), attack) == pytest.approx(stop.best_score_)


@pytest.mark.dealt
def test_watching_does_not_change_the_path(data):
    seen = [[], []]
    make(Watch(seen[0]), RobustEarlyStopping()).fit(*data)
    make(Watch(seen[1])).fit(*data)
    assert_array_equal(seen[0], seen[1])


@pytest.mark.dealt
@pytest.mark.parametrize("patience", [1, 2])
def test_patience(data, patience):
    everything = RobustEarlyStopping(ATTACK)
    values = np.array(make(everything).fit(*data).history_[:, "valid_robust_acc"])
    best, expected = -1, len(values)
    for i, value in enumerate(values):
        if value > (values[best] if best >= 0 else -1):
            best = i
        elif i - best >= patience:
            expected = i + 1
            break
    clf = make(RobustEarlyStopping(ATTACK, patience=patience)).fit(*data)
    assert len(clf.history_) == expected < len(values)
    assert dict(clf.callbacks_)["RobustEarlyStopping"].best_epoch_ == best + 1


def test_after_an_interrupt(data):
    epochs = []
    stop = RobustEarlyStopping(ATTACK)
    clf = make(Watch(epochs, interrupt_in=6), stop).fit(*data)
    assert len(epochs) == 5
    assert_array_equal(weights(clf), epochs[stop.best_epoch_ - 1])
    early = make(Watch([], interrupt_in=1), RobustEarlyStopping(ATTACK)).fit(*data)
    assert np.isfinite(early.predict_proba(data[0])).all()


@pytest.mark.dealt
def test_with_weight_averaging(data):
    """The average is what is scored, kept and restored."""
    epochs = []
    stop = RobustEarlyStopping(ATTACK)
    clf = make(WeightAveraging(decay=0.9), Watch(epochs), stop).fit(*data)
    assert_array_equal(weights(clf), epochs[stop.best_epoch_ - 1])
    assert stop.best_score_ == max(clf.history_[:, "valid_robust_acc"])
    plain = make(WeightAveraging(decay=0.9), max_epochs=stop.best_epoch_).fit(*data)
    assert_array_equal(weights(clf), weights(plain))
    interrupted = make(WeightAveraging(decay=0.9), Watch([], 7), RobustEarlyStopping(ATTACK))
    best = dict(interrupted.fit(*data).callbacks_)["RobustEarlyStopping"].best_epoch_
    assert_array_equal(weights(interrupted), epochs[best - 1])
    before = weights(interrupted)
    interrupted.set_params(callbacks__Watch__interrupt_in=None, lr=1e-9).partial_fit(*data)
    np.testing.assert_allclose(weights(interrupted), before, atol=1e-6)  # from the best ones on
    with pytest.raises(ValueError, match="list it after"):
        make(RobustEarlyStopping(ATTACK), WeightAveraging()).fit(*data)


def test_without_held_out_data(data):
    with pytest.raises(ValueError, match=r"held-out.*train_split=.*ValidSplit"):
        make(RobustEarlyStopping(), train_split=None).fit(*data)


@pytest.mark.parametrize("patience", [0, 1.5, -1])
def test_bad_patience(data, patience):
    with pytest.raises(ValueError, match="patience"):
        make(RobustEarlyStopping(patience=patience)).fit(*data)


def test_each_call_has_its_own_best(data):
    stop = RobustEarlyStopping(ATTACK)
    clf = make(stop, max_epochs=3).fit(*data)
    clf.partial_fit(*data)
    values = np.array(clf.history_[:, "valid_robust_acc"])
    assert len(values) == 6
    assert stop.best_epoch_ == 4 + values[3:].argmax()


@pytest.mark.dealt
def test_clones_pickles_and_searches(data):
    stop = RobustEarlyStopping(ATTACK, patience=3)
    assert clone(stop).get_params(deep=False).keys() == {"attack", "patience", "name"}
    clf = make(("stop", stop), max_epochs=2).fit(*data)
    assert clone(stop).patience == 3
    other = pickle.loads(pickle.dumps(clf))
    assert_array_equal(other.predict_proba(data[0]), clf.predict_proba(data[0]))
    search = GridSearchCV(
        clf, {"callbacks__stop__patience": [1, 2]}, cv=2, error_score="raise"
    ).fit(*data)  # fmt: skip
    assert search.best_params_["callbacks__stop__patience"] in (1, 2)


def test_data_in_a_dataset(data):
    X, y = data
    encoded = np.unique(y, return_inverse=True)[1]
    dataset = TensorDataset(torch.tensor(X, dtype=torch.float32), torch.tensor(encoded))
    stop = RobustEarlyStopping(ATTACK)
    clf = make(stop, max_epochs=3).fit(dataset)
    assert stop.best_score_ == max(clf.history_[:, "valid_robust_acc"])
