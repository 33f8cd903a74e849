"""What a loss reports about batches, in the history of an estimator."""

from __future__ import annotations

from torch import Tensor


class EpochMeans:
    """Mixin of defences whose loss says more about a batch than its value.

    What `report` is told in the last evaluation of the loss on each batch is recorded in the
    history as the mean of the epoch.
    """

    _reported = None
    _totals = None

    def report(self, n_samples: int, **values: Tensor) -> None:
        """Take note of numbers about the present batch, tensors without axes."""
        self._reported = n_samples, {name: value.detach() for name, value in values.items()}

    def on_epoch_begin(self, net, dataset_train=None, dataset_valid=None, **kwargs):
        """Begin anew; called by skorch."""
        super().on_epoch_begin(net, dataset_train, dataset_valid, **kwargs)
        self._reported, self._totals = None, []

    def on_batch_end(self, net, batch=None, training=False, **kwargs):
        """Keep what has been reported; called by skorch."""
        super().on_batch_end(net, batch, training, **kwargs)
        if training and self._reported is not None:
            self._totals.append(self._reported)
            self._reported = None

    def on_epoch_end(self, net, dataset_train=None, dataset_valid=None, **kwargs):
        """Record the means; called by skorch."""
        super().on_epoch_end(net, dataset_train, dataset_valid, **kwargs)
        n_samples = sum(n for n, _ in self._totals)
        for name in self._totals[0][1] if self._totals else ():
            mean = sum(n * values[name] for n, values in self._totals) / n_samples
            self.history_.record(name, float(mean))
        self._totals = []
