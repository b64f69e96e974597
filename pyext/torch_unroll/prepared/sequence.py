"""Turns a recorded call into a sequence of launches that one call of the C interface makes on the tensors of another call.

Each pointer in the recorded parameters is traced back to an input, a result or the workspace, and the sequence says where it is
written. The workspace is one allocation, in which memory is shared by what is not in use at the same time.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torch_unroll.engines import cuda
from torch_unroll.kernels.interface import CLaunchSequence, CSequenceLaunch, CSequencePatch, CTensorMapSpec
from torch_unroll.kernels.table import LaunchPlan
from torch_unroll.kernels.tensor_map import TensorMap
from torch_unroll.prepared.recorder import Obstacle, Recorder

_ALIGNMENT = 256  # of an allocation within the workspace, in bytes
_MOST_NUMBER = 2**15  # of pointers and of tensor maps, which patches count in 16 bits


class Allocation(NamedTuple):
    """How a result is allocated."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True, eq=False)
class Prepared:
    """A recorded call. Its pointers are those of the inputs, then of the allocated results, then of the workspace, if any."""

    struct: CLaunchSequence
    plans: tuple[LaunchPlan, ...]
    device: torch.device
    allocations: tuple[Allocation, ...]
    #: For each result of the call, the number of its allocation, or None if the call returned None there.
    results: tuple[int | None, ...]
    written: frozenset[int]  # the numbers of the allocations that kernels access
    workspace_bytes: int
    memory: tuple[Any, ...]  # to which the struct points


def assemble(recorder: Recorder, inputs: Sequence[Tensor], results: Sequence[Tensor | None]) -> Prepared:
    """Returns the recorded call of these inputs, which gave these results.

    Raises:
        Obstacle: the call cannot be prepared.
    """
    if recorder.obstacle is not None:
        raise Obstacle(recorder.obstacle)
    if not recorder.launches:
        raise Obstacle("it launches nothing")
    if any(tensor.data_ptr() % 16 for tensor in inputs):
        raise Obstacle("an input does not start at a multiple of 16 bytes", lasting=False)
    places = _Places(recorder, inputs, results)
    block = _Block(places, recorder)
    for launch in recorder.launches:
        block.add(launch.kind, launch.parameters)
    workspace_bytes = block.place_workspace()
    kernels = cuda.kernel_object_on(inputs[0].device)
    launches = (CSequenceLaunch * len(recorder.launches))()
    for entry, launch, offset in zip(launches, recorder.launches, block.offsets, strict=True):
        kernel, config = kernels.prepare(launch.plan)
        entry.config, entry.kernel, entry.parameters = config, kernel, offset
    patches = (CSequencePatch * len(block.patches))(*block.patches)
    maps = (CTensorMapSpec * max(len(block.maps), 1))(*block.maps)
    parameters = (ctypes.c_uint8 * len(block.bytes)).from_buffer_copy(block.bytes)
    struct = CLaunchSequence(
        launches=ctypes.addressof(launches),
        patches=ctypes.addressof(patches),
        maps=ctypes.addressof(maps),
        parameters=ctypes.addressof(parameters),
        launch_count=len(launches),
        patch_count=len(patches),
        parameter_bytes=len(block.bytes),
        aligned_count=len(inputs),
    )
    return Prepared(
        struct=struct,
        plans=tuple(launch.plan for launch in recorder.launches),
        device=inputs[0].device,
        allocations=tuple(
            Allocation(tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype) for tensor in places.allocated_results
        ),
        results=places.results,
        written=frozenset(patch.pointer - len(inputs) for patch in block.patches),
        workspace_bytes=workspace_bytes,
        memory=(launches, patches, maps, parameters),
    )


class _Range(NamedTuple):
    """The memory of a tensor."""

    start: int
    end: int
    pointer: int  # its number; that of the workspace for all that lies there
    tensor: int  # the index of an allocation in the workspace; -1 for an input or a result


class _Places:
    """Where the tensors of a recorded call lie."""

    def __init__(self, recorder: Recorder, inputs: Sequence[Tensor], results: Sequence[Tensor | None]):
        self.allocated_results: list[Tensor] = []
        self.results = tuple(None if result is None else self._number(result, recorder) for result in results)
        self.workspace = len(inputs) + len(self.allocated_results)  # the number of its pointer
        if self.workspace >= _MOST_NUMBER:
            raise Obstacle(f"it has {self.workspace} tensors")
        named = [*inputs, *self.allocated_results]
        self._ranges = [
            _Range(tensor.data_ptr(), tensor.data_ptr() + _span(tensor), pointer, -1) for pointer, tensor in enumerate(named)
        ]
        _require_disjoint(self._ranges)
        starts = {tensor.data_ptr() for tensor in self.allocated_results if tensor.nbytes}
        self.scratch = [memory for memory in recorder.allocations if memory.nbytes and memory.data_ptr() not in starts]
        self._ranges += [
            _Range(memory.data_ptr(), memory.data_ptr() + memory.nbytes, self.workspace, index)
            for index, memory in enumerate(self.scratch)
        ]

    def find(self, address: int) -> _Range:
        """Returns the memory that holds an address."""
        for range_ in self._ranges:
            if range_.start <= address < range_.end:
                return range_
        raise Obstacle("it passes a kernel memory that is neither an input nor its own")

    def _number(self, result: Tensor, recorder: Recorder) -> int:
        """Returns the number of a result, which has to be a tensor that the call has allocated, or a view that covers one."""
        for number, tensor in enumerate(self.allocated_results):
            if tensor is result:
                return number
        if not any(_covers(result, memory) for memory in recorder.allocations):
            raise Obstacle("a result is not memory that it has allocated")
        self.allocated_results.append(result)
        return len(self.allocated_results) - 1


