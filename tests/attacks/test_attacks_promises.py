"""What every attack promises; an attack is covered by being listed, none is named here."""
# ruff: noqa: NPY002 (the global generator is what some of these tests are about)

import inspect
import pickle
import random
import re

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.ensemble import RandomForestClassifier, VotingClassifier
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator, parametrize_with_checks
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from robustsk._discovery import all_attacks
from robustsk.attacks import PGD, NoGradientError, as_victim

ATTACKS = all_attacks()
#: Radii at which an attack visibly works on the data of these tests.
STRONG = {np.inf: 0.6, 2.0: 1.5, 1.0: 4.5, 0.0: 5}
#: Settings that make an attack cheap, for whatever has them: most promises need no strength.
CHEAP = {"max_queries": 150, "n_steps": 12, "n_binary_steps": 3, "n_draws": 2, "max_iter": 20}


def has(cls, name):
    return name in inspect.signature(cls).parameters


def ids(classes):
    return [pytest.param(cls, id=cls.__name__) for cls in classes]


every_attack = pytest.mark.parametrize("cls", ids(ATTACKS))
every_norm = pytest.mark.parametrize(
    ("cls", "norm"),
    [
        pytest.param(cls, norm, id=f"{cls.__name__}-{norm:g}")
        for cls in ATTACKS
        for norm in cls.supported_norms
    ],
)
white_box = pytest.mark.parametrize(
    "cls", ids(cls for cls in ATTACKS if cls().access not in ("scores", "labels"))
)
black_box = pytest.mark.parametrize(
    "cls", ids(cls for cls in ATTACKS if cls().access in ("scores", "labels"))
)
minimal = pytest.mark.parametrize("cls", ids(cls for cls in ATTACKS if cls().minimal))
with_objective = pytest.mark.parametrize(
    "cls", ids(cls for cls in ATTACKS if has(cls, "objective"))
)
with_start = pytest.mark.parametrize("cls", ids(cls for cls in ATTACKS if has(cls, "random_start")))


def make(cls, *args, **kwargs):
    """Return an attack that is cheaper than its defaults."""
    parameters = inspect.signature(cls).parameters
    for name, value in CHEAP.items():
        if name in parameters and name not in kwargs:
            default = parameters[name].default
            kwargs[name] = value if default is None else min(default, value)
    if "attacks" in parameters:  # a cascade is as cheap as its members
        kwargs = {"version": "custom", "attacks": [PGD(n_steps=25)], **kwargs}
    return cls(*args, **kwargs)


def scaled(norm, eps):
    """Return a radius of a like effect; in the 0-norm it is a number of features."""
    return 4 if norm == 0 else eps


def randomised(cls):
    """Return the parameters that turn on the randomness of an attack that has any."""
    return {"random_start": "uniform"} if has(cls, "random_start") else {}


def test_there_are_attacks():
    assert len(ATTACKS) >= 4


# --- ball and box --------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("dtype", "clip"), [(np.float32, "explicit"), (np.float64, "auto"), (np.float32, None)]
)
@every_norm
def test_output_lies_in_ball_and_box_to_the_last_bit(cls, norm, dtype, clip, problem):
    X = problem.X[:7].astype(dtype)
    low, high = -float(np.abs(problem.X).max()) - 0.1, float(np.abs(problem.X).max()) + 0.1
    if problem.X.ndim == 4:
        low, high = 0.0, 1.0
    moved = False
    for eps in (0.1, 5.0):
        attack = make(
            cls,
            problem.model,
            norm=norm,
            eps=eps,
            clip=(low, high) if clip == "explicit" else clip,
            batch_size=4,
            random_state=0,
            **randomised(cls),
        )
        if clip == "auto":
            attack.fit(problem.X[:100].astype(dtype))
            low, high = attack.clip_bounds_
        for rows in (X, X[:1]) if eps == 0.1 else (X,):
            X_adv = attack.generate(rows)
            assert_in_ball(X_adv, rows, norm, eps)
            if clip is not None:
                assert_in_box(X_adv, low, high)
            moved |= not np.array_equal(X_adv, rows)
    assert moved


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@every_norm
def test_ball_holds_at_large_magnitudes(cls, norm, dtype, table):
    X = (1e3 * (table.X + 1)).astype(dtype)
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(X, table.y)
    for eps in (0.3, 1e3 / 7):
        attack = make(cls, model, norm=norm, eps=eps, random_state=0, batch_size=7).fit(X)
        X_adv = attack.generate(X[:9])
        assert_in_ball(X_adv, X[:9], norm, eps)
        assert_in_box(X_adv, *attack.clip_bounds_)
        if norm != 0:
            assert not np.array_equal(X_adv, X[:9]) or cls().minimal


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@every_norm
def test_box_holds_where_its_bounds_are_no_floats_of_the_dtype(cls, norm, dtype, table):
    # float32(0.1) is above 0.1, and 0.1 - x rounds where x is large
    X = np.clip(3 * table.X - 2, -7.25, 0.09).astype(dtype)
    attack = make(cls, table.model, norm=norm, eps=20.0, clip=(-7.3, 0.1), random_state=0)
    X_adv = attack.generate(X)
    assert_in_box(X_adv, -7.3, 0.1)
    assert X_adv.max() > 0.0999 or cls().minimal


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@every_norm
def test_radius_per_feature(cls, norm, dtype, table):
    if norm == 0:
        pytest.skip("how many features change is one number")
    X = table.X[:20].astype(dtype)
    eps = np.array([0.3, 0.0, 1.0, 0.1, 0.0, 8 / 255])
    X_adv = make(cls, table.model, norm=norm, eps=eps, clip=None, random_state=0).generate(X)
    assert_array_equal(X_adv[:, eps == 0], X[:, eps == 0])
    moved = np.abs(X_adv.astype(np.float64) - X)
    assert np.all(moved <= eps)
    unit = moved[:, eps > 0] / eps[eps > 0]
    assert np.all(np.linalg.norm(unit, ord=norm, axis=1) <= 1 + 1e-15)
    assert unit.max() > 0.5 or cls().minimal


