"""Early stopping and counting against closed forms and a loop written out per sample."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

from robustsk import PGD, score_adversarial
from robustsk.attacks import BIM, FriendlyPGD, GeometryAwarePGD

N_STEPS = 8


def path_of(net, x, y, eps, size, start, n_steps=N_STEPS, clip=(0.0, 1.0)):
    """Return all iterates of the inf-norm descent, and where each is misclassified."""
    iterates, z = [], start
    low, high = (x - eps).clamp_min(clip[0]), (x + eps).clamp_max(clip[1])
    for step in range(n_steps + 1):
        iterates.append(z)
        if step == n_steps:
            break
        z = z.clone().requires_grad_(True)
        loss = nn.functional.cross_entropy(net(z), y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, z)
        z = torch.minimum(torch.maximum(z.detach() + size * gradient.sign(), low), high)
    with torch.no_grad():
        wrong = torch.stack([net(z).argmax(1) != y for z in iterates])
    return torch.stack(iterates), wrong


@pytest.fixture
def setting(images):
    net = images.net.double().eval()
    x, y = torch.tensor(images.X[:60]).double(), torch.tensor(images.y[:60])
    return net, x, y


COMMON = {"eps": 0.15, "step_size": 0.03, "n_steps": N_STEPS, "clip": (0, 1), "random_state": 0}


@pytest.mark.parametrize("tau", [0, 1, 2, N_STEPS])
def test_stops_where_the_algorithm_says(setting, tau):
    net, x, y = setting
    attack = FriendlyPGD(tau=tau, random_start="none", **COMMON)
    x_adv, info = attack.perturb(net, x, y, return_info=True)
    iterates, wrong = path_of(net, x, y, 0.15, 0.03, x)
    stopped = set()
    for i in range(len(x)):
        budget, kappa, steps = tau, 0, 0
        for t in range(N_STEPS):
            if wrong[t, i] and budget == 0:
                break
            budget -= int(wrong[t, i])
            kappa += int(not wrong[t, i])
            steps += 1
        assert_array_equal(x_adv[i].numpy(), iterates[steps, i].numpy())
        assert info["kappa"][i] == kappa
        assert info["n_steps_taken"][i] == steps
        stopped.add(steps)
    assert len(stopped) > 3 or tau == N_STEPS


def test_no_end_of_patience_is_the_full_descent(images):
    x, y = torch.tensor(images.X[:40]), torch.tensor(images.y[:40])
    friendly = FriendlyPGD(tau=N_STEPS, **COMMON).perturb(images.net, x, y, seed=3)
    aware = GeometryAwarePGD(**COMMON).perturb(images.net, x, y, seed=3)
    full = PGD(**COMMON).perturb(images.net, x, y, seed=3)
    assert torch.equal(friendly, full)
    assert torch.equal(aware, full)


def test_first_error_is_returned(setting):
    net, x, y = setting
    x_adv, info = FriendlyPGD(**COMMON).perturb(net, x, y, seed=1, return_info=True)
    with torch.no_grad():
        wrong = net(x_adv).argmax(1) != y
    early = info["n_steps_taken"] < N_STEPS
    assert early.any()
    assert wrong[early].all()
    assert torch.equal(info["kappa"], info["n_steps_taken"])
    start = PGD(**{**COMMON, "step_size": 0.0}).perturb(net, x, y, seed=1)
    at_once = info["n_steps_taken"] == 0
    assert at_once.any()
    assert torch.equal(x_adv[at_once], start[at_once])


def test_patience_costs_steps(setting):
    net, x, y = setting
    taken = [
        FriendlyPGD(tau=tau, **COMMON).perturb(net, x, y, seed=2, return_info=True)[1]
        for tau in (0, 1, 3, N_STEPS)
    ]
    taken = torch.stack([info["n_steps_taken"] for info in taken])
    assert torch.all(taken.diff(dim=0) >= 0)
    assert torch.all(taken[-1] == N_STEPS)
    assert taken[0].float().mean() < 0.8 * N_STEPS


@pytest.mark.parametrize("keep", ["last", "worst", "first"])
def test_order_of_rows_is_kept(setting, keep):
    net, x, y = setting
    attack = FriendlyPGD(tau=1, omega=0.01, **COMMON)
    whole, info = attack.perturb(net, x, y, seed=4, keep=keep, return_info=True)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    mixed, mixed_info = attack.perturb(net, x[order], y[order], seed=4, keep=keep, return_info=True)
    assert_allclose(mixed.numpy(), whole[order].numpy(), atol=1e-12)
    for name in ("kappa", "n_steps_taken"):
        assert torch.equal(mixed_info[name], info[name][order])


def test_kappa_of_a_linear_model():
    random = np.random.RandomState(0)
    for _ in range(20):
        w, b = random.randn(5), random.randn()
        X, sign = random.randn(50, 5), random.choice([-1, 1], 50)
        net = nn.Linear(5, 1).double()
        with torch.no_grad():
            net.weight.copy_(torch.tensor(w)[None])
            net.bias.fill_(b)
        eps, size = 0.9, 0.15
        margin = sign * (X @ w + b)
        reach = np.minimum(np.arange(N_STEPS) * size, eps)[:, None] * np.abs(w).sum()
        wrong = margin - reach <= 0
        expected = np.where(wrong.any(axis=0), wrong.argmax(axis=0), N_STEPS)
        for mode in ("count", "first"):
            attack = GeometryAwarePGD(
                net, eps=eps, step_size=size, n_steps=N_STEPS, kappa_mode=mode,
                random_start="none", clip=None,
            )  # fmt: skip
            _, info = attack.generate(X, (sign > 0).astype(int), return_info=True)
            assert_array_equal(info["kappa"], expected)


def test_ways_to_count(setting):
    net, x, y = setting
    options = {**COMMON, "eps": 0.1, "step_size": 0.09, "random_start": "none"}
    _, wrong = path_of(net, x, y, 0.1, 0.09, x)
    wrong = wrong[:N_STEPS]
    found = {}
    for mode in ("count", "first"):
        attack = GeometryAwarePGD(kappa_mode=mode, **options)
        found[mode] = attack.perturb(net, x, y, return_info=True)[1]["kappa"]
    assert torch.equal(found["count"], (~wrong).sum(0))
    first = torch.where(wrong.any(0), wrong.int().argmax(0), N_STEPS)
    assert torch.equal(found["first"], first)
    assert torch.all(found["count"] >= found["first"])
    assert torch.any(found["count"] > found["first"])
    # clean errors are out at once
    assert torch.all(found["first"][wrong[0]] == 0)
    assert wrong[0].any()
    early = FriendlyPGD(**options).perturb(net, x, y, return_info=True)[1]["kappa"]
    assert torch.equal(early, found["first"])


@pytest.mark.parametrize("attack", [FriendlyPGD(tau=2, **COMMON), GeometryAwarePGD(**COMMON)])
def test_no_success_is_given_up(setting, attack):
    net, x, y = setting
    y = y.clone()
    y[::5] = (y[::5] + 1) % 10  # clean errors
    start = PGD(**{**COMMON, "step_size": 0.0}).perturb(net, x, y, seed=6)
    _, wrong = path_of(net, x, y, 0.15, 0.03, start)
    with torch.no_grad():
        clean = net(x).argmax(1) != y
        worst = net(attack.perturb(net, x, y, seed=6, keep="worst")).argmax(1) != y
        first = net(attack.perturb(net, x, y, seed=6, keep="first")).argmax(1) != y
    if isinstance(attack, GeometryAwarePGD):
        assert torch.equal(worst, wrong.any(0) | clean)
    assert torch.equal(worst | clean, first | clean)
    assert torch.all(worst[clean])


def test_evaluation_is_that_of_the_full_descent(images):
    X, y = images.X[:80], images.y[:80]
    expected = score_adversarial(images.net, X, y, BIM(eps=0.15, step_size=0.03, clip=(0, 1)))
    for attack in (
        FriendlyPGD(random_start="none", **{**COMMON, "n_steps": 10}),
        FriendlyPGD(tau=3, random_start="none", **{**COMMON, "n_steps": 10}),
        GeometryAwarePGD(random_start="none", **{**COMMON, "n_steps": 10}),
    ):
        assert score_adversarial(images.net, X, y, attack) == expected


def test_the_label_stops_whatever_is_ascended(setting):
    net, x, y = setting
    attack = FriendlyPGD(objective="kl", random_start="gaussian", **COMMON)
    x_adv, info = attack.perturb(net, x, y, return_info=True)
    with torch.no_grad():
        wrong = net(x_adv).argmax(1) != y
        clean = net(x).argmax(1) != y
    assert wrong[info["n_steps_taken"] < N_STEPS].all()
    assert torch.all(info["n_steps_taken"][clean] <= 1)
    assert (info["n_steps_taken"] > 0).any()


def test_a_target_is_to_be_reached(setting):
    net, x, y = setting
    attack = FriendlyPGD(target=3, random_start="none", **{**COMMON, "eps": 0.4, "n_steps": 20})
    x_adv, info = attack.perturb(net, x, y, return_info=True)
    with torch.no_grad():
        reached = net(x_adv).argmax(1) == 3
    assert reached[info["n_steps_taken"] < 20].all()
    assert (info["n_steps_taken"] < 20).float().mean() > 0.5


def test_noise_in_each_step(setting):
    net, x, y = setting
    calm = FriendlyPGD(tau=N_STEPS, **COMMON).perturb(net, x, y, seed=0)
    noisy = FriendlyPGD(tau=N_STEPS, omega=0.02, **COMMON).perturb(net, x, y, seed=0)
    assert not torch.equal(calm, noisy)
    assert torch.all((noisy - x).abs() <= 0.15 + 1e-12)
    # one step from the sample: noise and sign are added, then projected
    options = {"eps": 0.15, "step_size": 0.03, "clip": None, "n_steps": 1, "random_start": "none"}
    one = FriendlyPGD(tau=1, omega=0.02, **options).perturb(net, x, y, seed=0)
    bare = FriendlyPGD(tau=1, **options).perturb(net, x, y, seed=0)
    spread = (one - bare).flatten()
    assert abs(float(spread.mean())) < 2e-3
    assert float(spread.std()) == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (FriendlyPGD(tau=-1), "tau must be an integer of at least 0, got -1"),
        (FriendlyPGD(tau=0.5), "tau must be an integer"),
        (FriendlyPGD(omega=-1.0), "omega must be a finite number"),
        (FriendlyPGD(n_steps=0), "n_steps must be an integer"),
        (GeometryAwarePGD(kappa_mode="last"), "kappa_mode must be 'count' or 'first'"),
        (GeometryAwarePGD(random_start="far"), "random_start must be one of"),
    ],
)
def test_bad_parameters(images, attack, message):
    with pytest.raises(ValueError, match=message):
        attack.perturb(images.net, torch.tensor(images.X[:2]))
