import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from recording import Recorder
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch import NeuralNetClassifier
from torch import nn

from robustsk import StandardClassifier
from robustsk.attacks import BIM, FGSM, MIM, PGD, as_victim
from robustsk.attacks.gradient import _descent
from robustsk.metrics import adversarial_outcome, score_adversarial

NORMS = [np.inf, 2.0, 1.0]
each_norm = pytest.mark.parametrize("norm", NORMS, ids=["inf", "2", "1"])
RNG = np.random.default_rng(0)
D = 8
W = RNG.normal(size=D)
X = torch.tensor(RNG.normal(size=(12, D)))
Y = torch.tensor([0, 1] * 6)


def linear(weight=W, bias=0.3):
    module = nn.Linear(D, 1).double()
    with torch.no_grad():
        module.weight.copy_(torch.tensor(weight)[None])
        module.bias.fill_(bias)
    return module


def softmax_linear(n_classes=4, seed=0, scale=1.0):
    module = nn.Linear(D, n_classes).double()
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        module.weight.copy_(scale * torch.tensor(rng.normal(size=(n_classes, D))))
        module.bias.copy_(scale * torch.tensor(rng.normal(size=n_classes)))
    return module


class Waves(nn.Module):
    """Class 1 where the features are on top of a wave much shorter than the radius."""

    def __init__(self, frequency=40.0, offset=0.0):
        super().__init__()
        self.frequency, self.offset = frequency, offset
        self.anchor = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, x):
        top = torch.cos(self.frequency * x).mean(1) + self.offset
        return torch.stack([self.anchor - top, top], 1)


def attack(cls, **parameters):
    return cls(clip=None, random_state=0, **parameters)


# --- closed forms ---------------------------------------------------------------------


@pytest.mark.parametrize("eps", [8 / 255, 0.1, 2.0])
def test_fgsm_on_a_linear_model_attains_the_bound(eps):
    # Hou (2022), Eqs. 2.2-2.3: eta = eps * sign(w) moves the activation by eps * ||w||_1
    module = linear()
    x_adv = attack(FGSM, eps=eps).perturb(module, X, Y)
    change = (module(x_adv) - module(X)).detach().numpy()[:, 0]
    sign = np.where(Y == 0, 1, -1)
    assert_allclose(change, sign * eps * np.abs(W).sum())
    assert_allclose(x_adv - X, sign[:, None] * eps * np.sign(W)[None])
    assert_allclose(np.abs(change), eps * np.abs(W).mean() * D)


@pytest.mark.parametrize("cls", [FGSM, BIM, PGD, MIM])
@each_norm
def test_change_of_a_linear_model_attains_the_dual_norm(cls, norm):
    eps, module = 0.5, linear()
    dual = {np.inf: 1, 2.0: 2, 1.0: np.inf}[norm]
    x_adv = attack(cls, norm=norm, eps=eps).perturb(module, X, Y)
    change = (module(x_adv) - module(X)).abs().detach().numpy()[:, 0]
    bound = eps * np.linalg.norm(W, ord=dual)
    assert np.all(change <= bound * (1 + 1e-9))
    # after a random start the last steps slide along the surface towards the optimum
    assert change.min() >= bound * (0.9 if cls is PGD else 1 - 1e-9)


def test_logistic_regression_has_the_closed_form_too(table):
    rows = table.y < 2
    clf = LogisticRegression().fit(table.X[rows], table.y[rows])
    X_adv = FGSM(clf, eps=0.2, clip=None).generate(table.X[rows], table.y[rows])
    margin = clf.decision_function(table.X[rows]) * (2 * table.y[rows] - 1)
    robust_margin = margin - 0.2 * np.abs(clf.coef_).sum()
    attacked = clf.decision_function(X_adv) * (2 * table.y[rows] - 1)
    assert_allclose(attacked, robust_margin, atol=1e-9)
    assert 0 < (robust_margin > 0).mean() < (margin > 0).mean()
    score = score_adversarial(clf, table.X[rows], table.y[rows], FGSM(eps=0.2, clip=None))
    assert score == (robust_margin > 0).mean()


