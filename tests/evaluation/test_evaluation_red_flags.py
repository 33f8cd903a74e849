"""Each check fires on a model made to be caught by it, and on no honest one."""

import copy
import re

import numpy as np
import pytest
import torch
from sklearn.ensemble import RandomForestClassifier, VotingClassifier
from sklearn.linear_model import LogisticRegression
from torch import nn

from robustsk import PGD, PGDATClassifier, StandardClassifier, load_digits_images
from robustsk.evaluation import RedFlag, red_flags
from robustsk.evaluation._problem import Problem
from robustsk.evaluation._red_flags import Probe, raise_flags

EPS = 0.15
N = 150
NAMES = [
    "black_box_stronger",
    "transfer_stronger",
    "not_falling_to_chance",
    "one_step_as_strong_as_many",
    "vanishing_gradients",
    "non_finite_gradients",
    "randomness",
    "logit_scaling",
    "label_leaking",
    "returns_probabilities",
    "gradient_does_not_predict",
]


def check(model, X, y, **options):
    options = {"eps": EPS, "norm": "linf", "n_samples": N, **options}
    return {flag.name: flag for flag in red_flags(model, X, y, **options)}


def check_one(name, model, X, y, *, n_samples=N):
    """Return one flag, for which only its own attacks are run."""
    problem = Problem(model, X, y, norm="linf", eps=EPS, clip="auto", random_state=0)
    (flag,) = raise_flags(Probe(problem, n_samples), [name])
    return flag


def fired(flags):
    return {name for name, flag in flags.items() if flag.fired}


def numbers(flag):
    return [float(n) for n in re.findall(r"\d+(?:\.\d+)?(?:e[+-]\d+)?", flag.evidence)]


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits_images(return_X_y=True, as_flat=True)
    return X[:1000], y[:1000], X[1000:1250], y[1000:1250]


@pytest.fixture(scope="module")
def natural(digits):
    return StandardClassifier(max_epochs=15, random_state=0).fit(*digits[:2])


@pytest.fixture(scope="module")
def trained(digits):
    """An honest, adversarially trained model."""
    clf = PGDATClassifier(
        max_epochs=15, adversary__eps=EPS, adversary__n_steps=5, random_state=0
    ).fit(*digits[:2])
    assert clf.score(*digits[2:]) > 0.85
    assert 0.3 < clf.score_adversarial(*digits[2:]) < 0.8
    return clf


class Wrapped(nn.Module):
    """`before`, a module, `after`."""

    def __init__(self, module, before=None, after=None):
        super().__init__()
        self.module = copy.deepcopy(module)
        self.before, self.after = before, after

    def forward(self, x):
        x = x if self.before is None else self.before(x)
        x = self.module(x)
        return x if self.after is None else self.after(x)


# --- silence -------------------------------------------------------------------------


def test_silent_on_adversarial_training(trained, digits):
    flags = check(trained, *digits[2:])
    assert list(flags) == NAMES
    assert all(flag.fired is False for flag in flags.values()), flags


@pytest.mark.slow
def test_silent_on_natural_training(natural, digits):
    assert all(flag.fired is False for flag in check(natural, *digits[2:]).values())


@pytest.mark.dealt
@pytest.mark.parametrize(("norm", "eps"), [(2, 0.7), (1, 3.0)])
def test_silent_in_other_norms(trained, digits, norm, eps):
    assert not fired(check(trained, *digits[2:], norm=norm, eps=eps, n_samples=100))


def test_silent_on_a_linear_model(digits):
    # one step is as strong as any number of them here, and rightly so
    clf = LogisticRegression(max_iter=500).fit(*digits[:2])
    assert not fired(check(clf, *digits[2:]))


def test_silent_on_noise_alone():
    # nothing to learn, few samples: chance must not fire anything
    rng = np.random.default_rng(0)
    X, y = rng.uniform(size=(60, 5)), rng.integers(2, size=60)
    clf = LogisticRegression().fit(X, y)
    for seed in range(3):
        assert not fired(check(clf, X, y, n_samples=30, random_state=seed))


