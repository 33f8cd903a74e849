import itertools

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from robustsk import attacks
from robustsk.attacks.noise import SampleNoise, Stream

X = torch.tensor(np.random.default_rng(0).normal(size=(3000, 8)))
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def correlation(a, b):
    return np.corrcoef(np.ravel(a), np.ravel(b))[0, 1]


@each_dtype
def test_uniform_numbers(dtype):
    u = SampleNoise(X.to(dtype), 0).uniform(0)
    assert u.dtype == dtype
    assert u.shape == X.shape
    assert u.min() > 0
    assert u.max() < 1
    u = u.double().numpy()
    assert_allclose(u.mean(), 0.5, atol=0.01)
    assert_allclose(u.var(), 1 / 12, atol=0.002)
    assert stats.kstest(u.ravel(), "uniform").pvalue > 0.01
    for feature in u.T:
        assert stats.kstest(feature, "uniform").pvalue > 0.001


@each_dtype
def test_normal_numbers(dtype):
    z = SampleNoise(X.to(dtype), 0).normal(0).double().numpy()
    assert np.isfinite(z).all()
    assert_allclose([z.mean(), z.std()], [0, 1], atol=0.02)
    assert_allclose([stats.skew(z.ravel()), stats.kurtosis(z.ravel())], 0, atol=0.1)
    assert stats.kstest(z.ravel(), "norm").pvalue > 0.01


@each_dtype
def test_one_number_per_sample(dtype):
    s = SampleNoise(X.to(dtype), 0).scalar(0)
    assert s.shape == (3000,)
    assert s.dtype == dtype
    assert s.min() > 0
    assert s.max() < 1
    assert stats.kstest(s.double().numpy(), "uniform").pvalue > 0.01


@each_dtype
def test_the_extreme_bits_stay_inside_of_the_open_interval(dtype):
    noise = SampleNoise(X[:1].to(dtype), 0)
    extreme = noise._unit(torch.tensor([0, -1]))
    assert extreme[0] > 0
    assert extreme[1] < 1
    assert_allclose(extreme.double(), [0, 1], atol=1e-6)


def test_streams_seeds_samples_and_features_are_independent():
    noise = SampleNoise(X, 0)
    base = noise.uniform(0)
    others = {
        "stream": noise.uniform(1),
        "far stream": noise.uniform(5000),
        "seed": SampleNoise(X, 1).uniform(0),
        "far seed": SampleNoise(X, 2**31 - 1).uniform(0),
        "sample": base.roll(1, 0),
        "feature": base.roll(1, 1),
        "scalar": noise.scalar(0)[:, None].expand_as(base),
        "normal": noise.normal(0),
        "data": X,
    }
    for name, other in others.items():
        assert abs(correlation(base, other)) < 0.03, name
    assert_allclose(np.corrcoef(base.numpy().T), np.eye(8), atol=0.08)
    assert_allclose(np.corrcoef(base.numpy()[:50])[~np.eye(50, dtype=bool)].mean(), 0, atol=0.03)
    scalars = np.stack([noise.scalar(s).numpy() for s in range(6)])
    assert_allclose(np.corrcoef(scalars), np.eye(6), atol=0.08)


def test_neighbouring_seeds_and_samples_share_no_number():
    seen = np.concatenate(
        [
            SampleNoise(X[:50], seed).uniform(stream).ravel()
            for seed in range(20)
            for stream in (0, 1)
        ]
    )
    assert len(np.unique(seen)) == len(seen)


def test_samples_that_differ_in_one_bit_get_different_noise():
    x = torch.tensor([[0.5, 0.25, 1.0]]).repeat(4, 1)
    x[1, 2] = float(np.nextafter(np.float32(1), np.float32(2)))
    x[2] = x[0].flip(0)
    x[3] = -x[0]
    u = SampleNoise(x, 0).uniform(0).numpy()
    assert len(np.unique(u)) == u.size


def uniform_streams(name, count):
    """Return the streams that uniform numbers drawn under a name take, and how many."""
    return {name.name: (int(name), count)}


