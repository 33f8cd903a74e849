from itertools import pairwise

import numpy as np
import torch
from numpy.testing import assert_allclose

from robustsk.losses import trades_loss

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
