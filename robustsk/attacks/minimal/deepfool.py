"""DeepFool."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..._tensors import column, flat, positive
from ..._validation import check_count, check_length
from ..gradient._descent import COMPACT_AT
from ..targeting import wrong_classes
from ._linear_boundary import dual_norm, from_unit, nearest_boundary, unit_box
from .base import BaseMinimalAttack

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._parameters import AttackParameters


class DeepFool(BaseMinimalAttack):
    """DeepFool, a few steps to the nearest decision boundary.

    Each step takes the boundaries between the label and other classes for the
    planes that they look like from the iterate, and moves to the nearest one.

    Parameters
    ----------
    %(first_parameter)s
    n_steps : int, default=50
        Largest number of steps.
    overshoot : float, default=0.02
        How far beyond the boundary to go, as a share of the perturbation.
    n_binary_steps : int, default=10
        Number of forward passes in which the boundary is looked for on the
        straight line from the sample to what has been found, by bisection:
        where it is curved, steps go further beyond it than they should. 0
        returns what they lead to, as published.
    n_candidates : int, default=10
        Number of the most likely wrong classes of each sample whose boundaries
        are looked at, with a backward pass for each. None means all.
    %(shared_parameters)s

    %(shared_attributes)s

    See Also
    --------
    FAB : Slower, and leads closer to the sample.

    Notes
    -----
    With `f` the difference of two logits and `w` its gradient, a step has the
    length ``|f| / ||w||_2`` along `w` for norm 2 and ``|f| / ||w||_1`` along its
    sign for norm inf. Features at the edge of the box that would have to leave
    it count as zero in `w`; the others are clamped. A target is reached over
    the boundary between it and its strongest rival.

    References
    ----------
    Moosavi-Dezfooli, Fawzi and Frossard (2016), "DeepFool: a simple and
    accurate method to fool deep neural networks", Algorithm 2 and Sec. 3.3.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from robustsk.attacks import DeepFool
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = LogisticRegression(max_iter=1000).fit(X, y)
    >>> X_adv, info = DeepFool(clf, norm=2).fit(X).generate(X, y, return_info=True)
    >>> float(np.median(info["distance"]).round(2)), clf.score(X_adv, y)
    (0.88, 0.0)
    """

    supported_norms = (np.inf, 2.0)

    def __init__(
        self,
        estimator: Any = None,
        *,
        n_steps: int = 50,
        overshoot: float = 0.02,
        n_binary_steps: int = 10,
        n_candidates: int = 10,
        **common: Unpack[AttackParameters],
    ):
        super().__init__(estimator, **common)
        self.n_steps = n_steps
        self.overshoot = overshoot
        self.n_binary_steps = n_binary_steps
        self.n_candidates = n_candidates

    def _search(self, batch, closest):
        n_binary_steps = check_count(self.n_binary_steps, "n_binary_steps", least=0)
        self._walk(batch, closest)
        rows = closest.open
        rows = rows[closest.distance[rows].isfinite()]
        if len(rows):
            _pull_back(batch.select(rows), closest, rows, n_binary_steps, 1.0 + self.overshoot)

    def _walk(self, batch, closest):
        n_steps = check_count(self.n_steps, "n_steps")
        stretch = 1.0 + check_length(self.overshoot, "overshoot")
        with torch.no_grad():
            candidates = wrong_classes(batch.ask(batch.x), batch.y)
        if self.n_candidates is not None:
            candidates = candidates[:, : check_count(self.n_candidates, "n_candidates")]
        rows = torch.arange(len(batch.x), device=batch.x.device)
        low, high = unit_box(batch.ball)
        moved = torch.zeros_like(flat(batch.x))
        u, z = moved, batch.x
        for _ in range(n_steps):
            logits, height, w = nearest_boundary(batch, z, candidates)
            fooled = batch.fooled(logits)
            closest.update(z, fooled, rows)
            step = _step(u, w, height, low, high, batch.ball.norm)
            # where nothing moves the rest would be repetition
            going = ~fooled & (step != 0).any(1)
            n_going = int(going.sum())
            if n_going == 0:
                return
            moved = moved + step
            if n_going <= (1 - COMPACT_AT) * len(rows):
                batch, rows, candidates = batch.select(going), rows[going], candidates[going]
                moved, low, high = moved[going], low[going], high[going]
            u = torch.clamp(stretch * moved, low, high)
            z = from_unit(batch.ball, u)
        with torch.no_grad():
            closest.update(z, batch.fooled(batch.ask(z)), rows)


@torch.no_grad()
def _pull_back(batch, closest, rows, n_steps, stretch):
    """Look for the border on the straight line to what has been found, and go on as ever."""
    found = closest.z[rows] - batch.x
    least, most = torch.zeros_like(closest.distance[rows]), torch.ones_like(closest.distance[rows])
    for _ in range(n_steps):
        middle = (least + most) / 2
        z = batch.x + column(middle, found) * found
        fooled = batch.fooled(batch.ask(z))
        least, most = torch.where(fooled, least, middle), torch.where(fooled, middle, most)
    if n_steps:
        z = batch.x + column((stretch * most).clamp_max(1.0), found) * found
        closest.update(z, batch.fooled(batch.ask(z)), rows)


def _step(u, w, height, low, high, norm):
    """Return the shortest step to the planes, cut at the box."""
    down = -height[:, None] * w
    stuck = ((u >= high) & (down > 0)) | ((u <= low) & (down < 0))
    w = w.masked_fill(stuck, 0.0)
    direction = w.sign() if norm == np.inf else w / positive(dual_norm(w, norm))[:, None]
    # Algorithm 2: |f| / ||w||_2 along w; Sec. 3.3, inf norm: |f| / ||w||_1 along its sign
    step = -(height / positive(dual_norm(w, norm)))[:, None] * direction
    return torch.clamp(u + step, low, high) - u
