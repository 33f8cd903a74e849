"""How much each task counts in one step of a multi-objective attack.

A weighting looks at the values, the gradients' inner products and the achieved goals of `m` tasks
and returns how the gradients are to be added up, row by row: no row ever influences another. Its
hyperparameters are those of a scikit-learn estimator; what it remembers from one step to the next
is a dictionary of tensors that the attack keeps.
"""

from __future__ import annotations

import numbers
from abc import abstractmethod

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator

from ..._validation import check_choice, check_count, check_length
from ._simplex import (
    active_set,
    conflict_averse,
    frank_wolfe,
    projected_gradient,
    simplex_projection,
    softmax_descent,
    task_penalty,
    two_tasks,
)

#: Solvers of the minimum-norm problem that do not depend on where they start.
SOLVERS = {
    "projected": projected_gradient,
    "active-set": active_set,
    "frank-wolfe": frank_wolfe,
    "closed": two_tasks,
}


class Weighting(BaseEstimator):
    """Base class of all weightings: two methods, and whether inner products are needed."""

    #: Whether `weigh` needs the inner products of the gradients.
    needs_gram = False
    #: Whether the objectives must be positive.
    positive = False

    def start(self, n: int, m: int, like: torch.Tensor) -> dict[str, torch.Tensor]:
        """Check the hyperparameters and return what is to be remembered.

        Parameters
        ----------
        n : int
            Number of rows.
        m : int
            Number of tasks.
        like : torch.Tensor
            Gives dtype and device.

        Returns
        -------
        dict of str to torch.Tensor of shape (n, ...)
            Any of its rows may be selected between two calls of `weigh`.
        """
        return {}

    @abstractmethod
    def weigh(self, state, values, gram, achieved, draw):
        """Return the weights of the tasks' gradients in this step.

        Parameters
        ----------
        state : dict of str to torch.Tensor
            As returned by `start` or by the last call.
        values : torch.Tensor of shape (n, m)
            The objectives, which are to be ascended.
        gram : torch.Tensor of shape (n, m, m) or None
            Inner products of their gradients; needed where `needs_gram` is true.
        achieved : torch.Tensor of bool of shape (n, m)
            Which tasks have reached their goals.
        draw : callable
            ``draw(k)`` returns fresh random numbers, uniform in [0, 1), of shape (n, k).

        Returns
        -------
        weights : torch.Tensor of shape (n, m)
            The step goes along ``sum_i weights[:, i] * gradient_i``.
        state : dict of str to torch.Tensor
        """


class UniformWeighting(Weighting):
    """All tasks count the same: the gradient of the mean of the objectives.

    Examples
    --------
    >>> import torch
    >>> from robustsk.attacks import UniformWeighting
    >>> values = torch.tensor([[2.0, 1.0, 3.0, 2.5]])
    >>> weights, _ = UniformWeighting().weigh({}, values, None, values > 2, None)
    >>> weights
    tensor([[0.2500, 0.2500, 0.2500, 0.2500]])
    """

    def weigh(self, state, values, gram, achieved, draw):
        """Return ``1 / m`` for each task; see :meth:`Weighting.weigh`."""
        return torch.full_like(values, 1 / values.shape[1]), state


