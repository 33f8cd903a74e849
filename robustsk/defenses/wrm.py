"""Wasserstein risk minimisation: a penalty on moving samples in the place of a ball."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..attacks.gradient.wrm import WRMAdversary, check_gamma
from .pgd_at import PGDATClassifier

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._parameters import DefenseParameters, Network


class WRMClassifier(PGDATClassifier):
    """WRM: minimise the worst loss over all distributions near that of the data.

    Minimises ``E max_{x'} CE(f(x'), y) - gamma * ||x' - x||_2 ** 2``, the inner problem by the
    steps of :class:`robustsk.training.WRMAdversary`. Up to a constant it is the worst expected loss
    within a Wasserstein distance; which one follows from `gamma`.

    Parameters
    ----------
    %(first_parameter)s
    gamma : float, default=0.5
        Price of moving a sample, in nats by squared units of the data: the smaller, the more robust
        and the less accurate. The first step has length ``||grad CE|| / (2 * gamma)``.
    n_steps : int, default=15
        Steps of the inner problem after the first.
    adversary : attack, default=None
        What makes the adversarial examples in training, and the threat model
        that `score_adversarial` assumes. None means a
        :class:`robustsk.training.WRMAdversary` with `gamma` and `n_steps`, and
        ``eps=8/255`` for the threat model only. Its parameters can be given as
        ``adversary__eps=0.3``. Its randomness comes from the `random_state` of
        this estimator.
    %(shared_parameters)s

    %(shared_attributes)s

    See Also
    --------
    UDRPGDClassifier : The price is learned from the data.
    robustsk.metrics.wrm_certificate : Bound on the worst loss near a data set.

    Notes
    -----
    The inner problem is concave, and the method sound, only for large `gamma` and a network that is
    smooth: prefer ELU, softplus or the like to ReLU. Perturbations are measured by the 2-norm;
    against attacks in the max-norm it does less than training against those.

    The default suits data in [0, 1] or of unit variance. The source has ``gamma = 0.385`` for MNIST
    (``0.5 / gamma = 1.3``); Bui et al. (2022) take 0.05 for MNIST and 0.5 for CIFAR-10.

    References
    ----------
    Sinha, Namkoong and Duchi (2018), "Certifying some distributional robustness with principled
    adversarial training", Eq. 2 and Algorithm 1.

    Examples
    --------
    >>> from robustsk import WRMClassifier
    >>> from robustsk.datasets import load_digits_images
    >>> X, y = load_digits_images(return_X_y=True)
    >>> clf = WRMClassifier(n_steps=5, max_epochs=8, adversary__eps=0.1, random_state=0)
    >>> clf = clf.fit(X[:1000], y[:1000])
    >>> bool(clf.score_adversarial(X[1000:1200], y[1000:1200]) > 0.4)
    True
    """

    def __init__(
        self,
        module: Network | None = None,
        *,
        gamma: float = 0.5,
        n_steps: int = 15,
        **common: Unpack[DefenseParameters],
    ):
        super().__init__(module, **common)
        self.gamma = gamma
        self.n_steps = n_steps

    def default_adversary(self):
        """Return the ascent of the method."""
        return WRMAdversary(gamma=self.gamma, n_steps=self.n_steps)

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        """Check the parameters; called by skorch."""
        super().on_train_begin(net, X, y, **kwargs)
        check_gamma(self.gamma)
