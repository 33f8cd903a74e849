"""Several objectives at once: members, images and transformations as tasks."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.ensemble import VotingClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn import functional as F

from robustsk import (
    PGD,
    TAMOO,
    EnsembleAT,
    StandardClassifier,
    TransformTAMOO,
    UniversalTAMOO,
)
from robustsk.attacks import EOT, NoGradientError, Transformation, as_victim
from robustsk.attacks.multi_objective.weighting import MGDA, TaskOriented
from robustsk.datasets import load_digits_images
from robustsk.ensembles import MeanEnsemble

NAMES = ["tamoo", "moo", "uniform", "minmax", "hvm", "pcgrad", "cagrad"]
every_weighting = pytest.mark.parametrize("weighting", NAMES)


def network(seed, hidden=12, n_in=4, n_classes=3):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(n_in, hidden), nn.Tanh(), nn.Linear(hidden, n_classes)).double()


@pytest.fixture(scope="module")
def networks():
    with torch.random.fork_rng():
        return [network(seed) for seed in range(3)]


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    return rng.uniform(size=(12, 4)), np.arange(12) % 3


def settings(**changed):
    default = {"eps": 0.3, "n_steps": 4, "step_size": 0.1, "clip": (0, 1), "random_state": 0}
    return {**default, **changed}


# --- one task ------------------------------------------------------------------------


@pytest.mark.dealt
@every_weighting
@pytest.mark.parametrize("norm", [np.inf, 2, 1])
def test_one_model_is_pgd_bit_for_bit(networks, data, weighting, norm):
    X, y = data
    common = settings(norm=norm, eps=0.3 if norm == np.inf else 0.8)
    expected = PGD(networks[0], **common).generate(X, y)
    found = TAMOO(networks[0], weighting=weighting, **common).generate(X, y)
    assert_array_equal(found, expected)
    x, labels = torch.from_numpy(X), torch.from_numpy(y)
    expected = PGD(**common).perturb(networks[0], x, labels)
    assert torch.equal(
        TAMOO(weighting=weighting, **common).perturb(networks[0], x, labels), expected
    )


@pytest.mark.parametrize("keep", ["worst", "first", "last"])
def test_one_model_is_pgd_whatever_is_kept(networks, data, keep):
    x, y = (torch.from_numpy(values) for values in data)
    expected = PGD(**settings()).perturb(networks[0], x, y, keep=keep)
    found = TAMOO(**settings()).perturb(networks[0], x, y, keep=keep)
    if keep == "first":  # PGD returns what does not fool in the end wherever it came to
        expected, found = ((networks[0](z).argmax(1) != y).tolist() for z in (expected, found))
        assert expected == found
    else:
        assert torch.equal(found, expected)


@every_weighting
def test_equal_models_are_attacked_like_one(networks, data, weighting):
    X, y = data
    one = PGD(networks[0], **settings()).generate(X, y)
    three = TAMOO([networks[0]] * 3, weighting=weighting, **settings()).generate(X, y)
    assert_allclose(three, one, atol=1e-12)


@every_weighting
def test_the_identity_alone_is_pgd(networks, data, weighting):
    X, y = data
    attack = TransformTAMOO(networks[0], weighting=weighting, **settings())
    assert_array_equal(attack.generate(X, y), PGD(networks[0], **settings()).generate(X, y))


@every_weighting
def test_a_group_of_one_is_pgd(networks, data, weighting):
    X, y = data
    attack = UniversalTAMOO(networks[0], group_size=1, weighting=weighting, **settings())
    expected = PGD(networks[0], **settings()).generate(X, y)
    assert_allclose(attack.generate(X, y), expected, atol=1e-12)


# --- against the algorithm written out -------------------------------------------------


def by_hand(models, x, y, lam, *, n_steps, size, eps, lr=0.005, inner=10, tasks="models"):
    """Algorithm 1 for one sample, or for one group of them with a single model."""
    shared = tasks == "images"
    delta = torch.zeros_like(x[0] if shared else x)
    m = len(x) if shared else len(models)
    alpha = torch.zeros(m, dtype=x.dtype)
    history = []
    for _ in range(n_steps):
        gradients, achieved = [], []
        for i in range(m):
            model, clean, label = (models[0], x[i], y[i]) if shared else (models[i], x, y)
            d = delta.clone().requires_grad_(True)
            logits = model((clean + d)[None])[0]
            loss = torch.logsumexp(logits, 0) - logits[label]
            gradients.append(torch.autograd.grad(loss, d)[0].flatten())
            achieved.append(bool(logits.argmax() != label))
        G = torch.stack(gradients)
        A = [i for i in range(m) if achieved[i]]
        U = [i for i in range(m) if not achieved[i]]
        for _ in range(inner):
            a = alpha.clone().requires_grad_(True)
            w = a.softmax(0)
            value = (w @ G).square().sum()
            if A:
                value = value + lam * w[A].square().sum()
                if U:
                    value = value + lam * (1 - w[U].sum()) ** 2 / len(U)
            alpha = alpha - lr * torch.autograd.grad(value, a)[0]
        w = alpha.softmax(0)
        history.append(w)
        delta = delta + size * (w @ G).sign().reshape(delta.shape)
        delta = delta.clamp(-eps, eps)
        lower, upper = (-x, 1 - x) if not shared else ((-x).amax(0), (1 - x).amin(0))
        delta = torch.minimum(torch.maximum(delta, lower), upper)
    return x + delta, torch.stack(history)


@pytest.mark.dealt
@pytest.mark.parametrize("lam", [0.0, 10.0, 100.0])
def test_algorithm(networks, data, lam):
    x, y = (torch.from_numpy(values) for values in data)
    attack = TAMOO(
        weighting=TaskOriented(lam=lam), trace=True, **settings(random_start="none", n_steps=6)
    )
    found, info = attack.perturb(MeanEnsemble(networks), x, y, return_info=True)
    for i in range(len(x)):
        expected, weights = by_hand(networks, x[i], y[i], lam, n_steps=6, size=0.1, eps=0.3)
        assert_allclose(found[i], expected, atol=1e-10)
        assert_allclose(info["trace_weights"][i], weights, atol=1e-10)
    assert info["trace_achieved"].any()
    assert not info["trace_achieved"].all()


def test_algorithm_for_groups(networks, data):
    x, y = (torch.from_numpy(values) for values in data)
    attack = UniversalTAMOO(group_size=5, trace=True, **settings(random_start="none", n_steps=6))
    found, info = attack.perturb(networks[0], x, y, return_info=True)
    for rows in (slice(0, 5), slice(5, 10), slice(10, 12)):
        expected, weights = by_hand(
            networks[:1], x[rows], y[rows], 100.0, n_steps=6, size=0.1, eps=0.3, tasks="images"
        )
        assert_allclose(found[rows], expected, atol=1e-10)
        assert_allclose(info["trace_weights"][rows, :, 0].T, weights, atol=1e-10)


def test_algorithm_for_transformations(networks, data):
    x, y = (torch.from_numpy(values) for values in data)
    transforms = [lambda x: x, lambda x: 1 - x, lambda x: x.flip(1)]

    def after(transform):
        return lambda x: networks[0](transform(x))

    attack = TransformTAMOO(
        transforms=transforms, trace=True, **settings(random_start="none", n_steps=6)
    )
    found, info = attack.perturb(networks[0], x, y, return_info=True)
    for i in range(len(x)):
        expected, weights = by_hand(
            [after(t) for t in transforms], x[i], y[i], 100.0, n_steps=6, size=0.1, eps=0.3
        )
        assert_allclose(found[i], expected, atol=1e-10)
        assert_allclose(info["trace_weights"][i], weights, atol=1e-10)


@pytest.mark.parametrize("objective", ["kl", "cw"])
def test_objectives(networks, data, objective):
    x, y = (torch.from_numpy(values) for values in data)
    attack = TAMOO(objective=objective, trace=True, weighting="uniform", **settings())
    found = attack.perturb(MeanEnsemble(networks), x, y)
    last = attack._with(n_steps=5).perturb(MeanEnsemble(networks), x, y, return_info=True)
    with torch.no_grad():
        clean = torch.stack([net(x) for net in networks], 1)
        moved = torch.stack([net(found) for net in networks], 1)
    if objective == "kl":
        p, q = clean.softmax(2), moved.softmax(2)
        expected = (p * (p / q).log()).sum(2)
    else:
        true = F.one_hot(y, 3).bool()[:, None].expand_as(moved)
        expected = moved.masked_fill(true, -np.inf).amax(2) - moved[true].reshape(12, 3) + 50
    # the last entry of a trace is about the iterate before the last step
    assert_allclose(last[1]["trace_values"][:, -1], expected, atol=1e-10)


def test_divergence_is_flat_at_the_sample(networks, data):
    attack = TAMOO(networks, objective="kl", trace=True, **settings(random_start="none"))
    info = attack.generate(*data, return_info=True)[1]
    assert_allclose(info["trace_values"][:, 0], 0, atol=1e-14)
    assert_allclose(info["trace_norms"][:, 0], 0, atol=1e-14)


# --- weights ---------------------------------------------------------------------------


@pytest.mark.parametrize("weighting", [TaskOriented(n_steps=0), TaskOriented(lr=0.0), "uniform"])
def test_no_weight_steps_is_the_mean(networks, data, weighting):
    x, y = (torch.from_numpy(values) for values in data)
    found = TAMOO(weighting=weighting, **settings()).perturb(MeanEnsemble(networks), x, y)

    def mean_loss(x):
        return sum(F.cross_entropy(net(x), y, reduction="sum") for net in networks) / 3

    start = PGD(**settings(n_steps=1, step_size=0.0)).perturb(networks[0], x, y)
    z = start
    for _ in range(4):
        z = z.requires_grad_(True)
        z = (z + 0.1 * torch.autograd.grad(mean_loss(z), z)[0].sign()).detach()
        z = torch.clamp(torch.minimum(torch.maximum(z, x - 0.3), x + 0.3), 0, 1)
    assert_allclose(found, z, atol=1e-12)


@pytest.mark.parametrize("weighting", ["tamoo", MGDA(solver="projected"), "minmax", "cagrad"])
def test_order_of_the_models_does_not_matter(networks, data, weighting):
    x, y = (torch.from_numpy(values) for values in data)
    order = [2, 0, 1]
    attack = TAMOO(weighting=weighting, **settings())
    found, info = attack.perturb(MeanEnsemble(networks), x, y, return_info=True)
    turned = MeanEnsemble([networks[i] for i in order])
    again, other = attack.perturb(turned, x, y, return_info=True)
    assert_allclose(again, found, atol=1e-9)
    assert_allclose(other["weights"], info["weights"][:, order], atol=1e-6)


@pytest.mark.dealt
@every_weighting
def test_samples_do_not_mix(networks, data, weighting):
    X, y = data
    attack = TAMOO(networks, weighting=weighting, **settings())
    whole = attack.generate(X, y)
    alone = np.concatenate([attack.generate(X[i : i + 1], y[i : i + 1]) for i in range(4)])
    assert_allclose(alone, whole[:4], atol=1e-9)


def test_trace(networks, data):
    X, y = data
    attack = TAMOO(networks, trace=True, weighting=MGDA(solver="projected"), **settings())
    _, info = attack.generate(X, y, return_info=True)
    for name in ("values", "achieved", "weights", "norms"):
        assert info[f"trace_{name}"].shape == (12, 4, 3)
    assert info["trace_norm"].shape == (12, 4)
    assert_array_equal(info["trace_weights"][:, -1], info["weights"])
    assert_allclose(info["trace_weights"].sum(2), 1)
    # the shortest vector of the hull is no longer than any gradient
    assert (info["trace_norm"] <= info["trace_norms"].min(2) + 1e-9).all()
    start = attack._with(n_steps=1, step_size=0.0, random_start="none")
    _, info = start.generate(X, y, return_info=True)
    with torch.no_grad():
        logits = [net(torch.from_numpy(X)) for net in networks]
    expected = [F.cross_entropy(out, torch.from_numpy(y), reduction="none") for out in logits]
    assert_allclose(info["trace_values"][:, 0], np.stack(expected, 1))


def test_parameters_of_the_weighting_are_reached(networks):
    attack = TAMOO(networks, weighting=TaskOriented(lam=3.0))
    assert attack.get_params()["weighting__lam"] == 3.0
    assert clone(attack.set_params(weighting__lam=7.0)).weighting.lam == 7.0
    by_name = TAMOO(networks).set_params(weighting__lam=5.0)
    assert by_name.weighting.lam == 5.0
    assert by_name.set_params(weighting="minmax", weighting__gamma=1.0).weighting.gamma == 1.0
    with pytest.raises(ValueError, match="Invalid parameter 'lam'"):
        TAMOO(networks, weighting="minmax").set_params(weighting__lam=5.0)


def test_hypervolume_cannot_aim(networks, data):
    with pytest.raises(ValueError, match="needs objectives that are positive"):
        TAMOO(networks, weighting="hvm", target=1, **settings()).generate(*data)


def test_target(networks, data):
    X, y = data
    attack = TAMOO(networks, target=1, **settings(eps=0.5, n_steps=10))
    keep = y != 1
    moved = torch.from_numpy(attack.generate(X[keep], y[keep]))
    with torch.no_grad():
        before, after = (
            sum(net(z).softmax(1)[:, 1].mean() for net in networks)
            for z in (torch.from_numpy(X[keep]), moved)
        )
    assert after > before + 0.02


def test_better_iterates_are_not_given_up(networks, data):
    x, y = (torch.from_numpy(values) for values in data)
    victim = MeanEnsemble(networks)

    def n_fooled(z):
        with torch.no_grad():
            return torch.stack([net(z).argmax(1) != y for net in networks], 1).sum(1)

    def fools(z):
        with torch.no_grad():
            return victim(z).argmax(1) != y

    # steps so long that iterates jump about
    attack = TAMOO(trace=True, **settings(step_size=0.6, n_steps=7, eps=0.25))
    best, info = attack.perturb(victim, x, y, keep="worst", return_info=True)
    last = attack.perturb(victim, x, y, keep="last")
    most = info["trace_achieved"].sum(2).amax(1)
    assert (n_fooled(best) >= torch.minimum(most, n_fooled(best))).all()
    assert (fools(best) | ~fools(last)).all()
    same = fools(best) == fools(last)
    assert (n_fooled(best)[same] >= n_fooled(last)[same]).all()
    assert (n_fooled(best) > n_fooled(last)).any()


def test_clean_errors_are_not_mended(networks, data):
    X, _ = data
    victim = as_victim(networks)
    attack = TAMOO(networks, **settings(step_size=0.0, eps=6.0, clip=None))
    start = attack.perturb(victim, torch.from_numpy(X), torch.zeros(len(X), dtype=torch.long))
    with torch.no_grad():
        before, there = (victim(z).argmax(1).numpy() for z in (torch.from_numpy(X), start))
    turned = before != there
    assert turned.any()
    # wrong as they are, right at the start of the attack, which goes nowhere
    assert_array_equal(attack.generate(X, there)[turned], X[turned])


# --- what can be attacked ----------------------------------------------------------------


@pytest.fixture(scope="module")
def classifiers():
    X, y = load_digits_images(return_X_y=True, as_flat=True)
    labels = np.array([f"digit {i}" for i in range(10)])[y]
    return [
        StandardClassifier(
            max_epochs=2, random_state=seed, module__hidden_sizes=(16,), device="cpu"
        ).fit(X[:300], labels[:300])
        for seed in (0, 1)
    ], (X[300:340], labels[300:340])


def test_a_list_is_the_mean_of_its_members(classifiers):
    members, (X, y) = classifiers
    victim = as_victim(members)
    expected = np.mean([clf.predict_proba(X) for clf in members], axis=0)
    assert_allclose(victim.logits(X).exp(), expected, atol=1e-5)
    assert_array_equal(victim.classes, members[0].classes_)
    found = PGD(members, eps=0.1, random_state=0).generate(X, y)
    assert found.shape == X.shape


def test_ways_to_give_an_ensemble(classifiers):
    members, (X, y) = classifiers
    expected = TAMOO(members, eps=0.1, random_state=0).generate(X, y)
    voting = VotingClassifier(
        [(str(i), FrozenEstimator(clf)) for i, clf in enumerate(members)], voting="soft"
    ).fit(X, y)
    named = {"first": members[0], "second": members[1]}
    for model in (named, voting, [FrozenEstimator(clf) for clf in members]):
        found = TAMOO(model, eps=0.1, random_state=0).generate(X, y)
        assert_allclose(found, expected, atol=1e-6)


def test_images_and_the_range_their_models_know():
    X, y = load_digits_images(return_X_y=True)
    members = [
        StandardClassifier(max_epochs=1, random_state=seed, device="cpu").fit(
            X[: 40 + seed], y[: 40 + seed]
        )
        for seed in (0, 1)
    ]
    moved = TAMOO(members, eps=0.1, n_steps=2, random_state=0).generate(X[:5], y[:5])
    assert moved.min() >= X[:41].min()
    assert moved.max() <= X[:41].max()
    assert 0 < np.abs(moved - X[:5]).max() <= 0.1 + 1e-6


def test_a_vote_of_labels_has_no_gradient(classifiers):
    members, (X, y) = classifiers
    voting = VotingClassifier([("one", FrozenEstimator(members[0]))]).fit(X, y)
    with pytest.raises(NoGradientError):
        TAMOO(voting, eps=0.1).generate(X, y)


def test_members_behind_a_scaler(classifiers):
    _, (X, y) = classifiers
    voting = VotingClassifier(
        [(str(C), LogisticRegression(C=C, max_iter=500)) for C in (0.01, 1.0)], voting="soft"
    )
    model = make_pipeline(StandardScaler(), voting).fit(X, y)
    victim = as_victim(model)
    members = victim.members()
    assert len(members) == 2
    scaled = model[0].transform(X)
    with torch.no_grad():
        for member, one in zip(members, voting.estimators_, strict=True):
            p = member(torch.from_numpy(X.astype(np.float64))).softmax(1)
            assert_allclose(p, one.predict_proba(scaled), atol=1e-6)


def test_other_order_of_classes(networks):
    first = as_victim(networks[0])
    first.classes = np.array(["a", "b", "c"])
    second = as_victim(networks[1])
    second.classes = np.array(["c", "a", "b"])
    x = torch.rand(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = (networks[0](x).softmax(1) + networks[1](x).softmax(1)[:, [1, 2, 0]]) / 2
        assert_allclose(as_victim([first, second])(x).exp(), expected)


def test_members_of_different_classes_do_not_vote(networks):
    first, second = as_victim(networks[0]), as_victim(networks[1])
    first.classes, second.classes = np.array(["a", "b", "c"]), np.array(["a", "b", "d"])
    with pytest.raises(ValueError, match="must know the same classes"):
        as_victim([first, second])
    with pytest.raises(ValueError, match="list of models to attack is empty"):
        as_victim([])


def test_cost_is_counted(networks, data):
    x, y = (torch.from_numpy(values) for values in data)
    victim = as_victim(networks)
    TAMOO(**settings()).perturb(victim, x, y)
    assert victim.calls.backward == victim.calls.forward == 12 * 3 * 4


def test_convolutions_with_batch_normalisation():
    torch.manual_seed(0)
    nets = [
        nn.Sequential(
            nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
            nn.Linear(8 * 36, 3),
        )
        for _ in range(2)
    ]  # fmt: skip
    for net in nets:
        net[1].running_mean.normal_()
        net[1].running_var.uniform_(0.5, 2)
        net.eval()
    x, y = torch.rand(6, 1, 8, 8), torch.arange(6) % 3
    attack = TAMOO(**settings(n_steps=1, random_start="none"), trace=True)
    _, info = attack.perturb(MeanEnsemble(nets), x, y, return_info=True)
    for i, net in enumerate(nets):
        z = x.clone().requires_grad_(True)
        gradient = torch.autograd.grad(F.cross_entropy(net(z), y, reduction="sum"), z)[0]
        assert_allclose(info["trace_norms"][:, 0, i], gradient.flatten(1).norm(dim=1), rtol=1e-4)


def test_members_come_back_as_they_were():
    torch.manual_seed(0)
    nets = [
        nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3))
        for _ in range(2)
    ]
    ensemble = MeanEnsemble(nets).train()
    nets[0][0].weight.requires_grad_(False)
    flags = [p.requires_grad for p in ensemble.parameters()]
    before = {name: value.clone() for name, value in ensemble.state_dict().items()}
    TAMOO(eps=0.1, n_steps=3, clip=None).perturb(ensemble, torch.rand(5, 4))
    assert ensemble.training
    assert all(m.training for m in ensemble.modules())
    assert [p.requires_grad for p in ensemble.parameters()] == flags
    assert all(p.grad is None for p in ensemble.parameters())
    for name, value in ensemble.state_dict().items():
        assert torch.equal(value, before[name])


def test_adversary_of_an_ensemble(classifiers):
    _, (X, y) = classifiers

    def fit(weighting):
        clf = EnsembleAT(
            module__hidden_sizes=(8,), n_members=3, max_epochs=3, random_state=0, device="cpu",
            adversary=TAMOO(weighting=weighting, eps=0.1, n_steps=3),
        )  # fmt: skip
        return clf.fit(X, y)

    clf = fit("tamoo")
    assert len(as_victim(clf).members()) == 3
    _, info = TAMOO(clf, eps=0.1, n_steps=3).generate(X, y, return_info=True)
    assert info["weights"].shape == (40, 3)
    assert not np.array_equal(clf.predict_proba(X), fit("minmax").predict_proba(X))
    assert_array_equal(clf.predict_proba(X), fit(TaskOriented()).predict_proba(X))


def test_expectation_around_it(networks, data):
    X, y = data

    def noise(x):
        return x + 0.01 * torch.randn_like(x)

    attack = EOT(networks, attack=TAMOO(**settings()), transformation=noise, n_draws=2)
    assert np.abs(attack.generate(X, y) - X).max() <= 0.3 + 1e-12


# --- one perturbation for several --------------------------------------------------------


def test_one_perturbation_per_group(networks, data):
    X, y = data
    attack = UniversalTAMOO(networks[0], group_size=5, **settings(clip=None))
    delta = attack.generate(X, y) - X
    for rows in (slice(0, 5), slice(5, 10), slice(10, 12)):
        assert_allclose(delta[rows], np.broadcast_to(delta[rows][0], delta[rows].shape), atol=1e-9)
    assert not np.allclose(delta[0], delta[5])
    assert_allclose(
        attack.set_params(batch_size=5).generate(X, y), attack.generate(X, y), atol=1e-12
    )


@pytest.mark.parametrize("norm", [np.inf, 2, 1])
def test_groups_keep_to_the_box(networks, data, norm):
    X, y = data
    attack = UniversalTAMOO(networks[0], group_size=4, **settings(norm=norm))
    moved = attack.generate(X, y)
    assert moved.min() >= 0
    assert moved.max() <= 1
    delta = (moved - X).reshape(3, 4, 4)
    assert_allclose(delta, np.broadcast_to(delta[:, :1], delta.shape), atol=1e-9)
    assert np.abs(delta).max() > 0


def test_bad_group_size(networks, data):
    with pytest.raises(ValueError, match="group_size must be an integer of at least 1"):
        UniversalTAMOO(networks[0], group_size=0, **settings()).generate(*data)


# --- transformations ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def image_net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, 3))


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    X = rng.uniform(size=(6, 1, 8, 8)).astype(np.float32)
    X[:, :, :2] = 0
    return X, np.arange(6) % 3


def test_kinds_by_name(image_net, images):
    X, y = images
    named = TransformTAMOO(image_net, transforms=["identity", "rotation"], **settings())
    made = named._with(transforms=[Transformation("identity"), Transformation("rotation")])
    assert_array_equal(named.generate(X, y), made.generate(X, y))
    with pytest.raises(ValueError, match="kind must be one of"):
        named._with(transforms=["rotate"]).generate(X, y)


@pytest.mark.parametrize("transforms", ["deterministic", "stochastic"])
def test_families(image_net, images, transforms):
    X, y = images
    attack = TransformTAMOO(image_net, transforms=transforms, trace=True, **settings())
    found, info = attack.generate(X, y, return_info=True)
    assert info["trace_values"].shape == (6, 4, 7)
    assert np.isfinite(found).all()
    assert np.isfinite(info["trace_weights"]).all()
    alone = attack.generate(X[:1], y[:1])
    assert_allclose(alone, found[:1], atol=1e-6)
    assert_array_equal(attack.generate(X, y), found)
    if transforms == "deterministic":
        flipped = TransformTAMOO(image_net, **settings()).generate(X, y)
        assert_array_equal(flipped, found)


def test_stochastic_families_differ_from_step_to_step(image_net, images):
    X, y = images
    attack = TransformTAMOO(
        image_net, transforms="stochastic", trace=True,
        **settings(step_size=0.0, n_steps=3, random_start="none"),
    )  # fmt: skip
    values = attack.generate(X, y, return_info=True)[1]["trace_values"]
    assert_allclose(values[:, 0, 0], values[:, 1, 0])  # the identity
    assert not np.allclose(values[:, 0, 6], values[:, 1, 6])
    mean = attack.set_params(n_draws=60, n_steps=1)
    twice = mean.generate(X, y, return_info=True)[1]["trace_values"]
    other = mean.set_params(random_state=1).generate(X, y, return_info=True)[1]["trace_values"]
    assert_allclose(twice, other, atol=0.1)


def test_flat_rows_of_images():
    X, y = load_digits_images(return_X_y=True, as_flat=True)
    clf = StandardClassifier(input_shape=(1, 8, 8), max_epochs=1, random_state=0, device="cpu").fit(
        X[:100], y[:100]
    )
    attack = TransformTAMOO(clf, trace=True, **settings(n_steps=2))
    _, info = attack.generate(X[:5], y[:5], return_info=True)
    assert info["trace_values"].shape == (5, 2, 7)


def test_tables_are_not_rotated(networks, data):
    with pytest.raises(ValueError, match="transforms images, and X is a table"):
        TransformTAMOO(networks[0], transforms="stochastic", **settings()).generate(*data)
    with pytest.raises(ValueError, match="use one of"):
        TransformTAMOO(networks[0], transforms="random", **settings()).generate(*data)
    with pytest.raises(TypeError, match="at least one callable"):
        TransformTAMOO(networks[0], transforms=[], **settings()).generate(*data)


def test_random_transformations_of_the_user(networks, data):
    def noise(x):
        return x + 0.1 * torch.randn_like(x)

    X, y = data
    attack = TransformTAMOO(networks[0], transforms=[noise, noise], **settings())
    state = torch.get_rng_state()
    found = attack.generate(X, y)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    assert_array_equal(attack.generate(X, y), found)
    torch.set_rng_state(state)


class _Steep(torch.autograd.Function):
    """The identity, whose gradient is not finite when it is asked for the second time."""

    calls = 0

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        _Steep.calls += 1
        if _Steep.calls == 2:
            gradient = gradient.clone()
            gradient[:, 0] = np.inf
            gradient[:, 1] = np.nan
        return gradient


@pytest.mark.parametrize("memory", [True, False])
def test_memory_of_gradients(networks, data, memory):
    X, y = data
    _Steep.calls = 0
    attack = TransformTAMOO(
        networks[0], transforms=[_Steep.apply], gradient_memory=memory, trace=True,
        **settings(n_steps=2, step_size=0.0, random_start="none"),
    )  # fmt: skip
    _, info = attack.generate(X, y, return_info=True)
    norms = info["trace_norms"][:, :, 0]
    assert np.isfinite(norms).all()
    if memory:
        assert_allclose(norms[:, 1], norms[:, 0])
    else:
        assert (norms[:, 1] < norms[:, 0]).all()


def test_gamma_at_black_pixels(image_net, images):
    X, y = images
    brighter = Transformation("gamma", strength=0.7)
    attack = TransformTAMOO(
        image_net, transforms=[brighter], trace=True, **settings(random_start="none")
    )
    for memory in (True, False):
        attack.set_params(gradient_memory=memory)
        found, info = attack.generate(X, y, return_info=True)
        assert np.isfinite(found).all()
        assert np.isfinite(info["trace_norms"]).all()
