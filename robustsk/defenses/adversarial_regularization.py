"""Adversarial regularisation: a robust loss and a smooth output from one perturbation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional as F

from .._validation import check_choice, check_length
from ..attacks import PGD, Objective
from ..losses import prediction_distance
from ._prescribed import Prescription
from .base import BaseDefense

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._parameters import DefenseParameters, Network


class AdversarialRegularizationClassifier(Prescription, BaseDefense):
    """Adversarial regularisation: TRADES with a robust classification loss.

    Minimises ``max_{x'} CE(f(x'), y) + lam * KL(p(x) || p(x'))``, where one and
    the same `x'` ascends the whole objective. There is no cross-entropy of
    clean samples: they matter by the divergence only. With ``lam=0`` it is
    :class:`PGDATClassifier`.

    Parameters
    ----------
    %(first_parameter)s
    lam : float, default=5.0
        Weight of the divergence. The source tries 0.1 to 5, with more
        robustness and less clean accuracy the larger it is.
    attack_lam : float, default=None
        Weight of the divergence in what the adversary ascends. None means
        `lam`; 0 is an adversary that ascends the cross-entropy.
    kl_direction : {"nat_to_adv", "adv_to_nat", "symmetric", "tv"}, default="nat_to_adv"
        The divergence: from the clean to the attacked prediction, the
        opposite, the sum of both, or the total variation.
    detach_natural : bool, default=False
        Whether the clean prediction is a constant for the gradient.
    adversary : attack, default=None
        What makes the adversarial examples in training, and the threat model
        that `score_adversarial` assumes. None means a 10-step PGD with
        ``eps=8/255``. It starts at the sample, whichever attack is
        given: ``adversary=PGD(eps=0.3)`` does so too. Another start is one that
        is not the attack's own default, or is said to this estimator:
        ``adversary__random_start="uniform"``. Its randomness comes from the
        `random_state` of this estimator.
    %(shared_parameters)s

    %(shared_attributes)s

    See Also
    --------
    TRADESClassifier : With the cross-entropy of clean samples.
    PGDATClassifier : Without the divergence.

    Notes
    -----
    The adversary starts at the sample itself (``random_start="none"``) as in
    the source, so that the first step is that of the cross-entropy whatever
    `lam` is. The source reports more robustness and less clean accuracy than
    TRADES at each `lam`, from one run each; a difference of a point between
    the two is within their spread.

    References
    ----------
    Zhang (2019), "Enhancing adversarial robustness of deep neural networks",
    MEng thesis, MIT, Sec. 4.1.3, Algorithm 3, Tables 4.1 and 4.2; Sec. 6.3 for
    the other divergences.

    Examples
    --------
    >>> from robustsk import AdversarialRegularizationClassifier
    >>> from robustsk.datasets import load_digits_images
    >>> X, y = load_digits_images(return_X_y=True)
    >>> clf = AdversarialRegularizationClassifier(
    ...     lam=1, max_epochs=8, adversary__eps=0.1, random_state=0
    ... ).fit(X[:1000], y[:1000])
    >>> bool(clf.score_adversarial(X[1000:1200], y[1000:1200]) > 0.4)
    True
    """

    def __init__(
        self,
        module: Network | None = None,
        *,
        lam: float = 5.0,
        attack_lam: float | None = None,
        kl_direction: str = "nat_to_adv",
        detach_natural: bool = False,
        **common: Unpack[DefenseParameters],
    ):
        super().__init__(module, **common)
        self.lam = lam
        self.attack_lam = attack_lam
        self.kl_direction = kl_direction
        self.detach_natural = detach_natural

    def prescribed(self):
        """Return the start at the sample."""
        return {"random_start": "none"}

    def default_adversary(self):
        """Return a PGD with the start of the source."""
        return PGD(**self.prescribed())

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        """Check the parameters; called by skorch."""
        super().on_train_begin(net, X, y, **kwargs)
        check_length(self.lam, "lam")
        check_length(self._attack_lam, "attack_lam")
        check_choice(
            self.kl_direction, "kl_direction", ("nat_to_adv", "adv_to_nat", "symmetric", "tv")
        )

    @property
    def _attack_lam(self):
        return self.lam if self.attack_lam is None else self.attack_lam

    def attack_objective(self):
        """Return ``CE + attack_lam * KL``."""
        return "ce" if self._attack_lam == 0 else Objective(self._ascended, needs_clean=True)

    def _ascended(self, logits, y, target, clean):
        if target is not None:
            return -F.cross_entropy(logits, target, reduction="none")
        distance = prediction_distance(clean, logits, self.kl_direction)
        return F.cross_entropy(logits, y, reduction="none") + self._attack_lam * distance

    def training_loss(self, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        """Return ``CE(f(x'), y) + lam * KL(p(x) || p(x'))``, shape (n,)."""
        if self.lam == 0:
            return self.classification_loss(self.logits(x_adv), y)
        logits, logits_adv = self.logits(x), self.logits(x_adv)
        if self.detach_natural:
            logits = logits.detach()
        distance = prediction_distance(logits, logits_adv, self.kl_direction)
        return self.classification_loss(logits_adv, y) + self.lam * distance
