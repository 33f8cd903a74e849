"""Attacks as CUDA graphs, a training loop that does not wait, and judgements in full precision."""

import copy
import logging
import pickle

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback
from torch import nn
from torch.nn import functional as F

from robustsk import FGSM, MIM, PGD, FATClassifier, FriendlyPGD, PGDATClassifier, TRADESClassifier
from robustsk._precision import full_precision, rounds
from robustsk.attacks._graph import CannotCapture, graphs_of
from robustsk.attacks.noise import SampleNoise
from robustsk.models import ResNet
from robustsk.training import EpsWarmup
from robustsk.victims.victim import Victim

pytestmark = pytest.mark.gpu

GPU = "cuda"
SHAPE = (3, 16, 16)


def network(training=True):
    torch.manual_seed(0)
    net = ResNet(SHAPE, 10, widths=(8, 16), layers=(1, 1)).to(GPU)
    with torch.no_grad():
        for _ in range(5):
            net(torch.rand(32, *SHAPE, device=GPU))
    return net.train(training)


def batch(n=32, seed=0):
    torch.manual_seed(seed)
    return torch.rand(n, *SHAPE, device=GPU), torch.randint(10, (n,), device=GPU)


class Session:
    """One network that is attacked again and again, with a graph and without."""

    def __init__(self, net, attack, is_ours=True):
        self.net, self.attack = net, attack
        self.victims = {graph: Victim(net) for graph in (True, False)}
        for victim in self.victims.values():
            victim.is_ours = is_ours

    def __call__(self, x, y, seed, objective=None, **options):
        """Return what both find."""
        found = []
        for graph, victim in self.victims.items():
            attack = self.attack._with(graph=graph)
            prepared = attack.prepare(victim, tuple(x.shape[1:]))
            found.append(attack.perturb(prepared, x, y, objective, seed=seed, **options))
        return found

    @property
    def n_replayed(self):
        with self.victims[True].frozen() as seen:
            return graphs_of(seen).n_replayed

    @property
    def n_recorded(self):
        with self.victims[True].frozen() as seen:
            return graphs_of(seen)._n_recorded


def assert_alike(found, expected, eps):
    """Signs that rounding decides may differ between two choices of kernels."""
    assert found.shape == expected.shape
    assert torch.isclose(found, expected, atol=1e-3 * eps).double().mean() > 0.98


attacks = pytest.mark.parametrize(
    "attack",
    [
        PGD(eps=0.03, n_steps=5, clip=(0, 1)),
        PGD(eps=0.03, n_steps=3, step_size=0.01, clip=(0, 1), random_start="gaussian"),
        PGD(eps=0.5, norm=2, n_steps=3, clip=(0, 1)),
        PGD(eps=0.03, n_steps=3, clip=(0, 1), precision="bf16"),
        FGSM(eps=0.03, random_start="uniform", clip=None),
        MIM(eps=0.03, n_steps=3, clip=(0, 1)),
    ],
    ids=repr,
)


@attacks
@pytest.mark.parametrize("objective", ["ce", "kl"])
def test_the_graph_finds_what_the_steps_find_while_weights_and_radius_change(attack, objective):
    net = network()
    session = Session(net, attack)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    eps = attack.eps
    for k in range(5):
        x, y = batch(seed=k)
        if k == 3:
            session.attack = attack._with(eps=eps / 2)
        found, expected = session(x, y, seed=k, objective=objective)
        assert_alike(found, expected, eps)
        net.train()
        optimizer.zero_grad()
        F.cross_entropy(net(expected), y).backward()
        optimizer.step()
    assert session.n_replayed == 5
    assert session.n_recorded == 1


def test_batches_of_other_sizes():
    session = Session(network(), PGD(eps=0.03, n_steps=3, clip=(0, 1)))
    for n, n_replayed in ((32, 1), (20, 2), (7, 2), (32, 3), (48, 4), (40, 5)):
        x, y = batch(n, seed=n)
        found, expected = session(x, y, seed=n)
        assert_alike(found, expected, 0.03)
        assert session.n_replayed == n_replayed
    assert session.n_recorded == 2


