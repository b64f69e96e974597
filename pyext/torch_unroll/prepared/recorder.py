"""Records what a call allocates and launches.

A call can be prepared if its host code does nothing but allocate memory, make views and launch kernels of engine `cuda`. A
recording runs it once as it is, below a dispatch mode that sees every operator of torch; whatever else the call does is the
obstacle that `explain` names.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from torch_unroll.engines.compiled.listening import listening
from torch_unroll.kernels.table import LaunchPlan
from torch_unroll.kernels.tensor_map import TensorMap, TensorMapSpec

Result = TypeVar("Result")

_aten = torch.ops.aten
_ALLOCATES = {
    _aten.empty.memory_format,
    _aten.empty_strided.default,
    _aten.empty_like.default,
    _aten.new_empty.default,
    _aten.new_empty_strided.default,
}


class Obstacle(Exception):  # noqa: N818 (not an error: the call is served without being prepared)
    """Why a call is not prepared. Unless it is `lasting`, the next call of the same kind may be."""

    def __init__(self, reason: str, lasting: bool = True):
        super().__init__(reason)
        self.lasting = lasting


class Launch(NamedTuple):
    """A launch, with a copy of its parameters."""

    plan: LaunchPlan
    kind: type[ctypes.Structure]
    parameters: bytes


class Recorder(TorchDispatchMode):
    """Notes the allocations and launches of a call, and the first thing that it does besides.

    Args:
        most_bytes: a recording keeps all workspace that the call allocates, so that no two allocations have the same address; it
            ends if that is more than this.
    """

    def __init__(self, most_bytes: int) -> None:
        super().__init__()
        self.allocations: list[Tensor] = []
        self.launches: list[Launch] = []
        self.maps: dict[bytes, TensorMapSpec] = {}
        self.obstacle: str | None = None
        self._bytes_left = most_bytes

    def run(self, function: Callable[[], Result]) -> Result:
        """Calls a function and records it."""
        with listening(self), torch.no_grad(), self:
            return function()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _ALLOCATES:
            self._keep(result)
        elif not func.is_view and not (isinstance(result, Tensor) and result.is_meta):
            self._refuse(f"it runs an operator of torch, {func}")
        return result

    def note_launch(self, engine: str, plan: LaunchPlan, parameters: ctypes.Structure) -> None:
        """Notes a launch."""
        if engine != "cuda":
            self._refuse(f"engine {engine} serves it")
        elif self.obstacle is None:
            self.launches.append(Launch(plan, type(parameters), bytes(parameters)))

    def note_workspace(self, bytes_: int) -> None:
        """Notes an allocation of workspace."""
        self._bytes_left -= bytes_
        if self._bytes_left < 0:
            self._refuse("all of its workspace together exceeds the limit on workspace")

    def note_map(self, spec: TensorMapSpec, encoded: TensorMap) -> None:
        """Notes from which description a tensor map was encoded."""
        self.maps[bytes(encoded)] = spec

    def _keep(self, memory: Tensor) -> None:
        if memory.is_meta or self.obstacle is not None:
            return
        self.allocations.append(memory)

    def _refuse(self, reason: str) -> None:
        self.obstacle = self.obstacle or reason
        self.allocations.clear()
