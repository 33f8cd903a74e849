import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

from robustsk import PGD, robust_accuracy
from robustsk.metrics import clopper_pearson_interval

fast = settings(deadline=None, derandomize=True, max_examples=60)


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.999])
@pytest.mark.parametrize("n", [1, 2, 5, 30, 1000])
def test_ends_are_quantiles_of_beta_distributions(n, confidence):
    tail = (1 - confidence) / 2
    for k in sorted({0, 1, n // 3, n // 2, n - 1, n}):
        low, high = clopper_pearson_interval(k, n, confidence)
        assert low == pytest.approx(beta.ppf(tail, k, n - k + 1) if k else 0, abs=1e-12)
        assert high == pytest.approx(beta.ppf(1 - tail, k + 1, n - k) if k < n else 1, abs=1e-12)


@fast
@given(st.data(), st.integers(1, 5000), st.floats(0.01, 0.9999))
def test_properties(data, n, confidence):
    k = data.draw(st.integers(0, n))
    low, high = clopper_pearson_interval(k, n, confidence)
    assert 0 <= low <= k / n <= high <= 1
    mirror_low, mirror_high = clopper_pearson_interval(n - k, n, confidence)
    assert (low, high) == pytest.approx((1 - mirror_high, 1 - mirror_low), abs=1e-9)
    wider = clopper_pearson_interval(k, n, confidence + (1 - confidence) / 2)
    assert wider[0] <= low + 1e-12
    assert high <= wider[1] + 1e-12


def test_ends_are_exact():
    # the upper end at k=0 solves (1 - p)^n = alpha / 2
    for n in (1, 10, 500):
        assert clopper_pearson_interval(0, n) == (0.0, pytest.approx(1 - 0.025 ** (1 / n)))
        assert clopper_pearson_interval(n, n) == (pytest.approx(0.025 ** (1 / n)), 1.0)


@pytest.mark.dealt
@pytest.mark.parametrize("p", [0.02, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("n", [20, 200])
def test_coverage_is_at_least_nominal(n, p):
    draws = np.random.default_rng(0).binomial(n, p, size=4000)
    intervals = {k: clopper_pearson_interval(int(k), n, 0.95) for k in np.unique(draws)}
    covered = np.mean([intervals[k][0] <= p <= intervals[k][1] for k in draws])
    assert covered >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / 4000)


def test_numpy_integers_and_types():
    low, high = clopper_pearson_interval(np.int64(3), np.int32(10))
    assert type(low) is type(high) is float


@pytest.mark.parametrize("confidence", [0, 1, -0.1, 1.5, 95])
def test_bad_confidence(confidence):
    with pytest.raises(ValueError, match="confidence must be between 0 and 1"):
        clopper_pearson_interval(1, 2, confidence)


@pytest.mark.parametrize(("k", "n"), [(-1, 3), (4, 3), (0, 0), (0, -1)])
def test_bad_counts(k, n):
    with pytest.raises(ValueError, match=f"{k} successes in {n} trials is not possible"):
        clopper_pearson_interval(k, n)


def test_robust_accuracy_uses_it():
    X, y = load_iris(return_X_y=True)
    clf = LogisticRegression(max_iter=1000).fit(X, y)
    attack = PGD(eps=0.4, n_steps=5, random_state=0)
    for confidence in (0.8, 0.99):
        result = robust_accuracy(clf, X, y, attack, confidence=confidence)
        k = round(result.accuracy * len(y))
        assert (result.low, result.high) == clopper_pearson_interval(k, len(y), confidence)
