"""The geometry of combining the gradients of several tasks."""

from __future__ import annotations

import numpy as np
import torch

from ..attacks.multi_objective._simplex import projected_gradient, task_penalty
from ._plotting import pyplot


class MinNormDisplay:
    """Gradients of tasks in the plane, and the combinations of least norm.

    Multiple gradient descent takes the shortest vector in the convex hull of
    the gradients. Adding `lam` times the squared distance of the weights from
    those that are zero on the tasks achieved already draws it towards the hull
    of the others.

    It is recommended to use :meth:`from_gradients` to create a display. All
    parameters are stored as attributes.

    Parameters
    ----------
    gradients : array-like of shape (n_tasks, 2)
    achieved : array-like of bool of shape (n_tasks,)
        Which tasks are achieved already.
    weights : dict of str to array-like of shape (n_tasks,)
        Combinations to draw, by their names in the legend.
    names : list of str, default=None
        Names of the tasks. None means numbers.

    Attributes
    ----------
    arrows_ : matplotlib Quiver
        The gradients.
    text_ : list of matplotlib Text
        The names of the tasks at the ends of their gradients.
    hull_ : matplotlib Polygon
        The convex hull of the gradients.
    points_ : dict of str to matplotlib Artist
        The combinations.
    ax_ : matplotlib Axes
        Axes with the picture.
    figure_ : matplotlib Figure
        Figure containing the picture.

    References
    ----------
    Bui, Le, Zhao, Tran, Montague and Phung (2023), "Generating adversarial
    examples with task oriented multi-objective optimization", TMLR, Figure 2
    and Equations 2 to 4.

    Examples
    --------
    >>> from robustsk.inspection import MinNormDisplay
    >>> disp = MinNormDisplay.from_gradients([[1, 0], [0, 2]], [True, False], lam=2.5)
    >>> {name: w.round(3).tolist() for name, w in disp.weights.items()}
    {'MOO': [0.8, 0.2], 'TA-MOO, lam=2.5': [0.4, 0.6], 'MOO on what is left': [0.0, 1.0]}
    """

    def __init__(self, gradients, achieved, *, weights, names=None):
        self.gradients = gradients
        self.achieved = achieved
        self.weights = weights
        self.names = names

    @classmethod
    def from_gradients(cls, gradients, achieved, *, lam=1.0, names=None, ax=None, **plot_kwargs):
        """Find the combinations of least norm and plot them.

        Parameters
        ----------
        gradients : array-like of shape (n_tasks, 2)
        achieved : array-like of bool of shape (n_tasks,)
            Which tasks are achieved already.
        lam : float, default=1.0
            Weight of the penalty, positive. It is compared with squared lengths
            of gradients. Besides it, 0 (MOO) and the limit of infinite weight
            are drawn: the combination of the unachieved tasks alone, or equal
            weights if all are achieved.
        names : list of str, default=None
            Names of the tasks. None means numbers.
        ax : matplotlib Axes, default=None
            Where to draw. None means a new figure.
        **plot_kwargs : dict
            Passed to :meth:`plot`.

        Returns
        -------
        MinNormDisplay

        Raises
        ------
        ValueError
            If `gradients` or `achieved` has another shape, or `lam` is not
            positive.

        Examples
        --------
        >>> from robustsk.inspection import MinNormDisplay
        >>> gradients = [[3, 1], [2, 3], [0.5, 4], [-1, 3]]
        >>> disp = MinNormDisplay.from_gradients(gradients, [True, True, False, False])
        >>> len(disp.points_)
        3
        """
        pyplot(f"{cls.__name__}.from_gradients")
        gradients, achieved = _check_tasks(gradients, achieved)
        if not np.ndim(lam) == 0 or not 0 < lam < np.inf:
            raise ValueError(f"lam must be a positive number, got {lam!r}.")
        gram = torch.from_numpy(gradients @ gradients.T)
        penalty = task_penalty(torch.from_numpy(achieved)[None])[0].to(gram)

        def solve(matrix):
            return projected_gradient(matrix[None])[0].numpy()

        limit = np.full(len(achieved), 1 / len(achieved))
        if not achieved.all():
            left = torch.from_numpy(np.flatnonzero(~achieved))
            limit = np.zeros(len(achieved))
            limit[~achieved] = solve(gram[left][:, left])
        weights = {
            "MOO": solve(gram),
            f"TA-MOO, lam={lam:g}": solve(gram + lam * penalty),
            "MOO on what is left": limit,
        }
        return cls(gradients, achieved, weights=weights, names=names).plot(ax=ax, **plot_kwargs)

    def plot(self, *, ax=None, hull_kw=None, arrow_kw=None, **kwargs):
        """Draw the picture.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw. None means a new figure.
        hull_kw : dict, default=None
            Passed to matplotlib's `fill`.
        arrow_kw : dict, default=None
            Passed to matplotlib's `quiver`.
        **kwargs : dict
            Passed to matplotlib's `plot`, for the combinations.

        Returns
        -------
        MinNormDisplay
            The display itself, with its attributes set.
        """
        plt = pyplot(f"{type(self).__name__}.plot")
        gradients, achieved = _check_tasks(self.gradients, self.achieved)
        n_tasks = len(gradients)
        names = [str(i) for i in range(n_tasks)] if self.names is None else self.names
        if len(names) != n_tasks:
            raise ValueError(f"names holds {len(names)} names and there are {n_tasks} tasks.")
        weights = {name: np.asarray(w, dtype=float) for name, w in self.weights.items()}
        for name, w in weights.items():
            if w.shape != (n_tasks,):
                raise ValueError(
                    f"The weights {name!r} must have shape ({n_tasks},), got {w.shape}."
                )
        if ax is None:
            _, ax = plt.subplots()
        hull = _hull(gradients)
        settings = {"facecolor": "0.9", "edgecolor": "0.6", "zorder": 0}
        (self.hull_,) = ax.fill(*hull.T, **settings | (hull_kw or {}))
        settings = {
            "angles": "xy",
            "scale_units": "xy",
            "scale": 1,
            "width": 0.005,
            "color": np.where(achieved, "tab:gray", "tab:blue"),
        }
        zero = np.zeros(n_tasks)
        self.arrows_ = ax.quiver(zero, zero, *gradients.T, **settings | (arrow_kw or {}))
        self.text_ = [
            ax.annotate(
                f"{name} (achieved)" if done else str(name),
                end,
                textcoords="offset points",
                xytext=(4, 4),
            )
            for name, end, done in zip(names, gradients, achieved, strict=True)
        ]
        self.points_ = {}
        for (name, w), marker in zip(weights.items(), "osD^v*P" * len(weights), strict=False):
            settings = {"marker": marker, "linestyle": "none", "label": name}
            (self.points_[name],) = ax.plot(*(w @ gradients)[:, None], **settings | kwargs)
        # arrows do not count when matplotlib looks for the limits
        ax.update_datalim([[0.0, 0.0], *gradients])
        ax.autoscale_view()
        ax.set_aspect("equal", adjustable="datalim")
        ax.legend()
        self.ax_, self.figure_ = ax, ax.figure
        return self


def _check_tasks(gradients, achieved):
    gradients = np.asarray(gradients, dtype=float)
    achieved = np.asarray(achieved)
    if gradients.ndim != 2 or gradients.shape[1] != 2 or len(gradients) == 0:
        raise ValueError(
            f"gradients must be vectors in the plane, shape (n_tasks, 2), got {gradients.shape}."
        )
    if achieved.shape != gradients.shape[:1] or not np.isin(achieved, (0, 1)).all():
        raise ValueError(
            f"achieved must hold {len(gradients)} booleans, one for each gradient, got "
            f"{achieved!r}."
        )
    return gradients, achieved.astype(bool)


def _hull(points):
    """Return the corners of the convex hull in the plane, counter-clockwise."""
    points = np.unique(points, axis=0)
    corners = []
    for side in (points, points[::-1]):
        chain = []
        for point in side:
            while len(chain) > 1 and _turn(chain[-2], chain[-1], point) <= 0:
                chain.pop()
            chain.append(point)
        corners += chain[:-1]
    return np.array(corners if corners else points)


def _turn(a, b, c):
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
