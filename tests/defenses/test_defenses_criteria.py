"""Criteria of torch: one value per sample, torch's mean, and what is not on logits."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from sklearn.metrics import log_loss
from skorch.dataset import ValidSplit
from skorch.helper import predefined_split
from skorch.scoring import loss_scoring
from torch import nn
from torch.nn import functional as F

from robustsk import PGDATClassifier, StandardClassifier, TRADESClassifier

W = torch.tensor([1.0, 4.0, 9.0])


def linear(n_outputs=3):
    torch.manual_seed(0)
    return nn.Linear(4, n_outputs)


def one_step(make, **params):
    """Return an estimator that sees all samples at once, in their order."""
    return make(
        StandardClassifier, module=linear(), max_epochs=1, batch_size=-1,
        iterator_train__shuffle=False, **params,
    )  # fmt: skip


@pytest.mark.parametrize("given", ["parameter", "instance"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_losses_are_torchs_weighted_mean(make, data32, given, smoothing):
    X, y = data32
    options = {"weight": W, "label_smoothing": smoothing}
    if given == "instance":
        params = {"criterion": nn.CrossEntropyLoss(**options)}
    else:
        params = {f"criterion__{k}": v for k, v in options.items()}
    held = torch.utils.data.TensorDataset(torch.from_numpy(X[:20]), torch.from_numpy(y[:20]))
    clf = one_step(make, train_split=predefined_split(held), **params).fit(X, y)
    logits = linear()(torch.from_numpy(X))
    right = F.cross_entropy(logits, torch.from_numpy(y), **options)
    assert_allclose(clf.history_[-1]["train_loss"], float(right.detach()), rtol=1e-6)
    with torch.no_grad():
        after = clf.module_(torch.from_numpy(X[:20]))
    right = F.cross_entropy(after, torch.from_numpy(y[:20]), **options)
    assert_allclose(clf.history_[-1]["valid_loss"], float(right), rtol=1e-6)
    if given == "instance":
        assert params["criterion"].reduction == "mean"


@pytest.mark.parametrize("cls", [StandardClassifier, TRADESClassifier])
def test_weighted_classes_and_weighted_samples(make, data, cls):
    """A sample of weight 2 is two samples, whatever its class weighs in the criterion."""
    X, y = data
    weight = np.where(np.arange(len(y)) % 3 == 0, 2.0, 1.0)
    rows = np.repeat(np.arange(len(y)), weight.astype(int))
    params = {
        "max_epochs": 5, "batch_size": -1, "iterator_train__shuffle": False,
        "criterion__weight": W, "lr": 0.05,
    }  # fmt: skip
    weighted = make(cls, **params).fit(X, y, sample_weight=weight)
    repeated = make(cls, **params).fit(X[rows], y[rows])
    assert_allclose(weighted.predict_proba(X), repeated.predict_proba(X), atol=1e-6)


def test_balanced_classes_are_those_of_the_weights(make, data):
    X, y = data
    weight = np.where(y == 1, 3.0, 1.0)
    weight[:5] = 0
    rows = np.repeat(np.arange(len(y)), weight.astype(int))
    params = {
        "max_epochs": 10, "batch_size": -1, "iterator_train__shuffle": False,
        "class_weight": "balanced", "lr": 0.05,
    }  # fmt: skip
    weighted = make(StandardClassifier, **params).fit(X, y, sample_weight=weight)
    repeated = make(StandardClassifier, **params).fit(X[rows], y[rows])
    assert_allclose(weighted.predict_proba(X), repeated.predict_proba(X), atol=1e-10)


def test_a_criterion_is_as_precise_as_the_network(make, data):
    clf = make(StandardClassifier, criterion__weight=W).fit(*data)
    assert {p.dtype for p in clf.module_.parameters()} == {torch.float64}
    assert clf.criterion_.weight.dtype == torch.float64
    assert W.dtype == torch.float32
    clf.set_params(criterion__weight=2 * W).partial_fit(*data)
    assert clf.criterion_.weight.dtype == torch.float64


@pytest.mark.parametrize("cls", [StandardClassifier, PGDATClassifier])
@pytest.mark.parametrize("n_outputs", [1, 2])
def test_binary_cross_entropy_is_cross_entropy(make, binary, cls, n_outputs):
    X, y = binary
    params = {"module": linear(n_outputs), "max_epochs": 3, "train_split": ValidSplit(3)}
    X = X.astype(np.float32)
    found = make(cls, criterion=nn.BCEWithLogitsLoss, **params).fit(X, y)
    right = make(cls, **params).fit(X, y)
    assert_allclose(found.predict_proba(X), right.predict_proba(X), atol=1e-6)
    for name in ("train_loss", "valid_loss"):
        assert_allclose(found.history_[:, name], right.history_[:, name], rtol=1e-5)
    params["criterion__pos_weight"] = torch.tensor(50.0)
    heavy = make(cls, criterion=nn.BCEWithLogitsLoss, **params).fit(X, y)
    assert heavy.predict_proba(X)[:, 1].mean() > right.predict_proba(X)[:, 1].mean()


def test_what_is_not_on_logits_names_what_is(make, data32, binary):
    X, y = data32
    with pytest.raises(ValueError, match=r"BCEWithLogitsLoss is for two classes.*CrossEntropyLoss"):
        make(StandardClassifier, criterion=nn.BCEWithLogitsLoss).fit(X, y)
    with pytest.raises(ValueError, match=r"without a sigmoid.*CrossEntropyLoss"):
        make(StandardClassifier, criterion=nn.BCELoss).fit(*binary)


def test_a_softmax_and_nll_loss_train_as_in_skorch(make, data32):
    X, y = data32
    module = nn.Sequential(linear(), nn.Softmax(-1))
    params = {"max_epochs": 30, "lr": 0.05}
    clf = make(StandardClassifier, module=module, criterion=nn.NLLLoss, **params).fit(X, y)
    right = make(StandardClassifier, module=linear(), **params).fit(X, y)
    assert_allclose(clf.predict_proba(X), right.predict_proba(X), atol=1e-4)
    assert_allclose(clf.history_[-1]["train_loss"], right.history_[-1]["train_loss"], atol=1e-4)
    assert_allclose(np.exp(clf.predict_log_proba(X)), clf.predict_proba(X), atol=1e-12)
    logs = nn.Sequential(linear(), nn.LogSoftmax(-1))
    clf = make(StandardClassifier, module=logs, criterion=nn.NLLLoss, **params).fit(X, y)
    assert_allclose(clf.predict_proba(X), right.predict_proba(X), atol=1e-4)


def test_an_attack_on_probabilities_in_training_is_told(make, data32):
    module = nn.Sequential(linear(), nn.Softmax(-1))
    with pytest.warns(UserWarning, match=r"returns probabilities.*return logits"):
        make(PGDATClassifier, module=module).fit(*data32)


def test_loss_scoring_gives_what_the_criterion_gives(make, data):
    X, y = data
    names = np.array(["x", "y", "z"])[y]
    clf = make(StandardClassifier, batch_size=20).fit(X, names)
    losses = -clf.predict_log_proba(X)[np.arange(len(y)), y]
    assert_allclose(losses.mean(), log_loss(names, clf.predict_proba(X)), rtol=1e-12)
    assert_allclose(loss_scoring(clf, X, names), losses.mean(), rtol=1e-12)
    for reduction, right in {"sum": losses.sum(), "none": losses}.items():
        clf.set_params(criterion__reduction=reduction)
        assert_allclose(loss_scoring(clf, X, names), right, rtol=1e-12)


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_training_takes_the_mean_whatever_the_reduction(make, data, reduction):
    X, y = data
    params = {"criterion__weight": torch.tensor([1.0, 2.0, 5.0]), "batch_size": 20}
    right = make(PGDATClassifier, **params).fit(X, y)
    clf = make(PGDATClassifier, criterion__reduction=reduction, **params).fit(X, y)
    assert_allclose(clf.predict_proba(X), right.predict_proba(X), rtol=1e-12)
    assert clf.history_[:, "train_loss"] == right.history_[:, "train_loss"]


def test_loss_scoring_takes_the_weights_of_classes(make, data):
    X, y = data
    weight = np.array([1.0, 2.0, 5.0])
    params = {"criterion__weight": torch.tensor(weight), "batch_size": 64}
    clf = make(StandardClassifier, **params).fit(X, y)
    losses = -clf.predict_log_proba(X)[np.arange(len(y)), y] * weight[y]
    assert_allclose(loss_scoring(clf, X, y), losses.sum() / weight[y].sum(), rtol=1e-6)
    clf.set_params(criterion__reduction="none")
    assert_allclose(loss_scoring(clf, X, y), losses, rtol=1e-6)


def test_a_criterion_derived_from_one_of_torch_is_told_to_give_single_losses(make, data):
    class Derived(nn.CrossEntropyLoss):
        def __init__(self, reduction="mean"):
            super().__init__()
            self.own = nn.CrossEntropyLoss(reduction=reduction)

        def forward(self, logits, y):
            return self.own(logits, y)

    X, y = data
    weight = np.linspace(0, 1, len(y))
    clf = make(PGDATClassifier, criterion=Derived).fit(X, y, sample_weight=weight)
    right = make(PGDATClassifier).fit(X, y, sample_weight=weight)
    assert_allclose(clf.predict_proba(X), right.predict_proba(X), rtol=1e-12)


def test_an_own_loss_may_ask_the_criterion(make, data):
    class Own(PGDATClassifier):
        def get_loss(self, y_pred, y_true, X=None, training=False):
            return self.criterion_(y_pred, y_true)

    X, y = data
    right = make(PGDATClassifier).fit(X, y)
    assert_allclose(make(Own).fit(X, y).predict_proba(X), right.predict_proba(X), atol=1e-12)


def test_an_own_loss_is_given_predictions(make, data):
    class Own(PGDATClassifier):
        def get_loss(self, y_pred, y_true, X=None, training=False):
            return F.cross_entropy(y_pred, y_true)

    class Added(PGDATClassifier):
        def get_loss(self, y_pred, y_true, X=None, training=False):
            assert y_pred.shape == (len(y_true), 3)
            loss = super().get_loss(y_pred, y_true, X=X, training=training)
            return loss + 0.1 * sum(p.square().sum() for p in self.module_.parameters())

    X, y = data
    right = make(PGDATClassifier).fit(X, y)
    assert_allclose(make(Own).fit(X, y).predict_proba(X), right.predict_proba(X), atol=1e-12)
    smaller = make(Added, max_epochs=10).fit(X, y)
    norms = [sum(float(p.square().sum()) for p in c.module_.parameters()) for c in (smaller, right)]
    assert norms[0] < norms[1]
