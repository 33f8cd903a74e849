"""``eps=None`` is one radius, wherever an attack stands."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from test_attacks_autoattack import shorten

from robustsk import robustness_report
from robustsk.attacks import (
    APGD,
    BPDA,
    DRA,
    EOT,
    FAB,
    PGD,
    AutoAttack,
    CarliniWagner,
    DeepFool,
    MultiTargeted,
    SquareAttack,
    TransferAttack,
)
from robustsk.attacks.threat import DEFAULT_EPS
from robustsk.inspection import RobustnessCurveDisplay
from robustsk.metrics import score_adversarial

#: In the 1-norm 12 is more than any sample here withstands.
FEW = 12
IN_DEFAULT_RUN = [("standard", 2), ("fast", np.inf), ("rand", 1)]
slow = pytest.mark.slow


def same(first, second, X, y):
    """Assert that two attacks do the same, and that it is neither nothing nor without a limit."""
    first, second = first.evaluate(X, y), second.evaluate(X, y)
    assert_array_equal(first.X_adv, second.X_adv)
    assert_array_equal(first.stage, second.stage)
    return first


@pytest.mark.dealt
@pytest.mark.parametrize(
    ("version", "norm"),
    [
        pytest.param(version, norm, marks=() if (version, norm) in IN_DEFAULT_RUN else slow)
        for version in ("standard", "plus", "fast", "rand")
        for norm in (np.inf, 2, 1)
    ],
)
def test_every_version_of_autoattack(images, version, norm, monkeypatch):
    shorten(monkeypatch)
    X, y = images.X[:FEW], images.y[:FEW]
    common = {"version": version, "norm": norm, "clip": (0, 1), "random_state": 0}
    eps = DEFAULT_EPS[norm]
    found = same(AutoAttack(images.net, **common), AutoAttack(images.net, eps=eps, **common), X, y)
    order = {np.inf: np.inf, 2: 2, 1: 1}[norm]
    moved = np.linalg.norm((found.X_adv - X).reshape(FEW, -1), ord=order, axis=1)
    assert moved.max() <= eps
    if norm != 1:
        assert found.robust_accuracy >= 0.5


MINIMAL = {
    "alone": FAB(n_steps=5),
    "EOT": EOT(attack=FAB(n_steps=5), n_draws=1),
    "BPDA": BPDA(attack=DeepFool()),
    "MultiTargeted": MultiTargeted(attack=FAB(n_steps=4), n_targets=3),
    "nested": EOT(attack=BPDA(attack=CarliniWagner(norm=2, n_steps=5, n_binary_steps=2))),
}


@pytest.mark.dealt
@pytest.mark.parametrize("inside", MINIMAL.values(), ids=MINIMAL)
@pytest.mark.parametrize(
    "mask", [None, pytest.param(np.arange(64).reshape(1, 8, 8) % 2 == 0, marks=slow)]
)
def test_attacks_for_the_closest_example_in_a_cascade(images, inside, mask):
    X, y = images.X[:FEW], images.y[:FEW]
    norm = 2 if inside is MINIMAL["nested"] else np.inf
    common = {"version": "custom", "attacks": [inside], "mask": mask, "norm": norm}
    common |= {"clip": (0, 1), "random_state": 0}
    given = AutoAttack(images.net, eps=DEFAULT_EPS[norm], **common)
    found = same(AutoAttack(images.net, **common), given, X, y)
    assert found.robust_accuracy >= 0.5
    assert_array_equal(found.X_adv[found.stage == -1], X[found.stage == -1])


def test_alone_there_is_no_limit_for_them(images):
    """As their documentation says."""
    X, y = images.X[:FEW], images.y[:FEW]
    for attack in (FAB(n_steps=5), EOT(attack=FAB(n_steps=5), n_draws=1)):
        attack.set_params(clip=(0, 1), random_state=0)
        assert score_adversarial(images.net, X, y, attack) < 0.5


WRAPPED = {
    "EOT": EOT(attack=PGD(n_steps=2), n_draws=1),
    "BPDA": BPDA(attack=APGD(n_steps=3)),
    "MultiTargeted": MultiTargeted(attack=PGD(n_steps=2), n_targets=2),
    "TransferAttack": TransferAttack(attack=PGD(n_steps=2)),
    "SquareAttack": SquareAttack(max_queries=10),
}


@pytest.mark.parametrize("attack", WRAPPED.values(), ids=WRAPPED)
def test_wrappers(images, attack):
    X = images.X[:FEW]
    attack = attack.set_params(estimator=images.net, clip=(0, 1), random_state=0)
    found = attack.generate(X)
    assert_allclose(np.abs(found - X).max(), 8 / 255, rtol=1e-6)
    assert_array_equal(found, attack._with(eps=8 / 255).generate(X))


def test_reports(images):
    X, y = images.X[:FEW], images.y[:FEW]
    attacks = {"FAB": FAB(n_steps=5), "EOT": EOT(attack=FAB(n_steps=5), n_draws=1), "PGD": PGD()}
    reports = [
        robustness_report(
            images.net, X, y, attacks=attacks, eps=eps, clip=(0, 1), red_flags=False, random_state=0
        )
        for eps in (None, 8 / 255)
    ]
    assert reports[0].eps == 8 / 255
    for name, row in reports[0].rows.items():
        assert row.accuracy == reports[1].rows[name].accuracy > 0.5


@pytest.mark.dealt
@pytest.mark.parametrize(
    ("attack", "default"),
    [
        (PGD(n_steps=2), 8 / 255),
        (FAB(n_steps=2), 8 / 255),
        (FAB(n_steps=2, eps=np.inf), 8 / 255),
        (EOT(attack=FAB(n_steps=2), n_draws=1), 8 / 255),
        (DRA(n_steps=2), 12),
        (DRA(n_steps=2, eps_unit="mean"), 1 / 255),
    ],
)
def test_curves_reach_twice_the_default(images, attack, default):
    pytest.importorskip("matplotlib")
    attack = attack.set_params(clip=(0, 1), random_state=0)
    display = RobustnessCurveDisplay.from_estimator(
        images.net, images.X[:1], images.y[:1], attack=attack
    )
    assert_allclose(display.eps[-1], 2 * default)
