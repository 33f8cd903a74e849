"""CCE: members that promote and demote each other's adversarial examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from .._validation import check_choice, check_length
from ..losses import cce_loss
from .base import BaseEnsemble

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..defenses._parameters import Network
    from ._parameters import EnsembleParameters

#: lambda_pm and lambda_dm of each mode (Bui et al. 2021, Tables 3 and 11).
MODES = {
    "robust": (1.0, 1.0),
    "detection": (0.0, 5.0),
    "base": (0.0, 0.0),
    "promote": (1.0, 0.0),
    "demote": (0.0, 1.0),
}


class EnsembleCCE(BaseEnsemble):
    """Crossing collaborative ensemble.

    Trains several members so that an example that fools one of them is
    classified correctly by the others (promote) or gets a harmless uniform
    vote from them (demote). Member `n` minimises::

        CE(p_n(x), y) + own_weight * CE(p_n(x_n), y) + 1/(N-1) * sum_{i != n} [
            lambda_pm * s * CE(p_n(x_i), y) - lambda_dm * (1 - s) * H(p_n(x_i)) ]

    where `x_i` is the adversarial example of member `i` alone, `H` the entropy
    and ``s = p_n(y | x_i)`` says how well member `n` copes with it, without a
    gradient. Predictions are those of the mean probability.

    Parameters
    ----------
    %(first_parameter)s
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
    detach_indicator : bool, default=True
        Whether `s` is a constant for the gradient.
    double_softmax : bool, default=False
        Whether promoting and demoting see the softmax of the probabilities in
        place of the probabilities.
    attack_label : {"true", "predicted"}, default="true"
        What the adversary moves member `i` away from in training: the true class,
        or its own prediction.
    own_weight : float, default=1.0
        Weight of ``CE(p_n(x_n), y)``.
    %(shared_parameters)s

    %(shared_attributes)s

    Notes
    -----
    With one member the crossing terms vanish and the loss is that of
    adversarial training on clean and adversarial examples alike.

    The authors' code differs from the article: it is reproduced by
    ``double_softmax=True, detach_indicator=False, attack_label="predicted"``.

    References
    ----------
    Bui, Le, Zhao, Montague, deVel, Abraham and Phung (2021), "Improving
    ensemble robustness by collaboratively promoting and demoting adversarial
    robustness", AAAI, Eq. 5.

    Examples
    --------
    >>> from robustsk import EnsembleCCE
    >>> from robustsk.datasets import load_digits_images
    >>> X, y = load_digits_images(return_X_y=True, as_flat=True)
    >>> clf = EnsembleCCE(max_epochs=8, adversary__eps=0.1, random_state=0)
    >>> clf = clf.fit(X[:1000], y[:1000])
    >>> len(clf.members_)
    2
    >>> bool(clf.score_adversarial(X[1000:1200], y[1000:1200]) > 0.4)
    True
    """

    def __init__(
        self,
        module: Network | Sequence[Network] | None = None,
        *,
        mode: str = "robust",
        lambda_pm: float | None = None,
        lambda_dm: float | None = None,
        indicator: str = "soft",
        detach_indicator: bool = True,
        double_softmax: bool = False,
        attack_label: str = "true",
        own_weight: float = 1.0,
        **common: Unpack[EnsembleParameters],
    ):
        super().__init__(module, **common)
        self.mode = mode
        self.lambda_pm = lambda_pm
        self.lambda_dm = lambda_dm
        self.indicator = indicator
        self.detach_indicator = detach_indicator
        self.double_softmax = double_softmax
        self.attack_label = attack_label
        self.own_weight = own_weight

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        """Check the parameters; called by skorch."""
        super().on_train_begin(net, X, y, **kwargs)
        check_choice(self.mode, "mode", tuple(MODES))
        check_choice(self.indicator, "indicator", ("soft", "hard"))
        check_choice(self.attack_label, "attack_label", ("true", "predicted"))
        for name in ("lambda_pm", "lambda_dm"):
            if getattr(self, name) is not None:
                check_length(getattr(self, name), name)
        check_length(self.own_weight, "own_weight")

    def craft(self, x: Tensor, y: Tensor) -> list[Tensor]:
        """Return one adversarial batch per member, each against that member alone."""
        label = y if self.attack_label == "true" else None  # None: what the member predicts
        return [self.perturb(member, x, label) for member in self.module_.members]

    def training_loss(self, x: Tensor, x_adv: list[Tensor], y: Tensor) -> Tensor:
        """Return the sum of the members' losses, shape (n,)."""
        pm, dm = MODES[self.mode]
        # one forward pass per source keeps the statistics of batch normalisation apart
        logits = [self.member_logits(source) for source in [x, *x_adv]]
        return cce_loss(
            list(zip(*logits, strict=True)),
            y,
            lambda_pm=pm if self.lambda_pm is None else self.lambda_pm,
            lambda_dm=dm if self.lambda_dm is None else self.lambda_dm,
            indicator=self.indicator,
            detach_indicator=self.detach_indicator,
            double_softmax=self.double_softmax,
            own_weight=self.own_weight,
            classification_loss=self.classification_loss,
        )
