"""What users of skorch do with a net: before there are data, on a fitted one, with callbacks."""

import joblib
import numpy as np
import pytest
import scipy.special
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.model_selection import GroupKFold, cross_val_predict
from skorch.callbacks import Checkpoint, EarlyStopping, InputShapeSetter
from skorch.dataset import Dataset, ValidSplit
from skorch.exceptions import SkorchAttributeError
from skorch.history import History
from torch import nn

from robustsk import FGSM, PGDATClassifier, StandardClassifier
from robustsk.metrics import score_adversarial
from robustsk.training import AWP, WeightAveraging


class Plain(nn.Module):
    def __init__(self, n_hidden=3):
        super().__init__()
        self.first, self.last = nn.Linear(4, n_hidden), nn.Linear(n_hidden, 3)

    def forward(self, x):
        return self.last(self.first(x).relu())


@pytest.mark.parametrize("module", [Plain, Plain(7), lambda n_hidden: Plain(n_hidden)])
def test_a_network_that_needs_no_facts_is_built_before_data(make, data32, module, tmp_path):
    clf = make(StandardClassifier, module=module, module__n_hidden=5).initialize()
    assert clf.module_.first.out_features == 5
    other = make(StandardClassifier, module=module, module__n_hidden=5, random_state=1)
    other.fit(*data32).save_params(f_params=str(tmp_path / "weights.pt"))
    clf.load_params(f_params=str(tmp_path / "weights.pt"))
    assert_array_equal(clf.forward(data32[0]), other.forward(data32[0]))
    assert clf.partial_fit(*data32).score(*data32) > 0.3


def test_one_that_needs_them_says_so(make):
    for module in (nn.Linear, "mlp", None):
        with pytest.raises(ValueError, match="cannot build its network before it has seen data"):
            StandardClassifier(module).initialize()


class TwoParts(StandardClassifier):
    """A net with a module and a criterion of its own, as skorch's documentation shows."""

    def __init__(self, module=None, *, encoder=nn.Linear, own=nn.CrossEntropyLoss, **common):
        self.encoder = encoder
        self.own = own
        super().__init__(module, **common)

    def initialize_module(self):
        super().initialize_module()
        params = {"in_features": 4, "out_features": 4, **self.get_params_for("encoder")}
        self.encoder_ = self.encoder(**params)
        return self

    def initialize_criterion(self):
        super().initialize_criterion()
        self.own_ = self.own(**self.get_params_for("own"))
        return self


def test_parts_of_a_subclass_are_set_at_once(make, data32):
    clf = make(TwoParts).fit(*data32)
    assert clf.encoder_.bias is not None
    clf.set_params(encoder__bias=False, own__label_smoothing=0.5)
    assert clf.encoder_.bias is None
    assert clf.own_.label_smoothing == 0.5


def test_a_part_of_a_subclass_may_be_an_instance(make, data32):
    encoder = nn.Linear(4, 4)
    clf = make(TwoParts, encoder=encoder)
    assert clf.get_params()["encoder"] is encoder
    assert clone(clf).encoder is not encoder
    with pytest.raises(SkorchAttributeError, match="outside of an initialize method"):
        clf.another = encoder

    class Fixed(TwoParts):
        def initialize_module(self):
            StandardClassifier.initialize_module(self)
            self.encoder_ = self.encoder
            return self

    clf = make(Fixed, encoder=encoder).fit(*data32)
    assert clf.encoder_ is encoder
    assert "encoder" in clf._modules


@pytest.mark.parametrize(("use_caching", "calls"), [("auto", 3), (False, 4), (True, 3)])
def test_the_caching_of_scores_is_said_once_for_all(make, data, use_caching, calls):
    seen = []

    class Counting(StandardClassifier):
        def infer(self, x, **fit_params):
            seen.append(len(x))
            return super().infer(x, **fit_params)

    params = {"max_epochs": 1, "batch_size": 20, "train_split": ValidSplit(3)}
    make(Counting, use_caching=use_caching, **params).fit(*data)
    assert len(seen) == calls  # two to train, one to validate, and one to score that again


def test_parameters_of_skorch_are_taken_as_they_are(make, data, tmp_path, monkeypatch):
    clf = make(StandardClassifier)
    assert not {"use_caching", "torch_load_kwargs"} & clf.get_params().keys()
    clf = make(StandardClassifier, torch_load_kwargs={"weights_only": True, "mmap": True})
    clf.set_params(use_caching=False)
    assert clone(clf).get_params()["use_caching"] is False
    assert "use_caching=False" in repr(clf)
    clf.fit(*data).save_params(f_params=str(tmp_path / "weights.pt"))
    load, seen = torch.load, {}
    monkeypatch.setattr(torch, "load", lambda *a, **k: seen.update(k) or load(*a, **k))
    clf.load_params(f_params=str(tmp_path / "weights.pt"))
    assert seen["mmap"] is True
    with pytest.raises(TypeError, match="Did you mean 'use_caching'"):
        StandardClassifier(use_cachin=False)
    with pytest.raises(ValueError, match="use_caching must be 'auto', True or False, got 'often'"):
        make(StandardClassifier, use_caching="often").fit(*data)


