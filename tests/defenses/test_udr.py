"""Defences with a soft ball and with a penalty: limit cases, losses, the dual variable."""

import pickle

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.model_selection import GridSearchCV

from robustsk import (
    PGD,
    MARTClassifier,
    MixedATClassifier,
    PGDATClassifier,
    StandardClassifier,
    TRADESClassifier,
    UDRAWPClassifier,
    UDRMARTClassifier,
    UDRPGDClassifier,
    UDRTRADESClassifier,
    WRMClassifier,
)
from robustsk.datasets import load_digits_images
from robustsk.metrics import adversary_profile
from robustsk.training import AWP, EpsWarmup, UDRAdversary, WRMAdversary

EPS = 0.3


def weights(clf):
    return np.concatenate([p.detach().numpy().ravel() for p in clf.module_.parameters()])


def soft(**params):
    """Return an adversary that leaves the ball and learns in every batch."""
    return UDRAdversary(**{"eps": EPS, "n_steps": 3, "lambda_period": 1, **params})


def hard(**params):
    return UDRAdversary(eps=EPS, n_steps=3, lambda_lr=0, **params)


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits_images(return_X_y=True)
    return X.reshape(len(X), -1)[:800], y[:800]


# --- limit cases ---------------------------------------------------------------------


@pytest.mark.dealt
@pytest.mark.parametrize(
    ("udr", "plain"),
    [
        (UDRPGDClassifier(beta=0.7), MixedATClassifier(beta=0.7)),
        (UDRPGDClassifier(natural=False), PGDATClassifier()),
        (UDRTRADESClassifier(beta=3), TRADESClassifier(beta=3)),
        (UDRMARTClassifier(form="original"), MARTClassifier(beta=5)),
        (UDRAWPClassifier(), PGDATClassifier(weight_perturbation=AWP(0.01, warmup=3))),
        (
            UDRAWPClassifier(weight_perturbation__warmup=0),
            PGDATClassifier(weight_perturbation=AWP(0.01)),
        ),
        (UDRAWPClassifier(weight_perturbation=None), UDRPGDClassifier(natural=False)),
        (UDRAWPClassifier(weight_perturbation__gamma=0), PGDATClassifier()),
    ],
    ids=lambda clf: type(clf).__name__,
)
@pytest.mark.parametrize("norm", [np.inf, 2])
def test_hard_ball_is_the_plain_method(make, data, udr, plain, norm):
    common = {
        "module": "mlp", "module__hidden_sizes": (8,), "max_epochs": 4, "batch_size": 16,
        "random_state": 0, "device": "cpu",
    }  # fmt: skip
    udr.set_params(adversary=hard(norm=norm), **common).fit(*data)
    own = PGD if not isinstance(plain, UDRPGDClassifier) else hard
    adversary = own(norm=norm) if own is hard else PGD(eps=EPS, n_steps=3, norm=norm)
    plain.set_params(adversary=adversary, **common).fit(*data)
    assert_array_equal(weights(udr), weights(plain))
    softer = udr.set_params(adversary=soft(norm=norm, lambda_init=0.5)).fit(*data)
    assert not np.array_equal(weights(softer), weights(plain))


@pytest.mark.parametrize("kind", [UDRPGDClassifier, UDRTRADESClassifier])
def test_no_weight_is_natural_training(make, data, kind):
    clf = make(kind, beta=0).fit(*data)
    assert_array_equal(weights(clf), weights(make(StandardClassifier).fit(*data)))
    assert "lam" not in clf.history_[-1]  # nothing was crafted


def test_only_the_ratio_of_price_and_tau_counts(make, data):
    a, b = (
        make(
            UDRTRADESClassifier,
            adversary=soft(tau=0.5 * s, lambda_init=2 * s, lambda_lr=0.5 * s, step_size=0.2),
        ).fit(*data)
        for s in (1, 4)
    )
    assert_array_equal(weights(a), weights(b))
    assert_allclose(4 * np.array(a.history_[:, "lam"]), b.history_[:, "lam"])


# --- losses --------------------------------------------------------------------------


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    x, x_adv = rng.normal(size=(2, 6, 4))
    return torch.from_numpy(x), torch.from_numpy(x_adv), torch.arange(6) % 3


def log_softmax(clf, x):
    z = clf.module_(x).detach().numpy()
    return z - np.log(np.exp(z).sum(1, keepdims=True))


@pytest.mark.parametrize("direction", ["clean_adv", "adv_clean"])
def test_trades_loss_by_hand(make, data, batch, direction):
    clf = make(UDRTRADESClassifier, beta=2.5, kl_direction=direction, adversary=soft()).fit(*data)
    x, x_adv, y = batch
    p, q = log_softmax(clf, x), log_softmax(clf, x_adv)
    first, second = (p, q) if direction == "clean_adv" else (q, p)
    divergence = (np.exp(first) * (first - second)).sum(1)
    expected = -p[range(6), y] + 2.5 * divergence
    assert_allclose(clf.training_loss(x, x_adv, y).detach(), expected)
    # the adversary ascends the same
    objective = clf.attack_objective()
    if direction == "adv_clean":
        value = objective(clf.module_(x_adv), y, None, clf.module_(x))
        assert_allclose(value.detach(), divergence)
    else:
        assert objective == "kl"


