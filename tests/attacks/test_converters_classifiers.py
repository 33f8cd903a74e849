"""Classifiers as torch modules: scores, predictions and slopes of scikit-learn's own."""

import copy
import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import make_blobs
from sklearn.discriminant_analysis import (
    LinearDiscriminantAnalysis,
    QuadraticDiscriminantAnalysis,
)
from sklearn.ensemble import RandomForestClassifier, StackingClassifier, VotingClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import (
    LogisticRegression,
    LogisticRegressionCV,
    Perceptron,
    RidgeClassifierCV,
    SGDClassifier,
)
from sklearn.model_selection import GridSearchCV
from sklearn.multiclass import OneVsOneClassifier, OneVsRestClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import NearestCentroid
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PowerTransformer, StandardScaler
from sklearn.svm import SVC, LinearSVC, NuSVC

from robustsk import PGD, StandardClassifier, score_adversarial
from robustsk.attacks import NoGradientError, as_victim

NAMES = np.array(["zebra", "ant", "fox", "newt"])


def data_of(n_classes):
    X, y = make_blobs(
        90, n_features=3, centers=n_classes, cluster_std=3.0, center_box=(-4, 4), random_state=2
    )
    rows = (y != 1) | (np.arange(len(y)) > 30)  # not as many of each class
    return X[rows], NAMES[y[rows]]


def fitted(model, X, y):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return copy.deepcopy(model).fit(X, y)


def beyond(X):
    low, high = X.min(axis=0), X.max(axis=0)
    return np.vstack([X, low, high, 2 * low - high, 0 * low, X[:9] * 1.9 + 0.3])


def two(found):
    found = np.asarray(found)
    return np.column_stack([0 * found, found]) if found.shape[1] == 1 else found


def assert_slopes(victim, X, step=1e-5):
    x = torch.tensor(X, requires_grad=True)
    weights = torch.tensor(np.random.default_rng(1).normal(size=victim(x).shape[1]))
    (found,) = torch.autograd.grad((victim(x) @ weights).sum(), x)
    expected = np.zeros_like(X)
    for column in range(X.shape[1]):
        away = np.zeros_like(X)
        away[:, column] = step
        with torch.no_grad():
            sides = [victim(torch.tensor(X + sign * away)) @ weights for sign in (1, -1)]
        expected[:, column] = (sides[0] - sides[1]).numpy() / (2 * step)
    assert_allclose(found, expected, rtol=1e-4, atol=1e-6 * max(1, np.abs(expected).max()))
    assert np.abs(expected).max() > 0


def logits(model, X):
    victim = as_victim(model)
    assert victim.differentiable
    assert victim.dtype == torch.float64
    with victim.frozen() as seen, torch.no_grad():  # in a replica
        found = seen(torch.tensor(X)).numpy()
    again = copy.deepcopy(victim.module)(torch.tensor(X)).numpy()
    assert_array_equal(found, two(again))
    assert_array_equal(victim.classes, model.classes_)
    return found


def answers(model, n_classes):
    """Return a fitted model, samples in its reach and out of it, and their logits."""
    X, y = data_of(n_classes)
    model = fitted(model, X, y)
    X = beyond(X)
    return model, X, logits(model, X)


PROBABILITIES = {
    "naive bayes": GaussianNB(),
    "quadratic": QuadraticDiscriminantAnalysis(reg_param=0.01),
    "logistic": LogisticRegressionCV(
        Cs=2, cv=2, l1_ratios=(0,), use_legacy_attributes=False, scoring="accuracy"
    ),
    "sigmoid": CalibratedClassifierCV(LinearSVC(), cv=2),
    "sigmoid of all": CalibratedClassifierCV(LinearSVC(), cv=2, ensemble=False),
    "sigmoid of probabilities": CalibratedClassifierCV(GaussianNB(), cv=2),
    "sigmoid of frozen": CalibratedClassifierCV(make_pipeline(StandardScaler(), SVC()), cv=2),
    "isotonic": CalibratedClassifierCV(LinearSVC(), cv=3, method="isotonic"),
    "isotonic of probabilities": CalibratedClassifierCV(GaussianNB(), cv=2, method="isotonic"),
    "temperature": CalibratedClassifierCV(LinearSVC(), cv=2, method="temperature"),
    "temperature of probabilities": CalibratedClassifierCV(
        GaussianNB(), cv=2, method="temperature"
    ),
    "vote": VotingClassifier(
        [("a", LogisticRegression()), ("b", GaussianNB()), ("c", SGDClassifier("log_loss"))],
        voting="soft",
    ),
    "weighted vote": VotingClassifier(
        [
            ("a", LogisticRegression()),
            ("b", make_pipeline(StandardScaler(), GaussianNB())),
            ("c", SGDClassifier("modified_huber", random_state=0)),
            ("d", OneVsRestClassifier(LogisticRegression())),
            ("e", GaussianNB(var_smoothing=0.1)),
        ],
        voting="soft",
        weights=[1, 2, 0.5, 3, 0],
    ),
    "stack": StackingClassifier(
        [("a", GaussianNB()), ("b", LinearSVC()), ("c", LinearDiscriminantAnalysis())], cv=2
    ),
    "stack and data": StackingClassifier(
        [("a", make_pipeline(PowerTransformer(), MLPClassifier((3,), max_iter=20))), ("b", SVC())],
        final_estimator=make_pipeline(StandardScaler(), LogisticRegression()),
        passthrough=True,
        cv=2,
    ),
    "rest of probabilities": OneVsRestClassifier(GaussianNB()),
    "centroids": NearestCentroid(priors="empirical"),
}


