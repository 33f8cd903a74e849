"""Replicas: bodies of a network in which an attack may do as it likes.

An attack wants a network that is in evaluation mode, of which only the gradient
at the input is taken, and in which layers are merged, laid out anew or cast. The
user's network is none of that and must not be made so, not even for a moment:
another thread may be asking it. So the attack gets another body. A *twin* has
the same tree of modules with attribute dictionaries of its own, and shares the
tensors; that takes about 10 us per module. Where a module holds on to another
one in a way that cannot be followed, a *deep copy* is made and its tensors are
kept up to date; and what cannot be copied either is *used as it is*.
"""

from __future__ import annotations

import copy
import warnings
import weakref
from collections import OrderedDict
from functools import cache, partial
from itertools import islice
from types import FunctionType, MethodType

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

_BATCH_NORM = nn.modules.batchnorm._BatchNorm
#: Dictionaries of functions that are called when a module runs.
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)
_TENSORS = ("_parameters", "_buffers")
_PLAIN = (*_TENSORS, "_modules")
#: Kinds of attributes that hold nothing.
_SIMPLE = {type(None), bool, int, float, str, torch.Tensor, nn.Parameter, torch.dtype}
_CONTAINERS = {list, tuple, set, dict, OrderedDict}
#: How deep the attributes of a module are searched for other modules, and how many things in each.
_DEPTH, _BREADTH = 3, 1000


class CannotReplicate(Exception):
    """Raised where a module cannot be given another body of some kind."""


class Original:
    """The user's module itself, where it can neither be replicated nor copied.

    Parameters
    ----------
    original : torch.nn.Module
    bn_mode : {"eval", "train"}, default="eval"
        Without effect: its modes are left as they are.

    Attributes
    ----------
    module : torch.nn.Module
        What an attack runs.
    may_change : bool
        Whether it may be changed.
    """

    may_change = False

    def __init__(self, original, bn_mode="eval"):
        self.original = self.module = original
        self._changed = []
        if any(m.training for m in original.modules()):
            warnings.warn(
                f"{type(original).__name__} can neither be replicated nor copied, so that it is "
                "attacked as it is, and it is in training mode: call eval() before the attack, or "
                "what is attacked is not what predicts.",
                UserWarning,
                stacklevel=2,
            )

    def refresh(self):
        """Follow the original; return whether that was possible, without which a new one is due."""
        return True

    def change(self, module, forward=None, **tensors):
        """Have a module of the replica compute something else, or with other parameters.

        Parameters
        ----------
        module : torch.nn.Module
        forward : callable, optional
        **tensors
            Its parameters by their names.
        """
        for name, value in tensors.items():
            self._changed.append((module._parameters, name, module._parameters[name]))
            module._parameters[name] = value
        if forward is not None:
            self._changed.append((vars(module), "forward", None))
            vars(module)["forward"] = forward

    def undo(self):
        """Take back all changes."""
        for place, name, value in reversed(self._changed):
            if name == "forward":
                place.pop(name, None)
            else:
                place[name] = value
        self._changed = []

    def foreign(self):
        """Return the tensors that the replica must not touch, by their ids."""
        return {}


class Copied(Original):
    """A deep copy whose tensors are kept up to date.

    Parameters
    ----------
    original : torch.nn.Module
    bn_mode : {"eval", "train"}
    """

    may_change = True

    def __init__(self, original, bn_mode):
        self.original = original
        self._changed = []
        self._from = list(_state_of(original))
        if any(is_lazy(t) for t in self._from):
            raise CannotReplicate
        try:
            self.module = copy.deepcopy(original, _kept_results(original))
        except Exception as error:  # whatever the objects in it make of being copied
            raise CannotReplicate from error
        self._to = list(_state_of(self.module))
        own = {id(t) for t in self._from}
        if any(id(t) in own for t in self._to) or not self._fits(self._from):
            raise CannotReplicate
        self.module.eval()
        for m in self.module.modules():
            if bn_mode == "train" and isinstance(m, _BATCH_NORM):
                m.training = True
            if _runs_as_in_training(m):
                m.training, m.dropout = True, 0.0
        for parameter in self.module.parameters():
            # those of a copied script are results of copying
            parameter.requires_grad_(False) if parameter.is_leaf else parameter.detach_()

    def _fits(self, tensors):
        return [_kind(t) for t in tensors] == [_kind(t) for t in self._to]

    def refresh(self):
        """Follow the original, as in the base."""
        self.undo()
        self._from = list(_state_of(self.original))
        if not self._fits(self._from):
            return False
        with torch.no_grad():
            for value, own in zip(self._from, self._to, strict=True):
                own.copy_(value)
        return True

    def foreign(self):
        """Return the tensors of the original, by their ids."""
        return {id(t): t for t in self._from}


