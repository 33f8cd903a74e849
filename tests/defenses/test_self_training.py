"""Robust self-training: what counts as unlabelled, how it is labelled, and how it weighs."""

import numpy as np
import pytest
import torch
from by_hand import softmax
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.datasets import make_blobs
from skorch.dataset import ValidSplit
from torch import nn
from torch.utils.data import TensorDataset

from robustsk import (
    PGD,
    GAIRATClassifier,
    RobustSelfTrainingClassifier,
    StandardClassifier,
    TRADESClassifier,
)
from robustsk.datasets import load_digits_images
from robustsk.defenses._self_training import HalfAndHalf

NAMES = np.array(["ant", "bee", "cat"])


@pytest.fixture
def data():
    """Return 90 samples of which 30 keep their labels, and the true ones."""
    X, y = make_blobs(90, 4, centers=3, cluster_std=0.4, center_box=(-2, 2), random_state=3)
    return X, np.where(np.arange(90) % 3 == 0, y, -1), y


def settings(**params):
    common = {
        "module": "mlp", "module__hidden_sizes": (8,), "batch_size": 16, "max_epochs": 3,
        "adversary": PGD(eps=0.1, n_steps=2, clip=None), "lr": 0.02, "random_state": 0,
        "device": "cpu",
    }  # fmt: skip
    return {**common, **params}


def make(**params):
    return RobustSelfTrainingClassifier(**settings(**params))


def weights(clf):
    return torch.cat([p.detach().flatten() for p in clf.module_.parameters()]).numpy()


# --- the loss ------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.0, 1.5])
def test_loss(beta):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(6, 4)), np.arange(6) % 3
    x_adv = x + rng.normal(size=(6, 4))
    clf = RobustSelfTrainingClassifier(
        lambda: nn.Linear(4, 3).double(), beta=beta, input_shape=(4,), classes=[0, 1, 2],
        device="cpu",
    ).initialize()  # fmt: skip
    weight, bias = (p.detach().numpy() for p in clf.module_.parameters())
    p, q = softmax(x @ weight.T + bias), softmax(x_adv @ weight.T + bias)
    expected = -np.log(p[np.arange(6), y]) + beta * (p * np.log(p / q)).sum(1)
    found = clf.training_loss(*(torch.as_tensor(v) for v in (x, x_adv, y)))
    assert_allclose(found.detach(), expected)


def test_without_unlabelled_samples_it_is_trades(data):
    X, _, y = data
    clf = make(beta=2.0).fit(X, y)
    assert_array_equal(weights(clf), weights(TRADESClassifier(beta=2.0, **settings()).fit(X, y)))
    assert_array_equal(clf.transduction_, y)


def test_unlabelled_samples_without_weight(data):
    X, partly, _ = data
    clf = make(unlabeled_weight=0).fit(X, partly)
    known = partly >= 0
    trades = TRADESClassifier(**settings()).fit(X[known], partly[known])
    assert_array_equal(weights(clf), weights(trades))
    assert (clf.transduction_ >= 0).all()


@pytest.mark.parametrize("clip", [None, (-1.0, 1.0)])
def test_stability_noise(clip):
    x = torch.zeros(50, 40)
    x[:, :20] = 0.9
    x += torch.linspace(0, 0.01, 50)[:, None]
    y = torch.zeros(50, dtype=torch.int64)
    clf = make(
        regularizer="stability", sigma=0.25, input_shape=(40,), classes=[0, 1],
        adversary=PGD(eps=0.001, clip=clip),
    ).initialize()  # fmt: skip
    noise = (clf.craft(x, y) - x)[:, 20:]
    assert abs(noise.mean()) < 0.03
    assert noise.std() == pytest.approx(0.25, rel=0.05)
    if clip:
        assert clf.craft(x, y).max() == 1
    clf.set_params(sigma=0.0)
    assert torch.equal(clf.craft(x, y), x)


def test_stability_without_noise_is_natural_training(data):
    X, _, y = data
    clf = make(regularizer="stability", sigma=0.0, iterator_train__shuffle=False).fit(X, y)
    natural = StandardClassifier(**settings(iterator_train__shuffle=False)).fit(X, y)
    assert_allclose(weights(clf), weights(natural), rtol=1e-9, atol=1e-12)


# --- labels --------------------------------------------------------------------------


def test_labels_are_found_by_a_natural_network(data):
    X, partly, y = data
    clf = make().fit(X, partly)
    known = partly >= 0
    # as many steps: three times the epochs on a third of the samples
    natural = StandardClassifier(**settings(max_epochs=9)).fit(X[known], partly[known])
    assert_array_equal(clf.transduction_[known], y[known])
    assert_array_equal(clf.transduction_[~known], natural.predict(X[~known]))
    assert (clf.transduction_ == y).mean() > 0.9
    assert clf.score(X, y) > 0.9
    assert clf.classes_.tolist() == [0, 1, 2]
    assert len(clf.history) == 3


