"""Attacks made equally strong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .._validation import check_count
from ..attacks import BaseAttack
from ..attacks.base import check_attack
from ._scores import score_adversarial


@dataclass(frozen=True)
class MatchedStrength:
    """The perturbation size at which two attacks are equally strong.

    Attributes
    ----------
    eps : float
        Of the second attack.
    accuracy : float
        Accuracy under the second attack with this `eps`.
    reference : float
        Accuracy under the first attack.
    """

    eps: float
    accuracy: float
    reference: float


def match_attack_strength(
    estimator: Any,
    X: Any,
    y: ArrayLike | None,
    attack_a: BaseAttack,
    attack_b: BaseAttack,
    eps_a: float | None = None,
    *,
    eps_start: float | None = None,
    n_doublings: int = 20,
    n_halvings: int = 10,
) -> MatchedStrength:
    """Find the `eps` of one attack that makes it as strong as another.

    Two attacks whose perturbations are measured in different ways, such as
    :class:`~robustsk.attacks.DRA` and :class:`~robustsk.attacks.PGD`, are to be
    compared at equal strength: where a model has the same accuracy under both.
    The `eps` of `attack_b` is doubled until it is at least as strong as
    `attack_a`, and then found by bisection.

    Parameters
    ----------
    estimator, X, y
        As in :func:`score_adversarial`.
    attack_a : attack
        The one that is given.
    attack_b : attack
        The one whose `eps` is looked for. Give both a `random_state`: the
        bisection assumes that accuracy falls with `eps`.
    eps_a : float, default=None
        The `eps` of `attack_a`; None means the one it has.
    eps_start : float, default=None
        Where to begin; None means the `eps` of `attack_b`, or 0.01.
    n_doublings : int, default=20
        How often `eps` may be doubled in search of an attack that is strong
        enough.
    n_halvings : int, default=10
        Number of bisections, each of which halves what is unknown of `eps`.

    Returns
    -------
    MatchedStrength
        A tuple ``(eps, accuracy, reference)``. Of the sizes tried it holds
        the one with the nearest accuracy, the smallest where several are equal.

    Raises
    ------
    ValueError
        If no `eps` makes `attack_b` as strong as `attack_a`, or if
        `attack_a` does nothing.

    References
    ----------
    Hou (2022), "Adversarial training for improving the robustness of deep
    neural networks", MSc thesis, University of Alberta, Sec. 4.5.4.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from robustsk import PGD
    >>> from robustsk.attacks import DRA
    >>> from robustsk.metrics import match_attack_strength
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = LogisticRegression(max_iter=1000).fit(X, y)
    >>> pgd, dra = PGD(random_state=0), DRA(eps_unit="mean")
    >>> match = match_attack_strength(clf, X, y, pgd, dra, eps_a=0.3)
    >>> abs(match.accuracy - match.reference) < 0.02
    True
    """
    check_attack(attack_a, "attack_a")
    check_attack(attack_b, "attack_b")
    n_doublings = check_count(n_doublings, "n_doublings")
    n_halvings = check_count(n_halvings, "n_halvings")
    if eps_a is not None:
        attack_a = attack_a._with(eps=eps_a)
    reference = score_adversarial(estimator, X, y, attack_a)
    tried = {}

    def accuracy(eps):
        tried[eps] = score_adversarial(estimator, X, y, attack_b._with(eps=eps))
        return tried[eps]

    if accuracy(0.0) <= reference:
        raise ValueError(
            f"attack_a leaves an accuracy of {reference:.4g}, which is that without an attack: "
            "there is no strength to match. Give it a larger eps."
        )
    eps = eps_start if eps_start is not None else attack_b._resolved().eps
    if eps is None:
        eps = 0.01
    if np.ndim(eps) or not 0 < eps < np.inf:
        raise ValueError(f"eps_start must be a positive number, got {eps!r}.")
    low, high = 0.0, float(eps)
    for _ in range(n_doublings):
        if accuracy(high) <= reference:
            break
        low, high = high, 2 * high
    else:
        raise ValueError(
            f"attack_b leaves an accuracy of {tried[low]:.4g} at eps={low:g}, and attack_a one of "
            f"{reference:.4g}: no eps up to there makes them equally strong."
        )
    for _ in range(n_halvings):
        middle = (low + high) / 2
        if accuracy(middle) <= reference:
            high = middle
        else:
            low = middle
    best = min(tried, key=lambda eps: (abs(tried[eps] - reference), eps))
    return MatchedStrength(best, tried[best], reference)
