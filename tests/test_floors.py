"""The floors of the package: they are all named, in one order, and no import runs upward."""

import ast
import pathlib
import sys

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

import robustsk

PACKAGE = pathlib.Path(robustsk.__file__).parent
ROOT = pathlib.Path(__file__).parents[1]
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"][
    "contracts"
]


def floors():
    """Return what docs/development/floors.txt lists, lowest first."""
    lines = (ROOT / "docs/development/floors.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def contract(container):
    """Return the layers of a container as import-linter is told them, lowest first."""
    (found,) = [c for c in CONTRACTS if c.get("containers") == [container]]
    assert found["type"] == "layers"
    assert found["exhaustive"]
    return [[name.strip() for name in layer.split("|")] for layer in reversed(found["layers"])]


def folder_of(container):
    return PACKAGE.joinpath(*container.split(".")[1:])


def parts_of(folder):
    """Return the names of the modules and packages in a folder."""
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    return modules | {path.parent.name for path in folder.glob("*/__init__.py")}


def imports(path):
    """Return line and absolute name of all that a file imports, wherever in the file it does so."""
    here = ("robustsk", *path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else ()
            home = ".".join([*base, *filter(None, [node.module])])
            # what is imported from a package may be a module in it
            yield from ((node.lineno, f"{home}.{alias.name}") for alias in node.names)


def upward(container, layers):
    """Return the imports in a folder that do not lead to a lower floor or stay where they are."""
    floor = {name: number for number, layer in enumerate(layers) for name in layer}
    folder, found = folder_of(container), []
    for path in sorted(folder.rglob("*.py")):
        own = path.relative_to(folder).with_suffix("").parts[0]
        if own == "__init__":  # the package itself, which stands on all of its floors
            continue
        for line, name in imports(path):
            if not f"{name}.".startswith(f"{container}."):
                continue
            other = name.removeprefix(f"{container}.").partition(".")[0]
            if other != own and floor.get(other, len(layers)) >= floor.get(own, 0):
                found.append(f"{path.relative_to(PACKAGE)}:{line} {name}")
    return found


def test_every_part_has_a_floor():
    assert len(set(floors())) == len(floors())
    assert set(floors()) == parts_of(PACKAGE)


def test_import_linter_is_told_the_same():
    assert contract("robustsk") == [[name] for name in floors()]


def test_the_top_level_is_in_the_same_order():
    packages = [*robustsk._PACKAGES, *robustsk._ONLY_PACKAGES]
    assert set(packages) == {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert list(robustsk._PACKAGES) == [name for name in floors() if name in robustsk._PACKAGES]


@pytest.mark.parametrize("container", [c["containers"][0] for c in CONTRACTS])
def test_contract_names_every_part(container):
    named = [name for layer in contract(container) for name in layer]
    assert len(set(named)) == len(named)
    assert set(named) == parts_of(folder_of(container))


@pytest.mark.parametrize("container", [c["containers"][0] for c in CONTRACTS])
def test_no_import_runs_upward(container):
    assert upward(container, contract(container)) == []


def test_an_import_that_runs_upward_is_found(tmp_path, monkeypatch):
    """Also one that is lazy, absolute, for type checkers only, or of a package as a whole."""
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    (tmp_path / "low").mkdir()
    (tmp_path / "low" / "__init__.py").write_text("from ..high import a")
    (tmp_path / "low" / "x.py").write_text(
        "def f():\n    from .. import high\n    import robustsk.high.a\n    from . import y\n"
        "if TYPE_CHECKING:\n    from robustsk.high.a import b\n"
    )
    (tmp_path / "high.py").write_text("from .low import x\nfrom . import high, unknown\n")
    assert upward("robustsk", [["low"], ["high"]]) == [
        "high.py:2 robustsk.unknown",
        "low/__init__.py:1 robustsk.high.a",
        "low/x.py:2 robustsk.high",
        "low/x.py:3 robustsk.high.a",
        "low/x.py:6 robustsk.high.a.b",
    ]
