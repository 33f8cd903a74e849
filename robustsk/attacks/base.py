"""The two faces of every attack.

The torch face, :meth:`BaseAttack.perturb`, works on one batch of tensors and
is what adversarial training calls. The scikit-learn face (`fit`, `transform`,
`generate`, `fit_resample`) takes arrays; it is written here once. An attack
defines its hyperparameters and one method, `_attack_batch`.
"""

from __future__ import annotations

import copy
import numbers
import warnings
from abc import abstractmethod
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import check_array, check_random_state
from sklearn.utils.validation import check_consistent_length, column_or_1d, validate_data
from tqdm import tqdm

from .._containers import (
    FLOATS,
    Batches,
    Rows,
    check_labels,
    check_sample_shape,
    chunks,
    dataset_labels,
    empty_like,
    is_dataset,
    is_mapped,
    is_out_of_memory,
    like,
    to_array,
)
from .._shared import SharedParameters
from ._engine import Engine
from ._noise import SampleNoise
from .objectives import Objective, resolve_objective
from .targets import Victim, as_victim
from .threat import Ball, check_eps, check_norm, settle


@dataclass
class AttackBatch:
    """All that an attack needs to know about one batch.

    Attributes
    ----------
    victim : Victim
        Frozen.
    x : torch.Tensor of shape (n, ...)
    y : torch.Tensor of shape (n,)
        Class indices to move away from.
    target : torch.Tensor of shape (n,) or None
        Class indices to reach.
    ball : Ball
    objective : Objective
    noise : SampleNoise
    keep : {"last", "worst", "first"}
        What to return: the last iterate (training); the last one, but never
        losing an iterate that fooled the victim; or the first that did, after
        which no more work is spent on the sample (evaluation).
    """

    victim: Victim
    x: torch.Tensor
    y: torch.Tensor
    target: torch.Tensor | None
    ball: Ball
    objective: Objective
    noise: SampleNoise
    keep: str
    clean_logits: torch.Tensor | None = None
    info: dict[str, torch.Tensor] = field(default_factory=dict)

    def select(self, index):
        """Return the batch restricted to the samples in `index`."""
        return replace(
            self,
            x=self.x[index],
            y=self.y[index],
            target=None if self.target is None else self.target[index],
            ball=self.ball.select(index),
            noise=self.noise.select(index),
            clean_logits=None if self.clean_logits is None else self.clean_logits[index],
            info={},
        )

    def value(self, logits):
        """Return the objective, shape (n,)."""
        return self.objective(logits, self.y, self.target, self.clean_logits)

    def value_and_gradient(self, z):
        """Return logits, objective and its gradient with respect to `z`."""
        with torch.enable_grad():
            z = z.detach().requires_grad_(True)
            logits = self.victim(z)
            value = self.value(logits)
            (gradient,) = self.input_gradients([value], [z])
        gradient = torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)
        return logits.detach(), value.detach(), gradient

    def input_gradients(self, values, inputs):
        """Return the gradients of objectives, each with respect to an input of its own.

        Parameters
        ----------
        values : list of torch.Tensor of shape (n,)
        inputs : list of torch.Tensor of shape (n, ...)

        Returns
        -------
        tuple of torch.Tensor of shape (n, ...)
            As they come: not all of them need be finite.
        """
        if not all(value.requires_grad for value in values):
            raise ValueError(
                f"No gradient reaches the input of {self.victim.name}: is something "
                "detached or computed outside of torch on the way?"
            )
        self.victim.calls.backward += sum(len(z) for z in inputs)
        return torch.autograd.grad([value.sum() for value in values], inputs)

    def fooled(self, logits):
        """Return where the attack has reached its goal, shape (n,)."""
        predicted = logits.argmax(1)
        return predicted != self.y if self.target is None else predicted == self.target


