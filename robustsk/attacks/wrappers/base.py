"""What the attacks have in common that are made of another attack."""

from __future__ import annotations

import copy
import inspect
from typing import TYPE_CHECKING, Any

import numpy as np

from ..._shared import names_inside
from ...victims.victim import Victim
from ..base import BaseAttack, check_attack
from ..gradient.pgd import PGD

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._parameters import AttackParameters


def _shared_defaults():
    parameters = inspect.signature(BaseAttack.__init__).parameters
    return {n: p.default for n, p in parameters.items() if p.default is not p.empty}


class BaseWrapper(BaseAttack):
    """Base class of the attacks that are made of another attack.

    The threat model (`norm`, `eps`, `clip`, `target`, `mask`, ...) may be given
    to either of the two: what is left at its default here is taken from the
    attack inside.
    """

    def __init__(
        self,
        estimator: Any = None,
        *,
        attack: BaseAttack | None = None,
        **common: Unpack[AttackParameters],
    ):
        self.attack = attack  # first, because a mistyped name is also looked for in it
        super().__init__(estimator, **common)

    def _spellings(self):
        inner = self._default_attack() if self.attack is None else self.attack
        inside = {f"attack={type(inner).__name__}({n}=...)": n for n in names_inside(inner)}
        return {**super()._spellings(), **inside}

    def _default_attack(self):
        """Return the attack inside where none is given."""
        return PGD()

    def _resolved(self):
        if "_inner" in vars(self):
            return self
        inner = self._default_attack() if self.attack is None else self.attack
        check_attack(inner)
        inner = inner._resolved()
        resolved = copy.copy(self)
        for name, default in _shared_defaults().items():
            own, inside = getattr(self, name), getattr(inner, name)
            if same_value(own, default):
                setattr(resolved, name, inside)
            elif not same_value(inside, default) and not same_value(own, inside):
                raise ValueError(
                    f"{name}={own!r} of {type(self).__name__} contradicts {name}={inside!r} of "
                    f"the {type(inner).__name__} inside: give it once."
                )
        resolved.supported_norms = inner.supported_norms
        resolved._inner = inner._with(**{n: getattr(resolved, n) for n in _shared_defaults()})
        return resolved

    def _with(self, **settings):
        attack = super(BaseWrapper, self._resolved())._with(**settings)
        attack._inner = attack._inner._with(**settings)
        return attack

    @property
    def access(self):
        """What is needed of the victim: what the attack inside needs."""
        return self._resolved()._inner.access

    @property
    def minimal(self):
        """Whether the attack inside looks for the closest adversarial example."""
        return self._resolved()._inner.minimal

    @property
    def changes_categories(self):
        """Whether the attack inside changes the categories of tables."""
        return self._resolved()._inner.changes_categories

    def _resolve_objective(self, objective):
        return self._inner._resolve_objective(objective)

    def _stated_eps(self, norm, sample_shape):
        return self._inner._stated_eps(norm, sample_shape)

    def _effective_eps(self, norm, sample_shape):
        return self._inner._effective_eps(norm, sample_shape)

    def _see(self, victim, seed):
        return self._inner._see(victim, seed)

    def _attack_batch(self, batch):
        return self._inner._attack_batch(batch)


class SeenVictim(Victim):
    """A victim as an attack takes it: the same model, asked in another way.

    Subclasses define `__call__` in terms of the victim that they see.

    Parameters
    ----------
    seen : Victim
    """

    def __init__(self, seen):
        super().__init__(
            seen.module,
            classes=seen.classes,
            dtype=seen.dtype,
            bounds=seen.bounds,
            is_image=seen.is_image,
            name=seen.name,
            differentiable=seen.differentiable,
        )
        self.calls = seen.calls
        self.seen = seen

    @property
    def module(self):
        """The network that is asked in the end."""
        return self.seen.module

    @property
    def unfolded(self):
        """The same, of a victim each layer of which does what it does in the model."""
        other = copy.copy(self)
        other.seen = self.seen.unfolded
        return other

    def members(self):
        """Return the victim: what it is asked in another way is one model."""
        return [self]


def same_value(first, second):
    """Tell whether two parameters are the same, arrays included."""
    return first is second or (
        type(first) is type(second) and bool(np.all(np.asarray(first == second)))
    )
