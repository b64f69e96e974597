"""Host code of kernels/cuda, for the two engines that run it: `cuda` (built ahead of time) and `cupy` (built at run time).

It allocates with torch, asks the op's `variants.py` for launch plans, fills parameter structs and hands them to a launcher.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Hashable, Iterable
from functools import partial
from importlib import import_module
from typing import Any, Protocol

import torch

from torch_unroll.engines.compiled.recording import note_launch
from torch_unroll.engines.interface import MODULES
from torch_unroll.kernels.hardware import Device
from torch_unroll.kernels.table import Kernel, LaunchPlan, kernels_of
from torch_unroll.kernels.tensor_map import TensorMap, TensorMapSpec


def gpu(device: torch.device, resident: Callable[[LaunchPlan], int]) -> Device:
    """Returns a CUDA device as plans see it; `resident` is what the launcher's driver says of a plan."""
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
    """Puts a planned kernel on torch's current stream."""

    def launch(self, plan: LaunchPlan, parameters: ctypes.Structure, device: torch.device) -> None:
        """Raises RuntimeError when the launch fails; never passes silently."""

    def properties(self, device: torch.device) -> Device:
        """Returns the device as plans see it, the same object at every call."""

    def tensor_map(self, spec: TensorMapSpec, device: torch.device) -> TensorMap:
        """What the copy engine reads of a tensor there; made once for each spec. Raises RuntimeError when the driver refuses."""

    def preload(self, rows: Iterable[Kernel], device: torch.device) -> None:
        """Makes kernels ready, so that a CUDA graph's capture may be the first to launch them; skips other architectures'."""


class _Recorded:
    """A launcher that tells `recording` of each launch."""

    def __init__(self, engine: str, launcher: Launcher):
        self._engine, self._launch = engine, launcher.launch
        self.properties, self.preload, self.tensor_map = launcher.properties, launcher.preload, launcher.tensor_map

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
