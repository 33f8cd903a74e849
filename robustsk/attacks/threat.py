"""What an adversary may do: norm balls, boxes, frozen features.

A :class:`Ball` is the set of points an attack may reach from each sample of
one batch. It knows how to project onto itself, which direction of unit length
ascends a gradient fastest, and how to draw a random start; every attack works
through it and is thereby valid for every norm it supports.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .._tensors import column, flat, length, positive
from .._validation import in_order
from .noise import Stream

#: Perturbation sizes that are customary on images in [0, 1], per norm. For the
#: 0-norm (the number of features that change) there is no custom.
DEFAULT_EPS = {np.inf: 8 / 255, 2.0: 0.5, 1.0: 12.0, 0.0: 10.0}

#: Radius of a ball without a limit; finite, so that arithmetic goes on working.
UNLIMITED = 1e10

#: Fraction of the features that one l1 step moves. Moving only the steepest
#: one is the exact answer but needs very many steps (Tramèr and Boneh, 2019,
#: "Adversarial training and robustness for multiple perturbations", Sec. 4.1).
L1_FRACTION = 0.01
#: How many times as many may take part where the valid range leaves little room.
_MORE = 10

_NAMES = {
    "inf": np.inf, "linf": np.inf, "l_inf": np.inf, "l2": 2.0, "2": 2.0, "l1": 1.0, "1": 1.0,
    "l0": 0.0, "0": 0.0,
}  # fmt: skip


def check_norm(norm: Any, supported: tuple[float, ...] = (np.inf, 2.0, 1.0)) -> float:
    """Turn any spelling of a norm into ``inf``, ``2.0``, ``1.0`` or ``0.0``.

    Parameters
    ----------
    norm : {inf, 2, 1, 0, "linf", "l2", "l1", "l0"}
        The norm as a number or a name.
    supported : tuple of float
        The norms that the caller can deal with.

    Returns
    -------
    float

    Examples
    --------
    >>> from robustsk.attacks.threat import check_norm
    >>> check_norm("linf"), check_norm(2)
    (inf, 2.0)
    """
    value = None
    if isinstance(norm, str):
        value = _NAMES.get(norm.strip().lower())
    elif isinstance(norm, (int, float, np.number)) and not isinstance(norm, bool):
        value = float(norm)
    if value is None or value not in supported:
        names = ", ".join("inf" if np.isinf(s) else f"{s:g}" for s in supported)
        raise ValueError(f"norm={norm!r} is not supported; use one of {names}.")
    return value


def check_eps(
    eps: Any, norm: float, sample_shape: tuple[int, ...], unlimited: bool = False
) -> float | np.ndarray:
    """Validate a perturbation size.

    Parameters
    ----------
    eps : float, array-like or None
        Radius of the ball, or one radius per feature. None means the default
        of the norm.
    norm : float
        As returned by :func:`check_norm`.
    sample_shape : tuple of int
        Shape of one sample, to which an array must broadcast.
    unlimited : bool, default=False
        Whether `eps` may be None or infinite and then means no limit.

    Returns
    -------
    float or ndarray of shape `sample_shape`
    """
    eps = in_order(eps, None, "eps")
    if unlimited:
        eps = UNLIMITED if eps is None else eps
        if isinstance(eps, (int, float)) and eps > UNLIMITED:
            return UNLIMITED
    if eps is None:
        return DEFAULT_EPS[norm]
    try:
        values = np.asarray(eps, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"eps must be a number or an array of numbers, got {eps!r}.") from error
    if not np.all(np.isfinite(values)) or np.any(values < 0):
        raise ValueError(
            f"eps must be finite and not negative, got {eps!r}. It is the largest perturbation "
            "allowed, in the units of the data."
        )
    if values.ndim == 0:
        return float(values)
    try:
        return np.broadcast_to(values, sample_shape)
    except ValueError as error:
        raise ValueError(
            f"eps has shape {values.shape}, but one sample has shape {tuple(sample_shape)}: "
            "give one number, or an array that broadcasts to one sample."
        ) from error


def check_mask(mask: Any, sample_shape: tuple[int, ...]) -> np.ndarray:
    """Validate where features may change.

    Parameters
    ----------
    mask : array-like of bool
    sample_shape : tuple of int
        Shape of one sample, to which it must broadcast.

    Returns
    -------
    ndarray of bool of shape `sample_shape`
    """
    mask = np.asarray(in_order(mask, None, "mask"))
    if mask.dtype != bool and not np.isin(mask, (0, 1)).all():
        raise ValueError("mask must be boolean: True where a feature may change.")
    try:
        return np.broadcast_to(mask.astype(bool), sample_shape)
    except ValueError as error:
        raise ValueError(
            f"mask has shape {mask.shape}, but one sample has shape {sample_shape}."
        ) from error


def check_clip(
    clip: Any, bounds: tuple[np.ndarray, np.ndarray] | None = None
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Validate a valid range.

    Parameters
    ----------
    clip : "auto", None or (low, high)
    bounds : tuple of (low, high), optional
        What "auto" stands for; None means no range.

    Returns
    -------
    low, high : ndarray or None
    """
    if clip is None:
        return None, None
    if isinstance(clip, str):
        if clip != "auto":
            raise ValueError(f"clip must be 'auto', None or (low, high), got {clip!r}.")
        return (None, None) if bounds is None else bounds
    if isinstance(clip, (list, tuple)):
        clip = [in_order(bound, None, "clip") for bound in clip]
    try:
        low, high = (np.asarray(v, dtype=np.float64) for v in clip)
    except (TypeError, ValueError) as error:
        raise ValueError(f"clip must be 'auto', None or (low, high), got {clip!r}.") from error
    if not np.all(low <= high):
        raise ValueError(f"clip=(low, high) has low > high, or NaN: {clip!r}.")
    return low, high


