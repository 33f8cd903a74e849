"""Per-sample losses and scores used by attacks, defences and metrics.

Every loss maps logits (or cosines) of shape ``(n_samples, n_classes)`` to one value per sample,
shape ``(n_samples,)``. Reduction is left to the caller, because attacks need the sum (so that
samples do not influence one another) and estimators the possibly weighted mean.
"""

from robustsk.losses.adversarial_regularization import (
    adversarial_regularization_loss,
    prediction_distance,
)
from robustsk.losses.alp import logit_pairing
from robustsk.losses.cce import cce_loss, cce_member_loss, ensemble_logits
from robustsk.losses.classification import (
    dlr,
    dlr_targeted,
    entropy,
    kl_divergence,
    kl_terms,
    margin,
)
from robustsk.losses.gairat import geometry_weights
from robustsk.losses.mail import margin_weights, probability_margin
from robustsk.losses.mart import boosted_cross_entropy, mart_loss
from robustsk.losses.mmc import mmc_loss
from robustsk.losses.spat import (
    inconsistency,
    self_paced_consistency,
    self_paced_gates,
    self_paced_loss,
    spat_loss,
)
from robustsk.losses.trades import trades_loss

__all__ = [
    "adversarial_regularization_loss",
    "boosted_cross_entropy",
    "cce_loss",
    "cce_member_loss",
    "dlr",
    "dlr_targeted",
    "ensemble_logits",
    "entropy",
    "geometry_weights",
    "inconsistency",
    "kl_divergence",
    "kl_terms",
    "logit_pairing",
    "margin",
    "margin_weights",
    "mart_loss",
    "mmc_loss",
    "prediction_distance",
    "probability_margin",
    "self_paced_consistency",
    "self_paced_gates",
    "self_paced_loss",
    "spat_loss",
    "trades_loss",
]
