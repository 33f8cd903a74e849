"""What `fit` and `predict` take: Datasets, sparse and foreign arrays, networks of any state."""

import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import skorch
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from skorch.helper import SliceDataset, SliceDict, predefined_split
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from robustsk import (
    EOT,
    PGD,
    DeepFool,
    PGDATClassifier,
    StandardClassifier,
    _containers,
    class_pair_gradients,
    robustness_report,
    score_adversarial,
)
from robustsk.models import MLP
from robustsk.training import AdversarialScoring, RobustEarlyStopping


def as_dataset(data):
    return TensorDataset(*(torch.from_numpy(a) for a in data))


# --- Datasets ------------------------------------------------------------------------------


def test_a_dataset_is_scored_by_its_own_labels(make, data32):
    D = as_dataset(data32)
    clf = make(StandardClassifier).fit(D)
    assert clf.score(D) == clf.score(*data32) == clf.score_adversarial(D, attack=PGD(eps=0))
    weight = np.arange(len(D))
    right = weight[clf.predict(D) == data32[1]].sum() / weight.sum()
    assert_allclose(clf.score(D, sample_weight=weight), right)


def test_slices_of_a_dataset_go_through_a_search(make, data32):
    X, y = data32
    D = as_dataset(data32)
    search = GridSearchCV(make(PGDATClassifier), {"lr": [0.1, 0.01]}, cv=2, error_score="raise")
    found = search.fit(SliceDataset(D), y).cv_results_["mean_test_score"]
    assert_array_equal(found, search.fit(X, y).cv_results_["mean_test_score"])
    labels = SliceDataset(D, idx=1)
    assert_array_equal(search.best_estimator_.fit(SliceDataset(D), labels).classes_, [0, 1, 2])
    attack = PGD(search, eps=0.1, random_state=0)
    assert_array_equal(attack.generate(SliceDataset(D), y), attack.generate(X, y))


class Stream(IterableDataset):
    def __iter__(self):
        yield torch.zeros(4), 0


class Dicts(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, i):
        return {"x": torch.zeros(4), "y": i % 2}


class Several(Dataset):
    def __init__(self, x):
        self.x = x

    def __len__(self):
        return 4

    def __getitem__(self, i):
        return self.x, i % 2


@pytest.mark.parametrize("y", [None, [0, 1, 0, 1]], ids=["own labels", "labels"])
@pytest.mark.parametrize(
    ("wrong", "cure"),
    [
        (DataLoader(Dicts()), r"loader\.dataset"),
        (Stream(), "IterableDataset has neither.*TensorDataset"),
        (Dicts(), r"dicts \(\['x', 'y'\]\).*pair"),
        (SliceDict(a=np.zeros((4, 2)), b=np.zeros((4, 2))), "one input array"),
        ({"a": np.zeros((4, 2))}, "one input array"),
        (Several((torch.zeros(2), torch.ones(2))), "have 2 inputs, .* one input array"),
        (Several({"a": torch.zeros(2), "b": torch.ones(2)}), "have 2 inputs, .* one input array"),
        (TensorDataset(*torch.zeros(2, 4, 3), torch.tensor([0, 1, 0, 1])), "have 2 inputs, .*"),
    ],
    ids=["loader", "stream", "dict items", "SliceDict", "dict", "tuples", "dicts", "tensors"],
)
def test_what_cannot_be_read_says_what_can(make, wrong, cure, y):
    labels = [0, 1, 0, 1] if y is None and isinstance(wrong, dict) else y
    with pytest.raises(TypeError, match=cure):
        make(StandardClassifier).fit(wrong, labels)
    with pytest.raises(TypeError, match=cure):
        PGD(nn.Linear(4, 2), eps=0.1, clip=None).generate(wrong, labels)


