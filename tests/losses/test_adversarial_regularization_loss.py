import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from robustsk.losses import adversarial_regularization_loss, prediction_distance

RNG = np.random.default_rng(0)
CLEAN, ADV = 2 * RNG.standard_normal((2, 5, 4))
Y = np.array([0, 3, 1, 2, 0])
ROWS = np.arange(5)
DIRECTIONS = ["nat_to_adv", "adv_to_nat", "symmetric", "tv"]


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


P, Q = softmax(CLEAN), softmax(ADV)
FORWARD, BACKWARD = (P * np.log(P / Q)).sum(axis=1), (Q * np.log(Q / P)).sum(axis=1)
DISTANCE = {
    "nat_to_adv": FORWARD,
    "adv_to_nat": BACKWARD,
    "symmetric": FORWARD + BACKWARD,
    "tv": np.abs(P - Q).sum(axis=1) / 2,
}


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_distance_matches_definition(direction):
    clean, adv = torch.tensor(CLEAN), torch.tensor(ADV)
    found = prediction_distance(clean, adv, direction)
    assert_allclose(found, DISTANCE[direction], rtol=1e-10)
    # logits that all move by the same amount are the same prediction
    assert_allclose(prediction_distance(clean + 3, adv - 7, direction), found, rtol=1e-9)
    assert_allclose(prediction_distance(clean, clean + 1, direction), np.zeros(5), atol=1e-15)
    if direction == "tv":
        assert (found <= 1).all()


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("lam", [0.0, 0.1, 5.0])
def test_loss_matches_definition(direction, lam):
    found = adversarial_regularization_loss(
        torch.tensor(CLEAN), torch.tensor(ADV), torch.tensor(Y), lam, direction
    )
    assert_allclose(found, -np.log(Q[ROWS, Y]) + lam * DISTANCE[direction], rtol=1e-10)


@pytest.mark.parametrize("lam", [0.1, 1.0, 5.0, 100.0])
def test_is_a_cross_entropy_with_soft_labels(lam):
    """CE + lam KL = (1 + lam) CE(z', t) - lam H(p) with t = (onehot + lam p) / (1 + lam)."""
    adv = torch.tensor(ADV, requires_grad=True)
    loss = adversarial_regularization_loss(torch.tensor(CLEAN), adv, torch.tensor(Y), lam)
    (gradient,) = torch.autograd.grad(loss.sum(), adv)
    t = (np.eye(4)[Y] + lam * P) / (1 + lam)
    soft = -(t * np.log(Q)).sum(axis=1)
    entropy = -(P * np.log(P)).sum(axis=1)
    assert_allclose(loss.detach(), (1 + lam) * soft - lam * entropy, rtol=1e-10)
    assert_allclose(gradient, (1 + lam) * (Q - t), rtol=1e-10, atol=1e-13)


def test_a_binary_example_by_hand():
    """Logit -1, label 1, shifts of at most 3: the maximum is at +2, not where CE points to."""

    def softplus(z):
        return np.log1p(np.exp(z))

    p = 1 / (1 + np.e)
    shifted = np.linspace(-4, 2, 601)
    zeros = np.zeros_like(shifted)
    found = adversarial_regularization_loss(
        torch.tensor(np.stack([zeros, zeros - 1], 1)),
        torch.tensor(np.stack([zeros, shifted], 1)),
        torch.ones(601, dtype=torch.int64),
        10.0,
    ).numpy()
    kl = softplus(shifted) - p * shifted - softplus(-1) - p
    assert_allclose(found, softplus(-shifted) + 10 * kl, rtol=1e-9, atol=1e-9)
    assert shifted[found.argmax()] == 2
    assert_allclose([found[0], found[-1]], [9.135, 10.195], atol=5e-4)


def test_gradient_flows_through_both():
    clean, adv = (torch.tensor(v, requires_grad=True) for v in (CLEAN, ADV))
    y = torch.tensor(Y)
    for direction in DIRECTIONS:
        loss = adversarial_regularization_loss(clean, adv, y, 2.0, direction).sum()
        grads = torch.autograd.grad(loss, (clean, adv))
        assert all(grad.abs().min() > 0 for grad in grads)


def test_unknown_direction():
    with pytest.raises(ValueError, match=r"kl_direction must be one of.*'forward'"):
        prediction_distance(torch.zeros(1, 2), torch.zeros(1, 2), "forward")