@each_norm
def test_pgd_of_one_full_step_is_fgsm(norm, problem):
    X, y = problem.X[:12], problem.y[:12]
    common = {"norm": norm, "eps": 0.3, "clip": None}
    once = PGD(problem.model, n_steps=1, random_start="none", step_size=0.3, **common)
    assert_array_equal(once.generate(X, y), FGSM(problem.model, **common).generate(X, y))


@each_norm
def test_bim_reaches_the_point_of_fgsm_on_a_linear_model(norm):
    common = {"norm": norm, "eps": 0.7}
    once = attack(FGSM, **common).perturb(linear(), X, Y)
    for n_steps in (1, 3, 10):
        many = attack(BIM, n_steps=n_steps, step_size=0.7 / n_steps, **common)
        assert_allclose(many.perturb(linear(), X, Y), once, atol=1e-12)
        assert_allclose(
            attack(BIM, n_steps=n_steps, **common).perturb(linear(), X, Y), once, atol=1e-12
        )


@each_norm
def test_mim_without_memory_is_bim(norm, problem):
    common = {"norm": norm, "eps": 0.3, "clip": None, "n_steps": 7}
    x, y = problem.X[:12].astype(np.float64), problem.y[:12]
    model = problem.net.double()
    bim = BIM(model, **common).generate(x, y)
    assert_allclose(MIM(model, decay=0.0, **common).generate(x, y), bim, atol=1e-9)
    if problem.X.ndim == 4:  # in a table a few features stay the steepest whatever is remembered
        assert np.abs(MIM(model, decay=1.0, **common).generate(x, y) - bim).max() > 1e-3


def test_mim_by_hand(table):
    net, decay, size = table.net, 0.7, 0.05
    x, y = torch.tensor(table.X[:6]), torch.tensor(table.y[:6])
    z, velocity = x.clone(), torch.zeros_like(x)
    for _ in range(4):
        z = z.detach().requires_grad_(True)
        loss = nn.functional.cross_entropy(net(z), y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, z)
        velocity = decay * velocity + gradient / gradient.abs().sum(1, keepdim=True)
        z = x + (z.detach() + size * velocity.sign() - x).clamp(-0.15, 0.15)
    mim = attack(MIM, eps=0.15, decay=decay, n_steps=4, step_size=size)
    assert_allclose(mim.perturb(net, x, y), z, atol=1e-12)


def test_pgd_by_hand(table):
    net, size = table.net, 0.1
    x, y = torch.tensor(table.X[:6]), torch.tensor(table.y[:6])
    z = x.clone()
    for _ in range(5):
        z = z.detach().requires_grad_(True)
        loss = nn.functional.cross_entropy(net(z), y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, z)
        z = z.detach() + size * gradient / gradient.norm(dim=1, keepdim=True)
        delta = z - x
        z = x + delta * (0.3 / delta.norm(dim=1, keepdim=True)).clamp_max(1)
    run = attack(PGD, norm=2, eps=0.3, n_steps=5, step_size=size, random_start="none")
    assert_allclose(run.perturb(net, x, y), z, atol=1e-12)


def test_one_euclidean_step_goes_along_the_gradient(table):
    x, y = torch.tensor(table.X[:20]), torch.tensor(table.y[:20])
    x_adv = attack(FGSM, norm=2, eps=0.4).perturb(table.net, x, y)
    x = x.requires_grad_(True)
    (gradient,) = torch.autograd.grad(
        nn.functional.cross_entropy(table.net(x), y, reduction="sum"), x
    )
    expected = 0.4 * gradient / gradient.norm(dim=1, keepdim=True)
    assert_allclose(x_adv - x.detach(), expected, atol=1e-12)


