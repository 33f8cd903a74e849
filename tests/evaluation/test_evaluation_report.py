import html
import json
import re

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.ensemble import RandomForestClassifier, VotingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import TensorDataset

from robustsk import FGSM, MIM, PGD, PGDATClassifier, StandardClassifier, load_digits_images
from robustsk.evaluation import red_flags, robustness_report
from robustsk.evaluation._problem import Problem
from robustsk.metrics import adversarial_outcome, clopper_pearson_interval, robust_accuracy

EPS = 0.12
NAMES = np.array([f"class {i}" for i in range(10)])
ATTACKS = {"FGSM": FGSM(), "PGD-5": PGD(n_steps=5), "MIM": MIM(n_steps=5)}
CHEAP = {"eps": EPS, "attacks": ATTACKS, "red_flags": False}


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits_images(return_X_y=True, as_flat=True)
    return X[:1000], NAMES[y[:1000]], X[1000:1120], NAMES[y[1000:1120]]


@pytest.fixture(scope="module")
def clf(digits):
    return PGDATClassifier(
        max_epochs=10, adversary__eps=EPS, adversary__n_steps=5, random_state=0
    ).fit(*digits[:2])


@pytest.fixture(scope="module")
def held_out(digits):
    return digits[2:]


@pytest.fixture(scope="module")
def report(clf, held_out):
    """The default report."""
    return robustness_report(clf, *held_out, eps=EPS, n_flag_samples=60)


@pytest.fixture(scope="module")
def cheap(clf, held_out):
    return robustness_report(clf, *held_out, **CHEAP)


# --- the numbers ---------------------------------------------------------------------


def test_default_rows(report):
    assert list(report.rows) == [
        "clean",
        "FGSM",
        "PGD-20",
        "PGD-100",
        "C&W",
        "MIM",
        "FAB",
        "Square",
        "AutoAttack-fast",
        "worst case",
    ]
    accuracy = {name: row.accuracy for name, row in report.rows.items()}
    assert accuracy["clean"] > 0.8
    assert accuracy["clean"] > accuracy["FGSM"] >= accuracy["PGD-20"] >= accuracy["PGD-100"]
    assert accuracy["PGD-100"] - accuracy["worst case"] < 0.1
    assert accuracy["worst case"] == min(accuracy.values())
    assert not report.fired


def test_rows_are_those_of_robust_accuracy(clf, held_out, cheap):
    for name, attack in ATTACKS.items():
        attack = attack._with(eps=EPS, random_state=0)
        expected = robust_accuracy(clf, *held_out, attack)
        row = cheap[name]
        assert (row.accuracy, row.low, row.high, row.confidence, row.n_samples) == (
            expected.accuracy,
            expected.low,
            expected.high,
            expected.confidence,
            expected.n_samples,
        )
        outcome = adversarial_outcome(clf, *held_out, attack)
        np.testing.assert_array_equal(row.robust, outcome.robust)
        assert (row.n_forward, row.n_backward) == (outcome.n_forward, outcome.n_backward)
    assert cheap["clean"].accuracy == clf.score(*held_out)
    assert (cheap["clean"].n_forward, cheap["clean"].n_backward) == (len(held_out[1]), 0)


def test_worst_case(cheap, report):
    for one in (cheap, report):
        worst = one["worst case"]
        others = [row for name, row in one.rows.items() if name != "worst case"]
        np.testing.assert_array_equal(worst.robust, np.all([row.robust for row in others], axis=0))
        assert worst.accuracy <= min(row.accuracy for row in others)
        assert worst.accuracy == worst.robust.mean()
        assert worst.n_forward == sum(row.n_forward for row in others)
        assert worst.n_backward == sum(row.n_backward for row in others)
        assert worst.seconds == pytest.approx(sum(row.seconds for row in others))


