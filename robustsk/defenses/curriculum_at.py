"""Adversarial training whose attack takes more and more steps."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .._validation import check_count, check_length
from ..attacks.noise import SampleNoise, Stream
from ..training._weights import copy_of_state, put_state
from .base import BaseDefense

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._parameters import DefenseParameters, Network


class CurriculumATClassifier(BaseDefense):
    """Curriculum adversarial training (CAT): one more attack step when progress stalls.

    Minimises ``CE(f(x'), y)``, where `x'` is made by a PGD with as many steps as
    the present strength `k`, beginning with none. Lest weaker attacks be
    forgotten, every sample of a batch draws its number of steps from 0 to `k`
    (batch mixing). When the accuracy under it has not risen for `patience` epochs,
    the strength grows by one and training goes on from the weights that were best.

    Parameters
    ----------
    %(first_parameter)s
    max_strength : int, default=7
        Largest number of steps; the source has 7 for CIFAR-10 and 40 for MNIST.
    patience : int, default=None
        Epochs without a new best accuracy after which the strength grows. To
        reach `max_strength` takes at least ``max_strength * (patience + 1)``
        epochs. None means 10, as in the source, or in a training that is too
        short for it as many as leave time for each strength, at least 1.
    min_accuracy : float, default=0.0
        Accuracy on the mixed batches of an epoch below which the strength does
        not grow, in [0, 1]; the authors' code has 0.9.
    adversary : attack, default=None
        What makes the adversarial examples, with `n_steps` set to what a sample
        has drawn. None means a PGD with ``eps=8/255`` and steps of 2.5 eps
        divided by their number. Its parameters can be given as
        ``adversary__eps=0.3``.
    %(shared_parameters)s

    %(shared_attributes)s
    strength_ : int
        The present number of steps.

    See Also
    --------
    DynamicATClassifier : Examples converge better and better.

    Notes
    -----
    The accuracy is measured on the training samples that have drawn the full
    strength, before the weights have moved on them, and recorded in the history
    as "strength_acc", besides "strength". The authors' code measures it on
    validation data, draws the length of the steps at random and rounds pixels
    to 8 bits when it validates; this does not. A model is only as robust as the
    strength it has reached, `strength_`. If that is 0, no sample has been
    attacked; `fit` warns of it.

    References
    ----------
    Cai, Liu and Song (2018), "Curriculum adversarial training", Algorithms 1
    and 2.

    Examples
    --------
    >>> from robustsk import CurriculumATClassifier
    >>> from robustsk.datasets import load_digits_images
    >>> X, y = load_digits_images(return_X_y=True)
    >>> clf = CurriculumATClassifier(
    ...     max_strength=3, patience=1, max_epochs=10, adversary__eps=0.1, random_state=0
    ... ).fit(X[:1000], y[:1000])
    >>> clf.history[:, "strength"][0], clf.strength_ > 0
    (0, True)
    """

    _of_a_session = (*BaseDefense._of_a_session, "_drawn", "_right", "_counts")
    _drawn = None
    strength_ = _waited = 0
    _best = -np.inf
    _best_weights = None

    def __init__(
        self,
        module: Network | None = None,
        *,
        max_strength: int = 7,
        patience: int | None = None,
        min_accuracy: float = 0.0,
        **common: Unpack[DefenseParameters],
    ):
        super().__init__(module, **common)
        self.max_strength = max_strength
        self.patience = patience
        self.min_accuracy = min_accuracy

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        """Check the parameters, and begin with no steps; called by skorch."""
        super().on_train_begin(net, X, y, **kwargs)
        if not len(self.history_):
            vars(self).update(strength_=0, _best=-np.inf, _waited=0, _best_weights=None)
        elif "strength_" not in vars(self):  # the history has been loaded from a file
            self.strength_ = self.history_[-1].get("strength", 0)
        check_count(self.max_strength, "max_strength")
        if self.patience is not None:
            check_count(self.patience, "patience")
        check_length(self.min_accuracy, "min_accuracy")
        if "n_steps" not in self.adversary_.get_params():
            raise ValueError(
                f"The adversary is a {type(self.adversary_).__name__}, which has no n_steps that "
                "could grow: use PGD(...)."
            )

    @property
    def _patience(self):
        if self.patience is not None:
            return self.patience
        return min(10, max(1, self.max_epochs // (self.max_strength + 1) - 1))

    def on_train_end(self, net, X=None, y=None, **kwargs):
        """Say so if nothing has been attacked; called by skorch."""
        super().on_train_end(net, X, y, **kwargs)
        n_epochs = len(self.history_)
        if self.strength_ == 0 and n_epochs:
            warnings.warn(
                f"The strength of the attack is still 0 of {self.max_strength} after epoch "
                f"{n_epochs}: nothing has been attacked, and this was natural training. The "
                f"strength grows after patience={self._patience} epochs without progress: give "
                "more max_epochs or less patience.",
                UserWarning,
                stacklevel=2,
            )

    def on_epoch_begin(self, net, dataset_train=None, dataset_valid=None, **kwargs):
        """Begin to count; called by skorch."""
        super().on_epoch_begin(net, dataset_train, dataset_valid, **kwargs)
        self._counts = 0.0

    def craft(self, x: Tensor, y: Tensor) -> Tensor:
        """Return each sample after as many steps as it has drawn."""
        rows = self._rows(x)
        noise = SampleNoise(rows, int(self._rng.randint(np.iinfo(np.int32).max)))
        drawn = (noise.scalar(Stream.START) * (self.strength_ + 1)).long().clamp_max(self.strength_)
        self._drawn = drawn
        x_adv = x.clone()
        for n_steps in range(1, self.strength_ + 1):
            part = (drawn == n_steps).nonzero()[:, 0]
            if len(part):
                attack = self.adversary_._with(n_steps=n_steps)
                x_adv[part] = self.perturb(self.module_, x[part], y[part], adversary=attack)
        return x_adv

    def training_loss(self, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        """Return ``CE(f(x'), y)``, shape (n,)."""
        logits = self.logits(x_adv)
        self._right = (logits.argmax(1) == y).double()
        return self.classification_loss(logits, y)

    def train_step(self, batch, **fit_params):
        """Take a step, and count what was right."""
        step = super().train_step(batch, **fit_params)
        right, weight = self._right, self.batch_weight
        weight = torch.ones_like(right) if weight is None else weight.to(right)
        full = weight * (self._drawn == self.strength_)
        # summed where the network is: nothing waits for it before the epoch ends
        sums = [(full * right).sum(), full.sum(), (weight * right).sum(), weight.sum()]
        self._counts = self._counts + torch.stack(sums)
        return step

    def on_epoch_end(self, net, dataset_train=None, dataset_valid=None, **kwargs):
        """Take note of the accuracy, and grow; called by skorch."""
        super().on_epoch_end(net, dataset_train, dataset_valid, **kwargs)
        right, total, right_of_all, all_of_them = self._counts.tolist()
        accuracy = right / total if total else 0.0
        self.history.record("strength", self.strength_)
        self.history.record("strength_acc", accuracy)
        state = vars(self)
        if accuracy > self._best:
            state.update(_best=accuracy, _waited=0, _best_weights=copy_of_state(self.module_))
            return
        state["_waited"] += 1
        enough = right_of_all >= self.min_accuracy * all_of_them
        if self._waited >= self._patience and enough and self.strength_ < self.max_strength:
            if self._best_weights is not None:  # a history from a file comes without them
                put_state(self.module_, self._best_weights)
            state.update(strength_=self.strength_ + 1, _best=-np.inf, _waited=0)
