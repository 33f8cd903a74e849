"""Scores other than the accuracy, and attacks on some classes only."""

import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.datasets import load_iris, make_classification
from sklearn.ensemble import RandomForestClassifier, VotingClassifier
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import (
    balanced_accuracy_score,
    get_scorer,
    make_scorer,
    recall_score,
    roc_auc_score,
)
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score
from sklearn.tree import DecisionTreeClassifier
from skorch import NeuralNetClassifier
from torch import nn
from torch.utils.data import TensorDataset

from robustsk import (
    FAB,
    PGD,
    AutoAttack,
    HopSkipJump,
    MostRobust,
    SquareAttack,
    StandardClassifier,
    make_adversarial_scorer,
    score_adversarial,
)
from robustsk.attacks.gradient.base import BaseGradientAttack
from robustsk.metrics import adversarial_outcome

EPS = 0.3
X, Y = make_classification(200, 6, weights=[0.8], flip_y=0.1, random_state=0)
ATTACK = PGD(eps=EPS, clip=None, n_steps=4, random_state=0)
OF_LABELS = ["accuracy", "balanced_accuracy", "recall", "precision", "f1", "matthews_corrcoef"]
OF_SCORES = ["roc_auc", "average_precision", "neg_log_loss", "neg_brier_score"]


@pytest.fixture(scope="module")
def clf():
    return LogisticRegression().fit(X, Y)


def hardest(clf, rows=True, sign=1):
    """Return the worst examples of a linear model: every sample away from its own class."""
    step = EPS * np.sign(clf.coef_[0]) * np.where(Y == 1, -1, 1)[:, None]
    return X + sign * step * np.broadcast_to(rows, len(X))[:, None]


# --- which score ---------------------------------------------------------------------


@pytest.mark.dealt
@pytest.mark.parametrize("name", OF_LABELS)
@pytest.mark.parametrize("weighted", [False, True])
def test_scores_of_labels_are_those_of_the_outcome(clf, name, weighted):
    weight = np.random.default_rng(0).integers(0, 3, len(Y)) if weighted else None
    found = score_adversarial(clf, X, Y, ATTACK, scoring=name, sample_weight=weight)
    outcome = adversarial_outcome(clf, X, Y, ATTACK)
    scorer = get_scorer(name)
    assert found == scorer._score_func(
        Y, outcome.y_pred_adv, sample_weight=weight, **scorer._kwargs
    )
    # the attack is as strong as can be
    assert_allclose(found, scorer(clf, hardest(clf, outcome.correct), Y, sample_weight=weight))


def test_accuracy_by_name_is_the_accuracy(clf):
    weight = np.random.default_rng(0).uniform(size=len(Y))
    for how in ({}, {"sample_weight": weight}, {"attack_classes": 1}):
        plain = score_adversarial(clf, X, Y, ATTACK, **how)
        assert_allclose(score_adversarial(clf, X, Y, ATTACK, scoring="accuracy", **how), plain)


@pytest.mark.parametrize("name", OF_SCORES)
def test_scores_of_scores_are_those_of_the_hardest_examples(clf, name):
    found = score_adversarial(clf, X, Y, ATTACK, scoring=name)
    assert_allclose(found, get_scorer(name)(clf, hardest(clf), Y))
    # what is misclassified is attacked as well, and what is fooled is not left alone
    easy = adversarial_outcome(clf, X, Y, ATTACK).X_adv
    assert found < get_scorer(name)(clf, easy, Y) - 0.01


def test_keep_worst_attacks_all(clf):
    first = adversarial_outcome(clf, X, Y, ATTACK)
    worst = adversarial_outcome(clf, X, Y, ATTACK, keep="worst")
    assert_array_equal(first.attacked, first.correct)
    assert worst.attacked.all()
    assert_array_equal(first.robust, worst.robust)
    assert_array_equal(first.X_adv[~first.correct], X[~first.correct])
    assert_allclose(worst.X_adv, hardest(clf), atol=1e-12)
    with pytest.raises(ValueError, match="keep must be one of"):
        adversarial_outcome(clf, X, Y, ATTACK, keep="last")


