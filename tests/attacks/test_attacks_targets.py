import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, RidgeClassifier, SGDClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    KBinsDiscretizer,
    MaxAbsScaler,
    MinMaxScaler,
    Normalizer,
    RobustScaler,
    StandardScaler,
)
from sklearn.svm import SVC, LinearSVC
from skorch import NeuralNetBinaryClassifier, NeuralNetClassifier
from torch import nn

from robustsk import StandardClassifier
from robustsk.attacks import FGSM, NoGradientError, Victim, as_victim, register_converter
from robustsk.victims._outputs import two_logits
from robustsk.victims.converters import to_module

NAMES = np.array(["zebra", "ant", "fox"])


def logits(model, X):
    victim = as_victim(model)
    with victim.frozen() as seen, torch.no_grad():
        return seen(torch.as_tensor(X).to(victim.dtype)).double().numpy()


def assert_gradients(model, X):
    """Compare the gradients of a float64 victim with finite differences."""
    victim = as_victim(model)
    assert victim.dtype == torch.float64
    x = torch.tensor(np.asarray(X, dtype=np.float64), requires_grad=True)
    with victim.frozen() as seen:
        assert torch.autograd.gradcheck(seen, (x,), eps=1e-6, atol=1e-5)
        (gradient,) = torch.autograd.grad(seen(x)[:, -1].sum(), x)
    assert gradient.abs().max() > 0


def assert_predicts(model, X):
    """Compare the logits of the victim with what the estimator says itself."""
    victim, found = as_victim(model), logits(model, X)
    assert found.shape == (len(X), len(model.classes_))
    assert_array_equal(victim.classes, model.classes_)
    assert_array_equal(model.classes_[found.argmax(1)], model.predict(X))
    if hasattr(model, "decision_function"):
        values = model.decision_function(X)
        ours = found[:, 1] - found[:, 0] if values.ndim == 1 else found
        assert_allclose(ours, values, rtol=1e-9, atol=1e-10)


@pytest.fixture(params=[2, 3], ids=["binary", "multiclass"])
def labelled(request, table):
    rows = table.y < request.param
    return table.X[rows], table.y[rows]


def quiet_fit(model, X, y):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.fit(X, y)


CLASSIFIERS = [
    LogisticRegression(),
    LogisticRegression(fit_intercept=False),
    LinearSVC(random_state=0),
    LinearSVC(fit_intercept=False, random_state=0),
    SGDClassifier(random_state=0),
    SGDClassifier(loss="log_loss", random_state=0),
    RidgeClassifier(),
    RidgeClassifier(fit_intercept=False),
    LinearDiscriminantAnalysis(),
    LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"),
    *(
        MLPClassifier((7, 5), activation=activation, max_iter=40, random_state=0)
        for activation in ("identity", "logistic", "tanh", "relu")
    ),
    MLPClassifier((), max_iter=40, random_state=0),
]


@pytest.mark.dealt
@pytest.mark.parametrize("strings", [False, True], ids=["integers", "strings"])
@pytest.mark.parametrize("classifier", CLASSIFIERS, ids=repr)
def test_classifiers(classifier, strings, labelled):
    X, y = labelled
    model = quiet_fit(classifier, X, NAMES[y] if strings else y + 5)
    assert_predicts(model, X)
    assert_gradients(model, X[:3])


def test_probabilities_agree(labelled):
    X, y = labelled
    for model in (LogisticRegression(), MLPClassifier((6,), max_iter=30, random_state=0)):
        quiet_fit(model, X, y)
        found = torch.softmax(torch.tensor(logits(model, X)), 1)
        assert_allclose(found, model.predict_proba(X), atol=1e-10)


def test_float32_network_of_scikit_learn(labelled):
    X, y = labelled
    model = quiet_fit(MLPClassifier((6,), max_iter=30, random_state=0), X.astype(np.float32), y)
    assert_array_equal(model.classes_[logits(model, X).argmax(1)], model.predict(X))


def test_sparsified_linear_model(labelled):
    X, y = labelled
    model = LogisticRegression().fit(X, y)
    expected = logits(model, X)
    assert_allclose(logits(model.sparsify(), X), expected)


