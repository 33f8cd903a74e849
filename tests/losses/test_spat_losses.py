import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from robustsk.losses import (
    inconsistency,
    self_paced_consistency,
    self_paced_gates,
    self_paced_loss,
    spat_loss,
    trades_loss,
)

fast = settings(deadline=None, derandomize=True, max_examples=50)
seeds = st.integers(0, 10_000)


def random_cos(seed, n=6, n_classes=10):
    return np.random.default_rng(seed).uniform(-1, 1, (n, n_classes))


def random_y(seed, n=6, n_classes=10):
    return np.random.default_rng(seed + 1).integers(0, n_classes, n)


def np_gates(cos, y, beta):
    gates = cos + beta
    rows = np.arange(len(y))
    gates[rows, y] = 1 - cos[rows, y] + beta
    return gates


def np_softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def np_cross_entropy(z, y):
    return -np.log(np_softmax(z)[np.arange(len(y)), y])


def np_terms(z, z_adv):
    p, q = np_softmax(z), np_softmax(z_adv)
    return p * np.log(p / q)


def grad_wrt_cos(cos, y, **kwargs):
    cos = torch.tensor(cos, requires_grad=True)
    self_paced_loss(cos, torch.tensor(y), **kwargs).sum().backward()
    return cos.grad.numpy()


# ---- gates ---------------------------------------------------------------------------------------


def test_gates_hand_values():
    cos = torch.tensor([[0.6, 0.3, -0.5], [0.6, 0.3, -0.5]], dtype=torch.float64)
    y = torch.tensor([0, 2])
    assert_allclose(self_paced_gates(cos, y, 0.2), [[0.6, 0.5, -0.3], [0.8, 0.5, 1.7]])
    assert_allclose(self_paced_gates(cos, y, 0.2, clamp=True), [[0.6, 0.5, 0], [0.8, 0.5, 1.7]])


@fast
@given(seed=seeds, beta=st.floats(0, 1))
def test_gate_ranges_and_monotonicity(seed, beta):
    cos, y = random_cos(seed), random_y(seed)
    true = np.eye(10, dtype=bool)[y]
    gates = self_paced_gates(torch.tensor(cos), torch.tensor(y), beta).numpy()
    assert (gates[true] >= beta).all()
    assert (gates[true] <= 2 + beta).all()
    assert (gates[~true] >= beta - 1).all()
    assert (gates[~true] <= 1 + beta).all()
    raised = self_paced_gates(torch.tensor(cos + 0.01), torch.tensor(y), beta).numpy()
    assert (raised[true] < gates[true]).all()
    assert (raised[~true] > gates[~true]).all()


def test_detached_gates_carry_no_gradient():
    cos = torch.zeros(1, 3, requires_grad=True)
    assert not self_paced_gates(cos, torch.tensor([0]), detach=True).requires_grad
    assert self_paced_gates(cos, torch.tensor([0])).requires_grad


# ---- accuracy term -------------------------------------------------------------------------------


@pytest.mark.parametrize("clamp", [False, True])
@pytest.mark.parametrize("detach", [False, True])
def test_literal_form_matches_equation(detach, clamp):
    cos, y, s, beta = random_cos(0), random_y(0), 3.0, 0.3
    gates = np_gates(cos, y, beta)
    expected = np_cross_entropy((np.maximum(gates, 0) if clamp else gates) * s * cos, y)
    loss = self_paced_loss(
        torch.tensor(cos),
        torch.tensor(y),
        scale=s,
        beta=beta,
        detach_gates=detach,
        clamp_gates=clamp,
    )
    assert_allclose(loss, expected, rtol=1e-12)