def test_two_networks_in_turn():
    nets = network(), network()
    with torch.no_grad():
        for p in nets[1].parameters():
            p.mul_(1.1)
    sessions = [Session(net, PGD(eps=0.03, n_steps=3, clip=(0, 1))) for net in nets]
    for k in range(4):
        x, y = batch(seed=k)
        for session in sessions:
            assert_alike(*session(x, y, seed=k), 0.03)


def test_results_are_not_written_over():
    session = Session(network(), PGD(eps=0.03, n_steps=3, clip=(0, 1)))
    first = session(*batch(seed=0), seed=0)[0]
    kept = first.clone()
    session(*batch(seed=1), seed=1)
    assert torch.equal(first, kept)


@pytest.mark.parametrize("change", ["data", "swap", "attribute", "buffer"])
def test_what_has_changed_in_the_network_is_seen(change):
    net = network()
    net.scale = 1.0
    net.register_buffer("shift", torch.zeros(10, device=GPU))
    forward = type(net).forward

    class Scaled(type(net)):
        def forward(self, x):
            return self.scale * forward(self, x) + self.shift * x.mean()

    net.__class__ = Scaled
    session = Session(net, PGD(eps=0.03, n_steps=3, clip=(0, 1)))
    x, y = batch()
    before, _ = session(x, y, seed=0)
    weight = net.classifier.weight
    with torch.no_grad():
        if change == "data":
            weight.data = -weight.data
        elif change == "swap":
            net.classifier.weight = nn.Parameter(-weight)
        elif change == "attribute":
            net.scale = -1.0
        else:
            net.shift.copy_(100 * torch.arange(10.0))
    found, expected = session(x, y, seed=0)
    assert_alike(found, expected, 0.03)
    assert not torch.allclose(found, before, atol=1e-3) or change == "buffer"
    found, expected = session(x, y, seed=0)
    assert_alike(found, expected, 0.03)


def test_counts_of_questions_are_those_of_the_steps():
    session = Session(network(), PGD(eps=0.03, n_steps=3, clip=(0, 1)))
    for k in range(3):
        session(*batch(32, seed=k), seed=k)
    session(*batch(20, seed=5), seed=5)
    a, b = (victim.calls for victim in session.victims.values())
    assert (a.forward, a.backward) == (b.forward, b.backward)


class Hesitant(nn.Module):
    """Its output depends on what it has seen, by way of the host."""

    def __init__(self):
        super().__init__()
        self.net = network(False)

    def forward(self, x):
        return self.net(x) * (2.0 if float(x.detach().mean()) > 0.5 else 1.0)


class Drawing(Hesitant):
    def forward(self, x):
        return self.net(x + 0.01 * torch.randn_like(x))


class Heard(Hesitant):
    def __init__(self):
        super().__init__()
        self.heard = 0
        self.net.register_forward_hook(self.hear)

    def hear(self, *_):
        self.heard += 1

    def forward(self, x):
        return self.net(x)


@pytest.mark.parametrize(
    ("net", "options", "reason"),
    [
        (Hesitant, {}, "cannot be recorded"),
        (Drawing, {}, "draws random numbers"),
        (Heard, {}, "hooks"),
        (network, {"norm": 1}, "norm 1"),
        (network, {"n_restarts": 2}, "single run"),
        (network, {"bn_mode": "train"}, "rest of the batch"),
        (network, {"objective": lambda z, y: F.cross_entropy(z, y, reduction="none")}, "objective"),
        (network, {"eps": np.full(SHAPE, 0.03)}, "differ between features"),
    ],
)
def test_what_cannot_be_recorded_runs_by_itself(net, options, reason, caplog):
    net = net().eval()
    attack = PGD(**{"eps": 0.03, "n_steps": 2, "clip": (0, 1), **options})
    before = copy.deepcopy(net.state_dict())
    x, y = batch()
    with pytest.raises(CannotCapture, match=reason):
        attack._with(graph=True).perturb(net, x, y, seed=0)
    victim = Victim(net)
    prepared = attack.prepare(victim, SHAPE)
    with caplog.at_level(logging.DEBUG, "robustsk.attacks._graph"):
        found = [attack.perturb(prepared, x, y, seed=0) for _ in range(4)]
    assert reason in caplog.text
    assert len([r for r in caplog.records if "without" in r.message]) == 1
    if type(net) is not Drawing:
        expected = attack._with(graph=False).perturb(victim, x, y, seed=0)
        assert all(torch.equal(z, expected) for z in found)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert (x + 1).sum().isfinite()  # the device goes on working


