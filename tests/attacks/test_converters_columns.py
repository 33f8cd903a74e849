"""Groups of columns and tables with strings as torch modules."""

import copy
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer, make_column_selector
from sklearn.ensemble import StackingClassifier, VotingClassifier
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    KBinsDiscretizer,
    MinMaxScaler,
    OneHotEncoder,
    OrdinalEncoder,
    PolynomialFeatures,
    StandardScaler,
    TargetEncoder,
)

from robustsk import PGD, score_adversarial
from robustsk.attacks import NoGradientError, as_victim, register_converter
from robustsk.victims._columns import Columns
from robustsk.victims.converters import convert, to_module


@pytest.fixture(scope="module")
def loans():
    rng = np.random.default_rng(0)
    n = 120
    frame = pd.DataFrame(
        {
            "age": rng.integers(18, 70, n).astype(float),
            "purpose": rng.choice(["car", "debt", "house", "other"], n, p=[0.2, 0.5, 0.27, 0.03]),
            "income": rng.lognormal(10, 0.5, n),
            "housing": pd.Categorical(rng.choice(["own", "rent", "loan"], n)),
            "married": rng.random(n) > 0.5,
            "rooms": rng.integers(1, 5, n).astype(float),
        }
    )
    y = (frame["income"] / 20000 + (frame["purpose"] == "car") - frame["age"] / 50 > 0.7).to_numpy()
    gaps = frame.copy()
    for name in ("purpose", "housing", "income", "rooms"):
        gaps.loc[rng.random(n) < 0.15, name] = None
    return frame, gaps, y


def asked(step, X):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = step.transform(X)
    return np.asarray(found.toarray() if hasattr(found, "toarray") else found, dtype=float)


def assert_same(step, frame, moved=True):
    """Compare the module with the transformer, on rows that are there and on mixed ones."""
    columns = Columns(frame)
    module = convert(step, "PGD", columns=columns, is_step=True)
    X = columns.encode(frame)
    rng = np.random.default_rng(1)
    mixed = np.column_stack([rng.permutation(column) for column in X.T])
    if moved:
        mixed = np.where(columns.coded | (mixed == columns.fills), mixed, 1.01 * mixed)
    for rows in (X, mixed):
        expected = asked(step, columns.frame(rows))
        for body in (module, copy.deepcopy(module)):
            found = body(torch.tensor(rows))
            assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
    x = torch.tensor(X, requires_grad=True)
    weights = torch.tensor(rng.normal(size=expected.shape[1]))
    (gradient,) = torch.autograd.grad((module(x).nan_to_num() @ weights).sum(), x)
    assert not gradient[:, columns.coded].any()
    return module, gradient


# --- numbers --------------------------------------------------------------------------

GROUPS = [
    [("a", StandardScaler(), ["x3", "x0"]), ("b", MinMaxScaler(), ["x1"])],
    [("a", StandardScaler(), [3, -1]), ("b", "passthrough", [1])],
    [("a", StandardScaler(), slice(1, 3)), ("b", "drop", [0])],
    [("a", StandardScaler(), slice("x1", "x3"))],
    [("a", StandardScaler(), np.array([True, False, True, False, False]))],
    [("a", StandardScaler(), make_column_selector("x[02]")), ("b", MinMaxScaler(), [])],
    [("a", StandardScaler(), lambda X: [4, 0]), ("b", PolynomialFeatures(2), [0, 1])],
    [("a", make_pipeline(SimpleImputer(), StandardScaler()), [0]), ("b", "passthrough", [0, 2])],
]


@pytest.mark.parametrize("number", range(len(GROUPS)))
def test_column_transformer(number):
    groups, remainder = GROUPS[number], ["drop", "passthrough", MinMaxScaler()][number % 3]
    X = pd.DataFrame(
        np.random.default_rng(0).normal(size=(30, 5)), columns=[f"x{j}" for j in range(5)]
    )
    step = ColumnTransformer(
        copy.deepcopy(groups), remainder=remainder, transformer_weights={"a": 3.0}
    ).fit(X)
    module = convert(step, None)
    values = 2 * X.to_numpy()
    assert_allclose(module(torch.tensor(values)), asked(step, 2 * X), rtol=1e-9, atol=1e-9)
    x = torch.tensor(values[:1], requires_grad=True)
    jacobian = torch.autograd.functional.jacobian(lambda x: module(x)[0], x)[:, 0]
    for column in range(5):
        away = 1e-6 * np.eye(5)[[column]]
        sides = [
            asked(step, pd.DataFrame(values[:1] + s * away, columns=X.columns)) for s in (1, -1)
        ]
        assert_allclose(jacobian[:, column], (sides[0] - sides[1])[0] / 2e-6, atol=1e-6)