def normal_streams(name, count):
    """Return the same for normal numbers."""
    return {f"{name.name}, normal": (Stream.NORMAL + 2 * name, 2 * count)}


def signed_streams(name, count):
    """Return the same for points in the ball of the 1-norm."""
    return {name.name: (int(name), count), f"{name.name}, signs": (Stream.SIGN + name, count)}


#: How many numbers from the first one of a name on an attack may use: far more than any does.
RESTARTS, STEPS = 1000, 5000
#: Numbers of a shape, by name: where they begin, and how many there are.
SHAPED = {
    **signed_streams(Stream.START, RESTARTS),
    **normal_streams(Stream.START, RESTARTS),
    **signed_streams(Stream.NEW_START, STEPS),
    **normal_streams(Stream.NEW_START, STEPS),
    **uniform_streams(Stream.WEIGHT, STEPS),
    **uniform_streams(Stream.RAY, STEPS),
    **normal_streams(Stream.RAY, STEPS),
    **uniform_streams(Stream.RESTART, STEPS),
}
#: One number for each sample: these have streams of their own.
SINGLE = {
    **uniform_streams(Stream.START, RESTARTS),
    **uniform_streams(Stream.TARGET, 1),
    **uniform_streams(Stream.NEW_START, STEPS),
    **uniform_streams(Stream.TRANSFORMATION, STEPS),
}


@pytest.mark.parametrize("kind", ["shaped", "single"])
def test_streams_of_different_names_do_not_overlap(kind):
    found = sorted((SHAPED if kind == "shaped" else SINGLE).items(), key=lambda item: item[1])
    for (name, (first, count)), (other, (following, _)) in itertools.pairwise(found):
        assert first + count <= following, (name, other)


def test_every_stream_has_a_name_and_a_first_number_of_its_own():
    assert len(set(Stream)) == len(Stream.__members__)
    # STEP and NORMAL begin within others: what follows one drawn start, and numbers made of others
    ranges = {name.partition(",")[0] for name in {**SHAPED, **SINGLE}}
    assert ranges | {"STEP", "NORMAL", "SIGN"} == set(Stream.__members__)


DRAWING = [
    *(attacks.PGD(norm=norm, n_steps=3, n_restarts=3) for norm in (np.inf, 2, 1)),
    attacks.PGD(n_steps=3, n_restarts=3, random_start="gaussian", target="random"),
    attacks.FriendlyPGD(omega=0.01, random_start="gaussian", tau=5),
    attacks.FriendlyPGD(omega=0.01, norm=1, tau=5),
    attacks.APGD(norm=2, n_steps=4, n_restarts=3),
    attacks.FAB(norm=1, n_steps=4, n_restarts=3),
    attacks.TAMOO(weighting="pcgrad", n_steps=4, random_start="gaussian"),
    attacks.SquareAttack(max_queries=200, n_restarts=2),
    attacks.SquareAttack(max_queries=200, n_restarts=2, norm=2),
    attacks.NES(max_queries=100),
    attacks.SPSA(max_queries=100),
    attacks.ZOO(max_queries=100),
    attacks.LocalSearch(n_steps=5),
    attacks.BoundaryAttack(max_queries=300),
    attacks.HopSkipJump(max_queries=300),
]


@pytest.mark.dealt
@pytest.mark.parametrize(
    "attack", [pytest.param(a, id=f"{type(a).__name__}-{i}") for i, a in enumerate(DRAWING)]
)
def test_no_number_is_drawn_twice_for_a_sample(attack, monkeypatch):
    X, y = load_digits(return_X_y=True)
    clf = LogisticRegression(max_iter=1000).fit(X[:500] / 16, y[:500])
    drawn, bits, scalar = [], SampleNoise._bits, SampleNoise.scalar

    def record(noise, kind, stream):
        if not Stream.RAY <= stream < Stream.RESTART:  # every second ray is the first one's mirror
            drawn.extend((kind, int(stream), key) for key in noise._key.tolist())

    def recorded_bits(self, stream, counter):
        record(self, "shaped", stream)
        return bits(self, stream, counter)

    def recorded_scalar(self, stream):
        record(self, "single", stream)
        return scalar(self, stream)

    monkeypatch.setattr(SampleNoise, "_bits", recorded_bits)
    monkeypatch.setattr(SampleNoise, "scalar", recorded_scalar)
    attack = attack._with(estimator=clf, eps=1e-3, random_state=0)
    attack.fit(X / 16).transform(X[500:504] / 16)
    assert drawn
    assert len(set(drawn)) == len(drawn)


