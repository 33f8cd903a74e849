"""Scores on data that are on disk or in a Dataset: the same numbers, in constant memory."""

import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.utils.data import Dataset

from robustsk import (
    PGD,
    AutoAttack,
    StandardClassifier,
    attack_success_rate,
    make_adversarial_scorer,
    robust_accuracy,
    score_adversarial,
)
from robustsk.attacks import FGSM, SquareAttack, UniversalPerturbation
from robustsk.metrics import adversarial_outcome

N_FEATURES = 200
ATTACK = PGD(eps=0.05, n_steps=3, clip=(0, 1), batch_size=32, random_state=0)


def sample(index):
    """Return a sample that is made of its number."""
    return ((index + 1) * np.sqrt(np.arange(2, N_FEATURES + 2)) % 1).astype(np.float32)


class Made(Dataset):
    """Samples that exist while somebody looks at them."""

    def __init__(self, n_samples):
        self.n_samples = n_samples
        self.targets = np.zeros(n_samples, dtype=int)
        self.reads = 0

    def __len__(self):
        return self.n_samples

    def __getitem__(self, index):
        self.reads += 1
        return torch.from_numpy(sample(index)), int(self.targets[index])


class OnDisk(np.memmap):
    """A memory map that refuses to be read in one go."""

    at_most = 300

    def __getitem__(self, index):
        found = super().__getitem__(index)
        assert found.ndim < 2 or len(found) <= self.at_most
        return found


@pytest.fixture(autouse=True)
def little_memory(monkeypatch):
    """Read little at a time, and keep little."""
    monkeypatch.setattr("robustsk._containers._CHUNK", 200 * 4 * N_FEATURES)
    monkeypatch.setattr("robustsk._containers._SMALL", 200 * 4 * N_FEATURES)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(N_FEATURES, 20), nn.ReLU(), nn.Linear(20, 3)).eval()


@pytest.fixture(scope="module")
def data(net):
    X = np.stack([sample(i) for i in range(700)])
    with torch.no_grad():
        y = net(torch.from_numpy(X)).argmax(1).numpy()
    y[::7] = (y[::7] + 1) % 3
    return X, y


def containers(X, y, folder):
    np.save(folder / "X.npy", X)
    dataset = Made(len(X))
    dataset.targets = y
    yield np.load(folder / "X.npy", mmap_mode="r").view(OnDisk)
    yield np.load(folder / "X.npy", mmap_mode="r+")[:]
    yield dataset


METRICS = {
    "score": lambda *args: score_adversarial(*args),
    "interval": lambda *args: robust_accuracy(*args),
    "success": lambda *args: attack_success_rate(*args),
    "scorer": lambda clf, X, y, attack: make_adversarial_scorer(attack)(clf, X, y),
}


@pytest.mark.dealt
@pytest.mark.parametrize("metric", METRICS)
def test_same_score_from_disk_and_dataset(net, data, tmp_path, metric):
    X, y = data
    expected = METRICS[metric](net, X, y, ATTACK)
    for container in containers(X, y, tmp_path):
        assert METRICS[metric](net, container, y, ATTACK) == expected


ATTACKS = {
    "learned range": FGSM(eps=0.05),
    "targets": PGD(eps=0.05, target=np.arange(700) % 3, clip=None, n_steps=3, random_state=0),
    "random targets": PGD(eps=0.05, target="random", clip=(0, 1), n_steps=3, random_state=0),
    "queries": SquareAttack(eps=0.05, clip=(0, 1), max_queries=20, random_state=0),
    "universal": UniversalPerturbation(eps=0.05, clip=(0, 1), n_steps=3),
    "cascade": AutoAttack(
        eps=0.03, clip=(0, 1), version="custom", random_state=0, target="random",
        attacks=[FGSM(), PGD(n_steps=3)],
    ),
}  # fmt: skip


@pytest.mark.dealt
@pytest.mark.parametrize("name", ATTACKS)
def test_same_outcome_from_disk_and_dataset(net, data, tmp_path, name):
    X, y = data
    attack = ATTACKS[name]._with(batch_size=48)
    if name == "targets":
        y = np.where(attack.target == y, (y + 1) % 3, y)
    expected = adversarial_outcome(net, X, y, attack)
    assert 0 < expected.robust.sum() < expected.correct.sum()
    for container in containers(X, y, tmp_path):
        outcome = adversarial_outcome(net, container, y, attack)
        assert_array_equal(outcome.X_adv, expected.X_adv)
        assert_array_equal(outcome.y_pred_adv, expected.y_pred_adv)
        assert outcome.info.keys() == expected.info.keys()
        for key, values in outcome.info.items():
            assert_array_equal(values, expected.info[key])
        assert outcome.n_backward == expected.n_backward