class BaseAttack(SharedParameters, OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Base class of all attacks.

    Subclasses define `__init__` with their own hyperparameters (passing the
    rest on as ``**common``) and `_attack_batch`.
    """

    #: Norms the attack can deal with.
    supported_norms = (np.inf, 2.0, 1.0)
    #: What is needed of the victim: "gradients", "scores" or "labels"; or
    #: "straight-through", gradients save for steps that have none.
    access = "gradients"
    #: Whether the attack looks for the closest adversarial example. Then `eps`
    #: may be infinite, None means that it is, and a sample for which there is
    #: none within `eps` comes back unchanged.
    minimal = False
    #: Whether what happens to a sample depends on that sample alone.
    per_sample = True
    #: Whether what happens to a sample depends on the others in its batch, so that
    #: the size of the batches matters.
    couples_batch = False
    #: Whether the user may say which class is to be reached.
    targetable = True

    _shared_parameters_doc = """
    norm : {inf, 2, 1, "linf", "l2", "l1"}, default=inf
        Norm in which the perturbation is measured.
    eps : float or array-like, default=None
        Largest perturbation, in the units of the data. An array holds one
        value per feature (with norm 2 or 1 the ball becomes an ellipsoid).
        None means 8/255 for the inf norm, 0.5 for the 2-norm and 12 for the
        1-norm, which are customary on images in [0, 1]; and no limit for an
        attack that looks for the smallest perturbation.
    clip : "auto", None or (low, high), default="auto"
        Valid range of the data. "auto" learns it in `fit` (or takes what a
        robustsk estimator learned in its own): per feature for tables, one
        range for all pixels of images. A pair of numbers or arrays fixes it,
        e.g. ``(0, 1)``; None means no box.
    target : None, label, "least_likely", "random" or array, default=None
        Class to be reached. None means untargeted: away from the true class.
        An array holds one label per sample.
    mask : array-like of bool, default=None
        Where a feature may change; False freezes it.
    bn_mode : {"eval", "train"}, default="eval"
        How batch normalisation behaves during the attack. Its running
        statistics are left as they were in either case.
    precision : {None, "bf16"}, default=None
        Precision in which convolutions and matrix products are computed during
        the attack; None means that of the model. With "bf16" `generate` and
        all scores judge examples in the precision of the model. Attacks that
        only ask questions, and models in float64, keep their precision.
    compile : bool or str, default=False
        Whether to use `torch.compile`; a string is its mode. It takes some
        time at first and pays for long attacks, above all on a GPU.
    batch_size : int or "auto", default="auto"
        Samples attacked at a time by `transform`, `generate` and all scores.
        "auto" is 256, and 4096 for the rows of a table, which take up little
        room. It is halved, with a warning, if memory runs out.
    device : str or torch.device, default="auto"
        Where to compute. "auto" is wherever the victim lives; otherwise a copy
        of the victim is used and the victim itself is never moved.
    random_state : int, RandomState or None, default=None
        Source of all randomness. With an int, a sample gets the same noise
        whatever the batch size and the order of the data.
    verbose : bool or int, default=0
        Whether to show a progress bar.
"""

    _shared_attributes_doc = """
    Attributes
    ----------
    estimator_ : object
        What is attacked.
    clip_bounds_ : tuple of (ndarray, ndarray)
        Smallest and largest value seen in `fit`.
    n_features_in_ : int
        Number of features seen in `fit`.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features seen in `fit`, if they are all strings.
"""

    def __init__(
        self,
        estimator=None,
        *,
        norm=np.inf,
        eps=None,
        clip="auto",
        target=None,
        mask=None,
        bn_mode="eval",
        precision=None,
        compile=False,
        batch_size="auto",
        device="auto",
        random_state=None,
        verbose=0,
    ):
        self.estimator = estimator
        self.norm = norm
        self.eps = eps
        self.clip = clip
        self.target = target
        self.mask = mask
        self.bn_mode = bn_mode
        self.precision = precision
        self.compile = compile
        self.batch_size = batch_size
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    @abstractmethod
    def _attack_batch(self, batch):
        """Return the perturbed batch.

        Parameters
        ----------
        batch : AttackBatch

        Returns
        -------
        torch.Tensor of the shape of ``batch.x``
        """

    # --- torch face ------------------------------------------------------------------

    def perturb(
        self,
        model: Any,
        x: torch.Tensor,
        y: torch.Tensor | None = None,
        objective: str | Callable | None = None,
        *,
        bounds: tuple[np.ndarray, np.ndarray] | None = None,
        seed: int | None = None,
        keep: str = "last",
        clean_logits: torch.Tensor | None = None,
        return_info: bool = False,
    ) -> torch.Tensor | tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Attack one batch of tensors.

        Parameters
        ----------
        model : Victim, torch.nn.Module or fitted estimator
            What to attack.
        x : torch.Tensor of shape (n, ...)
            Clean samples, on the device and in the dtype of the model.
        y : torch.Tensor of shape (n,), optional
            Class indices. None means the predictions of the model.
        objective : str, callable or Objective, optional
            What to ascend, unless the attack has been given an objective of
            its own.
        bounds : tuple of (low, high), optional
            Valid range to use where ``clip="auto"``. None means what the attack
            or the model has learned, and no range if neither has.
        seed : int, optional
            Seed of this call. None draws one from `random_state`.
        keep : {"last", "worst", "first"}, default="last"
            Return the last iterate; the last one unless only an earlier one
            fooled the model; or the first one that did.
        clean_logits : torch.Tensor of shape (n, n_classes), optional
            Logits of `x`, where the caller knows them already.
        return_info : bool, default=False
            Whether to return also what the attack reports about each sample.

        Returns
        -------
        x_adv : torch.Tensor of the shape of `x`
            Detached.
        info : dict of str to torch.Tensor of shape (n, ...)
            Only with `return_info`.

        Examples
        --------
        >>> import torch
        >>> from robustsk.attacks import PGD
        >>> _ = torch.manual_seed(0)
        >>> model, x = torch.nn.Linear(4, 3), torch.rand(2, 4)
        >>> x_adv = PGD(eps=0.1, clip=(0, 1), random_state=0).perturb(model, x)
        >>> bool((x_adv - x).abs().max() <= 0.1 + 1e-7)
        True
        """
        self = self._resolved()
        victim = as_victim(model, attack=type(self).__name__, access=self.access)
        norm = check_norm(self.norm, self.supported_norms)
        eps = self._effective_eps(norm, tuple(x.shape[1:]))
        if len(x) == 0:
            return (x.detach().clone(), {}) if return_info else x.detach().clone()
        if seed is None:
            seed = self._draw_seed()
        if bounds is None:
            bounds = getattr(self, "clip_bounds_", victim.bounds)
        x = x.detach()
        ball = self._ball(x, norm, eps, bounds)
        with (
            victim.frozen(self.bn_mode, self._engine()),
            victim.precise() if self._asks_only else nullcontext(),
        ):
            batch = AttackBatch(
                victim=self._see(victim, seed),
                x=x,
                y=y,
                target=None,
                ball=ball,
                objective=self._resolve_objective(objective),
                noise=SampleNoise(x, seed),
                keep=keep,
                clean_logits=clean_logits,
            )
            self._complete(batch)
            result = self._attack_batch(batch).detach()
        return (result, batch.info) if return_info else result

    def reach(self, x: torch.Tensor, bounds: tuple[np.ndarray, np.ndarray] | None = None) -> Ball:
        """Return the points that the attack may reach from each sample.

        Parameters
        ----------
        x : torch.Tensor of shape (n, ...)
        bounds : tuple of (low, high), optional
            Valid range to use where ``clip="auto"``; None means no range.

        Returns
        -------
        Ball
        """
        self = self._resolved()
        norm = check_norm(self.norm, self.supported_norms)
        return self._ball(x, norm, self._effective_eps(norm, tuple(x.shape[1:])), bounds)

    def _ball(self, x, norm, eps, bounds):
        kind = {"dtype": x.dtype, "device": x.device}
        eps, lower, upper = (
            v if v is None or isinstance(v, float) else torch.tensor(v, **kind)
            for v in (eps, *self._box(bounds))
        )
        return Ball(x, norm, eps, lower, upper)

    def _resolve_objective(self, objective):
        return resolve_objective(objective)

    def _see(self, victim, seed):
        """Return what the attack takes the victim for; `seed` is for what is random in it."""
        return victim

    def _complete(self, batch):
        """Fill in what depends on the clean prediction."""
        by_prediction = isinstance(self.target, str) and self.target in BY_PREDICTION
        needed = batch.y is None or batch.objective.needs_clean or by_prediction
        if needed and batch.clean_logits is None:
            with torch.no_grad():
                batch.clean_logits = batch.victim(batch.x)
        if batch.y is None:
            batch.y = batch.clean_logits.argmax(1)
        if self.target is None:
            return
        if by_prediction:
            batch.target = choose_target(self.target, batch.clean_logits, batch.y, batch.noise)
            return
        target = encode_labels(self.target, batch.victim.classes, "target")
        batch.target = torch.as_tensor(target, device=batch.x.device).expand(len(batch.x))

    def _effective_eps(self, norm, sample_shape):
        """Return the radius, with frozen features given the radius zero."""
        eps = check_eps(self.eps, norm, sample_shape, unlimited=self.minimal)
        if self.mask is None:
            return eps
        mask = np.asarray(self.mask)
        if mask.dtype != bool and not np.isin(mask, (0, 1)).all():
            raise ValueError("mask must be boolean: True where a feature may change.")
        try:
            mask = np.broadcast_to(mask.astype(bool), sample_shape)
        except ValueError as error:
            raise ValueError(
                f"mask has shape {mask.shape}, but one sample has shape {sample_shape}."
            ) from error
        return np.where(mask, eps, 0.0)

    def _box(self, bounds):
        if self.clip is None:
            return None, None
        if isinstance(self.clip, str):
            if self.clip != "auto":
                raise ValueError(f"clip must be 'auto', None or (low, high), got {self.clip!r}.")
            return (None, None) if bounds is None else bounds
        try:
            low, high = (np.asarray(v, dtype=np.float64) for v in self.clip)
        except (TypeError, ValueError) as error:
            raise ValueError(f"clip must be 'auto', None or (low, high), got {self.clip!r}.") from (
                error
            )
        if np.any(low > high):
            raise ValueError(f"clip=(low, high) has low > high: {self.clip!r}.")
        return low, high

    def _n_at_a_time(self, X, victim):
        """Return how many of the samples `X` are attacked at a time."""
        if self.batch_size != "auto":
            return check_count(self.batch_size, "batch_size")
        is_table = X.ndim == 2 and X.shape[1] <= _WIDE_TABLE and not victim.is_image
        return _ROWS_AT_A_TIME if is_table else _SAMPLES_AT_A_TIME

    def _resolved(self):
        """Return the attack that says all; a wrapper asks the attack inside."""
        return self

    @property
    def _asks_only(self):
        return self.access in ("scores", "labels")

    def _engine(self):
        """Return how the network is run."""
        if self.bn_mode not in ("eval", "train"):
            raise ValueError(f"bn_mode must be 'eval' or 'train', got {self.bn_mode!r}.")
        # statistics of the batch are part of what the network computes, and where questions
        # count there are none to spare for trials
        tries = self.bn_mode == "eval" and not self._asks_only
        return Engine(self.precision, self.compile, fold=tries, channels_last=tries)

    def _with(self, **settings):
        """Return this attack with other shared parameters."""
        attack = copy.copy(self)
        for name, value in settings.items():
            setattr(attack, name, value)
        return attack

    def _draw_seed(self):
        return int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))

    # --- scikit-learn face -----------------------------------------------------------

    def fit(self, X: Any, y: ArrayLike | None = None) -> BaseAttack:
        """Learn the valid range of the data, and a surrogate if there is no victim.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Data in the units in which `eps` is given.
        y : array-like of shape (n_samples,), optional
            Labels. Only used where `estimator` is None: a standardised
            logistic regression is then fitted and attacked in place of an
            unknown model (a transfer attack).

        Returns
        -------
        self
        """
        settings = self._resolved()
        if settings.estimator is None:
            if y is None and is_dataset(X):
                y = dataset_labels(X)
            if y is None:
                raise ValueError(
                    f"{type(self).__name__} requires y to be passed, but the target y is None: "
                    "without `estimator` a surrogate is fitted on (X, y)."
                )
            X, y = validate_data(
                self, to_array(X), check_labels(y), dtype=FLOATS, allow_nd=True, reset=True
            )
            if X.ndim != 2:
                raise ValueError(
                    f"X has shape {X.shape}: without `estimator` the surrogate is a logistic "
                    "regression, which needs a 2-D X. Pass the model to attack as `estimator`."
                )
            surrogate = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
            self.estimator_ = surrogate.fit(X, y)
            victim = as_victim(self.estimator_)
        else:
            victim = as_victim(
                settings.estimator, attack=type(self).__name__, access=settings.access
            )
            X = validate_data(self, to_array(X), dtype=FLOATS, allow_nd=True, reset=True)
            self.estimator_ = settings.estimator
        if isinstance(settings.clip, str) and len(X) == 1:
            raise ValueError(
                "clip='auto' learns the valid range from the data and has been given 1 sample: "
                "pass more samples, clip=(low, high), or clip=None."
            )
        norm = check_norm(settings.norm, settings.supported_norms)
        settings._effective_eps(norm, X.shape[1:])
        settings._box(None)
        self.clip_bounds_ = learn_bounds(X, victim.is_image)
        self._sample_shape = X.shape[1:]
        return self

    def transform(self, X: Any) -> Any:
        """Return adversarial examples against the victim's own predictions.

        True labels are not used, so none can leak.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...) or torch Dataset

        Returns
        -------
        X_adv : same container, shape and floating dtype as `X`
            An array for a Dataset, and see :meth:`generate`.
        """
        return self.generate(X)

    def generate(self, X: Any, y: ArrayLike | None = None, *, return_info: bool = False) -> Any:
        """Return adversarial examples against the labels given.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...) or torch Dataset
            A memory-mapped array or a Dataset is read batch by batch.
        y : array-like of shape (n_samples,), optional
            True labels. None means the victim's predictions.
        return_info : bool, default=False
            Whether to return also what the attack reports about each sample.

        Returns
        -------
        X_adv : same container, shape and floating dtype as `X`
            A sample for which any iterate fooled the victim is one that does.
            What is made of a large memory-mapped array or Dataset is an array in
            a temporary file that goes away with it.
        info : dict of str to ndarray of shape (n_samples, ...)
            Only with `return_info`: e.g. ``"n_queries"`` of a black-box attack.
        """
        self = self._resolved()
        victim = self._victim()
        bounds = self._known_bounds(victim)
        values = self._check_X(X, victim)
        self._check_target(values, y, victim)
        result = self.run(values, y, victim, bounds=bounds, original=X, return_info=return_info)
        return (like(result[0], X), result[1]) if return_info else like(result, X)

    def _check_X(self, X, victim):
        """Return `X` as a validated array, or as `Rows` that are validated when they are read."""
        lazy = Rows(X) if is_dataset(X) or is_mapped(X) else None
        values = to_array(X) if lazy is None else lazy[:1]
        if hasattr(self, "n_features_in_"):
            values = validate_data(self, values, dtype=FLOATS, allow_nd=True, reset=False)
        else:
            values = check_array(values, dtype=FLOATS, allow_nd=True)
            expected = getattr(self.estimator, "n_features_in_", values.shape[1])
            if values.shape[1] != expected:
                raise ValueError(
                    f"X has {values.shape[1]} features, but {victim.name} is expecting {expected} "
                    "features as input."
                )
        check_sample_shape(values.shape[1:], getattr(self, "_sample_shape", values.shape[1:]), self)
        return values if lazy is None else lazy

    def fit_resample(self, X: Any, y: ArrayLike, labels: str = "predicted") -> tuple[Any, Any]:
        """Append adversarial copies to the data.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
        y : array-like of shape (n_samples,)
        labels : {"predicted", "true"}, default="predicted"
            What the attack moves away from. The true labels make a stronger
            augmentation, but what they leak into the data can be learned from.

        Returns
        -------
        X_resampled : ndarray or DataFrame of shape (2 * n_samples, ...)
            The data, followed by one adversarial copy of every row.
        y_resampled : ndarray or Series of shape (2 * n_samples,)
        """
        if labels not in ("predicted", "true"):
            raise ValueError(f"labels must be 'predicted' or 'true', got {labels!r}.")
        self.fit(X, y)
        X_adv = self.generate(X, y if labels == "true" else None)
        return stack(X, X_adv), stack(y, y)

    def run(self, X, y, victim, *, bounds=None, keep="worst", original=None, return_info=False):
        """Attack validated arrays batch by batch; what all other methods call.

        Parameters
        ----------
        X : ndarray or Rows of shape (n_samples, ...)
            Finite floating-point data. What is not in memory is read batch by batch.
        y : array-like of shape (n_samples,) or None
        victim : Victim
        bounds : tuple of (low, high), optional
            Valid range where ``clip="auto"``.
        keep : {"last", "worst", "first"}, default="worst"
        original : object, optional
            What the user passed as X, for warnings.
        return_info : bool, default=False

        Returns
        -------
        X_adv : ndarray of the shape and dtype of `X`
            In a temporary file if `X` is large and not in memory.
        info : dict of str to ndarray of shape (n_samples, ...)
            Only with `return_info`.
        """
        self = self._resolved()
        norm = check_norm(self.norm, self.supported_norms)
        eps = self._effective_eps(norm, X.shape[1:])
        lower, upper = self._box(bounds)
        if not isinstance(self.clip, str):
            check_range(X, lower, upper)
        warn_about_units(X if original is None else original, eps)
        # what a caller in several parts has learned about memory
        shared = getattr(self, "_batches", None)
        batches = Batches(self._n_at_a_time(X, victim)) if shared is None else shared
        victim = victim.to(None if self.device in ("auto", None) else self.device)
        if y is not None or self.target is not None:
            victim.learn_classes(X)
        index = None if y is None else encode_labels(check_labels(y), victim.classes, "y")
        if index is not None:
            check_consistent_length(X, index)
        if self.target is not None and np.ndim(self.target) == 1:
            check_consistent_length(X, self.target)
        try:
            victim.warn_about_probabilities(X)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        seed = self._draw_seed()
        device = victim.device
        result = empty_like(X)
        info = {}
        progress = tqdm(
            total=len(X), desc=type(self).__name__, unit="sample", disable=not self.verbose
        )

        def attack_rows(rows, keep, again=False):
            clean = torch.from_numpy(np.array(X[rows]))
            x = clean.to(device, victim.dtype)
            y_batch = None if index is None else torch.from_numpy(index[rows]).to(device)
            attack = restrict_targets(self, rows)
            z, found = attack.perturb(
                victim, x, y_batch, bounds=bounds, seed=seed, keep=keep, return_info=True
            )
            for name, values in found.items():
                values = values.cpu().numpy()
                if name not in info:
                    info[name] = np.zeros((len(X), *values.shape[1:]), dtype=values.dtype)
                # what is counted goes on being counted when a sample is attacked again
                info[name][rows] = values + (again and name.startswith("n_")) * info[name][rows]
            exact = z.cpu()
            if victim.dtype != clean.dtype:
                exact = clean + (z - x).cpu().to(clean.dtype)
            return z, settle(exact, clean, norm, eps, lower, upper)

        def attack_batch(part):
            rows = np.arange(part.start, part.stop)
            z, settled = attack_rows(rows, keep)
            judged = keep == "first" or (keep == "worst" and victim.is_rough)
            # asking again would cost more than was allowed
            if judged and not self._asks_only:
                again = _prediction_changed(victim, z, settled).numpy()
                if again.any():
                    with victim.precise():
                        settled[again] = attack_rows(rows[again], "worst", again=True)[1]
            result[part] = settled.numpy()
            progress.update(len(rows))

        with progress, victim.frozen(self.bn_mode, self._engine()):
            batches.run(attack_batch, len(X))
        if shared is None:
            batches.warn()
        return (result, info) if return_info else result

    def _check_target(self, X, y, victim):
        """Raise where a sample is to become what it is."""
        if y is None or self.target is None or np.shape(self.target) not in ((), np.shape(y)):
            return
        if isinstance(self.target, str) and self.target in BY_PREDICTION:
            return
        classes = victim.learn_classes(X)
        target = encode_labels(self.target, classes, "target")
        same = target == encode_labels(check_labels(y), classes, "y")
        # one class for all may well be the class of some of them
        if same.any() and (np.ndim(self.target) == 1 or same.all()):
            raise ValueError(
                f"target equals the label of {int(same.sum())} of {len(X)} samples (first: row "
                f"{int(np.argmax(same))}): a targeted attack needs a class to reach that is "
                "another one."
            )

    def _victim(self):
        model = getattr(self, "estimator_", self.estimator)
        if model is None:
            raise NotFittedError(
                f"This {type(self).__name__} has no model to attack: pass a fitted one as "
                "`estimator`, or call fit(X, y) to attack a surrogate."
            )
        return as_victim(model, attack=type(self).__name__, access=self.access)

    def _known_bounds(self, victim):
        """Return the range for clip="auto"; a box made up from `X` would be too small."""
        if not isinstance(self.clip, str) or self.clip != "auto":
            return None
        bounds = getattr(self, "clip_bounds_", victim.bounds)
        if bounds is None:
            raise NotFittedError(
                f"This {type(self).__name__} is not fitted yet, and clip='auto' learns the valid "
                "range from the training data: call fit(X_train) first, or pass clip=(0, 1) "
                "(or clip=None for no box)."
            )
        return bounds

    def __sklearn_is_fitted__(self):
        self = self._resolved()
        if hasattr(self, "estimator_"):
            return True
        try:
            self._known_bounds(self._victim())
        except (NotFittedError, TypeError):
            return False
        return True

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.required = self._resolved().estimator is None
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        # scikit-learn's name for rows that come out differently in other company
        tags.non_deterministic = self.couples_batch
        return tags


