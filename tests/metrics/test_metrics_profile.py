"""How far adversaries move, and what is lost on new data."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.linear_model import LogisticRegression

from robustsk import DRA, PGD, PGDATClassifier, StandardClassifier
from robustsk.metrics import (
    adversary_profile,
    generalization_gap,
    perturbation_profile,
    score_adversarial,
)


def test_numbers_by_hand():
    X = np.zeros((2, 4))
    X_adv = np.array([[0.1, -0.1, 0.05, 0.0], [0.105, 0.2, -0.095, 0.09]])
    profile = perturbation_profile(X, X_adv, 0.1)
    assert profile.mean_abs == pytest.approx((0.25 + 0.49) / 8)
    assert profile.mean_max == pytest.approx((0.1 + 0.2) / 2)
    # 0.05, 0 and 0.09; and 0.1 twice and 0.095; and 0.105
    assert_allclose(list(profile.within.values()), [3 / 8, 6 / 8, 7 / 8])
    assert list(perturbation_profile(X, X_adv, 0.1, shares=(2,)).within.values()) == [1.0]


def test_rounding_is_not_a_step_out_of_the_ball():
    X = np.random.default_rng(0).uniform(size=(50, 3)).astype(np.float32)
    X_adv = X + np.float32(0.1)
    assert perturbation_profile(X, X_adv, 0.1).within[1.0] == 1.0


def test_profile_of_images_and_bad_shapes():
    X = np.zeros((3, 1, 2, 2))
    assert perturbation_profile(X, X + 0.05, 0.1).mean_max == pytest.approx(0.05)
    with pytest.raises(ValueError, match="same shape"):
        perturbation_profile(X, X[:2], 0.1)


@pytest.fixture(scope="module")
def blobs():
    rng = np.random.default_rng(0)
    y = np.arange(90) % 3
    return np.eye(3)[y] + 0.3 * rng.normal(size=(90, 3)), y


def test_profile_of_the_adversary_of_a_training(blobs):
    clf = PGDATClassifier(
        "mlp", max_epochs=3, random_state=0,
        adversary=PGD(eps=0.2, n_steps=1, step_size=0.2, random_start="none", clip=None),
    ).fit(*blobs)  # fmt: skip
    profile = adversary_profile(clf, *blobs)
    # one full step of the sign of the gradient
    assert profile.mean_abs == pytest.approx(0.2)
    assert profile.within == {0.9: 0.0, 1.0: 1.0, 1.1: 1.0}
    clf.adversary_.step_size = 0.1
    assert adversary_profile(clf, *blobs).within[0.9] == 1.0


def test_adversary_in_another_norm(blobs):
    clf = PGDATClassifier("mlp", adversary=DRA(eps=0.2), max_epochs=1, random_state=0).fit(*blobs)
    profile = adversary_profile(clf, *blobs)
    assert 0 < profile.mean_abs <= 0.2 / 3 + 1e-9
    assert profile.within == {}


def test_gap(blobs):
    X, y = blobs
    attack = PGD(eps=0.2, random_state=0, clip=None)
    clf = StandardClassifier("mlp", max_epochs=30, random_state=0).fit(X[:30], y[:30])
    gap = generalization_gap(clf, X[:30], y[:30], X[30:], y[30:], attack)
    assert gap.clean == pytest.approx(clf.score(X[:30], y[:30]) - clf.score(X[30:], y[30:]))
    robust = [score_adversarial(clf, X[p], y[p], attack) for p in (slice(30), slice(30, None))]
    assert gap.robust == pytest.approx(robust[0] - robust[1])
    linear = LogisticRegression().fit(X, y)
    assert generalization_gap(linear, X, y, X, y, attack) == (0.0, 0.0)
    with pytest.raises(TypeError, match="attack"):
        generalization_gap(linear, X, y, X, y, "pgd")
