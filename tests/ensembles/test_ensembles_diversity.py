"""Ensembles whose members are kept apart: GAL, DVERGE, TRS."""

import itertools

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import log_softmax, logsumexp
from torch import nn

from robustsk import PGD, EnsembleDVERGE, EnsembleGAL, EnsembleTRS, StandardClassifier
from robustsk.datasets import load_digits_images
from robustsk.ensembles.dverge import partners
from robustsk.models import MLP, forward_with_features

N, D, C = 7, 4, 3
ALL = [EnsembleDVERGE, EnsembleGAL, EnsembleTRS]


def network():
    return nn.Sequential(nn.Linear(D, 6), nn.Tanh(), nn.Linear(6, C)).double()


def networks(n):
    torch.manual_seed(1)
    return [network() for _ in range(n)]


def ready(cls, **params):
    """Return an initialised ensemble in float64."""
    params.setdefault("module", network)
    clf = cls(
        input_shape=(D,), classes=list(range(C)), random_state=0, device="cpu", **params
    ).initialize()
    clf.module_.train()
    return clf


def fit(cls, table, **params):
    settings = {
        "module": network, "max_epochs": 3, "batch_size": 16, "random_state": 0, "device": "cpu",
        "lr": 0.02, "adversary": PGD(eps=0.3, n_steps=2, random_start="none"),
    }  # fmt: skip
    return cls(**{**settings, **params}).fit(*table)


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


def tensors(*arrays):
    return [torch.as_tensor(a) for a in arrays]


def parameters(module):
    return [p.detach().numpy() for p in module.parameters()]


def assert_same_weights(first, second):
    for p, q in zip(parameters(first), parameters(second), strict=True):
        assert_allclose(p, q, atol=1e-10)


# --- the losses, written out in NumPy ------------------------------------------------


def ce(member, x, y):
    w1, b1, w2, b2 = parameters(member)
    return -log_softmax(np.tanh(x @ w1.T + b1) @ w2.T + b2, axis=1)[np.arange(len(y)), y]


def input_gradient(member, x, y):
    w1, b1, w2, b2 = parameters(member)
    h = np.tanh(x @ w1.T + b1)
    p = np.exp(log_softmax(h @ w2.T + b2, axis=1)) - np.eye(C)[y]
    return ((p @ w2) * (1 - h**2)) @ w1


def cosines(members, x, y):
    g = [input_gradient(m, x, y) for m in members]
    g = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in g]
    return np.array([(a * b).sum(axis=1) for a, b in itertools.combinations(g, 2)])


def loss_of(clf, x, crafted, y):
    loss = clf.training_loss(torch.as_tensor(x), crafted, torch.as_tensor(y))
    assert loss.shape == (len(y),)
    return loss.detach().numpy()


@pytest.mark.parametrize("n_members", [2, 3])
@pytest.mark.parametrize("adversarial", [False, True])
def test_gal(batch, n_members, adversarial):
    x, x_adv, y = batch
    clf = ready(EnsembleGAL, n_members=n_members, lam=0.7, adversarial=adversarial)
    members = clf.module_.members
    expected = sum(ce(m, x, y) for m in members) + 0.7 * logsumexp(cosines(members, x, y), axis=0)
    if adversarial:
        expected = expected + sum(ce(m, x_adv, y) for m in members)
    assert_allclose(loss_of(clf, x, torch.as_tensor(x_adv), y), expected)


@pytest.mark.parametrize("n_members", [2, 3])
@pytest.mark.parametrize("adversarial", [False, True])
def test_trs(batch, n_members, adversarial):
    x, x_adv, y = batch
    near = x + 0.1
    clf = ready(EnsembleTRS, n_members=n_members, lam_a=3.0, lam_b=0.4, adversarial=adversarial)
    members = clf.module_.members
    lengths = [np.linalg.norm(input_gradient(m, near, y), axis=1) for m in members]
    expected = (
        sum(ce(m, x, y) for m in members)
        + 3 * np.abs(cosines(members, x, y)).mean(axis=0)
        + 0.4 * 2 * np.mean(lengths, axis=0)
    )
    if adversarial:
        expected = expected + sum(ce(m, x_adv, y) for m in members)
    assert_allclose(loss_of(clf, x, tuple(tensors(near, x_adv)), y), expected)


