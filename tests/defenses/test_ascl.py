"""ASCL: what is minimised, projections, counters, and what it reduces to."""

import pickle

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from torch import nn
from torch.nn import functional as F

from robustsk import (
    PGD,
    ASCLClassifier,
    MixedATClassifier,
    PGDATClassifier,
    StandardClassifier,
)
from robustsk.datasets import load_digits_images
from robustsk.losses import contrastive_selection, supervised_contrastive
from robustsk.models import ProjectionHead
from robustsk.training import AWP, AdversarialScoring, UDRAdversary

C, D = 3, 4
NONE = {"lam_scl": 0, "lam_vat": 0}


def network():
    return nn.Sequential(nn.Linear(D, 6), nn.Tanh(), nn.Linear(6, C)).double()


def ready(**params):
    clf = ASCLClassifier(
        network, input_shape=(D,), classes=list(range(C)), random_state=0, device="cpu",
        adversary=PGD(eps=0.3, n_steps=3, clip=None), **params,
    ).initialize()  # fmt: skip
    clf.module_.train()
    return clf


def small(**params):
    return ASCLClassifier(
        **{
            "module": network, "adversary__eps": 0.3, "adversary__n_steps": 2, "max_epochs": 2,
            "batch_size": 16, "random_state": 0, "device": "cpu", **params,
        }
    )  # fmt: skip


def weights(module):
    return np.concatenate([p.detach().numpy().ravel() for p in module.parameters()])


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    # far enough apart for predictions of all kinds
    x = torch.as_tensor(rng.normal(size=(7, D))) * 4
    x_adv = x + torch.as_tensor(rng.uniform(-6, 6, (7, D)))
    return x, x_adv, torch.arange(7) % C


@pytest.fixture
def data():
    rng = np.random.default_rng(1)
    y = np.arange(40) % C
    return rng.normal(size=(40, D)) + 2 * np.eye(C, D)[y], y


@pytest.mark.parametrize("selection", ["global", "hard", "soft", "leaked"])
@pytest.mark.parametrize("projection", [None, "mlp"])
@pytest.mark.parametrize("natural", [True, False])
def test_loss(batch, selection, projection, natural):
    x, x_adv, y = batch
    clf = ready(
        selection=selection, lam_scl=0.5, lam_vat=0.7, temperature=0.3, similarity="l2",
        projection=projection, natural=natural,
    )  # fmt: skip
    first, _, last = clf.module_
    z, z_adv = torch.tanh(first(x)), torch.tanh(first(x_adv))
    logits, logits_adv = last(z), last(z_adv)
    p, p_adv = logits.softmax(1), logits_adv.softmax(1)
    expected = F.cross_entropy(logits_adv, y, reduction="none")
    if natural:
        expected = expected + F.cross_entropy(logits, y, reduction="none")
    if projection:
        a, b = clf.projection_.parameters()
        z, z_adv = ((v @ a.T).relu() @ b.T for v in (z, z_adv))
    contrast = supervised_contrastive(
        z, z_adv, y, logits.argmax(1), logits_adv.argmax(1), selection, 0.3, "l2"
    )
    divergence = (p * (p / p_adv).log()).sum(1)
    expected = expected + 0.5 * contrast + 0.7 * divergence
    found = clf.training_loss(*batch)
    assert_allclose(found.detach(), expected.detach())
    parameters = [*clf.module_.parameters(), *(clf.projection_ or nn.ReLU()).parameters()]
    gradients = [torch.autograd.grad(v.mean(), parameters) for v in (found, expected)]
    for g, e in zip(*gradients, strict=True):
        assert g.abs().max() > 0
        assert_allclose(g, e, atol=1e-12)