TRANSFORMERS = [
    StandardScaler(),
    StandardScaler(with_mean=False),
    StandardScaler(with_std=False),
    StandardScaler(with_mean=False, with_std=False),
    MinMaxScaler(),
    MinMaxScaler((-3, 5)),
    MinMaxScaler(clip=True),
    MinMaxScaler((-1, 1), clip=True),
    MaxAbsScaler(),
    *([MaxAbsScaler(clip=True)] if "clip" in MaxAbsScaler().get_params() else []),
    RobustScaler(),
    RobustScaler(with_centering=False),
    RobustScaler(with_scaling=False),
    RobustScaler(with_centering=False, with_scaling=False),
    RobustScaler(quantile_range=(10, 80), unit_variance=True),
    Normalizer("l1"),
    Normalizer("l2"),
    Normalizer("max"),
    PCA(4),
    PCA(4, whiten=True),
    PCA(svd_solver="covariance_eigh"),
    FunctionTransformer(None),
]


@pytest.mark.parametrize("transformer", TRANSFORMERS, ids=repr)
def test_transformers(transformer, table):
    X = 10 * table.X + np.arange(6)
    X[:, 3] = np.abs(X[:, 3])
    transformer = transformer.fit(X[:60])  # the rest goes beyond what has been seen
    X[7] = 0.0
    beyond = np.vstack([X, 3 * X])
    found = to_module(transformer).double()(torch.tensor(beyond)).numpy()
    assert_allclose(found, transformer.transform(beyond), rtol=1e-10, atol=1e-10)
    model = make_pipeline(transformer, LogisticRegression(max_iter=200))
    quiet_fit(model, X, table.y)
    assert_predicts(model, X)
    # the zero row is left out: row norms have a kink there
    assert_gradients(model, X[[0, 1, 8]] + 0.01)


@pytest.mark.parametrize("scaler", [MinMaxScaler, MaxAbsScaler])
def test_gradients_pass_at_the_end_of_the_range(scaler, table):
    if "clip" not in scaler().get_params():
        pytest.skip("scikit-learn's scaler has no clip")
    models = [
        make_pipeline(scaler(clip=clip), LogisticRegression()).fit(table.X, table.y)
        for clip in (False, True)
    ]
    extremes = np.vstack([table.X.min(axis=0), table.X.max(axis=0)])
    gradients = []
    for model in models:
        x = torch.tensor(extremes, requires_grad=True)
        gradients.append(torch.autograd.grad(as_victim(model)(x)[:, 0].sum(), x)[0])
    assert gradients[0].abs().min() > 0
    if scaler is MinMaxScaler:
        assert_allclose(gradients[1], gradients[0])
    else:  # zero is the middle of its range
        assert ((gradients[1] == gradients[0]).sum(0) >= 1).all()


@pytest.mark.parametrize("norm", ["l1", "l2", "max"])
def test_normalizer_of_rows_next_to_nothing(norm):
    X = np.array([[1e-17, -2e-17], [0.0, 0.0], [3.0, 4.0]])
    transformer = Normalizer(norm).fit(X)
    found = to_module(transformer).double()(torch.tensor(X))
    assert_allclose(found, transformer.transform(X), rtol=1e-10)


def test_constant_and_passthrough_steps(table):
    X = np.column_stack([table.X, np.full(len(table.X), 3.0)])
    for scaler in (StandardScaler(), MinMaxScaler(), RobustScaler(), MaxAbsScaler()):
        steps = [("none", None), ("same", "passthrough"), ("scale", scaler)]
        model = Pipeline([*steps, ("model", LogisticRegression())]).fit(X, table.y)
        assert_predicts(model, X)
        assert_gradients(model, X[:3])


def test_long_and_nested_pipelines(table):
    inner = make_pipeline(PCA(5), LogisticRegression())
    model = make_pipeline(StandardScaler(), FrozenEstimator(RobustScaler().fit(table.X)), inner)
    model.fit(table.X, table.y)
    assert_predicts(model, table.X)
    assert_gradients(model, table.X[:3])


def test_pipeline_of_preprocessing_steps_inside_of_a_pipeline(table):
    model = make_pipeline(make_pipeline(StandardScaler(), PCA(4)), LogisticRegression())
    model.fit(table.X, table.y)
    assert_predicts(model, table.X)


def test_scaler_without_a_frame_and_victim_with_names(table):
    import pandas as pd

    frame = pd.DataFrame(table.X, columns=list("abcdef"))
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(frame, table.y)
    found = logits(model, table.X)
    assert_allclose(found, model.decision_function(frame))


