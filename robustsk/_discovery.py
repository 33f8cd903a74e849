"""Lists what exists, so that tests and documentation need no list of their own."""

from __future__ import annotations

from . import attacks, defenses, ensembles
from ._shared import public_classes
from .attacks import BaseAttack
from .defenses import BaseDefense


def all_attacks():
    """Return every public attack class."""
    return public_classes(attacks, BaseAttack)


def all_defenses():
    """Return every public defence, ensembles included."""
    found = [*public_classes(defenses, BaseDefense), *public_classes(ensembles, BaseDefense)]
    return sorted(found, key=lambda cls: cls.__name__)
