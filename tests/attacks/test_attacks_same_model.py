"""What is attacked is what predicts, or it is said that it is not."""

import pickle
import warnings
from collections import namedtuple
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.datasets import load_digits, load_iris
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import RandomForestClassifier, VotingClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.metrics import make_scorer, recall_score
from sklearn.model_selection import FixedThresholdClassifier, TunedThresholdClassifierCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier
from skorch import NeuralNet, NeuralNetBinaryClassifier, NeuralNetClassifier
from skorch.dataset import Dataset
from torch import nn

from robustsk import PGD, AutoAttack, StandardClassifier, adversarial_outcome, score_adversarial
from robustsk.attacks import FGSM, HopSkipJump, SquareAttack, TransferAttack, Victim, as_victim
from robustsk.evaluation import robustness_report
from robustsk.metrics import joint_success_rates, transferability_matrix
from robustsk.victims import register_converter
from robustsk.victims._outputs import first_output

STEP = {"eps": 0.4, "clip": None, "random_state": 0}


@pytest.fixture(scope="module")
def iris():
    X, y = load_iris(return_X_y=True)
    X = ((X - X.mean(0)) / X.std(0)).astype(np.float32)
    return SimpleNamespace(X=X, y=y, b=(y == 2).astype(np.float32))


def seen_labels(victim, X):
    victim.learn_classes(X)
    return victim.classes[victim.logits(X).numpy().argmax(1)]


def fitted(cls, module, X, y, **parameters):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = cls(module, max_epochs=40, lr=0.1, train_split=None, verbose=0, **parameters)
        return net.fit(X, y)


# --- nets of skorch -------------------------------------------------------------------


class One(nn.Module):
    def __init__(self, last=None, flat=True):
        super().__init__()
        self.linear, self.last, self.flat = nn.Linear(4, 1), last or nn.Identity(), flat

    def forward(self, x):
        return self.last(self.linear(x)[:, 0] if self.flat else self.linear(x))


class Rescaled(Dataset):
    def transform(self, X, y):
        return super().transform(-2 * X, y)


class Rounded(Dataset):
    def transform(self, X, y):
        return super().transform(np.round(X), y)


class TwoModules(NeuralNetClassifier):
    def initialize_module(self):
        super().initialize_module()
        self.encoder_ = nn.Linear(4, 4)
        return self

    def infer(self, x, **params):
        return self.module_(torch.tanh(self.encoder_(x)))


class Second(NeuralNetClassifier):
    """Takes another output than the first."""

    def infer(self, x, **params):
        return super().infer(x, **params)[1]


class Named(NeuralNetClassifier):
    def predict(self, X):
        return np.array(["a", "b", "c"])[super().predict(X)]

    @property
    def classes_(self):
        return np.array(["a", "b", "c"])


class Features(nn.Module):
    def __init__(self):
        super().__init__()
        self.features, self.last = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x):
        h = self.features(x)
        return h, self.last(h)


def double(x):
    return torch.stack([1 - x.sigmoid() / 2, x.sigmoid() / 2], 1)


def power(x):
    return torch.softmax(3 * x, 1)


BCE, LOGITS = nn.BCELoss, nn.BCEWithLogitsLoss
SIGMOID = {"module__last": nn.Sigmoid(), "criterion": BCE}
NETS = {
    "sigmoid": (NeuralNetBinaryClassifier, One, SIGMOID),
    "sigmoid column": (NeuralNetBinaryClassifier, One, {**SIGMOID, "module__flat": False}),
    "sigmoid low": (NeuralNetBinaryClassifier, One, {**SIGMOID, "threshold": 0.1}),
    "logit": (NeuralNetBinaryClassifier, One, {}),
    "logit low": (NeuralNetBinaryClassifier, One, {"threshold": 0.1}),
    "logit high": (NeuralNetBinaryClassifier, One, {"threshold": 0.9}),
    "always": (NeuralNetBinaryClassifier, One, {"threshold": 0.0}),
    "nonlinearity": (
        NeuralNetBinaryClassifier, One, {"predict_nonlinearity": double, "threshold": 0.3},
    ),
    "two modules": (TwoModules, nn.Linear(4, 3), {"criterion": nn.CrossEntropyLoss}),
    "second output": (Second, Features, {"criterion": nn.CrossEntropyLoss}),
    "names": (Named, nn.Linear(4, 3), {"criterion": nn.CrossEntropyLoss}),
    "softmax": (NeuralNetClassifier, nn.Sequential(nn.Linear(4, 3), nn.Softmax(1)), {}),
    "own softmax": (
        NeuralNetClassifier, nn.Linear(4, 3),
        {"predict_nonlinearity": power, "criterion": nn.CrossEntropyLoss},
    ),
    "margins": (NeuralNetClassifier, nn.Linear(4, 3), {"criterion": nn.MultiMarginLoss}),
    "plain": (NeuralNet, nn.Linear(4, 3), {"criterion": nn.CrossEntropyLoss}),
}  # fmt: skip


