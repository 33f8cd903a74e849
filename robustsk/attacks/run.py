"""A run: what is settled before an attack asks its first question, and the way through the data."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_consistent_length
from tqdm import tqdm

from .._containers import Batches, Rows, empty_like, is_out_of_memory, take
from .._generator import GeneratorState
from .._precision import full_precision, rounds
from .._validation import (
    FIRST_AXIS,
    check_labels,
    check_range,
    encode_labels,
    in_order,
    names_of,
    warn_about_other_data,
    warn_about_radius,
    warn_about_units,
)
from ..victims._columns import TableRows, columns_of
from ..victims.engine import agree
from ..victims.resolve import as_victim
from ..victims.victim import Victim
from ._graph import graphs_of
from ._rows import check_categories, warn_about_rows
from .batch import AttackBatch
from .noise import SampleNoise, seeded
from .table_ball import TableBall
from .targeting import check_target, encode_target
from .threat import Ball, check_norm, finite_or, settle
from .trace import Trace


@dataclass
class Prepared:
    """Who attacks whom, in which ball and box, and on which samples.

    Attributes
    ----------
    attack : BaseAttack
        One that says all about itself; see `BaseAttack._resolved`.
    victim : Victim
        On the device of the attack.
    norm : float
    eps : float or ndarray of the shape of a sample
        Zero for features that are frozen.
    lower, upper : ndarray or None
        Valid range, None where there is none.
    space : FeatureSpace or None
        What the columns may become where the samples are rows of a table.
    budgets : ndarray of shape (n_samples,) or None
        Radius of each row as a share of `eps`, where they differ.
    bounds : tuple of (low, high) or None
        The range for ``clip="auto"``.
    X : ndarray or Rows of shape (n_samples, ...) or None
        Finite floating-point data. What is not in memory is read batch by batch.
    index : ndarray of int64 of shape (n_samples,) or None
        Classes to move away from; None means those that the victim predicts.
    target : ndarray of int64 of shape (n_samples,) or None
        Classes to reach, where they do not depend on the prediction.
    batches : Batches or None
        How many samples at a time; shared by all runs of a caller, because it learns.
    seed : int or None
    is_checked : bool
        Whether the samples are known to lie in the range.
    """

    attack: Any
    victim: Victim
    norm: float
    eps: Any
    lower: Any
    upper: Any
    bounds: Any = None
    space: Any = None
    budgets: np.ndarray | None = None
    X: np.ndarray | Rows | None = None
    index: np.ndarray | None = None
    target: np.ndarray | None = None
    batches: Batches | None = None
    seed: int | None = None
    is_checked: bool = True
    _limits: dict = field(default_factory=dict, repr=False)

    def ball(self, x, rows=None):
        """Return the points that may be reached from each sample of a batch of tensors."""
        if self.space is not None:
            budgets = self.budgets
            if budgets is not None and rows is not None:
                budgets = budgets[rows]
            return TableBall(x, self.norm, self.eps, self.space, self.lower, self.upper, budgets)
        kind = x.dtype, x.device
        if kind not in self._limits:
            held = float, torch.Tensor
            self._limits[kind] = [
                v if v is None or isinstance(v, held) else torch.tensor(v, dtype=kind[0]).to(x)
                for v in (self.eps, self.lower, self.upper)
            ]
        eps, lower, upper = self._limits[kind]
        return Ball(x, self.norm, eps, lower, upper)

    def batch(self, seen, x, y=None, objective=None, *, rows=None, seed=None, **known):
        """Return a batch of tensors as the attack sees it.

        Parameters
        ----------
        seen : Victim
            In attack mode.
        x : torch.Tensor of shape (n, ...)
        y : torch.Tensor of shape (n,), optional
        rows : slice or ndarray, optional
            Which of the samples of `X` these are.
        objective, seed, **known
            As in :meth:`~robustsk.attacks.BaseAttack.perturb`, `keep` and `clean_logits` among
            them.

        Returns
        -------
        AttackBatch
        """
        attack, seed = self.attack, self.seed if seed is None else seed
        batch = AttackBatch(
            victim=attack._see(seen, seed),
            x=x,
            y=y,
            target=None,
            ball=self.ball(x, rows),
            objective=attack._resolve_objective(objective),
            noise=SampleNoise(x, seed),
            **known,
        )
        if self.target is not None and rows is not None:
            batch.target = torch.from_numpy(self.target[rows]).to(x.device)
        attack._complete(batch)
        if self.space is not None:
            batch.info.update(batch.ball.notes())
        return batch

    def look(self, seen, rows, keep):
        """Return the samples in `rows` as they are, and as a batch."""
        values = np.array(self.X[rows])
        if not self.is_checked:
            check_range(values, self.lower, self.upper)
        clean = torch.from_numpy(values)
        x = clean.to(seen.device, seen.dtype)
        y = None if self.index is None else torch.from_numpy(self.index[rows]).to(x.device)
        return clean, self.batch(seen, x, y, rows=rows, keep=keep)

    def settle(self, z, x, clean, rows=None):
        """Round what was found for `x` into ball and range in the precision of the user's data."""
        exact = z.cpu()
        if z.dtype != clean.dtype:
            exact = clean + (z - x).cpu().to(clean.dtype)
        if self.space is not None:
            return self.ball(clean, rows).settle(exact)
        return settle(exact, clean, self.norm, self.eps, self.lower, self.upper)

    def seeded(self):
        """Return a context in which a model that draws numbers gives the same answers again."""
        if not self.victim.draws:
            return nullcontext()
        return seeded(self.seed, self.victim.device)

    def take(self, rows, X=None):
        """Return the run on some of the samples.

        Parameters
        ----------
        rows : ndarray of bool or int
        X : ndarray or Rows, optional
            These samples, where the caller has them at hand.
        """
        return replace(
            self,
            X=take(self.X, rows) if X is None else X,
            budgets=None if self.budgets is None else self.budgets[rows],
            index=None if self.index is None else self.index[rows],
            target=None if self.target is None else self.target[rows],
        )

    def _inward(self, eps):
        return eps if self.space is None else self.space.columns_.inward(eps)

    def by(self, attack, **settled):
        """Return the run of another attack on the same samples, in the same range.

        Parameters
        ----------
        attack : BaseAttack
        **settled
            Other attributes; `seed` is drawn from the attack where it is not given.
        """
        attack = attack._resolved()
        norm = check_norm(attack.norm, attack.supported_norms)
        eps = self._inward(attack._effective_eps(norm, self.X.shape[1:]))
        if "seed" not in settled:
            settled["seed"] = attack._draw_seed()
        return replace(self, attack=attack, norm=norm, eps=eps, _limits={}, **settled)

    def resized(self, eps):
        """Return the run with another radius."""
        attack = self.attack._with(eps=eps)
        eps = self._inward(attack._effective_eps(self.norm, self.X.shape[1:]))
        return replace(self, attack=attack, eps=eps, _limits={})


