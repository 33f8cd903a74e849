"""Geometry-aware instance-reweighted adversarial training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from .._validation import check_choice, check_length
from ..attacks import FriendlyPGD, GeometryAwarePGD, Objective
from ..attacks.objectives import resolve_objective
from ..losses import geometry_weights, kl_divergence
from ..training._schedule import at_epoch, check_begin, scaled
from ._prescribed import Prescription
from ._self_training import SelfTraining
from .base import BaseDefense
from .fat import follow_tau

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._parameters import DefenseParameters, Network

#: The authors' lambda.
_LAM = {"at": -1.0, "fat": 0.0, "trades": -1.0, "rst": 3.0}
#: The authors' `tau` by epoch, and the number of epochs it is for.
_TAU = [(0, 0), (40, 3), (70, 6)], 120


class GAIRATClassifier(SelfTraining, Prescription, BaseDefense):
    """GAIRAT: adversarial training that weighs samples by how soon they fall.

    The adversary counts how many of its iterates are still classified
    correctly, ``kappa`` of `n_steps` ``= K``. Samples with a small `kappa` are
    close to the decision boundary and get a large weight::

        w ~ (1 + tanh(lam + 5 * (1 - 2 * kappa / K))) / 2

    Weights have no gradient and mean 1 in each batch. What is minimised is, for
    each `variant`, the mean of

    ========  =================================================================
    at        ``w * CE(f(x'), y)``
    fat       the same on friendly examples (see :class:`FATClassifier`)
    trades    ``w * CE(f(x), y) + beta * KL(p(x) || p(x'))``, with the `x'` of
              TRADES; or with `w` on the divergence, see `weighted`
    rst       ``CE(f(x), y) + beta * (w * KL(p(x) || p(x')) + (1 - w) * KL(p(x)
              || p(x'')))``, where `x''` ascends the margin of Carlini and
              Wagner and `w` is not normalised
    ========  =================================================================

    Parameters
    ----------
    %(first_parameter)s
    variant : {"at", "fat", "trades", "rst"}, default="at"
        GAIRAT, GAIR-FAT, GAIR-TRADES, or the loss with which the authors trained
        on pseudo-labelled data as well (GAIR-RST): an interpolation of two
        attacks rather than a weighting. With "rst" samples whose label is -1 are
        unlabelled, as in :class:`RobustSelfTrainingClassifier`.
    weighted : {"natural", "divergence", "both"}, default="natural"
        What is weighted in "trades". The authors' code weights the natural
        cross-entropy by default.
    weighting : {"tanh", "sigmoid", "discrete"}, default="tanh"
        How weights fall with `kappa`, see
        :func:`robustsk.losses.geometry_weights`.
    lam : float or list of (epoch, lam), default=None
        Where they fall: the larger, the more samples have full weight, and
        infinity gives all the same. Pairs hold an epoch, counted from 0, and the
        value from then on. None means that of the source: -1 for "at" and
        "trades", 0 for "fat", 3 for "rst".
    begin_epoch : int, default=None
        Epoch, counted from 0, from which samples are weighted. Before it ``w`` is
        1. None means half of `max_epochs`, rounded up, and for "trades" three
        quarters, as in the source.
    beta : float, default=6.0
        Weight of the divergence in "trades" and "rst".
    tau : int or list of (epoch, tau), default=None
        When the adversary of "fat" stops, as in :class:`FATClassifier`. The
        schedule of the source is 0, then 3 from epoch 40 of 120, and 6 from
        epoch 70.
    unlabeled_weight : float, default=None
        Weight of an unlabelled sample in "rst", as in
        :class:`RobustSelfTrainingClassifier`: None gives labelled and unlabelled
        samples the same weight in total.
    adversary : attack, default=None
        What makes the adversarial examples in training, and the threat model
        that `score_adversarial` assumes. None means a
        :class:`robustsk.attacks.GeometryAwarePGD`, for "fat" a
        :class:`robustsk.attacks.FriendlyPGD`, with 10 steps and ``eps=8/255``. Others
        will do if they look at every sample once in each of `n_steps` steps, as
        PGD does; that of "fat" has to stop early. In "trades" and "rst" it starts
        next to the sample, whichever attack is given, unless it has another
        start than its own default or `adversary__random_start` is given. Its
        randomness comes from the `random_state` of this estimator.
    %(shared_parameters)s

    %(shared_attributes)s

    See Also
    --------
    MAILClassifier : Weights by a continuous margin.
    PGDATClassifier : Equal weights.

    Notes
    -----
    Robustness to PGD is overestimated by far: samples with a large `kappa` hardly
    count any more, gradients are masked, and other attacks find the way round. In
    the reproduction of Hou (2022, Table 3.4: CIFAR-10, ResNet-18) GAIRAT has
    54.9 % under PGD-20 and 35.9 % under AutoAttack, where adversarial training
    with equal weights has 46.9 %. Hitaj et al. (2021) get the same with PGD on
    scaled logits. Evaluate with AutoAttack.

    `sample_weight` counts in the normalisation of the weights too, so that a
    sample of weight 2 is two samples.

    The formula of "trades" is not spelled out in the main text of the source;
    the options are those of the authors' code, which by a slip in a condition
    weights the cross-entropy of the adversarial samples instead. In "rst", the
    authors' code has ``lam + K / 2 - kappa`` in the hyperbolic tangent, which is
    the formula above for its ``K = 10``. The labels that unlabelled samples are
    given there are in `transduction_`.

    References
    ----------
    Zhang, Zhu, Niu, Han, Sugiyama and Kankanhalli (2021), "Geometry-aware
    instance-reweighted adversarial training", Eq. 6 and Algorithm 2; Hitaj,
    Pagnotta, Masi and Mancini (2021), "Evaluating the robustness of
    geometry-aware instance-reweighted adversarial training".

    Examples
    --------
    >>> from robustsk import GAIRATClassifier
    >>> from robustsk.datasets import load_digits_images
    >>> X, y = load_digits_images(return_X_y=True)
    >>> clf = GAIRATClassifier(max_epochs=8, adversary__eps=0.1, random_state=0)
    >>> clf = clf.fit(X[:1000], y[:1000])
    >>> bool(clf.score_adversarial(X[1000:1200], y[1000:1200]) > 0.4)
    True
    >>> kappa = clf.kappa_scores(X[1000:1200], y[1000:1200])
    >>> bool(kappa.min() >= 0 and kappa.max() <= 10)
    True
    """

    def __init__(
        self,
        module: Network | None = None,
        *,
        variant: str = "at",
        weighting: str = "tanh",
        lam: float | Sequence[Sequence[float]] | None = None,
        begin_epoch: int | None = None,
        beta: float = 6.0,
        tau: int | Sequence[Sequence[int]] | None = None,
        weighted: str = "natural",
        unlabeled_weight: float | None = None,
        **common: Unpack[DefenseParameters],
    ):
        super().__init__(module, **common)
        self.variant = variant
        self.weighting = weighting
        self.lam = lam
        self.begin_epoch = begin_epoch
        self.beta = beta
        self.tau = tau
        self.weighted = weighted
        self.unlabeled_weight = unlabeled_weight

    def prescribed(self):
        """Return the start next to the sample for the variants of TRADES."""
        return {"random_start": "gaussian"} if self._has_divergence else {}

    def default_adversary(self):
        """Return a PGD that counts, with the start of the source."""
        if self.variant == "fat":
            return FriendlyPGD()
        return GeometryAwarePGD(**self.prescribed())

    @property
    def _has_divergence(self):
        return self.variant in ("trades", "rst")

    @property
    def _is_natural(self):
        """Whether no adversarial sample is of any use."""
        weighs_natural = self.variant == "trades" and self.weighted != "divergence"
        return self._has_divergence and self.beta == 0 and not weighs_natural

    @property
    def _takes_unlabelled(self):
        return self.variant == "rst"

    def attack_objective(self):
        """Return "kl" for the variants of TRADES, and "ce"."""
        return "kl" if self._has_divergence else "ce"

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        """Check the parameters; called by skorch."""
        super().on_train_begin(net, X, y, **kwargs)
        check_choice(self.variant, "variant", tuple(_LAM))
        check_choice(self.weighting, "weighting", ("tanh", "sigmoid", "discrete"))
        check_choice(self.weighted, "weighted", ("natural", "divergence", "both"))
        check_length(self.beta, "beta")
        check_begin(self.begin_epoch)
        at_epoch(self._lam, 0, "lam")
        if self.variant == "rst" and getattr(self.adversary_, "objective", None) is not None:
            raise ValueError(
                "variant='rst' lets the adversary ascend two objectives, the divergence and the "
                f"margin: leave its own objective={self.adversary_.objective!r} out."
            )

    def on_epoch_begin(self, net, dataset_train=None, dataset_valid=None, **kwargs):
        """Set `tau` of the adversary; called by skorch."""
        super().on_epoch_begin(net, dataset_train, dataset_valid, **kwargs)
        follow_tau(self, _TAU if self.variant == "fat" else None)

    @property
    def _lam(self):
        return _LAM[self.variant] if self.lam is None else self.lam

    @property
    def _weighs(self):
        """Whether samples have weights by now."""
        begin = self.begin_epoch
        if begin is None:
            begin = scaled([(3 if self.variant == "trades" else 2, None)], 4, self.max_epochs)[0][0]
        return self.epoch >= begin

    def craft(self, x: Tensor, y: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return the adversarial batch, `kappa`, and for "rst" a second adversarial batch."""
        if self._is_natural:
            return x
        crafted = self._count(x, y)
        if self.variant == "rst" and self._weighs:
            crafted += (self.perturb(self.module_, x, y, objective="cw"),)
        return crafted

    def _count(self, x, y):
        """Return the adversarial batch, and how many iterates each sample withstood."""
        objective = resolve_objective(self.attack_objective())
        counting = _Counting(objective)
        x_adv, info = self.perturb(
            self.module_,
            x,
            y,
            objective=Objective(counting, needs_clean=objective.needs_clean),
            return_info=True,
        )
        if "kappa" in info:
            return x_adv, info["kappa"]
        if counting.n_calls != self._n_steps:
            raise ValueError(
                f"The adversary {type(self.adversary_).__name__} does not tell how many of its "
                f"iterates a sample withstands (kappa), by which {type(self).__name__} weighs "
                "samples: use GeometryAwarePGD(...), FriendlyPGD(...), or an attack such as PGD "
                "that looks at all samples once in each of n_steps steps, without an objective of "
                "its own and without restarts."
            )
        return x_adv, counting.kappa

    @property
    def _n_steps(self):
        return getattr(self.adversary_, "n_steps", 1)

    def training_loss(self, x: Tensor, x_adv: Any, y: Tensor) -> Tensor:
        """Return the loss of the variant, shape (n,)."""
        if self._is_natural:
            return self.classification_loss(self.logits(x), y)
        x_adv, kappa, *second = x_adv
        if not self._has_divergence:
            return self._weighted(self.classification_loss(self.logits(x_adv), y), kappa)
        logits = self.logits(x)
        loss = self.classification_loss(logits, y)
        divergence = kl_divergence(logits, self.logits(x_adv))
        if self.variant == "trades" and self.weighted != "divergence":
            loss = self._weighted(loss, kappa)
        if self.variant == "rst" or self.weighted != "natural":
            divergence = self._weighted(divergence, kappa)
        if second:
            other = kl_divergence(logits, self.logits(second[0]))
            divergence = divergence + (1 - self._geometry(kappa).to(other)) * other
        return loss + self.beta * divergence

    def _weighted(self, loss, kappa):
        # Algorithm 2: the weights, of mean 1, times the losses
        return self._geometry(kappa).to(loss) * loss if self._weighs else loss

    def _geometry(self, kappa):
        # Eq. 6
        return geometry_weights(
            kappa,
            self._n_steps,
            at_epoch(self._lam, self.epoch, "lam"),
            self.weighting,
            normalize=self.variant != "rst",
            sample_weight=self.batch_weight,
        )

    def kappa_scores(self, X: Any, y: ArrayLike | None = None) -> np.ndarray:
        """Return how many steps each sample withstands: a score to select samples by.

        Small values mark samples next to the decision boundary and those with
        a wrong label, large ones the typical samples of a class.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...) or torch Dataset
        y : array-like of shape (n_samples,)
            Labels. May be omitted where `X` is a Dataset that yields them.

        Returns
        -------
        ndarray of int of shape (n_samples,)
            From 0 to the number of steps of the adversary.
        """
        self.check_is_fitted()
        own = getattr(self.adversary_, "objective", None)
        attack = self.like_adversary(
            GeometryAwarePGD, objective=self.attack_objective() if own is None else own
        )
        attack.set_params(estimator=self, random_state=self.random_state)
        return attack.generate(X, y, return_info=True)[1]["kappa"]


class _Counting:
    """An objective that counts how often each sample is classified correctly."""

    def __init__(self, objective):
        self.objective = objective
        self.n_calls = 0
        self.kappa = None

    def __call__(self, logits, y, target, clean):
        predicted = logits.detach().argmax(1)
        right = (predicted == y if target is None else predicted != target).long()
        if self.kappa is None:
            self.kappa = right
        elif len(right) == len(self.kappa):
            self.kappa = self.kappa + right
        else:  # some samples have been left out, and nobody says which
            self.n_calls = -np.inf
        self.n_calls += 1
        return self.objective(logits, y, target, clean)
