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

from .._shared import export_all as _export_all
from ._residual import PreActResNet as PreActResNet
from ._residual import ResNet as ResNet
from ._residual import WideResNet as WideResNet
from .base import BaseNetwork as BaseNetwork
from .base import Normalize as Normalize
from .cnn import CCENet as CCENet
from .cnn import ConvNet2 as ConvNet2
from .cnn import SmallCNN as SmallCNN
from .cnn import cce_cifar10 as cce_cifar10
from .cnn import cce_cifar100 as cce_cifar100
from .cnn import cce_mnist as cce_mnist
from .features import forward_with_features as forward_with_features
from .features import get_classifier as get_classifier
from .features import get_layer as get_layer
from .features import replace_classifier as replace_classifier
from .heads import Head as Head
from .heads import HypersphereHead as HypersphereHead
from .linear import CosineLinear as CosineLinear
from .linear import MaxMahalanobisLinear as MaxMahalanobisLinear
from .linear import max_mahalanobis_centers as max_mahalanobis_centers
from .max_mahalanobis import MMCHead as MMCHead
from .mlp import MLP as MLP
from .projection import ProjectionHead as ProjectionHead
from .projection import make_projection as make_projection
from .registry import MODELS as MODELS
from .registry import get_model as get_model
from .registry import list_models as list_models
from .registry import make_module as make_module
from .resnet import preact_resnet18 as preact_resnet18
from .resnet import resnet18 as resnet18
from .resnet import resnet20 as resnet20
from .resnet import resnet34 as resnet34
from .resnet import resnet50 as resnet50
from .resnet import wide_resnet_28_10 as wide_resnet_28_10
from .resnet import wide_resnet_34_10 as wide_resnet_34_10

_export_all(globals())
