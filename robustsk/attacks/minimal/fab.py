"""The fast adaptive boundary attack."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ..._tensors import column, flat, length, positive
from ..._validation import check_count, check_share
from ..gradient._descent import COMPACT_AT
from ..noise import Stream
from ..targeting import wrong_classes
from ._linear_boundary import from_unit, nearest_boundary, step_to_plane, unit_box
from .base import BaseMinimalAttack

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._parameters import AttackParameters

#: An adversarial iterate has come to rest once a step moves it by no more than this share of its
#: distance.
_AT_REST = 1e-5
#: Share of the steps after which boundaries are looked at from the near side.
_FROM_NEAR = 0.75
#: Halvings of the last bit of the way to the closest example, at the end of a run.
_N_HALVINGS = 6


class FAB(BaseMinimalAttack):
    """Fast adaptive boundary attack, which looks for the closest adversarial example.

    Each step takes a decision boundary for the plane that it looks like from
    the iterate, and goes a little beyond the point of the plane, within the
    box, that is closest to the iterate; with a bias towards the point that is
    closest to the sample. An iterate that is adversarial is remembered if it is
    the closest so far, and the search goes on a bit nearer to the sample.

    Parameters
    ----------
    %(first_parameter)s
    n_steps : int, default=100
        Largest number of steps of a run.
    n_targets : int, "all" or None, default=None
        None looks at the boundaries to all other classes in each step and
        takes the nearest: a backward pass per class. A number makes one run
        towards each of so many of the most likely wrong classes, a backward
        pass per step (FAB-T). With two classes both are the same. A `target`
        makes one run towards that class, whatever is given here.
    n_restarts : int, default=1
        Number of times that is repeated; the first time from the sample, then
        from a random point half as far away as the closest example found, but
        no further than ``eps / 2``.
    alpha_max : float, default=0.1
        Largest weight of the bias towards the sample, from 0 to 1.
    eta : float, default=1.05
        Length of a step, as a share of the way to the plane.
    beta : float, default=0.9
        Where the search goes on after a success, as a share of the distance of
        the adversarial iterate.
    %(shared_parameters)s

    %(shared_attributes)s

    See Also
    --------
    DeepFool : A few steps to the nearest boundary, without a way back.

    Notes
    -----
    Differences from the published algorithm. After a success the plane is the
    one seen from the adversarial iterate, which saves a forward and a backward
    pass and on trained networks leads closer, and only in the last quarter of
    the steps the one seen from where the search goes on. At the end of each run
    six halvings between the closest example and where the search went on from
    there bring it to the border. A sample that has come to rest is left alone.
    A target counts as reached when it is the prediction; the boundary is the
    one between the target and its strongest rival, which is the label unless a
    third class has come in between.

    References
    ----------
    Croce and Hein (2020), "Minimally distorted adversarial examples with a
    fast adaptive boundary attack", Algorithm 1.

    Croce and Hein (2020), "Reliable evaluation of adversarial robustness with
    an ensemble of diverse parameter-free attacks" (FAB-T).

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from robustsk.attacks import FAB
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = LogisticRegression(max_iter=1000).fit(X, y)
    >>> X_adv, info = FAB(clf, norm=2, random_state=0).fit(X).generate(X, y, return_info=True)
    >>> float(np.median(info["distance"]).round(2)), clf.score(X_adv, y)
    (0.86, 0.0)
    """

    target_parameters = ("n_targets",)

    def __init__(
        self,
        estimator: Any = None,
        *,
        n_steps: int = 100,
        n_targets: int | str | None = None,
        n_restarts: int = 1,
        alpha_max: float = 0.1,
        eta: float = 1.05,
        beta: float = 0.9,
        **common: Unpack[AttackParameters],
    ):
        super().__init__(estimator, **common)
        self.n_steps = n_steps
        self.n_targets = n_targets
        self.n_restarts = n_restarts
        self.alpha_max = alpha_max
        self.eta = eta
        self.beta = beta

    def _search(self, batch, closest):
        check_count(self.n_steps, "n_steps")
        check_share(self.alpha_max, "alpha_max", 1)
        check_share(self.eta, "eta", 2)
        check_share(self.beta, "beta", 1)
        with torch.no_grad():
            others = wrong_classes(batch.ask(batch.x), batch.y)
        if self.n_targets is None or batch.target is not None:
            runs = [others]
        else:
            n_targets = self.n_targets
            if n_targets != "all":
                n_targets = check_count(n_targets, "n_targets")
                others = others[:, :n_targets]
            runs = others.split(1, dim=1)
        for restart in range(check_count(self.n_restarts, "n_restarts")):
            for number, candidates in enumerate(runs):
                rows = closest.open
                if len(rows) == 0:
                    return
                part = batch.select(rows)
                u = torch.zeros_like(flat(part.x))
                if restart:
                    reach = closest.distance[rows].clamp_max(part.ball.radius) / 2
                    stream = Stream.START + restart * len(runs) + number
                    u = reach[:, None] * flat(part.ball.draw(part.noise, stream))
                    u = torch.clamp(u, *unit_box(part.ball))
                self._run(part, closest, rows, candidates[rows], u)
                self._pull_back(closest)

    def _run(self, batch, closest, rows, candidates, u):
        """Search from `u`, in the units of the ball, for the `rows` of `closest`."""
        low, high = unit_box(batch.ball)
        z = from_unit(batch.ball, u)
        for step in range(self.n_steps):
            logits, height, w = nearest_boundary(batch, z, candidates)
            fooled = batch.fooled(logits)
            closest.update(z, fooled, rows)
            base = height - (w * u).sum(1)
            # Algorithm 1: backward step, to (1 - beta) * sample + beta * iterate
            start = u * torch.ones_like(base).masked_fill(fooled, self.beta)[:, None]
            back = fooled.nonzero()[:, 0]
            if step >= _FROM_NEAR * self.n_steps and len(back):
                part = batch.select(back)
                near = from_unit(part.ball, start[back])
                _, height, w[back] = nearest_boundary(part, near, candidates[back])
                base[back] = height - (w[back] * start[back]).sum(1)
            ahead = self._advance(start, w, base, low, high, batch.ball.norm)
            moved = (ahead - u).abs().amax(1)
            # short steps before the border still lead across
            going = moved > torch.where(fooled, _AT_REST * ahead.abs().amax(1), 0.0)
            if batch.keep == "first":
                going &= ~closest.solved[rows]
            n_going = int(going.sum())
            if n_going == 0:
                break
            if n_going <= (1 - COMPACT_AT) * len(rows):
                batch, rows, candidates = batch.select(going), rows[going], candidates[going]
                ahead, low, high = ahead[going], low[going], high[going]
            u = ahead
            z = from_unit(batch.ball, u)
        else:
            with torch.no_grad():
                closest.update(z, batch.fooled(batch.ask(z)), rows)

    def _advance(self, u, w, base, low, high, norm):
        """Step towards the planes ``w @ v + base = 0`` with a bias towards the samples."""
        points = torch.stack([u, torch.zeros_like(u)])
        heights = torch.stack([base + (w * u).sum(1), base])
        steps = step_to_plane(points, w, heights, low, high, norm)
        there, back = length(steps, norm)
        # Algorithm 1: the nearer the plane is to the iterate, the smaller the bias to the sample
        alpha = (there / positive(there + back)).clamp_max(self.alpha_max)[:, None]
        # Algorithm 1: between the overshot projections of the iterate and of the sample
        ahead = (1 - alpha) * (u + self.eta * steps[0]) + alpha * self.eta * steps[1]
        return torch.clamp(ahead, low, high)

    def _pull_back(self, closest):
        """Look for the border on the last bit of the straight way to the closest example."""
        rows = closest.open
        rows = rows[closest.distance[rows].isfinite()]
        if len(rows) == 0:
            return
        batch = closest.batch.select(rows)
        delta = closest.z[rows] - batch.x
        near = torch.full_like(closest.distance[rows], self.beta)
        far = torch.ones_like(near)
        for _ in range(_N_HALVINGS):
            middle = (near + far) / 2
            z = batch.ball.clamp(batch.x + column(middle, delta) * delta)
            with torch.no_grad():
                fooled = batch.fooled(batch.ask(z))
            closest.update(z, fooled, rows)
            near, far = torch.where(fooled, near, middle), torch.where(fooled, middle, far)
