"""Paths in environment variables."""

from __future__ import annotations

import os
from pathlib import Path


def path(*names: str) -> Path | None:
    """The absolute path, with `~` expanded, in the first of these variables that is not empty; None if all are unset or empty.

    Raises:
        RuntimeError: the home folder that `~` stands for is not known.
    """
    for name in names:
        if value := os.environ.get(name):
            try:
                return Path(value).expanduser().absolute()
            except RuntimeError:
                raise RuntimeError(f"{name}: expected a path, got {value!r}, whose home is not known") from None
    return None