#: The batch size "auto": for tables of up to so many features, and for all else.
_ROWS_AT_A_TIME, _WIDE_TABLE, _SAMPLES_AT_A_TIME = 4096, 256, 256
#: Targets that depend on the clean prediction.
BY_PREDICTION = ("least_likely", "random")


def choose_target(target, logits, y, noise):
    """Return the class that "least_likely" or "random" means for each sample, shape (n,)."""
    if target == "least_likely":
        return logits.scatter(1, y[:, None], np.inf).argmin(1)
    n_others = logits.shape[1] - 1
    drawn = (noise.scalar(7919) * n_others).long().clamp_max(n_others - 1)
    return drawn + (drawn >= y)


def check_count(value, name, least=1):
    """Validate a number of things."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}.")
    return int(value)


def check_choice(value, name, allowed):
    """Raise unless a value is one of those allowed."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {tuple(allowed)}, got {value!r}.")


def learn_bounds(X, is_image):
    """Return the smallest and largest valid value seen in `X`.

    Parameters
    ----------
    X : ndarray or Rows of shape (n_samples, ...)
    is_image : bool
        Whether rows are flattened images. For images one range holds for all
        pixels: a pixel that happens to be constant may still be attacked.

    Returns
    -------
    tuple of (ndarray, ndarray)
        Of shape () for images, of the shape of one sample for tables.
    """
    axis = None if is_image or X.ndim > 2 else 0
    lows, highs = [], []
    for rows in chunks(X):
        part = X[rows]
        lows.append(part.min(axis=axis))
        highs.append(part.max(axis=axis))
    return np.asarray(np.min(lows, axis=0), float), np.asarray(np.max(highs, axis=0), float)


