"""The fast gradient sign method."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..._validation import RANDOM_STARTS, check_choice, check_length
from ._descent import descend
from .base import BaseGradientAttack

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._parameters import GradientParameters


class FGSM(BaseGradientAttack):
    """Fast gradient sign method: one step of full length.

    ``x_adv = x + eps * sign(grad_x J(x, y))``; for other norms the sign is
    replaced by the steepest direction of unit length. With a uniform start it
    is the attack of fast adversarial training, with one of random signs R+FGSM:
    ``x' = x + start_size * sign(N(0, 1))``, then a step of ``eps - start_size``
    along the gradient at `x'`.

    Parameters
    ----------
    %(first_parameter)s
    random_start : {"none", "uniform", "gaussian", "sign"}, default="none"
        Start at the sample, uniformly in the ball, at the sample plus normal
        noise of standard deviation `start_std`, or at the sample plus random
        signs that make a perturbation of length `start_size`.
    step_size : float, default=None
        Length of the step, in the units of `eps`. None means `eps` without a
        random start, ``eps - start_size`` after that of signs, and
        ``1.25 * eps`` after the others.
    start_std : float, default=0.001
        Standard deviation of the gaussian start, in the units of the data.
    start_size : float, default=None
        Length of the start of signs, in the norm and the units of `eps` and at
        most `eps`. None means ``eps / 2``; with 0 the attack starts at the sample.
    %(shared_parameters)s

    %(shared_attributes)s

    See Also
    --------
    PGD : Many small steps.

    References
    ----------
    Goodfellow, Shlens and Szegedy (2015), "Explaining and harnessing
    adversarial examples", Sec. 4; Wong, Rice and Kolter (2020), "Fast is
    better than free", Algorithm 3, for the uniform start; Tramèr, Kurakin,
    Papernot, Goodfellow, Boneh and McDaniel (2018), "Ensemble adversarial
    training: attacks and defenses", R+FGSM, for that of signs.

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

    is_fixed_path = True

    def __init__(
        self,
        estimator: Any = None,
        *,
        random_start: str = "none",
        step_size: float | None = None,
        start_std: float = 0.001,
        start_size: float | None = None,
        **common: Unpack[GradientParameters],
    ):
        super().__init__(estimator, **common)
        self.random_start = random_start
        self.step_size = step_size
        self.start_std = start_std
        self.start_size = start_size

    def _attack_batch(self, batch):
        start, std = self.random_start, check_length(self.start_std, "start_std")
        check_choice(start, "random_start", (*RANDOM_STARTS, "sign"))
        step_size = self._step_length(batch, 1.0 if start == "none" else 1.25)
        if start == "sign":
            std = self._length_of_start(batch.ball.radius)
            if self.step_size is None:
                step_size = batch.ball.radius - std
        return descend(batch, n_steps=1, step_size=step_size, random_start=start, start_std=std)

    def _length_of_start(self, radius):
        if self.start_size is None:
            return radius / 2
        size = check_length(self.start_size, "start_size")
        if size > radius:
            raise ValueError(
                f"start_size must be at most eps={radius:g} and is {size:g}: the step goes the "
                "rest of the way. None means half of eps."
            )
        return size
