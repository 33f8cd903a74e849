"""Adversarial training with the usual means against overfitting."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .._validation import check_length
from ..attacks import Objective
from .base import BaseDefense

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._parameters import DefenseParameters, Network


class RegularizedATClassifier(BaseDefense):
    """Adversarial training with penalties on the weights and mixed samples.

    Minimises ``CE(f(x'), y) + l1 * sum |w| + l2 / 2 * sum w**2`` over all weights `w` other than
    biases and the parameters of normalisations. With `mixup`, samples are mixed in pairs before
    they are attacked, ``t * x_i + (1 - t) * x_j`` with ``t ~ Beta(mixup, mixup)`` for each batch,
    and both the adversary and the training see ``t * CE(f(x'), y_i) + (1 - t) * CE(f(x'), y_j)``.

    Parameters
    ----------
    %(first_parameter)s
    l1 : float, default=0.0
        Weight of the sum of absolute values.
    l2 : float, default=0.0
        Weight of half of the sum of squares: with SGD it is the weight decay.
    mixup : float, default=0.0
        Parameter of the Beta distribution; 0 mixes nothing.
    %(shared_parameters)s

    %(shared_attributes)s

    See Also
    --------
    robustsk.training.Cutout : The fourth one, ``augmentation=Cutout(14)``.
    robustsk.training.RobustEarlyStopping : What works best, alone.

    Notes
    -----
    The article finds l1 = 5e-6, l2 = 5e-4, cutout of length 14 and mixup = 1.4 to be the best on
    CIFAR-10, and none of them better than early stopping. A mixed sample has the weight of its
    first part. The adversary must not have an objective of its own when samples are mixed.

    References
    ----------
    Rice, Wong and Kolter (2020), "Overfitting in adversarially robust deep learning", Sec. 4;
    Zhang, Cisse, Dauphin and Lopez-Paz (2018), "mixup: beyond empirical risk minimization".

    Examples
    --------
    >>> from robustsk import RegularizedATClassifier
    >>> from robustsk.datasets import load_digits_images
    >>> X, y = load_digits_images(return_X_y=True)
    >>> clf = RegularizedATClassifier(l2=5e-5, max_epochs=8, adversary__eps=0.1, random_state=0)
    >>> clf = clf.fit(X[:1000], y[:1000])
    >>> bool(clf.score_adversarial(X[1000:1200], y[1000:1200]) > 0.4)
    True
    """

    def __init__(
        self,
        module: Network | None = None,
        *,
        l1: float = 0.0,
        l2: float = 0.0,
        mixup: float = 0.0,
        **common: Unpack[DefenseParameters],
    ):
        super().__init__(module, **common)
        self.l1 = l1
        self.l2 = l2
        self.mixup = mixup

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        """Check the parameters; called by skorch."""
        super().on_train_begin(net, X, y, **kwargs)
        for name in ("l1", "l2", "mixup"):
            check_length(getattr(self, name), name)
        if self.mixup and getattr(self.adversary_, "objective", None) is not None:
            raise ValueError(
                "With mixup the adversary ascends the loss of mixed labels: leave its objective "
                f"out, it is {self.adversary_.objective!r}."
            )

    def craft(self, x: Tensor, y: Tensor) -> Tensor | tuple[Tensor, Tensor, float]:
        """Return the adversarial batch.

        Parameters
        ----------
        x : torch.Tensor of shape (n, ...)
        y : torch.Tensor of shape (n,)

        Returns
        -------
        torch.Tensor of the shape of `x`, or a tuple
            With mixup the batch, the labels that were mixed in, and the share
            of `y`.
        """
        if not self.mixup:
            return super().craft(x, y)
        share = float(self._rng.beta(self.mixup, self.mixup))
        order = torch.randperm(len(x), device=x.device)
        rows = self._rows(share * x + (1 - share) * x[order])
        n_classes = len(self.classes_inferred_)
        labels = [F.one_hot(k, n_classes).to(x) for k in (y, y[order])]
        victim = self._victim_in_training(self.module_)
        x_adv = self.adversary_.perturb(
            victim,
            rows,
            y if share >= 0.5 else y[order],
            Objective(_mixed_loss, needs_clean=True),
            bounds=victim.bounds,
            seed=int(self._rng.randint(np.iinfo(np.int32).max)),
            # what comes with every sample to the objective
            clean_logits=share * labels[0] + (1 - share) * labels[1],
        )
        return x_adv.reshape(x.shape), y[order], share

    def training_loss(
        self, x: Tensor, x_adv: Tensor | tuple[Tensor, Tensor, float], y: Tensor
    ) -> Tensor:
        """Return the loss with penalties, shape (n,)."""
        if isinstance(x_adv, tuple):
            x_adv, other, share = x_adv
            logits = self.logits(x_adv)
            loss = share * self.classification_loss(logits, y)
            loss = loss + (1 - share) * self.classification_loss(logits, other)
        else:
            loss = self.classification_loss(self.logits(x_adv), y)
        weights = [p for p in self.module_.parameters() if p.ndim > 1]
        if self.l1:
            loss = loss + self.l1 * sum(w.abs().sum() for w in weights)
        if self.l2:
            loss = loss + self.l2 / 2 * sum(w.square().sum() for w in weights)
        return loss


def _mixed_loss(logits, y, target, labels):
    if target is not None:
        return -F.cross_entropy(logits, target, reduction="none")
    return -(labels * F.log_softmax(logits, dim=1)).sum(1)
