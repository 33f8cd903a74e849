"""What the columns of a table may become: learning, limits, messages, golden numbers."""

import pickle
import warnings
from datetime import date

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import csr_array
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from robustsk import CAPGD, PGD, FeatureSpace, PGDATClassifier, score_adversarial
from robustsk.attacks import SquareAttack
from robustsk.attacks.table_ball import TableBall


def ball(space, X, norm, eps, **limits):
    """Return rows as numbers, and what is in reach of them."""
    rows = space.encode(X)
    x = torch.from_numpy(np.array(rows))
    return x, TableBall(x, norm, eps, rows.space, **limits)


def settled(space, X, Z, norm, eps, **limits):
    _, reach = ball(space, X, norm, eps, **limits)
    return reach.settle(torch.as_tensor(np.asarray(Z, dtype=float))).numpy()


@pytest.fixture
def loans():
    return pd.DataFrame(
        {
            "age": [30, 45, 60, 90],
            "home": ["own", "rent", "loan", "own"],
            "owns_car": [True, False, True, True],
            "rate": [1.0, 3.0, np.nan, 11.0],
        }
    )


def test_kinds_are_those_of_the_dtypes():
    X = pd.DataFrame(
        {
            "f": [0.5, 1.0],
            "i": [1, 2],
            "u": np.array([1, 2], dtype=np.uint8),
            "n": pd.array([1, None], dtype="Int64"),
            "b": [True, False],
            "s": ["a", "b"],
            "c": pd.Categorical(["a", "b"]),
            "o": pd.Categorical(["lo", "hi"], ["lo", "hi"], ordered=True),
            "d": pd.date_range("2020", periods=2),
            "id": [2**60, 2**61],
        }
    )
    with pytest.warns(UserWarning, match="left as") as told:
        space = FeatureSpace().fit(X)
    assert space.kinds_ == {
        "f": "real",
        "i": "integer",
        "u": "integer",
        "n": "integer",
        "b": "categorical",
        "s": "categorical",
        "c": "categorical",
        "o": "ordinal",
        "d": "frozen",
        "id": "frozen",
    }
    assert len(told) == 1
    assert "['d', 'id']" in str(told[0].message)


@pytest.mark.parametrize("kind", ["pandas", "polars", "object"])
def test_numbers_and_back(kind, loans):
    X = loans
    if kind == "polars":
        pl = pytest.importorskip("polars")
        X = pl.DataFrame({c: [None if v != v else v for v in loans[c].tolist()] for c in loans})
    elif kind == "object":
        X = loans.to_numpy(dtype=object)
    space = FeatureSpace().fit(X)
    rows = space.encode(X)
    again = space.decode(rows)
    assert np.isfinite(rows).all()
    if kind == "object":
        assert [[v if v == v else None for v in row] for row in again] == [
            [v if v == v else None for v in row] for row in X
        ]
    else:
        assert again.equals(X)
    back = rows.space.columns_.restore(np.asarray(rows), X)
    assert type(back) is type(X)


def test_missing_stays_missing_and_is_nobodys_neighbour(loans):
    space = FeatureSpace(scale="range").fit(loans)
    assert space.limits_.high[space.columns_.names.index("rate")] == 11.0
    rows = np.array(space.encode(loans))
    moved = settled(space, loans, rows + 0.3, np.inf, 0.5)
    frame = space.decode(moved)
    assert_array_equal(frame.rate.isna(), loans.rate.isna())


def test_nearest_integers_within_the_ball():
    # inf: rounding and then cutting is exact; 2: the largest overshoot gives way first
    X = np.array([[3, 3, 3, 3]])
    space = FeatureSpace(bounds=None).fit(np.array([[0, 0, 0, 0], [9, 9, 9, 9]]))
    z = [[4.6, 3.4, 1.2, 2.6]]
    assert_array_equal(settled(space, X, z, np.inf, 2.0), [[5, 3, 1, 3]])
    assert_array_equal(settled(space, X, z, np.inf, 1.9), [[4, 3, 2, 3]])
    assert_array_equal(settled(space, X, z, 2.0, 3.0), [[5, 3, 1, 3]])
    found = settled(space, X, z, 2.0, 2.5)
    assert np.linalg.norm(found - X) <= 2.5
    assert_array_equal(found, np.rint(found))
    assert_array_equal(settled(space, X, [[7, 3, 3, 3]], 1.0, 2.0), [[5, 3, 3, 3]])


