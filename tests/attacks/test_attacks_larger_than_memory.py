"""Attacks on data that are on disk or in a Dataset."""

import copy
import pickle

import joblib
import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from robustsk import PGD, AutoAttack
from robustsk._containers import Rows, chunks, copy_of, is_mapped, take
from robustsk._validation import check_range, learn_bounds
from robustsk.attacks import FGSM

SETTINGS = {"eps": 0.1, "clip": (0, 1), "random_state": 0, "batch_size": 32}


class Pieces(Dataset):
    """Samples in double precision, to be asked for in their order once the first are known."""

    def __init__(self, X):
        self.X, self.last = X, -1

    def __len__(self):
        return len(self.X)

    def __getitem__(self, index):
        assert index >= self.last or index < 32
        self.last = index
        return self.X[index].astype(np.float64), 0


@pytest.fixture(autouse=True)
def little_memory(monkeypatch):
    monkeypatch.setattr("robustsk._containers._CHUNK", 50 * 4 * 12)
    monkeypatch.setattr("robustsk._containers._SMALL", 0)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 3)).eval()


@pytest.fixture(scope="module")
def X():
    return np.random.default_rng(0).random((230, 3, 2, 2), dtype=np.float32)


@pytest.fixture
def mapped(X, tmp_path):
    np.save(tmp_path / "X.npy", X)
    return np.load(tmp_path / "X.npy", mmap_mode="r")


@pytest.mark.dealt
@pytest.mark.parametrize("kind", ["map", "view of a map", "dataset"])
def test_generate(net, X, mapped, kind):
    attack = PGD(net, n_steps=3, random_start="uniform", **SETTINGS)
    lazy = {"map": mapped, "view of a map": np.asarray(mapped), "dataset": TensorDataset}[kind]
    if kind == "dataset":
        lazy = TensorDataset(torch.from_numpy(X))
    found = attack.generate(lazy)
    assert is_mapped(found)
    assert type(found) is np.ndarray
    assert_array_equal(found, attack.generate(X))
    assert_array_equal(attack.transform(lazy), found)
    # an example is data like any other
    assert_array_equal(attack.generate(found), attack.generate(np.array(found)))


def test_a_dataset_is_read_in_order(net, X):
    attack = PGD(net, n_steps=2, **SETTINGS)
    assert_array_equal(attack.generate(Pieces(X)), attack.generate(X.astype(np.float64)))


def test_little_stays_in_memory(net, X, mapped, monkeypatch):
    monkeypatch.setattr("robustsk._containers._SMALL", X.nbytes)
    assert not is_mapped(FGSM(net, **SETTINGS).generate(mapped))


def test_fitted_attack_knows_its_data(net, X, mapped):
    attack = FGSM(net, eps=0.1).fit(X)
    assert_array_equal(attack.generate(mapped), attack.generate(X))
    with pytest.raises(ValueError, match="samples of shape"):
        attack.generate(mapped[:, :, :1])
    with pytest.raises(ValueError, match="samples of shape"):
        attack.generate(TensorDataset(torch.from_numpy(X[:, :, :1])))
    with pytest.raises(ValueError, match="0 sample"):
        attack.generate(mapped[:0])
    with pytest.raises(ValueError, match="0 sample"):
        attack.generate(TensorDataset(torch.from_numpy(X[:0])))
    with pytest.raises(ValueError, match="2D array"):
        attack.generate(mapped[:, 0, 0, 0])


@pytest.mark.parametrize("version", ["custom", pytest.param("fast", marks=pytest.mark.slow)])
def test_autoattack(net, X, mapped, tmp_path, version):
    with torch.no_grad():
        y = net(torch.from_numpy(X)).argmax(1).numpy()
    y[::9] = (y[::9] + 1) % 3
    attacks = [FGSM(), PGD(n_steps=5)] if version == "custom" else None
    settings = {**SETTINGS, "eps": 0.02, "version": version, "attacks": attacks}
    expected = AutoAttack(net, **settings).evaluate(X, y)
    path = tmp_path / "state.npz"
    attack = AutoAttack(net, state_path=path, **settings)
    for lazy in (mapped, TensorDataset(torch.from_numpy(X)), X):  # the state serves all of them
        found = attack.evaluate(lazy, y)
        assert_array_equal(found.X_adv, expected.X_adv)
        assert_array_equal(found.stage, expected.stage)
        assert is_mapped(found.X_adv) == (lazy is not X)
    changed = copy.deepcopy(X)
    changed[200] += 0.1
    with pytest.raises(ValueError, match="state of another evaluation"):
        attack.evaluate(TensorDataset(torch.from_numpy(changed)), y)


def test_results_can_be_sent_to_other_processes(net, mapped):
    found = FGSM(net, **SETTINGS).generate(mapped)
    assert_array_equal(pickle.loads(pickle.dumps(found)), found)
    sums = joblib.Parallel(2, max_nbytes=100)(joblib.delayed(np.sum)(found) for _ in range(2))
    assert sums == [np.sum(found)] * 2


def test_an_example_can_be_written_to(net, mapped):
    found = FGSM(net, **SETTINGS).generate(mapped)
    found[:] = 0.5
    assert (found == 0.5).all()


# --- the parts -----------------------------------------------------------------------


def test_rows(X, mapped):
    for rows in (Rows(mapped), Rows(TensorDataset(torch.from_numpy(X)))):
        assert rows.shape == X.shape
        assert rows.ndim == 4
        assert rows.dtype == X.dtype
        for index in (slice(3, 7), np.array([5, 2, 2]), slice(225, 300)):
            assert_array_equal(rows[index], X[index])
        some = take(take(rows, X[:, 0, 0, 0] > 0.5), slice(1, None))
        assert_array_equal(some[np.arange(4)], X[X[:, 0, 0, 0] > 0.5][1:5])
        assert_array_equal(copy_of(some), X[X[:, 0, 0, 0] > 0.5][1:])


def test_chunks(X, mapped):
    assert chunks(X) == [slice(0, 230)]
    assert all(part.stop - part.start <= 50 for part in chunks(mapped))
    sizes = [part.stop - part.start for part in chunks(mapped, 20)]
    assert sizes == [40] * 5 + [30]
    assert [part.start for part in chunks(mapped, 100)] == [0, 100, 200]


@pytest.mark.parametrize("is_image", [True, False])
def test_range_in_parts(X, mapped, is_image):
    for data in (X.reshape(230, 12), X):
        lazy = mapped.reshape(data.shape)
        expected = learn_bounds(data, is_image)
        assert_array_equal(learn_bounds(lazy, is_image), expected, strict=True)
        axis = None if is_image or data.ndim > 2 else 0
        assert_array_equal(expected, [data.min(axis), data.max(axis)])
    check_range(mapped, np.array(0.0), np.array(1.0))
    with pytest.raises(ValueError, match="outside of clip"):
        check_range(mapped, np.array(0.0), np.array(X.max() - 1e-3))
