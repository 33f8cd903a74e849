import itertools

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from robustsk.losses import gradient_magnitude, gradient_similarity


def random_gradients(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def cosine(a, b):
    return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))


@pytest.mark.parametrize("n_members", [2, 3, 5])
@pytest.mark.parametrize("shape", [(6,), (2, 3, 4)])
def test_matches_the_pairwise_form(n_members, shape):
    """Both are means over the pairs of members."""
    g = random_gradients(n_members, n_members, 7, *shape)
    rows = g.reshape(n_members, 7, -1)
    similarity, magnitude = [], []
    for k in range(7):
        pairs = list(itertools.combinations(rows[:, k], 2))
        similarity.append(np.mean([abs(cosine(a, b)) for a, b in pairs]))
        magnitude.append(np.mean([np.sqrt(a @ a) + np.sqrt(b @ b) for a, b in pairs]))
    assert_allclose(gradient_similarity(torch.tensor(g)), similarity, rtol=1e-12)
    assert_allclose(gradient_magnitude(torch.tensor(g)), magnitude, rtol=1e-12)


@pytest.mark.parametrize("n_members", [2, 4])
def test_limits_of_the_similarity(n_members):
    one = torch.tensor(random_gradients(0, 3, 8))
    signs = torch.tensor([(-1.0) ** i for i in range(n_members)], dtype=torch.float64)
    assert_allclose(gradient_similarity(signs[:, None, None] * one), np.ones(3))
    across = torch.eye(8, dtype=torch.float64)[:n_members, None]
    assert_allclose(gradient_similarity(across), [0], atol=1e-12)


def test_a_single_member():
    g = torch.tensor(random_gradients(1, 1, 4, 3))
    assert_allclose(gradient_similarity(g), np.zeros(4))
    assert_allclose(gradient_magnitude(g), 2 * np.linalg.norm(g[0], axis=1))


def test_scale():
    g = torch.tensor(random_gradients(2, 3, 4, 5))
    assert_allclose(gradient_similarity(1e-9 * g), gradient_similarity(g), rtol=1e-10)
    assert_allclose(gradient_magnitude(3 * g), 3 * gradient_magnitude(g), rtol=1e-12)


def test_derivatives():
    g = torch.tensor(random_gradients(3, 3, 2, 4)).requires_grad_()
    assert torch.autograd.gradcheck(gradient_similarity, g)
    gradient_magnitude(g).sum().backward()
    unit = g.detach() / g.detach().norm(dim=-1, keepdim=True)
    assert_allclose(g.grad, 2 / 3 * unit, rtol=1e-12)
    zero = torch.zeros(2, 3, 4, requires_grad=True)
    (gradient_similarity(zero) + gradient_magnitude(zero)).sum().backward()
    assert not zero.grad.any()
