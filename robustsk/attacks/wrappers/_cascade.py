"""The stages of AutoAttack, and what is kept between them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..base import BaseAttack, check_attack
from ..black_box.square import SquareAttack
from ..gradient._margin import MarginPGD
from ..gradient.apgd import APGD
from ..minimal.fab import FAB
from .eot import EOT

#: Share of samples that may have no gradient.
LOST_GRADIENTS = 0.01
#: Survivors that are attacked without gradients wherever they lie: where gradients mislead, the
#: distance from the border says nothing.
_AT_RANDOM = 20
#: Shares of the survivors that are attacked again from other starting points.
_RESTART_FRACTIONS = (0.6, 0.4, 0.3, 0.2, 0.1, 0.05, *[0.03] * 8)
_MACHINE = ("compile", "batch_size", "device")
SHARED = ("norm", "eps", "clip", "target", "mask", "bn_mode", "precision", *_MACHINE)
WITHOUT_EFFECT = ("estimator", "verbose", "state_path", "random_state", *_MACHINE)


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
    at_random : int, default=0
        Smallest number of others that `spot_check` may mean.
    sample : int, optional
        Attack so many survivors drawn at random instead.
    alarm : bool, default=False
        Whether a success here means that the attacks before were misled.
    tolerance : int, default=2
        How many successes may be chance.
    once_more : int, default=0
        How many survivors, drawn at random, are attacked in another stage if successes are no more
        than that; there none may be chance.
    """

    name: str
    attack: BaseAttack
    fraction: float = 1.0
    at_least: int = 8
    spot_check: float = 0.0
    at_random: int = 0
    sample: int | None = None
    alarm: bool = False
    tolerance: int = 2
    once_more: int = 0


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


def _published_square(norm):
    return SquareAttack(norm=norm, max_queries=5000, rescale_schedule=False)


def standard_stages(norm, n_classes):
    n_targets = min(9, n_classes - 1)
    return [
        Stage("APGD-CE", APGD(norm=norm, n_restarts=5 if norm == 1 else 1)),
        Stage("APGD-T", _targeted(norm, n_classes, 5 if norm == 1 else 9)),
        Stage("FAB-T", FAB(norm=norm, n_targets=n_targets)),
        Stage("Square", _published_square(norm), alarm=True),
    ]


def plus_stages(norm, n_classes):
    objective = "dlr" if n_classes >= 3 else "cw"
    return [
        Stage("APGD-CE", APGD(norm=norm, n_restarts=5)),
        Stage("APGD-DLR", APGD(norm=norm, objective=objective, n_restarts=5)),
        Stage("FAB", FAB(norm=norm, n_restarts=5)),
        Stage("Square", _published_square(norm)),
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
            spot_check=0.05, at_random=_AT_RANDOM, alarm=True, tolerance=1,
            once_more=2 * _AT_RANDOM,
        ),
    ]  # fmt: skip
