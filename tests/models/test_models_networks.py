import copy
import inspect
import pickle
import re

import numpy as np
import pytest
import torch
from torch import nn

from robustsk.models import (
    MLP,
    MODELS,
    BaseNetwork,
    CCENet,
    ConvNet2,
    Normalize,
    PreActResNet,
    ResNet,
    SmallCNN,
    WideResNet,
    cce_cifar10,
    cce_cifar100,
    cce_mnist,
    preact_resnet18,
    resnet18,
    resnet20,
    resnet34,
    resnet50,
    wide_resnet_28_10,
    wide_resnet_34_10,
)

WIDE = ["wide_resnet_28_10", "wide_resnet_34_10"]
MODEL_PARAMS = [
    pytest.param(name, marks=pytest.mark.slow) if name in WIDE else name for name in MODELS
]
SMALL = {
    "mlp": lambda **p: MLP((3, 8, 8), 4, hidden_sizes=(12, 7), **p),
    "small_cnn": lambda **p: SmallCNN((3, 8, 8), 4, **p),
    "conv_net2": lambda **p: ConvNet2((3, 8, 8), 4, **p),
    "cce": lambda **p: CCENet((3, 8, 8), 4, blocks=((1, 4), (2, 6)), hidden_sizes=(9, 5), **p),
    "resnet": lambda **p: ResNet((3, 8, 8), 4, layers=(1, 1), widths=(4, 6), **p),
    "resnet_a": lambda **p: ResNet((3, 8, 8), 4, layers=(1, 1), widths=(4, 7), shortcut="A", **p),
    "bottleneck": lambda **p: ResNet(
        (3, 8, 8), 4, block="bottleneck", layers=(1, 2), widths=(4, 6), **p
    ),
    "preact": lambda **p: PreActResNet((3, 8, 8), 4, layers=(1, 1), widths=(4, 6), **p),
    "preact_bottleneck": lambda **p: PreActResNet(
        (3, 8, 8), 4, block="bottleneck", layers=(1, 1), widths=(4, 6), **p
    ),
    "wide": lambda **p: WideResNet((3, 8, 8), 4, depth=10, widen_factor=1, dropout=0.1, **p),
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def n_parameters(network):
    return sum(p.numel() for p in network.parameters())


def conv(n_in, n_out, k):
    return n_in * n_out * k * k


@pytest.mark.dealt
@pytest.mark.parametrize("name", MODEL_PARAMS)
def test_every_registered_model_runs(name):
    network = MODELS[name]((3, 8, 8), 7)
    x = torch.rand(2, 3, 8, 8)
    assert isinstance(network, BaseNetwork)
    assert network(x).shape == (2, 7)
    assert network.input_shape == (3, 8, 8)
    assert network.n_classes == 7
    assert network.forward_features(x).shape == (2, network.num_features)


@pytest.mark.parametrize("name", WIDE)
def test_wide_models_run_on_meta(name):
    with torch.device("meta"):
        network = MODELS[name]((3, 16, 16), 7, mean=0.5, dropout=0.3)
        assert network(torch.rand(2, 3, 16, 16)).shape == (2, 7)


@pytest.mark.dealt
@pytest.mark.parametrize("name", list(MODELS))
def test_every_registered_model_takes_a_gray_image_and_normalisation(name):
    with torch.device("meta"):
        network = MODELS[name]((8, 8), 3, mean=[0.1], std=[0.3])
        assert network(torch.rand(2, 8, 8)).shape == (2, 3)
    assert isinstance(network.normalize, Normalize)


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (SmallCNN, 312_202),
        (ConvNet2, 21_840),
        (resnet18, 11_173_962),
        (resnet34, 21_282_122),
        (resnet50, 23_520_842),
        (resnet20, 269_722),
        (preact_resnet18, 11_172_170),
        (wide_resnet_28_10, 36_479_194),
        (wide_resnet_34_10, 46_160_474),
    ],
)
def test_parameter_counts_of_the_literature(build, expected):
    with torch.device("meta"):
        assert n_parameters(build()) == expected


@pytest.mark.parametrize("build", [resnet18, preact_resnet18, wide_resnet_28_10])
def test_documentation_of_a_configuration_is_whole(build):
    text = inspect.getdoc(build)
    entries = re.findall(r"^(\w+(?:, \w+)*) : ", text, flags=re.MULTILINE)
    parameters, result = ", ".join(entries[:-1]).split(", "), entries[-1]
    assert parameters == list(inspect.signature(build).parameters)
    assert result == "network"
    with torch.device("meta"):
        assert f"\nnetwork : {type(build()).__name__}\n" in text
    assert "%" not in text