def test_options_reach_the_loss(batch):
    x, x_adv, y = batch
    found = {}
    for own in ("own", "clean"):
        for keep in (True, False):
            clf = ready(anchor_prediction=own, keep_counterpart=keep, lam_vat=0)
            plain = ready(**NONE)
            logits, z = clf.logits_and_features(x)
            logits_adv, z_adv = clf.logits_and_features(x_adv)
            scl = supervised_contrastive(
                z, z_adv, y, logits.argmax(1), logits_adv.argmax(1), "leaked",
                anchor_prediction=own, keep_counterpart=keep,
            )  # fmt: skip
            found[own, keep] = (clf.training_loss(*batch) - plain.training_loss(*batch)).detach()
            assert_allclose(found[own, keep], scl.detach(), atol=1e-10)
    assert len({round(v.sum().item(), 6) for v in found.values()}) == 4


def test_same_points(batch):
    """With a radius of zero the divergence is zero and the views are one."""
    x, _, y = batch
    clf, without = ready(lam_vat=5.0), ready(lam_vat=0)
    assert_allclose(clf.training_loss(x, x, y).detach(), without.training_loss(x, x, y).detach())


@pytest.mark.parametrize(
    ("natural", "other"), [(True, MixedATClassifier), (False, PGDATClassifier)]
)
def test_without_terms_it_is_adversarial_training(data, natural, other):
    common = {
        "module": network, "adversary": PGD(eps=0.3, n_steps=3), "max_epochs": 3,
        "batch_size": 16, "random_state": 0, "device": "cpu",
    }  # fmt: skip
    plain = other(**common).fit(*data)
    none = ASCLClassifier(natural=natural, **NONE, **common).fit(*data)
    assert_array_equal(weights(none.module_), weights(plain.module_))
    assert none.history_[:, "train_loss"] == plain.history_[:, "train_loss"]
    assert "n_positive" not in none.history_[-1]
    some = ASCLClassifier(natural=natural, lam_scl=1, lam_vat=0, **common).fit(*data)
    assert not np.array_equal(weights(some.module_), weights(plain.module_))


# --- counters ------------------------------------------------------------------------


def test_numbers_of_positives_and_negatives(data):
    X, y = data
    clf = small(selection="global", batch_size=-1).fit(X, y)
    n = np.bincount(y)[y]
    for epoch in clf.history_:
        assert epoch["n_positive"] == pytest.approx((2 * n - 1).mean())
        assert epoch["n_negative"] == pytest.approx((2 * (40 - n)).mean())
    seen = []

    class Watching(ASCLClassifier):
        def _select(self, x, y, logits, logits_adv):
            members = contrastive_selection(y, logits.argmax(1), logits_adv.argmax(1), "leaked")
            seen.append((len(y), *(m.sum(1).mean().item() for m in members)))
            return super()._select(x, y, logits, logits_adv)

    clf = Watching(network, batch_size=16, max_epochs=2, random_state=0, device="cpu").fit(X, y)
    sizes, positive, negative = np.transpose(seen)
    for k, epoch in enumerate(clf.history_):
        rows = slice(3 * k, 3 * k + 3)
        for name, values in (("n_positive", positive), ("n_negative", negative)):
            expected = np.average(values[rows], weights=sizes[rows])
            assert epoch[name] == pytest.approx(expected, rel=1e-5)


def test_the_last_evaluation_of_a_batch_counts(data):
    perturbed = small(selection="global", batch_size=-1, weight_perturbation=AWP()).fit(*data)
    plain = small(selection="global", batch_size=-1).fit(*data)
    assert perturbed.history_[:, "n_negative"] == plain.history_[:, "n_negative"]


def test_copies_are_no_positives_of_each_other(data):
    X, y = data
    twice = small(selection="global", batch_size=-1).fit(np.tile(X, (2, 1)), np.tile(y, 2))
    weighted = small(selection="global", batch_size=-1).fit(X, y, np.full(40, 2.0))
    assert_allclose(weights(twice.module_), weights(weighted.module_), rtol=1e-6, atol=1e-9)
    for name in ("n_positive", "n_negative"):
        assert twice.history_[0, name] == pytest.approx(weighted.history_[0, name])


# --- projections ---------------------------------------------------------------------


