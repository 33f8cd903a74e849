"""
Attack what has no gradients
============================

A random forest, a kernel machine and gradient boosting inside a pipeline. None of them can be
differentiated, and yet none of them is robust: an attacker who may ask questions needs no gradient.
Asking for probabilities and asking for labels alone are compared, question by question.
"""

# %%
# Handwritten digits as flat rows of 64 pixels in [0, 1].
from time import perf_counter

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from robustsk.attacks import HopSkipJump, SquareAttack

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X / 16, y, stratify=y, random_state=0)
classifiers = {
    "random forest": RandomForestClassifier(50, random_state=0),
    "SVC": SVC(),
    "scaler + boosting": make_pipeline(
        StandardScaler(), HistGradientBoostingClassifier(max_iter=15, random_state=0)
    ),
}
for clf in classifiers.values():
    clf.fit(X_train, y_train)
X_test, y_test = X_test[:30], y_test[:30]

# %%
# The attacks. :class:`.SquareAttack` reads scores and looks for an error within `eps`;
# :class:`.HopSkipJump` sees labels only and looks for the closest error of all. Both keep to the
# range of the pixels and to the number of questions they are given. Forests give one class to
# nearly all noise, so HopSkipJump is told where images of other classes are: `starts`.
eps = 0.15
attacks = {
    "Square (scores)": SquareAttack(eps=eps, clip=(0, 1), max_queries=300, random_state=0),
    "HopSkipJump (labels)": HopSkipJump(
        clip=(0, 1), max_queries=500, starts=X_train, random_state=0
    ),
}

# %%
# Every pixel may move by at most 0.15, which HopSkipJump does not know: it reports how far it had
# to go for each image, and that gives the accuracy at every radius.
print(f"{'model':<18} {'attack':<21} {'clean':>5} {'robust':>6} {'median':>7} {'asked':>6}")
distances, found = {}, {}
for name, clf in classifiers.items():
    clean = clf.score(X_test, y_test)
    for title, attack in attacks.items():
        start = perf_counter()
        attack = attack.set_params(estimator=clf)
        X_adv, info = attack.generate(X_test, y_test, return_info=True)
        seconds = perf_counter() - start
        if "distance" in info:
            distances[name], found[name] = info["distance"], X_adv
            robust = (info["distance"] > eps).mean()
            median = f"{np.median(info['distance']):.3f}"
        else:
            robust, median = clf.score(X_adv, y_test), ""
        print(
            f"{name:<18} {title:<21} {clean:>5.2f} {robust:>6.2f} {median:>7} "
            f"{info['n_queries'].mean():>6.0f} in {seconds:.1f} s"
        )

# %%
# Where does each model give way? To the right, what was asked about last: an image that is taken
# for another digit, under each of the three.
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for name, distance in distances.items():
    radii = np.linspace(0, 0.4, 100)
    left.plot(radii, (distance[:, None] > radii).mean(axis=0), label=name)
left.axvline(eps, color="0.7", linestyle=":")
left.set(xlabel="radius, inf norm", ylabel="accuracy under HopSkipJump", ylim=(0, 1))
left.legend()

n_shown = 6
rows = [X_test[:n_shown], *(X_adv[:n_shown] for X_adv in found.values())]
framed = [np.pad(row.reshape(-1, 8, 8), [(0, 0), (1, 1), (1, 1)]) for row in rows]
right.imshow(np.vstack([np.hstack(row) for row in framed]), cmap="gray_r", vmin=0, vmax=1)
right.set_xticks([])
right.set_yticks([4.5, 14.5, 24.5, 34.5], ["clean", *found])
right.set_title("The closest error that HopSkipJump found")
plt.show()
