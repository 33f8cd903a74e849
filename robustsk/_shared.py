"""Constructor parameters and their documentation, written once per family.

A subclass names its own hyperparameters and passes the rest on with
``**common``. scikit-learn, however, reads the parameters of an estimator off
the signature of its ``__init__``. :class:`SharedParameters` therefore gives
every subclass the full signature, and puts the shared part of the
documentation where the class docstring says ``%(first_parameter)s`` (what every
member of a family takes first), ``%(shared_parameters)s`` and
``%(shared_attributes)s``. A name that nobody knows arrives in the constructor
of the last base, which has :meth:`SharedParameters._refuse` say so.
"""

from __future__ import annotations

import difflib
import inspect
import re
from contextlib import contextmanager
from threading import Lock
from types import ModuleType


class SharedParameters:
    """Give subclasses the signature and documentation of their bases, and answer typing errors."""

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

    def _refuse(self, names):
        """Raise a TypeError if there are any of `names`, which are parameters of nobody."""
        for name in names:
            close = _closest(name, self._spellings())
            hint = f" Did you mean {close!r}?" if close else ""
            raise TypeError(f"{type(self).__name__} has no parameter {name!r}.{hint}")

    def _spellings(self):
        """Return how each parameter is written, nested ones included, and its name."""
        return {name: name for name in names_inside(type(self))}


#: What parameters are called in other libraries, and here.
_ELSEWHERE = {
    "alpha": ("step_size",),
    "batches": ("batch_size",),
    "epochs": ("max_epochs",),
    "eps_step": ("step_size",),
    "epsilon": ("eps",),
    "estimators": ("module",),
    "iterations": ("n_steps", "max_iter"),
    "learning_rate": ("lr",),
    "model": ("estimator", "module"),
    "nb_iter": ("n_steps", "max_iter"),
    "p": ("norm",),
    "restarts": ("n_restarts",),
    "seed": ("random_state",),
    "steps": ("n_steps",),
}


def names_inside(thing):
    """Return the names of what may be said about an object, or to what makes one."""
    if hasattr(thing, "get_params") and not isinstance(thing, type):
        return list(thing.get_params(deep=False))
    try:
        parameters = inspect.signature(thing).parameters.values()
    except (TypeError, ValueError):  # not callable, or written in C
        return []
    return [p.name for p in parameters if p.default is not p.empty]


def _closest(name, spellings):
    """Return the spelling that is most like a mistyped one, of equal ones the first, or None."""
    _, nested, last = name.rpartition("__")
    elsewhere = _ELSEWHERE.get(last, ())
    for spelling, own in spellings.items():
        if own in elsewhere:
            return spelling

    def likeness(spelling):
        same = max(_likeness(name, spelling), _likeness(last, spellings[spelling]))
        # of equal ends the prefix tells which is meant
        return same, difflib.SequenceMatcher(None, name, spelling).ratio() if nested else 0

    best = max(spellings, key=likeness)
    # in a nested name, and in a short one, a few letters in common are easily a coincidence
    alike = 0.8 if "__" in best or len(best) <= 3 else 0.7
    return best if likeness(best)[0] >= alike else None


def _likeness(first, second):
    """Return how alike two names are, from 0 to 1."""
    short, long = sorted((first, second), key=len)
    # "eps" is what "epsilon" means, although "precision" has more letters in common with it
    is_part = len(short) > 2 and (long.startswith(short) or long.endswith(f"_{short}"))
    swapped = sorted(first) == sorted(second)
    return max(0.85 * is_part, 0.9 * swapped, difflib.SequenceMatcher(None, first, second).ratio())


def _without(text, doc):
    """Leave out the entries of `text` that `doc` describes itself."""
    entries = re.split(r"^(?=\w+ : )", text, flags=re.MULTILINE)
    own = set(re.findall(r"^(\w+) : ", doc, flags=re.MULTILINE))
    return "".join(e for e in entries if e.split(" : ")[0] not in own).rstrip()


def _complete_signature(cls):
    """Put the parameters behind ``**common`` into the signature of `__init__`."""
    init = vars(cls)["__init__"]
    own = dict(inspect.signature(init).parameters)
    behind = next((n for n, p in own.items() if p.kind is p.VAR_KEYWORD), None)
    if behind == "unknown":  # which the last base takes in order to refuse it
        del own[behind]
        init.__signature__ = inspect.Signature(list(own.values()))
    if behind != "common":
        return
    del own[behind]
    merged = list(own.values())
    for name, parameter in inspect.signature(super(cls, cls).__init__).parameters.items():
        if name not in own:
            by_keyword = parameter.kind is parameter.POSITIONAL_OR_KEYWORD
            merged.append(
                parameter.replace(kind=parameter.KEYWORD_ONLY) if by_keyword else parameter
            )
    merged.sort(key=lambda p: p.kind)
    init.__signature__ = inspect.Signature(merged)


def export_all(namespace):
    """Give a package an `__all__`: all that it has imported but modules and what is private.

    A checker that does not run this goes by ``import X as X``; where it sees an `__all__` that is
    computed, mypy takes all names for private.
    """
    namespace["__all__"] = sorted(
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


class Held:
    """A setting of the process that holds while anybody is inside of a block.

    The first to enter makes it and the last to leave takes it back, so that blocks may be inside of
    each other and in several threads.

    Parameters
    ----------
    make : callable
        Makes the setting, and returns what takes it back.
    """

    def __init__(self, make):
        self._make, self._take_back = make, None
        self._lock, self._n_inside = Lock(), 0

    def __enter__(self):
        with self._lock:
            if not self._n_inside:
                self._take_back = self._make()
            self._n_inside += 1

    def __exit__(self, *_):
        with self._lock:
            self._n_inside -= 1
            if not self._n_inside:
                self._take_back()
