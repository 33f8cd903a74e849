"""Training on clean and adversarial samples together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from .._validation import check_length
from .base import BaseDefense

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._parameters import DefenseParameters, Network


class MixedATClassifier(BaseDefense):
    """Mixed adversarial training: the loss on clean and on adversarial samples.

    Minimises ``CE(f(x), y) + beta * CE(f(x'), y)``, where `x'` ascends the
    cross-entropy. ``beta=1`` gives both the same weight; ``beta=0`` is natural
    training, and the larger `beta` the more it is
    :class:`PGDATClassifier` with that much larger a loss.

    Parameters
    ----------
    %(first_parameter)s
    beta : float, default=1.0
        Weight of the loss on adversarial samples.
    %(shared_parameters)s

    %(shared_attributes)s

    See Also
    --------
    FGSMATClassifier : The mixture of Goodfellow et al., with a one-step attack.
    PGDATClassifier : Adversarial samples only.
    ALPClassifier : Compares the two kinds of samples as well.

    Notes
    -----
    Clean and adversarial samples pass through the network one after the other,
    so that batch normalisation sees two distributions; its statistics, and
    with them clean accuracy, suffer from it.

    References
    ----------
    Hou (2022), "Adversarial training for improving the robustness of deep
    neural networks", MSc thesis, University of Alberta, Eqs. 4.1 and 4.2.

    Examples
    --------
    >>> from robustsk import MixedATClassifier
    >>> from robustsk.datasets import load_digits_images
    >>> X, y = load_digits_images(return_X_y=True)
    >>> clf = MixedATClassifier(max_epochs=8, adversary__eps=0.1, random_state=0)
    >>> clf = clf.fit(X[:1000], y[:1000])
    >>> bool(clf.score_adversarial(X[1000:1200], y[1000:1200]) > 0.4)
    True
    """

    def __init__(
        self,
        module: Network | None = None,
        *,
        beta: float = 1.0,
        **common: Unpack[DefenseParameters],
    ):
        super().__init__(module, **common)
        self.beta = beta

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        """Check the parameters; called by skorch."""
        super().on_train_begin(net, X, y, **kwargs)
        check_length(self.beta, "beta")

    def craft(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the adversarial batch; without weight on it, the clean one."""
        return x if self.beta == 0 else super().craft(x, y)

    def training_loss(self, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        """Return ``CE(f(x), y) + beta * CE(f(x'), y)``, shape (n,)."""
        loss = self.classification_loss(self.logits(x), y)
        if self.beta == 0:
            return loss
        return loss + self.beta * self.classification_loss(self.logits(x_adv), y)
