import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from recording import Recorder
from scipy.optimize import brentq
from torch import nn

from robustsk.attacks import APGD, PGD, ScaledPGD, as_victim
from robustsk.attacks.gradient import apgd
from robustsk.attacks.threat import project_l1_box
from robustsk.metrics import adversarial_outcome

NORMS = [np.inf, 2.0, 1.0]
each_norm = pytest.mark.parametrize("norm", NORMS, ids=["inf", "2", "1"])
RNG = np.random.default_rng(0)
D = 8
W = RNG.normal(size=D)
X = torch.tensor(RNG.normal(size=(40, D)))


def linear():
    """Return a model of two classes with the margin ``W @ x + 0.3``."""
    module = nn.Linear(D, 1).double()
    with torch.no_grad():
        module.weight.copy_(torch.tensor(W)[None])
        module.bias.fill_(0.3)
    return module


class Script(nn.Module):
    """Says what it is told to, call by call, with the gradient of `direction`, up or down."""

    def __init__(self, values, direction, signs=None):
        super().__init__()
        self.values, self.direction, self.inputs = list(values), direction, []
        self.signs = signs

    def forward(self, x):
        self.inputs.append(x.detach().clone())
        call = len(self.inputs) - 1
        along = (
            x @ self.direction if self.signs is None else self.signs[call] * (x @ self.direction)
        )
        value = self.values[call] + along - along.detach()
        return torch.stack([torch.zeros_like(value), value], 1)


def second_logit(logits, y):
    return logits[:, 1]


# --- the schedule ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_steps", "expected"),
    [
        (100, [22, 41, 57, 70, 80, 87, 93, 99]),
        (20, [4, 7, *range(9, 20)]),
        (1, []),
        (2, [1]),
    ],
)
def test_checkpoints(n_steps, expected):
    found = apgd._checkpoints(n_steps)
    assert list(found) == expected
    assert list(found.values()) == np.diff([0, *expected]).tolist()


def run_script(values, n_steps, rho=0.75, eps=1.0, signs=None, **common):
    """Return the iterates in one dimension along a gradient that stays, or one that turns."""
    module = Script(values, torch.ones(1, dtype=torch.float64), signs)
    attack = APGD(
        n_steps=n_steps, rho=rho, eps=eps, clip=None, objective=second_logit, random_state=0
    )
    x, y = torch.zeros(1, 1).double(), torch.ones(1, dtype=torch.int64)
    result = attack.perturb(module, x, y, **common)
    return torch.cat(module.inputs)[:, 0].numpy(), result


def reference_path(start, values, n_steps, rho, eps, signs):
    """Return the iterates in one dimension by the rule as published, with plain loops."""
    lengths, checks, step = [], [], max(int(0.22 * n_steps), 1)
    at = step
    while at < n_steps:
        checks.append(at)
        lengths.append(step)
        step = max(step - max(int(0.03 * n_steps), 1), max(int(0.06 * n_steps), 1))
        at += step
    size, halved, path = 2 * eps, True, [start]
    x, previous, best, best_value, noted = start, start, start, values[0], values[0]
    uphill_at_best = signs[0]
    for k in range(n_steps):
        uphill = signs[k]
        if k and values[k] > best_value:
            best, best_value, uphill_at_best = x, values[k], uphill
        if k in checks:
            length = lengths[checks.index(k)]
            rises = sum(values[i] > values[i - 1] for i in range(k - length + 1, k + 1))
            stop = rises <= rho * length or (not halved and best_value <= noted)
            if stop:
                size, x, uphill = size / 2, best, uphill_at_best
            halved, noted = stop, best_value
        z = np.clip(x + size * uphill, -eps, eps)
        step = z - x if k == 0 else 0.75 * (z - x) + 0.25 * (x - previous)
        x, previous = np.clip(x + step, -eps, eps), x
        path.append(x)
    return path


@pytest.mark.parametrize("seed", range(12))
def test_path_follows_the_published_rule(seed):
    # uphill is now here, now there: a gradient that stays ends in a corner, where no step shows
    n_steps, generator = 50, np.random.default_rng(seed)
    values = np.cumsum(generator.normal(0.7 * (seed % 3), 1, size=n_steps + 1))
    signs = generator.choice([-1.0, 1.0], size=n_steps + 1)
    rho = 0.5 + 0.05 * seed
    path, _ = run_script(values, n_steps, rho=rho, signs=signs)
    assert abs(path[0]) == 1.0
    expected = reference_path(path[0], values, n_steps, rho, 1.0, signs)
    assert_allclose(path, expected, atol=1e-12)
    assert len(np.unique(np.round(path, 9))) > 10


