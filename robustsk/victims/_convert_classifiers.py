"""Classifiers by themselves, rebuilt in torch: their logits."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import torch
from scipy.sparse import issparse
from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis
from sklearn.linear_model._base import LinearClassifierMixin
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import NearestCentroid
from sklearn.neural_network import MLPClassifier
from sklearn.svm import SVC, NuSVC
from torch import nn

from ._convert_transformers import Affine, double
from .converters import LacksGradient, to_module

#: How steeply the votes that have a gradient stand in for those that have none.
_STEEPNESS = 10.0
#: What decides a tie of votes.
_LEAD = 1e-6


@to_module.register(LinearClassifierMixin)
def _linear(model):
    coef = model.coef_.toarray() if issparse(model.coef_) else np.atleast_2d(model.coef_)
    return Affine(coef.T, model.intercept_)


_ACTIVATIONS = {"identity": nn.Identity, "logistic": nn.Sigmoid, "tanh": nn.Tanh, "relu": nn.ReLU}


@to_module.register
def _(model: MLPClassifier):
    if not hasattr(model, "_label_binarizer") or model._label_binarizer.y_type_.startswith(
        "multilabel"
    ):
        raise LacksGradient("multilabel MLPClassifier")
    layers = []
    for weight, bias in zip(model.coefs_, model.intercepts_, strict=True):
        layers += [Affine(weight, bias), _ACTIVATIONS[model.activation]()]
    return nn.Sequential(*layers[:-1])


class _Distances(nn.Module):
    """Minus the distances from centres, plus a constant for each."""

    def __init__(self, centres, constants, scale=None, is_manhattan=False):
        super().__init__()
        self.is_manhattan = is_manhattan
        self.register_buffer("centres", double(centres))
        self.register_buffer("constants", double(constants))
        self.register_buffer("scale", double(np.ones(centres.shape[1]) if scale is None else scale))

    def forward(self, x):
        scores = []
        for centre in self.centres:
            away = (x - centre) / self.scale
            scores.append(-(away.abs() if self.is_manhattan else away.square()).sum(1))
        return torch.stack(scores, 1) + self.constants


@to_module.register
def _(model: NearestCentroid):
    priors, n_classes = model.class_prior_, len(model.classes_)
    if not np.isclose(priors, 1 / n_classes).all():
        return discriminant(model)
    # without priors `predict` goes by the distances as they are
    is_manhattan = model.metric == "manhattan"
    return _Distances(model.centroids_, np.zeros(n_classes), is_manhattan=is_manhattan)


def discriminant(model):
    if model.metric != "euclidean":  # the distances are squared, whichever they are
        raise LacksGradient(f"{type(model).__name__} of unlike priors and {model.metric} metric")
    spread = model.within_class_std_dev_
    scale = np.where(spread != 0, spread, 1.0)
    return _Distances(model.centroids_, 2.0 * np.log(model.class_prior_), scale)


class _Gaussians(nn.Module):
    """Logarithms of the densities of Gaussians, plus a constant for each."""

    def __init__(self, means, whiten, constants):
        super().__init__()
        self.register_buffer("means", double(means))
        self.register_buffer("constants", double(constants))
        for number, matrix in enumerate(whiten):
            self.register_buffer(f"whiten{number}", double(matrix))

    def forward(self, x):
        scores = []
        for number, mean in enumerate(self.means):
            whiten = getattr(self, f"whiten{number}")
            away = (x - mean) * whiten if whiten.ndim == 1 else (x - mean) @ whiten
            scores.append(-0.5 * away.square().sum(1))
        return torch.stack(scores, 1) + self.constants


@to_module.register
def _(model: GaussianNB):
    constants = np.log(model.class_prior_) - 0.5 * np.log(2 * np.pi * model.var_).sum(1)
    return _Gaussians(model.theta_, model.var_**-0.5, constants)


@to_module.register
def _(model: QuadraticDiscriminantAnalysis):
    pairs = list(zip(model.rotations_, model.scalings_, strict=True))
    constants = np.log(model.priors_) - 0.5 * np.array([np.log(s).sum() for _, s in pairs])
    return _Gaussians(model.means_, [r * s**-0.5 for r, s in pairs], constants)


# --- kernel machines ------------------------------------------------------------------


class Duels(nn.Module):
    """One score per class, of one against one: whole votes, and less than a third of certainty.

    The votes are counted as they are, and have the gradient of smooth ones.

    Parameters
    ----------
    n_classes : int
        Pairs are (0, 1), (0, 2), ..., (1, 2), ...
    takes_first : bool
        Whether the first of several classes with the most votes wins, however sure they are.
    """

    def __init__(self, n_classes, takes_first):
        super().__init__()
        self.takes_first = takes_first
        pairs = np.array(list(combinations(range(n_classes), 2)))
        self.register_buffer("first", double(np.eye(n_classes)[pairs[:, 0]]))
        self.register_buffer("second", double(np.eye(n_classes)[pairs[:, 1]]))

    def forward(self, margin, certainty):
        """Return the scores; `margin` is positive where the first of a pair wins."""
        hard = (margin.detach() >= 0).to(margin.dtype)
        soft = torch.sigmoid(_STEEPNESS * margin)
        both = soft + (hard - soft).detach(), hard
        votes = [vote @ self.first + (1 - vote) @ self.second for vote in both]
        total = certainty @ (self.first - self.second)
        scores = votes[0] + total / (3 * (total.abs() + 1))
        if not self.takes_first:
            return scores
        count = votes[1].round()
        best = (count == count.amax(1, keepdim=True)).to(torch.uint8).argmax(1, keepdim=True)
        lead = (scores.amax(1, keepdim=True) - scores.gather(1, best)).detach()
        lead = torch.where(lead > 0, lead + _LEAD, 0.0)
        return scores.scatter_add(1, best, lead)


class KernelMachine(nn.Module):
    """Sums of kernels at the support vectors, one for each pair of classes."""

    def __init__(self, model, takes_first):
        super().__init__()
        if model.kernel not in ("linear", "poly", "rbf", "sigmoid"):
            raise LacksGradient(f"{type(model).__name__} of its kernel")
        self.kernel, self.degree = model.kernel, model.degree
        self.gamma, self.coef0 = float(model._gamma), float(model.coef0)
        vectors, n_classes = double(model.support_vectors_), len(model.classes_)
        # distances are the same from anywhere, and exact close to zero
        centre = vectors.mean(0) if self.kernel == "rbf" else torch.zeros_like(vectors[0])
        self.register_buffer("centre", centre)
        self.register_buffer("vectors", vectors - centre)
        self.register_buffer("intercept", double(model.intercept_))
        self.register_buffer("weight", double(_pair_weights(model)))
        self.duels = Duels(n_classes, takes_first) if n_classes > 2 else None

    def forward(self, x):
        x = x - self.centre
        product = x @ self.vectors.T
        if self.kernel == "rbf":
            squares = x.square().sum(1, keepdim=True) + self.vectors.square().sum(1)
            product = torch.exp(-self.gamma * (squares - 2 * product))
        elif self.kernel != "linear":
            product = self.gamma * product + self.coef0
            product = product.tanh() if self.kernel == "sigmoid" else product**self.degree
        margin = product @ self.weight.T + self.intercept
        return margin if self.duels is None else self.duels(margin, margin)


def _pair_weights(model):
    """Return the weight of each support vector in each pair of classes."""
    dual = double(model.dual_coef_).numpy()
    if len(model.classes_) == 2:
        return dual
    ends = np.cumsum(model.n_support_)
    own = [slice(end - count, end) for end, count in zip(ends, model.n_support_, strict=True)]
    pairs = list(combinations(range(len(own)), 2))
    weights = np.zeros((len(pairs), dual.shape[1]))
    for row, (i, j) in zip(weights, pairs, strict=True):
        row[own[i]] = dual[j - 1, own[i]]
        row[own[j]] = dual[i, own[j]]
    return weights


@to_module.register(NuSVC)
@to_module.register(SVC)
def _kernel_machine(model):
    return KernelMachine(model, takes_first=not model.break_ties)