# --- planted cases -------------------------------------------------------------------


def test_quantised_input(natural, digits):
    model = Wrapped(natural.module_, before=lambda x: (4 * x).round() / 4)
    flags = check(model, *digits[2:])
    assert fired(flags) >= {
        "black_box_stronger",
        "transfer_stronger",
        "not_falling_to_chance",
        "vanishing_gradients",
    }
    n, loss, margin = numbers(flags["vanishing_gradients"])
    assert n == loss == margin > 100
    n, square, white, only = numbers(flags["black_box_stronger"])
    assert n >= square >= only > 0.5 * n
    assert white < 0.2 * n
    near, far, chance = numbers(flags["not_falling_to_chance"])
    assert min(near, far) > 1.5 * chance
    assert not flags["randomness"].fired
    assert not flags["non_finite_gradients"].fired


@pytest.mark.parametrize("kind", ["noise", "dropout"])
def test_stochastic_layer(natural, digits, kind):
    def noise(x):
        return x + 0.1 * torch.randn_like(x)

    def dropout(x):
        return nn.functional.dropout(x, 0.2, training=True)

    torch.manual_seed(0)
    flags = check(Wrapped(natural.module_, before=locals()[kind]), *digits[2:])
    assert flags["randomness"].fired
    change, spread, changed, n = numbers(flags["randomness"])[1:]
    assert change > 0.05 * spread
    assert 0 < changed < n == N
    # nothing is concluded from comparing two random outcomes
    assert flags["black_box_stronger"].fired is None
    assert "at random" in flags["logit_scaling"].evidence


def test_dropout_as_it_should_be_is_silent(natural, digits):
    model = nn.Sequential(nn.Dropout(0.5), copy.deepcopy(natural.module_)).train()
    assert check_one("randomness", model, *digits[2:]).fired is False
    assert model.training


@pytest.mark.dealt
@pytest.mark.parametrize("name", ["natural", "trained"])
def test_logits_times_1000(name, digits, request):
    clf = request.getfixturevalue(name)
    flags = check(Wrapped(clf.module_, after=lambda z: 1000 * z), *digits[2:])
    assert fired(flags) >= {"logit_scaling", "vanishing_gradients"}
    lead, n, plain, scaled, _, _, only = numbers(flags["logit_scaling"])
    assert lead > 100
    assert scaled > plain + 0.1 * n
    assert only >= scaled - plain
    n, loss, margin = numbers(flags["vanishing_gradients"])
    assert loss > 0.5 * n
    assert margin == 0
    # gradients of the margin are as good as ever, and so is what they find
    assert not flags["black_box_stronger"].fired


def test_saturating_activation(natural, digits):
    model = Wrapped(natural.module_, before=lambda x: torch.sigmoid(1e4 * (x - 0.4)))
    flags = check(model, *digits[2:])
    assert fired(flags) >= {"black_box_stronger", "vanishing_gradients"}
    n, _, margin = numbers(flags["vanishing_gradients"])
    assert margin > 0.5 * n


@pytest.mark.slow
def test_shattered_gradients(natural, digits):
    # a ripple with a slope at the sample that says nothing about what is further away
    model = Wrapped(natural.module_, before=lambda x: x - 0.02 * torch.sin(200 * x))
    flags = check(model, *digits[2:])
    assert "black_box_stronger" in fired(flags)
    assert not flags["vanishing_gradients"].fired


