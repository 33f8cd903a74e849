"""Detectors of adversarial examples, in the manner of scikit-learn's outlier detectors."""

from ._entropy import EntropyDetector

__all__ = ["EntropyDetector"]
