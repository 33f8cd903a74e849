"""How robust is it, and how sure is that."""

from ._scores import (
    AdversarialOutcome,
    RobustAccuracy,
    adversarial_outcome,
    attack_success_rate,
    clopper_pearson_interval,
    robust_accuracy,
    score_adversarial,
)
from ._selection import AdversarialScorer, MostRobust, make_adversarial_scorer

__all__ = [
    "AdversarialOutcome",
    "AdversarialScorer",
    "MostRobust",
    "RobustAccuracy",
    "adversarial_outcome",
    "attack_success_rate",
    "clopper_pearson_interval",
    "make_adversarial_scorer",
    "robust_accuracy",
    "score_adversarial",
]
