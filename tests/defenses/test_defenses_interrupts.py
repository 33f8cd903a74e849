"""Ctrl-C at any moment of a training: no step is left half done, and the model can be used."""

import os
import signal
import threading
import time

import numpy as np
import pytest
import torch
from defense_paths import TRAINING, one_of_each
from skorch.callbacks import Callback
from torch import nn

from robustsk import (
    AdversarialFineTuneClassifier,
    EnsembleDVERGE,
    FastATClassifier,
    FreeATClassifier,
    PGDATClassifier,
    RobustSelfTrainingClassifier,
    StandardClassifier,
    SupervisedContrastiveClassifier,
    TRADESClassifier,
)
from robustsk._generator import GeneratorState
from robustsk._interrupts import uninterrupted
from robustsk.training import AWP, WeightAveraging
from robustsk.training._weights import copy_of_state, put

pytestmark = pytest.mark.filterwarnings("ignore:The training of .* was interrupted:UserWarning")


@pytest.fixture(autouse=True)
def python_handles_interrupts():
    """Have Ctrl-C raise KeyboardInterrupt, as it does in a terminal, and see that it stays so."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    after = signal.signal(signal.SIGINT, before)
    assert after is signal.default_int_handler


def interrupt():
    signal.raise_signal(signal.SIGINT)


def is_equal(state, other):
    return state.keys() == other.keys() and all(torch.equal(state[k], other[k]) for k in state)


# --- putting it off ----------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 3])
def test_an_interrupt_waits_for_the_end_of_the_block(depth):
    done = []

    def nested(level):
        with uninterrupted():
            if level > 1:
                nested(level - 1)
            else:
                interrupt()
                interrupt()
            done.append(level)

    with pytest.raises(KeyboardInterrupt):
        nested(depth)
    assert done == list(range(1, depth + 1))


def test_a_handler_of_the_user_is_called_once_and_stays():
    calls = []

    def handler(number, frame):
        calls.append(number)

    signal.signal(signal.SIGINT, handler)
    with uninterrupted():
        interrupt()
        interrupt()
        assert calls == []
    assert calls == [signal.SIGINT]
    assert signal.signal(signal.SIGINT, signal.default_int_handler) is handler


def test_an_interrupt_arrives_where_it_may():
    done = []

    def run():
        with uninterrupted() as interruptible:
            try:
                interrupt()
                done.append("before")
                with interruptible():
                    done.append("never")
            finally:
                interrupt()
                done.append("after")

    with pytest.raises(KeyboardInterrupt):
        run()
    assert done == ["before", "after"]


def test_an_interrupt_arrives_nowhere_in_a_block_that_puts_it_off():
    done = []

    def run():
        with uninterrupted():
            with uninterrupted() as interruptible, interruptible():
                interrupt()
            done.append("after")

    with pytest.raises(KeyboardInterrupt):
        run()
    assert done == ["after"]


def test_an_interrupt_is_not_lost_where_the_block_fails():
    def fail(arrives):
        with uninterrupted():
            if arrives:
                interrupt()
            raise ValueError("broken")

    with pytest.raises(KeyboardInterrupt) as caught:
        fail(arrives=True)
    assert isinstance(caught.value.__context__, ValueError)
    with pytest.raises(ValueError, match="broken"):
        fail(arrives=False)


@pytest.mark.parametrize("disposition", [signal.SIG_IGN, signal.SIG_DFL])
def test_a_signal_without_a_handler_in_python_is_left_alone(disposition):
    signal.signal(signal.SIGINT, disposition)
    with uninterrupted():
        during = signal.getsignal(signal.SIGINT)
    assert signal.signal(signal.SIGINT, signal.default_int_handler) == during == disposition


def test_other_threads_leave_the_handler_alone():
    found = []

    def look():
        with uninterrupted():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler]


def test_weights_are_replaced_all_or_none():
    tensors = [torch.zeros(2) for _ in range(3)]

    def values():
        for number in (1.0, 2.0, 3.0):
            if number == 2:
                interrupt()
            yield torch.full((2,), number)

    with pytest.raises(KeyboardInterrupt):
        put(tensors, values())
    assert [t[0].item() for t in tensors] == [1, 2, 3]


# --- steps -------------------------------------------------------------------------------


class InterruptedSGD(torch.optim.SGD):
    """Momentum, and an interrupt halfway through one of its steps."""

    def __init__(self, params, lr, at=2):
        super().__init__(params, lr, momentum=0.9)
        self.at = at
        self.n_steps = 0

    def step(self, closure=None):
        loss = closure()
        parameters = [p for group in self.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters]
        half = len(parameters) // 2
        for part in (range(half), range(half, len(parameters))):
            for p in parameters:
                p.grad = None
            for i in part:
                parameters[i].grad = gradients[i]
            super().step()
            if part.start == 0 and self.n_steps == self.at:
                interrupt()
        self.n_steps += 1
        return loss


def recording(cls):
    """Return a defence that keeps what its network was before the first and after each step."""

    class Recording(cls):
        def _take_step(self, *args, **kwargs):
            known = self.__dict__.setdefault("recorded", [copy_of_state(self.module_)])
            step = super()._take_step(*args, **kwargs)
            known.append(copy_of_state(self.module_))
            return step

    return Recording


def check_usable(clf, X, y):
    """Check that an estimator predicts and goes on, and that nobody holds the generators."""
    assert not any(m.training for m in clf.module_.modules())
    assert all(p.requires_grad for p in clf.module_.parameters())
    assert np.isfinite(clf.decision_function(X)).all()
    before = torch.get_rng_state()
    clf.set_params(max_epochs=1)
    thread = threading.Thread(target=lambda: clf.partial_fit(X, y), daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    assert "train_batch_count" in clf.history_[-1]
    assert np.isfinite(clf.decision_function(X)).all()
    assert torch.equal(torch.get_rng_state(), before)


CASES = {
    "free": (FreeATClassifier, {"n_replays": 2}),
    "alternate": (AdversarialFineTuneClassifier, {"standard_epochs": 0, "decay_epochs": 2}),
    "awp": (TRADESClassifier, {"weight_perturbation": AWP(n_rounds=2)}),
    "ensemble": (EnsembleDVERGE, {"n_steps": 2}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_step_is_taken_to_its_end(make, data, case):
    cls, params = CASES[case]
    params = {"optimizer": InterruptedSGD, "lr": 0.05, **params}
    steps = make(recording(cls), **params, optimizer__at=-1).fit(*data).recorded
    clf = make(cls, **params).fit(*data)
    assert "train_batch_count" not in clf.history_[-1]
    assert is_equal(clf.module_.state_dict(), steps[3])
    assert not is_equal(steps[3], steps[2])
    check_usable(clf, *data)


@one_of_each(*TRAINING)
def test_no_parameter_misses_a_step(cls, make, data):
    adam = {"optimizer": torch.optim.Adam}
    clf = make(cls, callbacks=[Halfway()], **adam).fit(*data)
    assert clf.optimizer_.state  # some step has been taken
    numbers = {float(s["step"]) for s in clf.optimizer_.state.values()}
    assert len(numbers) == 1
    check_usable(clf, *data)


class Halfway(Callback):
    """Interrupt between the gradient and the update of the second step."""

    def initialize(self):
        self.n_steps_ = 0
        return self

    def on_grad_computed(self, net, **kwargs):
        self.n_steps_ += 1
        if self.n_steps_ == 2:
            interrupt()


def test_a_handler_of_the_user_need_not_end_the_training(make, data):
    calls = []
    signal.signal(signal.SIGINT, lambda *args: calls.append(args))
    found = make(PGDATClassifier, callbacks=[Halfway()]).fit(*data)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    assert len(calls) == 1
    expected = make(PGDATClassifier).fit(*data)
    assert is_equal(found.module_.state_dict(), expected.module_.state_dict())


def test_in_another_thread_nothing_is_interrupted(make, data):
    clf = make(PGDATClassifier, optimizer=InterruptedSGD)
    calls = []
    signal.signal(signal.SIGINT, lambda *args: calls.append(args))
    thread = threading.Thread(target=lambda: clf.fit(*data))
    thread.start()
    thread.join()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    assert len(calls) == 1
    assert "train_batch_count" in clf.history_[-1]


# --- what surrounds them -----------------------------------------------------------------


class Interrupting(nn.Module):
    """A network that can be interrupted in the midst of being made."""

    armed = False

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(4, 3, dtype=torch.float64)
        if self.armed:
            interrupt()

    def forward(self, x):
        return self.net(x)


def test_an_interrupt_before_the_first_step_leaves_no_mixture(make, data, monkeypatch):
    """The optimizer of the training before has another network."""
    clf = make(PGDATClassifier, module=Interrupting).fit(*data)
    before = torch.get_rng_state()
    monkeypatch.setattr(Interrupting, "armed", True)
    with pytest.raises(KeyboardInterrupt):
        clf.fit(*data)
    assert torch.equal(torch.get_rng_state(), before)
    monkeypatch.setattr(Interrupting, "armed", False)
    clf.partial_fit(*data)
    trained = {id(p) for group in clf.optimizer_.param_groups for p in group["params"]}
    assert trained == {id(p) for p in clf.module_.parameters()}
    check_usable(clf, *data)


def normalised():
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).double()


def test_interrupted_statistics_are_those_of_the_raw_weights(make, data):
    """They are computed anew in the first epoch of the average; an interrupt comes halfway."""

    class Interrupted(PGDATClassifier):
        n_crafted = 0

        def craft(self, x, y):
            self.n_crafted += 1
            if self.n_crafted == 5:  # three steps, and the second batch of the new statistics
                interrupt()
            return super().craft(x, y)

    raw = make(recording(PGDATClassifier), module=normalised, max_epochs=1).fit(*data).recorded[-1]
    average = WeightAveraging(decay=0.5, batch_norm="recompute")
    clf = make(Interrupted, module=normalised, max_epochs=1, callbacks=[average]).fit(*data)
    assert clf.n_crafted == 5
    found = clf.module_.state_dict()
    for name in ("1.running_mean", "1.running_var"):
        assert torch.equal(found[name], raw[name])
    assert not torch.equal(found["0.weight"], raw["0.weight"])
    assert clf.module_[1].momentum == 0.1
    check_usable(clf, *data)


def test_an_interrupted_probe_leaves_the_last_layer_as_it_was(make, data, monkeypatch):
    params = {"max_epochs": 1}
    expected = make(SupervisedContrastiveClassifier, **params).fit(*data).module_.state_dict()
    loss = SupervisedContrastiveClassifier._probe_loss
    n_calls = [0]

    def interrupted(self, z, y):
        if not z.requires_grad and not self.module_.training:
            n_calls[0] += 1
            if n_calls[0] == 4:
                interrupt()
        return loss(self, z, y)

    monkeypatch.setattr(SupervisedContrastiveClassifier, "_probe_loss", interrupted)
    clf = make(SupervisedContrastiveClassifier, probe_steps=20, **params)
    with pytest.raises(KeyboardInterrupt):
        clf.fit(*data)
    assert n_calls == [4]
    assert is_equal(clf.module_.state_dict(), expected)


# --- at random moments -------------------------------------------------------------------

RANDOM = {
    "standard": (StandardClassifier, {}),
    "pgd": (PGDATClassifier, {"module": normalised}),
    "averaging": (PGDATClassifier, {"callbacks": [WeightAveraging(batch_norm="recompute")]}),
    "fast": (FastATClassifier, {"adversary__n_steps": 1}),
    "self-training": (RobustSelfTrainingClassifier, {}),
    **CASES,
}


def interrupt_after(seconds, function, *args):
    """Call a function and interrupt it by a signal from the system; return whether it came."""
    arrived = []

    def pass_on(*args):
        arrived.append(args)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGALRM, pass_on)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        function(*args)
    except KeyboardInterrupt:
        pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return bool(arrived)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers")
@pytest.mark.parametrize("case", RANDOM)
def test_an_interrupt_at_any_moment(make, data, case):
    cls, params = RANDOM[case]
    X, y = data
    if case == "self-training":
        y = np.where(np.arange(len(y)) < 30, y, -1)
    reference = make(recording(cls), max_epochs=3, **params).fit(X, y)
    duration = np.inf
    for _ in range(3):  # the machine may have had something else to do
        start = time.perf_counter()
        make(cls, max_epochs=3, **params).fit(X, y)
        duration = min(duration, time.perf_counter() - start)

    class Counting(cls):
        """Count the updates, inside of the step that an interrupt must not divide."""

        n_updates = 0

        def _step_optimizer(self, step_fn):
            super()._step_optimizer(step_fn)
            self.n_updates += 1

    n_interrupted = 0
    for moment in np.random.default_rng(0).uniform(0, 1, 25):
        clf = make(Counting, max_epochs=3, **params)
        before = torch.get_rng_state()
        n_interrupted += interrupt_after(max(1e-4, moment * duration), clf.fit, X, y)
        assert torch.equal(torch.get_rng_state(), before)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        with GeneratorState(0).in_use():
            assert clf._generator is None
        if clf.n_updates:
            raw = {k: v.clone() for k, v in clf.module_.state_dict().items()}
            if case == "averaging" and clf.callbacks_[-2][1].raw_ is not None:
                raw = dict(zip(raw, clf.callbacks_[-2][1].raw_, strict=True))
            if case != "self-training" or (clf.transduction_ == reference.transduction_).all():
                assert is_equal(raw, reference.recorded[clf.n_updates])
            check_usable(clf, X, y)
        else:  # nothing has been learnt
            clf.partial_fit(X, y)
            check_usable(clf, X, y)
    assert n_interrupted >= 15
