import numpy as np
import pytest
import torch
from torch import nn

from robustsk.models import (
    MLP,
    CosineLinear,
    SmallCNN,
    forward_with_features,
    get_classifier,
    get_layer,
    replace_classifier,
)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


class TimmLike(nn.Module):
    """The classifier is not registered last, as an auxiliary layer follows it."""

    def __init__(self, num_classes=1000, in_chans=3):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.LazyLinear(6), nn.ReLU())
        self.head = nn.ModuleDict({"fc": nn.Linear(6, num_classes)})
        self.auxiliary = nn.Linear(6, 2)

    def forward(self, x):
        return self.head["fc"](self.body(x))

    def get_classifier(self):
        return self.head["fc"]


def nested():
    return nn.Sequential(
        nn.Flatten(), nn.Sequential(nn.Linear(4, 6), nn.Sequential(nn.ReLU(), nn.Linear(6, 3)))
    )


def test_cosine_linear_against_numpy():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(7, 5))
    layer = CosineLinear(5, 3, scale=4.0).double()
    w = layer.weight.detach().numpy()
    cosines = [[np.dot(a, b) / np.sqrt(np.dot(a, a) * np.dot(b, b)) for b in w] for a in z]
    np.testing.assert_allclose(layer(torch.tensor(z)).detach(), 4.0 * np.array(cosines))


def test_cosine_linear_ignores_lengths_and_is_bounded():
    layer = CosineLinear(5, 3, scale=2.0).double()
    z = torch.randn(7, 5, dtype=torch.float64)
    logits = layer(z)
    torch.testing.assert_close(layer(100 * z), logits)
    assert (logits.abs() <= 2.0 + 1e-12).all()
    with torch.no_grad():
        layer.weight.mul_(torch.tensor([[0.1], [3.0], [50.0]]))
    torch.testing.assert_close(layer(z), logits)


def test_cosine_linear_gradients_and_zero_input():
    layer = CosineLinear(4, 3).double()
    z = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    weight = layer.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z, w: torch.func.functional_call(layer, {"weight": w}, (z,)), (z, weight)
    )
    assert torch.equal(layer(torch.zeros(1, 4).double()), torch.zeros(1, 3).double())


def test_cosine_linear_interface():
    torch.manual_seed(3)
    layer = CosineLinear(4, 3)
    torch.manual_seed(3)
    torch.testing.assert_close(layer.weight, nn.Linear(4, 3, bias=False).weight)
    assert isinstance(layer.scale, float)
    assert layer.scale == 5.0
    assert set(layer.state_dict()) == {"weight"}
    for scale in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="scale must be"):
            CosineLinear(4, 3, scale=scale)
    with pytest.raises(ValueError, match="n_classes must be at least 1"):
        CosineLinear(4, 0)


def test_get_classifier():
    network = SmallCNN((8, 8))
    assert get_classifier(network) == ("classifier", network.classifier)
    network = nested()
    assert get_classifier(network) == ("1.1.1", network[1][1][1])
    layer = nn.Linear(3, 2)
    assert get_classifier(layer) == ("", layer)
    network = TimmLike(5)
    assert get_classifier(network) == ("head.fc", network.head["fc"])
    # Wrapped, the method is out of reach and the order of registration decides.
    network = nn.Sequential(nn.Identity(), SmallCNN((8, 8)))
    assert get_classifier(network)[0] == "1.classifier"
    network = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), CosineLinear(3, 2), nn.Identity())
    assert get_classifier(network) == ("2", network[2])


def test_get_classifier_errors():
    with pytest.raises(ValueError, match=r"Sequential has no nn\.Linear"):
        get_classifier(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()))

    class Two(TimmLike):
        def get_classifier(self):
            return self.head["fc"], self.auxiliary

    with pytest.raises(ValueError, match="several classifiers"):
        get_classifier(Two())


@pytest.mark.parametrize(
    ("build", "x"),
    [
        (lambda: MLP((4,), 3), torch.ones(2, 4)),
        (nested, torch.ones(2, 4)),
        (lambda: SmallCNN((8, 8), 3), torch.ones(2, 8, 8)),
    ],
)
def test_replace_classifier_in_place(build, x):
    network = build().double().eval()
    name, old = get_classifier(network)
    sizes = []

    def factory(n_in, n_out):
        sizes.append((n_in, n_out))
        return CosineLinear(n_in, n_out, scale=3.0)

    assert replace_classifier(network, factory) is network
    new_name, new = get_classifier(network)
    assert new_name == name
    assert isinstance(new, CosineLinear)
    assert sizes == [(old.in_features, old.out_features)]
    assert new.weight.dtype == torch.float64
    assert not new.training
    assert network(x.double()).shape == (2, 3)
    # And back again: a CosineLinear is a classifier layer too.
    replace_classifier(network, nn.Linear)
    assert isinstance(get_classifier(network)[1], nn.Linear)


