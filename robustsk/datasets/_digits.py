"""The digits shipped with scikit-learn, as images."""

from __future__ import annotations

from typing import Literal, overload

import numpy as np
from sklearn.datasets import load_digits
from sklearn.utils import Bunch


@overload
def load_digits_images(*, return_X_y: Literal[False] = False, as_flat: bool = False) -> Bunch: ...


@overload
def load_digits_images(
    *, return_X_y: Literal[True], as_flat: bool = False
) -> tuple[np.ndarray, np.ndarray]: ...


def load_digits_images(
    *, return_X_y: bool = False, as_flat: bool = False
) -> Bunch | tuple[np.ndarray, np.ndarray]:
    """Load scikit-learn's handwritten digits as float32 images in [0, 1].

    The data comes with scikit-learn: nothing is downloaded.

    Parameters
    ----------
    return_X_y : bool, default=False
        Return ``(data, target)`` instead of a Bunch.
    as_flat : bool, default=False
        Return each image as a row of 64 values.

    Returns
    -------
    data : :class:`~sklearn.utils.Bunch`
        Dictionary-like object with the following attributes.

        data : ndarray of float32, shape (1797, 1, 8, 8), or (1797, 64) with `as_flat`
            The images; the 17 grey levels 0 to 16 are divided by 16, so that values are in [0, 1].
        target : ndarray of int64, shape (1797,)
            The digits, 0 to 9.
        target_names : ndarray of str, shape (10,)
            Names of the classes, "0" to "9".
        DESCR : str
            Description of the data set.
    (data, target) : tuple of ndarray, if `return_X_y`
        The arrays described above.

    See Also
    --------
    sklearn.datasets.load_digits : The same data as float64 rows in [0, 16].
    sklearn.model_selection.train_test_split : Split the arrays, also by class.

    Examples
    --------
    >>> from robustsk.datasets import load_digits_images
    >>> digits = load_digits_images()
    >>> digits.data.shape, digits.data.dtype, float(digits.data.max())
    ((1797, 1, 8, 8), dtype('float32'), 1.0)
    >>> X, y = load_digits_images(return_X_y=True, as_flat=True)
    >>> X.shape, y.shape
    ((1797, 64), (1797,))
    """
    digits = load_digits()
    data = (digits.data / 16).astype(np.float32)
    if not as_flat:
        data = data.reshape(-1, 1, 8, 8)
    target = digits.target.astype(np.int64)
    if return_X_y:
        return data, target
    return Bunch(
        data=data,
        target=target,
        target_names=np.array([str(name) for name in digits.target_names]),
        DESCR=(
            "Handwritten digits as images of 8 x 8 pixels, 1797 samples, 10 classes.\n"
            "The values of sklearn.datasets.load_digits divided by 16: float32 in [0, 1].\n\n"
            f"{digits.DESCR}"
        ),
    )