@pytest.mark.parametrize("projection", ["linear", "mlp", lambda n: nn.Linear(n, 5)])
def test_projection_is_trained_and_not_used_in_prediction(data, projection):
    X, y = data
    before = small(projection=projection, max_epochs=0).fit(X, y)
    clf = small(projection=projection).fit(X, y)
    assert not np.array_equal(weights(clf.projection_), weights(before.projection_))
    owned = {id(p) for group in clf.optimizer_.param_groups for p in group["params"]}
    everything = [*clf.module_.parameters(), *clf.projection_.parameters()]
    assert {id(p) for p in everything} == owned
    assert {p.dtype for p in clf.projection_.parameters()} == {torch.float64}
    assert not clf.projection_.training
    logits = clf.decision_function(X)
    with torch.no_grad():
        assert_allclose(logits, clf.module_(torch.as_tensor(X)))
        for p in clf.projection_.parameters():
            p.fill_(torch.nan)
    assert_array_equal(clf.decision_function(X), logits)
    assert 0 <= clf.score_adversarial(X, y) <= 1


def test_projection_goes_on_and_travels(data):
    X, y = data
    clf = small(projection="linear", projection__out_features=9).fit(X, y)
    assert [p.shape for p in clf.projection_.parameters()] == [(9, 6)]
    copies = [pickle.loads(pickle.dumps(clf)) for _ in range(2)]
    before = weights(clf.projection_)
    for copy in copies:
        assert_array_equal(weights(copy.projection_), before)
        assert_array_equal(copy.predict_proba(X), clf.predict_proba(X))
    clf.partial_fit(X, y)
    assert not np.array_equal(weights(clf.projection_), before)
    copies[0].partial_fit(X, y)
    assert_array_equal(weights(copies[0].projection_), weights(clf.projection_))
    copies[1].set_params(warm_start=True, lr=1e-5).fit(X, y)
    assert np.abs(weights(copies[1].projection_) - before).max() < 1e-3
    assert len(copies[1].history_) == 4
    # from the beginning again
    fresh = clone(clf)
    assert fresh.get_params()["projection__out_features"] == 9
    assert not fresh.initialized_
    assert fresh.projection_ is None
    assert_array_equal(weights(fresh.fit(X, y).projection_), before)
    assert_array_equal(weights(clf.fit(X, y).projection_), before)
    clf.set_params(projection=None)
    del clf.projection__out_features
    assert clf.fit(X, y).projection_ is None


def test_projection_recovers_from_a_divergence(data):
    def poison(grad):
        return grad * torch.nan

    class Breaking(ASCLClassifier):
        def on_epoch_begin(self, net, *args, **kwargs):
            super().on_epoch_begin(net, *args, **kwargs)
            if self.epoch == 1:
                for p in (*self.module_.parameters(), *self.projection_.parameters()):
                    p.register_hook(poison)

    clf = Breaking(
        network, projection="mlp", max_epochs=3, batch_size=16, random_state=0, device="cpu"
    )
    with pytest.raises(FloatingPointError):
        clf.fit(*data)
    assert np.isfinite(weights(clf.module_)).all()
    assert np.isfinite(weights(clf.projection_)).all()


def test_projection_of_a_layer_by_name():
    X, y = load_digits_images(return_X_y=True)
    for layer, n_features in ((None, 200), ("features.10", 256), ("features.4", 512)):
        clf = ASCLClassifier(
            layer=layer, projection="linear", max_epochs=1, batch_size=30, adversary__n_steps=1,
            random_state=0,
        ).fit(X[:60], y[:60])  # fmt: skip
        assert [p.shape for p in clf.projection_.parameters()] == [(128, n_features)]
        assert isinstance(clf.projection_, ProjectionHead)


