"""
Pretraining, and fine-tuning that keeps clean accuracy
======================================================

Two ways to start from a network that is there already, on two related small sets: digits moved by
a pixel in each direction, of which there are many, and 300 digits in their place.
"""

# %%
# Two data sets
# -------------
# Moved digits are a problem of their own: the pixels that matter are others.

import matplotlib.pyplot as plt
import numpy as np

from robustsk import (
    DRA,
    PGD,
    AdversarialFineTuneClassifier,
    AutoAttack,
    PGDATClassifier,
    PretrainTuneClassifier,
    StandardClassifier,
    TRADESClassifier,
    load_digits_images,
)

X, y = load_digits_images(return_X_y=True)
X_small, y_small = X[:300], y[:300]
X_test, y_test = X[1200:1600], y[1200:1600]
moves = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]
X_large = np.concatenate([np.roll(X[300:800], move, axis=(2, 3)) for move in moves[::2]])
y_large = np.concatenate([y[300:800] for _ in moves[::2]])
print(f"{len(X_small)} digits, and {len(X_large)} moved ones")

# %%
# Pretrain on one, tune on the other
# ----------------------------------
# Any defence in each stage. The tuner goes on from the weights of the pretrainer, with an optimizer
# and a learning rate of its own.

eps = 0.1
common = {"adversary__eps": eps, "adversary__clip": (0, 1), "random_state": 0}
trades = TRADESClassifier(max_epochs=20, **common)
models = {
    "TRADES on the small set": trades,
    "PGD-AT on the large set": PretrainTuneClassifier(
        PGDATClassifier(max_epochs=15, **common), "none"
    ),
    "PGD-AT, then TRADES": PretrainTuneClassifier(
        PGDATClassifier(max_epochs=15, **common), trades, tune_lr=0.002
    ),
}
attack = PGD(eps=eps, n_steps=20, clip=(0, 1), random_state=0)
audit = AutoAttack(eps=eps, version="fast", clip=(0, 1), random_state=0)
print(f"{'':<26}clean  PGD-20  AutoAttack")
for name, model in models.items():
    if isinstance(model, PretrainTuneClassifier):
        model.fit(X_small, y_small, X_pretrain=X_large, y_pretrain=y_large)
    else:
        model.fit(X_small, y_small)
    scores = [model.score(X_test, y_test)]
    scores += [model.score_adversarial(X_test, y_test, a) for a in (attack, audit)]
    print(f"{name:<26}{scores[0]:.3f}   {scores[1]:.3f}       {scores[2]:.3f}")

# %%
# Fine-tune without giving up clean accuracy
# ------------------------------------------
# Standard training first; then clean and adversarial batches in turns, with an attack that changes
# few features and a radius that shrinks. With ``constraint="dual"`` the weight of the clean loss
# rises whenever that loss exceeds the one of the standard network by more than `slack`.

settings = {
    "standard_epochs": 15,
    "max_epochs": 18,
    "lr": 0.002,
    "adversary": DRA(eps=0.06, eps_unit="mean", clip=(0, 1)),
    "random_state": 0,
}
X_train, y_train = X[:1000], y[:1000]
tuned = {
    "standard": StandardClassifier(max_epochs=15, random_state=0),
    "fine-tuned": AdversarialFineTuneClassifier(**settings),
    "with the constraint": AdversarialFineTuneClassifier(
        constraint="dual", slack=0.02, rho=5.0, **settings
    ),
    "PGD-AT": PGDATClassifier(max_epochs=20, **common),
}
radii = [0.0, 0.02, 0.04, 0.06, 0.08, 0.1]
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5))
for name, clf in tuned.items():
    clf.fit(X_train, y_train)
    curve = [
        clf.score_adversarial(X_test, y_test, attack.set_params(eps=radius)) for radius in radii
    ]
    left.plot(radii, curve, "o-", label=name)
    print(f"{name:<20}" + "  ".join(f"{value:.3f}" for value in curve))
left.set(xlabel="eps", ylabel="Accuracy under PGD-20")
left.legend()

# %%
# How well was the constraint kept?
# ---------------------------------

kept = tuned["with the constraint"]
epochs = np.arange(1, len(kept.history) + 1)
right.plot(epochs, kept.history[:, "clean_loss"], label="clean loss")
right.axhline(kept.standard_loss_, color="grey", ls=":", label="of the standard network")
right.axhline(kept.standard_loss_ + kept.slack, color="grey", ls="--", label="allowed")
right.plot(epochs, np.array(kept.history[:, "lam"]) / 100, label="weight of the clean loss / 100")
right.set(xlabel="Epoch of fine-tuning")
right.legend()
fig.tight_layout()
plt.show()
