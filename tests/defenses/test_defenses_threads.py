"""Trainings in several threads, and predictions beside them: each as if it were alone."""

import os
import threading
from contextlib import contextmanager
from functools import partial

import joblib
import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import Callback, Initializer
from skorch.dataset import ValidSplit
from torch import nn

from robustsk import (
    AdversarialFineTuneClassifier,
    EnsembleDVERGE,
    EnsembleGAL,
    FreeATClassifier,
    PGDATClassifier,
    RobustSelfTrainingClassifier,
    StandardClassifier,
    TRADESClassifier,
)
from robustsk._generator import GeneratorState
from robustsk.training import AWP, Cutout, RandomCropFlip, WeightAveraging

#: How long a thread that ought to be done already is waited for.
PATIENCE = 60


class Noisy(nn.Module):
    """A network that draws random numbers in training: dropout after a normalisation."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 16)
        self.norm = nn.BatchNorm1d(16)
        self.dropout = nn.Dropout(0.3)
        self.last = nn.Linear(16, 3)

    def forward(self, x):
        x = self.norm(self.first(x.to(self.first.weight.dtype)))
        return self.last(self.dropout(torch.relu(x)))


def run_together(*functions):
    """Call functions in threads that begin at the same time; return what they return."""
    barrier, results = threading.Barrier(len(functions)), [None] * len(functions)

    def run(i):
        barrier.wait(PATIENCE)
        results[i] = functions[i]()

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    return results


@contextmanager
def generators_stay():
    """Check that torch's global generator is where it was."""
    torch.manual_seed(11)
    before = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), before)


def outcome(clf, X, y):
    """Train a copy, and return all that came of it: weights, buffers and losses."""
    clf = clone(clf).fit(X, y)
    parts = [t.numpy().ravel() for t in clf.module_.state_dict().values()]
    return np.concatenate([*parts, clf.history_[:, "train_loss"]])


def assert_same(found, expected):
    """Compare bit for bit."""
    for one, other in zip(found, expected, strict=True):
        assert_array_equal(one, other)


@pytest.fixture
def pairs(make, data, images):
    """Pairs of calls that train two estimators."""
    (X, y), (x, t) = data, images
    partly = np.where(np.arange(len(y)) < 30, y, -1)
    image = {"module": "small_cnn", "max_epochs": 1}

    def fit(cls, X=X, y=y, **params):
        return partial(outcome, make(cls, **params), X, y)

    noisy = fit(PGDATClassifier, module=Noisy)
    return [
        (noisy, fit(PGDATClassifier, module=Noisy, random_state=1)),
        (noisy, fit(TRADESClassifier, module=Noisy, train_split=ValidSplit(3))),
        (
            fit(PGDATClassifier, x, t, augmentation=RandomCropFlip(padding=1), **image),
            fit(PGDATClassifier, x, t, augmentation=Cutout(3), random_state=1, **image),
        ),
        (fit(FreeATClassifier, module=Noisy, n_replays=2), fit(EnsembleDVERGE, n_steps=2)),
        (fit(EnsembleGAL), fit(EnsembleGAL, random_state=1)),
        (
            fit(RobustSelfTrainingClassifier, X, partly, module=Noisy),
            fit(PGDATClassifier, module=Noisy, weight_perturbation=AWP(n_rounds=2)),
        ),
        (
            fit(AdversarialFineTuneClassifier, module=Noisy, constraint="dual"),
            fit(StandardClassifier, module=Noisy),
        ),
        (
            fit(
                PGDATClassifier,
                module=Noisy,
                train_split=ValidSplit(3),
                callbacks=[WeightAveraging(decay=0.9, batch_norm="recompute")],
            ),
            noisy,
        ),
    ]


def check_pairs(pairs, n_times):
    for pair in pairs:
        alone = [fit() for fit in pair]
        for _ in range(n_times):
            with generators_stay():
                together = run_together(*pair)
            assert_same(together, alone)


