"""Callbacks that watch robustness during training."""

import pickle

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from sklearn.base import clone
from sklearn.datasets import make_blobs
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import Callback, Checkpoint, EarlyStopping, LoadInitState
from skorch.dataset import ValidSplit

from robustsk import DRA, EOT, PGD, DeepFool, MultiTargeted, PGDATClassifier, score_adversarial
from robustsk.training import AdversarialScoring, EpsSchedule, EpsWarmup, RandomEps

ATTACK = PGD(eps=0.4, n_steps=3, random_state=0)


@pytest.fixture(params=["ints", "strings"])
def data(request):
    X, y = make_blobs(
        60, n_features=4, centers=3, cluster_std=0.8, center_box=(-2, 2), random_state=3
    )
    return X, (y if request.param == "ints" else np.array(["ant", "bee", "cat"])[y])


def make(*callbacks, **params):
    defaults = {
        "module": "mlp", "module__hidden_sizes": (8,), "max_epochs": 3, "batch_size": 16,
        "lr": 0.05, "adversary": PGD(eps=0.2, n_steps=2), "random_state": 0, "device": "cpu",
        "train_split": ValidSplit(3, stratified=True), "callbacks": list(callbacks),
    }  # fmt: skip
    return PGDATClassifier(**{**defaults, **params})


def test_records_every_epoch(data):
    clf = make(
        AdversarialScoring(ATTACK),
        AdversarialScoring(ATTACK, on_train=True),
        AdversarialScoring(PGD(eps=0, n_steps=1), name="at_zero"),
        AdversarialScoring(PGD(eps=50, n_steps=3, clip=None, random_state=0), name="at_large"),
    ).fit(*data)
    history = clf.history_
    for name in ("valid_robust_acc", "train_robust_acc", "at_zero", "at_large"):
        values = np.array(history[:, name])
        assert values.shape == (3,)
        assert ((values >= 0) & (values <= 1)).all()
    assert_allclose(history[:, "at_zero"], history[:, "valid_acc"])
    assert (np.array(history[:, "valid_robust_acc"]) <= history[:, "at_zero"]).all()
    assert max(history[:, "at_large"]) < 0.5 < max(history[:, "at_zero"])


def test_value_is_that_of_score_adversarial(data):
    """With everything trained on, the last record is the score of the result."""
    X, y = data
    clf = make(AdversarialScoring(ATTACK, on_train=True), train_split=None, batch_size=-1)
    clf.fit(X, y)
    expected = score_adversarial(clf, X, y, ATTACK)
    assert clf.history_[-1, "train_robust_acc"] == pytest.approx(expected, abs=1e-6)
    assert 0 < expected < 1


def test_best_epochs_are_marked(data):
    clf = make(AdversarialScoring(ATTACK), max_epochs=6).fit(*data)
    values = np.array(clf.history_[:, "valid_robust_acc"])
    best_so_far = np.maximum.accumulate(np.concatenate([[-1], values]))[:-1]
    assert clf.history_[:, "valid_robust_acc_best"] == (values > best_so_far).tolist()


def test_early_stopping(data):
    stop = EarlyStopping(monitor="valid_robust_acc", lower_is_better=False, patience=2, threshold=2)
    clf = make(AdversarialScoring(ATTACK), stop, max_epochs=20).fit(*data)
    assert len(clf.history_) == 3  # no accuracy doubles twice
    assert set(clf.predict(data[0])) <= set(data[1])


def test_checkpoint(data, tmp_path):
    checkpoint = Checkpoint(monitor="valid_robust_acc_best", dirname=tmp_path)
    clf = make(AdversarialScoring(ATTACK), checkpoint).fit(*data)
    marked = clf.history_[:, "valid_robust_acc_best"]
    best = max(i for i, is_best in enumerate(marked) if is_best)
    resumed = make(LoadInitState(checkpoint), max_epochs=0, random_state=1).fit(*data)
    shorter = make(max_epochs=best + 1).fit(*data)
    assert_allclose(resumed.predict_proba(data[0]), shorter.predict_proba(data[0]), rtol=1e-9)


