"""AutoAttack: the cascade, its bookkeeping, and what it finds where the answer is known."""

import itertools
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from torch import nn

from robustsk.attacks import APGD, BIM, FAB, FGSM, PGD, AutoAttack, SquareAttack, as_victim
from robustsk.attacks.gradient._margin import MarginPGD
from robustsk.attacks.wrappers._state import StageResult
from robustsk.metrics import adversarial_outcome, score_adversarial

SLOW = pytest.mark.slow
DUAL = {np.inf: 1, 2: 2, 1: np.inf}


@pytest.fixture
def binary(table):
    """Two classes, a linear model, and the distance of each sample to the border."""
    rows = table.y < 2
    X, y = table.X[rows], table.y[rows]
    model = LogisticRegression(C=0.05).fit(X, y)
    return model, X, y


def breakable(model, X, y, norm, eps):
    distance = np.abs(model.decision_function(X)) / np.linalg.norm(model.coef_[0], ord=DUAL[norm])
    return (model.predict(X) != y) | (distance < eps)


@pytest.mark.dealt
@pytest.mark.parametrize(
    ("version", "norm"),
    [
        ("standard", np.inf),
        *(pytest.param("standard", norm, marks=pytest.mark.slow) for norm in (2, 1)),
        pytest.param("plus", np.inf, marks=pytest.mark.slow),
        ("fast", np.inf),
        *(pytest.param("fast", norm, marks=pytest.mark.slow) for norm in (2, 1)),
    ],
)
def test_linear_model_breaks_exactly_where_the_distance_says(binary, norm, version):
    model, X, y = binary
    X, y = X[:40], y[:40]
    score = np.abs(model.decision_function(X)) / np.linalg.norm(model.coef_[0], ord=DUAL[norm])
    ordered = np.sort(score)
    middle = len(ordered) // 2
    eps = float(ordered[middle] + ordered[middle + 1]) / 2
    # the exact answer is only to be asked for away from rounding
    clear = np.abs(score - eps) > 0.01 * eps
    X, y = X[clear], y[clear]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attack = AutoAttack(model, norm=norm, eps=eps, clip=None, version=version, random_state=0)
        result = attack.evaluate(X, y)
    assert_array_equal(result.stage != -1, breakable(model, X, y, norm, eps))


def small_net(n_classes=10):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, n_classes))


@pytest.fixture
def digits(images):
    return images.net.eval(), images.X[:120], images.y[:120]


COMMON = {"eps": 0.06, "clip": (0, 1), "random_state": 0}
SHORT = {
    "version": "custom",
    "attacks": [APGD(n_steps=20), FAB(n_targets=3, n_steps=10), SquareAttack(max_queries=100)],
    **COMMON,
}


def shorten(monkeypatch):
    """Have the versions made of attacks with few steps."""
    for cls, settings in (
        (APGD, {"n_steps": 8}),
        (FAB, {"n_steps": 5}),
        (SquareAttack, {"max_queries": 100}),
        (MarginPGD, {"n_steps": 8}),
    ):
        monkeypatch.setattr(
            f"robustsk.attacks.wrappers._cascade.{cls.__name__}",
            lambda cls=cls, settings=settings, **given: cls(**{**given, **settings}),
        )


@pytest.fixture(params=["short", pytest.param("whole", marks=pytest.mark.slow)])
def versions(request, monkeypatch):
    """Have the versions made of attacks with few steps, and then as they are."""
    if request.param == "short":
        shorten(monkeypatch)


@pytest.fixture(scope="module", params=["short", pytest.param("whole", marks=pytest.mark.slow)])
def standard(_images, request):
    attack = AutoAttack(_images.net, version="standard", **COMMON)
    with pytest.MonkeyPatch.context() as monkeypatch:
        if request.param == "short":
            shorten(monkeypatch)
        return attack.evaluate(_images.X[:120], _images.y[:120])


