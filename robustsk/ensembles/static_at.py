"""Ensemble adversarial training: one network and the examples of others that stand still."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from skorch import NeuralNet
from torch import Tensor

from .._validation import check_count, check_length
from ..attacks import PGD
from ..defenses._prediction import RawInput
from ..defenses.base import BaseDefense
from ..defenses.standard import standard_version
from ..victims.ensemble import Member
from ..victims.resolve import as_victim
from .base import another_start, column_order, columns_of, tell_facts

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..defenses._parameters import DefenseParameters, Network

#: How many networks are trained where none are given.
N_SOURCES = 2


class StaticEnsembleATClassifier(BaseDefense):
    """Ensemble adversarial training with static models.

    One network, trained on clean samples and on adversarial ones that come from an
    ensemble: from the network itself, and from fitted models that stay as they
    are. Each batch takes one of them in turn. Minimises ``CE(f(x), y) + beta *
    CE(f(x'), y)``, where `x'` is crafted against the model whose turn it is.
    A network that learns from its own examples only can learn to make them weak,
    by bending its gradients; it cannot do so with the examples of others.

    Parameters
    ----------
    %(first_parameter)s
    sources : list of fitted classifiers, default=None
        The static models: whatever attacks that follow gradients can attack,
        with the classes of the data. Wrap them in
        `sklearn.frozen.FrozenEstimator` where this estimator will be cloned, in
        a search for instance. None means two networks of the kind `module`,
        trained naturally on the same data beforehand. An empty list leaves the
        network to itself.
    source_epochs : int, default=20
        Epochs of that natural training; everything else is as in the training of
        the network.
    beta : float, default=1.0
        Weight of the loss on adversarial samples.
    %(shared_parameters)s

    %(shared_attributes)s
    sources_ : list
        The static models: those given, or fitted :class:`robustsk.defenses.StandardClassifier`.

    See Also
    --------
    robustsk.defenses.MixedATClassifier : Without the static models.
    EnsembleAT : Trains an ensemble, all of it.

    Notes
    -----
    Its purpose is robustness to examples from elsewhere, of an adversary without
    access to the network. With a one-step attack, for which it was made, the network
    remains vulnerable to iterated attacks on itself. The static models keep their
    parameters; what `partial_fit` and a warm start go on with are the same models.

    The source draws the model at random for each batch, and its loss is the mean of
    the two terms.

    References
    ----------
    Tramèr, Kurakin, Papernot, Goodfellow, Boneh and McDaniel (2018), "Ensemble
    adversarial training: attacks and defenses", ICLR, Sec. 3.4.

    Examples
    --------
    >>> from robustsk import StandardClassifier
    >>> from robustsk.datasets import load_digits_images
    >>> from robustsk.ensembles import StaticEnsembleATClassifier
    >>> X, y = load_digits_images(return_X_y=True, as_flat=True)
    >>> other = StandardClassifier(max_epochs=3, random_state=1).fit(X[:1000], y[:1000])
    >>> clf = StaticEnsembleATClassifier(
    ...     sources=[other], max_epochs=8, adversary__eps=0.1, random_state=0
    ... ).fit(X[:1000], y[:1000])
    >>> bool(clf.score_adversarial(X[1000:1200], y[1000:1200]) > 0.4)
    True
    """

    _of_a_session = (*BaseDefense._of_a_session, "_attacked")
    _attacked = None
    _turn = 0
    sources_ = None

    def __init__(
        self,
        module: Network | None = None,
        *,
        sources: Sequence[Any] | None = None,
        source_epochs: int = 20,
        beta: float = 1.0,
        **common: Unpack[DefenseParameters],
    ):
        super().__init__(module, **common)
        self.sources = sources
        self.source_epochs = source_epochs
        self.beta = beta

    def _network(self, source, i):
        """Return a static model as a network in the place of our own."""
        victim = as_victim(source, attack=type(self).__name__)
        known = columns_of(source, victim)
        order = None
        if known is not None:
            order = column_order(known, self.classes_inferred_, f"sources[{i}]")
        tensor = next(self.module_.parameters(), None)
        victim = victim.to(None if tensor is None else tensor.device)
        return RawInput(Member(victim.module, victim.dtype, order), self._sample_shape)

    def _train(self, samples, fresh):
        check_length(self.beta, "beta")
        check_count(self.source_epochs, "source_epochs")
        given = self.sources
        if given is not None and not isinstance(given, (list, tuple)):
            raise TypeError(f"sources must be None or a list of fitted classifiers, got {given!r}.")
        self._attacked = None
        with self._session(fresh) as interruptible, interruptible():
            if fresh:
                self._begin_anew()
                self._turn = 0
            if fresh or self.sources_ is None:
                self.sources_ = [] if given is None else list(given)
                if given is None and not self._train_sources(samples):
                    return self
            NeuralNet.partial_fit(self, samples, samples.y)
        return self

    def _train_sources(self, samples):
        """Train the static models; return whether that came to its end."""
        for i in range(N_SOURCES):
            with self._drawing():
                module = another_start(self.module) if i else self.module
            # what the data are said to be must not be guessed anew from encoded ones
            source = standard_version(
                self,
                module=module,
                adversary=PGD(eps=0, clip=None),
                classes=np.arange(len(self.classes_inferred_)),
                max_epochs=self.source_epochs,
                class_weight=None,  # part of the weights of the samples
                warm_start=False,
                random_state=int(self._rng.randint(np.iinfo(np.int32).max)),
                verbose=max(0, self.verbose - 1),
            ).fit(samples.X, samples.y, samples.weight)
            vars(source).update(
                adversary=self._adversary(),
                classes=self.classes,
                class_weight=self.class_weight,
            )
            tell_facts(self, source)
            self.sources_.append(source)
            self.interrupted_ = source.interrupted_
            if self.interrupted_ is not None:
                return False
        return True

    def craft(self, x: Tensor, y: Tensor) -> Tensor:
        """Return examples against the model whose turn it is; without weight on them, `x`."""
        if self.beta == 0:
            return x
        if self._attacked is None:
            networks = [self._network(source, i) for i, source in enumerate(self.sources_ or ())]
            self._attacked = [self.module_, *networks]
        network = self._attacked[self._turn % len(self._attacked)]
        self._turn += 1
        return self.perturb(network, x, y)

    def training_loss(self, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        """Return ``CE(f(x), y) + beta * CE(f(x'), y)``, shape (n,)."""
        loss = self.classification_loss(self.logits(x), y)
        if self.beta == 0:
            return loss
        return loss + self.beta * self.classification_loss(self.logits(x_adv), y)
