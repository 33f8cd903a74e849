"""MART, ALP, adversarial regularisation, mixtures: formulas, limit cases, and what they are for."""

import numpy as np
import pytest
import torch
from by_hand import ce, kl, softmax
from numpy.testing import assert_allclose
from torch import nn

from robustsk import (
    BIM,
    FGSM,
    PGD,
    AdversarialRegularizationClassifier,
    ALPClassifier,
    FGSMATClassifier,
    HypersphereHead,
    MARTClassifier,
    MixedATClassifier,
    PGDATClassifier,
    StandardClassifier,
    TRADESClassifier,
)
from robustsk.attacks.objectives import resolve_objective

N, D, H, C = 7, 4, 6, 3
AR = AdversarialRegularizationClassifier


# --- formulas, independent of the package --------------------------------------------


def bce(z, y):
    p = softmax(z)
    wrong = p.copy()
    wrong[np.arange(len(y)), y] = -1
    return ce(z, y) - np.log(1 - wrong.max(axis=1))


def network():
    return nn.Sequential(nn.Linear(D, H), nn.Tanh(), nn.Linear(H, C)).double()


def ready(cls, **params):
    """Return an initialised defence in float64."""
    params = {"module": network, "input_shape": (D,), "classes": list(range(C)), **params}
    clf = cls(random_state=0, device="cpu", **params).initialize()
    clf.module_.train()
    return clf


def outputs(clf, *batches):
    with torch.no_grad():
        return [clf.module_(torch.as_tensor(x)).numpy() for x in batches]


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, D))
    return x, x + rng.uniform(-0.5, 0.5, (N, D)), np.arange(N) % C


def loss_of(clf, x, x_adv, y):
    loss = clf.training_loss(*(torch.as_tensor(v) for v in (x, x_adv, y)))
    assert loss.shape == (N,)
    return loss.detach().numpy()


@pytest.fixture
def table():
    rng = np.random.default_rng(2)
    y = np.arange(40) % C
    return rng.normal(size=(40, D)) + 2 * np.eye(C, D)[y], y


def fit(cls, table, **params):
    defaults = {"module": network, "max_epochs": 3, "batch_size": 16, "lr": 0.02}
    if "adversary" not in params:
        defaults.update(adversary__eps=0.3, adversary__n_steps=2)
    return cls(**{**defaults, **params}, random_state=0, device="cpu").fit(*table)


def same_weights(first, second):
    first, second = first.module_.state_dict(), second.module_.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def gradient(clf, x, x_adv, y):
    clf.module_.zero_grad()
    clf.training_loss(*(torch.as_tensor(v) for v in (x, x_adv, y))).sum().backward()
    return torch.cat([p.grad.flatten().clone() for p in clf.module_.parameters()])


# --- what is minimised ---------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.0, 1.0, 6.0])
def test_mart(batch, beta):
    x, x_adv, y = batch
    clf = ready(MARTClassifier, beta=beta)
    z, z_adv = outputs(clf, x, x_adv)
    p_y = softmax(z)[np.arange(N), y]
    assert_allclose(loss_of(clf, *batch), bce(z_adv, y) + beta * kl(z, z_adv) * (1 - p_y))


PAIRINGS = {
    "l2": lambda d: (d**2).mean(axis=1),
    "l1": lambda d: np.abs(d).mean(axis=1),
    "huber": lambda d: np.where(np.abs(d) < 1, d**2 / 2, np.abs(d) - 0.5).mean(axis=1),
}


@pytest.mark.parametrize("ce_on", ["mixed", "clean", "adv"])
@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("lam", [0.0, 0.5])
def test_alp(batch, ce_on, pairing, lam):
    x, x_adv, y = batch
    clf = ready(ALPClassifier, ce_on=ce_on, pairing=pairing, lam=lam)
    z, z_adv = outputs(clf, x, x_adv)
    share = {"mixed": 0.5, "clean": 1.0, "adv": 0.0}[ce_on]
    expected = share * ce(z, y) + (1 - share) * ce(z_adv, y) + lam * PAIRINGS[pairing](z - z_adv)
    assert_allclose(loss_of(clf, *batch), expected, rtol=1e-10)


