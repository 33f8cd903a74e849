"""Success of attacks that have several tasks at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..attacks import BaseAttack
from ..attacks.base import check_attack
from ._craft import check_samples, combined_victim, craft, judges, named
from ._scores import predicted_index


@dataclass(frozen=True, eq=False)
class TaskSuccess:
    """How often an attack achieves all, some and each of its tasks.

    Attributes
    ----------
    all : float
        Share of samples on which every task is achieved (A-All).
    average : float
        Mean over the tasks of their success rates (A-Avg).
    any : float
        Share of samples on which at least one task is achieved.
    per_task : ndarray of shape (n_tasks,)
        Success rate of each task.
    names : tuple of str
        Names of the tasks.
    n_samples : int
    """

    all: float
    average: float
    any: float
    per_task: np.ndarray
    names: tuple[str, ...]
    n_samples: int

    def __str__(self):
        each = ", ".join(
            f"{name} {rate:.3f}" for name, rate in zip(self.names, self.per_task, strict=True)
        )
        return (
            f"all {self.all:.3f}, average {self.average:.3f}, any {self.any:.3f} "
            f"(n={self.n_samples}): {each}"
        )


def success_rates(fooled: ArrayLike, *, names: list[str] | None = None) -> TaskSuccess:
    """Rates at which all tasks, any task and each task are achieved.

    Parameters
    ----------
    fooled : array-like of bool of shape (n_samples, n_tasks)
        Whether a task is achieved on a sample, e.g. whether a model errs on
        its adversarial example.
    names : list of str, default=None
        Names of the tasks. None means "0", "1", ...

    Returns
    -------
    TaskSuccess
        All rates are relative to all samples.

    Raises
    ------
    ValueError
        If `fooled` is not a non-empty matrix of booleans, or does not have one
        column per name.

    See Also
    --------
    joint_success_rates : Attacks models and judges the outcome.

    Notes
    -----
    Always ``max(0, 1 - sum(1 - per_task)) <= all <= min(per_task) <= average
    <= max(per_task) <= any``, and another task never raises `all`.

    References
    ----------
    Bui, Le, Zhao, Tran, Montague and Phung (2023), "Generating adversarial
    examples with task oriented multi-objective optimization", TMLR: A-All, A-Avg and the
    success rate of each task.

    Examples
    --------
    >>> from robustsk.metrics import success_rates
    >>> rates = success_rates([[1, 1], [1, 0], [0, 0], [1, 0]], names=["CNN", "MLP"])
    >>> rates.all, rates.average, rates.any
    (0.25, 0.5, 0.75)
    >>> print(rates)
    all 0.250, average 0.500, any 0.750 (n=4): CNN 0.750, MLP 0.250
    """
    fooled = np.asarray(fooled)
    if fooled.ndim != 2 or 0 in fooled.shape or not np.isin(fooled, (0, 1)).all():
        raise ValueError(
            "fooled must be a matrix of booleans of shape (n_samples, n_tasks) that is not empty, "
            f"got an array of shape {fooled.shape} and type {fooled.dtype}."
        )
    fooled = fooled.astype(bool)
    names = [str(i) for i in range(fooled.shape[1])] if names is None else [str(n) for n in names]
    if len(names) != fooled.shape[1]:
        raise ValueError(
            f"There are {fooled.shape[1]} tasks and {len(names)} names: give one name per task."
        )
    per_task = fooled.mean(axis=0)
    return TaskSuccess(
        all=float(fooled.all(axis=1).mean()),
        average=float(per_task.mean()),
        any=float(fooled.any(axis=1).mean()),
        per_task=per_task,
        names=tuple(names),
        n_samples=len(fooled),
    )


def joint_success_rates(
    estimators: Any,
    X: Any,
    y: ArrayLike | None,
    attack: BaseAttack | list[BaseAttack] | dict[str, BaseAttack] | None = None,
    *,
    source: Any = None,
    transforms: list[Callable] | dict[str, Callable] | None = None,
) -> TaskSuccess:
    """Rates at which one adversarial example per sample fools several models.

    A task is a model that is to be fooled; with several attacks or with
    transformations it is every combination of an attack, a transformation and
    a model. One adversarial example per sample and attack has to serve all.

    Parameters
    ----------
    estimators : list or dict of fitted estimators, or fitted ensemble
        Models that judge the examples. They need no gradients unless they are
        the source. An ensemble of this package stands for its members.
    X : array-like of shape (n_samples, ...) or torch Dataset
    y : array-like of shape (n_samples,)
        True labels. May be None where `X` is a Dataset that yields them.
    attack : attack, list or dict of attacks, default=None
        What makes the examples. None means that `X` is adversarial as it is.
    source : fitted estimator or torch.nn.Module, default=None
        The model that is attacked. None means the mean probability of
        `estimators`.
    transforms : list or dict of callables, default=None
        What happens to an example before it is judged: functions from an array
        to an array, or objects with a method `transform`. None means nothing;
        where there are any, list the identity as well if it counts.

    Returns
    -------
    TaskSuccess
        A clean error counts as a success: rates are relative to all samples.

    Raises
    ------
    NoGradientError
        If an attack needs gradients and the source has none.
    ValueError
        If `y` contains labels that an estimator has not been trained on, or
        the estimators know different classes and there is no `source`.

    See Also
    --------
    success_rates : The rates from a matrix of outcomes.
    transferability_matrix : Every model in turn is the source.

    Notes
    -----
    With one model and several attacks, ``1 - any`` is the accuracy under the
    worst of the attacks for each sample.

    References
    ----------
    Bui, Le, Zhao, Tran, Montague and Phung (2023), "Generating adversarial
    examples with task oriented multi-objective optimization", TMLR: the settings "ensemble
    of models" and "ensemble of transformations".

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.tree import DecisionTreeClassifier
    >>> from robustsk import PGD
    >>> from robustsk.metrics import joint_success_rates
    >>> X, y = load_iris(return_X_y=True)
    >>> models = {
    ...     "linear": LogisticRegression(max_iter=1000).fit(X, y),
    ...     "tree": DecisionTreeClassifier(random_state=0).fit(X, y),
    ... }
    >>> rates = joint_success_rates(
    ...     models, X, y, PGD(eps=0.5, random_state=0), source=models["linear"]
    ... )
    >>> rates.names
    ('linear', 'tree')
    >>> bool(rates.all <= rates.per_task.min())
    True
    """
    model_names, models = named(estimators, "estimators")
    values, y_true = check_samples(X, y)
    judging = judges(models, values, y_true)
    if attack is None:
        made = {"": values}
    else:
        single = not isinstance(attack, (list, tuple, dict))
        attack_names, attacks = named([attack] if single else attack, "attack")
        made = {
            name: _examples(one, models, source, values, y_true, X)
            for name, one in zip(attack_names, attacks, strict=True)
        }
    if transforms is None:
        transform_names, functions = [""], [np.asarray]
    else:
        transform_names, functions = named(transforms, "transforms")
    fooled, names = [], []
    for attack_name, examples in made.items():
        for transform_name, function in zip(transform_names, functions, strict=True):
            judged = np.asarray(getattr(function, "transform", function)(examples))
            for model_name, model, victim in zip(model_names, models, judging, strict=True):
                fooled.append(predicted_index(model, victim, judged, X, attacked=True) != y_true)
                parts = [
                    name
                    for name, several in (
                        (attack_name, len(made) > 1),
                        (transform_name, transforms is not None),
                        (model_name, len(models) > 1),
                    )
                    if several
                ]
                names.append(" / ".join(parts) or model_name)
    return success_rates(np.stack(fooled, axis=1), names=names)


def _examples(attack, models, source, values, y_true, X):
    check_attack(attack)
    victim = combined_victim(models if source is None else [source], values, attack)
    return craft(attack, victim, values, y_true, X)[0]
