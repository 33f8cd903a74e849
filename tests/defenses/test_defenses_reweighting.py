"""FAT, GAIRAT and MAIL: which examples are made, how much they count, and when."""

import numpy as np
import pytest
import torch
from by_hand import ce, kl, softmax
from numpy.testing import assert_allclose, assert_array_equal
from skorch.callbacks import Callback
from torch import nn

from robustsk import (
    BIM,
    DRA,
    FGSM,
    MIM,
    PGD,
    FATClassifier,
    FriendlyPGD,
    GAIRATClassifier,
    GeometryAwarePGD,
    HypersphereHead,
    MAILClassifier,
    MARTClassifier,
    PGDATClassifier,
    SquareAttack,
    StandardClassifier,
    TRADESClassifier,
)
from robustsk.attacks import APGD
from robustsk.defenses.fat import _TAU
from robustsk.defenses.gairat import _TAU as GAIR_TAU
from robustsk.training import AWP
from robustsk.training._schedule import at_epoch, scaled

N, D, H, C = 7, 4, 6, 3


def network():
    return nn.Sequential(nn.Linear(D, H), nn.Tanh(), nn.Linear(H, C)).double()


def in_epoch(number, cls, **params):
    """Return an initialised defence in float64, in the given epoch."""
    params = {"module": network, "input_shape": (D,), "classes": list(range(C)), **params}
    clf = cls(random_state=0, device="cpu", **params).initialize()
    clf.module_.train()
    for _ in range(number + 1):
        clf.history_.new_epoch()
    assert clf.epoch == number
    return clf


def outputs(clf, *batches):
    with torch.no_grad():
        return [clf.module_(torch.as_tensor(x)).numpy() for x in batches]


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, D))
    return x, x + rng.uniform(-0.5, 0.5, (N, D)), np.arange(N) % C


@pytest.fixture
def table():
    rng = np.random.default_rng(2)
    y = np.arange(40) % C
    return rng.normal(size=(40, D)) + 2 * np.eye(C, D)[y], y


def fit(cls, table, *, sample_weight=None, **params):
    defaults = {"module": network, "max_epochs": 3, "batch_size": 16, "lr": 0.02}
    if "adversary" not in params:
        defaults.update(adversary__eps=0.3, adversary__n_steps=3)
    clf = cls(**{**defaults, **params}, random_state=0, device="cpu")
    return clf.fit(*table, sample_weight=sample_weight)


def same_weights(first, second):
    first, second = first.module_.state_dict(), second.module_.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


class Watch(Callback):
    """Write down an attribute of the adversary in each epoch."""

    def __init__(self, name):
        self.name = name
        self.seen = []

    def on_batch_begin(self, net, batch=None, training=False, **kwargs):
        if training and len(self.seen) < len(net.history):
            self.seen.append(getattr(net.adversary_, self.name))


# --- schedules -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "n_epochs", "last"),
    # last epoch, counted from 1, of each tau, as in the authors' code
    [("ce", 120, [50, 90]), ("trades", 85, [30, 50, 70]), ("mart", 90, [20, 40, 60, 80])],
)
def test_tau_of_the_source(loss, n_epochs, last):
    schedule, length = _TAU[loss]
    assert length == n_epochs
    for number in range(1, n_epochs + 1):
        expected = sum(number > end for end in last)
        assert at_epoch(scaled(schedule, length, n_epochs), number - 1) == expected
        # twice the epochs: each lasts twice as long
        for half in (2 * number - 2, 2 * number - 1):
            assert at_epoch(scaled(schedule, length, 2 * n_epochs), half) == expected


def test_tau_of_gair_fat():
    schedule, length = GAIR_TAU
    taus = [at_epoch(scaled(schedule, length, 120), epoch) for epoch in range(120)]
    assert taus == [0] * 40 + [3] * 30 + [6] * 50


