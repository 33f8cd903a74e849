"""The ascent of several objectives at once that the multi-objective attacks share."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch

from ..._tensors import column
from ..._validation import check_choice, check_count, check_length, check_start
from ..batch import AttackBatch
from ..gradient.base import BaseGradientAttack
from ..noise import SampleNoise, Stream
from ..objectives import OBJECTIVES, Objective
from ..threat import Ball
from .weighting import resolve_weighting

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from .._parameters import GradientParameters
    from .weighting import Weighting

#: What is added to the margin, which as a loss of an attack is to be positive (Carlini and Wagner
#: cut it off there; no logits that are so far apart have come up).
_KAPPA = 50.0


@dataclass
class Seen:
    """What the tasks look like at the present iterates.

    Attributes
    ----------
    values : torch.Tensor of shape (n, m)
        The objectives.
    achieved : torch.Tensor of bool of shape (n, m)
    score : torch.Tensor of int64 of shape (n,)
        How good an iterate is; of all iterates one with the highest is returned.
    done : torch.Tensor of bool of shape (n,)
        Where an evaluation needs no more.
    gradients : torch.Tensor of shape (n, m, d) or None
        Those of the objectives with respect to the iterate.
    """

    values: torch.Tensor
    achieved: torch.Tensor
    score: torch.Tensor
    done: torch.Tensor
    gradients: torch.Tensor | None = None


@dataclass
class Tasks:
    """What is to be achieved at once by each perturbation; subclasses say what that is.

    Attributes
    ----------
    batch : AttackBatch
    ball : Ball
        Where the iterates may be.
    noise : SampleNoise
        The randomness of each iterate.
    m : int
        Number of tasks.
    """

    batch: AttackBatch
    ball: Ball
    noise: SampleNoise
    m: int

    def look(self, z, step, gradients=True):
        """Return what the iterates `z` do, a :class:`Seen`."""
        raise NotImplementedError

    def select(self, index):
        """Return the tasks of some of the iterates."""
        changed = {
            f.name: value[index]
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), torch.Tensor)
        }
        return replace(
            self,
            batch=self.batch.select(index),
            ball=self.ball.select(index),
            noise=self.noise.select(index),
            **changed,
        )

    def differentiate(self, z, functions, clean=None, gradients=True):
        """Return logits, objectives and their gradients, each task a map of the iterate.

        Parameters
        ----------
        z : torch.Tensor of shape (n, ...)
        functions : list of callable
            Each maps `z` to logits of shape (n, n_classes).
        clean : list of torch.Tensor, optional
            The logits of the clean samples for each task, where the objective wants them.
        gradients : bool, default=True

        Returns
        -------
        logits : list of m tensors of shape (n, n_classes)
        values : torch.Tensor of shape (n, m)
        gradients : torch.Tensor of shape (n, m, d) or None
        """
        batch = self.batch
        clean = [None] * len(functions) if clean is None else clean
        with torch.set_grad_enabled(gradients):
            # a leaf for every task: one backward pass then gives all gradients apart
            leaves = [z.detach().requires_grad_(gradients) for _ in functions]
            logits = [f(leaf) for f, leaf in zip(functions, leaves, strict=True)]
            values = [
                batch.objective(out, batch.y, batch.target, known)
                for out, known in zip(logits, clean, strict=True)
            ]
            found = None
            if gradients:
                found = batch.input_gradients(values, leaves)
                found = torch.stack([part.flatten(1) for part in found], dim=1)
        logits = [out.detach() for out in logits]
        return logits, torch.stack([value.detach() for value in values], dim=1), found


class BaseMultiObjectiveAttack(BaseGradientAttack):
    """Base class of the attacks that ascend several objectives at once.

    Subclasses define `_tasks`, which says what the objectives are.
    """

    _shared_parameters_doc = """
    weighting : str or weighting, default="tamoo"
        How the gradients of the tasks become one direction: "tamoo"
        (task-oriented: tasks that are achieved already give way to those that
        are not), "moo" (multiple gradient descent: no task loses), "minmax"
        (the worst task counts), "uniform" (the mean), "hvm" (hypervolume),
        "pcgrad" (conflicts are projected away), "cagrad" (the worst task,
        near the mean); or an object such as
        :class:`robustsk.attacks.TaskOriented` with parameters of its own, which
        ``weighting__lam=10`` reaches.
    n_steps : int, default=20
        Number of steps.
    step_size : float, default=None
        Length of a step, in the units of `eps`. None means ``eps / 4``.
    random_start : {"none", "uniform", "gaussian"}, default="uniform"
        Start at the sample, uniformly in the ball, or at the sample plus
        normal noise of standard deviation `start_std`.
    start_std : float, default=0.001
        Standard deviation of the gaussian start, in the units of the data.
    gradient_memory : bool or "auto", default="auto"
        Whether an entry of a gradient that is not finite is replaced by the
        last finite one of that task and feature, instead of zero. "auto" means
        for stochastic transformations of images only, whose gamma correction has
        an infinite derivative at black pixels.
    trace : bool, default=False
        Whether to report, with ``return_info=True``, what happened in every
        step: ``info["trace_values"]``, ``["trace_achieved"]``,
        ``["trace_weights"]`` and ``["trace_norms"]`` (lengths of the gradients),
        all of shape (n_samples, n_steps, n_tasks), and ``["trace_norm"]`` (of
        the combined gradient), shape (n_samples, n_steps).
