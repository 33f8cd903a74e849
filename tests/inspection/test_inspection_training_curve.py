"""Records of a training as curves."""

import matplotlib
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.exceptions import NotFittedError

from robustsk import PGD, PGDATClassifier, RobustnessCurveDisplay, TrainingCurveDisplay
from robustsk.training import AdversarialScoring

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def _close():
    yield
    matplotlib.pyplot.close("all")


@pytest.fixture(scope="module")
def clf():
    X, y = np.random.default_rng(0).normal(size=(40, 3)), np.arange(40) % 2
    watch = AdversarialScoring(PGD(eps=0.1, random_state=0), on_train=True)
    return PGDATClassifier("mlp", max_epochs=4, callbacks=[watch], random_state=0).fit(X, y)


def test_curves_are_those_of_the_history(clf):
    display = TrainingCurveDisplay.from_estimator(clf, ["train_loss", "train_robust_acc"])
    assert len(display.lines_) == 2
    assert_array_equal(display.lines_[0].get_xdata(), [1, 2, 3, 4])
    assert_allclose(display.lines_[0].get_ydata(), clf.history_[:, "train_loss"])
    assert_allclose(display.lines_[1].get_ydata(), clf.history_[:, "train_robust_acc"])
    assert [t.get_text() for t in display.ax_.get_legend().get_texts()] == [
        "train_loss",
        "train_robust_acc",
    ]


def test_several_estimators_in_one_picture(clf):
    _, ax = matplotlib.pyplot.subplots()
    for name in ("A", "B"):
        display = TrainingCurveDisplay.from_estimator(
            clf, "train_loss", name=name, ax=ax, color="k"
        )
    assert len(ax.lines) == 2
    assert display.ax_ is ax
    assert display.lines_[0].get_label() == "B train_loss"
    assert ax.get_ylabel() == "train_loss"


def test_what_has_not_been_recorded(clf):
    with pytest.raises(ValueError, match=r"not recorded 'lam'.*'train_loss'"):
        TrainingCurveDisplay.from_estimator(clf)
    with pytest.raises(NotFittedError):
        TrainingCurveDisplay.from_estimator(PGDATClassifier(), "train_loss")


def test_average_of_a_sweep():
    display = RobustnessCurveDisplay(eps=[0.0, 0.1, 0.2], accuracy=[0.9, 0.6, 0.3])
    assert display.average == pytest.approx(0.6)
