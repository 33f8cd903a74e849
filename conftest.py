"""Settings for all tests and doctests."""

import os

os.environ.setdefault("MPLBACKEND", "Agg")
# the models are tiny: threads cost more than they bring, above all on a busy machine
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)
