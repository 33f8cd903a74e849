"""Adversarial training for free: one backward pass moves both weights and samples."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .._validation import check_count
from ..attacks.threat import Ball
from ..training._data import Crafted
from .base import BaseDefense

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._parameters import DefenseParameters, Network


class FreeATClassifier(BaseDefense):
    """Free adversarial training: each batch is replayed, and each pass is used twice.

    Every batch is trained on `n_replays` times in a row. The backward pass that
    takes a step of the weights on ``CE(f(x + delta), y)`` also yields the
    gradient that takes a step of length eps of the perturbation `delta`, which
    is carried over to the next replay and to the next batch.

    Parameters
    ----------
    %(first_parameter)s
    n_replays : int, default=8
        How often each batch is trained on, `m` in the source. With 1 the
        perturbations are those that the batch before asked for.
    adversary : attack, default=None
        The threat model: norm, radius, valid range and mask are taken from it,
        nothing else. None means a PGD with ``eps=8/255``. Its parameters can be
        given as ``adversary__eps=0.3``.
    max_epochs : int, default=20
        Passes over the data, each of which takes `n_replays` optimisation steps
        per batch. The source counts replays as epochs: its 80 epochs with 8
        replays are 10 here.
    %(shared_parameters)s

    %(shared_attributes)s

    See Also
    --------
    FastATClassifier : One step for each batch; more robust for the same time.

    Notes
    -----
    The perturbation is zero at the beginning of every epoch. A smaller batch
    takes as much of it as it has samples, and what a larger one lacks is zero.
    The gradient is that of the training step, so that the attack sees the
    network in training mode (batch statistics, dropout). Learning rate
    schedules that act on every batch see one step per batch, not per replay.

    References
    ----------
    Shafahi, Najibi, Ghiasi, Xu, Dickerson, Studer, Davis, Taylor and Goldstein
    (2019), "Adversarial training for free!", Algorithm 1. It has 8 replays on
    CIFAR-10 and 4 on ImageNet.

    Examples
    --------
    >>> from robustsk import FreeATClassifier
    >>> from robustsk.datasets import load_digits_images
    >>> X, y = load_digits_images(return_X_y=True)
    >>> clf = FreeATClassifier(n_replays=4, max_epochs=3, adversary__eps=0.1, random_state=0)
    >>> clf = clf.fit(X[:1000], y[:1000])
    >>> bool(clf.score_adversarial(X[1000:1200], y[1000:1200]) > 0.4)
    True
    """

    _of_a_session = (*BaseDefense._of_a_session, "_delta", "_leaf")
    _delta = None
    _leaf = None

    def __init__(
        self,
        module: Network | None = None,
        *,
        n_replays: int = 8,
        **common: Unpack[DefenseParameters],
    ):
        super().__init__(module, **common)
        self.n_replays = n_replays

    @property
    def _steps_per_batch(self):
        return check_count(self.n_replays, "n_replays")

    def on_epoch_begin(self, net, dataset_train=None, dataset_valid=None, **kwargs):
        """Begin with no perturbation; called by skorch."""
        super().on_epoch_begin(net, dataset_train, dataset_valid, **kwargs)
        self._delta = None

    def craft(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the batch with the perturbation carried over from the one before."""
        rows = self._rows(x)
        ball = self._ball(rows)
        return ball.project(rows + self._carried(rows)).reshape(x.shape)

    def training_loss(self, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        """Return ``CE(f(x + delta), y)``, shape (n,)."""
        # an optimizer may ask several times, and the last gradient is the one that counts
        self._leaf = x_adv.detach().requires_grad_(True)
        return self.classification_loss(self.logits(self._leaf), y)

    def train_step(self, batch, **fit_params):
        """Train on the batch `n_replays` times; return the last step."""
        x, y, weight = self._receive(batch)
        rows = self._rows(x)
        ball, delta = self._ball(rows), self._carried(rows)
        # moves as the perturbation does, whatever the samples are
        origin = Ball(torch.zeros_like(rows), ball.norm, ball.eps)
        x_adv = self.craft(x, y)
        for _ in range(self._steps_per_batch):
            step = self._take_step(Crafted(x, x_adv, y, weight), **fit_params)
            gradient = torch.nan_to_num(self._leaf.grad, nan=0.0, posinf=0.0, neginf=0.0)
            delta = origin.ascend(delta, gradient.reshape(rows.shape), ball.radius)
            x_adv = ball.project(rows + delta).reshape(x.shape)
        if self._delta is None or len(self._delta) <= len(delta):
            self._delta = delta
        else:
            self._delta[: len(delta)] = delta
        return step

    def _ball(self, rows):
        return self.adversary_.reach(rows, getattr(self, "clip_bounds_", None))

    def _carried(self, rows):
        """Return the perturbation that the batch begins with."""
        delta = torch.zeros_like(rows)
        if self._delta is not None and self._delta.shape[1:] == rows.shape[1:]:
            n = min(len(rows), len(self._delta))
            delta[:n] = self._delta[:n]
        return delta