def test_first_checkpoint_counts_the_step_from_the_start():
    # checkpoint after 4 of 20 steps; 3 of its 4 steps rise, or all 4
    for first, halves in ((5.0, True), (-5.0, False)):
        values = [first, *np.arange(20.0)]
        checks = SimpleNamespace(sizes=[])
        real = apgd._Ascent.check

        def check(self, ball, step, real=real, checks=checks):
            real(self, ball, step)
            checks.sizes.append(float(self.size))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(apgd._Ascent, "check", check)
            run_script(values, 20)
        assert checks.sizes[3] == 2.0
        assert checks.sizes[4] == (1.0 if halves else 2.0)


@each_norm
def test_start_and_first_step(norm):
    recorder = Recorder(linear())
    eps = 0.7
    attack = APGD(norm=norm, eps=eps, clip=None, n_steps=2, random_state=0, large_radius=False)
    attack.perturb(recorder, X, torch.zeros(40, dtype=torch.int64), keep="last")
    start, second = (recorder.inputs[i] - X for i in (0, 1))
    size = torch.linalg.vector_norm(start, ord=norm, dim=1)
    assert_allclose(size, eps, rtol=1e-10)
    assert len(torch.unique(start[:, 0])) > (1 if norm == 1 else 30)
    # the first step is as long as the ball is wide
    if norm == np.inf:
        assert_allclose(second, eps * np.sign(W)[None].repeat(40, 0))
    if norm == 2:
        moved = start + 2 * eps * torch.tensor(W) / np.linalg.norm(W)
        length = torch.linalg.vector_norm(moved, dim=1, keepdim=True)
        assert_allclose(second, moved * (eps / length).clamp_max(1), rtol=1e-10)


def test_restarts_and_targets_start_elsewhere(table, monkeypatch):
    monkeypatch.setattr("robustsk.attacks.gradient._descent._ROOM", 0)  # one run after the other
    net = Recorder(table.net)
    attack = APGD(n_steps=3, n_restarts=2, n_targets=2, eps=0.5, clip=None, random_state=0)
    x, y = torch.tensor(table.X[:5]), torch.tensor(table.y[:5])
    attack.perturb(net, x, y, keep="last")
    starts = torch.stack(net.inputs[1::4])  # after the clean forward
    assert starts.shape[0] == 4
    assert len(torch.unique(starts, dim=0)) == 4


# --- the 1-norm -------------------------------------------------------------------------


def project_by_root(row, radius, low, high):
    def cut(t):
        return np.clip(np.sign(row) * np.maximum(np.abs(row) - t, 0), low, high)

    if np.abs(cut(0.0)).sum() <= radius:
        return cut(0.0)
    top = np.abs(row).max()
    return cut(brentq(lambda t: np.abs(cut(t)).sum() - radius, 0, top, xtol=1e-14, rtol=1e-14))


@pytest.mark.parametrize("scale", [0.01, 1.0, 1e4])
@pytest.mark.parametrize("d", [1, 2, 7, 300])
def test_projection_onto_ball_and_box(d, scale):
    generator = np.random.default_rng(d)
    x = generator.uniform(size=(15, d))
    x[:, ::3], x[:, 1::3] = 0.0, 1.0
    delta = scale * generator.normal(size=(15, d))
    delta[:, ::5] = 0.0
    delta[0] = 0.0
    for radius in (0.0, 0.1, 1.0, 12.0):
        args = (torch.tensor(delta), radius, torch.tensor(-x), torch.tensor(1 - x))
        found = project_l1_box(*args).numpy()
        expected = [
            project_by_root(row, radius, -here, 1 - here)
            for row, here in zip(delta, x, strict=True)
        ]
        assert_allclose(found, expected, atol=1e-11 * max(scale, 1))
        single = project_l1_box(*(v.float() if isinstance(v, torch.Tensor) else v for v in args))
        assert np.abs(single.numpy()).sum(1).max() <= radius * (1 + 1e-6)


