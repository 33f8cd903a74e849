"""The stages of AutoAttack, and what is kept between them."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass

import numpy as np
import torch

from ..._containers import chunks, copy_of
from ..base import BaseAttack, check_attack
from ..black_box.square import SquareAttack
from ..gradient._margin import MarginPGD
from ..gradient.apgd import APGD
from ..minimal.fab import FAB
from .eot import EOT

#: Share of samples that may have no gradient.
LOST_GRADIENTS = 0.01
#: Shares of the survivors that are attacked again from other starting points.
_RESTART_FRACTIONS = (0.6, 0.4, 0.3, 0.2, 0.1, 0.05, *[0.03] * 8)
_MACHINE = ("compile", "batch_size", "device")
SHARED = ("norm", "eps", "clip", "target", "mask", "bn_mode", "precision", *_MACHINE)
WITHOUT_EFFECT = ("estimator", "verbose", "state_path", "random_state", *_MACHINE)
_SAVE_EVERY = 30.0  # seconds


@dataclass(frozen=True)
class Stage:
    """One attack of the cascade.

    Parameters
    ----------
    name : str
    attack : BaseAttack
    fraction : float, default=1.0
        Share of the survivors that is attacked: those closest to being fooled.
    at_least : int, default=8
        Smallest number of samples that `fraction` may mean.
    spot_check : float, default=0.0
        Share of the other survivors that is attacked as well.
    sample : int, optional
        Attack so many survivors drawn at random instead.
    alarm : bool, default=False
        Whether a success here means that the attacks before were misled.
    """

    name: str
    attack: BaseAttack
    fraction: float = 1.0
    at_least: int = 8
    spot_check: float = 0.0
    sample: int | None = None
    alarm: bool = False


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


class State:
    """What has been achieved so far, kept in a file if there is one."""

    def __init__(self, X, fingerprint, seed, path):
        self.fingerprint, self.seed, self.path = fingerprint, seed, path
        self.X_adv = copy_of(X)
        self.stage = np.full(len(X), -1)
        self.margin = np.full(len(X), -np.inf)
        self.log = []
        self.todo, self.position = None, 0
        self.fooled, self.counts = 0, np.zeros(3)
        self.saved, self.interval = time.monotonic(), _SAVE_EVERY
        if path is not None and os.path.exists(path):
            self._load()

    def begin(self, todo):
        """Start a stage on the samples `todo`."""
        self.todo, self.position = todo, 0
        self.fooled, self.counts = 0, np.zeros(3)

    def record(self, number, rows, found, hit, margins, spent):
        """Take note of what an attack found for some samples."""
        new = hit & (self.stage[rows] < 0)
        better = new | ((self.stage[rows] < 0) & (margins > self.margin[rows]))
        self.X_adv[rows[better]] = found[better]
        self.margin[rows] = np.maximum(self.margin[rows], margins)
        self.stage[rows[new]] = number
        self.fooled += int(hit.sum())
        self.counts += spent
        self.position += len(rows)
        if self.path is not None and time.monotonic() - self.saved > self.interval:
            self.save()

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

    def save(self):
        """Write the file; one that is half written never takes the place of a whole one."""
        start = time.monotonic()
        partial = f"{os.fspath(self.path)}.partial"
        with open(partial, "wb") as file:
            np.savez(
                file,
                fingerprint=self.fingerprint,
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
        os.replace(partial, self.path)
        self.saved = time.monotonic()
        # a small part of the time, however long it takes
        self.interval = max(_SAVE_EVERY, 20 * (self.saved - start))

    def _load(self):
        with np.load(self.path) as kept:
            if str(kept["fingerprint"]) != self.fingerprint:
                raise ValueError(
                    f"state_path={os.fspath(self.path)!r} holds the state of another evaluation: "
                    "the model, the data, the parameters or random_state differ. Give another "
                    "path, or delete the file to begin anew."
                )
            with kept.zip.open("X_adv.npy") as file:
                np.lib.format.read_magic(file)
                _, _, dtype = np.lib.format.read_array_header_1_0(file)
                for rows in chunks(self.X_adv):
                    part = self.X_adv[rows]
                    part[...] = np.frombuffer(file.read(part.nbytes), dtype).reshape(part.shape)
            self.stage, self.margin = kept["stage"], kept["margin"]
            self.log = [StageResult(**entry) for entry in json.loads(str(kept["log"]))]
            self.seed, self.position = int(kept["seed"]), int(kept["position"])
            self.todo = kept["todo"] if self.position >= 0 else None
            self.fooled, self.counts = int(kept["fooled"]), kept["counts"]


def in_batches(victim, X, batches, summary=lambda logits: logits):
    """Return the logits of samples, or what `summary` makes of those of a batch."""
    parts = []
    batches.run(lambda rows: parts.append(summary(victim.logits(X[rows]))), len(X))
    return torch.cat(parts)


def predicted_classes(victim, X, batches):
    """Return the classes that a victim sees in samples, as indices."""
    return in_batches(victim, X, batches, lambda logits: logits.argmax(1)).numpy()


def custom_stages(attacks):
    stages = []
    for entry in attacks:
        name, attack = entry if isinstance(entry, tuple) else (type(entry).__name__, entry)
        check_attack(attack)
        stages.append(Stage(name, attack))
    if not stages:
        raise ValueError("attacks is empty: nothing would be run.")
    return stages


def _targeted(norm, n_classes, at_most=9, **options):
    """Targeted APGD; the difference of logits ratio compares four logits."""
    objective = "dlr" if n_classes >= 4 else "cw"
    return APGD(norm=norm, objective=objective, n_targets=min(at_most, n_classes - 1), **options)


def standard_stages(norm, n_classes):
    n_targets = min(9, n_classes - 1)
    return [
        Stage("APGD-CE", APGD(norm=norm, n_restarts=5 if norm == 1 else 1)),
        Stage("APGD-T", _targeted(norm, n_classes, 5 if norm == 1 else 9)),
        Stage("FAB-T", FAB(norm=norm, n_targets=n_targets)),
        Stage("Square", SquareAttack(norm=norm, max_queries=5000), alarm=True),
    ]


def plus_stages(norm, n_classes):
    objective = "dlr" if n_classes >= 3 else "cw"
    return [
        Stage("APGD-CE", APGD(norm=norm, n_restarts=5)),
        Stage("APGD-DLR", APGD(norm=norm, objective=objective, n_restarts=5)),
        Stage("FAB", FAB(norm=norm, n_restarts=5)),
        Stage("Square", SquareAttack(norm=norm, max_queries=5000)),
        Stage("APGD-T", _targeted(norm, n_classes)),
        Stage("FAB-T", FAB(norm=norm, n_targets=min(9, n_classes - 1))),
    ]


def rand_stages(norm, n_classes):
    objective = "dlr" if n_classes >= 3 else "cw"
    return [
        Stage("APGD-CE", EOT(attack=APGD(norm=norm), n_draws=20)),
        Stage("APGD-DLR", EOT(attack=APGD(norm=norm, objective=objective), n_draws=20)),
    ]


def fast_stages(norm, n_classes):
    n_targets = min(3, n_classes - 1)
    if norm == 1:
        search = [
            Stage("APGD-CE", APGD(norm=norm)),
            Stage("APGD-margin-T", APGD(norm=norm, objective="cw", n_targets=n_targets)),
        ]
    else:
        search = [
            Stage("margin", MarginPGD(norm=norm)),
            Stage("margin-T", APGD(norm=norm, objective="cw", n_steps=20, n_targets=n_targets)),
        ]
        for number, fraction in enumerate(_RESTART_FRACTIONS):
            kind = ("logits", "probabilities")[number % 2]
            n_steps = 60 if fraction == _RESTART_FRACTIONS[-1] else 30
            attack = MarginPGD(norm=norm, n_steps=n_steps, n_direction=7, kind=kind, stream=number)
            search.append(Stage(f"restart-{number}", attack, fraction=fraction))
    return [
        *search,
        Stage("APGD-T", _targeted(norm, n_classes), fraction=0.05),
        Stage(
            "FAB-T", FAB(norm=norm, n_targets=n_targets, n_steps=30), 0.05, spot_check=0.05,
            alarm=True,
        ),
        Stage(
            "Square", SquareAttack(norm=norm, max_queries=1000), 0.05,
            spot_check=0.05, alarm=True,
        ),
    ]  # fmt: skip
