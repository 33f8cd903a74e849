"""Attacks that start from an adversarial point: by labels alone, or along the border."""

import itertools

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import LinearConstraint, minimize
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.datasets import load_digits
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from torch import nn

from robustsk.attacks import BoundaryAttack, BrendelBethge, HopSkipJump, LabelOnlyNES
from robustsk.attacks.minimal.base import Closest
from robustsk.attacks.minimal.brendel_bethge import closer_on_plane

LABELS_ONLY = [(HopSkipJump, np.inf), (HopSkipJump, 2), (BoundaryAttack, 2), (LabelOnlyNES, np.inf)]
EVERY = [*LABELS_ONLY, (BrendelBethge, np.inf), (BrendelBethge, 2), (BrendelBethge, 1)]
DUAL = {np.inf: 1, 2: 2, 1: np.inf}


class Spy(ClassifierMixin, BaseEstimator):
    """Knows how to predict and nothing else, and counts the rows it is asked about."""

    def __init__(self, model=None):
        self.model = model

    def fit(self, X, y):
        self.model.fit(X, y)
        self.classes_ = self.model.classes_
        self.n_features_in_ = X.shape[1]
        self.n_rows_ = 0
        self.asked_ = []
        return self

    def predict(self, X):
        self.n_rows_ += len(X)
        self.asked_.append(np.array(X))
        return self.model.predict(X)


@pytest.fixture(scope="module")
def linear():
    """Two classes and a linear model in ten features."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 10))
    y = (X @ rng.normal(size=10) + 0.3 * rng.normal(size=300) > 0).astype(int)
    return X, y, LogisticRegression(C=0.1).fit(X, y)


def exact_distance(model, X, norm):
    return np.abs(model.decision_function(X)) / np.linalg.norm(model.coef_[0], ord=DUAL[norm])


# --- closed forms and brute force ----------------------------------------------------


@pytest.mark.dealt
@pytest.mark.parametrize(
    ("cls", "norm", "slack"),
    [
        (HopSkipJump, np.inf, 1.1),
        (HopSkipJump, 2, 1.03),
        (BoundaryAttack, 2, 1.03),
        (BrendelBethge, np.inf, 1.001),
        (BrendelBethge, 2, 1.001),
        (BrendelBethge, 1, 1.001),
    ],
)
def test_distance_to_a_plane(cls, norm, slack, linear):
    X, _, model = linear
    budget = {} if cls is BrendelBethge else {"max_queries": 2000}
    attack = cls(model, norm=norm, clip=None, random_state=0, **budget)
    X_adv, info = attack.generate(X[:30], return_info=True)
    ratio = info["distance"] / exact_distance(model, X[:30], norm)
    assert np.all(model.predict(X_adv) != model.predict(X[:30]))
    assert ratio.min() > 1 - 1e-9
    assert np.median(ratio) < slack
    assert_allclose(np.linalg.norm(X_adv - X[:30], ord=norm, axis=1), info["distance"])


@pytest.mark.parametrize("norm", [np.inf, 2, 1])
def test_distance_to_a_plane_in_a_box(norm):
    # the box cuts the way straight to the plane; the programme is solved by scipy as well
    rng = np.random.default_rng(1)
    X = rng.uniform(size=(200, 5))
    y = (X @ np.array([3.0, 1.0, 1.0, -1.0, 0.5]) > 2.2).astype(int)
    model = LogisticRegression(C=100).fit(X, y)
    rows = np.flatnonzero(np.abs(model.decision_function(X)) > 3)[:8]
    w, b = model.coef_[0], model.intercept_[0]
    attack = BrendelBethge(model, norm=norm, clip=(0, 1), random_state=0)
    info = attack.generate(X[rows], return_info=True)[1]
    for x, found in zip(X[rows], info["distance"], strict=True):
        # delta = p - q with p, q >= 0, and t at least as large as the norm
        A = np.hstack([w, -w, 0.0])
        value = {
            np.inf: lambda v: v[-1],
            2: lambda v: np.sum((v[:5] - v[5:10]) ** 2),
            1: lambda v: np.sum(v[:10]),
        }[norm]
        cube = np.hstack([np.eye(5), np.eye(5), -np.ones((5, 1))])
        constraints = [
            LinearConstraint(A, -(w @ x + b), -(w @ x + b)),
            LinearConstraint(cube, -np.inf, 0),
        ]
        bounds = [*[(0, 1 - v) for v in x], *[(0, v) for v in x], (0, 1)]
        first = np.hstack([np.full(10, 0.1), 0.5])
        solved = minimize(
            value,
            first,
            bounds=bounds,
            constraints=constraints,
            options={"maxiter": 500, "ftol": 1e-10},
        )
        assert solved.success
        exact = solved.fun**0.5 if norm == 2 else solved.fun
        assert found == pytest.approx(exact, rel=2e-3)


@pytest.fixture(scope="module")
def relu_net():
    """A small network in the plane with a border of many corners."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 3)).double()
        for p in net[0].parameters():
            p.data *= 2
    return net.eval()


