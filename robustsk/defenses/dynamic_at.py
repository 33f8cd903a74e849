"""Adversarial training on examples of a given quality."""

from __future__ import annotations

import numbers
from typing import TYPE_CHECKING

from torch import Tensor

from .._validation import check_length
from ..attacks import DynamicPGD
from .pgd_at import PGDATClassifier

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._parameters import DefenseParameters, Network


class DynamicATClassifier(PGDATClassifier):
    """Dynamic adversarial training (DAT): examples that converge better and better.

    Minimises ``CE(f(x'), y)``. A sample is moved by PGD, at least by one step, until
    the criterion of convergence, the first-order stationary condition of
    :class:`~robustsk.attacks.DynamicPGD`, is at most
    ``c_t = max(c_max * (1 - t / n_decay_epochs), 0)`` in epoch `t`: early in
    training rough examples do, later they are as strong as the steps allow.

    Parameters
    ----------
    %(first_parameter)s
    c_max : float, default=0.5
        The criterion in the first epoch, in units of the loss. With 0 all
        samples take all steps unless they have arrived.
    n_decay_epochs : float, default=None
        Epochs until the criterion is zero, at least 1. None means 5/6 of
        `max_epochs`, as in the source (100 of 120).
    adversary : attack, default=None
        The threat model, and the steps, start and objective of the
        :class:`~robustsk.attacks.DynamicPGD` that is used. None means a 10-step
        PGD with ``eps=8/255``. Its parameters can be given as
        ``adversary__eps=0.3``.
    %(shared_parameters)s

    %(shared_attributes)s

    See Also
    --------
    CurriculumATClassifier : The number of steps grows instead.
    FATClassifier : Samples stop at the first error.

    Notes
    -----
    The present criterion is recorded in the history as "fosc". The authors'
    code measures perturbations from the random start and weighs samples by
    their loss after the first epoch, of which the article does not speak; this
    does neither.

    References
    ----------
    Wang, Ma, Bailey, Yi, Zhou and Gu (2019), "On the convergence and robustness
    of adversarial training", Algorithm 1.

    Examples
    --------
    >>> from robustsk import DynamicATClassifier
    >>> from robustsk.datasets import load_digits_images
    >>> X, y = load_digits_images(return_X_y=True)
    >>> clf = DynamicATClassifier(max_epochs=8, adversary__eps=0.1, random_state=0)
    >>> clf = clf.fit(X[:1000], y[:1000])
    >>> bool(clf.score_adversarial(X[1000:1200], y[1000:1200]) > 0.4)
    True
    """

    def __init__(
        self,
        module: Network | None = None,
        *,
        c_max: float = 0.5,
        n_decay_epochs: float | None = None,
        **common: Unpack[DefenseParameters],
    ):
        super().__init__(module, **common)
        self.c_max = c_max
        self.n_decay_epochs = n_decay_epochs

    @property
    def _criterion_of_epoch(self):
        n = self.n_decay_epochs
        n = 5 / 6 * self.max_epochs if n is None else n
        return self.c_max * max(0.0, 1 - max(0, self.epoch) / max(1, n))

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        """Check the parameters; called by skorch."""
        super().on_train_begin(net, X, y, **kwargs)
        check_length(self.c_max, "c_max")
        n = self.n_decay_epochs
        if n is not None and (not isinstance(n, numbers.Real) or not n >= 1):
            raise ValueError(f"n_decay_epochs must be a number of at least 1 or None, got {n!r}.")

    def on_epoch_begin(self, net, dataset_train=None, dataset_valid=None, **kwargs):
        """Record the criterion of the epoch; called by skorch."""
        super().on_epoch_begin(net, dataset_train, dataset_valid, **kwargs)
        self.history.record("fosc", self._criterion_of_epoch)

    def craft(self, x: Tensor, y: Tensor) -> Tensor:
        """Return examples that have converged as far as this epoch asks for."""
        # Algorithm 1: the first step comes before the criterion
        attack = self.like_adversary(
            DynamicPGD,
            criterion=self._criterion_of_epoch,
            min_steps=max(1, getattr(self.adversary_, "min_steps", 0)),
        )
        return self.perturb(self.module_, x, y, adversary=attack)