# --- torch ----------------------------------------------------------------------------


class OneLogit(nn.Module):
    def __init__(self, flat):
        super().__init__()
        self.linear, self.flat = nn.Linear(6, 1), flat

    def forward(self, x):
        out = self.linear(x)
        return out[:, 0] if self.flat else out


class Several(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.linear, self.kind = nn.Linear(6, 3), kind

    def forward(self, x):
        return self.kind([self.linear(x), x.sum(), None])


def test_two_logits():
    out = torch.tensor([0.5, -2.0])
    expected = [[0, 0.5], [0, -2]]
    for given in (out, out[:, None], (out, "more"), [out[:, None]]):
        assert_array_equal(two_logits(given), expected)
    three = torch.eye(3)
    assert two_logits(three) is three


@pytest.mark.parametrize("flat", [True, False])
def test_module_with_one_logit(flat):
    module, X = OneLogit(flat), torch.ones(4, 6)
    found = as_victim(module)(X)
    assert found.shape == (4, 2)
    assert_array_equal(found[:, 0].detach(), np.zeros(4))
    assert_array_equal(found[:, 1].detach(), module(X).detach().reshape(-1))


@pytest.mark.parametrize("kind", [tuple, list])
def test_module_with_several_outputs(kind):
    module, X = Several(kind), torch.ones(4, 6)
    assert torch.equal(as_victim(module)(X), module.linear(X))


def test_module_that_returns_no_logits():
    with pytest.raises(
        ValueError, match=r"shape \(n_samples, n_classes\) and returned \(4, 2, 3\)"
    ):
        as_victim(nn.Unflatten(1, (2, 3)))(torch.ones(4, 6))
    with pytest.raises(ValueError, match=r"Flatten must return logits"):
        as_victim(nn.Flatten(0))(torch.ones(4, 6))


def test_module_with_one_logit_is_attacked():
    module = OneLogit(True)
    X = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    y = (module(torch.tensor(X)) > 0).long().numpy()
    X_adv = FGSM(module, eps=3.0, clip=None).generate(X, y)
    assert_array_equal((module(torch.tensor(X_adv)) > 0).long().numpy(), 1 - y)


def test_precision_of_a_module():
    for dtype in (torch.float32, torch.float64):
        assert as_victim(nn.Linear(3, 2).to(dtype)).dtype == dtype
    assert as_victim(nn.Identity()).dtype == torch.float32
    module = nn.Linear(6, 3).double()
    X = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    assert FGSM(module, eps=0.1, clip=None).generate(X).dtype == np.float32
    assert_gradients(module, X)


def test_module_is_its_own_victim():
    module = nn.Linear(3, 2)
    victim = as_victim(module)
    assert victim.module is module
    assert victim.classes is None
    assert victim.name == "Linear"
    assert as_victim(victim) is victim


def test_moving_leaves_the_original_where_it_is():
    module = nn.Linear(3, 2)
    victim = Victim(module, classes=["a", "b"])
    assert victim.to(None) is victim
    assert victim.to("cpu") is victim
    moved = victim.to("meta")
    assert moved.device.type == "meta"
    assert moved.module is not module
    assert next(module.parameters()).device.type == "cpu"
    assert victim.device.type == "cpu"
    assert_array_equal(moved.classes, ["a", "b"])
    assert as_victim(nn.Identity()).device.type == "cpu"


def test_attack_mode_is_that_of_a_replica():
    module = nn.Sequential(nn.Linear(3, 3), nn.Dropout()).train()
    victim = as_victim(module)
    with victim.frozen() as seen, seen.frozen("train") as again:
        assert again is seen
        assert not any(m.training for m in seen.module.modules())
        assert not any(p.requires_grad for p in seen.module.parameters())
        assert seen.module[0].weight.data_ptr() == module[0].weight.data_ptr()
        assert all(m.training for m in module.modules())
        assert all(p.requires_grad for p in module.parameters())
        first = seen.module
    with victim.frozen() as seen, victim.frozen() as other:
        assert seen.module is first
        assert other.module is not first


# --- skorch and our own ---------------------------------------------------------------


def fit_skorch(cls, module, X, y, **parameters):
    net = cls(module, max_epochs=8, lr=0.1, train_split=None, verbose=0, **parameters)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return net.fit(X.astype(np.float32), y)


def net_of(*last):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), *last)
        for layer in net:  # those in `last` were made before the seed was set
            if hasattr(layer, "reset_parameters"):
                layer.reset_parameters()
        return net