@pytest.mark.dealt
@pytest.mark.parametrize(
    ("cls", "norm"),
    [
        (HopSkipJump, 2),
        (BrendelBethge, 2),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in EVERY if case[1] != 2),
        pytest.param(BoundaryAttack, 2, marks=pytest.mark.slow),
    ],
)
def test_distance_to_the_border_of_a_network_in_the_plane(cls, norm, relu_net):
    x = np.random.default_rng(0).uniform(-1, 1, size=(12, 2))
    grid = np.stack(np.meshgrid(*[np.linspace(-2, 2, 801)] * 2), -1).reshape(-1, 2)
    with torch.no_grad():
        clean = relu_net(torch.tensor(x)).argmax(1).numpy()
        labels = relu_net(torch.tensor(grid)).argmax(1).numpy()
    brute = np.array(
        [
            np.linalg.norm(grid[labels != c] - v, ord=norm, axis=1).min()
            for v, c in zip(x, clean, strict=True)
        ]
    )
    settings = {"n_restarts": 3} if cls is BrendelBethge else {}
    attack = cls(relu_net, norm=norm, clip=(-2, 2), random_state=0, **settings)
    info = attack.generate(x, clean, return_info=True)[1]
    assert np.all(info["distance"] > brute - 0.011)  # the grid is as fine as 0.005
    assert np.mean(info["distance"] < brute * 1.05 + 0.011) > 0.6
    assert np.median(info["distance"] / brute) < 1.05


@pytest.mark.parametrize("boxed", [False, True])
@pytest.mark.parametrize("norm", [np.inf, 2, 1])
@pytest.mark.parametrize("radius", [0.05, 0.4, 100.0])
def test_step_along_the_border_solves_its_programme(norm, boxed, radius):
    rng = np.random.default_rng(2)
    v, b = rng.normal(size=(6, 4)), rng.normal(size=(6, 4))
    c = 0.02 * rng.normal(size=6)
    side = np.abs(v).max(axis=1, keepdims=True) * (1.0 if boxed else np.inf) * np.ones((6, 4))
    arguments = [torch.tensor(a) for a in (v, b, c, np.full(6, radius), -side, side)]
    w = closer_on_plane(*arguments, norm).numpy()
    assert np.all(np.abs(w) <= side)
    assert_allclose((b * (w - v)).sum(1), c, atol=1e-8)
    assert np.all(np.linalg.norm(w - v, axis=1) <= radius * (1 + 1e-5))
    # no random feasible point is better by much
    size = np.linalg.norm(w, ord=norm, axis=1)
    assert np.all(size <= np.linalg.norm(v, ord=norm, axis=1) + 0.05)
    for i in range(6):
        d = rng.normal(size=(20000, 4)) * radius * rng.uniform(size=(20000, 1))
        d += (c[i] - d @ b[i])[:, None] * b[i] / (b[i] @ b[i])
        fine = (np.linalg.norm(d, axis=1) <= radius) & np.all(np.abs(v[i] + d) <= side[i], axis=1)
        if radius == 100.0:  # the exact minimum without radius is found by the walk itself
            fine &= np.linalg.norm(d, axis=1) < 10
        if fine.any():
            best = np.linalg.norm(v[i] + d[fine], ord=norm, axis=1).min()
            # the radius is used up to a tenth
            gain = np.linalg.norm(v[i], ord=norm) - best
            assert size[i] <= best + 0.15 * abs(gain) + 1e-6


# --- labels only ---------------------------------------------------------------------


