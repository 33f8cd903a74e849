"""What each defence minimises and what its attack ascends, against formulas in numpy."""

import numpy as np
import pytest
import torch
from by_hand import ce, kl, softmax
from numpy.testing import assert_allclose
from torch import nn

from robustsk import (
    PGD,
    EnsembleCCE,
    FriendlyPGD,
    PGDATClassifier,
    SPATClassifier,
    StandardClassifier,
    TRADESClassifier,
)
from robustsk.attacks.objectives import resolve_objective
from robustsk.datasets import load_digits_images
from robustsk.models import MLP, CosineLinear, replace_classifier

N, D, H, C = 7, 4, 6, 3
S = 5.0


# --- formulas, independent of the package --------------------------------------------


def rob_sp(z, z_adv, alpha):
    p, q = softmax(z), softmax(z_adv)
    k = p * np.log(p / q)
    return alpha * k.sum(axis=1) + (k**2).sum(axis=1)


def gates(cos, y, beta):
    g = cos + beta
    rows = np.arange(len(y))
    g[rows, y] = 1 - cos[rows, y] + beta
    return g


def shannon(z):
    p = softmax(z)
    return -(p * np.log(p)).sum(axis=1)


def hidden(parameters, x):
    weight, bias, *_ = parameters
    return np.tanh(x @ weight.T + bias)


def linear_head(parameters, x):
    *_, weight, bias = parameters
    return hidden(parameters, x) @ weight.T + bias


def cosines(parameters, x):
    z, weight = hidden(parameters, x), parameters[2]
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    return z @ (weight / np.linalg.norm(weight, axis=1, keepdims=True)).T


# --- fixed weights and a fixed adversarial batch -------------------------------------


def network():
    """Return a network in float64, with fresh weights of the present generator."""
    return nn.Sequential(nn.Linear(D, H), nn.Tanh(), nn.Linear(H, C)).double()


def ready(cls, **params):
    """Return an initialised defence in float64."""
    params.setdefault("module", network)
    clf = cls(
        input_shape=(D,), classes=list(range(C)), random_state=0, device="cpu", **params
    ).initialize()
    clf.module_.train()
    return clf


def parameters_of(module):
    return [p.detach().numpy() for p in module.parameters()]


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, D))
    return x, x + rng.uniform(-0.5, 0.5, (N, D)), np.arange(N) % C


def loss_of(clf, x, x_adv, y):
    if isinstance(x_adv, list):
        x_adv = [torch.as_tensor(v) for v in x_adv]
    else:
        x_adv = torch.as_tensor(x_adv)
    loss = clf.training_loss(torch.as_tensor(x), x_adv, torch.as_tensor(y))
    assert loss.shape == (len(y),)
    assert loss.requires_grad
    return loss.detach().numpy()


def objective_of(clf, z_adv, y, z):
    objective = resolve_objective(clf.attack_objective())
    clean = torch.as_tensor(z) if objective.needs_clean else None
    return objective(torch.as_tensor(z_adv), torch.as_tensor(y), None, clean).numpy()


def test_standard_and_pgd_at(batch):
    x, x_adv, y = batch
    clf = ready(StandardClassifier)
    assert_allclose(loss_of(clf, x, x_adv, y), ce(linear_head(parameters_of(clf.module_), x), y))
    clf = ready(PGDATClassifier)
    z, z_adv = (linear_head(parameters_of(clf.module_), v) for v in (x, x_adv))
    assert_allclose(loss_of(clf, x, x_adv, y), ce(z_adv, y))
    assert_allclose(objective_of(clf, z_adv, y, z), ce(z_adv, y))


@pytest.mark.parametrize("beta", [0.0, 1.0, 6.0])
def test_trades(batch, beta):
    x, x_adv, y = batch
    clf = ready(TRADESClassifier, beta=beta)
    z, z_adv = (linear_head(parameters_of(clf.module_), v) for v in (x, x_adv))
    assert_allclose(loss_of(clf, x, x_adv, y), ce(z, y) + beta * kl(z, z_adv))
    assert_allclose(objective_of(clf, z_adv, y, z), kl(z, z_adv))


@pytest.mark.parametrize(
    "params",
    [{}, {"s": 2.0, "alpha": 0.6, "beta": 0.4, "lam": 1.5}, {"alpha": 0.0, "beta": 0.0}],
    ids=["default", "other", "zeros"],
)
def test_spat(batch, params):
    x, x_adv, y = batch
    clf = ready(SPATClassifier, **params)
    s, alpha, beta, lam = (getattr(clf, name) for name in ("s", "alpha", "beta", "lam"))
    cos, cos_adv = (cosines(parameters_of(clf.module_), v) for v in (x, x_adv))
    rob = rob_sp(s * cos, s * cos_adv, alpha)
    expected = ce(gates(cos, y, beta) * s * cos, y) + lam * rob
    assert_allclose(loss_of(clf, x, x_adv, y), expected)
    assert_allclose(objective_of(clf, s * cos_adv, y, s * cos), rob)
    # prediction knows no gates
    assert_allclose(clf.decision_function(x), s * cos)


