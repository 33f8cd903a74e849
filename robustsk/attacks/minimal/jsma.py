"""The Jacobian-based saliency map attack."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ..._validation import check_count, check_positive
from ._penalty import local_slope, ratio
from .base import BaseMinimalAttack

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._parameters import AttackParametersButNorm

#: Moves that each of three orders proposes as parts of the best pair.
_CANDIDATES = 32


class JSMA(BaseMinimalAttack):
    """Saliency map attack: changes a few features, one pair after the other.

    A move is salient if it raises the logit of the target and lowers the sum
    of the others; with `a` the rise and `b` the fall, to first order, the move
    (or pair of moves) with the largest ``a * b`` is made, until the model is
    fooled. Where no move does both, the one counts that gains most on the best
    other class. Features may go either way. `eps` is the largest number of
    features that change.

    Without a target it runs towards the class that is the most likely wrong
    one at each step, and any wrong class ends it.

    Parameters
    ----------
    %(first_parameter)s
    norm : {0, "l0"}, default=0
        Norm in which the perturbation is measured: the number of features that
        change.
    eps : int, default=None
        Largest number of features that change. None means no limit.
    theta : float, default=None
        How far a feature moves at a time, in the units of the data; it may move
        again. None means to the edge of the box, once. Where there is no edge
        it then means, each time, twice the 2-norm distance at which the model
        would be fooled if it were linear.
    pairs : bool, default=True
        Whether features move in pairs. There are more salient pairs than
        salient features: what one of the two does wrong the other makes good.
    n_steps : int, default=200
        Largest number of moves (of pairs of moves).
    %(shared_parameters)s

    %(shared_attributes)s

    See Also
    --------
    EAD : Few features as well, by descent on the 1-norm.

    Notes
    -----
    Of a pair none is beaten by a third move in both `a` and `b`. With more than
    32 moves only those are paired that are among the 32 best in `a`, in `b` or
    in the sum of both after scaling, which costs no more for large images than
    for small ones.

    References
    ----------
    Papernot, McDaniel, Jha, Fredrikson, Celik and Swami (2016), "The
    limitations of deep learning in adversarial settings", Eq. 8 and
    Algorithms 2 and 3 (there features only go one way).

    Wiyatno and Xu (2018), "Maximal Jacobian-based saliency map attack".

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.linear_model import LogisticRegression
    >>> from robustsk.attacks import JSMA
    >>> X, y = load_digits(return_X_y=True)
    >>> clf = LogisticRegression(max_iter=1000).fit(X / 16, y)
    >>> attack = JSMA(clf, clip=(0, 1))
    >>> X_adv, info = attack.generate(X[:50] / 16, y[:50], return_info=True)
    >>> float(clf.score(X_adv, y[:50]))
    0.0
    >>> bool(info["distance"].max() < 20)  # pixels
    True
    """

    supported_norms = (0.0,)

    def __init__(
        self,
        estimator: Any = None,
        *,
        norm: float | str = 0,
        theta: float | None = None,
        pairs: bool = True,
        n_steps: int = 200,
        **common: Unpack[AttackParametersButNorm],
    ):
        super().__init__(estimator, norm=norm, **common)
        self.theta = theta
        self.pairs = pairs
        self.n_steps = n_steps

    def _search(self, batch, closest):
        n_steps = check_count(self.n_steps, "n_steps")
        lacking, slope = local_slope(batch)
        if self.theta is None:
            reach = 2 * ratio(lacking, slope.norm(dim=1))
        else:
            reach = torch.full_like(lacking, check_positive(self.theta, "theta"))
        limit = int(batch.ball.radius)
        rows = torch.arange(len(batch.x), device=batch.x.device)
        z = batch.x
        changed = torch.zeros(z.shape, dtype=torch.bool, device=z.device).flatten(1)
        for step in range(n_steps + 1):
            logits, rise, fall, gain = self._gradients(batch, z)
            fooled = batch.fooled(logits)
            closest.update(z, fooled, rows)
            moves, allowed = self._moves(batch.ball, z, reach, changed)
            left = limit - changed.sum(1)
            new = ~changed.repeat(1, 2)
            allowed &= ~new | (left > 0)[:, None]
            twice = moves.unflatten(1, (2, -1))
            a, b, gain = ((g[:, None] * twice).flatten(1) for g in (rise, fall, gain))
            chosen = self._choose(a, b, gain, allowed, new, left)

            going = ~fooled & (chosen >= 0).any(1)
            if step == n_steps or not going.any():
                break
            if not going.all():
                batch, rows = batch.select(going), rows[going]
                z, reach, changed, moves, chosen = (
                    values[going] for values in (z, reach, changed, moves, chosen)
                )
            used = chosen.clamp_min(0)
            lengths = moves.gather(1, used) * (chosen >= 0)
            used = used % changed.shape[1]
            moved = torch.zeros_like(z.flatten(1)).scatter_add(1, used, lengths)
            z = batch.ball.clamp(z + moved.reshape(z.shape))
            changed |= (z != batch.x).flatten(1)

    def _gradients(self, batch, z):
        """Return logits and how features raise the target, lower the others and beat the best."""
        with torch.enable_grad():
            z = z.detach().requires_grad_(True)
            logits = batch.ask(z)
            goal = batch.target
            if goal is None:
                goal = logits.detach().scatter(1, batch.y[:, None], -torch.inf).argmax(1)
            rival = logits.detach().scatter(1, goal[:, None], -torch.inf).argmax(1)
            up = logits.gather(1, goal[:, None])
            best = logits.gather(1, rival[:, None])
            gradients = [
                torch.autograd.grad(part.sum(), z, retain_graph=True)[0].flatten(1)
                for part in (up, logits, best)
            ]
            batch.victim.calls.backward += 3 * len(z)
        up, total, best = (g.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0) for g in gradients)
        return logits.detach(), up, up - total, up - best

    def _moves(self, ball, z, reach, changed):
        """Return the moves up and down of each feature, (n, 2 * n_features), and which there are.

        A feature without an edge can always move on.
        """
        flat = z.flatten(1)
        step = reach[:, None].expand_as(flat)
        up, down = step, -step
        spent = torch.zeros_like(changed)
        if ball.low is not None:
            above, below = ball.high.flatten(1) - flat, ball.low.flatten(1) - flat
            if self.theta is None:
                spent = changed & (above - below).isfinite()
                up = torch.where(above.isfinite(), above, up)
                down = torch.where(below.isfinite(), below, down)
            else:
                up, down = torch.minimum(up, above), torch.maximum(down, below)
        moves = torch.cat([up, down], dim=1)
        if ball.weight is not None:
            spent = spent | (ball.weight.expand(z.shape).flatten(1) == 0)
        return moves, (moves != 0) & ~spent.repeat(1, 2)

    def _choose(self, a, b, gain, allowed, new, left):
        """Return the two moves to make, shape (n, 2); -1 is none."""
        none = -torch.ones((len(a), 1), dtype=torch.int64, device=a.device)
        single = torch.where(allowed & (a > 0) & (b > 0), a * b, -torch.inf)
        value, best = single.max(1, keepdim=True)
        spare = torch.where(allowed & (gain > 0), gain, -torch.inf)
        best = torch.where(value.isfinite(), best, spare.argmax(1, keepdim=True))
        best = torch.where(value.isfinite() | spare.isfinite().any(1, keepdim=True), best, none)
        chosen = torch.cat([best, none], dim=1)
        if not self.pairs:
            return chosen
        pair, exists = best_pair(a, b, allowed, new, left)
        return torch.where(exists[:, None], pair, chosen)


def best_pair(a, b, allowed, new, left):
    """Find the pair of moves with the largest ``(a_p + a_q) * (b_p + b_q)``, both sums positive.

    Parameters
    ----------
    a, b : torch.Tensor of shape (n, 2 * n_features)
        Effects of moving each feature one way, then of moving it the other way.
    allowed : torch.Tensor of bool of the same shape
    new : torch.Tensor of bool of the same shape
        Whether the feature counts as changed only from now on.
    left : torch.Tensor of shape (n,)
        How many more features may change.

    Returns
    -------
    pair : torch.Tensor of shape (n, 2)
    exists : torch.Tensor of bool of shape (n,)
    """
    total = a.shape[1]
    tiny = torch.finfo(a.dtype).tiny
    a = a / a.abs().amax(1, keepdim=True).clamp_min(tiny)
    b = b / b.abs().amax(1, keepdim=True).clamp_min(tiny)
    count = min(_CANDIDATES, total)
    orders = (a, b, a + b)[: 1 if count == total else 3]
    index = torch.cat(
        [torch.where(allowed, order, -torch.inf).topk(count, dim=1).indices for order in orders],
        dim=1,
    )
    a, b, allowed, new = (values.gather(1, index) for values in (a, b, allowed, new))
    feature = index % (total // 2)
    rise, fall = a[:, :, None] + a[:, None], b[:, :, None] + b[:, None]
    fits = allowed[:, :, None] & allowed[:, None] & (feature[:, :, None] != feature[:, None])
    fits &= new[:, :, None].long() + new[:, None].long() <= left[:, None, None]
    score = torch.where(fits & (rise > 0) & (fall > 0), rise * fall, -torch.inf).flatten(1)
    value, best = score.max(1)
    size = index.shape[1]
    pair = torch.stack([best // size, best % size], dim=1)
    return index.gather(1, pair), value.isfinite()
