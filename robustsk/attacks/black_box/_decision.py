"""What the attacks have in common that see labels only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import ArrayLike

from ..._validation import check_count
from .._moves import all_switches, best_of_rows, within
from ..minimal._starts import STARTS_DOC, approach, find_starts, ready
from ..minimal.base import BaseMinimalAttack
from ..queries import Queries
from .base import BaseBlackBoxAttack

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._parameters import AttackParameters


class BaseDecisionAttack(BaseBlackBoxAttack, BaseMinimalAttack):
    """Base class of the attacks that see labels only.

    Subclasses define `_come_closer`. The question about the clean sample
    counts like any other.
    """

    access = "labels"

    _first_parameter_doc = """
    estimator : fitted estimator or torch.nn.Module, default=None
        The model to attack; nothing but `predict` is asked of it. A fitted
        estimator in a pipeline that will be cloned must be wrapped in
        `sklearn.frozen.FrozenEstimator`. With None, `fit` fits a standardised
        logistic regression as a surrogate.
"""

    _shared_parameters_doc = STARTS_DOC.lstrip(
        "\n"
    ) + BaseBlackBoxAttack._shared_parameters_doc.lstrip("\n")

    def __init__(
        self,
        estimator: Any = None,
        *,
        starts: ArrayLike | None = None,
        max_queries: int = 5000,
        **common: Unpack[AttackParameters],
    ):
        super().__init__(estimator, max_queries=max_queries, **common)
        self.starts = starts

    def _attack_batch(self, batch):
        check_count(self.max_queries, "max_queries")
        result = super()._attack_batch(batch)
        searched = batch.info.get("n_queries", 0)
        batch.info["n_queries"] = searched + torch.ones(
            len(result), dtype=torch.int64, device=result.device
        )
        return result

    def _search(self, batch, closest):
        if self.max_queries == 1:
            return
        queries = Queries(batch, self.max_queries - 1)
        _try_categories(closest, queries)
        find_starts(closest, queries, self.starts)
        rows = ready(closest, queries)
        if len(rows):
            approach(closest, queries, rows, 1e-2)
            self._come_closer(closest, queries)

    def _come_closer(self, closest, queries):
        """Improve on ``closest.z`` until the questions are used up.

        Parameters
        ----------
        closest : Closest
            Holds a point near the border wherever one has been found.
        queries : Queries
        """
        raise NotImplementedError


def _try_categories(closest, queries):
    """Ask about all rows with one other category; where one fools, no number need move."""
    batch = closest.batch
    for points, about in all_switches(batch.ball, batch.x):
        fits = ~closest.done[about] & within(about, queries.left // 2)
        points, about = points[fits], about[fits]
        if len(about) == 0:
            continue
        fooled = queries.fooled(points, about)
        if not bool(fooled.any()):
            continue
        points, about = points[fooled], about[fooled]
        nearest = best_of_rows(-batch.ball.select(about).distance(points), about)
        points, about = points[nearest], about[nearest]
        closest.update(points, torch.ones_like(about, dtype=torch.bool), about)
        closest.done[about] = True
