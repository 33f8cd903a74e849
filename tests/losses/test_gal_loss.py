import itertools
import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.special import logsumexp
from torch import nn

from robustsk.losses import gradient_alignment


def random_gradients(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def np_cosines(gradients):
    rows = gradients.reshape(*gradients.shape[:2], -1)
    return np.array(
        [
            [a @ b / np.sqrt((a @ a) * (b @ b)) for a, b in zip(first, second, strict=True)]
            for first, second in itertools.combinations(rows, 2)
        ]
    )


@pytest.mark.parametrize("n_members", [2, 3, 5])
@pytest.mark.parametrize("shape", [(6,), (2, 3, 4)])
def test_matches_equation(n_members, shape):
    g = random_gradients(n_members, n_members, 7, *shape)
    found = gradient_alignment(torch.tensor(g))
    assert found.shape == (7,)
    assert_allclose(found, logsumexp(np_cosines(g), axis=0), rtol=1e-12)


@pytest.mark.parametrize("n_members", [2, 3, 6])
def test_identical_orthogonal_and_opposite_members(n_members):
    n_pairs = n_members * (n_members - 1) // 2
    one = torch.tensor(random_gradients(0, 4, 8))
    assert_allclose(gradient_alignment(one.expand(n_members, 4, 8)), math.log(n_pairs) + 1)
    across = torch.eye(8, dtype=torch.float64)[:n_members, None]
    assert_allclose(gradient_alignment(across), math.log(n_pairs), atol=1e-12)
    assert_allclose(gradient_alignment(torch.stack([one, -one])), -1)


def test_a_single_member_has_no_pairs():
    g = torch.randn(1, 3, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    found = gradient_alignment(g)
    assert_allclose(found.detach(), np.zeros(3))
    found.sum().backward()
    assert not g.grad.any()


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1e10])
def test_length_of_the_gradients_does_not_matter(scale):
    g = torch.tensor(random_gradients(1, 3, 4, 5), dtype=torch.float32)
    scales = torch.tensor([1.0, scale, 1.0])[:, None, None]
    assert_allclose(gradient_alignment(g * scales), gradient_alignment(g), rtol=1e-5)


def test_order_of_members_and_other_samples_do_not_matter():
    g = torch.tensor(random_gradients(2, 4, 5, 6))
    found = gradient_alignment(g)
    assert_allclose(gradient_alignment(g[[2, 0, 3, 1]]), found, rtol=1e-12)
    for i in range(5):
        assert_allclose(gradient_alignment(g[:, i : i + 1]), found[i : i + 1], rtol=1e-12)


def test_zero_gradients_are_orthogonal_to_all_and_stay_finite():
    g = torch.tensor(random_gradients(3, 2, 2, 4))
    g[0, 0] = 0
    g.requires_grad_()
    found = gradient_alignment(g)
    assert found[0] == 0
    found.sum().backward()
    assert g.grad.isfinite().all()


@pytest.mark.parametrize("scale", [1e-12, 1e-30, 1e-42])
def test_tiny_gradients_neither_count_nor_explode(scale):
    g = torch.tensor(random_gradients(1, 2, 4, 5), dtype=torch.float32)
    g[0] *= scale
    g.requires_grad_()
    found = gradient_alignment(g)
    assert_allclose(found.detach(), np.zeros(4), atol=1e-4)
    found.sum().backward()
    assert g.grad.abs().max() <= 1 / torch.finfo(torch.float32).eps


def test_derivative_of_the_cosine():
    """d cos(a, b) / d a = (b / |b| - cos a / |a|) / |a|."""
    a, b = (torch.tensor(random_gradients(s, 1, 1, 5)) for s in (4, 5))
    a.requires_grad_()
    gradient_alignment(torch.cat([a, b])).sum().backward()
    u, v = a.detach() / a.detach().norm(), b / b.norm()
    expected = (v - (u * v).sum() * u) / a.detach().norm()
    assert_allclose(a.grad, expected, rtol=1e-10)
    assert torch.autograd.gradcheck(
        gradient_alignment, torch.tensor(random_gradients(6, 3, 2, 4)).requires_grad_()
    )


def test_second_derivatives_reach_the_weights():
    """Against finite differences of the whole computation, in one weight."""
    torch.manual_seed(0)
    members = [
        nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double() for _ in range(3)
    ]
    x, y = torch.randn(6, 4, dtype=torch.float64), torch.arange(6) % 3

    def value():
        z = x.clone().requires_grad_()
        g = [
            torch.autograd.grad(
                nn.functional.cross_entropy(m(z), y, reduction="sum"), z, create_graph=True
            )[0]
            for m in members
        ]
        return gradient_alignment(torch.stack(g)).sum()

    value().backward()
    weight = members[1][0].weight
    found, h = weight.grad[2, 1].item(), 1e-6
    assert abs(found) > 1e-4
    with torch.no_grad():
        weight[2, 1] += h
    above = value().item()
    with torch.no_grad():
        weight[2, 1] -= 2 * h
    assert found == pytest.approx((above - value().item()) / (2 * h), rel=1e-5)


def test_rejects_gradients_without_members():
    with pytest.raises(ValueError, match=r"\(n_members, n_samples, \.\.\.\), got \(3, 4\)"):
        gradient_alignment(torch.zeros(3, 4))
