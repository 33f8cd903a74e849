"""Mean losses with and without an attack."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from .._validation import encode_labels
from ..attacks import BaseAttack
from ..attacks.base import check_attack
from ..attacks.objectives import resolve_objective
from ..victims.resolve import as_victim
from ._craft import check_samples, combined_victim, craft


def natural_loss(
    estimator: Any, X: Any, y: ArrayLike | None, *, objective: str | Callable = "ce"
) -> float:
    """Mean loss on clean samples.

    Parameters
    ----------
    estimator : fitted estimator or torch.nn.Module
        With scores: gradients are not needed.
    X : array-like of shape (n_samples, ...) or torch Dataset
    y : array-like of shape (n_samples,)
        True labels. May be None where `X` is a Dataset that yields them.
    objective : {"ce", "cw", "dlr"} or callable, default="ce"
        Cross-entropy in nats, the margin by which the best wrong logit exceeds
        that of the true class, the difference of logits ratio, or a function
        ``f(logits, y)`` of tensors that returns one loss per sample.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        If `objective` is unknown, or `y` contains labels that the estimator has
        not been trained on.
    TypeError
        If the estimator predicts labels only.

    See Also
    --------
    robust_loss : Under attack.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.metrics import log_loss
    >>> from robustsk.metrics import natural_loss
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = LogisticRegression(max_iter=1000).fit(X, y)
    >>> bool(abs(natural_loss(clf, X, y) - log_loss(y, clf.predict_proba(X))) < 1e-6)
    True
    """
    values, y_true = check_samples(X, y)
    return float(_losses(estimator, values, y_true, objective).mean())


def robust_loss(
    estimator: Any,
    X: Any,
    y: ArrayLike | None,
    attack: BaseAttack,
    *,
    objective: str | Callable = "ce",
) -> float:
    """Mean loss under an attack.

    Parameters
    ----------
    estimator : fitted estimator or torch.nn.Module
        What is attacked; see :func:`score_adversarial`. It must have scores.
    X : array-like of shape (n_samples, ...) or torch Dataset
    y : array-like of shape (n_samples,)
        True labels. May be None where `X` is a Dataset that yields them.
    attack : attack
        All samples are attacked, also those that are misclassified without.
        An attack that looks for the closest adversarial example does not make
        losses large.
    objective : {"ce", "cw", "dlr"} or callable, default="ce"
        What is measured, see :func:`natural_loss`. What the attack ascends is
        its own `objective`.

    Returns
    -------
    float
        A lower bound of the mean of the largest losses within the balls. The
        sample itself is in its ball: the result is never less than
        :func:`natural_loss`.

    Raises
    ------
    NoGradientError
        If the attack needs gradients and the estimator has none.
    ValueError
        If `objective` is unknown, or `y` contains labels that the estimator has
        not been trained on.
    TypeError
        If the estimator predicts labels only.

    References
    ----------
    Madry, Makelov, Schmidt, Tsipras and Vladu (2018), "Towards deep learning
    models resistant to adversarial attacks", Eq. 2.1.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from robustsk import PGD
    >>> from robustsk.metrics import natural_loss, robust_loss
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = LogisticRegression(max_iter=1000).fit(X, y)
    >>> bool(robust_loss(clf, X, y, PGD(eps=0.3, random_state=0)) > natural_loss(clf, X, y))
    True
    """
    check_attack(attack)
    values, y_true = check_samples(X, y)
    clean = _losses(estimator, values, y_true, objective)
    victim = combined_victim([estimator], values, attack)
    X_adv, _ = craft(attack, victim, values, y_true, X)
    return float(np.maximum(clean, _losses(estimator, X_adv, y_true, objective)).mean())


def _losses(estimator, values, y_true, objective):
    """Return the loss of every sample."""
    objective = resolve_objective(objective)
    if objective.needs_clean:
        raise ValueError(
            "The divergence from the clean prediction is not a loss of labelled samples: use 'ce', "
            "'cw', 'dlr' or a callable f(logits, y)."
        )
    victim = as_victim(estimator, access="scores")
    index = torch.from_numpy(encode_labels(y_true, victim.learn_classes(values), "y"))
    parts = []
    for start in range(0, len(values), 256):
        logits = victim.logits(values[start : start + 256]).double()
        with torch.no_grad():
            parts.append(objective(logits, index[start : start + 256]))
    return torch.cat(parts).numpy()
