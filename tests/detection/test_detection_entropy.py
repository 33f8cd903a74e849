"""The detector that looks at the entropy of the prediction."""

import pickle
from collections import Counter
from unittest import SkipTest

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.datasets import load_iris
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import RocCurveDisplay
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from sklearn.utils.estimator_checks import estimator_checks_generator, parametrize_with_checks
from torch.utils.data import TensorDataset

from robustsk import PGD, EnsembleCCE, EntropyDetector

X, Y = load_iris(return_X_y=True)


class Sure(ClassifierMixin, BaseEstimator):
    """Fitted to nothing: the more the features differ from 0, the more certain of class 1."""

    classes_ = np.array([0, 1])

    def fit(self, X, y=None):
        return self

    def __sklearn_is_fitted__(self):
        return True

    def predict_proba(self, X):
        X = np.asarray(X, dtype=float)
        p = 1 / (1 + np.exp(-np.abs(X).reshape(len(X), -1).sum(axis=1)))
        return np.column_stack([1 - p, p])

    def predict(self, X):
        return self.predict_proba(X).argmax(axis=1)


class Given(Sure):
    """Predicts the features themselves."""

    def predict_proba(self, X):
        return np.asarray(X)


@pytest.fixture(scope="module")
def linear():
    return LogisticRegression(C=10, max_iter=1000).fit(X, Y)


def entropy(p):
    """Entropy in nats, term by term."""
    return np.array([-sum(q * np.log(q) for q in row if q > 0) for row in p])


# --- scikit-learn's checks -----------------------------------------------------------

# they fit on X alone and with any number of features, so the classifier inside must be one that
# is ready and takes any: it is what FrozenEstimator makes of one that needs no training


@parametrize_with_checks([EntropyDetector(FrozenEstimator(Sure()))])
def test_sklearn_check(estimator, check):
    try:
        check(estimator)
    except SkipTest as skip:
        # scikit-learn's own: array API support is off unless the variable is set
        if "SCIPY_ARRAY_API" not in str(skip):
            pytest.fail(f"skipped: {skip}")
        raise


def test_the_battery_really_runs():
    detector = EntropyDetector(FrozenEstimator(Sure()))
    checks = [check for _, check in estimator_checks_generator(detector, legacy=True, mark="skip")]
    names = Counter(getattr(check, "func", check).__name__ for check in checks)
    assert len(checks) >= 40
    assert names["check_outliers_train"] == 2
    assert names["check_outliers_fit_predict"]


# --- scores --------------------------------------------------------------------------


def test_scores_by_hand(linear):
    detector = EntropyDetector(linear).fit(X)
    score = detector.score_samples(X)
    np.testing.assert_allclose(score, -entropy(linear.predict_proba(X)), rtol=1e-12)
    assert score.dtype == np.float64
    np.testing.assert_array_equal(detector.decision_function(X), score - detector.offset_)
    np.testing.assert_array_equal(
        detector.predict(X), np.where(detector.decision_function(X) >= 0, 1, -1)
    )


def test_certain_and_uniform_predictions():
    p = np.array([[1.0, 0.0, 0.0, 0.0], [0.25] * 4, [0.5, 0.5, 0.0, 0.0]])
    detector = EntropyDetector(Given(), threshold=0.0).fit(p)
    np.testing.assert_allclose(detector.score_samples(p), [0.0, -np.log(4), -np.log(2)], rtol=1e-12)
    assert detector.predict(p).tolist() == [1, -1, -1]


def test_roc_auc_of_extremes():
    certain = np.eye(5)
    uniform = np.full((7, 5), 0.2)
    detector = EntropyDetector(Given()).fit(certain)
    assert detector.roc_auc(certain, uniform) == 1.0
    assert detector.roc_auc(uniform, certain) == 0.0
    assert detector.roc_auc(certain, certain) == 0.5


def test_roc_auc_by_counting_pairs(linear):
    rng = np.random.default_rng(0)
    adversarial = X[:60] + rng.normal(scale=0.5, size=(60, 4))
    detector = EntropyDetector(linear).fit(X)
    low, high = entropy(linear.predict_proba(X[60:])), entropy(linear.predict_proba(adversarial))
    pairs = np.mean([(h > k) + 0.5 * (h == k) for h in high for k in low])
    np.testing.assert_allclose(detector.roc_auc(X[60:], adversarial), pairs)


