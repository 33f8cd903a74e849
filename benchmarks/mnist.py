"""Short MNIST runs of the defences, one table.

    python benchmarks/mnist.py --data-home FOLDER            # the short protocol
    python benchmarks/mnist.py --model small_cnn --epochs 80 # towards the full one

Every defence is trained with the same network, data, epochs and inner attack at eps = 0.3
(l-infinity, pixels in [0, 1]) and judged by PGD-40, step 0.01, on CE and on the margin. Results
are appended to a CSV file as soon as a defence is done; finished ones are skipped in the next
run, so that an interrupted run can be resumed.
"""

from __future__ import annotations

import argparse
import csv
import pathlib
import platform
import time

import torch
from skorch.callbacks import LRScheduler
from tabulate import tabulate

from robustsk import (
    PGD,
    EnsembleCCE,
    PGDATClassifier,
    SPATClassifier,
    StandardClassifier,
    TRADESClassifier,
)
from robustsk.datasets import fetch_mnist
from robustsk.metrics import adversarial_outcome, clopper_pearson_interval
from robustsk.training import EpsWarmup

FIELDS = [
    "defence", "model", "epochs", "n_steps", "clean", "pgd40", "pgd40_low", "pgd40_high",
    "pgd40_margin", "fit_s", "n_train", "n_test",
]  # fmt: skip


def defences(args):
    def common(start):
        return {
            "module": args.model,
            "adversary": PGD(eps=args.eps, n_steps=args.steps, random_start=start, clip=(0, 1)),
            "max_epochs": args.epochs,
            "lr": args.lr,
            "random_state": 0,
            "verbose": args.verbose,
            "callbacks": [
                # without it none of these networks gets off the ground at eps = 0.3
                EpsWarmup(args.warmup),
                LRScheduler(
                    torch.optim.lr_scheduler.OneCycleLR,
                    step_every="batch",
                    max_lr=args.lr,
                    total_steps=args.epochs * -(-args.n_train // 128),
                ),
            ],
        }

    return {
        "natural": StandardClassifier(**common("uniform")),
        "PGD-AT": PGDATClassifier(**common("uniform")),
        "TRADES": TRADESClassifier(beta=args.beta, **common("gaussian")),
        "SPAT": SPATClassifier(**common("gaussian")),
        "CCE-RM (2)": EnsembleCCE(**common("uniform")),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-home", help="folder with the MNIST files")
    parser.add_argument("--model", default="conv_net2")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--warmup", type=float, default=2, help="epochs until eps is reached")
    parser.add_argument("--steps", type=int, default=10, help="steps of the training adversary")
    parser.add_argument("--eps", type=float, default=0.3)
    parser.add_argument("--beta", type=float, default=6.0, help="beta of TRADES")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--n-train", type=int, default=60000)
    parser.add_argument("--n-test", type=int, default=2000)
    parser.add_argument("--only", nargs="*", help="names of defences")
    parser.add_argument("--out", default="mnist.csv")
    parser.add_argument("--verbose", type=int, default=1)
    args = parser.parse_args()

    X, y = fetch_mnist(data_home=args.data_home, subset="train", return_X_y=True)
    X_test, y_test = fetch_mnist(data_home=args.data_home, subset="test", return_X_y=True)
    X, y = X[: args.n_train], y[: args.n_train]
    X_test, y_test = X_test[: args.n_test], y_test[: args.n_test]
    attack = {"eps": args.eps, "n_steps": 40, "step_size": 0.01, "clip": (0, 1), "random_state": 1}

    out = pathlib.Path(args.out)
    done = set()
    if out.exists():
        with out.open() as file:
            done = {row["defence"] for row in csv.DictReader(file)}
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads")
    for name, clf in defences(args).items():
        if name in done or (args.only and name not in args.only):
            continue
        start = time.perf_counter()
        clf.fit(X, y)
        seconds = time.perf_counter() - start
        ce = adversarial_outcome(clf, X_test, y_test, PGD(**attack))
        margin = adversarial_outcome(clf, X_test, y_test, PGD(objective="cw", **attack))
        low, high = clopper_pearson_interval(int(ce.robust.sum()), len(y_test))
        row = {
            "defence": name, "model": args.model, "epochs": args.epochs, "n_steps": args.steps,
            "clean": ce.correct.mean(), "pgd40": ce.robust.mean(), "pgd40_low": low,
            "pgd40_high": high, "pgd40_margin": margin.robust.mean(), "fit_s": seconds,
            "n_train": len(X), "n_test": len(X_test),
        }  # fmt: skip
        new = not out.exists()
        with out.open("a", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            if new:
                writer.writeheader()
            writer.writerow({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()})
    with out.open() as file:
        rows = [[row[f] for f in FIELDS] for row in csv.DictReader(file)]
    print(tabulate(rows, FIELDS, "github", disable_numparse=True))


if __name__ == "__main__":
    main()
