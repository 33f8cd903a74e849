"""What a method asks of its adversary, whichever attack that is."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from ..attacks import BaseAttack

if TYPE_CHECKING:
    from typing_extensions import Self

#: What methods prescribe.
_NAMES = ("random_start", "omega", "tau")


class Prescription:
    """A defence that tells any adversary what its method prescribes, unless the user has said it.

    A value that is not the default of its attack was set by the user. Of one that is, nobody can
    tell; there the user says it to the defence, as ``adversary__random_start="uniform"``.
    """

    def prescribed(self) -> dict[str, Any]:
        """Return what the method asks of its adversary: names of parameters and values."""
        return {}

    def _adversary(self):
        adversary = super()._adversary()
        return adversary.set_params(**self._told())

    def _told(self):
        """Return what the adversary given is told, as parameters for its `set_params`."""
        if not isinstance(self.adversary, BaseAttack):
            return {}  # the default one is what is prescribed, and anything else an error
        said = vars(self).keys()
        return {
            path: value
            for path, value in _left_open(self.adversary, self.prescribed())
            if f"adversary__{path}" not in said
        }

    def get_params(self, deep=True, **kwargs):
        """Return the parameters; those of the adversary are what it is used with."""
        params = super().get_params(deep=deep, **kwargs)
        if deep:
            params.update({f"adversary__{path}": value for path, value in self._told().items()})
        return params

    def set_params(self, **params: Any) -> Self:
        """Set parameters of this estimator and of the objects in it."""
        super().set_params(**params)
        for key, value in params.items():
            part, _, path = key.partition("__")
            if part == "adversary" and path.rpartition("__")[2] in _NAMES:
                # the adversary knows the value by now, but not that somebody wanted it
                vars(self)[key] = value
        return self


def is_default(attack, name):
    """Return whether a parameter of an attack has the value that it has by default."""
    parameter = inspect.signature(type(attack)).parameters.get(name)
    return parameter is not None and getattr(attack, name) == parameter.default


def _left_open(attack, asked, prefix=""):
    """Yield what is asked of an attack and the attacks in it and has not been set there."""
    for name, value in attack.get_params(deep=False).items():
        if name in asked and is_default(attack, name):
            yield prefix + name, asked[name]
        elif isinstance(value, BaseAttack):
            yield from _left_open(value, asked, f"{prefix}{name}__")
