"""
Quickstart: how robust is it, and how to make it robust
=======================================================

Handwritten digits, a small convolutional network, five ways to train it: natural training, PGD
adversarial training, TRADES, SPAT and a CCE ensemble. Each is attacked with 20-step PGD from two
random starts, every pixel moving by at most 0.15 of its range.
"""

# %%
# Data: images in [0, 1], shape (n, 1, 8, 8). They ship with scikit-learn.
from time import perf_counter

import matplotlib.pyplot as plt
import numpy as np
from sklearn.model_selection import train_test_split

from robustsk import (
    PGD,
    EnsembleCCE,
    PGDATClassifier,
    RobustnessCurveDisplay,
    SPATClassifier,
    StandardClassifier,
    TRADESClassifier,
    load_digits_images,
    robust_accuracy,
)

X, y = load_digits_images(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=300, stratify=y, random_state=0)

# %%
# Five estimators. They share one threat model; everything else is left at its default. An
# estimator given no network takes a small CNN for images and an MLP for tables.
eps = 0.15
common = {"adversary__eps": eps, "adversary__n_steps": 5, "max_epochs": 10, "random_state": 0}
classifiers = {
    "natural": StandardClassifier(**common),
    "PGD-AT": PGDATClassifier(**common),
    "TRADES": TRADESClassifier(**common),
    "SPAT": SPATClassifier(**common),
    "CCE (2 members)": EnsembleCCE(**common),
}

# %%
# Train, and score: clean accuracy, and robust accuracy with its 95 % confidence interval, against
# an attack on the cross-entropy and against one on the margin.
print(f"{'defence':<16} {'clean':>6} {'PGD-20':>7} {'95% interval':>15} {'margin':>7} {'fit':>6}")
for name, clf in classifiers.items():
    start = perf_counter()
    clf.fit(X_train, y_train)
    seconds = perf_counter() - start
    result = robust_accuracy(clf, X_test, y_test, clf.default_attack())
    margin = clf.score_adversarial(
        X_test, y_test, PGD(eps=eps, n_steps=20, objective="cw", random_state=0)
    )
    interval = f"{result.low:.3f} to {result.high:.3f}"
    print(
        f"{name:<16} {clf.score(X_test, y_test):>6.3f} {result.accuracy:>7.3f} {interval:>15} "
        f"{margin:>7.3f} {seconds:>5.1f}s"
    )

# %%
# Accuracy against the size of the perturbation: where does each defence give way?
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for name, clf in classifiers.items():
    RobustnessCurveDisplay.from_estimator(
        clf,
        X_test[:150],
        y_test[:150],
        eps_range=[0, 0.05, 0.1, 0.15, 0.2, 0.3],
        name=name,
        ax=left,
    )
left.set_title("Accuracy under attack")

# %%
# What the perturbation looks like: digits, and what the attack makes of them for the natural and
# for the TRADES network. No pixel has moved by more than 0.15.
n_shown = 6
rows = [X_test[:n_shown]]
for name in ("natural", "TRADES"):
    attack = PGD(classifiers[name], eps=eps, n_steps=20, random_state=0)
    rows.append(attack.generate(X_test[:n_shown], y_test[:n_shown]))
framed = [np.pad(row[:, 0], [(0, 0), (1, 1), (1, 1)]) for row in rows]
right.imshow(np.vstack([np.hstack(row) for row in framed]), cmap="gray_r", vmin=0, vmax=1)
right.set_xticks([])
right.set_yticks([4.5, 14.5, 24.5], ["clean", "against natural", "against TRADES"])
right.set_title(f"Adversarial examples, eps={eps}")
fig.savefig("quickstart.png", dpi=110)
plt.show()