def test_stages_go_down_and_add_up(standard):
    result = standard
    assert [s.name for s in result.stages] == ["APGD-CE", "APGD-T", "FAB-T", "Square"]
    accuracies = [result.clean_accuracy] + [s.robust_accuracy for s in result.stages]
    assert all(a >= b for a, b in itertools.pairwise(accuracies))
    assert 0.05 < result.robust_accuracy < result.clean_accuracy - 0.1
    assert_allclose(result.robust_accuracy, accuracies[-1])
    n = len(result.stage)
    left = round(result.clean_accuracy * n)
    for number, stage in enumerate(result.stages):
        assert stage.n_attacked == left
        assert stage.n_fooled == np.sum(result.stage == number)
        left -= stage.n_fooled
        assert_allclose(stage.robust_accuracy, left / n)
        assert stage.n_forward > 0
        assert stage.seconds > 0
    assert result.stages[-1].n_backward == 0
    assert np.sum(result.stage == -2) == n - round(result.clean_accuracy * n)


def test_what_is_returned_fools_the_model_and_is_valid(standard, digits):
    net, X, y = digits
    predicted = as_victim(net).logits(standard.X_adv).argmax(1).numpy()
    assert_array_equal(predicted == y, standard.stage == -1)
    assert np.abs(standard.X_adv - X).max() <= COMMON["eps"]
    assert standard.X_adv.min() >= 0
    assert standard.X_adv.max() <= 1
    assert standard.X_adv.dtype == X.dtype
    assert_array_equal(standard.X_adv[standard.stage == -2], X[standard.stage == -2])


def test_text_and_dict(standard):
    text, numbers = str(standard), standard.to_dict()
    assert len(text.splitlines()) == 7
    assert text.splitlines()[-1].startswith("standard")
    assert f"{standard.robust_accuracy:.4f}" in text.splitlines()[-1]
    for stage, line in zip(standard.stages, text.splitlines()[2:], strict=False):
        costs = [f"{stage.n_forward}", f"{stage.n_backward}", f"{stage.seconds:.1f}"]
        counts = [f"{stage.n_attacked}", f"{stage.n_fooled}", f"{stage.robust_accuracy:.4f}"]
        assert line.split() == [stage.name, *counts, *costs]
    assert [s["name"] for s in numbers["stages"]] == [s.name for s in standard.stages]
    assert numbers["robust_accuracy"] == standard.robust_accuracy


def test_scores_agree_with_the_evaluation(digits):
    net, X, y = digits
    result = AutoAttack(net, **SHORT).evaluate(X, y)
    outcome = adversarial_outcome(net, X, y, AutoAttack(**SHORT))
    assert 0.1 < result.robust_accuracy < 0.9
    assert_array_equal(outcome.robust, result.stage == -1)
    assert_array_equal(outcome.info["stage"][outcome.correct], result.stage[outcome.correct])
    assert score_adversarial(net, X, y, AutoAttack(**SHORT)) == result.robust_accuracy


def test_batch_size_changes_nothing(digits):
    net, X, y = digits
    whole, parts = (
        AutoAttack(net, batch_size=n, **SHORT).evaluate(X[:10], y[:10]) for n in (256, 4)
    )
    assert_array_equal(parts.stage, whole.stage)


@pytest.mark.slow
def test_fast_finds_as_much_for_a_fraction_of_the_cost(digits):
    net, X, y = digits
    standard = AutoAttack(net, version="standard", **COMMON).evaluate(X, y)
    fast = AutoAttack(net, version="fast", **COMMON).evaluate(X, y)
    assert fast.robust_accuracy <= standard.robust_accuracy + 0.01

    def units(result):
        return sum(s.n_forward + 2 * s.n_backward for s in result.stages)

    survivors = np.sum(fast.stage == -1)
    assert survivors > 20
    # few survivors make the fixed part of the last stages count
    assert units(fast) < 0.35 * units(standard)


