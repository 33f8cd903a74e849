"""Adversarial logit pairing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from .._validation import check_choice, check_length
from ..losses import logit_pairing
from .base import BaseDefense

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._parameters import DefenseParameters, Network


class ALPClassifier(BaseDefense):
    """Adversarial logit pairing: logits are to stay what they are under attack.

    Minimises ``J + lam * D(z(x), z(x'))``, where `J` is the cross-entropy of
    clean and adversarial samples, half each, `D` a distance of logits and `x'`
    ascends the cross-entropy.

    Parameters
    ----------
    %(first_parameter)s
    lam : float, default=0.5
        Weight of the distance. At 0 the cross-entropy is what is left.
    ce_on : {"mixed", "clean", "adv"}, default="mixed"
        What the cross-entropy is taken of: the mean over clean and adversarial
        samples as in the original, clean samples as both theses write it, or
        adversarial ones.
    pairing : {"l2", "l1", "huber"}, default="l2"
        Mean over the classes of the squared or absolute difference of logits,
        or of the Huber function of it.
    %(shared_parameters)s

    %(shared_attributes)s

    See Also
    --------
    TRADESClassifier : Compares probabilities instead of logits.

    Notes
    -----
    With a :class:`robustsk.models.HypersphereHead` cosines are paired, that is
    logits without the scale `s`; the authors of the head use ``s=20, m=0.3``.

    With ``ce_on="clean"`` the labels of adversarial samples play no part, and
    robustness may vanish under an attack with many steps. Engstrom et al.
    (2018) found this in large models trained with logit pairing against
    targeted attacks.

    References
    ----------
    Kannan, Kurakin and Goodfellow (2018), "Adversarial logit pairing", Sec. 4;
    Hou (2022), "Adversarial training for improving the robustness of deep
    neural networks", MSc thesis, University of Alberta, Eq. 2.13; Engstrom,
    Ilyas and Athalye (2018), "Evaluating and understanding the robustness of
    adversarial logit pairing".

    Examples
    --------
    >>> from robustsk import ALPClassifier
    >>> from robustsk.datasets import load_digits_images
    >>> X, y = load_digits_images(return_X_y=True)
    >>> clf = ALPClassifier(max_epochs=8, adversary__eps=0.1, random_state=0)
    >>> clf = clf.fit(X[:1000], y[:1000])
    >>> bool(clf.score_adversarial(X[1000:1200], y[1000:1200]) > 0.4)
    True
    """

    def __init__(
        self,
        module: Network | None = None,
        *,
        lam: float = 0.5,
        ce_on: str = "mixed",
        pairing: str = "l2",
        **common: Unpack[DefenseParameters],
    ):
        super().__init__(module, **common)
        self.lam = lam
        self.ce_on = ce_on
        self.pairing = pairing

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        """Check the parameters; called by skorch."""
        super().on_train_begin(net, X, y, **kwargs)
        check_length(self.lam, "lam")
        check_choice(self.ce_on, "ce_on", ("mixed", "clean", "adv"))
        check_choice(self.pairing, "pairing", ("l2", "l1", "huber"))

    def craft(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the adversarial batch; where it plays no part, the clean one."""
        return x if self.lam == 0 and self.ce_on == "clean" else super().craft(x, y)

    def training_loss(self, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        """Return ``J + lam * D(z(x), z(x'))``, shape (n,)."""
        if self.lam == 0 and self.ce_on != "mixed":
            seen = x if self.ce_on == "clean" else x_adv
            return self.classification_loss(self.logits(seen), y)
        logits, logits_adv = self.logits(x), self.logits(x_adv)
        loss = 0.0
        if self.ce_on != "adv":
            loss = loss + self.classification_loss(logits, y)
        if self.ce_on != "clean":
            loss = loss + self.classification_loss(logits_adv, y)
        if self.ce_on == "mixed":
            loss = loss / 2
        scale = getattr(self.head_, "s", 1.0)
        return loss + self.lam * logit_pairing(logits / scale, logits_adv / scale, self.pairing)
