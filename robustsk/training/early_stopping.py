"""The weights that were most robust on held-out data."""

from __future__ import annotations

import numbers

from skorch.callbacks import Callback

from ._weights import copy_of_state, put_state
from .averaging import WeightAveraging
from .callbacks import AdversarialScoring


class RobustEarlyStopping(Callback):
    """Keep the weights that were most robust on held-out data.

    In adversarial training robustness on new data reaches its best soon after the learning rate
    first drops, and falls from there on although clean accuracy still rises (robust
    overfitting). This measures the accuracy under an attack on the data that `train_split` has
    set aside after every epoch, and puts the weights of the best epoch in place when training
    ends, also after an interrupt.

    Parameters
    ----------
    attack : attack, default=None
        None means a 10-step PGD with the norm, radius and valid range of the adversary.
    patience : int, default=None
        Epochs without a better value after which training stops. None means never.
    name : str, default="valid_robust_acc"
        Name of the record in the history.

    Attributes
    ----------
    best_epoch_ : int
        Number of the epoch whose weights were kept, from 1 as in the history. Of several that
        are equally good it is the first.
    best_score_ : float
        Its accuracy under attack.

    Raises
    ------
    ValueError
        In `fit`, if the estimator has no `train_split`.

    Notes
    -----
    It scores the weights that the network holds at the end of the epoch: those of
    :class:`~robustsk.training.WeightAveraging` if that is listed before. Each call of `fit` or
    `partial_fit` has a best epoch of its own.

    References
    ----------
    Rice, Wong and Kolter (2020), "Overfitting in adversarially robust deep learning", Sec. 3.

    Examples
    --------
    >>> from skorch.dataset import ValidSplit
    >>> from robustsk import PGDATClassifier
    >>> from robustsk.datasets import load_digits_images
    >>> from robustsk.training import RobustEarlyStopping
    >>> X, y = load_digits_images(return_X_y=True)
    >>> stop = RobustEarlyStopping()
    >>> clf = PGDATClassifier(
    ...     max_epochs=5, adversary__eps=0.1, train_split=ValidSplit(5, stratified=True),
    ...     callbacks=[stop], random_state=0,
    ... ).fit(X[:500], y[:500])
    >>> stop.best_score_ == max(clf.history[:, "valid_robust_acc"])
    True
    """

    def __init__(self, attack=None, patience=None, name="valid_robust_acc"):
        self.attack = attack
        self.patience = patience
        self.name = name

    def initialize(self):
        """Forget earlier trainings; called by skorch."""
        self.best_epoch_ = self.best_score_ = self.best_state_ = self.scoring_ = None
        return self

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        """Check the parameters and prepare the attack."""
        if self.patience is not None and (
            not isinstance(self.patience, numbers.Integral) or self.patience < 1
        ):
            raise ValueError(
                f"patience must be None or an integer of at least 1, got {self.patience!r}."
            )
        listed = [cb for _, cb in net.callbacks_]
        if any(isinstance(cb, WeightAveraging) for cb in listed[listed.index(self) :]):
            raise ValueError(
                "RobustEarlyStopping is listed before WeightAveraging and would score the raw "
                "weights: list it after, callbacks=[WeightAveraging(), RobustEarlyStopping()]."
            )
        self.initialize()
        attack = self.attack
        if attack is None:
            # always with the same noise, so that epochs can be compared
            attack = net.default_attack().set_params(n_steps=10, n_restarts=1, random_state=0)
        self.scoring_ = AdversarialScoring(attack, name=self.name).initialize()
        self.scoring_.on_train_begin(net, X, y, **kwargs)

    def on_epoch_begin(self, net, dataset_train=None, dataset_valid=None, **kwargs):
        """Make sure that there are held-out data."""
        if dataset_valid is None:
            raise ValueError(
                "RobustEarlyStopping measures robustness on held-out data and there are none: "
                "give the estimator a train_split, e.g. "
                "train_split=skorch.dataset.ValidSplit(10, stratified=True)."
            )

    def on_epoch_end(self, net, dataset_train=None, dataset_valid=None, **kwargs):
        """Score the network, and keep its weights if they are the best so far."""
        self.scoring_.on_epoch_end(net, dataset_train, dataset_valid, **kwargs)
        score = float(net.history[-1, self.name])
        if self.best_score_ is None or score > self.best_score_:
            self.best_state_ = copy_of_state(net.module_)
            self.best_epoch_, self.best_score_ = len(net.history), score
        elif self.patience is not None and len(net.history) - self.best_epoch_ >= self.patience:
            if net.verbose:
                print(f"No more robust for {self.patience} epochs: training stops.")
            raise KeyboardInterrupt  # skorch's way of ending a training in good order

    def on_train_end(self, net, X=None, y=None, **kwargs):
        """Put the weights of the best epoch in place."""
        if self.best_state_ is not None:
            put_state(net.module_, self.best_state_)
        self.best_state_ = self.scoring_ = None