def test_roc_curve_display(linear):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    adversarial = PGD(linear, eps=0.5, clip=None, random_state=0).generate(X, Y)
    detector = EntropyDetector(linear).fit(X)
    score = detector.score_samples(np.concatenate([X, adversarial]))
    disp = RocCurveDisplay.from_predictions(np.repeat([0, 1], len(X)), -score)
    np.testing.assert_allclose(disp.roc_auc, detector.roc_auc(X, adversarial))
    matplotlib.pyplot.close("all")


# --- the threshold -------------------------------------------------------------------


@pytest.mark.parametrize("contamination", [0.01, 0.05, 0.2, 0.5])
def test_share_of_clean_samples_that_is_flagged(contamination):
    clean = np.random.default_rng(0).normal(size=(200, 3))
    detector = EntropyDetector(Sure(), contamination=contamination).fit(clean)
    assert (detector.predict(clean) == -1).sum() == round(200 * contamination)


def test_threshold_in_nats(linear):
    detector = EntropyDetector(linear, threshold=0.3, contamination="ignored").fit(X)
    assert detector.offset_ == -0.3
    expected = np.where(entropy(linear.predict_proba(X)) > 0.3, -1, 1)
    np.testing.assert_array_equal(detector.predict(X), expected)
    assert set(expected) == {1, -1}


def test_ties_are_normal():
    certain = np.eye(3)[[0, 1, 2, 0]]
    detector = EntropyDetector(Given()).fit(certain)
    assert detector.predict(certain).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("params", "name"),
    [
        ({"contamination": 0.0}, "contamination"),
        ({"contamination": 0.6}, "contamination"),
        ({"contamination": "auto"}, "contamination"),
        ({"contamination": np.nan}, "contamination"),
        ({"threshold": -0.1}, "threshold"),
        ({"threshold": "high"}, "threshold"),
        ({"threshold": True}, "threshold"),
    ],
)
def test_parameters_out_of_range(linear, params, name):
    with pytest.raises(ValueError, match=f"^{name} must be"):
        EntropyDetector(linear, **params).fit(X)


# --- the classifier ------------------------------------------------------------------


def test_without_a_classifier():
    detector = EntropyDetector(contamination=0.1)
    names = np.array(["setosa", "versicolor", "virginica"])
    few, labels = X[::5], names[Y[::5]]
    assert detector.fit(few, labels) is detector
    assert isinstance(detector.estimator_, EnsembleCCE)
    assert detector.estimator_.mode == "detection"
    assert detector.estimator_.classes_.tolist() == names.tolist()
    assert detector.estimator is None
    assert (detector.predict(few) == -1).sum() == 3
    again = EntropyDetector(contamination=0.1).fit(few, labels)
    np.testing.assert_array_equal(again.score_samples(X), detector.score_samples(X))
    np.testing.assert_allclose(
        detector.score_samples(X), -detector.estimator_.prediction_entropy(X), rtol=1e-12
    )


def test_y_is_missing():
    with pytest.raises(ValueError, match=r"requires y to be passed.*EnsembleCCE.*fitted classif"):
        EntropyDetector().fit(X)


def test_string_labels():
    clf = LogisticRegression(max_iter=1000).fit(X, np.array(["a", "b", "c"])[Y])
    detector = EntropyDetector(clf).fit(X, np.array(["a", "b", "c"])[Y])
    assert set(detector.predict(X)) == {1, -1}


def test_the_classifier_is_used_as_it_is(linear):
    before = pickle.dumps(linear)
    detector = EntropyDetector(linear).fit(X)
    assert detector.estimator_ is linear
    assert pickle.dumps(linear) == before


