"""Votes and means of logits: what is predicted, and what attacks see of it."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.ensemble import VotingClassifier
from sklearn.preprocessing import LabelEncoder
from torch import nn

from robustsk import (
    PGD,
    EnsembleAT,
    HopSkipJump,
    SquareAttack,
    StandardClassifier,
    adversarial_outcome,
    score_adversarial,
)
from robustsk.ensembles import LogitMeanEnsemble, MeanEnsemble, VoteEnsemble
from robustsk.victims import as_victim

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 4))
Y = X[:, :3].argmax(1)


class Fixed(nn.Module):
    """Returns given logits."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, x):
        return self.logits + 0 * x[:, :1]


def networks(n=3, width=3):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = [nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, width)) for _ in range(n)]
    return [m.double() for m in made]


def logits_of(members, x):
    with torch.no_grad():
        return np.stack([m(torch.as_tensor(x)).numpy() for m in members])


def test_mean_of_logits():
    members = networks()
    found = LogitMeanEnsemble(members)(torch.as_tensor(X)).detach()
    assert_allclose(found, logits_of(members, X).mean(0))
    # it is not the mean of the probabilities
    sure, other = Fixed([[9.0, 0.0]]), Fixed([[0.0, 4.0]])
    x = torch.zeros(1, 4)
    assert LogitMeanEnsemble([sure, other, other])(x).argmax() == 0
    assert MeanEnsemble([sure, other, other])(x).argmax() == 1


def test_majority_of_votes():
    members = networks(5)
    chosen = logits_of(members, X).argmax(2)
    counts = np.stack([(chosen == k).sum(0) for k in range(3)], 1)
    assert (np.sort(counts)[:, -1] == np.sort(counts)[:, -2]).any()  # there are ties
    with torch.no_grad():
        found = VoteEnsemble(members)(torch.as_tensor(X))
    assert_array_equal(found.argmax(1), counts.argmax(1))
    assert_allclose(found.softmax(1), counts / 5, atol=1e-5)


def test_votes_are_those_of_scikit_learn():
    parts = [
        StandardClassifier(max_epochs=1, random_state=seed, device="cpu").fit(X, Y)
        for seed in range(4)
    ]
    voting = VotingClassifier([(str(i), p) for i, p in enumerate(parts)], voting="hard")
    voting.estimators_, voting.classes_ = parts, np.unique(Y)
    voting.le_ = LabelEncoder().fit(Y)
    with torch.no_grad():
        found = VoteEnsemble([p.module_ for p in parts])(torch.as_tensor(X))
    assert_array_equal(found.argmax(1), voting.predict(X))


@pytest.mark.parametrize("cls", [LogitMeanEnsemble, VoteEnsemble])
def test_one_member_predicts_as_itself(cls):
    (member,) = networks(1)
    x = torch.as_tensor(X)
    assert_array_equal(cls([member])(x).argmax(1), member(x).argmax(1))


@pytest.mark.parametrize("cls", [LogitMeanEnsemble, VoteEnsemble])
def test_one_logit_is_that_of_the_second_class(cls):
    members = networks(3, width=1)
    found = cls(members)(torch.as_tensor(X)).argmax(1)
    logits = logits_of(members, X)[..., 0]
    right = logits.mean(0) > 0 if cls is LogitMeanEnsemble else (logits > 0).mean(0) > 0.5
    assert_array_equal(found, right)


def test_the_gradient_of_a_vote_is_that_of_the_mean_probability():
    members = networks()
    found = []
    for cls in (VoteEnsemble, MeanEnsemble):
        x = torch.as_tensor(X).clone().requires_grad_()
        weight = torch.arange(3.0, dtype=torch.float64)
        found.append(torch.autograd.grad((cls(members)(x) * weight).sum(), x)[0])
    assert found[0].abs().max() > 0
    assert_allclose(*found)
    # and the values are those that it has without one
    with torch.no_grad():
        votes = VoteEnsemble(members)(torch.as_tensor(X))
    assert_allclose(VoteEnsemble(members)(torch.as_tensor(X)).detach(), votes, atol=1e-12)


@pytest.mark.dealt
@pytest.mark.parametrize("cls", [LogitMeanEnsemble, VoteEnsemble])
@pytest.mark.parametrize(
    "attack",
    [
        PGD(eps=0.5, clip=None, n_steps=5, random_state=0),
        SquareAttack(eps=0.5, clip=None, max_queries=60, random_state=0),
        HopSkipJump(eps=0.5, norm=2, clip=None, max_queries=60, random_state=0),
    ],
    ids=["gradients", "scores", "labels"],
)
def test_what_fools_fools_the_combination(cls, attack):
    """Counted by its own prediction, not by that of a surrogate."""
    clf = EnsembleAT(
        n_members=3, max_epochs=20, lr=0.05, adversary__eps=0.1, adversary__n_steps=2,
        random_state=0, device="cpu",
    ).fit(X, Y)  # fmt: skip
    combined = cls(clf.members_)
    outcome = adversarial_outcome(combined, X, Y, attack)
    z = logits_of(clf.members_, outcome.X_adv)
    if cls is VoteEnsemble:
        counts = np.stack([(z.argmax(2) == k).sum(0) for k in range(3)], 1)
    else:
        counts = z.mean(0)
    assert_array_equal(outcome.y_pred_adv, counts.argmax(1))
    assert outcome.correct.mean() > 0.8
    assert outcome.robust.mean() < outcome.correct.mean() - 0.1


def test_attacks_ask_what_is_combined():
    """Members are no models of their own here: their mean probability is not what predicts."""
    for cls in (LogitMeanEnsemble, VoteEnsemble):
        assert len(as_victim(cls(networks())).members()) == 1
    assert score_adversarial(VoteEnsemble(networks()), X, Y, PGD(eps=0.0, clip=None)) >= 0
