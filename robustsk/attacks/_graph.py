"""Attacks in training as one CUDA graph.

An attack of ten steps on a network of twenty layers is some two thousand small kernels, and a host
needs longer to launch them than a GPU to run them. What a batch makes of its numbers is always the
same, so the launches are recorded once and replayed with other numbers: images, labels, seed,
radius and step are copied to where the recording reads them, and the weights are read where the
optimizer writes them.
"""

from __future__ import annotations

import copy
import logging
import threading
from dataclasses import replace

import numpy as np
import torch

from .._containers import is_out_of_memory
from .._generator import GeneratorState
from .._interrupts import uninterrupted
from .._precision import rounds
from .._validation import check_choice
from ..victims._compiled import LEAST
from .objectives import OBJECTIVES, REVERSE_KL
from .threat import finite_or

log = logging.getLogger(__name__)

CHOICES = ("auto", True, False)
#: Graphs of one network that are kept; each has memory for one step of its attack.
_MOST = 4
#: How often a network may need a new one before it is left to run by itself.
_PATIENCE = 8
#: Runs before the recording, in which libraries choose their kernels and take their memory.
_WARM_UP = 2
#: Norms of which the projection is the same arithmetic for all numbers.
_NORMS = (float("inf"), 2.0)
#: What has a place on the device, or is drawn before.
_GIVEN = ("eps", "step_size", "random_state", "estimator", "verbose", "batch_size", "graph")
#: One recording at a time in a process.
_lock = threading.Lock()


class CannotCapture(RuntimeError):
    """Raised where an attack cannot be run as a graph; says why."""


class Recorded:
    """An attack on batches of one shape, as a function of tensors that keep their places.

    Parameters
    ----------
    prepared : Prepared
    seen : Victim
        In attack mode.
    x, y, clean_logits : torch.Tensor or None
        A batch as it comes.
    objective : Objective
    """

    def __init__(self, prepared, seen, x, y, clean_logits, objective):
        attack = prepared.attack
        self._x, self._y, self._clean = (
            None if given is None else torch.empty_like(given) for given in (x, y, clean_logits)
        )
        self._seed = torch.zeros((), dtype=torch.int64, device=x.device)
        self._eps, self._step = torch.zeros((2,), dtype=torch.float64, device=x.device)
        self._has_step = getattr(attack, "step_size", None) is not None
        if self._has_step:
            attack = attack._with(step_size=self._step)
        # without those who hold on to this
        self._prepared = replace(prepared, attack=attack, victim=None, eps=self._eps, _limits={})
        self._seen = copy.copy(seen)
        self._seen._views = None
        self._view = seen.view
        self._objective = objective
        self._graph = self._found = None
        self._cost = 0, 0
        self.put(prepared, x, y, clean_logits, 0)

    def put(self, prepared, x, y, clean_logits, seed):
        """Copy a batch to where it is read; one with fewer samples has its first ones twice."""
        for place, value in ((self._x, x), (self._y, y), (self._clean, clean_logits)):
            if place is not None:
                place[: len(x)].copy_(value)
                if len(x) < len(place):
                    place[len(x) :].copy_(value[: len(place) - len(x)])
        self._seed.fill_(seed)
        self._eps.fill_(float(prepared.eps))
        if self._has_step:
            self._step.fill_(float(prepared.attack.step_size))

    def run(self):
        """Attack the batch that is in place, with the present weights of the network."""
        self._view.renew()
        # kept, because a recording reads what is in it where it was
        self._batch = batch = self._prepared.batch(
            self._seen, self._x, self._y, self._objective, seed=self._seed, keep="last",
            clean_logits=self._clean,
        )  # fmt: skip
        return finite_or(self._x, self._prepared.attack._attack_batch(batch).detach())

    def record(self):
        """Have the device remember what it is told to do.

        Raises
        ------
        CannotCapture
            If something in it needs the host.
        """
        device, calls = self._x.device, self._seen.calls
        before, counts = GeneratorState.present(device), (calls.forward, calls.backward)
        graph = torch.cuda.CUDAGraph()
        own = torch.cuda.default_generators[device.index]
        state = own.graphsafe_get_state()
        self.run()  # finds out how the network can be run
        reason = self._view.reason_against_capture
        if reason is not None:
            raise CannotCapture(reason)
        with _lock, uninterrupted(), torch.cuda.device(device):
            try:
                side = torch.cuda.Stream()
                side.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(side):
                    for _ in range(_WARM_UP):
                        self.run()
                torch.cuda.current_stream().wait_stream(side)
                if not GeneratorState.present(device).equals(before):
                    raise CannotCapture("the network draws random numbers")
                calls.forward = calls.backward = 0
                # one that fails would leave the generator unusable
                own.graphsafe_set_state(own.clone_state())
                # another thread may do what a recording does not allow in its own
                with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                    self._found = self.run()
                self._cost = calls.forward, calls.backward
            except RuntimeError as error:
                torch.cuda.synchronize()
                if isinstance(error, CannotCapture):
                    raise
                if is_out_of_memory(error):
                    raise CannotCapture("memory is short") from error
                raise CannotCapture(f"it cannot be recorded ({error})") from error
            finally:
                own.graphsafe_set_state(state)
                before.put_back()
                calls.forward, calls.backward = counts
        self._graph = graph

    def replay(self, n_samples):
        """Attack the batch that is in place; return the first samples of the result."""
        self._graph.replay()
        calls, size = self._seen.calls, len(self._x)
        calls.forward += self._cost[0] * n_samples // size
        calls.backward += self._cost[1] * n_samples // size
        return self._found[:n_samples].clone()

    @property
    def size(self):
        """Samples in a batch."""
        return len(self._x)


