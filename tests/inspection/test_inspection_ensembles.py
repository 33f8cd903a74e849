"""Displays of ensembles and of attacks with several tasks."""

import builtins

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.tree import DecisionTreeClassifier

from robustsk import BIM, TAMOO
from robustsk.attacks import NoGradientError
from robustsk.inspection import (
    GradientCosineDisplay,
    MinNormDisplay,
    SecureRegionsDisplay,
    TaskTraceDisplay,
)
from robustsk.metrics import SecureRegions, gradient_cosines, secure_regions

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
plt = pytest.importorskip("matplotlib.pyplot")

X, Y = load_iris(return_X_y=True)
ATTACK = BIM(eps=0.4, clip=(0.0, 8.0))
NAMES = ["CNN", "MLP", "tree"]


@pytest.fixture(scope="module")
def models():
    return {
        "steep": LogisticRegression(C=10, max_iter=1000).fit(X, Y),
        "flat": LogisticRegression(C=0.01).fit(X, Y),
    }


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def labels(axis):
    return [text.get_text() for text in axis.get_ticklabels()]


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


# --- secure regions -----------------------------------------------------------------------


def some_regions(n_members=3, n_samples=40, seed=0):
    rng = np.random.default_rng(seed)
    correct = rng.random((n_samples, n_members)) > 0.4
    return correct, SecureRegions.from_correct(correct, rng.random(n_samples) > 0.5)


def test_bars_of_two_members():
    frequency = np.array([[0.4, 0.1], [0.2, 0.3]])
    disp = SecureRegionsDisplay(frequency, ensemble_accuracy=0.45, names=["A", "B"])
    assert not hasattr(disp, "ax_")
    assert disp.plot() is disp
    assert labels(disp.ax_.xaxis) == ["S11", "S10", "S01", "S00"]
    assert [bar.get_height() for bar in disp.bars_] == [0.3, 0.2, 0.1, 0.4]
    assert [text.get_text() for text in disp.text_] == ["0.30", "0.20", "0.10", "0.40"]
    assert list(disp.line_.get_ydata()) == [0.45, 0.45]
    assert legend(disp.ax_) == ["Accuracy of the ensemble 0.45"]
    assert disp.ax_.get_xlabel() == "Right (1) or wrong (0): A, B"
    assert disp.ax_.get_ylabel() == "Share of samples"
    assert disp.figure_ is disp.ax_.figure
    disp.figure_.canvas.draw()


def test_bars_count_patterns():
    correct, regions = some_regions()
    disp = SecureRegionsDisplay.from_regions(regions)
    for label, bar in zip(labels(disp.ax_.xaxis), disp.bars_, strict=True):
        pattern = [int(bit) for bit in label[1:]]
        np.testing.assert_allclose(bar.get_height(), (correct == pattern).all(axis=1).mean())
    assert len(disp.bars_) == 8
    assert disp.ensemble_accuracy == regions.ensemble_accuracy


def test_only_patterns_that_occur_of_many():
    correct, regions = some_regions(n_members=6, n_samples=10)
    disp = SecureRegionsDisplay.from_regions(regions)
    expected = {"S" + "".join(map(str, row)) for row in correct.astype(int)}
    assert set(labels(disp.ax_.xaxis)) == expected
    np.testing.assert_allclose(sum(bar.get_height() for bar in disp.bars_), 1.0)
    assert len(SecureRegionsDisplay.from_regions(some_regions(5)[1]).bars_) == 32


def test_regions_of_estimators(models):
    disp = SecureRegionsDisplay.from_estimators(models, X, Y, ATTACK)
    regions = secure_regions(models, X, Y, ATTACK)
    np.testing.assert_array_equal(disp.frequency, regions.frequency)
    assert disp.ensemble_accuracy == regions.ensemble_accuracy
    assert disp.names == ["steep", "flat"]
    other = SecureRegionsDisplay.from_estimators(
        models, X, Y, ATTACK, ensemble=models["flat"], include_values=False
    )
    expected = secure_regions(models, X, Y, ATTACK, ensemble=models["flat"])
    np.testing.assert_array_equal(other.frequency, expected.frequency)
    assert other.text_ is None


