"""Side by side with the public AutoAttack: same weights, same images, one table.

    python benchmarks/autoattack.py --data-home FOLDER                      # MNIST
    python benchmarks/autoattack.py --data-home FOLDER --only all           # and the components
    python benchmarks/autoattack.py --data-home FOLDER --data cifar10       # CIFAR-10
    python benchmarks/autoattack.py --data-home IMAGES.tar --data folder    # class folders

The last form reads ``train/<class>/<image>`` and ``test/<class>/<image>`` from a folder or tar
file, with CIFAR-10's settings.

A small CNN is trained adversarially once (and kept in ``--weights``). Then AutoAttack and, if
wanted, every component of it run on the same test images, from robustsk and from the public
implementation (package ``autoattack``, https://github.com/fra31/auto-attack) if it can be
imported; what is missing is named and skipped. The two take turns; ratios are medians of the ratios
within a turn, with the smallest and the largest.
"""

from __future__ import annotations

import argparse
import importlib.util
import pathlib
import sys
from functools import partial

import numpy as np
import torch
from _timing import Table, in_turns, machine, ratio, use_cpu_time
from skorch.callbacks import LRScheduler
from torch import nn

from robustsk import PGD, PGDATClassifier
from robustsk.attacks import APGD, FAB, AutoAttack, SquareAttack
from robustsk.datasets import fetch_cifar10, fetch_mnist, load_image_folder
from robustsk.metrics import adversarial_outcome
from robustsk.training import EpsWarmup

SETTINGS = {
    "mnist": {"eps": 0.3, "epochs": 6, "n_train": 15000, "n_test": 100},
    "cifar10": {"eps": 8 / 255, "epochs": 10, "n_train": 5000, "n_test": 64},
    "folder": {"eps": 8 / 255, "epochs": 10, "n_train": 5000, "n_test": 64},
}
COLUMNS = [
    "attack", "robustsk", "s", "forward", "backward", "public", "s", "difference",
    "time ratio (spread)",
]  # fmt: skip


