"""Costs of transporting a sample as Wasserstein distances count them, and plans of transport."""

from __future__ import annotations

import torch
from torch import Tensor

_INF = float("inf")


def transport_cost(delta: Tensor, norm: float = 2) -> Tensor:
    r"""Cost of moving each sample by a perturbation.

    Parameters
    ----------
    delta : Tensor of shape (n_samples, ...)
        Perturbations.
    norm : {1, 2, inf}, default=2
        The 1-norm, half the squared 2-norm, or the max-norm.

    Returns
    -------
    Tensor of shape (n_samples,)

    See Also
    --------
    transport_cost_gradient : Its gradient.
    smoothed_cost : Cheap in a ball and dear outside of it.

    References
    ----------
    .. [1] Bui, T. A., Le, T., Tran, Q. H., Zhao, H. and Phung, D. (2022). A unified Wasserstein
       distributional robustness framework for adversarial training. ICLR. Table 11.

    Examples
    --------
    >>> import torch
    >>> from robustsk.losses import transport_cost
    >>> delta = torch.tensor([[3.0, -4.0]])
    >>> [transport_cost(delta, norm).item() for norm in (1, 2, float("inf"))]
    [7.0, 12.5, 4.0]
    """
    flat = delta.flatten(1)
    if norm == 1:
        return flat.abs().sum(1)
    if norm == 2:
        return flat.square().sum(1) / 2
    if norm == _INF:
        return flat.abs().amax(1)
    raise ValueError(f"norm must be 1, 2 or inf, got {norm!r}.")


def transport_cost_gradient(delta: Tensor, norm: float = 2) -> Tensor:
    r"""Gradient of :func:`transport_cost` with respect to the perturbation.

    Parameters
    ----------
    delta : Tensor of shape (n_samples, ...)
        Perturbations.
    norm : {1, 2, inf}, default=2
        As in :func:`transport_cost`.

    Returns
    -------
    Tensor of the shape of `delta`
        ``sign(delta)`` for 1, `delta` for 2, and for inf the sign of the largest entry there and 0
        elsewhere; the first counts where several are largest.

    Examples
    --------
    >>> import torch
    >>> from robustsk.losses import transport_cost_gradient
    >>> transport_cost_gradient(torch.tensor([[3.0, -4.0]]), float("inf"))
    tensor([[ 0., -1.]])
    """
    if norm == 1:
        return delta.sign()
    if norm == 2:
        return delta.clone()
    if norm == _INF:
        flat = delta.flatten(1)
        # argmax alone may return any of several largest entries
        largest = flat.abs() == flat.abs().amax(1, keepdim=True)
        first = largest.long().cumsum(1) == 1
        return torch.where(largest & first, flat.sign(), 0.0).reshape(delta.shape)
    raise ValueError(f"norm must be 1, 2 or inf, got {norm!r}.")


def truncated_cost(cost: Tensor, eps: float) -> Tensor:
    r"""Cost that is infinite outside of a ball.

    Parameters
    ----------
    cost : Tensor
        E.g. of :func:`transport_cost`.
    eps : float
        Largest cost that is allowed.

    Returns
    -------
    Tensor of the shape of `cost`

    Notes
    -----
    The worst case over all distributions within a Wasserstein distance `eps` in this cost is the
    mean of the worst cases over the balls of radius `eps` around the samples: adversarial training
    is distributionally robust optimisation with it ([1]_, Theorem 1).

    References
    ----------
    .. [1] Bui, T. A., Le, T., Tran, Q. H., Zhao, H. and Phung, D. (2022). A unified Wasserstein
       distributional robustness framework for adversarial training. ICLR. Eq. 13.

    Examples
    --------
    >>> import torch
    >>> from robustsk.losses import truncated_cost
    >>> truncated_cost(torch.tensor([0.5, 1.0, 1.5]), eps=1.0)
    tensor([0.5000, 1.0000,    inf])
    """
    # Eq. 13
    return torch.where(cost <= eps, cost, _INF)


def smoothed_cost(cost: Tensor, eps: float, tau: float) -> Tensor:
    r"""Cost that rises with slope 1 in a ball and with slope ``1 / tau`` outside of it.

    Parameters
    ----------
    cost : Tensor
        E.g. of :func:`transport_cost`. The gradient flows to it.
    eps : float
        Where the ball ends.
    tau : float
        Greater than 0. 1 leaves the cost as it is; the smaller, the closer to
        :func:`truncated_cost`.

    Returns
    -------
    Tensor of the shape of `cost`

    Notes
    -----
    .. math:: \hat c = c \text{ for } c < \epsilon, \qquad
              \hat c = \epsilon + \frac{c - \epsilon}{\tau} \text{ otherwise}

    References
    ----------
    .. [1] Bui, T. A., Le, T., Tran, Q. H., Zhao, H. and Phung, D. (2022). A unified Wasserstein
       distributional robustness framework for adversarial training. ICLR. Eq. 16.

    Examples
    --------
    >>> import torch
    >>> from robustsk.losses import smoothed_cost
    >>> smoothed_cost(torch.tensor([0.5, 1.0, 1.5]), eps=1.0, tau=0.25)
    tensor([0.5000, 1.0000, 3.0000])
    """
    if not tau > 0:
        raise ValueError(f"tau must be greater than 0, got {tau!r}.")
    # Eq. 16
    return torch.where(cost < eps, cost, eps + (cost - eps) / tau)


def transport_plan(cost, reg=0.01, n_iter=100, tol=0.1, mass=None, mass_columns=None):
    """Return the plan of least cost and most entropy between two distributions.

    Minimises ``<T, cost> - reg * H(T)`` by Sinkhorn's iterations on logarithms.

    Parameters
    ----------
    cost : torch.Tensor of shape (n, m)
    reg : float, default=0.01
    n_iter : int, default=100
    tol : float, default=0.1
        The iterations end when the potentials of the rows change by less, in
        sum.
    mass : torch.Tensor of shape (n,), default=None
        Weights of rows and columns; None means 1. A weight of 2 does what a
        sample that is there twice would do.
    mass_columns : torch.Tensor of shape (m,), default=None
        Weights of the columns, of the same sum, where they are not those of the rows.

    Returns
    -------
    torch.Tensor of shape (n, m)
        Columns sum to their shares, 1/n without weights; rows do so once it has
        converged.
    """
    mass = cost.new_ones(len(cost)) if mass is None else mass.to(cost)
    other = mass if mass_columns is None else mass_columns.to(cost)
    share, share_columns = (torch.log(m / m.sum()) for m in (mass, other))
    # relative to the shares, where copies of a sample have the potential of the sample
    f, g = ((reg * torch.log(mass.sum())).expand(len(m)) for m in (mass, other))
    for _ in range(n_iter):
        before = f
        f = -reg * torch.logsumexp(share_columns[None, :] + (g[None, :] - cost) / reg, 1)
        g = -reg * torch.logsumexp(share[:, None] + (f[:, None] - cost) / reg, 0)
        if (mass * (f - before)).detach().abs().sum() < tol:
            break
    potentials = f[:, None] + g[None, :] - cost
    return torch.exp(share[:, None] + share_columns[None, :] + potentials / reg)