@pytest.mark.parametrize("max_epochs", [1, 2, 3, 7])
def test_short_schedules_begin_at_the_beginning(max_epochs):
    for schedule, length in (*_TAU.values(), GAIR_TAU):
        stretched = scaled(schedule, length, max_epochs)
        taus = [at_epoch(stretched, epoch) for epoch in range(max_epochs)]
        assert taus[0] == 0
        assert taus == sorted(taus)
        expected = [
            [t for start, t in schedule if start * max_epochs <= e * length][-1]
            for e in range(max_epochs)
        ]
        assert taus == expected


@pytest.mark.dealt
@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, None),  # the schedule of the source
        ({"tau": 2}, [2] * 6),
        ({"tau": [(0, 0), (1, 3), (5, 1)]}, [0, 3, 3, 3, 3, 1]),
        ({"adversary__tau": 3}, [3] * 6),
        ({"adversary": FriendlyPGD(eps=0.3, n_steps=3, tau=1)}, [1] * 6),
        ({"adversary": FriendlyPGD(eps=0.3, n_steps=3)}, None),
        ({"adversary": FriendlyPGD(eps=0.3, n_steps=3), "adversary__tau": 0}, [0] * 6),
        ({"adversary": FriendlyPGD(eps=0.3, n_steps=3), "tau": 0}, [0] * 6),
        ({"adversary": FriendlyPGD(eps=0.3, n_steps=3, tau=1), "tau": 2}, [2] * 6),
    ],
    ids=str,
)
def test_who_decides_on_tau(table, params, expected):
    watch = Watch("tau")
    fit(FATClassifier, table, max_epochs=6, callbacks=[watch], **params)
    assert watch.seen == (expected or [0, 0, 0, 1, 1, 2])  # from 2.5 and 4.5 of 6
    watch = Watch("tau")
    fit(GAIRATClassifier, table, variant="fat", max_epochs=6, callbacks=[watch], **params)
    assert watch.seen == (expected or [0, 0, 3, 3, 6, 6])  # from 2 and 3.5 of 6


def test_partial_fit_goes_on_in_the_schedule(table):
    watch = Watch("tau")
    clf = FATClassifier(
        network, tau=[(0, 0), (2, 1), (3, 5)], max_epochs=2, random_state=0, callbacks=[watch]
    )
    clf.partial_fit(*table).partial_fit(*table)
    assert watch.seen == [0, 0, 1, 5]


@pytest.mark.parametrize("tau", ["late", [0, 1], [(1, 0)], [(0, 0), (0, 1)], [(3, 0), (0, 1)], []])
def test_bad_schedule(table, tau):
    with pytest.raises(ValueError, match=r"tau must be a number, or pairs \(epoch, value\)"):
        fit(FATClassifier, table, tau=tau)


def test_tau_for_an_adversary_that_has_none(table):
    with pytest.raises(ValueError, match=r"tau=1.*PGD does not: use FriendlyPGD.*leave tau out"):
        fit(GAIRATClassifier, table, tau=1, adversary=PGD(eps=0.3))
    with pytest.raises(ValueError, match=r"tau must be an integer of at least 0, got 0\.5"):
        fit(FATClassifier, table, tau=0.5)


# --- FAT -----------------------------------------------------------------------------


def test_default_adversaries_are_those_of_the_source():
    for loss, start, omega in [
        ("ce", "uniform", 0.001),
        ("trades", "gaussian", 0),
        ("mart", "gaussian", 0),
    ]:
        clf = FATClassifier(loss=loss)
        adversary = clf._adversary()
        assert type(adversary) is FriendlyPGD
        assert (adversary.random_start, adversary.omega) == (start, omega)
        assert adversary.n_steps == 10
        assert clf.attack_objective() == ("kl" if loss == "trades" else "ce")
    for variant, kind, start in [
        ("at", GeometryAwarePGD, "uniform"),
        ("fat", FriendlyPGD, "uniform"),
        ("trades", GeometryAwarePGD, "gaussian"),
        ("rst", GeometryAwarePGD, "gaussian"),
    ]:
        adversary = GAIRATClassifier(variant=variant)._adversary()
        assert type(adversary) is kind
        assert adversary.random_start == start
    assert MAILClassifier()._adversary().random_start == "gaussian"


