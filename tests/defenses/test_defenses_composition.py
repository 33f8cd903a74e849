"""Every defence with every adversary, head, weight perturbation and augmentation."""

import inspect

import numpy as np
import pytest
import torch
from defense_paths import TRAINING, one_of_each
from numpy.testing import assert_array_equal
from sklearn.model_selection import GridSearchCV

from robustsk import (
    APGD,
    DRA,
    MIM,
    PGD,
    TAMOO,
    DynamicPGD,
    FriendlyPGD,
    GeometryAwarePGD,
    HypersphereHead,
    PGDATClassifier,
    SPATClassifier,
    TRADESClassifier,
)
from robustsk.defenses import dra_grid, spat_component_grid, spat_sensitivity_grid, trade_off_grid
from robustsk.models import CosineLinear
from robustsk.training import AWP, UDRAdversary

ADVERSARIES = [
    PGD(norm=2, eps=0.3, n_steps=2),
    FriendlyPGD(eps=0.1, n_steps=2, random_start="gaussian"),
    GeometryAwarePGD(eps=0.1, n_steps=2),
    DynamicPGD(eps=0.1, n_steps=2),
    MIM(eps=0.1, n_steps=2),
    APGD(eps=0.1, n_steps=3),
    DRA(eps=0.3, n_steps=2),
    TAMOO(eps=0.1, n_steps=2),
    UDRAdversary(eps=0.1, n_steps=2),
]


def weights(clf):
    return np.concatenate([p.detach().numpy().ravel() for p in clf.module_.parameters()])


@pytest.fixture(scope="module")
def untrained():
    """Weights of each defence before its training."""
    return {}


@pytest.mark.parametrize("adversary", ADVERSARIES, ids=lambda adversary: type(adversary).__name__)
def test_adversaries(cls, make, data, adversary, untrained):
    """It trains, or says which adversary it needs."""
    if cls not in untrained:
        untrained[cls] = weights(make(cls, max_epochs=0).fit(*data))
    try:
        clf = make(cls, adversary=adversary, max_epochs=1).fit(*data)
    except (TypeError, ValueError) as error:
        if "adversary" not in str(error):
            raise
        return
    assert type(clf.adversary_) is type(adversary)
    assert np.isfinite(clf.history_[:, "train_loss"]).all()
    assert not np.array_equal(weights(clf), untrained[cls])
    assert 0 <= clf.score_adversarial(*data, attack=PGD(eps=0.1, n_steps=2)) <= clf.score(*data)


def test_head(cls, make, data):
    if inspect.signature(cls).parameters["head"].default is not None:
        pytest.skip("has a head of its own")
    clf = make(cls, head=HypersphereHead(s=7.0, m=0.1), max_epochs=1).fit(*data)
    if clf.head_ is None or not isinstance(clf.head_, HypersphereHead):
        pytest.fail("the head was passed over")
    assert any(isinstance(m, CosineLinear) for m in clf.module_.modules())
    assert np.isfinite(clf.history_[:, "train_loss"]).all()
    clf.set_params(head__m=0.3).fit(*data)
    assert clf.head_.m == 0.3


@one_of_each(*TRAINING)
def test_weight_perturbation(cls, make, data):
    plain = make(cls, weight_perturbation=None).fit(*data)
    none = make(cls, weight_perturbation=AWP(gamma=0.0)).fit(*data)
    some = make(cls, weight_perturbation=AWP(gamma=0.05)).fit(*data)
    assert_array_equal(weights(none), weights(plain))
    assert not np.array_equal(weights(some), weights(plain))
    assert np.isfinite(some.history_[:, "train_loss"]).all()
    assert_array_equal(
        weights(make(cls, weight_perturbation=AWP(gamma=0.05)).fit(*data)), weights(some)
    )


class Noise:
    """Count calls, and add noise."""

    n_calls = 0

    def __call__(self, x):
        type(self).n_calls += 1
        return x + 0.01 * torch.randn_like(x)


@one_of_each(*TRAINING)
def test_augmentation(cls, make, data):
    Noise.n_calls = 0
    clf = make(cls, augmentation=Noise()).fit(*data)
    assert Noise.n_calls >= 6  # three batches, two epochs
    assert_array_equal(weights(make(cls, augmentation=Noise()).fit(*data)), weights(clf))
    assert not np.array_equal(weights(make(cls).fit(*data)), weights(clf))


# --- the ablations as grids ----------------------------------------------------------


def test_components_are_those_of_the_tables():
    """Tables 3.7 and 3.8: L_nce^sp + L_rob^sp and so on down to TRADES."""
    assert [tuple(v[0] for v in part.values()) for part in spat_component_grid()] == [
        ("cosine", True, "self_paced"),
        ("cosine", False, "self_paced"),
        ("cosine", True, "kl"),
        ("cosine", False, "kl"),
        ("linear", True, "self_paced"),
        ("linear", False, "kl"),
    ]


@pytest.mark.dealt
@pytest.mark.parametrize(
    ("clf", "grid", "n"),
    [
        (SPATClassifier(), spat_sensitivity_grid(), 13),
        (SPATClassifier(), spat_component_grid(), 6),
        (PGDATClassifier(adversary=DRA(eps=0.3, n_steps=2)), dra_grid(), 5),
        (TRADESClassifier(), trade_off_grid("beta"), 8),
    ],
    ids=["sensitivity", "components", "dra", "trade-off"],
)
def test_grids_can_be_searched(clf, grid, n, data):
    clf.set_params(module="mlp", module__hidden_sizes=(8,), max_epochs=1, random_state=0)
    search = GridSearchCV(clf, grid, cv=2, error_score="raise").fit(*data)
    assert len(search.cv_results_["params"]) == n
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
