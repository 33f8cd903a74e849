"""Train and attack the defences of a table in the literature, and print both side by side.

    python benchmarks/reproduce.py --list
    python benchmarks/reproduce.py --table hou-3.2 --data-home FOLDER                  # an hour
    python benchmarks/reproduce.py --table hou-3.4 --data-home FOLDER --protocol full  # a GPU, days

The short protocol trains every row with the same network, data, epochs and inner attack, far below
the budget of the sources, whose numbers stand beside ours for the order and the rough level only.
The full one has one recipe for each data set, about as long as those of the sources, which differ
from it and from one another in networks, learning rates, epochs, attacks and judges. Every row is
written to a CSV file as soon as it is done and skipped in the next run, so that an interrupted run
goes on; a Markdown table is written at the end. Numbers made from CIFAR-10 in JPEG (--jpeg) are not
comparable to the last point.
"""

from __future__ import annotations

import argparse
import csv
import pathlib
import platform
import time
from dataclasses import dataclass, field

import numpy as np
import torch
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import roc_auc_score
from skorch.callbacks import LRScheduler
from tabulate import tabulate
from torch.optim.lr_scheduler import MultiStepLR

import robustsk as rs
from robustsk.datasets import fetch_cifar10, fetch_mnist, load_image_folder
from robustsk.defenses import spat_component_grid, spat_sensitivity_grid
from robustsk.metrics import adversarial_outcome, joint_success_rates, secure_regions
from robustsk.models import HypersphereHead
from robustsk.training import (
    AWP,
    Compose,
    Cutout,
    EpsWarmup,
    LearningRateSchedule,
    RandomCropFlip,
    RobustEarlyStopping,
    UDRAdversary,
    WeightAveraging,
    decay_weights_only,
)

# --- recipes ---------------------------------------------------------------------------


@dataclass
class Recipe:
    """How every row of a table is trained."""

    data: str
    module: str
    eps: float
    n_steps: int
    step_size: float
    epochs: int
    lr: float
    n_train: int | None = None
    optimizer: dict = field(default_factory=dict)
    schedule: tuple | str = "one cycle"  # or the epochs at which lr falls to a tenth
    warmup: float = 0
    augmentation: object = None
    batch_size: int = 128
    averaging: float | None = None  # decay of the mean of the weights that predicts

    def pgd(self, cls=None, **params):
        """Return the inner attack."""
        settings = {"n_steps": self.n_steps, "step_size": self.step_size, **params}
        return (cls or rs.PGD)(eps=self.eps, clip=(0, 1), **settings)

    def common(self, args, callbacks=()):
        """Return what all rows share."""
        if self.schedule == "one cycle":
            rate = LearningRateSchedule("cyclic", peak=0.3)
        else:
            rate = LRScheduler(MultiStepLR, milestones=list(self.schedule))
        callbacks = [*callbacks, rate]
        if self.averaging:
            callbacks.insert(0, WeightAveraging(decay=self.averaging))
        if self.warmup:
            # without it small networks do not get off the ground at eps = 0.3
            callbacks.append(EpsWarmup(self.warmup))
        return {
            "module": args.model or self.module,
            "max_epochs": self.epochs,
            "lr": self.lr,
            "batch_size": self.batch_size,
            "callbacks": callbacks,
            "augmentation": self.augmentation,
            "precision": args.precision,
            "device": args.device,
            "random_state": args.seed,
            "verbose": args.verbose,
            **self.optimizer,
        }


SGD = {
    "optimizer": torch.optim.SGD,
    "optimizer__momentum": 0.9,
    "optimizer__weight_decay": 2e-4,
}
RECIPES = {
    # the short ones are ours
    ("mnist", "short"): Recipe("mnist", "small_cnn", 0.3, 5, 0.1, 2, 2e-3, 60000, warmup=1),
    ("cifar10", "short"): Recipe(
        "cifar10", "resnet20", 8 / 255, 5, 3 / 255, 10, 5e-3, 10000,
        augmentation=RandomCropFlip(),
    ),
    # ten minutes of one large GPU, after the recipes that have proved best for short trainings
    ("cifar10", "ten-minutes"): Recipe(
        "cifar10", "resnet18", 8 / 255, 7, 2 / 255, 30, 0.2, None,
        {
            "optimizer": decay_weights_only, "optimizer__momentum": 0.9,
            "optimizer__nesterov": True, "optimizer__weight_decay": 5e-4,
            "criterion__label_smoothing": 0.1,
        },
        augmentation=RandomCropFlip(), batch_size=256, averaging=0.995,
    ),
    ("mnist", "full"): Recipe(
        "mnist", "small_cnn", 0.3, 40, 0.01, 80, 0.01, None, SGD, ()
    ),
    ("cifar10", "full"): Recipe(
        "cifar10", "resnet18", 8 / 255, 10, 2 / 255, 100, 0.1, None, SGD, (75, 90),
        augmentation=RandomCropFlip(),
    ),
}  # fmt: skip


