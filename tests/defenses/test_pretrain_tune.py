"""Two stages: pretraining on one data set, tuning on another."""

import pickle
import warnings
from unittest import SkipTest

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import csr_matrix
from sklearn.base import clone
from sklearn.datasets import make_blobs
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from skorch.callbacks import Callback
from skorch.dataset import ValidSplit
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from robustsk import (
    PGD,
    EnsembleCCE,
    PGDATClassifier,
    PretrainTuneClassifier,
    SPATClassifier,
    StandardClassifier,
    TRADESClassifier,
    score_adversarial,
)
from robustsk.datasets import load_digits_images
from robustsk.models import CosineLinear, HypersphereHead
from robustsk.training import AWP, RobustEarlyStopping, WeightAveraging

COMMON = {
    "batch_size": 16, "random_state": 0, "device": "cpu", "adversary__eps": 0.2,
    "adversary__n_steps": 2, "lr": 0.02,
}  # fmt: skip


class Normed(nn.Sequential):
    def __init__(self, n_classes):
        super().__init__(
            nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 5), nn.BatchNorm1d(5),
            nn.Linear(5, n_classes),
        )  # fmt: skip


@pytest.mark.dealt
@parametrize_with_checks(
    [PretrainTuneClassifier(PGDATClassifier(max_epochs=3, adversary__n_steps=2))]
)
def test_passes_sklearn_check(estimator, check):
    try:
        check(estimator)
    except SkipTest as skip:
        if "SCIPY_ARRAY_API" not in str(skip):
            pytest.fail(f"skipped: {skip}")
        raise


def blobs(n=48, seed=3):
    return make_blobs(n, 4, centers=3, cluster_std=0.6, center_box=(-2, 2), random_state=seed)


@pytest.fixture
def data():
    return blobs()


@pytest.fixture
def large():
    """Return a larger set of the same three clusters."""
    X, y = blobs(120)
    return X + 0.05, y


def first(**params):
    settings = {"module": "mlp", "module__hidden_sizes": (8,), "max_epochs": 3}
    return PGDATClassifier(**{**COMMON, **settings, **params})


def second(cls=TRADESClassifier, **params):
    return cls(**{**COMMON, "max_epochs": 2, **params})


