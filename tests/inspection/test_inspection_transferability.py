"""The matrix of transfer, drawn."""

import builtins

import numpy as np
import pytest
from sklearn.datasets import load_iris
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.tree import DecisionTreeClassifier

from robustsk import BIM, EnsembleCCE
from robustsk.attacks import NoGradientError
from robustsk.inspection import TransferabilityDisplay
from robustsk.metrics import transferability_matrix

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
plt = pytest.importorskip("matplotlib.pyplot")

X, Y = load_iris(return_X_y=True)
ATTACK = BIM(eps=0.4, clip=(0.0, 8.0))
MATRIX = np.array([[0.1, 0.7, 0.49], [0.6, 0.2, 0.51]])


@pytest.fixture(scope="module")
def models():
    return {
        "steep": LogisticRegression(C=10, max_iter=1000).fit(X, Y),
        "flat": LogisticRegression(C=0.01).fit(X, Y),
    }


@pytest.fixture(scope="module")
def tree():
    return DecisionTreeClassifier(random_state=0).fit(X, Y)


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def labels(axis):
    return [text.get_text() for text in axis.get_ticklabels()]


# --- what is computed ---------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["accuracy", "success"])
def test_from_estimators(models, tree, metric):
    everything = {**models, "tree": tree}
    disp = TransferabilityDisplay.from_estimators(
        everything, X, Y, ATTACK, sources=models, metric=metric, over="correct"
    )
    expected = transferability_matrix(
        list(everything.values()), X, Y, ATTACK,
        sources=list(models.values()), metric=metric, over="correct",
    )  # fmt: skip
    np.testing.assert_array_equal(disp.matrix, expected)
    assert disp.source_names == ["steep", "flat"]
    assert disp.target_names == ["steep", "flat", "tree"]
    assert disp.metric == metric


def test_names_of_classes(models):
    same = [FrozenEstimator(models["steep"]), models["flat"]]
    disp = TransferabilityDisplay.from_estimators(same, X, Y, ATTACK)
    assert disp.target_names == ["LogisticRegression 1", "LogisticRegression 2"]
    assert disp.source_names == disp.target_names
    assert disp.matrix.shape == (2, 2)


def test_members_of_an_ensemble():
    clf = EnsembleCCE(max_epochs=1, random_state=0, device="cpu").fit(X, Y)
    disp = TransferabilityDisplay.from_estimators(clf, X, Y, ATTACK, sources={"whole": clf})
    assert disp.target_names == ["member 1", "member 2"]
    assert disp.source_names == ["whole"]
    assert disp.matrix.shape == (1, 2)


@pytest.mark.parametrize("metric", ["accuracy", "success"])
def test_from_predictions(models, metric):
    y_pred = np.empty((2, 2, len(Y)), dtype=int)
    for i, source in enumerate(models.values()):
        X_adv = BIM(source, eps=0.4, clip=(0.0, 8.0)).generate(X, Y)
        for j, target in enumerate(models.values()):
            y_pred[i, j] = target.predict(X_adv)
    disp = TransferabilityDisplay.from_predictions(
        Y, y_pred, source_names=models, target_names=models, metric=metric
    )
    other = TransferabilityDisplay.from_estimators(models, X, Y, ATTACK, metric=metric)
    np.testing.assert_allclose(disp.matrix, other.matrix)
    assert labels(disp.ax_.xaxis) == labels(other.ax_.xaxis) == ["steep", "flat"]


def test_string_predictions():
    disp = TransferabilityDisplay.from_predictions(["a", "b"], [[["a", "a"], ["b", "b"]]])
    assert disp.matrix.tolist() == [[0.5, 0.5]]


# --- what is drawn ------------------------------------------------------------------------


def test_drawing():
    disp = TransferabilityDisplay(
        MATRIX, source_names=["A", "B"], target_names=["A", "B", "tree"], metric="success"
    )
    assert not hasattr(disp, "ax_")
    assert disp.plot() is disp
    assert isinstance(disp.im_, matplotlib.image.AxesImage)
    assert isinstance(disp.ax_, matplotlib.axes.Axes)
    assert disp.figure_ is disp.ax_.figure
    np.testing.assert_array_equal(disp.im_.get_array(), MATRIX)
    assert disp.im_.get_clim() == (0.0, 1.0)
    assert labels(disp.ax_.xaxis) == ["A", "B", "tree"]
    assert labels(disp.ax_.yaxis) == ["A", "B"]
    assert disp.ax_.get_xlabel() == "Judged by"
    assert disp.ax_.get_ylabel() == "Made against"
    bar = next(ax for ax in disp.figure_.axes if ax is not disp.ax_)
    assert bar.get_ylabel() == "Success rate of the attack"
    assert disp.text_.shape == (2, 3)
    for (i, j), text in np.ndenumerate(disp.text_):
        assert text.get_text() == f"{MATRIX[i, j]:.2f}"
        assert text.get_position() == (j, i)
    disp.figure_.canvas.draw()


