import itertools
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_iris
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from robustsk import (
    BIM,
    PGD,
    StandardClassifier,
    attack_success_rate,
    boundary_error,
    robustness_report,
    score_adversarial,
)
from robustsk.attacks import NoGradientError
from robustsk.metrics import RobustAccuracy, adversarial_outcome, robust_accuracy

X, Y = load_iris(return_X_y=True)
ATTACK = PGD(eps=0.4, n_steps=5, random_state=0)


@pytest.fixture(scope="module")
def clf():
    return LogisticRegression(max_iter=1000).fit(X, Y)


@pytest.fixture(scope="module")
def ours():
    return StandardClassifier(max_epochs=20, random_state=0, device="cpu").fit(X, Y)


# --- outcomes ------------------------------------------------------------------------


def test_clean_errors_are_not_attacked_and_not_robust():
    weak = LogisticRegression(C=1e-3).fit(X, Y)
    outcome = adversarial_outcome(weak, X, Y, ATTACK)
    wrong = weak.predict(X) != Y
    assert 5 < wrong.sum() < 145
    np.testing.assert_array_equal(outcome.X_adv[wrong], X[wrong])
    np.testing.assert_array_equal(outcome.correct, ~wrong)
    assert not outcome.robust[wrong].any()
    np.testing.assert_array_equal(outcome.y_pred_adv[wrong], outcome.y_pred[wrong])


def test_all_wrong_is_zero_without_attack(clf):
    y = (clf.predict(X) + 1) % 3
    outcome = adversarial_outcome(clf, X, y, ATTACK)
    np.testing.assert_array_equal(outcome.X_adv, X)
    assert score_adversarial(clf, X, y, ATTACK) == 0.0


def test_result_is_a_copy(clf):
    outcome = adversarial_outcome(clf, X, Y, PGD(eps=0.0, random_state=0))
    np.testing.assert_array_equal(outcome.X_adv, X)
    assert not np.shares_memory(outcome.X_adv, X)


@pytest.mark.parametrize(("norm", "order"), [("linf", np.inf), ("l2", 2), ("l1", 1)])
def test_examples_stay_in_the_ball(clf, norm, order):
    outcome = adversarial_outcome(clf, X, Y, PGD(eps=0.4, norm=norm, n_steps=5, random_state=0))
    assert np.linalg.norm(outcome.X_adv - X, ord=order, axis=1).max() <= 0.4


def test_larger_eps_never_helps(clf):
    scores = [score_adversarial(clf, X, Y, BIM(eps=e)) for e in (0.0, 0.1, 0.3, 1.0, 3.0)]
    assert all(a >= b for a, b in itertools.pairwise(scores))
    assert scores[0] > 0.9
    assert scores[-1] < 0.1


def test_target_array_is_read_row_by_row():
    weak = LogisticRegression(C=1e-2).fit(X, Y)
    wrong = weak.predict(X) != Y
    assert wrong.any()
    target = (Y + 1 + np.arange(len(Y)) % 2) % 3
    attack = PGD(eps=2.0, n_steps=20, target=target, random_state=0)
    outcome = adversarial_outcome(weak, X, Y, attack)
    np.testing.assert_array_equal(outcome.X_adv[wrong], X[wrong])
    # each row on its own, with its own target
    bounds = PGD(weak).fit(X).clip_bounds_
    for i in np.flatnonzero(~wrong)[::10]:
        one = PGD(weak, eps=2.0, n_steps=20, target=[target[i]], clip=bounds, random_state=0)
        # early stopping keeps the first hit, `generate` the last: compare the verdict
        reached = weak.predict(one.generate(X[i : i + 1], Y[i : i + 1]))[0]
        assert outcome.y_pred_adv[i] == reached
    assert (outcome.y_pred_adv == target)[~wrong].mean() > 0.3
    np.testing.assert_array_equal(attack.target, target)


@pytest.mark.parametrize("target", [2, "least_likely", "random"])
def test_other_targets(clf, target):
    attack = PGD(eps=3.0, n_steps=20, target=target, random_state=0)
    assert score_adversarial(clf, X, Y, attack) < 1 / 2


def test_target_array_of_wrong_length(clf):
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        score_adversarial(clf, X, Y, PGD(eps=0.1, target=[0, 1, 2], random_state=0))


# --- weights -------------------------------------------------------------------------


def test_sample_weight(clf):
    weight = np.random.default_rng(0).uniform(size=len(Y))
    robust = adversarial_outcome(clf, X, Y, ATTACK).robust
    score = score_adversarial(clf, X, Y, ATTACK, sample_weight=weight)
    assert score == pytest.approx((robust * weight).sum() / weight.sum(), rel=1e-14)
    assert type(score) is float
    plain = score_adversarial(clf, X, Y, ATTACK)
    assert plain == pytest.approx(
        score_adversarial(clf, X, Y, ATTACK, sample_weight=np.full(len(Y), 3)), rel=1e-14
    )


