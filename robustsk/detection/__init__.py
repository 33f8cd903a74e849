"""Detectors of adversarial examples, in the manner of scikit-learn's outlier detectors."""

from .._shared import public_names as _public_names
from ._entropy import EntropyDetector as EntropyDetector

__all__ = _public_names(globals())
