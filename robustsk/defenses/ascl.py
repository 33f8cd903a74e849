"""ASCL: adversarial supervised contrastive learning."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .._shared import temporarily
from .._validation import check_choice, check_length
from ..attacks.noise import SampleNoise, Stream
from ..losses import contrastive_loss, contrastive_selection, kl_divergence
from ..models import forward_with_features, get_classifier, get_layer, make_projection
from ._records import EpochMeans
from .base import BaseDefense

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._parameters import Network, ProjectedDefenseParameters


class ASCLClassifier(EpochMeans, BaseDefense):
    """ASCL: adversarial training with a supervised contrastive loss.

    The clean and the adversarial batch are two views of the same samples.
    Besides being classified, the representation of each is to be close to that
    of its other view and to those of its class, and far from those of other
    classes::

        CE(f(x), y) + CE(f(x'), y) + lam_scl * SCL + lam_vat * KL(p(x) || p(x'))

    Parameters
    ----------
    %(first_parameter)s
    lam_scl : float, default=1.0
        Weight of the contrastive loss, a sum over the two views of a sample:
        twice the mean over all views, which is what other implementations have.
    lam_vat : float, default=2.0
        Weight of the divergence of the predictions for `x` and `x'`.
    selection : {"leaked", "global", "hard", "soft"}, default="leaked"
        Which positives and negatives take part, see
        :func:`robustsk.losses.contrastive_selection`. "global", all of them, is
        ASCL; "leaked", those that are predicted like the anchor, is what the
        source proposes and reports as its own method.
    temperature : float, default=0.07
        What similarities are divided by.
    similarity : {"cosine", "l1", "l2", "linf"}, default="cosine"
        Cosine, or the negative distance of directions.
    projection : {None, "linear", "mlp"} or callable, default=None
        What representations go through on their way to the contrastive loss: a
        linear map to 128 features, 200 hidden and 128 features, or what a class
        or function makes of the number of features. Options are given as
        ``projection__out_features=64``. It is trained with the network, has the
        same optimizer, and takes no part in predictions and attacks.
    natural : bool, default=True
        Whether the cross-entropy of clean samples is part of the loss. The
        source leaves it out for its best results, on large networks.
    anchor_prediction : {"own", "clean"}, default="own"
        What an adversarial anchor is predicted as: itself, or its clean sample.
    keep_counterpart : bool, default=True
        Whether the two views of a sample attract each other even where they are
        predicted differently and `selection` is "leaked"; they do not in the
        authors' code.
    crops : {None, "joint", "across", "within"}, default=None
        Whether there are two crops of each sample, made by `augmentation`, each with an
        adversarial example of its own; and what the contrastive loss is then:

        - "joint": one loss on all four views, in which the other crop and its adversarial example
          are positives like those of other samples of the class;
        - "across": the mean of those on the two crops and on their two adversarial examples;
        - "within": the mean of those on each crop and its adversarial example.

        The other terms are means over the crops. It is an option of the authors' code.
    layer : str, default=None
        Name of the layer whose output is the representation, as in
        ``module.named_modules()``. None means what enters the last linear
        layer.
    %(shared_parameters)s

    %(shared_attributes)s
    projection_ : torch.nn.Module or None
        The trained projection.

    See Also
    --------
    SupervisedContrastiveClassifier : Without adversarial examples.
    ADRClassifier : Compares representations by their distances.
    robustsk.losses.supervised_contrastive : The contrastive loss.
    robustsk.metrics.latent_divergence : What the loss is to make small.

    Notes
    -----
    `history_` holds as "n_positive" and "n_negative" how many members an anchor
    is compared with on average, its other view among the positives. With
    "global" the sum is twice the batch size less one. With the others negatives
    become few during training.

    Sample weights count in the contrastive loss too, so that a sample of weight
    2 is two. Identical samples of a class are taken for one: they are no
    positives of each other.

    What the contrastive loss does for robustness depends on the rest: in the
    source it raises AutoAttack accuracy from 48.8 to 50.3 %% in ResNet-18 without
    the natural cross-entropy (its Table 6), and lowers that of ResNet-20 with
    it from 36.1 to 34.7 %% (Table 7, ``lam_vat=0``), where the divergence is what
    helps. The authors' code averages the divergence over the classes as well,
    which makes their weight of 2 a weight of ``2 / n_classes`` here.

    References
    ----------
    Bui, Le, Zhao, Montague, Camtepe and Phung (2021), "Understanding and
    achieving efficient robustness with adversarial supervised contrastive
    learning", arXiv:2101.10027, Eqs. 1 to 6, Table 1 and Appendix C.1; Bui
    (2023), "Enhancing adversarial robustness: representation, ensemble, and
    distribution approaches", PhD thesis, Monash University, Sec. 3.4.

    Examples
    --------
    >>> from robustsk import ASCLClassifier
    >>> from robustsk.datasets import load_digits_images
    >>> X, y = load_digits_images(return_X_y=True)
    >>> clf = ASCLClassifier(max_epochs=8, adversary__eps=0.1, random_state=0)
    >>> clf = clf.fit(X[:1000], y[:1000])
    >>> bool(clf.score_adversarial(X[1000:1200], y[1000:1200]) > 0.4)
    True
    >>> clf.history[0, "n_negative"] > clf.history[-1, "n_negative"]
    True
    """

    _modules = [*BaseDefense._modules, "projection"]
    prefixes_ = [*BaseDefense.prefixes_, "projection"]
    cuda_dependent_attributes_ = [*BaseDefense.cuda_dependent_attributes_, "projection_"]
    _of_a_session = (*BaseDefense._of_a_session, "_reported", "_totals")
    projection_ = None

    def __init__(
        self,
        module: Network | None = None,
        *,
        lam_scl: float = 1.0,
        lam_vat: float = 2.0,
        selection: str = "leaked",
        temperature: float = 0.07,
        similarity: str = "cosine",
        projection: str | Callable[..., nn.Module] | None = None,
        natural: bool = True,
        anchor_prediction: str = "own",
        keep_counterpart: bool = True,
        crops: str | None = None,
        layer: str | None = None,
        **common: Unpack[ProjectedDefenseParameters],
    ):
        super().__init__(module, **common)
        self.lam_scl = lam_scl
        self.lam_vat = lam_vat
        self.selection = selection
        self.temperature = temperature
        self.similarity = similarity
        self.projection = projection
        self.natural = natural
        self.anchor_prediction = anchor_prediction
        self.keep_counterpart = keep_counterpart
        self.crops = crops
        self.layer = layer

    def initialize_module(self):
        """Build the network and the projection; called by skorch."""
        super().initialize_module()
        self.projection_ = build_projection(self, self.layer)
        return self

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        """Check the parameters; called by skorch."""
        super().on_train_begin(net, X, y, **kwargs)
        check_length(self.lam_scl, "lam_scl")
        check_length(self.lam_vat, "lam_vat")
        check_contrast(self)
        check_choice(self.selection, "selection", ("leaked", "global", "hard", "soft"))
        check_choice(self.anchor_prediction, "anchor_prediction", ("own", "clean"))
        for name in ("natural", "keep_counterpart"):
            check_choice(getattr(self, name), name, (False, True))
        check_choice(self.crops, "crops", (None, "joint", "across", "within"))
        if self.crops is not None and self.augmentation is None:
            raise ValueError(
                f"crops={self.crops!r} needs an augmentation that makes the crops, e.g. "
                "augmentation=RandomCropFlip()."
            )
        if self.crops == "across" and self.anchor_prediction != "own":
            raise ValueError(
                "crops='across' compares adversarial examples without the clean crops, by whose "
                "predictions anchor_prediction='clean' would have them selected: leave it at 'own'."
            )
        if self.layer is not None:
            get_layer(self.module_, self.layer)

    def _receive(self, batch):
        if self.crops is None:
            return super()._receive(batch)
        # the crops are made in `craft`, each by itself
        with temporarily(self, augmentation_=None):
            return super()._receive(batch)

    def craft(self, x: Tensor, y: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return the adversarial batch; with `crops`, both crops and their adversarial batches."""
        if self.crops is None:
            return super().craft(x, y)
        crops = [self._lay_out(self.augmentation_(x)) for _ in range(2)]
        return (*crops, *(self.perturb(self.module_, crop, y) for crop in crops))

    def training_loss(self, x: Tensor, x_adv: Tensor | tuple[Tensor, ...], y: Tensor) -> Tensor:
        """Return the sum of all terms, shape (n,)."""
        if self.crops is not None:
            return self._loss_of_crops(x, x_adv, y)
        if not self.natural and self.lam_scl == self.lam_vat == 0:
            return self.classification_loss(self.logits(x_adv), y)
        if self.lam_scl > 0:
            logits, z = self.logits_and_features(x, self.layer)
            logits_adv, z_adv = self.logits_and_features(x_adv, self.layer)
        else:
            logits, logits_adv = self.logits(x), self.logits(x_adv)
        # Eq. 4
        loss = self.classification_loss(logits_adv, y)
        if self.natural:
            loss = self.classification_loss(logits, y) + loss
        if self.lam_scl > 0:
            members = self._select(x, y, logits, logits_adv)
            # Eqs. 1 to 3
            loss = loss + self.lam_scl * contrast(self, z, z_adv, members)
        if self.lam_vat > 0:
            # Eq. 5; the sum is Eq. 6
            loss = loss + self.lam_vat * kl_divergence(logits, logits_adv)
        return loss

    def _loss_of_crops(self, x, views, y):
        """Return the sum of all terms where there are two crops of each sample, shape (n,)."""
        if self.lam_scl > 0:
            logits, z = zip(*(self.logits_and_features(v, self.layer) for v in views), strict=True)
        else:
            logits = [self.logits(v) for v in views]
        loss = 0.0
        for clean, adversarial in zip(logits[:2], logits[2:], strict=True):
            loss = loss + self.classification_loss(adversarial, y) / 2
            if self.natural:
                loss = loss + self.classification_loss(clean, y) / 2
            if self.lam_vat > 0:
                loss = loss + self.lam_vat / 2 * kl_divergence(clean, adversarial)
        if self.lam_scl == 0:
            return loss
        ids, weight = sample_ids(x), self.batch_weight
        if self.crops == "joint":
            # ids are in [0, 1), and the other crop is another sample
            ids, y = torch.cat([ids, ids + 1]), y.repeat(2)
            weight = None if weight is None else weight.repeat(2)
            pairs = [[[torch.cat(t[:2]), torch.cat(t[2:])] for t in (logits, z)]]
        else:
            first, second = ((0, 1), (2, 3)) if self.crops == "across" else ((0, 2), (1, 3))
            pairs = [[[t[i] for i in pair] for t in (logits, z)] for pair in (first, second)]
        values, counts = [], []
        for of_logits, of_z in pairs:
            members = self._members(y, *of_logits, ids, weight)
            values.append(contrast(self, *of_z, members))
            counts.append([m.sum(1).mean() for m in members])
        self._report(len(x), *(sum(c) / len(c) for c in zip(*counts, strict=True)))
        return loss + self.lam_scl * torch.cat(values).reshape(2, -1).mean(0)

    def _select(self, x, y, logits, logits_adv):
        """Return positives and negatives, and report their numbers."""
        members = self._members(y, logits, logits_adv, sample_ids(x), self.batch_weight)
        self._report(len(y), *(m.sum(1).mean() for m in members))
        return members

    def _members(self, y, logits, logits_adv, ids, weight):
        """Return positives and negatives of two views."""
        return contrastive_selection(
            y,
            logits.detach().argmax(1),
            logits_adv.detach().argmax(1),
            self.selection,
            self.anchor_prediction,
            self.keep_counterpart,
            ids=ids,
            sample_weight=weight,
        )

    def _report(self, n_samples, n_positive, n_negative):
        self.report(n_samples, n_positive=n_positive, n_negative=n_negative)


