"""Ctrl-C ends a search, and leaves a training on its own with a usable model that says so."""

import signal
import warnings

import numpy as np
import pytest
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import Callback, EarlyStopping
from skorch.dataset import ValidSplit

from robustsk import (
    AdversarialFineTuneClassifier,
    PGDATClassifier,
    PretrainTuneClassifier,
    RobustSelfTrainingClassifier,
    StandardClassifier,
    StaticEnsembleATClassifier,
)
from robustsk.training import RobustEarlyStopping


@pytest.fixture(autouse=True)
def python_handles_interrupts():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Press(Callback):
    """Press Ctrl-C at a batch or at the end of an epoch, counted over all copies, once."""

    count = None

    def __init__(self, batch=None, epoch=None):
        self.batch = batch
        self.epoch = epoch

    def on_batch_end(self, net, batch=None, training=False, **kwargs):
        if training and self.batch is not None:
            self._press(self.batch)

    def on_epoch_end(self, net, **kwargs):
        if self.epoch is not None:
            self._press(self.epoch)

    def _press(self, at):
        Press.count += 1
        if Press.count == at:
            signal.raise_signal(signal.SIGINT)


def press_at_2(x):
    """An augmentation, which parts of a training take over where callbacks are not."""
    Press()._press(2)
    return x


@pytest.fixture(autouse=True)
def not_pressed():
    Press.count = 0


def fit_quietly(clf, X, y):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return clf.fit(X, y)


@pytest.mark.parametrize(("at", "place"), [({"batch": 4}, (2, 1)), ({"epoch": 2}, (2, 3))])
def test_a_fit_on_its_own_says_where_it_was_cut(make, data, at, place):
    clf = make(PGDATClassifier, max_epochs=5, callbacks=[Press(**at)])
    with pytest.warns(UserWarning, match=f"interrupted in epoch {place[0]}, after {place[1]} "):
        clf.fit(*data)
    assert clf.interrupted_ == {"epoch": place[0], "batch": place[1]}
    assert np.isfinite(clf.decision_function(data[0])).all()
    assert fit_quietly(clf, *data).interrupted_ is None


def test_a_pipeline_on_its_own_is_usable_too(make, data):
    model = make_pipeline(StandardScaler(), make(PGDATClassifier, callbacks=[Press(batch=2)]))
    with pytest.warns(UserWarning, match="interrupted in epoch 1"):
        model.fit(*data)
    assert model.predict(data[0]).shape == data[1].shape


def test_partial_fit_says_it_as_well(make, data):
    clf = make(PGDATClassifier, callbacks=[Press(batch=7)]).fit(*data)
    with pytest.warns(UserWarning, match="interrupted in epoch 3"):
        clf.partial_fit(*data)
    assert clf.interrupted_["epoch"] == 3


@pytest.mark.parametrize("at", [{"batch": 4}, {"epoch": 2}], ids=["batch", "epoch"])
@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "pipeline"])
def test_a_search_stops(make, data, at, wrapped):
    clf = make(StandardClassifier, max_epochs=3, callbacks=[Press(**at)])
    model = make_pipeline(StandardScaler(), clf) if wrapped else clf
    name = "standardclassifier__lr" if wrapped else "lr"
    search = GridSearchCV(model, {name: [0.1, 0.01]}, cv=2)
    with pytest.raises(KeyboardInterrupt):
        search.fit(*data)
    assert Press.count == next(iter(at.values()))
    assert not hasattr(search, "cv_results_")


def test_so_does_a_cross_validation_of_what_trains_in_two_stages(make, data):
    clf = make(
        AdversarialFineTuneClassifier, standard_epochs=2, standard_callbacks=[Press(batch=2)]
    )
    with pytest.raises(KeyboardInterrupt):
        cross_val_score(clf, *data, cv=2)
    assert Press.count == 2


def test_a_part_of_a_training_lets_the_whole_speak(make, data):
    clf = make(
        AdversarialFineTuneClassifier, standard_epochs=2, standard_callbacks=[Press(batch=2)]
    )
    with pytest.warns(UserWarning, match="was interrupted") as caught:
        clf.fit(*data)
    assert [str(w.message).split(" was ")[0] for w in caught] == [
        "The training of AdversarialFineTuneClassifier"
    ]
    assert clf.interrupted_ == {"epoch": 1, "batch": 2}
    Press.count = 0
    clf = make(StaticEnsembleATClassifier, source_epochs=1, augmentation=press_at_2)
    with pytest.warns(UserWarning, match="StaticEnsembleATClassifier was interrupted"):
        clf.fit(*data)
    assert clf.interrupted_ == {"epoch": 1, "batch": 1}


def test_what_is_half_trained_neither_labels_nor_is_tuned(make, data):
    X, y = data
    clf = make(RobustSelfTrainingClassifier, augmentation=press_at_2)
    with pytest.raises(KeyboardInterrupt):
        clf.fit(X, np.where(np.arange(len(y)) < 30, y, -1))
    Press.count = 0
    pretrainer = make(StandardClassifier, callbacks=[Press(batch=2)])
    with (
        pytest.warns(UserWarning, match="interrupted"),
        pytest.raises(KeyboardInterrupt),
    ):
        PretrainTuneClassifier(pretrainer, make(PGDATClassifier)).fit(X, y)


def test_a_callback_that_ends_a_training_is_no_interrupt(make, data):
    stop = EarlyStopping(monitor="train_loss", patience=1, threshold=10.0)
    clf = make(StandardClassifier, max_epochs=5, callbacks=[stop])
    assert fit_quietly(clf, *data).interrupted_ is None
    assert len(clf.history_) == 2
    search = GridSearchCV(clf, {"lr": [0.1, 0.01]}, cv=2).fit(*data)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    robust = make(
        PGDATClassifier, max_epochs=9, lr=0.0, train_split=ValidSplit(3),
        callbacks=[RobustEarlyStopping(patience=1)],
    )  # fmt: skip
    assert fit_quietly(robust, *data).interrupted_ is None
    assert len(robust.history_) == 2


def test_a_handler_that_goes_on_is_no_interrupt(make, data):
    calls = []
    signal.signal(signal.SIGINT, lambda *args: calls.append(args))
    stop = EarlyStopping(monitor="train_loss", patience=1, threshold=10.0)
    clf = make(StandardClassifier, max_epochs=5, callbacks=[Press(epoch=1), stop])
    assert fit_quietly(clf, *data).interrupted_ is None
    assert len(calls) == 1