@pytest.mark.parametrize("n_members", [2, 3])
@pytest.mark.parametrize("adversarial", [False, True])
def test_dverge(batch, n_members, adversarial):
    x, x_adv, y = batch
    rng = np.random.default_rng(1)
    clf = ready(EnsembleDVERGE, n_members=n_members, adversarial=adversarial)
    members = clf.module_.members
    moved = [x + rng.normal(0, 0.1, x.shape) for _ in members]
    own = [x_adv + rng.normal(0, 0.1, x.shape) for _ in members] if adversarial else []
    expected = 0
    for i, member in enumerate(members):
        expected = expected + sum(ce(member, moved[j], y) for j in range(n_members) if j != i)
        if adversarial:
            expected = expected + ce(member, own[i], y)
    assert_allclose(loss_of(clf, x, (tensors(*moved), tensors(*own)), y), expected)


def test_defaults():
    gal, dverge, trs = EnsembleGAL(), EnsembleDVERGE(), EnsembleTRS()
    assert gal.lam == 0.5
    assert (dverge.eps, dverge.n_steps, dverge.layer) == (0.07, 10, None)
    assert trs.n_steps == 6
    assert not any(clf.adversarial for clf in (gal, dverge, trs))


# --- limit cases ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "params"),
    [
        (EnsembleGAL, {"lam": 0}),
        (EnsembleTRS, {"lam_a": 0, "lam_b": 0.0}),
        (EnsembleDVERGE, {"warmup_epochs": 3}),
    ],
)
def test_without_diversity_members_are_trained_alone_and_naturally(table, cls, params):
    modules = networks(3)
    together = fit(cls, table, module=modules, **params)
    for module, member in zip(modules, together.members_, strict=True):
        alone = fit(StandardClassifier, table, module=module)
        assert_same_weights(member, alone.module_)


@pytest.mark.parametrize("cls", ALL)
def test_a_single_member_is_trained_naturally(table, cls):
    (module,) = networks(1)
    clf = fit(cls, table, module=[module])
    assert_same_weights(clf.members_[0], fit(StandardClassifier, table, module=module).module_)


@pytest.mark.parametrize("cls", ALL)
def test_adversarial_training_of_a_single_member(batch, cls):
    x, _, y = batch
    adversary = PGD(eps=0.3, n_steps=2, random_start="none", clip=None)
    clf = ready(cls, n_members=1, adversarial=True, adversary=adversary)
    member = clf.module_.members[0]
    attack = PGD(member, eps=0.3, n_steps=2, random_start="none", clip=None)
    x_adv = attack.perturb(member, *tensors(x, y)).numpy()
    expected = ce(member, x_adv, y) + (0 if cls is EnsembleDVERGE else ce(member, x, y))
    assert_allclose(loss_of(clf, x, clf.craft(*tensors(x, y)), y), expected)


@pytest.mark.dealt
@pytest.mark.parametrize("cls", ALL)
def test_adversarial_examples_make_a_difference(table, cls):
    plain, robust = (fit(cls, table, adversarial=a).members_[0] for a in (False, True))
    assert not np.allclose(plain[0].weight.detach(), robust[0].weight.detach())


def test_who_is_attacked(batch):
    """GAL and TRS: the ensemble. DVERGE: each member alone."""
    x, y = tensors(batch[0], batch[2])
    adversary = PGD(eps=0.3, n_steps=3, random_start="none", clip=None)
    for cls in ALL:
        clf = ready(cls, adversarial=True, adversary=adversary)
        crafted = clf.craft(x, y)
        if cls is EnsembleDVERGE:
            for member, own in zip(clf.module_.members, crafted[1], strict=True):
                assert_array_equal(own, adversary.perturb(member, x, y))
        else:
            found = crafted if cls is EnsembleGAL else crafted[1]
            assert_array_equal(found, adversary.perturb(clf.module_, x, y))


def test_without_a_radius_dverge_trains_on_the_images_themselves(batch):
    x, _, y = batch
    clf = ready(EnsembleDVERGE, n_members=3, eps=0.0)
    expected = 2 * sum(ce(m, x, y) for m in clf.module_.members)
    assert_allclose(loss_of(clf, x, clf.craft(*tensors(x, y)), y), expected)


# --- what is optimised ---------------------------------------------------------------


def test_identical_members_pay_the_most_for_their_alignment(batch):
    x, _, y = batch
    (module,) = networks(1)
    clf = ready(EnsembleGAL, module=[module] * 3, lam=1.0)
    assert_allclose(loss_of(clf, x, x, y), 3 * ce(module, x, y) + np.log(3) + 1)
    clf = ready(EnsembleTRS, module=[module] * 3, lam_a=1.0, lam_b=0)
    assert_allclose(loss_of(clf, x, (x, x), y), 3 * ce(module, x, y) + 1)


