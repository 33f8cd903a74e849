"""What the attacks have in common that look for the closest adversarial example."""

from __future__ import annotations

import copy
from abc import abstractmethod

import torch

from ..._tensors import column
from ..base import BaseAttack
from ..objectives import OBJECTIVES


class Closest:
    """The closest adversarial example found so far, for each sample of a batch.

    Parameters
    ----------
    batch : AttackBatch

    Attributes
    ----------
    z : torch.Tensor of shape (n, ...)
    distance : torch.Tensor of shape (n,)
        In the norm of the ball, which ends at ``batch.ball.radius``; infinite
        where nothing has been found.
    done : torch.Tensor of bool of shape (n,)
        Where nothing closer is looked for.
    """

    def __init__(self, batch):
        self.batch = batch
        # the box is of no use for distances, and need not be copied with the samples it is about
        self._ball = copy.copy(batch.ball)
        self._ball.low = self._ball.high = self._ball.lower = self._ball.upper = None
        self.z = batch.x.clone()
        self.done = torch.zeros(len(self.z), dtype=torch.bool, device=self.z.device)
        self.distance = torch.full((len(self.z),), torch.inf, dtype=self.z.dtype).to(self.z.device)

    def update(self, z, fooled, rows=None):
        """Keep what is adversarial and closer than what is known.

        Parameters
        ----------
        z : torch.Tensor of shape (m, ...)
            Within the box.
        fooled : torch.Tensor of bool of shape (m,)
        rows : torch.Tensor of shape (m,), optional
            Distinct samples that `z` belongs to; None means all in order.

        Returns
        -------
        torch.Tensor of bool of shape (m,)
            Where `z` is the closest now.
        """
        if rows is None:
            rows = torch.arange(len(z), device=z.device)
        better = torch.zeros_like(fooled)
        hits = fooled.nonzero()[:, 0]
        if len(hits) == 0:
            return better
        z, rows = z[hits], rows[hits]
        distance = self._ball.select(rows).distance(z)
        closer = (distance < self.distance[rows]).nonzero()[:, 0]
        rows = rows[closer]
        self.z[rows], self.distance[rows] = z[closer], distance[closer]
        better[hits[closer]] = True
        return better

    @property
    def solved(self):
        """Return where something has been found within the ball, shape (n,)."""
        return self.distance <= self.batch.ball.radius

    @property
    def open(self):
        """Return the samples that deserve more work, shape (m,); evaluation needs one hit."""
        done = self.done | self.solved if self.batch.keep == "first" else self.done
        return (~done).nonzero()[:, 0]


class BaseMinimalAttack(BaseAttack):
    """Base class of the attacks that look for the closest adversarial example.

    Subclasses define `_search`. Samples that are adversarial as they are come
    back unchanged, and so do those without an adversarial example within `eps`.
    The objective of their batches is the margin, whatever a defence asks for: it
    is zero at the border that is looked for, and its slope tells how far away
    that is.
    """

    minimal = True

    def _resolve_objective(self, objective):
        return OBJECTIVES["cw"]

    def _attack_batch(self, batch):
        with torch.no_grad():
            todo = (~batch.fooled(batch.ask(batch.x))).nonzero()[:, 0]
        result = batch.x.clone()
        batch.info["distance"] = torch.zeros(len(result), dtype=result.dtype).to(result.device)
        if len(todo):
            closest = Closest(batch.select(todo))
            self._search(closest.batch, closest)
            result[todo] = torch.where(column(closest.solved, result), closest.z, result[todo])
            batch.info["distance"][todo] = torch.where(closest.solved, closest.distance, torch.inf)
            for name, values in closest.batch.info.items():
                whole = torch.zeros((len(result), *values.shape[1:]), dtype=values.dtype)
                batch.info[name] = whole.to(values.device).index_copy(0, todo, values)
        return result

    @abstractmethod
    def _search(self, batch, closest):
        """Look for adversarial examples and tell `closest` about each.

        Parameters
        ----------
        batch : AttackBatch
            Samples that the victim classifies as they should not be.
        closest : Closest
            Of this batch.
        """
