"""Supervised contrastive loss, selections, and their relatives."""

import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from robustsk.losses import (
    contrastive_loss,
    contrastive_selection,
    info_nce,
    nt_xent,
    supervised_contrastive,
    triplet_loss,
)
from robustsk.metrics import relative_divergence

SELECTIONS = ["global", "hard", "soft", "leaked"]
SIMILARITIES = ["cosine", "l1", "l2", "linf"]


def directions(*degrees):
    angle = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angle.cos(), angle.sin()], 1)


Y = torch.tensor([0, 0, 1, 1])
PRED, PRED_ADV = Y, torch.tensor([0, 1, 1, 0])
Z, Z_ADV = directions(0, 30, 90, 120), directions(10, 60, 80, 45)


def random(n=8, d=5, seed=0, n_classes=3):
    rng = np.random.default_rng(seed)
    z, z_adv = (torch.as_tensor(rng.normal(size=(n, d))) for _ in range(2))
    y, pred, pred_adv = (torch.as_tensor(rng.integers(n_classes, size=n)) for _ in range(3))
    return z, z_adv, y, pred, pred_adv


def score(a, b, similarity):
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    if similarity == "cosine":
        return a @ b
    return -np.linalg.norm(a - b, {"l1": 1, "l2": 2, "linf": np.inf}[similarity])


def by_hand(batch, selection="global", temperature=0.5, similarity="cosine", own=True, keep=True):
    """The formula, one anchor and one member after the other."""
    z, z_adv, y, pred, pred_adv = (np.asarray(v) for v in batch)
    losses = np.zeros((2, len(y)))
    views = ((z, pred), (z_adv, pred_adv))
    for a, (anchors, anchor_preds) in enumerate(views):
        for i in range(len(y)):
            p_i = anchor_preds[i] if own else pred[i]
            counterpart = score(anchors[i], views[1 - a][0][i], similarity) / temperature
            positives = []
            if keep or selection != "leaked" or pred[i] == pred_adv[i]:
                positives.append(counterpart)
            negatives = []
            for members, preds in views:
                for j in range(len(y)):
                    if j == i:
                        continue
                    value = score(anchors[i], members[j], similarity) / temperature
                    if y[j] == y[i]:
                        if selection != "leaked" or preds[j] == p_i:
                            positives.append(value)
                    elif {"global": True, "hard": preds[j] == y[i]}.get(selection, preds[j] == p_i):
                        negatives.append(value)
            if positives:
                total = np.log(np.exp(positives + negatives).sum())
                losses[a, i] = np.mean([total - value for value in positives])
    return losses.sum(0)


# --- values --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 3.544252),
        ({"selection": "hard"}, 2.952938),
        ({"selection": "soft"}, 3.145905),
        ({"selection": "soft", "anchor_prediction": "clean"}, 2.952938),
        ({"selection": "leaked"}, 2.681106),
        ({"selection": "leaked", "anchor_prediction": "clean"}, 2.589880),
        ({"selection": "leaked", "keep_counterpart": False}, 1.573024),
        ({"similarity": "l2"}, 3.676091),
        ({"similarity": "l1"}, 3.790079),
        ({"similarity": "linf"}, 3.709973),
    ],
)
def test_known_values(options, expected):
    found = supervised_contrastive(Z, Z_ADV, Y, PRED, PRED_ADV, temperature=0.5, **options)
    assert_allclose(found.mean(), expected, atol=1e-6)


def test_known_values_of_single_anchors():
    positives, negatives = (m.double() for m in contrastive_selection(Y))
    clean = [1.543391, 1.687421, 1.616830, 1.545725]
    adv = [1.561166, 2.181534, 1.704571, 2.336367]
    for first, expected in ((True, clean), (False, adv)):
        mask = torch.tensor([first] * 4 + [not first] * 4)[:, None]
        found = contrastive_loss(Z, Z_ADV, positives * mask, negatives * mask, 0.5)
        assert_allclose(found, expected, atol=1e-6)
    assert_allclose(nt_xent(Z, Z_ADV, 0.5).mean(), 3.516890, atol=1e-6)


