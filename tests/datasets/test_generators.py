import sys

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.stats import kstest, norm
from sklearn.linear_model import LogisticRegression

from robustsk.datasets import (
    make_concentric_spheres,
    make_loans,
    make_robust_nonrobust,
    make_striped_images,
    make_three_clusters,
)

GENERATORS = [
    make_striped_images,
    make_concentric_spheres,
    make_robust_nonrobust,
    make_three_clusters,
    make_loans,
]


@pytest.mark.parametrize("make", GENERATORS)
class TestRandomState:
    def test_same_seed_same_data(self, make):
        X, y = make(50, random_state=3)
        X_again, y_again = make(50, random_state=3)
        np.testing.assert_array_equal(X, X_again)
        np.testing.assert_array_equal(y, y_again)

    def test_other_seed_other_data(self, make):
        assert not np.array_equal(make(50, random_state=3)[0], make(50, random_state=4)[0])

    def test_instance_moves_on(self, make):
        rng = np.random.RandomState(3)
        first, second = make(50, random_state=rng)[0], make(50, random_state=rng)[0]
        # the recipe of the loans is one for a generator of the other kind
        seed = np.random.RandomState(3) if make is make_loans else 3
        again = make(50, random_state=seed)[0]
        np.testing.assert_array_equal(first, again)
        assert not np.array_equal(first, second)

    def test_global_generators_do_not_move(self, make):
        numpy_before, torch_before = np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
        make(50, random_state=0)
        numpy_after = np.random.get_state()  # noqa: NPY002
        np.testing.assert_array_equal(numpy_before[1], numpy_after[1])
        assert numpy_before[2:] == numpy_after[2:]
        assert torch.equal(torch_before, torch.get_rng_state())

    @pytest.mark.parametrize("n_samples", [0, -1])
    def test_refuses_no_samples(self, make, n_samples):
        with pytest.raises(ValueError, match="n_samples"):
            make(n_samples)

    def test_one_sample(self, make):
        X, y = make(1, random_state=0)
        assert len(X) == len(y) == 1


class TestStripedImages:
    def test_shape_range_and_balance(self):
        X, y = make_striped_images(
            100, n_classes=4, image_size=9, n_channels=3, noise=0.5, random_state=0
        )
        assert X.shape == (100, 3, 9, 9)
        assert X.dtype == np.float32
        assert X.min() == 0
        assert X.max() == 1
        assert y.dtype == np.int64
        assert np.bincount(y).tolist() == [25] * 4
        assert not np.array_equal(y, np.sort(y))

    def test_first_class_varies_along_the_width_only(self):
        X, y = make_striped_images(30, noise=0, random_state=0)
        vertical = X[y == 0]
        np.testing.assert_allclose(vertical, np.repeat(vertical[:, :, :1], 8, axis=2))
        assert (X[y != 0].std(axis=2) > 0.01).any(axis=(1, 2)).all()

    @pytest.mark.parametrize("n_classes", [2, 6, 7, 12])
    def test_classes_have_their_own_spectrum(self, n_classes):
        # The size of the Fourier coefficients ignores where the stripes are.
        X, y = make_striped_images(30 * n_classes, n_classes=n_classes, noise=0.02, random_state=0)
        spectrum = np.abs(np.fft.fft2(X[:, 0], s=(16, 16))).reshape(len(X), -1)
        assert np.bincount(y).tolist() == [30] * n_classes
        model = LogisticRegression(max_iter=500).fit(spectrum[::2], y[::2])
        assert model.score(spectrum[1::2], y[1::2]) > 0.97

    def test_channels_share_the_stripes_at_other_contrasts(self):
        X, _ = make_striped_images(5, n_channels=2, noise=0, random_state=0)
        for image in X - 0.5:
            first, second = image.reshape(2, -1)
            assert np.corrcoef(first, second)[0, 1] == pytest.approx(1)
            assert np.abs(first - second).max() > 1e-3

    def test_small_network_learns_what_a_linear_model_cannot(self):
        X, y = make_striped_images(400, random_state=0)
        X_test, y_test = make_striped_images(200, random_state=1)
        linear = LogisticRegression(max_iter=300).fit(X.reshape(400, -1), y)
        assert linear.score(X_test.reshape(200, -1), y_test) < 0.6

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = torch.nn.Sequential(
                torch.nn.Conv2d(1, 16, 5),
                torch.nn.ReLU(),
                torch.nn.AdaptiveAvgPool2d(1),
                torch.nn.Flatten(),
                torch.nn.Linear(16, 3),
            )
            optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
            inputs, labels = torch.from_numpy(X), torch.from_numpy(y)
            for _ in range(60):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(model(inputs), labels).backward()
                optimizer.step()
        predicted = model(torch.from_numpy(X_test)).argmax(dim=1).numpy()
        assert np.mean(predicted == y_test) > 0.95

    def test_refuses_stripes_narrower_than_pixels(self):
        with pytest.raises(ValueError, match="image_size=9 or more"):
            make_striped_images(n_classes=13)
        X, _ = make_striped_images(26, n_classes=13, image_size=9)
        assert X.shape == (26, 1, 9, 9)

    @pytest.mark.parametrize(
        "given", [{"n_classes": 1}, {"image_size": 4}, {"n_channels": 0}, {"noise": -0.1}]
    )
    def test_refuses_bad_parameters(self, given):
        with pytest.raises(ValueError, match=next(iter(given))):
            make_striped_images(**given)


