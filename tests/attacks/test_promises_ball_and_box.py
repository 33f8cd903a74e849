"""Every attack stays in its ball and in the box, to the last bit; none is named here."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from promises import STRONG, able, every_norm, make, randomised
from recording import assert_in_ball, assert_in_box
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

#: Rounding is coarser in float32.
either_dtype = pytest.mark.parametrize(
    "dtype", [np.float32, pytest.param(np.float64, marks=pytest.mark.slow)]
)


def assert_output_is_in_ball_and_box(cls, norm, dtype, clip, problem, model):
    X = problem.X[:7].astype(dtype)
    before = X.copy()
    low, high = -float(np.abs(problem.X).max()) - 0.1, float(np.abs(problem.X).max()) + 0.1
    if problem.X.ndim == 4:
        low, high = 0.0, 1.0
    moved = False
    for eps in (0.1, 5.0):
        attack = make(
            cls,
            model,
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
    assert_array_equal(X, before)


@every_norm
def test_output_lies_in_ball_and_box_to_the_last_bit(cls, norm, table):
    assert_output_is_in_ball_and_box(cls, norm, np.float64, "auto", table, table.net)


@every_norm
def test_output_lies_in_ball_and_box_to_the_last_bit_of_images(cls, norm, images):
    assert_output_is_in_ball_and_box(cls, norm, np.float32, "explicit", images, images.net)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "clip"), [(np.float32, "explicit"), (np.float64, "auto"), (np.float32, None)]
)
@every_norm
def test_output_lies_in_ball_and_any_box_to_the_last_bit(cls, norm, dtype, clip, problem):
    assert_output_is_in_ball_and_box(cls, norm, dtype, clip, problem, problem.model)


@either_dtype
@every_norm
def test_ball_holds_at_large_magnitudes(cls, norm, dtype, table):
    X = (1e3 * (table.X + 1)).astype(dtype)
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(X, table.y)
    for eps in (0.3, 1e3 / 7):
        attack = make(cls, model, norm=norm, eps=eps, random_state=0, batch_size=7)
        attack.fit(X[:40])
        X_adv = attack.generate(X[:9])
        assert_in_ball(X_adv, X[:9], norm, eps)
        assert_in_box(X_adv, *attack.clip_bounds_)
        if norm != 0:
            assert not np.array_equal(X_adv, X[:9]) or cls().minimal


@either_dtype
@every_norm
def test_box_holds_where_its_bounds_are_no_floats_of_the_dtype(cls, norm, dtype, table):
    # float32(0.1) is above 0.1, and 0.1 - x rounds where x is large
    X = np.clip(3 * table.X - 2, -7.25, 0.09).astype(dtype)
    attack = make(cls, table.net, norm=norm, eps=20.0, clip=(-7.3, 0.1), random_state=0)
    X_adv = attack.generate(X[:40])
    assert_in_box(X_adv, -7.3, 0.1)
    assert X_adv.max() > 0.0999 or cls().minimal


@either_dtype
@every_norm
def test_radius_per_feature(cls, norm, dtype, table):
    if norm == 0:
        pytest.skip("how many features change is one number")
    X = table.X[:20].astype(dtype)
    eps = np.array([0.3, 0.0, 1.0, 0.1, 0.0, 8 / 255])
    X_adv = able(cls, table.net, norm=norm, eps=eps, clip=None, random_state=0).generate(X)
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
    attack = able(cls, problem.net, norm=norm, eps=eps, clip=None, mask=mask, random_state=0)
    X_adv = attack.generate(X)
    assert_array_equal(X_adv[:, ~mask], X[:, ~mask])
    assert not np.array_equal(X_adv[:, mask], X[:, mask])
    assert_in_ball(X_adv, X, norm, eps)


@every_norm
def test_radius_zero_returns_the_data(cls, norm, problem):
    X = problem.X[:10]
    attack = make(cls, problem.net, norm=norm, eps=0.0, clip=None, **randomised(cls))
    assert_array_equal(attack.generate(X), X)
    attack.set_params(eps=0.3, mask=np.zeros(X.shape[1:], dtype=bool))
    assert_array_equal(attack.generate(X), X)
