"""Projected gradient descent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..._validation import check_count, check_length, check_start
from ._descent import descend
from .base import BaseGradientAttack

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._parameters import GradientParameters


class PGD(BaseGradientAttack):
    """Projected gradient descent from a random start.

    Repeats ``x_adv = Proj(x_adv + step_size * direction(grad J(x_adv, y)))``,
    where the direction is the sign of the gradient for the inf norm, the
    gradient of unit length for the 2-norm, and a step along the few steepest
    features for the 1-norm.

    Parameters
    ----------
    %(first_parameter)s
    n_steps : int, default=10
        Number of gradient steps.
    step_size : float, default=None
        Length of a step, in the units of `eps`. None means
        ``2.5 * eps / n_steps``.
    random_start : {"none", "uniform", "gaussian"}, default="uniform"
        Start at the sample, uniformly in the ball, or at the sample plus
        normal noise of standard deviation `start_std`.
    start_std : float, default=0.001
        Standard deviation of the gaussian start, in the units of the data.
    n_restarts : int, default=1
        Number of runs. The first run that fools the model counts, otherwise
        the one with the highest objective.
    %(shared_parameters)s

    %(shared_attributes)s

    References
    ----------
    Madry, Makelov, Schmidt, Tsipras and Vladu (2018), "Towards deep learning
    models resistant to adversarial attacks", Eq. 2.2 and Sec. 5.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> from robustsk import PGD
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = make_pipeline(StandardScaler(), LogisticRegression()).fit(X, y)
    >>> X_adv = PGD(clf, eps=0.5, random_state=0).fit(X).generate(X, y)
    >>> bool(clf.score(X_adv, y) < clf.score(X, y))
    True
    """

    is_fixed_path = True

    def __init__(
        self,
        estimator: Any = None,
        *,
        n_steps: int = 10,
        step_size: float | None = None,
        random_start: str = "uniform",
        start_std: float = 0.001,
        n_restarts: int = 1,
        **common: Unpack[GradientParameters],
    ):
        super().__init__(estimator, **common)
        self.n_steps = n_steps
        self.step_size = step_size
        self.random_start = random_start
        self.start_std = start_std
        self.n_restarts = n_restarts

    def _attack_batch(self, batch):
        n_steps = check_count(self.n_steps, "n_steps")
        return descend(
            batch,
            n_steps=n_steps,
            step_size=self._step_length(batch, 2.5, n_steps),
            random_start=check_start(self.random_start),
            start_std=check_length(self.start_std, "start_std"),
            n_restarts=check_count(self.n_restarts, "n_restarts"),
        )
