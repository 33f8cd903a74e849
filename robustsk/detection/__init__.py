"""Detectors of adversarial examples, in the manner of scikit-learn's outlier detectors."""

from .._shared import export_all as _export_all
from ._entropy import EntropyDetector as EntropyDetector

_export_all(globals())
