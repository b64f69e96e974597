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


def random_state(device: torch.device) -> torch.Tensor:
    """The state of the CPU's random generator, followed by that of the device's if it is a GPU: bytes, on the CPU."""
    state = torch.get_rng_state()
    return torch.cat([state, torch.cuda.get_rng_state(device)]) if device.type == "cuda" else state


def set_random_state(state: torch.Tensor, device: torch.device) -> None:
    """Sets the random generators to what `random_state` returned, on the same device or another one.

    A GPU's generator keeps its state if `state` was taken on a CPU; the state of a GPU is ignored on a CPU.
    """
    cpu, gpu = state.tensor_split([torch.get_rng_state().numel()])
    torch.set_rng_state(cpu)
    if device.type == "cuda" and gpu.numel():
        torch.cuda.set_rng_state(gpu, device)
