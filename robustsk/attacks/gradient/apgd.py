"""Projected gradient ascent that chooses its own step size."""

from __future__ import annotations

import copy
import math
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from ..._tensors import column
from ..._validation import check_count, check_length
from ...losses import margin
from ..noise import Stream
from ..objectives import OBJECTIVES
from ..targeting import aim, wrong_classes
from ..threat import project_l1, project_l1_box
from ._descent import COMPACT_AT, n_together, repeat, settled
from .base import BaseGradientAttack

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._parameters import GradientParameters

#: Radii of the 1-norm schedule, and the share of the steps spent in each.
_LARGE_RADII = ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))
#: Length of the perturbation, in radii, that is projected onto the 1-norm ball to start from. From
#: so far away about a tenth of the features remain, whatever their number; a start in which all
#: move a little ends in much worse points.
_L1_START = 20.0
#: A rise of the objective that is a smaller share of what the run has gained than the rounding unit
#: to this power is none: which of two equal points is better must not depend on the batch size.
_ROUNDING_POWER = 0.75


class APGD(BaseGradientAttack):
    """Auto-PGD: momentum, and a step size that halves when progress stalls.

    At a few checkpoints, closer and closer together, a sample whose objective
    has stopped rising goes back to its best point and goes on from there with
    half the step. In the 1-norm a step moves as many features as turned out to
    matter, and projections are onto the intersection of ball and box.

    Parameters
    ----------
    %(first_parameter)s
    n_steps : int, default=100
        Number of gradient steps of a run.
    n_restarts : int, default=1
        Number of runs, or of runs per target, each from another random start.
        The first that fools the model counts, otherwise the one with the
        highest objective.
    n_targets : int, "all" or None, default=None
        Attack the most likely wrong classes of the clean sample one after the
        other, this many of them; reaching any wrong class counts. None means
        untargeted. ``objective="dlr"`` with 9 targets is the APGD-T of
        AutoAttack; ``objective="cw"`` is the minimum-margin attack.
    rho : float, default=0.75
        Share of the steps since the last checkpoint on which the objective must
        have risen, or else the step is halved. Without effect in the 1-norm.
    large_radius : bool, default=True
        In the 1-norm, start in a ball of three times the radius, then of twice
        the radius, and warm-start the last 40 percent of the steps from there.
        Without effect in other norms.
    %(shared_parameters)s

    %(shared_attributes)s

    See Also
    --------
    PGD : With a fixed step size; cheaper and weaker.
    MultiTargeted : Any attack against each wrong class.

    Notes
    -----
    A run costs `n_steps` gradients and one more forward pass. With `n_targets`
    samples that are fooled are dropped before the next target, in evaluation.

    The share of rising steps before the first checkpoint counts the first step
    as well, from the start to the first iterate. (The public implementation
    compares the first iterate with zero there, so that its cross-entropy always
    rises and its difference of logits ratio hardly ever does.)

    In the 1-norm features at the edge of their range are passed over, the
    number of features in a step may fall to one (a table has few), and the
    start is a random direction in which about a tenth of the features move.

    ``perturb(keep="last")`` returns the point with the highest objective, for
    it is this that the attack maximises; ``keep="worst"``, which `generate`
    uses, prefers the fooling point with the highest objective.

    With too few classes for the difference of logits ratio (three, or four
    with a target) the margin takes its place, with a warning where `n_targets`
    is None.

    References
    ----------
    Croce and Hein (2020), "Reliable evaluation of adversarial robustness with
    an ensemble of diverse parameter-free attacks", Algorithm 1, Sec. 3 and 4;
    Croce and Hein (2021), "Mind the box: l1-APGD for sparse adversarial
    attacks on image classifiers", Sec. 2 and 3. Targeted margins: Gao et al.
    (2022), "Fast and reliable evaluation of adversarial robustness with
    minimum-margin attack", Sec. 3.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from robustsk.attacks import APGD
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = LogisticRegression(max_iter=1000).fit(X, y)
    >>> X_adv = APGD(clf, eps=0.5, n_steps=20, random_state=0).fit(X).generate(X, y)
    >>> bool(clf.score(X_adv, y) < clf.score(X, y))
    True
    """

    target_parameters = ("n_targets",)

    def __init__(
        self,
        estimator: Any = None,
        *,
        n_steps: int = 100,
        n_restarts: int = 1,
        n_targets: int | str | None = None,
        rho: float = 0.75,
        large_radius: bool = True,
        **common: Unpack[GradientParameters],
    ):
        super().__init__(estimator, **common)
        self.n_steps = n_steps
        self.n_restarts = n_restarts
        self.n_targets = n_targets
        self.rho = rho
        self.large_radius = large_radius

    def _attack_batch(self, batch):
        n_steps = check_count(self.n_steps, "n_steps")
        n_restarts = check_count(self.n_restarts, "n_restarts")
        check_length(self.rho, "rho")
        batch, wrong, targets = self._prepare(batch)
        result = batch.x.clone()
        solved = wrong if batch.keep == "first" else torch.zeros_like(wrong)
        # nothing is below NaN; and a clean error, which is a success that is not on the path of
        # a random start, is given up for nothing but another success
        best = torch.full(wrong.shape, torch.nan, dtype=result.dtype, device=result.device)
        best[wrong] = torch.inf
        goals, run = targets * n_restarts, 0
        while run < len(goals):
            todo = (~solved).nonzero()[:, 0]
            if len(todo) == 0:
                break
            part = batch if len(todo) == len(result) else batch.select(todo)
            streams = range(run, run + (n_together(part.x, len(goals) - run) if run else 1))
            direction = torch.cat([_direction(part, stream) for stream in streams])
            part = repeat(part, len(streams))
            if goals[run] is not None:
                part = aim(part, torch.cat([goals[stream][todo] for stream in streams]))
            z, fooled, logits = self._run(part, direction, n_steps, len(todo))
            # what is ascended towards several targets does not compare
            value = part.value(logits) if goals[run] is None else margin(logits, part.y)
            found = (tensor.split(len(todo)) for tensor in (z, fooled, value.to(best)))
            for z, fooled, value in zip(*found, strict=True):
                better = ~solved[todo] & (fooled | ~(value <= best[todo]))
                result[todo[better]], best[todo[better]] = z[better], value[better]
                solved[todo] |= fooled
            run = streams.stop
        return result

    def _prepare(self, batch):
        """Return a batch with an objective that exists, clean errors, and a list of targets."""
        several = self.n_targets is not None
        if several and self.target is not None:
            raise ValueError(
                f"n_targets={self.n_targets!r} chooses the classes to be reached, and so does "
                f"target={self.target!r}: give one of the two."
            )
        clean, is_dlr = batch.clean_logits, batch.objective is OBJECTIVES["dlr"]
        if clean is None and (several or is_dlr or batch.keep == "worst"):
            with torch.no_grad():
                clean = batch.ask(batch.x)
        wrong = torch.zeros(len(batch.x), dtype=torch.bool, device=batch.x.device)
        if clean is not None and batch.keep != "last":
            wrong = batch.fooled(clean)
        targets = list(wrong_classes(clean, batch.y, self.n_targets).T) if several else [None]
        needed = 4 if several or batch.target is not None else 3
        if is_dlr and clean.shape[1] < needed:
            batch = replace(batch, objective=OBJECTIVES["cw"])
            if not several:
                warnings.warn(
                    f"The DLR objective compares {needed} logits and this model has "
                    f"{clean.shape[1]}: the margin ('cw') is used instead.",
                    UserWarning,
                    stacklevel=2,
                )
        return batch, wrong, targets

    def _run(self, batch, direction, n_steps, n_samples):
        """Return the result of some runs, whether they fool, and the logits at the best point."""
        ball = batch.ball
        direction = ball.to_data(direction)
        if ball.norm != 1:
            z = ball.project(ball.x + ball.radius * direction)
            return _climb(batch, z, n_samples, n_steps, _Ascent, self.rho)
        shares = _LARGE_RADII if self.large_radius else _LARGE_RADII[-1:]
        counts = [int(share * n_steps) for _, share in shares[:-1]]
        counts.append(n_steps - sum(counts))
        z, warm = ball.x + _L1_START * shares[0][0] * ball.radius * direction, False
        for (factor, _), count in zip(shares, counts, strict=True):
            part = batch
            if factor > 1:
                # outside of the ball it does not matter what the model says
                part = replace(batch, ball=copy.copy(ball), keep="last")
                part.ball.radius = factor * ball.radius
            if count:
                z = _project_l1(part.ball, z)
                z, fooled, logits = _climb(part, z, n_samples, count, _SparseAscent, warm)
                warm = True
        return z, fooled, logits


