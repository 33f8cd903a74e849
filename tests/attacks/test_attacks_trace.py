"""What an attack reports of its way."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from recording import Recorder
from torch import nn
from torch.nn import functional as F

from robustsk.attacks import (
    APGD,
    BIM,
    DRA,
    EOT,
    FGSM,
    MIM,
    PGD,
    TAMOO,
    AutoAttack,
    DynamicPGD,
    FriendlyPGD,
    GeometryAwarePGD,
    SquareAttack,
    as_victim,
)  # fmt: skip

torch.manual_seed(0)
X, Y = torch.rand(6, 5, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])
NET = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()
COMMON = {"eps": 0.3, "clip": (0, 1), "random_state": 0}


def path(attack, kind="iterates", model=NET, **options):
    x_adv, info = attack.perturb(model, X, Y, return_info=kind, **options)
    return x_adv, info


def loss(z):
    with torch.no_grad():
        return F.cross_entropy(NET(z), Y, reduction="none")


@pytest.mark.parametrize("cls", [BIM, MIM, PGD])
@pytest.mark.parametrize("keep", ["last", "worst"])
def test_values_and_iterates_are_those_of_each_step(cls, keep):
    recorder = Recorder(NET)
    attack = cls(n_steps=4, **COMMON)
    x_adv, info = path(attack, model=recorder, keep=keep)
    iterates, values = info["trace_iterates"], info["trace_values"]
    assert iterates.shape == (6, 4, 5)
    assert values.shape == (6, 4)
    for step in range(4):
        assert_array_equal(iterates[:, step], recorder.inputs[step])
        assert_allclose(values[:, step], loss(iterates[:, step]))
    if keep == "last":
        step = 0.75 if cls is PGD else 0.3
        assert float((x_adv - iterates[:, -1]).abs().max()) <= step / 4 + 1e-12
    if cls is BIM:
        # by hand: x, then each step of eps / 4 along the sign of the gradient, in the ball and box
        z = X.clone()
        for step in range(4):
            assert_allclose(iterates[:, step], z)
            z.requires_grad_(True)
            (gradient,) = torch.autograd.grad(F.cross_entropy(NET(z), Y, reduction="sum"), z)
            z = (z.detach() + 0.075 * gradient.sign()).clamp(0, 1)
            z = torch.minimum(torch.maximum(z, X - 0.3), X + 0.3)
        if keep == "last":
            assert_allclose(x_adv, z)


@pytest.mark.parametrize(
    "attack",
    [FGSM(), PGD(n_restarts=3), APGD(n_steps=6), DRA(norm=1), FriendlyPGD(), GeometryAwarePGD(),
     DynamicPGD(), EOT(attack=PGD(n_steps=3), n_draws=2, average="loss")],
    ids=lambda attack: type(attack).__name__,
)  # fmt: skip
@pytest.mark.parametrize("keep", ["last", "first"])
def test_asking_changes_nothing_and_costs_nothing(attack, keep):
    attack.set_params(random_state=0)
    inner = attack.attack if isinstance(attack, EOT) else attack
    inner.set_params(eps=0.3, clip=(0, 1), random_state=0)
    found, calls = [], []
    for kind in (True, "values", "iterates"):
        victim = as_victim(NET)
        found.append(path(attack, kind, victim, keep=keep))
        calls.append((victim.calls.forward, victim.calls.backward))
    for x_adv, info in found[1:]:
        assert_array_equal(x_adv, found[0][0])
        assert set(info) - set(found[0][1]) <= {"trace_values", "trace_iterates"}
    assert calls[0] == calls[1] == calls[2]
    assert not any(name.startswith("trace") for name in found[0][1])
    assert "trace_iterates" not in found[1][1]
    values, iterates = found[2][1]["trace_values"], found[2][1]["trace_iterates"]
    assert_array_equal(found[1][1]["trace_values"], values)
    # samples are left alone at the end of their way, and not in its middle
    known = ~values.isnan()
    assert (known[:, :1]).all()
    assert (known[:, 1:] <= known[:, :-1]).all()
    assert_array_equal(iterates.isnan().any(2), ~known)


def test_restarts_follow_one_another():
    # many runs would share a batch
    attack = PGD(n_steps=3, n_restarts=4, **COMMON)
    _, info = path(attack)
    assert info["trace_iterates"].shape == (6, 12, 5)
    _, once = path(PGD(n_steps=3, **COMMON))
    assert_array_equal(info["trace_iterates"][:, :3], once["trace_iterates"])
    # each run has a start of its own, at which the steps before it do not end
    starts = info["trace_iterates"][:, ::3]
    assert len(starts.flatten(0, 1).unique(dim=0)) == 24
    attacked = path(attack, True)[0]
    assert_array_equal(path(attack)[0], attacked)


def test_samples_left_alone_end_in_nan():
    net = nn.Linear(5, 3).double()
    label = net(X).argmax(1)
    label[::2] = (label[::2] + 1) % 3
    _, info = PGD(n_steps=5, random_start="none", eps=1e-6, clip=None).perturb(
        net, X, label, keep="first", return_info="values"
    )
    n_known = (~info["trace_values"].isnan()).sum(1)
    assert_array_equal(n_known, np.array([1, 5] * 3))


@pytest.mark.parametrize("attack", [SquareAttack(max_queries=5), TAMOO(), AutoAttack()])
def test_attacks_without_such_a_path_say_so(attack):
    attack.set_params(eps=0.1, clip=(0, 1))
    with pytest.raises(ValueError, match="return_info='values'"):
        path(attack, "values", NET)


def test_a_kind_that_does_not_exist():
    with pytest.raises(ValueError, match=r"return_info must be one of .*'values', 'iterates'"):
        path(PGD(**COMMON), "losses")


@pytest.mark.parametrize("kind", ["values", "iterates", "losses"])
def test_what_is_told_of_one_batch_is_not_told_of_all_data(kind):
    with pytest.raises(ValueError, match=rf"return_info='{kind}' is for `perturb`"):
        PGD(NET, **COMMON).generate(X.numpy(), Y.numpy(), return_info=kind)
