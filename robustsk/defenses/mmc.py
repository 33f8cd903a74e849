"""MMC: learn to be near the center of the class."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..attacks import Objective
from ..losses import mmc_loss
from ..models.max_mahalanobis import MMCHead
from .base import BaseDefense

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._parameters import DefenseParametersButHead, Network


class MMCClassifier(BaseDefense):
    """Max-Mahalanobis centers: fixed centers, and a loss that asks for nearness to them.

    The last layer of the network becomes a linear map to ``z``. Each class has a
    center on a sphere, all as far apart as can be and not learned; prediction
    is the nearest one. Minimises ``||z(x') - mu_y||**2 / 2``, where `x'` ascends
    the same distance.

    Parameters
    ----------
    module : str, torch.nn.Module class or instance, default=None
        The network, whose last linear layer is replaced. None means an MLP for
        tables and a small CNN for images; a string names a network of
        :mod:`robustsk.models`.
    loss : {"mmc", "mmlda"}, default="mmc"
        The distance to the center of the class, or the cross-entropy of the
        softmax over negative squared distances (a linear discriminant).
    scale : float, default=10.0
        Distance of the centers from the origin, C_MM in the source.
    n_features : int, default=None
        Dimension of `z`. None means as many as enter the last layer, or as many
        as there are classes less one if that is more.
    adversarial : bool, default=True
        Whether to train on adversarial examples; False trains on clean data, as
        much of the source does.
    head : {"mmc"}, default="mmc"
        The head is part of the method; for other losses on it see
        :class:`~robustsk.models.MMCHead`.
    %(shared_parameters)s

    %(shared_attributes)s

    See Also
    --------
    robustsk.models.MMCHead : The centers under any other defence.

    Notes
    -----
    The logits are ``-||z - mu_k||**2``, numbers of the order of ``-scale**2``,
    which saturate the softmax: attacks on the cross-entropy find hardly any
    gradient. The default attack of `score_adversarial` therefore ascends the
    margin, ``||z - mu_y||**2 - min_k ||z - mu_k||**2``; compare with the distance
    alone, ``PGD(objective=mmc_loss)``, and with AutoAttack. Models trained on
    clean data with this loss have been found to owe most of their robustness
    to masked gradients. `predict_proba` is close to 0 or 1 nearly always.

    `criterion` is used by "mmlda" only.

    References
    ----------
    Pang, Xu, Dong, Du, Chen and Zhu (2020), "Rethinking softmax cross-entropy
    loss for adversarial robustness", Eq. 8 and Sec. 4, for the adaptive attacks
    Sec. 4.3; Pang, Du and Zhu (2018), "Max-Mahalanobis linear discriminant
    analysis networks", for "mmlda".

    Examples
    --------
    >>> from robustsk import MMCClassifier
    >>> from robustsk.datasets import load_digits_images
    >>> X, y = load_digits_images(return_X_y=True)
    >>> clf = MMCClassifier(max_epochs=8, adversary__eps=0.1, random_state=0)
    >>> clf = clf.fit(X[:1000], y[:1000])
    >>> bool(clf.score_adversarial(X[1000:1200], y[1000:1200]) > 0.4)
    True
    """

    def __init__(
        self,
        module: Network | None = None,
        *,
        loss: str = "mmc",
        scale: float = 10.0,
        n_features: int | None = None,
        adversarial: bool = True,
        head: str = "mmc",
        **common: Unpack[DefenseParametersButHead],
    ):
        super().__init__(module, **common)
        self.loss = loss
        self.scale = scale
        self.n_features = n_features
        self.adversarial = adversarial
        self.head = head

    def build_module(self, **facts):
        """Return the network with the centers."""
        if self.loss not in ("mmc", "mmlda"):
            raise ValueError(f"loss must be 'mmc' or 'mmlda', got {self.loss!r}.")
        if self.head != "mmc":
            raise ValueError(
                f"head={self.head!r}: MMCClassifier has a head of its own. Give scale and "
                "n_features, or use another defence with this head."
            )
        return super().build_module(**facts)

    def _prepare(self, X, y, sample_weight, *, reset, **options):
        given = self.criterion is not nn.CrossEntropyLoss or self.get_params_for("criterion")
        if self.loss == "mmc" and given:
            text = (
                "loss='mmc' is a loss of its own and takes no criterion: leave criterion and "
                "criterion__... out, or use loss='mmlda'."
            )
            if reset:
                raise ValueError(text)
            warnings.warn(text, UserWarning, stacklevel=3)
        return super()._prepare(X, y, sample_weight, reset=reset, **options)

    def _head(self):
        return MMCHead(self.scale, self.n_features)

    def default_attack(self):
        """Return the attack of `score_adversarial`: PGD with 20 steps and two runs, on margins."""
        return super().default_attack().set_params(objective="cw")

    def attack_objective(self):
        """Return the squared distance to the center of the class, or "ce" for "mmlda"."""
        return Objective(_distance) if self.loss == "mmc" else "ce"

    def craft(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the adversarial batch, or the clean one if that is what is trained on."""
        return super().craft(x, y) if self.adversarial else x

    def training_loss(self, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        """Return ``||z(x') - mu_y||**2 / 2``, or the cross-entropy for "mmlda"; shape (n,)."""
        logits = self.logits(x_adv)
        return mmc_loss(logits, y) if self.loss == "mmc" else self.classification_loss(logits, y)


def _distance(logits, y, target, clean):
    if target is None:
        return -logits.gather(1, y[:, None]).squeeze(1)
    return logits.gather(1, target[:, None]).squeeze(1)