def _direction(batch, stream):
    """Draw random directions of unit length."""
    if batch.ball.norm == math.inf:
        drawn = 2.0 * batch.noise.uniform(Stream.START + stream) - 1.0
    else:
        drawn = batch.noise.normal(Stream.START + stream)
    length = torch.linalg.vector_norm(drawn.flatten(1), ord=batch.ball.norm, dim=1)
    return drawn / column(length, drawn)


def _project_l1(ball, z):
    """Project onto the intersection of an l1 ball and its box."""
    unit = ball.to_unit(z - ball.x).flatten(1)
    if ball.low is None:
        unit = project_l1(unit, ball.radius)
    else:
        low, high = (ball.to_unit(v - ball.x).flatten(1) for v in (ball.low, ball.high))
        unit = project_l1_box(unit, ball.radius, low, high)
    return ball.clamp(ball.x + ball.to_data(unit.reshape(z.shape)))


def _climb(batch, z, n_samples, n_steps, kind, option):
    """Ascend from `z`.

    Parameters
    ----------
    batch : AttackBatch
    z : torch.Tensor of shape (n, ...)
        Within the ball.
    n_samples : int
        Samples in a run; n is a multiple of it.
    n_steps : int
    kind : type
        `_Ascent` or `_SparseAscent`.
    option : float or bool
        What `kind` wants to know.

    Returns
    -------
    result : torch.Tensor of shape (n, ...)
        As ``batch.keep`` says; with "last", and where nothing fooled, the point
        with the highest objective.
    fooled : torch.Tensor of bool of shape (n,)
        False for all with "last".
    logits : torch.Tensor of shape (n, n_classes)
        At the point with the highest objective, where nothing fooled.
    """
    result = z.clone()
    fooled = torch.zeros(len(z), dtype=torch.bool, device=z.device)
    alive = torch.arange(len(z), device=z.device)
    first = batch.keep == "first"
    for step in range(n_steps + 1):
        if step < n_steps:
            logits, value, gradient = batch.value_and_gradient(z)
        else:
            with torch.no_grad():
                logits = batch.ask(z)
                value, gradient = batch.value(logits), None
        if step == 0:
            path = kind(batch.ball, z, logits, value, gradient, n_steps, option)
            final = logits.clone()
        else:
            path.observe(z, logits, value, gradient)
        if batch.keep != "last":
            now = batch.fooled(logits)
            now = now & ~path.hit if first else now & ~(value <= path.top + path.slack)
            if now.any():  # the one thing per step that the host must know
                rows = alive[now]
                result[rows], fooled[rows] = z[now], True
                path.hit, path.top = path.hit | now, torch.where(now, value, path.top)
                left = ~settled(fooled, n_samples)[alive]
                n_left = int(left.sum()) if first else len(alive)
                if n_left == 0:
                    return result, fooled, final
                if n_left <= (1 - COMPACT_AT) * len(alive):
                    batch, alive = batch.select(left), alive[left]
                    path.select(left)
        if step < n_steps:
            path.check(batch.ball, step)
            z = path.move(batch.ball, step)
    missed = ~path.hit
    result[alive[missed]] = path.best[missed]
    final[alive] = path.logits
    return result, fooled, final


