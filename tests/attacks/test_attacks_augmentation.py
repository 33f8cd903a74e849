import numpy as np
import pandas as pd
import pytest
import torch
from imblearn.pipeline import Pipeline, make_pipeline
from numpy.testing import assert_array_equal
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score

from robustsk.attacks import FGSM, PGD, AdversarialAugmentation

NAMES = np.array(["zebra", "ant", "fox"])


class Counter(ClassifierMixin, BaseEstimator):
    """Remembers how much it has been shown."""

    def fit(self, X, y):
        self.model_ = LogisticRegression().fit(X, y)
        self.classes_ = self.model_.classes_
        self.n_fit_, self.n_predicted_ = len(X), []
        return self

    def predict(self, X):
        self.n_predicted_.append(len(X))
        return self.model_.predict(X)


def samplers():
    attack = PGD(eps=0.3, random_state=0)
    return [attack, AdversarialAugmentation(attack)]


@pytest.mark.parametrize("sampler", samplers(), ids=["attack", "augmentation"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fit_resample_appends_one_copy_of_every_row(sampler, dtype, table):
    X, y = table.X.astype(dtype), NAMES[table.y]
    before = X.copy()
    X_more, y_more = sampler.fit_resample(X, y)
    n = len(X)
    assert X_more.shape == (2 * n, 6)
    assert X_more.dtype == dtype
    assert y_more.shape == (2 * n,)
    assert_array_equal(X_more[:n], before)
    assert_array_equal(X, before)
    assert_array_equal(y_more[:n], y)
    assert_array_equal(y_more[n:], y)
    moved = np.abs(X_more[n:] - X).max(axis=1)
    assert moved.max() <= 0.3
    assert (moved > 0.2).all()


@pytest.mark.parametrize("sampler", samplers(), ids=["attack", "augmentation"])
def test_frames_stay_frames(sampler, table):
    X = pd.DataFrame(table.X, columns=list("abcdef"), index=np.arange(150) + 1000)
    y = pd.Series(NAMES[table.y], index=X.index, name="animal")
    X_more, y_more = sampler.fit_resample(X, y)
    assert list(X_more.columns) == list("abcdef")
    assert isinstance(y_more, pd.Series)
    assert y_more.name == "animal"
    assert X_more.index.is_unique
    assert_array_equal(X_more.index, y_more.index)
    expected, _ = sampler.fit_resample(table.X, NAMES[table.y])
    assert_array_equal(X_more.to_numpy(), expected)


@pytest.mark.parametrize("sampler", samplers(), ids=["attack", "augmentation"])
def test_other_containers(sampler, table):
    expected, _ = sampler.fit_resample(table.X, table.y)
    X_more, y_more = sampler.fit_resample(torch.tensor(table.X), torch.tensor(table.y))
    assert isinstance(X_more, torch.Tensor)
    assert isinstance(y_more, torch.Tensor)
    assert_array_equal(X_more.numpy(), expected)
    X_more, y_more = sampler.fit_resample(table.X.tolist(), table.y.tolist())
    assert_array_equal(X_more, expected)
    assert len(y_more) == 300


def test_images(images):
    attack = FGSM(images.net, eps=0.2, clip=(0, 1))
    X_more, y_more = attack.fit_resample(images.X[:20], images.y[:20])
    assert X_more.shape == (40, 1, 8, 8)
    assert X_more.dtype == np.float32
    assert_array_equal(y_more, np.tile(images.y[:20], 2))


def test_labels_modes(table):
    y = table.y.copy()
    y[::4] = (y[::4] + 1) % 3  # noise, which the model does not reproduce
    attack = FGSM(eps=0.3)
    fitted = clone(attack).fit(table.X, y)
    predicted, _ = attack.fit_resample(table.X, y)
    true, _ = attack.fit_resample(table.X, y, labels="true")
    assert_array_equal(predicted[150:], fitted.transform(table.X))
    assert_array_equal(true[150:], fitted.generate(table.X, y))
    assert not np.array_equal(predicted, true)
    for mode, expected in [("predicted", predicted), ("true", true)]:
        sampler = AdversarialAugmentation(attack, labels=mode)
        assert_array_equal(sampler.fit_resample(table.X, y)[0], expected)
    with pytest.raises(ValueError, match="labels must be 'predicted' or 'true', got 'both'"):
        attack.fit_resample(table.X, y, labels="both")
    with pytest.raises(ValueError, match="labels must be"):
        AdversarialAugmentation(labels="both").fit_resample(table.X, y)


def test_default_is_pgd_on_a_surrogate(table):
    sampler = AdversarialAugmentation()
    assert sampler.attack is None
    sampler.fit_resample(table.X, table.y)
    assert isinstance(sampler.attack_, PGD)
    assert sampler.attack is None


def test_the_attack_given_is_not_fitted(table):
    attack = PGD(eps=0.3, random_state=0)
    sampler = AdversarialAugmentation(attack)
    assert sampler.fit(table.X, table.y) is sampler
    assert not hasattr(attack, "estimator_")
    assert hasattr(sampler.attack_, "estimator_")


def test_pipeline_resamples_at_fit_only(table):
    model = Pipeline([("augment", AdversarialAugmentation(FGSM(eps=0.3))), ("model", Counter())])
    model.fit(table.X[:100], table.y[:100])
    assert model[-1].n_fit_ == 200
    assert model.predict(table.X[100:]).shape == (50,)
    assert model[-1].n_predicted_ == [50]
    plain = LogisticRegression().fit(table.X[:100], table.y[:100])
    assert (
        model.score(table.X[100:], table.y[100:]) > plain.score(table.X[100:], table.y[100:]) - 0.1
    )


def test_pipeline_fits_on_what_the_sampler_returns(table):
    attack = FGSM(eps=0.4)
    model = make_pipeline(AdversarialAugmentation(attack), LogisticRegression())
    model.fit(table.X, table.y)
    by_hand = LogisticRegression().fit(*clone(attack).fit_resample(table.X, table.y))
    np.testing.assert_allclose(model[-1].coef_, by_hand.coef_)


def test_grid_search_over_the_radius(table):
    model = Pipeline(
        [
            ("augment", AdversarialAugmentation(PGD(n_steps=3, random_state=0))),
            ("model", LogisticRegression()),
        ]
    )
    search = GridSearchCV(
        model, {"augment__attack__eps": [0.0, 0.2, 3.0]}, cv=3, error_score="raise"
    )
    search.fit(table.X, table.y)
    assert search.best_params_["augment__attack__eps"] in (0.0, 0.2)
    scores = search.cv_results_["mean_test_score"]
    assert scores[2] < max(scores)
    assert cross_val_score(model, table.X, table.y, error_score="raise").min() > 0.5


def test_an_attack_itself_is_refused_by_the_pipeline(table):
    # it can both transform and resample, which imbalanced-learn does not allow;
    # this is why AdversarialAugmentation exists
    model = make_pipeline(FGSM(eps=0.3), LogisticRegression())
    with pytest.raises(TypeError, match=r"transform or fit_resample.*implements both"):
        model.fit(table.X, table.y)
    assert not hasattr(AdversarialAugmentation, "transform")
    assert not hasattr(AdversarialAugmentation, "fit_transform")


def test_parameters_of_the_attack_are_reachable():
    sampler = AdversarialAugmentation(PGD(eps=0.1))
    assert sampler.get_params()["attack__eps"] == 0.1
    assert clone(sampler).set_params(attack__eps=0.2).attack.eps == 0.2
    assert sampler.attack.eps == 0.1
