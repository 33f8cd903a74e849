"""A victim: a model as an attack sees it, a map from the user's data to logits."""

from __future__ import annotations

import copy
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from .._interrupts import settings_kept
from ._folding import first_output
from .engine import PLAIN, Views, get_members

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
    is_ours : bool
        Whether one of our estimators is training the model, and may change its modes where it can
        be neither replicated nor copied. False unless set.
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
        self._module = module
        self.classes = None if classes is None else np.asarray(classes)
        self.dtype = _dtype_of(module) if dtype is None else dtype
        self.bounds = bounds
        self.is_image = is_image
        self.name = name or type(module).__name__
        self.differentiable = differentiable
        self.calls = Calls()
        self.is_ours = False
        self._view = self._views = None
        self._spare = []
        self._inspected = False

    @property
    def module(self):
        """The network that is asked: the user's, and in attack mode its replica."""
        return self._module if self._view is None else self._view.module

    @property
    def device(self):
        """Where the model lives."""
        tensor = next(_state_of(self._module), None)
        return torch.device("cpu") if tensor is None else tensor.device

    def __call__(self, x, part=None):
        """Return the logits of the batch `x`, shape (n, n_classes); of a part of the model."""
        self.calls.forward += len(x)
        if self._view is not None:
            output = self._view(x, part)
        else:
            output = (self._module if part is None else get_members(self._module)[part])(x)
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
        count = len(get_members(self.module))
        return [self] if count == 1 else [partial(self, part=part) for part in range(count)]

    def learn_classes(self, X):
        """Return `classes`, counting the logits of one sample where they are unknown."""
        if self.classes is None and len(X):
            self.classes = np.arange(self.logits(X[:1]).shape[1])
        return self.classes

    def logits(self, X):
        """Return the logits of an array, as a tensor on the CPU; the model's own answer."""
        with self.frozen() as seen, torch.no_grad():
            x = torch.from_numpy(np.array(X)).to(self.device, self.dtype)
            return seen.itself(x).cpu()

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
        other._module = copy.deepcopy(self._module).to(device)
        other._view, other._views, other._spare = None, None, []
        return other

    # --- attack mode -----------------------------------------------------------------

    @contextmanager
    def frozen(self, bn_mode="eval", engine=None):
        """Attack mode: a victim that is a replica of this one, for the time of a context.

        It is in evaluation mode and takes no gradient but that at the input. The user's model is
        neither changed nor run, unless it is of a kind that can be neither replicated nor copied.

        Parameters
        ----------
        bn_mode : {"eval", "train"}, default="eval"
            With "train", batch normalisation uses the statistics of the batch
            while its running averages stay as they are.
        engine : Engine, optional
            How the network is run; None means as it is.

        Yields
        ------
        Victim
            In no other thread. Asked for attack mode it yields itself, however it is run.
        """
        if self._view is not None:
            yield self
            return
        # kept for the next time; each is in use once, and one that was interrupted no more
        try:
            views = self._spare.pop()
            views.refresh()
        except IndexError:
            views = Views(self._module, self.is_ours)
        other = copy.copy(self)
        other._views = views
        try:
            with settings_kept():
                yield other._seen_by(views.of(PLAIN if engine is None else engine, bn_mode))
        finally:
            views.release()
        self._spare.append(views)

    def _seen_by(self, view):
        if view is self._view:
            return self
        other = copy.copy(self)
        other._view = view
        return other

    @property
    def itself(self):
        """The model as it predicts: in evaluation mode, in full precision, nothing changed in it.

        It has the last word on whatever is found in attack mode.
        """
        return self._seen_by(self._views.of(PLAIN)) if self.is_changed else self

    @property
    def precise(self):
        """The victim as it is seen in attack mode, in the precision of the parameters."""
        if not self.is_rough:
            return self
        engine = replace(self._view.engine, precision=None)
        return self._seen_by(self._views.of(engine, self._view.bn_mode))

    @property
    def unfolded(self):
        """The victim as it is seen in attack mode, each layer doing what it does in the model."""
        return self._seen_by(self._views.of(PLAIN, self._view.bn_mode))

    @property
    def has_batch_statistics(self):
        """Whether an answer depends on the rest of the batch."""
        return self._view is not None and self._view.bn_mode == "train"

    @property
    def is_rough(self):
        """Whether answers are in a lower precision than that of the parameters."""
        return self._view is not None and self._view.is_rough

    @property
    def is_changed(self):
        """Whether answers are computed in another way than the model predicts."""
        return self._view is not None and self._view.is_changed

    @property
    def is_folded(self):
        """Whether layers of the network have been merged or laid out anew."""
        return self._view is not None and self._view.is_folded

    def distrust(self):
        """Ask the network in attack mode as it is from now on, if what was done to it shows."""
        self._views.distrust()

    def __getstate__(self):
        return {**vars(self), "_view": None, "_views": None, "_spare": []}

    def __copy__(self):
        other = object.__new__(type(self))
        vars(other).update(vars(self))
        return other


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
