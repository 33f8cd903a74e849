"""Parameters, cloning, searching, saving and the company of other estimators."""

import copy
import inspect
import pickle

import joblib
import numpy as np
import pytest
import torch
from defense_paths import (
    CALLBACKS,
    DATA,
    NETWORK,
    PARAMETERS,
    PREDICTION,
    SAVING,
    TRAINING,
    one_of_each,
    own_parameters,
    suitable,
)
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import VotingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import check_is_fitted
from skorch.callbacks import (
    Checkpoint,
    EarlyStopping,
    EpochScoring,
    GradientNormClipping,
    LoadInitState,
    LRScheduler,
    TrainEndCheckpoint,
)
from skorch.dataset import ValidSplit

from robustsk import EOT, PGD, StandardClassifier, make_adversarial_scorer

NAMES = np.array(["ant", "bee", "cat"])


def a_number_to_search(cls):
    """Return the name of an own hyperparameter that is a number, and two values for it."""
    for kind in (float, int):
        for name, default in own_parameters(cls).items():
            if type(default) is kind:
                other = default + 1 if kind is int else default / 2 or 0.1  # some are shares
                return name, [default, other]
    return None


def weights(clf):
    return {k: v.clone() for k, v in clf.module_.state_dict().items()}


def same_weights(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


# --- get, set, clone -----------------------------------------------------------------


def test_parameters_are_keyword_only_but_the_module(cls):
    parameters = list(inspect.signature(cls.__init__).parameters.values())
    assert [p.name for p in parameters[:2]] == ["self", "module"]
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters[2:-1])
    assert parameters[-1].kind is inspect.Parameter.VAR_KEYWORD
    with pytest.raises(TypeError):
        cls("mlp", PGD())


def test_constructor_stores_what_it_is_given(cls, adversary):
    module = torch.nn.Linear(4, 3)
    given = {
        "module": module,
        "adversary": adversary,
        "lr": 0.25,
        "callbacks": [],
        "classes": [1, 2],
    }
    clf = cls(**given)
    for name, value in given.items():
        assert getattr(clf, name) is value
        assert clf.get_params(deep=False)[name] is value
    defaults = inspect.signature(cls.__init__).parameters
    for name, value in cls().get_params(deep=False).items():
        assert value is defaults[name].default


@one_of_each(*PARAMETERS, *NETWORK)
def test_clone(cls, make, data, adversary):
    clf = make(cls, adversary=adversary, adversary__eps=0.2, lr=0.03).fit(*data)
    assert clf.adversary is adversary
    copied = clone(clf)
    assert not copied.initialized_
    assert not hasattr(copied, "classes_")
    with pytest.raises(Exception, match=r"(?i)not.*(fitted|initialized)"):
        check_is_fitted(copied)
    assert copied.adversary is not adversary
    first, second = clf.get_params(), copied.get_params()
    assert first.keys() == second.keys()
    for name in (n for n in first if n != "adversary" and not n.startswith("callbacks")):
        assert first[name] is second[name] or first[name] == second[name], name
    assert second["adversary__eps"] == 0.2
    assert same_weights(weights(copied.fit(*data)), weights(clf))


def test_get_params_reaches_the_adversary(cls, adversary):
    for clf in (cls(), cls(adversary=adversary)):
        deep, flat = clf.get_params(), clf.get_params(deep=False)
        used = clf.default_adversary() if clf.adversary is None else adversary
        assert set(used.get_params()) <= {k[11:] for k in deep if k.startswith("adversary__")}
        assert not any("__" in name for name in flat)
    assert cls(adversary=adversary).get_params()["adversary__eps"] == 0.3
    assert cls(adversary__eps=0.7).get_params()["adversary__eps"] == 0.7
    assert cls(adversary__eps=0.7).get_params(deep=False)["adversary__eps"] == 0.7
    assert cls(adversary=adversary, adversary__eps=0.7).get_params()["adversary__eps"] == 0.7


@one_of_each(*PARAMETERS, *PREDICTION, "default_adversary")
def test_nested_parameters_of_the_default_adversary(cls, make, data):
    clf = make(cls, adversary__eps=0.123).fit(*data)
    assert clf.adversary is None
    assert clf.adversary_.eps == 0.123
    assert clf.adversary_.n_steps == 2
    assert cls().set_params(adversary__eps=0.4).default_attack().eps == 0.4
    assert clone(cls(adversary__eps=0.4)).default_attack().eps == 0.4
    # what is not given stays as the defence has it
    plain = cls(max_epochs=1).fit(*data).adversary_
    assert plain.random_start == clf.adversary_.random_start
    assert plain.n_steps == cls().default_adversary().n_steps
    assert plain.eps == cls().default_adversary().eps