def test_what_its_outputs_stand_for_is_told(data32):
    clf = StandardClassifier(Plain, device="cpu").initialize()
    with pytest.raises(AttributeError, match=r"call fit, or give it classes=\[...\]"):
        clf.score_adversarial(*data32)
    assert_array_equal(clf.predict(data32[0]), clf.forward(data32[0]).argmax(1))
    clf = StandardClassifier(Plain, device="cpu", classes=["a", "b", "c"]).initialize()
    assert set(clf.predict(data32[0])) <= {"a", "b", "c"}
    with pytest.raises(ValueError, match="`classes` names 0 classes"):
        StandardClassifier(Plain, classes=[]).fit(*data32)


def test_attributes_of_the_user_are_no_parameters(make, data):
    clf = make(StandardClassifier)
    before = clf.get_params()
    clf.note = "mine"
    clf.fit(*data)
    assert clf.note == "mine"
    assert clf.get_params().keys() == before.keys()
    assert not hasattr(clone(clf), "note")
    assert "note" not in repr(clf)
    with pytest.raises(ValueError, match="Invalid parameter 'note'"):
        clf.set_params(note="yours")
    clf.adversry__eps = 0.1
    with pytest.raises(TypeError, match="Did you mean 'adversary__eps'"):
        clf.fit(*data)


def test_epochs_of_one_call(make, data):
    clf = make(StandardClassifier, max_epochs=2)
    clf.partial_fit(*data, epochs=3).partial_fit(*data).partial_fit(*data, epochs=0)
    assert len(clf.history_) == 5
    assert clf.max_epochs == 2
    with pytest.raises(ValueError, match="epochs must be an integer"):
        clf.partial_fit(*data, epochs=1.5)


def test_groups_reach_the_split(make, data):
    X, y = data
    groups = np.arange(48) // 8
    seen = []

    def split(dataset, y=None, groups=None):
        seen.append(groups)
        return ValidSplit(GroupKFold(3))(dataset, y, groups)

    clf = make(StandardClassifier, train_split=split).fit(X, y, groups=groups)
    assert_array_equal(seen[-1], groups)
    weight = (groups != 2).astype(float)
    clf.partial_fit(X, y, sample_weight=weight, groups=groups)
    assert_array_equal(seen[-1], groups[groups != 2])
    with pytest.raises(TypeError, match=r"\['groups'\], which neither train_split takes"):
        make(StandardClassifier).fit(X, y, groups=groups)


class Scaled(Plain):
    def forward(self, x, scale=1.0):
        return scale * super().forward(x)


@pytest.mark.parametrize("cls", [StandardClassifier, PGDATClassifier])
def test_what_fit_is_given_reaches_the_forward_of_the_module(make, data32, cls):
    class Constant(Plain):
        def forward(self, x):
            return 3.0 * super().forward(x)

    X, y = data32
    groups = np.arange(48) // 8
    split = ValidSplit(GroupKFold(3))
    params = {"module__n_hidden": 5, "train_split": split}
    clf = make(cls, module=Scaled, **params).fit(X, y, groups=groups, scale=3.0)
    right = make(cls, module=Constant, **params).fit(X, y, groups=groups)
    assert (
        clf.history_[:, ("train_loss", "valid_loss")]
        == right.history_[:, ("train_loss", "valid_loss")]
    )
    # afterwards, the module has its own default again
    assert_allclose(3 * clf.forward(X).numpy(), right.forward(X).numpy(), rtol=1e-6)
    assert not clf.module_._forward_pre_hooks
    with pytest.raises(TypeError, match=r"\['scales'\], which neither"):
        clf.fit(X, y, groups=groups, scales=3.0)


def test_predictions_may_be_read_in_another_way(make, data):
    def read(logits):
        return torch.softmax(logits + torch.tensor([0.0, 0.0, 2.0]), dim=1)

    X, y = data
    names = np.array(["x", "y", "z"])[y]
    clf = make(StandardClassifier, predict_nonlinearity=read).fit(X, names)
    plain = make(StandardClassifier).fit(X, names)
    right = scipy.special.softmax(plain.forward(X).numpy() + np.array([0, 0, 2]), axis=1)
    assert_allclose(clf.predict_proba(X), right, rtol=1e-9)
    assert_allclose(clf.predict_log_proba(X), np.log(right), rtol=1e-9)
    assert_array_equal(clf.predict(X), clf.classes_[right.argmax(axis=1)])
    assert (clf.predict(X) != plain.predict(X)).any()
    # what is attacked is what predicts
    assert score_adversarial(clf, X, names, FGSM(eps=0)) == clf.score(X, names)
    clf.set_params(predict_nonlinearity=None)
    assert_allclose(clf.predict_proba(X), clf.forward(X).numpy())
    with pytest.raises(TypeError, match="predict_nonlinearity has to be"):
        clf.set_params(predict_nonlinearity=3).predict(X)


