"""What all ensembles have in common: members, their mean, and the way in and out of it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.utils.validation import check_is_fitted
from skorch import NeuralNet
from torch import Tensor, nn

from .._shared import temporarily
from .._validation import check_count
from ..defenses.base import BaseDefense
from ..defenses.standard import StandardClassifier, standard_version
from ..losses import ensemble_logits
from ..victims.ensemble import MeanEnsemble, Member, join_bounds
from ..victims.resolve import as_victim

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from ..defenses._parameters import DefenseParameters, Network

#: What an ensemble knows of its data and tells its members.
_FACTS = (
    "classes_inferred_",
    "_sample_shape",
    "input_shape_",
    "n_features_in_",
    "feature_names_in_",
    "clip_bounds_",
    "_float64",
)


class BaseEnsemble(BaseDefense):
    """Base class of the ensembles: several networks whose probabilities are averaged.

    Subclasses define `training_loss`, with :meth:`member_logits` and
    :meth:`ensemble_loss` for help, and `craft` where the adversary does not
    attack the ensemble as a whole.
    """

    _first_parameter_doc = """
    module : str, torch.nn.Module class or instance, or list of those, default=None
        The network of every member, or one per member. None means an MLP for
        tables and a small CNN for images.
"""

    _shared_parameters_doc = """
    n_members : int, default=2
        Number of members. With a list of networks it must be their number, or
        is ignored if left at its default.
""" + BaseDefense._shared_parameters_doc.lstrip("\n")

    _shared_attributes_doc = (
        BaseDefense._shared_attributes_doc.rstrip()
        + """
    members_ : list of torch.nn.Module
        The networks in `module_`.
    estimators_ : list of StandardClassifier
        The members as fitted classifiers.
