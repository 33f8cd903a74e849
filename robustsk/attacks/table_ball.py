"""What may be reached from the rows of a table: a ball of move costs in a feature space."""

from __future__ import annotations

import numpy as np
import torch

from .._tensors import column, flat
from ..victims._frames import is_missing
from ..victims._limits import limits_of
from .threat import Ball, project_l1_box, rounded_towards

#: How far beyond a limit something may be by rounding, relative to the limit.
_SLACK = 1e-9
#: How far a number that costs nothing goes per unit of the radius: a range is what ends it.
_FREE = 1e30
#: How often a row is projected onto all relations, each time that a model is asked about it.
_SWEEPS = 8


class TableBall(Ball):
    """The rows that may be reached from each row of a batch.

    Attacks walk through numbers as if there were no grid (`project`); what they ask the model
    about, and what they return, is one of the rows of the space (`settle`).

    Parameters
    ----------
    x : torch.Tensor of shape (n, ...)
        Rows as numbers, see :meth:`.FeatureSpace.encode`.
    norm : {inf, 2.0, 1.0, 0.0}
    eps : float or array of the shape of a row
        Radius in units of the space, or one for each column.
    space : FeatureSpace
        Fitted.
    lower, upper : torch.Tensor or None
        Valid range that the attack has been given besides.
    budgets : array of shape (n,), optional
        Share of the radius that each row has.
    """

    is_table = True
    #: What each row has paid for its categories, if these are settled.
    _paid = None

    def __init__(self, x, norm, eps, space, lower=None, upper=None, budgets=None):
        self.x, self.norm, self.space = x, norm, space
        eps = torch.as_tensor(np.array(eps), dtype=x.dtype, device=x.device)
        self._lock(x, eps)
        self._measure(x, eps, budgets)
        self._bound(x, lower, upper)

    def _lock(self, x, eps):
        """Learn which rows, columns and entries stay as they are."""
        space = self.space
        table = flat(x)
        self._constants = _Constants.of(space, table)
        locked = is_missing(table)
        for number, known in self._constants.known.items():
            if known is not None:
                # a category that nobody knows stays what it is
                locked[:, number] = ~(table[:, number, None] == known).any(1)
        if eps.ndim:
            locked = locked | (flat(eps[None]) == 0)
        locked = locked | self._constants.is_locked
        self.invalid = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        if space.limits_.relations is not None and len(x):
            holds = space.limits_.relations.holds(_with_nan(table))
            self.invalid = torch.from_numpy(~holds).to(x.device)
        self._locked = locked | self.invalid[:, None]

    def _measure(self, x, eps, budgets):
        """Learn what a unit of each number costs in each direction."""
        self.radius = float(eps.max()) if eps.numel() else 0.0
        share = eps / self.radius if self.radius else torch.zeros_like(eps)
        c = self._constants
        share = flat(share[None]) if eps.ndim else share
        self._budgets = None
        if budgets is not None:
            self._budgets = torch.as_tensor(np.array(budgets)).to(x)
            share = share * self._budgets[:, None]
        # per row only where it must be: the shape of a sample broadcasts
        self.weight, self._falling = (
            (share * (c.unit / cost).clamp_max(_FREE)).reshape(-1, *x.shape[1:])
            for cost in (c.up, c.down)
        )
        self._is_uneven = not torch.equal(c.up, c.down)
        if self.weight.shape[0] == 1:
            self.weight, self._falling = self.weight[0], self._falling[0]
        frozen = (c.is_locked | ~c.is_number).reshape(x.shape[1:])
        zero = torch.zeros((), dtype=x.dtype, device=x.device)
        # nobody is to take steps where nothing moves
        self.weight = torch.where(frozen, zero, self.weight)
        self._falling = torch.where(frozen, zero, self._falling)

    def _bound(self, x, lower, upper):
        c, table = self._constants, flat(x)
        # finite, so that arithmetic goes on working
        low, high = (v.clamp(-_FREE, _FREE).expand_as(table) for v in (c.low, c.high))
        low, high = torch.where(c.own[0], table, low), torch.where(c.own[1], table, high)
        if lower is not None:
            low = torch.maximum(low, flat(torch.as_tensor(lower).to(x).expand(x.shape[1:])[None]))
            high = torch.minimum(high, flat(torch.as_tensor(upper).to(x).expand(x.shape[1:])[None]))
        low = torch.where(c.direction > 0, table, low)
        high = torch.where(c.direction < 0, table, high)
        # a row that is out of range is not pushed further out
        low, high = torch.minimum(low, table), torch.maximum(high, table)
        still = self._locked | ~c.is_number
        weight, falling = (w.expand(x.shape) for w in (self.weight, self._falling))
        low = torch.where(still | (flat(falling) == 0), table, low)
        high = torch.where(still | (flat(weight) == 0), table, high)
        self.low, self.high = low.reshape(x.shape), high.reshape(x.shape)
        self.lower, self.upper = self.low, self.high
        if self.norm == np.inf:
            rise, fall = self.radius * self.weight, self.radius * self._falling
            self.lower = torch.maximum(self.low, x - fall.expand(x.shape))
            self.upper = torch.minimum(self.high, x + rise.expand(x.shape))

    def select(self, index):
        """Return the ball around the samples in `index` only."""
        other = super().select(index)
        other._locked, other.invalid = self._locked[index], self.invalid[index]
        for name in ("_budgets", "_paid"):
            if getattr(self, name) is not None:
                setattr(other, name, getattr(self, name)[index])
        for name in ("weight", "_falling"):
            value = getattr(self, name)
            if value.ndim == self.x.ndim:
                setattr(other, name, value[index])
        return other

    def notes(self):
        """Return what whoever reads about the result must know of each row."""
        values = flat(self.x).cpu().double().numpy()
        unknown = torch.from_numpy(self.space.unknown(values).sum(axis=1))
        return {"invalid_clean": self.invalid, "unknown_category": unknown.to(self.x.device)}

    def with_categories(self, z):
        """Return the ball of the rows that have the categories of `z`: only numbers change.

        Parameters
        ----------
        z : torch.Tensor of shape (n, ...)
            Rows of the space.
        """
        other = self.select(slice(None))
        number = self._constants.is_number.reshape(self.x.shape[1:])
        for name in ("x", "low", "high", "lower", "upper"):
            setattr(other, name, torch.where(number, getattr(self, name), z))
        other._locked = self._locked | ~self._constants.is_number
        other._paid = self.switched(z)[0]
        return other

    # --- units -----------------------------------------------------------------------

    def to_unit(self, delta):
        """From the units of the columns to those of `eps`."""
        weight = self._weight_of(delta)
        return torch.where(weight > 0, delta / weight.clamp_min(1e-300), 0.0)

    def to_data(self, delta):
        """From the units of `eps` to those of the columns."""
        return delta * self._weight_of(delta)

    def _weight_of(self, delta):
        if not self._is_uneven:
            return self.weight
        return torch.where(delta < 0, self._falling, self.weight)

    def seen(self, delta):
        """Return moves, those of numbers on a grid of one step at least."""
        step = self.step.reshape(self.x.shape[1:])
        return torch.where(delta.abs() < step, delta.sign() * step, delta)

    def distance(self, z):
        """Return what the moves to `z` cost together, shape (n,); the ball ends at `radius`."""
        numbers = super().distance(z)
        spent, changed = self.switched(z)
        if changed.shape[1] == 0 or self.norm == 0:
            return numbers
        if self.norm == np.inf:
            return torch.maximum(numbers, spent)
        return (numbers**self.norm + spent) ** (1 / self.norm)

    # --- what is possible ------------------------------------------------------------

    @property
    def movable(self):
        """Where numbers may change, shape (n, n_features)."""
        return self._constants.is_number & ~self._locked

    @property
    def step(self):
        """Distance of the values that a number may take, 0 where it may take any, (n_features,)."""
        return self._constants.step

    @property
    def options(self):
        """The columns of each category, and what they may become together: a row for each value.

        Those of each category are one column, those of a group in one-hot code several.
        """
        c, device = self._constants, self.x.device
        return [
            *((torch.tensor([number], device=device), v[:, None]) for number, v in c.known.items()),
            *((places, self._vertices(places, empty)) for places, empty, _ in c.groups),
        ]

    def is_fixed(self, places):
        """Return where the category in some columns stays what it is, shape (n,)."""
        return self._locked[:, places].any(1)

    def switched(self, z):
        """Return what the categories of `z` cost that have changed, and which have.

        Returns
        -------
        spent : torch.Tensor of shape (n,)
            To the power of the norm.
        changed : torch.Tensor of bool of shape (n, n_options)
        """
        return self._switch(flat(z))[1:]

    def project(self, z):
        """Bring numbers into ball and range, off the grid; categories become possible ones."""
        return self._relaxed(flat(z))[0].reshape(z.shape)

    def asked(self, z, rows=None):
        """Return the row that `z` stands for, through which gradients flow as if it were `z`."""
        with torch.no_grad():
            settled = (self if rows is None else self.select(rows)).settle(z)
        return z + (settled - z.detach()) if z.requires_grad else settled

    def clamp(self, z):
        """Move numbers into the range, whatever the ball; all else stays as it was."""
        return torch.clamp(z, self.low, self.high)

    def settle(self, z):
        """Return the row of the space that each of `z` comes closest to.

        Parameters
        ----------
        z : torch.Tensor of shape (n, ...)

        Returns
        -------
        torch.Tensor of shape (n, ...)
            What lies in the space is returned as it is.
        """
        values = flat(z)
        result = self._settled(values)
        relations = self.space.limits_.relations
        if relations is not None and len(z):
            result = self._repaired(result, relations)
        return result.reshape(z.shape)

    def _relaxed(self, values):
        """Return rows off the grid, and what their categories cost, to the power of the norm."""
        result, spent, _ = self._switch(values)
        return self._numbers(values, result, spent), spent

    def _settled(self, values):
        return self._on_grid(*self._relaxed(values))

    def _repaired(self, result, relations):
        x = flat(self.x)
        clean, proposed = _with_nan(x), _with_nan(result)
        lost = np.isnan(clean)

        def project(Z):
            Z = torch.where(torch.from_numpy(lost).to(x.device), x, torch.from_numpy(Z).to(x))
            return _with_nan(self._settled(Z))

        free = self.movable.cpu().numpy()
        integer = self._constants.is_integer.cpu().numpy()
        repaired = relations.repair(proposed, clean, project, integer, free, _SWEEPS)
        return torch.where(torch.as_tensor(lost).to(x.device), x, torch.as_tensor(repaired).to(x))

    def _switch(self, values):
        """Choose categories: the closest possible ones, the cheapest changes first.

        Returns
        -------
        result : torch.Tensor of shape (n, d)
            The clean row with these categories.
        spent : torch.Tensor of shape (n,)
            What the changes cost, to the power of the norm.
        changed : torch.Tensor of bool of shape (n, n_features)
        """
        x, c = flat(self.x), self._constants
        options, costs, blocks = [], [], []
        for number, known in c.known.items():
            wanted, cost = self._nearest(number, known, values[:, number])
            options.append(wanted[:, None])
            costs.append(cost)
            blocks.append([number])
        for places, may_be_empty, cost in c.groups:
            wanted = self._vertex(places, may_be_empty, values[:, places])
            moved = (wanted != x[:, places]).any(1)
            options.append(wanted)
            costs.append(torch.where(moved, cost, torch.nan))
            blocks.append(places)
        spent = torch.zeros_like(x[:, 0]) if x.shape[1] else x.new_zeros(len(x))
        result = x.clone()
        if self._paid is not None:
            return result, self._paid, result.new_zeros((len(x), len(blocks)), dtype=torch.bool)
        if not blocks:
            return result, spent, torch.zeros((len(x), 0), dtype=torch.bool, device=x.device)
        cost = torch.stack(costs, 1)  # NaN where nothing changes
        moves = ~cost.isnan()
        if self._budgets is not None:  # in the units of which each row has as many
            cost = torch.where(cost == 0, cost, cost / self._budgets[:, None])
        price = self._powered(cost.nan_to_num(0.0, posinf=torch.inf))
        order = torch.where(moves, price, torch.inf).argsort(dim=1, stable=True)
        sorted_price, sorted_moves = price.gather(1, order), moves.gather(1, order)
        if self.norm == np.inf:
            total = torch.where(sorted_moves, sorted_price, 0.0).cummax(1).values
        else:
            total = torch.where(sorted_moves, sorted_price, 0.0).cumsum(1)
        kept = sorted_moves & (total <= self._budget() * (1 + _SLACK))
        if self.space.max_changes is not None:
            kept &= kept.cumsum(1) <= self.space.max_changes
        spent = torch.where(kept, total, 0.0).amax(1)
        changed = torch.zeros_like(moves).scatter(1, order, kept)
        for number, (block, wanted) in enumerate(zip(blocks, options, strict=True)):
            keep = changed[:, number, None]
            result[:, block] = torch.where(keep, wanted, result[:, block])
        return result, spent, changed

    def _nearest(self, number, known, values):
        """Return the category closest to each value, and its cost, NaN where nothing changes."""
        x = flat(self.x)[:, number]
        stays = torch.full_like(x, torch.nan)
        if known is None or len(known) == 0:
            return x.clone(), stays
        # of two that are equally close the present one
        place = (values[:, None] - known).abs().argmin(1)
        wanted = known[place]
        equal = (values - x).abs() <= (values - wanted).abs()
        stay = equal | self._locked[:, number]
        table = self._constants.switch[number]
        if table is None:
            cost = torch.zeros_like(x)
        else:
            mine = (x[:, None] == known).double().argmax(1)
            cost = table[mine, place]
        direction = self._constants.direction[number]
        stay = stay | (direction * (wanted - x) < 0)
        wanted = torch.where(stay, x, wanted)
        return wanted, torch.where(stay, stays, cost)

    def _vertex(self, places, may_be_empty, values):
        """Return the one-hot code closest to each block of values."""
        x = flat(self.x)[:, places]
        vertices = self._vertices(places, may_be_empty)
        distance = (values[:, None] - vertices).square().sum(2)
        wanted = vertices[distance.argmin(1)]
        stay = (values - x).square().sum(1) <= distance.amin(1)
        stay |= self._locked[:, places].any(1)
        return torch.where(stay[:, None], x, wanted)

    def _vertices(self, places, may_be_empty):
        vertices = torch.eye(len(places), dtype=self.x.dtype, device=self.x.device)
        if may_be_empty:
            vertices = torch.cat([vertices, vertices.new_zeros(1, len(places))])
        return vertices

    def _powered(self, cost):
        if self.norm == np.inf or self.norm == 1:
            return cost
        return cost.square() if self.norm == 2 else torch.zeros_like(cost)

    def _budget(self):
        """Return what may be spent, to the power of the norm."""
        if self.norm in (np.inf, 1.0):
            return self.radius
        return self.radius**2 if self.norm == 2 else np.inf

    def _share(self, spent):
        """Return the part of the radius that is left for numbers, shape (n,)."""
        if self.norm == np.inf or self.norm == 0:
            return torch.ones_like(spent)
        left = (1 - spent / max(self._budget(), 1e-300)).clamp_min(0.0)
        return left.sqrt() if self.norm == 2 else left

    def _numbers(self, values, result, spent):
        """Put the numbers of `values` into `result`, brought into ball and range."""
        x, number = flat(self.x), self._constants.is_number
        low, high = flat(self.lower), flat(self.upper)
        moved = torch.clamp(values, low, high)
        if self.norm != np.inf:
            delta = torch.where(number, moved - x, 0.0)
            unit = flat(self.to_unit(delta.reshape(self.x.shape)))
            inside = self._length(unit) <= self.radius * self._share(spent) * (1 + _SLACK)
            unit = self._projected(unit, low, high, self._share(spent))
            back = x + flat(self.to_data(unit.reshape(self.x.shape)))
            moved = torch.where(inside[:, None], moved, torch.clamp(back, low, high))
        return torch.where(self.movable, moved, result)

    def _projected(self, unit, low, high, share):
        radius = self.radius * share
        if self.norm == 0:
            count = int(self.radius)
            top = unit.abs().topk(min(count, unit.shape[1]), dim=1).indices
            return torch.zeros_like(unit).scatter(1, top, unit.gather(1, top))
        if self.norm == 2:
            size = torch.linalg.vector_norm(unit, dim=1).clamp_min(1e-300)
            return unit * column((radius * (1 - 1e-15) / size).clamp_max(1.0), unit)
        # the radius of each row is made one
        scale = radius.clamp_min(1e-300)[:, None]
        x = flat(self.x)
        least, most = (
            flat(self.to_unit((bound - x).reshape(self.x.shape))) / scale for bound in (low, high)
        )
        found = project_l1_box(unit / scale, 1.0, least, most) * scale
        return torch.where(radius[:, None] > 0, found, 0.0)

    def _length(self, unit):
        if self.norm == 0:
            return (unit != 0).sum(1).to(unit.dtype)
        return torch.linalg.vector_norm(unit, ord=self.norm, dim=1)

    def _on_grid(self, values, spent):
        """Round numbers to their grid and into their dtype, without leaving ball and range."""
        x, c = flat(self.x), self._constants
        low, high = flat(self.lower), flat(self.upper)
        gridded = c.step > 0
        if bool(gridded.any()):
            step = torch.where(gridded, c.step, 1.0)
            most = ((high - x) / step + _SLACK).floor()
            least = ((low - x) / step - _SLACK).ceil()
            count = ((values - x) / step).round()
            count = torch.clamp(count, least, most)
            # nothing counts where there is no limit, and infinity has no grid
            count = torch.where(gridded, count, 0.0)
            if self.norm not in (np.inf, 0):
                count = self._fewer(count, step, values, spent)
            on = torch.where(c.is_integer, (x + count * step).round(), x + count * step)
            on = torch.clamp(torch.where(count == 0, x, on), low, high)
            values = torch.where(gridded & self.movable, on, values)
        if c.single is not None:
            values = self._in_single(values)
        return values

    def _fewer(self, count, step, values, spent):
        """Take steps back, where rounding was generous, until the row is in the ball."""
        x, c = flat(self.x), self._constants
        limit = self.radius * self._share(spent) * (1 + _SLACK)
        gridded = (c.step > 0) & self.movable

        def units(at):
            moved = torch.where(c.is_number, at - x, 0.0)
            return flat(self.to_unit(moved.reshape(self.x.shape)))

        wanted = units(values).abs()
        while True:
            unit = units(torch.where(gridded, x + count * step, values))
            outside = self._length(unit) > limit
            outside &= (gridded & (count != 0)).any(1)
            if not bool(outside.any()):
                return count
            excess = torch.where(gridded & (count != 0), unit.abs() - wanted, -torch.inf)
            worst = excess.argmax(1, keepdim=True)
            back = torch.zeros_like(count).scatter(1, worst, 1.0) * outside[:, None]
            count = count - back * count.sign()

    def _in_single(self, values):
        """Round numbers of columns in single precision towards the clean ones."""
        x = flat(self.x)
        rounded = rounded_towards(x.float(), values, (values - x).abs())
        is_single = self._constants.single & ~self._locked
        return torch.where(is_single, rounded.to(values.dtype), values)


