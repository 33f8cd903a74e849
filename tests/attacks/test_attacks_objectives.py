import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch.nn import functional as F

from robustsk.attacks import BIM, PGD, Objective
from robustsk.attacks.objectives import OBJECTIVES, resolve_objective

LOGITS = torch.tensor([[2.0, 0.5, -1.0, 0.0], [1.0, 3.0, 2.5, -2.0]], dtype=torch.float64)
Y = torch.tensor([0, 2])
TARGET = torch.tensor([1, 3])


def np_log_softmax(z):
    z = np.asarray(z)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def value(name, target=None, clean=None, logits=LOGITS):
    return resolve_objective(name)(logits, Y, target, clean)


def test_cross_entropy():
    log_p = np_log_softmax(LOGITS)
    assert_allclose(value("ce"), [-log_p[0, 0], -log_p[1, 2]])
    assert_allclose(value("ce", TARGET), [log_p[0, 1], log_p[1, 3]])


def test_margin():
    assert_allclose(value("cw"), [0.5 - 2.0, 3.0 - 2.5])
    # the target against the best of the others, however it compares with the truth
    assert_allclose(value("cw", TARGET), [0.5 - 2.0, -2.0 - 3.0])


def test_difference_of_logits_ratio():
    assert_allclose(value("dlr"), [(0.5 - 2) / (2 - 0), (3 - 2.5) / (3 - 1)])
    expected = [(0.5 - 2) / (2 - (0 - 1) / 2), (-2 - 2.5) / (3 - (1 - 2) / 2)]
    assert_allclose(value("dlr", TARGET), expected)


def test_divergence_from_the_clean_prediction():
    clean = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0]], dtype=torch.float64)
    log_p, log_q = np_log_softmax(clean), np_log_softmax(LOGITS)
    assert_allclose(value("kl", clean=clean), (np.exp(log_p) * (log_p - log_q)).sum(1))
    assert_allclose(value("kl", clean=LOGITS), [0, 0], atol=1e-15)
    assert_allclose(value("kl", TARGET, clean), value("ce", TARGET))


def test_only_the_divergence_needs_clean_logits():
    assert {name for name, o in OBJECTIVES.items() if o.needs_clean} == {"kl"}


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_targeted_values_rise_with_the_target(name):
    clean = torch.zeros_like(LOGITS)
    better = LOGITS.clone()
    better[range(2), TARGET] += 0.3
    assert (value(name, TARGET, clean, better) > value(name, TARGET, clean)).all()


@pytest.mark.parametrize("name", ["ce", "cw", "dlr"])
def test_untargeted_values_fall_with_the_truth(name):
    better = LOGITS.clone()
    better[range(2), Y] += 0.3
    assert (value(name, logits=better) < value(name)).all()


@pytest.mark.parametrize("name", ["cw", "dlr"])
def test_sign_tells_whether_the_sample_is_fooled(name):
    assert ((value(name) > 0) == (LOGITS.argmax(1) != Y)).all()


@pytest.mark.parametrize("target", [None, TARGET], ids=["untargeted", "targeted"])
@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_gradients_match_finite_differences(name, target):
    clean = torch.tensor([[1.0, 0.0, 0.2, 0.0], [0.0, 1.0, 1.0, 0.1]], dtype=torch.float64)
    logits = LOGITS.clone().requires_grad_(True)
    objective = resolve_objective(name)
    assert torch.autograd.gradcheck(lambda z: objective(z, Y, target, clean), (logits,))


@pytest.mark.parametrize(("n_classes", "target"), [(2, None), (2, True), (3, True)])
def test_dlr_of_too_few_classes_is_the_margin(n_classes, target):
    logits, y = LOGITS[:, :n_classes], torch.tensor([0, 1])
    target = 1 - y if target else None
    with pytest.warns(UserWarning, match=r"DLR objective compares .* logits.*'cw'"):
        found = resolve_objective("dlr")(logits, y, target)
    assert_allclose(found, resolve_objective("cw")(logits, y, target))


