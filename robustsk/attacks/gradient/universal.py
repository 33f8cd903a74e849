"""One perturbation for all samples."""

from __future__ import annotations

import copy
import math
import numbers
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from ..._containers import check_floats
from ..._tensors import column
from ..._validation import check_count
from ..threat import Ball
from .base import BaseGradientAttack

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from .._parameters import GradientParameters


class UniversalPerturbation(BaseGradientAttack):
    """One perturbation that fools a model on most samples.

    Ascends the mean objective over all samples in steps of projected steepest
    ascent: ``delta = Proj(delta + step_size * direction(mean grad))``. `fit`
    learns the perturbation on one set of samples, against the predictions of
    the model; `transform`, `generate` and `score_adversarial` then add it to
    any other. Without `fit` it is learned on the very samples it is added to.

    Parameters
    ----------
    %(first_parameter)s
    n_steps : int, default=20
        Number of steps; each is a pass over all samples.
    step_size : float, default=None
        Length of a step, in the units of `eps`. None means
        ``2.5 * eps / n_steps``.
    max_objective : float, default=None
        Samples whose objective is above it are left out of the mean, lest
        those far beyond the boundary outweigh the others. None means
        ``1.3 * log(n_classes)``, which is the source's 9 for 1000 classes and
        made for cross-entropy; infinity leaves out none.
    %(shared_parameters)s

    %(shared_attributes)s
    perturbation_ : ndarray of the shape of a sample
        What is added to all samples; the result is clipped to the valid range.
        Not learned in `fit` where `target` is an array, which belongs to other
        samples.
    fooling_rate_ : float
        Share of the samples seen in `fit` whose prediction it changes, or
        brings to the target.

    Notes
    -----
    The gradients of all batches are summed before a step is taken, so that
    neither batch size nor order matters. Of all steps the perturbation is kept
    that fools most samples.

    References
    ----------
    Moosavi-Dezfooli, Fawzi, Fawzi and Frossard (2017), "Universal adversarial
    perturbations"; Shafahi, Najibi, Xu, Dickerson, Davis and Goldstein (2020),
    "Universal adversarial training", Algorithm 2, here with all samples in
    each step.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from robustsk.attacks import UniversalPerturbation
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = LogisticRegression(max_iter=1000).fit(X, y)
    >>> attack = UniversalPerturbation(clf, eps=1.0).fit(X)
    >>> attack.perturbation_.shape
    (4,)
    >>> attack.fooling_rate_ > 0.5
    True
    """

    per_sample = False

    def __init__(
        self,
        estimator: Any = None,
        *,
        n_steps: int = 20,
        step_size: float | None = None,
        max_objective: float | None = None,
        **common: Unpack[GradientParameters],
    ):
        super().__init__(estimator, **common)
        self.n_steps = n_steps
        self.step_size = step_size
        self.max_objective = max_objective

    def fit(self, X: Any, y: ArrayLike | None = None) -> Self:
        """Learn the perturbation, against the predictions of the model.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Data in the units in which `eps` is given.
        y : array-like of shape (n_samples,), optional
            Labels. Only used where `estimator` is None.

        Returns
        -------
        self
        """
        for name in ("perturbation_", "fooling_rate_"):
            vars(self).pop(name, None)
        super().fit(X, y)
        if self.target is None or np.ndim(self.target) != 1:
            rows = self._table_rows(X)
            if rows is None:
                prepared = self.prepare(self._victim(), check_floats(X), bounds=self.clip_bounds_)
            else:
                prepared = self.prepare(self._victim(rows.space.columns_), rows)
            delta, self.fooling_rate_ = self._learn_by_batches(prepared)
            self.perturbation_ = delta.cpu().numpy()
            prepared.batches.warn(3)
        return self

    def run(self, prepared, keep="worst"):
        """Attack validated arrays; see :meth:`BaseAttack.run`.

        Parameters
        ----------
        prepared, keep
            As there.
        """
        attack = self
        if not hasattr(self, "perturbation_"):
            attack = copy.copy(self)
            attack.perturbation_ = self._learn_by_batches(prepared)[0]
        # the same targets as those it was learned for
        prepared = prepared.by(attack, seed=prepared.seed)
        return super(UniversalPerturbation, attack).run(prepared, keep)

    def _attack_batch(self, batch):
        delta = getattr(self, "perturbation_", None)
        if delta is None:
            delta = self._learn(lambda delta: [self._look(batch, delta)])[0]
        return batch.ball.project(batch.x + torch.as_tensor(delta).to(batch.x))

    def _learn_by_batches(self, prepared):
        def look(delta):
            parts = []
            with prepared.victim.frozen(self.bn_mode, self._engine()) as seen:
                for attempt in prepared.batches.over(len(prepared.X)):
                    with attempt as rows:
                        _, batch = prepared.look(seen, rows, "last")
                        parts.append(self._look(batch, delta))
            return parts

        return self._learn(look)

    def _learn(self, look):
        """Return the perturbation that fools most samples, and the share of them.

        Parameters
        ----------
        look : callable
            ``look(delta)`` tells what `delta`, zero if None, does to each batch.
        """
        n_steps = check_count(self.n_steps, "n_steps")
        best, delta = None, None
        for step in range(n_steps + 1):
            seen = look(delta)
            if delta is None:
                ball = seen[0].ball
                delta = ball.x[0]
            score = sum(part.n_fooled for part in seen), sum(part.objective for part in seen)
            if best is None or score > best[0]:
                best = score, delta
            if step < n_steps:
                size = self._step_length(seen[0], 2.5, n_steps)
                gradient = sum(part.gradient for part in seen).to(delta)
                delta = ball.ascend(delta[None], gradient[None], size)[0]
        return best[1], best[0][0] / sum(part.n_samples for part in seen)

    def _look(self, batch, delta):
        """Return what `delta` does to a batch, and the gradient with respect to it."""
        ball, x = batch.ball, batch.x
        moved = x if delta is None else x + delta
        z = ball.clamp(moved)
        logits, value, gradient = batch.value_and_gradient(z)
        limit = self.max_objective
        if limit is None:
            limit = 1.3 * math.log(logits.shape[1])
        if not isinstance(limit, numbers.Real) or np.isnan(limit):
            raise ValueError(f"max_objective must be a number or None, got {limit!r}.")
        # what the valid range cuts off does not depend on the perturbation
        gradient = torch.where((z == moved) & column(value <= limit, z), gradient, 0.0)
        return _Seen(
            Ball(torch.zeros_like(x[:1]), ball.norm, ball.eps),
            gradient.sum(0).cpu().double(),
            int(batch.fooled(logits).sum()),
            float(value.clamp_max(limit).sum()),
            len(x),
        )


@dataclass
class _Seen:
    """What a perturbation does to one batch; `gradient` and `objective` are sums."""

    ball: Ball
    gradient: torch.Tensor
    n_fooled: int
    objective: float
    n_samples: int