def test_alp_on_the_hypersphere_pairs_cosines(batch):
    x, x_adv, y = batch
    clf = ready(ALPClassifier, head=HypersphereHead(s=20.0, m=0.3))
    z, z_adv = outputs(clf, x, x_adv)
    cos, cos_adv = z / 20, z_adv / 20
    assert np.abs(cos).max() <= 1
    margin = 0.3 * np.eye(C)[y]
    expected = (ce(20 * (cos - margin), y) + ce(20 * (cos_adv - margin), y)) / 2
    assert_allclose(loss_of(clf, *batch), expected + 0.5 * ((cos - cos_adv) ** 2).mean(axis=1))


@pytest.mark.parametrize("direction", ["nat_to_adv", "adv_to_nat", "symmetric", "tv"])
@pytest.mark.parametrize("lam", [0.0, 5.0])
def test_adversarial_regularization(batch, direction, lam):
    x, x_adv, y = batch
    clf = ready(AR, lam=lam, kl_direction=direction)
    z, z_adv = outputs(clf, x, x_adv)
    distance = {
        "nat_to_adv": kl(z, z_adv),
        "adv_to_nat": kl(z_adv, z),
        "symmetric": kl(z, z_adv) + kl(z_adv, z),
        "tv": np.abs(softmax(z) - softmax(z_adv)).sum(axis=1) / 2,
    }[direction]
    assert_allclose(loss_of(clf, *batch), ce(z_adv, y) + lam * distance, rtol=1e-10)
    objective = resolve_objective(clf.attack_objective())
    assert objective.needs_clean == (lam > 0)
    found = objective(torch.tensor(z_adv), torch.tensor(y), None, torch.tensor(z))
    assert_allclose(found, ce(z_adv, y) + lam * distance, rtol=1e-10)
    other = ready(AR, lam=lam, attack_lam=0.7, kl_direction=direction)
    found = other.attack_objective()(torch.tensor(z_adv), torch.tensor(y), None, torch.tensor(z))
    assert_allclose(found, ce(z_adv, y) + 0.7 * distance, rtol=1e-10)


@pytest.mark.parametrize("beta", [0.0, 1.0, 2.5])
def test_mixed_at(batch, beta):
    x, x_adv, y = batch
    clf = ready(MixedATClassifier, beta=beta)
    z, z_adv = outputs(clf, x, x_adv)
    assert_allclose(loss_of(clf, *batch), ce(z, y) + beta * ce(z_adv, y))


@pytest.mark.parametrize("a", [0.0, 0.3, 0.5, 1.0])
def test_fgsm_at(batch, a):
    x, x_adv, y = batch
    clf = ready(FGSMATClassifier, a=a)
    z, z_adv = outputs(clf, x, x_adv)
    assert_allclose(loss_of(clf, *batch), a * ce(z, y) + (1 - a) * ce(z_adv, y))


def test_terms_of_comparison_vanish_where_nothing_is_perturbed(batch):
    x, _, y = batch
    clf = ready(ALPClassifier)
    (z,) = outputs(clf, x)
    assert_allclose(loss_of(clf, x, x, y), ce(z, y))
    assert_allclose(loss_of(ready(AR), x, x, y), ce(z, y))
    assert_allclose(loss_of(ready(MARTClassifier), x, x, y), bce(z, y))


def test_defaults_are_those_of_the_sources():
    assert MARTClassifier().beta == 6.0
    assert MARTClassifier()._adversary().random_start == "gaussian"
    alp = ALPClassifier()
    assert (alp.lam, alp.ce_on, alp.pairing) == (0.5, "mixed", "l2")
    assert AR().lam == 5.0
    assert AR()._adversary().random_start == "none"
    assert FGSMATClassifier().a == 0.5


