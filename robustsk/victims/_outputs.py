"""What networks return, and where the logits are in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass

import torch

#: What logits are called where outputs have names.
_NAMES = ("logits", "out", "output")


def first_output(output):
    """Return the logits of a network that may return more.

    Parameters
    ----------
    output : torch.Tensor, tuple, list, mapping, dataclass or object with `logits`
        Of outputs with names it is the one called "logits" (or "out", or "output"), of several
        without names the first one.

    Returns
    -------
    torch.Tensor
    """
    if isinstance(output, torch.Tensor):
        return output
    named = _named(output)
    for name in _NAMES:
        if isinstance(named.get(name), torch.Tensor):
            return named[name]
    if isinstance(output, (tuple, list)) and len(output):
        return first_output(output[0])
    tensors = [value for value in named.values() if isinstance(value, torch.Tensor)]
    if len(tensors) == 1:
        return tensors[0]
    kind = type(output).__name__
    held = f"{kind} of {list(named)}" if named else kind
    raise ValueError(
        "A network must return logits, alone, as the first of a tuple, or under the name 'logits', "
        f"and returned {held}: wrap it in a module that returns its logits."
    )


def _named(output):
    """Return the outputs that have names."""
    if isinstance(output, Mapping):
        return dict(output)
    if hasattr(output, "_asdict"):
        return output._asdict()
    if is_dataclass(output):
        return {field.name: getattr(output, field.name) for field in fields(output)}
    return {"logits": output.logits} if hasattr(output, "logits") else {}


def other_widths(output):
    """Return the numbers of columns of what might be the logits, had the first not been taken."""
    if not isinstance(output, (tuple, list)) or hasattr(output, "_asdict"):
        return []
    return [t.shape[1] for t in output[1:] if isinstance(t, torch.Tensor) and t.ndim == 2]


def two_logits(output, n_samples=None):
    """Bring the output of a classifier into the shape (n, n_classes).

    Parameters
    ----------
    output : torch.Tensor of shape (n,), (n, 1) or (n, n_classes), or what holds it
        A single logit is that of the second of two classes.
    n_samples : int, optional
        The n that is meant. A network that squeezes its output returns one sample in the shape
        (n_classes,), which is nothing else only if this is known.

    Returns
    -------
    torch.Tensor
    """
    output = first_output(output)
    if n_samples == 1 and output.ndim < 2:
        output = output.reshape(1, -1)
    if output.ndim == 1:
        output = output[:, None]
    if output.ndim == 2 and output.shape[1] == 1:
        output = torch.cat([torch.zeros_like(output), output], dim=1)
    return output


def predicted_class(logits):
    """Return the class of the largest logit, and -1 where there is none because of a NaN.

    No class is -1: what is not a number fools an untargeted attack and no targeted one.
    """
    top, index = logits.max(1)
    return index.masked_fill_(top != top, -1)


def has_answer(logits):
    """Return where the largest logit is a finite number, shape (n,)."""
    return logits.amax(1).isfinite()


def is_probability(output):
    """Return whether rows of two or more are probability distributions."""
    return bool(
        output.shape[1] > 1
        and (output >= 0).all()
        and torch.allclose(output.sum(1), torch.ones(()).to(output), atol=1e-5)
    )


def is_single_probability(logits):
    """Return whether a single logit per row, that of the second class, is in [0, 1] everywhere."""
    second = logits[:, -1]
    return bool(
        logits.shape[1] == 2
        and not logits[:, 0].any()
        and second.any()
        and ((second >= 0) & (second <= 1)).all()
    )
