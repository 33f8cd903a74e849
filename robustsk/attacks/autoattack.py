"""AutoAttack: several attacks one after the other, and the worst case of each sample."""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.utils.validation import check_consistent_length
from tqdm import tqdm

from .._containers import (
    Batches,
    check_labels,
    chunks,
    copy_of,
    dataset_labels,
    is_dataset,
    take,
)
from ..losses import margin
from ._margin import MarginPGD
from ._noise import SampleNoise
from .apgd import APGD
from .base import (
    BY_PREDICTION,
    BaseAttack,
    check_attack,
    check_count,
    choose_target,
    encode_labels,
    restrict_targets,
)
from .eot import EOT
from .fab import FAB
from .square import SquareAttack
from .targets import ACCESS, as_victim
from .threat import check_norm

VERSIONS = ("standard", "plus", "rand", "fast", "custom")
#: How many samples, and which share of those attacked, black-box and
#: minimum-norm attacks may break after the gradient attacks without an alarm.
_ALARM_COUNT, _ALARM_SHARE = 2, 0.002
#: Share of samples that may have no gradient.
_LOST_GRADIENTS = 0.01
#: Shares of the survivors that are attacked again from other starting points.
_RESTART_FRACTIONS = (0.6, 0.4, 0.3, 0.2, 0.1, 0.05, *[0.03] * 8)
_MACHINE = ("compile", "batch_size", "device")
_SHARED = ("norm", "eps", "clip", "target", "mask", "bn_mode", "precision", *_MACHINE)
_WITHOUT_EFFECT = ("estimator", "verbose", "state_path", "random_state", *_MACHINE)
_SAVE_EVERY = 30.0  # seconds


@dataclass(frozen=True)
class Stage:
    """One attack of the cascade.

    Parameters
    ----------
    name : str
    attack : BaseAttack
    fraction : float, default=1.0
        Share of the survivors that is attacked: those closest to being fooled.
    at_least : int, default=8
        Smallest number of samples that `fraction` may mean.
    spot_check : float, default=0.0
        Share of the other survivors that is attacked as well.
    sample : int, optional
        Attack so many survivors drawn at random instead.
    alarm : bool, default=False
        Whether a success here means that the attacks before were misled.
    """

    name: str
    attack: BaseAttack
    fraction: float = 1.0
    at_least: int = 8
    spot_check: float = 0.0
    sample: int | None = None
    alarm: bool = False


@dataclass(frozen=True)
class StageResult:
    """What one attack of the cascade did.

    Attributes
    ----------
    name : str
    n_attacked, n_fooled : int
    robust_accuracy : float
        Of the worst case so far; in individual mode of this attack alone.
    n_forward, n_backward : int
        Samples that went through the model, and gradients taken.
    seconds : float
    """

    name: str
    n_attacked: int
    n_fooled: int
    robust_accuracy: float
    n_forward: int
    n_backward: int
    seconds: float


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
        lines = [
            f"{'':<14}{'attacked':>9}{'fooled':>8}{'accuracy':>10}{'forward':>10}{'backward':>10}"
            f"{'seconds':>9}",
            f"{'clean':<14}{len(self.stage):>9}{'':>8}{self.clean_accuracy:>10.4f}",
        ]
        lines += [
            f"{s.name:<14}{s.n_attacked:>9}{s.n_fooled:>8}{s.robust_accuracy:>10.4f}"
            f"{s.n_forward:>10}{s.n_backward:>10}{s.seconds:>9.1f}"
            for s in self.stages
        ]
        total = [sum(getattr(s, n) for s in self.stages) for n in ("n_forward", "n_backward")]
        seconds = sum(s.seconds for s in self.stages)
        lines.append(
            f"{self.version:<14}{'':>17}{self.robust_accuracy:>10.4f}{total[0]:>10}{total[1]:>10}"
            f"{seconds:>9.1f}"
        )
        return "\n".join(lines)


