"""Rates of success over several tasks."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_iris
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.tree import DecisionTreeClassifier
from torch import nn
from torch.utils.data import TensorDataset

from robustsk import BIM, FGSM, PGD, EnsembleCCE
from robustsk.attacks import NoGradientError
from robustsk.metrics import adversarial_outcome, joint_success_rates, success_rates

X, Y = load_iris(return_X_y=True)
BOX = (0.0, 8.0)
ATTACK = BIM(eps=0.4, clip=BOX)


@pytest.fixture(scope="module")
def models():
    return {
        "strong": LogisticRegression(C=10, max_iter=1000).fit(X, Y),
        "weak": LogisticRegression(C=0.01).fit(X, Y),
        "tree": DecisionTreeClassifier(max_depth=3, random_state=0).fit(X, Y),
    }


# --- from a matrix ----------------------------------------------------------------------


def by_loops(fooled):
    n, m = fooled.shape
    every = sum(all(fooled[s, j] for j in range(m)) for s in range(n)) / n
    some = sum(any(fooled[s, j] for j in range(m)) for s in range(n)) / n
    each = [sum(fooled[s, j] for s in range(n)) / n for j in range(m)]
    return every, sum(each) / m, some, each


@pytest.mark.parametrize("seed", range(10))
def test_rates_and_their_order(seed):
    rng = np.random.default_rng(seed)
    fooled = rng.random((rng.integers(1, 30), rng.integers(1, 6))) < rng.random()
    rates = success_rates(fooled)
    every, average, some, each = by_loops(fooled)
    assert rates.all == every
    assert rates.average == pytest.approx(average, abs=1e-15)
    assert rates.any == some
    assert rates.per_task.tolist() == each
    assert rates.n_samples == len(fooled)
    low, high = rates.per_task.min(), rates.per_task.max()
    assert max(0, 1 - (1 - rates.per_task).sum()) - 1e-12 <= rates.all <= low + 1e-15
    assert low - 1e-12 <= rates.average <= high + 1e-12 <= rates.any + 2e-12
    # another task never makes it easier to achieve all
    assert success_rates(fooled[:, :1]).all >= rates.all
    more = np.c_[fooled, rng.random(len(fooled)) < 0.9]
    assert success_rates(more).all <= rates.all
    assert success_rates(more).any >= rates.any


def test_one_task_is_plain_success():
    rates = success_rates(np.array([[True], [False], [True], [True]]))
    assert rates.all == rates.average == rates.any == 0.75


def test_names_and_text():
    rates = success_rates([[1, 0], [1, 1]], names=["a", 2])
    assert rates.names == ("a", "2")
    assert str(rates) == "all 0.500, average 0.750, any 1.000 (n=2): a 1.000, 2 0.500"
    assert success_rates([[1, 0]]).names == ("0", "1")
    with pytest.raises(AttributeError):
        rates.all = 0.0


@pytest.mark.parametrize(
    "fooled", [[1, 0], [], np.zeros((0, 2)), np.zeros((2, 0)), [[0.5, 1]], [[np.nan, 1]], 1]
)
def test_bad_matrix(fooled):
    with pytest.raises(ValueError, match=r"shape \(n_samples, n_tasks\)"):
        success_rates(fooled)
    with pytest.raises(ValueError, match="2 tasks and 3 names"):
        success_rates([[1, 0]], names="abc")


# --- from models --------------------------------------------------------------------------


def test_several_models_by_hand(models):
    rates = joint_success_rates(models, X, Y, ATTACK, source=models["strong"])
    X_adv = BIM(models["strong"], eps=0.4, clip=BOX).generate(X, Y)
    fooled = np.stack([m.predict(X_adv) != Y for m in models.values()], axis=1)
    every, average, some, each = by_loops(fooled)
    assert (rates.all, rates.any) == (every, some)
    assert rates.average == pytest.approx(average)
    assert rates.per_task.tolist() == each
    assert rates.names == ("strong", "weak", "tree")
    assert 0 < rates.all < rates.any
    # a clean error counts, whatever the attack
    assert rates.per_task[1] >= np.mean(models["weak"].predict(X) != Y) > 0


def test_source_is_the_mean_of_the_probabilities(models):
    pair = [models["strong"], models["weak"]]

    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.W = [torch.tensor(m.coef_) for m in pair]
            self.b = [torch.tensor(m.intercept_) for m in pair]

        def forward(self, x):
            x = x.double()
            p = [torch.softmax(x @ W.T + b, 1) for W, b in zip(self.W, self.b, strict=True)]
            return torch.log((p[0] + p[1]) / 2)

    # in float64, where both computations have the same precision
    victim = Mean()
    victim.register_buffer("any", torch.zeros(1, dtype=torch.float64))
    X_adv = BIM(victim, eps=0.4, clip=BOX).generate(X, Y)
    expected = by_loops(np.stack([m.predict(X_adv) != Y for m in pair], axis=1))
    rates = joint_success_rates(pair, X, Y, ATTACK)
    assert (rates.all, rates.any) == (expected[0], expected[2])
    assert rates.names == ("LogisticRegression 1", "LogisticRegression 2")
    # all members right make the mean right
    right = np.mean(victim(torch.tensor(X_adv)).argmax(1).numpy() == Y)
    assert 1 - right <= rates.any


def test_one_model_is_the_robust_accuracy(models):
    rates = joint_success_rates([models["strong"]], X, Y, ATTACK)
    robust = adversarial_outcome(models["strong"], X, Y, ATTACK).robust
    assert rates.all == rates.average == rates.any == pytest.approx(1 - robust.mean())
    assert rates.names == ("LogisticRegression",)


def test_adversarial_as_it_is(models):
    rates = joint_success_rates(models, X, Y)
    assert rates.per_task.tolist() == [np.mean(m.predict(X) != Y) for m in models.values()]


def test_several_attacks_are_tasks_too(models):
    clf = models["strong"]
    attacks = {"one": FGSM(eps=0.4, clip=BOX), "many": ATTACK, "l2": BIM(eps=0.6, norm=2, clip=BOX)}
    rates = joint_success_rates([clf], X, Y, attacks)
    assert rates.names == ("one", "many", "l2")
    robust = [adversarial_outcome(clf, X, Y, a).robust for a in attacks.values()]
    assert rates.any == pytest.approx(1 - np.logical_and.reduce(robust).mean())
    assert rates.per_task == pytest.approx([1 - r.mean() for r in robust])
    rates = joint_success_rates([clf], X, Y, [FGSM(eps=0.1, clip=BOX), FGSM(eps=0.5, clip=BOX)])
    assert rates.names == ("FGSM 1", "FGSM 2")


def test_transformations_are_tasks_too(models):
    class Shift:
        def transform(self, values):
            return values + 0.5

    def stretch(values):
        return 1.1 * values

    clf, tree = models["strong"], models["tree"]
    rates = joint_success_rates(
        {"a": clf, "b": tree}, X, Y, ATTACK, source=clf, transforms=[np.copy, Shift(), stretch]
    )
    X_adv = BIM(clf, eps=0.4, clip=BOX).generate(X, Y)
    expected = [
        np.mean(m.predict(t(X_adv)) != Y)
        for t in (np.copy, Shift().transform, stretch)
        for m in (clf, tree)
    ]
    assert rates.per_task.tolist() == expected
    assert rates.names == (
        "copy / a", "copy / b", "Shift / a", "Shift / b", "stretch / a", "stretch / b",
    )  # fmt: skip
    rates = joint_success_rates([clf], X, Y, transforms={"same": np.copy})
    assert rates.names == ("same",)


def test_classes_in_any_order(models):
    names = np.array(["b", "c", "a"])[Y]
    frame = pd.DataFrame(X, columns=list("pqrs"), index=np.arange(len(X)) + 7)
    named = [LogisticRegression(C=C, max_iter=1000).fit(frame, names) for C in (10, 0.01)]
    plain = [LogisticRegression(C=C, max_iter=1000).fit(X, Y) for C in (10, 0.01)]
    first = joint_success_rates(named, frame, pd.Series(names, index=frame.index), ATTACK)
    second = joint_success_rates(plain, X, Y, ATTACK)
    assert first.per_task == pytest.approx(second.per_task, abs=0.02)


def test_members_that_number_their_classes_differently():
    """A member with its columns in another order is put in order before averaging."""
    clf = LogisticRegression(max_iter=1000).fit(X, Y)
    turned = LogisticRegression(max_iter=1000).fit(X, Y)
    order = np.array([2, 0, 1])
    turned.coef_, turned.intercept_ = clf.coef_[order], clf.intercept_[order]
    turned.classes_ = clf.classes_[order]
    assert (turned.predict(X) == clf.predict(X)).all()
    two = joint_success_rates([clf, turned], X, Y, ATTACK)
    one = joint_success_rates([clf], X, Y, ATTACK)
    assert two.per_task.tolist() == [one.all, one.all]
    assert two.all == two.any == one.all > 0.1


def test_torch_and_sklearn_together(models):
    torch.manual_seed(0)
    module = nn.Linear(4, 3)
    rates = joint_success_rates([models["strong"], module], X, Y, ATTACK)
    assert rates.names == ("LogisticRegression", "Linear")
    data = TensorDataset(torch.tensor(X), torch.tensor(Y))
    again = joint_success_rates([models["strong"], module], data, None, ATTACK)
    assert again.per_task.tolist() == rates.per_task.tolist()


def test_a_fitted_ensemble_stands_for_its_members():
    clf = EnsembleCCE(max_epochs=3, random_state=0, device="cpu").fit(X, Y)
    rates = joint_success_rates(clf, X, Y, ATTACK, source=clf)
    assert rates.names == ("member 1", "member 2")
    X_adv = BIM(clf, eps=0.4, clip=BOX).generate(X, Y)
    with torch.no_grad():
        fooled = [m(torch.tensor(X_adv)).argmax(1).numpy() != Y for m in clf.members_]
    assert rates.per_task.tolist() == [f.mean() for f in fooled]
    assert rates.all == np.logical_and(*fooled).mean()
    # the mean of the members is the ensemble
    assert joint_success_rates(clf, X, Y, ATTACK).all == rates.all


def test_bad_input(models):
    clf = models["strong"]
    with pytest.raises(NoGradientError, match="DecisionTree"):
        joint_success_rates(models, X, Y, ATTACK)
    with pytest.raises(TypeError, match="estimators must be a list, a dict, or a fitted ensemble"):
        joint_success_rates(clf, X, Y, ATTACK)
    with pytest.raises(ValueError, match="estimators is empty"):
        joint_success_rates([], X, Y, ATTACK)
    with pytest.raises(TypeError, match="attack must be an attack such as PGD"):
        joint_success_rates([clf], X, Y, PGD)
    with pytest.raises(ValueError, match="not been trained on"):
        joint_success_rates([clf], X, Y + 1)
    with pytest.raises(ValueError, match="inconsistent numbers"):
        joint_success_rates([clf], X, Y[1:])
    two = LogisticRegression().fit(X[:100], Y[:100])
    with pytest.raises(ValueError, match="must know the same classes"):
        joint_success_rates([clf, two], X[:100], Y[:100], ATTACK)
    assert joint_success_rates([FrozenEstimator(clf)], X, Y).names == ("LogisticRegression",)