def test_each_attack_alone(digits):
    net, X, y = digits
    attacks = [
        ("one step", FGSM()),
        ("many", PGD(n_steps=20)),
        ("query", SquareAttack(max_queries=50)),
    ]
    result = AutoAttack(net, version="custom", attacks=attacks, individual=True, **COMMON).evaluate(
        X, y
    )
    assert [s.name for s in result.stages] == ["one step", "many", "query"]
    n_correct = np.sum(result.stage != -2)
    assert all(stage.n_attacked == n_correct for stage in result.stages)
    robust = [stage.robust_accuracy for stage in result.stages]
    assert_allclose(robust[0], score_adversarial(net, X, y, FGSM(**COMMON)))
    assert result.robust_accuracy <= min(robust)
    assert robust[1] < robust[0]
    # the first attack that fools a sample is the one that counts
    alone = adversarial_outcome(net, X, y, FGSM(**COMMON))
    assert_array_equal(result.stage == 0, alone.correct & ~alone.robust)


def test_custom_attacks_take_the_threat_model_of_the_whole(digits):
    net, X, y = digits
    attack = AutoAttack(net, version="custom", attacks=[PGD(eps=5.0, clip=(-9, 9))], **COMMON)
    X_adv = attack.generate(X, y)
    assert 0.05 < np.abs(X_adv - X).max() <= 0.06
    by_name = AutoAttack(net, version="custom", attacks=[BIM(n_steps=3)], **COMMON).evaluate(X, y)
    assert by_name.stages[0].name == "BIM"


def test_a_forest_and_attacks_that_only_ask(table):
    forest = RandomForestClassifier(10, random_state=0).fit(table.X, table.y)
    attack = AutoAttack(
        forest, version="custom", attacks=[SquareAttack(max_queries=60)], eps=0.6, random_state=0
    )
    assert attack.access == "scores"
    result = attack.fit(table.X).evaluate(table.X[:60], table.y[:60])
    assert result.robust_accuracy < result.clean_accuracy - 0.1


def test_bad_parameters(digits):
    net, X, y = digits
    for parameters, message in [
        ({"version": "turbo"}, "version must be one of"),
        ({"version": "custom"}, "attacks are given if and only if"),
        ({"attacks": [PGD()]}, "attacks are given if and only if"),
        ({"version": "custom", "attacks": []}, "attacks is empty"),
        ({"version": "fast", "audit": -1}, "audit must be an integer"),
    ]:
        with pytest.raises(ValueError, match=message):
            AutoAttack(net, clip=(0, 1), **parameters).generate(X[:4], y[:4])
    with pytest.raises(TypeError, match="must be an attack"):
        AutoAttack(net, version="custom", attacks=["pgd"], clip=(0, 1)).generate(X[:4])
    with pytest.raises(ValueError, match="true labels"):
        AutoAttack(net, clip=(0, 1)).evaluate(X)


@pytest.mark.parametrize(
    ("version", "eps"),
    [
        ("fast", 0.0),
        pytest.param("fast", 1e-6, marks=pytest.mark.slow),
        ("fast", 1.0),
        ("standard", 1.0),
    ],
)
def test_none_left_and_all_left(digits, versions, version, eps):
    net, X, y = digits
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "eps=")  # in other units, as it seems
        result = AutoAttack(net, version=version, eps=eps, clip=(0, 1), random_state=0).evaluate(
            X[:6], y[:6]
        )
    assert result.robust_accuracy == (0.0 if eps == 1.0 else result.clean_accuracy)
    if eps == 0.0:
        assert_array_equal(result.X_adv, X[:6])


def test_all_wrong_from_the_start(digits):
    net, X, _ = digits
    wrong = as_victim(net).logits(X[:5]).argmin(1).numpy()
    result = AutoAttack(net, **COMMON).evaluate(X[:5], wrong)
    assert result.clean_accuracy == result.robust_accuracy == 0
    assert result.stages == []
    assert "standard" in str(result)


def test_targeted(binary):
    model, X, y = binary
    attack = AutoAttack(model, norm=2, eps=50.0, clip=None, target=1 - y, random_state=0)
    assert_array_equal(model.predict(attack.generate(X, y)), 1 - y)


# --- interruption --------------------------------------------------------------------


class Interrupted(nn.Module):
    """A network that breaks down after some forward passes."""

    def __init__(self, net, budget):
        super().__init__()
        self.net, self.budget = net, budget

    def forward(self, x):
        self.budget -= 1
        if self.budget < 0:
            raise KeyboardInterrupt
        return self.net(x)


