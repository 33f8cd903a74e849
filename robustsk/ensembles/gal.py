"""Gradient alignment loss: members whose input gradients point in different directions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .._validation import check_length
from ..losses import gradient_alignment
from .base import BaseEnsemble

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..defenses._parameters import Network
    from ._parameters import EnsembleParameters


class EnsembleGAL(BaseEnsemble):
    """Diversity training: an ensemble with misaligned input gradients.

    Minimises ``sum_i CE(f_i(x), y) + lam * GAL(x)``, where ``GAL(x)`` is the
    logarithm of the sum, over all pairs of members, of
    ``exp(cos(grad L_i(x), grad L_j(x)))``. An example that raises the loss of
    one member should then be less likely to raise that of another. Predictions
    are those of the mean probability.

    Parameters
    ----------
    %(first_parameter)s
    lam : float, default=0.5
        Weight of the alignment; 0 trains the members independently.
    adversarial : bool, default=False
        Whether to add the members' losses on examples that are adversarial to
        the ensemble.
    %(shared_parameters)s

    %(shared_attributes)s

    See Also
    --------
    EnsembleTRS : Also keeps the gradients short.
    robustsk.losses.gradient_alignment : The alignment.

    Notes
    -----
    It makes transfer from one member to another harder, and that is all: an
    attack on the ensemble as a whole breaks it. Use it with `adversarial`,
    and never report attacks on single members or other networks alone.

    The alignment is learned through second derivatives, which a network of
    ReLUs has in part only: which units are on does not enter them, and units
    that are off for a sample learn nothing from it. The source uses leaky
    ReLUs; the networks of this package have plain ones. A step costs about
    twice that of natural training.

    The classification losses are summed, so that with ``lam=0`` every member is
    trained as it would be alone; with their mean instead, `lam` would have to
    be divided by the number of members. A single member has no pairs and is
    trained naturally.

    References
    ----------
    Kariyappa and Qureshi (2019), "Improving adversarial robustness of ensembles
    with diversity training", arXiv:1901.09981.

    Examples
    --------
    >>> from robustsk import EnsembleGAL
    >>> from robustsk.datasets import load_digits_images
    >>> X, y = load_digits_images(return_X_y=True, as_flat=True)
    >>> clf = EnsembleGAL(adversarial=True, max_epochs=8, adversary__eps=0.1, random_state=0)
    >>> clf = clf.fit(X[:1000], y[:1000])
    >>> bool(clf.score_adversarial(X[1000:1200], y[1000:1200]) > 0.4)
    True
    """

    def __init__(
        self,
        module: Network | Sequence[Network] | None = None,
        *,
        lam: float = 0.5,
        adversarial: bool = False,
        **common: Unpack[EnsembleParameters],
    ):
        super().__init__(module, **common)
        self.lam = lam
        self.adversarial = adversarial

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        """Check the parameters; called by skorch."""
        super().on_train_begin(net, X, y, **kwargs)
        check_length(self.lam, "lam")

    def craft(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the adversarial batch, against the ensemble; without one, the clean batch."""
        return super().craft(x, y) if self.adversarial else x

    def training_loss(self, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        """Return ``sum_i CE(f_i(x), y) + lam * GAL(x)``, shape (n,)."""
        if self.lam == 0 or len(self.module_.members) == 1:
            loss = self.member_losses(self.member_logits(x), y)
        else:
            losses, gradients = losses_and_gradients(self, x, y)
            loss = losses.sum(0) + self.lam * gradient_alignment(gradients)
        if self.adversarial:
            loss = loss + self.member_losses(self.member_logits(x_adv), y)
        return loss


def losses_and_gradients(clf, x, y, members=None):
    """Return the losses of the members and their input gradients, both differentiable.

    Parameters
    ----------
    clf : BaseEnsemble
        In training.
    x : torch.Tensor of shape (n, ...)
        Where to take the gradients. If it requires a gradient itself, they are differentiable in
        `x` as well.
    y : torch.Tensor of shape (n,)
    members : list of torch.nn.Module, optional
        As in :meth:`BaseEnsemble.member_logits`.

    Returns
    -------
    losses : torch.Tensor of shape (n_members, n)
    gradients : torch.Tensor of shape (n_members, n, ...)
    """
    if not x.requires_grad:
        x = x.detach().requires_grad_(True)
    with torch.enable_grad():  # also where only the value of the loss is wanted
        losses = [clf.classification_loss(z, y) for z in clf.member_logits(x, members)]
        gradients = [torch.autograd.grad(v.sum(), x, create_graph=True)[0] for v in losses]
    return torch.stack(losses), torch.stack(gradients)
