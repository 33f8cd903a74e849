"""The base of every defence: a skorch classifier at home in scikit-learn.

A defence says three things: its own hyperparameters, what its inner
maximisation ascends (`attack_objective`) and what it minimises
(`training_loss`). Everything else is here.
"""

from __future__ import annotations

import copy
import difflib
import inspect
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, clone
from sklearn.utils import check_random_state, compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    _check_sample_weight,
    check_array,
    check_consistent_length,
    column_or_1d,
    validate_data,
)
from skorch import NeuralNet, NeuralNetClassifier
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, Subset

from .._containers import (
    check_labels,
    check_not_empty,
    check_sample_shape,
    dataset_labels,
    is_dataset,
    sample_of,
    to_array,
)
from .._shared import SharedParameters
from ..attacks import PGD, BaseAttack, Victim
from ..attacks._engine import Engine, lay_out
from ..attacks.base import check_attack, encode_labels, learn_bounds, warn_about_units
from ..attacks.objectives import resolve_objective
from ..attacks.targets import get_members, two_logits
from ..attacks.threat import check_eps, check_norm
from ..models import forward_with_features, get_classifier, make_module
from ..training._weights import copy_of_state
from ._data import Crafted, Samples, collate


class BaseDefense(SharedParameters, NeuralNetClassifier):
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
        ``iterator_valid__``, ``compile__``.
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
    clip_bounds_ : tuple of (ndarray, ndarray) or None
        Smallest and largest value in the training data.
    n_features_in_ : int
        Number of features seen in `fit`.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features seen in `fit`, if they are all strings.
