"""How robust is it, and how sure is that."""

from ._class_pairs import class_pair_gradients, class_pair_shares
from ._distances import (
    PerturbationSize,
    half_accuracy_eps,
    mean_perturbation,
    perturbation_norm,
    r_separation,
)
from ._divergence import (
    RelativeDivergence,
    latent_divergence,
    local_lipschitz,
    relative_divergence,
)
from ._losses import natural_loss, robust_loss
from ._profile import (
    GeneralizationGap,
    PerturbationProfile,
    adversary_profile,
    generalization_gap,
    perturbation_profile,
)
from ._red_flags import RedFlag, red_flags
from ._report import ReportRow, RobustnessReport, robustness_report
from ._scores import (
    AdversarialOutcome,
    RobustAccuracy,
    adversarial_outcome,
    attack_success_rate,
    clopper_pearson_interval,
    robust_accuracy,
    score_adversarial,
)
from ._selection import AdversarialScorer, MostRobust, make_adversarial_scorer
from ._strength import MatchedStrength, match_attack_strength
from ._tasks import TaskSuccess, joint_success_rates, success_rates
from ._transfer import (
    GradientCosines,
    SecureRegions,
    gradient_cosines,
    secure_regions,
    transferability_matrix,
)
from ._wasserstein import (
    WassersteinDual,
    sinkhorn_distance,
    wasserstein_dual,
    wrm_certificate,
)

__all__ = [
    "AdversarialOutcome",
    "AdversarialScorer",
    "GeneralizationGap",
    "GradientCosines",
    "MatchedStrength",
    "MostRobust",
    "PerturbationProfile",
    "PerturbationSize",
    "RedFlag",
    "RelativeDivergence",
    "ReportRow",
    "RobustAccuracy",
    "RobustnessReport",
    "SecureRegions",
    "TaskSuccess",
    "WassersteinDual",
    "adversarial_outcome",
    "adversary_profile",
    "attack_success_rate",
    "class_pair_gradients",
    "class_pair_shares",
    "clopper_pearson_interval",
    "generalization_gap",
    "gradient_cosines",
    "half_accuracy_eps",
    "joint_success_rates",
    "latent_divergence",
    "local_lipschitz",
    "make_adversarial_scorer",
    "match_attack_strength",
    "mean_perturbation",
    "natural_loss",
    "perturbation_norm",
    "perturbation_profile",
    "r_separation",
    "red_flags",
    "relative_divergence",
    "robust_accuracy",
    "robust_loss",
    "robustness_report",
    "score_adversarial",
    "secure_regions",
    "sinkhorn_distance",
    "success_rates",
    "transferability_matrix",
    "wasserstein_dual",
    "wrm_certificate",
]
