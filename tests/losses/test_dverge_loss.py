import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from robustsk.losses import dverge_loss, feature_distance


def np_ce(z, y):
    z = z - z.max(axis=1, keepdims=True)
    return np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(y)), y]


@pytest.mark.parametrize("n_members", [2, 3, 4])
def test_matches_the_double_sum(n_members):
    rng = np.random.default_rng(n_members)
    z, y = rng.normal(size=(n_members, n_members, 6, 4)), rng.integers(0, 4, 6)
    expected = sum(np_ce(z[i, j], y) for i in range(n_members) for j in range(n_members) if i != j)
    logits = [[torch.tensor(z[i, j]) for j in range(n_members) if i != j] for i in range(n_members)]
    found = dverge_loss(logits, torch.tensor(y))
    assert found.shape == (6,)
    assert_allclose(found, expected, rtol=1e-12)


def test_classification_loss():
    z, y = torch.tensor([[1.0, 3.0]]), torch.tensor([1])
    assert dverge_loss([[z, z], [2 * z]], y, lambda z, y: z[:, 1]) == 12


@pytest.mark.parametrize("logits", [[], [[]]])
def test_nothing_to_learn_from(logits):
    with pytest.raises(ValueError, match="one member has none"):
        dverge_loss(logits, torch.tensor([0]))


def test_feature_distance():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 5, 7))
    a_ = torch.tensor(a, requires_grad=True)
    found = feature_distance(a_, torch.tensor(b))
    assert_allclose(found.detach(), np.linalg.norm(a - b, axis=1) ** 2, rtol=1e-12)
    found.sum().backward()
    assert_allclose(a_.grad, 2 * (a - b), rtol=1e-12)
