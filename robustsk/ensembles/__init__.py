"""Defences made of several networks."""

from .adp import EnsembleADP
from .at import EnsembleAT
from .base import MeanEnsemble
from .cce import EnsembleCCE
from .dverge import EnsembleDVERGE
from .gal import EnsembleGAL
from .static_at import StaticEnsembleATClassifier
from .trs import EnsembleTRS

__all__ = [
    "EnsembleADP",
    "EnsembleAT",
    "EnsembleCCE",
    "EnsembleDVERGE",
    "EnsembleGAL",
    "EnsembleTRS",
    "MeanEnsemble",
    "StaticEnsembleATClassifier",
]