def test_parameter_counts_by_hand():
    small_cnn = (
        (conv(1, 32, 3) + 32)
        + (conv(32, 32, 3) + 32)
        + (conv(32, 64, 3) + 64)
        + (conv(64, 64, 3) + 64)
        + (64 * 4 * 4 * 200 + 200)
        + (200 * 200 + 200)
        + (200 * 10 + 10)
    )
    assert small_cnn == 312_202
    assert n_parameters(SmallCNN((1, 28, 28))) == small_cnn

    # Option A: every convolution is 3x3 without bias and has one batch normalisation.
    widths = [16] * 7 + [32] * 6 + [64] * 6
    inputs = [3, *widths[:-1]]
    layers = sum(conv(i, o, 3) + 2 * o for i, o in zip(inputs, widths, strict=True))
    assert n_parameters(resnet20()) == layers + 64 * 10 + 10

    # The batch normalisation before the pooling is the only difference to the variant without.
    assert n_parameters(preact_resnet18()) - 2 * 512 == 11_171_146

    cifar10 = (
        (conv(3, 64, 3) + 64)
        + (conv(64, 64, 3) + 64)
        + (conv(64, 128, 3) + 128)
        + (conv(128, 128, 3) + 128)
        + (128 * 8 * 8 * 256 + 256)
        + (256 * 256 + 256)
        + (256 * 10 + 10)
    )
    assert n_parameters(cce_cifar10()) == cifar10


def test_weighted_depth_matches_the_names():
    for build, depth in [
        (resnet18, 18),
        (resnet34, 34),
        (resnet50, 50),
        (resnet20, 20),
        (wide_resnet_28_10, 28),
        (wide_resnet_34_10, 34),
    ]:
        with torch.device("meta"):
            network = build()
        shortcuts = {
            id(layer)
            for name, module in network.named_modules()
            if name.endswith("shortcut")
            for layer in module.modules()
        }
        layers = [
            m
            for m in network.modules()
            if isinstance(m, (nn.Conv2d, nn.Linear)) and id(m) not in shortcuts
        ]
        # Wide residual networks are named after 6 n + 4, which counts the three projections.
        assert len(layers) == (depth - 2 if build.__name__.startswith("wide") else depth)


def test_cce_layers():
    def kinds(network):
        return [
            type(m).__name__ if not hasattr(m, "weight") else tuple(m.weight.shape[:2])
            for m in network.features
            if not isinstance(m, nn.ReLU)
        ]

    assert kinds(cce_mnist()) == [
        (32, 1),
        (32, 32),
        "MaxPool2d",
        (64, 32),
        (64, 64),
        "MaxPool2d",
        "Flatten",
        (200, 64 * 7 * 7),
        "Dropout",
        (200, 200),
    ]
    assert kinds(cce_cifar100())[-5:] == [
        "Flatten",
        (256, 128 * 8 * 8),
        "Dropout",
        (256, 256),
        (256, 256),
    ]
    assert cce_cifar100().classifier.out_features == 100
    assert cce_cifar10(dropout=0.2).features[13].p == 0.2


@pytest.mark.parametrize("name", list(SMALL))
def test_forward_is_head_of_features(name):
    network = SMALL[name]().eval()
    x = torch.rand(3, 3, 8, 8)
    z = network.forward_features(x)
    assert z.shape == (3, network.num_features)
    torch.testing.assert_close(network(x), network.forward_head(z))
    assert network.get_classifier() is network.classifier
    assert isinstance(network.classifier, nn.Linear)
    assert network.classifier.in_features == network.num_features


@pytest.mark.parametrize("name", list(SMALL))
@pytest.mark.parametrize("training", [True, False])
def test_gradient_reaches_input_and_all_parameters(name, training):
    network = SMALL[name](mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)).train(training)
    x = torch.rand(4, 3, 8, 8, requires_grad=True)
    nn.functional.cross_entropy(network(x), torch.tensor([0, 1, 2, 3])).backward()
    assert torch.isfinite(x.grad).all()
    assert (x.grad.flatten(1).abs().sum(1) > 0).all()
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize("name", list(SMALL))
def test_reset_classifier(name):
    network = SMALL[name]().double()
    before = copy.deepcopy(network.features.state_dict())
    network.reset_classifier(6)
    assert network.n_classes == 6
    assert network(torch.rand(2, 3, 8, 8, dtype=torch.float64)).shape == (2, 6)
    assert network.get_classifier().weight.dtype == torch.float64
    for key, value in network.features.state_dict().items():
        if "running" not in key and "num_batches" not in key:
            torch.testing.assert_close(value, before[key])
    with pytest.raises(ValueError, match="n_classes must be at least 1"):
        network.reset_classifier(0)