# --- limit cases ---------------------------------------------------------------------


def test_without_weight_on_robustness_it_is_natural_training(table):
    natural = fit(StandardClassifier, table)
    for clf in (
        fit(ALPClassifier, table, lam=0, ce_on="clean"),
        fit(MixedATClassifier, table, beta=0),
        fit(FGSMATClassifier, table, a=1),
        fit(FGSMATClassifier, table, a=1, iterated=True),
    ):
        assert same_weights(clf, natural)


@pytest.mark.parametrize("start", ["none", "uniform"])
def test_without_a_comparison_it_is_adversarial_training(table, start):
    adversary = PGD(eps=0.3, n_steps=3, random_start=start)
    plain = fit(PGDATClassifier, table, adversary=adversary)
    own = {"adversary": adversary, "adversary__random_start": adversary.random_start}
    assert same_weights(fit(AR, table, lam=0, **own), plain)
    assert same_weights(fit(ALPClassifier, table, lam=0, ce_on="adv", adversary=adversary), plain)


def test_fgsm_at_without_clean_samples_is_training_on_fgsm(table):
    plain = fit(PGDATClassifier, table, adversary=FGSM(eps=0.3))
    # of the adversary only the threat model counts
    given = PGD(eps=0.3, n_steps=7, step_size=0.01)
    assert same_weights(fit(FGSMATClassifier, table, a=0, adversary=given), plain)
    steps = {"adversary": BIM(eps=0.3, n_steps=4, step_size=0.1)}
    iterated = fit(FGSMATClassifier, table, a=0, iterated=True, label="true", **steps)
    assert same_weights(iterated, fit(PGDATClassifier, table, **steps))


def test_fgsm_steps_along_the_sign_of_the_gradient(batch):
    x, _, y = batch
    clf = ready(FGSMATClassifier, adversary__eps=0.1, adversary__clip=None)
    z = torch.tensor(x, requires_grad=True)
    nn.functional.cross_entropy(clf.module_(z), torch.tensor(y)).backward()
    found = clf.craft(torch.tensor(x), torch.tensor(y))
    assert_allclose(found, x + 0.1 * np.sign(z.grad.numpy()), rtol=1e-12)


def test_labels_do_not_leak_from_predictions(batch):
    x, _, y = (torch.as_tensor(v) for v in batch)
    for params in ({"iterated": True}, {"label": "pred"}):
        clf = ready(FGSMATClassifier, adversary__eps=0.1, adversary__clip=None, **params)
        predicted = clf.module_(x).argmax(1)
        assert (predicted != y).any()
        assert torch.equal(clf.craft(x, y), clf.craft(x, (y + 1) % C))
        clf.label = "true"
        assert torch.equal(clf.craft(x, predicted), clf.set_params(label="pred").craft(x, y))
        assert not torch.equal(clf.craft(x, y), clf.set_params(label="true").craft(x, y))


def test_fgsm_at_towards_the_least_likely_class(batch):
    x, _, y = (torch.as_tensor(v) for v in batch)
    clf = ready(
        FGSMATClassifier, adversary__eps=1e-3, adversary__clip=None,
        adversary__target="least_likely",
    )  # fmt: skip
    before = clf.module_(x).detach().log_softmax(1)
    after = clf.module_(clf.craft(x, y)).detach().log_softmax(1)
    rows = torch.arange(N)
    least = before.scatter(1, y[:, None], np.inf).argmin(1)  # but never the true one
    assert (after[rows, least] > before[rows, least]).all()


def test_without_a_radius_ar_is_natural_training(table):
    adversary = PGD(eps=0, n_steps=2, random_start="none")
    natural = fit(StandardClassifier, table)
    for cls in (AR, TRADESClassifier, ALPClassifier):
        found = fit(cls, table, adversary=adversary)
        for p, q in zip(found.module_.parameters(), natural.module_.parameters(), strict=True):
            assert_allclose(p.detach(), q.detach(), atol=1e-8)


