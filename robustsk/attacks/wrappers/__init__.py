"""Attacks that are made of other attacks."""

from .base import BaseWrapper as BaseWrapper