def test_two_at_a_time_as_each_alone(pairs):
    check_pairs(pairs, n_times=1)


@pytest.mark.slow
def test_two_at_a_time_as_each_alone_often(pairs):
    check_pairs(pairs, n_times=20)


@pytest.mark.slow
def test_two_of_a_kind_as_each_alone(cls, make, data):
    fits = [partial(outcome, make(cls, random_state=seed), *data) for seed in (0, 1)]
    check_pairs([fits], n_times=3)


def test_clones_share_no_state(make, data):
    """Nested objects and callbacks are written to in training; those of copies are copies."""
    shared = make(
        PGDATClassifier,
        module=Noisy,
        weight_perturbation=AWP(),
        callbacks=[WeightAveraging(decay=0.5)],
    )
    fits = [lambda: outcome(shared, *data)] * 4
    alone = fits[0]()
    assert_same(run_together(*fits), [alone] * 4)


def search(make, data, n_jobs):
    clf = make(PGDATClassifier, module=Noisy, max_epochs=1)
    grid = {"lr": [0.005, 0.05], "adversary__eps": [0.0, 0.1]}
    with joblib.parallel_backend("threading"):
        found = GridSearchCV(clf, grid, cv=3, n_jobs=n_jobs).fit(*data)
    return {k: v for k, v in found.cv_results_.items() if "time" not in k}


def test_grid_search_in_threads(make, data):
    with generators_stay():
        found = search(make, data, n_jobs=4)
    expected = search(make, data, n_jobs=1)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert_array_equal(found[name], values)


def test_prediction_waits_for_no_training(make, data, images):
    """The other training is held up in the midst of a step until the prediction is there."""
    X, _ = data
    fitted = make(TRADESClassifier, module=Noisy).fit(*data)
    alone = fitted.decision_function(X)
    in_a_step, predicted = threading.Event(), threading.Event()
    waited = []

    def hold_up(x):
        if not in_a_step.is_set():
            in_a_step.set()
            waited.append(predicted.wait(PATIENCE))
        return x + 0.1 * torch.randn_like(x)

    held = make(PGDATClassifier, augmentation=hold_up, module="small_cnn", max_epochs=1)

    def predict():
        in_a_step.wait(PATIENCE)
        found = fitted.decision_function(X)
        predicted.set()
        return found

    with generators_stay():
        trained, found = run_together(lambda: outcome(held, *images), predict)
    assert waited == [True]
    assert_array_equal(found, alone)
    assert_array_equal(trained, outcome(held, *images))


class Everywhere(Callback):
    """Call a function at the beginning, before every batch, and after every epoch."""

    def __init__(self, function):
        self.function = function

    def on_train_begin(self, net, **kwargs):
        self.function()

    def on_batch_begin(self, net, **kwargs):
        self.function()

    def on_epoch_end(self, net, **kwargs):
        self.function()


def test_a_callback_may_wait_for_a_training_in_another_thread(make, data):
    X, y = data
    beside = []

    def train_another():
        other = make(PGDATClassifier, module=Noisy, random_state=len(beside))
        beside.extend(run_together(lambda: outcome(other, X, y)))

    clf = make(PGDATClassifier, module=Noisy)
    alone = outcome(clf, X, y)
    found = outcome(clf.set_params(callbacks=[Everywhere(train_another)]), X, y)
    assert len(beside) == 9
    assert not any(result is None for result in beside)
    assert_array_equal(found, alone)


class RandomlyMoved(torch.utils.data.Dataset):
    """Samples to which noise is added where they are fetched."""

    def __init__(self, X):
        self.X = torch.from_numpy(X)

    def __len__(self):
        return len(self.X)

    def __getitem__(self, index):
        return self.X[index] + torch.randn(4)


def test_a_dataset_that_draws_leaves_the_generator_alone_in_prediction(make, data32):
    X, y = data32
    clf = make(PGDATClassifier).fit(X, y)
    torch.manual_seed(11)
    one = clf.decision_function(RandomlyMoved(X))
    assert_array_equal(clf.decision_function(RandomlyMoved(X)), one)
    torch.randn(1)
    assert not np.array_equal(clf.decision_function(RandomlyMoved(X)), one)
    with generators_stay():
        clf.predict(RandomlyMoved(X))


