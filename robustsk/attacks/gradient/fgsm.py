"""The fast gradient sign method."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..._validation import check_length, check_start
from ._descent import descend
from .base import BaseGradientAttack

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._parameters import GradientParameters


class FGSM(BaseGradientAttack):
    """Fast gradient sign method: one step of full length.

    ``x_adv = x + eps * sign(grad_x J(x, y))``; for other norms the sign is
    replaced by the steepest direction of unit length. With a random start it
    is the attack of fast adversarial training.

    Parameters
    ----------
    %(first_parameter)s
    random_start : {"none", "uniform", "gaussian"}, default="none"
        Where to start from.
    step_size : float, default=None
        Length of the step, in the units of `eps`. None means `eps` without and
        ``1.25 * eps`` with a random start.
    start_std : float, default=0.001
        Standard deviation of the gaussian start.
    %(shared_parameters)s

    %(shared_attributes)s

    See Also
    --------
    PGD : Many small steps.

    References
    ----------
    Goodfellow, Shlens and Szegedy (2015), "Explaining and harnessing
    adversarial examples", Sec. 4; Wong, Rice and Kolter (2020), "Fast is
    better than free", Algorithm 3, for the random start.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from robustsk import FGSM
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = LogisticRegression(max_iter=1000).fit(X, y)
    >>> X_adv = FGSM(clf, eps=0.5).fit(X).generate(X, y)
    >>> bool(clf.score(X_adv, y) < clf.score(X, y))
    True
    """

    def __init__(
        self,
        estimator: Any = None,
        *,
        random_start: str = "none",
        step_size: float | None = None,
        start_std: float = 0.001,
        **common: Unpack[GradientParameters],
    ):
        super().__init__(estimator, **common)
        self.random_start = random_start
        self.step_size = step_size
        self.start_std = start_std

    def _attack_batch(self, batch):
        start = check_start(self.random_start)
        return descend(
            batch,
            n_steps=1,
            step_size=self._step_length(batch, 1.0 if start == "none" else 1.25),
            random_start=start,
            start_std=check_length(self.start_std, "start_std"),
        )