@one_of_each(*PARAMETERS, *DATA)
def test_nested_parameters_of_a_given_adversary(cls, make, data, adversary):
    clf = make(cls, adversary=adversary, adversary__eps=0.05).fit(*data)
    assert clf.adversary_.eps == 0.05
    assert clf.adversary_.n_steps == 2
    # the user's object is used by nobody else
    assert adversary.eps == 0.3
    assert clf.adversary is adversary
    assert clf.adversary_ is not adversary
    assert not hasattr(adversary, "estimator_")
    clf.set_params(adversary__eps=0.6)
    assert clf.get_params()["adversary__eps"] == 0.6
    assert clf.fit(*data).adversary_.eps == 0.6
    fresh = make(cls, adversary=adversary).set_params(adversary__eps=0.9)
    assert fresh.get_params()["adversary__eps"] == 0.9
    assert clone(fresh).fit(*data).adversary_.eps == 0.9


def test_a_new_adversary_forgets_the_parameters_of_the_old_one(cls, adversary):
    clf = cls(adversary__eps=0.7).set_params(adversary=adversary)
    assert clf.get_params()["adversary__eps"] == 0.3
    both = cls(adversary__eps=0.7).set_params(adversary=PGD(), adversary__eps=0.4)
    assert both.default_attack().eps == 0.4
    back = both.set_params(adversary=None)
    assert back.default_attack().eps == cls().default_attack().eps


@one_of_each(*PARAMETERS, *DATA, *PREDICTION)
def test_set_params_of_the_adversary_acts_on_what_follows(cls, make, data):
    clf = make(cls).fit(*data)
    clf.set_params(adversary__eps=0.45)
    clf.partial_fit(*data)
    assert clf.adversary_.eps == 0.45
    assert clf.default_attack().eps == 0.45
    clf.set_params(adversary=suitable(cls, eps=0.02, n_steps=1), warm_start=True).fit(*data)
    assert clf.adversary_.eps == 0.02


def test_set_params_of_own_hyperparameters(cls, make, data):
    clf = make(cls)
    for fitted in (False, True):
        for name in own_parameters(cls):
            value = getattr(clf, name)
            assert clf.set_params(**{name: value}).get_params()[name] == value
        if not fitted:
            clf.fit(*data)


@one_of_each(*PARAMETERS, *NETWORK)
def test_set_params_on_a_fitted_estimator(cls, make, data):
    X, y = data
    clf = make(cls).fit(X, y)
    before = clf.predict_proba(X)
    clf.set_params(lr=0.0123, optimizer__weight_decay=0.5)
    group = clf.optimizer_.param_groups[0]
    assert group["lr"] == 0.0123
    assert group["weight_decay"] == 0.5
    clf.set_params(batch_size=7, max_epochs=3, verbose=0, adversary__eps=0.2)
    assert_array_equal(clf.predict(X), before.argmax(1))
    clf.set_params(module__hidden_sizes=(5,))
    shapes = {p.shape for p in clf.module_.parameters()}
    assert torch.Size([5, 4]) in shapes
    assert torch.Size([8, 4]) not in shapes
    assert not np.allclose(clf.predict_proba(X), before)
    clf.set_params(criterion__label_smoothing=0.1)
    assert clf.criterion_.label_smoothing == 0.1
    assert clf.criterion_.reduction == "mean"  # as it is by default
    assert clf.partial_fit(X, y).predict(X).shape == y.shape


@one_of_each(*PARAMETERS, *NETWORK)
def test_set_params_on_an_unfitted_estimator(cls, make, data):
    clf = make(cls).set_params(lr=0.0123, module__hidden_sizes=(5,), optimizer=torch.optim.SGD)
    assert not clf.initialized_
    clf.fit(*data)
    assert isinstance(clf.optimizer_, torch.optim.SGD)
    assert clf.optimizer_.param_groups[0]["lr"] == 0.0123
    assert torch.Size([5, 4]) in {p.shape for p in clf.module_.parameters()}


def test_criterion_parameters(cls, make, data):
    """They act; a defence that cannot heed them has to say so instead of ignoring them."""
    plain = make(cls).fit(*data)
    try:
        clf = make(cls, criterion__label_smoothing=0.2).fit(*data)
    except (TypeError, ValueError) as error:
        if "criterion" not in str(error):
            raise
        return
    assert clf.criterion_.label_smoothing == 0.2
    assert not same_weights(weights(clf), weights(plain))


