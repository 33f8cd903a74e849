"""What only a GPU can show: where models and arrays are, and that results are those of the CPU."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from torch import nn

from robustsk import APGD, PGD, AutoAttack, SquareAttack, TRADESClassifier, score_adversarial
from robustsk._precision import full_precision
from robustsk.datasets import load_digits_images
from robustsk.victims import Victim

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


# --- replicas ------------------------------------------------------------------------


class Recurrent(nn.Module):
    """Reads the rows of an image one after the other."""

    def __init__(self, kind=nn.LSTM):
        super().__init__()
        self.rnn = kind(8, 16, num_layers=2, dropout=0.3, batch_first=True)
        self.last = nn.Linear(16, 10)

    def forward(self, x):
        return self.last(self.rnn(x.flatten(1, 2))[0][:, -1])


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_recurrent_networks(digits, kind, training):
    """Their gradients exist in training mode only; what is attacked has no dropout all the same."""
    X, y = torch.tensor(digits[2]), torch.tensor(digits[3])
    torch.manual_seed(0)
    module = Recurrent(kind).train(training)
    attack = PGD(eps=0.1, clip=(0, 1), n_steps=5, random_state=0)
    expected = attack.perturb(module, X, y)
    module = module.to(GPU)
    found = attack.perturb(module, X.to(GPU), y.to(GPU)).cpu()
    assert module.rnn.training is training
    assert module.rnn.dropout == 0.3
    # a sign that rounding decides sends a pixel another way
    assert torch.isclose(found, expected, atol=1e-4).double().mean() > 0.9
    with torch.no_grad(), full_precision(torch.device(GPU)):
        logits = module.eval()(X.to(GPU))
    assert torch.allclose(Victim(module).logits(digits[2]), logits.cpu(), atol=1e-5)


def test_a_recurrent_network_is_trained_and_follows_its_weights(digits):
    clf = TRADESClassifier(
        Recurrent, adversary__eps=0.05, adversary__n_steps=3, max_epochs=3, lr=0.01, device=GPU,
        random_state=0,
    )  # fmt: skip
    clf.fit(*digits[:2])
    assert np.isfinite(clf.history_[:, "train_loss"]).all()
    assert clf.history_[-1, "train_loss"] < clf.history_[0, "train_loss"]
    assert 0 <= clf.score_adversarial(*digits[2:]) <= clf.score(*digits[2:])


@pytest.mark.parametrize("training", [False, True])
def test_threads_that_attack_one_module(digits, training):
    X, y = torch.tensor(digits[0][:256]).to(GPU), torch.tensor(digits[1][:256]).to(GPU)
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10)
    ).to(GPU)  # fmt: skip
    module(X)
    module.train(training)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    attack = PGD(eps=0.1, clip=(0, 1), n_steps=5, random_state=0)
    parts = [(X[k::8], y[k::8]) for k in range(8)]
    alone = [attack.perturb(module, *part) for part in parts]
    for _ in range(5):
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda part: attack.perturb(module, *part), parts))
        assert all(map(torch.equal, alone, together))
        assert module.training is training
        assert all(p.requires_grad for p in module.parameters())
        assert all(torch.equal(v, before[name]) for name, v in module.state_dict().items())


class Dropping(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 10)
        )


def test_fits_in_threads(digits):
    """Dropout draws from the generator of the device, which all threads share."""
    X, y = digits[0][:200], digits[1][:200]

    def fit(seed):
        clf = TRADESClassifier(
            Dropping, adversary__eps=0.1, adversary__n_steps=2, max_epochs=2, device=GPU,
            random_state=seed,
        )  # fmt: skip
        clf.fit(X, y)
        return [p.detach().cpu() for p in clf.module_.parameters()]

    with torch.random.fork_rng(devices=[GPU]):
        torch.manual_seed(5)
        before = torch.get_rng_state(), torch.cuda.get_rng_state()
        alone = [fit(seed) for seed in range(4)]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(fit, range(4)))
        assert all(all(map(torch.equal, *pair)) for pair in zip(alone, together, strict=True))
        assert torch.equal(torch.get_rng_state(), before[0])
        assert torch.equal(torch.cuda.get_rng_state(), before[1])