class MGDA(Weighting):
    """Multiple gradient descent: the point of least norm in the gradients' convex hull.

    ``w = argmin w' Q w`` over the simplex, `Q` the inner products of the gradients `g_i`. To first
    order no task loses along ``g = sum_i w_i g_i``, for ``g . g_i >= |g|^2``. The weight goes to
    where gradients are short: a task that is already won and hardly changes any more may dominate
    the step (:class:`TaskOriented` is the remedy).

    Parameters
    ----------
    solver : {"softmax", "projected", "active-set", "frank-wolfe", "closed"}, default="softmax"
        "softmax" takes `n_steps` steps of gradient descent in the logarithms of the weights,
        starting where the step before left them. It is cheap and approximate, far from the minimum
        where squared norms differ by orders of magnitude or are small beside ``1 / lr``. The
        others compute the minimum afresh, in float64: projected gradient, the active-set method it
        is finished by, Frank-Wolfe, and the closed form for two tasks.
    n_steps : int, default=10
        Steps of the softmax solver each time; 0 leaves the weights as they are.
    lr : float, default=0.005
        Their length.
    initial : sequence of m positive floats, default=None
        Weights the softmax solver starts from. None means equal ones.
    uniform_reg : float, default=0.0
        Adds ``uniform_reg * |w - 1/m|^2`` to what is minimised.

    References
    ----------
    Désidéri (2012), "Multiple-gradient descent algorithm (MGDA) for multiobjective optimization",
    Comptes Rendus Mathématique 350. Bui, Le, Zhao, Tran, Montague and Phung (2023), "Generating
    adversarial examples with task oriented multi-objective optimization", TMLR, Eq. 2.

    Examples
    --------
    >>> import torch
    >>> from robustsk.attacks import MGDA
    >>> gram = torch.tensor([[[1.0, 0.0], [0.0, 4.0]]])  # orthogonal gradients of lengths 1 and 2
    >>> mgda = MGDA(solver="closed")
    >>> values, achieved = torch.ones(1, 2), torch.zeros(1, 2, dtype=bool)
    >>> weights, _ = mgda.weigh(mgda.start(1, 2, values), values, gram, achieved, None)
    >>> weights
    tensor([[0.8000, 0.2000]])
    """

    needs_gram = True

    def __init__(
        self,
        solver: str = "softmax",
        n_steps: int = 10,
        lr: float = 0.005,
        initial: ArrayLike | None = None,
        uniform_reg: float = 0.0,
    ):
        self.solver = solver
        self.n_steps = n_steps
        self.lr = lr
        self.initial = initial
        self.uniform_reg = uniform_reg

    def start(self, n, m, like):
        """Return the logarithms of the first weights; see :meth:`Weighting.start`."""
        self._check(m)
        if self.solver != "softmax":
            return {}
        alpha = like.new_zeros(n, m)
        if self.initial is not None:
            alpha += torch.as_tensor(np.log(self.initial)).to(alpha)
        return {"alpha": alpha}

    def _check(self, m):
        check_choice(self.solver, "solver", ("softmax", *SOLVERS))
        check_count(self.n_steps, "n_steps", least=0)
        check_length(self.lr, "lr")
        check_length(self.uniform_reg, "uniform_reg")
        if self.solver == "closed" and m > 2:
            raise ValueError(
                f"solver='closed' is for two tasks and there are {m}: use 'softmax', or "
                "'projected' for the exact minimum."
            )
        if self.initial is None:
            return
        if self.solver != "softmax":
            raise ValueError(
                f"initial is where solver='softmax' starts; solver={self.solver!r} computes the "
                "minimum wherever it starts. Leave initial out."
            )
        initial = np.asarray(self.initial, dtype=float)
        if initial.shape != (m,):
            raise ValueError(
                f"initial must hold one weight for each of the {m} tasks, got "
                f"{initial.tolist() if initial.ndim else self.initial!r}."
            )
        if not (np.isfinite(initial).all() and (initial > 0).all()):
            raise ValueError(
                f"initial must hold positive numbers, got {initial.tolist()}: a weight that starts "
                "at 0 stays there."
            )

    @torch.no_grad()
    def weigh(self, state, values, gram, achieved, draw):
        """Return weights in the simplex; see :meth:`Weighting.weigh`."""
        if values.shape[1] == 1:
            return torch.ones_like(values), state
        if self.solver == "softmax":
            # Eq. 2 or 3, by the descent of Algorithm 1
            weights, alpha = softmax_descent(
                self._quadratic(gram, achieved),
                state["alpha"],
                self.n_steps,
                self.lr,
                self._entropy(gram, achieved),
            )
            return weights, {"alpha": alpha}
        solver = SOLVERS[self.solver]
        return solver(self._quadratic(gram.double(), achieved)).to(gram.dtype), state

    def _quadratic(self, gram, achieved):
        if self.uniform_reg:
            # on the simplex the squared distance from 1/m is that from 0, less a constant
            eye = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
            gram = gram + self.uniform_reg * eye
        return gram

    def _entropy(self, gram, achieved):
        return None