# --- the state itself ------------------------------------------------------------------


def test_a_state_goes_on_where_it_was():
    own, other = GeneratorState(3), GeneratorState(4)
    found = []
    with generators_stay():
        for _ in range(3):
            with own.in_use():
                found.append(torch.rand(2))
                with other.in_use():
                    torch.rand(5)
                with own.in_use():
                    found.append(torch.rand(1))
        ahead = own.copy()
        found.extend(own.draw(torch.rand(1) for _ in range(2)))
    torch.manual_seed(3)
    assert_array_equal(torch.cat(found), torch.cat([torch.rand(n) for n in (2, 1) * 3 + (1, 1)]))
    with ahead.in_use():
        assert_array_equal(torch.rand(1), found[-2])


def test_a_copy_in_the_midst_of_a_block_goes_on_from_there():
    own = GeneratorState(3)
    with own.in_use():
        torch.rand(2)
        ahead = own.copy()
        expected = torch.rand(1)
    with ahead.in_use():
        assert torch.rand(1) == expected


def test_an_error_in_a_block_puts_the_generator_back():
    own = GeneratorState(3)

    def fail():
        with own.in_use():
            torch.rand(2)
            raise RuntimeError("no luck")

    with generators_stay(), pytest.raises(RuntimeError, match="no luck"):
        fail()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_does_not_wait_for_threads_it_does_not_have():
    held, forked = threading.Event(), threading.Event()

    def hold():
        with GeneratorState(0).in_use():
            held.set()
            forked.wait(PATIENCE)

    thread = threading.Thread(target=hold, daemon=True)
    thread.start()
    held.wait(PATIENCE)
    child = os.fork()
    if child == 0:
        result = [None]

        def draw():
            with GeneratorState(0).in_use():
                result[0] = True

        beside = threading.Thread(target=draw, daemon=True)
        beside.start()
        beside.join(5)
        os._exit(0 if result[0] else 1)
    forked.set()
    _, status = os.waitpid(child, 0)
    thread.join(PATIENCE)
    assert os.waitstatus_to_exitcode(status) == 0


def test_callbacks_that_draw(data):
    """They draw from the state of the training, which they find as they have left it."""
    X, y = data

    def fit(seed):
        start = Initializer("*weight", fn=partial(nn.init.normal_, std=0.2))
        clf = PGDATClassifier(
            adversary__eps=0.05, callbacks=[start, Shaken()], max_epochs=2, random_state=seed,
            device="cpu",
        )  # fmt: skip
        return outcome(clf, X, y)

    with generators_stay():
        first = fit(0)
        assert_same([fit(0)], [first])
        assert not np.array_equal(fit(1), first)


class Shaken(Callback):
    """Noise on the weights after each step."""

    def on_batch_end(self, net, training, **kwargs):
        if training:
            with torch.no_grad():
                for p in net.module_.parameters():
                    p.add_(1e-3 * torch.randn_like(p))


def test_loans_are_given_back_in_any_order():
    with generators_stay():
        states = [GeneratorState(seed) for seed in range(3)]
        alone = [torch.randn(6, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
        drawn = [[], [], []]
        contexts = [state.lent() for state in states]
        for i in (0, 1, 2):
            contexts[i].__enter__()
            drawn[i].append(torch.randn(3))
        with states[1].copy().in_use():  # those of a hard block are nobody else's
            torch.randn(5)
        drawn[2].append(torch.randn(3))
        for i in (0, 2, 1):
            contexts[i].__exit__(None, None, None)
        for i in (0, 1):
            with states[i].in_use():
                drawn[i].append(torch.randn(3))
        for numbers, expected in zip(drawn, alone, strict=True):
            assert_array_equal(torch.cat(numbers), expected)
