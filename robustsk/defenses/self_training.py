"""Robust self-training: unlabelled data make up for what robustness needs more of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from .._validation import check_length
from ..attacks.base import BaseAttack
from ..attacks.noise import Stream
from ._self_training import SelfTraining
from .trades import TRADESClassifier

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..attacks._parameters import AttackParameters
    from ._parameters import DefenseParameters, Network


class RobustSelfTrainingClassifier(SelfTraining, TRADESClassifier):
    """Robust self-training (RST): TRADES on labelled and pseudo-labelled samples.

    Unlabelled samples are those whose label is -1, as in
    :mod:`sklearn.semi_supervised`. A network is trained on the labelled samples
    by cross-entropy and labels the others; a new one then minimises on all
    ``CE(f(x), y) + beta * KL(p(x) || p(x'))``, where `x'` is an adversarial
    example, or noisy.

    Parameters
    ----------
    %(first_parameter)s
    regularizer : {"adversarial", "stability"}, default="adversarial"
        Whether `x'` ascends the divergence, as in TRADES, or is
        ``x + sigma * N(0, I)``, cut off at the valid range. The second is made
        for randomized smoothing.
    beta : float, default=6.0
        Weight of the divergence.
    form : {"multiclass", "binary"}, default="multiclass"
        As in :class:`TRADESClassifier`.
    unlabeled_weight : float, default=None
        Weight of an unlabelled sample, where that of a labelled one is 1. None
        gives both kinds the same weight in total, as in the source, which has
        0.1 for 50 000 labelled and 500 000 unlabelled samples. With 0 the
        unlabelled samples are left out.
    sigma : float, default=0.25
        Standard deviation of the noise of "stability", in the units of the
        data.
    adversary : attack, default=None
        What makes the adversarial examples in training, and the threat model
        that `score_adversarial` assumes. None means a 10-step PGD with
        ``eps=8/255``. As in :class:`TRADESClassifier` it starts next to the
        sample, whichever attack is given, unless it has another start than its
        own default or `adversary__random_start` is given. Its randomness comes
        from the `random_state` of this estimator.
    %(shared_parameters)s

    %(shared_attributes)s
    transduction_ : ndarray of shape (n_samples,)
        The labels of the training samples, given or found; of those with a
        positive weight.

    See Also
    --------
    TRADESClassifier : What it is without unlabelled samples.

    Notes
    -----
    The network that labels is trained with the same settings but for
    callbacks, and for as many epochs as make as many steps. Half of every
    batch is labelled, half is not, and both are drawn in a random
    order without end. An epoch has as many draws as there are samples, so that
    where one kind is rare its samples are seen more than once. Validation data
    of `train_split` are a part of all, pseudo-labelled ones included.

    Among string labels the mark is -1 or "-1". If the labels would be a single
    class without -1, or -1 is among `classes`, -1 is a label like any other:
    binary labels are often -1 and 1. In `partial_fit` after the first call the
    network itself labels. The weights of `class_weight` for unlabelled samples
    are 1.

    References
    ----------
    Carmon, Raghunathan, Schmidt, Liang and Duchi (2019), "Unlabeled data
    improves adversarial robustness", Eqs. 5 to 7; its code draws half batches
    and cuts the noise off in training.

    Examples
    --------
    >>> import numpy as np
    >>> from robustsk import RobustSelfTrainingClassifier
    >>> from robustsk.datasets import load_digits_images
    >>> X, y = load_digits_images(return_X_y=True)
    >>> y_partly = np.where(np.arange(1000) < 300, y[:1000], -1)
    >>> clf = RobustSelfTrainingClassifier(max_epochs=8, adversary__eps=0.1, random_state=0)
    >>> clf = clf.fit(X[:1000], y_partly)
    >>> bool((clf.transduction_ == y[:1000]).mean() > 0.8)
    True
    """

    def __init__(
        self,
        module: Network | None = None,
        *,
        regularizer: str = "adversarial",
        beta: float = 6.0,
        form: str = "multiclass",
        unlabeled_weight: float | None = None,
        sigma: float = 0.25,
        **common: Unpack[DefenseParameters],
    ):
        super().__init__(module, beta=beta, form=form, **common)
        self.regularizer = regularizer
        self.unlabeled_weight = unlabeled_weight
        self.sigma = sigma

    def craft(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the adversarial or noisy batch; without weight on it, the clean one."""
        if self.beta == 0 or self.regularizer == "adversarial":
            return super().craft(x, y)
        noise = self.like_adversary(_GaussianNoise, sigma=self.sigma)
        return self.perturb(self.module_, x, y, objective="ce", adversary=noise)

    def _prepare(self, X, y, sample_weight, **options):
        if self.regularizer not in ("adversarial", "stability"):
            raise ValueError(
                f"regularizer must be 'adversarial' or 'stability', got {self.regularizer!r}."
            )
        for name in ("beta", "sigma"):
            check_length(getattr(self, name), name)
        return super()._prepare(X, y, sample_weight, **options)


class _GaussianNoise(BaseAttack):
    """Normal noise, within the valid range but not within any ball."""

    def __init__(
        self, estimator: Any = None, *, sigma: float = 0.25, **common: Unpack[AttackParameters]
    ):
        super().__init__(estimator, **common)
        self.sigma = sigma

    def _attack_batch(self, batch):
        return batch.ball.clamp(batch.x + self.sigma * batch.noise.normal(Stream.START))
