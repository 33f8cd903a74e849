"""The descent loops that the gradient attacks share."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .threat import _column

#: Finished samples are dropped from the batch once they are this share of it:
#: copying the survivors costs less than computing the finished ones again.
_COMPACT_AT = 0.25


def descend(
    batch,
    *,
    n_steps,
    step_size,
    random_start="none",
    start_std=0.001,
    n_restarts=1,
    momentum=None,
):
    """Run projected steepest ascent on a batch.

    Parameters
    ----------
    batch : AttackBatch
    n_steps : int
    step_size : float
        In the units of the data.
    random_start : {"none", "uniform", "gaussian"}, default="none"
    start_std : float, default=0.001
        Standard deviation of the gaussian start, in the units of the data.
    n_restarts : int, default=1
        Number of runs; only the first one without a random start.
    momentum : float, optional
        Decay of the accumulated, l1-normalised gradient (MI-FGSM).

    Returns
    -------
    torch.Tensor of the shape of ``batch.x``
    """
    runs = n_restarts if random_start != "none" else 1
    options = {
        "n_steps": n_steps,
        "step_size": step_size,
        "random_start": random_start,
        "start_std": start_std,
        "momentum": momentum,
    }
    if batch.keep == "last" and runs == 1:
        return _steps(batch, 0, **options)
    best = batch.x.clone()
    best_value = torch.full((len(best),), -torch.inf, device=best.device, dtype=best.dtype)
    solved = torch.zeros(len(best), dtype=torch.bool, device=best.device)
    for run in range(runs):
        todo = torch.arange(len(best), device=best.device)
        if batch.keep == "first":
            todo = todo[~solved]
        if len(todo) == 0:
            break
        whole = len(todo) == len(best)
        z, fooled, value = _run(batch if whole else batch.select(todo), run, **options)
        # the first run that fools the victim wins, and before that the highest objective
        better = ~solved[todo] & (fooled | (value > best_value[todo]))
        kept = todo[better]
        best[kept], best_value[kept] = z[better], value[better]
        solved[todo] |= fooled
    return best


def _steps(batch, stream, *, n_steps, step_size, random_start, start_std, momentum):
    """Run all steps and return the last iterate: forward and input gradient, nothing else."""
    z = batch.ball.random_start(random_start, batch.noise, stream, start_std)
    velocity = None
    for _ in range(n_steps):
        _, _, gradient = batch.value_and_gradient(z)
        if momentum is not None:
            gradient = velocity = _accumulate(velocity, gradient, momentum)
        z = batch.ball.ascend(z, gradient, step_size)
    return z


def _accumulate(velocity, gradient, momentum):
    size = gradient.flatten(1).abs().sum(1).clamp_min(torch.finfo(gradient.dtype).tiny)
    gradient = gradient / _column(size, gradient)
    return gradient if velocity is None else momentum * velocity + gradient


def _run(batch, stream, **options):
    """Return the result of one run, where it fools the victim, and its objective."""
    if batch.keep != "last":
        return _tracked(batch, stream, **options)
    z = _steps(batch, stream, **options)
    with torch.no_grad():
        value = batch.value(batch.victim(z)).to(z.dtype)
    return z, torch.zeros(len(z), dtype=torch.bool, device=z.device), value


def _tracked(batch, stream, *, n_steps, step_size, random_start, start_std, momentum):
    """Run the steps and watch for iterates that fool the victim."""
    z = batch.ball.random_start(random_start, batch.noise, stream, start_std)
    result = z.clone()
    hit = torch.zeros(len(z), dtype=torch.bool, device=z.device)
    alive = torch.arange(len(z), device=z.device)
    velocity = None
    if batch.keep == "worst" and random_start != "none":
        # a clean error is a success as well, and is not in the path of a random start
        with torch.no_grad():
            hit = batch.fooled(batch.victim(batch.x))
        result[hit] = batch.x[hit]

    for _ in range(n_steps):
        logits, _, gradient = batch.value_and_gradient(z)
        now = batch.fooled(logits)
        if batch.keep == "first":
            now = now & ~hit[alive]
        result[alive[now]] = z[now]
        hit[alive[now]] = True
        if batch.keep == "first":
            left = ~hit[alive]
            n_left = int(left.sum())
            if n_left == 0:
                alive = alive[left]
                break
            if n_left <= (1 - _COMPACT_AT) * len(alive):
                batch, alive = batch.select(left), alive[left]
                z, gradient = z[left], gradient[left]
                velocity = None if velocity is None else velocity[left]
        if momentum is not None:
            gradient = velocity = _accumulate(velocity, gradient, momentum)
        z = batch.ball.ascend(z, gradient, step_size)

    value = torch.full(hit.shape, -torch.inf, device=z.device, dtype=z.dtype)
    if len(alive) == 0:
        return result, hit, value
    with torch.no_grad():
        logits = batch.victim(z)
        value[alive] = batch.value(logits).to(value)
    now = batch.fooled(logits)
    # an iterate that fools is never given up for a later one that does not
    take = ~hit[alive] if batch.keep == "first" else now | ~hit[alive]
    result[alive[take]] = z[take]
    hit[alive] |= now
    return result, hit, value


@dataclass
class Path:
    """What happened to each sample on its way.

    Attributes
    ----------
    z : torch.Tensor of shape (n, ...)
        Where it ended.
    n_right : torch.Tensor of int64 of shape (n,)
        Iterates before the last that did not fool the victim.
    first : torch.Tensor of int64 of shape (n,)
        Number of the first iterate that did, counted from zero; `n_steps`
        where there was none before the last.
    n_taken : torch.Tensor of int64 of shape (n,)
        Steps taken.
    """

    z: torch.Tensor
    n_right: torch.Tensor
    first: torch.Tensor
    n_taken: torch.Tensor


def walk(batch, z, *, n_steps, advance, patience=None):
    """Take steps of any kind, and leave a sample alone once it has gone far enough.

    Parameters
    ----------
    batch : AttackBatch
    z : torch.Tensor of the shape of ``batch.x``
        Where to start.
    n_steps : int
    advance : callable
        ``advance(batch, rows, z, gradient, step)`` returns the next iterates of
        the samples on their way, which are `rows` of the batch given here.
    patience : int, optional
        How many iterates that fool the victim are passed before stopping at the
        next one. None means to go on to the end. Evaluation stops at the first.

    Returns
    -------
    Path
    """
    if batch.keep == "first":
        patience = 0
    whole = batch
    count = {"dtype": torch.int64, "device": z.device}
    rows = torch.arange(len(z), device=z.device)
    n_right, n_taken = torch.zeros_like(rows), torch.zeros_like(rows)
    first = torch.full((len(z),), n_steps, **count)
    n_fooled = torch.zeros_like(rows)
    result = z.clone()
    for step in range(n_steps):
        logits, _, gradient = batch.value_and_gradient(z)
        fooled = batch.fooled(logits)
        n_right[rows] += ~fooled
        first[rows] = torch.where(fooled, first[rows].clamp_max(step), first[rows])
        n_fooled[rows] += fooled
        if batch.keep != "last":
            result[rows[fooled]] = z[fooled]
        if patience is not None:
            going = ~fooled | (n_fooled[rows] <= patience)
            if not going.all():
                result[rows[~going]] = z[~going]
                batch, rows = batch.select(going), rows[going]
                z, gradient = z[going], gradient[going]
                if len(rows) == 0:
                    break
        n_taken[rows] += 1
        z = advance(batch, rows, z, gradient, step)

    if batch.keep == "last":
        result[rows] = z
    elif len(rows):
        with torch.no_grad():
            fooled = batch.fooled(batch.victim(z))
        # an iterate that fools is never given up for a later one that does not
        take = fooled | (n_fooled[rows] == 0)
        result[rows[take]] = z[take]
        n_fooled[rows] += fooled
        missed = (n_fooled == 0).nonzero()[:, 0]
        if batch.keep == "worst" and len(missed):
            # nor is a clean error, which is not on the path of a random start
            clean = whole.select(missed)
            with torch.no_grad():
                wrong = clean.fooled(clean.victim(clean.x))
            result[missed[wrong]] = clean.x[wrong]
    return Path(result, n_right, first, n_taken)
