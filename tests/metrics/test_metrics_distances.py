"""Sizes of perturbations, and losses."""

import itertools
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_iris
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier
from torch import nn
from torch.utils.data import TensorDataset

from robustsk import BIM, FGSM, PGD, StandardClassifier, score_adversarial
from robustsk.attacks import NoGradientError
from robustsk.attacks.minimal.base import BaseMinimalAttack
from robustsk.attacks.wrappers.base import BaseWrapper
from robustsk.metrics import (
    half_accuracy_eps,
    mean_perturbation,
    natural_loss,
    perturbation_norm,
    r_separation,
    robust_loss,
)

X, Y = load_iris(return_X_y=True)
# two classes that a linear model does not separate without errors
X2, Y2 = X[50:], Y[50:]
CLF = LogisticRegression(C=1.0).fit(X2, Y2)
RIGHT = CLF.predict(X2) == Y2
DUAL = {np.inf: 1, 2: 2, 1: np.inf}


class Nearest(BaseMinimalAttack):
    """The closest point beyond the border of a linear model of two classes, exactly."""

    def _search(self, batch, closest):
        ball = batch.ball
        with torch.enable_grad():
            z = batch.x.clone().requires_grad_(True)
            out = batch.victim(z)
            gap = out[:, 0] - out[:, 1]
            (g,) = torch.autograd.grad(gap.sum(), z)
        gap = gap.detach()
        if ball.norm == np.inf:
            length = gap.abs() / g.abs().sum(1)
            step = g.sign() * length[:, None]
        elif ball.norm == 2:
            step = g * (gap.abs() / (g**2).sum(1))[:, None]
        else:
            top = g.abs().argmax(1, keepdim=True)
            step = torch.zeros_like(g).scatter(1, top, gap.abs()[:, None] / g.gather(1, top))
        z = batch.x - 1.0001 * gap.sign()[:, None] * step
        closest.update(z, batch.fooled(batch.victim(z)))


class Silent(Nearest):
    """One that does not report distances."""

    def _attack_batch(self, batch):
        z = super()._attack_batch(batch)
        batch.info.clear()
        return z


class Same(BaseWrapper):
    """A wrapper that changes nothing."""


def distances(norm):
    """Distance of every sample to the border of CLF: |w x + b| over the dual norm of w."""
    margin = np.abs(X2 @ CLF.coef_[0] + CLF.intercept_[0])
    return margin / np.linalg.norm(CLF.coef_[0], ord=DUAL[norm])


# --- norms --------------------------------------------------------------------------------


def test_norms_by_loops():
    rng = np.random.default_rng(0)
    clean = rng.normal(size=(5, 1, 3, 3))
    moved = clean + rng.normal(size=clean.shape) * (rng.random(clean.shape) < 0.5)
    moved[2] = clean[2]
    for norm in ("linf", "l2", "l1", "l0"):
        for i, size in enumerate(perturbation_norm(moved, clean, norm)):
            delta = [abs(v) for v in (moved[i] - clean[i]).ravel()]
            expected = {
                "linf": max(delta),
                "l2": sum(v**2 for v in delta) ** 0.5,
                "l1": sum(delta),
                "l0": sum(v != 0 for v in delta),
            }[norm]
            assert size == pytest.approx(expected, rel=1e-14)
    assert perturbation_norm(moved, clean)[2] == 0.0


def test_norms_of_containers():
    frame = pd.DataFrame(X)
    assert perturbation_norm(frame + 1, frame).tolist() == pytest.approx([1.0] * 150)
    assert perturbation_norm(torch.ones(2, 3), torch.zeros(2, 3), 1).tolist() == [3.0, 3.0]
    with pytest.raises(ValueError, match=r"X_adv has shape \(2, 3\) and X has shape \(2, 2\)"):
        perturbation_norm(np.ones((2, 3)), np.ones((2, 2)))
    with pytest.raises(ValueError, match="norm=3 is not supported"):
        perturbation_norm(X, X, 3)


# --- smallest perturbations -----------------------------------------------------------------