@pytest.mark.dealt
@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("name", PROBABILITIES)
def test_probabilities(name, n_classes):
    model, X, found = answers(PROBABILITIES[name], n_classes)
    assert found.shape == (len(X), n_classes)
    if name != "rest of probabilities" or n_classes == 2:
        proba = torch.softmax(torch.tensor(found), 1)
        assert_allclose(proba, model.predict_proba(X), rtol=1e-9, atol=1e-9)
    top = np.sort(found, axis=1)
    clear = top[:, -1] - top[:, -2] > 1e-9  # straight pieces meet at one half
    assert_array_equal(model.classes_[found.argmax(1)][clear], model.predict(X)[clear])
    assert clear.mean() > 0.9
    if "isotonic" not in name:  # of which the slope changes everywhere
        has_votes = n_classes == 3 and name in ("sigmoid of frozen", "stack and data")
        if not has_votes:
            assert_slopes(as_victim(model), X[[0, 3, 40, 41]] * 0.7)


SCORES = {
    "ridge": RidgeClassifierCV(),
    "perceptron": Perceptron(),
    "hinge": SGDClassifier("squared_hinge", random_state=0),
    "pa": SGDClassifier(loss="perceptron", penalty=None, random_state=0),
    "quadratic": QuadraticDiscriminantAnalysis(),
    "one against rest": OneVsRestClassifier(LinearSVC()),
    "search": GridSearchCV(LinearSVC(), {"C": [1.0]}, cv=2),
    **{kernel: SVC(kernel=kernel, coef0=0.3) for kernel in ("rbf", "linear", "poly", "sigmoid")},
    "nu": NuSVC(nu=0.3, gamma="auto", break_ties=True),
    "kernel in a pipeline": make_pipeline(StandardScaler(), SVC(degree=2, kernel="poly", gamma=2)),
    "one against one": OneVsOneClassifier(LinearSVC()),
    "one against one of probabilities": OneVsOneClassifier(GaussianNB()),
}


@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("name", SCORES)
def test_scores(name, n_classes):
    model, X, found = answers(SCORES[name], n_classes)
    assert_array_equal(model.classes_[found.argmax(1)], model.predict(X))
    expected = model.decision_function(X)
    if expected.ndim == 1:
        found = found[:, 1] - found[:, 0]
        if "probabilities" in name:
            found += 0.5
    inner = model[-1] if hasattr(model, "steps") else model
    has_votes = n_classes > 2 and (isinstance(inner, (SVC, NuSVC, OneVsOneClassifier)))
    close = np.isclose(found, expected, rtol=1e-9, atol=1e-9)
    if has_votes and isinstance(inner, (SVC, NuSVC)) and not inner.break_ties:
        # a tie is broken as `predict` does
        assert close.all(axis=1).mean() > 0.8
        assert_array_equal(np.round(found), np.round(expected))
    else:
        assert close.all()
    if not has_votes and "one against one" not in name:
        assert_slopes(as_victim(model), X[[0, 3, 40, 41]] * 0.7)


def test_kernel_machine_of_pairs_and_of_sparse_data():
    from scipy.sparse import csr_array

    X, y = data_of(4)
    pairs = SVC(decision_function_shape="ovo").fit(X, y)
    assert_array_equal(NAMES[np.argsort(NAMES)][logits(pairs, X).argmax(1)], pairs.predict(X))
    sparse = SVC().fit(csr_array(X), y)
    expected = sparse.decision_function(csr_array(X))
    found = logits(sparse, X)
    assert np.isclose(found, expected, rtol=1e-9).all(axis=1).mean() > 0.8


def test_votes_have_the_slope_of_smooth_ones():
    X, y = data_of(3)
    model = SVC(kernel="linear").fit(X, y)
    x = torch.tensor(X[:5], requires_grad=True)
    (found,) = torch.autograd.grad(as_victim(model)(x)[:, 0].sum(), x)
    margins = x.detach() @ torch.tensor(model.coef_).T + torch.tensor(model.intercept_)
    votes = torch.sigmoid(10 * margins)
    certainty = margins[:, 0] + margins[:, 1]
    slope = sum(
        ((10 * votes * (1 - votes))[:, k] + 1 / (3 * (certainty.abs() + 1) ** 2))[:, None]
        * torch.tensor(model.coef_[k])
        for k in (0, 1)
    )
    assert_allclose(found, slope, rtol=1e-9)


