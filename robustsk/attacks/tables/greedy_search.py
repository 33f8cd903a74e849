"""Greedy search over the columns of a table."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch

from ..._validation import check_count
from .._moves import Moves, best_of_rows, random_rows, within
from ..black_box._search import MARGIN, ask_margins, parts, rounding
from ..black_box.base import BaseBlackBoxAttack
from ..noise import Stream
from ..queries import Queries

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._parameters import AttackParameters

#: Columns, and moves of each, that are tried in pairs.
_PAIRED, _VALUES = 5, 2
#: Share of the questions left that single moves may take; the rest is for moves together.
_SHARE = 0.6
#: Costs of moves that are less than this are no less, or what is free would be all that is tried.
_CHEAPEST = 1e-9
#: Share of the samples from which on it is worth a warning that nothing changes the score.
_STILL = 0.5


class GreedySearch(BaseBlackBoxAttack):
    """Greedy search over single columns, numbers and categories alike, without gradients.

    Each step asks about what every column may become while the others stay as they are: numbers at
    the ends of what is left of the radius and in between, integers one by one if they are few,
    categories all. Of these, and of the best moves of several columns together, it takes the one
    after which the margin of the model is lowest. Where none lowers it, pairs of columns are tried,
    and then the search starts over from a random row.

    This is the first attack to try on trees and on tables of mixed columns, see
    :class:`.FeatureSpace`. It asks about all rows at once, so that a step costs one call of
    `predict_proba`.

    Parameters
    ----------
    %(first_parameter)s
    n_steps : int, default=12
        Largest number of steps of a run.
    n_restarts : int, default=3
        Number of runs, all but the first from random rows.
    n_candidates : int, default=9
        Values between the ends that are tried of each number. Integers of at most 21 values are
        tried one by one.
    n_columns : int, default=50
        Largest number of columns that are tried in a step, drawn at random where there are more;
        `max_queries` is 5000 by default.
    %(shared_parameters)s

    %(shared_attributes)s

    See Also
    --------
    SquareAttack : Changes many features at a time; for images.
    LocalSearch : Jumps of single features.

    Notes
    -----
    ``info["n_changes"]`` is the number of questions that changed the score.

    Where the space has `costs`, it is not the lowest margin that is taken but the largest gain per
    cost, and of what fools the model the cheapest.

    References
    ----------
    Kireev, Kulynych and Troncoso (2023), "Adversarial robustness for tabular data through cost and
    utility awareness", whose greedy search ranks by gain per cost. Pairs, moves together and
    restarts are additions.

    Examples
    --------
    >>> import pandas as pd
    >>> from sklearn.compose import make_column_transformer
    >>> from sklearn.ensemble import RandomForestClassifier
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import OneHotEncoder
    >>> from robustsk import FeatureSpace
    >>> from robustsk.attacks import GreedySearch
    >>> X = pd.DataFrame({"income": [1.0, 2.0, 3.0, 4.0] * 5, "home": ["own", "rent"] * 10})
    >>> y = [0, 0, 1, 1] * 5
    >>> encoder = make_column_transformer((OneHotEncoder(), ["home"]), remainder="passthrough")
    >>> clf = make_pipeline(encoder, RandomForestClassifier(10, random_state=0)).fit(X, y)
    >>> space = FeatureSpace(max_changes=1)
    >>> attack = GreedySearch(clf, eps=1.0, space=space, random_state=0).fit(X)
    >>> clf.score(X, y), clf.score(attack.generate(X, y), y) < 0.5
    (1.0, True)
    """

    def __init__(
        self,
        estimator: Any = None,
        *,
        max_queries: int = 5000,
        n_steps: int = 12,
        n_restarts: int = 3,
        n_candidates: int = 9,
        n_columns: int = 50,
        **common: Unpack[AttackParameters],
    ):
        super().__init__(estimator, max_queries=max_queries, **common)
        self.n_steps = n_steps
        self.n_restarts = n_restarts
        self.n_candidates = n_candidates
        self.n_columns = n_columns

    def _resolve_objective(self, objective):
        return MARGIN

    def run(self, prepared, keep="worst"):
        """Attack validated arrays; see :meth:`BaseAttack.run`.

        Parameters
        ----------
        prepared, keep
            As there.
        """
        found, info = super().run(prepared, keep)
        # the first question is about the sample itself
        asked = info["n_queries"] > 1
        still = asked & (info["n_changes"] == 0)
        if still.sum() > _STILL * asked.sum():
            warnings.warn(
                f"No question changed the score of {still.sum()} of {asked.sum()} samples: the "
                "model is constant there, or changes only between the values that were tried. "
                "Raise eps or n_candidates to see more of it.",
                UserWarning,
                stacklevel=3,
            )
        return found, info

    def _attack_batch(self, batch):
        for name in ("n_steps", "n_restarts", "n_candidates", "n_columns"):
            check_count(getattr(self, name), name)
        search = _Search(batch, Queries(batch, self.max_queries))
        if batch.ball.radius == 0 and not batch.ball.is_table:
            return search.best
        n_points = self.n_columns * (self.n_candidates + 2)
        for run in range(self.n_restarts):
            for rows in parts(batch.x, n_points):
                rows = search.open(rows)
                if len(rows):
                    self._run(search, rows, run)
        return search.best

    def _run(self, search, rows, run):
        """Go down from the samples, or from random rows, until nothing is better."""
        batch, stream = search.batch, Stream.RESTART * run
        z, value = batch.x[rows], search.clean[rows]
        if run:
            part = batch.select(rows)
            z = random_rows(part.ball, part.noise, stream)
            value = search.ask(z, rows)
            search.keep(z, value, rows)
        for number in range(self.n_steps):
            going = (value != torch.inf) & (search.queries.left[rows] > 0)
            rows, z, value = rows[going], z[going], value[going]
            if len(rows) == 0:
                return
            step = _Step(search, rows, z, value)
            self._try(step, stream + Stream.STEP + number)
            moved = step.is_better
            rows, z, value = rows[moved], step.z[moved], step.value[moved]
            search.keep(z, value, rows)

    def _try(self, step, stream):
        ball = step.batch.ball
        n_units = step.z[:1].numel() + (len(ball.options) if ball.is_table else 0)
        order = step.batch.noise.uniform(stream, (n_units,))
        limit = (_SHARE * step.left).ceil()
        moves = Moves(ball, step.z, order, self.n_columns, self.n_candidates, limit)
        table = moves.spread(step.ask(moves.points, moves.rows), -torch.inf)
        most = ball.space.max_changes if ball.is_table else None
        step.ask_several(moves, *_together(moves, table, step, most))
        step.ask_several(moves, *_pairs(moves, table, step, most))


class _Search:
    """What is known about the samples of a batch.

    Attributes
    ----------
    best : torch.Tensor of shape (n, ...)
        The row of the highest score so far.
    value : torch.Tensor of shape (n,)
        Its score: the margin, infinite where it fools the victim.
    clean : torch.Tensor of shape (n,)
        The score of the sample itself.
    """

    def __init__(self, batch, queries):
        self.batch, self.queries = batch, queries
        self._n_changes = batch.info["n_changes"] = torch.zeros_like(queries.count)
        self.best, rows = batch.x.clone(), torch.arange(len(batch.x), device=batch.x.device)
        self.clean = _scores(queries, batch.x, rows)
        self.value = self.clean.clone()

    def open(self, rows):
        """Return those of the samples that may and should ask on."""
        return rows[(self.value[rows] != torch.inf) & (self.queries.left[rows] > 0)]

    def ask(self, points, rows):
        """Return the scores of points about some of the samples."""
        score = _scores(self.queries, points, rows)
        clean = self.clean[rows]
        changed = rows[(score - clean).abs() > rounding(clean)]
        self._n_changes += torch.bincount(changed, minlength=len(self.clean))
        return score

    def keep(self, z, value, rows):
        """Remember what is better."""
        better = value > self.value[rows]
        self.best[rows[better]], self.value[rows[better]] = z[better], value[better]


def _scores(queries, points, rows):
    """Return margins, infinite where a point fools the victim."""
    score = ask_margins(queries, points, rows)[1]
    return score.masked_fill(score.isnan(), -torch.inf)


class _Step:
    """The rows of a step, and the best to which a move leads.

    Attributes
    ----------
    batch : AttackBatch
        Of these rows.
    before, z : torch.Tensor of shape (n, ...)
        The rows, and the best found.
    value : torch.Tensor of shape (n,)
        Score of the best.
    """

    def __init__(self, search, rows, z, value):
        self._search, self._rows = search, rows
        self.batch = search.batch.select(rows)
        self.z, self.value, self._before = z.clone(), value.clone(), value
        self._from = None
        ball = self.batch.ball
        if ball.is_table and ball.space.costs:
            self._from = ball.distance(z)
            self._rank = torch.zeros_like(value)
        else:
            self._rank = value.clone()

    @property
    def left(self):
        """How many questions each row may still ask."""
        return self._search.queries.left[self._rows]

    @property
    def is_fooled(self):
        """Where nothing more has to be found."""
        return self.value == torch.inf

    @property
    def is_better(self):
        """Where something has been found."""
        return self.improves(self.value)

    def improves(self, score, rows=slice(None)):
        """Return where a score is higher than that from which the step starts."""
        before = self._before[rows]
        return score > before + rounding(before)

    def ask(self, points, rows):
        """Ask about points and keep the best; return the scores."""
        if len(rows) == 0:
            return points.new_zeros(0)
        score = self._search.ask(points, self._rows[rows])
        rank = self._ranked(points, score, rows)
        order = best_of_rows(rank, rows, self._rank)
        here = rows[order]
        self.z[here], self.value[here], self._rank[here] = points[order], score[order], rank[order]
        return score

    def _ranked(self, points, score, rows):
        if self._from is None:
            return score
        cost = self.batch.ball.select(rows).distance(points) - self._from[rows]
        # what fools comes first, and the cheapest of that
        gain = score.clamp_max(torch.finfo(score.dtype).max ** 0.5) - self._before[rows]
        gain = gain / cost.clamp_min(_CHEAPEST)
        return torch.where(self.improves(score, rows), gain, -torch.inf)

    def ask_several(self, moves, rows, numbers):
        """Ask about several moves together, as long as questions are left."""
        fits = within(rows, self.left)
        rows, numbers = rows[fits], numbers[fits]
        if len(rows):
            self.ask(moves.combined(rows, numbers), rows)


def _together(moves, table, step, most):
    """Return the two best columns of each row, the four best, and so on to all that are better."""
    score, kind = table.max(2)
    score, order = score.sort(dim=1, descending=True, stable=True)
    numbers = moves.numbers.gather(2, kind[:, :, None])[:, :, 0].gather(1, order)
    taken = step.improves(score.T).T & ~step.is_fooled[:, None]
    switches = taken & moves.is_switch.gather(1, order)
    if most is not None:
        taken &= ~switches | (switches.cumsum(1) <= most)
    count = taken.cumsum(1)
    found, size = [], 2
    while size < 2 * count.shape[1]:
        rows = (count[:, -1] > size // 2).nonzero()[:, 0]
        found.append((rows, torch.where(taken & (count <= size), numbers, -1)[rows]))
        size *= 2
    if not found:
        return numbers.new_zeros(0), numbers[:0]
    return tuple(torch.cat(part) for part in zip(*found, strict=True))


def _pairs(moves, table, step, most):
    """Return pairs of moves in the best columns of each row in which no move is better."""
    score, kind = table.sort(dim=2, descending=True, stable=True)
    score, kind = score[:, :, :_VALUES], kind[:, :, :_VALUES]
    top = score[:, :, 0].argsort(dim=1, descending=True, stable=True)[:, :_PAIRED]
    numbers = moves.numbers.gather(2, kind).gather(1, top[:, :, None].expand(-1, -1, kind.shape[2]))
    is_switch = moves.is_switch.gather(1, top)
    one, other = torch.triu_indices(top.shape[1], top.shape[1], 1, device=top.device)
    pairs = torch.stack(
        [
            numbers[:, one][:, :, :, None].expand(-1, -1, -1, numbers.shape[2]),
            numbers[:, other][:, :, None].expand(-1, -1, numbers.shape[2], -1),
        ],
        -1,
    )
    fits = (pairs >= 0).all(-1) & ~step.is_better[:, None, None, None]
    if most is not None and most < 2:
        fits &= ~(is_switch[:, one] & is_switch[:, other])[:, :, None, None]
    return fits.nonzero()[:, 0], pairs[fits]
