"""Defences made of several networks."""

from .._shared import export_all as _export_all
from .adp import EnsembleADP as EnsembleADP
from .at import EnsembleAT as EnsembleAT
from .base import MeanEnsemble as MeanEnsemble
from .cce import EnsembleCCE as EnsembleCCE
from .combinations import LogitMeanEnsemble as LogitMeanEnsemble
from .combinations import VoteEnsemble as VoteEnsemble
from .dverge import EnsembleDVERGE as EnsembleDVERGE
from .gal import EnsembleGAL as EnsembleGAL
from .static_at import StaticEnsembleATClassifier as StaticEnsembleATClassifier
from .trs import EnsembleTRS as EnsembleTRS

_export_all(globals())
