"""The two faces of every attack.

The torch face, :meth:`BaseAttack.perturb`, works on one batch of tensors and
is what adversarial training calls. The scikit-learn face (`fit`, `transform`,
`generate`, `fit_resample`) takes arrays; it is written here once. An attack
defines its hyperparameters and one method, `_attack_batch`.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import check_random_state
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import validate_data

from .._containers import FLOATS, dataset_labels, is_dataset, like, stack, to_array
from .._shared import SharedParameters
from .._validation import check_batch_size, check_labels, learn_bounds
from ..victims._columns import restore
from ..victims.engine import Engine
from ..victims.resolve import as_victim
from ..victims.space import FeatureSpace
from ._parameters import ATTRIBUTES, FIRST_PARAMETER, PARAMETERS
from ._rows import check_samples, fit_table, space_of, table_rows
from .objectives import resolve_objective
from .run import Prepared, in_order_of_columns, perturb_alike, perturb_prepared, prepare, run
from .targeting import BY_PREDICTION, choose_target, encode_target
from .threat import UNLIMITED, Ball, check_clip, check_eps, check_mask, check_norm

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from ._parameters import PerturbOptions


def _has_columns(attack):
    """Return whether samples are rows of a table, as far as is known."""
    return len(getattr(attack, "_sample_shape", ())) < 2


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
    #: Whether a run over many samples is more than one run after the other over parts of them.
    whole_runs = False
    #: Whether the user may say which class is to be reached.
    targetable = True
    #: Whether it changes the categories of tables, and not only their numbers.
    changes_categories = False
    #: Parameters by which the attack chooses classes to reach itself; None leaves it to the user.
    target_parameters = ()
    #: Whether a run to the last iterate is the same arithmetic for all batches, so that it can be
    #: recorded. Said by the class that defines `_attack_batch`.
    is_fixed_path = False
    #: Whether it is run as a CUDA graph; a parameter where that is possible.
    graph: str | bool = False
    #: What whoever reads a report must know about the result of this attack.
    remark = None

    _first_parameter_doc = FIRST_PARAMETER
    _shared_parameters_doc = PARAMETERS
    _shared_attributes_doc = ATTRIBUTES

    def __init__(
        self,
        estimator: Any = None,
        *,
        norm: float | str = np.inf,
        eps: float | ArrayLike | None = None,
        clip: str | Sequence[ArrayLike] | np.ndarray | None = "auto",
        target: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        space: FeatureSpace | None = None,
        bn_mode: str = "eval",
        precision: str | None = None,
        compile: bool | str = False,
        batch_size: int | str = "auto",
        device: str | torch.device = "auto",
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
        **unknown,
    ):
        self._refuse(unknown)
        self.estimator = estimator
        self.norm = norm
        self.eps = eps
        self.clip = clip
        self.target = target
        self.mask = mask
        self.space = space
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

    @overload
    def perturb(
        self,
        model: Any,
        x: torch.Tensor,
        y: torch.Tensor | None = None,
        objective: str | Callable | None = None,
        *,
        return_info: Literal[False] = False,
        **options: Unpack[PerturbOptions],
    ) -> torch.Tensor: ...

    @overload
    def perturb(
        self,
        model: Any,
        x: torch.Tensor,
        y: torch.Tensor | None = None,
        objective: str | Callable | None = None,
        *,
        return_info: Literal[True, "values", "iterates"],
        **options: Unpack[PerturbOptions],
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]: ...

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
        return_info: bool | str = False,
    ) -> torch.Tensor | tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Attack one batch of tensors.

        Parameters
        ----------
        model : torch.nn.Module, fitted estimator, Victim or Prepared
            What to attack; in training all that is settled for it, see
            :meth:`prepare`, of which `bounds` is a part.
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
        return_info : bool, "values" or "iterates", default=False
            Whether to return also what the attack reports about each sample. With "values" that
            has ``info["trace_values"]``, the objective wherever its gradient was taken, of shape
            (n, n_gradients), NaN after a sample was left alone; with "iterates" the points
            themselves as well, ``info["trace_iterates"]``, of shape (n, n_gradients, ...).

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
        prepared = model
        if not isinstance(model, Prepared):
            victim = self._victim_at_hand(model)
            if bounds is None:
                bounds = getattr(self, "clip_bounds_", victim.bounds)
            victim.compare(x)
            prepared = self.prepare(victim, tuple(x.shape[1:]), bounds=bounds)
        attack = prepared.attack
        # in training the generators are those of the fit
        perturb = attack.perturb_prepared if prepared is model else attack.perturb_alike
        options = {"keep": keep, "clean_logits": clean_logits, "trace": return_info}
        x_adv, info = perturb(prepared, x, y, objective, seed=seed, **options)
        return (x_adv, info) if return_info else x_adv

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
        attack = self._resolved()._in_order()
        norm = check_norm(attack.norm, attack.supported_norms)
        shape = tuple(x.shape[1:])
        eps = attack._effective_eps(norm, shape)
        space = attack._space_of(shape)
        box = attack._box(None if space is not None else bounds)
        return Prepared(attack, None, norm, eps, *box, space=space).ball(x)

    def _resolve_objective(self, objective):
        return resolve_objective(objective)

    def _see(self, victim, seed):
        """Return what the attack takes the victim for; `seed` is for what is random in it."""
        return victim

    @property
    def _has_own_perturb(self):
        """Whether a subclass has another torch face, which is then asked for everything."""
        return type(self).perturb is not BaseAttack.perturb

    def _same_each_time(self, device):
        """Return a context in which a model that answers at random gives the same answers again."""
        return nullcontext()

    def _complete(self, batch):
        """Fill in what depends on the clean prediction, and a target that is one for all."""
        by_prediction = isinstance(self.target, str) and self.target in BY_PREDICTION
        needed = batch.y is None or batch.objective.needs_clean or by_prediction
        if needed and batch.clean_logits is None:
            with torch.no_grad():
                batch.clean_logits = batch.ask(batch.x)
        if batch.y is None:
            batch.y = batch.clean_logits.argmax(1)
        if by_prediction:
            batch.target = choose_target(self.target, batch.clean_logits, batch.y, batch.noise)
        elif self.target is not None and batch.target is None:
            target = encode_target(self.target, batch.victim.classes, len(batch.x))
            batch.target = torch.from_numpy(target).to(batch.x.device)

    def _stated_eps(self, norm, sample_shape):
        """Return `eps` as it is given, the customary one where it is None or there is no limit."""
        eps = self.eps
        if self.minimal and np.ndim(eps) == 0 and eps is not None and eps > UNLIMITED:
            eps = None
        return check_eps(eps, norm, sample_shape)

    def _effective_eps(self, norm, sample_shape):
        """Return the radius, with frozen features given the radius zero."""
        eps = check_eps(self.eps, norm, sample_shape, unlimited=self.minimal)
        if self.mask is None:
            return eps
        return np.where(check_mask(self.mask, sample_shape), eps, 0.0)

    def _box(self, bounds):
        return check_clip(self.clip, bounds)

    def _n_at_a_time(self, X, victim):
        """Return how many of the samples `X` are attacked at a time."""
        return check_batch_size(self.batch_size, X, victim.is_image)

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
        precision = None if self._asks_only else self.precision
        Engine(self.precision)  # raises if there is no such precision
        return Engine(
            precision, self.compile, fold=tries, channels_last=tries, exact=self._asks_only
        )

    def _with(self, **settings):
        """Return this attack with other shared parameters."""
        attack = copy.copy(self)
        vars(attack).update(settings)
        return attack

    def _draw_seed(self):
        return int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))

    # --- scikit-learn face -----------------------------------------------------------

    def fit(self, X: Any, y: ArrayLike | None = None) -> Self:
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
        settings = settings._in_order(X, settings.estimator)
        self.__dict__.pop("space_", None)
        rows = settings._table_rows(X)
        if rows is not None:
            return self._fit_table(settings, rows, X)
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

    @overload
    def generate(
        self, X: Any, y: ArrayLike | None = None, *, return_info: Literal[False] = False
    ) -> Any: ...

    @overload
    def generate(
        self, X: Any, y: ArrayLike | None = None, *, return_info: Literal[True]
    ) -> tuple[Any, dict[str, np.ndarray]]: ...

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
        if isinstance(return_info, str):
            raise ValueError(
                f"return_info={return_info!r} is for `perturb`, which attacks one batch of tensors "
                "and keeps each step in memory: ask that, or give True."
            )
        prepared = self._prepare_own(X, y)
        X_adv, info = prepared.attack.run(prepared)
        prepared.batches.warn(3)
        X_adv = like(X_adv, X) if prepared.space is None else restore(X_adv, X, prepared.space)
        return (X_adv, info) if return_info else X_adv

    def _prepare_own(self, X, y):
        """Return the run on what the user passes, against the model of this attack."""
        attack = self._resolved()
        rows = attack._in_order(X)._table_rows(X)
        victim = attack._victim(None if rows is None else rows.space.columns_)
        if rows is not None:
            prepared = attack.prepare(victim, rows, y, original=X)
            prepared.victim.compare(rows)
            return prepared
        bounds = attack._known_bounds(victim)
        values = attack._check_X(X, victim)
        prepared = attack.prepare(
            victim, values, y, bounds=bounds, original=X, in_parts=attack.whole_runs
        )
        prepared.victim.compare(values, columns=getattr(X, "columns", None))
        return prepared

    # without it scikit-learn leaves images as they are, whatever output is set
    @available_if(_has_columns)
    def get_feature_names_out(self, input_features: ArrayLike | None = None) -> np.ndarray:
        """Return the names of the columns of a table, which are those of the input.

        Parameters
        ----------
        input_features : array-like of str, optional
            Names of the features where `fit` has seen none.

        Returns
        -------
        names : ndarray of str of shape (n_features,)
        """
        return super().get_feature_names_out(input_features)

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

    #: Bring what has names into the order of the columns.
    _in_order = in_order_of_columns
    #: What comes in: a table, of which is known what its columns may become, or an array.
    _space_of, _table_rows, _fit_table = space_of, table_rows, fit_table
    _check_X = check_samples
    #: Settle everything before the first question, and attack samples or a batch of tensors: what
    #: all other methods call.
    prepare, run = prepare, run
    perturb_prepared, perturb_alike = perturb_prepared, perturb_alike

    def _victim(self, columns=None):
        model = getattr(self, "estimator_", self.estimator)
        if model is None:
            raise NotFittedError(
                f"This {type(self).__name__} has no model to attack: pass a fitted one as "
                "`estimator`, or call fit(X, y) to attack a surrogate."
            )
        return as_victim(model, attack=type(self).__name__, access=self.access, columns=columns)

    def _victim_at_hand(self, model):
        """Return the victim that a model is; the same as last time if it was dear to make."""
        known = vars(self).get("_last_victim", (None, None))
        if known[0] is not model:
            known = model, as_victim(model, attack=type(self).__name__, access=self.access)
            if self.compile or self.graph is True:
                self._last_victim = known
        return known[1]

    def __getstate__(self):
        return {k: v for k, v in super().__getstate__().items() if k != "_last_victim"}

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
        attack = self._resolved()
        if hasattr(attack, "estimator_"):
            return True
        try:
            if attack.space is None:
                attack._known_bounds(attack._victim())
            else:
                return attack.space.__sklearn_is_fitted__() and attack.estimator is not None
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


def check_attack(attack, name="attack"):
    """Raise unless `attack` is an instance of an attack."""
    if isinstance(attack, type) or not hasattr(attack, "perturb"):
        raise TypeError(f"{name} must be an attack such as PGD(eps=0.1), got {attack!r}.")
