"""A batch for which memory does not suffice is halved; what is finished stays."""

import gc
import re
import subprocess
import sys
import warnings
import weakref

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from sklearn.base import BaseEstimator, ClassifierMixin
from torch import nn

from robustsk import PGD, AutoAttack, score_adversarial
from robustsk._containers import Batches
from robustsk.attacks import EOT, FGSM, SquareAttack, UniversalPerturbation

ERRORS = {
    "device": (torch.cuda.OutOfMemoryError, "CUDA out of memory. Tried to allocate 2.00 GiB"),
    "driver": (RuntimeError, "CUDA error: out of memory"),
    "linux": (
        RuntimeError,
        "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate "
        "memory: you tried to allocate 1000 bytes. Error code 12 (Cannot allocate memory)",
    ),
    "windows": (
        RuntimeError,
        "[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: not enough memory: you "
        "tried to allocate 1000 bytes.",
    ),
    "numpy": (MemoryError, "Unable to allocate 1.00 GiB for an array"),
}


class Small(nn.Module):
    """A network on a device on which few samples fit at a time."""

    def __init__(self, at_most, error=ERRORS["device"]):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3))
        self.at_most, self.error = at_most, error
        self.seen, self.held = [], []

    def forward(self, x):
        self.seen.append(len(x))
        hidden = self.net(x)
        if len(x) > self.at_most:
            # nothing of what an earlier try has made may be left
            assert all(tensor() is None for tensor in self.held)
            self.held.append(weakref.ref(hidden))
            kind, message = self.error
            raise kind(message)
        return hidden


