"""One perturbation for all samples: closed forms on linear models, and what it is learned from."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn
from torch.nn import functional as F

from robustsk import score_adversarial
from robustsk.attacks import UniversalPerturbation


@pytest.fixture
def linear():
    net = nn.Linear(8, 2).double()
    with torch.no_grad():
        net.weight.copy_(torch.tensor(np.random.RandomState(0).randn(2, 8)))
        net.bias.copy_(torch.tensor([-4.0, 4.0]))
    return net


@pytest.mark.parametrize("norm", [np.inf, 2, 1])
def test_best_perturbation_of_a_linear_model(linear, norm):
    # all samples are of the second class: the best is the same for each of them
    X = 0.5 * np.random.RandomState(1).randn(50, 8)
    w = (linear.weight[0] - linear.weight[1]).detach().numpy()
    eps = 1.5
    best = {
        np.inf: eps * np.sign(w),
        2: eps * w / np.linalg.norm(w),
        1: np.where(np.abs(w) == np.abs(w).max(), eps * np.sign(w), 0.0),
    }[norm]
    attack = UniversalPerturbation(
        linear, norm=norm, eps=eps, clip=None, n_steps=40, max_objective=np.inf
    ).fit(X)
    assert_allclose(attack.perturbation_, best, atol=0.05)
    assert attack.perturbation_ @ w >= 0.97 * (best @ w)


def test_all_samples_get_the_same(images):
    attack = UniversalPerturbation(images.net, eps=0.2, clip=None).fit(images.X)
    X_adv = attack.generate(images.X, images.y)
    moved = (X_adv - images.X).astype(np.float64)
    assert_allclose(moved, np.broadcast_to(moved[0], moved.shape), atol=1e-6)
    assert_allclose(moved[0], attack.perturbation_, atol=1e-6)
    assert attack.perturbation_.shape == (1, 8, 8)
    clipped = UniversalPerturbation(images.net, eps=0.2, clip=(0, 1)).fit(images.X[:300])
    X_adv = clipped.transform(images.X[300:])
    expected = np.clip(images.X[300:] + clipped.perturbation_, 0, 1)
    assert_allclose(X_adv, expected, atol=1e-6)
    assert_array_equal(clipped.generate(images.X[300:], images.y[300:]), X_adv)


def test_learned_on_some_and_turned_on_others(images):
    attack = UniversalPerturbation(images.net, eps=0.3, clip=(0, 1)).fit(images.X[:300])
    X, y = images.X[300:], images.y[300:]
    with torch.no_grad():
        clean = images.net.eval()(torch.tensor(X)).argmax(1).numpy()
        fooled = images.net(torch.tensor(attack.transform(X))).argmax(1).numpy()
    assert (fooled != clean).mean() > 0.6
    learned = score_adversarial(images.net, X, y, attack)
    assert learned == ((fooled == y) & (clean == y)).mean()
    noise = 0.3 * np.sign(np.random.RandomState(0).randn(1, 8, 8)).astype(np.float32)
    with torch.no_grad():
        chance = images.net(torch.tensor(np.clip(X + noise, 0, 1))).argmax(1).numpy()
    assert learned < (chance == y).mean() - 0.1
    # learned on the data themselves it does at least as well as to within a few samples
    own = UniversalPerturbation(eps=0.3, clip=(0, 1))
    assert score_adversarial(images.net, X, y, own) <= learned + 0.05


def test_fooling_rate_is_what_it_says(images):
    attack = UniversalPerturbation(images.net, eps=0.2, clip=(0, 1)).fit(images.X, images.y)
    with torch.no_grad():
        clean = images.net.eval()(torch.tensor(images.X)).argmax(1)
        moved = np.clip(images.X + attack.perturbation_, 0, 1)
        fooled = images.net(torch.tensor(moved)).argmax(1) != clean
    assert attack.fooling_rate_ == pytest.approx(float(fooled.float().mean()), abs=0.005)
    assert attack.fooling_rate_ > 0.3


@pytest.mark.dealt
@pytest.mark.parametrize("norm", [np.inf, 2, 1])
def test_neither_batches_nor_order_nor_labels_matter(images, norm):
    net, X = images.net.double(), images.X[:90].astype(np.float64)
    order = np.random.RandomState(0).permutation(90)

    def learn(X, y=None, **options):
        attack = UniversalPerturbation(net, norm=norm, eps=0.3, n_steps=6, clip=(0, 1), **options)
        return attack.fit(X, y)

    expected = learn(X)
    for other in (
        learn(X, batch_size=7),
        learn(X[order], batch_size=32),
        learn(X, images.y[:90]),
        learn(X, random_state=3),
    ):
        assert_allclose(other.perturbation_, expected.perturbation_, atol=1e-10)
        assert other.fooling_rate_ == expected.fooling_rate_


def test_gradient_is_that_of_the_clipped_sum(images):
    net = images.net.double().eval()
    x, y = torch.tensor(images.X[:30]).double(), torch.tensor(images.y[:30])
    attack = UniversalPerturbation(
        eps=0.2, step_size=0.05, n_steps=2, max_objective=np.inf, clip=(0, 1), norm=2
    )
    delta = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    iterates = [delta]
    for _ in range(2):
        delta = delta.clone().requires_grad_(True)
        # torch.clamp itself has no gradient at the very bounds
        z = torch.where((x + delta >= 0) & (x + delta <= 1), x + delta, (x + delta).detach())
        z = z + (z.clamp(0, 1) - z).detach()
        (gradient,) = torch.autograd.grad(F.cross_entropy(net(z), y, reduction="sum"), delta)
        delta = delta.detach() + 0.05 * gradient / gradient.norm()
        iterates.append(delta)
    with torch.no_grad():
        fooled = [(net((x + d).clamp(0, 1)).argmax(1) != y).sum() for d in iterates]
    assert fooled[2] >= max(fooled)
    expected = (x + iterates[2]).clamp(0, 1)
    assert_allclose(attack.perturb(net, x, y).numpy(), expected.numpy(), atol=1e-10)


def test_far_samples_do_not_outweigh_the_others(images):
    rates = [
        UniversalPerturbation(images.net, norm=2, eps=1.5, clip=(0, 1), max_objective=limit)
        .fit(images.X)
        .fooling_rate_
        for limit in (None, np.inf)
    ]
    assert rates[0] > rates[1]


def test_one_class_for_all(images):
    attack = UniversalPerturbation(images.net, eps=0.5, clip=(0, 1), target=3).fit(images.X)
    with torch.no_grad():
        reached = images.net.eval()(torch.tensor(attack.transform(images.X))).argmax(1) == 3
    assert attack.fooling_rate_ == pytest.approx(float(reached.float().mean()), abs=0.005)
    assert attack.fooling_rate_ > 0.5


def test_one_target_per_sample_is_learned_when_it_is_known(table):
    goal = (table.y + 1) % 3
    attack = UniversalPerturbation(table.model, eps=0.6, target=goal[:40]).fit(table.X)
    assert not hasattr(attack, "perturbation_")
    X_adv = attack.generate(table.X[:40], table.y[:40])
    assert not np.array_equal(X_adv, table.X[:40])
    attack.set_params(target=None).fit(table.X)
    assert hasattr(attack, "perturbation_")
    attack.set_params(target=goal).fit(table.X)
    assert not hasattr(attack, "perturbation_")


def test_without_fit_it_is_learned_on_the_spot(table):
    X, y = table.X[:60], table.y[:60]
    attack = UniversalPerturbation(table.model, eps=0.6, clip=None, batch_size=13)
    X_adv = attack.generate(X, y)
    assert not hasattr(attack, "perturbation_")
    moved = X_adv - X
    assert_allclose(moved, np.broadcast_to(moved[0], moved.shape), atol=1e-12)
    assert table.model.score(X_adv, y) < table.model.score(X, y) - 0.1


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n_steps": 0}, "n_steps must be an integer of at least 1"),
        ({"max_objective": "high"}, "max_objective must be a number or None"),
        ({"max_objective": np.nan}, "max_objective must be a number or None"),
        ({"step_size": -1.0}, "step_size must be"),
    ],
)
def test_bad_parameters(table, parameters, message):
    with pytest.raises(ValueError, match=message):
        UniversalPerturbation(table.model, clip=None, **parameters).generate(table.X)