@pytest.mark.parametrize("loss", ["ce", "trades"])
def test_steps_in_the_history(table, loss):
    taken = {}

    class Spy(FriendlyPGD):
        def _attack_batch(self, batch):
            z = super()._attack_batch(batch)
            taken.setdefault(self.tau, []).extend(batch.info["n_steps_taken"].tolist())
            return z

    schedule = [(0, 0), (1, 1), (2, 3)]
    clf = fit(FATClassifier, table, loss=loss, tau=schedule, adversary=Spy(eps=1.0, n_steps=3))
    found = clf.history[:, "attack_steps"]
    assert_allclose(found, [np.mean(taken[tau]) for tau in (0, 1, 3)])
    assert found[0] < found[1] < found[2] == 3


@pytest.mark.dealt
@pytest.mark.parametrize(
    ("loss", "plain"),
    [("ce", PGDATClassifier), ("trades", TRADESClassifier), ("mart", MARTClassifier)],
)
def test_fat_is_the_loss_on_friendly_examples(table, loss, plain):
    adversary = FriendlyPGD(eps=0.4, n_steps=4, tau=1, random_start="gaussian", omega=0.01)
    fat = fit(FATClassifier, table, loss=loss, adversary=adversary)
    assert same_weights(fat, fit(plain, table, adversary=adversary))
    assert not same_weights(fat, fit(FATClassifier, table, loss=loss, tau=0, adversary=adversary))


def test_fat_that_never_stops_is_adversarial_training(table):
    steps = {"eps": 0.3, "n_steps": 4}
    friendly = FriendlyPGD(tau=4, **steps)
    whole = fit(FATClassifier, table, adversary=friendly, adversary__omega=0.0)
    assert same_weights(whole, fit(PGDATClassifier, table, adversary=PGD(**steps)))


def test_fat_trades_without_weight_on_robustness_is_natural_training(table):
    natural = fit(StandardClassifier, table)
    assert same_weights(fit(FATClassifier, table, loss="trades", beta=0), natural)


def test_mart_on_friendly_examples_with_perturbed_weights_and_a_head(table):
    params = {"weight_perturbation": AWP(gamma=0.01), "head": HypersphereHead(s=10.0, m=0.1)}
    adversary = FriendlyPGD(eps=0.2, n_steps=3, tau=1)
    mart = fit(MARTClassifier, table, adversary=adversary, **params)
    fat = fit(FATClassifier, table, loss="mart", adversary=adversary, **params)
    assert same_weights(mart, fat)
    for plain in ({**params, "head": None}, {**params, "weight_perturbation": None}):
        assert not same_weights(mart, fit(MARTClassifier, table, adversary=adversary, **plain))


# --- GAIRAT: what is minimised -------------------------------------------------------


def tanh_weights(kappa, K, lam, normalize=True):
    w = (1 + np.tanh(lam + 5 * (1 - 2 * kappa / K))) / 2
    return w / w.mean() if normalize else w


KAPPA = np.array([0, 3, 10, 5, 7, 4, 1])


@pytest.mark.parametrize("variant", ["at", "fat"])
@pytest.mark.parametrize("lam", [None, 0.5, [(0, 7.0), (4, -0.5), (9, 3.0)]])
def test_gairat(batch, variant, lam):
    x, x_adv, y = (torch.as_tensor(v) for v in batch)
    clf = in_epoch(5, GAIRATClassifier, variant=variant, lam=lam, max_epochs=10)
    (z,) = outputs(clf, x_adv)
    loss = clf.training_loss(x, (x_adv, torch.tensor(KAPPA)), y).detach()
    value = {"at": -1, "fat": 0}[variant] if lam is None else 0.5 if lam == 0.5 else -0.5
    assert_allclose(loss, tanh_weights(KAPPA, 10, value) * ce(z, y.numpy()), rtol=1e-8)
    early = in_epoch(4, GAIRATClassifier, variant=variant, lam=lam, max_epochs=10)
    burn_in = early.training_loss(x, (x_adv, torch.tensor(KAPPA)), y).detach()
    assert_allclose(burn_in, ce(z, y.numpy()))


