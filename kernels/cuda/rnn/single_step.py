"""The variant single_step (single_step.cuh): one step on its own, for `rnn_cell`."""

from __future__ import annotations

from functools import lru_cache

from ...arithmetic import ceil_divide
from ...hardware import LAUNCH_SECONDS, Device, rates
from ...planning import Configuration, Prediction, Variant
from ...table import LaunchConfig, LaunchPlan, instantiate
from . import block_product
from .cost import dense_rate
from .problem import CellStep
from .tile import MATHS, TILE_ROWS

_NAMES = ("rnn_cell_forward_kernel", "rnn_cell_backward_kernel")
_COLUMN_TILES = tuple(map(str, block_product.COLUMN_TILES.values()))
KERNELS = tuple(row for name in _NAMES for row in instantiate("rnn/single_step.cuh", name, MATHS, _COLUMN_TILES))
_BY_NAME = {(row.name, *row.arguments): row for row in KERNELS}


class SingleStep(Variant[CellStep]):
    """Accepts every step whose batch fits into a grid."""

    name = "single_step"

    def refuses(self, problem: CellStep, device: Device) -> str | None:
        return block_product.batch_limit(problem.N)

    def tiles(self, problem: CellStep, device: Device) -> tuple[str, ...]:
        return block_product.tiles(problem.N)

    def predict(self, problem: CellStep, configuration: Configuration, device: Device) -> Prediction:
        weights = problem.H * (problem.I + problem.H) * block_product.sample_blocks(problem.N, configuration.tile)
        samples = problem.N * (problem.I + 2 * problem.H)
        rate = rates(device)
        read_seconds = (weights + samples) * problem.item_bytes / (rate.memory * rate.clock_hz * device.multiprocessors)
        seconds = LAUNCH_SECONDS + read_seconds
        return Prediction(
            seconds=seconds,
            bound="launches" if read_seconds < LAUNCH_SECONDS else "bytes",
            share=problem.flop / seconds / dense_rate(problem.math, device),
        )

    def plan(self, problem: CellStep, configuration: Configuration, device: Device) -> LaunchPlan:
        return _plan(problem, configuration.tile)


@lru_cache(maxsize=4096)
def _plan(problem: CellStep, tile: str) -> LaunchPlan:
    kernel = _BY_NAME[_NAMES[problem.backward], problem.math, str(block_product.COLUMN_TILES[tile])]
    blocks = ceil_divide(problem.H, TILE_ROWS)
    if problem.backward:  # the blocks for dx, which precede those for dh
        blocks += ceil_divide(problem.I, TILE_ROWS)
    grid = (blocks, block_product.sample_blocks(problem.N, tile), 1)
    shared_bytes = block_product.shared_bytes(problem.dtype, tile)
    config = LaunchConfig(grid=grid, block=(block_product.THREADS, 1, 1), shared_bytes=shared_bytes)
    return LaunchPlan(kernel, config, "single_step")


SINGLE_STEP = SingleStep()
