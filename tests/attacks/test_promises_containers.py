"""Every attack returns the container it is given, on either face."""

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_array_equal
from promises import CHEAPEST, every_attack, make, per_code_path
from sklearn import config_context
from sklearn.base import clone
from torch.utils.data import TensorDataset

#: What decides what becomes of the container, and of the names in it.
per_door = per_code_path("fit", "transform", "generate", "run", "_check_X", "_resolved")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@per_door
def test_container_shape_and_dtype_are_those_of_the_input(cls, dtype, table):
    X = table.X[:9].astype(dtype)
    before = X.copy()
    attack = make(cls, table.model, eps=0.3, clip=(-9, 9), random_state=0)
    expected = attack.generate(X)
    assert type(expected) is np.ndarray
    assert expected.dtype == dtype
    assert_array_equal(X, before)

    names = [f"f{i}" for i in range(X.shape[1])]
    frame = pd.DataFrame(X, columns=names, index=[f"r{i}" for i in range(9)])
    frame_before = frame.copy()
    from_frame = attack.generate(frame)
    pd.testing.assert_frame_equal(
        from_frame, pd.DataFrame(expected, columns=names, index=frame.index)
    )
    pd.testing.assert_frame_equal(frame, frame_before)

    tensor = torch.tensor(X, requires_grad=True)
    from_tensor = attack.generate(tensor)
    assert isinstance(from_tensor, torch.Tensor)
    assert from_tensor.dtype == tensor.dtype
    assert not from_tensor.requires_grad
    assert tensor.grad is None
    assert_array_equal(from_tensor.numpy(), expected)
    assert_array_equal(tensor.detach().numpy(), before)

    from_list = attack.generate(X.astype(np.float64).tolist())
    assert type(from_list) is np.ndarray
    assert from_list.dtype == np.float64
    if dtype == np.float64:
        assert_array_equal(from_list, expected)

    from_dataset = attack.generate(TensorDataset(torch.tensor(X)))
    assert_array_equal(from_dataset, expected)


@per_door
def test_images_in_any_container(cls, images):
    X = images.X[:5]
    attack = make(cls, images.net, eps=0.1, clip=(0, 1), random_state=0)
    expected = attack.generate(X)
    assert expected.shape == X.shape
    strided = np.asfortranarray(X)
    assert_array_equal(attack.generate(strided), expected)
    assert_array_equal(attack.generate(torch.tensor(X)).numpy(), expected)
    read_only = X.copy()
    read_only.setflags(write=False)
    assert_array_equal(attack.generate(read_only), expected)


@per_door
def test_integers_become_floats(cls, table):
    X = np.round(table.X[:6]).astype(np.int64)
    X_adv = make(cls, table.model, eps=0.3, clip=None, random_state=0).generate(X)
    assert X_adv.dtype == np.float64
    assert np.abs(X_adv - X).max() <= 0.3


@per_door
def test_column_names_are_checked(cls, table):
    frame = pd.DataFrame(table.X, columns=list("abcdef"))
    attack = make(cls, table.model, eps=0.3, random_state=0).fit(frame)
    assert_array_equal(attack.get_feature_names_out(), list("abcdef"))
    assert list(attack.transform(frame).columns) == list("abcdef")
    with pytest.raises(ValueError, match="feature names"):
        attack.transform(frame.rename(columns={"a": "z"}))


@per_door
def test_set_output(cls, table):
    attack = (
        make(cls, table.model, eps=0.3, random_state=0).set_output(transform="pandas").fit(table.X)
    )
    assert list(attack.transform(table.X[:4]).columns) == [f"x{i}" for i in range(6)]


@per_door
def test_images_have_no_columns_whatever_output_is_set(cls, images):
    X = images.X[:4]
    attack = make(cls, images.net, settings=CHEAPEST, eps=0.1, clip=(0, 1), random_state=0)
    expected = attack.fit(X).transform(X)
    for kind in ("pandas", "polars"):
        with config_context(transform_output=kind):
            assert_array_equal(attack.fit_transform(X), expected)
        other = clone(attack).set_params(estimator=images.net).set_output(transform=kind)
        assert_array_equal(other.fit(X).transform(X), expected)


@every_attack
def test_tensors_in_and_out_of_the_torch_face(cls, images):
    x, y = torch.tensor(images.X[:6]), torch.tensor(images.y[:6])
    before = x.clone()
    attack = make(cls, eps=0.1, clip=(0, 1), random_state=0)
    x_adv = attack.perturb(images.net, x, y)
    assert x_adv.shape == x.shape
    assert x_adv.dtype == x.dtype
    assert not x_adv.requires_grad
    assert x_adv is not x
    assert torch.equal(x, before)
    assert (x_adv - x).abs().max() <= 0.1 + 1e-6
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert torch.equal(
        attack.perturb(images.net, x, y, seed=5), attack.perturb(images.net, x, y, seed=5)
    )
    assert attack.perturb(images.net, x[:0], y[:0]).shape == (0, 1, 8, 8)
