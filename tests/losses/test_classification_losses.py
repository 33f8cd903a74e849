import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from robustsk.losses import dlr, dlr_targeted, entropy, kl_divergence, kl_terms, margin

LOGITS = torch.tensor([[4.0, 3.0, 1.0, -1.0], [0.5, 2.0, -3.0, 1.0]], dtype=torch.float64)
Y = torch.tensor([0, 3])
fast = settings(deadline=None, derandomize=True, max_examples=50)


def np_softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def random_logits(seed, n=4, n_classes=5, scale=3.0):
    return scale * np.random.default_rng(seed).standard_normal((n, n_classes))


# ---- divergence and entropy ----------------------------------------------------------------------


def test_kl_matches_definition():
    a, b = random_logits(0), random_logits(1)
    p, q = np_softmax(a), np_softmax(b)
    terms = p * np.log(p / q)
    assert_allclose(kl_terms(torch.tensor(a), torch.tensor(b)), terms, rtol=1e-12)
    assert_allclose(kl_divergence(torch.tensor(a), torch.tensor(b)), terms.sum(1), rtol=1e-12)


@fast
@given(seed=st.integers(0, 10_000), scale=st.floats(0.01, 30))
def test_kl_is_nonnegative_and_shift_invariant(seed, scale):
    a = torch.tensor(random_logits(seed, scale=scale))
    b = torch.tensor(random_logits(seed + 1, scale=scale))
    kl = kl_divergence(a, b)
    assert (kl >= 0).all()
    assert_allclose(kl_divergence(a + 7, b - 3), kl, rtol=1e-9, atol=1e-12)
    assert_allclose(kl_divergence(a, a), 0)


def test_kl_gradients_match_finite_differences():
    a = torch.tensor(random_logits(2), requires_grad=True)
    b = torch.tensor(random_logits(3), requires_grad=True)
    assert torch.autograd.gradcheck(kl_divergence, (a, b))
    assert torch.autograd.gradcheck(kl_terms, (a, b))


def test_kl_gradients_have_closed_forms():
    a = torch.tensor(random_logits(4), requires_grad=True)
    b = torch.tensor(random_logits(5), requires_grad=True)
    kl = kl_divergence(a, b)
    grad_a, grad_b = torch.autograd.grad(kl.sum(), (a, b))
    p, q = np_softmax(a.detach().numpy()), np_softmax(b.detach().numpy())
    log_ratio = np.log(p / q)
    expected = p * (log_ratio - (p * log_ratio).sum(1, keepdims=True))
    assert_allclose(grad_a, expected, atol=1e-12)
    assert_allclose(grad_b, q - p, atol=1e-12)


def test_entropy_hand_values():
    p = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.25] * 4], dtype=torch.float64)
    assert_allclose(entropy(p.log()), [0.940448, np.log(4)], atol=1e-6)
    assert_allclose(entropy(torch.tensor([[0.0, 500.0]])), 0.0)


@fast
@given(seed=st.integers(0, 10_000), scale=st.floats(0, 100))
def test_entropy_bounds(seed, scale):
    h = entropy(torch.tensor(random_logits(seed, scale=scale)))
    assert (h >= 0).all()
    assert (h <= np.log(5) + 1e-12).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits_stay_finite(dtype):
    a = torch.tensor([[1e4, -1e4, 0.0]], dtype=dtype, requires_grad=True)
    b = torch.tensor([[-1e4, 1e4, 0.0]], dtype=dtype, requires_grad=True)
    kl, h = kl_divergence(a, b), entropy(a)
    (kl + h).sum().backward()
    assert kl.dtype == h.dtype == dtype
    assert kl.item() == pytest.approx(2e4)
    assert h.item() == 0
    assert torch.isfinite(a.grad).all()
    assert torch.isfinite(b.grad).all()


# ---- logit differences ---------------------------------------------------------------------------


def test_margin_hand_values():
    assert_allclose(margin(LOGITS, Y), [3 - 4, 2 - 1])


def test_margin_two_classes():
    assert_allclose(margin(torch.tensor([[1.0, 3.0]]), torch.tensor([0])), [2.0])
    with pytest.raises(ValueError, match="2 classes"):
        margin(torch.zeros(1, 1), torch.tensor([0]))


def test_margin_gradient():
    z = LOGITS.clone().requires_grad_()
    margin(z, Y).sum().backward()
    assert_allclose(z.grad, [[-1, 1, 0, 0], [0, 1, 0, -1]])


def test_dlr_hand_values():
    # Sorted rows: (4, 3, 1, -1) and (2, 1, 0.5, -3).
    assert_allclose(dlr(LOGITS, Y), [-(4 - 3) / (4 - 1), -(1 - 2) / (2 - 0.5)], rtol=1e-10)


def test_dlr_targeted_hand_values():
    target = torch.tensor([2, 1])
    expected = [-(4 - 1) / (4 - (1 - 1) / 2), -(1 - 2) / (2 - (0.5 - 3) / 2)]
    assert_allclose(dlr_targeted(LOGITS, Y, target), expected, rtol=1e-10)


@fast
@given(
    seed=st.integers(0, 10_000),
    shift=st.floats(-50, 50),
    factor=st.floats(0.01, 100),
    y=st.integers(0, 4),
    target=st.integers(0, 4),
)
def test_dlr_is_shift_and_scale_invariant(seed, shift, factor, y, target):
    z = torch.tensor(random_logits(seed))
    y, target = torch.full((4,), y), torch.full((4,), target)
    moved = factor * z + shift
    assert_allclose(dlr(moved, y), dlr(z, y), rtol=1e-6, atol=1e-7)
    assert_allclose(
        dlr_targeted(moved, y, target), dlr_targeted(z, y, target), rtol=1e-6, atol=1e-7
    )
    assert_allclose(margin(moved, y), factor * margin(z, y), rtol=1e-9, atol=1e-9)


@fast
@given(seed=st.integers(0, 10_000), y=st.integers(0, 4))
def test_sign_tells_misclassification(seed, y):
    z = random_logits(seed)
    wrong = z.argmax(1) != y
    y = torch.full((4,), y)
    loss = dlr(torch.tensor(z), y).numpy()
    assert ((loss > 0) == wrong).all()
    assert ((margin(torch.tensor(z), y).numpy() > 0) == wrong).all()
    assert (loss >= -1).all()


def test_dlr_gradients_match_finite_differences():
    z = LOGITS.clone().requires_grad_()
    target = torch.tensor([2, 1])
    assert torch.autograd.gradcheck(lambda z: dlr(z, Y), (z,))
    assert torch.autograd.gradcheck(lambda z: dlr_targeted(z, Y, target), (z,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dlr_of_tied_logits_is_finite(dtype):
    z = torch.ones(2, 4, dtype=dtype)
    assert_allclose(dlr(z, torch.tensor([0, 1])), 0)
    assert_allclose(dlr_targeted(z, torch.tensor([0, 1]), torch.tensor([1, 2])), 0)


def test_dlr_needs_enough_classes():
    y = torch.tensor([0])
    with pytest.raises(ValueError, match="3 classes"):
        dlr(torch.zeros(1, 2), y)
    with pytest.raises(ValueError, match="4 classes"):
        dlr_targeted(torch.zeros(1, 3), y, y)