def test_dlr_of_enough_classes_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resolve_objective("dlr")(LOGITS[:, :3], Y)
        resolve_objective("dlr")(LOGITS, Y, TARGET)


def test_resolve():
    assert resolve_objective(None) is OBJECTIVES["ce"]
    mine = Objective(lambda logits, y, target, clean: logits[:, 0], needs_clean=True)
    assert resolve_objective(mine) is mine
    with pytest.raises(
        ValueError, match=r"'CE' is unknown; use one of \['ce', 'cw', 'dlr', 'kl'\]"
    ):
        resolve_objective("CE")
    with pytest.raises(TypeError, match="must be a name or a callable, got float"):
        resolve_objective(1.0)


def test_callable_is_ascended_or_descended_towards_the_target():
    def loss(logits, y):
        return F.cross_entropy(logits, y, reduction="none")

    mine = resolve_objective(loss)
    assert_allclose(mine(LOGITS, Y), value("ce"))
    assert_allclose(mine(LOGITS, Y, TARGET), value("ce", TARGET))


@pytest.mark.parametrize(
    ("function", "returned"),
    [
        (lambda logits, y: logits.mean(), r"\(\)"),
        (lambda logits, y: logits, r"\(2, 4\)"),
        (lambda logits, y: logits[:1, 0], r"\(1,\)"),
        (lambda logits, y: 1.0, "float"),
        (lambda logits, y: logits[:, :1], r"\(2, 1\)"),
    ],
    ids=["scalar", "matrix", "short", "number", "column"],
)
def test_callable_of_the_wrong_shape(function, returned):
    with pytest.raises(
        ValueError, match=rf"shape \(2,\); it returned {returned}.*reduction='none'"
    ):
        resolve_objective(function)(LOGITS, Y)


def test_callable_that_returns_nothing_in_a_targeted_attack():
    with pytest.raises(ValueError, match="one loss per sample"):
        resolve_objective(lambda logits, y: None)(LOGITS, Y, TARGET)


def test_callable_receives_the_target(table):
    seen = []

    def loss(logits, y):
        seen.append(y.clone())
        return F.cross_entropy(logits, y, reduction="none")

    X, y = table.X[:30], table.y[:30]
    target = (y + 1) % 3
    common = {"eps": 0.5, "clip": None}
    found = BIM(table.net, objective=loss, target=target, **common).generate(X, y)
    assert seen
    assert all((labels.numpy() == target).all() for labels in seen)
    np.testing.assert_array_equal(found, BIM(table.net, target=target, **common).generate(X, y))
    seen.clear()
    BIM(table.net, objective=loss, **common).generate(X, y)
    assert all((labels.numpy() == y).all() for labels in seen)


def test_own_objective_of_the_attack_goes_before_that_of_the_caller(table):
    x, y = torch.tensor(table.X[:20]), torch.tensor(table.y[:20])
    common = {"eps": 0.3, "clip": None, "random_state": 0, "norm": 2}
    by_caller = PGD(**common).perturb(table.net, x, y, "cw")
    assert not torch.equal(by_caller, PGD(**common).perturb(table.net, x, y))
    assert torch.equal(by_caller, PGD(objective="cw", **common).perturb(table.net, x, y))
    assert torch.equal(by_caller, PGD(objective="cw", **common).perturb(table.net, x, y, "ce"))


def test_divergence_attack_needs_a_start_off_the_sample(table):
    # the divergence has no gradient at the clean point, so a random start makes the difference
    x, y = torch.tensor(table.X[:20]), torch.tensor(table.y[:20])
    common = {"eps": 0.3, "clip": None, "objective": "kl"}
    started = PGD(random_state=0, **common).perturb(table.net, x, y)
    assert (started - x).abs().max() > 0.29
    clean, moved = table.net(x), table.net(started)
    assert resolve_objective("kl")(moved, y, None, clean).mean() > 0.1
    unstarted = PGD(random_start="none", **common).perturb(table.net, x, y)
    with_none = resolve_objective("kl")(table.net(unstarted), y, None, clean)
    assert with_none.mean() < resolve_objective("kl")(moved, y, None, clean).mean()
