"""Attacks: transformer-like objects that yield adversarial examples."""

from .apgd import APGD
from .augmentation import AdversarialAugmentation
from .autoattack import AutoAttack
from .base import BaseAttack
from .bim import BIM
from .boundary import BoundaryAttack
from .bpda import BPDA
from .brendel_bethge import BrendelBethge
from .carlini_wagner import CarliniWagner
from .deepfool import DeepFool
from .dra import DRA
from .dynamic import DynamicPGD
from .ead import EAD
from .eot import EOT
from .fab import FAB
from .feature_scatter import FeatureScatter
from .fgsm import FGSM
from .friendly import FriendlyPGD
from .geometry_aware import GeometryAwarePGD
from .hop_skip_jump import HopSkipJump
from .jsma import JSMA
from .lbfgs import LBFGS
from .local_search import LocalSearch
from .mim import MIM
from .multi_targeted import MultiTargeted
from .nes import NES
from .objectives import Objective
from .pgd import PGD
from .scaled_pgd import ScaledPGD
from .spsa import SPSA
from .square import SquareAttack
from .tamoo import TAMOO
from .targets import NoGradientError, Victim, as_victim, register_converter
from .transfer import TransferAttack
from .transform_tamoo import TransformTAMOO
from .transformations import (
    Transformation,
    deterministic_transformations,
    stochastic_transformations,
)
from .universal import UniversalPerturbation
from .universal_tamoo import UniversalTAMOO
from .weighting import (
    MGDA,
    CAGrad,
    HyperVolume,
    MinMax,
    PCGrad,
    TaskOriented,
    UniformWeighting,
    Weighting,
)
from .zoo import ZOO

__all__ = [
    "APGD",
    "BIM",
    "BPDA",
    "DRA",
    "EAD",
    "EOT",
    "FAB",
    "FGSM",
    "JSMA",
    "LBFGS",
    "MGDA",
    "MIM",
    "NES",
    "PGD",
    "SPSA",
    "TAMOO",
    "ZOO",
    "AdversarialAugmentation",
    "AutoAttack",
    "BaseAttack",
    "BoundaryAttack",
    "BrendelBethge",
    "CAGrad",
    "CarliniWagner",
    "DeepFool",
    "DynamicPGD",
    "FeatureScatter",
    "FriendlyPGD",
    "GeometryAwarePGD",
    "HopSkipJump",
    "HyperVolume",
    "LocalSearch",
    "MinMax",
    "MultiTargeted",
    "NoGradientError",
    "Objective",
    "PCGrad",
    "ScaledPGD",
    "SquareAttack",
    "TaskOriented",
    "TransferAttack",
    "TransformTAMOO",
    "Transformation",
    "UniformWeighting",
    "UniversalPerturbation",
    "UniversalTAMOO",
    "Victim",
    "Weighting",
    "as_victim",
    "deterministic_transformations",
    "register_converter",
    "stochastic_transformations",
]
