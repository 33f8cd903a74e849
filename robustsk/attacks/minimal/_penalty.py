"""What the attacks share that weigh the size of a perturbation against its success."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..objectives import OBJECTIVES, Objective

#: By how much a weight is raised, or lowered, until one side of it is known.
_FACTOR = 10.0
#: How often a round looks whether the loss of a sample still falls, and by what share it must.
#: Step lengths shrink during a round, and more often would mistake oscillation for an end.
CHECKS, PROGRESS = 4, 1e-4


class WeightSearch:
    """Search for the smallest weight of success at which a sample is fooled.

    Until both sides are known the weight goes up or down by a factor of ten;
    then the bracket is halved, on the scale of logarithms.

    Parameters
    ----------
    start : torch.Tensor of shape (n,)
        First weight of each sample.

    Attributes
    ----------
    value : torch.Tensor of shape (n,)
        The weight to try.
    """

    def __init__(self, start):
        self.value = start.clone()
        self._low = torch.zeros_like(start)
        self._high = torch.full_like(start, torch.inf)

    def update(self, found, rows):
        """Move on, given where the present weight has been enough.

        Parameters
        ----------
        found : torch.Tensor of bool of shape (m,)
        rows : torch.Tensor of shape (m,)
            Distinct samples.
        """
        tried = self.value[rows]
        low = torch.where(found, self._low[rows], tried)
        high = torch.where(found, tried, self._high[rows])
        between = torch.sqrt(low) * torch.sqrt(high)
        step = torch.where(found, tried / _FACTOR, tried * _FACTOR)
        self.value[rows] = torch.where((low > 0) & high.isfinite(), between, step)
        self._low[rows], self._high[rows] = low, high


def local_slope(batch, confidence=0.0):
    """Return how much the margin lacks at the samples, and its gradient.

    Together they say how far away the border is if the victim is linear, which
    is the natural unit for steps and weights, whatever the units of the data.

    Parameters
    ----------
    batch : AttackBatch
        Whatever its objective is.
    confidence : float, default=0.0
        The margin to be reached.

    Returns
    -------
    lacking : torch.Tensor of shape (n,)
    gradient : torch.Tensor of shape (n, n_features)
        In the units in which the ball is round.
    """
    batch = replace(batch, objective=OBJECTIVES["cw"])
    _, value, gradient = batch.value_and_gradient(batch.x)
    lacking = (confidence - value).clamp_min(torch.finfo(value.dtype).eps).to(batch.x)
    return lacking, batch.ball.to_data(gradient).flatten(1)


class Aim:
    """The class that each sample of a batch runs towards.

    The margin is that to the best other class, and its ascent can end where
    that class is out of reach and another one is not. A sample for which two
    rounds have found nothing aims at the second most likely class then, at the
    third, and so on. With a target there is nothing to choose.

    Parameters
    ----------
    batch : AttackBatch
        Whose objective is the margin.
    """

    def __init__(self, batch):
        with torch.no_grad():
            logits = batch.ask(batch.x)
        others = logits.scatter(1, batch.y[:, None], -torch.inf)
        self._order = others.argsort(dim=1, descending=True, stable=True)[:, :-1]
        self._failures = torch.zeros_like(batch.y)

    def __call__(self, part, rows):
        """Return `part`, the samples in `rows`, with the margin to the class aimed at."""
        n_others = self._order.shape[1]
        if part.target is not None or n_others == 1:
            return part
        failures = self._failures[rows][:, None]
        aim = self._order[rows].gather(1, (failures - 1) % n_others)
        barred = torch.full((len(rows), n_others + 1), -torch.inf, device=rows.device)
        barred = barred.scatter(1, aim, 0.0).scatter(1, part.y[:, None], 0.0)
        return replace(part, objective=_AIMED, clean_logits=torch.where(failures > 1, barred, 0.0))

    def update(self, distance, rows):
        """Count the rounds that have left a sample without anything."""
        self._failures[rows] += distance.isinf()


def _aimed(logits, y, target, barred):
    return OBJECTIVES["cw"](logits + barred.to(logits), y, target)


_AIMED = Objective(_aimed)


def ratio(first, second):
    """Divide; where that gives no finite number the result is one."""
    quotient = first / second
    return torch.where(quotient.isfinite() & (quotient > 0), quotient, 1.0)


def widest(ball):
    """Return the width of the box of each sample in its widest feature, shape (n,)."""
    if ball.low is None:
        return torch.full((len(ball.x),), torch.inf).to(ball.x)
    return ball.to_unit(ball.high - ball.low).flatten(1).amax(1)
