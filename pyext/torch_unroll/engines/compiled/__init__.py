"""Host code of kernels/cuda, for the two engines that run it: `cuda` (built ahead of time) and `cupy` (built at run time).

It allocates with torch, asks the op's `variants.py` for launch plans, fills parameter structs and hands them to a launcher.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any, Protocol

import torch

from torch_unroll.engines.compiled.recording import note_launch
from torch_unroll.engines.interface import MODULES
from torch_unroll.kernels.table import Kernel, LaunchPlan, kernels_of
from torch_unroll.kernels.tensor_map import TensorMap, TensorMapSpec


@dataclass(frozen=True, eq=False)
class DeviceProperties:
    """What launch plans depend on; bytes where it says bytes.

    Launchers keep them, and choices are looked up by them in every call, so they are compared by identity.
    """

    multiprocessors: int
    capability: tuple[int, int]
    shared_bytes_per_block: int
    l2_bytes: int
    name: str = ""  # as the driver tells it; the emulator's device has none

    @classmethod
    def of_gpu(cls, device: torch.device) -> DeviceProperties:
        """Those of a CUDA device."""
        found = torch.cuda.get_device_properties(device)
        capability = (found.major, found.minor)
        shared_bytes: int = found.shared_memory_per_block_optin  # type: ignore[attr-defined]  # torch's stub lacks it
        return cls(found.multi_processor_count, capability, shared_bytes, found.L2_cache_size, found.name)


class Launcher(Hashable, Protocol):
    """Puts a planned kernel on torch's current stream."""

    def launch(self, plan: LaunchPlan, parameters: ctypes.Structure, device: torch.device) -> None:
        """Raises RuntimeError when the launch fails; never passes silently."""

    def resident(self, plan: LaunchPlan, device: torch.device) -> int:
        """How many blocks (with a cluster: clusters) of the plan the device holds at once."""

    def properties(self, device: torch.device) -> DeviceProperties:
        """The device's, cached."""

    def tensor_map(self, spec: TensorMapSpec, device: torch.device) -> TensorMap:
        """What the copy engine reads of a tensor there; made once for each spec. Raises RuntimeError when the driver refuses."""

    def preload(self, rows: Iterable[Kernel], device: torch.device) -> None:
        """Makes kernels ready, so that a CUDA graph's capture may be the first to launch them; skips other architectures'."""


class _Recorded:
    """A launcher that tells `recording` of each launch."""

    def __init__(self, engine: str, launcher: Launcher):
        self._engine, self._launch = engine, launcher.launch
        self.resident, self.properties, self.preload = launcher.resident, launcher.properties, launcher.preload
        self.tensor_map = launcher.tensor_map

    def launch(self, plan: LaunchPlan, parameters: ctypes.Structure, device: torch.device) -> None:
        note_launch(self._engine, plan)
        self._launch(plan, parameters, device)


class CompiledEngine:
    """An engine made of the host functions of this package and a launcher."""

    def __init__(self, name: str, launcher: Launcher, refuses: Callable[[str, torch.device, torch.dtype], str | None]):
        self.name = name
        self.launcher: Launcher = _Recorded(name, launcher)
        self.refuses = refuses

    def warmup(self, op: str, dtype: torch.dtype, device: torch.device) -> None:
        self.launcher.preload(kernels_of(op, str(dtype).removeprefix("torch.")), device)

    def __getattr__(self, function: str) -> Callable[..., Any]:
        if function not in MODULES:
            raise AttributeError(f"engine {self.name} has no function {function!r}")
        bound = partial(_host_function(function), self.launcher)
        setattr(self, function, bound)  # looked up once
        return bound


def _host_function(function: str) -> Callable[..., Any]:
    found: Callable[..., Any] = getattr(import_module(f"{__name__}.{MODULES[function]}"), function)
    return found
