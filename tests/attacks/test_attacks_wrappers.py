"""Attacks around attacks: on average, through what has no gradient, and from model to model."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    KBinsDiscretizer,
    OneHotEncoder,
    StandardScaler,
)
from torch import nn
from torch.nn import functional as F

from robustsk import PGD, score_adversarial
from robustsk._discovery import all_attacks
from robustsk.attacks import BIM, BPDA, EOT, NoGradientError, TransferAttack, as_victim
from robustsk.attacks.batch import AttackBatch

# --- expectation over transformation -------------------------------------------------


class Noise(nn.Module):
    """Normal noise that is there in evaluation mode as well."""

    def __init__(self, std):
        super().__init__()
        self.std = std

    def forward(self, x):
        return x + self.std * torch.randn_like(x)


def mean_accuracy(net, X, y, n=50):
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        net.eval()
        return np.mean([(net(torch.tensor(X)).argmax(1).numpy() == y).mean() for _ in range(n)])


@pytest.mark.dealt
@pytest.mark.parametrize("n_draws", [1, 3])
@pytest.mark.parametrize("norm", [np.inf, 2])
def test_average_of_equals(images, norm, n_draws):
    common = {"norm": norm, "eps": 0.2, "clip": (0, 1), "random_state": 0}
    expected = PGD(images.net, **common).generate(images.X[:20], images.y[:20])
    for transformation in (None, nn.Identity(), lambda x: x):
        attack = EOT(images.net, transformation=transformation, n_draws=n_draws, **common)
        found = attack.generate(images.X[:20], images.y[:20])
        assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("average", ["prediction", "loss"])
def test_gradient_and_prediction_are_means(images, average):
    net = images.net.double().eval()
    x, y = torch.tensor(images.X[:6]).double(), torch.tensor(images.y[:6])
    seen = {}

    class Spy(BIM):
        def _attack_batch(self, batch):
            seen["batch"] = batch
            seen["found"] = batch.value_and_gradient(batch.x)
            return batch.x

    draws = [0.5, 1.0, 1.5]
    turn = iter(draws * 2)
    options = {"transformation": lambda x: x * next(turn), "n_draws": 3, "average": average}
    EOT(attack=Spy(), clip=None, **options).perturb(net, x, y)
    logits, value, gradient = seen["found"]
    assert isinstance(seen["batch"], AttackBatch)
    z = x.clone().requires_grad_(True)
    single = [net(z * scale) for scale in draws]
    probabilities = torch.stack([out.softmax(1) for out in single]).mean(0)
    if average == "loss":
        loss = torch.stack([F.cross_entropy(out, y, reduction="none") for out in single]).mean(0)
    else:
        loss = -probabilities[torch.arange(6), y].log()
    (expected,) = torch.autograd.grad(loss.sum(), z)
    assert_allclose(gradient.numpy(), expected.numpy(), atol=1e-12)
    assert_allclose(value.numpy(), loss.detach().numpy(), atol=1e-12)
    assert_allclose(logits.softmax(1).numpy(), probabilities.detach().numpy(), atol=1e-12)


@pytest.mark.slow
def test_random_layer_is_attacked_on_average(images):
    net = nn.Sequential(Noise(0.3), copy.deepcopy(images.net)).eval()
    X, y = images.X[:100], images.y[:100]
    common = {"eps": 0.12, "clip": (0, 1), "random_state": 0}
    clean = mean_accuracy(net, X, y)
    one = mean_accuracy(net, PGD(net, **common).generate(X, y), y)
    many = mean_accuracy(net, EOT(net, n_draws=20, **common).generate(X, y), y)
    assert one < clean - 0.1
    assert many < one - 0.05


def test_transformation_is_attacked_on_average(images):
    X, y = images.X[:60], images.y[:60]

    def shift(x):
        # one number for a whole batch
        return torch.roll(x, int(torch.randint(-1, 2, ())), dims=-1)

    def accuracy(X):
        with torch.no_grad():
            moved = [torch.roll(torch.tensor(X), s, dims=-1) for s in (-1, 0, 1)]
            return np.mean([(images.net(z).argmax(1).numpy() == y).mean() for z in moved])

    common = {"eps": 0.1, "clip": (0, 1), "random_state": 0}
    plain = accuracy(PGD(images.net, **common).generate(X, y))
    averaged = accuracy(EOT(images.net, transformation=shift, **common).generate(X, y))
    assert averaged < plain - 0.05
    # draws that are wrong already go on counting in a mean of losses
    inside = EOT(images.net, transformation=shift, average="loss", **common)
    assert averaged < accuracy(inside.generate(X, y)) - 0.05


@pytest.mark.parametrize("where", ["model", "transformation", "inside"])
def test_randomness_is_seeded_and_put_back(images, where):
    noise = Noise(0.2)
    net = nn.Sequential(noise, images.net) if where == "model" else images.net
    X, y = images.X[:12], images.y[:12]

    def run(seed, x=None):
        if where == "inside":
            inside = EOT(transformation=noise, n_draws=2)
            attack = BPDA(net, attack=inside, eps=0.1, clip=(0, 1), random_state=seed)
        else:
            attack = EOT(
                net,
                transformation=noise if where == "transformation" else None,
                n_draws=2,
                eps=0.1,
                clip=(0, 1),
                random_state=seed,
            )
        return attack.generate(X, y)

    with torch.random.fork_rng():
        torch.manual_seed(1)
        state = torch.get_rng_state()
        first = run(5)
        assert torch.equal(torch.get_rng_state(), state) or where == "inside"
        torch.manual_seed(2)
        assert_array_equal(run(5), first)
        assert not np.array_equal(run(6), first)


def test_draws_are_counted(images):
    x, y = torch.tensor(images.X[:5]), torch.tensor(images.y[:5])
    for average in ("loss", "prediction"):
        victim = as_victim(images.net)
        EOT(attack=BIM(n_steps=3), n_draws=4, average=average, clip=None).perturb(victim, x, y)
        assert victim.calls.forward == 3 * 4 * 5
        assert victim.calls.backward == 3 * 4 * 5


BLACK_BOX = [
    cls for cls in all_attacks() if cls().access in ("scores", "labels") and not cls.whole_runs
]


@pytest.mark.dealt
@pytest.mark.parametrize("cls", BLACK_BOX)
def test_black_boxes_are_averaged_too(table, cls):
    # what asks for scores inside is given mean scores
    forest = RandomForestClassifier(5, random_state=0).fit(table.X, table.y)
    inside = cls(max_queries=30, eps=2.0, random_state=0)
    attack = EOT(forest, attack=inside, n_draws=2).fit(table.X)
    assert attack.access == inside.access
    with_average = attack.generate(table.X[:9])
    plain = inside.set_params(estimator=forest).fit(table.X).generate(table.X[:9])
    assert_allclose(with_average, plain, atol=1e-9)


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"average": "logits"}, ValueError, "average must be 'prediction' or 'loss'"),
        ({"n_draws": 0}, ValueError, "n_draws must be an integer of at least 1"),
        ({"transformation": "flip"}, TypeError, "transformation must be a callable"),
    ],
)
def test_bad_parameters_of_the_average(images, parameters, error, message):
    with pytest.raises(error, match=message):
        EOT(images.net, clip=(0, 1), **parameters).generate(images.X[:2])


# --- through what has no gradient ----------------------------------------------------


class Levels(nn.Module):
    """Rounding to a few levels."""

    def __init__(self, n=8):
        super().__init__()
        self.n = n

    def forward(self, x):
        return torch.round(x * self.n) / self.n


def test_rounding_layer(images):
    X, y = images.X[:100], images.y[:100]
    net = nn.Sequential(Levels(), images.net)
    common = {"eps": 0.2, "clip": (0, 1), "random_state": 0}
    clean = score_adversarial(net, X, y, PGD(**{**common, "eps": 0.0}))
    masked = score_adversarial(net, X, y, BIM(eps=0.2, clip=(0, 1)))
    seen = score_adversarial(net, X, y, BPDA(attack=PGD(**common), layer="0"))
    bare = score_adversarial(images.net, X, y, PGD(**common))
    assert masked == clean
    assert seen <= bare + 0.05
    assert bare < 0.3


def test_straight_through_gradient(images):
    # with the identity in its place, the gradient is that of the net at the rounded sample
    net = nn.Sequential(Levels(), images.net).double().eval()
    x, y = torch.tensor(images.X[:8]).double() * 0.97, torch.tensor(images.y[:8])
    x_adv = BPDA(attack=BIM(n_steps=1), layer="0", eps=0.07, clip=None).perturb(net, x, y)
    z = Levels()(x).requires_grad_(True)
    (gradient,) = torch.autograd.grad(F.cross_entropy(net[1](z), y, reduction="sum"), z)
    assert_allclose(x_adv.numpy(), (x + 0.07 * gradient.sign()).numpy(), atol=1e-12)


def test_stand_in_sets_the_way_back(images):
    net = nn.Sequential(Levels(), images.net).eval()
    X, y = images.X[:10], images.y[:10]
    common = {"attack": BIM(n_steps=1), "layer": "0", "eps": 0.05, "clip": None}
    forward = BPDA(net, **common).generate(X, y) - X
    for turned in (lambda x: -x, nn.Sequential(nn.Identity(), Negative())):
        back = BPDA(net, backward=turned, **common).generate(X, y) - X
        changed = (forward != 0) & (back != 0)
        assert_allclose(back[changed], -forward[changed], atol=1e-6)


class Negative(nn.Module):
    def forward(self, x):
        return -x


def test_hooks_are_taken_off(images):
    net = nn.Sequential(Levels(), images.net)
    attack = BPDA(net, layer="0", eps=0.1, clip=(0, 1))
    attack.generate(images.X[:3])
    assert not net[0]._forward_hooks
    failing = BPDA(net, layer="0", eps=0.1, clip=(0, 1), backward=lambda x: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        failing.generate(images.X[:3])
    assert not net[0]._forward_hooks


def test_layers_by_name(images):
    net = nn.Sequential()
    net.add_module("body", nn.Sequential())
    net.body.add_module("levels", Levels())
    net.add_module("head", images.net)
    common = {"eps": 0.1, "clip": (0, 1), "random_state": 0}
    whole = BPDA(net, layer="body.levels", **common).generate(images.X[:5])
    assert not np.array_equal(whole, images.X[:5])
    assert_array_equal(BPDA(net, layer="levels", **common).generate(images.X[:5]), whole)
    nested = EOT(net, attack=BPDA(layer="levels"), n_draws=1, **common)
    assert_allclose(nested.generate(images.X[:5]), whole, atol=1e-6)
    for wrong in ("evels", "missing"):
        with pytest.raises(ValueError, match=rf"layer='{wrong}' names no submodule.*body.levels"):
            BPDA(net, layer=wrong, **common).generate(images.X[:5])


def pipelines(table):
    X = table.X
    uniform = {"encode": "ordinal", "strategy": "uniform"}
    yield make_pipeline(KBinsDiscretizer(8, **uniform), LogisticRegression()), X
    yield make_pipeline(FunctionTransformer(np.round), StandardScaler(), LogisticRegression()), X
    yield (
        make_pipeline(
            StandardScaler(),
            make_pipeline(FunctionTransformer(np.round), StandardScaler()),
            MLPClassifier(max_iter=500, random_state=0),
        ),
        X,
    )
    yield (
        make_pipeline(KBinsDiscretizer(8, **uniform), LogisticRegression()),
        pd.DataFrame(X, columns=list("abcdef")),
    )


@pytest.mark.dealt
@pytest.mark.parametrize("which", range(4))
@pytest.mark.filterwarnings("error", "ignore:Stochastic Optimizer")
def test_pipelines_with_steps_without_gradient(table, which):
    model, X = list(pipelines(table))[which]
    model.fit(X, table.y)
    clean = model.score(X, table.y)
    inside = PGD(eps=0.8, random_state=0)
    with pytest.raises(NoGradientError):
        score_adversarial(model, X, table.y, inside)
    assert score_adversarial(model, X, table.y, BPDA(attack=inside)) < clean - 0.4
    attack = BPDA(model, attack=inside).fit(X)
    X_adv = attack.generate(X, table.y)
    assert type(X_adv) is type(X)
    assert model.score(X_adv, table.y) < clean - 0.4


def test_steps_that_change_the_shape_need_a_stand_in(table):
    X = np.round(table.X)
    model = make_pipeline(
        OneHotEncoder(sparse_output=False, handle_unknown="ignore"), LogisticRegression()
    ).fit(X, table.y)
    attack = BPDA(model, eps=1.0, random_state=0).fit(X)
    with pytest.raises(ValueError, match=r"pass as `backward` a differentiable function"):
        attack.generate(X[:5])
    categories = model[0].categories_

    def soft(x):
        columns = [
            torch.softmax(-((x[:, j, None] - torch.as_tensor(levels)) ** 2), dim=1)
            for j, levels in enumerate(categories)
        ]
        return torch.cat(columns, dim=1)

    attack.set_params(backward=soft)
    rounded = np.round(attack.generate(X, table.y))
    assert model.score(rounded, table.y) < model.score(X, table.y) - 0.2


def test_last_step_without_gradient(table):
    model = make_pipeline(FunctionTransformer(np.round), RandomForestClassifier(3))
    model.fit(table.X, table.y)
    with pytest.raises(NoGradientError, match=r"BPDA.*RandomForestClassifier"):
        BPDA(model).fit(table.X)


def test_preprocessing_of_any_kind(images):
    X, y = images.X[:20], images.y[:20]
    common = {"eps": 0.15, "clip": (0, 1), "random_state": 0}
    inside = nn.Sequential(Levels(), images.net)
    expected = BPDA(inside, layer="0", **common).generate(X, y)
    as_array = FunctionTransformer(lambda a: np.round(a * 8) / 8).fit(X.reshape(20, -1))
    for preprocessing in (
        Levels(),
        lambda x: torch.round(x * 8) / 8,
        lambda a: np.round(a.astype(np.float32) * np.float32(8)) / np.float32(8),
        as_array,
    ):
        attack = BPDA(images.net, preprocessing=preprocessing, **common)
        assert_array_equal(attack.generate(X, y), expected)
    assert not np.array_equal(PGD(images.net, **common).generate(X, y), expected)


def test_labels_are_those_of_the_model_behind_the_preprocessing(images):
    def blank(x):
        return torch.zeros_like(x)

    # all samples are one to the model, and so all have one prediction to move away from
    seen = {}

    class Spy(BIM):
        def _attack_batch(self, batch):
            seen["y"] = batch.y
            return batch.x

    BPDA(images.net, attack=Spy(), preprocessing=blank, clip=(0, 1)).generate(images.X[:30])
    with torch.no_grad():
        constant = images.net.eval()(torch.zeros(1, 1, 8, 8)).argmax(1)
    assert torch.all(seen["y"] == constant)


def test_modules_of_the_user_stay_as_they_are(images):
    smooth = nn.Sequential(nn.BatchNorm2d(1), Levels()).train()
    before = copy.deepcopy(smooth.state_dict())
    for role in ({"preprocessing": smooth}, {"preprocessing": Levels(), "backward": smooth}):
        BPDA(images.net, eps=0.1, clip=(0, 1), **role).generate(images.X[:5])
    assert smooth.training
    assert all(p.requires_grad and p.grad is None for p in smooth.parameters())
    for name, value in smooth.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("parameters", [{"preprocessing": 3}, {"backward": "none"}])
def test_bad_parameters_of_the_way_back(images, parameters):
    name = next(iter(parameters))
    with pytest.raises(TypeError, match=f"{name} must be a function, a torch module or a fitted"):
        BPDA(images.net, clip=(0, 1), **parameters).generate(images.X[:2])


# --- from model to model -------------------------------------------------------------


@pytest.mark.parametrize("explicit", [True, False])
def test_own_surrogate_is_the_attack_inside(problem, explicit):
    X, y = problem.X[:30], problem.y[:30]
    inside = PGD(eps=0.3, random_state=0)
    expected = PGD(problem.model, eps=0.3, random_state=0).fit(problem.X).generate(X, y)
    surrogate = problem.model if explicit else None
    attack = TransferAttack(problem.model, attack=inside, surrogate=surrogate).fit(problem.X)
    assert_array_equal(attack.generate(X, y), expected)
    assert attack.surrogate_ is problem.model
    assert attack.n_queries_ == 0
    assert attack.access == ("labels" if explicit else "gradients")


class Oracle(ClassifierMixin, BaseEstimator):
    """A forest that counts what it is asked, and has nothing but `predict`."""

    def fit(self, X, y):
        self.forest_ = RandomForestClassifier(20, random_state=0).fit(X, y)
        self.classes_ = self.forest_.classes_
        self.n_features_in_ = X.shape[1]
        self.asked_ = 0
        return self

    def predict(self, X):
        self.asked_ += len(X)
        return self.forest_.predict(X)


def test_surrogate_learns_from_answers(table):
    names = np.array(["zebra", "ant", "fox"])[table.y]
    target = Oracle().fit(table.X, names)
    clean = target.score(table.X, names)
    target.asked_ = 0
    mlp = make_pipeline(StandardScaler(), MLPClassifier(max_iter=3000, random_state=0))
    attack = TransferAttack(target, attack=PGD(eps=0.6, random_state=0), surrogate=mlp)
    attack.fit(table.X, np.roll(names, 1))  # labels play no part
    assert target.asked_ == attack.n_queries_ == len(table.X)
    expected = clone(mlp).fit(table.X, target.forest_.predict(table.X))
    assert_allclose(
        attack.surrogate_.predict_proba(table.X), expected.predict_proba(table.X), atol=1e-12
    )
    target.asked_ = 0
    X_adv = attack.generate(table.X, names)
    assert target.asked_ == 0
    assert target.score(X_adv, names) < clean - 0.4
    assert score_adversarial(target, table.X, names, attack) < clean - 0.4
    with pytest.raises(NotFittedError):
        mlp.predict(table.X)


def test_surrogates_that_are_trained_already(table):
    target = RandomForestClassifier(20, random_state=0).fit(table.X, table.y)
    X, y = table.X[:40], table.y[:40]
    for surrogate in (table.linear, FrozenEstimator(table.linear), table.net, table.net.float()):
        attack = TransferAttack(target, surrogate=surrogate, eps=0.6, random_state=0).fit(table.X)
        assert attack.surrogate_ is surrogate
        assert attack.n_queries_ == 0
        assert target.score(attack.generate(X, y), y) < 0.6
        # nothing to train, nothing to fit
        direct = TransferAttack(
            target, surrogate=surrogate, eps=0.6, random_state=0, clip=None
        ).generate(X, y)
        assert direct.dtype == X.dtype
    net = nn.Sequential(copy.deepcopy(table.net), nn.Dropout()).float().train()
    to_module = TransferAttack(net, surrogate=table.linear, eps=0.6, random_state=0, clip=None)
    assert not np.array_equal(to_module.generate(X), X)


def test_result_is_that_of_the_surrogate(table):
    # what comes out depends on the target through nothing but its labels
    y = table.y[:40]
    common = {"eps": 0.6, "random_state": 0, "clip": (-9, 9)}
    expected = PGD(table.linear, **common).generate(table.X[:40], y)
    forest = RandomForestClassifier(5, random_state=0).fit(table.X, table.y)
    for target in (forest, table.net):
        attack = TransferAttack(target, surrogate=table.linear, **common)
        assert_allclose(attack.generate(table.X[:40], y), expected, atol=1e-12)


def test_classes_by_name(table):
    names = np.array(["zebra", "ant", "fox"])[table.y]
    target = RandomForestClassifier(20, random_state=0).fit(table.X, names)
    few = names != "ant"
    knows_two = LogisticRegression().fit(table.X[few], names[few])
    attack = TransferAttack(target, surrogate=knows_two, eps=0.6, random_state=0).fit(table.X)
    X_adv = attack.generate(table.X, names)
    right = few & (knows_two.predict(table.X) == names)
    assert (knows_two.predict(X_adv[right]) != names[right]).mean() > 0.3
    # what is no class of the surrogate cannot be left
    stranger = LogisticRegression().fit(table.X, table.y)
    attack = TransferAttack(target, surrogate=stranger, eps=0.6).fit(table.X)
    with pytest.raises(ValueError, match="they have none in common"):
        attack.generate(table.X[:3])


def test_targets_of_the_surrogate(table):
    target = RandomForestClassifier(20, random_state=0).fit(table.X, table.y)
    common = {"eps": 1.5, "random_state": 0, "clip": None}
    for goal in ("least_likely", "random", 1, (table.y + 1) % 3):
        attack = TransferAttack(target, surrogate=table.linear, target=goal, **common)
        plain = PGD(table.linear, target=goal, **common)
        assert_allclose(
            attack.generate(table.X, table.y), plain.generate(table.X, table.y), atol=1e-12
        )


def test_evaluation_goes_on_where_the_surrogate_is_fooled(table):
    target = RandomForestClassifier(20, random_state=0).fit(table.X, table.y)
    attack = TransferAttack(target, surrogate=table.linear, eps=0.6, random_state=0).fit(table.X)
    X_adv = attack.generate(table.X, table.y)
    by_hand = ((target.predict(X_adv) == table.y) & (target.predict(table.X) == table.y)).mean()
    assert score_adversarial(target, table.X, table.y, attack) == pytest.approx(by_hand, abs=0.02)


def test_surrogate_that_is_not_trained(table):
    forest = RandomForestClassifier(5, random_state=0).fit(table.X, table.y)
    attack = TransferAttack(forest, surrogate=LogisticRegression(), clip=None)
    with pytest.raises(NotFittedError, match=r"LogisticRegression is not fitted: call fit\(X\)"):
        attack.generate(table.X)
    with pytest.raises(NoGradientError, match=r"RandomForestClassifier"):
        TransferAttack(forest, surrogate=forest, clip=None).generate(table.X)
    with pytest.raises(NoGradientError, match=r"TransferAttack.*RandomForestClassifier"):
        TransferAttack(forest).fit(table.X)