def test_known_divergences_of_the_same_data():
    for members, expected in (
        ("both", (0.202882, 0.769555, 0.263635)),
        ("adv", (0.271789, 0.539110, 0.504144)),
    ):
        found = relative_divergence(Z.numpy(), Z_ADV.numpy(), Y.numpy(), members=members)
        assert_allclose((found.within, found.between, found.ratio), expected, atol=1e-6)


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize(("own", "keep"), [(True, True), (False, True), (True, False)])
def test_against_loops(selection, similarity, own, keep):
    batch = random(seed=4)
    found = supervised_contrastive(
        *batch, selection=selection, temperature=0.5, similarity=similarity,
        anchor_prediction="own" if own else "clean", keep_counterpart=keep,
    )  # fmt: skip
    assert_allclose(found, by_hand(batch, selection, 0.5, similarity, own, keep))


# --- closed forms --------------------------------------------------------------------


def test_closed_forms():
    z, _, y, *_ = random()
    same = torch.ones_like(z)
    n = len(z)
    assert_allclose(supervised_contrastive(same, same, y), 2 * math.log(2 * n - 1))
    assert (supervised_contrastive(z[:1], 3 * z[:1], y[:1]) == 0).all()
    ends = torch.tensor([[1.0, 0.0]] * 3 + [[-1.0, 0.0]] * 3, dtype=torch.float64)
    expected = 2 * math.log(5 + 6 * math.exp(-2 / 0.3))
    classes = torch.tensor([0] * 3 + [1] * 3)
    assert_allclose(supervised_contrastive(ends, ends, classes, temperature=0.3), expected)


def test_one_positive_and_one_negative():
    z, z_adv, *_ = random(n=2)
    cos = torch.nn.functional.cosine_similarity
    positives = torch.zeros(4, 4, dtype=torch.float64)
    negatives = positives.clone()
    positives[0, 2] = negatives[0, 1] = 1
    found = contrastive_loss(z, z_adv, positives, negatives, 0.2)
    difference = cos(z[:1], z[1:]) - cos(z[:1], z_adv[:1])
    assert_allclose(found, [torch.nn.functional.softplus(difference / 0.2).item(), 0])
    nce = info_nce(z[:1], z_adv[:1], z[1:], 0.2)
    assert_allclose(nce, found[:1])


def test_twice_the_mean_over_all_anchors():
    """Against the usual form of the loss, over 2n samples with no notion of a counterpart."""
    z, z_adv, y, *_ = random()
    views, labels = torch.cat([z, z_adv]), y.repeat(2)
    unit = views / views.norm(dim=1, keepdim=True)
    other = ~torch.eye(16, dtype=torch.bool)
    scores = (unit @ unit.T / 0.2).masked_fill(~other, -math.inf)
    log_p = (scores - scores.logsumexp(1, keepdim=True)).masked_fill(~other, 0)
    positive = (labels[:, None] == labels) & other
    usual = (-(positive * log_p).sum(1) / positive.sum(1)).mean()
    assert_allclose(supervised_contrastive(z, z_adv, y, temperature=0.2).mean(), 2 * usual)


def test_classes_of_one_sample_make_it_self_supervised():
    z, z_adv, *_ = random()
    found = supervised_contrastive(z, z_adv, torch.arange(8), temperature=0.3)
    assert_allclose(nt_xent(z, z_adv, 0.3), found)


@pytest.mark.parametrize("selection", SELECTIONS)
def test_lower_bound(selection):
    for seed in range(5):
        batch = random(seed=seed)
        n_positive = contrastive_selection(*batch[2:], selection)[0].sum(1)
        bound = n_positive.log().reshape(2, -1).sum(0).double()
        found = supervised_contrastive(*batch, selection=selection, temperature=0.3)
        assert (found >= bound - 1e-6).all()


