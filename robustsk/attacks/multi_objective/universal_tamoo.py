"""Multi-objective attack: one perturbation for a group of samples."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from ..._validation import check_count
from ..threat import Ball
from .base import BaseMultiObjectiveAttack, Seen, Tasks

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._parameters import MultiObjectiveParameters


class UniversalTAMOO(BaseMultiObjectiveAttack):
    """Attack with one perturbation for each group of samples.

    The samples are taken in groups of `group_size` in the order in which they
    come. To have the model err on a sample of the group is a task, and the
    tasks are weighted as in :class:`TAMOO`.

    Parameters
    ----------
    %(first_parameter)s
    group_size : int, default=8
        Number of samples that share a perturbation; what is left over at the
        end is a smaller group.
    %(shared_parameters)s

    %(shared_attributes)s

    See Also
    --------
    UniversalPerturbation : One perturbation for all samples, seen or not.
    TAMOO : Several models instead of several samples.

    Notes
    -----
    What happens to a sample depends on the others in its group, and so on the
    order of the data. `batch_size` is rounded up to full groups. The
    perturbation is valid for every sample of the group: where the samples come
    close to the end of the valid range, there is less of it. ``info["weights"]``
    and the traces have one entry for each sample, its own.

    The label of a sample that is wrong without perturbation counts as achieved.

    References
    ----------
    Bui, Le, Zhao, Tran, Montague and Phung (2023), "Generating adversarial
    examples with task oriented multi-objective optimization", TMLR, Sec. 4.3.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from robustsk import UniversalTAMOO
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = LogisticRegression(max_iter=1000).fit(X, y)
    >>> attack = UniversalTAMOO(clf, group_size=5, eps=0.5, clip=None, random_state=0).fit(X)
    >>> delta = attack.generate(X, y) - X
    >>> bool(np.allclose(delta[0], delta[4]))
    True
    """

    per_sample = False
    couples_batch = True

    def __init__(
        self,
        estimator: Any = None,
        *,
        group_size: int = 8,
        **common: Unpack[MultiObjectiveParameters],
    ):
        super().__init__(estimator, **common)
        self.group_size = group_size

    def _n_at_a_time(self, X, victim):
        size = check_count(self.group_size, "group_size")
        return -(-super()._n_at_a_time(X, victim) // size) * size

    def _attack_batch(self, batch):
        size = check_count(self.group_size, "group_size")
        rows = torch.arange(len(batch.x), device=batch.x.device)
        whole = len(rows) - len(rows) % size
        found = [
            self._attack_groups(batch.select(part), k)
            for part, k in ((rows[:whole], size), (rows[whole:], len(rows) - whole))
            if len(part)
        ]
        for name in found[0][1]:
            batch.info[name] = torch.cat([info[name] for _, info in found])
        return torch.cat([result for result, _ in found])

    def _attack_groups(self, batch, k):
        """Attack a batch of full groups; return the examples and what is known of each sample."""
        ball = batch.ball
        x = batch.x.unflatten(0, (-1, k))
        lower, upper = ball.low, ball.high
        if lower is not None:
            # what is valid for all: each interval has 0 in it
            lower = (lower.expand_as(batch.x).unflatten(0, (-1, k)) - x).amax(1)
            upper = (upper.expand_as(batch.x).unflatten(0, (-1, k)) - x).amin(1)
        shared = Ball(torch.zeros_like(x[:, 0]), ball.norm, ball.eps, lower, upper)
        tasks = _Group(batch, shared, batch.noise.shared(k), m=k)
        delta, info = self._climb(tasks, batch.keep)
        # one entry per sample
        info = {
            name: value.repeat_interleave(k, 0)
            if name == "trace_norm"
            else value.movedim(-1, 1).flatten(0, 1).unsqueeze(-1)
            for name, value in info.items()
        }
        return ball.project(batch.x + delta.repeat_interleave(k, 0)), info


@dataclass
class _Group(Tasks):
    """Samples on which the model is to err, with the same perturbation."""

    def select(self, index):
        of_samples = index.repeat_interleave(self.m)  # a mask
        return replace(
            self,
            batch=self.batch.select(of_samples),
            ball=self.ball.select(index),
            noise=self.noise.select(index),
        )

    def look(self, z, step, gradients=True):
        batch, m = self.batch, self.m
        points = batch.x + z.repeat_interleave(m, 0)
        clean = [batch.clean_logits] if batch.objective.needs_clean else None
        logits, values, found = self.differentiate(points, [batch.victim], clean, gradients)
        achieved = batch.fooled(logits[0]).unflatten(0, (-1, m))
        if found is not None:
            found = found[:, 0].unflatten(0, (-1, m))
        values = values[:, 0].unflatten(0, (-1, m))
        return Seen(values, achieved, achieved.sum(1), achieved.all(1), found)