class SmallNet(nn.Sequential):
    """Two strided convolutions and a hidden layer."""

    def __init__(self, shape=(1, 28, 28), width=16):
        side = shape[1] // 4
        super().__init__(
            nn.Conv2d(shape[0], width, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(2 * width * side * side, 100),
            nn.ReLU(),
            nn.Linear(100, 10),
        )


def read(args, subset, n):
    if args.data == "folder":
        per_class = -(-n // 10)
        X, y = load_image_folder(
            args.data_home, subset=subset, max_per_class=per_class, return_X_y=True
        )
        order = np.random.RandomState(0).permutation(len(X))[:n]  # they come sorted by class
        return X[order], np.unique(y, return_inverse=True)[1][order]
    fetch = fetch_mnist if args.data == "mnist" else fetch_cifar10
    X, y = fetch(data_home=args.data_home, subset=subset, return_X_y=True)
    return X[:n], y[:n]


def trained_model(args):
    """Return the network and the test images, training it if there are no weights yet."""
    width = 16 if args.data == "mnist" else 32
    X_test, y_test = read(args, "test", args.n_test)
    net = SmallNet(X_test.shape[1:], width)
    weights = pathlib.Path(args.weights or f"autoattack-{args.data}.pt")
    if not weights.exists():
        X, y = read(args, "train", args.n_train)
        clf = PGDATClassifier(
            SmallNet,
            module__shape=X.shape[1:],
            module__width=width,
            adversary=PGD(eps=args.eps, n_steps=7, clip=(0, 1)),
            max_epochs=args.epochs,
            lr=2e-3,
            random_state=0,
            verbose=1,
            callbacks=[
                EpsWarmup(2),
                LRScheduler(
                    torch.optim.lr_scheduler.OneCycleLR,
                    step_every="batch",
                    max_lr=4e-3,
                    total_steps=args.epochs * -(-len(X) // 128),
                ),
            ],
        ).fit(X, y)
        torch.save(clf.module_.state_dict(), weights)
    net.load_state_dict(torch.load(weights))
    return net.eval(), X_test, y_test


def ours(args):
    """Return the attacks of robustsk by the name of their row."""
    common = {"norm": args.norm, "eps": args.eps, "clip": (0, 1), "random_state": args.seed}
    l1 = args.norm == 1
    return {
        "APGD-CE": APGD(n_restarts=5 if l1 else 1, **common),
        "APGD-T": APGD(objective="dlr", n_targets=5 if l1 else 9, **common),
        "FAB-T": FAB(n_targets=9, **common),
        "Square": SquareAttack(max_queries=5000, **common),
        "standard": AutoAttack(version="standard", **common),
        "fast": AutoAttack(version="fast", **common),
    }


def peer(args):
    """Return a function that runs a part of the public implementation, or None."""
    # this script has the name of the package
    here = pathlib.Path(__file__).resolve().parent
    sys.path[:] = [p for p in sys.path if pathlib.Path(p or ".").resolve() != here]
    if importlib.util.find_spec("autoattack") is None:
        print("The package `autoattack` is not installed: its columns are left out.")
        return None
    import autoattack

    names = {"APGD-CE": "apgd-ce", "APGD-T": "apgd-t", "FAB-T": "fab-t", "Square": "square"}
    norm = {np.inf: "Linf", 2: "L2", 1: "L1"}[args.norm]

    def run(name, net, X, y):
        public = autoattack.AutoAttack(
            net, norm=norm, eps=args.eps, device="cpu", verbose=False, seed=args.seed
        )
        if name != "standard":
            public.attacks_to_run = [names[name]]
        x, y = torch.from_numpy(X), torch.from_numpy(y).long()
        x_adv = public.run_standard_evaluation(x, y, bs=250)
        with torch.no_grad():
            return float((net(x_adv).argmax(1) == y).double().mean())

    return run


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-home", help="folder or file with the data")
    parser.add_argument("--data", choices=list(SETTINGS), default="mnist")
    parser.add_argument("--norm", type=lambda v: float(v.lstrip("l")), default=np.inf)
    parser.add_argument("--eps", type=float)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--n-train", type=int)
    parser.add_argument("--n-test", type=int)
    parser.add_argument("--weights", help="file to keep the trained network in")
    parser.add_argument(
        "--only", nargs="+", default=["standard", "fast"], help="rows to run, or all"
    )
    parser.add_argument("--repeats", type=int, default=3, help="turns")
    parser.add_argument("--csv", help="file for the table")
    parser.add_argument("--cpu-time", action="store_true", help="in place of the clock on the wall")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    for name, value in SETTINGS[args.data].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    torch.set_num_threads(args.threads)
    if args.cpu_time:
        use_cpu_time()

    net, X, y = trained_model(args)
    weak = PGD(eps=args.eps, norm=args.norm, n_steps=40, clip=(0, 1), random_state=args.seed)
    outcome = adversarial_outcome(net, X, y, weak)
    print(
        f"{machine()}; {args.data}, {len(X)} images, norm {args.norm:g}, eps {args.eps:.4g}: clean "
        f"{outcome.correct.mean():.3f}, PGD-40 {outcome.robust.mean():.3f}"
    )
    public = peer(args)
    print()
    table = Table(COLUMNS, args.csv)
    attacks = {k: v for k, v in ours(args).items() if {k, "all"} & {*args.only}}
    whole = [name for name in ("standard", "fast") if name in attacks]
    # both versions are compared with the same runs of the public one
    for names in [*([name] for name in attacks if name not in whole), whole]:
        candidates = {n: partial(adversarial_outcome, net, X, y, attacks[n]) for n in names}
        if public is not None and names:
            part = "standard" if names == whole else names[0]
            candidates["public"] = partial(public, part, net, X, y)
        clocks = in_turns(candidates, args.repeats, warm_up=False)
        for name in names:
            outcome = clocks[name].result
            accuracy = float(outcome.robust.mean())
            row = [name, f"{accuracy:.4f}", f"{clocks[name].median:.1f}"]
            row += [outcome.n_forward, outcome.n_backward]
            if "public" in clocks:
                theirs = clocks["public"]
                row += [f"{theirs.result:.4f}", f"{theirs.median:.1f}"]
                row += [f"{100 * (accuracy - theirs.result):+.1f} points"]
                row += [str(ratio(clocks[name], theirs))]
            table.add(*row)


if __name__ == "__main__":
    main()
