"""Every attack refuses what it cannot deal with, and says what to do."""

import numpy as np
import pytest
import torch
from promises import WHITE_BOX, WITH_OBJECTIVE, make, per_code_path, white_box
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F

from robustsk.attacks import NoGradientError

#: What decides what is said about the model and about the data.
per_fit = per_code_path("fit", "transform", "access", "_victim", "_resolved", "_effective_eps")
per_door = per_code_path(
    "generate", "run", "minimal", "_check_X", "_complete", "_resolved", "_effective_eps", "_box"
)


@white_box
def test_tree_has_no_gradient(cls, table):
    tree = RandomForestClassifier(5, random_state=0).fit(table.X, table.y)
    assert issubclass(NoGradientError, TypeError)
    for model in (tree, make_pipeline(StandardScaler(), tree).fit(table.X, table.y)):
        attack = make(cls, model, clip=None)
        for call in (lambda a=attack: a.generate(table.X), lambda a=attack: a.fit(table.X)):
            with pytest.raises(NoGradientError) as caught:
                call()
            message = str(caught.value)
            assert "\n" not in message
            assert cls.__name__ in message
            assert "RandomForestClassifier" in message
            assert "use a black-box attack" in message
            assert "register_converter" in message


@per_fit
def test_victim_that_is_not_fitted(cls, table):
    with pytest.raises(NotFittedError, match="FrozenEstimator"):
        make(cls, LogisticRegression(), clip=None).generate(table.X)
    with pytest.raises(NotFittedError, match="FrozenEstimator"):
        make(cls, LogisticRegression()).fit(table.X)
    with pytest.raises(TypeError, match="instance of LogisticRegression"):
        make(cls, LogisticRegression).fit(table.X)
    with pytest.raises(TypeError, match="neither a torch module nor an estimator"):
        make(cls, "a string").fit(table.X)


@per_fit
def test_victim_in_a_cloned_pipeline(cls, table):
    X, y = table.X, table.y
    forest = RandomForestClassifier(5, random_state=0)
    lost = make_pipeline(make(cls, table.model, eps=0.1, random_state=0), forest)
    with pytest.raises(NotFittedError, match="FrozenEstimator"):
        cross_val_score(lost, X, y, cv=2, error_score="raise")
    kept = make_pipeline(make(cls, FrozenEstimator(table.model), eps=0.1, random_state=0), forest)
    assert cross_val_score(kept, X, y, cv=2, error_score="raise").min() > 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda X: np.where(np.arange(6) == 2, np.nan, X), "contains NaN"),
        (lambda X: np.where(np.arange(6) == 2, np.inf, X), "contains infinity"),
        (lambda X: X[:0], "minimum of 1"),
        (lambda X: X[:, :4], "4 features.*expecting 6"),
        (lambda X: X[0], "2D array"),
    ],
    ids=["nan", "inf", "empty", "features", "1d"],
)
@pytest.mark.parametrize("fitted", [True, False])
@per_door
def test_bad_X(cls, fitted, change, message, table):
    attack = make(cls, table.model, eps=0.1, clip=(-50, 50))
    if fitted:
        attack.fit(table.X)
    with pytest.raises(ValueError, match=message):
        attack.generate(change(table.X[:5]))


