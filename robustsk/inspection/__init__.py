"""Displays in the manner of scikit-learn."""

from ._robustness_curve import RobustnessCurveDisplay
from ._transferability import TransferabilityDisplay

__all__ = ["RobustnessCurveDisplay", "TransferabilityDisplay"]