@pytest.mark.parametrize("y", [None, [0, 1, 0, 1]], ids=["own labels", "labels"])
def test_a_loader_is_not_scored(make, data32, y):
    clf = make(StandardClassifier).fit(*data32)
    loader = DataLoader(as_dataset([a[:4] for a in data32]), batch_size=2)
    for ask in (
        lambda: score_adversarial(clf, loader, y, PGD(eps=0.1)),
        lambda: clf.score_adversarial(loader, y),
        lambda: clf.score(loader, y),
        lambda: class_pair_gradients(clf, loader, y),
        lambda: robustness_report(clf, loader, y),
    ):
        with pytest.raises(TypeError, match=r"X is a DataLoader, .* pass loader\.dataset"):
            ask()


def test_labels_cannot_be_left_out_of_arrays(make, data32):
    clf = make(StandardClassifier).fit(*data32)
    for ask in (score_adversarial, class_pair_gradients, robustness_report):
        with pytest.raises(ValueError, match="y is None: pass the true labels"):
            ask(clf, data32[0], None, *[PGD(eps=0.1)] * (ask is score_adversarial))


@pytest.mark.parametrize("kind", [tuple, list])
@pytest.mark.parametrize("as_array", [np.asarray, torch.as_tensor, pd.DataFrame])
def test_several_arrays_are_several_inputs(make, data32, kind, as_array):
    """And not two samples, of which there would be more labels."""
    X, y = data32
    clf = make(StandardClassifier).fit(X, y)
    for cut in (1, 2):
        parts = kind([as_array(X[:, :cut]), as_array(X[:, cut:])])
        for ask in (
            lambda parts=parts: make(StandardClassifier).fit(parts, y),
            lambda parts=parts: clf.score_adversarial(parts, y),
            lambda parts=parts: class_pair_gradients(clf, parts, y),
            lambda parts=parts: robustness_report(clf, parts, y),
        ):
            with pytest.raises(TypeError, match=r"2 arrays, of shapes .* one input array"):
                ask()
    with pytest.raises(TypeError, match="one input array"):
        clf.predict(kind([as_array(X[:, :1]), as_array(X[:, 1:])]))


def test_samples_in_a_list_are_samples(make, data32):
    X, y = data32
    rows = [row.reshape(2, -1) for row in X[:6]]
    clf = make(StandardClassifier).fit(rows, y[:6])
    assert clf.predict(rows).shape == (6,)
    # where there are as many samples as a sample has rows
    clf = make(StandardClassifier).fit(rows[:2], [0, 1])
    assert clf.predict(rows[:2]).shape == (2,)


def test_what_items_hold_besides_is_not_dropped_in_silence(make, data32):
    """Which may be weights, or groups."""
    X, y = data32
    weighted = TensorDataset(torch.from_numpy(X), torch.from_numpy(y), torch.arange(len(y)))
    clf = make(StandardClassifier)
    for ask in (clf.fit, clf.fit(X, y).predict_proba, clf.score):
        with pytest.raises(
            ValueError, match=r"have 3 values: .*weights are given as sample_weight"
        ):
            ask(weighted)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8])
def test_rows_of_a_dataset_have_a_range_per_feature(make, data32, dtype):
    X, y = data32
    X = ((X - X.min(0)) * [1, 10, 20, 5]).astype(dtype)
    dataset = TensorDataset(torch.from_numpy(X), torch.from_numpy(y))
    clf = make(PGDATClassifier, max_epochs=1).partial_fit(dataset)
    assert_array_equal(clf.clip_bounds_, [X.min(0), X.max(0)])
    clf.partial_fit(TensorDataset(torch.from_numpy(X[:2] + X.dtype.type(3)), torch.tensor([0, 1])))
    assert_array_equal(clf.clip_bounds_[1], np.maximum(X.max(0), X[:2].max(0) + 3))


def test_images_of_a_dataset_have_one_range(make, images):
    X, y = images
    dataset = TensorDataset(torch.from_numpy(X), torch.from_numpy(y))
    clf = make(StandardClassifier, module=None, max_epochs=1).fit(dataset)
    assert_array_equal(clf.clip_bounds_, [X.min(), X.max()])


