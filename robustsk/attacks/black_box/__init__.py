"""Attacks that only ask for scores or labels."""

from .base import BaseBlackBoxAttack as BaseBlackBoxAttack
