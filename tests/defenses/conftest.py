"""What the tests of the defences share.

A test that asks for `cls` runs for every public defence, so that a new one is covered by being
listed; for one of each code path where it says so with `one_of_each`. No defence is named here or
in a test that takes `cls`.
"""

import numpy as np
import pytest
import torch
from defense_paths import DEFENSES, epochs, suitable
from sklearn.datasets import make_blobs

from robustsk import PGD
from robustsk.datasets import load_digits_images
from robustsk.models import MLP

torch.set_num_threads(1)


def pytest_generate_tests(metafunc):
    marks = metafunc.definition.iter_markers("parametrize")
    if "cls" in metafunc.fixturenames and not any("cls" in mark.args[0] for mark in marks):
        metafunc.parametrize("cls", DEFENSES, ids=lambda cls: cls.__name__)


@pytest.fixture
def make():
    """Return a function that makes a small, fast estimator."""

    def _make(cls, **params):
        settings = {"batch_size": 16, "random_state": 0, "device": "cpu"}
        settings.update(epochs(cls, params.get("max_epochs", 2)))
        if "adversary" not in params:
            settings.update(adversary__eps=0.1, adversary__n_steps=2)
        if "module" not in params:
            settings.update(module="mlp", module__hidden_sizes=(8,))
        return cls(**{**settings, **params})

    return _make


@pytest.fixture
def learner(make):
    """Return a function that makes an estimator that gets blobs right."""

    def _make(cls, **params):
        return make(cls, **{"max_epochs": 8, "lr": 0.1, **params})

    return _make


@pytest.fixture
def adversary(request):
    callspec = getattr(request.node, "callspec", None)
    cls = None if callspec is None else callspec.params.get("cls")
    return suitable(cls, eps=0.3, n_steps=2)


def blobs(n_samples=48, centers=3, dtype=np.float64):
    X, y = make_blobs(
        n_samples,
        n_features=4,
        centers=centers,
        cluster_std=0.4,
        center_box=(-2, 2),
        random_state=3,
    )
    return X.astype(dtype), y


@pytest.fixture
def data():
    """Three classes, four features, in float64."""
    return blobs()


@pytest.fixture
def data32():
    """Three classes, four features, in float32."""
    return blobs(dtype=np.float32)


@pytest.fixture
def binary():
    """Two classes."""
    return blobs(centers=2)


@pytest.fixture
def images():
    """Images with one channel, (n, 1, 8, 8), whose class is the bright corner."""
    rng = np.random.default_rng(0)
    y = np.arange(24) % 3
    X = rng.uniform(0, 0.3, (24, 1, 8, 8)).astype(np.float32)
    for label, (row, column) in enumerate([(0, 0), (0, 4), (4, 0)]):
        X[y == label, :, row : row + 4, column : column + 4] += 0.6
    return X, y


@pytest.fixture(scope="session")
def robust_accuracy():
    """Return a function that trains and gives the accuracies without and under PGD."""
    X, y = load_digits_images(return_X_y=True, as_flat=True)
    attack = PGD(eps=0.2, n_steps=10, random_state=0, clip=(0, 1))
    found = {}

    def accuracies(cls, **params):
        key = (cls, *params.items())
        if key not in found:
            clf = cls(
                lambda: MLP((64,), 10, hidden_sizes=(64,)), max_epochs=15, batch_size=40,
                random_state=0, device="cpu", adversary__eps=0.2, adversary__n_steps=3,
                adversary__clip=(0, 1), **params,
            ).fit(X[:300], y[:300])  # fmt: skip
            test = X[1000:1200], y[1000:1200]
            found[key] = clf.score(*test), clf.score_adversarial(*test, attack)
        return found[key]

    return accuracies
