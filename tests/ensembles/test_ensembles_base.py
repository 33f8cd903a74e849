"""What all ensembles share: members as classifiers, joining classifiers without training."""

import pickle

import numpy as np
import pandas as pd
import pytest
import skorch
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import entropy
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV
from sklearn.utils.validation import check_is_fitted
from torch import nn

from robustsk import PGD, EnsembleADP, EnsembleAT, EnsembleCCE, PGDATClassifier, StandardClassifier
from robustsk.defenses import BaseDefense
from robustsk.ensembles import MeanEnsemble
from robustsk.models import HypersphereHead
from robustsk.victims.victim import get_members

NAMES = np.array(["cat", "ant", "bee"])
ENSEMBLES = (EnsembleAT, EnsembleCCE, EnsembleADP)


def network(width=6, n_classes=3):
    layers = nn.Linear(4, width), nn.ReLU(), nn.Linear(width, n_classes)
    return nn.Sequential(*layers).double()


def blobs(seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(36) % 3
    return rng.normal(size=(36, 4)) + 2 * np.eye(3, 4)[y], y


@pytest.fixture
def data():
    return blobs()


COMMON = {"max_epochs": 2, "batch_size": 12, "random_state": 0, "device": "cpu"}


def make(cls=EnsembleAT, **params):
    settings = {"module": network, "adversary": PGD(eps=0.2, n_steps=2)}
    return cls(**{**COMMON, **settings, **params})


def plain(seed=0, **params):
    return StandardClassifier(**{**COMMON, "module": network, "random_state": seed, **params})


def net(module, criterion=nn.CrossEntropyLoss, **params):
    return skorch.NeuralNetClassifier(
        module, criterion=criterion, max_epochs=2, lr=0.1, verbose=0, train_split=None, **params
    )


# --- the module ----------------------------------------------------------------------


def test_the_mean_names_its_members():
    members = [network(), network()]
    assert get_members(MeanEnsemble(members)) == members


@pytest.mark.dealt
@pytest.mark.parametrize("cls", ENSEMBLES)
def test_order_of_the_members_does_not_matter(cls, data):
    X, y = data
    clf = make(cls, n_members=3).fit(X, y)
    before = clf.predict_proba(X), clf.score_adversarial(X, y)
    clf.module_.members = nn.ModuleList([clf.module_.members[i] for i in (2, 0, 1)])
    assert_allclose(clf.predict_proba(X), before[0], rtol=1e-12)
    assert clf.score_adversarial(X, y) == before[1]


@pytest.mark.parametrize("cls", ENSEMBLES)
def test_networks_of_several_kinds(cls, data):
    clf = make(cls, module=["mlp", network(5), network], n_members=3).fit(*data)
    assert [type(e.module_).__name__ for e in clf.estimators_] == [
        "MLP",
        "Sequential",
        "Sequential",
    ]
    assert [e.module for e in clf.estimators_] == clf.module
    assert clf.estimators_[1].module_[0].out_features == 5


@pytest.mark.parametrize("cls", ENSEMBLES)
def test_what_is_reported_of_a_step_is_the_prediction_of_the_ensemble(cls, data):
    clf = make(cls, n_members=3).fit(*data)
    x = torch.as_tensor(data[0])
    y = torch.as_tensor(data[1])
    clf._step_logits = None
    clf.training_loss(x, clf.craft(x, y), y)
    with torch.no_grad():
        mean = np.mean([m(x).softmax(1).numpy() for m in clf.members_], axis=0)
    assert_allclose(clf._step_logits.softmax(1), mean, rtol=1e-8)
    assert not clf._step_logits.requires_grad


def test_head_acts_on_every_member(data):
    """The margin is taken off the members' logits, where it means something."""
    head = HypersphereHead(s=5.0, m=0.3)
    clf = make(loss="mean", head=head, module="mlp").fit(*data)
    x, y = torch.as_tensor(data[0]), torch.as_tensor(data[1])
    with torch.no_grad():
        logits = clf.member_logits(x)
        found = clf.ensemble_loss(logits, y).numpy()
    onehot = np.eye(3)[data[1]]
    p = np.mean(
        [torch.softmax(z - torch.as_tensor(1.5 * onehot), dim=1).numpy() for z in logits], axis=0
    )
    assert_allclose(found, -np.log(p[np.arange(36), data[1]]), rtol=1e-8)


def test_prediction_entropy(data):
    clf = make().fit(*data)
    found = clf.prediction_entropy(data[0])
    assert_allclose(found, entropy(clf.predict_proba(data[0]), axis=1), rtol=1e-10)


# --- members as classifiers ----------------------------------------------------------


@pytest.mark.dealt
@pytest.mark.parametrize("cls", ENSEMBLES)
def test_members_as_classifiers(cls, data):
    X, y = data[0], NAMES[data[1]]
    clf = make(cls, n_members=3, classes=NAMES, adversary__eps=0.7).fit(X, y)
    estimators = clf.estimators_
    assert len(estimators) == 3
    encoded = np.argsort(np.argsort(NAMES))[data[1]]
    for estimator, member in zip(estimators, clf.members_, strict=True):
        assert type(estimator) is StandardClassifier
        assert estimator.module_ is member
        check_is_fitted(estimator)
        with torch.no_grad():
            p = member(torch.as_tensor(X)).softmax(1).numpy()
        assert_allclose(estimator.predict_proba(X), p, rtol=1e-12)
        assert_array_equal(estimator.predict(X), np.sort(NAMES)[p.argmax(axis=1)])
        assert estimator.score(X, y) == np.mean(estimator.predict(X) == y)
        attacked = [
            PGD(victim, eps=0.5, clip=None, random_state=0).generate(X, labels)
            for victim, labels in ((member, encoded), (estimator, y))
        ]
        assert_array_equal(*attacked)
        assert estimator.default_attack().eps == 0.7
        assert 0 <= estimator.score_adversarial(X, y) <= estimator.score(X, y)
        assert estimator.clip_bounds_ is clf.clip_bounds_
        assert estimator.n_features_in_ == 4
        assert estimator.input_shape_ == (4,)
    mean = np.mean([e.predict_proba(X) for e in estimators], axis=0)
    assert_allclose(clf.predict_proba(X), mean, rtol=1e-12)


def test_members_keep_the_names_of_the_features(data):
    frame = pd.DataFrame(data[0], columns=list("abcd"))
    member = make().fit(frame, data[1]).estimators_[0]
    assert member.feature_names_in_.tolist() == list("abcd")
    assert member.predict(frame).shape == (36,)
    with pytest.raises(ValueError, match="feature names"):
        member.predict(frame[list("badc")])


def test_members_of_an_ensemble_of_images():
    rng = np.random.default_rng(0)
    X, y = rng.uniform(size=(20, 64)).astype(np.float32), np.arange(20) % 2
    clf = make(module=None, input_shape=(1, 8, 8), max_epochs=1).fit(X, y)
    for member in clf.estimators_:
        assert member.predict_proba(X).shape == (20, 2)
        assert 0 <= member.score_adversarial(X, y) <= 1


def test_members_can_be_copied_and_cloned(data):
    X, y = data
    clf = make(module="mlp", module__hidden_sizes=(5,)).fit(X, y)
    member = clf.estimators_[1]
    copied = pickle.loads(pickle.dumps(member))
    assert_array_equal(copied.predict_proba(X), member.predict_proba(X))
    fresh = clone(member)
    with pytest.raises(NotFittedError):
        fresh.predict(X)
    assert (fresh.module, fresh.module__hidden_sizes) == ("mlp", (5,))
    before = clf.predict_proba(X)
    fresh.fit(X, y)
    assert_array_equal(clf.predict_proba(X), before)
    assert not torch.equal(fresh.module_.state_dict()["classifier.bias"],
                           member.module_.state_dict()["classifier.bias"])  # fmt: skip


def test_training_a_member_trains_the_ensemble(data):
    clf = make().fit(*data)
    before = [m[0].weight.clone() for m in clf.members_]
    clf.estimators_[1].set_params(lr=0.1).partial_fit(*data)
    assert torch.equal(clf.members_[0][0].weight, before[0])
    assert not torch.equal(clf.members_[1][0].weight, before[1])


def test_members_are_those_that_were_trained(data):
    clf = make().fit(*data).set_params(n_members=5)
    assert len(clf.estimators_) == 2


def test_looking_at_the_members_draws_no_random_number(data):
    state = np.random.RandomState(3)
    clf = make(random_state=state).fit(*data)
    before = state.get_state()[1].copy(), torch.get_rng_state()
    _ = clf.estimators_
    assert_array_equal(state.get_state()[1], before[0])
    assert torch.equal(torch.get_rng_state(), before[1])


def test_members_of_an_unfitted_ensemble():
    with pytest.raises(NotFittedError):
        _ = make().estimators_


# --- joining -------------------------------------------------------------------------


@pytest.mark.dealt
@pytest.mark.parametrize("cls", ENSEMBLES)
def test_joining(cls, data):
    X, y = data[0], NAMES[data[1]]
    parts = [
        plain().fit(X, y),
        PGDATClassifier(network(7), adversary__eps=0.1, **COMMON).fit(X, y),
        FrozenEstimator(plain(1, max_epochs=4).fit(X, y)),
    ]
    before = [p.predict_proba(X) for p in parts]
    clf = cls.from_estimators(parts, adversary__eps=0.3, random_state=0, device="cpu")
    check_is_fitted(clf)
    assert type(clf) is cls
    assert_allclose(clf.predict_proba(X), np.mean(before, axis=0), rtol=1e-12)
    assert_array_equal(clf.classes_, np.sort(NAMES))
    assert clf.n_members == len(clf.members_) == 3
    assert clf.n_features_in_ == 4
    assert_array_equal(clf.clip_bounds_[0], X.min(axis=0))
    assert clf.score(X, y) == np.mean(clf.predict(X) == y)
    assert clf.default_attack().eps == 0.3
    assert 0 <= clf.score_adversarial(X, y) <= clf.score(X, y)
    assert PGD(clf, eps=0.1, random_state=0).generate(X, y).shape == X.shape
    for estimator, p in zip(clf.estimators_, before, strict=True):
        assert_array_equal(estimator.predict_proba(X), p)
    # training goes on from there, and leaves the parts alone
    loaded = pickle.loads(pickle.dumps(clf))
    clf.set_params(max_epochs=10, lr=0.01).partial_fit(X, y)
    assert len(clf.history_) == 10
    assert clf.history_[-1, "train_loss"] < clf.history_[0, "train_loss"]
    for part, p in zip(parts, before, strict=True):
        assert_array_equal(part.predict_proba(X), p)
    assert_allclose(loaded.predict_proba(X), np.mean(before, axis=0), rtol=1e-12)


def test_clone_of_a_joined_ensemble_starts_from_its_networks(data):
    X, y = data
    parts = [plain().fit(X, y), plain(1).fit(X, y)]
    clf = EnsembleAT.from_estimators(parts, **COMMON)
    expected = clf.predict_proba(X)
    parts[0].set_params(lr=0.1).partial_fit(X, y)  # what becomes of them later does not matter
    fresh = clone(clf)
    with pytest.raises(NotFittedError):
        fresh.predict(X)
    assert_allclose(fresh.set_params(lr=0.0).fit(X, y).predict_proba(X), expected, rtol=1e-12)
    fresh.set_params(lr=0.1).fit(X, y)
    assert not np.allclose(fresh.predict_proba(X), expected)
    assert_array_equal(clf.predict_proba(X), expected)


def test_joining_an_ensemble_gives_it_back(data):
    clf = make(n_members=3).fit(*data)
    again = EnsembleCCE.from_estimators(clf.estimators_)
    assert_array_equal(again.predict_proba(data[0]), clf.predict_proba(data[0]))
    nested = EnsembleAT.from_estimators([clf, again])
    assert_allclose(nested.predict_proba(data[0]), clf.predict_proba(data[0]), rtol=1e-12)


def single():
    return network().float()


class Probabilities(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = network().float()

    def forward(self, x):
        return self.net(x).softmax(dim=1)


def test_joining_skorch_nets(data):
    """The columns of a net are in the order of `classes`; NLLLoss means probabilities."""
    X, y = data[0].astype(np.float32), data[1]
    torch.manual_seed(0)
    order = [2, 0, 1]
    parts = [net(single).fit(X, y), net(Probabilities, nn.NLLLoss).fit(X, y)]
    turned = net(single, classes=order).fit(X, y)
    clf = EnsembleAT.from_estimators([*parts, turned], adversary__eps=0.1, device="cpu")
    columns = turned.predict_proba(X)[:, np.argsort(order)]
    mean = np.mean([*(p.predict_proba(X) for p in parts), columns], axis=0)
    assert_allclose(clf.predict_proba(X), mean, rtol=1e-4, atol=1e-6)
    assert clf.classes_.tolist() == [0, 1, 2]
    attack = PGD(clf, eps=0.5, random_state=0).fit(X)
    assert clf.score(attack.generate(X, y), y) <= clf.score(X, y)
    assert 0 <= clf.score_adversarial(X, y, PGD(eps=0.1, clip=None)) <= 1
    assert len(clf.estimators_) == 3
    assert_allclose(clf.estimators_[2].predict_proba(X), columns, rtol=1e-5)
    # what no net has told, the data do, but not which classes there are
    two = y < 2
    clf.partial_fit(X[two], y[two])
    assert clf.n_features_in_ == 4
    assert clf.classes_.tolist() == [0, 1, 2]
    assert clf.predict_proba(X).shape == (36, 3)


def test_joining_nets_and_classifiers(data):
    """Of any precision, and seen from the side of the data."""
    X, y = np.random.default_rng(0).uniform(size=(24, 64)), np.arange(24) % 3
    torch.manual_seed(0)
    image = StandardClassifier(input_shape=(1, 8, 8), **COMMON).fit(X, y)
    table = StandardClassifier(**COMMON).fit(X, y)
    other = net(lambda: nn.Linear(64, 3)).fit(X.astype(np.float32), y)
    kinds = [next(part.module_.parameters()).dtype for part in (image, table, other)]
    assert set(kinds) == {torch.float32, torch.float64}
    for parts in ([image, table], [table, image, other], [image, image]):
        clf = EnsembleAT.from_estimators(parts, device="cpu", adversary__eps=0.05, max_epochs=1)
        mean = np.mean([p.predict_proba(X.astype(np.float32)) for p in parts], axis=0)
        assert_allclose(clf.predict_proba(X.astype(np.float32)), mean, rtol=1e-3, atol=1e-6)
        assert 0 <= clf.score_adversarial(X, y) <= 1
        clf.partial_fit(X, y)
        assert np.isfinite(clf.history_[-1, "train_loss"])
    assert clf.input_shape == (1, 8, 8)
    assert clf.members_[0] is not clf.members_[1]
    assert type(clf.members_[0]) is type(image.module_)


def test_joining_what_a_search_has_found(data):
    search = GridSearchCV(plain(), {"lr": [0.01, 0.1]}, cv=2).fit(*data)
    clf = EnsembleAT.from_estimators([search, FrozenEstimator(search)])
    assert_allclose(clf.predict_proba(data[0]), search.predict_proba(data[0]), rtol=1e-12)


def test_valid_range_of_a_joined_ensemble_is_that_of_all_data():
    (first, y), (second, _) = blobs(0), blobs(1)
    clf = EnsembleAT.from_estimators([plain().fit(first, y), plain().fit(second, y)])
    both = np.concatenate([first, second])
    assert_array_equal(clf.clip_bounds_[0], both.min(axis=0))
    assert_array_equal(clf.clip_bounds_[1], both.max(axis=0))


def test_what_cannot_be_joined(data):
    X, y = data
    fitted = plain().fit(X, y)

    def join(*parts, **params):
        return EnsembleAT.from_estimators(list(parts), **params)

    with pytest.raises(ValueError, match="estimators is empty"):
        join()
    with pytest.raises(TypeError, match="must be a list of fitted classifiers"):
        EnsembleAT.from_estimators(fitted)
    with pytest.raises(NotFittedError, match=r"estimators\[1\].*StandardClassifier, is not fitted"):
        join(fitted, plain())
    with pytest.raises(NotFittedError, match=r"estimators\[0\].*NeuralNetClassifier"):
        join(net(network))
    with pytest.raises(TypeError, match=r"estimators\[1\] is the class StandardClassifier"):
        join(fitted, StandardClassifier)
    with pytest.raises(TypeError, match=r"estimators\[0\] is of type Sequential.*module=\[...\]"):
        join(network())
    with pytest.raises(ValueError, match=r"estimators\[1\] knows the classes \['ant'.*\[0, 1, 2\]"):
        join(fitted, plain().fit(X, NAMES[y]))
    narrow = plain(module="mlp").fit(X[:, :3], y)
    with pytest.raises(ValueError, match=r"different samples of shape: \(4,\) and \(3,\)"):
        join(fitted, narrow)
    frames = [pd.DataFrame(X, columns=list(names)) for names in ("abcd", "abdc")]
    with pytest.raises(ValueError, match=r"different feature names: \['a', 'b', 'c', 'd'\] and"):
        join(*(plain().fit(frame, y) for frame in frames))
    with pytest.raises(ValueError, match=r"classes=\[0, 1\] are not those that the estimators"):
        join(fitted, classes=[0, 1])
    with pytest.raises(ValueError, match=r"list of 3 networks and n_members is 4"):
        join(fitted, fitted, fitted, n_members=4)
    with pytest.raises(TypeError, match="has no parameter 'epochs'"):
        join(fitted, epochs=3)


def test_ensembles_are_defences():
    assert all(issubclass(cls, BaseDefense) for cls in ENSEMBLES)
