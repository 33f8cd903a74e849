"""Models that are no estimators, pipelines with samplers, several labels, names for classes."""

import importlib
import pickle

import numpy as np
import pytest
import torch
from imblearn import FunctionSampler
from imblearn.over_sampling import SMOTE
from imblearn.pipeline import make_pipeline as make_imblearn_pipeline
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.datasets import make_classification
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.multiclass import OneVsRestClassifier
from sklearn.multioutput import ClassifierChain, MultiOutputClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils import Tags, TargetTags
from torch import nn

import robustsk
from robustsk import PGD, AutoAttack, StandardClassifier, adversarial_outcome, score_adversarial
from robustsk.attacks import FGSM, HopSkipJump, NoGradientError, SquareAttack, as_victim

STEP = {"eps": 0.4, "clip": None, "random_state": 0}


# --- a model behind an interface ------------------------------------------------------


class Remote:
    """Knows its classes and answers with labels; no estimator of scikit-learn."""

    def __init__(self, model):
        self.model = model
        self.classes_ = model.classes_

    def predict(self, X):
        return self.model.predict(X)


class RemoteScores(Remote):
    def predict_proba(self, X):
        return self.model.predict_proba(X)


class Fits(RemoteScores):
    """With a fit that leaves nothing behind that scikit-learn would look for."""

    def __init__(self, model):
        self.model = model

    @property
    def classes_(self):
        return self.model.classes_

    def fit(self, X, y):
        return self


@pytest.mark.dealt
@pytest.mark.parametrize("kind", [Remote, RemoteScores, Fits])
def test_a_model_behind_an_interface(kind, table):
    names = np.array(["a", "b", "c"])[table.y]
    model = LogisticRegression().fit(table.X, names)
    attack = HopSkipJump(max_queries=40, **STEP)
    found, expected = (
        attack._with(estimator=m).generate(table.X[:9]) for m in (kind(model), model)
    )
    assert_array_equal(found, expected)
    assert attack._with(estimator=kind(model), clip="auto").fit(table.X).generate(table.X[:2]).shape
    square = SquareAttack(max_queries=40, **STEP)
    if kind is Remote:
        with pytest.raises(TypeError, match="SquareAttack needs scores, and Remote has"):
            score_adversarial(Remote(model), table.X, names, square)
    else:
        remote = score_adversarial(kind(model), table.X, names, square)
        assert 0 < remote < model.score(table.X, names)
    with pytest.raises(NoGradientError, match=r"PGD follows gradients and \w+ has none"):
        PGD(kind(model), **STEP).generate(table.X)


class Nameless:
    """Answers, and does not say what it may answer."""

    def __init__(self, model):
        self.predict = model.predict


class NamelessWithScores(Nameless):
    def __init__(self, model):
        super().__init__(model)
        self.predict_proba = model.predict_proba


def test_a_model_that_does_not_know_its_classes_is_told_them(table):
    names = np.array(["a", "b", "c"])[table.y]
    model = LogisticRegression().fit(table.X, names)
    remote, attack = Nameless(model), HopSkipJump(max_queries=40, **STEP)
    with pytest.raises(NoGradientError, match=r"no classes_: give it .* as_victim\(model, classes"):
        score_adversarial(remote, table.X, names, attack)
    told = as_victim(remote, classes=["c", "a", "b"])
    assert not hasattr(remote, "classes_")
    expected = score_adversarial(model, table.X[:9], names[:9], attack)
    assert score_adversarial(told, table.X[:9], names[:9], attack) == expected < 1
    with pytest.raises(ValueError, match=r"Nameless predicts \['c'\], and its classes are"):
        attack._with(estimator=as_victim(remote, classes=["a", "b"])).generate(table.X)
    with pytest.raises(NoGradientError, match="follows gradients and Nameless has none"):
        score_adversarial(told, table.X, names, PGD(**STEP))
    square = SquareAttack(max_queries=40, **STEP)
    asked = as_victim(NamelessWithScores(model), classes=["a", "b", "c"])
    expected = score_adversarial(as_victim(model, access="scores"), table.X, names, square)
    assert score_adversarial(asked, table.X, names, square) == pytest.approx(expected, abs=0.03)