@pytest.mark.parametrize(
    "budget", [*(pytest.param(budget, marks=pytest.mark.slow) for budget in (30, 75)), 150]
)
def test_an_interrupted_run_goes_on(digits, tmp_path, budget, monkeypatch):
    net, X, y = digits
    X, y = X[:40], y[:40]
    monkeypatch.setattr("robustsk.attacks.wrappers._state._SAVE_EVERY", 0.0)
    attacks = [PGD(n_steps=20), PGD(n_steps=30, objective="cw"), SquareAttack(max_queries=75)]
    common = {"version": "custom", "attacks": attacks, "batch_size": 16, **COMMON}
    whole = AutoAttack(net, **common).evaluate(X, y)
    path = tmp_path / "state.npz"
    with pytest.raises(KeyboardInterrupt):
        AutoAttack(Interrupted(net, budget), state_path=path, **common).evaluate(X, y)
    if budget > 30:
        assert path.exists()
    spy = Interrupted(net, 10**9)
    resumed = AutoAttack(spy, state_path=path, **common).evaluate(X, y)
    assert_array_equal(resumed.X_adv, whole.X_adv)
    assert_array_equal(resumed.stage, whole.stage)
    assert [s.n_fooled for s in resumed.stages] == [s.n_fooled for s in whole.stages]
    # the third time nothing is left to be done but to look at the clean samples
    spy.budget = 20
    AutoAttack(spy, state_path=path, **common).evaluate(X, y)
    with pytest.raises(ValueError, match="state of another evaluation"):
        AutoAttack(net, state_path=path, **{**common, "eps": 0.05}).evaluate(X, y)
    with pytest.raises(ValueError, match="state of another evaluation"):
        AutoAttack(net, state_path=path, **common).evaluate(X[::-1].copy(), y[::-1].copy())


def test_a_run_without_a_seed_goes_on_with_the_one_it_began_with(digits, tmp_path):
    net, X, y = digits
    attacks = [PGD(n_steps=3), PGD(n_steps=9)]
    common = {"version": "custom", "attacks": attacks, "state_path": tmp_path / "state.npz"}
    common |= {"eps": 0.06, "clip": (0, 1), "random_state": None}
    first = AutoAttack(net, **common).evaluate(X, y)
    again = AutoAttack(net, **common).evaluate(X, y)
    assert_array_equal(again.X_adv, first.X_adv)


# --- models that mislead -------------------------------------------------------------


class Noisy(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x + 0.3 * torch.rand_like(x))


def test_random_models(digits, versions):
    net, X, y = digits
    with pytest.raises(ValueError, match="version='rand'"):
        AutoAttack(Noisy(net), version="fast", **COMMON).generate(X[:20], y[:20])
    custom = {"version": "custom", "attacks": [FGSM()]}
    with pytest.warns(UserWarning, match="version='rand'"):
        AutoAttack(Noisy(net), **custom, **COMMON).generate(X[:20], y[:20])
    result = AutoAttack(Noisy(net), version="rand", **COMMON).evaluate(X[:8], y[:8])
    assert [s.name for s in result.stages] == ["APGD-CE", "APGD-DLR"]


