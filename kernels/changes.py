"""Counts changes of the settings that plans depend on, so that whoever keeps planned calls knows when they are out of date."""

from __future__ import annotations

count = 0


def note() -> None:
    """Notes that a setting has changed."""
    global count
    count += 1
