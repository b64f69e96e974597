"""The variant single_block (single_block.cuh): one block for every 8 samples of a direction, a whole pass in one launch."""

from __future__ import annotations

from functools import lru_cache

from ...arithmetic import ceil_divide
from ...hardware import Device
from ...planning import Configuration, Prediction, Variant
from ...table import LaunchConfig, LaunchPlan, instantiate
from .cost import POINTWISE_CLOCKS, SCHEDULERS, SHARED_BYTES_PER_CLOCK, StepClocks, pass_prediction, product_clocks
from .problem import PASSES, Recurrence
from .tile import CHUNK_BYTES, MATHS, TILE_COLUMNS, TILE_ROWS

KERNELS = tuple(instantiate("rnn/single_block.cuh", "rnn_single_block_kernel", MATHS, PASSES))
_BY_ARGUMENTS = {row.arguments: row for row in KERNELS}
WARP_ROWS = 32  # hidden units of a warp
MAX_H = 256


def _warps(problem: Recurrence) -> int:
    return ceil_divide(problem.H, WARP_ROWS)


def _overflow_bytes(problem: Recurrence) -> int:
    """Bytes of W that do not fit into registers and are kept in shared memory."""
    in_registers = 6 if problem.math in ("float", "double") else 8
    return max(0, problem.chunks - in_registers) * _warps(problem) * WARP_ROWS * CHUNK_BYTES


def _shared_bytes(problem: Recurrence) -> int:
    return 2 * problem.state_buffer_bytes + _overflow_bytes(problem)


class SingleBlock(Variant[Recurrence]):
    """Accepts problems with at most MAX_H hidden units whose W and state fit into one block."""

    name = "single_block"

    def refuses(self, problem: Recurrence, device: Device) -> str | None:
        if problem.H > MAX_H:
            return f"one block holds {MAX_H} hidden units, not {problem.H}"
        needed = _shared_bytes(problem)
        if needed > device.shared_bytes_per_block:
            return f"W and the state need {needed} bytes of shared memory, a block has {device.shared_bytes_per_block}"
        return None

    def predict(self, problem: Recurrence, configuration: Configuration, device: Device) -> Prediction:
        warps = _warps(problem)
        product = product_clocks(problem, WARP_ROWS / TILE_ROWS * ceil_divide(warps, SCHEDULERS), problem.chunks)
        state_bytes = warps * TILE_COLUMNS * problem.H * problem.item_bytes  # every warp reads the whole state
        shared = (_overflow_bytes(problem) + state_bytes) / SHARED_BYTES_PER_CLOCK
        waves = ceil_divide(problem.batch_tiles * problem.D, device.multiprocessors)
        step = StepClocks(
            clocks=waves * (max(product, shared) + POINTWISE_CLOCKS), bound="products" if product >= shared else "shared memory"
        )
        return pass_prediction(problem, step, device)

    def plan(self, problem: Recurrence, configuration: Configuration, device: Device) -> LaunchPlan:
        return _plan(problem)


@lru_cache(maxsize=4096)
def _plan(problem: Recurrence) -> LaunchPlan:
    kernel = _BY_ARGUMENTS[problem.math, problem.template_pass]
    grid, block = (problem.batch_tiles, problem.D, 1), (32 * _warps(problem), 1, 1)
    config = LaunchConfig(grid=grid, block=block, shared_bytes=_shared_bytes(problem))
    return LaunchPlan(kernel, config, "single_block")


SINGLE_BLOCK = SingleBlock()
