"""DRA: raw gradients on the most significant features, with an l1 budget."""

from __future__ import annotations

import numbers
from typing import TYPE_CHECKING, Any

import torch

from ..._tensors import column, flat, positive
from ..._validation import check_choice, check_count, check_length, check_start
from ..noise import Stream
from ._descent import walk
from .base import BaseGradientAttack

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._parameters import GradientParametersButNorm

#: Mean change per feature where ``eps_unit="mean"`` and none is given; the
#: 12 of the 1-norm are the same on images of 3 x 32 x 32.
DEFAULT_MEAN = 1 / 255


class DRA(BaseGradientAttack):
    """Follow the raw gradient, and only where it is largest.

    Every step moves the share `proportion` of the features on which the loss
    depends most, in proportion to their gradient ``g`` and not to its sign:
    ``x_adv = x_adv + step_size * mask * g / ||g||_1``. What a sample may
    change is limited in total; a single feature may change by a lot.

    Parameters
    ----------
    %(first_parameter)s
    norm : {1, "l1"}, default=1
        Norm in which the perturbation is measured.
    proportion : float, default=1/3
        Share of the features that a step changes, in [0, 1].
    n_steps : int, default=5
        Number of gradient steps.
    step_size : float, default=None
        Length of a step, in the units of `eps`. None means ``eps / n_steps``.
    eps_unit : {"total", "mean"}, default="total"
        Whether `eps` is the sum of all changes, as everywhere for the 1-norm,
        or their mean over the features of a sample, as in the source. None
        then means 1/255 as the mean.
    normalize : {"before", "after"}, default="before"
        Whether the gradient is brought to length one before or after the mask.
        After it, few features get the whole step and a small `proportion`
        makes the stronger attack.
    mask_mode : {"per_step", "first"}, default="per_step"
        Whether the features are chosen anew in each step or in the first one.
    projection : {"l1", "scale"}, default="l1"
        How what has gone too far is brought back: to the nearest point, which
        spares large changes, or by making all of them shorter. By the triangle
        inequality this never happens with the default `step_size` and start.
    random_start : {"none", "uniform", "gaussian"}, default=None
        Start at the sample, uniformly in the ball, or at the sample plus
        normal noise of standard deviation `start_std`. None means "gaussian"
        for the divergence from the clean prediction, whose gradient at the
        sample is zero, and "none" for other objectives.
    start_std : float, default=0.001
        Standard deviation of the gaussian start, in the units of the data.
    %(shared_parameters)s

    %(shared_attributes)s

    See Also
    --------
    robustsk.metrics.match_attack_strength : The `eps` at which two attacks are
        equally strong.

    Notes
    -----
    The source gives no pseudo-code; normalising before the mask is what agrees
    with its reports that the attack grows with the proportion and saturates.
    On a linear model and with all features the attack gains
    ``d ||g||_2^2 / ||g||_1^2`` times as much as a sign attack with the same
    mean change.

    References
    ----------
    Hou (2022), "Adversarial training for improving the robustness of deep
    neural networks", MSc thesis, University of Alberta, Sec. 4.4.2.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from robustsk.attacks import DRA
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = LogisticRegression(max_iter=1000).fit(X, y)
    >>> X_adv = DRA(clf, eps=0.5, eps_unit="mean").fit(X).generate(X, y)
    >>> bool(abs(X_adv - X).mean(axis=1).max() <= 0.5)
    True
    """

    supported_norms = (1.0,)

    def __init__(
        self,
        estimator: Any = None,
        *,
        proportion: float = 1 / 3,
        n_steps: int = 5,
        step_size: float | None = None,
        eps_unit: str = "total",
        normalize: str = "before",
        mask_mode: str = "per_step",
        projection: str = "l1",
        random_start: str | None = None,
        start_std: float = 0.001,
        norm: float | str = 1,
        **common: Unpack[GradientParametersButNorm],
    ):
        super().__init__(estimator, norm=norm, **common)
        self.proportion = proportion
        self.n_steps = n_steps
        self.step_size = step_size
        self.eps_unit = eps_unit
        self.normalize = normalize
        self.mask_mode = mask_mode
        self.projection = projection
        self.random_start = random_start
        self.start_std = start_std

    def _stated_eps(self, norm, sample_shape):
        mean = self.eps is None and self.eps_unit == "mean"
        return DEFAULT_MEAN if mean else super()._stated_eps(norm, sample_shape)

    def _effective_eps(self, norm, sample_shape):
        check_choice(self.eps_unit, "eps_unit", ("total", "mean"))
        if self.eps_unit == "total":
            return super()._effective_eps(norm, sample_shape)
        known = self if self.eps is not None else self._with(eps=DEFAULT_MEAN)
        eps = super(DRA, known)._effective_eps(norm, sample_shape)
        return eps * torch.Size(sample_shape).numel()

    def _attack_batch(self, batch):
        ball = batch.ball
        n_steps = check_count(self.n_steps, "n_steps")
        start = self.random_start
        if start is None:
            # towards a target the divergence is cross-entropy
            start = "gaussian" if batch.objective.needs_clean and batch.target is None else "none"
        step = self._step_length(batch, 1.0, n_steps)
        n_features = batch.x[:1].numel()
        if self.step_size is not None and self.eps_unit == "mean":
            step = step * n_features
        n_changed = round(_check_proportion(self.proportion) * n_features)
        for name, allowed in (
            ("mask_mode", ("per_step", "first")),
            ("normalize", ("before", "after")),
            ("projection", ("l1", "scale")),
        ):
            check_choice(getattr(self, name), name, allowed)
        first_only, before = self.mask_mode == "first", self.normalize == "before"
        scale = self.projection == "scale"
        stays_inside = start == "none" and n_steps * step <= ball.radius * (1 + 1e-6)
        chosen = torch.zeros((len(batch.x), n_features), dtype=torch.bool, device=batch.x.device)

        def advance(batch, rows, z, gradient, number):
            vectors = flat(batch.ball.to_data(gradient))
            if number == 0 or not first_only:
                # Sec. 4.4.2: only the steepest features move
                top = vectors.abs().topk(n_changed, dim=1).indices
                chosen[rows] = torch.zeros_like(chosen[rows]).scatter(1, top, True)
            masked = vectors * chosen[rows]
            length = positive((vectors if before else masked).abs().sum(1, keepdim=True))
            # along the gradient itself, not its sign, in a step that the 1-norm measures
            z = z + batch.ball.to_data((step * (masked / length)).reshape(z.shape))
            if stays_inside:
                return batch.ball.clamp(z)
            if scale:
                excess = batch.ball.distance(z) / max(batch.ball.radius, 1e-30)
                z = batch.ball.x + (z - batch.ball.x) / column(excess.clamp_min(1.0), z)
            return batch.ball.project(z)

        z = ball.random_start(
            check_start(start), batch.noise, Stream.START, check_length(self.start_std, "start_std")
        )
        return walk(batch, z, n_steps=n_steps, advance=advance).z


def _check_proportion(value):
    if not isinstance(value, numbers.Real) or not 0 <= value <= 1:
        raise ValueError(f"proportion must be a number in [0, 1], got {value!r}.")
    return float(value)