class TestConcentricSpheres:
    def test_points_lie_on_their_spheres(self):
        X, y = make_concentric_spheres(301, n_features=7, radii=(2.0, 0.5, 1.0), random_state=0)
        assert X.shape == (301, 7)
        assert X.dtype == np.float64
        assert y.dtype == np.int64
        assert sorted(np.bincount(y)) == [100, 100, 101]
        np.testing.assert_allclose(np.linalg.norm(X, axis=1), np.array([2.0, 0.5, 1.0])[y])

    def test_default_radii_are_those_of_the_paper(self):
        X, y = make_concentric_spheres(random_state=0)
        np.testing.assert_allclose(np.linalg.norm(X, axis=1), np.where(y == 0, 1, 1.3))

    def test_directions_are_uniform(self):
        # On the sphere in three dimensions, every coordinate is uniform (Archimedes).
        X, _ = make_concentric_spheres(4000, n_features=3, radii=(1, 2), random_state=0)
        directions = X / np.linalg.norm(X, axis=1, keepdims=True)
        for coordinate in directions.T:
            assert kstest(coordinate, "uniform", args=(-1, 2)).pvalue > 0.001

    def test_noise_leaves_the_sphere(self):
        X, y = make_concentric_spheres(4000, n_features=20, noise=0.1, random_state=0)
        squared = (X**2).sum(axis=1) - np.where(y == 0, 1, 1.3) ** 2
        assert squared.std() > 0.1
        assert squared.mean() == pytest.approx(20 * 0.1**2, abs=0.03)

    @pytest.mark.parametrize("radii", [(1.0,), (1.0, 1.0), (0.0, 1.0), (1.0, np.inf), 1.0])
    def test_refuses_bad_radii(self, radii):
        with pytest.raises(ValueError, match="radii"):
            make_concentric_spheres(radii=radii)

    @pytest.mark.parametrize("given", [{"n_features": 1}, {"noise": -1.0}])
    def test_refuses_bad_parameters(self, given):
        with pytest.raises(ValueError, match=next(iter(given))):
            make_concentric_spheres(**given)


