"""What is evaluated: a model, data and a threat model, validated once."""

from __future__ import annotations

import copy
import time
from contextlib import nullcontext
from functools import cached_property
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_consistent_length, column_or_1d

from .._containers import check_floats, check_one_input, dataset_labels, is_dataset, to_array
from .._validation import (
    check_classifies,
    check_labels,
    encode_labels,
    in_order,
    learn_bounds,
    names_of,
)
from ..attacks._rows import read_table
from ..attacks.base import check_attack
from ..attacks.gradient.fgsm import FGSM
from ..attacks.noise import seeded
from ..attacks.objectives import OBJECTIVES
from ..attacks.threat import check_eps, check_norm
from ..attacks.wrappers.base import same_value
from ..defenses import StandardClassifier
from ..metrics._scores import predicted_index
from ..victims._checks import NoGradientError
from ..victims._columns import TableRows, columns_of
from ..victims.resolve import as_victim

#: How many samples, and values, a surrogate is trained on; and as many again with noise.
_N_SURROGATE, _VALUES_SURROGATE = 1000, 2**23
_NORMS = (np.inf, 2.0, 1.0, 0.0)


class Problem:
    """A model, labelled data and what the adversary may do.

    Parameters
    ----------
    estimator, X, y
        As in :func:`robustsk.metrics.adversarial_outcome`.
    norm, eps, clip, space, mask
        The threat model; see :func:`robustsk.evaluation.robustness_report`.
    random_state : int, RandomState or None
    attacks : list of attacks
        Asked for the threat model where `norm` or `eps` is None.

    Attributes
    ----------
    space : FeatureSpace or None
        Where `X` is a table.
    values, y, index : ndarray
        Data, labels, and the columns of the logits that belong to the labels.
    bounds : tuple of (low, high)
        Valid range: what was given, learned in training, or that of `X`.
    victim : Victim or None
        None where no gradient reaches the input.
    no_gradient : str or None
        Why not.
    cut : bool
        Whether the model is one that should have gradients and has none.
    asked : Victim
        Answers questions, whether it has gradients or not.
    access : {"gradients", "scores", "labels"}
        The most that attacks may see.
    y_pred : ndarray
    seconds : float
        What it took to predict them.
    """

    def __init__(
        self,
        estimator,
        X,
        y,
        *,
        norm,
        eps,
        clip,
        random_state,
        attacks=(),
        space=None,
        mask=None,
    ):
        check_classifies(estimator)
        if is_dataset(X):
            y = dataset_labels(X) if y is None else y
            X = to_array(X)
        check_one_input(X, y)
        self.estimator, self.X = estimator, X
        self.name = type(estimator).__name__
        self.values = _read(X, space, attacks)
        self.space = getattr(self.values, "space", None)
        self.y = column_or_1d(check_labels(y))
        check_consistent_length(self.values, self.y)
        if not isinstance(random_state, (int, np.integer)):
            random_state = check_random_state(random_state).randint(2**31 - 1)
        self.seed = int(random_state)
        self._find_victim()
        self.asked._inspected = True  # that it returns probabilities is said by a red flag
        self.index = encode_labels(self.y, self.asked.learn_classes(self.values), "y")
        columns = names_of(X, estimator)
        eps = in_order(eps, columns, "eps")
        self.mask = in_order(mask, columns, "mask")
        if isinstance(clip, (list, tuple)):
            clip = tuple(in_order(bound, columns, "clip") for bound in clip)
        for attack in attacks:
            check_attack(attack)
        settled = [attack._resolved()._in_order(X, estimator) for attack in attacks]
        self.norm, self.eps, own_clip = _threat_model(
            estimator, norm, eps, self.values.shape[1:], settled
        )
        self.clip = own_clip if isinstance(clip, str) and clip == "auto" else clip
        if self.space is None:
            self._find_bounds()
        else:
            limits = self.space.limits_
            self.bounds = limits.low, limits.high
        start = time.perf_counter()
        self.y_pred = self.predict(self.values)
        self.seconds = time.perf_counter() - start

    def _find_bounds(self):
        self.bounds = self.asked.bounds
        if self.bounds is None:
            self.bounds = learn_bounds(self.values, self.asked.is_image)
        low, high = FGSM(clip=self.clip)._box(self.bounds)
        if low is not None:
            self.bounds = low, high

    def _find_victim(self):
        columns = columns_of(self.values)
        self.victim, self.no_gradient, self.cut, self.access = None, None, False, "gradients"
        try:
            self.victim = self.asked = as_victim(self.estimator, columns=columns)
        except NoGradientError:
            self.no_gradient = f"{self.name} has no gradients"
            try:
                self.access = "scores"
                self.asked = as_victim(self.estimator, access=self.access, columns=columns)
            except TypeError:  # no scores either
                self.access = "labels"
                self.asked = as_victim(self.estimator, access=self.access, columns=columns)
            return
        first = self.values[:2]
        if self.gradient("ce", first, np.zeros(len(first), dtype=int)) is None:
            self.cut, self.access = True, "scores"
            self.no_gradient = f"no gradient reaches the input of {self.name}"
            self.victim = None

    @property
    def correct(self):
        """Where the prediction is right without an attack."""
        return self.y_pred == self.y

    @property
    def span(self):
        """Range of each feature, in the shape of one sample."""
        if self.space is not None:
            return self.space.limits_.span.reshape(self.values.shape[1:])
        low, high = self.bounds
        return np.broadcast_to(np.subtract(high, low), self.values.shape[1:])

    def largest(self, share):
        """Return an eps within which every feature may change by `share` of its range."""
        n_features = self.span.size
        eps = share * self.span * {np.inf: 1, 2.0: n_features**0.5, 1.0: n_features}[self.norm]
        return float(eps.max()) if eps.min() == eps.max() else eps

    def of_numbers(self):
        """Return the problem on a table of which only the numbers change."""
        other = copy.copy(self)
        other.space = self.space.with_settings(max_changes=0)
        other.values = TableRows(self.values, other.space)
        return other

    def take(self, rows):
        """Return the problem restricted to some samples; the valid range stays."""
        other = copy.copy(self)
        # only a table says more than its values
        if hasattr(self.X, "iloc"):
            other.X = self.X.iloc[rows]
        elif self.space is None:
            other.X = self.values[rows]
        else:
            other.X = self.X[rows]
        for name in ("values", "y", "index", "y_pred"):
            setattr(other, name, getattr(self, name)[rows])
        return other

    def seeded(self):
        """Return a context in which a model that draws numbers gives the same answers again."""
        return seeded(self.seed, self.asked.device)

    def predict(self, values, attacked=False):
        """Return the labels that the estimator predicts."""
        with self.seeded() if self.asked.draws else nullcontext():
            return predicted_index(self.estimator, self.asked, values, self.X, attacked=attacked)

    def attack(self, cls, **own):
        """Return an attack of this threat model."""
        return self.complete(cls(**own))

    def complete(self, attack):
        """Return `attack` with this threat model where it has none of its own."""
        check_attack(attack)
        attack = own = attack._resolved()._in_order(self.X, self.estimator)
        settings = {}
        norm = check_norm(own.norm, _NORMS)
        if norm != self.norm:
            if norm != check_norm(type(own)().norm, _NORMS):
                raise ValueError(_contradiction(attack, "norm", own.norm, self.norm))
            settings["norm"] = self.norm
        if own.eps is None:
            settings["eps"] = self.eps
        elif not same_value(_plain(own.eps), _plain(self.eps)):
            raise ValueError(_contradiction(attack, "eps", own.eps, self.eps))
        if isinstance(own.clip, str):
            settings["clip"] = self.clip
        if own.random_state is None:
            settings["random_state"] = self.seed
        if own.space is None and self.space is not None:
            settings["space"] = self.space
        if own.mask is None and self.mask is not None:
            settings["mask"] = self.mask
        attack = attack._with(**settings)
        if self.space is None and not hasattr(attack, "clip_bounds_"):
            attack.clip_bounds_ = self.bounds
        return attack

    @cached_property
    def surrogate(self):
        """A network trained on the answers of the model.

        None where it has one answer only, and for tables, of which a network knows nothing.
        """
        if self.space is not None:
            return None
        generator = np.random.default_rng(self.seed)
        count = min(_N_SURROGATE, max(100, _VALUES_SURROGATE // self.span.size))
        rows = np.sort(generator.permutation(len(self.values))[:count])
        values = self.values[rows].astype(np.float32)
        # it must know where the borders of the model run, not only what lies between them
        noisy = values + generator.uniform(-0.1, 0.1, values.shape) * self.span
        values = np.concatenate([values, np.clip(noisy, *self.bounds).astype(np.float32)])
        answers = self.predict(values)
        if len(np.unique(answers)) < 2:
            return None
        clf = StandardClassifier(max_epochs=20, random_state=self.seed, verbose=0)
        return clf.fit(values, answers)

    def encode(self, X):
        """Return samples like those of the problem as its `values` are."""
        return X if self.space is None else self.space.encode(X)

    def craft(self, attack, values, labels, keep):
        """Return what an attack makes of samples of the problem."""
        bounds = self.bounds if self.space is None else None
        run = attack.prepare(self.asked, values, labels, bounds=bounds, is_meant=False)
        X_adv, _ = run.attack.run(run, keep=keep)
        run.batches.warn()
        return X_adv if self.space is None else TableRows(X_adv, self.space)

    def robust(self, attack):
        """Return which samples are right and stay so under an attack."""
        robust = self.correct.copy()
        if robust.any():
            X, y = self.values[robust], self.y[robust]
            X_adv = self.craft(attack, X, y, "first")
            robust[robust] = self.predict(X_adv, attacked=True) == y
        return robust

    def gradient(self, objective, values, index):
        """Return the logits and the input gradient of an objective, or None where there is none.

        Unlike the gradients that attacks see, it still holds what is not finite.
        """
        victim = self.asked
        with self.seeded(), victim.frozen() as seen, torch.enable_grad():
            x = torch.from_numpy(np.array(values)).to(victim.device, victim.dtype)
            x.requires_grad_(True)
            logits = seen(x)
            value = OBJECTIVES[objective](logits, torch.from_numpy(index).to(victim.device)).sum()
            if not value.requires_grad:
                return None
            (gradient,) = torch.autograd.grad(value, x, allow_unused=True)
        if gradient is None:
            return None
        return logits.detach().cpu().double().numpy(), gradient.flatten(1).cpu().double().numpy()


def _read(X, space, attacks):
    """Return samples as an array, or as rows of a table."""
    given = [attack.space for attack in attacks if getattr(attack, "space", None) is not None]
    rows = read_table(X, given[0] if space is None and given else space)
    return check_floats(X) if rows is None else rows


def _threat_model(estimator, norm, eps, sample_shape, settled):
    """Return norm, eps and clip, from the attacks or the estimator where they are not given."""
    estimator = getattr(estimator, "best_estimator_", estimator)
    own = estimator.default_attack() if hasattr(estimator, "default_attack") else None
    clip = "auto" if own is None else own.clip
    if norm is None:
        norms = {check_norm(attack.norm, _NORMS) for attack in settled}
        if len(norms) > 1:
            raise ValueError(
                f"The attacks are of different norms ({sorted(norms)}): a report is about one "
                "threat model. Make one report for each norm."
            )
        own_norm = np.inf if own is None else own.norm
        norm = norms.pop() if norms else own_norm
    norm = check_norm(norm, _NORMS)
    if eps is None:
        given = [attack.eps for attack in settled if attack.eps is not None]
        for other in given[1:]:
            if not same_value(_plain(other), _plain(given[0])):
                raise ValueError(
                    f"The attacks are of different sizes (eps={given[0]!r} and {other!r}): a "
                    "report is about one threat model. Make one report for each eps."
                )
        if given:
            eps = given[0]
        elif own is not None and check_norm(own.norm) == norm:
            eps = own._effective_eps(norm, sample_shape)
    return norm, check_eps(eps, norm, sample_shape), clip


def _plain(eps: Any) -> np.ndarray | float:
    """Make 0.1, np.float32(0.1) and np.array(0.1) alike for comparison."""
    return np.asarray(eps, dtype=np.float64) if np.ndim(eps) else float(eps)


def _contradiction(attack, name, own, wanted):
    return (
        f"{name}={own!r} of {type(attack).__name__} contradicts {name}={wanted!r} of the report: "
        "a report is about one threat model. Leave it out in one of the two places."
    )
