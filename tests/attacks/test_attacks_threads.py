"""Threads, interrupts and the last word: what an attack leaves behind, and whom it believes."""

import signal
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.datasets import load_digits, load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from torch import nn

import robustsk
from robustsk import APGD, PGD, AutoAttack, SquareAttack, StandardClassifier, score_adversarial
from robustsk.attacks import FAB, TransferAttack
from robustsk.metrics import adversarial_outcome
from robustsk.victims.engine import Engine
from robustsk.victims.victim import Victim


def network(training=False):
    """Return a network with batch normalisation, as `test_attacks_replica.py` tries them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Flatten(), nn.Dropout(0.2), nn.Linear(512, 10),
        )  # fmt: skip
        with torch.no_grad():
            for _ in range(3):
                module(torch.rand(32, 1, 8, 8))
    return module.train(training)


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return (X / 16).astype(np.float32).reshape(-1, 1, 8, 8)[:200], y[:200]


@pytest.fixture(scope="module")
def classifier(digits):
    return StandardClassifier(
        network(), max_epochs=3, lr=0.01, device="cpu", random_state=0
    ).fit(*digits)  # fmt: skip


def everything(module):
    """Return all of a module that an attack could leave changed, in a form that can be compared."""
    return [
        (
            m.training,
            sorted(vars(m)),
            [(n, p.requires_grad, p.grad is None, p.tolist()) for n, p in m._parameters.items()],
            [(n, b.tolist()) for n, b in m._buffers.items()],
            [list(hooks) for hooks in (m._forward_hooks, m._forward_pre_hooks)],
        )
        for m in module.modules()
    ]


def in_threads(work, things, n_threads=4):
    with ThreadPoolExecutor(n_threads) as pool:
        return list(pool.map(work, things))


# --- threads -------------------------------------------------------------------------


def parts_of(digits, n_parts):
    X, y = digits
    return [(X[k::n_parts], y[k::n_parts]) for k in range(n_parts)]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("attack", "n_times"),
    [
        (PGD(eps=0.1, n_steps=3), 4),
        pytest.param(PGD(eps=0.1, n_steps=3), 30, marks=pytest.mark.slow),
        pytest.param(PGD(eps=0.1, n_steps=3, precision="bf16"), 30, marks=pytest.mark.slow),
        pytest.param(PGD(eps=0.1, n_steps=3, bn_mode="train"), 30, marks=pytest.mark.slow),
        pytest.param(APGD(eps=0.1, n_steps=5), 10, marks=pytest.mark.slow),
        pytest.param(SquareAttack(eps=0.1, max_queries=10), 10, marks=pytest.mark.slow),
        pytest.param(FAB(n_steps=3, eps=0.1), 10, marks=pytest.mark.slow),
        pytest.param(AutoAttack(eps=0.02, version="fast"), 3, marks=pytest.mark.slow),
    ],
)
def test_threads_that_attack_one_module(digits, training, attack, n_times):
    module = network(training)
    attack = attack._with(estimator=module, clip=(0, 1), random_state=0)
    parts = parts_of(digits, 4)
    alone = [attack.generate(*part) for part in parts]
    before = everything(module)
    for _ in range(n_times):
        together = in_threads(lambda part: attack.generate(*part), parts)
        assert all(map(np.array_equal, alone, together))
        assert everything(module) == before


def test_threads_that_share_a_victim(digits):
    """Whoever asks has a replica of its own, also of a victim that is handed round."""
    victim = Victim(network())
    parts = [torch.from_numpy(X) for X, _ in parts_of(digits, 8)]
    attack = PGD(eps=0.1, clip=(0, 1), n_steps=3, random_state=0)
    alone = [attack.perturb(victim, x) for x in parts]
    for _ in range(3):
        assert all(map(torch.equal, alone, in_threads(lambda x: attack.perturb(victim, x), parts)))


class Flat(TransformerMixin, BaseEstimator):
    def fit(self, X, y=None):
        self.fitted_ = True
        return self

    def transform(self, X):
        return X.reshape(len(X), -1)


def test_cross_validation_of_a_pipeline_on_threads(digits, classifier):
    X, y = digits
    pipeline = make_pipeline(
        PGD(FrozenEstimator(classifier), eps=0.1, n_steps=3, random_state=0),
        Flat(),
        LogisticRegression(max_iter=50),
    )
    proba = classifier.predict_proba(X)
    alone = cross_val_score(pipeline, X, y, cv=4)
    for _ in range(2):
        with joblib.parallel_config(backend="threading", n_jobs=4):
            assert_array_equal(cross_val_score(pipeline, X, y, cv=4), alone)
    assert_array_equal(classifier.predict_proba(X), proba)


@pytest.mark.dealt
@pytest.mark.parametrize("attack", [PGD(n_steps=3), SquareAttack(max_queries=10)])
def test_scores_on_threads(digits, classifier, attack):
    before = everything(classifier.module_)
    attack = attack._with(eps=0.1, random_state=0)
    parts = parts_of(digits, 8)
    alone = [score_adversarial(classifier, *part, attack) for part in parts]
    with joblib.parallel_config(backend="threading", n_jobs=4):
        together = joblib.Parallel()(
            joblib.delayed(score_adversarial)(classifier, *part, attack) for part in parts
        )
    assert together == alone
    assert everything(classifier.module_) == before


@pytest.mark.parametrize("n_calls", [20, pytest.param(500, marks=pytest.mark.slow)])
def test_predictions_during_an_attack(digits, classifier, n_calls):
    X, y = digits
    expected = classifier.predict_proba(X)
    attack = PGD(classifier, eps=0.1, n_steps=5, precision="bf16", random_state=0)
    with ThreadPoolExecutor(1) as pool:
        running, n_attacks = None, 0
        for _ in range(n_calls):
            if running is None or running.done():
                running, n_attacks = pool.submit(attack.generate, X, y), n_attacks + 1
            assert_array_equal(classifier.predict_proba(X), expected)
        running.result()
    assert n_attacks


# --- interrupts ----------------------------------------------------------------------


class Interrupted(nn.Module):
    """Raises an interrupt the n-th time it is asked."""

    def __init__(self, module, at):
        super().__init__()
        self.module, self.count = module, [at]

    def forward(self, x):
        self.count[0] -= 1
        if self.count[0] == 0:
            raise KeyboardInterrupt
        return self.module(x)


@pytest.mark.parametrize("at", [1, 2, 3, 6, 9])
def test_an_interrupted_attack_leaves_nothing_behind(digits, at):
    X, y = digits
    module = network(training=True)
    before = everything(module)
    for precision in (None, "bf16"):
        attack = PGD(Interrupted(module, at), eps=0.1, n_steps=10, clip=(0, 1), precision=precision)
        with pytest.raises(KeyboardInterrupt):
            attack.generate(X[:20], y[:20])
        assert everything(module) == before


@pytest.mark.slow
def test_interrupts_at_random_moments(digits):
    X, y = digits
    module = network(training=True)
    before = everything(module)
    generator = np.random.default_rng(0)
    attacks = [
        PGD(module, eps=0.1, n_steps=10, clip=(0, 1)),
        PGD(module, eps=0.1, n_steps=10, clip=(0, 1), precision="bf16"),
        APGD(module, eps=0.1, n_steps=10, clip=(0, 1)),
        SquareAttack(module, eps=0.1, max_queries=20, clip=(0, 1)),
    ]
    n_caught = 0
    for k in range(300):
        former = signal.signal(signal.SIGALRM, lambda *args: signal.raise_signal(signal.SIGINT))
        # processes that run tests may ignore it
        handler = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            try:
                signal.setitimer(signal.ITIMER_REAL, generator.uniform(1e-4, 2e-2))
                attacks[k % len(attacks)].generate(X[:50], y[:50])
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt:
            n_caught += 1
        finally:
            signal.signal(signal.SIGALRM, former)
            signal.signal(signal.SIGINT, handler)
        assert everything(module) == before
    assert n_caught > 50


# --- the last word -------------------------------------------------------------------


class EarlyExit(nn.Module):
    """Samples with a large first feature leave early, before the normalisation."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.body, self.norm = nn.Linear(6, 16), nn.BatchNorm1d(16)
            self.last, self.early = nn.Linear(16, 3), nn.Linear(16, 3)
            self.norm.running_mean.normal_(0, 2)
            self.norm.running_var.uniform_(4, 9)
        self.eval()

    def forward(self, x):
        h = self.body(x)
        late, leaves = self.last(torch.relu(self.norm(h))), x[:, 0] > 0.5
        if not leaves.any():
            return late
        return torch.where(leaves[:, None], self.early(torch.relu(h)), late)


