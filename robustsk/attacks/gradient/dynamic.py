"""Projected gradient descent that goes as far as a criterion of convergence says."""

from __future__ import annotations

import math
import numbers
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..._tensors import length
from ..._validation import check_count, check_length, check_start
from ..noise import Stream
from ._descent import walk
from .base import BaseGradientAttack

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._parameters import GradientParameters


class DynamicPGD(BaseGradientAttack):
    """Projected gradient descent that stops once it has converged well enough.

    A sample is left alone as soon as ``c(x_k) <= criterion``, where
    ``c(x_k) = eps * ||g||_1 - <x_k - x, g>`` with the gradient `g` at `x_k` (FOSC,
    the first-order stationary condition) says how much a linear objective
    could still rise within the ball. It is never negative in the ball, and zero
    where the perturbation has the full length in the steepest direction. As the
    adversary of a training it makes examples of the same quality rather than
    with the same number of steps.

    Parameters
    ----------
    %(first_parameter)s
    criterion : float, default=0.0
        Where to stop, in units of the objective. With 0, the default, only a
        sample that has arrived stops; ``-inf`` makes it :class:`PGD`.
    min_steps : int, default=0
        Steps that are taken before the criterion is looked at; the article has 1.
    n_steps : int, default=10
        Largest number of gradient steps.
    step_size : float, default=None
        Length of a step, in the units of `eps`. None means
        ``2.5 * eps / n_steps``.
    random_start : {"none", "uniform", "gaussian"}, default="uniform"
        Start at the sample, uniformly in the ball, or at the sample plus
        normal noise of standard deviation `start_std`.
    start_std : float, default=0.001
        Standard deviation of the gaussian start, in the units of the data.
    %(shared_parameters)s

    %(shared_attributes)s

    See Also
    --------
    FriendlyPGD : Stops soon after the first error.

    Notes
    -----
    The valid range is not part of the criterion: where it holds a sample back,
    the criterion stays positive. For norms 2 and 1, ``||g||_1`` is replaced by
    the dual norm. With ``return_info=True``, ``info["fosc"]`` is the criterion
    where it was last looked at, before the last step if a sample took all of
    them, and ``info["n_steps_taken"]`` counts the steps. In evaluation a sample
    that is misclassified stops as well.

    References
    ----------
    Wang, Ma, Bailey, Yi, Zhou and Gu (2019), "On the convergence and robustness
    of adversarial training", Eq. 5 and Algorithm 1. The perturbation is measured
    from the sample; the authors' code measures it from the random start.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from robustsk.attacks import DynamicPGD
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = LogisticRegression(max_iter=1000).fit(X, y)
    >>> attack = DynamicPGD(clf, criterion=0.1, eps=1.0, random_state=0).fit(X)
    >>> X_adv, info = attack.generate(X, y, return_info=True)
    >>> bool((info["fosc"] >= 0).all() and info["n_steps_taken"].mean() < 10)
    True
    """

    def __init__(
        self,
        estimator: Any = None,
        *,
        criterion: float = 0.0,
        min_steps: int = 0,
        n_steps: int = 10,
        step_size: float | None = None,
        random_start: str = "uniform",
        start_std: float = 0.001,
        **common: Unpack[GradientParameters],
    ):
        super().__init__(estimator, **common)
        self.criterion = criterion
        self.min_steps = min_steps
        self.n_steps = n_steps
        self.step_size = step_size
        self.random_start = random_start
        self.start_std = start_std

    def _attack_batch(self, batch):
        if not isinstance(self.criterion, numbers.Real) or math.isnan(self.criterion):
            raise ValueError(f"criterion must be a number, got {self.criterion!r}.")
        n_steps = check_count(self.n_steps, "n_steps")
        min_steps = check_count(self.min_steps, "min_steps", least=0)
        size = self._step_length(batch, 2.5, n_steps)
        start = check_start(self.random_start)
        std = check_length(self.start_std, "start_std")
        z = batch.ball.random_start(start, batch.noise, Stream.START, std)
        fosc = torch.zeros(len(z), dtype=z.dtype, device=z.device)
        looks = 0

        def stop(batch, rows, z, gradient):
            nonlocal looks
            looks += 1  # once before every step
            fosc[rows] = first_order_condition(batch.ball, z, gradient)
            return (fosc[rows] <= self.criterion) & (looks > min_steps)

        def advance(batch, rows, z, gradient, step):
            return batch.ball.ascend(z, gradient, size)

        path = walk(batch, z, n_steps=n_steps, advance=advance, stop=stop)
        batch.info["fosc"] = fosc
        batch.info["n_steps_taken"] = path.n_taken
        return path.z


def first_order_condition(ball, z, gradient):
    """Return how much a linear objective could still rise in the ball, at least 0; shape (n,).

    Parameters
    ----------
    ball : Ball
    z, gradient : torch.Tensor of shape (n, ...)
        Points in the ball and the gradients there.

    Returns
    -------
    torch.Tensor of shape (n,)
        ``radius * ||g||_dual - <z - x, g>``, which is zero where `z` is the point
        of the ball that is steepest uphill.
    """
    unit = ball.to_data(gradient)
    if ball.norm == np.inf:
        value = ball.radius * unit.abs() - (z - ball.x) * gradient
        # a point on the edge of the ball is there up to rounding only
        rounding = 4 * torch.finfo(z.dtype).eps * (z.abs() + ball.x.abs()) * gradient.abs()
        return torch.where(value > rounding, value, 0.0).flatten(1).sum(1)
    dual = {2.0: 2.0, 1.0: np.inf}[float(ball.norm)]
    climbed = ((z - ball.x) * gradient).flatten(1).sum(1)
    return (ball.radius * length(unit.flatten(1), dual) - climbed).clamp_min(0)
