"""The gradient of the cross-entropy by false class, and where attacks go."""

import matplotlib
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import chisquare, entropy
from sklearn.linear_model import LogisticRegression

from robustsk import FGSM, PGD, EnsembleCCE, HypersphereHead, StandardClassifier
from robustsk.inspection import HardClassPairAnalysis
from robustsk.metrics import class_pair_gradients, class_pair_shares
from robustsk.models import MLP

matplotlib.use("Agg")


def softmax(a):
    e = np.exp(a - a.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return MLP((4,), 3, hidden_sizes=(6,)).double().eval()


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    return rng.normal(size=(10, 4)), np.arange(10) % 3


@pytest.fixture(scope="module")
def blobs():
    rng = np.random.default_rng(1)
    y = np.arange(240) % 3
    centres = np.array([[0.0, 0.0, 0.0], [1.5, 0.0, 0.0], [0.0, 9.0, 0.0]])
    return centres[y] + 0.3 * rng.normal(size=(240, 3)), y


@pytest.fixture(scope="module")
def trained(blobs):
    return StandardClassifier(
        "mlp", head=HypersphereHead(m=0.0), max_epochs=15, random_state=0, device="cpu"
    ).fit(*blobs)


# --- Lemma 1 -------------------------------------------------------------------------


def test_parts_sum_to_the_gradient(net, batch):
    x = torch.from_numpy(batch[0]).requires_grad_()
    loss = torch.nn.functional.cross_entropy(net(x), torch.from_numpy(batch[1]), reduction="sum")
    (expected,) = torch.autograd.grad(loss, x)
    parts = class_pair_gradients(net, *batch)
    assert parts.shape == (10, 3, 4)
    assert_allclose(parts.sum(1), expected, atol=1e-12)
    assert_array_equal(parts[np.arange(10), batch[1]], 0)


def test_parts_are_those_of_prototypes(net, batch):
    """sigma_j J^T (w_j - w_i), with the Jacobian of the representation by hand."""
    X, y = batch
    first, last = net.features[-2], net.classifier
    w1, b1, w = (p.detach().numpy() for p in (first.weight, first.bias, last.weight))
    hidden = X @ w1.T + b1
    sigma = softmax(np.maximum(hidden, 0) @ w.T + last.bias.detach().numpy())
    parts = class_pair_gradients(net, X, y)
    for n in range(len(X)):
        jacobian = (hidden[n] > 0)[:, None] * w1
        for j in {0, 1, 2} - {y[n]}:
            assert_allclose(parts[n, j], sigma[n, j] * (w[j] - w[y[n]]) @ jacobian, atol=1e-12)


def test_the_form_of_the_source_is_far_from_the_gradient(net, batch):
    exact = class_pair_gradients(net, *batch).sum(1)
    oracle = class_pair_gradients(net, *batch, form="oracle").sum(1)
    error = np.linalg.norm(exact - oracle, axis=1) / np.linalg.norm(exact, axis=1)
    assert error.min() > 1e-3
    assert np.median(error) > 0.2


def test_shares():
    logits = np.random.default_rng(0).normal(size=(20, 5))
    y = np.arange(20) % 5
    p = softmax(logits)
    shares = class_pair_shares(logits, y)
    expected = p / (1 - p[np.arange(20), y])[:, None]
    expected[np.arange(20), y] = 0
    assert_allclose(shares, expected, rtol=1e-12)
    assert_allclose(shares.sum(1), 1)


def test_shares_of_a_model_that_is_very_sure():
    # 1 - sigma_i is zero in floating point, the shares are not
    shares = class_pair_shares([[2000.0, 1.0, 0.0]], [0])
    assert_allclose(shares, [[0, np.e / (1 + np.e), 1 / (1 + np.e)]])


def test_order_of_shares_is_that_of_cosines(trained, blobs):
    analysis = HardClassPairAnalysis.from_estimator(trained, *blobs)
    logits = trained.decision_function(blobs[0])
    for share, cos, label in zip(analysis.shares, logits / 10, blobs[1], strict=True):
        others = [j for j in range(3) if j != label]
        assert (share[others].argmax()) == (cos[others].argmax())


def test_bad_input(net, batch):
    with pytest.raises(ValueError, match="form must be"):
        class_pair_gradients(net, *batch, form="lemma")
    with pytest.raises(ValueError, match="indices of classes, from 0 to 2"):
        class_pair_shares(np.zeros((2, 3)), [0, 3])
    with pytest.raises(ValueError, match="at least 2 columns"):
        class_pair_shares(np.zeros((2, 1)), [0, 0])


# --- the analysis --------------------------------------------------------------------


def test_numbers_by_hand(trained, blobs):
    X, y = blobs
    attack = PGD(eps=1.0, random_state=0)
    analysis = HardClassPairAnalysis.from_estimator(trained, X, y, attack)
    X_adv = attack.set_params(estimator=trained).fit(X).generate(X, y)
    before, after = trained.predict(X), trained.predict(X_adv)
    for i in range(3):
        for j in range(3):
            assert analysis.confusion[i, j] == ((y == i) & (after == j)).sum()
    cos = trained.decision_function(X) / 10.0  # s = 10
    cos_adv = trained.decision_function(X_adv) / 10.0
    assert_allclose(analysis.mean_cosines, [cos[y == i].mean(0) for i in range(3)], atol=1e-6)
    assert_allclose(analysis.cosine_change, np.abs(cos - cos_adv).mean(), atol=1e-6)
    fooled = (before == y) & (after != y)
    assert analysis.n_fooled == fooled.sum() > 50
    for scores in (cos, cos_adv):
        scores[np.arange(len(y)), y] = -2
    hard = cos.argmax(1)
    assert analysis.agreement["cosine"] == (hard == after)[fooled].mean()
    assert analysis.agreement["chance"] == 0.5
    assert analysis.same_hardest == (hard == cos_adv.argmax(1)).mean()
    weight = trained.module_.classifier.weight.detach().numpy()
    norms = np.linalg.norm(weight, axis=1)
    assert_allclose(analysis.prototype_norms, norms, rtol=1e-6)
    assert_allclose(analysis.prototype_cv, norms.std() / norms.mean(), rtol=1e-6)
    wrong = np.array([(y == 0) & (after == j) for j in (1, 2)]).sum(1)
    assert analysis.chi2[0] == chisquare(wrong).statistic
    assert analysis.entropy[0] == pytest.approx(entropy(wrong) / np.log(2))


def test_attacks_go_to_the_closer_class(trained, blobs):
    analysis = HardClassPairAnalysis.from_estimator(trained, *blobs, PGD(eps=1.0, random_state=0))
    assert analysis.agreement["cosine"] > 0.7
    assert analysis.confusion[0, 1] > 2 * analysis.confusion[0, 2]
    assert analysis.p_value[0] < 0.001
    assert analysis.entropy[0] < 0.9


def test_without_an_error_there_is_nothing_to_say(trained, blobs):
    analysis = HardClassPairAnalysis.from_estimator(trained, *blobs, PGD(eps=0.0))
    assert analysis.n_fooled == 0
    assert np.isnan(analysis.agreement["cosine"])
    assert analysis.cosine_change == 0
    assert analysis.same_hardest == 1


def test_linear_layers_and_labels_of_any_kind(blobs):
    X, y = blobs[0], np.array(["ant", "bee", "cat"])[blobs[1]]
    for clf in (
        StandardClassifier("mlp", max_epochs=5, random_state=0).fit(X, y),
        StandardClassifier("mlp", max_epochs=5, input_shape=(3, 1, 1), random_state=0).fit(X, y),
    ):
        analysis = HardClassPairAnalysis.from_estimator(clf, X, y, FGSM(eps=0.5))
        assert analysis.classes.tolist() == ["ant", "bee", "cat"]
        assert analysis.confusion.sum() == len(y)


def test_what_cannot_be_analysed(blobs):
    X, y = blobs
    ensemble = EnsembleCCE("mlp", max_epochs=1, random_state=0).fit(X, y)
    with pytest.raises(ValueError, match="members of an ensemble one by one"):
        HardClassPairAnalysis.from_estimator(ensemble, X, y)
    linear = LogisticRegression().fit(X, y)
    with pytest.raises(ValueError, match="targeted"):
        HardClassPairAnalysis.from_estimator(linear, X, y, PGD(eps=0.1, target=0))


@pytest.mark.parametrize("what", ["confusion", "cosines"])
def test_plot(trained, blobs, what):
    analysis = HardClassPairAnalysis.from_estimator(trained, *blobs, PGD(eps=1.0, random_state=0))
    display = analysis.plot(what)
    shown = display.im_.get_array()
    if what == "confusion":
        assert_allclose(shown.sum(1), 1)
        assert display.ax_.get_xlabel() == "Predicted under attack"
    else:
        assert_allclose(shown, analysis.mean_cosines)
    matplotlib.pyplot.close("all")
    with pytest.raises(ValueError, match="what must be"):
        analysis.plot("both")