@pytest.mark.parametrize("adversarial", [False, True])
def test_members_of_dverge_learn_apart(batch, adversarial):
    """The gradient of a member does not depend on the weights of another."""
    x, y = tensors(batch[0], batch[2])
    clf = ready(EnsembleDVERGE, n_members=3, adversarial=adversarial)
    crafted = clf.craft(x, y)
    assert not any(z.requires_grad for part in crafted for z in part)
    found = []
    for scale in (1.0, 3.0):
        with torch.no_grad():
            clf.module_.members[1][0].weight.mul_(scale)
        clf.module_.zero_grad()
        clf.training_loss(x, crafted, y).sum().backward()
        found.append(clf.module_.members[0][0].weight.grad.clone())
    assert found[0].abs().max() > 0
    assert torch.equal(*found)


@pytest.mark.parametrize("cls", [EnsembleGAL, EnsembleTRS])
def test_gradients_of_the_loss(batch, cls):
    """Second derivatives, against finite differences in one weight."""
    x, y = tensors(batch[0], batch[2])
    clf = ready(cls)
    crafted = clf.craft(x, y)
    clf.training_loss(x, crafted, y).sum().backward()
    weight, h = clf.module_.members[1][0].weight, 1e-6
    values = []
    for shift in (h, -2 * h):
        with torch.no_grad():
            weight[3, 2] += shift
        values.append(clf.training_loss(x, crafted, y).sum().item())
    assert weight.grad[3, 2].item() == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-5)


@pytest.mark.parametrize("norm", [np.inf, 2])
def test_trs_looks_for_long_gradients_in_the_ball(batch, norm):
    x, _, y = batch
    adversary = PGD(eps=0.5, norm=norm, clip=(-1.5, 1.5), mask=[True, True, True, False])
    clf = ready(EnsembleTRS, n_members=3, adversary=adversary)
    x = x.clip(-1.5, 1.5)
    modes = [m.training for m in clf.module_.modules()]
    near, _ = clf.craft(*tensors(x, y))
    assert not near.requires_grad
    near = near.numpy()
    assert (np.linalg.norm(near - x, ord=norm, axis=1) <= 0.5 + 1e-9).all()
    assert np.abs(near).max() <= 1.5
    assert_array_equal(near[:, 3], x[:, 3])

    def magnitude(z):
        lengths = [np.linalg.norm(input_gradient(m, z, y), axis=1) for m in clf.module_.members]
        return np.mean(lengths, axis=0)

    rng = np.random.default_rng(3)
    reach = 0.5 if norm == np.inf else 0.25  # of a cube within the ball
    others = [x + rng.uniform(-reach, reach, x.shape) * [1, 1, 1, 0] for _ in range(20)]
    others = np.array([magnitude(z.clip(-1.5, 1.5)) for z in others])
    assert magnitude(near).mean() > 1.05 * magnitude(x).mean()
    assert (magnitude(near) > np.median(others, axis=0)).all()
    assert magnitude(near).mean() > others.mean(axis=1).max()
    # nothing is left behind
    assert [m.training for m in clf.module_.modules()] == modes
    assert all(p.requires_grad and p.grad is None for p in clf.module_.parameters())


def test_length_of_the_steps_of_trs(batch):
    x, y = tensors(batch[0], batch[2])
    adversary = PGD(eps=0.3, clip=None)
    by_default, given, far = (
        ready(EnsembleTRS, adversary=adversary, step_size=s).craft(x, y)[0] for s in (None, 0.1, 9)
    )
    assert_array_equal(by_default, given)
    assert_allclose((far - x).abs(), torch.full_like(x, 0.3))


# --- distilled features --------------------------------------------------------------


def distance(member, z, target, layer=None):
    with torch.no_grad():
        z, target = (forward_with_features(member, v, layer)[1] for v in (z, target))
    return (z - target).norm(dim=1)