def test_columns_of_an_array_and_nested_groups():
    X = np.random.default_rng(0).normal(size=(30, 4))
    inner = ColumnTransformer([("s", StandardScaler(), [1])], remainder="passthrough")
    step = ColumnTransformer([("in", inner, [3, 2, 0]), ("one", MinMaxScaler(), [1])]).fit(X)
    assert_allclose(convert(step, None)(torch.tensor(X)), step.transform(X), rtol=1e-9)
    both = FeatureUnion([("a", step), ("b", StandardScaler())]).fit(X)
    assert_allclose(convert(both, None)(torch.tensor(X)), both.transform(X), rtol=1e-9)


def test_groups_without_any_gradient():
    X = np.random.default_rng(0).normal(size=(30, 2))
    bins = KBinsDiscretizer(3, encode="ordinal", strategy="uniform")
    step = ColumnTransformer([("bins", bins, [0, 1])])
    model = make_pipeline(step, LogisticRegression()).fit(X, X[:, 0] > 0)
    with pytest.raises(NoGradientError, match="PGD follows gradients and ColumnTransformer has"):
        as_victim(model, attack="PGD")
    assert as_victim(model, attack="PGD", access="straight-through").differentiable


# --- tables ---------------------------------------------------------------------------

NUMBERS = ["age", "income", "rooms"]
ENCODERS = {
    "one hot": OneHotEncoder(),
    "first dropped": OneHotEncoder(drop="first"),
    "binary dropped": OneHotEncoder(drop="if_binary", sparse_output=False),
    "rare": OneHotEncoder(min_frequency=0.1, handle_unknown="infrequent_if_exist"),
    "few": OneHotEncoder(max_categories=2),
    "ordinal": OrdinalEncoder(),
    "target": TargetEncoder(),
    "imputed": make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder()),
    "scaled": make_pipeline(OrdinalEncoder(), MinMaxScaler(), PolynomialFeatures(1)),
    "function": FunctionTransformer(
        lambda frame: frame.map(lambda value: len(str(value))).astype(float)
    ),
}


@pytest.mark.dealt
@pytest.mark.parametrize("has_gaps", [False, True])
@pytest.mark.parametrize("name", ENCODERS)
def test_encoders(name, has_gaps, loans):
    frame, gaps, y = loans
    frame = gaps if has_gaps else frame
    if name == "scaled":
        frame = loans[0]  # what is missing stays so
    if has_gaps and name in ("imputed", "rare"):
        frame = frame.assign(housing=loans[0]["housing"])
    numbers = make_pipeline(SimpleImputer(add_indicator=True), StandardScaler())
    step = ColumnTransformer(
        [
            ("code", copy.deepcopy(ENCODERS[name]), ["purpose", "housing"]),
            ("scale", numbers, NUMBERS),
        ]
    ).fit(frame, y)
    _, gradient = assert_same(step, frame)
    assert gradient[:, list(Columns(frame).names).index("age")].all()


def test_one_column_alone(loans):
    frame = loans[0]
    step = ColumnTransformer(
        [("words", CountVectorizer(analyzer="char"), "purpose"), ("age", StandardScaler(), ["age"])]
    ).fit(frame)
    assert_same(step, frame)


def test_flags_are_numbers_and_names_are_obeyed(loans):
    frame = loans[0]
    step = ColumnTransformer([("scale", StandardScaler(), ["rooms", "married", "age"])]).fit(frame)
    _, gradient = assert_same(
        step, frame[["married", "purpose", *frame.columns.drop(["married", "purpose"])]]
    )
    assert gradient.any(axis=0).sum() == 2
    step = ColumnTransformer([("same", "passthrough", ["married", "age"])]).fit(frame)
    assert_same(step, frame)
    assert_same(StandardScaler().fit(frame[["married", "age"]]), frame[["married", "age"]])