# --- rows ------------------------------------------------------------------------------


def defences(recipe, args):
    """Return the defences of Hou's Chapter 3, and others beside them."""
    common = recipe.common(args)
    pgd = recipe.pgd()  # each method starts it where its source does
    hyper = {"cosine": HypersphereHead(s=10, m=0.2), "trades": HypersphereHead(s=15, m=0.2)}
    return {
        "natural": rs.StandardClassifier(adversary=pgd, **common),
        "Madry": rs.PGDATClassifier(adversary=pgd, **common),
        "ALP": rs.ALPClassifier(adversary=pgd, **common),
        "TRADES": rs.TRADESClassifier(adversary=pgd, **common),
        "MART": rs.MARTClassifier(beta=5, adversary=pgd, **common),
        "GAIRAT": rs.GAIRATClassifier(adversary=recipe.pgd(rs.GeometryAwarePGD), **common),
        "MAIL-AT": rs.MAILClassifier(adversary=pgd, **common),
        "SPAT": rs.SPATClassifier(adversary=pgd, **common),
        "FAT": rs.FATClassifier(adversary=recipe.pgd(rs.FriendlyPGD), **common),
        "AR": rs.AdversarialRegularizationClassifier(adversary=pgd, **common),
        "Madry+HE": rs.PGDATClassifier(adversary=pgd, head=hyper["cosine"], **common),
        "TRADES+HE": rs.TRADESClassifier(adversary=pgd, head=hyper["trades"], **common),
        "Madry+AWP": rs.PGDATClassifier(
            adversary=pgd, weight_perturbation=AWP(gamma=0.01), **common
        ),
        "TRADES+AWP": rs.TRADESClassifier(
            adversary=pgd, weight_perturbation=AWP(gamma=0.005), **common
        ),
    }


def spat_variants(grid):
    """Return a function that makes one SPAT per setting of a list of grids."""

    def rows(recipe, args):
        found = {}
        for part in grid:
            for name, values in part.items() if len(part) == 1 else [(None, [part])]:
                for value in values:
                    if name is None:
                        setting = {key: options[0] for key, options in value.items()}
                        label = ", ".join(str(v) for v in setting.values())
                    else:
                        setting, label = {name: value}, f"{name}={value:g}"
                    found[label] = rs.SPATClassifier(
                        adversary=recipe.pgd(), **recipe.common(args), **setting
                    )
        return found

    return rows


def trade_off(recipe, args):
    """Return TRADES and adversarial regularisation at every weight of the source."""
    common = recipe.common(args)
    rows = {"RO": rs.PGDATClassifier(adversary=recipe.pgd(random_start="none"), **common)}
    for lam in (0.1, 0.2, 0.4, 0.8, 1.0, 2.0, 3.0, 5.0):
        rows[f"T {lam:g}"] = rs.TRADESClassifier(beta=lam, adversary=recipe.pgd(), **common)
        rows[f"AR {lam:g}"] = rs.AdversarialRegularizationClassifier(
            lam=lam, adversary=recipe.pgd(), **common
        )
    return rows


def friendly(recipe, args):
    """Return the rows of FAT's tables."""
    common = recipe.common(args)
    # tau grows by the schedule of the source, and starts and noise are those of each loss
    stopping = recipe.pgd(rs.FriendlyPGD)
    return {
        "Madry": rs.PGDATClassifier(adversary=recipe.pgd(), **common),
        "FAT": rs.FATClassifier(adversary=stopping, **common),
        "TRADES b=6": rs.TRADESClassifier(adversary=recipe.pgd(), **common),
        "FAT-TRADES b=6": rs.FATClassifier(loss="trades", adversary=stopping, **common),
        "FAT-MART": rs.FATClassifier(loss="mart", adversary=stopping, **common),
    }


def geometry(recipe, args):
    """Return the rows of GAIRAT's table."""
    common = recipe.common(args)
    return {
        "AT": rs.PGDATClassifier(adversary=recipe.pgd(), **common),
        "FAT": rs.FATClassifier(adversary=recipe.pgd(rs.FriendlyPGD), **common),
        "GAIRAT": rs.GAIRATClassifier(adversary=recipe.pgd(rs.GeometryAwarePGD), **common),
        "GAIR-FAT": rs.GAIRATClassifier(
            variant="fat", adversary=recipe.pgd(rs.FriendlyPGD), **common
        ),
    }