def test_several_classes():
    X, y = load_iris(return_X_y=True)
    names = np.array(["a", "b", "c"])[y]
    clf = LogisticRegression(max_iter=1000).fit(X, names)
    attack = PGD(eps=0.4, n_steps=5, random_state=0)
    outcome = adversarial_outcome(clf, X, names, attack, keep="worst")
    proba = clf.predict_proba(outcome.X_adv)
    expected = roc_auc_score(names, proba, multi_class="ovr")
    assert_allclose(score_adversarial(clf, X, names, attack, scoring="roc_auc_ovr"), expected)
    scorer = make_scorer(recall_score, average=None, labels=["b"], zero_division=0)
    with pytest.raises(TypeError, match="must return one number"):
        score_adversarial(clf, X, names, attack, scoring=scorer)
    scorer = make_scorer(recall_score, average="macro", labels=["b"])
    first = adversarial_outcome(clf, X, names, attack)
    expected = np.mean(first.robust[y == 1])
    assert_allclose(score_adversarial(clf, X, names, attack, scoring=scorer), expected)


def test_a_score_of_the_users_own_sees_a_frame_and_the_estimator(clf):
    frame = pd.DataFrame(X, columns=list("abcdef"), index=np.arange(len(X)) + 1000)
    named = LogisticRegression().fit(frame, Y)
    seen = []

    def missed(estimator, X, y):
        assert isinstance(X, pd.DataFrame)
        assert list(X.index) == list(frame.index)
        assert_array_equal(estimator.coef_, named.coef_)
        frauds = y == 1
        seen.append(estimator.predict(X[frauds]))
        assert_array_equal(seen[-1], estimator.predict(X)[frauds])
        return -float(X["a"].abs()[frauds][seen[-1] == 0].sum())

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = score_adversarial(named, frame, Y, ATTACK, scoring=missed)
    outcome = adversarial_outcome(clf, X, Y, ATTACK)
    rows = (Y == 1) & (outcome.y_pred_adv == 0)
    assert_allclose(found, -np.abs(outcome.X_adv[rows, 0]).sum())
    assert len(seen) == 2  # once without the attack


def test_smaller_is_better(clf):
    def cost(y_true, y_pred):
        return 10 * np.mean((y_true == 1) & (y_pred == 0)) + np.mean((y_true == 0) & (y_pred == 1))

    scorer = make_scorer(cost, greater_is_better=False)
    found = score_adversarial(clf, X, Y, ATTACK, scoring=scorer)
    expected = -cost(Y, adversarial_outcome(clf, X, Y, ATTACK).y_pred_adv)
    assert found == expected < scorer(clf, X, Y)


# --- who answers ---------------------------------------------------------------------


def test_networks_without_methods(clf):
    weight, bias = torch.tensor(clf.coef_), torch.tensor(clf.intercept_)
    one = nn.Linear(6, 1).double()
    one.load_state_dict({"weight": weight, "bias": bias})
    two = nn.Linear(6, 2).double()
    two.load_state_dict(
        {
            "weight": torch.cat([torch.zeros(1, 6), weight]),
            "bias": torch.cat([torch.zeros(1), bias]),
        }
    )
    for name in ("roc_auc", "neg_log_loss", "recall"):
        expected = score_adversarial(clf, X, Y, ATTACK, scoring=name)
        for module in (one, two):
            assert_allclose(score_adversarial(module, X, Y, ATTACK, scoring=name), expected)

    def of_part(estimator, X, y):
        return np.mean(estimator.predict(X[::2]) == y[::2])

    found = score_adversarial(two, X, Y, ATTACK, scoring=of_part)
    robust = adversarial_outcome(clf, X, Y, ATTACK).robust
    assert_allclose(found, robust[::2].mean())


def test_a_net_gets_its_precision():
    torch.manual_seed(0)
    net = NeuralNetClassifier(
        nn.Linear(6, 2), criterion=nn.CrossEntropyLoss, max_epochs=0, verbose=0
    ).fit(X.astype(np.float32), Y)
    outcome = adversarial_outcome(net, X, Y, ATTACK, keep="worst")
    expected = roc_auc_score(Y, net.predict_proba(outcome.X_adv.astype(np.float32))[:, 1])
    assert_allclose(score_adversarial(net, X, Y, ATTACK, scoring="roc_auc"), expected)


def test_our_estimators_have_the_same_options():
    ours = StandardClassifier(max_epochs=1, random_state=0, device="cpu").fit(X, Y)
    for options in ({"scoring": "average_precision"}, {"scoring": "recall", "attack_classes": [0]}):
        expected = score_adversarial(ours, X, Y, ATTACK, **options)
        assert ours.score_adversarial(X, Y, ATTACK, **options) == expected
    assert expected == get_scorer("recall")(ours, X, Y)  # only the other class was attacked


