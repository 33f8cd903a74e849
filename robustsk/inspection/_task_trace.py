"""What an attack with several tasks does, step by step."""

from __future__ import annotations

import numpy as np

from .._containers import to_array
from ._plotting import pyplot

#: What can be drawn, with the label of its y-axis.
_PANELS = {
    "values": "Objective",
    "achieved": "Success rate",
    "weights": "Weight",
    "norms": "Length of the gradient",
}


class TaskTraceDisplay:
    """Objectives, success rates, weights and gradients of each task over the steps of an attack.

    It is recommended to use :meth:`from_info` to create a display. All
    parameters are stored as attributes.

    Parameters
    ----------
    values : array-like of shape (n_samples, n_steps, n_tasks)
        Objectives of the tasks before each step.
    achieved : array-like of bool of shape (n_samples, n_steps, n_tasks)
        Whether the tasks are achieved then.
    weights : array-like of shape (n_samples, n_steps, n_tasks)
        Weights of their gradients in the step.
    norms : array-like of shape (n_samples, n_steps, n_tasks)
        Euclidean lengths of their gradients.
    norm : array-like of shape (n_samples, n_steps)
        Length of the weighted sum of the gradients.
    names : list of str, default=None
        Names of the tasks. None means numbers.

    Attributes
    ----------
    lines_ : dict of str to dict of str to matplotlib Artist
        The curves of each panel by their names in the legend: those of the
        tasks, and besides "all" and "average" in the panel "achieved" and
        "combined" in the panel "norms".
    bands_ : dict of str to matplotlib Artist
        The bands around the mean weights, by task. Empty if they are not drawn.
    ax_ : ndarray of matplotlib Axes of shape (n_panels,)
        One for each panel.
    figure_ : matplotlib Figure
        Figure containing the panels.

    See Also
    --------
    robustsk.attacks.TAMOO : With ``trace=True`` it records what is drawn.

    Notes
    -----
    Values, weights and lengths are means over the samples. A task whose
    gradient is much shorter than the others gets nearly all of the weight from
    multiple gradient descent, and is the only one whose objective goes on
    rising: it dominates.

    References
    ----------
    Bui, Le, Zhao, Tran, Montague and Phung (2023), "Generating adversarial
    examples with task oriented multi-objective optimization", TMLR, Figures 1
    and 6 to 9.

    Examples
    --------
    >>> import numpy as np
    >>> from robustsk.inspection import TaskTraceDisplay
    >>> rng = np.random.default_rng(0)
    >>> trace = rng.random((5, 20, 2))
    >>> disp = TaskTraceDisplay(
    ...     values=trace, achieved=trace > 0.5, weights=trace, norms=trace, norm=trace[..., 0],
    ...     names=["CNN", "MLP"],
    ... ).plot()
    >>> list(disp.lines_["achieved"])
    ['CNN', 'MLP', 'all', 'average']
    """

    def __init__(self, *, values, achieved, weights, norms, norm, names=None):
        self.values = values
        self.achieved = achieved
        self.weights = weights
        self.norms = norms
        self.norm = norm
        self.names = names

    @classmethod
    def from_info(cls, info, *, names=None, ax=None, **plot_kwargs):
        """Plot what an attack has recorded.

        Parameters
        ----------
        info : dict of str to ndarray
            What ``attack.generate(X, y, return_info=True)`` returns besides
            the examples, where `attack` has ``trace=True``.
        names : list of str, default=None
            Names of the tasks. None means numbers.
        ax : matplotlib Axes or array of them, default=None
            Where to draw, see :meth:`plot`.
        **plot_kwargs : dict
            Passed to :meth:`plot`.

        Returns
        -------
        TaskTraceDisplay

        Raises
        ------
        ValueError
            If there is no trace in `info`.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from sklearn.linear_model import LogisticRegression
        >>> from robustsk import TAMOO
        >>> from robustsk.inspection import TaskTraceDisplay
        >>> X, y = load_iris(return_X_y=True)
        >>> models = [LogisticRegression(C=C, max_iter=1000).fit(X, y) for C in (0.1, 10)]
        >>> attack = TAMOO(models, eps=0.5, n_steps=10, clip=None, trace=True, random_state=0)
        >>> X_adv, info = attack.generate(X, y, return_info=True)
        >>> disp = TaskTraceDisplay.from_info(info, names=["flat", "steep"], what="achieved")
        >>> len(disp.lines_["achieved"]["all"].get_ydata())
        10
        """
        pyplot(f"{cls.__name__}.from_info")
        keys = [*_PANELS, "norm"]
        missing = [f"trace_{key}" for key in keys if f"trace_{key}" not in info]
        if missing:
            raise ValueError(
                f"info has no {', '.join(missing)}; it holds {sorted(info)}. Give the attack "
                "trace=True and call its generate with return_info=True."
            )
        trace = {key: to_array(info[f"trace_{key}"]) for key in keys}
        return cls(**trace, names=names).plot(ax=ax, **plot_kwargs)

    def plot(
        self, what=("values", "achieved", "weights", "norms"), *, ax=None, band=True, **kwargs
    ):
        """Draw the curves.

        Parameters
        ----------
        what : str or sequence of str, default=("values", "achieved", "weights", "norms")
            Panels in their order: the mean objective of each task; the success
            rate of each, of all at once and on average; the mean weight of
            each; the mean length of the gradient of each and of the combined
            one, in a logarithmic scale.
        ax : matplotlib Axes or array of them, default=None
            As many as there are panels. None means a new figure with the panels
            side by side.
        band : bool, default=True
            Whether to draw a band of one standard deviation over the samples
            around the mean weights.
        **kwargs : dict
            Passed to matplotlib's `plot`.

        Returns
        -------
        TaskTraceDisplay
            The display itself, with its attributes set.
        """
        plt = pyplot(f"{type(self).__name__}.plot")
        what = [what] if isinstance(what, str) else list(what)
        if not what or not set(what) <= set(_PANELS):
            raise ValueError(f"what must be one or several of {tuple(_PANELS)}, got {what!r}.")
        trace = {key: np.asarray(getattr(self, key), dtype=float) for key in [*_PANELS, "norm"]}
        shape = trace["values"].shape
        if len(shape) != 3 or 0 in shape:
            raise ValueError(f"values must have shape (n_samples, n_steps, n_tasks), got {shape}.")
        for key, values in trace.items():
            if values.shape != (shape[:2] if key == "norm" else shape):
                raise ValueError(
                    f"{key} has shape {values.shape}, which does not go with values of {shape}."
                )
        names = [str(i) for i in range(shape[2])] if self.names is None else self.names
        if len(names) != shape[2]:
            raise ValueError(f"names holds {len(names)} names and there are {shape[2]} tasks.")
        if ax is None:
            _, ax = plt.subplots(
                1, len(what), squeeze=False, figsize=(4.8 * len(what), 3.6), layout="constrained"
            )
        axes = np.array(ax, dtype=object).ravel()
        if len(axes) != len(what):
            raise ValueError(f"ax holds {len(axes)} axes and there are {len(what)} panels.")
        steps = np.arange(1, shape[1] + 1)
        self.lines_, self.bands_ = {}, {}
        for key, panel in zip(what, axes, strict=True):
            mean = trace[key].mean(axis=0)
            curves = {str(name): mean[:, i] for i, name in enumerate(names)}
            styles = {}
            if key == "achieved":
                curves["all"] = trace[key].all(axis=2).mean(axis=0)
                curves["average"] = mean.mean(axis=1)
                styles = {"all": "-", "average": "--"}
            elif key == "norms":
                curves["combined"] = trace["norm"].mean(axis=0)
                styles = {"combined": "-"}
                panel.set_yscale("log")
            self.lines_[key] = {}
            for name, curve in curves.items():
                settings = {"label": name}
                if name in styles:
                    settings |= {"color": "black", "linestyle": styles[name]}
                (self.lines_[key][name],) = panel.plot(steps, curve, **settings | kwargs)
            if key == "weights" and band:
                std = trace[key].std(axis=0)
                for i, (name, line) in enumerate(self.lines_[key].items()):
                    self.bands_[name] = panel.fill_between(
                        steps,
                        mean[:, i] - std[:, i],
                        mean[:, i] + std[:, i],
                        color=line.get_color(),
                        alpha=0.2,
                        linewidth=0,
                    )
            panel.set(xlabel="Step", ylabel=_PANELS[key])
            panel.xaxis.get_major_locator().set_params(integer=True)
            panel.legend()
        self.ax_, self.figure_ = axes, axes[0].figure
        return self
