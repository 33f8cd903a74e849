"""Attacks in the course of training."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from operator import is_
from typing import Literal, overload

import numpy as np
import torch
from torch import nn

from .._interrupts import uninterrupted
from ..attacks import BaseAttack
from ..attacks.objectives import resolve_objective
from ..victims._outputs import is_probability


class Crafting:
    """What a defence crafts its adversarial batches with."""

    @overload
    def perturb(
        self,
        module: nn.Module,
        x: torch.Tensor,
        y: torch.Tensor | None,
        *,
        objective: str | Callable | None = None,
        adversary: BaseAttack | None = None,
        return_info: Literal[False] = False,
    ) -> torch.Tensor: ...

    @overload
    def perturb(
        self,
        module: nn.Module,
        x: torch.Tensor,
        y: torch.Tensor | None,
        *,
        objective: str | Callable | None = None,
        adversary: BaseAttack | None = None,
        return_info: Literal[True],
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]: ...

    def perturb(self, module, x, y, *, objective=None, adversary=None, return_info=False):
        """Attack a network in the course of training.

        Parameters
        ----------
        module : torch.nn.Module
            `module_` or a part of it.
        x : torch.Tensor of shape (n, ...)
        y : torch.Tensor of shape (n,)
        objective : str, callable or Objective, optional
            None means that of this defence.
        adversary : attack, optional
            None means that of this defence.
        return_info : bool, default=False
            Whether to return also what the adversary reports about each sample.

        Returns
        -------
        x_adv : torch.Tensor of the shape of `x`
            Detached.
        info : dict of str to torch.Tensor of shape (n, ...)
            Only with `return_info`.
        """
        adversary = self.adversary_ if adversary is None else adversary
        victim = self._victim_in_training(module)
        rows = self._rows(x)
        if not self._shape_checked:
            with victim.frozen() as seen, torch.no_grad():
                logits = seen(rows)
            self._check_logits(logits, x)
            if len(x) > 1 and is_probability(logits):
                warn_about_probabilities(type(self).__name__)
        objective = self.attack_objective() if objective is None else objective
        clean = None
        if (
            module is self.module_
            and resolve_objective(objective).needs_clean
            and self._may_share_clean(x)
        ):
            clean = self.logits(x)
            self._clean = x, clean
        settled = victim
        if not adversary._has_own_perturb:
            settled = self._prepared(adversary, victim, tuple(rows.shape[1:]))
        x_adv, info = adversary.perturb(
            settled,
            rows,
            y,
            objective,
            bounds=victim.bounds,
            seed=int(self._rng.randint(np.iinfo(np.int32).max)),
            clean_logits=None if clean is None else clean.detach(),
            return_info=True,
        )
        if adversary is self.adversary_ and hasattr(adversary, "observe"):
            with uninterrupted():
                adversary.observe(rows, x_adv, self.batch_weight)
        x_adv = x_adv.reshape(x.shape)
        return (x_adv, info) if return_info else x_adv

    def _victim_in_training(self, module):
        # one for the whole training: it has found out how to make the network fast
        known = {} if self._victims is None else self._victims
        if module not in known:
            known[module] = self._victim(module, self.classes_inferred_)
            known[module].is_ours = True
        return known[module]

    def _prepared(self, adversary, victim, sample_shape):
        """Return what is settled before an adversary starts, until its parameters change."""
        said = [victim, *_said_by(adversary)]
        before, copies, prepared = self._run or ([], [], None)
        if (
            len(before) != len(said)
            or not all(map(is_, before, said))
            or not all(np.array_equal(own, said[i]) for i, own in copies)
        ):
            prepared = adversary.prepare(victim, sample_shape, bounds=victim.bounds)
            # arrays and lists may change in place
            copies = [
                (i, np.array(v)) for i, v in enumerate(said) if isinstance(v, (np.ndarray, list))
            ]
            self._run = said, copies, prepared
        return prepared

    def _rows(self, x):
        """Return a batch in the shape of the user's data, to which eps, mask and clip belong."""
        return x.reshape(len(x), *getattr(self, "_sample_shape", self.input_shape_))

    def like_adversary(self, kind, **settings):
        """Return another attack with the settings of the adversary, above all its threat model.

        Parameters
        ----------
        kind : class
            An attack.
        **settings
            Parameters that it does not take over.

        Returns
        -------
        attack
            An instance of `kind`.
        """
        shared, names = (inspect.signature(c).parameters for c in (BaseAttack, kind))
        taken = {
            name: value
            for name, value in self.adversary_._resolved().get_params(deep=False).items()
            # what is not said, of what only some attacks have, is for the new one to choose
            if name in names and (value is not None or name in shared)
        }
        for name in ("estimator", "random_state", "verbose"):
            taken.pop(name, None)
        return kind(**{**taken, **settings})


def warn_about_probabilities(name):
    """Say that a network that is attacked in training ends in a softmax."""
    warnings.warn(
        f"The module of {name} returns probabilities, of which an attack sees next to no gradient "
        "where they are confident: let it return logits, without a softmax in the end, and leave "
        "criterion at its default, CrossEntropyLoss.",
        UserWarning,
        stacklevel=2,
    )


def _said_by(attack):
    """Yield everything that an attack and the attacks in it have as attributes."""
    for value in vars(attack).values():
        yield value
        if isinstance(value, BaseAttack):
            yield from _said_by(value)
