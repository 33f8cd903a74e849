"""Expectation over transformation."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from ..._validation import check_count
from ...victims.resolve import as_victim
from ..base import BaseAttack
from ..batch import AttackBatch
from ..noise import seeded
from .base import BaseWrapper, SeenVictim

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._parameters import AttackParameters


class EOT(BaseWrapper):
    """Expectation over transformation: attack what is random on average.

    A defence that transforms its input at random, or has random layers, gives
    another gradient each time it is asked. Here the attack inside sees the mean
    over several draws: the prediction is what the mean of the predicted
    probabilities says.

    Parameters
    ----------
    %(first_parameter)s
    attack : attack, default=None
        The attack inside. None means `PGD()`.
    transformation : callable, default=None
        ``transformation(x)`` returns a transformed copy of a batch of tensors,
        differentiably: a function, a torch module (used in the mode it is in)
        or a transform of torchvision. Its random numbers must come from
        torch's global generators, which are seeded for it and put back. It
        comes before the model and is not part of it. None means that the model
        itself is random.
    n_draws : int, default=10
        Number of draws in each gradient and each prediction.
    average : {"prediction", "loss"}, default="prediction"
        What the attack ascends: the objective of the mean prediction, or the
        mean of the objectives of all draws. The second is the original, and
        takes the memory of one draw only; but draws that are wrong already go
        on counting, so where the draws differ much it is the weaker one.
    %(shared_parameters)s

    %(shared_attributes)s

    See Also
    --------
    BPDA : For steps without a useful gradient.

    Notes
    -----
    The draws are made one after the other, because a transformation may draw
    one number for a whole batch. Equal seeds give equal results. Since torch
    draws for a batch and not for a sample, `batch_size` changes what is drawn,
    unlike in other attacks.

    `robustsk.metrics.score_adversarial` has the last word from `predict` of
    the model as it is: where that is random, from one draw without a seed. It
    does not know of a `transformation`; make the transformation a part of the
    model, and leave it out here, to score the two together.

    References
    ----------
    Athalye, Engstrom, Ilyas and Kwok (2018), "Synthesizing robust adversarial
    examples", Sec. 2.1; Athalye, Carlini and Wagner (2018), "Obfuscated
    gradients give a false sense of security", Sec. 4.2; Salman, Yang, Li,
    Zhang, Zhang, Razenshteyn and Bubeck (2019), "Provably robust deep learning
    via adversarially trained smoothed classifiers", Sec. 2.2, for the
    objective of the mean prediction.

    Examples
    --------
    >>> import torch
    >>> from robustsk.attacks import EOT, PGD
    >>> _ = torch.manual_seed(0)
    >>> model, x = torch.nn.Linear(4, 3), torch.rand(2, 4)
    >>> def noise(x):
    ...     return x + 0.1 * torch.randn_like(x)
    >>> attack = EOT(model, attack=PGD(eps=0.1), transformation=noise, clip=(0, 1), random_state=0)
    >>> attack.generate(x).shape
    torch.Size([2, 4])
    """

    def __init__(
        self,
        estimator: Any = None,
        *,
        attack: BaseAttack | None = None,
        transformation: Callable | None = None,
        n_draws: int = 10,
        average: str = "prediction",
        **common: Unpack[AttackParameters],
    ):
        super().__init__(estimator, attack=attack, **common)
        self.transformation = transformation
        self.n_draws = n_draws
        self.average = average

    def prepare(self, model, X, y=None, **known):
        """Settle everything before the first question; see :meth:`BaseAttack.prepare`.

        Parameters
        ----------
        model, X, y, **known
            As there.
        """
        victim = as_victim(model, attack=type(self).__name__, access=self.access)
        device = self._resolved().device
        # a random model is also asked about its classes
        with seeded(0, victim.device if device in ("auto", None) else torch.device(device)):
            return super().prepare(victim, X, y, **known)

    def _same_each_time(self, device):
        return seeded(0, device)

    def _see(self, victim, seed):
        n_draws = check_count(self.n_draws, "n_draws")
        if self.average not in ("prediction", "loss"):
            raise ValueError(f"average must be 'prediction' or 'loss', got {self.average!r}.")
        if self.transformation is not None and not callable(self.transformation):
            raise TypeError(
                "transformation must be a callable that takes a batch of tensors, got "
                f"{self.transformation!r}."
            )
        return super()._see(_Expected(victim, self.transformation, n_draws, seed), seed)

    def _attack_batch(self, batch):
        if self.average == "prediction":
            return super()._attack_batch(batch)
        expected = batch.victim
        while not isinstance(expected, _Expected):
            expected = expected.seen
        return super()._attack_batch(_ExpectedBatch(**vars(batch), expected=expected))


class _Expected(SeenVictim):
    """A victim that answers with its mean over random draws."""

    def __init__(self, seen, transformation, n_draws, seed):
        super().__init__(seen)
        self.transformation = transformation
        self.n_draws = n_draws
        self.seed = seed
        self.n_seeds = 0

    def __call__(self, x):
        self.n_seeds += 1
        with seeded(self.seed + 7919 * self.n_seeds, x.device):
            draws = [self._draw(x) for _ in range(self.n_draws)]
        if torch.is_grad_enabled() and x.requires_grad:
            # whoever asks for the gradient counts one
            self.calls.backward += (len(draws) - 1) * len(x)
        return draws[0] if len(draws) == 1 else _mean_prediction(draws)

    def _draw(self, x):
        return self.seen(x if self.transformation is None else self.transformation(x))

    @contextmanager
    def once(self):
        """Answer with single draws for a while."""
        n_draws, self.n_draws = self.n_draws, 1
        try:
            yield
        finally:
            self.n_draws = n_draws


def _mean_prediction(draws):
    """Return the logarithm of the mean probabilities, which are logits as well."""
    draws = torch.stack([F.log_softmax(logits, dim=1) for logits in draws])
    return draws.logsumexp(0) - math.log(len(draws))


@dataclass
class _ExpectedBatch(AttackBatch):
    """A batch whose objective and gradient are means over draws."""

    expected: _Expected | None = None

    def value_and_gradient(self, z):
        n_draws = self.expected.n_draws
        logits, value, gradient = [], 0.0, 0.0
        # single draws are no part of the path
        trace, self.trace = self.trace, None
        with self.expected.once():
            for _ in range(n_draws):
                drawn = super().value_and_gradient(z)
                logits.append(drawn[0])
                value, gradient = value + drawn[1] / n_draws, gradient + drawn[2] / n_draws
        self.trace = trace
        if trace is not None:
            trace.add(z, value)
        return _mean_prediction(logits), value, gradient