def test_projection_is_the_closest_point_of_ball_and_box():
    generator = np.random.default_rng(3)
    delta, x = 2 * generator.normal(size=4), generator.uniform(size=4)
    found = project_l1_box(
        torch.tensor(delta[None]), 0.8, torch.tensor(-x[None]), torch.tensor(1 - x[None])
    )[0].numpy()
    others = generator.uniform(-x, 1 - x, size=(200000, 4))
    others = others[np.abs(others).sum(1) <= 0.8]
    assert ((found - delta) ** 2).sum() <= ((others - delta) ** 2).sum(1).min()


def test_sparse_steps_move_as_many_features_as_asked():
    d, eps = 50, 1.0
    gradient = torch.linspace(1, 2, d).double()[None]
    ball = SimpleNamespace(
        radius=eps, x=torch.zeros(1, d).double(), low=None, norm=1.0, clamp=lambda z: z,
        to_unit=lambda v: v, to_data=lambda v: v,
    )  # fmt: skip
    value = torch.zeros(1).double()
    path = apgd._SparseAscent(ball, ball.x, torch.zeros(1, 2), value, gradient, 100, False)
    assert path.interval == 4
    z = path.move(ball, 0)  # a fifth of the features
    assert_array_equal(np.flatnonzero(z[0]), np.arange(40, 50))
    assert_allclose(z[0, 40:], 0.1)
    path.observe(z, torch.ones(1, 2), value + 1, gradient)
    path.check(ball, 3)
    assert int(path.count) == 10
    path.check(ball, 4)  # sparser than a start with every feature: full step, ten / 1.5 features
    assert (int(path.count), float(path.size)) == (6, 1.0)
    path.check(ball, 8)  # no sparser than before: a shorter step, down to a tenth
    assert_allclose(float(path.size), 1 / 1.5)
    for step in range(12, 80, 4):
        path.check(ball, step)
    assert_allclose(float(path.size), 0.1)


@pytest.mark.parametrize("large", [True, False])
def test_schedule_of_radii(large):
    recorder = Recorder(linear())
    attack = APGD(norm=1, eps=0.5, clip=(-9, 9), n_steps=10, large_radius=large, random_state=0)
    attack.perturb(recorder, X, torch.ones(40, dtype=torch.int64), keep="last")
    reach = [float((z - X).abs().sum(1).max()) for z in recorder.inputs]
    radii = [1.5] * 4 + [1.0] * 4 + [0.5] * 5 if large else [0.5] * 11
    assert len(reach) == len(radii)
    assert_allclose(reach, radii, rtol=1e-9)


# --- what it attains --------------------------------------------------------------------


@pytest.mark.dealt
@pytest.mark.parametrize("keep", ["first", "worst", "last"])
@each_norm
def test_linear_model_is_fooled_where_it_can_be(norm, keep):
    # the largest change of W @ x within the ball is eps times the dual norm of W
    margin = (X @ torch.tensor(W) + 0.3).numpy()
    y = torch.tensor((margin > 0).astype(np.int64))
    dual = np.linalg.norm(W, ord={np.inf: 1, 2.0: 2, 1.0: np.inf}[norm])
    eps = float(np.median(np.abs(margin))) / dual
    module = linear()
    attack = APGD(norm=norm, eps=eps, clip=None, random_state=0)
    z = attack.perturb(module, X, y, keep=keep)
    with torch.no_grad():
        reached = (z @ torch.tensor(W) + 0.3).numpy()
    reachable = np.abs(margin) < eps * dual
    assert 0.4 < reachable.mean() < 0.6
    # a model of one logit says no where it is not positive
    assert_array_equal((reached > 0).astype(int) != y.numpy(), reachable)
    if keep == "last":
        assert_allclose(np.abs(reached - margin), eps * dual, rtol=1e-3)


