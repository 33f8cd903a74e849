"""Adversarial training with a single attack step per batch."""

from __future__ import annotations

import numbers
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .._tensors import column
from .._validation import check_length
from ..attacks.gradient.base import BaseGradientAttack
from ..attacks.noise import SampleNoise, Stream
from ..attacks.threat import check_norm
from ..training.overfitting import CatastrophicOverfittingStop
from .base import BaseDefense

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..attacks._parameters import GradientParameters
    from ._parameters import DefenseParameters, Network

#: Noise of the start and step, in radii.
_VARIANTS = {
    "rs": (1.0, 1.25),
    "n-fgsm": (2.0, 1.0),
    "gradalign": (0.0, 1.0),
    "zerograd": (1.0, 2.0),
}


class FastATClassifier(BaseDefense):
    """Fast adversarial training: one gradient step makes the adversarial batch.

    Minimises ``CE(f(x'), y)``, at about the cost of two natural trainings. The
    variants differ in how they keep that from failing (see Notes):

    - "rs": uniform noise, one step of 1.25 eps, projection to the ball.
    - "n-fgsm": noise of twice the radius, one step of eps from there, and no
      projection: `x'` leaves the ball but not the valid range.
    - "gradalign": one step of eps from `x`, and the loss has the further term
      ``lam * (1 - cos(grad at x, grad at x + U))`` with `U` uniform in the ball;
      three times as expensive.
    - "zerograd": as "rs", but with a step of 2 eps from which the features with
      the smallest gradients are left out.

    Parameters
    ----------
    %(first_parameter)s
    variant : {"rs", "n-fgsm", "gradalign", "zerograd"}, default="rs"
        How the adversarial batch is made. "n-fgsm" and "zerograd" are for the
        inf norm only.
    alpha : float, default=None
        Length of the step, in multiples of `eps`. None means that of the
        variant.
    noise : float, default=None
        Size of the uniform noise at the start, in multiples of `eps`. None
        means that of the variant: 1, 2, 0 and 1.
    lam : float, default=0.2
        Weight of the alignment in "gradalign".
    quantile : float, default=0.35
        Share of the features that "zerograd" leaves out, in [0, 1).
    watch : bool, default=True
        Whether to stop when robustness collapses and to go back to the weights
        before, with a warning; see
        :class:`~robustsk.training.CatastrophicOverfittingStop`, whose parameters
        are given as ``callbacks__watch__threshold=0.1``.
    adversary : attack, default=None
        The threat model: norm, radius, valid range, mask and objective are
        taken from it, its steps are not. None means a PGD with ``eps=8/255``.
        Its parameters can be given as ``adversary__eps=0.3``. The randomness
        comes from the `random_state` of this estimator.
    %(shared_parameters)s

    %(shared_attributes)s

    See Also
    --------
    FreeATClassifier : Several steps for the price of one.
    PGDATClassifier : Several steps at their full price.

    Notes
    -----
    Training on single steps can fail within one epoch (catastrophic
    overfitting): the accuracy under FGSM rises to that on clean data while it
    falls to zero under PGD. Large radii, long training and a small learning
    rate at the end provoke it. On CIFAR-10 with ``eps=8/255``, N-FGSM and
    GradAlign withstand it, the first at a third of the cost of the second. The
    best models trained with single steps remain some points behind those of
    several steps under AutoAttack (about 43 to 46 against 47 to 49 %% for a
    ResNet-18).

    The sources have 1.25 (rs) for alpha, noise of 2 (1 to 3 as eps grows) in
    N-FGSM, ``lam=0.2`` for ``eps=8/255`` in GradAlign, and quantiles of 0.35
    (CIFAR-10), 0.45 (CIFAR-100) and 0.7 (SVHN) in ZeroGrad. Here all variants
    attack the network in evaluation mode, as all defences do.

    References
    ----------
    Wong, Rice and Kolter (2020), "Fast is better than free: revisiting
    adversarial training", Algorithm 3 (rs); de Jorge, Bibi, Volpi, Sanyal,
    Torr, Rogez and Dokania (2022), "Make some noise: reliable and efficient
    single-step adversarial training", Eq. 3 (n-fgsm); Andriushchenko and
    Flammarion (2020), "Understanding and improving fast adversarial training",
    Eq. 4 (gradalign); Golgooni, Saberi, Eskandar and Rohban (2021), "ZeroGrad:
    mitigating and explaining catastrophic overfitting in FGSM adversarial
    training" (zerograd).

    Examples
    --------
    >>> from robustsk import FastATClassifier
    >>> from robustsk.datasets import load_digits_images
    >>> X, y = load_digits_images(return_X_y=True)
    >>> clf = FastATClassifier("small_cnn", max_epochs=8, adversary__eps=0.1, random_state=0)
    >>> clf = clf.fit(X[:1000], y[:1000])
    >>> bool(clf.score_adversarial(X[1000:1200], y[1000:1200]) > 0.4)
    True
    """

    def __init__(
        self,
        module: Network | None = None,
        *,
        variant: str = "rs",
        alpha: float | None = None,
        noise: float | None = None,
        lam: float = 0.2,
        quantile: float = 0.35,
        watch: bool = True,
        **common: Unpack[DefenseParameters],
    ):
        super().__init__(module, **common)
        self.variant = variant
        self.alpha = alpha
        self.noise = noise
        self.lam = lam
        self.quantile = quantile
        self.watch = watch

    @property
    def _default_callbacks(self):
        *others, log = super()._default_callbacks
        watch = [("watch", CatastrophicOverfittingStop())] if self.watch else []
        return [*others, *watch, log]

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        """Check the parameters; called by skorch."""
        super().on_train_begin(net, X, y, **kwargs)
        if self.variant not in _VARIANTS:
            raise ValueError(f"variant must be one of {tuple(_VARIANTS)}, got {self.variant!r}.")
        norm = check_norm(self.adversary_._resolved().norm)
        if self.variant in ("n-fgsm", "zerograd") and norm != np.inf:
            raise ValueError(
                f"variant={self.variant!r} is defined for the inf norm and the adversary has "
                f"norm={norm:g}: use variant='rs' or 'gradalign', or PGDATClassifier."
            )
        for name in ("alpha", "noise"):
            if getattr(self, name) is not None:
                check_length(getattr(self, name), name)
        check_length(self.lam, "lam")
        if not isinstance(self.quantile, numbers.Real) or not 0 <= self.quantile < 1:
            raise ValueError(f"quantile must be in [0, 1), got {self.quantile!r}.")

    def craft(self, x: Tensor, y: Tensor):
        """Return the adversarial batch; with "gradalign", also the points ``x + U``."""
        noise, alpha = _VARIANTS[self.variant]
        step = self.like_adversary(
            _SingleStep,
            noise=noise if self.noise is None else self.noise,
            alpha=alpha if self.alpha is None else self.alpha,
            quantile=self.quantile if self.variant == "zerograd" else 0.0,
            projected=self.variant != "n-fgsm",
        )
        x_adv = self.perturb(self.module_, x, y, adversary=step)
        if self.variant != "gradalign":
            return x_adv
        rows = self._rows(x)
        noise = SampleNoise(rows, int(self._rng.randint(np.iinfo(np.int32).max)))
        ball = self.adversary_.reach(rows, getattr(self, "clip_bounds_", None))
        return x_adv, ball.random_start("uniform", noise, Stream.START, 0.0).reshape(x.shape)

    def training_loss(self, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        """Return ``CE(f(x'), y)``, and the alignment of gradients if asked for; shape (n,)."""
        if self.variant != "gradalign":
            return self.classification_loss(self.logits(x_adv), y)
        x_adv, x_near = x_adv
        loss = self.classification_loss(self.logits(x_adv), y)
        if self.lam == 0:
            return loss
        return loss + self.lam * _misalignment(self._slope(x, y), self._slope(x_near, y))

    def _slope(self, x, y):
        """Return the gradient of the loss with respect to `x`, which can be differentiated."""
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            loss = self.classification_loss(self.logits(x), y)
            (gradient,) = torch.autograd.grad(loss.sum(), x, create_graph=True)
        return gradient.flatten(1)


def _misalignment(first, second):
    """Return one minus the cosine of the rows; 0 where one has no direction. Shape (n,)."""
    lengths = [torch.linalg.vector_norm(g, dim=1) for g in (first, second)]
    known = (lengths[0] > 0) & (lengths[1] > 0)
    first, second = (
        g / torch.where(known, size, 1.0)[:, None]
        for g, size in zip((first, second), lengths, strict=True)
    )
    return torch.where(known, 1 - (first * second).sum(1), 0.0)


class _SingleStep(BaseGradientAttack):
    """One step from noise, which may end outside of the ball."""

    def __init__(
        self,
        estimator: Any = None,
        *,
        noise: float = 1.0,
        alpha: float = 1.0,
        quantile: float = 0.0,
        projected: bool = True,
        **common: Unpack[GradientParameters],
    ):
        super().__init__(estimator, **common)
        self.noise = noise
        self.alpha = alpha
        self.quantile = quantile
        self.projected = projected

    def _attack_batch(self, batch):
        ball, z = batch.ball, batch.x
        if self.noise:
            drawn = ball.draw(batch.noise, Stream.START)
            z = ball.clamp(z + self.noise * ball.radius * ball.to_data(drawn))
        _, _, gradient = batch.value_and_gradient(z)
        n_small = int(self.quantile * gradient[0].numel())
        if n_small:
            size = gradient.flatten(1).abs()
            cut = size.kthvalue(n_small, dim=1).values
            gradient = torch.where(gradient.abs() > column(cut, gradient), gradient, 0.0)
        size = self.alpha * ball.radius
        if self.projected:
            return ball.ascend(z, gradient, size)
        return ball.clamp(z + size * ball.to_data(gradient.sign()))