def test_layer_of_a_network_of_torchvision():
    models = pytest.importorskip("torchvision.models")
    rng = np.random.default_rng(0)
    X, y = rng.uniform(size=(8, 3, 16, 16)).astype(np.float32), np.arange(8) % 2
    clf = ASCLClassifier(
        models.resnet18, module__num_classes=2, layer="layer2", projection="linear", max_epochs=1,
        adversary__n_steps=1, random_state=0, device="cpu",
    )  # fmt: skip
    clf.fit(X, y)
    assert [p.shape for p in clf.projection_.parameters()] == [(128, 128 * 2 * 2)]
    assert np.isfinite(clf.history_[-1, "train_loss"])
    with pytest.raises(ValueError, match=r"no layer 'head'.*'layer1.0.conv1'.*'fc'"):
        clf.set_params(layer="head").fit(X, y)


def test_network_whose_width_is_not_known_yet():
    clf = ASCLClassifier(network(), projection="linear", layer="1", classes=[0, 1, 2])
    with pytest.raises(ValueError, match=r"projection before it has seen data.*input_shape"):
        clf.initialize()
    assert clf.set_params(input_shape=(D,)).initialize().projection_ is not None


# --- the rest ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "match"),
    [
        ({"lam_scl": -1}, "lam_scl must be"),
        ({"lam_vat": "much"}, "lam_vat must be"),
        ({"temperature": 0}, "temperature must be greater than 0"),
        ({"selection": "merge"}, "selection must be one of"),
        ({"similarity": "dot"}, "similarity must be one of"),
        ({"anchor_prediction": "adv"}, "anchor_prediction must be one of"),
        ({"natural": 2}, "natural must be one of"),
        ({"projection": "conv"}, "projection must be None"),
        ({"layer": "latent"}, r"no layer 'latent'.*\['0', '1', '2'\]"),
        ({"layer": "latent", "projection": "mlp"}, r"no layer 'latent'.*\['0', '1', '2'\]"),
    ],
)
def test_bad_parameters(data, params, match):
    with pytest.raises(ValueError, match=match):
        small(**params).fit(*data)


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
        for clf in (
            StandardClassifier(), ASCLClassifier(), ASCLClassifier(selection="global"),
            ASCLClassifier(projection="mlp", natural=False),
        )
    ]  # fmt: skip
    assert min(scores[1:]) > scores[0] + 0.1


# --- two crops -------------------------------------------------------------------------


@pytest.fixture
def views():
    """Two crops of seven samples, and the adversarial examples of both."""
    rng = np.random.default_rng(2)
    x = torch.as_tensor(rng.normal(size=(7, D))) * 4
    crops = [x + torch.as_tensor(rng.normal(size=(7, D))) for _ in range(2)]
    attacked = [crop + torch.as_tensor(rng.uniform(-4, 4, (7, D))) for crop in crops]
    return x, (*crops, *attacked), torch.arange(7) % C


def jitter(x):
    return x + 0.05 * torch.randn_like(x)


def by_hand(anchors, pred, labels, selection, temperature):
    """The contrastive loss of all anchors, pair by pair; the partner of i is i + n."""
    z = F.normalize(anchors).detach().numpy()
    n, losses = len(z) // 2, []
    for i in range(2 * n):
        partner = (i + n) % (2 * n)
        taken = [k for k in range(2 * n) if selection == "global" or pred[k] == pred[i]]
        same = {k for k in taken if k != i and labels[k] == labels[i]} | {partner}
        others = [k for k in taken if labels[k] != labels[i]]
        terms = {k: np.exp(z[i] @ z[k] / temperature) for k in (*same, *others)}
        total = sum(terms.values())
        losses.append(-np.mean([np.log(terms[k] / total) for k in same]))
    return np.add(losses[:n], losses[n:])


