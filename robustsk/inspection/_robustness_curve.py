"""Accuracy against the size of the perturbation."""

from __future__ import annotations

import copy

import numpy as np
from joblib import effective_n_jobs
from sklearn.utils import gen_even_slices
from sklearn.utils.parallel import Parallel, delayed
from sklearn.utils.validation import check_consistent_length, column_or_1d

from .._containers import check_floats, dataset_labels, is_dataset, to_array
from .._validation import check_labels, learn_bounds, warn_about_radius
from ..attacks import PGD
from ..attacks.base import check_attack
from ..attacks.threat import check_norm
from ..metrics import clopper_pearson_interval
from ..metrics._craft import prepared
from ..metrics._scores import play
from ..victims._columns import TableRows
from ..victims.resolve import as_victim
from ._plotting import pyplot


class RobustnessCurveDisplay:
    """Accuracy under attack against the size of the perturbation.

    It is recommended to use :meth:`from_estimator` or :meth:`from_predictions`
    to create a display. All parameters are stored as attributes.

    Parameters
    ----------
    eps : ndarray of shape (n_eps,)
        Perturbation sizes in ascending order.
    accuracy : ndarray of shape (n_eps,)
        Accuracy under attack at each of them.
    accuracy_low, accuracy_high : ndarray of shape (n_eps,), default=None
        Ends of the confidence intervals. Without both, no band is drawn.
    estimator_name : str, default=None
        Name in the legend. None means no legend.
    norm : {inf, 2, 1, "linf", "l2", "l1"}, default=None
        Norm in which `eps` is measured, shown in the x-label.

    Attributes
    ----------
    average : float
        Mean of the accuracies, by which methods are compared over a sweep.
    line_ : matplotlib Artist
        The curve.
    band_ : matplotlib Artist or None
        The confidence band.
    ax_ : matplotlib Axes
        Axes with the curve.
    figure_ : matplotlib Figure
        Figure containing the curve.

    See Also
    --------
    robustsk.metrics.robust_accuracy : One point of the curve.

    Examples
    --------
    >>> from robustsk import RobustnessCurveDisplay
    >>> disp = RobustnessCurveDisplay(
    ...     eps=[0.0, 0.1, 0.2], accuracy=[0.98, 0.9, 0.6], estimator_name="MLP", norm="linf"
    ... )
    >>> disp.plot().ax_.get_xlabel()
    'Perturbation size eps (linf norm)'
    """

    def __init__(
        self,
        *,
        eps,
        accuracy,
        accuracy_low=None,
        accuracy_high=None,
        estimator_name=None,
        norm=None,
    ):
        self.eps = eps
        self.accuracy = accuracy
        self.accuracy_low = accuracy_low
        self.accuracy_high = accuracy_high
        self.estimator_name = estimator_name
        self.norm = norm

    @property
    def average(self):
        """Mean of the accuracies over the perturbation sizes."""
        return float(np.mean(self.accuracy))

    @classmethod
    def from_estimator(
        cls,
        estimator,
        X,
        y,
        *,
        eps_range=None,
        attack=None,
        confidence=0.95,
        name=None,
        ax=None,
        n_jobs=None,
        **plot_kwargs,
    ):
        """Attack an estimator at several perturbation sizes and plot the outcome.

        Parameters
        ----------
        estimator : fitted estimator or torch.nn.Module
            What is attacked; see :func:`robustsk.metrics.score_adversarial`.
        X : array-like of shape (n_samples, ...) or torch Dataset
            Test data, in the units of `eps_range`.
        y : array-like of shape (n_samples,)
            True labels. May be None where `X` is a Dataset that yields them.
        eps_range : array-like of shape (n_eps,), default=None
            Perturbation sizes, not negative and in ascending order. None means
            nine values from 0 to twice the `eps` of the attack.
        attack : attack, default=None
            Its `eps` is replaced by each of the values; where it is an array,
            the array is rescaled so that the value is its largest entry. All
            else stays: a `step_size` that was given explicitly does **not**
            scale with `eps`, so better leave it at None. The valid range is
            found as in :func:`robustsk.metrics.adversarial_outcome`. None
            means ``estimator.default_attack()`` where there is such a thing,
            and ``PGD(n_steps=20, n_restarts=2, random_state=0)`` otherwise.
        confidence : float, default=0.95
            Coverage of the Clopper-Pearson interval at each perturbation size.
        name : str, default=None
            Name in the legend. None means that of the class.
        ax : matplotlib Axes, default=None
            Where to draw. None means a new figure.
        n_jobs : int, default=None
            Number of processes among which the samples are divided. The result
            does not depend on it if the attack has an int as `random_state`.
        **plot_kwargs : dict
            Passed to matplotlib's `plot`.

        Returns
        -------
        RobustnessCurveDisplay

        Notes
        -----
        What fools the model within a small ball lies within all larger balls.
        So only samples that withstood all smaller perturbations are attacked
        at the next size. This saves time and makes the curve monotone: it
        never suggests that a model becomes more robust to larger attacks.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from sklearn.linear_model import LogisticRegression
        >>> from robustsk import RobustnessCurveDisplay
        >>> X, y = load_iris(return_X_y=True)
        >>> clf = LogisticRegression(max_iter=1000).fit(X, y)
        >>> disp = RobustnessCurveDisplay.from_estimator(clf, X, y, eps_range=[0, 0.25, 0.5, 1])
        >>> bool(disp.accuracy[0] == clf.score(X, y))
        True

        A second model on the same axes:

        >>> weak = LogisticRegression(C=0.01).fit(X, y)
        >>> disp2 = RobustnessCurveDisplay.from_estimator(
        ...     weak, X, y, eps_range=[0, 0.25, 0.5, 1], name="C=0.01", ax=disp.ax_
        ... )
        >>> [text.get_text() for text in disp.ax_.get_legend().get_texts()]
        ['LogisticRegression', 'C=0.01']
        """
        pyplot(f"{cls.__name__}.from_estimator")
        attack = default_attack(estimator) if attack is None else attack
        check_attack(attack)
        attack = attack._resolved()._in_order(X, estimator)
        clopper_pearson_interval(0, 1, confidence)  # complains before the work, not after it
        if is_dataset(X):
            y = dataset_labels(X) if y is None else y
            X = to_array(X)
        rows = attack._table_rows(X)
        if rows is None:
            values, columns = check_floats(X), None
        else:
            X = values = rows
            columns, attack = rows.space.columns_, attack._with(space=rows.space)
        victim = as_victim(
            estimator, attack=type(attack).__name__, access=attack.access, columns=columns
        )
        y = column_or_1d(check_labels(y))
        check_consistent_length(values, y)
        norm = check_norm(attack.norm, attack.supported_norms)
        own_eps = attack._stated_eps(norm, values.shape[1:])
        eps = _check_eps_range(eps_range, np.max(own_eps))
        if np.ndim(own_eps) and np.max(own_eps) == 0:
            raise ValueError("The eps of the attack is zero for all features: nothing to rescale.")
        if columns is None and not hasattr(X, "iloc"):
            X = np.asarray(to_array(X))
        # one range for all: that of the survivors alone would shrink
        bounds = getattr(attack, "clip_bounds_", victim.bounds)
        if bounds is None and columns is None:
            bounds = learn_bounds(values, victim.is_image)
        if eps_range is None and not attack.minimal and columns is None:
            own = attack._effective_eps(norm, values.shape[1:])
            warn_about_radius(own, norm, *attack._box(bounds), values.shape[1:], stacklevel=3)
        # neither needed nor to be copied
        attack = copy.copy(attack).set_params(estimator=None)
        if columns is None:
            attack.clip_bounds_ = bounds

        n_chunks = min(effective_n_jobs(n_jobs), len(y))
        chunks = [np.arange(len(y))[rows] for rows in gen_even_slices(len(y), n_chunks)]
        robust = Parallel(n_jobs=n_jobs)(
            delayed(_withstood)(
                estimator,
                _take(X, rows),
                y[rows],
                _of_rows(attack, rows),
                eps,
                own_eps,
            )
            for rows in chunks
        )
        return cls._from_robust(
            np.concatenate(robust, axis=1),
            eps,
            norm=norm,
            confidence=confidence,
            name=type(estimator).__name__ if name is None else name,
        ).plot(ax=ax, **plot_kwargs)

    @classmethod
    def from_predictions(
        cls,
        y_true,
        y_pred_adv,
        *,
        eps,
        confidence=0.95,
        norm=None,
        name=None,
        ax=None,
        **plot_kwargs,
    ):
        """Plot the curve given the predictions on adversarial examples.

        Parameters
        ----------
        y_true : array-like of shape (n_samples,)
            True labels.
        y_pred_adv : array-like of shape (n_eps, n_samples)
            Predictions on the adversarial examples of each perturbation size.
            A sample that is misclassified at one size counts as misclassified
            at all larger ones, since its adversarial example is allowed there.
        eps : array-like of shape (n_eps,)
            Perturbation sizes, not negative and in ascending order.
        confidence : float, default=0.95
            Coverage of the Clopper-Pearson interval at each perturbation size.
        norm : {inf, 2, 1, "linf", "l2", "l1"}, default=None
            Norm in which `eps` is measured, shown in the x-label.
        name : str, default=None
            Name in the legend. None means "Classifier".
        ax : matplotlib Axes, default=None
            Where to draw. None means a new figure.
        **plot_kwargs : dict
            Passed to matplotlib's `plot`.

        Returns
        -------
        RobustnessCurveDisplay

        Examples
        --------
        >>> from robustsk import RobustnessCurveDisplay
        >>> y_true = ["cat", "dog", "dog", "cat"]
        >>> y_pred_adv = [["cat", "dog", "dog", "dog"], ["cat", "cat", "dog", "cat"]]
        >>> disp = RobustnessCurveDisplay.from_predictions(y_true, y_pred_adv, eps=[0, 0.1])
        >>> disp.accuracy.tolist()
        [0.75, 0.5]
        """
        pyplot(f"{cls.__name__}.from_predictions")
        y_true = column_or_1d(check_labels(y_true))
        y_pred_adv = np.asarray(to_array(y_pred_adv))
        eps = _check_eps_range(eps, None, "eps")
        if y_pred_adv.shape != (len(eps), len(y_true)):
            raise ValueError(
                f"y_pred_adv must have shape (n_eps, n_samples) = {(len(eps), len(y_true))}, "
                f"got {y_pred_adv.shape}."
            )
        robust = np.logical_and.accumulate(y_pred_adv == y_true, axis=0)
        return cls._from_robust(
            robust,
            eps,
            norm=norm,
            confidence=confidence,
            name="Classifier" if name is None else name,
        ).plot(ax=ax, **plot_kwargs)

    @classmethod
    def _from_robust(cls, robust, eps, *, norm, confidence, name):
        n_samples = robust.shape[1]
        intervals = [
            clopper_pearson_interval(int(k), n_samples, confidence) for k in robust.sum(axis=1)
        ]
        low, high = np.array(intervals).T
        return cls(
            eps=eps,
            accuracy=robust.mean(axis=1),
            accuracy_low=low,
            accuracy_high=high,
            estimator_name=name,
            norm=norm,
        )

    def plot(self, ax=None, *, name=None, **kwargs):
        """Draw the curve.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw. None means a new figure.
        name : str, default=None
            Name in the legend. None means `estimator_name`.
        **kwargs : dict
            Passed to matplotlib's `plot`.

        Returns
        -------
        RobustnessCurveDisplay
            The display itself, with its attributes set.
        """
        plt = pyplot(f"{type(self).__name__}.plot")
        if ax is None:
            _, ax = plt.subplots()
        name = self.estimator_name if name is None else name
        kwargs = {"marker": "o", **({} if name is None else {"label": name}), **kwargs}
        (self.line_,) = ax.plot(self.eps, self.accuracy, **kwargs)
        self.band_ = None
        if self.accuracy_low is not None and self.accuracy_high is not None:
            self.band_ = ax.fill_between(
                self.eps,
                self.accuracy_low,
                self.accuracy_high,
                color=self.line_.get_color(),
                alpha=0.2,
                linewidth=0,
            )
        unit = "" if self.norm is None else f" ({_norm_name(self.norm)} norm)"
        ax.set(
            xlabel=f"Perturbation size eps{unit}", ylabel="Accuracy under attack", ylim=(0.0, 1.0)
        )
        if kwargs.get("label") is not None:
            ax.legend()
        self.ax_, self.figure_ = ax, ax.figure
        return self