class AutoAttack(BaseAttack):
    """Parameter-free ensemble of attacks; the worst case of each sample counts.

    Each attack runs on the samples that all attacks before it have failed to
    fool. With ``version="standard"`` these are APGD on cross-entropy, targeted
    APGD on the difference of logits ratio, targeted FAB and Square: the number
    that papers report.

    Parameters
    ----------
    estimator : fitted estimator or torch.nn.Module, default=None
        The model to attack. A fitted estimator in a pipeline that will be
        cloned must be wrapped in `sklearn.frozen.FrozenEstimator`. With None,
        `fit` fits a standardised logistic regression as a surrogate.
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
        estimator=None,
        *,
        version="standard",
        attacks=None,
        individual=False,
        audit=0,
        state_path=None,
        **common,
    ):
        super().__init__(estimator, **common)
        self.version = version
        self.attacks = attacks
        self.individual = individual
        self.audit = audit
        self.state_path = state_path

    # --- what is run -----------------------------------------------------------------

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
            return _custom_stages(self.attacks)
        stages = {
            "standard": _standard_stages,
            "plus": _plus_stages,
            "rand": _rand_stages,
            "fast": _fast_stages,
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
        needed = {stage.attack.access for stage in _custom_stages(self.attacks)}
        return next(access for access in ACCESS if access in needed)

    # --- the cascade -----------------------------------------------------------------

    def _cascade(self, stages, attack_rows, seed, state, victim, n_classes, size):
        """Run the stages, each on the samples that are left, `size` at a time."""
        queue, number = list(stages), 0
        while number < len(queue):
            stage = queue[number]
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
        misled = result.n_fooled > max(_ALARM_COUNT, _ALARM_SHARE * result.n_attacked)
        if not stage.alarm or not misled or self.individual:
            return []
        message = (
            f"{stage.name} fooled {result.n_fooled} of {result.n_attacked} samples that the "
            "attacks before it had left: gradients may mislead here."
        )
        if self.version != "fast" or any(s.name == "APGD-CE" for s in queue):
            warnings.warn(message, UserWarning, stacklevel=4)
            return []
        warnings.warn(f"{message} All standard attacks are run now.", UserWarning, stacklevel=4)
        return _standard_stages(check_norm(self.norm, self.supported_norms), n_classes)

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
        extra = generator.permutation(others)[: int(np.ceil(stage.spot_check * len(left)))]
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
        victim = self._victim()
        bounds = self._known_bounds(victim)
        values = self._check_X(X, victim)
        y = np.asarray(check_labels(y))
        check_consistent_length(values, y)
        self._check_target(values, y, victim)
        index = encode_labels(y, victim.learn_classes(values), "y")
        batches = Batches(self._n_at_a_time(values, victim))
        correct = _predicted(victim, values, batches) == index
        stage, X_adv, log = np.full(len(y), -2), copy_of(values), []
        if correct.any():
            attack = restrict_targets(self, correct)._with(_batches=batches)
            state = attack._run(take(values, correct), y[correct], victim, bounds, X)
            stage[correct], X_adv[correct], log = state.stage, state.X_adv, state.log
        batches.warn()
        # counts, so that equal shares are equal numbers
        left = [round(entry.robust_accuracy * correct.sum()) / len(y) for entry in log]
        return AutoAttackResult(
            version=self.version,
            clean_accuracy=float(correct.mean()),
            robust_accuracy=float(np.mean(stage == -1)),
            stages=[replace(e, robust_accuracy=float(a)) for e, a in zip(log, left, strict=True)],
            stage=stage,
            X_adv=X_adv,
        )

    def run(self, X, y, victim, *, bounds=None, keep="worst", original=None, return_info=False):
        """Attack validated arrays stage by stage; see :class:`BaseAttack`.

        Parameters
        ----------
        X : ndarray or Rows of shape (n_samples, ...)
        y : array-like of shape (n_samples,) or None
        victim : Victim
        bounds : tuple of (low, high), optional
        keep : {"last", "worst", "first"}, default="worst"
            Without a meaning here: a sample that is fooled is done.
        original : object, optional
        return_info : bool, default=False

        Returns
        -------
        X_adv : ndarray of the shape and dtype of `X`
        info : dict of str to ndarray
            Only with `return_info`.
        """
        state = self._run(X, y, victim, bounds, original)
        return (state.X_adv, {"stage": state.stage}) if return_info else state.X_adv

    def perturb(
        self,
        model,
        x,
        y=None,
        objective=None,
        *,
        bounds=None,
        seed=None,
        keep="last",
        return_info=False,
    ):
        """Attack one batch of tensors; see :meth:`BaseAttack.perturb`."""
        victim = as_victim(model, attack=type(self).__name__, access=self.access)
        if len(x) == 0:
            return (x.detach().clone(), {}) if return_info else x.detach().clone()
        values = x.detach().cpu().numpy()
        labels = None if y is None else victim.learn_classes(values)[y.cpu().numpy()]
        if bounds is None:
            bounds = getattr(self, "clip_bounds_", victim.bounds)
        attack = self if seed is None else self._with(random_state=seed)
        state = attack._run(values, labels, victim, bounds)
        x_adv = torch.from_numpy(state.X_adv).to(x)
        return (x_adv, {"stage": torch.from_numpy(state.stage)}) if return_info else x_adv

    def _attack_batch(self, batch):
        raise TypeError("AutoAttack is a whole evaluation and cannot be part of another attack.")

    def _run(self, X, y, victim, bounds, original=None):
        victim = victim.to(None if self.device in ("auto", None) else self.device)
        shared = getattr(self, "_batches", None)
        batches = Batches(self._n_at_a_time(X, victim)) if shared is None else shared
        n_classes = len(victim.learn_classes(X))
        stages = self._stages(n_classes)
        seed = self._draw_seed()
        if y is None:
            index = _predicted(victim, X, batches)
        else:
            index = encode_labels(check_labels(y), victim.classes, "y")
            check_consistent_length(X, index)
        labels = victim.classes[index]
        fingerprint = self._fingerprint(X, index, victim, seed, batches)
        state = _State(X, fingerprint, seed, self.state_path)
        seed = state.seed
        target = self._target_index(X, index, victim, seed, batches)
        settings = {name: getattr(self, name) for name in _SHARED}
        if target is not None:
            settings["target"] = victim.classes[target]

        def attack_rows(attack, number, rows):
            attack = attack._with(**settings, random_state=seed + number, _batches=batches)
            attack = restrict_targets(attack, rows)
            if target is not None and hasattr(attack, "n_targets"):
                attack.n_targets = None
            found = attack.run(
                X[rows],
                labels[rows],
                victim,
                bounds=bounds,
                keep="first",
                original=original if number == 0 else None,
            )
            logits = _in_batches(victim, found, batches).double()
            own = torch.from_numpy((index if target is None else target)[rows])
            margins = margin(logits, own).numpy() * (1 if target is None else -1)
            # a tie goes to the class that argmax names
            hit = (logits.argmax(1) == own).numpy() != (target is None)
            return found, hit, margins

        with victim.frozen(self.bn_mode, self._engine()):
            if self.access == "gradients":
                stages = self._checked(stages, X, index, victim, n_classes, batches)
            self._cascade(stages, attack_rows, seed, state, victim, n_classes, batches.first)
        if shared is None:
            batches.warn()
        return state

    def _target_index(self, X, index, victim, seed, batches):
        """Return the class to reach for every sample, decided on the clean predictions."""
        if self.target is None:
            return None
        if isinstance(self.target, str) and self.target in BY_PREDICTION:
            target = np.empty_like(index)

            def choose(rows):
                x = np.array(X[rows])
                noise = SampleNoise(torch.from_numpy(x), seed)
                own = torch.from_numpy(index[rows])
                target[rows] = choose_target(self.target, victim.logits(x), own, noise).numpy()

            batches.run(choose, len(X))
            return target
        if np.ndim(self.target) == 1:
            check_consistent_length(X, self.target)
        target = encode_labels(self.target, victim.classes, "target")
        return np.broadcast_to(target, (len(X),)).copy()

    def _fingerprint(self, X, index, victim, seed, batches):
        """Return what must be equal for a state to be continued, None if there is no file."""
        if self.state_path is None:
            return None
        own = {
            name: value.tobytes() if isinstance(value, np.ndarray) else value
            for name, value in sorted(self.get_params(deep=False).items())
            if name not in _WITHOUT_EFFECT
        }
        # with any randomness allowed, that of the first part of the run is as good as another
        seed = None if self.random_state is None else seed
        digest = hashlib.sha256(repr((own, X.shape, X.dtype, seed)).encode())
        for rows in chunks(X):
            digest.update(np.ascontiguousarray(X[rows]))
        for array in (index, _in_batches(victim, X[:16], batches).numpy().round(3)):
            digest.update(array.tobytes())
        return digest.hexdigest()

    def _checked(self, stages, X, index, victim, n_classes, batches):
        """Look for what misleads gradients; return the stages to run."""
        few = X[:64]
        first, second = _in_batches(victim, few, batches), _in_batches(victim, few, batches)
        scale = first.abs().max().clamp_min(1e-12)
        if self.version != "rand" and (first - second).abs().max() > 1e-4 * scale:
            message = (
                f"{victim.name} answers the same question differently from one time to the next: "
                "its randomness hides gradients. Use version='rand'."
            )
            if self.version == "fast":
                raise ValueError(message)
            warnings.warn(message, UserWarning, stacklevel=4)
        few, sizes = X[:200], []

        def look(rows):
            x = torch.from_numpy(np.array(few[rows])).to(victim.device, victim.dtype)
            with torch.enable_grad():
                x.requires_grad_(True)
                value = margin(victim(x), torch.from_numpy(index[rows]).to(x.device))
                (gradient,) = torch.autograd.grad(value.sum(), x)
            victim.calls.backward += len(x)
            sizes.append(gradient.flatten(1).abs().amax(1))

        batches.run(look, len(few))
        size = torch.cat(sizes)
        lost = float(((size == 0) | ~torch.isfinite(size)).double().mean())
        if lost <= _LOST_GRADIENTS:
            return stages
        warnings.warn(
            f"The gradient of the margin is zero or not finite for {lost:.1%} of the samples: "
            "attacks that follow it will find little, and the result may be far too high.",
            UserWarning,
            stacklevel=4,
        )
        if self.version == "fast":
            return _standard_stages(check_norm(self.norm, self.supported_norms), n_classes)
        return stages


class _State:
    """What has been achieved so far, kept in a file if there is one."""

    def __init__(self, X, fingerprint, seed, path):
        self.fingerprint, self.seed, self.path = fingerprint, seed, path
        self.X_adv = copy_of(X)
        self.stage = np.full(len(X), -1)
        self.margin = np.full(len(X), -np.inf)
        self.log = []
        self.todo, self.position = None, 0
        self.fooled, self.counts = 0, np.zeros(3)
        self.saved, self.interval = time.monotonic(), _SAVE_EVERY
        if path is not None and os.path.exists(path):
            self._load()

    def begin(self, todo):
        """Start a stage on the samples `todo`."""
        self.todo, self.position = todo, 0
        self.fooled, self.counts = 0, np.zeros(3)

    def record(self, number, rows, found, hit, margins, spent):
        """Take note of what an attack found for some samples."""
        new = hit & (self.stage[rows] < 0)
        better = new | ((self.stage[rows] < 0) & (margins > self.margin[rows]))
        self.X_adv[rows[better]] = found[better]
        self.margin[rows] = np.maximum(self.margin[rows], margins)
        self.stage[rows[new]] = number
        self.fooled += int(hit.sum())
        self.counts += spent
        self.position += len(rows)
        if self.path is not None and time.monotonic() - self.saved > self.interval:
            self.save()

    def finish(self, name, individual):
        """Close a stage."""
        n = len(self.stage)
        left = n - self.fooled if individual else int(np.sum(self.stage < 0))
        forward, backward, seconds = self.counts
        self.log.append(
            StageResult(
                name, len(self.todo), self.fooled, left / n, int(forward), int(backward),
                float(seconds),
            )
        )  # fmt: skip
        self.todo = None
        if self.path is not None:
            self.save()

    def save(self):
        """Write the file; one that is half written never takes the place of a whole one."""
        start = time.monotonic()
        partial = f"{os.fspath(self.path)}.partial"
        with open(partial, "wb") as file:
            np.savez(
                file,
                fingerprint=self.fingerprint,
                seed=self.seed,
                X_adv=self.X_adv,
                stage=self.stage,
                margin=self.margin,
                log=json.dumps([asdict(entry) for entry in self.log]),
                todo=np.zeros(0, int) if self.todo is None else self.todo,
                position=-1 if self.todo is None else self.position,
                fooled=self.fooled,
                counts=self.counts,
            )
        os.replace(partial, self.path)
        self.saved = time.monotonic()
        # a small part of the time, however long it takes
        self.interval = max(_SAVE_EVERY, 20 * (self.saved - start))

    def _load(self):
        with np.load(self.path) as kept:
            if str(kept["fingerprint"]) != self.fingerprint:
                raise ValueError(
                    f"state_path={os.fspath(self.path)!r} holds the state of another evaluation: "
                    "the model, the data, the parameters or random_state differ. Give another "
                    "path, or delete the file to begin anew."
                )
            with kept.zip.open("X_adv.npy") as file:
                np.lib.format.read_magic(file)
                _, _, dtype = np.lib.format.read_array_header_1_0(file)
                for rows in chunks(self.X_adv):
                    part = self.X_adv[rows]
                    part[...] = np.frombuffer(file.read(part.nbytes), dtype).reshape(part.shape)
            self.stage, self.margin = kept["stage"], kept["margin"]
            self.log = [StageResult(**entry) for entry in json.loads(str(kept["log"]))]
            self.seed, self.position = int(kept["seed"]), int(kept["position"])
            self.todo = kept["todo"] if self.position >= 0 else None
            self.fooled, self.counts = int(kept["fooled"]), kept["counts"]


def _in_batches(victim, X, batches, summary=lambda logits: logits):
    """Return the logits of samples, or what `summary` makes of those of a batch."""
    parts = []
    batches.run(lambda rows: parts.append(summary(victim.logits(X[rows]))), len(X))
    return torch.cat(parts)


def _predicted(victim, X, batches):
    """Return the classes that a victim sees in samples, as indices."""
    return _in_batches(victim, X, batches, lambda logits: logits.argmax(1)).numpy()


def _custom_stages(attacks):
    stages = []
    for entry in attacks:
        name, attack = entry if isinstance(entry, tuple) else (type(entry).__name__, entry)
        check_attack(attack)
        stages.append(Stage(name, attack))
    if not stages:
        raise ValueError("attacks is empty: nothing would be run.")
    return stages


def _targeted(norm, n_classes, at_most=9, **options):
    """Targeted APGD; the difference of logits ratio compares four logits."""
    objective = "dlr" if n_classes >= 4 else "cw"
    return APGD(norm=norm, objective=objective, n_targets=min(at_most, n_classes - 1), **options)


def _standard_stages(norm, n_classes):
    n_targets = min(9, n_classes - 1)
    return [
        Stage("APGD-CE", APGD(norm=norm, n_restarts=5 if norm == 1 else 1)),
        Stage("APGD-T", _targeted(norm, n_classes, 5 if norm == 1 else 9)),
        Stage("FAB-T", FAB(norm=norm, n_targets=n_targets)),
        Stage("Square", SquareAttack(norm=norm, max_queries=5000), alarm=True),
    ]


def _plus_stages(norm, n_classes):
    objective = "dlr" if n_classes >= 3 else "cw"
    return [
        Stage("APGD-CE", APGD(norm=norm, n_restarts=5)),
        Stage("APGD-DLR", APGD(norm=norm, objective=objective, n_restarts=5)),
        Stage("FAB", FAB(norm=norm, n_restarts=5)),
        Stage("Square", SquareAttack(norm=norm, max_queries=5000)),
        Stage("APGD-T", _targeted(norm, n_classes)),
        Stage("FAB-T", FAB(norm=norm, n_targets=min(9, n_classes - 1))),
    ]


def _rand_stages(norm, n_classes):
    objective = "dlr" if n_classes >= 3 else "cw"
    return [
        Stage("APGD-CE", EOT(attack=APGD(norm=norm), n_draws=20)),
        Stage("APGD-DLR", EOT(attack=APGD(norm=norm, objective=objective), n_draws=20)),
    ]


def _fast_stages(norm, n_classes):
    n_targets = min(3, n_classes - 1)
    if norm == 1:
        search = [
            Stage("APGD-CE", APGD(norm=norm)),
            Stage("APGD-margin-T", APGD(norm=norm, objective="cw", n_targets=n_targets)),
        ]
    else:
        search = [
            Stage("margin", MarginPGD(norm=norm)),
            Stage("margin-T", APGD(norm=norm, objective="cw", n_steps=20, n_targets=n_targets)),
        ]
        for number, fraction in enumerate(_RESTART_FRACTIONS):
            kind = ("logits", "probabilities")[number % 2]
            n_steps = 60 if fraction == _RESTART_FRACTIONS[-1] else 30
            attack = MarginPGD(norm=norm, n_steps=n_steps, n_direction=7, kind=kind, stream=number)
            search.append(Stage(f"restart-{number}", attack, fraction=fraction))
    return [
        *search,
        Stage("APGD-T", _targeted(norm, n_classes), fraction=0.05),
        Stage(
            "FAB-T", FAB(norm=norm, n_targets=n_targets, n_steps=30), 0.05, spot_check=0.05,
            alarm=True,
        ),
        Stage(
            "Square", SquareAttack(norm=norm, max_queries=1000), 0.05,
            spot_check=0.05, alarm=True,
        ),
    ]  # fmt: skip
