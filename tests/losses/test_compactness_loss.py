"""Local and global compactness."""

import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from robustsk.losses import entropy, global_compactness, kl_divergence, local_compactness

NORMS = [1, 2, math.inf]
Y = torch.tensor([0, 0, 1])
Z = torch.tensor([[1.0, 0], [2, 1], [-1, 3]], dtype=torch.float64)
Z_ADV = Z + torch.tensor([[0.5, -0.5], [0, 1], [1, 0]])
LOGITS = torch.tensor([[2.0, 0, 0], [1, 0, -1], [0, 1, 0]], dtype=torch.float64)
LOGITS_ADV = torch.tensor([[1.0, 1, 0], [1, 0, -1], [1, 0, 0]], dtype=torch.float64)


def random(n=9, d=5, seed=0):
    rng = np.random.default_rng(seed)
    z, z_adv = (torch.as_tensor(rng.normal(size=(n, d))) for _ in range(2))
    return z, z_adv, torch.as_tensor(np.arange(n) % 3)


def by_hand(z, y, other, alpha, p):
    z, y, other = (np.asarray(v) for v in (z, y, other))
    total = 0.0
    for i in range(len(z)):
        for j in range(len(other)):
            weight = 1.0 if y[i % len(y)] == y[j % len(y)] else (alpha - 1) / alpha
            total += weight * np.linalg.norm(z[i] - other[j], p)
    return total / len(z) / len(other)


@pytest.mark.parametrize(
    ("p", "local", "clean", "clean_adv", "both"),
    [
        (1, 1.0, 0.421998, 0.868687, 0.702020),
        (2, 0.902369, 0.298083, 0.709824, 0.567680),
        (math.inf, 0.833333, 0.208754, 0.653760, 0.514871),
    ],
)
def test_known_values(p, local, clean, clean_adv, both):
    assert_allclose(local_compactness(Z, Z_ADV, p, "sum").mean(), local, atol=1e-6)
    for pairs, expected in (("clean", clean), ("clean_adv", clean_adv), ("all", both)):
        found = global_compactness(Z, Y, Z_ADV, 0.99, p, "sum", pairs)
        assert found.shape == (3,)
        assert_allclose(found.mean(), expected, atol=1e-6)


def test_known_values_of_the_other_terms():
    ce = torch.nn.functional.cross_entropy
    assert_allclose(ce(LOGITS, Y) + ce(LOGITS_ADV, Y), 1.339880, atol=1e-6)
    confidence = (entropy(LOGITS) + entropy(LOGITS_ADV)).mean()
    assert_allclose(confidence, 1.766126, atol=1e-6)
    assert_allclose(kl_divergence(LOGITS, LOGITS_ADV).mean(), 0.222368, atol=1e-6)
    assert_allclose(kl_divergence(LOGITS_ADV, LOGITS).mean(), 0.247242, atol=1e-6)
    soft = -(LOGITS.softmax(1) * LOGITS_ADV.log_softmax(1)).sum(1)
    assert_allclose(soft, kl_divergence(LOGITS, LOGITS_ADV) + entropy(LOGITS))


@pytest.mark.parametrize("p", [*NORMS, 3])
@pytest.mark.parametrize("pairs", ["clean", "clean_adv", "all"])
def test_against_a_double_loop(p, pairs):
    z, z_adv, y = random()
    both = torch.cat([z, z_adv])
    first, second = {"clean": (z, z), "clean_adv": (z, z_adv), "all": (both, both)}[pairs]
    found = global_compactness(z, y, z_adv, 0.7, p, "sum", pairs).mean()
    assert_allclose(found, by_hand(first, y, second, 0.7, p))
    mean = global_compactness(z, y, z_adv, 0.7, p, "mean", pairs).mean()
    assert_allclose(mean, found / (1 if p == math.inf else 5 ** (1 / p)))


