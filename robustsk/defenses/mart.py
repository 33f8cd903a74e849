"""MART: errors on clean samples count more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from .._validation import check_length
from ..attacks import PGD
from ..losses import boosted_cross_entropy, mart_loss
from ._prescribed import Prescription
from .base import BaseDefense

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._parameters import DefenseParameters, Network


class MARTClassifier(Prescription, BaseDefense):
    """MART: adversarial training that revisits misclassified samples.

    Minimises ``BCE(f(x'), y) + beta * KL(p(x) || p(x')) * (1 - p_y(x))`` with
    the boosted cross-entropy ``BCE = -log p_y - log(1 - max_{k != y} p_k)``,
    where `x'` ascends the cross-entropy from ``x + 0.001 * N(0, I)``. The
    factor asks for consistent predictions above all where the clean sample is
    hardly recognised.

    Parameters
    ----------
    %(first_parameter)s
    beta : float, default=6.0
        Weight of the divergence; 0 leaves the boosted cross-entropy. The
        article calls it lambda; its authors use 6 for a WideResNet and 5 for a
        ResNet-18.
    adversary : attack, default=None
        What makes the adversarial examples in training, and the threat model
        that `score_adversarial` assumes. None means a 10-step PGD with
        ``eps=8/255``. It starts next to the sample, whichever attack is
        given: ``adversary=PGD(eps=0.3)`` does so too. Another start is one that
        is not the attack's own default, or is said to this estimator:
        ``adversary__random_start="uniform"``. Its randomness comes from the
        `random_state` of this estimator.
    %(shared_parameters)s

    %(shared_attributes)s

    See Also
    --------
    TRADESClassifier : The same weight for all divergences, natural cross-entropy.
    FATClassifier : With ``loss="mart"``, on friendly adversarial examples.

    Notes
    -----
    Its robustness to PGD is better than to attacks on other objectives:
    compare with AutoAttack. The margin of a `head` enters the first logarithm
    of the boosted cross-entropy only.

    References
    ----------
    Wang, Zou, Yi, Bailey, Ma and Gu (2020), "Improving adversarial robustness
    requires revisiting misclassified examples", Eq. 11.

    Examples
    --------
    >>> from robustsk import MARTClassifier
    >>> from robustsk.datasets import load_digits_images
    >>> X, y = load_digits_images(return_X_y=True)
    >>> clf = MARTClassifier(max_epochs=8, adversary__eps=0.1, random_state=0)
    >>> clf = clf.fit(X[:1000], y[:1000])
    >>> bool(clf.score_adversarial(X[1000:1200], y[1000:1200]) > 0.4)
    True
    """

    def __init__(
        self,
        module: Network | None = None,
        *,
        beta: float = 6.0,
        **common: Unpack[DefenseParameters],
    ):
        super().__init__(module, **common)
        self.beta = beta

    def prescribed(self):
        """Return the start next to the sample."""
        return {"random_start": "gaussian"}

    def default_adversary(self):
        """Return a PGD with the start of the source."""
        return PGD(**self.prescribed())

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        """Check the parameters; called by skorch."""
        super().on_train_begin(net, X, y, **kwargs)
        check_length(self.beta, "beta")

    def training_loss(self, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        """Return ``BCE(f(x'), y) + beta * KL(p(x) || p(x')) * (1 - p_y(x))``, shape (n,)."""
        loss = {"classification_loss": self.classification_loss}
        if self.beta == 0:
            return boosted_cross_entropy(self.logits(x_adv), y, **loss)
        # Eq. 11
        return mart_loss(self.logits(x), self.logits(x_adv), y, self.beta, **loss)
