"""Defences: scikit-learn classifiers that are trained to be robust."""

from .base import BaseDefense
from .pgd_at import PGDATClassifier
from .spat import SPATClassifier
from .standard import StandardClassifier
from .trades import TRADESClassifier

__all__ = [
    "BaseDefense",
    "PGDATClassifier",
    "SPATClassifier",
    "StandardClassifier",
    "TRADESClassifier",
]
