"""Classifiers of scikit-learn on a table of loans, attacked on numbers and categories.

    python benchmarks/tables.py

Two thousand loans to learn from, the next hundred to be judged. Numbers may move by 5 % of their
range, counts in whole steps; age is immutable, the number of accounts may only grow, nobody has
more open accounts than accounts, and one category may change. "frozen" is the same attack with the
categories left alone: what the difference hides from whoever moves numbers only.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from _timing import Table, machine
from sklearn.compose import make_column_transformer
from sklearn.ensemble import (
    AdaBoostClassifier,
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
)
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.tree import DecisionTreeClassifier

from robustsk import FeatureSpace, GreedySearch, adversarial_outcome, make_loans

EPS = 0.05
NUMBERS, STRINGS = ["age", "income", "amount", "n_total", "n_open"], ["purpose", "housing"]


def models(seed, small):
    """Return pipelines by name, not fitted."""
    n = 10 if small else 100
    tree = {"max_depth": 6, "random_state": seed}
    classifiers = {
        "LR": LogisticRegression(max_iter=5000),
        "DecisionTree": DecisionTreeClassifier(**tree),
        "RF": RandomForestClassifier(n, **tree),
        "ExtraTrees": ExtraTreesClassifier(n, **tree),
        "GB": GradientBoostingClassifier(n_estimators=n, random_state=seed),
        "AdaBoost": AdaBoostClassifier(n_estimators=n // 2, random_state=seed),
        "HistGB": HistGradientBoostingClassifier(
            max_iter=n // 2, max_leaf_nodes=15, random_state=seed
        ),
        "MLP": MLPClassifier(64, max_iter=20 if small else 500, random_state=seed),
    }
    for name, classifier in classifiers.items():
        scaled = StandardScaler() if name in ("LR", "MLP") else "passthrough"
        encoder = make_column_transformer(
            (scaled, NUMBERS), (OneHotEncoder(sparse_output=False), STRINGS)
        )
        yield name, make_pipeline(encoder, classifier)


def spaces(X):
    """Return what the columns may become, with one category that may change and with none."""
    for max_changes in (1, 0):
        space = FeatureSpace(
            scale="range", immutable=["age"], monotone={"n_total": 1}, max_changes=max_changes
        )
        c = space.columns
        yield space.set_params(relations=[c.n_open <= c.n_total]).fit(X)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", help="names of the rows, all by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--csv", help="file for the table")
    args = parser.parse_args()
    X, y = make_loans(2400, random_state=args.seed)
    n_train, n_test = (200, 10) if args.small else (2000, 100)
    X_train, y_train = X[:n_train], y[:n_train]
    X_test, y_test = X[2000 : 2000 + n_test], y[2000 : 2000 + n_test]
    attacks = [GreedySearch(eps=EPS, space=space, random_state=0) for space in spaces(X_train)]
    print(f"{machine()}\n")
    columns = ["model", "clean", "GreedySearch", "queries per row", "median", "frozen", "seconds"]
    table = Table(columns, args.csv)
    for name, model in models(args.seed, args.small):
        if args.models and name not in args.models:
            continue
        model.fit(X_train, y_train)
        start = time.perf_counter()
        free, frozen = (adversarial_outcome(model, X_test, y_test, attack) for attack in attacks)
        seconds = time.perf_counter() - start
        queries = free.info["n_queries"][free.attacked]
        table.add(
            name,
            *(f"{value.mean():.2f}" for value in (free.correct, free.robust)),
            *(f"{value:.0f}" for value in (queries.mean(), np.median(queries))),
            f"{frozen.robust.mean():.2f}",
            f"{seconds:.1f}",
        )


if __name__ == "__main__":
    main()
