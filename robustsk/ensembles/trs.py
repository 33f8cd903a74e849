"""TRS: members with dissimilar and short input gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .._validation import check_count, check_length
from ..attacks.noise import SampleNoise, Stream
from ..losses import gradient_magnitude, gradient_similarity
from ..victims.engine import get_members
from .base import BaseEnsemble
from .gal import losses_and_gradients

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..defenses._parameters import Network
    from ._parameters import EnsembleParameters


class EnsembleTRS(BaseEnsemble):
    """Transferability reduced smooth ensemble: dissimilar gradients, smooth members.

    Minimises ``sum_i CE(f_i(x), y) + lam_a * S(x) + lam_b * M(x')``, where `S`
    is the mean of ``|cos(grad L_i, grad L_j)|`` over the pairs of members and
    `M` twice the mean length of the members' gradients, taken at the point `x'`
    within the ball of the adversary where it is largest. That gradients are
    orthogonal at `x` is not enough to stop transfer; the members must be smooth
    as well. Predictions are those of the mean probability.

    Parameters
    ----------
    %(first_parameter)s
    lam_a : float, default=1.0
        Weight of the similarity.
    lam_b : float, default=0.25
        Weight of the magnitude.
    n_steps : int, default=6
        Steps of the ascent to `x'`, which starts uniformly in the ball of the
        adversary.
    step_size : float, default=None
        Length of a step. None means a third of the radius.
    adversarial : bool, default=False
        Whether to add the members' losses on examples that are adversarial to
        the ensemble.
    %(shared_parameters)s

    %(shared_attributes)s

    See Also
    --------
    EnsembleGAL : The alignment of gradients alone.
    robustsk.losses.gradient_similarity : `S`.
    robustsk.losses.gradient_magnitude : `M`.

    Notes
    -----
    Alone it falls to strong attacks on the ensemble as a whole. Use it with
    `adversarial`.

    The losses are summed over the members; the penalties are means over the
    pairs of members, whence the factor 2 in `M`. The article has the lengths of
    gradients in `M`, and its authors' code their squares, with which training
    easily diverges. The code looks for `x'` for half of each batch only and
    takes `x` for the other half, and the radius of its ball grows from 0.01 to
    0.03 in the course of training, which :class:`~robustsk.training.EpsWarmup`
    can do. Its authors used weights of 40 and 2.5 for CIFAR-10, far too much
    for small networks; the defaults are this package's, found on digits. What
    they mean depends on the scale of the data, because the gradients have the
    unit 1 / data.

    The ascent takes second derivatives in the input, so that a step of
    training is several times as expensive as one of adversarial training with
    as many steps. On networks of ReLUs see the notes of :class:`EnsembleGAL`. A
    single member has no pairs and is trained naturally.

    References
    ----------
    Yang, Li, Xu, Zuo, Chen, Zhou, Rubinstein, Zhang and Li (2021), "TRS:
    transferability reduced ensemble via promoting gradient diversity and model
    smoothness", NeurIPS, and the authors' code.

    Examples
    --------
    >>> from robustsk import EnsembleTRS
    >>> from robustsk.datasets import load_digits_images
    >>> X, y = load_digits_images(return_X_y=True, as_flat=True)
    >>> clf = EnsembleTRS(max_epochs=8, adversary__eps=0.1, random_state=0)
    >>> clf = clf.fit(X[:1000], y[:1000])
    >>> bool(clf.score_adversarial(X[1000:1200], y[1000:1200]) > 0.4)
    True
    """

    def __init__(
        self,
        module: Network | Sequence[Network] | None = None,
        *,
        lam_a: float = 1.0,
        lam_b: float = 0.25,
        n_steps: int = 6,
        step_size: float | None = None,
        adversarial: bool = False,
        **common: Unpack[EnsembleParameters],
    ):
        super().__init__(module, **common)
        self.lam_a = lam_a
        self.lam_b = lam_b
        self.n_steps = n_steps
        self.step_size = step_size
        self.adversarial = adversarial

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        """Check the parameters; called by skorch."""
        super().on_train_begin(net, X, y, **kwargs)
        for name in ("lam_a", "lam_b"):
            check_length(getattr(self, name), name)
        check_count(self.n_steps, "n_steps")
        if self.step_size is not None:
            check_length(self.step_size, "step_size")

    def craft(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return where the gradients are longest, and the adversarial batch; `x` where unused."""
        near = self._steepest(x, y) if self.lam_b and len(self.module_.members) > 1 else x
        return near, super().craft(x, y) if self.adversarial else x

    def _steepest(self, x, y):
        """Return points of the ball around each sample where the members' gradients are long."""
        victim = self._victim_in_training(self.module_)
        rows = self._rows(x)
        ball = self.adversary_.reach(rows, victim.bounds)
        noise = SampleNoise(rows, int(self._rng.randint(np.iinfo(np.int32).max)))
        size = ball.radius / 3 if self.step_size is None else self.step_size
        z = ball.random_start("uniform", noise, Stream.START, 0.0)
        with victim.frozen() as seen:
            members = get_members(seen.module)
            for _ in range(self.n_steps):
                at = z.reshape(x.shape).requires_grad_(True)
                _, gradients = losses_and_gradients(self, at, y, members)
                (ascent,) = torch.autograd.grad(gradient_magnitude(gradients).sum(), at)
                z = ball.ascend(z.detach(), ascent.reshape(z.shape), size)
        return z.reshape(x.shape)

    def training_loss(self, x: Tensor, x_adv: tuple[Tensor, Tensor], y: Tensor) -> Tensor:
        """Return ``sum_i CE(f_i(x), y) + lam_a * S(x) + lam_b * M(x')``, shape (n,)."""
        near, x_adv = x_adv
        if len(self.module_.members) == 1 or not (self.lam_a or self.lam_b):
            loss = self.member_losses(self.member_logits(x), y)
        else:
            losses, gradients = losses_and_gradients(self, x, y)
            loss = losses.sum(0) + self.lam_a * gradient_similarity(gradients)
            if self.lam_b:
                _, gradients = losses_and_gradients(self, near, y)
                loss = loss + self.lam_b * gradient_magnitude(gradients)
        if self.adversarial:
            loss = loss + self.member_losses(self.member_logits(x_adv), y)
        return loss
