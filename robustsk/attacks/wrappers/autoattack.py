"""AutoAttack: several attacks one after the other, and the worst case of each sample."""

from __future__ import annotations

import os
import time
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from tabulate import tabulate
from tqdm import tqdm

from ..._containers import Batches, chunks, copy_of, dataset_labels, is_dataset
from ..._validation import check_count
from ...losses import margin
from ...victims._outputs import predicted_class
from ...victims.victim import ACCESS, STRAIGHT_THROUGH
from ..base import BaseAttack
from ..gradient._prediction import COUNT, SHARE, mispredicted
from ..noise import SampleNoise
from ..targeting import choose_target, encode_target
from ..threat import check_norm
from ._cascade import (
    LOST_GRADIENTS,
    SHARED,
    WITHOUT_EFFECT,
    Stage,
    custom_stages,
    fast_stages,
    in_batches,
    plus_stages,
    predicted_classes,
    rand_stages,
    standard_stages,
)
from ._state import StageResult, State, fingerprint

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._parameters import AttackParameters

VERSIONS = ("standard", "plus", "rand", "fast", "custom")
#: Which share of the samples attacked black-box and minimum-norm attacks may break after the
#: gradient attacks without an alarm.
_ALARM_SHARE = 0.002


@dataclass(frozen=True)
class AutoAttackResult:
    """Result of :meth:`AutoAttack.evaluate`.

    Attributes
    ----------
    version : str
    clean_accuracy, robust_accuracy : float
    stages : list of StageResult
    stage : ndarray of int of shape (n_samples,)
        Index of the attack that fooled the model; -1 where none did, and -2
        where the model was wrong without an attack.
    X_adv : ndarray of shape (n_samples, ...)
        In a temporary file if the samples are many and not in memory.
    """

    version: str
    clean_accuracy: float
    robust_accuracy: float
    stages: list[StageResult]
    stage: np.ndarray = field(repr=False)
    X_adv: np.ndarray = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers, without the arrays."""
        return {
            "version": self.version,
            "clean_accuracy": self.clean_accuracy,
            "robust_accuracy": self.robust_accuracy,
            "stages": [asdict(stage) for stage in self.stages],
        }

    def __str__(self):
        names = ("n_forward", "n_backward", "seconds")
        total = [sum(getattr(stage, name) for stage in self.stages) for name in names]
        return tabulate(
            [
                ("clean", len(self.stage), None, self.clean_accuracy),
                *(astuple(stage) for stage in self.stages),
                (self.version, None, None, self.robust_accuracy, *total),
            ],
            ("", "attacked", "fooled", "accuracy", "forward", "backward", "seconds"),
            tablefmt="plain",
            floatfmt=("", "", "", ".4f", "", "", ".1f"),
        )


class BaseCascade(BaseAttack):
    """Base class of the ensembles of attacks, each of which gets what the others have left.

    Subclasses define `version` and `_stages`.
    """

    #: Effort goes to the samples that are closest to the border.
    whole_runs = True

    #: What the result is called.
    version = ""

    def __init__(
        self,
        estimator: Any = None,
        *,
        individual: bool = False,
        state_path: str | os.PathLike | None = None,
        **common: Unpack[AttackParameters],
    ):
        super().__init__(estimator, **common)
        self.individual = individual
        self.state_path = state_path

    @abstractmethod
    def _stages(self, n_classes):
        """Return what is run on a model with so many classes, a list of Stage."""

    # --- the cascade -----------------------------------------------------------------

    def _cascade(self, stages, attack_rows, seed, state, victim, n_classes, size):
        """Run the stages, each on the samples that are left, `size` at a time."""
        queue, number = list(stages), 0
        while number < len(queue):
            stage = queue[number]
            if len(state.doubted):
                state.repeat(number, attack_rows, stage.attack)
            if number == len(state.log):
                if state.todo is None:
                    state.begin(self._chosen(stage, state, seed + number))
                with tqdm(
                    total=len(state.todo),
                    initial=state.position,
                    desc=stage.name,
                    unit="sample",
                    disable=not self.verbose,
                ) as progress:
                    while state.position < len(state.todo):
                        rows = state.todo[state.position : state.position + size]
                        start, before = time.perf_counter(), replace(victim.calls)
                        found = attack_rows(stage.attack, number, rows)
                        spent = [
                            victim.calls.forward - before.forward,
                            victim.calls.backward - before.backward,
                            time.perf_counter() - start,
                        ]
                        state.record(number, rows, *found, spent)
                        progress.update(len(rows))
                        progress.set_postfix(robust=f"{np.mean(state.stage < 0):.4f}")
                state.finish(stage.name, self.individual)
            queue += self._more(stage, state.log[number], queue, n_classes)
            number += 1

    def _more(self, stage, result, queue, n_classes):
        """Return the stages to append if this one has found what it should not."""
        misled = result.n_fooled > max(stage.tolerance, _ALARM_SHARE * result.n_attacked)
        if not stage.alarm or self.individual:
            return []
        if not misled:
            if not result.n_fooled or not stage.once_more:
                return []
            name = f"{stage.name}, once more"
            again = {"sample": stage.once_more, "tolerance": 0, "once_more": 0}
            return [replace(stage, name=name, **again)]
        message = (
            f"{stage.name} fooled {result.n_fooled} of {result.n_attacked} samples that the "
            "attacks before it had left: gradients may mislead here."
        )
        if self.version != "fast" or any(s.name == "APGD-CE" for s in queue):
            warnings.warn(message, UserWarning, stacklevel=4)
            return []
        warnings.warn(f"{message} All standard attacks are run now.", UserWarning, stacklevel=4)
        return standard_stages(check_norm(self.norm, self.supported_norms), n_classes)

    def _chosen(self, stage, state, seed):
        """Return the samples that a stage attacks."""
        if self.individual:
            return np.arange(len(state.stage))
        left = np.flatnonzero(state.stage < 0)
        generator = np.random.RandomState(seed % 2**32)
        if stage.sample is not None:
            return np.sort(generator.permutation(left)[: stage.sample])
        if stage.fraction == 1.0:
            return left
        count = max(stage.at_least, int(np.ceil(stage.fraction * len(left))))
        closest = left[np.argsort(-state.margin[left], kind="stable")]
        chosen, others = closest[:count], closest[count:]
        n_others = max(stage.at_random, int(np.ceil(stage.spot_check * len(left))))
        extra = generator.permutation(others)[:n_others]
        return np.sort(np.concatenate([chosen, extra]))

    # --- the two faces ---------------------------------------------------------------

    def evaluate(self, X: Any, y: ArrayLike | None = None) -> AutoAttackResult:
        """Attack a data set and tell what each attack did.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...) or torch Dataset
            A memory-mapped array or a Dataset is read batch by batch.
        y : array-like of shape (n_samples,)
            True labels; those of the Dataset if None.

        Returns
        -------
        AutoAttackResult
            Its `str` is a table with one line per attack.
        """
        if is_dataset(X) and y is None:
            y = dataset_labels(X)
        if y is None:
            raise ValueError("evaluate needs the true labels y.")
        prepared = self._prepare_own(X, y)
        values, victim = prepared.X, prepared.victim
        with prepared.seeded():
            correct = predicted_classes(victim, values, prepared.batches) == prepared.index
        stage, X_adv, log = np.full(len(correct), -2), copy_of(values), []
        if correct.any():
            state = prepared.attack._run(prepared.take(correct))
            stage[correct], X_adv[correct], log = state.stage, state.X_adv, state.log
        prepared.batches.warn(3)
        # counts, so that equal shares are equal numbers
        left = [round(entry.robust_accuracy * correct.sum()) / len(correct) for entry in log]
        return AutoAttackResult(
            version=self.version,
            clean_accuracy=float(correct.mean()),
            robust_accuracy=float(np.mean(stage == -1)),
            stages=[replace(e, robust_accuracy=float(a)) for e, a in zip(log, left, strict=True)],
            stage=stage,
            X_adv=X_adv,
        )

    def run(self, prepared, keep="worst"):
        """Attack validated arrays stage by stage; see :meth:`BaseAttack.run`.

        Parameters
        ----------
        prepared : Prepared
        keep : {"last", "worst", "first"}, default="worst"
            Without a meaning here: a sample that is fooled is done.

        Returns
        -------
        X_adv : ndarray of the shape and dtype of the samples
        info : dict of str to ndarray
        """
        state = self._run(prepared)
        return state.X_adv, {"stage": state.stage}

    def perturb_prepared(
        self, prepared, x, y=None, objective=None, *, seed=None, trace=False, **known
    ):
        """Attack one batch of tensors; see :meth:`BaseAttack.perturb`.

        Parameters
        ----------
        prepared : Prepared
        x, y, objective, seed, **known
            As there; the stages have objectives of their own.
        trace : bool, default=False
            No path is reported: the stages go several.

        Returns
        -------
        x_adv : torch.Tensor of the shape of `x`
        info : dict of str to torch.Tensor
        """
        if isinstance(trace, str):
            raise ValueError(
                f"return_info={trace!r}: ask the attacks of {type(self).__name__} one by one."
            )
        if len(x) == 0:
            return x.detach().clone(), {}
        values, victim = x.detach().cpu().numpy(), prepared.victim
        attack = self if seed is None else self._with(random_state=seed)
        state = attack._run(
            replace(
                prepared,
                attack=attack,
                X=values,
                index=None if y is None else y.cpu().numpy(),
                target=encode_target(self.target, victim.learn_classes(values), len(values)),
                batches=Batches(self._n_at_a_time(values, victim)),
                seed=attack._draw_seed(),
            )
        )
        return torch.from_numpy(state.X_adv).to(x), {"stage": torch.from_numpy(state.stage)}

    def _attack_batch(self, batch):
        raise TypeError(
            f"{type(self).__name__} is a whole evaluation and cannot be part of another attack."
        )

    def _run(self, prepared):
        X, victim, batches = prepared.X, prepared.victim, prepared.batches
        n_classes = len(victim.learn_classes(X))
        stages = self._stages(n_classes)
        index = prepared.index
        if index is None:
            with prepared.seeded():
                index = predicted_classes(victim, X, batches)
        known = None
        if self.state_path is not None:
            known = fingerprint(self, prepared, index, WITHOUT_EFFECT, SHARED)
        state = State(X, known, prepared.seed, self.state_path)
        seed = state.seed
        target = prepared.target
        if target is None and self.target is not None:
            target = self._chosen_targets(X, index, victim, seed, batches)
        settings = {name: getattr(self, name) for name in SHARED}
        if self.eps is None:  # which means something else to an attack for the closest example
            settings["eps"] = prepared.eps
        if target is not None:
            settings["target"] = victim.classes[target]

        def attack_rows(attack, number, rows):
            given = {} if target is None else dict.fromkeys(attack.target_parameters)
            attack = attack._with(**settings, **given, random_state=seed + number)
            part = (
                self._prepared_for(attack, prepared)
                .take(rows)
                .by(
                    attack,
                    index=index[rows],
                    target=None if target is None else target[rows],
                )
            )
            found, _ = part.attack.run(part, keep="first")
            with prepared.seeded():
                logits = in_batches(prepared.victim, found, batches).double()
            own = torch.from_numpy((index if target is None else target)[rows])
            margins = margin(logits, own).numpy() * (1 if target is None else -1)
            # a tie goes to the class that argmax names
            hit = (predicted_class(logits) == own).numpy() != (target is None)
            return found, hit, margins

        with victim.frozen(self.bn_mode, self._engine()) as seen:
            prepared = replace(prepared, victim=seen)
            if state.is_loaded:
                with prepared.seeded():
                    self._ask_again(state, prepared, index, target)
            if self.access == "gradients":
                with prepared.seeded():
                    stages = self._checked(stages, prepared, index, n_classes)
            self._cascade(stages, attack_rows, seed, state, seen, n_classes, batches.first)
        return state

    def _prepared_for(self, attack, prepared):
        """Return the run as an attack is to have it."""
        return prepared

    def _chosen_targets(self, X, index, victim, seed, batches):
        """Return the class to reach for every sample, decided on the clean predictions."""
        target = np.empty_like(index)

        def choose(rows):
            x = np.array(X[rows])
            noise = SampleNoise(torch.from_numpy(x), seed)
            own = torch.from_numpy(index[rows])
            target[rows] = choose_target(self.target, victim.logits(x), own, noise).numpy()

        batches.run(choose, len(X))
        return target

    def _ask_again(self, state, prepared, index, target):
        """Have the samples attacked again of whose examples a file does not tell the truth.

        Those that are out of the ball or the range, those that are said to fool the model and do
        not, and those that fool it and are said not to.
        """
        X, wrong = prepared.X, np.zeros(len(state.stage), dtype=bool)
        for rows in chunks(X):
            found, clean = (torch.from_numpy(np.array(v[rows])) for v in (state.X_adv, X))
            valid = prepared.settle(found, clean, clean)
            # what is not finite is near to nothing
            near = (found - valid).abs() <= 1e-6 * (clean.abs() + (valid - clean).abs())
            wrong[rows] = ~near.flatten(1).all(1).numpy()
        first, second = (
            in_batches(prepared.victim, state.X_adv, prepared.batches).argmax(1).numpy()
            for _ in range(2)
        )
        if np.array_equal(first, second):  # a random model may change its mind
            hit = first != index if target is None else first == target
            wrong |= (hit != (state.stage >= 0)) & (state.margin > -np.inf)
        if not wrong.any():
            return
        warnings.warn(
            f"{wrong.sum()} of {len(wrong)} examples in state_path={os.fspath(self.state_path)!r} "
            "are not what the file says: they leave the ball or the valid range, or the model "
            "answers otherwise. These samples are attacked again.",
            UserWarning,
            stacklevel=4,
        )
        if self.individual:  # nobody can say what each attack had achieved
            state.begin_anew(X)
        else:
            state.doubt(np.flatnonzero(wrong), X)

    def _checked(self, stages, prepared, index, n_classes):
        """Look for what misleads gradients; return the stages to run."""
        X, victim, batches = prepared.X, prepared.victim, prepared.batches
        few = X[:64]
        first, second = in_batches(victim, few, batches), in_batches(victim, few, batches)
        scale = first.abs().max().clamp_min(1e-12)
        if self.version != "rand" and (first - second).abs().max() > 1e-4 * scale:
            message = (
                f"{victim.name} answers the same question differently from one time to the next: "
                "its randomness hides gradients. Use version='rand'."
            )
            if self.version == "fast":
                raise ValueError(message)
            warnings.warn(message, UserWarning, stacklevel=4)
        few, sizes, wrong, told = X[:200], [], [], []

        def look(rows):
            x = torch.from_numpy(np.array(few[rows])).to(victim.device, victim.dtype)
            y = torch.from_numpy(index[rows]).to(x.device)
            gradient, *found = mispredicted(victim, x, y, prepared.ball(x))
            sizes.append(gradient.flatten(1).abs().amax(1))
            wrong.append(found[0])
            told.append(found[1])

        batches.run(look, len(few))
        size = torch.cat(sizes)
        lost = float(((size == 0) | ~torch.isfinite(size)).double().mean())
        wrong, told = int(torch.cat(wrong).sum()), int(torch.cat(told).sum())
        if lost > LOST_GRADIENTS:
            message = (
                f"The gradient of the margin is zero or not finite for {lost:.1%} of the samples: "
                "attacks that follow it will find little, and the result may be far too high."
            )
        elif wrong > max(SHARE * told, COUNT):
            message = (
                f"The gradient of the margin mispredicts what happens within a part of eps for "
                f"{wrong} of {told} samples: attacks that follow it are led astray, and the "
                "result may be far too high."
            )
        else:
            return stages
        warnings.warn(message, UserWarning, stacklevel=4)
        if self.version == "fast":
            return standard_stages(check_norm(self.norm, self.supported_norms), n_classes)
        return stages


class AutoAttack(BaseCascade):
    """Parameter-free ensemble of attacks; the worst case of each sample counts.

    Each attack runs on the samples that all attacks before it have failed to
    fool. With ``version="standard"`` these are APGD on cross-entropy, targeted
    APGD on the difference of logits ratio, targeted FAB and Square: the number
    that papers report.

    Parameters
    ----------
    %(first_parameter)s
    version : {"standard", "plus", "rand", "fast", "custom"}, default="standard"
        - "standard": see above; in the 1-norm with 5 restarts of APGD and 5
          targets.
        - "plus": six attacks with more restarts, for suspicious models.
        - "rand": APGD on two objectives with gradients averaged over 20
          draws, for models that answer at random.
        - "fast": a cascade at a small part of the cost; see Notes. Report it
          as "fast", not as AutoAttack.
        - "custom": the attacks in `attacks`.
    attacks : list of attacks or of (name, attack) pairs, default=None
        What ``version="custom"`` runs, in this order. The threat model of
        these attacks is overridden by that of this one.
    individual : bool, default=False
        Whether every attack runs on all samples, so that the log shows what
        each would achieve alone.
    audit : int, default=0
        In the fast version, number of randomly chosen survivors on which the
        standard attacks are run after all.
    state_path : str or path-like, default=None
        File in which `evaluate` and `generate` keep what has been achieved. A
        run that was interrupted continues from there if model, data and
        parameters are the same.
    %(shared_parameters)s

    %(shared_attributes)s

    Notes
    -----
    With fewer than four classes (three without a target) the difference of
    logits ratio does not exist and the margin takes its place.

    The fast version orders attacks by what they break per gradient: a short
    untargeted margin ascent; targeted margins against the three most likely
    classes (the idea of the minimum-margin attack); restarts from spread
    starting points on the survivors closest to the border, fewer and fewer of
    them (adaptive auto attack), alternating between the margins of logits and
    of probabilities; targeted APGD on the closest ones; and finally a sample
    of the survivors is attacked by FAB and Square. If these still find
    something, or gradients vanish, it warns and runs the standard attacks on
    all survivors.

    ``info["stage"]`` is the index of the attack that succeeded, or -1.

    References
    ----------
    Croce and Hein (2020), "Reliable evaluation of adversarial robustness with
    an ensemble of diverse parameter-free attacks"; Croce and Hein (2021),
    "Mind the box: l1-APGD for sparse adversarial attacks on image
    classifiers". For the fast version: Gao et al. (2022), "Fast and reliable
    evaluation of adversarial robustness with minimum-margin attack"; Liu et
    al. (2022), "Practical evaluation of adversarial robustness via adaptive
    auto attack"; Xie et al. (2024), "Towards million-scale adversarial
    robustness evaluation with stronger individual attacks"; Tashiro, Song and
    Ermon (2020), "Diversity can be transferred: output diversification for
    white- and black-box attacks".

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from robustsk import AutoAttack
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = LogisticRegression(max_iter=1000).fit(X, y)
    >>> attack = AutoAttack(clf, eps=0.3, version="fast", random_state=0).fit(X)
    >>> result = attack.evaluate(X, y)
    >>> bool(result.robust_accuracy < result.clean_accuracy)
    True
    """

    def __init__(
        self,
        estimator: Any = None,
        *,
        version: str = "standard",
        attacks: Sequence[BaseAttack | tuple[str, BaseAttack]] | None = None,
        individual: bool = False,
        audit: int = 0,
        state_path: str | os.PathLike | None = None,
        **common: Unpack[AttackParameters],
    ):
        super().__init__(estimator, individual=individual, state_path=state_path, **common)
        self.version = version
        self.attacks = attacks
        self.audit = audit

    @property
    def remark(self):
        """What whoever reads a report must know about the result."""
        if self.version != "fast":
            return None
        return "a cheaper cascade than the AutoAttack of the literature"

    def _stages(self, n_classes):
        norm = check_norm(self.norm, self.supported_norms)
        if self.version not in VERSIONS:
            raise ValueError(f"version must be one of {VERSIONS}, got {self.version!r}.")
        if (self.attacks is None) == (self.version == "custom"):
            raise ValueError(
                f"version={self.version!r} and attacks={self.attacks!r}: attacks are given if and "
                "only if version is 'custom'."
            )
        if self.version == "custom":
            return custom_stages(self.attacks)
        stages = {
            "standard": standard_stages,
            "plus": plus_stages,
            "rand": rand_stages,
            "fast": fast_stages,
        }[self.version]
        found = stages(norm, n_classes)
        if self.version == "fast" and self.audit:
            audit = AutoAttack(version="standard")
            found.append(Stage("audit", audit, sample=check_count(self.audit, "audit")))
        return found

    @property
    def access(self):
        """What is needed of the victim: the most that one of the attacks needs."""
        if self.version != "custom" or self.attacks is None:
            return "gradients"
        needed = {stage.attack.access for stage in custom_stages(self.attacks)}
        order = (ACCESS[0], STRAIGHT_THROUGH, *ACCESS[1:])
        return next(access for access in order if access in needed)
