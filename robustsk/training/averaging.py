"""Averages of the weights over the course of training."""

from __future__ import annotations

import numbers

import torch
from skorch.callbacks import Callback
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn

from .._interrupts import uninterrupted
from .._validation import check_choice
from ._data import Crafted
from ._weights import put


class WeightAveraging(Callback):
    """Predict with an average of the weights that training went through.

    The optimizer works on its own, raw weights. Whenever no training batch is under way the
    network holds their average: for the validation data, for callbacks that score at the end of
    an epoch and are listed after this one, and after training, for prediction. `partial_fit` and
    a warm start go on from the raw weights.

    Parameters
    ----------
    kind : {"ema", "swa"}, default="ema"
        An exponential moving average, updated after every batch; or the mean of the weights at
        the end of each epoch (stochastic weight averaging).
    decay : float, default=0.995
        What the exponential average keeps of itself in an update, in [0, 1). In update `d` it
        is ``min(decay, (1 + d) / (10 + d))``, so that the first weights are soon forgotten.
    start : float, default=None
        Share of the epochs after which averaging begins, in [0, 1]. Before, the average is the
        raw weights. None means 0 for "ema" and 0.75 for "swa".
    batch_norm : {"copy", "recompute"}, default="copy"
        What the running statistics of batch normalisation are: those of the raw weights, or
        computed anew for the average by a pass over the training data, which are attacked as in
        training. That costs about half an epoch per epoch.

    Notes
    -----
    List it before callbacks that watch the average, such as
    :class:`~robustsk.training.RobustEarlyStopping`. The average takes the place of early stopping
    to a large part: it removes most of robust overfitting.

    References
    ----------
    Izmailov, Podoprikhin, Garipov, Vetrov and Wilson (2018), "Averaging weights leads to wider
    optima and better generalization" ("swa"); Gowal, Qin, Uesato, Mann and Kohli (2020),
    "Uncovering the limits of adversarial training", Sec. 4.4 ("ema", decay 0.995).

    Examples
    --------
    >>> from robustsk import PGDATClassifier
    >>> from robustsk.datasets import load_digits_images
    >>> from robustsk.training import WeightAveraging
    >>> X, y = load_digits_images(return_X_y=True)
    >>> clf = PGDATClassifier(
    ...     callbacks=[WeightAveraging(decay=0.9)], max_epochs=8, adversary__eps=0.1,
    ...     random_state=0,
    ... ).fit(X[:1000], y[:1000])
    >>> bool(clf.score_adversarial(X[1000:1200], y[1000:1200]) > 0.4)
    True
    """

    is_copied = True

    def __init__(self, kind="ema", decay=0.995, start=None, batch_norm="copy"):
        self.kind = kind
        self.decay = decay
        self.start = start
        self.batch_norm = batch_norm

    def initialize(self):
        """Forget earlier trainings; called by skorch."""
        self.average_ = None
        self.raw_ = None
        self.n_averaged_ = 0
        self.dataset_ = None
        return self

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        """Check the parameters, and where an earlier training has stopped."""
        for name, allowed in (("kind", ("ema", "swa")), ("batch_norm", ("copy", "recompute"))):
            check_choice(getattr(self, name), name, allowed)
        if not isinstance(self.decay, numbers.Real) or not 0 <= self.decay < 1:
            raise ValueError(f"decay must be a number in [0, 1), got {self.decay!r}.")
        if self.start is not None and not 0 <= self.start <= 1:
            raise ValueError(f"start must be None or a share in [0, 1], got {self.start!r}.")
        if self.average_ is None:
            return
        parameters = _parameters(net)
        here = [p.device for p in parameters]
        if len(here) == len(self.average_):
            self.average_ = [a.to(d) for a, d in zip(self.average_, here, strict=True)]
            if self.raw_ is not None:
                self.raw_ = [_to(r, net.module_) for r in self.raw_]
        if self.raw_ is None or not _equal(parameters, self.average_):
            # a training broke off, or somebody has put other weights in place since
            self.initialize()

    def on_epoch_begin(self, net, dataset_train=None, dataset_valid=None, **kwargs):
        """Put the raw weights in place."""
        self.dataset_ = dataset_train if self.batch_norm == "recompute" else None
        self._show_raw(net)

    def on_batch_begin(self, net, batch=None, training=False, **kwargs):
        """Put the average in place for the validation data."""
        if not training:
            self._finish_epoch(net)

    def on_batch_end(self, net, batch=None, training=False, **kwargs):
        """Update an exponential average."""
        if training and self.kind == "ema" and self._has_begun(net):
            self._update(net)

    def on_epoch_end(self, net, dataset_train=None, dataset_valid=None, **kwargs):
        """Put the average in place."""
        self._finish_epoch(net)

    def on_train_end(self, net, X=None, y=None, **kwargs):
        """Put the average in place, also after an interrupt; keep the raw weights."""
        self._show_average(net)
        self.dataset_ = None
        # models that are pickled where there is a GPU are unpickled where there is none
        for name in ("average_", "raw_"):
            if getattr(self, name) is not None:
                setattr(self, name, [t.cpu() for t in getattr(self, name)])

    def __getstate__(self):
        return {**vars(self), "dataset_": None}

    def _has_begun(self, net):
        start = self.start
        if start is None:
            start = 0.0 if self.kind == "ema" else 0.75
        return len(net.history) - 1 >= start * net.max_epochs

    def _finish_epoch(self, net):
        if self.raw_ is None:
            if self.kind == "swa" and self._has_begun(net):
                self._update(net)
            self._show_average(net)

    @torch.no_grad()
    def _update(self, net):
        weights = [p.detach() for p in _parameters(net)]
        with uninterrupted():
            if self.average_ is None:
                self.average_ = [w.clone() for w in weights]
            elif self.kind == "ema":
                d = self.n_averaged_
                get_ema_multi_avg_fn(min(self.decay, (1 + d) / (10 + d)))(self.average_, weights, d)
            else:
                get_swa_multi_avg_fn()(self.average_, weights, self.n_averaged_)
            self.n_averaged_ += 1

    def _show_average(self, net):
        """Replace the raw weights by the average."""
        if self.average_ is None or self.raw_ is not None:
            return
        weights, buffers = _parameters(net), list(net.module_.buffers())
        with uninterrupted() as interruptible:
            self.raw_ = [t.detach().clone() for t in (*weights, *buffers)]
            put(weights, self.average_)
            if self.batch_norm == "copy" or self.dataset_ is None:
                return
            try:
                with interruptible():
                    _recompute_statistics(net, self.dataset_)
            except BaseException:
                # rather those of the raw weights than those of a few batches
                put(buffers, self.raw_[len(weights) :])
                raise

    def _show_raw(self, net):
        if self.raw_ is not None:
            with uninterrupted():
                put([*_parameters(net), *net.module_.buffers()], self.raw_)
                self.raw_ = None


