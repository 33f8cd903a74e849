import builtins
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_iris
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score
from sklearn.model_selection import GridSearchCV
from sklearn.tree import DecisionTreeClassifier
from torch import nn
from torch.utils.data import TensorDataset

from robustsk import BIM, FGSM, MIM, PGD, RobustnessCurveDisplay, StandardClassifier
from robustsk.attacks import NoGradientError
from robustsk.attacks.threat import DEFAULT_EPS
from robustsk.attacks.wrappers.base import BaseWrapper
from robustsk.metrics import adversarial_outcome, clopper_pearson_interval, score_adversarial

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
plt = pytest.importorskip("matplotlib.pyplot")

X, Y = load_iris(return_X_y=True)
EPS = [0.0, 0.1, 0.3, 0.5, 1.0]
BOX = (0.0, 8.0)


@pytest.fixture(scope="module")
def clf():
    return LogisticRegression(max_iter=1000).fit(X, Y)


@pytest.fixture(scope="module")
def ours():
    return StandardClassifier(
        adversary=PGD(eps=0.3, norm="l2"), max_epochs=20, random_state=0, device="cpu"
    ).fit(X, Y)


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


curve = RobustnessCurveDisplay.from_estimator


# --- what is computed --------------------------------------------------------------------


@pytest.mark.dealt
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(
    "attack",
    [
        BIM(clip=BOX),
        FGSM(clip=BOX),
        MIM(clip=BOX, n_steps=5),
        PGD(clip=BOX, n_steps=5, n_restarts=2, random_state=0),
    ],
    ids=lambda a: type(a).__name__,
)
def test_equals_attacking_everything_at_every_size(clf, attack, norm):
    """Once fooled counts from there on: noise belongs to samples, so this is exact."""
    attack.set_params(norm=norm)
    alive = np.ones(len(Y), dtype=bool)
    expected, plain = [], []
    for eps in EPS:
        attack.set_params(estimator=clf, eps=eps)
        y_pred = clf.predict(attack.generate(X, Y))
        plain.append(accuracy_score(Y, y_pred))
        alive &= y_pred == Y
        expected.append(alive.mean())
    disp = curve(clf, X, Y, attack=attack, eps_range=EPS)
    assert disp.accuracy.tolist() == expected
    assert (disp.accuracy <= plain).all()
    assert disp.accuracy[0] == plain[0] == clf.score(X, Y)
    assert disp.accuracy[-1] < 0.5


class Waves(nn.Module):
    """Two classes that take turns, so that a long step lands in the right one again."""

    def forward(self, x):
        wave = torch.cos(x[:, 0])
        return torch.stack([wave, -wave], dim=1)


@pytest.mark.dealt
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_monotone_even_for_an_attack_that_is_not(norm):
    with torch.no_grad():
        y = Waves()(torch.tensor(X)).argmax(1).numpy()
    eps = np.linspace(0, 6, 13)
    attack = FGSM(norm=norm, clip=None)
    plain = [score_adversarial(Waves(), X, y, FGSM(norm=norm, clip=None, eps=e)) for e in eps]
    assert (np.diff(plain) > 0.1).any()
    disp = curve(Waves(), X, y, attack=attack, eps_range=eps)
    assert (np.diff(disp.accuracy) <= 0).all()
    assert (disp.accuracy <= plain).all()
    assert disp.accuracy[0] == 1.0
    assert disp.accuracy[-1] < 0.1


def test_attacks_survivors_only(clf):
    seen = []

    class Spy(BIM):
        def run(self, prepared, *args, **kwargs):
            seen.append((self.eps, len(prepared.X)))
            return super().run(prepared, *args, **kwargs)

    disp = curve(clf, X, Y, attack=Spy(clip=BOX), eps_range=EPS)
    counts = np.round(disp.accuracy * len(Y)).astype(int)
    # no attack at eps=0, then those that have withstood everything so far
    assert seen == list(zip(EPS[1:], counts[:-1].tolist(), strict=True))
    seen.clear()
    disp = curve(clf, X, Y, attack=Spy(clip=BOX), eps_range=[0.1, 5.0, 6.0, 7.0])
    assert disp.accuracy[1:].tolist() == [0.0, 0.0, 0.0]
    assert [eps for eps, _ in seen] == [0.1, 5.0]


