"""What the tests cost in processor seconds, per suite and per class, and a limit to it.

A plugin of pytest (``-p budget``, this folder on the path): it prints which suites and which
classes the time goes to, and with ``--most-seconds N`` the run fails above N seconds in all. They
are seconds of the processor, children included, which a busy machine changes little.
"""

import os
from collections import Counter

import pytest

#: What a class in whose name tests run may add to the default run, and how many are printed.
SECONDS_OF_A_CLASS = 3.0
_MOST_ROWS = 12


def seconds():
    """Return the processor seconds of this process and its children so far."""
    return sum(os.times()[:4])


def in_all(config):
    """Return the processor seconds of this process and of all workers."""
    if _WORKERS in config.stash:  # which are among the children of this process
        return sum(os.times()[:2]) + config.stash[_WORKERS]
    return seconds()


def pytest_addoption(parser):
    parser.addoption("--most-seconds", type=float, help="processor seconds that are too many")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item):
    item.config.stash[_START] = seconds()
    yield


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    if call.when == "teardown":
        spent = seconds() - item.config.stash[_START]
        # properties of a report travel from the workers
        outcome.get_result().user_properties.append(("processor seconds", spent))
        params = getattr(getattr(item, "callspec", None), "params", {})
        cls = params.get("cls")
        if isinstance(cls, type):
            outcome.get_result().user_properties.append(("class", cls.__name__))


def pytest_sessionfinish(session):
    config = session.config
    # a worker tells the one who started it what it has spent beside the tests
    if hasattr(config, "workeroutput"):
        config.workeroutput["processor seconds"] = seconds()
    elif not session.exitstatus and in_all(config) > (config.getoption("--most-seconds") or 1e9):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """Take note of what a worker has spent; called by pytest-xdist."""
    spent = getattr(node, "workeroutput", {}).get("processor seconds", 0.0)
    node.config.stash[_WORKERS] = node.config.stash.get(_WORKERS, 0.0) + spent


def pytest_terminal_summary(terminalreporter, config):
    suites, classes = Counter(), Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            found = dict(getattr(report, "user_properties", ()))
            if getattr(report, "when", None) == "teardown" and "processor seconds" in found:
                suites[report.nodeid.partition("::")[0]] += found["processor seconds"]
                if "class" in found:
                    classes[found["class"]] += found["processor seconds"]
    total = in_all(config)
    out = terminalreporter
    out.section("processor seconds")
    for name, spent in suites.most_common(_MOST_ROWS):
        out.write_line(f"{spent:8.1f}  {name}")
    out.write_line(f"{total - sum(suites.values()):8.1f}  imports, collection, reports")
    out.write_line(f"{total:8.1f}  in all")
    dear = [(n, s) for n, s in classes.most_common() if s > SECONDS_OF_A_CLASS]
    if dear:
        out.write_line(
            f"more than {SECONDS_OF_A_CLASS:g} for one class: "
            + ", ".join(f"{name} {spent:.1f}" for name, spent in dear)
        )
    most = config.getoption("--most-seconds")
    if most is not None and total > most:
        out.write_line(f"That is more than the {most:g} allowed.", red=True)


_START = pytest.StashKey[float]()
_WORKERS = pytest.StashKey[float]()
