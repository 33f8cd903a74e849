"""The frozen view changes how a network is run, and nothing of what it computes."""

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from robustsk import PGD, PGDATClassifier, score_adversarial
from robustsk.attacks import APGD, BPDA, BaseAttack, SquareAttack
from robustsk.models import PreActResNet, ResNet, SmallCNN
from robustsk.victims._convolution import input_gradient
from robustsk.victims._folding import find_pairs, norms_of
from robustsk.victims.engine import PLAIN, Engine, lay_out
from robustsk.victims.victim import Victim


def trained_statistics(module, shape):
    """Give batch normalisation something to do."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for m in module.modules():
            if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.affine:
                nn.init.uniform_(m.weight, 0.5, 1.5)
                nn.init.normal_(m.bias)
        module.train()
        for _ in range(3):
            module(2 * torch.randn(16, *shape) + 1)
    return module.eval()


class Shared(nn.Module):
    """One convolution whose output goes to a normalisation and elsewhere."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.last = nn.Linear(8, 4)

    def forward(self, x):
        z = self.conv(x)
        return self.last((self.norm(z) + 0.5 * z).mean((2, 3)))


class Twice(Shared):
    """One convolution that is used two times."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.norm = nn.BatchNorm2d(2)
        self.last = nn.Linear(2, 4)

    def forward(self, x):
        return self.last(self.norm(self.conv(torch.relu(self.conv(x)))).mean((2, 3)))


class Viewing(nn.Module):
    """A network whose code takes for granted that channels come first."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1)
        self.last = nn.Linear(16 * 64, 4)

    def forward(self, x):
        z = self.conv2(torch.relu(self.norm(self.conv(x))))
        return self.last(z.view(len(z), -1))


def conv_norm(norm, bias=True):
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, bias=bias, stride=2), norm, nn.ReLU(), nn.Flatten(), nn.LazyLinear(4)
    )


def hooked():
    module = conv_norm(nn.BatchNorm2d(8))
    module[0].register_forward_hook(lambda m, args, out: 2 * out)
    return module


def weight_normed():
    module = conv_norm(nn.BatchNorm2d(8))
    nn.utils.parametrizations.weight_norm(module[0])
    return module


NETWORKS = {  # maker, pairs that can be folded
    "resnet": (lambda: ResNet((2, 8, 8), 4, layers=(1, 1), widths=(8, 16)), 6),
    "bottleneck": (
        lambda: ResNet((2, 8, 8), 4, block="bottleneck", layers=(1,), widths=(8,)),
        5,
    ),
    "preact": (lambda: PreActResNet((2, 8, 8), 4, layers=(1, 1), widths=(8, 16)), 2),
    "bias": (lambda: conv_norm(nn.BatchNorm2d(8)), 1),
    "no bias": (lambda: conv_norm(nn.BatchNorm2d(8), bias=False), 1),
    "not affine": (lambda: conv_norm(nn.BatchNorm2d(8, affine=False)), 1),
    "no running statistics": (lambda: conv_norm(nn.BatchNorm2d(8, track_running_stats=False)), 0),
    "linear": (
        lambda: nn.Sequential(
            nn.Flatten(), nn.Linear(128, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 4)
        ),
        1,
    ),
    "shared": (Shared, 0),
    "twice": (Twice, 0),
    "viewing": (Viewing, 1),
    "hook": (hooked, 0),
    "parametrised": (weight_normed, 0),
}


@pytest.fixture(params=list(NETWORKS))
def network(request):
    torch.manual_seed(0)
    make, n_pairs = NETWORKS[request.param]
    module = make()
    module(torch.zeros(2, 2, 8, 8))
    return trained_statistics(module, (2, 8, 8)), n_pairs


def run(module, x, engine):
    victim = Victim(module)
    with victim.frozen("eval", engine) as seen:
        z = x.clone().requires_grad_(True)
        logits = seen(z)
        (gradient,) = torch.autograd.grad(logits.sin().sum(), z)
    return logits.detach(), gradient


