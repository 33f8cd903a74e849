"""The head with fixed, maximally spread centers."""

from __future__ import annotations

import torch
from torch import nn

from .features import get_classifier, replace_classifier
from .heads import Head
from .linear import MaxMahalanobisLinear, max_mahalanobis_centers, negative_distances


class MMCHead(Head):
    """Max-Mahalanobis centers: negative squared distances for logits.

    The last layer becomes a linear map, which is learned, followed by the
    squared distances to centers that are fixed and as far apart as can be. With
    a defence that minimises cross-entropy, as ``TRADESClassifier(head=MMCHead())``,
    this is a max-Mahalanobis linear discriminant (MMLDA);
    :class:`~robustsk.defenses.MMCClassifier` minimises the distance to the center of the
    class itself.

    Parameters
    ----------
    scale : float, default=10.0
        Distance of the centers from the origin.
    n_features : int, default=None
        Dimension in which they lie. None means as many as enter the last layer,
        or as many as there are classes less one if that is more. In fewer
        dimensions the centers are found numerically.

    Notes
    -----
    Distances of the order of ``scale**2`` saturate the softmax: attacks on the
    cross-entropy find hardly any gradient and robustness is overestimated.
    Attack the margin, ``PGD(objective="cw")``, which is
    ``||z - mu_y||**2 - min_k ||z - mu_k||**2``.

    References
    ----------
    Pang, Xu, Dong, Du, Chen and Zhu (2020), "Rethinking softmax cross-entropy
    loss for adversarial robustness", Sec. 3; Pang, Du and Zhu (2018),
    "Max-Mahalanobis linear discriminant analysis networks".

    Examples
    --------
    >>> from robustsk import PGDATClassifier
    >>> from robustsk.datasets import load_digits_images
    >>> from robustsk.models import MMCHead
    >>> X, y = load_digits_images(return_X_y=True)
    >>> clf = PGDATClassifier(head=MMCHead(scale=5), max_epochs=1, random_state=0)
    >>> bool((clf.fit(X[:500], y[:500]).decision_function(X[:10]) <= 0).all())
    True
    """

    def __init__(self, scale=10.0, n_features=None):
        self.scale = scale
        self.n_features = n_features

    def attach(self, module: nn.Module) -> nn.Module:
        """Put the head in the place of the classifier layer.

        Parameters
        ----------
        module : torch.nn.Module
            Changed in place. If it ends in a :class:`MaxMahalanobisLinear` of
            the same kind already, the weights are kept.

        Returns
        -------
        torch.nn.Module
            The module to use from here on. One that tells two classes apart by
            a single number is followed by the distances to two centers on a
            line.
        """
        _, old = get_classifier(module)
        if getattr(old, "out_features", None) == 1:
            return nn.Sequential(module, _OnALine(self.scale)).to(next(module.parameters()))

        def layer(n_in, n_out):
            new = MaxMahalanobisLinear(n_in, n_out, self.n_features, self.scale)
            if isinstance(old, MaxMahalanobisLinear) and old.n_features == new.n_features:
                new.weight.data.copy_(old.weight.data)
                new.bias.data.copy_(old.bias.data)
            return new

        return replace_classifier(module, layer)


class _OnALine(nn.Module):
    """Turn one number into the logits of two classes."""

    def __init__(self, scale):
        super().__init__()
        centers = max_mahalanobis_centers(2, 1, scale).flip(0)  # positive means the second class
        self.register_buffer("centers", centers.to(torch.get_default_dtype()))

    def forward(self, z):
        z = z[0] if isinstance(z, (tuple, list)) else z
        return negative_distances(z.reshape(len(z), 1), self.centers)
