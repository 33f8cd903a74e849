"""Adversarial robustness as an ordinary part of scikit-learn work.

Everything that the packages export can be imported from here, but for the
losses; it is loaded when it is first used.
"""

import ast as _ast
import importlib as _importlib
import pkgutil as _pkgutil
from functools import cache as _cache
from typing import TYPE_CHECKING

__version__ = "0.1.0"

#: Whose names can be imported from here, lowest floor first.
_PACKAGES = (
    "models",
    "datasets",
    "attacks",
    "metrics",
    "training",
    "defenses",
    "ensembles",
    "detection",
    "inspection",
    "evaluation",
)
_ONLY_PACKAGES = ("losses", "victims")

if TYPE_CHECKING:  # for editors and type checkers, which do not run what is below
    from . import losses as losses
    from . import victims as victims
    from .attacks import *
    from .datasets import *
    from .defenses import *
    from .detection import *
    from .ensembles import *
    from .inspection import *
    from .metrics import *
    from .models import *
    from .training import *

    # isort: split
    # last, because metrics has its names as well, without their types
    from .evaluation import *
else:

    def __getattr__(name):
        if name in _PACKAGES or name in _ONLY_PACKAGES:
            return _importlib.import_module(f"{__name__}.{name}")
        if name == "__all__":
            return sorted([*_PACKAGES, *_ONLY_PACKAGES, *_where(), "__version__"])
        if name in _where():
            value = getattr(_importlib.import_module(f"{__name__}.{_where()[name]}"), name)
            globals()[name] = value
            return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__():
        return __getattr__("__all__")


@_cache
def _where():
    """Return the package of each name; exports are read off the source, nothing is imported."""
    found = {}
    for package in _PACKAGES:
        try:
            source = _pkgutil.get_data(__name__, f"{package}/__init__.py")
        except OSError:  # compiled files only
            names = _importlib.import_module(f"{__name__}.{package}").__all__
            found.update(dict.fromkeys(names, package))
            continue
        for node in _ast.parse(source).body:
            if isinstance(node, _ast.ImportFrom):
                found.update({a.name: package for a in node.names if a.asname == a.name})
    return found
