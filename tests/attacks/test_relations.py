"""Relations between columns: how they are written, what they are violated by, their repair."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import minimize
from sklearn.base import BaseEstimator, clone

from robustsk.victims.relations import (
    Column,
    Columns,
    Relations,
    count,
    exp,
    floor,
    log,
    safe_div,
    where,
)

c = Columns()
PURPOSES = ["car", "debt", "house"]


def code_of(name, label):
    """Return the code of a purpose, and numbers as they are."""
    if name == "purpose":
        if label not in PURPOSES:
            raise ValueError(f"{label!r} is not among the categories of {name!r}: {PURPOSES}.")
        return PURPOSES.index(label)
    if name == "term":
        return [36, 60].index(label)
    return float(label)


CATEGORIES = {"purpose": PURPOSES, "term": [36, 60], "flag": [False, True]}


def bound(*relations, names="abcd", **options):
    return Relations(relations, list(names), code_of, **options)


def table(n=7, d=4, low=0.5, high=3.0, seed=0):
    return np.random.default_rng(seed).uniform(low, high, (n, d))


# how they are written


@pytest.mark.parametrize(
    ("relation", "text"),
    [
        (c.n_open <= c.n_total, "n_open <= n_total"),
        (5 > c.a - c.b, "a - b < 5"),  # noqa: SIM300
        (np.float64(5) >= c.a, "a <= 5.0"),
        (np.int64(5) == c.a, "a == 5"),
        (c.purpose == "car", "purpose == 'car'"),
        ("car" == c.purpose, "purpose == 'car'"),  # noqa: SIM300
        (np.str_("car") != c.purpose, "purpose != 'car'"),
        (c.flag == np.True_, "flag == True"),
        (c["two words"] < Column(3), "Column('two words') < Column(3)"),
        (c.a - (c.b - c.d) == c.a - c.b - c.d, "a - (b - d) == a - b - d"),
        (c.a / (c.b * 2) >= (c.a + 1) * -c.b, "a / (b * 2) >= (a + 1) * -b"),
        ((c.a**2) ** c.b <= c.a ** (2**c.b), "(a ** 2) ** b <= a ** 2 ** b"),
        ((-c.a) ** 2 > -(c.a**2), "(-a) ** 2 > -a ** 2"),
        ((c.a - (-3)) % 2 == 1, "(a - -3) % 2 == 1"),
        (c.a // 2 == floor(c.b), "floor(a / 2) == floor(b)"),
        (abs(c.a) <= exp(c.b) + math.floor(c.d), "abs(a) <= exp(b) + floor(d)"),
        (np.log(c.a) < np.sqrt(2 * c.b), "log(a) < (2 * b) ** 0.5"),
        (np.float64(2) * c.a - np.float64(1) >= 0, "2.0 * a - 1.0 >= 0"),
        (np.maximum(c.a, 1) < np.exp(c.b), "maximum(a, 1) < exp(b)"),
        (c.r == safe_div(c.a, c.b, fill=-1), "r == safe_div(a, b, fill=-1)"),
        (where(c.a > 0, c.b, 2) <= 1, "where(a > 0, b, 2) <= 1"),
        (count(c.a > 0, c.b > 0) <= 1, "count(a > 0, b > 0) <= 1"),
        ((c.x == 36) | (c.x == 60), "(x == 36) | (x == 60)"),
        (c.x.isin([1, 2, 3]), "(x == 1) | (x == 2) | (x == 3)"),
        ((c.a < 1) | (c.b < 1) & (c.d < 1), "(a < 1) | ((b < 1) & (d < 1))"),
        (~((c.a < 1) & (c.b == 1)), "(a >= 1) | (b != 1)"),
    ],
)
def test_text_says_what_is_meant(relation, text):
    """The text is minimal Python, and means the same."""
    assert repr(relation) == str(relation) == text
    names = {"Column": Column, **{n: Column(n) for n in relation.columns() if isinstance(n, str)}}
    functions = {f.__name__: f for f in (where, count, exp, floor, log, safe_div)}
    functions["maximum"] = np.maximum
    again = eval(text, {**functions, **names})  # only of texts of this file
    assert again.equals(relation)


class Space(BaseEstimator):
    def __init__(self, relations=()):
        self.relations = relations


def test_an_estimator_holds_them():
    relations = (c.a <= c.b, (c.p == "car") | (log(c.a) < 3))
    space = Space(relations)
    cloned = clone(space)
    assert all(x.equals(y) for x, y in zip(relations, cloned.relations, strict=True))
    assert cloned.relations[0] is not relations[0]
    assert cloned.relations == relations  # tuples compare what is in them
    assert cloned.relations != relations[::-1]
    assert repr(space) == "Space(relations=(a <= b, (p == 'car') | (log(a) < 3)))"
    assert "log(a)" in repr(Space(relations[1]))
    assert "a &lt;= b" in space._repr_html_()
    for again in (pickle.loads(pickle.dumps(relations)), copy.deepcopy(relations)):
        assert str(again) == str(relations)
    assert str(pickle.loads(pickle.dumps(c)).age) == "age"


def test_what_cannot_be_meant_is_refused():
    with pytest.raises(TypeError, match=r"Write \(a <= b\) & \(b <= c\)"):
        c.a <= c.b <= c.d  # noqa: B015
    with pytest.raises(TypeError, match="and of `and`"):
        (c.a < 1) and (c.b < 1)  # noqa: B018
    with pytest.raises(TypeError, match="as a whole: compare it"):
        bool(c.a)
    with pytest.raises(TypeError, match="Use the name of the column"):
        {c.a: 1}  # noqa: B018
    with pytest.raises(TypeError, match="Use the name"):
        hash(c.a < 1)
    with pytest.raises(TypeError, match=r"parentheses.*\(a > 0\) \| \(b > 0\)"):
        c.a > 0 | c.b > 0  # noqa: B015
    with pytest.raises(TypeError, match="into parentheses"):
        (c.a > 0) | True
    with pytest.raises(TypeError, match=r"count\(...\) makes"):
        c.b + (c.a > 0)
    with pytest.raises(TypeError, match="single values, got ndarray"):
        c.a == np.ones(3)  # noqa: B015
    with pytest.raises(TypeError, match="isin"):
        c.a == [1, 2]  # noqa: B015
    with pytest.raises(TypeError, match="'x' is not a number"):
        c.a + "x"
    with pytest.raises(ValueError, match="NaN"):
        c.a == np.nan  # noqa: B015
    with pytest.raises(TypeError, match=r"np.arctan is not among .*sqrt"):
        np.arctan(c.a)
    with pytest.raises(ValueError, match="at least one"):
        c.a.isin([])
    with pytest.raises(ValueError, match="at least one"):
        count()


def test_columns_know_their_names():
    some = Columns(["age", "income"])
    assert some.age.equals(some["age"])
    assert dir(some) == ["age", "income"]
    with pytest.raises(AttributeError, match="Did you mean 'income'"):
        some.incom  # noqa: B018
    with pytest.raises(KeyError, match="The columns are: age, income"):
        some["x"]
    assert not hasattr(c, "_repr_html_")


def test_binding_refuses_what_is_not_there():
    with pytest.raises(ValueError, match=r"'n_opn <= b' .*: 'n_opn'. Did you mean 'n_open'\?"):
        bound(c.n_opn <= c.b, names=["n_open", "b"])
    with pytest.raises(ValueError, match=r"relation 'purpose == 'boat'': 'boat' .*'house'"):
        bound(c.purpose == "boat", names=["purpose"])
    with pytest.raises(TypeError, match=r"relations\[1\] is True"):
        Relations([c.a <= c.b, True], ["a", "b"], code_of)
    with pytest.raises(TypeError, match=r"relations\[0\] is a - b, a number"):
        Relations(c.a - c.b, ["a", "b"], code_of)
    # the codes of labels are no numbers to compute with, and those of truth values are
    names = ["term", "a", "flag", "purpose"]
    with pytest.raises(ValueError, match=r"'term' is categorical.* \(36, 60\)"):
        bound(c.a <= 10 * c.term, names=names, categories=CATEGORIES)
    with pytest.raises(ValueError, match="'purpose' is categorical"):
        bound(c.purpose == c.term, names=names, categories=CATEGORIES)
    with pytest.raises(ValueError, match="'x' is not a number"):
        bound(np.add(c.a, "x") > 0)
    # two columns of the same categories may be compared
    two = {"purpose": PURPOSES, "a": PURPOSES, "b": PURPOSES[::-1]}
    same = bound(c.purpose == c.a, names=["purpose", "a"], categories=two)
    assert_array_equal(same.violation([[2, 2], [0, 2.0]]), [[0], [1]])
    with pytest.raises(ValueError, match="'purpose' is categorical"):
        bound(c.purpose == c.b, names=["purpose", "b"], categories=two)
    X = np.array([[0, 1, 1, 0], [1, 2, 0, 1.0]])
    relations = bound(c.a <= 2 * c.flag, c.term == 36, names=names, categories=CATEGORIES)
    assert_array_equal(relations.satisfied(X), [[True, True], [False, False]])
    assert_array_equal(relations.columns, [0, 1, 2])
    assert Relations((), names, code_of).fit(X).holds(X).all()


# what they are violated by


def test_violation_in_units_of_the_scale():
    X = np.array([[1.0, 3.0, 0, 0], [6.0, 2.0, 0, 0], [5.0, 5.0, 0, 0]])
    relations = bound(c.a <= c.b, c.a >= c.b, c.a == c.b, c.a < c.b, c.a > c.b, c.a != c.b)
    scale = np.median([4, 8, 10])
    violation = relations.fit(X).violation(X)
    assert_allclose(violation[0], [0, 2 / scale, (2 - 4e-6) / scale, 0, 2 / scale, 0])
    assert_allclose(violation[1], [4 / scale, 0, (4 - 8e-6) / scale, 4 / scale, 0, 0])
    assert_array_equal(violation[2] > 0, [False, False, False, True, True, True])
    assert_allclose(violation[2], [0, 0, 0, 0, 0, 1], atol=1e-300)
    assert_array_equal(relations.n_failing_, [1, 1, 2, 2, 2, 1])
    assert_array_equal(relations.satisfied(X), violation == 0)
    # `&` is the sum and `|` the smaller one, each part in its own scale
    joined = bound((c.a <= c.b) & (c.a <= 2), (c.a <= c.b) | (c.a <= 2)).fit(X).violation(X)
    parts = bound(c.a <= c.b, c.a <= 2).fit(X).violation(X)
    assert_allclose(joined, np.stack([parts.sum(1), parts.min(1)], 1))
    assert_allclose(parts[:, 1], np.maximum(X[:, 0] - 2, 0) / np.median(X[:, 0] + 2))


def test_a_scale_does_not_vanish_and_does_not_depend_on_the_side():
    X = np.array([[0.0, 0, 0, 8], [0, 0, 0, 0], [0, 0, 0, 0], [2, 1, 1, 0]])
    relations = bound(c.a == c.b + c.c, c.a - c.b - c.c == 0, c.d <= 0).fit(X)
    assert_allclose([s[0] for s in relations.scales_], [1, 1, 2])
    # a rounding error of cents that make up a sum is none in both forms
    Z = np.array([[0.3, 0.1, 0.2, 0]])
    assert Z[0, 0] != Z[0, 1] + Z[0, 2]
    assert relations.holds(Z)
    assert not bound(c.a >= c.b + c.c, tolerance=0).holds(Z)


def test_strict_and_tolerant():
    tiny = np.nextafter(1.0, 2)
    Z = np.array([[1.0, 1.0, 0, 0], [1.0, tiny, 0, 0], [1 + 1e-7, 1.0, 0, 0], [1 + 1e-5, 1, 0, 0]])
    relations = bound(c.a < c.b, c.a <= c.b, c.a == c.b).fit(1e6 * np.ones((2, 4)))
    expected = [[False, True, True], [True] * 3, [False, True, True], [False] * 3]
    assert_array_equal(relations.satisfied(Z), expected)
    assert relations.violation(Z)[0, 0] > 0
    assert relations.violation(torch.as_tensor(Z, dtype=torch.float32))[0, 0] > 0


def test_labels_and_counts_have_no_degrees():
    Z = np.array([[2, 1.0, 5, 0], [0, 0.0, 0, 7], [1, 1, 1, 1]])
    relations = bound(
        c.purpose == "car",
        (c.purpose != "house") | (c.a <= 0.5),
        count(c.a > 0, c.b > 0, c.d > 0) <= 1,
        c.purpose.isin(["debt", "car"]),
        names=["purpose", "a", "b", "d"],
    )
    expected = [[1, 0.5, 1, 1], [0, 0, 0, 0], [1, 0, 2, 0]]
    assert_allclose(relations.violation(Z), expected)
    assert_array_equal(relations.is_categorical, [True, False, False, False])


def test_numpy_and_torch_follow_the_formulas():
    X = table(50, low=-3)
    a, b, d, e = X.T
    with np.errstate(all="ignore"):
        pairs = [
            (c.a + c.b * 2 - 3 / c.c, a + b * 2 - 3 / d),
            (c.a % c.b, a % b),
            (c.a**2 - c.b**3, a**2 - b**3),
            (exp(c.a) * abs(c.b), np.exp(a) * np.abs(b)),
            (floor(c.a) + np.minimum(c.b, c.d), np.floor(a) + np.minimum(b, e)),
            (where(c.a > c.b, c.c, -c.d), np.where(a > b, d, -e)),
            (safe_div(c.a, floor(c.b), fill=c.d), np.where(np.floor(b) == 0, e, a / np.floor(b))),
            (log(c.a), np.log(a)),
            (c.a**c.b, a**b),
        ]
    relations = bound(*(expression <= 0.2 for expression, _ in pairs)).fit(X)
    expected = []
    for k, (_, value) in enumerate(pairs):
        known = np.maximum(value - 0.2, 0) / relations.scales_[k][0]
        expected.append(np.where(np.isnan(value), 1, known))
    expected = np.stack(expected, 1)
    assert_allclose(relations.violation(X), expected, rtol=1e-12, atol=1e-12)
    assert_allclose(relations.violation(torch.as_tensor(X)), expected, rtol=1e-12, atol=1e-12)
    assert_array_equal(relations.satisfied(torch.as_tensor(X)), relations.satisfied(X))


SMOOTH = [
    c.a * c.b <= c.c / c.d,
    log(c.a) >= exp(c.b) - c.c**1.5,
    c.a == safe_div(c.b, c.c, fill=2),
    (c.a <= 0.1) & (c.b < 0.2 * c.d),
    (c.a <= 0.1) | (c.b % c.c < 0.2),
    where(c.a > 1.7, c.b**2, c.c**-c.d) <= 0.1,
    abs(c.a - c.b) < np.sqrt(c.c) - 3,
]


def test_gradient_equals_central_differences():
    X = table(20)
    relations = bound(*SMOOTH).fit(X)
    z = torch.as_tensor(X).requires_grad_()
    violation = relations.violation(z)
    assert (violation > 0).any(0).all()
    h = 1e-6
    for k in range(len(SMOOTH)):
        (gradient,) = torch.autograd.grad(violation[:, k].sum(), z, retain_graph=True)
        for j in range(4):
            up, down = X.copy(), X.copy()
            up[:, j] += h
            down[:, j] -= h
            slope = (relations.violation(up) - relations.violation(down))[:, k] / (2 * h)
            assert_allclose(gradient[:, j], slope, atol=1e-6, err_msg=f"{SMOOTH[k]} by {j}")


def test_what_cannot_be_computed_fails_and_spoils_no_gradient():
    relations = bound(
        log(c.a) <= 1,
        c.b / c.a <= 1,
        c.b % c.a <= 1,
        (c.a - 1) ** 0.5 >= 0,
        c.b ** (c.a - 2) <= 9,
        safe_div(c.b, c.a, fill=7) == 7,
        log(c.a) != 1,
        (log(c.a) <= 1) | (c.b <= 5),
        where(c.a > 0, log(c.a), 0) <= 1,
    )
    Z = np.array([[0.0, 0.0, 1, 1], [2.0, 14.0, 1, 1]])
    assert_array_equal(relations.violation(Z)[0], [1, 1, 1, 1, 1, 0, 1, 0, 0])
    assert_array_equal(relations.satisfied(Z)[0], relations.violation(Z)[0] == 0)
    z = torch.as_tensor(Z).requires_grad_()
    relations.violation(z).sum().backward()
    assert torch.isfinite(z.grad).all()
    assert (z.grad[0] == 0).all()
    # the exponential may overflow, and is then simply large
    assert_array_equal(
        bound(exp(c.a) <= 5, exp(c.a) > 5).violation(1e4 * np.ones((1, 4))), [[1, 0]]
    )


def test_missing_values_switch_a_relation_off():
    nan = np.nan
    Z = np.array([[5, nan, 1, 9], [nan, 1, 1, 9], [5, 1, 1, 9.0]])
    relations = bound(c.a <= c.b, c.d <= c.c, (c.d <= c.c) | (c.a <= 1)).fit(Z)
    assert_array_equal(relations.violation(Z) > 0, [[0, 1, 1], [0, 1, 0], [1, 1, 1]])
    assert_array_equal(relations.n_failing_, [1, 3, 2])
    assert_allclose(relations.scales_[0], 6)
    relations = bound(c.a * c.b <= c.d, exp(c.a) <= 1)
    z = torch.as_tensor(Z).requires_grad_()
    relations.violation(z).sum().backward()
    assert torch.isfinite(z.grad).all()
    assert_array_equal(z.grad[:, 0] > 0, [True, False, True])


# how they are repaired


class Around:
    """A box around clean rows, cut by `low` and `high`, with a grid of integers."""

    def __init__(self, X, radius, integer=False, low=-np.inf, high=np.inf, fixed=False):
        self.low, self.high = np.maximum(X - radius, low), np.minimum(X + radius, high)
        self.X, self.integer, self.fixed = X, np.broadcast_to(integer, X.shape[1:]), fixed

    def __call__(self, Z):
        # not rint, so that a grid point outside of the box is none
        low = np.where(self.integer, np.ceil(self.low), self.low)
        high = np.where(self.integer, np.floor(self.high), self.high)
        Z = np.clip(np.where(self.integer, np.rint(Z), Z), low, high)
        return np.where(self.fixed, self.X, Z)

    def proposals(self, seed=1):
        share = np.random.default_rng(seed).uniform(-3, 4, self.X.shape)
        return self(self.low + share * (self.high - self.low))


def repaired(relations, X, Z, project, integer=None, free=True, n_sweeps=50):
    """Return repaired rows, about which all that is promised holds."""
    integer = np.zeros(X.shape[1], bool) if integer is None else np.asarray(integer)
    assert relations.holds(X).all()
    before = Z.copy(), X.copy()
    out = relations.repair(Z, X, project, integer, np.broadcast_to(free, X.shape[1:]), n_sweeps)
    assert_array_equal(Z, before[0])
    assert_array_equal(X, before[1])
    assert relations.holds(out).all()
    assert_array_equal(project(out), out)
    good = relations.holds(Z)
    assert_array_equal(out[good], Z[good])
    # the tolerance is not used up, so that the result may be rounded
    assert relations.satisfied(out[~good], 0.51).all()
    assert_array_equal(relations.repair(out, X, project, integer, np.broadcast_to(free, 4)), out)
    return out


def clean(n=60, seed=0):
    """Rows with a <= b and d = a + b."""
    rng = np.random.default_rng(seed)
    a = rng.uniform(0, 5, n)
    b = a + rng.uniform(0, 2, n)
    return np.stack([a, b, rng.uniform(1, 2, n), a + b], 1)


def test_linear_relations_are_projected_onto():
    """In a box that is no obstacle the nearest points are found."""
    X = clean()
    relations = bound(c.a <= c.b, tolerance=1e-9)
    project = Around(X, 2.0)
    Z = project.proposals()
    bad = ~relations.holds(Z)
    assert bad.sum() > 10
    out = repaired(relations, X, Z, project)
    middle = Z[bad, :2].mean(1)
    free = (np.abs(middle[:, None] - X[bad, :2]) < 2).all(1)
    assert free.sum() > 5
    assert_allclose(out[bad][free][:, :2], np.stack([middle, middle], 1)[free], atol=1e-7)
    assert_array_equal(out[:, 2:], Z[:, 2:])


def test_projections_meet_the_nearest_point():
    """Of three half-spaces and a box, found by a solver as well."""
    corner = [[1.5, 0.2, 0.2, 1.5], [1.5, 0.3, -0.1, 1.5]]  # where plain projections go elsewhere
    X = np.zeros((22, 4))
    relations = bound(c.a <= c.b + 0.2, c.b <= 2 * c.c + 0.1, c.c + c.a <= 0.3)
    project = Around(X, 1.5, low=-0.1)
    Z = np.concatenate([corner, project.proposals()[:20]])
    out = repaired(relations, X, Z, project, n_sweeps=200)
    constraints = [
        {"type": "ineq", "fun": lambda z: z[1] + 0.2 - z[0]},
        {"type": "ineq", "fun": lambda z: 2 * z[2] + 0.1 - z[1]},
        {"type": "ineq", "fun": lambda z: 0.3 - z[0] - z[2]},
    ]
    for z, found in zip(Z, out, strict=True):
        best = minimize(
            lambda w, z=z: ((w - z) ** 2).sum(),
            X[0],
            bounds=[(-0.1, 1.5)] * 4,
            constraints=constraints,
        )
        assert best.success
        assert_allclose(np.linalg.norm(found - z), np.linalg.norm(best.x - z), atol=2e-4)


@pytest.mark.parametrize("columns_are_integers", [False, True])
def test_an_equality_computes_its_left_side(columns_are_integers):
    X = np.rint(clean())
    X[:, 3] = X[:, 0] + X[:, 1]
    integer = np.array([columns_are_integers, columns_are_integers, False, columns_are_integers])
    relations = bound(c.d == c.a + c.b, c.a <= c.b)
    project = Around(X, 2, integer)
    Z = project.proposals()
    out = repaired(relations, X, Z, project, integer)
    # most of what there was to gain is kept
    assert np.abs(out - X)[:, :2].mean() > 0.4 * np.abs(Z - X)[:, :2].mean()
    only = bound(c.d == c.a + c.b)
    wide = Around(X, np.array([2, 2, 2, 9]), integer)
    Z = wide.proposals()
    out = repaired(only, X, Z, wide, integer)
    assert_array_equal(out[:, :3], Z[:, :3])
    assert_allclose(out[:, 3], Z[:, 0] + Z[:, 1], rtol=1e-12)


def test_definitions_follow_each_other():
    rng = np.random.default_rng(0)
    a = rng.uniform(1, 2, 40)
    X = np.stack([a, a**2, np.floor(a**2 + 1), np.exp(-a)], 1)
    relations = bound(c.c == floor(c.b + 1), (c.b == c.a**2) & (c.d == exp(-c.a)))
    # b, which c needs, comes before it
    order = [column for _, column, _ in relations.assignments]
    assert order.index(1) < order.index(2)
    project = Around(X, np.array([0.3, 5, 5, 5]))
    Z = project.proposals()
    out = repaired(relations, X, Z, project)
    assert_array_equal(out[:, 0], Z[:, 0])
    assert_allclose(out[:, 1], Z[:, 0] ** 2)


def test_what_is_defined_goes_back_with_what_it_depends_on():
    X = np.array([[1.0, 1.0, 0, 0]])
    relations = bound(c.b == c.a**2)
    out = repaired(relations, X, np.array([[1.9, 1.5, 0, 0]]), Around(X, [0.9, 0.5, 0, 0]))
    assert_allclose(out, [[1.5**0.5, 1.5, 0, 0]], atol=1e-5)
    # integers are rounded before others are computed from them: 0.3 / 0.1 is less than 3
    integer = np.array([False, True, False, False])
    relations = bound(c.b == c.a / 0.1, c.c == floor(c.b))
    X, Z = np.array([[0.2, 2, 2, 0]]), np.array([[0.3, 2, 2, 0]])
    assert_array_equal(repaired(relations, X, Z, Around(X, 2, integer), integer), [[0.3, 3, 3, 0]])


def test_connected_relations_go_back_together():
    X = np.array([[0.5, 0.5, 0.5, 0.0]])
    Z = np.array([[3.0, 3.0, 0.1, 1.0]])
    out = repaired(bound(c.a * c.b <= 1, c.b * c.c >= 0.2), X, Z, Around(X, 9))
    assert out[0, 0] > 0.6
    assert out[0, 3] == 1


def test_units_do_not_matter():
    """Cents in the place of euros change nothing else."""
    X = clean()
    Z = Around(X, 1.5).proposals()
    factor = np.array([1024.0, 1, 1 / 64, 1])
    one = bound(c.a <= c.b, c.a + 2 * c.c <= c.d).fit(X)
    other = bound(c.a / 1024 <= c.b, c.a / 1024 + 128 * c.c <= c.d).fit(X * factor)
    good = one.holds(X)
    assert good.sum() > 20
    X, Z = X[good], Z[good]
    out = repaired(one, X, Z, Around(X, 1.5))
    again = repaired(other, X * factor, Z * factor, Around(X * factor, 1.5 * factor))
    assert_allclose(again / factor, out, rtol=1e-9)


def test_circles_are_refused_and_can_be_written_otherwise():
    with pytest.raises(ValueError, match=r"'a == b \+ 1'.* by each other.*a - b == 0"):
        bound(c.a == c.b + 1, c.b == c.a - 1)
    assert len(bound(c.a == c.b + 1, c.b - c.a == -1).assignments) == 1
    # of itself a column is computed, and the first of two definitions is followed
    relations = bound(c.a == floor(c.a), c.b == c.a + 1, c.b == c.c)
    assert [column for _, column, _ in relations.assignments] == [0, 1]
    X = np.array([[2.0, 3.0, 3.0, 0.0]])
    assert_allclose(repaired(bound(c.a == floor(c.a)), X, X + 0.4, Around(X, 1))[0, 0], 2)


def test_a_frozen_column_keeps_its_relations():
    X = clean()
    X[:, 2] = X[:, 0] / X[:, 1]
    fixed = np.array([False, False, True, False])
    project = Around(X, 1.0, fixed=fixed)
    Z = project.proposals()
    relations = bound(c.c == c.a / c.b, c.d <= 20)
    out = repaired(relations, X, Z, project, free=~fixed)
    bad = ~relations.satisfied(Z)[:, 0]
    assert bad.sum() > 40
    assert_allclose(out[bad, :3], X[bad, :3], rtol=1e-4)
    assert_array_equal(out[:, 3], Z[:, 3])  # which has nothing to do with it
    # a linear one is kept by the other columns
    X = clean()
    fixed = np.array([False, False, False, True])
    project = Around(X, 1.0, fixed=fixed)
    out = repaired(bound(c.d == c.a + c.b), X, project.proposals(), project, free=~fixed)
    assert np.abs(out - X)[:, :2].mean() > 0.1
    # whatever `project` would allow
    for relation in (c.d == c.a + c.b, c.d == c.a + c.b + 0 * floor(c.a)):
        box = Around(X, 1.0)
        Z = np.where(fixed, X, box.proposals())
        assert_array_equal(repaired(bound(relation), X, Z, box, free=~fixed)[:, 3], X[:, 3])


def test_pulled_back_as_little_as_possible():
    X = np.full((1, 4), 0.5)
    relations = bound(c.a * c.b <= 1)
    Z = np.array([[2.5, 2.5, 1.0, 0.0]])
    out = repaired(relations, X, Z, Around(X, 2.0))
    assert_allclose(out, [[1, 1, 1, 0]], atol=1e-4)
    # integers end on the grid
    X = np.array([[1.0, 1.0, 0, 0]])
    out = repaired(relations, X, np.array([[5.0, 4.0, 0, 0]]), Around(X, 4, True), [True] * 4)
    assert_array_equal(out, X)
    relations = bound((c.a <= 3) | (c.a >= 9))
    out = repaired(relations, X, np.array([[7.0, 4.0, 0, 0]]), Around(X, 9, True), [True] * 4)
    assert_array_equal(out, [[3, 4, 0, 0]])


def test_integers_take_whole_steps():
    X = np.array([[2.0, 3, 0, 0], [2, 3, 0, 0], [0, 1, 0, 0]])
    Z = np.array([[5.0, 4, 0, 0], [9, 1, 0, 0], [0, 0, 0, 0]])
    project, integer = Around(X, 9, True), [True] * 4
    out = repaired(bound(c.a <= c.b), X, Z, project, integer)
    assert_array_equal(out[:, :2], [[4, 4], [5, 5], [0, 0]])
    out = repaired(bound(c.a < c.b), X, Z, project, integer)
    assert (out[:, 0] < out[:, 1]).all()
    assert (np.abs(out - Z).sum(1) <= [2, 9, 1]).all()
    X, Z = np.array([[2.0, 9, 0, 0]]), np.array([[5.0, 5, 0, 0]])
    assert_array_equal(
        repaired(bound(c.a < c.b), X, Z, Around(X, 9, True), integer), [[4, 5, 0, 0]]
    )
    # the order is that of the relation, not that of the columns
    for relation, first in [(c.a <= c.b, (3, 3)), (c.b >= c.a, (4, 4))]:
        for names in ("abcd", "badc"):
            relations, order = bound(relation, names=names), ["abcd".index(n) for n in names]
            x, z = np.array([[1.0, 1, 0, 0]])[:, order], np.array([[5.0, 2, 0, 0]])[:, order]
            out = repaired(relations, x, z, Around(x, 9, True), integer)
            assert_array_equal(out[:, np.argsort(order)[:2]], [first])
    X, Z = np.array([[3.0, 1, 1, 1]]), np.array([[7.0, 3, 1, 1]])
    relations = bound(c.a - c.b - c.c - c.d == 0)
    out = repaired(relations, X, Z, Around(X, 9, True), integer)
    assert out[0, 0] == out[0, 1:].sum() > 3


def test_categories_go_back_where_numbers_do_not_suffice():
    names = ["purpose", "a", "b", "d"]
    X = np.array([[1, 5.0, 0, 0], [1, 5.0, 0, 0], [1, 20.0, 0, 0], [0, 5.0, 0, 0]])
    Z = np.array([[0, 12.0, 3, 0], [2, 12.0, 3, 0], [0, 25.0, 3, 0], [0, 12.0, 3, 0]])
    relations = bound((c.purpose != "car") | (c.a <= 10), c.purpose != "house", names=names)
    out = repaired(relations, X, Z, Around(X, 9))
    expected = [[0, 10, 3, 0], [1, 12, 3, 0], [1, 25, 3, 0], [0, 10, 3, 0]]
    assert_allclose(out, expected, atol=1e-4)
    # a code is not moved to where a linear relation holds
    relations = bound(c.a <= 2 * c.flag, names=["flag", "a"], categories=CATEGORIES)
    X, Z = np.array([[1, 1.5], [0, -1.0]]), np.array([[0, 1.5], [0, 1.0]])
    out = relations.repair(Z, X, Around(X, 9), np.zeros(2, bool), np.ones(2, bool))
    assert_allclose(out, [[0, 0], [0, 0]], atol=1e-5)


def test_a_row_that_cannot_be_helped_is_the_clean_one():
    """Where going back by columns is forbidden, all of the row goes back."""
    X = clean(5)
    Z = X + np.array([0.5, -3, 0.5, 0.1])

    def project(points):  # a row has moved as a whole, or not at all
        return np.where((points == X).all(1)[:, None], X, Z)

    out = repaired(bound(c.a <= c.b), X, Z, project)
    assert_array_equal(out, X)


def test_missing_values_stay():
    X = clean(6)
    X[::2, 1] = np.nan
    X[1, 2] = np.nan
    relations = bound(c.a <= c.b, c.d == c.a + c.b)
    project = Around(X, 2.0)
    Z = project.proposals()
    out = repaired(relations, X, Z, project)
    assert_array_equal(np.isnan(out), np.isnan(X))
    assert_array_equal(out[::2], Z[::2])
    # nor do they take part where another relation fails
    relations = bound(c.a <= c.b, c.d == c.a + c.b, c.c**2 <= 4)
    Z[:, 2] = np.where(np.isnan(Z[:, 2]), np.nan, 3)
    out = repaired(relations, X, Z, Around(X, 2.0))
    assert_array_equal(np.isnan(out), np.isnan(X))
    assert_array_equal(out[::2, [0, 3]], Z[::2, [0, 3]])
    assert_allclose(out[::2, 2], 2, atol=1e-5)


def test_what_cannot_be_computed_is_pulled_back():
    """It does not become a missing value, to which no relation applies."""
    X = np.array([[1.0, 0, 0, 0]])
    relations = bound(c.b == log(c.a))
    out = repaired(relations, X, np.array([[-1.0, -0.5, 0, 0]]), Around(X, [2, 0.5, 0, 0]))
    assert_allclose(out, [[np.exp(-0.5), -0.5, 0, 0]], atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_random_tables(seed):
    """All kinds at once, permuted columns, and repaired rows that are worth something."""
    X = np.rint(4 * clean(40, seed)) / 4
    X[:, 0] = np.floor(X[:, 0])
    X[:, 3] = X[:, 0] + X[:, 1]
    integer = np.array([True, False, False, False])
    relations = (
        c.a <= c.b,
        c.d == c.a + c.b,
        (c.c >= 1.2) | (c.a * c.b <= 40),
        count(c.a > 4, c.b > 6.5) <= 2,
        2 * c.c < c.b + 5,
    )
    project = Around(X, np.array([2.0, 1.5, 0.5, 1.0]), integer, low=0)
    Z = project.proposals(seed)
    one = bound(*relations).fit(X)
    out = repaired(one, X, Z, project, integer)
    assert np.abs(out - X)[:, :2].mean() > 0.3 * np.abs(Z - X)[:, :2].mean()

    order = np.array([2, 0, 3, 1])
    other = bound(*relations, names=np.array(list("abcd"))[order]).fit(X[:, order])
    assert_array_equal(other.violation(Z[:, order]), one.violation(Z))

    def permuted(points):
        return project(points[:, np.argsort(order)])[:, order]

    again = other.repair(Z[:, order], X[:, order], permuted, integer[order], np.ones(4, bool))
    assert_array_equal(again, out[:, order])
    # each row by itself
    box = Around(X[3:4], np.array([2.0, 1.5, 0.5, 1.0]), integer, low=0)
    alone = one.repair(Z[3:4], X[3:4], box, integer, np.ones(4, bool))
    assert_array_equal(alone, out[3:4])
    pickled = pickle.loads(pickle.dumps(one))
    assert_array_equal(pickled.violation(Z), one.violation(Z))
    assert_array_equal(pickled.repair(Z, X, project, integer, np.ones(4, bool)), out)