def test_spat_defaults_are_those_of_the_source():
    clf = SPATClassifier()
    assert (clf.s, clf.alpha, clf.beta, clf.lam) == (5.0, 0.2, 0.2, 6.0)
    assert (clf.form, clf.detach_gates, clf.clamp_gates) == ("literal", False, False)
    assert TRADESClassifier().beta == 6.0
    assert TRADESClassifier(max_epochs=1)._adversary().random_start == "gaussian"
    assert clf._adversary().random_start == "gaussian"
    assert clf._adversary().start_std == 0.001


def test_spat_shifted(batch):
    x, x_adv, y = batch
    clf = ready(SPATClassifier, form="shifted", s=8.0, beta=0.3)
    cos, cos_adv = (cosines(parameters_of(clf.module_), v) for v in (x, x_adv))
    u = 8 * (cos + 0.3) ** 2
    true = cos[np.arange(N), y]
    u[np.arange(N), y] = 8 * (0.3**2 - (1 - true) ** 2)
    expected = ce(u, y) + 6 * rob_sp(8 * cos, 8 * cos_adv, 0.2)
    assert_allclose(loss_of(clf, x, x_adv, y), expected)


def test_spat_clamped_gates(batch):
    x, x_adv, y = batch
    clf = ready(SPATClassifier, clamp_gates=True, beta=0.05)
    cos, cos_adv = (cosines(parameters_of(clf.module_), v) for v in (x, x_adv))
    g = gates(cos, y, 0.05)
    assert (g < 0).any()
    expected = ce(np.maximum(g, 0) * S * cos, y) + 6 * rob_sp(S * cos, S * cos_adv, 0.2)
    assert_allclose(loss_of(clf, x, x_adv, y), expected)


def test_spat_detached_gates_change_the_gradient_only(batch):
    x, x_adv, y = (torch.as_tensor(v) for v in batch)
    found = []
    for detach in (False, True):
        clf = ready(SPATClassifier, detach_gates=detach, lam=0.0)
        loss = clf.training_loss(x, x_adv, y).sum()
        loss.backward()
        found.append((loss.item(), clf.module_[0].weight.grad.numpy()))
    assert found[0][0] == found[1][0]
    assert not np.allclose(found[0][1], found[1][1], rtol=1e-3)


@pytest.mark.parametrize("self_paced", [True, False])
@pytest.mark.parametrize("consistency", ["self_paced", "kl"])
def test_spat_ablations_on_the_cosine_head(batch, self_paced, consistency):
    """Table 3.7: {SP-NCE, NCE} x {L_rob_sp, KL}."""
    x, x_adv, y = batch
    clf = ready(SPATClassifier, self_paced=self_paced, consistency=consistency)
    cos, cos_adv = (cosines(parameters_of(clf.module_), v) for v in (x, x_adv))
    g = gates(cos, y, 0.2) if self_paced else 1.0
    z, z_adv = S * cos, S * cos_adv
    rob = kl(z, z_adv) if consistency == "kl" else rob_sp(z, z_adv, 0.2)
    assert_allclose(loss_of(clf, x, x_adv, y), ce(g * S * cos, y) + 6 * rob)
    assert_allclose(objective_of(clf, S * cos_adv, y, S * cos), rob)


@pytest.mark.parametrize("self_paced", [True, False])
@pytest.mark.parametrize("consistency", ["self_paced", "kl"])
def test_spat_ablations_on_the_linear_head(batch, self_paced, consistency):
    """Table 3.8: {SP-CE, CE} x {L_rob_sp, KL}; gates come from the cosines."""
    x, x_adv, y = batch
    clf = ready(SPATClassifier, self_paced=self_paced, consistency=consistency, head="linear")
    parameters = parameters_of(clf.module_)
    z, z_adv = linear_head(parameters, x), linear_head(parameters, x_adv)
    g = gates(cosines(parameters, x), y, 0.2) if self_paced else 1.0
    rob = kl(z, z_adv) if consistency == "kl" else rob_sp(z, z_adv, 0.2)
    assert_allclose(loss_of(clf, x, x_adv, y), ce(g * z, y) + 6 * rob)
    assert_allclose(objective_of(clf, z_adv, y, z), rob)