@pytest.mark.parametrize("attack", [Nearest, Silent])
@pytest.mark.parametrize("norm", [np.inf, 2, 1])
def test_sizes_of_a_linear_model(norm, attack):
    sizes = mean_perturbation(CLF, X2, Y2, attack(norm=norm, clip=None))
    expected = 1.0001 * distances(norm)
    assert 50 < RIGHT.sum() < 100
    assert sizes.mean == pytest.approx(expected[RIGHT].mean(), rel=1e-6)
    assert sizes.median == pytest.approx(np.median(expected[RIGHT]), rel=1e-6)
    assert sizes.success_rate == 1.0
    assert sizes.n_samples == RIGHT.sum()
    assert sizes.distance[RIGHT] == pytest.approx(expected[RIGHT], rel=1e-6)
    assert (sizes.distance[~RIGHT] == 0).all()


def test_clean_errors_count_as_zero():
    some = mean_perturbation(CLF, X2, Y2, Nearest(norm=2, clip=None))
    every = mean_perturbation(CLF, X2, Y2, Nearest(norm=2, clip=None), over="all")
    assert every.n_samples == 100
    assert every.mean == pytest.approx(some.mean * RIGHT.mean())
    assert every.median == pytest.approx(np.median(some.distance))
    assert every.success_rate == 1.0


def test_failures_count_as_infinite():
    limit = float(np.quantile(distances(2)[RIGHT], 0.3))
    sizes = mean_perturbation(CLF, X2, Y2, Nearest(norm=2, eps=limit, clip=None))
    found = distances(2)[RIGHT] * 1.0001 <= limit
    assert sizes.success_rate == found.mean()
    assert sizes.mean == pytest.approx(1.0001 * distances(2)[RIGHT][found].mean(), rel=1e-6)
    assert sizes.median == np.inf
    assert np.isinf(sizes.distance).sum() == (~found).sum()
    nothing = mean_perturbation(CLF, X2, Y2, Nearest(norm=2, eps=1e-9, clip=None))
    assert np.isnan(nothing.mean)
    assert nothing.success_rate == 0.0
    assert nothing.median == np.inf


def test_median_of_two_halves():
    """With an even number, one half infinite: the median is infinite, not NaN."""
    two = np.flatnonzero(RIGHT)[:2]
    limit = distances(2)[two].mean()
    sizes = mean_perturbation(CLF, X2[two], Y2[two], Nearest(norm=2, eps=limit, clip=None))
    assert sizes.success_rate == 0.5
    assert sizes.median == np.inf


def test_relative_sizes():
    sizes = mean_perturbation(CLF, X2, Y2, Nearest(norm=2, clip=None), relative=True)
    expected = 1.0001 * distances(2) / np.sqrt((X2**2).sum(axis=1))
    assert sizes.mean == pytest.approx(expected[RIGHT].mean(), rel=1e-6)
    origin = LogisticRegression().fit([[0.0], [1.0], [4.0], [5.0]], [0, 0, 1, 1])
    sizes = mean_perturbation(origin, [[0.0], [4.0]], [0, 1], Nearest(clip=None), relative=True)
    assert np.isinf(sizes.distance[0])
    assert sizes.success_rate == 0.5


def test_targets_are_read_row_by_row():
    target = 3 - Y2
    sizes = mean_perturbation(CLF, X2, Y2, Nearest(norm=2, clip=None, target=target))
    plain = mean_perturbation(CLF, X2, Y2, Nearest(norm=2, clip=None))
    assert sizes.distance.tolist() == plain.distance.tolist()
    with pytest.raises(ValueError, match="inconsistent numbers"):
        mean_perturbation(CLF, X2, Y2, Nearest(target=[1, 2]))


def test_nothing_correct():
    with pytest.warns(RuntimeWarning, match="No sample is classified correctly"):
        sizes = mean_perturbation(CLF, X2[RIGHT], 3 - Y2[RIGHT], Nearest(clip=None))
    assert np.isnan([sizes.mean, sizes.median, sizes.success_rate]).all()
    assert sizes.n_samples == 0
    sizes = mean_perturbation(CLF, X2[RIGHT], 3 - Y2[RIGHT], Nearest(clip=None), over="all")
    assert (sizes.mean, sizes.success_rate) == (0.0, 1.0)