@per_door
def test_bad_image_shape(cls, images):
    attack = make(cls, images.net, eps=0.1).fit(images.X)
    with pytest.raises(ValueError, match=r"\(1, 6, 6\).*\(1, 8, 8\)"):
        attack.generate(images.X[:3, :, 1:7, 1:7])


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"eps": -0.1}, ValueError, "eps must be finite and not negative, got -0.1"),
        ({"eps": np.nan}, ValueError, "eps must be finite"),
        ({"eps": np.inf}, ValueError, "eps must be finite"),
        ({"eps": [0.1, 0.2]}, ValueError, r"eps has shape \(2,\).*\(6,\)"),
        ({"eps": "large"}, (TypeError, ValueError), "eps must be a number"),
        ({"norm": 3}, ValueError, "norm=3 is not supported; use one of"),
        ({"norm": "l7"}, ValueError, "norm='l7' is not supported; use one of"),
        ({"clip": (1, 0)}, ValueError, "low > high"),
        ({"clip": 1.0}, ValueError, r"clip must be 'auto', None or \(low, high\)"),
        ({"clip": "bounds"}, ValueError, "clip must be 'auto'"),
        ({"mask": np.ones(5, bool)}, ValueError, r"mask has shape \(5,\).*\(6,\)"),
        ({"mask": np.arange(6)}, ValueError, "mask must be boolean"),
        ({"bn_mode": "both"}, ValueError, "bn_mode must be 'eval' or 'train'"),
        ({"target": 77}, ValueError, r"target contains labels.*\[77\]"),
        ({"target": "leastlikely"}, ValueError, "target.*leastlikely"),
        ({"target": [0, 1]}, ValueError, "inconsistent numbers of samples"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"batch_size": -5}, ValueError, "batch_size"),
        ({"batch_size": 2.5}, (TypeError, ValueError), "batch_size"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
@per_door
def test_bad_parameters(cls, parameters, error, message, table):
    if cls().minimal and parameters.get("eps") == np.inf:
        pytest.skip("no limit")
    attack = make(cls, table.model, **{"clip": None, **parameters})
    with pytest.raises(error, match=message):
        attack.generate(table.X[:5])


@pytest.mark.parametrize("parameters", [{"eps": -0.1}, {"norm": 3}, {"clip": (1, 0)}])
@per_fit
def test_fit_finds_bad_parameters_early(cls, parameters, table):
    with pytest.raises(ValueError, match=next(iter(parameters))):
        make(cls, table.model, **parameters).fit(table.X)


@pytest.mark.parametrize(
    ("objective", "error", "message"),
    [
        ("crossentropy", ValueError, "'crossentropy' is unknown; use one of .*'ce'.*callable"),
        (3, TypeError, "name or a callable"),
        (lambda logits, y: F.cross_entropy(logits, y), ValueError, "reduction='none'"),
        (lambda logits, y: logits.detach()[:, 0], ValueError, "No gradient"),
    ],
    ids=["name", "number", "mean", "detached"],
)
@per_code_path("generate", "run", "_resolve_objective", classes=WITH_OBJECTIVE)
def test_bad_objective(cls, objective, error, message, table):
    with pytest.raises(error, match=message):
        make(cls, table.model, objective=objective, clip=None).generate(table.X[:5])


@per_door
def test_data_outside_of_an_explicit_box(cls, table):
    with pytest.raises(ValueError, match=r"outside of clip=\[0, 1\].*rescale"):
        make(cls, table.model, clip=(0, 1), eps=0.1).generate(table.X)


@per_door
def test_bad_labels(cls, table):
    names = np.array(["zebra", "ant", "fox"])
    by_name = LogisticRegression().fit(table.X, names[table.y])
    X, y = table.X[:6], table.y[:6]
    attack = make(cls, by_name, clip=None, eps=0.1)
    with pytest.raises(ValueError, match=r"not been trained on: \['bear'\]"):
        attack.generate(X, ["bear"] * 6)
    with pytest.raises(ValueError, match="not been trained on"):
        attack.generate(X, y)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        attack.generate(X, names[table.y[:5]])
    attack = make(cls, table.model, clip=None, eps=0.1)
    with pytest.raises(ValueError, match=r"one-hot encoded.*argmax"):
        attack.generate(X, np.eye(3)[y])
    with pytest.raises(ValueError, match="not been trained on"):
        attack.generate(X, ["zebra"] * 6)


@per_door
def test_target_that_is_the_label(cls, table):
    X, y = table.X[:6], table.y[:6]
    target = (y + 1) % 3
    target[4] = y[4]
    attack = make(cls, table.model, clip=None, target=target)
    with pytest.raises(ValueError, match=r"target equals the label of 1 of 6 samples.*row 4"):
        attack.generate(X, y)
    attack = make(cls, table.model, clip=None, target=2)
    with pytest.raises(ValueError, match="target equals the label of 6 of 6 samples"):
        attack.generate(X, np.full(6, 2))


@per_code_path("generate", "run", "perturb", "access", "_resolved", classes=WHITE_BOX)
def test_probabilities_in_place_of_logits(cls, table):
    module = torch.nn.Sequential(table.net, torch.nn.Softmax(1))
    with pytest.warns(UserWarning, match="returns probabilities.*logits are needed"):
        make(cls, module, clip=None, random_state=0).generate(table.X[:6])


@per_door
def test_bad_labels_for_a_module(cls, table):
    X = table.X[:6]
    attack = make(cls, table.net, clip=None, eps=0.1)
    for wrong in (["zebra"] * 6, np.full(6, 0.5)):
        with pytest.raises(ValueError, match=r"class indices|not been trained on"):
            attack.generate(X, wrong)
    for wrong in (3, -1, -100):
        with pytest.raises(ValueError, match=f"{wrong}"):
            attack.generate(X, np.full(6, wrong))
    with pytest.raises(ValueError, match="7"):
        attack.set_params(target=7).generate(X)


@per_door
def test_bytes_with_a_small_radius(cls, table):
    X = np.round(20 * (table.X - table.X.min())).astype(np.uint8)
    model = LogisticRegression().fit(X / 20.0, table.y)
    attack = make(cls, model, eps=8 / 255, clip=(0, 255), random_state=0)
    for bytes_ in (X, torch.tensor(X)):
        with pytest.warns(UserWarning, match="X holds bytes"):
            attack.generate(bytes_)
    attack.set_params(eps=8.0)
    X_adv = attack.generate(X)
    assert X_adv.dtype == np.float64
    if cls().norm != 0:
        assert np.abs(X_adv - X).max() <= 8


@per_fit
def test_unfitted_attack_has_no_range_for_a_foreign_model(cls, table):
    attack = make(cls, table.model)
    with pytest.raises(NotFittedError, match=r"clip='auto'.*fit\(X_train\).*clip=\(0, 1\)"):
        attack.transform(table.X)
    with pytest.raises(NotFittedError, match="no model to attack"):
        make(cls, clip=None).transform(table.X)
    with pytest.raises(ValueError, match="requires y to be passed"):
        cls().fit(table.X)
    with pytest.raises(ValueError, match="1 sample"):
        attack.fit(table.X[:1])


@per_fit
def test_images_need_a_model(cls, images):
    with pytest.raises(ValueError, match="2-D X"):
        cls().fit(images.X, images.y)
