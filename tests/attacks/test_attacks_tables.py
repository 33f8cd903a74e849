"""Attacks on tables: GreedySearch, CAPGD, TabularAutoAttack, and what others do to categories."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_array_equal
from sklearn.compose import make_column_transformer
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from robustsk import FeatureSpace, attacks
from robustsk.attacks import APGD, CAPGD, GreedySearch, TabularAutoAttack
from robustsk.attacks._moves import Moves, random_rows
from robustsk.attacks.noise import SampleNoise
from robustsk.attacks.table_ball import TableBall
from robustsk.attacks.threat import Ball
from robustsk.datasets import make_loans

NUMBERS = ["age", "income", "amount", "n_total", "n_open"]
LABELS = ["purpose", "housing"]


class Scores:
    """A model of two classes with a score that is a function of the table."""

    classes_ = np.array([0, 1])

    def __init__(self, score):
        self.score_of, self.n_asked = score, 0

    def decision_function(self, X):
        self.n_asked += len(X)
        return np.asarray(self.score_of(X), dtype=float)

    def predict(self, X):
        return (np.asarray(self.score_of(X)) > 0).astype(int)


@pytest.fixture(scope="module")
def loans():
    X, y = make_loans(640, random_state=0)
    space = FeatureSpace(
        scale="range", immutable=["age"], monotone={"n_total": 1}, max_changes=1
    ).fit(X[:600])
    return X[:600], y[:600], X[600:], y[600:], space


def pipeline(model):
    columns = make_column_transformer(
        (StandardScaler(), NUMBERS), (OneHotEncoder(sparse_output=False), LABELS)
    )
    return make_pipeline(columns, model)


@pytest.fixture(scope="module")
def linear(loans):
    return pipeline(LogisticRegression()).fit(loans[0], loans[1])


@pytest.fixture(scope="module")
def forest(loans):
    model = ExtraTreesClassifier(10, max_depth=5, random_state=0)
    return pipeline(model).fit(loans[0], loans[1])


def all_corners(X, row, eps):
    """Return every row at the ends of what is possible, with at most one other category."""
    spans = {name: (X[name].min(), X[name].max()) for name in NUMBERS}
    ends = {"age": [row.age]}
    for name in ("income", "amount", "n_total", "n_open"):
        low, high = spans[name]
        reach = eps * (high - low)
        if name.startswith("n_"):
            reach = np.floor(reach + 1e-9)
        least = row[name] if name == "n_total" else max(low, row[name] - reach)
        ends[name] = [min(least, row[name]), max(min(high, row[name] + reach), row[name])]
    labels = [(row.purpose, row.housing)]
    labels += [(p, row.housing) for p in X.purpose.unique()]
    labels += [(row.purpose, h) for h in X.housing.unique()]
    corners = itertools.product(*(ends[name] for name in NUMBERS), labels)
    return pd.DataFrame([(*c[:-1], *c[-1]) for c in corners], columns=[*NUMBERS, *LABELS])


@pytest.mark.parametrize("attack", [GreedySearch, CAPGD])
def test_what_breaks_a_linear_model_is_found(attack, loans, linear):
    """A sum is lowest where each of its parts is: enumeration of the ends is exact."""
    X, _, rows, y, space = loans
    found = attack(linear, eps=0.05, space=space, random_state=0).generate(rows, y)
    every = [all_corners(X, row, 0.05) for _, row in rows.iterrows()]
    sizes = np.cumsum([len(corners) for corners in every])[:-1]
    predicted = np.split(linear.predict(pd.concat(every)[X.columns]), sizes)
    breaks = [(found != label).any() for found, label in zip(predicted, y, strict=True)]
    assert_array_equal(linear.predict(found) != y, breaks)
    assert 0.3 < np.mean(breaks) < 0.9


def test_most_of_what_breaks_a_forest_is_found(loans, forest):
    """Rows drawn at random within reach, and ends of it, add next to nothing."""
    _, _, rows, y, space = loans
    attack = GreedySearch(forest, eps=0.05, space=space, random_state=0)
    found, info = attack.generate(rows, y, return_info=True)
    left = forest.score(found, y)
    assert left < forest.score(rows, y) - 0.3
    assert info["n_queries"].mean() < 400
    clean = rows[forest.predict(found) == y]
    labels = y[forest.predict(found) == y]
    table = space.encode(clean)
    x = torch.from_numpy(np.array(table))
    ball = TableBall(x, np.inf, 0.05, table.space)
    n_broken = torch.zeros(len(x), dtype=torch.bool)
    for seed in range(25):
        z = random_rows(ball, SampleNoise(x, seed), 0)
        # the ends are where most of it is
        up = torch.rand(z.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
        corner = torch.where(ball.movable, torch.where(up, ball.lower, ball.upper), z)
        for points in (z, ball.settle(corner)):
            predicted = forest.predict(table.space.decode(points.numpy()))
            n_broken |= torch.from_numpy(predicted != labels)
    assert int(n_broken.sum()) <= 1


def test_pairs_find_what_no_column_does_alone():
    def score(X):
        return np.where((X["a"] > 0.5) & (X["b"] == "q"), 1.0, -1.0)

    X = pd.DataFrame({"a": [0.0, 0.2], "b": ["p", "p"], "c": [1.0, 2.0]})
    space = FeatureSpace(categories={"b": ["p", "q"]}, bounds=(0, 3), max_changes=1).fit(X)
    attack = GreedySearch(Scores(score), eps=1.0, space=space, n_restarts=1, random_state=0)
    found = attack.generate(X, [0, 0])
    assert_array_equal(score(found), 1)
    assert_array_equal(found.c, X.c)


def test_columns_are_moved_together():
    """One step is enough for a sum of many columns, whatever its signs."""
    rng = np.random.default_rng(0)
    X, weights = rng.uniform(size=(5, 20)), rng.normal(size=20)
    score = X @ weights
    model = Scores(lambda Z: Z @ weights - (score + 0.05 * np.abs(weights).sum()).max())
    attack = GreedySearch(model, eps=0.1, clip=None, n_steps=1, n_restarts=1, random_state=0)
    found = attack.generate(X, np.zeros(5, dtype=int))
    expected = X + 0.1 * np.sign(weights)
    reached = model.decision_function(expected) > 0
    assert reached.any()
    assert_array_equal(model.predict(found), reached.astype(int))


@pytest.mark.parametrize("max_queries", [1, 7, 60])
def test_questions_are_counted_and_capped(max_queries, loans, linear):
    _, _, rows, y, space = loans
    model = Scores(linear.decision_function)
    attack = GreedySearch(model, eps=0.05, space=space, max_queries=max_queries, random_state=0)
    run = attack.fit(rows)
    model.n_asked = 0
    _, info = run.generate(rows, y, return_info=True)
    assert info["n_queries"].max() <= max_queries
    # looking at a model before it is attacked takes a few questions as well
    assert 0 <= model.n_asked - info["n_queries"].sum() <= 2 * len(rows)


def test_the_dearer_of_two_ways_is_not_taken():
    X = pd.DataFrame({"dear": [0.0], "cheap": [0.0]})
    model = Scores(lambda Z: 2 * Z["dear"] + Z["cheap"] - 0.75)
    found = {}
    for costs in (None, {"dear": 10.0}):
        space = FeatureSpace(bounds=(0, 1), costs=costs).fit(X)
        attack = GreedySearch(model, norm=1, eps=10.0, space=space, n_steps=1, random_state=0)
        found[costs is None] = attack.generate(X, [0])
    assert model.predict(found[True]) == model.predict(found[False]) == 1
    assert found[True]["dear"].item() > 0
    assert found[False]["dear"].item() == 0


def test_says_so_where_nothing_changes_the_score(loans):
    _, _, rows, _, space = loans
    attack = GreedySearch(Scores(lambda X: -np.ones(len(X))), eps=0.05, space=space)
    with pytest.warns(UserWarning, match="No question changed the score of 40 of 40 samples"):
        _, info = attack.generate(rows, np.zeros(len(rows), dtype=int), return_info=True)
    assert not info["n_changes"].any()
    assert info["n_queries"].min() > 20


# --- moves -----------------------------------------------------------------------------


def moves_from(ball, z, n_columns=50, limit=1000):
    n_options = len(ball.options) if ball.is_table else 0
    order = torch.rand(len(z), z.shape[1] + n_options, generator=torch.Generator().manual_seed(0))
    return Moves(ball, z, order.to(z), n_columns, 9, torch.full((len(z),), limit))


@pytest.mark.parametrize(("norm", "eps"), [(np.inf, 0.2), (2.0, 0.3), (1.0, 0.4)])
def test_moves_of_numbers_lie_in_the_ball_and_use_it_up(norm, eps):
    x = torch.rand(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    eps = torch.tensor([eps, 2 * eps, eps, 0.0, eps], dtype=torch.float64)
    ball = Ball(x, norm, eps, torch.zeros(5), torch.ones(5))
    z = ball.project(x + 0.1)
    moves = moves_from(ball, z)
    part = ball.select(moves.rows)
    assert (part.distance(moves.points) <= ball.radius * (1 + 1e-9)).all()
    assert ((moves.points >= 0) & (moves.points <= 1)).all()
    moved = moves.points != z[moves.rows]
    assert not moved[:, 3].any()
    if norm == np.inf:
        assert (moved.sum(1) == 1).all()
        for row, column in ((0, 0), (1, 1), (3, 4)):
            every = np.linspace(ball.lower[row, column], ball.upper[row, column], 11)
            now = z[row, column].item()
            found = moves.points[(moves.rows == row) & moved[:, column], column].sort().values
            np.testing.assert_allclose(found, every[every != now])
    else:
        # all that is left of the radius goes to one column, or the others give way
        assert torch.isclose(part.distance(moves.points), torch.tensor(ball.radius).double()).any()
        assert (moved.sum(1) == 1).any()
    few = moves_from(ball, z, n_columns=2, limit=3)
    assert torch.bincount(few.rows).tolist() == [3, 3, 3, 3]


def test_moves_of_a_table_are_all_there_are():
    X = pd.DataFrame(
        {"n": [5, 9, 1], "home": ["a", "b", "c"], "kind": ["u", "v", "u"], "x": [0.0, 1.0, 0.5]}
    )
    space = FeatureSpace(max_changes=1, bounds={"n": (0, 10)}, immutable=["x"]).fit(X)
    table = space.encode(X)
    x = torch.from_numpy(np.array(table))
    ball = TableBall(x, np.inf, 3.0, table.space)
    moves = moves_from(ball, x)
    found = table.space.decode(moves.points.numpy())
    found["row"] = moves.rows.numpy()
    expected = [
        {**row, **change, "row": number}
        for number, row in enumerate(X.to_dict("records"))
        for change in (
            *({"n": n} for n in range(max(0, row["n"] - 3), min(10, row["n"] + 3) + 1)),
            *({"home": home} for home in "abc"),
            *({"kind": kind} for kind in "uv"),
        )
        if any(row[name] != value for name, value in change.items())
    ]
    names = list(found.columns)
    expected = pd.DataFrame(expected)[names].sort_values(names, ignore_index=True)
    assert_frame = pd.testing.assert_frame_equal
    assert_frame(found.sort_values(names, ignore_index=True), expected, check_dtype=False)
    # where one category has changed, another one takes its place
    z = x.clone()
    z[0, space.columns_.names.index("home")] = 1.0
    moves = moves_from(ball, z)
    found = table.space.decode(moves.points[moves.rows == 0].numpy())
    changed = (found[["home", "kind"]] != X[["home", "kind"]].iloc[0]).sum(axis=1)
    assert changed.max() == 1
    assert ((found.kind == "v") & (found.home == "a") & (found.n == 5)).sum() == 1


def test_random_rows_are_rows_of_the_space_and_differ():
    X = pd.DataFrame({"n": [5] * 40, "home": ["a", "b"] * 20, "kind": list("uvwx") * 10})
    X["x"] = np.linspace(0, 1, 40)
    space = FeatureSpace(max_changes=1, bounds={"n": (0, 10)}).fit(X)
    table = space.encode(X)
    x = torch.from_numpy(np.array(table))
    ball = TableBall(x, 2.0, 3.0, table.space)
    drawn = [random_rows(ball, SampleNoise(x, seed), 0) for seed in (0, 1)]
    for z in drawn:
        assert torch.equal(ball.settle(z), z)
        assert (ball.distance(z) <= 3.0).all()
        changed = ball.switched(z)[1]
        assert (changed.sum(1) <= 1).all()
        assert changed.any(0).all()
    assert not torch.equal(*drawn)


# --- CAPGD -----------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [np.inf, 2, 1])
def test_without_a_space_it_is_apgd(norm, loans, linear):
    X, y = loans[0][NUMBERS].to_numpy(dtype=float)[:60], loans[1][:60]
    X = StandardScaler().fit_transform(X)
    clf = LogisticRegression().fit(X, y)
    settings = {"norm": norm, "eps": 0.2, "n_steps": 10, "n_restarts": 2, "random_state": 0}
    expected = APGD(clf, **settings).fit(X).generate(X, y)
    assert_array_equal(CAPGD(clf, **settings).fit(X).generate(X, y), expected)
    # and what is in reach of a linear model is known
    if norm == np.inf:
        clf.coef_ *= 3
        attack = CAPGD(clf, eps=0.05, clip=None, random_state=0)
        margin = clf.decision_function(X) * np.where(y == 1, 1, -1)
        broken = clf.predict(attack.generate(X, y)) != y
        assert_array_equal(broken, margin < 0.05 * np.abs(clf.coef_).sum())


@pytest.mark.parametrize("max_changes", [1, 2, None])
def test_groups_and_numbers_of_a_linear_model_are_exact(max_changes):
    """Each group offers its largest gain; a row takes the best of them."""
    rng = np.random.default_rng(0)
    groups = [[3, 4, 5], [6, 7, 8, 9]]
    codes = [np.eye(len(g))[rng.integers(len(g), size=80)] for g in groups]
    X = np.hstack([rng.normal(size=(80, 3)), *codes])
    y = (X @ rng.normal(size=10) > 0).astype(int)
    clf = LogisticRegression(C=10).fit(X, y)
    space = FeatureSpace(groups=groups, bounds=None, max_changes=max_changes).fit(X)
    attack = CAPGD(clf, eps=0.1, space=space, random_state=0)
    broken = clf.predict(attack.generate(X, y)) != y
    sign = np.where(y == 1, -1, 1)
    weights = sign[:, None] * clf.coef_
    gains = [weights[:, g].max(1) - (weights[:, g] * X[:, g]).sum(1) for g in groups]
    gains = np.sort(gains, axis=0)[::-1][:max_changes].sum(0)
    reach = sign * clf.decision_function(X) + 0.1 * np.abs(clf.coef_[0, :3]).sum() + gains
    assert_array_equal(broken, reach > 0)
    assert 0.2 < broken.mean() < 0.95


def test_a_category_with_a_cost_leaves_less_for_numbers():
    X = np.array([[0.0, 1.0, 0.0]])
    clf = LogisticRegression().fit(np.vstack([X, [[1.0, 0.0, 1.0]]]), [0, 1])
    clf.coef_, clf.intercept_ = np.array([[1.0, 0.0, 1.0]]), np.array([-1.5])
    # 1 for the change leaves 0.6 in the 1-norm and the root of 1.56 in the 2-norm
    for norm, left in ((1, 0.6), (2, 1.56**0.5)):
        space = FeatureSpace(groups=[[1, 2]], costs={1: 1.0}, bounds=None, max_changes=1).fit(X)
        attack = CAPGD(clf, norm=norm, eps=1.6, space=space, random_state=0)
        table = space.encode(X)
        ball = TableBall(torch.from_numpy(np.array(table)), float(norm), 1.6, table.space)
        z = torch.tensor([[9.0, 0.0, 1.0]], dtype=torch.float64)
        inner = ball.with_categories(ball.settle(z))
        expected = torch.tensor([[left, 0.0, 1.0]], dtype=torch.float64)
        torch.testing.assert_close(inner.project(z), expected)
        torch.testing.assert_close(ball.settle(inner.project(z)), expected)
        assert clf.predict(attack.generate(X, [0])) == 1


# --- the other attacks ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("SquareAttack", {}),
        ("LocalSearch", {}),
        ("NES", {}),
        ("HopSkipJump", {}),
        ("BoundaryAttack", {}),
        ("LabelOnlyNES", {}),
    ],
)
def test_black_boxes_try_categories(name, settings):
    """Nothing but a category helps, and only one of them."""
    X = pd.DataFrame({"a": [0.1, 0.2, 0.3], "b": list("pqr"), "c": list("uvu")})
    space = FeatureSpace(max_changes=1, categories={"b": list("pqrs")}).fit(X)
    model = Scores(lambda Z: np.where(Z["b"] == "s", 1.0, -1.0) + 0 * Z["a"])
    cls = getattr(attacks, name)
    attack = cls(model, eps=0.1, space=space, max_queries=60, random_state=0, **settings)
    found, info = attack.generate(X, [0, 0, 0], return_info=True)
    assert list(found.b) == ["s"] * 3
    assert found.c.equals(X.c)
    assert info["n_queries"].max() <= 60


@pytest.mark.parametrize("name", ["NES", "SPSA", "ZOO"])
def test_estimated_gradients_see_integers(name):
    """A radius of one step and a half: half a radius would be rounded away."""
    X = pd.DataFrame({"n": [3, 4, 5, 6], "m": [7, 7, 7, 7]})
    space = FeatureSpace(bounds=(0, 10)).fit(X)
    model = Scores(lambda Z: 0.1 * (Z["n"] - Z["m"]) - 1)
    attack = getattr(attacks, name)(model, eps=1.4, space=space, max_queries=60, random_state=0)
    found, info = attack.generate(X, [0] * 4, return_info=True)
    assert info["n_slopes"].min() > 0
    assert list(found.n - X.n) == [1] * 4
    assert list(found.m - X.m) == [-1] * 4


def test_who_moves_numbers_only_says_so(loans, linear):
    _, _, rows, y, space = loans
    told = r"moves numbers only and 2 columns hold categories \(housing, purpose\)"
    with pytest.warns(UserWarning, match=f"PGD {told}"):
        found = attacks.PGD(linear, eps=0.05, space=space).generate(rows[:3], y[:3])
    assert found[LABELS].equals(rows[LABELS][:3])
    with pytest.raises(ValueError, match="DeepFool needs continuous columns"):
        attacks.DeepFool(linear, eps=0.05, space=space).generate(rows[:3], y[:3])


# --- all of them ------------------------------------------------------------------------


def test_the_cascade_is_as_strong_as_each_of_its_attacks(loans, linear, forest):
    X, _, rows, y, space = loans
    rows, y = rows[:25], y[:25]
    settings = {"eps": 0.03, "space": space, "random_state": 0}
    result = TabularAutoAttack(linear, **settings).fit(X).evaluate(rows, y)
    assert [stage.name for stage in result.stages] == ["GreedySearch", "CAPGD"]
    assert result.stages[1].n_backward > 0
    assert result.clean_accuracy == linear.score(rows, y)
    for attack in (GreedySearch, CAPGD):
        alone = linear.score(attack(linear, **settings).generate(rows, y), y)
        assert result.robust_accuracy <= alone < result.clean_accuracy
    result = TabularAutoAttack(forest, **settings).fit(X).evaluate(rows, y)
    assert [stage.name for stage in result.stages] == ["GreedySearch"]
    found = TabularAutoAttack(forest, **settings).generate(rows, y)
    assert forest.score(found, y) == result.robust_accuracy


@pytest.mark.parametrize(
    "name", ["GreedySearch", "CAPGD", "SquareAttack", "LocalSearch", "ZOO", "HopSkipJump"]
)
def test_each_row_has_a_radius_of_its_own(name, loans, linear):
    """Rows that may spend as much are attacked alike, whatever the others may."""
    X, _, rows, y, _ = loans
    space = FeatureSpace(scale="range", immutable=["age"]).fit(X)
    cls = getattr(attacks, name)
    settings = {"space": space, "random_state": 0}
    if cls().access != "gradients":
        settings["max_queries"] = 60
    eps = np.where(np.arange(8) < 4, 0.02, 0.2)[:, None]
    found = cls(linear, eps=eps, **settings).generate(rows[:8], y[:8])
    moved = (found[NUMBERS] - rows[NUMBERS][:8]).abs() / (X[NUMBERS].max() - X[NUMBERS].min())
    assert moved[:4].max().max() <= 0.02 * (1 + 1e-9)
    assert 0.02 < moved[4:].max().max() <= 0.2 * (1 + 1e-9)
