"""One batch as an attack sees it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch

from .._containers import to_array
from ..victims._outputs import predicted_class
from ..victims.victim import Victim
from .noise import SampleNoise
from .objectives import Objective
from .threat import Ball
from .trace import Trace


@dataclass
class AttackBatch:
    """All that an attack needs to know about one batch.

    Attributes
    ----------
    victim : Victim
        Frozen.
    x : torch.Tensor of shape (n, ...)
    y : torch.Tensor of shape (n,)
        Class indices to move away from.
    target : torch.Tensor of shape (n,) or None
        Class indices to reach.
    ball : Ball
    objective : Objective
    noise : SampleNoise
    keep : {"last", "worst", "first"}
        What to return: the last iterate (training); the last one, but never
        losing an iterate that fooled the victim; or the first that did, after
        which no more work is spent on the sample (evaluation).
    trace : Trace or None
        Where objectives and iterates are entered, for a caller who wants them.
    """

    victim: Victim
    x: torch.Tensor
    y: torch.Tensor
    target: torch.Tensor | None
    ball: Ball
    objective: Objective
    noise: SampleNoise
    keep: str
    clean_logits: torch.Tensor | None = None
    trace: Trace | None = None
    info: dict[str, torch.Tensor] = field(default_factory=dict)

    def select(self, index):
        """Return the batch restricted to the samples in `index`."""
        return replace(
            self,
            x=self.x[index],
            y=self.y[index],
            target=None if self.target is None else self.target[index],
            ball=self.ball.select(index),
            noise=self.noise.select(index),
            clean_logits=None if self.clean_logits is None else self.clean_logits[index],
            trace=None if self.trace is None else self.trace.select(index),
            info={},
        )

    def like(self, samples, name):
        """Return samples that the user gives besides, as tensors like those of the batch.

        Parameters
        ----------
        samples : array-like of shape (m, ...)
        name : str
            Of the parameter, for the message if they are of another kind.

        Returns
        -------
        torch.Tensor of shape (m, ...)
        """
        samples = np.asarray(to_array(samples))
        if samples.shape[1:] != tuple(self.x.shape[1:]) or len(samples) == 0:
            raise ValueError(
                f"{name} has shape {samples.shape}, but one sample has shape "
                f"{tuple(self.x.shape[1:])}: give samples like those that are attacked."
            )
        samples = torch.as_tensor(samples.astype(np.float64)).to(self.x)
        if not torch.isfinite(samples).all():
            raise ValueError(f"{name} contains NaN or infinity.")
        return samples

    def ask(self, z):
        """Return the logits at `z`; for a table at the row of its space that `z` stands for."""
        return self.victim(self.ball.asked(z))

    def value(self, logits):
        """Return the objective, shape (n,)."""
        return self.objective(logits, self.y, self.target, self.clean_logits)

    def value_and_gradient(self, z):
        """Return logits, objective and its gradient with respect to `z`."""
        with torch.enable_grad():
            z = z.detach().requires_grad_(True)
            logits = self.victim(self.ball.asked(z))
            value = self.value(logits)
            return self.with_gradient(z, logits, value)

    def with_gradient(self, z, logits, value):
        """Return logits and objective, detached, and the gradient of the latter.

        To be called where gradients are enabled.
        """
        (gradient,) = self.input_gradients([value], [z])
        gradient = torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)
        if self.trace is not None:
            self.trace.add(z, value.detach())
        return logits.detach(), value.detach(), gradient

    def input_gradients(self, values, inputs):
        """Return the gradients of objectives, each with respect to an input of its own.

        Parameters
        ----------
        values : list of torch.Tensor of shape (n,)
        inputs : list of torch.Tensor of shape (n, ...)

        Returns
        -------
        tuple of torch.Tensor of shape (n, ...)
            As they come: not all of them need be finite.
        """
        if not all(value.requires_grad for value in values):
            raise ValueError(
                f"No gradient reaches the input of {self.victim.name}: is something "
                "detached or computed outside of torch on the way?"
            )
        self.victim.calls.backward += sum(len(z) for z in inputs)
        return torch.autograd.grad([value.sum() for value in values], inputs)

    def fooled(self, logits):
        """Return where the attack has reached its goal, shape (n,).

        A model that answers NaN is fooled, though into no class that could be a target.
        """
        predicted = predicted_class(logits)
        return predicted != self.y if self.target is None else predicted == self.target
