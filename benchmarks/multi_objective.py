"""Attacks with several tasks at once, compared: ensembles, groups of images, transformations.

    python benchmarks/multi_objective.py --data-home FOLDER --setting ens
    python benchmarks/multi_objective.py --data-home FOLDER --setting uni
    python benchmarks/multi_objective.py --data-home FOLDER --setting eot
    python benchmarks/multi_objective.py --data-home FOLDER --setting cost

The victims are three different small networks, trained adversarially on MNIST and kept in the
folder of the results (a quarter of an hour on one core). The tables are in the manner of Bui et al.
(2023), Tables 1, 2, 5 and 6, which are about CIFAR: what can be compared is the order of the
methods. Rows are written as soon as they are done and skipped in the next run. The last setting
compares the time of the attack with that of PGD on the same models, with as many gradients.
"""

from __future__ import annotations

import argparse
import csv
import pathlib
import time

import joblib
import numpy as np
import torch
from sklearn.frozen import FrozenEstimator

import robustsk as rs
from robustsk.attacks import deterministic_transformations, stochastic_transformations
from robustsk.attacks.multi_objective.weighting import MGDA, TaskOriented
from robustsk.datasets import fetch_mnist
from robustsk.metrics import joint_success_rates
from robustsk.training import EpsWarmup, LearningRateSchedule

NETWORKS = ("small_cnn", "cce_mnist", "conv_net2")
WEIGHTINGS = {
    "Uniform": "uniform",
    "MinMax": "minmax",
    "HVM": "hvm",
    "PCGrad": "pcgrad",
    "CAGrad": "cagrad",
    "MOO": "moo",
    "MOO, exact": MGDA(solver="active-set"),
    "TA-MOO": "tamoo",
    "TA-MOO, exact": TaskOriented(solver="active-set"),
}
MAIN = ("Uniform", "MinMax", "MOO", "TA-MOO")
EPS = 0.3


def victims(args, X, y):
    """Return the networks, trained here once."""
    found = {}
    for i, name in enumerate(NETWORKS):
        path = pathlib.Path(args.out) / f"victim-{name}.joblib"
        if not path.exists():
            clf = rs.PGDATClassifier(
                module=name, max_epochs=args.epochs, lr=2e-3, precision=args.precision,
                adversary=rs.PGD(eps=EPS, n_steps=5, step_size=0.1, clip=(0, 1)),
                callbacks=[EpsWarmup(1), LearningRateSchedule("cyclic", peak=0.3)],
                random_state=i,
            )  # fmt: skip
            joblib.dump(clf.fit(X, y), path)
        found[name] = joblib.load(path)
    return found


def common(args):
    return {
        "eps": EPS, "clip": (0, 1), "step_size": EPS / 30, "n_steps": args.n_steps,
        "random_state": args.seed,
    }  # fmt: skip


def ensemble_rows(args, models, X, y):
    """Yield names and rates of the setting of several models."""
    for objective in ("ce", "cw", "kl"):
        for name in WEIGHTINGS if objective == "ce" else MAIN:
            attack = rs.TAMOO(weighting=WEIGHTINGS[name], objective=objective, **common(args))
            yield f"{objective} {name}", lambda a=attack: joint_success_rates(models, X, y, a)


def image_rows(args, models, X, y):
    """Yield names and rates of the setting of one perturbation for several images."""
    # the least robust: one perturbation for many images does next to nothing to the others
    *_, (name, model) = models.items()
    for size in (4, 8, 12, 16, 20):
        n = len(X) - len(X) % size
        for method in MAIN:
            attack = rs.UniversalTAMOO(
                FrozenEstimator(model), weighting=WEIGHTINGS[method], group_size=size,
                **common(args),
            )  # fmt: skip

            def rates(attack=attack, n=n):
                moved = attack.generate(X[:n], y[:n])
                return joint_success_rates({name: model}, moved, y[:n])

            yield f"K={size} {method}", rates