@pytest.mark.parametrize("weighting", ["sigmoid", "discrete"])
def test_gairat_with_other_weights(batch, weighting):
    x, x_adv, y = (torch.as_tensor(v) for v in batch)
    clf = in_epoch(0, GAIRATClassifier, weighting=weighting, begin_epoch=0)
    (z,) = outputs(clf, x_adv)
    w = {
        "sigmoid": 1 / (1 + np.exp(1 - 5 * (1 - 2 * KAPPA / 10))),
        "discrete": (11 - KAPPA) / 11,
    }[weighting]
    loss = clf.training_loss(x, (x_adv, torch.tensor(KAPPA)), y).detach()
    assert_allclose(loss, w / w.mean() * ce(z, y.numpy()), rtol=1e-10)


@pytest.mark.parametrize("weighted", [None, "natural", "divergence", "both"])
def test_gair_trades(batch, weighted):
    x, x_adv, y = (torch.as_tensor(v) for v in batch)
    params = {} if weighted is None else {"weighted": weighted}
    clf = in_epoch(0, GAIRATClassifier, variant="trades", begin_epoch=0, beta=2.0, **params)
    z, z_adv = outputs(clf, x, x_adv)
    loss = clf.training_loss(x, (x_adv, torch.tensor(KAPPA)), y).detach()
    w = tanh_weights(KAPPA, 10, -1)
    natural = 1 if weighted == "divergence" else w
    adversarial = w if weighted in ("divergence", "both") else 1
    assert_allclose(loss, natural * ce(z, y.numpy()) + 2 * adversarial * kl(z, z_adv), rtol=1e-8)


def test_gair_rst(batch):
    x, x_adv, y = (torch.as_tensor(v) for v in batch)
    x_cw = x_adv + 0.3
    clf = in_epoch(0, GAIRATClassifier, variant="rst", begin_epoch=0, beta=2.0)
    z, z_adv, z_cw = outputs(clf, x, x_adv, x_cw)
    w = tanh_weights(KAPPA, 10, 3.0, normalize=False)
    assert_allclose(w, (1 + np.tanh(3 + 10 / 2 - KAPPA)) / 2, rtol=1e-12)
    loss = clf.training_loss(x, (x_adv, torch.tensor(KAPPA), x_cw), y).detach()
    expected = ce(z, y.numpy()) + 2 * (w * kl(z, z_adv) + (1 - w) * kl(z, z_cw))
    assert_allclose(loss, expected, rtol=1e-8)
    # the second batch ascends the margin, and is made when it is needed
    assert len(clf.craft(x, y)) == 3
    clf.begin_epoch = 1
    assert len(clf.craft(x, y)) == 2


def test_weights_have_no_gradient(batch):
    x, x_adv, y = (torch.as_tensor(v) for v in batch)
    clf = in_epoch(0, MAILClassifier, begin_epoch=0)
    parameters = list(clf.module_.parameters())
    found = torch.autograd.grad(clf.training_loss(x, x_adv, y).sum(), parameters)
    logits = clf.module_(x_adv)
    p = logits.softmax(1).detach()
    margin = p[range(N), y] - p.scatter(1, y[:, None], 0).max(1).values
    w = torch.sigmoid(-10 * (margin + 0.5))
    plain = (w / w.mean() * nn.functional.cross_entropy(logits, y, reduction="none")).sum()
    for a, b in zip(found, torch.autograd.grad(plain, parameters), strict=True):
        assert_allclose(a, b, rtol=1e-8, atol=1e-12)


# --- GAIRAT: limit cases -------------------------------------------------------------


