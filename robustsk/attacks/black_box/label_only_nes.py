"""NES for models that tell labels only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ..._validation import check_count, check_positive
from ..noise import Stream
from ._limited import BaseLimitedNES

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._parameters import LimitedNESParameters


class LabelOnlyNES(BaseLimitedNES):
    """NES for models that tell labels only.

    As :class:`PartialInformationNES`, with another score in the place of the
    probability: how well the label of a point bears noise. That is the mean
    over `n_noise` points around it, drawn uniformly from a cube, of the rank
    score, which is `top_k` where the class to be reached comes first among the
    visible ones, one less for each class before it, and 0 where it is not
    visible; all divided by `top_k`. Of a single label it is the share of the
    points that have it. By default `max_queries` is 10,000.

    Parameters
    ----------
    %(first_parameter)s
    top_k : int, default=1
        How many labels are visible, in the order of their probabilities. With
        more than one the model must have scores, of which nothing but the
        order is used.
    n_noise : int, default=5
        Points per value of the score, each of which is a question; at most a
        twentieth of `max_queries`.
    mu : float, default=0.2
        Half the edge of the cube, as a share of the iterate's distance from the
        sample (in the 2-norm, of the entries of a point at that distance, were
        they all equal).
    %(shared_parameters)s

    %(shared_attributes)s

    See Also
    --------
    PartialInformationNES : Where the labels come with probabilities.
    HopSkipJump : Mostly closer for as many questions.

    Notes
    -----
    Without a target every wrong class is one to be reached, and the most
    likely of them counts.

    The paper takes 50 points for a value and 100 values for an estimate, and a
    million questions. Both sides of a direction are asked about with the same
    noise here, so that they differ by the step alone.

    References
    ----------
    Ilyas, Engstrom, Athalye and Lin (2018), "Black-box adversarial attacks with
    limited queries and information": the label-only setting.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.ensemble import RandomForestClassifier
    >>> from robustsk.attacks import LabelOnlyNES
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = RandomForestClassifier(10, random_state=0).fit(X, y)
    >>> attack = LabelOnlyNES(clf, eps=1.0, max_queries=200, random_state=0).fit(X)
    >>> X_adv, info = attack.generate(X[::5], y[::5], return_info=True)
    >>> bool(clf.score(X_adv, y[::5]) < clf.score(X[::5], y[::5]))
    True
    >>> bool(info["n_queries"].max() <= 200)
    True
    """

    def __init__(
        self,
        estimator: Any = None,
        *,
        top_k: int = 1,
        n_noise: int = 5,
        mu: float = 0.2,
        **common: Unpack[LimitedNESParameters],
    ):
        super().__init__(estimator, **common)
        self.top_k = top_k
        self.n_noise = n_noise
        self.mu = mu

    @property
    def access(self):
        """What is needed of the victim: "labels", and "scores" if several are to be in order."""
        return "labels" if self.top_k == 1 else "scores"

    def _n_answers(self):
        # as `n_draws`, so that a round leaves questions for others
        return min(check_count(self.n_noise, "n_noise"), max(1, self.max_queries // 20))

    def _points(self, pairs, ball, entry, noise, number):
        mu = check_positive(self.mu, "mu")
        # `directions` draws from the two streams before
        drawn = noise.uniform(
            Stream.START + 4 * number + 2, (self._n_answers(), *pairs.shape[1:2], *pairs.shape[3:])
        )
        around = mu * entry * (2 * drawn.movedim(0, 2) - 1)
        # the same on both sides of a direction
        return ball.clamp(pairs + ball.to_data(around)[:, None])

    def _score(self, logits, is_goal, top):
        top_k = is_goal.shape[1]
        rank = torch.arange(top_k, 0, -1, dtype=logits.dtype, device=logits.device)
        return (rank * is_goal).amax(1) / top_k
