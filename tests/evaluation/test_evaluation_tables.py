"""Scores and reports about tables of mixed columns."""

import json
import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from robustsk import (
    PGD,
    AdversarialAugmentation,
    FeatureSpace,
    GreedySearch,
    RobustnessCurveDisplay,
    adversarial_outcome,
    half_accuracy_eps,
    make_adversarial_scorer,
    make_loans,
    robustness_report,
    score_adversarial,
)
from robustsk.attacks import HopSkipJump, LocalSearch, SquareAttack

TRAIN, TEST = slice(0, 200), slice(200, 240)
FEW = {"max_queries": 60, "random_state": 0}


@pytest.fixture(scope="module")
def loans():
    X, y = make_loans(240, random_state=0)
    X.loc[::9, "income"] = np.nan
    X.loc[::7, "housing"] = None
    return X, np.where(y == 1, "bad", "good")


def pipeline(clf):
    encoder = make_column_transformer(
        (make_pipeline(SimpleImputer(), StandardScaler()), ["age", "income", "amount", "n_open"]),
        (OneHotEncoder(handle_unknown="ignore"), ["purpose", "housing"]),
    )
    return make_pipeline(encoder, clf)


@pytest.fixture(scope="module")
def logistic(loans):
    X, y = loans
    return pipeline(LogisticRegression(max_iter=1000)).fit(X[TRAIN], y[TRAIN])


@pytest.fixture(scope="module")
def space(loans):
    return FeatureSpace(scale="range", immutable=["age"], max_changes=1).fit(loans[0][TRAIN])


def in_polars(X):
    pl = pytest.importorskip("polars")
    values = {c: [None if v is None or v != v else v for v in X[c].tolist()] for c in X}
    return pl.DataFrame(values)


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        ("logistic", "pandas"),
        ("forest", "polars"),
        *(
            pytest.param(model, kind, marks=pytest.mark.slow)
            for model, kind in (
                ("logistic", "polars"),
                ("forest", "pandas"),
                ("boosting", "pandas"),
                ("boosting", "polars"),
            )
        ),
    ],
)
def test_usual_pipelines_with_strings_and_missing_values(model, kind, loans, space):
    X, y = loans
    X = X if kind == "pandas" else in_polars(X)
    clf = {
        "logistic": LogisticRegression(max_iter=1000),
        "forest": RandomForestClassifier(10, random_state=0),
        "boosting": HistGradientBoostingClassifier(max_iter=10),
    }[model]
    clf = pipeline(clf).fit(X[TRAIN], y[TRAIN])
    clean = clf.score(X[TEST], y[TEST])
    attacks = [
        GreedySearch(eps=0.1, max_queries=200, random_state=0),
        SquareAttack(eps=0.1, **FEW),
        LocalSearch(eps=0.1, **FEW),
        HopSkipJump(eps=0.1, **FEW),
    ]
    attacks += [PGD(eps=0.1, n_steps=5, random_state=0)] if model == "logistic" else []
    known = space if kind == "pandas" else FeatureSpace(**space.get_params()).fit(X[TRAIN])
    for attack in attacks:
        outcome = adversarial_outcome(clf, X[TEST], y[TEST], attack.set_params(space=known))
        assert outcome.robust.mean() < clean
        assert type(outcome.X_adv) is type(X)
        # the last word is that of the pipeline, on the table that comes back
        assert np.array_equal(clf.predict(outcome.X_adv) == y[TEST], outcome.robust)
    # numbers alone, in a table of which nothing is said
    plain = SquareAttack(eps=dict.fromkeys(X.columns, 2000.0), **FEW)
    assert score_adversarial(clf, X[TEST], y[TEST], plain) <= clean


def test_one_category_hides_most_of_the_risk(loans, logistic, space):
    X, y = loans
    scores = [
        score_adversarial(
            logistic,
            X[TEST],
            y[TEST],
            GreedySearch(eps=0.05, space=space.set_params(max_changes=most), random_state=0),
        )
        for most in (0, 1)
    ]
    space.set_params(max_changes=1)
    assert scores[1] < scores[0] - 0.2


def test_report(loans, logistic, space):
    X, y = loans
    frozen = FeatureSpace(scale="range", immutable=["age"], monotone={"n_open": -1}).fit(X[TRAIN])
    attacks = {"GreedySearch": GreedySearch(random_state=0, max_queries=300)}
    report = robustness_report(
        logistic, X[TEST], y[TEST], eps=0.1, space=frozen, attacks=attacks, red_flags=False
    )
    sections = report.to_dict()["sections"]
    reach = {item["column"]: item for item in sections["columns_in_reach"]}
    assert list(reach) == list(X.columns)
    assert {name: item["frozen"] for name, item in reach.items()} == {
        **dict.fromkeys(X.columns),
        "age": "immutable",
        "purpose": "max_changes is 0",
        "housing": "max_changes is 0",
    }
    assert reach["income"]["up"] == pytest.approx(0.1 * np.ptp(X.income[TRAIN].dropna()))
    assert reach["income"]["share_of_range"] == pytest.approx(0.1)
    assert reach["n_open"]["up"] == 0
    assert reach["n_open"]["down"] == np.floor(0.1 * np.ptp(X.n_open[TRAIN]))
    assert reach["n_open"]["down"] > 0
    text = str(report)
    assert "2 categorical columns were frozen: housing, purpose." in text
    assert "FeatureSpace(max_changes=1)" in text
    broken = int((report["clean"].robust & ~report["worst case"].robust).sum())
    found = sections["columns_that_break"]
    assert sum(item["n_rows"] for item in found) == broken > 0
    assert all(set(item["columns"]) <= {"income", "amount", "n_open"} for item in found)
    assert "<summary>Columns that break rows" in report.to_html()
    json.dumps(report.to_dict())


