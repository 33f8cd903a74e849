"""One network trained on the examples of models that stand still."""

import pickle

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from robustsk import PGD, EnsembleAT, MixedATClassifier, StandardClassifier
from robustsk.ensembles import StaticEnsembleATClassifier

NAMES = np.array(["cat", "ant", "bee"])


def network(width=6, n_classes=3):
    layers = nn.Linear(4, width), nn.Tanh(), nn.Linear(width, n_classes)
    return nn.Sequential(*layers).double()


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    y = np.arange(36) % 3
    return rng.normal(size=(36, 4)) + 2 * np.eye(3, 4)[y], y


class Spy(PGD):
    """Remember the batches."""

    log = []

    def perturb(self, model, x, y=None, objective=None, **kwargs):
        found = super().perturb(model, x, y, objective, **kwargs)
        self.log.append((x, y, found[0] if kwargs.get("return_info") else found))
        return found


@pytest.fixture
def spy():
    Spy.log.clear()
    return Spy(eps=0.2, n_steps=3, step_size=0.1, random_start="none", clip=None)


COMMON = {"max_epochs": 2, "batch_size": 12, "random_state": 0, "device": "cpu"}


def make(cls=StaticEnsembleATClassifier, **params):
    adversary = PGD(eps=0.2, n_steps=2, random_start="none", clip=None)
    return cls(**{**COMMON, "adversary": adversary, "module": network, **params})


def plain(seed=1, **params):
    return StandardClassifier(**{**COMMON, "module": network, "random_state": seed, **params})


def test_each_batch_attacks_one_model_in_turn(data, spy):
    """The network itself, then one static model after the other, whatever kind they are of."""
    X, y = data[0], NAMES[data[1]]
    torch.manual_seed(0)
    bare = network()
    sources = [
        plain().fit(X, y),
        make_pipeline(StandardScaler(), LogisticRegression()).fit(X, y),
        EnsembleAT(network, **COMMON).fit(X, y),
        bare,
    ]
    clf = make(sources=sources, adversary=spy, lr=0.0, max_epochs=4).fit(X, y)
    assert clf.sources_ == sources
    assert len(spy.log) == 4 * 3
    networks = [network_of(model) for model in (clf, *sources)]
    for turn, (x, target, x_adv) in enumerate(spy.log):
        for i, module in enumerate(networks):
            same = np.allclose(x_adv, attacked(module, x, target), atol=1e-9)
            assert same == (i == turn % 5)


def network_of(model):
    """The function that a model computes, written out."""
    if isinstance(model, nn.Module):
        return model
    if hasattr(model, "module_"):
        return model.module_
    scaler, linear = model[0], model[1]
    weight, bias = torch.as_tensor(linear.coef_), torch.as_tensor(linear.intercept_)
    mean, scale = torch.as_tensor(scaler.mean_), torch.as_tensor(scaler.scale_)
    return lambda x: ((x - mean) / scale) @ weight.T + bias


def attacked(module, x, y):
    """Three steps of signed gradients, of length 0.1 in a box of 0.2."""
    z = x
    for _ in range(3):
        z = z.detach().requires_grad_()
        loss = nn.functional.cross_entropy(module(z), y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, z)
        z = x + (z + 0.1 * gradient.sign() - x).clamp(-0.2, 0.2)
    return z.detach()


def test_loss_by_hand(data):
    X, y = data
    clf = make(sources=[], beta=0.5).fit(X, y)
    x, x_adv = torch.as_tensor(X), torch.as_tensor(X + 0.1)
    with torch.no_grad():
        p = [clf.module_(source).softmax(1).numpy()[np.arange(36), y] for source in (x, x_adv)]
        found = clf.training_loss(x, x_adv, torch.as_tensor(y))
    assert_allclose(found, -np.log(p[0]) - 0.5 * np.log(p[1]), rtol=1e-12)


def test_without_sources_it_is_training_on_both_kinds_of_samples(data):
    module = network()
    static = make(sources=[], module=module, beta=0.7).fit(*data)
    mixed = make(MixedATClassifier, module=module, beta=0.7).fit(*data)
    for w, v in zip(static.module_.parameters(), mixed.module_.parameters(), strict=True):
        assert torch.equal(w, v)


def test_without_weight_nothing_is_attacked(data, spy):
    make(sources=[], adversary=spy, beta=0).fit(*data)
    assert spy.log == []


def test_sources_stay_as_they_are(data):
    X, y = data
    source = plain().fit(X, y)
    source.module_.train()
    before = {k: v.clone() for k, v in source.module_.state_dict().items()}
    make(sources=[source], max_epochs=3, lr=0.1).fit(X, y)
    assert all(torch.equal(v, before[k]) for k, v in source.module_.state_dict().items())
    assert all(p.requires_grad for p in source.module_.parameters())
    assert source.module_.training


