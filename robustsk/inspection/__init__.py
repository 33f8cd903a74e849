"""Displays in the manner of scikit-learn."""

from ._robustness_curve import RobustnessCurveDisplay

__all__ = ["RobustnessCurveDisplay"]
