"""Zeroth-order optimisation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ..noise import Stream
from ._estimation import BaseEstimatedGradientAttack, adam, count_movable

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._parameters import AttackParameters


class ZOO(BaseEstimatedGradientAttack):
    """Zeroth-order optimisation: Adam on a few features at a time, projected onto the ball.

    Each step picks features at random, estimates the derivative of the margin
    by each from the difference of two points, and moves these features by an
    Adam that keeps its moments, and its clock, per feature.

    Parameters
    ----------
    %(first_parameter)s
    n_draws : int, default=16
        Features per step. Each costs two questions, and the step one more;
        `max_queries` is 10,000 by default.
    delta : float, default=0.5
        How far from the iterate to ask, as a share of `eps`. Models whose
        scores are smooth bear small values (the paper's is 0.0001 on images in
        [-0.5, 0.5]); those of trees do not change over short distances.
    step_size : float, default=None
        Length of a step whose entries all have the size that Adam's rate
        stands for, in the units of `eps`. None means ``eps / 2``.
    %(shared_parameters)s

    %(shared_attributes)s

    See Also
    --------
    NES, SPSA : All features at a time.
    LocalSearch : One feature at a time, in jumps.
    SquareAttack : Random search, often with fewer questions.

    Notes
    -----
    The paper minimises the length of the perturbation plus a multiple of the
    margin of Carlini and Wagner. Here the margin alone is ascended within the
    ball, so that the result answers the same question as those of the other
    attacks by scores, and no questions are spent on finding the multiple.

    All points asked about lie in the ball, so the first one that fools the
    model is the result.

    References
    ----------
    Chen, Zhang, Sharma, Yi and Hsieh (2017), "ZOO: zeroth order optimization
    based black-box attacks to deep neural networks without training substitute
    models", Algorithm 2.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.svm import SVC
    >>> from robustsk.attacks import ZOO
    >>> X, y = load_iris(return_X_y=True)
    >>> svc = SVC().fit(X, y)
    >>> attack = ZOO(svc, eps=0.5, max_queries=200, random_state=0).fit(X)
    >>> bool(svc.score(attack.generate(X, y), y) < svc.score(X, y) - 0.2)
    True
    """

    _reach = "delta"
    _default_step = 0.5
    _dense = False

    def __init__(
        self,
        estimator: Any = None,
        *,
        max_queries: int = 10_000,
        n_draws: int = 16,
        delta: float = 0.5,
        step_size: float | None = None,
        **common: Unpack[AttackParameters],
    ):
        super().__init__(estimator, max_queries=max_queries, **common)
        self.n_draws = n_draws
        self.delta = delta
        self.step_size = step_size

    def _directions(self, batch, step, n):
        order = batch.noise.uniform(Stream.START + step)
        if batch.ball.weight is not None:
            order = order * (batch.ball.weight > 0)
        picked = order.flatten(1).topk(min(n, count_movable(batch.ball)), dim=1).indices
        directions = torch.zeros(*picked.shape, order[0].numel()).to(order)
        return directions.scatter_(2, picked[:, :, None], 1.0).unflatten(2, order.shape[1:])

    def _step(self, ball, z, gradient, state, size, scale):
        direction, state = adam(gradient, state, touched=gradient != 0)
        return ball.project(z + ball.to_data(scale * direction)), state
