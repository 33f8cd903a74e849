"""What was recorded in the course of training."""

from __future__ import annotations

import numpy as np
from sklearn.exceptions import NotFittedError

from ._plotting import pyplot


class TrainingCurveDisplay:
    """Records of a training, epoch by epoch: losses, robust accuracy, the dual variable.

    It is recommended to use :meth:`from_estimator` to create a display. All
    parameters are stored as attributes.

    Parameters
    ----------
    curves : dict of str to array-like of shape (n_epochs,)
        What to draw, by its name in the legend.
    ylabel : str, default=None
        Label of the y-axis.

    Attributes
    ----------
    lines_ : list of matplotlib Artist
        The curves.
    ax_ : matplotlib Axes
        Axes with the curves.
    figure_ : matplotlib Figure
        Figure containing the curves.

    Examples
    --------
    >>> from robustsk.inspection import TrainingCurveDisplay
    >>> disp = TrainingCurveDisplay({"lam": [2.0, 1.5, 1.2]}, ylabel="Dual variable").plot()
    >>> len(disp.lines_)
    1
    """

    def __init__(self, curves, *, ylabel=None):
        self.curves = curves
        self.ylabel = ylabel

    @classmethod
    def from_estimator(cls, estimator, keys="lam", *, name=None, ylabel=None, ax=None, **kwargs):
        """Draw what a defence has recorded in its history.

        Parameters
        ----------
        estimator : fitted defence
        keys : str or list of str, default="lam"
            Names of records in ``estimator.history_``: "lam" is the dual variable of
            :class:`robustsk.training.UDRAdversary`, "train_loss" the loss,
            "valid_robust_acc" what :class:`robustsk.training.AdversarialScoring`
            watches.
        name : str, default=None
            Put before the names in the legend.
        ylabel : str, default=None
            Label of the y-axis. None means the name, where there is one.
        ax : matplotlib Axes, default=None
            Where to draw. None means a new figure.
        **kwargs : dict
            Passed to matplotlib's `plot`.

        Returns
        -------
        TrainingCurveDisplay

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from robustsk import PGDATClassifier
        >>> from robustsk.inspection import TrainingCurveDisplay
        >>> clf = PGDATClassifier(max_epochs=3, random_state=0).fit(*load_iris(return_X_y=True))
        >>> disp = TrainingCurveDisplay.from_estimator(clf, "train_loss")
        >>> disp.ax_.get_ylabel()
        'train_loss'
        """
        if not getattr(estimator, "history_", None):
            raise NotFittedError(
                f"This {type(estimator).__name__} has no history yet: call fit before."
            )
        keys = [keys] if isinstance(keys, str) else list(keys)
        rows = [{k: v for k, v in row.items() if k != "batches"} for row in estimator.history_]
        known = sorted(set.intersection(*(set(row) for row in rows)))
        for key in keys:
            if key not in known:
                raise ValueError(
                    f"{type(estimator).__name__} has not recorded {key!r} in every epoch; what it "
                    f"has recorded is {known}."
                )
        label = "" if name is None else f"{name} "
        curves = {f"{label}{key}": [row[key] for row in rows] for key in keys}
        if ylabel is None and len(keys) == 1:
            ylabel = keys[0]
        return cls(curves, ylabel=ylabel).plot(ax=ax, **kwargs)

    def plot(self, *, ax=None, **kwargs):
        """Draw the curves.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw. None means a new figure.
        **kwargs : dict
            Passed to matplotlib's `plot`.

        Returns
        -------
        TrainingCurveDisplay
            The display itself, with its attributes set.
        """
        plt = pyplot(f"{type(self).__name__}.plot")
        if ax is None:
            _, ax = plt.subplots()
        self.lines_ = []
        for name, values in self.curves.items():
            values = np.asarray(values, dtype=float)
            epochs = np.arange(1, len(values) + 1)
            self.lines_ += ax.plot(epochs, values, **{"label": name, **kwargs})
        ax.set(xlabel="Epoch")
        if self.ylabel is not None:
            ax.set_ylabel(self.ylabel)
        ax.legend()
        self.ax_, self.figure_ = ax, ax.figure
        return self
