"""Functions in pieces: ranks among quantiles, splines."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.preprocessing import QuantileTransformer, SplineTransformer
from torch import nn

from ._convert_transformers import double, keep_missing, transformed
from .converters import to_module

#: `QuantileTransformer` takes what is so close to the ends of its range for the ends.
_BAND = 1e-7


def interpolate(x, knots, values):
    """Interpolate linearly in each column, and go on as a constant beyond the knots.

    At a knot that there are several of it is the middle of the first and the last value, and the
    slope at any knot is the mean of those on both sides.

    Parameters
    ----------
    x : torch.Tensor of shape (n, d)
    knots, values : torch.Tensor of shape (d, n_knots)
        Knots ascend, and may be the same.

    Returns
    -------
    torch.Tensor of shape (n, d)
    """
    x = x.T.contiguous()
    last = knots.shape[1] - 1
    after = torch.searchsorted(knots, x.detach(), right=True)
    before = torch.searchsorted(knots, x.detach())
    up, down = (after - 1).clamp_min(0), before.clamp_max(last)
    slopes = (
        _slope(knots, values, up, after.clamp_max(last)),
        _slope(knots, values, (before - 1).clamp_min(0), down),
    )
    sides = [
        values.gather(1, place) + slope * (x - knots.gather(1, place))
        for place, slope in zip((up, down), slopes, strict=True)
    ]
    return (0.5 * (sides[0] + sides[1])).T


def _slope(knots, values, start, end):
    width = knots.gather(1, end) - knots.gather(1, start)
    rise = values.gather(1, end) - values.gather(1, start)
    return torch.where(width > 0, rise / torch.where(width > 0, width, 1.0), 0.0)


class _Quantiles(nn.Module):
    """Ranks among the quantiles, and perhaps what a normal variable of that rank is."""

    def __init__(self, step):
        super().__init__()
        self.is_normal = step.output_distribution == "normal"
        self.register_buffer("quantiles", double(step.quantiles_.T).contiguous())
        self.register_buffer("ranks", double(step.references_))

    def forward(self, x):
        return keep_missing(self._of, x)

    def _of(self, x):
        rank = interpolate(x, self.quantiles, self.ranks.expand_as(self.quantiles))
        first, last = self.quantiles[:, 0], self.quantiles[:, -1]
        if not self.is_normal:
            # where quantiles are the same it is the middle of their ranks, but at the ends
            jump = torch.where(x == last, 1.0, rank)
            jump = torch.where(x == first, 0.0, jump)
            return rank + (jump - rank).detach()
        rank = torch.where(x + _BAND > last, 1.0, rank)
        rank = torch.where(x - _BAND < first, 0.0, rank)
        least = _BAND - np.spacing(1)
        return torch.special.ndtri(rank.clamp(least, 1 - least))


@to_module.register
def _(step: QuantileTransformer):
    return _Quantiles(step)


class _Pieces(nn.Module):
    """Polynomials between knots, several of them for each column.

    The slope at a knot is the mean of those on both sides.

    Parameters
    ----------
    knots : ndarray of shape (d, n_knots)
        Ascending.
    middles, halves : ndarray of shape (d, n_knots + 1)
        The variable of a polynomial is ``(x - middle) / half``.
    coefficients : ndarray of shape (d, n_knots + 1, n_powers, n_outputs)
        From the highest power down.
    is_periodic : bool, default=False
        Whether the range of the knots is one period.
    """

    def __init__(self, knots, middles, halves, coefficients, is_periodic=False):
        super().__init__()
        self.is_periodic = is_periodic
        self.is_flat = coefficients.shape[2] == 1
        self.register_buffer("knots", double(knots).contiguous())
        self.register_buffer("middles", double(middles))
        self.register_buffer("halves", double(halves))
        self.register_buffer("coefficients", double(coefficients))

    def forward(self, x):
        given = x
        if self.is_periodic:
            first, period = self.knots[:, 0], self.knots[:, -1] - self.knots[:, 0]
            turns = ((x.detach() - first) / torch.where(period > 0, period, 1.0)).floor()
            # a single value that all rows have is no period
            x = torch.where(period > 0, x - turns * period, 0.0 * x)
        place = x.detach().T.contiguous()
        after = torch.searchsorted(self.knots, place, right=True).T
        # the last piece holds its end
        value = self._piece(x, torch.where(x == self.knots[:, -1], after - 1, after))
        if not self.is_flat:
            before = torch.searchsorted(self.knots, place).T
            both = 0.5 * (self._piece(x, before) + self._piece(x, after))
            value = both + (value - both).detach()
        missing = given.isnan()[:, :, None]
        return torch.where(missing, 0.0, value).flatten(1)

    def _piece(self, x, number):
        columns = torch.arange(len(self.knots), device=x.device)
        local = (x - self.middles[columns, number]) / self.halves[columns, number]
        coefficients = self.coefficients[columns, number]
        value = coefficients[:, :, 0]
        for power in range(1, coefficients.shape[2]):
            value = value * local[:, :, None] + coefficients[:, :, power]
        return value


@to_module.register
def _(step: QuantileTransformer):
    return _Quantiles(step)


@to_module.register
def _(step: SplineTransformer):
    """Ask the transformer for values enough to know each piece."""
    splines, degree = step.bsplines_, step.degree
    knots = np.stack([spline.t[degree : len(spline.t) - degree] for spline in splines])
    widths = np.diff(knots, axis=1)
    widths[widths <= 0] = 1.0
    # beyond the ends there is one more piece each, known by a stretch as long as its neighbour
    starts = np.column_stack([knots[:, 0] - widths[:, 0], knots])
    ends = np.column_stack([knots, knots[:, -1] + widths[:, -1]])
    spans, middles = (ends - starts) / 2, (starts + ends) / 2
    halves = np.where(spans > 0, spans, 1.0)  # nothing lies in a piece without a width
    powers = np.arange(degree, -1, -1)
    nodes = np.cos(np.pi * (np.arange(degree + 1) + 0.5) / (degree + 1))
    outer = {"constant": 0, "linear": min(degree, 1), "error": 0}.get(step.extrapolation, degree)
    coefficients = []
    for piece in range(middles.shape[1]):
        is_outer = piece in (0, middles.shape[1] - 1)
        is_end = step.extrapolation == "error" or (degree, step.extrapolation) == (0, "constant")
        if is_outer and is_end:  # where it raises
            inside = knots[:, 0] if piece == 0 else knots[:, -1]
            points = np.tile(inside, (degree + 1, 1))
        else:
            points = middles[:, piece] + nodes[:, None] * spans[:, piece]
        values = transformed(step, points).reshape(degree + 1, len(knots), -1)
        known = powers <= (outer if is_outer else degree)
        fitted = np.linalg.lstsq(
            (nodes[:, None] ** powers)[:, known], values.reshape(degree + 1, -1), rcond=None
        )[0]
        full = np.zeros((degree + 1, fitted.shape[1]))
        full[known] = fitted
        coefficients.append(full.reshape(degree + 1, len(knots), -1))
    stacked = np.stack(coefficients).transpose(2, 0, 1, 3)
    is_periodic = step.extrapolation == "periodic"
    return _Pieces(knots, middles, halves, stacked, is_periodic)