def test_a_grid_begins_at_the_row():
    X = np.array([[0.37, 1.0]])
    space = FeatureSpace(step={0: 0.25}, bounds=None).fit(np.array([[0.0, 0.0], [1.0, 1.0]]))
    found = settled(space, X, [[0.99, 1.4]], np.inf, 0.6)
    assert_allclose(found, [[0.87, 1.4]])


@pytest.mark.parametrize("norm", [np.inf, 2.0, 1.0, 0.0])
def test_what_lies_in_the_space_is_returned_as_it_is(norm, loans):
    space = FeatureSpace(scale="range", max_changes=1).fit(loans)
    x, reach = ball(space, loans, norm, 0.4 if norm else 2)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    once = reach.settle(x + noise * torch.tensor([60.0, 2.0, 1.0, 10.0]))
    assert torch.equal(reach.settle(once), once)
    assert torch.equal(reach.settle(x), x)
    assert not torch.equal(once, x)


def test_at_most_so_many_categories_change_and_the_cheapest_first(loans):
    X = loans[["home", "owns_car"]]
    costs = {"home": 0.2, "owns_car": 0.1}
    rows = np.array(FeatureSpace().fit(X).encode(X))
    other = (rows + 1) % [3, 2]
    for most, norm, eps, expected in [
        (0, np.inf, 1.0, 0),
        (1, np.inf, 1.0, 1),
        (2, np.inf, 1.0, 2),
        (None, np.inf, 0.15, 1),
        (None, 1.0, 0.3, 2),
        (None, 1.0, 0.25, 1),
        (None, 2.0, np.sqrt(0.05), 2),
        (None, 2.0, 0.2, 1),
        (None, 1.0, 0.05, 0),
    ]:
        space = FeatureSpace(costs=costs, max_changes=most).fit(X)
        changed = settled(space, X, other, norm, eps) != rows
        assert (changed.sum(axis=1) == expected).all(), (most, norm, eps)
        if expected == 1:
            assert changed[:, space.columns_.names.index("owns_car")].all()


def test_categories_use_up_what_numbers_would_have():
    X = pd.DataFrame({"x": [0.0, 1.0], "c": ["a", "b"]})
    space = FeatureSpace(costs={"c": 0.3}, max_changes=1, bounds=None).fit(X)
    z = np.array(space.encode(X))
    names = space.columns_.names
    z[:, names.index("c")] = [1, 0]
    z[:, names.index("x")] += 9
    for norm, left in [(np.inf, 0.5), (1.0, 0.2), (2.0, 0.4)]:
        found = settled(space, X, z, norm, 0.5)
        assert_allclose(found[:, names.index("x")] - [0, 1], left)


def test_how_many_change_may_be_said_after_fit(loans):
    X = loans[["home"]]
    space = FeatureSpace().fit(X)
    x = torch.from_numpy(np.array(space.encode(X)))
    for most in (0, 1, 0):
        space.set_params(max_changes=most)
        found = TableBall(x, np.inf, 1.0, space).settle((x + 1) % 3)
        assert torch.equal(found, (x + 1) % 3 if most else x)


def test_a_table_of_costs_forbids_moves():
    X = pd.DataFrame({"c": ["a", "b", "c"]})
    table = pd.DataFrame([[0, 0.2, np.inf], [0.5, 0, 0.1], [0.1, 0.1, 0]], list("abc"), list("abc"))
    space = FeatureSpace(costs={"c": table}, max_changes=1).fit(X)
    found = settled(space, X, [[2.0], [0.0], [0.0]], np.inf, 0.3)
    assert_array_equal(found, [[0.0], [1.0], [0.0]])


