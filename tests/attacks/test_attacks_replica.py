"""A replica computes what its model computes, and the model is not touched."""

import copy
import weakref
from functools import lru_cache, partial

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from torch import nn
from torch.nn import functional as F

from robustsk import PGD, PGDATClassifier
from robustsk.models import PreActResNet, ResNet, SmallCNN, WideResNet
from robustsk.victims.engine import PLAIN, Engine, View
from robustsk.victims.replica import Copied, Original, Twin
from robustsk.victims.victim import Victim


class Sequence(nn.Module):
    """A recurrent network over the rows of an image."""

    def __init__(self, kind, **options):
        super().__init__()
        self.rnn = kind(8, 6, batch_first=True, **options)
        self.last = nn.Linear(6, 4)

    def forward(self, x):
        return self.last(self.rnn(x.flatten(1, 2))[0][:, -1])


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.last = nn.Linear(8, 4)

    def forward(self, x):
        return self.last(self.layer(x.flatten(1, 2)).mean(1))


class Shared(nn.Module):
    """The same layer in two places, and a weight in two layers."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(128, 6)
        self.again = self.middle = nn.Linear(6, 6)
        self.tied = nn.Linear(6, 6)
        self.tied.weight = self.middle.weight
        self.last = nn.Linear(6, 4)

    def forward(self, x):
        h = self.middle(torch.relu(self.first(x.flatten(1))))
        return self.last(self.tied(torch.tanh(self.again(h))))


def normed(norm, parent=nn.Sequential):
    layers = nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)
    module = nn.Sequential(*layers)
    norm(module[0])
    norm(module[4])
    return module


class KeepsByHook(nn.Module):
    """A hook that is bound to the parent, which uses what it keeps."""

    def __init__(self):
        super().__init__()
        self.body, self.last = nn.Linear(128, 6), nn.Linear(6, 4)
        self.body.register_forward_hook(self.keep)

    def keep(self, module, args, output):
        self.kept = output

    def forward(self, x):
        self.body(x.flatten(1))
        return self.last(torch.relu(self.kept))


class InAList(nn.Module):
    """A child that is also in a plain list, which is what is used."""

    def __init__(self):
        super().__init__()
        self.body, self.last = nn.Linear(128, 6), nn.Linear(6, 4)
        self.steps = [nn.Flatten(), self.body, nn.ReLU(), self.last]

    def forward(self, x):
        for step in self.steps:
            x = step(x)
        return x


class Helper:
    """An object that knows its network: nobody can see that from outside."""

    def __init__(self, network):
        self.network = network

    def run(self, x):
        return self.network.last(torch.relu(self.network.body(x.flatten(1))))


class Helped(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.last = nn.Linear(128, 6), nn.Linear(6, 4)
        self.helper = Helper(self)

    def forward(self, x):
        return self.helper.run(x)


class Tolerant(Helped):
    """The same, with an answer to any error."""

    def forward(self, x):
        try:
            return self.helper.run(x)
        except Exception:
            return torch.zeros(len(x), 4)


class Slotted(nn.Module):
    __slots__ = ("scale",)

    def __init__(self):
        super().__init__()
        self.scale = 2.0
        self.last = nn.Linear(128, 4)

    def forward(self, x):
        return self.scale * self.last(x.flatten(1))


REGISTRY = {}


class Registered(Helped):
    """A network that finds its parts by way of a variable of the program."""

    def __init__(self):
        super().__init__()
        REGISTRY["network"] = self

    def forward(self, x):
        network = REGISTRY["network"]
        return network.last(torch.relu(network.body(x.flatten(1))))


class Cached(Helped):
    """A method behind something that is written in C."""

    def __init__(self):
        super().__init__()
        self.scale = lru_cache(maxsize=None)(self.find_scale)

    def find_scale(self, name):
        return 2.0 if self.training else 1.0

    def forward(self, x):
        return self.scale("logits") * super().forward(x)


class Closure(nn.Module):
    """A hook that knows its network as a variable, and a function that does."""

    def __init__(self):
        super().__init__()
        self.body, self.last = nn.Linear(128, 6), nn.Linear(6, 4)

        def keep(module, args, output):
            self.kept = output

        self.body.register_forward_hook(keep)
        self.drop = lambda h: F.dropout(h, 0.5, self.training)
        self.itself = weakref.ref(self)

    def forward(self, x):
        self.body(x.flatten(1))
        return self.itself().last(self.drop(torch.relu(self.kept)))


class Ending(Closure):
    """What removes its hooks when it goes."""

    def __init__(self):
        super().__init__()
        self.handle = self.body.register_forward_hook(lambda m, args, out: 2 * out)

    def __del__(self):
        self.handle.remove()


class Keyed(nn.Module):
    """A hook that looks up names by modules, an attribute of a weight, slots."""

    __slots__ = ("__parts", "scale")

    def __init__(self):
        super().__init__()
        self.body, self.last = nn.Linear(128, 6), nn.Linear(6, 4)
        self.body.weight.gain = 0.5
        self.__parts, self.scale = [self.body, nn.ReLU(), self.last], 2.0
        names = {self.body: "body"}
        self.body.register_forward_hook(lambda m, args, out: out * len(names[m]))

    def forward(self, x):
        h = x.flatten(1)
        for part in self.__parts:
            h = part(h)
        return self.scale * self.body.weight.gain * h


class Counting(nn.Module):
    """Writes to a buffer of its own whenever it runs."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(128, 4)
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x):
        self.count += 1
        return self.last(x.flatten(1))


