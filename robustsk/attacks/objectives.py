"""What an attack ascends.

An objective maps logits to one number per sample. Attacks sum it over the
batch, so that batch size never changes a gradient.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from ..losses import dlr, dlr_targeted, kl_divergence, margin


@dataclass(frozen=True)
class Objective:
    """A quantity to ascend, with what it needs to know.

    Parameters
    ----------
    function : callable
        ``function(logits, y, target, clean)`` returning a tensor of shape (n,).
        `target` is None in an untargeted attack. `clean` holds the logits of
        the unperturbed batch where `needs_clean` is true, else None.
    needs_clean : bool, default=False
        Whether the logits of the clean batch are needed.
    """

    function: Callable
    needs_clean: bool = False

    def __call__(self, logits, y, target=None, clean=None):
        """Return the value to ascend, shape (n,)."""
        return self.function(logits, y, target, clean)


def _cross_entropy(logits, y, target, clean):
    if target is None:
        return F.cross_entropy(logits, y, reduction="none")
    return -F.cross_entropy(logits, target, reduction="none")


def _cw(logits, y, target, clean):
    return margin(logits, y) if target is None else -margin(logits, target)


def _dlr(logits, y, target, clean):
    needed = 3 if target is None else 4
    if logits.shape[1] < needed:
        warnings.warn(
            f"The DLR objective compares {needed} logits and this model has "
            f"{logits.shape[1]}: the margin ('cw') is used instead.",
            UserWarning,
            stacklevel=2,
        )
        return _cw(logits, y, target, clean)
    return dlr(logits, y) if target is None else dlr_targeted(logits, y, target)


def _kl(logits, y, target, clean):
    # towards a target the divergence from its one-hot distribution is cross-entropy
    if target is not None:
        return _cross_entropy(logits, y, target, clean)
    return kl_divergence(clean, logits)


def _reverse_kl(logits, y, target, clean):
    if target is not None:
        return _cross_entropy(logits, y, target, clean)
    return kl_divergence(logits, clean)


OBJECTIVES = {
    "ce": Objective(_cross_entropy),
    "cw": Objective(_cw),
    "dlr": Objective(_dlr),
    "kl": Objective(_kl, needs_clean=True),
}


#: The divergence the other way round, as some sources write it.
REVERSE_KL = Objective(_reverse_kl, needs_clean=True)


def resolve_objective(objective: str | Callable | None) -> Objective:
    """Return the :class:`Objective` meant by a name or a callable.

    Parameters
    ----------
    objective : str, callable, Objective or None
        One of ``"ce"`` (cross-entropy), ``"cw"`` (margin between the best
        wrong and the true logit), ``"dlr"`` (difference of logits ratio),
        ``"kl"`` (divergence from the clean prediction); or a callable
        ``f(logits, y)`` returning one loss per sample, which is ascended, or
        descended with `y` the target in a targeted attack. None means "ce".

    Returns
    -------
    Objective

    Examples
    --------
    >>> import torch
    >>> from robustsk.attacks.objectives import resolve_objective
    >>> logits, y = torch.tensor([[2.0, 0.5, 0.0]]), torch.tensor([0])
    >>> resolve_objective("cw")(logits, y)
    tensor([-1.5000])
    """
    if objective is None:
        return OBJECTIVES["ce"]
    if isinstance(objective, Objective):
        return objective
    if isinstance(objective, str):
        if objective not in OBJECTIVES:
            raise ValueError(
                f"objective={objective!r} is unknown; use one of {sorted(OBJECTIVES)} or a "
                "callable f(logits, y) that returns one loss per sample."
            )
        return OBJECTIVES[objective]
    if callable(objective):
        return Objective(_UserObjective(objective))
    raise TypeError(f"objective must be a name or a callable, got {type(objective).__name__}.")


class _UserObjective:
    """A callable of the user, turned round when the attack is targeted."""

    def __init__(self, function):
        self.function = function

    def __call__(self, logits, y, target, clean):
        value = self.function(logits, y if target is None else target)
        if not isinstance(value, torch.Tensor) or value.shape != (len(logits),):
            shape = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
            raise ValueError(
                f"The objective must return one loss per sample, shape ({len(logits)},); it "
                f"returned {shape}. Use reduction='none'."
            )
        return value if target is None else -value