def test_records_may_be_kept_in_a_history_of_the_user(make, data):
    class Own(History):
        pass

    own = Own()
    clf = make(StandardClassifier, history=own).fit(*data)
    assert clf.history_ is own
    assert len(own) == clf.max_epochs
    assert "history" not in clf.get_params()
    assert type(clone(clf).fit(*data).history_) is History


def test_data_may_be_wrapped_in_a_dataset_of_the_user(make, data32):
    class Centred(Dataset):
        def __init__(self, X, y=None, shift=0.0):
            super().__init__(X - np.float32(shift), y)

    X, y = data32
    params = {"adversary__clip": None}  # of a Dataset there is one range, of an array one a column
    clf = make(PGDATClassifier, dataset=Centred, dataset__shift=2.0, **params).fit(X, y)
    right = make(PGDATClassifier, **params).fit(X - np.float32(2), y)
    assert_array_equal(clf.predict_proba(X), right.predict_proba(X - np.float32(2)))
    assert clone(clf).get_params()["dataset"] is Centred
    with pytest.raises(ValueError, match=r"dataset=.*cannot be attacked"):
        clf.score_adversarial(X, y)


def test_the_shape_of_the_data_is_told_to_callbacks(make, data32):
    X, y = data32
    setter = InputShapeSetter(param_name="in_features")
    params = {"module__in_features": 1, "callbacks": [setter], "random_state": 0}
    clf = StandardClassifier(nn.Linear, max_epochs=2, device="cpu", **params).fit(X, y)
    assert clf.module_.in_features == 4
    assert clf.predict(X).shape == y.shape


@pytest.mark.parametrize(
    "callback", [EarlyStopping(), Checkpoint(dirname="none", f_params=None)], ids=["stop", "save"]
)
def test_what_watches_held_out_data_names_the_split(make, data, callback):
    with pytest.raises(ValueError, match=r"valid_loss.*train_split=.*monitor='train_loss'"):
        make(StandardClassifier, callbacks=[callback]).fit(*data)


def test_other_missing_records_are_what_they_were(make, data):
    with pytest.raises(KeyError, match="nothing"):
        make(StandardClassifier, callbacks=[EarlyStopping(monitor="nothing")]).fit(*data)


def test_an_average_leaves_the_parameter_as_it_was(make, data):
    clf = make(PGDATClassifier, callbacks=[("mean", WeightAveraging(decay=0.9))])
    before = joblib.hash(clf.get_params()["callbacks"])
    clf.fit(*data).partial_fit(*data)
    assert joblib.hash(clf.get_params()["callbacks"]) == before
    assert dict(clf.callbacks_)["mean"].n_averaged_ == 12


def test_logarithms_of_probabilities(make, data):
    X, y = data
    clf = make(StandardClassifier).fit(X, y)
    assert_allclose(clf.predict_log_proba(X), np.log(clf.predict_proba(X)), atol=1e-12)
    with torch.no_grad():
        for p in clf.module_.parameters():
            p.mul_(1000)
    found = clf.predict_log_proba(X)
    assert np.isfinite(found).all()
    assert found.min() < -750  # the probability itself is zero
    logs = cross_val_predict(make(StandardClassifier), X, y, cv=3, method="predict_log_proba")
    assert_allclose(np.exp(logs).sum(axis=1), 1)


class OwnModule(StandardClassifier):
    def infer(self, x, **fit_params):
        return self.module_(x)


class OwnTensor(StandardClassifier):
    def infer(self, x, **fit_params):
        return super().infer(x.float(), **fit_params)


@pytest.mark.parametrize("cls", [OwnModule, OwnTensor])
@pytest.mark.parametrize("perturbation", [None, AWP(gamma=0.01)])
def test_an_own_infer_is_told_what_it_must_pass_on(make, data32, cls, perturbation):
    match = f"infer of {cls.__name__} .* as it is to super\\(\\).infer; .*forward of the module"
    with pytest.raises(TypeError, match=match):
        make(cls, weight_perturbation=perturbation).fit(*data32)


def test_other_mistakes_are_not_blamed_on_infer(make, data32):
    class Mistaken(StandardClassifier):
        def infer(self, x, **fit_params):
            return super().infer(x, **fit_params)

        def training_loss(self, x, x_adv, y):
            return self.nothing_of_the_kind

    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        make(Mistaken).fit(*data32)