class Locked(Registered):
    """What can be neither replicated nor copied."""

    def __deepcopy__(self, memo):
        raise TypeError("cannot copy the connection to the server")


def rebound():
    module = SmallCNN((2, 8, 8), 4)
    module.forward = module.forward
    return module


def wrapped_forward():
    module = SmallCNN((2, 8, 8), 4)
    module.forward = partial(type(module).forward, module)
    return module


def quantised():
    linear = nn.Sequential(nn.Flatten(), nn.Linear(128, 16), nn.ReLU(), nn.Linear(16, 4))
    return torch.ao.quantization.quantize_dynamic(linear, {nn.Linear}, dtype=torch.qint8)


def torchvision(name, **options):
    def make():
        models = pytest.importorskip("torchvision.models")
        model = getattr(models, name)(weights=None, num_classes=4, **options)
        return nn.Sequential(nn.Upsample((64, 64)), nn.Conv2d(2, 3, 1), model)

    return make


def vit():
    models = pytest.importorskip("torchvision.models")
    model = models.VisionTransformer(8, 4, 2, 2, 16, 32, num_classes=4)
    nn.init.normal_(model.heads.head.weight)
    return nn.Sequential(nn.Conv2d(2, 3, 1), model)


def timm(name):
    def make():
        model = pytest.importorskip("timm").create_model(name, num_classes=4)
        return nn.Sequential(nn.Upsample((224, 224)), nn.Conv2d(2, 3, 1), model)

    return make


class Inception(nn.Module):
    def __init__(self):
        super().__init__()
        models = pytest.importorskip("torchvision.models")
        self.model = models.inception_v3(
            weights=None, num_classes=4, init_weights=False, aux_logits=False
        )

    def forward(self, x):
        return self.model(F.interpolate(x[:, [0, 1, 0]], (96, 96)))


OLD_NORMS = pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
NETWORKS = {  # maker and the kind of replica
    "resnet": (lambda: ResNet((2, 8, 8), 4, layers=(1, 1), widths=(8, 16)), Twin),
    "preact": (lambda: PreActResNet((2, 8, 8), 4, layers=(1, 1), widths=(8, 16)), Twin),
    "wide": (lambda: WideResNet((2, 8, 8), 4, depth=10, widen_factor=1), Twin),
    "small cnn": (lambda: SmallCNN((2, 8, 8), 4), Twin),
    "shared": (Shared, Twin),
    "torchvision vit": (vit, Twin),
    "transformer layer": (Attention, Twin),
    "rnn": (partial(Sequence, nn.RNN), Twin),
    "lstm": (partial(Sequence, nn.LSTM, num_layers=2, dropout=0.5), Twin),
    "gru": (partial(Sequence, nn.GRU, bidirectional=False), Twin),
    "weight norm": (partial(normed, nn.utils.parametrizations.weight_norm), Twin),
    "spectral norm": (partial(normed, nn.utils.parametrizations.spectral_norm), Twin),
    "old weight norm": (partial(normed, nn.utils.weight_norm), Twin),
    "old spectral norm": (partial(normed, nn.utils.spectral_norm), Twin),
    "hook bound to a parent": (KeepsByHook, Twin),
    "child in a plain list": (InAList, Twin),
    "forward is a bound method": (rebound, Twin),
    "forward is a partial": (wrapped_forward, Twin),
    "object that knows its network": (Helped, Twin),
    "object that knows its network, errors caught": (Tolerant, Twin),
    "closures and weak references": (Closure, Twin),
    "removes its hooks in the end": (Ending, Twin),
    "keys, slots, attributes of weights": (Keyed, Twin),
    "writes to a buffer": (Counting, Twin),
    "method in C": (Cached, Copied),
    "slots": (Slotted, Twin),
    "script": (lambda: torch.jit.script(SmallNet()), Copied),
    "fx": (lambda: torch.fx.symbolic_trace(SmallNet()), Copied),
    "neither": (Locked, Original),
}
LARGE = {
    "torchvision resnet18": (torchvision("resnet18"), Twin),
    "torchvision mobilenet": (torchvision("mobilenet_v3_small"), Twin),
    "torchvision inception": (Inception, Twin),
    "timm vit": (timm("vit_tiny_patch16_224"), Twin),
    "timm convnext": (timm("convnext_femto"), Twin),
    "timm efficientnet": (timm("efficientnet_b0"), Twin),
    "timm mobilevit": (timm("mobilevit_xxs"), Twin),
    "compiled": (lambda: torch.compile(SmallNet(), backend="eager"), Twin),
    "compiled inside": (lambda: nn.Sequential(torch.compile(SmallNet(), backend="eager")), Twin),
    "trace": (lambda: torch.jit.trace(SmallNet().eval(), torch.zeros(2, 2, 8, 8)), Copied),
    "dynamically quantised": (quantised, Twin),
}


class SmallNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8)
        self.drop, self.last = nn.Dropout(0.5), nn.Linear(288, 4)

    def forward(self, x):
        return self.last(self.drop(torch.relu(self.norm(self.conv(x))).flatten(1)))


every_network = pytest.mark.parametrize(
    ("make", "kind"),
    [
        *(pytest.param(*case, id=name, marks=OLD_NORMS) for name, case in NETWORKS.items()),
        *(pytest.param(*case, id=name, marks=pytest.mark.slow) for name, case in LARGE.items()),
    ],
)


def made(make, training=True):
    torch.manual_seed(0)
    module = make()
    with torch.no_grad():
        for _ in range(2):
            module(torch.randn(8, 2, 8, 8))
    return module.train(training)


def state_of(module):
    """Return all that an attack could change, in a form that can be compared."""
    tensors = [*module.parameters(), *module.buffers()]
    return (
        [t.detach().clone() for t in tensors],
        [(id(t), t.requires_grad, t.grad is None, t.data_ptr()) for t in tensors],
        [(m.training, sorted(vars(m)), len(m._forward_hooks)) for m in module.modules()],
    )


def assert_untouched(module, before):
    after = state_of(module)
    assert all(map(torch.equal, before[0], after[0]))
    if not isinstance(module, torch.jit.ScriptModule):  # hands out other objects every time
        assert before[1] == after[1]
    assert before[2] == after[2]


def gradient_of(logits, z):
    if not logits.requires_grad:
        return None
    return torch.autograd.grad(logits.sin().sum(), z, allow_unused=True)[0]


def reference(module, x):
    """Return logits and input gradients of the module itself, put into evaluation mode."""
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    z = x.clone().requires_grad_(True)
    logits = module(z)
    gradient = gradient_of(logits, z)
    for m, mode in modes:
        m.training = mode
    return logits.detach(), gradient


def seen(victim, x, engine=None):
    with victim.frozen("eval", engine) as replica:
        z = x.clone().requires_grad_(True)
        logits = replica(z)
        gradient = gradient_of(logits, z)
    return logits.detach(), gradient


@pytest.mark.dealt
@every_network
def test_a_replica_computes_the_same_and_leaves_the_model_alone(make, kind):
    module = made(make, training=kind is not Original)
    x = torch.rand(3, 2, 8, 8)
    expected = reference(module, x)
    before = state_of(module)
    victim = Victim(module)
    logits, gradient = seen(victim, x)
    # attention takes another path where parameters need no gradient
    torch.testing.assert_close(logits, expected[0], rtol=2e-6, atol=2e-6)
    if gradient is not None:
        torch.testing.assert_close(gradient, expected[1], rtol=1e-5, atol=1e-6)
    with victim.frozen() as replica:
        assert type(replica._view._replica) is kind
        assert (replica.module is module) == (kind is Original)
    logits, _ = seen(victim, x, Engine())
    torch.testing.assert_close(logits, expected[0], rtol=1e-4, atol=1e-4)
    assert_untouched(module, before)