def test_clean_samples_are_not_run_where_they_do_not_matter(table):
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = network()
            self.n_calls = 0

        def forward(self, x):
            self.n_calls += self.training
            return self.layers(x)

    def calls(cls, **params):
        return fit(cls, table, module=Counting, **params).module_.n_calls

    once = calls(PGDATClassifier)
    assert calls(MARTClassifier, beta=0) == once
    assert calls(AR, lam=0) == once
    assert calls(ALPClassifier, lam=0, ce_on="adv") == once
    assert calls(MARTClassifier) > once


# --- the attack of adversarial regularisation ----------------------------------------


def test_the_first_step_from_the_sample_does_not_depend_on_lam(batch):
    x, _, y = (torch.as_tensor(v) for v in batch)
    attack = {"adversary__n_steps": 1, "adversary__eps": 0.1, "adversary__clip": None}
    first = ready(PGDATClassifier, adversary__random_start="none", **attack).craft(x, y)
    for lam in (0, 0.1, 1.0, 5.0, 100.0):
        crafted = ready(AR, lam=lam, **attack).craft(x, y)
        assert_allclose(crafted, first)
        assert not crafted.requires_grad


def test_attack_lam_zero_is_an_attack_on_the_cross_entropy(batch):
    x, _, y = (torch.as_tensor(v) for v in batch)
    attack = {"adversary__n_steps": 5, "adversary__eps": 0.3, "adversary__clip": None}
    plain = ready(PGDATClassifier, adversary__random_start="none", **attack).craft(x, y)
    assert torch.equal(ready(AR, attack_lam=0, **attack).craft(x, y), plain)
    assert not torch.equal(ready(AR, lam=50, **attack).craft(x, y), plain)


def test_attack_follows_soft_labels(batch):
    """One step from another point: the gradient of CE with t = (onehot + lam p) / (1 + lam)."""
    x, x_adv, y = batch
    lam = 3.0
    clf = ready(AR, lam=lam)
    z, _ = outputs(clf, x, x_adv)
    t = torch.as_tensor((np.eye(C)[y] + lam * softmax(z)) / (1 + lam))
    gradients = []
    for objective in (
        lambda logits: clf.attack_objective()(logits, torch.tensor(y), None, torch.tensor(z)),
        lambda logits: -(1 + lam) * (t * logits.log_softmax(1)).sum(1),
    ):
        point = torch.tensor(x_adv, requires_grad=True)
        gradients.append(torch.autograd.grad(objective(clf.module_(point)).sum(), point)[0])
    assert_allclose(*gradients, rtol=1e-10, atol=1e-14)


def linear(weight):
    """Return logits (0, w.x)."""
    module = nn.Linear(len(weight), 2, bias=False).double()
    with torch.no_grad():
        module.weight[:] = torch.stack([torch.zeros(len(weight)), torch.tensor(weight)])
    return module


@pytest.mark.parametrize("lam", [0.0, 1.0, 10.0])
def test_attack_on_a_linear_model_reaches_the_corner(lam):
    rng = np.random.default_rng(0)
    w, x, y = rng.normal(size=5), rng.normal(size=(8, 5)), np.arange(8) % 2
    clf = ready(
        AR, lam=lam, module=linear(w), input_shape=(5,), classes=[0, 1],
        adversary__eps=0.4, adversary__step_size=0.1, adversary__clip=None,
    )  # fmt: skip
    found = clf.craft(torch.tensor(x), torch.tensor(y))
    side = 2 * y[:, None] - 1
    assert_allclose(found, x - 0.4 * side * np.sign(w), rtol=1e-12)


