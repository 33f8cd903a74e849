"""What wraps a training step or watches it."""

from .._shared import export_all as _export_all
from ..attacks.gradient.udr import UDRAdversary as UDRAdversary
from ..attacks.gradient.udr import soft_project as soft_project
from ..attacks.gradient.wrm import WRMAdversary as WRMAdversary
from .augmentation import Compose as Compose
from .augmentation import Cutout as Cutout
from .augmentation import RandomCropFlip as RandomCropFlip
from .averaging import WeightAveraging as WeightAveraging
from .callbacks import AdversarialScoring as AdversarialScoring
from .callbacks import EpsSchedule as EpsSchedule
from .callbacks import EpsWarmup as EpsWarmup
from .callbacks import RandomEps as RandomEps
from .early_stopping import RobustEarlyStopping as RobustEarlyStopping
from .overfitting import CatastrophicOverfittingStop as CatastrophicOverfittingStop
from .schedules import LearningRateSchedule as LearningRateSchedule
from .schedules import piecewise_constant as piecewise_constant
from .weight_decay import decay_weights_only as decay_weights_only
from .weight_perturbation import AWP as AWP

_export_all(globals())