def test_what_is_attacked_once_is_not_recorded():
    net, (x, y) = network(False), batch()
    attack = PGD(eps=0.03, n_steps=2, clip=(0, 1))
    victim = Victim(net)
    attack.perturb(victim, x, y, seed=0)
    with victim.frozen() as seen:
        assert graphs_of(seen)._n_recorded == 0


def test_graph_true_works_on_a_module_again_and_again():
    net, (x, y) = network(False), batch()
    attack = PGD(eps=0.03, n_steps=2, clip=(0, 1), graph=True)
    found = [attack.perturb(net, x, y, seed=0) for _ in range(3)]
    expected = attack._with(graph=False).perturb(net, x, y, seed=0)
    for z in found:
        assert_alike(z, expected, 0.03)
    assert attack._last_victim[0] is net
    assert not hasattr(pickle.loads(pickle.dumps(attack)), "_last_victim")


# --- training ------------------------------------------------------------------------


def data(n=300):
    rng = np.random.RandomState(0)
    X = rng.rand(n, *SHAPE).astype(np.float32)
    y = rng.randint(0, 3, n)
    X[np.arange(n), y] += 0.5
    return np.clip(X, 0, 1), y


def fit(kind=PGDATClassifier, X=None, **options):
    given = {
        "adversary": PGD(eps=0.03, n_steps=3, clip=(0, 1)),
        "optimizer": torch.optim.SGD,
        "lr": 0.05,
        "max_epochs": 3,
        "batch_size": 32,
        "random_state": 0,
        "device": GPU,
        **options,
    }
    torch.manual_seed(0)
    net = ResNet(SHAPE, 3, widths=(8, 16), layers=(1, 1))
    return kind(net, **given).fit(*data() if X is None else (X, data()[1]))


@pytest.mark.parametrize("kind", [PGDATClassifier, TRADESClassifier])
def test_training_with_a_graph_is_training(kind, caplog):
    with caplog.at_level(logging.DEBUG, "robustsk.attacks._graph"):
        losses = [
            fit(kind, adversary__graph=graph).history_[:, "train_loss"] for graph in ("auto", False)
        ]
    assert "runs as a CUDA graph" in caplog.text
    assert np.allclose(*losses, atol=0.02)


def test_an_adversary_that_stops_early_runs_without():
    adversary = FriendlyPGD(eps=0.03, n_steps=3, clip=(0, 1))
    assert np.isfinite(fit(FATClassifier, adversary=adversary).history_[:, "train_loss"]).all()


def test_the_radius_of_a_warm_up_acts():
    clf = fit(callbacks=[EpsWarmup(2)])
    assert clf.adversary_.eps == 0.03
    assert np.isfinite(clf.history_[:, "train_loss"]).all()


def test_a_fitted_model_with_a_graph_is_copied_and_pickled():
    clf = fit()
    for other in (copy.deepcopy(clf), pickle.loads(pickle.dumps(clf))):
        assert np.array_equal(other.predict(data()[0]), clf.predict(data()[0]))


class Watching(Callback):
    """Wants to see each loss at once."""

    def __init__(self):
        self.losses = []

    def on_batch_end(self, net, training=False, **kwargs):
        if training:
            self.losses.append(net.history_[-1, "batches", -1, "train_loss"])


def test_losses_are_numbers_whoever_asks():
    watching = Watching()
    watched, alone = fit(callbacks=[("w", watching)]), fit()
    assert all(isinstance(loss, float) for loss in watching.losses)
    for clf in (watched, alone):
        found = [b["train_loss"] for epoch in clf.history_ for b in epoch["batches"]]
        assert all(isinstance(loss, float) for loss in found)
        assert len(found) == 3 * 10
    assert np.allclose(
        watched.history_[:, "train_loss"], alone.history_[:, "train_loss"], atol=0.02
    )