@one_of_each(*PARAMETERS)
@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("max_epoch", "max_epochs"),
        ("adversry__eps", "adversary__eps"),
        ("batchsize", "batch_size"),
        ("zzz", None),
        ("zzz__eps", None),
    ],
)
def test_unknown_keyword(cls, make, data, name, hint):
    with pytest.raises(TypeError, match=f"'{name}'") as caught:
        make(cls, **{name: 1}).fit(*data)
    if hint:
        assert f"Did you mean '{hint}'" in str(caught.value)
    for clf in (make(cls), make(cls).fit(*data)):
        with pytest.raises(ValueError, match=f"'{name.partition('__')[0]}"):
            clf.set_params(**{name: 1})


@one_of_each(*PARAMETERS)
def test_unknown_nested_parameter(cls, make, data, adversary):
    for given in (None, adversary):
        with pytest.raises(ValueError, match="'epsilon'"):
            make(cls, adversary=given, adversary__epsilon=1).fit(*data)
        with pytest.raises(ValueError, match="'epsilon'"):
            make(cls, adversary=given).set_params(adversary__epsilon=1)
    with pytest.raises(TypeError, match="hidden"):
        make(cls, module="mlp", module__hidden=3).fit(*data)
    with pytest.raises(TypeError, match="momentumm"):
        make(cls, optimizer__momentumm=3).fit(*data)


@one_of_each(*PARAMETERS)
@pytest.mark.parametrize("value", [PGD, "pgd", 0.3])
def test_adversary_that_is_none(cls, make, data, value):
    with pytest.raises(TypeError, match="adversary must be an attack"):
        make(cls, adversary=value).fit(*data)


def test_repr(cls):
    assert repr(cls()) == f"{cls.__name__}()"
    assert "adversary__eps=0.3" in repr(cls(adversary__eps=0.3))
    assert "lr=0.1" in repr(cls(lr=0.1))


# --- searching -----------------------------------------------------------------------


