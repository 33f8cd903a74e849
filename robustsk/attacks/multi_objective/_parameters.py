"""What the constructors of multi-objective attacks take behind ``**common``."""

from __future__ import annotations

from .._parameters import GradientParameters
from .weighting import Weighting


class MultiObjectiveParameters(GradientParameters, total=False):
    """What the attacks take that ascend several objectives at once."""

    weighting: str | Weighting
    n_steps: int
    step_size: float | None
    random_start: str
    start_std: float
    gradient_memory: bool | str
    trace: bool