@pytest.mark.dealt
@pytest.mark.parametrize("kind", ["objects", "strings", "list", "floats"])
def test_marks_among_labels_of_other_kinds(data, kind):
    X, partly, y = data
    known = partly >= 0
    if kind == "floats":
        given, names = np.where(known, partly + 0.0, -1.0), np.array([0.0, 1.0, 2.0])
    elif kind == "objects":
        given, names = np.where(known, NAMES[y].astype(object), -1), NAMES.astype(object)
    elif kind == "strings":
        given, names = np.where(known, NAMES[y], "-1"), NAMES
    else:
        given = [str(NAMES[label]) if ok else -1 for label, ok in zip(y, known, strict=True)]
        names = NAMES
    clf = make().fit(X, given)
    assert clf.classes_.tolist() == names.tolist()
    assert_array_equal(clf.predict(X), names[make().fit(X, partly).predict(X)])
    assert_array_equal(clf.transduction_[known], names[y[known]])


def test_minus_one_that_is_a_label(data):
    X, _, y = data
    keep = y < 2
    signs = np.where(y[keep] == 0, -1, 1)
    clf = make().fit(X[keep], signs)
    assert clf.classes_.tolist() == [-1, 1]
    assert_array_equal(clf.transduction_, signs)
    clf = make(classes=[-1, 0, 1]).fit(X, y - 1)
    assert clf.classes_.tolist() == [-1, 0, 1]
    assert_array_equal(clf.transduction_, y - 1)
    # given classes without it, even where one of them is missing
    partly = np.where(np.arange(90) % 3 == 0, y, -1)
    two = make(classes=[0, 1, 2]).fit(X[partly < 2], partly[partly < 2])
    assert two.classes_.tolist() == [0, 1, 2]
    assert set(two.transduction_) <= {0, 1, 2}


# --- batches and weights -------------------------------------------------------------


def batches_of(data, sample_weight=None, **params):
    seen = []

    class Watching(RobustSelfTrainingClassifier):
        def _take_step(self, crafted, **fit_params):
            seen.append(crafted)
            return super()._take_step(crafted, **fit_params)

    X, partly, _ = data
    Watching(**settings(**{"max_epochs": 1, **params})).fit(X, partly, sample_weight)
    known = {tuple(row) for row in X[partly >= 0].tolist()}
    return [(b, np.array([tuple(r) in known for r in b.x.tolist()])) for b in seen]


def test_half_of_each_batch_is_labelled(data):
    found = batches_of(data)
    assert [len(b) for b, _ in found] == [16] * 5 + [10]
    for batch, labelled in found:
        assert labelled.sum() == len(batch) / 2
        weight = batch.weight.numpy()
        # the two means count the same
        assert weight[labelled].sum() == pytest.approx(weight[~labelled].sum())
        assert len(set(np.round(weight, 12))) == 1
    drawn = np.concatenate([b.x.numpy() for b, _ in found])
    assert len(np.unique(drawn, axis=0)) == 30 + 45  # all labelled, half of the others
    again = np.concatenate([b.x.numpy() for b, _ in batches_of(data)])
    assert_array_equal(drawn, again)


@pytest.mark.parametrize("w", [0.1, 1.0, 3.0])
def test_weight_of_the_unlabelled(data, w):
    for batch, labelled in batches_of(data, unlabeled_weight=w):
        weight = batch.weight.numpy()
        # 60 unlabelled samples, 30 labelled ones
        assert weight[~labelled].sum() / weight[labelled].sum() == pytest.approx(w * 60 / 30)


def test_weight_of_the_source_is_the_default(data):
    implicit = make().fit(*data[:2])
    explicit = make(unlabeled_weight=30 / 60).fit(*data[:2])
    assert_allclose(weights(implicit), weights(explicit), rtol=1e-9)


def test_sample_weights_count_within_the_halves(data):
    sample_weight = np.linspace(0.5, 2, 90)
    by_row = dict(zip(map(tuple, data[0].tolist()), sample_weight.tolist(), strict=True))
    for batch, labelled in batches_of(data, sample_weight):
        ratio = batch.weight.numpy() / [by_row[tuple(r)] for r in batch.x.tolist()]
        for part in (labelled, ~labelled):
            assert_allclose(ratio[part], ratio[part][0])


def test_class_weight(data):
    X, _, y = data
    found = batches_of(data, class_weight={0: 3.0})
    label = {tuple(r): int(v) for r, v in zip(X.tolist(), y, strict=True)}
    for batch, labelled in found:
        first = np.array([label[tuple(r)] == 0 for r in batch.x.tolist()])
        weight = batch.weight.numpy()
        if (labelled & first).any() and (labelled & ~first).any():
            assert weight[labelled & first][0] / weight[labelled & ~first][0] == pytest.approx(3)
        assert len(set(np.round(weight[~labelled], 12))) == 1


