"""Every defence passes scikit-learn's own checks, without an expected failure."""

from collections import Counter
from functools import cache
from unittest import SkipTest

import pytest
from defense_paths import DEFENSES, epochs
from sklearn.base import clone
from sklearn.utils.estimator_checks import estimator_checks_generator

from robustsk import AWP, HypersphereHead, PGDATClassifier, StandardClassifier

#: A battery that does not take an estimator for a classifier has far fewer.
MIN_CHECKS = 55

#: What looks at parameters that nothing has touched.
OF_THE_DEFAULTS = {
    "check_do_not_raise_errors_in_init_or_set_params",
    "check_no_attributes_set_in_init",
    "check_parameters_default_constructible",
}


@cache
def checks_of(cls):
    """Return the checks, each with its estimator, by their names."""
    found = {}
    for estimator, check in estimator_checks_generator(cls(), legacy=True, mark="skip"):
        name = getattr(check, "func", check).__name__
        options = getattr(check, "keywords", {})
        label = ",".join(f"{key}={getattr(v, '__name__', v)}" for key, v in options.items())
        found[f"{name}({label})" if label else name] = estimator, check
    return found


@pytest.mark.parametrize("label", checks_of(DEFENSES[0]))
def test_defense_passes_sklearn_check(cls, label):
    estimator, check = checks_of(cls)[label]
    if label not in OF_THE_DEFAULTS:
        estimator = clone(estimator).set_params(**epochs(cls, 3), adversary__n_steps=2)
    try:
        check(estimator)
    except SkipTest as skip:
        # scikit-learn's own: array API support is off unless the variable is set
        if "SCIPY_ARRAY_API" not in str(skip):
            pytest.fail(f"skipped: {skip}")
        raise


#: What defences are composed of; the checks with which it must agree as well.
CONFIGURED = {
    "weights of classes": StandardClassifier(class_weight="balanced", max_epochs=5),
    "head and weights": PGDATClassifier(
        head=HypersphereHead(s=10), weight_perturbation=AWP(), adversary__n_steps=2, max_epochs=5
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGURED)
@pytest.mark.parametrize("label", sorted(checks_of(DEFENSES[0]).keys() - OF_THE_DEFAULTS))
def test_a_configured_defense_passes_sklearn_check(name, label):
    _, check = checks_of(DEFENSES[0])[label]
    try:
        check(clone(CONFIGURED[name]))
    except SkipTest as skip:
        if "SCIPY_ARRAY_API" not in str(skip):
            pytest.fail(f"skipped: {skip}")
        raise


def test_the_battery_really_runs(cls):
    checks = checks_of(cls)
    assert len(checks) >= MIN_CHECKS
    assert checks.keys() == checks_of(DEFENSES[0]).keys()
    names = Counter(label.partition("(")[0] for label in checks)
    assert names.keys() >= OF_THE_DEFAULTS
    assert names["check_fit2d_predict1d"]


def test_there_are_defenses_to_check():
    names = {cls.__name__ for cls in DEFENSES}
    assert {"StandardClassifier", "PGDATClassifier", "TRADESClassifier", "SPATClassifier"} <= names
    assert "EnsembleCCE" in names