def project_l1(delta: torch.Tensor, radius: float) -> torch.Tensor:
    """Euclidean projection of each row onto the l1 ball.

    Parameters
    ----------
    delta : torch.Tensor of shape (n, d)
    radius : float

    Returns
    -------
    torch.Tensor of shape (n, d)

    References
    ----------
    Duchi, Shalev-Shwartz, Singer and Chandra (2008), "Efficient projections
    onto the l1-ball for learning in high dimensions", Figure 1.

    Examples
    --------
    >>> import torch
    >>> from robustsk.attacks.threat import project_l1
    >>> project_l1(torch.tensor([[3.0, 1.0, 0.0]]), 1.0)
    tensor([[1., 0., 0.]])
    """
    magnitude = delta.abs()
    ordered = magnitude.sort(dim=1, descending=True).values
    excess = ordered.cumsum(1) - radius
    count = torch.arange(1, delta.shape[1] + 1, device=delta.device, dtype=delta.dtype)
    support = (ordered * count > excess).sum(1, keepdim=True).clamp_min(1)
    threshold = excess.gather(1, support - 1) / support
    shrunk = delta.sign() * (magnitude - threshold).clamp_min(0)
    inside = magnitude.sum(1, keepdim=True) <= radius
    return torch.where(inside, delta, shrunk)


def project_l1_box(
    delta: torch.Tensor, radius: float, low: torch.Tensor, high: torch.Tensor
) -> torch.Tensor:
    """Euclidean projection of each row onto the intersection of l1 ball and box.

    Every magnitude is reduced by one number, the same for the whole row, then
    cut at the box; the number is found by Newton's method on the piecewise
    linear l1 norm of the result, with bisection where a step would leave the
    bracket. That takes a handful of passes, where sorting the features costs
    as much as a small network.

    Parameters
    ----------
    delta : torch.Tensor of shape (n, d)
    radius : float
    low, high : torch.Tensor of shape (n, d)
        Box around the origin: ``low <= 0 <= high``.

    Returns
    -------
    torch.Tensor of shape (n, d)

    References
    ----------
    Croce and Hein (2021), "Mind the box: l1-APGD for sparse adversarial
    attacks on image classifiers", Proposition 2.1.

    Examples
    --------
    >>> import torch
    >>> from robustsk.attacks.threat import project_l1_box
    >>> low, high = torch.tensor([[0.0, -1.0, 0.0]]), torch.tensor([[0.4, 0.0, 1.0]])
    >>> project_l1_box(torch.tensor([[3.0, -0.5, 0.5]]), 1.0, low, high)
    tensor([[ 0.4000, -0.3000,  0.3000]])
    """
    rounding = 8 * torch.finfo(delta.dtype).eps
    sign, size = delta.sign(), delta.abs()
    room = torch.where(sign > 0, high, -low)  # of which one may be infinite
    cut = torch.zeros_like(size[:, :1])
    least, most = cut, size.amax(1, keepdim=True)
    moved = torch.minimum(size, room)
    excess = moved.sum(1, keepdim=True) - radius
    done = excess <= 0
    for _ in range(100):
        done = done | (excess.abs() <= rounding * radius)
        if done.all():
            break
        step = excess / (moved == size - cut).sum(1, keepdim=True)
        done = done | (step.abs() <= rounding * cut)
        least, most = torch.where(excess > 0, cut, least), torch.where(excess > 0, most, cut)
        ahead = cut + step
        ahead = torch.where((ahead > least) & (ahead < most), ahead, (least + most) / 2)
        cut = torch.where(done, cut, ahead)
        moved = torch.minimum((size - cut).clamp_min(0), room)
        excess = moved.sum(1, keepdim=True) - radius
    # what rounding has left outside of the ball
    inward = radius / (excess + radius).clamp_min(max(radius, torch.finfo(delta.dtype).tiny))
    return sign * (moved * inward)