class TestRobustNonrobust:
    def test_shapes_and_labels(self):
        X, y = make_robust_nonrobust(100, n_robust=2, n_nonrobust=5, random_state=0)
        assert X.shape == (100, 7)
        assert X.dtype == np.float64
        assert y.dtype == np.int64
        assert set(y) == {-1, 1}
        assert set(np.unique(X[:, :2])) == {-1.0, 1.0}

    def test_follows_its_definition(self):
        n, p, eta = 20_000, 0.8, 0.4
        X, y = make_robust_nonrobust(n, n_robust=2, n_nonrobust=3, p=p, eta=eta, random_state=0)
        assert np.mean(y == 1) == pytest.approx(0.5, abs=0.015)
        for label in (-1, 1):
            agrees = X[y == label, :2] == label
            np.testing.assert_allclose(agrees.mean(axis=0), p, atol=0.02)
            # Given the label, the robust features are independent.
            assert agrees.all(axis=1).mean() == pytest.approx(p**2, abs=0.02)
            weak = X[y == label, 2:]
            for feature in weak.T:
                assert kstest(feature, norm(eta * label, 1).cdf).pvalue > 0.001
            np.testing.assert_allclose(np.corrcoef(weak.T), np.eye(3), atol=0.04)

    def test_default_eta_shrinks_with_the_number_of_features(self):
        for d in (25, 400):
            X, y = make_robust_nonrobust(4000, n_nonrobust=d, random_state=0)
            product = X[:, 1:] * y[:, None]
            assert product.mean() == pytest.approx(3 / np.sqrt(d), abs=0.015)
            assert np.mean(product.mean(axis=1) > 0) > 0.996

    def test_adversary_of_twice_eta_swaps_the_nonrobust_features(self):
        X, y = make_robust_nonrobust(4000, n_nonrobust=100, random_state=0)
        attacked = X - 2 * 0.3 * y[:, None]
        assert np.mean(np.sign(attacked[:, 1:].mean(axis=1)) == y) < 0.005
        assert np.mean(np.sign(attacked[:, 0]) == y) == pytest.approx(0.95, abs=0.02)

    @pytest.mark.parametrize("p", [0.0, 1.0])
    def test_certain_features(self, p):
        X, y = make_robust_nonrobust(50, p=p, random_state=0)
        np.testing.assert_array_equal(X[:, 0], y if p else -y)

    @pytest.mark.parametrize(
        "given", [{"n_robust": 0}, {"n_nonrobust": 0}, {"p": 1.1}, {"p": -0.1}, {"eta": -1.0}]
    )
    def test_refuses_bad_parameters(self, given):
        with pytest.raises(ValueError, match=next(iter(given))):
            make_robust_nonrobust(**given)


# --- three clusters ------------------------------------------------------------------


def test_three_clusters():
    X, y = make_three_clusters(10000, random_state=0)
    assert X.shape == (10000, 2)
    assert np.bincount(y).tolist() == [1000, 9000]
    left = X[y == 0]
    assert_allclose(left.mean(axis=0), [-2, 0], atol=0.1)
    assert_allclose(left.var(axis=0), [0.5, 0.5], atol=0.06)
    middle, right = (X[(y == 1) & part] for part in (X[:, 0] < 4, X[:, 0] >= 4))
    assert_allclose([middle[:, 0].mean(), right[:, 0].mean()], [2, 6], atol=0.1)
    assert abs(len(middle) / len(right) - 5 / 4) < 0.05
    assert np.array_equal(X, make_three_clusters(10000, random_state=0)[0])
    assert not np.array_equal(y[:100], np.sort(y[:100]))
    with pytest.raises(ValueError, match="sum to 1"):
        make_three_clusters(shares=(0.5, 0.5, 0.5))


# --- loans ---------------------------------------------------------------------------


def test_loans_are_those_of_the_recipe():
    X, y = make_loans(random_state=0)
    assert X.shape == (2400, 7)
    assert y.mean() == 0.58625
    assert_allclose(X["income"].mean(), 37037.1406, atol=5e-5)
    first = X.iloc[0].to_dict()
    assert (first["age"], first["income"]) == (67, 56449.95)
    assert (first["purpose"], first["housing"]) == ("other", "rent")


def test_loans_have_the_types_and_the_rule_of_a_table():
    X, y = make_loans(500, random_state=1)
    assert list(X) == ["age", "income", "amount", "n_total", "n_open", "purpose", "housing"]
    for name in ("age", "n_total", "n_open"):
        assert X[name].dtype == np.int64
    for name in ("income", "amount"):
        assert X[name].dtype == np.float64
        assert_allclose(X[name], X[name].round(2), rtol=0)
    for name in ("purpose", "housing"):
        assert pd.api.types.is_string_dtype(X[name])
    assert set(X["purpose"]) == {"car", "debt", "house", "other"}
    assert set(X["housing"]) == {"own", "rent", "loan"}
    assert X["n_open"].ge(0).all()
    assert (X["n_open"] < X["n_total"]).all()  # a share of less than one, rounded down
    assert X["age"].between(18, 75).all()
    # the risk without its noise tells most of the classes
    risk = 1.2 * (2 * X["amount"] / X["income"] - 1) + 0.05 * (X["n_open"] - 5)
    risk -= 0.02 * (X["age"] - 45)
    risk += X["purpose"].map({"car": -0.5, "debt": 0.4, "house": -0.3, "other": 0.2})
    risk += X["housing"].map({"own": -0.4, "rent": 0.4, "loan": 0.0})
    noise = norm.cdf(risk / 0.5)
    assert abs(np.mean((risk > 0) == y) - np.maximum(noise, 1 - noise).mean()) < 0.05


def test_loans_need_pandas(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"requires pandas.*pip install pandas"):
        make_loans(10)