@pytest.mark.dealt
@every_network
@pytest.mark.parametrize("engine", [PLAIN, Engine()], ids=["plain", "fast"])
def test_a_replica_follows_its_model(make, kind, engine):
    module = made(make, training=False)
    x, victim = torch.rand(3, 2, 8, 8), Victim(module)
    first, _ = seen(victim, x, engine)
    parameters = [p for p in module.parameters() if p.ndim > 1]
    if not parameters:
        pytest.skip("has no weights that can be changed")
    with torch.no_grad():
        for p in parameters:
            p.add_(p.std() * torch.randn_like(p))
    moved = {name: 2 * p.detach() for name, p in module.named_parameters()}
    for change in (None, lambda: module.load_state_dict({**module.state_dict(), **moved})):
        if change is not None:
            change()
        logits, _ = seen(victim, x, engine)
        assert not torch.allclose(logits, first, rtol=1e-3)
        torch.testing.assert_close(logits, reference(module, x)[0], rtol=1e-4, atol=1e-4)
        first = logits


def test_tensors_are_shared_and_made_once():
    module = made(NETWORKS["resnet"][0])
    view = View(module, Engine())
    view(torch.rand(2, 2, 8, 8))
    twins = dict(view.module.named_parameters())
    shared = [p.data_ptr() == twins[name].data_ptr() for name, p in module.named_parameters()]
    assert any(shared)
    assert not all(shared)  # what is folded has weights of its own
    places = {name: p.data_ptr() for name, p in twins.items()}
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.1)
    view.refresh()
    assert places == {name: p.data_ptr() for name, p in view.module.named_parameters()}
    torch.testing.assert_close(
        view(torch.ones(2, 2, 8, 8)),
        reference(module, torch.ones(2, 2, 8, 8))[0],
        rtol=1e-4,
        atol=1e-4,
    )


def test_a_change_of_the_replica_acts():
    for name in ("lstm", "old weight norm", "shared", "transformer layer"):
        module = made(NETWORKS[name][0], training=False)
        x, view = torch.rand(2, 2, 8, 8), View(module)
        before = view(x)
        with torch.no_grad():
            for p in list(view.module.parameters())[:1]:
                p.data = p.data + 1.0  # a tensor of its own
        if name == "lstm":
            flat = view.module.rnn._flat_weights
            assert flat[0] is view.module.rnn.weight_ih_l0
        assert not torch.allclose(view(x), before)
        torch.testing.assert_close(reference(module, x)[0], before, rtol=2e-6, atol=2e-6)


def test_what_changes_in_the_structure_is_seen():
    module = made(lambda: nn.Sequential(nn.Flatten(), nn.Linear(128, 6), nn.Linear(6, 4)))
    x, victim = torch.rand(3, 2, 8, 8), Victim(module)
    seen(victim, x)
    module[2] = nn.Linear(6, 4)
    assert torch.equal(seen(victim, x)[0], reference(module, x)[0])
    module.insert(2, nn.ReLU())
    assert torch.equal(seen(victim, x)[0], reference(module, x)[0])
    module[1].weight.data = torch.ones(6, 128)
    assert torch.equal(seen(victim, x)[0], reference(module, x)[0])
    handle = module[1].register_forward_hook(lambda m, args, output: 2 * output)
    assert torch.equal(seen(victim, x)[0], reference(module, x)[0])
    handle.remove()
    assert torch.equal(seen(victim, x)[0], reference(module, x)[0])
    nn.utils.parametrizations.weight_norm(module[1])
    module.double()
    victim = Victim(module)
    x = x.double()
    assert torch.equal(seen(victim, x)[0], reference(module, x)[0])


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.last, self.scale, self.seen = nn.Linear(128, 4), 1.0, []

    def forward(self, x):
        self.n_rows = len(x)
        self.seen.append(len(x))
        return self.scale * self.last(x.flatten(1))


def test_attributes_are_followed_and_those_of_the_model_kept():
    module, x = Scaled(), torch.rand(3, 2, 8, 8)
    victim = Victim(module)
    first, _ = seen(victim, x)
    module.scale = 3.0
    torch.testing.assert_close(seen(victim, x)[0], 3 * first)
    assert not hasattr(module, "n_rows")
    assert module.seen == [3, 3]  # an object that both have


def test_batch_statistics_belong_to_the_replica():
    module = made(NETWORKS["resnet"][0], training=False)
    before = state_of(module)
    x = torch.rand(6, 2, 8, 8)
    with Victim(module).frozen("train") as replica, torch.no_grad():
        found = replica(x)
    assert torch.equal(found, copy.deepcopy(module).train()(x).detach())
    assert_untouched(module, before)


