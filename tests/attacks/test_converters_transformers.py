"""Transformers of numbers as torch modules: values and slopes of scikit-learn's own."""

import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import expit
from sklearn.decomposition import PCA, FastICA, IncrementalPCA, TruncatedSVD
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import RandomForestClassifier
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.feature_selection import RFE, SelectFromModel, SelectKBest, VarianceThreshold
from sklearn.impute import IterativeImputer, KNNImputer, MissingIndicator, SimpleImputer
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import (
    Binarizer,
    FunctionTransformer,
    KBinsDiscretizer,
    OneHotEncoder,
    OrdinalEncoder,
    PolynomialFeatures,
    PowerTransformer,
    QuantileTransformer,
    SplineTransformer,
    StandardScaler,
    TargetEncoder,
)
from sklearn.random_projection import GaussianRandomProjection, SparseRandomProjection

from robustsk import BPDA, PGD
from robustsk.attacks import NoGradientError, as_victim
from robustsk.victims.converters import convert, is_flat, rebuild


def rows_of(n_rows=60, seed=0):
    """Columns of all kinds: normal, positive, with many zeros, with few values, constant."""
    rng = np.random.default_rng(seed)
    return np.column_stack(
        [
            rng.normal(size=n_rows),
            rng.lognormal(size=n_rows),
            np.maximum(rng.normal(size=n_rows), 0),
            rng.integers(-1, 3, n_rows),
            np.full(n_rows, 1.5),
        ]
    )


def moved(X):
    """Rows at and beyond what has been seen, and zeros."""
    low, high = X.min(axis=0), X.max(axis=0)
    return np.vstack(
        [X[:8], low, high, low - 1.3, high + 0.7, np.zeros_like(low), 2.5 * high - low]
    )


def asked(transformer, X):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = transformer.transform(X)
    return found.toarray() if hasattr(found, "toarray") else np.asarray(found)


def assert_same(module, transformer, X):
    found = module(torch.tensor(X)).numpy()
    expected = asked(transformer, X)
    assert found.shape == expected.shape
    assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def assert_slopes(function, X, step=1e-6, rtol=1e-5):
    """Compare the gradient of a weighted sum of the outputs with central differences."""
    x = torch.tensor(X, requires_grad=True)
    n_outputs = function(x).shape[1]
    weights = torch.tensor(np.random.default_rng(1).normal(size=n_outputs))
    (found,) = torch.autograd.grad((function(x) @ weights).sum(), x)
    expected = np.zeros_like(X)
    for column in range(X.shape[1]):
        away = np.zeros_like(X)
        away[:, column] = step
        with torch.no_grad():
            sides = [function(torch.tensor(X + sign * away)) @ weights for sign in (1, -1)]
        expected[:, column] = (sides[0] - sides[1]).numpy() / (2 * step)
    assert_allclose(found, expected, rtol=rtol, atol=1e-5 * max(1, np.abs(expected).max()))
    assert np.abs(expected).max() > 0


SMOOTH = [
    IncrementalPCA(3),
    IncrementalPCA(2, whiten=True),
    PCA(2, whiten=True),
    TruncatedSVD(3, random_state=0),
    FastICA(3, random_state=0),
    GaussianRandomProjection(3, random_state=0),
    SparseRandomProjection(4, random_state=0, density=0.5),
    SelectKBest(k=2),
    VarianceThreshold(),
    SelectFromModel(LogisticRegression()),
    RFE(LogisticRegression(), n_features_to_select=2),
    LinearDiscriminantAnalysis(),
    LinearDiscriminantAnalysis(n_components=1),
    LinearDiscriminantAnalysis(solver="eigen"),
    PolynomialFeatures(2),
    PolynomialFeatures(3, interaction_only=True, include_bias=False),
    PolynomialFeatures((2, 4), include_bias=False),
    PowerTransformer(),
    PowerTransformer(standardize=False),
    QuantileTransformer(n_quantiles=9),
    QuantileTransformer(n_quantiles=60, output_distribution="normal"),
    SplineTransformer(n_knots=4, extrapolation="continue"),
    SplineTransformer(n_knots=4, extrapolation="linear"),
    SplineTransformer(n_knots=5, degree=2, extrapolation="constant", include_bias=False),
    SplineTransformer(n_knots=5, extrapolation="periodic"),
    SplineTransformer(n_knots=3, degree=1, extrapolation="linear"),
    SplineTransformer(n_knots=3, degree=1, sparse_output=True),
    SplineTransformer(n_knots=6, degree=4, knots="quantile", extrapolation="linear"),
    FunctionTransformer(np.tanh),
    SimpleImputer(),
    FeatureUnion(
        [("a", StandardScaler()), ("b", PCA(2)), ("c", "passthrough"), ("d", "drop")],
        transformer_weights={"b": 3.0, "c": 0.5},
    ),
]