def hypersphere(recipe, args):
    """Return the rows of the table of hypersphere embedding."""
    common = recipe.common(args)
    rows = {}
    for label, cls, adversary, head in (
        ("PGD-AT", rs.PGDATClassifier, recipe.pgd(), HypersphereHead(s=10, m=0.2)),
        ("ALP", rs.ALPClassifier, recipe.pgd(), HypersphereHead(s=20, m=0.3)),
        ("TRADES", rs.TRADESClassifier, recipe.pgd(), HypersphereHead(s=15, m=0.2)),
    ):
        rows[label] = cls(adversary=adversary, **common)
        rows[f"{label}+HE"] = cls(adversary=adversary, head=head, **common)
    return rows


def weight_perturbation(recipe, args):
    """Return the rows of the table of AWP."""
    common = recipe.common(args)
    rows = {}
    for label, cls, adversary, gamma in (
        ("AT", rs.PGDATClassifier, recipe.pgd(), 0.01),
        ("TRADES", rs.TRADESClassifier, recipe.pgd(), 0.005),
        ("MART", rs.MARTClassifier, recipe.pgd(), 0.005),
    ):
        rows[label] = cls(adversary=adversary, **common)
        rows[f"{label}+AWP"] = cls(
            adversary=adversary, weight_perturbation=AWP(gamma=gamma), **common
        )
    return rows


def overfitting(recipe, args):
    """Return the rows of Rice et al.'s table of remedies."""
    from skorch.dataset import ValidSplit

    common = recipe.common(args)
    stop = recipe.common(args, [RobustEarlyStopping()])
    split = ValidSplit(0.02, stratified=True, random_state=0)
    pgd = recipe.pgd()
    return {
        "last epoch": rs.PGDATClassifier(adversary=pgd, **common),
        "early stopping": rs.PGDATClassifier(adversary=pgd, train_split=split, **stop),
        "l1": rs.RegularizedATClassifier(l1=5e-6, adversary=pgd, **common),
        "l2": rs.RegularizedATClassifier(l2=5e-4, adversary=pgd, **common),
        "mixup": rs.RegularizedATClassifier(mixup=1.4, adversary=pgd, **common),
        "cutout": rs.PGDATClassifier(
            adversary=pgd,
            **{**common, "augmentation": Compose([recipe.augmentation, Cutout(14)])},
        ),
    }


def fine_tuning(recipe, args):
    """Return the rows of Hou's Chapter 4 on MNIST."""
    common = recipe.common(args)
    rows = {"Vanilla": rs.StandardClassifier(adversary=recipe.pgd(), **common)}
    for beta in (1.0, 0.5, 0.1):
        rows[f"TRADES {beta:g}"] = rs.TRADESClassifier(beta=beta, adversary=recipe.pgd(), **common)
    others = {k: v for k, v in common.items() if k not in ("callbacks", "lr")}
    rows["Ours"] = rs.AdversarialFineTuneClassifier(
        standard_epochs=recipe.epochs,
        adversary=rs.DRA(eps_unit="mean", proportion=2 / 3, n_steps=recipe.n_steps, clip=(0, 1)),
        eps_start=0.1,
        eps_end=0.1,
        **others,
    )
    return rows


def pretrained(recipe, args):
    """Return the rows of J. Zhang's Table 5.5."""
    first, second = recipe.common(args), recipe.common(args)
    regular = rs.AdversarialRegularizationClassifier
    pgd = recipe.pgd()
    stages = {
        "RO, RO": (rs.PGDATClassifier(adversary=pgd, **first), None),
        "T3, T5": (
            rs.TRADESClassifier(beta=3, adversary=pgd, **first),
            rs.TRADESClassifier(beta=5, adversary=pgd, **second),
        ),
        "AR1, AR5": (
            regular(lam=1, adversary=pgd, **first),
            regular(lam=5, adversary=pgd, **second),
        ),
    }
    rows = {}
    for name, (one, two) in stages.items():
        rows[name] = rs.PretrainTuneClassifier(one, two, tune_lr=recipe.lr / 100)
        rows[f"{name.split(',')[0]}, none"] = rs.PretrainTuneClassifier(one, "none")
    return rows


def _bui_beta(recipe, beta):
    """Return the weight of a divergence: in Bui's thesis it is 1 for all methods on MNIST."""
    return 1.0 if recipe.data == "mnist" else beta


SELECTIONS = ("global", "hard", "soft", "leaked")


def representations(recipe, args):
    """Return the rows of Bui's Chapter 3."""
    common = {"adversary": recipe.pgd(), **recipe.common(args)}
    rows = {
        # the source trains on clean and adversarial samples alike
        "ADV": rs.MixedATClassifier(**common),
        "TRADES": rs.TRADESClassifier(beta=_bui_beta(recipe, 6), **common),
        "ADR": rs.ADRClassifier(**common),
    }
    for name in SELECTIONS:
        rows[f"ASCL {name}"] = rs.ASCLClassifier(selection=name, **common)
    return rows


