"""Feature scattering, dynamic and curriculum adversarial training."""

import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.datasets import make_blobs
from skorch.callbacks import Callback
from torch import nn

from robustsk import (
    MIM,
    PGD,
    CurriculumATClassifier,
    DynamicATClassifier,
    DynamicPGD,
    FeatureScatter,
    FeatureScatterClassifier,
    PGDATClassifier,
    SquareAttack,
    StandardClassifier,
)
from robustsk.datasets import load_digits_images
from robustsk.defenses.feature_scatter import smooth_labels


@pytest.fixture
def data():
    return make_blobs(90, 4, centers=3, cluster_std=0.4, center_box=(-2, 2), random_state=3)


def settings(**params):
    common = {
        "module": "mlp", "module__hidden_sizes": (8,), "batch_size": 16, "max_epochs": 4,
        "adversary": PGD(eps=0.2, n_steps=3), "lr": 0.02, "random_state": 0, "device": "cpu",
    }  # fmt: skip
    return {**common, **params}


def weights(clf):
    return torch.cat([p.detach().flatten() for p in clf.module_.parameters()]).numpy()


@pytest.mark.slow
@pytest.mark.parametrize(
    "clf",
    [
        FeatureScatterClassifier(max_epochs=10),
        DynamicATClassifier(max_epochs=10),
        CurriculumATClassifier(max_epochs=12, patience=1, max_strength=4),
    ],
    ids=lambda clf: type(clf).__name__,
)
def test_more_robust_than_natural_training(clf):
    X, y = load_digits_images(return_X_y=True)
    common = {"module": "mlp", "adversary__eps": 0.1, "batch_size": 64, "random_state": 0}
    clf.set_params(**common).fit(X[:600], y[:600])
    natural = StandardClassifier(max_epochs=10, **common).fit(X[:600], y[:600])
    test = X[1000:1200], y[1000:1200]
    attack = PGD(eps=0.1, n_steps=20, objective="cw", random_state=0)
    gain = clf.score_adversarial(*test, attack) - natural.score_adversarial(*test, attack)
    assert gain > 0.05
    assert clf.score(*test) > 0.75


# --- feature scattering --------------------------------------------------------------


def test_smoothed_labels():
    y = torch.tensor([3, 0])
    for share in (None, 0.5):
        found = smooth_labels(y, 10, share)
        assert found[0, 3] == pytest.approx(0.5)
        assert found[0, 1] == pytest.approx(0.0555556, abs=1e-6)
        assert_allclose(found.sum(1), 1, rtol=1e-6)
    assert_allclose(smooth_labels(y, 4, 0.3)[1], [0.7, 0.1, 0.1, 0.1], rtol=1e-6)
    assert_allclose(smooth_labels(y, 5, 0.0)[0], [0, 0, 0, 1, 0])
    # with few classes, as far on the way to uniform labels as with ten
    for n_classes in range(2, 11):
        true = smooth_labels(torch.tensor([0]), n_classes)[0, 0].item()
        assert (1 - true) / (1 - 1 / n_classes) == pytest.approx(5 / 9, rel=1e-6)
    assert smooth_labels(y, 100)[0, 3] == pytest.approx(0.5)


@pytest.mark.parametrize("share", [0.0, 0.3, None])
def test_feature_scatter_loss(share):
    rng = np.random.default_rng(0)
    x_adv, y = rng.normal(size=(6, 4)), np.arange(6) % 3
    clf = FeatureScatterClassifier(
        lambda: nn.Linear(4, 3).double(), label_smoothing=share, input_shape=(4,),
        classes=[0, 1, 2], device="cpu",
    ).initialize()  # fmt: skip
    weight, bias = (p.detach().numpy() for p in clf.module_.parameters())
    z = x_adv @ weight.T + bias
    log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
    taken = 5 / 9 * 2 / 3 if share is None else share
    q = np.where(np.arange(3) == y[:, None], 1 - taken, taken / 2)
    found = clf.training_loss(None, torch.as_tensor(x_adv), torch.as_tensor(y))
    assert_allclose(found.detach(), -(q * log_p).sum(1), rtol=1e-6)


def test_feature_scatter_defaults():
    adversary = FeatureScatterClassifier()._adversary()
    assert isinstance(adversary, FeatureScatter)
    assert (adversary.n_steps, adversary.step_size, adversary.reg) == (1, None, 0.01)
    assert adversary.random_start == "uniform"
    assert not adversary.detach_plan


def test_feature_scatter_with_another_adversary_and_no_smoothing_is_pgd_training(data):
    clf = FeatureScatterClassifier(label_smoothing=0, **settings()).fit(*data)
    assert_array_equal(weights(clf), weights(PGDATClassifier(**settings()).fit(*data)))


@pytest.mark.parametrize("share", [-0.1, 2 / 3, 1.0, "half"])
def test_bad_smoothing(data, share):
    with pytest.raises(ValueError, match=r"label_smoothing must be .*0\.667 with 3 classes"):
        FeatureScatterClassifier(label_smoothing=share, **settings()).fit(*data)