def test_settings_of_regions():
    _, ax = plt.subplots()
    disp = SecureRegionsDisplay([[0.5, 0.0], [0.0, 0.5]])
    disp.plot(ax=ax, values_format=".0%", bar_kw={"color": "red"})
    assert disp.ax_ is ax
    assert disp.line_ is None
    assert disp.text_[0].get_text() == "50%"
    assert disp.bars_[0].get_facecolor() == (1.0, 0.0, 0.0, 1.0)
    assert disp.ax_.get_xlabel() == "Members that are right (1) or wrong (0)"
    disp = SecureRegionsDisplay(disp.frequency, ensemble_accuracy=0.5)
    assert disp.plot(line_kw={"label": "here"}).line_.get_label() == "here"


def test_bad_regions(models):
    for frequency in ([0.1, 0.2, 0.7], [[0.1, 0.2, 0.7]], 1.0):
        with pytest.raises(ValueError, match=r"shape \(2, ..., 2\)"):
            SecureRegionsDisplay(frequency).plot()
    with pytest.raises(ValueError, match="holds 1 names and there are 2 members"):
        SecureRegionsDisplay([[0.5, 0.0], [0.0, 0.5]], names=["A"]).plot()
    with pytest.raises(TypeError, match="members must be a list"):
        SecureRegionsDisplay.from_estimators(models["flat"], X, Y, ATTACK)
    assert plt.get_fignums() == []


# --- cosines of gradients -----------------------------------------------------------------


def test_cosines_of_estimators(models):
    disp = GradientCosineDisplay.from_estimators(models, X, Y, objective="cw")
    cosines = gradient_cosines(models, X, Y, objective="cw")
    np.testing.assert_array_equal(disp.im_.get_array(), cosines.mean)
    assert disp.im_.get_clim() == (-1.0, 1.0)
    for (i, j), text in np.ndenumerate(disp.text_):
        assert text.get_text() == f"{cosines.mean[i, j]:.2f}±{cosines.std[i, j]:.2f}"
        assert text.get_position() == (j, i)
    assert labels(disp.ax_.xaxis) == ["steep", "flat"]
    assert labels(disp.ax_.yaxis) == [
        f"{name}\n{mean:.2f}±{std:.2f}"
        for name, mean, std in zip(models, cosines.norm_mean, cosines.norm_std, strict=True)
    ]
    assert disp.ax_.get_xlabel() == disp.ax_.get_ylabel() == ""
    bar = next(ax for ax in disp.figure_.axes if ax is not disp.ax_)
    assert bar.get_ylabel() == "Cosine of the gradients"
    disp.figure_.canvas.draw()


def test_cosines_only():
    _, ax = plt.subplots()
    disp = GradientCosineDisplay([[1.0, -0.5], [-0.5, np.nan]])
    disp.plot(ax=ax, colorbar=False, values_format=".1f", im_kw={"vmin": 0.0}, text_kw={"size": 7})
    assert disp.ax_ is ax
    assert disp.figure_.axes == [ax]
    assert [text.get_text() for text in disp.text_.ravel()] == ["1.0", "-0.5", "-0.5", "nan"]
    assert disp.text_[0, 0].get_fontsize() == 7
    assert disp.im_.get_clim() == (0.0, 1.0)
    assert labels(ax.xaxis) == labels(ax.yaxis) == ["0", "1"]
    assert disp.plot(include_values=False).text_ is None


