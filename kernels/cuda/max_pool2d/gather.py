"""Gather and indices (gather.cuh): the uses of offsets besides the backward pass. Each has one variant."""

from __future__ import annotations

from ...arithmetic import ceil_divide
from ...dtypes import CPP_TYPES
from ...hardware import Device
from ...planning import Configuration
from ...table import LaunchConfig, instantiate
from .cost import DIVIDE, LOAD, SECTOR_BYTES, STORE, Cost
from .plan import PoolingVariant, one_thread_for_each
from .problem import OFFSET_BYTES, PIECE_BYTES, Pool2dProblem

INDEX_BYTES = 8

_GATHER_KERNELS = tuple(
    instantiate("max_pool2d/gather.cuh", "max_pool2d_gather_kernel", tuple(CPP_TYPES.values()), tuple(OFFSET_BYTES))
)
_INDICES_KERNELS = tuple(instantiate("max_pool2d/gather.cuh", "max_pool2d_indices_kernel", tuple(OFFSET_BYTES)))
KERNELS = (*_GATHER_KERNELS, *_INDICES_KERNELS)


class Gather(PoolingVariant):
    """A thread owns 16 bytes of neighbouring outputs, or of their offsets if these are wider."""

    name = "gather"
    kernels = _GATHER_KERNELS

    def refuses(self, problem: Pool2dProblem, device: Device) -> str | None:
        return None

    def template(self, problem: Pool2dProblem) -> str:
        return "max_pool2d_gather_kernel"

    def launch_config(self, problem: Pool2dProblem, configuration: Configuration, device: Device) -> LaunchConfig:
        return one_thread_for_each(_threads(problem))

    def cost(self, problem: Pool2dProblem, configuration: Configuration, device: Device) -> Cost:
        """Counts a whole sector for each chosen cell, but no more bytes than ddx has; one division for each output, which finds
        its cell; and three divisions for each thread, which find the position of its first output."""
        threads = _threads(problem)
        cells = min(problem.outputs * SECTOR_BYTES, problem.pixels * problem.item_bytes)
        return Cost(
            bytes=problem.outputs * (problem.offset_bytes + problem.item_bytes) + cells,
            instructions=problem.outputs * (DIVIDE + 2 * LOAD + STORE) + threads * 3 * DIVIDE,
            loads=problem.outputs,
            threads=threads,
        )


class Indices(PoolingVariant):
    """A thread owns two neighbouring outputs: 16 bytes of indices."""

    name = "gather"
    kernels = _INDICES_KERNELS

    def refuses(self, problem: Pool2dProblem, device: Device) -> str | None:
        return None

    def template(self, problem: Pool2dProblem) -> str:
        return "max_pool2d_indices_kernel"

    def template_arguments(self, problem: Pool2dProblem) -> tuple[str, ...]:
        return (problem.offset_type,)

    def launch_config(self, problem: Pool2dProblem, configuration: Configuration, device: Device) -> LaunchConfig:
        return one_thread_for_each(_index_threads(problem))

    def cost(self, problem: Pool2dProblem, configuration: Configuration, device: Device) -> Cost:
        """Counts one division for each output, which finds its cell, and three divisions for each thread, which find the position
        of its first output."""
        threads = _index_threads(problem)
        return Cost(
            bytes=problem.outputs * (problem.offset_bytes + INDEX_BYTES),
            instructions=problem.outputs * (DIVIDE + LOAD + STORE) + threads * 3 * DIVIDE,
            loads=threads,
            threads=threads,
        )


def _threads(problem: Pool2dProblem) -> int:
    return ceil_divide(problem.outputs, PIECE_BYTES // max(problem.item_bytes, problem.offset_bytes))


def _index_threads(problem: Pool2dProblem) -> int:
    return ceil_divide(problem.outputs, PIECE_BYTES // INDEX_BYTES)


GATHER, INDICES = Gather(), Indices()
