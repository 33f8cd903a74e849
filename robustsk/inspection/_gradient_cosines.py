"""How the gradients of several models are related, drawn."""

from __future__ import annotations

import numpy as np

from ..metrics import gradient_cosines
from ._plotting import pyplot
from ._transferability import TransferabilityDisplay


class GradientCosineDisplay:
    """Cosines between the input gradients of several models, and how long these are.

    It is recommended to use :meth:`from_estimators` or :meth:`from_cosines` to
    create a display. All parameters are stored as attributes.

    Parameters
    ----------
    mean : array-like of shape (n_models, n_models)
        Mean cosines, in [-1, 1].
    std : array-like of shape (n_models, n_models), default=None
        Their standard deviations. None means that none are written.
    norm_mean, norm_std : array-like of shape (n_models,), default=None
        Mean and standard deviation of the lengths of the gradients, written
        next to the names of the rows. Without both, nothing is.
    names : list of str, default=None
        Names of the models. None means numbers.

    Attributes
    ----------
    im_ : matplotlib AxesImage
        The mean cosines.
    text_ : ndarray of shape (n_models, n_models) of matplotlib Text, or None
        The values. None if they are not drawn.
    ax_ : matplotlib Axes
        Axes with the matrix.
    figure_ : matplotlib Figure
        Figure containing the matrix.

    See Also
    --------
    robustsk.metrics.gradient_cosines : The numbers.

    References
    ----------
    Bui, Le, Zhao, Tran, Montague and Phung (2023), "Generating adversarial
    examples with task oriented multi-objective optimization", TMLR, Tables 2 and 23.

    Examples
    --------
    >>> from robustsk.inspection import GradientCosineDisplay
    >>> disp = GradientCosineDisplay(
    ...     [[1.0, 0.34], [0.34, 1.0]], std=[[0.0, 0.15], [0.15, 0.0]], names=["A", "B"]
    ... )
    >>> disp.plot().text_[0, 1].get_text()
    '0.34±0.15'
    """

    def __init__(self, mean, *, std=None, norm_mean=None, norm_std=None, names=None):
        self.mean = mean
        self.std = std
        self.norm_mean = norm_mean
        self.norm_std = norm_std
        self.names = names

    @classmethod
    def from_cosines(cls, cosines, *, ax=None, **plot_kwargs):
        """Plot what :func:`robustsk.metrics.gradient_cosines` has found.

        Parameters
        ----------
        cosines : GradientCosines
        ax : matplotlib Axes, default=None
            Where to draw. None means a new figure.
        **plot_kwargs : dict
            Passed to :meth:`plot`.

        Returns
        -------
        GradientCosineDisplay

        Examples
        --------
        >>> import numpy as np
        >>> from robustsk.inspection import GradientCosineDisplay
        >>> from robustsk.metrics import GradientCosines
        >>> cosines = GradientCosines(
        ...     np.eye(2), np.zeros((2, 2)), np.ones(2), np.zeros(2), ("A", "B"), n_samples=9
        ... )
        >>> GradientCosineDisplay.from_cosines(cosines).names
        ('A', 'B')
        """
        pyplot(f"{cls.__name__}.from_cosines")
        return cls(
            cosines.mean,
            std=cosines.std,
            norm_mean=cosines.norm_mean,
            norm_std=cosines.norm_std,
            names=cosines.names,
        ).plot(ax=ax, **plot_kwargs)

    @classmethod
    def from_estimators(
        cls, estimators, X, y, *, objective="ce", batch_size=256, ax=None, **plot_kwargs
    ):
        """Compute the gradients of several models and plot how they are related.

        Parameters
        ----------
        estimators : list or dict of fitted estimators, or fitted ensemble
            All with gradients. The keys of a dict are their names; otherwise
            they are called by their classes.
        X : array-like of shape (n_samples, ...) or torch Dataset
            Where the gradients are taken.
        y : array-like of shape (n_samples,)
            True labels. May be None where `X` is a Dataset that yields them.
        objective : {"ce", "cw", "dlr"} or callable, default="ce"
            The loss, see :func:`robustsk.metrics.gradient_cosines`.
        batch_size : int, default=256
        ax : matplotlib Axes, default=None
            Where to draw. None means a new figure.
        **plot_kwargs : dict
            Passed to :meth:`plot`.

        Returns
        -------
        GradientCosineDisplay

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from sklearn.linear_model import LogisticRegression
        >>> from robustsk.inspection import GradientCosineDisplay
        >>> X, y = load_iris(return_X_y=True)
        >>> models = {C: LogisticRegression(C=C, max_iter=1000).fit(X, y) for C in (0.1, 10)}
        >>> disp = GradientCosineDisplay.from_estimators(models, X, y)
        >>> disp.im_.get_array().shape
        (2, 2)
        """
        pyplot(f"{cls.__name__}.from_estimators")
        cosines = gradient_cosines(estimators, X, y, objective=objective, batch_size=batch_size)
        return cls.from_cosines(cosines, ax=ax, **plot_kwargs)

    def plot(
        self,
        *,
        include_values=True,
        cmap="coolwarm",
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
        cmap : str or matplotlib Colormap, default="coolwarm"
            Colours, from -1 to 1.
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
        GradientCosineDisplay
            The display itself, with its attributes set.
        """
        pyplot(f"{type(self).__name__}.plot")
        mean = np.asarray(self.mean, dtype=float)
        if mean.ndim != 2 or mean.shape[0] != mean.shape[1]:
            raise ValueError(f"mean must have shape (n_models, n_models), got {mean.shape}.")
        n_models = len(mean)
        names = [str(i) for i in range(n_models)] if self.names is None else self.names
        if len(names) != n_models:
            raise ValueError(f"names holds {len(names)} names and there are {n_models} models.")
        std = _like(self.std, mean.shape, "std")
        norms = [
            _like(values, (n_models,), name)
            for name, values in (("norm_mean", self.norm_mean), ("norm_std", self.norm_std))
        ]
        rows = names
        if self.norm_mean is not None and self.norm_std is not None:
            rows = [
                f"{name}\n{_plus_minus(*norm, values_format)}"
                for name, *norm in zip(names, *norms, strict=True)
            ]
        drawn = TransferabilityDisplay(
            mean, source_names=rows, target_names=names, metric="Cosine of the gradients"
        ).plot(
            include_values=include_values,
            # the ends of a map with a light middle are no colours for its text
            cmap=cmap,
            xticks_rotation=xticks_rotation,
            values_format=values_format,
            ax=ax,
            colorbar=colorbar,
            im_kw={"vmin": -1.0, "vmax": 1.0} | (im_kw or {}),
            text_kw={"color": "black"} | (text_kw or {}),
        )
        if include_values and std is not None:
            for at, text in np.ndenumerate(drawn.text_):
                text.set_text(_plus_minus(mean[at], std[at], values_format))
        drawn.ax_.set(xlabel="", ylabel="")
        self.im_, self.text_ = drawn.im_, drawn.text_
        self.ax_, self.figure_ = drawn.ax_, drawn.figure_
        return self


def _plus_minus(mean, std, values_format):
    return f"{format(mean, values_format)}±{format(std, values_format)}"


def _like(values, shape, name):
    if values is None:
        return None
    values = np.asarray(values, dtype=float)
    if values.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {values.shape}.")
    return values