def test_watching_changes_nothing(data):
    """Training with and without the callback gives the same weights."""
    watched = make(AdversarialScoring(ATTACK)).fit(*data)
    plain = make().fit(*data)
    assert_allclose(watched.predict_proba(data[0]), plain.predict_proba(data[0]), rtol=1e-12)


def test_attack_is_left_as_it_was(data):
    attack = clone(ATTACK)
    before = vars(attack).copy()
    make(AdversarialScoring(attack)).fit(*data)
    assert vars(attack) == before


def test_callback_is_cloned_with_the_estimator(data):
    clf = clone(make(AdversarialScoring(ATTACK, name="mine"))).fit(*data)
    assert len(clf.history_[:, "mine"]) == 3
    twice = clone(clone(AdversarialScoring(ATTACK, on_train=True)))
    assert twice.name == "train_robust_acc"
    assert twice.on_train
    assert twice.attack.eps == ATTACK.eps


@pytest.mark.dealt
def test_search_with_the_callback(data):
    search = GridSearchCV(
        make(AdversarialScoring(ATTACK)), {"adversary__eps": [0.0, 0.3]}, cv=2, error_score="raise"
    ).fit(*data)
    assert len(search.best_estimator_.history_[:, "valid_robust_acc"]) == 3


def test_fitted_with_the_callback_pickles(data):
    clf = make(AdversarialScoring(ATTACK)).fit(*data)
    other = pickle.loads(pickle.dumps(clf)).partial_fit(*data)
    assert len(other.history_[:, "valid_robust_acc"]) == 6


def test_names():
    assert AdversarialScoring(ATTACK).name == "valid_robust_acc"
    assert AdversarialScoring(ATTACK, on_train=True).name == "train_robust_acc"
    assert AdversarialScoring(ATTACK, name="mine", on_train=True).name == "mine"


# --- warm-up of the radius -----------------------------------------------------------


class Radii(Callback):
    """Note the radius of every batch; break the weights in a batch if asked."""

    def __init__(self, seen, poison_at=None):
        self.seen = seen
        self.poison_at = poison_at

    def on_batch_begin(self, net, training=False, **kwargs):
        if training:
            self.seen.append(float(net.adversary_.eps))
            if len(self.seen) == self.poison_at:
                with torch.no_grad():
                    for p in net.module_.parameters():
                        p.fill_(torch.nan)


@pytest.mark.parametrize("start", [0.0, 0.5])
def test_radius_grows_to_the_full_one(data, start):
    seen = []
    clf = make(EpsWarmup(1.5, start=start), Radii(seen), train_split=None).fit(*data)
    assert len(seen) == 12  # three epochs of four batches, six of them of warm-up
    share = np.minimum(1, np.arange(12) / 6)
    assert_allclose(seen, 0.2 * (start + (1 - start) * share))
    assert clf.adversary_.eps == 0.2
    assert clf.default_attack().eps == 0.2


def test_full_radius_after_a_training_that_broke_off(data):
    """Otherwise `score_adversarial` would attack with too small a radius."""
    clf = make(EpsWarmup(3), Radii([], poison_at=6), train_split=None)
    with pytest.raises(FloatingPointError):
        clf.fit(*data)
    assert clf.default_attack().eps == 0.2
    clf = make(EpsWarmup(3), EarlyStopping("train_loss", patience=1, threshold=9))
    clf.set_params(train_split=None).fit(*data)
    assert len(clf.history_) == 2
    assert clf.default_attack().eps == 0.2


@pytest.mark.dealt
@pytest.mark.parametrize(("first", "last"), [(1, 2), (2, 1)])
def test_schedule_of_the_source(first, last):
    """Appendix D of Bui et al. (2022): 8/255 to epoch 20, then by 1/50 of it to epoch 70."""
    eps = 8 / 255
    clf = make(
        EpsSchedule([(20, first), (70, last)]), adversary__eps=eps, module__hidden_sizes=(2,)
    )
    clf.set_params(train_split=None, max_epochs=75, batch_size=-1)
    X = np.random.default_rng(0).random((6, 2))
    clf.fit(X, np.arange(6) % 2)
    epoch = np.arange(75)
    step = eps / 50
    if first == 1:
        expected = np.minimum(16 / 255, np.maximum(eps, eps + (epoch - 20) * step))
    else:
        expected = np.maximum(eps, np.minimum(16 / 255, 16 / 255 - (epoch - 20) * step))
    assert_allclose(clf.history_[:, "eps"], expected)
    assert clf.history_[45, "eps"] == pytest.approx(12 / 255)
    assert clf.default_attack().eps == eps


