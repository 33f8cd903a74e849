import functools

import pytest
import torch
from torch import nn

import robustsk.models
from robustsk.models import (
    MLP,
    MODELS,
    SmallCNN,
    get_model,
    list_models,
    make_module,
    resnet20,
    wide_resnet_28_10,
)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


class TimmLike(nn.Module):
    def __init__(self, in_chans=3, num_classes=1000, width=4):
        super().__init__()
        self.sizes = in_chans, num_classes, width
        self.layers = nn.Sequential(
            nn.Conv2d(in_chans, width, 3),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(width, num_classes),
        )

    def forward(self, x):
        return self.layers(x)


def tabular(n_features, n_outputs, *, hidden=5):
    return nn.Sequential(nn.Linear(n_features, hidden), nn.ReLU(), nn.Linear(hidden, n_outputs))


def make(spec=None, input_shape=(3, 8, 8), n_classes=4, **params):
    return make_module(spec, input_shape=input_shape, n_classes=n_classes, params=params)


def test_public_names():
    for name in robustsk.models.__all__:
        assert getattr(robustsk.models, name) is not None
    assert set(MODELS) == set(list_models())
    assert get_model("wide_resnet_28_10") is wide_resnet_28_10


@pytest.mark.parametrize("name", ["resnet_18", "ResNet18", "resnet8"])
def test_unknown_name(name):
    with pytest.raises(ValueError, match=r"Did you mean 'resnet18'.*small_cnn"):
        get_model(name)
    with pytest.raises(ValueError, match="Did you mean"):
        make(name)


def test_unknown_name_without_a_guess():
    with pytest.raises(ValueError, match=r"no network is named 'qqq'\. The names are"):
        get_model("qqq")


@pytest.mark.parametrize(
    ("input_shape", "cls"),
    [
        ((6,), MLP),
        ((8, 8), SmallCNN),
        ((1, 8, 8), SmallCNN),
        ((3, 8, 8), SmallCNN),
        ((2, 3, 4, 5), MLP),
        (torch.Size([3, 8, 8]), SmallCNN),
        ([6], MLP),
    ],
)
def test_default_network(input_shape, cls):
    network = make(None, input_shape)
    assert type(network) is cls
    assert network(torch.rand(2, *input_shape)).shape == (2, 4)


def test_params_may_be_left_out():
    assert type(make_module(None, input_shape=(6,), n_classes=2)) is MLP


def test_default_network_takes_params():
    assert make(None, (6,), hidden_sizes=(7,)).num_features == 7


def test_name():
    network = make("mlp", hidden_sizes=(7,), mean=0.5)
    assert network.num_features == 7
    assert network.input_shape == (3, 8, 8)
    assert make("resnet20")(torch.rand(2, 3, 8, 8)).shape == (2, 4)


def test_instance_is_copied_and_never_touched():
    given = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    before = given[1].weight.clone()
    made = make(given)
    assert made is not given
    torch.testing.assert_close(made[1].weight, before)
    with torch.no_grad():
        made[1].weight.zero_()
    made.eval()
    assert torch.equal(given[1].weight, before)
    assert given.training


def test_instance_with_params_is_built_anew():
    given = TimmLike(3, 4, width=2)
    made = make(given, width=6)
    assert isinstance(made, TimmLike)
    assert made.sizes == (3, 4, 6)
    assert given.sizes == (3, 4, 2)


def test_class_gets_what_it_asks_for():
    assert make(TimmLike).sizes == (3, 4, 4)
    assert make(TimmLike, (1, 8, 8)).sizes == (1, 4, 4)
    assert make(TimmLike, width=2, num_classes=9).sizes == (3, 9, 2)
    # The number of channels of a pair (h, w) is not known: the default stays.
    assert make(TimmLike, (8, 8)).sizes == (3, 4, 4)


def test_linear_class():
    layer = make(nn.Linear, (64,), 10)
    assert (layer.in_features, layer.out_features) == (64, 10)
    layer = make(nn.Linear, (2, 3), 10, bias=False, out_features=2)
    assert (layer.in_features, layer.out_features, layer.bias) == (6, 2, None)


def test_function_and_partial():
    assert make(tabular, (5,), hidden=2)(torch.rand(3, 5)).shape == (3, 4)
    assert make(resnet20).classifier.out_features == 4
    fixed = functools.partial(tabular, n_outputs=7)
    assert make(fixed, (5,))(torch.rand(3, 5)).shape == (3, 7)
    assert make(functools.partial(MLP, hidden_sizes=(3,)), (5,)).num_features == 3


@pytest.mark.parametrize("name", ["n_classes", "num_classes", "n_outputs", "output_dim"])
@pytest.mark.parametrize("inputs", ["n_features", "n_features_in", "input_dim", "num_features"])
def test_recognised_names(name, inputs):
    scope = {"nn": nn}
    exec(f"def build(*, {inputs}, {name}): return nn.Linear({inputs}, {name})", scope)
    layer = make(scope["build"], (2, 3))
    assert (layer.in_features, layer.out_features) == (6, 4)


def test_function_that_asks_for_nothing():
    assert isinstance(make(lambda: nn.Linear(2, 3)), nn.Linear)
    assert isinstance(
        make(lambda **kwargs: nn.Linear(**kwargs), in_features=2, out_features=3), nn.Linear
    )


@pytest.mark.parametrize("spec", [None, "small_cnn"])
@pytest.mark.parametrize("input_shape", [(32, 32, 3), (28, 28, 1)])
def test_channels_last(spec, input_shape):
    with pytest.raises(ValueError, match=r"channels-last.*transpose\(0, 3, 1, 2\)"):
        make(spec, input_shape)
    # Whoever builds the network decides on the layout.
    assert make(lambda: nn.Flatten(), input_shape) is not None


def test_narrow_images_are_not_channels_last():
    assert make("mlp", (3, 8, 1)).input_shape == (3, 8, 1)


@pytest.mark.parametrize("spec", [3, 2.5, [nn.Linear(2, 2)], {"mlp": 1}])
def test_not_a_network(spec):
    with pytest.raises(TypeError, match="the network must be None, a name"):
        make(spec)


def test_callable_that_returns_no_module():
    with pytest.raises(TypeError, match=r"must return a torch\.nn\.Module"):
        make(lambda n_classes: n_classes)


def test_bad_shape_and_class_count():
    with pytest.raises(ValueError, match="positive entries"):
        make(None, ())
    with pytest.raises(ValueError, match="n_classes must be at least 1"):
        make(None, (3,), 0)