@every_norm
def test_mask_freezes_features(cls, norm, problem):
    mask = np.zeros(problem.X.shape[1:], dtype=bool)
    mask[..., ::2] = True
    X = problem.X[:10]
    eps = STRONG[norm]
    attack = make(cls, problem.model, norm=norm, eps=eps, clip=None, mask=mask, random_state=0)
    X_adv = attack.generate(X)
    assert_array_equal(X_adv[:, ~mask], X[:, ~mask])
    assert not np.array_equal(X_adv[:, mask], X[:, mask])
    assert_in_ball(X_adv, X, norm, eps)


@every_norm
def test_radius_zero_returns_the_data(cls, norm, problem):
    X = problem.X[:10]
    attack = make(cls, problem.model, norm=norm, eps=0.0, clip=None, **randomised(cls))
    assert_array_equal(attack.generate(X), X)
    attack.set_params(eps=0.3, mask=np.zeros(X.shape[1:], dtype=bool))
    assert_array_equal(attack.generate(X), X)


# --- containers ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@every_attack
def test_container_shape_and_dtype_are_those_of_the_input(cls, dtype, table):
    X = table.X[:9].astype(dtype)
    before = X.copy()
    attack = make(cls, table.model, eps=0.3, clip=(-9, 9), random_state=0)
    expected = attack.generate(X)
    assert type(expected) is np.ndarray
    assert expected.dtype == dtype
    assert_array_equal(X, before)

    names = [f"f{i}" for i in range(X.shape[1])]
    frame = pd.DataFrame(X, columns=names, index=[f"r{i}" for i in range(9)])
    frame_before = frame.copy()
    from_frame = attack.generate(frame)
    pd.testing.assert_frame_equal(
        from_frame, pd.DataFrame(expected, columns=names, index=frame.index)
    )
    pd.testing.assert_frame_equal(frame, frame_before)

    tensor = torch.tensor(X, requires_grad=True)
    from_tensor = attack.generate(tensor)
    assert isinstance(from_tensor, torch.Tensor)
    assert from_tensor.dtype == tensor.dtype
    assert not from_tensor.requires_grad
    assert tensor.grad is None
    assert_array_equal(from_tensor.numpy(), expected)
    assert_array_equal(tensor.detach().numpy(), before)

    from_list = attack.generate(X.astype(np.float64).tolist())
    assert type(from_list) is np.ndarray
    assert from_list.dtype == np.float64
    if dtype == np.float64:
        assert_array_equal(from_list, expected)

    from_dataset = attack.generate(TensorDataset(torch.tensor(X)))
    assert_array_equal(from_dataset, expected)


@every_attack
def test_images_in_any_container(cls, images):
    X = images.X[:5]
    attack = make(cls, images.net, eps=0.1, clip=(0, 1), random_state=0)
    expected = attack.generate(X)
    assert expected.shape == X.shape
    strided = np.asfortranarray(X)
    assert_array_equal(attack.generate(strided), expected)
    assert_array_equal(attack.generate(torch.tensor(X)).numpy(), expected)
    read_only = X.copy()
    read_only.setflags(write=False)
    assert_array_equal(attack.generate(read_only), expected)


@every_attack
def test_integers_become_floats(cls, table):
    X = np.round(table.X[:6]).astype(np.int64)
    X_adv = make(cls, table.model, eps=0.3, clip=None, random_state=0).generate(X)
    assert X_adv.dtype == np.float64
    assert np.abs(X_adv - X).max() <= 0.3


@every_attack
def test_column_names_are_checked(cls, table):
    frame = pd.DataFrame(table.X, columns=list("abcdef"))
    attack = make(cls, table.model, eps=0.3, random_state=0).fit(frame)
    assert_array_equal(attack.get_feature_names_out(), list("abcdef"))
    assert list(attack.transform(frame).columns) == list("abcdef")
    with pytest.raises(ValueError, match="feature names"):
        attack.transform(frame.rename(columns={"a": "z"}))