def test_clean_errors_never_come_back():
    weak = LogisticRegression(C=1e-3).fit(X, Y)
    wrong = np.mean(weak.predict(X) != Y)
    disp = curve(weak, X, Y, eps_range=[0.01, 0.1], attack=BIM())
    assert wrong > 0.05
    assert disp.accuracy[0] <= 1 - wrong


def test_band_is_clopper_pearson_of_all_samples(clf):
    disp = curve(clf, X, Y, eps_range=EPS, confidence=0.9)
    for accuracy, low, high in zip(
        disp.accuracy, disp.accuracy_low, disp.accuracy_high, strict=True
    ):
        k = round(accuracy * len(Y))
        assert (low, high) == clopper_pearson_interval(k, len(Y), 0.9)
    wider = curve(clf, X, Y, eps_range=EPS, confidence=0.99)
    assert (wider.accuracy_low <= disp.accuracy_low).all()
    assert (wider.accuracy_high >= disp.accuracy_high).all()


def test_default_attack(clf, ours):
    explicit = PGD(n_steps=20, n_restarts=2, random_state=0)
    first = curve(clf, X, Y, eps_range=EPS)
    assert (
        first.accuracy.tolist()
        == curve(clf, X, Y, eps_range=EPS, attack=explicit).accuracy.tolist()
    )
    assert first.norm == np.inf
    own = curve(ours, X, Y, eps_range=EPS)
    assert own.norm == 2
    assert (
        own.accuracy.tolist()
        == curve(ours, X, Y, eps_range=EPS, attack=ours.default_attack()).accuracy.tolist()
    )
    assert curve(FrozenEstimator(ours), X, Y, eps_range=[0.3]).norm == 2


def test_default_attack_of_a_search():
    search = GridSearchCV(
        StandardClassifier(adversary=PGD(norm="l2"), max_epochs=2, random_state=0, device="cpu"),
        {"lr": [0.01]},
        cv=2,
    ).fit(X, Y)
    assert curve(search, X, Y, eps_range=[0.0, 0.1]).norm == 2


@pytest.mark.parametrize(
    ("attack", "top"),
    [
        (PGD(eps=0.3), 0.6),
        (PGD(), 2 * DEFAULT_EPS[np.inf]),
        (PGD(norm="l2"), 2 * DEFAULT_EPS[2.0]),
        (PGD(eps=[0.1, 0.2, 0.1, 0.0]), 0.4),
    ],
)
def test_default_range(clf, attack, top):
    disp = curve(clf, X, Y, attack=attack.set_params(n_steps=2, random_state=0))
    np.testing.assert_allclose(disp.eps, np.linspace(0, top, 9))


def test_one_radius_per_feature_is_rescaled(clf):
    attack = BIM(eps=[0.1, 0.2, 0.1, 0.0], clip=BOX)
    disp = curve(clf, X, Y, attack=attack, eps_range=[0.0, 0.6])
    by_hand = BIM(eps=[0.3, 0.6, 0.3, 0.0], clip=BOX)
    assert disp.accuracy[1] == score_adversarial(clf, X, Y, by_hand)
    with pytest.raises(ValueError, match="zero for all features"):
        curve(clf, X, Y, attack=BIM(eps=[0.0] * 4), eps_range=[0.0, 0.1])


def test_range_is_that_of_all_samples_not_of_the_survivors(clf):
    expected = np.logical_and.accumulate(
        [adversarial_outcome(clf, X, Y, BIM(eps=e)).robust for e in (0.2, 0.5, 1.0, 2.0)]
    ).mean(axis=1)
    disp = curve(clf, X, Y, attack=BIM(), eps_range=[0.2, 0.5, 1.0, 2.0])
    assert disp.accuracy.tolist() == expected.tolist()