def test_equal_weights_are_adversarial_training(table):
    adversary = GeometryAwarePGD(eps=0.3, n_steps=3)
    plain = fit(PGDATClassifier, table, adversary=adversary)
    start = {"adversary__random_start": "uniform"}  # MAIL has another
    even = {"begin_epoch": 0, "adversary": adversary, **start}
    assert same_weights(fit(GAIRATClassifier, table, lam=np.inf, **even), plain)
    assert same_weights(fit(MAILClassifier, table, gamma=0, **even), plain)
    assert not same_weights(fit(GAIRATClassifier, table, **even), plain)
    assert not same_weights(fit(MAILClassifier, table, **even), plain)
    # the count does not change the path
    assert same_weights(plain, fit(PGDATClassifier, table, adversary=PGD(eps=0.3, n_steps=3)))


def test_equal_weights_are_friendly_adversarial_training(table):
    even = {"lam": np.inf, "begin_epoch": 0, "variant": "fat"}
    friendly = FriendlyPGD(eps=0.4, n_steps=4, tau=1)
    fat = fit(FATClassifier, table, adversary=friendly, adversary__omega=0.0)
    assert same_weights(fit(GAIRATClassifier, table, adversary=friendly, **even), fat)


def test_burn_in_is_trades(table):
    adversary = GeometryAwarePGD(eps=0.3, n_steps=3, random_start="gaussian")
    plain = fit(TRADESClassifier, table, adversary=adversary)
    for variant in ("trades", "rst"):
        params = {"variant": variant, "begin_epoch": 3, "adversary": adversary}
        assert same_weights(fit(GAIRATClassifier, table, **params), plain)
        params["begin_epoch"] = 2
        assert not same_weights(fit(GAIRATClassifier, table, **params), plain)
        natural = fit(StandardClassifier, table)
        without = fit(GAIRATClassifier, table, variant=variant, weighted="divergence", beta=0)
        assert same_weights(without, natural)


@pytest.mark.parametrize(
    ("defence", "max_epochs", "begin"),
    [
        (GAIRATClassifier, 120, 60),
        (GAIRATClassifier, 5, 3),
        (MAILClassifier, 100, 75),
        (MAILClassifier, 6, 5),
    ],
)
def test_when_weighting_begins(batch, defence, max_epochs, begin):
    x, x_adv, y = (torch.as_tensor(v) for v in batch)
    crafted = x_adv if defence is MAILClassifier else (x_adv, torch.tensor(KAPPA))
    (z,) = outputs(in_epoch(0, defence), x_adv)
    for number, weighted in [(begin - 1, False), (begin, True)]:
        clf = in_epoch(number, defence, max_epochs=max_epochs)
        loss = clf.training_loss(x, crafted, y).detach()
        assert np.allclose(loss, ce(z, y.numpy())) != weighted


@pytest.mark.parametrize(
    "params", [{}, {"variant": "trades"}, {"variant": "rst"}, {"variant": "fat"}, "mail"], ids=str
)
def test_a_sample_of_weight_two_is_two_samples(table, params):
    X, y = table[0][:12], table[1][:12]
    times = np.arange(12) % 3 + 1
    cls, params = (MAILClassifier, {}) if params == "mail" else (GAIRATClassifier, params)
    settings = {"begin_epoch": 0, "batch_size": -1, "max_epochs": 4, **params}
    weighted = fit(cls, (X, y), sample_weight=times, **settings)
    repeated = fit(cls, (X.repeat(times, axis=0), y.repeat(times)), **settings)
    assert_allclose(weighted.predict_proba(X), repeated.predict_proba(X), rtol=1e-6)


# --- kappa ---------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["at", "trades"])
@pytest.mark.parametrize("start", ["none", "gaussian", "uniform"])
def test_kappa_of_an_adversary_that_does_not_tell(variant, start):
    x = torch.as_tensor(np.random.default_rng(0).normal(size=(80, D)))
    steps = {"eps": 0.6, "step_size": 0.1, "n_steps": 6, "clip": None, "random_start": start}
    first, second = (
        in_epoch(0, GAIRATClassifier, variant=variant, adversary=attack(**steps))
        for attack in (PGD, GeometryAwarePGD)
    )
    y = first.module_(x).argmax(1)
    first, second = first.craft(x, y), second.craft(x, y)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert len(first[1].unique()) > 2