def test_shifted_form_matches_equation():
    cos, y, s, beta = random_cos(1), random_y(1), 3.0, 0.3
    rows = np.arange(len(y))
    gated = s * (cos + beta) ** 2
    gated[rows, y] = s * (beta**2 - (1 - cos[rows, y]) ** 2)
    args = torch.tensor(cos), torch.tensor(y)
    loss = self_paced_loss(*args, scale=s, beta=beta, form="shifted")
    assert_allclose(loss, np_cross_entropy(gated, y), rtol=1e-12)

    gated[(cos < -beta) & ~np.eye(10, dtype=bool)[y]] = 0
    loss = self_paced_loss(*args, scale=s, beta=beta, form="shifted", clamp_gates=True)
    assert_allclose(loss, np_cross_entropy(gated, y), rtol=1e-12)


def test_floor():
    s, beta, n_classes = 5.0, 0.2, 10
    floor = math.log(1 + 9 * math.exp(-s * ((1 + beta) ** 2 + beta**2) / 4))
    assert floor == pytest.approx(0.8818, abs=5e-5)
    cos = torch.full((1, n_classes), -beta / 2, dtype=torch.float64)
    cos[0, 3] = (1 + beta) / 2
    assert self_paced_loss(cos, torch.tensor([3])).item() == pytest.approx(floor, rel=1e-12)


@fast
@given(seed=seeds, s=st.floats(0.5, 10), beta=st.floats(0, 0.6), clamp=st.booleans())
def test_never_below_floor(seed, s, beta, clamp):
    loss = self_paced_loss(
        torch.tensor(random_cos(seed)),
        torch.tensor(random_y(seed)),
        scale=s,
        beta=beta,
        clamp_gates=clamp,
    )
    floor = math.log(1 + 9 * math.exp(-s * ((1 + beta) ** 2 + beta**2) / 4))
    assert (loss >= floor - 1e-12).all()


def test_perfect_sample_has_positive_loss():
    loss = self_paced_loss(torch.eye(10, dtype=torch.float64)[:1], torch.tensor([0]))
    assert loss.item() == pytest.approx(math.log(1 + 9 * math.exp(-1)), rel=1e-12)
    assert loss.item() == pytest.approx(1.4612, abs=5e-5)


def test_two_class_example_is_above_normalised_cross_entropy():
    cos = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    assert self_paced_loss(cos, torch.tensor([0])).item() == pytest.approx(0.313, abs=5e-4)


def test_unit_gates_give_plain_cross_entropy():
    # The gates are all one where cos_i = beta and cos_j = 1 - beta.
    beta, y = 0.2, np.array([0, 2])
    cos = np.full((2, 4), 1 - beta)
    cos[[0, 1], y] = beta
    logits = random_cos(2, 2, 4) * 5
    args = torch.tensor(cos), torch.tensor(y)
    loss = self_paced_loss(*args, logits=torch.tensor(logits), beta=beta)
    assert_allclose(loss, np_cross_entropy(logits, y), rtol=1e-12)
    assert_allclose(self_paced_loss(*args, beta=beta), np_cross_entropy(5 * cos, y), rtol=1e-12)


def test_zero_gates_give_log_of_class_count():
    cos = torch.eye(4, dtype=torch.float64)[:1]
    logits = torch.tensor(random_cos(3, 1, 4))
    loss = self_paced_loss(cos, torch.tensor([0]), logits=logits, beta=0.0)
    assert_allclose(loss, math.log(4), rtol=1e-12)


def test_given_logits_are_gated_and_scale_is_unused():
    cos, y = random_cos(4), random_y(4)
    logits = 7 * random_cos(5)
    args = torch.tensor(cos), torch.tensor(y)
    loss = self_paced_loss(*args, logits=torch.tensor(logits), scale=1.0)
    assert_allclose(loss, np_cross_entropy(np_gates(cos, y, 0.2) * logits, y), rtol=1e-12)
    assert_allclose(loss, self_paced_loss(*args, logits=torch.tensor(logits), scale=9.0))


