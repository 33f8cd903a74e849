"""Attacks with several tasks at once."""

from .base import BaseMultiObjectiveAttack as BaseMultiObjectiveAttack