def test_mean_is_the_mean_of_the_features():
    z, z_adv, _ = random()
    assert_allclose(local_compactness(z, z_adv), (z - z_adv).abs().mean(1))
    assert_allclose(local_compactness(z, z_adv, 2), ((z - z_adv) ** 2).mean(1).sqrt())
    assert_allclose(local_compactness(z, z_adv, math.inf), (z - z_adv).abs().amax(1))


def test_order_of_the_norms_and_invariances():
    z, z_adv, y = random()
    values = [local_compactness(z, z_adv, p, "sum") for p in (math.inf, 2, 1)]
    assert (values[0] <= values[1]).all()
    assert (values[1] <= values[2]).all()
    for p in NORMS:
        for loss in (
            lambda a, b, p=p: local_compactness(a, b, p),
            lambda a, b, p=p: global_compactness(a, y, b, p=p, pairs="all"),
        ):
            assert_allclose(loss(z + 3, z_adv + 3), loss(z, z_adv))
            assert_allclose(loss(2.5 * z, 2.5 * z_adv), 2.5 * loss(z, z_adv))
        assert (local_compactness(z, z, p) == 0).all()


def test_alpha():
    z, _, y = random()
    same = y[:, None] == y
    distance = torch.cdist(z, z, p=1)
    for alpha, other in ((0.5, -1.0), (1.0, 0.0), (0.99, -1 / 99)):
        expected = torch.where(same, distance, other * distance).mean()
        assert_allclose(global_compactness(z, y, alpha=alpha, reduction="sum").mean(), expected)
    one = global_compactness(z, torch.zeros_like(y), alpha=0.1, reduction="sum")
    assert_allclose(one, distance.mean(1))


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("pairs", ["clean", "clean_adv", "all"])
def test_weights_are_copies(p, pairs):
    z, z_adv, y = random()
    times = torch.arange(9) % 3 + 1
    z, z_adv = z.requires_grad_(), z_adv.requires_grad_()
    rows = torch.repeat_interleave(torch.arange(9), times)
    repeated = global_compactness(z[rows], y[rows], z_adv[rows], p=p, pairs=pairs).mean()
    single = global_compactness(z, y, z_adv, p=p, pairs=pairs, sample_weight=times)
    weighted = (times * single).sum() / times.sum()
    assert_allclose(weighted.item(), repeated.item())
    wanted = (z,) if pairs == "clean" else (z, z_adv)
    for a, b in zip(*(torch.autograd.grad(v, wanted) for v in (weighted, repeated)), strict=True):
        assert_allclose(a, b, atol=1e-12)
    tripled = global_compactness(z, y, z_adv, p=p, pairs=pairs, sample_weight=3 * times)
    assert_allclose(tripled.detach(), single.detach())


@pytest.mark.parametrize("p", NORMS)
def test_gradients_are_finite_where_points_meet(p):
    z = torch.zeros(4, 3, requires_grad=True)
    y = torch.tensor([0, 0, 1, 1])
    loss = local_compactness(z, z.detach(), p).sum() + global_compactness(z, y, z, p=p).sum()
    (gradient,) = torch.autograd.grad(loss, z)
    assert torch.isfinite(gradient).all()


def test_what_is_not_valid():
    z, z_adv, y = random()
    with pytest.raises(ValueError, match=r"one shape.*\(9, 5\).*\(8, 5\)"):
        local_compactness(z, z_adv[:-1])
    with pytest.raises(ValueError, match="p must be"):
        local_compactness(z, z_adv, 0.5)
    with pytest.raises(ValueError, match="reduction must be one of"):
        local_compactness(z, z_adv, reduction="max")
    with pytest.raises(ValueError, match=r"flatten\(1\)"):
        local_compactness(z[None], z_adv[None])
    with pytest.raises(ValueError, match="pairs must be one of"):
        global_compactness(z, y, pairs="adv")
    with pytest.raises(ValueError, match="needs z_adv"):
        global_compactness(z, y, pairs="all")
    with pytest.raises(ValueError, match="alpha"):
        global_compactness(z, y, alpha=0)
    with pytest.raises(ValueError, match=r"y must have shape \(9,\)"):
        global_compactness(z, y[:-1])
