import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from robustsk.losses import cce_loss, cce_member_loss, ensemble_logits

fast = settings(deadline=None, derandomize=True, max_examples=50)
seeds = st.integers(0, 10_000)


def random_logits(seed, *shape, scale=2.0):
    return scale * np.random.default_rng(seed).standard_normal(shape)


def np_softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def np_cross_entropy(z, y):
    return -np.log(np_softmax(z)[np.arange(len(y)), y])


def np_entropy(z):
    p = np_softmax(z)
    return -(p * np.log(p)).sum(axis=-1)


def np_member_loss(clean, own, cross, y, lambda_pm, lambda_dm, hard):
    """Equation (5), written out."""
    loss = np_cross_entropy(clean, y) + np_cross_entropy(own, y)
    for z in cross:
        s = (z.argmax(1) == y) if hard else np_softmax(z)[np.arange(len(y)), y]
        term = lambda_pm * s * np_cross_entropy(z, y) - lambda_dm * (1 - s) * np_entropy(z)
        loss = loss + term / len(cross)
    return loss


def cross_only(cross, y, **kwargs):
    """Cross term alone: the member is perfect on its other two batches."""
    perfect = 1000.0 * torch.nn.functional.one_hot(y, cross[0].shape[1]).to(cross[0].dtype)
    return cce_member_loss(perfect, perfect, cross, y, **kwargs)


@fast
@given(
    seed=seeds,
    n_members=st.integers(1, 4),
    lambda_pm=st.floats(0, 5),
    lambda_dm=st.floats(0, 5),
    hard=st.booleans(),
)
def test_matches_equation(seed, n_members, lambda_pm, lambda_dm, hard):
    z = random_logits(seed, n_members, n_members + 1, 5, 4)
    y = np.random.default_rng(seed).integers(0, 4, 5)
    weights = {"lambda_pm": lambda_pm, "lambda_dm": lambda_dm}
    options = {"indicator": "hard" if hard else "soft", **weights}
    expected = 0
    for n in range(n_members):
        cross = [z[n, 1 + i] for i in range(n_members) if i != n]
        member = np_member_loss(z[n, 0], z[n, 1 + n], cross, y, hard=hard, **weights)
        actual = cce_member_loss(
            torch.tensor(z[n, 0]),
            torch.tensor(z[n, 1 + n]),
            [torch.tensor(c) for c in cross],
            torch.tensor(y),
            **options,
        )
        assert_allclose(actual, member, rtol=1e-10, atol=1e-12)
        expected = expected + member
    total = cce_loss(torch.tensor(z), torch.tensor(y), **options)
    assert total.shape == (5,)
    assert_allclose(total, expected, rtol=1e-10, atol=1e-12)
    nested = [[torch.tensor(source) for source in member] for member in z]
    assert_allclose(cce_loss(nested, torch.tensor(y), **options), total, rtol=1e-12)


def test_oracle():
    cross = torch.tensor([[0.7, 0.1, 0.1, 0.1]], dtype=torch.float64).log()
    y = torch.tensor([0])
    expected = 0.249672 - 0.3 * 0.940448
    assert expected == pytest.approx(-0.032462, abs=1e-6)
    assert cross_only([cross], y).item() == pytest.approx(expected, abs=1e-6)
    # The factor 1 / (N - 1): identical others do not change the cross term.
    assert cross_only([cross] * 2, y).item() == pytest.approx(expected, abs=1e-6)
    assert cross_only([cross] * 5, y).item() == pytest.approx(expected, abs=1e-6)
    # The modes of the source: promoting off, demoting five times.
    detection = cross_only([cross], y, lambda_pm=0.0, lambda_dm=5.0).item()
    assert detection == pytest.approx(-5 * 0.3 * 0.940448, abs=1e-5)


def test_single_member_is_adversarial_training():
    z, y = random_logits(0, 1, 2, 5, 4), np.array([0, 1, 2, 3, 0])
    expected = np_cross_entropy(z[0, 0], y) + np_cross_entropy(z[0, 1], y)
    assert_allclose(cce_loss(torch.tensor(z), torch.tensor(y)), expected, rtol=1e-12)


