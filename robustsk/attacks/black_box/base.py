"""What the attacks have in common that only ask questions."""

from __future__ import annotations

from ..base import BaseAttack


class BaseBlackBoxAttack(BaseAttack):
    """Base class of the attacks that see scores or labels and no gradients."""

    access = "scores"

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

    def __init__(self, estimator=None, *, max_queries=1000, **common):
        super().__init__(estimator, **common)
        self.max_queries = max_queries
