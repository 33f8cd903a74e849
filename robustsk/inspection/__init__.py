"""Displays in the manner of scikit-learn."""

from ._gradient_cosines import GradientCosineDisplay
from ._hard_class_pairs import HardClassPairAnalysis
from ._min_norm import MinNormDisplay
from ._robustness_curve import RobustnessCurveDisplay
from ._secure_regions import SecureRegionsDisplay
from ._task_trace import TaskTraceDisplay
from ._training_curve import TrainingCurveDisplay
from ._transferability import TransferabilityDisplay

__all__ = [
    "GradientCosineDisplay",
    "HardClassPairAnalysis",
    "MinNormDisplay",
    "RobustnessCurveDisplay",
    "SecureRegionsDisplay",
    "TaskTraceDisplay",
    "TrainingCurveDisplay",
    "TransferabilityDisplay",
]