# --- dynamic -------------------------------------------------------------------------


def test_criterion_falls_linearly(data):
    clf = DynamicATClassifier(c_max=0.6, n_decay_epochs=3, **settings(max_epochs=5)).fit(*data)
    assert_allclose(clf.history[:, "fosc"], [0.6, 0.4, 0.2, 0, 0], atol=1e-12)
    clf = DynamicATClassifier(**settings(max_epochs=6)).fit(*data)
    assert_allclose(clf.history[:, "fosc"], [0.5, 0.4, 0.3, 0.2, 0.1, 0], atol=1e-12)
    # the source: 100 of 120 epochs
    clf = DynamicATClassifier(max_epochs=120)
    vars(clf)["history_"] = [None] * 51
    assert clf._criterion_of_epoch == pytest.approx(0.5 * (1 - 50 / 100))


def test_the_first_step_comes_before_the_criterion():
    rng = np.random.default_rng(0)
    x, y = torch.as_tensor(rng.normal(size=(40, 4)), dtype=torch.float32), torch.arange(40) % 3
    clf = DynamicATClassifier(
        c_max=1e6, input_shape=(4,), classes=[0, 1, 2],
        **settings(adversary=PGD(eps=0.5, step_size=0.1, random_start="none", clip=None)),
    ).initialize()  # fmt: skip
    moved = (clf.craft(x, y) - x).abs()
    assert_allclose(moved, 0.1, atol=1e-6)  # everything has converged, after one step
    clf.set_params(adversary=DynamicPGD(eps=0.5, step_size=0.1, random_start="none", min_steps=3))
    clf.initialize()
    assert_allclose((clf.craft(x, y) - x).abs().amax(1), 0.3, atol=1e-6)


def test_examples_have_converged_as_far_as_asked(data):
    seen = []

    class Watching(DynamicATClassifier):
        def perturb(self, *args, adversary=None, **options):
            x_adv, info = super().perturb(
                *args, adversary=adversary, **{**options, "return_info": True}
            )
            seen.append((self.epoch, adversary, info))
            return x_adv

    Watching(**settings(adversary=PGD(eps=0.2, n_steps=7, norm=2, objective="cw"))).fit(*data)
    for epoch, attack, info in seen:
        c = 0.5 * max(0, 1 - epoch / (5 / 6 * 4))
        assert attack.criterion == pytest.approx(c)
        assert (attack.n_steps, attack.norm, attack.objective) == (7, 2, "cw")
        stopped = info["n_steps_taken"] < 7
        assert (info["fosc"][stopped] <= c).all()
    mean = [np.mean([i["n_steps_taken"].double().mean() for e, _, i in seen if e == t])
            for t in (0, 3)]  # fmt: skip
    assert mean[0] < mean[1]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"c_max": -1}, "c_max must be"),
        ({"n_decay_epochs": 0}, "n_decay_epochs must be a number of at least 1"),
        ({"n_decay_epochs": "all"}, "n_decay_epochs must be a number of at least 1"),
    ],
)
def test_bad_schedule(data, params, message):
    with pytest.raises(ValueError, match=message):
        DynamicATClassifier(**params, **settings()).fit(*data)


# --- curriculum ----------------------------------------------------------------------


def test_without_strength_it_is_natural_training(data):
    with pytest.warns(UserWarning, match="natural training"):
        clf = CurriculumATClassifier(patience=100, **settings()).fit(*data)
    assert clf.strength_ == 0
    assert_array_equal(weights(clf), weights(StandardClassifier(**settings()).fit(*data)))
    # the accuracy is that of training, before each step
    assert clf.history[:, "strength"] == [0] * 4
    assert min(clf.history[:, "strength_acc"]) >= 0


def test_strength_grows_when_progress_stalls(data):
    clf = CurriculumATClassifier(patience=2, max_strength=3, **settings(max_epochs=30)).fit(*data)
    strength, accuracy = (clf.history[:, n] for n in ("strength", "strength_acc"))
    expected, best, waited, k = [], -1.0, 0, 0
    for value in accuracy:
        expected.append(k)
        if value > best:
            best, waited = value, 0
            continue
        waited += 1
        if waited >= 2 and k < 3:
            k, best, waited = k + 1, -1.0, 0
    assert strength == expected
    assert clf.strength_ == k == 3
    # goes on from there, and a new fit does not
    clf.set_params(max_epochs=1).partial_fit(*data)
    assert clf.history[-1]["strength"] == 3
    with pytest.warns(UserWarning, match="natural training"):
        assert clf.fit(*data).history[0]["strength"] == 0


class Weights(Callback):
    """Keep the weights with which each epoch begins and ends."""

    def __init__(self):
        self.begin, self.end = [], []

    def on_batch_begin(self, net, batch=None, training=False, **kwargs):
        if len(self.begin) < len(net.history):
            self.begin.append(weights(net))

    def on_batch_end(self, net, batch=None, training=False, **kwargs):
        del self.end[len(net.history) - 1 :]
        self.end.append(weights(net))