def test_schedule_goes_on_with_the_training(data):
    seen = []
    clf = make(EpsSchedule([(1, 1), (3, 3)]), Radii(seen), train_split=None, batch_size=-1)
    clf.set_params(max_epochs=2).fit(*data).partial_fit(*data)
    assert_allclose(seen, [0.2, 0.2, 0.4, 0.6])
    assert clf.adversary_.eps == 0.2


def test_schedule_of_radii_per_feature(data):
    eps = np.array([0.1, 0.0, 0.2, 0.1])
    clf = make(EpsSchedule([(0, 1), (2, 2)]), adversary__eps=eps, train_split=None).fit(*data)
    assert_allclose(clf.history_[:, "eps"], [eps, 1.5 * eps, 2 * eps])


@pytest.mark.parametrize("points", [[], [(3, 1), (2, 1)], [(0, -1)], 3, [1, 2, 3], "ab"])
def test_bad_schedules(data, points):
    with pytest.raises(ValueError, match="points"):
        make(EpsSchedule(points)).fit(*data)


# --- whose radius changes ------------------------------------------------------------


@pytest.fixture
def numbers():
    return make_blobs(40, n_features=4, centers=3, center_box=(-2, 2), random_state=3)


class Reached(Callback):
    """Note how far the adversarial examples of each batch are from the samples."""

    def __init__(self, seen):
        self.seen = seen

    def on_grad_computed(self, net, named_parameters, batch=None, **kwargs):
        crafted = batch[0]
        distance = (crafted.adversarial - crafted.x).abs().max()
        self.seen.append(float(distance))


STEEP = {"n_steps": 2, "random_start": "none"}


@pytest.mark.dealt
@pytest.mark.parametrize(
    ("adversary", "full"),
    [
        (EOT(attack=PGD(eps=0.3, **STEEP), n_draws=1), 0.3),
        (EOT(attack=PGD(**STEEP), n_draws=1, eps=0.3), 0.3),
        (EOT(attack=PGD(eps=0.3, **STEEP), n_draws=1, eps=0.3), 0.3),
        (MultiTargeted(attack=EOT(attack=PGD(eps=0.3, **STEEP), n_draws=1)), 0.3),
        (MultiTargeted(attack=PGD(**STEEP)), 8 / 255),
        (MultiTargeted(), 8 / 255),
        (PGD(**STEEP), 8 / 255),
    ],
)
@pytest.mark.parametrize(
    "callback", [EpsSchedule([(0, 0.5), (1, 1), (2, 2)]), EpsWarmup(2), RandomEps(1.5, 1.5)]
)
def test_what_attacks_has_the_radius(numbers, adversary, full, callback):
    """Wherever in a wrapper the radius is said, and where it is the default one."""
    seen = []
    clf = make(Reached(seen), clone(callback), adversary=adversary, train_split=None)
    clf.set_params(adversary__clip=None, batch_size=-1).fit(*numbers)
    factors = {EpsSchedule: [0.5, 1, 2], EpsWarmup: [0, 0.5, 1], RandomEps: [1.5] * 3}
    factors = factors[type(callback)]
    assert_allclose(seen, full * np.array(factors), rtol=1e-6)
    inside = clf.adversary_
    while inside is not None:
        assert inside.eps in (None, 0.3)
        inside = getattr(inside, "attack", None)
    assert_allclose(clf.adversary_._resolved()._effective_eps(np.inf, (4,)), full)


def test_mean_change_has_the_customary_radius(numbers):
    """For DRA with eps_unit="mean" that is 1/255, not the 12 of the 1-norm."""
    clf = make(EpsSchedule([(0, 2)]), adversary=DRA(eps_unit="mean"), max_epochs=1).fit(*numbers)
    assert clf.history_[:, "eps"] == [2 / 255]