@pytest.mark.dealt
@pytest.mark.parametrize("kind", ["robustsk", "logistic"])
def test_estimators(data, tmp_path, kind):
    X, y = data
    clf = LogisticRegression()
    if kind == "robustsk":
        clf = StandardClassifier(max_epochs=2, random_state=0, device="cpu")
    clf.fit(X, y)
    expected = score_adversarial(clf, X, y, ATTACK)
    for container in containers(X, y, tmp_path):
        assert score_adversarial(clf, container, y, ATTACK) == expected
    if kind == "robustsk":
        assert clf.score_adversarial(container, attack=ATTACK) == expected


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.int64])
def test_other_dtypes_are_cast_in_parts(net, data, tmp_path, dtype):
    X, y = data
    X = (X * 9).astype(dtype)
    np.save(tmp_path / "X.npy", X)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r").view(OnDisk)
    attack = PGD(eps=1.5, n_steps=2, batch_size=64, random_state=0)
    expected = adversarial_outcome(net, X, y, attack)
    outcome = adversarial_outcome(net, mapped, y, attack)
    assert outcome.X_adv.dtype == expected.X_adv.dtype
    assert_array_equal(outcome.X_adv, expected.X_adv)


def test_what_is_wrong_with_the_data_is_said(net, data, tmp_path):
    X, y = data
    X = X.copy()
    X[650, 3] = np.nan
    for container in list(containers(X, y, tmp_path))[:2]:
        with pytest.raises(ValueError, match="contains NaN"):
            score_adversarial(net, container, y, ATTACK)
    X[650, 3] = 7.0
    for container in list(containers(X, y, tmp_path))[:2]:
        with pytest.raises(ValueError, match=r"\[.*, 7\], outside of clip"):
            FGSM(net, clip=(0, 1), eps=0.1).generate(container)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        score_adversarial(net, container, y[:-1], ATTACK)


def test_a_dataset_is_read_as_often_as_needed(net, data):
    X, y = data
    dataset = Made(len(X))
    score_adversarial(net, dataset, y, ATTACK)
    # predicted, attacked if it is classified correctly, and one for the shape
    assert dataset.reads <= 2 * len(X) + 10


def peak(work):
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.dealt
@pytest.mark.parametrize("version", ["score", "outcome", "auto range", "generate", "cascade"])
@pytest.mark.parametrize("kind", ["disk", "dataset"])
def test_memory_does_not_grow_with_the_data(net, tmp_path, version, kind):
    def work(n_samples):
        if kind == "disk":
            X = np.lib.format.open_memmap(
                tmp_path / f"{n_samples}.npy", "w+", np.float32, (n_samples, N_FEATURES)
            )
        else:
            X = Made(n_samples)
        y = np.ones(n_samples, dtype=int)
        fast = FGSM(eps=0.1, clip="auto" if version == "auto range" else (0, 1), batch_size=128)
        if version == "cascade":
            settings = {"version": "custom", "attacks": [fast], "eps": 0.01, "clip": (0, 1)}
            AutoAttack(net, batch_size=128, **settings).evaluate(X, y)
        elif version == "generate":
            FGSM(net, eps=0.1, clip=(0, 1), batch_size=128).generate(X, y)
        elif version == "outcome":
            adversarial_outcome(net, X, y, fast)
        else:
            score_adversarial(net, X, y, fast)

    work(300)
    few, many = 800, 2400
    growth = peak(lambda: work(many)) - peak(lambda: work(few))
    assert growth < 0.15 * (many - few) * 4 * N_FEATURES


def test_files_go_away_with_their_arrays(net, data, tmp_path, monkeypatch):
    X, y = data
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    *_, dataset = containers(X, y, tmp_path)
    outcome = adversarial_outcome(net, dataset, y, ATTACK)
    part = outcome.X_adv[5:8]
    del outcome
    assert_allclose(part, X[5:8], atol=0.051)
    del part
    assert [path.name for path in tmp_path.iterdir()] == ["X.npy"]


SCRIPT = """
import resource, sys
import numpy as np, torch
import robustsk._containers as containers
from robustsk import PGD, score_adversarial
from robustsk.metrics import adversarial_outcome

containers._CHUNK = containers._SMALL = 2**21
shape = (20_000, 1000)
X = np.lib.format.open_memmap(sys.argv[1], "w+", np.float32, shape)
y = np.ones(len(X), dtype=int)
torch.manual_seed(0)
net = torch.nn.Linear(shape[1], 2)
torch.nn.init.constant_(net.bias[1], 100.0)
attack = PGD(n_steps=1, clip=(0, 1), batch_size=100)
score_adversarial(net, X[:600], y[:600], attack)
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
limit = int(status["VmData"].split()[0]) * 1024 + 2**25
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
assert score_adversarial(net, X, y, attack) == 1.0
assert len(adversarial_outcome(net, X, y, attack).X_adv) == len(X)
try:
    X.copy()
except MemoryError:
    print("done")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks the kernel for a limit")
@pytest.mark.slow
def test_under_a_limit(tmp_path):
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "X.npy")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "done\n", done.stderr
