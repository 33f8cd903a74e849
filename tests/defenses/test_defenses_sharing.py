"""Clean logits are computed once for attack and loss where that makes no difference."""

import numpy as np
import pytest
import torch
from torch import nn

from robustsk import SPATClassifier, TRADESClassifier
from robustsk.defenses import _skorch as training_loop


class Counting(nn.Module):
    """Two layers and, if asked, dropout; counts the batches it sees."""

    def __init__(self, rate=0.0):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(rate), nn.Linear(16, 3))
        self.n_calls = []

    def forward(self, x):
        self.n_calls.append(len(x))
        return self.layers(x)


@pytest.mark.parametrize("defence", [TRADESClassifier, SPATClassifier])
def test_clean_logits_are_shared_where_training_does_not_change_them(defence, monkeypatch):
    rng = np.random.RandomState(0)
    X, y = rng.normal(size=(60, 4)).astype(np.float32), rng.randint(3, size=60)
    head = {"head": "linear", "self_paced": False} if defence is SPATClassifier else {}
    weights, calls = {}, {}
    for rate, shared in [(0.0, True), (0.0, False), (0.5, True)]:
        if not shared:
            monkeypatch.setattr(training_loop, "_is_the_same_in_training", lambda module, x: False)
        clf = defence(
            Counting, module__rate=rate, adversary__eps=0.2, adversary__n_steps=3, max_epochs=2,
            batch_size=20, lr=0.01, random_state=0, **head,
        ).fit(X, y)  # fmt: skip
        monkeypatch.undo()
        weights[rate, shared] = torch.cat([p.detach().flatten() for p in clf.module_.parameters()])
        calls[rate, shared] = clf.module_.n_calls.count(20)
    torch.testing.assert_close(weights[0.0, True], weights[0.0, False], rtol=1e-4, atol=1e-6)
    assert calls[0.0, False] - calls[0.0, True] == 6  # one for each batch
    assert calls[0.5, True] == calls[0.0, False]