def test_range_that_the_attack_has_been_fitted_on(clf):
    attack = BIM(clf).fit(np.concatenate([X - 9, X + 9]))
    disp = curve(clf, X, Y, attack=attack, eps_range=[1.0])
    assert disp.accuracy[0] == score_adversarial(clf, X, Y, BIM(eps=1.0, clip=None))


def test_one_target_per_sample(clf):
    target = (Y + 1 + np.arange(len(Y)) % 2) % 3
    attack = BIM(target=target, clip=BOX)
    expected = np.logical_and.accumulate(
        [adversarial_outcome(clf, X, Y, BIM(target=target, clip=BOX, eps=e)).robust for e in EPS]
    ).mean(axis=1)
    for n_jobs in (None, 2):
        disp = curve(clf, X, Y, attack=attack, eps_range=EPS, n_jobs=n_jobs)
        assert disp.accuracy.tolist() == expected.tolist()


def test_processes_change_nothing(clf):
    attack = PGD(n_steps=5, n_restarts=2, random_state=0)
    one = curve(clf, X, Y, attack=attack, eps_range=EPS)
    two = curve(clf, X, Y, attack=attack, eps_range=EPS, n_jobs=2)
    assert one.accuracy.tolist() == two.accuracy.tolist()
    assert curve(clf, X[:1], Y[:1], attack=attack, eps_range=[0.0, 0.1], n_jobs=2).accuracy[0] == 1


def test_attack_inside_of_an_attack(clf):
    class Same(BaseWrapper):
        """A wrapper that changes nothing."""

    plain = curve(clf, X, Y, attack=BIM(clip=BOX), eps_range=EPS)
    for attack in (Same(attack=BIM(eps=0.3, clip=BOX)), Same(attack=BIM(), eps=0.3, clip=BOX)):
        assert curve(clf, X, Y, attack=attack, eps_range=EPS).accuracy.tolist() == (
            plain.accuracy.tolist()
        )


def test_attack_comes_back_as_it_was(clf):
    module = nn.Linear(4, 3)
    attack = PGD(module, eps=0.3, n_steps=2, random_state=np.random.RandomState(0))
    before, state = attack.get_params(), attack.random_state.get_state()[1].copy()
    curve(clf, X, Y, attack=attack, eps_range=EPS)
    assert attack.get_params() == before
    assert attack.estimator is module
    np.testing.assert_array_equal(attack.random_state.get_state()[1], state)
    assert not hasattr(attack, "clip_bounds_")


def test_containers(ours):
    X32 = X.astype(np.float32)
    attack = BIM(eps=0.3)
    expected = curve(ours, X32, Y, attack=attack, eps_range=EPS).accuracy.tolist()
    data = TensorDataset(torch.tensor(X32), torch.tensor(Y))
    for features, labels in [
        (torch.tensor(X32), torch.tensor(Y)),
        (X32, Y.tolist()),
        (X32, Y[:, None]),
        (data, None),
        (data, Y),
    ]:
        disp = curve(ours, features, labels, attack=attack, eps_range=EPS)
        assert disp.accuracy.tolist() == expected


def test_lists_and_dataframe_with_string_labels(clf):
    names = np.array(["a", "b", "c"])[Y]
    frame = pd.DataFrame(X, columns=list("pqrs"), index=np.arange(len(X))[::-1])
    named = LogisticRegression(max_iter=1000).fit(frame, names)
    expected = curve(clf, X.tolist(), Y, attack=BIM(), eps_range=EPS).accuracy.tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        disp = curve(named, frame, pd.Series(names, index=frame.index), attack=BIM(), eps_range=EPS)
    assert disp.accuracy.tolist() == expected


# --- from predictions ----------------------------------------------------------------------


