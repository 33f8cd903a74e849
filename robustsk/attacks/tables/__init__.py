"""Attacks on tables: columns that hold numbers and columns that hold categories."""

from __future__ import annotations
