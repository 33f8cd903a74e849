"""Adaptive diversity promoting: members that disagree about the wrong classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from .._validation import check_length
from ..losses import adp_loss
from .base import BaseEnsemble

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..defenses._parameters import Network
    from ._parameters import EnsembleParameters


class EnsembleADP(BaseEnsemble):
    """Adaptive diversity promoting (ADP) with adversarial training.

    Every member learns the true class, while the ensemble is asked to be unsure
    and the members to rank the wrong classes differently, so that an example that
    fools one is less likely to fool the others in the same way. Minimises, with the
    mean `p` of the members' probabilities `p_n`::

        L(x) + L(x'),    L(x) = sum_n CE(p_n(x), y) - alpha * H(p(x)) - beta * log det(x)

    where `x'` is crafted against the ensemble and the determinant is that of the
    cosines between the members' predictions without the true class.

    Parameters
    ----------
    %(first_parameter)s
    alpha : float, default=2.0
        Weight of the entropy of the ensemble's prediction.
    beta : float, default=0.5
        Weight of the diversity of the wrong classes' predictions; without effect
        for two classes, of which one only is wrong.
    %(shared_parameters)s

    %(shared_attributes)s

    See Also
    --------
    EnsembleAT : The same without the diversity.
    robustsk.losses.adp_regularizer : The entropy and the diversity.

    Notes
    -----
    The article trains on clean samples and has the combination with adversarial
    training as an option, which is what others compare with.

    Members that have learned nothing agree, where the determinant is close to zero
    and its logarithm steep. The wrong classes are therefore spread out first, and for
    the first hundred steps or so the loss falls while accuracy stays at chance.

    References
    ----------
    Pang, Xu, Du, Chen and Zhu (2019), "Improving adversarial robustness via
    promoting ensemble diversity", ICML, Eqs. 2 to 4.

    Examples
    --------
    >>> from robustsk import EnsembleADP
    >>> from robustsk.datasets import load_digits_images
    >>> X, y = load_digits_images(return_X_y=True, as_flat=True)
    >>> clf = EnsembleADP(max_epochs=8, adversary__eps=0.1, random_state=0)
    >>> clf = clf.fit(X[:1000], y[:1000])
    >>> bool(clf.score_adversarial(X[1000:1200], y[1000:1200]) > 0.4)
    True
    """

    def __init__(
        self,
        module: Network | Sequence[Network] | None = None,
        *,
        alpha: float = 2.0,
        beta: float = 0.5,
        **common: Unpack[EnsembleParameters],
    ):
        super().__init__(module, **common)
        self.alpha = alpha
        self.beta = beta

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        """Check the parameters; called by skorch."""
        super().on_train_begin(net, X, y, **kwargs)
        check_length(self.alpha, "alpha")
        check_length(self.beta, "beta")

    def training_loss(self, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        """Return the loss of the members less their diversity, on clean and attacked samples."""
        return sum(
            adp_loss(
                self.member_logits(source),
                y,
                alpha=self.alpha,
                beta=self.beta,
                classification_loss=self.classification_loss,
            )
            for source in (x, x_adv)
        )