@pytest.mark.parametrize(
    "params", [{"head": "sine"}, {"consistency": "l2"}, {"form": "Literal"}], ids=str
)
def test_spat_rejects_unknown_options(params):
    with pytest.raises(ValueError, match="must be one of"):
        ready(SPATClassifier, **params)


def test_spat_rejects_options_that_do_not_go_together(batch):
    """The shifted form is one of cosines."""
    with pytest.raises(ValueError, match="shifted"):
        loss_of(ready(SPATClassifier, form="shifted", head="linear"), *batch)


WEIGHTS = {
    "robust": (1, 1),
    "detection": (0, 5),
    "base": (0, 0),
    "promote": (1, 0),
    "demote": (0, 1),
}


@pytest.mark.parametrize("n_members", [1, 2, 3])
@pytest.mark.parametrize("indicator", ["soft", "hard"])
@pytest.mark.parametrize("mode", WEIGHTS)
def test_cce(batch, mode, indicator, n_members):
    x, x_adv, y = batch
    rng = np.random.default_rng(1)
    clf = ready(EnsembleCCE, mode=mode, indicator=indicator, n_members=n_members)
    sources = [x_adv + rng.normal(0, 0.3, x.shape) for _ in range(n_members)]
    pm, dm = WEIGHTS[mode]
    expected = 0
    for n, member in enumerate(clf.module_.members):
        parameters = parameters_of(member)
        own = linear_head(parameters, sources[n])
        expected = expected + ce(linear_head(parameters, x), y) + ce(own, y)
        for i in set(range(n_members)) - {n}:
            z = linear_head(parameters, sources[i])
            p = softmax(z)[np.arange(N), y]
            secure = p if indicator == "soft" else (z.argmax(axis=1) == y)
            cross = pm * secure * ce(z, y) - dm * (1 - secure) * shannon(z)
            expected = expected + cross / (n_members - 1)
    assert_allclose(loss_of(clf, x, sources, y), expected)
    assert_allclose(objective_of(clf, z := linear_head(parameters, x_adv), y, None), ce(z, y))


def test_cce_lambdas_win_over_the_mode(batch):
    x, x_adv, y = batch
    sources = [x_adv, x_adv + 0.1]
    found = {
        (mode, pm, dm): loss_of(
            ready(EnsembleCCE, mode=mode, lambda_pm=pm, lambda_dm=dm), x, sources, y
        )
        for mode, pm, dm in [
            ("base", 1, 1), ("robust", None, None),
            ("robust", 0, 5), ("detection", None, None),
            ("robust", None, 0), ("promote", None, None),
            ("robust", 0.0, 0.0), ("base", None, None),
        ]
    }  # fmt: skip
    values = list(found.values())
    for overridden, plain in zip(values[::2], values[1::2], strict=True):
        assert_allclose(overridden, plain)
    assert not np.allclose(values[1], values[3])


# --- the weighted mean ---------------------------------------------------------------


def test_weighted_mean(cls, batch):
    """One SGD step on one batch against the gradient of the weighted mean."""
    x, _, y = batch
    weight = np.linspace(0.5, 3, N)
    common = {
        "optimizer": torch.optim.SGD, "lr": 0.1, "max_epochs": 1, "batch_size": -1,
        # PGD in a form that all take; without the noise that one adds where none is given
        "adversary": FriendlyPGD(
            eps=0.3, n_steps=2, tau=2, omega=1e-30, random_start="none", clip=None
        ),
        "iterator_train__shuffle": False,
    }  # fmt: skip
    start = ready(cls, **common)
    if start._steps_per_batch > 1:
        pytest.skip("takes several steps on a batch")
    tx, ty = torch.as_tensor(x), torch.as_tensor(y)
    start._batch_weight = torch.as_tensor(weight)  # as in training: losses may couple samples
    losses = start.training_loss(tx, start.craft(tx, ty), ty)
    (torch.as_tensor(weight) * losses).sum().div(weight.sum()).backward()
    with torch.no_grad():
        for p in start.module_.parameters():
            p -= 0.1 * p.grad
    fitted = cls(module=network, random_state=0, device="cpu", **common).fit(x, y, weight)
    expected = (weight * losses.detach().numpy()).sum() / weight.sum()
    assert fitted.history_[0, "train_loss"] == pytest.approx(expected, rel=1e-9)
    for p, q in zip(fitted.module_.parameters(), start.module_.parameters(), strict=True):
        assert_allclose(p.detach().numpy(), q.detach().numpy(), atol=1e-9)


# --- limit cases ---------------------------------------------------------------------


