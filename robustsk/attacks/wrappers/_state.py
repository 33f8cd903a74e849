"""What AutoAttack has achieved, in a file, and of which evaluation it is."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import pickle
import sys
import time
import types
import zipfile
import zlib
from contextlib import suppress
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from sklearn.base import BaseEstimator

from ..._containers import chunks, copy_of
from ...victims.victim import ACCESS
from ..noise import seeded

_SAVE_EVERY = 30.0  # seconds
#: Samples on which a model is recognised by its answers, and by its gradients.
_N_ANSWERS, _N_GRADIENTS = 512, 16
#: By how much they may differ from one machine to another, as a share of the largest.
_ROUNDING = {"answers": 1e-4, "gradients": 1e-2}
#: What a file that is damaged, or none of ours, makes the readers raise.
_DAMAGE = (
    AttributeError, EOFError, IndexError, KeyError, TypeError, ValueError, zipfile.BadZipFile,
    zlib.error,
)  # fmt: skip


@dataclass(frozen=True)
class StageResult:
    """What one attack of the cascade did.

    Attributes
    ----------
    name : str
    n_attacked, n_fooled : int
    robust_accuracy : float
        Of the worst case so far; in individual mode of this attack alone.
    n_forward, n_backward : int
        Samples that went through the model, and gradients taken.
    seconds : float
    """

    name: str
    n_attacked: int
    n_fooled: int
    robust_accuracy: float
    n_forward: int
    n_backward: int
    seconds: float


def _check_place(path):
    """Raise now, and not after the first stage, if no file can be written at `path`."""
    if path is None:
        return
    if os.path.isdir(path):
        raise IsADirectoryError(
            f"state_path={os.fspath(path)!r} is a folder: give the name of a file in it."
        )
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise FileNotFoundError(
            f"state_path={os.fspath(path)!r} is in a folder that does not exist: make {folder!r} "
            "first, or give another path."
        )


class State:
    """What has been achieved so far, kept in a file if there is one.

    Parameters
    ----------
    X : ndarray or Rows of shape (n_samples, ...)
    known : dict or None
        What must be as in the file; see `fingerprint`. None if there is no file.
    seed : int
    path : str or path-like or None
    """

    def __init__(self, X, known, seed, path):
        _check_place(path)
        self.known, self.seed, self.path = known, seed, path
        self.begin_anew(X)
        self.saved, self.interval = time.monotonic(), _SAVE_EVERY
        self.is_loaded = path is not None and os.path.exists(path)
        if self.is_loaded:
            self._load()

    def begin_anew(self, X):
        """Forget everything."""
        self.X_adv = copy_of(X)
        self.stage = np.full(len(X), -1)
        self.margin = np.full(len(X), -np.inf)
        self.log = []
        self.todo, self.position = None, 0
        self.fooled, self.counts = 0, np.zeros(3)
        self.doubted = np.zeros(0, dtype=int)

    def begin(self, todo):
        """Start a stage on the samples `todo`."""
        self.todo, self.position = todo, 0
        self.fooled, self.counts = 0, np.zeros(3)

    def record(self, number, rows, found, hit, margins, spent):
        """Take note of what an attack found for some samples."""
        self.fooled += int(hit.sum())
        self._enter(number, rows, found, hit, margins)
        self.counts += spent
        self.position += len(rows)
        if self.path is not None and time.monotonic() - self.saved > self.interval:
            self.save()

    def _enter(self, number, rows, found, hit, margins):
        new = hit & (self.stage[rows] < 0)
        better = new | ((self.stage[rows] < 0) & (margins > self.margin[rows]))
        self.X_adv[rows[better]] = found[better]
        self.margin[rows] = np.fmax(self.margin[rows], margins)  # logits may be NaN
        self.stage[rows[new]] = number
        return int(new.sum())

    def finish(self, name, individual):
        """Close a stage."""
        n = len(self.stage)
        left = n - self.fooled if individual else int(np.sum(self.stage < 0))
        forward, backward, seconds = self.counts
        self.log.append(
            StageResult(
                name, len(self.todo), self.fooled, left / n, int(forward), int(backward),
                float(seconds),
            )
        )  # fmt: skip
        self.todo = None
        if self.path is not None:
            self.save()

    # --- what was read and is not true ------------------------------------------------

    def doubt(self, rows, X):
        """Forget what has been found for some samples, which are to be attacked again."""
        self.doubted = rows
        for number in self.stage[rows][self.stage[rows] >= 0]:
            if number < len(self.log):
                entry = self.log[number]
                self.log[number] = replace(entry, n_fooled=entry.n_fooled - 1)
            else:
                self.fooled -= 1
        self.stage[rows], self.margin[rows], self.X_adv[rows] = -1, -np.inf, X[rows]
        self._count()

    def repeat(self, number, attack_rows, attack):
        """Attack the samples in doubt in a stage that all others have behind them, or partly."""
        rows = self.doubted[self.stage[self.doubted] < 0]
        if number < len(self.log):
            if len(rows):
                new = self._enter(number, rows, *attack_rows(attack, number, rows))
                entry = self.log[number]
                self.log[number] = replace(entry, n_fooled=entry.n_fooled + new)
                self._count()
                self.save()
            return
        if self.todo is not None:
            others = self.todo[~np.isin(self.todo, self.doubted)]
            self.position -= int(np.isin(self.todo[: self.position], self.doubted).sum())
            self.todo = np.concatenate([others, rows])
        self.doubted = rows[:0]

    def _count(self):
        n = len(self.stage)
        for number, entry in enumerate(self.log):
            left = n - int(np.sum((self.stage >= 0) & (self.stage <= number)))
            self.log[number] = replace(entry, robust_accuracy=left / n)

    # --- the file --------------------------------------------------------------------

    def save(self):
        """Write the file; one that is half written never takes the place of a whole one."""
        start = time.monotonic()
        partial = f"{os.fspath(self.path)}.partial"
        try:
            self._write(partial)
            os.replace(partial, self.path)
        except BaseException:
            with suppress(OSError):
                os.remove(partial)
            raise
        self.saved = time.monotonic()
        # a small part of the time, however long it takes
        self.interval = max(_SAVE_EVERY, 20 * (self.saved - start))

    def _write(self, path):
        with open(path, "wb") as file:
            np.savez(
                file,
                fingerprint=json.dumps(self.known["parts"]),
                answers=self.known["answers"],
                gradients=self.known["gradients"],
                seed=self.seed,
                X_adv=self.X_adv,
                stage=self.stage,
                margin=self.margin,
                log=json.dumps([asdict(entry) for entry in self.log]),
                todo=np.zeros(0, int) if self.todo is None else self.todo,
                position=-1 if self.todo is None else self.position,
                fooled=self.fooled,
                counts=self.counts,
            )

    def _load(self):
        try:
            with np.load(self.path) as kept:
                differing = self._differing(kept)
                if not differing:
                    self._read(kept)
        except _DAMAGE as error:
            raise ValueError(
                f"state_path={os.fspath(self.path)!r} is damaged or holds no state of AutoAttack "
                f"({type(error).__name__}: {error}). Give another path, or delete the file to "
                "begin anew."
            ) from error
        if differing:
            raise ValueError(
                f"state_path={os.fspath(self.path)!r} holds the state of another evaluation: not "
                f"the same {', '.join(differing)}. Give another path, or delete the file to begin "
                "anew."
            )

    def _differing(self, kept):
        """Return the names of what is not as in the file."""
        text = str(kept["fingerprint"])
        parts = json.loads(text) if text.startswith("{") else {}
        differing = [name for name, part in self.known["parts"].items() if parts.get(name) != part]
        if not differing:
            for name, share in _ROUNDING.items():
                if not _alike(kept[name], self.known[name], share):
                    return [f"{name} of the model"]
        return differing

    def _read(self, kept):
        n = len(self.stage)
        with kept.zip.open("X_adv.npy") as file:
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            if (shape, dtype) != (self.X_adv.shape, self.X_adv.dtype):
                raise ValueError(f"X_adv has the shape {shape} and the type {dtype}")
            for rows in chunks(self.X_adv):
                part = self.X_adv[rows]
                part[...] = np.frombuffer(file.read(part.nbytes), dtype).reshape(part.shape)
            if file.read(1):  # to the end, where the checksum is compared
                raise ValueError("X_adv is too long")
        self.stage, self.margin = kept["stage"], kept["margin"]
        self.log = [StageResult(**entry) for entry in json.loads(str(kept["log"]))]
        self.seed, self.position = int(kept["seed"]), int(kept["position"])
        self.todo = kept["todo"] if self.position >= 0 else None
        self.fooled, self.counts = int(kept["fooled"]), kept["counts"]
        least, most = self.stage.min(), self.stage.max()
        if self.stage.shape != (n,) or self.margin.shape != (n,) or self.counts.shape != (3,):
            raise ValueError("its arrays are not of one length")
        if least < -1 or most > len(self.log) or np.isnan(self.margin).any():
            raise ValueError("a sample has fallen to a stage that there was not")
        if self.todo is not None and not set(self.todo.tolist()) <= set(range(n)):
            raise ValueError("it is about samples that there are not")


def _alike(first, second, share):
    """Return whether two arrays differ by what one machine rounds otherwise than another."""
    if first.shape != second.shape or not np.array_equal(np.isfinite(first), np.isfinite(second)):
        return False
    first, second = (np.where(np.isfinite(v), v, 0.0) for v in (first, second))
    scale = float(np.abs(second).max(initial=0.0))
    return bool(np.all(np.abs(first - second) <= share * scale))


# --- of which evaluation it is --------------------------------------------------------


def fingerprint(attack, prepared, index, without, overridden):
    """Return what must be equal for a state to be continued.

    Parameters
    ----------
    attack : AutoAttack
    prepared : Prepared
    index : ndarray of int64 of shape (n_samples,)
        Classes to move away from.
    without : sequence of str
        Parameters on which the result does not depend.
    overridden : sequence of str
        Parameters that the attacks inside have from `attack`.

    Returns
    -------
    dict
        "parts" by their names in messages, each a hash; "answers" and "gradients" of the model,
        which are the same but for rounding.
    """
    X, victim = prepared.X, prepared.victim
    data = hashlib.sha256(repr((X.shape, X.dtype)).encode())
    for rows in chunks(X):
        data.update(np.ascontiguousarray(X[rows]))
    # as resolved, so that a default and what it stands for are the same
    own = {
        name: value
        for name, value in attack.get_params(deep=False).items()
        if name not in (*without, "norm", "eps", "clip", "mask")
    }
    own |= {"norm": prepared.norm, "eps": prepared.eps}
    ignored = frozenset((*without, *overridden))
    parts = {
        "version of robustsk": sys.modules[__name__.partition(".")[0]].__version__,
        "model": _hash(_body(victim.module), victim.classes, victim.name),
        "data": data.hexdigest(),
        "labels": _hash(index),
        "valid range": _hash(prepared.lower, prepared.upper),
        "parameters": _hash(own, ignored=ignored),
        # with any randomness allowed, that of the first part of the run is as good as another
        "random_state": _hash(None if attack.random_state is None else prepared.seed),
    }
    with seeded(0, victim.device):
        answers, gradients = _behaviour(attack, victim, X, prepared.batches)
    return {"parts": parts, "answers": answers, "gradients": gradients}


def _body(module):
    """Return what a network consists of: its parts, parameters and buffers."""
    classes = [(name, type(part).__qualname__) for name, part in module.named_modules()]
    return classes, dict(module.named_parameters()), dict(module.named_buffers())


def _behaviour(attack, victim, X, batches):
    """Return logits, and gradients of a mixture of them, of some samples."""
    answers, gradients = [], []
    few = X[:_N_ANSWERS]
    batches.run(lambda rows: answers.append(victim.logits(few[rows])), len(few))
    logits = torch.cat(answers).double()
    logits = (logits - logits.mean(1, keepdim=True)).numpy()
    if not victim.differentiable or attack.access in ACCESS[1:]:
        return logits, np.zeros(0)
    few = X[:_N_GRADIENTS]
    with victim.frozen(attack.bn_mode) as seen, torch.enable_grad():

        def look(rows):
            x = torch.from_numpy(np.array(few[rows])).to(seen.device, seen.dtype)
            found = seen(x.requires_grad_(True))
            # each logit has a weight of its own, and so a part in it
            value = (found * torch.arange(1, found.shape[1] + 1).to(found).cos()).sum()
            if value.requires_grad:
                (gradient,) = torch.autograd.grad(value, x, allow_unused=True)
                gradients.append(torch.zeros_like(x) if gradient is None else gradient)

        batches.run(look, len(few))
    found = torch.cat(gradients).double().cpu().numpy() if gradients else np.zeros(0)
    return logits, found


def _hash(*values, ignored=frozenset()):
    digest = hashlib.sha256()
    _describe(values, digest.update, ignored, [])
    return digest.hexdigest()


def _describe(value, write, ignored, inside):
    """Write what a value is, in a way that another process finds again.

    Parameters
    ----------
    value : object
    write : callable
        Takes bytes.
    ignored : frozenset of str
        Names of parameters of attacks that are left out.
    inside : list
        What is being described, of which the value is a part.
    """

    def inner(*parts):
        for part in parts:
            _describe(part, write, ignored, [*inside, value])

    kind = type(value)
    write(f"<{kind.__module__}.{kind.__qualname__}>".encode())
    if any(value is outer for outer in inside):
        return
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes, range)):
        write(repr(value).encode())
    elif isinstance(value, torch.Tensor):
        inner(tuple(value.shape), str(value.dtype))
        write(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, (np.ndarray, np.generic)) and value.dtype != object:
        inner(value.shape, value.dtype.str)
        write(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, np.ndarray):
        inner(value.shape, value.tolist())
    elif isinstance(value, (list, tuple)):
        inner(*value)
    elif isinstance(value, (set, frozenset)):
        inner(sorted(_hash(part, ignored=ignored) for part in value))
    elif isinstance(value, dict):
        inner(sorted((repr(name), _hash(v, ignored=ignored)) for name, v in value.items()))
    elif isinstance(value, torch.nn.Module):
        inner(*_body(value))
    elif isinstance(value, types.CodeType):
        inner(value.co_code, value.co_consts, value.co_names, value.co_varnames)
    elif isinstance(value, types.FunctionType):
        cells = [_content(cell) for cell in value.__closure__ or ()]
        inner(value.__qualname__, value.__code__, value.__defaults__, value.__kwdefaults__, cells)
    elif isinstance(value, types.MethodType):
        inner(value.__func__, value.__self__)
    elif isinstance(value, functools.partial):
        inner(value.func, value.args, value.keywords)
    elif isinstance(value, (type, types.BuiltinFunctionType, types.ModuleType)):
        inner(getattr(value, "__module__", None), getattr(value, "__qualname__", value.__name__))
    elif isinstance(value, os.PathLike):
        inner(os.fspath(value))
    else:
        _describe_object(value, inner, ignored)


def _describe_object(value, inner, ignored):
    state = dict(getattr(value, "__dict__", {}))
    if isinstance(value, BaseEstimator):
        state |= value.get_params(deep=False)
        if hasattr(value, "perturb"):
            state = {name: v for name, v in state.items() if name not in ignored}
    if state:
        inner(state)
        return
    try:
        inner(pickle.dumps(value, protocol=4))
    except Exception:  # what cannot be named is known by its kind alone
        return


def _content(cell):
    try:
        return cell.cell_contents
    except ValueError:  # a variable that has no value yet
        return None