def distributions(recipe, args):
    """Return the rows of Bui's Chapter 5, and a control with a larger ball."""
    common = recipe.common(args)
    # Algorithm 1 starts anywhere in the ball, whatever the loss
    soft = {"adversary": recipe.pgd(UDRAdversary), "adversary__random_start": "uniform"}
    trades, mart = ({"beta": _bui_beta(recipe, beta)} for beta in (6.0, 5.0))
    larger = recipe.pgd().set_params(eps=1.2 * recipe.eps)
    return {
        "PGD-AT": rs.MixedATClassifier(adversary=recipe.pgd(), **common),
        "PGD-AT 1.2 eps": rs.MixedATClassifier(adversary=larger, **common),
        "UDR-PGD": rs.UDRPGDClassifier(**soft, **common),
        "TRADES": rs.TRADESClassifier(adversary=recipe.pgd(), **trades, **common),
        "UDR-TRADES": rs.UDRTRADESClassifier(**soft, **trades, **common),
        "MART": rs.MARTClassifier(adversary=recipe.pgd(), **mart, **common),
        "UDR-MART": rs.UDRMARTClassifier(**soft, **mart, **common),
        "WRM": rs.WRMClassifier(
            gamma=0.05 if recipe.data == "mnist" else 0.5,
            adversary__clip=(0, 1),
            **common,
        ),
    }


def chapters(recipe, args):
    """Return the rows of both; ADV of the one is PGD-AT of the other."""
    rows = {**representations(recipe, args), **distributions(recipe, args)}
    del rows["ADV"]
    return rows


def ensembles(n_members):
    """Return a function that makes the rows of Bui's Section 4.3."""

    def rows(recipe, args):
        common = {"adversary": recipe.pgd(), "n_members": n_members, **recipe.common(args)}
        return {
            # the source trains on clean and adversarial samples alike
            "ADV": rs.EnsembleAT(**{**common, "n_members": 1}),
            "ADV-EN": rs.EnsembleAT(loss="mean", **common),
            "ADP": rs.EnsembleADP(**common),
            "CCE-Base": rs.EnsembleCCE(mode="base", **common),
            "CCE-RM": rs.EnsembleCCE(mode="robust", **common),
            "CCE-DM": rs.EnsembleCCE(mode="detection", **common),
        }

    return rows


def several_objectives(recipe, args):
    """Return the rows of the adversarial trainings in Bui's Section 4.4."""
    common = {"loss": "mean", **recipe.common(args)}
    if args.model is None:
        common["module"] = MEMBERS[recipe.data]
    else:
        common["n_members"] = 3
    rows = {"PGD-AT": rs.EnsembleAT(adversary=recipe.pgd(), **common)}
    for name in ("minmax", "moo", "tamoo"):
        adversary = recipe.pgd(rs.TAMOO, weighting=name)
        rows[f"{LABELS[name]}-AT"] = rs.EnsembleAT(adversary=adversary, **common)
    return rows


LABELS = {"minmax": "MinMax", "moo": "MOO", "tamoo": "TA-MOO"}
#: Networks of the ensembles that are to be different from one another.
MEMBERS = {
    "mnist": ["small_cnn", "cce_mnist", "conv_net2"],
    "cifar10": ["resnet18", "resnet20", "cce_cifar10"],
}

# --- tables ----------------------------------------------------------------------------


@dataclass
class Table:
    """What a table of a source holds."""

    title: str
    data: str
    rows: object
    columns: tuple
    source: dict
    module: str | None = None  # a network other than that of the recipe


