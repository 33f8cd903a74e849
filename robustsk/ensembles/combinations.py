"""Other ways to make one prediction of those of several networks."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ..losses import ensemble_logits
from ..victims.ensemble import Combination

#: Share of the votes that a class without any is taken to have, so that logarithms are finite.
_NO_VOTE = 1e-6


# neither has `get_members`, by which attacks take the mean of the members' probabilities for what
# is predicted


class LogitMeanEnsemble(Combination):
    """Networks whose logits are averaged.

    The prediction is the geometric mean of the members' probabilities, normalised. A member that
    is sure of itself counts for more than in the mean of the probabilities
    (:class:`MeanEnsemble`), and one with large logits may decide alone.

    Parameters
    ----------
    members : list of torch.nn.Module
        Each returns logits of shape (n, n_classes), or one logit of two classes; e.g.
        ``clf.members_`` of a fitted ensemble.

    References
    ----------
    Bui (2023), "Enhancing adversarial robustness: representation, ensemble, and distribution
    approaches", PhD thesis, Monash University, Sec. 2.1.

    Examples
    --------
    >>> from robustsk import EnsembleAT, PGD, score_adversarial
    >>> from robustsk.datasets import load_digits_images
    >>> from robustsk.ensembles import LogitMeanEnsemble
    >>> X, y = load_digits_images(return_X_y=True, as_flat=True)
    >>> clf = EnsembleAT(adversary__eps=0.1, max_epochs=5, random_state=0).fit(X[:1000], y[:1000])
    >>> combined = LogitMeanEnsemble(clf.members_)
    >>> attack = PGD(eps=0.1, clip=(0, 1), random_state=0)
    >>> bool(score_adversarial(combined, X[1000:1200], y[1000:1200], attack) > 0.3)
    True
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean logits, shape (n, n_classes)."""
        return torch.stack(self.member_logits(x)).mean(0)


class VoteEnsemble(Combination):
    """Networks that vote: the class that most of them predict is predicted.

    Of classes with as many votes the first one is taken, as in scikit-learn's
    ``VotingClassifier(voting="hard")``.

    Parameters
    ----------
    members : list of torch.nn.Module
        Each returns logits of shape (n, n_classes), or one logit of two classes; e.g.
        ``clf.members_`` of a fitted ensemble.

    Notes
    -----
    What is returned are logarithms of the shares of the votes. They are steps, and have no
    slope: the gradient is that of the logarithm of the mean probability, the surrogate that
    attacks follow here. Whether an example fools is decided by the votes. An attack that misses
    may do so because the surrogate misleads it: attack by questions, e.g.
    :class:`robustsk.attacks.SquareAttack`, as well.

    References
    ----------
    Bui (2023), "Enhancing adversarial robustness: representation, ensemble, and distribution
    approaches", PhD thesis, Monash University, Sec. 2.1.

    Examples
    --------
    >>> import torch
    >>> from robustsk.ensembles import VoteEnsemble
    >>> votes = [torch.nn.Linear(1, 3, bias=False) for _ in range(3)]
    >>> for member, row in zip(votes, [[9.0, 0, 0], [0, 1.0, 0], [0, 1.0, 0]], strict=True):
    ...     member.weight.data = torch.tensor(row)[:, None]
    >>> VoteEnsemble(votes)(torch.ones(1, 1)).softmax(1).round(decimals=3)
    tensor([[0.3330, 0.6670, 0.0000]], grad_fn=<RoundBackward1>)
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the logarithm of the shares of the votes, shape (n, n_classes)."""
        logits = self.member_logits(x)
        chosen = torch.stack([z.argmax(1) for z in logits])
        share = one_hot(chosen, logits[0].shape[1]).to(logits[0]).mean(0)
        votes = (share + _NO_VOTE).log()
        if not torch.is_grad_enabled():
            return votes
        surrogate = ensemble_logits(logits)
        return votes + (surrogate - surrogate.detach())