def test_bad_cosines(models):
    tree = DecisionTreeClassifier(random_state=0).fit(X, Y)
    with pytest.raises(ValueError, match=r"\(n_models, n_models\), got \(1, 2\)"):
        GradientCosineDisplay([[1.0, 0.5]]).plot()
    with pytest.raises(ValueError, match="holds 1 names and there are 2 models"):
        GradientCosineDisplay(np.eye(2), names=["A"]).plot()
    with pytest.raises(ValueError, match=r"std must have shape \(2, 2\), got \(2,\)"):
        GradientCosineDisplay(np.eye(2), std=[0.1, 0.1]).plot()
    with pytest.raises(ValueError, match=r"norm_std must have shape \(2,\)"):
        GradientCosineDisplay(np.eye(2), norm_mean=[1.0, 1.0], norm_std=[1.0]).plot()
    with pytest.raises(NoGradientError, match="DecisionTree"):
        GradientCosineDisplay.from_estimators([tree], X, Y)
    assert plt.get_fignums() == []


# --- traces of attacks --------------------------------------------------------------------


@pytest.fixture(scope="module")
def info():
    rng = np.random.default_rng(0)
    shape = (11, 6, 3)
    return {
        "trace_values": rng.normal(size=shape),
        "trace_achieved": rng.random(shape) > 0.4,
        "trace_weights": rng.dirichlet(np.ones(3), size=shape[:2]),
        "trace_norms": rng.random(shape) + 0.1,
        "trace_norm": rng.random(shape[:2]) + 0.1,
        "weights": rng.random((11, 3)),
    }


def test_all_panels(info):
    disp = TaskTraceDisplay.from_info(info, names=NAMES)
    assert disp.ax_.shape == (4,)
    assert list(disp.lines_) == ["values", "achieved", "weights", "norms"]
    assert all(ax.figure is disp.figure_ for ax in disp.ax_)
    assert [ax.get_xlabel() for ax in disp.ax_] == ["Step"] * 4
    assert [ax.get_ylabel() for ax in disp.ax_] == [
        "Objective",
        "Success rate",
        "Weight",
        "Length of the gradient",
    ]
    assert [ax.get_yscale() for ax in disp.ax_] == ["linear", "linear", "linear", "log"]
    for ax, lines in zip(disp.ax_, disp.lines_.values(), strict=True):
        assert legend(ax) == list(lines)
        for line in lines.values():
            assert line.axes is ax
            np.testing.assert_array_equal(line.get_xdata(), np.arange(1, 7))
    disp.figure_.canvas.draw()


@pytest.mark.parametrize("what", ["values", "achieved", "weights", "norms"])
def test_curves_of_tasks_are_means_over_samples(info, what):
    disp = TaskTraceDisplay.from_info(info, names=NAMES, what=what)
    assert disp.ax_.shape == (1,)
    trace = info[f"trace_{what}"]
    for i, name in enumerate(NAMES):
        expected = [sum(sample[step][i] for sample in trace) / 11 for step in range(6)]
        np.testing.assert_allclose(disp.lines_[what][name].get_ydata(), expected, rtol=1e-12)


def test_joint_success(info):
    lines = TaskTraceDisplay.from_info(info, what=["achieved"]).lines_["achieved"]
    assert list(lines) == ["0", "1", "2", "all", "average"]
    achieved = info["trace_achieved"]
    everything = [
        np.mean([all(achieved[sample, step]) for sample in range(11)]) for step in range(6)
    ]
    np.testing.assert_allclose(lines["all"].get_ydata(), everything)
    each = np.array([lines[name].get_ydata() for name in "012"])
    np.testing.assert_allclose(lines["average"].get_ydata(), each.mean(axis=0))
    assert (lines["all"].get_ydata() <= each.min(axis=0)).all()


