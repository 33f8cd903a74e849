"""HopSkipJump."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..._tensors import column
from ..._validation import check_count
from ..minimal._starts import approach, ask, directions, ready, sample_length, shrink
from ..noise import Stream
from ._decision import BaseDecisionAttack
from ._estimation import count_movable

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._parameters import DecisionParameters

_ELEMENTS_AT_A_TIME = 2**23
_HALVINGS = 10
_FINEST = 1e-4


class HopSkipJump(BaseDecisionAttack):
    r"""HopSkipJump: the gradient of a decision, estimated from labels at its border.

    From an adversarial point on the border each iteration asks for the labels
    of random probes around it. The mean of the directions, counted positive
    where the probe is adversarial and negative where it is not, less their
    mean sign, points straight into the adversarial region. A step along it
    (along its sign, in the inf norm) of length :math:`d / \sqrt{t}`, halved
    until it helps, and a bisection towards the sample give the next, closer
    point on the border; `d` is the distance of the last one, `t` the number
    of the iteration. A step that brings no closer point is not taken. By
    default `max_queries` is 2000.

    Parameters
    ----------
    %(first_parameter)s
    n_initial : int, default=50
        Probes in the first iteration, but at most a tenth of `max_queries`;
        iteration `t` has :math:`\sqrt{t}` times as many.
    probe_size : float, default=None
        Distance of the probes from the border point, as a share of that
        point's euclidean distance from the sample. None means twice the
        inverse square root of the number of features, and at most 0.25. The
        inverse of the number of features, which the paper takes, does as well
        on smooth models and much worse on forests.
    %(shared_parameters)s

    %(shared_attributes)s

    See Also
    --------
    BoundaryAttack : Random walk along the border.
    BrendelBethge : Walk along the border with gradients.

    References
    ----------
    Chen, Jordan and Wainwright (2020), "HopSkipJumpAttack: a query-efficient
    decision-based attack", Algorithms 1 and 2; the estimate is equation 16.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.ensemble import RandomForestClassifier
    >>> from robustsk.attacks import HopSkipJump
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = RandomForestClassifier(10, random_state=0).fit(X, y)
    >>> attack = HopSkipJump(clf, eps=1.0, max_queries=200, random_state=0).fit(X)
    >>> X_adv, info = attack.generate(X[::5], y[::5], return_info=True)
    >>> bool(clf.score(X_adv, y[::5]) < clf.score(X[::5], y[::5]))
    True
    >>> int(info["n_queries"].max())
    200
    """

    supported_norms = (np.inf, 2.0)

    def __init__(
        self,
        estimator: Any = None,
        *,
        n_initial: int = 50,
        probe_size: float | None = None,
        max_queries: int = 2000,
        **common: Unpack[DecisionParameters],
    ):
        super().__init__(estimator, max_queries=max_queries, **common)
        self.n_initial = n_initial
        self.probe_size = probe_size

    def _come_closer(self, closest, queries):
        ball = closest.batch.ball
        n_features = count_movable(ball)
        n_initial = min(check_count(self.n_initial, "n_initial"), max(4, self.max_queries // 10))
        probe_size = self._probe_size(n_features)
        # far finer than the probes are apart
        tolerance = min(1e-3, max(_FINEST, n_features ** (-1.5 if ball.norm == 2 else -2.0)))
        reserve = math.ceil(math.log2(1 / tolerance)) + 4
        for t in itertools.count(1):
            rows = ready(closest, queries, reserve + 4)
            if len(rows) == 0:
                break
            n_draws = int(n_initial * math.sqrt(t))
            size = max(1, _ELEMENTS_AT_A_TIME // (n_draws * closest.z[0].numel()))
            inward = torch.cat(
                [
                    self._estimate(closest, queries, some, t, n_draws, reserve, probe_size)
                    for some in rows.split(size)
                ]
            )
            self._step(closest, queries, rows, inward, t, tolerance)
        # what is left would not pay for another estimate
        approach(closest, queries, ready(closest, queries), _FINEST / 10)

    def _probe_size(self, n_features):
        if self.probe_size is None:
            return min(0.25, 2 / math.sqrt(max(1, n_features)))
        size = self.probe_size
        if not isinstance(size, (int, float, np.number)) or not 0 < size < np.inf:
            raise ValueError(f"probe_size must be a positive number or None, got {size!r}.")
        return float(size)

    def _estimate(self, closest, queries, rows, t, n_draws, reserve, probe_size):
        """Return the estimated direction into the adversarial region, of unit length."""
        ball = closest.batch.ball.select(rows)
        z = closest.z[rows]
        drawn = directions(closest.batch.noise.select(rows), Stream.START + t, n_draws)
        if ball.weight is not None:
            drawn = torch.where(ball.weight > 0, drawn, 0.0)
        distance = sample_length(ball.to_unit(z - ball.x), z.ndim)
        size = probe_size * distance
        points = ball.clamp(z + ball.to_data(size * drawn / sample_length(drawn, z.ndim)))
        left = queries.left[rows] - reserve
        allowed = torch.arange(n_draws, device=z.device)[:, None] < left
        fooled = ask(queries, rows, points, allowed)
        moved = ball.to_unit(points - z) / size
        sign = torch.where(fooled, 1.0, -1.0).to(z) * allowed
        mean = sign.sum(0) / allowed.sum(0)
        # where all agree, the mean direction itself is what is known
        # equation 16
        weight = torch.where(mean.abs() == 1, sign, (sign - mean) * allowed)
        inward = (weight.reshape(*weight.shape, *([1] * (z.ndim - 1))) * moved).sum(0)
        return inward.sign() if ball.norm == np.inf else inward / sample_length(inward, z.ndim)

    def _step(self, closest, queries, rows, inward, t, tolerance):
        """Step inwards, by half as much until a closer point is found, then to the border."""
        start, distance = closest.z[rows], closest.distance[rows]
        size = distance / math.sqrt(t)
        todo = torch.arange(len(rows), device=rows.device)
        for _ in range(_HALVINGS):
            todo = todo[queries.left[rows[todo]] > 0]
            if len(todo) == 0:
                break
            ball = closest.batch.ball.select(rows[todo])
            z = start[todo] + ball.to_data(column(size[todo], start) * inward[todo])
            z = shrink(ball, ball.clamp(z), distance[todo] * (1 - tolerance))
            fooled = queries.fooled(z, rows[todo])
            closest.update(z, fooled, rows[todo])
            todo = todo[~fooled]
            size = size / 2
        approach(closest, queries, rows[closest.distance[rows] < distance], tolerance)
