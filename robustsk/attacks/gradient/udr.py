"""The adversary of distributionally robust training: a soft ball with a learned weight."""

from __future__ import annotations

import numbers
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..._validation import check_choice, check_count, check_length, check_start
from ...losses.wasserstein import smoothed_cost, transport_cost_gradient
from ..noise import Stream
from ..threat import Ball, check_norm
from ._descent import descend
from .base import BaseGradientAttack

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._parameters import GradientParameters


class UDRAdversary(BaseGradientAttack):
    """Projected gradient descent with a soft ball, for distributionally robust training.

    The adversary of a training may put each sample anywhere in a ball. Here it may leave the ball
    at a price, and the price ``lam`` is the same for all samples: it is the dual variable of a
    bound `eps` on the Wasserstein distance between the clean and the adversarial distribution.
    Each step pushes a sample up the objective, as PGD does, and then pulls it back only in part::

        u = x' + step_size * direction(grad J(x', y))
        x' = (1 - kappa) * u + kappa * Proj(u),     kappa = min(1, lam * step_size / tau)

    In training, ``lam`` falls as long as perturbations are smaller than `eps` on average and rises
    when they are larger::

        lam = max(0, lam - lambda_lr * (eps - mean distance))

    It makes any defence a distributionally robust one, as in
    ``TRADESClassifier(adversary=UDRAdversary(eps=0.3))``.

    Parameters
    ----------
    %(first_parameter)s
    soft_ball : {"deadzone", "literal"}, default="deadzone"
        How to pull. "deadzone" leaves what is in the ball alone and takes back the share `kappa` of
        what is outside. "literal" pulls towards the sample everywhere,
        ``x' = u - step_size * lam * w * grad c(u - x)`` with ``w = 1`` in the ball and ``1 / tau``
        outside.
    cost_norm : {1, 2, inf}, default=2
        Cost `c` of "literal", see :func:`robustsk.losses.transport_cost`.
    tau : float, default=None
        How soft the ball is, in the units of `eps`. None means ``tau_ratio * step_size``.
    tau_ratio : float, default=2.0
        `tau` in steps.
    lambda_init : float, default=None
        ``lam`` to begin with. None means ``tau / step_size`` for "deadzone", that is the hard ball
        (``kappa = 1``), and 1 for "literal".
    lambda_lr : float, default=None
        How fast it changes; 0 holds it. None means ``0.02 * tau / step_size`` for "deadzone" and
        0.02 for "literal".
    distance : {"mean_abs", "rms", "linf"}, default="mean_abs"
        Size of a perturbation that is compared with `eps` where `norm` is inf: mean of the absolute
        values over the features, root of the mean square, or largest absolute value. With norms 2
        and 1 it is the norm.
    smooth_distance : bool, default=False
        Whether what exceeds `eps` counts ``1 / tau`` times, see
        :func:`robustsk.losses.smoothed_cost`.
    lambda_period : int, default=10
        Number of batches after which ``lam`` changes, with the mean of their distances.
    clip_each_step : bool, default=True
        Whether to return to the valid range after each step, or only at the end.
    n_steps : int, default=10
        Number of gradient steps.
    step_size : float, default=None
        Length of a step, in the units of `eps`. None means ``2.5 * eps / n_steps``.
    random_start : {"none", "uniform", "gaussian"}, default="uniform"
        Start at the sample, uniformly in the ball, or at the sample plus
        normal noise of standard deviation `start_std`.
    start_std : float, default=0.001
        Standard deviation of the gaussian start, in the units of the data.
    %(shared_parameters)s

    %(shared_attributes)s

    lam_ : float or None
        Present dual variable; None before the first batch of a training. A training that goes on
        (`partial_fit`, `warm_start`) takes it over.

    Notes
    -----
    What it makes in training may be larger than `eps`, up to ``eps + n_steps * step_size``. The
    history of the estimator says how large it was: after each epoch it has "lam" and, as means over
    the samples, "delta_mean" (mean of ``|delta|`` over features) and "delta_max" (the largest
    ``|delta|``), for "deadzone" also "kappa". If most pixels are at the edge of the valid range, as
    on MNIST, the mean stays below `eps`, ``lam`` falls to 0 and the ball is gone: compare with an
    adversary of that larger radius.

    In an evaluation (`transform`, `generate`, scores) it keeps to the ball of radius `eps`, as
    PGD does.

    Two readings of the source exist: its appendix pulls towards the sample ("literal"); the code of
    its authors, and the perturbations that it reports, are those of "deadzone". There ``lam`` and
    `tau` only enter as ``lam / tau``. The article has ``tau = 2 * step_size``, the code
    ``tau = step_size``; with the defaults `kappa` begins and changes as in the code. Other than
    there, ``lam`` never becomes negative and `kappa` never exceeds 1, and norms 2 and 1 have the
    steps and the projection of PGD in these norms.

    References
    ----------
    Bui, Le, Tran, Zhao and Phung (2022), "A unified Wasserstein distributional robustness framework
    for adversarial training", Algorithm 1 and Eqs. 16 to 20.

    Examples
    --------
    >>> from robustsk import PGDATClassifier
    >>> from robustsk.datasets import load_digits_images
    >>> from robustsk.training import UDRAdversary
    >>> X, y = load_digits_images(return_X_y=True)
    >>> clf = PGDATClassifier(adversary=UDRAdversary(eps=0.1), max_epochs=8, random_state=0)
    >>> clf = clf.fit(X[:1000], y[:1000])
    >>> clf.history_[-1, "lam"] < clf.history_[0, "lam"]
    True
    """

    lam_ = None
    #: Sum of eps minus distance over the batches since the last change of lam_, and their number.
    _slack, _n_batches = 0.0, 0
    #: Sums of the epoch: samples, mean |delta|, max |delta|.
    _sums = (0.0, 0.0, 0.0)
    #: What stays when a training goes on.
    _state = ("lam_", "_slack", "_n_batches")

    def __init__(
        self,
        estimator: Any = None,
        *,
        soft_ball: str = "deadzone",
        cost_norm: float = 2,
        tau: float | None = None,
        tau_ratio: float = 2.0,
        lambda_init: float | None = None,
        lambda_lr: float | None = None,
        distance: str = "mean_abs",
        smooth_distance: bool = False,
        lambda_period: int = 10,
        clip_each_step: bool = True,
        n_steps: int = 10,
        step_size: float | None = None,
        random_start: str = "uniform",
        start_std: float = 0.001,
        **common: Unpack[GradientParameters],
    ):
        super().__init__(estimator, **common)
        self.soft_ball = soft_ball
        self.cost_norm = cost_norm
        self.tau = tau
        self.tau_ratio = tau_ratio
        self.lambda_init = lambda_init
        self.lambda_lr = lambda_lr
        self.distance = distance
        self.smooth_distance = smooth_distance
        self.lambda_period = lambda_period
        self.clip_each_step = clip_each_step
        self.n_steps = n_steps
        self.step_size = step_size
        self.random_start = random_start
        self.start_std = start_std

    def _attack_batch(self, batch):
        self._check()
        n_steps = check_count(self.n_steps, "n_steps")
        start = check_start(self.random_start), check_length(self.start_std, "start_std")
        size = self._step_length(batch, 2.5, n_steps)
        if batch.keep != "last":
            return descend(
                batch, n_steps=n_steps, step_size=size, random_start=start[0], start_std=start[1]
            )
        ratio = self._steps_in_tau(size)
        lam = self._lam(ratio)
        ball = batch.ball if self.clip_each_step else _without_range(batch.ball)
        z = ball.random_start(start[0], batch.noise, Stream.START, start[1])
        for _ in range(n_steps):
            _, _, gradient = batch.value_and_gradient(z)
            # Algorithm 1: push up the objective, then pull back
            z = ball.push(z, gradient, size)
            if self.soft_ball == "deadzone":
                z = _pull(z, ball, min(1.0, lam / ratio))
            else:
                z = self._pull_to_sample(z, ball, size * lam, ratio * size)
        return batch.ball.clamp(z)

    def _pull_to_sample(self, z, ball, pace, tau):
        delta = z - ball.x
        norm = check_norm(self.cost_norm)
        gate = ball.to_unit(delta).abs()
        if ball.norm != np.inf:
            gate = ball.distance(z).reshape(-1, *[1] * (z.ndim - 1)).expand_as(z)
        # beyond 1 the quadratic cost would send a sample past its origin
        outside = pace / tau if tau > 0 else np.inf
        inside, outside = (min(1.0, p) if norm == 2 else p for p in (pace, outside))
        # the slopes of Eq. 16
        weight = torch.where(gate >= ball.radius, outside, inside)
        pull = torch.nan_to_num(weight * transport_cost_gradient(delta, norm))
        return ball.clamp(ball.x + (delta - pull))

    # --- the dual variable -------------------------------------------------------------

    def observe(self, x, x_adv, weight=None):
        """Learn from a batch of a training; called by the defence after crafting.

        Parameters
        ----------
        x, x_adv : torch.Tensor of shape (n, ...)
        weight : torch.Tensor of shape (n,), optional
            Sample weights.
        """
        ball = self.reach(x)
        size = self._step_of(ball.radius)
        ratio = self._steps_in_tau(size)
        moved = (x_adv - x).detach().flatten(1).abs()
        distance = self._distance_from(x_adv.detach(), ball)
        if self.smooth_distance and ratio * size > 0:
            # Eq. 16
            distance = smoothed_cost(distance, ball.radius, ratio * size)
        values = torch.stack([distance, moved.mean(1), moved.amax(1)])
        means = values.mean(1) if weight is None else (values * weight).sum(1) / weight.sum()
        # the one time in a batch that the host waits
        distance, mean, largest = means.tolist()
        n = len(x)
        before = self._sums
        self._sums = before[0] + n, before[1] + n * mean, before[2] + n * largest
        self._kappa = min(1.0, self._lam(ratio) / ratio)
        self.lam_ = self._lam(ratio)
        self._slack += ball.radius - distance
        self._n_batches += 1
        if self._n_batches >= self.lambda_period:
            # Eq. 19, never below zero
            self.lam_ = max(0.0, self.lam_ - self._rate(ratio) * self._slack / self._n_batches)
            self._slack, self._n_batches = 0.0, 0

    def record(self):
        """Return what is to be recorded of an epoch; called by the defence at its end.

        Returns
        -------
        dict of str to float
        """
        n, mean, largest = self._sums
        self._sums = 0.0, 0.0, 0.0
        if not n:
            return {}
        values = {"lam": self.lam_, "delta_mean": mean / n, "delta_max": largest / n}
        if self.soft_ball == "deadzone":
            values["kappa"] = self._kappa
        return values

    def resume(self, previous):
        """Go on from where another adversary has got; called by a defence whose training goes on.

        Parameters
        ----------
        previous : attack
        """
        if isinstance(previous, UDRAdversary):
            for name in self._state:
                setattr(self, name, getattr(previous, name))

    def _distance_from(self, z, ball):
        if ball.norm != np.inf:
            return ball.distance(z)
        delta = ball.to_unit(z - ball.x).flatten(1).abs()
        if self.distance == "linf":
            return delta.amax(1)
        # features that cannot move do not count
        free = 1.0
        if ball.weight is not None:
            free = ball.moves.expand_as(z[0]).double().mean().clamp_min(1e-12).to(z)
        if self.distance == "mean_abs":
            return delta.mean(1) / free
        return (delta.square().mean(1) / free).sqrt()

    def _step_of(self, radius):
        return 2.5 * radius / self.n_steps if self.step_size is None else float(self.step_size)

    def _steps_in_tau(self, size):
        # without steps there is no overshoot, and any number will do
        return self.tau_ratio if self.tau is None or size == 0 else self.tau / size

    def _lam(self, ratio):
        if self.lam_ is not None:
            return self.lam_
        if self.lambda_init is not None:
            return float(self.lambda_init)
        return ratio if self.soft_ball == "deadzone" else 1.0

    def _rate(self, ratio):
        if self.lambda_lr is not None:
            return self.lambda_lr
        return 0.02 * ratio if self.soft_ball == "deadzone" else 0.02

    def _check(self):
        for name, allowed in (
            ("soft_ball", ("deadzone", "literal")),
            ("distance", ("mean_abs", "rms", "linf")),
        ):
            check_choice(getattr(self, name), name, allowed)
        for name in ("tau", "tau_ratio"):
            value = getattr(self, name)
            if name == "tau" and value is None:
                continue
            if not isinstance(value, numbers.Real) or not 0 < value < np.inf:
                raise ValueError(f"{name} must be a finite number greater than 0, got {value!r}.")
        for name in ("lambda_init", "lambda_lr"):
            if getattr(self, name) is not None:
                check_length(getattr(self, name), name)
        check_count(self.lambda_period, "lambda_period")


