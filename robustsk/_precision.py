"""Full precision where something is judged.

GPUs multiply float32 matrices in TF32, of which ten bits of each number count, unless torch is told
otherwise; for convolutions that is its default. Gradients may be rounded like this. Whether a model
is fooled may not: a reviewer with another device would find something else.
"""

from __future__ import annotations

from contextlib import nullcontext, suppress
from functools import partial

import torch

from ._shared import Held


def rounds(x):
    """Return whether products of a tensor are computed in less than its own precision."""
    return x.is_cuda and x.dtype == torch.float32 and any(on for *_, on in _switches())


def full_precision(device):
    """Return a context in which all bits of float32 count; torch's switches are put back after it.

    They belong to the process: what other threads compute meanwhile is in full precision as well.

    Parameters
    ----------
    device : torch.device
        Nothing is switched unless it is a GPU.
    """
    return _EXACT if device.type == "cuda" else nullcontext()


def _switch_off():
    """Have nothing rounded; return what puts the switches back."""
    former = []
    # what has been switched off in the old way may still be on in the new one
    for get, put, off, is_on in _switches():
        if is_on:
            former.append((put, get()))
            put(off)

    def put_back():
        for put, value in reversed(former):
            put(value)

    return put_back


_EXACT = Held(_switch_off)


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