@pytest.mark.parametrize("layer", [None, "0"])
@pytest.mark.parametrize("norm", [np.inf, 2])
def test_distilled_features(batch, norm, layer):
    x = torch.as_tensor(batch[0]).clamp(-1.4, 1.4)
    target = x.roll(1, 0)
    adversary = PGD(eps=9.0, norm=norm, clip=(-1.5, 1.5), mask=[True, True, False, True])
    clf = ready(EnsembleDVERGE, eps=0.4, adversary=adversary)
    for member in clf.module_.members:
        z = clf.distill(member, x, target, layer)
        assert not z.requires_grad
        assert (torch.linalg.vector_norm(z - x, ord=norm, dim=1) <= 0.4 + 1e-9).all()
        assert z.abs().max() <= 1.5
        assert torch.equal(z[:, 2], x[:, 2])
        assert (distance(member, z, target, layer) < distance(member, x, target, layer)).all()
    assert all(p.requires_grad and p.grad is None for p in clf.module_.parameters())


def test_distillation_is_momentum_descent_on_the_features(batch):
    x = torch.as_tensor(batch[0])
    target = x.roll(1, 0)
    clf = ready(EnsembleDVERGE, eps=0.3, n_steps=4, adversary=PGD(clip=None))
    member = clf.module_.members[1]
    w1, b1, *_ = parameters(member)
    goal = np.tanh(target.numpy() @ w1.T + b1)
    z, velocity = x.numpy(), 0
    for _ in range(4):
        h = np.tanh(z @ w1.T + b1)
        gradient = ((h - goal) * (1 - h**2)) @ w1
        velocity = velocity + gradient / np.abs(gradient).sum(axis=1, keepdims=True)
        z = np.clip(z - 0.3 / 4 * np.sign(velocity), x.numpy() - 0.3, x.numpy() + 0.3)
    assert_allclose(clf.distill(member, x, target), z)


def test_examples_are_made_for_each_member(batch):
    x, y = tensors(batch[0], batch[2])
    clf = ready(EnsembleDVERGE, n_members=3, eps=0.2, adversary=PGD(clip=None))
    moved, attacked = clf.craft(x, y)
    assert attacked == []
    clf = ready(EnsembleDVERGE, n_members=3, eps=0.2, adversary=PGD(clip=None))
    target = x[partners(x, int(clf._rng.randint(np.iinfo(np.int32).max)))]
    for member, z in zip(clf.module_.members, moved, strict=True):
        assert torch.equal(z, clf.distill(member, x, target))
    assert not torch.equal(moved[0], moved[1])


def test_a_layer_is_drawn_for_each_batch(batch):
    x, y = tensors(batch[0], batch[2])
    drawn = []

    class Watching(EnsembleDVERGE):
        def distill(self, member, x, target, layer=None):
            drawn.append(layer)
            return super().distill(member, x, target, layer)

    clf = ready(Watching, layer=["0", "1"])
    for _ in range(20):
        clf.craft(x, y)
    assert drawn[::2] == drawn[1::2]  # the same for both members
    assert set(drawn) == {"0", "1"}
    first = drawn.copy()
    drawn.clear()
    clf = ready(Watching, layer=["0", "1"])
    for _ in range(20):
        clf.craft(x, y)
    assert drawn == first


def test_an_unknown_layer(table):
    with pytest.raises(ValueError, match="There is no layer 'conv9'"):
        fit(EnsembleDVERGE, table, layer="conv9")


def test_images(batch):
    """The ball is in the shape of the data, the network has its own."""
    rng = np.random.default_rng(0)
    X, y = rng.uniform(size=(12, 64)).astype(np.float32), np.arange(12) % C
    mask = np.ones(64, dtype=bool)
    mask[:8] = False
    for cls in ALL:
        clf = cls(
            input_shape=(1, 8, 8), max_epochs=1, batch_size=6, random_state=0, device="cpu",
            adversary=PGD(eps=0.1, n_steps=1, mask=mask),
        ).fit(X, y)  # fmt: skip
        assert np.isfinite(clf.history_[-1, "train_loss"])
        if cls is EnsembleGAL:
            continue
        crafted = clf.craft(*tensors(X.reshape(12, 1, 8, 8), y))
        for z in crafted[0] if cls is EnsembleDVERGE else [crafted[0]]:
            delta = np.abs(z.numpy().reshape(12, 64) - X)
            assert delta[:, :8].max() == 0 < delta[:, 8:].max()


def test_warmup(table):
    X, y = table
    seen = []

    class Watching(EnsembleDVERGE):
        def craft(self, x, y):
            crafted = super().craft(x, y)
            seen.append((self.epoch, len(crafted[0])))
            return crafted

    clf = fit(Watching, (X, y), warmup_epochs=2, max_epochs=3, batch_size=-1)
    assert seen == [(0, 0), (1, 0), (2, 2)]
    clf.set_params(max_epochs=1).partial_fit(X, y)
    assert seen[3:] == [(3, 2)]