@pytest.mark.parametrize("name", list(SMALL))
def test_normalisation_inside_equals_normalisation_outside(name):
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    with_layer = SMALL[name](mean=mean, std=std).eval()
    without = SMALL[name]().eval()
    state = {k: v for k, v in with_layer.state_dict().items() if not k.startswith("normalize")}
    without.load_state_dict(state)
    x = torch.rand(2, 3, 8, 8)
    by_hand = (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(with_layer(x), without(by_hand))


def test_normalize_layer():
    x = np.random.default_rng(0).random((5, 3, 4, 4)).astype(np.float32)
    mean, std = np.array([0.1, 0.2, 0.3]), np.array([0.5, 1.0, 2.0])
    expected = (x - mean[:, None, None]) / std[:, None, None]
    layer = Normalize(mean, std)
    np.testing.assert_allclose(layer(torch.tensor(x)), expected, rtol=1e-5, atol=1e-6)
    assert set(layer.state_dict()) == {"mean", "std"}
    assert not list(layer.parameters())
    # Features in columns, and one number for all.
    np.testing.assert_allclose(
        layer(torch.tensor(x[:, :, 0, 0])), expected[:, :, 0, 0], rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(Normalize(0.5, 0.25)(torch.tensor(x)), (x - 0.5) / 0.25, rtol=1e-5)
    assert torch.equal(Normalize((1.0, 2.0), 3.0).std, torch.tensor([3.0, 3.0]))
    assert "0.25" in repr(Normalize(0.5, 0.25))
    assert MLP((2,), 2, std=2.0).normalize.mean.tolist() == [0.0]
    assert MLP((2,), 2, mean=2.0).normalize.std.tolist() == [1.0]


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        (0.0, 0.0, "positive"),
        (float("nan"), 1.0, "finite"),
        ((0.0, 0.0), (1.0, 1.0, 1.0), "2 values"),
    ],
)
def test_normalize_errors(mean, std, message):
    with pytest.raises(ValueError, match=message):
        Normalize(mean, std)


def test_normalize_channel_mismatch():
    with pytest.raises(ValueError, match="1 channels"):
        Normalize((0.1, 0.2, 0.3), 1.0)(torch.zeros(2, 1, 4, 4))
    with pytest.raises(ValueError, match="3 values but input_shape"):
        SmallCNN((1, 28, 28), mean=(0.1, 0.2, 0.3))


@pytest.mark.parametrize("name", ["small_cnn", "conv_net2", "resnet20", "mlp"])
def test_gray_images_without_channel_axis_and_flat_samples(name):
    network = MODELS[name]((8, 8), 3).eval()
    x = torch.rand(4, 8, 8)
    logits = network(x)
    assert logits.shape == (4, 3)
    torch.testing.assert_close(network(x[:, None]), logits)
    torch.testing.assert_close(network(x.flatten(1)), logits)
    torch.testing.assert_close(network(x[:0]), logits[:0])
    assert network.input_shape == (8, 8)
    assert network.shape == (1, 8, 8)


def test_wrong_input_shape_names_both_shapes():
    with pytest.raises(ValueError, match=r"\(3, 8, 8\).*\(2, 8, 8, 3\).*channels-first"):
        SMALL["small_cnn"]()(torch.zeros(2, 8, 8, 3))
    with pytest.raises(ValueError, match=r"\(5,\)"):
        MLP((5,), 2)(torch.zeros(2, 6))
    with pytest.raises(ValueError, match=r"\(3, 8, 8\)"):
        SMALL["small_cnn"]()(torch.zeros(2, 3, 9, 9))


@pytest.mark.parametrize("name", ["resnet", "resnet_a", "bottleneck", "preact", "wide"])
@pytest.mark.parametrize("side", [8, 11, 32])
def test_residual_networks_take_any_image_size(name, side):
    assert SMALL[name]()(torch.rand(2, 3, side, side)).shape == (2, 4)


def test_auto_padding():
    def pads(network):
        return {m.padding for m in network.modules() if isinstance(m, nn.Conv2d)}

    assert pads(SmallCNN((1, 16, 16))) == {(0, 0)}
    assert pads(SmallCNN((1, 16, 15))) == {(1, 1)}
    assert pads(SmallCNN((1, 28, 28), padding=1)) == {(1, 1)}
    assert pads(ConvNet2((1, 16, 16))) == {(0, 0)}
    assert pads(ConvNet2((1, 8, 8))) == {(2, 2)}
    assert SmallCNN((2, 18, 20), padding=0)(torch.zeros(1, 2, 18, 20)).shape == (1, 10)


