"""`AdversarialAugmentation` passes the checks of scikit-learn and of imbalanced-learn."""

from unittest import SkipTest

import numpy as np
import pandas as pd
import pytest
from imblearn.ensemble import BalancedBaggingClassifier
from imblearn.utils.estimator_checks import estimator_checks_generator as imblearn_checks
from numpy.testing import assert_array_equal
from sklearn.utils.estimator_checks import estimator_checks_generator as sklearn_checks

from robustsk import PGD, AdversarialAugmentation


def sampler(**params):
    return AdversarialAugmentation(PGD(n_steps=2, eps=0.1), **{"random_state": 0, **params})


def cases(generator):
    for estimator, check in generator(sampler()):
        name = getattr(check, "func", check).__name__
        yield pytest.param(estimator, check, id=name)


@pytest.mark.dealt
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("estimator", "check"), [*cases(sklearn_checks), *cases(imblearn_checks)])
def test_sampler_passes_check(estimator, check):
    try:
        check(estimator)
    except SkipTest as skip:
        if "SCIPY_ARRAY_API" not in str(skip):
            pytest.fail(f"skipped: {skip}")
        raise


def test_the_batteries_really_run():
    assert len(list(cases(imblearn_checks))) >= 14
    assert len(list(cases(sklearn_checks))) >= 38


def test_containers_stay_what_they_are():
    X = np.random.default_rng(0).normal(size=(30, 3))
    y = np.arange(30) % 3
    right, labels = sampler().fit_resample(X, y)
    found, names = sampler().fit_resample(X.tolist(), y.tolist())
    assert (found, names) == (right.tolist(), labels.tolist())
    onehot = np.eye(3, dtype=int)[y]
    found, both = sampler().fit_resample(X, onehot)
    assert_array_equal(found, right)
    assert_array_equal(both, np.r_[onehot, onehot])
    frame = pd.DataFrame(X, columns=list("abc"))
    found, column = sampler().fit_resample(frame, pd.DataFrame({"class": y}))
    assert_array_equal(found.to_numpy(), right)
    assert column.columns.tolist() == ["class"]
    sparse = frame.astype(pd.SparseDtype(float, 0))
    assert sampler().fit_resample(sparse, y)[0].dtypes.tolist() == sparse.dtypes.tolist()


def test_randomness_and_what_is_learned():
    X = np.random.default_rng(0).normal(size=(30, 3))
    y = np.r_[np.zeros(20, int), np.ones(10, int)]
    attack = PGD(n_steps=1, step_size=0.01, eps=0.1)  # the start is not forgotten
    first, again, other = (
        AdversarialAugmentation(attack, random_state=i).fit_resample(X, y)[0] for i in (0, 0, 1)
    )
    assert_array_equal(first, again)
    assert np.any(first != other)
    of_attack = AdversarialAugmentation(attack.set_params(random_state=0))
    assert_array_equal(of_attack.fit_resample(X, y)[0], first)
    fitted = sampler().fit(X, y)
    assert fitted.sampling_strategy_ == {0: 20, 1: 10}
    assert_array_equal(fitted.get_feature_names_out(), ["x0", "x1", "x2"])


def test_it_goes_into_ensembles_of_imbalanced_learn():
    rng = np.random.default_rng(0)
    y = np.r_[np.zeros(60, int), np.ones(20, int)]
    X = rng.normal(size=(80, 3)) + 3 * y[:, None]
    model = BalancedBaggingClassifier(sampler=sampler(), n_estimators=2, random_state=0)
    assert model.fit(X, y).score(X, y) > 0.9