@pytest.mark.dealt
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_view_computes_what_the_module_computes(network, dtype):
    module, _ = network
    module = module.to(dtype)
    x = torch.randn(5, 2, 8, 8, dtype=dtype)
    z = x.clone().requires_grad_(True)
    expected = module(z)
    (slope,) = torch.autograd.grad(expected.sin().sum(), z)
    logits, gradient = run(module, x, Engine())
    tolerance = 2e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(logits, expected.detach(), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(gradient, slope, rtol=20 * tolerance, atol=20 * tolerance)


def test_what_can_be_folded_is_found(network):
    module, n_pairs = network
    pairs, _ = find_pairs(module, norms_of(module), torch.randn(2, 2, 8, 8))
    assert len(pairs) == n_pairs
    assert all(isinstance(norm, nn.modules.batchnorm._BatchNorm) for _, norm in pairs)


@pytest.mark.dealt
@pytest.mark.parametrize("engine", [Engine(), Engine("bf16")])
def test_a_view_leaves_nothing_behind(network, engine):
    module, _ = network
    module.train()
    own = {name: (p, p.detach().clone()) for name, p in module.named_parameters()}
    buffers = {name: b.clone() for name, b in module.named_buffers()}
    attributes = [set(vars(m)) for m in module.modules()]
    run(module, torch.randn(3, 2, 8, 8), engine)

    victim = Victim(module)

    def interrupted():
        with victim.frozen("eval", engine) as seen:
            seen(torch.randn(3, 2, 8, 8))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    for name, p in module.named_parameters():
        assert p is own[name][0]
        assert torch.equal(p, own[name][1])
        assert p.requires_grad
        assert p.is_contiguous()
    assert all(torch.equal(b, buffers[name]) for name, b in module.named_buffers())
    assert attributes == [set(vars(m)) for m in module.modules()]
    assert all(m.training for m in module.modules())


def test_folding_follows_the_parameters():
    module = trained_statistics(conv_norm(nn.BatchNorm2d(8)), (2, 8, 8))
    victim, x = Victim(module), torch.randn(4, 2, 8, 8)
    for _ in range(2):
        with victim.frozen("eval", Engine()) as seen, torch.no_grad():
            torch.testing.assert_close(seen(x), module_output(module, x), rtol=1e-5, atol=1e-5)
            assert seen.is_folded
        with torch.no_grad():
            module[0].weight.mul_(-2.0)
            module[1].running_mean.add_(1.0)


def module_output(module, x):
    with torch.no_grad():
        return copy.deepcopy(module).eval()(x)


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (4, 2), (5, 5)])
@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (3, 1)])
@pytest.mark.parametrize("padding", [(0, 0), (1, 1), (2, 0)])
def test_input_gradient(kernel, stride, padding):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 2, *kernel, generator=generator, dtype=torch.float64)
    for size in itertools.product((9, 10), (11, 8)):
        x = torch.randn(3, 2, *size, generator=generator, dtype=torch.float64, requires_grad=True)
        y = F.conv2d(x, weight, None, stride, padding)
        g = torch.randn(y.shape, generator=generator, dtype=torch.float64)
        (expected,) = torch.autograd.grad(y, x, g)
        found = input_gradient(g, weight, size, stride, padding)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_layout_is_that_of_the_code():
    x = torch.randn(3, 2, 8, 8)
    wide = nn.Sequential(
        nn.Conv2d(2, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.Flatten(), nn.Linear(128, 4)
    )
    before = wide(x)
    assert lay_out(wide.eval(), x)
    assert wide[2].weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(wide(x), before, rtol=1e-5, atol=1e-5)
    viewing = Viewing().eval()
    assert not lay_out(viewing, x)
    assert all(p.is_contiguous() for p in viewing.parameters())
    assert not lay_out(nn.Sequential(nn.Flatten(), nn.Linear(128, 4)), x)


# --- attacks -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    from sklearn.datasets import load_digits

    X, y = load_digits(return_X_y=True)
    X = (X / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    clf = PGDATClassifier(
        ResNet,
        module__layers=(1, 1),
        module__widths=(8, 16),
        adversary=PGD(eps=0.1, n_steps=2, clip=(0, 1)),
        max_epochs=3,
        lr=0.01,
        random_state=0,
    ).fit(X[:1000], y[:1000])
    return clf, X[1000:1200], y[1000:1200]


@pytest.mark.dealt
@pytest.mark.parametrize(
    ("attack", "norm"),
    [
        (PGD(n_restarts=2), np.inf),
        (PGD(n_restarts=2), 2),
        (APGD(n_steps=10), np.inf),
        (SquareAttack(max_queries=50), 2),
        pytest.param(APGD(n_steps=10), 2, marks=pytest.mark.slow),
        pytest.param(SquareAttack(max_queries=50), np.inf, marks=pytest.mark.slow),
    ],
)
def test_attacks_find_the_same(digits, monkeypatch, attack, norm):
    clf, X, y = digits
    attack.set_params(norm=norm, eps=0.1 if norm == np.inf else 0.6, clip=(0, 1), random_state=0)
    fast = attack._with(estimator=clf).generate(X, y)
    scores = [score_adversarial(clf, X, y, attack)]
    monkeypatch.setattr(BaseAttack, "_engine", lambda self: PLAIN)
    slow = attack._with(estimator=clf).generate(X, y)
    scores.append(score_adversarial(clf, X, y, attack))
    # a sign that rounding decides may send a sample another way
    same = np.isclose(fast, slow, atol=1e-4).reshape(len(X), -1).mean(1)
    assert np.mean(same > 0.9) > 0.9
    assert abs(scores[0] - scores[1]) <= 0.01
    assert 0.2 < scores[0] < 0.9


def test_training_is_the_same(digits, monkeypatch):
    clf, X, y = digits
    losses = []
    for plain in (False, True):
        if plain:
            monkeypatch.setattr(BaseAttack, "_engine", lambda self: PLAIN)
            monkeypatch.setattr("robustsk.defenses._skorch.lay_out", lambda module, x: False)
        losses.append(clone_and_fit(clf, X, y).history_[:, "train_loss"])
    np.testing.assert_allclose(losses[0][0], losses[1][0], rtol=1e-3)
    np.testing.assert_allclose(losses[0], losses[1], rtol=0.05)


def clone_and_fit(clf, X, y, **params):
    from sklearn.base import clone

    return clone(clf).set_params(**params).fit(X, y)


def test_weights_stay_in_the_layout_of_training(digits):
    clf, X, _ = digits
    assert clf._channels_last
    victim = Victim(clf.module_)
    assert np.isfinite(clf.predict_proba(X[:5])).all()
    assert victim.logits(X[:5]).shape == (5, 10)


# --- low precision -------------------------------------------------------------------


class Close(nn.Module):
    """Two logits that differ by less than low precision can tell, as long as x < 1.5."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 2, bias=False)
        with torch.no_grad():
            self.layer.weight.copy_(torch.tensor([[256.0], [256.4]]))

    def forward(self, x):
        return self.layer(x) - x * torch.tensor([0.0, 0.2])


def test_low_precision_is_not_the_judge():
    model, X, y = Close(), np.full((4, 1), 1.0, dtype=np.float32), np.ones(4, dtype=int)
    x = torch.from_numpy(X)
    victim = Victim(model)
    with victim.frozen("eval", Engine("bf16")) as seen:
        assert (seen(x).argmax(1) == 0).all()  # wrongly
        assert (seen.precise(x).argmax(1) == 1).all()
        assert (seen.itself(x).argmax(1) == 1).all()
        assert (seen.logits(X).argmax(1) == 1).all()
        assert (seen(x).argmax(1) == 0).all()
    attack = PGD(eps=0.1, clip=None, random_state=0)
    for precision in (None, "bf16"):
        attack.set_params(precision=precision)
        assert score_adversarial(model, X, y, attack) == 1.0
    attack = PGD(model, eps=0.1, clip=None, random_state=0, precision="bf16").fit(X, y)
    info = attack.generate(X, y)
    assert (victim.logits(info).argmax(1) == 1).all()


def test_low_precision_finds_about_the_same(digits):
    clf, X, y = digits
    scores = [
        score_adversarial(
            clf, X, y, PGD(eps=0.1, n_steps=20, clip=(0, 1), random_state=0, precision=precision)
        )
        for precision in (None, "bf16")
    ]
    assert abs(scores[0] - scores[1]) <= 0.02
    victim = clf.__robustsk_victim__()
    x = torch.from_numpy(X[:8])
    with victim.frozen("eval", Engine("bf16")) as seen, torch.no_grad():
        rough, exact = seen(x), seen.precise(x)
        assert rough.dtype == torch.float32
    assert 0 < (rough - exact).abs().max() < 0.1 * exact.abs().max()


def test_questions_are_answered_in_full_precision(digits):
    clf, X, y = digits
    attack = SquareAttack(clf, eps=0.1, max_queries=20, clip=(0, 1), random_state=0)
    expected = attack.generate(X[:20], y[:20])
    np.testing.assert_array_equal(
        attack.set_params(precision="bf16").generate(X[:20], y[:20]), expected
    )


def test_training_in_low_precision(digits):
    clf, X, y = digits
    exact = clone_and_fit(clf, X, y, max_epochs=4)
    rough = clone_and_fit(clf, X, y, max_epochs=4, precision="bf16")
    assert rough.adversary_.precision == "bf16"
    assert all(p.dtype == torch.float32 for p in rough.module_.parameters())
    first = [c.history_[0, "train_loss"] for c in (exact, rough)]
    assert first[0] != first[1]
    assert first[0] == pytest.approx(first[1], rel=0.05)
    assert rough.default_attack().precision is None
    assert rough.predict_proba(X[:3]).sum(1) == pytest.approx(np.ones(3))


def test_unknown_precision(digits):
    clf, X, y = digits
    with pytest.raises(ValueError, match=r"precision must be one of .*'fp8'"):
        score_adversarial(clf, X, y, PGD(precision="fp8"))
    with pytest.raises(ValueError, match=r"precision must be one of .*'fp8'"):
        clone_and_fit(clf, X, y, precision="fp8")
    with pytest.raises(ValueError, match="compile must be"):
        score_adversarial(clf, X, y, PGD(compile=3))


# --- hooks and compilation -----------------------------------------------------------


class StandIn(nn.Module):
    def forward(self, x):
        return F.conv2d(x, torch.linspace(-1, 1, 144).reshape(8, 2, 3, 3), stride=2)


def test_a_stand_in_for_a_layer_stands_for_that_layer_alone(monkeypatch):
    module = trained_statistics(conv_norm(nn.BatchNorm2d(8), bias=False), (2, 8, 8))
    x, y = torch.rand(3, 2, 8, 8), torch.zeros(3, dtype=torch.long)
    inside = PGD(eps=0.1, norm=2, clip=(0, 1), n_steps=2)
    attack = BPDA(attack=inside, layer="0", backward=StandIn(), random_state=0)
    found = attack.perturb(module, x, y)
    monkeypatch.setattr(BaseAttack, "_engine", lambda self: PLAIN)
    torch.testing.assert_close(found, attack.perturb(module, x, y))
    assert all("forward" not in vars(m) for m in module.modules())


@pytest.mark.slow
def test_compiled(digits):
    clf, X, y = digits
    attack = PGD(clf, eps=0.1, n_steps=5, clip=(0, 1), random_state=0)
    expected = attack.generate(X[:64], y[:64])
    found = attack.set_params(compile=True).generate(X[:64], y[:64])
    assert np.isclose(found, expected, atol=1e-4).mean() > 0.95


@pytest.mark.slow
def test_a_compiled_network_is_left_as_it_is(digits):
    clf, X, y = digits
    module = torch.compile(copy.deepcopy(clf.module_))
    attack = PGD(eps=0.1, n_steps=2, clip=(0, 1), random_state=0)
    x, y = torch.from_numpy(X[:16]), torch.from_numpy(y[:16]).long()
    victim = Victim(module)
    found = attack.perturb(victim, x, y)
    with victim.frozen("eval", Engine()) as seen:
        assert not seen.is_folded
    assert torch.isclose(found, attack.perturb(clf, x, y), atol=1e-4).double().mean() > 0.95


def test_networks_that_cannot_be_made_faster_are_asked_no_more_often():
    calls = []
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    module.register_forward_hook(lambda m, args, out: calls.append(len(out)))
    PGD(eps=0.1, n_steps=3, clip=None, random_state=0).perturb(
        module, torch.rand(5, 4), torch.zeros(5, dtype=torch.long)
    )
    assert calls == [5, 5, 5]


def test_batch_statistics_are_not_folded():
    torch.manual_seed(0)
    module = trained_statistics(conv_norm(nn.BatchNorm2d(8)), (2, 8, 8))
    x, y = torch.rand(6, 2, 8, 8), torch.zeros(6, dtype=torch.long)
    victim = Victim(module)
    with victim.frozen("train", PGD(bn_mode="train")._engine()) as seen, torch.no_grad():
        found = seen(x)
    with torch.no_grad():
        torch.testing.assert_close(found, copy.deepcopy(module).train()(x))
    small = SmallCNN((2, 8, 8), 4)
    assert PGD(eps=0.1, bn_mode="train").perturb(small, x, y).shape == x.shape


# --- runs that share a batch ---------------------------------------------------------


SHARED = [
    PGD(n_restarts=5, n_steps=6),
    APGD(n_targets=9, n_steps=12, objective="dlr"),
    PGD(n_restarts=3, n_steps=4, norm=1, eps=1.0),
    APGD(n_restarts=4, n_steps=12),
    APGD(n_restarts=3, n_steps=20, norm=1, eps=1.0),
]


@pytest.mark.dealt
@pytest.mark.parametrize(
    ("attack", "keep"),
    [
        *((attack, keep) for attack in SHARED[:2] for keep in ("first", "worst")),
        *((attack, "last") for attack in SHARED),
        *(
            pytest.param(attack, keep, marks=pytest.mark.slow)
            for attack in SHARED[2:]
            for keep in ("first", "worst")
        ),
    ],
)
def test_runs_that_share_a_batch_find_what_they_find_alone(digits, monkeypatch, attack, keep):
    clf, X, y = digits
    x, y = torch.from_numpy(X[:40]), torch.from_numpy(y[:40]).long()
    attack.set_params(clip=(0, 1), random_state=0)
    if attack.eps is None:
        attack.set_params(eps=0.08)
    results, sizes = [], []
    monkeypatch.setattr(BaseAttack, "_engine", lambda self: PLAIN)
    for room in (0, 2**20):
        monkeypatch.setattr("robustsk.attacks.gradient._descent._ROOM", room)
        victim = clf.__robustsk_victim__()
        seen = []
        handle = victim.module.register_forward_hook(
            lambda m, a, out, seen=seen: seen.append(len(out))
        )
        results.append(attack.perturb(victim, x, y, keep=keep))
        handle.remove()
        sizes.append(seen)
    assert len(sizes[1]) < len(sizes[0])
    if keep == "last":
        assert max(sizes[1]) > len(x)
    same = torch.isclose(results[0], results[1], atol=1e-4).flatten(1).all(1)
    assert same.double().mean() >= 0.95
    victim = clf.__robustsk_victim__()
    wrong = [victim.logits(z.numpy()).argmax(1) != y for z in results]
    assert (wrong[0] != wrong[1]).sum() <= 1
    assert 3 < wrong[0].sum() < 38


def test_autocast_of_the_user_is_respected(digits):
    clf, X, y = digits
    x, y = torch.from_numpy(X[:16]), torch.from_numpy(y[:16]).long()
    attack = PGD(eps=0.1, clip=(0, 1), random_state=0)
    with torch.autocast("cpu", torch.bfloat16):
        found = attack.perturb(clf, x, y)
    assert found.dtype == torch.float32
    assert (found - x).abs().max() <= 0.1 + 1e-6
    assert not torch.equal(found, x)


@pytest.mark.parametrize(("width", "is_laid_out"), [(4, False), (8, True)])
def test_narrow_networks_keep_their_layout(width, is_laid_out):
    """The gradient of weights is not what torch computes in the other one, or ends the process."""
    net = ResNet((3, 8, 8), 4, widths=(width, 8), layers=(1, 1))
    assert lay_out(net, torch.rand(4, 3, 8, 8)) is is_laid_out
