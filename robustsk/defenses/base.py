"""The base of every defence: a skorch classifier at home in scikit-learn.

A defence says three things: its own hyperparameters, what its inner
maximisation ascends (`attack_objective`) and what it minimises
(`training_loss`). Everything else is here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.utils import _safe_indexing, check_random_state
from skorch import NeuralNet, NeuralNetClassifier
from torch import nn
from torch.utils.data import DataLoader

from .._generator import GeneratorState
from .._interrupts import uninterrupted
from .._shared import SharedParameters, temporarily
from .._validation import check_count
from ..attacks import PGD, BaseAttack
from ..models import forward_with_features, make_module
from ..victims._outputs import two_logits
from ._crafting import Crafting
from ._epochs import Epochs
from ._fit_params import taken_by
from ._fitting import Preparation
from ._interruption import Interruption
from ._nested import NestedParameters
from ._networks import copy_of, materialised, needs_no_facts
from ._prediction import Prediction
from ._skorch import TrainingLoop, resolve_device

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from ..models.heads import Head
    from ..training import AWP
    from ._parameters import AnyNestedParameters, Network


class BaseDefense(
    Preparation,
    Crafting,
    Interruption,
    Epochs,
    TrainingLoop,
    Prediction,
    NestedParameters,
    SharedParameters,
    NeuralNetClassifier,
):
    """Base class of all defences.

    Subclasses define `__init__` with their own hyperparameters (passing the
    rest on as ``**common``), `training_loss`, and where it differs from
    cross-entropy `attack_objective`.

    An adversary may learn in the course of training. If `adversary_` has these
    methods, they are called: ``observe(x, x_adv, weight)`` after it has crafted
    a batch in :meth:`perturb`, with sample weights or None; ``record()`` at the
    end of an epoch, which returns a dict for the history; and
    ``resume(previous)`` with the last adversary where training goes on.
    """

    _first_parameter_doc = """
    module : str, torch.nn.Module class or instance, default=None
        The network, which returns logits. None means an MLP for tables and a
        small CNN for images; a string names a network of
        :mod:`robustsk.models`.
"""

    _shared_parameters_doc = """
    adversary : attack, default=None
        What makes the adversarial examples in training, and the threat model
        that `score_adversarial` assumes. None means a 10-step PGD with
        ``eps=8/255``. Its parameters can be given as ``adversary__eps=0.3``.
        Its randomness comes from the `random_state` of this estimator.
    head : HypersphereHead, MMCHead or None, default=None
        What takes the place of the last linear layer. None leaves it.
    weight_perturbation : AWP or None, default=None
        Adversarial perturbation of the weights in every training step.
    augmentation : callable, default=None
        ``f(x)``, applied to every training batch before it is attacked, e.g.
        :class:`robustsk.training.RandomCropFlip`.
    input_shape : tuple of int, default=None
        Shape of one sample as the network wants it, where the rows of `X` are
        flattened images, e.g. ``(1, 28, 28)``. None means the shape in `X`.
    criterion : torch criterion class, default=torch.nn.CrossEntropyLoss
        Classification loss on logits; ``criterion__label_smoothing=0.1`` and
        the like are passed on.
    optimizer : torch optimizer class, default=torch.optim.Adam
        Options are given as ``optimizer__weight_decay=5e-4``.
    lr : float, default=0.005
        Learning rate.
    max_epochs : int, default=20
        Passes over the data in a call of `fit` or `partial_fit`.
    batch_size : int, default=128
        Samples per step; -1 means all.
    precision : {None, "bf16"}, default=None
        Precision in which convolutions and matrix products are computed in
        training, by the adversary as well unless it has its own; None means
        that of the parameters. Losses, predictions and scores are always
        computed in the precision of the parameters.
    class_weight : dict, "balanced" or None, default=None
        Weights of the classes, as in scikit-learn.
    warm_start : bool, default=False
        Whether `fit` goes on from the present weights.
    train_split : callable, default=None
        What splits off validation data, e.g. ``skorch.dataset.ValidSplit(5)``.
        None means to train on everything.
    callbacks : list, "disable" or None, default=None
        skorch callbacks.
    classes : array-like of shape (n_classes,), default=None
        All labels there are, where `y` may not contain every one.
    iterator_train : class, default=torch.utils.data.DataLoader
        Batches for training, shuffled unless ``iterator_train__shuffle=False``.
    iterator_valid : class, default=torch.utils.data.DataLoader
        Batches for validation and prediction.
    compile : bool, default=False
        Whether to use `torch.compile`.
    device : str or torch.device, default="auto"
        "auto" is CUDA where present, and the CPU otherwise.
    random_state : int, RandomState or None, default=None
        Source of all randomness: initial weights, batches, adversary. torch's
        global generator is neither read nor moved.
    verbose : int, default=0
        1 prints a line per epoch.
    **nested
        Parameters of nested objects: ``module__``, ``adversary__``,
        ``optimizer__``, ``criterion__``, ``callbacks__``, ``iterator_train__``,
        ``iterator_valid__``, ``compile__``. Also `dataset`,
        `predict_nonlinearity`, `use_caching` and `torch_load_kwargs`, as in skorch.