@pytest.mark.parametrize("cls", [FGSM, BIM, PGD, MIM])
@each_norm
def test_two_classes_have_one_direction(cls, norm):
    net = nn.Sequential(softmax_linear(6, seed=1), nn.Tanh(), nn.Linear(6, 2).double())
    with torch.no_grad():
        net[2].weight.copy_(torch.tensor(np.random.default_rng(2).normal(size=(2, 6))))
    away = attack(cls, norm=norm, eps=0.4).perturb(net, X, Y)
    for target in (0, 1):
        rows = target != Y
        towards = attack(cls, norm=norm, eps=0.4, target=target).perturb(net, X[rows], Y[rows])
        assert_allclose(towards, away[rows], atol=1e-9)


# --- step sizes and starts -------------------------------------------------------------


def first_moves(cls, **parameters):
    recorder = Recorder(linear())
    attack(cls, **parameters).perturb(recorder, X, Y)
    return recorder.inputs


@pytest.mark.parametrize(("n_steps", "eps"), [(10, 1.0), (40, 0.3)])
def test_default_step_sizes(n_steps, eps):
    inputs = first_moves(PGD, eps=eps, n_steps=n_steps, random_start="none")
    assert_allclose((inputs[1] - inputs[0]).abs(), 2.5 * eps / n_steps)
    assert len(inputs) == n_steps
    for cls in (BIM, MIM):
        inputs = first_moves(cls, eps=eps, n_steps=n_steps)
        assert_allclose((inputs[1] - inputs[0]).abs(), eps / n_steps)
        assert_array_equal(inputs[0], X)
        assert len(inputs) == n_steps
    inputs = first_moves(PGD, eps=eps, n_steps=n_steps, random_start="none", step_size=0.01)
    assert_allclose((inputs[1] - inputs[0]).abs(), 0.01)


def test_fgsm_step_is_longer_after_a_random_start():
    # from wherever in the ball a step of 1.25 * eps leads to the border or short of it
    eps = 0.2
    for start, factor in [("none", 1.0), ("uniform", 1.25), ("gaussian", 1.25)]:
        recorder = Recorder(linear())
        x_adv = attack(FGSM, eps=eps, random_start=start, start_std=0.05).perturb(recorder, X, Y)
        (z,) = recorder.inputs
        direction = torch.where(Y == 0, 1.0, -1.0)[:, None] * torch.tensor(W).sign()
        expected = X + (z + factor * eps * direction - X).clamp(-eps, eps)
        assert_allclose(x_adv, expected, atol=1e-12)
        assert (start == "none") == bool((z == X).all())


@each_norm
@pytest.mark.parametrize("size", [None, 0.05, 0.2])
def test_fgsm_after_a_start_of_signs(norm, size):
    # Bui (2024), Eq. 2.19, in the inf norm: x' = x + alpha * sign(N(0, 1)), one sign for each
    # coordinate, then a step of eps - alpha
    eps, alpha = 0.2, 0.1 if size is None else size
    recorder = Recorder(linear())
    given = {"norm": norm, "eps": eps, "random_start": "sign", "start_size": size}
    x_adv = attack(FGSM, **given).perturb(recorder, X, Y)
    (z,) = recorder.inputs
    start = z - X
    entry = alpha / np.linalg.norm(np.ones(D), ord=norm)
    assert_allclose(start.abs(), np.full(X.shape, entry))
    assert_allclose(np.linalg.norm(start, ord=norm, axis=1), np.full(len(X), alpha))
    assert 0.3 < float((start > 0).double().mean()) < 0.7
    assert len(start.sign().unique(dim=0)) > 1
    step = x_adv - z
    assert np.linalg.norm(x_adv - X, ord=norm, axis=1).max() <= eps * (1 + 1e-9)
    if norm == np.inf:
        towards = torch.where(Y == 0, 1.0, -1.0)[:, None] * torch.tensor(W).sign()
        assert_allclose(step, (eps - alpha) * towards, atol=1e-12)
    elif norm == 2:
        along = np.where(Y == 0, 1, -1)[:, None] * W / np.linalg.norm(W)
        assert_allclose(step, (eps - alpha) * along, atol=1e-12)


