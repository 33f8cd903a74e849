"""Every attack keeps its promises in situations that nobody chose: they are drawn by seed.

A test is named after its class, norm and seed, so that ``-k "PGD-inf-17"`` brings one back.
"""

# ruff: noqa: NPY002 (the global generators are what must not move)

import copy
import functools
import random
from types import SimpleNamespace

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_array_equal
from promises import ATTACKS, CHEAPEST, WHITE_BOX, has, make
from recording import assert_in_ball, assert_in_box, assert_same_state, snapshot
from sklearn.base import clone
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from torch import nn

#: How many situations of each class and norm there are, and how many are in the default run.
N_SITUATIONS, N_IN_DEFAULT_RUN = 20, 1
N_CLASSES = 3
#: Tables, a single feature, images of one and several channels, a series, a volume.
SHAPES = [(6,), (5,), (1,), (1, 6, 6), (3, 5, 4), (8, 2), (2, 3, 3, 3)]
#: The last two are for tables.
CONTAINERS = ["array", "Fortran", "strided", "read only", "tensor", "frame", "list"]


class Series(nn.Module):
    """Convolves samples of shape (length, channels) along the time."""

    def __init__(self, n_channels):
        super().__init__()
        self.convolve, self.classify = nn.Conv1d(n_channels, 4, 3), nn.Linear(4, N_CLASSES)

    def forward(self, x):
        return self.classify(torch.tanh(self.convolve(x.transpose(1, 2))).mean(2))


def network(shape):
    n_features = int(np.prod(shape))
    if len(shape) == 2:
        return Series(shape[1])
    if len(shape) == 3:
        return nn.Sequential(
            nn.Conv2d(shape[0], 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.Tanh(),
            nn.Dropout(0.3),
            nn.Flatten(),
            nn.Linear(4 * shape[1] * shape[2], N_CLASSES),
        )
    return nn.Sequential(nn.Flatten(), nn.Linear(n_features, 8), nn.Tanh(), nn.Linear(8, N_CLASSES))


@functools.cache
def models(shape):
    """Return data in [0, 1], classes that follow from them, and what has something of both."""
    X = np.random.default_rng(0).random((60, *shape))
    flat = X.reshape(60, -1)
    y = np.digitize(flat[:, 0] + 0.1 * flat[:, -1], [0.37, 0.73])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = network(shape)
        optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
        x, labels = torch.tensor(X, dtype=torch.float32), torch.tensor(y)
        for _ in range(30):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), labels).backward()
            optimizer.step()
    found = {"float32": net.eval(), "float64": copy.deepcopy(net).double()}
    if len(shape) == 1:
        found["linear"] = LogisticRegression(C=10).fit(X, y)
        found["forest"] = RandomForestClassifier(5, random_state=0).fit(X, y)
    return X, y, found


def draw(cls, norm, seed):
    """Return the situation of a seed."""
    rng = np.random.default_rng([*f"{cls.__name__}-{norm:g}".encode(), seed])

    def one_of(*choices):
        return choices[rng.integers(len(choices))]

    shape = one_of(*SHAPES)
    X, y, found = models(shape)
    model = one_of(*(name for name in found if name != "forest" or cls not in WHITE_BOX))
    dtype = np.dtype(one_of("f4", "f8", "f2", "u1", "i8"))
    scale = 255 if dtype.kind in "ui" else one_of(1, 20)
    X = (scale * X).astype(dtype)
    container = one_of(*(CONTAINERS if len(shape) == 1 else CONTAINERS[:-2]))
    rows = rng.choice(len(X), one_of(1, 2, 5, 7), replace=False)
    X, y, seen = X[rows], one_of(y[rows], None), X

    eps = scale * 10 ** rng.uniform(-2.5, 0.3)
    if norm == 0:
        eps = int(rng.integers(0, np.prod(shape) + 2))
    elif one_of(True, False):
        eps = eps * rng.integers(0, 3, shape)
    box = np.zeros(shape), np.full(shape, float(scale))
    settings = {
        "norm": norm,
        "eps": eps,
        "clip": one_of(None, "auto", (0, scale), box),
        "mask": one_of(None, rng.random(shape) < 0.6),
        "batch_size": one_of(1, 3, "auto"),
        "random_state": seed,
    }
    if cls.targetable:
        other = "random" if y is None else (y + 1) % N_CLASSES
        settings["target"] = one_of(None, None, other, "least_likely")
    if has(cls, "random_start"):
        settings["random_start"] = one_of("none", "uniform", "gaussian")
    model = found[model]
    if isinstance(model, nn.Module):
        model.train(one_of(True, False))
    attack = make(cls, model, settings=CHEAPEST, **settings)
    X, seen = contained(X, container), contained(seen, container)
    return SimpleNamespace(attack=attack, X=X, y=y, seen=seen)