def test_integer_weights_repeat_rows(clf):
    weight = np.random.default_rng(1).integers(0, 4, size=len(Y))
    repeated = np.repeat(np.arange(len(Y)), weight)
    bounds = (X.min(0), X.max(0))
    attack = PGD(eps=0.4, n_steps=5, clip=bounds, random_state=0)
    assert score_adversarial(clf, X, Y, attack, sample_weight=weight) == pytest.approx(
        score_adversarial(clf, X[repeated], Y[repeated], attack), rel=1e-14
    )


def test_sample_weight_through_the_method(ours):
    weight = np.r_[np.ones(50), np.zeros(100)]
    first = ours.score_adversarial(X, Y, ATTACK, sample_weight=weight)
    assert first == pytest.approx(adversarial_outcome(ours, X, Y, ATTACK).robust[:50].mean())


def test_sample_weight_of_wrong_length(clf):
    with pytest.raises(ValueError, match="sample_weight"):
        score_adversarial(clf, X, Y, ATTACK, sample_weight=np.ones(3))


# --- containers and labels -------------------------------------------------------------


def frame():
    return pd.DataFrame(X, columns=["a", "b", "c", "d"], index=np.arange(len(X)) + 1000)


@pytest.mark.parametrize("kind", ["logistic", "pipeline", "robustsk"])
def test_dataframe_in_and_no_warnings(kind):
    estimator = {
        "logistic": LogisticRegression(max_iter=1000),
        "pipeline": make_pipeline(StandardScaler(), LogisticRegression()),
        "robustsk": StandardClassifier(max_epochs=5, random_state=0, device="cpu"),
    }[kind]
    names = pd.Series(np.array(["s", "ve", "vi"])[Y], index=frame().index)
    on_frame = estimator.fit(frame(), names)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score = score_adversarial(on_frame, frame(), names, ATTACK)
    assert 0 < score < on_frame.score(frame(), names)
    plain = estimator.fit(X, Y)
    assert score == score_adversarial(plain, X, Y, ATTACK)


@pytest.mark.parametrize("convert", [list, np.asarray, pd.Series, lambda y: np.asarray(y, object)])
def test_string_labels(clf, convert):
    names = np.array(["setosa", "versicolor", "virginica"])[Y]
    named = LogisticRegression(max_iter=1000).fit(X, names)
    assert score_adversarial(named, X, convert(names), ATTACK) == score_adversarial(
        clf, X, Y, ATTACK
    )


@pytest.mark.dealt
@pytest.mark.parametrize("labels", [[-1, 1], ["no", "yes"], [False, True], [3, 7]])
@pytest.mark.parametrize("model", ["logistic", "robustsk"])
def test_two_classes(labels, model):
    X2, y2 = X[50:], np.array(labels)[Y[50:] - 1]
    estimator = (
        LogisticRegression(max_iter=1000)
        if model == "logistic"
        else StandardClassifier(max_epochs=30, random_state=0, device="cpu")
    ).fit(X2, y2)
    score = score_adversarial(estimator, X2, y2, PGD(eps=0.2, random_state=0))
    assert 0 < score < estimator.score(X2, y2)


@pytest.mark.parametrize("convert", [lambda a: a.tolist(), torch.from_numpy], ids=["list", "torch"])
def test_lists_and_tensors(clf, convert):
    assert score_adversarial(clf, convert(X), convert(Y), ATTACK) == score_adversarial(
        clf, X, Y, ATTACK
    )


@pytest.mark.parametrize("shape", ["frame", "column"])
def test_one_column_of_labels(clf, shape):
    column = pd.DataFrame({"y": Y}) if shape == "frame" else Y[:, None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns about such labels, and takes them
        assert score_adversarial(clf, X, column, ATTACK) == score_adversarial(clf, X, Y, ATTACK)


@pytest.mark.parametrize("model", ["logistic", "module"])
def test_read_only_data(clf, model, tmp_path):
    """Memory maps, and what joblib hands to its workers."""
    np.save(tmp_path / "X.npy", X)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    torch.manual_seed(0)
    estimator = clf if model == "logistic" else nn.Linear(4, 3)
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)  # torch's own filter is once per process
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            score = score_adversarial(estimator, mapped, Y, ATTACK)
    finally:
        torch.set_warn_always(always)
    assert score == score_adversarial(estimator, X, Y, ATTACK)


class Pairs(Dataset):
    def __init__(self, X, y):
        self.rows, self.answers = X, y

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.rows[i], self.answers[i]


