"""skorch callbacks for adversarial training."""

from __future__ import annotations

import numpy as np
from skorch.callbacks import Callback, EpochScoring
from torch.utils.data import Subset

from .._containers import is_dataset
from .._validation import check_length
from ..metrics import make_adversarial_scorer
from ._radius import Radius, attacks_of


class AdversarialScoring(EpochScoring):
    """Record the accuracy under an attack after every epoch.

    Robust accuracy on held-out data often falls long before clean accuracy
    does (robust overfitting); this makes it visible in the history and usable
    by other callbacks, e.g. ``skorch.callbacks.EarlyStopping`` or
    ``skorch.callbacks.Checkpoint``.

    Parameters
    ----------
    attack : attack
        E.g. ``PGD(eps=0.3, n_steps=10, random_state=0)``.
    name : str, default=None
        Name of the record. None means "valid_robust_acc", or
        "train_robust_acc" with `on_train`.
    on_train : bool, default=False
        Whether to score the training data instead of those that
        `train_split` has set aside.
    data : tuple (X, y) or torch Dataset, default=None
        Other data to score, with labels as in `fit`. The record is then called
        "test_robust_acc" unless `name` is given. Several such callbacks watch
        several sets.

    References
    ----------
    Rice, Wong and Kolter (2020), "Overfitting in adversarially robust deep
    learning".

    Examples
    --------
    >>> from skorch.dataset import ValidSplit
    >>> from robustsk import PGD, PGDATClassifier
    >>> from robustsk.datasets import load_digits_images
    >>> from robustsk.training import AdversarialScoring
    >>> X, y = load_digits_images(return_X_y=True)
    >>> watch = AdversarialScoring(PGD(eps=0.1, random_state=0))
    >>> clf = PGDATClassifier(
    ...     max_epochs=2, train_split=ValidSplit(5), callbacks=[watch], random_state=0
    ... ).fit(X[:500], y[:500])
    >>> len(clf.history[:, "valid_robust_acc"])
    2
    """

    def __init__(self, attack, name=None, on_train=False, data=None):
        self.attack = attack
        self.data = data
        part = "test" if data is not None else "train" if on_train else "valid"
        name = name or f"{part}_robust_acc"
        super().__init__(
            make_adversarial_scorer(attack),
            lower_is_better=False,
            on_train=on_train,
            name=name,
            use_caching=False,  # the cache holds predictions on clean data
        )

    def on_epoch_end(self, net, dataset_train=None, dataset_valid=None, **kwargs):
        """Score the network; called by skorch."""
        if self.data is not None:
            dataset_train = dataset_valid = net.monitored(self.data)
        super().on_epoch_end(net, dataset_train, dataset_valid, **kwargs)

    def get_test_data(self, dataset_train, dataset_valid, use_caching):
        """Return the data to score; called by skorch, which does not know Datasets in Samples."""
        dataset = dataset_train if self.on_train else dataset_valid
        if dataset is None:
            return None, None, []
        rows = np.arange(len(dataset))
        while isinstance(dataset, Subset):
            rows, dataset = np.asarray(dataset.indices)[rows], dataset.dataset
        X = dataset.X
        return Subset(X, rows.tolist()) if is_dataset(X) else X[rows], dataset.y[rows], []

    def _get_param_names(self):
        # skorch would read them off the attributes, those of EpochScoring included
        return ["attack", "name", "on_train", "data"]


