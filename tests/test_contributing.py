"""CONTRIBUTING.md, followed to the letter in a copy of the package, is enough."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
#: What a checkout needs for the tests of one class.
PARTS = [
    "robustsk", "tests", "docs", "CHANGELOG.md", "CONTRIBUTING.md", "README.md", "conftest.py",
    "pyproject.toml",
]  # fmt: skip
NAMES = ["MyAttack", "MyClassifier"]


def blocks():
    """Return the blocks of code that belong to a file which the paragraph above them names."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    found = re.findall(
        r"^([^\n]*(?:\n[^\n]+)*):\n\n```(?:python|rst)\n(.*?)^```$", text, re.M | re.S
    )
    named = [(re.findall(r"`([\w/]+\.(?:py|rst))`", before), code) for before, code in found]
    return [(ROOT / paths[-1], code) for paths, code in named if paths]


def followed(text, path, code):
    """Return the text of a file with the line or row that it is to be given."""
    if path.suffix == ".py":
        imports, last = text.rsplit("\n\n", 1)  # a paragraph that computes `__all__`
        return f"{imports}\n{code}\n{last}"
    row = code.partition("`")[0]  # up to the name: a table of the same kind
    place = re.search(rf"^{re.escape(row)}`\.", text, re.M).start()
    return text[:place] + code + text[place:]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """Return a copy of this checkout to which both examples have been added."""
    copy = tmp_path_factory.mktemp("checkout")
    ignored = shutil.ignore_patterns("__pycache__", "_build", "auto_examples", "generated")
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, copy / part, ignore=ignored)
        else:
            shutil.copy(ROOT / part, copy / part)
    for path, code in blocks():
        target = copy / path.relative_to(ROOT)
        target.write_text(followed(target.read_text(), path, code) if path.exists() else code)
    changes = copy / "CHANGELOG.md"
    line = f"- {' and '.join(f'`{name}`' for name in NAMES)}.\n"
    changes.write_text(changes.read_text().replace("### Added\n\n", f"### Added\n\n{line}", 1))
    return copy


def run(checkout, *arguments):
    """Run a module of Python in the checkout; return what it printed, and fail if it fails."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTEST_ADDOPTS", None)
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    return done.stdout


def run_tests(checkout, paths, names, *options):
    """Run tests of the checkout and return how many have passed."""
    files = sorted({str(file.relative_to(checkout)) for p in paths for file in checkout.glob(p)})
    assert files, paths
    settings = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:randomly"]
    output = run(checkout, "pytest", *settings, "-k", names, *options, *files)
    return int(re.search(r"(\d+) passed", output).group(1))


def test_there_are_two_examples():
    """Each has a file of its own, a line where it is exported and a row in the user guide."""
    kinds = [(path.suffix, path.exists()) for path, _ in blocks()]
    assert kinds == 2 * [(".py", False), (".py", True), (".rst", True)]
    text = "".join(code for _, code in blocks())
    assert [f"class {name}(" in text for name in NAMES] == [True, True]


def test_examples_are_in_the_style_of_the_package(checkout):
    pytest.importorskip("ruff")
    files = [str(path.relative_to(ROOT)) for path, _ in blocks() if not path.exists()]
    run(checkout, "ruff", "check", "--no-cache", *files)
    run(checkout, "ruff", "format", "--no-cache", "--check", *files)


def test_examples_keep_the_promises(checkout):
    """Some of those about goals and defences, and all about names and documentation."""
    paths = ["tests/test_package.py", "tests/test_constructors.py"]
    paths += ["tests/attacks/test_*promises*goals*.py", "tests/defenses/test_defenses_common.py"]
    assert run_tests(checkout, paths, " or ".join(NAMES)) > 20


@pytest.mark.slow
def test_examples_keep_all_promises(checkout):
    paths = ["tests/attacks/test_*promises*.py", "tests/defenses/test_defenses_common.py"]
    paths += ["tests/defenses/test_defenses_sklearn.py"]
    assert run_tests(checkout, paths, " or ".join(NAMES), "-m", "slow or not slow") > 300


@pytest.mark.slow
def test_nothing_else_is_needed(checkout):
    """What looks at the whole package finds nothing missing, and the examples in docstrings run."""
    run_tests(
        checkout,
        ["tests/test_package.py", "tests/test_floors.py", "tests/test_constructors.py"],
        "not slow",
    )
    files = [str(path.relative_to(ROOT)) for path, _ in blocks() if not path.exists()]
    run(checkout, "pytest", "-q", "-p", "no:cacheprovider", "--doctest-modules", *files)
