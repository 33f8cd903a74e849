"""Epochs that do not wait for the device."""

from __future__ import annotations

import math
from functools import cache

import torch
from skorch.callbacks import Callback
from skorch.dataset import get_len
from torch.utils.data import DataLoader

from ..training._data import resident
from ..training._weights import put_state

#: Where callbacks are that ask for no loss, and for nothing of a batch, while an epoch lasts.
_ASK_LATER = (
    "robustsk.",
    "skorch.callbacks.lr_scheduler",
    "skorch.callbacks.regularization",
    "skorch.callbacks.scoring",
)
_PER_BATCH = ("on_batch_begin", "on_batch_end", "on_grad_computed")
#: Batches after which losses on a GPU are looked at.
_EVERY = 100
#: Optimizers that take one kernel per step on a GPU if they are told to.
_FUSED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
_OTHER_WAYS = {"fused", "foreach", "capturable", "differentiable"}
#: What a DataLoader may be told where batches are taken from the memory of the device.
_PLAIN = {"batch_size", "shuffle", "drop_last", "generator", "collate_fn"}


class Epochs:
    """What a defence does with losses and data that are on a GPU.

    To read a number there is to wait until all that was asked for has been done, and meanwhile the
    GPU gets nothing to do. So losses are read many at a time, unless a callback wants each.
    """

    #: Whether somebody wants to see each batch and its loss at once.
    _asks_per_batch = False
    #: Samples that are in the memory of a GPU, during training.
    _on_device = None

    def run_epoch(self, iterator, training, prefix, step_fn, **fit_params):
        """Train or validate on all batches, like skorch; losses are numbers after that."""
        if iterator is None:
            return
        batch_count = 0
        try:
            for batch in iterator:
                self.notify("on_batch_begin", batch=batch, training=training)
                step = step_fn(batch, **fit_params)
                loss = step["loss"].detach()
                waits = self._reads_later(loss)
                self.history.record_batch(f"{prefix}_loss", loss if waits else loss.item())
                n_samples = (
                    get_len(batch[0]) if isinstance(batch, (tuple, list)) else get_len(batch)
                )
                self.history.record_batch(f"{prefix}_batch_size", n_samples)
                self.notify("on_batch_end", batch=batch, training=training, **step)
                batch_count += 1
                if waits and batch_count % _EVERY == 0:
                    self._read_losses(prefix, training)
        except BaseException:
            self._read_losses(prefix)
            raise
        self._read_losses(prefix, training)
        self.history.record(f"{prefix}_batch_count", batch_count)

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        """See whether somebody asks for more than epochs; called by skorch."""
        super().on_train_begin(net, X, y, **kwargs)
        own = (self, *(callback for _, callback in self.callbacks_))
        self._asks_per_batch = not all(_asks_later(type(callback)) for callback in own)
        self._on_device = {}

    def _reads_later(self, loss):
        return loss.is_cuda and self._in_fit and not self._asks_per_batch

    def _read_losses(self, prefix, training=False):
        """Turn the losses of this epoch into numbers; in training, see whether it has diverged."""
        name, batches = f"{prefix}_loss", self.history[-1]["batches"]
        unread = [n for n, b in enumerate(batches) if isinstance(b.get(name), torch.Tensor)]
        if not unread:
            return
        losses = torch.stack([batches[n][name] for n in unread]).tolist()
        for n, loss in zip(unread, losses, strict=True):
            batches[n][name] = loss
        if training:
            for n, loss in zip(unread, losses, strict=True):
                self.check_loss(loss, n + 1)

    def check_loss(self, loss, batch=None):
        """Stop a training that has diverged, leaving the last good weights.

        Parameters
        ----------
        loss : float
        batch : int, optional
            In which batch of the epoch, from 1; None means the present one.
        """
        if math.isfinite(loss):
            if self._candidate is not None:  # a finite loss has proved these weights good
                self._last_good, self._candidate = self._candidate, None
            return
        if batch is None:
            batch = len(self.history_[-1]["batches"])
        good = self._candidate if self._last_good is None else self._last_good
        for name, weights in (good or {}).items():
            put_state(getattr(self, name), weights)
        for optimizer in (getattr(self, f"{name}_") for name in self._optimizers):
            # what it has seen since must not come back with its next step
            for p in [p for p, known in optimizer.state.items() if not _is_finite(known)]:
                del optimizer.state[p]
        raise FloatingPointError(
            f"The training loss is {loss} in epoch {len(self.history_)}, batch {batch}. Training "
            "has stopped and the weights of the last good epoch are in place, so that the model "
            f"can be used. Try a smaller lr (it is {self.lr}), data of unit scale (e.g. a "
            "StandardScaler before this step), or gradient clipping "
            "(callbacks=[skorch.callbacks.GradientNormClipping(1.0)])."
        )

    def on_device(self, dataset, params, training):
        """Return a Dataset that is in the memory of the GPU, if it is to be and has room there."""
        device = torch.device(self._device() or "cpu")
        if (
            device.type != "cuda"
            or self._on_device is None
            or self._asks_per_batch
            or (self.iterator_train if training else self.iterator_valid) is not DataLoader
            or params - _PLAIN
        ):
            return dataset
        return resident(dataset, device, self._dtype(), self._on_device, is_new=training)

    def get_params_for_optimizer(self, prefix, named_parameters):
        """Return what an optimizer is made with; called by skorch."""
        args, kwargs = super().get_params_for_optimizer(prefix, named_parameters)
        kind = getattr(self, prefix, None)
        if kind in _FUSED and not kwargs.keys() & {
            "fused",
            "foreach",
            "capturable",
            "differentiable",
        }:
            tensors = [p for group in args[0] for p in group["params"]]
            if tensors and all(p.is_cuda and p.is_floating_point() for p in tensors):
                kwargs["fused"] = True
        return args, kwargs


@cache
def _asks_later(kind):
    """Return whether a callback needs nothing of a batch while the epoch goes on."""
    owners = {next((c for c in kind.__mro__ if name in vars(c)), Callback) for name in _PER_BATCH}
    return all(
        owner is Callback or owner.__module__.startswith((*_ASK_LATER, "skorch.net"))
        for owner in owners
    )


def _is_finite(known):
    return all(
        torch.isfinite(t).all()
        for t in known.values()
        if isinstance(t, torch.Tensor) and t.is_floating_point()
    )
