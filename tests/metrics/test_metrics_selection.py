import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import (
    GridSearchCV,
    RandomizedSearchCV,
    StratifiedKFold,
    cross_val_score,
    cross_validate,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from robustsk import BIM, PGD, MostRobust, StandardClassifier, TRADESClassifier, score_adversarial
from robustsk.metrics import AdversarialScorer, make_adversarial_scorer

X, Y = load_iris(return_X_y=True)
ATTACK = PGD(eps=0.4, n_steps=5, random_state=0)
CV = StratifiedKFold(3, shuffle=True, random_state=0)


# --- the scorer ------------------------------------------------------------------------


def test_scorer_is_the_score():
    clf = LogisticRegression(max_iter=1000).fit(X, Y)
    scorer = make_adversarial_scorer(ATTACK)
    assert isinstance(scorer, AdversarialScorer)
    assert scorer(clf, X, Y) == score_adversarial(clf, X, Y, ATTACK)
    weight = np.arange(len(Y))
    assert scorer(clf, X, Y, sample_weight=weight) == score_adversarial(
        clf, X, Y, ATTACK, sample_weight=weight
    )


def test_scorer_can_be_pickled_and_says_what_it_is():
    clf = LogisticRegression(max_iter=1000).fit(X, Y)
    scorer = make_adversarial_scorer(ATTACK)
    again = pickle.loads(pickle.dumps(scorer))
    assert again(clf, X, Y) == scorer(clf, X, Y)
    assert repr(scorer).startswith("make_adversarial_scorer(PGD(eps=0.4")
    assert clone(scorer, safe=False)(clf, X, Y) == scorer(clf, X, Y)


@pytest.mark.parametrize("attack", [PGD, None, "linf", LogisticRegression()])
def test_scorer_needs_an_attack(attack):
    with pytest.raises(TypeError, match="attack must be an attack such as PGD"):
        make_adversarial_scorer(attack)


def test_cross_val_score_by_hand_and_in_parallel():
    clf = make_pipeline(StandardScaler(), LogisticRegression())
    scorer = make_adversarial_scorer(ATTACK)
    expected = [
        score_adversarial(clone(clf).fit(X[train], Y[train]), X[test], Y[test], ATTACK)
        for train, test in CV.split(X, Y)
    ]
    assert cross_val_score(clf, X, Y, scoring=scorer, cv=CV).tolist() == expected
    assert cross_val_score(clf, X, Y, scoring=scorer, cv=CV, n_jobs=2).tolist() == expected


def test_cross_validate_ours_with_string_labels():
    clf = StandardClassifier(max_epochs=5, random_state=0, device="cpu")
    names = np.array(["a", "b", "c"])[Y]
    scoring = {"clean": "accuracy", "robust": make_adversarial_scorer(BIM(eps=0.1))}
    result = cross_validate(clf, X, names, scoring=scoring, cv=CV, error_score="raise")
    assert (result["test_robust"] <= result["test_clean"]).all()


# --- the searches ------------------------------------------------------------------------


def by_hand(results, *, floor=-np.inf, max_loss=None):
    clean, robust = results["mean_test_clean"], results["mean_test_robust"]
    if max_loss is not None:
        floor = max(floor, clean.max() - max_loss - 1e-12)
    admitted = [i for i in range(len(clean)) if clean[i] >= floor]
    return max(admitted, key=lambda i: (robust[i], clean[i]))


@pytest.mark.dealt
@pytest.mark.parametrize("n_jobs", [1, 2])
@pytest.mark.parametrize("rule", [{}, {"max_loss": 0.02}, {"floor": 0.95}])
def test_grid_search_picks_what_one_would_pick(rule, n_jobs):
    search = GridSearchCV(
        LogisticRegression(max_iter=2000),
        {"C": [1e-3, 1e-2, 0.1, 1.0, 100.0]},
        scoring={"clean": "accuracy", "robust": make_adversarial_scorer(ATTACK)},
        refit=MostRobust(**rule),
        cv=CV,
        n_jobs=n_jobs,
        error_score="raise",
    ).fit(X, Y)
    assert search.best_index_ == by_hand(search.cv_results_, **rule)
    assert search.best_params_ == search.cv_results_["params"][search.best_index_]
    assert search.best_params_["C"] == search.best_estimator_.C
    assert 0 < score_adversarial(search, X, Y, ATTACK) < search.best_estimator_.score(X, Y)


def test_the_rules_differ_on_this_grid():
    picked = set()
    for rule in ({}, {"max_loss": 0.0}):
        search = GridSearchCV(
            LogisticRegression(max_iter=2000),
            {"C": [1e-3, 1e-2, 0.1, 1.0, 100.0]},
            scoring={"clean": "accuracy", "robust": make_adversarial_scorer(ATTACK)},
            refit=MostRobust(**rule),
            cv=CV,
        )
        picked.add(search.fit(X, Y).best_index_)
    assert len(picked) == 2


def test_grid_search_over_a_defence():
    search = GridSearchCV(
        TRADESClassifier(max_epochs=2, adversary__n_steps=2, random_state=0, device="cpu"),
        {"beta": [0.5, 6.0], "adversary__eps": [0.1, 0.4]},
        scoring={"clean": "accuracy", "robust": make_adversarial_scorer(ATTACK)},
        refit=MostRobust(max_loss=0.5),
        cv=2,
        error_score="raise",
    ).fit(X, Y)
    assert search.best_index_ == by_hand(search.cv_results_, max_loss=0.5)
    assert len(search.cv_results_["params"]) == 4
    assert search.best_estimator_.adversary_.eps == search.best_params_["adversary__eps"]


def test_randomized_search_and_other_metric_names():
    search = RandomizedSearchCV(
        LogisticRegression(max_iter=2000),
        {"C": np.logspace(-3, 2, 10)},
        n_iter=4,
        scoring={"acc": "accuracy", "adv": make_adversarial_scorer(ATTACK)},
        refit=MostRobust(clean="acc", robust="adv"),
        cv=CV,
        random_state=0,
    ).fit(X, Y)
    assert search.best_index_ == np.argmax(search.cv_results_["mean_test_adv"])


def test_refit_by_name_works_as_well():
    search = GridSearchCV(
        LogisticRegression(max_iter=2000),
        {"C": [0.01, 1.0]},
        scoring={"clean": "accuracy", "robust": make_adversarial_scorer(ATTACK)},
        refit="robust",
        cv=CV,
    ).fit(X, Y)
    assert search.score(X, Y) == score_adversarial(search.best_estimator_, X, Y, ATTACK)


# --- MostRobust alone --------------------------------------------------------------------


def results(clean, robust):
    return {"mean_test_clean": np.array(clean), "mean_test_robust": np.array(robust)}


@pytest.mark.parametrize(
    ("rule", "clean", "robust", "expected"),
    [
        ({}, [0.9, 0.8, 0.5], [0.1, 0.2, 0.3], 2),
        ({"floor": 0.8}, [0.9, 0.8, 0.5], [0.1, 0.2, 0.3], 1),
        ({"floor": 0.81}, [0.9, 0.8, 0.5], [0.1, 0.2, 0.3], 0),
        ({"max_loss": 0.1}, [0.9, 0.8, 0.5], [0.1, 0.2, 0.3], 1),
        ({"max_loss": 0.0}, [0.9, 0.8, 0.5], [0.1, 0.2, 0.3], 0),
        ({"max_loss": 0.3}, [0.3 + 0.6, 0.6, 0.5], [0.1, 0.2, 0.3], 1),  # rounding of 0.9 - 0.3
        ({"floor": 0.85, "max_loss": 0.2}, [0.9, 0.8, 0.5], [0.1, 0.2, 0.3], 0),
        ({"floor": 0.1, "max_loss": 0.1}, [0.9, 0.8, 0.5], [0.1, 0.2, 0.3], 1),
        # ties: the better clean score
        ({}, [0.8, 0.9, 0.7], [0.3, 0.3, 0.3], 1),
        ({}, [0.7, 0.8, 0.9], [0.3, 0.3, 0.1], 1),
        # nothing reaches the floor: the best clean score
        ({"floor": 0.95}, [0.8, 0.9, 0.7], [0.9, 0.1, 0.3], 1),
        # failed settings are never chosen
        ({}, [np.nan, 0.9, 0.7], [0.9, 0.1, 0.3], 2),
        ({}, [0.8, 0.9, 0.7], [np.nan, 0.1, 0.3], 2),
        ({"max_loss": 0.1}, [np.nan, 0.9, 0.7], [0.9, 0.1, 0.3], 1),
        ({"floor": 0.95}, [np.nan, 0.9, 0.7], [0.9, 0.1, 0.3], 1),
    ],
)
def test_choice(rule, clean, robust, expected):
    chosen = MostRobust(**rule)(results(clean, robust))
    assert chosen == expected
    assert isinstance(chosen, int)


def test_equal_settings_are_settled_the_same_way_every_time():
    chosen = {MostRobust()(results([0.9] * 4, [0.5] * 4)) for _ in range(3)}
    assert len(chosen) == 1


def test_missing_metric_is_named():
    with pytest.raises(ValueError, match=r"no metric 'robust'; it has \['acc', 'clean'\]"):
        MostRobust()({"mean_test_clean": [1.0], "mean_test_acc": [1.0]})
    with pytest.raises(ValueError, match=r"no metric 'clean'.*scoring="):
        MostRobust()({"mean_test_score": [1.0]})


def test_single_metric_search_says_what_to_do():
    search = GridSearchCV(
        LogisticRegression(max_iter=1000), {"C": [1.0]}, scoring="accuracy", refit=MostRobust()
    )
    with pytest.raises(ValueError, match="make_adversarial_scorer"):
        search.fit(X, Y)


def test_clone_pickle_and_params():
    rule = MostRobust(0.8, max_loss=0.1, clean="a", robust="b")
    assert clone(rule).get_params() == rule.get_params()
    assert pickle.loads(pickle.dumps(rule)).get_params() == rule.get_params()
    assert rule.set_params(floor=0.5).floor == 0.5


def test_all_settings_failed():
    with pytest.raises(ValueError, match=r"[Nn]o setting|NaN|nan|failed"):
        MostRobust()(results([np.nan, np.nan], [np.nan, np.nan]))