@pytest.mark.dealt
@pytest.mark.parametrize("budget", [1, 2, 7, 40, 333])
@pytest.mark.parametrize(("cls", "norm"), LABELS_ONLY)
def test_nothing_but_predict_and_never_too_often(cls, norm, budget, linear):
    X, y, _ = linear
    spy = Spy(RandomForestClassifier(5, random_state=0)).fit(X, y)
    wrong = spy.predict(X[:20]) != y[:20]
    attack = cls(spy, norm=norm, max_queries=budget, random_state=0).fit(X)
    spy.n_rows_, spy.asked_ = 0, []
    X_adv, info = attack.generate(X[:20], y[:20], return_info=True)
    assert info["n_queries"].sum() == spy.n_rows_
    assert info["n_queries"].min() >= 1
    assert info["n_queries"].max() <= budget
    assert np.all(info["n_queries"][wrong] == 1)
    converges = cls in (BoundaryAttack, LabelOnlyNES)
    assert np.all(info["n_queries"][~wrong] == budget) or converges
    asked = np.concatenate(spy.asked_)
    assert np.all((asked >= X.min(axis=0)) & (asked <= X.max(axis=0)))
    found = np.isfinite(info["distance"])
    assert found.mean() >= {1: 0, 2: 0, 7: 0.4}.get(budget, 0.9)
    assert_array_equal(spy.predict(X_adv[found]) != y[:20][found], True)
    assert_array_equal(X_adv[~found], X[:20][~found])


@pytest.mark.dealt
@pytest.mark.parametrize(("cls", "norm"), EVERY)
def test_distance_never_grows(cls, norm, linear, monkeypatch):
    X, _, model = linear
    seen = []
    update = Closest.update

    def watch(self, *args, **kwargs):
        better = update(self, *args, **kwargs)
        seen.append(self.distance.clone())
        return better

    monkeypatch.setattr(Closest, "update", watch)
    budget = {} if cls is BrendelBethge else {"max_queries": 300}
    cls(model, norm=norm, clip=None, random_state=0, **budget).generate(X[:8])
    assert len(seen) > 5
    for before, after in itertools.pairwise(seen):
        assert torch.all(after <= before)
    assert torch.any(seen[-1] < seen[0])


@pytest.mark.slow
@pytest.mark.parametrize(("cls", "norm"), LABELS_ONLY)
def test_more_questions_find_closer_examples(cls, norm, linear):
    X, y, model = linear
    X, y = X[model.predict(X) == y][:25], None
    medians = []
    for budget in (60, 300, 1500):
        attack = cls(model, norm=norm, clip=None, max_queries=budget, random_state=0)
        medians.append(np.median(attack.generate(X, y, return_info=True)[1]["distance"]))
    assert medians[0] > medians[1] > medians[2]


@pytest.mark.dealt
@pytest.mark.parametrize(("cls", "norm"), LABELS_ONLY)
def test_evaluation_stops_asking_within_the_ball(cls, norm, linear):
    X, _, model = linear
    eps = float(np.median(exact_distance(model, X, norm))) * 1.5
    attack = cls(model, norm=norm, eps=eps, clip=None, max_queries=2000, random_state=0)
    x, labels = torch.tensor(X[:20]), torch.tensor(model.predict(X[:20]))
    first = attack.perturb(model_victim(model), x, labels, keep="first", return_info=True)[1]
    whole = attack.perturb(model_victim(model), x, labels, keep="worst", return_info=True)[1]
    assert torch.equal(first["distance"] <= eps, whole["distance"] <= eps)
    found = first["distance"] <= eps
    assert 10 <= found.sum() < 20
    assert (first["n_queries"][found] < 0.5 * whole["n_queries"][found]).float().mean() > 0.8


def model_victim(model):
    from robustsk.attacks import as_victim

    return as_victim(model, access="labels")


# --- starting points -----------------------------------------------------------------


class Corner(ClassifierMixin, BaseEstimator):
    """Says 1 only in a region that noise does not hit."""

    def fit(self, X, y):
        self.classes_ = np.array([0, 1])
        self.n_features_in_ = X.shape[1]
        return self

    def predict(self, X):
        inside = (np.asarray(X)[:, :8] > 0.6) & (np.asarray(X)[:, 8:] < 0.4)
        return inside.all(axis=1).astype(int)


@pytest.mark.dealt
@pytest.mark.parametrize(("cls", "norm"), LABELS_ONLY)
def test_starts_help_where_noise_is_all_one_class(cls, norm):
    rng = np.random.default_rng(0)
    X = rng.uniform(0, 0.5, size=(12, 16))
    model = Corner().fit(X, None)
    known = np.hstack([rng.uniform(0.7, 1, (6, 8)), rng.uniform(0, 0.3, (6, 8))])
    # most of the samples given are of no use, and some are in the way
    starts = np.vstack([rng.uniform(0, 0.5, size=(50, 16)), known])
    common = {"norm": norm, "clip": (0, 1), "max_queries": 200, "random_state": 0}
    lost, info = cls(model, **common).generate(X, return_info=True)
    assert_array_equal(lost, X)
    assert np.all(np.isinf(info["distance"]))
    X_adv, info = cls(model, starts=starts, **common).generate(X, return_info=True)
    assert np.all(model.predict(X_adv) == 1)
    assert np.all(info["n_queries"] <= 200)
    nearest = np.linalg.norm(X[:, None] - known, ord=norm, axis=2).min(axis=1)
    assert np.all(info["distance"] < nearest)
    # each sample by itself: the batch is not a source of starts
    alone = cls(model, starts=starts, batch_size=1, **common).generate(X)
    assert_allclose(alone, X_adv, atol=1e-9)
    both = np.vstack([X[:3], known])
    X_adv = cls(model, **common).generate(both[:, :], np.r_[[0] * 3, [1] * 6])
    assert_array_equal(X_adv[:3], X[:3])