def test_worst_case_can_be_below_every_row():
    # each direction breaks another half of the samples
    class Shift(FGSM):
        def __init__(self, estimator=None, *, sign=1.0, **common):
            super().__init__(estimator, **common)
            self.sign = sign

        def _attack_batch(self, batch):
            return batch.ball.project(batch.x + self.sign)

    class Near(nn.Module):
        def forward(self, x):
            return torch.cat([1 - 3 * x.abs(), 0 * x], 1)

    X = np.array([[0.3], [0.29], [-0.3], [-0.29]])
    attacks = {"up": Shift(eps=0.1), "down": Shift(sign=-1.0)}
    found = robustness_report(Near().double(), X, [0] * 4, clip=None, attacks=attacks)
    assert found["clean"].accuracy == 1
    assert found["up"].accuracy == found["down"].accuracy == 0.5
    assert found["worst case"].accuracy == 0


def test_per_class(cheap, held_out):
    y = held_out[1]
    for row in cheap.rows.values():
        assert list(row.per_class) == sorted(set(y))
        for label, part in row.per_class.items():
            robust = row.robust[y == label]
            assert part.accuracy == robust.mean()
            assert part.n_samples == len(robust)
            assert (part.low, part.high) == clopper_pearson_interval(
                int(robust.sum()), len(robust), 0.95
            )


def test_confidence(clf, held_out, cheap):
    wide = robustness_report(clf, *held_out, confidence=0.999, **CHEAP)
    for name, row in wide.rows.items():
        assert row.accuracy == cheap[name].accuracy
        assert row.low < cheap[name].low
        assert row.high > cheap[name].high
    assert "99.9% interval" in str(wide)


def test_same_twice(clf, held_out, cheap):
    torch.manual_seed(5)
    again = robustness_report(clf, *held_out, **CHEAP).to_dict()
    first = cheap.to_dict()
    for one in (again, first):
        for row in one["rows"].values():
            del row["seconds"]
    assert again == first


def test_range(clf, held_out):
    X, y = held_out
    index = np.searchsorted(NAMES, y)
    found = {
        name: robustness_report(clf.module_, X, index, clip=clip, **CHEAP)["PGD-5"].accuracy
        for name, clip in {"auto": "auto", "of X": (X.min(0), X.max(0)), "none": None}.items()
    }
    assert found["auto"] == found["of X"]
    assert found["none"] < found["auto"]
    # what the estimator has learned comes before the range of the data
    few = robustness_report(clf, X[:30], y[:30], **CHEAP)
    whole = robustness_report(clf, X, y, **CHEAP)
    np.testing.assert_array_equal(few["PGD-5"].robust, whole["PGD-5"].robust[:30])


# --- text, dict, HTML, frame ---------------------------------------------------------


def test_text_says_what_the_dict_says(report):
    found = report.to_dict()
    text = str(report)
    for name, row in found["rows"].items():
        line = next(line for line in text.splitlines() if line.startswith(f"{name} "))
        numbers = re.findall(r"[\d.,]+", line.removeprefix(name))
        assert numbers == [
            f"{row['accuracy']:.3f}",
            f"{row['low']:.3f}",
            f"{row['high']:.3f}",
            f"{row['n_forward']:,}",
            f"{row['n_backward']:,}",
            f"{row['seconds']:.2f}",
        ]
    for label in NAMES:
        line = next(line for line in text.splitlines() if line.startswith(label))
        numbers = re.findall(r"[\d.]+", line.removeprefix(label))
        parts = [row["per_class"][label] for row in found["rows"].values()]
        assert numbers[0] == str(parts[0]["n_samples"])
        assert numbers[1:-2] == [f"{part['accuracy']:.3f}" for part in parts]
    lines = text.splitlines()
    assert max(map(len, lines)) < 140
    # numbers stand below their headings, flush right
    table = lines[2 : 3 + len(found["rows"])]
    assert len({len(line) for line in table}) == 1
    assert table[0].endswith("  forward  backward  seconds")
    assert repr(report) == text


def test_dict_is_json(report):
    found = json.loads(json.dumps(report.to_dict()))
    assert found == report.to_dict()
    assert found["norm"] == "linf"
    assert found["eps"] == EPS
    assert found["n_samples"] == 120
    assert len(found["red_flags"]) == len(report.red_flags) == 11
    assert found["red_flags"]["randomness"]["fired"] is False


