"""Every defence passes scikit-learn's own checks, without an expected failure."""

from collections import Counter
from unittest import SkipTest

import pytest
from sklearn.utils.estimator_checks import estimator_checks_generator

from robustsk._discovery import all_defenses

#: A battery that does not take an estimator for a classifier has far fewer.
MIN_CHECKS = 55


def checks_of(cls):
    return estimator_checks_generator(cls(), legacy=True, mark="skip")


def named(cls, check):
    """Return a check with its name; what repeats another on other memory or numbers is slow."""
    options = getattr(check, "keywords", {})
    name = getattr(check, "func", check).__name__
    label = ",".join(f"{key}={getattr(value, '__name__', value)}" for key, value in options.items())
    again = options.keys() & {"readonly_memmap", "X_dtype"}
    return {
        "id": f"{cls.__name__}-{name}({label})" if label else f"{cls.__name__}-{name}",
        "marks": pytest.mark.slow if again else (),
    }


@pytest.mark.parametrize(
    ("estimator", "check"),
    [
        pytest.param(estimator, check, **named(cls, check))
        for cls in all_defenses()
        for estimator, check in checks_of(cls)
    ],
)
def test_defense_passes_sklearn_check(estimator, check):
    try:
        check(estimator)
    except SkipTest as skip:
        # scikit-learn's own: array API support is off unless the variable is set
        if "SCIPY_ARRAY_API" not in str(skip):
            pytest.fail(f"skipped: {skip}")
        raise


def test_the_battery_really_runs(cls):
    checks = [check for _, check in checks_of(cls)]
    assert len(checks) >= MIN_CHECKS
    names = Counter(getattr(check, "func", check).__name__ for check in checks)
    assert names["check_classifiers_train"]
    assert names["check_sample_weight_equivalence_on_dense_data"]
    assert names["check_fit2d_predict1d"]


def test_there_are_defenses_to_check():
    names = {cls.__name__ for cls in all_defenses()}
    assert {"StandardClassifier", "PGDATClassifier", "TRADESClassifier", "SPATClassifier"} <= names
    assert "EnsembleCCE" in names