def test_images_with_their_channels_last_are_told_what_to_do(images):
    for X in (images.X[:5].transpose(0, 2, 3, 1), np.zeros((2, 9, 7, 3))):
        with pytest.raises(ValueError, match=r"channels last; .* pass X.transpose\(0, 3, 1, 2\)"):
            FGSM(images.net, eps=0.1, clip=(0, 1)).generate(X)
    with pytest.raises(RuntimeError, match="to have 1 channels, but got 3"):
        FGSM(images.net, eps=0.1, clip=(0, 1)).generate(np.zeros((2, 3, 9, 9)))


def test_a_network_without_weights_cannot_be_attacked(images):
    net = nn.Sequential(nn.Flatten(), nn.LazyLinear(10))
    attack = FGSM(net, eps=0.1, clip=(0, 1))
    with pytest.raises(ValueError, match="Sequential has lazy layers that have not seen any data"):
        attack.generate(images.X[:2])
    net(torch.tensor(images.X[:2]))
    assert attack.generate(images.X[:2]).shape == (2, 1, 8, 8)


def test_what_is_no_model_at_all():
    for thing, error, words in (
        (object(), TypeError, "nor has it `predict` and classes_"),
        (Remote, TypeError, "not the class"),
        (lambda x: x, TypeError, "neither a torch module nor an estimator"),
    ):
        with pytest.raises(error, match=words):
            as_victim(thing, access="labels")


# --- samplers -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rare():
    return make_classification(200, weights=[0.85], random_state=0)


def test_samplers_do_nothing_where_a_pipeline_predicts(rare):
    X, y = rare
    steps = StandardScaler(), LogisticRegression()
    attack = PGD(**STEP | {"eps": 0.1})
    for sampler in (SMOTE(random_state=0), FunctionSampler()):
        model = make_imblearn_pipeline(steps[0], sampler, steps[1]).fit(X, y)
        plain = make_pipeline(model[0], model[-1])
        assert_array_equal(as_victim(model).logits(X), as_victim(plain).logits(X))
        assert score_adversarial(model, X, y, attack) == score_adversarial(plain, X, y, attack)
        behind = make_pipeline(StandardScaler(), model).fit(X, y)
        z = as_victim(behind).logits(X)
        assert_allclose(z[:, 1] - z[:, 0], behind.decision_function(X), atol=1e-10)


# --- several labels -------------------------------------------------------------------


def two_labels(table):
    return np.c_[table.y > 0, table.X[:, 0] > 0].astype(int)


@pytest.mark.parametrize(
    "model",
    [
        MultiOutputClassifier(LogisticRegression()), ClassifierChain(LogisticRegression()),
        OneVsRestClassifier(LogisticRegression()), RandomForestClassifier(3),
        DecisionTreeClassifier(), KNeighborsClassifier(), RidgeClassifier(),
        MLPClassifier((4,), tol=10),
    ],
    ids=lambda model: type(model).__name__,
)  # fmt: skip
@pytest.mark.parametrize(
    "attack", [FGSM(), SquareAttack(max_queries=3), HopSkipJump(max_queries=9)]
)
def test_models_of_several_labels_are_refused(attack, model, table):
    model = clone(model).fit(table.X, two_labels(table))
    for call in (
        lambda: score_adversarial(model, table.X, table.y > 0, attack._with(**STEP)),
        lambda: attack._with(estimator=model, **STEP).generate(table.X),
    ):
        with pytest.raises(ValueError, match="multilabel or multi-output model"):
            call()


@pytest.mark.parametrize(
    "y",
    [[[0, 1, 1], [1, 1, 0]] * 75, [[0], [1, 2]] * 75, np.array([["a", "b"]] * 150)],
    ids=["indicators", "lists", "names"],
)
def test_several_labels_are_refused(y, table):
    for call in (
        lambda: score_adversarial(table.linear, table.X, y, FGSM(**STEP)),
        lambda: FGSM(table.linear, **STEP).generate(table.X, y),
        lambda: StandardClassifier(device="cpu").fit(table.X, y),
    ):
        with pytest.raises(ValueError, match="Multilabel and multi-output targets"):
            call()


