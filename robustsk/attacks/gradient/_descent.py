"""The descent loops that the gradient attacks share."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..._tensors import column
from ..noise import Stream

#: Finished samples are dropped from the batch once they are this share of it:
#: copying the survivors costs less than one more step with the finished ones.
COMPACT_AT = 0.05
#: Numbers in the samples up to which runs share a batch on a CPU, and samples on a GPU. Beyond
#: that a larger batch takes as much longer as it is larger.
_ROOM, _ROOM_ON_GPU = 2**16, 512


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
    climb = _advanced if batch.keep == "last" else _tracked
    if batch.keep == "last" and runs == 1:
        z = batch.ball.random_start(random_start, batch.noise, Stream.START, start_std)
        return _advance(batch, z, n_steps, step_size, momentum)
    best = batch.x.clone()
    best_value = torch.full((len(best),), -torch.inf, device=best.device, dtype=best.dtype)
    solved = torch.zeros(len(best), dtype=torch.bool, device=best.device)
    run = 0
    while run < runs:
        todo = torch.arange(len(best), device=best.device)
        if batch.keep == "first":
            todo = todo[~solved]
        if len(todo) == 0:
            break
        part = batch if len(todo) == len(best) else batch.select(todo)
        # a trace has one run after the other
        count = n_together(part.x, runs - run) if run and batch.trace is None else 1
        z = torch.cat(
            [
                part.ball.random_start(random_start, part.noise, Stream.START + s, start_std)
                for s in range(run, run + count)
            ]
        )
        has_moved = random_start != "none"
        found = climb(repeat(part, count), z, len(todo), has_moved, n_steps, step_size, momentum)
        run += count
        for z, fooled, value in zip(*(result.split(len(todo)) for result in found), strict=True):
            # the first run that fools the victim wins, and before that the highest objective
            better = ~solved[todo] & (fooled | (value > best_value[todo]))
            kept = todo[better]
            best[kept], best_value[kept] = z[better], value[better]
            solved[todo] |= fooled
    return best


def n_together(x, n_runs):
    """Return how many of the runs that are left should share one batch.

    A device is hardly busy with a few samples. The first run is best made alone:
    most samples that can be fooled fall in it.
    """
    room = _ROOM_ON_GPU if x.is_cuda else _ROOM // max(1, x[:1].numel())
    return max(1, min(n_runs, room // len(x)))


def repeat(batch, count):
    """Return the batch `count` times over, one after the other."""
    if count == 1:
        return batch
    return batch.select(torch.arange(len(batch.x), device=batch.x.device).repeat(count))


def settled(hit, n_samples):
    """Return which rows need no more work in evaluation, where runs share a batch.

    That is those that have fooled the victim, and the same samples in later
    runs; an earlier run goes on, so that it is the first one that counts.
    """
    if len(hit) == n_samples:
        return hit
    return hit.reshape(-1, n_samples).cumsum(0).reshape(-1) > 0


def _advance(batch, z, n_steps, step_size, momentum):
    """Take all steps and return the last iterate: forward and input gradient, nothing else."""
    velocity = None
    for _ in range(n_steps):
        _, _, gradient = batch.value_and_gradient(z)
        if momentum is not None:
            gradient = velocity = _accumulate(velocity, gradient, momentum)
        z = batch.ball.ascend(z, gradient, step_size)
    return z


def _accumulate(velocity, gradient, momentum):
    size = gradient.flatten(1).abs().sum(1).clamp_min(torch.finfo(gradient.dtype).tiny)
    gradient = gradient / column(size, gradient)
    return gradient if velocity is None else momentum * velocity + gradient


def _advanced(batch, z, n_samples, has_moved, n_steps, step_size, momentum):
    """Take all steps; return the last iterates, that they do not count as successes, and values."""
    z = _advance(batch, z, n_steps, step_size, momentum)
    with torch.no_grad():
        value = batch.value(batch.ask(z)).to(z.dtype)
    return z, torch.zeros(len(z), dtype=torch.bool, device=z.device), value


def _tracked(batch, z, n_samples, has_moved, n_steps, step_size, momentum):
    """Take the steps; return the results, where they fool the victim, and their objectives."""
    result = z.clone()
    hit = torch.zeros(len(z), dtype=torch.bool, device=z.device)
    alive = torch.arange(len(z), device=z.device)
    velocity = None
    for _ in range(n_steps):
        logits, _, gradient = batch.value_and_gradient(z)
        now = batch.fooled(logits)
        if batch.keep == "worst":
            # not an index in sight that the host would have to know
            result = torch.where(column(now, z), z, result)
            hit |= now
        else:
            now = now & ~hit[alive]
            result[alive[now]] = z[now]
            hit[alive[now]] = True
            left = ~settled(hit, n_samples)[alive]
            n_left = int(left.sum())
            if n_left == 0:
                alive = alive[left]
                break
            if n_left <= (1 - COMPACT_AT) * len(alive):
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
        logits = batch.ask(z)
        value[alive] = batch.value(logits).to(value)
    now = batch.fooled(logits)
    # an iterate that fools is never given up for a later one that does not
    take = ~hit[alive] if batch.keep == "first" else now | ~hit[alive]
    result[alive[take]] = z[take]
    hit[alive] |= now
    if batch.keep == "worst" and has_moved:
        # nor is a clean error, which is not in the path of a random start
        keep_clean_errors(batch, result, hit)
    return result, hit, value


def keep_clean_errors(batch, result, hit):
    """Return to the samples, of those that nothing has fooled, where the victim errs."""
    missed = (~hit).nonzero()[:, 0]
    if len(missed) == 0:
        return
    clean = batch.select(missed)
    logits = clean.clean_logits
    if logits is None:
        with torch.no_grad():
            logits = clean.ask(clean.x)
    wrong = clean.fooled(logits)
    result[missed[wrong]] = clean.x[wrong]
    hit[missed[wrong]] = True


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


def walk(batch, z, *, n_steps, advance, patience=None, stop=None):
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
    stop : callable, optional
        ``stop(batch, rows, z, gradient)`` says which samples have gone far enough
        for another reason, shape (n,).

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
        if patience is not None or stop is not None:
            going = torch.ones_like(fooled)
            if patience is not None:
                going = ~fooled | (n_fooled[rows] <= patience)
            if stop is not None:
                going &= ~stop(batch, rows, z, gradient)
            if not going.all():
                # an iterate that fools is never given up for a later one that does not
                take = ~going
                if batch.keep != "last":
                    take &= fooled | (n_fooled[rows] == 0)
                result[rows[take]] = z[take]
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
            fooled = batch.fooled(batch.ask(z))
        take = fooled | (n_fooled[rows] == 0)
        result[rows[take]] = z[take]
        n_fooled[rows] += fooled
    if whole.keep == "worst":
        keep_clean_errors(whole, result, n_fooled > 0)
    return Path(result, n_right, first, n_taken)
