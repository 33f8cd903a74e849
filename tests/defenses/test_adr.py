"""ADR: what is minimised and ascended, readings, and what it reduces to."""

import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn
from torch.nn import functional as F

from robustsk import PGD, ADRClassifier, MixedATClassifier, StandardClassifier
from robustsk.attacks.objectives import resolve_objective
from robustsk.datasets import load_digits_images
from robustsk.losses import global_compactness, global_smoothness, local_compactness

C, D = 3, 4
NONE = {"lam_lc": 0, "lam_gb": 0, "lam_smt": 0}


def network():
    return nn.Sequential(nn.Linear(D, 6), nn.Tanh(), nn.Linear(6, C)).double()


def ready(**params):
    clf = ADRClassifier(
        network, input_shape=(D,), classes=list(range(C)), random_state=0, device="cpu",
        adversary=PGD(eps=0.3, n_steps=3, clip=None), **params,
    ).initialize()  # fmt: skip
    clf.module_.train()
    return clf


def weights(clf):
    return np.concatenate([p.detach().numpy().ravel() for p in clf.module_.parameters()])


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    x = torch.as_tensor(rng.normal(size=(7, D)))
    x_adv = x + torch.as_tensor(rng.uniform(-0.5, 0.5, (7, D)))
    return x, x_adv, torch.arange(7) % C


@pytest.fixture
def data():
    rng = np.random.default_rng(1)
    y = np.arange(40) % C
    return rng.normal(size=(40, D)) + 2 * np.eye(C, D)[y], y


def terms(clf, batch):
    """Everything the loss is made of, by hand; clean quantities detached and not."""
    x, x_adv, y = batch
    first, _, last = clf.module_
    z, z_adv = torch.tanh(first(x)), torch.tanh(first(x_adv))
    logits, logits_adv = last(z), last(z_adv)
    p, p_adv = logits.softmax(1), logits_adv.softmax(1)
    return {
        "y": y, "z": z, "z_adv": z_adv, "p": p, "p_adv": p_adv,
        "ce": F.cross_entropy(logits, y, reduction="none")
        + F.cross_entropy(logits_adv, y, reduction="none"),
        "h": -(p * p.log()).sum(1), "h_adv": -(p_adv * p_adv.log()).sum(1),
    }  # fmt: skip


def check_gradients(clf, loss, expected):
    parameters = list(clf.module_.parameters())
    assert_allclose(loss.mean().item(), expected.mean().item())
    gradients = [torch.autograd.grad(v.mean(), parameters) for v in (loss, expected)]
    for a, b in zip(*gradients, strict=True):
        assert_allclose(a, b, atol=1e-12)


