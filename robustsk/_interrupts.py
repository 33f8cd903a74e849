"""What must not be left half done by an interrupt."""

from __future__ import annotations

import threading
from contextlib import contextmanager, nullcontext
from functools import partial

import torch

# Every batch sets handlers many times. What the standard library has around these functions, to
# give numbers their names, takes longer than all else here.
try:
    from _signal import SIGINT, getsignal, signal
except ImportError:
    from signal import SIGINT, getsignal, signal

#: Devices on which arithmetic may be cast.
_CAST = ("cpu", "cuda")


@contextmanager
def uninterrupted():
    """Put an interrupt (SIGINT, Ctrl-C) that arrives in a block off until its end.

    The handler that there was is then called, once, however many have arrived. Other threads than
    the main one are never interrupted, and a signal without a handler in Python is left alone.

    Yields
    ------
    callable
        It returns a context in which interrupts do arrive. In the block around it an end can be
        put to what they break off: there, the clause `finally` is run to its end.
    """
    handler = None
    if threading.current_thread() is threading.main_thread():
        handler = getsignal(SIGINT)
    # nobody's, ignored, the end of the process, or put off already
    if not callable(handler) or isinstance(handler, _Note):
        yield nullcontext
        return
    note = _Note()
    try:
        signal(SIGINT, note)
        yield partial(_Interruptible, handler, note)
    finally:
        signal(SIGINT, handler)
        if note.arrived:
            handler(*note.arrived[0])


class _Note:
    """A handler that takes note of interrupts."""

    def __init__(self):
        self.arrived = []

    def __call__(self, *arrived):
        self.arrived.append(arrived)


@contextmanager
def settings_kept():
    """Leave gradients and autocast switched on or off as they were, however a block ends.

    An interrupt on the way out of a context of torch can leave it in place.
    """
    with uninterrupted() as interruptible:
        gradients = torch.is_grad_enabled()
        casts = [
            (kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
            for kind in _CAST
        ]
        try:
            with interruptible():
                yield
        finally:
            torch.set_grad_enabled(gradients)
            for kind, enabled, dtype in casts:
                torch.set_autocast_enabled(kind, enabled)
                torch.set_autocast_dtype(kind, dtype)


@contextmanager
def noted():
    """Note the interrupts (SIGINT, Ctrl-C) that break off a block.

    Yields
    ------
    list
        It has an entry for each, and none for one that a handler of the user's took otherwise.
    """
    arrived, handler = [], None
    if threading.current_thread() is threading.main_thread():
        handler = getsignal(SIGINT)
    if not callable(handler):
        yield arrived
        return

    def note(*what):
        try:
            handler(*what)
        except BaseException:
            arrived.append(what)
            raise

    signal(SIGINT, note)
    try:
        yield arrived
    finally:
        signal(SIGINT, handler)


class _Interruptible:
    # no generator: one that is interrupted on its way out would be closed later, in the midst of
    # something else
    def __init__(self, handler, note):
        self.handler, self.note = handler, note

    def __enter__(self):
        signal(SIGINT, self.handler)
        try:
            if self.note.arrived:
                self.handler(*self.note.arrived.pop())
        except BaseException:
            signal(SIGINT, self.note)
            raise

    def __exit__(self, *error):
        signal(SIGINT, self.note)