HOU_COLUMNS = ("clean", "FGSM", "PGD-20", "C&W", "AA")
ENSEMBLE_COLUMNS = (
    "clean", "PGD-20", "mul-PGD", "AA", "S11", "S00", "T", "nT", "a single", "AUC"
)  # fmt: skip
TABLES = {
    "hou-3.2": Table(
        "Hou (2022), Table 3.2: MNIST, white box, eps 0.3",
        "mnist", defences, HOU_COLUMNS,
        {
            "Madry": (99.15, 97.22, 95.51, 95.66),
            "ALP": (98.79, 97.31, 95.85, 95.50),
            "TRADES": (99.10, 97.42, 96.22, 96.01),
            "MART": (98.89, 97.70, 96.24, 96.33),
            "SPAT": (99.21, 98.12, 96.64, 96.57),
        },
    ),
    "hou-3.4": Table(
        "Hou (2022), Table 3.4: CIFAR-10, white box, eps 8/255",
        "cifar10", defences, HOU_COLUMNS,
        {
            "Madry": (84.35, 54.23, 46.70, 48.62, 46.90),
            "ALP": (85.21, 54.07, 46.19, 48.80, 46.44),
            "TRADES": (82.12, 56.49, 51.82, 49.96, 47.32),
            "MART": (83.08, 60.19, 54.87, 51.23, 47.87),
            "GAIRAT": (83.14, 60.03, 54.85, 40.73, 35.90),
            "MAIL-AT": (83.80, 61.33, 55.06, 48.67, 44.32),
            "SPAT": (84.26, 62.27, 59.56, 50.56, 48.33),
        },
    ),
    "hou-3.6": Table(
        "Hou (2022), Table 3.6: CIFAR-10, sensitivity of SPAT", "cifar10",
        spat_variants(spat_sensitivity_grid()), ("clean", "PGD-20", "C&W"),
        {
            "alpha=0": (84.66, 58.32),
            "alpha=0.2": (84.26, 59.56),
            "alpha=0.4": (83.60, 60.11),
            "alpha=0.6": (83.01, 60.57),
            "beta=0": (85.03, 57.88),
            "beta=0.2": (84.26, 59.56),
            "beta=0.4": (83.81, 59.64),
            "beta=0.6": (82.66, 57.62),
            "s=1": (87.57, 49.52),
            "s=3": (86.16, 55.77),
            "s=5": (84.26, 59.56),
            "s=8": (82.54, 60.24),
            "s=10": (81.24, 61.02),
        },
    ),
    "hou-3.7": Table(
        "Hou (2022), Tables 3.7 and 3.8: CIFAR-10, SPAT taken apart", "cifar10",
        spat_variants(spat_component_grid()), ("clean", "PGD-20", "C&W"),
        {
            "cosine, True, self_paced": (84.26, 59.56),
            "cosine, False, self_paced": (82.49, 58.74),
            "cosine, True, kl": (84.01, 56.14),
            "cosine, False, kl": (83.33, 54.58),
            "linear, True, self_paced": (82.86, 53.55),
            "linear, False, kl": (82.12, 51.82),
        },
    ),
    "hou-4.2": Table(
        "Hou (2022), Table 4.2: MNIST, fine-tuning with DRA",
        "mnist", fine_tuning,
        ("clean", "PGD-20 eps/3", "PGD-20"),
        {
            "Vanilla": (99.3, 88.3, 18.6),
            "TRADES 1": (99.3, 98.4, 93.5),
            "TRADES 0.5": (99.3, 97.9, 92.1),
            "TRADES 0.1": (99.4, 97.2, 90.8),
            "Ours": (99.3, 98.0, 95.9),
        },
        "conv_net2",
    ),
    "jzhang-4.1": Table(
        "J. Zhang (2019), Tables 4.1 and 4.2: CIFAR-10, TRADES and AR",
        "cifar10", trade_off,
        ("clean", "PGD-20", "AA"),
        {
            "RO": (82.93, 48.03),
            "T 0.1": (90.62, 32.03),
            "AR 0.1": (83.14, 49.86),
            "T 0.2": (88.75, 41.01),
            "AR 0.2": (84.43, 48.22),
            "T 0.4": (87.99, 42.48),
            "AR 0.4": (83.96, 50.92),
            "T 0.8": (86.34, 47.40),
            "AR 0.8": (82.40, 51.26),
            "T 1": (85.83, 47.90),
            "AR 1": (82.30, 52.00),
            "T 2": (84.29, 48.64),
            "AR 2": (80.54, 53.72),
            "T 3": (84.05, 50.41),
            "AR 3": (81.28, 52.57),
            "T 5": (81.61, 52.67),
            "AR 5": (76.52, 53.90),
        },
    ),
    "jzhang-5.5": Table(
        "J. Zhang (2019), Table 5.5: pretrained on CINIC-10, tuned on CIFAR-10",
        "cifar10", pretrained, ("clean", "PGD-20", "AA"),
        {
            "RO, RO": (86.25, 52.20), "RO, none": (81.97, 53.79), "T3, T5": (85.49, 55.75),
            "T3, none": (85.31, 50.69), "AR1, AR5": (83.11, 57.34),
        },
    ),
    "bui-3.2": Table(
        "Bui (2023), Chapter 3, Tables 2 and 4 of ASCL: CIFAR-10, ResNet-20",
        "cifar10", representations, ("clean", "PGD-20", "AA"),
        {
            "ADV": (78.8, 48.1, 36.1), "TRADES": (76.1, 51.9, 36.3), "ADR": (76.8, 51.5, 38.6),
            "ASCL global": (76.4, 52.7, 40.9), "ASCL hard": (75.5, 53.1, 41.3),
            "ASCL soft": (75.5, 53.4, 40.4), "ASCL leaked": (75.5, 53.7, 42.0),
        },
        "resnet20",
    ),
    "bui-5.1": Table(
        "Bui (2023), Chapter 5, Table 1: CIFAR-10, ResNet-18",
        "cifar10", distributions, ("clean", "PGD-20", "AA", "mean d", "max d"),
        {
            "PGD-AT": (86.4, 46.0, 42.5), "UDR-PGD": (86.4, 48.9, 44.8),
            "TRADES": (80.8, 51.9, 49.1), "UDR-TRADES": (84.4, 53.6, 49.9),
            "MART": (81.9, 53.3, 48.2), "UDR-MART": (80.1, 54.1, 49.1), "WRM": (83.7, 40.9, 39.8),
        },
    ),
    "bui-mnist": Table(
        "Bui (2023), Chapters 3 and 5: MNIST (sources: Chapter 5, Table 1, PGD-200)",
        "mnist", chapters, ("clean", "PGD-40", "AA", "mean d", "max d"),
        {
            "PGD-AT": (99.4, 94.0, 88.9), "UDR-PGD": (99.5, 94.3, 90.0),
            "TRADES": (99.4, 95.1, 90.9), "UDR-TRADES": (99.4, 96.9, 92.2),
            "MART": (99.3, 94.7, 90.6), "UDR-MART": (99.3, 96.0, 92.3), "WRM": (91.8, 27.1, 4.5),
        },
    ),
    "bui-4.3": Table(
        "Bui (2023), Section 4.3, Tables 4, 6 and 7: CIFAR-10, two CNNs",
        "cifar10", ensembles(2), ENSEMBLE_COLUMNS,
        {
            "ADV": (75.7, 38.0, 26.0, 25.1),
            "ADV-EN": (76.0, 39.7, 27.7, 25.0, 24.0, 46.0, 65.5, 13.3, 16.7),
            "ADP": (75.9, 42.2, 27.8, 24.4, 25.7, 49.5, 59.3, 7.6, 17.2),
            "CCE-Base": (75.8, 43.4, 31.1, 29.2, 36.1, 50.3, 36.1, 6.4, 7.2),
            "CCE-RM": (76.0, 44.7, 31.9, 29.9, 39.9, 49.5, 33.7, 5.0, 5.6),
            "CCE-DM": (86.0, 26.1, 20.1, 0.2),
        },
        "cce_cifar10",
    ),
    "bui-4-mnist": Table(
        "Bui (2023), Section 4.3 on MNIST, two CNNs (the source has no numbers)",
        "mnist", ensembles(2), ENSEMBLE_COLUMNS, {},
    ),
    "bui-4.4": Table(
        "Bui (2023), Section 4.4, Table 11: CIFAR-10, three different networks",
        "cifar10", several_objectives, ("clean", "PGD-20", "A-All", "A-Avg", "AA"),
        {
            "PGD-AT": (86.52, 37.36, 49.01, 69.75), "MinMax-AT": (83.16, 40.40, 46.91, 65.73),
            "MOO-AT": (82.04, 37.48, 45.24, 70.11), "TA-MOO-AT": (82.59, 41.32, 43.68, 65.09),
        },
    ),
    "bui-4.4-mnist": Table(
        "Bui (2023), Section 4.4 on MNIST, three different networks (the source has no numbers)",
        "mnist", several_objectives, ("clean", "PGD-20", "A-All", "A-Avg", "AA"), {},
    ),
    "fat-1": Table(
        "J. Zhang et al. (2020), Tables 1 and 2: CIFAR-10, WRN",
        "cifar10", friendly, HOU_COLUMNS,
        {
            "Madry": (87.30, 56.10, 45.80, 46.80),
            "FAT": (89.34, 65.52, 46.13, 46.82),
            "TRADES b=6": (84.92, 61.06, 56.61, 54.47),
            "FAT-TRADES b=6": (86.60, 61.97, 55.98, 54.29),
        },
    ),
    "gairat-1": Table(
        "J. Zhang et al. (2021), Table 1: CIFAR-10, WRN, last epoch",
        "cifar10", geometry,
        ("clean", "PGD-20", "C&W", "AA"),
        {
            "AT": (86.62, 46.73),
            "FAT": (88.18, 46.79),
            "GAIRAT": (85.49, 53.76),
            "GAIR-FAT": (88.44, 50.64),
        },
    ),
    "he-2": Table(
        "Pang et al. (2020), Table 2: CIFAR-10, WRN",
        "cifar10", hypersphere,
        ("clean", "PGD-20", "FGSM", "C&W", "AA"),
        {
            "PGD-AT": (86.75, 53.97, 59.70),
            "PGD-AT+HE": (86.19, 59.36, 63.77),
            "ALP": (87.18, 52.29, 58.99),
            "ALP+HE": (89.91, 57.69, 65.08),
            "TRADES": (84.62, 56.48, 61.02),
            "TRADES+HE": (84.88, 62.02, 65.69),
        },
    ),
    "awp-2": Table(
        "Wu et al. (2020), Table 2: CIFAR-10, WRN",
        "cifar10", weight_perturbation,
        ("clean", "FGSM", "PGD-20", "C&W", "AA"),
        {
            "AT": (86.07, 61.76, 56.10, 54.19, 52.60),
            "AT+AWP": (85.57, 62.90, 58.14, 55.96, 54.04),
            "TRADES": (84.65, 61.32, 56.33, 54.20, 53.08),
            "TRADES+AWP": (85.36, 63.49, 59.27, 57.07, 56.17),
            "MART": (84.17, 61.61, 58.56, 54.58, 51.10),
            "MART+AWP": (84.43, 63.98, 60.68, 56.37, 54.23),
        },
    ),
    "rice-2": Table(
        "Rice et al. (2020), Table 2: CIFAR-10, last epoch",
        "cifar10", overfitting,
        ("clean", "PGD-20"),
        {
            "early stopping": (None, 53.1),
            "l1": (None, 47.0),
            "l2": (None, 44.8),
            "cutout": (None, 51.2),
            "mixup": (None, 50.9),
        },
    ),
}  # fmt: skip


