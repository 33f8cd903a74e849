"""What the constructors of ensembles take behind ``**common``, for editors and type checkers."""

from __future__ import annotations

from ..defenses._parameters import DefenseParameters


class EnsembleParameters(DefenseParameters, total=False):
    """What all ensembles take."""

    n_members: int
