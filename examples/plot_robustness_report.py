"""
A report, and the red flags of a model that only looks robust
==============================================================

One function attacks a model in all the usual ways. Whether the numbers can be trusted is another
question: here the same natural network is attacked as it is and behind a layer that rounds its
input, next to a network that was trained to be robust.
"""

# %%
# Three models: an adversarially trained one, a natural one, and the natural one with its input
# rounded to five grey levels, which hardly changes its predictions.
import matplotlib.pyplot as plt
from sklearn.model_selection import train_test_split
from torch import nn

from robustsk import PGDATClassifier, StandardClassifier, load_digits_images
from robustsk.evaluation import red_flags, robustness_report

X, y = load_digits_images(return_X_y=True, as_flat=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=150, stratify=y, random_state=0)
eps = 0.15
common = {"adversary__eps": eps, "max_epochs": 20, "random_state": 0}
robust = PGDATClassifier(**common).fit(X_train, y_train)
natural = StandardClassifier(**common).fit(X_train, y_train)


class Rounded(nn.Module):
    """A network behind a layer that rounds its input to five grey levels."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        """Return logits of shape (n, n_classes)."""
        return self.network((4 * x).round() / 4)


# %%
# The report on the robust one. No flag fires: what withstands the attacks here does so because of
# the training. A notebook shows the report as HTML.
report = robustness_report(robust, X_test, y_test, eps=eps)
print(report)

# %%
# To PGD the rounded network looks far better than the robust one. Rounding has no slope, so there
# is no gradient to follow; what needs no gradient breaks it, and the flags say so.
rounded = Rounded(natural.module_)
masked = robustness_report(rounded, X_test, y_test, eps=eps, autoattack=None)
print(masked.to_frame()[["accuracy", "low", "high"]].round(3))
for flag in masked.fired:
    print(f"\n{flag}")

# %%
# The checks alone, on the natural network: it is not robust, and does not pretend to be.
print([flag.name for flag in red_flags(natural, X_test, y_test, eps=eps) if flag.fired])

# %%
# The rows side by side, with 95 % intervals. The attacks agree about the one model and disagree
# about the other.
fig, ax = plt.subplots(figsize=(8, 3.5), layout="constrained")
names = list(masked.rows)
for shift, (label, one) in enumerate({"PGD-AT": report, "natural, rounded": masked}.items()):
    rows = [one[name] for name in names]
    low = [row.accuracy - row.low for row in rows]
    high = [row.high - row.accuracy for row in rows]
    where = [i + 0.4 * shift - 0.2 for i in range(len(rows))]
    ax.bar(where, [row.accuracy for row in rows], 0.38, yerr=[low, high], label=label, capsize=2)
ax.set(xticks=range(len(names)), xticklabels=names, ylim=(0, 1), ylabel="accuracy")
ax.tick_params(axis="x", rotation=30)
ax.legend()
plt.show()
