"""Every attack reaches what it is out for: labels, targets, closest examples, few questions."""

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from promises import (
    STRONG,
    able,
    black_box,
    every_norm,
    make,
    minimal,
    per_code_path,
    scaled,
)
from sklearn.ensemble import RandomForestClassifier, VotingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F

from robustsk.attacks import as_victim


def logits_of(model, X):
    victim = as_victim(model)
    with victim.frozen() as seen, torch.no_grad():
        return seen(torch.as_tensor(X).to(victim.dtype)).double()


@every_norm
def test_untargeted_raises_the_loss_and_lowers_the_accuracy(cls, norm, problem):
    X, y = problem.X[:30], problem.y[:30]
    attack = able(cls, problem.net, norm=norm, eps=STRONG[norm], random_state=0)
    attack.fit(problem.X[:150])
    clean, attacked = logits_of(problem.net, X), logits_of(problem.net, attack.generate(X, y))
    accuracy = (clean.argmax(1).numpy() == y).mean()
    assert accuracy > 0.8
    # what has to do for all samples at once does less for each
    assert (attacked.argmax(1).numpy() == y).mean() < accuracy - (0.25 if cls.per_sample else 0.1)
    truth = torch.tensor(y)
    if not cls().minimal:
        # nor is what knows no labels out to raise this very loss
        factor = 1.5 if cls.couples_batch else 2
        assert F.cross_entropy(attacked, truth) > factor * F.cross_entropy(clean, truth)


def skip_unless_targetable(cls, target):
    if not cls.targetable:
        pytest.skip("chooses the target itself")
    if not cls.per_sample and target != "label":
        pytest.skip("one and the same for samples that are to go different ways")


@every_norm
def test_targeted_lowers_the_loss_of_the_target(cls, norm, table):
    assert_loss_of_the_target_is_lower(cls, norm, "array" if cls.per_sample else "label", table)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["least_likely", "label", "array"])
@every_norm
def test_targeted_lowers_the_loss_of_any_target(cls, norm, target, problem):
    assert_loss_of_the_target_is_lower(cls, norm, target, problem)


def assert_loss_of_the_target_is_lower(cls, norm, target, problem):
    skip_unless_targetable(cls, target)
    X, y = problem.X[:30], problem.y[:30]
    clean = logits_of(problem.net, X)
    goal = {
        "least_likely": clean.scatter(1, torch.tensor(y)[:, None], np.inf).argmin(1).numpy(),
        "label": np.full(30, 1),
        "array": (y + 1) % clean.shape[1],
    }[target]
    given = {"least_likely": "least_likely", "label": 1, "array": goal}[target]
    attack = able(
        cls, problem.net, norm=norm, eps=STRONG[norm], target=given, batch_size=17, random_state=0
    ).fit(problem.X[:150])
    attacked = logits_of(problem.net, attack.generate(X, y))
    before = F.cross_entropy(clean, torch.tensor(goal))
    after = F.cross_entropy(attacked, torch.tensor(goal))
    # the closest example may be out of reach
    assert after <= before if cls().minimal else after < before
    hits = (attacked.argmax(1).numpy() == goal).mean()
    assert hits >= (clean.argmax(1).numpy() == goal).mean()


@every_norm
def test_targeted_hits_for_a_large_radius(cls, norm, table):
    assert_target_is_hit(cls, norm, "label", table)


@pytest.mark.parametrize("target", ["least_likely", "random", "array"])
@per_code_path("generate", "run", "perturb", "targetable", "per_sample", "_complete", "_resolved")
def test_target_in_any_form_is_hit(cls, target, table):
    assert_target_is_hit(cls, float(cls().norm), target, table)


def assert_target_is_hit(cls, norm, target, table):
    skip_unless_targetable(cls, target)
    # two classes: the only target of a sample is the other class, and the model is linear
    rows = table.y < 2
    X, y = table.X[rows], np.array(["no", "yes"])[table.y[rows]]
    model = LogisticRegression().fit(X, y)
    X, y = X[:40], y[:40]
    other = np.where(y == "no", "yes", "no")
    given = {"label": "yes", "array": other}.get(target, target)
    attack = able(cls, model, norm=norm, eps=100.0, clip=None, target=given, random_state=0)
    assert_array_equal(model.predict(attack.generate(X, y)), "yes" if target == "label" else other)


