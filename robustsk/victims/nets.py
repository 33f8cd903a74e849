"""Nets of skorch, followed on the way that their `predict` takes."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from ._outputs import first_output, two_logits
from .queried import queried_victim
from .victim import Victim

#: The way from data to labels.
_ROUTE = (
    "get_dataset", "get_iterator", "forward_iter", "evaluation_step", "infer", "predict_proba",
    "predict",
)  # fmt: skip
#: Thresholds closer to 0 or 1 are taken for this.
_LEAST = 1e-12


def is_net(model):
    """Return whether a model is a fitted net of skorch that is none of this package."""
    return (
        hasattr(model, "module_")
        and hasattr(model, "criterion_")
        and not hasattr(model, "__robustsk_victim__")
    )


def predicts_like(net):
    """Return the name of the class of skorch whose `predict` a net has, None if it has its own."""
    method = getattr(type(net), "predict", None)
    if "predict" in vars(net) or not _is_of_skorch(method):
        return None
    return method.__qualname__.partition(".")[0]


def net_victim(net, attack, access):
    """Return the victim that a net of skorch is; parameters as for :func:`as_victim`."""
    own = _own_parts(net)
    if access in ("scores", "labels") and set(own) - {"infer"} and hasattr(net, "classes_"):
        victim = queried_victim(net, attack, access)  # the answers are enough
        victim.module.dtype = precision_of(net)
        return victim
    module = net.module_
    if "infer" in own or len(getattr(net, "_modules", [])) > 1:
        module = _Inferred(net)
    reading = _reading(net)
    if reading is not None:
        module = Read(module, *reading)
    classes = getattr(net, "classes_", None)
    is_numbered = predicts_like(net) in ("NeuralNet", "NeuralNetClassifier")
    if is_numbered and not np.array_equal(classes, np.arange(np.size(classes))):
        classes = None
    victim = Victim(module, classes=classes, name=type(net).__name__)
    victim.is_numbered = is_numbered
    victim.followed = (
        "What is attacked is its forward pass (`infer`), its predict_nonlinearity and its threshold"
        + (f"; its own {', '.join(own)} cannot be followed." if set(own) - {"infer"} else ".")
    )
    return victim


def precision_of(net):
    """Return the dtype of the arrays that a net takes: its layers refuse another one."""
    parameter = next((p for p in net.module_.parameters() if p.is_floating_point()), None)
    if parameter is None:
        return None
    return np.float64 if parameter.dtype == torch.float64 else np.float32


def _is_of_skorch(method):
    return getattr(method, "__module__", "").partition(".")[0] == "skorch"


def _own_parts(net):
    """Return what on the way from data to labels is not skorch's own."""
    own = [
        name
        for name in _ROUTE
        if name in vars(net) or not _is_of_skorch(getattr(type(net), name, None))
    ]
    dataset = getattr(net, "dataset", None)
    kind = dataset if isinstance(dataset, type) else type(dataset)
    if dataset is not None and not _is_of_skorch(kind):
        own.insert(0, f"dataset {kind.__name__}")
    return own


def _reading(net):
    """Return how `predict` reads what is inferred, and its threshold; None if as logits."""
    criterion = getattr(net.criterion_, "_orig_mod", net.criterion_)
    is_binary = predicts_like(net) == "NeuralNetBinaryClassifier"
    threshold = net.threshold if is_binary else None
    nonlinearity = getattr(net, "predict_nonlinearity", "auto")
    if callable(nonlinearity):
        return nonlinearity, threshold
    if isinstance(criterion, nn.NLLLoss):
        return "log", threshold
    if nonlinearity == "auto" and isinstance(criterion, nn.BCELoss):
        return "probability", 0.5 if threshold is None else threshold
    return None if threshold in (None, 0.5) else ("logits", threshold)


class Read(nn.Module):
    """What a module returns, as logits of which the largest is what is predicted.

    Parameters
    ----------
    module : torch.nn.Module
    how : {"log", "probability", "logits"} or callable
        The logarithm is taken of probabilities; of that of the second class; it returns logits;
        or what it returns becomes probabilities by a function.
    threshold : float, optional
        Probability of the second class from which on it is predicted. None means that of several
        classes the most probable is.
    """

    def __init__(self, module, how, threshold=None):
        super().__init__()
        self.module = module
        self.how = how
        if threshold is not None:
            threshold = min(max(threshold, _LEAST), 1 - _LEAST)
        self.threshold = threshold

    def forward(self, x):
        """Return the logits."""
        output = self.module(x)
        output = output[0] if isinstance(output, tuple) else first_output(output)
        if self.how == "log":
            # as skorch does for this loss
            return torch.log(output + torch.finfo(output.dtype).eps)
        t = self.threshold
        if self.how == "logits":
            logits = two_logits(output, len(x))
            return logits - logits.new_tensor([0.0, math.log(t / (1 - t))])
        if callable(self.how):
            output = self.how(output)
            if t is None:
                return _log(output)
            output = output[:, 1]
        p = output.reshape(len(x))
        return torch.stack([_log(1 - p) - math.log(1 - t), _log(p) - math.log(t)], dim=1)


def _log(p):
    """Return the logarithm, and below what the precision resolves its tangent: it has a slope."""
    eps = torch.finfo(p.dtype).eps
    return torch.log(p.clamp_min(eps)) + (p - eps).clamp_max(0) / eps


class _Inferred(nn.Module):
    """What a net infers, with the modules that it uses where a replica finds them."""

    def __init__(self, net):
        super().__init__()
        self.parts = nn.ModuleDict(
            {
                name: value
                for name, value in vars(net).items()
                if isinstance(value, nn.Module) and name not in ("module", "criterion")
            }
        )
        self.net = _Shared(net)

    def forward(self, x):
        """Return what the net infers from a batch."""
        net = self.net.it
        body = object.__new__(type(net))
        vars(body).update(vars(net))
        vars(body).update(self.parts.items(), device=x.device)
        return body.infer(x)


class _Shared:
    """An object that is not copied with what holds it."""

    def __init__(self, it):
        self.it = it

    def __deepcopy__(self, memo):
        return self
