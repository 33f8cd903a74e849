"""Friendly adversarial training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from .._validation import check_choice, check_length
from ..attacks import FriendlyPGD
from ..training._schedule import at_epoch, scaled
from ._prescribed import Prescription, is_default
from .base import BaseDefense
from .mart import MARTClassifier
from .pgd_at import PGDATClassifier
from .trades import TRADESClassifier

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._parameters import DefenseParameters, Network

#: Classifiers whose loss is minimised.
_LOSSES = {"ce": PGDATClassifier, "trades": TRADESClassifier, "mart": MARTClassifier}
#: The authors' `tau` by epoch, and the number of epochs it is for.
_TAU = {
    "ce": ([(0, 0), (50, 1), (90, 2)], 120),
    "trades": ([(0, 0), (30, 1), (50, 2), (70, 3)], 85),
    "mart": ([(0, 0), (20, 1), (40, 2), (60, 3), (80, 4)], 90),
}


class FATClassifier(Prescription, BaseDefense):
    """Friendly adversarial training: examples that are adversarial, but hardly more.

    Minimises a loss on examples that an early-stopped PGD makes: it leaves a
    sample alone at the iterate that is misclassified for the ``tau + 1``-th
    time. `tau` grows in the course of training, from examples just over the
    border towards those of :class:`PGDATClassifier`. Training costs fewer
    gradients and less clean accuracy.

    Parameters
    ----------
    %(first_parameter)s
    loss : {"ce", "trades", "mart"}, default="ce"
        What is minimised: cross-entropy on the friendly examples, or the loss of
        :class:`TRADESClassifier` (whose adversary ascends the divergence) or
        :class:`MARTClassifier`.
    beta : float, default=6.0
        Weight of the divergence in the last two.
    tau : int or list of (epoch, tau), default=None
        `tau` of the adversary: a number, or pairs of the epoch, counted from 0,
        and the number that holds from then on. None means the schedule of the
        source for this loss, stretched to `max_epochs` (for cross-entropy 0,
        then 1 from epoch 50 of 120, and 2 from epoch 90), unless the `adversary`
        has a `tau` other than 0 or `adversary__tau` is given. ``tau=0`` stops at
        the first error throughout.
    adversary : attack, default=None
        What makes the adversarial examples in training, and the threat model
        that `score_adversarial` assumes: a
        :class:`robustsk.attacks.FriendlyPGD`, None means with 10 steps and
        ``eps=8/255``. It starts uniformly and has ``omega=0.001`` for
        cross-entropy, and starts next to the sample with ``omega=0`` for the
        other losses. This holds for one that is given as well, but for what is
        not its own default, or is said to this estimator, as
        ``adversary__omega=0``. Its randomness comes from the `random_state` of
        this estimator.
    %(shared_parameters)s

    %(shared_attributes)s

    See Also
    --------
    GAIRATClassifier : With ``variant="fat"``, and weights.
    PGDATClassifier : What it is for a large `tau`.

    Notes
    -----
    Much of its robustness to PGD is lost to stronger attacks. Zhang et al.
    (2021, Table 1: CIFAR-10, WRN-32-10) report 51.2 % under PGD-20 and 46.1 %
    under PGD with restarts, where adversarial training has 52.0 and 51.3 %.
    Evaluate with AutoAttack.

    What is saved is in the history as "attack_steps": how many gradients of the
    attack an average sample took in the epoch, at most `n_steps`.

    References
    ----------
    Zhang, Xu, Han, Niu, Cui, Sugiyama and Kankanhalli (2020), "Attacks which do
    not kill training make adversarial learning stronger", Algorithms 1 and 2;
    the schedules are those of the authors' code.

    Examples
    --------
    >>> from robustsk import FATClassifier
    >>> from robustsk.datasets import load_digits_images
    >>> X, y = load_digits_images(return_X_y=True)
    >>> clf = FATClassifier(max_epochs=8, adversary__eps=0.1, random_state=0)
    >>> clf = clf.fit(X[:1000], y[:1000])
    >>> bool(clf.score_adversarial(X[1000:1200], y[1000:1200]) > 0.4)
    True
    >>> clf.adversary_.tau
    2
    """

    _of_a_session = (*BaseDefense._of_a_session, "_steps", "_n_crafted")
    _steps = _n_crafted = 0
    #: What the loss of TRADES asks for.
    form = "multiclass"

    def __init__(
        self,
        module: Network | None = None,
        *,
        loss: str = "ce",
        beta: float = 6.0,
        tau: int | Sequence[Sequence[int]] | None = None,
        **common: Unpack[DefenseParameters],
    ):
        super().__init__(module, **common)
        self.loss = loss
        self.beta = beta
        self.tau = tau

    def prescribed(self):
        """Return the noise in the steps, or the start next to the sample."""
        return {"omega": 0.001} if self.loss == "ce" else {"random_start": "gaussian"}

    def default_adversary(self):
        """Return an early-stopped PGD with the start and noise of the source."""
        return FriendlyPGD(**self.prescribed())

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        """Check the parameters; called by skorch."""
        super().on_train_begin(net, X, y, **kwargs)
        check_choice(self.loss, "loss", tuple(_LOSSES))
        check_length(self.beta, "beta")

    def on_epoch_begin(self, net, dataset_train=None, dataset_valid=None, **kwargs):
        """Set `tau` of the adversary; called by skorch."""
        super().on_epoch_begin(net, dataset_train, dataset_valid, **kwargs)
        follow_tau(self, _TAU[self.loss])
        self._steps, self._n_crafted = 0, 0

    def on_epoch_end(self, net, dataset_train=None, dataset_valid=None, **kwargs):
        """Record how many steps a sample has taken; called by skorch."""
        super().on_epoch_end(net, dataset_train, dataset_valid, **kwargs)
        self.history.record("attack_steps", float(self._steps) / max(1, self._n_crafted))

    def attack_objective(self):
        """Return what the loss goes with: "kl" for that of TRADES, and "ce"."""
        return "kl" if self.loss == "trades" else "ce"

    def craft(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the friendly batch; without weight on it, the clean one."""
        if self.loss == "trades" and self.beta == 0:
            return x
        x_adv, info = self.perturb(self.module_, x, y, return_info=True)
        # summed where the network is: nothing waits for it before the epoch ends
        self._steps = self._steps + info["n_steps_taken"].sum()
        self._n_crafted += len(x)
        return x_adv

    def training_loss(self, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        """Return the chosen loss, shape (n,)."""
        return _LOSSES[self.loss].training_loss(self, x, x_adv, y)


def follow_tau(clf, source):
    """Set `tau` of the adversary for this epoch, as the parameter `tau` of a defence has it.

    Parameters
    ----------
    clf : BaseDefense
        With a parameter `tau`.
    source : tuple of (schedule, int) or None
        Schedule that the method prescribes, and the number of epochs it is for; None where its
        adversary goes on to the end.
    """
    if source is None and clf.tau is None:
        return
    if not isinstance(clf.adversary_, FriendlyPGD):
        what = f"{type(clf).__name__} needs" if source else f"tau={clf.tau!r} is for"
        raise ValueError(
            f"{what} an adversary that stops early, and {type(clf.adversary_).__name__} does not: "
            f"use FriendlyPGD(...){'' if source else ', or leave tau out'}."
        )
    tau = clf.tau
    if tau is None:
        own = clf.adversary is not None and not is_default(clf.adversary, "tau")
        if own or "adversary__tau" in vars(clf):
            return
        tau = scaled(*source, clf.max_epochs)
    clf.adversary_.tau = at_epoch(tau, clf.epoch, "tau")
