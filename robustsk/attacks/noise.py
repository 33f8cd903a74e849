"""Random numbers that belong to a sample, not to its place in a batch.

An attack with a random start is usually a function of the batch it is run on:
change the batch size, drop a solved sample or shuffle the rows and every
result changes. Here the numbers are produced by a counter-based generator
(splitmix64: Steele, Lea and Flood, 2014, "Fast splittable pseudorandom number
generators") whose key is the seed *and the values of the sample*. Results
then depend on neither batch size, order nor device, no global state is read
or moved, and dropping finished samples from a batch is free of side effects.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from enum import IntEnum
from functools import lru_cache

import torch

from .._generator import GeneratorState

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed integer
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


class Stream(IntEnum):
    """The streams of random numbers that are drawn from in this package: the first of each.

    What is drawn for a sample has one key. Two of its numbers are independent of each other only
    if they come from different streams, or from different seeds: whoever draws something new
    while an attack runs gives it a name here, and a first number with room to the next name.
    """

    #: Starting points: + the number of the restart. In an attack whose start is not drawn, what is
    #: drawn in its steps: + the number of the step, or twice that.
    START = 0
    #: What is drawn in the steps that follow one drawn start: + the number of the step.
    STEP = 1
    #: The two halves of normal numbers: + twice the stream of the normal numbers.
    NORMAL = 1_001
    #: Signs of points in the ball of the 1-norm: + the stream of their sizes.
    SIGN = 5_000
    #: The class to reach.
    TARGET = 7_919
    #: Starting points in place of iterates that lead nowhere: + the number of the step.
    NEW_START = 10_000
    #: Weights of several objectives: + the number of the step.
    WEIGHT = 40_000
    #: Transformations: + their number, counted through all steps.
    TRANSFORMATION = 80_000
    #: Rays on which adversarial points are looked for: times one more than the number of the
    #: restart, + the number of the ray.
    RAY = 10**6
    #: Restarts that have streams of their own for start and steps: times the number of the restart.
    RESTART = 2**32


def _shift_right(z, bits):
    """Logical right shift (torch's own is arithmetic)."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value):
    """Wrap a Python integer to 64 signed bits, as tensor arithmetic does."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


def _mix(z):
    z = (z ^ _shift_right(z, 30)) * _MIX_1
    z = (z ^ _shift_right(z, 27)) * _MIX_2
    return z ^ _shift_right(z, 31)


def _mix_on_host(z):
    """Mix a Python integer; see `_mix`."""
    z = _signed((z ^ _shift_right(z, 30)) * _MIX_1)
    z = _signed((z ^ _shift_right(z, 27)) * _MIX_2)
    return z ^ _shift_right(z, 31)


@lru_cache(maxsize=8)
def _places(n, device):
    """Return the numbers of the entries of a sample, and what each counts in its key."""
    counter = torch.arange(1, n + 1, device=device)
    return counter, _mix(counter * _GOLDEN) | 1


class SampleNoise:
    """Noise for a batch, keyed on ``(seed, sample)``.

    Parameters
    ----------
    x : torch.Tensor of shape (n, ...)
        The clean batch.
    seed : int or torch.Tensor of int64 of shape ()
        Non-negative. As a tensor it stays on its device.
    """

    def __init__(self, x, seed):
        flat = x.detach().reshape(len(x), -1) + 0.0  # -0.0 and 0.0 are one value
        integer = torch.int64 if flat.dtype == torch.float64 else torch.int32
        if flat.dtype not in (torch.float64, torch.float32):
            flat = flat.float()
        bits = flat.contiguous().view(integer).to(torch.int64)
        self._counter, weights = _places(flat.shape[1], x.device)
        # a number that is on the host is mixed there: a device would have to wait for it
        seed = _mix(seed) if isinstance(seed, torch.Tensor) else _mix_on_host(int(seed))
        self._key = _mix((bits * weights).sum(1) + seed)
        self._shape = x.shape
        self._dtype = x.dtype

    @property
    def shape(self):
        """Shape of the batch."""
        return self._shape

    def select(self, index):
        """Keep the samples in `index`."""
        other = object.__new__(SampleNoise)
        other.__dict__.update(self.__dict__)
        other._key = self._key[index]
        other._shape = (len(other._key), *self._shape[1:])
        return other

    def shared(self, k):
        """Return the noise of groups of `k` samples, whatever their order in the group."""
        if k == 1:
            return self
        other = object.__new__(SampleNoise)
        other.__dict__.update(self.__dict__)
        other._key = _mix(self._key.unflatten(0, (-1, k)).sum(1))
        other._shape = (len(other._key), *self._shape[1:])
        return other

    def _bits(self, stream, counter):
        key = _mix(self._key + _signed(stream * _MIX_1))
        return _mix(key[:, None] + counter * _GOLDEN)

    def uniform(self, stream, shape=None):
        """Return numbers in the open interval (0, 1).

        Parameters
        ----------
        stream : int
            Another stream, other numbers; counted from one of those in :class:`Stream`.
        shape : tuple of int, optional
            Shape of the numbers of one sample; None means that of a sample.

        Returns
        -------
        torch.Tensor of shape (n, ...)
        """
        if shape is None:
            return self._unit(self._bits(stream, self._counter)).reshape(self._shape)
        counter = torch.arange(1, math.prod(shape) + 1, device=self._key.device)
        return self._unit(self._bits(stream, counter)).reshape(len(self._key), *shape)

    def scalar(self, stream):
        """Return one number in (0, 1) per sample, shape (n,)."""
        return self._unit(_mix(self._key + _signed((stream + 1) * _MIX_2)))

    def normal(self, stream, shape=None):
        """Return standard normal numbers (Box-Muller); arguments as in `uniform`."""
        radius = torch.sqrt(-2.0 * torch.log(self.uniform(Stream.NORMAL + 2 * stream, shape)))
        angle = 2.0 * math.pi * self.uniform(Stream.NORMAL + 2 * stream + 1, shape)
        return radius * torch.cos(angle)

    def _unit(self, bits):
        # as many bits as the dtype holds once the half is added: never rounds up to one
        n_bits = round(-math.log2(torch.finfo(self._dtype).eps))
        top = _shift_right(bits, 64 - n_bits).to(self._dtype)
        return (top + 0.5) * 2.0**-n_bits


@contextmanager
def seeded(seed, device):
    """Seed torch's global generators for a while and put them back; other threads wait."""
    with GeneratorState(seed % 2**63, device).in_use() as interruptible, interruptible():
        yield