def test_the_next_strength_begins_with_the_best_weights(data):
    watch = Weights()
    clf = CurriculumATClassifier(
        patience=2, max_strength=3, **settings(max_epochs=25, lr=0.1, callbacks=[watch])
    ).fit(*data)
    strength, accuracy = (np.array(clf.history[:, n]) for n in ("strength", "strength_acc"))
    went_back = 0
    for epoch in np.flatnonzero(np.diff(strength)) + 1:
        under = np.flatnonzero(strength == strength[epoch] - 1)
        best = under[accuracy[under].argmax()]
        assert_array_equal(watch.begin[epoch], watch.end[best])
        went_back += not np.array_equal(watch.end[best], watch.end[epoch - 1])
    assert went_back >= 2
    # within a strength training just goes on
    for epoch in np.flatnonzero(np.diff(strength) == 0) + 1:
        assert_array_equal(watch.begin[epoch], watch.end[epoch - 1])


@pytest.mark.parametrize(
    ("max_epochs", "max_strength", "expected"),
    [(20, 7, 1), (24, 7, 2), (88, 7, 10), (87, 7, 9), (1000, 7, 10), (1, 7, 1), (20, 1, 9)],
)
def test_patience_of_short_trainings(max_epochs, max_strength, expected):
    clf = CurriculumATClassifier(max_epochs=max_epochs, max_strength=max_strength)
    assert clf._patience == expected
    assert clf.set_params(patience=4)._patience == 4


def test_a_training_without_any_attack_says_so(data):
    with pytest.warns(UserWarning, match=r"still 0 of 7 .* epoch 2.*natural training"):
        CurriculumATClassifier(patience=10, **settings(max_epochs=2)).fit(*data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clf = CurriculumATClassifier(**settings(max_epochs=20)).fit(*data)
    assert clf.strength_ > 0


def test_strength_is_loaded_with_the_history(data, tmp_path):
    clf = CurriculumATClassifier(patience=1, **settings(max_epochs=12)).fit(*data)
    clf.save_params(f_params=tmp_path / "p.pt", f_history=tmp_path / "h.json")
    other = CurriculumATClassifier(
        patience=1, input_shape=(4,), classes=[0, 1, 2], **settings(max_epochs=1)
    ).initialize()
    other.load_params(f_params=tmp_path / "p.pt", f_history=tmp_path / "h.json")
    other.partial_fit(*data)
    assert other.history[-1]["strength"] == clf.history[-1]["strength"] > 0


def test_strength_waits_for_accuracy(data):
    X, y = data
    random = np.random.default_rng(0).permutation(y)
    clf = CurriculumATClassifier(patience=1, min_accuracy=0.99, **settings(max_epochs=6))
    with pytest.warns(UserWarning, match="natural training"):
        clf.fit(X, random)
    assert clf.strength_ == 0


def test_batches_are_mixed():
    rng = np.random.default_rng(0)
    x = torch.as_tensor(rng.normal(size=(400, 4)), dtype=torch.float32)
    y = torch.arange(400) % 3
    clf = CurriculumATClassifier(
        input_shape=(4,), classes=[0, 1, 2],
        **settings(adversary=PGD(eps=1.0, step_size=0.1, random_start="none", clip=None)),
    ).initialize()  # fmt: skip
    clf.strength_ = 3
    moved = (clf.craft(x, y) - x).abs().amax(1)
    share = [np.mean(np.isclose(moved, 0.1 * k, atol=1e-5)) for k in range(4)]
    assert sum(share) > 0.97  # the sign of a gradient may turn on the way
    assert_allclose(share, 0.25, atol=0.08)
    # what a sample draws belongs to the sample
    clf._rng = np.random.RandomState(1)
    first = clf.craft(x, y)
    clf._rng = np.random.RandomState(1)
    assert_allclose(clf.craft(x.flip(0), y.flip(0)).flip(0), first, atol=1e-6)


def test_other_adversaries(data):
    clf = CurriculumATClassifier(
        patience=1, **settings(max_epochs=8, adversary=MIM(eps=0.2, n_steps=4))
    ).fit(*data)
    assert clf.strength_ > 0
    assert clf.adversary_.n_steps == 4
    with pytest.raises(ValueError, match=r"adversary is a SquareAttack.*no n_steps"):
        CurriculumATClassifier(**settings(adversary=SquareAttack(eps=0.2))).fit(*data)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"max_strength": 0}, "max_strength must be"),
        ({"patience": 0}, "patience must be"),
        ({"min_accuracy": -1}, "min_accuracy must be"),
    ],
)
def test_bad_curriculum(data, params, message):
    with pytest.raises(ValueError, match=message):
        CurriculumATClassifier(**params, **settings()).fit(*data)