def _largest(delta, count):
    """Keep the `count` largest entries of each row, zero the others."""
    vectors = flat(delta)
    if count >= vectors.shape[1]:
        return delta
    top = vectors.abs().topk(count, dim=1).indices
    return torch.zeros_like(vectors).scatter(1, top, vectors.gather(1, top)).reshape(delta.shape)


class Ball:
    """The points reachable from each sample of a batch.

    Parameters
    ----------
    x : torch.Tensor of shape (n, ...)
        Clean samples.
    norm : {inf, 2.0, 1.0, 0.0}
        Norm in which the perturbation is measured.
    eps : float or torch.Tensor
        Radius. A tensor of the shape of a sample holds one radius per feature
        (one of shape () is a radius that stays on its device); with `norm` 2 or 1 the
        ball is then the ellipsoid ``||delta / eps|| <= 1``, with 0 the largest
        one counts. A feature whose radius is zero never changes.
    lower, upper : torch.Tensor or None
        Valid range, broadcastable to `x`. A sample that starts outside of it
        is never pushed further out.

    Attributes
    ----------
    radius : float or torch.Tensor of shape ()
        The largest radius of a feature.
    weight : torch.Tensor or None
        Radius of each feature as a share of `radius`; None where all are equal.
    low, high : torch.Tensor of shape (n, ...) or None
        The box.
    lower, upper : torch.Tensor of shape (n, ...) or None
        The box, cut with the ball if the norm is inf.
    """

    #: Whether it is about rows of a table, which may not be all that lies in it.
    is_table = False

    def __init__(self, x, norm, eps, lower=None, upper=None):
        self.x = x
        self.norm = norm
        if isinstance(eps, torch.Tensor) and not eps.ndim:
            self.radius, self.weight = eps, None
        elif isinstance(eps, torch.Tensor):
            self.radius = float(eps.max()) if eps.numel() else 0.0
            self.weight = (eps / self.radius if self.radius else torch.zeros_like(eps)).to(x)
        else:
            self.radius = float(eps)
            self.weight = None
        if lower is not None:
            lower = torch.minimum(lower.to(x), x)
            upper = torch.maximum(upper.to(x), x)
        self.low, self.high = lower, upper
        if norm == np.inf:
            low, high = x - self.eps, x + self.eps
            lower = low if lower is None else torch.maximum(low, lower)
            upper = high if upper is None else torch.minimum(high, upper)
        self.lower, self.upper = lower, upper

    @property
    def eps(self):
        """The radius: one number, or one per feature where they differ."""
        return self.radius if self.weight is None else self.radius * self.weight

    @property
    def moves(self):
        """Where anything may change, of the shape of a sample; None if that is everywhere."""
        if self.weight is None:
            return None
        moves = self.weight > 0
        # rows of a table may have a radius each
        return moves.any(0) if moves.ndim == self.x.ndim else moves

    def select(self, index):
        """Return the ball around the samples in `index` only."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.x = self.x[index]
        for name in ("low", "high", "lower", "upper"):
            bound = getattr(self, name)
            setattr(other, name, None if bound is None else bound[index])
        return other

    def asked(self, z, rows=None):
        """Return what a model is asked about at `z`: points about all samples, or about `rows`."""
        return z

    def seen(self, delta):
        """Return moves, each so long that what a model is asked about changes."""
        return delta

    def distance(self, z):
        """Return how far `z` is from the samples, shape (n,); the ball ends at `radius`."""
        return length(flat(self.to_unit(z - self.x)), self.norm)

    def clamp(self, z):
        """Move `z` into the box, whatever the ball; frozen features stay as they are."""
        if self.weight is not None:
            z = torch.where(self.weight > 0, z, self.x)
        return z if self.low is None else torch.clamp(z, self.low, self.high)

    def to_unit(self, delta):
        """From the data's units to those in which the ball is round."""
        if self.weight is None:
            return delta
        return torch.where(self.weight > 0, delta / self.weight.clamp_min(1e-30), 0.0)

    def to_data(self, delta):
        """From the units in which the ball is round to those of the data."""
        return delta if self.weight is None else delta * self.weight

    def project(self, z):
        """Project `z` onto the ball, then onto the box."""
        if self.norm != np.inf:
            unit = self.to_unit(z - self.x)
            if self.norm == 0:
                unit = _largest(unit, int(self.radius))
            elif self.norm == 2:
                length = positive(torch.linalg.vector_norm(flat(unit), dim=1))
                # a number over a tensor is computed like this, and so is a tensor of shape ()
                share = self.radius * length.reciprocal()
                unit = unit * column(share.clamp_max(1.0), unit)
            else:
                unit = project_l1(flat(unit), self.radius).reshape(unit.shape)
            z = self.x + self.to_data(unit)
        if self.lower is None:
            return z
        return torch.clamp(z, self.lower, self.upper)

    def ascend(self, z, gradient, size):
        """Take a step of length `size` in the steepest direction (:meth:`push`), then project."""
        return self.project(self.push(z, gradient, size))

    def push(self, z, gradient, size):
        """Take a step of length `size` in the steepest direction, wherever it leads.

        Parameters
        ----------
        z, gradient : torch.Tensor of shape (n, ...)
        size : float
            Length of the step in the norm of the ball (in the largest radius
            where each feature has its own).
        """
        gradient = self.to_data(gradient)
        if self.norm == np.inf:
            direction = gradient.sign()
        elif self.norm == 2:
            length = positive(torch.linalg.vector_norm(flat(gradient), dim=1))
            direction = gradient / column(length, gradient)
        else:
            return z + self.to_data(self._sparse_step(z, gradient, size))
        # the direction is nobody else's: no need for another tensor
        return self.to_data(direction).mul_(size).add_(z)

    def _sparse_step(self, z, gradient, size):
        """Return a step of length `size` in the 1-norm, in the units in which the ball is round.

        The steepest features share it. What has no room for its part leaves the rest to the next
        ones.
        """
        vectors = flat(gradient)
        count = max(1, round(L1_FRACTION * vectors.shape[1]))
        if self.lower is None:
            top = vectors.abs().topk(count, dim=1).indices
            moved = torch.full_like(top, 1.0, dtype=vectors.dtype) * (size / count)
        else:
            room = torch.where(gradient > 0, self.upper - z, z - self.lower)
            room = flat(self.to_unit(room)).clamp_min(0.0)
            slope = vectors.abs().masked_fill(room == 0, 0.0)
            steepest = slope.topk(min(vectors.shape[1], _MORE * count), dim=1)
            top, room = steepest.indices, room.gather(1, steepest.indices)
            moved = room.clamp_max(size / count).masked_fill(steepest.values == 0, 0.0)
            moved = torch.minimum(moved, (size + moved - moved.cumsum(1)).clamp_min(0.0))
        step = vectors.sign().gather(1, top).mul_(moved)
        return torch.zeros_like(vectors).scatter_(1, top, step).reshape(gradient.shape)

    def random_start(self, kind, noise, stream, std):
        """Draw a starting point.

        Parameters
        ----------
        kind : {"none", "uniform", "gaussian", "sign"}
            The sample itself, uniform in the ball, the sample plus normal
            noise of standard deviation `std`, or the sample plus random signs.
        noise : SampleNoise
        stream : int
            ``Stream.START`` plus the number of the restart.
        std : float
            With signs the length of the whole, in the norm of the ball.
        """
        if kind == "none":
            return self.x.clone()
        if kind == "sign":
            unit = noise.normal(stream).sign()
            if self.weight is not None:
                unit = unit * (self.weight > 0)
            length = positive(torch.linalg.vector_norm(flat(unit), ord=self.norm, dim=1))
            return self.project(self.x + self.to_data(unit * column(std / length, unit)))
        if kind == "gaussian":
            delta = std * noise.normal(stream)
            if self.weight is not None:
                delta = delta * (self.weight > 0)
            return self.project(self.x + delta)
        unit = self.draw(noise, stream)
        return self.project(self.x + self.radius * self.to_data(unit))

    def draw(self, noise, stream):
        """Draw uniformly from the ball of radius one, in the units in which it is round."""
        n_features = flat(self.x).shape[1]
        if self.norm == np.inf:
            return 2.0 * noise.uniform(stream) - 1.0
        if self.norm == 2:
            direction = noise.normal(stream)
            length = positive(torch.linalg.vector_norm(flat(direction), dim=1))
            length = noise.scalar(stream) ** (1.0 / n_features) / length
            return direction * column(length, direction)
        # normalised exponentials with one to spare are uniform in the simplex
        magnitude = -torch.log(noise.uniform(stream))
        sign = (noise.uniform(Stream.SIGN + stream) > 0.5).to(magnitude) * 2 - 1
        total = flat(magnitude).sum(1) - torch.log(noise.scalar(stream))
        return sign * magnitude / column(total, magnitude)