@each_norm
def test_box_and_ball_together(norm):
    w = torch.tensor(W)
    x = torch.tensor(RNG.uniform(size=(10, D)))
    room = torch.where(w > 0, 1 - x, x)
    eps = 0.6
    if norm == np.inf:
        best = (w.abs() * room.clamp_max(eps)).sum(1)
    elif norm == 1:
        order = w.abs().argsort(descending=True)
        best = torch.zeros(10).double()
        left = torch.full((10,), eps).double()
        for j in order:
            used = torch.minimum(left, room[:, j])
            best, left = best + w[j].abs() * used, left - used
    else:
        best = torch.zeros(10).double()
        for i in range(10):

            def taken(t, i=i):
                return torch.minimum(w.abs() / t, room[i])

            t = brentq(lambda t: float(taken(t).norm()) - eps, 1e-3, 1e3)
            best[i] = (w.abs() * taken(t)).sum()
    attack = APGD(norm=norm, eps=eps, clip=(0, 1), random_state=0, objective=second_logit)
    z = attack.perturb(linear(), x, torch.zeros(10, dtype=torch.int64))
    # in the 2-norm ball and box are projected onto in turn, which is not the projection onto both
    assert_allclose((z - x) @ w, best, rtol=0.05 if norm == 2 else 5e-3)


def test_stronger_than_pgd_with_as_many_gradients(images):
    def robust(attack):
        return adversarial_outcome(images.net, images.X[:150], images.y[:150], attack).robust

    common = {"eps": 0.1, "clip": (0, 1), "random_state": 0}
    plain = robust(PGD(n_steps=50, **common)).sum()
    for parameters in ({}, {"objective": "dlr"}, {"objective": "cw", "n_targets": 3}):
        found = robust(APGD(n_steps=50, **common, **parameters)).sum()
        assert found <= plain + 1, parameters


@pytest.mark.dealt
@each_norm
def test_a_radius_per_feature(norm):
    # nothing but the features with a radius moves, each no further than its own
    w = torch.tensor(W)
    eps = np.array([0.0, 0.5, 1.0, 0.1, 0.0, 0.3, 2.0, 0.7])
    attack = APGD(norm=norm, eps=eps, clip=None, random_state=0, objective=second_logit)
    z = attack.perturb(linear(), X, torch.zeros(40, dtype=torch.int64))
    gain = (z - X) @ w
    best = np.linalg.norm(W * eps, ord={np.inf: 1, 2.0: 2, 1.0: np.inf}[norm])
    assert_allclose(gain, best, rtol=1e-3)
    boxed = APGD(norm=norm, eps=eps, clip=(-2.5, 2.5), random_state=0)
    inside = X.clamp(-2.5, 2.5)
    z = boxed.perturb(linear(), inside, torch.zeros(40, dtype=torch.int64))
    unit = ((z - inside)[:, eps > 0] / torch.tensor(eps[eps > 0])).numpy()
    assert np.all(np.linalg.norm(unit, ord=norm, axis=1) <= 1 + 1e-9)
    assert z.abs().max() <= 2.5


# --- what is kept -----------------------------------------------------------------------


def test_what_is_returned():
    values = [-5.0, -1.0, 3.0, -2.0, 1.0, -9.0]  # fooled (y is 0) where positive
    for keep, index in (("last", 2), ("worst", 2), ("first", 2)):
        module = Script(values, torch.zeros(1).double())
        module.direction += 1
        attack = APGD(n_steps=5, eps=1.0, clip=None, objective=second_logit, random_state=0)
        if keep == "worst":
            module.values = [-1.0, *values]  # the clean sample is asked about first
        x = torch.zeros(1, 1).double()
        result = attack.perturb(module, x, torch.zeros(1, dtype=torch.int64), keep=keep)
        assert torch.equal(result, module.inputs[index + (keep == "worst")])
        assert len(module.inputs) == {"first": 3, "worst": 7, "last": 6}[keep]


def test_success_is_preferred_to_a_higher_objective():
    # the objective does not know what fools
    values = [1.0, -1.0, 4.0, -3.0, 2.0, 0.5]
    module = Script([5.0, *values], torch.ones(1).double())
    attack = APGD(
        n_steps=5, eps=1.0, clip=None, objective=second_logit, random_state=0
    )  # ascends the true class
    x = torch.zeros(1, 1).double()
    result = attack.perturb(module, x, torch.ones(1, dtype=torch.int64), keep="worst")
    assert torch.equal(result, module.inputs[2])  # the higher of the two that fool