@pytest.fixture(scope="module")
def gate():
    """A model, and samples that stay and that leave; the trial of folding sees the first only."""
    X = np.random.default_rng(0).random((200, 6), dtype=np.float32)
    X[:, 0] = np.repeat([0.2, 0.8], 100)
    model = EarlyExit()
    return model, X, predicted(model, X)


def predicted(model, X):
    with torch.no_grad():
        return model(torch.from_numpy(X)).argmax(1).numpy()


ATTACKS = [
    PGD(n_steps=20, eps=0.05),
    APGD(n_steps=10, eps=0.05),
    FAB(n_steps=10, eps=0.05),
    AutoAttack(
        version="custom",
        attacks=[APGD(n_steps=5), FAB(n_steps=5), SquareAttack(max_queries=20)],
        eps=0.03,
    ),
]


class SideDoor(nn.Module):
    """Only samples with a large first feature are normalised, which is what folding undoes."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.body, self.norm, self.last = nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Linear(16, 3)
            self.norm.running_mean.normal_(0, 2)
            self.norm.running_var.uniform_(4, 9)
        self.eval()

    def forward(self, x):
        h, enters = self.body(x), x[:, :1] > 0.5
        if enters.all():
            return self.last(torch.relu(self.norm(h)))
        return self.last(torch.relu(torch.where(enters, self.norm(h), h)))


def test_robustness_does_not_depend_on_which_samples_come_first():
    X = np.random.default_rng(0).random((200, 6), dtype=np.float32)
    X[:, 0] = np.repeat([0.9, 0.1], 100)
    model = SideDoor()
    attack = PGD(eps=0.05, n_steps=20, clip=(0, 1), random_state=0, batch_size=50)
    scores = [
        score_adversarial(model, X[order], predicted(model, X[order]), attack)
        for order in (np.arange(200), np.arange(200)[::-1])
    ]
    assert abs(scores[0] - scores[1]) <= 0.02


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: type(attack).__name__)
def test_whatever_is_said_to_be_fooled_fools_the_model(gate, attack):
    model, X, y = gate
    attack = attack._with(clip=(0, 1), random_state=0, batch_size=50)
    outcome = adversarial_outcome(model, X, y, attack)
    assert_array_equal(predicted(model, outcome.X_adv), outcome.y_pred_adv)
    X_adv = attack._with(estimator=model).generate(X, y)
    fooled = predicted(model, X_adv) != y
    # folding has not made the attack weaker either
    plain = attack._with(estimator=model, bn_mode="eval")
    plain._engine = lambda: Engine(fold=False, channels_last=False)
    expected = predicted(model, plain.generate(X, y)) != y
    assert abs(int(fooled.sum()) - int(expected.sum())) <= 2
    assert 2 < fooled.sum() < 100
    if isinstance(attack, AutoAttack):
        result = attack._with(estimator=model).evaluate(X, y)
        assert result.robust_accuracy == np.mean(predicted(model, result.X_adv) == y)


def test_a_network_that_cannot_be_folded_after_all_is_run_as_it_is(gate):
    model, X, y = gate
    victim = Victim(model)
    prepared = PGD(eps=0.05, clip=(0, 1), batch_size=50, random_state=0).prepare(victim, X, y)
    prepared.attack.run(prepared, keep="first")
    with victim.frozen("eval", prepared.attack._engine()) as seen:
        assert not seen.is_folded
        assert_array_equal(seen(torch.from_numpy(X)).argmax(1), y)


def test_questions_for_the_last_word_are_counted():
    X = load_iris().data.astype(np.float32)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).eval()
    attack = PGD(eps=0.0, n_steps=3, clip=None, random_state=0)
    outcome = adversarial_outcome(model, X, predicted(model, X), attack)
    # in attack mode, of the model itself, and as it denies a success, whether there seemed one
    assert outcome.n_forward == (4 + 1 + 1) * len(X)


def test_transfer_is_judged_by_the_victim(gate):
    model, X, y = gate
    attack = TransferAttack(model, attack=PGD(eps=0.05, clip=(0, 1)), surrogate=EarlyExit())
    outcome = adversarial_outcome(model, X, y, attack)
    assert_array_equal(predicted(model, outcome.X_adv), outcome.y_pred_adv)


# --- how deep a question lies --------------------------------------------------------


def own_frames():
    root = Path(robustsk.__file__).parent
    stack = traceback.extract_stack()
    return [frame.name for frame in stack if root in Path(frame.filename).parents]


def test_few_frames_from_a_score_to_the_question():
    frames = []

    class Watched(RandomForestClassifier):
        def predict_proba(self, X):
            frames.append(own_frames())
            return super().predict_proba(X)

    X, y = load_iris(return_X_y=True)
    forest = Watched(5, random_state=0).fit(X, y)
    score_adversarial(forest, X, y, SquareAttack(eps=0.3, max_queries=5, random_state=0))
    asked = [names for names in frames if "_attack_batch" in names]
    assert len(asked[0]) <= 10


def test_few_frames_from_generate_to_the_model(digits):
    frames = []

    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = network()

        def forward(self, x):
            frames.append(own_frames())
            return self.module(x)

    X, y = digits
    PGD(Watched(), eps=0.1, n_steps=3, clip=(0, 1), random_state=0).generate(X, y)
    asked = [names for names in frames if "value_and_gradient" in names and "_plan" not in names]
    assert len(asked) == 3
    assert max(map(len, asked)) <= 8