def settle(z, x, norm, eps, lower=None, upper=None):
    """Round a perturbed sample into its ball and box, in its own dtype.

    Rounding ``x + delta`` to floating point can leave the ball by a bit, which
    honest evaluation must not allow. The perturbation is recomputed in float64
    and every feature rounded towards the clean sample. A sample of which a value
    is infinite or not a number comes back clean.

    Parameters
    ----------
    z, x : torch.Tensor of shape (n, ...)
        Perturbed and clean samples. The result has the dtype of `x`.
    norm : {inf, 2.0, 1.0, 0.0}
    eps : float or ndarray
        Radius, or one per feature.
    lower, upper : ndarray or None
        Valid range, broadcastable to one sample.

    Returns
    -------
    torch.Tensor of shape (n, ...)
    """
    info = torch.finfo(x.dtype)
    clean = x.double()
    delta = z.double() - clean
    if lower is not None:
        low = torch.minimum(torch.tensor(lower, dtype=torch.float64), clean)
        high = torch.maximum(torch.tensor(upper, dtype=torch.float64), clean)
        delta = torch.clamp(clean + delta, low, high) - clean
    radius = torch.tensor(eps, dtype=torch.float64)
    if norm == np.inf:
        # a bound that arithmetic in the dtype of the data respects as well
        reach = _inward(radius, x.dtype, -torch.inf).double()
        delta = torch.clamp(delta, -reach, reach)
    elif norm == 0:
        delta = _largest(torch.where(radius > 0, delta, 0.0), int(radius.max()))
    else:
        unit = torch.where(radius > 0, delta / radius.clamp_min(1e-300), 0.0)
        delta = torch.where(radius > 0, delta, 0.0)
        length = torch.linalg.vector_norm(flat(unit), ord=norm, dim=1)
        # the slack covers whoever sums the squares in the dtype of the data
        target = 1.0 - 16 * info.eps
        shrink = torch.where(length > target, target / length.clamp_min(1e-300), 1.0)
        delta = delta * column(shrink, delta)
    candidate = rounded_towards(x, clean + delta, delta.abs())
    if lower is not None:
        candidate = torch.clamp(
            candidate, _inward(low, x.dtype, torch.inf), _inward(high, x.dtype, -torch.inf)
        )
    return finite_or(x, z, candidate)