@per_code_path("generate", "run", "perturb", "targetable", "per_sample", "_complete", "_resolved")
def test_random_targets_are_other_classes_and_all_of_them(cls, table):
    skip_unless_targetable(cls, "random")
    X, y = table.X, table.y
    eps = 5 / 3 * STRONG[float(cls().norm)]
    attack = able(cls, table.net, eps=eps, clip=None, target="random", random_state=0)
    predicted = logits_of(table.net, attack.generate(X, y)).argmax(1).numpy()
    assert (predicted != y).mean() > 0.6
    pairs = set(zip(y.tolist(), predicted.tolist(), strict=True))
    assert sum(label != reached for label, reached in pairs) == 6
    again = attack.set_params(random_state=1).generate(X, y)
    assert (logits_of(table.net, again).argmax(1).numpy() != predicted).mean() > 0.1


def assert_transform_attacks_the_predictions(cls, norm, problem):
    attack = make(cls, problem.net, norm=norm, eps=STRONG[norm], random_state=0).fit(
        problem.X, problem.y
    )
    X = problem.X[:12]
    predicted = logits_of(problem.net, X).argmax(1).numpy()
    assert_array_equal(attack.transform(X), attack.generate(X, predicted))
    if cls.per_sample:
        wrong = (predicted + 1) % 3
        assert not np.array_equal(attack.transform(X), attack.generate(X, wrong))


@every_norm
def test_transform_attacks_the_predictions(cls, norm, table):
    assert_transform_attacks_the_predictions(cls, norm, table)


@pytest.mark.slow
@every_norm
def test_transform_attacks_the_predictions_on_images(cls, norm, images):
    assert_transform_attacks_the_predictions(cls, norm, images)


@pytest.mark.parametrize("surrogate", [False, True])
@per_code_path("fit", "fit_transform", "transform", "generate", "run", "_resolved")
def test_fit_transform_leaks_no_labels(cls, surrogate, table):
    assert_fit_transform_leaks_no_labels(cls, float(cls().norm), surrogate, table)


@pytest.mark.slow
@pytest.mark.parametrize("surrogate", [False, True])
@every_norm
def test_fit_transform_leaks_no_labels_in_any_norm(cls, norm, surrogate, table):
    assert_fit_transform_leaks_no_labels(cls, norm, surrogate, table)


def assert_fit_transform_leaks_no_labels(cls, norm, surrogate, table):
    y = table.y.copy()
    y[::7] = (y[::7] + 1) % 3
    model = None if surrogate else table.model

    def attack():
        return make(cls, model, norm=norm, eps=scaled(norm, 0.4), random_state=0)

    together = attack().fit_transform(table.X, y)
    assert_array_equal(together, attack().fit(table.X, y).transform(table.X))
    if cls.per_sample:
        assert not np.array_equal(together, attack().fit(table.X, y).generate(table.X, y))


@per_code_path("fit", "generate", "run", "perturb", "access", "_resolved")
def test_string_labels(cls, table):
    names = np.array(["zebra", "ant", "fox"])
    model = LogisticRegression().fit(table.X, names[table.y])
    X, y = table.X[:60], names[table.y[:60]]
    attack = able(cls, model, eps=STRONG[float(cls().norm)], random_state=0).fit(table.X)
    X_adv = attack.generate(X, y)
    drop = 0.3 if cls.per_sample else 0.1
    assert model.score(X_adv, y) < model.score(X, y) - drop
    assert_array_equal(attack.transform(X), attack.generate(X, model.predict(X)))