class Twin(Original):
    """The same tree of modules, sharing its tensors.

    Parameters
    ----------
    original : torch.nn.Module
    bn_mode : {"eval", "train"}
    """

    may_change = True

    def __init__(self, original, bn_mode):
        self.original = original
        self._changed = []
        tree = {id(m): m for m in original.modules()}
        for m in tree.values():
            _check(m, tree)
        self._bn_mode = bn_mode
        self._aliases, self._twins = {}, {}
        self._tensors, self._children, self._hooks = [], [], []
        self._bodies, self._slots = [], []
        self.module = self._twin(original)
        self._fill_slots()

    def _twin(self, m):
        twin = self._twins.get(id(m))
        if twin is not None:
            return twin
        compiled = _compiled(m)
        if compiled is not None:
            self._twins[id(m)] = m.dynamo_ctx(self._twin(compiled))
        else:
            self._twins[id(m)] = object.__new__(type(m))
            self._fill(m)
        return self._twins[id(m)]

    def _fill(self, m):
        twin, given = self._twins[id(m)], vars(m)
        batch_statistics = self._bn_mode == "train" and isinstance(m, _BATCH_NORM)
        own = {"training": batch_statistics}
        for kind in _TENSORS:
            own[kind] = {}
            for name, value in given[kind].items():
                if value is None:
                    own[kind][name] = None
                elif batch_statistics and kind == "_buffers":
                    own[kind][name] = value.detach().clone()
                else:
                    own[kind][name] = self._alias(value)
                    self._tensors.append((given[kind], own[kind], name, value))
        children = given["_modules"]
        own["_modules"] = {n: None if c is None else self._twin(c) for n, c in children.items()}
        self._children.append((children, list(children.items())))
        for name in _HOOKS:
            if name in given:
                own[name] = given[name].copy()
                self._hooks.append((given[name], own[name]))
        if _runs_as_in_training(m):
            own.update(training=True, dropout=0.0)
        self._slots.extend((m, twin, name) for name in _slots_of(type(m)))
        self._bodies.append((given, vars(twin), own))
        vars(twin).update(given)
        vars(twin).update(own)
        if isinstance(m, nn.RNNBase):
            names = given["_flat_weights_names"]
            own["_flat_weights"] = flat = [getattr(twin, n, None) for n in names]
            own["_flat_weight_refs"] = [None if w is None else weakref.ref(w) for w in flat]
            vars(twin).update(own)

    def _alias(self, tensor):
        if id(tensor) not in self._aliases:
            alias = tensor.detach()
            if isinstance(tensor, nn.Parameter):
                alias = nn.Parameter(alias, requires_grad=False)
            self._aliases[id(tensor)] = alias
        return self._aliases[id(tensor)]

    def refresh(self):
        """Follow the original, as in the base."""
        self.undo()
        for children, known in self._children:
            if len(children) != len(known) or not all(
                children.get(name) is child for name, child in known
            ):
                return False
        n_tensors = sum(len(given[k]) for given, _, _ in self._bodies for k in _TENSORS)
        if n_tensors != sum(len(own[k]) for _, _, own in self._bodies for k in _TENSORS):
            return False
        for given, own, name, value in self._tensors:
            now = given.get(name)
            if now is not value:
                return False
            alias = self._aliases[id(value)]
            own[name] = alias
            if alias.data_ptr() != now.data_ptr() or alias.stride() != now.stride():
                if alias.dtype != now.dtype or alias.device != now.device:
                    return False
                alias.data = now.data
        for given, own in self._hooks:
            if given or own:
                own.clear()
                own.update(given)
        for given, body, own in self._bodies:
            body.clear()
            body.update(given)
            body.update(own)
        self._fill_slots()
        return True

    def _fill_slots(self):
        for given, twin, name in self._slots:
            if hasattr(given, name):
                setattr(twin, name, getattr(given, name))

    def foreign(self):
        """Return the tensors of the original, by their ids."""
        return {id(value): value for *_, value in self._tensors}