"""
    )

    def __init__(
        self,
        module: Network | Sequence[Network] | None = None,
        *,
        n_members: int = 2,
        **common: Unpack[DefenseParameters],
    ):
        super().__init__(module, **common)
        self.n_members = n_members

    # --- members -----------------------------------------------------------------------

    @property
    def members_(self) -> list[nn.Module]:
        """The trained members, a list of torch modules."""
        self.check_is_fitted()
        return list(self.module_.members)

    @property
    def estimators_(self) -> list[StandardClassifier]:
        """The members as fitted classifiers, each a :class:`robustsk.defenses.StandardClassifier`.

        They predict, score and can be attacked on their own, under the threat
        model of the ensemble. Their networks are those of the ensemble, not
        copies: what trains one of them trains the ensemble. A clone of one is a
        classifier that is yet to be trained, naturally.
        """
        self.check_is_fitted()
        return [
            self._as_estimator(member, spec)
            for member, spec in zip(self.module_.members, self._built_from, strict=True)
        ]

    def _as_estimator(self, member, spec):
        clf = standard_version(self, module=spec, adversary=self._adversary())
        state = vars(clf)
        tell_facts(self, clf)
        nested = {key: state.pop(key) for key in list(state) if key.startswith("module__")}
        # a copy of the member stands in for it until everything else is there
        with temporarily(clf, module=member, compile=False):
            clf.initialize()
        state.update(nested)
        clf.module_ = member
        clf._shape_checked = True
        return clf.initialize_optimizer()

    def build_module(self, **facts):
        """Return the ensemble, every member with initial weights of its own."""
        self._built_from = self._specs()
        return MeanEnsemble(
            [self._build_member(spec, i, facts) for i, spec in enumerate(self._built_from)]
        )

    def _specs(self):
        """Return what describes the network of each member."""
        if isinstance(self.module, (list, tuple)):
            if not self.module:
                raise ValueError("module is an empty list: it must hold one network per member.")
            if self.n_members not in (2, len(self.module)):
                raise ValueError(
                    f"module is a list of {len(self.module)} networks and n_members is "
                    f"{self.n_members}: leave n_members out, or make them agree."
                )
            return list(self.module)
        return [self.module] * check_count(self.n_members, "n_members")

    def _build_member(self, spec, i, facts):
        if i and not isinstance(self.module, (list, tuple)):
            spec = another_start(spec)  # copies of one instance would stay equal for ever
        return self.make_network(spec, **facts)

    # --- tools for losses --------------------------------------------------------------

    def member_logits(
        self, x: Tensor | Sequence[Tensor], members: Sequence[nn.Module] | None = None
    ) -> list[Tensor]:
        """Return the logits of every member on a training batch.

        Parameters
        ----------
        x : torch.Tensor of shape (n, ...), or list of those
            One batch for all members, or one for each.
        members : list of torch.nn.Module, optional
            What is asked in their place; None means the members in training.

        Returns
        -------
        list of torch.Tensor of shape (n, n_classes)
        """
        members = self.module_.members if members is None else members
        batches = [x] * len(members) if isinstance(x, Tensor) else x
        first = self._step_logits is None
        logits = [self.logits(own, member) for own, member in zip(batches, members, strict=True)]
        if first:  # what is reported of a step is the prediction of the ensemble
            self._step_logits = ensemble_logits([z.detach() for z in logits])
        return logits

    def ensemble_loss(self, member_logits: list[Tensor], y: Tensor) -> Tensor:
        """Return the classification loss of the mean of the members' probabilities.

        Parameters
        ----------
        member_logits : list of torch.Tensor of shape (n, n_classes)
            From :meth:`member_logits`.
        y : torch.Tensor of shape (n,)

        Returns
        -------
        torch.Tensor of shape (n,)
        """
        if self.head_ is not None:
            member_logits = [self.head_.penalise(z, y) for z in member_logits]
        return self._losses(ensemble_logits(member_logits), y)

    def member_losses(self, member_logits: list[Tensor], y: Tensor) -> Tensor:
        """Return the sum of the members' classification losses.

        Parameters
        ----------
        member_logits : list of torch.Tensor of shape (n, n_classes)
            From :meth:`member_logits`.
        y : torch.Tensor of shape (n,)

        Returns
        -------
        torch.Tensor of shape (n,)
        """
        return sum(self.classification_loss(z, y) for z in member_logits)

    # --- prediction --------------------------------------------------------------------

    def prediction_entropy(self, X: Any) -> np.ndarray:
        """Return the entropy of the ensemble's prediction, a detector's score.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)

        Returns
        -------
        ndarray of shape (n_samples,)
            In nats; high means that the members are unsure or disagree.
        """
        p = self.predict_proba(X)
        return -(p * np.log(np.where(p > 0, p, 1.0))).sum(axis=1)

    # --- joining -----------------------------------------------------------------------

    @classmethod
    def from_estimators(cls, estimators: Iterable[Any], **params: Any) -> Self:
        """Join fitted classifiers into a fitted ensemble, without training.

        Parameters
        ----------
        estimators : list of fitted classifiers
            Of this package or of skorch, also in a `FrozenEstimator` or the
            fitted search that found them. They must know the same classes, in any
            order. Their networks are copied; a skorch net whose criterion is
            `NLLLoss` returns probabilities, as usual there, and any other logits.
        **params
            Parameters of the ensemble, as in the constructor. Those not given
            have their defaults; in particular the threat model, `adversary`,
            is not that of the estimators.

        Returns
        -------
        ensemble : fitted estimator of this class
            It predicts with the mean of the estimators' probabilities.
            `partial_fit` trains all of them together from there. `module` is
            the list of the networks as they were joined, so that a clone has
            yet to be fitted and training it starts from those weights.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            If one of the estimators is not fitted.
        TypeError
            If one of them is no classifier of this package or of skorch.
        ValueError
            If there are none, or if they have seen different classes, shapes
            or feature names.

        Examples
        --------
        >>> import numpy as np
        >>> from robustsk import EnsembleAT, StandardClassifier
        >>> from robustsk.datasets import load_digits_images
        >>> X, y = load_digits_images(return_X_y=True, as_flat=True)
        >>> parts = [
        ...     StandardClassifier(max_epochs=2, random_state=seed).fit(X[:500], y[:500])
        ...     for seed in range(2)
        ... ]
        >>> ensemble = EnsembleAT.from_estimators(parts, adversary__eps=0.1)
        >>> mean = np.mean([part.predict_proba(X[:9]) for part in parts], axis=0)
        >>> np.allclose(ensemble.predict_proba(X[:9]), mean, atol=1e-6)
        True
        """
        if not isinstance(estimators, Iterable):
            raise TypeError(f"estimators must be a list of fitted classifiers, got {estimators!r}.")
        parts = [_check_part(e, f"estimators[{i}]") for i, e in enumerate(estimators)]
        if not parts:
            raise ValueError("estimators is empty: there is nothing to join.")
        victims = [as_victim(part) for part in parts]
        known = [columns_of(*pair) for pair in zip(parts, victims, strict=True)]
        labels = np.unique(known[0])
        orders = [column_order(own, labels, f"estimators[{i}]") for i, own in enumerate(known)]
        shape = _common(parts, "_sample_shape", "samples of shape")
        ours = [isinstance(part, BaseDefense) for part in parts]
        seen = {getattr(p, "input_shape_", None) for p, own in zip(parts, ours, strict=True) if own}
        plain = all(ours) and len(seen) == 1 and "input_shape" not in params
        if plain and seen != {shape}:
            params["input_shape"] = next(iter(seen))
        alike = len({v.dtype for v in victims}) == 1
        networks = []
        for part, own, victim, order in zip(parts, ours, victims, orders, strict=True):
            # with nothing to translate, the network itself
            network = part.module_ if own and plain else victim.module
            if not alike or order != sorted(order):
                network = Member(network, victim.dtype, order)
            networks.append(copy.deepcopy(network))

        clf = cls(networks, **{"n_members": len(networks), "classes": labels.tolist(), **params})
        state = vars(clf)
        state["classes_inferred_"] = labels
        if not np.array_equal(np.unique(np.asarray(clf.classes)), labels):
            raise ValueError(
                f"classes={list(clf.classes)} are not those that the estimators know, "
                f"{labels.tolist()}."
            )
        if shape is not None:
            clf._learn_shape(shape)
        for name, what in [
            ("n_features_in_", "numbers of features"),
            ("feature_names_in_", "feature names"),
        ]:
            value = _common(parts, name, what)
            if value is not None:
                state[name] = value
        bounds = join_bounds([v.bounds for v in victims])
        if bounds is not None or shape is not None:
            state["clip_bounds_"] = bounds
        clf.initialize()
        clf._set_training(False)
        return clf


def tell_facts(clf, other):
    """Let another estimator know what `clf` has learned about its data."""
    for name in _FACTS:
        if hasattr(clf, name):
            vars(other)[name] = getattr(clf, name)


def another_start(spec):
    """Return what describes a network, of an instance a copy with new weights."""
    if not isinstance(spec, nn.Module):
        return spec
    spec = copy.deepcopy(spec)
    for part in spec.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    return spec


def columns_of(model, victim):
    """Return the labels of the columns of a model, which nets of skorch do not predict by."""
    classes = getattr(model, "classes_", None)
    return victim.classes if classes is None else np.asarray(classes)


def column_order(classes, labels, name):
    """Return the columns of a classifier in the order of `labels`.

    Parameters
    ----------
    classes : ndarray of shape (n_classes,) or None
        Labels of the columns.
    labels : ndarray of shape (n_classes,)
        The same, sorted.
    name : str
        What error messages call the classifier.

    Returns
    -------
    list of int
    """
    if classes is None:
        raise ValueError(f"{name} does not know its classes: fit it with labels.")
    if not np.array_equal(np.unique(classes), labels):
        raise ValueError(
            f"{name} knows the classes {np.unique(classes).tolist()}, and those of the ensemble "
            f"are {np.asarray(labels).tolist()}: all must know the same."
        )
    return np.argsort(classes).tolist()


def _found(estimator):
    """Return the name under which a fitted search, or training in stages, keeps its result."""
    return next((n for n in ("best_estimator_", "estimator_") if hasattr(estimator, n)), None)


def _check_part(estimator, name):
    """Return a fitted classifier with a network."""
    while not isinstance(estimator, NeuralNet):
        inside = "estimator" if isinstance(estimator, FrozenEstimator) else _found(estimator)
        if inside is None:
            break
        estimator = getattr(estimator, inside)
    kind = estimator.__name__ if isinstance(estimator, type) else type(estimator).__name__
    if not isinstance(estimator, NeuralNet):
        raise TypeError(
            f"{name} is {'the class ' if isinstance(estimator, type) else 'of type '}{kind}: only "
            "fitted classifiers of robustsk and skorch can be joined. Networks are given to the "
            "ensemble itself, as module=[...]."
        )
    try:
        check_is_fitted(estimator)
    except NotFittedError as error:
        raise NotFittedError(
            f"{name}, of type {kind}, is not fitted: fit it before it is joined. If it was "
            "fitted, it has been cloned since: wrap it in sklearn.frozen.FrozenEstimator."
        ) from error
    return estimator


def _common(parts, name, what):
    """Return what the parts know by this name, None if nothing; they must not contradict."""
    known = [(i, getattr(part, name)) for i, part in enumerate(parts) if hasattr(part, name)]
    for i, value in known[1:]:
        if not np.array_equal(value, known[0][1]):
            raise ValueError(
                f"estimators[{known[0][0]}] and estimators[{i}] have seen different {what}: "
                f"{_listed(known[0][1])} and {_listed(value)}."
            )
    return known[0][1] if known else None


def _listed(value):
    return value.tolist() if isinstance(value, np.ndarray) else value
