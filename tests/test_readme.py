"""The README does what it prints."""

import contextlib
import io
import pathlib
import re

import pytest

README = pathlib.Path(__file__).parents[1] / "README.md"


def printed(**instead):
    """Run the example, with other settings in the place of some, and return the numbers."""
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    for old, new in instead.items():
        assert old in code
        code = code.replace(old, new)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "README.md", "exec"), {})
    (natural, trades) = (
        [float(v) for v in re.findall(r"\d\.\d+", line)] for line in out.getvalue().splitlines()
    )
    return natural, trades


def test_example_runs():
    less = {"set_params(": "set_params(max_epochs=1, ", "n_steps=20": "n_steps=2"}
    for clean, robust in printed(**less):
        assert 0 <= robust <= clean <= 1


@pytest.mark.slow
def test_example_gains_what_it_prints():
    natural, trades = printed()
    assert min(natural[0], trades[0]) > 0.95
    assert trades[1] > natural[1] + 0.2


def test_commands_are_single_lines_with_an_environment_of_their_own():
    text = README.read_text()
    for marker in ("quickstart-command", "test-command"):
        (block,) = re.findall(rf"<!-- {marker} -->\n```sh\n(.*?)```", text, re.DOTALL)
        assert block.count("\n") == 1
        assert block.startswith("python3 -m venv ")