@one_of_each(*PARAMETERS, *NETWORK)
@pytest.mark.parametrize("n_jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_grid_search(cls, make, data, n_jobs):
    X, y = data[0], NAMES[data[1]]
    grid = {"adversary__eps": [0.0, 0.4]}
    found = a_number_to_search(cls)
    if found:
        grid[found[0]] = found[1]
    scoring = {
        "clean": "accuracy",
        "robust": make_adversarial_scorer(PGD(eps=0.2, n_steps=2, random_state=0)),
    }
    search = GridSearchCV(
        make(cls), grid, scoring=scoring, refit="robust", cv=2, n_jobs=n_jobs, error_score="raise"
    ).fit(X, y)
    results = search.cv_results_
    assert len(results["params"]) == 2 * (2 if found else 1)
    assert np.isfinite(results["mean_test_robust"]).all()
    assert (results["mean_test_robust"] <= results["mean_test_clean"]).all()
    best = search.best_estimator_
    assert best.adversary_.eps == search.best_params_["adversary__eps"]
    assert set(best.predict(X)) <= set(NAMES)
    if found:
        assert getattr(best, found[0]) == search.best_params_[found[0]]


@one_of_each(*PARAMETERS)
def test_grid_search_gives_each_candidate_its_own_adversary(cls, make, data, adversary):
    grid = {"adversary__eps": [0.1, 0.7], "lr": [0.01, 0.02]}
    search = GridSearchCV(make(cls, adversary=adversary), grid, cv=2, error_score="raise").fit(
        *data
    )
    assert adversary.eps == 0.3
    assert search.best_estimator_.adversary_.eps == search.best_params_["adversary__eps"]
    assert search.best_estimator_.optimizer_.param_groups[0]["lr"] == search.best_params_["lr"]


@one_of_each(*PARAMETERS, *DATA)
def test_pipeline(cls, learner, data):
    X, y = 100 * data[0] + 50, NAMES[data[1]]
    pipe = Pipeline([("scale", StandardScaler()), ("clf", learner(cls))])
    pipe.set_params(clf__adversary__eps=0.07)
    assert pipe.get_params()["clf__adversary__eps"] == 0.07
    pipe.fit(X, y)
    assert pipe["clf"].adversary_.eps == 0.07
    assert pipe.score(X, y) > 0.8
    robust = make_adversarial_scorer(PGD(eps=20, n_steps=2, random_state=0))(pipe, X, y)
    assert 0 <= robust <= pipe.score(X, y)
    pipe.set_params(clf__max_epochs=1)
    search = GridSearchCV(
        pipe, {"clf__adversary__eps": [0.05, 0.2]}, cv=2, error_score="raise"
    ).fit(X, y)
    assert search.best_estimator_["clf"].adversary_.eps in (0.05, 0.2)


@one_of_each()
def test_grid_search_in_parallel(cls, make, data, adversary):
    """Candidates are sent to other processes, and one comes back."""
    clf = make(cls, adversary=adversary)
    search = GridSearchCV(clf, {"adversary__eps": [0.0, 0.4]}, cv=2, n_jobs=2, error_score="raise")
    search.fit(*data)
    assert search.best_estimator_.adversary_.eps == search.best_params_["adversary__eps"]
    assert_allclose(
        search.cv_results_["mean_test_score"],
        search.set_params(n_jobs=None).fit(*data).cv_results_["mean_test_score"],
    )


# --- other estimators ----------------------------------------------------------------


@one_of_each(*DATA)
def test_cross_val_score(cls, learner, data):
    scores = cross_val_score(learner(cls), *data, cv=3, error_score="raise")
    assert scores.shape == (3,)
    assert scores.mean() > 0.8


@one_of_each(*DATA, *PREDICTION)
def test_calibration(cls, learner, data):
    X, y = data[0], NAMES[data[1]]
    calibrated = CalibratedClassifierCV(learner(cls), cv=2, ensemble=True).fit(X, y)
    assert_allclose(calibrated.predict_proba(X).sum(axis=1), 1)
    assert calibrated.classes_.tolist() == NAMES.tolist()
    assert calibrated.score(X, y) > 0.8


@one_of_each(*DATA, *PREDICTION)
def test_voting(cls, learner, data):
    X, y = data[0], NAMES[data[1]]
    voting = VotingClassifier(
        [("net", learner(cls)), ("lr", LogisticRegression())], voting="soft"
    ).fit(X, y)
    assert voting.score(X, y) > 0.8
    mean = np.mean([e.predict_proba(X) for e in voting.estimators_], axis=0)
    assert_allclose(voting.predict_proba(X), mean)


@one_of_each(*DATA)
def test_one_against_the_rest(cls, learner, data):
    X, y = data[0], NAMES[data[1]]
    assert OneVsRestClassifier(learner(cls)).fit(X, y).score(X, y) > 0.8


# --- saving --------------------------------------------------------------------------


def through_pickle(clf, _):
    return pickle.loads(pickle.dumps(clf))


def through_joblib(clf, path):
    joblib.dump(clf, path / "clf.joblib")
    return joblib.load(path / "clf.joblib")


def through_deepcopy(clf, _):
    return copy.deepcopy(clf)


def test_pickling(cls, make, data, tmp_path):
    check_round_trip(make(cls, device="auto"), data, tmp_path, through_pickle)


@one_of_each(*SAVING, *NETWORK)
@pytest.mark.parametrize("way", [through_joblib, through_deepcopy])
def test_copying(cls, make, data, tmp_path, way):
    check_round_trip(make(cls, device="auto"), data, tmp_path, way)


def check_round_trip(clf, data, tmp_path, way):
    X, y = data[0], NAMES[data[1]]
    other = way(clf.fit(X, y), tmp_path)
    assert other.device == "auto"
    assert_array_equal(other.predict(X), clf.predict(X))
    assert_array_equal(other.predict_proba(X), clf.predict_proba(X))
    attack = PGD(eps=0.2, n_steps=2, random_state=0)
    assert other.score_adversarial(X, y, attack) == clf.score_adversarial(X, y, attack)
    assert other.get_params().keys() == clf.get_params().keys()
    assert len(other.history_) == 2
    # both go on in the same way, and apart from one another
    before = weights(clf)
    other.partial_fit(X, y)
    assert same_weights(weights(clf), before)
    clf.partial_fit(X, y)
    assert same_weights(weights(clf), weights(other))
    assert len(other.history_) == 4


@one_of_each(*SAVING, *PARAMETERS)
def test_round_trip_of_an_unfitted_estimator(cls, make, data, adversary, tmp_path):
    clf = make(cls, adversary=adversary, adversary__eps=0.2)
    expected = weights(clone(clf).fit(*data))
    for way in (through_pickle, through_joblib, through_deepcopy):
        other = way(clf, tmp_path)
        assert not other.initialized_
        assert same_weights(weights(other.fit(*data)), expected)


@one_of_each(*SAVING, *NETWORK)
def test_save_and_load_parameters(cls, make, data32, tmp_path):
    X, y = data32[0], NAMES[data32[1]]
    clf = make(cls).fit(X, y)
    clf.save_params(
        f_params=tmp_path / "p.pt", f_optimizer=tmp_path / "o.pt", f_history=tmp_path / "h.json"
    )
    for device in ("cpu", "auto"):
        other = make(cls, input_shape=(4,), classes=NAMES, device=device).initialize()
        assert not np.allclose(other.predict_proba(X), clf.predict_proba(X))
        other.load_params(
            f_params=tmp_path / "p.pt", f_optimizer=tmp_path / "o.pt", f_history=tmp_path / "h.json"
        )
        assert other.device == device
        assert_array_equal(other.predict_proba(X), clf.predict_proba(X))
        assert_array_equal(other.predict(X), clf.predict(X))
        assert len(other.history_) == 2
        attack = PGD(eps=0.2, n_steps=2, clip=(-9, 9), random_state=0)
        assert other.score_adversarial(X, y, attack) == clf.score_adversarial(X, y, attack)
        assert other.partial_fit(X, y).predict(X).shape == y.shape


@one_of_each(*SAVING, *NETWORK)
def test_load_parameters_for_flat_rows_of_images(cls, make, images, tmp_path):
    X, y = images
    rows = X.reshape(len(X), -1)
    clf = make(cls, input_shape=(1, 8, 8)).fit(rows, y)
    clf.save_params(f_params=tmp_path / "p.pt")
    other = make(cls, input_shape=(1, 8, 8), classes=[0, 1, 2]).initialize()
    other.load_params(f_params=tmp_path / "p.pt")
    assert_array_equal(other.predict_proba(rows), clf.predict_proba(rows))


def test_initialize_needs_to_know_the_data(cls, make):
    with pytest.raises(ValueError, match=r"input_shape=.*classes="):
        make(cls).initialize()


# --- callbacks -----------------------------------------------------------------------


@one_of_each(*TRAINING, *CALLBACKS)
def test_history(cls, make, data):
    clf = make(cls, max_epochs=4).fit(*data)
    assert len(clf.history_) == 4
    assert clf.history is clf.history_
    losses = clf.history_[:, "train_loss"]
    assert len(losses) == 4
    assert np.isfinite(losses).all()
    assert len(set(losses)) == 4


@one_of_each(*TRAINING, *CALLBACKS)
def test_verbosity(cls, make, data, capsys):
    make(cls).fit(*data).score_adversarial(*data)
    clf = make(cls).fit(*data).set_params(module__hidden_sizes=(5,))
    clf.partial_fit(*data)
    assert capsys.readouterr() == ("", "")
    make(cls, verbose=1).fit(*data)
    printed = capsys.readouterr().out
    assert "train_loss" in printed
    assert len(printed.strip().splitlines()) == 4  # head, rule, two epochs


@one_of_each(*TRAINING, *CALLBACKS)
def test_validation_and_early_stopping(cls, make, data):
    X, y = data[0], NAMES[data[1]]
    clf = make(
        cls,
        max_epochs=20,
        train_split=ValidSplit(3, stratified=True),
        callbacks=[
            EpochScoring("f1_macro", name="valid_f1", lower_is_better=False),
            EpochScoring("f1_macro", name="train_f1", lower_is_better=False, on_train=True),
            EpochScoring("neg_log_loss", name="valid_nll", lower_is_better=False),
            EarlyStopping(patience=2, threshold=10, monitor="valid_loss"),
        ],
    ).fit(X, y)
    assert len(clf.history_) == 3  # nothing improves by ten
    for name in ("valid_loss", "valid_acc", "valid_f1", "train_f1"):
        values = np.array(clf.history_[:, name])
        assert values.shape == (3,)
        assert np.isfinite(values).all()
    assert (np.array(clf.history_[:, "valid_f1"]) <= 1).all()
    assert_allclose(
        clf.history_[:, "valid_nll"], -np.array(clf.history_[:, "valid_loss"]), rtol=1e-5
    )
    assert clf.classes_.tolist() == NAMES.tolist()
    assert set(clf.predict(X)) <= set(NAMES)


@one_of_each(*TRAINING, *CALLBACKS)
def test_validation_data_are_not_trained_on(cls, make, data):
    X, y = data
    seen = []

    class Watched(cls):
        def craft(self, x, y):
            seen.append(x.numpy().copy())
            return super().craft(x, y)

    make(Watched, max_epochs=1, train_split=ValidSplit(3)).fit(X, y)
    trained_on = {tuple(row) for row in np.concatenate(seen)}
    assert len(trained_on) == len(X) * 2 // 3


@one_of_each(*TRAINING, *CALLBACKS)
def test_learning_rate_schedule_and_gradient_clipping(cls, make, data):
    clf = make(
        cls,
        max_epochs=3,
        lr=0.1,
        optimizer=torch.optim.SGD,
        callbacks=[
            LRScheduler(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.1),
            GradientNormClipping(1e-8),
        ],
    )
    clf.fit(*data)
    assert_allclose(clf.history_[:, "event_lr"], [0.1, 0.01, 0.001])
    first = clone(clf).set_params(callbacks=None, max_epochs=1).fit(*data)
    tame = clone(clf).set_params(callbacks=[GradientNormClipping(1e-8)], max_epochs=1).fit(*data)
    untrained = clone(clf).set_params(callbacks=None, max_epochs=1, lr=0.0).fit(*data)
    for key, value in weights(untrained).items():
        assert torch.allclose(tame.module_.state_dict()[key], value, atol=1e-7)
    assert not same_weights(weights(first), weights(untrained))


@one_of_each(*PARAMETERS, *CALLBACKS)
def test_callback_parameters(cls, make, data):
    clf = make(
        cls,
        callbacks=[("clip", GradientNormClipping(1.0))],
        callbacks__clip__gradient_clip_value=2.0,
    ).fit(*data)
    assert dict(clf.callbacks_)["clip"].gradient_clip_value == 2.0
    clf.set_params(callbacks__clip__gradient_clip_value=3.0)
    assert dict(clf.callbacks_)["clip"].gradient_clip_value == 3.0


@one_of_each(*SAVING, *TRAINING, *CALLBACKS)
def test_checkpoint_and_resume(cls, make, data32, tmp_path):
    X, y = data32[0], NAMES[data32[1]]
    checkpoint = Checkpoint(monitor="train_loss_best", dirname=tmp_path / "best")
    clf = make(cls, callbacks=[checkpoint], max_epochs=3).fit(X, y)
    best = max(i + 1 for i, best in enumerate(clf.history_[:, "train_loss_best"]) if best)
    resumed = make(cls, callbacks=[LoadInitState(checkpoint)], max_epochs=2).fit(X, y)
    assert len(resumed.history_) == best + 2
    assert_allclose(resumed.history_[:best, "train_loss"], clf.history_[:best, "train_loss"])
    end = TrainEndCheckpoint(dirname=tmp_path / "end")
    clf = make(cls, callbacks=[end]).fit(X, y)
    other = make(cls, callbacks=[LoadInitState(end)], max_epochs=0, random_state=1).fit(X, y)
    assert_array_equal(other.predict_proba(X), clf.predict_proba(X))
    assert len(other.history_) == 2


@one_of_each(*TRAINING, *CALLBACKS)
def test_best_weights_are_restored(cls, make, data):
    """EarlyStopping can load them at the end of training."""
    clf = make(
        cls,
        lr=5.0,
        max_epochs=4,
        callbacks=[EarlyStopping(monitor="train_loss", patience=99, load_best=True)],
    ).fit(*data)
    assert np.isfinite(clf.predict_proba(data[0])).all()
    best = int(np.argmin(clf.history_[:, "train_loss"])) + 1
    shorter = clone(clf).set_params(callbacks=None, max_epochs=best).fit(*data)
    assert same_weights(weights(clf), weights(shorter))


def test_default_attack_has_what_is_said_inside_a_wrapper(learner, data):
    inside = PGD(eps=2.0, norm=2, clip=(-9, 9), mask=np.array([True, False, True, True]))
    clf = learner(StandardClassifier, adversary=EOT(attack=inside, n_draws=1))
    attack = clf.default_attack()
    assert (attack.eps, attack.norm, attack.clip) == (2.0, 2, (-9, 9))
    assert_array_equal(attack.mask, inside.mask)
    clf.fit(*data)
    assert clf.score_adversarial(*data) == clf.score_adversarial(*data, attack)
    assert clf.score_adversarial(*data) < clf.score_adversarial(*data, PGD(random_state=0))
