"""Defences made of several networks."""

from .cce import EnsembleCCE, MeanEnsemble

__all__ = ["EnsembleCCE", "MeanEnsemble"]