def test_the_columns_of_a_report_are_all_needed(loans, logistic, space):
    X, y = loans
    attack = GreedySearch(eps=0.05, space=space, random_state=0, max_queries=300)
    outcome = adversarial_outcome(logistic, X[TEST], y[TEST], attack)
    report = robustness_report(
        logistic, X[TEST], y[TEST], attacks={"it": attack}, space=space, red_flags=False
    )
    # one change alone: no smaller set could be reported
    alone = {
        name
        for row in np.flatnonzero(outcome.correct & ~outcome.robust)
        for name in ("purpose", "housing")
        if _breaks(logistic, X[TEST].iloc[[row]], y[TEST][row], outcome.X_adv.iloc[row], name)
    }
    found = report.to_dict()["sections"]["columns_that_break"]
    assert {item["columns"][0] for item in found if len(item["columns"]) == 1} >= alone
    assert alone


def _breaks(clf, row, label, example, name):
    if pd.isna(example[name]) or example[name] == row[name].iloc[0]:
        return False
    others = [c for c in row if c != name]
    same = all(example[c] == row[c].iloc[0] or pd.isna(example[c]) for c in others)
    return same and clf.predict(row.assign(**{name: example[name]}))[0] != label


def test_scores_of_ranking_classes_and_groups(loans, logistic, space):
    X, y = loans
    attack = PGD(eps=0.1, n_steps=5, space=space, random_state=0)
    auc = score_adversarial(logistic, X[TEST], y[TEST], attack, scoring="roc_auc")
    assert auc < roc_auc_score(y[TEST] == "good", logistic.predict_proba(X[TEST])[:, 1])
    outcome = adversarial_outcome(logistic, X[TEST], y[TEST], attack, attack_classes="bad")
    assert not outcome.attacked[y[TEST] == "good"].any()
    report = robustness_report(
        logistic,
        X[TEST],
        y[TEST],
        eps=0.1,
        space=space,
        attacks={"PGD": PGD(n_steps=5)},
        groups="purpose",
        scoring="balanced_accuracy",
        red_flags=False,
    )
    assert report.worst_group in set(X.purpose[TEST])


def test_search_and_curve(loans, logistic, space):
    pytest.importorskip("matplotlib").use("Agg")
    X, y = loans
    scorer = make_adversarial_scorer(GreedySearch(eps=0.05, space=space, **FEW))
    search = GridSearchCV(
        pipeline(LogisticRegression(max_iter=1000)),
        {"logisticregression__C": [0.01, 1.0]},
        scoring=scorer,
        cv=2,
    ).fit(X[:80], y[:80])
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    attack = SquareAttack(eps=0.1, space=space, **FEW)
    curve = RobustnessCurveDisplay.from_estimator(
        logistic, X[TEST], y[TEST], attack=attack, eps_range=[0, 0.1]
    )
    assert curve.accuracy[1] < curve.accuracy[0] == logistic.score(X[TEST], y[TEST])
    with pytest.raises(TypeError, match="only attacks, scores, reports"):
        half_accuracy_eps(logistic, X[TEST], y[TEST], attack)


def test_augmentation(loans, logistic, space):
    X, y = loans
    attack = GreedySearch(FrozenEstimator(logistic), eps=0.05, space=space, **FEW)
    more, labels = AdversarialAugmentation(attack=attack).fit_resample(X[:40], y[:40])
    assert len(more) == len(labels) == 80
    pd.testing.assert_series_equal(more.dtypes, X.dtypes)
    assert set(more.purpose) <= set(X.purpose)


def test_samplers_of_imbalanced_learn(loans, space):
    over_sampling = pytest.importorskip("imblearn.over_sampling")
    from imblearn.pipeline import make_pipeline as with_samplers

    X, y = loans
    encoder = pipeline(LogisticRegression())[0]
    clf = with_samplers(
        encoder, over_sampling.SMOTE(random_state=0), LogisticRegression(max_iter=1000)
    ).fit(X[TRAIN], y[TRAIN])
    clean = clf.score(X[TEST], y[TEST])
    for attack in (
        PGD(eps=0.1, n_steps=5, space=space, random_state=0),
        GreedySearch(eps=0.1, space=space, **FEW),
    ):
        assert score_adversarial(clf, X[TEST], y[TEST], attack) < clean


def test_nothing_is_warned_of_where_nothing_is_wrong(loans, logistic, space):
    X, y = loans
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score_adversarial(logistic, X[TEST], y[TEST], GreedySearch(eps=0.05, space=space, **FEW))