"""

    # skorch keeps its run-time state in attributes; as class defaults they leave
    # `__init__` with nothing to set but parameters, as scikit-learn demands
    history_ = None
    initialized_ = False
    virtual_params_ = {}
    _modules = ["module"]
    _criteria = ["criterion"]
    _optimizers = ["optimizer"]
    #: Parameters that are objects with parameters of their own.
    _objects = ("adversary", "head", "weight_perturbation", "augmentation")
    prefixes_ = [*NeuralNet.prefixes_, "module", "criterion", "optimizer", *_objects]
    cuda_dependent_attributes_ = ["module_", "criterion_", "optimizer_"]
    dataset = Samples
    predict_nonlinearity = "auto"
    use_caching = "auto"
    torch_load_kwargs = None
    _in_fit = False
    _shape_checked = False
    #: What is needed during training only.
    _of_a_session = ("_victims", "_clean", "_last_good", "_candidate", "_batch_weight")
    #: Optimisation steps that are taken on each batch.
    _steps_per_batch = 1
    head_ = None
    weight_perturbation_ = None
    augmentation_ = None
    _channels_last = None
    _step_logits = None
    _same_in_training = None
    _batch_weight = None
    _clean = None
    _victims = None
    _last_good = None
    _candidate = None

    def __init__(
        self,
        module=None,
        *,
        adversary=None,
        head=None,
        weight_perturbation=None,
        augmentation=None,
        input_shape=None,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        lr=0.005,
        max_epochs=20,
        batch_size=128,
        precision=None,
        class_weight=None,
        warm_start=False,
        train_split=None,
        callbacks=None,
        classes=None,
        iterator_train=DataLoader,
        iterator_valid=DataLoader,
        compile=False,
        device="auto",
        random_state=None,
        verbose=0,
        **nested,
    ):
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

    def attack_objective(self):
        """Return what the inner maximisation ascends; None leaves it to the adversary."""
        return

    def default_adversary(self):
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
        if isinstance(spec, nn.Module) and not params:
            module = copy.deepcopy(spec)
        elif facts["input_shape"] is None or facts["n_classes"] is None:
            raise ValueError(
                f"{type(self).__name__} cannot build its network before it has seen data: call "
                "fit, or give it input_shape=(...) and classes=[...]."
            )
        else:
            module = make_module(spec, params=params, **facts)
        head = self._head()
        return module if head is None else head.attach(module)

    def craft(self, x, y):
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

    def perturb(self, module, x, y, *, objective=None, adversary=None, return_info=False):
        """Attack a network in the course of training.

        Parameters
        ----------
        module : torch.nn.Module
            `module_` or a part of it.
        x : torch.Tensor of shape (n, ...)
        y : torch.Tensor of shape (n,)
        objective : str, callable or Objective, optional
            None means that of this defence.
        adversary : attack, optional
            None means that of this defence.
        return_info : bool, default=False
            Whether to return also what the adversary reports about each sample.

        Returns
        -------
        x_adv : torch.Tensor of the shape of `x`
            Detached.
        info : dict of str to torch.Tensor of shape (n, ...)
            Only with `return_info`.
        """
        adversary = self.adversary_ if adversary is None else adversary
        victim = self._victim_in_training(module)
        rows = self._rows(x)
        if not self._shape_checked:
            with victim.frozen(), torch.no_grad():
                self._check_logits(victim(rows), x)
        objective = self.attack_objective() if objective is None else objective
        clean = None
        if (
            module is self.module_
            and resolve_objective(objective).needs_clean
            and self._may_share_clean(x)
        ):
            clean = self.logits(x)
            self._clean = x, clean
        x_adv, info = adversary.perturb(
            victim,
            rows,
            y,
            objective,
            bounds=victim.bounds,
            seed=int(self._rng.randint(np.iinfo(np.int32).max)),
            clean_logits=None if clean is None else clean.detach(),
            return_info=True,
        )
        if adversary is self.adversary_ and hasattr(adversary, "observe"):
            adversary.observe(rows, x_adv, self.batch_weight)
        x_adv = x_adv.reshape(x.shape)
        return (x_adv, info) if return_info else x_adv

    def _victim_in_training(self, module):
        # one for the whole training: it has found out how to make the network fast
        known = {} if self._victims is None else self._victims
        if module not in known:
            known[module] = self._victim(module, self.classes_inferred_)
        return known[module]

    def _rows(self, x):
        """Return a batch in the shape of the user's data, to which eps, mask and clip belong."""
        return x.reshape(len(x), *getattr(self, "_sample_shape", self.input_shape_))

    def like_adversary(self, kind, **settings):
        """Return another attack with the settings of the adversary, above all its threat model.

        Parameters
        ----------
        kind : class
            An attack.
        **settings
            Parameters that it does not take over.

        Returns
        -------
        attack
            An instance of `kind`.
        """
        shared, names = (inspect.signature(c).parameters for c in (BaseAttack, kind))
        taken = {
            name: value
            for name, value in self.adversary_._resolved().get_params(deep=False).items()
            # what is not said, of what only some attacks have, is for the new one to choose
            if name in names and (value is not None or name in shared)
        }
        for name in ("estimator", "random_state", "verbose"):
            taken.pop(name, None)
        return kind(**{**taken, **settings})

    def logits(self, x, module=None):
        """Return the logits of a batch, shape (n, n_classes)."""
        if module is None and self._clean is not None and self._clean[0] is x:
            # once only: an optimizer may ask again, with other weights
            (_, logits), self._clean = self._clean, None
        else:
            with self.arithmetic(x):
                logits = two_logits((self.module_ if module is None else module)(x))
            logits = logits.to(x.dtype)
        if not self._shape_checked:
            self._check_logits(logits, x)
        if self._step_logits is None:
            self._step_logits = logits.detach()
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
        return self.criterion_(logits, y)

    @property
    def batch_weight(self):
        """Sample weights of the training batch, shape (n,), or None: for batch means."""
        return self._batch_weight

    @property
    def epoch(self):
        """Number of the present epoch, from 0, over all calls of `fit` that go on from another."""
        return len(self.history_) - 1

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
        self, X: Any, y: ArrayLike | None = None, sample_weight: ArrayLike | None = None
    ) -> BaseDefense:
        """Train the network.

        An interrupt (Ctrl-C) ends the training and leaves a usable model.

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
        fresh = not (self.warm_start and self.initialized_)
        samples = self._prepare(X, y, sample_weight, reset=fresh)
        return self._train(samples, fresh)

    def partial_fit(
        self,
        X: Any,
        y: ArrayLike | None = None,
        classes: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> BaseDefense:
        """Train for another `max_epochs` epochs, from where training stopped.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...) or torch Dataset
        y : array-like of shape (n_samples,)
        classes : array-like of shape (n_classes,), default=None
            All labels there are; needed in the first call if `y` lacks some.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the samples in the loss.

        Returns
        -------
        self
        """
        fresh = not self.initialized_
        samples = self._prepare(X, y, sample_weight, reset=fresh, classes=classes)
        return self._train(samples, fresh)

    def _prepare(self, X, y, sample_weight, *, reset, classes=None):
        """Validate, learn shapes, classes and valid range; return `Samples`."""
        first_time = reset or not hasattr(self, "_sample_shape")
        if is_dataset(X):
            check_not_empty(X)
            y = column_or_1d(check_labels(dataset_labels(X) if y is None else y))
            check_consistent_length(X, y)
            shape = tuple(np.shape(sample_of(X[0])))
            if first_time:
                self.n_features_in_ = shape[0] if shape else 1
        else:
            original = X
            X, y = validate_data(
                self,
                to_array(X),
                None if y is None else check_labels(y),
                dtype="numeric",
                allow_nd=True,
                reset=first_time,
            )
            shape = X.shape[1:]
        check_classification_targets(y)
        if first_time:
            self._learn_classes(y, classes)
            self._learn_shape(shape)
            self._float64 = not is_dataset(X) and X.dtype == np.float64 and not self._is_image
        elif classes is not None and not np.array_equal(np.unique(classes), self.classes_inferred_):
            raise ValueError(
                f"classes={np.unique(classes).tolist()} are not those of the first call, "
                f"{self.classes_inferred_.tolist()}."
            )
        else:
            check_sample_shape(shape, self._sample_shape, self)
        encoded = self._encode(y)
        weight = self._weights(X, encoded, sample_weight)
        if weight is not None and not weight.all():
            # a sample of weight zero must not take up a place in a batch either
            kept = np.flatnonzero(weight)
            X = Subset(X, kept.tolist()) if is_dataset(X) else X[kept]
            encoded, weight = encoded[kept], weight[kept]
        previous = None if reset else getattr(self, "adversary_", None)
        self.adversary_ = adversary = self._adversary()
        if previous is not None and hasattr(adversary, "resume"):
            adversary.resume(previous)
        self.weight_perturbation_ = self._nested("weight_perturbation")
        self.augmentation_ = self._nested("augmentation")
        Engine(self.precision)  # raises if there is no such precision
        if adversary.precision is None:
            adversary.precision = self.precision
        self._learn_range(X, first_time)
        if not is_dataset(X):
            warn_about_units(original, check_eps(adversary.eps, check_norm(adversary.norm), shape))
        return Samples(X, encoded, weight)

    def _learn_classes(self, y, classes):
        known = self.classes if classes is None else classes
        found = np.unique(y) if known is None else np.unique(np.asarray(known))
        if len(found) < 2:
            raise ValueError(
                f"{type(self).__name__} needs at least 2 classes, and the data contain 1 class: "
                f"{found.tolist()}."
            )
        self.classes_inferred_ = found

    def _encode(self, y):
        """Turn labels into class indices."""
        return encode_labels(y, self.classes_inferred_, "y")

    def _learn_shape(self, shape):
        self._sample_shape = tuple(shape)
        if self.input_shape is None:
            wanted = self._sample_shape
        else:
            wanted = tuple(int(s) for s in np.atleast_1d(self.input_shape))
            if np.prod(wanted) != np.prod(shape):
                raise ValueError(
                    f"input_shape={wanted} has {np.prod(wanted)} entries and a sample of X has "
                    f"{int(np.prod(shape))} (shape {tuple(shape)}): they must be as many."
                )
        self.input_shape_ = wanted
        self._shape_checked = False

    @property
    def _is_image(self):
        return len(getattr(self, "input_shape_", ())) > 1

    def _weights(self, X, y, sample_weight):
        if sample_weight is None and self.class_weight is None:
            return None
        like = X if not is_dataset(X) else np.empty((len(X), 1))
        weight = _check_sample_weight(
            sample_weight, like, dtype=np.float64, ensure_non_negative=True
        )
        if self.class_weight is not None:
            present, position = np.unique(y, return_inverse=True)
            spec = self.class_weight
            if isinstance(spec, dict):
                index = encode_labels(list(spec), self.classes_inferred_, "class_weight")
                given = dict(zip(index.tolist(), spec.values(), strict=True))
                spec = {k: given.get(k, 1.0) for k in present.tolist()}
            weight = weight * compute_class_weight(spec, classes=present, y=y)[position]
        if not weight.any():
            raise ValueError("All sample weights are zero: there is nothing to learn from.")
        return weight

    def _learn_range(self, X, first_time):
        """Smallest and largest value, for adversaries with ``clip="auto"``."""
        if not isinstance(self.adversary_.clip, str):
            if first_time:
                self.clip_bounds_ = None
            return
        if is_dataset(X):
            lows, highs = zip(
                *(
                    learn_bounds(np.asarray(sample_of(X[i]), float)[None], True)
                    for i in range(len(X))
                ),
                strict=True,
            )
            bounds = np.min(lows), np.max(highs)
        else:
            bounds = learn_bounds(X, self._is_image)
        if not first_time and self.clip_bounds_ is not None:
            low, high = self.clip_bounds_
            bounds = np.minimum(low, bounds[0]), np.maximum(high, bounds[1])
        self.clip_bounds_ = tuple(np.asarray(b, dtype=float) for b in bounds)

    def _train(self, samples, fresh):
        with self._session(fresh):
            if fresh:
                self.initialize()
            NeuralNet.partial_fit(self, samples, samples.y)
        return self

    @contextmanager
    def _session(self, fresh):
        """All that holds during training only."""
        if fresh or not hasattr(self, "_rng"):
            self._rng = check_random_state(self.random_state)
        self._in_fit = True
        self._victims = {}
        try:
            with self._seeded():
                yield
        finally:
            self._in_fit = False
            self._step_logits = None
            for name in self._of_a_session:
                vars(self).pop(name, None)
            if self.initialized_:
                self._set_training(False)

    @contextmanager
    def _seeded(self):
        """Run with a generator of our own and leave the global one untouched."""
        # device=None leaves placement to something else, accelerate for instance
        device = torch.device(self._device() or _resolve_device("auto"))
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(int(self._rng.randint(np.iinfo(np.int32).max)))
            yield

    def initialize(self):
        """Build the network, the optimizer and the adversary.

        `fit` does this by itself. To load saved parameters into a new
        estimator without data, give it `input_shape` and `classes` first.

        Returns
        -------
        self
        """
        if not hasattr(self, "_rng"):
            self._rng = check_random_state(self.random_state)
        if not hasattr(self, "classes_inferred_") and self.classes is not None:
            self.classes_inferred_ = np.unique(np.asarray(self.classes))
        if not hasattr(self, "input_shape_") and self.input_shape is not None:
            self.input_shape_ = tuple(int(s) for s in np.atleast_1d(self.input_shape))
        if not self._in_fit:  # where it is there already
            self.adversary_ = self._adversary()
        context = nullcontext() if self._in_fit else self._seeded()
        with context, self._concrete_device():
            super().initialize()
        return self

    def initialize_module(self):
        """Build the network; called by skorch."""
        classes = getattr(self, "classes_inferred_", None)
        module = self.build_module(
            input_shape=getattr(self, "input_shape_", None),
            n_classes=None if classes is None else len(classes),
        )
        if getattr(self, "_float64", False) and not callable(self.module):
            # like MLPClassifier, compute with tables in the precision they come in
            module = module.double()
        self.module_ = module
        self.head_ = self._head()
        self._shape_checked = False
        self._channels_last = self._same_in_training = None
        return self

    def initialize_criterion(self):
        """Build the criterion, one value per sample; called by skorch."""
        params = self.get_params_for("criterion")
        if (
            isinstance(self.criterion, type)
            and "reduction" in inspect.signature(self.criterion).parameters
        ):
            params["reduction"] = "none"
        self.criterion_ = self.initialized_instance(self.criterion, params)
        return self

    def _initialize_module(self, reason=None):
        with self._concrete_device():
            return super()._initialize_module(reason)

    def _initialize_criterion(self, reason=None):
        with self._concrete_device():
            return super()._initialize_criterion(reason)

    def check_data(self, X, y=None):
        """Do nothing: the data have been validated already."""

    def get_dataset(self, X, y=None):
        """Return `X` as a Dataset; called by skorch."""
        base = X
        while isinstance(base, Subset):
            base = base.dataset
        return X if isinstance(base, Samples) else Samples(X, y)

    def get_iterator(self, dataset, training=False):
        """Return the batches of a Dataset; called by skorch."""
        prefix = "iterator_train" if training else "iterator_valid"
        params = self.get_params_for(prefix)
        added = {}
        if "collate_fn" not in params:
            added["collate_fn"] = collate
        if training and self._in_fit and not isinstance(dataset, IterableDataset):
            if not {"shuffle", "sampler", "batch_sampler"} & params.keys():
                added["shuffle"] = True
            size = params.get("batch_size", self.batch_size)
            if "drop_last" not in params and 1 < size < len(dataset) and len(dataset) % size == 1:
                # batch normalisation cannot be trained on a single sample
                added["drop_last"] = True
        added = {f"{prefix}__{k}": v for k, v in added.items()}
        with _temporary(self, **added):
            return super().get_iterator(dataset, training=training)

    def train_step(self, batch, **fit_params):
        """Craft the adversarial batch and take one optimisation step.

        The attack comes before the closure that optimizers such as LBFGS call
        several times.
        """
        x, y, weight = self._receive(batch)
        return self._take_step(Crafted(x, self.craft(x, y), y, weight), **fit_params)

    def _receive(self, batch):
        """Return samples, labels and weights on the device, augmented and laid out."""
        features, y = batch
        x, weight = features if isinstance(features, (tuple, list)) else (features, None)
        x = self._to_input(x)
        y = y.to(x.device)
        if weight is not None:
            weight = weight.to(x)
        if len(x) == 0:
            raise ValueError("A training batch is empty.")
        if self.augmentation_ is not None:
            x = self.augmentation_(x)
        self._batch_weight = weight
        return self._lay_out(x), y, weight

    def _take_step(self, crafted, **fit_params):
        """Take one optimisation step on a crafted batch."""
        step = super().train_step
        if self.weight_perturbation_ is None:
            return step((crafted, crafted.y), **fit_params)
        with self.weight_perturbation_.applied(self, crafted) as crafted:
            return step((crafted, crafted.y), **fit_params)

    def train_step_single(self, batch, **fit_params):
        """Compute loss and gradients; skorch's own step, reporting the logits."""
        self._step_logits = None
        step = super().train_step_single(batch, **fit_params)
        step["y_pred"] = self._step_logits
        self._shape_checked = True
        return step

    def infer(self, x, **fit_params):
        """Return logits, or for a crafted training batch its losses; called by skorch."""
        if isinstance(x, Crafted):
            with _temporary(self, _batch_weight=x.weight):
                return self.training_loss(x.x, x.adversarial, x.y)
        if isinstance(x, (tuple, list)):
            x = x[0]
        return two_logits(self.module_(self._to_input(x)))

    def get_loss(self, y_pred, y_true, X=None, training=False):
        """Return the weighted mean of the losses; called by skorch."""
        if not isinstance(X, Crafted):
            return self.criterion_(y_pred, y_true.to(y_pred.device)).mean()
        if y_pred.ndim == 0:
            if X.weight is not None:
                raise ValueError(
                    f"The loss of {type(self).__name__} is one number per batch, so that it "
                    "cannot take sample_weight or class_weight into account."
                )
            loss = y_pred
        elif X.weight is None:
            loss = y_pred.mean()
        else:
            loss = (X.weight * y_pred).sum() / X.weight.sum()
        if not torch.isfinite(loss):
            self._give_up(float(loss.detach()))
        if self._candidate is not None:  # a finite loss has proved these weights good
            self._last_good, self._candidate = self._candidate, None
        return loss

    def _give_up(self, value):
        """Stop a diverged training, leaving the last good weights."""
        epoch = len(self.history_)
        batch = len(self.history_[-1]["batches"])
        good = self._candidate if self._last_good is None else self._last_good
        for name, weights in (good or {}).items():
            getattr(self, name).load_state_dict(weights)
        raise FloatingPointError(
            f"The training loss is {value} in epoch {epoch}, batch {batch}. Training has stopped "
            "and the weights of the last good epoch are in place, so that the model can be used. "
            f"Try a smaller lr (it is {self.lr}), data of unit scale (e.g. a "
            "StandardScaler before this step), or gradient clipping "
            "(callbacks=[skorch.callbacks.GradientNormClipping(1.0)])."
        )

    def on_epoch_begin(self, net, dataset_train=None, dataset_valid=None, **kwargs):
        """Remember the weights to fall back on; called by skorch."""
        super().on_epoch_begin(net, dataset_train, dataset_valid, **kwargs)
        parts = {f"{name}_": getattr(self, f"{name}_") for name in self._modules}
        self._candidate = {k: copy_of_state(v) for k, v in parts.items() if v is not None}

    def on_epoch_end(self, net, dataset_train=None, dataset_valid=None, **kwargs):
        """Record what the adversary has learned; called by skorch."""
        super().on_epoch_end(net, dataset_train, dataset_valid, **kwargs)
        if hasattr(self.adversary_, "record"):
            for name, value in self.adversary_.record().items():
                self.history.record(name, value)

    def _lay_out(self, x):
        """Return `x` in the layout in which the network is fastest; once, see which it is."""
        if self._channels_last is None:
            with Victim(self.module_).frozen():
                self._channels_last = x.ndim == 4 and lay_out(self.module_, x)
        return x.contiguous(memory_format=torch.channels_last) if self._channels_last else x

    def _may_share_clean(self, x):
        """Return whether the clean logits of attack and loss are the same; look once."""
        if self._same_in_training is None:
            self._same_in_training = _is_the_same_in_training(self.module_, x[:2])
        return self._same_in_training

    def _to_input(self, x):
        """Bring a batch to the device, precision and shape of the network."""
        tensor = next(self.module_.parameters(), None)
        device = self._device() if tensor is None else tensor.device
        dtype = torch.float32 if tensor is None else tensor.dtype
        x = torch.as_tensor(x).to(device=device, dtype=dtype if dtype.is_floating_point else None)
        if hasattr(self, "input_shape_"):
            x = x.reshape(len(x), *self.input_shape_)
        return x

    # --- prediction --------------------------------------------------------------------

    def _outputs(self, X):
        """Return the logits of `X` in float64, shape (n_samples, n_classes)."""
        self.check_is_fitted()
        if not is_dataset(X):
            X = (
                validate_data(self, to_array(X), dtype="numeric", allow_nd=True, reset=False)
                if hasattr(self, "n_features_in_")
                else check_array(to_array(X), allow_nd=True)
            )
            check_sample_shape(X.shape[1:], getattr(self, "_sample_shape", X.shape[1:]), self)
        check_not_empty(X)
        # a DataLoader draws a seed from the global generator even if it does not shuffle
        with torch.random.fork_rng(devices=[]):
            batches = [b.double().numpy() for b in self.forward_iter(X, device="cpu")]
        return np.concatenate(batches)

    def predict(self, X: Any) -> np.ndarray:
        """Return the predicted labels.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...) or torch Dataset

        Returns
        -------
        ndarray of shape (n_samples,)
        """
        predicted = self._outputs(X).argmax(axis=1)
        return self.classes_[predicted]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probability of each class.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...) or torch Dataset

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            In the order of `classes_`.
        """
        z = self._outputs(X)
        p = np.exp(z - z.max(axis=1, keepdims=True))
        return p / p.sum(axis=1, keepdims=True)

    def decision_function(self, X: Any) -> np.ndarray:
        """Return the logits.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...) or torch Dataset

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            With two classes, the difference of the two logits, shape
            (n_samples,); positive means ``classes_[1]``.
        """
        z = self._outputs(X)
        return z[:, 1] - z[:, 0] if z.shape[1] == 2 else z

    def score_adversarial(
        self,
        X: Any,
        y: ArrayLike | None = None,
        attack: BaseAttack | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> float:
        """Return the accuracy under attack.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...) or torch Dataset
        y : array-like of shape (n_samples,)
            True labels. May be omitted where `X` is a Dataset that yields them.
        attack : attack, default=None
            None means PGD with 20 steps and two runs, in the norm, radius
            and valid range of the adversary of this estimator.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the samples.

        Returns
        -------
        float
            Share of samples that are classified correctly and stay so under
            the attack, in [0, 1].
        """
        from ..metrics import score_adversarial

        attack = self.default_attack() if attack is None else attack
        return score_adversarial(self, X, y, attack, sample_weight=sample_weight)

    def default_attack(self) -> PGD:
        """Return the attack that :meth:`score_adversarial` uses by default."""
        adversary = self._adversary()
        return PGD(
            norm=adversary.norm,
            eps=adversary.eps,
            clip=adversary.clip,
            mask=adversary.mask,
            n_steps=20,
            n_restarts=2,
            random_state=self.random_state,
        )

    @property
    def classes_(self):
        """Labels in the order of the columns of `predict_proba`."""
        if not hasattr(self, "classes_inferred_"):
            if self.classes is not None:
                return np.unique(np.asarray(self.classes))
            raise AttributeError(f"This {type(self).__name__} has seen no labels yet.")
        # callbacks that score during training see encoded labels on either side
        return np.arange(len(self.classes_inferred_)) if self._in_fit else self.classes_inferred_

    def __robustsk_victim__(self):
        """Return what attacks work on: raw rows in, logits out."""
        self.check_is_fitted()
        return self._victim(self.module_, self.classes_)

    def _victim(self, module, classes):
        return Victim(
            _RawInput(module, getattr(self, "input_shape_", None)),
            classes=classes,
            bounds=getattr(self, "clip_bounds_", None),
            is_image=self._is_image,
            name=type(self).__name__,
        )

    # --- parameters --------------------------------------------------------------------

    def _nested(self, name):
        """Return the object that a parameter holds with all its own parameters applied, a copy."""
        own = getattr(self, name)
        if own is None and name == "adversary":
            own = self.default_adversary()
        kind, method = _EXPECTED.get(name, ("", ""))
        if method and own is not None and (isinstance(own, type) or not hasattr(own, method)):
            raise TypeError(f"{name} must be {kind} or None, got {own!r}.")
        params = self.get_params_for(name)
        if hasattr(own, "get_params"):
            return clone(own).set_params(**params)
        if params:
            raise ValueError(
                f"{name} is {own!r} and has no parameters; {type(self).__name__} was given "
                f"{sorted(f'{name}__{key}' for key in params)}: pass the object as well, "
                f"{name}=..."
            )
        return own

    def _adversary(self):
        """Return the adversary with all nested parameters applied, a copy."""
        if self.adversary is not None:
            check_attack(self.adversary, "adversary")
        return self._nested("adversary")

    def _head(self):
        """Return the head with all nested parameters applied, or None."""
        return self._nested("head")

    @classmethod
    def _signature_names(cls):
        # the whole MRO, because mixins of skorch hide the signature behind **kwargs
        names = {}
        for base in cls.__mro__:
            if "__init__" in vars(base):
                for p in inspect.signature(base.__init__).parameters.values():
                    if p.name != "self" and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL):
                        names[p.name] = None
            if base is BaseDefense:
                break
        return list(names)

    @property
    def _params_to_validate(self):
        """What has been given beyond the signature."""
        known = self._signature_names()
        extra = (k for k in vars(self) if k not in known)
        return {k for k in extra if not k.startswith("_") and not k.endswith("_")}

    def _get_param_names(self):
        return [*self._signature_names(), *sorted(self._params_to_validate)]

    def _validate_params(self):
        unknown = {
            k
            for k in self._params_to_validate
            if k.split("__")[0] not in self.prefixes_ or "__" not in k
        }
        for key in sorted(unknown):
            close = difflib.get_close_matches(
                key, [*self._signature_names(), *(p + "__" for p in self.prefixes_)], n=1
            )
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise TypeError(f"{type(self).__name__} has no parameter {key!r}.{hint}")

    def get_params(self, deep=True, **kwargs):
        """Return the parameters, those of nested objects included if `deep`."""
        params = super().get_params(deep=deep, **kwargs)
        if deep and self.adversary is None:
            defaults = self.default_adversary().get_params()
            params = {**{f"adversary__{k}": v for k, v in defaults.items()}, **params}
        params.update({k: getattr(self, k) for k in self._params_to_validate})
        return params

    def set_params(self, **params):
        """Set parameters of this estimator and of the objects in it.

        Parameters
        ----------
        **params
            As in the constructor. On an initialised estimator, `lr` and those
            of the optimizer and of callbacks act at once; those of the module
            and the criterion re-initialise it, as in skorch.

        Returns
        -------
        self
        """
        for name in self._objects:
            if name in params:
                vars(self)[name] = params.pop(name)
                for key in [k for k in vars(self) if k.startswith(f"{name}__")]:
                    del vars(self)[key]
        for key in [k for k in params if k.partition("__")[0] in self._objects]:
            name, _, parameter = key.partition("__")
            own, value = getattr(self, name), params.pop(key)
            if hasattr(own, "set_params") and key not in vars(self):
                own.set_params(**{parameter: value})
                continue
            known = self._nested(name)
            if not hasattr(known, "set_params"):
                raise ValueError(
                    f"Invalid parameter {key!r} for estimator {type(self).__name__}: {name} is "
                    f"{known!r}, which has no parameters."
                )
            known.set_params(**{parameter: value})  # raises if there is no such thing
            vars(self)[key] = value
        acting = ("module", "criterion", "optimizer", "lr", "callbacks", "compile")
        if self.initialized_:
            rest = {k: params.pop(k) for k in list(params) if k.split("__")[0] in acting}
            with self._seeded() if rest.keys() - {"lr"} else nullcontext():
                super().set_params(**rest)
        valid = self._signature_names()
        for key, value in params.items():
            prefix, dunder, _ = key.partition("__")
            if key not in vars(self) and not (dunder and prefix in self.prefixes_):
                raise ValueError(
                    f"Invalid parameter {key!r} for estimator {type(self).__name__}. "
                    f"Valid parameters are: {sorted(valid)}."
                )
            vars(self)[key] = value
        return self

    # --- housekeeping ------------------------------------------------------------------

    def _device(self):
        return _resolve_device(self.device)

    def _concrete_device(self):
        """Let skorch see a device that torch understands."""
        return _temporary(self, device=self._device())

    def load_params(self, *args, **kwargs):
        """Load what `save_params` has saved; see skorch."""
        with self._concrete_device():
            return super().load_params(*args, **kwargs)

    def __getstate__(self):
        with _temporary(self, _in_fit=False):
            state = super().__getstate__()
        for name in (*self._of_a_session, "_step_logits"):
            state.pop(name, None)
        return state

    def __setstate__(self, state):
        device = state["device"]
        if device == "auto":
            state = {**state, "device": _resolve_device(device)}
        super().__setstate__(state)
        if device == "auto":
            vars(self)["device"] = device

    def __repr__(self, *args, **kwargs):
        return BaseEstimator.__repr__(self, *args, **kwargs)


#: What the parameters that hold objects expect, and a method that tells it.
_EXPECTED = {
    "head": ("a head such as HypersphereHead(s=10)", "attach"),
    "weight_perturbation": ("an object such as AWP(gamma=0.01)", "applied"),
    "augmentation": ("a function of a batch, or an object such as RandomCropFlip()", "__call__"),
}


class _RawInput(nn.Module):
    """The network seen from the user's side: rows in the shape they come in."""

    def __init__(self, module, input_shape):
        super().__init__()
        self.module = module
        self.input_shape = input_shape

    def get_classifier(self):
        """Return the last layer of the network."""
        return get_classifier(self.module)[1]

    def get_members(self):
        """Return the members of an ensemble, seen from the same side."""
        return [_RawInput(member, self.input_shape) for member in get_members(self.module)]

    def forward(self, x):
        if self.input_shape is not None:
            x = x.reshape(len(x), *self.input_shape)
        return self.module(x)


def _is_the_same_in_training(module, x):
    """Return whether a network computes the same in training and in evaluation mode.

    One with buffers is taken for one that does not: it may write to them.
    """
    if next(module.buffers(), None) is not None:
        return False
    devices = [x.device] if x.is_cuda else []
    with Victim(module).frozen(), torch.random.fork_rng(devices=devices), torch.no_grad():
        first, second = (two_logits(module.train(mode)(x)) for mode in (False, True))
    return torch.equal(first, second)


def _resolve_device(device):
    if isinstance(device, str) and device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


@contextmanager
def _temporary(obj, **values):
    """Set attributes for the duration of a block, without `__setattr__`."""
    state = vars(obj)
    before = {k: state[k] for k in values if k in state}
    state.update(values)
    try:
        yield
    finally:
        for k in values:
            state.pop(k, None)
        state.update(before)
