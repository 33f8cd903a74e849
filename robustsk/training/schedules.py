"""Schedules: the learning rate over the course of training."""

from __future__ import annotations

import itertools
import math
import numbers

import numpy as np
from skorch.callbacks import Callback

from .._validation import check_count


def piecewise_constant(pairs, epoch):
    """Return the value that holds in an epoch.

    Parameters
    ----------
    pairs : sequence of (float, value)
        First epoch, counted from 0, and the value from there on, in ascending order of epochs.
        The first pair must begin at 0.
    epoch : float
        At least 0.

    Returns
    -------
    value
        That of the last pair that begins at `epoch` or before.

    Raises
    ------
    ValueError
        If the pairs are not in order or do not begin at 0, or `epoch` is negative.

    Examples
    --------
    >>> from robustsk.training import piecewise_constant
    >>> [piecewise_constant([(0, 1.0), (2, 0.1)], epoch) for epoch in (0, 1, 2, 3)]
    [1.0, 1.0, 0.1, 0.1]
    """
    starts = [start for start, _ in pairs]
    if not starts or starts[0] != 0 or any(b <= a for a, b in itertools.pairwise(starts)):
        raise ValueError(
            "pairs must be (first epoch, value) in ascending order, the first of them beginning "
            f"at epoch 0; got {list(pairs)!r}."
        )
    if not epoch >= 0:
        raise ValueError(f"epoch must not be negative, got {epoch!r}.")
    return [value for start, value in pairs if start <= epoch][-1]


