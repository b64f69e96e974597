"""Host code of kernels/cuda, for the two engines that run it: `cuda` (built ahead of time) and `cupy` (built at run time).

It allocates with torch, asks the op's `variants.py` for launch plans, fills parameter structs and hands them to a launcher. The
methods of `engine.CompiledEngine` call the functions of this package's modules and pass the launcher as the first argument.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Hashable, Iterable
from typing import Protocol

import torch

from torch_unroll.engines.compiled.listening import listener
from torch_unroll.engines.compiled.recording import note_launch
from torch_unroll.kernels.hardware import Device
from torch_unroll.kernels.table import Kernel, LaunchPlan
from torch_unroll.kernels.tensor_map import TensorMap, TensorMapSpec


def gpu(device: torch.device, resident: Callable[[LaunchPlan], int]) -> Device:
    """Returns a CUDA device as plans see it; `resident` asks the driver how many blocks of a plan, or clusters if it has any, the
    device holds at once."""
    properties = torch.cuda.get_device_properties(device)
    shared_bytes: int = properties.shared_memory_per_block_optin  # type: ignore[attr-defined]  # torch's stub lacks it
    return Device(
        multiprocessors=properties.multi_processor_count,
        capability=(properties.major, properties.minor),
        shared_bytes_per_block=shared_bytes,
        l2_bytes=properties.L2_cache_size,
        name=properties.name,
        resident=resident,
    )


class Launcher(Hashable, Protocol):
    """Puts planned kernels on torch's current stream."""

    def launch(self, plan: LaunchPlan, parameters: ctypes.Structure, device: torch.device) -> None:
        """Launches a kernel; raises RuntimeError when the launch fails."""

    def properties(self, device: torch.device) -> Device:
        """Returns the device as plans see it, the same object in every call for that device."""

    def tensor_map(self, spec: TensorMapSpec, device: torch.device) -> TensorMap:
        """Encodes a tensor's description for TMA; raises RuntimeError when the driver refuses."""

    def preload(self, rows: Iterable[Kernel], device: torch.device) -> None:
        """Loads at least those of `rows` that the device can run, so that a CUDA graph may capture even their first launch."""


class RecordedLauncher:
    """A launcher that notes each of its launches, for `recording` and for what listens to the thread."""

    def __init__(self, engine: str, launcher: Launcher):
        self._engine, self._launch, self._tensor_map = engine, launcher.launch, launcher.tensor_map
        self.properties, self.preload = launcher.properties, launcher.preload

    def launch(self, plan: LaunchPlan, parameters: ctypes.Structure, device: torch.device) -> None:
        note_launch(self._engine, plan)
        if (active := listener()) is not None:
            active.note_launch(self._engine, plan, parameters)
        self._launch(plan, parameters, device)

    def tensor_map(self, spec: TensorMapSpec, device: torch.device) -> TensorMap:
        encoded = self._tensor_map(spec, device)
        if (active := listener()) is not None:
            active.note_map(spec, encoded)
        return encoded
