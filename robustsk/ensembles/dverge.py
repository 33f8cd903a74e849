"""DVERGE: members that learn from each other's non-robust features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from .._validation import check_count, check_length
from ..attacks import MIM
from ..attacks.noise import SampleNoise, Stream
from ..attacks.objectives import Objective
from ..losses import dverge_loss, feature_distance
from ..models import forward_with_features
from .base import BaseEnsemble

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..defenses._parameters import Network
    from ._parameters import EnsembleParameters

#: Ascended to come close to the features of another image, which are given as the clean ones.
CLOSENESS = Objective(lambda z, y, target, clean: -feature_distance(z, clean), needs_clean=True)


class EnsembleDVERGE(BaseEnsemble):
    """DVERGE: an ensemble with diverse vulnerabilities.

    For every member `j` each image is moved, by no more than `eps`, until `j`
    sees the features of another image in it. What changes are features that
    only `j` relies on. The other members are trained to see what is there::

        sum_i sum_{j != i} CE(f_i(x_j), y)

    where `x_j` is the image as moved for `j` and `y` its class. Predictions are
    those of the mean probability.

    Parameters
    ----------
    %(first_parameter)s
    eps : float, default=0.07
        How far an image is moved, in the norm of the adversary.
    n_steps : int, default=10
        Number of steps in which it is moved.
    step_size : float, default=None
        Length of a step. None means ``eps / n_steps``.
    layer : str or list of str, default=None
        Name of the layer whose output are the features, as in
        ``named_modules()`` of a member; of a list, one is drawn for each batch.
        None means what enters the last linear layer.
    warmup_epochs : int, default=0
        Epochs of natural training at the beginning. The source starts from
        members that are fully trained.
    adversarial : bool, default=False
        Whether to add each member's loss on examples that are adversarial to
        this member, as in DVERGE+AT.
    %(shared_parameters)s

    %(shared_attributes)s

    See Also
    --------
    EnsembleCCE : Members that learn from each other's adversarial examples.
    robustsk.losses.dverge_loss : The loss.

    Notes
    -----
    It makes transfer between members harder. Alone it falls to strong attacks
    on the ensemble as a whole; use it with `adversarial`.

    Every sample of the batch is the source of one pair; its target is the next
    sample in a random order of the different samples of the batch, so that a
    sample of weight 2 does what two would do. The source of the method draws targets from all
    of the data, and a layer for each epoch. Images are moved with momentum, in
    the mask and the valid range of the adversary, starting from the image, as
    in the authors' code. A single member has no others and is trained
    naturally, or with `adversarial` on adversarial examples.

    References
    ----------
    Yang, Zhang, Dong, Inkawhich, Gardner, Touchet, Wilkes, Berry and Li (2020),
    "DVERGE: diversifying vulnerabilities for enhanced robust generation of
    ensembles", NeurIPS, Eq. 1 and Algorithm 1, and the authors' code.

    Examples
    --------
    >>> from robustsk import EnsembleDVERGE
    >>> from robustsk.datasets import load_digits_images
    >>> X, y = load_digits_images(return_X_y=True, as_flat=True)
    >>> clf = EnsembleDVERGE(eps=0.2, max_epochs=8, adversary__eps=0.1, random_state=0)
    >>> clf = clf.fit(X[:1000], y[:1000])
    >>> bool(clf.score_adversarial(X[1000:1200], y[1000:1200]) > 0.4)
    True
    """

    def __init__(
        self,
        module: Network | Sequence[Network] | None = None,
        *,
        eps: float = 0.07,
        n_steps: int = 10,
        step_size: float | None = None,
        layer: str | Sequence[str] | None = None,
        warmup_epochs: int = 0,
        adversarial: bool = False,
        **common: Unpack[EnsembleParameters],
    ):
        super().__init__(module, **common)
        self.eps = eps
        self.n_steps = n_steps
        self.step_size = step_size
        self.layer = layer
        self.warmup_epochs = warmup_epochs
        self.adversarial = adversarial

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        """Check the parameters; called by skorch."""
        super().on_train_begin(net, X, y, **kwargs)
        check_length(self.eps, "eps")
        check_count(self.n_steps, "n_steps")
        check_count(self.warmup_epochs, "warmup_epochs", least=0)
        if isinstance(self.layer, (list, tuple)) and not self.layer:
            raise ValueError("layer is an empty list: it must hold the name of at least one layer.")

    def craft(self, x: Tensor, y: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return the batch as moved for each member, and as attacked; lists may be empty."""
        members = self.module_.members
        if max(self.epoch, 0) < self.warmup_epochs:
            return [], []
        attacked = [self.perturb(m, x, y) for m in members] if self.adversarial else []
        if len(members) == 1:
            return [], attacked
        target = x[partners(x, int(self._rng.randint(np.iinfo(np.int32).max)))]
        layer = self.layer
        if isinstance(layer, (list, tuple)):
            layer = layer[self._rng.randint(len(layer))]
        return [self.distill(m, x, target, layer) for m in members], attacked

    def distill(self, member, x, target, layer=None):
        """Move a batch until a member sees the features of another batch in it.

        Parameters
        ----------
        member : torch.nn.Module
            One of ``module_.members``.
        x : torch.Tensor of shape (n, ...)
            Where to start, and the centre of the ball.
        target : torch.Tensor of the shape of `x`
            Whose features to approach.
        layer : str, default=None
            As the parameter of the ensemble, one name.

        Returns
        -------
        torch.Tensor of the shape of `x`
            Detached.
        """
        known = {} if self._victims is None else self._victims
        if (member, layer) not in known:
            known[member, layer] = self._victim(_Features(member, layer), self.classes_inferred_)
            known[member, layer].is_ours = True
        victim = known[member, layer]
        with victim.frozen() as seen, torch.no_grad():
            features = seen(self._rows(target))
        attack = self.like_adversary(
            MIM,
            eps=self.eps,
            n_steps=self.n_steps,
            step_size=self.step_size,
            objective=None,
            target=None,
        )
        moved = attack.perturb(
            victim,
            self._rows(x),
            # no class matters
            torch.zeros(len(x), dtype=torch.int64, device=x.device),
            CLOSENESS,
            bounds=victim.bounds,
            seed=0,
            clean_logits=features,
        )
        return moved.reshape(x.shape)

    def training_loss(
        self, x: Tensor, x_adv: tuple[list[Tensor], list[Tensor]], y: Tensor
    ) -> Tensor:
        """Return the sum of the members' losses on what was moved for others, shape (n,)."""
        moved, attacked = x_adv
        if not moved and not attacked:
            return self.member_losses(self.member_logits(x), y)
        loss = 0
        if moved:
            logits = [
                [self.logits(other, member) for j, other in enumerate(moved) if j != i]
                for i, member in enumerate(self.module_.members)
            ]
            loss = dverge_loss(logits, y, self.classification_loss)
        if attacked:
            loss = loss + self.member_losses(self.member_logits(attacked), y)
        return loss


class _Features(nn.Module):
    """A representation of a network, in the place of its logits."""

    def __init__(self, module, layer):
        super().__init__()
        self.module = module
        self.layer = layer

    def forward(self, x):
        return forward_with_features(self.module, x, self.layer)[1]


def partners(x, seed):
    """Return for each sample the place of another one, shape (n,).

    Different samples are put into a random order that neither their places nor
    their copies matter to; the partner is the next one, and the first one's
    that of the last.
    """
    keys, order = SampleNoise(x.double(), seed).scalar(Stream.START).sort()
    following = torch.searchsorted(keys, keys, right=True) % len(keys)
    return torch.empty_like(order).scatter_(0, order, order[following])