@fast
@given(seed=seeds, beta=st.floats(0, 0.6), detach=st.booleans())
def test_gradient_factors(seed, beta, detach):
    cos, y, s = random_cos(seed), random_y(seed), 5.0
    gates = np_gates(cos, y, beta)
    p = np_softmax(gates * s * cos)
    rows = np.arange(len(y))
    factor = gates.copy() if detach else 2 * cos + beta
    if not detach:
        factor[rows, y] = 1 + beta - 2 * cos[rows, y]
    residual = p.copy()
    residual[rows, y] -= 1
    grad = grad_wrt_cos(cos, y, beta=beta, detach_gates=detach)
    assert_allclose(grad, s * factor * residual, atol=1e-12)
    if detach:
        assert (grad[rows, y] <= 0).all()


@pytest.mark.parametrize("detach", [False, True])
def test_gradient_factors_of_shifted_form(detach):
    cos, y, s, beta = random_cos(6), random_y(6), 5.0, 0.2
    rows = np.arange(len(y))
    gates = np_gates(cos, y, beta)
    shifted = cos + beta
    shifted[rows, y] -= 1
    residual = np_softmax(gates * s * shifted)
    residual[rows, y] -= 1
    # d(gate * score): with attached gates 2(1 - cos_i) for the true and 2(cos_j + beta) for the
    # false classes.
    factor = gates if detach else 2 * shifted
    if not detach:
        factor[rows, y] = 2 * (1 - cos[rows, y])
    grad = grad_wrt_cos(cos, y, beta=beta, detach_gates=detach, form="shifted")
    assert_allclose(grad, s * factor * residual, atol=1e-12)
    assert (grad[rows, y] <= 0).all()


def test_clamped_false_gate_blocks_the_gradient():
    cos = np.array([[0.5, -0.5, 0.1]])
    grad = grad_wrt_cos(cos, np.array([0]), clamp_gates=True)
    assert grad[0, 1] == 0
    assert grad[0, 2] > 0


@pytest.mark.parametrize("form", ["literal", "shifted"])
def test_turning_point_of_true_class(form):
    def slope(c):
        return grad_wrt_cos(np.array([[c, 0.1, -0.2]]), np.array([0]), form=form)[0, 0]

    assert slope(0.59) < 0
    # Beyond (1 + beta) / 2 the literal form pushes the cosine down.
    assert slope(0.61) > 0 if form == "literal" else slope(0.61) < 0


@fast
@given(
    cos_a=st.floats(0, 1),
    cos_b=st.floats(0, 1),
    cos_true=st.floats(-1, 1),
    beta=st.floats(0.01, 0.6),
    detach=st.booleans(),
    share=st.floats(0.05, 1),
)
def test_hard_pairs_are_emphasised_up_to_a_scale(cos_a, cos_b, cos_true, beta, detach, share):
    cos_b, cos_a = sorted((cos_a, cos_b))
    s = share * (8 / (1 + beta) ** 2 if detach else 8)
    cos = np.array([[cos_true, cos_a, cos_b]])
    grad = grad_wrt_cos(cos, np.array([0]), scale=s, beta=beta, detach_gates=detach)[0]
    # Normalised cross-entropy would give exp(s (cos_a - cos_b)).
    assert math.log(grad[1] / grad[2]) >= s * (cos_a - cos_b) - 1e-9


@pytest.mark.parametrize(("detach", "cos_b"), [(False, 0.15), (True, 1 / math.sqrt(20) - 0.2)])
def test_hard_pairs_can_lose_emphasis_at_larger_scale(detach, cos_b):
    # The pairs for which the two bounds above are tight, close together.
    def excess(s):
        cos = np.array([[0.5, cos_b + 0.005, cos_b - 0.005]])
        grad = grad_wrt_cos(cos, np.array([0]), scale=s, detach_gates=detach)[0]
        return math.log(grad[1] / grad[2]) - s * 0.01

    assert excess(5.0) > 0
    assert excess(10.0) < 0


def test_unknown_form():
    cos, y = torch.zeros(1, 3), torch.tensor([0])
    with pytest.raises(ValueError, match="form must be one of"):
        self_paced_loss(cos, y, form="other")
    with pytest.raises(ValueError, match="shifted"):
        self_paced_loss(cos, y, logits=cos, form="shifted")