def test_zero_weights_give_independent_members():
    z = torch.tensor(random_logits(1, 3, 4, 5, 4), requires_grad=True)
    y = np.array([0, 1, 2, 3, 0])
    cce_loss(z, torch.tensor(y), lambda_pm=0.0, lambda_dm=0.0).sum().backward()
    residual = np_softmax(z.detach().numpy()) - np.eye(4)[y]
    for n in range(3):
        for source in range(4):
            expected = residual[n, source] if source in (0, 1 + n) else 0 * residual[n, source]
            assert_allclose(z.grad[n, source], expected, atol=1e-12)


def test_gradient_of_a_member_ignores_the_others():
    z = torch.tensor(random_logits(2, 3, 4, 5, 4))
    changed = z.clone()
    changed[1:] = torch.tensor(random_logits(3, 2, 4, 5, 4))
    y = torch.tensor([0, 1, 2, 3, 0])
    grads = []
    for values in (z, changed):
        leaf = values.clone().requires_grad_()
        grads.append(torch.autograd.grad(cce_loss(leaf, y).sum(), leaf)[0][0])
    assert_allclose(grads[0], grads[1], atol=1e-14)


@fast
@given(seed=seeds, lambda_pm=st.floats(0, 5), lambda_dm=st.floats(0, 5))
def test_cross_gradient_with_detached_indicator(seed, lambda_pm, lambda_dm):
    z, y = random_logits(seed, 5, 4), np.array([0, 1, 2, 3, 0])
    leaf = torch.tensor(z, requires_grad=True)
    weights = {"lambda_pm": lambda_pm, "lambda_dm": lambda_dm}
    cross_only([leaf], torch.tensor(y), **weights).sum().backward()
    p = np_softmax(z)
    s = p[np.arange(5), y][:, None]
    promote = lambda_pm * s * (p - np.eye(4)[y])
    demote = lambda_dm * (1 - s) * p * (np.log(p) + np_entropy(z)[:, None])
    assert_allclose(leaf.grad, promote + demote, atol=1e-10)


def test_attached_indicator_adds_its_gradient():
    y = torch.tensor([0, 1, 2, 3, 0])
    leaf = torch.tensor(random_logits(4, 5, 4), requires_grad=True)

    def gradient(**kwargs):
        return torch.autograd.grad(cross_only([leaf], y, **kwargs).sum(), leaf)[0].numpy()

    # ds / dz = s (e_y - p), times d(loss) / ds = CE + H.
    z = leaf.detach().numpy()
    p = np_softmax(z)
    s = p[np.arange(5), y.numpy()][:, None]
    slope = (np_cross_entropy(z, y.numpy()) + np_entropy(z))[:, None]
    extra = slope * s * (np.eye(4)[y.numpy()] - p)
    assert_allclose(gradient(detach_indicator=False) - gradient(), extra, atol=1e-12)
    assert torch.autograd.gradcheck(
        lambda z: cross_only([z], y, detach_indicator=False), (leaf,), atol=1e-6
    )
    # The hard indicator is piecewise constant: the option changes nothing.
    hard = gradient(indicator="hard", detach_indicator=False)
    assert_allclose(hard, gradient(indicator="hard"))


def test_uniform_output_has_no_demoting_gradient():
    leaf = torch.zeros(2, 4, dtype=torch.float64, requires_grad=True)
    cross_only([leaf], torch.tensor([0, 1]), lambda_pm=0.0).sum().backward()
    assert leaf.grad.norm() < 1e-15


def test_hard_indicator_applies_exactly_one_operation():
    z, y = random_logits(5, 40, 4), np.arange(40) % 4
    correct = z.argmax(1) == y
    assert 0 < correct.sum() < 40
    args = [torch.tensor(z)], torch.tensor(y)
    promoted = cross_only(*args, indicator="hard", lambda_dm=0.0).numpy()
    demoted = cross_only(*args, indicator="hard", lambda_pm=0.0).numpy()
    assert ((promoted != 0) == correct).all()
    assert ((demoted != 0) == ~correct).all()
    assert_allclose(promoted[correct], np_cross_entropy(z, y)[correct], rtol=1e-12)
    assert_allclose(demoted[~correct], -np_entropy(z)[~correct], rtol=1e-12)
    assert (-demoted <= math.log(4)).all()


