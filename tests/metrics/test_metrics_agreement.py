"""score_adversarial promises to be what one gets by doing the same by hand."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, load_iris
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.metrics import accuracy_score
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.svm import LinearSVC
from skorch import NeuralNetClassifier
from torch import nn

from robustsk import BIM, FGSM, MIM, PGD, StandardClassifier, score_adversarial
from robustsk.attacks import as_victim
from robustsk.metrics import adversarial_outcome, robust_accuracy


def iris():
    X, y = load_iris(return_X_y=True)
    return X.astype(np.float32), y


def mlp(n_in=4, n_out=3, hidden=16):
    return nn.Sequential(nn.Linear(n_in, hidden), nn.ReLU(), nn.Linear(hidden, n_out))


def trained_module():
    X, y = iris()
    torch.manual_seed(0)
    module = mlp()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    for _ in range(100):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(module(torch.from_numpy(X)), torch.from_numpy(y))
        loss.backward()
        optimizer.step()
    return module


def skorch_logits():
    X, y = iris()
    torch.manual_seed(0)
    net = NeuralNetClassifier(
        mlp(),
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        iterator_train__shuffle=True,
        max_epochs=30,
        lr=0.02,
        verbose=0,
        train_split=None,
    )
    return net.fit(X, y)


def skorch_probabilities():
    X, y = iris()
    torch.manual_seed(0)
    net = NeuralNetClassifier(
        nn.Sequential(*mlp(), nn.Softmax(dim=1)),
        optimizer=torch.optim.Adam,
        iterator_train__shuffle=True,
        max_epochs=30,
        lr=0.02,
        verbose=0,
        train_split=None,
    )
    return net.fit(X, y)


def ours():
    return StandardClassifier(max_epochs=20, random_state=0, device="cpu").fit(*iris())


MODELS = {
    "module": trained_module,
    "skorch-logits": skorch_logits,
    "skorch-nll": skorch_probabilities,
    "robustsk": ours,
    "logistic": lambda: LogisticRegression(max_iter=1000).fit(*iris()),
    "ridge": lambda: RidgeClassifier().fit(*iris()),
    "lda": lambda: LinearDiscriminantAnalysis().fit(*iris()),
    "svm-pipeline": lambda: make_pipeline(StandardScaler(), LinearSVC(random_state=0)).fit(*iris()),
    "mlp-pipeline": lambda: make_pipeline(
        MinMaxScaler(), MLPClassifier((12,), max_iter=300, random_state=0, solver="lbfgs")
    ).fit(*iris()),
    "frozen": lambda: FrozenEstimator(LogisticRegression(max_iter=1000).fit(*iris())),
    "search": lambda: GridSearchCV(LogisticRegression(max_iter=1000), {"C": [0.1, 1.0]}, cv=3).fit(
        *iris()
    ),
}

ATTACKS = {
    "fgsm": lambda m, **kw: FGSM(m, **kw),
    "fgsm-random": lambda m, **kw: FGSM(m, random_start="uniform", random_state=0, **kw),
    "bim": lambda m, **kw: BIM(m, n_steps=5, **kw),
    "mim": lambda m, **kw: MIM(m, n_steps=5, **kw),
    "pgd": lambda m, **kw: PGD(m, n_steps=5, n_restarts=2, random_state=0, **kw),
    "pgd-cw": lambda m, **kw: PGD(m, n_steps=5, objective="cw", random_state=0, **kw),
}


@pytest.fixture(scope="module")
def models():
    fitted = {}

    def get(name):
        if name not in fitted:
            fitted[name] = MODELS[name]()
        return fitted[name]

    return get


def predict(model, X):
    if not isinstance(model, nn.Module):
        return model.predict(X)
    with torch.no_grad():
        return model.eval()(torch.as_tensor(X, dtype=torch.float32)).argmax(1).numpy()


def each_model_and_attack():
    """Return all pairs; slow where it is neither the module nor the usual attack."""
    return [
        pytest.param(
            model,
            attack,
            id=f"{model}-{attack}",
            marks=() if model == "module" or attack == "pgd" else pytest.mark.slow,
        )
        for model in MODELS
        for attack in ATTACKS
    ]


@pytest.mark.dealt
@pytest.mark.parametrize("threat", [("linf", 0.3), ("l2", 0.5), ("l1", 0.8)], ids=lambda t: t[0])
@pytest.mark.parametrize(("model", "attack"), each_model_and_attack())
def test_equals_accuracy_on_what_the_attack_generates(models, model, attack, threat):
    X, y = iris()
    model = models(model)
    norm, eps = threat
    attack = ATTACKS[attack](model, norm=norm, eps=eps)
    X_adv = attack.fit(X).generate(X, y)
    expected = accuracy_score(y, predict(model, X_adv))
    assert expected < accuracy_score(y, predict(model, X))
    assert score_adversarial(model, X, y, attack) == expected


@pytest.mark.parametrize("name", ["robustsk", "logistic", "module"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equals_with_explicit_clip_and_unfitted_attack(models, name, dtype):
    X, y = iris()
    X = X.astype(dtype)
    model = models(name)
    attack = PGD(model, eps=0.4, clip=(0, 8), n_steps=5, random_state=3)
    expected = accuracy_score(y, predict(model, attack.generate(X, y)))
    assert score_adversarial(model, X, y, attack) == expected


@pytest.mark.dealt
@pytest.mark.parametrize("batch_size", [1, 7, 256])
def test_equals_on_digits_whatever_the_batch_size(batch_size):
    X, y = load_digits(return_X_y=True)
    clf = make_pipeline(MinMaxScaler(), LogisticRegression(max_iter=200)).fit(X[:600], y[:600])
    X, y = X[600:700], y[600:700]
    attack = PGD(clf, eps=2.0, clip=(0, 16), n_steps=5, random_state=0, batch_size=batch_size)
    expected = accuracy_score(y, clf.predict(attack.generate(X, y)))
    assert 0 < expected < clf.score(X, y)
    assert score_adversarial(clf, X, y, attack) == expected


@pytest.mark.dealt
@pytest.mark.parametrize("name", MODELS)
def test_eps_zero_is_clean_accuracy(models, name):
    X, y = iris()
    model = models(name)
    for norm in ("linf", "l2", "l1"):
        attack = PGD(eps=0.0, norm=norm, n_steps=2, random_state=0)
        assert score_adversarial(model, X, y, attack) == accuracy_score(y, predict(model, X))


@pytest.mark.dealt
@pytest.mark.parametrize("name", MODELS)
def test_everything_tells_the_same_story(models, name):
    X, y = iris()
    model = models(name)
    attack = PGD(eps=0.3, n_steps=5, random_state=0)
    outcome = adversarial_outcome(model, X, y, attack)
    assert outcome.y_pred.shape == outcome.y_pred_adv.shape == y.shape
    assert outcome.X_adv.shape == X.shape
    assert outcome.X_adv.dtype == X.dtype
    np.testing.assert_array_equal(outcome.y_pred, predict(model, X))
    np.testing.assert_array_equal(outcome.y_pred_adv, predict(model, outcome.X_adv))
    score = score_adversarial(model, X, y, attack)
    assert type(score) is float
    assert score == outcome.robust.mean() == robust_accuracy(model, X, y, attack).accuracy


def test_robustsk_method_is_the_function(models):
    X, y = iris()
    clf = models("robustsk")
    attack = PGD(eps=0.3, n_steps=5, random_state=0)
    assert clf.score_adversarial(X, y, attack) == score_adversarial(clf, X, y, attack)
    default = clf.default_attack()
    assert clf.score_adversarial(X, y) == score_adversarial(clf, X, y, default)


def test_module_comes_back_as_it_was():
    X, y = iris()
    module = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    module.train()
    module[0].weight.requires_grad_(False)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    score_adversarial(module, X, y, PGD(eps=0.3, n_steps=3, random_state=0))
    assert all(m.training for m in module.modules())
    assert not module[0].weight.requires_grad
    assert module[3].weight.requires_grad
    assert all(p.grad is None for p in module.parameters())
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


def test_neither_input_nor_global_randomness_is_touched(models):
    X, y = iris()
    before = X.copy()
    attack = PGD(eps=0.3, n_steps=3, random_state=0)
    params = attack.get_params()
    module = models("module")  # before the state is taken: it may be trained here
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    state, np_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = score_adversarial(module, X, y, attack)
    np.testing.assert_array_equal(X, before)
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(np.random.get_state()[1], np_state)  # noqa: NPY002
    torch.manual_seed(2)
    assert score_adversarial(module, X, y, attack) == first
    assert attack.get_params() == params
    assert not hasattr(attack, "clip_bounds_")


def test_estimator_inside_the_attack_plays_no_part(models):
    X, y = iris()
    clf = models("logistic")
    other = LogisticRegression(C=1e-4).fit(X, y)
    attack = PGD(eps=0.3, n_steps=5, random_state=0)
    assert score_adversarial(clf, X, y, attack) == score_adversarial(
        clf, X, y, attack.set_params(estimator=other)
    )


def test_valid_range_of_the_training_data_counts():
    X, y = iris()
    clf = StandardClassifier(max_epochs=10, random_state=0, device="cpu").fit(X[::2], y[::2])
    bounds = as_victim(clf).bounds
    outcome = adversarial_outcome(clf, X[1::2], y[1::2], PGD(eps=5.0, n_steps=3, random_state=0))
    moved = np.any(outcome.X_adv != X[1::2], axis=1)
    low = np.minimum(bounds[0], X[1::2][moved])
    high = np.maximum(bounds[1], X[1::2][moved])
    assert moved.any()
    assert (outcome.X_adv[moved] >= low).all()
    assert (outcome.X_adv[moved] <= high).all()


def test_range_that_the_attack_was_fitted_on_counts_for_other_models(models):
    X, y = iris()
    clf = models("logistic")
    attack = PGD(clf, eps=50.0, n_steps=3, random_state=0)
    wide = attack.fit(np.concatenate([X - 20, X + 20]).astype(np.float32))
    outcome = adversarial_outcome(clf, X, y, wide)
    assert outcome.X_adv.max() > X.max() + 5
    narrow = adversarial_outcome(clf, X, y, PGD(eps=50.0, n_steps=3, random_state=0))
    assert (narrow.X_adv >= X.min(axis=0)).all()
    assert (narrow.X_adv <= X.max(axis=0)).all()


@pytest.mark.parametrize("name", ["robustsk", "logistic", "module"])
def test_equals_where_the_attack_was_fitted_on_a_wider_range(models, name):
    X, y = iris()
    model = models(name)
    wide = np.concatenate([X - 3, X + 3]).astype(np.float32)
    attack = PGD(model, eps=[4.0, 0.5, 0.2, 0.1], n_steps=5, random_state=0).fit(wide)
    X_adv = attack.generate(X, y)
    outcome = adversarial_outcome(model, X, y, attack)
    expected = accuracy_score(y, predict(model, X_adv))
    assert outcome.X_adv.max() == pytest.approx(X_adv.max(), abs=0.5)
    assert score_adversarial(model, X, y, attack) == expected