def test_ordinal_moves_by_ranks_and_one_way():
    X = pd.DataFrame({"g": pd.Categorical(["lo", "mid", "hi"], ["lo", "mid", "hi"], ordered=True)})
    space = FeatureSpace(monotone={"g": 1}, max_changes=1).fit(X)
    assert_array_equal(settled(space, X, [[2.0], [2.0], [0.0]], np.inf, 1.0), [[0], [2], [2]])
    assert_array_equal(settled(space, X, [[2.0], [0.0], [0.0]], np.inf, 2.0), [[2], [1], [2]])


def test_one_hot_groups_switch_as_one():
    X = np.array([[0.0, 1, 0, 0], [1.0, 0, 0, 1], [2.0, 0, 1, 0]])
    space = FeatureSpace(groups=[[1, 2, 3]], max_changes=1).fit(X)
    z = X.copy()
    z[0, 1:] = [0.4, 0.9, 0.3]
    z[1, 1:] = [0.5, 0.5, 0.5]  # a tie keeps what there is
    z[2, 1:] = [0.2, 0.6, 0.1]
    assert_array_equal(settled(space, X, z, np.inf, 0.0)[:, 1:], [[0, 1, 0], [0, 0, 1], [0, 1, 0]])
    loose = FeatureSpace(groups=[([1, 2, 3], True)], max_changes=1).fit(np.r_[X, [[0, 0, 0, 0]]])
    z[0, 1:] = [0.3, 0.2, 0.1]
    assert_array_equal(settled(loose, X, z, np.inf, 0.0)[0, 1:], [0, 0, 0])


def test_bounds_of_the_row_itself_and_of_other_columns():
    X = pd.DataFrame({"a": [1.0, 5.0], "b": [2.0, 6.0]})
    space = FeatureSpace(bounds={"a": ("x", 4.0)}).fit(X)
    assert_allclose(settled(space, X, [[-9, 2], [-9, 6]], np.inf, 3.0)[:, 0], [1, 5])
    assert_allclose(settled(space, X, [[9, 2], [9, 6]], np.inf, 99.0)[:, 0], [4, 5])


def test_what_costs_more_in_one_direction_moves_less():
    X = np.array([[0.0], [0.0]])
    space = FeatureSpace(costs={0: (2.0, 0.5)}, bounds=None).fit(X)
    for norm in (np.inf, 2.0, 1.0):
        assert_allclose(settled(space, X, [[9.0], [-9.0]], norm, 1.0), [[2.0], [-0.5]])
    free = FeatureSpace(costs={0: (np.inf, 0.0)}, bounds=(-3, 5)).fit(X)
    assert_allclose(settled(free, X, [[9.0], [-9.0]], 1.0, 1.0), [[5.0], [0.0]])


def test_gower():
    # ages 30 and 45 of a range of 60, another category, an equal one, 2/3 of a range of 10
    X = pd.DataFrame(
        {"age": [30, 45, 90], "home": list("abb"), "sex": list("mmm"), "x": [0.0, 2 / 3 * 10, 10.0]}
    )
    space = FeatureSpace.gower(X)
    distance = (15 / 60 + 1 + 0 + 2 / 3) / 4
    assert distance == pytest.approx(0.479167, abs=1e-6)
    wanted = np.array(space.encode(X[1:2]))
    for eps, reached in [(distance + 1e-9, True), (distance - 1e-3, False)]:
        found = settled(space, X[:1], wanted, 1.0, eps)
        assert np.array_equal(found, wanted) == reached


def test_in_tabularbench_no_category_changes_within_a_half():
    X = pd.DataFrame({"x": [0.0, 10.0], "c": ["a", "b"]})
    for norm, price in [(2, 2**0.5), (np.inf, 1.0), (1, 2.0)]:
        space = FeatureSpace.tabularbench(norm).fit(X)
        z = np.array(space.encode(X[::-1]))
        names = space.columns_.names
        c = names.index("c")
        assert_array_equal(settled(space, X, z, norm, 0.5)[:, c], np.array(space.encode(X))[:, c])
        assert_array_equal(settled(space, X, z, norm, price + 1e-6)[:, c], z[:, c])


