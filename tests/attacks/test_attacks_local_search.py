"""Local search: jumps, neighbours, greed, and models whose answer is known."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from recording import Recorder, margin_at
from sklearn.datasets import load_digits
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.svm import SVC
from torch import nn

from robustsk.attacks import LocalSearch
from robustsk.attacks.black_box.local_search import LONGEST, jump
from robustsk.attacks.threat import Ball

pytestmark = pytest.mark.usefixtures("seeded")


class Weighted(nn.Module):
    """The second class wins where the weighted sum exceeds a threshold."""

    def __init__(self, weight, threshold):
        super().__init__()
        self.weight = torch.as_tensor(weight)
        self.threshold = threshold

    def forward(self, x):
        total = (x * self.weight).flatten(1).sum(1)
        return torch.stack([torch.full_like(total, self.threshold), total], 1)


def test_jumps_by_hand():
    x = torch.full((1, 2, 2, 3), 0.5)
    ball = Ball(x, np.inf, 0.2, torch.tensor(0.0), torch.tensor(0.6))
    pixels = torch.tensor([[0, 5]])
    lengths = torch.tensor([[[2.0, -2.0], [-2.0, 0.0]]])
    z = jump(ball, x, pixels, lengths, (2, 2, 3))
    expected = np.full((2, 6), 0.5)
    expected[0, 0], expected[1, 0], expected[0, 5] = 0.6, 0.3, 0.3
    assert_allclose(z.reshape(2, 6), expected, rtol=1e-6)

    x = torch.zeros(1, 4)
    for norm, expected in ((2.0, [0.8, 0.6, 0, 0]), (1.0, [0.6, 0.4, 0, 0])):
        ball = Ball(x, norm, 1.0)
        z = jump(ball, x, torch.tensor([[0, 1]]), torch.tensor([[[0.8, 0.6]]]), (1, 1, 4))
        assert_allclose(z, [expected], atol=1e-6)
    # lengths are in radii, and radii may differ
    ball = Ball(x, np.inf, torch.tensor([1.0, 0.5, 0.0, 2.0]))
    z = jump(ball, x, torch.tensor([[1, 2]]), torch.tensor([[[0.5, 0.5]]]), (1, 1, 4))
    assert_allclose(z, [[0, 0.25, 0, 0]])


@pytest.mark.parametrize("norm", [np.inf, 2, 1])
def test_one_pixel_at_a_time(norm):
    x = torch.full((1, 2, 6, 6), 0.5, dtype=torch.float64)
    model = Recorder(Weighted(torch.zeros(2, 6, 6, dtype=torch.float64), 1.0))
    attack = LocalSearch(
        norm=norm, eps=0.4, clip=(0, 1), n_steps=1, n_candidates=20, random_state=0
    )
    y = torch.zeros(1, dtype=torch.long)
    z, info = attack.perturb(model, x, y, return_info=True)
    assert info["n_queries"].tolist() == [1 + 20 + 1]
    tried = model.inputs[1] - x
    changed = (tried != 0).any(1).flatten(1)
    assert_array_equal(changed.sum(1), 1)
    assert changed.any(0).sum() == 20  # no pixel twice
    size = 0.4 if norm == np.inf else {2: min(1, LONGEST * 2**0.5), 1: 1}[norm] * 0.4
    assert_allclose(np.linalg.norm(tried.flatten(1), ord=norm, axis=1), size)
    # nothing was better, nothing is kept
    assert_array_equal(model.inputs[2], x)
    assert_array_equal(z, x)


def test_best_pixels_are_kept_and_neighbours_come_next():
    weight = np.zeros((1, 12, 12))
    weight[0, 3, 4] = 5.0
    weight[0, 3, 9] = -4.0
    x = torch.full((1, 1, 12, 12), 0.5, dtype=torch.float64)
    model = Recorder(Weighted(weight, 100.0))
    attack = LocalSearch(
        eps=0.1, clip=(0, 1), n_steps=2, n_candidates=144, n_kept=3, reach=2, random_state=0
    )
    attack.perturb(model, x, torch.zeros(1, dtype=torch.long))
    _, _, together, second, _ = model.inputs
    moved = (together - x)[0, 0]
    # each of the two only if the sign that was drawn is the one that helps
    kept = {(3, 4): 0.1, (3, 9): -0.1}
    found = {tuple(i): round(float(moved[tuple(i)]), 6) for i in moved.nonzero().tolist()}
    assert found
    assert all(kept[place] == value for place, value in found.items())

    model.inputs.clear()
    attack.set_params(n_candidates=20)
    for seed in range(40):
        model.inputs.clear()
        attack.perturb(model, x, torch.zeros(1, dtype=torch.long), seed=seed)
        _, _, together, second, _ = model.inputs
        centres = (together != x)[0, 0].nonzero().tolist()
        if len(centres) == 1:
            break
    tried = (second != together).flatten(2).any(1).nonzero()[:, 1]
    away = np.abs(np.stack([tried // 12, tried % 12], 1) - centres[0]).max(1)
    assert_array_equal(away <= 2, True)
    assert len(set(tried.tolist())) == 20


def test_no_neighbours_on_tables():
    weight = np.zeros(40)
    weight[3] = 1.0
    x = torch.zeros(1, 40, dtype=torch.float64)
    model = Recorder(Weighted(weight, 100.0))
    attack = LocalSearch(eps=0.1, clip=None, n_steps=2, n_candidates=40, reach=1, random_state=0)
    attack.perturb(model, x, torch.zeros(1, dtype=torch.long))
    second = model.inputs[3] - model.inputs[2]
    assert (second != 0).any(0).sum() == 40


def test_linear_model_breaks_exactly_where_it_can():
    rng = np.random.RandomState(0)
    w = rng.randn(8)
    X = rng.randn(120, 8)
    score = X @ w
    model = Weighted(w, 0.0)
    y = (score > 0).astype(int)
    eps = 0.25
    breakable = np.abs(score) < eps * np.abs(w).sum()
    assert 0.2 < breakable.mean() < 0.8
    attack = LocalSearch(model, eps=eps, clip=None, max_queries=400, random_state=0)
    X_adv, info = attack.generate(X, y, return_info=True)
    assert_array_equal((X_adv @ w > 0) != y, breakable)
    pushed = np.where(y == 1, 1, -1) * (X_adv @ w)
    floor = np.abs(score) - eps * np.abs(w).sum()
    assert_allclose(pushed[~breakable], floor[~breakable], atol=1e-6)
    assert np.median(info["n_queries"][breakable]) < 30


@pytest.mark.parametrize("norm", [2, 1])
def test_linear_model_in_other_norms(norm):
    rng = np.random.RandomState(1)
    w = rng.randn(8)
    X = rng.randn(120, 8)
    score = X @ w
    eps = 0.5
    room = np.abs(score) / (eps * np.linalg.norm(w, ord={2: 2, 1: np.inf}[norm]))
    attack = LocalSearch(
        Weighted(w, 0.0), norm=norm, eps=eps, clip=None, max_queries=400, random_state=0
    )
    fooled = (attack.generate(X, (score > 0).astype(int)) @ w > 0) != (score > 0)
    assert not fooled[room > 1].any()
    assert fooled[room < 0.9].all()


@pytest.mark.parametrize("norm", [np.inf, 2, 1])
def test_questions_are_counted_and_lie_in_the_ball(norm, images):
    x, y = torch.tensor(images.X[:15]), torch.tensor(images.y[:15])
    model = Recorder(images.net)
    eps = {np.inf: 0.08, 2: 0.4, 1: 1.0}[norm]
    attack = LocalSearch(norm=norm, eps=eps, clip=(0, 1), max_queries=100, random_state=0)
    z, info = attack.perturb(model, x, y, keep="first", return_info=True)
    assert sum(map(len, model.inputs)) == info["n_queries"].sum()
    points = torch.cat(model.inputs)
    assert points.min() >= 0
    assert points.max() <= 1
    nearest = torch.stack(
        [torch.linalg.vector_norm((points - one).flatten(1), ord=norm, dim=1) for one in x]
    ).amin(0)
    assert nearest.max() <= eps * (1 + 1e-5)
    fooled = images.net(z).argmax(1) != y
    assert_array_equal(info["n_queries"][~fooled], 100)
    wrong = images.net(x).argmax(1) != y
    assert_array_equal(info["n_queries"][wrong], 1)


@pytest.mark.dealt
@pytest.mark.parametrize("norm", [np.inf, 2, 1])
def test_more_rounds_never_give_less(norm, images):
    x, y = torch.tensor(images.X[:20]), torch.tensor(images.y[:20])

    before = first = margin_at(images.net, x, y)
    for n_steps in (1, 2, 4, 8):
        attack = LocalSearch(
            norm=norm, eps={np.inf: 0.08, 2: 0.4, 1: 1.0}[norm], clip=(0, 1), n_steps=n_steps
        )
        now = margin_at(images.net, attack.perturb(images.net, x, y, seed=2), y)
        assert torch.all(now >= before - 1e-5)
        before = now
    assert (before - first).mean() > 0.5


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
    ],
)
def test_models_without_gradients(model):
    X, y = load_digits(return_X_y=True)
    X = X / 16
    model.fit(X[::2], y[::2])
    X, y = X[1::40], y[1::40]
    attack = LocalSearch(model, eps=0.2, clip=(0, 1), max_queries=300, random_state=0)
    assert model.score(X, y) > 0.8
    assert model.score(attack.generate(X, y), y) < 0.5


@pytest.mark.parametrize("name", ["n_steps", "n_candidates", "n_kept", "reach"])
def test_bad_parameters(name, images):
    with pytest.raises(ValueError, match=f"{name} must be an integer of at least 1, got 0"):
        LocalSearch(images.net, eps=0.1, clip=(0, 1), **{name: 0}).generate(images.X[:2])
