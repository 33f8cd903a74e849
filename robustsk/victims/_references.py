"""References from the attributes of a module to other modules of its tree, and where they lead."""

from __future__ import annotations

import logging
import weakref
from collections import OrderedDict, defaultdict
from functools import cache, partial
from itertools import islice
from types import CellType, FunctionType, MethodType, ModuleType

import torch
from torch import nn

#: Dictionaries of functions that are called when a module runs.
HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)
#: Attributes that are looked after elsewhere.
_ELSEWHERE = {"_parameters", "_buffers", "_modules", "_flat_weights", "_flat_weight_refs", *HOOKS}
#: Lists of names and numbers that modules of torch have.
_OF_TORCH = {"_non_persistent_buffers_set", "_reversed_padding_repeated_twice"}
#: Kinds of attributes that refer to nothing.
_SIMPLE = {
    type(None), bool, int, float, complex, str, bytes, range, torch.Tensor, nn.Parameter,
    torch.dtype, torch.device, torch.Size,
}  # fmt: skip
_CONTAINERS = {list, tuple, set, dict, OrderedDict, defaultdict}
#: What belongs to a whole program.
_OF_ALL = (type, ModuleType, logging.Logger)
#: How deep attributes are searched for modules, and how many things in each.
_DEPTH, _BREADTH = 4, 1000


class CannotFollow(Exception):
    """Raised where a body, or a thing that refers to one, cannot be made a second time."""


class Follower:
    """Finds what an attribute of a module is in the twin of that module.

    A list of children becomes one of their twins, a bound method one of the
    twin, a function another one whose variables are twins, an object one with
    other attributes. What refers to no module of the tree is shared.

    Parameters
    ----------
    tree : dict of int to torch.nn.Module
        The modules by their ids.
    twin : callable
        Returns the twin of a module of the tree.
    """

    def __init__(self, tree, twin):
        self._tree, self._twin = tree, twin
        self._found, self._kept, self._under_way = {}, [], set()

    def can_refer(self, name, value):
        """Return whether an attribute is of a kind that may refer to a module."""
        # what is called when a state is saved or loaded plays no part here
        kind = type(value)
        return not (
            kind in _SIMPLE
            or name in _ELSEWHERE
            or "state_dict" in name
            or name in _OF_TORCH
            or (kind is tuple and all(type(v) in _SIMPLE for v in value))  # and stays so
        )

    def __call__(self, value, depth=_DEPTH):
        """Return what takes the place of a value in the twin; itself where it refers to nothing."""
        kind = type(value)
        if kind in _SIMPLE or (kind in _CONTAINERS and not value):
            return value
        if isinstance(value, nn.Module):
            return self._twin(value) if id(value) in self._tree else value
        if not depth or id(value) in self._under_way:
            return value
        if id(value) in self._found:
            return self._found[id(value)]
        self._under_way.add(id(value))
        try:
            found = self._follow(value, kind, depth - 1)
        finally:
            self._under_way.discard(id(value))
        if found is not value:
            self._found[id(value)] = found
            self._kept.append(value)  # lest another one gets its id
        return found

    def _follow(self, value, kind, depth):
        if kind in (list, tuple, set):
            inside = [self(v, depth) for v in islice(value, _BREADTH)]
            if _are_same(inside, value):
                return value
            return kind([*inside, *islice(value, _BREADTH, None)])
        if kind in (dict, OrderedDict, defaultdict):
            return self._follow_dict(value, depth)
        if kind is MethodType:
            owner = self(value.__self__, depth)
            return value if owner is value.__self__ else MethodType(value.__func__, owner)
        if kind is partial:
            parts = value.func, value.args, value.keywords
            func, args, keywords = (self(v, depth) for v in parts)
            if _are_same((func, args, keywords), parts):
                return value
            return partial(func, *args, **keywords)
        if kind is FunctionType:
            return self._follow_function(value, depth)
        if kind is weakref.ref:
            target = value()
            followed = self(target, depth)
            return value if followed is target else weakref.ref(followed)
        return self._follow_object(value, kind, depth)

    def _follow_dict(self, value, depth):
        items = list(islice(value.items(), _BREADTH))
        inside = [self(v, depth) for _, v in items]
        keys = [self(k, depth) for k, _ in items]
        if _are_same(inside, [v for _, v in items]) and _are_same(keys, [k for k, _ in items]):
            return value
        followed = value.copy()
        followed.update(zip(keys, inside, strict=True))
        return followed

    def _follow_function(self, value, depth):
        # what has been compiled is followed as it was written
        written = getattr(value, "_torchdynamo_orig_callable", None)
        if written is not None:
            followed = self(written, depth)
            return value if followed is written else followed
        cells = value.__closure__ or ()
        filled = [_content(cell) for cell in cells]
        parts = [*filled, value.__defaults__, value.__kwdefaults__]
        *inside, defaults, keywords = (self(v, depth) for v in parts)
        if _are_same([*inside, defaults, keywords], parts):
            return value
        closure = tuple(
            cell if new is old else CellType(new)
            for cell, old, new in zip(cells, filled, inside, strict=True)
        )
        followed = FunctionType(
            value.__code__, value.__globals__, value.__name__, defaults, closure or None
        )
        followed.__kwdefaults__ = keywords
        vars(followed).update(vars(value))
        return followed

    def _follow_object(self, value, kind, depth):
        attributes = getattr(value, "__dict__", None)
        if isinstance(value, _OF_ALL) or not isinstance(attributes, dict) or not attributes:
            return value
        items = list(islice(attributes.items(), _BREADTH))
        inside = [self(v, depth) for _, v in items]
        if _are_same(inside, [v for _, v in items]):
            return value
        followed = body_of(kind)
        vars(followed).update(attributes)
        vars(followed).update(zip([n for n, _ in items], inside, strict=True))
        for name in slots_of(kind):
            if hasattr(value, name):
                setattr(followed, name, getattr(value, name))
        return followed


def _are_same(things, others):
    return all(a is b for a, b in zip(things, others, strict=False))


def _content(cell):
    try:
        return cell.cell_contents
    except ValueError:  # nothing has been put into it yet
        return None


def body_of(kind):
    """Return an object of a class without anything in it."""
    try:
        return object.__new__(_without_end(kind))
    except TypeError as error:  # a class that is written in C has its own way
        raise CannotFollow from error


@cache
def _without_end(kind):
    """Return a class, or one like it whose objects do nothing when they are thrown away.

    What a module closes or removes then is shared with its twin.
    """
    if not any("__del__" in vars(base) for base in kind.__mro__):
        return kind
    attributes = {"__del__": lambda self: None, "__module__": kind.__module__}
    return type(kind)(kind.__name__, (kind,), attributes)


@cache
def slots_of(kind):
    """Return the names of the slots of a class, as they are looked up."""
    found = []
    for base in kind.__mro__:
        names = vars(base).get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            if name.startswith("__") and not name.endswith("__"):
                name = f"_{base.__name__.lstrip('_')}{name}"
            if name not in ("__dict__", "__weakref__"):
                found.append(name)
    return found
