"""Transfer between models, joint regions of ensembles, cosines of gradients."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.tree import DecisionTreeClassifier
from torch import nn

from robustsk import BIM, PGD, EnsembleCCE, score_adversarial
from robustsk.attacks import NoGradientError, as_victim
from robustsk.metrics import SecureRegions, gradient_cosines, secure_regions, transferability_matrix

X, Y = load_iris(return_X_y=True)
BOX = (0.0, 8.0)
ATTACK = BIM(eps=0.4, clip=BOX)


@pytest.fixture(scope="module")
def models():
    return [
        LogisticRegression(C=10, max_iter=1000).fit(X, Y),
        LogisticRegression(C=0.01).fit(X, Y),
        LogisticRegression(max_iter=1000).fit(X[:, ::-1] @ np.diag([1, 1, 1, 0]), Y),
    ]


@pytest.fixture(scope="module")
def tree():
    return DecisionTreeClassifier(max_depth=3, random_state=0).fit(X, Y)


@pytest.fixture(scope="module")
def cce():
    return EnsembleCCE(max_epochs=5, random_state=0, device="cpu").fit(X, Y)


# --- transfer -----------------------------------------------------------------------------


def test_matrix_by_hand(models, tree):
    matrix = transferability_matrix([*models, tree], X, Y, ATTACK, sources=models)
    assert matrix.shape == (3, 4)
    for i, source in enumerate(models):
        X_adv = BIM(source, eps=0.4, clip=BOX).generate(X, Y)
        for j, target in enumerate([*models, tree]):
            assert matrix[i, j] == np.mean(target.predict(X_adv) == Y)
    success = transferability_matrix(
        [*models, tree], X, Y, ATTACK, sources=models, metric="success"
    )
    np.testing.assert_allclose(success, 1 - matrix)


@pytest.mark.parametrize("attack", [ATTACK, PGD(eps=0.3, n_restarts=2, clip=BOX, random_state=0)])
def test_diagonal_is_the_robust_accuracy(models, attack):
    matrix = transferability_matrix(models, X, Y, attack)
    robust = [score_adversarial(m, X, Y, attack) for m in models]
    assert np.diag(matrix).tolist() == robust
    # no model is hurt more by the examples of another one than by its own, here
    assert (matrix >= np.diag(matrix)[None, :] - 1e-12).all()


def test_no_attack_no_transfer(models):
    matrix = transferability_matrix(models, X, Y, BIM(eps=0.0, clip=BOX))
    clean = [m.score(X, Y) for m in models]
    np.testing.assert_allclose(matrix, np.tile(clean, (3, 1)))


@pytest.mark.parametrize("metric", ["accuracy", "success"])
@pytest.mark.parametrize("over", ["all", "correct", "fooled"])
def test_relative_to_which_samples(models, metric, over):
    matrix = transferability_matrix(models, X, Y, ATTACK, metric=metric, over=over)
    clean = [m.predict(X) == Y for m in models]
    for i, source in enumerate(models):
        X_adv = BIM(source, eps=0.4, clip=BOX).generate(X, Y)
        moved = [m.predict(X_adv) == Y for m in models]
        for j in range(len(models)):
            hits = []
            for s in range(len(X)):
                if over != "all" and not clean[j][s]:
                    continue
                if over == "fooled" and (not clean[i][s] or moved[i][s]):
                    continue
                hits.append(moved[j][s] == (metric == "accuracy"))
            assert matrix[i, j] == pytest.approx(np.mean(hits))
    if over == "fooled" and metric == "success":
        assert np.diag(matrix).tolist() == [1.0] * 3


def test_nothing_to_count_is_nan(models):
    wrong = (models[0].predict(X) + 1) % 3
    matrix = transferability_matrix(models[:1], X, wrong, ATTACK, over="correct")
    assert np.isnan(matrix).all()


def test_names_of_labels_and_containers(models):
    names = np.array(["a", "b", "c"])[Y]
    frame = pd.DataFrame(X, columns=list("pqrs"))
    fitted = [LogisticRegression(C=C, max_iter=1000).fit(frame, names) for C in (10, 1)]
    plain = [LogisticRegression(C=C, max_iter=1000).fit(X, Y) for C in (10, 1)]
    first = transferability_matrix(dict(enumerate(fitted)), frame, names, ATTACK)
    np.testing.assert_allclose(first, transferability_matrix(plain, X, Y, ATTACK))


def test_members_of_a_fitted_ensemble(cce):
    matrix = transferability_matrix(cce, X, Y, ATTACK)
    by_hand = transferability_matrix(list(cce.members_), X, Y, ATTACK)
    assert matrix.tolist() == by_hand.tolist()
    row = transferability_matrix(cce, X, Y, ATTACK, sources=[cce])
    assert row.shape == (1, 2)


def test_models_come_back_as_they_were():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).double()
    module.train()
    state = {k: v.clone() for k, v in module.state_dict().items()}
    transferability_matrix([module, module], X, Y, ATTACK)
    gradient_cosines([module, module], X, Y)
    assert module.training
    assert all(p.requires_grad and p.grad is None for p in module.parameters())
    assert all(torch.equal(state[k], v) for k, v in module.state_dict().items())


def test_victims_are_models_too():
    """What attacks see of a model can be judged and attacked like the model, labels and all."""
    names = np.array(["c", "a", "b"])[Y]
    clf = LogisticRegression(max_iter=1000).fit(X, names)
    victim = as_victim(clf)
    assert score_adversarial(victim, X, names, ATTACK) == score_adversarial(clf, X, names, ATTACK)
    matrix = transferability_matrix([victim, clf], X, names, ATTACK)
    assert len(set(matrix.ravel())) == 1


def test_transfer_bad_input(models, tree):
    with pytest.raises(NoGradientError, match="DecisionTree"):
        transferability_matrix([*models, tree], X, Y, ATTACK)
    with pytest.raises(ValueError, match="metric must be"):
        transferability_matrix(models, X, Y, ATTACK, metric="asr")
    with pytest.raises(ValueError, match="over must be"):
        transferability_matrix(models, X, Y, ATTACK, over="none")
    with pytest.raises(TypeError, match="attack must be"):
        transferability_matrix(models, X, Y, "PGD")
    with pytest.raises(ValueError, match="sources is empty"):
        transferability_matrix(models, X, Y, ATTACK, sources=[])
    with pytest.raises(ValueError, match="not been trained on"):
        transferability_matrix(models, X, Y + 1, ATTACK)


# --- regions ------------------------------------------------------------------------------

# Bui et al. 2021, Table 6, percent: a(en,en), a(1,1), a(2,2), S11, S01, S10, S00, nT, a_single
TABLE_6 = {
    "ADV-EN": (40.7, 31.1, 33.2, 24.0, 17.0, 13.0, 46.0, 13.3, 16.7),
    "ADP": (42.9, 31.0, 33.1, 25.7, 13.1, 11.7, 49.5, 7.6, 17.2),
    "CCE-RM": (45.5, 41.7, 41.4, 39.9, 5.2, 5.5, 49.5, 5.0, 5.6),
    "CCE-Base": (43.3, 40.3, 40.5, 36.1, 6.5, 7.2, 50.3, 6.4, 7.2),
}


@pytest.mark.parametrize("row", TABLE_6)
def test_published_table(row):
    ensemble, _, _, s11, s01, s10, s00, not_transferred, single = TABLE_6[row]
    counts = [round(10 * s) for s in (s11, s01, s10, s00)]
    patterns = np.repeat([(1, 1), (0, 1), (1, 0), (0, 0)], counts, axis=0)
    n = len(patterns)
    assert abs(n - 1000) <= 1  # the source rounds
    regions = SecureRegions.from_correct(patterns, np.arange(n) < 10 * ensemble)
    assert regions.n_samples == n
    assert regions.frequency[1, 1] == regions.all_secure == counts[0] / n
    assert regions.frequency[0, 1] == counts[1] / n
    assert regions.frequency[1, 0] == counts[2] / n
    assert regions.frequency[0, 0] == regions.all_insecure == counts[3] / n
    assert 100 * regions.nT == pytest.approx(not_transferred, abs=0.11)
    assert 100 * regions.a_single == pytest.approx(single, abs=0.11)
    # accuracies of the members on examples against the ensemble
    expected = [(counts[0] + counts[2]) / n, (counts[0] + counts[1]) / n]
    assert regions.member_accuracy == pytest.approx(expected)


@pytest.mark.parametrize("n_members", [1, 2, 3, 4])
def test_frequencies_by_counting(n_members):
    rng = np.random.default_rng(n_members)
    correct = rng.random((50, n_members)) < 0.6
    combined = rng.random(50) < 0.5
    transfer = rng.random((n_members, n_members))
    regions = SecureRegions.from_correct(correct, combined, transfer)
    assert regions.n_members == n_members
    assert regions.frequency.sum() == pytest.approx(1.0)
    for bits in itertools.product((0, 1), repeat=n_members):
        count = sum(tuple(row.astype(int)) == bits for row in correct)
        assert regions.frequency[bits] == count / 50
    assert regions.member_accuracy == pytest.approx(correct.mean(axis=0))
    assert regions.nT == pytest.approx(1 - combined.mean() - (~correct).all(axis=1).mean())
    assert regions.a_single == pytest.approx(combined.mean() - correct.all(axis=1).mean())
    expected = sum(
        transfer[i, j] - transfer[i, i]
        for i in range(n_members)
        for j in range(n_members)
        if j != i
    )
    found = regions.T
    assert found == pytest.approx(expected)


def test_two_members_in_the_letters_of_the_source():
    transfer = [[0.1, 0.7], [0.6, 0.2]]
    regions = SecureRegions.from_correct([[1, 0]], [1], transfer)
    found = regions.T
    assert found == pytest.approx(0.7 - 0.1 + 0.6 - 0.2)


def test_regions_of_models_by_hand(models):
    pair = models[:2]
    regions = secure_regions(pair, X, Y, ATTACK, ensemble=pair[0])
    X_adv = BIM(pair[0], eps=0.4, clip=BOX).generate(X, Y)
    right = [m.predict(X_adv) == Y for m in pair]
    for a, b in itertools.product((0, 1), repeat=2):
        assert regions.frequency[a, b] == np.mean((right[0] == a) & (right[1] == b))
    assert regions.ensemble_accuracy == right[0].mean()
    assert regions.transfer.tolist() == transferability_matrix(pair, X, Y, ATTACK).tolist()
    assert regions.n_samples == len(Y)


def test_all_right_makes_the_mean_right(models):
    """Lemma 1."""
    for eps in (0.1, 0.3, 0.5):
        regions = secure_regions(models, X, Y, BIM(eps=eps, clip=BOX))
        assert regions.frequency.shape == (2, 2, 2)
        assert regions.a_single >= 0
        assert regions.all_secure <= regions.ensemble_accuracy
        assert regions.frequency.sum() == pytest.approx(1.0)


def test_with_two_classes_all_wrong_makes_the_mean_wrong():
    first = [LogisticRegression(C=C).fit(X[50:], Y[50:]) for C in (0.01, 10)]
    regions = secure_regions(first, X[50:], Y[50:], ATTACK)
    assert regions.all_insecure <= 1 - regions.ensemble_accuracy
    assert regions.nT >= -1e-12


class Constant(nn.Module):
    """The same probabilities for every sample."""

    def __init__(self, probabilities):
        super().__init__()
        self.logits = nn.Parameter(torch.log(torch.tensor(probabilities)))

    def forward(self, x):
        return self.logits + 0.0 * x.sum(1, keepdim=True)


def test_all_wrong_may_be_right_together():
    """With three classes two wrong members can outvote their errors: nT is negative."""
    members = [Constant([0.4, 0.5, 0.1]), Constant([0.4, 0.1, 0.5])]
    regions = secure_regions(members, X, np.zeros(150, dtype=int), ATTACK)
    assert regions.all_insecure == 1.0
    assert regions.ensemble_accuracy == 1.0
    assert regions.nT == -1.0
    assert regions.a_single == 1.0


def test_swapping_and_identical_members(models):
    pair = models[0], models[2]
    one = secure_regions(pair, X, Y, ATTACK)
    two = secure_regions(pair[::-1], X, Y, ATTACK)
    np.testing.assert_allclose(one.frequency, two.frequency.T, atol=0.02)
    assert abs(one.T - two.T) < 1e-12
    assert one.nT == pytest.approx(two.nT, abs=0.02)
    assert one.a_single == pytest.approx(two.a_single, abs=0.02)
    same = secure_regions([models[0]] * 2, X, Y, ATTACK)
    assert same.T == 0.0
    assert same.frequency[0, 1] == same.frequency[1, 0] == 0.0
    assert same.nT == pytest.approx(0.0)
    assert same.a_single == pytest.approx(0.0)
    assert same.ensemble_accuracy == score_adversarial(models[0], X, Y, ATTACK)


def test_regions_of_a_fitted_ensemble(cce):
    regions = secure_regions(cce, X, Y, ATTACK)
    assert regions.n_members == 2
    assert regions.ensemble_accuracy == score_adversarial(cce, X, Y, ATTACK)
    X_adv = BIM(cce, eps=0.4, clip=BOX).generate(X, Y)
    with torch.no_grad():
        right = [m(torch.tensor(X_adv)).argmax(1).numpy() == Y for m in cce.members_]
    assert regions.member_accuracy == pytest.approx([r.mean() for r in right])
    assert regions.all_secure == np.logical_and(*right).mean()


def test_one_member(models):
    regions = secure_regions(models[:1], X, Y, ATTACK)
    robust = score_adversarial(models[0], X, Y, ATTACK)
    assert regions.frequency.tolist() == pytest.approx([1 - robust, robust])
    assert [regions.T, regions.nT, regions.a_single] == pytest.approx([0.0] * 3)


def test_regions_bad_input(models):
    with pytest.raises(ValueError, match="at most 16"):
        secure_regions(models[:1] * 17, X, Y, ATTACK)
    with pytest.raises(ValueError, match="at most 16"):
        SecureRegions.from_correct(np.ones((3, 17)), np.ones(3))
    with pytest.raises(ValueError, match=r"got \(3, 2\) and \(2,\)"):
        SecureRegions.from_correct(np.ones((3, 2)), np.ones(2))
    with pytest.raises(ValueError, match=r"transfer must have shape \(2, 2\)"):
        SecureRegions.from_correct(np.ones((3, 2)), np.ones(3), np.ones((3, 3)))
    with pytest.raises(ValueError, match="T needs"):
        SecureRegions.from_correct(np.ones((3, 2)), np.ones(3)).T  # noqa: B018
    with pytest.raises(TypeError, match="members must be a list"):
        secure_regions(models[0], X, Y, ATTACK)


# --- gradients ----------------------------------------------------------------------------


def softmax_gradients(model):
    """Input gradients of the cross-entropy of a linear model: W^T (p - e_y)."""
    p = model.predict_proba(X)
    p[np.arange(len(Y)), Y] -= 1
    return p @ model.coef_


def test_cosines_of_linear_models(models):
    cosines = gradient_cosines(models, X, Y, batch_size=37)
    gradients = [softmax_gradients(m) for m in models]
    for i, a in enumerate(gradients):
        norms = [np.sqrt((row**2).sum()) for row in a]
        assert cosines.norm_mean[i] == pytest.approx(np.mean(norms))
        assert cosines.norm_std[i] == pytest.approx(np.std(norms))
        for j, b in enumerate(gradients):
            values = [
                (u @ v) / (np.linalg.norm(u) * np.linalg.norm(v)) for u, v in zip(a, b, strict=True)
            ]
            assert cosines.mean[i, j] == pytest.approx(np.mean(values), abs=1e-9)
            assert cosines.std[i, j] == pytest.approx(np.std(values), abs=1e-7)
    np.testing.assert_allclose(np.diag(cosines.mean), 1.0)
    np.testing.assert_allclose(cosines.mean, cosines.mean.T)
    assert cosines.n_samples == 150


def test_binary_linear_models_have_one_direction():
    first = [LogisticRegression(C=C).fit(X[50:], Y[50:]) for C in (0.01, 10)]
    cosines = gradient_cosines(first, X[50:], Y[50:], objective="cw")
    u, v = (m.coef_[0] for m in first)
    expected = u @ v / np.linalg.norm(u) / np.linalg.norm(v)
    assert cosines.mean[0, 1] == pytest.approx(expected)
    assert cosines.std[0, 1] == pytest.approx(0.0, abs=1e-7)
    assert cosines.norm_mean == pytest.approx([np.linalg.norm(u), np.linalg.norm(v)])
    # the opposite labels turn both gradients round
    turned = gradient_cosines(first, X[50:], 3 - Y[50:], objective="cw")
    assert turned.mean[0, 1] == pytest.approx(expected)


class Half(nn.Module):
    """No gradient where the first feature is negative; direction `w` elsewhere."""

    def __init__(self, w):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w, dtype=torch.float64))

    def forward(self, x):
        z = torch.where(x[:, 0] > 0, x @ self.w, torch.zeros_like(x[:, 0]))
        return torch.stack([-z, z], dim=1)


def test_samples_without_a_gradient_do_not_count():
    points = np.array([[1.0, 2.0], [-1.0, 0.5], [3.0, -1.0], [-2.0, 0.1]])
    y = np.array([0, 1, 1, 0])
    cosines = gradient_cosines([Half([1.0, 0.0]), Half([1.0, 1.0])], points, y, objective="cw")
    assert cosines.mean[0, 1] == pytest.approx(np.sqrt(0.5))
    assert cosines.std[0, 1] == pytest.approx(0.0, abs=1e-7)
    # the length of a gradient that is not there is zero
    assert cosines.norm_mean == pytest.approx([1.0, np.sqrt(2.0)])
    nothing = gradient_cosines([Half([1.0, 0.0])], points[1::2], y[1::2])
    assert np.isnan(nothing.mean).all()
    assert np.isnan(nothing.std).all()
    assert nothing.norm_mean.tolist() == [0.0]


def test_images_and_float32():
    torch.manual_seed(0)
    images = np.random.default_rng(0).random((5, 1, 4, 4), dtype=np.float32)
    nets = [nn.Sequential(nn.Flatten(), nn.Linear(16, 3)) for _ in range(2)]
    y = np.array([0, 1, 2, 0, 1])
    cosines = gradient_cosines(nets, images, y)
    flat = gradient_cosines([net[1] for net in nets], images.reshape(5, -1), y)
    np.testing.assert_allclose(cosines.mean, flat.mean, rtol=1e-6)


def test_gradient_bad_input(models, tree):
    with pytest.raises(NoGradientError, match="gradient_cosines follows gradients"):
        gradient_cosines([tree], X, Y)
    with pytest.raises(ValueError, match="no gradient at the sample"):
        gradient_cosines(models, X, Y, objective="kl")
    with pytest.raises(ValueError, match="unknown"):
        gradient_cosines(models, X, Y, objective="mse")
    with pytest.raises(ValueError, match="not been trained on"):
        gradient_cosines(models, X, Y + 1)
    with pytest.raises(ValueError, match="batch_size"):
        gradient_cosines(models, X, Y, batch_size=0)
