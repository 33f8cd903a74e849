"""State files of AutoAttack: of which evaluation they are, and whether what they say is true."""

import copy
import functools
import json
import subprocess
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from sklearn.ensemble import RandomForestClassifier
from torch import nn

from robustsk.attacks import APGD, EOT, PGD, AutoAttack, SquareAttack
from robustsk.attacks.wrappers._state import _hash
from robustsk.losses import margin


class Net(nn.Module):
    """A network whose gradient passes rounding straight through, or stops there."""

    def __init__(self, seed=0, scale=1.0, straight=True):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.layers = nn.Sequential(
                nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3)
            )
        self.straight, self.scale = straight, scale
        self.eval()

    def forward(self, x):
        rounded = (20 * x).round() / 20
        x = x + (rounded - x).detach() if self.straight else rounded + 0 * x
        return self.layers(x).sigmoid() * self.scale


X = np.random.RandomState(0).rand(40, 4).astype(np.float32)
Y = Net()(torch.from_numpy(X)).argmax(1).numpy()


def named(logits, y):
    return margin(logits, y)


def attack(path, model=None, **given):
    given.setdefault("attacks", [PGD(n_steps=4)])
    given = {"eps": 0.1, "clip": (0, 1), "random_state": 0, "version": "custom", **given}
    return AutoAttack(Net() if model is None else model, state_path=path, **given)


def with_tensor(name, change):
    net = Net()
    tensor = net.state_dict()[f"layers.{name}"]
    with torch.no_grad():
        tensor += change
    return net


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "state.npz"
    attack(path).evaluate(X, Y)
    return path


OTHERS = {
    "model-parameter": ("model", {"model": with_tensor("3.bias", 1e-6)}),
    "model-buffer": ("model", {"model": with_tensor("1.running_var", 1e-6)}),
    "gradients": ("gradients of the model", {"model": Net(straight=False)}),
    "answers": ("answers of the model", {"model": Net(scale=1e-3)}),
    "range": ("valid range", {"clip": (0, 1.5)}),
    "no-range": ("valid range", {"clip": None}),
    "eps": ("parameters", {"eps": 0.10001}),
    "eps-per-feature": ("parameters", {"eps": [0.1, 0.1, 0.1, 0.2]}),
    "mask": ("parameters", {"mask": [True, True, True, False]}),
    "norm": ("parameters", {"norm": 2}),
    "steps": ("parameters", {"attacks": [PGD(n_steps=5)]}),
    "attack": ("parameters", {"attacks": [APGD(n_steps=4)]}),
    "wrapper": ("parameters", {"attacks": [EOT(attack=PGD(n_steps=4), n_draws=2)]}),
    "objective": ("parameters", {"attacks": [PGD(n_steps=4, objective=named)]}),
    "lambda": ("parameters", {"attacks": [PGD(n_steps=4, objective=lambda z, y: -z[:, 0])]}),
    "individual": ("parameters", {"individual": True}),
    "random_state": ("random_state", {"random_state": 1}),
}


@pytest.mark.parametrize(("what", "given"), OTHERS.values(), ids=OTHERS)
def test_the_state_of_another_evaluation_is_refused(path, what, given):
    with pytest.raises(ValueError, match=f"another evaluation: not the same {what}") as error:
        attack(path, **given).evaluate(X, Y)
    assert str(path) in str(error.value)


def test_other_data_and_labels_are_refused(path):
    with pytest.raises(ValueError, match="not the same data"):
        attack(path).evaluate(X + np.float32(1e-3) * (X < 0.5), Y)
    with pytest.raises(ValueError, match="not the same labels"):
        attack(path).generate(X, (Y + 1) % 3)


def test_a_learned_range_counts_as_a_given_one_does(tmp_path):
    path = tmp_path / "state.npz"
    attack(path, clip="auto").fit(np.concatenate([X, 3 * X - 1])).evaluate(X, Y)
    with pytest.raises(ValueError, match="not the same valid range"):
        attack(path, clip="auto").fit(X).evaluate(X, Y)


def test_a_model_without_tensors_is_known_by_its_answers(tmp_path):
    path, attacks = tmp_path / "state.npz", [SquareAttack(max_queries=5)]
    first, other = (RandomForestClassifier(5, random_state=seed).fit(X, Y) for seed in (0, 1))
    attack(path, first, attacks=attacks).generate(X, Y)
    attack(path, copy.deepcopy(first), attacks=attacks).generate(X, Y)
    with pytest.raises(ValueError, match="not the same answers of the model"):
        attack(path, other, attacks=attacks).generate(X, Y)


