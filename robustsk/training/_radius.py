"""The radius that an adversary has in training, and another one for a while."""

from __future__ import annotations

import numpy as np

from ..attacks.threat import UNLIMITED, check_eps, check_norm
from ..attacks.wrappers.base import BaseWrapper


class Radius:
    """The radius that is in force, whichever of the attacks in an adversary has been told it.

    Parameters
    ----------
    adversary : BaseAttack
        It is changed in place, and so are the attacks inside.
    """

    def __init__(self, adversary):
        self._adversary = adversary
        self._own = [(attack, attack.eps) for attack in attacks_of(adversary)]

    def set(self, eps):
        """Attack with another radius from now on."""
        for attack, _ in self._own:
            attack.eps = eps

    def restore(self):
        """Put everything back as it was."""
        for attack, eps in self._own:
            attack.eps = eps

    def full(self, sample_shape):
        """Return the radius that the adversary has by itself, in its own units.

        Parameters
        ----------
        sample_shape : tuple of int

        Returns
        -------
        float or ndarray of shape `sample_shape`

        Raises
        ------
        ValueError
            If there is no limit, as for an attack that looks for the closest example.
        """
        self.restore()
        said = self._adversary._resolved()
        norm = check_norm(said.norm, said.supported_norms)
        if said.minimal and np.max(check_eps(said.eps, norm, sample_shape, True)) == UNLIMITED:
            raise ValueError(
                f"{type(self._adversary).__name__} looks for the closest adversarial example, "
                "however far away, and has no radius that could change: give it one, e.g. "
                "adversary__eps=0.1."
            )
        return said._stated_eps(norm, sample_shape)


def attacks_of(adversary):
    """Yield an attack, the one inside it, and so on: what they say of the radius must agree."""
    yield adversary
    if isinstance(adversary, BaseWrapper) and adversary.attack is not None:
        yield from attacks_of(adversary.attack)
