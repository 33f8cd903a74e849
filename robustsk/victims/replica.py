"""Replicas: bodies of a network in which an attack may do as it likes.

An attack wants a network that is in evaluation mode, of which only the gradient
at the input is taken, and in which layers are merged, laid out anew or cast. The
user's network is none of that and must not be made so, not even for a moment:
another thread may be asking it. So the attack gets another body. A *twin* has
the same tree of modules with attribute dictionaries of its own, and shares the
tensors; that takes about 10 us per module. Where a module cannot have a twin, a
*deep copy* is made and kept up to date; and what cannot be copied either is *used
as it is*.
"""

from __future__ import annotations

import copy
from operator import is_

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from .._containers import is_out_of_memory
from ._references import HOOKS, CannotFollow, Follower, body_of, slots_of

_BATCH_NORM = nn.modules.batchnorm._BatchNorm
_TENSORS = ("_parameters", "_buffers")


class CannotReplicate(Exception):
    """Raised where a module cannot be given another body of some kind."""


class Original:
    """The user's module itself, where it can neither be replicated nor copied.

    Parameters
    ----------
    original : torch.nn.Module
    bn_mode : {"eval", "train"}, default="eval"
        Without effect: its modes are left as they are.
    is_ours : bool, default=False
        Whether it is in training by one of our estimators. Then it is put into
        evaluation mode while it is attacked.

    Attributes
    ----------
    module : torch.nn.Module
        What an attack runs.
    may_change : bool
        Whether it may be changed.
    version : int
        Grows whenever it computes something else, or in other tensors, than before.

    Raises
    ------
    ValueError
        If it is in training mode and not ours.
    """

    may_change = False
    version = 0

    def __init__(self, original, bn_mode="eval", is_ours=False):
        self.original = self.module = original
        self._changed, self._modes = [], []
        self._is_ours = is_ours
        if not is_ours and any(m.training for m in original.modules()):
            raise ValueError(
                f"{type(original).__name__} is in training mode, and it can neither be replicated "
                "nor copied: an attack would have to change it. Call its eval() first."
            )

    def refresh(self):
        """Follow the original; return whether that was possible, without which a new one is due."""
        return True

    def open(self):
        """Have what is needed of the original itself for the time of an attack."""
        if self._is_ours and not self._modes:
            self._modes = [(m, m.training) for m in self.original.modules()]
            self.original.eval()

    def release(self):
        """Put that back."""
        for m, mode in self._modes:
            m.training = mode
        self._modes = []

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
    """A deep copy that is kept up to date.

    Its tensors are; if anything else has changed that can be seen from outside, a new one is due.

    Parameters
    ----------
    original : torch.nn.Module
    bn_mode : {"eval", "train"}
    is_ours : bool, default=False
        Without effect.
    """

    may_change = True

    def __init__(self, original, bn_mode, is_ours=False):
        self.original = original
        self._changed, self._modes = [], []
        self._is_ours = False
        self._from = _tensors_of(original)
        if any(is_lazy(t) for t in self._from):
            raise CannotReplicate
        if any("__del__" in dir(type(m)) for m in original.modules()):
            raise CannotReplicate
        try:
            self.module = copy.deepcopy(original, kept_results(original))
        except Exception as error:  # whatever the objects in it make of being copied
            if is_out_of_memory(error):
                raise
            raise CannotReplicate from error
        self._known = _attributes_of(original)
        self._to = _tensors_of(self.module)
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
        known = _attributes_of(self.original)
        if len(known) != len(self._known) or not all(map(is_, known, self._known)):
            return False
        self._from = _tensors_of(self.original)
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

    Buffers are copies, but for those of batch normalisation: a network may write to them.

    Parameters
    ----------
    original : torch.nn.Module
    bn_mode : {"eval", "train"}
    is_ours : bool, default=False
        Without effect.
    """

    may_change = True

    def __init__(self, original, bn_mode, is_ours=False):
        self.original = original
        self._changed, self._modes = [], []
        self._is_ours = False
        self._bn_mode = bn_mode
        self._tree = {id(m): m for m in original.modules()}
        self._aliases, self._twins = {}, {}
        self._tensors, self._copies, self._bodies = [], [], []
        self._recurrent = []
        try:
            follow = Follower(self._tree, self._twin)
            self.module = self._twin(original)
            for body in self._bodies:
                body.look(follow)
        except CannotFollow as error:
            raise CannotReplicate from error
        for body in self._bodies:
            body.fill()
            body.is_new = False
        self._flatten()

    def _twin(self, m):
        twin = self._twins.get(id(m))
        if twin is not None:
            return twin
        if isinstance(m, (torch.jit.ScriptModule, torch.fx.GraphModule)):
            raise CannotFollow
        if any(is_lazy(p) for p in m._parameters.values() if p is not None):
            raise CannotFollow
        compiled = _compiled(m)
        if compiled is not None:
            inside = self._twin(compiled)
            vars(inside).setdefault("training", False)  # which is asked for at once
            twin = self._twins[id(m)] = m.dynamo_ctx(inside)
            self._bodies.append(_Hooks(m, twin))
            return twin
        twin = self._twins[id(m)] = body_of(type(m))
        self._bodies.append(_Body(m, twin, self._own_of(m)))
        return twin

    def _own_of(self, m):
        """Return the attributes in which a twin differs from its original whatever these are."""
        given = vars(m)
        batch_statistics = self._bn_mode == "train" and isinstance(m, _BATCH_NORM)
        own = {"training": batch_statistics}
        for kind in _TENSORS:
            own[kind] = {}
            for name, value in given[kind].items():
                if value is None:
                    own[kind][name] = None
                elif kind == "_buffers" and (batch_statistics or not isinstance(m, _BATCH_NORM)):
                    own[kind][name] = value.detach().clone()
                    self._copies.append((given[kind], own[kind], name))
                else:
                    own[kind][name] = self._alias(value)
                    self._tensors.append([given[kind], own[kind], name, value])
        children = given["_modules"]
        own["_modules"] = {n: None if c is None else self._twin(c) for n, c in children.items()}
        if _runs_as_in_training(m):
            own.update(training=True, dropout=0.0)
        if isinstance(m, nn.RNNBase):
            self._recurrent.append((m, own))
        return own

    def _alias(self, tensor):
        if id(tensor) not in self._aliases:
            alias = tensor.detach()
            if isinstance(tensor, nn.Parameter):
                alias = nn.Parameter(alias, requires_grad=False)
            vars(alias).update(vars(tensor))
            self._aliases[id(tensor)] = alias
        return self._aliases[id(tensor)]

    def _flatten(self):
        # recurrent layers have their weights in a list as well
        for m, own in self._recurrent:
            twin = self._twins[id(m)]
            flat = [getattr(twin, name, None) for name in vars(m)["_flat_weights_names"]]
            own["_flat_weights"] = vars(twin)["_flat_weights"] = flat

    def refresh(self):
        """Follow the original, as in the base."""
        self.undo()
        if not all(body.is_still_like() for body in self._bodies):
            return False
        if not self._point_at_tensors():
            return False
        with torch.no_grad():
            for given, own, name in self._copies:
                value, copied = given.get(name), own[name]
                if value is None or _kind(value) != _kind(copied):
                    return False
                copied.copy_(value)
        follow = Follower(self._tree, self._twin)
        try:
            for body in self._bodies:
                body.look(follow)
        except CannotFollow:
            return False
        for body in self._bodies:
            body.fill()
            if body.is_new:
                self.version += 1
                body.is_new = False
        return True

    def _point_at_tensors(self):
        """Have the aliases share what the original has now; return whether they can."""
        whose = {}
        for entry in self._tensors:
            given, own, name, value = entry
            now, alias = given.get(name), self._aliases[id(value)]
            if now is None or whose.setdefault(id(alias), now) is not now:
                return False
            own[name] = alias
            if now is value and _is_same(alias, now):
                continue
            if alias.dtype != now.dtype or alias.device != now.device:
                return False
            if alias.layout is not torch.strided or now.layout is not torch.strided:
                return False
            alias.data = now.data
            self.version += 1
            if now is not value:
                self._aliases[id(now)] = alias
                entry[3] = now
        return True

    def foreign(self):
        """Return the tensors of the original, by their ids."""
        buffers = [given[name] for given, _, name in self._copies]
        return {id(t): t for t in (*(entry[3] for entry in self._tensors), *buffers)}


class _Body:
    """A module and its twin, and what the twin has of its own.

    Parameters
    ----------
    original, twin : torch.nn.Module
    own : dict
        Attributes that are the twin's whatever those of the original are.
    """

    def __init__(self, original, twin, own):
        self.original, self.kind = original, type(original)
        self.given, self.body, self.own = vars(original), vars(twin), own
        self.twin, self.slots = twin, slots_of(type(original))
        self.modules = self.given["_modules"]
        self.names, self.children = list(self.modules), list(self.modules.values())
        self.n_parameters, self.n_buffers = (len(self.given[kind]) for kind in _TENSORS)
        self.known, self.referring = {}, []
        self.followed, self.slot_values = {}, []
        self.is_new, self.known_hooks = False, {}
        self.hooks = []
        for name in HOOKS:
            if name in self.given:
                own[name] = self.given[name].copy()
                self.hooks.append((self.given[name], own[name]))

    def is_still_like(self):
        """Return whether the module is of the kind, and has the children and tensors, it had."""
        given, modules = self.given, self.modules
        return (
            type(self.original) is self.kind
            and len(given["_parameters"]) == self.n_parameters
            and len(given["_buffers"]) == self.n_buffers
            and given["_modules"] is modules
            and (not modules or list(modules) == self.names)
            and all(map(is_, modules.values(), self.children))
        )

    def look(self, follow):
        """Find the attributes that refer to a module of the tree, and what they are in the twin."""
        given, known = self.given, self.known
        if len(known) != len(given) or not all(map(is_, given.values(), known.values())):
            # whether it is in training is not the twin's affair
            names = {*given, *known} - self.own.keys()
            self.is_new = any(given.get(n) is not known.get(n) for n in names)
            self.known = dict(given)
            self.referring = [n for n, v in given.items() if follow.can_refer(n, v)]
        if self.referring:
            followed = {name: follow(given[name]) for name in self.referring}
            self.followed = {n: v for n, v in followed.items() if v is not given[n]}
        for n, (hooks, own) in enumerate(self.hooks):
            if hooks or own:
                own.clear()
                own.update({key: follow(hook) for key, hook in hooks.items()})
                self.is_new |= self.known_hooks.get(n) != list(hooks.values())
                self.known_hooks[n] = list(hooks.values())
        if self.slots:
            self.slot_values = [
                (name, follow(getattr(self.original, name)))
                for name in self.slots
                if hasattr(self.original, name)
            ]
            self.is_new = True  # nobody looks what they were

    def fill(self):
        """Give the twin the attributes of its original, but for its own."""
        body = self.body
        body.clear()
        body.update(self.given)
        if self.followed:
            body.update(self.followed)
        body.update(self.own)
        for name, value in self.slot_values:
            setattr(self.twin, name, value)


class _Hooks:
    """What a compiled module has around it; the rest is made of its twin."""

    def __init__(self, original, twin):
        self.original, self.twin = original, twin

    is_new = False

    def is_still_like(self):
        """Return whether it is made of the same module."""
        return True

    def look(self, follow):
        """Have the twin called as its original is."""
        for name in HOOKS:
            hooks = getattr(self.original, name, None)
            if hooks is not None:
                own = getattr(self.twin, name)
                own.clear()
                own.update({key: follow(hook) for key, hook in hooks.items()})

    def fill(self):
        """Do nothing: it has been made whole."""


class Foreign(Exception):
    """Raised when a replica is about to use a tensor of the original."""


class Guard(TorchFunctionMode):
    """Watches a replica run, and stops it before it touches its original.

    What refers to a module in a way that nobody can see, such as a variable of
    a program, would run the original: in its mode, with its hooks, and unchanged.
    """

    def __init__(self, replica):
        super().__init__()
        self._foreign = replica.foreign()
        self.is_touched = self._is_on = False

    def __enter__(self):
        self._is_on = True
        return super().__enter__()

    def __exit__(self, *error):
        # an error that a signal raises on the way out may leave it in place
        self._is_on = False
        return super().__exit__(*error)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self._is_on and any(
            id(t) in self._foreign for t in tensors_in([*args, *kwargs.values()])
        ):
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


def _tensors_of(module):
    """Return parameters, buffers, and tensors that are attributes, once each."""
    own = [t for m in module.modules() for t in tensors_in(vars(m).values())]
    return list({id(t): t for t in (*module.parameters(), *module.buffers(), *own)}.values())


def _attributes_of(module):
    """Return all that a module and its parts are and have but tensors, to be compared."""
    found = []
    for m in module.modules():
        if isinstance(m, torch.jit.ScriptModule):  # makes other objects each time
            continue
        found += [type(m), *(v for v in vars(m).values() if not isinstance(v, torch.Tensor))]
        for name in HOOKS:
            found += getattr(m, name, {}).values()
    # flags and numbers are equal without being the same
    return [v for v in found if not isinstance(v, bool)]


def _kind(tensor):
    return tensor.shape, tensor.dtype, tensor.device, tensor.layout


def _is_same(alias, tensor):
    """Return whether two tensors are the same numbers in the same place."""
    if alias.layout is not torch.strided or tensor.layout is not torch.strided:
        return True  # of the same tensor
    return (
        alias.data_ptr() == tensor.data_ptr()
        and alias.shape == tensor.shape
        and alias.stride() == tensor.stride()
    )


def kept_results(module):
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