@pytest.mark.dealt
@pytest.mark.parametrize("name", NETS)
def test_nets_are_followed(name, iris):
    cls, module, parameters = NETS[name]
    net = fitted(cls, module, iris.X, iris.b if module is One else iris.y, **parameters)
    own = net.predict(iris.X)
    if cls is NeuralNet:
        own = own.argmax(1)
    for access in ("gradients", "scores", "labels"):
        assert_array_equal(seen_labels(as_victim(net, access=access), iris.X), own)
    # what is done to the labels in float64 is done in the precision of the network
    assert 0 < score_adversarial(net, iris.X.astype(float), own, PGD(**STEP)) <= 1
    if name != "always":
        X_adv = FGSM(net, eps=2.0, clip=None).generate(iris.X, own)
        assert (seen_labels(as_victim(net), X_adv) != own).mean() > 0.2


def test_a_sigmoid_is_attacked_as_the_logit_before_it(iris):
    net = fitted(NeuralNetBinaryClassifier, One, iris.X, iris.b, **SIGMOID)
    attack = PGD(n_steps=10, **STEP)
    expected = score_adversarial(net.module_.linear, iris.X, iris.b.astype(int), attack)
    assert 0 < expected < 0.9
    assert score_adversarial(net, iris.X, iris.b, attack) == expected
    assert score_adversarial([net], iris.X, iris.b, attack) == expected


def test_several_modules_are_attacked_as_one(iris):
    net = fitted(TwoModules, nn.Linear(4, 3), iris.X, iris.y, criterion=nn.CrossEntropyLoss)
    whole = nn.Sequential(net.encoder_, nn.Tanh(), net.module_)
    found, expected = (FGSM(m, **STEP).generate(iris.X, iris.y) for m in (net, whole))
    assert_array_equal(found, expected)
    victim = as_victim(net)
    with victim.frozen() as seen:
        assert not any(p.requires_grad for p in seen.module.parameters())
        assert seen.module.parts["encoder_"] is not net.encoder_
    with torch.no_grad():
        net.encoder_.weight.zero_()  # which the victim follows
    assert_array_equal(seen_labels(victim, iris.X), net.predict(iris.X))
    assert all(p.requires_grad for p in net.encoder_.parameters())
    moved = victim.to("meta")
    assert {p.device.type for p in moved.module.parameters()} == {"meta"}
    assert {p.device.type for p in net.encoder_.parameters()} == {"cpu"}


def test_a_fold_without_the_last_class(iris):
    rows = iris.y < 2
    net = fitted(
        NeuralNetClassifier, nn.Linear(4, 3), iris.X[rows], iris.y[rows],
        criterion=nn.CrossEntropyLoss,
    )  # fmt: skip
    assert_array_equal(net.classes_, [0, 1])
    assert 0 < score_adversarial(net, iris.X, iris.y, PGD(**STEP)) < 1
    assert_array_equal(as_victim(net).learn_classes(iris.X), [0, 1, 2])


def test_a_dataset_that_transforms_is_not_followed(iris):
    net = fitted(
        NeuralNetClassifier, nn.Linear(4, 3), iris.X, iris.y, dataset=Rescaled,
        criterion=nn.CrossEntropyLoss,
    )  # fmt: skip
    for call in (
        lambda: PGD(net, **STEP).generate(iris.X, iris.y),
        lambda: PGD(net, **STEP).transform(iris.X),
        lambda: score_adversarial(net, iris.X, iris.y, PGD(**STEP)),
        lambda: score_adversarial([net, net], iris.X, iris.y, PGD(**STEP)),
        lambda: PGD(**STEP).perturb(net, torch.from_numpy(iris.X)),
    ):
        with pytest.raises(ValueError, match=r"its own dataset Rescaled.*HopSkipJump"):
            call()
    for attack in (HopSkipJump(max_queries=30, **STEP), SquareAttack(max_queries=20, **STEP)):
        assert score_adversarial(net, iris.X, iris.y, attack) <= net.score(iris.X, iris.y)


