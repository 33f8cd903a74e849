"""Simultaneous perturbation stochastic approximation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ..noise import Stream
from ._estimation import BaseEstimatedGradientAttack, adam

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._parameters import AttackParameters


class SPSA(BaseEstimatedGradientAttack):
    """Adam with gradients estimated from random signs, projected onto the ball.

    The gradient of the margin at the iterate is estimated as ``mean((f(z +
    delta v) - f(z - delta v)) v) / (2 delta)`` over directions `v` with
    independent entries of 1 and -1.

    Parameters
    ----------
    %(first_parameter)s
    n_draws : int, default=10
        Directions per step. Each costs two questions, and the step one more;
        `max_queries` is 10,000 by default.
    delta : float, default=0.2
        How far from the iterate to ask, as a share of `eps`: the length of
        ``delta * v`` in the norm of the ball. Models whose scores are smooth
        bear small values; those of trees do not change over short distances.
    step_size : float, default=None
        Length of a step whose entries all have the size that Adam's rate
        stands for, in the units of `eps`. None means ``eps / 4``.
    %(shared_parameters)s

    %(shared_attributes)s

    See Also
    --------
    NES : Normal directions, and steepest ascent.
    ZOO : One feature at a time.
    SquareAttack : Random search, often with fewer questions.

    Notes
    -----
    All points asked about lie in the ball, so the first one that fools the
    model is the result.

    References
    ----------
    Uesato, O'Donoghue, van den Oord and Kohli (2018), "Adversarial risk and the
    dangers of evaluating against weak attacks", Algorithm 1.

    Spall (1992), "Multivariate stochastic approximation using a simultaneous
    perturbation gradient approximation".

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.svm import SVC
    >>> from robustsk.attacks import SPSA
    >>> X, y = load_iris(return_X_y=True)
    >>> svc = SVC().fit(X, y)
    >>> attack = SPSA(svc, eps=0.5, n_draws=5, max_queries=200, random_state=0).fit(X)
    >>> bool(svc.score(attack.generate(X, y), y) < svc.score(X, y) - 0.2)
    True
    """

    _reach = "delta"

    def __init__(
        self,
        estimator: Any = None,
        *,
        max_queries: int = 10_000,
        n_draws: int = 10,
        delta: float = 0.2,
        step_size: float | None = None,
        **common: Unpack[AttackParameters],
    ):
        super().__init__(estimator, max_queries=max_queries, **common)
        self.n_draws = n_draws
        self.delta = delta
        self.step_size = step_size

    def _directions(self, batch, step, n):
        drawn = batch.noise.uniform(Stream.START + step, (n, *batch.x.shape[1:]))
        return torch.where(drawn < 0.5, -1.0, 1.0).to(drawn.dtype)

    def _step(self, ball, z, gradient, state, size, scale):
        direction, state = adam(gradient, state)
        return ball.project(z + ball.to_data(scale * direction)), state
