"""A compiled network is compiled once, whatever training does and however it is asked."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from robustsk import PGD, PGDATClassifier, score_adversarial
from robustsk.models import ResNet
from robustsk.victims._compiled import Compiled

SHAPE = (3, 8, 8)


@pytest.fixture
def compiled(monkeypatch):
    """Count what is compiled; the code that is made is that of the network."""
    torch._dynamo.reset()
    count, compile = [], torch.compile

    def backend(graph, example_inputs):
        count.append(example_inputs)
        return graph.forward

    monkeypatch.setattr(
        torch, "compile", lambda f, **options: compile(f, backend=backend, dynamic=False)
    )
    yield count
    torch._dynamo.reset()


def data(n=84):
    rng = np.random.RandomState(0)
    return rng.rand(n, *SHAPE).astype(np.float32), rng.randint(0, 3, n)


def network():
    torch.manual_seed(0)
    return ResNet(SHAPE, 3, widths=(8, 16), layers=(1, 1))


def test_once_in_training_and_once_in_a_score(compiled):
    X, y = data()
    attack = PGD(eps=0.1, n_steps=2, compile=True, clip=(0, 1), random_state=0)
    options = {"max_epochs": 3, "batch_size": 32, "random_state": 0, "lr": 0.01}
    clf = PGDATClassifier(network(), adversary=attack, **options).fit(X, y)  # 84 = 32 + 32 + 20
    assert len(compiled) == 1
    found = score_adversarial(clf, X, y, attack)
    assert len(compiled) == 2
    plain = PGDATClassifier(network(), adversary=PGD(eps=0.1, n_steps=2, clip=(0, 1)), **options)
    plain.fit(X, y)
    assert np.allclose(clf.history_[:, "train_loss"], plain.history_[:, "train_loss"], atol=1e-4)
    assert found == score_adversarial(clf, X, y, attack._with(compile=False))


def test_once_for_a_module_that_is_attacked_again_and_again(compiled):
    net, attack = network(), PGD(eps=0.1, n_steps=2, compile=True, clip=(0, 1))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    X, y = map(torch.from_numpy, data(16))
    for k in range(4):
        net.train(k % 2 == 0)
        found = attack.perturb(net, X, y, seed=k)
        expected = attack._with(compile=False).perturb(net, X, y, seed=k)
        assert torch.allclose(found, expected, atol=1e-5)
        optimizer.zero_grad()
        F.cross_entropy(net(found), y).backward()
        optimizer.step()
    assert len(compiled) == 1


def test_how_it_is_asked(compiled):
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).eval().requires_grad_(False)
    run = Compiled(net)
    x = torch.rand(8, 3, 4)
    with torch.no_grad():
        assert torch.allclose(run(x), net(x))
        assert not run(x).requires_grad
    z = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(run(z)[:, 0].sum(), z)
    assert torch.allclose(gradient[0].flatten(), net[1].weight[0])
    for n in (5, 4):
        assert torch.allclose(run(x[:n]), net(x[:n]), atol=1e-6)
        part = x[:n].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(run(part)[:, 0].sum(), part)
        assert torch.allclose(gradient[0].flatten(), net[1].weight[0])
    assert len(compiled) == 1
    assert torch.allclose(run(x[:3]), net(x[:3]))  # much smaller: as it is
    assert len(compiled) == 1
    run(torch.rand(9, 3, 4))
    assert len(compiled) == 2
    # another network has a count of its own
    assert torch.allclose(
        Compiled(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)))(x).detach()[0, 0] * 0,
        torch.zeros(()),
    )
    assert len(compiled) == 3