def test_what_differs_under_attack_only_is_told(iris):
    X = np.round(iris.X)
    net = fitted(
        NeuralNetClassifier, nn.Linear(4, 3), X, iris.y, dataset=Rounded,
        criterion=nn.CrossEntropyLoss,
    )  # fmt: skip
    with pytest.warns(UserWarning, match="attack has followed something else"):
        outcome = adversarial_outcome(net, X, iris.y, PGD(**STEP))
    assert_array_equal(
        outcome.y_pred_adv[outcome.correct], net.predict(outcome.X_adv)[outcome.correct]
    )


# --- a converter that computes something else -----------------------------------------


class Contrary(ClassifierMixin, BaseEstimator):
    def fit(self, X, y):
        self.model_ = LogisticRegression(max_iter=500).fit(X, y)
        self.classes_ = self.model_.classes_
        return self

    def predict(self, X):
        return self.model_.predict(X)


@register_converter(Contrary)
def _wrong(model):
    return nn.Linear(4, 3).double()


@pytest.fixture(scope="module")
def contrary(iris):
    return Contrary().fit(iris.X, iris.y)


@pytest.mark.parametrize("wrap", [lambda m: m, FrozenEstimator, lambda m: make_pipeline(m)])
def test_a_wrong_converter_is_found_out(wrap, contrary, iris):
    X, y, model = iris.X, iris.y, wrap(contrary)
    tree = DecisionTreeClassifier(random_state=0).fit(X, y)
    for call in (
        lambda: FGSM(model, **STEP).generate(X, y),
        lambda: adversarial_outcome(model, X, y, FGSM(**STEP)),
        lambda: AutoAttack(model, version="fast", **STEP).evaluate(X, y),
        lambda: robustness_report(model, X, y, eps=0.1),
        lambda: transferability_matrix([model, tree], X, y, FGSM(**STEP), sources=[model]),
        lambda: joint_success_rates([model], X, y, FGSM(**STEP)),
    ):
        with pytest.raises(ValueError, match=r"`predict` of \w+ contradicts the largest of the"):
            call()
    # without gradients it is asked itself, and a surrogate is nobody's judge
    assert score_adversarial(model, X, y, HopSkipJump(max_queries=20, **STEP)) <= model.score(X, y)
    transfer = TransferAttack(attack=FGSM(**STEP), surrogate=LogisticRegression().fit(X, y))
    assert score_adversarial(model, X, y, transfer) < model.score(X, y)


def test_rows_sorted_by_class_are_looked_at_all_over(iris):
    class Late(Contrary):
        pass

    model = Late().fit(iris.X, iris.y)

    @register_converter(Late)
    def convert(fitted):
        linear = nn.Linear(4, 3)
        linear.weight.data = torch.tensor(fitted.model_.coef_)
        linear.bias.data = torch.tensor(fitted.model_.intercept_)
        linear.bias.data[2] -= 1  # wrong for some of two classes only
        return linear

    wrong = as_victim(model).logits(iris.X).numpy().argmax(1) != model.predict(iris.X)
    assert 0 < wrong.sum() < 20
    assert not wrong[:50].any()
    with pytest.raises(ValueError, match="contradicts"):
        FGSM(model, **STEP).generate(iris.X)


def test_our_own_estimator_with_another_predict(iris):
    class Otherwise(StandardClassifier):
        def predict(self, X):
            return (super().predict(X) + 1) % 3

    model = Otherwise(max_epochs=2, random_state=0, device="cpu").fit(iris.X, iris.y)
    with pytest.raises(ValueError, match="Otherwise contradicts"):
        score_adversarial(model, iris.X, iris.y, FGSM(**STEP))
    assert not as_victim(model, access="labels").differentiable


# --- no accusations -------------------------------------------------------------------