@pytest.mark.parametrize("transformer", SMOOTH, ids=lambda t: repr(t)[:60].replace("\n", ""))
def test_transformers(transformer):
    X = rows_of()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        is_spline = isinstance(transformer, SplineTransformer)
        # knots must not be the same
        X = X[:, :2] if is_spline and transformer.knots == "quantile" else X
        X = X[:, :4] if getattr(transformer, "solver", "") == "eigen" else X
        transformer = transformer.fit(X, np.arange(len(X)) % 3)
    module = convert(transformer, None, is_step=True)
    beyond = moved(X)
    assert_same(module, transformer, beyond)
    jumps = isinstance(transformer, QuantileTransformer) or (is_spline and transformer.degree < 3)
    # where the value itself jumps there is no slope; elsewhere there is at and beyond the ends
    rows = rows_of(9, seed=5)[:, : X.shape[1]] * 1.7 + 0.0123 if jumps else beyond
    assert_slopes(module, rows)


def test_slopes_at_the_knots():
    X = np.linspace(-2, 3, 24)[:, None] ** 3
    for transformer in (
        QuantileTransformer(n_quantiles=8),
        SplineTransformer(n_knots=4, degree=1, extrapolation="constant"),
        SplineTransformer(n_knots=4, degree=3, extrapolation="constant"),
    ):
        module = convert(transformer.fit(X), None)
        knots = getattr(transformer, "quantiles_", None)
        if knots is None:
            spline = transformer.bsplines_[0]
            knots = spline.t[spline.k : len(spline.t) - spline.k, None]
        assert_same(module, transformer, knots)
        assert_slopes(module, knots)


def test_spline_that_refuses_what_is_beyond():
    X = rows_of()
    step = SplineTransformer(extrapolation="error").fit(X)
    module = convert(step, None)
    assert_same(module, step, X)
    assert_slopes(module, X[[1, 4]])


def test_power_of_zero_has_a_gradient():
    step = PolynomialFeatures(3).fit(np.ones((2, 2)))
    x = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(convert(step, None)(x).sum(), x)
    assert_array_equal(gradient, [[1.0, 1.0]])


@pytest.mark.parametrize("power", [-1.0, 0.0, 1.0, 2.0, 3.5])
def test_powers(power):
    X = rows_of()
    step = PowerTransformer(standardize=False).fit(X)
    step.lambdas_ = np.full(X.shape[1], power)
    assert_same(convert(step, None), step, moved(X))
    assert_slopes(convert(step, None), moved(X), rtol=1e-4)
    step = PowerTransformer("box-cox").fit(X[:, [1, 1]] + [0, 1])
    step.lambdas_ = np.array([power, power])
    positive = np.abs(moved(X)[:, :2]) + 0.01
    assert_same(convert(step, None), step, positive)
    assert_slopes(convert(step, None), positive)


@pytest.mark.parametrize("output", ["uniform", "normal"])
def test_ranks_of_values_that_there_are_many_of(output):
    X = np.repeat([0.0, 0.0, 0.0, 1.0, 2.0, 2.0, 7.0, 7.0], 5)[:, None]
    step = QuantileTransformer(n_quantiles=16, output_distribution=output).fit(X)
    at = np.array([-1, -1e-8, 0, 1e-9, 1e-3, 1, 1.5, 2, 5, 7 - 1e-9, 7, 8])[:, None]
    assert_same(convert(step, None), step, at)
    assert_slopes(convert(step, None), np.array([[0.3], [1.7], [5.0], [9.0]]))


# --- missing values -------------------------------------------------------------------


def with_gaps(X, seed=3):
    X = X.copy()
    X[np.random.default_rng(seed).random(X.shape) < 0.2] = np.nan
    return X