@pytest.mark.parametrize(
    ("scale", "adversary", "expected"),
    [
        (1, PGD(), None),
        (255, PGD(), "by no more than 1/8"),
        (255, PGD(eps=8), None),
        (1, PGD(eps=8), "reaches 100% of the way"),
        (1, PGD(eps=0.6), "reaches 60% of the way"),
        (1, PGD(eps=0.6, norm=2), None),
        (1, EOT(attack=PGD(eps=0.6), n_draws=1), "reaches 60% of the way"),
        (1, EOT(attack=PGD(), eps=0.6, n_draws=1), "reaches 60% of the way"),
        (255, EOT(attack=PGD(clip=(0, 255)), n_draws=1), "by no more than 1/8"),
        (255, PGD(clip=None), None),
        (255, PGD(clip=(0, 1e4), eps=8), "by no more than 1/1250"),
        (1, PGD(eps=0.6, mask=[False] * 4), None),
        (1, DeepFool(eps=8, n_steps=1), None),
        (1, PGD(eps=np.array([8, 0.1, 0.1, 0.1])), None),
    ],
)
@pytest.mark.parametrize("is_dataset", [False, True], ids=["array", "dataset"])
def test_a_radius_in_other_units_is_told(make, scale, adversary, expected, is_dataset):
    X = scale * np.random.default_rng(0).permuted(np.tile(np.linspace(0, 1, 9), (4, 1)), axis=1).T
    y = np.arange(9) % 2
    clf = make(PGDATClassifier, adversary=adversary, max_epochs=1)
    data = (TensorDataset(torch.from_numpy(X), torch.from_numpy(y)),) if is_dataset else (X, y)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        clf.fit(*data)
        fit = len(told)
        clf.partial_fit(*data)  # says it once
    assert fit == len(told) == (expected is not None)
    if expected is not None:
        assert expected in str(told[0].message)
        assert told[0].filename == __file__


def test_bytes_are_told_of_in_their_own_words(make):
    X = np.random.default_rng(0).integers(0, 256, (9, 4)).astype(np.uint8)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        make(PGDATClassifier, adversary=EOT(attack=PGD(), n_draws=1)).fit(X, np.arange(9) % 2)
    assert ["holds bytes" in str(warning.message) for warning in told] == [True]
    assert told[0].filename == __file__


@pytest.mark.parametrize(
    "y",
    [np.eye(3)[[0, 1] * 5] + 1, np.zeros((10, 2, 2), int), np.ones((10, 3), int)],
    ids=["targets", "maps", "multilabel"],
)
def test_several_labels_are_refused_in_a_sentence(make, y):
    with pytest.raises(ValueError, match="Multilabel and multi-output targets are not supported"):
        make(StandardClassifier).fit(np.zeros((10, 4)), y)


@pytest.mark.parametrize("kind", ["skorch", "torch"])
def test_a_fixed_validation_set_comes_as_the_user_has_it(make, data, kind):
    X, y = data
    labels = np.array(["x", "y", "z"])[y] if kind == "skorch" else y + 5
    held = (X[:15], labels[:15])
    valid = skorch.dataset.Dataset(*held) if kind == "skorch" else as_dataset(held)
    attack = PGD(eps=0.3, n_steps=2, random_state=0)
    stop = RobustEarlyStopping(attack, name="kept")
    watch = [
        AdversarialScoring(attack),
        AdversarialScoring(attack, data=(X[15:], labels[15:])),
        AdversarialScoring(attack, data=as_dataset(data), name="all") if kind == "torch" else None,
    ]
    if kind == "torch":
        watch[2].data = as_dataset((X, labels))
    callbacks = [*[w for w in watch if w is not None], stop]
    clf = make(
        PGDATClassifier, train_split=predefined_split(valid), callbacks=callbacks, max_epochs=3,
        lr=0.05,
    ).fit(X, labels)  # fmt: skip
    assert len(clf.history_) == 3
    best = max(clf.history_[:, "valid_robust_acc"])
    assert_array_equal(clf.history_[:, "kept"], clf.history_[:, "valid_robust_acc"])
    assert_allclose(clf.score_adversarial(*held, attack), best)
    if stop.best_epoch_ == 3:
        assert_allclose(clf.history_[-1]["valid_acc"], clf.score(*held))
        other = clf.score_adversarial(X[15:], labels[15:], attack)
        assert_allclose(clf.history_[-1]["test_robust_acc"], other)
    if kind == "torch":
        parts = clf.history_[:, ("valid_robust_acc", "test_robust_acc", "all")]
        assert_allclose([(15 * v + 33 * t) / 48 for v, t, _ in parts], [a for *_, a in parts])


