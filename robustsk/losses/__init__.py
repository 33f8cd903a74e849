"""Per-sample losses and scores used by attacks, defences and metrics.

Every loss maps logits (or cosines) of shape ``(n_samples, n_classes)`` to one value per sample,
shape ``(n_samples,)``. Reduction is left to the caller, because attacks need the sum (so that
samples do not influence one another) and estimators the possibly weighted mean.
"""

from .._shared import export_all as _export_all
from .adp import adp_loss as adp_loss
from .adp import adp_regularizer as adp_regularizer
from .adp import log_det_diversity as log_det_diversity
from .adversarial_regularization import (
    adversarial_regularization_loss as adversarial_regularization_loss,
)
from .adversarial_regularization import prediction_distance as prediction_distance
from .alp import logit_pairing as logit_pairing
from .cce import cce_loss as cce_loss
from .cce import cce_member_loss as cce_member_loss
from .cce import ensemble_logits as ensemble_logits
from .classification import dlr as dlr
from .classification import dlr_targeted as dlr_targeted
from .classification import entropy as entropy
from .classification import kl_divergence as kl_divergence
from .classification import kl_terms as kl_terms
from .classification import margin as margin
from .compactness import global_compactness as global_compactness
from .compactness import global_smoothness as global_smoothness
from .compactness import local_compactness as local_compactness
from .contrastive import contrastive_loss as contrastive_loss
from .contrastive import contrastive_selection as contrastive_selection
from .contrastive import info_nce as info_nce
from .contrastive import nt_xent as nt_xent
from .contrastive import supervised_contrastive as supervised_contrastive
from .contrastive import triplet_loss as triplet_loss
from .dverge import dverge_loss as dverge_loss
from .dverge import feature_distance as feature_distance
from .gairat import geometry_weights as geometry_weights
from .gal import gradient_alignment as gradient_alignment
from .mail import margin_weights as margin_weights
from .mail import probability_margin as probability_margin
from .mart import boosted_cross_entropy as boosted_cross_entropy
from .mart import mart_loss as mart_loss
from .mmc import mmc_loss as mmc_loss
from .spat import inconsistency as inconsistency
from .spat import self_paced_consistency as self_paced_consistency
from .spat import self_paced_gates as self_paced_gates
from .spat import self_paced_loss as self_paced_loss
from .spat import spat_loss as spat_loss
from .trades import binary_trades_loss as binary_trades_loss
from .trades import trades_loss as trades_loss
from .trs import gradient_magnitude as gradient_magnitude
from .trs import gradient_similarity as gradient_similarity
from .wasserstein import smoothed_cost as smoothed_cost
from .wasserstein import transport_cost as transport_cost
from .wasserstein import transport_cost_gradient as transport_cost_gradient
from .wasserstein import truncated_cost as truncated_cost

_export_all(globals())