# --- selections ----------------------------------------------------------------------


def test_selections_are_nested():
    for seed in range(10):
        *_, y, pred, pred_adv = random(seed=seed, n=10)
        found = {s: contrastive_selection(y, pred, pred_adv, s) for s in SELECTIONS}
        positives = {s: p for s, (p, _) in found.items()}
        negatives = {s: n for s, (_, n) in found.items()}
        assert (sum(found["global"]).sum(1) == 19).all()
        assert_array_equal(positives["hard"], positives["global"])
        assert_array_equal(positives["soft"], positives["global"])
        assert_array_equal(negatives["leaked"], negatives["soft"])
        assert (positives["leaked"] <= positives["global"]).all()
        for s in ("hard", "soft"):
            assert (negatives[s] <= negatives["global"]).all()
        assert positives["leaked"].sum() < positives["global"].sum()


def test_fewer_negatives_mean_a_smaller_loss():
    for seed in range(5):
        batch = random(seed=seed)
        full, hard, soft = (
            supervised_contrastive(*batch, selection=s) for s in ("global", "hard", "soft")
        )
        assert (hard <= full + 1e-12).all()
        assert (soft <= full + 1e-12).all()


def test_constant_and_perfect_predictions():
    *_, y, _, _ = random(n=10)
    constant = torch.zeros_like(y)
    whole = contrastive_selection(y)
    for s in ("soft", "leaked"):
        for found, expected in zip(
            contrastive_selection(y, constant, constant, s), whole, strict=True
        ):
            assert_array_equal(found, expected)
    perfect = {s: contrastive_selection(y, y, y, s) for s in ("hard", "soft", "leaked")}
    for positives, negatives in perfect.values():
        assert negatives.sum() == 0
        assert_array_equal(positives, whole[0])
    pred_adv = (y + 1) % 3
    hard, soft = (
        contrastive_selection(y, y, pred_adv, s, anchor_prediction="clean")[1]
        for s in ("hard", "soft")
    )
    assert_array_equal(hard, soft)
    assert hard.sum() > 0


def test_anchor_without_a_positive():
    z = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    y, pred, pred_adv = torch.tensor([0, 1]), torch.tensor([0, 1]), torch.tensor([1, 0])
    found = supervised_contrastive(
        z, z, y, pred, pred_adv, selection="leaked", keep_counterpart=False
    )
    assert_array_equal(found.detach(), [0, 0])
    found.sum().backward()
    assert torch.isfinite(z.grad).all()


# --- invariances ---------------------------------------------------------------------


