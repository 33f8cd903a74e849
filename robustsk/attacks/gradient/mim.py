"""The momentum iterative method."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..._validation import check_length
from ._descent import descend
from .bim import BIM

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._parameters import GradientParameters


class MIM(BIM):
    """Momentum iterative method (MI-FGSM), the steadier and more transferable BIM.

    Accumulates ``g = decay * g + grad / ||grad||_1`` and steps along `g`.

    Parameters
    ----------
    %(first_parameter)s
    decay : float, default=1.0
        What is kept of the accumulated gradient; 0 gives :class:`BIM`.
    n_steps : int, default=10
        Number of gradient steps.
    step_size : float, default=None
        Length of a step, in the units of `eps`. None means ``eps / n_steps``.
    %(shared_parameters)s

    %(shared_attributes)s

    References
    ----------
    Dong, Liao, Pang, Su, Zhu, Hu and Li (2018), "Boosting adversarial attacks
    with momentum", Algorithm 1.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from robustsk import MIM
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = LogisticRegression(max_iter=1000).fit(X, y)
    >>> X_adv = MIM(clf, eps=0.5).fit(X).generate(X, y)
    >>> bool(clf.score(X_adv, y) < clf.score(X, y))
    True
    """

    is_fixed_path = True

    def __init__(
        self,
        estimator: Any = None,
        *,
        decay: float = 1.0,
        n_steps: int = 10,
        step_size: float | None = None,
        **common: Unpack[GradientParameters],
    ):
        super().__init__(estimator, n_steps=n_steps, step_size=step_size, **common)
        self.decay = decay

    def _attack_batch(self, batch):
        return descend(batch, momentum=check_length(self.decay, "decay"), **self._steps(batch))