def test_a_budget_for_each_row():
    X = np.array([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    y = np.array([0, 1, 0])
    clf = LogisticRegression().fit([[0.0, 0.0], [1.0, 1.0]], [0, 1])
    space = FeatureSpace.budget({0: 1.0, 1: 4.0}, bounds=None).fit(X)
    budget = np.array([[1.0], [2.0], [0.0]])
    found = PGD(clf, norm=1, eps=budget, space=space, random_state=0).generate(X, y)
    spent = np.abs(found) @ [1.0, 4.0]
    assert_allclose(spent, [1.0, 2.0, 0.0], atol=1e-9)


def test_what_a_fitted_column_transformer_knows(loans):
    columns = ColumnTransformer(
        [
            ("n", StandardScaler(), ["age"]),
            ("c", make_pipeline(OneHotEncoder()), ["home", "owns_car"]),
            ("d", "drop", ["rate"]),
        ]
    )
    pipe = make_pipeline(columns, LogisticRegression()).fit(loans, [0, 1, 0, 1])
    space = FeatureSpace.from_pipeline(pipe, loans, max_changes=1)
    assert space.kinds_ == {
        "age": "integer",
        "home": "categorical",
        "owns_car": "categorical",
        "rate": "frozen",
    }
    with pytest.raises(TypeError, match="ColumnTransformer"):
        FeatureSpace.from_pipeline(LogisticRegression().fit([[0.0], [1.0]], [0, 1]), loans)


def test_an_unknown_category_stays(loans):
    space = FeatureSpace(max_changes=1).fit(loans[:2])
    rows = space.encode(loans)
    assert_array_equal(rows.space.unknown(np.asarray(rows)).sum(axis=1), [0, 0, 1, 0])
    _, reach = ball(space, loans, np.inf, 1.0)
    z = np.array(rows)
    z[:, space.columns_.names.index("home")] = 0
    found = space.encode(loans).space.decode(reach.settle(torch.from_numpy(z)).numpy())
    assert found.home[2] == "loan"


def test_missing_may_be_one_more_category():
    X = pd.DataFrame({"c": ["a", None, "b"]})
    held, allowed = (FeatureSpace(missing=m, max_changes=1).fit(X) for m in ("frozen", "allowed"))
    z = [[2.0], [0.0], [2.0]]
    assert_array_equal(settled(held, X, z, np.inf, 1.0), [[1], [2], [1]])
    assert_array_equal(settled(allowed, X, z, np.inf, 1.0), [[2], [0], [2]])


def test_a_category_of_another_fit_has_room_or_is_left_out():
    X = pd.DataFrame({"c": pd.Categorical(["a", "b"], ["a", "b", "c"])})
    space = FeatureSpace(max_changes=1).fit(X)
    few = pd.DataFrame({"c": pd.Categorical(["a", "b"], ["a", "b"])})
    found = settled(space, few, [[2.0], [2.0]], np.inf, 1.0)
    assert_array_equal(found, [[0.0], [1.0]])


def test_names_are_obeyed_and_not_places(loans):
    first = FeatureSpace(scale={"age": 10, "rate": 2}).fit(loans)
    second = FeatureSpace(scale=pd.Series({"rate": 2, "age": 10})).fit(loans[loans.columns[::-1]])
    assert_array_equal(first.limits_.unit, second.limits_.unit)
    by_place = FeatureSpace(immutable=[True, False, False, False]).fit(loans)
    assert by_place.limits_.is_immutable[by_place.columns_.names.index("age")]
    columns = ColumnTransformer(
        [("n", StandardScaler(), ["age"]), ("c", OneHotEncoder(), ["home", "owns_car"])]
    )
    pipe = make_pipeline(columns, LogisticRegression()).fit(loans, [0, 1, 0, 1])
    for mask in (["age"], [True, False, False, False], {c: c == "age" for c in loans}):
        attack = SquareAttack(pipe, eps=30, mask=mask, max_queries=20, random_state=0).fit(loans)
        after = attack.generate(loans)
        assert not after.age.equals(loans.age)
        pd.testing.assert_frame_equal(after.drop(columns="age"), loans.drop(columns="age"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"immutable": ["agee"]}, r"names columns that X does not have: \['agee'\].*'age'"),
        ({"kinds": {"age": "int"}}, "must be one of"),
        ({"kinds": {"home": "real"}}, "declared real and holds"),
        ({"kinds": {"age": "real"}}, "integer dtype"),
        ({"kinds": {"rate": "integer"}}, "declared integer and holds 2.5 in row 1"),
        ({"bounds": {"age": (80, 18)}}, "'age': low 80 > high 18"),
        ({"scale": "width"}, "must be None, one of"),
        ({"scale": [1.0, 2.0]}, "2 values for 4 columns"),
        ({"costs": {"home": [[0, 1], [1, 0]]}}, "shape"),
        ({"costs": {"age": -1}}, "negative"),
        ({"monotone": {"age": 2}}, "must hold 1 and -1"),
        ({"missing": "never"}, "'frozen' or 'allowed'"),
        ({"step": {"age": 0.5}}, "must be whole"),
        ({"scale": {"age": -1}}, "not be negative or NaN"),
        ({"bounds": {"age": 18}}, "pair"),
        ({"max_changes": -1}, "number of categories"),
        ({"max_changes": "all"}, "number of categories"),
        ({"monotone": {"home": 1}}, "have no order"),
        ({"step": {"age": -1}}, "must not be negative"),
        ({"categories": {"home": ["own", "own"]}}, "twice"),
    ],
)
def test_messages(settings, message, loans):
    X = loans.assign(rate=[1.0, 2.5, np.nan, 11.0])
    with pytest.raises(ValueError, match=message):
        FeatureSpace(**settings).fit(X)


