"""
Search over defences and attack strength
========================================

Robustness costs clean accuracy. Which defence, how strongly weighted, trained against which
perturbation? A grid search over all of it with two scores, which takes the most robust setting
that loses at most three points of clean accuracy.
"""

# %%
# A table of 30 measurements, standardised inside a pipeline: the adversary of the training works
# behind the scaler, in standard deviations.
import pandas as pd
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from robustsk import (
    PGD,
    MostRobust,
    SPATClassifier,
    TRADESClassifier,
    make_adversarial_scorer,
    score_adversarial,
)

X, y = load_breast_cancer(return_X_y=True, as_frame=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, stratify=y, random_state=0)

# %%
# The attack that scores sees the whole pipeline and works in the units of the data: each
# feature may move by a quarter of its standard deviation.
attack = PGD(eps=0.25 * X_train.std().to_numpy(), n_steps=20, random_state=0)

# %%
# The search. ``clf__adversary__eps`` reaches the attack inside the defence inside the pipeline.
pipeline = Pipeline([("scale", StandardScaler()), ("clf", TRADESClassifier())])
grid = [
    {
        "clf": [TRADESClassifier(max_epochs=10, random_state=0)],
        "clf__beta": [1, 6],
        "clf__adversary__eps": [0.1, 0.25],
    },
    {
        "clf": [SPATClassifier(max_epochs=10, random_state=0)],
        "clf__lam": [1, 6],
        "clf__adversary__eps": [0.1, 0.25],
    },
]
search = GridSearchCV(
    pipeline,
    grid,
    scoring={"clean": "accuracy", "robust": make_adversarial_scorer(attack)},
    refit=MostRobust(max_loss=0.03),
    cv=3,
    n_jobs=2,
).fit(X_train, y_train)

# %%
results = pd.DataFrame(search.cv_results_)
results["clf"] = [type(c).__name__ for c in results["param_clf"]]
results["weight"] = results["param_clf__beta"].fillna(results["param_clf__lam"])
print(
    results[["clf", "weight", "param_clf__adversary__eps", "mean_test_clean", "mean_test_robust"]]
    .sort_values("mean_test_robust", ascending=False)
    .to_string(index=False, float_format="%.3f")
)

# %%
# The chosen setting on data that the search has not seen.
print("chosen:", {k: v for k, v in search.best_params_.items() if k != "clf"})
print(f"clean {search.best_estimator_.score(X_test, y_test):.3f}")
print(f"robust {score_adversarial(search, X_test, y_test, attack):.3f}")