@pytest.mark.parametrize("selection", SELECTIONS)
def test_invariances(selection):
    z, z_adv, y, pred, pred_adv = random()

    def loss(*batch):
        return supervised_contrastive(*batch, selection=selection, temperature=0.3)

    expected = loss(z, z_adv, y, pred, pred_adv)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    assert_allclose(loss(*(v[order] for v in (z, z_adv, y, pred, pred_adv))), expected[order])
    scale = torch.linspace(0.1, 9, 8)[:, None]
    assert_allclose(loss(scale * z, z_adv / scale, y, pred, pred_adv), expected)
    assert_allclose(loss(z_adv, z, y, pred_adv, pred), expected)
    z.requires_grad_()
    loss(z, z_adv, y, pred, pred_adv).sum().backward()
    assert z.grad.norm() > 0
    assert_allclose((z.grad * z.detach()).sum(1), 0, atol=1e-12)


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("similarity", ["cosine", "l2", "linf"])
def test_weights_are_copies_and_have_no_unit(selection, similarity):
    batch = random()
    z, z_adv = (v.requires_grad_() for v in batch[:2])
    times = torch.arange(8) % 3 + 1
    rows = torch.repeat_interleave(torch.arange(8), times)
    options = {"selection": selection, "similarity": similarity, "temperature": 0.3}
    repeated = supervised_contrastive(
        *(v[rows] for v in batch), **options, ids=torch.arange(8)[rows]
    ).mean()
    single = supervised_contrastive(*batch, **options, sample_weight=times)
    weighted = (times * single).sum() / times.sum()
    assert_allclose(weighted.item(), repeated.item())
    gradients = [torch.autograd.grad(v, (z, z_adv)) for v in (weighted, repeated)]
    for a, b in zip(*gradients, strict=True):
        assert_allclose(a, b, atol=1e-10)
    # a factor of all weights makes a constant of it, without a gradient
    scaled = supervised_contrastive(*batch, **options, sample_weight=0.01 * times)
    assert_allclose((scaled - single).detach(), 2 * math.log(0.01), rtol=1e-5)
    even = supervised_contrastive(*batch, **options, sample_weight=torch.full((8,), 7.0))
    plain = supervised_contrastive(*batch, **options)
    gradients = [torch.autograd.grad(v.sum(), (z, z_adv)) for v in (even, plain)]
    for a, b in zip(*gradients, strict=True):
        assert_allclose(a, b, atol=1e-6)


# --- the others ----------------------------------------------------------------------


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_info_nce(similarity):
    a, p, *_ = random(n=4)
    far = random(n=6, seed=9)[0]
    expected = []
    for i in range(4):
        near = score(a[i].numpy(), p[i].numpy(), similarity) / 0.3
        others = [score(a[i].numpy(), v, similarity) / 0.3 for v in far.numpy()]
        expected.append(-near + np.log(np.exp([near, *others]).sum()))
    assert_allclose(info_nce(a, p, far, 0.3, similarity), expected)
    own = far.expand(4, 6, 5)
    assert_allclose(info_nce(a, p, own, 0.3, similarity), expected)


@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_triplet_loss(p):
    a, near, *_ = random(n=6)
    far = random(n=6, seed=9)[0]
    order = np.inf if p == math.inf else p
    expected = np.maximum(
        0,
        0.2 + np.linalg.norm(a - near, order, axis=1) - np.linalg.norm(a - far, order, axis=1),
    )
    assert (expected == 0).any()
    assert (expected > 0).any()
    assert_allclose(triplet_loss(a, near, far, 0.2, p), expected)
    assert_allclose(triplet_loss(a, a, a, 0.2, p), 0.2)


def test_what_is_not_valid():
    z, z_adv, y, pred, pred_adv = random()
    with pytest.raises(ValueError, match="selection must be one of"):
        contrastive_selection(y, pred, pred_adv, "merge")
    with pytest.raises(ValueError, match=r"needs pred,.*\(8,\).*None"):
        supervised_contrastive(z, z_adv, y, selection="hard")
    with pytest.raises(ValueError, match=r"needs pred_adv,.*\(3,\)"):
        contrastive_selection(y, pred, pred_adv[:3], "soft")
    with pytest.raises(ValueError, match="anchor_prediction"):
        contrastive_selection(y, pred, pred_adv, "soft", "adv")
    with pytest.raises(ValueError, match="temperature"):
        supervised_contrastive(z, z_adv, y, temperature=0)
    with pytest.raises(ValueError, match="similarity must be one of"):
        nt_xent(z, z_adv, similarity="dot")
    with pytest.raises(ValueError, match=r"one shape.*\(8, 5\).*\(7, 5\)"):
        nt_xent(z, z_adv[:-1])
    with pytest.raises(ValueError, match="8 samples in two views"):
        supervised_contrastive(z, z_adv, y[:-1])
    with pytest.raises(ValueError, match="one shape"):
        info_nce(z, z_adv[:-1], z)
    with pytest.raises(ValueError, match="one shape"):
        triplet_loss(z, z_adv[:-1], z)