# ---- robustness term -----------------------------------------------------------------------------


@fast
@given(seed=seeds, alpha=st.floats(0, 1), scale=st.floats(0.1, 20))
def test_consistency_matches_equations(seed, alpha, scale):
    z, z_adv = scale * random_cos(seed), scale * random_cos(seed + 7)
    k = np_terms(z, z_adv)
    args = torch.tensor(z), torch.tensor(z_adv)
    assert_allclose(inconsistency(*args), (k**2).sum(1), rtol=1e-9)
    expected = alpha * k.sum(1) + (k**2).sum(1)
    assert_allclose(self_paced_consistency(*args, alpha), expected, rtol=1e-9)
    # Cauchy-Schwarz.
    assert (inconsistency(*args).numpy() >= k.sum(1) ** 2 / 10 * (1 - 1e-12)).all()


def test_inconsistency_hand_value_and_asymmetry():
    p = torch.tensor([[0.5, 0.5]], dtype=torch.float64).log()
    q = torch.tensor([[0.25, 0.75]], dtype=torch.float64).log()
    expected = (0.5 * math.log(2)) ** 2 + (0.5 * math.log(2 / 3)) ** 2
    assert inconsistency(p, q).item() == pytest.approx(expected, rel=1e-12)
    assert abs(inconsistency(q, p).item() - expected) > 1e-3


def test_alpha_zero_is_inconsistency_and_difference_is_divergence():
    z, z_adv = random_cos(8), random_cos(9)
    args = torch.tensor(z), torch.tensor(z_adv)
    assert_allclose(self_paced_consistency(*args, 0.0), inconsistency(*args), rtol=1e-12)
    divergence = self_paced_consistency(*args, 1.0) - inconsistency(*args)
    assert_allclose(divergence, np_terms(z, z_adv).sum(1), rtol=1e-10)


def test_zero_value_and_gradient_without_perturbation():
    z = torch.tensor(5 * random_cos(10), requires_grad=True)
    z_adv = z.detach().clone().requires_grad_()
    loss = self_paced_consistency(z, z_adv)
    assert_allclose(loss.detach(), 0, atol=1e-14)
    for grad in torch.autograd.grad(loss.sum(), (z, z_adv)):
        assert grad.norm() < 1e-10


def test_grows_quadratically():
    z = torch.tensor(5 * random_cos(11))
    step = torch.tensor(random_cos(12))
    near, far = (self_paced_consistency(z, z + h * step) for h in (1e-4, 2e-4))
    assert_allclose(far / near, 4, rtol=1e-2)


def test_small_start_gives_usable_gradient():
    z = torch.tensor(5 * random_cos(13))
    z_adv = (z + 1e-3 * torch.tensor(random_cos(14))).requires_grad_()
    self_paced_consistency(z, z_adv).sum().backward()
    assert (z_adv.grad.norm(dim=1) > 1e-6).all()


def test_consistency_gradients_match_finite_differences():
    z = torch.tensor(3 * random_cos(15, 3, 4), requires_grad=True)
    z_adv = torch.tensor(3 * random_cos(16, 3, 4), requires_grad=True)
    assert torch.autograd.gradcheck(inconsistency, (z, z_adv))
    assert torch.autograd.gradcheck(self_paced_consistency, (z, z_adv))


# ---- total ---------------------------------------------------------------------------------------


@fast
@given(seed=seeds, s=st.floats(1, 10), alpha=st.floats(0, 1), lam=st.floats(0, 10))
def test_total_is_accuracy_plus_weighted_consistency(seed, s, alpha, lam):
    cos, cos_adv, y, beta = random_cos(seed), random_cos(seed + 3), random_y(seed), 0.2
    accuracy = np_cross_entropy(np_gates(cos, y, beta) * s * cos, y)
    k = np_terms(s * cos, s * cos_adv)
    args = torch.tensor(cos), torch.tensor(cos_adv), torch.tensor(y)
    loss = spat_loss(*args, scale=s, alpha=alpha, beta=beta, lam=lam)
    assert_allclose(loss, accuracy + lam * (k * (k + alpha)).sum(1), rtol=1e-9)


