"""
One example against all members
===============================

An attack on an ensemble is content when the mean prediction is wrong. TA-MOO asks for more: that
every member errs on the same example. This page joins three classifiers, attacks them together, and
looks at what happens on the way; at the end an ensemble is asked to detect attacks.
"""

# %%
# An ensemble of unequal members
# ------------------------------
# Three networks are trained on digits, two of them adversarially, and joined without training.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.metrics import RocCurveDisplay

from robustsk import (
    PGD,
    TAMOO,
    EnsembleAT,
    EnsembleCCE,
    EntropyDetector,
    MixedATClassifier,
    StandardClassifier,
    load_digits_images,
)
from robustsk.inspection import (
    GradientCosineDisplay,
    MinNormDisplay,
    SecureRegionsDisplay,
    TaskTraceDisplay,
)
from robustsk.metrics import joint_success_rates, secure_regions

X, y = load_digits_images(return_X_y=True, as_flat=True)
X_train, y_train, X_test, y_test = X[:1200], y[:1200], X[1200:1400], y[1200:1400]
common = {"max_epochs": 15, "adversary__eps": 0.1, "device": "cpu"}
names = ["natural", "robust", "narrow"]
members = [
    StandardClassifier(random_state=0, **common).fit(X_train, y_train),
    MixedATClassifier(random_state=1, **common).fit(X_train, y_train),
    MixedATClassifier(module__hidden_sizes=(16,), random_state=2, **common).fit(X_train, y_train),
]
ensemble = EnsembleAT.from_estimators(members, adversary__eps=0.1, device="cpu")
print(f"clean accuracy {ensemble.score(X_test, y_test):.2f}")

# %%
# How many members does one example fool?
# ---------------------------------------
# All: the share of samples on which every member errs.

settings = {"eps": 0.12, "n_steps": 40, "random_state": 0}
attacks = {"PGD": PGD(step_size=0.03, **settings)}
for name in ("uniform", "minmax", "moo", "tamoo"):
    attacks[name] = TAMOO(weighting=name, **settings)
for name, attack in attacks.items():
    rates = joint_success_rates(
        dict(zip(names, members, strict=True)), X_test, y_test, attack, source=ensemble
    )
    print(f"{name:<8} {rates}")

# %%
# Step by step
# ------------
# The gradients of the members differ in length. Multiple gradient descent (MOO) puts its weight on
# the shortest, task-oriented weights on what is not achieved yet.

for weighting in ("moo", "tamoo"):
    attack = TAMOO(ensemble, weighting=weighting, trace=True, **settings)
    _, info = attack.generate(X_test, y_test, return_info=True)
    TaskTraceDisplay.from_info(info, names=names)
    plt.gcf().suptitle(weighting)
plt.show()

# %%
# The picture behind it: the direction of MOO is the shortest vector of the hull of the gradients.
# Where the tasks of two of them are achieved, TA-MOO turns to the other two.

gradients = np.array([[0.4, 0.2], [0.3, -0.2], [1.0, 1.2], [1.4, -0.3]])
MinNormDisplay.from_gradients(gradients, achieved=[True, True, False, False], lam=1.0)
plt.show()

# %%
# How members fail together
# -------------------------

regions = secure_regions(members, X_test, y_test, attacks["PGD"], ensemble=ensemble)
SecureRegionsDisplay.from_regions(regions, names=names)
GradientCosineDisplay.from_estimators(dict(zip(names, members, strict=True)), X_test, y_test)
plt.show()

# %%
# Detection
# ---------
# An ensemble that is trained to be unsure about adversarial examples recognises those of an attack
# that does not know of the detector. One that does evades it: this is no defence.

dm = EnsembleCCE(mode="detection", random_state=0, **common).fit(X_train, y_train)
detector = EntropyDetector(dm).fit(X_train)
fig, ax = plt.subplots()
for eps in (0.02, 0.05, 0.1):
    X_adv = PGD(dm, eps=eps, n_steps=20, random_state=0).generate(X_test, y_test)
    scores = -detector.score_samples(np.concatenate([X_test, X_adv]))
    labels = np.repeat([0, 1], len(X_test))
    RocCurveDisplay.from_predictions(labels, scores, name=f"eps {eps:g}", ax=ax)
robust = dm.score_adversarial(X_test, y_test, PGD(eps=0.1, n_steps=20, random_state=0))
print(f"accuracy {dm.score(X_test, y_test):.2f}, under attack {robust:.2f}")
plt.show()
