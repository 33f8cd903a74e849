"""Which false class pushes a sample how hard."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.special import logsumexp
from sklearn.utils.validation import check_array, check_consistent_length, column_or_1d

from .._containers import to_array
from .._validation import encode_labels
from ..victims.resolve import as_victim
from ._craft import check_samples


def class_pair_shares(logits: ArrayLike, y: ArrayLike) -> np.ndarray:
    r"""Return the share of each false class in the gradient of the cross-entropy.

    The gradient with respect to the input is a sum over the false classes `j`
    of :math:`\sigma_j\, J^T (w_j - w_i)`, with the softmax :math:`\sigma` and
    the true class `i`. The share of class `j` is
    :math:`\pi_j = \sigma_j / (1 - \sigma_i)`.

    Parameters
    ----------
    logits : array-like of shape (n_samples, n_classes)
    y : array-like of shape (n_samples,)
        Indices of the true classes, from 0 to ``n_classes - 1``.

    Returns
    -------
    ndarray of shape (n_samples, n_classes)
        Rows sum to one; zero for the true class. Computed without a
        difference, so that a very sure model has shares as well.

    See Also
    --------
    class_pair_gradients : The terms themselves.

    References
    ----------
    Hou (2022), "Adversarial training for improving the robustness of deep
    neural networks", MSc thesis, University of Alberta, Sec. 3.3, Lemma 1
    (in its exact form, the line before the last step of the proof).

    Examples
    --------
    >>> import numpy as np
    >>> from robustsk.metrics import class_pair_shares
    >>> class_pair_shares(np.log([[0.6, 0.3, 0.1]]), [0]).round(2)
    array([[0.  , 0.75, 0.25]])
    """
    logits = check_array(to_array(logits), dtype=np.float64)
    y = column_or_1d(to_array(y))
    check_consistent_length(logits, y)
    n_classes = logits.shape[1]
    if n_classes < 2:
        raise ValueError("logits must have at least 2 columns, one per class.")
    if not np.isin(y, np.arange(n_classes)).all():
        raise ValueError(f"y must hold indices of classes, from 0 to {n_classes - 1}.")
    false = logits.copy()
    false[np.arange(len(y)), y.astype(int)] = -np.inf
    return np.exp(false - logsumexp(false, axis=1, keepdims=True))


def class_pair_gradients(
    estimator: Any, X: Any, y: ArrayLike, *, form: str = "exact"
) -> np.ndarray:
    r"""Split the input gradient of the cross-entropy into one part per false class.

    Parameters
    ----------
    estimator : fitted estimator or torch.nn.Module
        The model, which must have a gradient.
    X : array-like of shape (n_samples, ...)
        Samples.
    y : array-like of shape (n_samples,)
        True labels.
    form : {"exact", "oracle"}, default="exact"
        "exact" is :math:`\sigma_j\, J^T (w_j - w_i)`, whose sum over `j` is the
        gradient. "oracle" is the source's approximation
        :math:`\sigma_j\, J^T w_j`, which assumes :math:`\sigma_i = 1`; then,
        however, all other terms vanish with it, and it is far from the gradient
        (errors of 75 to 145 % have been measured). It is here for comparison.

    Returns
    -------
    ndarray of shape (n_samples, n_classes, ...)
        Parts of the gradient, zero for the true class. For a network that ends
        in a linear layer, differences of logits are what :math:`z^T (w_j - w_i)`
        and biases amount to, so that any differentiable model will do.

    See Also
    --------
    class_pair_shares : How large the parts are relative to each other.
    robustsk.inspection.HardClassPairAnalysis : What attacks make of it.

    References
    ----------
    Hou (2022), "Adversarial training for improving the robustness of deep
    neural networks", MSc thesis, University of Alberta, Eqs. 3.3 to 3.7.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from robustsk.metrics import class_pair_gradients
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = LogisticRegression(max_iter=1000).fit(X, y)
    >>> class_pair_gradients(clf, X[:5], y[:5]).shape
    (5, 3, 4)
    """
    if form not in ("exact", "oracle"):
        raise ValueError(f"form must be 'exact' or 'oracle', got {form!r}.")
    values, y_true = check_samples(X, y)
    victim = as_victim(estimator, attack="class_pair_gradients", access="gradients")
    index = torch.from_numpy(encode_labels(y_true, victim.learn_classes(values), "y"))
    x = torch.from_numpy(values).to(victim.device, victim.dtype)
    index = index.to(victim.device)
    with victim.frozen() as seen, torch.enable_grad():
        x.requires_grad_(True)
        logits = seen(x)
        sigma = logits.detach().softmax(1)
        true = logits.gather(1, index[:, None])
        scores = logits - true if form == "exact" else logits
        parts = []
        for j in range(logits.shape[1]):
            weight = sigma[:, j] * (index != j)
            (part,) = torch.autograd.grad((weight * scores[:, j]).sum(), x, retain_graph=True)
            parts.append(part)
    return torch.stack(parts, dim=1).cpu().numpy()
