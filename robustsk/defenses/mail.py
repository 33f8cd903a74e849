"""MAIL: weights by the margin under attack."""

from __future__ import annotations

import numbers
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from .._validation import check_length
from ..attacks import PGD
from ..losses import margin_weights, probability_margin
from ..training._schedule import check_begin, scaled
from ._prescribed import Prescription
from .base import BaseDefense

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._parameters import DefenseParameters, Network


class MAILClassifier(Prescription, BaseDefense):
    """MAIL-AT: adversarial training that weighs samples by their margin.

    Minimises the mean of ``w * CE(f(x'), y)``, where `x'` ascends the
    cross-entropy from ``x + 0.001 * N(0, I)`` and the weights, of mean 1 in each
    batch and without a gradient, fall with the margin of the probability at
    `x'`::

        w ~ sigmoid(-gamma * (PM - b)),  PM = p_y(x') - max_{k != y} p_k(x')

    Parameters
    ----------
    %(first_parameter)s
    gamma : float, default=10.0
        Slope of the weights. 0 gives equal ones: adversarial training.
    b : float, default=-0.5
        Margin in [-1, 1] at which the weight, before it is normalised, is one
        half. Below 0 only samples that are clearly misclassified have a large
        weight.
    begin_epoch : int, default=None
        Epoch, counted from 0, from which samples are weighted; before it all
        count the same. None means three quarters of `max_epochs`, rounded up
        (epoch 75 of 100 in the source).
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
    GAIRATClassifier : Weights by the number of steps that a sample withstands.
    PGDATClassifier : Equal weights.

    Notes
    -----
    Robustness to PGD is overestimated: samples with a large margin hardly count
    any more, and an attack on another objective finds them. In the
    reproduction of Hou (2022, Table 3.4: CIFAR-10, ResNet-18) MAIL-AT has 55.1 %
    under PGD-20 and 44.3 % under AutoAttack, less than the 46.9 % of
    adversarial training with equal weights. Evaluate with AutoAttack.

    `sample_weight` counts in the normalisation of the weights too, so that a
    sample of weight 2 is two samples.

    References
    ----------
    Wang, Liu, Han, Liu, Gong, Niu, Zhou and Sugiyama (2021), "Probabilistic
    margins for instance reweighting in adversarial training". The authors' code
    multiplies the weights by 3 instead of normalising them.

    Examples
    --------
    >>> from robustsk import MAILClassifier
    >>> from robustsk.datasets import load_digits_images
    >>> X, y = load_digits_images(return_X_y=True)
    >>> clf = MAILClassifier(max_epochs=8, adversary__eps=0.1, random_state=0)
    >>> clf = clf.fit(X[:1000], y[:1000])
    >>> bool(clf.score_adversarial(X[1000:1200], y[1000:1200]) > 0.4)
    True
    """

    def __init__(
        self,
        module: Network | None = None,
        *,
        gamma: float = 10.0,
        b: float = -0.5,
        begin_epoch: int | None = None,
        **common: Unpack[DefenseParameters],
    ):
        super().__init__(module, **common)
        self.gamma = gamma
        self.b = b
        self.begin_epoch = begin_epoch

    def prescribed(self):
        """Return the start next to the sample."""
        return {"random_start": "gaussian"}

    def default_adversary(self):
        """Return a PGD with the start of the source."""
        return PGD(**self.prescribed())

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        """Check the parameters; called by skorch."""
        super().on_train_begin(net, X, y, **kwargs)
        check_length(self.gamma, "gamma")
        check_begin(self.begin_epoch)
        if not isinstance(self.b, numbers.Real) or not np.isfinite(self.b):
            raise ValueError(f"b must be a finite number, a margin in [-1, 1], got {self.b!r}.")

    @property
    def _begin_epoch(self):
        if self.begin_epoch is not None:
            return self.begin_epoch
        return scaled([(75, None)], 100, self.max_epochs)[0][0]

    def training_loss(self, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        """Return ``w * CE(f(x'), y)``, shape (n,)."""
        logits = self.logits(x_adv)
        loss = self.classification_loss(logits, y)
        if self.epoch < self._begin_epoch:
            return loss
        margins = probability_margin(logits.detach(), y)
        weight = margin_weights(margins, self.gamma, self.b, sample_weight=self.batch_weight)
        return weight.to(loss) * loss
