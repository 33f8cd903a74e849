"""Which adversarial examples fool which models."""

from __future__ import annotations

import numpy as np
from sklearn.utils.validation import column_or_1d

from .._containers import to_array
from .._validation import check_labels
from ..metrics import transferability_matrix
from ..metrics._craft import named
from ._plotting import pyplot


class TransferabilityDisplay:
    """Score of each model on the adversarial examples of each other one.

    It is recommended to use :meth:`from_estimators` or :meth:`from_predictions`
    to create a display. All parameters are stored as attributes.

    Parameters
    ----------
    matrix : ndarray of shape (n_sources, n_targets)
        Scores in [0, 1]: rows are the models against which the examples were
        made, columns those that judge them.
    source_names : list of str, default=None
        Labels of the rows. None means numbers.
    target_names : list of str, default=None
        Labels of the columns. None means numbers.
    metric : {"accuracy", "success"}, default="accuracy"
        What the scores are, named at the colour bar.

    Attributes
    ----------
    im_ : matplotlib AxesImage
        The matrix.
    text_ : ndarray of shape (n_sources, n_targets) of matplotlib Text, or None
        The values. None if they are not drawn.
    ax_ : matplotlib Axes
        Axes with the matrix.
    figure_ : matplotlib Figure
        Figure containing the matrix.

    See Also
    --------
    robustsk.metrics.transferability_matrix : The numbers.

    Examples
    --------
    >>> from robustsk.inspection import TransferabilityDisplay
    >>> disp = TransferabilityDisplay(
    ...     matrix=[[0.1, 0.7], [0.6, 0.2]], source_names=["A", "B"], target_names=["A", "B"]
    ... )
    >>> disp.plot().text_[0, 1].get_text()
    '0.70'
    """

    def __init__(self, matrix, *, source_names=None, target_names=None, metric="accuracy"):
        self.matrix = matrix
        self.source_names = source_names
        self.target_names = target_names
        self.metric = metric

    @classmethod
    def from_estimators(
        cls,
        estimators,
        X,
        y,
        attack,
        *,
        sources=None,
        metric="accuracy",
        over="all",
        ax=None,
        **plot_kwargs,
    ):
        """Attack models, let every one judge the examples of every other, and plot the scores.

        Parameters
        ----------
        estimators : list or dict of fitted estimators, or fitted ensemble
            The targets. The keys of a dict are their names; otherwise they are
            called by their classes.
        X : array-like of shape (n_samples, ...) or torch Dataset
            Test data.
        y : array-like of shape (n_samples,)
            True labels. May be None where `X` is a Dataset that yields them.
        attack : attack
            What makes the examples.
        sources : list or dict of fitted estimators, or fitted ensemble, default=None
            The models against which the examples are made. None means
            `estimators`.
        metric : {"accuracy", "success"}, default="accuracy"
            Share of samples that the target classifies correctly, or wrongly.
        over : {"all", "correct", "fooled"}, default="all"
            Relative to which samples, see
            :func:`robustsk.metrics.transferability_matrix`.
        ax : matplotlib Axes, default=None
            Where to draw. None means a new figure.
        **plot_kwargs : dict
            Passed to :meth:`plot`.

        Returns
        -------
        TransferabilityDisplay

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from sklearn.linear_model import LogisticRegression
        >>> from sklearn.tree import DecisionTreeClassifier
        >>> from robustsk import PGD
        >>> from robustsk.inspection import TransferabilityDisplay
        >>> X, y = load_iris(return_X_y=True)
        >>> linear = LogisticRegression(max_iter=1000).fit(X, y)
        >>> tree = DecisionTreeClassifier(random_state=0).fit(X, y)
        >>> disp = TransferabilityDisplay.from_estimators(
        ...     {"linear": linear, "tree": tree},
        ...     X, y, PGD(eps=0.5, random_state=0), sources={"linear": linear},
        ... )
        >>> disp.matrix.shape
        (1, 2)
        """
        pyplot(f"{cls.__name__}.from_estimators")
        target_names, _ = named(estimators, "estimators")
        source_names = target_names if sources is None else named(sources, "sources")[0]
        matrix = transferability_matrix(
            estimators, X, y, attack, sources=sources, metric=metric, over=over
        )
        return cls(
            matrix, source_names=source_names, target_names=target_names, metric=metric
        ).plot(ax=ax, **plot_kwargs)

    @classmethod
    def from_predictions(
        cls,
        y_true,
        y_pred,
        *,
        source_names=None,
        target_names=None,
        metric="accuracy",
        ax=None,
        **plot_kwargs,
    ):
        """Plot the scores given the predictions on adversarial examples.

        Parameters
        ----------
        y_true : array-like of shape (n_samples,)
            True labels.
        y_pred : array-like of shape (n_sources, n_targets, n_samples)
            Predictions of each target on the examples of each source.
        source_names : list of str, default=None
            Labels of the rows. None means numbers.
        target_names : list of str, default=None
            Labels of the columns. None means numbers.
        metric : {"accuracy", "success"}, default="accuracy"
            Share of all samples that the target classifies correctly, or
            wrongly.
        ax : matplotlib Axes, default=None
            Where to draw. None means a new figure.
        **plot_kwargs : dict
            Passed to :meth:`plot`.

        Returns
        -------
        TransferabilityDisplay

        Examples
        --------
        >>> from robustsk.inspection import TransferabilityDisplay
        >>> y_pred = [[[1, 1], [0, 1]], [[0, 1], [1, 0]]]
        >>> TransferabilityDisplay.from_predictions([0, 1], y_pred).matrix.tolist()
        [[0.5, 1.0], [1.0, 0.0]]
        """
        pyplot(f"{cls.__name__}.from_predictions")
        if metric not in ("accuracy", "success"):
            raise ValueError(f"metric must be 'accuracy' or 'success', got {metric!r}.")
        y_true = column_or_1d(check_labels(y_true))
        y_pred = np.asarray(to_array(y_pred))
        if y_pred.ndim != 3 or y_pred.shape[2] != len(y_true) or 0 in y_pred.shape:
            raise ValueError(
                "y_pred must have shape (n_sources, n_targets, n_samples) with n_samples = "
                f"{len(y_true)}, got {y_pred.shape}."
            )
        matrix = ((y_pred == y_true) == (metric == "accuracy")).mean(axis=2)
        return cls(
            matrix, source_names=source_names, target_names=target_names, metric=metric
        ).plot(ax=ax, **plot_kwargs)

    def plot(
        self,
        *,
        include_values=True,
        cmap="viridis",
        xticks_rotation="horizontal",
        values_format=".2f",
        ax=None,
        colorbar=True,
        im_kw=None,
        text_kw=None,
    ):
        """Draw the matrix.

        Parameters
        ----------
        include_values : bool, default=True
            Whether to write the values into the cells.
        cmap : str or matplotlib Colormap, default="viridis"
            Colours, from 0 to 1.
        xticks_rotation : {"vertical", "horizontal"} or float, default="horizontal"
            Rotation of the labels of the columns.
        values_format : str, default=".2f"
            How the values are written.
        ax : matplotlib Axes, default=None
            Where to draw. None means a new figure.
        colorbar : bool, default=True
            Whether to add a colour bar.
        im_kw : dict, default=None
            Passed to matplotlib's `imshow`.
        text_kw : dict, default=None
            Passed to matplotlib's `text`.

        Returns
        -------
        TransferabilityDisplay
            The display itself, with its attributes set.
        """
        plt = pyplot(f"{type(self).__name__}.plot")
        matrix = np.asarray(self.matrix, dtype=float)
        if matrix.ndim != 2:
            raise ValueError(f"matrix must have shape (n_sources, n_targets), got {matrix.shape}.")
        names = [
            _check_names(given, length, what)
            for given, length, what in (
                (self.source_names, matrix.shape[0], "source_names"),
                (self.target_names, matrix.shape[1], "target_names"),
            )
        ]
        if ax is None:
            _, ax = plt.subplots()
        self.im_ = ax.imshow(
            matrix,
            **{"cmap": cmap, "vmin": 0.0, "vmax": 1.0, "interpolation": "nearest"} | (im_kw or {}),
        )
        self.text_ = None
        if include_values:
            # dark on light and light on dark, whatever the colours
            ends = self.im_.cmap(0), self.im_.cmap(1.0)
            self.text_ = np.empty(matrix.shape, dtype=object)
            for (i, j), value in np.ndenumerate(matrix):
                light = bool(self.im_.norm(value) < 0.5)
                settings = {"ha": "center", "va": "center", "color": ends[light]}
                self.text_[i, j] = ax.text(
                    j, i, format(value, values_format), **settings | (text_kw or {})
                )
        if colorbar:
            label = {"accuracy": "Accuracy", "success": "Success rate of the attack"}
            ax.figure.colorbar(self.im_, ax=ax, label=label.get(self.metric, self.metric))
        ax.set(
            xticks=np.arange(matrix.shape[1]),
            yticks=np.arange(matrix.shape[0]),
            xticklabels=names[1],
            yticklabels=names[0],
            xlabel="Judged by",
            ylabel="Made against",
        )
        plt.setp(ax.get_xticklabels(), rotation=xticks_rotation)
        self.ax_, self.figure_ = ax, ax.figure
        return self


def _check_names(names, length, what):
    if names is None:
        return [str(i) for i in range(length)]
    if len(names) != length:
        raise ValueError(f"{what} holds {len(names)} names and the matrix has {length} of them.")
    return [str(name) for name in names]