@pytest.mark.parametrize("direction", [None, "adv_clean", "clean_adv"])
@pytest.mark.parametrize("form", ["thesis", "original"])
def test_mart_loss_by_hand(make, data, batch, form, direction):
    """Eq. 7 has KL(p' || p) and the clean samples in the first term, MART neither."""
    clf = make(
        UDRMARTClassifier, beta=2.5, adversary=soft(), form=form, kl_direction=direction
    ).fit(*data)
    x, x_adv, y = batch
    p, q = np.exp(log_softmax(clf, x)), np.exp(log_softmax(clf, x_adv))
    true = p[range(6), y]
    reverse = direction == "adv_clean" or (direction is None and form == "thesis")
    first, second = (q, p) if reverse else (p, q)
    divergence = (first * np.log(first / second)).sum(1)
    r = p if form == "thesis" else q
    wrong = np.where(np.eye(3)[y] == 1, -1, r).max(1)
    expected = -np.log(r[range(6), y]) - np.log(1 - wrong) + 2.5 * (1 - true) * divergence
    assert_allclose(clf.training_loss(x, x_adv, y).detach(), expected)
    objective = clf.attack_objective()
    if form == "original":
        assert objective == "ce"
    elif reverse:
        value = objective(clf.module_(x_adv), y, None, clf.module_(x))
        assert_allclose(value.detach(), divergence)
    else:
        assert objective == "kl"


def test_pgd_loss_by_hand(make, data, batch):
    x, x_adv, y = batch
    for natural in (True, False):
        clf = make(UDRPGDClassifier, beta=2.5, natural=natural, adversary=soft()).fit(*data)
        p, q = log_softmax(clf, x), log_softmax(clf, x_adv)
        expected = -2.5 * q[range(6), y] - natural * p[range(6), y]
        assert_allclose(clf.training_loss(x, x_adv, y).detach(), expected)


def test_trades_and_mart_share_their_adversary(make, data, batch):
    x, _, y = batch
    crafted = []
    for cls in (UDRTRADESClassifier, UDRMARTClassifier):
        clf = make(cls, adversary=soft(lambda_init=0.5), max_epochs=0).fit(*data)
        objective = clf.attack_objective()
        crafted.append(clf.adversary_.perturb(clf.module_, x, y, objective, seed=1))
    assert_array_equal(*crafted)
    assert crafted[0].requires_grad is False


# --- the dual variable ---------------------------------------------------------------


@pytest.mark.parametrize("distance", ["mean_abs", "linf"])
def test_history_and_direction(make, data, distance):
    """The dual variable falls if and only if perturbations are smaller than eps."""
    adversary = soft(distance=distance, lambda_init=0.3, lambda_lr=0.5)
    clf = make(TRADESClassifier, adversary=adversary, batch_size=-1, max_epochs=6).fit(*data)
    lam = np.array([0.3, *clf.history_[:, "lam"]])
    size = clf.history_[:, "delta_mean" if distance == "mean_abs" else "delta_max"]
    assert_allclose(np.diff(lam), 0.5 * (np.array(size) - EPS), atol=1e-12)
    assert clf.adversary_.lam_ == lam[-1]
    assert_allclose(clf.history_[:, "kappa"], lam[:-1] / 2)
    assert min(clf.history_[:, "delta_max"]) > EPS + 0.02
    assert adversary.lam_ is None  # the user's own stays as it was


def test_hard_ball_is_not_left(make, data):
    clf = make(UDRPGDClassifier, adversary=hard()).fit(*data)
    assert max(clf.history_[:, "delta_max"]) <= EPS * (1 + 1e-9)
    assert clf.history_[:, "lam"] == [2.0, 2.0]
    assert clf.history_[:, "kappa"] == [1.0, 1.0]


def test_training_goes_on_where_it_was(make, data):
    clf = make(UDRPGDClassifier, adversary=soft(lambda_lr=1.0, lambda_period=2)).fit(*data)
    lam, pending = clf.adversary_.lam_, clf.adversary_._n_batches
    assert lam != 2.0
    again = pickle.loads(pickle.dumps(clf))
    assert again.adversary_.lam_ == lam
    for other in (clf, again):
        other.set_params(lr=0.01).partial_fit(*data)
    assert_array_equal(weights(clf), weights(again))
    path = np.array(clf.history_[:, "lam"])
    assert len(path) == 4
    assert abs(path[2] - lam) < abs(path[2] - 2.0)
    assert pending == 0  # three batches and two epochs in periods of two
    warm = make(UDRPGDClassifier, adversary=soft(lambda_lr=1.0), warm_start=True).fit(*data)
    first = warm.adversary_.lam_
    warm.fit(*data)
    assert abs(warm.history_[2, "lam"] - first) < abs(warm.history_[2, "lam"] - 2.0)
    fresh = make(UDRPGDClassifier, adversary=soft(lambda_lr=1.0)).fit(*data)
    assert fresh.fit(*data).adversary_.lam_ == first