def test_combined_gradient_and_bands(info):
    disp = TaskTraceDisplay.from_info(info, names=NAMES, what=("norms", "weights"))
    np.testing.assert_allclose(
        disp.lines_["norms"]["combined"].get_ydata(), info["trace_norm"].mean(axis=0)
    )
    assert list(disp.lines_["norms"]) == [*NAMES, "combined"]
    assert list(disp.bands_) == NAMES
    for i, name in enumerate(NAMES):
        weights = info["trace_weights"][:, :, i]
        low, high = weights.mean(0) - weights.std(0), weights.mean(0) + weights.std(0)
        corners = disp.bands_[name].get_paths()[0].vertices[:, 1]
        np.testing.assert_allclose([corners.min(), corners.max()], [low.min(), high.max()])
    assert TaskTraceDisplay.from_info(info, what="weights", band=False).bands_ == {}


def test_settings_of_traces(info):
    _, axes = plt.subplots(2, 1)
    disp = TaskTraceDisplay.from_info(info, ax=axes, what=("weights", "values"), linewidth=3)
    assert list(disp.ax_) == list(axes)
    assert disp.lines_["values"]["0"].get_linewidth() == 3
    _, ax = plt.subplots()
    assert TaskTraceDisplay.from_info(info, ax=ax, what="values").ax_[0] is ax


def test_trace_of_an_attack(models):
    attack = TAMOO(models, eps=0.4, n_steps=5, clip=(0.0, 8.0), trace=True, random_state=0)
    _, found = attack.generate(X, Y, return_info=True)
    disp = TaskTraceDisplay.from_info(found, names=list(models))
    weights = np.array([disp.lines_["weights"][name].get_ydata() for name in models])
    assert weights.shape == (2, 5)
    np.testing.assert_allclose(weights.sum(axis=0), 1.0, rtol=1e-5)
    np.testing.assert_allclose(
        disp.lines_["achieved"]["all"].get_ydata(), found["trace_achieved"].all(2).mean(0)
    )


def test_bad_traces(info):
    parts = {key[6:]: value for key, value in info.items() if key.startswith("trace_")}
    with pytest.raises(ValueError, match=r"no trace_values.*trace=True.*return_info=True"):
        TaskTraceDisplay.from_info({"weights": info["weights"]})
    with pytest.raises(ValueError, match="what must be one or several"):
        TaskTraceDisplay.from_info(info, what="loss")
    with pytest.raises(ValueError, match="what must be one or several"):
        TaskTraceDisplay.from_info(info, what=())
    with pytest.raises(ValueError, match="holds 2 names and there are 3 tasks"):
        TaskTraceDisplay.from_info(info, names=["A", "B"])
    with pytest.raises(ValueError, match=r"values must have shape \(n_samples, n_steps, n_tasks\)"):
        TaskTraceDisplay(**parts | {"values": parts["values"][0]}).plot()
    with pytest.raises(ValueError, match=r"norm has shape \(11, 6, 3\)"):
        TaskTraceDisplay(**parts | {"norm": parts["norms"]}).plot()
    with pytest.raises(ValueError, match=r"weights has shape \(11, 6, 2\)"):
        TaskTraceDisplay(**parts | {"weights": parts["weights"][..., :2]}).plot()
    assert plt.get_fignums() == []
    _, axes = plt.subplots(1, 3)
    with pytest.raises(ValueError, match="3 axes and there are 4 panels"):
        TaskTraceDisplay(**parts).plot(ax=axes)


# --- points of least norm -----------------------------------------------------------------

GRADIENTS = np.array([[3.0, 1.0], [2.0, 3.0], [0.5, 4.0], [-1.0, 3.0]])
ACHIEVED = np.array([True, True, False, False])


def reference(gradients, achieved, lam):
    """Solve the penalised problem as it is written, the distance to the unachieved included."""
    n_left = (~achieved).sum()

    def value(w):
        on = w[achieved]
        return ((w @ gradients) ** 2).sum() + lam * (on @ on + on.sum() ** 2 / n_left)

    constraint = {"type": "eq", "fun": lambda w: w.sum() - 1}
    m = len(achieved)
    return minimize(
        value, np.full(m, 1 / m), bounds=[(0, 1)] * m, constraints=constraint, tol=1e-14
    ).x


