"""The README does what it prints."""

import contextlib
import io
import pathlib
import re

README = pathlib.Path(__file__).parents[1] / "README.md"


def test_example_runs_as_printed():
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "README.md", "exec"), {})
    (natural, trades) = (
        [float(v) for v in re.findall(r"\d\.\d+", line)] for line in out.getvalue().splitlines()
    )
    assert min(natural[0], trades[0]) > 0.95
    assert trades[1] > natural[1] + 0.2


def test_commands_are_single_lines_with_an_environment_of_their_own():
    text = README.read_text()
    for marker in ("quickstart-command", "test-command"):
        (block,) = re.findall(rf"<!-- {marker} -->\n```sh\n(.*?)```", text, re.DOTALL)
        assert block.count("\n") == 1
        assert block.startswith("python3 -m venv ")