@pytest.mark.parametrize("add_indicator", [False, True])
@pytest.mark.parametrize("keep_empty_features", [False, True])
@pytest.mark.parametrize("strategy", ["mean", "median", "most_frequent", "constant"])
def test_simple_imputer(strategy, keep_empty_features, add_indicator):
    X = with_gaps(rows_of())
    X[:, 2] = np.nan
    fill = {"fill_value": -3.0} if strategy == "constant" else {}
    step = SimpleImputer(
        strategy=strategy,
        keep_empty_features=keep_empty_features,
        add_indicator=add_indicator,
        **fill,
    ).fit(X)
    module = convert(step, None)
    assert_same(module, step, X)
    x = torch.tensor(X, requires_grad=True)
    (gradient,) = torch.autograd.grad(module(x).sum(), x)
    expected = ~np.isnan(X)
    assert_array_equal(gradient.numpy(), expected.astype(float))


def test_imputer_of_another_value():
    X = rows_of()
    step = SimpleImputer(missing_values=0.0, strategy="median").fit(X)
    assert (X == 0).any()
    assert_same(convert(step, None), step, X)


@pytest.mark.parametrize("add_indicator", [False, True])
@pytest.mark.parametrize("imputer", [KNNImputer, IterativeImputer])
def test_imputers_that_look_elsewhere(imputer, add_indicator):
    X = with_gaps(rows_of())
    X[:, 2] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        step = imputer(add_indicator=add_indicator).fit(X)
        module = convert(step, None)
        assert_same(module, step, X)
        whole = rows_of(5)
        assert_same(module, step, whole)
        assert_slopes(lambda x: module(x), whole)


def test_marks_of_what_is_missing():
    X = with_gaps(rows_of())
    both = FeatureUnion([("filled", SimpleImputer()), ("marks", MissingIndicator())]).fit(X)
    assert_same(convert(both, None), both, X)
    with pytest.raises(NoGradientError, match="MissingIndicator has none"):
        convert(MissingIndicator().fit(X), None)


def test_powers_and_ranks_of_what_is_missing():
    X = with_gaps(rows_of())
    for first in (PowerTransformer(), QuantileTransformer(n_quantiles=20), StandardScaler()):
        model = make_pipeline(first, SimpleImputer())
        step = model.fit(X)
        module = convert(step, None)
        assert_same(module, step, X)
        x = torch.tensor(X, requires_grad=True)
        (gradient,) = torch.autograd.grad(module(x).sum(), x)
        assert gradient.isfinite().all()
        assert not gradient[torch.tensor(np.isnan(X))].any()


@pytest.mark.skipif(
    "handle_missing" not in SplineTransformer().get_params(), reason="a late addition"
)
def test_spline_of_what_is_missing():
    X = with_gaps(rows_of()[:, :3])
    step = SplineTransformer(handle_missing="zeros").fit(X)
    assert_same(convert(step, None), step, X)


# --- without a gradient ---------------------------------------------------------------

FLAT = [
    Binarizer(threshold=0.5),
    KBinsDiscretizer(3, encode="ordinal", quantile_method="averaged_inverted_cdf"),
    KBinsDiscretizer(4, encode="onehot", strategy="uniform"),
    KBinsDiscretizer(4, encode="onehot-dense", strategy="kmeans"),
    OneHotEncoder(handle_unknown="ignore"),
    OneHotEncoder(handle_unknown="infrequent_if_exist", min_frequency=3, drop="first"),
    OneHotEncoder(handle_unknown="ignore", max_categories=3, sparse_output=False),
    OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1),
    OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=np.nan),
    TargetEncoder(),
    SplineTransformer(degree=0, extrapolation="continue"),
]


@pytest.mark.dealt
@pytest.mark.parametrize("transformer", FLAT, ids=lambda t: repr(t)[:60].replace("\n", ""))
def test_steps_without_a_gradient_are_exact(transformer):
    X = np.round(rows_of(), 0 if hasattr(transformer, "categories") else 1)
    y = np.arange(len(X)) % 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformer = transformer.fit(X, y)
        module = rebuild(transformer)
    assert is_flat(module)
    edges = np.vstack([X, X + 0.05, moved(X)])
    if isinstance(transformer, KBinsDiscretizer):
        inner = [np.resize(own[1:-1] if len(own) > 2 else 0.0, 3) for own in transformer.bin_edges_]
        edges = np.vstack([edges, np.column_stack(inner)])
    assert_same(module, transformer, edges)
    with pytest.raises(NoGradientError, match=f"{type(transformer).__name__} has none"):
        convert(transformer, "PGD")
    # beside something that has one it stays where it is
    both = FeatureUnion([("flat", transformer), ("scaled", StandardScaler().fit(X))])
    module = convert(both, None)
    assert_same(module, both, edges)
    assert_slopes(lambda x: module(x).nan_to_num(), edges[:3] + 0.0123)