@pytest.fixture(scope="module", autouse=True)
def _few_objects():
    """Keep the objects of all other tests out of the collections that are made here."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def data():
    X = np.random.default_rng(0).random((50, 6), dtype=np.float32)
    with torch.no_grad():
        y = Small(np.inf)(torch.from_numpy(X)).argmax(1).numpy()
    y[::5] = (y[::5] + 1) % 3
    return X, y


COMMON = {"eps": 0.1, "clip": (0, 1), "random_state": 0, "batch_size": 32}
ATTACKS = {
    "PGD": PGD(n_steps=4, random_start="uniform", n_restarts=2, **COMMON),
    "targets": PGD(n_steps=4, target=np.arange(50) % 3, **COMMON),
    "queries": SquareAttack(max_queries=30, **COMMON),
    "wrapper": EOT(attack=FGSM(**COMMON), n_draws=2),
    "universal": UniversalPerturbation(n_steps=2, **COMMON),
    "cascade": AutoAttack(
        version="custom", attacks=[FGSM(), PGD(n_steps=5, random_start="uniform")], **COMMON
    ),
}  # fmt: skip


@pytest.mark.dealt
@pytest.mark.parametrize("at_most", [31, 5, 1])
@pytest.mark.parametrize("name", ATTACKS)
def test_same_result_in_smaller_batches(data, name, at_most):
    X, y = data
    if name == "targets":
        y = np.where(np.arange(50) % 3 == y, (y + 1) % 3, y)
    attack = ATTACKS[name]
    expected, info = attack._with(estimator=Small(np.inf)).generate(X, y, return_info=True)
    with pytest.warns(UserWarning, match="Memory ran out") as caught:
        found, same = attack._with(estimator=Small(at_most)).generate(X, y, return_info=True)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    for key, values in info.items():
        assert_array_equal(same[key], values)
    assert any(int(re.search(r"batch_size=(\d+)", str(w.message))[1]) <= at_most for w in caught)


@pytest.mark.parametrize("error", ERRORS.values(), ids=list(ERRORS))
def test_every_kind_of_memory(data, error):
    X, _ = data
    model = Small(10, error)
    with pytest.warns(UserWarning, match="32 samples at a time and sufficed for 8") as caught:
        FGSM(model, **COMMON).generate(X)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    # finished rows are not asked for again, and what has been learned is kept
    assert [n for n in model.seen if n > 10] == [32, 16]


def test_nothing_is_said_where_memory_suffices(data):
    X, y = data
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FGSM(Small(32), **COMMON).generate(X, y)


@pytest.mark.parametrize(
    "error", [(RuntimeError, "CUDA error: an illegal memory access"), (KeyError, "memory")]
)
def test_other_errors_pass(data, error):
    X, _ = data
    model = Small(10, error)
    with pytest.raises(error[0], match=error[1]):
        FGSM(model, **COMMON).generate(X)
    assert [n for n in model.seen if n > 10] == [32]


def test_one_sample_must_fit(data):
    X, _ = data
    model = Small(0)
    with pytest.raises(torch.cuda.OutOfMemoryError, match=r"2\.00 GiB"):
        FGSM(model, **COMMON).generate(X)


class Grows(nn.Module):
    """A network that wants more memory for some samples than for others."""

    def __init__(self, at):
        super().__init__()
        self.net = Small(np.inf).net
        self.at, self.rows = at, []

    def forward(self, x):
        if len(x) > 4 and (x[:, 0] > self.at).any():
            raise MemoryError
        self.rows.append(len(x))
        return self.net(x)


def test_finished_rows_are_not_attacked_again(data):
    X = data[0][np.argsort(data[0][:, 0])]
    model = Grows(float(X[40, 0]) - 1e-6)
    with pytest.warns(UserWarning, match="Memory ran out"):
        found = FGSM(model, **COMMON | {"clip": None, "eps": 1e-9}).generate(X, np.zeros(50))
    np.testing.assert_allclose(found, X, atol=1e-6)
    asked = model.rows[model.rows.index(32) :]
    assert max(asked[asked.index(4) :]) <= 4


def test_metrics_and_cascade_warn_once(data):
    X, y = data
    with pytest.warns(UserWarning, match="sufficed for 8") as caught:
        score = score_adversarial(Small(10), X, y, ATTACKS["PGD"])
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert score == score_adversarial(Small(np.inf), X, y, ATTACKS["PGD"])
    with pytest.warns(UserWarning, match="sufficed for 8") as caught:
        result = ATTACKS["cascade"]._with(estimator=Small(10)).evaluate(X, y)
    assert len(caught) == 1
    expected = ATTACKS["cascade"]._with(estimator=Small(np.inf)).evaluate(X, y)
    assert_array_equal(result.stage, expected.stage)


def test_a_cascade_remembers_what_fits(data):
    X, y = data
    model = Small(10)
    with pytest.warns(UserWarning, match="sufficed for 8"):
        score_adversarial(model, X, y, ATTACKS["cascade"])
    assert len([n for n in model.seen if n > 10]) <= 4


class SmallClassifier(ClassifierMixin, BaseEstimator):
    """An estimator that predicts a few samples at a time."""

    def fit(self, X, y):
        self.net_, self.classes_, self.seen_ = Small(np.inf).net, np.unique(y), []
        return self

    def predict(self, X):
        self.seen_.append(len(X))
        if len(X) > 10:
            raise MemoryError
        with torch.no_grad():
            return self.classes_[self.net_(torch.tensor(X).float()).argmax(1).numpy()]


class Shift(FGSM):
    """An attack that asks nothing."""

    access = "labels"

    def _attack_batch(self, batch):
        return batch.ball.project(batch.x + 0.1)


def test_predictions_of_estimators(data):
    X, y = data
    clf = SmallClassifier().fit(X, y)
    score = score_adversarial(clf, X, y, Shift(**COMMON | {"batch_size": 5}))
    assert score == score_adversarial(clf.net_, X, y, Shift(**COMMON))
    assert [n for n in clf.seen_ if n > 10][:3] == [50, 25, 12]


def test_what_a_try_held_is_free_before_the_next():
    """Also what a cycle keeps, and what hangs on the traceback."""
    alive = weakref.WeakSet()

    class Block:
        pass

    def work(rows):
        assert not alive
        block = Block()
        block.itself = block
        alive.add(block)
        if rows.stop - rows.start > 2:
            raise torch.cuda.OutOfMemoryError
        alive.clear()

    batches = Batches(16)
    batches.run(work, 20)
    assert batches.size == 2


SCRIPT = """
import resource, warnings
import numpy as np, torch
from robustsk import PGD

X = np.random.default_rng(0).random((200, 10), dtype=np.float32)
torch.manual_seed(0)
wide = torch.nn.Linear(10, 50_000), torch.nn.ReLU(), torch.nn.Linear(50_000, 2)
net = torch.nn.Sequential(*wide)
attack = PGD(net, eps=0.1, clip=(0, 1), n_steps=1, random_state=0, batch_size=20)
expected = attack.generate(X)
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
limit = int(status["VmData"].split()[0]) * 1024 + 2**25
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    found = attack._with(batch_size=200).generate(X)
assert np.abs(found - expected).max() < 1e-6
print([str(w.message) for w in caught])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks the kernel for a limit")
@pytest.mark.slow
def test_with_a_real_limit():
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("['Memory ran out with 200 samples"), done.stderr