def test_replace_classifier_of_timm_like_and_bare_layer():
    network = replace_classifier(TimmLike(5), CosineLinear)
    assert isinstance(network.head["fc"], CosineLinear)
    assert isinstance(network.auxiliary, nn.Linear)
    layer = nn.Linear(4, 3)
    new = replace_classifier(layer, CosineLinear)
    assert isinstance(new, CosineLinear)
    assert isinstance(layer, nn.Linear)
    assert new(torch.ones(2, 4)).shape == (2, 3)


def test_replace_classifier_replaces_a_layer_held_twice():
    class Alias(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
            self.head = self.layers[2]

        def forward(self, x):
            return self.head(self.layers[:2](x))

    network = replace_classifier(Alias(), CosineLinear)
    assert isinstance(network.head, CosineLinear)
    assert network.layers[2] is network.head


def test_replace_classifier_errors():
    with pytest.raises(ValueError, match="lazy layer"):
        replace_classifier(nn.Sequential(nn.LazyLinear(3)), CosineLinear)
    with pytest.raises(TypeError, match=r"must return an nn\.Module"):
        replace_classifier(nn.Linear(4, 3), lambda n_in, n_out: None)
    with pytest.raises(ValueError, match=r"no nn\.Linear"):
        replace_classifier(nn.ReLU(), CosineLinear)


def n_hooks(network):
    return sum(len(m._forward_pre_hooks) for m in network.modules())


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda: MLP((4,), 3, hidden_sizes=(6,)), (4,)),
        (nested, (4,)),
        (lambda: TimmLike(3), (3, 2, 2)),
        (lambda: nn.Linear(4, 3), (4,)),
    ],
)
def test_forward_with_features(build, shape):
    network = build()
    x = torch.rand(5, *shape, requires_grad=True)
    logits, features = forward_with_features(network, x)
    assert n_hooks(network) == 0
    torch.testing.assert_close(logits, network(x))
    torch.testing.assert_close(get_classifier(network)[1](features), logits)
    assert features.ndim == 2
    (grad,) = torch.autograd.grad(features.square().sum() + logits.sum(), x)
    assert grad.abs().sum() > 0


def test_features_equal_forward_features():
    network = SmallCNN((8, 8))
    x = torch.rand(3, 8, 8)
    torch.testing.assert_close(forward_with_features(network, x)[1], network.forward_features(x))


def test_features_are_flattened_to_two_axes():
    features = forward_with_features(nn.Linear(4, 3), torch.rand(5, 2, 4))[1]
    assert features.shape == (5, 8)


def test_features_passed_by_keyword():
    class Keyword(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            return self.head(input=2 * x)

    x = torch.rand(5, 4)
    torch.testing.assert_close(forward_with_features(Keyword(), x)[1], 2 * x)


def test_hook_is_removed_after_an_error():
    network = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3))
    with pytest.raises(RuntimeError):
        forward_with_features(network, torch.rand(5, 7))
    assert n_hooks(network) == 0

    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            return x

    network = Unused()
    with pytest.raises(RuntimeError, match="did not call its classifier layer 'head'"):
        forward_with_features(network, torch.rand(5, 4))
    assert n_hooks(network) == 0


# --- any layer by its name -----------------------------------------------------------


def test_output_of_a_named_layer():
    network = MLP((4,), 3, hidden_sizes=(5, 6))
    x = torch.randn(7, 4)
    for name, layer in network.named_modules():
        if name.startswith("features."):
            seen = []
            handle = layer.register_forward_hook(lambda _, args, out, seen=seen: seen.append(out))
            logits, features = forward_with_features(network, x, name)
            handle.remove()
            assert features is seen[0]
            assert torch.equal(logits, network(x))
    # an image is flattened, and the graph is that of the logits
    network = SmallCNN((1, 28, 28), 10)
    x = torch.rand(2, 1, 28, 28, requires_grad=True)
    _, features = forward_with_features(network, x, "features")
    assert features.ndim == 2
    assert torch.autograd.grad(features.sum(), x)[0].abs().sum() > 0


def test_a_wrapper_need_not_be_named():
    inner = MLP((4,), 3)
    assert get_layer(nn.Sequential(nn.Flatten(), inner), "classifier") is inner.classifier
    assert get_layer(inner, "classifier") is inner.classifier


def test_a_wrong_name_lists_the_right_ones():
    network = MLP((4,), 3)
    with pytest.raises(ValueError, match=r"no layer 'fc' in MLP.*'classifier'"):
        get_layer(network, "fc")
    with pytest.raises(ValueError, match="no layer"):
        forward_with_features(network, torch.zeros(1, 4), "")
    network.unused = nn.Linear(2, 2)
    with pytest.raises(RuntimeError, match="did not pass a tensor through the layer 'unused'"):
        forward_with_features(network, torch.zeros(1, 4), "unused")
