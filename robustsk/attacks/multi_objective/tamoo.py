"""Task-oriented multi-objective attack on several models at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...losses import ensemble_logits
from .base import BaseMultiObjectiveAttack, Seen, Tasks, joint_score


class TAMOO(BaseMultiObjectiveAttack):
    """Attack that fools all members of an ensemble with one example each.

    To fool a member is a task. In every step the gradients ``g_i`` of the
    members' objectives are combined with the weights ``w`` of the simplex that
    minimise ``||sum_i w_i g_i||**2 + lam * Omega(w)``. Without the second term
    the direction is that of multiple gradient descent, which raises all
    objectives but is dominated by the task whose gradient is smallest, often
    one that is achieved. `Omega`, the squared distance of `w` from the weights
    that vanish on the achieved tasks, turns the attack to the others.

    Parameters
    ----------
    estimator : fitted ensemble, list or dict of fitted estimators, or model, default=None
        An ensemble of this package, a soft `VotingClassifier`, or any models
        whose probabilities are averaged. The attack on a single model is
        :class:`PGD`. Estimators in a pipeline that will be cloned must be
        wrapped in `sklearn.frozen.FrozenEstimator`. With None, `fit` fits a
        standardised logistic regression as a surrogate.
    %(shared_parameters)s

    %(shared_attributes)s

    See Also
    --------
    UniversalTAMOO : One perturbation for many images.
    TransformTAMOO : One example that survives transformations.
    robustsk.metrics.joint_success_rates : How often all, some and each of the members err.

    Notes
    -----
    As the adversary of :class:`robustsk.ensembles.EnsembleAT` it makes TA-MOO-AT; with
    ``weighting="moo"`` or ``"minmax"`` MOO-AT and MinMax-AT.

    Of all iterates, `generate` returns one that fools the ensemble and among
    those one that fools most members. The weights of the last step are reported
    as ``info["weights"]``, shape (n_samples, n_members).

    The source takes 100 steps on CIFAR-10 and 20 on ImageNet, of a quarter of
    `eps`. Its margin objective is cut off at -50, which no logits reached here.
    It is not the exact minimum of the weights' objective that its solver finds;
    ``weighting=TaskOriented(solver="active-set")`` does.

    References
    ----------
    Bui, Le, Zhao, Tran, Montague and Phung (2023), "Generating adversarial
    examples with task oriented multi-objective optimization", TMLR, Eq. 3, 6
    and Algorithm 1; Désidéri (2012), "Multiple-gradient descent algorithm
    (MGDA) for multiobjective optimization".

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.neural_network import MLPClassifier
    >>> from robustsk import TAMOO
    >>> from robustsk.metrics import joint_success_rates
    >>> X, y = load_iris(return_X_y=True)
    >>> models = [
    ...     LogisticRegression(max_iter=1000).fit(X, y),
    ...     MLPClassifier(max_iter=2000, random_state=0).fit(X, y),
    ... ]
    >>> attack = TAMOO(models, eps=0.5, random_state=0).fit(X)
    >>> X_adv, info = attack.generate(X, y, return_info=True)
    >>> info["weights"].shape
    (150, 2)
    >>> rates = joint_success_rates(models, X, y, TAMOO(eps=0.5, random_state=0))
    >>> bool(rates.all > 0.3)
    True
    """

    def _tasks(self, batch):
        members = batch.victim.members()
        clean = None
        if batch.objective.needs_clean:
            with torch.no_grad():
                clean = [member(batch.x) for member in members]
            clean = torch.stack(clean, dim=1)
        return _Members(batch, batch.ball, batch.noise, len(members), members, clean)


@dataclass
class _Members(Tasks):
    """Several models that are to be fooled by the same point."""

    members: list | None = None
    clean: torch.Tensor | None = None

    def look(self, z, step, gradients=True):
        clean = None if self.clean is None else self.clean.unbind(1)
        logits, values, found = self.differentiate(z, self.members, clean, gradients)
        achieved = torch.stack([self.batch.fooled(out) for out in logits], dim=1)
        fooled = achieved[:, 0] if self.m == 1 else self.batch.fooled(ensemble_logits(logits))
        return Seen(values, achieved, joint_score(achieved, fooled), fooled, found)