def rounded_towards(x, z, most):
    """Round perturbed values to the dtype of the clean ones, and not away from these.

    Parameters
    ----------
    x : torch.Tensor of shape (n, ...)
        Clean values.
    z, most : torch.Tensor of float64 of shape (n, ...)
        What is rounded, and how far from `x` it may be at the most.

    Returns
    -------
    torch.Tensor of shape (n, ...)
        In the dtype of `x`.
    """
    rounded, clean = z.to(x.dtype), x.double()
    for _ in range(2):
        too_far = (rounded.double() - clean).abs() > most
        rounded = torch.where(too_far, torch.nextafter(rounded, x), rounded)
    return rounded


def finite_or(x, *results):
    """Return the last of `results`, and `x` for the samples where one of them is not finite.

    Parameters
    ----------
    x, *results : torch.Tensor of shape (n, ...)

    Returns
    -------
    torch.Tensor of shape (n, ...)
    """
    finite = torch.stack([flat(result.isfinite()).all(1) for result in results]).all(0)
    return torch.where(column(finite, x), results[-1], x)


def _inward(bound, dtype, towards):
    """Return a float64 bound in `dtype`, never rounded out of the box."""
    rounded = bound.to(dtype)
    outside = rounded.double() < bound if towards > 0 else rounded.double() > bound
    inside = torch.nextafter(rounded, torch.full_like(rounded, towards))
    return torch.where(outside, inside, rounded)
