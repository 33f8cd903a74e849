"""Projected gradient ascent on the numbers of a table, between changes of its categories."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch

from ..._tensors import flat
from ..._validation import check_count
from ...victims._frames import is_missing
from .._moves import all_switches, best_of_rows, settled
from ..batch import AttackBatch
from ..gradient.apgd import APGD

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._parameters import GradientParameters


class CAPGD(APGD):
    """Constrained Auto-PGD: gradient ascent on numbers, exact trial of categories.

    Numbers are moved by :class:`.APGD`. Then every change of one category that the space allows is
    tried, the best one is kept, and the numbers are moved again with the new categories, until no
    change is better. Relations between columns pull on the gradient where they are violated, in
    shares of the size that their terms usually have; what the model is asked about, and what comes
    back, satisfies them.

    Without a space, and without categories that may change, it is APGD with fewer steps.

    Parameters
    ----------
    %(first_parameter)s
    n_steps : int, default=10
        Number of gradient steps each time the numbers are moved.
    n_restarts : int, default=1
        Number of random starts each time the numbers are moved.
    n_rounds : int, default=3
        How often the numbers are moved, at most; in between, categories change.
    n_targets : int, "all" or None, default=None
        As in :class:`.APGD`.
    rho : float, default=0.75
        As in :class:`.APGD`.
    large_radius : bool, default=True
        As in :class:`.APGD`.
    %(shared_parameters)s

    %(shared_attributes)s

    See Also
    --------
    GreedySearch : Asks for scores only; for trees, and before anything else.
    FeatureSpace : What the columns of a table may become.

    Notes
    -----
    The source relaxes categories to numbers, rounds them and repairs equalities at the end, and
    shrinks the radius to make up for it. Here the row that the model is asked about is one of the
    space at every step, so that nothing has to be made up for.

    References
    ----------
    Simonetto, Ghamizi and Cordy (2024), "Constrained adaptive attack: effective adversarial attack
    against deep neural networks for tabular data", Sec. 4. The ascent: Croce and Hein (2020),
    "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
    attacks", Algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.linear_model import LogisticRegression
    >>> from robustsk import FeatureSpace
    >>> from robustsk.attacks import CAPGD
    >>> rng = np.random.default_rng(0)
    >>> X = np.column_stack([rng.normal(size=90), np.eye(3)[rng.integers(3, size=90)]])
    >>> y = (X[:, 0] + X[:, 1] > 0.3).astype(int)
    >>> clf = LogisticRegression().fit(X, y)
    >>> scores = []
    >>> for max_changes in (0, 1):
    ...     space = FeatureSpace(groups=[[1, 2, 3]], max_changes=max_changes)
    ...     attack = CAPGD(clf, eps=0.2, space=space, random_state=0).fit(X)
    ...     scores.append(clf.score(attack.generate(X, y), y))
    >>> scores[1] < scores[0] < clf.score(X, y)
    True
    """

    changes_categories = True

    def __init__(
        self,
        estimator: Any = None,
        *,
        n_steps: int = 10,
        n_restarts: int = 1,
        n_rounds: int = 3,
        n_targets: int | str | None = None,
        rho: float = 0.75,
        large_radius: bool = True,
        **common: Unpack[GradientParameters],
    ):
        super().__init__(
            estimator,
            n_steps=n_steps,
            n_restarts=n_restarts,
            n_targets=n_targets,
            rho=rho,
            large_radius=large_radius,
            **common,
        )
        self.n_rounds = n_rounds

    def _attack_batch(self, batch):
        n_rounds = check_count(self.n_rounds, "n_rounds")
        if not batch.ball.is_table:
            return super()._attack_batch(batch)
        found = _Found(batch)
        rows = torch.arange(len(batch.x), device=batch.x.device)
        z = batch.x
        for number in range(n_rounds):
            part = batch.select(rows)
            z = settled(part.ball, super()._attack_batch(_of_numbers(part, z)))
            with torch.no_grad():
                score = found.update(z, rows, part.ask(z))
                if number == n_rounds - 1:
                    break
                z, best = _switched(part, z, score, found, rows)
            going = (best > score) & (best < torch.inf)
            rows, z = rows[going], z[going]
            if len(rows) == 0:
                break
        return found.z


class _Found:
    """The best row about each sample so far, in `z`, and its score."""

    def __init__(self, batch):
        self.batch, self.z = batch, batch.x.clone()
        self.score = torch.full_like(self.z.flatten(1).sum(1), -torch.inf)

    def update(self, z, rows, logits):
        """Keep what is better.

        Parameters
        ----------
        z : torch.Tensor of shape (m, ...)
        rows : torch.Tensor of shape (m,)
            Samples that they are about, each no more than once where they are better.
        logits : torch.Tensor of shape (m, n_classes)

        Returns
        -------
        torch.Tensor of shape (m,)
            The scores: the objective, and infinity where a success is one.
        """
        part = self.batch.select(rows)
        score = part.value(logits).to(self.score).nan_to_num(nan=-torch.inf)
        if self.batch.keep != "last":
            score = score.masked_fill(part.fooled(logits), torch.inf)
        best = best_of_rows(score, rows, self.score)
        self.z[rows[best]], self.score[rows[best]] = z[best], score[best]
        return score


def _switched(batch, z, score, found, rows):
    """Return the best rows with one other category, or those of `z`, and their scores."""
    result, best = z.clone(), score.clone()
    for points, about in all_switches(batch.ball, z):
        value = found.update(points, rows[about], batch.victim(batch.ball.asked(points, about)))
        first = best_of_rows(value, about, best)
        result[about[first]], best[about[first]] = points[first], value[first]
    return result, best


@dataclass
class _Pulled(AttackBatch):
    """A batch whose gradients point away from where relations are violated."""

    def value_and_gradient(self, z):
        """Return logits, objective and the gradient of the objective less the violation."""
        relations = self.ball.space.limits_.relations
        if relations is None:
            return super().value_and_gradient(z)
        with torch.enable_grad():
            z = z.detach().requires_grad_(True)
            logits = self.ask(z)
            value = self.value(logits)
            numbers = flat(z)
            violation = relations.violation(torch.where(is_missing(numbers), torch.nan, numbers))
            logits, _, gradient = self.with_gradient(z, logits, value - violation.sum(1))
        # the row that was asked about violates nothing
        return logits, value.detach(), gradient


def _of_numbers(batch, z):
    """Return the batch in which only numbers move, about rows with the categories of `z`."""
    ball = batch.ball.with_categories(z)
    known = {f.name: getattr(batch, f.name) for f in fields(batch)}
    return _Pulled(**{**known, "x": ball.x, "ball": ball, "info": {}})