class Noisy(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x) + torch.randn(len(x), 3)


def test_what_answers_at_random_is_not_accused(iris, seeded):
    net = fitted(NeuralNetClassifier, Noisy(nn.Linear(4, 3)), iris.X, iris.y,
                 criterion=nn.CrossEntropyLoss)  # fmt: skip
    assert (net.predict(iris.X) != net.predict(iris.X)).any()
    FGSM(net, **STEP).generate(iris.X, iris.y)
    score_adversarial(net, iris.X, iris.y, FGSM(**STEP))
    dummy = DummyClassifier(strategy="stratified").fit(iris.X, iris.y)
    score_adversarial(dummy, iris.X, iris.y, SquareAttack(max_queries=5, **STEP))


def test_what_looks_at_its_company_is_not_accused(iris):
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False))
    net = fitted(NeuralNetClassifier, module, iris.X, iris.y, batch_size=50,
                 criterion=nn.CrossEntropyLoss)  # fmt: skip
    assert score_adversarial(net, iris.X, iris.y, FGSM(**STEP)) < 1


def test_rounding_is_not_accused(iris):
    model = make_pipeline(StandardScaler(), LogisticRegression())
    X = (iris.X + 3e3).astype(np.float32)  # of which little is left in this precision
    model.fit(X, iris.y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score_adversarial(model, X, iris.y, FGSM(eps=0.3, clip=None))
        ties = np.zeros((20, 4), dtype=np.float32)
        flat = LogisticRegression(fit_intercept=False).fit(iris.X[:100], iris.y[:100])
        FGSM(flat, **STEP).generate(ties, np.zeros(20, dtype=int))


def test_a_frame_is_asked_about_by_its_names(iris):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(iris.X, columns=list("abcd"))
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(frame, iris.y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FGSM(model, **STEP).generate(frame, iris.y)
        score_adversarial(model, frame, iris.y, FGSM(**STEP))
    with pytest.raises(ValueError, match="feature names"):
        score_adversarial(model, frame[list("badc")], iris.y, FGSM(**STEP))


def test_a_victim_keeps_what_predicts():
    X, y = load_iris(return_X_y=True)
    model = LogisticRegression(max_iter=500).fit(X, y)
    victim = pickle.loads(pickle.dumps(as_victim(model)))
    assert_array_equal(victim.own_predict(X), model.predict(X))
    assert as_victim(nn.Linear(4, 3)).own_predict is None
    assert as_victim(model, access="labels").own_predict is None
    assert Victim(nn.Linear(4, 3), classes=[0, 1, 2]).own_predict is None
    voting = VotingClassifier([("a", model), ("b", RidgeClassifier())]).fit(X, y)
    soft = VotingClassifier([("a", model)], voting="soft").fit(X, np.array(["x", "y", "z"])[y])
    assert as_victim(voting, access="labels").own_predict is None
    assert_array_equal(as_victim(soft).own_predict(X), soft.predict(X))
    FGSM(soft, **STEP).generate(X)


# --- thresholds -----------------------------------------------------------------------


@pytest.mark.parametrize("names", [np.array([0, 1]), np.array(["no", "yes"])], ids=["01", "names"])
@pytest.mark.parametrize("first", [False, True], ids=["second class", "first class"])
@pytest.mark.parametrize(
    ("method", "threshold"),
    [("predict_proba", 0.1), ("predict_proba", 0.9), ("decision_function", 1.5),
     ("decision_function", -2.0), ("auto", "auto"), ("predict_proba", 1.0)],
)  # fmt: skip
def test_fixed_threshold(method, threshold, first, names, iris):
    y = names[iris.b.astype(int)]
    model = FixedThresholdClassifier(
        LogisticRegression(), threshold=threshold, response_method=method,
        pos_label=names[0] if first or names.dtype.kind == "U" else None,
    ).fit(iris.X, y)  # fmt: skip
    for access in ("gradients", "scores", "labels"):
        assert_array_equal(
            seen_labels(as_victim(model, access=access), iris.X), model.predict(iris.X)
        )


def test_a_threshold_moves_the_border_that_is_attacked(iris):
    base = LogisticRegression().fit(iris.X, iris.b)
    model = FixedThresholdClassifier(FrozenEstimator(base), threshold=0.2).fit(iris.X, iris.b)
    same = LogisticRegression().fit(iris.X, iris.b)
    same.intercept_ = same.intercept_ - np.log(0.2 / 0.8)
    attack = PGD(n_steps=10, **STEP)
    assert score_adversarial(model, iris.X, iris.b, attack) == score_adversarial(
        same, iris.X, iris.b, attack
    )
    found, expected = (FGSM(m, **STEP).generate(iris.X, iris.b) for m in (model, same))
    assert_allclose(found, expected)
    last = FixedThresholdClassifier(LogisticRegression(), threshold=0.2)
    behind = make_pipeline(StandardScaler(), last)
    behind.fit(iris.X, iris.b)
    assert_array_equal(seen_labels(as_victim(behind), iris.X), behind.predict(iris.X))


def test_tuned_threshold(iris):
    y = iris.b.astype(int)
    scorer = make_scorer(recall_score, pos_label=0)
    for scoring in ("balanced_accuracy", scorer):
        model = TunedThresholdClassifierCV(
            LogisticRegression(), scoring=scoring, cv=2, thresholds=20
        ).fit(iris.X, y)
        for access in ("gradients", "scores"):
            victim = as_victim(model, access=access)
            assert_array_equal(seen_labels(victim, iris.X), model.predict(iris.X))


def test_scores_that_equal_the_threshold(iris):
    forest = RandomForestClassifier(10, max_depth=1, random_state=0).fit(iris.X, iris.b)
    for positive in (0, 1):
        shares = forest.predict_proba(iris.X)[:, positive]
        for threshold in np.unique(shares)[1:-1:5]:
            model = FixedThresholdClassifier(
                FrozenEstimator(forest), threshold=threshold, pos_label=positive
            ).fit(iris.X, iris.b)
            assert (shares == threshold).any()
            victim = as_victim(model, access="scores")
            assert_array_equal(seen_labels(victim, iris.X), model.predict(iris.X))


# --- votes ----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["ovr", "ovo"])
@pytest.mark.parametrize("kernel", ["rbf", "poly"])
def test_votes_of_a_kernel_machine(kernel, shape):
    X, y = load_digits(return_X_y=True)
    model = SVC(kernel=kernel, gamma=0.02, C=0.1, decision_function_shape=shape).fit(
        X[:300], y[:300]
    )
    Z = np.random.default_rng(0).permutation(X.ravel()).reshape(X.shape)[:400]
    victim = as_victim(model, access="scores")
    assert_array_equal(seen_labels(victim, Z), model.predict(Z))
    scores = as_victim(SVC(kernel=kernel, gamma=0.02, C=0.1).fit(X[:300], y[:300]), access="scores")
    assert_allclose(victim.logits(Z), scores.logits(Z), atol=1e-9)


def test_ties_of_votes_go_to_the_first_class():
    generator = np.random.default_rng(0)
    X, y, Z = generator.normal(size=(90, 2)), np.arange(90) % 5, generator.normal(size=(500, 2))
    model = SVC().fit(X, y)
    assert (model.decision_function(Z).argmax(1) != model.predict(Z)).sum() > 2
    assert_array_equal(seen_labels(as_victim(model, access="scores"), Z), model.predict(Z))
    breaks = SVC(break_ties=True).fit(X, y)
    assert_array_equal(seen_labels(as_victim(breaks, access="scores"), Z), breaks.predict(Z))


# --- what modules return --------------------------------------------------------------


@dataclass
class Output:
    loss: object
    logits: torch.Tensor


Inception = namedtuple("Inception", ["logits", "aux_logits"])
Swapped = namedtuple("Swapped", ["hidden", "logits"])
SHAPES = {
    "dict": lambda h, z: {"hidden": h, "logits": z},
    "out": lambda h, z: {"aux": h, "out": z},
    "only": lambda h, z: {"scores": z, "note": "none"},
    "dataclass": lambda h, z: Output(None, z),
    "object": lambda h, z: SimpleNamespace(logits=z, hidden=h),
    "distribution": lambda h, z: torch.distributions.Categorical(logits=z),
    "namedtuple": lambda h, z: Inception(z, h),
    "swapped": lambda h, z: Swapped(h, z),
    "tuple": lambda h, z: (z, h),
    "list in tuple": lambda h, z: ([z], h),
}


class Returns(nn.Module):
    def __init__(self, shape, n_classes=3):
        super().__init__()
        self.features, self.last, self.shape = nn.Linear(4, 8), nn.Linear(8, n_classes), shape

    def forward(self, x):
        h = torch.tanh(self.features(x))
        z = self.last(h)
        return z if self.shape is None else SHAPES[self.shape](h, z)


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_are_found_in_what_a_module_returns(shape, iris, seeded):
    module, plain = Returns(shape), Returns(None)
    plain.load_state_dict(module.state_dict())
    found, expected = (PGD(m, n_steps=3, **STEP).generate(iris.X, iris.y) for m in (module, plain))
    if shape == "distribution":  # which holds normalised logits
        assert_allclose(found, expected, atol=1e-5)
    else:
        assert_array_equal(found, expected)


@pytest.mark.parametrize("shape", ["dict", "swapped"])
def test_a_defence_finds_the_logits_too(shape, iris):
    common = {"max_epochs": 3, "device": "cpu", "random_state": 0}
    found, plain = (
        StandardClassifier(Returns, module__shape=s, **common).fit(iris.X, iris.y)
        for s in (shape, None)
    )
    assert_array_equal(found.predict_proba(iris.X), plain.predict_proba(iris.X))


def test_what_holds_no_logits_is_refused():
    z = torch.zeros(2, 3)
    for output in ({"a": z, "b": z}, (None, z), [], "logits", SimpleNamespace(logits=None)):
        with pytest.raises(ValueError, match="must return logits, alone"):
            first_output(output)


def test_features_before_logits(iris, seeded):
    module = Features()
    with pytest.warns(UserWarning, match="first is taken for logits; it has 8 columns"):
        score_adversarial(module, iris.X, iris.y, FGSM(**STEP))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score_adversarial(Returns("tuple"), iris.X, iris.y, FGSM(**STEP))
        FGSM(module, **STEP).generate(iris.X)  # without labels nothing can be said
    named = as_victim(module, classes=["a", "b", "c"])
    with pytest.raises(ValueError, match="returns 8 logits per sample and has 3 classes"):
        FGSM(named, **STEP).generate(iris.X)


@pytest.mark.parametrize("flat", [True, False])
def test_a_single_sigmoid_is_told(flat, iris, seeded):
    module = One(nn.Sigmoid(), flat)
    with pytest.warns(UserWarning, match=r"one number in \[0, 1\].*Remove the sigmoid"):
        FGSM(module, **STEP).generate(iris.X, iris.y > 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FGSM(One(None, flat), **STEP).generate(iris.X, iris.y > 1)


# --- batches of one -------------------------------------------------------------------


class Squeezes(nn.Module):
    def __init__(self, n_outputs):
        super().__init__()
        self.linear = nn.Linear(4, n_outputs)

    def forward(self, x):
        return self.linear(x).squeeze()


@pytest.mark.parametrize("n_outputs", [1, 2, 3])
def test_a_module_that_squeezes(n_outputs, iris, seeded):
    module = Squeezes(n_outputs)
    victim = as_victim(module)
    whole = victim.logits(iris.X)
    assert whole.shape == (150, max(2, n_outputs))
    for n in (1, 2, 3):
        assert_allclose(victim.logits(iris.X[:n]), whole[:n], atol=1e-6)
    y = whole.argmax(1).numpy()
    attack = PGD(module, n_steps=3, batch_size=149, **STEP)
    together = attack.generate(iris.X, y)
    assert_allclose(attack.generate(iris.X[:1], y[:1]), together[:1], atol=1e-6)
    assert_array_equal(
        as_victim(Squeezes(n_outputs)).learn_classes(iris.X[:1]), range(whole.shape[1])
    )


def test_a_network_that_refuses_a_batch_of_one(iris, seeded):
    module = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, track_running_stats=False),
                           nn.Linear(8, 3))  # fmt: skip
    assert_array_equal(as_victim(module).learn_classes(iris.X[:1]), [0, 1, 2])
    for n in (1, 150):
        found = PGD(module, n_steps=3, **STEP).generate(iris.X[:n], iris.y[:n])
        assert 0 < np.abs(found - iris.X[:n]).max() <= 0.4 + 1e-6
