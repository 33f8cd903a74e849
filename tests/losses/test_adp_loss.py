import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from robustsk.losses import adp_loss, adp_regularizer, log_det_diversity

fast = settings(deadline=None, derandomize=True, max_examples=40)
seeds = st.integers(0, 10_000)


def random_logits(seed, *shape, scale=2.0):
    return scale * np.random.default_rng(seed).standard_normal(shape)


def np_softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def np_log_det(z, y, offset=1e-6):
    """One sample at a time: drop the true class, normalise, take the determinant."""
    p = np_softmax(z)
    found = []
    for i, label in enumerate(y):
        rows = np.delete(p[:, i], label, axis=1)
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        found.append(np.linalg.slogdet(rows @ rows.T + offset * np.eye(len(z)))[1])
    return np.array(found)


def np_entropy(p):
    return -(p * np.log(p)).sum(axis=-1)


@fast
@given(
    seed=seeds,
    n_members=st.integers(1, 4),
    n_classes=st.integers(2, 6),
    alpha=st.floats(0, 3),
    beta=st.floats(0, 2),
)
def test_matches_the_definition(seed, n_members, n_classes, alpha, beta):
    z = random_logits(seed, n_members, 5, n_classes)
    y = np.random.default_rng(seed).integers(0, n_classes, 5)
    tz, ty = torch.tensor(z), torch.tensor(y)
    spread = np_log_det(z, y)
    # a singular determinant is rounding added to the offset
    assert_allclose(log_det_diversity(tz, ty), spread, atol=1e-7)
    p = np_softmax(z)
    regularizer = alpha * np_entropy(p.mean(axis=0)) + beta * spread
    assert_allclose(adp_regularizer(tz, ty, alpha=alpha, beta=beta), regularizer, atol=1e-6)
    ce = -np.log(p[:, np.arange(5), y]).sum(axis=0)
    loss = adp_loss(tz, ty, alpha=alpha, beta=beta)
    assert loss.shape == (5,)
    assert_allclose(loss, ce - regularizer, atol=1e-6)
    assert_allclose(adp_loss(list(tz), ty, alpha=alpha, beta=beta), loss, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_members_that_agree(dtype):
    z = torch.tensor(random_logits(0, 1, 6, 4), dtype=dtype).expand(2, 6, 4)
    y = torch.arange(6) % 4
    assert_allclose(log_det_diversity(z, y), np.full(6, -13.1224), atol=1e-4)
    assert math.log(2.000001e-6) == pytest.approx(-13.1224, abs=1e-4)
    three = torch.tensor(random_logits(0, 1, 6, 4), dtype=dtype).expand(3, 6, 4)
    assert_allclose(log_det_diversity(three, y), math.log(3 + 1e-6) + 2 * math.log(1e-6), rtol=1e-5)
    assert_allclose(log_det_diversity(z, y, det_offset=0.5), math.log(2.5 * 0.5), rtol=1e-6)


def test_members_at_right_angles():
    z = torch.full((3, 1, 4), -60.0, dtype=torch.float64)
    z[:, :, 0] = 0.0  # the true class
    for n in range(3):
        z[n, 0, 1 + n] = -5.0
    assert_allclose(log_det_diversity(z, torch.tensor([0])), [3 * math.log1p(1e-6)], atol=1e-12)


@fast
@given(seed=seeds)
def test_order_and_scale_do_not_matter(seed):
    z, y = torch.tensor(random_logits(seed, 3, 5, 6)), torch.arange(5)
    found = log_det_diversity(z, y)
    assert_allclose(log_det_diversity(z[[2, 0, 1]], y), found, rtol=1e-8)
    assert_allclose(adp_regularizer(z[[2, 0, 1]], y), adp_regularizer(z, y), rtol=1e-8)
    # the true class's own entry, and with it the share that is left to the others
    changed = z.clone()
    changed[1, torch.arange(5), y] += 7.0
    assert_allclose(log_det_diversity(changed, y), found, rtol=1e-8)


def test_gradient_is_that_of_the_definition():
    z, y = torch.tensor(random_logits(1, 3, 4, 5), requires_grad=True), torch.tensor([0, 1, 2, 4])
    assert torch.autograd.gradcheck(lambda z: adp_loss(z, y), (z,), atol=1e-6)
    (gradient,) = torch.autograd.grad(log_det_diversity(z, y).sum(), z)
    assert (gradient[:, torch.arange(4), y] == 0).all()
    assert_allclose(gradient.sum(dim=2), 0, atol=1e-12)  # a constant added to logits does nothing


def test_two_classes_have_nothing_to_disagree_about():
    z = torch.tensor(random_logits(2, 2, 5, 2), requires_grad=True)
    y = torch.tensor([0, 1, 0, 1, 1])
    found = log_det_diversity(z, y)
    assert_allclose(found.detach(), math.log(2.000001e-6), rtol=1e-6)
    (gradient,) = torch.autograd.grad(found.sum(), z)
    assert_allclose(gradient, 0, atol=1e-9)


@pytest.mark.parametrize("kind", ["same", "sure", "very sure"])
def test_single_precision_is_enough(kind):
    """Finite and close to double precision where what is left for the wrong classes is tiny."""
    z = random_logits(3, 2, 6, 5)
    y = np.arange(6) % 5
    if kind == "same":
        z[1] = z[0]
    else:
        z[:, np.arange(6), y] += 30 if kind == "sure" else 1e4
    exact = log_det_diversity(torch.tensor(z.astype(np.float32)).double(), torch.tensor(y))
    rough = torch.tensor(z, dtype=torch.float32, requires_grad=True)
    loss = adp_loss(rough, torch.tensor(y))
    assert loss.dtype == torch.float32
    assert_allclose(log_det_diversity(rough, torch.tensor(y)).detach(), exact, rtol=1e-5)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(rough.grad).all()


def test_weights_of_zero_leave_the_sum_of_the_losses():
    z, y = torch.tensor(random_logits(4, 3, 5, 4)), torch.tensor([0, 1, 2, 3, 0])
    expected = sum(torch.nn.functional.cross_entropy(m, y, reduction="none") for m in z)
    assert_allclose(adp_loss(z, y, alpha=0, beta=0), expected, rtol=1e-12)
    twice = adp_loss(z, y, alpha=0, beta=0, classification_loss=lambda z, y: z[:, 0])
    assert_allclose(twice, z[:, :, 0].sum(dim=0), rtol=1e-12)