def test_skorch_with_logits(table):
    net = fit_skorch(
        NeuralNetClassifier,
        net_of(nn.Linear(8, 3)),
        table.X,
        table.y,
        criterion=nn.CrossEntropyLoss,
    )
    X = table.X.astype(np.float32)
    assert_allclose(logits(net, X), net.forward(X), atol=1e-6)
    assert_array_equal(logits(net, X).argmax(1), net.predict(X))
    assert_array_equal(as_victim(net).classes, [0, 1, 2])


def test_skorch_with_probabilities(table):
    module = net_of(nn.Linear(8, 3), nn.Softmax(1))
    net = fit_skorch(NeuralNetClassifier, module, table.X, table.y)
    X = table.X.astype(np.float32)
    assert_allclose(logits(net, X), np.log(net.predict_proba(X)), atol=1e-4)
    assert_array_equal(logits(net, X).argmax(1), net.predict(X))
    victim = as_victim(net)
    # cross-entropy of what the attack sees is the loss that the net is trained on
    loss = nn.functional.cross_entropy(victim(torch.tensor(X)), torch.tensor(table.y))
    assert_allclose(
        loss.item(), -np.log(net.predict_proba(X)[range(150), table.y]).mean(), rtol=1e-4
    )


def test_skorch_binary(table):
    rows = table.y < 2
    X, y = table.X[rows].astype(np.float32), table.y[rows]
    net = fit_skorch(NeuralNetBinaryClassifier, net_of(nn.Linear(8, 1)), X, y.astype(np.float32))
    found = logits(net, X)
    assert_array_equal(found.argmax(1), net.predict(X))
    assert_allclose(1 / (1 + np.exp(-found[:, 1])), net.predict_proba(X)[:, 1], atol=1e-5)
    X_adv = FGSM(net, eps=3.0, clip=None).generate(X, y)
    assert (net.predict(X_adv) == y).mean() < 0.3


def test_skorch_that_is_not_fitted():
    for cls in (NeuralNetClassifier, NeuralNetBinaryClassifier):
        with pytest.raises(NotFittedError, match="FrozenEstimator"):
            as_victim(cls(net_of(nn.Linear(8, 3))))


@pytest.fixture(scope="module")
def ours(_table):
    return StandardClassifier(max_epochs=8, random_state=0).fit(_table.X, NAMES[_table.y])


def test_our_own_estimator(ours, table):
    assert_array_equal(ours.classes_[logits(ours, table.X).argmax(1)], ours.predict(table.X))
    victim = as_victim(ours)
    assert_allclose(victim.bounds[0], table.X.min(0))
    assert_allclose(victim.bounds[1], table.X.max(0))
    X_adv = FGSM(ours, eps=50.0).transform(table.X)  # needs no fit: the range is known
    assert np.all(X_adv >= table.X.min(0))
    assert np.all(X_adv <= table.X.max(0))


def test_our_own_estimator_that_is_not_fitted():
    with pytest.raises(NotFittedError):
        as_victim(StandardClassifier())


def test_pipeline_that_ends_in_torch_is_attacked_in_raw_units(table):
    X = 50 * table.X + 1000
    model = make_pipeline(StandardScaler(), StandardClassifier(max_epochs=8, random_state=0))
    model.fit(X, NAMES[table.y])
    before = {k: v.clone() for k, v in model[-1].module_.state_dict().items()}
    victim = as_victim(model)
    assert victim.dtype == torch.float64
    assert_array_equal(model.classes_[logits(model, X).argmax(1)], model.predict(X))
    weak, strong = (FGSM(model, eps=e).fit(X).generate(X, NAMES[table.y]) for e in (0.5, 50.0))
    assert np.abs(weak - X).max() <= 0.5
    assert np.abs(strong - X).max() > 49
    clean, hurt = model.score(X, NAMES[table.y]), model.score(strong, NAMES[table.y])
    assert model.score(weak, NAMES[table.y]) > clean - 0.1
    assert hurt < clean - 0.3
    for name, value in model[-1].module_.state_dict().items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name])


