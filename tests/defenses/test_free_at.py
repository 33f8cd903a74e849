"""Free adversarial training against the algorithm written out."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn
from torch.nn import functional as F

from robustsk import PGD, FreeATClassifier, StandardClassifier
from robustsk.datasets import load_digits_images
from robustsk.training import AWP

N, D, C = 22, 5, 3  # batches of 8, 8 and 6
EPS = 0.2


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(D, 6), nn.Tanh(), nn.Linear(6, C)).double()


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    return rng.uniform(size=(N, D)), np.arange(N) % C


def make(**params):
    settings = {
        "module": network(), "adversary": PGD(eps=EPS, clip=(0, 1)), "batch_size": 8,
        "max_epochs": 3, "optimizer": torch.optim.SGD, "lr": 0.1, "random_state": 0,
        "device": "cpu", "iterator_train__shuffle": False,
    }  # fmt: skip
    return FreeATClassifier(**{**settings, **params})


def by_hand(X, y, weight, n_replays, n_epochs=3, size=8, lr=0.1):
    """Return the weights and all that was trained on."""
    net, seen = network(), []
    X, y, weight = torch.as_tensor(X), torch.as_tensor(y), torch.as_tensor(weight)
    for _ in range(n_epochs):
        delta = torch.zeros(size, D, dtype=torch.float64)
        for start in range(0, len(X), size):
            rows = slice(start, start + size)
            n = len(X[rows])
            for _ in range(n_replays):
                z = (X[rows] + delta[:n]).clamp(0, 1).requires_grad_(True)
                seen.append(z.detach())
                loss = F.cross_entropy(net(z), y[rows], reduction="none")
                loss = (weight[rows] * loss).sum() / weight[rows].sum()
                gradients = torch.autograd.grad(loss, [z, *net.parameters()])
                delta[:n] = (delta[:n] + EPS * gradients[0].sign()).clamp(-EPS, EPS)
                with torch.no_grad():
                    for p, g in zip(net.parameters(), gradients[1:], strict=True):
                        p -= lr * g
    return [p.detach().numpy() for p in net.parameters()], seen


@pytest.mark.parametrize("n_replays", [1, 3])
@pytest.mark.parametrize("weighted", [False, True])
def test_algorithm(data, n_replays, weighted):
    X, y = data
    weight = np.linspace(0.5, 3, N) if weighted else np.ones(N)
    seen = []

    class Watching(FreeATClassifier):
        def training_loss(self, x, x_adv, y):
            seen.append(x_adv.detach().clone())
            return super().training_loss(x, x_adv, y)

    clf = make(n_replays=n_replays)
    clf = Watching(**clf.get_params(deep=False)).fit(X, y, weight if weighted else None)
    expected, points = by_hand(X, y, weight, n_replays)
    for p, q in zip(clf.module_.parameters(), expected, strict=True):
        assert_allclose(p.detach(), q, rtol=1e-9, atol=1e-12)
    assert len(seen) == 9 * n_replays
    for z, point in zip(seen, points, strict=True):
        assert_allclose(z, point, rtol=1e-9, atol=1e-12)


def test_one_replay_trains_on_what_the_batch_before_asked_for(data):
    X, y = data
    crafted = []

    class Watching(FreeATClassifier):
        def craft(self, x, y):
            crafted.append((super().craft(x, y) - x).clone())
            return super().craft(x, y)

    clf = make(n_replays=1, max_epochs=2, adversary=PGD(eps=EPS, clip=None))
    Watching(**clf.get_params(deep=False)).fit(X, y)
    first, second, third, again, *_ = crafted
    assert (first == 0).all()
    assert_allclose(second.abs(), EPS)
    assert len(third) == 6
    assert_allclose(third.abs() / EPS, (third.abs() / EPS).round(), atol=1e-9)
    assert (again == 0).all()  # a new epoch


def test_number_of_steps(data):
    clf = make(n_replays=5, optimizer=torch.optim.Adam, max_epochs=2).fit(*data)
    state = next(iter(clf.optimizer_.state.values()))
    assert int(state["step"]) == 5 * 3 * 2
    assert len(clf.history[0]["batches"]) == 3


@pytest.mark.parametrize("norm", [2, 1])
def test_other_norms(data, norm):
    sizes = []

    class Watching(FreeATClassifier):
        def training_loss(self, x, x_adv, y):
            sizes.append((x_adv - x).norm(p=norm, dim=1).max().item())
            return super().training_loss(x, x_adv, y)

    clf = make(n_replays=3, adversary=PGD(norm=norm, eps=EPS, clip=(0, 1)))
    Watching(**clf.get_params(deep=False)).fit(*data)
    assert max(sizes) <= EPS * (1 + 1e-9)
    assert max(sizes) > 0.9 * EPS


def test_larger_batch_than_before(data):
    """What a larger batch lacks begins at zero."""
    X, y = data
    clf = make(batch_size=4, max_epochs=1).fit(X[:4], y[:4])
    clf._delta = torch.full((3, D), EPS, dtype=torch.float64)
    x = torch.full((5, D), 0.5, dtype=torch.float64)
    moved = clf.craft(x, torch.zeros(5, dtype=torch.int64)) - x
    assert_allclose(moved[:3], EPS)
    assert (moved[3:] == 0).all()


def test_weight_perturbation_in_several_rounds(data):
    clf = make(weight_perturbation=AWP(gamma=0.01, n_rounds=2), n_replays=2).fit(*data)
    assert np.isfinite(clf.history[:, "train_loss"]).all()


def test_nothing_of_the_training_stays(data):
    clf = make().fit(*data)
    assert clf._delta is None
    assert clf._leaf is None


@pytest.mark.slow
def test_more_robust_than_natural_training():
    X, y = load_digits_images(return_X_y=True)
    settings = {"module": "mlp", "adversary__eps": 0.1, "random_state": 0}
    clf = FreeATClassifier(n_replays=4, max_epochs=5, **settings).fit(X[:600], y[:600])
    natural = StandardClassifier(max_epochs=20, **settings).fit(X[:600], y[:600])
    test = X[1000:1200], y[1000:1200]
    assert clf.score_adversarial(*test) > natural.score_adversarial(*test) + 0.1
    assert clf.score(*test) > 0.75


@pytest.mark.parametrize("n_replays", [0, 1.5, None])
def test_bad_number_of_replays(data, n_replays):
    with pytest.raises(ValueError, match="n_replays must be an integer of at least 1"):
        make(n_replays=n_replays).fit(*data)
