"""How smooth a model is, and how far attacks move its latent representation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.utils import check_array, gen_batches
from sklearn.utils.validation import check_consistent_length, column_or_1d
from torch import nn

from .._containers import check_floats, to_array
from .._tensors import column
from .._validation import check_count, check_labels, learn_bounds
from ..attacks import PGD, BaseAttack
from ..attacks.base import check_attack
from ..attacks.noise import Stream
from ..attacks.threat import check_norm
from ..models import get_classifier, get_layer
from ..victims.resolve import as_victim
from ._craft import check_samples, combined_victim, craft

_MEMBERS = ("both", "adv", "clean")
#: Points closer to the sample than that share of the radius tell no slope.
_NEAR = 0.01


@dataclass(frozen=True)
class RelativeDivergence:
    """Distances between latent representations within and between classes.

    Attributes
    ----------
    within : float
        Mean distance to the samples of the same class, d_a+.
    between : float
        Mean distance to the samples of other classes, d_a-.
    ratio : float
        ``within / between``, R-DIV: the lower, the more robust. NaN where
        `between` is zero or there is no pair to measure.
    """

    within: float
    between: float
    ratio: float


def relative_divergence(
    latents: ArrayLike,
    latents_adv: ArrayLike | None,
    y: ArrayLike,
    *,
    members: str = "both",
    include_counterpart: bool = False,
    batch_size: int | None = None,
) -> RelativeDivergence:
    """Divergence within classes relative to that between classes, R-DIV.

    Anchors are the latents of clean samples. The distance is the cosine
    distance, one minus the cosine.

    Parameters
    ----------
    latents : array-like of shape (n_samples, ...)
        Latents of clean samples.
    latents_adv : array-like of shape (n_samples, ...) or None
        Latents of the adversarial example of each; None needs
        ``members="clean"``.
    y : array-like of shape (n_samples,)
        Labels.
    members : {"both", "adv", "clean"}, default="both"
        What an anchor is compared with.
    include_counterpart : bool, default=False
        Whether an anchor is compared with its own adversarial example too. It
        is never compared with itself.
    batch_size : int, default=None
        Compare within batches of so many samples, in the given order, as a
        training loop sees them (the source: 128). None means all with all.

    Returns
    -------
    RelativeDivergence
        The two distances are means over the anchors; anchors with nothing to
        be compared with are left out.

    Raises
    ------
    ValueError
        If the shapes do not agree or `members` is unknown.

    See Also
    --------
    latent_divergence : Runs a model and an attack.

    References
    ----------
    Bui, Le, Zhao, Montague, Camtepe and Phung (2021), "Understanding and
    achieving efficient robustness with adversarial supervised contrastive
    learning", arXiv:2101.10027, Sec. 2.

    Examples
    --------
    >>> from robustsk.metrics import relative_divergence
    >>> latents = [[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 3.0]]
    >>> relative_divergence(latents, None, [0, 0, 1, 1], members="clean")
    RelativeDivergence(within=0.0, between=1.0, ratio=0.0)
    """
    if members not in _MEMBERS:
        raise ValueError(f"members must be one of {_MEMBERS}, got {members!r}.")
    if latents_adv is None and members != "clean":
        raise ValueError(f"members={members!r} needs latents_adv.")
    y = column_or_1d(check_labels(y))
    clean = _directions(latents)
    check_consistent_length(clean, y)
    adv = None
    if members != "clean":
        adv = _directions(latents_adv)
        if adv.shape != clean.shape:
            raise ValueError(
                f"latents and latents_adv must have one shape, got {clean.shape} and {adv.shape}."
            )
    index = np.unique(y, return_inverse=True)[1]
    size = len(clean) if batch_size is None else check_count(batch_size, "batch_size")
    within, between = zip(
        *[
            _class_distances(
                clean[rows],
                None if adv is None else adv[rows],
                index[rows],
                members,
                include_counterpart,
            )
            for rows in gen_batches(len(clean), size)
        ],
        strict=True,
    )
    within, between = (_mean(np.concatenate(parts)) for parts in (within, between))
    ratio = within / between if between > 0 else float("nan")
    return RelativeDivergence(within, between, ratio)


def _directions(latents):
    latents = check_array(to_array(latents), dtype=np.float64, allow_nd=True)
    latents = latents.reshape(len(latents), -1)
    length = np.linalg.norm(latents, axis=1, keepdims=True)
    return latents / np.where(length > 0, length, 1.0)


def _mean(values):
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")


def _class_distances(clean, adv, index, members, include_counterpart):
    """Return the mean distance of each anchor to its own class and to the others.

    The cosine distance is linear in a direction: the sums of the directions of
    each class are all that is needed, not the pairs.
    """
    one_hot = np.eye(index.max() + 1)[index]
    sums, counts = np.zeros((one_hot.shape[1], clean.shape[1])), np.zeros(one_hot.shape[1])
    for kind, unit in (("clean", clean), ("adv", adv)):
        if members in (kind, "both"):
            sums += one_hot.T @ unit
            counts += one_hot.sum(axis=0)
    own_sum, own_count = sums[index], counts[index]
    other_sum, other_count = sums.sum(axis=0) - own_sum, counts.sum() - own_count
    if members != "adv":
        own_sum, own_count = own_sum - clean, own_count - 1
    if members != "clean" and not include_counterpart:
        own_sum, own_count = own_sum - adv, own_count - 1
    with np.errstate(invalid="ignore", divide="ignore"):
        return tuple(
            # rounding can make a mean cosine exceed one
            np.where(
                count > 0,
                np.maximum(1.0 - np.einsum("ij,ij->i", clean, total) / count, 0.0),
                np.nan,
            )
            for total, count in ((own_sum, own_count), (other_sum, other_count))
        )


def latent_divergence(
    estimator: Any,
    X: Any,
    y: ArrayLike | None,
    attack: BaseAttack,
    *,
    layer: str | None = None,
    members: str = "both",
    include_counterpart: bool = False,
    batch_size: int | None = None,
) -> RelativeDivergence:
    """Divergence of clean and adversarial latents relative to that between classes.

    Parameters
    ----------
    estimator : fitted estimator or torch.nn.Module
        A network, or what is rebuilt as one.
    X : array-like of shape (n_samples, ...) or torch Dataset
    y : array-like of shape (n_samples,)
        True labels. May be None where `X` is a Dataset that yields them.
    attack : attack
        What makes the adversarial examples, for all samples.
    layer : str, default=None
        Name of the layer whose output is the latent representation, as in
        ``module.named_modules()``. None means what enters the classifier layer;
        see :func:`robustsk.models.get_classifier`.
    members, include_counterpart, batch_size
        See :func:`relative_divergence`.

    Returns
    -------
    RelativeDivergence

    Raises
    ------
    NoGradientError
        If the estimator cannot be run as a network.
    ValueError
        If there is no such layer, or `y` contains labels that the estimator has
        not been trained on.

    References
    ----------
    Bui, Le, Zhao, Montague, Camtepe and Phung (2021), "Understanding and
    achieving efficient robustness with adversarial supervised contrastive
    learning", arXiv:2101.10027, Sec. 2 and Figure 5.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.neural_network import MLPClassifier
    >>> from robustsk import PGD
    >>> from robustsk.metrics import latent_divergence
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = MLPClassifier(20, max_iter=200, solver="lbfgs", random_state=0).fit(X, y)
    >>> weak, strong = (
    ...     latent_divergence(clf, X, y, PGD(eps=eps, random_state=0)) for eps in (0.01, 0.5)
    ... )
    >>> weak.ratio < strong.ratio
    True
    """
    check_attack(attack)
    if members not in _MEMBERS:
        raise ValueError(f"members must be one of {_MEMBERS}, got {members!r}.")
    values, y_true = check_samples(X, y)
    victim = as_victim(estimator, attack="latent_divergence")
    _find_layer(victim.module, layer)  # raises before the work, not after it
    attacked = combined_victim([estimator], values, attack)
    X_adv, _ = craft(attack, attacked, values, y_true, X)
    return relative_divergence(
        _latents(victim, layer, values),
        _latents(victim, layer, X_adv),
        y_true,
        members=members,
        include_counterpart=include_counterpart,
        batch_size=batch_size,
    )


def _find_layer(module, layer):
    """Return a layer and whether its input is wanted, not its output."""
    if layer is None:
        # the wrappers around a user's network would hide what it says about itself
        for inner in module.modules():
            if callable(getattr(inner, "get_classifier", None)):
                return get_classifier(inner)[1], True
        try:
            return get_classifier(module)[1], True
        except ValueError:
            # scikit-learn's networks are rebuilt from layers of another kind
            affine = [m for m in module.modules() if getattr(m, "weight", None) is not None]
            affine = [m for m in affine if m.weight.ndim == 2]
            if not affine:
                raise
            return affine[-1], True
    return get_layer(module, layer), False


def _latents(victim, layer, values):
    """Return what enters or leaves a layer, shape (n_samples, n_features)."""
    caught, parts = [], []
    with victim.frozen() as seen:
        layer, before = _find_layer(seen.module, layer)
        if before:
            handle = layer.register_forward_pre_hook(
                lambda _, args, kwargs: caught.extend([*args, *kwargs.values()][:1]),
                with_kwargs=True,
            )
        else:
            handle = layer.register_forward_hook(lambda _, args, output: caught.append(output))
        try:
            for rows in gen_batches(len(values), 256):
                caught.clear()
                seen.logits(values[rows])
                if not caught or not isinstance(caught[-1], torch.Tensor):
                    raise ValueError(
                        f"{victim.name} did not pass a tensor through the layer {layer!r}: name "
                        "one that its forward pass calls."
                    )
                parts.append(caught[-1].flatten(1).double().cpu().numpy())
        finally:
            handle.remove()
    return np.concatenate(parts)


def local_lipschitz(
    estimator: Any,
    X: Any,
    *,
    eps: float | ArrayLike | None = None,
    norm: float | str = np.inf,
    clip: Any = "auto",
    output: str = "logits",
    n_steps: int = 20,
    n_restarts: int = 1,
    batch_size: int = 256,
    random_state: Any = 0,
) -> np.ndarray:
    """Largest slope of a model found in the ball around each sample.

    Ascends ``||f(x') - f(x)||_1 / ||x' - x||`` from a random start; the best
    value on the way counts.

    Parameters
    ----------
    estimator : fitted estimator or torch.nn.Module
        A differentiable model.
    X : array-like of shape (n_samples, ...) or torch Dataset
    eps : float or array-like, default=None
        Radius of the ball, as in :class:`robustsk.attacks.PGD`.
    norm : {inf, 2, 1, "linf", "l2", "l1"}, default=inf
        Norm of the ball and of the change of the input.
    clip : "auto", None or (low, high), default="auto"
        Valid range. "auto" is what the estimator learned in training if it is
        one of ours, and that of `X` otherwise.
    output : {"logits", "proba"}, default="logits"
        What the model is taken to return.
    n_steps : int, default=20
        Number of gradient steps; their length falls from twice the radius to
        zero.
    n_restarts : int, default=1
        Number of random starts.
    batch_size : int, default=256
    random_state : int, RandomState or None, default=0

    Returns
    -------
    ndarray of shape (n_samples,)
        A lower bound of the local Lipschitz constant of each sample. The source
        reports the mean.

    Raises
    ------
    NoGradientError
        If the estimator has no gradients.
    ValueError
        If `output` is unknown or another parameter is out of range.

    References
    ----------
    Yang, Rashtchian, Zhang, Salakhutdinov and Chaudhuri (2020), "A closer look
    at accuracy vs. robustness", NeurIPS, Sec. 4: the empirical local
    Lipschitz constant.

    Examples
    --------
    The slope of a linear model is the same everywhere:

    >>> import torch
    >>> from robustsk.metrics import local_lipschitz
    >>> model = torch.nn.Linear(2, 2, bias=False)
    >>> model.weight.data = torch.tensor([[3.0, 1.0], [0.0, -1.0]])
    >>> slopes = local_lipschitz(model, [[0.0, 0.0], [5.0, 1.0]], eps=0.1, clip=None)
    >>> slopes.round(2)
    array([5., 5.], dtype=float32)
    """
    if output not in ("logits", "proba"):
        raise ValueError(f"output must be 'logits' or 'proba', got {output!r}.")
    values = check_floats(X)
    victim = as_victim(estimator, attack="local_lipschitz")
    ascent = _SlopeAscent(
        norm=norm,
        eps=eps,
        clip=clip,
        n_steps=n_steps,
        n_restarts=n_restarts,
        batch_size=batch_size,
        random_state=random_state,
    )
    if np.max(ascent._effective_eps(check_norm(norm), values.shape[1:])) == 0:
        raise ValueError("eps must be positive: a ball of radius zero has no slope.")
    ascent.output = nn.Identity() if output == "logits" else nn.Softmax(dim=1)
    bounds = learn_bounds(values, victim.is_image) if victim.bounds is None else victim.bounds
    run = ascent.prepare(victim, values, bounds=bounds, original=X)
    slope = ascent.run(run)[1]["slope"]
    run.batches.warn()
    return slope


class _SlopeAscent(PGD):
    """Steepest ascent of the slope between a sample and a point in its ball."""

    def _attack_batch(self, batch):
        n_steps = check_count(self.n_steps, "n_steps")
        with torch.no_grad():
            clean = self.output(batch.victim(batch.x))
        best = torch.zeros(len(batch.x), dtype=batch.x.dtype, device=batch.x.device)
        for run in range(check_count(self.n_restarts, "n_restarts")):
            z = batch.ball.random_start("uniform", batch.noise, Stream.START + run, 0.0)
            for step in range(n_steps + 1):
                slope, gradient, near = self._slope(batch, z, clean)
                best = torch.maximum(best, slope)
                # long steps find the region; short ones settle where the largest change of a
                # feature, which is what the inf norm divides by, is reached by all
                size = 2.0 * batch.ball.radius * (1.0 - step / n_steps)
                z = batch.ball.ascend(z, gradient, size)
                if near.any():
                    # no gradient leads away from the sample, where clipping can put a start
                    stream = Stream.NEW_START + run * (n_steps + 1) + step
                    fresh = batch.ball.random_start("uniform", batch.noise, stream, 0.0)
                    z = torch.where(column(near, z), fresh, z)
        batch.info["slope"] = best
        return batch.x.clone()

    def _slope(self, batch, z, clean):
        """Return the slope, its gradient, and where `z` is too close to tell."""
        batch.victim.calls.backward += len(z)
        with torch.enable_grad():
            z = z.detach().requires_grad_(True)
            change = (self.output(batch.victim(z)) - clean).abs().sum(1)
            distance = torch.linalg.vector_norm((z - batch.x).flatten(1), batch.ball.norm, 1)
            slope = change / distance.clamp_min(torch.finfo(distance.dtype).tiny)
            (gradient,) = torch.autograd.grad(slope.sum(), z)
        gradient = torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)
        # the quotient of two rounding errors is no slope
        near = distance <= _NEAR * batch.ball.radius
        return torch.where(near, 0.0, slope).detach(), gradient, near
