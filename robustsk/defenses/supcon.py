"""Supervised contrastive learning without adversarial examples, and a linear probe."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .._shared import temporarily
from .._validation import check_count, check_length
from ..attacks import BaseAttack
from ..attacks.noise import Stream
from ..losses import contrastive_selection
from ..models import get_classifier
from ..training._weights import put
from .ascl import build_projection, check_contrast, contrast, sample_ids
from .base import BaseDefense

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._parameters import Network, ProjectedDefenseParameters


class SupervisedContrastiveClassifier(BaseDefense):
    """Supervised contrastive learning with a linear probe, without adversarial examples.

    Trains the representation of the network on two random views of each batch,
    with the contrastive loss of :class:`ASCLClassifier` and nothing else. The
    last linear layer is trained on top of it with the classification loss,
    whose gradient goes no further down (a linear probe).

    It is the baseline that tells what a contrastive loss does by itself, and no
    defence: in the source its accuracy under PGD is zero.

    Parameters
    ----------
    module : str, torch.nn.Module class or instance, default=None
        The network, which returns logits and ends in a linear layer. None means
        an MLP for tables and a small CNN for images; a string names a network
        of :mod:`robustsk.models`.
    temperature : float, default=0.07
        What similarities are divided by.
    similarity : {"cosine", "l1", "l2", "linf"}, default="cosine"
        Cosine, or the negative distance of directions.
    projection : {None, "linear", "mlp"} or callable, default=None
        What representations go through on their way to the contrastive loss, as
        in :class:`ASCLClassifier`.
    probe_steps : int, default=0
        Largest number of iterations of L-BFGS with which the last layer is
        fitted once more after the last epoch, to the representation of the clean
        training data. 0 leaves it as it was trained along the way.
    probe_l2 : float, default=0.001
        Half of this times the squared weights of the last layer is added to the
        loss in that fit.
    augmentation : callable, default=None
        ``f(x)``, called twice on every training batch for the two views, e.g.
        :class:`robustsk.training.RandomCropFlip`. None means two random points
        in the ball of the adversary around each sample.
    adversary : attack, default=None
        The threat model that `score_adversarial` assumes, and the radius of the
        views. None means a 10-step PGD with ``eps=8/255``. Its parameters can be
        given as ``adversary__eps=0.3``.
    %(shared_parameters)s

    %(shared_attributes)s
    projection_ : torch.nn.Module or None
        The trained projection.

    See Also
    --------
    ASCLClassifier : The same loss in adversarial training.
    StandardClassifier : Natural training with cross-entropy.

    Notes
    -----
    The source takes random crops and flips for views, and reports 93.8 %% clean
    accuracy and none under PGD-250 (CIFAR-10, ResNet-18). Its authors' code trains
    the probe afterwards, on adversarial examples too, and feeds representations
    of any length to a loss that is made for directions.

    In the history, the training loss is the sum of both parts.

    References
    ----------
    Khosla, Teterwak, Wang, Sarna, Tian, Isola, Maschinot, Liu and Krishnan
    (2020), "Supervised contrastive learning", NeurIPS; Bui, Le, Zhao, Montague,
    Camtepe and Phung (2021), "Understanding and achieving efficient robustness
    with adversarial supervised contrastive learning", arXiv:2101.10027, Table 6
    ("orgSCL") and Appendix C.2.

    Examples
    --------
    >>> from robustsk import SupervisedContrastiveClassifier
    >>> from robustsk.datasets import load_digits_images
    >>> X, y = load_digits_images(return_X_y=True)
    >>> clf = SupervisedContrastiveClassifier(max_epochs=8, adversary__eps=0.1, random_state=0)
    >>> clf = clf.fit(X[:1000], y[:1000])
    >>> bool(clf.score(X[1000:1200], y[1000:1200]) > 0.85)
    True
    """

    _modules = [*BaseDefense._modules, "projection"]
    prefixes_ = [*BaseDefense.prefixes_, "projection"]
    cuda_dependent_attributes_ = [*BaseDefense.cuda_dependent_attributes_, "projection_"]
    projection_ = None

    def __init__(
        self,
        module: Network | None = None,
        *,
        temperature: float = 0.07,
        similarity: str = "cosine",
        projection: str | Callable[..., nn.Module] | None = None,
        probe_steps: int = 0,
        probe_l2: float = 0.001,
        **common: Unpack[ProjectedDefenseParameters],
    ):
        super().__init__(module, **common)
        self.temperature = temperature
        self.similarity = similarity
        self.projection = projection
        self.probe_steps = probe_steps
        self.probe_l2 = probe_l2

    def initialize_module(self):
        """Build the network and the projection; called by skorch."""
        super().initialize_module()
        self.projection_ = build_projection(self)
        return self

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        """Check the parameters; called by skorch."""
        super().on_train_begin(net, X, y, **kwargs)
        check_contrast(self)
        check_length(self.probe_l2, "probe_l2")
        check_count(self.probe_steps, "probe_steps", least=0)

    def _train(self, samples, fresh):
        super()._train(samples, fresh)
        if self.probe_steps and len(self.history_):
            with self._session(fresh=False) as interruptible, interruptible():
                self._fit_probe(samples)
        return self

    def _receive(self, batch):
        # the views are made in `craft`, each by itself
        with temporarily(self, augmentation_=None):
            return super()._receive(batch)

    def craft(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return two views of a batch."""
        if self.augmentation_ is not None:
            return tuple(self._lay_out(self.augmentation_(x)) for _ in range(2))
        anywhere = self.like_adversary(_AnyPoint)
        return tuple(self.perturb(self.module_, x, y, adversary=anywhere) for _ in range(2))

    def training_loss(self, x: Tensor, x_adv: tuple[Tensor, Tensor], y: Tensor) -> Tensor:
        """Return the contrastive loss of the views and the loss of the last layer, shape (n,)."""
        z, other = (self.logits_and_features(view)[1] for view in x_adv)
        members = contrastive_selection(y, ids=sample_ids(x), sample_weight=self.batch_weight)
        loss = contrast(self, z, other, members)
        for view in (z, other):
            loss = loss + self._probe_loss(view.detach(), y) / 2
        return loss

    def _probe_loss(self, z, y):
        """Return the loss of the last layer on given representations, shape (n,)."""
        return self.classification_loss(self.logits(z, get_classifier(self.module_)[1]), y)

    def _fit_probe(self, samples):
        """Fit the last layer to the representation of the training data."""
        z, y, weight = self._represent(samples)
        layer = get_classifier(self.module_)[1]
        learnt = [p for p in layer.parameters() if p.requires_grad]
        if not learnt:
            return
        before = [p.detach().clone() for p in learnt]
        optimizer = torch.optim.LBFGS(
            learnt, max_iter=self.probe_steps, line_search_fn="strong_wolfe",
            tolerance_grad=1e-9, tolerance_change=1e-12,
        )  # fmt: skip

        def closure():
            optimizer.zero_grad()
            with torch.enable_grad():
                loss = (weight * self._probe_loss(z, y)).sum()
                loss = loss + self.probe_l2 / 2 * sum((p**2).sum() for p in learnt if p.ndim > 1)
            loss.backward()
            return loss

        self._set_training(False)
        try:
            with self._drawing() as interruptible, interruptible():
                optimizer.step(closure)
            optimizer.zero_grad()
        except BaseException:
            put(learnt, before)
            raise
        if not all(torch.isfinite(p).all() for p in learnt):
            put(learnt, before)

    @torch.no_grad()
    def _represent(self, samples):
        """Return representations, labels and shares of all samples, on the device."""
        self._set_training(False)
        parts = []
        for batch in self._generator.draw(self.get_iterator(samples, training=False)):
            with self._drawing() as interruptible, interruptible():
                x, y, weight = self._receive(batch)
                z = self.logits_and_features(x)[1]
            parts.append((z, y, z.new_ones(len(z)) if weight is None else weight))
        z, y, weight = (torch.cat(part) for part in zip(*parts, strict=True))
        return z, y, weight / weight.sum()


class _AnyPoint(BaseAttack):
    """Go to a random point of the ball."""

    def _attack_batch(self, batch):
        return batch.ball.random_start("uniform", batch.noise, Stream.START, 0.0)