def test_radii_of_flattened_images():
    """Radii per feature have the shape of the data, whatever the network makes of them."""
    X = np.random.default_rng(0).random((20, 16))
    eps = np.linspace(0, 0.3, 16)
    clf = make(EpsSchedule([(0, 2)]), adversary__eps=eps, max_epochs=1, train_split=None)
    clf.set_params(input_shape=(1, 4, 4)).fit(X, np.arange(20) % 2)
    assert_allclose(clf.history_[0, "eps"], 2 * eps)


@pytest.mark.parametrize("eps", [None, np.inf])
def test_no_limit_cannot_change(numbers, eps):
    clf = make(EpsSchedule([(0, 2)]), adversary=DeepFool(eps=eps, n_steps=2))
    with pytest.raises(ValueError, match=r"DeepFool looks for the closest .* adversary__eps="):
        clf.fit(*numbers)
    clf.set_params(adversary__eps=0.1, max_epochs=1).fit(*numbers)
    assert clf.history_[:, "eps"] == [0.2]


# --- a radius per batch ----------------------------------------------------------------


def drawn(data, callback, **params):
    seen = []
    clf = make(callback, Radii(seen), train_split=None, **params).fit(*data)
    return np.array(seen), clf


def test_radii_are_uniform(numbers):
    """Uniform between the fractions, by their mean, standard deviation and ends."""
    seen, clf = drawn(numbers, RandomEps(0.2, 0.8), batch_size=2, max_epochs=8)
    shares = seen / 0.2
    assert len(shares) == 160
    assert shares.min() >= 0.2
    assert shares.max() <= 0.8
    n = len(shares)
    assert abs(shares.mean() - 0.5) < 4 * 0.6 / np.sqrt(12 * n)
    assert abs(shares.std() - 0.6 / np.sqrt(12)) < 0.02
    assert abs(np.corrcoef(shares[1:], shares[:-1])[0, 1]) < 4 / np.sqrt(n)
    recorded = np.concatenate(clf.history_[:, "batches", :, "eps"])
    assert_allclose(recorded, seen)
    assert clf.adversary_.eps == 0.2


def test_radii_hang_on_the_random_state(numbers):
    first, one = drawn(numbers, RandomEps())
    again, two = drawn(numbers, RandomEps())
    other, _ = drawn(numbers, RandomEps(), random_state=1)
    assert_allclose(first, again, rtol=0)
    assert (first != other).all()
    assert_allclose(one.predict_proba(numbers[0]), two.predict_proba(numbers[0]), rtol=0)
    # training that goes on draws other ones
    seen = []
    two.set_params(callbacks=[RandomEps(), Radii(seen)]).partial_fit(*numbers)
    assert not set(seen) & set(first)


def test_attacks_have_the_radius_that_is_drawn(numbers):
    """One steep step reaches as far as the radius, and with `step` as far as a part of it."""
    for step, share in ((None, 1.0), (0.1, 0.2)):
        seen, reached = [], []
        clf = make(RandomEps(0.1, step=step), Radii(seen), Reached(reached), train_split=None)
        attack = EOT(attack=PGD(eps=0.3, **STEEP), n_draws=1)
        clf.set_params(adversary=attack, adversary__clip=None).fit(*numbers)
        assert_allclose(reached, share * np.array(seen), rtol=1e-6)
        assert len(set(seen)) == len(seen)
        assert clf.adversary_.attack.step_size is None


def test_a_step_size_that_was_given_comes_back(numbers):
    _, clf = drawn(numbers, RandomEps(step=0.1), adversary=PGD(eps=0.2, step_size=0.07))
    assert clf.adversary_.step_size == 0.07


@pytest.mark.parametrize(
    ("params", "match"),
    [
        ({"low": 0.5, "high": 0.2}, "low must not be above high"),
        ({"low": -0.1}, "low"),
        ({"step": -1}, "step"),
    ],
)
def test_bad_radii(numbers, params, match):
    with pytest.raises(ValueError, match=match):
        make(RandomEps(**params)).fit(*numbers)


def test_what_has_no_step_size(numbers):
    with pytest.raises(ValueError, match=r"step=0\.1 .* DeepFool has none"):
        make(RandomEps(step=0.1), adversary=DeepFool(eps=0.1)).fit(*numbers)
