"""What the constructors of attacks take behind ``**common``: in words, and for type checkers.

At run time a class takes these parameters from its bases (:mod:`robustsk._shared`). Nothing that
does not run the code can follow that, so that they are listed here, once per family; a test
compares the lists with the signatures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import ArrayLike

from ..victims.space import FeatureSpace

#: The parameters that come first, the shared ones, and what `fit` leaves behind, for docstrings.
FIRST_PARAMETER = """
    estimator : fitted estimator or torch.nn.Module, default=None
        The model to attack. A fitted estimator in a pipeline that will be
        cloned must be wrapped in `sklearn.frozen.FrozenEstimator`. With None,
        `fit` fits a standardised logistic regression as a surrogate.
"""
PARAMETERS = """
    norm : {inf, 2, 1, "linf", "l2", "l1"}, default=inf
        Norm in which the perturbation is measured.
    eps : float or array-like, default=None
        Largest perturbation, in the units of the data. An array holds one
        value per feature (with norm 2 or 1 the ball becomes an ellipsoid). Of a
        DataFrame a dict gives it by name, and freezes what it does not name.
        None means 8/255 for the inf norm, 0.5 for the 2-norm and 12 for the
        1-norm, which are customary on images in [0, 1]; and no limit for an
        attack that looks for the smallest perturbation.
    clip : "auto", None or (low, high), default="auto"
        Valid range of the data. "auto" learns it in `fit` (or takes what a
        robustsk estimator learned in its own): per feature for tables, one
        range for all pixels of images. A pair of numbers or arrays fixes it,
        e.g. ``(0, 1)``; None means no box.
    target : None, label, "least_likely", "random" or array, default=None
        Class to be reached. None means untargeted: away from the true class.
        An array holds one label per sample.
    mask : array-like of bool, default=None
        Where a feature may change; False freezes it. For tables also a list of the names of the
        columns that may change.
    space : FeatureSpace, default=None
        What the columns of a table may become: integers, categories, ranges, relations. An
        unfitted one learns from the data of `fit`, or from those that are attacked. None means
        numbers without constraints; of a DataFrame with labels or missing values the numbers are
        attacked, and all else stays as it is.
    bn_mode : {"eval", "train"}, default="eval"
        How batch normalisation behaves during the attack. Its running
        statistics are left as they were in either case.
    precision : {None, "bf16"}, default=None
        Precision in which convolutions and matrix products are computed during
        the attack; None means that of the model. With "bf16" `generate` and
        all scores judge examples in the precision of the model. Attacks that
        only ask questions, and models in float64, keep their precision.
    compile : bool or str, default=False
        Whether to use `torch.compile`; a string is its mode. It takes some
        time at first and pays for long attacks, above all on a GPU.
    batch_size : int or "auto", default="auto"
        Samples attacked at a time by `transform`, `generate` and all scores.
        "auto" is 256, and 4096 for the rows of a table, which take up little
        room. It is halved, with a warning, if memory runs out.
    device : str or torch.device, default="auto"
        Where to compute. "auto" is wherever the victim lives; otherwise a copy
        of the victim is used and the victim itself is never moved.
    random_state : int, RandomState or None, default=None
        Source of all randomness. With an int, a sample gets the same noise
        whatever the batch size and the order of the data.
    verbose : bool or int, default=0
        Whether to show a progress bar.
"""
ATTRIBUTES = """
    Attributes
    ----------
    estimator_ : object
        What is attacked.
    clip_bounds_ : tuple of (ndarray, ndarray)
        Smallest and largest value seen in `fit`.
    n_features_in_ : int
        Number of features seen in `fit`.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features seen in `fit`, if they are all strings.
"""


class AttackParametersButNorm(TypedDict, total=False):
    """What all attacks take, those included that name a `norm` of their own."""

    eps: float | ArrayLike | None
    clip: str | Sequence[ArrayLike] | np.ndarray | None
    target: ArrayLike | None
    mask: ArrayLike | None
    space: FeatureSpace | None
    bn_mode: str
    precision: str | None
    compile: bool | str
    batch_size: int | str
    device: str | torch.device
    random_state: int | np.random.RandomState | None
    verbose: int


class AttackParameters(AttackParametersButNorm, total=False):
    """What all attacks take."""

    norm: float | str


class GradientParametersButNorm(AttackParametersButNorm, total=False):
    """What attacks take that follow a gradient, but for the norm."""

    objective: str | Callable | None
    graph: str | bool


class GradientParameters(GradientParametersButNorm, AttackParameters, total=False):
    """What attacks take that follow a gradient."""


class PGDParameters(GradientParameters, total=False):
    """What the attacks take that are a PGD."""

    n_steps: int
    step_size: float | None
    random_start: str
    start_std: float
    n_restarts: int


class BlackBoxParameters(AttackParameters, total=False):
    """What attacks take that only ask, but for those with a `max_queries` of their own."""

    max_queries: int


class DecisionParametersButNorm(AttackParametersButNorm, total=False):
    """What attacks take that see labels only, but for the norm and the number of queries."""

    starts: ArrayLike | None


class DecisionParameters(DecisionParametersButNorm, AttackParameters, total=False):
    """What attacks take that see labels only, but for the number of queries."""


class LimitedNESParameters(DecisionParameters, total=False):
    """What the forms of NES take that see little of the answers."""

    n_draws: int
    sigma: float
    step_share: float
    momentum: float
    max_queries: int


class PerturbOptions(TypedDict, total=False):
    """What :meth:`BaseAttack.perturb` takes besides."""

    bounds: tuple[np.ndarray, np.ndarray] | None
    seed: int | None
    keep: str
    clean_logits: torch.Tensor | None
