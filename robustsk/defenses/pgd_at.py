"""Adversarial training as Madry et al. define it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from .base import BaseDefense

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._parameters import DefenseParameters, Network


class PGDATClassifier(BaseDefense):
    """Adversarial training with PGD: minimise the loss on adversarial examples only.

    Solves ``min_theta E max_{x' in B(x)} CE(f(x'), y)``, the inner problem by
    the adversary.

    Parameters
    ----------
    %(first_parameter)s
    %(shared_parameters)s

    %(shared_attributes)s

    References
    ----------
    Madry, Makelov, Schmidt, Tsipras and Vladu (2018), "Towards deep learning
    models resistant to adversarial attacks", Eq. 2.1.

    Examples
    --------
    >>> from robustsk import PGDATClassifier
    >>> from robustsk.datasets import load_digits_images
    >>> X, y = load_digits_images(return_X_y=True)
    >>> clf = PGDATClassifier(max_epochs=8, adversary__eps=0.1, random_state=0)
    >>> clf = clf.fit(X[:1000], y[:1000])
    >>> bool(clf.score_adversarial(X[1000:1200], y[1000:1200]) > 0.4)
    True
    """

    def __init__(self, module: Network | None = None, **common: Unpack[DefenseParameters]):
        super().__init__(module, **common)

    def training_loss(self, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        """Return ``CE(f(x'), y)``, shape (n,)."""
        return self.classification_loss(self.logits(x_adv), y)