class Quantised(nn.Module):
    """Gradients that exist for a part of the features only, the others rounded."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        rounded = torch.round(4 * x) / 4
        return self.net(rounded + 1e-4 * (x - x.detach()))


def test_vanishing_gradients_are_told(digits, versions):
    net, X, y = digits

    class Dead(Quantised):
        def forward(self, x):
            return self.net(torch.round(4 * x) / 4)

    with (
        pytest.warns(UserWarning, match="zero or not finite for 100.0%"),
        pytest.warns(UserWarning, match="Square fooled"),
    ):
        result = AutoAttack(
            Dead(net), version="fast", eps=0.2, clip=(0, 1), random_state=0
        ).evaluate(X[:20], y[:20])
    # the standard attacks have taken over, and only the one without gradients finds something
    assert [s.name for s in result.stages] == ["APGD-CE", "APGD-T", "FAB-T", "Square"]
    assert result.stages[-1].n_fooled > 0


def test_success_of_a_black_box_raises_the_alarm(digits, versions, monkeypatch):
    net, X, y = digits
    # which would have told before
    monkeypatch.setattr("robustsk.attacks.wrappers.autoattack.COUNT", 10**9)

    class Backwards(nn.Module):
        """The gradient points to where the model is safest."""

        def forward(self, x):
            logits = net(x)
            return logits.detach() + (logits.detach() - logits)

    with pytest.warns(UserWarning, match=r"Square fooled \d+ of \d+ .*standard attacks are run"):
        result = AutoAttack(Backwards(), version="fast", **{**COMMON, "eps": 0.15}).evaluate(
            X[:30], y[:30]
        )
    assert [s.name for s in result.stages][-4:] == ["APGD-CE", "APGD-T", "FAB-T", "Square"]


class Decoy(nn.Module):
    """All that the gradient sees is another model."""

    def __init__(self, net, other):
        super().__init__()
        self.net, self.other = net, other

    def forward(self, x):
        return self.net(x.detach()) + 1e-3 * self.other(x)


class Shattered(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x + 0.03 * torch.sin(400 * x))


@pytest.mark.parametrize("n", [20, pytest.param(120, marks=SLOW)])
@pytest.mark.parametrize("version", ["fast", "custom", pytest.param("standard", marks=SLOW)])
@pytest.mark.parametrize("kind", ["decoy", "shattered"])
def test_gradients_that_predict_nothing_are_told(digits, monkeypatch, kind, version, n):
    net, X, y = digits
    shorten(monkeypatch)
    model = Shattered(net) if kind == "shattered" else Decoy(net, small_net())
    attacks = [PGD(n_steps=2)] if version == "custom" else None
    attack = AutoAttack(model, version=version, attacks=attacks, **{**COMMON, "eps": 0.1})
    with pytest.warns(UserWarning, match=r"mispredicts .* far too high"):
        result = attack.evaluate(X[:n], y[:n])
    if version == "fast":
        assert result.stages[0].name == "APGD-CE"


@pytest.mark.parametrize(("n_fooled", "more"), [(0, 0), (1, 1), (2, 4)])
def test_one_success_among_few_has_more_looked_at(n_fooled, more):
    attack = AutoAttack(version="fast")
    *_, square = attack._stages(10)
    result = StageResult("Square", 33, n_fooled, 0.5, 1, 0, 1.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        stages = attack._more(square, result, [square], 10)
    assert len(stages) == more
    assert bool(caught) == (n_fooled > 1)
    if n_fooled == 1:
        (again,) = stages
        assert (again.sample, again.tolerance) == (40, 0)
        with pytest.warns(UserWarning, match=r"Square, once more fooled 1 of"):
            assert len(attack._more(again, replace(result, name=again.name), [again], 10)) == 4
        assert not attack._more(again, replace(result, n_fooled=0), [again], 10)


def test_survivors_are_spot_checked_wherever_they_lie():
    attack = AutoAttack(version="fast")
    *_, square = attack._stages(10)
    state = SimpleNamespace(stage=np.full(300, -1), margin=np.arange(300.0))
    chosen = attack._chosen(square, state, 0)
    closest = chosen >= 285
    assert closest.sum() == 15
    assert (~closest).sum() == 20
    assert chosen[~closest].min() < 100


def test_audit(digits, versions):
    net, X, y = digits
    result = AutoAttack(net, version="fast", audit=2, **COMMON).evaluate(X[:8], y[:8])
    assert result.stages[-1].name == "audit"
    assert result.stages[-1].n_attacked == 2


def test_torch_face(digits):
    net, X, y = digits
    attack = AutoAttack(version="custom", attacks=[PGD(n_steps=5)], **COMMON)
    x = torch.from_numpy(X[:8])
    x_adv, info = attack.perturb(net, x, torch.from_numpy(y[:8]), return_info=True)
    assert x_adv.shape == x.shape
    assert (x_adv - x).abs().max() <= 0.06 + 1e-7
    assert info["stage"].shape == (8,)
    with pytest.raises(TypeError, match="cannot be part of another attack"):
        attack._attack_batch(None)
