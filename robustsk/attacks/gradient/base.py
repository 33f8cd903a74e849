"""What the projected-gradient attacks have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from ..._validation import check_length
from ..base import BaseAttack
from ..objectives import resolve_objective

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._parameters import AttackParameters


class BaseGradientAttack(BaseAttack):
    """Base class of the attacks that follow the gradient of an objective."""

    _shared_parameters_doc = """
    objective : {"ce", "cw", "dlr", "kl"} or callable, default=None
        What is ascended: cross-entropy, the margin of Carlini and Wagner, the
        difference of logits ratio, the divergence from the clean prediction,
        or a callable ``f(logits, y)`` returning one loss per sample. None
        means what the defence asks for during adversarial training, and
        cross-entropy otherwise.
    graph : {"auto", True, False}, default="auto"
        Whether all steps are run as one CUDA graph where batch after batch of
        one network is attacked, as in training: it is recorded once, and a GPU
        is then not held up by the host. "auto" does without where it has to;
        True raises an error that says why.
""" + BaseAttack._shared_parameters_doc.lstrip("\n")

    def __init__(
        self,
        estimator: Any = None,
        *,
        objective: str | Callable | None = None,
        graph: str | bool = "auto",
        **common: Unpack[AttackParameters],
    ):
        super().__init__(estimator, **common)
        self.objective = objective
        self.graph = graph

    def _step_length(self, batch, travel, n_steps=1):
        """Return `step_size`; where it is None, `travel` radii in `n_steps` steps."""
        if self.step_size is None:
            return travel * batch.ball.radius / n_steps
        if isinstance(self.step_size, torch.Tensor):  # checked, and put where it is needed
            return self.step_size
        return check_length(self.step_size, "step_size")

    def _resolve_objective(self, objective):
        return resolve_objective(objective if self.objective is None else self.objective)