@each_norm
@pytest.mark.parametrize("given", [{}, {"clip": (-0.5, 0.5)}, {"eps": np.linspace(0, 0.4, D)}])
def test_fgsm_after_signs_of_no_size_is_fgsm(norm, given):
    x = X.clamp(-0.5, 0.5)
    common = {"random_state": 0, "norm": norm, "eps": 0.2, "clip": None, **given}
    signs = FGSM(random_start="sign", start_size=0, **common).perturb(linear(), x, Y)
    assert_array_equal(signs, FGSM(**common).perturb(linear(), x, Y))


@each_norm
@pytest.mark.parametrize("step_size", [None, 1.0])
def test_fgsm_after_signs_stays_in_ball_and_box(norm, step_size):
    x, eps = X.clamp(-0.5, 0.5), np.linspace(0, 0.4, D)
    attacker = FGSM(
        norm=norm, eps=eps, clip=(-0.5, 0.5), random_start="sign", step_size=step_size,
        random_state=0,
    )  # fmt: skip
    recorder = Recorder(linear())
    x_adv = attacker.perturb(recorder, x, Y)
    for z in (recorder.inputs[0], x_adv):
        move = (z - x).numpy()
        assert z.abs().max() <= 0.5
        assert (move[:, 0] == 0).all()
        assert np.linalg.norm(move[:, 1:] / eps[1:], ord=norm, axis=1).max() <= 1 + 1e-9
    assert (recorder.inputs[0] != x).any(1).all()


def test_step_size_of_an_array_of_radii_is_in_the_largest():
    eps = np.array([0.1, 0.4, 0.0, 0.2, 0.4, 0.4, 0.1, 0.3])
    x_adv = attack(FGSM, eps=eps).perturb(linear(), X, Y)
    assert_allclose((x_adv - X).abs(), np.broadcast_to(eps, X.shape), atol=1e-12)
    x_adv = attack(BIM, eps=eps, n_steps=4).perturb(linear(), X, Y)
    assert_allclose((x_adv - X).abs(), np.broadcast_to(eps, X.shape), atol=1e-12)


def test_step_of_no_length_and_start_of_no_width():
    x_adv = attack(PGD, eps=0.3, step_size=0, random_start="gaussian", start_std=0).perturb(
        linear(), X, Y
    )
    assert_array_equal(x_adv, X)


@pytest.mark.parametrize(
    ("cls", "parameters", "words"),
    [
        (PGD, {"n_steps": 0}, "n_steps must be an integer of at least 1, got 0"),
        (BIM, {"n_steps": 2.5}, "n_steps must be an integer"),
        (MIM, {"n_steps": True}, "n_steps must be an integer"),
        (PGD, {"n_restarts": 0}, "n_restarts must be an integer of at least 1"),
        (PGD, {"step_size": -0.1}, "step_size must be a finite number of at least 0"),
        (BIM, {"step_size": np.nan}, "step_size must be a finite number"),
        (FGSM, {"step_size": "big"}, "step_size must be a finite number"),
        (PGD, {"start_std": -1}, "start_std must be a finite number"),
        (MIM, {"decay": -1}, "decay must be a finite number"),
        (PGD, {"random_start": "normal"}, r"random_start must be one of \('none', 'uniform'"),
        (FGSM, {"random_start": True}, "random_start must be one of"),
        (PGD, {"random_start": "sign"}, "random_start must be one of"),
        (FGSM, {"random_start": "sign", "start_size": 0.2}, r"at most eps=0.1 and is 0.2"),
        (FGSM, {"random_start": "sign", "start_size": -0.1}, "start_size must be a finite number"),
    ],
)
def test_bad_parameters(cls, parameters, words):
    with pytest.raises(ValueError, match=words):
        attack(cls, eps=0.1, **parameters).perturb(linear(), X, Y)


# --- what is kept ----------------------------------------------------------------------