@pytest.mark.parametrize("kind", ["pairs", "tensors"])
def test_torch_dataset(ours, kind):
    X32 = X.astype(np.float32)
    data = Pairs(X32, Y) if kind == "pairs" else TensorDataset(torch.tensor(X32), torch.tensor(Y))
    expected = score_adversarial(ours, X32, Y, ATTACK)
    assert score_adversarial(ours, data, None, ATTACK) == expected
    assert score_adversarial(ours, data, Y, ATTACK) == expected
    assert ours.score_adversarial(data, None, ATTACK) == expected


def test_images_in_four_dimensions():
    rng = np.random.default_rng(0)
    images, y = rng.uniform(size=(20, 1, 6, 6)).astype(np.float32), np.arange(20) % 2
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    outcome = adversarial_outcome(module, images, y, PGD(eps=0.1, clip=(0, 1), random_state=0))
    assert outcome.X_adv.shape == images.shape
    assert np.abs(outcome.X_adv - images).max() <= np.float32(0.1)
    assert 0 <= outcome.X_adv.min() <= outcome.X_adv.max() <= 1


# --- bad input -------------------------------------------------------------------------


def test_unseen_labels_are_named(clf):
    y = Y.copy()
    y[3] = 17
    with pytest.raises(ValueError, match=r"not been trained on: \[17\]"):
        score_adversarial(clf, X, y, ATTACK)
    named = LogisticRegression(max_iter=1000).fit(X, np.array(["a", "b", "c"])[Y])
    with pytest.raises(ValueError, match=r"not been trained on: \['zebra'\]"):
        score_adversarial(named, X, np.where(Y == 0, "zebra", "a"), ATTACK)
    with pytest.raises(ValueError, match="not been trained on"):
        score_adversarial(named, X, Y, ATTACK)


def test_labels_that_a_module_cannot_know():
    torch.manual_seed(0)
    module = nn.Linear(4, 3)
    for y in (np.array(["a", "b", "c"])[Y], Y + 0.5):
        with pytest.raises(ValueError, match="It knows"):
            score_adversarial(module, X, y, ATTACK)


@pytest.mark.parametrize("unknown", [17, 3, -1])
def test_labels_beyond_the_outputs_of_a_module(unknown):
    torch.manual_seed(0)
    module = nn.Linear(4, 3)
    with pytest.raises(ValueError, match=str(unknown)):
        score_adversarial(module, X, np.where(np.arange(len(Y)) == 5, unknown, Y), ATTACK)


def test_empty(clf, ours):
    for estimator in (clf, ours):
        with pytest.raises(ValueError, match="0 sample"):
            score_adversarial(estimator, X[:0], Y[:0], ATTACK)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_not_finite(clf, ours, bad):
    broken = X.copy()
    broken[0, 0] = bad
    for estimator in (clf, ours):
        with pytest.raises(ValueError, match=r"NaN|infinity"):
            score_adversarial(estimator, broken, Y, ATTACK)


def test_lengths_differ(clf):
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        score_adversarial(clf, X, Y[:-1], ATTACK)


def test_one_hot_labels(clf):
    with pytest.raises(ValueError, match="argmax"):
        score_adversarial(clf, X, np.eye(3)[Y], ATTACK)


def test_outside_of_explicit_clip(clf):
    with pytest.raises(ValueError, match="outside of clip"):
        score_adversarial(clf, X, Y, PGD(eps=0.1, clip=(0, 1), random_state=0))


@pytest.mark.parametrize("attack", [PGD, None, "PGD", 0.3, LogisticRegression()])
@pytest.mark.parametrize("function", [score_adversarial, robust_accuracy, attack_success_rate])
def test_not_an_attack(clf, function, attack):
    with pytest.raises(TypeError, match=r"attack must be an attack such as PGD"):
        function(clf, X, Y, attack)


def test_tree_has_no_gradient():
    tree = DecisionTreeClassifier(random_state=0).fit(X, Y)
    with pytest.raises(NoGradientError, match=r"PGD.*DecisionTreeClassifier"):
        score_adversarial(tree, X, Y, ATTACK)
    with pytest.raises(NoGradientError, match="DecisionTreeClassifier"):
        score_adversarial(make_pipeline(StandardScaler(), tree).fit(X, Y), X, Y, ATTACK)


def test_not_fitted():
    for estimator in (LogisticRegression(), StandardClassifier()):
        with pytest.raises(NotFittedError):
            score_adversarial(estimator, X, Y, ATTACK)


def test_class_for_estimator():
    with pytest.raises(TypeError, match="instance"):
        score_adversarial(LogisticRegression, X, Y, ATTACK)


# --- success rate and its relatives ------------------------------------------------------