@pytest.fixture
def table():
    rng = np.random.default_rng(2)
    y = np.arange(40) % C
    return rng.normal(size=(40, D)) + 2 * np.eye(C, D)[y], y


def fit(cls, table, **params):
    defaults = {
        "module": network, "max_epochs": 3, "batch_size": 16, "random_state": 0, "device": "cpu",
        "lr": 0.02,
    }  # fmt: skip
    if "adversary" not in params:
        defaults.update(adversary__eps=0.3, adversary__n_steps=2)
    return cls(**{**defaults, **params}).fit(*table)


def assert_same_weights(first, second):
    first, second = first.module_.state_dict(), second.module_.state_dict()
    assert len(first) == len(second)
    for a, b in zip(first.values(), second.values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_trades_without_weight_on_robustness_is_natural_training(table, dtype):
    table = table[0].astype(dtype), table[1]
    natural = fit(StandardClassifier, table)
    assert_same_weights(fit(TRADESClassifier, table, beta=0), natural)
    assert_same_weights(fit(SPATClassifier, table, lam=0, self_paced=False, head="linear"), natural)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("clip", ["auto", None, (-9, 9)])
def test_pgd_at_without_a_radius_is_natural_training(table, dtype, clip):
    table = table[0].astype(dtype), table[1]
    adversary = PGD(eps=0, n_steps=2, random_start="none", clip=clip)
    natural = fit(StandardClassifier, table)
    assert_same_weights(fit(PGDATClassifier, table, adversary=adversary), natural)


def test_ablated_spat_on_the_linear_head_is_trades(table):
    ablated = fit(SPATClassifier, table, head="linear", self_paced=False, consistency="kl", lam=3)
    assert_same_weights(ablated, fit(TRADESClassifier, table, beta=3))


def test_ablated_spat_is_trades_on_a_cosine_head(table, batch):
    def cosine_network():
        return replace_classifier(network(), lambda n_in, n_out: CosineLinear(n_in, n_out, S))

    params = {"self_paced": False, "consistency": "kl", "alpha": 1.0}
    spat = fit(SPATClassifier, table, **params)
    trades = fit(TRADESClassifier, table, module=cosine_network)
    assert spat.history_[:, "train_loss"] == trades.history_[:, "train_loss"]
    assert_same_weights(spat, trades)
    first, second = (
        ready(SPATClassifier, **params),
        ready(TRADESClassifier, module=cosine_network),
    )
    assert_allclose(loss_of(first, *batch), loss_of(second, *batch), rtol=1e-12)


def test_spat_without_weight_on_robustness(batch):
    x, x_adv, y = batch
    clf = ready(SPATClassifier, lam=0)
    cos = cosines(parameters_of(clf.module_), x)
    expected = ce(gates(cos, y, 0.2) * S * cos, y)
    assert_allclose(loss_of(clf, x, x_adv, y), expected)
    assert_allclose(loss_of(clf, x, 100 * x_adv, y), expected)


def test_alpha_one_differs_from_kl_by_the_inconsistency(batch):
    x, x_adv, y = batch
    whole = ready(SPATClassifier, alpha=1.0, lam=1.0)
    only_kl = ready(SPATClassifier, consistency="kl", lam=1.0)
    cos, cos_adv = (cosines(parameters_of(whole.module_), v) for v in (x, x_adv))
    expected = rob_sp(S * cos, S * cos_adv, 0.0)
    assert_allclose(loss_of(whole, x, x_adv, y) - loss_of(only_kl, x, x_adv, y), expected)


def test_gradient_flows_through_the_clean_branch_of_the_divergence(batch):
    """With the cross-entropy removed, a detached clean branch would give another gradient."""
    x, x_adv, y = (torch.as_tensor(v) for v in batch)
    clf = ready(TRADESClassifier, beta=1.0)
    (clf.training_loss(x, x_adv, y) - nn.functional.cross_entropy(
        clf.module_(x), y, reduction="none"
    )).sum().backward()  # fmt: skip
    found = [p.grad.clone() for p in clf.module_.parameters()]
    clf.module_.zero_grad()
    p, q = clf.module_(x).softmax(1), clf.module_(x_adv).softmax(1)
    (p * (p / q).log()).sum().backward()
    for value, parameter in zip(found, clf.module_.parameters(), strict=True):
        assert_allclose(value.numpy(), parameter.grad.numpy(), atol=1e-12)


# --- the ensemble --------------------------------------------------------------------


def instances(n):
    with torch.random.fork_rng():
        torch.manual_seed(11)
        return [network() for _ in range(n)]


def test_one_member_is_adversarial_training_on_both(batch):
    x, x_adv, y = batch
    clf = ready(EnsembleCCE, n_members=1)
    tx, ta, ty = (torch.as_tensor(v) for v in batch)
    loss = clf.training_loss(tx, [ta], ty)
    loss.sum().backward()
    member = clf.module_.members[0]
    found = [p.grad.clone() for p in member.parameters()]
    member.zero_grad()
    alone = nn.functional.cross_entropy(member(tx), ty, reduction="none")
    alone = alone + nn.functional.cross_entropy(member(ta), ty, reduction="none")
    alone.sum().backward()
    assert_allclose(loss.detach(), alone.detach(), rtol=1e-12)
    for value, parameter in zip(found, member.parameters(), strict=True):
        assert_allclose(value.numpy(), parameter.grad.numpy(), atol=1e-12)
    parameters = parameters_of(member)
    expected = ce(linear_head(parameters, x), y) + ce(linear_head(parameters, x_adv), y)
    assert_allclose(loss.detach(), expected)


def test_members_of_mode_base_train_alone(table):
    modules = instances(3)
    params = {
        "mode": "base",
        "adversary": PGD(eps=0.3, n_steps=2, random_start="none"),
    }
    together = fit(EnsembleCCE, table, module=modules, **params)
    for n, module in enumerate(modules):
        alone = fit(EnsembleCCE, table, module=[module], **params)
        for p, q in zip(
            together.members_[n].parameters(), alone.members_[0].parameters(), strict=True
        ):
            assert_allclose(p.detach().numpy(), q.detach().numpy(), atol=1e-10)


@pytest.mark.parametrize("mode", WEIGHTS)
def test_gradient_of_a_member_does_not_depend_on_the_weights_of_others(batch, mode):
    x, x_adv, y = (torch.as_tensor(v) for v in batch)
    clf = ready(EnsembleCCE, mode=mode)
    found = []
    for scale in (1.0, 3.0):
        with torch.no_grad():
            clf.module_.members[1][0].weight.mul_(scale)
        clf.module_.zero_grad()
        clf.training_loss(x, [x_adv, x_adv + 0.2], y).sum().backward()
        found.append(clf.module_.members[0][0].weight.grad.clone())
    assert torch.allclose(*found, atol=1e-12)


def test_no_gradient_reaches_the_indicator(batch):
    """Detached: d/dz of the promoting term is lambda s (p - e_y)."""
    x, x_adv, y = (torch.as_tensor(v) for v in batch)
    clf = ready(EnsembleCCE, mode="promote")
    member = clf.module_.members[0]

    def gradient(loss):
        clf.module_.zero_grad()
        loss.sum().backward()
        return member[2].bias.grad.numpy().copy()

    cross = x_adv + 0.3
    whole = gradient(clf.training_loss(x, [x_adv, cross], y))
    clf.mode = "base"
    without = gradient(clf.training_loss(x, [x_adv, cross], y))
    p = softmax(member(cross).detach().numpy())
    secure = p[np.arange(N), y]
    expected = (secure[:, None] * (p - np.eye(C)[y])).sum(axis=0)
    assert_allclose(whole - without, expected, atol=1e-12)


# --- does it help? -------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits_images(return_X_y=True, as_flat=True)
    return X[:500], y[:500], X[1000:1300], y[1000:1300]


def digits_mlp():
    return MLP((64,), 10, hidden_sizes=(64,))


@pytest.fixture(scope="module")
def robust_accuracy(digits):
    """Return a function that trains and gives the accuracies without and under PGD."""
    found = {}
    attack = PGD(eps=0.2, n_steps=10, random_state=0, clip=(0, 1))

    def accuracies(cls, **params):
        if cls not in found:
            X, y, X_test, y_test = digits
            clf = cls(
                digits_mlp, max_epochs=25, batch_size=64, random_state=0, device="cpu",
                adversary__eps=0.2, adversary__n_steps=5, adversary__clip=(0, 1), **params,
            ).fit(X, y)  # fmt: skip
            found[cls] = clf.score(X_test, y_test), clf.score_adversarial(X_test, y_test, attack)
        return found[cls]

    return accuracies


@pytest.mark.parametrize(
    "defense",
    [
        PGDATClassifier,
        *(
            pytest.param(cls, marks=pytest.mark.slow)
            for cls in (TRADESClassifier, SPATClassifier, EnsembleCCE)
        ),
    ],
)
def test_a_defence_is_more_robust_than_none(robust_accuracy, defense):
    clean, robust = robust_accuracy(defense)
    natural_clean, natural_robust = robust_accuracy(StandardClassifier)
    assert natural_clean > 0.85
    assert clean > 0.6
    assert robust > natural_robust + 0.15