def test_output_dict(clf, held_out, cheap):
    found = robustness_report(clf, *held_out, output_dict=True, **CHEAP)
    assert found["rows"]["MIM"]["accuracy"] == cheap["MIM"].accuracy
    assert found["red_flags"] == {}


def test_html_says_what_the_text_says(report):
    page = report.to_html()
    assert page == report._repr_html_()
    cells = [html.unescape(cell) for cell in re.findall(r"<t[dh]>(.*?)</t[dh]>", page)]
    for name, row in report.rows.items():
        assert name in cells
        assert f"{row.low:.3f} to {row.high:.3f}" in cells
    assert "C&amp;W" in page
    for flag in report.red_flags:
        assert flag.name in page
        assert html.escape(flag.evidence) in page
    for tag in ("table", "tr", "td", "th", "div", "details", "p", "b"):
        assert len(re.findall(rf"<{tag}\b", page)) == page.count(f"</{tag}>"), tag


def test_html_escapes_labels_and_names():
    rng = np.random.default_rng(0)
    X = rng.uniform(size=(40, 3))
    y = np.where(X[:, 0] > 0.5, "<script>alert(1)</script>", "a & b")
    clf = LogisticRegression().fit(X, y)
    found = robustness_report(clf, X, y, attacks={"<i>": FGSM(eps=0.1)}, red_flags=False)
    page = found.to_html()
    assert "<script>" not in page
    assert "<i>" not in page
    assert "&lt;script&gt;" in page
    assert "a &amp; b" in page
    assert "<script>alert(1)</script>" in str(found)


def test_frame(cheap):
    frame = cheap.to_frame()
    assert list(frame.index) == list(cheap.rows)
    assert frame.loc["MIM", "accuracy"] == cheap["MIM"].accuracy
    assert frame["n_forward"].dtype.kind == "i"
    classes = cheap.to_frame(per_class=True)
    assert list(classes.columns) == list(NAMES)
    assert classes.loc["FGSM", "class 3"] == cheap["FGSM"].per_class["class 3"].accuracy


def test_flags_are_those_of_red_flags(clf, held_out, report):
    flags = red_flags(clf, *held_out, eps=EPS, n_samples=60)
    assert [f.name for f in flags] == [f.name for f in report.red_flags]
    # the report has run more attacks, so that comparisons can only be less alarming
    same = {"not_falling_to_chance", "vanishing_gradients", "randomness", "logit_scaling"}
    for one, other in zip(flags, report.red_flags, strict=True):
        if one.name in same:
            assert one == other


# --- what can be evaluated -----------------------------------------------------------


def test_images_and_torch_labels():
    X, y = load_digits_images(return_X_y=True)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    found = robustness_report(net, X[:50], torch.as_tensor(y[:50]), **CHEAP)
    assert list(found["clean"].per_class) == [str(i) for i in range(10)]
    data = TensorDataset(torch.as_tensor(X[:50]), torch.as_tensor(y[:50]))
    again = robustness_report(net, data, None, **CHEAP)
    assert again["PGD-5"].accuracy == found["PGD-5"].accuracy


def test_pipeline_on_a_frame(held_out):
    X, y = held_out
    frame = pd.DataFrame(X, columns=[f"pixel {i}" for i in range(64)])
    clf = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(frame, y)
    found = robustness_report(clf, frame, y, **{**CHEAP, "red_flags": True}, n_flag_samples=40)
    assert found["FGSM"].accuracy < found["clean"].accuracy == 1
    assert not found.fired


def test_forest(digits):
    X, y = digits[2][:40], digits[3][:40]
    forest = RandomForestClassifier(10, random_state=0).fit(*digits[:2])
    found = robustness_report(forest, X, y, eps=0.3, n_flag_samples=20)
    assert list(found.rows) == ["clean", "Square", "HopSkipJump", "Transfer", "worst case"]
    assert found["worst case"].accuracy < 0.6 * found["clean"].accuracy
    assert any("has no gradients" in note for note in found.notes)
    assert all(row.n_backward == 0 for name, row in found.rows.items() if name != "Transfer")


