"""Projection heads."""

import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn

from robustsk.models import ProjectionHead, make_projection


def test_the_two_heads_are_what_they_stand_for():
    z = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    linear, mlp = (make_projection(name, 7) for name in ("linear", "mlp"))
    assert [p.shape for p in linear.parameters()] == [(128, 7)]
    assert_allclose(linear(z).detach(), (z @ linear.layers[0].weight.T).detach())
    assert [p.shape for p in mlp.parameters()] == [(200, 7), (128, 200)]
    first, second = mlp.parameters()
    assert_allclose(mlp(z).detach(), ((z @ first.T).relu() @ second.T).detach(), rtol=1e-5)


def test_options():
    head = make_projection("mlp", 4, out_features=3, hidden_sizes=(5, 6), bias=True)
    shapes = [tuple(p.shape) for p in head.parameters()]
    assert shapes == [(5, 4), (5,), (6, 5), (6,), (3, 6), (3,)]
    assert make_projection(None, 4) is None
    assert isinstance(make_projection(nn.LayerNorm, 4), nn.LayerNorm)
    assert make_projection(lambda n: nn.Linear(n, 2), 4).out_features == 2


def test_what_is_not_valid():
    with pytest.raises(ValueError, match=r"'linear', 'mlp'.*got 'conv'"):
        make_projection("conv", 4)
    for spec in (3, nn.Linear(4, 2), lambda n: "no module"):
        with pytest.raises(TypeError, match="takes the number of features and returns"):
            make_projection(spec, 4)
    with pytest.raises(ValueError, match="out_features must be at least 1"):
        ProjectionHead(4, 0)
