"""Displays in the manner of scikit-learn."""

from .._shared import export_all as _export_all
from ._gradient_cosines import GradientCosineDisplay as GradientCosineDisplay
from ._hard_class_pairs import HardClassPairAnalysis as HardClassPairAnalysis
from ._min_norm_display import MinNormDisplay as MinNormDisplay
from ._robustness_curve import RobustnessCurveDisplay as RobustnessCurveDisplay
from ._secure_regions import SecureRegionsDisplay as SecureRegionsDisplay
from ._task_trace import TaskTraceDisplay as TaskTraceDisplay
from ._training_curve import TrainingCurveDisplay as TrainingCurveDisplay
from ._transferability import TransferabilityDisplay as TransferabilityDisplay

_export_all(globals())
