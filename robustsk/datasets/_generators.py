"""Synthetic problems for tests, examples and the study of robustness."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
from sklearn.utils import check_random_state, check_scalar

_MAX_ORIENTATIONS = 6
_LOWEST_FREQUENCY = 2

#: What the purpose of a loan, and how somebody lives, add to the risk of `make_loans`.
_PURPOSES = {"car": -0.5, "debt": 0.4, "house": -0.3, "other": 0.2}
_HOUSING = {"own": -0.4, "rent": 0.4, "loan": 0.0}


def make_striped_images(
    n_samples: int = 200,
    *,
    n_classes: int = 3,
    image_size: int = 8,
    n_channels: int = 1,
    noise: float = 0.1,
    random_state: int | np.random.RandomState | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw images of stripes whose class is the direction and width of the stripes.

    A small convolutional network learns the problem within seconds on one CPU core. A linear
    classifier cannot, because the position of the stripes is random.

    Parameters
    ----------
    n_samples : int, default=200
        Number of images. The classes are balanced: their sizes differ by one at most.
    n_classes : int, default=3
        Number of classes, at least 2. Up to six classes differ in the direction of the stripes
        alone, at two periods per image width; more classes add narrower stripes.
    image_size : int, default=8
        Height and width of the images, at least 5. More than six classes need images large enough
        to show the narrowest stripes.
    n_channels : int, default=1
        Number of channels. The stripes are the same in all channels, at different contrasts.
    noise : float, default=0.1
        Standard deviation of the Gaussian noise added to every pixel. The sum is clipped to [0, 1].
    random_state : int, RandomState instance or None, default=None
        Pass an int for the same images at every call.

    Returns
    -------
    X : ndarray of float32, shape (n_samples, n_channels, image_size, image_size)
        The images, with values in [0, 1].
    y : ndarray of int64, shape (n_samples,)
        The classes, 0 to ``n_classes - 1``, in random order.

    Raises
    ------
    ValueError
        If a parameter is out of its range, or the images are too small for so many classes.

    Examples
    --------
    >>> from robustsk.datasets import make_striped_images
    >>> X, y = make_striped_images(60, n_classes=4, random_state=0)
    >>> X.shape, X.dtype, y.dtype
    ((60, 1, 8, 8), dtype('float32'), dtype('int64'))
    >>> [int((y == label).sum()) for label in range(4)]
    [15, 15, 15, 15]
    """
    check_scalar(n_samples, "n_samples", Integral, min_val=1)
    check_scalar(n_classes, "n_classes", Integral, min_val=2)
    check_scalar(image_size, "image_size", Integral, min_val=5)
    check_scalar(n_channels, "n_channels", Integral, min_val=1)
    check_scalar(noise, "noise", Real, min_val=0)

    n_frequencies = -(-n_classes // _MAX_ORIENTATIONS)
    n_orientations = -(-n_classes // n_frequencies)
    highest = _LOWEST_FREQUENCY + n_frequencies - 1
    # At half a period per pixel, stripes vanish for some positions: stay strictly below.
    if 2 * highest >= image_size:
        raise ValueError(
            f"n_classes={n_classes} needs stripes with up to {highest} periods per image width, "
            f"which images of {image_size} x {image_size} pixels cannot show; use "
            f"image_size={2 * highest + 1} or more, or fewer classes."
        )

    rng = check_random_state(random_state)
    y = rng.permutation(np.arange(n_samples, dtype=np.int64) % n_classes)
    angle = np.pi * (y % n_orientations) / n_orientations
    frequency = _LOWEST_FREQUENCY + y // n_orientations
    phase = rng.uniform(0, 2 * np.pi, size=n_samples)
    contrast = rng.uniform(0.6, 1.0, size=(n_samples, n_channels, 1, 1))

    rows, columns = np.meshgrid(np.arange(image_size), np.arange(image_size), indexing="ij")
    angle, frequency, phase = (values[:, None, None] for values in (angle, frequency, phase))
    position = columns * np.cos(angle) + rows * np.sin(angle)
    stripes = np.sin(2 * np.pi * frequency * position / image_size + phase)
    X = 0.5 + 0.5 * contrast * stripes[:, None]
    X += noise * rng.standard_normal(X.shape)
    return np.clip(X, 0, 1).astype(np.float32), y


def make_concentric_spheres(
    n_samples: int = 200,
    *,
    n_features: int = 20,
    radii: Sequence[float] = (1.0, 1.3),
    noise: float = 0.0,
    random_state: int | np.random.RandomState | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw points uniformly from concentric spheres, one sphere per class.

    The problem of "Adversarial Spheres" [1]_: a sample is never closer to the other class than the
    difference of the radii, yet in high dimension a classifier with a small error has errors
    within a far smaller distance of most samples.

    Parameters
    ----------
    n_samples : int, default=200
        Number of points. The classes are balanced: their sizes differ by one at most.
    n_features : int, default=20
        Dimension of the space, at least 2. The paper uses 500.
    radii : sequence of float, default=(1.0, 1.3)
        Radii of the spheres, at least two, all different and positive; the class of a point is the
        position of its radius in this sequence.
    noise : float, default=0.0
        Standard deviation of the Gaussian noise added to every feature. With 0 every point lies on
        its sphere, as in the paper.
    random_state : int, RandomState instance or None, default=None
        Pass an int for the same points at every call.

    Returns
    -------
    X : ndarray of float64, shape (n_samples, n_features)
        The points.
    y : ndarray of int64, shape (n_samples,)
        The classes, 0 to ``len(radii) - 1``, in random order.

    Raises
    ------
    ValueError
        If a parameter is out of its range.

    Notes
    -----
    The distance of a noise-free sample to the nearest point of the other sphere is exactly the
    difference of the radii, 0.3 by default; the largest margin a classifier can have for all
    samples is half of it.

    References
    ----------
    .. [1] J. Gilmer, L. Metz, F. Faghri, S. S. Schoenholz, M. Raghu, M. Wattenberg and
       I. Goodfellow, "Adversarial Spheres", ICLR Workshop, 2018, arXiv:1801.02774.

    Examples
    --------
    >>> import numpy as np
    >>> from robustsk.datasets import make_concentric_spheres
    >>> X, y = make_concentric_spheres(100, n_features=50, random_state=0)
    >>> X.shape, y.dtype
    ((100, 50), dtype('int64'))
    >>> bool(np.allclose(np.linalg.norm(X[y == 1], axis=1), 1.3))
    True
    """
    check_scalar(n_samples, "n_samples", Integral, min_val=1)
    check_scalar(n_features, "n_features", Integral, min_val=2)
    check_scalar(noise, "noise", Real, min_val=0)
    radii = np.asarray(radii, dtype=np.float64)
    if radii.ndim != 1 or len(np.unique(radii)) != len(radii) or len(radii) < 2:
        raise ValueError(f"radii must be at least two different numbers, got {radii.tolist()!r}.")
    if not (np.isfinite(radii).all() and (radii > 0).all()):
        raise ValueError(f"radii must be positive and finite, got {radii.tolist()!r}.")

    rng = check_random_state(random_state)
    y = rng.permutation(np.arange(n_samples, dtype=np.int64) % len(radii))
    # A Gaussian vector has no preferred direction, so its direction is uniform on the sphere.
    X = rng.standard_normal((n_samples, n_features))
    X *= (radii[y] / np.linalg.norm(X, axis=1))[:, None]
    if noise > 0:
        X += noise * rng.standard_normal(X.shape)
    return X, y


def make_robust_nonrobust(
    n_samples: int = 200,
    *,
    n_robust: int = 1,
    n_nonrobust: int = 20,
    p: float = 0.95,
    eta: float | None = None,
    random_state: int | np.random.RandomState | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    r"""Draw the problem in which robustness is at odds with accuracy.

    The distribution of Tsipras et al. [1]_: one feature that is right with probability `p` and
    hard to change, and many features that are each almost useless, together almost perfect, and
    easy to change.

    Parameters
    ----------
    n_samples : int, default=200
        Number of samples.
    n_robust : int, default=1
        Number of robust features, at least 1, drawn independently of each other given the label.
        The paper has one.
    n_nonrobust : int, default=20
        Number `d` of non-robust features, at least 1.
    p : float, default=0.95
        Probability with which a robust feature equals the label, in [0, 1]; the paper takes
        0.5 or more.
    eta : float, default=None
        Mean of a non-robust feature times the label, 0 or more. With None, ``3 / sqrt(d)``: the
        mean of the non-robust features then has the sign of the label with probability 0.9987,
        whatever their number.
    random_state : int, RandomState instance or None, default=None
        Pass an int for the same samples at every call.

    Returns
    -------
    X : ndarray of float64, shape (n_samples, n_robust + n_nonrobust)
        The samples, robust features first.
    y : ndarray of int64, shape (n_samples,)
        The labels, -1 or +1.

    Raises
    ------
    ValueError
        If a parameter is out of its range.

    Notes
    -----
    Independently for each sample,

    .. math::

        y \sim \mathrm{Uniform}\{-1, +1\}, \qquad
        x_1 = \begin{cases} +y & \text{with probability } p \\
                            -y & \text{with probability } 1 - p, \end{cases} \qquad
        x_2, \ldots, x_{d+1} \sim \mathcal{N}(\eta y, 1).

    An adversary who may change each feature by :math:`\varepsilon = 2 \eta` turns the non-robust
    features of one class into those of the other. Theorem 2.1 of the paper: with one robust
    feature, a classifier of accuracy :math:`1 - \delta` has accuracy at most
    :math:`\frac{p}{1 - p} \delta` against an :math:`\ell_\infty` adversary with
    :math:`\varepsilon \ge 2 \eta`. The classifier that looks at :math:`x_1` alone has accuracy `p`
    with and without an adversary of :math:`\varepsilon < 1`.

    References
    ----------
    .. [1] D. Tsipras, S. Santurkar, L. Engstrom, A. Turner and A. Madry, "Robustness May Be at
       Odds with Accuracy", ICLR, 2019, arXiv:1805.12152.

    Examples
    --------
    >>> import numpy as np
    >>> from robustsk.datasets import make_robust_nonrobust
    >>> X, y = make_robust_nonrobust(5000, n_nonrobust=100, random_state=0)
    >>> robust = np.mean(np.sign(X[:, 0]) == y)
    >>> nonrobust = np.mean(np.sign(X[:, 1:].mean(axis=1)) == y)
    >>> print(f"{robust:.2f} {nonrobust:.3f}")
    0.95 0.999
    """
    check_scalar(n_samples, "n_samples", Integral, min_val=1)
    check_scalar(n_robust, "n_robust", Integral, min_val=1)
    check_scalar(n_nonrobust, "n_nonrobust", Integral, min_val=1)
    check_scalar(p, "p", Real, min_val=0, max_val=1)
    if eta is None:
        eta = 3 / np.sqrt(n_nonrobust)
    check_scalar(eta, "eta", Real, min_val=0)

    rng = check_random_state(random_state)
    y = 2 * rng.randint(2, size=n_samples).astype(np.int64) - 1
    X = np.empty((n_samples, n_robust + n_nonrobust))
    agrees = rng.uniform(size=(n_samples, n_robust)) < p
    X[:, :n_robust] = np.where(agrees, y[:, None], -y[:, None])
    X[:, n_robust:] = eta * y[:, None] + rng.standard_normal((n_samples, n_nonrobust))
    return X, y


def make_three_clusters(
    n_samples: int = 1000,
    *,
    shares: tuple[float, float, float] = (0.1, 0.5, 0.4),
    variance: float = 0.5,
    random_state: int | np.random.RandomState | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    r"""Draw a small class beside a large one in two parts, in the plane.

    The toy problem of Bui et al. [1]_: class 0 is one cluster at (-2, 0), class 1 consists of two
    at (2, 0) and (6, 0), and only the first of them is within reach of an adversary.

    Parameters
    ----------
    n_samples : int, default=1000
        Number of samples.
    shares : tuple of 3 float, default=(0.1, 0.5, 0.4)
        Shares of the clusters, from left to right; they must sum to 1.
    variance : float, default=0.5
        Variance of each coordinate within a cluster.
    random_state : int, RandomState instance or None, default=None
        Pass an int for the same samples at every call.

    Returns
    -------
    X : ndarray of float64, shape (n_samples, 2)
        The samples.
    y : ndarray of int64, shape (n_samples,)
        The labels, 0 or 1.

    Raises
    ------
    ValueError
        If a parameter is out of its range.

    Notes
    -----
    Always answering 1 is right for nine samples in ten, whatever an adversary does: judge the
    classes one by one.

    References
    ----------
    .. [1] A. T. Bui, T. Le, Q. Tran, H. Zhao and D. Phung, "A unified Wasserstein distributional
       robustness framework for adversarial training", ICLR, 2022, Appendix E.

    Examples
    --------
    >>> import numpy as np
    >>> from robustsk.datasets import make_three_clusters
    >>> X, y = make_three_clusters(1000, random_state=0)
    >>> np.bincount(y)
    array([100, 900])
    """
    check_scalar(n_samples, "n_samples", Integral, min_val=1)
    check_scalar(variance, "variance", Real, min_val=0)
    shares = np.asarray(shares, dtype=float)
    if shares.shape != (3,) or (shares < 0).any() or not np.isclose(shares.sum(), 1):
        raise ValueError(f"shares must be three numbers of at least 0 that sum to 1, got {shares}.")
    rng = check_random_state(random_state)
    cluster = np.repeat(
        [0, 1, 2], np.diff(np.round(np.cumsum([0, *shares]) * n_samples)).astype(int)
    )
    cluster = rng.permutation(cluster)
    X = np.sqrt(variance) * rng.standard_normal((n_samples, 2))
    X[:, 0] += np.array([-2.0, 2.0, 6.0])[cluster]
    return X, (cluster > 0).astype(np.int64)


def make_loans(
    n_samples: int = 2400,
    *,
    random_state: int | np.random.RandomState | None = None,
) -> tuple[Any, np.ndarray]:
    r"""Draw a table of loans with numbers, counts, categories and a rule that holds in every row.

    A table such as a bank has: columns of several units and types, a column that nobody can change
    (`age`), one that only grows (`n_total`), and two that are tied to each other: nobody has more
    open accounts than accounts, ``n_open <= n_total``.

    Parameters
    ----------
    n_samples : int, default=2400
        Number of loans.
    random_state : int, RandomState instance or None, default=None
        Pass an int for the same loans at every call.

    Returns
    -------
    X : DataFrame of shape (n_samples, 7)
        The columns are

        ``age``
            Years, int64, 18 to 75.
        ``income``
            A year, float64, with two decimals; the median is about 33,000.
        ``amount``
            What is borrowed, float64, with two decimals; 1000 to 35,000.
        ``n_total``, ``n_open``
            Number of accounts, and of those that are open, int64; 1 to 29, and 0 to ``n_total``.
        ``purpose``
            String: "car", "debt", "house" or "other".
        ``housing``
            String: "own", "rent" or "loan".
    y : ndarray of int64, shape (n_samples,)
        1 where the loan is not paid back, for about six loans in ten.

    Raises
    ------
    ImportError
        If pandas is not installed.
    ValueError
        If `n_samples` is less than 1.

    Notes
    -----
    A loan is not paid back where the sum of

    .. math::

        1.2 \left(2 \, \frac{\text{amount}}{\text{income}} - 1\right)
        + 0.05 \, (\text{n\_open} - 5) - 0.02 \, (\text{age} - 45)

    and of what purpose (car -0.5, debt 0.4, house -0.3, other 0.2) and housing (own -0.4, rent 0.4,
    loan 0) add, and of Gaussian noise with the standard deviation 0.5, is positive.

    Examples
    --------
    >>> from robustsk.datasets import make_loans
    >>> X, y = make_loans(random_state=0)
    >>> X.shape, float(y.mean())
    ((2400, 7), 0.58625)
    >>> X.iloc[0].to_dict()["purpose"]
    'other'
    >>> bool((X["n_open"] <= X["n_total"]).all())
    True
    """
    check_scalar(n_samples, "n_samples", Integral, min_val=1)
    try:
        import pandas as pd
    except ImportError as error:
        raise ImportError(
            "make_loans returns a DataFrame and requires pandas. Install it with `pip install "
            "pandas`."
        ) from error
    if not isinstance(random_state, Integral):
        random_state = check_random_state(random_state).randint(2**31 - 1)
    rng = np.random.default_rng(random_state)
    age = rng.integers(18, 76, n_samples)
    income = np.round(np.exp(rng.normal(10.4, 0.5, n_samples)), 2)
    amount = np.round(rng.uniform(1000, 35000, n_samples), 2)
    n_total = rng.integers(1, 30, n_samples)
    n_open = np.floor(n_total * rng.uniform(size=n_samples)).astype(np.int64)
    purpose = rng.choice(list(_PURPOSES), n_samples, p=[0.2, 0.5, 0.1, 0.2])
    housing = rng.choice(list(_HOUSING), n_samples)
    risk = 1.2 * (2 * amount / income - 1) + 0.05 * (n_open - 5) - 0.02 * (age - 45)
    risk += [_PURPOSES[name] for name in purpose]
    risk += [_HOUSING[name] for name in housing]
    risk += 0.5 * rng.normal(size=n_samples)
    columns = {"age": age, "income": income, "amount": amount, "n_total": n_total, "n_open": n_open}
    columns |= {"purpose": purpose.tolist(), "housing": housing.tolist()}
    return pd.DataFrame(columns), (risk > 0).astype(np.int64)
