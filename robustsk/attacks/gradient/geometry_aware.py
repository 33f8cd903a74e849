"""Projected gradient descent that says how long a sample holds out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .base import BaseGradientAttack
from .friendly import sign_walk

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._parameters import GradientParameters


class GeometryAwarePGD(BaseGradientAttack):
    """Projected gradient descent that counts the steps a sample withstands.

    The count ``kappa``, from 0 to `n_steps`, tells how far a sample is from
    the decision boundary: attackable where it is small, guarded where it is
    large. Geometry-aware training weighs samples by it.

    Parameters
    ----------
    %(first_parameter)s
    kappa_mode : {"count", "first"}, default="count"
        Whether ``kappa`` is the number of iterates that are classified
        correctly, or the number of the first one that is not. The two differ
        where an iterate returns to the correct class.
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
    %(shared_parameters)s

    %(shared_attributes)s

    See Also
    --------
    FriendlyPGD : Stops soon after the first error.

    Notes
    -----
    ``kappa`` is reported as ``generate(X, y, return_info=True)[1]["kappa"]``
    and counts the start and all iterates but the last, which is not looked
    at. Evaluation stops at the first error, where both ways of counting agree.

    References
    ----------
    Zhang, Zhu, Niu, Han, Sugiyama and Kankanhalli (2021), "Geometry-aware
    instance-reweighted adversarial training", Algorithm 1.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from robustsk.attacks import GeometryAwarePGD
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = LogisticRegression(max_iter=1000).fit(X, y)
    >>> attack = GeometryAwarePGD(clf, eps=1.0, random_state=0).fit(X)
    >>> _, info = attack.generate(X, y, return_info=True)
    >>> info["kappa"].shape
    (150,)
    """

    def __init__(
        self,
        estimator: Any = None,
        *,
        kappa_mode: str = "count",
        n_steps: int = 10,
        step_size: float | None = None,
        random_start: str = "uniform",
        start_std: float = 0.001,
        **common: Unpack[GradientParameters],
    ):
        super().__init__(estimator, **common)
        self.kappa_mode = kappa_mode
        self.n_steps = n_steps
        self.step_size = step_size
        self.random_start = random_start
        self.start_std = start_std

    def _attack_batch(self, batch):
        if self.kappa_mode not in ("count", "first"):
            raise ValueError(f"kappa_mode must be 'count' or 'first', got {self.kappa_mode!r}.")
        path = sign_walk(self, batch)
        # kappa of Algorithm 1
        batch.info["kappa"] = path.n_right if self.kappa_mode == "count" else path.first
        return path.z
