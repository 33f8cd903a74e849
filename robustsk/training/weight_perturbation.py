"""AWP: adversarial training against the worst weights nearby."""

from __future__ import annotations

from contextlib import contextmanager

import torch
from sklearn.base import BaseEstimator

from .._validation import check_count, check_length
from ._weights import put


class AWP(BaseEstimator):
    """Adversarial perturbation of the weights in every training step.

    The optimizer takes its step at ``w + v`` instead of `w`, where `v` makes the training loss
    large, ``max_v L(w + v)`` with ``||v_l|| <= gamma * ||w_l||`` for the tensor `l` of weights;
    `v` is taken away again afterwards. It flattens the loss in the space of weights, which
    narrows the gap between robustness on training and on test data. It goes with every defence,
    as ``TRADESClassifier(weight_perturbation=AWP(gamma=0.005, warmup=10))``.

    Parameters
    ----------
    gamma : float, default=0.01
        Size of the perturbation, relative to the norm of each tensor of weights. 0 leaves the
        training as it is.
    n_steps : int, default=1
        Steps of gradient ascent, each of relative size ``gamma / n_steps``.
    n_rounds : int, default=1
        How often adversarial examples and weights are perturbed in turn. From the second round
        on the examples are crafted anew against the perturbed weights.
    warmup : int, default=0
        Epochs without perturbation at the beginning.

    Notes
    -----
    What is ascended is the whole training loss of the defence, on the examples that it is going
    to be trained on. Vectors (biases, scale and shift of normalisations) are not perturbed, and
    neither are weights that are not trained. Running statistics of batch normalisation are
    collected at ``w + v`` in the step itself; the ascent leaves them alone. Weight decay and
    momentum see ``w + v``. One step costs one more forward and backward pass over the batch.
    A small network without batch normalisation may not get off the ground: if the loss stays at
    ``log(n_classes)``, give it a `warmup`, or its adversary one
    (:class:`~robustsk.training.EpsWarmup`).

    The article takes gamma = 0.01 for adversarial training and 0.005 for TRADES; the authors'
    code waits 10 epochs with the latter. `v` follows from the gradient directly, whereas the
    code there takes the difference of the weights before and after a step of gradient ascent.

    References
    ----------
    Wu, Xia and Wang (2020), "Adversarial weight perturbation helps robust generalization",
    Eqs. 6 to 10.

    Examples
    --------
    >>> from robustsk import PGDATClassifier
    >>> from robustsk.datasets import load_digits_images
    >>> from robustsk.training import AWP
    >>> X, y = load_digits_images(return_X_y=True)
    >>> clf = PGDATClassifier(
    ...     weight_perturbation=AWP(gamma=0.005), adversary__eps=0.1, max_epochs=8, random_state=0
    ... ).fit(X[:1000], y[:1000])
    >>> bool(clf.score_adversarial(X[1000:1200], y[1000:1200]) > 0.4)
    True
    """

    def __init__(self, gamma=0.01, n_steps=1, n_rounds=1, warmup=0):
        self.gamma = gamma
        self.n_steps = n_steps
        self.n_rounds = n_rounds
        self.warmup = warmup

    @contextmanager
    def applied(self, net, crafted):
        """Hold the weights perturbed for the duration of an optimisation step.

        Parameters
        ----------
        net : BaseDefense
            In the midst of training.
        crafted : Crafted
            The batch of the step.

        Yields
        ------
        Crafted
            The batch to train on: `crafted`, or with several rounds one that was crafted against
            the perturbed weights.

        Raises
        ------
        ValueError
            If a parameter is not valid.
        """
        self._check()
        if self.gamma == 0 or net.epoch < self.warmup:
            yield crafted
            return
        weights = [p for p in net.module_.parameters() if p.requires_grad and p.ndim > 1]
        origin = [p.detach().clone() for p in weights]
        try:
            for number in range(self.n_rounds):
                if number:
                    x, y = crafted.x, crafted.y
                    crafted = type(crafted)(x, net.craft(x, y), y, crafted.weight)
                for _ in range(self.n_steps):
                    self._ascend(net, crafted, weights, origin)
        except BaseException:
            put(weights, origin)
            raise
        perturbed = [p.detach().clone() for p in weights]
        try:
            yield crafted
        except FloatingPointError:
            # the estimator has put the last good weights in place; others are those of before
            for p, w, q in zip(weights, origin, perturbed, strict=True):
                if torch.equal(p, q):
                    put([p], [w])
            raise
        except BaseException:
            put(weights, origin)
            raise
        with torch.no_grad():
            for p, w, q in zip(weights, origin, perturbed, strict=True):
                # not p - v: without a step the weights are what they were, to the last bit
                p.copy_(w + (p - q))

    def _ascend(self, net, crafted, weights, origin):
        """Move the weights one step up the training loss, within reach of where they were."""
        buffers = [(b, b.clone()) for b in net.module_.buffers()]
        net._set_training(True)
        with torch.enable_grad():
            losses = net.infer(crafted)
            loss = net.get_loss(losses, crafted.y, X=crafted, training=True)
        gradients = torch.autograd.grad(loss, weights, allow_unused=True)
        # logits of the clean batch that were kept for the step belong to the old weights
        net._clean = None
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
            for p, w, g in zip(weights, origin, gradients, strict=True):
                if g is None:
                    continue
                radius = self.gamma * w.norm()
                # v grows by gamma * ||w|| * g / ||g||, each tensor by itself
                p += radius / self.n_steps * _unit(g)
                if self.n_steps * self.n_rounds > 1:
                    v = p - w
                    # back to ||v|| <= gamma * ||w||
                    p.copy_(w + v * (radius / _positive(v.norm())).clamp(max=1))

    def _check(self):
        check_length(self.gamma, "gamma")
        for name, least in (("n_steps", 1), ("n_rounds", 1), ("warmup", 0)):
            check_count(getattr(self, name), name, least)


def _unit(g):
    """Return the direction of a gradient; zero if it is zero."""
    # first to the size of 1: squares of what is very small are zero
    g = g / _positive(g.abs().max())
    return g / _positive(g.norm())


def _positive(value):
    return value.clamp_min(torch.finfo(value.dtype).tiny)