def in_order_of_columns(attack, *named):
    """Return the attack with what has names in the order of the columns.

    Parameters
    ----------
    attack : BaseAttack
        This function is a method of it.
    *named : object
        Tables and estimators; the first that names its columns counts.

    Returns
    -------
    BaseAttack
    """
    inside = getattr(attack, "estimator_", attack.estimator)
    names = names_of(*named, attack, inside)
    said = {name: in_order(getattr(attack, name), names, name) for name in ("eps", "mask")}
    if isinstance(attack.clip, (list, tuple)):
        bounds = tuple(in_order(bound, names, "clip") for bound in attack.clip)
        is_new = any(a is not b for a, b in zip(bounds, attack.clip, strict=True))
        said["clip"] = bounds if is_new else attack.clip
    changed = {name: value for name, value in said.items() if value is not getattr(attack, name)}
    return attack._with(**changed) if changed else attack


def prepare(
    attack,
    model,
    X,
    y=None,
    *,
    bounds=None,
    batches=None,
    original=None,
    in_parts=False,
    is_meant=True,
):
    """Settle everything that must be known before the first question.

    Parameters
    ----------
    attack : BaseAttack
        This function is a method of it.
    model : Victim, torch.nn.Module or fitted estimator
    X : ndarray or Rows of shape (n_samples, ...), or the shape of a sample
        A shape is enough for :meth:`~robustsk.attacks.BaseAttack.perturb_prepared`.
    y : array-like of shape (n_samples,), optional
        Labels, or class indices where the model does not name its classes.
    bounds : tuple of (low, high), optional
        Valid range where ``clip="auto"``; None means no range.
    batches : Batches, optional
        Those of a caller that makes several runs and warns by itself.
    original : object, optional
        What the user passed as X, for warnings.
    in_parts : bool, default=False
        Whether samples that are not in memory are only looked at when they are read.
    is_meant : bool, default=True
        Whether the radius is what the user means, and not one of many that are tried.

    Returns
    -------
    Prepared
    """
    attack = attack._resolved()._in_order(original, model)
    space = attack._space_of(X)
    columns = columns_of(X)
    victim = as_victim(model, attack=type(attack).__name__, access=attack.access, columns=columns)
    shape = X if isinstance(X, tuple) else X.shape[1:]
    norm = check_norm(attack.norm, attack.supported_norms)
    attack, budgets = _split_budgets(attack, space, X)
    eps = attack._effective_eps(norm, shape)
    lower, upper = attack._box(bounds)
    if columns is not None:
        eps = columns.inward(eps)
        lower, upper = (v if v is None else columns.inward(v) for v in (lower, upper))
    if space is not None:
        check_categories(attack, space)
    if isinstance(X, tuple):
        return Prepared(attack, victim, norm, eps, lower, upper, bounds, space)
    victim = victim.to(None if attack.device in ("auto", None) else attack.device)
    if is_meant:
        _warn_about_scale(attack, X, X if original is None else original, norm, eps, lower, upper)
    prepared = Prepared(attack, victim, norm, eps, lower, upper, bounds, space, budgets, X)
    prepared.is_checked = isinstance(attack.clip, str) or not (in_parts and isinstance(X, Rows))
    if prepared.is_checked and not isinstance(attack.clip, str) and space is None:
        check_range(X, lower, upper)
    prepared.batches = Batches(attack._n_at_a_time(X, victim)) if batches is None else batches
    if y is not None:
        y = check_labels(y)
        check_consistent_length(X, y)
    try:
        if y is not None or attack.target is not None:
            victim.learn_classes(X)
        if y is not None:
            prepared.index = encode_labels(y, victim.classes, "y")
        victim.inspect(X, prepared.index)
    except RuntimeError as error:
        if X.ndim > 3 or is_out_of_memory(error):
            raise
        raise ValueError(
            f"{victim.name} does not take X as {len(X)} samples of shape {X.shape[1:]} ({error}). "
            f"{FIRST_AXIS}."
        ) from error
    prepared.target = encode_target(attack.target, victim.classes, len(X))
    check_target(attack.target, prepared.target, prepared.index)
    prepared.seed = attack._draw_seed()
    return prepared


