"""The elastic-net attack."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ..._tensors import column
from ..._validation import check_count, check_length, check_positive
from ._penalty import CHECKS, PROGRESS, Aim, WeightSearch, local_slope, ratio
from .base import BaseMinimalAttack

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._parameters import AttackParametersButNorm

RULES = ("l1", "en")


class EAD(BaseMinimalAttack):
    """Elastic-net attack: a close adversarial example that changes few features.

    Minimises ``c * max(confidence - m, 0) + ||delta||_2^2 + lam * ||delta||_1``
    by accelerated gradient steps that are followed by shrinkage (FISTA), where
    `m` is the margin of :class:`CarliniWagner`, and looks for the weight `c`
    that gives the smallest perturbation. All weights belong to each sample.

    Two things differ from the paper, where the l1 weight is a fixed 1e-3 in
    units of pixels and the features shrink by it in every step, however short.
    Here `lam` is in proportion to how far away the border is, which makes
    `beta` mean the same for all data, and a step shrinks by its length times
    `lam`, as proximal gradient methods do. The perturbations are smaller in
    the 1-norm, and found in fewer steps.

    Parameters
    ----------
    %(first_parameter)s
    norm : {1, "l1"}, default=1
        Norm in which the perturbation is measured.
    beta : float, default=3.0
        Weight of the 1-norm: `lam` in units of the 1-norm distance at which
        the model would be fooled if it were linear. The larger, the fewer
        features change; with 0 the 2-norm alone counts.
    confidence : float, default=0.0
        Margin to be reached, in units of the logits.
    rule : {"l1", "en"}, default="l1"
        Which of the adversarial examples met is returned: that with the
        smallest 1-norm, or with the smallest ``||delta||_2^2 + lam * ||delta||_1``.
    n_steps : int, default=200
        Largest number of steps per round.
    learning_rate : float, default=0.05
        Length of the first gradient step; it falls linearly to zero. It has no
        unit: at 0.5 the 2-norm term alone would be minimised in one step.
    n_binary_steps : int, default=9
        Number of rounds, with another weight each.
    initial_const : float, default=None
        First weight `c`. None means twice the one that would be just enough if
        the model were linear.
    abort_early : bool, default=True
        Whether to end the round of a sample whose loss has stopped falling.
    %(shared_parameters)s

    %(shared_attributes)s

    See Also
    --------
    CarliniWagner : The same for the 2-norm and the inf norm.
    JSMA : Few features, each changed as much as need be.

    References
    ----------
    Chen, Sharma, Zhang, Yi and Hsieh (2018), "EAD: elastic-net attacks to deep
    neural networks via adversarial examples", Eq. 7 and Algorithm 1.

    Beck and Teboulle (2009), "A fast iterative shrinkage-thresholding
    algorithm for linear inverse problems", Sec. 4.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from robustsk.attacks import EAD
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = LogisticRegression(max_iter=1000).fit(X, y)
    >>> X_adv = EAD(clf, n_binary_steps=3).fit(X).generate(X, y)
    >>> float(clf.score(X_adv, y))
    0.0
    """

    supported_norms = (1.0,)

    def __init__(
        self,
        estimator: Any = None,
        *,
        norm: float | str = 1,
        beta: float = 3.0,
        confidence: float = 0.0,
        rule: str = "l1",
        n_steps: int = 200,
        learning_rate: float = 0.05,
        n_binary_steps: int = 9,
        initial_const: float | None = None,
        abort_early: bool = True,
        **common: Unpack[AttackParametersButNorm],
    ):
        super().__init__(estimator, norm=norm, **common)
        self.beta = beta
        self.confidence = confidence
        self.rule = rule
        self.n_steps = n_steps
        self.learning_rate = learning_rate
        self.n_binary_steps = n_binary_steps
        self.initial_const = initial_const
        self.abort_early = abort_early

    def _search(self, batch, closest):
        beta = check_length(self.beta, "beta")
        confidence = check_length(self.confidence, "confidence")
        if self.rule not in RULES:
            raise ValueError(f"rule must be one of {RULES}, got {self.rule!r}.")
        check_count(self.n_steps, "n_steps")
        check_positive(self.learning_rate, "learning_rate")
        rounds = check_count(self.n_binary_steps, "n_binary_steps")
        lacking, gradient = local_slope(batch, confidence)
        steepest = gradient.abs().amax(1)
        lam = beta * ratio(lacking, steepest)
        # half of it would hold the steepest feature alone where a linear model is fooled
        const = ratio(2 * (2 + beta) * lacking, steepest.square())
        if self.initial_const is not None:
            const = torch.full_like(const, check_positive(self.initial_const, "initial_const"))
        weight, aim = WeightSearch(const), Aim(batch)
        best = torch.full_like(const, torch.inf)
        for _ in range(rounds):
            rows = closest.open
            if len(rows) == 0:
                break
            part = aim(batch.select(rows), rows)
            found = self._descend(part, closest, rows, best, weight.value[rows], lam[rows])
            weight.update(found, rows)
            aim.update(closest.distance[rows], rows)

    def _descend(self, batch, closest, rows, best, const, lam):
        """Run one round; return where it has found an adversarial example."""
        found = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
        at = torch.arange(len(rows), device=rows.device)
        z = batch.x
        previous = torch.zeros_like(z)
        before = lowest = torch.full_like(const, torch.inf)
        every = -(-self.n_steps // CHECKS)
        for step in range(self.n_steps):
            logits, value, gradient = batch.value_and_gradient(z)
            lacking = (self.confidence - value).clamp_min(0).to(z)
            unit = batch.ball.to_unit(z - batch.x)
            size = unit.flatten(1).square().sum(1) + lam * unit.flatten(1).abs().sum(1)
            hit = batch.fooled(logits)
            if self.confidence:
                hit &= value >= self.confidence
            found[at] |= hit
            if self.rule == "l1":
                closest.update(z, hit, rows[at])
            else:
                self._keep(batch, closest, rows[at], best, z, hit, size)

            gain = column(const * (lacking > 0), unit) * batch.ball.to_data(gradient)
            # Eq. 7
            lowest = torch.minimum(lowest, size + const * lacking)
            going = torch.ones_like(hit)
            if self.abort_early and step % every == every - 1:
                going = lowest < (1 - PROGRESS) * before
                before = lowest
            if batch.keep == "first":
                going &= ~closest.solved[rows[at]]
            if not going.all():
                if not going.any():
                    break
                batch, at = batch.select(going), at[going]
                z, unit, gain, previous, const, lam, before, lowest = (
                    values[going]
                    for values in (z, unit, gain, previous, const, lam, before, lowest)
                )

            length = self.learning_rate * (1 - step / self.n_steps)
            unit = unit - length * (2 * unit - gain)
            # Algorithm 1: after the gradient step the shrinkage, the proximal step of the 1-norm
            unit = unit.sign() * (unit.abs() - length * column(lam, unit)).clamp_min(0)
            now = batch.ball.clamp(batch.x + batch.ball.to_data(unit)) - batch.x
            # Algorithm 1: momentum of k / (k + 3)
            z = batch.ball.clamp(batch.x + now + step / (step + 3) * (now - previous))
            previous = now
        return found

    @staticmethod
    def _keep(batch, closest, rows, best, z, hit, size):
        """Keep what has the smallest elastic net within the ball."""
        distance = batch.ball.distance(z)
        better = hit & (size < best[rows]) & (distance <= batch.ball.radius)
        closest.z[rows[better]] = z[better]
        closest.distance[rows[better]] = distance[better]
        best[rows[better]] = size[better]
