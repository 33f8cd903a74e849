"""CCE: members that promote and demote each other's adversarial examples."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, nn

from ..attacks.targets import two_logits
from ..defenses.base import BaseDefense
from ..losses import cce_loss, ensemble_logits

#: lambda_pm and lambda_dm of each mode (Bui et al. 2021, Tables 3 and 11).
MODES = {
    "robust": (1.0, 1.0),
    "detection": (0.0, 5.0),
    "base": (0.0, 0.0),
    "promote": (1.0, 0.0),
    "demote": (0.0, 1.0),
}


class MeanEnsemble(nn.Module):
    """Members whose probabilities are averaged.

    Returns the logarithm of the mean probability, computed from logits
    without ever leaving the logarithm.

    Parameters
    ----------
    members : list of torch.nn.Module
        Each returns logits of shape (n, n_classes).
    """

    def __init__(self, members):
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x):
        """Return log-probabilities of shape (n, n_classes)."""
        return ensemble_logits([two_logits(member(x)) for member in self.members])


class EnsembleCCE(BaseDefense):
    """Crossing collaborative ensemble.

    Trains several members so that an example that fools one of them is
    classified correctly by the others (promote) or gets a harmless uniform
    vote from them (demote). Member `n` minimises::

        CE(p_n(x), y) + CE(p_n(x_n), y) + 1/(N-1) * sum_{i != n} [
            lambda_pm * s * CE(p_n(x_i), y) - lambda_dm * (1 - s) * H(p_n(x_i)) ]

    where `x_i` is the adversarial example of member `i` alone, `H` the entropy
    and ``s = p_n(y | x_i)`` says how well member `n` copes with it, without a
    gradient. Predictions are those of the mean probability.

    Parameters
    ----------
    module : str, torch.nn.Module class or instance, or list of those, default=None
        The network of every member, or one per member. None means an MLP for
        tables and a small CNN for images.
    n_members : int, default=2
        Number of members. With a list of networks it must be their number, or
        is ignored if left at its default.
    mode : {"robust", "detection", "base", "promote", "demote"}, default="robust"
        "robust" is CCE-RM, "detection" is CCE-DM, whose entropy
        (`prediction_entropy`) tells adversarial examples from clean ones but
        which is **not** robust to an adaptive attack; "base" trains members
        independently; the last two are ablations.
    lambda_pm : float, default=None
        Weight of promoting. None means that of the mode.
    lambda_dm : float, default=None
        Weight of demoting. None means that of the mode.
    indicator : {"soft", "hard"}, default="soft"
        Whether `s` is the probability of the true class, or whether it is the
        predicted one.
    %(shared_parameters)s

    %(shared_attributes)s

    Notes
    -----
    With one member the crossing terms vanish and the loss is that of
    adversarial training on clean and adversarial examples alike.

    References
    ----------
    Bui, Le, Zhao, Montague, deVel, Abraham and Phung (2021), "Improving
    ensemble robustness by collaboratively promoting and demoting adversarial
    robustness", AAAI, Eq. 5.

    Examples
    --------
    >>> from robustsk import EnsembleCCE
    >>> from robustsk.datasets import load_digits_images
    >>> X, y = load_digits_images(return_X_y=True)
    >>> clf = EnsembleCCE(max_epochs=8, adversary__eps=0.1, random_state=0)
    >>> clf = clf.fit(X[:1000], y[:1000])
    >>> len(clf.members_)
    2
    >>> bool(clf.score_adversarial(X[1000:1200], y[1000:1200]) > 0.4)
    True
    """

    def __init__(
        self,
        module=None,
        *,
        n_members=2,
        mode="robust",
        lambda_pm=None,
        lambda_dm=None,
        indicator="soft",
        **common,
    ):
        super().__init__(module, **common)
        self.n_members = n_members
        self.mode = mode
        self.lambda_pm = lambda_pm
        self.lambda_dm = lambda_dm
        self.indicator = indicator

    @property
    def members_(self):
        """The trained members, a list of torch modules."""
        self.check_is_fitted()
        return list(self.module_.members)

    def build_module(self, **facts):
        """Return the ensemble, every member with initial weights of its own."""
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {sorted(MODES)}, got {self.mode!r}.")
        if self.indicator not in ("soft", "hard"):
            raise ValueError(f"indicator must be 'soft' or 'hard', got {self.indicator!r}.")
        return MeanEnsemble(
            [self._build_member(spec, i, facts) for i, spec in enumerate(self._specs())]
        )

    def _specs(self):
        if isinstance(self.module, (list, tuple)):
            if not self.module:
                raise ValueError("module is an empty list: it must hold one network per member.")
            if self.n_members not in (2, len(self.module)):
                raise ValueError(
                    f"module is a list of {len(self.module)} networks and n_members is "
                    f"{self.n_members}: leave n_members out, or make them agree."
                )
            return list(self.module)
        if not isinstance(self.n_members, (int, np.integer)) or self.n_members < 1:
            raise ValueError(f"n_members must be an integer of at least 1, got {self.n_members!r}.")
        return [self.module] * self.n_members

    def _build_member(self, spec, i, facts):
        member = self.make_network(spec, **facts)
        if isinstance(spec, nn.Module) and i and not isinstance(self.module, (list, tuple)):
            # copies of one instance would stay equal for ever
            for part in member.modules():
                if hasattr(part, "reset_parameters"):
                    part.reset_parameters()
        return member

    def craft(self, x: Tensor, y: Tensor) -> list[Tensor]:
        """Return one adversarial batch per member, each against that member alone."""
        return [self.perturb(member, x, y) for member in self.module_.members]

    def training_loss(self, x: Tensor, x_adv: list[Tensor], y: Tensor) -> Tensor:
        """Return the sum of the members' losses, shape (n,)."""
        pm, dm = MODES[self.mode]
        pm = pm if self.lambda_pm is None else self.lambda_pm
        dm = dm if self.lambda_dm is None else self.lambda_dm
        # one forward pass per source keeps the statistics of batch normalisation apart
        logits = [
            [self.logits(source, member) for source in [x, *x_adv]]
            for member in self.module_.members
        ]
        return cce_loss(
            logits,
            y,
            lambda_pm=pm,
            lambda_dm=dm,
            indicator=self.indicator,
            classification_loss=self.classification_loss,
        )

    def prediction_entropy(self, X: Any) -> np.ndarray:
        """Return the entropy of the ensemble's prediction, a detector's score.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)

        Returns
        -------
        ndarray of shape (n_samples,)
            In nats; high means suspicious, in mode "detection" above all.
        """
        p = self.predict_proba(X)
        return -(p * np.log(np.where(p > 0, p, 1.0))).sum(axis=1)
