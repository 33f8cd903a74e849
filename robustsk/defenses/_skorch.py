"""The training loop: where skorch calls, and what a defence answers."""

from __future__ import annotations

import copy
import inspect
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import skorch
import torch
from sklearn.utils import check_random_state
from skorch import NeuralNet
from skorch.callbacks import Callback
from skorch.exceptions import SkorchException
from skorch.utils import to_device
from torch.utils.data import DataLoader, IterableDataset, Subset

from .._containers import dataset_labels, is_dataset, to_array, to_dense
from .._generator import GeneratorState
from .._interrupts import uninterrupted
from .._precision import full_precision
from .._shared import temporarily
from .._validation import check_labels, check_sample_shape
from ..training._data import Crafted, Samples, collate
from ..training._weights import copy_of_state
from ..victims import Victim
from ..victims._outputs import two_logits
from ..victims.engine import lay_out
from ._criteria import can_be_split, for_samples, losses_of, share_counted, value_of
from ._fit_params import passed_on, taken_by
from ._networks import is_lookup_error, uncompiled

if TYPE_CHECKING:
    from typing_extensions import Self

#: Where callbacks are that draw no random numbers, or have a state of their own.
_DRAW_NOTHING = (
    "robustsk.",
    "skorch.callbacks.logging",
    "skorch.callbacks.lr_scheduler",
    "skorch.callbacks.scoring",
)