def check_contrast(clf):
    """Raise unless `temperature` and `similarity` of a defence are valid."""
    check_choice(clf.similarity, "similarity", ("cosine", "l1", "l2", "linf"))
    if not check_length(clf.temperature, "temperature"):
        raise ValueError("temperature must be greater than 0: similarities are divided by it.")


def contrast(clf, z, z_adv, members):
    """Return the contrastive loss of two views of a batch, projected; shape (n,)."""
    positives, negatives = members
    if clf.projection_ is not None:
        z, z_adv = clf.projection_(z), clf.projection_(z_adv)
    return contrastive_loss(
        z, z_adv, positives.to(z), negatives.to(z), clf.temperature, clf.similarity
    )


def sample_ids(x):
    """Return a number for each sample that is the same for identical ones only, shape (n,)."""
    return SampleNoise(x.double(), 0).scalar(Stream.START)


def build_projection(clf, layer=None):
    """Return the projection of a defence whose network has been built, or None."""
    if clf.projection is None:
        return None
    params = clf.get_params_for("projection")
    weight = next(clf.module_.parameters())
    return make_projection(clf.projection, _n_features(clf, layer, weight), **params).to(weight)


@torch.no_grad()
def _n_features(clf, layer, weight):
    """Return the length of the representation, by a forward pass where need be."""
    if layer is None:
        known = getattr(get_classifier(clf.module_)[1], "in_features", None)
        if known:
            return known
    shape = getattr(clf, "input_shape_", None)
    if shape is None:
        raise ValueError(
            f"{type(clf).__name__} cannot build its projection before it has seen data: call fit, "
            "or give it input_shape=(...)."
        )
    probe = clf.module_.eval()
    _, z = forward_with_features(probe, weight.new_zeros(2, *shape), layer)
    clf.module_.train()
    return z.shape[1]
