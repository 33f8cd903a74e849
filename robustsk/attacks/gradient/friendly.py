"""Early-stopped projected gradient descent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..._validation import check_count, check_length, check_start
from ..noise import Stream
from ._descent import walk
from .base import BaseGradientAttack

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._parameters import GradientParameters


class FriendlyPGD(BaseGradientAttack):
    """Projected gradient descent that stops soon after the first error.

    A sample is left alone at the iterate that is misclassified for the
    ``tau + 1``-th time: adversarial, but hardly more than it need be. As the
    adversary of a training (friendly adversarial training) this costs fewer
    gradients and less clean accuracy than the full :class:`PGD`, which it
    becomes for ``tau=n_steps``. It is no measure of robustness beyond whether
    a sample falls.

    Parameters
    ----------
    %(first_parameter)s
    tau : int, default=0
        How many misclassified iterates are passed, in all and not only in a
        row, before stopping at the next one; the start counts as an iterate.
        Without effect in evaluation, which stops at the first.
    omega : float, default=0.0
        Standard deviation of noise that is added in each step, in the units of
        the data. The source has 0.001 for images in [0, 1] in FAT, and none in
        its variants of TRADES and MART.
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
    GeometryAwarePGD : All steps, and counts how many a sample withstands.

    Notes
    -----
    With ``return_info=True``, ``info["kappa"]`` counts the iterates that were
    still classified correctly, of those seen before stopping (the last of
    `n_steps` is not among them), and ``info["n_steps_taken"]`` the gradient
    steps. What is classified correctly is told by the labels given, whatever
    the objective. In a targeted attack the target has to be reached.

    References
    ----------
    Zhang, Xu, Han, Niu, Cui, Sugiyama and Kankanhalli (2020), "Attacks which
    do not kill training make adversarial learning stronger", Algorithm 1
    (PGD-K-tau).

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from robustsk.attacks import FriendlyPGD
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = LogisticRegression(max_iter=1000).fit(X, y)
    >>> attack = FriendlyPGD(clf, eps=1.0, random_state=0).fit(X)
    >>> X_adv, info = attack.generate(X, y, return_info=True)
    >>> bool(info["n_steps_taken"].mean() < 10)
    True
    """

    def __init__(
        self,
        estimator: Any = None,
        *,
        tau: int = 0,
        omega: float = 0.0,
        n_steps: int = 10,
        step_size: float | None = None,
        random_start: str = "uniform",
        start_std: float = 0.001,
        **common: Unpack[GradientParameters],
    ):
        super().__init__(estimator, **common)
        self.tau = tau
        self.omega = omega
        self.n_steps = n_steps
        self.step_size = step_size
        self.random_start = random_start
        self.start_std = start_std

    def _attack_batch(self, batch):
        tau = check_count(self.tau, "tau", least=0)
        # Algorithm 1: a misclassified iterate takes one from tau; where none is left, it stops
        path = sign_walk(self, batch, patience=tau, omega=check_length(self.omega, "omega"))
        batch.info["kappa"] = path.n_right
        batch.info["n_steps_taken"] = path.n_taken
        return path.z


def sign_walk(attack, batch, *, patience=None, omega=0.0):
    """Take the steps of projected gradient descent, and count.

    Parameters
    ----------
    attack : attack
        With the parameters that :class:`PGD` has.
    batch : AttackBatch
    patience : int, optional
        As in :func:`robustsk.attacks._descent.walk`.
    omega : float, default=0.0
        Standard deviation of the noise in each step.

    Returns
    -------
    Path
    """
    n_steps = check_count(attack.n_steps, "n_steps")
    size = attack._step_length(batch, 2.5, n_steps)
    z = batch.ball.random_start(
        check_start(attack.random_start),
        batch.noise,
        Stream.START,
        check_length(attack.start_std, "start_std"),
    )

    def advance(batch, rows, z, gradient, step):
        if omega:
            # of the authors' code, not of Algorithm 1
            z = z + omega * batch.noise.normal(Stream.STEP + step)
        return batch.ball.ascend(z, gradient, size)

    return walk(batch, z, n_steps=n_steps, advance=advance, patience=patience)