# --- wrappers -------------------------------------------------------------------------


def test_frozen_estimator_and_search(table):
    search = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression()), {"logisticregression__C": [0.1, 1]}
    ).fit(table.X, table.y)
    expected = search.decision_function(table.X)
    for model in (search, FrozenEstimator(search), FrozenEstimator(search.best_estimator_)):
        assert_allclose(logits(model, table.X), expected, atol=1e-10)
    with pytest.raises(NotFittedError, match="FrozenEstimator"):
        as_victim(GridSearchCV(LogisticRegression(), {"C": [1]}))
    with pytest.raises(NotFittedError, match="FrozenEstimator"):
        as_victim(FrozenEstimator(LogisticRegression()))


def test_search_that_does_not_refit(table):
    search = GridSearchCV(LogisticRegression(), {"C": [1, 2]}, refit=False).fit(table.X, table.y)
    with pytest.raises((NotFittedError, ValueError, TypeError), match="refit"):
        as_victim(search)


@pytest.mark.parametrize(
    "build",
    [
        lambda: RandomForestClassifier(3),
        lambda: SVC(kernel=lambda a, b: a @ b.T),
        lambda: make_pipeline(KBinsDiscretizer(4, strategy="uniform"), LogisticRegression()),
        lambda: make_pipeline(FunctionTransformer(np.round), LogisticRegression()),
        lambda: GridSearchCV(RandomForestClassifier(3), {"max_depth": [2]}, cv=2),
    ],
    ids=["forest", "kernel", "bins", "function", "search"],
)
def test_models_without_gradients(build, table):
    model = build().fit(table.X, table.y)
    with pytest.raises(NoGradientError, match=r"Fancy follows gradients and \w+.* has none"):
        as_victim(model, attack="Fancy")


def test_multilabel_network_is_refused(table):
    y = np.column_stack([table.y == 0, table.y > 0, table.X[:, 0] > 0]).astype(int)
    model = quiet_fit(MLPClassifier((4,), max_iter=20, random_state=0), table.X, y)
    with pytest.raises(ValueError, match="multilabel"):
        as_victim(model)


# --- converters of one's own ----------------------------------------------------------


class Cube(TransformerMixin, BaseEstimator):
    def fit(self, X, y=None):
        self.n_features_in_ = X.shape[1]
        return self

    def transform(self, X):
        return X**3


class TorchCube(nn.Module):
    def forward(self, x):
        return x**3


class Mine(LogisticRegression):
    """A subclass inherits the converter of its base."""


class Centroids(BaseEstimator):
    def fit(self, X, y):
        self.classes_ = np.unique(y)
        self.centres_ = np.stack([X[y == c].mean(0) for c in self.classes_])
        return self

    def predict(self, X):
        return self.classes_[((X[:, None] - self.centres_) ** 2).sum(2).argmin(1)]


class TorchCentroids(nn.Module):
    def __init__(self, centres):
        super().__init__()
        self.register_buffer("centres", torch.tensor(centres))

    def forward(self, x):
        return -((x[:, None] - self.centres) ** 2).sum(2)


def test_register_converter(table):
    model = make_pipeline(Cube(), LogisticRegression(max_iter=500)).fit(table.X, table.y)
    fresh = type("Unknown", (TransformerMixin, BaseEstimator), dict(vars(Cube)))
    with pytest.raises(NoGradientError, match="register_converter"):
        as_victim(make_pipeline(fresh(), LogisticRegression(max_iter=500)).fit(table.X, table.y))
    register_converter(Cube, lambda fitted: TorchCube())
    assert_predicts(model, table.X)
    assert_gradients(model, table.X[:3])


def test_register_converter_as_a_decorator(table):
    @register_converter(Centroids)
    def convert(fitted):
        return TorchCentroids(fitted.centres_)

    model = Centroids().fit(table.X, NAMES[table.y])
    assert_predicts(model, table.X)
    assert_gradients(model, table.X[:3])
    X_adv = FGSM(model, eps=1.0, clip=None).generate(table.X, NAMES[table.y])
    before, after = (np.mean(model.predict(Z) == NAMES[table.y]) for Z in (table.X, X_adv))
    assert after < before - 0.3


def test_subclass_inherits_its_converter(table):
    assert_predicts(Mine().fit(table.X, table.y), table.X)
