"""What users mistype; a type checker finds every line marked as wrong and no other."""

import torch

from robustsk import (
    DRA,
    EOT,
    PGD,
    PGDD,  # wrong: the name
    BaseDefense,
    CarliniWagner,
    EnsembleCCE,
    SPATClassifier,
    TRADESClassifier,
    fetch_mnist,
    load_digits_images,
    robustness_report,
)

X, y = load_digits_images(return_X_y=True)

PGDD()
PGD(epsilon=0.1)  # wrong: eps
PGD(eps=0.1, steps=3)  # wrong: n_steps
PGD(n_steps="many")  # wrong: a string
print(PGD(eps=0.1).fit(X, y).n_step)  # wrong: n_steps
PGD(eps=0.1).generate(X, y, return_infos=True)  # wrong: return_info
CarliniWagner(nrom=2)  # wrong: norm
DRA(attack=PGD())  # wrong: of wrappers only
EOT(n_steps=3)  # wrong: of the attack inside
TRADESClassifier(betaa=3)  # wrong: beta
TRADESClassifier(eps=0.3)  # wrong: adversary__eps
TRADESClassifier(advresary__eps=0.3)  # wrong: adversary__eps
TRADESClassifier(adversary__epsilon=0.3)  # wrong: adversary__eps
TRADESClassifier(projection__bias=True)  # wrong: of others
TRADESClassifier().fit(X, y).score_adversarail(X, y)  # wrong: score_adversarial
SPATClassifier(head=3)  # wrong: a number
EnsembleCCE(n_member=3)  # wrong: n_members
print(fetch_mnist(return_X_y=True).data)  # wrong: a tuple
fetch_mnist(subsets="test")  # wrong: subset
robustness_report(TRADESClassifier(), X, y, output_dict=True).to_frame()  # wrong: a dict
torch.relu(PGD().perturb(None, torch.ones(1, 4), return_info=True))  # wrong: a tuple


class Own(BaseDefense):
    """A defence without hyperparameters has those of all defences."""


Own(max_epochs=3, adversary__eps=0.1)
