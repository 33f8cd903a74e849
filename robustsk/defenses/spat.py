"""SPAT: self-paced adversarial training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional as F

from .._validation import check_choice
from ..attacks import PGD, Objective
from ..losses import kl_divergence, self_paced_consistency, self_paced_loss
from ..models import CosineLinear, get_classifier, replace_classifier
from ._prescribed import Prescription
from .base import BaseDefense

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._parameters import DefenseParametersButHead, Network


class SPATClassifier(Prescription, BaseDefense):
    """Self-paced adversarial training on a cosine head.

    The last linear layer is replaced by a normalised one, so that logits are
    ``s * cos_j``. The accuracy term weights each cosine by a gate that is
    computed anew in every forward pass (``g_t = 1 - cos_y + beta`` for the true
    class, ``g_j = cos_j + beta`` for the others); the robustness term asks for
    consistent predictions, most of all where they differ most::

        L = CE(g * s * cos(x), y) + lam * (alpha * KL(p || p') + sum_j k_j**2)
        k_j = p_j * log(p_j / p'_j)

    with ``p`` and ``p'`` the softmax of ``s * cos`` at `x` and at the
    adversarial `x'`, which ascends the same robustness term.

    Parameters
    ----------
    module : str, torch.nn.Module class or instance, default=None
        The network, whose last linear layer is replaced. None means an MLP for
        tables and a small CNN for images; a string names a network of
        :mod:`robustsk.models`.
    s : float, default=5.0
        Scale of the cosines.
    alpha : float, default=0.2
        Weight of the divergence within the robustness term.
    beta : float, default=0.2
        Smoothing of the gates.
    lam : float, default=6.0
        Weight of the robustness term.
    detach_gates : bool, default=False
        Whether to treat gates as constants. The source differentiates them:
        the true logit then peaks at a cosine of ``(1 + beta) / 2``.
    clamp_gates : bool, default=False
        Whether to cut gates off at zero; otherwise a false class with a
        cosine below ``-beta`` has a negative one.
    form : {"literal", "shifted"}, default="literal"
        Gated logits of Eq. 3.10, or those of the first public code release,
        whose true logit increases with the cosine throughout.
    self_paced : bool, default=True
        Ablation (Table 3.7): False sets all gates to 1, which gives plain
        normalised cross-entropy.
    consistency : {"self_paced", "kl"}, default="self_paced"
        Ablation (Table 3.7): "kl" replaces the robustness term by
        ``KL(p || p')`` with weight 1.
    head : {"cosine", "linear"}, default="cosine"
        Ablation (Table 3.8): "linear" keeps the network's own last layer and
        takes gates from the cosines between its weights and its input. With
        ``self_paced=False`` and ``consistency="kl"`` that is TRADES.
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
    TRADESClassifier : Fixed weights and a linear head.

    Notes
    -----
    The small scale `s` weakens the gradient of the cross-entropy, so that PGD
    overestimates the robustness of this defence: compare with an attack on
    the margin, ``PGD(objective="cw")``, as well.

    References
    ----------
    Hou (2022), "Adversarial training for improving the robustness of deep
    neural networks", MSc thesis, University of Alberta, Eqs. 3.9 to 3.15,
    Algorithm 1.

    Examples
    --------
    >>> from robustsk import SPATClassifier
    >>> from robustsk.datasets import load_digits_images
    >>> X, y = load_digits_images(return_X_y=True)
    >>> clf = SPATClassifier(max_epochs=8, adversary__eps=0.1, random_state=0)
    >>> clf = clf.fit(X[:1000], y[:1000])
    >>> bool(clf.score_adversarial(X[1000:1200], y[1000:1200]) > 0.4)
    True
    """

    def __init__(
        self,
        module: Network | None = None,
        *,
        s: float = 5.0,
        alpha: float = 0.2,
        beta: float = 0.2,
        lam: float = 6.0,
        detach_gates: bool = False,
        clamp_gates: bool = False,
        form: str = "literal",
        self_paced: bool = True,
        consistency: str = "self_paced",
        head: str = "cosine",
        **common: Unpack[DefenseParametersButHead],
    ):
        super().__init__(module, **common)
        self.s = s
        self.alpha = alpha
        self.beta = beta
        self.lam = lam
        self.detach_gates = detach_gates
        self.clamp_gates = clamp_gates
        self.form = form
        self.self_paced = self_paced
        self.consistency = consistency
        self.head = head

    def build_module(self, **facts):
        """Return the network with a cosine head."""
        for name, allowed in (
            ("head", ("cosine", "linear")),
            ("consistency", ("self_paced", "kl")),
            ("form", ("literal", "shifted")),
        ):
            check_choice(getattr(self, name), name, allowed)
        module = super().build_module(**facts)
        if self.head == "linear":
            return module
        return replace_classifier(
            module, lambda n_in, n_out: CosineLinear(n_in, n_out, scale=self.s)
        )

    def prescribed(self):
        """Return the start next to the sample, where the gradient does not vanish."""
        return {"random_start": "gaussian"}

    def default_adversary(self):
        """Return a PGD with the start of the source."""
        return PGD(**self.prescribed())

    def _head(self):
        # `head` is a name here, and `build_module` sees to it
        return None

    def attack_objective(self):
        """Return the robustness term."""
        return Objective(self._ascended, needs_clean=True)

    def _ascended(self, logits, y, target, clean):
        if target is not None:
            return -F.cross_entropy(logits, target, reduction="none")
        return self._robustness(clean, logits)

    def _robustness(self, logits, logits_adv):
        if self.consistency == "kl":
            return kl_divergence(logits, logits_adv)
        # Eqs. 3.12 to 3.15
        return self_paced_consistency(logits, logits_adv, self.alpha)

    def craft(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the adversarial batch; without weight on it, the clean one."""
        return x if self.lam == 0 else super().craft(x, y)

    def training_loss(self, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        """Return ``L_acc + lam * L_rob``, shape (n,)."""
        logits, loss = self._accuracy(x, y)
        if self.lam == 0:
            return loss
        # Eq. 3.9
        return loss + self.lam * self._robustness(logits, self.logits(x_adv))

    def _accuracy(self, x, y):
        """Return the logits and the accuracy term."""
        if not self.self_paced:
            logits = self.logits(x)
            return logits, self.classification_loss(logits, y)
        options = {
            "beta": self.beta,
            "detach_gates": self.detach_gates,
            "clamp_gates": self.clamp_gates,
            "form": self.form,
            "classification_loss": self.classification_loss,
        }
        if self.head == "cosine":
            logits = self.logits(x)
            # Eqs. 3.10 and 3.11
            return logits, self_paced_loss(logits / self.s, y, scale=self.s, **options)
        logits, features = self.logits_and_features(x)
        weight = get_classifier(self.module_)[1].weight
        cos = F.linear(F.normalize(features, eps=1e-12), F.normalize(weight, eps=1e-12))
        return logits, self_paced_loss(cos, y, logits=logits, **options)