@pytest.mark.parametrize("pairs", ["clean", "clean_adv", "all"])
@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_loss(batch, pairs, p):
    clf = ready(
        lam_lc=0.7, lam_gb=0.3, lam_smt=2.0, lam_conf=0.4, alpha=0.9, p=p, pairs=pairs,
        latent_reduction="sum",
    )  # fmt: skip
    t = terms(clf, batch)
    distance = torch.linalg.vector_norm(t["z"] - t["z_adv"], p, dim=1)
    first, second = {
        "clean": (t["z"], t["z"]),
        "clean_adv": (t["z"], t["z_adv"]),
        "all": (torch.cat([t["z"], t["z_adv"]]),) * 2,
    }[pairs]
    label = t["y"].repeat(len(first) // 7)
    gaps = torch.cdist(first, second, p=float(p))
    divergence = (t["p"] * (t["p"] / t["p_adv"]).log()).sum(1)
    weight = (label[:, None] == label).double()
    weight = weight - (1 - weight) / 9
    expected = (
        t["ce"] + 0.7 * distance + 0.3 * (weight * gaps).mean()
        + 2.0 * divergence + 0.4 * (t["h"] + t["h_adv"])
    )  # fmt: skip
    check_gradients(clf, clf.training_loss(*batch), expected)


def test_released_reading(batch):
    clf = ready(preset="released", lam_lc=0.7, lam_gb=0.3, lam_smt=2.0, lam_conf=0.4)
    t = terms(clf, batch)
    z = t["z"].detach()
    distance = (z - t["z_adv"]).abs().mean(1)
    gaps = (z[:, None] - t["z_adv"]).abs().mean(2)
    same = (t["y"][:, None] == t["y"]).double()
    # the soft cross-entropy of their code is the divergence plus a constant
    p = t["p"].detach()
    soft = -(p * t["p_adv"].log()).sum(1) - t["h"].detach()
    expected = (
        0.5 * t["ce"] + 0.7 * distance + 0.3 * ((same - (1 - same) / 99) * gaps).mean()
        + 2.0 * soft + 0.4 * t["h_adv"]
    )  # fmt: skip
    check_gradients(clf, clf.training_loss(*batch), expected)
    given = ready(
        pairs="clean_adv", detach_clean=True, entropy_of="adv", ce_weight=0.5,
        lam_lc=0.7, lam_gb=0.3, lam_smt=2.0, lam_conf=0.4,
    )  # fmt: skip
    check_gradients(given, given.training_loss(*batch), given.training_loss(*batch))
    assert_array_equal(given.training_loss(*batch).detach(), clf.training_loss(*batch).detach())
    # what is given goes before the preset
    other = ready(preset="released", pairs="clean", **{**NONE, "lam_gb": 1.0})
    assert other._read("pairs") == "clean"


def test_same_points_have_no_local_terms(batch):
    x, _, y = batch
    clf = ready(lam_gb=0, lam_conf=1.0)
    t = terms(clf, (x, x, y))
    assert_allclose(clf.training_loss(x, x, y).detach(), (t["ce"] + 2 * t["h"]).detach())
    clf = ready(lam_gb=0)
    assert_allclose(clf.training_loss(x, x, y).detach(), t["ce"].detach())


def test_divergence_that_is_ascended():
    rng = np.random.default_rng(2)
    logits, clean = (torch.as_tensor(rng.normal(size=(5, C))) for _ in range(2))
    y = torch.zeros(5, dtype=torch.int64)
    p, q = logits.softmax(1), clean.softmax(1)
    for direction, expected in (
        ("reverse", (p * (p / q).log()).sum(1)),
        ("forward", (q * (q / p).log()).sum(1)),
    ):
        clf = ADRClassifier(objective="kl", kl_direction=direction)
        objective = resolve_objective(clf.attack_objective())
        assert objective.needs_clean
        assert_allclose(objective(logits, y, None, clean), expected)
        target = objective(logits, y, y, clean)
        assert_allclose(target, -F.cross_entropy(logits, y, reduction="none"))
    assert ADRClassifier().attack_objective() == "ce"


def test_without_terms_it_is_mixed_adversarial_training(data):
    common = {
        "module": network, "adversary": PGD(eps=0.3, n_steps=3), "max_epochs": 3,
        "batch_size": 16, "random_state": 0, "device": "cpu",
    }  # fmt: skip
    mixed = MixedATClassifier(**common).fit(*data)
    none = ADRClassifier(**NONE, **common).fit(*data)
    assert_array_equal(weights(none), weights(mixed))
    assert none.history_[:, "train_loss"] == mixed.history_[:, "train_loss"]
    assert "global_compactness" not in none.history_[-1]
    some = ADRClassifier(**{**NONE, "lam_lc": 1.0}, **common).fit(*data)
    assert not np.array_equal(weights(some), weights(mixed))
    assert "local_compactness" in some.history_[-1]


def test_compactness_is_in_the_history(data):
    x, y = data
    seen = []

    class Watching(ADRClassifier):
        def _compactness(self, z, z_adv, y):
            seen.append((len(y), local_compactness(z, z_adv), global_compactness(z, y, z_adv)))
            return super()._compactness(z, z_adv, y)

    clf = Watching(
        network, adversary__eps=0.3, batch_size=16, max_epochs=2, random_state=0, device="cpu"
    ).fit(x, y)
    assert [n for n, *_ in seen] == 2 * [16, 16, 8]
    last = seen[3:]
    for k, name in ((1, "local_compactness"), (2, "global_compactness")):
        expected = sum(s[k].sum().item() for s in last) / 40
        assert clf.history_[-1][name] == pytest.approx(expected)
    assert clf._totals is None  # of no use after training


def test_a_step_falls_when_a_layer_is_named(batch):
    clf = ready(layer="0", **{**NONE, "lam_lc": 1.0})
    first, _, last = clf.module_
    x, x_adv, y = batch
    with torch.no_grad():
        ce = sum(
            F.cross_entropy(last(torch.tanh(first(v))), y, reduction="none") for v in (x, x_adv)
        )
        expected = ce + (first(x) - first(x_adv)).abs().mean(1)
        assert_allclose(clf.training_loss(*batch), expected)


@pytest.mark.parametrize("layer", [None, "features.10", "features.4"])
def test_layers_of_a_cnn(layer):
    X, y = load_digits_images(return_X_y=True)
    clf = ADRClassifier(
        layer=layer, max_epochs=1, batch_size=30, adversary__n_steps=1, random_state=0
    ).fit(X[:60], y[:60])
    assert np.isfinite(clf.history_[-1, "global_compactness"])


@pytest.mark.slow
def test_layers_of_a_network_of_torchvision():
    models = pytest.importorskip("torchvision.models")
    rng = np.random.default_rng(0)
    X, y = rng.uniform(size=(8, 3, 16, 16)).astype(np.float32), np.arange(8) % 2
    params = {
        "module__num_classes": 2, "max_epochs": 1, "adversary__n_steps": 1, "random_state": 0,
        "device": "cpu",
    }  # fmt: skip
    found = {
        layer: ADRClassifier(models.resnet18, layer=layer, **params)
        .fit(X, y)
        .history_[-1, "local_compactness"]
        for layer in (None, "avgpool", "layer2.0.bn1")
    }
    assert found[None] == found["avgpool"]  # before and after flattening
    assert found[None] != found["layer2.0.bn1"]
    with pytest.raises(ValueError, match=r"no layer 'pool'.*'layer1.0.conv1'.*'fc'"):
        ADRClassifier(models.resnet18, layer="pool", **params).fit(X, y)


def test_wrong_name_of_a_layer_lists_the_right_ones(data):
    with pytest.raises(ValueError, match=r"no layer 'latent'.*\['0', '1', '2'\]"):
        ADRClassifier(network, layer="latent").fit(*data)


@pytest.mark.parametrize(
    ("params", "match"),
    [
        ({"lam_gb": -1}, "lam_gb must be"),
        ({"alpha": 0}, "alpha must be"),
        ({"p": 0.5}, "p must be"),
        ({"preset": "tensorflow"}, "preset must be one of"),
        ({"objective": "cw"}, "objective must be one of"),
        ({"kl_direction": "both"}, "kl_direction must be one of"),
        ({"pairs": "adv"}, "pairs must be one of"),
        ({"entropy_of": "clean"}, "entropy_of must be one of"),
        ({"latent_reduction": "max"}, "latent_reduction must be one of"),
        ({"ce_weight": -1}, "ce_weight must be"),
        ({"detach_clean": "yes"}, "detach_clean must be one of"),
    ],
)
def test_bad_parameters(data, params, match):
    with pytest.raises(ValueError, match=match):
        ADRClassifier(network, **params).fit(*data)


@pytest.mark.slow
def test_more_robust_than_natural_training():
    X, y = load_digits_images(return_X_y=True)
    attack = PGD(eps=0.15, n_steps=10, random_state=0)
    scores = [
        clf.set_params(
            module="mlp", max_epochs=8, adversary__eps=0.15, adversary__n_steps=4, random_state=0
        )
        .fit(X[:700], y[:700])
        .score_adversarial(X[700:900], y[700:900], attack)
        for clf in (StandardClassifier(), ADRClassifier(), ADRClassifier(objective="kl"))
    ]
    assert min(scores[1:]) > scores[0] + 0.1


# --- smoothness over pairs -------------------------------------------------------------


@pytest.mark.parametrize("preset", [None, "released"])
@pytest.mark.parametrize("alpha", [0.99, 0.6])
def test_smoothness_over_pairs(batch, preset, alpha):
    """With the preset its gradient is that of the authors' cross-entropy."""
    params = {**NONE, "lam_gb_smt": 0.8, "alpha": alpha, "preset": preset}
    clf = ready(**params)
    t = terms(clf, batch)
    p = t["p"].detach() if preset else t["p"]
    same = (t["y"][:, None] == t["y"]).double()
    weight = same + (1 - same) * (alpha - 1) / alpha
    cross = -(p[:, None] * t["p_adv"].log()[None]).sum(2)
    entropy = -(p * p.log()).sum(1)
    expected = (weight * (cross - entropy[:, None])).mean(1)
    loss = clf.training_loss(*batch) - ready(**{**params, "lam_gb_smt": 0}).training_loss(*batch)
    assert_allclose(loss.detach(), 0.8 * expected.detach(), atol=1e-14)
    ce = (0.5 if preset else 1.0) * t["ce"].mean()
    released = (weight * cross).mean() if preset else expected.mean()
    found = torch.autograd.grad(clf.training_loss(*batch).mean(), list(clf.module_.parameters()))
    wanted = torch.autograd.grad(ce + 0.8 * released, list(clf.module_.parameters()))
    for a, b in zip(found, wanted, strict=True):
        assert_allclose(a, b, atol=1e-12)


def test_smoothness_over_pairs_of_one_sample_is_smoothness():
    logits, logits_adv = torch.as_tensor(np.random.default_rng(0).normal(size=(2, 1, 4)))
    y = torch.tensor([2])
    divergence = (logits.softmax(1) * (logits.softmax(1) / logits_adv.softmax(1)).log()).sum(1)
    assert_allclose(global_smoothness(logits, logits_adv, y), divergence)
    same = global_smoothness(logits.repeat(3, 1), logits_adv.repeat(3, 1), y.repeat(3))
    assert_allclose(same, divergence.repeat(3))


def test_a_sample_of_weight_two_is_two_pairs(batch):
    _, _, y = batch
    rng = np.random.default_rng(0)
    logits, logits_adv = torch.as_tensor(rng.normal(size=(2, 7, C)))
    twice = torch.tensor([0, 0, 1, 2, 3, 4, 5, 6])
    weight = torch.tensor([2.0, 1, 1, 1, 1, 1, 1])
    found = global_smoothness(logits, logits_adv, y, sample_weight=weight)
    assert_allclose(
        found[twice], global_smoothness(logits[twice], logits_adv[twice], y[twice]), atol=1e-14
    )


def test_smoothness_over_pairs_trains(data):
    def fit(weight):
        clf = ADRClassifier(
            network, lam_gb_smt=weight, adversary__eps=0.3, adversary__n_steps=2, max_epochs=1,
            random_state=0, device="cpu",
        )  # fmt: skip
        return weights(clf.fit(*data))

    assert np.abs(fit(1.0) - fit(0.0)).max() > 1e-4
    with pytest.raises(ValueError, match="lam_gb_smt"):
        fit(-1.0)
    with pytest.raises(ValueError, match="one shape"):
        global_smoothness(torch.zeros(3, 2), torch.zeros(3, 4), torch.zeros(3))
    with pytest.raises(ValueError, match="y must have shape"):
        global_smoothness(torch.zeros(3, 2), torch.zeros(3, 2), torch.zeros(4))
    with pytest.raises(ValueError, match="alpha"):
        global_smoothness(torch.zeros(3, 2), torch.zeros(3, 2), torch.zeros(3), alpha=0)
