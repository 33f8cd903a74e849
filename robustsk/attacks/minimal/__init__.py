"""Attacks that look for the closest adversarial example."""

from .base import BaseMinimalAttack as BaseMinimalAttack
