"""NES by the probabilities of the top classes or by labels: what is seen, followed and returned."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import norm as normal
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC
from torch import nn

from robustsk.attacks import LabelOnlyNES, PartialInformationNES, as_victim
from robustsk.attacks.batch import AttackBatch
from robustsk.attacks.noise import SampleNoise
from robustsk.attacks.objectives import OBJECTIVES
from robustsk.attacks.queries import Queries
from robustsk.attacks.threat import Ball

both = pytest.mark.parametrize("cls", [PartialInformationNES, LabelOnlyNES])


class Linear(nn.Module):
    """Two logits: nothing, and ``w x + b``."""

    def __init__(self, w, b=0.0):
        super().__init__()
        self.w, self.b = nn.Parameter(torch.as_tensor(w, dtype=torch.float64)), b

    def forward(self, x):
        score = x @ self.w + self.b
        return torch.stack([torch.zeros_like(score), score], 1)


def queries_of(model, x, target=1, norm=np.inf, **parameters):
    n = len(x)
    batch = AttackBatch(
        victim=as_victim(model),
        x=x,
        y=torch.zeros(n, dtype=torch.long),
        target=None if target is None else torch.full((n,), target),
        ball=Ball(x, norm, 1.0),
        objective=OBJECTIVES["cw"],
        noise=SampleNoise(x, 0),
        keep="worst",
    )
    return Queries(batch, 10**9)


# --- what is seen --------------------------------------------------------------------


class Fixed(nn.Module):
    """Says the same to all: probabilities of 0.1, 0.4, 0.2 and 0.3."""

    def forward(self, x):
        return torch.tensor([0.1, 0.4, 0.2, 0.3]).double().log().expand(len(x), -1) + 7


def score(attack, target):
    """Return the score of one point whose true class is 0."""
    queries = queries_of(Fixed(), torch.zeros(1, 2).double(), target)
    value, visible, _ = attack._value(queries, torch.zeros(1, 2).double(), torch.tensor([0]))
    return float(value), bool(visible)


@pytest.mark.parametrize(
    ("top_k", "target", "probability", "visible"),
    [
        (1, 1, 0.4, True),
        (1, 3, 0.4, False),  # at most as likely as the one that is seen
        (2, 2, 0.3, False),  # 0.4 and 0.3 are seen, and 0.3 is left
        (3, 0, 0.1, False),  # 0.1 is left, which is less than 0.2
        (3, 2, 0.2, True),
        (9, 0, 0.1, True),  # more than there are classes
        (1, None, 0.4, True),
    ],
)
def test_probabilities_in_sight(top_k, target, probability, visible):
    value, seen = score(PartialInformationNES(top_k=top_k), target)
    assert_allclose(np.exp(value), probability)
    assert seen is visible


@pytest.mark.parametrize(
    ("top_k", "target", "rank"),
    [(1, 1, 1), (1, 3, 0), (3, 1, 1), (3, 3, 2 / 3), (3, 2, 1 / 3), (3, 0, 0), (4, 0, 1 / 4)],
)
def test_ranks_in_sight(top_k, target, rank):
    value, seen = score(LabelOnlyNES(top_k=top_k), target)
    assert_allclose(value, rank)
    assert seen is (rank > 0)


class Hiding(nn.Module):
    """A network whose answers are made to tell nothing but what is visible."""

    def __init__(self, net, top_k, labels):
        super().__init__()
        self.net, self.top_k, self.labels = net, top_k, labels

    def forward(self, x):
        p = self.net(x).softmax(1)
        top = p.topk(self.top_k).indices
        if self.labels:
            seen = torch.arange(self.top_k, 0, -1).to(p).expand(top.shape)
            return torch.full_like(p, -3.0).scatter(1, top, seen)
        seen = p.gather(1, top)
        rest = (1 - seen.sum(1, keepdim=True)) / (p.shape[1] - self.top_k)
        return rest.expand(p.shape).scatter(1, top, seen).log()


@pytest.mark.dealt
@both
@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("target", [None, "random"])
def test_nothing_else_is_used(cls, top_k, target, table):
    hiding = Hiding(table.net, top_k, cls is LabelOnlyNES)
    attack = cls(norm=2, top_k=top_k, target=target, clip=None, max_queries=120, random_state=0)
    x, y = torch.tensor(table.X[:15]), torch.tensor(table.y[:15])
    given = {"y": y, "keep": "worst", "seed": 0}
    if target:
        # chosen by the clean prediction, of which the order alone is hidden
        attack.set_params(target=(table.y[:15] + 1) % 3)
    known, hidden = (attack.perturb(model, x, **given) for model in (table.net, hiding))
    assert_allclose(hidden, known, rtol=1e-6, atol=1e-6)
    assert (known != x).flatten(1).any(1).double().mean() > 0.7


class Labels(ClassifierMixin, BaseEstimator):
    """Knows how to predict and nothing else."""

    def __init__(self, model=None):
        self.model = model

    def fit(self, X, y):
        self.model.fit(X, y)
        self.classes_, self.n_features_in_ = self.model.classes_, X.shape[1]
        return self

    def predict(self, X):
        return self.model.predict(X)


def test_one_label_needs_predict_and_several_need_scores(table):
    model = Labels(LogisticRegression()).fit(table.X, table.y)
    attack = LabelOnlyNES(model, eps=1.0, clip=None, max_queries=100, random_state=0)
    assert attack.access == "labels"
    by_labels = attack.generate(table.X[:10], table.y[:10])
    assert_array_equal(
        attack._with(estimator=model.model).generate(table.X[:10], table.y[:10]), by_labels
    )
    attack.set_params(top_k=2)
    assert attack.access == "scores"
    with pytest.raises(TypeError, match="needs scores"):
        attack.generate(table.X[:10], table.y[:10])
    with pytest.raises(TypeError, match="needs scores"):
        PartialInformationNES(model, clip=None).generate(table.X[:10], table.y[:10])


# --- the estimates -------------------------------------------------------------------


@pytest.mark.parametrize("norm", [np.inf, 2])
def test_all_probabilities_in_sight_give_the_gradient(norm):
    w = np.array([1.0, -2.0, 0.5, 0.0, 3.0])
    x = torch.rand(30, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model, n, sigma = Linear(w, -1.0), 2000, 1e-3
    attack = PartialInformationNES(top_k=2, sigma=sigma)
    radius = torch.linspace(0.5, 2.0, 30, dtype=torch.float64)
    queries = queries_of(model, x, norm=norm)
    found = attack._estimate(queries, torch.arange(30), x, radius, 3, n)
    # the derivative of log p is (1 - p) w; a round knows twice its size times the probes' length
    gradient = (1 - model(x).softmax(1)[:, 1:].detach()) * torch.as_tensor(w)
    length = 2 * sigma * radius[:, None] / (1 if norm == np.inf else np.sqrt(5))
    spread = ((gradient**2).sum(1, keepdim=True) + gradient**2).sqrt() / np.sqrt(n)
    deviation = (found / length - gradient) / spread
    assert deviation.abs().max() < 5
    assert_allclose(deviation.std(), 1, atol=0.3)
    assert_array_equal(queries.count, 2 * n)


def test_share_of_the_noise_that_a_label_bears():
    # uniform noise in one feature, and the label changes at -b
    b, mu, radius = -1.0, 0.2, 2.0
    x = torch.tensor([[0.5], [0.8], [0.9], [1.0], [1.15], [1.5]], dtype=torch.float64)
    n = 4000
    attack = LabelOnlyNES(n_noise=n, mu=mu, max_queries=20 * n)
    entry = torch.full((6, 1), radius, dtype=torch.float64)
    queries = queries_of(Linear([1.0], b), x)
    pairs = torch.stack([x, x])[:, None]
    points = attack._points(pairs, queries.batch.ball, entry, queries.batch.noise, 0)
    assert points.shape == (n, 2, 1, 6, 1)
    assert_array_equal(points[:, 0], points[:, 1])
    rows = torch.arange(6).expand(points.shape[:4])
    value = attack._value(queries, points.flatten(0, 3), rows.flatten())[0].reshape(rows.shape)
    share = np.clip((x[:, 0].numpy() + b + mu * radius) / (2 * mu * radius), 0, 1)
    error = 5 * np.sqrt(share * (1 - share) / n)
    assert np.all(np.abs(value.double().mean(0)[0, 0].numpy() - share) <= error)
    assert_array_equal(share[[0, 5]], [0, 1])


def test_labels_under_noise_lead_across_the_border():
    w = np.array([1.0, -2.0, 0.5, 0.0, 3.0])
    x = torch.rand(20, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z, rows, radius = torch.zeros_like(x), torch.arange(20), torch.ones(20).double()
    attack, n = LabelOnlyNES(n_noise=1, mu=1e-9), 2000
    found = attack._estimate(queries_of(Linear(w), x), rows, z, radius, 0, n)
    # every pair has one point on either side: along w the mean of |u|, across it nothing
    expected = 2 * normal.pdf(0) * w / np.linalg.norm(w)
    assert_allclose(found.mean(0), expected, atol=5 / np.sqrt(20 * n))
    # far from the border there is nothing to follow
    assert_array_equal(attack._estimate(queries_of(Linear(w, 99.0), x), rows, z, radius, 0, 9), 0)


# --- what comes back -----------------------------------------------------------------


@pytest.mark.dealt
@both
@pytest.mark.parametrize("norm", [np.inf, 2])
def test_distance_to_a_plane(cls, norm):
    rng = np.random.default_rng(0)
    w = rng.normal(size=10)
    X = rng.normal(size=(20, 10))
    attack = cls(Linear(w, 0.2), norm=norm, clip=None, max_queries=1500, random_state=0)
    X_adv, info = attack.generate(X, return_info=True)
    exact = np.abs(X @ w + 0.2) / np.linalg.norm(w, ord=1 if norm == np.inf else 2)
    assert np.all((X_adv @ w + 0.2 > 0) != (X @ w + 0.2 > 0))
    ratio = info["distance"] / exact
    assert ratio.min() > 1 - 1e-9
    assert np.median(ratio) < (1.02 if cls is PartialInformationNES else 1.2)


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    X = X / 16
    model = SVC().fit(X[:600], y[:600])
    return X[:600], X[1200:1208], y[1200:1208], model


@pytest.mark.dealt
@both
@pytest.mark.parametrize("top_k", [1, 3])
def test_from_samples_of_the_target_into_the_ball(cls, top_k, digits):
    starts, X, y, model = digits
    target, eps = (y + 1) % 10, 0.35
    attack = cls(
        model, top_k=top_k, eps=eps, target=target, starts=starts, clip=(0, 1), max_queries=400,
        random_state=0,
    )  # fmt: skip
    X_adv, info = attack.generate(X, y, return_info=True)
    found = np.isfinite(info["distance"])
    assert found.mean() > 0.5
    # the starts are much farther away, and what comes back is of the class or untouched
    nearest = [
        np.abs(starts[model.predict(starts) == t] - x).max(1).min()
        for x, t in zip(X, target, strict=True)
    ]
    assert np.min(nearest) > 1.5 * eps
    assert_array_equal(model.predict(X_adv[found]), target[found])
    assert_array_equal(X_adv[~found], X[~found])
    assert np.abs(X_adv - X).max() <= eps
    assert info["n_queries"].max() <= 400


def test_several_classes_in_sight_lead_through_where_the_target_is_second(digits):
    # the shrinking ball takes the iterate where the target is not the first class any more
    starts, X, y, model = digits
    target = (y + 1) % 10
    common = {"target": target, "eps": 0.3, "starts": starts, "clip": (0, 1), "max_queries": 300}
    visited, step = [], PartialInformationNES._step

    def watch(self, closest, asked, rows, z, velocity, level):
        visited.append((z.clone(), rows.clone()))
        return step(self, closest, asked, rows, z, velocity, level)

    for top_k, expected in ((1, False), (4, True)):
        visited.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PartialInformationNES, "_step", watch)
            attack = PartialInformationNES(model, top_k=top_k, random_state=0, **common)
            attack.generate(X, y)
        others = [np.any(model.predict(z.numpy()) != target[rows.numpy()]) for z, rows in visited]
        assert np.any(others) == expected


@pytest.mark.parametrize(
    ("cls", "parameters", "message"),
    [
        (PartialInformationNES, {"top_k": 0}, "top_k must be an integer of at least 1, got 0"),
        (PartialInformationNES, {"n_draws": 2.5}, "n_draws must be an integer of at least 1"),
        (PartialInformationNES, {"sigma": 0}, "sigma must be a finite number larger than 0"),
        (PartialInformationNES, {"step_share": -1}, "step_share must be a finite number larger"),
        (PartialInformationNES, {"momentum": 1}, "momentum must be at least 0 and below 1, got 1"),
        (PartialInformationNES, {"norm": 1}, "norm=1 is not supported"),
        (LabelOnlyNES, {"mu": 0.0}, "mu must be a finite number larger than 0, got 0.0"),
        (LabelOnlyNES, {"n_noise": 0}, "n_noise must be an integer of at least 1, got 0"),
    ],
)
def test_bad_parameters(cls, parameters, message):
    X = np.array([[1.0, 2.0], [2.0, -1.0]])
    attack = cls(Linear([1.0, 1.0]), clip=None, max_queries=100)
    with pytest.raises(ValueError, match=message):
        attack._with(**parameters).generate(X)