def test_points_against_a_general_solver():
    disp = MinNormDisplay.from_gradients(GRADIENTS, ACHIEVED, lam=3.0)
    assert list(disp.weights) == ["MOO", "TA-MOO, lam=3", "MOO on what is left"]
    expected = [
        reference(GRADIENTS, ACHIEVED, 0.0) @ GRADIENTS,
        reference(GRADIENTS, ACHIEVED, 3.0) @ GRADIENTS,
        reference(GRADIENTS[2:], np.array([False, False]), 0.0) @ GRADIENTS[2:],
    ]
    for point, at in zip(disp.points_.values(), expected, strict=True):
        np.testing.assert_allclose(np.ravel(point.get_data()), at, atol=1e-3)
    for w in disp.weights.values():
        np.testing.assert_allclose(w.sum(), 1.0)
        assert w.min() >= 0.0
    assert legend(disp.ax_) == list(disp.weights)


@pytest.mark.parametrize("lam", [0.01, 0.5, 2.5, 100.0])
def test_two_tasks_in_closed_form(lam):
    disp = MinNormDisplay.from_gradients([[1, 0], [0, 2]], [1, 0], lam=lam)
    first = 4 / (1 + 4 + 2 * lam)
    weights = list(disp.weights.values())
    np.testing.assert_allclose(weights[0], [0.8, 0.2], atol=1e-6)
    np.testing.assert_allclose(weights[1], [first, 1 - first], atol=1e-6)
    np.testing.assert_allclose(weights[2], [0.0, 1.0], atol=1e-6)


def test_none_and_all_achieved():
    none = list(MinNormDisplay.from_gradients(GRADIENTS, [0, 0, 0, 0]).weights.values())
    np.testing.assert_allclose(none[1], none[0], atol=1e-6)
    np.testing.assert_allclose(none[2], none[0], atol=1e-6)
    everything = MinNormDisplay.from_gradients(GRADIENTS, [1, 1, 1, 1], lam=1e6).weights
    np.testing.assert_allclose(list(everything.values())[2], [0.25] * 4)
    np.testing.assert_allclose(list(everything.values())[1], [0.25] * 4, atol=1e-4)


def test_vectors_and_hull():
    inner = GRADIENTS.mean(axis=0)
    disp = MinNormDisplay.from_gradients(
        [*GRADIENTS, inner], [*ACHIEVED, True], names=["A", "B", "C", "D", "E"]
    )
    np.testing.assert_array_equal(disp.arrows_.U, [*GRADIENTS[:, 0], inner[0]])
    np.testing.assert_array_equal(disp.arrows_.V, [*GRADIENTS[:, 1], inner[1]])
    np.testing.assert_array_equal(disp.arrows_.XY, np.zeros((5, 2)))
    corners = {tuple(corner) for corner in disp.hull_.get_xy()}
    assert corners == {tuple(g) for g in GRADIENTS}
    assert [text.get_text() for text in disp.text_] == [
        "A (achieved)", "B (achieved)", "C", "D", "E (achieved)",
    ]  # fmt: skip
    for text, end in zip(disp.text_, [*GRADIENTS, inner], strict=True):
        np.testing.assert_array_equal(text.xy, end)
    colours = [tuple(c) for c in disp.arrows_.get_facecolor()]
    assert colours[0] == colours[1] == colours[4] != colours[2] == colours[3]
    disp.figure_.canvas.draw()
    low, high = disp.ax_.get_xlim()
    assert low <= -1.0 < 3.0 <= high
    assert disp.ax_.get_ylim()[0] <= 0.0
    for point in disp.points_.values():
        assert disp.hull_.get_path().contains_point(np.ravel(point.get_data()), radius=1e-6) or (
            disp.hull_.get_path().contains_point(np.ravel(point.get_data()), radius=-1e-6)
        )