@pytest.mark.filterwarnings("error")
def test_what_can_be_neither_replicated_nor_copied_is_used_as_it_is():
    module = made(Locked, training=False)
    before = state_of(module)
    X, y = np.random.default_rng(0).random((4, 2, 8, 8), dtype=np.float32), np.zeros(4, int)
    X_adv = PGD(module, eps=0.1, clip=(0, 1), n_steps=3, random_state=0).generate(X, y)
    same = made(Helped, training=False)
    assert_array_equal(
        X_adv, PGD(same, eps=0.1, clip=(0, 1), n_steps=3, random_state=0).generate(X, y)
    )
    assert_untouched(module, before)
    with pytest.raises(ValueError, match=r"neither be replicated nor copied.*Call its eval\(\)"):
        PGD(module.train(), eps=0.1, clip=(0, 1), n_steps=1, random_state=0).generate(X, y)


@pytest.mark.parametrize("make", [Helped, Cached, Locked])
def test_training_is_that_of_a_network_like_it(make):
    """One that can be neither replicated nor copied is put into evaluation mode in between."""

    class Plain(make):
        def forward(self, x):
            return self.last(F.dropout(torch.relu(self.body(x.flatten(1))), 0.3, self.training))

    class Odd(Plain):
        def forward(self, x):
            network = REGISTRY["network"] if make is Locked else self.helper.network
            h = F.dropout(torch.relu(network.body(x.flatten(1))), 0.3, network.training)
            return network.last(h)

    X = np.random.default_rng(0).random((40, 2, 8, 8), dtype=np.float32)
    weights = []
    for cls in (Plain, Odd):
        clf = PGDATClassifier(
            cls, max_epochs=2, batch_size=20, adversary__eps=0.1, adversary__n_steps=2,
            random_state=0, device="cpu",
        )  # fmt: skip
        clf.fit(X, np.arange(40) % 4)
        weights.append([p.detach().clone() for p in clf.module_.parameters()])
    assert all(map(torch.equal, *weights))


def test_a_copy_follows_its_model():
    module = made(Cached, training=False)
    x, victim = torch.rand(3, 2, 8, 8), Victim(module)
    seen(victim, x)
    module.scale = lambda name: 3.0
    assert torch.equal(seen(victim, x)[0], reference(module, x)[0])
    module.scale = lru_cache(maxsize=None)(module.find_scale)
    module.last.register_forward_hook(lambda m, args, output: -output)
    assert torch.equal(seen(victim, x)[0], reference(module, x)[0])


def test_pruned_weights_are_followed():
    module = made(lambda: nn.Sequential(nn.Flatten(), nn.Linear(128, 4)), training=False)
    x, victim = torch.rand(3, 2, 8, 8), Victim(module)
    seen(victim, x)
    module[1].weight.data, module[1].bias.data = module[1].weight.data[:2], module[1].bias.data[:2]
    assert torch.equal(seen(victim, x)[0], reference(module, x)[0])
    module[1].__class__ = Doubled
    assert torch.equal(seen(victim, x)[0], reference(module, x)[0])


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Graph(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = nn.Linear(128, 4)
        self.register_buffer("adjacency", torch.eye(4).roll(1, 0).to_sparse())

    def forward(self, x):
        return torch.sparse.mm(self.adjacency, self.last(x.flatten(1)).T).T


def test_sparse_buffers():
    module, x = made(Graph, training=False), torch.rand(3, 2, 8, 8)
    victim = Victim(module)
    for _ in range(2):
        assert torch.equal(seen(victim, x)[0], reference(module, x)[0])
        module.adjacency = (2 * module.adjacency).coalesce()


@pytest.mark.slow
def test_hooks_on_what_is_compiled():
    module = torch.compile(made(SmallNet, training=False), backend="eager")
    module.register_forward_hook(lambda m, args, output: -output)
    x = torch.rand(3, 2, 8, 8)
    assert torch.equal(seen(Victim(module), x)[0], reference(module, x)[0])


def test_what_cannot_be_copied_for_lack_of_memory_is_said(monkeypatch):
    module = made(Cached, training=False)

    def fail(*args):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("robustsk.victims.replica.copy.deepcopy", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        seen(Victim(module), torch.rand(3, 2, 8, 8))


def test_errors_of_a_network_are_its_own():
    module = made(SmallNet, training=True)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        seen(Victim(module), torch.rand(3, 2, 9, 9))