class EpsSchedule(Callback):
    """Change the radius of the adversary from epoch to epoch.

    Parameters
    ----------
    points : sequence of (epoch, factor)
        Factors of the radius and the epochs, counted from 0 and in ascending order, in which they
        hold. In between, factors are interpolated; before the first and after the last of these
        epochs they are constant.

    Notes
    -----
    A `step_size` of the adversary that is None follows the radius; one that
    is given does not. After training the adversary has its own radius again. Epochs are counted on
    where a training goes on. The radius of each epoch is recorded as "eps".

    The radius is the one in force: in ``EOT(attack=PGD(eps=0.3))`` that of the attack inside, and
    where none is given the default one. An attack that looks for the closest example needs one.

    References
    ----------
    Bui, Le, Tran, Zhao and Phung (2022), "A unified Wasserstein distributional robustness framework
    for adversarial training", Appendix D: from 8/255 in epoch 20 to 16/255 in epoch 70, or back.

    Examples
    --------
    >>> from robustsk import PGDATClassifier
    >>> from robustsk.datasets import load_digits_images
    >>> from robustsk.training import EpsSchedule
    >>> X, y = load_digits_images(return_X_y=True)
    >>> clf = PGDATClassifier(
    ...     adversary__eps=0.1, callbacks=[EpsSchedule([(1, 1), (3, 2)])], max_epochs=5,
    ...     random_state=0,
    ... ).fit(X[:500], y[:500])
    >>> [round(eps, 2) for eps in clf.history_[:, "eps"]]
    [0.1, 0.1, 0.15, 0.2, 0.2]
    >>> clf.adversary_.eps
    0.1
    """

    def __init__(self, points):
        self.points = points

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        """Remember the radius."""
        self._check()
        self.radius_ = Radius(net.adversary_)
        self.full_ = self.radius_.full(getattr(net, "_sample_shape", net.input_shape_))

    def on_epoch_begin(self, net, dataset_train=None, dataset_valid=None, **kwargs):
        """Set the radius of this epoch."""
        epochs, factors = zip(*self.points, strict=True)
        eps = self.full_ * float(np.interp(net.epoch, epochs, factors))
        self.radius_.set(eps)
        net.history.record("eps", np.asarray(eps).tolist())

    def on_train_end(self, net, X=None, y=None, **kwargs):
        """Restore the radius."""
        self.radius_.restore()

    def _check(self):
        try:
            pairs = np.asarray(self.points, dtype=float).reshape(-1, 2)
        except (TypeError, ValueError):
            pairs = np.empty((0, 2))
        if not len(pairs) or (np.diff(pairs[:, 0]) <= 0).any() or not (pairs[:, 1] >= 0).all():
            raise ValueError(
                "points must be pairs (epoch, factor) in ascending order of epochs, with factors "
                f"of at least 0, e.g. [(20, 1), (70, 2)]; got {self.points!r}."
            )


