"""Promise: what an attack hands out is finite and in the ball, whatever a model answers."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from promises import CHEAPEST, every_norm, make, scaled
from torch import nn

from robustsk.attacks import PGD, AutoAttack, BaseAttack
from robustsk.attacks.threat import settle


class Answering(nn.Module):
    """A linear model; what it answers is bent."""

    def __init__(self, bend):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layer = nn.Linear(6, 3)
        self.bend = bend

    def forward(self, x):
        return self.bend(self.layer(x))


def overflowing(logits):
    return torch.exp(200 * logits)


def half_undefined(logits):
    return torch.where(logits > 0, logits, torch.nan)


EDGES = {
    "huge logits": (1.0, 0.4, lambda logits: 1e30 * logits),
    "infinite logits": (1.0, 0.4, overflowing),
    "undefined logits": (1.0, 0.4, half_undefined),
    "tiny radius": (1.0, 1e-31, lambda logits: logits),
    "subnormal radius": (1.0, 1e-44, lambda logits: logits),
    "huge data": (1e20, 0.4, lambda logits: logits),
    "data next to overflow": (1e38, 0.4, lambda logits: logits),
    "huge data and radius": (1e30, 1e29, lambda logits: logits),
}
UNANSWERED = ("undefined logits",)
#: Those in which attacks once handed out what is not a number.
IN_DEFAULT_RUN = ("huge logits", "tiny radius", "huge data and radius")


@every_norm
@pytest.mark.parametrize(
    "edge",
    [pytest.param(e, marks=() if e in IN_DEFAULT_RUN else pytest.mark.slow) for e in EDGES],
)
@pytest.mark.filterwarnings("ignore")
def test_finite_and_in_the_ball(cls, norm, edge):
    scale, eps, bend = EDGES[edge]
    X = (scale * np.random.RandomState(0).rand(3, 6)).astype(np.float32)
    eps = scaled(norm, eps)
    attack = make(
        cls, Answering(bend), settings=CHEAPEST, norm=norm, eps=eps, clip=None, random_state=0
    )
    if edge in UNANSWERED:
        with pytest.raises(FloatingPointError, match="finite"):
            attack.generate(X)
        return
    found = attack.generate(X)
    assert np.isfinite(found).all()
    moved = found.astype(float) - X
    size = np.linalg.norm(moved, ord=norm, axis=1)
    assert size.max() <= (eps if norm == 0 else eps * (1 + 1e-6))
    x_adv = attack.perturb(Answering(bend), torch.from_numpy(X))
    assert x_adv.isfinite().all()


@pytest.mark.parametrize("norm", [np.inf, 2.0, 1.0, 0.0])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("box", [(None, None), (np.zeros(()), np.ones(()))])
def test_only_the_sample_that_is_not_finite_comes_back_clean(norm, bad, box):
    x = torch.rand(3, 5, generator=torch.Generator().manual_seed(0))
    z = x + 0.01
    z[1, 2] = bad
    found = settle(z, x, norm, 3.0, *box)
    assert_array_equal(found[1], x[1])
    assert (found[[0, 2]] != x[[0, 2]]).any(1).all()


class ToNaN(BaseAttack):
    """Finds nothing but what is not a number."""

    def _attack_batch(self, batch):
        return batch.x * torch.nan


def test_in_a_cascade():
    X = np.random.RandomState(0).rand(5, 6).astype(np.float32)
    net = Answering(lambda logits: logits)
    attack = AutoAttack(net, version="custom", attacks=[ToNaN(), PGD()], clip=None, eps=1e-6)
    assert_array_equal(ToNaN(net, clip=None).generate(X), X)
    result = attack.evaluate(X, net(torch.from_numpy(X)).argmax(1))
    assert np.isfinite(result.X_adv).all()
    assert result.robust_accuracy == 1
