"""What comes in at the door of every attack: units, ranges, columns, shapes, modes, generators."""

import itertools
import threading
import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.linear_model import LogisticRegression
from torch import nn

from robustsk import PGDATClassifier, robustness_report
from robustsk._validation import learn_bounds, warn_about_radius
from robustsk.attacks import (
    APGD,
    BPDA,
    EOT,
    FAB,
    FGSM,
    PGD,
    AutoAttack,
    DeepFool,
    HopSkipJump,
    SquareAttack,
)
from robustsk.attacks.threat import DEFAULT_EPS
from robustsk.inspection import RobustnessCurveDisplay
from robustsk.metrics import half_accuracy_eps, score_adversarial

RNG = np.random.RandomState(0)
UNIT = RNG.rand(30, 64).astype(np.float32)
UNIT[0], UNIT[1] = 0, 1
Y = np.arange(30) % 3


def linear(n_features=64, n_classes=3):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(n_features, n_classes))


def told(run):
    """Return the warnings about units that a call gives."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    return [str(w.message) for w in caught if "units" in str(w.message)]


# --- units ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("norm", "scale", "eps", "expected"),
    [
        (np.inf, 1, None, None),
        (2, 1, None, None),
        (1, 1, None, None),
        (np.inf, 255, None, "no more than 1/8"),
        (2, 255, None, "no more than 1/5"),
        (np.inf, 16, None, "no more than 1/510"),
        (np.inf, 1, 8, "100% of the way"),
        (np.inf, 1, 0.5, None),
        (2, 1, 8.5, "100% of the way"),
        (2, 1, 3.5, None),
        (1, 0.01, None, "100% of the way"),
        (1, 1, 25, None),
        (np.inf, 255, 8, None),
        (np.inf, 255, 0, None),
        (np.inf, 1, 1e-3 * np.ones(64), "no more than 1/1000"),
        (np.inf, 1, np.where(np.arange(64) < 60, 0, 0.1), None),
    ],
)
def test_a_radius_in_other_units_is_told(norm, scale, eps, expected):
    X = np.float32(scale) * UNIT
    attack = FGSM(linear(), norm=norm, eps=eps, random_state=0).fit(X)
    messages = told(lambda: attack.generate(X))
    assert len(messages) == (expected is not None)
    assert expected is None or expected in messages[0]
    # in training no range has been given either
    explicit = FGSM(linear(), norm=norm, eps=eps, clip=None)
    assert not told(lambda: explicit.generate(X))


def test_a_range_that_is_given_counts_as_one_that_was_learned():
    assert told(lambda: PGD(linear(), clip=(0, 255), n_steps=1).generate(UNIT))
    assert not told(lambda: PGD(linear(), eps=8, clip=(0, 255), n_steps=1).generate(UNIT))


def test_large_images_need_no_large_radius():
    for norm, eps in ((2, 0.5), (2, 3.0), (1, 12.0), (np.inf, 1 / 255)):
        assert not told(
            lambda norm=norm, eps=eps: warn_about_radius(eps, norm, 0, 1, (3, 224, 224))
        )


def test_features_of_many_sizes_are_judged_by_most():
    lower, upper = np.zeros(5), np.array([0.1, 0.5, 1.0, 5.0, 4000.0])
    assert not told(lambda: warn_about_radius(0.1, np.inf, lower, upper, (5,)))
    assert told(lambda: warn_about_radius(0.1, np.inf, lower, 1000 * upper, (5,)))
    assert not told(lambda: warn_about_radius(0.1, np.inf, lower, lower, (5,)))


def test_where_the_radius_is_none_of_the_user_nothing_is_told():
    X = 255 * UNIT
    assert not told(lambda: DeepFool(linear(), eps=0.1).fit(X).generate(X))
    attack = PGD(n_steps=1, clip=(0, 255))
    assert not told(
        lambda: half_accuracy_eps(linear(), X, linear()(torch.tensor(X)).argmax(1), attack)
    )
    pytest.importorskip("matplotlib")
    curve = RobustnessCurveDisplay.from_estimator
    sizes = [0, 8, 200]
    assert not told(lambda: curve(linear(), X, Y, attack=attack, eps_range=sizes))
    assert len(told(lambda: curve(linear(), X, Y, attack=attack))) == 1


def test_a_report_notes_it_once():
    y = linear()(torch.tensor(UNIT)).argmax(1).numpy()
    attacks = {"one": FGSM(), "two": PGD(n_steps=2)}
    report = robustness_report(linear(), 255 * UNIT, y, attacks=attacks, red_flags=False)
    (note,) = [note for note in report.notes if "units" in note]
    assert note.startswith("one, two: eps=0.0314")


def test_data_in_other_units_than_those_of_training_are_told():
    attack = FGSM(linear(), eps=0.1).fit(UNIT)
    (message,) = told(lambda: attack.generate(255 * UNIT))
    assert "clip='auto' has learned" in message
    assert told(lambda: FGSM(linear(), eps=9).fit(255 * UNIT).generate(UNIT - 600))
    assert not told(lambda: attack.generate(UNIT[:1]))
    # outliers, and a column that did not vary, are no other units
    outliers = UNIT.copy()
    outliers[:9, 3] += 40
    assert not told(lambda: attack.generate(outliers))
    constant = UNIT * (np.arange(64) > 0)
    attack.fit(constant)
    assert not told(lambda: attack.generate(UNIT))


# --- ranges --------------------------------------------------------------------------


def series(*shape):
    return RNG.normal(size=shape)


UNITS = np.array([1.0, 1000.0, 0.01])
BOUNDS = {
    "table": (UNIT, (64,)),
    "channels last": (series(40, 20, 3) * UNITS, (1, 3)),
    "channels first": (series(40, 3, 20) * UNITS[:, None], (3, 1)),
    "one channel": (series(40, 20, 1), ()),
    "alike channels last": (series(40, 128, 9), (1, 9)),
    "many channels": (series(40, 60, 20) * np.logspace(-2, 2, 20), (1, 20)),
    "grey images": (RNG.rand(40, 28, 28), ()),
    "grey images with a dark border": (
        np.pad(RNG.rand(40, 20, 20), ((0, 0), (4, 4), (4, 4))),
        (),
    ),
    "images": (RNG.rand(40, 3, 8, 8), ()),
    "video": (RNG.rand(10, 2, 3, 8, 8), ()),
}


@pytest.mark.parametrize(("X", "shape"), BOUNDS.values(), ids=BOUNDS)
def test_which_values_have_a_range_in_common(X, shape):
    low, high = learn_bounds(X, False)
    assert low.shape == high.shape == shape
    assert np.all(low <= X)
    assert np.all(high >= X)
    axes = (0, *(i + 1 for i, n in enumerate(shape) if n == 1)) if shape else None
    assert_array_equal(low, X.min(axis=axes, keepdims=True)[0] if shape else X.min())
    assert_array_equal(high, X.max(axis=axes, keepdims=True)[0] if shape else X.max())


def test_digits_have_one_range():
    from sklearn.datasets import load_digits

    low, high = learn_bounds(load_digits().images, False)
    assert (low, high) == (0, 16)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.lstm, self.out = nn.LSTM(2, 6, batch_first=True), nn.Linear(6, 2)

    def forward(self, x):
        return self.out(self.lstm(x / torch.tensor([1.0, 1000.0]))[0][:, -1])


def test_an_attack_on_a_series_stays_in_the_range_of_each_channel():
    X = np.stack([RNG.rand(30, 12), 1000 + 100 * RNG.rand(30, 12)], 2).astype(np.float32)
    attack = PGD(Recurrent(), eps=np.array([0.5, 5.0]), n_steps=3, random_state=0).fit(X)
    X_adv = attack.generate(X)
    for channel in range(2):
        assert X_adv[..., channel].min() >= X[..., channel].min()
        assert X_adv[..., channel].max() <= X[..., channel].max()
        assert np.abs(X_adv - X)[..., channel].max() > 0.1


# --- shapes --------------------------------------------------------------------------


@pytest.mark.dealt
@pytest.mark.parametrize("is_fitted", [False, True])
@pytest.mark.parametrize("y", [None, 1, np.int64(1), np.array(1), torch.tensor(1)])
@pytest.mark.parametrize("attack", [FGSM(), SquareAttack(max_queries=3), EOT(attack=PGD())])
def test_one_sample_needs_an_axis_for_samples(attack, y, is_fitted):
    X = RNG.rand(5, 3, 8, 8).astype(np.float32)
    conv = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(72, 3))
    attack = attack.__class__(conv, eps=0.1, clip=(0, 1))
    if is_fitted:
        attack.fit(X)
    with pytest.raises(ValueError, match=r"first axis of X .*counts samples.*X\[None\]"):
        attack.generate(X[0], y)
    assert attack.generate(X[:1], None if y is None else [int(y)]).shape == (1, 3, 8, 8)


# --- columns -------------------------------------------------------------------------

FRAME = RNG.rand(40, 3)


@pytest.fixture
def frame():
    pd = pytest.importorskip("pandas")
    X = pd.DataFrame(FRAME, columns=["a", "b", "c"])
    return pd, X, LogisticRegression().fit(X, (FRAME[:, 0] > FRAME[:, 2]).astype(int))


def moved(X_adv, X):
    return np.abs(np.asarray(X_adv) - np.asarray(X)).max(0)


@pytest.mark.parametrize(
    "make",
    [
        lambda model, **given: PGD(model, n_steps=4, **given),
        lambda model, **given: EOT(model, attack=PGD(n_steps=4, **given), n_draws=1),
        lambda model, **given: BPDA(model, attack=PGD(n_steps=4), **given),
    ],
    ids=["alone", "inside", "around"],
)
@pytest.mark.parametrize("kind", ["Series", "DataFrame"])
def test_values_with_names_go_to_the_columns_of_these_names(frame, make, kind):
    pd, X, model = frame

    def named(**values):
        series = pd.Series(values)
        return series if kind == "Series" else series.to_frame().T

    eps = make(model, eps=named(c=0.0, b=0.0, a=0.5), clip=None)
    assert_allclose(moved(eps.generate(X), X), [0.5, 0, 0])
    mask = make(model, eps=0.5, mask=named(b=False, c=True, a=False), clip=None)
    assert_allclose(moved(mask.generate(X), X), [0, 0, 0.5])
    low, high = named(c=-9.0, a=0.0, b=-9.0), named(b=9.0, c=9.0, a=1.0)
    X_adv = make(model, eps=0.5, clip=(low, high)).generate(X)
    assert 0 <= X_adv["a"].min() <= X_adv["a"].max() <= 1
    assert X_adv["c"].max() > 1.2
    # an array afterwards is in the order of the columns seen
    eps.fit(X)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_allclose(moved(eps.generate(X.to_numpy()), X), [0.5, 0, 0])


def test_names_that_do_not_fit_are_an_error(frame):
    pd, X, model = frame
    with pytest.raises(ValueError, match=r"eps names columns that X does not have: \['d'\]"):
        PGD(model, eps=pd.Series({"a": 1, "b": 1, "d": 1}), clip=None).generate(X)
    with pytest.raises(ValueError, match=r"mask must have one value.*\['c'\] have no value"):
        PGD(model, mask=pd.Series({"a": True, "b": True}), clip=None).generate(X)
    with pytest.raises(ValueError, match="eps is a table with 40 rows"):
        PGD(model, eps=X, clip=None).generate(X)
    net = nn.Linear(3, 2)
    eps = pd.Series({"c": 0.0, "b": 0.0, "a": 0.5})
    with pytest.raises(ValueError, match=r"columns of X have no names.*as an array"):
        PGD(net, eps=eps, clip=None).generate(X.to_numpy(np.float32))
    with pytest.raises(ValueError, match="clip has values for"):
        PGD(net, eps=0.1, clip=(eps, 1)).perturb(net, torch.zeros(1, 3))
    # numbers are no names
    by_place = PGD(net, eps=pd.Series([0.5, 0, 0]), clip=None, random_state=0)
    X = X.to_numpy(np.float32)
    assert_allclose(moved(by_place.generate(X), X), [0.5, 0, 0], rtol=1e-6)


def test_names_in_scores_reports_curves_and_training(frame):
    pytest.importorskip("matplotlib")
    pd, X, model = frame
    y = model.predict(X)
    eps = pd.Series({"b": 0.4, "c": 0.0, "a": 0.0})
    attack = PGD(eps=eps, clip=None, n_steps=4, random_state=0)
    right = score_adversarial(model, X, y, attack._with(eps=eps[list("abc")].to_numpy()))
    assert right != score_adversarial(model, X, y, attack._with(eps=eps.to_numpy()))
    assert score_adversarial(model, X, y, attack) == right
    for given in (
        {"attacks": {"PGD": attack}},
        {"attacks": {"PGD": attack._with(eps=None)}, "eps": eps},
    ):
        report = robustness_report(model, X, y, clip=None, red_flags=False, **given)
        assert report["PGD"].accuracy == right
    curve = RobustnessCurveDisplay.from_estimator(model, X, y, attack=attack, eps_range=[0.4])
    assert curve.accuracy[0] == right
    clf = PGDATClassifier(
        adversary=PGD(eps=eps, clip=None, n_steps=2), max_epochs=1, random_state=0
    ).fit(X, y)
    assert_array_equal(clf.adversary_.eps, [0, 0.4, 0])


# --- modes and generators -------------------------------------------------------------

ATTACKS = {
    "PGD": PGD(n_steps=3),
    "APGD": APGD(n_steps=3),
    "FAB": FAB(n_steps=3),
    "Square": SquareAttack(max_queries=8),
    "HopSkipJump": HopSkipJump(max_queries=20),
    "EOT": EOT(attack=PGD(n_steps=2), n_draws=2),
    "BPDA": BPDA(attack=PGD(n_steps=2)),
    "AutoAttack": AutoAttack(version="custom", attacks=[FGSM(), SquareAttack(max_queries=9)]),
}


@pytest.mark.dealt
@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_inference_mode_is_no_hindrance(attack):
    X, net = UNIT[:6], linear()
    attack = attack._with(estimator=net, eps=0.1, clip=(0, 1), random_state=0)
    expected = attack.generate(X, Y[:6])
    with torch.inference_mode():
        assert_array_equal(attack.generate(X, Y[:6]), expected)
        x, y = torch.from_numpy(X).clone(), torch.from_numpy(Y[:6]).clone()
        assert x.is_inference()
        within = attack.perturb(net, x, y, seed=0)
        score = score_adversarial(net, X, Y[:6], attack)
    assert_array_equal(within, attack.perturb(net, x.clone(), y.clone(), seed=0))
    assert score == score_adversarial(net, X, Y[:6], attack)


class Drawing(nn.Module):
    """Draws in evaluation mode as well."""

    def __init__(self):
        super().__init__()
        self.net = linear()

    def forward(self, x):
        return self.net(nn.functional.dropout(x, 0.3, training=True))


@pytest.mark.dealt
@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
@pytest.mark.filterwarnings("ignore:Drawing answers")
def test_a_module_that_draws(attack):
    X, net = UNIT[:6], Drawing()
    attack = attack._with(estimator=net, eps=0.3, clip=None, random_state=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        before = torch.get_rng_state()
        first, second = attack.generate(X), attack.generate(X, Y[:6])
        x = torch.from_numpy(X)
        third = attack.perturb(net, x)
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(7)
        assert_array_equal(attack.generate(X), first)
        assert_array_equal(attack.generate(X, Y[:6]), second)
        assert_array_equal(attack.perturb(net, x), third)
        other = attack._with(random_state=1)
        if "AutoAttack" not in repr(attack):
            assert (other.generate(X) != first).any()


def test_scores_of_a_module_that_draws():
    X, y, net = np.tile(UNIT, (4, 1)), np.tile(Y, 4), Drawing()
    attack = PGD(eps=0.1, n_steps=2, clip=(0, 1), random_state=0)

    def report():
        options = {"eps": 0.1, "clip": (0, 1), "random_state": 0}
        found = robustness_report(net, X, y, attacks={"PGD": attack}, **options)
        flags = [(flag.name, flag.evidence) for flag in found.red_flags]
        return [row.accuracy for row in found.rows.values()], flags

    with torch.random.fork_rng():
        torch.manual_seed(0)
        before = torch.get_rng_state()
        first = score_adversarial(net, X, y, attack), report()
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(7)
        assert (score_adversarial(net, X, y, attack), report()) == first


def test_draws_differ_from_question_to_question():
    seen = []

    class Remembering(Drawing):
        def forward(self, x):
            mask = nn.functional.dropout(torch.ones_like(x), 0.3, training=True)
            seen.append(mask[0].clone())
            return self.net(x * mask)

    PGD(Remembering(), eps=0.1, clip=None, n_steps=3, random_state=0).generate(UNIT[:2], Y[:2])
    steps = seen[-4:]
    assert not any(torch.equal(a, b) for a, b in itertools.pairwise(steps))


def test_a_module_that_draws_in_threads():
    attack = PGD(Drawing(), eps=0.3, clip=None, n_steps=3, random_state=0)
    expected, found = attack.generate(UNIT), [None] * 3

    def work(i):
        found[i] = attack.generate(UNIT)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for X_adv in found:
        assert_array_equal(X_adv, expected)


def test_defaults_are_in_the_units_they_are_meant_for():
    for norm, eps in DEFAULT_EPS.items():
        assert not told(lambda eps=eps, norm=norm: warn_about_radius(eps, norm, 0, 1, (3, 32, 32)))
