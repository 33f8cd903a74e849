"""What a CUDA graph records, run without one: the same numbers as by steps, in the same places."""

import logging

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from robustsk import APGD, BIM, FGSM, MIM, PGD, FriendlyPGD
from robustsk._precision import _switches, full_precision, rounds
from robustsk.attacks._graph import CannotCapture, Recorded, _key, check, graphs_of
from robustsk.attacks.noise import SampleNoise, _mix, _mix_on_host
from robustsk.attacks.objectives import Objective, resolve_objective
from robustsk.models import ResNet
from robustsk.victims.victim import Victim

SHAPE = (3, 8, 8)


def network():
    torch.manual_seed(0)
    net = ResNet(SHAPE, 4, widths=(8, 16), layers=(1, 1))
    with torch.no_grad():
        for _ in range(3):
            net(torch.rand(16, *SHAPE))
    return net


def batch(n=8, seed=0):
    torch.manual_seed(seed)
    return torch.rand(n, *SHAPE), torch.randint(4, (n,))


@pytest.mark.dealt
@pytest.mark.parametrize(
    "attack",
    [
        PGD(eps=0.1, n_steps=3, clip=(0, 1)),
        PGD(eps=0.1, n_steps=2, step_size=0.03, random_start="gaussian", clip=None),
        PGD(eps=0.5, norm=2, n_steps=3, clip=(0, 1)),
        PGD(eps=0.1, n_steps=2, clip=(0, 1), precision="bf16"),
        FGSM(eps=0.1, random_start="uniform", clip=(0, 1)),
        BIM(eps=0.1, n_steps=2, clip=(0, 1)),
        MIM(eps=0.1, n_steps=2, clip=(0, 1)),
    ],
    ids=repr,
)
@pytest.mark.parametrize("objective", ["ce", "kl"])
def test_what_is_recorded_is_the_attack(attack, objective):
    """Over steps of an optimizer that move weights and statistics, and another radius."""
    net = network()
    victim = Victim(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    recorded = state = None
    for k in range(4):
        if k == 2:
            attack = attack._with(eps=attack.eps / 2)
        prepared = attack.prepare(victim, SHAPE)
        x, y = batch(seed=k)
        expected = attack.perturb(prepared, x, y, objective, seed=k)
        with victim.frozen("eval", attack._engine()) as seen:
            if recorded is None:
                recorded = Recorded(prepared, seen, x, y, None, resolve_objective(objective))
                places = [t.data_ptr() for t in seen.view.tensors]
                state = seen.view.state
            recorded.put(prepared, x, y, None, k)
            assert torch.equal(recorded.run(), expected)
            assert seen.view.state == state
            assert [t.data_ptr() for t in seen.view.tensors] == places
        net.train()
        optimizer.zero_grad()
        F.cross_entropy(net(expected), y).backward()
        optimizer.step()


def test_a_batch_is_filled_up():
    net, attack = network(), PGD(eps=0.1, n_steps=2, clip=(0, 1))
    victim = Victim(net)
    prepared = attack.prepare(victim, SHAPE)
    x, y = batch(8)
    expected = attack.perturb(prepared, x[:5], y[:5], seed=3)
    with victim.frozen("eval", attack._engine()) as seen:
        recorded = Recorded(prepared, seen, x, y, None, resolve_objective("ce"))
        recorded.put(prepared, x[:5], y[:5], None, 3)
        assert torch.allclose(recorded.run()[:5], expected, atol=1e-6)


def state_of(victim):
    with victim.frozen() as seen:
        seen(batch()[0])
        return seen.view.state


@pytest.mark.parametrize("change", ["attribute", "swap", "data", "hook"])
def test_a_change_in_the_network_is_another_state(change):
    net = network().eval()
    victim = Victim(net)
    state_of(victim)
    before = state_of(victim)
    assert state_of(victim) == before
    weight = net.classifier.weight
    if change == "attribute":
        net.scale = 2.0
    elif change == "swap":
        net.classifier.weight = nn.Parameter(weight.detach().clone())
    elif change == "data":
        weight.data = weight.detach().clone()
    else:
        net.register_forward_hook(lambda *_: None)
    after = state_of(victim)
    assert after != before
    assert state_of(victim) == after


@pytest.mark.parametrize("mode", [True, False])
def test_training_and_steps_are_no_other_state(mode):
    net = network()
    victim = Victim(net)
    state_of(victim)
    before = state_of(victim)
    net.train(mode)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(1.01)
    net.load_state_dict(network().state_dict())
    assert state_of(victim) == before


@pytest.mark.parametrize(
    ("attack", "objective", "keep", "reason"),
    [
        (PGD(), "ce", "last", "device 'cpu'"),
        (PGD(), "ce", "worst", "single run"),
        (PGD(n_restarts=2), "ce", "last", "single run"),
        (APGD(), "ce", "last", "depends on what it finds"),
        (FriendlyPGD(), "ce", "last", "depends on what it finds"),
    ],
)
def test_reasons(attack, objective, keep, reason):
    prepared = attack._with(graph="auto").prepare(Victim(network()), SHAPE)
    with pytest.raises(CannotCapture, match=reason):
        check(prepared, batch()[0], resolve_objective(objective), keep)


def test_who_overrides_the_steps_must_say_that_they_are_fixed():
    class Mine(PGD):
        def _attack_batch(self, batch):
            return super()._attack_batch(batch)

    prepared = Mine().prepare(Victim(network()), SHAPE)
    with pytest.raises(CannotCapture, match="depends on what it finds"):
        check(prepared, batch()[0], resolve_objective("ce"), "last")


def test_the_key_is_of_all_but_radius_step_and_seed():
    victim = Victim(network())
    x, y = batch()

    def key(attack, objective="ce"):
        prepared = attack.prepare(victim, SHAPE)
        with victim.frozen("eval", attack._engine()) as seen:
            return _key(prepared, seen, x, y, resolve_objective(objective), None)

    same = PGD(eps=0.1, step_size=0.1, clip=(0, 1), random_state=0)
    key(same)
    for other in (
        PGD(eps=0.2, step_size=0.1, clip=(0, 1), random_state=0),
        PGD(eps=0.1, step_size=0.2, clip=(0.0, 1.0), random_state=3),
    ):
        assert key(other) == key(same)
    for other in (
        PGD(eps=0.1, clip=(0, 1)),
        PGD(eps=0.1, step_size=0.1, clip=(0, 2)),
        PGD(eps=0.1, step_size=0.1, clip=(0, 1), n_steps=3),
        PGD(eps=0.1, step_size=0.1, clip=(0, 1), precision="bf16"),
        BIM(eps=0.1, step_size=0.1, clip=(0, 1)),
    ):
        assert key(other) != key(same)
    assert key(same, "kl") != key(same)
    before = key(same)
    with torch.autocast("cpu", torch.bfloat16):
        assert key(same) != before
    assert key(same) == before


def test_graph_true_says_why_not():
    x, y = batch()
    with pytest.raises(CannotCapture, match="the samples are on the device 'cpu'"):
        PGD(eps=0.1, graph=True).perturb(network().eval(), x, y)
    with pytest.raises(ValueError, match="graph must be one of"):
        PGD(eps=0.1, graph="always").perturb(network().eval(), x, y)


def test_auto_tells_its_reason_once(caplog):
    victim = Victim(network())
    attack = PGD(eps=0.1)
    prepared = attack.prepare(victim, SHAPE)
    x, y = batch()
    with caplog.at_level(logging.DEBUG, "robustsk.attacks._graph"):
        for _ in range(3):
            with victim.frozen() as seen:
                options = {"seed": 0, "keep": "last", "clean_logits": None}
                assert graphs_of(seen).attack(prepared, seen, x, y, "ce", **options) is None
    assert [r.message for r in caplog.records] == [
        "PGD runs without a CUDA graph: the samples are on the device 'cpu'"
    ]


def test_only_objectives_of_their_arguments_are_recorded():
    prepared = PGD().prepare(Victim(network()), SHAPE)
    with pytest.raises(CannotCapture, match="device"):
        check(prepared, batch()[0], resolve_objective("kl"), "last")
    mine = Objective(lambda z, y, t, c: z.sum(1))

    class OnGPU:
        is_cuda = True

    with pytest.raises(CannotCapture, match="objective"):
        check(prepared, OnGPU(), mine, "last")
    check(prepared, OnGPU(), resolve_objective("kl"), "last")


@pytest.mark.parametrize("seed", [0, 1, 2**31 - 1, 2**63 - 1])
def test_a_seed_on_the_host_is_mixed_as_on_a_device(seed):
    assert _mix_on_host(seed) == int(_mix(torch.tensor(seed)))
    x = batch()[0]
    on_device = SampleNoise(x, torch.tensor(seed)).uniform(0)
    assert torch.equal(SampleNoise(x, seed).uniform(0), on_device)


# --- full precision ------------------------------------------------------------------


def read():
    """Return all switches of torch that can be read."""
    found = []
    for place in (torch.backends, torch.backends.cudnn, torch.backends.cuda.matmul):
        for name in ("allow_tf32", "fp32_precision"):
            try:
                found.append(getattr(place, name, None))
            except RuntimeError:
                found.append("mixed")
    for name in ("conv", "rnn"):
        found.append(getattr(getattr(torch.backends.cudnn, name, None), "fp32_precision", None))
    return found


@pytest.fixture
def _switches_kept():
    cudnn, matmul = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    yield
    torch.backends.cudnn.allow_tf32 = cudnn
    torch.set_float32_matmul_precision(matmul)


@pytest.mark.usefixtures("_switches_kept")
@pytest.mark.parametrize("conv", [True, False])
@pytest.mark.parametrize("matmul", ["highest", "high", "medium"])
def test_switches_are_off_inside_and_as_they_were_after(conv, matmul):
    torch.backends.cudnn.allow_tf32 = conv
    torch.set_float32_matmul_precision(matmul)
    before, gpu = read(), torch.device("cuda")
    with full_precision(gpu):
        assert not any(on for *_, on in _switches())
        with full_precision(gpu):
            assert not any(on for *_, on in _switches())
        assert not any(on for *_, on in _switches())
    assert read() == before
    assert torch.get_float32_matmul_precision() == matmul
    with pytest.raises(ZeroDivisionError), full_precision(gpu):
        raise ZeroDivisionError
    assert read() == before
    with full_precision(torch.device("cpu")):
        assert read() == before


def test_nothing_is_rounded_on_a_cpu():
    assert not rounds(torch.zeros(2))
    assert Victim(network()).logits(batch()[0].numpy()).isfinite().all()
