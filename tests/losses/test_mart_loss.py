import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from robustsk.losses import boosted_cross_entropy, mart_loss

RNG = np.random.default_rng(0)
CLEAN, ADV = 2 * RNG.standard_normal((2, 5, 4))
Y = np.array([0, 3, 1, 2, 0])
ROWS = np.arange(5)


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def np_bce(z, y):
    p = softmax(z)
    wrong = p.copy()
    wrong[np.arange(len(y)), y] = -1
    return -np.log(p[np.arange(len(y)), y]) - np.log(1 - wrong.max(axis=1))


def np_mart(beta):
    p, q = softmax(CLEAN), softmax(ADV)
    return np_bce(ADV, Y) + beta * (p * np.log(p / q)).sum(axis=1) * (1 - p[ROWS, Y])


def call(beta, clean=CLEAN, adv=ADV):
    return mart_loss(torch.tensor(clean), torch.tensor(adv), torch.tensor(Y), beta)


def test_matches_definition():
    for beta in (0.0, 1.0, 6.0):
        assert_allclose(call(beta), np_mart(beta), rtol=1e-12)
    default = mart_loss(torch.tensor(CLEAN), torch.tensor(ADV), torch.tensor(Y))
    assert_allclose(default, np_mart(6.0), rtol=1e-12)


def test_beta_zero_is_the_boosted_cross_entropy():
    assert_allclose(call(0.0), boosted_cross_entropy(torch.tensor(ADV), torch.tensor(Y)))


def test_identical_outputs_leave_the_boosted_cross_entropy():
    assert_allclose(call(6.0, adv=CLEAN), np_bce(CLEAN, Y), rtol=1e-12)


def test_weight_of_the_divergence_lies_between_0_and_1():
    divergence = (call(2.0) - call(1.0)).numpy()
    p, q = softmax(CLEAN), softmax(ADV)
    whole = (p * np.log(p / q)).sum(axis=1)
    assert (divergence >= 0).all()
    assert (divergence <= whole).all()
    # hardly any weight where the clean sample is recognised beyond doubt
    sure = torch.full((1, 3), -20.0, dtype=torch.float64)
    sure[0, 1] = 20.0
    value = mart_loss(sure, torch.zeros_like(sure), torch.tensor([1]), 1.0)
    assert_allclose(value, np_bce(np.zeros((1, 3)), np.array([1])), rtol=1e-12)


def test_two_classes_give_twice_the_cross_entropy():
    z = 3 * RNG.standard_normal((6, 2))
    y = np.array([0, 1, 0, 1, 0, 1])
    expected = -2 * np.log(softmax(z)[np.arange(6), y])
    assert_allclose(boosted_cross_entropy(torch.tensor(z), torch.tensor(y)), expected, rtol=1e-12)


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="at least 2 classes"):
        boosted_cross_entropy(torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64))


@pytest.mark.parametrize("scale", [30.0, 1e3, 1e4])
def test_extreme_logits_in_float32(scale):
    """1 - p rounds to zero there; its logarithm is about the negative distance of the logits."""
    z = torch.tensor([[0.0, scale, -scale]], requires_grad=True)
    loss = boosted_cross_entropy(z, torch.tensor([0]))
    # -log p_0 = scale, and 1 - p_1 = p_0 + p_2
    assert_allclose(loss.detach(), [2 * scale], rtol=1e-6)
    (gradient,) = torch.autograd.grad(loss.sum(), z)
    assert_allclose(gradient, [[-2.0, 2.0, 0.0]], atol=1e-6)
    clean = z.detach().clone().requires_grad_()
    loss = mart_loss(clean, -z, torch.tensor([0]))
    gradients = torch.autograd.grad(loss.sum(), (clean, z))
    assert all(torch.isfinite(g).all() for g in (loss, *gradients))


def test_gradients_are_those_of_the_formula_the_weight_included():
    clean, adv = (torch.tensor(v, requires_grad=True) for v in (CLEAN, ADV))
    y = torch.tensor(Y)
    found = torch.autograd.grad(mart_loss(clean, adv, y, 3.0).sum(), (clean, adv))
    p, q = clean.softmax(1), adv.softmax(1)
    rows = torch.arange(5)
    wrong = q.scatter(1, y[:, None], -1.0).max(1).values
    plain = -q[rows, y].log() - (1 - wrong).log()
    plain = plain + 3.0 * (p * (p / q).log()).sum(1) * (1 - p[rows, y])
    for a, b in zip(found, torch.autograd.grad(plain.sum(), (clean, adv)), strict=True):
        assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def test_a_classification_loss_of_ones_own_takes_the_first_place():
    y = torch.tensor(Y)
    own = mart_loss(
        torch.tensor(CLEAN), torch.tensor(ADV), y, 6.0, classification_loss=lambda z, y: z[:, 0]
    )
    ce = -np.log(softmax(ADV)[ROWS, Y])
    assert_allclose(own, np_mart(6.0) - ce + ADV[:, 0], rtol=1e-10)
