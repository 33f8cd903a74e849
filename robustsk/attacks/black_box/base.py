"""What the attacks have in common that only ask questions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..base import BaseAttack

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._parameters import AttackParameters


class BaseBlackBoxAttack(BaseAttack):
    """Base class of the attacks that see scores or labels and no gradients."""

    access = "scores"
    changes_categories = True

    _first_parameter_doc = """
    estimator : fitted estimator or torch.nn.Module, default=None
        The model to attack, by scores. A fitted estimator in a pipeline that
        will be cloned must be wrapped in `sklearn.frozen.FrozenEstimator`. With
        None, `fit` fits a standardised logistic regression as a surrogate.
"""

    _shared_parameters_doc = """
    max_queries : int
        How often the model may be asked about a sample. What has been used is
        ``generate(X, y, return_info=True)[1]["n_queries"]``.
""" + BaseAttack._shared_parameters_doc.lstrip("\n")

    def __init__(
        self, estimator: Any = None, *, max_queries: int = 1000, **common: Unpack[AttackParameters]
    ):
        super().__init__(estimator, **common)
        self.max_queries = max_queries
