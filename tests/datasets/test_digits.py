import numpy as np
import pytest
from sklearn.datasets import load_digits

from robustsk.datasets import load_digits_images


def test_bunch_holds_the_digits_of_scikit_learn_as_images():
    bunch = load_digits_images()
    digits = load_digits()
    assert bunch.data.shape == (1797, 1, 8, 8)
    assert bunch.data.dtype == np.float32
    assert bunch.data.min() == 0
    assert bunch.data.max() == 1
    np.testing.assert_array_equal(bunch.data[:, 0] * 16, digits.images)
    assert bunch.target.dtype == np.int64
    np.testing.assert_array_equal(bunch.target, digits.target)
    assert bunch.target_names.tolist() == list("0123456789")
    assert "8 x 8" in bunch.DESCR


@pytest.mark.parametrize("as_flat", [False, True])
def test_return_X_y_and_as_flat(as_flat):
    X, y = load_digits_images(return_X_y=True, as_flat=as_flat)
    bunch = load_digits_images()
    np.testing.assert_array_equal(X.reshape(1797, 1, 8, 8), bunch.data)
    assert X.shape == ((1797, 64) if as_flat else (1797, 1, 8, 8))
    np.testing.assert_array_equal(y, bunch.target)


def test_arrays_are_the_callers_own():
    X, _ = load_digits_images(return_X_y=True)
    X[:] = 0
    assert load_digits_images().data.max() == 1