def transformation_rows(args, models, X, y):
    """Yield names and rates of the setting of several transformations."""
    (_, model), *_ = models.items()
    families = {
        "deterministic": deterministic_transformations(),
        "stochastic": stochastic_transformations(args.seed + 1),
    }
    for family, judging in families.items():
        yield f"{family} none", lambda t=judging: joint_success_rates([model], X, y, transforms=t)
        methods = [(name, family == "stochastic") for name in MAIN]
        if family == "stochastic":
            methods += [("MOO", False), ("TA-MOO", False)]
        for method, memory in methods:
            attack = rs.TransformTAMOO(
                FrozenEstimator(model), transforms=family, weighting=WEIGHTINGS[method],
                gradient_memory=memory, **common(args),
            )  # fmt: skip

            def rates(attack=attack, judging=judging):
                return joint_success_rates([model], attack.generate(X, y), y, transforms=judging)

            bare = ", no memory" if family == "stochastic" and not memory else ""
            yield f"{family} {method}{bare}", rates


SETTINGS = {
    "ens": (ensemble_rows, 500),
    "uni": (image_rows, 480),
    "eot": (transformation_rows, 300),
}


def cost(args):
    """Print the time of each weighting relative to PGD on the same ensemble."""
    torch.manual_seed(0)
    nets = [
        rs.models.make_module(name, input_shape=(1, 28, 28), n_classes=10)
        for name in (*NETWORKS, NETWORKS[0])
    ]
    ensemble = rs.ensembles.MeanEnsemble(nets).eval()
    x, y = torch.rand(args.n or 256, 1, 28, 28), torch.randint(0, 10, (args.n or 256,))
    settings = {**common(args), "n_steps": min(args.n_steps, 10)}
    attacks = {"PGD": rs.PGD(**settings)}
    attacks |= {n: rs.TAMOO(weighting=w, **settings) for n, w in WEIGHTINGS.items()}
    times = {name: [] for name in attacks}
    for turn in range(args.repeat + 1):
        # in turns, so that all meet the same machine
        for name, attack in attacks.items():
            start = time.perf_counter()
            attack.perturb(ensemble, x, y)
            if turn:
                times[name].append(time.perf_counter() - start)
    ratios = {n: np.array(t) / np.array(times["PGD"]) for n, t in times.items()}
    for name, ratio in ratios.items():
        low, middle, high = np.percentile(ratio, [25, 50, 75])
        print(f"{name:<15} {middle:.3f}  ({low:.3f} to {high:.3f})")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--setting", choices=[*SETTINGS, "cost"], required=True)
    parser.add_argument("--data-home", help="folder with the files of MNIST")
    parser.add_argument("--n-train", type=int, default=30000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--n", type=int, help="images to attack")
    parser.add_argument("--n-steps", type=int, default=100)
    parser.add_argument("--precision", choices=["bf16"], default=None, help="of the training")
    parser.add_argument("--repeat", type=int, default=10, help="for the setting cost")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=".", help="folder for victims and results")
    args = parser.parse_args()
    if args.setting == "cost":
        cost(args)
        return
    pathlib.Path(args.out).mkdir(parents=True, exist_ok=True)
    X, y = fetch_mnist(data_home=args.data_home, subset="train", return_X_y=True)
    models = victims(args, X[: args.n_train], y[: args.n_train])
    X, y = fetch_mnist(data_home=args.data_home, subset="test", return_X_y=True)
    rows, n = SETTINGS[args.setting]
    n = args.n or n
    for name, model in models.items():
        print(f"{name}: clean accuracy {model.score(X[:n], y[:n]):.3f}")
    path = pathlib.Path(args.out) / f"multi-objective-{args.setting}.csv"
    done = set()
    if path.exists():
        with path.open() as file:
            done = {line[0] for line in csv.reader(file)}
    for name, measure in rows(args, models, X[:n], y[:n]):
        if name in done:
            continue
        start = time.perf_counter()
        rates = measure()
        print(f"{name:<34} {rates}  {time.perf_counter() - start:.0f} s", flush=True)
        with path.open("a", newline="") as file:
            each = [f"{100 * rate:.2f}" for rate in rates.per_task]
            csv.writer(file).writerow(
                [
                    name,
                    f"{100 * rates.all:.2f}",
                    f"{100 * rates.average:.2f}",
                    *each,
                    rates.n_samples,
                ]
            )


if __name__ == "__main__":
    main()