def test_clean_errors_are_kept_where_nothing_else_fools():
    module = Script([-1.0, *[1.0] * 6], torch.ones(1).double())
    attack = APGD(n_steps=5, eps=1.0, clip=None, random_state=0)
    x = torch.zeros(1, 1).double()
    result = attack.perturb(module, x, torch.ones(1, dtype=torch.int64), keep="worst")
    assert torch.equal(result, x)


def test_cost(images):
    # one forward and one gradient per step and sample, and one forward at the end
    x, y = torch.tensor(images.X[:30]), torch.tensor(images.y[:30])
    for keep in ("first", "last"):
        victim = as_victim(images.net)
        attack = APGD(eps=1e-9, clip=(0, 1), n_steps=15, random_state=0)
        right = victim.logits(images.X[:30]).argmax(1) == y
        victim.calls.forward = 0
        attack.perturb(victim, x[right], y[right], keep=keep)
        assert victim.calls.backward == 15 * int(right.sum())
        assert victim.calls.forward == 16 * int(right.sum())


def test_solved_samples_cost_nothing(images):
    X, y = images.X[:60], images.y[:60]
    outcome = adversarial_outcome(
        images.net, X, y, APGD(eps=0.3, clip=(0, 1), objective="dlr", n_targets=9, random_state=0)
    )
    assert outcome.robust.sum() <= 3
    assert outcome.n_backward < 30 * len(X)


def test_fooled_samples_leave_the_batch(images):
    recorder = Recorder(images.net)
    x, y = torch.tensor(images.X[:60]), torch.tensor(images.y[:60])
    APGD(eps=0.08, clip=(0, 1), n_steps=20, random_state=0).perturb(recorder, x, y, keep="first")
    # a few samples are used to find out how the network is run best
    sizes = [len(z) for z in recorder.inputs if len(z) > 2]
    assert sizes == sorted(sizes, reverse=True)
    whole = next(out for out in recorder.outputs if len(out) == 60)
    right = [int((whole.argmax(1) == y).sum())]
    assert sizes[-1] < 60
    assert sizes[1] <= right[0] + 0.05 * 60


# --- several targets --------------------------------------------------------------------


def test_targets_are_the_most_likely_wrong_classes_of_the_clean_sample(images):
    x, y = torch.tensor(images.X[:20]), torch.tensor(images.y[:20])
    seen = []
    real = apgd.aim

    def aim(batch, target):
        seen.append(target.clone())
        return real(batch, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(apgd, "aim", aim)
        patch.setattr("robustsk.attacks.gradient._descent._ROOM", 0)  # one target after the other
        attack = APGD(eps=1e-4, clip=(0, 1), n_steps=1, n_targets=4, random_state=0)
        attack.perturb(images.net, x, y)
    with torch.no_grad():
        logits = images.net.eval()(x).numpy()
    logits[np.arange(20), y] = -np.inf
    assert_array_equal(torch.stack(seen, 1), np.argsort(-logits, 1)[:, :4])


def test_any_wrong_class_is_a_success_with_several_targets(images):
    x, y = torch.tensor(images.X[:80]), torch.tensor(images.y[:80])
    victim = as_victim(images.net)
    attack = APGD(eps=0.25, clip=(0, 1), objective="cw", n_targets="all", random_state=0)
    z = attack.perturb(victim, x, y, keep="first")
    with victim.frozen() as seen, torch.no_grad():
        assert (seen(z).argmax(1) != y).float().mean() > 0.95


def test_too_many_targets(images, table):
    x, y = torch.tensor(images.X[:3]), torch.tensor(images.y[:3])
    for n_targets in (10, 50):
        with pytest.raises(ValueError, match=r"10 classes has 9 wrong ones: give at most 9"):
            APGD(n_targets=n_targets, clip=None).perturb(images.net, x, y)
    for n_targets in (0, 1.5, "some"):
        with pytest.raises(ValueError, match="n_targets must be an integer of at least 1"):
            APGD(n_targets=n_targets, clip=None).perturb(images.net, x, y)
    with pytest.raises(ValueError, match=r"n_targets=2.*target=1.*one of the two"):
        APGD(n_targets=2, target=1, clip=None).perturb(images.net, x, y)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_too_few_classes_for_dlr(n_classes):
    module = nn.Linear(D, n_classes).double()
    y = torch.zeros(len(X), dtype=torch.int64)
    common = {"eps": 0.5, "clip": None, "n_steps": 5, "random_state": 0}
    targeted = {"target": 1} if n_classes == 3 else {}
    with pytest.warns(UserWarning, match="DLR objective compares") as caught:
        z = APGD(objective="dlr", **targeted, **common).perturb(module, X, y)
    assert len([w for w in caught if "DLR" in str(w.message)]) == 1
    assert torch.equal(z, APGD(objective="cw", **targeted, **common).perturb(module, X, y))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        z = APGD(objective="dlr", n_targets="all", **common).perturb(module, X, y)
    assert torch.equal(z, APGD(objective="cw", n_targets="all", **common).perturb(module, X, y))


# --- hostile objectives -----------------------------------------------------------------


@each_norm
def test_flat_and_undefined_objectives(norm):
    def undefined(logits, y):
        return logits[:, 0] * torch.nan

    def flat(logits, y):
        return 0.0 * logits[:, 0]

    for objective in (undefined, flat):
        for keep in ("last", "worst", "first"):
            attack = APGD(
                norm=norm, eps=0.5, clip=None, n_steps=12, objective=objective, random_state=0
            )
            z = attack.perturb(linear(), X, torch.ones(40, dtype=torch.int64), keep=keep)
            assert torch.isfinite(z).all()
            assert torch.linalg.vector_norm(z - X, ord=norm, dim=1).max() <= 0.5 + 1e-9


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n_steps": 0}, "n_steps must be an integer of at least 1"),
        ({"n_restarts": 1.5}, "n_restarts must be an integer of at least 1"),
        ({"rho": -1}, "rho must be a finite number of at least 0"),
    ],
)
def test_bad_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        APGD(clip=None, **parameters).perturb(linear(), X)