def state(clf):
    return {k: v.clone() for k, v in clf.module_.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class Begin(Callback):
    """Note weights and learning rate with which a stage begins."""

    seen: list = []

    def on_train_begin(self, net, **kwargs):
        self.seen.append((state(net), net.optimizer_.param_groups[0]["lr"], net.optimizer_.state))


@pytest.fixture
def begin():
    Begin.seen.clear()
    return Begin()


# --- what each stage begins and ends with --------------------------------------------


def test_tuning_begins_with_the_pretrained_weights(data, large, begin):
    clf = PretrainTuneClassifier(
        first(), second(callbacks=[begin]), pretrain_lr=0.03, tune_lr=0.004
    ).fit(*data, *large)  # fmt: skip
    alone = first(lr=0.03).fit(*large)
    assert same(state(clf.pretrained_estimator_), state(alone))
    ((weights, lr, optimizer_state),) = begin.seen
    assert same(weights, state(alone))
    assert lr == 0.004
    assert not optimizer_state or clf.estimator_.optimizer_.state  # a fresh one
    assert not same(state(clf.estimator_), weights)
    assert isinstance(clf.estimator_, TRADESClassifier)
    assert len(clf.pretrained_estimator_.history_) == 3
    assert len(clf.estimator_.history_) == 2


def test_tuner_none_or_no_epochs_is_the_pretrained_network(data, large):
    alone = first().fit(*large)
    for clf in (
        PretrainTuneClassifier(first(), "none", keep_snapshots=True),
        PretrainTuneClassifier(first(), second(), tune_epochs=0, keep_snapshots=True),
    ):
        clf.fit(*data, *large)
        assert same(state(clf.estimator_), state(alone))
        assert_array_equal(clf.predict_proba(data[0]), alone.predict_proba(data[0]))
        assert len(clf.snapshots_) == 1
        assert same(clf.snapshots_[0], state(alone))


@pytest.mark.parametrize("own", [False, True])
def test_no_epochs_of_pretraining_is_the_tuner_alone(data, large, own):
    network = {"module": "mlp", "module__hidden_sizes": (8,)}
    tuner = second(**network) if own else second()
    clf = PretrainTuneClassifier(first(), tuner, pretrain_epochs=0).fit(*data, *large)
    assert clf.pretrained_estimator_ is None
    assert same(state(clf.estimator_), state(second(**network).fit(*data)))


def test_snapshots(data, large):
    clf = PretrainTuneClassifier(first(), second(), tune_epochs=4, keep_snapshots=True)
    clf.fit(*data, *large)
    assert len(clf.snapshots_) == 5
    assert same(clf.snapshots_[0], state(clf.pretrained_estimator_))
    assert same(clf.snapshots_[4], state(clf.estimator_))
    shorter = clone(clf).set_params(tune_epochs=2, keep_snapshots=False).fit(*data, *large)
    assert same(clf.snapshots_[2], state(shorter.estimator_))
    assert not hasattr(shorter, "snapshots_")
    averaged = clone(clf).set_params(tuner__callbacks=[WeightAveraging(decay=0.9)])
    averaged.fit(*data, *large)
    assert same(averaged.snapshots_[4], state(averaged.estimator_))


def test_without_other_data_both_stages_see_the_same(data):
    clf = PretrainTuneClassifier(first(), second()).fit(*data)
    assert same(state(clf.pretrained_estimator_), state(first().fit(*data)))


def test_tuner_is_by_default_the_pretrainer(data, large):
    clf = PretrainTuneClassifier(first()).fit(*data, *large)
    assert type(clf.estimator_) is PGDATClassifier
    assert clf.estimator_ is not clf.pretrained_estimator_


# --- heads ---------------------------------------------------------------------------


@pytest.mark.dealt
@pytest.mark.parametrize("labels", [np.array([5, 6]), np.array(["a", "b", "c"])])
@pytest.mark.parametrize("pretrainer", [first(), first(head=HypersphereHead(s=7))])
def test_new_head_for_other_classes(data, large, labels, begin, pretrainer):
    """Fewer classes, or as many with other names."""
    X, y = data[0], labels[data[1] % len(labels)]
    clf = PretrainTuneClassifier(pretrainer, second(callbacks=[begin]))
    with pytest.warns(UserWarning, match=r"\[0, 1, 2\].*replaced by a new one.*classes_map="):
        clf.fit(X, y, *large)
    assert_array_equal(clf.classes_, labels)
    before, after = state(clf.pretrained_estimator_), begin.seen[0][0]
    for key in before:
        if key.startswith("classifier"):
            assert after[key].shape[0] == len(labels)
            assert after[key].shape != before[key].shape or not torch.equal(after[key], before[key])
        else:
            assert torch.equal(after[key], before[key])
    kind = type(clf.pretrained_estimator_.module_.classifier)
    assert type(clf.estimator_.module_.classifier) is kind
    if kind is CosineLinear:
        assert clf.estimator_.module_.classifier.scale == 7
    assert set(clf.predict(X)) <= set(labels)
    with pytest.warns(UserWarning, match="replaced"):
        again = clone(clf).fit(X, y, *large)
    assert same(state(again.estimator_), state(clf.estimator_))


NAMES = np.array(["deer", "cat", "frog"])


class Pairs(Dataset):
    def __init__(self, X, y):
        self.X, self.y = X, y

    def __len__(self):
        return len(self.X)

    def __getitem__(self, i):
        return self.X[i], self.y[i]


@pytest.mark.dealt
@pytest.mark.parametrize("as_dataset", [False, True])
@pytest.mark.parametrize("tuner", ["none", "second"])
def test_the_same_classes_under_other_names(data, large, begin, tuner, as_dataset):
    """As with numbers on one side and names of folders on the other."""
    X, y = data
    names = NAMES[large[1]]
    pretraining, plain = (large[0], names), large
    if as_dataset:
        pretraining, plain = (Pairs(*pretraining), None), (Pairs(*large), None)
    tuner = second(callbacks=[begin]) if tuner == "second" else tuner
    clf = PretrainTuneClassifier(
        first(), tuner, classes_map={v: i for i, v in enumerate(NAMES.tolist())}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clf.fit(X, y, *pretraining)
        same_labels = clone(clf).set_params(classes_map=None).fit(X, y, *plain)
    assert_array_equal(clf.classes_, [0, 1, 2])
    assert_array_equal(clf.pretrained_estimator_.classes_, [0, 1, 2])
    assert same(state(clf.estimator_), state(same_labels.estimator_))
    if tuner != "none":
        assert same(begin.seen[0][0], state(clf.pretrained_estimator_))


def test_bad_maps_of_classes(data, large):
    names = NAMES[large[1]]
    clf = PretrainTuneClassifier(first(), "none")
    with pytest.raises(ValueError, match=r"not been trained on.*\[0, 1, 2\].*'deer'.*classes_map"):
        clf.fit(*data, large[0], names)
    with pytest.raises(ValueError, match=r"nothing of the labels \['cat', 'frog'\]"):
        clone(clf).set_params(classes_map={"deer": 0}).fit(*data, large[0], names)
    with pytest.raises(TypeError, match=r"classes_map must be a dict.*got \['deer'\]"):
        clone(clf).set_params(classes_map=["deer"]).fit(*data, large[0], names)
    with pytest.raises(ValueError, match="classes_map was given without X_pretrain"):
        clone(clf).set_params(classes_map={0: 0, 1: 1, 2: 2}).fit(*data)


def test_head_of_the_tuner(data, large, begin):
    """SPAT puts on a head of its own, with the pretrained weights in it."""
    clf = PretrainTuneClassifier(first(), second(SPATClassifier, callbacks=[begin]))
    clf.fit(*data, *large)
    assert isinstance(clf.estimator_.module_.classifier, CosineLinear)
    weights = begin.seen[0][0]
    for key, value in state(clf.pretrained_estimator_).items():
        if key != "classifier.bias":
            assert torch.equal(weights[key], value)
    begin.seen.clear()
    both = PretrainTuneClassifier(
        SPATClassifier(**COMMON, max_epochs=2), second(SPATClassifier, callbacks=[begin])
    ).fit(*data, *large)  # fmt: skip
    assert same(begin.seen[0][0], state(both.pretrained_estimator_))


def test_ensembles(data, large, begin):
    clf = PretrainTuneClassifier(
        EnsembleCCE(**COMMON, max_epochs=2, n_members=3), second(EnsembleCCE, callbacks=[begin])
    ).fit(*data, *large)  # fmt: skip
    assert len(clf.estimator_.members_) == 3
    assert same(begin.seen[0][0], state(clf.pretrained_estimator_))
    X, y = data[0], data[1] % 2
    clf = PretrainTuneClassifier(
        EnsembleCCE(**COMMON, max_epochs=1), second(EnsembleCCE), tune_layers="head"
    ).fit(X, y, *large)  # fmt: skip
    assert clf.predict_proba(X).shape == (48, 2)


# --- what is tuned -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "moves", "norms"),
    [
        ("head", ["5.weight", "5.bias"], []),
        (
            ["3.*", "4.weight", "5.*"],
            ["3.weight", "3.bias", "4.weight", "5.weight", "5.bias"],
            ["4."],
        ),
    ],
)  # fmt: skip
def test_other_layers_are_frozen(data, large, layers, moves, norms):
    X = data[0].astype(np.float32)
    clf = PretrainTuneClassifier(
        PGDATClassifier(Normed, max_epochs=2, **COMMON),
        second(weight_perturbation=AWP(), callbacks=[WeightAveraging()],
               optimizer=torch.optim.SGD, optimizer__weight_decay=0.1),
        tune_layers=layers,
    )  # fmt: skip
    clf.fit(X, data[1], large[0].astype(np.float32), large[1])
    before, after = state(clf.pretrained_estimator_), state(clf.estimator_)
    for key in before:
        is_moving = key in moves or (
            any(key.startswith(n) for n in norms) and ("running" in key or "num_batches" in key)
        )
        assert torch.equal(before[key], after[key]) is not is_moving, key
    module = clf.estimator_.module_
    assert all(p.requires_grad for p in module.parameters())
    assert not any(m._forward_pre_hooks for m in module.modules())
    assert not any(m.training for m in module.modules())
    pickle.loads(pickle.dumps(clf)).estimator_.partial_fit(X, data[1])


def test_layers_that_do_not_exist(data):
    for layers, match in [(["conv*"], r"no parameter matches 'conv\*'"), ("tail", "'tail'")]:
        with pytest.raises(ValueError, match=match):
            PretrainTuneClassifier(first(), second(), tune_layers=layers).fit(*data)


# --- samples of the pretraining data -------------------------------------------------


@pytest.mark.dealt
@pytest.mark.parametrize(("subset", "size"), [(30, 30), (0.5, 60), (120, 120), (1.0, 120)])
def test_subset(data, large, subset, size):
    clf = PretrainTuneClassifier(first(), second(), pretrain_subset=subset, random_state=4)
    rows = clf.fit(*data, *large).pretrain_indices_
    assert len(set(rows.tolist())) == len(rows) == size
    assert 0 <= rows.min() <= rows.max() < 120
    assert_array_equal(clone(clf).fit(*data, *large).pretrain_indices_, rows)
    other = clone(clf).set_params(pretrainer=second(StandardClassifier), tuner="none")
    assert_array_equal(other.fit(*data, *large).pretrain_indices_, rows)  # one for all methods
    if size < 120:
        third = clone(clf).set_params(random_state=5).fit(*data, *large)
        assert not np.array_equal(third.pretrain_indices_, rows)
    else:
        assert_array_equal(rows, np.arange(120))


def test_stratified_subset_and_matched_steps(data, large):
    clf = PretrainTuneClassifier(
        first(max_epochs=2), second(), pretrain_subset=30, stratify=True, match_steps=True,
        random_state=0,
    ).fit(*data, *large)  # fmt: skip
    assert np.bincount(large[1][clf.pretrain_indices_]).tolist() == [10, 10, 10]
    assert len(clf.pretrained_estimator_.history_) == 8
    dataset = TensorDataset(torch.tensor(large[0]), torch.tensor(large[1]))
    from_dataset = clone(clf).fit(*data, dataset)
    assert_array_equal(from_dataset.pretrain_indices_, clf.pretrain_indices_)
    frame = pd.DataFrame(large[0])
    columns = pd.DataFrame(data[0])
    assert same(
        state(clone(clf).fit(columns, data[1], frame, large[1]).estimator_), state(clf.estimator_)
    )


@pytest.mark.parametrize("subset", [0, 121, -3, 0.0, 1.5, True, "a"])
def test_bad_subset(data, large, subset):
    with pytest.raises(ValueError, match="pretrain_subset"):
        PretrainTuneClassifier(first(), second(), pretrain_subset=subset).fit(*data, *large)


# --- as an estimator -----------------------------------------------------------------


def test_attacks_take_it_for_a_victim(data, large):
    clf = PretrainTuneClassifier(first(), second()).fit(*data, *large)
    attack = PGD(eps=0.3, random_state=0)
    expected = clf.estimator_.score_adversarial(*data, attack)
    assert clf.score_adversarial(*data, attack) == expected
    assert score_adversarial(clf, *data, attack) == expected
    assert clf.score_adversarial(*data) == clf.estimator_.score_adversarial(*data)
    assert clf.default_attack().eps == 0.2
    X_adv = PGD(clf, eps=0.3, random_state=0).fit(data[0]).generate(*data)
    assert np.abs(X_adv - data[0]).max() <= 0.3 + 1e-9
    assert clf.score(X_adv, data[1]) == expected


def test_seeds(data, large):
    def fit(seed):
        clf = PretrainTuneClassifier(
            first(random_state=None), second(random_state=None), random_state=seed
        )
        return clf.fit(*data, *large).predict_proba(data[0])

    before = torch.random.get_rng_state()
    assert_array_equal(fit(1), fit(1))
    assert not np.allclose(fit(1), fit(2))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_search_pipeline_and_pickle(data, large):
    clf = PretrainTuneClassifier(first(), second())
    search = GridSearchCV(
        clf, {"pretrainer__adversary__eps": [0.1, 0.3], "tuner__beta": [1.0], "tune_lr": [0.01]},
        cv=2, error_score="raise",
    ).fit(*data, X_pretrain=large[0], y_pretrain=large[1])  # fmt: skip
    assert search.best_estimator_.estimator_.beta == 1
    assert search.best_estimator_.pretrained_estimator_.history_
    pipe = make_pipeline(StandardScaler(), clf).fit(*data)
    assert pipe.score(*data) > 0.8
    fitted = clf.fit(*data, *large)
    again = pickle.loads(pickle.dumps(fitted))
    assert_array_equal(again.predict_proba(data[0]), fitted.predict_proba(data[0]))
    assert_array_equal(fitted.decision_function(data[0]), again.decision_function(data[0]))


def test_callbacks_of_the_stages_are_theirs(data, large):
    stop = RobustEarlyStopping()
    split = {"train_split": ValidSplit(4, stratified=True)}
    tuner = second(callbacks=[stop], **split)
    clf = PretrainTuneClassifier(first(callbacks="disable"), tuner).fit(*data, *large)
    assert [type(cb) for cb in clf.estimator_.callbacks] == [RobustEarlyStopping]
    assert [k for k, _ in clf.estimator_.callbacks_][-2:] == ["RobustEarlyStopping", "print_log"]
    assert tuner.callbacks == [stop]
    assert PretrainTuneClassifier(first(), second(callbacks="disable")).fit(*data, *large)


def test_flattened_images_and_other_seen_shapes(data):
    X, y = load_digits_images(return_X_y=True)
    X, y = X[:60].reshape(60, -1), y[:60]
    pretrainer = PGDATClassifier(max_epochs=1, input_shape=(1, 8, 8), **COMMON)
    clf = PretrainTuneClassifier(pretrainer, second()).fit(X, y, X, y)
    assert clf.estimator_.input_shape_ == (1, 8, 8)
    with pytest.raises(ValueError, match=r"X_pretrain .*\(64,\).*\(4,\)"):
        PretrainTuneClassifier(first(), second()).fit(*data, X, y)


def test_errors(data, large):
    clf = PretrainTuneClassifier(first(), second())
    for call in (clf.predict, clf.predict_proba, clf.decision_function):
        with pytest.raises(NotFittedError):
            call(data[0])
    with pytest.raises(NotFittedError):
        clf.score_adversarial(*data)
    with pytest.raises(TypeError, match="pretrainer must be a defence"):
        PretrainTuneClassifier(StandardScaler()).fit(*data)
    with pytest.raises(TypeError, match="tuner must be 'none'"):
        PretrainTuneClassifier(first(), "None").fit(*data)
    with pytest.raises(ValueError, match="tune_epochs"):
        PretrainTuneClassifier(first(), tune_epochs=-1).fit(*data)
    with pytest.raises(ValueError, match="without X_pretrain"):
        clf.fit(*data, y_pretrain=data[1])
    with pytest.raises(ValueError, match=r"has not been trained on the labels \[3, 4\]"):
        PretrainTuneClassifier(first(), "none").fit(data[0], data[1] + 2, *large)


@pytest.mark.slow
def test_pretraining_helps_where_there_are_few_samples():
    X, y = load_digits_images(return_X_y=True)
    few, many, test = slice(0, 100), slice(100, 900), slice(1200, 1500)
    common = {**COMMON, "adversary__eps": 0.1, "lr": 0.005, "max_epochs": 6}
    network = {"module": "mlp", "module__hidden_sizes": (64,)}
    attack = PGD(eps=0.1, random_state=0)
    alone = TRADESClassifier(**common, **network).fit(X[few], y[few])
    both = PretrainTuneClassifier(
        PGDATClassifier(**common, **network), TRADESClassifier(**common), tune_lr=0.001
    ).fit(X[few], y[few], X[many], y[many])  # fmt: skip
    natural = StandardClassifier(**common, **network).fit(X[many], y[many])
    scores = [c.score_adversarial(X[test], y[test], attack) for c in (alone, natural, both)]
    assert scores[2] > scores[0] + 0.1
    assert scores[2] > scores[1] + 0.1


def test_a_share_of_sparse_data(make):
    rng = np.random.default_rng(0)
    X, y = np.where(rng.random((40, 5)) > 0.5, rng.random((40, 5)), 0), np.arange(40) % 2
    parts = make(StandardClassifier), make(PGDATClassifier)
    clf = PretrainTuneClassifier(*parts, pretrain_subset=0.5, random_state=0)
    dense = clone(clf).fit(X, y).predict_proba(X)
    S = csr_matrix(X)
    assert_allclose(clf.fit(S, y).predict_proba(S), dense)