def test_invalid_arguments():
    y = torch.tensor([0])
    with pytest.raises(ValueError, match="indicator"):
        cce_member_loss(torch.zeros(1, 3), torch.zeros(1, 3), [], y, indicator="medium")
    with pytest.raises(ValueError, match="sources"):
        cce_loss(torch.zeros(2, 2, 1, 3), y)
    with pytest.raises(ValueError, match="sources"):
        cce_loss([], y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits_stay_finite(dtype):
    z = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]], dtype=dtype, requires_grad=True)
    loss = cce_member_loss(z, z, [z], torch.tensor([0, 0]), detach_indicator=False)
    loss.sum().backward()
    assert loss.dtype == dtype
    assert torch.isfinite(loss).all()
    assert torch.isfinite(z.grad).all()


# ---- ensemble output -----------------------------------------------------------------------------


@fast
@given(seed=seeds, n_members=st.integers(1, 5), scale=st.floats(0.1, 50))
def test_ensemble_is_mean_probability(seed, n_members, scale):
    z = random_logits(seed, n_members, 4, 3, scale=scale)
    expected = np_softmax(z).mean(axis=0)
    out = ensemble_logits(torch.tensor(z))
    assert_allclose(out.exp(), expected, rtol=1e-9)
    assert_allclose(out.softmax(1), expected, rtol=1e-9)
    assert_allclose(ensemble_logits([torch.tensor(member) for member in z]), out)


def test_one_or_identical_members():
    z = torch.tensor(random_logits(6, 1, 4, 3))
    assert_allclose(ensemble_logits(z), z[0].log_softmax(1), rtol=1e-12)
    assert_allclose(ensemble_logits(z.expand(3, 4, 3)), z[0].log_softmax(1), rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ensemble_of_extreme_logits(dtype):
    z = torch.tensor([[[1e4, 0.0, -1e4]], [[0.0, 1e4, -1e4]]], dtype=dtype, requires_grad=True)
    out = ensemble_logits(z)
    assert_allclose(out.detach(), [[-math.log(2), -math.log(2), -2e4]], rtol=1e-6)
    # The probability of the last class underflows, its gradient must not.
    out[0, 2].backward()
    assert torch.isfinite(z.grad).all()
    assert_allclose(z.grad[:, 0, 2], [0.5, 0.5], rtol=1e-3)


# ---- what the authors' code does instead ---------------------------------------------------------


def test_probabilities_taken_for_logits():
    z, y = random_logits(7, 6, 10), np.arange(6) % 10
    p = np_softmax(z)
    s = p[np.arange(6), y]
    again = np.log(np_softmax(p))
    bounded = -(p * again).sum(axis=1)
    expected = 2.0 * s * -again[np.arange(6), y] - 3.0 * (1 - s) * bounded
    weights = {"lambda_pm": 2.0, "lambda_dm": 3.0, "double_softmax": True}
    found = cross_only([torch.tensor(z)], torch.tensor(y), **weights)
    assert_allclose(found, expected, rtol=1e-10)
    # between a prediction of one class and one of all
    low, high = math.log(math.e + 9) - 1, math.log(10)
    assert low == pytest.approx(1.461, abs=1e-3)
    assert (bounded > low).all()
    assert (bounded < high).all()
    one_hot = torch.tensor([[200.0] + [0.0] * 9], dtype=torch.float64)
    demoted = cross_only(
        [one_hot], torch.tensor([1]), lambda_pm=0.0, lambda_dm=1.0, double_softmax=True
    )
    assert demoted.item() == pytest.approx(-low, rel=1e-10)


def test_double_softmax_leaves_clean_and_own_samples_alone():
    z, y = torch.tensor(random_logits(8, 2, 4, 5)), torch.tensor([0, 1, 2, 3])
    expected = np_cross_entropy(z[0].numpy(), y.numpy()) + np_cross_entropy(z[1].numpy(), y.numpy())
    assert_allclose(cce_member_loss(z[0], z[1], [], y, double_softmax=True), expected, rtol=1e-12)


def test_own_weight():
    z, y = torch.tensor(random_logits(9, 2, 3, 5, 4)), torch.tensor([0, 1, 2, 3, 0])
    own = sum(np_cross_entropy(z[n, 1 + n].numpy(), y.numpy()) for n in range(2))
    found = cce_loss(z, y, own_weight=0.25) - cce_loss(z, y)
    assert_allclose(found, -0.75 * own, rtol=1e-10)
    assert_allclose(cce_loss(z, y, own_weight=1.0), cce_loss(z, y), rtol=1e-14)