def test_sizes_bad_input():
    with pytest.raises(ValueError, match="PGD uses all of its eps"):
        mean_perturbation(CLF, X2, Y2, PGD(eps=0.1))
    with pytest.raises(ValueError, match="over must be"):
        mean_perturbation(CLF, X2, Y2, Nearest(), over="wrong")
    with pytest.raises(TypeError, match="attack must be"):
        mean_perturbation(CLF, X2, Y2, Nearest)
    with pytest.raises(NoGradientError, match="DecisionTree"):
        mean_perturbation(DecisionTreeClassifier().fit(X2, Y2), X2, Y2, Nearest())
    with pytest.raises(ValueError, match="not been trained on"):
        mean_perturbation(CLF, X2, Y2 - 1, Nearest())


def test_text():
    sizes = mean_perturbation(CLF, X2[RIGHT][:2], Y2[RIGHT][:2], Nearest(norm=2, clip=None))
    low, high = 1.0001 * distances(2)[RIGHT][:2]
    assert str(sizes) == (
        f"mean {(low + high) / 2:.4g}, median {(low + high) / 2:.4g} (100.0% of 2 found)"
    )


# --- the size that halves the accuracy -------------------------------------------------------


def order_statistic(norm, share):
    """Smallest size at which no more than `share` of the correct samples are left."""
    ordered = np.sort(distances(norm)[RIGHT])
    for size in ordered:
        if (ordered > size).sum() <= share * RIGHT.sum():
            return size
    raise AssertionError


@pytest.mark.dealt
@pytest.mark.parametrize("share", [0.5, 0.25, 0.9, 0.0])
@pytest.mark.parametrize("norm", [np.inf, 2])
def test_half_by_bisection_and_by_order(norm, share):
    expected = order_statistic(norm, share)
    exact = half_accuracy_eps(CLF, X2, Y2, Nearest(norm=norm, clip=None), share=share)
    assert exact == pytest.approx(1.0001 * expected, rel=1e-6)
    for start in (1e-3, 0.3, 20.0):
        attack = FGSM(norm=norm, eps=start, clip=None)
        found = half_accuracy_eps(CLF, X2, Y2, attack, share=share, rtol=1e-3)
        assert expected * (1 - 1e-6) <= found <= expected * (1 + 2e-3)
        # the promise: at that size the accuracy is as low as it should be
        left = score_adversarial(CLF, X2, Y2, attack.set_params(eps=found))
        assert left <= share * RIGHT.mean() + 1e-12
        left = score_adversarial(CLF, X2, Y2, attack.set_params(eps=0.997 * found))
        assert left > share * RIGHT.mean()


def test_broken_samples_are_not_attacked_again():
    seen = []

    class Spy(FGSM):
        def run(self, prepared, *args, **kwargs):
            seen.append((self.eps, len(prepared.X)))
            return super().run(prepared, *args, **kwargs)

    half_accuracy_eps(CLF, X2, Y2, Spy(eps=0.1, clip=None))
    for (eps, n), (later, m) in itertools.combinations(seen, 2):
        if later > eps:
            assert m <= n
    assert max(n for _, n in seen) == RIGHT.sum()
    assert len(seen) < 20


class Waves(nn.Module):
    """Two classes that take turns: a longer step may land in the right one again."""

    def forward(self, x):
        wave = torch.cos(x[:, 0])
        return torch.stack([wave, -wave], dim=1)


def test_attack_that_is_not_monotone():
    points = np.linspace(-1, 1, 21)[:, None]
    y = np.zeros(21, dtype=int)
    found = half_accuracy_eps(Waves(), points, y, FGSM(eps=0.1, clip=None), rtol=1e-3)
    # the borders are at +-pi/2 and FGSM goes outwards
    expected = np.sort(np.pi / 2 - np.abs(points[:, 0]))[10]
    assert found == pytest.approx(expected, rel=2e-3)


def test_never_halved():
    class Flat(nn.Module):
        def forward(self, x):
            return torch.stack([2.0 + 0.0 * x[:, 0], 0.0 * x[:, 0]], dim=1)

    y = np.zeros(10, dtype=int)
    assert half_accuracy_eps(Flat(), X[:10], y, BIM(eps=0.1)) == np.inf
    assert half_accuracy_eps(Flat(), X[:10], y, BIM(eps=0.1, clip=None, n_steps=1)) == np.inf
    expected = order_statistic(np.inf, 0.5)
    attack = FGSM(eps=0.1, clip=None)
    assert half_accuracy_eps(CLF, X2, Y2, attack, max_eps=0.9 * expected) == np.inf
    found = half_accuracy_eps(CLF, X2, Y2, attack, max_eps=1.1 * expected)
    assert expected <= found <= 1.02 * expected
    minimal = Nearest(clip=None)
    assert half_accuracy_eps(CLF, X2, Y2, minimal, max_eps=0.9 * expected) == np.inf
    assert half_accuracy_eps(CLF, X2, Y2, Nearest(clip=None, eps=1e-6)) == np.inf


