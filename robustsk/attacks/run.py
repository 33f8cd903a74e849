"""An attack on arrays of any size, batch by batch."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.utils.validation import check_consistent_length
from tqdm import tqdm

from .._containers import Batches, empty_like, is_out_of_memory
from .._validation import check_labels, check_range, encode_labels, warn_about_units
from .targeting import restrict_targets
from .threat import check_norm, settle


def run(attack, X, y, victim, *, bounds=None, keep="worst", original=None, return_info=False):
    """Attack validated arrays batch by batch; what all other methods call.

    Parameters
    ----------
    attack : BaseAttack
        This function is a method of it.
    X : ndarray or Rows of shape (n_samples, ...)
        Finite floating-point data. What is not in memory is read batch by batch.
    y : array-like of shape (n_samples,) or None
    victim : Victim
    bounds : tuple of (low, high), optional
        Valid range where ``clip="auto"``.
    keep : {"last", "worst", "first"}, default="worst"
    original : object, optional
        What the user passed as X, for warnings.
    return_info : bool, default=False

    Returns
    -------
    X_adv : ndarray of the shape and dtype of `X`
        In a temporary file if `X` is large and not in memory.
    info : dict of str to ndarray of shape (n_samples, ...)
        Only with `return_info`.
    """
    attack = attack._resolved()
    norm = check_norm(attack.norm, attack.supported_norms)
    eps = attack._effective_eps(norm, X.shape[1:])
    lower, upper = attack._box(bounds)
    if not isinstance(attack.clip, str):
        check_range(X, lower, upper)
    warn_about_units(X if original is None else original, eps)
    # what a caller in several parts has learned about memory
    shared = getattr(attack, "_batches", None)
    batches = Batches(attack._n_at_a_time(X, victim)) if shared is None else shared
    victim = victim.to(None if attack.device in ("auto", None) else attack.device)
    if y is not None or attack.target is not None:
        victim.learn_classes(X)
    index = None if y is None else encode_labels(check_labels(y), victim.classes, "y")
    if index is not None:
        check_consistent_length(X, index)
    if attack.target is not None and np.ndim(attack.target) == 1:
        check_consistent_length(X, attack.target)
    try:
        victim.warn_about_probabilities(X)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    seed = attack._draw_seed()
    device = victim.device
    result = empty_like(X)
    info = {}
    progress = tqdm(
        total=len(X), desc=type(attack).__name__, unit="sample", disable=not attack.verbose
    )

    def attack_rows(rows, keep, again=False):
        clean = torch.from_numpy(np.array(X[rows]))
        x = clean.to(device, victim.dtype)
        y_batch = None if index is None else torch.from_numpy(index[rows]).to(device)
        z, found = restrict_targets(attack, rows).perturb(
            victim, x, y_batch, bounds=bounds, seed=seed, keep=keep, return_info=True
        )
        for name, values in found.items():
            values = values.cpu().numpy()
            if name not in info:
                info[name] = np.zeros((len(X), *values.shape[1:]), dtype=values.dtype)
            # what is counted goes on being counted when a sample is attacked again
            info[name][rows] = values + (again and name.startswith("n_")) * info[name][rows]
        exact = z.cpu()
        if victim.dtype != clean.dtype:
            exact = clean + (z - x).cpu().to(clean.dtype)
        return z, settle(exact, clean, norm, eps, lower, upper)

    def attack_batch(part):
        rows = np.arange(part.start, part.stop)
        z, settled = attack_rows(rows, keep)
        judged = keep == "first" or (keep == "worst" and victim.is_rough)
        # asking again would cost more than was allowed
        if judged and not attack._asks_only:
            again = prediction_changed(victim, z, settled).numpy()
            if again.any():
                with victim.precise():
                    settled[again] = attack_rows(rows[again], "worst", again=True)[1]
        result[part] = settled.numpy()
        progress.update(len(rows))

    with progress, victim.frozen(attack.bn_mode, attack._engine()):
        batches.run(attack_batch, len(X))
    if shared is None:
        batches.warn()
    return (result, info) if return_info else result


def prediction_changed(victim, z, settled):
    """Return where rounding into the output dtype has taken an example back over the border.

    So may a model in full precision, where the attack has seen a rough one.
    """
    rounded = settled.to(z)
    changed = (rounded != z).flatten(1).any(1) | victim.is_rough
    if changed.any():
        with torch.no_grad():
            before = victim(z[changed])
            with victim.precise():
                after = victim(rounded[changed])
        changed[changed.clone()] = before.argmax(1) != after.argmax(1)
    return changed.cpu()
