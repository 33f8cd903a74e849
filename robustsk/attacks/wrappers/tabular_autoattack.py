"""AutoAttack for tables: columns by questions, then numbers by gradients."""

from __future__ import annotations

import copy
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ...victims._checks import NoGradientError
from ...victims._columns import TableRows
from ...victims.resolve import as_victim
from ..tables.capgd import CAPGD
from ..tables.greedy_search import GreedySearch
from ..threat import check_norm
from ._cascade import Stage
from .autoattack import BaseCascade

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._parameters import AttackParameters


class TabularAutoAttack(BaseCascade):
    """The attacks on tables one after the other; the worst case of each row counts.

    :class:`.GreedySearch` asks for scores. Where gradients can flow through the model,
    :class:`.CAPGD` follows them in the rows that are left. Nothing has to be chosen.

    Parameters
    ----------
    %(first_parameter)s
    max_queries : int, default=5000
        How often :class:`.GreedySearch` may ask about a row.
    individual : bool, default=False
        Whether both attacks run on all rows, so that the log shows what each would achieve alone.
    state_path : str or path-like, default=None
        File in which `evaluate` and `generate` keep what has been achieved, as in
        :class:`.AutoAttack`.
    %(shared_parameters)s

    %(shared_attributes)s

    See Also
    --------
    AutoAttack : For images and other numbers of one kind.
    FeatureSpace : What the columns of a table may become.

    Notes
    -----
    ``info["stage"]`` is the index of the attack that succeeded, or -1.

    References
    ----------
    Simonetto, Ghamizi and Cordy (2024), "Constrained adaptive attack: effective adversarial attack
    against deep neural networks for tabular data", whose cascade has an evolutionary search where
    this one has a greedy search, and has it last.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from robustsk import TabularAutoAttack
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = LogisticRegression(max_iter=1000).fit(X, y)
    >>> result = TabularAutoAttack(clf, eps=0.3, random_state=0).fit(X).evaluate(X, y)
    >>> bool(result.robust_accuracy < result.clean_accuracy)
    True
    >>> [stage.name for stage in result.stages]
    ['GreedySearch', 'CAPGD']
    """

    version = "tabular"
    #: Gradients are of use and not needed.
    access = "scores"
    changes_categories = True
    #: The victim of attacks that follow gradients, None where there are none to follow.
    _followed = None

    def __init__(
        self,
        estimator: Any = None,
        *,
        max_queries: int = 5000,
        individual: bool = False,
        state_path: str | os.PathLike | None = None,
        **common: Unpack[AttackParameters],
    ):
        super().__init__(estimator, individual=individual, state_path=state_path, **common)
        self.max_queries = max_queries

    def _stages(self, n_classes):
        norm = check_norm(self.norm, self.supported_norms)
        stages = [Stage("GreedySearch", GreedySearch(norm=norm, max_queries=self.max_queries))]
        if self._followed is not None:
            stages.append(Stage("CAPGD", CAPGD(norm=norm, n_restarts=2)))
        return stages

    def _run(self, prepared):
        attack = copy.copy(self)
        attack._followed = _followed(prepared)
        return super(TabularAutoAttack, attack)._run(prepared)

    def _prepared_for(self, attack, prepared):
        return prepared if attack.access == "scores" else replace(prepared, victim=self._followed)


def _followed(prepared):
    """Return the victim through which gradients flow, None if there is none."""
    victim, columns = prepared.victim, None
    if victim.differentiable:
        return victim
    if isinstance(prepared.X, TableRows):
        columns = prepared.X.space.columns_
    try:
        found = as_victim(victim.module.estimator, columns=columns)
    except (NoGradientError, AttributeError):
        return None
    found.calls = victim.calls
    return found.to(None if prepared.attack.device in ("auto", None) else prepared.attack.device)