def test_messages_about_rows(loans):
    with pytest.raises(ValueError, match=r"one-hot group .* of row 1 sums to 2"):
        FeatureSpace(groups=[[0, 1]]).fit(np.array([[1, 0], [1, 1]]))
    with pytest.raises(ValueError, match="two groups"):
        FeatureSpace(groups=[[0, 1], [1, 2]]).fit(np.eye(3))
    space = FeatureSpace().fit(loans)
    with pytest.raises(ValueError, match=r"other columns.*'new'.*'rate'"):
        space.encode(loans.rename(columns={"rate": "new"}))
    with pytest.raises(ValueError, match="'rate' holds labels in X"):
        space.encode(loans.assign(rate=["a"] * 4))
    with pytest.raises(NotFittedError):
        FeatureSpace().encode(loans)
    with pytest.raises(ValueError, match=r"\['rate'\] hold infinity"):
        space.encode(loans.assign(rate=[1.0, np.inf, 2.0, 3.0]))
    with pytest.raises(NotFittedError, match="immutable of this FeatureSpace has changed"):
        FeatureSpace().fit(loans).set_params(immutable=["age"]).encode(loans)
    with pytest.raises(TypeError, match="space must be a FeatureSpace"):
        SquareAttack(eps=1.0, space={"age": 1}).fit(loans)
    with pytest.raises(ValueError, match="has no rows"):
        space.encode(loans[:0])
    with pytest.raises(TypeError, match="sparse"):
        FeatureSpace().fit(csr_array(np.eye(3)))
    with pytest.raises(TypeError, match=r"takes numbers, and .*'home'"):
        PGDATClassifier().fit(loans, [0, 1, 0, 1])


def test_eps_by_name_and_its_message(loans):
    columns = ColumnTransformer([("n", StandardScaler(), ["age"])])
    pipe = make_pipeline(columns, LogisticRegression()).fit(loans, [0, 1, 0, 1])
    eps = {"age": 20.0, "home": 0, "owns_car": 0, "rate": 0}
    attack = SquareAttack(eps=eps, max_queries=20, random_state=0)
    score = score_adversarial(pipe, loans, [0, 1, 0, 1], attack)
    series = attack._with(eps=pd.Series(eps)[::-1])
    assert score_adversarial(pipe, loans[loans.columns[::-1]], [0, 1, 0, 1], series) == score
    with pytest.raises(ValueError, match=r"does not have: \['agee'\]. Did you mean 'age'\?"):
        score_adversarial(pipe, loans, [0, 1, 0, 1], attack._with(eps={**eps, "agee": 1}))
    # what a dict does not name stays as it is
    some = attack._with(eps={"age": 20.0})
    assert score_adversarial(pipe, loans, [0, 1, 0, 1], some) == score
    with pytest.raises(ValueError, match="have no value"):
        score_adversarial(pipe, loans, [0, 1, 0, 1], attack._with(eps=pd.Series({"age": 1.0})))
    with pytest.warns(UserWarning, match="changes most features by no more than"):
        score_adversarial(pipe, loans, [0, 1, 0, 1], attack._with(eps=0.001))


