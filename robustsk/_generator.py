"""Random numbers of one's own from torch's global generators, which all threads share."""

from __future__ import annotations

import copy
import os
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch

from ._interrupts import uninterrupted

_lock = threading.RLock()
_END = object()


def _renew_lock():
    # a thread that held it when the process was forked is not there to release it
    global _lock
    _lock = threading.RLock()
    _loans.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


@dataclass(eq=False)
class _Loan:
    """A state that is in place, and the one that it has taken the place of."""

    state: GeneratorState
    former: list


#: The loans under way, in the order in which they were made.
_loans: list[_Loan] = []


class GeneratorState:
    """A state of torch's global generators, which is theirs in some blocks only.

    Layers, samplers and augmentations draw from generators that all threads share. So each
    training has a state of its own and puts it in place where it draws; of several threads one at
    a time.

    Parameters
    ----------
    seed : int
    device : str or torch.device, default="cpu"
        Whose generator is meant besides that of the CPU.
    """

    def __init__(self, seed, device="cpu"):
        self.device = torch.device(device)
        self._is_in_use = False
        kinds = ["cpu"] if self.device.type == "cpu" else ["cpu", self.device]
        self._states = [torch.Generator(kind).manual_seed(seed).get_state() for kind in kinds]

    @classmethod
    def present(cls, device="cpu"):
        """Return the state that the generators have outside of all blocks.

        Parameters
        ----------
        device : str or torch.device, default="cpu"

        Returns
        -------
        GeneratorState
        """
        state = cls(0, device)
        with _lock:
            state._states = state._read()
        return state

    def copy(self):
        """Return another one that goes on from here."""
        with _lock:
            other = copy.copy(self)
            if self._is_in_use:
                other._states, other._is_in_use = self._read(), False
        return other

    @contextmanager
    def in_use(self):
        """Draw from this state in a block; what is left of it is kept, and the former put back.

        Other threads wait at their blocks, so nothing in one may wait for another thread. Blocks
        in one thread may be inside of each other.

        Yields
        ------
        callable
            The block is not interrupted but in the contexts that this returns; see
            :func:`uninterrupted`.
        """
        with _lock, uninterrupted() as interruptible:
            if self._is_in_use:
                yield interruptible
                return
            former = self._read()
            self._write(self._states)
            self._is_in_use = True
            try:
                yield interruptible
            finally:
                self._states, self._is_in_use = self._read(), False
                self._write(former)

    @contextmanager
    def watched(self):
        """Draw from this state in a block, like `in_use`.

        Yields
        ------
        callable
            Says, after the block, whether anything has been drawn in it.
        """
        before = self.copy()
        with self.in_use() as interruptible, interruptible():
            yield lambda: not self.equals(before)

    def equals(self, other):
        """Return whether the same numbers would be drawn from another state."""
        return all(map(torch.equal, self._states, other._states))

    def put_back(self):
        """Have the generators go on from here, outside of all blocks."""
        with _lock:
            self._write(self._states)

    @contextmanager
    def lent(self):
        """Draw from this state in a block that may wait for other threads.

        Those may go on with blocks of their own, of :meth:`in_use` or this one. What is drawn here
        at the same moment as there is not of this state.
        """
        if self._is_in_use:
            yield
            return
        with uninterrupted() as interruptible:
            with _lock:
                loan = _Loan(self, self._read())
                _loans.append(loan)
                self._write(self._states)
                self._is_in_use = True
            try:
                with interruptible():
                    yield
            finally:
                with _lock:
                    self._take_back(loan)

    def _take_back(self, loan):
        place = _loans.index(loan)
        if loan is _loans[-1]:
            self._states = self._read()
            self._write(loan.former)
        else:  # whoever came later has put the present state aside
            later = _loans[place + 1]
            self._states, later.former = later.former, loan.former
        self._is_in_use = False
        del _loans[place]

    def draw(self, iterable):
        """Yield what an iterable yields; it draws from this state, whoever uses it does not.

        Parameters
        ----------
        iterable : iterable

        Yields
        ------
        object
        """
        with self.in_use() as interruptible, interruptible():
            iterator = iter(iterable)
        while True:
            with self.in_use() as interruptible, interruptible():
                item = next(iterator, _END)
            if item is _END:
                return
            yield item

    def _read(self):
        return [get() for get, _ in self._generators()]

    def _write(self, states):
        for (_, put), state in zip(self._generators(), states, strict=True):
            put(state)

    def _generators(self):
        yield torch.get_rng_state, torch.set_rng_state
        if self.device.type == "mps":
            yield torch.mps.get_rng_state, torch.mps.set_rng_state
        elif self.device.type != "cpu":
            module = torch.get_device_module(self.device)
            yield (
                partial(module.get_rng_state, self.device),
                partial(module.set_rng_state, device=self.device),
            )
