"""Checkpoint files from which a killed run continues."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import torch


def save(path: Path, state: dict[str, Any]) -> None:
    """Writes a state atomically: a process that is killed at any moment leaves the complete old file or the complete new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def load(path: Path, expected: dict[str, Any]) -> dict[str, Any]:
    """Reads a saved state and checks that it contains every entry of `expected` with the same value.

    Raises:
        ValueError: the file is unreadable or was saved by a different run; the message names the difference.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"checkpoint: expected one of this program, got {path}, which does not read: {error}") from error
    for name, value in expected.items():
        if state.get(name) != value:
            raise ValueError(
                f"checkpoint: expected {name} {value!r}, got {state.get(name)!r} in {path}; name another --checkpoint"
            )
    return state