# --- the model comes back as it was ---------------------------------------------------


def prepare(net):
    """Put a network into a state that is easily disturbed."""
    net.train()
    net[1].eval()
    next(net[5].parameters()).requires_grad_(False)
    for i, p in enumerate(net.parameters()):
        if i % 2:
            p.grad = torch.full_like(p, float(i))
    return net


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


@every_attack
def test_dropout_is_off_and_batch_norm_uses_running_statistics(cls, images):
    attack = make(cls, images.net, eps=0.3, clip=(0, 1), random_state=0)
    expected = attack.generate(images.X[:10])
    images.net.train()
    assert_array_equal(attack.generate(images.X[:10]), expected)


@every_attack
def test_batch_statistics_matter_when_asked_for(cls, images):
    common = {"eps": STRONG[float(cls().norm)], "clip": (0, 1), "random_state": 0}
    X, y = images.X[:10], images.y[:10]
    by_running = make(cls, images.net, **common).generate(X, y)
    by_batch = make(cls, images.net, bn_mode="train", **common).generate(X, y)
    assert not np.array_equal(by_running, by_batch)


# --- randomness ----------------------------------------------------------------------


@pytest.fixture
def global_state():
    """Put the global generators back after a test that moves them."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    yield
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])
    random.setstate(states[2])


@every_norm
def test_fixed_seed_gives_the_same_bits_whatever_ran_before(cls, norm, problem, global_state):
    X, y = problem.X[:10], problem.y[:10]

    def attack():
        return make(
            cls,
            problem.model,
            norm=norm,
            eps=scaled(norm, 0.3),
            clip=None,
            random_state=7,
            **randomised(cls),
        )

    first = attack()
    one = first.generate(X, y)
    assert_array_equal(first.generate(X, y), one)
    torch.manual_seed(123)
    np.random.seed(123)
    random.seed(123)
    attack().generate(problem.X[10:30], problem.y[10:30])
    assert_array_equal(attack().generate(X, y), one)


@every_attack
def test_global_generators_are_not_moved(cls, images, global_state):
    torch.manual_seed(1)
    np.random.seed(2)
    random.seed(3)
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    target = "random" if cls.targetable else None
    attack = make(
        cls, images.net, eps=0.3, clip=(0, 1), random_state=0, target=target, **randomised(cls)
    )
    attack.fit(images.X[:20], images.y[:20]).generate(images.X[:10])
    attack.perturb(images.net.train(), torch.tensor(images.X[:10]))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert_array_equal(np.random.get_state()[1], states[1][1])
    assert np.random.get_state()[2:] == states[1][2:]
    assert random.getstate() == states[2]


@pytest.mark.parametrize("start", ["uniform", "gaussian"])
@with_start
def test_seeds_differ_where_the_start_is_random(cls, start, table):
    def run(start, seed):
        # a step far too short to reach the border hides nothing of the start
        attack = make(
            cls,
            table.net,
            eps=0.3,
            clip=None,
            random_start=start,
            random_state=seed,
            step_size=1e-3,
        )
        return attack.generate(table.X[:10])

    assert not np.array_equal(run(start, 0), run(start, 1))
    assert_array_equal(run("none", 0), run("none", 1))


@with_start
def test_random_state_instance_and_none(cls, table):
    def attack(state):
        return make(
            cls,
            table.net,
            eps=0.3,
            clip=None,
            random_start="uniform",
            random_state=state,
            step_size=1e-3,
        )

    X = table.X[:5]
    one = attack(np.random.RandomState(0))
    two = attack(np.random.RandomState(0))
    first, second = one.generate(X), one.generate(X)
    assert not np.array_equal(first, second)
    assert_array_equal(two.generate(X), first)
    assert not np.array_equal(attack(None).generate(X), attack(None).generate(X))


@pytest.mark.parametrize("target", [None, "random"])
@every_norm
def test_batch_size_and_order_change_nothing(cls, norm, target, problem):
    if target is not None and not cls.targetable:
        pytest.skip("chooses the target itself")
    X, y = problem.X[:6].astype(np.float64), problem.y[:6]
    model = problem.net.double()  # in float32 rounding may turn the sign of a tiny gradient

    def run(X, y, batch_size):
        attack = make(
            cls,
            model,
            norm=norm,
            eps=scaled(norm, 0.3),
            clip=None,
            target=target,
            random_state=3,
            batch_size=batch_size,
            **randomised(cls),
        )
        return attack.generate(X, y)

    whole = run(X, y, 256)
    order = np.random.RandomState(0).permutation(len(X))
    if cls.couples_batch:
        assert_allclose(run(X[order], y[order], 256), whole[order], atol=1e-9)
        return
    for batch_size in (1, 4):
        assert_allclose(run(X, y, batch_size), whole, atol=1e-9)
    assert_allclose(run(X[order], y[order], 5), whole[order], atol=1e-9)


# --- goals ---------------------------------------------------------------------------


def logits_of(model, X):
    victim = as_victim(model)
    with victim.frozen(), torch.no_grad():
        return victim(torch.as_tensor(X).to(victim.dtype)).double()


@every_norm
def test_untargeted_raises_the_loss_and_lowers_the_accuracy(cls, norm, problem):
    X, y = problem.X[:80], problem.y[:80]
    attack = make(cls, problem.model, norm=norm, eps=STRONG[norm], random_state=0).fit(problem.X)
    clean, attacked = logits_of(problem.model, X), logits_of(problem.model, attack.generate(X, y))
    accuracy = (clean.argmax(1).numpy() == y).mean()
    assert accuracy > 0.8
    # what has to do for all samples at once does less for each
    assert (attacked.argmax(1).numpy() == y).mean() < accuracy - (0.25 if cls.per_sample else 0.1)
    truth = torch.tensor(y)
    if not cls().minimal:
        # nor is what knows no labels out to raise this very loss
        factor = 1.5 if cls.couples_batch else 2
        assert F.cross_entropy(attacked, truth) > factor * F.cross_entropy(clean, truth)


@pytest.mark.parametrize("target", ["least_likely", "label", "array"])
@every_norm
def test_targeted_lowers_the_loss_of_the_target(cls, norm, target, problem):
    if not cls.targetable:
        pytest.skip("chooses the target itself")
    if not cls.per_sample and target != "label":
        pytest.skip("one and the same for samples that are to go different ways")
    X, y = problem.X[:30], problem.y[:30]
    clean = logits_of(problem.model, X)
    goal = {
        "least_likely": clean.scatter(1, torch.tensor(y)[:, None], np.inf).argmin(1).numpy(),
        "label": np.full(30, 1),
        "array": (y + 1) % clean.shape[1],
    }[target]
    given = {"least_likely": "least_likely", "label": 1, "array": goal}[target]
    attack = make(
        cls, problem.model, norm=norm, eps=STRONG[norm], target=given, batch_size=17, random_state=0
    ).fit(problem.X)
    attacked = logits_of(problem.model, attack.generate(X, y))
    before = F.cross_entropy(clean, torch.tensor(goal))
    after = F.cross_entropy(attacked, torch.tensor(goal))
    # the closest example may be out of reach
    assert after <= before if cls().minimal else after < before
    hits = (attacked.argmax(1).numpy() == goal).mean()
    assert hits >= (clean.argmax(1).numpy() == goal).mean()


@pytest.mark.parametrize("target", ["least_likely", "random", "label", "array"])
@every_norm
def test_targeted_hits_for_a_large_radius(cls, norm, target, table):
    if not cls.targetable:
        pytest.skip("chooses the target itself")
    if not cls.per_sample and target != "label":
        pytest.skip("one and the same for samples that are to go different ways")
    # two classes: the only target of a sample is the other class, and the model is linear
    rows = table.y < 2
    X, y = table.X[rows], np.array(["no", "yes"])[table.y[rows]]
    model = LogisticRegression().fit(X, y)
    other = np.where(y == "no", "yes", "no")
    given = {"label": "yes", "array": other}.get(target, target)
    attack = make(cls, model, norm=norm, eps=100.0, clip=None, target=given, random_state=0)
    assert_array_equal(model.predict(attack.generate(X, y)), "yes" if target == "label" else other)


@every_attack
def test_random_targets_are_other_classes_and_all_of_them(cls, table):
    if not cls.targetable:
        pytest.skip("chooses the target itself")
    if not cls.per_sample:
        pytest.skip("one and the same for samples that are to go different ways")
    X, y = table.X, table.y
    eps = 5 / 3 * STRONG[float(cls().norm)]
    attack = make(cls, table.net, eps=eps, clip=None, target="random", random_state=0)
    predicted = logits_of(table.net, attack.generate(X, y)).argmax(1).numpy()
    assert (predicted != y).mean() > 0.6
    pairs = set(zip(y.tolist(), predicted.tolist(), strict=True))
    assert sum(label != reached for label, reached in pairs) == 6
    again = attack.set_params(random_state=1).generate(X, y)
    assert (logits_of(table.net, again).argmax(1).numpy() != predicted).mean() > 0.1


@every_norm
def test_transform_attacks_the_predictions(cls, norm, problem):
    attack = make(cls, problem.model, norm=norm, eps=STRONG[norm], random_state=0).fit(
        problem.X, problem.y
    )
    predicted = logits_of(problem.model, problem.X[:24]).argmax(1).numpy()
    X = problem.X[:24]
    assert_array_equal(attack.transform(X), attack.generate(X, predicted))
    if cls.per_sample:
        wrong = (predicted + 1) % 3
        assert not np.array_equal(attack.transform(X), attack.generate(X, wrong))


@pytest.mark.parametrize("surrogate", [False, True])
@every_norm
def test_fit_transform_leaks_no_labels(cls, norm, surrogate, table):
    y = table.y.copy()
    y[::7] = (y[::7] + 1) % 3
    model = None if surrogate else table.model

    def attack():
        return make(cls, model, norm=norm, eps=scaled(norm, 0.4), random_state=0)

    together = attack().fit_transform(table.X, y)
    assert_array_equal(together, attack().fit(table.X, y).transform(table.X))
    if cls.per_sample:
        assert not np.array_equal(together, attack().fit(table.X, y).generate(table.X, y))


@every_attack
def test_string_labels(cls, table):
    names = np.array(["zebra", "ant", "fox"])
    model = LogisticRegression().fit(table.X, names[table.y])
    attack = make(cls, model, eps=STRONG[float(cls().norm)], random_state=0).fit(table.X)
    X_adv = attack.generate(table.X, names[table.y])
    drop = 0.3 if cls.per_sample else 0.1
    assert model.score(X_adv, names[table.y]) < model.score(table.X, names[table.y]) - drop
    assert_array_equal(attack.transform(table.X), attack.generate(table.X, model.predict(table.X)))


@minimal
def test_closest_examples_leave_alone_what_is_wrong_or_out_of_reach(cls, problem):
    X, y = problem.X[:40], problem.y[:40].copy()
    y[::3] = (y[::3] + 1) % 3
    attack = make(cls, problem.model, random_state=0, clip=None)  # without a limit
    predicted = logits_of(problem.model, X).argmax(1).numpy()
    X_adv, info = attack.generate(X, y, return_info=True)
    wrong = predicted != y
    assert_array_equal(X_adv[wrong], X[wrong])
    assert np.all(info["distance"][wrong] == 0)
    assert np.all(info["distance"][~wrong] > 0)
    fooled = logits_of(problem.model, X_adv).argmax(1).numpy() != y
    assert fooled.mean() > 0.9
    moved = (X_adv - X).reshape(len(X), -1).astype(np.float64)
    reported = info["distance"][fooled]
    found = np.linalg.norm(moved, ord=attack.norm if attack.norm else 0, axis=1)[fooled]
    assert_allclose(found, reported, rtol=1e-3, atol=1e-5)
    # a single feature may be enough for all, where there is no limit to how far it moves
    radius = float(np.median(reported[reported > 0])) if attack.norm else 0.5
    near = attack.set_params(eps=radius)
    X_near, info = near.generate(X, y, return_info=True)
    far = ~np.isfinite(info["distance"])
    assert far.any()
    assert_array_equal(X_near[far], X[far])


@minimal
def test_closest_examples_are_close(cls, table):
    # for a linear model the distance to the border is known
    X, y = table.X[table.y < 2], table.y[table.y < 2]
    model = LogisticRegression().fit(X, y)
    attack = cls(model, clip=None, random_state=0)
    X_adv, info = attack.generate(X, return_info=True)
    assert np.all(model.predict(X_adv) != model.predict(X))
    dual = {np.inf: 1, 2.0: 2, 1.0: np.inf, 0.0: None}[float(attack.norm)]
    if dual is not None:
        exact = np.abs(model.decision_function(X)) / np.linalg.norm(model.coef_[0], ord=dual)
        assert np.all(info["distance"] >= exact * (1 - 1e-6))
        assert np.median(info["distance"] / exact) < 1.25


# --- black boxes ---------------------------------------------------------------------


@black_box
def test_trees_and_votes_are_attacked_with_few_questions(cls, table):
    tree = RandomForestClassifier(10, random_state=0)
    names = np.array(["zebra", "ant", "fox"])[table.y]
    frame = pd.DataFrame(table.X, columns=list("abcdef"))
    for model in (tree, make_pipeline(StandardScaler(), tree)):
        model.fit(frame, names)
        norm = cls().norm
        attack = make(cls, model, eps=scaled(norm, STRONG[float(norm)]), random_state=0).fit(frame)
        X_adv, info = attack.generate(frame[:60], names[:60], return_info=True)
        assert list(X_adv.columns) == list("abcdef")
        assert model.score(X_adv, names[:60]) < model.score(frame[:60], names[:60]) - 0.2
        assert info["n_queries"].shape == (60,)
        assert np.all(info["n_queries"] >= 1)
        assert np.all(info["n_queries"] <= attack.max_queries)


@black_box
def test_budget_of_questions(cls, table):
    tree = RandomForestClassifier(5, random_state=0).fit(table.X, table.y)
    for budget in (1, 2, 7, 40):
        attack = cls(tree, eps=1.0, max_queries=budget, random_state=0).fit(table.X)
        _, info = attack.generate(table.X[:20], table.y[:20], return_info=True)
        assert np.all(info["n_queries"] <= budget)
    for budget in (0, -3, 2.5, None):
        attack = cls(tree, eps=1.0, max_queries=budget, clip=None)
        with pytest.raises(ValueError, match=r"max_queries must be an integer of at least 1"):
            attack.generate(table.X[:5])


@black_box
def test_hard_votes_give_labels_only(cls, table):
    members = [("a", LogisticRegression()), ("b", RandomForestClassifier(5, random_state=0))]
    model = VotingClassifier(members).fit(table.X, table.y)
    attack = make(cls, model, eps=STRONG[float(cls().norm)], random_state=0)
    if cls().access == "labels":
        X_adv = attack.fit(table.X).generate(table.X[:40], table.y[:40])
        assert model.score(X_adv, table.y[:40]) < model.score(table.X[:40], table.y[:40]) - 0.2
    else:
        with pytest.raises(TypeError, match=r"needs scores.*VotingClassifier.*labels only"):
            attack.fit(table.X)


# --- refusals ------------------------------------------------------------------------


@white_box
def test_tree_has_no_gradient(cls, table):
    tree = RandomForestClassifier(5, random_state=0).fit(table.X, table.y)
    assert issubclass(NoGradientError, TypeError)
    for model in (tree, make_pipeline(StandardScaler(), tree).fit(table.X, table.y)):
        attack = make(cls, model, clip=None)
        for call in (lambda a=attack: a.generate(table.X), lambda a=attack: a.fit(table.X)):
            with pytest.raises(NoGradientError) as caught:
                call()
            message = str(caught.value)
            assert "\n" not in message
            assert cls.__name__ in message
            assert "RandomForestClassifier" in message
            assert "use a black-box attack" in message
            assert "register_converter" in message


@every_attack
def test_victim_that_is_not_fitted(cls, table):
    with pytest.raises(NotFittedError, match="FrozenEstimator"):
        make(cls, LogisticRegression(), clip=None).generate(table.X)
    with pytest.raises(NotFittedError, match="FrozenEstimator"):
        make(cls, LogisticRegression()).fit(table.X)
    with pytest.raises(TypeError, match="instance of LogisticRegression"):
        make(cls, LogisticRegression).fit(table.X)
    with pytest.raises(TypeError, match="neither a torch module nor an estimator"):
        make(cls, "a string").fit(table.X)


@every_attack
def test_victim_in_a_cloned_pipeline(cls, table):
    X, y = table.X, table.y
    forest = RandomForestClassifier(5, random_state=0)
    lost = make_pipeline(make(cls, table.model, eps=0.1, random_state=0), forest)
    with pytest.raises(NotFittedError, match="FrozenEstimator"):
        cross_val_score(lost, X, y, cv=2, error_score="raise")
    kept = make_pipeline(make(cls, FrozenEstimator(table.model), eps=0.1, random_state=0), forest)
    assert cross_val_score(kept, X, y, cv=2, error_score="raise").min() > 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda X: np.where(np.arange(6) == 2, np.nan, X), "contains NaN"),
        (lambda X: np.where(np.arange(6) == 2, np.inf, X), "contains infinity"),
        (lambda X: X[:0], "minimum of 1"),
        (lambda X: X[:, :4], "4 features.*expecting 6"),
        (lambda X: X[0], "2D array"),
    ],
    ids=["nan", "inf", "empty", "features", "1d"],
)
@pytest.mark.parametrize("fitted", [True, False])
@every_attack
def test_bad_X(cls, fitted, change, message, table):
    attack = make(cls, table.model, eps=0.1, clip=(-50, 50))
    if fitted:
        attack.fit(table.X)
    with pytest.raises(ValueError, match=message):
        attack.generate(change(table.X[:5]))


@every_attack
def test_bad_image_shape(cls, images):
    attack = make(cls, images.net, eps=0.1).fit(images.X)
    with pytest.raises(ValueError, match=r"\(1, 6, 6\).*\(1, 8, 8\)"):
        attack.generate(images.X[:3, :, 1:7, 1:7])


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"eps": -0.1}, ValueError, "eps must be finite and not negative, got -0.1"),
        ({"eps": np.nan}, ValueError, "eps must be finite"),
        ({"eps": np.inf}, ValueError, "eps must be finite"),
        ({"eps": [0.1, 0.2]}, ValueError, r"eps has shape \(2,\).*\(6,\)"),
        ({"eps": "large"}, (TypeError, ValueError), "eps must be a number"),
        ({"norm": 3}, ValueError, "norm=3 is not supported; use one of"),
        ({"norm": "l7"}, ValueError, "norm='l7' is not supported; use one of"),
        ({"clip": (1, 0)}, ValueError, "low > high"),
        ({"clip": 1.0}, ValueError, r"clip must be 'auto', None or \(low, high\)"),
        ({"clip": "bounds"}, ValueError, "clip must be 'auto'"),
        ({"mask": np.ones(5, bool)}, ValueError, r"mask has shape \(5,\).*\(6,\)"),
        ({"mask": np.arange(6)}, ValueError, "mask must be boolean"),
        ({"bn_mode": "both"}, ValueError, "bn_mode must be 'eval' or 'train'"),
        ({"target": 77}, ValueError, r"target contains labels.*\[77\]"),
        ({"target": "leastlikely"}, ValueError, "target.*leastlikely"),
        ({"target": [0, 1]}, ValueError, "inconsistent numbers of samples"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"batch_size": -5}, ValueError, "batch_size"),
        ({"batch_size": 2.5}, (TypeError, ValueError), "batch_size"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
@every_attack
def test_bad_parameters(cls, parameters, error, message, table):
    if cls().minimal and parameters.get("eps") == np.inf:
        pytest.skip("no limit")
    attack = make(cls, table.model, **{"clip": None, **parameters})
    with pytest.raises(error, match=message):
        attack.generate(table.X[:5])


@pytest.mark.parametrize("parameters", [{"eps": -0.1}, {"norm": 3}, {"clip": (1, 0)}])
@every_attack
def test_fit_finds_bad_parameters_early(cls, parameters, table):
    with pytest.raises(ValueError, match=next(iter(parameters))):
        make(cls, table.model, **parameters).fit(table.X)


@pytest.mark.parametrize(
    ("objective", "error", "message"),
    [
        ("crossentropy", ValueError, "'crossentropy' is unknown; use one of .*'ce'.*callable"),
        (3, TypeError, "name or a callable"),
        (lambda logits, y: F.cross_entropy(logits, y), ValueError, "reduction='none'"),
        (lambda logits, y: logits.detach()[:, 0], ValueError, "No gradient"),
    ],
    ids=["name", "number", "mean", "detached"],
)
@with_objective
def test_bad_objective(cls, objective, error, message, table):
    with pytest.raises(error, match=message):
        make(cls, table.model, objective=objective, clip=None).generate(table.X[:5])


@every_attack
def test_data_outside_of_an_explicit_box(cls, table):
    with pytest.raises(ValueError, match=r"outside of clip=\[0, 1\].*rescale"):
        make(cls, table.model, clip=(0, 1), eps=0.1).generate(table.X)


@every_attack
def test_bad_labels(cls, table):
    names = np.array(["zebra", "ant", "fox"])
    by_name = LogisticRegression().fit(table.X, names[table.y])
    X, y = table.X[:6], table.y[:6]
    attack = make(cls, by_name, clip=None, eps=0.1)
    with pytest.raises(ValueError, match=r"not been trained on: \['bear'\]"):
        attack.generate(X, ["bear"] * 6)
    with pytest.raises(ValueError, match="not been trained on"):
        attack.generate(X, y)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        attack.generate(X, names[table.y[:5]])
    attack = make(cls, table.model, clip=None, eps=0.1)
    with pytest.raises(ValueError, match=r"one-hot encoded.*argmax"):
        attack.generate(X, np.eye(3)[y])
    with pytest.raises(ValueError, match="not been trained on"):
        attack.generate(X, ["zebra"] * 6)


@every_attack
def test_target_that_is_the_label(cls, table):
    X, y = table.X[:6], table.y[:6]
    target = (y + 1) % 3
    target[4] = y[4]
    attack = make(cls, table.model, clip=None, target=target)
    with pytest.raises(ValueError, match=r"target equals the label of 1 of 6 samples.*row 4"):
        attack.generate(X, y)
    attack = make(cls, table.model, clip=None, target=2)
    with pytest.raises(ValueError, match="target equals the label of 6 of 6 samples"):
        attack.generate(X, np.full(6, 2))


@white_box
def test_probabilities_in_place_of_logits(cls, table):
    module = torch.nn.Sequential(table.net, torch.nn.Softmax(1))
    with pytest.warns(UserWarning, match="returns probabilities.*logits are needed"):
        make(cls, module, clip=None, random_state=0).generate(table.X[:6])


@every_attack
def test_bad_labels_for_a_module(cls, table):
    X = table.X[:6]
    attack = make(cls, table.net, clip=None, eps=0.1)
    for wrong in (["zebra"] * 6, np.full(6, 0.5)):
        with pytest.raises(ValueError, match=r"class indices|not been trained on"):
            attack.generate(X, wrong)
    for wrong in (3, -1, -100):
        with pytest.raises(ValueError, match=f"{wrong}"):
            attack.generate(X, np.full(6, wrong))
    with pytest.raises(ValueError, match="7"):
        attack.set_params(target=7).generate(X)


@every_attack
def test_bytes_with_a_small_radius(cls, table):
    X = np.round(20 * (table.X - table.X.min())).astype(np.uint8)
    model = LogisticRegression().fit(X / 20.0, table.y)
    attack = make(cls, model, eps=8 / 255, clip=(0, 255), random_state=0)
    for bytes_ in (X, torch.tensor(X)):
        with pytest.warns(UserWarning, match="X holds bytes"):
            attack.generate(bytes_)
    attack.set_params(eps=8.0)
    X_adv = attack.generate(X)
    assert X_adv.dtype == np.float64
    if cls().norm != 0:
        assert np.abs(X_adv - X).max() <= 8


@every_attack
def test_unfitted_attack_has_no_range_for_a_foreign_model(cls, table):
    attack = make(cls, table.model)
    with pytest.raises(NotFittedError, match=r"clip='auto'.*fit\(X_train\).*clip=\(0, 1\)"):
        attack.transform(table.X)
    with pytest.raises(NotFittedError, match="no model to attack"):
        make(cls, clip=None).transform(table.X)
    with pytest.raises(ValueError, match="requires y to be passed"):
        cls().fit(table.X)
    with pytest.raises(ValueError, match="1 sample"):
        attack.fit(table.X[:1])


@every_attack
def test_images_need_a_model(cls, images):
    with pytest.raises(ValueError, match="2-D X"):
        cls().fit(images.X, images.y)


# --- life in scikit-learn ------------------------------------------------------------


@every_norm
def test_pickle_and_clone(cls, norm, problem):
    attack = make(cls, problem.model, norm=norm, eps=scaled(norm, 0.3), random_state=0).fit(
        problem.X
    )
    expected = attack.transform(problem.X[:4])
    assert_array_equal(pickle.loads(pickle.dumps(attack)).transform(problem.X[:4]), expected)
    twin = clone(make(cls, norm=norm, eps=scaled(norm, 0.3), random_state=0))
    same = make(cls, norm=norm, eps=scaled(norm, 0.3), random_state=0)
    assert repr(twin.get_params()) == repr(same.get_params())
    module = clone(
        make(cls, problem.net, norm=norm, eps=scaled(norm, 0.3), random_state=0, clip=None)
    )
    assert module.estimator is not problem.net
    assert_array_equal(
        module.generate(problem.X[:4]),
        make(
            cls, problem.net, norm=norm, eps=scaled(norm, 0.3), random_state=0, clip=None
        ).generate(problem.X[:4]),
    )


@every_attack
def test_get_and_set_params(cls):
    attack = cls()
    parameters = attack.get_params(deep=False)
    assert set(parameters) == set(inspect.signature(cls).parameters)
    assert "common" not in parameters
    for name in ("norm", "eps", "clip", "target", "mask", "batch_size", "random_state", "device"):
        assert name in parameters
    assert attack.set_params(eps=0.25, norm=2) is attack
    assert attack.get_params()["eps"] == 0.25
    assert "eps=0.25" in repr(attack)
    with pytest.raises(ValueError, match="Invalid parameter 'epsilon'"):
        attack.set_params(epsilon=1)
    with pytest.raises(TypeError, match="epsilon"):
        make(cls, epsilon=1)
    with pytest.raises(TypeError):
        make(cls, None, 0.3)
    nested = make(cls, LogisticRegression()).set_params(estimator__C=3.0)
    assert nested.estimator.C == 3.0


@every_attack
def test_every_parameter_is_documented(cls):
    for name in inspect.signature(cls).parameters:
        assert re.search(rf"^\s*{name} : ", cls.__doc__, re.MULTILINE), name
    assert "%(" not in cls.__doc__


@every_attack
def test_set_output(cls, table):
    attack = (
        make(cls, table.model, eps=0.3, random_state=0).set_output(transform="pandas").fit(table.X)
    )
    assert list(attack.transform(table.X[:4]).columns) == [f"x{i}" for i in range(6)]


@every_attack
def test_tensors_in_and_out_of_the_torch_face(cls, images):
    x, y = torch.tensor(images.X[:6]), torch.tensor(images.y[:6])
    attack = make(cls, eps=0.1, clip=(0, 1), random_state=0)
    x_adv = attack.perturb(images.net, x, y)
    assert x_adv.shape == x.shape
    assert x_adv.dtype == x.dtype
    assert not x_adv.requires_grad
    assert x_adv is not x
    assert (x_adv - x).abs().max() <= 0.1 + 1e-6
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert torch.equal(
        attack.perturb(images.net, x, y, seed=5), attack.perturb(images.net, x, y, seed=5)
    )
    assert attack.perturb(images.net, x[:0], y[:0]).shape == (0, 1, 8, 8)


BY_DEFAULT = [make(cls) for cls in ATTACKS]
IN_OTHER_NORMS = [
    make(cls, norm=norm) for cls in ATTACKS for norm in cls.supported_norms if norm != cls().norm
]


@parametrize_with_checks(BY_DEFAULT)
def test_scikit_learn_checks(estimator, check):
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks(IN_OTHER_NORMS)
def test_scikit_learn_checks_in_other_norms(estimator, check):
    check(estimator)


@pytest.mark.parametrize("attack", BY_DEFAULT + IN_OTHER_NORMS, ids=repr)
def test_scikit_learn_checks_are_many(attack):
    assert sum(1 for _ in estimator_checks_generator(attack)) >= 45