def test_sources_of_other_precision_and_shape():
    X, y = np.random.default_rng(0).uniform(size=(24, 64)), np.arange(24) % 3
    image = StandardClassifier(input_shape=(1, 8, 8), **COMMON).fit(X, y)
    table = StandardClassifier(**COMMON).fit(X, y)
    for settings in ({"input_shape": (1, 8, 8)}, {}):
        clf = make(sources=[image, table], module=None, **settings).fit(X, y)
        assert np.isfinite(clf.history_[-1, "train_loss"])


# --- sources of our own --------------------------------------------------------------


def test_sources_that_are_trained_first(data):
    X, y = data[0], NAMES[data[1]]
    clf = make(source_epochs=15, lr=0.05, adversary=PGD(eps=0.3, n_steps=2)).fit(X, y)
    assert len(clf.sources_) == 2
    for source in clf.sources_:
        assert type(source) is StandardClassifier
        assert len(source.history_) == 15
        assert_array_equal(source.classes_, np.sort(NAMES))
        assert source.score(X, y) > 0.8
        assert source.default_attack().eps == 0.3
        assert_array_equal(source.clip_bounds_[0], X.min(axis=0))
        assert 0 <= source.score_adversarial(X, y) <= 1
    first, second = (s.predict_proba(X) for s in clf.sources_)
    assert not np.allclose(first, second)
    again = make(source_epochs=15, lr=0.05, adversary=PGD(eps=0.3, n_steps=2)).fit(X, y)
    assert_array_equal(again.sources_[1].predict_proba(X), second)
    assert_array_equal(again.predict_proba(X), clf.predict_proba(X))


def test_sources_from_one_instance_start_apart(data):
    clf = make(module=network(), lr=0.0).fit(*data)
    first, second = (s.module_[0].weight for s in clf.sources_)
    assert torch.equal(first, clf.module_[0].weight)
    assert not torch.equal(first, second)


def test_training_goes_on_with_the_same_sources(data):
    X, y = data
    clf = make().fit(X, y)
    sources, turn = list(clf.sources_), clf._turn
    assert turn == 6
    clf = pickle.loads(pickle.dumps(clf))
    expected = [s.predict_proba(X) for s in clf.sources_]
    clf.partial_fit(X, y)
    assert clf._turn == 12
    assert len(clf.sources_) == len(sources)
    for source, p in zip(clf.sources_, expected, strict=True):
        assert_array_equal(source.predict_proba(X), p)
    before = clf.sources_
    clf.fit(X, y)
    assert clf.sources_[0] is not before[0]
    assert clf._turn == 6


def test_first_partial_fit_trains_the_sources(data):
    clf = make().partial_fit(*data)
    assert len(clf.sources_) == 2


def test_an_interrupt_while_the_sources_train_ends_it_all(data):
    class Interrupt(torch.optim.SGD):
        count = 0

        def step(self, *args, **kwargs):
            type(self).count += 1
            if type(self).count > 4:
                raise KeyboardInterrupt
            return super().step(*args, **kwargs)

    clf = make(optimizer=Interrupt).fit(*data)
    assert len(clf.history_) == 0
    assert len(clf.sources_) == 1
    assert clf.predict(data[0]).shape == (36,)


def test_in_a_search(data):
    X, y = data
    frozen = FrozenEstimator(plain().fit(X, y))
    search = GridSearchCV(make(sources=[frozen]), {"beta": [0.5, 1.0]}, cv=2).fit(X, y)
    assert search.best_estimator_.sources_ == [frozen]
    with pytest.raises(NotFittedError, match="cloned since"):
        clone(make(sources=[plain().fit(X, y)])).fit(X, y)


def test_what_cannot_be_a_source(data):
    X, y = data
    fitted = plain().fit(X, y)
    for params, error, message in [
        ({"sources": fitted}, TypeError, "sources must be None or a list of fitted classifiers"),
        ({"sources": [plain()]}, NotFittedError, "StandardClassifier is not fitted"),
        ({"sources": [RandomForestClassifier().fit(X, y)]}, TypeError, "follows gradients"),
        ({"sources": [plain().fit(X, NAMES[y])]}, ValueError, r"sources\[0\] knows the classes"),
        ({"source_epochs": 0}, ValueError, "source_epochs must be an integer of at least 1"),
        ({"beta": -1.0}, ValueError, "beta must be a finite number of at least 0"),
    ]:
        with pytest.raises(error, match=message):
            make(**params).fit(X, y)
