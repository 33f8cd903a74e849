"""Any attack, against one wrong class after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ...losses import margin
from ..base import BaseAttack
from ..targeting import aim, wrong_classes
from .base import BaseWrapper

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._parameters import AttackParameters


class MultiTargeted(BaseWrapper):
    """Run a targeted attack against one wrong class after the other.

    The first class that fools the model wins: reaching any wrong class counts,
    not only the one aimed at. Without a success the point with the highest
    margin between the best wrong class and the true one is kept, and from an
    attack that looks for the smallest perturbation the closest one.

    Parameters
    ----------
    %(first_parameter)s
    attack : attack, default=None
        What runs against each class. None means `PGD()`. A budget of queries
        is one per class.
    n_targets : int, "all" or None, default=None
        How many of the wrong classes, from the most likely one of the clean
        sample downwards (where a model gives labels only: in the order of the
        classes). None and "all" mean every one.
    %(shared_parameters)s

    %(shared_attributes)s

    See Also
    --------
    APGD : Does this by itself, with ``n_targets``.

    Notes
    -----
    It costs as much as `n_targets` runs of the attack inside, but in evaluation
    samples that are fooled are dropped before the next class.

    ``info`` is that of the run whose result is kept; numbers of queries are
    those of all runs and of the questions asked in between.

    References
    ----------
    Gowal, Uesato, Qin, Huang, Mann and Kohli (2019), "An alternative surrogate
    loss for PGD-based adversarial testing".

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from robustsk import PGD
    >>> from robustsk.attacks import MultiTargeted
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = LogisticRegression(max_iter=1000).fit(X, y)
    >>> attack = MultiTargeted(clf, attack=PGD(objective="cw"), eps=0.5, random_state=0)
    >>> X_adv = attack.fit(X).generate(X, y)
    >>> bool(clf.score(X_adv, y) < clf.score(X, y))
    True
    """

    #: The target is what this attack chooses.
    targetable = False

    target_parameters = ("n_targets",)

    def __init__(
        self,
        estimator: Any = None,
        *,
        attack: BaseAttack | None = None,
        n_targets: int | str | None = None,
        **common: Unpack[AttackParameters],
    ):
        super().__init__(estimator, attack=attack, **common)
        self.n_targets = n_targets

    def _attack_batch(self, batch):
        if self.target is not None:
            raise ValueError(
                f"target={self.target!r}: MultiTargeted tries the wrong classes one after the "
                "other and chooses the target itself. For one target use "
                f"{type(self._inner).__name__}(target=...)."
            )
        result, info = batch.x.clone(), batch.info
        closest = self._inner.minimal
        n_asked = torch.zeros(len(result), dtype=torch.int64, device=result.device)

        def ask(z, rows):
            n_asked[rows] += 1
            with torch.no_grad():
                return batch.victim(z)

        todo = torch.arange(len(result), device=result.device)
        clean = ask(batch.x, todo) if batch.clean_logits is None else batch.clean_logits
        targets = wrong_classes(clean, batch.y, self.n_targets)
        best = torch.full((len(result),), -torch.inf, dtype=result.dtype, device=result.device)
        solved = torch.zeros_like(best, dtype=torch.bool)
        for rank in range(targets.shape[1]):
            if batch.keep == "first":
                todo = (~solved).nonzero()[:, 0]
            if len(todo) == 0:
                break
            part = aim(batch, targets[:, rank]).select(todo)
            z = self._inner._attack_batch(part)
            if closest:
                score = -part.info["distance"]
                fooled = score >= -part.ball.radius
                better = score > best[todo]
            else:
                logits = ask(z, todo)
                score, fooled = margin(logits, part.y).to(best), part.fooled(logits)
                better = ~solved[todo] & (fooled | (score > best[todo]))
            if rank == 0:
                better = torch.ones_like(better)
            kept = todo[better]
            result[kept], best[kept] = z[better], score[better]
            solved[todo] |= fooled
            for name, values in part.info.items():
                if name not in info:
                    info[name] = values.new_zeros((len(result), *values.shape[1:]))
                if name.startswith("n_"):
                    info[name][todo] += values
                else:
                    info[name][kept] = values[better]
        if "n_queries" in info:
            info["n_queries"] += n_asked
        return result