def _parameters(net):
    return list(net.module_.parameters())


def _to(tensor, module):
    return tensor.to(next(module.parameters()).device)


def _equal(tensors, others):
    return len(tensors) == len(others) and all(
        a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(tensors, others, strict=True)
    )


def _recompute_statistics(net, dataset):
    """Let batch normalisations see the batches of a training epoch, with equal weight."""
    norms = [m for m in net.module_.modules() if getattr(m, "running_mean", None) is not None]
    if not norms:
        return
    momenta = [m.momentum for m in norms]
    with uninterrupted() as interruptible:
        for m in norms:
            m.reset_running_stats()
            m.momentum = None  # the mean over all batches
        try:
            with interruptible():
                _show_batches(net, dataset)
        finally:
            for m, momentum in zip(norms, momenta, strict=True):
                m.momentum = momentum
            net._clean = None
            net._set_training(False)


def _show_batches(net, dataset):
    """Take a network through a training epoch without any steps."""
    own = net._side_generator()
    for batch in own.draw(net.get_iterator(dataset, training=True)):
        with own.in_use() as interruptible, interruptible():
            x, y, weight = net._receive(batch)
            crafted = Crafted(x, net.craft(x, y), y, weight)
            net._set_training(True)
            with torch.no_grad():
                net.infer(crafted)
