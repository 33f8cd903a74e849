"""Which members of an ensemble err together."""

from __future__ import annotations

from itertools import product

import numpy as np

from ..metrics import secure_regions
from ..metrics._craft import named
from ._plotting import pyplot

#: With more patterns than that, those that never occur are not drawn.
_MOST_BARS = 32


class SecureRegionsDisplay:
    """How often which members of an ensemble are right on examples against it.

    A bar for each pattern: "S10" are the samples on which the first of two
    members is right and the second wrong. A line shows the accuracy of the
    ensemble. The less it exceeds the first bar, the less does the ensemble
    live on single members; the larger the last bar, the more do adversarial
    examples transfer.

    It is recommended to use :meth:`from_estimators` or :meth:`from_regions` to
    create a display. All parameters are stored as attributes.

    Parameters
    ----------
    frequency : array-like of shape (2, ..., 2)
        Share of samples with each pattern, an axis per member, 1 meaning right.
    ensemble_accuracy : float, default=None
        Accuracy of the ensemble on the same examples. None means no line.
    names : list of str, default=None
        Names of the members, shown in the label of the x-axis.

    Attributes
    ----------
    bars_ : matplotlib BarContainer
        One bar per pattern, from all right to all wrong.
    text_ : list of matplotlib Text or None
        The values above the bars. None if they are not drawn.
    line_ : matplotlib Artist or None
        The accuracy of the ensemble.
    ax_ : matplotlib Axes
        Axes with the bars.
    figure_ : matplotlib Figure
        Figure containing the bars.

    See Also
    --------
    robustsk.metrics.secure_regions : The numbers.

    References
    ----------
    Bui, Le, Zhao, Montague, deVel, Abraham and Phung (2021), "Improving
    ensemble robustness by collaboratively promoting and demoting adversarial
    robustness", AAAI, Table 6.

    Examples
    --------
    >>> from robustsk.inspection import SecureRegionsDisplay
    >>> disp = SecureRegionsDisplay([[0.5, 0.1], [0.1, 0.3]], ensemble_accuracy=0.35).plot()
    >>> [label.get_text() for label in disp.ax_.get_xticklabels()]
    ['S11', 'S10', 'S01', 'S00']
    """

    def __init__(self, frequency, *, ensemble_accuracy=None, names=None):
        self.frequency = frequency
        self.ensemble_accuracy = ensemble_accuracy
        self.names = names

    @classmethod
    def from_regions(cls, regions, *, names=None, ax=None, **plot_kwargs):
        """Plot what :func:`robustsk.metrics.secure_regions` has found.

        Parameters
        ----------
        regions : SecureRegions
        names : list of str, default=None
            Names of the members.
        ax : matplotlib Axes, default=None
            Where to draw. None means a new figure.
        **plot_kwargs : dict
            Passed to :meth:`plot`.

        Returns
        -------
        SecureRegionsDisplay

        Examples
        --------
        >>> from robustsk.inspection import SecureRegionsDisplay
        >>> from robustsk.metrics import SecureRegions
        >>> regions = SecureRegions.from_correct([[1, 1], [1, 0]], [True, True])
        >>> SecureRegionsDisplay.from_regions(regions, names=["A", "B"]).ax_.get_xlabel()
        'Right (1) or wrong (0): A, B'
        """
        pyplot(f"{cls.__name__}.from_regions")
        return cls(
            regions.frequency, ensemble_accuracy=regions.ensemble_accuracy, names=names
        ).plot(ax=ax, **plot_kwargs)

    @classmethod
    def from_estimators(cls, members, X, y, attack, *, ensemble=None, ax=None, **plot_kwargs):
        """Attack an ensemble and plot which members withstand.

        Parameters
        ----------
        members : list or dict of fitted estimators, or fitted ensemble
            The keys of a dict are their names; otherwise they are called by
            their classes.
        X : array-like of shape (n_samples, ...) or torch Dataset
            Test data.
        y : array-like of shape (n_samples,)
            True labels. May be None where `X` is a Dataset that yields them.
        attack : attack
            What makes the examples.
        ensemble : fitted estimator or torch.nn.Module, default=None
            What combines the members, see :func:`robustsk.metrics.secure_regions`.
        ax : matplotlib Axes, default=None
            Where to draw. None means a new figure.
        **plot_kwargs : dict
            Passed to :meth:`plot`.

        Returns
        -------
        SecureRegionsDisplay

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from sklearn.linear_model import LogisticRegression
        >>> from robustsk import PGD
        >>> from robustsk.inspection import SecureRegionsDisplay
        >>> X, y = load_iris(return_X_y=True)
        >>> members = {
        ...     f"C={C}": LogisticRegression(C=C, max_iter=1000).fit(X, y) for C in (0.1, 10)
        ... }
        >>> disp = SecureRegionsDisplay.from_estimators(
        ...     members, X, y, PGD(eps=0.5, random_state=0)
        ... )
        >>> disp.names
        ['C=0.1', 'C=10']
        """
        pyplot(f"{cls.__name__}.from_estimators")
        names, _ = named(members, "members")
        regions = secure_regions(members, X, y, attack, ensemble=ensemble)
        return cls.from_regions(regions, names=names, ax=ax, **plot_kwargs)

    def plot(self, *, include_values=True, values_format=".2f", ax=None, bar_kw=None, line_kw=None):
        """Draw the bars.

        Parameters
        ----------
        include_values : bool, default=True
            Whether to write the values above the bars.
        values_format : str, default=".2f"
            How the values are written.
        ax : matplotlib Axes, default=None
            Where to draw. None means a new figure.
        bar_kw : dict, default=None
            Passed to matplotlib's `bar`.
        line_kw : dict, default=None
            Passed to matplotlib's `axhline`.

        Returns
        -------
        SecureRegionsDisplay
            The display itself, with its attributes set. Of more than 32
            patterns only those are drawn that occur.
        """
        plt = pyplot(f"{type(self).__name__}.plot")
        frequency = np.asarray(self.frequency, dtype=float)
        if frequency.ndim == 0 or frequency.shape != (2,) * frequency.ndim:
            raise ValueError(
                "frequency must have shape (2, ..., 2) with one axis per member, got "
                f"{frequency.shape}."
            )
        xlabel = "Members that are right (1) or wrong (0)"
        if self.names is not None:
            if len(self.names) != frequency.ndim:
                raise ValueError(
                    f"names holds {len(self.names)} names and there are {frequency.ndim} members."
                )
            xlabel = "Right (1) or wrong (0): " + ", ".join(str(name) for name in self.names)
        patterns = list(product((1, 0), repeat=frequency.ndim))
        if len(patterns) > _MOST_BARS:
            patterns = [pattern for pattern in patterns if frequency[pattern] > 0]
        shares = np.array([frequency[pattern] for pattern in patterns])
        if ax is None:
            _, ax = plt.subplots()
        labels = ["S" + "".join(str(bit) for bit in pattern) for pattern in patterns]
        self.bars_ = ax.bar(np.arange(len(shares)), shares, **(bar_kw or {}))
        self.text_ = None
        if include_values:
            self.text_ = ax.bar_label(self.bars_, [format(s, values_format) for s in shares])
        self.line_ = None
        if self.ensemble_accuracy is not None:
            settings = {
                "color": "black",
                "linestyle": "--",
                "label": f"Accuracy of the ensemble {self.ensemble_accuracy:{values_format}}",
            }
            self.line_ = ax.axhline(self.ensemble_accuracy, **settings | (line_kw or {}))
            ax.legend()
        ax.set(xlabel=xlabel, ylabel="Share of samples")
        ax.set_xticks(
            np.arange(len(shares)), labels, rotation="vertical" if len(labels) > 8 else None
        )
        self.ax_, self.figure_ = ax, ax.figure
        return self
