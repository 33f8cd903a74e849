"""Check what type checkers make of the package, in the form in which users get it.

A wheel is built of a copy of the checkout and put into an empty environment, before the libraries
of the present one. There pyright has nothing to say about typing/correct.py, and in typing/wrong.py
finds an error in each line that is marked with ``# wrong`` and in no other.
"""

import json
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
OF_A_WHEEL = ("robustsk", "pyproject.toml", "README.md", "LICENSE")


def call(*command, **options):
    return subprocess.run([sys.executable, "-m", *map(str, command)], check=True, **options)


def build_wheel(folder):
    """Return the path of a wheel."""
    copy = folder / "copy"
    copy.mkdir()
    for name in OF_A_WHEEL:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name)
        else:
            shutil.copy(ROOT / name, copy)
    call("pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, copy)
    (wheel,) = folder.glob("*.whl")
    return wheel


def make_environment(folder, wheel):
    """Return the interpreter of an environment that has the wheel, and all that this one has."""
    # not extraPaths of pyright, which takes what lies there for a part of the user's own project
    home = folder / "environment"
    builder = venv.EnvBuilder(with_pip=False)
    builder.create(home)
    python = builder.ensure_directories(home).env_exe
    asked = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = pathlib.Path(subprocess.check_output([python, "-c", asked], text=True).strip())
    call("pip", "install", "--quiet", "--no-deps", "--target", site, wheel)
    assert (site / "robustsk" / "py.typed").is_file(), "the wheel says nothing of types"
    libraries = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "libraries.pth").write_text("".join(f"{path}\n" for path in sorted(libraries)))
    return python


def diagnose(folder, python):
    """Return what pyright says, as {file: {line: messages}}."""
    scripts = folder / "scripts"
    shutil.copytree(HERE / "typing", scripts, ignore=shutil.ignore_patterns("__pycache__"))
    command = ["pyright", "--outputjson", "--pythonpath", python, "correct.py", "wrong.py"]
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=scripts, stdout=subprocess.PIPE, text=True
    )
    report = json.loads(done.stdout)
    assert report["summary"]["filesAnalyzed"] == 2, report["summary"]
    found = {"correct.py": {}, "wrong.py": {}}
    for said in report["generalDiagnostics"]:
        lines = found[pathlib.Path(said["file"]).name]
        lines.setdefault(said["range"]["start"]["line"] + 1, []).append(said["message"])
    return found


def main():
    """Return what is not as it should be, as lines of text."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name).resolve()
        found = diagnose(folder, make_environment(folder, build_wheel(folder)))
    text = (HERE / "typing" / "wrong.py").read_text().splitlines()
    marked = {number for number, line in enumerate(text, 1) if "# wrong" in line}
    problems = [
        f"tests/typing/{file}:{number}: {message}"
        for file, expected in (("correct.py", set()), ("wrong.py", marked))
        for number, messages in sorted(found[file].items())
        if number not in expected
        for message in messages
    ]
    missed = sorted(marked - found["wrong.py"].keys())
    problems += [f"tests/typing/wrong.py:{n}: is not found: {text[n - 1]}" for n in missed]
    return problems, len(marked)


if __name__ == "__main__":
    problems, n_marked = main()
    print(*problems, sep="\n", end="\n" if problems else "")
    print(f"types: {len(problems)} problems; {n_marked} mistakes to be found")
    sys.exit(bool(problems))