def _checkpoints(n_steps):
    """Return the step numbers of the checkpoints, each with the steps since the last one."""
    interval, shrink, least = (max(int(share * n_steps), 1) for share in (0.22, 0.03, 0.06))
    found, step = {}, interval
    while step < n_steps:
        found[step] = interval
        interval = max(interval - shrink, least)
        step += interval
    return found


class _Ascent:
    """Where each sample is and has been, and how it goes on in the inf norm and the 2-norm.

    Parameters
    ----------
    ball : Ball
    z, logits, value, gradient : torch.Tensor
        The start.
    n_steps : int
    rho : float
        As in :class:`APGD`.
    """

    def __init__(self, ball, z, logits, value, gradient, n_steps, rho):
        self.z = self.previous = self.best = z
        self.gradient = self.best_gradient = gradient
        self.logits = logits
        # an objective that is not a number must not stay the best one
        self.value = self.origin = torch.where(value.isnan(), -torch.inf, value)
        self.slack = torch.zeros_like(value)
        self.hit = torch.zeros_like(value, dtype=torch.bool)
        self.top = torch.full_like(value, torch.nan)
        self.size = column(torch.full_like(self.hit, self.length * ball.radius, dtype=z.dtype), z)
        self.setup(ball, n_steps, rho)

    #: Length of the first step, in radii.
    length = 2.0

    def setup(self, ball, n_steps, rho):
        self.rho = rho
        self.checkpoints = _checkpoints(n_steps)
        self.last_value = self.noted = self.value
        self.rises = torch.zeros_like(self.value)
        self.halved = torch.ones_like(self.hit)

    def select(self, rows):
        """Go on with some of the samples."""
        for name, value in vars(self).items():
            if isinstance(value, torch.Tensor):
                setattr(self, name, value[rows])

    def observe(self, z, logits, value, gradient):
        """Take note of the next iterate; there is no gradient at the last one."""
        rounding = torch.finfo(value.dtype).eps ** _ROUNDING_POWER
        gained = torch.maximum(self.value.abs(), (self.value - self.origin).abs())
        self.slack = torch.nan_to_num(rounding * gained, nan=0.0, posinf=0.0)
        higher = value > self.value + self.slack
        where = column(higher, z)
        self.best = torch.where(where, z, self.best)
        self.value = torch.where(higher, value, self.value)
        self.logits = torch.where(higher[:, None], logits, self.logits)
        if gradient is not None:
            self.best_gradient = torch.where(where, gradient, self.best_gradient)
        self.rises += value > self.last_value + self.slack
        self.last_value, self.z, self.gradient = value, z, gradient

    def _go_back(self, rows):
        """Return to the best point."""
        where = column(rows, self.z)
        self.z = torch.where(where, self.best, self.z)
        self.gradient = torch.where(where, self.best_gradient, self.gradient)
        return where

    def check(self, ball, step):
        """Halve the step where the objective has stopped rising."""
        if step not in self.checkpoints:
            return
        # condition 1 of Algorithm 1: the objective has risen in too few of the steps
        stalled = self.rises <= self.rho * self.checkpoints[step]
        # condition 2: nothing has been gained, though the step was not halved the last time
        stalled |= ~self.halved & (self.value <= self.noted)
        self.size = torch.where(self._go_back(stalled), self.size / 2, self.size)
        self.halved, self.noted = stalled, self.value
        self.rises = torch.zeros_like(self.rises)

    def move(self, ball, step):
        """Return the next iterate."""
        ahead = ball.ascend(self.z, self.gradient, self.size)
        if step:
            # Algorithm 1 with alpha = 3/4: 3/4 of the step to `ahead`, 1/4 of the step before
            ahead = 0.75 * ahead + 0.5 * self.z
            ahead = ball.project(ahead.sub_(self.previous, alpha=0.25))
        self.previous = self.z
        return ahead


