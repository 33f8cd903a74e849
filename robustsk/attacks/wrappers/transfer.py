"""Attacks on a model of one's own that are turned on another one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import ArrayLike
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from ..._containers import check_floats
from ...victims._checks import check_victim_fitted
from ...victims.resolve import as_victim
from ..base import BaseAttack
from ..targeting import BY_PREDICTION
from .base import BaseWrapper, SeenVictim

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from .._parameters import AttackParameters


class TransferAttack(BaseWrapper):
    """Craft adversarial examples on a surrogate and turn them on the victim.

    The adversary knows nothing of the victim: the attack inside never asks
    it. If the surrogate is yet to be trained, `fit` does so on the answers of
    the victim, for which `predict` is enough.

    Parameters
    ----------
    estimator : fitted estimator or torch.nn.Module, default=None
        The victim. A fitted estimator in a pipeline that will be cloned must
        be wrapped in `sklearn.frozen.FrozenEstimator`. With None, `fit` fits a
        standardised logistic regression as the victim.
    attack : attack, default=None
        The attack inside. None means `PGD()`.
    surrogate : classifier or torch.nn.Module, default=None
        What is attacked in place of the victim. A fitted classifier or a
        module is used as it is; of one that is not fitted, `fit(X)` trains a
        copy on `X` and what the victim predicts for it. It must know the
        classes by the names that the victim has for them. None means the
        victim itself, with which this is nothing but the attack inside.
    %(shared_parameters)s

    %(shared_attributes)s
    surrogate_ : object
        What is attacked in place of the victim.
    n_queries_ : int
        Samples of which the victim has been asked the label in order to train
        the surrogate.

    Notes
    -----
    The attack inside does not stop where the surrogate is fooled, as it does
    in evaluation otherwise: going on makes success on the victim more likely.
    For the same reason attacks that look for the closest adversarial example
    transfer badly.

    References
    ----------
    Papernot, McDaniel, Goodfellow, Jha, Celik and Swami (2017), "Practical
    black-box attacks against machine learning", Sec. 4, without the
    augmentation of the training data; Liu, Chen, Liu and Song (2017),
    "Delving into transferable adversarial examples and black-box attacks".

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.ensemble import RandomForestClassifier
    >>> from sklearn.linear_model import LogisticRegression
    >>> from robustsk.attacks import PGD, TransferAttack
    >>> X, y = load_iris(return_X_y=True)
    >>> forest = RandomForestClassifier(random_state=0).fit(X, y)
    >>> attack = TransferAttack(
    ...     forest, attack=PGD(eps=1.0, random_state=0), surrogate=LogisticRegression(max_iter=1000)
    ... ).fit(X)
    >>> bool(forest.score(attack.generate(X, y), y) < 0.5)
    True
    """

    def __init__(
        self,
        estimator: Any = None,
        *,
        attack: BaseAttack | None = None,
        surrogate: Any = None,
        **common: Unpack[AttackParameters],
    ):
        super().__init__(estimator, attack=attack, **common)
        self.surrogate = surrogate

    @property
    def access(self):
        """What is needed of the victim: labels, unless it is its own surrogate."""
        return super().access if self.surrogate is None else "labels"

    def fit(self, X: Any, y: ArrayLike | None = None) -> Self:
        """Learn the valid range of the data, and train the surrogate if need be.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Data in the units in which `eps` is given.
        y : array-like of shape (n_samples,), optional
            Labels. Only used where `estimator` is None.

        Returns
        -------
        self
        """
        super().fit(X, y)
        self.n_queries_ = 0
        self.surrogate_ = self.estimator_ if self.surrogate is None else self.surrogate
        if not _is_fitted(self.surrogate_):
            values = check_floats(X)
            self.surrogate_ = clone(self.surrogate).fit(values, self._ask(values))
            self.n_queries_ = len(values)
        return self

    def _ask(self, X):
        """Return the labels that the victim gives to `X`."""
        settings = self._resolved()
        victim = settings._victim()
        size = settings._n_at_a_time(X, victim)
        found = [victim.logits(X[i : i + size]).argmax(1) for i in range(0, len(X), size)]
        labels = torch.cat(found).numpy()
        return labels if victim.classes is None else victim.classes[labels]

    def _see(self, victim, seed):
        return victim if self.surrogate is not None else super()._see(victim, seed)

    def _attack_batch(self, batch):
        if self.surrogate is None:
            return super()._attack_batch(batch)
        surrogate = getattr(self, "surrogate_", self.surrogate)
        if not _is_fitted(surrogate):
            raise NotFittedError(
                f"The surrogate {type(surrogate).__name__} is not fitted: call fit(X), which "
                "trains it on the answers of the victim, or pass a fitted one."
            )
        inner = self._inner
        known = as_victim(surrogate, attack=type(inner).__name__, access=inner.access)
        with known.frozen(self.bn_mode, self._engine()) as seen:
            surrogate = inner._see(_InTermsOf(seen, batch.victim), 0)
            keep = "last" if batch.keep == "last" else "worst"
            batch = replace(batch, victim=surrogate, keep=keep, clean_logits=None)
            if isinstance(self.target, str) and self.target in BY_PREDICTION:
                self._complete(batch)
            elif batch.objective.needs_clean:
                with torch.no_grad():
                    batch.clean_logits = surrogate(batch.x)
            return super()._attack_batch(batch)


class _InTermsOf(SeenVictim):
    """A surrogate that takes what the victim takes, and has its classes in its order."""

    #: Logit of a class that the surrogate does not know.
    never = -100.0

    def __init__(self, seen, victim):
        super().__init__(seen)
        self.columns = None
        if seen.classes is not None and victim.classes is not None:
            self.classes = victim.classes
            known = {label: i for i, label in enumerate(seen.classes.tolist())}
            self.columns = [known.get(label, -1) for label in victim.classes.tolist()]
            if max(self.columns) < 0:
                raise ValueError(
                    f"The surrogate knows the classes {seen.classes[:10].tolist()} and the victim "
                    f"{victim.classes[:10].tolist()}: they have none in common."
                )

    def __call__(self, x):
        logits = self.seen(x.to(self.device, self.dtype)).to(x)
        if self.columns is None or self.columns == list(range(logits.shape[1])):
            return logits
        never = torch.full_like(logits[:, :1], self.never)
        return torch.cat([logits, never], dim=1)[:, self.columns]


def _is_fitted(model):
    try:
        check_victim_fitted(model)
    except NotFittedError:
        return False
    return True
