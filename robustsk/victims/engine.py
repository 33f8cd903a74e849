"""The view: a network made fast for attacks, without changing what it computes.

An attack needs logits and their gradient with respect to the input, of a
network that stays as it is. So batch normalisations become part of the layers
before them, images are laid out as the kernels like them, the gradient at the
input takes a short cut, and on request the arithmetic is that of a lower
precision or compiled. All of that happens in a replica; the user's module is
neither changed nor run.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import nn

from .._containers import is_out_of_memory
from .._interrupts import uninterrupted
from .._precision import full_precision, rounds
from ._compiled import Compiled
from ._convolution import FewChannels, has_few_channels
from ._folding import FOLDABLE, find_pairs, folded, hooks_of, is_untouched, norms_of
from ._outputs import first_output
from .replica import CannotReplicate, Copied, Foreign, Guard, Original, Twin

PRECISIONS = (None, "bf16")
#: Largest share of the largest logit by which folding may change one; rounding is far below, a
#: network that cannot be folded after all far above.
TOLERANCE = 1e-3
#: Input channels from which on a convolution is faster if channels come last.
_WIDE = 8
#: Samples on which changes are tried.
_N_TRIED = 2


@dataclass(frozen=True)
class Engine:
    """How the network of a view is run.

    Parameters
    ----------
    precision : {None, "bf16"}, default=None
        Precision of convolutions and matrix products; None means that of the
        parameters.
    compile : bool or str, default=False
        Whether to use `torch.compile`; a string is its mode.
    fold, channels_last, input_gradient : bool, default=True
        What may be done to make it fast.
    exact : bool, default=False
        Whether products are computed with all bits, where torch is set to round them.
    """

    precision: str | None = None
    compile: bool | str = False
    fold: bool = True
    channels_last: bool = True
    input_gradient: bool = True
    exact: bool = False

    def __post_init__(self):
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {PRECISIONS}, got {self.precision!r}.")
        if not isinstance(self.compile, (bool, str)):
            raise ValueError(
                f"compile must be True, False or a mode of torch.compile, got {self.compile!r}."
            )


#: The network as it is.
PLAIN = Engine(fold=False, channels_last=False, input_gradient=False)
#: The network as it judges.
EXACT = replace(PLAIN, exact=True)


class Views:
    """The ways in which one thread runs one network.

    Parameters
    ----------
    original : torch.nn.Module
    is_ours : bool, default=False
        Whether it is in training by one of our estimators.
    """

    def __init__(self, original, is_ours=False):
        self.original = original
        self._is_ours = is_ours
        self._views, self._stale = {}, set()
        #: What those who attack the network keep for the next time.
        self.kept = {}

    def of(self, engine=PLAIN, bn_mode="eval"):
        """Return the view of a kind, which is made when it is asked for first."""
        key = engine, bn_mode
        if key not in self._views:
            self._views[key] = View(self.original, engine, bn_mode, is_ours=self._is_ours)
        elif key in self._stale:
            self._views[key].refresh()
        self._stale.discard(key)
        return self._views[key]

    def refresh(self):
        """Have all of them follow what has happened to the original."""
        self._stale = set(self._views)

    def release(self):
        """Give back what they need of the original itself."""
        for view in reversed(self._views.values()):
            view.release()

    def distrust(self):
        """Have all of them run the network as it is from now on."""
        for view in self._views.values():
            view.distrust()


class View:
    """A network that is run in a body of its own.

    Parameters
    ----------
    original : torch.nn.Module
        Never changed, if it can be replicated or copied.
    engine : Engine, default=PLAIN
    bn_mode : {"eval", "train"}, default="eval"
        With "train", batch normalisation uses the statistics of the batch.
    is_ours : bool, default=False
        Whether it is in training by one of our estimators.
    """

    def __init__(self, original, engine=PLAIN, bn_mode="eval", is_ours=False):
        self.original = original
        self.engine = engine
        self.bn_mode = bn_mode
        self._is_ours = is_ours
        self._begin()

    def _begin(self):
        self._kinds = [Original, Copied, Twin]
        self._is_distrusted = False
        self._take_next()

    def _take_next(self, error=None):
        """Go on with the next kind of replica that can be made; `error` is what the last met."""
        replica = None
        while replica is None:
            kind = self._kinds.pop()
            if kind is Original and error is not None and not self._is_ours:
                raise error  # of the network itself, it seems
            with suppress(CannotReplicate):
                replica = kind(self.original, self.bn_mode, self._is_ours)
        self._replica = replica
        replica.open()
        self._pairs, self._channels_last, self._kept, self._forwards = [], False, {}, {}
        self._is_planned = self._is_behind = False
        self._run, self._parts = self.module, None
        self._token = object()
        # watches the first time it is run
        self._guard = None if self._is_compiled else Guard(self._replica)

    @property
    def module(self):
        """What is run in the place of the original."""
        if self._is_behind:
            self.renew()
        return self._replica.module

    @property
    def state(self):
        """What stays equal as long as the same is run in the same tensors, whatever is in them."""
        return self._token, self._replica.version

    @property
    def reason_against_capture(self):
        """Why it cannot be run again without its code, None if it can."""
        if not self._is_planned or self._guard is not None:
            return "it has not been run yet"
        if self._is_compiled:
            return "the network has been compiled by somebody else"
        if not self._replica.may_change:
            return "the network can be neither replicated nor copied"
        if any(hooks for m in self._replica.module.modules() for hooks in hooks_of(m)):
            return "the network has hooks"
        return None

    @property
    def _is_compiled(self):
        # what is compiled cannot be watched, and has done what it can
        return any("_orig_mod" in m._modules for m in self.original.modules())

    @property
    def is_rough(self):
        """Whether it computes in a lower precision than that of the parameters."""
        return self.engine.precision is not None

    @property
    def is_folded(self):
        """Whether layers have been merged or laid out anew."""
        return bool(self._pairs) or self._channels_last

    @property
    def is_changed(self):
        """Whether it computes in another way than the original judges."""
        return (
            self.is_rough
            or self.bn_mode == "train"
            or self.is_folded
            or bool(self.engine.compile)
            or (not self.engine.exact and self._rounds)
        )

    @property
    def _rounds(self):
        tensor = next(self.original.parameters(), None)
        return tensor is not None and rounds(tensor)

    def refresh(self):
        """Follow what has happened to the original; tensors that were made keep their place."""
        self._parts = None
        if not self._replica.refresh() or not all(
            is_untouched(part) for pair in self._pairs for part in pair
        ):
            self._begin()
            return
        self._replica.open()
        # only if it is run by itself: a captured attack does this each time
        self._is_behind = self._is_planned

    def renew(self):
        """Merge and cast the present parameters, in tensors that keep their places."""
        self._is_behind = False
        if self._is_planned:
            self._replica.undo()
            self._change(self._pairs, self._channels_last, self.is_rough)

    @property
    def tensors(self):
        """The tensors that have been made of the parameters."""
        return list(self._kept.values())

    def release(self):
        """Give back what it needs of the original itself."""
        self._replica.release()

    def distrust(self):
        """Run the network as it is from now on: what was done to it has changed its answers."""
        self._is_distrusted, self._token = True, object()
        self._pairs, self._channels_last = [], False
        self.renew()

    def __call__(self, x, part=None):
        """Return what the module returns for `x`, or what the member number `part` of it does."""
        if self.engine.exact and rounds(x):
            with full_precision(x.device):
                return self(x, part)
        if not self._is_planned:
            # what rounding does must not be taken for the work of a change
            with full_precision(x.device):
                self._plan(x)
        elif self._is_behind:
            self.renew()
        if self._channels_last and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        run = self._run if part is None else self._member(part)
        if self.is_rough:
            with torch.autocast(x.device.type, torch.bfloat16):
                return first_output(run(x)).to(x.dtype)
        if self._guard is None:
            return run(x)
        try:
            with uninterrupted(), self._guard:
                output = run(x)
        except Foreign:
            self._take_next()
            return self(x, part)
        except Exception as error:
            if _is_of_device(error) or not self._replica.foreign():
                raise
            try:
                self._take_next(error)
                return self(x, part)
            except Exception:  # so it is of the network itself
                raise error from None
        if self._guard.is_touched:
            self._take_next()
            return self(x, part)
        self._guard = None
        self._compile()
        # attention takes another path while somebody watches
        return self(x, part) if self._has_fast_paths else output

    @property
    def _has_fast_paths(self):
        return any(isinstance(m, nn.MultiheadAttention) for m in self.module.modules())

    def _member(self, part):
        if self._parts is None:
            self._parts = get_members(self.module)
        return self._parts[part]

    def _compile(self):
        # what only asks a fitted classifier has nothing to compile
        if not self.engine.compile or next(self.module.parameters(), None) is None:
            return
        mode = {} if self.engine.compile is True else {"mode": self.engine.compile}
        if self._replica.may_change:
            self._run = Compiled(self.module, **mode)
        else:  # another thread may ask it meanwhile
            self._run = torch.compile(self.module, **mode)

    # --- what can be done ------------------------------------------------------------

    def _plan(self, x):
        """Find out by trial what can be done to this network, and do it."""
        first = None
        while not self._is_planned:
            try:
                self._try_changes(x.detach()[:_N_TRIED])
                self._is_planned = True
            except Foreign:
                self._take_next()
            except Exception as error:
                first = error if first is None else first
                if _is_of_device(error) or not self._replica.foreign():
                    raise first from None
                self._take_next(first)
        if self.is_rough or not self.is_folded:  # otherwise they have been made in the trial
            self.renew()

    def _try_changes(self, x):
        if not self._replica.may_change or self._is_distrusted or self._is_compiled:
            self._guard = None
            if not self._is_compiled:
                self._compile()
            return
        lay_out = self.engine.channels_last and _is_wide(self.module)
        norms = norms_of(self.module) if self.engine.fold else {}
        if not norms and not lay_out and not self.is_rough:
            return
        with uninterrupted(), self._guard:
            wanted, expected = find_pairs(self.module, norms, x)
        if self._guard.is_touched:
            raise Foreign
        self._guard = None
        self._compile()
        for pairs, channels_last in [(wanted, lay_out), (wanted, False), ([], lay_out)]:
            if not pairs and not channels_last:
                continue
            self._change(pairs, channels_last, False)
            if self._agrees(x, expected, channels_last):
                self._pairs, self._channels_last = pairs, channels_last
                return
            self._replica.undo()

    def _agrees(self, x, expected, channels_last):
        """Return whether the network, as it has been changed, computes the same."""
        layout = torch.channels_last if channels_last and x.ndim == 4 else None
        try:
            with torch.no_grad():
                found = first_output(
                    self.module(x if layout is None else x.to(memory_format=layout))
                )
        except RuntimeError as error:  # e.g. a view that wants another layout
            if is_out_of_memory(error):
                raise
            return False
        return agree(found, expected)

    def _change(self, pairs, channels_last, is_low):
        """Change the replica, from its present parameters."""
        if not self._replica.may_change:
            return
        if isinstance(self._run, Compiled):
            self._run.forget_weights()
        with torch.no_grad():
            changed = {layer: folded(layer, norm) for layer, norm in pairs}
            if is_low:
                # autocast would cast what is frozen anew in each call
                for layer in self._layers(FOLDABLE):
                    weight, bias = changed.get(layer, (layer.weight, layer.bias))
                    if weight.dtype == torch.float32:
                        bias = None if bias is None else bias.to(torch.bfloat16)
                        changed[layer] = weight.to(torch.bfloat16), bias
            if channels_last:
                for layer in self._layers((nn.Conv2d,)):
                    weight, bias = changed.get(layer, (layer.weight, layer.bias))
                    changed[layer] = weight.to(memory_format=torch.channels_last), bias
            for layer, values in changed.items():
                named = zip(("weight", "bias"), values, strict=True)
                self._replica.change(layer, **{n: self._in_place(layer, n, v) for n, v in named})
        for _, norm in pairs:
            self._replica.change(norm, _identity)
        if self.engine.input_gradient and not is_low:
            for layer in self._layers((nn.Conv2d,)):
                if has_few_channels(layer):
                    # one for good: what is compiled would be compiled anew for another
                    forward = self._forwards.setdefault(layer, FewChannels(layer))
                    self._replica.change(layer, forward)

    def _in_place(self, layer, name, value):
        """Write a tensor to where its predecessor was: what is captured or compiled looks there."""
        if value is None or value is layer._parameters[name]:
            return value
        kept = self._kept.get((layer, name))
        if kept is None or (kept.shape, kept.dtype) != (value.shape, value.dtype):
            self._kept[layer, name] = value
            return value
        return kept.copy_(value)

    def _layers(self, kinds):
        return [m for m in self.module.modules() if type(m) in kinds and is_untouched(m)]


def agree(found, expected):
    """Return whether two batches of logits differ by rounding only."""
    return bool(
        found.shape == expected.shape
        and (found - expected).abs().max() <= TOLERANCE * expected.abs().max()
    )


def get_members(module):
    """Return the networks whose probabilities a module averages.

    Parameters
    ----------
    module : torch.nn.Module
        One that averages others says so by a method `get_members`.

    Returns
    -------
    list of torch.nn.Module
        Each takes the input of `module` and returns logits; `module` itself
        where it averages nothing.
    """
    own = getattr(module, "get_members", None)
    return [module] if own is None else list(own())


def lay_out(module, x):
    """Have channels come last in a network for good, if that makes it faster.

    Parameters
    ----------
    module : torch.nn.Module
    x : torch.Tensor of shape (n, ...)

    Returns
    -------
    bool
        Whether it has been done. The network computes the same, and returns
        the fastest if `x` has its channels last as well.
    """
    view = View(module, Engine(fold=False), is_ours=True)
    view._plan(x)
    view.release()
    if view._channels_last:
        module.to(memory_format=torch.channels_last)
    return view._channels_last


def _is_of_device(error):
    """Return whether an error says something about the machine, not about the network."""
    return is_out_of_memory(error) or (isinstance(error, RuntimeError) and "CUDA" in str(error))


def _is_wide(module):
    convolutions = [m for m in module.modules() if type(m) is nn.Conv2d]
    # with fewer outputs, torch's kernels for a CPU write past the end of the weights' gradient
    # (seen in 2.14 with up to six)
    return any(m.in_channels >= _WIDE for m in convolutions) and all(
        m.out_channels >= _WIDE for m in convolutions
    )


def _identity(x):
    return x
