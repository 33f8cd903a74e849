"""Adversarial training as distributionally robust optimisation, with a soft ball."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from .._validation import check_choice
from ..attacks.gradient.udr import UDRAdversary
from ..attacks.objectives import REVERSE_KL
from ..losses import kl_divergence, mart_loss
from ..training.weight_perturbation import AWP
from .mart import MARTClassifier
from .mixed_at import MixedATClassifier
from .trades import TRADESClassifier

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._parameters import DefenseParameters, DefenseParametersButWeightPerturbation, Network

_KL = ("clean_adv", "adv_clean")


class UDRPGDClassifier(MixedATClassifier):
    """UDR-PGD: adversarial training with a soft ball.

    Minimises ``CE(f(x), y) + beta * CE(f(x'), y)``, where `x'` ascends the cross-entropy in the
    soft ball of :class:`robustsk.training.UDRAdversary`. How soft it is is learned from all the
    samples together, as the dual variable of a bound on the Wasserstein distance between the clean
    and the adversarial distribution.

    Parameters
    ----------
    %(first_parameter)s
    beta : float, default=1.0
        Weight of the loss on adversarial samples.
    natural : bool, default=True
        Whether the loss on clean samples counts. Without it, it is UDR-PGD*, the soft form of
        :class:`PGDATClassifier`.
    adversary : attack, default=None
        What makes the adversarial examples in training, and the threat model
        that `score_adversarial` assumes. None means a
        :class:`robustsk.training.UDRAdversary` with 10 steps and ``eps=8/255``. Its
        parameters can be given as ``adversary__tau_ratio=1``. Its randomness
        comes from the `random_state` of this estimator.
    %(shared_parameters)s

    %(shared_attributes)s

    See Also
    --------
    MixedATClassifier : The same with a hard ball.
    UDRTRADESClassifier, UDRMARTClassifier, UDRAWPClassifier : Other methods with a soft ball.
    robustsk.metrics.adversary_profile : How far the adversary really goes.

    Notes
    -----
    The dual variable and the size of the perturbations are in the history as "lam", "kappa",
    "delta_mean" and "delta_max". It trains with perturbations larger than `eps`: compare with
    :class:`MixedATClassifier` at the radius "delta_max". `score_adversarial` keeps to `eps`.

    It begins as the hard ball and changes slowly, so that in a training of a few hundred batches it
    is :class:`MixedATClassifier` ("kappa" stays near 1). There ``adversary__lambda_init=1.0``, half
    of the price, makes the ball soft from the beginning.

    References
    ----------
    Bui, Le, Tran, Zhao and Phung (2022), "A unified Wasserstein distributional robustness framework
    for adversarial training", Eqs. 5 and 12 and Algorithm 1.

    Examples
    --------
    >>> from robustsk import UDRPGDClassifier
    >>> from robustsk.datasets import load_digits_images
    >>> X, y = load_digits_images(return_X_y=True)
    >>> clf = UDRPGDClassifier(max_epochs=8, adversary__eps=0.1, random_state=0)
    >>> clf = clf.fit(X[:1000], y[:1000])
    >>> bool(clf.score_adversarial(X[1000:1200], y[1000:1200]) > 0.4)
    True
    """

    def __init__(
        self,
        module: Network | None = None,
        *,
        beta: float = 1.0,
        natural: bool = True,
        **common: Unpack[DefenseParameters],
    ):
        super().__init__(module, beta=beta, **common)
        self.natural = natural

    def default_adversary(self):
        """Return an adversary with a soft ball."""
        return UDRAdversary()

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        """Check the parameters; called by skorch."""
        super().on_train_begin(net, X, y, **kwargs)
        if self.beta == 0 and not self.natural:
            raise ValueError("beta=0 with natural=False leaves no loss: give beta > 0.")

    def training_loss(self, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        """Return ``CE(f(x), y) + beta * CE(f(x'), y)``, shape (n,)."""
        # Eq. 5
        if self.natural:
            return super().training_loss(x, x_adv, y)
        return self.beta * self.classification_loss(self.logits(x_adv), y)


class UDRTRADESClassifier(TRADESClassifier):
    """UDR-TRADES: TRADES with a soft ball.

    Minimises ``CE(f(x), y) + beta * KL(p(x) || p(x'))``, where `x'` ascends the divergence in the
    soft ball of :class:`robustsk.training.UDRAdversary`. It is
    ``TRADESClassifier(adversary=UDRAdversary())``, with a choice of the divergence.

    Parameters
    ----------
    %(first_parameter)s
    beta : float, default=6.0
        Weight of the divergence; 0 is natural training.
    form : {"multiclass", "binary"}, default="multiclass"
        As in :class:`TRADESClassifier`; "binary" has no divergence, and no direction of it.
    kl_direction : {"clean_adv", "adv_clean"}, default="clean_adv"
        ``KL(p(x) || p(x'))`` as in TRADES, or ``KL(p(x') || p(x))`` as the source writes, for
        adversary and loss.
    adversary : attack, default=None
        What makes the adversarial examples in training, and the threat model
        that `score_adversarial` assumes. None means a
        :class:`robustsk.training.UDRAdversary` with 10 steps and ``eps=8/255``, which
        starts next to the sample as in TRADES, also where one is given, so that
        with a hard ball it is :class:`TRADESClassifier`; the source starts
        uniformly in the ball, ``adversary__random_start="uniform"``. Its
        randomness comes from the
        `random_state` of this estimator.
    %(shared_parameters)s

    %(shared_attributes)s

    See Also
    --------
    TRADESClassifier : The same with a hard ball.
    UDRPGDClassifier : Says more about the soft ball.

    References
    ----------
    Bui, Le, Tran, Zhao and Phung (2022), "A unified Wasserstein distributional robustness framework
    for adversarial training", Eqs. 6 and 12 and Algorithm 1.

    Examples
    --------
    >>> from robustsk import UDRTRADESClassifier
    >>> from robustsk.datasets import load_digits_images
    >>> X, y = load_digits_images(return_X_y=True)
    >>> clf = UDRTRADESClassifier(beta=3, max_epochs=8, adversary__eps=0.1, random_state=0)
    >>> clf = clf.fit(X[:1000], y[:1000])
    >>> bool(clf.score_adversarial(X[1000:1200], y[1000:1200]) > 0.4)
    True
    """

    def __init__(
        self,
        module: Network | None = None,
        *,
        beta: float = 6.0,
        form: str = "multiclass",
        kl_direction: str = "clean_adv",
        **common: Unpack[DefenseParameters],
    ):
        super().__init__(module, beta=beta, form=form, **common)
        self.kl_direction = kl_direction

    def default_adversary(self):
        """Return an adversary with a soft ball and the start of TRADES."""
        return UDRAdversary(random_start="gaussian")

    def attack_objective(self):
        """Return the divergence, or what TRADES has for two classes."""
        objective = super().attack_objective()
        if self.form == "binary" or self.kl_direction == "clean_adv":
            return objective
        return REVERSE_KL

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        """Check the parameters; called by skorch."""
        super().on_train_begin(net, X, y, **kwargs)
        check_choice(self.kl_direction, "kl_direction", _KL)

    def training_loss(self, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        """Return ``CE(f(x), y)`` plus `beta` times the divergence, shape (n,)."""
        if self.kl_direction == "clean_adv" or self.form == "binary" or self.beta == 0:
            return super().training_loss(x, x_adv, y)
        logits = self.logits(x)
        loss = self.classification_loss(logits, y)
        # Eq. 6 as it is printed
        return loss + self.beta * kl_divergence(self.logits(x_adv), logits)


class UDRMARTClassifier(MARTClassifier):
    """UDR-MART: MART with a soft ball.

    Minimises ``BCE(f(x), y) + beta * KL(p(x') || p(x)) * (1 - p_y(x))`` with the boosted
    cross-entropy ``BCE = -log p_y - log(1 - max_{k != y} p_k)``, where `x'` ascends the divergence
    in the soft ball of :class:`robustsk.training.UDRAdversary`.

    Parameters
    ----------
    %(first_parameter)s
    beta : float, default=5.0
        Weight of the divergence; 0 leaves the boosted cross-entropy.
    form : {"thesis", "original"}, default="thesis"
        The loss above, on purpose other than MART's; or "original", that of
        :class:`MARTClassifier`: the boosted cross-entropy of `x'`, which ascends the cross-entropy.
    kl_direction : {"clean_adv", "adv_clean"}, default=None
        ``KL(p(x) || p(x'))`` as in MART, or ``KL(p(x') || p(x))`` as the source writes, for loss
        and adversary. None means that of the source for its form, and that of MART for "original".
    adversary : attack, default=None
        What makes the adversarial examples in training, and the threat model
        that `score_adversarial` assumes. None means a
        :class:`robustsk.training.UDRAdversary` with 10 steps and ``eps=8/255``, which
        starts next to the sample as in MART, also where one is given, so that in
        the original form with a hard ball it is :class:`MARTClassifier`; the
        source starts uniformly in the ball,
        ``adversary__random_start="uniform"``. Its randomness comes from the
        `random_state` of this estimator.
    %(shared_parameters)s

    %(shared_attributes)s

    See Also
    --------
    MARTClassifier : With a hard ball.
    UDRPGDClassifier : Says more about the soft ball.

    References
    ----------
    Bui, Le, Tran, Zhao and Phung (2022), "A unified Wasserstein distributional robustness framework
    for adversarial training", Eqs. 7 and 12 and Algorithm 1, also Chapter 5 of the PhD thesis of
    Bui (2023), Monash University.

    Examples
    --------
    >>> from robustsk import UDRMARTClassifier
    >>> from robustsk.datasets import load_digits_images
    >>> X, y = load_digits_images(return_X_y=True)
    >>> clf = UDRMARTClassifier(max_epochs=8, adversary__eps=0.1, random_state=0)
    >>> clf = clf.fit(X[:1000], y[:1000])
    >>> bool(clf.score_adversarial(X[1000:1200], y[1000:1200]) > 0.4)
    True
    """

    def __init__(
        self,
        module: Network | None = None,
        *,
        beta: float = 5.0,
        form: str = "thesis",
        kl_direction: str | None = None,
        **common: Unpack[DefenseParameters],
    ):
        super().__init__(module, beta=beta, **common)
        self.form = form
        self.kl_direction = kl_direction

    def default_adversary(self):
        """Return an adversary with a soft ball and the start of MART."""
        return UDRAdversary(random_start="gaussian")

    def attack_objective(self):
        """Return the divergence, or "ce" for the original form."""
        if self.form == "original":
            return "ce"
        return "kl" if self._kl_direction == "clean_adv" else REVERSE_KL

    @property
    def _kl_direction(self):
        if self.kl_direction is None:
            return "adv_clean" if self.form == "thesis" else "clean_adv"
        return self.kl_direction

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        """Check the parameters; called by skorch."""
        super().on_train_begin(net, X, y, **kwargs)
        check_choice(self.form, "form", ("thesis", "original"))
        check_choice(self._kl_direction, "kl_direction", _KL)

    def training_loss(self, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        """Return the boosted cross-entropy plus `beta` times the weighted divergence, (n,)."""
        if self.form == "original" and self._kl_direction == "clean_adv":
            return super().training_loss(x, x_adv, y)
        # Eq. 7
        return mart_loss(
            self.logits(x),
            self.logits(x_adv),
            y,
            self.beta,
            boosted_on="clean" if self.form == "thesis" else "adversarial",
            kl_direction=self._kl_direction,
            classification_loss=self.classification_loss,
        )


class UDRAWPClassifier(UDRPGDClassifier):
    """UDR-AWP-AT: adversarial training with a soft ball, against the worst weights nearby.

    Minimises ``beta * CE(f(x'), y)`` at weights that are perturbed to make it large, where `x'`
    ascends the cross-entropy in the soft ball of :class:`robustsk.training.UDRAdversary`. It is
    :class:`UDRPGDClassifier` with ``natural=False, weight_perturbation=AWP(warmup=3)``.

    Parameters
    ----------
    %(first_parameter)s
    beta : float, default=1.0
        Weight of the loss on adversarial samples.
    natural : bool, default=False
        Whether the loss on clean samples counts too.
    weight_perturbation : "awp", AWP or None, default="awp"
        "awp" is :class:`robustsk.training.AWP` with ``gamma=0.01`` and ``warmup=3``; None is
        UDR-PGD*. Options are given as ``weight_perturbation__gamma=0.005``.
    adversary : attack, default=None
        What makes the adversarial examples in training, and the threat model
        that `score_adversarial` assumes. None means a
        :class:`robustsk.training.UDRAdversary` with 10 steps and ``eps=8/255``. Its
        parameters can be given as ``adversary__tau_ratio=1``. Its randomness
        comes from the `random_state` of this estimator.
    %(shared_parameters)s

    %(shared_attributes)s

    See Also
    --------
    UDRPGDClassifier : Says more about the soft ball.
    robustsk.training.AWP : Says more about the perturbation of weights.

    Notes
    -----
    The source perturbs the weights from the first epoch on. Small networks often do not get off the
    ground that way, hence the warm-up; ``weight_perturbation__warmup=0`` goes without.

    References
    ----------
    Bui, Le, Tran, Zhao and Phung (2022), "A unified Wasserstein distributional robustness framework
    for adversarial training", Table 4; Wu, Xia and Wang (2020), "Adversarial weight perturbation
    helps robust generalization".

    Examples
    --------
    >>> from robustsk import UDRAWPClassifier
    >>> from robustsk.datasets import load_digits_images
    >>> X, y = load_digits_images(return_X_y=True)
    >>> clf = UDRAWPClassifier(max_epochs=8, adversary__eps=0.1, random_state=0)
    >>> clf = clf.fit(X[:1000], y[:1000])
    >>> bool(clf.score_adversarial(X[1000:1200], y[1000:1200]) > 0.4)
    True
    """

    def __init__(
        self,
        module: Network | None = None,
        *,
        beta: float = 1.0,
        natural: bool = False,
        weight_perturbation: AWP | str | None = "awp",
        **common: Unpack[DefenseParametersButWeightPerturbation],
    ):
        super().__init__(module, beta=beta, natural=natural, **common)
        self.weight_perturbation = weight_perturbation

    def _nested(self, name):
        if name == "weight_perturbation" and isinstance(self.weight_perturbation, str):
            check_choice(self.weight_perturbation, name, ("awp",))
            return AWP(warmup=3).set_params(**self.get_params_for(name))
        return super()._nested(name)
