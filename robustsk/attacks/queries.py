"""Questions to a victim, counted and capped."""

from __future__ import annotations

import torch

from .._validation import check_count

_ELEMENTS_AT_A_TIME = 2**24


class Queries:
    """Asks the victim, counts the questions of each sample, and knows when to stop.

    Parameters
    ----------
    batch : AttackBatch
    max_queries : int
        Largest number of questions per sample, at least 1.

    Attributes
    ----------
    count : torch.Tensor of int64 of shape (n,)
        Also reported as ``info["n_queries"]``.
    """

    def __init__(self, batch, max_queries):
        self.batch = batch
        self.limit = check_count(max_queries, "max_queries")
        self.count = torch.zeros(len(batch.x), dtype=torch.int64, device=batch.x.device)
        batch.info["n_queries"] = self.count

    def __call__(self, z, rows=None):
        """Return the logits at `z`, shape (m, n_classes); labels are their largest.

        Parameters
        ----------
        z : torch.Tensor of shape (m, ...)
        rows : torch.Tensor of shape (m,), optional
            Sample that each question is about, repeated where there are
            several; None means one question about each.
        """
        if rows is None:
            rows = torch.arange(len(self.count), device=self.count.device)
        self.count += torch.bincount(rows, minlength=len(self.count))
        size = max(1, _ELEMENTS_AT_A_TIME // max(1, z[:1].numel()))
        answers = []
        with torch.no_grad():
            for part, about in zip(z.split(size), rows.split(size), strict=True):
                answers.append(self.batch.victim(self.batch.ball.asked(part, about)))
        return torch.cat(answers)

    def fooled(self, z, rows=None):
        """Ask for labels; return where the goal is reached, shape (m,)."""
        logits = self(z, rows)
        batch = self.batch if rows is None else self.batch.select(rows)
        return batch.fooled(logits)

    @property
    def left(self):
        """Return how many questions each sample may still ask, shape (n,)."""
        return self.limit - self.count
