"""The package as a whole: names, laziness, version, documentation."""

import dataclasses
import importlib
import importlib.metadata
import importlib.resources
import inspect
import pathlib
import subprocess
import sys
from fractions import Fraction

import pytest

import robustsk
from robustsk._discovery import all_attacks, all_defenses
from robustsk.attacks.base import BaseAttack
from robustsk.defenses import BaseDefense
from robustsk.victims._checks import ASK_FOR_LABELS, ASK_FOR_SCORES

SUBPACKAGES = sorted(
    path.parent.name for path in pathlib.Path(robustsk.__file__).parent.glob("*/__init__.py")
)
PUBLIC = [
    pytest.param(
        getattr(importlib.import_module(f"robustsk.{package}"), name), id=f"{package}.{name}"
    )
    for package in SUBPACKAGES
    for name in importlib.import_module(f"robustsk.{package}").__all__
]
ESTIMATORS = [pytest.param(cls, id=cls.__name__) for cls in [*all_attacks(), *all_defenses()]]


def run(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()


# --- names ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", robustsk.__all__)
def test_name_resolves(name):
    assert getattr(robustsk, name) is not None
    assert name in dir(robustsk)


def test_every_subpackage_is_reachable():
    assert set(SUBPACKAGES) <= set(robustsk.__all__)
    for name in SUBPACKAGES:
        package = getattr(robustsk, name)
        assert inspect.ismodule(package)
        assert package.__name__ == f"robustsk.{name}"
        assert len(set(package.__all__)) == len(package.__all__) > 0


def test_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'PDG'"):
        robustsk.PDG  # noqa: B018
    with pytest.raises(ImportError):
        from robustsk import PDG  # noqa: F401


def test_names_are_sorted_and_unique():
    assert robustsk.__all__ == sorted(set(robustsk.__all__))


def test_estimators_are_at_the_top():
    for cls in [*all_attacks(), *all_defenses()]:
        assert getattr(robustsk, cls.__name__) is cls


def test_what_has_moved_is_found_where_it_was():
    for name in robustsk.metrics._IN_EVALUATION:
        assert getattr(robustsk.metrics, name) is getattr(robustsk.evaluation, name)


def test_attacks_that_messages_recommend():
    """They are named by a floor that cannot see them."""
    access = {cls.__name__: cls().access for cls in all_attacks()}
    assert access[ASK_FOR_SCORES] == "scores"
    assert access[ASK_FOR_LABELS] == "labels"


# --- laziness ------------------------------------------------------------------------

HEAVY = ["torch", "torchvision", "matplotlib", "PIL", "sklearn", "skorch"]


def imported_by(code):
    return run(f"{code}\nimport sys\nprint(*[m for m in {HEAVY} if m in sys.modules])")


def test_import_is_light():
    assert imported_by("import robustsk") == []
    assert imported_by("import robustsk; robustsk.__version__; dir(robustsk)") == []


def test_what_is_optional_is_not_pulled_in():
    """Neither by names nor by training; all in one process, so that torch is imported once."""
    said = run(
        "import sys, numpy as np\n"
        "def say(what):\n"
        f"    print(what, *[m for m in {HEAVY} if m in sys.modules], sep=',')\n"
        "import robustsk.datasets; say('datasets')\n"
        "from robustsk import PGD; say('PGD')\n"
        "from robustsk import EnsembleCCE; say('EnsembleCCE')\n"
        "from robustsk import RobustnessCurveDisplay; say('RobustnessCurveDisplay')\n"
        "import robustsk.inspection; say('inspection')\n"
        "from robustsk import PGDATClassifier\n"
        "X = np.random.default_rng(0).random((8, 1, 8, 8), dtype=np.float32)\n"
        "y = np.arange(8) % 2\n"
        "PGDATClassifier(max_epochs=1).fit(X, y).score_adversarial(X, y); say('training')\n"
    )
    imported = {line.partition(",")[0]: set(line.split(",")[1:]) for line in said}
    assert list(imported) == [
        "datasets", "PGD", "EnsembleCCE", "RobustnessCurveDisplay", "inspection", "training"
    ]  # fmt: skip
    for what, modules in imported.items():
        assert "torch" in modules or what == "datasets", what
        assert not {"torchvision", "matplotlib", "PIL"} & modules, what


# --- metadata ------------------------------------------------------------------------


def test_version():
    assert robustsk.__version__ == importlib.metadata.version("robustsk")


def test_types_are_advertised():
    assert importlib.resources.files("robustsk").joinpath("py.typed").is_file()


# --- documentation -------------------------------------------------------------------


def sections(doc):
    """Return the sections of a numpydoc docstring as {title: lines}."""
    lines = inspect.cleandoc(doc).splitlines()
    found, title = {}, None
    for i, line in enumerate(lines):
        following = lines[i + 1] if i + 1 < len(lines) else ""
        if line.strip() and following and set(following) == {"-"}:
            title = line.strip()
            found[title] = []
        elif title and not (line and set(line) == {"-"}):
            found[title].append(line)
    return found


def documented(doc, title="Parameters"):
    """Return the names in a section."""
    names = []
    for line in sections(doc).get(title, []):
        if line and not line.startswith(" "):
            names += [n.strip().lstrip("*") for n in line.partition(":")[0].split(",")]
    return names


def parameters_of(function):
    return [p for p in inspect.signature(function).parameters.values() if p.name != "self"]


def test_the_parser_of_this_file():
    doc = """Sum up.

    Parameters
    ----------
    a, b : int
        First.
    *rest
        More.

    Returns
    -------
    int
    """
    assert documented(doc) == ["a", "b", "rest"]
    assert list(sections(doc)) == ["Parameters", "Returns"]


@pytest.mark.parametrize("thing", PUBLIC)
def test_docstring(thing):
    if not (inspect.isclass(thing) or inspect.isfunction(thing)):
        pytest.skip("a constant")
    doc = inspect.getdoc(thing)
    assert doc
    first = doc.splitlines()[0]
    assert first.endswith(".")
    assert "%(" not in doc
    if inspect.isfunction(thing):
        assert documented(doc) == [p.name for p in parameters_of(thing)]
    elif not issubclass(thing, Exception) and thing not in (BaseAttack, BaseDefense):
        names = {p.name for p in parameters_of(thing) if p.kind is not p.VAR_KEYWORD}
        found = set(documented(doc))
        # fields are attributes as well
        if dataclasses.is_dataclass(thing) or hasattr(thing, "_fields"):
            found |= set(documented(doc, "Attributes"))
        assert names <= found


@pytest.mark.parametrize("cls", ESTIMATORS)
def test_estimator_docstring(cls):
    found = sections(cls.__doc__)
    assert {"Parameters", "Attributes", "Examples"} <= set(found)
    assert any(">>>" in line for line in found["Examples"])
    assert cls.__name__ in "\n".join(found["Examples"])
    names = [p.name for p in parameters_of(cls)]
    assert sorted(documented(cls.__doc__)) == sorted(names)
    assert len(set(documented(cls.__doc__))) == len(names)


@pytest.mark.parametrize("cls", ESTIMATORS)
def test_signature_lists_what_is_shared(cls):
    base = BaseAttack if issubclass(cls, BaseAttack) else BaseDefense
    own = {p.name: p for p in parameters_of(cls)}
    for parameter in parameters_of(base):
        assert parameter.name in own
    assert "common" not in own
    assert own.keys() - {"nested"} == cls().get_params(deep=False).keys()


@pytest.mark.parametrize("cls", ESTIMATORS)
def test_documented_defaults_are_the_defaults(cls):
    lines = {
        name.strip(): line
        for line in sections(cls.__doc__)["Parameters"]
        if line and not line.startswith(" ") and "default=" in line
        for name in line.partition(":")[0].split(",")
    }
    checked = 0
    for parameter in parameters_of(cls):
        if parameter.name not in lines:
            continue
        said = lines[parameter.name].rpartition("default=")[2].strip()
        value = parameter.default
        if isinstance(value, type):
            assert said.rpartition(".")[2] == value.__name__
        elif isinstance(value, str):
            assert said == f'"{value}"'
        elif isinstance(value, float) and "/" in said:
            assert float(Fraction(said)) == value
        else:
            assert said == repr(value), parameter.name
        checked += 1
    assert checked > 5


def test_numpydoc_agrees_with_the_parser():
    docscrape = pytest.importorskip("numpydoc.docscrape")
    for cls in [*all_attacks(), *all_defenses()]:
        parsed = docscrape.NumpyDocString(inspect.cleandoc(cls.__doc__))
        names = [n.strip().lstrip("*") for p in parsed["Parameters"] for n in p.name.split(",")]
        assert names == documented(cls.__doc__)
        assert all(" ".join(p.desc).strip() for p in parsed["Parameters"])
        assert parsed["Attributes"]


@pytest.mark.parametrize("cls", ESTIMATORS)
def test_public_methods_are_documented(cls):
    for name, method in inspect.getmembers(cls, inspect.isfunction):
        if not name.startswith("_") and method.__module__.startswith("robustsk"):
            assert inspect.getdoc(method), name


@pytest.mark.parametrize("cls", ESTIMATORS)
def test_has_a_row_in_the_documentation(cls):
    """Every attack and defence stands in a table of the user guide."""
    root = pathlib.Path(robustsk.__file__).parents[1]
    page = "attacks" if issubclass(cls, robustsk.attacks.BaseAttack) else "defenses"
    assert f":class:`.{cls.__name__}`" in (root / "docs/user_guide" / f"{page}.rst").read_text()