def test_distances_from_kernels_far_from_zero():
    X, y = data_of(2)
    X = X / 100 + 1e5
    model = SVC(gamma=3000.0).fit(X, y)
    found = logits(model, X)
    assert_allclose(found[:, 1] - found[:, 0], model.decision_function(X), atol=1e-7)


@pytest.mark.parametrize("metric", ["euclidean", "manhattan"])
def test_nearest_centroid(metric):
    X, y = data_of(3)
    model = NearestCentroid(metric=metric).fit(X, y)
    found = logits(model, X)
    assert_array_equal(model.classes_[found.argmax(1)], model.predict(X))
    order = 1 if metric == "manhattan" else 2
    away = np.linalg.norm(X[:, None] - model.centroids_, ord=order, axis=2)
    assert_allclose(found, -(away**order), rtol=1e-9)
    assert_slopes(as_victim(model), X[:4])


def test_constant_column_of_naive_bayes():
    X, y = data_of(3)
    X = np.column_stack([X, np.full(len(X), 2.0)])
    model = GaussianNB().fit(X, y)
    proba = torch.softmax(torch.tensor(logits(model, X)), 1)
    assert_allclose(proba, model.predict_proba(X), atol=1e-9)


def test_calibration_with_a_class_that_a_part_has_not_seen():
    X, y = data_of(3)
    rows = np.arange(len(X))
    some, rest = rows[y != "ant"], rows[::2]
    for base, method in ((LinearSVC(), "sigmoid"), (GaussianNB(), "isotonic")):
        cv = [(some, rest), (rest, some), (rows, rows)]
        model = fitted(CalibratedClassifierCV(base, cv=cv, method=method), X, y)
        proba = torch.softmax(torch.tensor(logits(model, X)), 1)
        assert_allclose(proba, model.predict_proba(X), atol=1e-9)


@pytest.mark.slow
def test_a_network_inside():
    X, y = data_of(3)
    net = StandardClassifier(max_epochs=3, random_state=0, device="cpu").fit(X, y)
    before = {name: value.clone() for name, value in net.module_.state_dict().items()}
    model = CalibratedClassifierCV(FrozenEstimator(net)).fit(X, y)
    found = torch.softmax(as_victim(model).logits(X), 1)
    assert_allclose(found, model.predict_proba(X), atol=1e-5)
    for name, value in net.module_.state_dict().items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name])
    assert score_adversarial(model, X, y, PGD(eps=2.0, random_state=0)) < model.score(X, y) - 0.2


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (VotingClassifier([("a", GaussianNB()), ("b", LinearSVC())]), "VotingClassifier of labels"),
        (
            StackingClassifier(
                [("a", LinearSVC()), ("b", GaussianNB())], stack_method="predict", cv=2
            ),
            "predict of LinearSVC",
        ),
        (
            StackingClassifier([("a", GaussianNB()), ("b", RandomForestClassifier(2))], cv=2),
            "RandomForestClassifier",
        ),
        (OneVsOneClassifier(RandomForestClassifier(2)), "RandomForestClassifier"),
        (OneVsRestClassifier(RandomForestClassifier(2)), "RandomForestClassifier"),
        (SVC(kernel=lambda a, b: a @ b.T), "SVC of its kernel"),
    ],
    ids=["hard", "labels", "forest", "one", "rest", "callable"],
)
def test_no_gradient(model, name):
    X, y = data_of(3)
    model = fitted(model, X, y)
    with pytest.raises(NoGradientError, match=f"PGD follows gradients and {name} has none"):
        as_victim(model, attack="PGD")


def test_vote_with_a_network_counts_its_members():
    X, y = data_of(3)
    vote = VotingClassifier(
        [("a", OneVsRestClassifier(LogisticRegression())), ("b", GaussianNB())], voting="soft"
    ).fit(X, y)
    victim = as_victim(vote)
    assert len(victim.members()) == 2
    assert_allclose(torch.softmax(victim.logits(X), 1), vote.predict_proba(X), rtol=1e-9)


@pytest.mark.parametrize(
    "model", [SVC(), CalibratedClassifierCV(LinearSVC(), cv=2), QuadraticDiscriminantAnalysis()]
)
def test_attacks_succeed(model):
    X, y = data_of(3)
    model = fitted(make_pipeline(StandardScaler(), model), X, y)
    attack = PGD(eps=2.0, random_state=0)
    clean = model.score(X, y)
    assert score_adversarial(model, X, y, attack) < clean - 0.2
