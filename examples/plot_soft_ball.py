"""
A soft ball for the adversary
=============================

Distributionally robust training (UDR) lets its adversary leave the ball at a price that all samples
share. In the plane one can watch it: a small class at the left, a large one in two clusters at the
right, of which only the first is within reach.
"""

# %%
# Two adversaries
# ---------------
# The same steps, once projected to the ball and once only pulled back in part.

import matplotlib.pyplot as plt
import numpy as np
import torch

from robustsk import PGD, PGDATClassifier, TrainingCurveDisplay, adversary_profile
from robustsk.datasets import make_three_clusters
from robustsk.training import UDRAdversary

X, y = make_three_clusters(3000, random_state=0)
X_test, y_test = make_three_clusters(2000, random_state=1)
steps = {"eps": 1.0, "step_size": 0.1, "n_steps": 20, "clip": None}
network = {
    "module": "mlp",
    "module__hidden_sizes": (10, 10, 10),
    "lr": 0.003,
    "max_epochs": 30,
    "random_state": 0,
}
models = {
    "hard ball": PGDATClassifier(adversary=PGD(**steps), **network),
    "soft ball": PGDATClassifier(adversary=UDRAdversary(**steps), **network),
    "low price": PGDATClassifier(
        adversary=UDRAdversary(lambda_init=0.2, lambda_lr=0.0, **steps), **network
    ),
}

# %%
# Judge the clusters one by one
# -----------------------------
# Always answering "right" would be correct for 90 % of the samples under any attack. Hence one
# number per cluster, next to how far each adversary really went: a softer ball is a larger one, and
# what it gains in the middle it takes from the small class.

attack = PGD(eps=2.0, step_size=0.1, n_steps=50, clip=None, random_state=0)
clusters = {
    "left": y_test == 0,
    "middle": (y_test == 1) & (X_test[:, 0] < 4),
    "right": (y_test == 1) & (X_test[:, 0] >= 4),
}
print(f"{'':<13}{'left':>6}{'middle':>8}{'right':>7}   largest |delta| in training")
for name, clf in models.items():
    clf.fit(X, y)
    scores = [clf.score_adversarial(X_test[m], y_test[m], attack) for m in clusters.values()]
    reach = adversary_profile(clf, X_test, y_test).mean_max
    print(f"{name:<13}{scores[0]:>6.2f}{scores[1]:>8.2f}{scores[2]:>7.2f}   {reach:.2f}")

# %%
# What they do
# ------------
# Decision regions, and where the adversary of each training takes a few samples.

fig, axes = plt.subplots(1, 4, figsize=(14, 3.2), width_ratios=[1, 1, 1, 0.9])
grid = np.stack(np.meshgrid(np.linspace(-5, 9, 120), np.linspace(-3, 3, 60)), -1)
few = np.random.RandomState(0).choice(len(X_test), 25, replace=False)
for ax, (name, clf) in zip(axes, models.items(), strict=False):
    ax.contourf(
        grid[..., 0],
        grid[..., 1],
        clf.predict(grid.reshape(-1, 2)).reshape(grid.shape[:2]),
        levels=1,
        cmap="coolwarm",
        alpha=0.3,
    )
    ax.scatter(*X_test[:300].T, c=y_test[:300], cmap="coolwarm", s=4)
    victim = clf.__robustsk_victim__()
    start, labels = torch.from_numpy(X_test[few]), torch.from_numpy(y_test[few])
    end = clf.adversary_.perturb(victim, start, labels, seed=0).numpy()
    for a, b in zip(X_test[few], end, strict=True):
        ax.annotate("", b, a, arrowprops={"arrowstyle": "->", "lw": 0.7})
        ax.add_patch(plt.Rectangle(a - 1, 2, 2, fill=False, lw=0.3))
    ax.set_title(name)

# %%
# The price
# ---------

for name in ("soft ball", "low price"):
    TrainingCurveDisplay.from_estimator(models[name], "lam", name=name, ax=axes[3])
fig.tight_layout()
plt.show()
