"""Feature scattering: move a whole batch away from itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from ..._tensors import column
from ..._validation import check_count, check_length, check_start
from ...losses.wasserstein import transport_plan
from ..base import BaseAttack
from ..noise import Stream

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._parameters import AttackParameters


class FeatureScatter(BaseAttack):
    """Move the features of a batch as far as possible from those of the clean batch.

    Ascends the optimal transport distance between the clean and the perturbed
    batch, ``D = min_T sum_ij T_ij * C_ij`` over plans `T` with uniform marginals,
    where ``C_ij = max(0, 1 - cos(f(x_i), f(x'_j)))`` compares logits. No label
    enters: it scatters all samples of a batch together, each away from its
    neighbours too. It is made for training; as a measure of robustness it is
    weak.

    Parameters
    ----------
    %(first_parameter)s
    n_steps : int, default=1
        Number of gradient steps.
    step_size : float, default=None
        Length of a step, in the units of `eps`. None means `eps`.
    random_start : {"none", "uniform", "gaussian"}, default="uniform"
        Start at the sample, uniformly in the ball, or at the sample plus
        normal noise of standard deviation `start_std`. At the sample itself the
        gradient is next to nothing.
    start_std : float, default=0.001
        Standard deviation of the gaussian start, in the units of the data.
    reg : float, default=0.01
        Weight of the entropy of the plan, in units of the cost; greater than 0.
    n_sinkhorn : int, default=100
        Largest number of Sinkhorn's iterations.
    tol : float, default=0.1
        Sinkhorn's iterations end when the potentials of the clean batch change
        by less than this, summed over the batch.
    detach_plan : bool, default=False
        Whether to treat the plan as a constant in the gradient, which is exact
        for a plan that is optimal (envelope theorem). The source
        differentiates through the iterations.
    %(shared_parameters)s

    %(shared_attributes)s

    Notes
    -----
    What happens to a sample depends on the others in its batch: batch size
    matters, and `transform` gives other results for a part of the data. A
    target cannot be chosen. With ``return_info=True``, ``info["transport"]``
    says for each sample what it contributed to the distance when the last
    gradient was taken.

    The source calls the outputs of the network features; its code takes
    logits.

    References
    ----------
    Zhang and Wang (2019), "Defense against adversarial attacks using feature
    scattering-based adversarial training", Eq. 6 and Algorithm 1; Cuturi (2013),
    "Sinkhorn distances: lightspeed computation of optimal transport".

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from robustsk.attacks import FeatureScatter
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = LogisticRegression(max_iter=1000).fit(X, y)
    >>> X_adv = FeatureScatter(clf, eps=1.0, random_state=0).fit(X).generate(X, y)
    >>> bool(clf.score(X_adv, y) < clf.score(X, y))
    True
    """

    per_sample = False
    couples_batch = True
    #: There is no label to reach.
    targetable = False
    #: Weights of the samples in the batch, where they differ.
    _mass = None

    def __init__(
        self,
        estimator: Any = None,
        *,
        n_steps: int = 1,
        step_size: float | None = None,
        random_start: str = "uniform",
        start_std: float = 0.001,
        reg: float = 0.01,
        n_sinkhorn: int = 100,
        tol: float = 0.1,
        detach_plan: bool = False,
        **common: Unpack[AttackParameters],
    ):
        super().__init__(estimator, **common)
        self.n_steps = n_steps
        self.step_size = step_size
        self.random_start = random_start
        self.start_std = start_std
        self.reg = reg
        self.n_sinkhorn = n_sinkhorn
        self.tol = tol
        self.detach_plan = detach_plan

    def _attack_batch(self, batch):
        if self.target is not None:
            raise ValueError(
                f"target={self.target!r}: FeatureScatter uses no labels and cannot aim at one. "
                "Use PGD(target=...)."
            )
        if not check_length(self.reg, "reg"):
            raise ValueError("reg must be greater than 0: it is the weight of the entropy.")
        size = batch.ball.radius
        if self.step_size is not None:
            size = check_length(self.step_size, "step_size")
        clean = batch.clean_logits
        if clean is None:
            with torch.no_grad():
                clean = batch.ask(batch.x)
        start = check_start(self.random_start)
        z = batch.ball.random_start(
            start, batch.noise, Stream.START, check_length(self.start_std, "start_std")
        )
        result = batch.x.clone()
        hit = batch.fooled(clean) if batch.keep != "last" else None
        for _ in range(check_count(self.n_steps, "n_steps")):
            logits, cost, gradient = self._scatter(batch, clean.detach(), z)
            if hit is not None:
                hit = self._remember(batch, result, hit, z, logits)
            z = batch.ball.ascend(z, gradient, size)
        batch.info["transport"] = cost
        if hit is None:
            return z
        with torch.no_grad():
            self._remember(batch, result, hit, z, batch.ask(z))
        return torch.where(column(hit, z), result, z)

    def _remember(self, batch, result, hit, z, logits):
        """Keep the first iterate of each sample that fools the victim."""
        now = batch.fooled(logits) & ~hit
        result[now] = z[now]
        hit |= now
        return hit

    def _scatter(self, batch, clean, z):
        """Return logits, contributions to the distance and its gradient."""
        with torch.enable_grad():
            z = z.detach().requires_grad_(True)
            logits = batch.ask(z)
            cost = cosine_cost(clean, logits)
            with torch.set_grad_enabled(not self.detach_plan):
                plan = transport_plan(
                    cost.detach() if self.detach_plan else cost,
                    self.reg,
                    check_count(self.n_sinkhorn, "n_sinkhorn"),
                    check_length(self.tol, "tol"),
                    self._mass,
                )
            share = (plan * cost).sum(0)
            (gradient,) = batch.input_gradients([share], [z])
        gradient = torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)
        return logits.detach(), share.detach(), gradient


def cosine_cost(first, second):
    """Return ``max(0, 1 - cos)`` of all pairs of rows, shape (n, m)."""
    first, second = F.normalize(first, eps=1e-12), F.normalize(second, eps=1e-12)
    return F.relu(1 - first @ second.T)
