"""What wraps a training step or watches it."""

from .augmentation import Compose, Cutout, RandomCropFlip
from .averaging import WeightAveraging
from .callbacks import AdversarialScoring, EpsWarmup
from .early_stopping import RobustEarlyStopping
from .overfitting import CatastrophicOverfittingStop
from .schedules import LearningRateSchedule, piecewise_constant
from .weight_decay import decay_weights_only
from .weight_perturbation import AWP

__all__ = [
    "AWP",
    "AdversarialScoring",
    "CatastrophicOverfittingStop",
    "Compose",
    "Cutout",
    "EpsWarmup",
    "LearningRateSchedule",
    "RandomCropFlip",
    "RobustEarlyStopping",
    "WeightAveraging",
    "decay_weights_only",
    "piecewise_constant",
]
