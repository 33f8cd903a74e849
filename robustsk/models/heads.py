"""What can take the place of the last linear layer in a defence (its `head` parameter)."""

from __future__ import annotations

import numbers

import numpy as np
import torch
from sklearn.base import BaseEstimator
from torch import nn
from torch.nn.functional import one_hot

from .features import get_classifier, replace_classifier
from .linear import CosineLinear


class Head(BaseEstimator):
    """Base class of the heads: parameters, what they do to a network and to its loss."""

    def attach(self, module: nn.Module) -> nn.Module:
        """Put the head in the place of the classifier layer.

        Parameters
        ----------
        module : torch.nn.Module
            Changed in place.

        Returns
        -------
        torch.nn.Module
            The module to use from here on.
        """
        raise NotImplementedError(f"{type(self).__name__} must define attach.")

    def penalise(self, logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return the logits that the classification loss sees in training.

        Parameters
        ----------
        logits : torch.Tensor of shape (n, n_classes)
        y : torch.Tensor of shape (n,)

        Returns
        -------
        torch.Tensor of shape (n, n_classes)
        """
        return logits


class HypersphereHead(Head):
    """Hypersphere embedding: cosines for logits, and a margin in the loss.

    The last layer becomes ``s * cos(w_j, z)``, without a bias. Training subtracts
    the margin from the cosine of the true class in the classification loss,
    ``CE(s * (cos - m * onehot(y)), y)``; the adversary, the divergence in TRADES
    and prediction see ``s * cos``. It goes with every defence, as
    ``TRADESClassifier(head=HypersphereHead(s=15))``.

    Parameters
    ----------
    s : float, default=10.0
        Scale of the cosines.
    m : float, default=0.2
        Margin, in units of the cosine.
    feature_norm : bool, default=True
        Whether the representation is normalised (FN).
    weight_norm : bool, default=True
        Whether the weight of each class is normalised (WN).

    Notes
    -----
    The article has s = 10 (or 15) and m = 0.2 for PGD adversarial training, s = 15
    and m = 0.2 for TRADES, s = 20 and m = 0.3 for ALP. A small scale weakens the
    gradient of the cross-entropy, so that attacks on it overestimate the
    robustness: the authors' own models fall from 60 to 53 % between APGD on the
    cross-entropy and on the difference of logits. Normalisation is part of the
    graph, whereas the authors' code overwrites the weights in every pass.

    References
    ----------
    Pang, Yang, Dong, Xu, Zhu and Su (2020), "Boosting adversarial training with
    hypersphere embedding", Eq. 7 and Table 1.

    Examples
    --------
    >>> from robustsk import PGDATClassifier
    >>> from robustsk.datasets import load_digits_images
    >>> from robustsk.models import HypersphereHead
    >>> X, y = load_digits_images(return_X_y=True)
    >>> clf = PGDATClassifier(
    ...     head=HypersphereHead(s=10, m=0.2), max_epochs=1, random_state=0
    ... ).fit(X[:500], y[:500])
    >>> bool(abs(clf.decision_function(X[:10])).max() <= 10)
    True
    """

    def __init__(self, s=10.0, m=0.2, feature_norm=True, weight_norm=True):
        self.s = s
        self.m = m
        self.feature_norm = feature_norm
        self.weight_norm = weight_norm

    def attach(self, module: nn.Module) -> nn.Module:
        """Put the head in the place of the classifier layer.

        Parameters
        ----------
        module : torch.nn.Module
            Changed in place. If it ends in a :class:`CosineLinear` already, the
            weights are kept.

        Returns
        -------
        torch.nn.Module
            The module to use from here on.
        """
        if not isinstance(self.m, numbers.Real) or not np.isfinite(self.m) or self.m < 0:
            raise ValueError(f"m must be a finite number of at least 0, got {self.m!r}.")
        _, old = get_classifier(module)

        def layer(n_in, n_out):
            new = CosineLinear(n_in, n_out, self.s, self.feature_norm, self.weight_norm)
            if isinstance(old, CosineLinear):
                new.load_state_dict(old.state_dict())
            return new

        return replace_classifier(module, layer)

    def penalise(self, logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return the logits that the classification loss sees in training.

        Parameters
        ----------
        logits : torch.Tensor of shape (n, n_classes)
        y : torch.Tensor of shape (n,)

        Returns
        -------
        torch.Tensor of shape (n, n_classes)
            ``s * (cos - m * onehot(y))``.
        """
        if self.m == 0:
            return logits
        return logits - self.s * self.m * one_hot(y, logits.shape[1]).to(logits)
