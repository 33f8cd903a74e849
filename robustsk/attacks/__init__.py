"""Attacks: transformer-like objects that yield adversarial examples."""

from .._shared import export_all as _export_all
from ..victims._checks import NoGradientError as NoGradientError
from ..victims.converters import register_converter as register_converter
from ..victims.expressions import Column as Column
from ..victims.expressions import count as count
from ..victims.expressions import safe_div as safe_div
from ..victims.resolve import as_victim as as_victim
from ..victims.space import FeatureSpace as FeatureSpace
from ..victims.victim import Victim as Victim
from .base import BaseAttack as BaseAttack
from .black_box.boundary import BoundaryAttack as BoundaryAttack
from .black_box.hop_skip_jump import HopSkipJump as HopSkipJump
from .black_box.label_only_nes import LabelOnlyNES as LabelOnlyNES
from .black_box.local_search import LocalSearch as LocalSearch
from .black_box.nes import NES as NES
from .black_box.partial_information_nes import PartialInformationNES as PartialInformationNES
from .black_box.spsa import SPSA as SPSA
from .black_box.square import SquareAttack as SquareAttack
from .black_box.zoo import ZOO as ZOO
from .gradient.apgd import APGD as APGD
from .gradient.bim import BIM as BIM
from .gradient.dra import DRA as DRA
from .gradient.dynamic import DynamicPGD as DynamicPGD
from .gradient.feature_attack import FeatureAttack as FeatureAttack
from .gradient.feature_scatter import FeatureScatter as FeatureScatter
from .gradient.fgsm import FGSM as FGSM
from .gradient.friendly import FriendlyPGD as FriendlyPGD
from .gradient.geometry_aware import GeometryAwarePGD as GeometryAwarePGD
from .gradient.mim import MIM as MIM
from .gradient.pgd import PGD as PGD
from .gradient.scaled_pgd import ScaledPGD as ScaledPGD
from .gradient.universal import UniversalPerturbation as UniversalPerturbation
from .minimal.brendel_bethge import BrendelBethge as BrendelBethge
from .minimal.carlini_wagner import CarliniWagner as CarliniWagner
from .minimal.deepfool import DeepFool as DeepFool
from .minimal.ead import EAD as EAD
from .minimal.fab import FAB as FAB
from .minimal.jsma import JSMA as JSMA
from .minimal.lbfgs import LBFGS as LBFGS
from .multi_objective.tamoo import TAMOO as TAMOO
from .multi_objective.transform_tamoo import TransformTAMOO as TransformTAMOO
from .multi_objective.transformations import Transformation as Transformation
from .multi_objective.transformations import (
    deterministic_transformations as deterministic_transformations,
)
from .multi_objective.transformations import (
    stochastic_transformations as stochastic_transformations,
)
from .multi_objective.universal_tamoo import UniversalTAMOO as UniversalTAMOO
from .multi_objective.weighting import MGDA as MGDA
from .multi_objective.weighting import CAGrad as CAGrad
from .multi_objective.weighting import HyperVolume as HyperVolume
from .multi_objective.weighting import MinMax as MinMax
from .multi_objective.weighting import PCGrad as PCGrad
from .multi_objective.weighting import TaskOriented as TaskOriented
from .multi_objective.weighting import UniformWeighting as UniformWeighting
from .multi_objective.weighting import Weighting as Weighting
from .objectives import Objective as Objective
from .tables.capgd import CAPGD as CAPGD
from .tables.greedy_search import GreedySearch as GreedySearch
from .wrappers.adversarial_augmentation import AdversarialAugmentation as AdversarialAugmentation
from .wrappers.autoattack import AutoAttack as AutoAttack
from .wrappers.bpda import BPDA as BPDA
from .wrappers.eot import EOT as EOT
from .wrappers.multi_targeted import MultiTargeted as MultiTargeted
from .wrappers.tabular_autoattack import TabularAutoAttack as TabularAutoAttack
from .wrappers.transfer import TransferAttack as TransferAttack

_export_all(globals())
