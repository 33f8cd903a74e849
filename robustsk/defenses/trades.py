"""TRADES: accuracy traded for robustness by one number."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn.functional import softplus

from .._validation import check_choice
from ..attacks import PGD
from ..attacks.objectives import OBJECTIVES, Objective
from ..losses import kl_divergence
from ._prescribed import Prescription
from .base import BaseDefense

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._parameters import DefenseParameters, Network


def _difference(logits):
    """Return the output of which the sign is the prediction, shape (n,)."""
    return logits[:, 1] - logits[:, 0]


def _less_agreement(logits, y, target, clean):
    if target is not None:  # as for the divergence
        return OBJECTIVES["ce"](logits, y, target)
    # any surrogate falls, and is largest where its argument is smallest, but may be flat there
    return -_difference(clean) * _difference(logits)


#: What the inner maximisation of the binary form ascends, Eq. 3.
_AGAINST_THE_SIGN = Objective(_less_agreement, needs_clean=True)


class TRADESClassifier(Prescription, BaseDefense):
    """TRADES: fit the clean data and keep predictions constant around them.

    Minimises ``CE(f(x), y) + beta * KL(p(x) || p(x'))``, where `x'` ascends the
    divergence, starting from ``x + 0.001 * N(0, I)`` because its gradient
    vanishes at `x`. `beta` is 1/lambda in the paper.

    Parameters
    ----------
    %(first_parameter)s
    beta : float, default=6.0
        Weight of the divergence; 0 is natural training.
    form : {"multiclass", "binary"}, default="multiclass"
        For two classes "binary" minimises ``phi(f(x) y) + phi(beta * f(x) f(x'))``, where `y`
        is -1 or 1, `f` the one logit of the network or the difference of its two, `phi` the
        logistic loss, and `x'` makes the second term large: the change of sign. The
        first term is that of `criterion`.
    adversary : attack, default=None
        What makes the adversarial examples in training, and the threat model
        that `score_adversarial` assumes. None means a 10-step PGD with
        ``eps=8/255``. It starts next to the sample, whichever attack is
        given: ``adversary=PGD(eps=0.3)`` does so too. Another start is one that
        is not the attack's own default, or is said to this estimator:
        ``adversary__random_start="uniform"``. Its randomness comes from the
        `random_state` of this estimator.
    %(shared_parameters)s

    %(shared_attributes)s

    See Also
    --------
    SPATClassifier : A self-paced form on the hypersphere.

    References
    ----------
    Zhang, Yu, Jiao, Xing, El Ghaoui and Jordan (2019), "Theoretically
    principled trade-off between robustness and accuracy", Eq. 5 and
    Algorithm 1; Eq. 3 for two classes. The gradient flows through both arguments of the divergence,
    as in the authors' code.

    Examples
    --------
    >>> from robustsk import TRADESClassifier
    >>> from robustsk.datasets import load_digits_images
    >>> X, y = load_digits_images(return_X_y=True)
    >>> clf = TRADESClassifier(beta=3, max_epochs=8, adversary__eps=0.1, random_state=0)
    >>> clf = clf.fit(X[:1000], y[:1000])
    >>> bool(clf.score_adversarial(X[1000:1200], y[1000:1200]) > 0.4)
    True
    """

    def __init__(
        self,
        module: Network | None = None,
        *,
        beta: float = 6.0,
        form: str = "multiclass",
        **common: Unpack[DefenseParameters],
    ):
        super().__init__(module, **common)
        self.beta = beta
        self.form = form

    def prescribed(self):
        """Return the start next to the sample, where the gradient does not vanish."""
        return {"random_start": "gaussian"}

    def default_adversary(self):
        """Return a PGD with the start of the source."""
        return PGD(**self.prescribed())

    def attack_objective(self):
        """Return "kl", or for two classes what makes the product of the outputs small."""
        check_choice(self.form, "form", ("multiclass", "binary"))
        if self.form == "multiclass":
            return "kl"
        if len(self.classes_inferred_) != 2:
            raise ValueError(
                f"form='binary' is for two classes, and y has {len(self.classes_inferred_)}: leave "
                "form at its default, 'multiclass'."
            )
        return _AGAINST_THE_SIGN

    def craft(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the adversarial batch; without weight on it, the clean one."""
        return x if self.beta == 0 else super().craft(x, y)

    def training_loss(self, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        """Return ``CE(f(x), y) + beta * KL(p(x) || p(x'))``, or the binary form; shape (n,)."""
        logits = self.logits(x)
        loss = self.classification_loss(logits, y)
        if self.beta == 0:
            return loss
        if self.form == "binary":
            # Eq. 3, of which the first term is the cross-entropy
            product = _difference(logits) * _difference(self.logits(x_adv))
            return loss + softplus(-self.beta * product)
        # Eq. 5; the paper divides by lambda = 1 / beta
        return loss + self.beta * kl_divergence(logits, self.logits(x_adv))