# --- scaled logits ----------------------------------------------------------------------


class Times(nn.Module):
    def __init__(self, module, factor):
        super().__init__()
        self.module, self.factor = module, factor

    def forward(self, x):
        return self.factor * self.module(x)


@pytest.mark.parametrize("factor", [1e-20, 1e-3, 1e3, 1e20])
def test_scale_of_the_logits_does_not_matter(factor, images):
    X, y = images.X[:60], images.y[:60]
    common = {"eps": 0.1, "clip": (0, 1), "random_state": 0}

    def robust(attack, factor):
        return adversarial_outcome(Times(images.net, factor), X, y, attack).robust

    expected = robust(ScaledPGD(**common), 1.0)
    assert expected.mean() < 0.6
    found = robust(ScaledPGD(**common), factor)
    assert (found != expected).sum() <= 1  # rounding
    if factor >= 1e3:
        # the gradient of cross-entropy is exactly zero for most samples
        assert robust(PGD(**common), factor).mean() > expected.mean() + 0.2


def test_gradient_of_the_scaled_objective_is_that_of_cross_entropy_at_a_fixed_lead():
    logits = torch.tensor([[3000.0, 1000.0, -5000.0]], dtype=torch.float64, requires_grad=True)
    y = torch.tensor([0])
    from robustsk.attacks.gradient.scaled_pgd import _Scaled
    from robustsk.attacks.objectives import OBJECTIVES

    value = _Scaled(OBJECTIVES["ce"], 2.0)(logits, y, None, None)
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    p = np.exp([2.0, 0.0, -6.0])
    p /= p.sum()
    assert_allclose(gradient[0].numpy(), (p - [1, 0, 0]) / 8000, rtol=1e-10)
    assert_allclose(value.item(), -2000.0)  # comparable between scales


def test_scales_are_tried_one_after_the_other(images):
    X, y = images.X[:60], images.y[:60]
    common = {"eps": 0.06, "clip": (0, 1), "random_state": 0}

    def robust(scales):
        attack = ScaledPGD(scales=scales, **common)
        return adversarial_outcome(images.net, X, y, attack).robust

    assert_array_equal(robust((1.0, 10.0)), robust(1.0) & robust(10.0))


@pytest.mark.parametrize("scales", [0, -1.0, (), (1, 0), "large", (1, np.inf), None])
def test_bad_scales(scales):
    with pytest.raises(ValueError, match="scales must be a positive number"):
        ScaledPGD(scales=scales, clip=None).perturb(linear(), X)
