from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from robustsk.losses import binary_trades_loss, trades_loss

RNG = np.random.default_rng(0)
CLEAN, ADV = 2 * RNG.standard_normal((2, 5, 4))
Y = np.array([0, 3, 1, 2, 0])


def np_log_softmax(z):
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def np_trades(beta):
    log_p, log_q = np_log_softmax(CLEAN), np_log_softmax(ADV)
    return -log_p[np.arange(5), Y] + beta * (np.exp(log_p) * (log_p - log_q)).sum(1)


def call(beta, clean=CLEAN, adv=ADV, **kwargs):
    return trades_loss(torch.tensor(clean), torch.tensor(adv), torch.tensor(Y), beta, **kwargs)


def test_matches_definition():
    for beta in (0.5, 1.0, 6.0):
        assert_allclose(call(beta), np_trades(beta), rtol=1e-12)
    default = trades_loss(torch.tensor(CLEAN), torch.tensor(ADV), torch.tensor(Y))
    assert_allclose(default, np_trades(6.0), rtol=1e-12)


def test_beta_zero_is_cross_entropy():
    assert_allclose(call(0.0), -np_log_softmax(CLEAN)[np.arange(5), Y], rtol=1e-12)


def test_identical_outputs_leave_cross_entropy():
    assert_allclose(call(6.0, adv=CLEAN), call(0.0), rtol=1e-12)


def test_is_nondecreasing_in_beta():
    losses = [call(beta) for beta in (0, 1, 2, 6)]
    assert all((high >= low).all() for low, high in pairwise(losses))


def test_gradients_of_both_arguments_match_finite_differences():
    clean = torch.tensor(CLEAN, requires_grad=True)
    adv = torch.tensor(ADV, requires_grad=True)
    y = torch.tensor(Y)
    assert torch.autograd.gradcheck(lambda a, b: trades_loss(a, b, y, 3.0), (clean, adv))
    grads = torch.autograd.grad(trades_loss(clean, adv, y, 3.0).sum(), (clean, adv))
    assert all(grad.abs().min() > 0 for grad in grads)


def test_float32():
    loss = trades_loss(torch.tensor(CLEAN).float(), torch.tensor(ADV).float(), torch.tensor(Y))
    assert loss.dtype == torch.float32
    assert_allclose(loss, np_trades(6.0), rtol=1e-4)


# --- two classes -----------------------------------------------------------------------

F, F_ADV = 2 * RNG.standard_normal((2, 6))
SIGNS = np.array([1, -1, 1, 1, -1, -1])
PHI = {
    "logistic": lambda a: np.log(1 + np.exp(-a)),
    "hinge": lambda a: np.maximum(1 - a, 0),
    "exponential": lambda a: np.exp(-a),
}


def binary(beta, phi="logistic", y=SIGNS, f_adv=F_ADV):
    return binary_trades_loss(torch.tensor(F), torch.tensor(f_adv), torch.tensor(y), beta, phi)


@pytest.mark.parametrize("phi", PHI)
@pytest.mark.parametrize("beta", [0.5, 1.0, 6.0])
def test_of_two_classes_matches_eq_3(phi, beta):
    expected = PHI[phi](F * SIGNS) + PHI[phi](F * F_ADV * beta)
    assert_allclose(binary(beta, phi), expected, rtol=1e-12)


@pytest.mark.parametrize("phi", PHI)
def test_of_two_classes_bounds_both_errors(phi):
    """phi(a) is at least 1 (log 2) where the sign is wrong, and where it changes."""
    unit = np.log(2) if phi == "logistic" else 1
    errors = (F * SIGNS < 0).astype(int) + (F * F_ADV < 0)
    assert set(errors) >= {0, 1}
    assert (binary(1.0, phi).numpy() >= unit * errors).all()


def test_of_two_classes_without_beta_is_the_cross_entropy():
    logits = torch.tensor(np.stack([np.zeros(6), F], 1))
    natural = torch.nn.functional.cross_entropy(
        logits, torch.tensor((SIGNS + 1) // 2), reduction="none"
    )
    assert_allclose(binary(0.0), natural + np.log(2), rtol=1e-12)


def test_of_two_classes_has_both_gradients():
    f, f_adv = (torch.tensor(v, requires_grad=True) for v in (F, F_ADV))
    y = torch.tensor(SIGNS)
    assert torch.autograd.gradcheck(lambda a, b: binary_trades_loss(a, b, y, 3.0), (f, f_adv))
    grads = torch.autograd.grad(binary_trades_loss(f, f_adv, y, 3.0).sum(), (f, f_adv))
    assert all(grad.abs().min() > 0 for grad in grads)


def test_of_two_classes_does_not_take_class_indices():
    with pytest.raises(ValueError, match=r"-1 and 1, got \[0, 1\]"):
        binary(1.0, y=(SIGNS + 1) // 2)
    with pytest.raises(ValueError, match="phi must be one of"):
        binary(1.0, "square")
