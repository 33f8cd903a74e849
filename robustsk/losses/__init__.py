"""Per-sample losses and scores used by attacks, defences and metrics.

Every loss maps logits (or cosines) of shape ``(n_samples, n_classes)`` to one value per sample,
shape ``(n_samples,)``. Reduction is left to the caller, because attacks need the sum (so that
samples do not influence one another) and estimators the possibly weighted mean.
"""

from robustsk.losses.cce import cce_loss, cce_member_loss, ensemble_logits
from robustsk.losses.classification import (
    dlr,
    dlr_targeted,
    entropy,
    kl_divergence,
    kl_terms,
    margin,
)
from robustsk.losses.spat import (
    inconsistency,
    self_paced_consistency,
    self_paced_gates,
    self_paced_loss,
    spat_loss,
)
from robustsk.losses.trades import trades_loss

__all__ = [
    "cce_loss",
    "cce_member_loss",
    "dlr",
    "dlr_targeted",
    "ensemble_logits",
    "entropy",
    "inconsistency",
    "kl_divergence",
    "kl_terms",
    "margin",
    "self_paced_consistency",
    "self_paced_gates",
    "self_paced_loss",
    "spat_loss",
    "trades_loss",
]