class EpsWarmup(EpsSchedule):
    """Let the radius of the adversary grow during the first epochs.

    From scratch, a small network may not get off the ground against a strong
    adversary: it predicts the same for everything and stays there. A radius
    that grows linearly from batch to batch avoids it.

    Parameters
    ----------
    n_epochs : float, default=1.0
        Epochs until the full radius is reached.
    start : float, default=0.0
        Fraction of the radius to begin with, in [0, 1].

    Notes
    -----
    A `step_size` of the adversary that is None follows the radius; one that
    is given does not. After training the adversary has its full radius again,
    which is the one in force, as for :class:`EpsSchedule`.

    References
    ----------
    Pang, Yang, Dong, Su and Zhu (2021), "Bag of tricks for adversarial
    training", Sec. 3, where it is called perturbation warm-up.

    Examples
    --------
    >>> from robustsk import PGDATClassifier
    >>> from robustsk.datasets import load_digits_images
    >>> from robustsk.training import EpsWarmup
    >>> X, y = load_digits_images(return_X_y=True)
    >>> clf = PGDATClassifier(
    ...     adversary__eps=0.2, callbacks=[EpsWarmup(2)], max_epochs=3, random_state=0
    ... ).fit(X[:500], y[:500])
    >>> clf.adversary_.eps
    0.2
    """

    def __init__(self, n_epochs=1.0, start=0.0):
        self.n_epochs = n_epochs
        self.start = start

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        """Remember the radius."""
        super().on_train_begin(net, X, y, **kwargs)
        self.batches_ = 0

    def on_batch_begin(self, net, batch=None, training=False, **kwargs):
        """Set the radius of this batch."""
        if training:
            size = max(1, round(self.n_epochs * self._batches_per_epoch(net)))
            done = min(1.0, self.batches_ / size)
            self.radius_.set(self.full_ * (self.start + (1 - self.start) * done))
            self.batches_ += 1

    def on_epoch_begin(self, net, dataset_train=None, dataset_valid=None, **kwargs):
        """Learn how long an epoch is."""
        self.n_samples_ = len(dataset_train)

    def _check(self):
        if not 0 <= self.start <= 1:
            raise ValueError(f"start must be a fraction in [0, 1], got {self.start!r}.")
        if self.n_epochs < 0:
            raise ValueError(f"n_epochs must not be negative, got {self.n_epochs!r}.")

    def _batches_per_epoch(self, net):
        size = net.get_params_for("iterator_train").get("batch_size", net.batch_size)
        return 1 if size == -1 else -(-self.n_samples_ // size)


class RandomEps(EpsSchedule):
    """Draw the radius of the adversary anew for each batch.

    Training then covers all radii up to the full one, instead of one.

    Parameters
    ----------
    low, high : float, default=0.0, 1.0
        Between which fractions of the radius of the adversary it is drawn, uniformly.
    step : float, default=None
        Length of the steps of the adversary as a fraction of the radius that is drawn. None leaves
        `step_size` as it is.

    Notes
    -----
    A `step_size` of the adversary that is None follows the radius; one that
    is given does so with `step`. After training the adversary has its full radius again,
    which is the one in force, as for :class:`EpsSchedule`. The numbers are drawn from the
    `random_state` of the estimator. The radius of each batch is recorded as "eps".

    References
    ----------
    Bui, Le, Zhao, Montague, deVel, Abraham and Phung (2021), "Improving ensemble robustness by
    collaboratively promoting and demoting adversarial robustness", Sec. 4: on residual networks
    10 steps of eps / 10 with eps from U(0.01, 0.05), which is
    ``PGD(eps=0.05, n_steps=10)`` with ``RandomEps(0.2, step=0.1)``.

    Examples
    --------
    >>> from robustsk import PGDATClassifier
    >>> from robustsk.datasets import load_digits_images
    >>> from robustsk.training import RandomEps
    >>> X, y = load_digits_images(return_X_y=True)
    >>> clf = PGDATClassifier(
    ...     adversary__eps=0.05, callbacks=[RandomEps(0.2, step=0.1)], max_epochs=1, random_state=0
    ... ).fit(X[:500], y[:500])
    >>> [0.01 <= eps <= 0.05 for eps in clf.history_[0, "batches", :, "eps"]]
    [True, True, True, True]
    >>> clf.adversary_.eps
    0.05
    """

    def __init__(self, low=0.0, high=1.0, step=None):
        self.low = low
        self.high = high
        self.step = step

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        """Remember the radius and the length of the steps."""
        super().on_train_begin(net, X, y, **kwargs)
        attacks = attacks_of(net.adversary_)
        self.steps_ = [(a, a.step_size) for a in attacks if hasattr(a, "step_size")]
        if self.step is not None and not self.steps_:
            raise ValueError(
                f"step={self.step!r} is for an adversary with a step_size, and "
                f"{type(net.adversary_).__name__} has none: leave it out."
            )

    def on_epoch_begin(self, net, dataset_train=None, dataset_valid=None, **kwargs):
        """Do nothing: each batch has a radius of its own."""

    def on_batch_begin(self, net, batch=None, training=False, **kwargs):
        """Draw the radius of this batch."""
        if not training:
            return
        eps = self.full_ * net._rng.uniform(self.low, self.high)
        self.radius_.set(eps)
        if self.step is not None:
            for attack, _ in self.steps_:
                attack.step_size = self.step * float(np.max(eps))
        net.history.record_batch("eps", np.asarray(eps).tolist())

    def on_train_end(self, net, X=None, y=None, **kwargs):
        """Restore the radius and the length of the steps."""
        super().on_train_end(net, X, y, **kwargs)
        for attack, step_size in self.steps_:
            attack.step_size = step_size

    def _check(self):
        low, high = (check_length(getattr(self, name), name) for name in ("low", "high"))
        if low > high:
            raise ValueError(f"low must not be above high, got {low:g} and {high:g}.")
        if self.step is not None:
            check_length(self.step, "step")
