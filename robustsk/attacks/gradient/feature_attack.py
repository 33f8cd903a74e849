"""The feature attack: move the features of a sample towards those of another one."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import ArrayLike
from torch.nn import functional as F

from ..._tensors import column
from ..._validation import check_count, check_length, check_start
from ...models.features import get_classifier
from ...victims.engine import get_members
from ..base import BaseAttack
from ..batch import AttackBatch
from ..noise import Stream
from ._descent import walk

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._parameters import AttackParameters


class FeatureAttack(BaseAttack):
    """Move the features of a sample towards those of a guide, a sample of another class.

    Ascends ``cos(f(x'), f(g))`` by projected steepest ascent, where `f` is what
    enters the classifier layer and `g` the guide; where a model has no linear
    layer to take for its classifier, `f` are the logits. The guides of a sample
    are those of another class whose features are most like its own, one after
    the other until one leads to an error.

    Parameters
    ----------
    %(first_parameter)s
    guides : array-like of shape (n_candidates, ...), default=None
        Samples from which the guides are taken, in the units of `X`; their
        classes are what the model predicts. None means the batch that is
        attacked, and its labels.
    n_guides : int, default=5
        How many guides each sample has; fewer where there are not as many of
        another class. In training it has one.
    n_steps : int, default=20
        Number of gradient steps towards each guide.
    step_size : float, default=None
        Length of a step, in the units of `eps`. None means ``2.5 * eps /
        n_steps``.
    random_start : {"none", "uniform", "gaussian"}, default="uniform"
        Start at the sample, uniformly in the ball, or at the sample plus
        normal noise of standard deviation `start_std`.
    start_std : float, default=0.001
        Standard deviation of the gaussian start, in the units of the data.
    %(shared_parameters)s

    %(shared_attributes)s

    Notes
    -----
    Without `guides`, what happens to a sample depends on the others in its
    batch, and a sample in a batch of one class comes back as it is, with a
    warning. A target cannot be chosen. The source draws 100 guides at random
    from the test set, and takes 100 steps of an eighth of `eps` towards each.

    References
    ----------
    Lin (2019), "Feature Attack", the code of the repository
    Line290/FeatureAttack; the column "FeaAtt." in Pang, Yang, Dong, Xu, Zhu and
    Su (2020), "Boosting adversarial training with hypersphere embedding".

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.neural_network import MLPClassifier
    >>> from robustsk.attacks import FeatureAttack
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = MLPClassifier((16,), max_iter=3000, random_state=0).fit(X, y)
    >>> X_adv = FeatureAttack(clf, eps=0.8, random_state=0).fit(X).generate(X, y)
    >>> bool(clf.score(X_adv, y) < clf.score(X, y) - 0.1)
    True
    """

    per_sample = False
    couples_batch = True
    #: There is no label to reach.
    targetable = False

    def __init__(
        self,
        estimator: Any = None,
        *,
        guides: ArrayLike | None = None,
        n_guides: int = 5,
        n_steps: int = 20,
        step_size: float | None = None,
        random_start: str = "uniform",
        start_std: float = 0.001,
        **common: Unpack[AttackParameters],
    ):
        super().__init__(estimator, **common)
        self.guides = guides
        self.n_guides = n_guides
        self.n_steps = n_steps
        self.step_size = step_size
        self.random_start = random_start
        self.start_std = start_std

    def _attack_batch(self, batch):
        if self.target is not None:
            raise ValueError(
                f"target={self.target!r}: FeatureAttack cannot aim at a label. Pass guides of that "
                "class alone, or use PGD(target=...)."
            )
        if self.compile:
            raise ValueError(
                f"compile={self.compile!r}: FeatureAttack reads features inside of the network, "
                "which a compiled one does not show: leave compile=False."
            )
        n_steps = check_count(self.n_steps, "n_steps")
        start, std = check_start(self.random_start), check_length(self.start_std, "start_std")
        size = 2.5 * batch.ball.radius / n_steps
        if self.step_size is not None:
            size = check_length(self.step_size, "step_size")
        with torch.no_grad():
            # before anything is hooked on to it, as what is run may change the first time
            batch.victim(batch.x[:1])
            logits, own = forward_with_directions(batch.victim, batch.x)
            known, classes = self._known(batch, own)
        rank = (own @ known.T).masked_fill(batch.y[:, None] == classes, -torch.inf)
        n_guides = 1 if batch.keep == "last" else check_count(self.n_guides, "n_guides")
        nearest = rank.topk(min(n_guides, len(known)))
        has_guide = nearest.values > -torch.inf
        lost = int((~has_guide[:, 0]).sum())
        if lost:
            warnings.warn(
                f"FeatureAttack has no guide of another class for {lost} of {len(batch.x)} samples "
                "of a batch, which stay as they are: pass guides=, or attack larger batches.",
                UserWarning,
                stacklevel=2,
            )
        result = batch.x.clone()
        done = torch.zeros(len(result), dtype=torch.bool, device=result.device)
        if batch.keep != "last":
            done = batch.fooled(logits)
        for number in range(nearest.indices.shape[1]):
            rows = (~done & has_guide[:, number]).nonzero()[:, 0]
            if len(rows) == 0:
                break
            part = _Guided.of(batch.select(rows), known[nearest.indices[rows, number]])
            z = part.ball.random_start(start, part.noise, Stream.START + number, std)
            z = walk(part, z, n_steps=n_steps, advance=_ascend(size)).z
            if batch.keep == "last":
                result[rows] = z
                break
            with torch.no_grad():
                done[rows] = part.fooled(part.ask(z))
            take = done[rows] if number else torch.ones_like(done[rows])
            result[rows] = torch.where(column(take, z), z, result[rows])
        return result

    def _known(self, batch, own):
        """Return the directions of the features of all that may be guides, and their classes."""
        if self.guides is None:
            return own, batch.y
        guides = batch.like(self.guides, "guides")
        answers = [forward_with_directions(batch.victim, part) for part in guides.split(1024)]
        logits, known = (torch.cat(parts) for parts in zip(*answers, strict=True))
        return known, logits.argmax(1)


def _ascend(size):
    return lambda batch, rows, z, gradient, step: batch.ball.ascend(z, gradient, size)


@dataclass
class _Guided(AttackBatch):
    """A batch whose objective is the cosine between its features and those of its guides."""

    guide: torch.Tensor | None = None

    @classmethod
    def of(cls, batch, guide):
        return cls(**{f.name: getattr(batch, f.name) for f in fields(batch)}, guide=guide)

    def select(self, index):
        return replace(super().select(index), guide=self.guide[index])

    def value_and_gradient(self, z):
        with torch.enable_grad():
            z = z.detach().requires_grad_(True)
            logits, direction = forward_with_directions(self.victim, z)
            value = (direction * self.guide).sum(1)
            return self.with_gradient(z, logits, value)


def forward_with_directions(victim, x):
    """Return the logits of a batch and its features, of unit length.

    Parameters
    ----------
    victim : Victim
    x : torch.Tensor of shape (n, ...)

    Returns
    -------
    logits : torch.Tensor of shape (n, n_classes)
    direction : torch.Tensor of shape (n, n_features)
        Of an ensemble the directions of the features of its members, side by side, so that the
        product of two of them is the mean of the cosines.
    """
    caught: dict[int, torch.Tensor] = {}

    def catch(number):
        def keep(_, args, kwargs):
            caught[number] = args[0] if args else next(iter(kwargs.values()))

        return keep

    members = get_members(victim.module)
    try:
        layers = [get_classifier(member)[1] for member in members]
    except ValueError:  # no linear layer
        layers = []
    handles = [
        layer.register_forward_pre_hook(catch(number), with_kwargs=True)
        for number, layer in enumerate(layers)
    ]
    try:
        logits = victim(x)
    finally:
        for handle in handles:
            handle.remove()
    if len(caught) < len(layers):
        raise RuntimeError(
            f"The forward pass of {victim.name} did not call its last linear layer, so that no "
            "features can be read: give the network a method get_classifier() that returns the "
            "layer its forward calls last, and attack it before it is compiled."
        )
    # a single sample may have been asked about twice
    found = [f[: len(x)].flatten(1).to(x.dtype) for f in caught.values()] or [logits.to(x.dtype)]
    directions = torch.cat([F.normalize(f, eps=1e-12) for f in found], 1)
    return logits, directions / len(found) ** 0.5
