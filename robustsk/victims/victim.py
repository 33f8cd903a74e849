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
from ._first_look import FirstLook, contradiction, warn_about_outputs
from ._outputs import is_probability as is_probability
from ._outputs import other_widths, two_logits
from .engine import EXACT, PLAIN, Views, get_members

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
        classes; of several outputs the one called "logits" counts, and the
        first one if they have no names.
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
    own_predict : callable or None
        ``own_predict(X, columns)``, what the estimator itself predicts for an
        array, if this is the victim that an estimator is: what is attacked
        must be what predicts. Set by :func:`as_victim`.
    parts : list of Victim
        The victims that this one averages.
    is_numbered : bool
        Whether `predict` gives the number of the largest output, whatever
        labels there were in training.
    followed : str
        What of an estimator is attacked, for the message if that is not what
        predicts.
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
        self.own_predict, self.parts, self.is_numbered = None, [], False
        self.followed = "What is attacked is a network that has been made of its parameters."
        self._inspected, self._compared = False, frozenset()
        self._first_look, self._other_widths = None, []

    @property
    def module(self):
        """The network that is asked: the user's, and in attack mode its replica."""
        return self._module if self._view is None else self._view.module

    @property
    def view(self):
        """How the network is run in attack mode, None otherwise."""
        return self._view

    @property
    def kept(self):
        """What is kept for the next time in attack mode, a dict."""
        return self._views.kept

    @property
    def device(self):
        """Where the model lives."""
        tensor = next(_state_of(self._module), None)
        return torch.device("cpu") if tensor is None else tensor.device

    def __call__(self, x, part=None):
        """Return the logits of the batch `x`, shape (n, n_classes); of a part of the model."""
        self.calls.forward += len(x)
        if self._view is not None:
            ask = partial(self._view, part=part)
        else:
            ask = self._module if part is None else get_members(self._module)[part]
        try:
            output = ask(x)
            logits = two_logits(output, len(x))
        except ValueError:
            if len(x) != 1:
                raise
            # statistics of a batch cannot be taken of a single number
            output = ask(torch.cat([x, x]))
            logits = two_logits(output, 2)[:1]
        if logits.ndim != 2 or len(logits) != len(x):
            raise ValueError(
                f"{self.name} must return logits of shape (n_samples, n_classes) and returned "
                f"{tuple(logits.shape)} for {len(x)} samples."
            )
        if output is not logits:
            self._other_widths[:] = other_widths(output)
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
        """Return `classes`, counting the logits of a few samples where they are unknown."""
        if (self.classes is None or self.is_numbered) and len(X):
            self.classes = np.arange(self._look(X).logits.shape[1])
        return self.classes

    def logits(self, X):
        """Return the logits of an array, as a tensor on the CPU; the model's own answer."""
        with self.frozen() as seen, torch.no_grad():
            x = torch.from_numpy(np.array(X)).to(self.device, self.dtype)
            return seen.itself(x).cpu()

    @property
    def is_compared(self):
        """Whether there are predictions with which the logits can be compared."""
        return self.own_predict is not None or any(part.is_compared for part in self.parts)

    @property
    def draws(self):
        """Whether it has been seen to draw its answers from torch's global generators."""
        return self._first_look is not None and self._first_look.draws

    def _look(self, X):
        if self._first_look is None or not self._first_look.is_of(X):
            self._first_look = FirstLook(self, X)
            self._first_look.check(self)
        return self._first_look

    def inspect(self, X, index=None):
        """Look at the answers to a few samples, and say once what is amiss.

        Parameters
        ----------
        X : ndarray or Rows of shape (n_samples, ...)
        index : ndarray of int of shape (n_samples,), optional
            Their true classes.

        Raises
        ------
        FloatingPointError
            If logits are not finite.
        """
        if self._inspected or not self.differentiable or not len(X):
            return
        self._inspected = True
        look = self._look(X)
        look.warn_about_probabilities(self, stacklevel=6)
        if index is not None and self._other_widths:
            warn_about_outputs(
                self.name, look.logits.shape[1], self._other_widths, int(index.max()) + 1
            )

    def compare(self, X, predicted=None, columns=None, attacked=False):
        """Compare on a few samples what an estimator predicts with what is attacked.

        Parameters
        ----------
        X : ndarray, Rows or torch.Tensor of shape (n_samples, ...)
        predicted : ndarray of shape (n_samples,), optional
            What the estimator predicts, if that is known; it is asked about a few samples
            otherwise.
        columns : list of str, optional
            Names of the features.
        attacked : bool, default=False
            Whether these are adversarial examples. Then it is too late to raise, and `predict` has
            the last word.

        Raises
        ------
        ValueError
            If they are not the same.
        """
        for part in self.parts:
            part.compare(X, columns=columns, attacked=attacked)
        if attacked in self._compared or self.own_predict is None or not len(X):
            return
        if isinstance(X, torch.Tensor):
            X = X.detach().to("cpu", torch.promote_types(X.dtype, torch.float32)).numpy()
        self._compared = self._compared | {attacked}
        look = FirstLook(self, X) if attacked else self._look(X)
        if predicted is not None:
            own = predicted[look.rows]
        else:
            try:
                own = self.own_predict(look.values, columns)
            except FloatingPointError:
                if not attacked:
                    raise
                return  # what has no answer contradicts nobody
        message = contradiction(self, look, own, columns)
        if message is None:
            return
        if not attacked:
            raise ValueError(message)
        warnings.warn(
            f"Adversarial examples are judged by `predict`, and the attack has followed something "
            f"else. {message}",
            UserWarning,
            stacklevel=4,
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
            # in inference mode no gradient is taken, whoever asks for one
            with settings_kept(), torch.inference_mode(False):
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
        if not self.is_changed:
            return self
        return self._seen_by(self._views.of(EXACT if self.device.type == "cuda" else PLAIN))

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


def _state_of(module):
    yield from module.parameters()
    yield from module.buffers()


def _dtype_of(module):
    return next((t.dtype for t in _state_of(module) if t.is_floating_point()), torch.float32)