def test_encoder_of_strings_and_numbers(loans):
    frame = loans[1]
    for encoder in (
        OneHotEncoder(handle_unknown="ignore"),
        OrdinalEncoder(encoded_missing_value=-1),
        OneHotEncoder(handle_unknown="infrequent_if_exist", max_categories=3),
    ):
        step = ColumnTransformer(
            [("code", encoder, ["rooms", "purpose"]), ("scale", StandardScaler(), ["age"])]
        ).fit(frame)
        assert_same(step, frame, moved=False)
    assert_same(
        ColumnTransformer(
            [
                ("code", OneHotEncoder(handle_unknown="ignore"), ["rooms"]),
                ("scale", StandardScaler(), ["age", "rooms"]),
            ]
        ).fit(frame),
        frame,
    )


def test_values_that_were_not_there_in_training(loans):
    frame = loans[0]
    known = (frame["purpose"] != "other").to_numpy()
    step = ColumnTransformer(
        [("code", OneHotEncoder(), ["purpose"]), ("scale", StandardScaler(), ["age"])]
    ).fit(frame[known])
    columns = Columns(frame)
    module = convert(step, None, columns=columns)
    rows = columns.encode(frame)[known]
    assert_allclose(module(torch.tensor(rows)), asked(step, columns.frame(rows)), atol=1e-9)


def joined(frame):
    same = frame["purpose"].str.len() * (frame["housing"].astype(str) == "own")
    return same.to_frame().to_numpy()


def test_columns_that_cannot_be_taken_apart(loans):
    frame = loans[0]
    step = ColumnTransformer(
        [
            ("both", FunctionTransformer(joined), ["purpose", "housing"]),
            ("a", StandardScaler(), ["age"]),
        ]
    ).fit(frame)
    with pytest.raises(NoGradientError, match="PGD follows gradients and FunctionTransformer has"):
        convert(step, "PGD", columns=Columns(frame))
    step = ColumnTransformer([("a", "passthrough", ["age", "purpose"])]).fit(frame)
    with pytest.raises(NoGradientError, match="PGD follows gradients and FunctionTransformer has"):
        convert(step, "PGD", columns=Columns(frame))
    with pytest.raises(
        NoGradientError, match="what is made of strings in column 'housing' has none"
    ):
        convert(
            LogisticRegression().fit(np.eye(6), [0, 1, 0, 1, 0, 1]), "PGD", columns=Columns(frame)
        )


def test_no_column_has_a_gradient(loans):
    frame, _, y = loans
    strings = frame[["purpose", "housing"]]
    model = make_pipeline(OneHotEncoder(), LogisticRegression()).fit(strings, y)
    with pytest.raises(NoGradientError, match="PGD follows gradients and OneHotEncoder has none"):
        as_victim(model, attack="PGD", columns=Columns(strings))


def pipeline_of(last):
    numbers = make_pipeline(SimpleImputer(), StandardScaler())
    codes = OneHotEncoder(handle_unknown="ignore")
    columns = ColumnTransformer(
        [("codes", codes, ["purpose", "housing", "married"]), ("numbers", numbers, NUMBERS)]
    )
    return make_pipeline(columns, last)


MODELS = {
    "pipeline": pipeline_of(LogisticRegression()),
    "calibrated inside": pipeline_of(CalibratedClassifierCV(LogisticRegression(), cv=2)),
    "calibrated outside": CalibratedClassifierCV(pipeline_of(LogisticRegression()), cv=2),
    "vote": VotingClassifier(
        [("a", pipeline_of(LogisticRegression())), ("b", pipeline_of(GaussianNB()))],
        voting="soft",
        weights=[2, 1],
    ),
    "equal vote": VotingClassifier(
        [("a", pipeline_of(LogisticRegression())), ("b", pipeline_of(GaussianNB()))], voting="soft"
    ),
    "stack": StackingClassifier(
        [("a", pipeline_of(LogisticRegression())), ("b", pipeline_of(GaussianNB()))], cv=2
    ),
    "nested": Pipeline(
        [("in", Pipeline(pipeline_of(StandardScaler()).steps)), ("m", GaussianNB())]
    ),
}