@pytest.mark.dealt
@pytest.mark.parametrize("C", [1e-3, 1.0])
@pytest.mark.parametrize("eps", [0.0, 0.2, 0.5, 2.0])
def test_success_rate_identities(C, eps):
    clf = LogisticRegression(C=C, max_iter=1000).fit(X, Y)
    attack = PGD(eps=eps, n_steps=5, random_state=0)
    clean, robust = clf.score(X, Y), score_adversarial(clf, X, Y, attack)
    assert attack_success_rate(clf, X, Y, attack) == pytest.approx(1 - robust / clean, abs=1e-12)
    assert attack_success_rate(clf, X, Y, attack, over="all") == pytest.approx(1 - robust)


def test_success_rate_of_nothing(clf):
    wrong = (clf.predict(X) + 1) % 3
    with pytest.warns(RuntimeWarning, match="No sample is classified correctly"):
        assert np.isnan(attack_success_rate(clf, X, wrong, ATTACK))
    assert attack_success_rate(clf, X, wrong, ATTACK, over="all") == 1.0


def test_success_rate_over_something_else(clf):
    with pytest.raises(ValueError, match="over must be 'correct' or 'all', got 'some'"):
        attack_success_rate(clf, X, Y, ATTACK, over="some")


def test_targeted_success_is_any_wrong_prediction(clf):
    """As the docstring of `attack_success_rate` says."""
    attack = PGD(eps=1.2, n_steps=10, target=2, clip=(0, 8), random_state=0)
    X01, y01 = X[Y != 2], Y[Y != 2]
    outcome = adversarial_outcome(clf, X01, y01, attack)
    astray = outcome.correct & ~outcome.robust & (outcome.y_pred_adv != 2)
    assert astray.any()  # class 0 is led into class 1 on its way
    assert (outcome.correct & (outcome.y_pred_adv == 2)).any()
    expected = (outcome.correct & (outcome.y_pred_adv != y01)).sum() / outcome.correct.sum()
    assert attack_success_rate(clf, X01, y01, attack) == pytest.approx(expected)


def test_robust_accuracy_reads_well(clf):
    result = robust_accuracy(clf, X, Y, ATTACK, confidence=0.9)
    assert result.confidence == 0.9
    assert result.n_samples == len(Y)
    assert result.low < result.accuracy < result.high
    assert str(RobustAccuracy(0.5, 0.402, 0.598, 0.95, 100)) == (
        "0.500 (95% interval 0.402 to 0.598, n=100)"
    )
    with pytest.raises(AttributeError):
        result.accuracy = 1.0


# --- boundary error --------------------------------------------------------------------


@pytest.mark.dealt
@pytest.mark.parametrize("c", [1e-3, 0.1, 10.0])
@pytest.mark.parametrize("eps", [0.0, 0.3, 5.0])
def test_robust_error_is_natural_and_boundary_error(c, eps):
    """R_rob = R_nat + R_bdy, Eq. 1 of Zhang et al. (2019), exactly: in counts."""
    model = LogisticRegression(C=c, max_iter=1000).fit(X, Y)
    attack = PGD(eps=eps, n_steps=5, random_state=0)
    n = len(Y)
    natural = n - (model.predict(X) == Y).sum()
    robust = n - round(n * score_adversarial(model, X, Y, attack))
    boundary = boundary_error(model, X, Y, attack)
    assert boundary == (robust - natural) / n
    assert eps > 0 or boundary == 0
    outcome = adversarial_outcome(model, X, Y, attack)
    wrong = (~outcome.correct).astype(int)
    np.testing.assert_array_equal(wrong + outcome.boundary, ~outcome.robust)
    rate = attack_success_rate(model, X, Y, attack)
    assert boundary == pytest.approx(rate * (1 - natural / n), abs=1e-15)


def test_boundary_error_where_it_can_be_counted():
    """One feature, a threshold at 0: the boundary is next to whom it has within eps."""
    x = np.array([-2.0, -0.7, -0.4, 0.2, 0.6, 3.0, 0.1])[:, None]
    y = np.array([0, 0, 0, 1, 1, 1, 0])  # the last one is wrong
    model = LogisticRegression().fit(np.array([[-1.0], [1.0]]), [0, 1])
    attack = PGD(eps=0.5, clip=None, random_state=0)
    assert boundary_error(model, x, y, attack) == 2 / 7
    weight = np.array([1, 1, 5, 1, 1, 1, 2])
    assert boundary_error(model, x, y, attack, weight) == pytest.approx(6 / 12)


def test_boundary_error_of_a_report(clf):
    report = robustness_report(
        clf, X, Y, attacks={"PGD": ATTACK}, autoattack=None, red_flags=False, random_state=0
    )
    assert report.boundary_error == pytest.approx(boundary_error(clf, X, Y, ATTACK))
    assert report.boundary_error > 0.1
