"""Points of least norm in the convex hull of the gradients of several tasks.

Everything works on a batch of small quadratic programs ``min_w w' Q w`` over the simplex, one per
row, each from its own Gram matrix alone; rows never mix. A penalty that is quadratic on the simplex
only changes `Q`.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F


def simplex_projection(v):
    """Return the closest point of the probability simplex.

    Parameters
    ----------
    v : torch.Tensor of shape (n, m)

    Returns
    -------
    torch.Tensor of shape (n, m)
        ``max(v - t, 0)``, where the threshold `t` makes it sum to 1: with `v` in descending order
        it is the largest of ``(v_1 + ... + v_k - 1) / k``.
    """
    if v.shape[1] == 1:
        return torch.ones_like(v)
    # all that matters lies within 1 of the largest, where there is precision
    v = v - v.amax(1, keepdim=True)
    count = torch.arange(1, v.shape[1] + 1, device=v.device)
    total = v.sort(1, descending=True).values.cumsum(1)
    return (v - ((total - 1) / count).amax(1, keepdim=True)).clamp_min(0)


def task_penalty(achieved, dtype=torch.float64):
    """Return the matrix of the task-oriented penalty.

    The squared distance of weights `w` in the simplex from those that are zero on all achieved
    tasks is ``w' R w`` with ``R = diag(a) + a a' / (m - s)``, `a` marking the `s` achieved ones of
    `m` tasks. With none achieved `R` is zero, with all achieved the identity.

    Parameters
    ----------
    achieved : torch.Tensor of bool of shape (n, m)
    dtype : torch.dtype, default=torch.float64

    Returns
    -------
    torch.Tensor of shape (n, m, m)
    """
    a = achieved.to(dtype)
    left = a.shape[1] - a.sum(1, keepdim=True)
    # 1 / left, and 0 where none is left; equal weights come of that
    scaled = a * (left.clamp(max=1) / left.clamp(min=1))
    # the two terms of Omega: of each achieved task, and of all of them together
    return torch.diag_embed(a) + scaled.unsqueeze(2) * a.unsqueeze(1)


def softmax_descent(Q, alpha, n_steps, lr, entropy=None):
    """Descend ``w' Q w`` in the logarithms of the weights, ``w = softmax(alpha)``.

    Parameters
    ----------
    Q : torch.Tensor of shape (n, m, m)
    alpha : torch.Tensor of shape (n, m)
        Where to start.
    n_steps : int
    lr : float
        Length of a step: the gradient with respect to `alpha` is multiplied by it.
    entropy : torch.Tensor of shape (n, m), default=None
        Adds ``sum_i entropy_i w_i log(w_i)`` to what is descended.

    Returns
    -------
    weights, alpha : torch.Tensor of shape (n, m)
    """
    # tasks first, a multiple of 32 rows last: arithmetic then runs along the rows, which is much
    # faster for few tasks, and in the same way for each row of a batch of any size
    n = len(alpha)
    pad = (0, -n % 32)
    doubled = F.pad((Q * (2 * lr)).permute(1, 2, 0), pad).contiguous()
    alpha = F.pad(alpha.T, pad).contiguous()
    if entropy is not None:
        entropy = F.pad(entropy.T, pad)
    for _ in range(n_steps):
        w = torch.softmax(alpha, 0)
        slope = (doubled * w).sum(1)
        if entropy is not None:
            slope.addcmul_(entropy, torch.log_softmax(alpha, 0) + 1, value=lr)
        # w * (slope - w . slope) in one operation
        alpha -= torch.ops.aten._softmax_backward_data(slope, w, 0, w.dtype)
    return torch.softmax(alpha, 0).T[:n], alpha.T[:n]


def kkt_gap(Q, w):
    """Return how far weights are from optimal, relative to the shortest gradient.

    Parameters
    ----------
    Q : torch.Tensor of shape (n, m, m)
    w : torch.Tensor of shape (n, m)
        In the simplex.

    Returns
    -------
    torch.Tensor of shape (n,)
        ``(w' Q w - min_i (Q w)_i) / min_i Q_ii``, computed in float64. Zero at the minimum and
        nowhere else; ``w' Q w`` exceeds its minimum by no more than twice as much.
    """
    return _gap(_scaled(Q), w.double())


def two_tasks(Q):
    """Return the minimum of ``w' Q w`` for two tasks, by its closed form.

    Parameters
    ----------
    Q : torch.Tensor of shape (n, 2, 2)

    Returns
    -------
    torch.Tensor of shape (n, 2)
        In the dtype of `Q`. Equal weights where all weights are as good.
    """
    scaled = _scaled(Q)
    first = _share(scaled[:, 0, 0], scaled[:, 0, 1], scaled[:, 1, 1])
    return torch.stack([first, 1 - first], 1).to(Q.dtype)


def frank_wolfe(Q, n_iter=250, tol=1e-6):
    """Minimise ``w' Q w`` over the simplex by Frank-Wolfe steps with exact line search.

    Starts at the best mixture of two tasks. Convergence is slow where more than two tasks matter,
    so that it may end before the minimum, far from it where lengths differ by orders of magnitude.

    Parameters
    ----------
    Q : torch.Tensor of shape (n, m, m)
    n_iter : int, default=250
    tol : float, default=1e-6
        A row is finished when its weights change by less, in the sum of absolute values.

    Returns
    -------
    torch.Tensor of shape (n, m)
        In the dtype of `Q`.

    References
    ----------
    Sener and Koltun (2018), "Multi-task learning as multi-objective optimization", NeurIPS,
    Algorithm 2.
    """
    scaled = _scaled(Q)
    w = _best_pair(scaled)
    open_ = torch.ones(len(w), 1, dtype=torch.bool, device=w.device)
    for i in range(n_iter):
        slope = _times(scaled, w)
        # Algorithm 2: the vertex that is steepest downhill, then the best point on the way to it
        vertex = _one_hot(slope.argmin(1), w.shape[1])
        value, cross = (w * slope).sum(1), (vertex * slope).sum(1)
        corner = (vertex * scaled.diagonal(dim1=1, dim2=2)).sum(1)
        # a row with nothing to gain stays where it is
        keep = torch.where(cross < value, _share(value, cross, corner), 1.0).unsqueeze(1)
        # a finished row stays as well
        new = torch.where(open_, keep * w + (1 - keep) * vertex, w)
        open_ = open_ & ((new - w).abs().sum(1, keepdim=True) >= tol)
        w = new
        if i % 10 == 9 and not open_.any():
            break
    return w.to(Q.dtype)


def projected_gradient(Q, n_iter=100, tol=1e-8):
    """Minimise ``w' Q w`` over the simplex by accelerated projected gradient steps.

    Where the lengths of gradients differ by orders of magnitude no number of steps is enough:
    rows that are not there after `n_iter` are left to :func:`active_set`.

    Parameters
    ----------
    Q : torch.Tensor of shape (n, m, m)
    n_iter : int, default=100
    tol : float, default=1e-8
        A row is finished when its :func:`kkt_gap` is smaller.

    Returns
    -------
    torch.Tensor of shape (n, m)
        In the dtype of `Q`.
    """
    scaled = _scaled(Q)
    n, m = scaled.shape[:2]
    w = torch.full((n, m), 1 / m, dtype=scaled.dtype, device=scaled.device)
    ahead, speed = w, torch.ones(n, 1).to(w)
    step = 1 / _curvature(scaled)
    open_ = torch.ones(n, dtype=torch.bool, device=w.device)
    for i in range(n_iter):
        stepped = _accelerated(w, ahead, speed, _times(scaled, ahead), step)
        # a finished row stays where it is, however long the others in its batch take
        w, ahead, speed = (
            torch.where(open_.unsqueeze(1), new, last)
            for new, last in zip(stepped, (w, ahead, speed), strict=True)
        )
        if i % 10 == 9:
            open_ = open_ & (_gap(scaled, w) > tol)
            if not open_.any():
                return w.to(Q.dtype)
    w[open_] = active_set(scaled[open_], tol)
    return w.to(Q.dtype)


def active_set(Q, tol=1e-8):
    """Minimise ``w' Q w`` over the simplex exactly, by Wolfe's method.

    Starts at the shortest gradient. A task along whose gradient the present point is too short
    joins; then the point moves to the one of least norm in the affine hull of the tasks it is made
    of, and a task whose weight would turn negative on the way leaves. The weights of all others
    are exactly 0. It takes about as many solutions of linear equations as there are tasks.

    Parameters
    ----------
    Q : torch.Tensor of shape (n, m, m)
    tol : float, default=1e-8
        A row is finished when its :func:`kkt_gap` is smaller, or rounding hides what is left.

    Returns
    -------
    torch.Tensor of shape (n, m)
        In the dtype of `Q`.

    References
    ----------
    Wolfe (1976), "Finding the nearest point in a polytope", Mathematical Programming 11.
    """
    scaled = _scaled(Q)
    m = scaled.shape[1]
    squared = scaled.diagonal(dim1=1, dim2=2)
    shortest = squared.amin(1)
    w = _one_hot(squared.argmin(1), m)
    inside = w > 0
    best = torch.full_like(shortest, torch.inf)
    settled = torch.ones_like(shortest, dtype=torch.bool)
    open_ = settled.clone()
    for _ in range(20 * m):
        # a task joins where the point is the best of its affine hull
        slope = _times(scaled, w)
        value = (w * slope).sum(1)
        least, joins = slope.min(1)
        improving = (value - least > tol * shortest) & (value < best)
        open_ = open_ & (improving | ~settled)
        if not open_.any():
            break
        best = torch.where(settled, value, best)
        inside = inside | ((open_ & settled).unsqueeze(1) & (_one_hot(joins, m) > 0))
        point = _affine_minimum(scaled, inside)
        open_ = open_ & point.isfinite().all(1)
        # as far as the weights stay positive
        out = inside & (point <= 0)
        reach = torch.where(out, w / (w - point), 1.0)
        share = reach.amin(1, keepdim=True)
        moved = torch.where(out & (reach <= share), 0.0, w + share * (point - w)).clamp_min(0)
        w = torch.where(open_.unsqueeze(1), moved, w)
        inside = inside & (w > 0)
        settled = ~out.any(1)
    return (w / w.sum(1, keepdim=True)).to(Q.dtype)


def _affine_minimum(Q, inside):
    """Return the point of least norm in the affine hull of some tasks, others having weight 0."""
    part = inside.to(Q.dtype)
    squared = Q.diagonal(dim1=1, dim2=2)
    # adding the same to all entries moves the minimum nowhere and makes it unique
    shift = torch.where(inside, squared, torch.inf).amin(1).view(-1, 1, 1)
    length = torch.where(inside, (squared + shift[:, :, 0]).sqrt(), 1.0).clamp_min(1e-150)
    unit = part / length
    system = (Q + shift) * unit.unsqueeze(2) * unit.unsqueeze(1) + torch.diag_embed(1 - part)
    point = torch.linalg.solve_ex(system, unit)[0] * unit
    return point / point.sum(1, keepdim=True)


def conflict_averse(Q, alpha, n_steps):
    """Minimise ``g_w . g_0 + c * |g_w|`` over the simplex, ``c = alpha * |g_0|``.

    `g_0` is the mean gradient and ``g_w = sum_i w_i g_i``. A norm is no larger than
    ``(|g_w|^2 / t + t) / 2``, with equality where `t` is the norm itself: each step is an
    accelerated projected gradient step on that bound, which is quadratic. Where the gradients
    differ in length by more than ten times, such steps hardly move: what has not converged after
    `n_steps` of them is solved by Newton's method.

    Parameters
    ----------
    Q : torch.Tensor of shape (n, m, m)
    alpha : float
    n_steps : int

    Returns
    -------
    weights : torch.Tensor of shape (n, m)
    ratio : torch.Tensor of shape (n, 1)
        ``c / |g_w|``. Both in the dtype of `Q`. 1e-8 of the largest squared norm is added to
        ``|g_w|^2``, here and in what is minimised.
    """
    scaled = _scaled(Q)
    towards_mean = scaled.mean(2)
    c = alpha * towards_mean.mean(1, keepdim=True).clamp_min(0).sqrt()
    w = ahead = torch.full_like(towards_mean, 1 / Q.shape[1])
    speed = torch.ones_like(c)
    step = 1 / (c * _curvature(scaled)).clamp_min(1e-30)
    for _ in range(n_steps):
        along = _times(scaled, ahead)
        slope = _length(ahead, along) * towards_mean + c * along
        w, ahead, speed = _accelerated(w, ahead, speed, slope, step)
    open_ = (_averse_gap(scaled, c, w) > 1e-6 * towards_mean.mean(1)) & (c[:, 0] > 0)
    left = open_.nonzero()[:, 0]
    if len(left):
        w[left] = _through_the_inside(scaled[left], c[left], w[left])
    return w.to(Q.dtype), (c / _length(w, _times(scaled, w))).to(Q.dtype)


def _averse_gap(Q, c, w):
    """Return by how much the value may be above the minimum, at most; shape (n,)."""
    along = _times(Q, w)
    slope = Q.mean(2) + c / _length(w, along) * along
    return (w * slope).sum(1) - slope.amin(1)


def _through_the_inside(Q, c, w, n_steps=100):
    """Minimise ``g_w . g_0 + c * t`` where ``|g_w| <= t``, by damped Newton steps.

    A barrier keeps the weights positive and `t` above the norm. It is lowered whenever a step is
    nearly a full one. The gap of the weights returned is no larger than that of `w`.
    """
    mean = Q.mean(2)
    least = _averse_gap(Q, c, w).unsqueeze(1)
    best, scale = w, mean.mean(1, keepdim=True).clamp_min(1e-30)
    w = torch.full_like(w, 1 / Q.shape[1])
    t = 2 * _length(w, _times(Q, w))
    height = mean.abs().amax(1, keepdim=True) + c
    kept = torch.cat([torch.ones_like(w), torch.zeros_like(t)], 1)  # the sum of the weights
    for _ in range(n_steps):
        gap = _averse_gap(Q, c, w).unsqueeze(1)
        best, least = torch.where(gap < least, w, best), torch.minimum(gap, least)
        if (least <= 1e-9 * scale).all():
            break
        along = _times(Q, w)
        room = t * t - _length(w, along) ** 2
        slope = torch.cat([mean, c], 1) / height
        wall = torch.cat([2 * along, -2 * t], 1) / room
        inverse = torch.cat([1 / w, torch.zeros_like(t)], 1)
        curved = F.pad(2 * Q / room.unsqueeze(2), (0, 1, 0, 1))
        curved[:, -1:, -1] = -2 / room
        curved = curved + wall.unsqueeze(2) * wall.unsqueeze(1) + torch.diag_embed(inverse**2)
        slope = slope + wall - inverse
        # in units of the weights, which differ by many orders of magnitude
        unit = torch.cat([w, t], 1)
        system = curved * unit.unsqueeze(2) * unit.unsqueeze(1)
        sides = torch.stack([-slope * unit, kept * unit], 2)
        down, across = (torch.linalg.solve_ex(system, sides)[0] * unit.unsqueeze(2)).unbind(2)
        share = (kept * down).sum(1, keepdim=True) / (kept * across).sum(1, keepdim=True)
        move = down - share * across
        move = torch.where(move.isfinite().all(1, keepdim=True), move, 0.0)
        decrement = (-(slope * move).sum(1, keepdim=True)).clamp_min(0).sqrt()
        move = move / torch.where(decrement > 0.25, 1 + decrement, 1.0)
        w, t = w + move[:, :-1], t + move[:, -1:]
        w = w / w.sum(1, keepdim=True)
        height = torch.where(decrement < 0.5, 0.05 * height, height)
    return best


def _length(w, along):
    return ((w * along).sum(1, keepdim=True).clamp_min(0) + 1e-8).sqrt()


def _curvature(Q):
    """Return a bound on the curvature of ``w' Q w / 2`` along the simplex, shape (n, 1)."""
    # what gradients have in common does not curve it along the simplex
    mean = Q.mean(2, keepdim=True)
    centred = Q - mean - mean.mT + mean.mean(1, keepdim=True)
    # no eigenvalue is larger than the largest sum of absolute values along a row
    return centred.abs().sum(2).amax(1, keepdim=True).clamp_min(1e-12)


def _accelerated(w, ahead, speed, slope, step):
    """Return `w`, the point ahead of it and the momentum after a step from `ahead`."""
    new = simplex_projection(ahead - step * slope)
    faster = (1 + (1 + 4 * speed**2).sqrt()) / 2
    # momentum is lost where it points uphill
    uphill = (slope * (new - w)).sum(1, keepdim=True) > 0
    ahead = new + torch.where(uphill, 0.0, (speed - 1) / faster) * (new - w)
    return new, ahead, torch.where(uphill, 1.0, faster)


def _scaled(Q):
    """Return `Q` in float64, its largest diagonal entry 1 (or 0)."""
    Q = Q.double()
    largest = Q.diagonal(dim1=1, dim2=2).amax(1)
    return Q / torch.where(largest > 0, largest, 1.0).view(-1, 1, 1)


def _times(Q, w):
    return torch.bmm(Q, w.unsqueeze(2)).squeeze(2)


def _gap(Q, w):
    slope = _times(Q, w)
    gap = ((w * slope).sum(1) - slope.amin(1)).clamp_min(0)
    return gap / Q.diagonal(dim1=1, dim2=2).amin(1).clamp_min(1e-30)


def _one_hot(index, m):
    return F.one_hot(index, m).double()


def _share(a, b, c):
    """Return the share of the first of two points, squared norms `a`, `c`, inner product `b`."""
    length = a + c - 2 * b
    share = ((c - b) / torch.where(length > 0, length, 1.0)).clamp(0, 1)
    return torch.where(length > 0, share, 0.5)


def _best_pair(Q):
    """Return the best mixture of two tasks, shape (n, m)."""
    m = Q.shape[1]
    i, j = torch.triu_indices(m, m, offset=1, device=Q.device)
    a, b, c = Q[:, i, i], Q[:, i, j], Q[:, j, j]
    t = _share(a, b, c)
    best = (t * t * a + 2 * t * (1 - t) * b + (1 - t) ** 2 * c).argmin(1)
    t = t.gather(1, best.unsqueeze(1))
    return t * _one_hot(i[best], m) + (1 - t) * _one_hot(j[best], m)
