"""Models that answer NaN: an error where nothing has been attacked, a failure under attack."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris
from skorch import NeuralNetClassifier
from torch import nn

from robustsk import (
    MIM,
    PGD,
    AutoAttack,
    StandardClassifier,
    adversarial_outcome,
    robustness_report,
    score_adversarial,
)
from robustsk.attacks import APGD, FAB, FGSM, DeepFool, HopSkipJump, SquareAttack, as_victim
from robustsk.metrics import half_accuracy_eps, joint_success_rates, transferability_matrix
from robustsk.victims._outputs import predicted_class

COMMON = {"eps": 0.5, "clip": None, "random_state": 0}


class Breaks(nn.Module):
    """A linear model whose logits are NaN beyond a value of the first feature."""

    def __init__(self, beyond, which=slice(None)):
        super().__init__()
        self.beyond, self.which = beyond, which
        self.linear = nn.Linear(4, 3)
        with torch.no_grad():
            self.linear.weight.zero_()
            self.linear.bias.copy_(torch.tensor([2.0, 0.0, 0.0]))
            self.linear.weight[1, 0] = 0.1

    def forward(self, x):
        z = self.linear(x)
        lost = torch.zeros_like(z, dtype=torch.bool)
        lost[:, self.which] = (x[:, 0] > self.beyond)[:, None]
        return torch.where(lost, torch.nan, z)


@pytest.fixture
def data():
    X = np.random.default_rng(0).uniform(0, 1, (60, 4)).astype(np.float32)
    return SimpleNamespace(X=X, y=np.zeros(60, dtype=np.int64))


@pytest.fixture(scope="module")
def diverged():
    X, y = load_iris(return_X_y=True)
    clf = StandardClassifier(max_epochs=1, device="cpu").fit(X, y)
    net = NeuralNetClassifier(nn.Linear(4, 3), max_epochs=1, verbose=0, train_split=None)
    net.set_params(criterion=nn.CrossEntropyLoss).fit(X.astype(np.float32), y)
    with torch.no_grad():
        for model in (clf, net):
            for parameter in model.module_.parameters():
                parameter.fill_(torch.nan)
    return SimpleNamespace(X=X.astype(np.float32), y=y, models=[clf, net, net.module_])


@pytest.mark.parametrize("number", [0, 1, 2], ids=["ours", "skorch", "module"])
def test_a_model_that_has_diverged_is_an_error(number, diverged):
    X, y, model = diverged.X, diverged.y, diverged.models[number]
    calls = [
        lambda: score_adversarial(model, X, y, PGD(**COMMON)),
        lambda: score_adversarial(model, X, y, HopSkipJump(max_queries=10, **COMMON)),
        lambda: PGD(model, **COMMON).generate(X, y),
        lambda: PGD(model, **COMMON).transform(X),
        lambda: AutoAttack(model, version="fast", **COMMON).evaluate(X, y),
        lambda: robustness_report(model, X, y, eps=0.1),
        lambda: half_accuracy_eps(model, X, y, FGSM(clip=None)),
    ]
    if number == 0:
        calls += [lambda: model.predict(X), lambda: model.predict_proba(X)]
        calls += [lambda: model.score(X, y)]
    for call in calls:
        with pytest.raises(FloatingPointError, match=r"logits that are not finite for .* samples"):
            call()


def test_infinite_logits_are_an_error_too(data):
    model = nn.Linear(4, 3)
    model.bias.data[1] = torch.inf
    with pytest.raises(FloatingPointError, match="not finite"):
        FGSM(model, **COMMON).generate(data.X)
    # what is impossible is no error
    model.bias.data[1] = -torch.inf
    assert FGSM(model, **COMMON).generate(data.X).shape == data.X.shape


def test_a_clean_sample_without_an_answer_is_an_error(data):
    data.X[41, 0] = 1.5  # not one of the first
    with pytest.raises(FloatingPointError, match="for 1 of 60 samples"):
        score_adversarial(Breaks(1.2), data.X, data.y, FGSM(**COMMON))


ATTACKS = [
    FGSM(), PGD(n_steps=5), MIM(n_steps=5), APGD(n_steps=5), DeepFool(norm=2), FAB(n_steps=5),
    SquareAttack(max_queries=100), HopSkipJump(max_queries=100),
    AutoAttack(version="custom", attacks=[FGSM(), APGD(n_steps=5)]),
]  # fmt: skip


@pytest.mark.dealt
@pytest.mark.parametrize("which", [slice(None), [0], [1, 2]], ids=["all", "own", "others"])
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: type(attack).__name__)
def test_nan_under_attack_fools_and_does_not_come_back(attack, which, data):
    model = Breaks(1.0, which)
    attack = attack._with(**COMMON)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outcome = adversarial_outcome(model, data.X, data.y, attack)
        X_adv = attack._with(estimator=model).generate(data.X, data.y)
    assert outcome.correct.all()
    for found in (outcome.X_adv, X_adv):
        assert np.isfinite(found).all()
        assert np.abs(found - data.X).max() <= 0.5 + 1e-6 or attack.norm == 2
    with torch.no_grad():
        lost = model(torch.from_numpy(outcome.X_adv)).isnan().any(1).numpy()
    # never class 0, which is what an argmax of NaN says
    assert not outcome.robust[lost].any()
    if isinstance(attack, (FGSM, PGD, MIM)):
        assert lost.mean() > 0.3
        assert outcome.robust.mean() == 1 - lost.mean()


@pytest.mark.parametrize("names", [None, ["a", "b", "c"]])
def test_labels_that_are_nobodys(names, data):
    victim = as_victim(Breaks(1.0), classes=names)
    y = data.y if names is None else np.array(names)[data.y]
    outcome = adversarial_outcome(victim, data.X, y, FGSM(**COMMON))
    lost = outcome.X_adv[:, 0] > 1
    nobody = np.iinfo(np.int64).min if names is None else None
    assert 0 < lost.sum() < 60
    assert all(label == nobody for label in outcome.y_pred_adv[lost])
    assert all(label == y[0] for label in outcome.y_pred_adv[~lost])


def test_estimators_that_break_under_attack(data):
    y = data.y.copy()
    y[:2] = 1, 2
    ours = StandardClassifier(Breaks(1.0), max_epochs=0, device="cpu").fit(data.X, y)
    net = NeuralNetClassifier(Breaks(1.0), criterion=nn.CrossEntropyLoss, verbose=0).initialize()
    expected = score_adversarial(Breaks(1.0), data.X, data.y, FGSM(**COMMON))
    assert 0 < expected < 1
    for model in (ours, net):
        assert score_adversarial(model, data.X, data.y, FGSM(**COMMON)) == expected
        matrix = transferability_matrix([model, Breaks(9.0)], data.X, data.y, FGSM(**COMMON))
        assert matrix[0, 0] == expected
        assert matrix[0, 1] == 1
        assert joint_success_rates([model], data.X, data.y, FGSM(**COMMON)).all == 1 - expected


def test_predicted_class():
    z = torch.tensor(
        [[0.0, 2.0, 1.0], [1.0, torch.nan, 0.0], [3.0, 3.0, 1.0], [1.0, torch.inf, 0.0]]
    )
    assert predicted_class(z).tolist() == [1, -1, 0, 1]