@pytest.mark.parametrize("cls", [FGSM, BIM, PGD, MIM])
def test_worst_never_loses_an_iterate_that_fooled(cls):
    x = torch.tensor(np.random.default_rng(1).uniform(-0.02, 0.02, size=(60, 1)))
    x[::3] += 0.07  # some start in a trough
    y = torch.ones(60, dtype=torch.long)
    recorder = Recorder(Waves(offset=0.1))
    lost = {}
    for keep in ("last", "worst"):
        recorder.inputs.clear()
        recorder.outputs.clear()
        extra = {} if cls is FGSM else {"step_size": 0.06}
        z = attack(cls, eps=0.2, **extra).perturb(recorder, x, y, keep=keep)
        # the clean samples are looked at last, and only where nothing has fooled the model
        seen = [out for out in recorder.outputs if len(out) == len(x)]
        fooled = torch.stack([out.argmax(1) != y for out in seen]).any(0)
        if keep == "worst":
            fooled |= recorder.module(x).argmax(1) != y
        assert fooled.any()
        stays = recorder.module(z).argmax(1) != y
        lost[keep] = int((fooled & ~stays).sum())
    assert lost["worst"] == 0
    assert lost["last"] > 0


def test_worst_returns_the_latest_iterate_that_fooled(table):
    x, y = torch.tensor(table.X), torch.tensor(table.y)
    net = table.net
    common = {"eps": 0.5, "n_steps": 5}
    worst = attack(PGD, **common).perturb(net, x, y, keep="worst")
    last = attack(PGD, **common).perturb(net, x, y, keep="last")
    first = attack(PGD, **common).perturb(net, x, y, keep="first")
    fooled = net(last).argmax(1) != y
    assert 0.2 < fooled.double().mean() < 1
    assert_array_equal(worst[fooled], last[fooled])
    assert_array_equal((net(first).argmax(1) != y)[fooled], True)
    assert (first != last).any()


def test_first_stops_working_on_fooled_samples(table):
    recorder = Recorder(table.net)
    x, y = torch.tensor(table.X), torch.tensor(table.y)
    common = {"eps": 0.8, "n_steps": 20, "step_size": 0.1}
    attack(PGD, **common).perturb(recorder, x, y, keep="first")
    work = [len(z) for z in recorder.inputs]
    assert work == sorted(work, reverse=True)
    assert work[-1] < 0.6 * len(x)
    recorder.inputs.clear()
    recorder.module = linear()
    attack(PGD, eps=50.0, n_steps=20).perturb(recorder, X, Y, keep="first")
    assert len(recorder.inputs) < 20


@pytest.mark.dealt
@each_norm
@pytest.mark.parametrize("cls", [PGD, MIM, BIM])
def test_compaction_changes_nothing(cls, norm, table, monkeypatch):
    x, y = torch.tensor(table.X), torch.tensor(table.y)
    restarts = {"n_restarts": 3} if cls is PGD else {}
    eps = {np.inf: 0.4, 2.0: 0.8, 1.0: 1.5}[norm]
    run = attack(cls, norm=norm, eps=eps, n_steps=12, **restarts)
    found = {}
    for share in (2.0, 0.25, 0.0):  # never, by default, whenever there is one
        monkeypatch.setattr(_descent, "COMPACT_AT", share)
        found[share] = run.perturb(table.net, x, y, keep="first")
    predicted = table.net(found[2.0]).argmax(1)
    assert 0.1 < (predicted != y).double().mean() < 0.9
    for share in (0.25, 0.0):
        assert_allclose(found[share], found[2.0], atol=1e-9)


def test_restarts_never_raise_the_robust_accuracy():
    x = np.random.default_rng(1).uniform(-2, 2, size=(150, 2))
    module = Waves(9.0, offset=0.5)
    y = module(torch.tensor(x)).argmax(1).numpy()
    scores = [
        score_adversarial(module, x, y, attack(PGD, eps=0.1, n_steps=2, n_restarts=n))
        for n in (1, 2, 4, 8)
    ]
    assert scores == sorted(scores, reverse=True)
    assert scores[-1] < scores[0]
    seeds = [
        score_adversarial(
            module, x, y, PGD(eps=0.1, n_steps=2, n_restarts=3, clip=None, random_state=seed)
        )
        for seed in range(3)
    ]
    assert max(seeds) <= scores[0] + 0.1


