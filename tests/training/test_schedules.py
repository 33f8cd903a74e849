"""Learning rates over the course of training, against the curves of the literature."""

import pickle

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from sklearn.base import clone
from sklearn.datasets import make_blobs
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import Callback

from robustsk import PGDATClassifier
from robustsk.training import LearningRateSchedule, decay_weights_only, piecewise_constant

KINDS = ["piecewise", "linear", "multiple_decay", "cosine", "cyclic", "one_drop", "constant"]


@pytest.fixture
def data():
    return make_blobs(48, 4, centers=3, cluster_std=0.6, center_box=(-2, 2), random_state=3)


def make(*callbacks, **params):
    defaults = {
        "module": "mlp", "module__hidden_sizes": (8,), "max_epochs": 4, "batch_size": 16,
        "lr": 0.5, "optimizer": torch.optim.SGD, "adversary__eps": 0.1, "adversary__n_steps": 1,
        "random_state": 0, "device": "cpu", "callbacks": list(callbacks),
    }  # fmt: skip
    return PGDATClassifier(**{**defaults, **params})


class Rates(Callback):
    """Note the learning rates with which steps are taken."""

    def __init__(self, seen):
        self.seen = seen

    def on_grad_computed(self, net, named_parameters, **kwargs):
        self.seen.append([group["lr"] for group in net.optimizer_.param_groups])


# --- curves --------------------------------------------------------------------------


def test_piecewise_constant():
    pairs = [(0, "a"), (1.5, "b"), (60, "c")]
    assert [piecewise_constant(pairs, e) for e in (0, 1.49, 1.5, 59, 60, 1e9)] == list("aabbcc")
    for bad in ([], [(1, 0)], [(0, 1), (3, 2), (2, 1)], [(0, 1), (0, 2)]):
        with pytest.raises(ValueError, match="ascending order"):
            piecewise_constant(bad, 0)
    with pytest.raises(ValueError, match="negative"):
        piecewise_constant(pairs, -1)


@pytest.mark.parametrize("t", [0.0, 0.2, 0.4, 0.5, 0.6, 0.75, 0.9, 1.0])
def test_curves(t):
    """Written out for 200 epochs, as in the article's figure."""
    epoch = 200 * t
    expected = {
        "piecewise": 1 if epoch < 100 else (0.1 if epoch < 150 else 0.01),
        "linear": np.interp(epoch, [0, 200 / 3, 400 / 3, 200], [1, 1, 0.1, 0.01]),
        "multiple_decay": max(1 - np.floor(epoch / 20 + 1e-9) / 10, 0.1),
        "cosine": (1 + np.cos(np.pi * epoch / 200)) / 2,
        "cyclic": np.interp(epoch, [0, 80, 200], [0, 1, 0]),
        "one_drop": 1 if epoch < 100 else 0.1,
        "constant": 1,
    }
    for kind in KINDS:
        assert LearningRateSchedule(kind).factor_at(t) == pytest.approx(expected[kind]), kind


@pytest.mark.parametrize("peak", [0.0, 0.3, 0.5, 1.0])
def test_triangle_integrates_to_half_its_height(peak):
    shares = (np.arange(10_000) + 0.5) / 10_000
    schedule = LearningRateSchedule("cyclic", peak=peak)
    assert np.mean([schedule.factor_at(t) for t in shares]) == pytest.approx(0.5, abs=1e-6)
    if 0 < peak < 1:
        assert schedule.factor_at(peak) == 1
    assert schedule.factor_at(1.0) == (1 if peak == 1 else 0)


@pytest.mark.parametrize("kind", KINDS)
def test_curves_stay_in_range(kind):
    values = [LearningRateSchedule(kind).factor_at(t) for t in np.linspace(0, 1, 101)]
    assert min(values) >= 0
    assert max(values) <= 1
    if kind != "cyclic":
        assert (np.diff(values) <= 1e-12).all()


# --- in training ---------------------------------------------------------------------


def test_every_batch_has_the_value_in_its_middle(data):
    seen = []
    clf = make(LearningRateSchedule("cyclic", peak=0.5), Rates(seen)).fit(*data)
    t = (np.arange(12) + 0.5) / 12  # four epochs of three batches
    assert_allclose(np.ravel(seen), 0.5 * (1 - np.abs(2 * t - 1)))
    assert np.mean(seen) == pytest.approx(0.25)
    assert_allclose(clf.history_[:, "lr"], np.ravel(seen)[2::3])
    assert_allclose(
        np.ravel([clf.history_[e, "batches", :, "lr"] for e in range(4)]), np.ravel(seen)
    )
    assert clf.optimizer_.param_groups[0]["lr"] == 0.5


def test_callable_and_warmup(data):
    seen = []
    make(LearningRateSchedule(lambda t: 1 - t**2, warmup=2), Rates(seen)).fit(*data)
    epochs = (np.arange(12) + 0.5) / 3
    expected = 0.5 * (1 - (epochs / 4) ** 2) * np.minimum(1, epochs / 2)
    assert_allclose(np.ravel(seen), expected)


