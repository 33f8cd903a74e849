"""Augmentations of training batches (the `augmentation` parameter of defences)."""

from __future__ import annotations

import torch
from sklearn.base import BaseEstimator
from torch import nn
from torch.nn import functional as F

from .._validation import check_count


class RandomCropFlip(BaseEstimator, nn.Module):
    """Shift images at random, and mirror half of them.

    Each image is padded on all sides, and a window of its own size is cut out at a random place;
    with probability 1/2 left and right are exchanged.

    Parameters
    ----------
    padding : int, default=4
        Pixels added on every side, hence the largest shift.
    flip : bool, default=True
        Whether to mirror. Digits and letters are not to be mirrored.
    mode : {"constant", "reflect"}, default="constant"
        Whether the border is filled with zeros or with what lies inside.

    Examples
    --------
    >>> import torch
    >>> from robustsk.training import RandomCropFlip
    >>> RandomCropFlip(padding=2)(torch.rand(5, 3, 8, 8)).shape
    torch.Size([5, 3, 8, 8])
    """

    def __init__(self, padding=4, flip=True, mode="constant"):
        super().__init__()
        self.padding = padding
        self.flip = flip
        self.mode = mode

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the augmented batch.

        Parameters
        ----------
        x : torch.Tensor of shape (n, c, h, w)

        Returns
        -------
        torch.Tensor of shape (n, c, h, w)
        """
        n, channels, height, width = _check_images(x, self)
        p = check_count(self.padding, "padding", least=0)
        if self.mode not in ("constant", "reflect"):
            raise ValueError(f"mode must be 'constant' or 'reflect', got {self.mode!r}.")
        if self.mode == "reflect" and p >= min(height, width):
            raise ValueError(
                f"padding={p} does not go with mode='reflect' on images of {height} x {width}: "
                "it must be smaller than either."
            )
        make = {"device": x.device}
        rows = torch.randint(2 * p + 1, (n, 1), **make) + torch.arange(height, **make)
        columns = torch.randint(2 * p + 1, (n, 1), **make) + torch.arange(width, **make)
        if self.flip:
            mirrored = torch.rand((n, 1), **make) < 0.5
            columns = torch.where(mirrored, columns.flip(1), columns)
        padded = F.pad(x, (p, p, p, p), mode=self.mode)
        return padded[
            torch.arange(n, **make)[:, None, None, None],
            torch.arange(channels, **make)[None, :, None, None],
            rows[:, None, :, None],
            columns[:, None, None, :],
        ]


class Cutout(BaseEstimator, nn.Module):
    """Set a square of each image to zero, at a random place.

    Parameters
    ----------
    length : int, default=14
        Side of the square in pixels.
    inside : bool, default=True
        Whether all of the square lies in the image, as in the code of Rice et al., so that every
        image loses as many pixels. Otherwise its centre is any pixel and part of it may lie
        outside, as in the article of DeVries and Taylor.

    References
    ----------
    DeVries and Taylor (2017), "Improved regularization of convolutional neural networks with
    cutout". Rice, Wong and Kolter (2020) find 14 to be the best length against robust
    overfitting on CIFAR-10.

    Examples
    --------
    >>> import torch
    >>> from robustsk.training import Cutout
    >>> bool((Cutout(length=4)(torch.ones(5, 3, 8, 8)) == 0).any())
    True
    """

    def __init__(self, length=14, inside=True):
        super().__init__()
        self.length = length
        self.inside = inside

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the augmented batch.

        Parameters
        ----------
        x : torch.Tensor of shape (n, c, h, w)

        Returns
        -------
        torch.Tensor of shape (n, c, h, w)
        """
        n, _, height, width = _check_images(x, self)
        length = check_count(self.length, "length", least=0)

        if self.inside and length > min(height, width):
            raise ValueError(
                f"The square of length={length} is to lie in images of {height} x {width}: give a "
                "smaller length, or inside=False."
            )

        def cut(size):
            if self.inside:
                first = torch.randint(size - length + 1, (n, 1), device=x.device)
            else:
                first = torch.randint(size, (n, 1), device=x.device) - length // 2
            place = torch.arange(size, device=x.device)
            return (first <= place) & (place < first + length)

        hole = cut(height)[:, None, :, None] & cut(width)[:, None, None, :]
        return x.masked_fill(hole, 0)


class Compose(BaseEstimator):
    """Apply several augmentations, one after the other.

    Augmentations that are modules, as those here are, compose by `torch.nn.Sequential` too; this
    takes any callables.

    Parameters
    ----------
    steps : list of callable
        Each is called on the batch that the one before has returned.

    Examples
    --------
    >>> import torch
    >>> from robustsk.training import Compose, Cutout, RandomCropFlip
    >>> augment = Compose([RandomCropFlip(padding=1), Cutout(length=3)])
    >>> augment(torch.rand(5, 3, 8, 8)).shape
    torch.Size([5, 3, 8, 8])
    """

    def __init__(self, steps):
        self.steps = steps

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return the augmented batch.

        Parameters
        ----------
        x : torch.Tensor of shape (n, ...)

        Returns
        -------
        torch.Tensor of the shape of `x`
        """
        for step in self.steps:
            x = step(x)
        return x


def _check_images(x, owner):
    if x.ndim != 4:
        raise ValueError(
            f"{type(owner).__name__} augments images, batches of shape (n, c, h, w), and was given "
            f"one of shape {tuple(x.shape)}: give the estimator input_shape=(c, h, w) if rows are "
            "flattened images, or leave the augmentation out."
        )
    return x.shape
