"""How robust is it, and how sure is that."""

import sys
import typing

from .._shared import export_all as _export_all
from ._class_pairs import class_pair_gradients as class_pair_gradients
from ._class_pairs import class_pair_shares as class_pair_shares
from ._distances import PerturbationSize as PerturbationSize
from ._distances import half_accuracy_eps as half_accuracy_eps
from ._distances import mean_perturbation as mean_perturbation
from ._distances import perturbation_norm as perturbation_norm
from ._distances import r_separation as r_separation
from ._divergence import RelativeDivergence as RelativeDivergence
from ._divergence import latent_divergence as latent_divergence
from ._divergence import local_lipschitz as local_lipschitz
from ._divergence import relative_divergence as relative_divergence
from ._intervals import RobustAccuracy as RobustAccuracy
from ._intervals import clopper_pearson_interval as clopper_pearson_interval
from ._losses import natural_loss as natural_loss
from ._losses import robust_loss as robust_loss
from ._profile import GeneralizationGap as GeneralizationGap
from ._profile import PerturbationProfile as PerturbationProfile
from ._profile import adversary_profile as adversary_profile
from ._profile import generalization_gap as generalization_gap
from ._profile import perturbation_profile as perturbation_profile
from ._scores import AdversarialOutcome as AdversarialOutcome
from ._scores import adversarial_outcome as adversarial_outcome
from ._scores import attack_success_rate as attack_success_rate
from ._scores import boundary_error as boundary_error
from ._scores import robust_accuracy as robust_accuracy
from ._scores import score_adversarial as score_adversarial
from ._selection import AdversarialScorer as AdversarialScorer
from ._selection import MostRobust as MostRobust
from ._selection import make_adversarial_scorer as make_adversarial_scorer
from ._strength import MatchedStrength as MatchedStrength
from ._strength import match_attack_strength as match_attack_strength
from ._tasks import TaskSuccess as TaskSuccess
from ._tasks import joint_success_rates as joint_success_rates
from ._tasks import success_rates as success_rates
from ._transfer import GradientCosines as GradientCosines
from ._transfer import SecureRegions as SecureRegions
from ._transfer import gradient_cosines as gradient_cosines
from ._transfer import secure_regions as secure_regions
from ._transfer import transferability_matrix as transferability_matrix
from ._wasserstein import WassersteinDual as WassersteinDual
from ._wasserstein import sinkhorn_distance as sinkhorn_distance
from ._wasserstein import wasserstein_dual as wasserstein_dual
from ._wasserstein import wrm_certificate as wrm_certificate

#: They judge with the help of what lies above this floor, and can be found here all the same.
_IN_EVALUATION = ("RedFlag", "ReportRow", "RobustnessReport", "red_flags", "robustness_report")

if typing.TYPE_CHECKING:
    RedFlag: typing.Any
    ReportRow: typing.Any
    RobustnessReport: typing.Any
    red_flags: typing.Any
    robustness_report: typing.Any
else:

    def __getattr__(name):
        if name in _IN_EVALUATION:
            return getattr(sys.modules[__name__.partition(".")[0]], name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__():
        return sorted([*globals(), *_IN_EVALUATION])


_export_all(globals())
