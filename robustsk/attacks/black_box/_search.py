"""What the attacks have in common that ask for scores and remember the best answer."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from ...victims._outputs import predicted_class
from .._moves import all_switches, best_of_rows, within
from ..objectives import OBJECTIVES

#: What these attacks ascend: it is zero where the prediction changes, and scores give it directly.
MARGIN = OBJECTIVES["cw"]
#: Numbers in the points of one round; larger batches are searched in parts.
_ELEMENTS = 2**22


def parts(x, n_points):
    """Return the rows of `x` in parts, for searches that ask about `n_points` at a time."""
    size = max(1, _ELEMENTS // max(1, n_points * math.prod(x.shape[1:])))
    return torch.arange(len(x), device=x.device).split(size)


def ask_margins(queries, points, rows):
    """Return the margins at `points`, and the same with infinity where one fools, shape (m,).

    Parameters
    ----------
    queries : Queries
    points : torch.Tensor of shape (m, ...)
    rows : torch.Tensor of shape (m,)
        Sample that each of them is about.
    """
    batch = queries.batch
    y, target = batch.y[rows], None if batch.target is None else batch.target[rows]
    logits = queries(points, rows)
    value = MARGIN(logits, y, target).to(points.dtype)
    predicted = predicted_class(logits)
    fooled = predicted != y if target is None else predicted == target
    return value, value.masked_fill(fooled, torch.inf)


def with_best_categories(batch, queries):
    """Change the categories of rows one by one, as long as that raises the margin.

    Parameters
    ----------
    batch : AttackBatch
    queries : Queries
        Of this batch.

    Returns
    -------
    AttackBatch
        About the rows with these categories, of which numbers alone change; the same if there is
        nothing to change.
    """
    ball, z, rows = batch.ball, batch.x, torch.arange(len(batch.x), device=batch.x.device)
    if not ball.is_table or not ball.options or ball.space.max_changes == 0:
        return batch
    value, z = ask_margins(queries, z, rows)[1], z.clone()
    while len(rows):
        rows = rows[value[rows] != torch.inf]
        before = value[rows]
        # of a copy, because the best is entered as it is found
        for points, about in all_switches(ball.select(rows), z[rows].clone()):
            fits = within(about, queries.left[rows] // 2)
            points, about = points[fits], about[fits]
            if len(about) == 0:
                continue
            score = ask_margins(queries, points, rows[about])[1]
            first = best_of_rows(score, about, value[rows])
            better = rows[about[first]]
            z[better], value[better] = points[first], score[first]
        rows = rows[value[rows] > before + rounding(before)]
    ball = ball.with_categories(z)
    return replace(batch, x=ball.x, ball=ball)


class Search:
    """A search for points that fool the victim, in all samples at once.

    A sample leaves as soon as a point about it fools the victim: all tensors of
    the search hold the samples that are left, and `drop` makes others follow.

    Parameters
    ----------
    batch : AttackBatch
    queries : Queries
        Of this batch.
    rows : torch.Tensor of shape (m,)
        Samples of the batch to work on.
    limit : int, optional
        Largest number of questions per sample in this search; None means all
        that are left.

    Attributes
    ----------
    batch : AttackBatch
        Of the samples that are left.
    best, value : torch.Tensor of shape (m, ...) and (m,)
        The point of the highest margin so far, and its margin.
    left : int
        How many questions each sample may still ask.
    found : torch.Tensor of shape (m, ...)
        The best point of each of the `rows`, also of those that have left.
    found_value : torch.Tensor of shape (m,)
        Its margin; infinite where it fools the victim.
    """

    def __init__(self, batch, queries, rows, limit=None):
        self.batch = batch.select(rows)
        self.queries = queries
        self.left = queries.limit if limit is None else limit
        # as `ask_change` sees the points as rows
        self.best = self.batch.x.clone(memory_format=torch.contiguous_format)
        self.found = self.best.clone()
        self.value = torch.full_like(self.best.flatten(1).sum(1), -torch.inf)
        self.found_value = self.value.clone()
        self._rows = rows
        self._place = torch.arange(len(rows), device=rows.device)
        if len(rows):
            self.left = min(self.left, int(queries.left[rows].min()))

    def __len__(self):
        return len(self._rows)

    @property
    def rows(self):
        """The samples of the batch that are left, shape (m,)."""
        return self._rows

    def ask(self, z):
        """Ask about points within the ball and remember the best one of each sample.

        Parameters
        ----------
        z : torch.Tensor of shape (m, ...) or (m, k, ...)
            One point about each sample that is left, or k.

        Returns
        -------
        torch.Tensor of shape (m,) or (m, k)
            The margin at each point.
        """
        m, sample_ndim = len(self), self.batch.x.ndim - 1
        k = z.shape[1] if z.ndim > sample_ndim + 1 else 1
        points = z.reshape(m * k, *z.shape[z.ndim - sample_ndim :])
        self.left -= k
        rows = self._rows if k == 1 else self._rows.repeat_interleave(k)
        value, score = ask_margins(self.queries, points, rows)
        chosen = None
        if k > 1:
            score, which = score.reshape(m, k).max(1)
            chosen = torch.arange(m, device=which.device) * k + which
        better = self._improve(score)
        self.best[better] = points[better if chosen is None else chosen[better]]
        return value.reshape(z.shape[: z.ndim - sample_ndim])

    def ask_change(self, where, values):
        """Ask about the best points with a few features changed; keep what is better.

        The points are changed in place, so that nothing but these features is
        copied or looked at.

        Parameters
        ----------
        where : torch.Tensor of int64 of shape (m, k)
            Places in the flattened points, distinct in each row.
        values : torch.Tensor of shape (m, k)
            What is put there.
        """
        flat = self.best.flatten(1)
        before = flat.gather(1, where)
        flat.scatter_(1, where, values)
        self.left -= 1
        better = self._improve(ask_margins(self.queries, self.best, self._rows)[1])
        before[better] = values[better]
        flat.scatter_(1, where, before)

    def _improve(self, score):
        """Return the samples whose `score` is the highest so far, and remember it."""
        better = score > self.value
        self.value = torch.where(better, score, self.value)
        return better.nonzero()[:, 0]

    def drop(self, *state):
        """Let the samples leave that are done.

        Parameters
        ----------
        *state : torch.Tensor of shape (m, ...)

        Returns
        -------
        list of torch.Tensor
            `state` of the samples that are left.
        """
        live = self.value != torch.inf
        if bool(live.all()):
            return list(state)
        self.finish()
        self.batch = self.batch.select(live)
        self._rows, self._place = self._rows[live], self._place[live]
        self.best, self.value = self.best[live], self.value[live]
        return [values[live] for values in state]

    def finish(self):
        """Bring `found` up to date."""
        self.found[self._place] = self.best
        self.found_value[self._place] = self.value


def rounding(value):
    """Return what margins of the size of `value` may differ by without meaning anything."""
    return 64 * torch.finfo(value.dtype).eps * (1 + value.abs())
