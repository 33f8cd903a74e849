"""Full precision where something is judged.

GPUs multiply float32 matrices in TF32, of which ten bits of each number count, unless torch is told
otherwise; for convolutions that is its default. Gradients may be rounded like this. Whether a model
is fooled may not: a reviewer with another device would find something else.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager, suppress
from functools import partial

import torch

_lock = threading.Lock()
#: How many blocks are in full precision now, and what is to be put back after the last.
_n_inside, _former = 0, []


def rounds(x):
    """Return whether products of a tensor are computed in less than its own precision."""
    return x.is_cuda and x.dtype == torch.float32 and any(on for *_, on in _switches())


@contextmanager
def full_precision(device):
    """Compute with all bits of float32 in a block; torch's switches are then as they were.

    They belong to the process: what other threads compute meanwhile is in full precision as well.

    Parameters
    ----------
    device : torch.device
        Nothing is switched unless it is a GPU.
    """
    global _n_inside
    if device.type != "cuda":
        yield
        return
    with _lock:
        _n_inside += 1
        if _n_inside == 1:
            # what has been switched off in the old way may still be on in the new one
            for get, put, off, is_on in _switches():
                if is_on:
                    _former.append((put, get()))
                    put(off)
    try:
        yield
    finally:
        with _lock:
            _n_inside -= 1
            while not _n_inside and _former:
                put, value = _former.pop()
                put(value)


def _switches():
    """Yield how to read and set each switch, what turns it off, and whether it is on."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    old = (
        (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"),
        (partial(getattr, cudnn, "allow_tf32"), partial(setattr, cudnn, "allow_tf32"), False),
    )
    for get, put, off in old:
        # who has used the new switches must go on with them
        with suppress(RuntimeError):
            yield get, put, off, get() != off
    for place in (matmul, getattr(cudnn, "conv", None), getattr(cudnn, "rnn", None)):
        if hasattr(place, "fp32_precision"):
            get, put = (partial(f, place, "fp32_precision") for f in (getattr, setattr))
            yield get, put, "ieee", get() == "tf32"
