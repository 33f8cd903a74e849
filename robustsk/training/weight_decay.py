"""Weight decay on weights only."""

from __future__ import annotations

import torch


def decay_weights_only(
    params, base: type[torch.optim.Optimizer] = torch.optim.SGD, **options
) -> torch.optim.Optimizer:
    """Return an optimizer that decays no biases and no parameters of normalisations.

    It is given to an estimator in the place of an optimizer class. Every tensor with fewer than
    two axes goes into a parameter group without weight decay.

    Parameters
    ----------
    params : iterable of torch.Tensor, or of parameter groups
        As torch optimizers take it.
    base : torch optimizer class, default=torch.optim.SGD
        What to make, ``optimizer__base=torch.optim.AdamW`` for an estimator.
    **options
        Options of `base`, e.g. ``optimizer__weight_decay=5e-4``.

    Returns
    -------
    torch.optim.Optimizer

    Notes
    -----
    ``optimizer__param_groups`` of skorch goes by the names of parameters, and those do not tell a
    normalisation from a layer.

    Examples
    --------
    >>> import torch
    >>> from robustsk import PGDATClassifier
    >>> from robustsk.datasets import load_digits_images
    >>> from robustsk.training import decay_weights_only
    >>> X, y = load_digits_images(return_X_y=True)
    >>> clf = PGDATClassifier(
    ...     optimizer=decay_weights_only, optimizer__base=torch.optim.SGD,
    ...     optimizer__momentum=0.9, optimizer__weight_decay=5e-4, max_epochs=1, random_state=0,
    ... ).fit(X[:500], y[:500])
    >>> [group["weight_decay"] for group in clf.optimizer_.param_groups]
    [0.0005, 0.0]
    """
    params = list(params)
    groups = []
    for group in params if isinstance(params[0], dict) else [{"params": params}]:
        tensors = list(group["params"])
        for decays in (True, False):
            part = [p for p in tensors if (p.ndim > 1) is decays]
            if part:
                own = {} if decays else {"weight_decay": 0.0}
                groups.append({**group, "params": part, **own})
    return base(groups, **options)