def test_one_radius_per_feature():
    """In units of the largest radius the distance is |w x + b| / sum |w| r."""
    radius = np.array([0.2, 0.1, 0.4, 0.0])
    margin = np.abs(X2 @ CLF.coef_[0] + CLF.intercept_[0])[RIGHT]
    ordered = np.sort(margin / (np.abs(CLF.coef_[0]) @ (radius / 0.4)))
    expected = ordered[len(ordered) - len(ordered) // 2 - 1]
    found = half_accuracy_eps(CLF, X2, Y2, FGSM(eps=radius, clip=None), rtol=1e-3)
    assert expected <= found <= expected * 1.002
    with pytest.raises(ValueError, match="zero for all features"):
        half_accuracy_eps(CLF, X2, Y2, FGSM(eps=np.zeros(4)))


@pytest.mark.parametrize(
    "attack", [Same(attack=FGSM(eps=0.3, clip=None)), Same(attack=FGSM(), eps=0.3, clip=None)]
)
def test_attack_inside_of_an_attack(attack):
    plain = half_accuracy_eps(CLF, X2, Y2, FGSM(eps=0.3, clip=None))
    assert half_accuracy_eps(CLF, X2, Y2, attack) == plain


def test_attack_comes_back_as_it_was():
    attack = FGSM(CLF, eps=0.1, target=3 - Y2)
    before = attack.get_params()
    first = half_accuracy_eps(CLF, X2, Y2, attack)
    assert attack.get_params() == before
    assert not hasattr(attack, "clip_bounds_")
    # with two classes the target changes nothing
    assert half_accuracy_eps(CLF, X2, Y2, FGSM(eps=0.1)) == first


def test_sample_on_the_border_ends_the_search():
    clf = LogisticRegression().fit([[-1.0], [1.0]], [0, 1])
    clf.coef_, clf.intercept_ = np.array([[1.0]]), np.array([0.0])
    found = half_accuracy_eps(clf, [[1e-300]], [1], FGSM(eps=0.1, clip=None))
    assert 0 < found < 1e-6


def test_half_bad_input():
    with pytest.raises(ValueError, match="share must be"):
        half_accuracy_eps(CLF, X2, Y2, FGSM(), share=1.0)
    with pytest.raises(ValueError, match="rtol must be"):
        half_accuracy_eps(CLF, X2, Y2, FGSM(), rtol=0.0)
    with pytest.raises(ValueError, match="not been trained on"):
        half_accuracy_eps(CLF, X2, Y2 - 1, FGSM())
    with pytest.raises(ValueError, match="max_eps must be"):
        half_accuracy_eps(CLF, X2, Y2, FGSM(), max_eps=-1.0)
    with pytest.raises(TypeError, match="attack must be"):
        half_accuracy_eps(CLF, X2, Y2, "FGSM")
    with pytest.warns(RuntimeWarning, match="there is no accuracy to lose"):
        assert np.isnan(half_accuracy_eps(CLF, X2[RIGHT], 3 - Y2[RIGHT], FGSM()))


# --- separation -------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [np.inf, 2, 1, 0])
def test_separation_by_brute_force(norm):
    rng = np.random.default_rng(0)
    points = rng.integers(0, 4, size=(30, 1, 3, 3)).astype(float)
    y = rng.integers(0, 3, size=30)
    smallest = min(
        np.linalg.norm((points[i] - points[j]).ravel(), ord=norm)
        for i in range(30)
        for j in range(30)
        if y[i] != y[j]
    )
    assert r_separation(points, y, norm=norm) == pytest.approx(smallest / 2)
    assert r_separation(10 * points, y, norm=norm) == pytest.approx(
        smallest / 2 * (1 if norm == 0 else 10)
    )


def test_separation_of_two_points():
    assert r_separation([[0.0, 0.0], [0.3, 0.7]], ["a", "b"]) == pytest.approx(0.35)
    with pytest.raises(ValueError, match="one class only"):
        r_separation(X[:50], Y[:50])
    data = TensorDataset(torch.tensor(X), torch.tensor(Y))
    assert r_separation(data, None) == r_separation(X, Y)


# --- losses -----------------------------------------------------------------------------------


def test_natural_loss_is_log_loss():
    clf = LogisticRegression(max_iter=1000, tol=1e-8).fit(X, Y)
    tree = DecisionTreeClassifier(max_depth=2, random_state=0).fit(X, Y)
    for model in (clf, FrozenEstimator(clf)):
        expected = log_loss(Y, clf.predict_proba(X))
        assert natural_loss(model, X, Y) == pytest.approx(expected, rel=1e-9)
    smooth = np.maximum(tree.predict_proba(X)[np.arange(150), Y], 1e-12)
    assert natural_loss(tree, X, Y) == pytest.approx(-np.log(smooth).mean(), rel=1e-6)
    names = np.array(["z", "x", "y"])[Y]
    named = LogisticRegression(max_iter=1000, tol=1e-8).fit(
        pd.DataFrame(X, columns=list("abcd")), names
    )
    found = natural_loss(named, pd.DataFrame(X, columns=list("abcd")), names)
    assert found == pytest.approx(log_loss(Y, clf.predict_proba(X)), rel=1e-4)


def test_other_losses():
    clf = LogisticRegression(max_iter=1000).fit(X, Y)
    z = clf.decision_function(X)
    own = z[np.arange(150), Y]
    other = np.where(np.eye(3, dtype=bool)[Y], -np.inf, z).max(axis=1)
    assert natural_loss(clf, X, Y, objective="cw") == pytest.approx((other - own).mean())
    zero_one = natural_loss(clf, X, Y, objective=lambda logits, y: (logits.argmax(1) != y).double())
    assert zero_one == pytest.approx(1 - clf.score(X, Y))


@pytest.mark.parametrize("norm", [np.inf, 2])
def test_robust_loss_of_a_linear_model(norm):
    """The worst loss in the ball is that at a margin less by eps times the dual norm."""
    eps = 0.3
    attack = FGSM(norm=norm, eps=eps, clip=None)
    margin = (2 * (Y2 == 2) - 1) * (X2 @ CLF.coef_[0] + CLF.intercept_[0])
    worst = margin - eps * np.linalg.norm(CLF.coef_[0], ord=DUAL[norm])
    expected = np.log1p(np.exp(-worst)).mean()
    assert robust_loss(CLF, X2, Y2, attack) == pytest.approx(expected, rel=1e-6)
    assert robust_loss(CLF, X2, Y2, attack, objective="cw") == pytest.approx(-worst.mean())


def test_robust_loss_is_never_less_than_the_natural_one():
    clf = LogisticRegression(max_iter=1000).fit(X, Y)
    natural = natural_loss(clf, X, Y)
    assert robust_loss(clf, X, Y, PGD(eps=0.0)) == pytest.approx(natural)
    # an attack that makes things better
    best = BIM(
        eps=0.2,
        objective=lambda logits, y: -nn.functional.cross_entropy(logits, y, reduction="none"),
    )
    assert robust_loss(clf, X, Y, best) == pytest.approx(natural)
    losses = [robust_loss(clf, X, Y, BIM(eps=e)) for e in (0.1, 0.3, 1.0)]
    assert natural < losses[0] < losses[1] < losses[2]


def test_losses_of_our_own_estimators():
    clf = StandardClassifier(max_epochs=5, random_state=0, device="cpu").fit(X, Y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        natural = natural_loss(clf, X, Y)
        assert robust_loss(clf, X, Y, BIM(eps=0.1)) > natural
    assert natural == pytest.approx(log_loss(Y, clf.predict_proba(X)), rel=1e-5)


def test_losses_bad_input():
    clf = LogisticRegression(max_iter=1000).fit(X, Y)
    with pytest.raises(ValueError, match="not a loss of labelled samples"):
        natural_loss(clf, X, Y, objective="kl")
    with pytest.raises(ValueError, match="not been trained on"):
        natural_loss(clf, X, Y + 1)
    with pytest.raises(TypeError, match="attack must be"):
        robust_loss(clf, X, Y, None)
    with pytest.raises(NoGradientError):
        robust_loss(DecisionTreeClassifier().fit(X, Y), X, Y, PGD())
    assert natural_loss(LinearSVC().fit(X, Y), X, Y) > 0
