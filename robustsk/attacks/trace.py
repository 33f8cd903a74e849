"""The way of an attack: what it ascended, and where, whenever it took a gradient."""

from __future__ import annotations

import torch

from .._validation import check_choice

KINDS = ("values", "iterates")


class Trace:
    """What a batch was when its gradient was taken, for each sample in order.

    Parameters
    ----------
    n_samples : int
    kind : {"values", "iterates"}
        Whether to remember the objectives alone or the points as well.
    device : torch.device
    """

    def __init__(self, n_samples, kind, device):
        check_choice(kind, "return_info", (False, True, *KINDS))
        self._kind = kind
        self._rows = torch.arange(n_samples, device=device)
        self._count = torch.zeros_like(self._rows)
        self._steps = []

    def select(self, index):
        """Return the trace of the samples in `index`, of which this one learns."""
        other = object.__new__(Trace)
        other.__dict__.update(self.__dict__)
        other._rows = self._rows[index]
        return other

    def add(self, z, value):
        """Remember points, shape (n, ...), and their objectives, shape (n,)."""
        at = self._count[self._rows]
        # some attacks go on in place
        kept = z.detach().clone() if self._kind == "iterates" else None
        self._steps.append((self._rows, at, value, kept))
        self._count[self._rows] = at + 1

    def info(self):
        """Return the entries of `info`; a sample that was left alone early ends in NaN."""
        if not self._steps:
            raise ValueError(
                f"return_info={self._kind!r}: this attack has no such path to report, it takes no "
                "gradient of one objective. Pass return_info=True (and trace=True to an attack "
                "with several objectives)."
            )
        n_steps = int(self._count.max())
        names = ("trace_values", "trace_iterates")[: 2 if self._kind == "iterates" else 1]
        info = {}
        for name, place in zip(names, (2, 3), strict=False):
            first = self._steps[0][place]
            whole = first.new_full((len(self._count), n_steps, *first.shape[1:]), torch.nan)
            for step in self._steps:
                whole[step[0], step[1]] = step[place]
            info[name] = whole
        return info