def test_restarts_keep_the_highest_objective_where_none_fools(table):
    right = table.net(torch.tensor(table.X)).argmax(1).numpy() == table.y
    x, y = torch.tensor(table.X[right]), torch.tensor(table.y[right])

    def loss(n_restarts, keep):
        z = attack(PGD, eps=0.05, n_steps=1, step_size=0.01, n_restarts=n_restarts).perturb(
            table.net, x, y, keep=keep
        )
        return nn.functional.cross_entropy(table.net(z), y, reduction="none").detach()

    for keep in ("last", "first", "worst"):
        one, five = loss(1, keep), loss(5, keep)
        unfooled = five < np.log(2)
        assert (five >= one - 1e-12)[unfooled].all()
        assert five[unfooled].mean() > one[unfooled].mean()


def test_restarts_without_a_random_start_are_not_run():
    recorder = Recorder(linear())
    attack(PGD, eps=0.1, n_steps=4, n_restarts=9, random_start="none").perturb(recorder, X, Y)
    assert len(recorder.inputs) == 4


# --- evaluation and generation agree ---------------------------------------------------


@pytest.fixture(scope="module")
def models(_table):
    X, y = _table.X, _table.y
    X32 = X.astype(np.float32)
    skorch_net = NeuralNetClassifier(
        nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3)),
        criterion=nn.CrossEntropyLoss,
        max_epochs=10,
        lr=0.1,
        train_split=None,
        verbose=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        skorch_net.fit(X32, y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlp = MLPClassifier((8,), max_iter=60, random_state=0).fit(X, y)
    return {
        "logistic": make_pipeline(StandardScaler(), LogisticRegression()).fit(X, y),
        "mlp": mlp,
        "module": _table.net,
        "skorch": skorch_net,
        "ours": StandardClassifier(max_epochs=10, random_state=0).fit(X32, y),
    }


def predict(model, X):
    if not isinstance(model, nn.Module):
        return model.predict(X)
    victim = as_victim(model)
    with victim.frozen() as seen, torch.no_grad():
        return seen(torch.as_tensor(X).to(victim.dtype)).argmax(1).numpy()


SETTINGS = [
    (PGD, {}),
    (PGD, {"target": "random", "n_restarts": 3}),
    (FGSM, {}),
    (FGSM, {"random_start": "uniform"}),
    (BIM, {}),
    (MIM, {}),
    (PGD, {"n_restarts": 3}),
    (PGD, {"objective": "cw", "n_restarts": 2}),
    (PGD, {"target": "least_likely"}),
]


def each_model_and_setting():
    """Return all pairs; slow where neither is one that the other is always tried with."""
    pairs = []
    for name in ("logistic", "mlp", "module", "skorch", "ours"):
        for cls, parameters in SETTINGS:
            tried = name == "module" or (cls, parameters) in SETTINGS[:2]
            mark = () if tried else pytest.mark.slow
            name_of = "-".join([cls.__name__, *parameters, name])
            pairs.append(pytest.param(name, cls, parameters, id=name_of, marks=mark))
    return pairs


@pytest.mark.dealt
@pytest.mark.parametrize(("name", "cls", "parameters"), each_model_and_setting())
def test_score_and_generate_agree(models, name, cls, parameters, table):
    model = models[name]
    X, y = table.X[:80].astype(np.float32), table.y[:80]
    scores = []
    for norm, eps, batch_size in [(np.inf, 0.3, 256), (2.0, 0.7, 7), (1.0, 1.2, 256)]:
        run = attack(cls, norm=norm, eps=eps, batch_size=batch_size, **parameters)
        score = score_adversarial(model, X, y, run)
        scores.append(score)
        robust = predict(model, run.set_params(estimator=model).generate(X, y)) == y
        if "target" in parameters:  # which may well be the way back from a clean error
            robust &= predict(model, X) == y
        assert score == robust.mean()
    assert 0 < min(scores) < np.mean(predict(model, X) == y)


@pytest.mark.parametrize("cls", [FGSM, BIM, PGD, MIM])
def test_score_and_generate_agree_on_misclassified_samples(cls):
    # a clean error is an error under attack, wherever the attack would lead from it
    module = Waves(40.0, offset=0.6)
    x = np.random.default_rng(0).uniform(-0.3, 0.3, size=(200, 2))
    y = np.ones(200, dtype=int)
    clean = predict(module, x) == y
    assert 0.3 < clean.mean() < 0.95
    start = {} if cls in (BIM, MIM) else {"random_start": "uniform"}
    run = attack(cls, eps=0.1, **start)
    score = score_adversarial(module, x, y, run)
    X_adv = run.set_params(estimator=module).generate(x, y)
    assert np.mean(predict(module, X_adv) == y) == score
    assert np.all(predict(module, X_adv)[~clean] != y[~clean])


def test_score_and_generate_agree_where_rounding_takes_an_iterate_back():
    # float32 data, a float64 model whose border lies between an iterate and its rounding:
    # the first iterate that fools does not survive rounding, later ones do
    X = np.ones((1, 1), dtype=np.float32)
    clf = LogisticRegression()
    clf.classes_, clf.n_features_in_ = np.array([0, 1]), 1
    border = 1.29999999
    assert float(np.float32(1.3)) < border < 1.3
    clf.coef_, clf.intercept_ = np.array([[1.0]]), np.array([-border])
    run = attack(BIM, eps=0.9, n_steps=3)
    X_adv = run.set_params(estimator=clf).generate(X, [0])
    assert clf.predict(X_adv) == [1]
    assert score_adversarial(clf, X, [0], run) == 0.0


def test_outcome_leaves_misclassified_samples_alone(table):
    outcome = adversarial_outcome(table.net, table.X, table.y, attack(PGD, eps=0.3))
    wrong = outcome.y_pred != table.y
    assert wrong.any()
    assert_array_equal(outcome.X_adv[wrong], table.X[wrong])
    assert_array_equal(outcome.robust, predict(table.net, outcome.X_adv) == table.y)


# --- objectives at work ----------------------------------------------------------------


@pytest.mark.parametrize("objective", ["cw", "dlr"])
def test_attack_does_not_see_the_scale_of_the_logits(objective):
    small, large = softmax_linear(), softmax_linear(scale=1e4)
    y = small(X).argmax(1)
    run = attack(PGD, eps=0.3, objective=objective, random_start="none", n_steps=1)
    assert_allclose(run.perturb(large, X, y), run.perturb(small, X, y), atol=1e-12)


def test_cross_entropy_vanishes_where_the_margin_does_not(table):
    net = table.net.float()
    with torch.no_grad():
        net[2].weight.mul_(1000)
        net[2].bias.mul_(1000)
    X, y = table.X.astype(np.float32), table.y
    run = attack(PGD, eps=0.3, random_start="none")
    by_entropy = score_adversarial(net, X, y, run)
    by_margin = score_adversarial(net, X, y, run.set_params(objective="cw"))
    assert by_margin < by_entropy


def test_non_finite_gradients_do_not_spread():
    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1, dtype=torch.float64))

        def forward(self, x):
            return self.weight * torch.stack([x[:, 1], x.relu().sqrt().sum(1)], 1)

    x = torch.tensor([[0.0, 0.5], [0.2, 0.4]], dtype=torch.float64)
    x_adv = attack(BIM, eps=0.1).perturb(Root(), x, torch.tensor([1, 1]))
    assert torch.isfinite(x_adv).all()
    assert (x_adv[1] != x[1]).all()


def test_labels_may_be_left_out_of_the_torch_face(table):
    x = torch.tensor(table.X[:20])
    predicted = table.net(x).argmax(1)
    run = attack(PGD, eps=0.3)
    assert torch.equal(run.perturb(table.net, x), run.perturb(table.net, x, predicted))


def test_torch_face_under_no_grad(table):
    x, y = torch.tensor(table.X[:20]), torch.tensor(table.y[:20])
    run = attack(PGD, eps=0.3)
    expected = run.perturb(table.net, x, y)
    with torch.no_grad():
        assert torch.equal(run.perturb(table.net, x, y), expected)
    assert torch.equal(run.perturb(table.net, x.requires_grad_(True), y), expected)
