"""Which tests the default run has."""

import pytest
from code_paths import deal


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what is marked slow
def pytest_collection_modifyitems(items):
    """Deal out among the classes the tests that all of them take part in."""
    deal(items)