def check_range(X, lower, upper):
    """Raise if `X` lies outside of an explicit box by more than rounding."""
    if lower is None:
        return
    slack = 1e-6 * np.maximum(upper - lower, 1e-30)
    parts = (X[rows] for rows in chunks(X))
    if any(np.any(lower - slack > part) or np.any(upper + slack < part) for part in parts):
        low, high = learn_bounds(X, True)
        raise ValueError(
            f"X lies in [{low:g}, {high:g}], outside of clip=[{np.min(lower):g}, "
            f"{np.max(upper):g}]. Give clip in the units of the data (and eps as well), or "
            "rescale the data, e.g. X / 255."
        )


def warn_about_units(X, eps):
    """Warn where bytes meet a radius that is meant for [0, 1]."""
    if getattr(X, "dtype", None) in (np.uint8, torch.uint8) and 0 < np.max(eps) < 1:
        warnings.warn(
            f"X holds bytes (0 to 255) and eps={np.max(eps):g} is less than one of their steps: "
            "rescale the data to [0, 1] (X / 255), or give eps in units of 0 to 255.",
            UserWarning,
            stacklevel=4,
        )


def encode_labels(labels, classes, what):
    """Turn labels into class indices.

    Parameters
    ----------
    labels : array-like or scalar
    classes : ndarray or None
        Labels in the order of the logits; None where classes are 0, 1, 2, ...
    what : str
        Name of the argument, for messages.

    Returns
    -------
    ndarray of int64, of the shape of `labels`
    """
    labels = np.asarray(labels)
    if labels.ndim:
        labels = column_or_1d(labels)
    if classes is None:
        if not np.issubdtype(labels.dtype, np.integer) and not np.array_equal(
            labels, labels.astype(np.int64) if labels.dtype.kind in "fb" else None
        ):
            raise ValueError(
                f"{what} holds labels of type {labels.dtype}, but a torch module knows its "
                "classes only as 0, 1, 2, ...: pass class indices."
            )
        return labels.astype(np.int64)
    order = np.argsort(classes)
    try:
        position = np.searchsorted(classes, labels, sorter=order).clip(0, len(classes) - 1)
        index = order[position]
        known = classes[index] == labels
    except TypeError:  # strings against numbers do not compare
        known = np.zeros(labels.shape, dtype=bool)
        index = known
    if not np.all(known):
        unknown = np.unique(np.atleast_1d(labels)[~np.atleast_1d(known)])[:5].tolist()
        raise ValueError(
            f"{what} contains labels that the model has not been trained on: {unknown}. "
            f"It knows {np.asarray(classes)[:10].tolist()}."
        )
    return np.asarray(index, dtype=np.int64)