class _SparseAscent(_Ascent):
    """The same for the 1-norm; steps move the steepest few features.

    Parameters
    ----------
    ball, z, logits, value, gradient, n_steps
        As above.
    warm : bool
        Whether the start has been reached by an ascent before.
    """

    length = 1.0

    def setup(self, ball, n_steps, warm):
        self.interval = max(int(0.04 * n_steps), 1)
        n_features = self.z[:1].numel()
        self.rises, self.last_value = torch.zeros_like(self.value), self.value
        if warm:
            self._adapt(self._support(ball))
        else:
            self.support = torch.full_like(self.value, n_features)
            self._adapt(self.support, 0.2)

    def _support(self, ball):
        return (self.best != ball.x).flatten(1).sum(1)

    def _adapt(self, support, share=1 / 1.5):
        self.support = support
        # rounded down, so that a single feature can take it all where there are few
        self.count = (share * support).long().clamp_min(1)
        self.most = int(self.count.max())

    def check(self, ball, step):
        """Move fewer features, in shorter steps unless the perturbation has become sparser."""
        if step == 0 or step % self.interval:
            return
        support = self._support(ball)
        sparser = support < 0.95 * self.support
        shorter = (self.size / 1.5).clamp_min(ball.radius / 10)
        self.size = torch.where(self._go_back(sparser), ball.radius, shorter)
        self._adapt(support)

    def move(self, ball, step):
        """Return the next iterate."""
        gradient = ball.to_data(self.gradient)
        direction = gradient.sign()
        if ball.low is not None:
            # a feature at the edge of its range has nowhere to go
            ahead = self.z + ball.radius * ball.to_data(direction)
            direction = (torch.clamp(ahead, ball.low, ball.high) - self.z).sign()
        size = (gradient * direction).flatten(1)
        least = size.topk(self.most, dim=1).values.gather(1, self.count[:, None] - 1)
        direction = direction * (size >= least).reshape(gradient.shape)
        total = direction.flatten(1).abs().sum(1).clamp_min(1)
        step = self.size / column(total, direction)
        return _project_l1(ball, self.z + ball.to_data(step * direction))