class Graphs:
    """The attacks on one network that have been recorded.

    Attributes
    ----------
    n_replayed : int
        Batches that were attacked by a graph.
    """

    def __init__(self):
        self.n_replayed = self._n_recorded = 0
        self._recorded, self._met, self._hopeless, self._told = {}, set(), {}, set()

    def attack(self, prepared, seen, x, y, objective, *, seed, keep, clean_logits, trace=None):
        """Attack a batch by a graph, as `perturb_prepared` does without.

        Returns
        -------
        torch.Tensor of the shape of `x`, or None
            None where it has to be done without.

        Raises
        ------
        CannotCapture
            If that is so and ``graph=True``.
        """
        attack = prepared.attack
        name = type(attack).__name__
        try:
            if trace is not None:
                raise CannotCapture("what happens on the way is asked for")
            recorded = self._find(prepared, seen, x, y, objective, keep, clean_logits)
        except CannotCapture as error:
            if attack.graph is True:
                raise CannotCapture(
                    f"{name}(graph=True) cannot run as a CUDA graph: {error}. With graph='auto' it "
                    "runs without one where it has to."
                ) from error
            if (name, str(error)) not in self._told:
                self._told.add((name, str(error)))
                log.debug("%s runs without a CUDA graph: %s", name, error)
            return None
        if recorded is None:
            return None
        recorded.put(prepared, x, y, clean_logits, seed)
        self.n_replayed += 1
        return recorded.replay(len(x))

    def _find(self, prepared, seen, x, y, objective, keep, clean_logits):
        """Return the graph for a batch, None where it pays to do without this time."""
        attack = prepared.attack
        objective = attack._resolve_objective(objective)
        check(prepared, x, objective, keep)
        key = _key(prepared, seen, x, y, objective, clean_logits)
        if key in self._hopeless:
            raise CannotCapture(self._hopeless[key])
        recorded = self._recorded.get(key)
        if recorded is not None and len(x) <= recorded.size:
            return recorded if len(x) >= LEAST * recorded.size else None
        if attack.graph is not True and key not in self._met:
            self._met.add(key)  # what is attacked once only is not worth it
            return None
        try:
            if self._n_recorded >= _PATIENCE:
                raise CannotCapture("something about it changes again and again")
            recorded = Recorded(prepared, seen, x, y, clean_logits, objective)
            recorded.record()
        except CannotCapture as error:
            self._hopeless[key] = str(error)
            raise
        self._n_recorded += 1
        self._recorded.pop(key, None)
        while len(self._recorded) >= _MOST:
            del self._recorded[next(iter(self._recorded))]
        self._recorded[key] = recorded
        log.debug("%s runs as a CUDA graph", type(attack).__name__)
        return recorded


def graphs_of(seen):
    """Return the recorded attacks on a network, which are kept as long as its replica."""
    return seen.kept.setdefault("graphs", Graphs())


def check(prepared, x, objective, keep):
    """Raise CannotCapture unless an attack is the same arithmetic for all batches."""
    attack = prepared.attack
    check_choice(attack.graph, "graph", CHOICES)
    owner = next(kind for kind in type(attack).__mro__ if "_attack_batch" in vars(kind))
    if "is_fixed_path" not in vars(owner) or not attack.is_fixed_path:
        raise CannotCapture("what it does depends on what it finds")
    if keep != "last" or getattr(attack, "n_restarts", 1) != 1:
        raise CannotCapture("only a single run to the last iterate is always the same")
    if not x.is_cuda:
        raise CannotCapture(f"the samples are on the device {x.device.type!r}")
    if objective not in (*OBJECTIVES.values(), REVERSE_KL):
        raise CannotCapture("the objective is not one of those that are known by a name")
    if prepared.norm not in _NORMS:
        raise CannotCapture(f"the projection in norm {prepared.norm:g} looks at what it has found")
    if prepared.space is not None:
        raise CannotCapture("rows of a table are brought into their space outside of the device")
    if attack.target is not None:
        raise CannotCapture("it has a target")
    if not isinstance(prepared.eps, float):
        raise CannotCapture("eps or mask differ between features")
    if attack.bn_mode != "eval":
        raise CannotCapture("answers depend on the rest of the batch")


def _key(prepared, seen, x, y, objective, clean_logits):
    """Return what must be equal for a graph to be of use."""
    attack = prepared.attack
    settings = tuple((n, _plain(v)) for n, v in vars(attack).items() if n not in _GIVEN)
    return (
        type(attack), settings, getattr(attack, "step_size", None) is None,
        prepared.norm, _plain(prepared.lower), _plain(prepared.upper), objective,
        seen.view.state, seen.view.engine, _arithmetic(x),
        x.shape[1:], x.dtype, x.device, y is None, clean_logits is None,
    )  # fmt: skip


def _arithmetic(x):
    """Return torch's settings that decide which kernels are chosen."""
    kind = x.device.type
    cast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    return cast, rounds(x), torch.backends.cudnn.deterministic


def _plain(value):
    """Return a value as something that can be compared by its contents."""
    if isinstance(value, np.ndarray):
        return value.shape, value.dtype, value.tobytes()
    if isinstance(value, (list, tuple)):
        return tuple(map(_plain, value))
    return value if value is None or isinstance(value, (str, float, int)) else id(value)
