"""Adversarial training of an ensemble, as one model or member by member."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from .._validation import check_choice, check_length
from .base import BaseEnsemble

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..defenses._parameters import Network
    from ._parameters import EnsembleParameters


class EnsembleAT(BaseEnsemble):
    """Adversarial training of an ensemble.

    Every member is trained on the clean samples and on adversarial examples `x'`,
    which are crafted against the ensemble, the mean of the members' probabilities
    `p_n`. Minimises::

        clean_weight * L(x) + L(x'),    L(x) = sum_n CE(p_n(x), y)

    With an adversary that weighs the members, :class:`~robustsk.attacks.TAMOO`, it is
    task-oriented multi-objective adversarial training.

    Parameters
    ----------
    %(first_parameter)s
    attack : {"ensemble", "members"}, default="ensemble"
        What the adversarial examples are crafted against: the ensemble, the same
        examples for all; or each member alone, which is trained on its own, so
        that the members are independent of one another.
    loss : {"member_sum", "mean"}, default="member_sum"
        The sum of the members' losses, or the loss of their mean prediction.
    clean_weight : float, default=1.0
        Weight of the loss on clean samples; 0 trains on adversarial ones only.
    %(shared_parameters)s

    %(shared_attributes)s

    See Also
    --------
    EnsembleCCE : Members that learn from each other's adversarial examples as well.
    EnsembleADP : Members whose predictions are kept apart.
    StaticEnsembleATClassifier : One network, trained on the examples of others.

    Notes
    -----
    The loss of the mean takes the ensemble for the one model that it is. Its
    gradient with respect to a member, however, vanishes where that member is surely
    wrong and another is right: members share out the samples among them, and where
    two are sure of different classes the mean is undecided, at a loss of no more
    than log 2. The sum trains every member to be right.

    References
    ----------
    Madry, Makelov, Schmidt, Tsipras and Vladu (2018), "Towards deep learning
    models resistant to adversarial attacks", for an ensemble in place of a
    network. Bui, Le, Zhao, Tran, Montague and Phung (2023), "Generating
    adversarial examples with task oriented multi-objective optimization", TMLR,
    Sec. 4.2, with the loss of the mean; Bui, Le, Zhao, Montague, deVel, Abraham and Phung
    (2021), "Improving ensemble robustness by collaboratively promoting and
    demoting adversarial robustness", AAAI, where it is the baseline ADV-EN: the loss
    of the mean in the article, the sum in the authors' code.

    Examples
    --------
    >>> from robustsk import EnsembleAT
    >>> from robustsk.datasets import load_digits_images
    >>> X, y = load_digits_images(return_X_y=True, as_flat=True)
    >>> clf = EnsembleAT(max_epochs=8, adversary__eps=0.1, random_state=0)
    >>> clf = clf.fit(X[:1000], y[:1000])
    >>> bool(clf.score_adversarial(X[1000:1200], y[1000:1200]) > 0.4)
    True
    >>> member = clf.estimators_[0]
    >>> bool(member.score(X[1000:], y[1000:]) > 0.7)
    True
    """

    def __init__(
        self,
        module: Network | Sequence[Network] | None = None,
        *,
        attack: str = "ensemble",
        loss: str = "member_sum",
        clean_weight: float = 1.0,
        **common: Unpack[EnsembleParameters],
    ):
        super().__init__(module, **common)
        self.attack = attack
        self.loss = loss
        self.clean_weight = clean_weight

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        """Check the parameters; called by skorch."""
        super().on_train_begin(net, X, y, **kwargs)
        check_choice(self.attack, "attack", ("ensemble", "members"))
        check_choice(self.loss, "loss", ("member_sum", "mean"))
        check_length(self.clean_weight, "clean_weight")
        if self.attack == "members" and self.loss == "mean":
            raise ValueError(
                "attack='members' trains every member on examples of its own, for which there is "
                "no mean prediction: use loss='member_sum', or attack='ensemble'."
            )

    def craft(self, x: Tensor, y: Tensor) -> Tensor | list[Tensor]:
        """Return the adversarial batch, or one per member, each against that member alone."""
        if self.attack == "ensemble":
            return super().craft(x, y)
        return [self.perturb(member, x, y) for member in self.module_.members]

    def training_loss(self, x: Tensor, x_adv: Tensor | list[Tensor], y: Tensor) -> Tensor:
        """Return ``clean_weight * L(x) + L(x')``, shape (n,)."""
        combine = self.ensemble_loss if self.loss == "mean" else self.member_losses
        clean = 0.0
        if self.clean_weight:
            clean = self.clean_weight * combine(self.member_logits(x), y)
        return clean + combine(self.member_logits(x_adv), y)