def test_from_predictions_equals(clf):
    attack = BIM(clf, clip=BOX)
    y_pred_adv = [clf.predict(attack.set_params(eps=e).generate(X, Y)) for e in EPS]
    a = RobustnessCurveDisplay.from_predictions(Y, y_pred_adv, eps=EPS, norm="linf", name="A")
    b = curve(clf, X, Y, attack=attack, eps_range=EPS)
    for name in ("eps", "accuracy", "accuracy_low", "accuracy_high"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert a.ax_.get_xlabel() == b.ax_.get_xlabel()
    assert a.line_.get_label() == "A"


def test_from_predictions_carries_over():
    disp = RobustnessCurveDisplay.from_predictions(
        ["x", "y"], [["x", "y"], ["x", "x"], ["y", "y"]], eps=[0, 1, 2]
    )
    assert disp.accuracy.tolist() == [1.0, 0.5, 0.0]
    assert disp.line_.get_label() == "Classifier"


@pytest.mark.parametrize("shape", [(2, 5), (3, 4), (5,), (5, 3)])
def test_from_predictions_shapes(shape):
    with pytest.raises(ValueError, match=r"\(n_eps, n_samples\) = \(3, 5\)"):
        RobustnessCurveDisplay.from_predictions(np.zeros(5), np.zeros(shape), eps=[0, 1, 2])


# --- what is drawn ---------------------------------------------------------------------------


def test_drawing(clf):
    disp = curve(clf, X, Y, eps_range=EPS, attack=BIM())
    assert isinstance(disp.line_, matplotlib.lines.Line2D)
    assert isinstance(disp.band_, matplotlib.collections.Collection)
    assert isinstance(disp.ax_, matplotlib.axes.Axes)
    assert disp.figure_ is disp.ax_.figure
    np.testing.assert_array_equal(disp.line_.get_xdata(), EPS)
    np.testing.assert_array_equal(disp.line_.get_ydata(), disp.accuracy)
    assert disp.line_.get_marker() == "o"
    assert disp.ax_.get_xlabel() == "Perturbation size eps (linf norm)"
    assert disp.ax_.get_ylabel() == "Accuracy under attack"
    assert disp.ax_.get_ylim() == (0.0, 1.0)
    vertices = disp.band_.get_paths()[0].vertices
    for i, eps in enumerate(EPS):
        ends = vertices[vertices[:, 0] == eps, 1]
        assert ends.min() == pytest.approx(disp.accuracy_low[i])
        assert ends.max() == pytest.approx(disp.accuracy_high[i])
    assert [t.get_text() for t in disp.ax_.get_legend().get_texts()] == ["LogisticRegression"]
    disp.figure_.canvas.draw()


@pytest.mark.parametrize(
    ("norm", "label"),
    [
        (np.inf, " (linf norm)"),
        ("inf", " (linf norm)"),
        (2, " (l2 norm)"),
        ("l1", " (l1 norm)"),
        (0, " (l0 norm)"),
        (None, ""),
    ],
)
def test_norm_in_the_label(norm, label):
    disp = RobustnessCurveDisplay(eps=[0, 1], accuracy=[1, 0], norm=norm).plot()
    assert disp.ax_.get_xlabel() == f"Perturbation size eps{label}"


def test_several_on_one_axis(clf):
    first = curve(clf, X, Y, eps_range=EPS, attack=BIM())
    weak = LogisticRegression(C=0.01).fit(X, Y)
    second = curve(weak, X, Y, eps_range=EPS, attack=BIM(), name="C=0.01", ax=first.ax_)
    assert second.ax_ is first.ax_
    assert second.figure_ is first.figure_
    assert len(plt.get_fignums()) == 1
    assert first.line_.get_color() != second.line_.get_color()
    labels = [t.get_text() for t in first.ax_.get_legend().get_texts()]
    assert labels == ["LogisticRegression", "C=0.01"]


def test_names_and_options(clf):
    disp = curve(
        clf, X, Y, eps_range=[0, 0.1], attack=BIM(), name="mine", color="red", linestyle="--"
    )
    assert disp.estimator_name == "mine"
    assert disp.line_.get_color() == "red"
    assert disp.line_.get_linestyle() == "--"
    red = matplotlib.colors.to_rgb("red")
    assert tuple(disp.band_.get_facecolor()[0][:3]) == red
    again = disp.plot(name="other", marker="x")
    assert again is disp
    assert again.line_.get_label() == "other"
    assert again.line_.get_marker() == "x"
    assert len(plt.get_fignums()) == 2


def test_display_of_bare_arrays_has_neither_band_nor_legend():
    disp = RobustnessCurveDisplay(eps=[0, 1], accuracy=[1, 0])
    assert not hasattr(disp, "ax_")
    disp.plot()
    assert disp.band_ is None
    assert disp.ax_.get_legend() is None


def test_module_and_its_name():
    torch.manual_seed(0)
    disp = curve(nn.Linear(4, 3), X, Y, eps_range=[0, 0.1], attack=BIM())
    assert disp.line_.get_label() == "Linear"


# --- bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("eps_range", "message"),
    [
        (0.1, "one-dimensional"),
        ([], "not empty"),
        ([[0.0, 0.1]], "one-dimensional"),
        ([0.2, 0.1], "ascending"),
        ([-0.1, 0.1], "not negative"),
        ([0.0, np.nan], "finite"),
        ([0.0, np.inf], "finite"),
        (["a", "b"], "numbers"),
    ],
)
def test_bad_eps_range(clf, eps_range, message):
    with pytest.raises(ValueError, match=f"eps_range must.*{message}"):
        curve(clf, X, Y, eps_range=eps_range)
    with pytest.raises(ValueError, match=f"^eps must.*{message}"):
        RobustnessCurveDisplay.from_predictions(Y, np.stack([Y, Y]), eps=eps_range)


