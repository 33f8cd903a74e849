"""How sure an accuracy is."""

from __future__ import annotations

from dataclasses import dataclass

from scipy.stats import binomtest


@dataclass(frozen=True)
class RobustAccuracy:
    """An accuracy under attack with its confidence interval.

    Attributes
    ----------
    accuracy, low, high : float
        In [0, 1].
    confidence : float
    n_samples : int
    """

    accuracy: float
    low: float
    high: float
    confidence: float
    n_samples: int

    def __str__(self):
        return (
            f"{self.accuracy:.3f} ({100 * self.confidence:g}% interval {self.low:.3f} to "
            f"{self.high:.3f}, n={self.n_samples})"
        )


def clopper_pearson_interval(
    n_successes: int, n_trials: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Exact confidence interval of a proportion.

    Parameters
    ----------
    n_successes, n_trials : int
    confidence : float, default=0.95
        Coverage, at least, in (0, 1).

    Returns
    -------
    tuple of (float, float)

    References
    ----------
    Clopper and Pearson (1934), "The use of confidence or fiducial limits
    illustrated in the case of the binomial".

    Examples
    --------
    >>> from robustsk.metrics import clopper_pearson_interval
    >>> low, high = clopper_pearson_interval(0, 10)
    >>> low, round(high, 4)
    (0.0, 0.3085)
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence!r}.")
    if n_trials < 1 or not 0 <= n_successes <= n_trials:
        raise ValueError(f"{n_successes} successes in {n_trials} trials is not possible.")
    interval = binomtest(n_successes, n_trials).proportion_ci(confidence, method="exact")
    return float(interval.low), float(interval.high)
