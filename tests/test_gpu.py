"""What only a GPU can show: where models and arrays are, and that results are those of the CPU."""

import pickle

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator

from robustsk import APGD, PGD, AutoAttack, SquareAttack, TRADESClassifier, score_adversarial
from robustsk.datasets import load_digits_images

pytestmark = pytest.mark.gpu

GPU = "cuda"
EPS = {np.inf: 0.1, 2: 0.6}


@pytest.fixture(scope="module")
def digits():
    """Images (1, 8, 8) in [0, 1]: 600 to train on, 64 to attack."""
    X, y = load_digits_images(return_X_y=True)
    return X[:600], y[:600], X[-64:], y[-64:]


@pytest.fixture(scope="module")
def on_cpu(digits):
    """A defence that was trained on the CPU."""
    return train(digits, "cpu")


def train(digits, device, **params):
    clf = TRADESClassifier(
        adversary__eps=0.1, adversary__n_steps=3, max_epochs=8, batch_size=64, random_state=0,
        device=device, **params,
    )  # fmt: skip
    return clf.fit(*digits[:2])


def devices(clf):
    return {p.device.type for p in clf.module_.parameters()}


each_attack = pytest.mark.parametrize(
    "attack",
    [
        PGD(eps=EPS[np.inf], n_steps=10, random_state=0),
        PGD(norm=2, eps=EPS[2], n_steps=10, n_restarts=2, random_state=0),
        APGD(eps=EPS[np.inf], n_steps=10, random_state=0),
        SquareAttack(eps=EPS[np.inf], max_queries=100, random_state=0),
        AutoAttack(eps=EPS[np.inf], version="fast", random_state=0),
    ],
    ids=lambda attack: f"{type(attack).__name__}-{attack.norm}",
)


def assert_in_ball_and_box(X_adv, X, attack):
    assert X_adv.dtype == X.dtype
    assert X_adv.shape == X.shape
    moved = (X_adv.astype(np.float64) - X.astype(np.float64)).reshape(len(X), -1)
    norms = np.linalg.norm(moved, ord=float(attack.norm), axis=1)
    assert norms.max() <= attack.eps
    assert X_adv.min() >= 0
    assert X_adv.max() <= 1


# --- a defence -----------------------------------------------------------------------


@pytest.mark.parametrize("precision", [None, "bf16"])
def test_automatic_device_trains_and_answers_on_the_gpu(digits, precision):
    X, y = digits[2:]
    before = torch.get_rng_state(), torch.cuda.get_rng_state()
    clf = train(digits, "auto", precision=precision)
    assert devices(clf) == {GPU}
    assert clf.device == "auto"
    proba = clf.predict_proba(X)
    assert isinstance(proba, np.ndarray)
    assert clf.score(X, y) > 0.8
    assert 0 <= clf.score_adversarial(X, y) <= clf.score(X, y)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.equal(torch.cuda.get_rng_state(), before[1])


def test_the_cpu_can_be_asked_for(on_cpu):
    assert devices(on_cpu) == {"cpu"}


@pytest.mark.parametrize(("first", "second"), [("cpu", GPU), (GPU, "cpu")])
def test_parameters_are_saved_on_one_device_and_loaded_on_the_other(
    digits, first, second, tmp_path
):
    X, y = digits[2:]
    clf = train(digits, first)
    names = {"f_params": tmp_path / "p.pt", "f_optimizer": tmp_path / "o.pt"}
    clf.save_params(**names)
    other = TRADESClassifier(
        input_shape=X.shape[1:], classes=clf.classes_, device=second, max_epochs=1, random_state=0
    ).initialize()
    other.load_params(**names)
    assert devices(clf) == {first}
    assert devices(other) == {second}
    assert_allclose(other.predict_proba(X), clf.predict_proba(X), atol=0.02)
    other.partial_fit(X, y)
    assert devices(other) == {second}


@pytest.mark.parametrize("device", ["auto", GPU])
def test_a_pickle_goes_where_there_is_no_gpu(digits, device, monkeypatch):
    X, y = digits[2:]
    clf = train(digits, device)
    saved, proba = pickle.dumps(clf), clf.predict_proba(X)
    assert devices(pickle.loads(saved)) == {GPU}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    other = pickle.loads(saved)
    assert devices(other) == {"cpu"}
    assert_allclose(other.predict_proba(X), proba, atol=0.02)
    if device == "auto":
        other.set_params(max_epochs=1).partial_fit(X, y)
        assert devices(other) == {"cpu"}


# --- attacks -------------------------------------------------------------------------


@each_attack
def test_attacks_are_as_strong_as_on_the_cpu(on_cpu, digits, attack):
    """In float64, in which both devices compute the same but for rounding."""
    X, y = torch.tensor(digits[2], dtype=torch.float64), torch.tensor(digits[3])
    robust, before = {}, torch.cuda.get_rng_state()
    for device in ("cpu", GPU):
        # what is attacked is a copy, which stays where it is
        module = pickle.loads(pickle.dumps(on_cpu.module_)).double().to(device).eval()
        attack = clone(attack).set_params(clip=(0, 1))
        x, labels = X.to(device), y.to(device)
        X_adv = attack.perturb(module, x, labels)
        assert X_adv.device == x.device
        assert next(module.parameters()).device == x.device
        assert_in_ball_and_box(X_adv.cpu().numpy(), X.numpy(), attack)
        robust[device] = int((module(X_adv).argmax(1) == labels).sum())
    assert abs(robust["cpu"] - robust[GPU]) <= 1
    assert torch.equal(torch.cuda.get_rng_state(), before)


@each_attack
def test_arrays_come_back_in_ball_and_box(on_cpu, digits, attack):
    """In float32, and from a module that an attack moves to the GPU itself."""
    X, y = digits[2:]
    attack = clone(attack).set_params(
        estimator=FrozenEstimator(on_cpu), clip=(0, 1), device=GPU, batch_size=40
    )
    X_adv = attack.generate(X, y)
    assert isinstance(X_adv, np.ndarray)
    assert_in_ball_and_box(X_adv, X, attack)
    assert not np.array_equal(X_adv, X)
    assert devices(on_cpu) == {"cpu"}


def test_low_precision_loses_little_strength(on_cpu, digits):
    X, y = digits[2:]
    robust = [
        score_adversarial(
            on_cpu,
            X,
            y,
            attack=PGD(eps=0.1, clip=(0, 1), precision=precision, device=GPU, random_state=0),
        )
        for precision in (None, "bf16")
    ]
    assert abs(robust[0] - robust[1]) <= 5 / 64
