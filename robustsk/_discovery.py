"""Lists what exists, so that tests and documentation need no list of their own."""

from __future__ import annotations

import importlib
import inspect


def _public_classes(packages, base):
    found = {}
    for package in packages:
        module = importlib.import_module(f"robustsk.{package}")
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isclass(value) and issubclass(value, base) and value is not base:
                found[name] = value
    return [found[name] for name in sorted(found)]


def all_attacks():
    """Return every public attack class."""
    from .attacks.base import BaseAttack

    return _public_classes(["attacks"], BaseAttack)


def all_defenses():
    """Return every public defence, ensembles included."""
    from .defenses.base import BaseDefense

    return _public_classes(["defenses", "ensembles"], BaseDefense)
