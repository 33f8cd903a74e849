"""MMC: what is minimised and ascended, and how it has to be attacked."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

from robustsk import PGD, HypersphereHead, MMCClassifier, StandardClassifier
from robustsk.attacks.objectives import resolve_objective
from robustsk.datasets import load_digits_images
from robustsk.losses import mmc_loss
from robustsk.models import max_mahalanobis_centers

N, D, C = 7, 4, 3


def ready(**params):
    clf = MMCClassifier(
        lambda: nn.Sequential(nn.Linear(D, 6), nn.Tanh(), nn.Linear(6, C)).double(),
        input_shape=(D,), classes=list(range(C)), random_state=0, device="cpu",
        adversary=PGD(eps=0.3, n_steps=3, clip=None), **params,
    ).initialize()  # fmt: skip
    clf.module_.train()
    return clf


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, D))
    return x, x + rng.uniform(-0.5, 0.5, (N, D)), np.arange(N) % C


def features(clf, x):
    weight, bias, new_weight, new_bias = (p.detach().numpy() for p in clf.module_.parameters())
    return np.tanh(x @ weight.T + bias) @ new_weight.T + new_bias


@pytest.mark.parametrize("loss", ["mmc", "mmlda"])
def test_loss_and_objective(batch, loss):
    _, x_adv, y = batch
    clf = ready(loss=loss, scale=3.0, n_features=5)
    z, mu = features(clf, x_adv), max_mahalanobis_centers(C, 5, 3.0).numpy()
    squared = ((z[:, None] - mu) ** 2).sum(2)
    if loss == "mmc":
        expected, ascended = squared[np.arange(N), y] / 2, squared[np.arange(N), y]
    else:
        p = np.exp(2 * z @ mu.T)
        expected = ascended = -np.log(p / p.sum(1, keepdims=True))[np.arange(N), y]
    found = clf.training_loss(*(torch.as_tensor(v) for v in batch))
    assert_allclose(found.detach(), expected, rtol=1e-5)
    objective = resolve_objective(clf.attack_objective())
    logits = torch.as_tensor(-squared)
    assert_allclose(objective(logits, torch.as_tensor(y)), ascended, rtol=1e-6)
    assert_allclose(-clf.decision_function(x_adv), squared, rtol=1e-5)
    assert_array_equal(clf.predict(x_adv), squared.argmin(1))


def test_adversary_moves_away_from_the_center(batch):
    x, _, y = (torch.as_tensor(v) for v in batch)
    clf = ready()
    before, after = (clf.training_loss(x, z, y).detach() for z in (x, clf.craft(x, y)))
    assert (after > before).all()
    assert clf.craft(x, y) is not x
    assert ready(adversarial=False).craft(x, y) is x


def test_targeted_adversary(batch):
    x, _, y = (torch.as_tensor(v) for v in batch)
    clf = ready()
    clf.adversary_.target = "random"
    logits = clf.module_(clf.perturb(clf.module_, x, y)).detach()
    assert logits.shape == (N, C)
    objective = resolve_objective(clf.attack_objective())
    target = (y + 1) % C
    assert_allclose(objective(logits, y, target), logits[torch.arange(N), target])


def test_default_attack_ascends_the_margin():
    clf = MMCClassifier(adversary__eps=0.2)
    attack = clf.default_attack()
    assert attack.objective == "cw"
    assert (attack.eps, attack.n_steps, attack.n_restarts) == (0.2, 20, 2)


def test_attacks_on_cross_entropy_saturate():
    """Trained on clean data alone, robustness is in the eye of the attack."""
    X, y = load_digits_images(return_X_y=True)
    X = X.astype(np.float32)
    clf = MMCClassifier(
        "mlp", adversarial=False, scale=40.0, max_epochs=15, adversary__eps=0.1, random_state=0
    ).fit(X[:800], y[:800])
    test = X[1000:1200], y[1000:1200]
    by_ce = clf.score_adversarial(*test, PGD(eps=0.1, n_steps=20, random_state=0))
    adaptive = clf.score_adversarial(*test)
    by_distance = clf.score_adversarial(
        *test, PGD(eps=0.1, n_steps=20, objective=mmc_loss, random_state=0)
    )
    assert clf.score(*test) > 0.85
    assert adaptive < by_ce - 0.1
    assert by_distance < by_ce - 0.1


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["mmc", "mmlda"])
def test_more_robust_than_natural_training(loss):
    X, y = load_digits_images(return_X_y=True)
    settings = {"module": "mlp", "max_epochs": 10, "adversary__eps": 0.1, "random_state": 0}
    clf = MMCClassifier(loss=loss, **settings).fit(X[:600], y[:600])
    natural = StandardClassifier(**settings).fit(X[:600], y[:600])
    test = X[1000:1200], y[1000:1200]
    assert clf.score_adversarial(*test) > natural.score_adversarial(*test) + 0.1
    assert clf.score(*test) > 0.75


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"loss": "ce"}, "loss must be 'mmc' or 'mmlda'"),
        ({"scale": -1.0}, "scale must be a positive"),
        ({"head": HypersphereHead()}, "MMCClassifier has a head of its own"),
        ({"head": None}, "MMCClassifier has a head of its own"),
        ({"criterion": nn.MultiMarginLoss}, "takes no criterion.*'mmlda'"),
        ({"criterion__label_smoothing": 0.1}, "takes no criterion.*'mmlda'"),
    ],
)
def test_bad_parameters(params, message):
    X, y = np.random.default_rng(0).normal(size=(20, 3)), np.arange(20) % 2
    with pytest.raises(ValueError, match=message):
        MMCClassifier("mlp", max_epochs=1, **params).fit(X, y)


def test_criterion_of_mmlda():
    X, y = np.random.default_rng(0).normal(size=(20, 3)), np.arange(20) % 2
    clf = MMCClassifier("mlp", loss="mmlda", max_epochs=1, criterion__label_smoothing=0.1)
    assert clf.fit(X, y).criterion_.label_smoothing == 0.1
