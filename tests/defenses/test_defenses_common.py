"""Data of every kind, predictions and scores, for every defence."""

import warnings

import numpy as np
import pandas as pd
import pytest
import skorch
import torch
from defense_paths import DATA, NETWORK, PARAMETERS, PREDICTION, one_of_each, suitable
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.exceptions import NotFittedError
from torch.utils.data import Dataset, Subset, TensorDataset

from robustsk import FGSM, PGD
from robustsk.defenses import BaseDefense


class Pairs(Dataset):
    """Items (x, y) that only `__getitem__` gives away."""

    def __init__(self, X, y):
        self.values, self.answers = X, y

    def __len__(self):
        return len(self.values)

    def __getitem__(self, i):
        return torch.as_tensor(self.values[i]), int(self.answers[i])


class Unlabelled(Dataset):
    def __init__(self, X):
        self.values = X

    def __len__(self):
        return len(self.values)

    def __getitem__(self, i):
        return torch.as_tensor(self.values[i])


def check_outputs(clf, X, y, n=None):
    """Check the shapes and the agreement of everything that predicts."""
    n = len(y) if n is None else n
    classes = np.unique(y)
    assert_array_equal(clf.classes_, classes)
    predicted = clf.predict(X)
    assert predicted.shape == (n,)
    assert predicted.dtype == classes.dtype
    assert set(predicted.tolist()) <= set(classes.tolist())
    proba = clf.predict_proba(X)
    assert proba.shape == (n, len(classes))
    assert proba.min() >= 0
    assert_allclose(proba.sum(axis=1), 1, rtol=1e-12)
    decision = clf.decision_function(X)
    if len(classes) == 2:
        assert decision.shape == (n,)
        assert_array_equal(classes[(decision > 0).astype(int)], predicted)
        assert_allclose(1 / (1 + np.exp(-decision)), proba[:, 1], rtol=1e-9)
    else:
        assert decision.shape == (n, len(classes))
        assert_array_equal(classes[decision.argmax(axis=1)], predicted)
        e = np.exp(decision - decision.max(axis=1, keepdims=True))
        assert_allclose(e / e.sum(axis=1, keepdims=True), proba, rtol=1e-9)
    assert_array_equal(classes[proba.argmax(axis=1)], predicted)
    assert clf.score(X, y) == np.mean(predicted == np.asarray(y))


def test_is_a_skorch_classifier(cls):
    assert issubclass(cls, BaseDefense)
    assert isinstance(cls(), skorch.NeuralNetClassifier)


# --- kinds of data -------------------------------------------------------------------


def test_table_and_strings(cls, learner, data):
    X, y = data[0], np.array(["no", "maybe", "yes"])[data[1]]
    before = X.copy()
    clf = learner(cls)
    assert clf.fit(X, y) is clf
    check_outputs(clf, X, y)
    assert clf.score(X, y) > 0.8
    robust = clf.score_adversarial(X, y)
    assert 0 <= robust <= clf.score(X, y)
    assert robust == clf.score_adversarial(X, y, clf.default_attack())
    assert clf.score_adversarial(X, y, PGD(eps=0, n_steps=1)) == clf.score(X, y)
    assert_array_equal(X, before)


@one_of_each(*DATA)
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, np.int64, np.uint8])
def test_tables_of_any_dtype(cls, learner, data, dtype):
    X, y = data
    if np.issubdtype(dtype, np.integer):
        X = np.round(10 * (X - X.min())).astype(dtype)
        clf = learner(cls, adversary__eps=1.0, max_epochs=15, lr=0.05)
    else:
        X = X.astype(dtype)
        clf = learner(cls)
    before = X.copy()
    assert clf.fit(X, y) is clf
    assert clf.n_features_in_ == 4
    check_outputs(clf, X, y)
    assert clf.score(X, y) > 0.8
    assert 0 <= clf.score_adversarial(X, y) <= clf.score(X, y)
    assert_array_equal(X, before)