def decoy(natural):
    class Decoy(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.module, self.other = copy.deepcopy(natural.module_), nn.Linear(64, 10)

        def forward(self, x):
            return self.module(x.detach()) + 1e-3 * self.other(x)

    return Decoy()


BEFORE = {
    "rippled": lambda x: x + 0.03 * torch.sin(400 * x),
    "quantised": lambda x: (8 * x).round() / 8 + 1e-3 * (x - x.detach()),
    "backwards": lambda x: 2 * x.detach() - x,
}


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("how", ["decoy", *BEFORE])
def test_gradients_that_predict_nothing(natural, digits, how, norm):
    model = decoy(natural) if how == "decoy" else Wrapped(natural.module_, before=BEFORE[how])
    eps = {"linf": EPS, "l2": 1.0, "l1": 4.0}[norm]
    X, y = digits[2][:60], digits[3][:60]
    problem = Problem(model, X, y, norm=norm, eps=eps, clip=(0, 1), random_state=0)
    (flag,) = raise_flags(Probe(problem, 60), ["gradient_does_not_predict"])
    n, _, count = numbers(flag)
    assert flag.fired
    assert n >= count > 0.5 * n > 20


@pytest.mark.dealt
@pytest.mark.parametrize("how", ["offset", "scaled", "float64", "log-probabilities", "ripple"])
def test_gradients_that_do_predict(natural, trained, digits, how):
    after = {
        "offset": lambda z: z.double() + 1e6,
        "scaled": lambda z: 1e-3 * z,
        "log-probabilities": lambda z: z.log_softmax(1),
    }.get(how)
    # a ripple that the gradient passes straight through
    before = (lambda x: x + 1e-3 * torch.sin(400 * x).detach()) if how == "ripple" else None
    X, y = digits[2][:60], digits[3][:60]
    for clf in (natural, trained):
        model = Wrapped(clf.module_, before=before, after=after)
        model = model.double() if how == "float64" else model
        for eps in (0.01, EPS, 0.4):
            problem = Problem(model, X, y, norm=None, eps=eps, clip=(0, 1), random_state=0)
            (flag,) = raise_flags(Probe(problem, 60), ["gradient_does_not_predict"])
            assert flag.fired is False, flag


@pytest.mark.parametrize("how", ["thermometer", "detached"])
def test_non_differentiable_preprocessing(natural, digits, how):
    def thermometer(x):
        return (x > 0.5).to(x)

    def detached(x):
        return x.detach()

    flags = check(Wrapped(natural.module_, before=locals()[how]), *digits[2:])
    assert flags["vanishing_gradients"].fired
    assert "No gradient reaches the input" in flags["vanishing_gradients"].evidence
    assert flags["logit_scaling"].fired is None
    # the black-box attack is told that it may go further, and does
    assert flags["not_falling_to_chance"].fired is False


def test_one_step_is_stronger_than_many(digits):
    # the slope of this ripple leads downhill at the sample and astray on the way
    class Rippled(nn.Module):
        def forward(self, x):
            t = x[:, 0] - 0.5
            return torch.stack(
                [0 * t, 1 + t - 1.5 * (t.abs() > 0.12) + 0.05 * torch.cos(60 * t)], 1
            )

    X = np.full((60, 1), 0.5) + np.linspace(-0.01, 0.01, 60)[:, None]
    flag = check(Rippled().double(), X, np.ones(60, int), clip=(0, 1))["one_step_as_strong_as_many"]
    assert flag.fired
    n, one, _, many = numbers(flag)
    assert n == 60
    assert one > 5 + many


def test_infinite_gradients(natural, digits):
    model = Wrapped(natural.module_, before=lambda x: (x**2).sqrt())  # pixels are often zero
    flag = check_one("non_finite_gradients", model, *digits[2:])
    assert flag.fired
    bad, n = numbers(flag)
    assert bad == n > 100


def test_one_infinite_gradient_is_enough(natural, digits):
    X, y = digits[2:]
    rare = torch.as_tensor(X[natural.predict(X) == y][0])

    def before(x):
        distance = ((x - rare) ** 2).sum(1, keepdim=True)
        return x + 0 * torch.where(distance == 0, distance.sqrt(), 0.0)

    model = Wrapped(natural.module_, before=before)
    flag = check_one("non_finite_gradients", model, X, y, n_samples=len(X))
    assert flag.fired
    assert numbers(flag)[0] == 1


def test_labels_leak():
    # the slope at the sample says one thing, what is one step away another
    class Leaking(nn.Module):
        def forward(self, x):
            t = x[:, 1] / EPS
            return 4 * x[:, 0] + 0.1 * t - 10 * t**3

    rng = np.random.default_rng(0)
    y = rng.integers(2, size=300)
    X = np.column_stack([(y - 0.5) + rng.normal(size=300), np.zeros(300)])
    flags = check(Leaking().double(), X, y, clip=None, n_samples=300)
    assert flags["label_leaking"].fired
    right, n, by_prediction = numbers(flags["label_leaking"])
    assert n == (y != (X[:, 0] > 0)).sum()
    assert right > 0.9 * n
    assert by_prediction == 0


@pytest.mark.filterwarnings("error")
def test_softmax_in_the_module(natural, digits):
    model = Wrapped(natural.module_, after=lambda z: z.softmax(1))
    flag = check_one("returns_probabilities", model, *digits[2:])
    assert flag.fired
    assert numbers(flag)[-2:] == [1, 1]


# --- the rest ------------------------------------------------------------------------


def test_without_gradients(digits):
    forest = RandomForestClassifier(20, random_state=0).fit(*digits[:2])
    flags = check(forest, *digits[2:], n_samples=50)
    assert not fired(flags)
    made = {name for name, flag in flags.items() if flag.fired is not None}
    assert made == {"not_falling_to_chance", "randomness"}


def test_labels_only(digits):
    X, y = digits[2:]
    clf = VotingClassifier([("a", LogisticRegression(max_iter=300))], voting="hard")
    clf.fit(*digits[:2])
    flags = check(clf, X, y, n_samples=30)
    assert not fired(flags)
    assert "labels only" in flags["not_falling_to_chance"].evidence


def test_advice_is_given_where_it_is_needed():
    flag = RedFlag("name", True, "What was found.", "What to do.")
    assert str(flag) == "name: FIRED. What was found. What to do."
    assert str(RedFlag("name", False, "What.", "Do.")) == "name: silent. What."
    assert str(RedFlag("name", None, "Why not.", "Do.")) == "name: not checked. Why not."


def test_nothing_is_right(natural, digits):
    X = digits[2]
    flags = check(natural, X, (natural.predict(X) + 1) % 10, n_samples=50)
    assert not fired(flags)
    assert "No sample" in flags["black_box_stronger"].evidence


def test_same_twice_and_nothing_is_touched(natural, digits):
    before = copy.deepcopy(natural.module_.state_dict())
    X, y = digits[2][:10], digits[3][:10]
    torch.manual_seed(1)
    first = check(natural, X, y)
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    assert first == check(natural, X, y)
    assert torch.equal(state, torch.random.get_rng_state())
    for name, value in natural.module_.state_dict().items():
        assert torch.equal(value, before[name])


def test_frozen_features(natural, digits):
    eps = np.full(64, EPS)
    eps[:10] = 0
    flags = check(natural, *digits[2:], eps=eps, n_samples=40)
    assert flags["not_falling_to_chance"].fired is None


def test_threat_model_of_the_estimator(trained, digits):
    X, y = digits[2:]
    flags = red_flags(trained, X[:10], y[:10])
    assert flags == red_flags(trained, X[:10], y[:10], eps=EPS)


@pytest.mark.parametrize("n_samples", [0, 2.5])
def test_bad_n_samples(natural, digits, n_samples):
    with pytest.raises(ValueError, match="n_samples must be an integer"):
        check(natural, *digits[2:], n_samples=n_samples)


def test_pgd_agrees_with_its_own_row(trained, digits):
    X, y = digits[2:]
    flags = check(trained, X, y, n_samples=len(X))
    n, _, white, _ = numbers(flags["black_box_stronger"])
    assert n == (trained.predict(X) == y).sum()
    broken = n - trained.score_adversarial(X, y, PGD(eps=EPS, n_steps=20, random_state=0)) * len(y)
    assert white >= round(broken)