def attacks(recipe, protocol):
    """Return the attacks that the columns stand for."""
    common = {"eps": recipe.eps, "clip": (0, 1), "random_state": 1}
    pgd = {**common, "n_steps": 20, "step_size": recipe.eps / 10}
    return {
        "FGSM": rs.FGSM(**common),
        "PGD-20": rs.PGD(**pgd),
        "mul-PGD": rs.MultiTargeted(attack=rs.PGD(**pgd)),
        "PGD-40": rs.PGD(**{**pgd, "n_steps": 40, "step_size": recipe.eps / 30}),
        "PGD-20 eps/3": rs.PGD(**{**pgd, "eps": recipe.eps / 3, "step_size": recipe.eps / 30}),
        "C&W": rs.PGD(objective="cw", **pgd),
        "AA": rs.AutoAttack(version="standard" if protocol == "full" else "fast", **common),
    }


def load(recipe, args):
    """Return training and test data."""
    sizes = args.n_train or recipe.n_train, args.n_test
    if recipe.data == "cifar10" and args.jpeg:
        # no more files than are needed, class by class
        per_class = [None if n is None else -(-n // 10) for n in sizes]
        parts = [
            load_image_folder(args.jpeg, subset=subset, max_per_class=n, return_X_y=True)
            for subset, n in zip(("train", "test"), per_class, strict=True)
        ]
        order = [np.random.RandomState(0).permutation(len(y)) for _, y in parts]
        parts = [(X[rows], y[rows]) for (X, y), rows in zip(parts, order, strict=True)]
    else:
        fetch = fetch_mnist if recipe.data == "mnist" else fetch_cifar10
        parts = [
            fetch(data_home=args.data_home, subset=subset, return_X_y=True)
            for subset in ("train", "test")
        ]
    return [(X[:n], y[:n]) for (X, y), n in zip(parts, sizes, strict=True)]


def reach(clf, X, y):
    """Return the mean and the largest change that the adversary of a training makes."""
    profile = rs.adversary_profile(clf, X, y)
    return profile.mean_abs, profile.mean_max


def jointly(clf, X, y, attack):
    """Return what happens to the members of an ensemble, on examples against the whole."""
    rates = joint_success_rates(clf, X, y, attack, source=clf)
    found = {"A-All": rates.all, "A-Avg": rates.average}
    if len(clf.members_) > 1:
        regions = secure_regions(clf, X, y, attack)
        found |= {
            "S11": regions.all_secure,
            "S00": regions.all_insecure,
            "T": regions.T,
            "nT": regions.nT,
            "a single": regions.a_single,
        }
    # adversarial examples have the higher entropy, if the ensemble is to detect them
    clean, moved = (clf.prediction_entropy(Z) for Z in (X, examples(clf, X, y, attack)))
    found["AUC"] = roc_auc_score(np.repeat([0, 1], len(X)), np.concatenate([clean, moved]))
    return found


def examples(clf, X, y, attack):
    """Return adversarial examples against a classifier."""
    return clone(attack).set_params(estimator=FrozenEstimator(clf)).generate(X, y)


def write_markdown(path, table, rows):
    """Write ours beside the source's."""
    shown = [*table.columns, "fit_s"]
    lines = [f"# {table.title}", "", "Ours, and in brackets the source's. Percent.", ""]
    if "max d" in table.columns:
        lines[-1:] = [
            "d: change of a pixel by the adversary of the training, in % of the range.",
            "",
        ]
    cells = []
    for row in rows:
        theirs = dict(zip(table.columns, table.source.get(row["row"], ()), strict=False))
        cells.append([row["row"]])
        for column in shown:
            text = row[column]
            if theirs.get(column) is not None:
                text += f" ({theirs[column]:.2f})"
            cells[-1].append(text)
    lines.append(tabulate(cells, ["row", *shown], "github", disable_numparse=True))
    path.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="say which tables there are")
    parser.add_argument("--table", choices=sorted(TABLES))
    parser.add_argument("--protocol", choices=["short", "ten-minutes", "full"], default="short")
    parser.add_argument("--data-home", help="folder with the files of MNIST or CIFAR-10")
    parser.add_argument(
        "--jpeg", help="CIFAR-10 as JPEG files, a folder or tar of train/<class>/<file>"
    )
    parser.add_argument(
        "--pretrain-home",
        help="folder of images, one folder per class, for tables with pretraining; without it the "
        "first four fifths of the training data stand in, and the rest is what is tuned on",
    )
    parser.add_argument("--only", nargs="*", help="names of rows")
    parser.add_argument("--model", help="another network")
    parser.add_argument("--epochs", type=int, help="other than in the protocol")
    parser.add_argument("--n-train", type=int, help="other than in the protocol")
    parser.add_argument("--n-test", type=int, default=1000)
    parser.add_argument("--n-test-aa", type=int, default=500, help="samples for AutoAttack")
    parser.add_argument("--precision", choices=["bf16"], default=None)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=".", help="folder for the results")
    parser.add_argument("--verbose", type=int, default=0)
    args = parser.parse_args()
    if args.list or not args.table:
        for name, table in TABLES.items():
            print(f"{name:<12} {table.title}")
        return
    table = TABLES[args.table]
    if (table.data, args.protocol) not in RECIPES:
        parser.error(f"there is no protocol {args.protocol} for {table.data}")
    recipe = RECIPES[table.data, args.protocol]
    if args.epochs:
        recipe.epochs = args.epochs
    recipe.module = table.module or recipe.module
    (X, y), (X_test, y_test) = load(recipe, args)
    extra, classes_map = {}, None
    if table.rows is pretrained:
        if args.pretrain_home:
            X_pretrain, y_pretrain = load_image_folder(args.pretrain_home, return_X_y=True)
            extra = {"X_pretrain": X_pretrain, "y_pretrain": y_pretrain}
            if y.dtype.kind in "iu":  # and names of folders there
                names = fetch_cifar10(data_home=args.data_home, subset="test").target_names
                classes_map = {name: number for number, name in enumerate(names.tolist())}
        else:
            cut = len(X) * 4 // 5
            extra = {"X_pretrain": X[:cut], "y_pretrain": y[:cut]}
            X, y = X[cut:], y[cut:]
    recipe.n_train = len(X)
    judges = attacks(recipe, args.protocol)

    out = pathlib.Path(args.out) / f"{args.table}-{args.protocol}.csv"
    out.parent.mkdir(parents=True, exist_ok=True)
    fields = ["row", *table.columns, "fit_s", "epochs", "n_train", "n_test", "seed", "machine"]
    done = {}
    if out.exists():
        with out.open() as file:
            done = {row["row"]: row for row in csv.DictReader(file)}
    for name, clf in table.rows(recipe, args).items():
        if name in done or (args.only and name not in args.only):
            continue
        if classes_map is not None:
            clf.set_params(classes_map=classes_map)
        start = time.perf_counter()
        clf.fit(X, y, **extra)
        row = {"row": name, "fit_s": f"{time.perf_counter() - start:.0f}"}
        joint = None
        for column in table.columns:
            if column == "clean":
                value = clf.score(X_test, y_test)
            elif column in ("mean d", "max d"):
                # how far the adversary of the training really goes, in percent of the range
                value = reach(clf, X_test[:500], y_test[:500])[column == "max d"]
            elif column not in judges:
                if joint is None:
                    joint = jointly(clf, X_test, y_test, judges["PGD-20"])
                value = joint.get(column, np.nan)
            else:
                n = args.n_test_aa if column == "AA" else args.n_test
                outcome = adversarial_outcome(clf, X_test[:n], y_test[:n], judges[column])
                value = outcome.robust.mean()
            row[column] = f"{100 * value:.2f}"
        row |= {
            "epochs": recipe.epochs, "n_train": len(X), "n_test": len(X_test), "seed": args.seed,
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        }  # fmt: skip
        print(row, flush=True)
        new = not out.exists()
        with out.open("a", newline="") as file:
            writer = csv.DictWriter(file, fields)
            if new:
                writer.writeheader()
            writer.writerow(row)
        done[name] = row
    write_markdown(out.with_suffix(".md"), table, list(done.values()))


if __name__ == "__main__":
    main()
