"""ADR: adversarial training with compact representations."""

from __future__ import annotations

import numbers
from typing import TYPE_CHECKING

from torch import Tensor

from .._validation import check_choice, check_length
from ..attacks.objectives import REVERSE_KL
from ..losses import (
    entropy,
    global_compactness,
    global_smoothness,
    kl_divergence,
    local_compactness,
)
from ..models import get_layer
from ._records import EpochMeans
from .base import BaseDefense

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._parameters import DefenseParameters, Network

#: What each preset takes where a parameter is None.
_PRESETS = {
    None: {"pairs": "clean", "detach_clean": False, "entropy_of": "both", "ce_weight": 1.0},
    "released": {
        "pairs": "clean_adv",
        "detach_clean": True,
        "entropy_of": "adv",
        "ce_weight": 0.5,
    },
}


class ADRClassifier(EpochMeans, BaseDefense):
    """ADR: adversarial training that makes representations locally and globally compact.

    Adds to the cross-entropy of clean and adversarial samples terms on the
    representations `z` and `z'` of both and on the predictions `p` and `p'`::

        CE(f(x), y) + CE(f(x'), y)
            + lam_lc * ||z - z'||_p                        local compactness
            + lam_gb * mean_j w_ij * ||z_i - z_j||_p       global compactness
            + lam_smt * KL(p || p')                        smoothness
            + lam_conf * (H(p) + H(p'))                    confidence

    where `H` is the entropy and `w_ij` is 1 for two samples of a class and
    ``(alpha - 1) / alpha``, a little below zero, for others. The variants of the
    source are

    ===============  =========================================================
    ADR-None         all weights 0: mixed adversarial training
    ADR+LC           `lam_lc` only
    ADR+LC/GB        `lam_lc` and `lam_gb`
    ADR+LC/GB/CA     all, CA standing for the last two terms
    ADR-ADV          ``objective="ce"``
    ADR-TRADES       ``objective="kl"``
    ===============  =========================================================

    Parameters
    ----------
    %(first_parameter)s
    lam_lc : float, default=1.0
        Weight of local compactness.
    lam_gb : float, default=1.0
        Weight of global compactness.
    lam_smt : float, default=1.0
        Weight of smoothness.
    lam_conf : float, default=0.0
        Weight of confidence. The source has 0 for MNIST and for ResNets on
        CIFAR-10, 1 for its CNN there, and 0 or 1 for all weights.
    lam_gb_smt : float, default=0.0
        Weight of ``mean_j w_ij * KL(p_i || p'_j)``, smoothness over all pairs of a batch. It
        is a term of the authors' code alone, with a weight of 1 in its scripts and 0 by default.
    alpha : float, default=0.99
        Decides the weight of pairs of different classes, in (0, 1]; 1 leaves
        them out.
    p : float, default=1
        Order of the norm of representations: a number of at least 1, or
        infinity.
    latent_reduction : {"mean", "sum"}, default="mean"
        "sum" is the norm as it is; "mean" divides it by
        ``n_features ** (1 / p)``, so that weights mean the same whatever the
        size of the layer.
    layer : str, default=None
        Name of the layer whose output is the representation, as in
        ``module.named_modules()``. None means what enters the last linear
        layer. The source takes the output of the last convolution in its CNNs,
        ``"features.10"`` in ``"small_cnn"``.
    objective : {"ce", "kl"}, default="ce"
        What the adversary ascends: the cross-entropy, or the divergence of
        predictions.
    kl_direction : {"reverse", "forward"}, default="reverse"
        Which divergence that is: ``KL(p' || p)`` as the source prints it, or
        ``KL(p || p')`` as in :class:`TRADESClassifier`. The loss has the latter
        in any case.
    preset : {None, "released"}, default=None
        Which reading is meant where one of the four parameters below is None:
        that of the equations, or that of the authors' code.
    pairs : {None, "clean", "clean_adv", "all"}, default=None
        What global compactness compares: clean samples with clean ones, clean
        with adversarial ones, or all with all. None means "clean", and
        "clean_adv" with the preset.
    detach_clean : bool, default=None
        Whether the clean representations and predictions are constants in all
        terms but the cross-entropy and the entropy, so that only the
        adversarial side moves. None means False, and True with the preset.
    entropy_of : {None, "both", "adv"}, default=None
        Whose entropy it is. None means "both", and "adv" with the preset.
    ce_weight : float, default=None
        Weight of each of the two cross-entropies. None means 1, and 0.5 with
        the preset.
    %(shared_parameters)s

    %(shared_attributes)s

    See Also
    --------
    ASCLClassifier : Compares representations by their directions.
    MixedATClassifier : All weights 0.
    robustsk.metrics.latent_divergence : How compact representations are.

    Notes
    -----
    The source does not say which norm it means. Its authors' code has the
    defaults of `p` and `latent_reduction` (TensorFlow and PyTorch alike), and for
    smoothness a cross-entropy of the two predictions whose gradient is that of
    the divergence. The unscaled norm grows with the width of the layer: with
    weights of 1 it outweighs the cross-entropy in a wide one, and the network
    collapses to one point.

    Global compactness has no lower bound: with ``alpha < 1`` it falls when all
    representations grow. `history_` holds the means of both terms of each epoch,
    without weights, as "local_compactness" and "global_compactness"; if the
    latter goes far below zero, raise `alpha` or lower `lam_gb`.

    Sample weights count in pairs too, so that a sample of weight 2 is two.

    References
    ----------
    Bui, Le, Zhao, Montague, deVel, Abraham and Phung (2020), "Improving
    adversarial robustness by enforcing local and global compactness", ECCV,
    Eqs. 1 to 7, and the supplement for the weights; Bui (2023), "Enhancing
    adversarial robustness: representation, ensemble, and distribution
    approaches", PhD thesis, Monash University, Sec. 3.3.

    Examples
    --------
    >>> from robustsk import ADRClassifier
    >>> from robustsk.datasets import load_digits_images
    >>> X, y = load_digits_images(return_X_y=True)
    >>> clf = ADRClassifier(max_epochs=8, adversary__eps=0.1, random_state=0)
    >>> clf = clf.fit(X[:1000], y[:1000])
    >>> bool(clf.score_adversarial(X[1000:1200], y[1000:1200]) > 0.4)
    True
    """

    _of_a_session = (*BaseDefense._of_a_session, "_reported", "_totals")

    def __init__(
        self,
        module: Network | None = None,
        *,
        lam_lc: float = 1.0,
        lam_gb: float = 1.0,
        lam_smt: float = 1.0,
        lam_conf: float = 0.0,
        lam_gb_smt: float = 0.0,
        alpha: float = 0.99,
        p: float = 1,
        latent_reduction: str = "mean",
        layer: str | None = None,
        objective: str = "ce",
        kl_direction: str = "reverse",
        preset: str | None = None,
        pairs: str | None = None,
        detach_clean: bool | None = None,
        entropy_of: str | None = None,
        ce_weight: float | None = None,
        **common: Unpack[DefenseParameters],
    ):
        super().__init__(module, **common)
        self.lam_lc = lam_lc
        self.lam_gb = lam_gb
        self.lam_smt = lam_smt
        self.lam_conf = lam_conf
        self.lam_gb_smt = lam_gb_smt
        self.alpha = alpha
        self.p = p
        self.latent_reduction = latent_reduction
        self.layer = layer
        self.objective = objective
        self.kl_direction = kl_direction
        self.preset = preset
        self.pairs = pairs
        self.detach_clean = detach_clean
        self.entropy_of = entropy_of
        self.ce_weight = ce_weight

    def attack_objective(self):
        """Return "ce", or the divergence in the direction that was chosen."""
        if self.objective == "kl" and self.kl_direction == "reverse":
            return REVERSE_KL
        return self.objective

    def _read(self, name):
        """Return the value of a parameter, or that of the preset."""
        value = getattr(self, name)
        return _PRESETS[self.preset][name] if value is None else value

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        """Check the parameters; called by skorch."""
        super().on_train_begin(net, X, y, **kwargs)
        check_choice(self.preset, "preset", tuple(_PRESETS))
        for name in ("lam_lc", "lam_gb", "lam_smt", "lam_conf", "lam_gb_smt"):
            check_length(getattr(self, name), name)
        check_length(self._read("ce_weight"), "ce_weight")
        for name, allowed in (
            ("objective", ("ce", "kl")),
            ("kl_direction", ("reverse", "forward")),
            ("latent_reduction", ("mean", "sum")),
            ("pairs", (None, "clean", "clean_adv", "all")),
            ("entropy_of", (None, "both", "adv")),
            ("detach_clean", (None, False, True)),
        ):
            check_choice(getattr(self, name), name, allowed)
        if not isinstance(self.alpha, numbers.Real) or not 0 < self.alpha <= 1:
            raise ValueError(f"alpha must be a number in (0, 1], got {self.alpha!r}.")
        if not isinstance(self.p, numbers.Real) or not self.p >= 1:
            raise ValueError(f"p must be a number of at least 1, or infinity, got {self.p!r}.")
        if self.layer is not None:
            get_layer(self.module_, self.layer)

    def training_loss(self, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        """Return the sum of all terms, shape (n,)."""
        compact = self.lam_lc > 0 or self.lam_gb > 0
        if compact:
            logits, z = self.logits_and_features(x, self.layer)
            logits_adv, z_adv = self.logits_and_features(x_adv, self.layer)
        else:
            logits, logits_adv = self.logits(x), self.logits(x_adv)
        # Eq. 4
        loss = self.classification_loss(logits, y) + self.classification_loss(logits_adv, y)
        loss = self._read("ce_weight") * loss
        if self.lam_conf > 0:
            # Eq. 5
            loss = loss + self.lam_conf * entropy(logits_adv)
            if self._read("entropy_of") == "both":
                loss = loss + self.lam_conf * entropy(logits)
        detach = self._read("detach_clean")
        clean = logits.detach() if detach else logits
        if self.lam_smt > 0:
            # Eq. 6
            loss = loss + self.lam_smt * kl_divergence(clean, logits_adv)
        if self.lam_gb_smt > 0:
            loss = loss + self.lam_gb_smt * global_smoothness(
                clean, logits_adv, y, self.alpha, sample_weight=self.batch_weight
            )
        # Eq. 7
        return loss + self._compactness(z.detach() if detach else z, z_adv, y) if compact else loss

    def _compactness(self, z, z_adv, y):
        """Return the terms on representations, shape (n,)."""
        loss, means = 0.0, {}
        if self.lam_lc > 0:
            # Eq. 1
            value = local_compactness(z, z_adv, self.p, self.latent_reduction)
            loss = loss + self.lam_lc * value
            means["local_compactness"] = value.mean()
        if self.lam_gb > 0:
            # Eqs. 2 and 3
            value = global_compactness(
                z,
                y,
                z_adv,
                self.alpha,
                self.p,
                self.latent_reduction,
                self._read("pairs"),
                sample_weight=self.batch_weight,
            )
            loss = loss + self.lam_gb * value
            means["global_compactness"] = value.mean()
        self.report(len(y), **means)
        return loss
