"""Weights of samples: by kappa (GAIRAT) and by the margin (MAIL)."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from robustsk.losses import geometry_weights, margin_weights, probability_margin

K = 10
KAPPA = torch.arange(K + 1)
#: (1 + tanh(lam + 5 (1 - 2 kappa / K))) / 2 for kappa = 0, 1, ..., 10, in 50 digits.
TANH_MINUS_ONE = [
    0.99966464987, 0.99752737684, 0.98201379004, 0.88079707798, 0.5, 0.11920292202,
    0.017986209962, 0.0024726231566, 3.3535013047e-4, 4.5397868702e-5, 6.1441746022e-6,
]  # fmt: skip


def raw(**params):
    return geometry_weights(KAPPA, K, normalize=False, **params).numpy()


def test_tanh_has_the_published_values():
    assert_allclose(raw(lam=-1.0), TANH_MINUS_ONE, rtol=1e-9)
    assert_allclose(raw(), TANH_MINUS_ONE, rtol=1e-9)
    # one more for lambda moves the list by one step of kappa
    assert_allclose(raw(lam=0.0)[1:], TANH_MINUS_ONE[:-1], rtol=1e-9)
    assert raw(lam=0.0)[5] == 0.5


def test_other_weightings_match_definition():
    kappa = np.arange(K + 1)
    for lam in (-2.0, 0.0, 3.0):
        u = lam + 5 * (1 - 2 * kappa / K)
        assert_allclose(raw(lam=lam, weighting="sigmoid"), 1 / (1 + np.exp(-u)), rtol=1e-12)
        assert_allclose(raw(lam=lam), (1 + np.tanh(u)) / 2, rtol=1e-6)
    discrete = raw(weighting="discrete")
    assert_allclose(discrete, (11 - kappa) / 11, rtol=1e-12)
    assert_allclose([discrete[0], discrete[-1]], [1, 1 / 11])


def test_an_odd_number_of_steps():
    """The formula of the article, which does not round K / 2."""
    found = geometry_weights(torch.tensor([0, 3, 7]), 7, 0.0, normalize=False)
    u = 5 * (1 - 2 * np.array([0, 3, 7]) / 7)
    assert_allclose(found, (1 + np.tanh(u)) / 2, rtol=1e-10)


@pytest.mark.parametrize(("lam", "expected"), [(-4.0, 1.5229979513e-8), (-5.0, 2.0611536181e-9)])
def test_small_weights_do_not_underflow(lam, expected):
    """sigmoid(2 (lam - 5)), of which (1 + tanh) / 2 has no digit in float32."""
    assert_allclose(raw(lam=lam)[-1], expected, rtol=1e-9)
    alone = geometry_weights(torch.tensor([K, K]), K, lam)
    assert alone.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("weighting", ["tanh", "sigmoid", "discrete"])
def test_order(weighting):
    lams = [-20.0, -1.0, 0.0, 0.5, 4.0]
    table = np.array([raw(lam=lam, weighting=weighting) for lam in lams])
    assert (np.diff(table, axis=1) <= 0).all()  # not increasing in kappa
    assert (np.diff(table, axis=0) >= 0).all()  # not decreasing in lambda
    assert (table >= 0).all()
    assert (table <= 1).all()


@pytest.mark.parametrize("weighting", ["tanh", "sigmoid", "discrete"])
@pytest.mark.parametrize("lam", [-np.inf, -1e30, -50.0, -1.0, 0.0, 2.0, 50.0, np.inf])
def test_normalised_weights(weighting, lam):
    kappa = torch.tensor([0, 10, 3, 3, 7, 5, 10, 1])
    weight = geometry_weights(kappa, K, lam, weighting)
    assert torch.isfinite(weight).all()
    assert_allclose(weight.mean(), 1, rtol=1e-12)
    if abs(lam) < 10:
        unnormalised = geometry_weights(kappa, K, lam, weighting, normalize=False)
        assert_allclose(weight, unnormalised / unnormalised.mean(), rtol=1e-9)
    equal = geometry_weights(torch.full((5,), 4), K, lam, weighting)
    assert equal.tolist() == [1.0] * 5


def test_limits_of_lambda():
    kappa = torch.tensor([8, 2, 9, 2])
    assert geometry_weights(kappa, K, np.inf).tolist() == [1.0] * 4
    lowest = geometry_weights(kappa, K, -np.inf)
    # the weights are in the ratio exp(-20 (kappa - kappa') / K) by then
    expected = np.exp(-2.0 * (kappa.numpy() - 2))
    assert_allclose(lowest, expected / expected.mean(), rtol=1e-12)
    assert_allclose(geometry_weights(kappa, K, -60.0), lowest, rtol=1e-12)
    assert lowest[[1, 3]].sum() > 0.99 * lowest.sum()


@pytest.mark.parametrize("function", ["geometry", "margin"])
def test_a_sample_of_weight_two_is_two_samples(function):
    times = torch.tensor([1, 3, 2, 4])
    values = torch.tensor([0, 9, 4, 6])

    def weigh(v, sample_weight=None):
        if function == "geometry":
            return geometry_weights(v, K, sample_weight=sample_weight)
        return margin_weights(v.double() / 10, sample_weight=sample_weight)

    weighted = weigh(values, times)
    repeated = weigh(values.repeat_interleave(times))
    assert_allclose(weighted.repeat_interleave(times), repeated, rtol=1e-12)
    assert_allclose((times * weighted).sum() / times.sum(), 1, rtol=1e-12)
    assert_allclose(weigh(values, 7.0 * times), weighted, rtol=1e-12)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"weighting": "linear"}, r"weighting must be one of.*'linear'"),
        ({"lam": np.nan}, "lam must be a number"),
        ({"lam": "big"}, "lam must be a number"),
        ({"n_steps": 0}, "n_steps must be at least 1"),
    ],
    ids=str,
)
def test_bad_parameters(params, message):
    with pytest.raises(ValueError, match=message):
        geometry_weights(**{"kappa": KAPPA, "n_steps": K, **params})


def test_probability_margin():
    p = np.array([[0.5, 0.2, 0.3], [0.1, 0.6, 0.3], [0.25, 0.25, 0.5]])
    found = probability_margin(torch.tensor(np.log(p)), torch.tensor([0, 2, 1]))
    assert_allclose(found, [0.2, -0.3, -0.25], atol=1e-12)


@pytest.mark.parametrize(("gamma", "b"), [(10.0, -0.5), (5.0, 0.0), (2.0, 0.7)])
def test_margin_weights_match_definition(gamma, b):
    margins = np.linspace(-1, 1, 9)
    w = 1 / (1 + np.exp(gamma * (margins - b)))
    found = margin_weights(torch.tensor(margins), gamma, b)
    assert_allclose(found, w / w.mean(), rtol=1e-10)
    assert (np.diff(found) < 0).all()  # the safer the less weight


def test_margin_weights_in_the_limit():
    margins = torch.linspace(-1, 1, 5)
    assert margin_weights(margins, gamma=0.0).tolist() == [1.0] * 5
    steep = margin_weights(margins, gamma=1e4, b=-5.0)  # all of them underflow in float32
    assert_allclose(steep, [5, 0, 0, 0, 0], atol=1e-6)
    attached = torch.linspace(-1, 1, 5, requires_grad=True)
    assert not margin_weights(attached).requires_grad
