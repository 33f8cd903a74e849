"""Multi-objective attack: one example that survives several transformations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..._validation import check_count
from ...losses import ensemble_logits
from ..noise import Stream, seeded
from .base import BaseMultiObjectiveAttack, Seen, Tasks, joint_score
from .transformations import (
    Transformation,
    deterministic_transformations,
    stochastic_transformations,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._parameters import MultiObjectiveParameters

_FAMILIES = {
    "deterministic": deterministic_transformations,
    "stochastic": stochastic_transformations,
}


class TransformTAMOO(BaseMultiObjectiveAttack):
    """Attack with an example that goes on fooling a model when it is transformed.

    To fool the model after one of the transformations is a task; the tasks are
    weighted as in :class:`TAMOO`.

    Parameters
    ----------
    %(first_parameter)s
    transforms : {"deterministic", "stochastic"}, list or dict of callables, default=None
        Seven transformations of images as :func:`deterministic_transformations`
        or :func:`stochastic_transformations` makes them; or a list of kinds of
        :class:`Transformation` and of your own: each takes a batch of tensors and
        returns one, differentiably. None means
        "deterministic" for images, and for tables the identity alone.
    n_draws : int, default=1
        Number of draws in each step, over which objectives and gradients are
        averaged, where transformations are random.
    %(shared_parameters)s

    %(shared_attributes)s

    See Also
    --------
    EOT : The mean over random draws as one objective, around any attack.
    robustsk.metrics.joint_success_rates : Takes `transforms` to judge the outcome.

    Notes
    -----
    What is drawn in a step is drawn for each sample and transformation by
    itself, and serves goals and gradients alike. Random numbers of your own
    callables must come from torch's global generators, which are seeded for
    them and put back; they then depend on `batch_size`. An example counts as
    one that fools the model if it does so untransformed; where the identity is
    not among the transformations, if the mean prediction over them is wrong.

    References
    ----------
    Bui, Le, Zhao, Tran, Montague and Phung (2023), "Generating adversarial
    examples with task oriented multi-objective optimization", TMLR, Sec. 4.4
    and Appendix D.4; Athalye, Engstrom, Ilyas and Kwok (2018), "Synthesizing
    robust adversarial examples".

    Examples
    --------
    >>> from robustsk import StandardClassifier, TransformTAMOO
    >>> from robustsk.attacks import deterministic_transformations
    >>> from robustsk.datasets import load_digits_images
    >>> from robustsk.metrics import joint_success_rates
    >>> X, y = load_digits_images(return_X_y=True)
    >>> clf = StandardClassifier(max_epochs=5, random_state=0).fit(X[:1000], y[:1000])
    >>> attack = TransformTAMOO(clf, eps=0.2, n_steps=10, random_state=0)
    >>> X_adv = attack.generate(X[1000:1100], y[1000:1100])
    >>> rates = joint_success_rates(
    ...     [clf], X_adv, y[1000:1100], transforms=deterministic_transformations()
    ... )
    >>> bool(rates.all > 0.1)
    True
    """

    def __init__(
        self,
        estimator: Any = None,
        *,
        transforms: str | Sequence[Callable] | Mapping[str, Callable] | None = None,
        n_draws: int = 1,
        **common: Unpack[MultiObjectiveParameters],
    ):
        super().__init__(estimator, **common)
        self.transforms = transforms
        self.n_draws = n_draws

    @property
    def _often_infinite(self):
        return isinstance(self.transforms, str) and self.transforms == "stochastic"

    def _tasks(self, batch):
        shape = _image_shape(batch)
        transforms = self._resolve_transforms(shape is not None)
        seed = self._draw_seed() if any(_is_foreign(t) for t in transforms) else 0
        n_draws = check_count(self.n_draws, "n_draws")
        return _Transformed(
            batch, batch.ball, batch.noise, len(transforms), transforms, shape, n_draws, seed
        )

    def _resolve_transforms(self, is_image):
        transforms = self.transforms
        if transforms is None:
            transforms = "deterministic" if is_image else [Transformation("identity")]
        if isinstance(transforms, str):
            if transforms not in _FAMILIES:
                raise ValueError(
                    f"transforms={transforms!r} is unknown; use one of {sorted(_FAMILIES)}, or a "
                    "list of callables that take a batch of tensors."
                )
            if not is_image:
                raise ValueError(
                    f"transforms={transforms!r} transforms images, and X is a table: give a list "
                    "of callables that take a batch of tensors of shape (n, n_features)."
                )
            transforms = _FAMILIES[transforms]()
        if isinstance(transforms, dict):
            transforms = transforms.values()
        elif not isinstance(transforms, (list, tuple)):
            transforms = [transforms]
        transforms = [Transformation(t) if isinstance(t, str) else t for t in transforms]
        if not transforms or not all(callable(t) for t in transforms):
            raise TypeError(
                "transforms must hold at least one callable that takes a batch of tensors, got "
                f"{self.transforms!r}."
            )
        return transforms


def _is_foreign(transform):
    return not isinstance(transform, Transformation)


def _is_identity(transform):
    return isinstance(transform, Transformation) and transform.kind == "identity"


def _image_shape(batch):
    """Return the shape of one image, or None for a table."""
    if batch.x.ndim == 4:
        return tuple(batch.x.shape[1:])
    shape = getattr(batch.victim.module, "input_shape", None)
    return tuple(shape) if shape is not None and len(shape) == 3 else None


@dataclass
class _Transformed(Tasks):
    """A model that is to be fooled by all transforms of a point."""

    transforms: list[Callable]
    shape: tuple[int, ...] | None
    n_draws: int
    seed: int

    def look(self, z, step, gradients=True):
        clean = None
        if self.batch.objective.needs_clean:
            clean = [self.batch.clean_logits] * self.m
        logits, values, found = [], 0.0, 0.0
        for draw in range(self.n_draws):
            functions = [self._after(i, step * self.n_draws + draw) for i in range(self.m)]
            drawn = self.differentiate(z, functions, clean, gradients)
            logits.append(drawn[0])
            values = values + drawn[1] / self.n_draws
            found = found + drawn[2] / self.n_draws if gradients else None
        logits = [ensemble_logits(list(of_one)) for of_one in zip(*logits, strict=True)]
        achieved = torch.stack([self.batch.fooled(out) for out in logits], dim=1)
        known = [i for i, t in enumerate(self.transforms) if _is_identity(t)]
        fooled = achieved[:, known[0]] if known else self.batch.fooled(ensemble_logits(logits))
        return Seen(values, achieved, joint_score(achieved, fooled), fooled, found)

    def _after(self, i, draw):
        """Return the model after a transformation, as it is in one draw."""
        transform, victim = self.transforms[i], self.batch.victim

        def logits(x):
            image = x if self.shape is None else x.reshape(len(x), *self.shape)
            if _is_foreign(transform):
                with seeded(self.seed + 7919 * (draw * self.m + i), x.device):
                    moved = transform(image)
            elif _is_identity(transform):
                return victim(x)
            else:
                stream = Stream.TRANSFORMATION + draw * self.m + i
                moved = transform(image, self.noise.scalar(stream))
            return victim(moved.reshape(x.shape))

        return logits
