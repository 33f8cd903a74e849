"""
Adversarial augmentation of a random forest
===========================================

A forest has no gradients to train against. What it can do is to learn from adversarial examples
of another model: at fit time only, inside imbalanced-learn's pipeline.
"""

# %%
import numpy as np
from imblearn.pipeline import Pipeline
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from robustsk import PGD, AdversarialAugmentation

X, y = load_breast_cancer(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, stratify=y, random_state=0)
spread = X_train.std(axis=0)

# %%
# The attacker does not know the forest either: it attacks a linear model and hopes that its
# examples transfer. Every feature may move by half a standard deviation.
stand_in = make_pipeline(StandardScaler(), LogisticRegression()).fit(X_train, y_train)
attack = PGD(stand_in, eps=0.5 * spread, n_steps=20, random_state=0).fit(X_train)
X_adv = attack.generate(X_test, y_test)

# %%
# The augmentation. Without a model of its own, the attack in it fits a logistic regression to the
# training fold and attacks that: nothing of a validation fold leaks into it. The labels to move
# away from are that model's predictions; with the true ones the perturbation itself would tell
# the class.
forest = RandomForestClassifier(n_estimators=100, random_state=0)
augmented = Pipeline(
    [
        ("augment", AdversarialAugmentation(PGD(eps=0.5 * spread, random_state=0))),
        ("forest", forest),
    ]
)

# %%
# How strong should it be? The search treats it like any other parameter.
search = GridSearchCV(
    augmented, {"augment__attack__eps": [0.1 * spread, 0.3 * spread, 0.5 * spread]}, cv=3, n_jobs=2
).fit(X_train, y_train)
print("clean accuracy in cross-validation:", np.round(search.cv_results_["mean_test_score"], 3))

# %%
for name, clf in {"plain forest": forest, "augmented forest": augmented}.items():
    clf.fit(X_train, y_train)
    print(
        f"{name:<17} clean {clf.score(X_test, y_test):.3f}  "
        f"under transferred attack {clf.score(X_adv, y_test):.3f}"
    )
print(
    f"{'attacked model':<17} clean {stand_in.score(X_test, y_test):.3f}  "
    f"under its own attack {stand_in.score(X_adv, y_test):.3f}"
)

# %%
# This attack was not made for the forest. An attack that queries it would find more: what is
# measured here is an upper bound of its robustness.
