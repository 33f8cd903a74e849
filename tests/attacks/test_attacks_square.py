"""Square attack: windows, their schedule, corners of the ball, and models whose answer is known."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from recording import Recorder
from sklearn.linear_model import LogisticRegression
from torch import nn

from robustsk.attacks import AutoAttack, SquareAttack, as_victim
from robustsk.attacks.batch import AttackBatch
from robustsk.attacks.black_box._search import Search
from robustsk.attacks.black_box.square import (
    N_PLACED,
    Windows,
    bump,
    corner_proposal,
    corner_start,
    hills,
    mass_proposal,
    mass_start,
)
from robustsk.attacks.noise import SampleNoise
from robustsk.attacks.objectives import OBJECTIVES
from robustsk.attacks.queries import Queries
from robustsk.attacks.threat import Ball

pytestmark = pytest.mark.usefixtures("seeded")


class Stubborn(nn.Module):
    """Always the first class, with a margin that the sum of the features lowers or nothing does."""

    def __init__(self, slope=0.0):
        super().__init__()
        self.slope = slope

    def forward(self, x):
        total = x.flatten(1).sum(1)
        return torch.stack([1e6 - self.slope * total, torch.zeros_like(total)], 1)


def batch_of(x, norm, eps, low=None, high=None, seed=0):
    bounds = [None if v is None else torch.tensor(v) for v in (low, high)]
    victim = as_victim(Stubborn())
    return AttackBatch(
        victim=victim,
        x=x,
        y=torch.zeros(len(x), dtype=torch.long),
        target=None,
        ball=Ball(x, norm, eps, *bounds),
        objective=OBJECTIVES["cw"],
        noise=SampleNoise(x, seed),
        keep="first",
    )


# --- geometry of the windows ---------------------------------------------------------


def expected_share(step, p_init=0.8):
    """The schedule as in the paper, written as a table."""
    table = [
        (10, 1),
        (50, 2),
        (200, 4),
        (500, 8),
        (1000, 16),
        (2000, 32),
        (4000, 64),
        (6000, 128),
        (8000, 256),
    ]
    for last, divisor in table:
        if step <= last:
            return p_init / divisor
    return p_init / 512


@pytest.mark.parametrize(
    ("step", "side"), [(1, 25), (11, 18), (51, 13), (201, 9), (501, 6), (1001, 4), (8001, 1)]
)
def test_sides_on_mnist(step, side):
    # round(sqrt(p * 784)) by hand
    windows = Windows((1, 28, 28))
    assert windows.sides(expected_share(step)) == (side, side)


def test_sides_of_other_shapes():
    assert Windows((3, 32, 32)).sides(0.8) == (29, 29)
    assert Windows((1, 28, 28)).sides(0.05, odd=True) == (7, 7)
    assert Windows((1, 28, 28)).sides(0.8 / 512, odd=True) == (3, 3)
    assert Windows((1, 28, 28)).sides(1.0, odd=True) == (27, 27)
    assert Windows((1, 28, 28)).sides(1.0) == (28, 28)
    # a table is one row, and a narrow image leaves only the other side free
    assert Windows((10,)).sides(0.8) == (1, 8)
    assert Windows((10,)).sides(0.01) == (1, 1)
    assert Windows((3, 40)).sides(0.5) == (1, 20)
    assert Windows((1, 2, 50)).sides(0.5) == (2, 25)
    assert Windows((1, 50, 2)).sides(0.5) == (25, 2)
    assert Windows((1, 1, 1)).sides(0.8, odd=True) == (1, 1)


@pytest.mark.parametrize("rescale", [False, True])
def test_window_sizes_follow_the_schedule(rescale):
    # every window of a model without scores for them is refused: each question is the start,
    # the same for all, plus one window
    x = torch.full((1, 1, 20, 20), 0.5, dtype=torch.float64)
    model = Recorder(Stubborn(slope=0.0))
    n_steps = 60
    attack = SquareAttack(
        eps=0.1, clip=None, max_queries=n_steps + 2, random_state=0, rescale_schedule=rescale
    )
    attack.perturb(model, x, torch.zeros(1, dtype=torch.long))
    clean, start, *proposals = model.inputs
    assert_array_equal(clean, x)
    assert len(proposals) == n_steps
    assert_allclose((start - x).abs(), 0.1)
    assert len(np.unique(start[0, 0].numpy(), axis=0)) == 1  # vertical stripes
    for step, z in enumerate(proposals, 1):
        when = step * 10_000 / n_steps if rescale else step
        side = max(1, round(np.sqrt(expected_share(when) * 400)))
        changed = (z != start)[0, 0].numpy()
        assert changed.any()
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        # the window is of one sign: all that differs from its stripes lies inside of it
        assert np.ptp(rows) == side - 1
        assert np.ptp(columns) <= side - 1
        window = z[0, 0][rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert len(np.unique(window)) == 1


def chosen(windows, where, sides):
    """Return which places in the flattened samples a window holds."""
    nothing = torch.zeros(len(where), int(np.prod(windows.shape)), dtype=torch.bool)
    return nothing.scatter_(1, windows.index(where, sides), True)


def test_windows_lie_everywhere_with_equal_probability():
    n = 4000
    windows = Windows((1, 5, 7))
    where = SampleNoise(torch.rand(n, 3, dtype=torch.float64), 0).uniform(0, (2,))
    mask = windows.images(chosen(windows, where, (2, 3)))
    assert_array_equal(mask.flatten(1).sum(1), 6)
    first_row = mask[:, 0].any(2).int().argmax(1)
    first_column = mask[:, 0].any(1).int().argmax(1)
    counts = torch.bincount(first_row * 7 + first_column, minlength=35).reshape(5, 7)
    assert_array_equal(counts[4:], 0)
    assert_array_equal(counts[:, 5:], 0)
    expected = n / (4 * 5)  # the last place counts as well
    assert counts[:4, :5].min() > expected - 5 * np.sqrt(expected)
    assert counts[:4, :5].max() < expected + 5 * np.sqrt(expected)


def test_frozen_features_take_no_place():
    weight = torch.tensor([0.0, 1.0, 0.0, 0.5, 0.0, 1.0])
    windows = Windows((6,), weight)
    assert (windows.height, windows.width) == (1, 3)
    where = torch.tensor([[0.1, 0.1], [0.1, 0.9]])
    assert_array_equal(windows.index(where, (1, 2)), [[1, 3], [3, 5]])


def test_windows_hold_all_channels():
    # the same rows and columns of each, also where some of them are frozen
    weight = torch.ones(2, 4, 5)
    weight[:, 1] = weight[:, :, 2] = 0.0
    windows = Windows((2, 4, 5), weight)
    where = torch.tensor([[0.0, 0.0], [0.99, 0.99]])
    mask = windows.images(chosen(windows, where, (2, 3)))
    for window, rows, columns in zip(mask, ([0, 2], [2, 3]), ([0, 1, 3], [1, 3, 4]), strict=True):
        expected = torch.zeros(4, 5, dtype=torch.bool)
        expected[np.ix_(rows, columns)] = True
        assert_array_equal(window, torch.stack([expected, expected]))


# --- norm inf ------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 6, 6), (3, 4, 7), (9,), (2, 8)])
def test_corner_moves(shape):
    x = torch.rand(50, *shape, dtype=torch.float64)
    batch = batch_of(x, np.inf, 0.2, 0.0, 1.0)
    windows = Windows(shape)
    z = corner_start(batch, windows, 0)
    corners = torch.stack([(x - 0.2).clamp_min(0), (x + 0.2).clamp_max(1)])
    assert (z == corners).any(0).all()
    drawn = batch.noise.uniform(1, (N_PLACED + windows.shape[0],))
    new = z.flatten(1).scatter(1, *corner_proposal(batch, windows, z, 0.1, drawn)).reshape(z.shape)
    assert (new == corners).any(0).all()
    changed = (new != z).flatten(1)
    assert changed.any(1).all()  # no question is wasted on what is known
    assert changed.sum(1).max() <= windows.shape[0] * np.prod(windows.sides(0.1))


def test_radius_per_feature_is_used_up():
    eps = np.array([0.3, 0.0, 1.0, 0.1])
    model = nn.Linear(4, 2).double()
    x = torch.zeros(20, 4, dtype=torch.float64)
    x += torch.linspace(0, 1e-3, 20)[:, None]
    y = model(x).argmax(1)
    z = SquareAttack(eps=eps, clip=None, max_queries=60, random_state=0).perturb(model, x, y)
    assert_allclose((z - x).abs(), np.tile(eps, (20, 1)), atol=1e-12)


def test_linear_model_breaks_exactly_where_it_can():
    # |w x + b| < eps ||w||_1 decides; the random search finds the only corner that matters
    rng = np.random.RandomState(0)
    w = rng.randn(8)
    model = nn.Linear(8, 2).double()
    with torch.no_grad():
        model.weight[0], model.weight[1] = torch.zeros(8), torch.tensor(w)
        model.bias[:] = torch.tensor([0.0, 0.1])
    X = rng.randn(150, 8)
    score = X @ w + 0.1
    y = (score > 0).astype(int)
    eps = 0.25
    breakable = np.abs(score) < eps * np.abs(w).sum()
    assert 0.2 < breakable.mean() < 0.8
    attack = SquareAttack(model, eps=eps, clip=None, max_queries=600, random_state=0)
    X_adv, info = attack.generate(X, y, return_info=True)
    fooled = ((X_adv @ w + 0.1) > 0) != y
    assert_array_equal(fooled, breakable)
    # those that hold have been pushed as far as they can be
    pushed = np.where(y == 1, 1, -1) * (X_adv @ w + 0.1)
    floor = np.abs(score) - eps * np.abs(w).sum()
    assert_allclose(pushed[~breakable], floor[~breakable], atol=1e-9)
    assert np.all(info["n_queries"][~breakable] == 600)
    assert np.all(info["n_queries"][breakable] < 600)


# --- norms 2 and 1 -------------------------------------------------------------------


def test_bumps_by_hand():
    assert_allclose(bump(1, 1, 2.0), [[1.0]])
    outer, inner = 1 / 4, 1 + 1 / 4
    assert_allclose(bump(3, 3, 2.0), [[outer] * 3, [outer, inner, outer], [outer] * 3])
    assert_allclose(bump(1, 3, 1.0), [[1 / 16, 17 / 16, 1 / 16]])
    beside, above = hills(3, 3, 2.0)
    assert (beside[:, :1] > 0).all()
    assert (beside[:, 1:] < 0).all()
    assert (above[:1] > 0).all()
    assert (above[1:] < 0).all()
    for norm in (1.0, 2.0):
        for sides in ((1, 5), (5, 1), (4, 7), (1, 1)):
            pair = hills(*sides, norm)
            assert pair.shape == (2, *sides)
            assert (pair != 0).all()


@pytest.mark.parametrize("shape", [(1, 6, 6), (3, 4, 7), (9,), (2, 8), (1,)])
@pytest.mark.parametrize("norm", [2.0, 1.0])
def test_mass_is_kept_and_the_radius_used_up(norm, shape):
    x = 10 + torch.rand(30, *shape, dtype=torch.float64)
    windows = Windows(shape)
    batch = batch_of(x, norm, 0.7)
    z = mass_start(batch, windows, 0)
    for step in range(5):
        length = np.linalg.norm((z - x).flatten(1), ord=norm, axis=1)
        assert_allclose(length, 0.7, rtol=2e-6)
        assert np.all(length <= 0.7)
        drawn = batch.noise.uniform(step + 1, (N_PLACED + windows.shape[0],))
        z = mass_proposal(batch, windows, z, 0.2, drawn)


@pytest.mark.parametrize("norm", [2.0, 1.0])
def test_mass_moves_from_one_window_to_the_other(norm):
    x = torch.zeros(1, 2, 9, 9, dtype=torch.float64)
    batch, windows = batch_of(x, norm, 1.0), Windows((2, 9, 9))
    z = torch.rand(1, 2, 9, 9, dtype=torch.float64)
    z = z / torch.linalg.vector_norm(z, ord=norm)
    # first window in the upper left corner, second one in the lower right
    drawn = torch.tensor([[0.0, 0.0, 0.999, 0.999, 0.3, 0.2, 0.8]], dtype=torch.float64)
    new = mass_proposal(batch, windows, z, 9 / 81, drawn)[0]
    old = z[0]
    assert_array_equal(new[:, 6:, 6:], 0)
    untouched = torch.ones(9, 9, dtype=torch.bool)
    untouched[:3, :3] = untouched[6:, 6:] = False
    assert_allclose(new[:, untouched], old[:, untouched], rtol=2e-6)

    def size(values):
        return np.linalg.norm(np.asarray(values).ravel(), ord=norm)

    for channel, sign in ((0, -1.0), (1, 1.0)):
        window = old[channel, :3, :3]
        freed = (size(window) ** norm + size(old[channel, 6:, 6:]) ** norm) ** (1 / norm)
        hill = hills(3, 3, norm)[1]
        shape = sign * hill / size(hill) + window / size(window)
        assert_allclose(new[channel, :3, :3], shape / size(shape) * freed, rtol=1e-5)


@pytest.mark.parametrize("norm", [2.0, 1.0])
def test_what_the_box_cuts_off_is_used_elsewhere(norm):
    # on black nothing can get darker, which is half of every bump
    x = torch.zeros(10, 1, 10, 10, dtype=torch.float64)
    batch, windows = batch_of(x, norm, 0.9, 0.0, 1.0), Windows((1, 10, 10))
    z = mass_start(batch, windows, 0)
    assert z.min() >= 0
    assert z.max() <= 1
    assert_allclose(np.linalg.norm(z.flatten(1), ord=norm, axis=1), 0.9, rtol=2e-6)


@pytest.mark.dealt
@pytest.mark.parametrize("norm", [2.0, 1.0])
def test_linear_model_in_other_norms(norm):
    rng = np.random.RandomState(1)
    w = rng.randn(6)
    model = LogisticRegression()
    model.classes_ = np.array([0, 1])
    model.coef_, model.intercept_, model.n_features_in_ = w[None], np.array([0.2]), 6
    X = rng.randn(100, 6)
    score = X @ w + 0.2
    eps = 0.8
    dual = np.linalg.norm(w, ord=2 if norm == 2 else np.inf)
    reachable = np.abs(score) / dual
    attack = SquareAttack(model, norm=norm, eps=eps, clip=None, max_queries=500, random_state=0)
    X_adv = attack.generate(X, (score > 0).astype(int))
    fooled = (X_adv @ w + 0.2 > 0) != (score > 0)
    assert not fooled[reachable > eps].any()
    assert fooled[reachable < 0.9 * eps].all()


# --- the search ----------------------------------------------------------------------


def margins(model, z, y):
    with torch.no_grad():
        logits = model(z)
    own = logits.gather(1, y[:, None])
    return (logits.scatter(1, y[:, None], -torch.inf).amax(1, keepdim=True) - own)[:, 0]


@pytest.mark.dealt
@pytest.mark.parametrize("norm", [np.inf, 2, 1])
def test_more_questions_never_give_less(norm, images):
    x, y = torch.tensor(images.X[:20]), torch.tensor(images.y[:20])
    before = margins(images.net, x, y)
    first = before
    for budget in (1, 2, 10, 40, 120):
        attack = SquareAttack(
            norm=norm, eps={np.inf: 0.05, 2: 0.3, 1: 1.0}[norm], clip=(0, 1), max_queries=budget
        )
        z = attack.perturb(images.net, x, y, seed=3)
        now = margins(images.net, z, y)
        assert torch.all(now >= before - 1e-5)
        before = now
    assert (before - first).mean() > 0.5


def test_a_change_in_place_is_the_same_question(images):
    x, y = torch.tensor(images.X[:30]), torch.tensor(images.y[:30])
    searches = []
    for _ in range(2):
        batch = batch_of(x, np.inf, 0.2)
        batch.victim, batch.y = as_victim(images.net), y
        searches.append(Search(batch, Queries(batch, 50), torch.arange(len(x))))
    whole, in_place = searches
    for search in searches:
        search.ask(x)
        search.drop()
    n_kept = []
    for step in range(20):
        noise = whole.batch.noise
        where = noise.uniform(step, x.shape[1:]).flatten(1).argsort(1)[:, :9]
        before = whole.best.clone()
        values = before.flatten(1).gather(1, where) + 0.2 * noise.normal(step, (9,))
        whole.ask(before.flatten(1).scatter(1, where, values).reshape(before.shape))
        in_place.ask_change(where, values)
        assert_array_equal(in_place.best, whole.best)
        assert_array_equal(in_place.value, whole.value)
        n_kept.append((whole.best != before).flatten(1).any(1).sum() / len(before))
        for search in searches:
            search.drop()
    assert 0 < min(n_kept) < max(n_kept) < 1
    assert 0 < len(in_place) < 30
    for search in searches:
        search.finish()
    assert_array_equal(in_place.found, whole.found)
    assert_array_equal(in_place.queries.count, whole.queries.count)


@pytest.mark.parametrize("keep", ["first", "worst", "last"])
def test_questions_are_counted_and_stop_at_the_first_success(keep, images):
    x, y = torch.tensor(images.X[:30]), torch.tensor(images.y[:30])
    attack = SquareAttack(eps=0.15, clip=(0, 1), max_queries=80, random_state=0)
    model = Recorder(images.net)
    z, info = attack.perturb(model, x, y, keep=keep, return_info=True)
    assert sum(len(asked) for asked in model.inputs) == info["n_queries"].sum()
    fooled = images.net(z).argmax(1) != y
    wrong = images.net(x).argmax(1) != y
    assert fooled.any()
    assert not fooled.all()
    assert_array_equal(info["n_queries"][~fooled], 80)
    assert torch.all(info["n_queries"][fooled] <= 80)
    assert_array_equal(info["n_queries"][wrong], 1)
    assert_array_equal(z[wrong], x[wrong])


def test_restarts_share_the_questions(images):
    x, y = torch.tensor(images.X[:30]), torch.tensor(images.y[:30])

    def run(n_restarts, max_queries):
        model = Recorder(images.net)
        attack = SquareAttack(
            eps=0.1, clip=(0, 1), max_queries=max_queries, n_restarts=n_restarts, random_state=0
        )
        z, info = attack.perturb(model, x, y, keep="first", return_info=True)
        return z, info["n_queries"], model.inputs

    z_one, _, _ = run(1, 31)
    z_three, count, asked = run(3, 91)
    robust = images.net(z_three).argmax(1) == y
    assert_array_equal(count[robust], 91)
    assert sum(len(part) for part in asked) == count.sum()
    # the first run is the same one; the others only add to it
    assert torch.all(margins(images.net, z_three, y) >= margins(images.net, z_one, y) - 1e-5)
    for n_restarts, budget in ((5, 3), (10, 1), (3, 7)):
        assert run(n_restarts, budget)[1].max() <= budget


def test_margin_zero_is_not_a_success():
    # a tie of the logits goes to the first class, as argmax has it
    class Tie(nn.Module):
        def forward(self, x):
            zero = 0 * x.flatten(1).sum(1)
            return torch.stack([zero, zero], 1)

    x = torch.rand(4, 1, 5, 5)
    attack = SquareAttack(eps=0.1, clip=(0, 1), max_queries=12, random_state=0)
    _, info = attack.perturb(Tie(), x, torch.zeros(4, dtype=torch.long), return_info=True)
    assert_array_equal(info["n_queries"], 12)


@pytest.mark.dealt
@pytest.mark.parametrize("norm", [np.inf, 2, 1])
@pytest.mark.parametrize("shape", [(1, 3, 11), (2, 9, 4), (3, 1, 6), (2, 5), (1, 2, 3, 4)])
def test_shapes_that_are_not_square(norm, shape):
    model = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), 3)).double()
    x = torch.rand(40, *shape, dtype=torch.float64)
    y = model(x).argmax(1)
    eps = {np.inf: 0.3, 2: 1.2, 1: 4.0}[norm]
    attack = SquareAttack(norm=norm, eps=eps, clip=(0, 1), max_queries=150, random_state=0)
    z = attack.perturb(model, x, y)
    assert z.shape == x.shape
    assert np.linalg.norm((z - x).flatten(1), ord=norm, axis=1).max() <= eps + 1e-9
    assert (model(z).argmax(1) != y).double().mean() > 0.4


def test_targets_are_reached(images):
    x, y = torch.tensor(images.X[:30]), torch.tensor(images.y[:30])
    attack = SquareAttack(
        eps=0.4, clip=(0, 1), max_queries=300, random_state=0, target="least_likely"
    )
    goal = images.net(x).scatter(1, y[:, None], torch.inf).argmin(1)
    reached = images.net(attack.perturb(images.net, x, y)).argmax(1) == goal
    assert reached.double().mean() > 0.5


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"p_init": 0.0}, "p_init must be a share between 0 and 1, got 0.0"),
        ({"p_init": 1.5}, "p_init must be a share"),
        ({"p_init": "large"}, "p_init must be a share"),
        ({"n_restarts": 0}, "n_restarts must be an integer of at least 1, got 0"),
    ],
)
def test_bad_parameters(parameters, message, images):
    with pytest.raises(ValueError, match=message):
        SquareAttack(images.net, eps=0.1, clip=(0, 1), **parameters).generate(images.X[:2])


@pytest.mark.parametrize(
    ("rescale", "norm", "n_steps", "pace"),
    [
        (None, np.inf, 100, 100),
        (None, np.inf, 4997, 10_000 / 4997),
        (None, np.inf, 4998, 1),
        (None, 2, 100, 1),
        (None, 1, 100, 1),
        (True, 2, 100, 100),
        (True, np.inf, 20_000, 0.5),
        (False, np.inf, 100, 1),
        (None, np.inf, 0, 1),
    ],
)
def test_the_schedule_is_rescaled_where_that_helps(rescale, norm, n_steps, pace):
    assert SquareAttack(rescale_schedule=rescale)._pace(n_steps, norm) == pace


def test_the_schedule_of_autoattack_is_the_published_one():
    for version in ("standard", "plus"):
        (square,) = (s for s in AutoAttack(version=version)._stages(10) if s.name == "Square")
        assert square.attack._pace(4998, np.inf) == square.attack._pace(100, np.inf) == 1
