"""The form of TRADES for two classes."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

from robustsk import (
    PGD,
    RobustSelfTrainingClassifier,
    TRADESClassifier,
    UDRTRADESClassifier,
)
from robustsk.attacks.objectives import resolve_objective
from robustsk.losses import binary_trades_loss

BINARY = (TRADESClassifier, UDRTRADESClassifier, RobustSelfTrainingClassifier)


def one_logit():
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)).double()


def two_logits():
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()


def linear():
    return nn.Linear(4, 1).double()


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    x, x_adv = rng.standard_normal((2, 7, 4))
    return torch.tensor(x), torch.tensor(x_adv), torch.tensor([0, 1, 1, 0, 1, 0, 0])


def ready(cls, module, **params):
    return cls(
        module, form="binary", input_shape=(4,), classes=[0, 1], device="cpu", random_state=0,
        **params,
    ).initialize()  # fmt: skip


def outputs(clf, x):
    with torch.no_grad():
        z = clf.module_(x).numpy()
    return z[:, 0] if z.shape[1] == 1 else z[:, 1] - z[:, 0]


@pytest.mark.parametrize("cls", BINARY)
@pytest.mark.parametrize("module", [one_logit, two_logits])
@pytest.mark.parametrize("beta", [0.5, 6.0])
def test_loss_is_eq_3(batch, cls, module, beta):
    x, x_adv, y = batch
    clf = ready(cls, module, beta=beta)
    f, f_adv = outputs(clf, x), outputs(clf, x_adv)
    sign = 2 * y.numpy() - 1
    expected = np.log1p(np.exp(-f * sign)) + np.log1p(np.exp(-beta * f * f_adv))
    with torch.no_grad():
        assert_allclose(clf.training_loss(x, x_adv, y), expected, rtol=1e-10)
        made = binary_trades_loss(*map(torch.tensor, (f, f_adv, sign)), beta)
    assert_allclose(made, expected, rtol=1e-10)


@pytest.mark.parametrize("cls", BINARY)
def test_without_beta_it_is_natural_training(cls, batch, binary):
    X, y = binary
    params = {"beta": 0.0, "max_epochs": 2, "random_state": 0, "device": "cpu"}
    found = [
        cls(form=form, **params).fit(X, y).predict_proba(X) for form in ("binary", "multiclass")
    ]
    assert_array_equal(*found)


def test_the_adversary_of_a_linear_network_goes_against_the_sign(batch):
    """The product is smallest in a corner of the ball, even where the loss is flat."""
    x, _, y = batch
    clf = ready(TRADESClassifier, linear, adversary=PGD(eps=0.3, n_steps=1, step_size=1, clip=None))
    clf.module_.bias.data *= 1000  # confident, so that the surrogate has no slope left
    f, weight = outputs(clf, x), clf.module_.weight.detach().numpy()[0]
    x_adv = clf.craft(x, y).numpy()
    assert_allclose(x_adv, x.numpy() - 0.3 * np.sign(f)[:, None] * np.sign(weight))
    assert_allclose(outputs(clf, torch.tensor(x_adv)), f - 0.3 * np.sign(f) * abs(weight).sum())


def test_what_ascends(batch):
    x, x_adv, y = batch
    clf = ready(TRADESClassifier, two_logits)
    with torch.no_grad():
        clean, attacked = clf.module_(x), clf.module_(x_adv)
    objective = resolve_objective(clf.attack_objective())
    assert objective.needs_clean
    found = objective(attacked, y, None, clean)
    assert_allclose(found, -outputs(clf, x) * outputs(clf, x_adv))
    # towards a class there is no other sign to be reached
    targeted = objective(attacked, y, 1 - y, clean)
    assert_allclose(targeted, -nn.functional.cross_entropy(attacked, 1 - y, reduction="none"))


@pytest.mark.dealt
@pytest.mark.parametrize("module", [one_logit, None])
def test_labels_of_any_kind(binary, module):
    X, y = binary
    names = np.array(["no", "yes"])[y]
    clf = TRADESClassifier(
        module,
        form="binary",
        beta=1.0,
        lr=0.05,
        max_epochs=50,
        adversary__eps=0.3,
        random_state=0,
        device="cpu",
    ).fit(X, names)
    assert set(clf.classes_) == {"no", "yes"}
    assert clf.score(X, names) > 0.9
    assert clf.score_adversarial(X, names) > 0.8


@pytest.mark.parametrize("cls", BINARY)
def test_forms_that_there_are_not(cls, binary, data):
    with pytest.raises(ValueError, match="form='binary' is for two classes, and y has 3"):
        cls(form="binary", device="cpu").fit(*data)
    with pytest.raises(ValueError, match="form must be one of"):
        cls(form="two", device="cpu").fit(*binary)