def test_clone_and_pickle(loans):
    space = FeatureSpace(scale="range", max_changes=1, monotone={"age": 1})
    assert clone(space).get_params() == space.get_params()
    fitted = pickle.loads(pickle.dumps(space.fit(loans)))
    rows = fitted.encode(loans)
    assert_array_equal(rows, space.encode(loans))
    pd.testing.assert_frame_equal(pickle.loads(pickle.dumps(rows)).space.decode(rows), loans)
    attack = SquareAttack(eps=0.1, space=space)
    assert attack.get_params()["space__scale"] == "range"
    assert clone(attack).set_params(space__max_changes=2).space.max_changes == 2


def test_bytes_stay_bytes():
    rng = np.random.default_rng(0)
    X = rng.integers(0, 256, (6, 1, 4, 4)).astype(np.uint8)
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attack = PGD(net, eps=2.5, clip=(0, 255), space=FeatureSpace(), random_state=0).fit(X)
        found = attack.generate(X)
    assert found.dtype == np.uint8
    change = found.astype(int) - X
    assert np.abs(change).max() == 2
    tensors = torch.from_numpy(X.astype("float32"))
    space = FeatureSpace(kinds="integer").fit(tensors)
    adversarial = PGD(net, eps=2.5, clip=(0, 255), space=space, random_state=0).generate(tensors)
    assert isinstance(adversarial, torch.Tensor)
    assert torch.equal(adversarial, adversarial.round())


def test_relations_hold_and_rows_that_contradict_them_stay():
    rng = np.random.default_rng(0)
    X = pd.DataFrame({"n_total": rng.integers(1, 30, 40), "rate": rng.uniform(0, 1, 40)})
    X["n_open"] = np.floor(X.n_total * rng.uniform(0, 1, 40)).astype(int)
    X["paid"] = X.n_total - X.n_open
    y = (X.n_open + 5 * X.rate > 8).astype(int)
    c = FeatureSpace().columns
    relations = [c.n_open <= c.n_total, c.paid == c.n_total - c.n_open]
    space = FeatureSpace(scale="range", relations=relations).fit(X)
    assert repr(clone(space)) == repr(space)
    clf = make_pipeline(StandardScaler(), LogisticRegression()).fit(X, y)
    for norm, eps in ((np.inf, 0.2), (2.0, 0.3), (1.0, 0.4)):
        for attack in (
            PGD(clf, norm=norm, eps=eps, space=space, random_state=0, n_steps=4),
            SquareAttack(clf, norm=norm, eps=eps, space=space, random_state=0, max_queries=15),
        ):
            found = attack.generate(X, y)
            assert (found.n_open <= found.n_total).all()
            assert (found.paid == found.n_total - found.n_open).all()
            moved = (found - X) / (X.max() - X.min())
            assert np.linalg.norm(moved, ord=norm, axis=1).max() <= eps * (1 + 1e-6)
            assert clf.score(found, y) < clf.score(X, y)
    X.loc[3, "paid"] = 99
    with pytest.warns(UserWarning, match=r"'paid == n_total - n_open'\] fail for 1 of 40 rows"):
        found, info = attack.generate(X, y, return_info=True)
    pd.testing.assert_frame_equal(found[3:4], X[3:4])
    assert_array_equal(np.flatnonzero(info["invalid_clean"]), [3])
    with pytest.warns(UserWarning, match=r"paid == n_total - n_open \(in 1 rows\)"):
        FeatureSpace(relations=relations).fit(X)


def test_a_column_bounds_another():
    X = pd.DataFrame({"a": [1.0, 2.0], "b": [3.0, 2.5]})
    space = FeatureSpace(bounds={"a": (0, "b"), "b": (0, 9)}).fit(X)
    found = settled(space, X, [[9.0, 0.0], [9.0, 2.5]], np.inf, 5.0)
    assert (found[:, 0] <= found[:, 1] * (1 + 1e-6)).all()


