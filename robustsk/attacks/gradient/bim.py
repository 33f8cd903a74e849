"""The basic iterative method."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..._validation import check_count
from ._descent import descend
from .base import BaseGradientAttack

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._parameters import GradientParameters


class BIM(BaseGradientAttack):
    """Basic iterative method: repeated FGSM from the sample itself.

    Parameters
    ----------
    %(first_parameter)s
    n_steps : int, default=10
        Number of gradient steps.
    step_size : float, default=None
        Length of a step, in the units of `eps`. None means ``eps / n_steps``.
    %(shared_parameters)s

    %(shared_attributes)s

    See Also
    --------
    PGD : The same with random starts.
    MIM : The same with momentum.

    References
    ----------
    Kurakin, Goodfellow and Bengio (2017), "Adversarial examples in the
    physical world", Sec. 2.2. ``target="least_likely"`` is their Sec. 2.3.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from robustsk import BIM
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = LogisticRegression(max_iter=1000).fit(X, y)
    >>> X_adv = BIM(clf, eps=0.5).fit(X).generate(X, y)
    >>> bool(abs(X_adv - X).max() <= 0.5)
    True
    """

    is_fixed_path = True

    def __init__(
        self,
        estimator: Any = None,
        *,
        n_steps: int = 10,
        step_size: float | None = None,
        **common: Unpack[GradientParameters],
    ):
        super().__init__(estimator, **common)
        self.n_steps = n_steps
        self.step_size = step_size

    def _attack_batch(self, batch):
        return descend(batch, **self._steps(batch))

    def _steps(self, batch):
        n_steps = check_count(self.n_steps, "n_steps")
        return {"n_steps": n_steps, "step_size": self._step_length(batch, 1.0, n_steps)}
