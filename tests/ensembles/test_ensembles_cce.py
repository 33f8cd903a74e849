"""The crossing collaborative ensemble: members, predictions, attacks."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import entropy
from sklearn.metrics import roc_auc_score
from torch import nn

from robustsk import PGD, EnsembleCCE
from robustsk.datasets import load_digits_images
from robustsk.ensembles import MeanEnsemble
from robustsk.ensembles.cce import MODES


def network(width=6, n_classes=3):
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, n_classes))


class Normed(nn.Module):
    def __init__(self, n_classes):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.fc = nn.Linear(4, n_classes)

    def forward(self, x):
        return self.fc(self.norm(x))


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    y = np.arange(36) % 3
    return rng.normal(size=(36, 4)) + 3 * np.eye(3, 4)[y], y


def make(**params):
    defaults = {
        "max_epochs": 2, "batch_size": 12, "random_state": 0, "device": "cpu",
        "adversary": PGD(eps=0.2, n_steps=2), "module": network,
    }  # fmt: skip
    return EnsembleCCE(**{**defaults, **params})


# --- members -------------------------------------------------------------------------


@pytest.mark.parametrize("n_members", [1, 2, 3, np.int64(2)])
def test_number_of_members(data, n_members):
    clf = make(n_members=n_members).fit(*data)
    assert len(clf.members_) == n_members
    assert isinstance(clf.module_, MeanEnsemble)
    assert all(member is m for member, m in zip(clf.members_, clf.module_.members, strict=True))


@pytest.mark.parametrize("n_members", [0, -1, 1.5, "2", None])
def test_bad_number_of_members(data, n_members):
    with pytest.raises(ValueError, match=r"n_members must be an integer of at least 1"):
        make(n_members=n_members).fit(*data)


def test_list_of_networks(data):
    specs = ["mlp", network(5), Normed]
    clf = make(module=specs).fit(*data)
    assert [type(m).__name__ for m in clf.members_] == ["MLP", "Sequential", "Normed"]
    assert clf.predict_proba(data[0]).shape == (36, 3)
    assert len(make(module=specs, n_members=3).fit(*data).members_) == 3
    assert len(make(module=(network,)).fit(*data).members_) == 1


@pytest.mark.parametrize("n_members", [1, 4])
def test_list_and_number_that_disagree(data, n_members):
    with pytest.raises(ValueError, match=rf"list of 3 networks and n_members is {n_members}"):
        make(module=[network] * 3, n_members=n_members).fit(*data)


def test_empty_list(data):
    with pytest.raises(ValueError, match=r"(?i)module|network|member"):
        make(module=[]).fit(*data)


def test_copies_of_an_instance_start_apart(data):
    module = network().double()
    before = [p.clone() for p in module.parameters()]
    clf = make(module=module, n_members=3, lr=0.0, max_epochs=1).fit(*data)
    weights = [m[0].weight for m in clf.members_]
    assert torch.equal(weights[0], module[0].weight)
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])
    assert len({w.data_ptr() for w in weights} | {module[0].weight.data_ptr()}) == 4
    assert all(torch.equal(p, b) for p, b in zip(module.parameters(), before, strict=True))


def test_listed_instances_keep_their_weights(data):
    modules = [network(), network()]
    clf = make(module=modules, lr=0.0, max_epochs=1).fit(*data)
    for member, module in zip(clf.members_, modules, strict=True):
        assert torch.equal(member[0].weight, module[0].weight)
        assert member is not module


def test_members_of_an_unfitted_ensemble():
    with pytest.raises(Exception, match=r"(?i)not .*(fitted|initialized)"):
        _ = make().members_


# --- options -------------------------------------------------------------------------


def test_unknown_options(data):
    with pytest.raises(ValueError, match=r"mode must be one of .*'detection'.*got 'fast'"):
        make(mode="fast").fit(*data)
    with pytest.raises(
        ValueError, match=r"indicator must be one of \('soft', 'hard'\), got 'firm'"
    ):
        make(indicator="firm").fit(*data)


def test_modes_are_those_of_the_source():
    assert MODES["robust"] == (1, 1)
    assert MODES["detection"] == (0, 5)
    assert MODES["base"] == (0, 0)
    assert MODES["promote"][0] > 0 == MODES["promote"][1]
    assert MODES["demote"][1] > 0 == MODES["demote"][0]


@pytest.mark.dealt
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("indicator", ["soft", "hard"])
def test_every_mode_trains(data, mode, indicator):
    clf = make(mode=mode, indicator=indicator, max_epochs=12, lr=0.05).fit(*data)
    assert clf.score(*data) > 0.8


def test_lambdas_override_the_mode(data):
    def weights(**params):
        return make(**params).fit(*data).members_[0][0].weight

    base = weights(mode="base")
    assert torch.equal(weights(mode="robust", lambda_pm=0, lambda_dm=0.0), base)
    assert torch.equal(weights(mode="base", lambda_pm=1, lambda_dm=1), weights(mode="robust"))
    assert not torch.equal(weights(mode="robust"), base)


# --- prediction ----------------------------------------------------------------------


def test_prediction_is_the_mean_probability(data):
    X, _ = data
    clf = make(n_members=3).fit(*data)
    x = torch.as_tensor(X, dtype=next(clf.module_.parameters()).dtype)
    with torch.no_grad():
        members = [m(x).double().softmax(1).numpy() for m in clf.members_]
    mean = np.mean(members, axis=0)
    assert_allclose(clf.predict_proba(X), mean, rtol=1e-5)
    assert_array_equal(clf.predict(X), mean.argmax(axis=1))
    assert_allclose(np.exp(clf.decision_function(X)), mean, rtol=1e-5)


def test_ensemble_of_sure_members_that_disagree():
    """The mean is taken in the logarithm: no infinity, no gradient lost."""

    class Sure(nn.Module):
        def __init__(self, k):
            super().__init__()
            self.register_buffer("z", torch.tensor([[500.0, 0, 0]]).roll(k, 1))

        def forward(self, x):
            return self.z + x

    x = torch.zeros(2, 3, requires_grad=True)
    log_p = MeanEnsemble([Sure(0), Sure(1)])(x)
    assert torch.isfinite(log_p).all()
    assert_allclose(log_p[0].exp().detach(), [0.5, 0.5, 0], atol=1e-6)
    log_p[:, 2].sum().backward()
    assert torch.isfinite(x.grad).all()
    assert x.grad.abs().max() > 0


def test_prediction_entropy(data):
    X, _ = data
    clf = make().fit(*data)
    found = clf.prediction_entropy(X)
    assert found.shape == (36,)
    assert_allclose(found, entropy(clf.predict_proba(X), axis=1), rtol=1e-10)
    clf.set_params(lr=1.0, max_epochs=30).partial_fit(*data)
    far = 1e4 * X  # probabilities of exactly zero and one
    assert np.isfinite(clf.prediction_entropy(far)).all()
    assert (clf.prediction_entropy(far) >= 0).all()


def test_one_logit_members():
    rng = np.random.default_rng(0)
    y = np.arange(30) % 2
    X = rng.normal(size=(30, 4)) + 2 * y[:, None]
    clf = make(module=lambda: network(n_classes=1), max_epochs=10, lr=0.05).fit(X, y)
    assert clf.predict_proba(X).shape == (30, 2)
    assert clf.score(X, y) > 0.8


# --- attacks in training -------------------------------------------------------------


class Spy(PGD):
    """Remember who was attacked, and with which batch."""

    log = []

    def perturb(self, model, x, y=None, objective=None, **kwargs):
        found = super().perturb(model, x, y, objective, **kwargs)
        x_adv = found[0] if kwargs.get("return_info") else found
        self.log.append((model.module, x, y, objective, x_adv))
        return found


def test_each_batch_attacks_one_member_alone(data):
    Spy.log.clear()
    clf = make(adversary=Spy(eps=0.2, n_steps=3, random_start="none", clip=None), max_epochs=1)
    clf.set_params(lr=0.0, n_members=3).fit(*data)
    assert len(Spy.log) == 3 * 3
    for step in range(3):
        entries = Spy.log[3 * step : 3 * step + 3]
        for (module, x, y, objective, x_adv), member in zip(entries, clf.members_, strict=True):
            assert set(map(id, module.parameters())) == set(map(id, member.parameters()))
            assert objective in (None, "ce")
            assert torch.equal(x, entries[0][1])
            # what an attack on this member alone finds, from the true labels
            alone = PGD(eps=0.2, n_steps=3, random_start="none", clip=None)
            assert torch.equal(alone.perturb(member, x, y), x_adv)
        batches = [x_adv for *_, x_adv in entries]
        assert not torch.equal(batches[0], batches[1])


def test_members_see_sources_in_separate_passes(data):
    """Batch normalisation: clean and adversarial statistics are never mixed in one batch."""
    sizes = []

    class Watched(Normed):
        def forward(self, x):
            if self.training:
                sizes.append(len(x))
            return super().forward(x)

    clf = make(module=Watched, n_members=2, max_epochs=1).fit(*data)
    assert sizes == [12] * (3 * 2 * 3)  # steps, members, sources
    for member in clf.members_:
        assert int(member.norm.num_batches_tracked) == 3 * 3
        assert torch.isfinite(member.norm.running_mean).all()


def test_crafting_leaves_the_statistics_alone(data):
    clf = make(module=Normed, max_epochs=1).fit(*data)
    before = {k: v.clone() for k, v in clf.module_.state_dict().items()}
    x = torch.as_tensor(data[0], dtype=next(clf.module_.parameters()).dtype)
    clf.module_.train()
    crafted = clf.craft(x, torch.as_tensor(data[1]))
    assert len(crafted) == 2
    assert all(m.training for m in clf.module_.modules())
    assert all(torch.equal(v, before[k]) for k, v in clf.module_.state_dict().items())


def test_attack_on_the_ensemble_sees_all_members(data):
    """The gradient of `score_adversarial` is that of the mean probability."""
    clf = make(max_epochs=15, lr=0.05).fit(*data)
    X_adv = PGD(clf, eps=1.0, random_state=0).fit(data[0]).generate(*data)
    assert clf.score(X_adv, data[1]) < clf.score(*data)


# --- detection -----------------------------------------------------------------------


@pytest.mark.slow
def test_detection_mode_tells_adversarial_examples():
    X, y = load_digits_images(return_X_y=True, as_flat=True)
    clf = EnsembleCCE(
        "mlp", module__hidden_sizes=(64,), mode="detection", max_epochs=25, batch_size=64,
        adversary=PGD(eps=0.2, n_steps=5, clip=(0, 1)), random_state=0, device="cpu",
    ).fit(X[:500], y[:500])  # fmt: skip
    X_test, y_test = X[1000:1300], y[1000:1300]
    attack = PGD(clf, eps=0.2, clip=(0, 1), random_state=0).fit(X_test)
    scores = clf.prediction_entropy(np.concatenate([X_test, attack.generate(X_test, y_test)]))
    assert roc_auc_score(np.repeat([0, 1], 300), scores) > 0.6


# --- what the loss reaches -----------------------------------------------------------


def hand_loss(clf, x, crafted, y, n, **options):
    """Loss of member `n` on its own, from the formula, in torch."""
    ce = torch.nn.functional.cross_entropy
    member = clf.members_[n]
    loss = ce(member(x), y, reduction="none")
    loss = loss + options.get("own_weight", 1.0) * ce(member(crafted[n]), y, reduction="none")
    for i, x_adv in enumerate(crafted):
        if i == n:
            continue
        z = member(x_adv)
        p = z.softmax(1)
        s = p[torch.arange(len(y)), y]
        s = s.detach() if options.get("detach_indicator", True) else s
        seen = p if options.get("double_softmax") else z
        h = -(p * seen.log_softmax(1)).sum(1)
        loss = loss + (s * ce(seen, y, reduction="none") - (1 - s) * h) / (len(crafted) - 1)
    return loss


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"own_weight": 0.25},
        {"double_softmax": True, "detach_indicator": False, "attack_label": "predicted"},
    ],
    ids=["article", "own weight", "code"],
)
def test_each_member_learns_from_its_own_loss_alone(data, options):
    clf = make(module=lambda: network().double(), n_members=3, **options).fit(*data)
    x, y = torch.as_tensor(data[0]), torch.as_tensor(data[1])
    crafted = clf.craft(x, y)
    assert not any(x_adv.requires_grad for x_adv in crafted)
    parameters = list(clf.module_.parameters())
    found = torch.autograd.grad(clf.training_loss(x, crafted, y).sum(), parameters)
    expected = []
    for n, member in enumerate(clf.members_):
        loss = hand_loss(clf, x, crafted, y, n, **options).sum()
        others = [p for m in clf.members_ if m is not member for p in m.parameters()]
        none = torch.autograd.grad(loss, others, allow_unused=True, retain_graph=True)
        assert all(g is None for g in none)
        expected += torch.autograd.grad(loss, member.parameters())
    for g, e in zip(found, expected, strict=True):
        assert_allclose(g, e, rtol=1e-9, atol=1e-13)


def test_attack_on_the_members_own_prediction(data):
    """Where a member is wrong, its prediction is led away from what it was, not from the truth."""
    X, y = data
    clf = make(attack_label="predicted", module=Normed, max_epochs=1).fit(X, y)
    x = torch.as_tensor(X, dtype=torch.float32)
    wrong = torch.as_tensor((y + 1) % 3)
    clf.module_.train()
    before = {k: v.clone() for k, v in clf.module_.state_dict().items()}
    crafted = clf.set_params(random_state=0).craft(x, wrong)
    assert all(torch.equal(v, before[k]) for k, v in clf.module_.state_dict().items())
    assert all(m.training for m in clf.module_.modules())
    clf.module_.eval()
    alone = PGD(eps=0.2, n_steps=2)
    for member, x_adv in zip(clf.members_, crafted, strict=True):
        with torch.no_grad():
            predicted = member(x).argmax(1)
            ce = torch.nn.functional.cross_entropy(member(x), predicted, reduction="none")
            after = torch.nn.functional.cross_entropy(member(x_adv), predicted, reduction="none")
        assert (after > ce).float().mean() > 0.9
        assert_allclose((x_adv - x).abs().max(), alone.eps, rtol=1e-5)


def test_label_attacked_matters_only_where_a_member_is_wrong(data):
    rows = {}
    for label in ("true", "predicted"):
        clf = make(attack_label=label, module=lambda: network().double(), lr=0.0, max_epochs=1)
        clf.set_params(adversary__random_start="none").fit(*data)
        x, y = torch.as_tensor(data[0]), torch.as_tensor(data[1])
        rows[label] = clf.craft(x, y)
        right = [m(x).argmax(1) == y for m in clf.members_]
    assert not all(r.all() for r in right)
    for r, true, own in zip(right, rows["true"], rows["predicted"], strict=True):
        assert torch.equal(true[r], own[r])
        assert not torch.equal(true[~r], own[~r])


def test_parameters_that_cannot_be(data):
    for params, message in [
        ({"attack_label": "given"}, r"attack_label must be one of \('true', 'predicted'\)"),
        ({"own_weight": -1.0}, "own_weight must be a finite number of at least 0"),
        ({"lambda_pm": -1}, "lambda_pm must be a finite number of at least 0"),
        ({"lambda_dm": np.inf}, "lambda_dm must be a finite number of at least 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            make(**params).fit(*data)