def contained(X, container):
    if container == "Fortran":
        return np.asfortranarray(X)
    if container == "strided":
        return np.stack([X, X], axis=-1)[..., 0]
    if container == "read only":
        X.setflags(write=False)
    if container == "tensor":
        return torch.from_numpy(X)
    if container == "frame":
        columns = [f"x{i}" for i in range(X.shape[1])]
        return pd.DataFrame(X, columns=columns, index=[f"r{i}" for i in range(len(X))])
    return X.tolist() if container == "list" else X


def assert_same_container(found, X):
    if isinstance(X, pd.DataFrame):
        pd.testing.assert_index_equal(found.index, X.index)
        pd.testing.assert_index_equal(found.columns, X.columns)
    assert type(found) is (np.ndarray if isinstance(X, list) else type(X))


def assert_in_any_ball(found, X, norm, eps):
    """Assert that the moves fit into a ball, to the last bit, or into an ellipsoid."""
    eps = np.asarray(eps, dtype=float)
    if eps.ndim == 0:
        return assert_in_ball(found, X, norm, eps)
    moves = np.abs(found - X)
    assert np.all(moves <= eps)
    unit = (moves / np.where(eps > 0, eps, 1)).reshape(len(X), -1)
    assert np.all(np.linalg.norm(unit, ord=norm, axis=1) <= 1 + 1e-6)
    return None


def state_of(model):
    return snapshot(model) if isinstance(model, nn.Module) else joblib.hash(model)


def assert_still(model, before):
    if isinstance(model, nn.Module):
        assert_same_state(before, snapshot(model))
    else:
        assert joblib.hash(model) == before


def generators():
    """Return what tells the states of the global generators apart."""
    return joblib.hash((torch.get_rng_state().numpy(), np.random.get_state(), random.getstate()))


@pytest.mark.parametrize(
    ("cls", "norm", "seed"),
    [
        pytest.param(
            cls,
            norm,
            seed,
            id=f"{cls.__name__}-{norm:g}-{seed}",
            marks=() if seed < N_IN_DEFAULT_RUN else pytest.mark.slow,
        )
        for cls in ATTACKS
        for norm in cls.supported_norms
        for seed in range(N_SITUATIONS)
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning", "error::RuntimeWarning")
def test_promises_hold_in_any_situation(cls, norm, seed):
    situation = draw(cls, norm, seed)
    attack, X, y = situation.attack, situation.X, situation.y
    print(attack, type(X), getattr(X, "dtype", ""), np.shape(X), "no labels" if y is None else y)
    model = attack.estimator
    before = state_of(model), joblib.hash(X), joblib.hash(y), generators()
    if attack.clip == "auto":
        attack.fit(situation.seen)
    found = attack.generate(X, y)

    assert_still(model, before[0])
    assert (joblib.hash(X), joblib.hash(y), generators()) == before[1:]
    assert_same_container(found, X)
    clean, found = np.asarray(X), np.asarray(found)
    if clean.dtype != np.float32:
        clean = clean.astype(np.float64)
    assert found.shape == clean.shape
    assert found.dtype == clean.dtype
    assert np.isfinite(found).all()
    assert_in_any_ball(found, clean, norm, attack.eps)
    if attack.clip is not None:
        assert_in_box(found, *(attack.clip_bounds_ if attack.clip == "auto" else attack.clip))
    if attack.mask is not None:
        assert_array_equal(found[:, ~attack.mask], clean[:, ~attack.mask])
    again = clone(attack).set_params(estimator=model)
    if attack.clip == "auto":
        again.fit(situation.seen)
    assert_array_equal(np.asarray(again.generate(X, y)), found)