@pytest.mark.parametrize(
    "adversary", [FGSM(eps=0.3), BIM(eps=0.3, n_steps=3), MIM(eps=0.3), DRA(eps=1.0)], ids=repr
)
def test_attacks_that_take_plain_steps_will_do(table, adversary):
    assert 0 < fit(GAIRATClassifier, table, begin_epoch=0, adversary=adversary).score(*table) <= 1


@pytest.mark.parametrize(
    "adversary",
    [
        APGD(eps=0.3, n_steps=5),
        SquareAttack(eps=0.3),
        PGD(eps=0.3, n_restarts=2),
        PGD(eps=0.3, objective="cw"),
    ],
    ids=repr,
)
def test_an_adversary_without_kappa(table, adversary):
    name = type(adversary).__name__
    with pytest.raises(ValueError, match=rf"{name} does not tell.*use GeometryAwarePGD"):
        fit(GAIRATClassifier, table, adversary=adversary)


def linear_problem(seed):
    """Return w, b, samples in the plane of w, labels -1 and 1, and s = y (w.x + b)."""
    rng = np.random.default_rng(seed)
    w, b = rng.normal(size=5), 0.3
    x, y = rng.normal(size=(60, 5)), rng.choice([-1, 1], 60)
    return w, b, x, y, y * (x @ w + b)


class Linear(nn.Module):
    def __init__(self, w, b):
        super().__init__()
        self.layer = nn.Linear(5, 2).double()
        with torch.no_grad():
            self.layer.weight[:] = torch.tensor(np.stack([0 * w, w]))
            self.layer.bias[:] = torch.tensor([0.0, b])

    def forward(self, x):
        return self.layer(x)


@pytest.mark.parametrize("seed", range(3))
def test_kappa_scores_of_a_linear_model(seed):
    """The smallest t in 0..K-1 with s - min(t alpha, eps) |w|_1 <= 0, or else K."""
    w, b, x, y, s = linear_problem(seed)
    eps, alpha, K = 0.5, 0.07, 10
    clf = GAIRATClassifier(
        Linear(w, b), lr=0.0, max_epochs=1, random_state=0, device="cpu",
        adversary=GeometryAwarePGD(
            eps=eps, step_size=alpha, n_steps=K, random_start="none", clip=None
        ),
    ).fit(x, np.where(y > 0, "up", "down"))  # fmt: skip
    reached = s[:, None] - np.minimum(np.arange(K) * alpha, eps) * np.abs(w).sum() <= 0
    expected = np.where(reached.any(axis=1), reached.argmax(axis=1), K)
    labels = np.where(y > 0, "up", "down")
    kappa = clf.kappa_scores(x, labels)
    assert_array_equal(kappa, expected)
    assert set(kappa) >= {0, 10}
    assert np.issubdtype(kappa.dtype, np.integer)
    # order is kept, and nothing depends on what else there is
    assert_array_equal(clf.kappa_scores(x[::-1], labels[::-1]), kappa[::-1])
    assert_array_equal(clf.kappa_scores(x[5:9], labels[5:9]), kappa[5:9])
    flipped = np.where(y > 0, "down", "up")
    assert (clf.kappa_scores(x, flipped)[expected > 0] == 0).all()


def test_kappa_scores_with_the_steps_of_any_adversary(table):
    kappa = {}
    for attack in (PGD, FriendlyPGD, GeometryAwarePGD):
        adversary = attack(eps=1.0, n_steps=4, random_start="none")
        clf = fit(GAIRATClassifier, table, adversary=adversary)
        clf.module_.load_state_dict(fit(PGDATClassifier, table).module_.state_dict())
        kappa[attack] = clf.kappa_scores(*table)
        assert kappa[attack].max() == 4
        assert kappa[attack].min() == 0
    assert_array_equal(kappa[PGD], kappa[GeometryAwarePGD])
    assert_array_equal(kappa[FriendlyPGD], kappa[GeometryAwarePGD])


