"""Reports with another score, on groups, and on attacks of some classes."""

import html
import json

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, get_scorer, recall_score

from robustsk import FAB, FGSM, PGD, score_adversarial
from robustsk.evaluation import red_flags, robustness_report
from robustsk.metrics import adversarial_outcome, clopper_pearson_interval

EPS = 0.3
X, Y = make_classification(200, 6, weights=[0.8], flip_y=0.1, random_state=0)
GROUPS = np.array(["north", "south", "<b>"])[np.random.default_rng(0).integers(0, 3, len(Y))]


class Half(FGSM):
    """One that can only move half of the features."""

    def __init__(self, estimator=None, *, first=True, **common):
        super().__init__(estimator, **common)
        self.first = first

    def _attack_batch(self, batch):
        found = super()._attack_batch(batch)
        kept = slice(3, None) if self.first else slice(3)
        found[:, kept] = batch.x[:, kept]
        return found


ATTACKS = {"one": Half(), "two": Half(first=False), "PGD": PGD(n_steps=2)}
CHEAP = {"eps": EPS, "clip": None, "attacks": ATTACKS, "red_flags": False}


@pytest.fixture(scope="module")
def clf():
    return LogisticRegression().fit(X, Y)


@pytest.fixture(scope="module")
def plain(clf):
    return robustness_report(clf, X, Y, **CHEAP)


@pytest.fixture(scope="module")
def grouped(clf):
    return robustness_report(clf, X, Y, groups=GROUPS, **CHEAP)


def attack(name):
    return ATTACKS[name]._with(eps=EPS, clip=None, random_state=0)


# --- groups --------------------------------------------------------------------------


def test_accuracy_per_group(grouped, plain):
    found = grouped
    assert plain.worst_group is plain.groups is plain.scoring is None
    for name, row in found.rows.items():
        assert_array_equal(row.robust, plain[name].robust)
        assert list(row.per_group) == ["<b>", "north", "south"]
        for group, part in row.per_group.items():
            robust = row.robust[group == GROUPS]
            assert (part.accuracy, part.n_samples) == (robust.mean(), len(robust))
            interval = clopper_pearson_interval(int(robust.sum()), len(robust))
            assert (part.low, part.high) == interval
    last = found["worst case"].per_group
    assert found.worst_group == min(last, key=lambda group: last[group].accuracy)
    frame = found.to_frame(per_group=True)
    assert frame.loc["PGD", "south"] == found["PGD"].per_group["south"].accuracy


def test_groups_are_shown(grouped):
    found = grouped
    worst = found["worst case"].per_group[found.worst_group]
    sentence = f"Worst group: {found.worst_group}, accuracy {worst.accuracy:.3f}."
    text, page = str(found), found.to_html()
    assert "Accuracy per group\n" in text
    assert sentence in text.splitlines()
    assert html.escape(sentence) in page
    assert "<b>," not in page
    (line,) = [line for line in text.splitlines() if line.startswith("south ")]
    parts = [row.per_group["south"] for row in found.rows.values()]
    cells = [str(parts[0].n_samples), *(f"{part.accuracy:.3f}" for part in parts)]
    assert line.split() == ["south", *cells, f"{parts[-1].low:.3f}", "to", f"{parts[-1].high:.3f}"]
    as_dict = json.loads(json.dumps(found.to_dict()))
    assert as_dict["worst_group"] == found.worst_group
    assert as_dict["groups"] == "groups"
    assert as_dict["rows"]["PGD"]["per_group"]["south"] == {
        "accuracy": parts[3].accuracy,
        "low": parts[3].low,
        "high": parts[3].high,
        "n_samples": parts[3].n_samples,
    }


def test_without_groups_nothing_is_said_of_them(plain):
    assert "roup" not in str(plain)
    assert not {"scoring", "groups", "worst_group"} & set(plain.to_dict())
    assert "per_group" not in plain.to_dict()["rows"]["PGD"]