@pytest.mark.parametrize("cls", [SmallCNN, ConvNet2, CCENet])
@pytest.mark.parametrize("sides", [(4, 4), (5, 17), (16, 16), (17, 30)])
def test_flat_size_is_computed_right(cls, sides):
    assert cls((2, *sides), 3)(torch.zeros(1, 2, *sides)).shape == (1, 3)


@pytest.mark.parametrize("cls", [SmallCNN, ConvNet2, CCENet])
def test_too_small_images(cls):
    with pytest.raises(ValueError, match=r"3 x 3 pixels.*too small"):
        cls((1, 3, 3))


@pytest.mark.parametrize("padding", ["same", -1, 0.5, None])
def test_bad_padding(padding):
    with pytest.raises(ValueError, match="padding must be"):
        SmallCNN(padding=padding)


@pytest.mark.parametrize("cls", [SmallCNN, ConvNet2, CCENet, ResNet, PreActResNet, WideResNet])
def test_image_networks_want_images(cls):
    with pytest.raises(ValueError, match=r"must be \(h, w\) or \(c, h, w\)"):
        cls((64,), 2)


@pytest.mark.parametrize(
    ("error", "message", "build"),
    [
        (TypeError, "input_shape must be a tuple", lambda: MLP(64)),
        (TypeError, "input_shape must be a tuple", lambda: MLP((6.5,))),
        (ValueError, "positive entries", lambda: MLP(())),
        (ValueError, "positive entries", lambda: MLP((0, 3))),
        (TypeError, "n_classes must be a whole number", lambda: MLP((4,), "two")),
        (TypeError, "hidden_sizes must be a sequence", lambda: MLP((4,), hidden_sizes=5)),
        (ValueError, "hidden_sizes must be at least 1", lambda: MLP((4,), hidden_sizes=(0,))),
        (ValueError, "dropout is a probability", lambda: SmallCNN(dropout=1.0)),
        (ValueError, "dropout is a probability", lambda: ResNet(dropout=-0.1)),
        (ValueError, "6 n \\+ 4", lambda: WideResNet(depth=27)),
        (ValueError, "6 n \\+ 4", lambda: WideResNet(depth=4)),
        (ValueError, "block must be", lambda: ResNet(block="wide")),
        (ValueError, "shortcut must be", lambda: ResNet(shortcut="C")),
        (ValueError, "one entry per stage", lambda: ResNet(layers=(1, 1))),
    ],
)
def test_constructor_errors(error, message, build):
    with pytest.raises(error, match=message):
        build()


def test_mlp_without_hidden_layer_is_linear():
    network = MLP((2, 3), 4, hidden_sizes=())
    x = torch.rand(5, 2, 3)
    assert network.num_features == 6
    torch.testing.assert_close(network(x), network.classifier(x.flatten(1)))


def test_dropout_acts_in_training_only_and_keeps_the_state_dict():
    network = SmallCNN((8, 8), dropout=0.5)
    x = torch.rand(2, 8, 8)
    assert not torch.equal(network(x), network(x))
    network.eval()
    torch.testing.assert_close(network(x), network(x))
    SmallCNN((8, 8)).load_state_dict(network.state_dict())


def test_option_a_shortcut_subsamples_and_pads():
    network = ResNet((3, 8, 8), 4, layers=(1, 1), widths=(4, 8), shortcut="A")
    shortcut = next(m for n, m in network.named_modules() if n.endswith("shortcut"))
    x = torch.rand(2, 4, 8, 8)
    expected = torch.zeros(2, 8, 4, 4)
    expected[:, 2:6] = x[:, :, ::2, ::2]
    assert torch.equal(shortcut(x), expected)
    assert not list(shortcut.parameters())


def test_preactivation_block_follows_the_formula():
    network = SMALL["preact"]().eval()
    block = next(m for m in network.modules() if getattr(m, "shortcut", None) is not None)
    x = torch.randn(2, 4, 8, 8)
    activated = torch.relu(block.norms[0](x))
    inner = torch.relu(block.norms[1](block.convs[0](activated)))
    torch.testing.assert_close(block(x), block.convs[1](inner) + block.shortcut(activated))


def test_networks_pickle_and_copy():
    network = SMALL["wide"](mean=0.5).eval()
    x = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(pickle.loads(pickle.dumps(network))(x), network(x))
    torch.testing.assert_close(copy.deepcopy(network)(x), network(x))
