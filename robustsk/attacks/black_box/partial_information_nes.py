"""NES for models that tell the probabilities of the most likely classes only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ._limited import BaseLimitedNES
from .base import BaseBlackBoxAttack

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._parameters import LimitedNESParameters


class PartialInformationNES(BaseLimitedNES):
    """NES for models that tell the probabilities of the most likely classes only.

    It starts where the model says what it is to say, at a sample of the class
    to be reached or in noise, and comes closer to the sample: each round
    estimates the gradient of the logarithm of that class's probability as
    :class:`NES` does, takes a step along it (along its sign, in the inf norm),
    and shrinks the ball around the sample within which the iterate has to lie.
    A step that makes the class leave the `top_k` is halved; if no step keeps
    it in, the ball stays as it was and shrinks more slowly from then on. With
    `eps` the search ends within that radius, where the class has to be the
    most likely one. By default `max_queries` is 10,000.

    Parameters
    ----------
    %(first_parameter)s
    top_k : int, default=1
        How many of the most likely classes are visible. From as many as there
        are classes on, all probabilities are.
    %(shared_parameters)s

    %(shared_attributes)s

    See Also
    --------
    LabelOnlyNES : Where labels have no probabilities.
    NES : Where all classes have one.

    Notes
    -----
    Without a target every wrong class is one to be reached, and the
    probability is that of the most likely of them.

    In the paper a question whose answer does not contain the class says
    nothing. Here it says that the class is no more likely than the last of
    the visible ones, and than what their probabilities leave to 1. Lengths are
    shares of the iterate's distance, and the share by which the ball shrinks
    also grows again, so that no unit of the data enters.

    References
    ----------
    Ilyas, Engstrom, Athalye and Lin (2018), "Black-box adversarial attacks with
    limited queries and information": the partial-information setting.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.svm import SVC
    >>> from robustsk.attacks import PartialInformationNES
    >>> X, y = load_iris(return_X_y=True)
    >>> svc = SVC().fit(X, y)
    >>> attack = PartialInformationNES(svc, eps=0.5, max_queries=200, random_state=0).fit(X)
    >>> X_adv, info = attack.generate(X[::5], y[::5], return_info=True)
    >>> bool(svc.score(X_adv, y[::5]) < svc.score(X[::5], y[::5]) - 0.2)
    True
    >>> bool(info["n_queries"].max() <= 200)
    True
    """

    access = "scores"

    _first_parameter_doc = BaseBlackBoxAttack._first_parameter_doc

    def __init__(
        self, estimator: Any = None, *, top_k: int = 1, **common: Unpack[LimitedNESParameters]
    ):
        super().__init__(estimator, **common)
        self.top_k = top_k

    def _score(self, logits, is_goal, top):
        known = logits.log_softmax(1).gather(1, top)
        seen = known.masked_fill(~is_goal, -torch.inf).amax(1)
        rest = (1 - known.exp().sum(1)).clamp_min(torch.finfo(known.dtype).tiny).log()
        return torch.where(is_goal.any(1), seen, torch.minimum(known[:, -1], rest))