def test_training_within_a_space():
    rng = np.random.default_rng(0)
    X = pd.DataFrame({"z": rng.integers(0, 10, 80), "a": rng.uniform(0, 100, 80)})
    y = (10 * X.z + X.a > 95).astype(int)
    seen = []

    class Watched(PGD):
        def _attack_batch(self, batch):
            z = batch.ball.settle(super()._attack_batch(batch))
            seen.append((batch.x, z))
            return z

    adversary = Watched(eps=0.2, n_steps=3, space=FeatureSpace(scale="range", immutable=["a"]))
    PGDATClassifier(adversary=adversary, max_epochs=1, random_state=0, verbose=0).fit(X, y)
    x, z = (torch.cat(parts) for parts in zip(*seen, strict=True))
    assert torch.equal(x[:, 1], z[:, 1])
    assert torch.equal(z[:, 0], z[:, 0].round())
    assert (x[:, 0] != z[:, 0]).any()


def test_fractions_in_training_and_integers_in_the_test():
    # one value that is missing makes floats of integers
    train = pd.DataFrame({"age": [18, 30, np.nan, 70], "home": list("aabb")})
    test = pd.DataFrame({"age": [30, 50], "home": list("ab")})
    space = FeatureSpace(scale="range").fit(train)
    found = settled(space, test, [[99.0, 0], [-99.0, 1]], np.inf, 2.6 / 52)
    assert_array_equal(found[:, 0], [32, 48])


def test_narrower_integers_do_not_run_over():
    train = pd.DataFrame({"n": [0, 1000], "home": list("ab")})
    test = train.assign(n=np.array([100, 120], dtype=np.int8))
    found = settled(FeatureSpace().fit(train), test, [[0, 999.0], [1, -999.0]], np.inf, 500.0)
    assert_array_equal(found[:, 1], [127, 0])


def test_what_a_column_transformer_says_by_places():
    X = pd.DataFrame({"z": [1, 2, 3], "b": [4, 5, 6], "a": [7, 8, 9]})
    for first, last in (([0], [2]), ([True, False, False], slice("a", "a")), ("z", ["a"])):
        columns = ColumnTransformer(
            [("d", "drop", first), ("c", OneHotEncoder(), last)], remainder="passthrough"
        ).fit(X)
        kinds = FeatureSpace.from_pipeline(columns, X).kinds_
        assert kinds == {"z": "frozen", "b": "integer", "a": "categorical"}


def test_objects_are_looked_into():
    X = pd.DataFrame(
        {
            "n": np.array([1, 2], dtype=object),
            "x": np.array([1.5, None], dtype=object),
            "s": np.array(["a", None], dtype=object),
            "d": np.array([date(2020, 1, 1), date(2021, 1, 1)], dtype=object),
        }
    )
    with pytest.warns(UserWarning, match="neither number nor category"):
        space = FeatureSpace().fit(X)
    assert list(space.kinds_.values()) == ["integer", "real", "categorical", "frozen"]
    assert space.decode(space.encode(X)).dtypes.equals(X.dtypes)


def test_several_relations_pull_on_gradients():
    rng = np.random.default_rng(0)
    X = pd.DataFrame({"a": rng.uniform(0, 1, 40), "b": rng.uniform(1, 2, 40)})
    X["s"] = X.a + X.b
    y = (X.a + 2 * X.b > 3.5).astype(int)
    clf = LogisticRegression().fit(X, y)
    c = FeatureSpace().columns
    space = FeatureSpace(relations=[c.a <= c.b, c.s == c.a + c.b, c.s >= 1]).fit(X)
    found = CAPGD(clf, eps=0.3, space=space, random_state=0).generate(X, y)
    assert_allclose(found.s, found.a + found.b, rtol=1e-5)
    assert (found.a <= found.b).all()
    assert clf.score(found, y) < clf.score(X, y)


def test_a_network_says_what_it_needs(loans):
    net = torch.nn.Linear(4, 2).double()
    with pytest.raises(TypeError, match=r"takes numbers, and .*'home'"):
        SquareAttack(net, eps=1.0, max_queries=5).fit(loans).generate(loans)