@pytest.mark.parametrize("gradients", [[[1, 2]], [[1, 2], [1, 2]], [[1, 1], [2, 2], [3, 3]]])
def test_flat_hulls(gradients):
    disp = MinNormDisplay.from_gradients(gradients, [False] * len(gradients))
    np.testing.assert_allclose(np.ravel(disp.points_["MOO"].get_data()), gradients[0], atol=1e-6)
    assert {tuple(c) for c in disp.hull_.get_xy()} <= {tuple(g) for g in gradients}
    disp.figure_.canvas.draw()


def test_weights_of_your_own():
    _, ax = plt.subplots()
    disp = MinNormDisplay(GRADIENTS, ACHIEVED, weights={"mean": [0.25] * 4})
    disp.plot(ax=ax, color="red", hull_kw={"alpha": 0.5}, arrow_kw={"width": 0.01})
    assert disp.ax_ is ax
    np.testing.assert_allclose(np.ravel(disp.points_["mean"].get_data()), GRADIENTS.mean(0))
    assert disp.points_["mean"].get_color() == "red"
    assert disp.hull_.get_alpha() == 0.5


def test_bad_gradients():
    with pytest.raises(ValueError, match=r"shape \(n_tasks, 2\), got \(2, 3\)"):
        MinNormDisplay.from_gradients(np.ones((2, 3)), [True, False])
    with pytest.raises(ValueError, match="achieved must hold 4 booleans"):
        MinNormDisplay.from_gradients(GRADIENTS, [True, False])
    with pytest.raises(ValueError, match="achieved must hold 4 booleans"):
        MinNormDisplay.from_gradients(GRADIENTS, [0.5, 0, 0, 1])
    for lam in (0.0, -1.0, np.inf, [1.0]):
        with pytest.raises(ValueError, match="lam must be a positive number"):
            MinNormDisplay.from_gradients(GRADIENTS, ACHIEVED, lam=lam)
    with pytest.raises(ValueError, match="holds 1 names and there are 4 tasks"):
        MinNormDisplay.from_gradients(GRADIENTS, ACHIEVED, names=["A"])
    with pytest.raises(ValueError, match=r"'mean' must have shape \(4,\)"):
        MinNormDisplay(GRADIENTS, ACHIEVED, weights={"mean": [1.0]}).plot()
    assert plt.get_fignums() == []


# --- all of them --------------------------------------------------------------------------


def test_without_matplotlib(models, info, monkeypatch):
    real = builtins.__import__

    def fake(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError("No module named 'matplotlib'")
        return real(name, *args, **kwargs)

    regions, cosines = some_regions()[1], gradient_cosines(models, X, Y)
    monkeypatch.setattr(builtins, "__import__", fake)
    for call, name in [
        (SecureRegionsDisplay(np.eye(2)).plot, "SecureRegionsDisplay.plot"),
        (lambda: SecureRegionsDisplay.from_regions(regions), "SecureRegionsDisplay.from_regions"),
        (
            lambda: SecureRegionsDisplay.from_estimators(models, X, Y, ATTACK),
            "SecureRegionsDisplay.from_estimators",
        ),
        (GradientCosineDisplay(np.eye(2)).plot, "GradientCosineDisplay.plot"),
        (lambda: GradientCosineDisplay.from_cosines(cosines), "GradientCosineDisplay.from_cosines"),
        (
            lambda: GradientCosineDisplay.from_estimators(models, X, Y),
            "GradientCosineDisplay.from_estimators",
        ),
        (lambda: TaskTraceDisplay.from_info(info), "TaskTraceDisplay.from_info"),
        (
            lambda: MinNormDisplay.from_gradients(GRADIENTS, ACHIEVED),
            "MinNormDisplay.from_gradients",
        ),
        (MinNormDisplay(GRADIENTS, ACHIEVED, weights={}).plot, "MinNormDisplay.plot"),
    ]:
        with pytest.raises(ImportError, match=rf"{name} requires"):
            call()