class TrainingLoop:
    """What a defence overrides of a skorch net."""

    # skorch keeps its run-time state in attributes; as class defaults they leave
    # `__init__` with nothing to set but parameters, as scikit-learn demands
    history_: Any = None
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
    #: What `fit` is given besides the data, and what of it `train_split` takes.
    _fit_params = {}
    _split_params = {}
    _shape_checked = False
    #: What is needed during training only.
    _of_a_session = (
        "_victims", "_run", "_clean", "_last_good", "_candidate", "_batch_weight", "_generator",
        "_on_device",
    )  # fmt: skip
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
    _run = None
    _generator = None
    _last_good = None
    _candidate = None

    def initialize(self) -> Self:
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
        own = self._new_generator() if self._generator is None else self._generator
        with own.in_use(), self._concrete_device():
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
        """Build the criterion, which can tell the loss of each sample; called by skorch."""
        params = self.get_params_for("criterion")
        if (
            isinstance(self.criterion, type)
            and not can_be_split(self.criterion)
            and "reduction" in inspect.signature(self.criterion).parameters
        ):
            params["reduction"] = "none"
        made = self.initialized_instance(self.criterion, params)
        self.criterion_ = for_samples(made, self._dtype())
        return self

    def _initialize_module(self, reason=None):
        with self._concrete_device():
            return super()._initialize_module(reason)

    def _initialize_criterion(self, reason=None):
        with self._concrete_device():
            return super()._initialize_criterion(reason)

    def initialize_callbacks(self):
        """Prepare the callbacks; called by skorch.

        Those that have nothing to say to the user are copied, so that parameters stay as they are.
        """
        given = self.callbacks
        if given is None:
            return super().initialize_callbacks()
        own = [(c[0], _own(c[1])) if isinstance(c, tuple) else _own(c) for c in given]
        with temporarily(self, callbacks=own):
            return super().initialize_callbacks()

    def fit_loop(self, X, y=None, epochs=None, **fit_params):
        """Train; called by skorch."""
        module = getattr(self.module_, "_orig_mod", self.module_)
        forward_params = taken_by(module.forward, self._fit_params)
        lost = self._fit_params.keys() - self._split_params.keys() - forward_params.keys()
        if lost:
            raise TypeError(
                f"fit got {sorted(lost)}, which neither train_split takes "
                f"({self.train_split!r}) nor the forward of the module: give a train_split that "
                "does, e.g. skorch.dataset.ValidSplit(5) for groups, or leave it out."
            )
        try:
            with passed_on(self.module_, forward_params):
                return super().fit_loop(X, y, epochs, **fit_params)
        except Exception as error:
            if is_lookup_error(error):
                raise TypeError(
                    f"The module of {type(self).__name__} looks its input up in an embedding. That "
                    "takes integers, and inputs are cast to floats, which alone can be attacked: "
                    "embed the data first and pass what the embedding gives."
                ) from error
            if not self.train_split and "valid_" in str(error) and _is_about_history(error):
                raise ValueError(
                    f"A callback looks for what is measured on held-out data ({error}), and there "
                    "are none: give a train_split, e.g. "
                    "train_split=skorch.dataset.ValidSplit(5, stratified=True), or have the "
                    "callback watch what there is, monitor='train_loss'."
                ) from error
            raise

    def check_data(self, X, y=None):
        """Do nothing: the data have been validated already."""

    def get_dataset(self, X, y=None):
        """Return `X` as a Dataset; called by skorch."""
        if _is_prepared(X):
            return X
        if y is None and is_dataset(X) and not self._in_fit:
            y = dataset_labels(X)
        return self._samples(X, y, is_encoded=self._in_fit)

    def _wrapped(self, X, y=None):
        """Return data in the `dataset` of the user, where one has been given."""
        if self.dataset is Samples or is_dataset(X):
            return X
        return NeuralNet.get_dataset(self, X, y)

    def _samples(self, X, y=None, is_encoded=False):
        """Return any data, which training has not prepared, as `Samples`."""
        if _is_prepared(X):
            return X
        if not is_dataset(X):
            X = np.asarray(to_dense(to_array(X)))
        if y is not None:
            y = np.asarray(check_labels(y))
            y = y if is_encoded else self._encode(y)
        return Samples(X, y)

    def monitored(self, data):
        """Return data as training has them, where they are as the user has them.

        Parameters
        ----------
        data : torch Dataset, or tuple (X, y)

        Returns
        -------
        torch Dataset
            Its labels are class indices.
        """
        if _is_prepared(data):
            return data
        X, y = data if isinstance(data, (tuple, list)) else (data, None)
        if type(X) is skorch.dataset.Dataset and not isinstance(X.X, (dict, list, tuple)):
            X, y = X.X, X.y
        samples = self._samples(X, dataset_labels(X) if y is None and is_dataset(X) else y)
        check_sample_shape(samples.shape[1:], self._sample_shape, self)
        return samples

    def get_split_datasets(self, X, y=None, **fit_params):
        """Return the data for training and validation; called by skorch."""
        with self._drawing():
            train, valid = super().get_split_datasets(X, y, **fit_params, **self._split_params)
        # a fixed set, as from skorch's predefined_split, comes as the user has it
        return train, valid if valid is None else self.monitored(valid)

    def get_iterator(self, dataset, training=False):
        """Return the batches of a Dataset; called by skorch."""
        if not training and not self._in_fit:
            with temporarily(self, **self._in_order("iterator_valid")):
                return self._iterator(dataset, training)
        return self._iterator(dataset, training)

    def _in_order(self, prefix):
        """Return what has each sample come once and in its order."""
        neutral = {"shuffle": False, "sampler": None, "batch_sampler": None, "drop_last": False}
        given = self.get_params_for(prefix)
        return {f"{prefix}__{key}": value for key, value in neutral.items() if key in given}

    def _iterator(self, dataset, training):
        prefix = "iterator_train" if training else "iterator_valid"
        params = {k: v for k, v in self.get_params_for(prefix).items() if v is not None}
        added = {}
        if "collate_fn" not in params:
            added["collate_fn"] = collate
        ordered = {"shuffle", "sampler", "batch_sampler"} & params.keys()
        if training and self._in_fit and not isinstance(dataset, IterableDataset):
            if not ordered:
                added["shuffle"] = True
            size = params.get("batch_size", self.batch_size)
            if "drop_last" not in params and 1 < size < len(dataset) and len(dataset) % size == 1:
                # batch normalisation cannot be trained on a single sample
                added["drop_last"] = True
        if (
            not training
            and not self._in_fit
            and not ordered
            and "generator" not in params
            and self.iterator_valid is DataLoader
            and _holds_arrays(dataset)
        ):
            # it draws a seed even if it does not shuffle
            added["generator"] = torch.Generator()
        added = {f"{prefix}__{k}": v for k, v in added.items()}
        dataset = self.on_device(dataset, {*params, *(k.split("__")[1] for k in added)}, training)
        with temporarily(self, **added), self._drawing() if training else nullcontext():
            return super().get_iterator(dataset, training=training)

    def _batches(self, dataset, training=False):
        """Yield the batches of a Dataset, in its order, without moving any generator."""
        order = self._in_order("iterator_train" if training else "iterator_valid")
        with temporarily(self, **order):
            iterator = self.get_iterator(dataset, training=training)
        if getattr(iterator, "generator", None) is not None:
            return iterator
        return self._side_generator().draw(iterator)

    def _side_generator(self):
        """Return a generator that begins as the present one and leaves that where it is."""
        if self._generator is not None:
            return self._generator.copy()
        return GeneratorState.present(self._device() or resolve_device("auto"))

    def forward_iter(self, X, training=False, device="cpu"):
        """Yield what the network returns for each batch; called by skorch."""
        for batch in self._batches(self._samples(X), training):
            yield to_device(self.evaluation_step(batch, training=training), device=device)

    def evaluation_step(self, batch, training=False):
        """Return what the network says to a batch, in full precision; called by skorch."""
        with full_precision(torch.device(self._device() or resolve_device("auto"))):
            return super().evaluation_step(batch, training=training)

    def notify(self, method_name, **kwargs):
        """Call the callbacks; called by skorch.

        Random numbers are those of this training, also for one that waits for other threads.
        """
        if self._generator is None or not any(
            _may_draw(type(callback), method_name) for _, callback in self.callbacks_
        ):
            return super().notify(method_name, **kwargs)
        with self._generator.lent():
            return super().notify(method_name, **kwargs)

    def run_single_epoch(self, iterator, training, prefix, step_fn, **fit_params):
        """Train or validate on all batches; called by skorch.

        Random numbers are those of this training while a batch is fetched and while it is used.
        """
        own, step = self._generator, step_fn
        if own is not None and iterator is not None:
            iterator = own.draw(iterator)

            def step(batch, **params):
                with own.in_use() as interruptible, interruptible():
                    return step_fn(batch, **params)

        self.run_epoch(iterator, training, prefix, step, **fit_params)

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
        with uninterrupted(), self._blamed_on_own_infer(crafted):
            if self.weight_perturbation_ is None:
                return step((crafted, crafted.y), **fit_params)
            with self.weight_perturbation_.applied(self, crafted) as crafted:
                return step((crafted, crafted.y), **fit_params)

    @contextmanager
    def _blamed_on_own_infer(self, crafted):
        """Say what an own `infer` must let through, if it fails on a crafted batch."""
        try:
            yield
        except (TypeError, AttributeError) as error:
            if crafted.was_received or type(self).infer is TrainingLoop.infer:
                raise
            raise TypeError(
                f"The infer of {type(self).__name__} is also called in training, with clean and "
                "adversarial samples in one object, which it must pass on as it is to "
                "super().infer; what is to be done to the samples belongs into the "
                f"forward of the module, which is what is attacked ({error})."
            ) from error

    def train_step_single(self, batch, **fit_params):
        """Compute loss and gradients; skorch's own step, reporting the logits."""
        self._step_logits = None
        step = super().train_step_single(batch, **fit_params)
        if self._step_logits is not None:
            self._step_logits = self._step_logits.detach()
        step["y_pred"] = self._step_logits
        self._shape_checked = True
        return step

    def infer(self, x, **fit_params):
        """Return logits, or for a crafted training batch its losses; called by skorch."""
        if isinstance(x, Crafted):
            x.was_received = True
            with temporarily(self, _batch_weight=x.weight):
                self._step_logits = None
                x.losses = losses = self.training_loss(x.x, x.adversarial, x.y)
            is_own = type(self).get_loss is not TrainingLoop.get_loss
            return losses if self._step_logits is None or not is_own else self._step_logits
        if isinstance(x, (tuple, list)):
            x = x[0]
        x = self._to_input(x)
        return two_logits(self.module_(x), len(x))

    def get_loss(self, y_pred, y_true, X=None, training=False):
        """Return the weighted mean of the losses; called by skorch.

        Parameters
        ----------
        y_pred : torch.Tensor of shape (n, n_classes)
            Logits, for who overrides this: in training those that the defence asked for first.
            What it returns itself is made from the losses of the defence.
        y_true : torch.Tensor of shape (n,)
            Class indices.
        X : object, optional
            The batch. After training and without it, the value is that of the criterion itself,
            with the ``criterion__reduction`` that it has.
        training : bool, default=False

        Returns
        -------
        torch.Tensor
        """
        if not isinstance(X, Crafted):
            y_true = torch.as_tensor(y_true, device=y_pred.device)
            if X is None and not self._in_fit:
                return value_of(self.criterion_, y_pred, y_true)
            return self._losses(y_pred, y_true).mean()
        if X.losses is not None:
            y_pred = X.losses
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
        if not self._reads_later(loss):
            self.check_loss(float(loss.detach()))
        return loss

    def _losses(self, logits, y):
        """Return the value of the criterion per sample, such that torch's mean is their mean."""
        losses = losses_of(self.criterion_, logits, y)
        share = share_counted(self.criterion_, y, self._batch_weight)
        return losses if share is None else losses / share.to(losses)

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
        dtype = self._dtype()
        if dtype is None and tensor is None:
            dtype = torch.float32
        x = torch.as_tensor(x).to(device=device, dtype=dtype)
        if hasattr(self, "input_shape_"):
            x = x.reshape(len(x), *self.input_shape_)
        return x

    def _dtype(self):
        """Return the precision of the network, that of its first floats; None if it has none."""
        floats = (p.dtype for p in self.module_.parameters() if p.dtype.is_floating_point)
        return next(floats, None)

    # --- device, files -----------------------------------------------------------------

    def _device(self):
        return resolve_device(self.device)

    def _concrete_device(self):
        """Let skorch see a device that torch understands."""
        return temporarily(self, device=self._device())

    def save_params(self, *args, **kwargs):
        """Save weights and history, under the names that they have uncompiled; see skorch."""
        with temporarily(self, **uncompiled(vars(self))):
            return super().save_params(*args, **kwargs)

    def load_params(self, *args, **kwargs):
        """Load what `save_params` has saved; see skorch."""
        if kwargs.get("checkpoint") is not None and not self.initialized_:
            self.initialize()
        with self._concrete_device(), temporarily(self, **uncompiled(vars(self))):
            return super().load_params(*args, **kwargs)

    def __getstate__(self):
        with temporarily(self, _in_fit=False):
            state = super().__getstate__()
        for name in (*self._of_a_session, "_step_logits"):
            state.pop(name, None)
        return state

    def __setstate__(self, state):
        device = state["device"]
        if device == "auto":
            state = {**state, "device": resolve_device(device)}
        super().__setstate__(state)
        if device == "auto":
            vars(self)["device"] = device


