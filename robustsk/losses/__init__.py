"""Per-sample losses and scores used by attacks, defences and metrics.

Every loss maps logits (or cosines) of shape ``(n_samples, n_classes)`` to one value per sample,
shape ``(n_samples,)``. Reduction is left to the caller, because attacks need the sum (so that
samples do not influence one another) and estimators the possibly weighted mean.
"""

from robustsk.losses.adp import adp_loss, adp_regularizer, log_det_diversity
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
from robustsk.losses.compactness import global_compactness, local_compactness
from robustsk.losses.contrastive import (
    contrastive_loss,
    contrastive_selection,
    info_nce,
    nt_xent,
    supervised_contrastive,
    triplet_loss,
)
from robustsk.losses.dverge import dverge_loss, feature_distance
from robustsk.losses.gairat import geometry_weights
from robustsk.losses.gal import gradient_alignment
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
from robustsk.losses.trs import gradient_magnitude, gradient_similarity
from robustsk.losses.wasserstein import (
    smoothed_cost,
    transport_cost,
    transport_cost_gradient,
    truncated_cost,
)

__all__ = [
    "adp_loss",
    "adp_regularizer",
    "adversarial_regularization_loss",
    "boosted_cross_entropy",
    "cce_loss",
    "cce_member_loss",
    "contrastive_loss",
    "contrastive_selection",
    "dlr",
    "dlr_targeted",
    "dverge_loss",
    "ensemble_logits",
    "entropy",
    "feature_distance",
    "geometry_weights",
    "global_compactness",
    "gradient_alignment",
    "gradient_magnitude",
    "gradient_similarity",
    "inconsistency",
    "info_nce",
    "kl_divergence",
    "kl_terms",
    "local_compactness",
    "log_det_diversity",
    "logit_pairing",
    "margin",
    "margin_weights",
    "mart_loss",
    "mmc_loss",
    "nt_xent",
    "prediction_distance",
    "probability_margin",
    "self_paced_consistency",
    "self_paced_gates",
    "self_paced_loss",
    "smoothed_cost",
    "spat_loss",
    "supervised_contrastive",
    "trades_loss",
    "transport_cost",
    "transport_cost_gradient",
    "triplet_loss",
    "truncated_cost",
]