def test_all_parameter_groups_follow(data):
    seen = []
    groups = [("*bias", {"lr": 0.03, "weight_decay": 0.0})]
    clf = make(
        LearningRateSchedule("piecewise"), Rates(seen), optimizer__param_groups=groups
    ).fit(*data)  # fmt: skip
    factor = np.repeat([1, 1, 0.1, 0.01], 3)
    assert_allclose(seen, np.outer(factor, [0.03, 0.5]))
    assert [group["lr"] for group in clf.optimizer_.param_groups] == [0.03, 0.5]


def test_each_call_runs_through_a_schedule_or_all_share_one(data):
    seen = []
    clf = make(LearningRateSchedule("piecewise"), Rates(seen))
    clf.partial_fit(*data).partial_fit(*data)
    assert_allclose(np.ravel(seen), 0.5 * np.tile(np.repeat([1, 1, 0.1, 0.01], 3), 2))
    seen = []
    clf = make(LearningRateSchedule("piecewise", n_epochs=4), Rates(seen), max_epochs=1)
    for _ in range(5):
        clf.partial_fit(*data)
    assert_allclose(np.ravel(seen), 0.5 * np.repeat([1, 1, 0.1, 0.01, 0.01], 3))


def test_learning_rate_after_a_training_that_broke_off(data):
    class Breaks(Callback):
        def on_epoch_end(self, net, **kwargs):
            raise RuntimeError

    seen = []
    clf = make(LearningRateSchedule("cyclic"), Rates(seen), ("breaks", Breaks()))
    with pytest.raises(RuntimeError):
        clf.fit(*data)
    clf.callbacks_ = [c for c in clf.callbacks_ if c[0] != "breaks"]
    del seen[:]
    clf.partial_fit(*data)
    assert np.max(seen) == pytest.approx(0.5, rel=0.2)


def test_last_small_batch_is_counted_as_the_loader_does(data):
    X, y = data
    seen = []
    make(LearningRateSchedule("cosine"), Rates(seen), max_epochs=1).fit(X[:33], y[:33])
    assert len(seen) == 2  # a batch of one sample is left out
    assert_allclose(np.ravel(seen), 0.25 * (1 + np.cos(np.pi * np.array([0.25, 0.75]))))


def test_clones_pickles_and_searches(data):
    schedule = LearningRateSchedule("cyclic", peak=0.2, warmup=1)
    assert clone(schedule).get_params() == schedule.get_params()
    clf = make(("schedule", schedule)).fit(*data)
    assert pickle.loads(pickle.dumps(clf)).partial_fit(*data).history_[-1, "lr"] < 0.5
    search = GridSearchCV(
        make(("schedule", schedule)), {"callbacks__schedule__kind": ["cosine", "constant"]},
        cv=2, error_score="raise",
    ).fit(*data)  # fmt: skip
    assert len(search.cv_results_["params"]) == 2


@pytest.mark.parametrize(
    ("params", "match"),
    [
        ({"kind": "step"}, "kind must be"),
        ({"kind": "cyclic", "peak": 2}, "peak"),
        ({"kind": "multiple_decay", "n_drops": 0}, "n_drops"),
        ({"milestones": (0.7, 0.5)}, "milestones"),
        ({"milestones": (100, 150)}, "shares"),
        ({"kind": "one_drop", "milestones": (0.1, 0.5)}, "1 entries"),
        ({"kind": "linear", "milestones": (0.1,)}, "2 entries"),
        ({"warmup": -1}, "warmup"),
        ({"n_epochs": 0}, "n_epochs"),
    ],
)
def test_bad_parameters(params, match, data):
    with pytest.raises(ValueError, match=match):
        make(LearningRateSchedule(**params)).fit(*data)


# --- weight decay --------------------------------------------------------------------


class Normed(torch.nn.Sequential):
    def __init__(self):
        super().__init__(
            torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6), torch.nn.ReLU(), torch.nn.Linear(6, 3)
        )


def test_decay_of_weights_only(data):
    clf = PGDATClassifier(
        Normed, max_epochs=1, lr=0.5, device="cpu", random_state=0, optimizer=decay_weights_only,
        optimizer__weight_decay=0.3, optimizer__momentum=0.5,
    ).fit(data[0].astype(np.float32), data[1])  # fmt: skip
    named = dict(clf.module_.named_parameters())
    decayed, spared = clf.optimizer_.param_groups
    assert {id(p) for p in decayed["params"]} == {id(named[k]) for k in ("0.weight", "3.weight")}
    assert len(spared["params"]) == 4
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.3, 0)
    assert decayed["momentum"] == spared["momentum"] == 0.5
    assert decayed["lr"] == spared["lr"] == 0.5


def test_decay_without_gradient_shrinks_weights_only():
    module = Normed()
    before = [p.detach().clone() for p in module.parameters()]
    optimizer = decay_weights_only(module.parameters(), lr=0.1, weight_decay=0.5)
    for p in module.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for p, old in zip(module.parameters(), before, strict=True):
        assert_allclose(p.detach(), old * (0.95 if p.ndim > 1 else 1), rtol=1e-6)