class TaskOriented(MGDA):
    """Task-oriented weighting (TA-MOO): least norm, with little weight on what is achieved.

    ``w = argmin w' Q w + lam * Omega(w)`` over the simplex, where `Omega` is the squared distance
    of `w` from the weights that are zero on all achieved tasks. With `s` of `m` tasks achieved::

        Omega(w) = sum_{achieved} w_i^2 + (sum_{achieved} w_i)^2 / (m - s)

    It is 0 where none is achieved, and the first term alone where all are, which draws the
    weights together and keeps what has been achieved. Since `Omega` is quadratic, so is the
    problem, and each solver of :class:`MGDA` does; ``lam=0`` is :class:`MGDA`.

    Parameters
    ----------
    lam : float, default=100.0
        Weight of the penalty, in units of squared gradient norms.
    solver : {"softmax", "projected", "active-set", "frank-wolfe", "closed"}, default="softmax"
        As in :class:`MGDA`.
    n_steps : int, default=10
        Steps of the softmax solver each time; 0 leaves the weights as they are.
    lr : float, default=0.005
        Their length.
    initial : sequence of m positive floats, default=None
        Weights the softmax solver starts from. None means equal ones.
    entropy_reg : float, default=0.0
        Subtracts ``entropy_reg * H`` from what is minimised, `H` being the entropy
        ``-sum w_i log(w_i)`` over tasks not achieved: it balances them. Softmax solver only.
    uniform_reg : float, default=0.0
        Adds ``uniform_reg * |w - 1/m|^2`` to what is minimised.

    References
    ----------
    Bui, Le, Zhao, Tran, Montague and Phung (2023), "Generating adversarial examples with task
    oriented multi-objective optimization", TMLR, Eqs. 3 and 6 and Algorithm 1.

    Examples
    --------
    >>> import torch
    >>> from robustsk.attacks import TaskOriented
    >>> gram = torch.tensor([[[1.0, 0.0], [0.0, 4.0]]])
    >>> values, achieved = torch.ones(1, 2), torch.tensor([[True, False]])
    >>> for lam in (0.0, 2.5, 1e6):
    ...     weighting = TaskOriented(lam, solver="closed")
    ...     state = weighting.start(1, 2, values)
    ...     print(weighting.weigh(state, values, gram, achieved, None)[0])
    tensor([[0.8000, 0.2000]])
    tensor([[0.4000, 0.6000]])
    tensor([[2.0000e-06, 1.0000e+00]])
    """

    def __init__(
        self,
        lam: float = 100.0,
        solver: str = "softmax",
        n_steps: int = 10,
        lr: float = 0.005,
        initial: ArrayLike | None = None,
        entropy_reg: float = 0.0,
        uniform_reg: float = 0.0,
    ):
        super().__init__(solver, n_steps, lr, initial, uniform_reg)
        self.lam = lam
        self.entropy_reg = entropy_reg

    def _check(self, m):
        super()._check(m)
        check_length(self.lam, "lam")
        if check_length(self.entropy_reg, "entropy_reg") and self.solver != "softmax":
            raise ValueError(
                f"entropy_reg={self.entropy_reg!r} needs solver='softmax': entropy is not "
                f"quadratic, and solver={self.solver!r} minimises quadratic functions only."
            )

    def _quadratic(self, gram, achieved):
        Q = super()._quadratic(gram, achieved)
        if self.lam:
            # Eq. 3, for Omega(w) = w' R w
            Q = torch.add(Q, task_penalty(achieved, Q.dtype), alpha=self.lam)
        return Q

    def _entropy(self, gram, achieved):
        # with all tasks achieved nothing is left of it
        return self.entropy_reg * (~achieved).to(gram.dtype) if self.entropy_reg else None


class MinMax(Weighting):
    """Weights that move towards the tasks of least value, by descent against the attack.

    The attack ascends and the weights descend ``sum_i w_i f_i + gamma/2 * |w - 1/m|^2``: each time,
    the weights of the next step are the projection of ``w - lr * (f + gamma * (w - 1/m))`` on the
    simplex. The first ones are equal.

    Parameters
    ----------
    gamma : float, default=3.0
        How firmly weights are held together: ``gamma=0`` is for the worst task alone, a large
        value for equal weights.
    lr : float, default=0.025
        Length of the steps of the weights; ``lr * gamma`` of 2 or more would make them swing ever
        further.

    References
    ----------
    Wang et al. (2021), "Adversarial attack generation empowered by min-max optimization", NeurIPS,
    Algorithm 1.

    Examples
    --------
    >>> import torch
    >>> from robustsk.attacks import MinMax
    >>> values = torch.tensor([[2.0, 1.0, 3.0, 2.5]])
    >>> minmax = MinMax()
    >>> state = minmax.start(1, 4, values)
    >>> for _ in range(500):
    ...     weights, state = minmax.weigh(state, values, None, values > 2, None)
    >>> weights
    tensor([[0.2778, 0.6111, 0.0000, 0.1111]])
    """

    def __init__(self, gamma: float = 3.0, lr: float = 0.025):
        self.gamma = gamma
        self.lr = lr

    def start(self, n, m, like):
        """Return equal weights; see :meth:`Weighting.start`."""
        if check_length(self.gamma, "gamma") * check_length(self.lr, "lr") >= 2:
            raise ValueError(
                f"lr * gamma must be less than 2, got lr={self.lr!r} and gamma={self.gamma!r}: the "
                "weights would overshoot ever further. Lower lr, to 1 / gamma for instance."
            )
        return {"weights": like.new_full((n, m), 1 / m)}

    @torch.no_grad()
    def weigh(self, state, values, gram, achieved, draw):
        """Return the present weights and move them on; see :meth:`Weighting.weigh`."""
        w = state["weights"]
        slope = values + self.gamma * (w - 1 / values.shape[1])
        # Algorithm 1: projected gradient descent of the weights
        return w, {"weights": simplex_projection(w - self.lr * slope)}


