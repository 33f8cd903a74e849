"""Constructor parameters and their documentation, written once per family.

A subclass names its own hyperparameters and passes the rest on with
``**common``. scikit-learn, however, reads the parameters of an estimator off
the signature of its ``__init__``. :class:`SharedParameters` therefore gives
every subclass the full signature, and puts the shared part of the
documentation where the class docstring says ``%(first_parameter)s`` (what every
member of a family takes first), ``%(shared_parameters)s`` and
``%(shared_attributes)s``.
"""

from __future__ import annotations

import inspect
import re
from contextlib import contextmanager
from types import ModuleType


class SharedParameters:
    """Give subclasses the signature and documentation of their bases."""

    _first_parameter_doc = ""
    _shared_parameters_doc = ""
    _shared_attributes_doc = ""

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            _complete_signature(cls)
        if cls.__doc__:
            doc = inspect.cleandoc(cls.__doc__)
            for part in ("first_parameter", "shared_parameters", "shared_attributes"):
                text = inspect.cleandoc(getattr(cls, f"_{part}_doc"))
                doc = doc.replace(f"%({part})s", _without(text, doc))
            cls.__doc__ = doc


def _without(text, doc):
    """Leave out the entries of `text` that `doc` describes itself."""
    entries = re.split(r"^(?=\w+ : )", text, flags=re.MULTILINE)
    own = set(re.findall(r"^(\w+) : ", doc, flags=re.MULTILINE))
    return "".join(e for e in entries if e.split(" : ")[0] not in own).rstrip()


def _complete_signature(cls):
    """Put the parameters behind ``**common`` into the signature of `__init__`."""
    init = vars(cls)["__init__"]
    own = dict(inspect.signature(init).parameters)
    if own.pop("common", None) is None:
        return
    merged = list(own.values())
    for name, parameter in inspect.signature(super(cls, cls).__init__).parameters.items():
        if name not in own:
            by_keyword = parameter.kind is parameter.POSITIONAL_OR_KEYWORD
            merged.append(
                parameter.replace(kind=parameter.KEYWORD_ONLY) if by_keyword else parameter
            )
    merged.sort(key=lambda p: p.kind)
    init.__signature__ = inspect.Signature(merged)


def public_names(namespace):
    """Return what a package exports: all that it has imported but modules and what is private."""
    return sorted(
        name
        for name, value in namespace.items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    )


def public_classes(package, base):
    """Return the classes that a package exports and that derive from `base`, by their names."""
    found = (getattr(package, name) for name in package.__all__)
    return [c for c in found if inspect.isclass(c) and issubclass(c, base) and c is not base]


@contextmanager
def temporarily(obj, **values):
    """Set attributes for the duration of a block, without `__setattr__`."""
    state = vars(obj)
    before = {k: state[k] for k in values if k in state}
    state.update(values)
    try:
        yield
    finally:
        for k in values:
            state.pop(k, None)
        state.update(before)