"""

    _shared_attributes_doc = """
    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Labels in the order of the columns of `predict_proba`.
    module_ : torch.nn.Module
        The trained network.
    adversary_ : attack
        The adversary used in training.
    history_ : skorch.history.History
        What was recorded in training, one entry per epoch.
    interrupted_ : dict or None
        Where Ctrl-C has cut the last training: the number of the "epoch", from 1, and of the
        last "batch" that was trained on in it. None if nothing has.
    clip_bounds_ : tuple of (ndarray, ndarray) or None
        Smallest and largest value in the training data.
    n_features_in_ : int
        Number of features seen in `fit`.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features seen in `fit`, if they are all strings.
"""

    def __init__(
        self,
        module: Network | Sequence[Network] | None = None,
        *,
        adversary: BaseAttack | None = None,
        head: Head | None = None,
        weight_perturbation: AWP | None = None,
        augmentation: Callable[[torch.Tensor], torch.Tensor] | None = None,
        input_shape: Sequence[int] | None = None,
        criterion: Callable[..., Any] = nn.CrossEntropyLoss,
        optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
        lr: float = 0.005,
        max_epochs: int = 20,
        batch_size: int = 128,
        precision: str | None = None,
        class_weight: dict | str | None = None,
        warm_start: bool = False,
        train_split: Callable | None = None,
        callbacks: Sequence[Any] | str | None = None,
        classes: ArrayLike | None = None,
        iterator_train: Callable[..., Any] = DataLoader,
        iterator_valid: Callable[..., Any] = DataLoader,
        compile: bool = False,
        device: str | torch.device | None = "auto",
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
        **nested: Unpack[AnyNestedParameters],
    ):
        if "history" in nested:  # what skorch records in; a result, and no parameter
            self.history_ = nested.pop("history")
        # not setattr: skorch would take a module given as an instance for its own
        vars(self).update(
            module=module,
            adversary=adversary,
            head=head,
            weight_perturbation=weight_perturbation,
            augmentation=augmentation,
            input_shape=input_shape,
            criterion=criterion,
            optimizer=optimizer,
            lr=lr,
            max_epochs=max_epochs,
            batch_size=batch_size,
            precision=precision,
            class_weight=class_weight,
            warm_start=warm_start,
            train_split=train_split,
            callbacks=callbacks,
            classes=classes,
            iterator_train=iterator_train,
            iterator_valid=iterator_valid,
            compile=compile,
            device=device,
            random_state=random_state,
            verbose=verbose,
            **nested,
        )
        self._refuse(key for key in nested if not self._may_be_nested(key))

    # --- what a defence defines --------------------------------------------------------

    def training_loss(self, x, x_adv, y):
        """Return the loss to minimise, one value per sample.

        Parameters
        ----------
        x : torch.Tensor of shape (n, ...)
            Clean batch, as the network wants it.
        x_adv : torch.Tensor of the shape of `x`
            What :meth:`craft` returned.
        y : torch.Tensor of shape (n,)
            Class indices.

        Returns
        -------
        torch.Tensor of shape (n,)
        """
        raise NotImplementedError(f"{type(self).__name__} must define training_loss.")

    def attack_objective(self) -> str | Callable | None:
        """Return what the inner maximisation ascends; None leaves it to the adversary."""
        return

    def default_adversary(self) -> BaseAttack:
        """Return the adversary that is used where none is given."""
        return PGD()

    def build_module(self, **facts):
        """Return the network, not yet on a device.

        Parameters
        ----------
        **facts
            `input_shape` and `n_classes`; None where not known yet.

        Returns
        -------
        torch.nn.Module
            A new one: a module given as an instance is copied, never trained
            in place, so that cross-validation folds share nothing.
        """
        return self.make_network(self.module, **facts)

    def make_network(self, spec, **facts):
        """Return a new network of the kind `spec`: a name, class, instance or None."""
        params = self.get_params_for("module")
        known = facts["input_shape"] is not None and facts["n_classes"] is not None
        if isinstance(spec, nn.Module) and not params:
            module = copy_of(spec)
        elif known:
            module = make_module(spec, params=params, **facts)
        else:
            maker = type(spec) if isinstance(spec, nn.Module) else spec
            if not needs_no_facts(maker, params):
                raise ValueError(
                    f"{type(self).__name__} cannot build its network before it has seen data: call "
                    "fit, or give it input_shape=(...) and classes=[...]."
                )
            module = maker(**params)
        if facts["input_shape"] is not None:
            module = materialised(module, facts["input_shape"])
        head = self._head()
        return module if head is None else head.attach(module)

    def craft(self, x: torch.Tensor, y: torch.Tensor) -> Any:
        """Return the adversarial counterpart of a training batch.

        Parameters
        ----------
        x : torch.Tensor of shape (n, ...)
        y : torch.Tensor of shape (n,)

        Returns
        -------
        torch.Tensor of the shape of `x`
            Detached. It is what `training_loss` is given as `x_adv`, and may be
            a list or tuple of such tensors and of what else it needs.
        """
        return self.perturb(self.module_, x, y)

    # --- tools for defences ------------------------------------------------------------

    def logits(self, x, module=None):
        """Return the logits of a batch, shape (n, n_classes)."""
        if module is None and self._clean is not None and self._clean[0] is x:
            # once only: an optimizer may ask again, with other weights
            (_, logits), self._clean = self._clean, None
        else:
            with self.arithmetic(x):
                logits = two_logits((self.module_ if module is None else module)(x), len(x))
            logits = logits.to(x.dtype)
        if not self._shape_checked:
            self._check_logits(logits, x)
        if self._step_logits is None:
            self._step_logits = logits
        return logits

    def logits_and_features(self, x, layer=None):
        """Return the logits of a batch and a representation in the network.

        Parameters
        ----------
        x : torch.Tensor of shape (n, ...)
        layer : str, optional
            Name of the layer whose output is wanted. None means what enters the
            last linear layer.

        Returns
        -------
        logits : torch.Tensor of shape (n, n_classes)
        features : torch.Tensor of shape (n, n_features)
        """
        if self._clean is not None and self._clean[0] is x:
            self._clean = None  # logits without their features are of no use
        with self.arithmetic(x):
            logits, features = forward_with_features(self.module_, x, layer)
        return self.logits(x, lambda _: logits), features.to(x.dtype)

    def arithmetic(self, x):
        """Return the context in which the network works on `x` in training."""
        return torch.autocast(x.device.type, torch.bfloat16, enabled=self.precision is not None)

    def classification_loss(self, logits, y):
        """Return the value of `criterion` per sample, with the margin of the head; shape (n,)."""
        if self.head_ is not None:
            logits = self.head_.penalise(logits, y)
        return self._losses(logits, y)

    @property
    def batch_weight(self):
        """Sample weights of the training batch, shape (n,), or None: for batch means."""
        return self._batch_weight

    @property
    def epoch(self):
        """Number of the present epoch, from 0, over all calls of `fit` that go on from another.

        It is -1 before the first.
        """
        return len(self.history_ or ()) - 1

    def _check_logits(self, logits, x):
        n_classes = len(self.classes_inferred_)
        if logits.ndim != 2 or logits.shape[1] != n_classes:
            raise ValueError(
                f"The module returns {tuple(logits.shape)} for a batch of {len(x)} samples and "
                f"y has {n_classes} classes: it must return logits of shape "
                f"(n_samples, {n_classes}). A constructor that has a parameter n_classes (or "
                "num_classes) is told the number."
            )

    # --- fitting -----------------------------------------------------------------------

    def fit(
        self,
        X: Any,
        y: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        **fit_params: Any,
    ) -> Self:
        """Train the network.

        An interrupt (Ctrl-C) ends the training and leaves a usable model: a warning and
        `interrupted_` say where. If this is the training of one of several models, as in a
        search, all end with KeyboardInterrupt.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...) or torch Dataset
            Table or images: array, memory-mapped array, DataFrame, list,
            tensor, or a Dataset of features or of (features, label).
        y : array-like of shape (n_samples,)
            Labels of any kind. May be omitted where `X` is a Dataset that
            yields them.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the samples in the loss.
        **fit_params
            What `train_split` is given besides the data, e.g. ``groups``, and the `forward`
            of the module in training; each gets what it takes by its name.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If the data, the labels or a parameter are not valid.
        FloatingPointError
            If the training loss is not finite. Weights that are known to be
            good, from the start of this or the last epoch, are then restored
            and the model can be used.
        """
        X = self._wrapped(X, y)
        fresh = not (self.warm_start and self.initialized_)
        samples = self._prepare(X, y, sample_weight, reset=fresh)
        return self._train_on(samples, fresh, fit_params)

    def partial_fit(
        self,
        X: Any,
        y: ArrayLike | None = None,
        classes: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        epochs: int | None = None,
        **fit_params: Any,
    ) -> Self:
        """Train for more epochs, from where training stopped.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...) or torch Dataset
        y : array-like of shape (n_samples,)
        classes : array-like of shape (n_classes,), default=None
            All labels there are; needed in the first call if `y` lacks some.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the samples in the loss.
        epochs : int, default=None
            How many. None means `max_epochs`.
        **fit_params
            As in `fit`.

        Returns
        -------
        self
        """
        X = self._wrapped(X, y)
        fresh = not self.initialized_
        samples = self._prepare(X, y, sample_weight, reset=fresh, classes=classes)
        return self._train_on(samples, fresh, fit_params, epochs)

    def _train_on(self, samples, fresh, fit_params, epochs=None):
        split_params = taken_by(self.train_split, fit_params) if self.train_split else {}
        if samples.rows is not None:
            split_params = {k: _safe_indexing(v, samples.rows) for k, v in split_params.items()}
        options = {"_fit_params": fit_params, "_split_params": split_params}
        if epochs is not None:
            options["max_epochs"] = check_count(epochs, "epochs", least=0)
        self.interrupted_ = None
        with temporarily(self, **options):
            self._train(samples, fresh)
        self._tell_interrupt()
        return self

    def _train(self, samples, fresh):
        with self._session(fresh) as interruptible, interruptible():
            if fresh:
                self._begin_anew()
            NeuralNet.partial_fit(self, samples, samples.y)
        return self

    def _begin_anew(self):
        """Initialize within a training; mixins of skorch replace `initialize` itself."""
        try:
            with self._drawing() as interruptible, interruptible():
                self.initialize()
        except BaseException:
            # some of it may be new and the rest of a training before
            self.initialized_ = False
            vars(self).pop("module_", None)
            raise

    @contextmanager
    def _session(self, fresh):
        """All that holds during training only; yields what is not to be interrupted without."""
        if fresh or not hasattr(self, "_rng"):
            self._rng = check_random_state(self.random_state)
        # an interrupt on the way out of no_grad would leave gradients off
        gradients = torch.set_grad_enabled(torch.is_grad_enabled())
        with uninterrupted() as interruptible, gradients:
            self._in_fit = True
            self._victims = {}
            try:
                self._generator = self._new_generator()
                yield interruptible
            finally:
                self._in_fit = False
                self._step_logits = None
                for name in self._of_a_session:
                    vars(self).pop(name, None)
                if self.initialized_:
                    self._set_training(False)

    def _new_generator(self):
        # device=None leaves placement to something else, accelerate for instance
        device = self._device() or resolve_device("auto")
        return GeneratorState(int(self._rng.randint(np.iinfo(np.int32).max)), device)

    def _drawing(self):
        """Return the context in which the random numbers are those of this training."""
        return nullcontext(nullcontext) if self._generator is None else self._generator.in_use()

    def __repr__(self, *args, **kwargs):
        return BaseEstimator.__repr__(self, *args, **kwargs)
