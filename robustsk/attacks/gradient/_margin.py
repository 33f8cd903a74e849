"""The cheap margin attack of which ``AutoAttack(version="fast")`` is made."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from ..._validation import check_count
from ...losses import margin
from ..noise import Stream
from ..objectives import Objective
from ._descent import COMPACT_AT
from .base import BaseGradientAttack

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._parameters import GradientParameters

#: Below this logit margin the gradient of a probability margin underflows.
_SATURATED = -15.0


class MarginPGD(BaseGradientAttack):
    """Projected ascent of the margin with steps that shrink along a cosine.

    Parameters
    ----------
    estimator : fitted estimator or torch.nn.Module, default=None
    n_steps : int, default=20
        Steps along the margin; their length falls from 2 eps to `last` eps.
    n_direction : int, default=0
        Steps of length eps before them, up a random combination of the logits
        (Tashiro et al., 2020), which spreads the starting points.
    kind : {"logits", "probabilities"}, default="logits"
        Margin of the logits, or of the softmax (Xie et al., 2024).
    last : float, default=0.02
        Length of the last step, as a share of eps.
    stream : int, default=0
        Another stream, another start.
    %(shared_parameters)s

    %(shared_attributes)s
    """

    def __init__(
        self,
        estimator: Any = None,
        *,
        n_steps: int = 20,
        n_direction: int = 0,
        kind: str = "logits",
        last: float = 0.02,
        stream: int = 0,
        **common: Unpack[GradientParameters],
    ):
        super().__init__(estimator, **common)
        self.n_steps = n_steps
        self.n_direction = n_direction
        self.kind = kind
        self.last = last
        self.stream = stream

    def _resolve_objective(self, objective):
        return Objective(_probability_margin if self.kind == "probabilities" else _logit_margin)

    def _attack_batch(self, batch):
        n_steps = check_count(self.n_steps, "n_steps")
        radius = batch.ball.radius
        sizes = [radius] * self.n_direction + [
            radius * (self.last + (1 - self.last / 2) * (1 + math.cos(math.pi * s / n_steps)))
            for s in range(n_steps)
        ]
        z = batch.ball.random_start("uniform", batch.noise, Stream.START + self.stream, 0.0)
        result = z.clone()
        best = torch.full((len(z),), -torch.inf, dtype=z.dtype, device=z.device)
        alive = torch.arange(len(z), device=z.device)
        weights = None
        for step, size in enumerate(sizes):
            if step < self.n_direction:
                if weights is None:
                    weights = self._directions(batch, z)
                along = Objective(lambda logits, *_, w=weights: (w * logits).sum(1))
                batch = replace(batch, objective=along)
            else:
                batch = replace(batch, objective=self._resolve_objective(None))
            logits, _, gradient = batch.value_and_gradient(z)
            self._keep(batch, z, logits, alive, result, best)
            if batch.keep == "first":
                left = best[alive] <= 0
                n_left = int(left.sum())
                if n_left == 0:
                    break
                if n_left <= (1 - COMPACT_AT) * len(alive):
                    batch, alive, z, gradient = (
                        batch.select(left), alive[left], z[left], gradient[left],
                    )  # fmt: skip
                    weights = None if weights is None else weights[left]
            z = batch.ball.ascend(z, gradient, size)
        else:
            with torch.no_grad():
                self._keep(batch, z, batch.ask(z), alive, result, best)
        return result

    @staticmethod
    def _keep(batch, z, logits, alive, result, best):
        reached = _logit_margin(logits, batch.y, batch.target, None).to(best)
        better = (reached > best[alive]).nonzero()[:, 0]
        result[alive[better]], best[alive[better]] = z[better], reached[better]

    def _directions(self, batch, z):
        """Draw what to ascend: random logits, less of the true class, more of one other."""
        with torch.no_grad():
            logits = batch.ask(z)
        n_classes = logits.shape[1]
        weights = 2 * batch.noise.uniform(Stream.STEP + self.stream, (n_classes,)).to(logits) - 1
        own = 0.6 * batch.noise.scalar(Stream.START + self.stream).to(logits) - 0.5
        weights.scatter_(1, batch.y[:, None], own[:, None])
        order = logits.scatter(1, batch.y[:, None], -torch.inf).argsort(1, descending=True)
        favoured = order[:, self.stream % min(9, n_classes - 1)]
        return weights.scatter(1, favoured[:, None], 0.8)


def _logit_margin(logits, y, target, clean):
    return margin(logits, y) if target is None else -margin(logits, target)


def _probability_margin(logits, y, target, clean):
    plain = _logit_margin(logits, y, target, clean)
    p = torch.softmax(logits, 1)
    return torch.where(plain < _SATURATED, plain, _logit_margin(p, y, target, clean))
