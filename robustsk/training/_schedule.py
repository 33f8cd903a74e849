"""Hyperparameters that change in the course of training."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

from .schedules import piecewise_constant


def at_epoch(schedule: Any, epoch: int, name: str = "schedule") -> Any:
    """Return the value of a piecewise constant schedule.

    Parameters
    ----------
    schedule : value or sequence of (epoch, value) pairs
        A number holds throughout. Otherwise each value holds from its epoch on,
        counted from 0.
    epoch : int
        Present epoch, from 0.
    name : str, default="schedule"
        Name of the parameter, for messages.

    Returns
    -------
    value

    Examples
    --------
    >>> from robustsk.training._schedule import at_epoch
    >>> [at_epoch([(0, 0), (2, 1), (4, 5)], epoch) for epoch in range(6)]
    [0, 0, 1, 1, 5, 5]
    >>> at_epoch(3, epoch=7)
    3
    """
    if isinstance(schedule, numbers.Real):
        return schedule
    try:
        return piecewise_constant([(start, value) for start, value in schedule], epoch)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} must be a number, or pairs (epoch, value) in ascending order of epochs with "
            f"the first at epoch 0, e.g. [(0, 1), (50, 2)]; got {schedule!r}."
        ) from error


def scaled(schedule: Sequence[tuple], n_epochs: int, max_epochs: int) -> list[tuple]:
    """Stretch a schedule for `n_epochs` epochs to `max_epochs`.

    Parameters
    ----------
    schedule : sequence of (epoch, value) pairs
    n_epochs : int
        Length of the training that the schedule is for.
    max_epochs : int

    Returns
    -------
    list of (epoch, value) pairs
        Epochs rounded up; where several fall on one, the last of them.
    """
    return list({-(-start * max_epochs // n_epochs): value for start, value in schedule}.items())


def check_begin(value: Any, name: str = "begin_epoch") -> None:
    """Raise unless `value` is None or the number of an epoch."""
    if value is None:
        return
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 0:
        raise ValueError(
            f"{name} must be the number of an epoch, counted from 0, or None, got {value!r}."
        )
