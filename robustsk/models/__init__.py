"""Networks for small images and tables, and tools to reach into any network.

Every network is built from the shape of one sample and the number of classes,
``SmallCNN((1, 28, 28), 10)``, returns logits, and can normalise its input itself (``mean``,
``std``) so that perturbation budgets stay in the units of the data. ``forward_features``,
``forward_head``, ``get_classifier`` and ``reset_classifier`` work as in timm. Small networks of
one's own take the same manner by deriving from :class:`BaseNetwork`.

:func:`make_module` turns what a user passes as a network (nothing, a name, a module, a class, a
function) into a module that fits the data. :func:`get_classifier`, :func:`replace_classifier`
and :func:`forward_with_features` work on any module that ends in a linear layer.
"""

from robustsk.models.base import BaseNetwork, Normalize
from robustsk.models.cnn import (
    CCENet,
    ConvNet2,
    SmallCNN,
    cce_cifar10,
    cce_cifar100,
    cce_mnist,
)
from robustsk.models.features import (
    forward_with_features,
    get_classifier,
    get_layer,
    replace_classifier,
)
from robustsk.models.heads import Head, HypersphereHead
from robustsk.models.linear import (
    CosineLinear,
    MaxMahalanobisLinear,
    max_mahalanobis_centers,
)
from robustsk.models.max_mahalanobis import MMCHead
from robustsk.models.mlp import MLP
from robustsk.models.projection import ProjectionHead, make_projection
from robustsk.models.registry import MODELS, get_model, list_models, make_module
from robustsk.models.resnet import (
    PreActResNet,
    ResNet,
    WideResNet,
    preact_resnet18,
    resnet18,
    resnet20,
    resnet34,
    resnet50,
    wide_resnet_28_10,
    wide_resnet_34_10,
)

__all__ = [
    "MLP",
    "MODELS",
    "BaseNetwork",
    "CCENet",
    "ConvNet2",
    "CosineLinear",
    "Head",
    "HypersphereHead",
    "MMCHead",
    "MaxMahalanobisLinear",
    "Normalize",
    "PreActResNet",
    "ProjectionHead",
    "ResNet",
    "SmallCNN",
    "WideResNet",
    "cce_cifar10",
    "cce_cifar100",
    "cce_mnist",
    "forward_with_features",
    "get_classifier",
    "get_layer",
    "get_model",
    "list_models",
    "make_module",
    "make_projection",
    "max_mahalanobis_centers",
    "preact_resnet18",
    "replace_classifier",
    "resnet18",
    "resnet20",
    "resnet34",
    "resnet50",
    "wide_resnet_28_10",
    "wide_resnet_34_10",
]
