"""What several models have in common: transfer, joint regions, gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from .._validation import check_count, encode_labels
from ..attacks import BaseAttack
from ..attacks.base import check_attack
from ..attacks.objectives import resolve_objective
from ..victims.resolve import as_victim
from ._craft import check_samples, combined_victim, craft, judges, named
from ._scores import predicted_index

#: The patterns of more members than that are not worth a table.
_MOST_MEMBERS = 16


def transferability_matrix(
    estimators: Any,
    X: Any,
    y: ArrayLike | None,
    attack: BaseAttack,
    *,
    sources: Any = None,
    metric: str = "accuracy",
    over: str = "all",
) -> np.ndarray:
    """Score of every model on the adversarial examples of every other one.

    Parameters
    ----------
    estimators : list or dict of fitted estimators, or fitted ensemble
        The targets, one column each. They need no gradients unless they are
        sources too. An ensemble of this package stands for its members.
    X : array-like of shape (n_samples, ...) or torch Dataset
    y : array-like of shape (n_samples,)
        True labels. May be None where `X` is a Dataset that yields them.
    attack : attack
        What makes the examples, for all samples, also for those that the
        source misclassifies without an attack. The valid range is found for
        each source as in :func:`adversarial_outcome`.
    sources : list or dict of fitted estimators, or fitted ensemble, default=None
        The models against which the examples are made, one row each. None
        means `estimators`.
    metric : {"accuracy", "success"}, default="accuracy"
        Share of samples that the target classifies correctly, or wrongly.
    over : {"all", "correct", "fooled"}, default="all"
        Relative to all samples; to those that the target classifies correctly
        without an attack; or to those that source and target both classify
        correctly and whose example fools the source.

    Returns
    -------
    ndarray of shape (n_sources, n_targets)
        In [0, 1]; NaN where there is no sample to count.

    Raises
    ------
    NoGradientError
        If the attack needs gradients and a source has none.
    ValueError
        If `metric` or `over` is unknown, or `y` contains labels that an
        estimator has not been trained on.

    See Also
    --------
    robustsk.inspection.TransferabilityDisplay : Draws it.
    secure_regions : Where the members of an ensemble err together.

    References
    ----------
    Bui, Le, Zhao, Montague, deVel, Abraham and Phung (2021), "Improving
    ensemble robustness by collaboratively promoting and demoting adversarial
    robustness", AAAI, Tables 12 and 13.

    Liu, Chen, Liu and Song (2017), "Delving into transferable adversarial
    examples and black-box attacks", ICLR.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.tree import DecisionTreeClassifier
    >>> from robustsk import PGD
    >>> from robustsk.metrics import transferability_matrix
    >>> X, y = load_iris(return_X_y=True)
    >>> linear = LogisticRegression(max_iter=1000).fit(X, y)
    >>> tree = DecisionTreeClassifier(random_state=0).fit(X, y)
    >>> attack = PGD(eps=0.5, random_state=0)
    >>> matrix = transferability_matrix([linear, tree], X, y, attack, sources=[linear])
    >>> matrix.shape
    (1, 2)
    """
    if metric not in ("accuracy", "success"):
        raise ValueError(f"metric must be 'accuracy' or 'success', got {metric!r}.")
    if over not in ("all", "correct", "fooled"):
        raise ValueError(f"over must be 'all', 'correct' or 'fooled', got {over!r}.")
    check_attack(attack)
    _, targets = named(estimators, "estimators")
    same = sources is None
    origins = targets if same else named(sources, "sources")[1]
    values, y_true = check_samples(X, y)
    judging = judges(targets, values, y_true)
    asked = judging if same else judges(origins, values, y_true)
    right = [_right(*pair, values, y_true, X, False) for pair in zip(targets, judging, strict=True)]
    matrix = np.empty((len(origins), len(targets)))
    for i, source in enumerate(origins):
        X_adv = craft(attack, combined_victim([source], values, attack), values, y_true, X)[0]
        if over == "fooled":
            reached = _right(source, asked[i], values, y_true, X, False)
            reached &= ~_right(source, asked[i], X_adv, y_true, X)
        for j, target in enumerate(targets):
            hit = _right(target, judging[j], X_adv, y_true, X) == (metric == "accuracy")
            if over == "correct":
                hit = hit[right[j]]
            elif over == "fooled":
                hit = hit[right[j] & reached]
            matrix[i, j] = hit.mean() if len(hit) else np.nan
    return matrix


def _right(estimator, victim, values, y_true, X, attacked=True):
    return predicted_index(estimator, victim, values, X, attacked=attacked) == y_true


@dataclass(frozen=True, eq=False)
class SecureRegions:
    """Which members of an ensemble withstand the attacks on the ensemble, jointly.

    Attributes
    ----------
    frequency : ndarray of shape (2, ..., 2)
        One axis per member: share of samples with each pattern of members that
        are right (1) and wrong (0), on examples against the ensemble. With two
        members ``frequency[1, 0]`` is ``|S10|``.
    ensemble_accuracy : float
        Accuracy of the ensemble on the same examples, a(en, en).
    transfer : ndarray of shape (n_members, n_members) or None
        Accuracy of the member of the column on examples against the member of
        the row.
    n_samples : int
    """

    frequency: np.ndarray
    ensemble_accuracy: float
    transfer: np.ndarray | None
    n_samples: int

    @classmethod
    def from_correct(
        cls, correct: ArrayLike, ensemble_correct: ArrayLike, transfer: ArrayLike | None = None
    ) -> SecureRegions:
        """Count the patterns.

        Parameters
        ----------
        correct : array-like of bool of shape (n_samples, n_members)
            Where the members are right on examples against the ensemble.
        ensemble_correct : array-like of bool of shape (n_samples,)
            Where the ensemble is.
        transfer : array-like of shape (n_members, n_members), default=None
            See :func:`transferability_matrix`; needed for `T` only.

        Returns
        -------
        SecureRegions
        """
        correct = np.asarray(correct, dtype=bool)
        ensemble_correct = np.asarray(ensemble_correct, dtype=bool)
        if correct.ndim != 2 or 0 in correct.shape or ensemble_correct.shape != correct.shape[:1]:
            raise ValueError(
                "correct must have shape (n_samples, n_members) and ensemble_correct (n_samples,), "
                f"got {correct.shape} and {ensemble_correct.shape}."
            )
        n_samples, n_members = correct.shape
        if n_members > _MOST_MEMBERS:
            raise ValueError(
                f"{n_members} members have 2**{n_members} patterns: give at most {_MOST_MEMBERS}."
            )
        frequency = np.zeros((2,) * n_members)
        np.add.at(frequency, tuple(correct.T.astype(int)), 1)
        if transfer is not None:
            transfer = np.asarray(transfer, dtype=float)
            if transfer.shape != (n_members, n_members):
                raise ValueError(
                    f"transfer must have shape {(n_members, n_members)}, got {transfer.shape}."
                )
        return cls(frequency / n_samples, float(ensemble_correct.mean()), transfer, n_samples)

    @property
    def n_members(self) -> int:
        """Number of members."""
        return self.frequency.ndim

    @property
    def all_secure(self) -> float:
        """Share of samples on which all members are right, ``|S1...1|``."""
        return float(self.frequency.flat[-1])

    @property
    def all_insecure(self) -> float:
        """Share of samples on which all members are wrong, ``|S0...0|``."""
        return float(self.frequency.flat[0])

    @property
    def member_accuracy(self) -> np.ndarray:
        """Accuracy of each member on examples against the ensemble."""
        return np.array([self.frequency.take(1, axis=axis).sum() for axis in range(self.n_members)])

    @property
    def T(self) -> float:
        """Accuracy that members keep on examples against others: smaller, more transfer."""
        if self.transfer is None:
            raise ValueError("T needs the matrix `transfer`: see transferability_matrix.")
        return float((self.transfer - np.diag(self.transfer)[:, None]).sum())

    @property
    def nT(self) -> float:
        """Share of samples on which the ensemble errs though not every member does."""
        return 1.0 - self.ensemble_accuracy - self.all_insecure

    @property
    def a_single(self) -> float:
        """Share of samples on which the ensemble is right though not every member is."""
        return self.ensemble_accuracy - self.all_secure


def secure_regions(
    members: Any,
    X: Any,
    y: ArrayLike | None,
    attack: BaseAttack,
    *,
    ensemble: Any = None,
) -> SecureRegions:
    """Joint secure and insecure regions of the members of an ensemble.

    The ensemble is attacked, and the samples are sorted by which members
    classify their adversarial examples correctly. Every member is attacked on
    its own as well, for the transferability.

    Parameters
    ----------
    members : list or dict of fitted estimators, or fitted ensemble
        At most 16. An ensemble of this package, such as
        :class:`robustsk.ensembles.EnsembleCCE`, stands for its members.
    X : array-like of shape (n_samples, ...) or torch Dataset
    y : array-like of shape (n_samples,)
        True labels. May be None where `X` is a Dataset that yields them.
    attack : attack
    ensemble : fitted estimator or torch.nn.Module, default=None
        What combines the members. None means the mean of their probabilities,
        or `members` itself if it is a fitted ensemble.

    Returns
    -------
    SecureRegions

    Raises
    ------
    NoGradientError
        If the attack needs gradients and a member has none.
    ValueError
        If there are more than 16 members, or they know different classes.

    Notes
    -----
    The frequencies sum to 1; summed over a member's axis at 1 they are its
    accuracy. If all members are right so is the mean of their probabilities,
    hence `a_single` is never negative then. The converse does not hold with
    more than two classes: all members may err differently and their mean be
    right, so `nT` can be negative. With N members
    ``T = sum_i sum_{j != i} a(i, j) - a(i, i)``.

    References
    ----------
    Bui, Le, Zhao, Montague, deVel, Abraham and Phung (2021), "Improving
    ensemble robustness by collaboratively promoting and demoting adversarial
    robustness", AAAI, Lemma 1 and Table 6.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from robustsk import PGD
    >>> from robustsk.metrics import secure_regions
    >>> X, y = load_iris(return_X_y=True)
    >>> members = [LogisticRegression(C=C, max_iter=1000).fit(X, y) for C in (0.1, 10)]
    >>> regions = secure_regions(members, X, y, PGD(eps=0.5, random_state=0))
    >>> round(float(regions.frequency.sum()), 12)
    1.0
    >>> regions.all_secure <= regions.ensemble_accuracy
    True
    """
    check_attack(attack)
    _, models = named(members, "members")
    if len(models) > _MOST_MEMBERS:
        raise ValueError(
            f"{len(models)} members have 2**{len(models)} patterns: give at most {_MOST_MEMBERS}."
        )
    if ensemble is None and not isinstance(members, (list, tuple, dict)):
        ensemble = members
    values, y_true = check_samples(X, y)
    judging = judges(models, values, y_true)
    attacked = combined_victim(models if ensemble is None else [ensemble], values, attack)
    X_adv = craft(attack, attacked, values, y_true, X)[0]
    if ensemble is None:
        ensemble = attacked if len(models) > 1 else models[0]
    (combined,) = judges([ensemble], values, y_true)
    correct = [_right(*pair, X_adv, y_true, X) for pair in zip(models, judging, strict=True)]
    return SecureRegions.from_correct(
        np.stack(correct, axis=1),
        _right(ensemble, combined, X_adv, y_true, X),
        transferability_matrix(models, X, y, attack),
    )


@dataclass(frozen=True, eq=False)
class GradientCosines:
    """How the input gradients of several models are related.

    Attributes
    ----------
    mean, std : ndarray of shape (n_models, n_models)
        Mean and standard deviation over the samples of the cosine between the
        gradients of two models. Samples on which one of the two gradients is
        zero do not count; NaN where none is left.
    norm_mean, norm_std : ndarray of shape (n_models,)
        Mean and standard deviation of the Euclidean norm of the gradients.
    names : tuple of str
    n_samples : int
    """

    mean: np.ndarray
    std: np.ndarray
    norm_mean: np.ndarray
    norm_std: np.ndarray
    names: tuple[str, ...]
    n_samples: int


def gradient_cosines(
    estimators: Any,
    X: Any,
    y: ArrayLike | None,
    *,
    objective: str | Callable = "ce",
    batch_size: int = 256,
) -> GradientCosines:
    """Cosines between the input gradients of the losses of several models.

    High cosines mean that what fools one model is likely to fool the other;
    negative ones that the two are in conflict. Gradients of very different
    length let one model dominate a joint attack.

    Parameters
    ----------
    estimators : list or dict of fitted estimators, or fitted ensemble
        All with gradients.
    X : array-like of shape (n_samples, ...) or torch Dataset
        Where the gradients are taken: clean or adversarial samples.
    y : array-like of shape (n_samples,)
        True labels. May be None where `X` is a Dataset that yields them.
    objective : {"ce", "cw", "dlr"} or callable, default="ce"
        The loss, as in :class:`robustsk.attacks.PGD`. The divergence from the
        clean prediction, "kl", has no gradient at the sample itself.
    batch_size : int, default=256

    Returns
    -------
    GradientCosines

    Raises
    ------
    NoGradientError
        If an estimator has no gradients.
    ValueError
        If `objective` is unknown or "kl", or `y` contains labels that an
        estimator has not been trained on.

    References
    ----------
    Bui, Le, Zhao, Tran, Montague and Phung (2023), "Generating adversarial
    examples with task oriented multi-objective optimization", TMLR, Tables 2 and 23.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from robustsk.metrics import gradient_cosines
    >>> X, y = load_iris(return_X_y=True)
    >>> models = {C: LogisticRegression(C=C, max_iter=1000).fit(X, y) for C in (0.1, 10)}
    >>> cosines = gradient_cosines(models, X, y)
    >>> cosines.names
    ('0.1', '10')
    >>> bool(cosines.mean[0, 1] > 0.5)
    True
    """
    names, models = named(estimators, "estimators")
    objective = resolve_objective(objective)
    if objective.needs_clean:
        raise ValueError(
            "The divergence from the clean prediction has no gradient at the sample: use 'ce', "
            "'cw' or 'dlr'."
        )
    batch_size = check_count(batch_size, "batch_size")
    values, y_true = check_samples(X, y)
    victims = [as_victim(model, attack="gradient_cosines") for model in models]
    index = [encode_labels(y_true, v.learn_classes(values), "y") for v in victims]
    cosines = np.empty((len(values), len(victims), len(victims)))
    norms = np.empty((len(values), len(victims)))
    for start in range(0, len(values), batch_size):
        rows = slice(start, start + batch_size)
        pairs = zip(victims, index, strict=True)
        gradient = torch.stack([_gradient(v, values[rows], i[rows], objective) for v, i in pairs])
        norm = torch.linalg.vector_norm(gradient, dim=2, keepdim=True)
        unit = (gradient / norm).transpose(0, 1)  # a gradient of zero has no direction: NaN
        cosines[rows] = (unit @ unit.transpose(1, 2)).numpy()
        norms[rows] = norm[:, :, 0].T.numpy()
    defined = ~np.isnan(cosines)
    count = defined.sum(axis=0)
    with np.errstate(invalid="ignore"):
        mean = np.where(defined, cosines, 0.0).sum(axis=0) / count
        std = np.sqrt((np.where(defined, cosines - mean, 0.0) ** 2).sum(axis=0) / count)
    return GradientCosines(
        mean, std, norms.mean(axis=0), norms.std(axis=0), tuple(names), len(values)
    )


def _gradient(victim, values, index, objective):
    """Return the input gradients of one model, shape (n, n_features), in float64 on the CPU."""
    with victim.frozen() as seen, torch.enable_grad():
        x = torch.from_numpy(np.array(values)).to(victim.device, victim.dtype).requires_grad_(True)
        value = objective(seen(x), torch.from_numpy(index).to(victim.device))
        (gradient,) = torch.autograd.grad(value.sum(), x)
    return torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0).flatten(1).double().cpu()
