"""Attacks: transformer-like objects that yield adversarial examples."""

from .augmentation import AdversarialAugmentation
from .base import BaseAttack
from .bim import BIM
from .fgsm import FGSM
from .mim import MIM
from .objectives import Objective
from .pgd import PGD
from .targets import NoGradientError, Victim, as_victim, register_converter

__all__ = [
    "BIM",
    "FGSM",
    "MIM",
    "PGD",
    "AdversarialAugmentation",
    "BaseAttack",
    "NoGradientError",
    "Objective",
    "Victim",
    "as_victim",
    "register_converter",
]
