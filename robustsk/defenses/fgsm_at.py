"""Adversarial training with the fast gradient sign method, mixed with clean samples."""

from __future__ import annotations

import numbers
from typing import TYPE_CHECKING

from torch import Tensor

from .._validation import check_choice
from ..attacks import BIM, FGSM
from .base import BaseDefense

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._parameters import DefenseParameters, Network


class FGSMATClassifier(BaseDefense):
    """Adversarial training as Goodfellow et al. had it: clean samples and FGSM.

    Minimises ``a * CE(f(x), y) + (1 - a) * CE(f(x'), y)``, where `x'` is made in
    one step, or in several with ``iterated=True``.

    Parameters
    ----------
    %(first_parameter)s
    a : float, default=0.5
        Weight of clean samples, in [0, 1]. 1 is natural training, 0 trains on
        adversarial samples only.
    iterated : bool, default=False
        Whether `x'` is made by :class:`robustsk.attacks.BIM`, in as many steps of such a
        length as the `adversary` has, instead of :class:`robustsk.attacks.FGSM`.
    label : {"true", "pred"}, default=None
        What is moved away from: the true label, or what the network predicts at
        the time, from which it learns nothing about the label. None means
        "true", and "pred" with ``iterated=True``. For the class that is least
        likely see ``adversary__target="least_likely"``.
    adversary : attack, default=None
        The threat model: norm, radius, valid range, mask, target and objective
        are taken from it, and with ``iterated=True`` the number and length of
        its steps. None means a PGD of 10 steps with ``eps=8/255``. Its
        parameters can be given as ``adversary__eps=0.3``.
    %(shared_parameters)s

    %(shared_attributes)s

    See Also
    --------
    PGDATClassifier : Many steps from a random start.
    MixedATClassifier : A sum in place of the mean, with PGD.

    Notes
    -----
    A network trained against a single step easily learns to mask its gradient
    there: it resists FGSM and falls to PGD, sometimes all at once in the
    middle of training (catastrophic overfitting). With true labels it may also
    read the label from the perturbation, and do better under FGSM than on
    clean samples (label leaking). Always evaluate with an attack of many steps.

    References
    ----------
    Goodfellow, Shlens and Szegedy (2015), "Explaining and harnessing
    adversarial examples", Sec. 6; Kurakin, Goodfellow and Bengio (2017),
    "Adversarial machine learning at scale", for the iterated form and label
    leaking; Hou (2022), "Adversarial training for improving the robustness of
    deep neural networks", MSc thesis, University of Alberta, Eq. 2.11.

    Examples
    --------
    >>> from robustsk import FGSMATClassifier
    >>> from robustsk.datasets import load_digits_images
    >>> X, y = load_digits_images(return_X_y=True)
    >>> clf = FGSMATClassifier(max_epochs=8, adversary__eps=0.1, random_state=0)
    >>> clf = clf.fit(X[:1000], y[:1000])
    >>> bool(clf.score_adversarial(X[1000:1200], y[1000:1200]) > 0.4)
    True
    """

    def __init__(
        self,
        module: Network | None = None,
        *,
        a: float = 0.5,
        iterated: bool = False,
        label: str | None = None,
        **common: Unpack[DefenseParameters],
    ):
        super().__init__(module, **common)
        self.a = a
        self.iterated = iterated
        self.label = label

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        """Check the parameters; called by skorch."""
        super().on_train_begin(net, X, y, **kwargs)
        check_choice(self.label, "label", (None, "true", "pred"))
        if not isinstance(self.a, numbers.Real) or not 0 <= self.a <= 1:
            raise ValueError(
                f"a must be a number in [0, 1], the weight of clean samples, got {self.a!r}."
            )

    def craft(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the adversarial batch; without weight on it, the clean one."""
        if self.a == 1:
            return x
        if self.iterated:
            attack = self.like_adversary(BIM)
        else:
            attack = self.like_adversary(FGSM, random_start="none", step_size=None)
        by_prediction = self.iterated if self.label is None else self.label == "pred"
        return self.perturb(self.module_, x, None if by_prediction else y, adversary=attack)

    def training_loss(self, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        """Return ``a * CE(f(x), y) + (1 - a) * CE(f(x'), y)``, shape (n,)."""
        if self.a in (0, 1):
            return self.classification_loss(self.logits(x if self.a == 1 else x_adv), y)
        loss = self.a * self.classification_loss(self.logits(x), y)
        return loss + (1 - self.a) * self.classification_loss(self.logits(x_adv), y)