def test_what_makes_no_difference_is_accepted(tmp_path):
    path = tmp_path / "state.npz"
    first = attack(path, eps=None, norm="linf").evaluate(X, Y)
    same = {"eps": 8 / 255, "norm": np.inf, "batch_size": 7, "verbose": 0}
    again = attack(path, **same).evaluate(X, Y)
    assert_array_equal(again.X_adv, first.X_adv)
    assert again.stages == first.stages  # with the seconds of the first time


def made_anew(weight):
    """Return objectives of the same code and other addresses."""
    space = {"margin": margin, "functools": functools, "weight": weight}
    exec(
        "def outer(weight):\n"
        "    return lambda logits, y: weight * margin(logits, y)\n"
        "def plain(logits, y):\n"
        "    return weight * margin(logits, y) * len({'a', 'b', 'c'})\n"
        "inner, partial = outer(weight), functools.partial(outer(weight), y=weight)\n",
        space,
    )
    return SimpleNamespace(**space)


@pytest.mark.parametrize("name", ["inner", "partial", "plain"])
def test_functions_are_known_by_what_they_do(name):
    first, same = (getattr(made_anew(2.0), name) for _ in range(2))
    assert first is not same
    assert _hash(first) == _hash(same)
    if name != "plain":  # which finds its weight in its module
        assert _hash(first) != _hash(getattr(made_anew(3.0), name))


SCRIPT = """
import sys
sys.path.insert(0, {folder!r})
from test_attacks_state_files import *
attacks = [PGD(n_steps=4, objective=named), PGD(n_steps=3, objective=lambda z, y: -z.std(1))]
print(attack({path!r}, attacks=attacks).evaluate(X, Y).robust_accuracy)
"""


@pytest.mark.slow
def test_another_process_goes_on(tmp_path):
    script = SCRIPT.format(folder=str(Path(__file__).parent), path=str(tmp_path / "state.npz"))
    first, second = (
        subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    )
    assert first == second


# --- what a file says ----------------------------------------------------------------


def edit(path, **changes):
    with np.load(path) as kept:
        values = dict(kept)
    for name, change in changes.items():
        values[name] = change(values[name])
    np.savez(path, **values)


def change_first_fooled(values, stage, by):
    row = np.flatnonzero(stage == 0)[0]
    values[row] = by(values[row])
    return values


TAMPERED = {
    "out of the ball": lambda x: x + 100,
    "a little out of the ball": lambda x: x + 1e-3,
    "not a number": lambda x: x * np.nan,
    "not fooling": None,
}


@pytest.mark.dealt
@pytest.mark.parametrize("how", TAMPERED)
def test_examples_in_a_file_are_asked_again(path, how):
    attacks = [PGD(n_steps=1), PGD(n_steps=4), PGD(n_steps=9)]
    truth = attack(None, attacks=attacks).evaluate(X, Y)
    path.unlink()
    attack(path, attacks=attacks).evaluate(X, Y)
    with np.load(path) as kept:
        stage, correct = kept["stage"], truth.stage != -2
    assert (stage == 0).sum() > 1
    by = TAMPERED[how] or (lambda x: X[correct][np.flatnonzero(stage == 0)[0]])
    edit(path, X_adv=lambda values: change_first_fooled(values, stage, by))
    with pytest.warns(UserWarning, match="1 of .* examples in state_path=.*attacked again"):
        found = attack(path, attacks=attacks).evaluate(X, Y)
    assert_array_equal(found.X_adv, truth.X_adv)
    assert_array_equal(found.stage, truth.stage)
    counts = [(s.name, s.n_attacked, s.n_fooled, s.robust_accuracy) for s in truth.stages]
    assert [(s.name, s.n_attacked, s.n_fooled, s.robust_accuracy) for s in found.stages] == counts
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the file tells the truth from now on
        attack(path, attacks=attacks).evaluate(X, Y)


@pytest.mark.parametrize("individual", [False, True])
def test_a_success_cannot_be_denied(path, individual):
    path.unlink()
    given = {"attacks": [PGD(n_steps=2), PGD(n_steps=6)], "individual": individual}
    truth = attack(path, **given).evaluate(X, Y)
    assert truth.robust_accuracy < truth.clean_accuracy
    edit(path, stage=lambda stage: np.full_like(stage, -1))
    with pytest.warns(UserWarning, match="attacked again"):
        found = attack(path, **given).evaluate(X, Y)
    assert_array_equal(found.stage, truth.stage)


