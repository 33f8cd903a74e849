"""Training without a defence, the yardstick of all defences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sklearn.base import clone
from torch import Tensor

from .base import BaseDefense

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._parameters import DefenseParameters, Network


class StandardClassifier(BaseDefense):
    """Natural training: minimise the loss on clean data.

    Minimises ``CE(f(x), y)``. It is what every defence is compared with, and
    is not robust.

    Parameters
    ----------
    %(first_parameter)s
    %(shared_parameters)s

    %(shared_attributes)s

    See Also
    --------
    PGDATClassifier : Trained on adversarial examples.

    Examples
    --------
    >>> from robustsk import StandardClassifier
    >>> from robustsk.datasets import load_digits_images
    >>> X, y = load_digits_images(return_X_y=True)
    >>> clf = StandardClassifier(max_epochs=5, random_state=0).fit(X[:1000], y[:1000])
    >>> bool(clf.score(X[1000:], y[1000:]) > 0.8)
    True
    """

    def __init__(self, module: Network | None = None, **common: Unpack[DefenseParameters]):
        super().__init__(module, **common)

    def craft(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the clean batch: there is no adversary in training."""
        return x

    def training_loss(self, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        """Return ``CE(f(x), y)``, shape (n,)."""
        return self.classification_loss(self.logits(x), y)


def standard_version(clf, **params):
    """Return natural training with the settings of a defence, for the first of its stages.

    Parameters
    ----------
    clf : BaseDefense
    **params
        Settings other than those of `clf`. Its adversary, weight perturbation and
        callbacks are not taken over.

    Returns
    -------
    StandardClassifier
    """
    known = StandardClassifier._signature_names()
    own = {
        name: value
        for name, value in clone(clf).get_params(deep=False).items()
        if (name in known or "__" in name)
        and name.split("__")[0] not in ("adversary", "weight_perturbation", "callbacks")
    }
    return StandardClassifier(**{**own, **params})