def test_labels_only(digits):
    X, y = digits[2][:20], digits[3][:20]
    clf = VotingClassifier([("a", LogisticRegression(max_iter=300))], voting="hard")
    found = robustness_report(clf.fit(*digits[:2]), X, y, eps=0.3, red_flags=False)
    assert list(found.rows) == ["clean", "HopSkipJump", "Transfer", "worst case"]


def test_no_gradient_reaches_the_input(held_out):
    class Detached(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(64, 10)

        def forward(self, x):
            return self.last((x > 0.5).to(x))

    torch.manual_seed(0)
    X = held_out[0]
    model = Detached()
    y = model(torch.as_tensor(X)).argmax(1).numpy()
    found = robustness_report(model, X[:30], y[:30], eps=EPS, n_flag_samples=30)
    assert "Square" in found.rows
    assert "PGD-20" not in found.rows
    assert [flag.name for flag in found.fired] == ["vanishing_gradients"]
    assert "FIRED" in str(found)
    assert "Needs gradients" in str(found)


def test_flags_use_the_rows(digits, held_out):
    class Rounded(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, x):
            return self.module((4 * x).round() / 4)

    natural = StandardClassifier(max_epochs=10, random_state=0).fit(*digits[:2])
    X, y = held_out
    found = robustness_report(
        Rounded(natural.module_), X, np.searchsorted(NAMES, y), eps=0.15, autoattack=None
    )
    assert found["Square"].accuracy < 0.5 < found["PGD-100"].accuracy
    flag = found.red_flags[0]
    assert flag.name == "black_box_stronger"
    assert flag.fired
    n, square, white, only = map(int, re.findall(r"\d+", flag.evidence))
    robust = {name: row.robust for name, row in found.rows.items()}
    assert n == robust["clean"].sum()
    assert square == n - robust["Square"].sum()
    names = ["FGSM", "PGD-20", "PGD-100", "C&W", "MIM", "FAB"]
    assert white >= n - np.all([robust[name] for name in names], axis=0).sum()
    assert only >= square - white


def test_random_model(clf, held_out):
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = clf.module_

        def forward(self, x):
            return self.module(x + 0.1 * torch.randn_like(x))

    X, y = held_out
    torch.manual_seed(0)
    found = robustness_report(Noisy(), X, np.searchsorted(NAMES, y), **CHEAP)
    assert any("answers at random" in note for note in found.notes)
    assert "answers at random" in str(found)
    robust = [row.robust for row in found.rows.values()]
    assert found["worst case"].accuracy == np.all(robust, axis=0).mean()


def test_warnings_of_attacks_become_notes(clf, held_out):
    X, y = held_out
    model = nn.Sequential(clf.module_, nn.Softmax(1))
    found = robustness_report(model, X, np.searchsorted(NAMES, y), **CHEAP)
    (note,) = [note for note in found.notes if "returns probabilities" in note]
    assert note.startswith("FGSM, PGD-5, MIM: ")


def test_nothing_is_right(clf, held_out):
    X = held_out[0]
    wrong = NAMES[(np.searchsorted(NAMES, clf.predict(X)) + 1) % 10]
    found = robustness_report(clf, X, wrong, **CHEAP)
    assert all(row.accuracy == 0 for row in found.rows.values())
    assert found["FGSM"].n_forward == 0


# --- the threat model ----------------------------------------------------------------


def test_threat_model_of_the_estimator(clf, held_out, cheap):
    found = robustness_report(clf, *held_out, attacks=ATTACKS, red_flags=False)
    assert found.eps == EPS
    assert found.norm == np.inf
    assert found["PGD-5"].accuracy == cheap["PGD-5"].accuracy


def test_mask_of_the_estimator(digits, held_out):
    X, y = held_out
    mask = np.arange(64) < 32
    trained = PGDATClassifier(
        max_epochs=1, adversary__eps=EPS, adversary__mask=mask, random_state=0
    ).fit(*digits[:2])
    found = robustness_report(trained, X, y, attacks={"FGSM": FGSM()}, red_flags=False)
    np.testing.assert_array_equal(found.eps, np.where(mask, EPS, 0.0))
    assert "eps=0 to 0.12" in str(found)
    assert json.loads(json.dumps(found.to_dict()))["eps"] == found.eps.tolist()


def test_threat_model_of_the_attacks(clf, held_out):
    attacks = {"a": PGD(norm=2, eps=0.5, n_steps=3), "b": FGSM(norm="l2", eps=0.5)}
    found = robustness_report(clf, *held_out, attacks=attacks, red_flags=False)
    assert (found.norm, found.eps) == (2.0, 0.5)
    assert "l2 norm" in str(found)
    same = robustness_report(
        clf, *held_out, norm=2, eps=0.5, attacks={"a": PGD(n_steps=3)}, red_flags=False
    )
    assert same["a"].accuracy == found["a"].accuracy


@pytest.mark.slow
def test_default_attacks_know_the_norm(clf, held_out):
    X, y = held_out
    found = robustness_report(
        clf, X[:30], y[:30], norm=1, eps=3.0, autoattack=None, red_flags=False
    )
    rows = ["clean", "FGSM", "PGD-20", "PGD-100", "EAD", "MIM", "FAB", "Square", "worst case"]
    assert list(found.rows) == rows
    assert found["worst case"].accuracy < found["clean"].accuracy


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"eps": 0.1, "attacks": {"a": PGD(eps=0.2)}}, "contradicts eps=0.1 of the report"),
        ({"norm": 1, "attacks": {"a": PGD(norm=2)}}, "contradicts norm=1.0 of the report"),
        ({"attacks": {"a": PGD(eps=0.1), "b": PGD(eps=0.2)}}, "of different sizes"),
        ({"attacks": {"a": PGD(norm=2), "b": PGD(norm=1)}}, "of different norms"),
        ({"attacks": {"clean": PGD()}}, "No attack may be called 'clean'"),
        ({"confidence": 2}, "confidence must be between 0 and 1"),
        ({"eps": -1}, "eps must be finite and not negative"),
        ({"norm": 3}, "norm=3 is not supported"),
        ({"attacks": {}}, "pass `attacks`"),
    ],
)
def test_bad_values(clf, held_out, options, match):
    with pytest.raises(ValueError, match=match):
        robustness_report(clf, *held_out, **options)


