"""What several tests of the attacks look with."""

import numpy as np
import torch
from numpy.testing import assert_array_equal
from torch import nn


class Recorder(nn.Module):
    """Remembers every batch it is shown, and what it answered."""

    def __init__(self, module):
        super().__init__()
        self.module, self.inputs, self.outputs = module, [], []

    def forward(self, x):
        out = self.module(x)
        self.inputs.append(x.detach().clone())
        self.outputs.append(out.detach().clone())
        return out


def margin_at(net, z, y):
    """Return by how much the best wrong logit exceeds that of the label."""
    logits = net(z).detach()
    own = logits.gather(1, y[:, None])[:, 0]
    return logits.scatter(1, y[:, None], -torch.inf).amax(1) - own


def snapshot(net):
    return {
        "parameters": {k: p.detach().clone() for k, p in net.named_parameters()},
        "requires_grad": {k: p.requires_grad for k, p in net.named_parameters()},
        "grad": {k: None if p.grad is None else p.grad.clone() for k, p in net.named_parameters()},
        "buffers": {k: b.clone() for k, b in net.named_buffers()},
        "training": {k: m.training for k, m in net.named_modules()},
    }


def assert_same_state(before, after):
    assert before["requires_grad"] == after["requires_grad"]
    assert before["training"] == after["training"]
    for part in ("parameters", "grad", "buffers"):
        assert before[part].keys() == after[part].keys()
        for key, value in before[part].items():
            if value is None:
                assert after[part][key] is None, key
            else:
                assert_array_equal(after[part][key].numpy(), value.numpy(), err_msg=key)


def assert_in_ball(X_adv, X, norm, eps):
    assert X_adv.dtype == X.dtype
    assert X_adv.shape == X.shape
    eps = float(eps)
    for moved in (X_adv - X, X_adv.astype(np.float64) - X.astype(np.float64)):
        flat = moved.reshape(len(moved), -1)
        sizes = {
            np.inf: lambda d: np.abs(d).max(axis=1),
            2.0: lambda d: np.sqrt((d**2).sum(axis=1)),
            1.0: lambda d: np.abs(d).sum(axis=1),
            0.0: lambda d: (d != 0).sum(axis=1).astype(d.dtype),
        }[norm](flat)
        assert sizes.dtype == moved.dtype
        assert np.all(sizes.astype(np.float64) <= eps)
        assert np.all(np.linalg.norm(flat, ord=norm, axis=1).astype(np.float64) <= eps)


def assert_in_box(X_adv, low, high):
    assert np.all(X_adv.astype(np.float64) >= low)
    assert np.all(X_adv.astype(np.float64) <= high)
