"""The scorer of an attack, at home in scikit-learn."""

import numpy as np
import pytest
import sklearn
from numpy.testing import assert_allclose
from sklearn.cluster import KMeans
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import OneClassSVM
from sklearn.utils.metadata_routing import get_routing_for_object
from skorch import NeuralNetRegressor
from torch import nn

from robustsk import (
    PGD,
    SquareAttack,
    StandardClassifier,
    make_adversarial_scorer,
    robustness_report,
    score_adversarial,
)

ATTACK = PGD(eps=0.2, n_steps=3, random_state=0, clip=None)


@pytest.fixture(scope="module")
def iris():
    return load_iris(return_X_y=True)


@pytest.fixture
def model():
    return LogisticRegression(max_iter=1000)


def test_a_class_unseen_in_training_is_classified_wrongly(iris, model):
    X, y = iris
    scorer = make_adversarial_scorer(ATTACK)
    assert_allclose(cross_val_score(model, X, y, cv=KFold(3), scoring=scorer), 0)
    clf = model.fit(X[:100], y[:100])  # two of three classes
    right = score_adversarial(clf, X[50:100], y[50:100], ATTACK)
    assert right > 0.5
    assert_allclose(scorer(clf, X[50:], y[50:]), right / 2)
    weight = np.r_[np.full(50, 3.0), np.ones(50)]
    assert_allclose(scorer(clf, X[50:], y[50:], sample_weight=weight), right * 3 / 4)
    names = np.array(["a", "b", "c"])[y]
    assert_allclose(scorer(model.fit(X[:100], names[:100]), X[50:], names[50:]), right / 2)


def test_names_for_numbers_are_still_a_mistake(iris, model):
    X, y = iris
    with pytest.raises(ValueError, match="labels that the model has not been trained on"):
        make_adversarial_scorer(ATTACK)(model.fit(X, y), X, np.array(["a", "b", "c"])[y])


def test_weights_are_routed_to_the_scorer(iris, model):
    X, y = iris
    weight = np.random.default_rng(0).integers(0, 3, len(y)).astype(float)
    with sklearn.config_context(enable_metadata_routing=True):
        scorer = make_adversarial_scorer(ATTACK).set_score_request(sample_weight=True)
        found = cross_validate(
            model.set_fit_request(sample_weight=False), X, y, cv=3, scoring={"robust": scorer},
            params={"sample_weight": weight}, return_estimator=True, return_indices=True,
        )  # fmt: skip
        parts = zip(found["estimator"], found["indices"]["test"], strict=True)
        right = [
            score_adversarial(clf, X[test], y[test], ATTACK, sample_weight=weight[test])
            for clf, test in parts
        ]
        assert_allclose(found["test_robust"], right)
        renamed = make_adversarial_scorer(ATTACK).set_score_request(sample_weight="w")
        requests = get_routing_for_object(renamed).score.requests
        assert requests == {"sample_weight": "w"}
        with pytest.raises(ValueError, match="sample_weight"):  # nobody has asked for it
            cross_validate(
                model, X, y, scoring=make_adversarial_scorer(ATTACK),
                params={"sample_weight": weight}, error_score="raise",
            )  # fmt: skip


def test_requests_are_for_routing():
    with pytest.raises(RuntimeError, match="enable_metadata_routing=True"):
        make_adversarial_scorer(ATTACK).set_score_request(sample_weight=True)


def test_a_defence_that_has_not_seen_a_class(iris):
    X, y = iris
    clf = StandardClassifier(max_epochs=2, random_state=0, device="cpu").fit(X[:100], y[:100])
    scorer = make_adversarial_scorer(PGD(eps=0))
    assert_allclose(scorer(clf, X, y), clf.score(X, y))


REGRESSORS = {
    "Ridge": lambda X, y: Ridge().fit(X, y),
    "RandomForestRegressor": lambda X, y: RandomForestRegressor(2, random_state=0).fit(X, y),
    "Pipeline": lambda X, y: make_pipeline(StandardScaler(), Ridge()).fit(X, y),
    "GridSearchCV": lambda X, y: GridSearchCV(Ridge(), {"alpha": [1.0]}, cv=2).fit(X, y),
    "NeuralNetRegressor": lambda X, y: NeuralNetRegressor(nn.Linear(4, 1), max_epochs=0).fit(
        X.astype(np.float32), y.astype(np.float32)[:, None]
    ),
}


@pytest.mark.parametrize("name", REGRESSORS)
@pytest.mark.parametrize("attack", [ATTACK, SquareAttack(eps=0.1, max_queries=5)])
@pytest.mark.parametrize("target", ["numbers", "classes", "several numbers"])
def test_a_regressor_is_told_to_be_one(iris, name, attack, target):
    """Advice about gradients would lead nowhere."""
    X, y = iris
    model = REGRESSORS[name](X, X[:, 0])
    y = {"numbers": X[:, 0], "classes": y, "several numbers": X}[target]
    match = f"^{name} is a regressor, .*: pass a classifier, .*qcut"
    for ask in (
        lambda: score_adversarial(model, X, y, attack),
        lambda: make_adversarial_scorer(attack)(model, X, y),
        lambda: robustness_report(model, X, y),
        lambda: attack._with(estimator=model).fit(X, y),
    ):
        with pytest.raises(TypeError, match=match):
            ask()


def test_what_else_predicts_no_classes(iris):
    X, y = iris
    with pytest.raises(TypeError, match=r"^KMeans is a clusterer, .*: pass a classifier\.$"):
        score_adversarial(KMeans(3, n_init=1, random_state=0).fit(X), X, y, ATTACK)
    with pytest.raises(TypeError, match=r"^OneClassSVM is an outlier detector, .* classifier\.$"):
        score_adversarial(OneClassSVM().fit(X), X, y, ATTACK)