def test_no_range_to_guess(clf):
    with pytest.raises(ValueError, match="pass eps_range"):
        curve(clf, X, Y, attack=PGD(eps=0))
    with pytest.raises(ValueError, match="one-dimensional"):
        RobustnessCurveDisplay.from_predictions(Y, Y[None], eps=None)


def test_only_zero(clf):
    assert curve(clf, X, Y, eps_range=[0]).accuracy.tolist() == [clf.score(X, Y)]
    disp = curve(clf, X, Y, eps_range=[0, 0, 0.1], attack=BIM())
    assert disp.accuracy[0] == disp.accuracy[1] == clf.score(X, Y) > disp.accuracy[2] - 1e-9


def test_other_bad_input(clf):
    with pytest.raises(TypeError, match="attack must be an attack such as PGD"):
        curve(clf, X, Y, attack=PGD)
    with pytest.raises(ValueError, match="confidence must be between 0 and 1"):
        curve(clf, X, Y, confidence=95)
    with pytest.raises(ValueError, match="inconsistent numbers"):
        curve(clf, X, Y[1:])
    with pytest.raises(ValueError, match="0 sample"):
        curve(clf, X[:0], Y[:0])
    with pytest.raises(ValueError, match="not been trained on"):
        curve(clf, X, Y + 1)
    with pytest.raises(NoGradientError, match="DecisionTree"):
        curve(DecisionTreeClassifier().fit(X, Y), X, Y)
    assert plt.get_fignums() == []


# --- matplotlib is optional --------------------------------------------------------------------


def test_without_matplotlib(clf, monkeypatch):
    real = builtins.__import__

    def fake(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError("No module named 'matplotlib'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", fake)
    disp = RobustnessCurveDisplay(eps=[0, 1], accuracy=[1, 0])
    for call, name in [
        (disp.plot, "plot"),
        (lambda: curve(clf, X, Y), "from_estimator"),
        (
            lambda: RobustnessCurveDisplay.from_predictions(Y, Y[None], eps=[0]),
            "from_predictions",
        ),
    ]:
        with pytest.raises(
            ImportError, match=rf"RobustnessCurveDisplay\.{name} requires matplotlib.*pip install"
        ):
            call()
