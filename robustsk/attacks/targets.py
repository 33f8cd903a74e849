"""Where :mod:`robustsk.victims` was before it became a package; its names can still be had here."""

from ..victims import NoGradientError as NoGradientError
from ..victims import Victim as Victim
from ..victims import as_victim as as_victim
from ..victims import register_converter as register_converter