def test_one_hot_labels_are_told_what_to_do(table):
    with pytest.raises(ValueError, match=r"pass y.argmax\(axis=1\)"):
        score_adversarial(table.linear, table.X, np.eye(3)[table.y], FGSM(**STEP))


# --- names for the classes of a module ------------------------------------------------


def test_a_module_is_told_the_names_of_its_classes(table):
    names = np.array(["zebra", "ant", "fox"])
    victim = as_victim(table.net, classes=names)
    attack = PGD(n_steps=3, **STEP)
    assert victim.module is table.net
    outcome = adversarial_outcome(victim, table.X, names[table.y], attack)
    plain = adversarial_outcome(table.net, table.X, table.y, attack)
    assert_array_equal(outcome.y_pred_adv, names[plain.y_pred_adv])
    assert_array_equal(outcome.X_adv, plain.X_adv)
    named, numbered = PGD(victim, **STEP), PGD(table.net, **STEP)
    assert_array_equal(named.generate(table.X, names[table.y]), numbered.generate(table.X, table.y))
    copies = clone(named), pickle.loads(pickle.dumps(named))
    for copied in copies:
        assert_array_equal(copied.transform(table.X), numbered.transform(table.X))
    cascade = {"version": "custom", "attacks": [attack]}
    result = AutoAttack(victim, **cascade, **STEP).evaluate(table.X, names[table.y])
    assert result.clean_accuracy == plain.correct.mean()
    targeted = FGSM(victim, target="ant", **STEP)
    assert targeted.generate(table.X[table.y != 1]).shape == table.X[table.y != 1].shape


def test_names_are_asked_for(table):
    names = np.array(["zebra", "ant", "fox"])[table.y]
    for call in (
        lambda: score_adversarial(table.net, table.X, names, FGSM(**STEP)),
        lambda: FGSM(table.net, **STEP).generate(table.X, names),
        lambda: FGSM(table.net, target="ant", **STEP).generate(table.X),
    ):
        with pytest.raises(ValueError, match=r"as_victim\(module, classes=\[\.\.\.\]\)"):
            call()
    with pytest.raises(ValueError, match="returns 3 logits per sample and has 2 classes"):
        FGSM(as_victim(table.net, classes=["a", "b"]), **STEP).generate(table.X)
    with pytest.raises(
        TypeError, match=r"classes are for torch modules, .* Pipeline knows its own"
    ):
        as_victim(table.linear, classes=["a", "b", "c"])


# --- names ----------------------------------------------------------------------------


def test_names_of_victims_are_found_where_they_were():
    old = importlib.import_module("robustsk.attacks.targets")
    for name in ("as_victim", "Victim", "NoGradientError", "register_converter"):
        assert getattr(old, name) is getattr(robustsk.victims, name)
        assert getattr(robustsk.attacks, name) is getattr(robustsk.victims, name)
    assert isinstance(old.as_victim(nn.Linear(2, 2)), robustsk.Victim)
    assert old.as_victim(torch.nn.Identity()).name == "Identity"


class Numbers:
    def __init__(self, told):
        self.told = told

    def __sklearn_tags__(self):
        return Tags(estimator_type="regressor", target_tags=TargetTags(required=True))

    def predict(self, X):
        return np.where(X[:, 0] > 0.5, *self.told)


def test_a_regressor_whose_classes_are_told_is_one_that_has_them():
    with pytest.raises(TypeError, match="Numbers is a regressor"):
        as_victim(Numbers((1.0, 3.0)), access="labels")
    victim = as_victim(Numbers((1.0, 3.0)), classes=[1.0, 3.0])
    assert_array_equal(victim.logits(np.eye(2)).argmax(1), [0, 1])