def test_predictions_come_in_the_order_of_the_samples(make, data):
    X, y = data
    plain = make(StandardClassifier).fit(X, y)
    sampler = torch.utils.data.RandomSampler(range(48))
    for given in (
        {"shuffle": True, "drop_last": True, "batch_size": 7},
        {"sampler": sampler},
        {"batch_sampler": torch.utils.data.BatchSampler(sampler, 5, True), "batch_size": 1},
    ):
        params = {f"iterator_valid__{k}": v for k, v in given.items()}
        clf = make(StandardClassifier, **params).fit(X, y)
        assert_allclose(clf.predict_proba(X), plain.predict_proba(X), atol=1e-12)
        assert clf.score_adversarial(X, y, PGD(eps=0)) == plain.score(X, y)


# --- arrays --------------------------------------------------------------------------------


@pytest.mark.parametrize("container", ["csr_matrix", "csc_array", "coo_matrix", "dok_array"])
def test_sparse_data_are_as_dense_ones(make, data, container):
    X, y = data
    X = np.where(X > 0, X, 0)
    right = make(PGDATClassifier).fit(X, y)
    S = getattr(sp, container)(X)
    clf = make(PGDATClassifier).fit(S, y)
    assert_array_equal(clf.predict_proba(S), right.predict_proba(X))
    assert clf.score(S, y) == right.score(X, y)


def test_text_goes_through_a_pipeline(make):
    texts, y = ["good film", "bad film"] * 10, [1, 0] * 10
    model = make_pipeline(TfidfVectorizer(), make(StandardClassifier, max_epochs=20, lr=0.1))
    assert model.fit(texts, y).score(texts, y) == 1


def test_sparse_data_that_would_not_fit_into_memory(make, monkeypatch):
    X = sp.csr_matrix((10, 10**6))
    monkeypatch.setattr(_containers, "_memory", lambda: 10**8)
    with pytest.raises(ValueError, match=r"X is sparse and would take 0\.1 GiB"):
        make(StandardClassifier).fit(X, [0, 1] * 5)


@pytest.mark.dealt
@pytest.mark.parametrize("dtype", [">f8", ">f4", "longdouble", "float16", "uint16", ">i4"])
def test_numbers_of_any_make(make, data, dtype):
    X, y = data
    X = np.round(10 * X).astype(dtype)
    here = X.astype(np.float32 if X.dtype.itemsize == 4 and X.dtype.kind == "f" else np.float64)
    right = make(PGDATClassifier).fit(here, y)
    clf = make(PGDATClassifier).fit(X, y.astype(">i8"))
    assert_allclose(clf.predict_proba(X), right.predict_proba(here), atol=1e-5)
    assert clf.score_adversarial(X, y) == right.score_adversarial(here, y)


def test_tensors_in_half_the_precision(make, data):
    X, y = data
    t = torch.from_numpy(X).bfloat16()
    here = t.float().numpy()
    right = make(PGDATClassifier).fit(here, y)
    clf = make(PGDATClassifier).fit(t, y)
    assert_array_equal(clf.predict_proba(t), right.predict_proba(here))
    attack = PGD(clf, eps=0.1, random_state=0)
    assert_array_equal(attack.generate(t, y).numpy(), attack.generate(here, y))
    D = TensorDataset(t, torch.from_numpy(y))
    assert_array_equal(attack.generate(D, y), attack.generate(here, y))
    assert make(PGDATClassifier).fit(D).score(D) == right.score(here, y)


