"""What several tests of the attacks look with."""

import torch
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
