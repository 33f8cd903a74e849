"""Backward pass differentiable approximation."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from ...victims._convert_transformers import Steps
from ...victims.queried import Transformed
from ...victims.victim import STRAIGHT_THROUGH
from ..base import BaseAttack
from .base import BaseWrapper, SeenVictim

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._parameters import AttackParameters


class BPDA(BaseWrapper):
    """Backward pass differentiable approximation: see through rounding and the like.

    A step that is not differentiable, or whose gradient is zero or useless,
    makes a model look robust to attacks that follow gradients. Here it is
    computed as it is on the way forward, and on the way back replaced by the
    identity or another differentiable stand-in. What is replaced:

    * the transformers of an attacked scikit-learn pipeline that have no
      gradient, such as `KBinsDiscretizer` or a `FunctionTransformer`;
    * `preprocessing`, a step before the model that is not part of it;
    * the submodule `layer` of an attacked torch module.

    Parameters
    ----------
    %(first_parameter)s
    attack : attack, default=None
        The attack inside. None means `PGD()`.
    preprocessing : callable or fitted transformer, default=None
        Computed before the model: a function or module that takes a batch of
        tensors, a function that takes an array, or what has a `transform`.
    backward : "identity" or callable, default="identity"
        What stands in for a step on the way back: itself a differentiable
        function or module that takes a batch of tensors. The identity needs a
        step that keeps the shape.
    layer : str, default=None
        Name of the submodule to be replaced, as in
        `torch.nn.Module.named_modules`, or the end of it; the outermost where
        several end so. It must compute its output from its first argument.
        Rounding that is done in a `forward` between other things has no name:
        make it a module of its own.
    %(shared_parameters)s

    %(shared_attributes)s

    See Also
    --------
    EOT : For random steps; the two may be nested.
    robustsk.victims.register_converter : Teach the exact gradient of a step.

    Notes
    -----
    `robustsk.metrics.score_adversarial` has the last word from `predict` of
    the model, which knows nothing of `preprocessing`: use a pipeline, or a
    module with the step inside, to score the two together.

    References
    ----------
    Athalye, Carlini and Wagner (2018), "Obfuscated gradients give a false
    sense of security: circumventing defenses to adversarial examples",
    Sec. 4.1.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import KBinsDiscretizer
    >>> from robustsk.attacks import BPDA, PGD
    >>> X, y = load_iris(return_X_y=True)
    >>> bins = KBinsDiscretizer(10, encode="ordinal", strategy="uniform")
    >>> clf = make_pipeline(bins, LogisticRegression(max_iter=1000)).fit(X, y)
    >>> X_adv = BPDA(clf, attack=PGD(eps=1.0, random_state=0)).fit(X).generate(X, y)
    >>> bool(clf.score(X_adv, y) < clf.score(X, y) - 0.5)
    True
    """

    def __init__(
        self,
        estimator: Any = None,
        *,
        attack: BaseAttack | None = None,
        preprocessing: Any = None,
        backward: str | Callable = "identity",
        layer: str | None = None,
        **common: Unpack[AttackParameters],
    ):
        super().__init__(estimator, attack=attack, **common)
        self.preprocessing = preprocessing
        self.backward = backward
        self.layer = layer

    @property
    def access(self):
        """What is needed of the victim: gradients, but not of all its steps."""
        needed = super().access
        return STRAIGHT_THROUGH if needed == "gradients" else needed

    def _see(self, victim, seed):
        if self.preprocessing is not None:
            step = _as_step(self.preprocessing, "preprocessing", victim)
            victim = _Behind(victim, step, self._stand_in(victim))
        return super()._see(victim, seed)

    def _stand_in(self, victim):
        if isinstance(self.backward, str) and self.backward == "identity":
            return nn.Identity()
        return _as_step(self.backward, "backward", victim)

    def _attack_batch(self, batch):
        stand_in = self._stand_in(batch.victim)

        def replace_gradient(module, args, output):
            return _straight_through(stand_in, args[0], output) if torch.is_grad_enabled() else None

        if self.layer:  # what a hook sees must be what the layer itself returns
            batch.victim = batch.victim.unfolded
        with ExitStack() as hooks:
            for module in self._opaque(batch.victim.module):
                hooks.callback(module.register_forward_hook(replace_gradient).remove)
            return super()._attack_batch(batch)

    def _opaque(self, module):
        """Return the parts of the attacked module whose gradient is replaced."""
        found = [part for part in module.modules() if isinstance(part, (Transformed, Steps))]
        if self.layer is None:
            return found
        named = dict(module.named_modules())
        matches = [name for name in named if f".{name}".endswith(f".{self.layer}")]
        if not self.layer or not matches:
            raise ValueError(
                f"layer={self.layer!r} names no submodule of the attacked model; it has "
                f"{[name for name in named if name]}."
            )
        outermost = min(matches, key=lambda name: name.count("."))
        return [*found, named[outermost]]


class _Behind(SeenVictim):
    """A victim behind a step that is not differentiable."""

    def __init__(self, seen, step, stand_in):
        super().__init__(seen)
        self.step = step
        self.stand_in = stand_in

    def __call__(self, x):
        with torch.no_grad():
            value = self.step(x.detach()).to(x.dtype)
        if torch.is_grad_enabled():
            value = _straight_through(self.stand_in, x, value)
        return self.seen(value)


def _as_step(function, name, victim):
    """Return a function of tensors; a module as a frozen copy, so that the user's stays."""
    if isinstance(function, nn.Module):
        return copy.deepcopy(function).to(victim.device).eval().requires_grad_(False)
    if hasattr(function, "transform"):
        return Transformed(function)
    if callable(function):
        return _OfTensors(function)
    raise TypeError(
        f"{name} must be a function, a torch module or a fitted transformer, got {function!r}."
    )


class _OfTensors(nn.Module):
    """A function of tensors, or of arrays where it refuses tensors."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        try:
            result = self.function(x)
        except (TypeError, AttributeError):
            result = self.function(x.detach().cpu().numpy())
        if isinstance(result, np.ndarray):
            result = torch.from_numpy(np.ascontiguousarray(result))
        return result.to(x.device)


def _straight_through(stand_in, x, value):
    """Return `value`, with the gradient of ``stand_in(x)``."""
    approximation = stand_in(x)
    if approximation.shape != value.shape:
        raise ValueError(
            f"A step turns a batch of shape {tuple(x.shape)} into {tuple(value.shape)}, and what "
            f"stands in for it on the way back into {tuple(approximation.shape)}: pass as "
            "`backward` a differentiable function from the one to the other."
        )
    return _StraightThrough.apply(approximation, value.detach().to(approximation.dtype))


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, approximation, value):
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None