def _norm_name(norm):
    return f"l{check_norm(norm, (np.inf, 2.0, 1.0, 0.0)):g}"


def default_attack(estimator):
    estimator = getattr(estimator, "best_estimator_", estimator)
    if hasattr(estimator, "default_attack"):
        return estimator.default_attack()
    return PGD(n_steps=20, n_restarts=2, random_state=0)


def _check_eps_range(eps, own, name="eps_range"):
    """Return the perturbation sizes as an array, nine up to twice `own` where None."""
    if eps is None and own is not None:
        if own == 0:
            raise ValueError("The attack has eps=0: pass eps_range to say what to plot.")
        return np.linspace(0.0, 2.0 * own, 9)
    try:
        values = np.asarray(eps, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must hold numbers, got {eps!r}.") from error
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(
            f"{name} must be one-dimensional and not empty, such as [0, 0.1, 0.2]; got an array "
            f"of shape {values.shape}."
        )
    if not np.isfinite(values).all() or (values < 0).any():
        raise ValueError(f"{name} must be finite and not negative, got {values.tolist()}.")
    if (np.diff(values) < 0).any():
        raise ValueError(f"{name} must be sorted in ascending order, got {values.tolist()}.")
    return values


def _take(X, rows):
    return X.iloc[rows] if hasattr(X, "iloc") else X[rows]


def _of_rows(attack, rows):
    """Return the attack for some of the samples, where it has one target for each."""
    if np.ndim(attack.target) != 1:
        return attack
    return attack._with(target=np.asarray(attack.target)[rows])


def _withstood(estimator, X, y, attack, eps, own_eps):
    """Say which samples withstand which perturbation sizes, shape (n_eps, n_samples)."""
    # every size starts from the same random state, and the user's own is not moved
    attack = attack._with(random_state=copy.deepcopy(attack.random_state))
    values = X if isinstance(X, TableRows) else check_floats(X)
    run = prepared(attack, estimator, values, y, X, is_meant=False)
    robust = np.zeros((len(eps), len(y)), dtype=bool)
    left = np.arange(len(y))
    # who is right without an attack comes out of the first one
    first = min(np.count_nonzero(eps == 0), len(eps) - 1)
    for i in range(first, len(eps)):
        if len(left) == 0:
            break
        size = float(eps[i]) if np.ndim(own_eps) == 0 else eps[i] * (own_eps / own_eps.max())
        outcome = play(run.take(left).resized(size), estimator, _take(X, left), y[left])
        if i == first:
            robust[:first, left] = outcome.correct
        left = left[outcome.robust]
        robust[i, left] = True
    return robust