@pytest.mark.parametrize("crops", ["joint", "across", "within"])
@pytest.mark.parametrize("selection", ["global", "leaked"])
@pytest.mark.parametrize("natural", [True, False])
def test_loss_of_two_crops(views, crops, selection, natural):
    x, four, y = views
    clf = ready(
        crops=crops, augmentation=jitter, selection=selection, natural=natural, lam_scl=0.5,
        lam_vat=0.7, temperature=0.3,
    )  # fmt: skip
    first, _, last = clf.module_
    z = [torch.tanh(first(v)) for v in four]
    logits = [last(v) for v in z]
    pred = [v.argmax(1) for v in logits]
    p = [v.softmax(1) for v in logits]
    expected = 0.0
    for clean, attacked in ((0, 2), (1, 3)):
        expected = expected + F.cross_entropy(logits[attacked], y, reduction="none") / 2
        if natural:
            expected = expected + F.cross_entropy(logits[clean], y, reduction="none") / 2
        divergence = (p[clean] * (p[clean] / p[attacked]).log()).sum(1)
        expected = expected + 0.7 * divergence / 2
    if crops == "joint":
        # the partner of a crop is its adversarial example
        found = by_hand(torch.cat(z), torch.cat(pred), y.repeat(4), selection, 0.3)
        contrast = found.reshape(2, 7).mean(0)
    else:
        pairs = {"across": ((0, 1), (2, 3)), "within": ((0, 2), (1, 3))}[crops]
        contrast = np.mean(
            [
                by_hand(
                    torch.cat([z[i], z[j]]), torch.cat([pred[i], pred[j]]), y.repeat(2), selection,
                    0.3,
                )
                for i, j in pairs
            ],
            axis=0,
        )  # fmt: skip
    loss = clf.training_loss(x, four, y)
    assert_allclose(loss.detach(), expected.detach() + 0.5 * torch.as_tensor(contrast))
    gradients = torch.autograd.grad(loss.mean(), list(clf.module_.parameters()))
    assert all(g.abs().max() > 0 for g in gradients)


def test_two_crops_that_are_one(data):
    """Where nothing is cropped, "within" is the loss of one crop."""
    adversary = PGD(eps=0.3, n_steps=2, random_start="none")
    found = [
        small(crops=crops, augmentation=nn.Identity(), adversary=adversary).fit(*data)
        for crops in (None, "within")
    ]
    assert_allclose(*(clf.predict_proba(data[0]) for clf in found), rtol=1e-9)
    assert_allclose(*(clf.history_[:, "n_positive"] for clf in found))


@pytest.mark.parametrize("crops", ["joint", "across", "within"])
def test_two_crops_are_made_and_attacked(data, crops):
    """Each by itself, and from the random_state; sample weights, projections and AWP go along."""
    X, y = data
    params = {"crops": crops, "augmentation": jitter, "selection": "global", "batch_size": -1}
    clf = small(**params).fit(X, y)
    n = len(y) * (2 if crops == "joint" else 1)
    total = np.add(clf.history_[:, "n_positive"], clf.history_[:, "n_negative"])
    assert_allclose(total, 2 * n - 1)
    again = small(**params).fit(X, y)
    assert_array_equal(weights(clf.module_), weights(again.module_))
    x, labels = torch.as_tensor(X), torch.as_tensor(y)
    with clf._session(fresh=False) as interruptible, interruptible():
        views = clf.craft(x, labels)
    assert len({float(view.sum()) for view in views}) == 4
    for crop, attacked in zip(views[:2], views[2:], strict=True):
        assert 0.2 < (crop - attacked).abs().max() <= 0.3 + 1e-12
    rich = small(
        projection="linear", weight_perturbation=AWP(), adversary=UDRAdversary(eps=0.3, n_steps=2),
        callbacks=[AdversarialScoring(PGD(eps=0.1, n_steps=1), on_train=True)], **params,
    )  # fmt: skip
    rich.fit(X, y, sample_weight=np.linspace(0.1, 2, len(y)))
    assert np.isfinite(weights(rich.module_)).all()


def test_crops_that_do_not_go(data):
    with pytest.raises(ValueError, match="crops='joint' needs an augmentation"):
        small(crops="joint").fit(*data)
    with pytest.raises(ValueError, match="crops must be one of"):
        small(crops="both", augmentation=jitter).fit(*data)
    with pytest.raises(ValueError, match="leave it at 'own'"):
        small(crops="across", augmentation=jitter, anchor_prediction="clean").fit(*data)
