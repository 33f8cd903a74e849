"""Defences: scikit-learn classifiers that are trained to be robust."""

from .adr import ADRClassifier
from .adversarial_regularization import AdversarialRegularizationClassifier
from .alp import ALPClassifier
from .ascl import ASCLClassifier
from .base import BaseDefense
from .curriculum_at import CurriculumATClassifier
from .dynamic_at import DynamicATClassifier
from .fast_at import FastATClassifier
from .fat import FATClassifier
from .feature_scatter import FeatureScatterClassifier
from .fgsm_at import FGSMATClassifier
from .fine_tune import AdversarialFineTuneClassifier
from .free_at import FreeATClassifier
from .gairat import GAIRATClassifier
from .grids import dra_grid, spat_component_grid, spat_sensitivity_grid, trade_off_grid
from .mail import MAILClassifier
from .mart import MARTClassifier
from .mixed_at import MixedATClassifier
from .mmc import MMCClassifier
from .pgd_at import PGDATClassifier
from .pretrain_tune import PretrainTuneClassifier
from .regularized_at import RegularizedATClassifier
from .self_training import RobustSelfTrainingClassifier
from .spat import SPATClassifier
from .standard import StandardClassifier
from .supcon import SupervisedContrastiveClassifier
from .trades import TRADESClassifier
from .udr import UDRAWPClassifier, UDRMARTClassifier, UDRPGDClassifier, UDRTRADESClassifier
from .wrm import WRMClassifier

__all__ = [
    "ADRClassifier",
    "ALPClassifier",
    "ASCLClassifier",
    "AdversarialFineTuneClassifier",
    "AdversarialRegularizationClassifier",
    "BaseDefense",
    "CurriculumATClassifier",
    "DynamicATClassifier",
    "FATClassifier",
    "FGSMATClassifier",
    "FastATClassifier",
    "FeatureScatterClassifier",
    "FreeATClassifier",
    "GAIRATClassifier",
    "MAILClassifier",
    "MARTClassifier",
    "MMCClassifier",
    "MixedATClassifier",
    "PGDATClassifier",
    "PretrainTuneClassifier",
    "RegularizedATClassifier",
    "RobustSelfTrainingClassifier",
    "SPATClassifier",
    "StandardClassifier",
    "SupervisedContrastiveClassifier",
    "TRADESClassifier",
    "UDRAWPClassifier",
    "UDRMARTClassifier",
    "UDRPGDClassifier",
    "UDRTRADESClassifier",
    "WRMClassifier",
    "dra_grid",
    "spat_component_grid",
    "spat_sensitivity_grid",
    "trade_off_grid",
]
