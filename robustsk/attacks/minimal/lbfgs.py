"""The L-BFGS attack."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.optimize import Bounds, minimize
from torch.nn import functional as F

from ..._tensors import column
from ..._validation import check_count, check_positive
from ..objectives import Objective
from ._lockstep import in_lockstep
from ._penalty import WeightSearch, local_slope, ratio
from .base import BaseMinimalAttack

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._parameters import AttackParametersButNorm

#: Samples that are attacked at a time, each in a thread of its own.
_TOGETHER = 128
#: Halvings of the way from the sample to an adversarial example.
_HALVINGS = 8


class LBFGS(BaseMinimalAttack):
    """The first adversarial attack: a box-constrained quasi-Newton method.

    Maximises ``c * log(p) - ||x_adv - x||_2^2`` inside the box with L-BFGS-B,
    where `p` is the probability of the target, or of all classes other than
    the true one, and looks for the smallest weight `c` of each sample that is
    enough. In the end the straight line from the sample to what has been found
    is searched as well.

    Without a target one would rather maximise the cross-entropy of the true
    class. But it is flat where the model is sure, and small weights then leave
    the sample where it is.

    Each sample has a solver of its own, and these wait for each other so that the
    model answers all of them at once. On a GPU :class:`CarliniWagner`, which never
    leaves it, is faster.

    Parameters
    ----------
    %(first_parameter)s
    norm : {2, "l2"}, default=2
        Norm in which the perturbation is measured.
    n_steps : int, default=10
        Largest number of L-BFGS iterations per round; half of the largest
        number of gradients.
    n_binary_steps : int, default=5
        Number of rounds, with another weight each.
    initial_const : float, default=None
        First weight `c`. None means half as much again as would be enough if
        the model were linear.
    %(shared_parameters)s

    %(shared_attributes)s

    See Also
    --------
    CarliniWagner : The margin in place of the probability, for all samples at once.

    References
    ----------
    Szegedy, Zaremba, Sutskever, Bruna, Erhan, Goodfellow and Fergus (2014),
    "Intriguing properties of neural networks", Sec. 4.1.

    Byrd, Lu, Nocedal and Zhu (1995), "A limited memory algorithm for bound
    constrained optimization".

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from robustsk.attacks import LBFGS
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = LogisticRegression(max_iter=1000).fit(X, y)
    >>> X_adv = LBFGS(clf, n_binary_steps=3).fit(X).generate(X[:50], y[:50])
    >>> float(clf.score(X_adv, y[:50]))
    0.0
    """

    supported_norms = (2.0,)

    def __init__(
        self,
        estimator: Any = None,
        *,
        norm: float | str = 2,
        n_steps: int = 10,
        n_binary_steps: int = 5,
        initial_const: float | None = None,
        **common: Unpack[AttackParametersButNorm],
    ):
        super().__init__(estimator, norm=norm, **common)
        self.n_steps = n_steps
        self.n_binary_steps = n_binary_steps
        self.initial_const = initial_const

    def _resolve_objective(self, objective):
        return Objective(_log_probability)

    def _search(self, batch, closest):
        check_count(self.n_steps, "n_steps")
        rounds = check_count(self.n_binary_steps, "n_binary_steps")
        lacking, gradient = local_slope(batch)
        steepness = gradient.square().sum(1)
        # the first trial step is one unit long; exactly on the border rounding would decide
        size = 1.1 * ratio(lacking, steepness.sqrt())
        # log(p) rises half as fast as the margin at the border between two classes: 4 would be
        # just enough
        const = ratio(6 * lacking, steepness)
        if self.initial_const is not None:
            const = torch.full_like(const, check_positive(self.initial_const, "initial_const"))
        weight = WeightSearch(const)
        for _ in range(rounds):
            rows = closest.open
            if len(rows) == 0:
                break
            found = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
            for some in torch.arange(len(rows), device=rows.device).split(_TOGETHER):
                at = rows[some]
                found[some] = self._minimise(
                    batch.select(at), closest, at, weight.value[at], size[at]
                )
            weight.update(found, rows)
        self._shorten(batch, closest)

    def _minimise(self, batch, closest, rows, const, size):
        """Run L-BFGS-B on each sample; return where it has met an adversarial example.

        The variable is the perturbation in units of `size`, so that the
        stopping rules mean the same for all data.
        """
        radius = batch.ball.radius
        const, size = const.double().cpu().numpy(), size.double().cpu().numpy()
        best, best_length = batch.x.clone(), np.full(len(rows), np.inf)

        def losses(numbers, variables):
            part = batch
            if len(numbers) < len(rows):
                part = batch.select(torch.tensor(numbers, device=rows.device))
            ball, x, unit = part.ball, part.x, size[numbers]
            delta = torch.from_numpy(unit[:, None] * np.stack(variables)).to(x).reshape(x.shape)
            z = ball.clamp(x + ball.to_data(delta))
            logits, value, gradient = part.value_and_gradient(z)
            gain = ball.to_data(gradient).flatten(1).double().cpu().numpy()
            value, fooled = value.double().cpu().numpy(), part.fooled(logits).cpu().numpy()
            length = np.array([variable @ variable for variable in variables])
            better = fooled & (length < best_length[numbers])
            kept = np.array(numbers)[better]
            best[torch.from_numpy(kept)] = z[torch.from_numpy(better)]
            best_length[kept] = length[better]
            weight = const[numbers] / unit
            return [
                (length[k] - weight[k] / unit[k] * value[k], 2 * variable - weight[k] * gain[k])
                for k, variable in enumerate(variables)
            ]

        def solver(number, bounds):
            def stop(intermediate_result):
                if best_length[number] * size[number] ** 2 <= radius**2:
                    raise StopIteration

            return lambda ask: minimize(
                ask,
                np.zeros(batch.x[0].numel()),
                jac=True,
                method="L-BFGS-B",
                bounds=bounds,
                callback=stop if batch.keep == "first" else None,
                options={"maxiter": self.n_steps, "maxfun": 2 * self.n_steps},
            )

        bounds = self._bounds(batch.ball, size)
        in_lockstep([solver(*pair) for pair in enumerate(bounds)], losses)
        found = torch.from_numpy(np.isfinite(best_length)).to(rows.device)
        closest.update(best, found, rows)
        return found

    @staticmethod
    def _bounds(ball, size):
        """Return the box of each sample in terms of the variable."""
        low, high = torch.full_like(ball.x, -torch.inf), torch.full_like(ball.x, torch.inf)
        if ball.low is not None:
            low, high = ball.low - ball.x, ball.high - ball.x
        low, high = (
            ball.to_unit(bound).flatten(1).double().cpu().numpy() / size[:, None]
            for bound in (low, high)
        )
        return [Bounds(*pair) for pair in zip(low, high, strict=True)]

    @staticmethod
    def _shorten(batch, closest):
        """Halve the way from the sample to what has been found, as often as that is worth it."""
        rows = closest.open
        rows = rows[closest.distance[rows].isfinite()]
        if len(rows) == 0:
            return
        part = batch.select(rows)
        way = closest.z[rows] - part.x
        inside = torch.zeros_like(closest.distance[rows])
        outside = torch.ones_like(inside)
        for _ in range(_HALVINGS):
            middle = (inside + outside) / 2
            z = part.ball.clamp(part.x + column(middle, way) * way)
            with torch.no_grad():
                fooled = part.fooled(part.ask(z))
            closest.update(z, fooled, rows)
            outside = torch.where(fooled, middle, outside)
            inside = torch.where(fooled, inside, middle)


def _log_probability(logits, y, target, clean):
    """Return log(p) of the target, or of being anything but `y`."""
    if target is not None:
        return -F.cross_entropy(logits, target, reduction="none")
    others = logits.scatter(1, y[:, None], -torch.inf)
    return others.logsumexp(1) - logits.logsumexp(1)
