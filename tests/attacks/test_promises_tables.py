"""Every attack hands back rows of the space it was given; none is named here.

What a row may become is checked on the table that comes back, by code of its own.
"""

import warnings

import numpy as np
import pandas as pd
import pytest
from promises import ATTACKS, CHEAP, ids, make
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from robustsk import FeatureSpace, score_adversarial

N = 60
EPS = {np.inf: 0.3, 2.0: 0.6, 1.0: 0.9, 0.0: 2}
ALL = [
    pytest.param(
        cls,
        norm,
        id=f"{cls.__name__}-{norm:g}",
        marks=() if norm == float(cls().norm) else pytest.mark.slow,
    )
    for cls in ATTACKS
    for norm in cls.supported_norms
]


@pytest.fixture(scope="module")
def mixed():
    """A table of all that there is, and a forest that reads it."""
    rng = np.random.default_rng(0)
    X = pd.DataFrame(
        {
            "age": rng.integers(18, 70, N),
            "income": rng.normal(3e4, 1e4, N).round(2),
            "debt": rng.normal(0, 1, N).astype("float32"),
            "late": pd.array(rng.integers(0, 6, N), dtype="Int64"),
            "home": rng.choice(["own", "rent", "loan"], N),
            "flag": rng.random(N) < 0.5,
            "since": pd.date_range("2020-01-01", periods=N),
            "grade": pd.Categorical(rng.choice(list("abc"), N), list("abcd"), ordered=True),
        },
        index=np.arange(N) * 2 + 1,
    )
    y = np.where(X.debt + (X.home == "own") - 0.03 * (X.age - 40) > 0, "good", "bad")
    X.loc[X.index[::9], "income"] = np.nan
    X.loc[X.index[::8], "home"] = None
    X.loc[X.index[::7], "late"] = pd.NA
    numbers = make_pipeline(SimpleImputer(), StandardScaler())
    columns = ColumnTransformer(
        [
            ("numbers", numbers, ["income", "age", "debt"]),
            ("labels", OneHotEncoder(handle_unknown="ignore"), ["home", "flag", "grade"]),
        ]
    )
    clf = make_pipeline(columns, RandomForestClassifier(10, max_depth=5, random_state=0))
    return X, y, clf.fit(X, y)


@pytest.fixture(scope="module")
def numbers():
    """Numbers with a grid, integers and a one-hot group, and a linear model of them."""
    rng = np.random.default_rng(1)
    X = np.column_stack(
        [
            rng.normal(0, 1, N),
            rng.integers(0, 10, N),
            rng.normal(0, 1, N).round(1),
            rng.normal(0, 1, N),
            np.eye(3)[rng.integers(0, 3, N)],
        ]
    )
    y = (X[:, 0] + 0.3 * X[:, 1] + X[:, 2] - X[:, 3] + X[:, 4] > 1.5).astype(int)
    return X, y, LogisticRegression(max_iter=1000).fit(X, y)


def moves_of(before, after, limits, norm, eps):
    """Return what is wrong with the move of each row, a list of strings."""
    wrong = []
    for row in range(len(before)):
        costs, changes = [], 0
        for name, rule in limits.items():
            a, b = before[name].iloc[row], after[name].iloc[row]
            lost_a, lost_b = bool(pd.isna(a)), bool(pd.isna(b))
            if lost_a or lost_b:
                wrong += [] if lost_a and lost_b else [f"{row} {name}: {a} -> {b}"]
            elif rule is None:
                wrong += [] if a == b else [f"{row} {name} is frozen: {a} -> {b}"]
            elif isinstance(rule, set):
                changes += a != b
                wrong += [] if a == b or b in rule else [f"{row} {name}: {b} is no category"]
            else:
                low, high, unit, step, direction = rule
                moved = float(b) - float(a)
                costs.append(abs(moved) / unit)
                if direction * moved < 0:
                    wrong.append(f"{row} {name} runs the wrong way: {a} -> {b}")
                if step and abs(moved / step - round(moved / step)) > 1e-6:
                    wrong.append(f"{row} {name} is off the grid: {a} -> {b}")
                if not min(low, a) <= b <= max(high, a):
                    wrong.append(f"{row} {name} leaves the range: {a} -> {b}")
        length = np.count_nonzero(costs) if norm == 0 else np.linalg.norm(costs, ord=norm)
        wrong += [] if length <= eps * (1 + 1e-6) else [f"{row}: {length} > {eps}"]
        wrong += [] if changes <= limits_of_changes(limits) else [f"{row}: {changes} changes"]
    return wrong


