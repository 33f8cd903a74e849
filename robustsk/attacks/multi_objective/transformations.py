"""Differentiable transformations of images that an adversarial example is to survive."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from torch import Tensor
from torch.nn import functional as F

from ..._containers import check_floats, like
from ..._tensors import clamp_through
from ..._validation import check_choice

#: The strength of each kind when nothing is random; None where there is none to choose.
_STRENGTH = {
    "identity": None,
    "hflip": None,
    "vflip": None,
    "crop": 0.6,
    "gamma": 1.3,
    "brightness": 1.3,
    "rotation": 10.0,
}


class Transformation(BaseEstimator):
    """A differentiable transformation of images, the same for all or drawn for each.

    Called on a batch of tensors it returns the transformed batch, through which
    gradients pass; `transform` does the same to NumPy arrays.

    Parameters
    ----------
    kind : {"identity", "hflip", "vflip", "crop", "gamma", "brightness", "rotation"}
        Nothing; a flip left to right or upside down; cropping the centre and
        enlarging it bilinearly to the size of the image; raising all values to a
        power; multiplying them; rotating counter-clockwise, bilinearly, zeros
        coming in from outside.
    stochastic : bool, default=False
        Whether the strength is drawn for each sample. Otherwise it is `strength`
        for all, and flips always take place.
    strength : float, default=None
        The side of the crop relative to that of the image, in (0, 1], 0.6 by
        default; the power and the factor, positive, both 1.3; the angle in
        degrees, 10. None means the default. If `stochastic`, the side is drawn
        uniformly from (strength, 1], the power from [2 - strength, strength),
        the factor from [1, strength), the angle from [-strength, strength), and
        a flip takes place with probability 0.5. Identity and flips have none.
    random_state : int, RandomState instance or None, default=None
        For the draws of `transform`. An int gives the same draws in every call.

    See Also
    --------
    deterministic_transformations, stochastic_transformations : One of each kind.
    EOT : Attacks the mean prediction over draws.

    Notes
    -----
    Values are expected in [0, 1]; powers and products are clamped to that.
    The derivative of a power below 1 is infinite at 0, as it should be: who
    uses it must deal with gradients that are not finite.

    Each sample is transformed by itself: given the same `u` it comes out the
    same whatever else is in the batch. On CUDA torch adds up the gradient of
    bilinear sampling in no fixed order, so gradients of crops and rotations
    are equal only up to rounding.

    References
    ----------
    Bui, Le, Zhao, Tran, Montague and Phung (2023), "Generating adversarial
    examples with task oriented multi-objective optimization", TMLR, Table 9.

    Examples
    --------
    >>> import torch
    >>> from robustsk.attacks import Transformation
    >>> x = torch.tensor([[[[0.0, 0.5], [0.25, 1.0]]]])
    >>> Transformation("hflip")(x)[0, 0].tolist()
    [[0.5, 0.0], [1.0, 0.25]]
    >>> brighter = Transformation("brightness", stochastic=True)
    >>> brighter(x, u=torch.tensor([0.5])).shape
    torch.Size([1, 1, 2, 2])
    """

    def __init__(
        self,
        kind: str,
        *,
        stochastic: bool = False,
        strength: float | None = None,
        random_state: int | np.random.RandomState | None = None,
    ):
        self.kind = kind
        self.stochastic = stochastic
        self.strength = strength
        self.random_state = random_state

    def __call__(self, x: Tensor, u: Tensor | None = None) -> Tensor:
        """Transform a batch.

        Parameters
        ----------
        x : Tensor of shape (n, n_channels, height, width)
            Floating, in [0, 1].
        u : Tensor of shape (n,), default=None
            Numbers in [0, 1) that choose what is random, one per sample: the
            larger, the closer to `strength`. None means that they are drawn
            from torch's global generator. Without effect unless `stochastic`.

        Returns
        -------
        Tensor of shape (n, n_channels, height, width)

        Raises
        ------
        TypeError
            If `x` is not a floating tensor.
        ValueError
            If `x` or `u` has another shape, `kind` is unknown, or `strength` is
            out of its range.
        """
        strength = self._check_strength()
        if not isinstance(x, Tensor) or not x.is_floating_point():
            got = f"a tensor of {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(
                f"A Transformation is called on a floating torch tensor, got {got}. For NumPy "
                "arrays there is its method transform."
            )
        _check_image_shape(x.shape)
        n = len(x)
        if not self.stochastic:
            u = x.new_ones(n)  # the far end of every range
        elif u is None:
            u = torch.rand(n, device=x.device, dtype=x.dtype)
        elif not isinstance(u, Tensor) or u.shape != (n,):
            got = tuple(u.shape) if isinstance(u, Tensor) else type(u).__name__
            raise ValueError(
                f"u must be a tensor of shape ({n},), one number for each sample, got {got}."
            )
        else:
            u = u.to(x)
        if self.kind == "identity":
            return x
        if self.kind in ("hflip", "vflip"):
            flipped = x.flip(3 if self.kind == "hflip" else 2)
            return torch.where((u >= 0.5).view(n, 1, 1, 1), flipped, x)
        if self.kind == "crop":
            return _crop(x, 1.0 - (1.0 - strength) * u)
        if self.kind == "gamma":
            power = strength + (2.0 * strength - 2.0) * (u - 1.0)
            return clamp_through(clamp_through(x, 0.0, 1.0).pow(power.view(n, 1, 1, 1)), 0.0, 1.0)
        if self.kind == "brightness":
            factor = 1.0 + (strength - 1.0) * u
            return clamp_through(x * factor.view(n, 1, 1, 1), 0.0, 1.0)
        return _rotate(x, strength * (2.0 * u - 1.0))

    def transform(self, X: Any) -> np.ndarray:
        """Transform arrays.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_channels, height, width)
            In [0, 1].

        Returns
        -------
        ndarray of shape (n_samples, n_channels, height, width)
            What is random is drawn with `random_state`. A tensor where `X` is one.

        Raises
        ------
        ValueError
            If `X` has another shape, `kind` is unknown, or `strength` is out of
            its range.

        Examples
        --------
        >>> from robustsk.attacks import Transformation
        >>> from robustsk.datasets import load_digits_images
        >>> X, y = load_digits_images(return_X_y=True)
        >>> tilted = Transformation("rotation", stochastic=True, random_state=0).transform(X)
        >>> tilted.shape == X.shape
        True
        """
        self._check_strength()
        values = np.asarray(check_floats(X))
        _check_image_shape(values.shape)
        u = None
        if self.stochastic:
            u = torch.from_numpy(check_random_state(self.random_state).uniform(size=len(values)))
        with torch.no_grad():
            moved = self(torch.from_numpy(np.array(values)), u)
        return like(moved.numpy(), X)

    def _check_strength(self):
        check_choice(self.kind, "kind", tuple(_STRENGTH))
        default, given = _STRENGTH[self.kind], self.strength
        if given is None:
            return default
        if default is None:
            raise ValueError(
                f"kind={self.kind!r} has no strength: leave it at None, got {given!r}."
            )
        top = math.inf
        if self.kind == "crop":
            top = 1.0
        elif self.kind == "gamma" and self.stochastic:
            top = math.nextafter(2.0, 0.0)  # the other end of the range is positive as well
        low = -math.inf if self.kind == "rotation" else 0.0
        number = isinstance(given, (int, float, np.integer, np.floating))
        if not number or not math.isfinite(given) or not low < given <= top:
            limits = {
                "crop": "in (0, 1]",
                "rotation": "finite, in degrees",
                "gamma": "positive, and below 2 if stochastic",
            }.get(self.kind, "positive")
            raise ValueError(
                f"strength of kind={self.kind!r} must be a number {limits}, got {given!r}."
            )
        return float(given)


def deterministic_transformations() -> dict[str, Transformation]:
    """Return one transformation of each kind, without anything random.

    Returns
    -------
    dict of str to Transformation
        Identity, horizontal flip, vertical flip, crop to 0.6 of the side, gamma
        1.3, brightness 1.3 and rotation by 10 degrees, by their kinds.

    References
    ----------
    Bui, Le, Zhao, Tran, Montague and Phung (2023), "Generating adversarial
    examples with task oriented multi-objective optimization", TMLR, Table 9.

    Examples
    --------
    >>> from robustsk.attacks import deterministic_transformations
    >>> list(deterministic_transformations())
    ['identity', 'hflip', 'vflip', 'crop', 'gamma', 'brightness', 'rotation']
    """
    return {kind: Transformation(kind) for kind in _STRENGTH}


def stochastic_transformations(random_state: Any = None) -> dict[str, Transformation]:
    """Return one transformation of each kind, each drawing anew for each sample.

    Parameters
    ----------
    random_state : int, RandomState instance or None, default=None
        Gives every transformation a seed of its own for its `transform`. None
        means that they are not seeded.

    Returns
    -------
    dict of str to Transformation
        Identity, flips with probability 0.5, crop to between 0.6 and 1 of the
        side, gamma between 0.7 and 1.3, brightness between 1 and 1.3, and
        rotation between -10 and 10 degrees, by their kinds.

    References
    ----------
    Bui, Le, Zhao, Tran, Montague and Phung (2023), "Generating adversarial
    examples with task oriented multi-objective optimization", TMLR, Table 9.

    Examples
    --------
    >>> from robustsk.attacks import stochastic_transformations
    >>> stochastic_transformations(0)["crop"].stochastic
    True
    """
    seeds = [None] * len(_STRENGTH)
    if random_state is not None:
        rng = check_random_state(random_state)
        seeds = rng.randint(np.iinfo(np.int32).max, size=len(_STRENGTH)).tolist()
    return {
        kind: Transformation(kind, stochastic=True, random_state=seed)
        for kind, seed in zip(_STRENGTH, seeds, strict=True)
    }


def _check_image_shape(shape):
    if len(shape) != 4 or 0 in shape[1:]:
        raise ValueError(
            "Transformations need images of shape (n_samples, n_channels, height, width), got "
            f"{tuple(shape)}. Reshape flat images, put channels before height and width, and give "
            "a single image a first axis with image[None]."
        )


def _crop(x, scale):
    """Enlarge the centre; scale of shape (n,) is the side of what is kept."""
    zero = torch.zeros_like(scale)
    rows = torch.stack([scale, zero, zero, zero, scale, zero], dim=1)
    grid = F.affine_grid(rows.view(-1, 2, 3), list(x.shape), align_corners=False)
    # nothing outside of the crop is seen: its outermost pixels are repeated, as in a resize
    height, width = x.shape[2:]
    half_pixel = x.new_tensor([1.0 / width, 1.0 / height])
    edge = (scale[:, None] - half_pixel).clamp(min=0.0)[:, None, None, :]
    grid = torch.maximum(torch.minimum(grid, edge), -edge)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _rotate(x, degrees):
    """Rotate counter-clockwise around the centre by degrees of shape (n,)."""
    height, width = x.shape[2:]
    angle = torch.deg2rad(degrees)
    cos, sin, zero = torch.cos(angle), torch.sin(angle), torch.zeros_like(angle)
    # a grid runs from -1 to 1 along both axes however long they are
    rows = torch.stack(
        [cos, -sin * (height / width), zero, sin * (width / height), cos, zero], dim=1
    )
    grid = F.affine_grid(rows.view(-1, 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