def _split_budgets(attack, space, X):
    """Return the attack with one radius, and the share of it that each row has, None if all."""
    if space is None or np.ndim(attack.eps) != 2 or hasattr(attack.eps, "columns"):
        return attack, None
    budgets = np.asarray(attack.eps, dtype=np.float64)
    if isinstance(X, tuple) or budgets.shape != (len(X), 1) or np.any(~(budgets >= 0)):
        raise ValueError(
            f"eps has shape {budgets.shape}: give one number, one for each column, or one for each "
            "row in shape (n_samples, 1), none of them negative."
        )
    most = float(budgets.max())
    return attack._with(eps=most), budgets[:, 0] / most if most else budgets[:, 0]


def _warn_about_scale(attack, X, original, norm, eps, lower, upper):
    if isinstance(X, TableRows):
        warn_about_rows(X, stacklevel=6)
        if not attack.minimal:
            limits = X.space.limits_
            free = (
                limits.is_number
                & ~limits.is_immutable
                & np.isfinite(np.subtract(limits.high, limits.low))
            )
            free &= (limits.up > 0) & (limits.up < np.inf)
            reach = np.where(free, limits.unit / np.where(free, limits.up, 1.0), 0.0)
            reach = reach * np.reshape(eps, -1)
            warn_about_radius(reach, norm, limits.low, limits.high, reach.shape, stacklevel=6)
        return
    if warn_about_units(original, eps, stacklevel=6):
        return
    if not attack.minimal:  # whose radius is only where the search ends
        warn_about_radius(eps, norm, lower, upper, X.shape[1:], stacklevel=6)
    if isinstance(attack.clip, str):
        warn_about_other_data(X, lower, upper, stacklevel=6)


