"""What one column of a row may become: the moves that attacks on tables are made of."""

from __future__ import annotations

import numpy as np
import torch

from .._tensors import flat
from .noise import Stream

#: All of so many values on a grid are tried, of more only some.
_FEW = 21
#: Numbers in the rows that are made at a time.
_ELEMENTS = 2**22


class Moves:
    """Moves of single columns from rows of a batch, and the rows to which they lead.

    Numbers go to the ends of what is possible and to values in between, categories to any other
    one. Where the radius is used up, or where no more categories may change, the other columns give
    way.

    Parameters
    ----------
    ball : Ball
        Of a table or not.
    z : torch.Tensor of shape (n, ...)
        The rows to move from, in the ball.
    order : torch.Tensor of shape (n, n_features + n_options)
        Random numbers: the columns, and after them the categories, with the largest are tried.
    n_columns : int
        How many columns of a row are tried at most.
    n_candidates : int
        Values that are tried between the ends.
    limit : torch.Tensor of shape (n,)
        Number of moves of each row at most; ends come first.

    Attributes
    ----------
    points : torch.Tensor of shape (m, ...)
        Where the moves lead: rows of the space, all of them other than that which is left.
    rows : torch.Tensor of shape (m,)
        Which of the rows they are about.
    is_switch : torch.Tensor of bool of shape (n, n_slots)
        Whether a slot is about a category; each slot of a row is about one column.
    numbers : torch.Tensor of int64 of shape (n, n_slots, width)
        The moves of each column of each row; -1 where there is none.
    """

    def __init__(self, ball, z, order, n_columns, n_candidates, limit):
        self.ball, self.z = ball, z
        self._options = ball.options if ball.is_table else []
        n_features = flat(z).shape[1]
        possible = torch.cat([movable(ball), *(_free(ball, p) for p, _ in self._options)], 1)
        n_slots = min(n_columns, possible.shape[1])
        drawn, self._units = torch.where(possible, order, -1.0).topk(n_slots, dim=1)
        self._tried = drawn > 0
        self.is_switch = self._units >= n_features
        found = [self._of_numbers(n_candidates), *self._of_options(n_features)]
        points, rows, slots, kinds, levels = (torch.cat(part) for part in zip(*found, strict=True))
        points = settled(ball.select(rows), points.reshape(len(points), *z.shape[1:]))
        keep = (points.flatten(1) != flat(z)[rows]).any(1)
        # ends before what is between them, and each row no further than its limit
        rank = (rows * 2 + levels) * n_slots + slots
        keep = keep.nonzero()[:, 0]
        keep = keep[rank[keep].argsort(stable=True)]
        keep = keep[within(rows[keep], limit)]
        self.points, self.rows = points[keep], rows[keep]
        self._slots, self._kinds = slots[keep], kinds[keep]
        self._width = int(kinds.max()) + 1 if len(kinds) else 1
        self.numbers = self.spread(torch.arange(len(keep), device=z.device), -1)

    def __len__(self):
        return len(self.rows)

    def _of_numbers(self, n_candidates):
        ball, z = self.ball, flat(self.z)
        rows, slots = (self._tried & ~self.is_switch).nonzero(as_tuple=True)
        where = self._units[rows, slots]
        now, clean = z[rows, where], flat(ball.x)[rows, where]
        low, high = (end[rows, where] for end in ends(ball))
        least, most = (end[rows, where] for end in room(ball, self.z))
        share = torch.arange(1, n_candidates + 1).to(z) / (n_candidates + 1)
        between = least[:, None] + share * (most - least)[:, None]
        values = torch.stack([low, high, least, most], 1)
        if ball.norm == np.inf:  # where the ends are the same
            values = values[:, :2]
        values = torch.cat([values, between], 1)
        if ball.is_table:
            values = _all_on_grid(values, clean, low, high, ball.step[where])
        levels = torch.ones_like(values, dtype=torch.int64)
        levels[:, :2] = 0
        moves = values.isfinite() & (values != now[:, None])
        number, kinds = moves.nonzero(as_tuple=True)
        rows, slots, where = rows[number], slots[number], where[number]
        points = z[rows]
        points[torch.arange(len(points), device=z.device), where] = values[number, kinds]
        return points, rows, slots, kinds, levels[number, kinds]

    def _of_options(self, n_features):
        for number, (_, values) in enumerate(self._options):
            rows, slots = ((self._units == n_features + number) & self._tried).nonzero(
                as_tuple=True
            )
            points = switches(self.ball, self.z, number, rows)
            kinds = torch.arange(len(values), device=rows.device).repeat(len(rows))
            rows, slots = (v.repeat_interleave(len(values)) for v in (rows, slots))
            yield points, rows, slots, kinds, torch.zeros_like(rows)

    def spread(self, values, filling):
        """Return a table of a value for each move, `filling` elsewhere, (n, n_slots, width)."""
        table = torch.full((*self._units.shape, self._width), filling).to(values)
        table[self.rows, self._slots, self._kinds] = values
        return table

    def combined(self, rows, numbers):
        """Return the rows to which several moves lead together.

        Parameters
        ----------
        rows : torch.Tensor of shape (k,)
            Which of the rows they start from.
        numbers : torch.Tensor of int64 of shape (k, n_together)
            Moves of these rows, in different columns; -1 is none.

        Returns
        -------
        torch.Tensor of shape (k, ...)
        """
        z = flat(self.z)[rows]
        moved = (self.points.flatten(1)[numbers] - z[:, None]) * (numbers >= 0)[:, :, None]
        together = (z + moved.sum(1)).reshape(len(z), *self.z.shape[1:])
        return settled(self.ball.select(rows), together)


