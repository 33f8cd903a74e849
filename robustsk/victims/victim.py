"""A victim: a model as an attack sees it, a map from the user's data to logits."""

from __future__ import annotations

import copy
import warnings
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn

from .engine import View, first_output

_BATCH_NORM = (nn.modules.batchnorm._BatchNorm,)


#: What an attack may see of its victim, from most to least.
ACCESS = ("gradients", "scores", "labels")
#: Gradients as well, save for transformers that have none and are only run.
STRAIGHT_THROUGH = "straight-through"


@dataclass
class Calls:
    """How many samples a victim has been asked about.

    Attributes
    ----------
    forward, backward : int
        Samples that went through the model, and gradients taken at samples.
    """

    forward: int = 0
    backward: int = 0


class Victim:
    """A model seen by an attack: a differentiable map from data to logits.

    Parameters
    ----------
    module : torch.nn.Module
        Maps a batch of raw data to logits of shape (n, n_classes). A single
        logit, shape (n,) or (n, 1), is read as that of the second of two
        classes; of several outputs the first one counts.
    classes : array-like of shape (n_classes,), optional
        Labels in the order of the logits. None means 0, 1, 2, ...
    dtype : torch.dtype, optional
        What the data are cast to. None means that of the first parameter.
    bounds : tuple of (ndarray, ndarray), optional
        Smallest and largest valid value, known from the training data.
    is_image : bool, default=False
        Whether a flat row is an image in disguise.
    name : str, optional
        What error messages call the model.
    differentiable : bool, default=True
        Whether gradients flow through `module`.

    Attributes
    ----------
    calls : Calls
        What the attacks have cost so far; shared by the copies of a victim.
    """

    def __init__(
        self,
        module,
        *,
        classes=None,
        dtype=None,
        bounds=None,
        is_image=False,
        name=None,
        differentiable=True,
    ):
        self.module = module
        self.classes = None if classes is None else np.asarray(classes)
        self.dtype = _dtype_of(module) if dtype is None else dtype
        self.bounds = bounds
        self.is_image = is_image
        self.name = name or type(module).__name__
        self.differentiable = differentiable
        self.calls = Calls()
        self._frozen = False
        self._view = None
        self._inspected = False

    @property
    def device(self):
        """Where the model lives."""
        tensor = next(_state_of(self.module), None)
        return torch.device("cpu") if tensor is None else tensor.device

    def __call__(self, x, part=None):
        """Return the logits of the batch `x`, shape (n, n_classes); of a part of the model."""
        self.calls.forward += len(x)
        if self._view is not None:
            output = self._view(x, part)
        else:
            output = (self.module if part is None else part)(x)
        logits = two_logits(output)
        if logits.ndim != 2 or len(logits) != len(x):
            raise ValueError(
                f"{self.name} must return logits of shape (n_samples, n_classes) and returned "
                f"{tuple(logits.shape)} for {len(x)} samples."
            )
        return logits

    def members(self):
        """Return the models whose probabilities this one averages, itself where it is one model.

        Returns
        -------
        list of callable
            Each maps data to logits of shape (n, n_classes), in the order of `classes`.
        """
        parts = get_members(self.module)
        if len(parts) == 1:
            return [self]
        return [partial(self, part=part) for part in parts]

    def learn_classes(self, X):
        """Return `classes`, counting the logits of one sample where they are unknown."""
        if self.classes is None and len(X):
            self.classes = np.arange(self.logits(X[:1]).shape[1])
        return self.classes

    def logits(self, X):
        """Return the logits of an array in full precision, as a tensor on the CPU."""
        with self.frozen(), self.precise(), torch.no_grad():
            x = torch.from_numpy(np.array(X)).to(self.device, self.dtype)
            return self(x).cpu()

    def warn_about_probabilities(self, X):
        """Warn where the module returns probabilities instead of logits.

        A softmax before the loss that is attacked saturates: its gradients
        vanish on confident predictions, and the model looks robust.
        """
        if self._inspected or not self.differentiable or len(X) < 2:
            return
        self._inspected = True
        logits = self.logits(X[:8])
        if is_probability(logits):
            warnings.warn(
                f"{self.name} returns probabilities (each row sums to 1) where logits are needed: "
                "gradients through the softmax vanish and the attack is weakened. Remove the "
                "softmax from the module, or return its logarithm.",
                UserWarning,
                stacklevel=5,
            )

    def to(self, device):
        """Return this victim on `device`; the user's model is never moved."""
        if device is None or torch.device(device) == self.device:
            return self
        other = copy.copy(self)
        other.module = copy.deepcopy(self.module).to(device)
        other._view = None
        return other

    def precise(self):
        """Answer in the precision of the parameters for a while; a context."""
        return self._view.set_aside(rough_only=True) if self.is_rough else nullcontext()

    def untouched(self):
        """Ask the module itself for a while, not a view of it; a context."""
        return nullcontext() if self._view is None else self._view.set_aside()

    @property
    def is_rough(self):
        """Whether answers are in a lower precision than that of the parameters at present."""
        return self._view is not None and self._view.is_rough

    @contextmanager
    def frozen(self, bn_mode="eval", engine=None):
        """Attack mode: evaluation behaviour, no parameter gradients, all restored.

        Parameters
        ----------
        bn_mode : {"eval", "train"}, default="eval"
            With "train", batch normalisation uses the statistics of the batch
            while its running averages stay as they are.
        engine : Engine, optional
            How the network is run; None means as it is.
        """
        if self._frozen:
            yield self
            return
        modules = list(self.module.modules())
        modes = [m.training for m in modules]
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        statistics = []
        self._frozen = True
        try:
            for p in parameters:
                p.requires_grad_(False)
            for m in modules:
                m.training = False
                if bn_mode == "train" and isinstance(m, _BATCH_NORM):
                    m.training = True
                    statistics.append((m, {k: b.clone() for k, b in m.named_buffers()}))
            if engine is not None:
                if self._view is None or self._view.engine != engine:
                    self._view = View(self.module, engine)
                self._view.open()
            yield self
        finally:
            if self._view is not None:
                self._view.close()
            self._frozen = False
            for p in parameters:
                p.requires_grad_(True)
            for m, mode in zip(modules, modes, strict=True):
                m.training = mode
            for m, buffers in statistics:
                for key, value in buffers.items():
                    getattr(m, key).copy_(value)


def get_members(module):
    """Return the networks whose probabilities a module averages.

    Parameters
    ----------
    module : torch.nn.Module
        One that averages others says so by a method `get_members`.

    Returns
    -------
    list of torch.nn.Module
        Each takes the input of `module` and returns logits; `module` itself
        where it averages nothing.
    """
    own = getattr(module, "get_members", None)
    return [module] if own is None else list(own())


def two_logits(output):
    """Bring the output of a classifier into the shape (n, n_classes)."""
    output = first_output(output)
    if output.ndim == 1:
        output = output[:, None]
    if output.ndim == 2 and output.shape[1] == 1:
        output = torch.cat([torch.zeros_like(output), output], dim=1)
    return output


def is_probability(output):
    """Return whether rows of two or more are probability distributions."""
    return bool(
        output.shape[1] > 1
        and (output >= 0).all()
        and torch.allclose(output.sum(1), torch.ones(()).to(output), atol=1e-5)
    )


def _state_of(module):
    yield from module.parameters()
    yield from module.buffers()


def _dtype_of(module):
    return next((t.dtype for t in _state_of(module) if t.is_floating_point()), torch.float32)