def test_a_column_of_the_frame(clf):
    frame = pd.DataFrame(X, columns=list("abcdef")).assign(region=np.arange(len(Y)) // 18)
    named = LogisticRegression().fit(frame, Y)
    mask = np.arange(7) < 6
    options = CHEAP | {"attacks": {"FGSM": FGSM(mask=mask)}}
    found = robustness_report(named, frame, Y, groups="region", **options)
    assert list(found["FGSM"].per_group) == [str(i) for i in range(12)]  # 2 before 10
    assert found.groups == "region"
    assert "Accuracy per group (region)" in str(found)
    series = frame["region"].astype(float).where(frame["region"] > 0)
    again = robustness_report(named, frame, Y, groups=series, **options)
    first = again["FGSM"].per_group["nan"]
    assert first == found["FGSM"].per_group["0"]
    mixed = [None if value == 0 else f"r{value}" for value in frame["region"]]
    again = robustness_report(named, frame, Y, groups=mixed, **options)
    assert again["FGSM"].per_group["None"] == first


@pytest.mark.parametrize(
    ("groups", "match"),
    [
        ("region", "groups='region' is no column of X .X has no names.: pass the name of one"),
        (GROUPS[:-1], r"one value for each of the 200 samples, got an array of shape \(199,\)"),
        (X, r"got an array of shape \(200, 6\)"),
    ],
)
def test_bad_groups(clf, groups, match):
    with pytest.raises(ValueError, match=match):
        robustness_report(clf, X, Y, groups=groups, **CHEAP)


def test_a_column_that_is_not_there():
    frame = pd.DataFrame(X, columns=list("abcdef"))
    named = LogisticRegression().fit(frame, Y)
    with pytest.raises(ValueError, match=r"groups='g' is no column of X \(X has \['a', 'b'"):
        robustness_report(named, frame, Y, groups="g", **CHEAP)


# --- another score -------------------------------------------------------------------


@pytest.mark.dealt
@pytest.mark.parametrize("scoring", ["recall", "average_precision"])
@pytest.mark.parametrize("attack_classes", [None, [1]])
def test_scores_are_those_of_score_adversarial(clf, scoring, attack_classes):
    found = robustness_report(
        clf, X, Y, scoring=scoring, attack_classes=attack_classes, groups=GROUPS, **CHEAP
    )
    assert found["clean"].score == get_scorer(scoring)(clf, X, Y)
    how = {"scoring": scoring, "attack_classes": attack_classes}
    for name in ATTACKS:
        assert found[name].score == score_adversarial(clf, X, Y, attack(name), **how)
    keep = "first" if scoring == "recall" else "worst"
    outcomes = [
        adversarial_outcome(clf, X, Y, attack(name), attack_classes=attack_classes, keep=keep)
        for name in ATTACKS
    ]
    robust = np.all([outcome.robust for outcome in outcomes], axis=0)
    assert_array_equal(found["worst case"].robust, robust)
    for group in (*np.unique(GROUPS), None):
        rows = np.ones(len(Y), dtype=bool) if group is None else group == GROUPS
        row = found["worst case"]
        score = row.score if group is None else row.score_per_group[group]
        if scoring == "recall":
            expected = robust[rows & (Y == 1)].mean()
        else:  # of each sample the score that is furthest on the wrong side
            scores = np.array([clf.decision_function(outcome.X_adv) for outcome in outcomes])
            scores = np.where(Y == 1, scores.min(0), scores.max(0))
            expected = average_precision_score(Y[rows], scores[rows])
        assert_allclose(score, expected)
    last = found["worst case"].score_per_group
    assert found.worst_group == min(last, key=last.get)
    assert found["worst case"].score <= min(row.score for row in found.rows.values())
    text = str(found)
    assert f"{scoring} per group" in text
    assert f"Worst group: {found.worst_group}, {scoring} {min(last.values()):.3f}." in text
    (line,) = [line for line in text.splitlines() if line.startswith("worst case")]
    assert f"  {found['worst case'].score:.3f}  " in line
    assert ("went on after its success" in text) == (keep == "worst")
    assert ("attack_classes=[1] were attacked" in text) == (attack_classes is not None)
    as_dict = json.loads(json.dumps(found.to_dict()))
    assert as_dict["scoring"] == scoring
    assert as_dict["rows"]["PGD"]["score"] == found["PGD"].score
    assert (
        as_dict["rows"]["PGD"]["per_group"]["south"]["score"]
        == (found["PGD"].score_per_group["south"])
    )
    assert found.to_frame().loc["PGD", "score"] == found["PGD"].score


@pytest.mark.parametrize("scoring", ["recall", "average_precision"])
def test_a_group_in_which_there_is_nothing_to_score(clf, scoring):
    groups = np.where(Y == 1, "both", "fine")
    groups[np.flatnonzero(Y == 0)[::2]] = "both"
    found = robustness_report(clf, X, Y, scoring=scoring, groups=groups, **CHEAP)
    assert found.worst_group == "both"
    assert np.isnan(found["PGD"].score_per_group["fine"])
    assert found.to_dict()["rows"]["PGD"]["per_group"]["fine"]["score"] is None
    assert f"{scoring} is not defined for fine: " in str(found)
    json.dumps(found.to_dict(), allow_nan=False)


def test_attacks_that_fall_short_are_named(clf):
    options = CHEAP | {"attacks": {"FGSM": FGSM(), "closest": FAB(n_steps=2)}}
    text = " ".join(str(robustness_report(clf, X, Y, scoring="roc_auc", **options)).split())
    assert "less is done than is possible by attacks that stop where the prediction" in text
    assert "changes: closest." in text
    assert "closest." not in str(robustness_report(clf, X, Y, scoring="recall", **options))


def test_a_score_with_a_long_name(clf):
    scorer = get_scorer("roc_auc")
    found = robustness_report(clf, X, Y, scoring=scorer, groups=GROUPS, **CHEAP)
    assert found.scoring == repr(scorer)
    assert "  score  " in str(found).splitlines()[2]

    def caught(estimator, X, y):
        return recall_score(y, estimator.predict(X))

    found = robustness_report(clf, X, Y, scoring=caught, **CHEAP)
    assert "  caught  " in str(found).splitlines()[2]
    assert found["PGD"].score == found["PGD"].robust[Y == 1].mean()


# --- some classes --------------------------------------------------------------------


def test_other_classes_stay_as_they_are(clf):
    found = robustness_report(clf, X, Y, attack_classes=1, **CHEAP)
    for name, row in found.rows.items():
        assert row.per_class["0"] == found["clean"].per_class["0"], name
    assert found["PGD"].per_class["1"].accuracy < found["clean"].per_class["1"].accuracy
    assert "Only samples of attack_classes=1 were attacked" in str(found)
    with pytest.raises(ValueError, match="neither the model nor y knows"):
        robustness_report(clf, X, Y, attack_classes="fraud", **CHEAP)


@pytest.mark.slow
def test_flags_are_about_all_classes(clf):
    X_test, y_test = X[:40], Y[:40]
    found = robustness_report(clf, X_test, y_test, eps=EPS, attack_classes=1, autoattack=None)
    assert found.red_flags == red_flags(clf, X_test, y_test, eps=EPS)