@pytest.mark.parametrize("cls", [HopSkipJump, BoundaryAttack, BrendelBethge])
def test_bad_starts(cls, linear):
    X, _, model = linear
    for starts, message in (
        (X[:, :4], r"starts has shape \(300, 4\).*\(10,\)"),
        (X[:0], "starts has shape"),
        (np.full((2, 10), np.nan), "starts contains NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            cls(model, clip=None, norm=2, starts=starts).generate(X[:3])


@pytest.mark.parametrize(
    ("cls", "parameters", "message"),
    [
        (HopSkipJump, {"n_initial": 0}, "n_initial must be an integer"),
        (HopSkipJump, {"probe_size": -1.0}, "probe_size must be a positive number or None"),
        (BoundaryAttack, {"n_draws": 2.5}, "n_draws must be an integer"),
        (BoundaryAttack, {"norm": np.inf}, "norm=inf is not supported"),
        (BrendelBethge, {"n_steps": 0}, "n_steps must be an integer"),
        (BrendelBethge, {"n_restarts": 0}, "n_restarts must be an integer"),
        (BrendelBethge, {"trust_radius": 0.0}, "trust_radius must be a positive number"),
    ],
)
def test_bad_parameters(cls, parameters, message, linear):
    X, _, model = linear
    with pytest.raises(ValueError, match=message):
        cls(model, clip=None, **parameters).generate(X[:3])


@pytest.mark.parametrize("clip", [None, (-3, 3)])
def test_starts_are_found_for_every_half_space(clip):
    # a random direction is right every second time, and otherwise its opposite is
    rng = np.random.default_rng(0)
    X, w = rng.normal(size=(40, 6)).clip(-2.9, 2.9), rng.normal(size=6)
    X = X[X @ w < 0]
    model = LogisticRegression().fit(np.vstack([X, -X]), [0] * len(X) + [1] * len(X))
    X = X[model.predict(X) == 0]
    attack = HopSkipJump(model, clip=clip, max_queries=200, random_state=0)
    assert np.all(np.isfinite(attack.generate(X, return_info=True)[1]["distance"]))


# --- models that have no gradients ---------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    X = X / 16
    return X[:1200], y[:1200], X[1200:], y[1200:]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "bound"),
    [
        (RandomForestClassifier(20, random_state=0), 0.9),
        (SVC(), 1.3),
        (
            make_pipeline(
                StandardScaler(), HistGradientBoostingClassifier(max_iter=10, random_state=0)
            ),
            0.9,
        ),
    ],
    ids=["forest", "svc", "boosting"],
)
@pytest.mark.parametrize("cls", [HopSkipJump, BoundaryAttack])
def test_digits(cls, model, bound, digits):
    X_train, y_train, X, y = digits
    model.fit(X_train, y_train)
    attack = cls(model, norm=2, clip=(0, 1), max_queries=500, starts=X_train[:300], random_state=0)
    X_adv, info = attack.generate(X[:15], y[:15], return_info=True)
    assert np.all(model.predict(X_adv) != y[:15])
    assert np.median(info["distance"]) < bound
    assert np.all(info["n_queries"] <= 500)


@pytest.mark.parametrize(("cls", "norm"), EVERY)
def test_flat_models_are_given_up(cls, norm):
    # no gradient and one label: there is nothing to find, and nothing to fail at
    flat = nn.Linear(3, 2)
    with torch.no_grad():
        flat.weight.zero_()
        flat.bias.copy_(torch.tensor([2.0, 0.0]))
    X = np.zeros((4, 3), dtype=np.float32)
    attack = cls(flat, norm=norm, clip=None, random_state=0)
    if cls is not BrendelBethge:
        attack.set_params(max_queries=50)
    X_adv, info = attack.generate(X, return_info=True)
    assert_array_equal(X_adv, X)
    assert np.all(np.isinf(info["distance"]))
