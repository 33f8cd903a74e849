"""Adversarial fine-tuning of a network that has been trained on clean data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from skorch import NeuralNet
from torch import Tensor

from .._validation import check_choice, check_count, check_length
from ..attacks import DRA, PGD
from ..attacks.gradient.dra import DEFAULT_MEAN
from ..attacks.threat import check_eps, check_norm
from ..training._data import Crafted
from ..training._radius import Radius
from ..training._weights import copy_of_state, put_state
from .base import BaseDefense
from .standard import standard_version

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._parameters import DefenseParameters, Network

#: What a loss is about: both parts, or the one of the two steps on a batch.
_BOTH, _CLEAN, _ADVERSARIAL = "both", "clean", "adversarial"


class AdversarialFineTuneClassifier(BaseDefense):
    """Standard training, then fine-tuning on clean and adversarial examples 1:1.

    `standard_epochs` of natural training give an accurate network. All of its layers are then
    tuned for `max_epochs` with a fresh optimizer: each batch is trained on as it is and as the
    adversary makes it of it, with a radius that decays linearly over the first `decay_epochs`;
    the epochs after them are natural training again. It looks for robust weights close to the
    accurate ones, so that little accuracy on clean data is lost::

        min_theta E[CE(f(x'), y)]  so that  E[CE(f(x), y)] <= E[CE(f_std(x), y)] + slack

    Parameters
    ----------
    %(first_parameter)s
    standard_epochs : int, default=20
        Epochs of natural training at the beginning; 0 where `module` is an
        instance that has been trained already.
    standard_lr : float, default=0.005
        Learning rate of the natural training.
    standard_callbacks : list or None, default=None
        skorch callbacks of the natural training.
    eps_start : float, default=None
        Radius in the first epoch of the fine-tuning, in the units of the
        adversary. None means the radius of the adversary.
    eps_end : float, default=None
        Radius in the last adversarial epoch. None means ``eps_start / 4``.
    decay_epochs : int, default=None
        Number of adversarial epochs; the rest of `max_epochs` is natural
        training. None means five sixths of `max_epochs`, rounded up.
    update : {"alternate", "joint"}, default="alternate"
        Two steps per batch, the first on clean and the second on adversarial
        examples, which are crafted in between; or one step on the sum.
    lam : float, default=1.0
        Weight of the clean loss in the adversarial epochs; with a constraint
        the weight to begin with.
    constraint : {None, "dual"}, default=None
        "dual" adjusts `lam` after every epoch of fine-tuning so that the
        constraint above holds, ``lam <- max(0, lam + rho * (L_clean - L_std -
        slack))``, with both losses measured on the training data, in
        evaluation mode.
    rho : float, default=1.0
        Step by which the weight is adjusted.
    slack : float, default=0.1
        What the clean loss may rise by, in nats. With none the constraint can
        only be met with equality, because the standard network is the
        minimiser.
    max_epochs : int, default=20
        Epochs of fine-tuning in a call of `fit` or `partial_fit`.
    lr : float, default=0.005
        Learning rate of the fine-tuning. With SGD a tenth of `standard_lr` is
        usual.
    callbacks : list, "disable" or None, default=None
        skorch callbacks of the fine-tuning.
    adversary : attack, default=None
        What makes the adversarial examples of the fine-tuning. None means a
        5-step :class:`~robustsk.attacks.DRA` whose `eps`, 2/255, is the mean
        change per feature. Its parameters can be given as
        ``adversary__eps=0.1``. Its randomness comes from the `random_state` of
        this estimator.
    %(shared_parameters)s

    %(shared_attributes)s
    standard_state_ : dict of str to torch.Tensor
        Weights after the standard training, on the CPU; for
        ``module_.load_state_dict``.
    standard_history_ : skorch.history.History or None
        What was recorded in the standard training; `history_` is that of the
        fine-tuning, with the radius of each epoch as "eps" and, with a
        constraint, "clean_loss" and the weight "lam" that was used.
    standard_loss_ : float
        Loss of the standard network on the training data, without margin or
        weights; with a constraint only, else None.

    See Also
    --------
    PretrainTuneClassifier : Two stages with any defence in each.

    Notes
    -----
    `partial_fit` and a warm start go on with the fine-tuning. An interrupt in
    the standard training leaves the network as it then is. The standard
    training has no perturbation of the weights, and is printed from
    ``verbose=2`` on. Where ``adversary__eps`` is array-like, so are "eps" in
    the history and what comes of `eps_start` and `eps_end`.

    The mean change of DRA is no radius that an attack must keep to feature by
    feature. The attack of :meth:`score_adversarial` is therefore by default a
    PGD in the max-norm with this number for its radius, which has the same
    mean change where all features move; the source evaluates so as well.

    References
    ----------
    Hou (2022), "Adversarial training for improving the robustness of deep
    neural networks", MSc thesis, University of Alberta, Secs. 4.4 and 4.5,
    Eqs. 4.4 to 4.6. The source sets the weight of the clean loss to 1; Eq. 4.6
    minimises over it, which must be maximising. Learning rates, the number of
    standard epochs and what one update consists of are not stated there.

    Examples
    --------
    >>> from robustsk import AdversarialFineTuneClassifier
    >>> from robustsk.datasets import load_digits_images
    >>> X, y = load_digits_images(return_X_y=True)
    >>> clf = AdversarialFineTuneClassifier(
    ...     standard_epochs=5, max_epochs=6, adversary__eps=0.1, random_state=0
    ... ).fit(X[:1000], y[:1000])
    >>> [round(eps, 3) for eps in clf.history[:, "eps"]]
    [0.1, 0.081, 0.062, 0.044, 0.025, 0.0]
    >>> bool(clf.score(X[1000:], y[1000:]) > 0.8)
    True
    """

    _part = _BOTH
    _radius = 0.0
    standard_state_ = None
    standard_history_ = None
    standard_loss_ = None
    lam_ = None

    def __init__(
        self,
        module: Network | None = None,
        *,
        standard_epochs: int = 20,
        standard_lr: float = 0.005,
        standard_callbacks: Sequence[Any] | None = None,
        eps_start: float | None = None,
        eps_end: float | None = None,
        decay_epochs: int | None = None,
        update: str = "alternate",
        lam: float = 1.0,
        constraint: str | None = None,
        rho: float = 1.0,
        slack: float = 0.1,
        **common: Unpack[DefenseParameters],
    ):
        super().__init__(module, **common)
        self.standard_epochs = standard_epochs
        self.standard_lr = standard_lr
        self.standard_callbacks = standard_callbacks
        self.eps_start = eps_start
        self.eps_end = eps_end
        self.decay_epochs = decay_epochs
        self.update = update
        self.lam = lam
        self.constraint = constraint
        self.rho = rho
        self.slack = slack

    def default_adversary(self):
        """Return a DRA whose radius is the mean change per feature."""
        return DRA(eps=2 / 255, eps_unit="mean")

    def default_attack(self) -> PGD:
        """Return the attack that :meth:`score_adversarial` uses by default."""
        attack = super().default_attack()
        if getattr(self._adversary(), "eps_unit", None) == "mean":
            attack.set_params(norm="linf")
        return attack

    # --- schedule ----------------------------------------------------------------------

    def eps_at(self, epoch: int) -> float:
        """Return the radius in an epoch of the fine-tuning.

        Parameters
        ----------
        epoch : int
            Counted from 0.

        Returns
        -------
        float
            In the units of the adversary; 0 in the epochs without adversary.
        """
        start = self._full_radius() if self.eps_start is None else self.eps_start
        end = start / 4 if self.eps_end is None else self.eps_end
        n_epochs = self._adversarial_epochs()
        if epoch >= n_epochs:
            return 0.0
        return start + (end - start) * (epoch / (n_epochs - 1) if n_epochs > 1 else 0.0)

    def _full_radius(self):
        adversary = self._adversary()._resolved()
        if adversary.eps is not None:
            return adversary.eps if isinstance(adversary.eps, float) else np.asarray(adversary.eps)
        if getattr(adversary, "eps_unit", None) == "mean":
            return DEFAULT_MEAN
        return check_eps(None, check_norm(adversary.norm), self.input_shape_)

    def _adversarial_epochs(self):
        if self.decay_epochs is not None:
            return self.decay_epochs
        return -(-5 * self.max_epochs // 6)

    @property
    def _adversarial(self):
        return self.epoch < self._adversarial_epochs()

    @property
    def _steps_per_batch(self):
        return 1 if self.update == "joint" else 2

    # --- training ----------------------------------------------------------------------

    def _check_params(self):
        for name, allowed in (("update", ("alternate", "joint")), ("constraint", (None, "dual"))):
            check_choice(getattr(self, name), name, allowed)
        for name in ("standard_epochs", "decay_epochs"):
            value = getattr(self, name)
            if name == "standard_epochs" or value is not None:
                check_count(value, name, least=0)
        for name in ("lam", "rho", "slack", "standard_lr"):
            check_length(getattr(self, name), name)

    def _train(self, samples, fresh):
        self._check_params()
        with self._session(fresh) as interruptible, interruptible():
            if fresh:
                self._begin_anew()
                self.lam_ = float(self.lam)
                if not self._train_standard(samples):
                    return self
            if self.constraint == "dual" and self.standard_loss_ is None:
                # it was cut short before that was known
                self.standard_loss_ = self._clean_loss(samples)
            own = Radius(self.adversary_)
            try:
                NeuralNet.partial_fit(self, samples, samples.y)
            finally:
                own.restore()
        return self

    def _train_standard(self, samples):
        """Train naturally to begin with; return whether that came to its end."""
        finished = True
        if self.standard_epochs:
            standard = self._standard_classifier()
            standard.fit(samples.X, samples.y, samples.weight)
            put_state(self.module_, standard.module_.state_dict())
            self.standard_history_ = standard.history_
            self.interrupted_ = standard.interrupted_
            finished = self.interrupted_ is None
        self.standard_state_ = copy_of_state(self.module_, "cpu")
        if self.constraint == "dual" and finished:
            self.standard_loss_ = self._clean_loss(samples)
        return finished

    def _standard_classifier(self):
        # what the data are said to be must not be guessed anew from encoded ones
        return standard_version(
            self,
            adversary=PGD(eps=0, clip=None),
            lr=self.standard_lr,
            max_epochs=self.standard_epochs,
            callbacks=self.standard_callbacks,
            classes=np.arange(len(self.classes_inferred_)),
            class_weight=None,  # part of the weights of the samples
            warm_start=False,
            random_state=int(self._rng.randint(np.iinfo(np.int32).max)),
            verbose=max(0, self.verbose - 1),
        )

    def _clean_loss(self, samples):
        """Return the mean loss on clean data in evaluation mode."""
        total, count = 0.0, 0
        self._set_training(False)
        own = self._side_generator()
        for features, y in own.draw(self.get_iterator(samples, training=False)):
            with own.in_use() as interruptible, interruptible(), torch.no_grad():
                logits = self.infer(features)
                total += self._losses(logits, y.to(logits.device)).double().sum()
                count += len(y)
        return float(total) / count

    def on_epoch_begin(self, net, dataset_train=None, dataset_valid=None, **kwargs):
        """Set the radius of the epoch; called by skorch."""
        super().on_epoch_begin(net, dataset_train, dataset_valid, **kwargs)
        self._radius = self.eps_at(self.epoch)

    def on_epoch_end(self, net, dataset_train=None, dataset_valid=None, **kwargs):
        """Record the radius and adjust the weight of the clean loss; called by skorch."""
        super().on_epoch_end(net, dataset_train, dataset_valid, **kwargs)
        self.history_.record("eps", np.asarray(self._radius).tolist())
        if self.constraint == "dual":
            loss = self._clean_loss(dataset_train)
            self.history_.record("clean_loss", loss)
            self.history_.record("lam", self.lam_)
            excess = loss - self.standard_loss_ - self.slack
            self.lam_ = max(0.0, self.lam_ + self.rho * excess)

    def craft(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the adversarial batch; without an adversary in this epoch, the clean one."""
        if not self._adversarial:
            return x
        Radius(self.adversary_).set(self._radius)
        return super().craft(x, y)

    def train_step(self, batch, **fit_params):
        """Take one step on a batch, or one on its clean and one on its adversarial part."""
        if self.update == "joint" or not self._adversarial:
            return super().train_step(batch, **fit_params)
        x, y, weight = self._receive(batch)
        try:
            self._part = _CLEAN
            step = self._take_step(Crafted(x, x, y, weight), **fit_params)
            self._part = _ADVERSARIAL
            crafted = Crafted(x, self.craft(x, y), y, weight)
            second = self._take_step(crafted, **fit_params)
        finally:
            self._part = _BOTH
        # so that both kinds of update report the same
        step["loss"] = step["loss"].detach() + second["loss"].detach()
        return step

    def training_loss(self, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        """Return ``lam * CE(f(x), y) + CE(f(x'), y)``, or that of the present step, shape (n,)."""
        if not self._adversarial:
            return self.classification_loss(self.logits(x), y)
        loss = 0.0
        if self._part != _ADVERSARIAL:
            lam = self.lam if self.constraint is None else self.lam_
            loss = lam * self.classification_loss(self.logits(x), y)
        if self._part != _CLEAN:
            loss = loss + self.classification_loss(self.logits(x_adv), y)
        return loss
