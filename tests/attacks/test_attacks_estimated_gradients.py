"""NES, SPSA and ZOO: their estimates against true gradients, their steps, what they ask."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from recording import margin_at
from sklearn.datasets import load_digits
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from torch import nn

from robustsk.attacks import NES, SPSA, ZOO, as_victim
from robustsk.attacks.batch import AttackBatch
from robustsk.attacks.black_box._estimation import adam, entry_size, estimate_gradient
from robustsk.attacks.black_box._search import Search
from robustsk.attacks.noise import SampleNoise
from robustsk.attacks.objectives import OBJECTIVES
from robustsk.attacks.queries import Queries
from robustsk.attacks.threat import Ball

every = pytest.mark.parametrize("cls", [NES, SPSA, ZOO])


pytestmark = pytest.mark.usefixtures("seeded")


def linear(w, b=0.0):
    """Two logits: nothing, and ``w x + b``."""
    model = nn.Linear(len(w), 2).double()
    with torch.no_grad():
        model.weight[0] = 0.0
        model.weight[1] = torch.as_tensor(w)
        model.bias[:] = torch.tensor([0.0, b])
    return model


def batch_of(model, x, norm=np.inf, eps=1.0, low=None, high=None):
    bounds = [None if v is None else torch.tensor(v) for v in (low, high)]
    return AttackBatch(
        victim=as_victim(model),
        x=x,
        y=torch.ones(len(x), dtype=torch.long),
        target=None,
        ball=Ball(x, norm, eps, *bounds),
        objective=OBJECTIVES["cw"],
        noise=SampleNoise(x, 0),
        keep="first",
    )


def estimate(attack, batch, z, n, length, step=0):
    search = Search(batch, Queries(batch, 10**9), torch.arange(len(z)))
    return estimate_gradient(search, z, attack._directions(search.batch, step, n), length)


# --- the estimates -------------------------------------------------------------------


@pytest.mark.parametrize("cls", [NES, SPSA])
def test_estimates_are_unbiased(cls):
    # the margin is -(w x + b): its gradient is -w everywhere
    w = np.array([1.0, -2.0, 0.5, 0.0, 3.0])
    x = torch.rand(40, 5, dtype=torch.float64)
    n = 3000
    gradient = estimate(cls(), batch_of(linear(w, 50.0), x), x, n, 0.01)
    assert gradient.shape == x.shape
    # a coordinate has the variance (|w|^2 + w_i^2) / n (normal) or (|w|^2 - w_i^2) / n (signs)
    extra = w**2 if cls is NES else -(w**2)
    spread = np.sqrt(((w**2).sum() + extra) / n)
    deviation = (gradient.numpy() + w) / spread
    assert np.abs(deviation).max() < 5
    assert_allclose(deviation.mean(0), 0, atol=5 / np.sqrt(40))
    assert_allclose(deviation.std(0), 1, atol=0.5)


def test_differences_by_coordinate_are_exact():
    w = np.array([1.0, -2.0, 0.5, 0.0, 3.0])
    x = torch.rand(6, 5, dtype=torch.float64)
    batch = batch_of(linear(w, 50.0), x)
    # the mean over n directions, each of which knows one derivative
    assert_allclose(5 * estimate(ZOO(), batch, x, 5, 0.1), np.tile(-w, (6, 1)), atol=1e-9)
    some = 2 * estimate(ZOO(), batch, x, 2, 0.1)
    assert_array_equal((some != 0).sum(1) <= 2, True)
    assert_allclose(some[some != 0], np.tile(-w, (6, 1))[some != 0], atol=1e-9)


def test_estimates_in_units_of_the_radius():
    # with a radius per feature, derivatives are by shares of the largest radius
    w, eps = np.array([1.0, -2.0, 4.0]), torch.tensor([2.0, 0.5, 0.0], dtype=torch.float64)
    x = torch.rand(3, 3, dtype=torch.float64)
    gradient = 2 * estimate(ZOO(), batch_of(linear(w, 50.0), x, eps=eps), x, 5, 0.1)
    assert_allclose(gradient, np.tile([-1.0, 2.0 / 4, 0.0], (3, 1)), atol=1e-9)


@every
def test_directions(cls):
    x = torch.rand(4, 1, 5, 6, dtype=torch.float64)
    batch = batch_of(nn.Flatten(), x)
    directions = cls()._directions(batch, 3, 7)
    assert directions.shape == (4, 7, 1, 5, 6)
    if cls is SPSA:
        assert_array_equal(directions.abs(), 1)
        assert abs(directions.mean()) < 5 / np.sqrt(directions.numel())
    if cls is NES:
        assert abs(directions.std() - 1) < 0.15
    if cls is ZOO:
        assert_array_equal(directions.flatten(2).sum(2), 1)
        assert_array_equal(directions.sum(1).flatten(1).max(1).values, 1)  # no feature twice
    assert not torch.equal(directions, cls()._directions(batch, 4, 7))
    # frozen features are not worth a question
    batch.ball = Ball(x, np.inf, torch.zeros_like(x[0]).index_fill(2, torch.tensor([1, 4]), 0.3))
    if cls is ZOO:
        directions = cls()._directions(batch, 3, 25)
        assert directions.shape[1] == 10
        assert_array_equal(directions.sum((0, 1, 2, 3)) > 0, [False, True, False, False, True, 0])


def test_pairs_cut_short_count_by_what_is_left():
    # at the upper corner half of each pair stays where it is: a half step, a quarter of the weight
    w = np.array([2.0, -1.0])
    x = torch.zeros(2, 2, dtype=torch.float64)
    batch = batch_of(linear(w, 50.0), x, eps=0.5)
    corner = x + 0.5
    assert_allclose(2 * estimate(ZOO(), batch, corner, 2, 0.1), np.tile(-w / 4, (2, 1)), atol=1e-9)


def test_adam_by_hand():
    g = [torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 2.0]])]
    touched = [torch.tensor([[True, False]]), torch.tensor([[True, True]])]
    direction, state = adam(g[0], [], touched[0])
    assert_allclose(direction, [[1.0, 0.0]], rtol=1e-4)
    direction, state = adam(g[1], state, touched[1])
    mean = (0.9 * 0.1 + 0.1 * 3) / (1 - 0.9**2)
    square = (0.999 * 0.001 + 0.001 * 9) / (1 - 0.999**2)
    # the second feature starts its clock now
    assert_allclose(direction, [[mean / np.sqrt(square), 1.0]], rtol=1e-4)
    assert_array_equal(state[2], [[2, 1]])
    direction, _ = adam(torch.zeros(1, 2), [])
    assert_array_equal(direction, 0)


@pytest.mark.parametrize("norm", [np.inf, 2.0, 1.0])
def test_entry_size(norm):
    ball = Ball(torch.zeros(1, 12), norm, 0.7)
    entries = np.full(5, entry_size(ball, 5))
    assert_allclose(np.linalg.norm(entries, ord=norm), 0.7)


# --- the attacks ---------------------------------------------------------------------


@every
def test_linear_model_breaks_exactly_where_it_can(cls):
    rng = np.random.RandomState(0)
    w = rng.randn(8)
    X = rng.randn(80, 8)
    score = X @ w + 0.1
    y = (score > 0).astype(int)
    eps = 0.25
    room = np.abs(score) / (eps * np.abs(w).sum())
    attack = cls(linear(w, 0.1), eps=eps, clip=None, max_queries=500, random_state=0)
    fooled = (attack.generate(X, y) @ w + 0.1 > 0) != y
    assert not fooled[room > 1].any()
    assert fooled[room < 0.9].all()
    assert 10 < fooled.sum() < 70


@every
@pytest.mark.parametrize("norm", [np.inf, 2, 1])
def test_questions_are_counted_and_lie_in_the_ball(cls, norm, images):
    x, y = torch.tensor(images.X[:12]), torch.tensor(images.y[:12])
    asked = []

    class Model(nn.Module):
        def forward(self, z):
            asked.append(z.clone())
            return images.net(z)

    eps = {np.inf: 0.1, 2: 0.5, 1: 1.5}[norm]
    attack = cls(norm=norm, eps=eps, clip=(0, 1), max_queries=75, random_state=0)
    z, info = attack.perturb(Model(), x, y, keep="first", return_info=True)
    assert sum(map(len, asked)) == info["n_queries"].sum()
    points = torch.cat(asked)
    assert points.min() >= 0
    assert points.max() <= 1
    nearest = torch.stack(
        [torch.linalg.vector_norm((points - one).flatten(1), ord=norm, dim=1) for one in x]
    ).amin(0)
    assert nearest.max() <= eps * (1 + 1e-5)
    fooled = images.net(z).argmax(1) != y
    # whole steps, then what is left: 75 is odd, and pairs are asked about
    assert torch.all(info["n_queries"][~fooled] >= 74)
    wrong = images.net(x).argmax(1) != y
    assert_array_equal(info["n_queries"][wrong], 1)
    assert_array_equal(z[wrong], x[wrong])


@every
def test_more_questions_never_give_less(cls, images):
    x, y = torch.tensor(images.X[:20]), torch.tensor(images.y[:20])

    before = first = margin_at(images.net, x, y)
    for budget in (1, 22, 43, 169):  # whole steps of 10 and of 16 pairs, or parts
        z = cls(eps=0.08, clip=(0, 1), max_queries=budget, n_draws=10).perturb(
            images.net, x, y, seed=1
        )
        assert torch.all(margin_at(images.net, z, y) >= before - 1e-5)
        before = margin_at(images.net, z, y)
    assert (before - first).mean() > 0.5


@every
def test_large_batches_are_attacked_in_parts(cls, images, monkeypatch):
    x, y = torch.tensor(images.X[:9]).double(), torch.tensor(images.y[:9])
    net = images.net.double()
    attack = cls(eps=0.1, clip=(0, 1), max_queries=60, n_draws=4)
    whole, info = attack.perturb(net, x, y, seed=0, return_info=True)
    monkeypatch.setattr("robustsk.attacks.black_box._search._ELEMENTS", 2 * 2 * 4 * 64)
    parts, info_parts = attack.perturb(net, x, y, seed=0, return_info=True)
    assert_allclose(parts, whole, atol=1e-9)
    assert_array_equal(info_parts["n_queries"], info["n_queries"])


@every
def test_scores_that_are_not_numbers(cls):
    class Broken(nn.Module):
        def forward(self, z):
            total = z.flatten(1).sum(1)
            return torch.stack([total * 0, total * 0 + 1], 1) / (total[:, None] > 3)

    x = torch.full((3, 6), 0.5)
    attack = cls(eps=0.2, clip=(0, 1), max_queries=50, random_state=0)
    z = attack.perturb(Broken(), x, torch.ones(3, dtype=torch.long))
    assert torch.isfinite(z).all()


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    X = X / 16
    return X[::2], y[::2], X[1::40], y[1::40]


@pytest.mark.dealt
@every
@pytest.mark.parametrize(
    "model",
    [
        pytest.param(RandomForestClassifier(20, random_state=0), id="forest"),
        pytest.param(SVC(), id="svc", marks=pytest.mark.slow),
        pytest.param(
            HistGradientBoostingClassifier(max_iter=10, random_state=0),
            id="boosting",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            make_pipeline(StandardScaler(), SVC(C=10)), id="pipeline", marks=pytest.mark.slow
        ),
    ],
)
def test_models_without_gradients(cls, model, digits):
    X_train, y_train, X, y = digits
    model.fit(X_train, y_train)
    attack = cls(model, eps=0.3, clip=(0, 1), max_queries=300, random_state=0)
    assert model.score(X, y) > 0.8
    assert model.score(attack.generate(X, y), y) < model.score(X, y) - 0.4


@pytest.mark.parametrize(
    ("cls", "parameters", "message"),
    [
        (NES, {"n_draws": 0}, "n_draws must be an integer of at least 1, got 0"),
        (NES, {"sigma": 0.0}, "sigma must be a share of eps above 0, got 0.0"),
        (NES, {"momentum": 1.0}, "momentum must be at least 0 and below 1, got 1.0"),
        (NES, {"step_size": -1.0}, "step_size must be a finite number of at least 0"),
        (SPSA, {"delta": "small"}, "delta must be a share of eps above 0, got 'small'"),
        (ZOO, {"delta": np.inf}, "delta must be a share of eps above 0, got inf"),
    ],
)
def test_bad_parameters(cls, parameters, message, images):
    with pytest.raises(ValueError, match=message):
        cls(images.net, eps=0.1, clip=(0, 1), **parameters).generate(images.X[:2])


# --- scores without a slope -----------------------------------------------------------


class Steps(nn.Module):
    """A score that changes at whole numbers only, but for samples whose first value is large."""

    def forward(self, x):
        value = torch.where(x[:, :1] > 50, x[:, 1:], torch.floor(x[:, 1:]))
        return torch.cat([torch.zeros_like(value), value.sum(1, keepdim=True) + 0.5], 1)


def of_steps(n_flat, n_sloping):
    X = np.full((n_flat + n_sloping, 4), 3.5)
    X[n_flat:, 0] = 99
    return X


@every
@pytest.mark.parametrize(("n_flat", "n_sloping", "n_told"), [(9, 1, 9), (8, 2, None), (1, 0, 1)])
def test_scores_without_a_slope_are_told(cls, n_flat, n_sloping, n_told, recwarn):
    attack = cls(Steps(), eps=0.4, clip=None, max_queries=30, n_draws=3, random_state=0)
    _, info = attack.generate(of_steps(n_flat, n_sloping), return_info=True)
    assert (info["n_slopes"][:n_flat] == 0).all()
    assert (info["n_slopes"][n_flat:] > 0).all()
    messages = [str(w.message) for w in recwarn if "no slope" in str(w.message)]
    assert len(messages) == (n_told is not None)
    if n_told:
        assert f"no slope for {n_told} of {n_flat + n_sloping} samples" in messages[0]
        assert "SquareAttack, HopSkipJump" in messages[0]
        assert attack._reach in messages[0]


@every
def test_who_asks_nothing_is_told_nothing(cls, recwarn):
    X = of_steps(3, 0)
    attack = cls(Steps(), clip=None, max_queries=30, n_draws=3)
    attack._with(eps=0.0).generate(X)
    # what is wrong from the first does not need a slope
    attack._with(eps=0.4).generate(X, np.zeros(3, dtype=int))
    assert not [w for w in recwarn if "no slope" in str(w.message)]
