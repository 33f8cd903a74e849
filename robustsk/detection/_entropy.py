"""Detection by the entropy of the prediction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.exceptions import NotFittedError
from sklearn.metrics import roc_auc_score
from sklearn.utils.validation import check_is_fitted, validate_data

from .._containers import FLOATS, dataset_labels, is_dataset, to_array
from .._validation import check_sample_shape
from ..ensembles import EnsembleCCE

if TYPE_CHECKING:
    from typing_extensions import Self


class EntropyDetector(OutlierMixin, BaseEstimator):
    """Flag samples on which a classifier is undecided, as an outlier detector does.

    The score of a sample is minus the entropy of the predicted probabilities.
    An ensemble trained with ``EnsembleCCE(mode="detection")`` is taught to be
    undecided on adversarial examples, on which its members contradict each
    other.

    **This is a static detector, and no robustness.** It finds the examples of
    attackers who do not know of it. One who does evades it: the attack needs
    only to look for examples of low entropy. In the source itself
    CCE-DM keeps an accuracy of 0.2 % under AutoAttack on CIFAR-10, and SPSA,
    which sees no gradients, does far more harm to it than PGD (5.3 against
    26.1 % accuracy): its gradients are masked. Report robust accuracy from
    :func:`robustsk.evaluation.robustness_report`, never an AUC in its place.

    Parameters
    ----------
    estimator : fitted classifier, default=None
        Anything with `predict_proba`; it is not changed. In a pipeline or a
        search that clones, it must be wrapped in
        `sklearn.frozen.FrozenEstimator`. With None, `fit` needs `y` and fits
        ``EnsembleCCE(mode="detection", random_state=0)`` on the same data.
    contamination : float, default=0.05
        Share of the clean samples given to `fit` that is flagged, between 0 and
        0.5: the false alarms.
    threshold : float, default=None
        Entropy in nats above which a sample is flagged. None means that which
        `contamination` asks for. The entropy is between 0 and the logarithm of
        the number of classes.

    Attributes
    ----------
    estimator_ : classifier
        Whose predictions are looked at.
    offset_ : float
        Minus the threshold: what is subtracted from the scores.
    n_features_in_ : int
        Number of features, unless fitted on a torch Dataset.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Their names, where all are strings.

    See Also
    --------
    robustsk.ensembles.EnsembleCCE : Its mode "detection" is CCE-DM.
    robustsk.evaluation.red_flags : Looks for masked gradients.

    Notes
    -----
    Better fit it on clean samples that the classifier has not been trained on.
    On its training data a classifier is more certain than later, and more than
    `contamination` of new clean samples will be flagged.

    References
    ----------
    Bui, Le, Zhao, Montague, deVel, Abraham and Phung (2021), "Improving
    ensemble robustness by collaboratively promoting and demoting adversarial
    robustness", AAAI, Figures 2 to 4 and Table 11.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.metrics import RocCurveDisplay
    >>> from robustsk import PGD, EnsembleCCE, EntropyDetector
    >>> X, y = load_digits(return_X_y=True)
    >>> X = X / 16
    >>> clf = EnsembleCCE(mode="detection", max_epochs=5, adversary__n_steps=3, random_state=0)
    >>> clf = clf.fit(X[:1000], y[:1000])
    >>> detector = EntropyDetector(clf, contamination=0.1).fit(X[1000:1300])
    >>> int((detector.predict(X[1000:1300]) == -1).sum())
    30
    >>> attack = PGD(clf, eps=0.1, clip=(0, 1), random_state=0)
    >>> X_adv = attack.generate(X[1300:1400], y[1300:1400])
    >>> detector.roc_auc(X[1300:1400], X_adv) > 0.8
    True

    The curve, where adversarial examples are the positive class:

    >>> is_adversarial = np.repeat([0, 1], 100)
    >>> entropy = -detector.score_samples(np.concatenate([X[1300:1400], X_adv]))
    >>> disp = RocCurveDisplay.from_predictions(is_adversarial, entropy, name="PGD")
    """

    def __init__(
        self, estimator: Any = None, *, contamination: float = 0.05, threshold: float | None = None
    ):
        self.estimator = estimator
        self.contamination = contamination
        self.threshold = threshold

    def fit(self, X: Any, y: ArrayLike | None = None) -> Self:
        """Set the threshold on clean samples, having fitted an ensemble if there is none.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...) or torch Dataset
            Clean samples.
        y : array-like of shape (n_samples,), default=None
            Labels. Only used, and needed, where `estimator` is None; not if `X`
            is a Dataset that yields them.

        Returns
        -------
        self

        Raises
        ------
        NotFittedError
            If `estimator` is not fitted.
        TypeError
            If `estimator` has no `predict_proba`.
        ValueError
            If `y` is needed and missing, or a parameter is out of its range.
        """
        self._check_parameters()
        self._check_samples(X, reset=True)
        if self.estimator is None:
            if y is None and is_dataset(X):
                y = dataset_labels(X)
            if y is None:
                raise ValueError(
                    "EntropyDetector requires y to be passed, but the target y is None: without "
                    "`estimator` an EnsembleCCE(mode='detection') is fitted on (X, y). Pass y, or "
                    "a fitted classifier as `estimator`."
                )
            self.estimator_ = EnsembleCCE(mode="detection", random_state=0).fit(X, y)
        else:
            self.estimator_ = self.estimator
        score = self._score(X)
        if self.threshold is None:
            self.offset_ = float(np.percentile(score, 100.0 * self.contamination))
        else:
            self.offset_ = -float(self.threshold)
        return self

    def score_samples(self, X: Any) -> np.ndarray:
        """Return how decided the classifier is.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...) or torch Dataset

        Returns
        -------
        ndarray of shape (n_samples,)
            Minus the entropy of the prediction in nats; the lower, the more
            suspicious.
        """
        check_is_fitted(self, "offset_")
        self._check_samples(X, reset=False)
        return self._score(X)

    def decision_function(self, X: Any) -> np.ndarray:
        """Return by how much samples are on the right side of the threshold.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...) or torch Dataset

        Returns
        -------
        ndarray of shape (n_samples,)
            ``score_samples(X) - offset_``; negative means suspicious.
        """
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> np.ndarray:
        """Tell normal from suspicious samples.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...) or torch Dataset

        Returns
        -------
        ndarray of int of shape (n_samples,)
            1 for normal, -1 for suspicious.
        """
        return np.where(self.decision_function(X) >= 0, 1, -1)

    def fit_predict(self, X: Any, y: ArrayLike | None = None) -> np.ndarray:
        """Fit and tell normal from suspicious samples.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...) or torch Dataset
        y : array-like of shape (n_samples,), default=None
            As in `fit`.

        Returns
        -------
        ndarray of int of shape (n_samples,)
            1 for normal, -1 for suspicious.
        """
        return self.fit(X, y).predict(X)

    def roc_auc(self, X_clean: Any, X_adv: Any) -> float:
        """Return the probability that an adversarial example has the higher entropy.

        Parameters
        ----------
        X_clean : array-like of shape (n_clean, ...) or torch Dataset
        X_adv : array-like of shape (n_adv, ...) or torch Dataset
            Made without knowledge of the detector or, to learn more, with it.

        Returns
        -------
        float
            Area under the ROC curve with adversarial examples as the positive
            class: 1 if the entropy tells all of them apart, 0.5 if it tells
            nothing. The threshold plays no part in it.
        """
        clean, adversarial = self.score_samples(X_clean), self.score_samples(X_adv)
        is_clean = np.repeat([1, 0], [len(clean), len(adversarial)])
        return float(roc_auc_score(is_clean, np.concatenate([clean, adversarial])))

    def _check_parameters(self):
        if self.threshold is None:
            if not _is_number(self.contamination) or not 0.0 < self.contamination <= 0.5:
                raise ValueError(
                    "contamination must be a number in (0, 0.5], the share of clean samples that "
                    f"is flagged, got {self.contamination!r}."
                )
        elif not _is_number(self.threshold) or not self.threshold >= 0.0:
            raise ValueError(
                "threshold must be an entropy in nats, a number that is not negative, got "
                f"{self.threshold!r}."
            )
        if self.estimator is not None and not hasattr(self.estimator, "predict_proba"):
            raise TypeError(
                "estimator must be a fitted classifier with predict_proba, whose entropy is the "
                f"score; {type(self.estimator).__name__} has none."
            )

    def _check_samples(self, X, reset):
        # what is checked is not what the classifier gets: it may want names or a Dataset
        if is_dataset(X):
            if reset:
                vars(self).pop("n_features_in_", None)
                vars(self).pop("feature_names_in_", None)
            return
        # without n_features_in_ this has been fitted on a Dataset
        if reset or hasattr(self, "n_features_in_"):
            values = validate_data(self, to_array(X), dtype=FLOATS, allow_nd=True, reset=reset)
            if reset:
                self._sample_shape = values.shape[1:]
            check_sample_shape(values.shape[1:], self._sample_shape, self)

    def _score(self, X):
        try:
            p = self.estimator_.predict_proba(X)
        except NotFittedError as error:
            raise NotFittedError(
                f"The classifier of this EntropyDetector, {type(self.estimator_).__name__}, is not "
                "fitted. Fit it before; and wrap it in sklearn.frozen.FrozenEstimator where the "
                "detector is cloned, as in a cross-validation."
            ) from error
        p = np.asarray(p, dtype=np.float64)
        if p.ndim != 2:
            raise ValueError(
                "predict_proba must return an array of shape (n_samples, n_classes), got one of "
                f"shape {p.shape}: classifiers with several outputs have no single entropy."
            )
        return (p * np.log(np.where(p > 0, p, 1.0))).sum(axis=1)


def _is_number(value):
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