def _covers(result: Tensor, memory: Tensor) -> bool:
    if result is memory:
        return True
    same = result.data_ptr() == memory.data_ptr() and result.nbytes == memory.nbytes
    return same and memory.nbytes > 0 and _span(result) == result.nbytes


def _span(tensor: Tensor) -> int:
    """Returns the bytes from a tensor's first element to its last."""
    if not tensor.numel():
        return 0
    last = sum((extent - 1) * stride for extent, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


def _require_disjoint(ranges: Sequence[_Range]) -> None:
    """Requires that no address lies in two tensors, since it could not be traced back to one of them."""
    end = 0
    for range_ in sorted(range_ for range_ in ranges if range_.end > range_.start):
        if range_.start < end:
            raise Obstacle("two of its tensors overlap in memory", lasting=False)
        end = range_.end


class _Block:
    """The parameters of all launches in one block of memory, and where pointers are written into it."""

    def __init__(self, places: _Places, recorder: Recorder):
        self.places, self.recorded_maps = places, recorder.maps
        self.bytes = bytearray()
        self.offsets: list[int] = []
        self.patches: list[CSequencePatch] = []
        self.maps: list[CTensorMapSpec] = []
        self._uses: dict[int, tuple[int, int]] = {}  # allocation in the workspace -> the first and the last launch that use it
        self._scratch_patches: list[tuple[CSequencePatch, int]] = []

    def add(self, kind: type[ctypes.Structure], parameters: bytes) -> None:
        """Adds the parameters of the next launch."""
        self.bytes += bytes(-len(self.bytes) % 16)
        base = len(self.bytes)
        self.offsets.append(base)
        self.bytes += parameters
        for offset, is_map in _pointers(kind):
            if not is_map:
                address = int.from_bytes(parameters[offset : offset + 8], "little")
                if address:
                    self._patch(address, base + offset, -1)
                continue
            encoded = parameters[offset : offset + ctypes.sizeof(TensorMap)]
            if any(encoded):
                spec = self.recorded_maps[encoded]
                self.maps.append(spec.struct())
                if len(self.maps) >= _MOST_NUMBER:
                    raise Obstacle(f"it has {len(self.maps)} tensor maps")
                self._patch(spec.address, base + offset, len(self.maps) - 1)

    def _patch(self, address: int, at: int, map_: int) -> None:
        range_ = self.places.find(address)
        patch = CSequencePatch(offset=address - range_.start, at=at, pointer=range_.pointer, map=map_)
        self.patches.append(patch)
        if range_.tensor >= 0:
            launch = len(self.offsets) - 1
            first, _ = self._uses.get(range_.tensor, (launch, launch))
            self._uses[range_.tensor] = (first, launch)
            self._scratch_patches.append((patch, range_.tensor))

    def place_workspace(self) -> int:
        """Gives each allocation its place in the workspace; returns the bytes of the workspace."""
        placed: list[tuple[int, int, int, int]] = []  # start, end, first use, last use
        starts: dict[int, int] = {}
        for index, (first, last) in sorted(self._uses.items(), key=lambda use: -self.places.scratch[use[0]].nbytes):
            bytes_ = -(-self.places.scratch[index].nbytes // _ALIGNMENT) * _ALIGNMENT
            start = 0
            for other in sorted(other for other in placed if other[2] <= last and first <= other[3]):
                if start + bytes_ <= other[0]:
                    break
                start = max(start, other[1])
            starts[index] = start
            placed.append((start, start + bytes_, first, last))
        for patch, index in self._scratch_patches:
            patch.offset += starts[index]
        return max((end for _, end, _, _ in placed), default=0)


def _pointers(kind: type[ctypes.Structure], start: int = 0) -> Iterator[tuple[int, bool]]:
    """Yields the offset of each pointer and of each tensor map in a struct, and whether it is a map."""
    for name, type_, *_ in kind._fields_:
        offset = start + getattr(kind, name).offset
        if type_ in (ctypes.c_void_p, TensorMap):
            yield offset, type_ is TensorMap
            continue
        element: Any = type_._type_ if issubclass(type_, ctypes.Array) else type_
        if issubclass(element, ctypes.Structure):
            for start_of_element in range(offset, offset + ctypes.sizeof(type_), ctypes.sizeof(element)):
                yield from _pointers(element, start_of_element)
