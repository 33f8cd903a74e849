"""Guards against catastrophic overfitting."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from skorch.callbacks import Callback
from torch.utils.data import Subset

from .._validation import check_count
from ..attacks import PGD
from ..attacks.base import check_attack
from ._weights import copy_of_state, put_state


class CatastrophicOverfittingStop(Callback):
    """Stop when robustness collapses, and go back to the weights before.

    Training with one attack step per batch can fail from one epoch to the
    next: the accuracy under a real attack falls to zero while that under the
    attack of the training goes on rising. This measures the accuracy of some
    training samples, always the same, under an attack of several steps. A fall
    of more than `threshold` below the best value so far ends the training and
    restores the weights that had it.

    Parameters
    ----------
    attack : attack, default=None
        What the samples are attacked with. None means PGD with 10 steps in the
        norm, radius and valid range of the adversary of the estimator.
    threshold : float, default=0.2
        How far the accuracy may fall, in (0, 1].
    n_samples : int, default=256
        How many training samples are looked at, spread evenly over the data.
    every : int, default=None
        Look after so many batches as well. None means only after each epoch.
    name : str, default="watched_robust_acc"
        Name of the accuracy in the history.

    Attributes
    ----------
    fired_ : bool
        Whether it has stopped the last training. The history of the epoch has
        then an entry "catastrophic_overfitting".
    best_ : float
        The highest accuracy, in [0, 1].

    Notes
    -----
    The random start of the attack is the same each time and draws on no
    generator, so that training does not depend on being watched. It costs about
    as much as ``11 * n_samples`` samples in each look. Weights and buffers of the
    network are restored, the state of the optimizer is not.

    References
    ----------
    Wong, Rice and Kolter (2020), "Fast is better than free: revisiting
    adversarial training", Sec. 5.4, where the last batch is looked at after
    each epoch; Andriushchenko and Flammarion (2020), "Understanding and
    improving fast adversarial training", for a fixed set of samples.

    Examples
    --------
    >>> from robustsk import PGDATClassifier
    >>> from robustsk.datasets import load_digits_images
    >>> from robustsk.training import CatastrophicOverfittingStop
    >>> X, y = load_digits_images(return_X_y=True)
    >>> clf = PGDATClassifier(
    ...     adversary__eps=0.1,
    ...     adversary__n_steps=1,
    ...     callbacks=[CatastrophicOverfittingStop()],
    ...     max_epochs=2,
    ...     random_state=0,
    ... ).fit(X[:500], y[:500])
    >>> len(clf.history[:, "watched_robust_acc"])
    2
    """

    def __init__(
        self,
        attack=None,
        threshold=0.2,
        n_samples=256,
        every=None,
        name="watched_robust_acc",
    ):
        self.attack = attack
        self.threshold = threshold
        self.n_samples = n_samples
        self.every = every
        self.name = name

    def _get_param_names(self):
        # skorch would take all attributes for parameters
        return ["attack", "threshold", "n_samples", "every", "name"]

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        """Forget what was seen in an earlier training."""
        if self.attack is not None:
            check_attack(self.attack)
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold must be in (0, 1], got {self.threshold!r}.")
        check_count(self.n_samples, "n_samples")
        if self.every is not None:
            check_count(self.every, "every")
        self.best_, self.fired_ = -np.inf, False
        self._samples = self._weights = None
        self._n_batches = 0

    def on_epoch_begin(self, net, dataset_train=None, dataset_valid=None, **kwargs):
        """Choose the samples to look at."""
        if self._samples is None:
            n = len(dataset_train)
            rows = np.linspace(0, n - 1, min(n, self.n_samples)).astype(int)
            self._samples = [
                (*features, y) if isinstance(features, (tuple, list)) else (features, None, y)
                for features, y in net._batches(Subset(dataset_train, rows.tolist()))
            ]

    def on_batch_end(self, net, batch=None, training=False, **kwargs):
        """Look, if it is time."""
        if training and self.every is not None:
            self._n_batches += 1
            if self._n_batches % self.every == 0:
                self._look(net)

    def on_epoch_end(self, net, **kwargs):
        """Look, and stop if it has happened."""
        self._look(net)

    def on_train_end(self, net, X=None, y=None, **kwargs):
        """Let go of weights and samples."""
        self._samples = self._weights = None

    def __getstate__(self):
        return {**vars(self), "_samples": None, "_weights": None}

    def _look(self, net):
        accuracy = self._accuracy(net)
        net.history.record(self.name, accuracy)
        if accuracy >= self.best_:
            self.best_ = accuracy
            self._weights = copy_of_state(net.module_)
        elif accuracy < self.best_ - self.threshold:
            self.fired_ = True
            net.history.record("catastrophic_overfitting", True)
            put_state(net.module_, self._weights)
            warnings.warn(
                f"Training has stopped in epoch {len(net.history)} because the accuracy under "
                f"attack fell from {self.best_:.2f} to {accuracy:.2f} (catastrophic "
                "overfitting), and the weights from before are back: try a smaller lr or eps, "
                "fewer epochs, or an adversary with more steps.",
                UserWarning,
                stacklevel=2,
            )
            raise KeyboardInterrupt  # how callbacks of skorch end a training

    def _accuracy(self, net):
        """Return the weighted accuracy of the samples under attack."""
        attack = self.attack
        if attack is None:
            attack = net.like_adversary(
                PGD, n_steps=10, step_size=None, n_restarts=1, random_start="uniform", target=None
            )
        victim = net._victim_in_training(net.module_)
        right = total = 0.0
        for x, weight, y in self._samples:
            rows = net._rows(net._to_input(x))
            y = y.to(rows.device)
            weight = torch.ones(len(y)) if weight is None else weight
            z = attack.perturb(victim, rows, y, bounds=victim.bounds, seed=0, keep="first")
            with victim.frozen() as seen, torch.no_grad():
                correct = (seen.itself(z).argmax(1) == y).cpu()
            right += float((weight.cpu() * correct).sum())
            total += float(weight.sum())
        return right / total
