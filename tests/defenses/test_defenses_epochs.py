"""Losses that are read late, and batches from memory, as on a GPU but without one."""

import copy

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback, ProgressBar
from torch import nn
from torch.utils.data import DataLoader, Subset

from robustsk import PGDATClassifier
from robustsk.defenses._epochs import Epochs, _asks_later
from robustsk.training import EpsWarmup, LearningRateSchedule, WeightAveraging
from robustsk.training._data import Samples, _Resident, collate, resident

RNG = np.random.RandomState(0)
X, Y = RNG.rand(100, 6).astype(np.float32), RNG.randint(0, 3, 100)


class Late(PGDATClassifier):
    """Reads losses as if they were on a GPU."""

    def _reads_later(self, loss):
        return self._in_fit and not self._asks_per_batch


def fit(kind, **options):
    given = {"adversary__n_steps": 2, "adversary__eps": 0.05, "max_epochs": 3, "batch_size": 16}
    return kind(random_state=0, **{**given, **options}).fit(X, Y)


@pytest.mark.dealt
@pytest.mark.parametrize("options", [{}, {"train_split": None}, {"callbacks": [EpsWarmup(1)]}])
def test_the_history_is_the_same(options):
    late, prompt = fit(Late, **options), fit(PGDATClassifier, **options)
    names = ["train_loss", "train_batch_size"]
    for a, b in zip(late.history_, prompt.history_, strict=True):
        assert [[batch[n] for n in names] for batch in a["batches"]] == [
            [batch[n] for n in names] for batch in b["batches"]
        ]
        assert a["train_loss"] == b["train_loss"]
        assert a["train_batch_count"] == b["train_batch_count"]
    assert all(type(b["train_loss"]) is float for e in late.history_ for b in e["batches"])


class Watching(Callback):
    def on_batch_end(self, net, training=False, **kwargs):
        assert type(net.history_[-1, "batches", -1, "train_loss"]) is float


@pytest.mark.parametrize("callback", [Watching(), ProgressBar(detect_notebook=False)])
def test_who_wants_to_see_each_loss_does(callback):
    clf = fit(Late, callbacks=[("mine", callback)], max_epochs=1)
    assert clf._asks_per_batch


def test_who_does_not():
    clf = fit(Late, callbacks=[WeightAveraging(), LearningRateSchedule()], max_epochs=1)
    assert not clf._asks_per_batch


def test_a_subclass_that_listens_is_heard():
    class Listening(Late):
        def on_batch_end(self, net, batch=None, training=False, **kwargs):
            super().on_batch_end(net, batch, training, **kwargs)

    assert not _asks_later(Listening)
    assert _asks_later(PGDATClassifier)
    assert fit(Listening, max_epochs=1)._asks_per_batch


class Breaking(nn.CrossEntropyLoss):
    after = 0
    count = 0

    def forward(self, logits, y):
        Breaking.count += 1
        return super().forward(logits, y) * (float("nan") if Breaking.count > self.after else 1)


@pytest.mark.dealt
@pytest.mark.parametrize("kind", [Late, PGDATClassifier])
@pytest.mark.parametrize(("after", "epoch", "batch"), [(0, 2, 1), (4, 2, 5), (9, 3, 3)])
def test_divergence_leaves_the_weights_of_the_last_good_epoch(kind, after, epoch, batch):
    clf = fit(kind, max_epochs=1, optimizer=torch.optim.SGD, optimizer__momentum=0.9)
    clf.set_params(criterion=Breaking, max_epochs=3)
    Breaking.count, Breaking.after = 0, after
    start = copy.deepcopy(clf.module_.state_dict())
    with pytest.raises(FloatingPointError, match=f"nan in epoch {epoch}, batch {batch}"):
        clf.partial_fit(X, Y)
    if epoch == 2:
        assert all(torch.equal(v, start[k]) for k, v in clf.module_.state_dict().items())
    assert np.isfinite(clf.predict_proba(X)).all()
    for known in clf.optimizer_.state.values():
        assert all(torch.isfinite(t).all() for t in known.values() if torch.is_tensor(t))
    clf.set_params(criterion=nn.CrossEntropyLoss, max_epochs=1).partial_fit(X, Y)
    assert np.isfinite(clf.history_[-1, "train_loss"])


def test_an_interrupt_leaves_numbers():
    class Stopping(Late):
        count = 0

        def train_step(self, batch, **fit_params):
            self.count += 1
            if self.count == 3:
                raise KeyboardInterrupt
            return super().train_step(batch, **fit_params)

    with pytest.warns(UserWarning, match="interrupted in epoch 1, after 2 batches"):
        clf = fit(Stopping)
    assert [type(b["train_loss"]) for b in clf.history_[-1]["batches"] if "train_loss" in b] == [
        float
    ] * 2


def test_epochs_stand_before_the_loop_of_skorch():
    names = [kind.__name__ for kind in PGDATClassifier.__mro__]
    assert names.index(Epochs.__name__) < names.index("TrainingLoop")


# --- data in memory ------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("part", [False, True])
def test_batches_are_those_of_a_loader(dtype, weighted, part):
    data = (255 * X).astype(dtype)
    weight = np.arange(100, dtype=np.float32) if weighted else None
    samples = Samples(data, Y, weight)
    there = _Resident(samples, torch.device("cpu"), torch.float32)
    assert there.X.dtype == (torch.uint8 if dtype == np.uint8 else torch.float32)
    assert there.shape == samples.shape
    if part:
        rows = RNG.permutation(100)[:50].tolist()
        samples, there = Subset(samples, rows), Subset(there, rows)
    for a, b in zip(
        DataLoader(samples, 16, collate_fn=collate),
        DataLoader(there, 16, collate_fn=collate),
        strict=True,
    ):
        (xa, ya), (xb, yb) = a, b
        if weighted:
            (xa, wa), (xb, wb) = xa, xb
            assert torch.equal(wa, wb)
        assert torch.equal(xa.float(), xb.float())
        assert torch.equal(ya, yb)


def test_what_does_not_go_to_the_device(tmp_path, monkeypatch):
    gpu, known = torch.device("cuda"), {}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4 * X.nbytes - 4, 0))
    for dataset in (
        Samples(torch.utils.data.TensorDataset(torch.from_numpy(X)), Y),
        Samples(np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, X.shape), Y),
        Samples(X, Y),  # more than a quarter of what is free
    ):
        assert resident(dataset, gpu, torch.float32, known) is dataset
        part = Subset(dataset, [0, 1])
        assert resident(part, gpu, torch.float32, known) is part
    assert known == {}


def test_only_what_is_trained_on_is_put_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100 * X.nbytes, 0))
    monkeypatch.setattr(
        "robustsk.training._data._Resident", lambda samples, device, dtype: ("there", samples)
    )
    gpu, known = torch.device("cuda"), {}
    samples = Samples(X, Y)
    assert resident(samples, gpu, torch.float32, known, is_new=False) is samples
    found = resident(samples, gpu, torch.float32, known)
    assert found == ("there", samples)
    for is_new in (True, False):
        assert resident(samples, gpu, torch.float32, known, is_new) is found
    for _ in range(20):  # one that takes the id of another that has gone
        other = Samples(X[:50], Y[:50])
        assert resident(other, gpu, torch.float32, known, is_new=False) is other
    assert [kept for _, kept in known.values()] == [samples]


@pytest.mark.parametrize("options", [{}, {"iterator_train__num_workers": 2}])
def test_only_plain_loaders_are_replaced(options):
    clf = PGDATClassifier(device="cpu", **options)
    samples = Samples(X, Y)
    assert clf.on_device(samples, set(), True) is samples