@pytest.mark.dealt
@pytest.mark.parametrize("name", MODELS)
def test_victims_of_tables(name, loans):
    _, gaps, y = loans
    model = copy.deepcopy(MODELS[name])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name == "nested":
            model.set_params(**{"in__columntransformer__codes__sparse_output": False})
        model.fit(gaps, y)
    columns = Columns(gaps)
    victim = as_victim(model, attack="PGD", columns=columns)
    X = columns.encode(gaps)
    found = torch.softmax(victim.logits(X), 1)
    assert_allclose(found, model.predict_proba(gaps), rtol=1e-9, atol=1e-9)
    x = torch.tensor(X, requires_grad=True)
    with victim.frozen() as seen:
        (gradient,) = torch.autograd.grad(seen(x)[:, 1].sum(), x)
    assert gradient.isfinite().all()
    assert gradient[:, columns.names.index("age")].any()
    assert not gradient[:, columns.coded].any()
    assert not gradient[torch.tensor(columns.fills == X)].any()


def test_straight_through_a_step_of_a_table(loans):
    frame, _, y = loans
    some = frame[["purpose", "age"]]
    function = FunctionTransformer(lambda f: np.c_[f["purpose"].str.len() * f["age"], f["age"]])
    model = make_pipeline(function, StandardScaler(), LogisticRegression()).fit(some, y)
    columns = Columns(some)
    victim = as_victim(model, attack="BPDA", access="straight-through", columns=columns)
    found = victim.logits(columns.encode(some))
    assert_allclose(found[:, 1] - found[:, 0], model.decision_function(some), rtol=1e-9)


class Wrong(StandardScaler):
    pass


@pytest.mark.parametrize("kind", ["numbers", "table"])
def test_a_part_that_does_something_else_is_found_out(kind, loans):
    frame, _, y = loans
    groups = [("a", Wrong(), NUMBERS), ("b", OneHotEncoder(), ["purpose"])]
    frame = frame[NUMBERS] if kind == "numbers" else frame
    step = ColumnTransformer(groups[:1] if kind == "numbers" else groups)
    model = make_pipeline(step, LogisticRegression()).fit(frame, y)
    attack = PGD(eps=0.1, n_steps=2, random_state=0)
    register_converter(Wrong, lambda fitted: to_module.dispatch(StandardScaler)(fitted))
    assert score_adversarial(model, frame, y, attack) <= model.score(frame, y)
    register_converter(Wrong, lambda fitted: torch.nn.Identity())
    with pytest.raises(ValueError, match="`predict` of Pipeline contradicts"):
        score_adversarial(model, frame, y, attack)


@pytest.mark.parametrize("container", ["pandas", "polars"])
def test_attack_on_a_table(container, loans):
    gaps, y = loans[0][["rooms", "purpose", "age", "income"]], loans[2]
    codes = OneHotEncoder(handle_unknown="ignore")
    columns = ColumnTransformer([("c", codes, ["purpose"]), ("n", StandardScaler(), NUMBERS)])
    eps = {name: 0.0 if name == "purpose" else 0.5 * gaps[name].std() for name in gaps}
    if container == "polars":
        polars = pytest.importorskip("polars")
        gaps = polars.DataFrame({name: gaps[name].to_list() for name in gaps})
    model = make_pipeline(columns, LogisticRegression()).fit(gaps, y)
    attack = PGD(eps=eps, random_state=0)
    assert score_adversarial(model, gaps, y, attack) < model.score(gaps, y) - 0.1


class Shift(StandardScaler):
    pass


def test_a_converter_of_ones_own_wins(loans):
    frame = loans[0]
    step = ColumnTransformer([("a", Shift(), ["age"]), ("b", OneHotEncoder(), ["purpose"])])
    step.fit(frame)
    called = []

    def build(fitted):
        called.append(fitted)
        return torch.nn.Identity()

    register_converter(Shift, build)
    module = convert(step, None, columns=Columns(frame))
    assert called == [step.named_transformers_["a"]]
    rows = torch.tensor(Columns(frame).encode(frame))
    assert_array_equal(module(rows)[:, 0], frame["age"])
    assert to_module.dispatch(Shift) is build
