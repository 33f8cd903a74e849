"""The adversary of Wasserstein risk minimisation: a penalty in the place of a ball."""

from __future__ import annotations

import math
import numbers
from typing import TYPE_CHECKING, Any

from ..._validation import check_count, check_length, check_start
from ..noise import Stream
from ._descent import descend
from .base import BaseGradientAttack

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._parameters import GradientParameters


class WRMAdversary(BaseGradientAttack):
    """Ascent of the objective minus a penalty on how far samples move.

    Ascends ``J(x', y) - gamma * ||x' - x||_2 ** 2`` in steps that get shorter. With
    ``e = 0.5 / gamma`` it begins at ``x' = x + e * grad J(x, y)`` and step `t` of `n_steps`, from
    0, is::

        x' = x' + (e * grad J(x', y) - (x' - x)) / sqrt(t + 2)

    There is no ball and no sign of a gradient: samples where the objective is flat hardly move.

    Parameters
    ----------
    %(first_parameter)s
    gamma : float, default=1.0
        Weight of the penalty, in units of the objective by squared units of the data. The larger,
        the less samples move.
    n_steps : int, default=15
        Number of steps after the first.
    random_start : {"none", "uniform", "gaussian"}, default="none"
        Start at the sample as in the source, uniformly in the ball of radius `eps`, or at the
        sample plus normal noise of standard deviation `start_std`.
    start_std : float, default=0.001
        Standard deviation of the gaussian start, in the units of the data.
    %(shared_parameters)s

    %(shared_attributes)s

    Notes
    -----
    In training `eps` and `norm` are of no account beyond the start: they are the threat model of an
    evaluation (`transform`, `generate`, scores), in which it is PGD in the ball. Samples stay in
    the valid range; ``clip=None`` leaves them free, as in the source.

    References
    ----------
    Sinha, Namkoong and Duchi (2018), "Certifying some distributional robustness with principled
    adversarial training", Algorithm 1; step sizes of the authors' code.

    Examples
    --------
    >>> import torch
    >>> from robustsk.training import WRMAdversary
    >>> model, x = torch.nn.Linear(2, 2, bias=False), torch.zeros(1, 2)
    >>> model.weight.data = torch.eye(2)
    >>> attack = WRMAdversary(gamma=5, objective=lambda logits, y: logits[:, 1])
    >>> attack.perturb(model, x)  # 0.5 / gamma times the gradient
    tensor([[0.0000, 0.1000]])
    """

    def __init__(
        self,
        estimator: Any = None,
        *,
        gamma: float = 1.0,
        n_steps: int = 15,
        random_start: str = "none",
        start_std: float = 0.001,
        **common: Unpack[GradientParameters],
    ):
        super().__init__(estimator, **common)
        self.gamma = gamma
        self.n_steps = n_steps
        self.random_start = random_start
        self.start_std = start_std

    def _attack_batch(self, batch):
        n_steps = check_count(self.n_steps, "n_steps")
        start = check_start(self.random_start), check_length(self.start_std, "start_std")
        if batch.keep != "last":
            size = 2.5 * batch.ball.radius / n_steps
            return descend(
                batch, n_steps=n_steps, step_size=size, random_start=start[0], start_std=start[1]
            )
        pace = 0.5 / check_gamma(self.gamma)
        clamp = batch.ball.clamp
        z = batch.ball.random_start(start[0], batch.noise, Stream.START, start[1])
        _, _, gradient = batch.value_and_gradient(z)
        z = clamp(z + pace * gradient)
        for step in range(n_steps):
            _, _, gradient = batch.value_and_gradient(z)
            z = clamp(z + (pace * gradient - (z - batch.x)) / math.sqrt(step + 2))
        return z


def check_gamma(value):
    """Validate the weight of a penalty."""
    if not isinstance(value, numbers.Real) or not 0 < value < math.inf:
        raise ValueError(f"gamma must be a finite number greater than 0, got {value!r}.")
    return float(value)
