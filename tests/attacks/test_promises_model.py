"""Every attack gives the model back as it was."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from promises import STRONG, every_attack, every_norm, make, per_code_path, scaled, with_objective
from recording import assert_same_state, snapshot


def prepare(net):
    """Put a network into a state that is easily disturbed."""
    net.train()
    net[1].eval()
    next(net[5].parameters()).requires_grad_(False)
    for i, p in enumerate(net.parameters()):
        if i % 2:
            p.grad = torch.full_like(p, float(i))
    return net


@pytest.mark.parametrize("bn_mode", ["eval", "train"])
@every_norm
def test_model_comes_back_as_it_was(cls, norm, bn_mode, images):
    net = prepare(images.net)
    before = snapshot(net)
    attack = make(
        cls, net, norm=norm, eps=scaled(norm, 0.3), clip=(0, 1), bn_mode=bn_mode, random_state=0
    )
    attack.generate(images.X[:10], images.y[:10])
    assert_same_state(before, snapshot(net))
    attack.perturb(net, torch.tensor(images.X[:10]), torch.tensor(images.y[:10]))
    assert_same_state(before, snapshot(net))


@pytest.mark.parametrize("bn_mode", ["eval", "train"])
@pytest.mark.parametrize("n_calls", [0, 1])
@every_attack
def test_model_comes_back_when_it_fails_itself(cls, n_calls, bn_mode, images):
    net = prepare(images.net)
    before = snapshot(net)
    calls = []

    def fail(*_):
        if len(calls) >= n_calls:
            raise RuntimeError("out of order")
        calls.append(None)

    hook = net[-1].register_forward_hook(fail)
    attack = make(cls, net, eps=0.3, clip=(0, 1), bn_mode=bn_mode, random_state=0, batch_size=4)
    with pytest.raises(RuntimeError, match="out of order"):
        attack.generate(images.X[:10], images.y[:10])
    hook.remove()
    assert_same_state(before, snapshot(net))


@pytest.mark.parametrize("bn_mode", ["eval", "train"])
@with_objective
def test_model_comes_back_when_the_objective_fails(cls, bn_mode, images):
    net = prepare(images.net)
    before = snapshot(net)

    def objective(logits, y):
        raise ZeroDivisionError

    attack = make(cls, net, eps=0.3, clip=(0, 1), bn_mode=bn_mode, objective=objective)
    with pytest.raises(ZeroDivisionError):
        attack.generate(images.X[:10], images.y[:10])
    assert_same_state(before, snapshot(net))


#: What decides how a batch reaches the network.
per_view = per_code_path("run", "perturb", "access", "_see", "_engine", "_with", "_resolved")


@per_view
def test_dropout_is_off_and_batch_norm_uses_running_statistics(cls, images):
    attack = make(cls, images.net, eps=0.3, clip=(0, 1), random_state=0)
    expected = attack.generate(images.X[:10])
    images.net.train()
    assert_array_equal(attack.generate(images.X[:10]), expected)


@per_view
def test_batch_statistics_matter_when_asked_for(cls, images):
    common = {"eps": STRONG[float(cls().norm)], "clip": (0, 1), "random_state": 0}
    X, y = images.X[:10], images.y[:10]
    by_running = make(cls, images.net, **common).generate(X, y)
    by_batch = make(cls, images.net, bn_mode="train", **common).generate(X, y)
    assert not np.array_equal(by_running, by_batch)
