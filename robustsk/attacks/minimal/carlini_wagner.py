"""The attacks of Carlini and Wagner."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..._tensors import column
from ..._validation import check_count, check_length, check_positive
from ._penalty import CHECKS, PROGRESS, Aim, WeightSearch, local_slope, ratio, widest
from .base import BaseMinimalAttack

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._parameters import AttackParametersButNorm

#: What is left of the learning rate after the last step.
_LAST_RATE = 0.01
#: How close to the edge of the box the change of variable goes.
_INSIDE = 1 - 1e-4


class CarliniWagner(BaseMinimalAttack):
    """Closest adversarial example by penalised descent with Adam.

    With the 2-norm it minimises ``||delta||_2^2 + c * max(confidence - m, 0)``
    where `m` is the margin, the logit of the best other class (of the target)
    minus that of the true class (of the best other class), and looks for the
    weight `c` that gives the smallest perturbation. With the inf norm the
    first term is ``sum_i max(|delta_i| - tau, 0)``; `tau` shrinks from round to
    round. Weights, `tau` and step lengths belong to each sample.

    The box is kept by projection or by a change of variable, the first and the
    last of the three ways in Sec. V-B of the paper.

    Parameters
    ----------
    %(first_parameter)s
    norm : {2, inf, "l2", "linf"}, default=2
        Norm in which the perturbation is measured.
    confidence : float, default=0.0
        Margin to be reached, in units of the logits.
    n_steps : int, default=200
        Largest number of Adam steps per round.
    learning_rate : float, default=None
        First learning rate of Adam, as a share of the inf-norm distance at
        which the model would be fooled if it were linear; a step moves each
        feature by about that much. It falls exponentially to a hundredth of
        itself, and doubles from round to round until one succeeds. None means
        0.2, or ``10 / n_steps`` where the steps are few.
    n_binary_steps : int, default=9
        Number of rounds, with another weight (another `tau`) each.
    initial_const : float, default=None
        First weight `c`. None means twice the one that would be just enough if
        the model were linear.
    abort_early : bool, default=True
        Whether to end the round of a sample whose loss has stopped falling.
    variable : {"projection", "tanh"}, default="projection"
        What is optimised: the perturbation, projected after each step, or the
        `w` in ``x_adv = (low + high) / 2 + (high - low) / 2 * tanh(w)``, which
        is always in the box. The latter is the choice of the paper; it needs
        several times the steps where pixels are black or white, since there
        its gradient vanishes. Without a box the perturbation is optimised.
    %(shared_parameters)s

    %(shared_attributes)s

    See Also
    --------
    EAD : The same with an elastic-net penalty, for the 1-norm.
    LBFGS : The same with a quasi-Newton method.

    References
    ----------
    Carlini and Wagner (2017), "Towards evaluating the robustness of neural
    networks", Sec. V and VI (their f_6).

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from robustsk.attacks import CarliniWagner
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = LogisticRegression(max_iter=1000).fit(X, y)
    >>> attack = CarliniWagner(clf, n_binary_steps=3).fit(X)
    >>> X_adv, info = attack.generate(X, y, return_info=True)
    >>> float(clf.score(X_adv, y))
    0.0
    >>> info["distance"].shape
    (150,)
    """

    supported_norms = (2.0, np.inf)

    def __init__(
        self,
        estimator: Any = None,
        *,
        norm: float | str = 2,
        confidence: float = 0.0,
        n_steps: int = 200,
        learning_rate: float | None = None,
        n_binary_steps: int = 9,
        initial_const: float | None = None,
        abort_early: bool = True,
        variable: str = "projection",
        **common: Unpack[AttackParametersButNorm],
    ):
        super().__init__(estimator, norm=norm, **common)
        self.confidence = confidence
        self.n_steps = n_steps
        self.learning_rate = learning_rate
        self.n_binary_steps = n_binary_steps
        self.initial_const = initial_const
        self.abort_early = abort_early
        self.variable = variable

    def _search(self, batch, closest):
        confidence = check_length(self.confidence, "confidence")
        n_steps = check_count(self.n_steps, "n_steps")
        rate = max(0.2, 10 / n_steps)
        if self.learning_rate is not None:
            rate = check_positive(self.learning_rate, "learning_rate")
        rounds = check_count(self.n_binary_steps, "n_binary_steps")
        if self.variable not in ("projection", "tanh"):
            raise ValueError(f"variable must be 'projection' or 'tanh', got {self.variable!r}.")
        lacking, gradient = local_slope(batch, confidence)
        size = rate * torch.minimum(ratio(lacking, gradient.abs().sum(1)), widest(batch.ball))
        euclidean = batch.ball.norm == 2
        if self.initial_const is not None:
            const = torch.full_like(size, check_positive(self.initial_const, "initial_const"))
        elif euclidean:
            const = ratio(4 * lacking, gradient.square().sum(1))
        else:  # a feature gains nothing by exceeding tau
            const = ratio(torch.ones_like(size), gradient.abs().amax(1))
        weight, threshold, aim = WeightSearch(const), Threshold(size), Aim(batch)

        for _ in range(rounds):
            rows = closest.open
            if len(rows) == 0:
                break
            tau = None if euclidean else threshold.value[rows]
            part = aim(batch.select(rows), rows)
            start = part.x
            if not euclidean:
                delta = part.ball.to_unit(closest.z[rows] - part.x)
                limit = column(tau, delta)
                start = part.ball.clamp(part.x + part.ball.to_data(delta.clamp(-limit, limit)))
            found = self._descend(part, closest, rows, start, const[rows], tau, size[rows])
            if euclidean:
                weight.update(found, rows)
                const = weight.value
            else:
                threshold.update(found, closest.distance[rows], rows)
                const[rows] = torch.where(found, const[rows], 2 * const[rows])
            aim.update(closest.distance[rows], rows)
            size[rows] = torch.where(closest.distance[rows].isinf(), 2 * size[rows], size[rows])

    def _descend(self, batch, closest, rows, z, const, tau, size):
        """Run one round; return where it has found an adversarial example."""
        found = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
        at = torch.arange(len(rows), device=rows.device)
        first = second = torch.zeros_like(z)
        before = lowest = torch.full_like(const, torch.inf)
        every = -(-self.n_steps // CHECKS)
        for step in range(1, self.n_steps + 1):
            logits, value, gradient = batch.value_and_gradient(z)
            hit = batch.fooled(logits)
            if self.confidence:
                hit &= value >= self.confidence
            closest.update(z, hit, rows[at])
            found[at] |= hit

            # f_6: what the margin lacks
            lacking = (self.confidence - value).clamp_min(0).to(z)
            unit = batch.ball.to_unit(z - batch.x)
            if tau is None:
                # Sec. VI, 2-norm: ||delta||_2^2
                penalty, descent = unit.square(), 2 * unit
            else:
                # Sec. VI, inf norm: the sum of what exceeds tau; a round starts from features that
                # are at tau but for rounding
                excess = (unit.abs() - (1 + 1e-5) * column(tau, unit)).clamp_min(0)
                penalty, descent = excess, unit.sign() * (excess > 0)
            lowest = torch.minimum(lowest, penalty.flatten(1).sum(1) + const * lacking)
            gain = column(const * (lacking > 0), unit) * batch.ball.to_data(gradient)
            descent = descent - gain
            smooth = self.variable == "tanh" and batch.ball.low is not None
            if smooth:
                descent = descent * batch.ball.to_unit(_tanh_slope(batch.ball, z))

            going = torch.ones_like(hit)
            if self.abort_early and step % every == 0:
                going = lowest < (1 - PROGRESS) * before
                before = lowest
            if batch.keep == "first":
                going &= ~closest.solved[rows[at]]
            if not going.all():
                if not going.any():
                    break
                batch, at = batch.select(going), at[going]
                z, unit, descent, first, second, const, size, before, lowest = (
                    values[going]
                    for values in (
                        z, unit, descent, first, second, const, size, before, lowest
                    )
                )  # fmt: skip
                tau = None if tau is None else tau[going]

            first = 0.9 * first + 0.1 * descent
            second = 0.999 * second + 0.001 * descent.square()
            scale = torch.sqrt(second / (1 - 0.999**step))
            tiny = 1e-6 * scale.flatten(1).amax(1) + torch.finfo(z.dtype).tiny
            direction = first / (1 - 0.9**step) / (scale + column(tiny, z))
            move = column(size * _LAST_RATE ** (step / self.n_steps), z) * direction
            if smooth:
                z = batch.ball.clamp(_tanh_step(batch.ball, z, batch.ball.to_data(move)))
            else:
                z = batch.ball.clamp(batch.x + batch.ball.to_data(unit - move))
        return found


def _tanh_slope(ball, z):
    """Return the derivative of `z` with respect to the variable of which it is the tanh."""
    half = (ball.high - ball.low) / 2
    # change of variables of Sec. V-B
    return half * (1 - _tanh(ball, z).square())


def _tanh_step(ball, z, move):
    """Move `z` by a step that has the length of `move` in the middle of the box."""
    half = ((ball.high - ball.low) / 2).clamp_min(torch.finfo(z.dtype).tiny)
    return ball.low + half + half * torch.tanh(torch.atanh(_tanh(ball, z)) - move / half)


def _tanh(ball, z):
    """Return where `z` is between -1 and 1, the edges of the box; never quite there."""
    half = ((ball.high - ball.low) / 2).clamp_min(torch.finfo(z.dtype).tiny)
    return ((z - ball.low) / half - 1).clamp(-_INSIDE, _INSIDE)


class Threshold:
    """The size that features should not exceed, for each sample of a batch.

    It shrinks by a tenth as long as that succeeds; then the gap to the best
    that has been found is halved.
    """

    def __init__(self, like):
        self.value = torch.full_like(like, torch.inf)
        self._low = torch.zeros_like(like)

    def update(self, found, distance, rows):
        """Move on, given where an example has been found and the smallest distance so far."""
        tried = self.value[rows]
        low = torch.where(
            found & (distance <= tried * 1.01) | tried.isinf(), self._low[rows], tried
        )
        low = torch.minimum(low, distance)
        shrunk = torch.maximum(0.9 * distance, (low + distance) / 2)
        self.value[rows] = torch.where(distance.isfinite(), shrunk, torch.inf)
        self._low[rows] = low