def perturb_prepared(
    attack, prepared, x, y=None, objective=None, *, seed=None, trace=False, **known
):
    """Attack one batch of tensors; see :meth:`~robustsk.attacks.BaseAttack.perturb`.

    Parameters
    ----------
    attack : BaseAttack
        ``prepared.attack``; this function is a method of it.
    prepared : Prepared
    x, y, objective, seed, **known
        As there, `keep` and `clean_logits` among them.
    trace : bool, "values" or "iterates", default=False
        What to report of the way, as `return_info` there.

    Returns
    -------
    x_adv : torch.Tensor of the shape of `x`
    info : dict of str to torch.Tensor of shape (n, ...)
    """
    if len(x) == 0:
        return x.detach().clone(), {}
    seed = attack._draw_seed() if seed is None else seed
    with prepared.victim.frozen(attack.bn_mode, attack._engine()) as seen:
        x, y = _usable(x), _usable(y)
        known = {"keep": "last", **known, "clean_logits": _usable(known.get("clean_logits"))}
        if isinstance(trace, str):
            known["trace"] = Trace(len(x), trace, x.device)
        seen = seen.precise if attack._asks_only else seen
        if attack.graph is not False and (x.is_cuda or attack.graph != "auto"):
            found = graphs_of(seen).attack(prepared, seen, x, y, objective, seed=seed, **known)
            if found is not None:
                return found, {}
        batch = prepared.batch(seen, x, y, objective, seed=seed, **known)
        x_adv = finite_or(x, attack._attack_batch(batch).detach())
        return x_adv, batch.info if batch.trace is None else batch.info | batch.trace.info()


def perturb_alike(attack, prepared, x, *given, seed=None, **options):
    """Attack one batch of tensors, and leave torch's global generators as they were.

    Parameters
    ----------
    attack : BaseAttack
        ``prepared.attack``; this function is a method of it.
    prepared, x, *given, seed, **options
        As for `perturb_prepared`.

    Returns
    -------
    x_adv : torch.Tensor of the shape of `x`
    info : dict of str to torch.Tensor of shape (n, ...)
    """
    seed = attack._draw_seed() if seed is None else seed
    device, victim = prepared.victim.device, prepared.victim
    before = GeneratorState.present(device)
    found = attack.perturb_prepared(prepared, x, *given, seed=seed, **options)
    if GeneratorState.present(device).equals(before):
        return found
    # it may have been another thread
    with GeneratorState.present(device).watched() as has_drawn, victim.frozen() as seen:
        seen(_usable(x)[:2])
    if not has_drawn():
        return found
    before.put_back()
    with seeded(seed, device):
        return attack.perturb_prepared(prepared, x, *given, seed=seed, **options)


def _usable(tensor):
    """Return a tensor without its past, which may lie in an inference mode."""
    if tensor is None:
        return None
    return tensor.clone() if tensor.is_inference() else tensor.detach()


