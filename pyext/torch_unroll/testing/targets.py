"""The pairs of engine and device that can run on this machine."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from torch_unroll.engines import NAMES, refusal


@dataclass(frozen=True)
class Target:
    """An engine on a device."""

    engine: str
    device: torch.device

    def __str__(self) -> str:
        emulated = "emulated" if self.engine == "cuda" and self.device.type == "cpu" else self.device.type
        return f"{self.engine}-{emulated}"


def targets(op: str, dtype: torch.dtype = torch.float32) -> list[Target]:
    """Every pair that accepts an op here: on the CPU, engine `torch`, `cuda` if the emulated library is built, and `numba` if its
    simulator is enabled; on a GPU, all engines that can run."""
    devices = [torch.device("cpu")] + ([torch.device("cuda", 0)] if torch.cuda.is_available() else [])
    return [Target(engine, device) for device in devices for engine in NAMES if refusal(engine, op, device, dtype) is None]
