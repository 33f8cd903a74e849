"""
Which class an attack goes to
=============================

The gradient of the cross-entropy is a sum over the false classes. Each pushes a sample with its
share of the probability, so that an attack without a target ends up in the class that was closest
before. `HardClassPairAnalysis` measures it.
"""

# %%
# A natural and a robust network
# ------------------------------

import matplotlib.pyplot as plt
from sklearn.model_selection import train_test_split

from robustsk import (
    PGD,
    HardClassPairAnalysis,
    SPATClassifier,
    StandardClassifier,
    class_pair_gradients,
    load_digits_images,
)

X, y = load_digits_images(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, stratify=y, random_state=0)
attack = PGD(eps=0.1, n_steps=20, clip=(0, 1), random_state=0)
models = {
    "natural": StandardClassifier(random_state=0),
    "SPAT": SPATClassifier(adversary__eps=0.1, adversary__clip=(0, 1), random_state=0),
}

# %%
# Attacks end where the cosine was largest
# ----------------------------------------
# far more often than one time in nine.

fig, axes = plt.subplots(2, 2, figsize=(8, 7))
for row, (name, clf) in zip(axes, models.items(), strict=True):
    clf.fit(X_train, y_train)
    analysis = HardClassPairAnalysis.from_estimator(clf, X_test, y_test, attack)
    print(
        f"{name:<8} {analysis.n_fooled:>3} fooled; in the hardest class by cosine "
        f"{analysis.agreement['cosine']:.2f}, by logit {analysis.agreement['logit']:.2f}, "
        f"by chance {analysis.agreement['chance']:.2f}; cosines moved by "
        f"{analysis.cosine_change:.2f}; prototypes differ in length by {analysis.prototype_cv:.1%}"
    )
    for ax, what in zip(row, ("confusion", "cosines"), strict=True):
        analysis.plot(what, ax=ax, include_values=False)
        ax.set_title(name)
fig.tight_layout()
plt.show()

# %%
# One sample in detail
# --------------------
# The parts of the gradient sum up to it. Here, the norm of each part at one digit.

parts = class_pair_gradients(models["natural"], X_test[:1], y_test[:1])[0]
plt.figure(figsize=(5, 2.5))
plt.bar(range(10), (parts**2).sum(axis=(1, 2, 3)) ** 0.5)
plt.xticks(range(10))
plt.xlabel(f"False class (the digit is a {y_test[0]})")
plt.ylabel("Norm of its part")
plt.tight_layout()
plt.show()