def run(attack, prepared, keep="worst"):
    """Attack samples batch by batch.

    What counts as a success is what the model itself answers, in full precision, on what is
    returned: where it contradicts what the attack has seen, the sample is attacked again on the
    model as it is.

    Parameters
    ----------
    attack : BaseAttack
        ``prepared.attack``; this function is a method of it.
    prepared : Prepared
    keep : {"last", "worst", "first"}, default="worst"

    Returns
    -------
    X_adv : ndarray of the shape and dtype of the samples
        In a temporary file if they are many and not in memory.
    info : dict of str to ndarray of shape (n_samples, ...)
    """
    X, batches = prepared.X, prepared.batches
    result, info = empty_like(X), {}
    progress = tqdm(
        total=len(X), desc=type(attack).__name__, unit="sample", disable=not attack.verbose
    )
    with progress, prepared.victim.frozen(attack.bn_mode, attack._engine()) as seen:
        seen = seen.precise if attack._asks_only else seen
        for attempt in batches.over(len(X)):
            with attempt as rows, prepared.seeded():
                clean, batch = prepared.look(seen, rows, keep)
                if attack._has_own_perturb:
                    z = _perturb(attack, prepared, seen, rows, batch)
                else:
                    z = attack._attack_batch(batch).detach()
                settled = prepared.settle(z, batch.x, clean, rows)
                _note(info, rows, batch.info, len(X))
                # asking again would cost more than was allowed
                if keep != "last" and not attack._asks_only:
                    with attack._same_each_time(z.device):
                        again = _unconfirmed(seen, batch, z, settled.to(z)).cpu().numpy()
                    if again.any():
                        settled[again] = _attack_again(
                            prepared, seen.itself, np.arange(rows.start, rows.stop)[again], info
                        )
                result[rows] = settled.numpy()
                progress.update(len(settled))
    return result, info


def _attack_again(prepared, itself, rows, info):
    """Attack the model as it is; what is counted goes on being counted."""
    clean, batch = prepared.look(itself, rows, "worst")
    z = _perturb(prepared.attack, prepared, itself, rows, batch)
    counts = {n: v[rows] for n, v in info.items() if n.startswith("n_")}
    _note(info, rows, batch.info, len(prepared.X))
    for name, count in counts.items():
        info[name][rows] += count
    return prepared.settle(z, batch.x, clean, rows)


def _perturb(attack, prepared, seen, rows, batch):
    """Return the perturbed batch, by a `perturb` that a subclass has defined where there is one."""
    if not attack._has_own_perturb:
        return attack._attack_batch(batch).detach()
    if prepared.target is not None and np.ndim(attack.target) == 1:
        attack = attack._with(target=seen.classes[prepared.target[rows]])
    z, batch.info = attack.perturb(
        seen,
        batch.x,
        batch.y,
        bounds=prepared.bounds,
        seed=prepared.seed,
        keep=batch.keep,
        return_info=True,
    )
    return z


def _note(info, rows, found, n_samples):
    """Enter what an attack reports about some of the samples."""
    for name, values in found.items():
        values = values.cpu().numpy()
        if name not in info:
            info[name] = np.zeros((n_samples, *values.shape[1:]), dtype=values.dtype)
        info[name][rows] = values


@torch.no_grad()
def _unconfirmed(seen, batch, z, settled):
    """Return where an attack has seen a success and the model itself sees none, shape (n,).

    That can be where an example was rounded into the precision of the user, and wherever the attack
    saw the model in another arithmetic. If more than rounding lies between the two, what was done
    to make the network fast has changed what it computes, and nothing that was found is of use.
    """
    open_ = (settled != z).flatten(1).any(1)
    if seen.has_batch_statistics:
        return torch.zeros_like(open_)  # an answer about some of a batch is another one
    if seen.is_changed:
        open_[:] = True
    if not open_.any():
        return open_
    rows = open_.nonzero()[:, 0]
    answers = seen.itself(settled[rows])
    missed = ~batch.select(rows).fooled(answers)
    rows, answers = rows[missed], answers[missed]
    open_[:] = False
    if len(rows) == 0:
        return open_
    seemed = seen(z[rows])
    if seen.is_folded:
        unrounded = seemed
        if seen.is_rough or rounds(z):
            with full_precision(z.device):
                unrounded = seen.precise(z[rows])
        if not agree(unrounded, answers):
            seen.distrust()
            open_[:] = True
            return open_
    open_[rows[batch.select(rows).fooled(seemed)]] = True
    return open_