class LearningRateSchedule(Callback):
    """Change the learning rate from batch to batch.

    The learning rate is that of the optimizer times a factor that depends on how much of the
    training is done, the `share` in [0, 1]. All parameter groups follow, each from its own
    learning rate.

    Parameters
    ----------
    kind : str or callable, default="piecewise"
        How the factor develops:

        - "piecewise": from 1, times `factor` at each of the `milestones`;
        - "linear": 1 at first, linear between the `milestones` to `factor`, then linear to
          ``factor**2`` at the end;
        - "multiple_decay": `n_drops` equal steps from 1 to ``1 / n_drops``;
        - "cosine": half a cosine from 1 to 0;
        - "cyclic": a triangle, from 0 to 1 at `peak` and back to 0;
        - "one_drop": from 1, once times `factor`, at the only one of the `milestones`;
        - "constant": 1 throughout;
        - a callable ``f(share)`` that returns the factor.
    milestones : sequence of float, default=None
        Shares of the training. None means (0.5, 0.75), for "linear" (1/3, 2/3) and for
        "one_drop" (0.5,).
    factor : float, default=0.1
        What a drop multiplies the learning rate by.
    peak : float, default=0.4
        Share of the training after which a triangle is at its top, in [0, 1].
    n_drops : int, default=10
        Number of steps of "multiple_decay".
    warmup : float, default=0.0
        Epochs at the beginning during which the factor is besides multiplied by a line from 0
        to 1.
    n_epochs : float, default=None
        Length of the schedule. None means the `max_epochs` of the estimator, and that each call
        of `partial_fit` runs through a whole schedule. With a number, all epochs since the last
        call of `fit` that began anew count, so that one schedule can be spread over many calls;
        what follows is trained with the last factor.

    Notes
    -----
    A batch has the factor in its middle: no step is taken with the zero at the end of a triangle,
    and the mean factor is the area below the curve, which is 1/2 for "cyclic" and "cosine". The
    learning rate of each batch is recorded in the history as "lr", and for each epoch that of its
    last batch. After training the optimizer has its own learning rate again.

    References
    ----------
    Rice, Wong and Kolter (2020), "Overfitting in adversarially robust deep learning", Sec. 3.1
    and Fig. 2, whose schedules these are. The triangle is that of Smith (2017), "Cyclical
    learning rates for training neural networks", used by Wong, Rice and Kolter (2020), "Fast is
    better than free".

    Examples
    --------
    >>> import torch
    >>> from robustsk import PGDATClassifier
    >>> from robustsk.datasets import load_digits_images
    >>> from robustsk.training import LearningRateSchedule
    >>> X, y = load_digits_images(return_X_y=True)
    >>> clf = PGDATClassifier(
    ...     optimizer=torch.optim.SGD, optimizer__momentum=0.9, lr=0.1, max_epochs=4,
    ...     callbacks=[LearningRateSchedule("piecewise")], random_state=0,
    ... ).fit(X[:500], y[:500])
    >>> [round(lr, 4) for lr in clf.history[:, "lr"]]
    [0.1, 0.1, 0.01, 0.001]
    """

    def __init__(
        self,
        kind="piecewise",
        *,
        milestones=None,
        factor=0.1,
        peak=0.4,
        n_drops=10,
        warmup=0.0,
        n_epochs=None,
    ):
        self.kind = kind
        self.milestones = milestones
        self.factor = factor
        self.peak = peak
        self.n_drops = n_drops
        self.warmup = warmup
        self.n_epochs = n_epochs

    def factor_at(self, share):
        """Return the factor of the learning rate, without warm-up.

        Parameters
        ----------
        share : float
            Share of the training that is done, in [0, 1].

        Returns
        -------
        float

        Raises
        ------
        ValueError
            If a parameter is not valid.

        Examples
        --------
        >>> from robustsk.training import LearningRateSchedule
        >>> LearningRateSchedule("cyclic").factor_at(0.2)
        0.5
        """
        if callable(self.kind):
            return float(self.kind(share))
        if self.kind == "constant":
            return 1.0
        if self.kind == "cosine":
            return 0.5 * (1 + math.cos(math.pi * share))
        if self.kind == "cyclic":
            if not 0 <= self.peak <= 1:
                raise ValueError(f"peak must be a share in [0, 1], got {self.peak!r}.")
            if share < self.peak:
                return share / self.peak
            return (1 - share) / (1 - self.peak) if self.peak < 1 else 1.0
        if self.kind == "multiple_decay":
            n_drops = check_count(self.n_drops, "n_drops")
            # a tiny addition, because e.g. 0.3 * 10 is below 3
            return 1 - min(math.floor(share * n_drops + 1e-9), n_drops - 1) / n_drops
        known = {"piecewise": (0.5, 0.75), "linear": (1 / 3, 2 / 3), "one_drop": (0.5,)}
        if self.kind not in known:
            raise ValueError(
                f"kind must be a callable or one of {sorted([*known, *_OTHERS])}, "
                f"got {self.kind!r}."
            )
        at = self._milestones(known[self.kind])
        if self.kind == "linear":
            return float(np.interp(share, [*at, 1], [1, self.factor, self.factor**2]))
        return self.factor ** sum(share >= m for m in at)

    def _milestones(self, default):
        at = [*(default if self.milestones is None else self.milestones)]
        if any(not 0 <= m <= 1 for m in at) or sorted(at) != at:
            raise ValueError(
                "milestones must be ascending shares of the training in [0, 1], e.g. "
                f"(0.5, 0.75); got {self.milestones!r}."
            )
        wanted = {"linear": 2, "one_drop": 1}.get(self.kind, len(at))
        if len(at) != wanted:
            raise ValueError(
                f"milestones must have {wanted} entries with kind={self.kind!r}, "
                f"got {self.milestones!r}."
            )
        return at

    def initialize(self):
        """Forget earlier trainings; called by skorch."""
        self.bases_ = self.last_ = None
        return self

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        """Check the parameters and remember the learning rates of the optimizer."""
        if not isinstance(self.warmup, numbers.Real) or self.warmup < 0:
            raise ValueError(f"warmup must be a number of epochs of at least 0: {self.warmup!r}.")
        if self.n_epochs is not None and not self.n_epochs > 0:
            raise ValueError(f"n_epochs must be None or above 0, got {self.n_epochs!r}.")
        if not callable(self.kind):
            self.factor_at(0.0)
        present = _rates(net)
        if self.bases_ is None or present != self.last_:
            self.bases_ = present  # or else a training broke off, and they are no bases
        self.first_epoch_ = len(net.history) if self.n_epochs is None else 0

    def on_epoch_begin(self, net, dataset_train=None, dataset_valid=None, **kwargs):
        """Learn how long an epoch is."""
        self.n_batches_ = len(net.get_iterator(dataset_train, training=True))
        self.batch_ = 0

    def on_batch_begin(self, net, batch=None, training=False, **kwargs):
        """Set the learning rate of this batch."""
        if not training:
            return
        done = len(net.history) - 1 - self.first_epoch_ + (self.batch_ + 0.5) / self.n_batches_
        length = net.max_epochs if self.n_epochs is None else self.n_epochs
        factor = self.factor_at(min(1.0, done / length))
        if done < self.warmup:
            factor *= done / self.warmup
        self.last_ = _set_rates(net, [base * factor for base in self.bases_])
        self.batch_ += 1
        net.history.record_batch("lr", self.last_[0])

    def on_epoch_end(self, net, dataset_train=None, dataset_valid=None, **kwargs):
        """Record the learning rate."""
        net.history.record("lr", self.last_[0])

    def on_train_end(self, net, X=None, y=None, **kwargs):
        """Give the optimizer its own learning rates back."""
        _set_rates(net, self.bases_)
        self.bases_ = None


def _rates(net):
    return [float(group["lr"]) for group in net.optimizer_.param_groups]


def _set_rates(net, rates):
    for rate, group in zip(rates, net.optimizer_.param_groups, strict=True):
        group["lr"] = rate
    return rates


_OTHERS = ("constant", "cosine", "cyclic", "multiple_decay")