@pytest.mark.parametrize(
    "problem", ["table", pytest.param("images", marks=pytest.mark.slow)], indirect=True
)
@minimal
def test_closest_examples_leave_alone_what_is_wrong_or_out_of_reach(cls, problem):
    X, y = problem.X[:20], problem.y[:20].copy()
    y[::3] = (y[::3] + 1) % 3
    attack = able(cls, problem.net, random_state=0, clip=None)  # without a limit
    predicted = logits_of(problem.net, X).argmax(1).numpy()
    X_adv, info = attack.generate(X, y, return_info=True)
    wrong = predicted != y
    assert_array_equal(X_adv[wrong], X[wrong])
    assert np.all(info["distance"][wrong] == 0)
    assert np.all(info["distance"][~wrong] > 0)
    fooled = logits_of(problem.net, X_adv).argmax(1).numpy() != y
    assert fooled.mean() > 0.9
    moved = (X_adv - X).reshape(len(X), -1).astype(np.float64)
    reported = info["distance"][fooled]
    found = np.linalg.norm(moved, ord=attack.norm if attack.norm else 0, axis=1)[fooled]
    assert_allclose(found, reported, rtol=1e-3, atol=1e-5)
    # a single feature may be enough for all, where there is no limit to how far it moves
    radius = float(np.median(reported[reported > 0])) if attack.norm else 0.5
    near = attack.set_params(eps=radius)
    X_near, info = near.generate(X, y, return_info=True)
    far = ~np.isfinite(info["distance"])
    assert far.any()
    assert_array_equal(X_near[far], X[far])


@pytest.mark.slow
@minimal
def test_closest_examples_are_close(cls, table):
    # for a linear model the distance to the border is known
    X, y = table.X[table.y < 2], table.y[table.y < 2]
    model = LogisticRegression().fit(X, y)
    X = X[:40]
    attack = cls(model, clip=None, random_state=0)
    X_adv, info = attack.generate(X, return_info=True)
    assert np.all(model.predict(X_adv) != model.predict(X))
    dual = {np.inf: 1, 2.0: 2, 1.0: np.inf, 0.0: None}[float(attack.norm)]
    if dual is not None:
        exact = np.abs(model.decision_function(X)) / np.linalg.norm(model.coef_[0], ord=dual)
        assert np.all(info["distance"] >= exact * (1 - 1e-6))
        assert np.median(info["distance"] / exact) < 1.25


@pytest.mark.parametrize("scaled_first", [False, pytest.param(True, marks=pytest.mark.slow)])
@black_box
def test_trees_and_votes_are_attacked_with_few_questions(cls, scaled_first, table):
    model = RandomForestClassifier(10, random_state=0)
    if scaled_first:
        model = make_pipeline(StandardScaler(), model)
    names = np.array(["zebra", "ant", "fox"])[table.y]
    frame = pd.DataFrame(table.X, columns=list("abcdef"))
    model.fit(frame, names)
    norm = cls().norm
    attack = able(cls, model, eps=scaled(norm, STRONG[float(norm)]), random_state=0).fit(frame)
    X_adv, info = attack.generate(frame[:40], names[:40], return_info=True)
    assert list(X_adv.columns) == list("abcdef")
    assert model.score(X_adv, names[:40]) < model.score(frame[:40], names[:40]) - 0.2
    assert info["n_queries"].shape == (40,)
    assert np.all(info["n_queries"] >= 1)
    assert np.all(info["n_queries"] <= attack.max_queries)


@black_box
def test_budget_of_questions(cls, table):
    tree = RandomForestClassifier(5, random_state=0).fit(table.X, table.y)
    for budget in (1, 2, 7, 40):
        attack = cls(tree, eps=1.0, max_queries=budget, random_state=0).fit(table.X)
        _, info = attack.generate(table.X[:20], table.y[:20], return_info=True)
        assert np.all(info["n_queries"] <= budget)
    for budget in (0, -3, 2.5, None):
        attack = cls(tree, eps=1.0, max_queries=budget, clip=None)
        with pytest.raises(ValueError, match=r"max_queries must be an integer of at least 1"):
            attack.generate(table.X[:5])


@black_box
def test_hard_votes_give_labels_only(cls, table):
    members = [("a", LogisticRegression()), ("b", RandomForestClassifier(5, random_state=0))]
    model = VotingClassifier(members).fit(table.X, table.y)
    attack = able(cls, model, eps=STRONG[float(cls().norm)], random_state=0)
    if cls().access == "labels":
        X_adv = attack.fit(table.X).generate(table.X[:40], table.y[:40])
        assert model.score(X_adv, table.y[:40]) < model.score(table.X[:40], table.y[:40]) - 0.2
    else:
        with pytest.raises(TypeError, match=r"needs scores.*VotingClassifier.*labels only"):
            attack.fit(table.X)