class HyperVolume(Weighting):
    """Hypervolume maximisation: tasks near the worst of them count most.

    The gradient of ``sum_i log(f_i - nadir)`` with ``nadir = c * min_i f_i`` held fixed: weights
    proportional to ``1 / (f_i - nadir)``, here divided by their sum, which leaves the direction.

    Parameters
    ----------
    c : float in [0, 1), default=0.5
        Where the nadir lies, as a share of the least value.

    Notes
    -----
    It is meant for objectives that are positive, cross-entropy and the like. Values below 1e-6
    count as 1e-6, so that a task whose value is not positive gets nearly all of the weight, and
    several of them share it alike.

    References
    ----------
    Albuquerque et al. (2019), "Multi-objective training of generative adversarial networks with
    multiple discriminators", ICML.

    Examples
    --------
    >>> import torch
    >>> from robustsk.attacks import HyperVolume
    >>> values = torch.tensor([[1.0, 2.0]])
    >>> HyperVolume(c=0.5).weigh({}, values, None, values > 2, None)[0]
    tensor([[0.7500, 0.2500]])
    """

    positive = True

    def __init__(self, c: float = 0.5):
        self.c = c

    def start(self, n, m, like):
        """Check `c`; see :meth:`Weighting.start`."""
        if not isinstance(self.c, numbers.Real) or not 0 <= self.c < 1:
            raise ValueError(f"c must be at least 0 and less than 1, got {self.c!r}.")
        return {}

    @torch.no_grad()
    def weigh(self, state, values, gram, achieved, draw):
        """Return weights in the simplex; see :meth:`Weighting.weigh`."""
        values = values.clamp_min(1e-6)
        weights = 1 / (values - self.c * values.amin(1, keepdim=True))
        return weights / weights.sum(1, keepdim=True), state


class PCGrad(Weighting):
    """Gradient surgery: what conflicts with another task is projected away.

    From each gradient `g_i`, in random order of the other tasks `j`, its component along `g_j` is
    taken away where their inner product is negative; the results are averaged. All of them are
    linear combinations of the gradients, so their coefficients follow from the inner products.

    References
    ----------
    Yu et al. (2020), "Gradient surgery for multi-task learning", NeurIPS, Algorithm 1.

    Examples
    --------
    >>> import torch
    >>> from robustsk.attacks import PCGrad
    >>> gradients = torch.tensor([[[1.0, 0.0], [-1.0, 1.0]]])
    >>> gram = gradients @ gradients.mT
    >>> values, achieved = torch.ones(1, 2), torch.zeros(1, 2, dtype=bool)
    >>> draw = lambda k: torch.rand(1, k)
    >>> weights, _ = PCGrad().weigh({}, values, gram, achieved, draw)
    >>> weights @ gradients[0]
    tensor([[0.2500, 0.7500]])
    """

    needs_gram = True

    @torch.no_grad()
    def weigh(self, state, values, gram, achieved, draw):
        """Return weights that may sum to more than 1; see :meth:`Weighting.weigh`."""
        n, m = values.shape
        tasks = torch.arange(m, device=gram.device)
        order = draw(m * m).view(n, m, m).argsort(2)
        squared = gram.diagonal(dim1=1, dim2=2).unsqueeze(1).clamp_min(1e-30)
        # row i holds the coefficients of what has become of gradient i
        mix = torch.eye(m, dtype=gram.dtype, device=gram.device).expand(n, m, m)
        for k in range(m):
            other = order[:, :, k].unsqueeze(2) == tasks
            other &= tasks.unsqueeze(1) != tasks
            # Algorithm 1: g_i - (g_i . g_j) / ||g_j||^2 * g_j, where g_i . g_j < 0
            mix = mix - other * (torch.bmm(mix, gram).clamp_max(0) / squared)
        return mix.mean(1), state


