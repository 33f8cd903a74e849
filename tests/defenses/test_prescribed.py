"""What a method prescribes reaches any adversary, unless the user has said something else."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from sklearn.base import clone
from sklearn.model_selection import ParameterGrid

from robustsk import (
    BIM,
    DRA,
    EOT,
    FGSM,
    MIM,
    PGD,
    TAMOO,
    AdversarialRegularizationClassifier,
    FATClassifier,
    FriendlyPGD,
    GAIRATClassifier,
    GeometryAwarePGD,
    MAILClassifier,
    MARTClassifier,
    PGDATClassifier,
    RobustSelfTrainingClassifier,
    SPATClassifier,
    TRADESClassifier,
    UDRMARTClassifier,
    UDRTRADESClassifier,
)
from robustsk.attacks import APGD
from robustsk.training import UDRAdversary

NEAR = [
    TRADESClassifier(),
    SPATClassifier(),
    MARTClassifier(),
    MAILClassifier(),
    RobustSelfTrainingClassifier(),
    UDRTRADESClassifier(),
    UDRMARTClassifier(),
    GAIRATClassifier(variant="trades"),
    GAIRATClassifier(variant="rst"),
    FATClassifier(loss="trades"),
    FATClassifier(loss="mart"),
]
STARTS = [(clf, "gaussian") for clf in NEAR] + [(AdversarialRegularizationClassifier(), "none")]


def start(clf):
    return clf._adversary().random_start


@pytest.mark.parametrize(("clf", "expected"), STARTS, ids=lambda v: getattr(v, "loss", None))
def test_start_of_the_method_with_any_adversary(clf, expected):
    assert start(clf) == expected
    for attack in (PGD, FriendlyPGD, GeometryAwarePGD, UDRAdversary, FGSM, DRA, TAMOO):
        given = attack(eps=0.1)
        before = given.random_start
        clf = clone(clf).set_params(adversary=given)
        assert start(clf) == start(clone(clf)) == expected
        assert clf.get_params()["adversary__random_start"] == expected
        assert given.random_start == before  # that of the user is left alone
    # attacks without a start, and one in another
    assert type(clone(clf).set_params(adversary=APGD(eps=0.1))._adversary()) is APGD
    inner = clone(clf).set_params(adversary=EOT(attack=PGD(eps=0.1)))._adversary().attack
    assert inner.random_start == expected
    assert start(PGDATClassifier(adversary=PGD(eps=0.1))) == "uniform"


@pytest.mark.parametrize(("clf", "expected"), STARTS, ids=lambda v: getattr(v, "loss", None))
def test_a_start_that_was_asked_for(clf, expected):
    other = "none" if expected == "gaussian" else "gaussian"
    assert start(clone(clf).set_params(adversary=PGD(random_start=other))) == other
    for value in ("none", "uniform", "gaussian"):
        # the default of the attack too, if it is said to the defence
        for given in (None, PGD(eps=0.1)):
            made = clone(clf).set_params(adversary=given, adversary__random_start=value)
            assert start(made) == start(clone(made)) == value
        later = clone(clf).set_params(adversary=PGD(eps=0.1))
        later.set_params(adversary__random_start=value)
        assert start(later) == start(clone(later)) == value
        # and it goes with the adversary for which it was said
        assert start(later.set_params(adversary=PGD(eps=0.2))) == expected


def test_search_over_the_start_tells_them_apart():
    clf = TRADESClassifier(adversary=PGD(eps=0.1))
    grid = ParameterGrid({"adversary__random_start": ["uniform", "gaussian", "none"]})
    found = [start(clone(clf).set_params(**params)) for params in grid]
    assert found == ["uniform", "gaussian", "none"]
    # setting all parameters to what they are changes nothing
    assert start(clf.set_params(**clf.get_params())) == "gaussian"


def test_the_start_is_that_of_the_training():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(32, 4)), np.arange(32) % 2

    def fit(**params):
        common = {"module": "mlp", "module__hidden_sizes": (4,), "max_epochs": 1, "device": "cpu"}
        clf = TRADESClassifier(**common, random_state=0, **params).fit(X, y)
        return clf.predict_proba(X)

    given = fit(adversary=PGD(eps=0.3))
    assert_array_equal(given, fit(adversary__eps=0.3))
    uniform = fit(adversary=PGD(eps=0.3), adversary__random_start="uniform")
    assert not np.array_equal(given, uniform)


def test_noise_of_fat():
    for given in (None, FriendlyPGD(eps=0.1)):
        clf = FATClassifier(adversary=given)
        assert clf._adversary().omega == 0.001
        assert clf.set_params(adversary__omega=0.0)._adversary().omega == 0
    assert FATClassifier(adversary=FriendlyPGD(omega=0.01))._adversary().omega == 0.01
    assert FATClassifier(loss="mart", adversary=FriendlyPGD())._adversary().omega == 0


@pytest.mark.parametrize(
    "adversary",
    # the tau of the last is something else
    [PGD(eps=0.3), MIM(eps=0.3), BIM(eps=0.3), UDRAdversary(eps=0.3)],
    ids=repr,
)
@pytest.mark.parametrize("clf", [FATClassifier(), GAIRATClassifier(variant="fat")], ids=repr)
def test_friendly_training_needs_an_adversary_that_stops(clf, adversary):
    name = type(adversary).__name__
    clf = clone(clf).set_params(adversary=adversary, max_epochs=1, module="mlp")
    with pytest.raises(ValueError, match=rf"an adversary that stops early.*{name}.*FriendlyPGD"):
        clf.fit(np.eye(4), [0, 1, 0, 1])