def test_noise_belongs_to_the_content_not_to_the_place():
    noise = SampleNoise(X, 3)
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(0))
    for method in ("uniform", "normal", "scalar"):
        whole = getattr(noise, method)(2)
        assert torch.equal(getattr(SampleNoise(X[order], 3), method)(2), whole[order])
        assert torch.equal(getattr(SampleNoise(X[10:11], 3), method)(2), whole[10:11])
    twice = SampleNoise(torch.cat([X[:5], X[:5]]), 3).uniform(0)
    assert torch.equal(twice[:5], twice[5:])


def test_select():
    noise = SampleNoise(X[:10], 0)
    for index in (torch.tensor([7, 2]), torch.tensor([True, False] * 5), slice(2, 5)):
        some = noise.select(index)
        for method in ("uniform", "normal", "scalar"):
            assert torch.equal(getattr(some, method)(1), getattr(noise, method)(1)[index])
    assert torch.equal(
        noise.select(slice(2, 8)).select(slice(1, 3)).uniform(0), noise.uniform(0)[3:5]
    )
    assert noise.select(torch.zeros(10, dtype=torch.bool)).uniform(0).shape == (0, 8)


@each_dtype
def test_negative_zero_is_zero(dtype):
    zero = torch.tensor([[0.0, 1.0, 0.0]], dtype=dtype)
    minus = torch.tensor([[-0.0, 1.0, -0.0]], dtype=dtype)
    assert torch.equal(SampleNoise(zero, 0).uniform(0), SampleNoise(minus, 0).uniform(0))


def test_images_are_flattened():
    x = X.reshape(3000, 2, 2, 2)
    u = SampleNoise(x, 0).uniform(0)
    assert u.shape == x.shape
    assert_array_equal(u.reshape(3000, 8), SampleNoise(X, 0).uniform(0))
    assert SampleNoise(x, 0).select(torch.tensor([1, 2])).normal(0).shape == (2, 2, 2, 2)


def test_strides_do_not_matter():
    assert torch.equal(SampleNoise(X.T.contiguous().T, 0).uniform(0), SampleNoise(X, 0).uniform(0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    u = SampleNoise(X.to(dtype), 0).uniform(0)
    assert u.dtype == dtype
    assert u.min() > 0
    assert u.max() < 1
    assert_allclose(u.double().mean(), 0.5, atol=0.01)


def test_the_data_are_neither_changed_nor_tracked():
    x = X.clone().requires_grad_(True)
    u = SampleNoise(x, 0).uniform(0)
    assert not u.requires_grad
    assert torch.equal(x.detach(), X)


def test_numbers_do_not_change_between_versions():
    u = SampleNoise(torch.tensor([[0.5, 0.25]], dtype=torch.float64), 0).uniform(0)
    assert_allclose(u, REFERENCE, rtol=1e-15)


def splitmix(z):
    mask = (1 << 64) - 1
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def reference():
    """The same in the integers of Python."""
    mask, golden = (1 << 64) - 1, 0x9E3779B97F4A7C15
    bits = [int(np.float64(v).view(np.int64)) for v in (0.5, 0.25)]
    weights = [splitmix((i * golden) & mask) | 1 for i in (1, 2)]
    total = sum(b * w for b, w in zip(bits, weights, strict=True)) & mask
    key = splitmix(splitmix((total + splitmix(0)) & mask))
    words = [splitmix((key + i * golden) & mask) for i in (1, 2)]
    return [[((w >> 12) + 0.5) * 2.0**-52 for w in words]]


REFERENCE = reference()