# --- networks ------------------------------------------------------------------------------


class Counted(nn.Module):
    """Its first parameter is not what it computes in."""

    def __init__(self):
        super().__init__()
        self.steps = nn.Parameter(torch.arange(3), requires_grad=False)
        self.net = nn.Linear(4, 3)

    def forward(self, x):
        return self.net(x)


def test_the_precision_is_that_of_floats(make, data):
    X, y = data
    torch.manual_seed(0)
    module = Counted()
    clf = make(PGDATClassifier, module=module).fit(X, y)
    right = make(PGDATClassifier, module=module.net).fit(X.astype(np.float32), y)
    assert clf.module_.net.weight.dtype == torch.float32
    assert_allclose(clf.predict_proba(X), right.predict_proba(X.astype(np.float32)), atol=1e-5)


def network(kind):
    torch.manual_seed(0)
    layer = {
        "weight norm": lambda: weight_norm(nn.Linear(64, 3)),
        "spectral norm": lambda: spectral_norm(nn.Linear(64, 3)),
        "parametrized": lambda: parametrizations.weight_norm(nn.Linear(64, 3)),
        "pruned": lambda: prune.l1_unstructured(nn.Linear(64, 3), "weight", 0.5),
        "lazy": lambda: nn.LazyLinear(3),
    }[kind]()
    return nn.Sequential(nn.Flatten(), layer)


@pytest.mark.dealt
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", ["weight norm", "spectral norm", "parametrized", "pruned", "lazy"])
def test_a_network_of_any_state_is_copied_and_trained(make, images, kind):
    X, y = images
    given = network(kind)
    clf = make(PGDATClassifier, module=given, lr=0.05, max_epochs=20).fit(X, y)
    assert clf.score(X, y) > 0.9
    assert clf.score_adversarial(X, y, PGD(eps=0.01)) > 0.5
    if kind == "lazy":
        assert isinstance(given[1], nn.LazyLinear)
        return
    assert clf.module_[1] is not given[1]
    with torch.no_grad():
        before = given(torch.from_numpy(X))
        network_again = network(kind)(torch.from_numpy(X))
    if kind != "spectral norm":  # its buffers move with every forward pass
        assert_allclose(before, network_again)
    if kind == "pruned":
        assert (clf.module_[1].weight == 0).float().mean() == 0.5
    if kind != "parametrized":  # which torch does not pickle
        again = pickle.loads(pickle.dumps(clf))
        assert_allclose(again.predict_proba(X), clf.predict_proba(X))


class Uncopied(nn.Linear):
    def __deepcopy__(self, memo):
        raise RuntimeError("not me")