def test_encoder_of_numbers_that_refuses_others():
    X = rows_of()[:, [3]]
    step = OneHotEncoder().fit(X)
    assert_same(rebuild(step), step, X)


def test_bpda_sees_through_steps_beside_others():
    rng = np.random.default_rng(0)
    X = rng.random((200, 2))
    y = (X[:, 0] > 0.5).astype(int)
    bins = KBinsDiscretizer(8, encode="ordinal", strategy="uniform")
    from sklearn.compose import ColumnTransformer

    columns = ColumnTransformer([("bins", bins, [0]), ("scale", StandardScaler(), [1])])
    model = make_pipeline(columns, LogisticRegression()).fit(X, y)
    attack = PGD(eps=0.3, random_start="none", random_state=0)
    blind = attack.set_params(estimator=model).fit(X).generate(X, y)
    assert_array_equal(blind[:, 0], X[:, 0])
    X_adv = BPDA(model, attack=PGD(eps=0.3, random_start="none", random_state=0)).fit(X)
    assert model.score(X_adv.generate(X, y), y) < model.score(blind, y) - 0.3


@pytest.mark.parametrize(
    "step",
    [Nystroem(n_components=3, random_state=0), FunctionTransformer(np.round)],
    ids=["kernel", "rounding"],
)
def test_no_converter(step):
    X = rows_of()
    model = make_pipeline(StandardScaler(), step, LogisticRegression()).fit(X, X[:, 0] > 0)
    with pytest.raises(NoGradientError, match=rf"PGD follows gradients and {type(step).__name__}"):
        as_victim(model, attack="PGD")


def test_rfe_as_a_classifier_and_vote_in_the_middle():
    X = rows_of()
    y = (X[:, 0] > 0).astype(int)
    model = RFE(LogisticRegression(), n_features_to_select=2).fit(X, y)
    found = as_victim(model).logits(X)
    assert_allclose(found[:, 1] - found[:, 0], model.decision_function(X), rtol=1e-9)
    forest = SelectFromModel(RandomForestClassifier(5, random_state=0))
    chain = make_pipeline(forest, LogisticRegression()).fit(X, y)
    found = as_victim(chain).logits(X)
    assert_allclose(found[:, 1] - found[:, 0], chain.decision_function(X), rtol=1e-9)


# --- functions ------------------------------------------------------------------------


def cube(X):
    return X**3


def ratios(X):
    return X[:, :1] / (1 + X[:, 1:] ** 2)


FUNCTIONS = [
    *(FunctionTransformer(f) for f in (np.log1p, np.log, np.sqrt, np.exp, np.expm1, np.abs)),
    *(FunctionTransformer(f) for f in (np.square, np.sin, np.cos, np.cbrt, np.reciprocal)),
    FunctionTransformer(expit),
    FunctionTransformer(np.clip, kw_args={"a_min": 0.3, "a_max": 1.2}),
    FunctionTransformer(np.clip, kw_args={"a_min": np.array([0.1, 0.2, 0.3]), "a_max": None}),
    FunctionTransformer(cube),
    FunctionTransformer(ratios),
]


@pytest.mark.parametrize("step", FUNCTIONS, ids=lambda t: getattr(t.func, "__name__", str(t.func)))
def test_functions(step):
    X = np.abs(np.random.default_rng(0).normal(size=(12, 3))) + 0.01
    module = convert(step.fit(X), None)
    assert_same(module, step, X)
    assert_slopes(module, X)


def test_cube_root_of_zero():
    step = FunctionTransformer(np.cbrt).fit(np.zeros((2, 1)))
    x = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.grad(convert(step, None)(x).sum(), x)[0].isfinite().all()


def by_numpy(X):
    return np.c_[np.asarray(X), np.asarray(X) ** 2]


def of_values(X):
    return X.detach() * 2 if isinstance(X, torch.Tensor) else X * 2


@pytest.mark.parametrize("function", [by_numpy, of_values])
def test_functions_that_torch_cannot_follow(function):
    step = FunctionTransformer(function).fit(np.ones((2, 2)))
    with pytest.raises(NoGradientError, match=rf"FunctionTransformer\({function.__name__}\)"):
        convert(step, "PGD")