def _prediction_changed(victim, z, settled):
    """Return where rounding into the output dtype has taken an example back over the border.

    So may a model in full precision, where the attack has seen a rough one.
    """
    rounded = settled.to(z)
    changed = (rounded != z).flatten(1).any(1) | victim.is_rough
    if changed.any():
        with torch.no_grad():
            before = victim(z[changed])
            with victim.precise():
                after = victim(rounded[changed])
        changed[changed.clone()] = before.argmax(1) != after.argmax(1)
    return changed.cpu()


def check_attack(attack, name="attack"):
    """Raise unless `attack` is an instance of an attack."""
    if isinstance(attack, type) or not hasattr(attack, "perturb"):
        raise TypeError(f"{name} must be an attack such as PGD(eps=0.1), got {attack!r}.")


def restrict_targets(attack, rows):
    """Return the attack for some of the samples, where it has one target for each."""
    if attack.target is None or np.ndim(attack.target) != 1:
        return attack
    attack = copy.copy(attack)
    attack.target = np.asarray(attack.target)[rows]
    return attack


def stack(first, second):
    """Concatenate two equal containers along the samples."""
    if hasattr(first, "iloc"):
        import pandas as pd

        return pd.concat([first, second], ignore_index=True)
    if isinstance(first, torch.Tensor):
        return torch.cat([first, second.to(first)])
    return np.concatenate([np.asarray(to_array(first)), np.asarray(second)])