def test_divergence_is_noticed_and_leaves_a_model():
    clf = fit(max_epochs=1)
    start = copy.deepcopy(clf.module_.state_dict())

    class Broken(nn.CrossEntropyLoss):
        count = 0

        def forward(self, logits, y):
            Broken.count += 1
            return super().forward(logits, y) * (float("nan") if Broken.count > 5 else 1)

    clf.set_params(criterion=Broken)
    Broken.count = 0
    with pytest.raises(FloatingPointError, match="nan in epoch 2, batch 6"):
        clf.partial_fit(*data())
    assert all(torch.equal(v, start[k]) for k, v in clf.module_.state_dict().items())
    clf.set_params(criterion=nn.CrossEntropyLoss, max_epochs=1).partial_fit(*data())
    assert np.isfinite(clf.history_[-1, "train_loss"])
    assert np.isfinite(clf.predict_proba(data()[0])).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_data_in_the_memory_of_the_device(dtype):
    X = data()[0]
    X = (255 * X).astype(np.uint8) if dtype == np.uint8 else X.astype(dtype)
    options = {"adversary": PGD(eps=2, n_steps=1, clip=(0, 255))} if dtype == np.uint8 else {}
    resident = fit(X=X, **options).history_[:, "train_loss"]
    fetched = fit(X=X, iterator_train__num_workers=1, **options).history_[:, "train_loss"]
    assert np.allclose(resident, fetched, rtol=0.02)


def test_optimizers_are_fused_unless_told_otherwise():
    assert fit(max_epochs=1).optimizer_.defaults["fused"] is True
    assert not fit(max_epochs=1, optimizer__foreach=True).optimizer_.defaults["fused"]


# --- full precision ------------------------------------------------------------------


def test_judgements_are_in_full_precision():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 64, 3), nn.Conv2d(64, 64, 3), nn.Flatten(), nn.LazyLinear(10))
    net = net.to(GPU).eval()
    x, y = batch()
    net(x)
    assert torch.backends.cudnn.allow_tf32
    with torch.no_grad():
        exact = copy.deepcopy(net).double()(x.double())
        rounded = net(x)
        with full_precision(x.device):
            assert not rounds(x)
            judged = net(x)
    assert torch.backends.cudnn.allow_tf32
    error, least = (rounded - exact).abs().max(), (judged - exact).abs().max()
    assert least < error / 20
    logits = torch.from_numpy(np.asarray(Victim(net).logits(x.cpu().numpy()))).double()
    assert (logits - exact.cpu()).abs().max() < error / 20
    asked = PGD(net, eps=0.01, clip=(0, 1), n_steps=5, random_state=0)
    X_adv = asked.generate(x.cpu().numpy(), y.cpu().numpy())
    assert torch.backends.cudnn.allow_tf32
    assert np.isfinite(X_adv).all()


def test_predictions_are_in_full_precision():
    clf = fit(max_epochs=1)
    X = data()[0]
    cpu = copy.deepcopy(clf.module_).cpu().double().eval()
    with torch.no_grad():
        expected = cpu(torch.from_numpy(X).double())
        got = clf.module_.eval()(torch.from_numpy(X).to(GPU)).cpu().double()
    found = clf.decision_function(X)
    assert np.abs(found - expected.numpy()).max() < 1e-4
    assert np.abs(found - expected.numpy()).max() <= np.abs(got - expected).max()


# --- compiled ------------------------------------------------------------------------


def test_compiled_in_training_once():
    import torch._dynamo

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    clf = fit(adversary__compile=True, max_epochs=2)
    assert np.isfinite(clf.history_[:, "train_loss"]).all()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_what_a_recording_reads_is_kept():
    """The tables of random numbers are shared, and forgotten when there are many."""
    session = Session(network(), PGD(eps=0.03, n_steps=2, clip=(0, 1)))
    session(*batch(), seed=0)
    for n in range(20):
        SampleNoise(torch.rand(2, 5 + n, device=GPU), 0)
    waste = [torch.full((768,), 7, device=GPU) for _ in range(100)]
    found, expected = session(*batch(seed=1), seed=1)
    assert_alike(found, expected, 0.03)
    assert len(waste) == 100
