"""Settings for all tests and doctests."""

import os

os.environ.setdefault("MPLBACKEND", "Agg")

import torch

# the models are tiny: threads cost more than they bring, above all on a busy machine
torch.set_num_threads(1)
