"""Attacks that ascend an objective by its gradient."""

from .base import BaseGradientAttack as BaseGradientAttack