def test_what_cannot_be_copied_is_to_be_built(make, data32):
    with pytest.raises(TypeError, match=r"Uncopied cannot be copied.*a function that builds it"):
        make(StandardClassifier, module=Uncopied(4, 3)).fit(*data32)
    clf = make(StandardClassifier, module=lambda: Uncopied(4, 3)).fit(*data32)
    assert clf.predict(data32[0]).shape == (48,)


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.out = nn.Embedding(20, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.out(self.table(x).mean(1))


@pytest.mark.parametrize("cls", [StandardClassifier, PGDATClassifier])
def test_an_embedding_of_the_input_is_refused_in_a_sentence(make, cls):
    X = np.random.default_rng(0).integers(0, 20, (30, 5))
    with pytest.raises(TypeError, match=r"embedding.* cast to floats.*embed the data first"):
        make(cls, module=Words).fit(X, np.arange(30) % 2)


@pytest.mark.parametrize("shape", [(50, 3), (30, 1), (3, 40)])
def test_a_series_of_few_channels_has_a_default_network(shape):
    X = np.random.default_rng(0).normal(size=(40, *shape)).astype(np.float32)
    y = (X.mean(axis=(1, 2)) > 0).astype(int)
    clf = StandardClassifier(max_epochs=30, random_state=0, device="cpu").fit(X, y)
    assert isinstance(clf.module_, MLP)
    assert clf.score(X, y) > 0.9


def test_each_channel_of_a_series_has_its_range_in_training(make):
    rng = np.random.default_rng(0)
    X = np.stack([rng.random((40, 12)), 1000 + 100 * rng.random((40, 12))], 2).astype(np.float32)
    y = (X[:, :, 0].mean(1) > 0.5).astype(int)
    eps = np.array([0.4, 40.0])
    clf = make(PGDATClassifier, adversary=PGD(eps=eps, n_steps=2)).fit(X, y)
    low, high = clf.clip_bounds_
    assert_allclose(low, X.min(axis=(0, 1), keepdims=True)[0])
    assert_allclose(high, X.max(axis=(0, 1), keepdims=True)[0])
    attack = PGD(clf, eps=eps, random_state=0).fit(X)
    assert_array_equal(attack.clip_bounds_[0], low)
    X_adv = attack.generate(X, y)
    assert np.all((low <= X_adv) & (X_adv <= high))
    # one learned range would let the small channel reach the values of the large one
    assert X_adv[:, :, 0].max() <= 1
    report = robustness_report(
        clf, X, y, norm=np.inf, eps=0.1, attacks={"PGD": PGD(n_steps=2)}, red_flags=False
    )
    assert report.rows["clean"].accuracy == clf.score(X, y)
    clf.partial_fit(X + np.array([1.0, 0.0], dtype=np.float32), y)
    assert_allclose(clf.clip_bounds_[1][0], high[0] + [1.0, 0.0])


@pytest.mark.parametrize(
    ("shape", "input_shape"),
    [((40, 3, 8, 8), None), ((40, 8, 8), None), ((40, 8, 8), (1, 8, 8)), ((40, 64), (1, 8, 8))],
    ids=["images", "grey images", "grey images with a channel", "flat images"],
)
def test_all_pixels_have_one_range(make, shape, input_shape):
    X = np.random.default_rng(0).random(shape).astype(np.float32)
    if input_shape is not None:  # who says that they are images need not prove it
        X.reshape(40, 8, 8)[:, :, 2:] = 0
    clf = make(PGDATClassifier, input_shape=input_shape, max_epochs=1).fit(X, np.arange(40) % 2)
    assert clf.clip_bounds_ == (X.min(), X.max())


def test_compiled_weights_load_plain_and_back(make, data, tmp_path):
    X, y = data
    options = {"compile": True, "compile__backend": "eager"}
    compiled = make(StandardClassifier, **options).fit(X, y)
    plain = make(StandardClassifier, max_epochs=1).fit(X, y)
    for i, (source, target) in enumerate([(compiled, plain), (plain.fit(X, y), compiled)]):
        path = str(tmp_path / f"{i}.pt")
        source.save_params(f_params=path)
        assert not any("_orig_mod" in name for name in torch.load(path))
        target.load_params(f_params=path)
        assert_array_equal(target.predict_proba(X), source.predict_proba(X))
    assert hasattr(compiled.module_, "_orig_mod")


# --- data frames ---------------------------------------------------------------------------


def test_polars_in_polars_out(make, data32):
    pl = pytest.importorskip("polars")
    X, y = data32
    D = pl.DataFrame({c: X[:, i] for i, c in enumerate("abcd")})
    clf = make(PGDATClassifier).fit(D, pl.Series(y))
    right = make(PGDATClassifier).fit(X, y)
    assert clf.score_adversarial(D, y) == right.score_adversarial(X, y)
    attack = PGD(clf, eps=0.1, random_state=0)
    found = attack.generate(D, y)
    assert isinstance(found, pl.DataFrame)
    assert found.columns == ["a", "b", "c", "d"]
    assert_allclose(found.to_numpy(), attack.generate(X, y), atol=1e-6)
    both, labels = attack.fit_resample(D, pl.Series(y))
    assert isinstance(both, pl.DataFrame)
    assert isinstance(labels, pl.Series)
    assert (len(both), len(labels)) == (96, 96)
    assert score_adversarial(clf, D, y, PGD(eps=0)) == clf.score(D, y)