@one_of_each(*DATA, *PREDICTION)
def test_data_frame(cls, learner, data):
    X, y = data
    frame = pd.DataFrame(X, columns=["a", "b", "c", "d"], index=np.arange(len(X))[::-1])
    clf = learner(cls).fit(frame, pd.Series(y))
    assert clf.feature_names_in_.tolist() == ["a", "b", "c", "d"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # names are kept, in attacks as well
        check_outputs(clf, frame, y)
        robust = clf.score_adversarial(frame, y)
    expected = learner(cls).fit(X, y)
    assert_array_equal(clf.predict_proba(frame), expected.predict_proba(X))
    assert robust == expected.score_adversarial(X, y)
    with pytest.raises(ValueError, match="feature names"):
        clf.predict(frame[["b", "a", "c", "d"]])


@one_of_each(*DATA)
def test_lists_tensors_and_memory_maps_give_what_arrays_give(cls, make, data, tmp_path):
    X, y = data
    expected = make(cls).fit(X, y).predict_proba(X)
    on_disk = np.lib.format.open_memmap(tmp_path / "X.npy", "w+", X.dtype, X.shape)
    on_disk[:] = X
    on_disk.flush()
    read_only = np.load(tmp_path / "X.npy", mmap_mode="r")
    for values, labels in [
        (X.tolist(), y.tolist()),
        (torch.from_numpy(X), torch.from_numpy(y)),
        (read_only, y),
    ]:
        clf = make(cls).fit(values, labels)
        assert_array_equal(clf.predict_proba(values), expected)
        check_outputs(clf, values, y)
        assert 0 <= clf.score_adversarial(values, labels) <= 1


@one_of_each(*DATA)
def test_noncontiguous_and_reversed_arrays(cls, make, data):
    X, y = data
    expected = make(cls).fit(X, y).predict_proba(X)
    odd = np.asfortranarray(X[::-1])[::-1]
    assert odd.strides[0] < 0
    assert_array_equal(make(cls).fit(odd, y).predict_proba(odd), expected)


def test_images(cls, learner, images):
    X, y = images
    clf = learner(cls, module__hidden_sizes=(32,), lr=0.02).fit(X, y)
    assert clf.input_shape_ == (1, 8, 8)
    check_outputs(clf, X, y)
    assert clf.score(X, y) > 0.8
    assert 0 <= clf.score_adversarial(X, y) <= clf.score(X, y)


@one_of_each(*DATA, *NETWORK)
@pytest.mark.parametrize("kind", ["n1hw", "nhw", "flat"])
def test_images_of_any_layout(cls, learner, images, kind):
    X, y = images
    settings = {"module__hidden_sizes": (32,), "lr": 0.02}
    if kind == "n1hw":
        settings = {"module": None, "lr": 0.01, "max_epochs": 30}
    if kind == "nhw":
        X = X[:, 0]
    elif kind == "flat":
        X = X.reshape(len(X), -1)
        settings["input_shape"] = (1, 8, 8)
    for seed in (0, 1):  # from some starts a small network does not get off the ground
        clf = learner(cls, random_state=seed, **settings).fit(X, y)
        if clf.score(X, y) > 0.8:
            break
    assert clf.input_shape_ == ((8, 8) if kind == "nhw" else (1, 8, 8))
    check_outputs(clf, X, y)
    assert clf.score(X, y) > 0.8
    assert 0 <= clf.score_adversarial(X, y) <= clf.score(X, y)
    # one valid range for all pixels
    assert clf.clip_bounds_[0].shape == ()
    assert_allclose([float(b) for b in clf.clip_bounds_], [X.min(), X.max()])


@one_of_each(*DATA, *NETWORK)
def test_flat_rows_with_input_shape_are_the_images_they_stand_for(cls, make, images):
    X, y = images
    rows = X.reshape(len(X), -1)
    as_images = make(cls).fit(X, y)
    as_rows = make(cls, input_shape=(1, 8, 8)).fit(rows, y)
    assert_array_equal(as_images.predict_proba(X), as_rows.predict_proba(rows))
    assert as_images.score_adversarial(X, y) == as_rows.score_adversarial(rows, y)


@one_of_each(*DATA)
def test_input_shape_that_does_not_fit(cls, make, images):
    X, y = images
    with pytest.raises(ValueError, match=r"\(1, 8, 9\).*72 entries.*64"):
        make(cls, input_shape=(1, 8, 9)).fit(X.reshape(len(X), -1), y)


@one_of_each(*DATA)
@pytest.mark.parametrize("kind", [TensorDataset, Pairs])
def test_dataset_of_pairs(cls, make, data32, kind):
    X, y = data32
    dataset = (
        TensorDataset(torch.from_numpy(X), torch.from_numpy(y))
        if kind is (TensorDataset)
        else Pairs(X, y)
    )
    clf = make(cls).fit(dataset)
    check_outputs(clf, dataset, y)
    expected = make(cls).fit(X, y)
    assert_allclose(clf.predict_proba(dataset), expected.predict_proba(X), atol=0.1)
    assert_array_equal(clf.predict_proba(X), clf.predict_proba(dataset))
    assert 0 <= clf.score_adversarial(dataset, y) <= 1


@one_of_each(*DATA)
def test_dataset_of_features_and_labels_apart(cls, make, data32):
    X, y = data32
    y = np.array(["ant", "bee", "cat"])[y]
    dataset = Unlabelled(X)
    clf = make(cls).fit(dataset, y)
    check_outputs(clf, dataset, y)
    with pytest.raises(ValueError, match="no labels: pass them as y"):
        make(cls).fit(dataset)


@one_of_each(*DATA, *PREDICTION)
def test_subset_of_a_dataset(cls, make, data32):
    X, y = data32
    clf = make(cls).fit(Subset(Pairs(X, y), range(40)))
    expected = clf.predict_proba(X[5:15])
    assert_array_equal(clf.predict_proba(Subset(Pairs(X, y), range(5, 15))), expected)
    assert_array_equal(clf.predict_proba(Subset(Unlabelled(X), range(5, 15))), expected)


@one_of_each(*DATA)
def test_images_in_a_dataset(cls, make, images):
    X, y = images
    clf = make(cls).fit(Pairs(X, y))
    check_outputs(clf, Pairs(X, y), y)
    assert clf.input_shape_ == (1, 8, 8)
    assert_allclose([float(b) for b in clf.clip_bounds_], [X.min(), X.max()])


# --- labels --------------------------------------------------------------------------


@one_of_each(*DATA)
@pytest.mark.parametrize(
    "labels",
    [
        np.array(["no", "maybe", "yes"]),
        np.array(["no", "maybe", "yes"], dtype=object),
        np.array([-7, 0, 3]),
        np.array([10.0, 20.0, 30.0]),
    ],
    ids=["strings", "objects", "negative", "floats"],
)
def test_labels_of_any_kind(cls, learner, data, labels):
    X, y = data[0], labels[data[1]]
    clf = learner(cls).fit(X, y)
    check_outputs(clf, X, y)
    assert clf.score(X, y) > 0.8
    assert clf.predict(X).dtype == y.dtype
    robust = clf.score_adversarial(X, y)
    assert robust == clf.score_adversarial(X, y, clf.default_attack())
    assert clf.score_adversarial(X, y, PGD(eps=0, n_steps=1)) == clf.score(X, y)


def test_two_classes(cls, learner, binary):
    X, y = binary[0], np.array(["b", "a"])[binary[1]]
    clf = learner(cls, max_epochs=10).fit(X, y)
    check_outputs(clf, X, y)
    assert clf.score(X, y) > 0.9


@one_of_each(*DATA)
@pytest.mark.parametrize(
    "labels", [np.array([False, True]), np.array(["b", "a"]), np.array([-1, 1])]
)
def test_two_classes_of_any_kind(cls, learner, binary, labels):
    X, y = binary[0], labels[binary[1]]
    clf = learner(cls).fit(X, y)
    check_outputs(clf, X, y)
    assert clf.score(X, y) > 0.9


def test_many_classes(cls, make):
    rng = np.random.default_rng(0)
    y = np.arange(120) % 60
    X = rng.normal(size=(120, 3)) + y[:, None]
    clf = make(cls, max_epochs=1).fit(X, y)
    check_outputs(clf, X, y)


def test_classes_given_in_advance(cls, make, data):
    X, y = data
    clf = make(cls, classes=[0, 1, 2, 9]).fit(X, y)
    assert clf.classes_.tolist() == [0, 1, 2, 9]
    assert clf.predict_proba(X).shape == (len(X), 4)
    with pytest.raises(ValueError, match=r"not been trained on.*2"):
        make(cls, classes=[0, 1]).fit(X, y)


# --- scores --------------------------------------------------------------------------


@one_of_each(*PREDICTION)
def test_score_adversarial(cls, learner, data):
    X, y = data
    clf = learner(cls, adversary__eps=0.4).fit(X, y)
    clean = clf.score(X, y)
    scores = [
        clf.score_adversarial(X, y, PGD(eps=eps, n_steps=3, random_state=0))
        for eps in (0, 0.4, 1.5, 10)
    ]
    assert scores[0] == clean
    assert scores == sorted(scores, reverse=True)
    assert scores[-1] < 0.5 < scores[0]
    assert clf.score_adversarial(X, y) == clf.score_adversarial(X, y)
    assert 0 <= clf.score_adversarial(X, y, FGSM(eps=0.4)) <= clean


@one_of_each(*PREDICTION)
def test_score_adversarial_with_weights(cls, learner, data):
    X, y = data
    clf = learner(cls).fit(X, y)
    attack = PGD(eps=1.0, n_steps=3, random_state=0)
    weight = (np.arange(len(X)) < 20).astype(float)
    expected = clf.score_adversarial(X[:20], y[:20], attack)
    assert clf.score_adversarial(X, y, attack, sample_weight=weight) == pytest.approx(expected)


@one_of_each(*PREDICTION)
def test_score_adversarial_rejects_what_is_no_attack(cls, make, data):
    clf = make(cls).fit(*data)
    for attack in (PGD, "pgd"):
        with pytest.raises(TypeError, match="attack must be an attack"):
            clf.score_adversarial(*data, attack)
    with pytest.raises(ValueError, match="not been trained on"):
        clf.score_adversarial(data[0], data[1] + 100)


@one_of_each(*PARAMETERS, *PREDICTION)
def test_default_attack_has_the_threat_model_of_the_estimator(cls, make, data):
    mask = np.array([True, False, True, True])
    adversary = suitable(cls, eps=0.7, norm=2, clip=(-9, 9), mask=mask, n_steps=3)
    clf = make(cls, adversary=adversary, adversary__eps=0.2)
    for attack in (clf.default_attack(), clf.fit(*data).default_attack()):
        assert type(attack) is PGD
        assert attack.norm == 2
        assert attack.eps == 0.2
        assert attack.clip == (-9, 9)
        assert_array_equal(attack.mask, mask)
        assert attack.n_steps == 20
        assert attack.n_restarts == 2  # the first run and one restart
        assert attack.random_state == 0
    X_adv = clf.default_attack().set_params(estimator=clf).generate(*data)
    assert_array_equal(X_adv[:, 1], data[0][:, 1])
    assert np.linalg.norm(X_adv - data[0], axis=1).max() <= 0.2 * (1 + 1e-6)


@one_of_each(*DATA)
def test_the_range_of_the_training_data_limits_the_attack(cls, make, data):
    X, y = data
    clf = make(cls, adversary__eps=5.0).fit(X, y)
    assert_allclose(clf.clip_bounds_[0], X.min(axis=0))
    assert_allclose(clf.clip_bounds_[1], X.max(axis=0))
    X_adv = clf.default_attack().set_params(estimator=clf).generate(X[:5], y[:5])
    assert (X_adv >= X.min(axis=0)).all()
    assert (X_adv <= X.max(axis=0)).all()


@one_of_each(*DATA, *PREDICTION)
def test_attack_on_flat_rows_of_images(cls, make, images):
    X, y = images
    rows = X.reshape(len(X), -1)
    clf = make(cls, input_shape=(1, 8, 8)).fit(rows, y)
    X_adv = clf.default_attack().set_params(estimator=clf).generate(rows, y)
    assert X_adv.shape == rows.shape
    assert X_adv.dtype == rows.dtype
    assert np.abs(X_adv - rows).max() <= 0.1 + 1e-6


# --- prediction ----------------------------------------------------------------------


@one_of_each(*NETWORK, *PREDICTION)
def test_prediction_does_not_depend_on_the_batch(cls, make, data):
    X, y = data
    clf = make(cls).fit(X, y)
    together = clf.predict_proba(X)
    assert_allclose(np.vstack([clf.predict_proba(x[None]) for x in X[:5]]), together[:5], rtol=1e-6)
    assert_allclose(clf.set_params(batch_size=-1).predict_proba(X), together, rtol=1e-6)


@one_of_each(*NETWORK, *PREDICTION)
def test_prediction_leaves_the_module_alone(cls, make, data):
    clf = make(cls).fit(*data)
    before = {k: v.clone() for k, v in clf.module_.state_dict().items()}
    clf.predict(data[0])
    clf.score_adversarial(*data)
    for key, value in clf.module_.state_dict().items():
        assert torch.equal(value, before[key])
    assert not any(m.training for m in clf.module_.modules())
    assert all(p.requires_grad for p in clf.module_.parameters())


# --- bad input -----------------------------------------------------------------------


@one_of_each(*PREDICTION)
def test_not_fitted(cls, make, data):
    X, y = data
    clf = make(cls)
    for call in (
        lambda: clf.predict(X),
        lambda: clf.predict_proba(X),
        lambda: clf.decision_function(X),
        lambda: clf.score_adversarial(X, y),
        lambda: clf.score_adversarial(X, y, PGD(eps=0.1)),
        lambda: PGD(clf, eps=0.1).fit(X),
    ):
        with pytest.raises(NotFittedError, match=r"(?i)fit"):
            call()
    assert not hasattr(clf, "classes_")


@one_of_each(*DATA, *PREDICTION)
def test_bad_features(cls, make, data):
    X, y = data
    hole = X.copy()
    hole[3, 1] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        make(cls).fit(hole, y)
    with pytest.raises(ValueError, match="0 sample"):
        make(cls).fit(X[:0], y[:0])
    with pytest.raises(ValueError, match="0 sample"):
        make(cls).fit(Pairs(X[:0], y[:0]))
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        make(cls).fit(X, y[:-1])
    with pytest.raises(ValueError, match="requires y to be passed"):
        make(cls).fit(X)
    clf = make(cls).fit(X, y)
    with pytest.raises(ValueError, match="NaN"):
        clf.predict(hole)
    with pytest.raises(ValueError, match=r"3 features.*expecting 4"):
        clf.predict(X[:, :3])
    with pytest.raises(ValueError, match="0 sample"):
        clf.predict(X[:0])
    with pytest.raises(ValueError, match=r"3 features.*expecting 4"):
        clf.score_adversarial(X[:, :3], y)
    with pytest.raises(ValueError, match="NaN"):
        clf.score_adversarial(hole, y)


@one_of_each(*PREDICTION)
def test_empty_dataset_in_prediction(cls, make, data):
    clf = make(cls).fit(*data)
    with pytest.raises(ValueError, match="0 sample"):
        clf.predict(Unlabelled(data[0][:0]))


@one_of_each(*DATA)
@pytest.mark.parametrize("kind", ["too few", "too many"])
def test_dataset_and_labels_of_different_length(cls, make, data, kind):
    X, y = data
    X, y = (X, y[:-5]) if kind == "too few" else (X[:-5], y)
    with pytest.raises(ValueError, match=r"(?i)inconsistent|samples"):
        make(cls).fit(Unlabelled(X), y)


@one_of_each(*DATA, *PREDICTION)
def test_images_of_another_shape(cls, make, images):
    X, y = images
    clf = make(cls).fit(X, y)
    with pytest.raises(ValueError, match=r"\(1, 4, 4\).*\(1, 8, 8\)"):
        clf.predict(X[:, :, :4, :4])


@one_of_each(*DATA)
def test_bad_labels(cls, make, data):
    X, y = data
    with pytest.raises(ValueError, match=r"one-hot.*argmax"):
        make(cls).fit(X, np.eye(3)[y])
    with pytest.raises(ValueError, match="1 class"):
        make(cls).fit(X, np.zeros(len(X)))
    with pytest.raises(ValueError, match=r"(?i)unknown label type|continuous"):
        make(cls).fit(X, np.linspace(0, 1, len(X)))


@one_of_each(*DATA)
def test_channels_last_images(cls, make):
    X = np.random.default_rng(0).uniform(size=(12, 8, 8, 3)).astype(np.float32)
    with pytest.raises(ValueError, match=r"channels-last.*transpose"):
        make(cls, module=None).fit(X, np.arange(12) % 2)


@one_of_each(*DATA)
def test_bytes_with_a_small_eps_are_warned_about(cls, make):
    X = np.random.default_rng(0).integers(0, 256, (12, 1, 8, 8)).astype(np.uint8)
    with pytest.warns(UserWarning, match="255"):
        make(cls, adversary__eps=8 / 255).fit(X, np.arange(12) % 2)