@pytest.mark.parametrize(
    ("n_labelled", "n_unlabelled", "size", "expected"),
    [(3, 9, 4, [4, 4, 4]), (9, 4, 4, [4, 4, 4]), (5, 5, 10, [10]), (2, 5, 3, [3, 3])],
)
def test_drawing(n_labelled, n_unlabelled, size, expected):
    unlabelled = np.arange(n_labelled + n_unlabelled) >= n_labelled
    drawn = HalfAndHalf(unlabelled, size)
    rows = np.array(list(drawn))
    assert len(rows) == len(drawn) == sum(expected)
    for part, n in zip(np.split(rows, np.cumsum(expected)[:-1]), expected, strict=True):
        assert unlabelled[part].sum() == n // 2
    # none comes again before all have come
    ours = rows[~unlabelled[rows]]
    assert len(set(ours[:n_labelled])) == min(len(ours), n_labelled)


def test_all_in_one_batch_and_validation_data(data):
    X, partly, y = data
    assert [len(b) for b, _ in batches_of(data, batch_size=-1)] == [90]
    clf = make(train_split=ValidSplit(3), max_epochs=8).fit(X, partly)
    assert np.isfinite(clf.history[:, "valid_loss"]).all()
    assert clf.score(X, y) > 0.8


def test_dataset(data):
    X, partly, _ = data
    X = X.astype(np.float32)
    dataset = TensorDataset(torch.from_numpy(X), torch.from_numpy(partly))
    from_dataset = make().fit(dataset)
    assert_array_equal(from_dataset.transduction_, make().fit(X, partly).transduction_)


def test_partial_fit_labels_by_itself(data):
    X, partly, y = data
    clf = make(max_epochs=8).fit(X, partly)
    expected = clf.predict(X[:20])
    clf.partial_fit(X[:20], np.full(20, -1))
    assert_array_equal(clf.transduction_, expected)
    clf.partial_fit(X, partly)
    assert clf.score(X, y) > 0.9


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"regularizer": "vat"}, "regularizer must be 'adversarial' or 'stability'"),
        ({"beta": -1}, "beta must be"),
        ({"sigma": -1}, "sigma must be"),
        ({"unlabeled_weight": -1}, "unlabeled_weight must be"),
        ({"unlabeled_weight": "half"}, "unlabeled_weight must be"),
    ],
)
def test_bad_parameters(data, params, message):
    with pytest.raises(ValueError, match=message):
        make(**params).fit(*data[:2])


def test_nothing_labelled(data):
    with pytest.raises(ValueError, match="1 class"):
        make().fit(data[0], np.full(90, -1))
    with pytest.raises(ValueError, match="All 90 samples are unlabelled"):
        make(classes=[0, 1]).fit(data[0], np.full(90, -1))
    clf = make(unlabeled_weight=0).fit(*data[:2])
    with pytest.raises(ValueError, match="unlabeled_weight=0: there is nothing to learn"):
        clf.partial_fit(data[0], np.full(90, -1))


# --- use -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("regularizer", "gain"), [("adversarial", 0.1), ("stability", 0.03)])
def test_more_robust_than_natural_training(regularizer, gain):
    X, y = load_digits_images(return_X_y=True)
    partly = np.where(np.arange(600) < 200, y[:600], -1)
    test = X[1000:1200], y[1000:1200]
    common = {"module": "mlp", "adversary__eps": 0.08, "batch_size": 64, "random_state": 0}
    clf = RobustSelfTrainingClassifier(regularizer=regularizer, max_epochs=8, **common)
    clf.fit(X[:600], partly)
    natural = StandardClassifier(max_epochs=24, **common).fit(X[:200], y[:200])
    assert clf.score_adversarial(*test) > natural.score_adversarial(*test) + gain
    assert clf.score(*test) > 0.75


# --- GAIR-RST ------------------------------------------------------------------------


def test_gair_rst_labels_the_unlabelled_in_the_same_way(data):
    X, partly, _ = data
    common = settings()
    rst = RobustSelfTrainingClassifier(**common).fit(X, partly)
    for begin, same in [(99, True), (0, False)]:
        gair = GAIRATClassifier(variant="rst", begin_epoch=begin, **common).fit(X, partly)
        assert_array_equal(gair.classes_, rst.classes_)
        assert_array_equal(gair.transduction_, rst.transduction_)
        assert np.array_equal(weights(gair), weights(rst)) == same
    params = {**common, "variant": "rst", "begin_epoch": 0}
    ignored = GAIRATClassifier(unlabeled_weight=0, **params).fit(X, partly)
    known = partly >= 0
    labelled = GAIRATClassifier(**params).fit(X[known], partly[known])
    assert_array_equal(weights(ignored), weights(labelled))
    # for the other variants it is a label
    assert -1 in GAIRATClassifier(**common).fit(X, partly).classes_
    with pytest.raises(ValueError, match="unlabeled_weight must be"):
        GAIRATClassifier(unlabeled_weight=-1, **params).fit(X, partly)