def test_text_stands_out():
    disp = TransferabilityDisplay(MATRIX).plot(cmap="gray")
    shade = [matplotlib.colors.to_rgb(text.get_color())[0] for text in disp.text_.ravel()]
    assert shade == [1.0, 0.0, 1.0, 0.0, 1.0, 0.0]
    narrow = TransferabilityDisplay(MATRIX).plot(cmap="gray", im_kw={"vmin": 0.0, "vmax": 0.2})
    assert matplotlib.colors.to_rgb(narrow.text_[1, 1].get_color())[0] == 0.0


def test_settings():
    _, ax = plt.subplots()
    disp = TransferabilityDisplay(MATRIX).plot(
        ax=ax,
        include_values=False,
        colorbar=False,
        cmap="Blues",
        xticks_rotation=45,
        im_kw={"alpha": 0.5},
    )
    assert disp.ax_ is ax
    assert disp.text_ is None
    assert disp.figure_.axes == [ax]
    assert disp.im_.cmap.name == "Blues"
    assert disp.im_.get_alpha() == 0.5
    assert {t.get_rotation() for t in ax.get_xticklabels()} == {45.0}
    assert labels(ax.xaxis) == ["0", "1", "2"]
    disp.plot(values_format=".0%", text_kw={"color": "red"})
    assert disp.text_[0, 1].get_text() == "70%"
    assert disp.text_[0, 1].get_color() == "red"


def test_settings_go_through(models):
    disp = TransferabilityDisplay.from_estimators(
        models, X, Y, ATTACK, include_values=False, cmap="Blues"
    )
    assert disp.text_ is None
    assert disp.im_.cmap.name == "Blues"


def test_nothing_to_count_is_drawn():
    disp = TransferabilityDisplay([[np.nan, 0.5]]).plot()
    assert disp.text_[0, 0].get_text() == "nan"
    disp.figure_.canvas.draw()


# --- bad input ----------------------------------------------------------------------------


def test_bad_input(models, tree):
    with pytest.raises(ValueError, match=r"shape \(n_sources, n_targets\), got \(2,\)"):
        TransferabilityDisplay([0.1, 0.2]).plot()
    with pytest.raises(ValueError, match="source_names holds 1 names and the matrix has 2"):
        TransferabilityDisplay(MATRIX, source_names=["A"]).plot()
    with pytest.raises(ValueError, match="target_names holds 2 names and the matrix has 3"):
        TransferabilityDisplay(MATRIX, target_names=["A", "B"]).plot()
    with pytest.raises(ValueError, match=r"n_samples = 150, got \(2, 150\)"):
        TransferabilityDisplay.from_predictions(Y, np.stack([Y, Y]))
    with pytest.raises(ValueError, match="metric must be"):
        TransferabilityDisplay.from_predictions(Y, Y[None, None], metric="asr")
    with pytest.raises(ValueError, match="metric must be"):
        TransferabilityDisplay.from_estimators(models, X, Y, ATTACK, metric="asr")
    with pytest.raises(NoGradientError, match="DecisionTree"):
        TransferabilityDisplay.from_estimators([tree], X, Y, ATTACK)
    with pytest.raises(TypeError, match="estimators must be a list"):
        TransferabilityDisplay.from_estimators(tree, X, Y, ATTACK)
    assert plt.get_fignums() == []


def test_without_matplotlib(models, monkeypatch):
    real = builtins.__import__

    def fake(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError("No module named 'matplotlib'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", fake)
    display = TransferabilityDisplay(MATRIX)
    for call, name in [
        (display.plot, "plot"),
        (
            lambda: TransferabilityDisplay.from_estimators(models, X, Y, ATTACK),
            "from_estimators",
        ),
        (
            lambda: TransferabilityDisplay.from_predictions(Y, Y[None, None]),
            "from_predictions",
        ),
    ]:
        with pytest.raises(ImportError, match=rf"TransferabilityDisplay\.{name} requires"):
            call()