def test_a_search_and_data_that_are_read_in_parts(clf, tmp_path):
    search = GridSearchCV(LogisticRegression(), {"C": [1.0]}, cv=2).fit(X, Y)
    single = X.astype(np.float32)
    np.save(tmp_path / "X.npy", single)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    dataset = TensorDataset(torch.as_tensor(single), torch.as_tensor(Y))
    for name in ("roc_auc", "f1"):
        expected = score_adversarial(clf, X, Y, ATTACK, scoring=name)
        assert_allclose(score_adversarial(search, X, Y, ATTACK, scoring=name), expected)
        assert_allclose(score_adversarial(clf, mapped, Y, ATTACK, scoring=name), expected, 1e-3)
        found = score_adversarial(clf, dataset, None, ATTACK, scoring=name)
        assert_allclose(found, expected, rtol=1e-3)


def test_no_answer_is_a_wrong_answer():
    class Cliff(nn.Module):
        def forward(self, x):
            z = torch.cat([1 - x, x], 1)
            return torch.where(x.abs() > 5, torch.nan, z)

    class Jump(BaseGradientAttack):
        def _attack_batch(self, batch):
            return batch.x + torch.where(batch.y == 0, -10.0, 10.0)[:, None].to(batch.x)

    x = np.array([[0.0], [1.0], [0.0], [1.0], [2.0]])
    y = np.array([0, 1, 0, 1, 0])
    jump = Jump(eps=20, clip=None)
    assert score_adversarial(Cliff().double(), x, y, jump, attack_classes=0, scoring="f1") == (
        2 * 2 / (2 * 2 + 3)
    )
    assert score_adversarial(Cliff().double(), x, y, jump, scoring="f1") == 0
    with pytest.raises(ValueError, match="NaN"):
        score_adversarial(Cliff().double(), x, y, jump, scoring="roc_auc")


@pytest.mark.parametrize(
    "attack",
    [
        FAB(eps=EPS, n_steps=2, random_state=0),
        HopSkipJump(eps=EPS, max_queries=20, random_state=0),
        SquareAttack(eps=EPS, max_queries=5, random_state=0),
        AutoAttack(eps=EPS, version="custom", attacks=[PGD(n_steps=2)], random_state=0, clip=None),
    ],
    ids=lambda attack: type(attack).__name__,
)
def test_attacks_that_stop_at_the_border_say_so(clf, attack):
    name = type(attack).__name__
    with pytest.warns(UserWarning, match=f"{name} stops where .* roc_auc depends on"):
        score_adversarial(clf, X[:40], Y[:40], attack, scoring="roc_auc")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score_adversarial(clf, X[:40], Y[:40], attack, scoring="recall")
        score_adversarial(clf, X[:40], Y[:40], ATTACK, scoring="roc_auc")


# --- which classes -------------------------------------------------------------------


@pytest.mark.parametrize("keep", ["first", "worst"])
def test_other_classes_stay_as_they_are(clf, keep):
    outcome = adversarial_outcome(clf, X, Y, ATTACK, attack_classes=[1], keep=keep)
    expected = (Y == 1) & (outcome.correct if keep == "first" else True)
    assert_array_equal(outcome.attacked, expected)
    assert_array_equal(outcome.X_adv[Y == 0], X[Y == 0])
    assert_array_equal(outcome.y_pred_adv[Y == 0], outcome.y_pred[Y == 0])
    whole = adversarial_outcome(clf, X, Y, ATTACK)
    assert_array_equal(outcome.robust, np.where(Y == 1, whole.robust, whole.correct))
    assert outcome.n_forward < whole.n_forward
    assert score_adversarial(clf, X, Y, ATTACK, attack_classes=1) == outcome.robust.mean()


def test_a_ranking_with_one_class_attacked(clf):
    found = score_adversarial(clf, X, Y, ATTACK, scoring="average_precision", attack_classes=1)
    assert_allclose(found, get_scorer("average_precision")(clf, hardest(clf, Y == 1), Y))


@pytest.mark.parametrize(
    "given", [["fraud"], "fraud", {"fraud"}, np.array(["fraud"]), pd.Series(["fraud"])]
)
def test_one_class_or_several(given):
    names = np.where(Y == 1, "fraud", "fine")
    clf = LogisticRegression().fit(X, names)
    outcome = adversarial_outcome(clf, X, names, ATTACK, attack_classes=given)
    assert_array_equal(outcome.attacked, outcome.correct & (Y == 1))
    both = adversarial_outcome(clf, X, names, ATTACK, attack_classes=["fraud", "fine"])
    assert_array_equal(both.attacked, both.correct)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ([2], r"neither the model nor y knows: \[2\]. Known are \[0, 1\]"),
        (["1"], r"neither the model nor y knows: \['1'\]"),
        ([], "attack_classes is empty"),
    ],
)
def test_classes_that_nobody_knows(clf, given, match):
    with pytest.raises(ValueError, match=match):
        score_adversarial(clf, X, Y, ATTACK, attack_classes=given)
    with pytest.raises(ValueError, match=match):
        score_adversarial(clf, X, Y, ATTACK, attack_classes=given, scoring="recall")


