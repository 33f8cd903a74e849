"""Displays in the manner of scikit-learn."""

from ._hard_class_pairs import HardClassPairAnalysis
from ._robustness_curve import RobustnessCurveDisplay
from ._training_curve import TrainingCurveDisplay
from ._transferability import TransferabilityDisplay

__all__ = [
    "HardClassPairAnalysis",
    "RobustnessCurveDisplay",
    "TrainingCurveDisplay",
    "TransferabilityDisplay",
]
