"""Robustness in model selection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn import get_config
from sklearn.base import BaseEstimator
from sklearn.utils import _safe_indexing
from sklearn.utils.metadata_routing import MetadataRequest
from torch.utils.data import Subset

from .._containers import dataset_labels, is_dataset
from ..attacks import BaseAttack
from ..attacks.base import check_attack
from ._scores import score_adversarial, scored
from ._scoring import check_scorer


def make_adversarial_scorer(
    attack: BaseAttack,
    *,
    scoring: str | Callable | None = None,
    attack_classes: ArrayLike | None = None,
) -> AdversarialScorer:
    """Make a scorer out of an attack, for `GridSearchCV` and the like.

    Parameters
    ----------
    attack : attack
        Used on every candidate as it is, so that candidates are comparable.
    scoring : str or callable, default=None
        What is computed under the attack, see :func:`score_adversarial`. None
        means accuracy.
    attack_classes : array-like or label, default=None
        Only samples of these classes are attacked; None means all.

    Returns
    -------
    AdversarialScorer
        Callable ``scorer(estimator, X, y, sample_weight=None)``; it can be
        pickled and works with ``n_jobs``. With metadata routing, ask for weights by
        ``set_score_request(sample_weight=True)``.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.model_selection import cross_val_score
    >>> from robustsk import PGD, make_adversarial_scorer
    >>> X, y = load_iris(return_X_y=True)
    >>> scorer = make_adversarial_scorer(PGD(eps=0.3, random_state=0))
    >>> cross_val_score(LogisticRegression(max_iter=1000), X, y, scoring=scorer).shape
    (5,)
    >>> make_adversarial_scorer(PGD(eps=0.3), scoring="recall", attack_classes=1)
    make_adversarial_scorer(PGD(eps=0.3), scoring='recall', attack_classes=1)
    """
    check_attack(attack)
    if scoring is not None:
        check_scorer(scoring)
    return AdversarialScorer(attack, scoring, attack_classes)


class AdversarialScorer:
    """Scorer that returns the accuracy, or another score, under an attack; greater is better.

    A sample of a class that the estimator has not been trained on, as happens in a fold that lacks
    a rare class, is classified wrongly, as in any other accuracy. It is not attacked.

    Parameters
    ----------
    attack : attack
    scoring, attack_classes
        As in :func:`make_adversarial_scorer`.
    """

    _sample_weight_request: bool | str | None = None

    def __init__(self, attack, scoring=None, attack_classes=None):
        self.attack = attack
        self.scoring = scoring
        self.attack_classes = attack_classes

    def set_score_request(self, *, sample_weight: bool | str | None = None) -> AdversarialScorer:
        """Say whether weights are to be passed on to the scorer by metadata routing.

        Parameters
        ----------
        sample_weight : bool, str or None, default=None
            Whether they are wanted, or the name they are passed under. None makes passing them an
            error.

        Returns
        -------
        self
        """
        if not get_config()["enable_metadata_routing"]:
            raise RuntimeError(
                "set_score_request is for metadata routing, which is off: "
                "sklearn.set_config(enable_metadata_routing=True) turns it on."
            )
        self._sample_weight_request = sample_weight
        return self

    def get_metadata_routing(self) -> MetadataRequest:
        """Return what metadata the scorer asks for."""
        requests = MetadataRequest(owner=type(self).__name__)
        requests.score.add_request(param="sample_weight", alias=self._sample_weight_request)
        return requests

    def __call__(
        self,
        estimator: Any,
        X: Any,
        y: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> float:
        """Return the accuracy, or the score, of `estimator` under the attack."""
        known = _is_known(estimator, dataset_labels(X) if y is None and is_dataset(X) else y)
        if self.scoring is not None or self.attack_classes is not None:
            how = self.scoring, self.attack_classes, sample_weight
            return scored(estimator, X, y, self.attack, *how, known)
        share = 1.0
        if known is not None and not known.all():
            weight = np.ones(len(known)) if sample_weight is None else np.asarray(sample_weight)
            share = float(weight[known].sum() / weight.sum())
            if not share:
                return 0.0
            rows = np.flatnonzero(known)
            X = Subset(X, rows.tolist()) if is_dataset(X) else _safe_indexing(X, rows)
            y = None if y is None else _safe_indexing(y, rows)
            sample_weight = None if sample_weight is None else weight[known]
        return share * score_adversarial(estimator, X, y, self.attack, sample_weight=sample_weight)

    def __repr__(self):
        own = {"scoring": self.scoring, "attack_classes": self.attack_classes}
        given = [f", {name}={value!r}" for name, value in own.items() if value is not None]
        return f"make_adversarial_scorer({self.attack!r}{''.join(given)})"


def _is_known(estimator, y):
    """Return which labels an estimator has been trained on; None where that cannot be told."""
    classes = getattr(estimator, "classes_", None)
    if y is None or not isinstance(classes, np.ndarray) or classes.ndim != 1:
        return None
    y = np.asarray(y)
    # names are not numbers: that is a mistake, which an attack explains
    if y.ndim != 1 or (y.dtype.kind in "biuf") != (classes.dtype.kind in "biuf"):
        return None
    return np.isin(y, classes)


class MostRobust(BaseEstimator):
    """Pick the most robust setting that does not cost too much clean accuracy.

    To be given as `refit` to `GridSearchCV` or `RandomizedSearchCV` with
    several metrics. Of all settings whose clean score reaches the floor, the
    one with the highest robust score is chosen, ties being broken by the
    clean score. Where none reaches it, the one with the best clean score is.

    Parameters
    ----------
    floor : float, default=None
        Clean score to be reached. None means no floor unless `max_loss` is
        given.
    max_loss : float, default=None
        Clean score that may be lost relative to the best setting in the
        search, e.g. 0.01.
    clean : str, default="clean"
        Name of the clean metric in `scoring`.
    robust : str, default="robust"
        Name of the robust metric in `scoring`.

    Notes
    -----
    With a callable `refit`, scikit-learn's own `score` of the search does not
    know which metric to take: use that of `best_estimator_`, or
    :func:`robustsk.metrics.score_adversarial`, which takes the search itself.

    References
    ----------
    Hou (2022), "Adversarial training for improving the robustness of deep
    neural networks", MSc thesis, University of Alberta, Sec. 4.3.1:
    robustness without giving up standard accuracy.

    Examples
    --------
    >>> from robustsk import MostRobust
    >>> pick = MostRobust(max_loss=0.05)
    >>> pick({"mean_test_clean": [0.99, 0.97, 0.80], "mean_test_robust": [0.1, 0.5, 0.7]})
    1
    """

    def __init__(
        self,
        floor: float | None = None,
        *,
        max_loss: float | None = None,
        clean: str = "clean",
        robust: str = "robust",
    ):
        self.floor = floor
        self.max_loss = max_loss
        self.clean = clean
        self.robust = robust

    def __call__(self, cv_results: dict) -> int:
        """Return the index of the chosen setting.

        Parameters
        ----------
        cv_results : dict
            `cv_results_` of the search.

        Returns
        -------
        int
        """
        clean = self._scores(cv_results, self.clean)
        robust = self._scores(cv_results, self.robust)
        if np.isnan(clean).all():
            raise ValueError(
                "Every setting of the search failed, all clean scores are NaN: see its warnings, "
                "or run it with error_score='raise'."
            )
        floor = -np.inf if self.floor is None else self.floor
        if self.max_loss is not None:
            # the comparison is meant for rounded scores
            floor = max(floor, np.nanmax(clean) - self.max_loss - 1e-12)
        candidates = np.flatnonzero(clean >= floor)
        if len(candidates) == 0:
            return int(np.nanargmax(clean))
        order = np.lexsort((clean[candidates], np.nan_to_num(robust[candidates], nan=-np.inf)))
        return int(candidates[order[-1]])

    @staticmethod
    def _scores(cv_results, name):
        key = f"mean_test_{name}"
        if key not in cv_results:
            known = sorted(k[10:] for k in cv_results if k.startswith("mean_test_"))
            raise ValueError(
                f"The search has no metric {name!r}; it has {known}. Give it "
                "scoring={'clean': 'accuracy', 'robust': make_adversarial_scorer(...)}, or name "
                "yours in MostRobust(clean=..., robust=...)."
            )
        return np.asarray(cv_results[key], dtype=float)
