"""Natural evolution strategies."""

from __future__ import annotations

import numbers
from typing import TYPE_CHECKING, Any

from ..noise import Stream
from ._estimation import BaseEstimatedGradientAttack

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._parameters import AttackParameters


class NES(BaseEstimatedGradientAttack):
    """Projected gradient ascent with gradients estimated by natural evolution strategies.

    The gradient of the margin at the iterate is estimated as ``mean((f(z +
    sigma u) - f(z - sigma u)) u) / (2 sigma)`` over normal directions `u`.

    Parameters
    ----------
    %(first_parameter)s
    n_draws : int, default=10
        Directions per step. Each costs two questions, and the step one more;
        `max_queries` is 10,000 by default.
    sigma : float, default=0.2
        How far from the iterate to ask, as a share of `eps`: about the length
        of ``sigma * u`` in the norm of the ball. Models whose scores are smooth
        bear small values (the paper's is 0.02); those of trees do not change
        over short distances.
    step_size : float, default=None
        Length of a step, in the units of `eps`. None means ``eps / 4``.
    momentum : float, default=0.9
        Share of the former estimates in the running mean that is followed; 0
        means the last estimate alone.
    %(shared_parameters)s

    %(shared_attributes)s

    See Also
    --------
    SPSA : Random signs instead of normal numbers, and Adam.
    ZOO : One feature at a time.
    SquareAttack : Random search, often with fewer questions.

    Notes
    -----
    The paper takes 50 directions for smaller steps. Within the same number of
    questions, more steps and a running mean over them get further.

    All points asked about lie in the ball, so the first one that fools the
    model is the result.

    References
    ----------
    Ilyas, Engstrom, Athalye and Lin (2018), "Black-box adversarial attacks with
    limited queries and information", Algorithm 1.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.svm import SVC
    >>> from robustsk.attacks import NES
    >>> X, y = load_iris(return_X_y=True)
    >>> svc = SVC().fit(X, y)
    >>> attack = NES(svc, eps=0.5, n_draws=5, max_queries=200, random_state=0).fit(X)
    >>> bool(svc.score(attack.generate(X, y), y) < svc.score(X, y) - 0.2)
    True
    """

    def __init__(
        self,
        estimator: Any = None,
        *,
        max_queries: int = 10_000,
        n_draws: int = 10,
        sigma: float = 0.2,
        step_size: float | None = None,
        momentum: float = 0.9,
        **common: Unpack[AttackParameters],
    ):
        super().__init__(estimator, max_queries=max_queries, **common)
        self.n_draws = n_draws
        self.sigma = sigma
        self.step_size = step_size
        self.momentum = momentum

    def _attack_batch(self, batch):
        if not isinstance(self.momentum, numbers.Real) or not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be at least 0 and below 1, got {self.momentum!r}.")
        return super()._attack_batch(batch)

    def _directions(self, batch, step, n):
        return batch.noise.normal(Stream.START + step, (n, *batch.x.shape[1:]))

    def _step(self, ball, z, gradient, state, size, scale):
        if state:
            gradient = self.momentum * state[0] + (1 - self.momentum) * gradient
        return ball.ascend(z, ball.to_unit(gradient), size), [gradient]
