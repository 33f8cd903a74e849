import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from robustsk.losses import logit_pairing

RNG = np.random.default_rng(0)
CLEAN, ADV = 2 * RNG.standard_normal((2, 5, 4))
D = CLEAN - ADV
EXPECTED = {
    "l2": (D**2).mean(axis=1),
    "l1": np.abs(D).mean(axis=1),
    "huber": np.where(np.abs(D) < 1, D**2 / 2, np.abs(D) - 0.5).mean(axis=1),
}


@pytest.mark.parametrize("pairing", EXPECTED)
def test_matches_definition(pairing):
    clean, adv = torch.tensor(CLEAN), torch.tensor(ADV)
    assert (np.abs(D) < 1).any()
    assert (np.abs(D) > 1).any()
    assert_allclose(logit_pairing(clean, adv, pairing), EXPECTED[pairing], rtol=1e-12)
    assert_allclose(logit_pairing(adv, clean, pairing), EXPECTED[pairing], rtol=1e-12)
    assert torch.equal(logit_pairing(clean, clean, pairing), torch.zeros(5, dtype=torch.float64))


@pytest.mark.parametrize("pairing", EXPECTED)
def test_gradient_reaches_both_and_is_opposite(pairing):
    clean, adv = (torch.tensor(v, requires_grad=True) for v in (CLEAN, ADV))
    first, second = torch.autograd.grad(logit_pairing(clean, adv, pairing).sum(), (clean, adv))
    assert_allclose(first, -second)
    slope = {"l2": 2 * D, "l1": np.sign(D), "huber": np.clip(D, -1, 1)}[pairing]
    assert_allclose(first, slope / 4, rtol=1e-12)


def test_unknown_distance():
    with pytest.raises(ValueError, match=r"pairing must be one of.*'cosine'"):
        logit_pairing(torch.zeros(1, 2), torch.zeros(1, 2), "cosine")