def _own(callback):
    return copy.copy(callback) if getattr(callback, "is_copied", False) is True else callback


def _is_about_history(error):
    return isinstance(error, (KeyError, SkorchException))


def _is_prepared(dataset):
    """Return whether data are `Samples`, or a part of them."""
    return isinstance(_whole(dataset), Samples)


def _whole(dataset):
    """Return what a Dataset is a part of."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return dataset


@cache
def _may_draw(kind, method_name):
    """Return whether a callback does something that could draw random numbers."""
    return getattr(kind, method_name, None) is not getattr(Callback, method_name, None) and (
        not kind.__module__.startswith(_DRAW_NOTHING)
    )


def _holds_arrays(dataset):
    """Return whether nothing of the user's runs where samples are fetched."""
    whole = _whole(dataset)
    return isinstance(whole, Samples) and not is_dataset(whole.X)


def _is_the_same_in_training(module, x):
    """Return whether a network computes the same in training and in evaluation mode.

    One with buffers is taken for one that does not: it may write to them.
    """
    if next(module.buffers(), None) is not None:
        return False
    victim = Victim(module)
    victim.is_ours = True
    with victim.frozen() as seen:
        replica = seen.module
        if replica is module:
            return False
        with GeneratorState.present(x.device).in_use(), torch.no_grad():
            first, second = (two_logits(replica.train(mode)(x), len(x)) for mode in (False, True))
    return torch.equal(first, second)


def resolve_device(device):
    """Return CUDA where it is present and the CPU otherwise, for "auto"."""
    if isinstance(device, str) and device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device
