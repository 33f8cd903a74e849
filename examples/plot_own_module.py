"""
Use your own torch module
=========================

Any module that returns logits will do. Here it is a small recurrent network that reads an image
row by row, trained with TRADES, watched while it trains, saved and loaded.
"""

# %%
import pickle

import matplotlib.pyplot as plt
import torch
from sklearn.model_selection import train_test_split
from skorch.callbacks import GradientNormClipping, LRScheduler
from skorch.dataset import ValidSplit
from torch import nn

from robustsk import MIM, PGD, TRADESClassifier, load_digits_images
from robustsk.training import AdversarialScoring


class RowReader(nn.Module):
    """A GRU over the rows of an image."""

    def __init__(self, n_classes, row_length=8, width=48):
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(0.3), requires_grad=False)
        self.gru = nn.GRU(row_length, width, batch_first=True)
        self.head = nn.Linear(width, n_classes)

    def forward(self, x):
        """Return logits of shape (n, n_classes)."""
        # normalisation is a layer of the network: eps stays in the units of the data
        rows = x.squeeze(1) - self.mean
        return self.head(self.gru(rows)[0][:, -1])


X, y = load_digits_images(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, stratify=y, random_state=0)

# %%
# The class is passed, not an instance. Its constructor asks for ``n_classes`` and is told;
# ``module__width`` sets a parameter of it. Callbacks and learning-rate schedules are skorch's.
clf = TRADESClassifier(
    RowReader,
    module__width=64,
    beta=3.0,
    adversary=PGD(eps=0.1, n_steps=5, clip=(0, 1)),
    lr=0.01,
    max_epochs=25,
    train_split=ValidSplit(0.15, stratified=True, random_state=0),
    callbacks=[
        AdversarialScoring(PGD(eps=0.1, n_steps=10, clip=(0, 1), random_state=0)),
        LRScheduler(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=25),
        GradientNormClipping(5.0),
    ],
    random_state=0,
).fit(X_train, y_train)

# %%
print(f"clean  {clf.score(X_test, y_test):.3f}")
print(f"PGD-20 {clf.score_adversarial(X_test, y_test):.3f}")
print(f"MIM-20 {clf.score_adversarial(X_test, y_test, MIM(eps=0.1, n_steps=20)):.3f}")

# %%
# What was recorded on the held-out part of the training data.
fig, ax = plt.subplots(layout="constrained")
ax.plot(clf.history[:, "valid_acc"], label="clean")
ax.plot(clf.history[:, "valid_robust_acc"], label="under PGD-10")
ax.set(xlabel="epoch", ylabel="accuracy on validation data")
ax.legend()

# %%
# A fitted estimator can be pickled, and goes on training where it was.
again = pickle.loads(pickle.dumps(clf))
assert (again.predict(X_test) == clf.predict(X_test)).all()
again.set_params(max_epochs=1, train_split=None, callbacks=None).partial_fit(X_train, y_train)
print(f"after one more epoch {again.score(X_test, y_test):.3f}")
plt.show()