@pytest.mark.parametrize(
    ("attacks", "match"),
    [
        ([PGD()], "attacks must be a dict"),
        ({"a": PGD}, "must be an attack such as"),
        ("PGD", "attacks must be a dict"),
    ],
)
def test_bad_types(clf, held_out, attacks, match):
    with pytest.raises(TypeError, match=match):
        robustness_report(clf, *held_out, attacks=attacks)


@pytest.mark.parametrize(
    ("norm", "clip", "expected"),
    [
        ("linf", "auto", 0.1),
        ("linf", (0, 2), 1.0),
        (2, (0, 2), 4.0),
        (1, (0, 2), 16.0),
        ("linf", (np.zeros(16), np.linspace(1, 2, 16)), np.linspace(0.5, 1, 16)),
    ],
)
def test_largest_ball(norm, clip, expected):
    # every feature may change by half of its range, all of them at once
    torch.manual_seed(0)
    X = np.linspace(0.4, 0.6, 32).repeat(16).reshape(32, 16).astype(np.float32)
    problem = Problem(
        nn.Linear(16, 2), X, np.arange(32) % 2, norm=norm, eps=0.1, clip=clip, random_state=0
    )
    np.testing.assert_allclose(problem.largest(0.5), expected, rtol=1e-6)
    assert np.ndim(problem.largest(0.5)) == np.ndim(expected)


def test_unknown_label(clf, held_out):
    with pytest.raises(ValueError, match="has not been trained on"):
        robustness_report(clf, held_out[0], np.full(120, "else"), **CHEAP)


def test_progress(clf, held_out, capsys):
    robustness_report(clf, *held_out, verbose=1, **CHEAP)
    assert "attack" in capsys.readouterr().err