def test_a_tampered_file_in_the_middle_of_a_stage(path):
    path.unlink()
    given = {"attacks": [PGD(n_steps=1, step_size=0.01), PGD(n_steps=9)], "batch_size": 8}
    truth = attack(path, **given).evaluate(X, Y)
    with np.load(path) as kept:
        whole = dict(kept)
    # as if it had been left after half of the second stage
    stage = whole["stage"]
    todo = np.flatnonzero(stage != 0)
    half = len(todo) // 2
    later = np.isin(np.arange(len(stage)), todo[half:])
    clean = X[truth.stage != -2]
    assert (stage[todo[:half]] == 1).any()
    stage[later & (stage == 1)] = -1
    whole["X_adv"][later] = clean[later]
    whole["margin"][later] = -np.inf
    whole |= {
        "log": json.dumps([asdict(truth.stages[0])]),
        "todo": todo,
        "position": half,
        "fooled": int((stage == 1).sum()),
    }
    whole["X_adv"][todo[:half][stage[todo[:half]] == 1]] += 100
    np.savez(path, **whole)
    with pytest.warns(UserWarning, match="attacked again"):
        found = attack(path, **given).evaluate(X, Y)
    assert_array_equal(found.stage, truth.stage)
    assert_array_equal(found.X_adv, truth.X_adv)
    assert [s.n_fooled for s in found.stages] == [s.n_fooled for s in truth.stages]
    assert found.stages[1].n_attacked == truth.stages[1].n_attacked


def test_a_random_model_may_change_its_mind(tmp_path):
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Net()

        def forward(self, x):
            return self.net(x + 0.1 * torch.randn_like(x))

    given = {"attacks": [EOT(attack=PGD(n_steps=2), n_draws=2)], "eps": 0.3}
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Noisy answers the same question differently")
        warnings.filterwarnings("error", "examples in state_path")
        torch.manual_seed(0)
        first = attack(tmp_path / "state.npz", Noisy(), **given).generate(X, Y)
        again = attack(tmp_path / "state.npz", Noisy(), **given).generate(X, Y)
    assert_array_equal(again, first)


def truncated(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def flipped(path):
    with np.load(path) as kept, kept.zip.open("X_adv.npy") as file:
        inside = file.read()[-64:]
    data = path.read_bytes()
    path.write_bytes(data.replace(inside, bytes(255 - b for b in inside)))


def other_keys(path):
    np.savez(path, a=np.zeros(3))


def other_array(path):
    with open(path, "wb") as file:
        np.save(file, np.zeros(3))


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("no archive"),
    "truncated": truncated,
    "flipped": flipped,
    "other keys": other_keys,
    "an array": other_array,
    "other shape": lambda path: edit(path, X_adv=lambda v: v[:, :2]),
    "other length": lambda path: edit(path, stage=lambda v: v[:-1]),
    "no such stage": lambda path: edit(path, stage=lambda v: v + 7),
    "no log": lambda path: edit(path, log=lambda v: "{"),
    "no such samples": lambda path: edit(path, todo=lambda v: [999], position=lambda v: 0),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_named(path, damage):
    damage(path)
    with pytest.raises(ValueError, match="is damaged or holds no state of AutoAttack") as error:
        attack(path).evaluate(X, Y)
    assert str(path) in str(error.value)


def test_where_no_file_can_be_is_said_before_anything_is_attacked(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"does not exist: make .*missing' first"):
        attack(tmp_path / "missing" / "state.npz").evaluate(X, Y)
    with pytest.raises(IsADirectoryError, match="give the name of a file in it"):
        attack(tmp_path).evaluate(X, Y)


@pytest.mark.parametrize("failure", [OSError("No space left on device"), KeyboardInterrupt()])
def test_what_is_half_written_does_not_stay(tmp_path, monkeypatch, failure):
    path = tmp_path / "state.npz"
    attack(path).evaluate(X, Y)
    before = path.read_bytes()

    def savez(file, **arrays):
        file.write(b"half")
        file.flush()
        raise failure

    path_of_another = tmp_path / "other.npz"
    monkeypatch.setattr(np, "savez", savez)
    with pytest.raises(type(failure)):
        attack(path_of_another).evaluate(X, Y)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == before
