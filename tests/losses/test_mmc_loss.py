"""The Max-Mahalanobis center loss against its definition."""

import numpy as np
import torch
from numpy.testing import assert_allclose

from robustsk.losses import mmc_loss
from robustsk.models import MaxMahalanobisLinear, max_mahalanobis_centers


def test_definition_and_gradient():
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(6, 4)), np.arange(6) % 3
    mu = max_mahalanobis_centers(3, 4, 2.0).numpy()
    tensor = torch.tensor(z, requires_grad=True)
    logits = -((tensor[:, None] - torch.as_tensor(mu)) ** 2).sum(2)
    loss = mmc_loss(logits, torch.as_tensor(y))
    assert_allclose(loss.detach(), 0.5 * ((z - mu[y]) ** 2).sum(1))
    loss.sum().backward()
    # towards the center of the class, whatever the others are
    assert_allclose(tensor.grad, z - mu[y], atol=1e-12)


def test_zero_at_the_center():
    layer = MaxMahalanobisLinear(9, 10)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(9))
        layer.bias.zero_()
    y = torch.arange(10)
    assert_allclose(mmc_loss(layer(layer.centers), y).detach(), 0, atol=1e-9)
    wrong = mmc_loss(layer(layer.centers), (y + 1) % 10)
    assert_allclose(wrong.detach(), 222.2222 / 2, rtol=1e-5)