def test_attack_from_the_sample_may_miss_the_maximum():
    """Logit -1, label 1: the cross-entropy leads to -4, while the objective is highest at +2."""
    clf = ready(
        AR, lam=10, module=linear([1.0]), input_shape=(1,), classes=[0, 1],
        adversary__eps=3.0, adversary__clip=None,
    )  # fmt: skip
    x, y = torch.tensor([[-1.0]], dtype=torch.float64), torch.tensor([1])
    found = clf.craft(x, y)
    assert_allclose(found, [[-4.0]])
    assert_allclose(clf.training_loss(x, found, y).item(), 9.135, atol=5e-4)
    assert_allclose(clf.training_loss(x, x + 3, y).item(), 10.195, atol=5e-4)


def test_labels_matter_to_ar_and_not_to_trades(batch):
    x, _, y = (torch.as_tensor(v) for v in batch)
    for cls, matter in ((TRADESClassifier, False), (AR, True)):
        first, second = (
            ready(cls, adversary__eps=0.3).craft(x, labels) for labels in (y, y.roll(1))
        )
        assert torch.equal(first, second) != matter


def test_detached_clean_prediction_changes_the_gradient_only(batch):
    attached, detached = ready(AR), ready(AR, detach_natural=True)
    assert_allclose(loss_of(detached, *batch), loss_of(attached, *batch), rtol=1e-14)
    assert not torch.allclose(gradient(attached, *batch), gradient(detached, *batch), rtol=1e-3)
    # nothing but the attacked logits' share is left
    x, x_adv, y = (torch.as_tensor(v) for v in batch)
    detached.module_.zero_grad()
    p, logits = detached.module_(x).softmax(1).detach(), detached.module_(x_adv)
    plain = nn.functional.cross_entropy(logits, y, reduction="none")
    plain = plain + 5 * (p * (p.log() - logits.log_softmax(1))).sum(1)
    expected = torch.autograd.grad(plain.sum(), list(detached.module_.parameters()))
    assert_allclose(gradient(detached, *batch), torch.cat([g.flatten() for g in expected]))


def test_a_targeted_adversary(batch):
    x, _, y = (torch.as_tensor(v) for v in batch)
    attack = {"eps": 0.3, "n_steps": 3, "clip": None, "target": 2, "random_start": "none"}
    found = ready(AR, adversary=PGD(**attack)).craft(x, y)
    assert torch.equal(found, ready(PGDATClassifier, adversary=PGD(**attack)).craft(x, y))


# --- parameters ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("defence", "params", "message"),
    [
        (MARTClassifier, {"beta": -1.0}, "beta must be a finite number of at least 0"),
        (ALPClassifier, {"lam": "x"}, "lam must be a finite number"),
        (ALPClassifier, {"ce_on": "both"}, r"ce_on must be one of.*'both'"),
        (ALPClassifier, {"pairing": "l3"}, r"pairing must be one of.*'l3'"),
        (AR, {"lam": np.nan}, "lam must be a finite number"),
        (AR, {"attack_lam": -1}, "attack_lam must be a finite number"),
        (AR, {"kl_direction": "up"}, r"kl_direction must be one of.*'up'"),
        (MixedATClassifier, {"beta": -0.1}, "beta must be a finite number"),
        (FGSMATClassifier, {"a": 1.5}, r"a must be a number in \[0, 1\]"),
        (FGSMATClassifier, {"label": "least_likely"}, r"label must be one of.*'least_likely'"),
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
        (MARTClassifier, {}),
        (ALPClassifier, {}),
        (AR, {"lam": 1.0}),
        (MixedATClassifier, {}),
        (FGSMATClassifier, {}),
        (FGSMATClassifier, {"iterated": True}),
    ],
    ids=str,
)
def test_is_more_robust_than_natural_training(robust_accuracy, defence, params):
    clean, robust = robust_accuracy(defence, **params)
    natural_clean, natural_robust = robust_accuracy(StandardClassifier)
    assert natural_clean > 0.85
    assert clean > 0.6
    assert robust > natural_robust + 0.15
