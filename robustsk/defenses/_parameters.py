"""What the constructors of defences take behind ``**common``, for editors and type checkers.

As for attacks, but that there are also parameters of nested objects. Which of these there are
depends on the objects; listed are those of the adversaries, heads and networks of the package and
of what is usual in torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypedDict

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn

from ..attacks import BaseAttack
from ..models.heads import Head
from ..training import AWP
from ..victims.space import FeatureSpace

#: What a network is made of.
Network: TypeAlias = str | nn.Module | Callable[..., nn.Module]


class NestedDefenseParameters(TypedDict, total=False):
    """Parameters of the objects in a defence."""

    # what all attacks have, PGD, and what is an adversary by default somewhere
    adversary__norm: float | str
    adversary__eps: float | ArrayLike | None
    adversary__clip: str | Sequence[ArrayLike] | np.ndarray | None
    adversary__target: ArrayLike | None
    adversary__mask: ArrayLike | None
    adversary__space: FeatureSpace | None
    adversary__bn_mode: str
    adversary__precision: str | None
    adversary__compile: bool | str
    adversary__batch_size: int | str
    adversary__device: str | torch.device
    adversary__random_state: int | np.random.RandomState | None
    adversary__verbose: int
    adversary__objective: str | Callable | None
    adversary__graph: str | bool
    adversary__n_steps: int
    adversary__step_size: float | None
    adversary__random_start: str | None
    adversary__start_std: float
    adversary__n_restarts: int
    # DRA
    adversary__proportion: float
    adversary__eps_unit: str
    adversary__normalize: str
    adversary__mask_mode: str
    adversary__projection: str
    # FeatureScatter
    adversary__reg: float
    adversary__n_sinkhorn: int
    adversary__tol: float
    adversary__detach_plan: bool
    # FriendlyPGD, GeometryAwarePGD, DynamicPGD
    adversary__tau: float | None
    adversary__omega: float
    adversary__kappa_mode: str
    adversary__criterion: float
    adversary__min_steps: int
    # UDRAdversary, WRMAdversary
    adversary__soft_ball: str
    adversary__cost_norm: float
    adversary__tau_ratio: float
    adversary__lambda_init: float | None
    adversary__lambda_lr: float | None
    adversary__distance: str
    adversary__smooth_distance: bool
    adversary__lambda_period: int
    adversary__clip_each_step: bool
    adversary__gamma: float
    # HypersphereHead, MMCHead
    head__s: float
    head__m: float
    head__feature_norm: bool
    head__weight_norm: bool
    head__scale: float
    head__n_features: int | None
    # AWP
    weight_perturbation__gamma: float
    weight_perturbation__n_steps: int
    weight_perturbation__n_rounds: int
    weight_perturbation__warmup: int
    # RandomCropFlip, Cutout
    augmentation__padding: int
    augmentation__flip: bool
    augmentation__mode: str
    augmentation__length: int
    augmentation__inside: bool
    # the networks of the package
    module__hidden_sizes: Sequence[int]
    module__padding: int | str
    module__dropout: float
    module__mean: float | Sequence[float] | None
    module__std: float | Sequence[float] | None
    module__blocks: Sequence[tuple[int, int]]
    module__block: str
    module__layers: Sequence[int]
    module__widths: Sequence[int]
    module__stem_width: int | None
    module__preactivation: bool
    module__shortcut: str
    module__depth: int
    module__widen_factor: int
    # torch.nn.CrossEntropyLoss
    criterion__weight: torch.Tensor | None
    criterion__ignore_index: int
    criterion__label_smoothing: float
    # torch.optim: SGD, Adam, AdamW, RMSprop
    optimizer__momentum: float
    optimizer__dampening: float
    optimizer__nesterov: bool
    optimizer__weight_decay: float
    optimizer__betas: tuple[float, float]
    optimizer__eps: float
    optimizer__amsgrad: bool
    optimizer__alpha: float
    optimizer__centered: bool
    optimizer__maximize: bool
    optimizer__foreach: bool | None
    optimizer__fused: bool | None
    optimizer__capturable: bool
    optimizer__param_groups: Sequence[tuple[str, dict[str, Any]]]
    # torch.utils.data.DataLoader
    iterator_train__batch_size: int
    iterator_train__shuffle: bool
    iterator_train__sampler: Any
    iterator_train__batch_sampler: Any
    iterator_train__num_workers: int
    iterator_train__collate_fn: Callable[[list], Any]
    iterator_train__pin_memory: bool
    iterator_train__drop_last: bool
    iterator_train__timeout: float
    iterator_train__worker_init_fn: Callable[[int], None]
    iterator_train__multiprocessing_context: Any
    iterator_train__generator: torch.Generator | None
    iterator_train__prefetch_factor: int | None
    iterator_train__persistent_workers: bool
    iterator_valid__batch_size: int
    iterator_valid__num_workers: int
    iterator_valid__collate_fn: Callable[[list], Any]
    iterator_valid__pin_memory: bool
    iterator_valid__timeout: float
    iterator_valid__worker_init_fn: Callable[[int], None]
    iterator_valid__multiprocessing_context: Any
    iterator_valid__prefetch_factor: int | None
    iterator_valid__persistent_workers: bool
    # the callbacks that skorch has by default, and torch.compile
    callbacks__epoch_timer: Any
    callbacks__train_loss: Any
    callbacks__valid_loss: Any
    callbacks__valid_acc: Any
    callbacks__print_log: Any
    callbacks__print_log__sink: Callable[..., Any]
    compile__backend: str | Callable
    compile__dynamic: bool | None
    compile__fullgraph: bool
    compile__mode: str | None
    # what skorch takes besides
    dataset: Any
    predict_nonlinearity: Callable[..., Any] | str | None
    use_caching: bool | str
    torch_load_kwargs: dict[str, Any] | None


class _Training(NestedDefenseParameters, total=False):
    adversary: BaseAttack | None
    augmentation: Callable[[torch.Tensor], torch.Tensor] | None
    input_shape: Sequence[int] | None
    criterion: Callable[..., Any]
    optimizer: Callable[..., torch.optim.Optimizer]
    lr: float
    max_epochs: int
    batch_size: int
    precision: str | None
    class_weight: dict | str | None
    warm_start: bool
    train_split: Callable | None
    callbacks: Sequence[Any] | str | None
    classes: ArrayLike | None
    iterator_train: Callable[..., Any]
    iterator_valid: Callable[..., Any]
    compile: bool
    device: str | torch.device | None
    random_state: int | np.random.RandomState | None
    verbose: int


class DefenseParametersButHead(_Training, total=False):
    """What all defences take, those included that name a `head` of their own."""

    weight_perturbation: AWP | None


class DefenseParametersButWeightPerturbation(_Training, total=False):
    """What all defences take, those included that name a `weight_perturbation` of their own."""

    head: Head | None


class DefenseParameters(
    DefenseParametersButHead, DefenseParametersButWeightPerturbation, total=False
):
    """What all defences take."""


class _ProjectionParameters(TypedDict, total=False):
    projection__out_features: int
    projection__hidden_sizes: Sequence[int]
    projection__bias: bool


class ProjectedDefenseParameters(DefenseParameters, _ProjectionParameters, total=False):
    """What defences take that have a projection, a ProjectionHead."""


class AnyNestedParameters(NestedDefenseParameters, _ProjectionParameters, total=False):
    """Parameters of the objects in any defence, which arrive in the base of all."""