def test_an_ensemble_on_images_tensors_and_datasets():
    rng = np.random.default_rng(0)
    images = rng.random((60, 1, 8, 8), dtype=np.float32)
    labels = (images.mean(axis=(1, 2, 3)) > 0.5).astype(int)
    clf = EnsembleCCE(mode="detection", max_epochs=1, random_state=0, device="cpu")
    clf.fit(images, labels)
    detector = EntropyDetector(clf).fit(images)
    score = detector.score_samples(images)
    assert score.shape == (60,)
    np.testing.assert_allclose(detector.score_samples(torch.from_numpy(images)), score, rtol=1e-6)
    dataset = TensorDataset(torch.from_numpy(images), torch.from_numpy(labels))
    np.testing.assert_allclose(detector.score_samples(dataset), score, rtol=1e-6)
    other = EntropyDetector(clf).fit(dataset)
    np.testing.assert_allclose(other.offset_, detector.offset_, rtol=1e-6)
    assert not hasattr(detector.fit(dataset), "n_features_in_")
    with pytest.raises(ValueError, match=r"\(1, 4, 4\)"):
        EntropyDetector(clf).fit(images).predict(images[:, :, ::2, ::2])


def test_labels_of_a_dataset():
    dataset = TensorDataset(torch.from_numpy(X[::5]).float(), torch.from_numpy(Y[::5]))
    assert (EntropyDetector(contamination=0.1).fit(dataset).predict(dataset) == -1).sum() == 3


def test_column_names():
    frame = pd.DataFrame(X, columns=list("abcd"))
    clf = LogisticRegression(max_iter=1000).fit(frame, Y)
    detector = EntropyDetector(clf).fit(frame)
    assert detector.feature_names_in_.tolist() == list("abcd")
    detector.predict(frame)  # without a warning of the classifier
    with pytest.raises(ValueError, match="feature names"):
        detector.predict(frame[list("dcba")])


def test_no_predict_proba():
    with pytest.raises(TypeError, match="LinearSVC has none"):
        EntropyDetector(LinearSVC().fit(X, Y)).fit(X)


def test_several_outputs():
    class Several(Sure):
        def predict_proba(self, X):
            return np.full((2, len(X), 2), 0.5)

    with pytest.raises(ValueError, match="several outputs"):
        EntropyDetector(Several()).fit(X)


# --- fitted or not, cloned, pickled --------------------------------------------------


def test_not_fitted(linear):
    for call in ("predict", "decision_function", "score_samples"):
        with pytest.raises(NotFittedError):
            getattr(EntropyDetector(linear), call)(X)
    with pytest.raises(NotFittedError):
        EntropyDetector(linear).roc_auc(X, X)
    for unfitted in (LogisticRegression(), EnsembleCCE(mode="detection")):
        with pytest.raises(NotFittedError, match="FrozenEstimator"):
            EntropyDetector(unfitted).fit(X)


def test_clone(linear):
    with pytest.raises(NotFittedError, match="FrozenEstimator"):
        clone(EntropyDetector(linear)).fit(X)
    detector = EntropyDetector(FrozenEstimator(linear), contamination=0.2)
    copied = clone(detector).fit(X)
    assert copied.get_params() == detector.get_params()
    np.testing.assert_array_equal(copied.predict(X), detector.fit(X).predict(X))


def test_pickle(linear):
    detector = EntropyDetector(linear).fit(X)
    restored = pickle.loads(pickle.dumps(detector))
    assert restored.offset_ == detector.offset_
    np.testing.assert_array_equal(restored.predict(X), detector.predict(X))


def test_pipeline_and_search(linear):
    scaled = LogisticRegression(C=10, max_iter=1000).fit(StandardScaler().fit_transform(X), Y)
    pipe = make_pipeline(StandardScaler(), EntropyDetector(FrozenEstimator(scaled)))
    assert set(pipe.fit_predict(X)) == {1, -1}
    np.testing.assert_array_equal(pipe.predict(X), pipe[-1].predict(pipe[0].transform(X)))

    # samples of which half are noise: which share is to be flagged
    rng = np.random.default_rng(0)
    mixed = np.concatenate([X, X + rng.normal(scale=2.0, size=X.shape)])
    noisy = np.repeat([1, -1], len(X))
    search = GridSearchCV(
        EntropyDetector(FrozenEstimator(linear)),
        {"contamination": [0.05, 0.5]},
        scoring="accuracy",
        cv=3,
    ).fit(mixed, noisy)
    assert search.best_params_["contamination"] in (0.05, 0.5)


def test_fit_predict_needs_labels_without_a_classifier(linear):
    np.testing.assert_array_equal(
        EntropyDetector(linear).fit_predict(X), EntropyDetector(linear).fit(X).predict(X)
    )
    assert set(EntropyDetector().fit_predict(X[::5], Y[::5])) == {1, -1}
