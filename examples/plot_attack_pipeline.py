"""
Attack a pipeline in the units of the data
==========================================

A scaler, a projection and a linear classifier: nothing here has heard of torch, and yet its
gradients are needed. The steps are rebuilt in torch, so that an attack works end to end, in the
space where the data live.
"""

# %%
import numpy as np
from sklearn.datasets import load_wine
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from robustsk import FGSM, PGD, RobustnessCurveDisplay, score_adversarial

X, y = load_wine(return_X_y=True, as_frame=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, stratify=y, random_state=0)
clf = make_pipeline(StandardScaler(), PCA(5), LogisticRegression()).fit(X_train, y_train)
print(f"clean accuracy {clf.score(X_test, y_test):.3f}")

# %%
# Alcohol is given in percent and proline in milligrams per litre: one eps for all features makes
# no sense. An array holds one per feature, here a tenth of each one's range.
eps = 0.1 * (X_train.max() - X_train.min()).to_numpy()
attack = PGD(clf, eps=eps, n_steps=20, random_state=0).fit(X_train)
X_adv = attack.generate(X_test, y_test)
print(f"accuracy under attack {clf.score(X_adv, y_test):.3f}")

# %%
# What has been changed, in the wine's own units. `fit` has learned the range of every feature,
# so that no wine gets a negative amount of anything.
change = (X_adv - X_test).abs().max().round(2)
print(change.to_string())

# %%
# A forger can add sugar but cannot change the colour: a mask freezes what is out of reach.
mask = np.array([name not in ("color_intensity", "hue") for name in X.columns])
frozen = PGD(eps=eps, mask=mask, n_steps=20, random_state=0)
print(f"with the colour out of reach {score_adversarial(clf, X_test, y_test, frozen):.3f}")

# %%
# Accuracy against the fraction of the range, one curve per attack.
scaled = make_pipeline(LogisticRegression(max_iter=5000))
spread = (X_train.max() - X_train.min()).to_numpy()
scaled.fit(X_train / spread, y_train)
display = RobustnessCurveDisplay.from_estimator(
    scaled, X_test / spread, y_test, eps_range=np.linspace(0, 0.2, 9),
    attack=FGSM(), name="FGSM",
)  # fmt: skip
RobustnessCurveDisplay.from_estimator(
    scaled, X_test / spread, y_test, eps_range=np.linspace(0, 0.2, 9),
    attack=PGD(n_steps=20, random_state=0), name="PGD-20", ax=display.ax_,
)  # fmt: skip
