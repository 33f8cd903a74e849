"""What wraps a training step or watches it."""

from .augmentation import Compose, Cutout, RandomCropFlip
from .averaging import WeightAveraging
from .callbacks import AdversarialScoring, EpsSchedule, EpsWarmup
from .early_stopping import RobustEarlyStopping
from .overfitting import CatastrophicOverfittingStop
from .schedules import LearningRateSchedule, piecewise_constant
from .udr import UDRAdversary, soft_project
from .weight_decay import decay_weights_only
from .weight_perturbation import AWP
from .wrm import WRMAdversary

__all__ = [
    "AWP",
    "AdversarialScoring",
    "CatastrophicOverfittingStop",
    "Compose",
    "Cutout",
    "EpsSchedule",
    "EpsWarmup",
    "LearningRateSchedule",
    "RandomCropFlip",
    "RobustEarlyStopping",
    "UDRAdversary",
    "WRMAdversary",
    "WeightAveraging",
    "decay_weights_only",
    "piecewise_constant",
    "soft_project",
]