def limits_of_changes(limits):
    return sum(isinstance(rule, set) for rule in limits.values()) and 1


def range_of(column, unit=None, step=0, direction=0):
    low, high = float(column.min()), float(column.max())
    return low, high, (high - low) if unit is None else unit, step, direction


@pytest.mark.parametrize(("cls", "norm"), ALL)
def test_a_mixed_table_comes_back_as_one_of_its_space(cls, norm, mixed):
    X, y, clf = mixed
    if cls().access not in ("scores", "labels"):
        pytest.skip("follows gradients, and a forest has none")
    space = FeatureSpace(scale="range", immutable=["flag"], monotone={"income": 1}, max_changes=1)
    rows, few = X[:12], {**CHEAP, "max_queries": 15}
    attack = make(cls, clf, norm=norm, eps=EPS[norm], space=space, random_state=0, settings=few)
    after = attack.fit(X).generate(rows, y[:12])
    pd.testing.assert_series_equal(after.dtypes, rows.dtypes)
    assert after.index.equals(rows.index)
    assert list(after.columns) == list(X.columns)
    assert list(after.grade.cat.categories) == list(X.grade.cat.categories)
    limits = {
        "age": range_of(X.age, step=1),
        "income": range_of(X.income, direction=1),
        "debt": range_of(X.debt),
        "late": range_of(X.late.dropna().astype(int), step=1),
        "home": {"own", "rent", "loan"},
        "flag": None,
        "since": None,
        "grade": set("abcd"),
    }
    assert moves_of(rows, after, limits, norm, EPS[norm]) == []
    assert after.since.equals(rows.since)
    assert after.flag.equals(rows.flag)
    # the columns in another order are attacked alike
    shuffled = rows[list(X.columns[::-1])]
    again = attack.generate(shuffled, y[:12])
    pd.testing.assert_frame_equal(again[list(X.columns)], after)
    # nothing is in reach
    still = attack._with(eps=0.0, space=FeatureSpace(max_changes=0)).fit(X)
    pd.testing.assert_frame_equal(still.generate(rows, y[:12]), rows)


@pytest.mark.parametrize(("cls", "norm"), ALL)
def test_numbers_come_back_as_ones_of_their_space(cls, norm, numbers):
    X, y, clf = numbers
    space = FeatureSpace(
        kinds={1: "integer"},
        step={2: 0.1},
        groups=[[4, 5, 6]],
        immutable=[3],
        scale="range",
        max_changes=1,
    )
    attack = make(cls, clf, norm=norm, eps=EPS[norm], space=space, random_state=0).fit(X)
    rows = X[:12]
    if cls().minimal and not cls().changes_categories:
        with pytest.raises(ValueError, match=r"needs continuous columns.*4, 5, 6.*GreedySearch"):
            attack.generate(rows, y[:12])
        attack.set_params(space__max_changes=0).fit(X)
    after = attack.generate(rows, y[:12])
    assert after.shape == rows.shape
    assert after.dtype == rows.dtype
    before, after = pd.DataFrame(rows), pd.DataFrame(after)
    limits = {
        0: range_of(pd.Series(X[:, 0])),
        1: range_of(pd.Series(X[:, 1]), step=1),
        2: range_of(pd.Series(X[:, 2]), step=0.1),
        3: None,
    }
    assert moves_of(before[[0, 1, 2, 3]], after[[0, 1, 2, 3]], limits, norm, EPS[norm]) == []
    group = after[[4, 5, 6]].to_numpy()
    assert np.isin(group, (0, 1)).all()
    assert (group.sum(axis=1) == 1).all()


@pytest.mark.parametrize("cls", ids(ATTACKS))
def test_a_table_is_attacked_with_some_success(cls, mixed, numbers):
    X, y, clf = numbers if cls().access not in ("scores", "labels") else mixed
    norm = cls().norm
    eps = {"eps": 0.4 if norm == np.inf else 3} if norm != 0 else {"eps": 3}
    space = FeatureSpace(scale="range")
    attack = make(
        cls, clf, space=space, random_state=0, settings={**CHEAP, "max_queries": 60}, **eps
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        robust = score_adversarial(clf, X[:30], y[:30], attack)
    assert robust < clf.score(X[:30], y[:30])
