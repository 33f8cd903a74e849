"""Runs a share of many tests, another one for each commit.

A plugin of pytest (``-p share``, this folder on the path): with ``--at-most N`` it runs that many
of the tests that have been chosen, dealt out by their names and by ``--share-of``, the name of a
commit for example. What one run leaves out comes up in another, and a run can be repeated.
"""

from zlib import crc32

import pytest


def pytest_addoption(parser):
    parser.addoption("--at-most", type=int, help="how many tests to run")
    parser.addoption("--share-of", default="", help="another text chooses other tests")


@pytest.hookimpl(trylast=True)  # after those that are marked otherwise have been left out
def pytest_collection_modifyitems(config, items):
    """Keep a share of the tests, in the order in which they are."""
    n, seed = config.getoption("--at-most"), config.getoption("--share-of")
    if n is None or len(items) <= n:
        return
    ranked = sorted(items, key=lambda item: crc32(f"{seed} {item.nodeid}".encode()))
    config.hook.pytest_deselected(items=ranked[n:])
    kept = set(ranked[:n])
    items[:] = [item for item in items if item in kept]
