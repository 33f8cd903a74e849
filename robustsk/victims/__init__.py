"""What is attacked.

A victim is a map from the user's data to logits. :func:`as_victim` makes one of
anything that can be attacked: torch modules, skorch nets, robustsk estimators,
scikit-learn classifiers and pipelines, and lists of these.
"""

from .._shared import export_all as _export_all
from ._checks import NoGradientError as NoGradientError
from .converters import register_converter as register_converter
from .resolve import as_victim as as_victim
from .victim import Victim as Victim

_export_all(globals())
