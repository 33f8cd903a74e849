"""Every defence passes scikit-learn's own checks, without an expected failure."""

from collections import Counter
from unittest import SkipTest

import pytest
from sklearn.utils.estimator_checks import estimator_checks_generator, parametrize_with_checks

from robustsk._discovery import all_defenses

#: A battery that does not take an estimator for a classifier has far fewer.
MIN_CHECKS = 55


@parametrize_with_checks([cls() for cls in all_defenses()])
def test_defense_passes_sklearn_check(estimator, check):
    try:
        check(estimator)
    except SkipTest as skip:
        # scikit-learn's own: array API support is off unless the variable is set
        if "SCIPY_ARRAY_API" not in str(skip):
            pytest.fail(f"skipped: {skip}")
        raise


def test_the_battery_really_runs(cls):
    checks = [check for _, check in estimator_checks_generator(cls(), legacy=True, mark="skip")]
    assert len(checks) >= MIN_CHECKS
    names = Counter(getattr(check, "func", check).__name__ for check in checks)
    assert names["check_classifiers_train"]
    assert names["check_sample_weight_equivalence_on_dense_data"]
    assert names["check_fit2d_predict1d"]


def test_there_are_defenses_to_check():
    names = {cls.__name__ for cls in all_defenses()}
    assert {"StandardClassifier", "PGDATClassifier", "TRADESClassifier", "SPATClassifier"} <= names
    assert "EnsembleCCE" in names