def test_defaults_are_those_of_the_source():
    args = torch.tensor(random_cos(17)), torch.tensor(random_cos(18)), torch.tensor(random_y(17))
    explicit = spat_loss(*args, scale=5.0, alpha=0.2, beta=0.2, lam=6.0, form="literal")
    assert_allclose(spat_loss(*args), explicit)


def test_options_reach_the_accuracy_term():
    cos, cos_adv, y = random_cos(19), random_cos(20), random_y(19)
    args = torch.tensor(cos), torch.tensor(y)
    for options in ({"clamp_gates": True}, {"form": "shifted"}, {"beta": 0.5}, {"scale": 2.0}):
        loss = spat_loss(args[0], torch.tensor(cos_adv), args[1], lam=0.0, **options)
        assert_allclose(loss, self_paced_loss(*args, **options), rtol=1e-12)
    leaf = torch.tensor(cos, requires_grad=True)
    spat_loss(leaf, torch.tensor(cos_adv), args[1], lam=0.0, detach_gates=True).sum().backward()
    assert_allclose(leaf.grad, grad_wrt_cos(cos, y, detach_gates=True))


def test_given_logits_replace_cosine_scores():
    cos, y = random_cos(21), random_y(21)
    logits, logits_adv = 4 * random_cos(22), 4 * random_cos(23)
    args = torch.tensor(cos), torch.tensor(random_cos(24)), torch.tensor(y)
    loss = spat_loss(*args, logits=torch.tensor(logits), logits_adv=torch.tensor(logits_adv))
    k = np_terms(logits, logits_adv)
    accuracy = np_cross_entropy(np_gates(cos, y, 0.2) * logits, y)
    assert_allclose(loss, accuracy + 6 * (k * (k + 0.2)).sum(1), rtol=1e-12)
    with pytest.raises(ValueError, match="together"):
        spat_loss(*args, logits=torch.tensor(logits))


def test_reduces_to_trades_with_unit_gates():
    # Unit gates, and the difference of two values of alpha removes the inconsistency.
    beta, y = 0.2, torch.tensor([0, 2])
    cos = torch.full((2, 4), 1 - beta, dtype=torch.float64)
    cos[[0, 1], y] = beta
    logits, logits_adv = torch.tensor(random_cos(25, 2, 4)), torch.tensor(random_cos(26, 2, 4))
    losses = [
        spat_loss(cos, cos, y, logits=logits, logits_adv=logits_adv, alpha=alpha, lam=6.0)
        for alpha in (0.0, 1.0)
    ]
    without_divergence = trades_loss(logits, logits_adv, y, 0.0)
    divergence = trades_loss(logits, logits_adv, y, 6.0) - without_divergence
    assert_allclose(losses[1] - losses[0], divergence, rtol=1e-10)
    inconsistent = 6 * inconsistency(logits, logits_adv)
    assert_allclose(losses[1] - inconsistent, without_divergence + divergence, rtol=1e-12)


def test_gradient_reaches_both_branches():
    cos = torch.tensor(random_cos(27, 3, 4), requires_grad=True)
    cos_adv = torch.tensor(random_cos(28, 3, 4), requires_grad=True)
    y = torch.tensor([0, 1, 2])
    assert torch.autograd.gradcheck(lambda a, b: spat_loss(a, b, y), (cos, cos_adv))


def test_float32():
    args = [torch.tensor(random_cos(i)).float() for i in (29, 30)] + [torch.tensor(random_y(29))]
    loss = spat_loss(*args)
    assert loss.dtype == torch.float32
    assert loss.shape == (6,)
    assert_allclose(loss, spat_loss(args[0].double(), args[1].double(), args[2]), rtol=1e-5)
