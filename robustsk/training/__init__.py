"""What wraps a training step or watches it."""

from .callbacks import AdversarialScoring, EpsWarmup

__all__ = ["AdversarialScoring", "EpsWarmup"]
