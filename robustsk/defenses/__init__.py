"""Defences: scikit-learn classifiers that are trained to be robust."""

from .._shared import export_all as _export_all
from .adr import ADRClassifier as ADRClassifier
from .adversarial_regularization import (
    AdversarialRegularizationClassifier as AdversarialRegularizationClassifier,
)
from .alp import ALPClassifier as ALPClassifier
from .ascl import ASCLClassifier as ASCLClassifier
from .base import BaseDefense as BaseDefense
from .curriculum_at import CurriculumATClassifier as CurriculumATClassifier
from .dynamic_at import DynamicATClassifier as DynamicATClassifier
from .fast_at import FastATClassifier as FastATClassifier
from .fat import FATClassifier as FATClassifier
from .feature_scatter import FeatureScatterClassifier as FeatureScatterClassifier
from .fgsm_at import FGSMATClassifier as FGSMATClassifier
from .fine_tune import AdversarialFineTuneClassifier as AdversarialFineTuneClassifier
from .free_at import FreeATClassifier as FreeATClassifier
from .gairat import GAIRATClassifier as GAIRATClassifier
from .grids import dra_grid as dra_grid
from .grids import spat_component_grid as spat_component_grid
from .grids import spat_sensitivity_grid as spat_sensitivity_grid
from .grids import trade_off_grid as trade_off_grid
from .mail import MAILClassifier as MAILClassifier
from .mart import MARTClassifier as MARTClassifier
from .mixed_at import MixedATClassifier as MixedATClassifier
from .mmc import MMCClassifier as MMCClassifier
from .pgd_at import PGDATClassifier as PGDATClassifier
from .pretrain_tune import PretrainTuneClassifier as PretrainTuneClassifier
from .regularized_at import RegularizedATClassifier as RegularizedATClassifier
from .self_training import RobustSelfTrainingClassifier as RobustSelfTrainingClassifier
from .spat import SPATClassifier as SPATClassifier
from .standard import StandardClassifier as StandardClassifier
from .supcon import SupervisedContrastiveClassifier as SupervisedContrastiveClassifier
from .trades import TRADESClassifier as TRADESClassifier
from .udr import UDRAWPClassifier as UDRAWPClassifier
from .udr import UDRMARTClassifier as UDRMARTClassifier
from .udr import UDRPGDClassifier as UDRPGDClassifier
from .udr import UDRTRADESClassifier as UDRTRADESClassifier
from .wrm import WRMClassifier as WRMClassifier

_export_all(globals())
