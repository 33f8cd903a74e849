"""Projected gradient descent that is blind to the scale of the logits."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ...losses import margin
from ..objectives import Objective
from .pgd import PGD

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._parameters import PGDParameters


class ScaledPGD(PGD):
    """PGD on logits that are brought to one scale, for models that mask their gradients.

    Cross-entropy of very large logits has a gradient of exactly zero in
    floating point, and a model whose logits are large, whether by training or
    by design, looks robust to an attack that ascends it. Here the logits of
    each sample are multiplied, at every step, so that the largest is ahead of
    the second by `scale`; no factor that the model applies to its logits
    changes anything.

    Parameters
    ----------
    %(first_parameter)s
    scales : float or sequence of float, default=1.0
        Lead of the largest logit over the second after scaling; positive. With
        several the attack is run with one after the other. A small one weighs
        all wrong classes alike, a large one follows the nearest of them; with
        more than about 80 cross-entropy vanishes in float32 as it does without
        scaling.
    n_steps : int, default=10
        Number of gradient steps.
    step_size : float, default=None
        Length of a step, in the units of `eps`. None means
        ``2.5 * eps / n_steps``.
    random_start : {"none", "uniform", "gaussian"}, default="uniform"
        Start at the sample, uniformly in the ball, or at the sample plus
        normal noise of standard deviation `start_std`.
    start_std : float, default=0.001
        Standard deviation of the gaussian start, in the units of the data.
    n_restarts : int, default=1
        Number of runs per scale. The first run that fools the model counts,
        otherwise the one with the highest margin.
    %(shared_parameters)s

    %(shared_attributes)s

    See Also
    --------
    PGD : On the logits as they are.
    APGD : With ``objective="dlr"`` indifferent to the scale as well.

    Notes
    -----
    Dividing the logits by a constant before the softmax is how defensive
    distillation was broken (Carlini and Wagner), and sweeping that constant
    how overrated robustness of reweighted adversarial training was found
    (Hitaj et al.). A factor per sample and step needs no sweep over the size
    of the logits. It is taken as constant by the gradient, which is divided
    by the spread of the logits so that it neither vanishes nor overflows.

    Results of several scales and restarts are compared by the margin between
    the best wrong class and the true one (or between the target and the
    rest), because values of objectives at several scales are not comparable.
    The objectives ``"cw"`` and ``"dlr"`` do not depend on the scale, and gain
    nothing from this attack.

    References
    ----------
    Carlini and Wagner (2016), "Defensive distillation is not robust to
    adversarial examples"; Hitaj, Pagnotta, Masi and Mancini (2021),
    "Evaluating the robustness of geometry-aware instance-reweighted
    adversarial training".

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from robustsk import PGD
    >>> from robustsk.attacks import ScaledPGD
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = LogisticRegression(max_iter=1000).fit(X, y)
    >>> clf.coef_, clf.intercept_ = 1e5 * clf.coef_, 1e5 * clf.intercept_  # same predictions
    >>> plain, scaled = PGD(clf, eps=0.5, random_state=0), ScaledPGD(clf, eps=0.5, random_state=0)
    >>> X_plain, X_scaled = plain.fit(X).generate(X, y), scaled.fit(X).generate(X, y)
    >>> bool(clf.score(X_scaled, y) < clf.score(X_plain, y))
    True
    """

    def __init__(
        self,
        estimator: Any = None,
        *,
        scales: float | Sequence[float] = 1.0,
        **common: Unpack[PGDParameters],
    ):
        super().__init__(estimator, **common)
        self.scales = scales

    def _attack_batch(self, batch):
        scales = np.atleast_1d(np.asarray(self.scales, dtype=object))
        if len(scales) == 0 or not all(_is_positive(s) for s in scales):
            raise ValueError(
                f"scales must be a positive number or several of them, got {self.scales!r}."
            )
        result = batch.x.clone()
        best = torch.full((len(result),), torch.nan, dtype=result.dtype, device=result.device)
        solved = torch.zeros_like(best, dtype=torch.bool)
        for scale in scales:
            todo = (~solved).nonzero()[:, 0]
            if len(todo) == 0:
                break
            part = batch if len(todo) == len(result) else batch.select(todo)
            part = replace(part, objective=Objective(_Scaled(batch.objective, float(scale))))
            z = super()._attack_batch(part)
            if len(scales) == 1:
                return z
            with torch.no_grad():
                logits = part.ask(z)
            value = part.value(logits).to(best)
            better = ~(value <= best[todo])
            result[todo[better]], best[todo[better]] = z[better], value[better]
            if batch.keep != "last":
                solved[todo] |= part.fooled(logits)
        return result


def _is_positive(value):
    return isinstance(value, numbers.Real) and 0 < value < math.inf


class _Scaled:
    """An objective of scaled logits: its gradient, and the margin as its value."""

    def __init__(self, objective, scale):
        self.objective, self.scale = objective, scale

    def __call__(self, logits, y, target, clean):
        first, second = logits.detach().topk(2, dim=1).values.T
        spread = (first - logits.detach().amin(1)).clamp_min(1e-30)
        factor = self.scale / torch.maximum(first - second, 1e-6 * spread)
        logits = logits - first[:, None]
        if clean is not None:
            clean = factor[:, None] * clean
        value = self.objective(factor[:, None] * logits, y, target, clean) / (factor * spread)
        reached = margin(logits, y) if target is None else -margin(logits, target)
        return value + (reached - value).detach()
