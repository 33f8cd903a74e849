"""What the constructors of attacks take behind ``**common``, for editors and type checkers.

At run time a class takes these parameters from its bases (:mod:`robustsk._shared`). Nothing that
does not run the code can follow that, so that they are listed here, once per family; a test
compares the lists with the signatures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import ArrayLike


class AttackParametersButNorm(TypedDict, total=False):
    """What all attacks take, those included that name a `norm` of their own."""

    eps: float | ArrayLike | None
    clip: str | Sequence[ArrayLike] | np.ndarray | None
    target: ArrayLike | None
    mask: ArrayLike | None
    bn_mode: str
    precision: str | None
    compile: bool | str
    batch_size: int | str
    device: str | torch.device
    random_state: int | np.random.RandomState | None
    verbose: int


class AttackParameters(AttackParametersButNorm, total=False):
    """What all attacks take."""

    norm: float | str


class GradientParametersButNorm(AttackParametersButNorm, total=False):
    """What attacks take that follow a gradient, but for the norm."""

    objective: str | Callable | None
    graph: str | bool


class GradientParameters(GradientParametersButNorm, AttackParameters, total=False):
    """What attacks take that follow a gradient."""


class PGDParameters(GradientParameters, total=False):
    """What the attacks take that are a PGD."""

    n_steps: int
    step_size: float | None
    random_start: str
    start_std: float
    n_restarts: int


class BlackBoxParameters(AttackParameters, total=False):
    """What attacks take that only ask, but for those with a `max_queries` of their own."""

    max_queries: int


class DecisionParametersButNorm(AttackParametersButNorm, total=False):
    """What attacks take that see labels only, but for the norm and the number of queries."""

    starts: ArrayLike | None


class DecisionParameters(DecisionParametersButNorm, AttackParameters, total=False):
    """What attacks take that see labels only, but for the number of queries."""


class PerturbOptions(TypedDict, total=False):
    """What :meth:`BaseAttack.perturb` takes besides."""

    bounds: tuple[np.ndarray, np.ndarray] | None
    seed: int | None
    keep: str
    clean_logits: torch.Tensor | None