def test_a_class_of_which_there_is_no_sample(clf):
    rows = Y == 0
    with pytest.warns(UserWarning, match=r"no sample of attack_classes=\[1\]: nothing is attacked"):
        found = score_adversarial(clf, X[rows], Y[rows], ATTACK, attack_classes=[1])
    assert found == clf.score(X[rows], Y[rows])


# --- mistakes ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scoring", "error", "match"),
    [
        (["recall", "f1"], TypeError, "must be the name of one score.*one by one"),
        ({"a": "recall"}, TypeError, "must be the name of one score"),
        (0.5, TypeError, "must be the name of one score"),
        ("recal", ValueError, "recal"),
        (recall_score, ValueError, "make_scorer"),
    ],
)
def test_what_is_no_score(clf, scoring, error, match):
    with pytest.raises(error, match=match):
        score_adversarial(clf, X, Y, ATTACK, scoring=scoring)
    with pytest.raises(error, match=match):
        make_adversarial_scorer(ATTACK, scoring=scoring)


def test_an_estimator_without_scores():
    votes = VotingClassifier([("a", LogisticRegression())], voting="hard").fit(X, Y)
    attack = HopSkipJump(eps=EPS, max_queries=20, random_state=0)
    with pytest.raises(AttributeError, match=r"VotingClassifier has none of .*predict_proba"):
        score_adversarial(votes, X, Y, attack, scoring="roc_auc")


# --- as a scorer ---------------------------------------------------------------------


def test_scorer_in_a_search():
    scorer = make_adversarial_scorer(ATTACK, scoring="average_precision", attack_classes=1)
    assert pickle.loads(pickle.dumps(scorer)).scoring == "average_precision"
    assert repr(scorer).endswith("scoring='average_precision', attack_classes=1)")
    search = GridSearchCV(
        LogisticRegression(),
        {"C": [1e-3, 1.0]},
        scoring={"clean": "average_precision", "robust": scorer},
        refit=MostRobust(),
        cv=2,
        error_score="raise",
    ).fit(X, Y)
    results = search.cv_results_
    assert (results["mean_test_robust"] < results["mean_test_clean"]).all()
    best = search.best_estimator_
    expected = score_adversarial(best, X, Y, ATTACK, scoring="average_precision", attack_classes=1)
    assert scorer(search, X, Y) == expected


def test_a_class_unseen_in_training():
    X, y = load_iris(return_X_y=True)
    clf = LogisticRegression(max_iter=1000).fit(X[:100], y[:100])
    attack = PGD(eps=0.4, n_steps=5, random_state=0, clip=None)
    scorer = make_adversarial_scorer(attack, scoring="balanced_accuracy")
    robust = adversarial_outcome(clf, X[:100], y[:100], attack).robust
    expected = (robust[:50].mean() + robust[50:].mean() + 0) / 3
    assert_allclose(scorer(clf, X, y), expected)
    only = make_adversarial_scorer(attack, attack_classes=[1, 2])
    correct = clf.predict(X[:50]) == 0
    assert_allclose(only(clf, X, y), (correct.sum() + robust[50:].sum()) / 150)
    assert make_adversarial_scorer(attack, attack_classes=2)(clf, X[:9], y[:9] + 2) == 0
    assert cross_val_score(clf, X, y, cv=KFold(3), scoring=scorer).tolist() == [0, 0, 0]
    with pytest.warns(UndefinedMetricWarning):
        make_adversarial_scorer(attack, scoring="roc_auc")(clf, X[:9], y[:9])


def test_a_tree_is_judged_by_its_own_scores():
    forest = RandomForestClassifier(5, max_depth=3, random_state=0).fit(X, Y)
    attack = SquareAttack(eps=EPS, max_queries=5, random_state=0, clip=None)
    with pytest.warns(UserWarning, match="stops where"):
        found = score_adversarial(forest, X, Y, attack, scoring="average_precision")
    outcome = adversarial_outcome(forest, X, Y, attack, keep="worst")
    expected = get_scorer("average_precision")(forest, outcome.X_adv, Y)
    assert found == expected < get_scorer("average_precision")(forest, X, Y)
    tree = DecisionTreeClassifier(max_depth=3, random_state=0).fit(X, Y)
    outcome = adversarial_outcome(tree, X, Y, attack)
    found = score_adversarial(tree, X, Y, attack, scoring="balanced_accuracy")
    assert_allclose(found, balanced_accuracy_score(Y, outcome.y_pred_adv))