""" + BaseGradientAttack._shared_parameters_doc.lstrip("\n")

    def __init__(
        self,
        estimator: Any = None,
        *,
        weighting: str | Weighting = "tamoo",
        n_steps: int = 20,
        step_size: float | None = None,
        random_start: str = "uniform",
        start_std: float = 0.001,
        gradient_memory: bool | str = "auto",
        trace: bool = False,
        **common: Unpack[GradientParameters],
    ):
        super().__init__(estimator, **common)
        self.weighting = weighting
        self.n_steps = n_steps
        self.step_size = step_size
        self.random_start = random_start
        self.start_std = start_std
        self.gradient_memory = gradient_memory
        self.trace = trace

    def set_params(self, **params: Any) -> Self:
        """Set parameters of this attack and of the objects in it.

        Parameters
        ----------
        **params
            As in the constructor; ``weighting__`` also reaches a weighting that
            has been given by its name.

        Returns
        -------
        self
        """
        weighting = params.get("weighting", self.weighting)
        if isinstance(weighting, str) and any(key.startswith("weighting__") for key in params):
            params["weighting"] = resolve_weighting(weighting)
        return super().set_params(**params)

    def _tasks(self, batch):
        """Return the :class:`Tasks` of a batch."""
        raise NotImplementedError

    #: What `gradient_memory` is where it is "auto".
    _often_infinite = False

    def _remembers(self):
        check_choice(self.gradient_memory, "gradient_memory", (True, False, "auto"))
        return self._often_infinite if self.gradient_memory == "auto" else self.gradient_memory

    def _resolve_objective(self, objective):
        objective = super()._resolve_objective(objective)
        return _CW if objective is OBJECTIVES["cw"] else objective

    def _attack_batch(self, batch):
        result, info = self._climb(self._tasks(batch), batch.keep)
        batch.info.update(info)
        return result

    def _climb(self, tasks, keep):
        """Take all steps.

        Returns
        -------
        torch.Tensor of the shape of ``tasks.ball.x``
            The last iterates, or, unless `keep` is "last", the best.
        dict of str to torch.Tensor of shape (n, ...)
        """
        n_steps = check_count(self.n_steps, "n_steps")
        size = self._step_length(tasks, 0.25)
        weighting = resolve_weighting(self.weighting)
        if weighting.positive and self.target is not None:
            raise ValueError(
                f"weighting={self.weighting!r} needs objectives that are positive, which those of "
                "a targeted attack are not: use 'tamoo', 'moo', 'minmax' or 'uniform'."
            )
        start = check_start(self.random_start)
        std = check_length(self.start_std, "start_std")
        z = tasks.ball.random_start(start, tasks.noise, Stream.START, std)
        n, m = len(z), tasks.m
        state = weighting.start(n, m, z)
        weights = z.new_full((n, m), 1.0 / m)
        rows = torch.arange(n, device=z.device)
        best, score = z.clone(), torch.full((n,), -1, device=z.device)
        if keep == "worst" and start != "none":
            # a clean error is not in the path of a random start
            best = tasks.ball.x.clone()
            score = tasks.look(best, n_steps + 1, gradients=False).score
        remembers, cache, trace = self._remembers(), None, []

        def keep_better(seen):
            better = seen.score >= score[rows]
            best[rows] = torch.where(column(better, z), z, best[rows])
            score[rows] = torch.maximum(seen.score, score[rows])

        for step in range(n_steps):
            seen = tasks.look(z, step)
            if keep != "last":
                keep_better(seen)
                # a trace is of all samples
                if keep == "first" and not self.trace and seen.done.any():
                    left = ~seen.done
                    rows, z, tasks = rows[left], z[left], tasks.select(left)
                    if len(rows) == 0:
                        break
                    state = {name: value[left] for name, value in state.items()}
                    cache = None if cache is None else cache[left]
                    seen = Seen(*(getattr(seen, f.name)[left] for f in fields(Seen)))
            gradients = seen.gradients
            if remembers:
                known = torch.zeros_like(gradients) if cache is None else cache
                gradients = cache = torch.where(gradients.isfinite(), gradients, known)
            else:
                gradients = torch.nan_to_num(gradients, nan=0.0, posinf=0.0, neginf=0.0)
            gram = torch.bmm(gradients, gradients.mT) if weighting.needs_gram else None
            noise, stream = tasks.noise, Stream.WEIGHT + step

            def draw(count, noise=noise, stream=stream):
                return noise.uniform(stream, (count,))

            combination, state = weighting.weigh(state, seen.values, gram, seen.achieved, draw)
            weights[rows] = combination
            combined = torch.bmm(combination[:, None], gradients)[:, 0]
            if self.trace:
                trace.append(
                    {
                        "values": seen.values,
                        "achieved": seen.achieved,
                        "weights": combination,
                        "norms": torch.linalg.vector_norm(gradients, dim=2),
                        "norm": torch.linalg.vector_norm(combined, dim=1),
                    }
                )
            z = tasks.ball.ascend(z, combined.reshape(z.shape), size)
        info = {"weights": weights}
        if trace:
            info.update(
                (f"trace_{name}", torch.stack([t[name] for t in trace], dim=1)) for name in trace[0]
            )
        if keep == "last":
            return z, info
        if len(rows):
            keep_better(tasks.look(z, n_steps, gradients=False))
        return best, info


_CW = Objective(lambda *args: OBJECTIVES["cw"](*args) + _KAPPA)


def joint_score(achieved, fooled):
    """Return a score by which an iterate that fools the victim is never given up for another.

    Among those that do, or do not, the one that achieves more tasks is better.
    """
    return achieved.sum(1) + (achieved.shape[1] + 1) * fooled