class Foreign(Exception):
    """Raised when a replica is about to use a tensor of the original."""


class Guard(TorchFunctionMode):
    """Watches a replica run, and stops it before it touches its original.

    What refers to a module in a way that nobody can see, such as an object with
    a reference to its network, would run the original: in its mode, with its
    hooks, and unchanged.
    """

    def __init__(self, replica):
        super().__init__()
        self._foreign = replica.foreign()
        self.is_touched = False

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if any(id(t) in self._foreign for t in tensors_in([*args, *kwargs.values()])):
            self.is_touched = True  # also if the network has an answer to any error
            raise Foreign
        return func(*args, **kwargs)


def tensors_in(values):
    """Yield the tensors among arguments, those in lists and tuples as well."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from tensors_in(value)


def _state_of(module):
    yield from module.parameters()
    yield from module.buffers()


def _kind(tensor):
    return tensor.shape, tensor.dtype, tensor.device


@cache
def _slots_of(kind):
    names = [vars(base).get("__slots__", ()) for base in kind.__mro__]
    return [n for some in names for n in ((some,) if isinstance(some, str) else some)]


def _kept_results(module):
    """Return copies of the tensors that a module has kept of a forward pass, by their ids.

    They hang on a graph, so that nobody but their owner may copy them.
    """
    kept = [t for m in module.modules() for t in tensors_in(vars(m).values())]
    return {id(t): t.detach().clone() for t in kept if not t.is_leaf}


def _compiled(module):
    """Return what a module of `torch.compile` is made of, None for any other."""
    return module._modules.get("_orig_mod") if "dynamo_ctx" in vars(module) else None


def _runs_as_in_training(module):
    """Return whether a recurrent layer can be run as in training.

    On a GPU it has a gradient only then; without dropout it computes the same.
    """
    return isinstance(module, nn.RNNBase) and type(module).forward in (
        nn.RNN.forward,
        nn.LSTM.forward,
        nn.GRU.forward,
    )


def _check(module, tree):
    """Raise unless a module consists of nothing but its attributes, and refers to none of a tree.

    Parameters
    ----------
    module : torch.nn.Module
    tree : dict of int to torch.nn.Module
        All modules that are about to be replicated, by their ids.
    """
    if isinstance(module, (torch.jit.ScriptModule, torch.fx.GraphModule)):
        raise CannotReplicate
    if any(is_lazy(p) for p in module._parameters.values() if p is not None):
        raise CannotReplicate
    if _compiled(module) is not None:
        return
    attributes = [(n, getattr(module, n)) for n in _slots_of(type(module)) if hasattr(module, n)]
    for name, value in [*vars(module).items(), *attributes]:
        kind = type(value)
        if kind in _SIMPLE or (kind in _CONTAINERS and not value):
            continue
        # what is called when a state is saved or loaded plays no part here
        if name in _PLAIN or "state_dict" in name:
            continue
        if _holds(value, tree, _DEPTH):
            raise CannotReplicate


def _holds(value, tree, depth):
    """Return whether a value is, or holds, a module of a tree."""
    if isinstance(value, nn.Module):
        return id(value) in tree
    if not depth or type(value) in _SIMPLE:
        return False
    if isinstance(value, dict):
        inside = value.values()
    elif isinstance(value, (list, tuple, set)):
        inside = value
    elif isinstance(value, MethodType):
        inside = (value.__self__,)
    elif isinstance(value, partial):
        inside = (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, FunctionType):
        inside = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
    else:
        return False
    return any(_holds(thing, tree, depth - 1) for thing in islice(inside, _BREADTH))


def _is_filled(cell):
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False