class CAGrad(Weighting):
    """Conflict-averse gradient: the best for the worst task, not far from the mean gradient.

    Among all directions within ``alpha * |g_0|`` of the mean gradient `g_0`, the one along which
    the least of the tasks rises most. It is ``g_0 + c * g_w / |g_w|`` with ``g_w = sum_i w_i g_i``,
    ``c = alpha * |g_0|`` and `w` in the simplex minimising ``g_w . g_0 + c * |g_w|``; here it is
    divided by ``1 + alpha^2``.

    Parameters
    ----------
    alpha : float, default=0.5
        How far from the mean gradient; 0 is the mean gradient itself, and as it grows the
        direction becomes that of :class:`MGDA`.
    n_steps : int, default=50
        Accelerated projected gradient steps towards `w`. They are enough where the gradients are
        of similar length; samples for which they are not are solved by Newton's method, at
        some cost. It is a matter of speed only.

    References
    ----------
    Liu et al. (2021), "Conflict-averse gradient descent for multi-task learning", NeurIPS,
    Algorithm 1.

    Examples
    --------
    >>> import torch
    >>> from robustsk.attacks import CAGrad
    >>> gram = torch.tensor([[[1.0, 0.0], [0.0, 4.0]]])
    >>> values, achieved = torch.ones(1, 2), torch.zeros(1, 2, dtype=bool)
    >>> CAGrad(alpha=0.0).weigh({}, values, gram, achieved, None)[0]
    tensor([[0.5000, 0.5000]])
    """

    needs_gram = True

    def __init__(self, alpha: float = 0.5, n_steps: int = 50):
        self.alpha = alpha
        self.n_steps = n_steps

    def start(self, n, m, like):
        """Check the hyperparameters; see :meth:`Weighting.start`."""
        check_length(self.alpha, "alpha")
        check_count(self.n_steps, "n_steps")
        return {}

    @torch.no_grad()
    def weigh(self, state, values, gram, achieved, draw):
        """Return weights that need not sum to 1; see :meth:`Weighting.weigh`."""
        m = values.shape[1]
        if m == 1:
            return torch.ones_like(values), state
        w, ratio = conflict_averse(gram, self.alpha, self.n_steps)
        # Algorithm 1: g_0 + c / |g_w| * g_w
        return (1 / m + ratio * w) / (1 + self.alpha**2), state


_WEIGHTINGS = {
    "uniform": UniformWeighting,
    "moo": MGDA,
    "tamoo": TaskOriented,
    "minmax": MinMax,
    "hvm": HyperVolume,
    "pcgrad": PCGrad,
    "cagrad": CAGrad,
}


def resolve_weighting(weighting: str | Weighting) -> Weighting:
    """Return the weighting meant by a name or an instance.

    Parameters
    ----------
    weighting : str or Weighting
        One of "uniform", "moo" (:class:`MGDA`), "tamoo" (:class:`TaskOriented`), "minmax",
        "hvm" (:class:`HyperVolume`), "pcgrad" and "cagrad", with their default hyperparameters;
        or an instance with hyperparameters of its own.

    Returns
    -------
    Weighting

    Examples
    --------
    >>> from robustsk.attacks.multi_objective.weighting import MinMax, resolve_weighting
    >>> resolve_weighting("tamoo")
    TaskOriented()
    >>> resolve_weighting(MinMax(gamma=1.0))
    MinMax(gamma=1.0)
    """
    if isinstance(weighting, str):
        if weighting not in _WEIGHTINGS:
            raise ValueError(
                f"weighting={weighting!r} is unknown; use one of {sorted(_WEIGHTINGS)} or an "
                "instance such as TaskOriented(lam=10.0)."
            )
        return _WEIGHTINGS[weighting]()
    if isinstance(weighting, type) or not (
        hasattr(weighting, "start") and hasattr(weighting, "weigh")
    ):
        raise TypeError(
            f"weighting must be one of {sorted(_WEIGHTINGS)} or an instance such as "
            f"TaskOriented(lam=10.0), got {weighting!r}."
        )
    return weighting