def soft_project(
    delta: torch.Tensor, eps: float, kappa: float, norm: float = np.inf
) -> torch.Tensor:
    """Take back a share of what is outside of a ball.

    Parameters
    ----------
    delta : torch.Tensor of shape (n, ...)
        Perturbations.
    eps : float
        Radius of the ball.
    kappa : float
        Share in [0, 1] of the way to the ball: 1 is the projection, 0 does nothing.
    norm : {inf, 2, 1}, default=inf
        Norm of the ball.

    Returns
    -------
    torch.Tensor of the shape of `delta`
        ``(1 - kappa) * delta + kappa * Proj(delta)``.

    Examples
    --------
    >>> import torch
    >>> from robustsk.training import soft_project
    >>> soft_project(torch.tensor([[0.5, 3.0, -2.0]]), eps=1.0, kappa=0.75)
    tensor([[ 0.5000,  1.5000, -1.2500]])
    """
    if not 0 <= kappa <= 1:
        raise ValueError(f"kappa must be in [0, 1], got {kappa!r}.")
    return _pull(delta, Ball(torch.zeros_like(delta), check_norm(norm), float(eps)), kappa)


def _pull(z, ball, kappa):
    """Move `z` the share `kappa` of its way to the ball, and into the box."""
    if kappa == 1:
        return ball.project(z)
    return ball.clamp((1 - kappa) * z + kappa * ball.project(z))


def _without_range(ball):
    """Return the same ball without the valid range of the data."""
    return Ball(ball.x, ball.norm, ball.eps)
