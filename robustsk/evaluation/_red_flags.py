"""Signs that a model is less robust than the attacks make it look."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.stats import binom

from .._validation import check_count
from ..attacks.black_box.square import SquareAttack
from ..attacks.gradient._prediction import COUNT, SHARE, mispredicted
from ..attacks.gradient.fgsm import FGSM
from ..attacks.gradient.pgd import PGD
from ..attacks.gradient.scaled_pgd import ScaledPGD
from ..attacks.wrappers.transfer import TransferAttack
from ..victims.space import FeatureSpace
from ..victims.victim import is_probability
from ._problem import Problem

#: An attack that ought to be weaker may break this share of the samples that withstand the
#: stronger ones: no attack finds everything.
_SHARE = 0.01
#: The margin does beat cross-entropy by a few per cent on models without any fault.
_SHARE_OF_SCALING = 0.05
#: Probability of a false alarm of one check.
_ALPHA = 1e-3
#: Relative change of logits that is more than rounding.
_NOISE = 1e-4
#: Share of its own size by which a margin that depends on the input can change, to first order,
#: over the range of the data.
_FLAT = 1e-3
_N_PASSES = 5
_BATCH = 64
#: Whose robustness the black-box attacks should not undercut.
_WHITE_BOX = ("FGSM", "PGD-20", "PGD-20 (margin)", "PGD-100", "C&W", "EAD", "MIM", "FAB")


@dataclass(frozen=True)
class RedFlag:
    """The outcome of one check.

    Attributes
    ----------
    name : str
    fired : bool or None
        Whether something is wrong; None where the check does not apply.
    evidence : str
        What was found, with the numbers.
    advice : str
        What to do where it has fired.
    """

    name: str
    fired: bool | None
    evidence: str
    advice: str

    def __str__(self):
        status = {True: "FIRED", False: "silent", None: "not checked"}[self.fired]
        return f"{self.name}: {status}. {self.evidence}" + (f" {self.advice}" if self.fired else "")


def red_flags(
    estimator: Any,
    X: Any,
    y: ArrayLike | None,
    *,
    norm: Any = None,
    eps: Any = None,
    clip: Any = "auto",
    space: FeatureSpace | None = None,
    mask: ArrayLike | None = None,
    n_samples: int = 200,
    random_state: Any = 0,
) -> list[RedFlag]:
    """Look for signs that attacks fail for reasons other than robustness.

    A model whose gradients are masked withstands the attacks that follow
    gradients and falls to others. Each check compares what was found with what
    must hold for a model on which the attacks work.

    Parameters
    ----------
    estimator : fitted estimator or torch.nn.Module
        See :func:`robustsk.victims.as_victim`. Models without gradients get
        the checks that need none.
    X : array-like of shape (n_samples, ...) or torch Dataset
    y : array-like of shape (n_samples,)
        True labels.
    norm, eps, clip, space, mask
        The threat model, as in :func:`robustness_report`. Of a table only the
        numbers change in these checks.
    n_samples : int, default=200
        How many samples, drawn without replacement, are checked; this bounds
        the cost. Few samples can only show what is gross.
    random_state : int, RandomState or None, default=0

    Returns
    -------
    list of RedFlag
        One for each check, in a fixed order:

        - ``black_box_stronger``: the Square attack breaks samples that no
          gradient attack breaks;
        - ``transfer_stronger``: so do examples made against a surrogate that
          was trained on the answers of the model;
        - ``not_falling_to_chance``: accuracy stays above that of a constant
          guess although everything may be changed;
        - ``one_step_as_strong_as_many``: FGSM breaks more than PGD;
        - ``vanishing_gradients`` and ``non_finite_gradients``;
        - ``randomness``: forward passes differ;
        - ``logit_scaling``: PGD breaks more once the logits are rescaled;
        - ``label_leaking``: FGSM with the true labels is weaker than with the
          predicted ones;
        - ``returns_probabilities``: a softmax stands before the loss;
        - ``gradient_does_not_predict``: within a part of `eps` the margin
          changes by something else than the gradient says.

    Notes
    -----
    Comparisons are between samples, not between accuracies, and fire where the
    count cannot be explained by chance (one-sided binomial tests at 0.001): an
    attack that ought to be weaker must break significantly more than 1 % of
    the samples that withstand the stronger ones, 5 % for the scaling of logits.

    References
    ----------
    Athalye, Carlini and Wagner (2018), "Obfuscated gradients give a false sense
    of security", Sec. 3.1; Carlini et al. (2019), "On evaluating adversarial
    robustness"; Kurakin, Goodfellow and Bengio (2017), "Adversarial machine
    learning at scale", Sec. 4.3, for label leaking.

    Examples
    --------
    >>> import torch
    >>> from sklearn.datasets import load_iris
    >>> from robustsk.evaluation import red_flags
    >>> X, y = load_iris(return_X_y=True)
    >>> class Rounded(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.petal = torch.nn.Parameter(torch.tensor([-1.0, 0.0, 1.0]).double())
    ...     def forward(self, x):
    ...         return -(x[:, 2:3].round() - 3.5 - 2 * self.petal) ** 2
    >>> flags = {flag.name: flag for flag in red_flags(Rounded(), X, y, eps=0.5)}
    >>> flags["vanishing_gradients"].fired
    True
    """
    problem = Problem(
        estimator,
        X,
        y,
        norm=norm,
        eps=eps,
        clip=clip,
        random_state=random_state,
        space=space,
        mask=mask,
    )
    return raise_flags(Probe(problem, n_samples))


class Probe:
    """The samples that are checked, and what is known about them.

    Parameters
    ----------
    problem : Problem
    n_samples : int
    known : dict of str to ndarray of shape (n,)
        Which samples of `problem` withstand the default attacks, by name.
    """

    def __init__(self, problem, n_samples, known=None):
        if problem.space is not None:
            # what follows gradients changes numbers only, and is not to be blamed for that
            problem, known = problem.of_numbers(), None
        n_samples = check_count(n_samples, "n_samples")
        rows = np.arange(len(problem.y))
        if n_samples < len(rows):
            rows = np.random.default_rng(problem.seed).choice(rows, n_samples, replace=False)
            rows.sort()
        self.whole = problem
        self.problem = problem.take(rows)
        self.known = {name: robust[rows] for name, robust in (known or {}).items()}
        self.n_correct = int(self.problem.correct.sum())

    def robust(self, name, cls, **own):
        """Return who withstands an attack, from the report if it has been run there."""
        if name not in self.known:
            self.known[name] = self.problem.robust(self.problem.attack(cls, **own))
        return self.known[name]

    def fgsm(self):
        """Return who withstands FGSM."""
        return self.robust("FGSM", FGSM)

    def pgd(self):
        """Return who withstands PGD on the cross-entropy."""
        return self.robust("PGD-20", PGD, n_steps=20)

    @cached_property
    def white_box(self):
        """Who withstands all attacks that follow gradients."""
        self.fgsm(), self.pgd()
        self.robust("PGD-20 (margin)", PGD, n_steps=20, objective="cw")
        return np.logical_and.reduce([self.known[n] for n in _WHITE_BOX if n in self.known])

    @cached_property
    def answers(self):
        """Logits of several forward passes, shape (n_passes, n, n_classes)."""
        values = self.problem.values
        batches = [values[start : start + _BATCH] for start in range(0, len(values), _BATCH)]
        with self.problem.seeded():
            passes = [
                torch.cat([self.problem.asked.logits(batch) for batch in batches])
                for _ in range(_N_PASSES)
            ]
        return torch.stack(passes).double().numpy()

    @cached_property
    def randomness(self):
        """Whether forward passes differ, and what was found."""
        with np.errstate(invalid="ignore"):
            change = np.ptp(self.answers, axis=0)
        change = np.where(np.isnan(change), 0.0, change)
        spread = np.nanstd(np.where(np.isfinite(self.answers[0]), self.answers[0], np.nan))
        labels = self.answers.argmax(-1)
        flipped = int((labels != labels[0]).any(0).sum())
        return bool(change.max() > _NOISE * spread), (
            f"In {_N_PASSES} forward passes a logit changes by up to {change.max():.2g} (their "
            f"standard deviation is {spread:.2g}) and {flipped} of {len(labels[0])} predictions "
            "change."
        )

    @cached_property
    def gradients(self):
        """What the input gradients are like at the samples classified correctly.

        For cross-entropy and margin: whether gradient and logits are finite,
        the largest entry of the gradient, the change over the range of the
        data, to first order, and the margin, each of shape (n_correct,).
        """
        problem = self.problem.take(self.problem.correct)
        found = {}
        for objective in ("ce", "cw"):
            parts = []
            for start in range(0, len(problem.y), _BATCH):
                rows = slice(start, start + _BATCH)
                index = problem.index[rows]
                logits, gradient = problem.gradient(objective, problem.values[rows], index)
                finite = np.isfinite(logits).all(1) & np.isfinite(gradient).all(1)
                size = np.abs(gradient)
                change = (size * problem.span.ravel()).sum(1)
                parts.append((finite, size.max(1), change, lead(logits, index)))
            found[objective] = [np.concatenate(values) for values in zip(*parts, strict=True)]
        return found

    def missing(self, needs):
        """Return why a check cannot be made, or None."""
        if "correct" in needs and self.n_correct == 0:
            return "No sample is classified correctly without an attack."
        if "gradients" in needs and self.problem.no_gradient:
            return f"Needs gradients, and {self.problem.no_gradient}."
        if "norm" in needs and self.problem.norm not in PGD.supported_norms:
            return f"Not defined for norm={self.problem.norm:g}."
        if "repeatable" in needs and self.randomness[0]:
            return "Samples cannot be compared: the model answers at random (see randomness)."
        return None


def raise_flags(probe, names=None):
    """Make all checks, or those of some names; return a list of :class:`RedFlag`."""
    found = []
    for name in _CHECKS if names is None else names:
        check = _CHECKS[name]
        reason = probe.missing(check.needs)
        fired, evidence = (None, reason) if reason else check.function(probe)
        found.append(RedFlag(name, fired, evidence, check.advice))
    return found


def _exceeds(count, n, share, alpha=_ALPHA):
    """Return whether `count` of `n` is significantly more than `share`."""
    return bool(n and binom.sf(count - 1, n, share) < alpha)


# --- the checks ----------------------------------------------------------------------


def _black_box_stronger(probe):
    problem = probe.problem
    if problem.norm not in SquareAttack.supported_norms:
        return None, f"The Square attack does not know norm={problem.norm:g}."
    # stronger, it would beat weaker attacks on models without any fault
    robust = probe.robust("Square", SquareAttack, max_queries=500, rescale_schedule=False)
    return _undercuts(probe, robust, "the Square attack, which sees scores only,")


def _undercuts(probe, robust, who):
    only = int((probe.white_box & ~robust).sum())
    return _exceeds(only, probe.n_correct, _SHARE), (
        f"Of {probe.n_correct} samples classified correctly, {who} breaks "
        f"{probe.n_correct - int(robust.sum())} and the gradient attacks together "
        f"{probe.n_correct - int(probe.white_box.sum())}; {only} break only under the former."
    )


def _transfer_stronger(probe):
    problem, surrogate = probe.problem, probe.whole.surrogate
    if problem.space is not None:
        return None, "No surrogate is trained for tables."
    if surrogate is None:
        return None, "The model gives one answer only: no surrogate can be trained."
    attack = TransferAttack(attack=PGD(n_steps=20), surrogate=surrogate)
    robust = problem.robust(problem.complete(attack))
    agreement = float((surrogate.predict(problem.values) == problem.y_pred).mean())
    fired, evidence = _undercuts(probe, robust, "transfer from a surrogate")
    return fired, f"{evidence} The surrogate agrees with the model on {agreement:.0%}."


def _not_falling_to_chance(probe):
    problem = probe.problem
    if np.any(np.asarray(problem.eps) == 0):
        return None, "Some features may not change at all."
    if problem.access == "labels":
        return None, f"{problem.name} gives labels only."
    counts = np.unique(problem.y, return_counts=True)[1]
    chance = counts.max() / counts.sum()
    found = {}
    for share in (0.5, 1.0):
        if problem.victim is None:
            if problem.norm not in SquareAttack.supported_norms:
                return None, f"The Square attack does not know norm={problem.norm:g}."
            attack = problem.attack(SquareAttack, max_queries=500)
        else:
            attack = problem.attack(PGD, n_steps=20)
        attack.eps = problem.largest(share)
        found[share] = int(problem.robust(attack).sum())
    least, n = min(found.values()), len(problem.y)
    return _exceeds(least, n, chance), (
        f"Under {type(attack).__name__} within half the range of the data the accuracy is "
        f"{found[0.5] / n:.3f}, within the whole range {found[1.0] / n:.3f}; a constant guess "
        f"has {chance:.3f}."
    )


def _one_step_as_strong_as_many(probe):
    one, many = probe.fgsm(), probe.pgd()
    only_one, only_many = int((many & ~one).sum()), int((one & ~many).sum())
    return only_one > only_many and _exceeds(only_one, probe.n_correct, _SHARE), (
        f"Of {probe.n_correct} samples classified correctly, {only_one} break under one step "
        f"(FGSM) and not under 20 (PGD), {only_many} the other way round."
    )


def _vanishing_gradients(probe):
    problem = probe.problem
    if problem.cut:
        return True, (
            f"No gradient reaches the input of {problem.name}: something is detached or not "
            "differentiable."
        )
    if problem.no_gradient:
        return None, f"Needs gradients, and {problem.no_gradient}."
    if probe.n_correct == 0:
        return None, "No sample is classified correctly without an attack."
    # what is not finite is the business of another check, and false in these comparisons
    no_loss = probe.gradients["ce"][1] < torch.finfo(problem.victim.dtype).tiny
    _, _, change, lead = probe.gradients["cw"]
    no_margin = change <= _FLAT * np.abs(lead)
    n = probe.n_correct
    return bool(_exceeds(int((no_loss | no_margin).sum()), n, _SHARE)), (
        f"Of {n} samples classified correctly, the gradient of the cross-entropy is zero at "
        f"{int(no_loss.sum())} and that of the margin next to zero at {int(no_margin.sum())}."
    )


def lead(logits, index):
    """Return the margin between the logit `index` and the best of the others, shape (n,)."""
    own = np.eye(logits.shape[1], dtype=bool)[index]
    return logits[own] - np.where(own, -np.inf, logits).max(1)


def _gradient_does_not_predict(probe):
    problem = probe.problem.take(probe.problem.correct)
    reach, wrong, told = problem.attack(PGD).reach, [], []
    with problem.seeded(), problem.asked.frozen() as seen:
        for start in range(0, len(problem.y), _BATCH):
            rows = slice(start, start + _BATCH)
            x = torch.from_numpy(np.array(problem.values[rows])).to(seen.device, seen.dtype)
            y = torch.from_numpy(problem.index[rows]).to(seen.device)
            _, *parts = mispredicted(seen, x, y, reach(x, problem.bounds))
            wrong.append(parts[0].cpu())
            told.append(parts[1].cpu())
    count, n = int(torch.cat(wrong).sum()), int(torch.cat(told).sum())
    if n == 0:
        return None, "Within a part of eps the margin changes by no more than rounding."
    return count > max(SHARE * n, COUNT), (
        f"Of {n} samples classified correctly whose margin changes within a part of eps, the "
        f"gradient mispredicts the change by more than a factor of 5 at {count}."
    )


def _non_finite_gradients(probe):
    bad = ~(probe.gradients["ce"][0] & probe.gradients["cw"][0])
    return bool(bad.any()), (
        f"At {int(bad.sum())} of {len(bad)} samples classified correctly a logit or a gradient is "
        "infinite or not a number."
    )


def _logit_scaling(probe):
    problem, n = probe.problem, probe.n_correct
    # two runs on either side
    plain = probe.pgd() & probe.robust("PGD-20 twice", PGD, n_steps=20, n_restarts=2)
    scaled = probe.robust("ScaledPGD", ScaledPGD, n_steps=20, scales=(1.0, 10.0))
    only = int((plain & ~scaled).sum())
    median = np.median(lead(probe.answers[0][problem.correct], problem.index[problem.correct]))
    return _exceeds(only, n, _SHARE_OF_SCALING), (
        f"The first logit leads by {median:.3g} (median). Of {n} samples classified correctly, PGD "
        f"breaks {n - int(plain.sum())} as it is and {n - int(scaled.sum())} with the lead scaled "
        f"to 1 and to 10; {only} break only with scaling."
    )


def _label_leaking(probe):
    whole = probe.whole
    rows = np.flatnonzero(~whole.correct)[: len(probe.problem.y)]
    if len(rows) == 0:
        return False, "No sample is misclassified without an attack."
    # where the prediction is right the two attacks are the same
    wrong = whole.take(rows)
    right = {}
    for name, labels in (("true", wrong.y), ("predicted", wrong.y_pred)):
        X_adv = wrong.craft(wrong.attack(FGSM), wrong.values, labels, "last")
        right[name] = wrong.predict(X_adv, attacked=True) == wrong.y
    only_true = int((right["true"] & ~right["predicted"]).sum())
    only_predicted = int((right["predicted"] & ~right["true"]).sum())
    return _exceeds(only_true, only_true + only_predicted, 0.5), (
        f"FGSM with the true labels puts right {int(right['true'].sum())} of {len(rows)} "
        f"misclassified samples, with the predicted labels {int(right['predicted'].sum())}."
    )


def _randomness(probe):
    return probe.randomness


def _returns_probabilities(probe):
    if not probe.problem.asked.differentiable:
        return None, "Attacks do not see what is inside of the model."
    fired = len(probe.answers[0]) > 1 and is_probability(torch.from_numpy(probe.answers[0]))
    sums = probe.answers[0].sum(1)
    return fired, (
        f"The outputs lie between {probe.answers[0].min():.3g} and {probe.answers[0].max():.3g}; "
        f"their sums over classes between {sums.min():.3g} and {sums.max():.3g}."
    )


class _Check(NamedTuple):
    function: Callable
    needs: tuple[str, ...]
    advice: str


_CHECKS = {
    "black_box_stronger": _Check(
        _black_box_stronger,
        ("gradients", "correct", "norm", "repeatable"),
        "The gradients mislead: report the worst case over black-box attacks too, and attack "
        "through a differentiable stand-in of the step that hides them (BPDA).",
    ),
    "transfer_stronger": _Check(
        _transfer_stronger,
        ("gradients", "correct", "norm", "repeatable"),
        "The gradients mislead: report TransferAttack as well, and attack through a differentiable "
        "stand-in of the step that hides them (BPDA).",
    ),
    "not_falling_to_chance": _Check(
        _not_falling_to_chance,
        ("correct", "norm"),
        "Within such a ball every image can be turned into any other, so the attack fails, not "
        "the adversary: look for hidden gradients, raise n_steps, try other objectives.",
    ),
    "one_step_as_strong_as_many": _Check(
        _one_step_as_strong_as_many,
        ("gradients", "correct", "norm", "repeatable"),
        "Gradients change within the ball in a way that leads the steps astray: use more restarts, "
        "other step sizes, and black-box attacks.",
    ),
    "vanishing_gradients": _Check(
        _vanishing_gradients,
        (),
        "Attacks that follow gradients do nothing on these samples: attack the logits (objective "
        "'cw' or 'dlr', scaled logits), replace what is rounded or saturated by a differentiable "
        "stand-in (BPDA), use black-box attacks.",
    ),
    "non_finite_gradients": _Check(
        _non_finite_gradients,
        ("gradients", "correct"),
        "Attacks take such gradients for zero: look for square roots and logarithms of zero, "
        "divisions by zero and overflow in the model.",
    ),
    "randomness": _Check(
        _randomness,
        (),
        "Average gradients over several passes (EOT), judge every example several times, and do "
        "not trust the worst case over attacks, which also counts bad luck. Remove the randomness "
        "if it is not meant.",
    ),
    "logit_scaling": _Check(
        _logit_scaling,
        ("gradients", "correct", "norm", "repeatable"),
        "The loss saturates: use a loss that does not depend on the scale of the logits (objective "
        "'dlr', AutoAttack), or ScaledPGD.",
    ),
    "label_leaking": _Check(
        _label_leaking,
        ("gradients", "norm", "repeatable"),
        "The model reads the label off the perturbation: train it with predicted labels or more "
        "than one step, and do not report FGSM.",
    ),
    "returns_probabilities": _Check(
        _returns_probabilities,
        (),
        "Remove the softmax from the module, or return its logarithm: gradients through a softmax "
        "vanish on confident predictions.",
    ),
    "gradient_does_not_predict": _Check(
        _gradient_does_not_predict,
        ("gradients", "correct", "norm", "repeatable"),
        "The gradient says nothing about what is a step away, and attacks that follow it are led "
        "astray: the robust accuracy is an upper bound. Use black-box attacks, and a "
        "differentiable stand-in of the step that hides the slope (BPDA).",
    ),
}