def _with_nan(table):
    """Return rows as an array in which what is missing is NaN."""
    values = table.detach().cpu().double().numpy()
    return np.where(is_missing(values), np.nan, values)


class _Constants:
    """What a feature space says of its columns, as tensors."""

    def __init__(self, space, table):
        kind = {"dtype": table.dtype, "device": table.device}
        limits = space.limits_

        def tensor(values, dtype=None):
            return torch.as_tensor(np.array(values)).to(table.device, dtype or table.dtype)

        self.is_number = tensor(limits.is_number, torch.bool)
        columns = space.columns_.columns
        # a column may have been one of fractions where the space was fitted
        is_integer = np.array([column.is_integer for column in columns]) & limits.is_number
        is_integer |= limits.kind == "integer"
        self.is_integer = tensor(is_integer, torch.bool)
        self.unit = tensor(limits.unit)
        self.up, self.down = tensor(limits.up), tensor(limits.down)
        least, most = np.transpose([limits_of(column) for column in columns])
        self.low = tensor(np.maximum(limits.low, least))
        self.high = tensor(np.minimum(limits.high, most))
        self.own = tensor(limits.own, torch.bool)
        self.direction = tensor(limits.direction)
        self.step = tensor(np.where(is_integer & (limits.step == 0), 1.0, limits.step))
        locked = limits.is_immutable | (limits.kind == "frozen")
        if space.max_changes == 0:
            locked = locked | ~limits.is_number
        self.is_locked = tensor(locked, torch.bool)
        self.known, self.switch = {}, {}
        for number, values in enumerate(limits.values):
            if values is not None:
                values, costs = _categories(space, number)
                self.known[number] = tensor(values)
                self.switch[number] = None if costs is None else tensor(costs)
        self.groups = [
            (tensor(places, torch.int64), may_be_empty, torch.tensor(cost, **kind))
            for (places, may_be_empty), cost in zip(limits.groups, limits.group_costs, strict=True)
        ]
        single = np.array([column.is_single for column in columns]) & limits.is_number
        self.single = tensor(single, torch.bool) if single.any() else None

    @classmethod
    def of(cls, space, table):
        """Return what is known of a space; made once for each dtype and device."""
        kept = vars(space).setdefault("_tensors", {})
        key = table.dtype, table.device, space.max_changes  # which is no matter of `fit`
        if key not in kept:
            kept[key] = cls(space, table)
        return kept[key]


def _categories(space, number):
    """Return the numbers of the categories of a column, and what changes between them cost."""
    known = space.columns_.columns[number]
    values, costs = space.limits_.values[number], space.limits_.switch[number]
    if not known.is_coded:
        return values, costs
    if space.missing == "allowed" and known.has_missing:
        values = np.append(values, known.n_values - 1.0)
        costs = None if costs is None else np.pad(costs, (0, 1), constant_values=np.max(costs))
    forbidden = [not known.admits(int(value)) for value in values]
    if any(forbidden):
        costs = np.zeros((len(values),) * 2) if costs is None else costs
        # for which the table has no room
        costs = np.where(forbidden, np.inf, costs)
    return values, costs