def switches(ball, z, number, rows):
    """Return some rows with one category at each value it may have.

    Where no more categories may change, the first that has changed goes back.

    Parameters
    ----------
    ball : TableBall
    z : torch.Tensor of shape (n, ...)
    number : int
        Which of the options of the ball.
    rows : torch.Tensor of int64 of shape (m,)

    Returns
    -------
    torch.Tensor of shape (m * n_values, n_features)
        All values of the first row, then those of the next one; not settled.
    """
    x, points = flat(ball.x), flat(z)[rows]
    changed, most = ball.switched(z)[1][rows], ball.space.max_changes
    if most is not None and len(rows):
        gives_way = (changed.sum(1) >= most) & ~changed[:, number]
        first = changed.int().argmax(1)
        for other, (places, _) in enumerate(ball.options):
            back = (gives_way & (first == other)).nonzero()
            points[back, places] = x[rows[back], places]
    places, values = ball.options[number]
    points = points.repeat_interleave(len(values), 0)
    points[:, places] = values.repeat(len(rows), 1)
    return points


def all_switches(ball, z):
    """Yield the rows that have one other category than those of `z`, and which each is about.

    Parameters
    ----------
    ball : Ball
        There are none if it is not one of a table.
    z : torch.Tensor of shape (n, ...)
        Rows of the space.

    Yields
    ------
    points : torch.Tensor of shape (m, ...)
    about : torch.Tensor of int64 of shape (m,)
        In ascending order.
    """
    here = torch.arange(len(z), device=z.device)
    for number, (_, values) in enumerate(ball.options if ball.is_table and len(z) else ()):
        for some in here.split(max(1, _ELEMENTS // max(1, len(values) * z[:1].numel()))):
            about = some.repeat_interleave(len(values))
            points = switches(ball, z, number, some).reshape(len(about), *z.shape[1:])
            points = settled(ball.select(about), points)
            moves = (points.flatten(1) != flat(z)[about]).any(1)
            if bool(moves.any()):
                yield points[moves], about[moves]


def best_of_rows(score, rows, above=None):
    """Return the place of the highest score of each row that there is, shape (n_distinct,).

    Parameters
    ----------
    score, rows : torch.Tensor of shape (m,)
    above : torch.Tensor of shape (n,), optional
        Scores of the rows that are to be beaten; where they are not, there is no place.
    """
    order = score.argsort(descending=True, stable=True)
    order = order[rows[order].argsort(stable=True)]
    first = torch.ones_like(order, dtype=torch.bool)
    first[1:] = rows[order][1:] != rows[order][:-1]
    order = order[first]
    return order if above is None else order[score[order] > above[rows[order]]]


def within(rows, limit):
    """Return which entries are among the first `limit` of their row.

    Parameters
    ----------
    rows : torch.Tensor of int64 of shape (m,)
    limit : torch.Tensor of shape (n,)

    Returns
    -------
    torch.Tensor of bool of shape (m,)
    """
    order = rows.argsort(stable=True)
    sorted_ = rows[order]
    place = torch.arange(len(rows), device=rows.device) - torch.searchsorted(sorted_, sorted_)
    return torch.zeros_like(rows, dtype=torch.bool).scatter(0, order, place < limit[sorted_])


def settled(ball, z):
    """Return the points that may be asked about, next to `z`."""
    if len(z) == 0:
        return z
    return ball.settle(z) if ball.is_table else ball.project(z)


def movable(ball):
    """Return where numbers may change, shape (n, n_features)."""
    if ball.is_table:
        return ball.movable
    free = torch.ones_like(ball.x, dtype=torch.bool)
    return flat(free if ball.weight is None else free & (ball.weight > 0))


def _free(ball, places):
    return ~ball.is_fixed(places)[:, None]


def ends(ball):
    """Return the least and the most that each number may be, alone, shape (n, n_features)."""
    if ball.norm == np.inf:
        return flat(ball.lower), flat(ball.upper)
    reach = torch.full_like(ball.x, ball.radius)
    return tuple(flat(ball.clamp(ball.x + ball.to_data(end))) for end in (-reach, reach))


def room(ball, z):
    """Return the same where all other columns are as they are in `z`."""
    if ball.norm == np.inf:
        return flat(ball.lower), flat(ball.upper)
    spent = flat(ball.to_unit(z - ball.x)).abs() ** ball.norm
    total = spent.sum(1)
    if ball.is_table:
        total = total + ball.switched(z)[0]
    left = (ball.radius**ball.norm - (total[:, None] - spent)).clamp_min(0.0) ** (1 / ball.norm)
    left = left.reshape(z.shape)
    return tuple(flat(ball.clamp(ball.x + ball.to_data(end))) for end in (-left, left))


def _all_on_grid(values, clean, low, high, step):
    """Put all values there are in the place of some where these are few."""
    gridded = step > 0
    if not bool(gridded.any()):
        return values
    step = torch.where(gridded, step, 1.0)
    first = ((low - clean) / step - 1e-9).ceil()
    count = ((high - clean) / step + 1e-9).floor() - first + 1
    number = torch.arange(max(_FEW, values.shape[1]), device=values.device).to(values)
    every = clean[:, None] + (first[:, None] + number) * step[:, None]
    every = torch.where(number < count[:, None], every, torch.nan)
    values = torch.nn.functional.pad(values, (0, len(number) - values.shape[1]), value=torch.nan)
    return torch.where((gridded & (count <= _FEW))[:, None], every, values)


def random_rows(ball, noise, stream):
    """Return rows of the space at random: numbers anywhere, as many categories as may be changed.

    Parameters
    ----------
    ball : Ball
    noise : SampleNoise
    stream : int
        A multiple of ``Stream.RESTART``.
    """
    z = ball.random_start("uniform", noise, Stream.START + stream, 0.0)
    options = ball.options if ball.is_table else []
    if not options:
        return settled(ball, z)
    limit = ball.space.max_changes
    free = torch.cat([_free(ball, places) for places, _ in options], 1)
    drawn = noise.uniform(Stream.NEW_START + stream, (2, len(options)))
    chosen = torch.where(free, drawn[:, 0], -1.0).topk(
        len(options) if limit is None else min(limit, len(options)), dim=1
    )
    picked = torch.zeros_like(free).scatter(1, chosen.indices, chosen.values > 0)
    values = flat(z)
    for number, (places, known) in enumerate(options):
        if len(known) == 0:
            continue
        value = known[(drawn[:, 1, number] * len(known)).long().clamp_max(len(known) - 1)]
        values[:, places] = torch.where(picked[:, number, None], value, values[:, places])
    return settled(ball, values.reshape(z.shape))
