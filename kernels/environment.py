"""Paths that the environment names."""

from __future__ import annotations

import os
from pathlib import Path


def path(*names: str) -> Path | None:
    """The path that the first of these variables names, absolute and without `~`; None if all are unset or empty.

    Raises:
        RuntimeError: there is no such home.
    """
    for name in names:
        if value := os.environ.get(name):
            try:
                return Path(value).expanduser().absolute()
            except RuntimeError:
                raise RuntimeError(f"{name}: expected a path, got {value!r}, whose home is not known") from None
    return None
