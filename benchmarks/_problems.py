"""Images and networks that the benchmarks work on."""

from __future__ import annotations

import pathlib

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from robustsk import PGD, PGDATClassifier
from robustsk.datasets import fetch_mnist, load_digits_images, load_image_folder

GRAY, COLOUR = (1, 28, 28), (3, 32, 32)


class BatchNormNet(nn.Sequential):
    """Two strided convolutions with batch normalisation and a hidden layer."""

    def __init__(self, width=32):
        super().__init__(
            nn.Conv2d(1, width, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(2 * width * 7 * 7, 100),
            nn.ReLU(),
            nn.Linear(100, 10),
        )


def images(shape, n, homes, subset="train"):
    """Return `n` images of a shape, their labels, and what they are.

    Gray ones are MNIST or the digits of scikit-learn made larger, coloured ones come from class
    folders or are smooth noise.

    Parameters
    ----------
    shape : tuple of int
    n : int
        Upper limit.
    homes : list of str
        Folders or files with data.
    subset : {"train", "test"}, default="train"
    """
    for home in map(pathlib.Path, homes):
        folders = home.is_file() or (home / subset).is_dir()
        if folders == (shape == COLOUR):
            X, y = _stored(home, folders, n, subset)
            return X, y, home.name if folders else "MNIST"
    random = np.random.RandomState(subset == "test")
    if shape == GRAY:
        X, y = load_digits_images(return_X_y=True)
        cut = 2 * len(X) // 3
        X, y = (X[cut:], y[cut:]) if subset == "test" else (X[:cut], y[:cut])
        X = F.interpolate(torch.from_numpy(X), shape[1:], mode="bilinear").numpy()
        return X[:n], y[:n], "digits of scikit-learn, 28 x 28"
    coarse = torch.from_numpy(random.rand(n, shape[0], 8, 8).astype(np.float32))
    X = F.interpolate(coarse, shape[1:], mode="bilinear").numpy()
    return X, random.randint(10, size=n), "generated images"


def _stored(home, folders, n, subset):
    if not folders:
        X, y = fetch_mnist(data_home=home, subset=subset, return_X_y=True)
        return X[:n], y[:n]
    X, y = load_image_folder(home, subset=subset, max_per_class=-(-n // 10), return_X_y=True)
    order = np.random.RandomState(0).permutation(len(X))[:n]  # they come sorted by class
    return X[order], np.unique(y, return_inverse=True)[1][order]


def with_statistics(net, X, batches=30, batch_size=8):
    """Return a network whose batch norms have seen data and have weights that do something."""
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.1)
        net.train()
        order = np.random.RandomState(0)
        for _ in range(batches):
            net(torch.from_numpy(X[order.randint(len(X), size=batch_size)]))
    return net.eval()


def half_robust(args, n_test):
    """Return a network, test images, labels, an eps that half of them withstand, and a sentence.

    The network is trained adversarially for a short while, or read from ``args.weights``.
    """
    X, y, source = images(GRAY, 200 if args.quick else 10000, args.data_home)
    X_test, y_test, _ = images(GRAY, n_test, args.data_home, "test")
    path = args.weights and pathlib.Path(args.weights, f"half-robust-{source.split()[0]}.pt")
    torch.manual_seed(0)
    net = BatchNormNet(4 if args.quick else 32)
    if path and path.exists():
        net.load_state_dict(torch.load(path))
    else:
        # about as many batches, however many images there are
        epochs = 1 if args.quick else max(4, round(40000 / len(X)))
        clf = PGDATClassifier(
            net,
            adversary=PGD(eps=0.15, n_steps=5, clip=(0, 1)),
            max_epochs=epochs,
            lr=2e-3,
            device="cpu",
            random_state=0,
        ).fit(X, y)
        net = clf.module_
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(net.state_dict(), path)
    net = net.eval().to(args.device)
    x = torch.from_numpy(X_test).to(args.device)
    labels = torch.from_numpy(y_test).long().to(args.device)
    eps = half_robust_eps(net, x[:500], labels[:500], n_steps=20)
    return net, x, labels, eps, f"{source}, eps {eps:.3g}"


def half_robust_eps(net, x, y, n_steps):
    """Return the eps at which about half of the correctly classified samples fall."""
    clean = accuracy(net, x, y)
    low, high = 1e-5, 0.5
    for _ in range(9):
        eps = (low * high) ** 0.5
        survived = accuracy(net, plain_pgd(net, x, y, eps, 2.5 * eps / n_steps, n_steps), y)
        low, high = (eps, high) if survived > clean / 2 else (low, eps)
    return eps


def accuracy(net, x, y, batch_size=500):
    """Return the share of samples classified correctly, by plain forward passes."""
    with torch.no_grad():
        right = [
            (net(a).argmax(1) == b).sum()
            for a, b in zip(x.split(batch_size), y.split(batch_size), strict=True)
        ]
    return float(sum(right)) / len(x)


def plain_pgd(net, x, y, eps, step, n_steps):
    """Return adversarial examples by the loop that everybody writes."""
    z = (x + torch.empty_like(x).uniform_(-eps, eps)).clamp(0, 1)
    return plain_ascent(net, x, z, lambda logits: F.cross_entropy(logits, y), eps, step, n_steps)


def plain_ascent(net, x, z, objective, eps, step, n_steps):
    """Return where steps from `z` up an objective of the logits lead."""
    for _ in range(n_steps):
        z.requires_grad_(True)
        (gradient,) = torch.autograd.grad(objective(net(z)), z)
        z = z.detach() + step * gradient.sign()
        z = torch.min(torch.max(z, x - eps), x + eps).clamp(0, 1)
    return z.detach()