def test_kappa_scores_need_a_fit():
    with pytest.raises(Exception, match=r"(?i)not.*(fitted|initialized)"):
        GAIRATClassifier().kappa_scores(np.zeros((2, 4)), [0, 1])


# --- MAIL ----------------------------------------------------------------------------


@pytest.mark.parametrize("params", [{}, {"gamma": 3.0, "b": 0.2}])
def test_mail(batch, params):
    _, x_adv, y = batch
    clf = in_epoch(3, MAILClassifier, max_epochs=4, **params)
    (z,) = outputs(clf, x_adv)
    p = softmax(z)
    wrong = p.copy()
    wrong[np.arange(N), y] = -1
    margin = p[np.arange(N), y] - wrong.max(axis=1)
    gamma, b = params.get("gamma", 10.0), params.get("b", -0.5)
    w = 1 / (1 + np.exp(gamma * (margin - b)))
    loss = clf.training_loss(*(torch.as_tensor(v) for v in batch)).detach()
    assert_allclose(loss, w / w.mean() * ce(z, y), rtol=1e-8)
    # the clearer the error, the more it counts
    assert_array_equal(np.argsort(loss.numpy() / ce(z, y)), np.argsort(-margin))


# --- parameters ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("defence", "params", "message"),
    [
        (FATClassifier, {"loss": "kl"}, r"loss must be one of.*'kl'"),
        (FATClassifier, {"beta": -1}, "beta must be a finite number"),
        (GAIRATClassifier, {"variant": "mart"}, r"variant must be one of.*'mart'"),
        (GAIRATClassifier, {"weighting": "linear"}, r"weighting must be one of.*'linear'"),
        (GAIRATClassifier, {"weighted": "all"}, r"weighted must be one of.*'all'"),
        (GAIRATClassifier, {"lam": "x"}, r"lam must be a number, or pairs"),
        (GAIRATClassifier, {"lam": np.nan, "begin_epoch": 0}, "lam must be a number, got nan"),
        (GAIRATClassifier, {"begin_epoch": -1}, "begin_epoch must be the number of an epoch"),
        (GAIRATClassifier, {"begin_epoch": 0.5}, "begin_epoch must be the number of an epoch"),
        (GAIRATClassifier, {"tau": 1}, "GeometryAwarePGD does not: use FriendlyPGD"),
        (
            GAIRATClassifier,
            {"variant": "rst", "adversary__objective": "ce"},
            r"two objectives.*objective='ce' out",
        ),
        (MAILClassifier, {"gamma": -1}, "gamma must be a finite number"),
        (MAILClassifier, {"b": np.inf}, "b must be a finite number"),
        (MAILClassifier, {"begin_epoch": "early"}, "begin_epoch must be the number of an epoch"),
    ],
    ids=str,
)
def test_bad_parameters(table, defence, params, message):
    with pytest.raises(ValueError, match=message):
        fit(defence, table, **params)


# --- do they help? -------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("defence", "params"),
    [
        (FATClassifier, {}),
        (FATClassifier, {"loss": "trades"}),
        (FATClassifier, {"loss": "mart"}),
        (GAIRATClassifier, {}),
        (GAIRATClassifier, {"variant": "fat"}),
        (GAIRATClassifier, {"variant": "trades"}),
        (GAIRATClassifier, {"variant": "rst"}),
        (MAILClassifier, {}),
    ],
    ids=str,
)
def test_is_more_robust_than_natural_training(robust_accuracy, defence, params):
    clean, robust = robust_accuracy(defence, **params)
    natural_clean, natural_robust = robust_accuracy(StandardClassifier)
    assert natural_clean > 0.85
    assert clean > 0.6
    assert robust > natural_robust + 0.15
