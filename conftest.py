"""Settings for all tests and doctests."""

import gc
import os

os.environ.setdefault("MPLBACKEND", "Agg")
# the models are tiny: threads cost more than they bring, above all on a busy machine
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest
import torch

torch.set_num_threads(1)

# Tests are about the CPU, whose results they compare to the bit, on a machine with a GPU as well:
# device="auto" must mean the same to all of them. Those marked `gpu` see what is there.
_cuda_is_available = torch.cuda.is_available
torch.cuda.is_available = lambda: False


@pytest.fixture(autouse=True)
def _device(request, monkeypatch):
    if request.node.get_closest_marker("gpu"):
        monkeypatch.setattr(torch.cuda, "is_available", _cuda_is_available)


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Collect tests without looking for garbage among them, which takes a fifth of the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items):
    """Skip what needs a GPU where there is none."""
    if not _cuda_is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))
