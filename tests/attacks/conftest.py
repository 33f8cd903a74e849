"""Data and models shared by the tests of the attacks."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, make_blobs
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

# batches this small are slower on many threads, and much slower where cores are shared
torch.set_num_threads(1)


def _train(net, X, y, epochs):
    X, y = torch.as_tensor(X), torch.as_tensor(y)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    net.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(X)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(X[rows]), y[rows]).backward()
            optimizer.step()
    optimizer.zero_grad()
    return net.eval()


@pytest.fixture
def seeded():
    """Have torch's global generator seeded, and left as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="session")
def _table():
    X, y = make_blobs(
        150, n_features=6, centers=3, cluster_std=2.5, center_box=(-4, 4), random_state=1
    )
    X = StandardScaler().fit_transform(X)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)).double()
        _train(net, X, y, 60)
    linear = make_pipeline(StandardScaler(), LogisticRegression()).fit(X, y)
    return SimpleNamespace(X=X, y=y, linear=linear, net=net, model=linear)


@pytest.fixture(scope="session")
def _images():
    data = load_digits()
    X, y = (data.images[:500, None] / 16).astype(np.float32), data.target[:500]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Dropout(0.2),
            nn.Conv2d(6, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(128, 10),
        )
        _train(net, X, y, 8)
    return SimpleNamespace(X=X, y=y, net=net, model=net)


@pytest.fixture
def table(_table):
    """Three overlapping classes in six standardised features; a linear model and a network."""
    return copy.deepcopy(_table)


@pytest.fixture
def images(_images):
    """Small digits in [0, 1], shape (1, 8, 8); a network with batch norm and dropout."""
    return copy.deepcopy(_images)


@pytest.fixture(params=["table", "images"])
def problem(request):
    """A 2-D problem with a scikit-learn pipeline, then a 4-D one with a torch module."""
    return request.getfixturevalue(request.param)