def test_sample_weights_are_copies(make, data):
    X, y = data
    common = {"batch_size": -1, "max_epochs": 3, "adversary": soft(lambda_lr=1.0)}
    weighted = make(UDRPGDClassifier, **common).fit(X, y, sample_weight=np.where(y == 0, 2, 1))
    index = np.repeat(np.arange(len(y)), np.where(y == 0, 2, 1))
    repeated = make(UDRPGDClassifier, **common).fit(X[index], y[index])
    assert_allclose(weighted.history_[:, "lam"], repeated.history_[:, "lam"])
    assert_allclose(weights(weighted), weights(repeated), rtol=1e-6, atol=1e-8)


def test_score_is_that_of_the_hard_ball(make, data):
    clf = make(UDRPGDClassifier, adversary=soft(lambda_init=0.0)).fit(*data)
    attack = clf.default_attack()
    assert type(attack) is PGD
    assert attack.eps == EPS
    X_adv = attack.set_params(estimator=clf).generate(*data)
    assert np.abs(X_adv - data[0]).max() <= EPS
    # whereas in training it went further
    assert clf.history_[-1, "delta_max"] > 1.5 * EPS
    profile = adversary_profile(clf, *data)
    assert profile.mean_max > 1.5 * EPS
    assert profile.within[1.0] < 1


def test_goes_with_a_warm_up_of_the_radius(make, data):
    for params in (
        {},
        {"tau": 0.2},
        {"soft_ball": "literal"},
        {"soft_ball": "literal", "tau": 1.0},
    ):
        clf = make(
            UDRPGDClassifier, adversary=soft(**params), callbacks=[EpsWarmup(2)], max_epochs=4
        ).fit(*data)
        assert np.isfinite(clf.history_[:, "train_loss"]).all()
        assert np.isfinite(clf.history_[:, "lam"]).all()


def test_parameters_can_be_searched(make, data):
    clf = make(UDRPGDClassifier)
    grid = {"adversary__tau_ratio": [1.0, 4.0], "adversary__soft_ball": ["deadzone", "literal"]}
    search = GridSearchCV(clf, grid, cv=2, error_score="raise").fit(*data)
    assert len(search.cv_results_["params"]) == 4
    awp = GridSearchCV(
        make(UDRAWPClassifier), {"weight_perturbation__gamma": [0, 0.01]}, cv=2, error_score="raise"
    )
    assert awp.fit(*data).best_estimator_.weight_perturbation_.warmup == 3


@pytest.mark.parametrize(
    ("kind", "params"),
    [
        (UDRPGDClassifier, {"beta": 0, "natural": False}),
        (UDRPGDClassifier, {"beta": -1}),
        (UDRTRADESClassifier, {"kl_direction": "both"}),
        (UDRMARTClassifier, {"kl_direction": "both"}),
        (UDRMARTClassifier, {"form": "short"}),
        (UDRAWPClassifier, {"weight_perturbation": "aws"}),
        (WRMClassifier, {"gamma": 0}),
    ],
)
def test_bad_parameters(make, data, kind, params):
    with pytest.raises(ValueError, match=next(iter(params))):
        make(kind, **params).fit(*data)


# --- robustness ----------------------------------------------------------------------


def test_wrm_trains_against_its_ascent(make, data):
    clf = make(WRMClassifier, gamma=2.0, n_steps=3)
    clf.set_params(adversary__n_steps=5).fit(*data)
    assert isinstance(clf.adversary_, WRMAdversary)
    assert clf.adversary_.gamma == 2.0
    assert clf.adversary_.n_steps == 5
    # a price that nobody pays is natural training
    dear = make(WRMClassifier, gamma=1e12).fit(*data)
    plain = make(StandardClassifier).fit(*data)
    assert_allclose(weights(dear), weights(plain), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "clf",
    [UDRPGDClassifier(), UDRTRADESClassifier(beta=3), UDRMARTClassifier(), WRMClassifier()],
    ids=lambda clf: type(clf).__name__,
)
def test_more_robust_than_natural_training(digits, clf):
    X, y = digits
    common = {
        "module": "mlp", "module__hidden_sizes": (32,), "max_epochs": 20, "random_state": 0,
        "device": "cpu", "adversary__eps": 0.1,
    }  # fmt: skip
    attack = PGD(eps=0.1, clip=(0, 1), n_steps=10, random_state=0)
    robust, natural = (
        c.set_params(**common).fit(X[:600], y[:600]).score_adversarial(X[600:], y[600:], attack)
        for c in (clf, StandardClassifier())
    )
    assert robust > natural + 0.05


def test_hard_ball_of_the_defaults_is_the_plain_method(make, data):
    """Also without an adversary given: each starts where its counterpart does."""
    for udr, plain in (
        (make(UDRTRADESClassifier), make(TRADESClassifier)),
        (make(UDRMARTClassifier, form="original"), make(MARTClassifier, beta=5)),
    ):
        udr.set_params(adversary__lambda_lr=0).fit(*data)
        assert_array_equal(weights(udr), weights(plain.fit(*data)))