# --- partners ------------------------------------------------------------------------


def test_partners_are_others_and_all_take_their_turn():
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    seen = np.zeros((6, 6), dtype=int)
    for seed in range(300):
        found = partners(x, seed)
        assert sorted(found.tolist()) == list(range(6))
        seen[np.arange(6), found] += 1
    assert (np.diag(seen) == 0).all()
    others = seen[~np.eye(6, dtype=bool)]
    assert others.min() > 30  # 60 on average
    assert others.max() < 100


def test_partners_do_not_depend_on_places_and_copies():
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    found = x[partners(x, 5)]
    order = torch.tensor([3, 0, 5, 5, 1, 2, 0, 4, 0])
    assert torch.equal(x[order][partners(x[order], 5)], found[order])


def test_of_equal_samples_each_is_its_own_partner():
    assert partners(torch.zeros(1, 3), 0).tolist() == [0]
    x = torch.ones(4, 3)
    assert torch.equal(x[partners(x, 0)], x)


@pytest.mark.dealt
@pytest.mark.parametrize("cls", ALL)
def test_weights_are_repetitions(table, cls):
    X, y = (v[:12] for v in table)
    weight = np.arange(12) % 4
    common = {"batch_size": -1, "optimizer": torch.optim.SGD, "max_epochs": 4, "adversarial": True}
    weighted = cls(
        network, random_state=0, device="cpu", adversary=PGD(eps=0.3, n_steps=2), **common
    ).fit(X, y, weight)
    repeated = fit(
        cls, (X.repeat(weight, axis=0), y.repeat(weight)), lr=weighted.lr,
        adversary=PGD(eps=0.3, n_steps=2), **common,
    )  # fmt: skip
    assert_same_weights(weighted.module_, repeated.module_)


# --- what comes of it ----------------------------------------------------------------


@pytest.mark.slow
def test_gradients_of_trained_members_differ():
    X, y = load_digits_images(return_X_y=True, as_flat=True)
    test = X[1000:1200], y[1000:1200]

    def mean_cosine(cls, **params):
        clf = cls(
            lambda: MLP((64,), 10, hidden_sizes=(64,)), max_epochs=10, batch_size=64,
            random_state=0, device="cpu", adversary__eps=0.1, **params,
        ).fit(X[:600], y[:600])  # fmt: skip
        assert clf.score(*test) > 0.85
        x = torch.tensor(test[0], dtype=torch.float32).requires_grad_()
        g = []
        for member in clf.members_:
            loss = nn.functional.cross_entropy(member(x), torch.tensor(test[1]), reduction="sum")
            g.append(torch.autograd.grad(loss, x)[0])
        return nn.functional.cosine_similarity(*g, eps=1e-20).mean().item()

    alone = mean_cosine(EnsembleGAL, lam=0)
    assert alone > 0.5
    assert mean_cosine(EnsembleGAL) < 0
    assert abs(mean_cosine(EnsembleTRS)) < 0.4 * alone
    assert mean_cosine(EnsembleDVERGE, eps=0.2) < 0.5 * alone


# --- bad parameters ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "params", "message"),
    [
        (EnsembleGAL, {"lam": -1}, "lam must be a finite number of at least 0, got -1"),
        (EnsembleGAL, {"lam": "x"}, "lam must be a finite number"),
        (EnsembleTRS, {"lam_a": np.nan}, "lam_a must be a finite number"),
        (EnsembleTRS, {"lam_b": -0.1}, "lam_b must be a finite number"),
        (EnsembleTRS, {"n_steps": 1.5}, "n_steps must be an integer"),
        (EnsembleTRS, {"step_size": -1}, "step_size must be a finite number"),
        (EnsembleDVERGE, {"eps": -0.1}, "eps must be a finite number of at least 0, got -0.1"),
        (EnsembleDVERGE, {"n_steps": 0.5}, "n_steps must be an integer"),
        (EnsembleDVERGE, {"warmup_epochs": -1}, "warmup_epochs must be an integer of at least 0"),
        (EnsembleDVERGE, {"layer": []}, "layer is an empty list"),
    ],
)
def test_bad_parameters(table, cls, params, message):
    with pytest.raises(ValueError, match=message):
        fit(cls, table, **params)
